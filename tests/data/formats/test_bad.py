"""Annotation files that nobody should trust: each is refused in one line, without opening what lies elsewhere."""

import json
from copy import copy

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from petseg.config import DataConfig
from petseg.data.formats import annotations, coco, cvat, label_studio, labelme, voc
from petseg.data.sources import open_as_given, open_dataset
from petseg.errors import PetsegError
from tests.conftest import refused
from tests.data.formats import writing
from tests.data.formats.writing import BRUSH, HEIGHT, SQUARE, WIDTH, cvat_mask, cvat_polygon, flat, percent

LINE = [[1, 1], [4, 1]]
RUN = {"size": [HEIGHT, WIDTH], "counts": [5, 3, 16]}
ENTITIES = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>\n'


def of_coco(**annotation):
    return writing.coco({"segmentation": [flat()], **annotation})


def sized(width, height):
    return {**writing.coco(), "images": [{"id": 0, "file_name": "a.png", "width": width, "height": height}]}


COCO = [
    (of_coco(category_id=9), "annotation 0: category 9 is not among the file's"),
    (of_coco(image_id=5), "an annotation is of image 5, which it does not list"),
    (of_coco(segmentation=[flat(LINE)]), "annotation 0: a polygon of 2 points; wanted at least 3"),
    (of_coco(segmentation=[[1, 2, 3]]), "coordinates that are no numbers"),
    (of_coco(segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "coordinates that are no numbers"),
    (of_coco(segmentation=[flat([[1, 1], [900, 1], [1, 3]])]), r"point \(900, 1\) lies far outside the image of 6x4"),
    (of_coco(segmentation="x"), "a region that is neither polygons nor run lengths"),
    (of_coco(segmentation={**RUN, "size": [6, 4]}), r"run lengths of size \[6, 4\], image \[4, 6\] \(height, width\)"),
    (of_coco(segmentation={**RUN, "counts": [5, 3]}), "run lengths of 8 pixels for 6x4"),
    (of_coco(segmentation={**RUN, "counts": [5, -3, 22]}), "run lengths that are no whole numbers"),
    (of_coco(segmentation={**RUN, "counts": [1 << 70]}), "run lengths that are no whole numbers"),
    (of_coco(segmentation={**RUN, "counts": "53`"}), "run lengths that are no COCO text"),
    (of_coco(segmentation={**RUN, "counts": "5é"}), "run lengths that are no COCO text"),
    (of_coco(segmentation={**RUN, "counts": "53"}), "run lengths of 8 pixels for 6x4"),
    (of_coco(segmentation=[], bbox=[0, 0, 1, 1]), "boxes alone; petseg needs regions"),
    (writing.coco(categories=("cat", "cat")), "class 'cat' is there twice"),
    (writing.coco(categories=("",)), "class .* has no name"),
    (writing.coco(categories=[f"c{n}" for n in range(255)]), "there are 256 classes; wanted 1 to 255"),
    ({**writing.coco(), "categories": [{"id": 1, "name": "cat"}] * 2}, "two categories have one id"),
    ({**writing.coco(), "categories": [{"id": "1", "name": "cat"}]}, "id is '1'; wanted a whole number"),
    ({**writing.coco(), "annotations": 5}, "has no list of annotations"),
    (writing.coco(images=("../../../a.png",)), r"image '\.\./\.\./\.\./a\.png' lies outside"),
    (writing.coco(images=("/etc/hostname",)), "image '/etc/hostname' lies outside"),
    (writing.coco(images=("a.png", "./a.png")), "a.png: annotated twice; keep one"),
    ({**writing.coco(), "images": [{"id": 0, "file_name": name} for name in "ab"]}, "two images have one id; export"),
    (writing.coco(images=("gone.png",)), "none of the annotated images is there, such as 'gone.png'"),
    (writing.coco(images=("",)), "names no image"),
    ({**writing.coco(), "images": [{"id": 0, "file_name": "a.png", "width": "6", "height": 4}]}, "image of '6' x 4;"),
    (
        {**writing.coco(), "images": [{"id": 0, "file_name": "a.png", "width": 9e9, "height": 9e9}]},
        "at most .* are read",
    ),
]
CVAT = [
    (writing.cvat(cvat_polygon("catt")), "polygon 0: class 'catt' is unknown; choose one of: cat"),
    (writing.cvat(cvat_polygon(points=LINE)), "a polygon of 2 points"),
    (writing.cvat('<polygon label="cat" points="1,1;2;3,3"/>'), "coordinates that are no numbers"),
    (writing.cvat(cvat_mask("1, 2")), "run lengths of 3 pixels for 6x4"),
    (writing.cvat(cvat_mask("24", left=1)), "a mask of 6x4 at 1, 0 in an image of 6x4"),
    (writing.cvat(cvat_mask("24", top="x")), "top is 'x'; wanted a whole number"),
    (writing.cvat(cvat_mask("2, x")), "run lengths that are no whole numbers"),
    (writing.cvat(labels=("cat", "cat")), "class 'cat' is there twice"),
    (writing.cvat(name="../../a.png"), "lies outside"),
    (
        writing.cvat().replace("<meta>", '<track id="0"></track><meta>'),
        "CVAT for video; export the task",
    ),
    (writing.cvat().replace("</annotations>", ""), "not readable as XML"),
    ("<annotations><version>1.1</version></annotations>", "no images in it"),
]
LABELME = [
    (writing.labelme({"points": LINE}), "shape 0: a polygon of 2 points"),
    (writing.labelme({"points": SQUARE, "shape_type": "rectangle"}), r"a rectangle of shape \[4, 2\]"),
    (writing.labelme({"points": SQUARE, "shape_type": "circle"}), r"a circle of shape \[4, 2\]"),
    (writing.labelme({"shape_type": "star"}), "a 'star'; petseg reads polygon, rectangle, circle and mask"),
    (writing.labelme({"shape_type": "mask", "mask": "!"}), "a mask that is no PNG"),
    (writing.labelme({"label": 5}), "a shape without a label"),
    (writing.labelme(image="../../a.png"), "lies outside"),
    (writing.labelme(image="gone.png", imageData="!"), "imageData is no base64"),
    (writing.labelme(image="gone.png"), "none of the annotated images is there"),
    ({**writing.labelme(), "shapes": 5}, "has no list of shapes"),
]


def brush(packed, image="a.png"):
    region = {"format": "rle", "rle": packed, "brushlabels": ["cat"]}
    return writing.label_studio((region, {}), image=image, width=9, height=6)


LABEL_STUDIO = [
    (
        writing.label_studio(({"points": percent(LINE), "polygonlabels": ["cat"]}, {})),
        "region 0: a polygon of 2 points",
    ),
    (brush(BRUSH[:9]), "a brush mask that ends too early"),
    (brush([0, 0, 0, 4, *BRUSH[4:]]), "a brush mask of 1 pixels, the image has 54"),
    (brush([0, 0, 1, 999]), "a brush mask that is no list of bytes"),
    (
        writing.label_studio(({"points": percent(), "polygonlabels": ["cat"]}, {"image_rotation": 90})),
        "the image was turned in Label Studio",
    ),
    (
        {"id": 1, "image": "a.png", "label": []},
        "without a list of annotations; export the project as JSON, not JSON-MIN",
    ),
    (writing.label_studio(image="/data/upload/a.mp4"), "task 7: names no image"),
]
MADE = [
    *((coco, "instances.json", *case) for case in COCO),
    *((cvat, "annotations.xml", *case) for case in CVAT),
    *((labelme, "a.json", *case) for case in LABELME),
    *((label_studio, "p.json", [content], match) for content, match in LABEL_STUDIO),
    (label_studio, "p.json", [{"id": 1}], "without a list of annotations"),
]


@pytest.mark.parametrize(("reader", "name", "content", "match"), MADE, ids=[str(case[3])[:60] for case in MADE])
def test_what_a_file_gets_wrong_is_one_line(reader, name, content, match, tmp_path):
    folder = tmp_path / "data"
    writing.write_image(folder / "a.png", *((9, 6) if "brush" in match else ()))
    writing.write_image(tmp_path / "a.png")
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    assert reader.recognise(folder)
    refused(match, reader.open_folder, folder, DataConfig())


def test_a_file_too_large_to_be_read_whole_is_refused_by_its_size(tmp_path):
    for reader, name, content in (
        (coco, "a.json", json.dumps(writing.coco())),
        (cvat, "a.xml", writing.cvat()),
        (labelme, "a.json", json.dumps(writing.labelme())),
    ):
        path = tmp_path / reader.NAME / name
        path.parent.mkdir()
        path.write_text(content)
        with path.open("r+b") as file:
            file.truncate(annotations.LARGEST_FILE + 1)  # a hole on the disk
        match = r"500\.0 MB; at most 500\.0 MB are read: export it in parts"
        refused(match, reader.open_folder, path.parent, DataConfig())


def test_xml_that_could_define_entities_is_not_parsed(tmp_path):
    (tmp_path / "annotations.xml").write_text(ENTITIES + writing.cvat().partition("\n")[2])
    refused("no labelled images that petseg knows", open_dataset, tmp_path)


@pytest.mark.parametrize("content", ['{"images": [1, 2', '{"images": [' + "[" * 100_000, '{"images": []}'], ids=len)
def test_json_that_is_damaged_or_not_whole(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    refused("not readable as JSON|has no list of categories", open_dataset, tmp_path)


@pytest.mark.parametrize("content", ['{"name": "package"}', "[1, 2]", "text", '{"images": 5}', '{"version": "1"}'])
def test_json_that_is_none_of_the_formats_is_named(content, tmp_path):
    (tmp_path / "strange.json").write_text(content)
    refused(
        r"no labelled images that petseg knows \(strange\.json is none of its formats\); wanted", open_dataset, tmp_path
    )


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("labelmap.txt", "cat:128,0::\ndog\n", "a line is not as cat:128,0,0::"),
        ("labelmap.txt", "cat:128,0::\ndog:0,128,0::\n", "a line is not as cat:128,0,0::"),
        ("labelmap.txt", "cat:128,0,0::\ncat:0,128,0::\n", "class 'cat' is there twice"),
        ("labelmap.txt", "cat:128,0,0::\ndog:128,0,0::\n", "two classes have one colour"),
        ("ImageSets/Segmentation/train.txt", "../../a\n", "lies outside"),
        ("ImageSets/Segmentation/val.txt", "a\n", "a is in two splits"),
        (
            "ImageSets/Segmentation/val.txt",
            "scan 1\nscan 2\n",
            r"val\.txt: 2 lines, none of a pair \(first: 'scan 1'\); wanted names such as 'a': correct the list, or",
        ),
        (
            "labelmap.txt",
            "cat:128,0,0::\n",
            r"24 pixels of colour #010101, which no class has \(nearest: #800000, cat\)",
        ),
    ],
)
def test_voc_lists_and_colours(name, text, match, tmp_path):
    writing.write_image(tmp_path / "JPEGImages" / "a.png")
    writing.write_image(tmp_path / "SegmentationClass" / "a.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (tmp_path / name).write_text(text)

    def opened():
        dataset = voc.open_folder(tmp_path, DataConfig())
        return dataset.read_label(dataset.samples[0])

    refused(match, opened)


VOC_PAIR = ("JPEGImages/a.png", "SegmentationClass/a.png")
TEXTS = {  # a file of text -> its content, the other files
    "labels.txt": ("cat\ndog\n", ["a.json"]),
    "labelmap.txt": ("cat:1,1,1::\ndog:0,128,0::\n", VOC_PAIR),
    "class_names.txt": ("cat\ndog\n", VOC_PAIR),
    "ImageSets/Segmentation/train.txt": ("a\n", VOC_PAIR),
    "classes.toml": ('[[classes]]\nname = "cat"\n[[classes]]\nname = "dog"\n', ["images/a.png", "masks/a.png"]),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_utf_8_or_utf_16_with_its_mark_or_refused(name, tmp_path):
    text, others = TEXTS[name]
    for other in others:
        if other == "a.json":
            writing.write_image(tmp_path / "a.png")
            writing.write_json(tmp_path / other, writing.labelme({}))
        else:
            writing.write_image(tmp_path / other)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    plain = open_as_given(tmp_path)
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes(text.encode(encoding))
        dataset = open_as_given(tmp_path)
        assert (dataset.classes, dataset.splits, dataset.skipped) == (plain.classes, plain.splits, plain.skipped)
    for content in (b"\xe9\n", text.encode("utf-16-le")):
        path.write_bytes(content)
        refused(rf"{path.name}: is not UTF-8 text; save it as UTF-8$", open_as_given, tmp_path)


def test_voc_without_a_pair(tmp_path):
    writing.write_image(tmp_path / "JPEGImages" / "a.png")
    writing.write_image(tmp_path / "SegmentationClass" / "b.png")
    refused("no SegmentationClass/NAME.png with an image", open_dataset, tmp_path)


ODD = (None, True, -1, 0, 1e300, float("nan"), "", "x", "../../x", [], {}, [[]], [None], [1, 2], {"a": 1}, 10**30)
PACKED = coco_mask.encode(np.eye(HEIGHT, WIDTH, dtype=np.uint8, order="F"))["counts"].decode()
SOUND = {
    coco: writing.coco(
        {"segmentation": [flat()]},
        {"segmentation": RUN},
        {
            "segmentation": {
                **RUN,
                "counts": PACKED,
            },
            "iscrowd": 1,
        },
    ),
    labelme: writing.labelme(
        {},
        {"shape_type": "rectangle", "points": [[1, 1], [3, 3]]},
        {"shape_type": "circle", "points": [[2, 2], [3, 2]]},
        {"shape_type": "mask", "points": [[0, 0], [1, 1]], "mask": writing.png(np.eye(2, dtype=np.uint8))},
    ),
    label_studio: [writing.label_studio(({"points": percent(), "polygonlabels": ["cat"]}, {})), brush(BRUSH, "b.png")],
}


def spoiled(tree, odd):
    """Yields copies of a tree, each with one value replaced or left out."""
    for key in (0,) if isinstance(tree, list) and tree else list(tree):  # a list's first stands for the others
        nested = spoiled(tree[key], odd) if isinstance(tree[key], list | dict) else ()
        for value in (*odd, *nested):
            changed = copy(tree)
            changed[key] = value
            yield changed
        del (changed := copy(tree))[key]
        yield changed


def read_all(reader, folder):
    dataset = reader.open_folder(folder, DataConfig())
    return [dataset.read_label(sample) for sample in dataset.samples]


@pytest.mark.parametrize("reader", SOUND, ids=lambda reader: reader.NAME)
def test_each_value_of_a_sound_file_may_be_anything(reader, tmp_path, tried):
    """It is read or refused in petseg's own words."""
    writing.write_image(tmp_path / "a.png")
    writing.write_image(tmp_path / "b.png", 9, 6)
    writing.write_json(tmp_path / "a.json", SOUND[reader])
    assert read_all(reader, tmp_path)
    refusals, cases = [], list(spoiled(SOUND[reader], ODD))
    for content in cases:
        (tmp_path / "a.json").write_text(json.dumps(content))
        try:
            if reader.recognise(tmp_path):
                read_all(reader, tmp_path)
        except PetsegError as error:
            refusals.append(str(error))
    assert 0 < len(refusals) < len(cases)
    assert max(map(len, refusals)) < 500
    tried(len(cases))
