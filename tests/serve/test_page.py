"""The page in a real Chromium: with mouse, keyboard and thumb, light and dark, and nothing asked of another machine."""

import base64
import io
import json
import re
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from petseg.data.dataset import palette
from petseg.predict.outputs import encoded
from petseg.predict.segmenter import DEFAULT, Segmenter, shipped_model
from tests.conftest import Served, chromium

CAT = Path(__file__).parents[2] / "petseg" / "serve" / "page" / "cat.jpg"
TITLE = Segmenter(DEFAULT, threads=1).card["title"]
UNET, SEGNET = shipped_model("unet"), shipped_model("segnet")
FAKES = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", *FAKES, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    if path is None:
        pytest.skip("NO BROWSER: no Chromium on the path, so the page is not tested")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield launched
        launched.close()


def opened(browser, address, **context):
    made = browser.new_context(permissions=["camera", "clipboard-read", "clipboard-write"], **context)
    made.set_default_timeout(60_000)
    expect.set_options(timeout=30_000)
    page = made.new_page()
    console, asked = [], []
    page.on("console", lambda message: console.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: console.append(str(error)))
    made.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    yield page
    made.close()
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("blob:", "data:"))}
    assert hosts == {urlsplit(address).netloc}
    assert [line for line in console if "400 (Bad Request)" not in line] == []


@pytest.fixture
def page(browser, served):
    yield from opened(browser, served.url, viewport={"width": 1280, "height": 900})


def compare(page, *titles):
    for title in titles:
        page.get_by_role("checkbox", name=title, exact=True).check()


def done(page):
    """Waits until the default model and SegNet, compared with it, have answered."""
    words = re.compile(rf"Pixels .*{SEGNET} [\d.]+ %\.$|None of the models sees")
    expect(page.locator("#agreement")).to_have_text(words)


def choose(page, *files):
    page.set_input_files("#file", list(files))


def cat(page):
    choose(page, CAT)
    compare(page, "SegNet")
    done(page)


def shown_pixels(page, place):
    data = page.evaluate(
        """async (place) => {
            const image = document.querySelectorAll(".result img")[place];
            await image.decode();
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext("2d").drawImage(image, 0, 0);
            return canvas.toDataURL();
        }""",
        place,
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB"))


def test_the_default_model_is_compared_with_the_others_with_figures_and_a_divider_for_the_mouse(page):
    choose(page, CAT)
    expect(page.get_by_role("article")).to_have_count(1)
    compare(page, "U-Net")
    cat(page)
    expect(page.get_by_role("article")).to_have_count(3)
    masks = []
    for place, (name, title) in enumerate(((DEFAULT, TITLE), (UNET, "U-Net"), (SEGNET, "SegNet"))):
        side = page.get_by_role("article", name=title, exact=True)
        result = Segmenter(name, threads=1)(CAT)
        masks.append(result.mask)
        seen = result.foreground_class
        words = f"{seen.name}, {100 * seen.probability:.0f} %" if seen is not None else "foreground"
        expect(side.locator(".sees")).to_have_text(words)
        expect(side.locator(".confidence")).to_have_text(f"{100 * result.confidence:.0f} %")
        expect(side.locator(".covers")).to_have_text(f"{100 * result.foreground_share:.0f} %")
        expect(side.locator(".time")).to_have_text(re.compile(r"^[\d.]+ ms$"))
        assert np.array_equal(shown_pixels(page, place), np.asarray(result.overlay()))
    first, second = (f"{100 * np.mean(masks[0] == mask):.1f} %" for mask in masks[1:])
    words = f"Pixels that agree with {DEFAULT}: {UNET} {first}, {SEGNET} {second}."
    expect(page.locator("#agreement")).to_have_text(words)
    box = page.locator(".stage").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert clip(page) == pytest.approx([20, 20, 20], abs=1)
    assert page.locator("input[type=range]").nth(1).input_value() == "20"
    page.get_by_role("checkbox", name="U-Net", exact=True).uncheck()
    expect(page.get_by_role("article")).to_have_count(2)
    expect(page.locator("#agreement")).to_have_text(f"Pixels that agree with {DEFAULT}: {SEGNET} {second}.")


def test_each_view_shows_its_image(page):
    page.get_by_role("button", name="Sample cat").click()
    compare(page, "SegNet")
    done(page)
    result = Segmenter(SEGNET, threads=1)(CAT)
    page.locator("input[value=mask]").check(force=True)
    expect(page.locator(".result img").nth(1)).to_have_attribute("alt", "SegNet: mask")
    assert np.array_equal(shown_pixels(page, 1)[..., 0], result.mask)
    page.locator("input[value=classes]").check(force=True)
    expect(page.locator(".result img").nth(1)).to_have_attribute("alt", "SegNet: classes")
    assert np.array_equal(shown_pixels(page, 1), palette(result.classes)[result.class_ids])
    expect(page.locator("#legend li")).to_have_text([each.name for each in result.classes])
    page.locator("input[value=cutout]").check(force=True)
    expect(page.locator(".result img").nth(1)).to_have_attribute("alt", "SegNet: cut-out")


@pytest.mark.parametrize("size", [(333, 1001), (1003, 251), (401, 399)])
def test_a_cut_out_covers_its_photo_and_no_more(page, tmp_path, size):
    Image.new("RGB", size, "red").save(tmp_path / "wall.png")
    choose(page, tmp_path / "wall.png")
    expect(page.locator("#agreement")).to_have_text("The model sees nothing to cut out.")
    page.locator("input[value=cutout]").check(force=True)
    expect(page.locator(".result img").first).to_have_attribute("alt", f"{TITLE}: cut-out")
    page.evaluate("document.querySelectorAll('.stage').forEach((stage) => stage.style.setProperty('--at', '0%'))")
    stage = page.locator(".stage").first
    box = stage.bounding_box()
    assert box["width"] / box["height"] == pytest.approx(size[0] / size[1], rel=0.02)
    seen = np.asarray(Image.open(io.BytesIO(stage.screenshot())).convert("RGB")).astype(int)
    assert (seen[..., 0] - seen[..., 1]).max() < 60, "a line of the red photo shows"


def test_a_photo_in_work_shows_that_it_is(page):
    held = []
    page.route("**/api/segment*", lambda route: held.append(route))
    choose(page, CAT)
    expect(page.get_by_text("Working …").first).to_be_visible()
    while not held:
        page.wait_for_timeout(20)
    for route in held:
        route.continue_()
    expect(page.get_by_text("Working …").first).to_be_hidden()
    expect(page.locator(".sees")).to_contain_text("cat")


def clip(page):
    return page.evaluate(
        """[...document.querySelectorAll(".result")]
            .map((result) => parseFloat(getComputedStyle(result).clipPath.split(" ").at(-1)))"""
    )


def test_downloads_are_the_api_s_files_and_the_result_is_copied(page):
    cat(page)
    for output in ("mask", "overlay", "cutout", "classes", "trimap", "json"):
        with page.expect_download() as download:
            page.locator(f"article >> nth=1 >> [data-output={output}]").click()
        ending = "json" if output == "json" else f"{output}.png"
        assert download.value.suggested_filename == f"cat.{SEGNET}.{ending}"
        content = Path(download.value.path()).read_bytes()
        result = Segmenter(SEGNET, threads=1)(CAT)
        if output == "json":
            assert json.loads(content).items() >= json.loads(json.dumps(result.summary().to_dict())).items()
        else:
            assert content == encoded(result, output)
    page.get_by_role("button", name=f"Copy {TITLE}'s result").click()
    expect(page.locator("button.copy").first).to_have_text("Copied")
    kinds = page.evaluate("navigator.clipboard.read().then((items) => items[0].types)")
    assert kinds == ["image/png"]
    page.keyboard.press("Control+V")
    expect(page.locator("[data-output=mask]").first).to_have_attribute("download", f"image.{DEFAULT}.mask.png")
    done(page)


def test_a_wrong_file_says_why_and_the_next_photo_works(page, tmp_path):
    for name, content, problem in (
        ("words.jpg", b"words", r"the photo: cannot be decoded \(not an image that can be read; wanted JPEG, .*TIFF\)"),
        ("big.jpg", bytes(20_000_001), "it has 20 MB; at most 20 MB are taken"),
        ("empty.png", b"", "the file is empty"),
    ):
        (tmp_path / name).write_bytes(content)
        choose(page, tmp_path / name)
        expect(page.get_by_role("alert")).to_have_text(re.compile(rf"^{name}: {problem}$"))
        expect(page.locator("#results")).to_be_hidden()
    cat(page)
    expect(page.locator("#problem")).to_be_hidden()


def test_a_server_that_stopped_is_an_error(browser):
    server = Served()
    page = browser.new_page()
    page.goto(server.url)
    page.wait_for_selector("body[data-ready]")
    server.stop()
    choose(page, CAT)
    problem = "cat.jpg: the server does not answer; is `petseg serve` still running?"
    expect(page.get_by_role("alert")).to_have_text(problem)
    page.close()


def test_with_the_keyboard_alone(page):
    def tab_to(selector):
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
                return
        raise AssertionError(f"{selector} cannot be reached")

    tab_to("#file")
    tab_to("#sample")
    page.keyboard.press("Enter")
    tab_to("input[name=view]")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".result img").first).to_have_attribute("alt", f"{TITLE}: mask")
    tab_to(f"input[value={SEGNET}]")
    page.keyboard.press("Space")
    done(page)
    tab_to("input[type=range]")
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert clip(page) == pytest.approx([45, 45])
    tab_to("[data-output=cutout]")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == f"cat.{DEFAULT}.cutout.png"
    page.keyboard.press("Shift+Tab")
    tab_to("button.copy")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(browser, served, scheme):
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    for page in opened(browser, served.url, **phone):
        page.get_by_role("button", name="Sample cat").tap()
        compare(page, "SegNet")
        done(page)
        for address in ("/#try", "/#comparison", "/#api"):
            page.goto(served.url + address)
            if address == "/#comparison":
                expect(page.locator("#report")).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, address
        page.goto(f"{served.url}/#try")
        first, second = (page.locator("article").nth(place).bounding_box() for place in (0, 1))
        assert second["y"] >= first["y"] + first["height"]
        for control in page.locator("button:visible, a.button:visible").all():
            assert control.bounding_box()["height"] >= 40
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_several_photos_end_in_a_zip_every_control_has_a_name_and_every_image_words(page, tmp_path):
    Image.new("RGB", (64, 48), "grey").save(tmp_path / "wall.png")
    (tmp_path / "words.jpg").write_text("words")
    choose(page, CAT, tmp_path / "wall.png", tmp_path / "words.jpg", CAT)
    compare(page, "SegNet")
    expect(page.locator("#zip")).to_be_enabled()
    expect(page.get_by_role("alert")).to_have_text("1 of 4 photos could not be used; the list below says why.")
    rows = ("cat.jpg *done", "wall.png *done", "words.jpg *the photo: cannot be decoded", "^cat.jpgdone$")
    expect(page.locator("#list li")).to_have_text([*map(re.compile, rows)])
    nameless = page.evaluate(
        """[...document.querySelectorAll("a, button, input, iframe, img, [role=group]")]
            .filter((e) => e.checkVisibility())
            .filter((e) => !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.[0]?.textContent.trim()
                || e.title || e.hasAttribute("alt")))
            .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    with page.expect_download() as download:
        page.locator("#zip").click()
    assert download.value.suggested_filename == "petseg.zip"
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert len(names) == len({*names}) == 3 * 2 * 6
        assert {f"cat.{DEFAULT}.mask.png", f"cat-2.{SEGNET}.cutout.png", f"wall.{DEFAULT}.json"} <= {*names}
        assert archive.read(f"cat.{DEFAULT}.mask.png") == encoded(Segmenter(DEFAULT, threads=1)(CAT), "mask")
    page.locator("#list button").nth(1).click()
    expect(page.locator("article .sees").first).to_have_text(re.compile("^no cat or dog"))


def test_dropped_and_pasted_images_are_taken(page):
    content = list(CAT.read_bytes())
    for event, field in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.evaluate(
            """([content, event, field]) => {
                const data = new DataTransfer();
                data.items.add(new File([Uint8Array.from(content)], `${event}.jpg`, { type: "image/jpeg" }));
                const made = event === "paste" ? new ClipboardEvent(event, { clipboardData: data })
                    : new DragEvent(event, { dataTransfer: data, cancelable: true });
                dispatchEvent(made);
            }""",
            [content, event, field],
        )
        expect(page.locator("[data-output=mask]").first).to_have_attribute("download", f"{event}.{DEFAULT}.mask.png")
    page.evaluate("dispatchEvent(new ClipboardEvent('paste', { clipboardData: new DataTransfer() }))")
    expect(page.get_by_role("alert")).to_have_text("The clipboard holds no image.")


def test_the_webcam_shows_its_rate_and_keeps_the_last_frame(page):
    page.get_by_role("button", name="Webcam").click()
    expect(page.locator("#rate")).to_have_text(re.compile(r"^\d+\.\d$"))
    page.locator("input[value=mask]").check(force=True)
    expect(page.locator(".result img").first).to_have_attribute("alt", f"{TITLE}: mask")
    compare(page, "SegNet")
    expect(page.locator(".result img")).to_have_count(2)
    page.get_by_role("button", name="Stop webcam").click()
    expect(page.locator("#live")).to_be_hidden()
    expect(page.locator("[data-output=cutout]").first).to_have_attribute("href", re.compile("^blob:"))
    done(page)


def fitted(page):
    """Waits until the frame holds all of the report."""
    inside = "document.querySelector('#report').contentDocument.documentElement.offsetHeight"
    page.wait_for_function(f"document.querySelector('#report').clientHeight >= {inside} && {inside} > 500")


def test_the_comparison_shows_tables_and_plots_of_results_and_the_commands_name_this_server(page, served):
    page.get_by_role("link", name="Comparison").click()
    listed = httpx.get(f"{served.url}/api/results").json()
    expect(page.locator("#choices button")).to_have_count(len(listed))
    expect(page.locator("#choices")).to_contain_text(listed[0]["answer"][0])
    expect(page.locator("#report")).to_be_visible()
    report = page.frame_locator("#report")
    expect(report.get_by_role("heading", name="All figures")).to_be_visible()
    assert report.locator("figure svg").count() >= 2
    assert report.locator("table").first.locator("tr").count() == 5
    fitted(page)
    page.locator("#choices button").nth(1).click()
    expect(report.locator(".facts")).to_contain_text("val split")
    page.get_by_role("link", name="API").click()
    expect(page.locator("#commands")).to_contain_text(f"{served.url}/api/segment?output=cutout")


def test_a_request_elsewhere_would_be_seen(browser, served):
    pages = opened(browser, served.url)
    page = next(pages)
    page.evaluate("fetch('http://pets.example/').catch(() => null)")
    with pytest.raises(AssertionError):
        next(pages, None)
