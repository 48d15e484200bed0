"""Draws docs/cat.png: a photo beside the masks of two trained runs.

    python scripts/draw_cat.py runs/compare-default

The photo is Chelsea, CC0, which scikit-image carries (`pip install scikit-image`); no network has seen it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from skimage import data

from petseg.data.oxford_pets import UInt8, get_task
from petseg.evaluate import load_run, upsample
from petseg.models import TITLES, normalise, to_unit_range
from petseg.train import choose_hardware

OUT = Path(__file__).parent.parent / "docs" / "cat.png"
WEIGHT = 0.6
"""Of the mask's colour over the photo; background keeps the photo."""


def masked(photo: UInt8, run: Path) -> UInt8:
    """Returns the photo, uint8 [H, W, 3], tinted by what a run predicts."""
    hardware = choose_hardware("fp32", "cpu")
    model, config, _, _ = load_run(run, hardware)
    task = get_task(config.data.task, config.data.border)
    size = config.data.size
    small = np.asarray(Image.fromarray(photo).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0))
    with torch.inference_mode():
        logits = model.eval()(normalise(to_unit_range(torch.from_numpy(small.copy())[None])))
    labels = upsample(logits[0], photo.shape[:2]).argmax(dim=0).numpy()
    tinted = (1 - WEIGHT) * photo + WEIGHT * task.palette()[labels]
    return np.where((labels == task.classes.index("background"))[..., None], photo * 0.45 + 140, tinted).astype(
        np.uint8
    )


def main(comparison: Path) -> None:
    """Writes the picture."""
    photo = data.chelsea()
    panels = {"photo": photo} | {TITLES[name]: masked(photo, comparison / "runs" / name) for name in ("unet", "segnet")}
    height, width, _ = photo.shape
    gap, caption = 12, 34
    sheet = Image.new("RGB", (3 * width + 2 * gap, height + caption), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=22)
    for column, (title, panel) in enumerate(panels.items()):
        left = column * (width + gap)
        sheet.paste(Image.fromarray(panel), (left, caption))
        draw.text((left + 2, 3), title, fill="black", font=font)
    sheet.save(OUT, optimize=True)
    print(OUT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
