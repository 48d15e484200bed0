"""Annotation files as other programs write them, of images of 6 x 4 pixels, for tests to spoil."""

import base64
import json
from io import BytesIO

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 6, 4
SQUARE = [[1, 1], [4, 1], [4, 3], [1, 3]]
"""Columns 1 to 3 of rows 1 and 2."""

BRUSH = [
    0,
    0,
    0,
    216,
    57,
    27,
    254,
    43,
    0,
    194,
    127,
    247,
    192,
    48,
    159,
    253,
    240,
    12,
    39,
    255,
    132,
    192,
    35,
    255,
    198,
    224,
    0,
]
"""`encode_rle` of label-studio-sdk 2.1.2 on `BRUSHED`, each pixel four times."""

BRUSHED = np.zeros((6, 9), np.uint8)
BRUSHED[1:4, 2:7] = BRUSHED[4, 3] = 255


def write_image(path, width=WIDTH, height=HEIGHT):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), len(path.stem), np.uint8)).save(path)
    return path


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def coco(*annotations, categories=("cat", "dog"), images=("a.png",)):
    numbered = [
        {"id": place, "image_id": 0, "category_id": 1, "iscrowd": 0, **annotation}
        for place, annotation in enumerate(annotations)
    ]
    sides = {"width": WIDTH, "height": HEIGHT}
    return {
        "images": [{"id": place, "file_name": name, **sides} for place, name in enumerate(images)],
        "annotations": numbered,
        "categories": [{"id": place, "name": name} for place, name in enumerate(categories, start=1)],
    }


def flat(points=SQUARE):
    return [coordinate for point in points for coordinate in point]


def cvat(*elements, labels=("cat", "dog"), name="a.png", subset=""):
    named = "".join(f"<label><name>{label}</name><color>#fa3253</color></label>" for label in labels)
    image = (
        f'<image id="0" name="{name}" subset="{subset}" width="{WIDTH}" height="{HEIGHT}">{"".join(elements)}</image>'
    )
    meta = f"<version>1.1</version><meta><task><labels>{named}</labels></task></meta>"
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n{meta}{image}</annotations>'


def cvat_polygon(label="cat", points=SQUARE, z_order=0):
    text = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return f'<polygon label="{label}" points="{text}" z_order="{z_order}"></polygon>'


def cvat_mask(rle, label="dog", **box):
    sides = {"left": 0, "top": 0, "width": WIDTH, "height": HEIGHT, **box}
    return f'<mask label="{label}" rle="{rle}" {" ".join(f"{k}={chr(34)}{v}{chr(34)}" for k, v in sides.items())}/>'


def labelme(*shapes, image="a.png", **more):
    sides = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    shown = [{"label": "cat", "points": SQUARE, "shape_type": "polygon", **shape} for shape in shapes]
    return {"version": "5.0.1", "flags": {}, "shapes": shown, "imagePath": image, "imageData": None, **sides, **more}


def png(array):
    stream = BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def label_studio(*regions, image="/data/upload/1/0a1b2c3d-a.png", width=WIDTH, height=HEIGHT):
    sides = {"original_width": width, "original_height": height, "image_rotation": 0}
    result = [{**sides, "type": next(reversed(value)), "value": value, **more} for value, more in regions]
    return {"id": 7, "annotations": [{"was_cancelled": False, "result": result}], "data": {"image": image}}


def percent(points=SQUARE):
    return [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in points]
