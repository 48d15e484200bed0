"""The page in a real Chromium: with mouse, keyboard and thumb, light and dark, and nothing asked of another machine."""

import base64
import io
import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image, ImageOps
from playwright.sync_api import expect, sync_playwright

from petseg.data.dataset import palette
from petseg.predict.outputs import encoded
from petseg.predict.segmenter import Segmenter
from petseg.shipped import DEFAULT, shipped_model
from tests.conftest import Served, chromium

PAGE = Path(__file__).parents[2] / "petseg" / "serve" / "page"
CAT = PAGE / "cat.jpg"
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


def view(page, name):
    page.locator(f"input[name=view][value={name}]").check(force=True)


def cut_out(page):
    """Waits until the cut-out is on the canvas."""
    expect(page.locator("canvas")).to_have_attribute("data-painted", re.compile(r"\d"))
    expect(page.locator(".sees")).not_to_have_text("–")


def choose(page, *files):
    page.set_input_files("#file", list(files))


def saved(page, clicked):
    with page.expect_download() as download:
        page.locator(clicked).click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def shown_pixels(page, place):
    data = page.evaluate(
        """async (place) => {
            const image = document.querySelectorAll(".result img, .result canvas")[place];
            await image.decode?.();
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth ?? image.width, image.naturalHeight ?? image.height];
            canvas.getContext("2d").drawImage(image, 0, 0);
            return canvas.toDataURL();
        }""",
        place,
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGBA"))


@pytest.fixture(scope="module")
def result():
    return Segmenter(DEFAULT, threads=1)(CAT)


def test_the_first_view_is_a_finished_cut_out_and_the_samples_answer_at_once(page, result):
    cut_out(page)
    expect(page.get_by_role("button", name="Chelsea")).to_have_attribute("aria-pressed", "true")
    seen = result.foreground_class
    expect(page.locator(".sees")).to_have_text(f"{seen.name}, {100 * seen.probability:.0f} %")
    expect(page.locator(".confidence")).to_have_text(f"{100 * result.confidence:.0f} %")
    expect(page.locator(".covers")).to_have_text(f"{100 * result.foreground_share:.0f} %")
    expect(page.locator(".network")).to_have_text(re.compile(r"^[\d.]+ ms$"))
    wanted = np.asarray(result.cutout())
    drawn, solid = shown_pixels(page, 0), wanted[..., 3] == 255  # a canvas rounds colours that are half transparent
    assert np.array_equal(drawn[solid], wanted[solid])
    assert np.array_equal(drawn[..., 3], wanted[..., 3])
    page.wait_for_load_state("networkidle")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_role("button", name="A drawn dog").click()
    expect(page.locator(".sees")).to_have_text(re.compile("^dog, "))
    page.get_by_role("button", name="Coffee").click()
    expect(page.get_by_text("No cat or dog here")).to_be_visible()
    assert [url for url in asked if "/api/" in url] == []
    expect(page.locator("#download")).to_be_disabled()
    page.get_by_role("button", name="Cut out anyway").click()
    marked = Segmenter(DEFAULT, threads=1).using(raw=True)(PAGE / "coffee.jpg").foreground_share
    expect(page.locator(".covers")).to_have_text(f"{100 * marked:.0f} %")
    assert "raw=true" in asked[-1]


def test_where_no_pixel_is_marked_the_page_says_so(page, tmp_path):
    Image.new("RGB", (90, 80), "grey").save(tmp_path / "grey.png")
    choose(page, tmp_path / "grey.png")
    expect(page.get_by_text("No cat or dog here")).to_be_visible()
    page.get_by_role("button", name="Cut out anyway").click()
    expect(page.get_by_text("The model marks no pixel at all.")).to_be_visible()


def test_u_net_and_segnet_stand_side_by_side_and_one_slider_moves_in_both(page):
    choose(page, CAT)
    view(page, "compare")
    expect(page.locator("#agreement")).to_have_text(re.compile("agree"))
    expect(page.get_by_role("article")).to_have_count(2)
    masks = []
    for place, (name, title) in enumerate(((UNET, "U-Net"), (SEGNET, "SegNet"))):
        found = Segmenter(name, threads=1)(CAT)
        masks.append(found.mask)
        assert np.array_equal(shown_pixels(page, place)[..., :3], np.asarray(found.overlay()))
        side = page.get_by_role("article", name=title, exact=True)
        expect(side.locator(".covers")).to_have_text(f"{100 * found.foreground_share:.0f} %")
        name, content = saved(page, f"article >> nth={place} >> [data-output=mask]")
        assert (name, content) == (f"cat.{(UNET, SEGNET)[place]}.mask.png", encoded(found, "mask"))
    words = f"The two agree on {100 * np.mean(masks[0] == masks[1]):.1f} % of the pixels."
    expect(page.locator("#agreement")).to_have_text(words)
    box = page.locator(".stage").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert clip(page) == pytest.approx([20, 20], abs=1)
    assert page.locator("input[type=range]").nth(1).input_value() == "20"


def test_mask_and_border_of_the_chosen_model_and_every_file(page):
    choose(page, CAT)
    view(page, "masks")
    page.get_by_label("Model").select_option(SEGNET)
    found = Segmenter(SEGNET, threads=1)(CAT)
    for output in ("mask", "classes", "trimap", "overlay", "json"):
        name, content = saved(page, f"[data-output={output}][href]")
        assert name == f"cat.{SEGNET}.{'json' if output == 'json' else f'{output}.png'}"
        if output == "json":
            assert json.loads(content).items() >= json.loads(json.dumps(found.summary().to_dict())).items()
        else:
            assert content == encoded(found, output)
    assert np.array_equal(shown_pixels(page, 0)[..., 0], found.mask)
    assert np.array_equal(shown_pixels(page, 1)[..., :3], palette(found.classes)[found.class_ids])
    expect(page.locator(".legend li")).to_have_text([each.name for each in found.classes])


def test_a_cut_out_has_a_background_a_crop_finer_hair_and_a_name_when_it_is_copied(page, tmp_path, result):
    choose(page, CAT)
    cut_out(page)
    assert saved(page, "#download") == (f"cat.{DEFAULT}.cutout.png", encoded(result, "cutout"))  # nothing changed
    Image.new("RGB", (30, 90), "#208040").save(tmp_path / "green.png")
    page.set_input_files("#picture", tmp_path / "green.png")
    expect(page.locator(".result")).to_have_attribute("style", re.compile("cover"))
    page.get_by_label("Crop").check()
    expect(page.locator(".crop")).to_be_visible()
    cropped = np.asarray(Image.open(io.BytesIO(saved(page, "#download")[1])).convert("RGB")).astype(int)
    wanted = np.asarray(result.cutout(background="#208040", crop=True)).astype(int)
    assert cropped.shape == wanted.shape
    assert np.abs(cropped - wanted).max() <= 3, "blending rounds"
    page.get_by_label("Crop").uncheck()
    page.locator("input[name=background][value='']").check(force=True)
    page.get_by_label("Finer hair").check()
    page.get_by_label("Mirror too").check()
    expect(page.locator(".wait")).to_be_hidden()
    matted = Segmenter(DEFAULT, threads=1).using(flip=True)(CAT)
    finer = np.asarray(Image.open(io.BytesIO(saved(page, "#download")[1]))).astype(int)
    wanted = np.asarray(matted.cutout(matting=True)).astype(int)
    assert np.abs(finer - wanted).max() <= 1, "the solver's last digits differ by the number of threads"
    copy = page.locator("button.copy")
    expect(copy).to_have_text("Copy cut-out")
    copy.click()
    expect(copy).to_have_text("Cut-out copied")
    assert page.evaluate("navigator.clipboard.read().then((items) => items[0].types)") == ["image/png"]
    page.keyboard.press("Control+V")
    expect(page.locator("#status")).to_have_text("Done")


def test_the_brush_erases_and_restores_at_the_photo_s_own_size_and_undo_takes_it_back(page, result):
    choose(page, CAT)
    cut_out(page)
    original = np.asarray(result.cutout())[..., 3]
    photo = np.asarray(ImageOps.exif_transpose(Image.open(CAT)).convert("RGB")).astype(int)
    height, width = original.shape

    def paint(tool, x, y):
        page.locator(f"input[value={tool}]").check(force=True)
        box = page.locator(f".stage.{tool}").bounding_box()  # as soon as the photo that is its paint has been decoded
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + (x + 0.05) * box["width"], box["y"] + y * box["height"], steps=3)
        page.mouse.up()
        return np.asarray(Image.open(io.BytesIO(saved(page, "#download")[1])))

    erased = paint("erase", 0.4, 0.5)
    inside = np.s_[height // 2, round(0.42 * width)]
    assert (original[inside], erased[inside][3]) == (255, 0)
    assert np.count_nonzero(erased[..., 3] != original) < 0.03 * original.size
    empty = np.s_[height // 2, round(0.97 * width)]
    restored = paint("restore", 0.94, 0.5)
    assert (original[empty], restored[empty][3]) == (0, 255)
    assert np.abs(restored[empty][:3].astype(int) - photo[empty]).max() <= 2
    page.get_by_role("button", name="Zoom in").click()
    stage, window = (page.locator(each).bounding_box()["width"] for each in (".stage", ".window"))
    assert stage / window == pytest.approx(1.5, rel=0.01)
    page.locator("#undo").click()
    page.locator("#undo").click()
    assert saved(page, "#download")[1] == encoded(result, "cutout")
    page.locator(".stage").focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    expect(page.locator("canvas")).to_have_attribute("data-painted", "1")
    assert float(page.locator(".ring").evaluate("(ring) => ring.style.top.slice(0, -1)")) == pytest.approx(54, abs=4)


@pytest.mark.parametrize("size", [(333, 1001), (1003, 251)])
def test_a_cut_out_covers_its_photo_and_no_more(page, tmp_path, size):
    Image.new("RGB", size, "red").save(tmp_path / "wall.png")
    choose(page, tmp_path / "wall.png")
    expect(page.get_by_text("No cat or dog here")).to_be_visible()
    view(page, "masks")
    page.locator("[data-output=mask][href]").wait_for()
    page.evaluate("document.querySelector('main').style.setProperty('--at', '0%')")
    stage = page.locator(".stage").first
    box = stage.bounding_box()
    assert box["width"] / box["height"] == pytest.approx(size[0] / size[1], rel=0.02)
    seen = np.asarray(Image.open(io.BytesIO(stage.screenshot())).convert("RGB")).astype(int)
    assert (seen[..., 0] - seen[..., 1]).max() < 60, "a line of the red photo shows"


def test_a_photo_in_work_shows_that_it_is(page):
    page.wait_for_load_state("networkidle")
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


def test_a_wrong_file_says_why_and_the_next_photo_works(page, tmp_path):
    for name, content, problem in (
        (
            "words.jpg",
            b"words",
            r"the photo: cannot be decoded \(not an image that can be read; wanted JPEG, .*TIFF, NPY\)",
        ),
        ("big.jpg", bytes(20_000_001), "it has 20 MB; at most 20 MB are taken"),
        ("empty.png", b"", "the file is empty"),
    ):
        (tmp_path / name).write_bytes(content)
        choose(page, tmp_path / name)
        expect(page.get_by_role("alert")).to_have_text(re.compile(rf"^{name}: {problem}$"))
        expect(page.locator("#results")).to_be_hidden()
    choose(page, CAT)
    cut_out(page)
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


@pytest.mark.parametrize("failure", ["gone", "broken off"])
def test_a_request_that_fails_loses_neither_strokes_nor_cut_outs_and_is_made_again(browser, served, failure):
    page = browser.new_page()
    page.goto(served.url)
    page.wait_for_selector("body[data-ready]")
    choose(page, CAT, PAGE / "dog.jpg")
    expect(page.locator("#zip")).to_be_enabled()
    page.locator("input[name=tool][value=erase]").check(force=True)
    page.locator(".stage").focus()
    page.keyboard.press("Space")
    answer = {"status": 200, "content_type": "multipart/form-data; boundary=x", "body": "--x\r\nbroken"}
    fails = (lambda route: route.abort()) if failure == "gone" else (lambda route: route.fulfill(**answer))
    page.route("**/api/segment*", fails)
    page.locator("input[name=flip]").check()
    expect(page.get_by_role("alert")).to_have_text("the server does not answer; is `petseg serve` still running?")
    expect(page.locator("#undo")).to_be_enabled()
    expect(page.locator("canvas")).to_be_visible()
    expect(page.locator(".stage")).to_have_attribute("aria-busy", "false")
    page.unroute("**/api/segment*")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#zip")).to_be_enabled()
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator("#again")).to_have_count(0)
    expect(page.locator("#undo")).to_be_enabled()
    page.close()


def test_another_photo_begins_without_the_brush_and_notes_are_told(page, tmp_path):
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    choose(page, CAT, tmp_path / "two.gif")
    cut_out(page)
    page.locator("input[name=tool][value=restore]").check(force=True)
    page.locator("#list button").nth(1).click()
    expect(page.locator("input[name=tool][value=slider]")).to_be_checked()
    expect(page.locator(".notes")).to_have_text(re.compile("first"))


def test_with_the_keyboard_alone(page):
    def tab_to(selector):
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
                return
        raise AssertionError(f"{selector} cannot be reached")

    tab_to("#file")
    tab_to("[data-file='dog.jpg']")
    page.keyboard.press("Enter")
    tab_to("input[name=view]")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#agreement")).to_have_text(re.compile("agree"))
    tab_to("input[type=range]")
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert clip(page) == pytest.approx([30, 30])
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowLeft")
    cut_out(page)  # before that there is nothing to download
    tab_to("#download")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == f"dog.{DEFAULT}.cutout.png"
    for place in ("button.copy", "input[name=background]", "#picture", "input[name=crop]", "input[name=tool]"):
        tab_to(place)
    tab_to("[aria-label='Zoom in']")
    page.keyboard.press("Enter")
    for place in ("select[name=model]", "input[name=flip]", "input[name=matting]"):
        tab_to(place)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(browser, served, scheme):
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    for page in opened(browser, served.url, **phone):
        cut_out(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        for control in page.locator("button:visible, .button:visible").all():
            assert control.bounding_box()["height"] >= 40
        view(page, "compare")
        expect(page.locator("#agreement")).to_have_text(re.compile("agree"))
        first, second = (page.locator("article").nth(place).bounding_box() for place in (0, 1))
        assert second["y"] >= first["y"] + first["height"]
        for address, seen in (("/#comparison", "#answer table"), ("/#api", "#commands"), ("/#try", "article")):
            page.goto(served.url + address)
            expect(page.locator(seen).first).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, address
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_several_photos_end_in_a_zip_every_control_has_a_name_and_every_image_words(page, tmp_path):
    Image.new("RGB", (64, 48), "grey").save(tmp_path / "wall.png")
    (tmp_path / "words.jpg").write_text("words")
    choose(page, CAT, tmp_path / "wall.png", tmp_path / "words.jpg", CAT)
    view(page, "masks")
    expect(page.locator("#zip")).to_be_enabled()
    expect(page.get_by_role("alert")).to_have_text("1 of 4 photos could not be used; the list below says why.")
    rows = ("cat.jpg *done", "wall.png *done", "words.jpg *the photo: cannot be decoded", r"^\s*cat.jpgdone\s*$")
    expect(page.locator("#list li")).to_have_text([*map(re.compile, rows)])
    nameless = page.evaluate(
        """[...document.querySelectorAll("a, button, input, select, canvas, img, [role=group]")]
            .filter((e) => e.checkVisibility())
            .filter((e) => !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.[0]?.textContent.trim()
                || e.title || e.hasAttribute("alt")))
            .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    name, content = saved(page, "#zip")
    assert name == "petseg.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert len(names) == len({*names}) == 3 * 5
        assert {f"cat.{DEFAULT}.mask.png", f"cat-2.{DEFAULT}.classes.png", f"wall.{DEFAULT}.json"} <= {*names}
        assert archive.read(f"cat.{DEFAULT}.mask.png") == encoded(Segmenter(DEFAULT, threads=1)(CAT), "mask")
    page.locator("#list button").nth(1).click()
    expect(page.locator(".sees")).to_have_text(re.compile("^no cat or dog"))


def test_dropped_and_pasted_images_are_taken(page):
    content = list(CAT.read_bytes())
    view(page, "masks")
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
        page.goto(page.url.partition("#")[0] + "#api")  # the next one is taken from there
    page.evaluate("dispatchEvent(new ClipboardEvent('paste', { clipboardData: new DataTransfer() }))")
    expect(page.get_by_role("alert")).to_have_text("The clipboard holds no image.")


def test_the_webcam_shows_its_rate_and_keeps_the_last_frame(page):
    page.get_by_role("button", name="Webcam").click()
    expect(page.locator("#rate")).to_have_text(re.compile(r"^\d+\.\d$"))
    cut_out(page)
    view(page, "compare")
    expect(page.locator("#agreement")).to_have_text(re.compile("agree"))
    page.get_by_role("button", name="Stop webcam").click()
    expect(page.locator("#rate")).to_be_hidden()
    assert page.locator("[data-output=mask]").first.get_attribute("download") == f"webcam.{UNET}.mask.png"
    view(page, "cutout")
    cut_out(page)
    expect(page.locator("#results")).to_be_visible()


def test_the_comparison_is_one_answer_with_a_plot_a_table_and_a_free_photo(page, served):
    page.get_by_role("link", name="Comparison").click()
    answer = page.locator("#answer")
    findings = json.loads((PAGE.parents[2] / "results" / "study" / "findings.json").read_text(encoding="utf-8"))
    arms = {arm["arm"]: arm["scores"]["miou"]["points"] for arm in findings["experiments"][0]["arms"]}
    expect(answer).to_contain_text(
        re.compile(rf"Take U-Net\. .* {arms['unet/latency'] - arms['segnet/latency']:.1f} points")
    )
    expect(answer.locator("figure svg")).to_have_count(1)
    cells = answer.locator("tbody tr td:nth-child(2)").all_inner_texts()
    assert cells == [f"{points:.1f}" for points in sorted({*arms.values()}, reverse=True)]
    expect(page.locator("#agreement")).to_have_text(re.compile("agree"))
    expect(page.get_by_role("article")).to_have_count(2)
    page.get_by_role("link", name="API").click()
    expect(page.locator("#commands")).to_contain_text(f"{served.url}/api/segment?output=cutout")


def test_the_pages_functions():
    node = shutil.which("node")
    if node is None:
        pytest.skip("NO NODE: the functions of the page's script are not tested")
    tests = Path(__file__).with_name("figures.test.js")
    ran = subprocess.run([node, "--test", str(tests)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    assert int(re.search(r"# pass (\d+)", ran.stdout)[1]) > 10


def test_a_request_elsewhere_would_be_seen(browser, served):
    pages = opened(browser, served.url)
    page = next(pages)
    page.evaluate("fetch('http://pets.example/').catch(() => null)")
    with pytest.raises(AssertionError):
        next(pages, None)
