"""examples/browser: in a real Chromium its masks are Python's, and its resizing is Pillow's."""

import base64
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from petseg.predict.photos import Photo
from petseg.predict.segmenter import Segmenter
from petseg.shipped import DEFAULT
from tests.conftest import image_bytes
from tests.serve.test_page import CAT, browser, opened  # noqa: F401 - a fixture

EXAMPLE = Path(__file__).parents[2] / "examples" / "browser"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def page(browser):  # noqa: F811
    if not (EXAMPLE / "vendor").is_dir():
        pytest.skip("NO BROWSER EXAMPLE: examples/browser/vendor is not there; run `npm ci` in examples/browser")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(EXAMPLE))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield from opened(browser, f"http://127.0.0.1:{server.server_port}/")
        server.shutdown()


def seen(page, content, model):
    """Returns mask and class ids [H, W] and the resized photo [S, S, 3], as the browser has them."""
    height, width, *arrays, side = page.evaluate(
        """async ([content, name]) => {
            const { load, pixels, resized, segment } = await import("./segment.js");
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            const bitmap = await createImageBitmap(new Blob([bytes]));
            const photo = pixels(bitmap, bitmap.width, bitmap.height);
            const model = await load(name);
            const { mask, ids } = await segment(model, photo);
            const { data } = await resized(photo, model.size);
            const text = (values) => btoa(values.reduce((all, value) => all + String.fromCharCode(value), ""));
            return [photo.height, photo.width, text(mask), text(ids), text(data), model.size];
        }""",
        [base64.b64encode(content).decode(), model],
    )
    mask, ids, image = (np.frombuffer(base64.b64decode(array), np.uint8) for array in arrays)
    return mask.reshape(height, width), ids.reshape(height, width), image.reshape(side, side, 3)


@pytest.mark.parametrize("model", [DEFAULT, "unet_small", "segnet_small"])
def test_the_masks_of_the_sample_are_python_s(page, model):
    mask, ids, image = seen(page, CAT.read_bytes(), model)
    segmenter = Segmenter(model)
    result = segmenter(CAT)
    wanted = Photo(CAT).resized(segmenter.size).astype(int)
    assert np.abs(image - wanted).max() <= 2
    assert (mask == result.mask).mean() > 0.995
    assert (ids == result.class_ids).mean() > 0.995


@pytest.mark.parametrize("size", [(1000, 777), (100, 60), (60, 100), (160, 160), (385, 1153), (40, 900)])
def test_resizing_is_pillow_s(page, size):
    """Within two of 255: Pillow averages boxes first where a photo is more than three times too large."""
    with Image.open(CAT) as cat:
        content = image_bytes(cat.resize(size, Image.Resampling.BICUBIC), "PNG")
    _, _, image = seen(page, content, "unet_small")
    wanted = Photo(content).resized(Segmenter("unet_small").size).astype(int)
    assert np.abs(image - wanted).max() <= 2


def test_the_page_shows_the_sample_and_the_webcam(page):
    page.locator("#sample").click()
    segmenter = Segmenter()
    result = segmenter(CAT)
    share = f"{segmenter.card['title']}: {100 * np.mean(result.mask > 0):.0f} % of the photo is foreground; "
    expect(page.locator("#status")).to_have_text(re.compile(share + r"\d+ ms in this browser\."))
    with page.expect_download() as download:
        page.locator("#save").click()
    with Image.open(download.value.path()) as saved:
        assert (np.asarray(saved.convert("L")) == result.mask).mean() > 0.995
    page.route("**/vendor/segnet_small*", lambda route: route.fulfill(status=400))  # which the console may say
    page.locator("#model").select_option("segnet_small")
    expect(page.locator("#status")).to_contain_text("The model cannot be loaded (")
    page.unroute("**/vendor/segnet_small*")
    page.locator("#sample").click()
    expect(page.locator("#status")).to_contain_text("SegNet: ")
    page.locator("#webcam").click()
    expect(page.locator("#status")).to_have_text(re.compile(r"SegNet: \d+\.\d frames a second"))
    page.locator("#webcam").click()
    expect(page.locator("#webcam")).to_have_text("Webcam")
