"""Draws docs/page.png: `petseg serve` with the sample cat, as a browser shows it.

    python scripts/draw_page.py

Needs a Chromium on the path and the extra dev.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

OUT = Path(__file__).parent.parent / "docs" / "page.png"


def main() -> None:
    """Writes the picture."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    server = subprocess.Popen(
        [sys.executable, "-m", "petseg.cli", "serve", "--port", "0", "--no-open"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        address = server.stdout.readline().split()[0]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1100, "height": 800})
            page.goto(address)
            # the first photo warms the networks up, so that the times shown are usual ones
            for _ in range(3):
                page.click("#sample")
                page.locator("article .downloads a[href]").first.wait_for()
                page.wait_for_timeout(1000)
            page.locator("body").click(position={"x": 5, "y": 5})
            picture = page.screenshot(full_page=True)
            browser.close()
    finally:
        server.terminate()
        server.wait()
    # few colours beside the photo's: half the bytes, and the eye sees none of it
    seen = Image.open(BytesIO(picture)).convert("RGB")
    seen.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(OUT, optimize=True)
    print(OUT)


if __name__ == "__main__":
    main()
