"""Draws docs/cat.png: a photo, what both shipped networks see in it, and U-Net's cut-outs on a plain colour.

    python scripts/draw_cat.py

The photo is Chelsea, CC0, which scikit-image carries (`pip install scikit-image`); no network has seen it.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from skimage import data

from petseg import Segmenter

OUT = Path(__file__).parent.parent / "docs" / "cat.png"
MODELS = {"U-Net": "unet", "SegNet": "segnet"}
PLAIN = "#56B4E9"


def on_plain(cut: Image.Image) -> Image.Image:
    """Returns an RGBA picture on a plain colour, RGB."""
    plain = Image.new("RGBA", cut.size, PLAIN)
    plain.alpha_composite(cut)
    return plain.convert("RGB")


def main() -> None:
    """Writes the picture."""
    photo = data.chelsea()
    found = {title: Segmenter(name)(photo) for title, name in MODELS.items()}
    panels = {
        "photo": Image.fromarray(photo),
        **{title: segmentation.overlay() for title, segmentation in found.items()},
        "cut out": on_plain(found["U-Net"].cutout()),
        "cut out --matting": on_plain(found["U-Net"].cutout(matting=True)),
    }
    height, width, _ = photo.shape
    gap, caption = 12, 34
    sheet = Image.new("RGB", (len(panels) * (width + gap) - gap, height + caption), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=22)
    for column, (title, panel) in enumerate(panels.items()):
        left = column * (width + gap)
        sheet.paste(panel, (left, caption))
        draw.text((left + 2, 3), title, fill="black", font=font)
    sheet.save(OUT, optimize=True)
    print(OUT)


if __name__ == "__main__":
    main()
