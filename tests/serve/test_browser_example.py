"""examples/browser: in a real Chromium its masks are Python's, and its resizing is Pillow's to the bit."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from petseg.predict.photos import Photo
from petseg.predict.segmenter import Segmenter
from tests.conftest import chromium
from tests.serve.test_page import ARGUMENTS

EXAMPLE = Path(__file__).parents[2] / "examples" / "browser"
CAT = EXAMPLE.parent.parent / "petseg" / "serve" / "page" / "cat.jpg"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    path = chromium()
    if path is None:
        pytest.skip("NO BROWSER: no Chromium on the path, so the browser example is not tested")
    if not (EXAMPLE / "vendor").is_dir():
        pytest.skip("NO BROWSER EXAMPLE: examples/browser/vendor is not there; run `npm ci` in examples/browser")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(EXAMPLE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told: list[str] = []
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        page = browser.new_page()
        page.on("console", lambda message: told.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_selector("body[data-ready]", timeout=60_000)
        yield page
        browser.close()
    server.shutdown()
    server.server_close()
    assert told == []
    assert {
        url for url in asked if not url.startswith((f"http://127.0.0.1:{server.server_port}/", "blob:", "data:"))
    } == set()


def seen(page: Page, content: bytes, model: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mask and labels [H, W] and the squeezed picture [S, S, 3], as the browser has them."""
    found = page.evaluate(
        """async ([content, name]) => {
            const { load, pixels, segment, squeezed } = await import("./segment.js");
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            const bitmap = await createImageBitmap(new Blob([bytes]));
            const photo = pixels(bitmap, bitmap.width, bitmap.height);
            const model = await load(name);
            const { mask, labels } = await segment(model, photo);
            const text = (values) => btoa(values.reduce((all, value) => all + String.fromCharCode(value), ""));
            return [photo.height, photo.width, text(mask), text(labels), text(squeezed(photo, model.size)), model.size];
        }""",
        [base64.b64encode(content).decode(), model],
    )
    height, width, *arrays, side = found
    mask, labels, squeezed = (np.frombuffer(base64.b64decode(array), np.uint8) for array in arrays)
    return mask.reshape(height, width), labels.reshape(height, width), squeezed.reshape(side, side, 3)


@pytest.mark.parametrize("model", ["unet_small", "segnet_small"])
def test_the_masks_of_the_sample_are_python_s(page, model):
    mask, labels, squeezed = seen(page, CAT.read_bytes(), model)
    segmenter = Segmenter(model)
    found = segmenter(CAT)
    assert np.array_equal(squeezed, Photo(CAT).resized(segmenter.size))
    assert np.array_equal(mask, found.mask)
    assert np.array_equal(np.array([2, 1, 3])[labels], found.trimap)


@pytest.mark.parametrize(
    "size", [(1000, 777), (100, 60), (60, 100), (160, 160), (1153, 385), (385, 1153), (40, 900), (300, 440), (300, 441)]
)
def test_resizing_is_pillow_s_to_the_bit(page, size):
    """Larger, smaller, equal, narrow; with and without the boxes that come before."""
    side = Segmenter("unet_small").size
    if size[1] > max(size[0], side) and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("before version 13 Pillow took another order for what is high")
    with Image.open(CAT) as cat:
        stream = BytesIO()
        cat.resize(size, Image.Resampling.BICUBIC).save(stream, "PNG")
    _, _, squeezed = seen(page, stream.getvalue(), "unet_small")
    assert np.array_equal(squeezed, Photo(stream.getvalue()).resized(side))


def test_the_page_shows_the_sample_and_the_webcam(page):
    page.locator("#sample").click()
    found = Segmenter("unet_small")(CAT)
    share = f"U-Net: {100 * np.mean(found.mask > 0):.0f} % of the photo is pet; "
    expect(page.locator("#told")).to_have_text(
        re.compile(re.escape(share) + r"\d+ ms in this browser\."), timeout=30_000
    )
    with page.expect_download() as download:
        page.locator("#save").click()
    with Image.open(download.value.path()) as saved:
        assert np.array_equal(np.asarray(saved.convert("L")), found.mask)
    page.locator("#model").select_option("segnet_small")
    expect(page.locator("#told")).to_contain_text("SegNet: ", timeout=30_000)
    page.locator("#webcam").click()
    expect(page.locator("#told")).to_have_text(re.compile(r"SegNet: \d+\.\d pictures a second"), timeout=30_000)
    page.locator("#webcam").click()
    expect(page.locator("#webcam")).to_have_text("Webcam")
