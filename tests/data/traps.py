"""Synthetic pets with one of each trap of the real dataset: odd formats, damaged files, trimaps that do not fit."""

import numpy as np
from PIL import Image

from petseg.data.dataset import SUSPECT
from petseg.data.oxford_pets import BORDER, PET
from petseg.data.synthetic import draw_pet, make_pets, write_list
from tests.conftest import image_bytes

TRAPS = {
    "._Abyssinian_1.png": "hidden file beside the trimaps",
    "._Abyssinian_1.jpg": "hidden file among the images",
    **dict.fromkeys(("Abyssinian_1.mat", "Abyssinian_2.mat", "beagle_1.mat"), "mat file among the images"),
    "Abyssinian_901": "RGB PNG named .jpg",
    "Abyssinian_902": "RGBA PNG named .jpg",
    "Abyssinian_903": "GIF named .jpg",
    "Abyssinian_904": "palette PNG with transparency named .jpg",
    "Abyssinian_905": "CMYK JPEG",
    "Abyssinian_906": "16-bit grey PNG named .jpg",
    "beagle_901": "truncated JPEG",
    "beagle_902": "EXIF orientation",
    "beagle_903": "empty image file",
    "beagle_904": "trimap without pet",
    "beagle_905": "trimap of half the size",
    "beagle_906": "trimap of another aspect",
    "beagle_907": "trimap of other values",
    "beagle_908": "image without trimap",
    "beagle_909": "trimap without image",
    "beagle_910": "listed without image",
    **dict.fromkeys(("Abyssinian_911", "beagle_911"), "image in no list"),
}
"""Each trap that `make_trapped_pets` sets: file name (skipped files) or image name -> kind.

All images are in list.txt and trainval.txt but for the two in no list and beagle_909, whose trimap alone exists.
beagle_902 is stored lying on its side and its trimap with it: the two fit as stored, not after turning the image alone.
"""

NOTES = {  # kind of trap that can be used -> what is noted
    "RGB PNG named .jpg": ("PNG named .jpg",),
    "RGBA PNG named .jpg": ("PNG named .jpg", "mode RGBA, converted to RGB"),
    "GIF named .jpg": ("GIF named .jpg", "mode P, converted to RGB"),
    "palette PNG with transparency named .jpg": ("PNG named .jpg", "mode P, converted to RGB"),
    "CMYK JPEG": ("mode CMYK, converted to RGB",),
    "16-bit grey PNG named .jpg": ("PNG named .jpg", "16-bit, scaled to 8"),
    "EXIF orientation": ("EXIF rotation, not applied (the label has none)",),
    "trimap without pet": (SUSPECT,),
    "trimap of half the size": ("label of another size, resized (nearest)",),
    "image in no list": (),
}

REASONS = {  # kind of trap that cannot be used -> why
    "truncated JPEG": r"^NAME: image cannot be decoded \(image file is truncated",
    "empty image file": r"^NAME: image cannot be decoded \(is empty\)$",
    "trimap of another aspect": r"^NAME: label is \d+x\d+, image \d+x\d+; different shapes cannot be matched$",
    "trimap of other values": r"^NAME\.png holds values \{0, 4\}; .* 3 border: was it remapped already\?$",
}
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(4072)
MAT = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


def make_trapped_pets(folder, *, per_breed=2, breeds=2, size=160):
    make_pets(folder, per_breed=per_breed, breeds=breeds, size=size)
    images, annotations = folder / "images", folder / "annotations"
    listed = []
    for name, kind in TRAPS.items():
        if kind.startswith(("hidden", "mat")):
            place = images if name.endswith((".jpg", ".mat")) else annotations / "trimaps"
            (place / name).write_bytes(APPLE_DOUBLE if kind.startswith("hidden") else MAT)
            continue
        if kind not in ("image in no list", "trimap without image"):
            listed.append(name)
        breed, _, number = name.rpartition("_")
        pixels, trimap = draw_pet(breed, int(number), size=size)
        if kind not in ("trimap without image", "listed without image"):
            (images / f"{name}.jpg").write_bytes(IMAGES.get(kind, _jpeg)(Image.fromarray(pixels)))
        if kind not in ("image without trimap", "listed without image"):
            trimap = np.ascontiguousarray(TRIMAPS[kind](trimap)) if kind in TRIMAPS else trimap
            Image.fromarray(trimap.astype(np.uint8)).save(annotations / "trimaps" / f"{name}.png")
    for key in ("list", "trainval"):
        path = annotations / f"{key}.txt"
        rows = [row.split()[0] for row in path.read_text().splitlines() if not row.startswith("#")]
        write_list(path, rows + listed)
    return folder


def _jpeg(image, **options):
    return image_bytes(image, "JPEG", **options)


def _fading(image):
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def _lying(image):
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by 90 degrees clockwise
    return _jpeg(image.transpose(Image.Transpose.ROTATE_90), exif=exif)


def _wide(image):
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


IMAGES = {
    "empty image file": lambda image: b"",
    "RGB PNG named .jpg": lambda image: image_bytes(image, "PNG"),
    "RGBA PNG named .jpg": lambda image: image_bytes(_fading(image), "PNG"),
    "GIF named .jpg": lambda image: image_bytes(image, "GIF"),
    "palette PNG with transparency named .jpg": lambda image: image_bytes(image.quantize(64), "PNG", transparency=0),
    "CMYK JPEG": lambda image: _jpeg(image.convert("CMYK")),
    "16-bit grey PNG named .jpg": lambda image: image_bytes(_wide(image), "PNG"),
    "truncated JPEG": lambda image: _jpeg(image)[: len(_jpeg(image)) // 2],
    "EXIF orientation": _lying,
}
TRIMAPS = {  # what each trap does to an encoded image or a trimap that is sound
    "EXIF orientation": np.rot90,
    "trimap without pet": lambda trimap: np.where(trimap == PET, BORDER, trimap),
    "trimap of half the size": lambda trimap: trimap[1 : len(trimap) // 2 * 2 : 2, 1 : trimap.shape[1] // 2 * 2 : 2],
    "trimap of another aspect": lambda trimap: trimap[:, : trimap.shape[1] // 3],
    "trimap of other values": lambda trimap: np.where(trimap == PET, 4, 0),
}
