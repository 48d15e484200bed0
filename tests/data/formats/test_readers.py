"""What each reader makes of files as other programs write them."""

import base64

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from petseg.data.formats import voc
from petseg.data.formats.shapes import Shape, coco_counts, ellipse, painted, polygon, runs, runs_of
from petseg.data.images import open_ids, open_sample
from petseg.data.sources import open_as_given, recognise
from tests.data.formats import writing
from tests.data.formats.writing import BRUSH, BRUSHED, HEIGHT, WIDTH, flat, percent, write_image, write_json

BOTTOM = [[0, 3], [6, 3], [6, 4], [0, 4]]


def grid(text):
    return np.array([[255 if each == "x" else int(each) for each in row] for row in text.split()], np.uint8)


def ids_of(folder, name="a"):
    dataset = open_as_given(folder)
    return open_ids(dataset, dataset.by_id[name])


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    return tmp_path


def test_coco_polygons_run_lengths_crowd_and_what_lies_on_top(folder):
    """The smaller region is seen, in whatever order; a crowd is ignored; run lengths go column by column."""
    small = {"size": [HEIGHT, WIDTH], "counts": [5, 1, 18]}  # row 1 of column 1
    packed = coco_mask.encode(np.asfortranarray(grid("000001 000001 000000 000000")))
    crowd = {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()}
    annotations = (
        {"segmentation": small, "category_id": 2},
        {"segmentation": [flat(), flat(BOTTOM)]},
        {"segmentation": crowd, "iscrowd": 1},
        {"segmentation": [], "bbox": [0, 0, 1, 1]},
    )
    write_json(folder / "annotations" / "instances_default.json", writing.coco(*annotations))
    dataset = open_as_given(folder)
    assert recognise(folder)[1] == "COCO: instances_default.json"
    assert [each.name for each in dataset.classes] == ["background", "cat", "dog"]
    assert dataset.splits == {}
    opened = open_sample(dataset, dataset.samples[0])
    assert np.array_equal(opened.ids, grid("00000x 02110x 011100 111111"))
    assert "annotation without a region skipped" in opened.notes


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_{}2017.json", "{}2017/a.png"),
        ("{}/_annotations.coco.json", "{}/a.png"),
        ("instances_{}.json", "images/{}/a.png"),
    ],
)
def test_coco_splits_are_those_of_the_files_and_images_lie_where_exports_put_them(annotations, images, tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / images.format(split))
        content = writing.coco({"segmentation": [flat()]}, images=["a.png", "gone.png"])
        write_json(tmp_path / annotations.format(split), content)
        if "annotations/" in annotations:
            write_json(tmp_path / "annotations" / f"captions_{split}2017.json", writing.coco())
    dataset = open_as_given(tmp_path)
    assert dataset.splits == {"train": ("train/a.png",), "val": ("val/a.png",)}
    assert dataset.by_id["val/a.png"].image == tmp_path / images.format("val")
    assert dataset.skipped == {"annotated, but no image": ("gone.png", "gone.png")}


def test_voc_by_its_colours_those_of_a_labelmap_and_its_lists(tmp_path):
    for name in ("a", "b", "c"):
        write_image(tmp_path / "JPEGImages" / f"{name}.png")
    masks = tmp_path / "SegmentationClass"
    masks.mkdir()
    indexed = Image.fromarray(grid("000000 088800 088xx0 000000"))
    indexed.putpalette(bytes(8 * 3) + bytes([64, 0, 0]) + bytes(246 * 3) + bytes([224, 224, 192]))
    indexed.save(masks / "a.png")
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), (64, 0, 128), np.uint8)).save(masks / "b.png")
    Image.fromarray(np.full((HEIGHT, WIDTH), 20, np.uint8)).save(masks / "c.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c\ngone\n")
    (lists / "trainval.txt").write_text("a\nb\nc\n")
    write_image(tmp_path / "JPEGImages" / "d.png")
    write_image(tmp_path / "JPEGImages" / "e.png")
    write_image(masks / "e.png")
    dataset = open_as_given(tmp_path)
    assert (len(dataset.classes), dataset.classes[8].name, dataset.classes[8].colour) == (21, "cat", "#400000")
    assert dataset.splits == {"train": ("a", "b"), "val": ("c",)}
    assert dataset.skipped == {
        "image without mask": ("d",),
        "listed, but no mask or image": ("gone",),
        "pair in no split": ("e",),
    }
    (masks / "e.png").unlink()
    assert np.array_equal(ids_of(tmp_path), grid("000000 088800 088xx0 000000"))
    assert [np.unique(ids_of(tmp_path, name)).tolist() for name in ("b", "c")] == [[dataset_id("dog")], [20]]
    (lists / "val.txt").unlink()
    holds = {"a": {0, dataset_id("cat")}, "b": {dataset_id("dog")}, "c": {20}}
    assert open_as_given(tmp_path).holds == holds, "splits are drawn by them"
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nleaf:64,0,0::\nbackground:0,0,0::\n")
    assert np.array_equal(ids_of(tmp_path), grid("111111 100011 100xx1 111111"))


def dataset_id(name):
    return voc.CLASSES.index(name)


def test_compressed_run_lengths_are_those_of_the_official_code():
    rng = np.random.default_rng(0)
    for _ in range(300):
        inside = rng.random(rng.integers(1, 40, 2)) < rng.random()
        text = coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))["counts"].decode()
        counts = coco_counts(text, "x")
        assert np.array_equal(counts, runs_of(inside, by_column=True))
        read = runs(counts, (0, 0, *inside.shape), "x", by_column=True)
        assert np.array_equal(read.pixels(inside.shape)[1], inside)
        assert read.area == inside.sum()


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_a_polygon_is_drawn_in_its_part_of_the_image_as_the_official_code_draws_it_in_the_whole():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = (int(side) for side in rng.integers(3, 40, 2))
        points = rng.integers(-6, 90, (rng.integers(3, 8), 2)) / 2 % [1.5 * width, 1.5 * height] - 2
        official = coco_mask.decode(coco_mask.frPyObjects([points.ravel().tolist()], height, width))[..., 0]
        own = painted((height, width), [Shape(1, (polygon(points, (height, width), "x"),))], 0)
        assert np.array_equal(own, official)


def test_a_circle_has_the_area_of_one():
    shape = Shape(1, (ellipse([32, 32], [20, 20], (64, 64), "x"),))
    assert painted((64, 64), [shape], 0).sum() == pytest.approx(np.pi * 20**2, rel=0.01)


def test_cvat_polygons_and_masks_in_z_order_and_subsets(folder):
    elements = (
        writing.cvat_mask("0, 1, 1", label="cat", left=1, top=1, width=2, height=1),
        writing.cvat_polygon("dog", z_order=-1),
        writing.cvat_polygon("ignore", BOTTOM),
        '<box label="cat" xtl="0" ytl="0" xbr="1" ybr="1"/>',
    )
    (folder / "annotations.xml").write_text(writing.cvat(*elements, labels=("dog", "cat", "ignore"), subset="Val"))
    dataset = open_as_given(folder)
    assert [(each.name, each.colour) for each in dataset.classes[1:]] == [("dog", "#fa3253"), ("cat", "#fa3253")]
    assert dataset.splits == {"val": ("a",)}
    opened = open_sample(dataset, dataset.samples[0])
    assert np.array_equal(opened.ids, grid("000000 021100 011100 xxxxxx"))
    assert "box skipped: only polygon and mask are regions" in opened.notes


def test_labelme_shapes_in_the_file_s_order_names_of_a_list_and_an_image_inside_the_file(tmp_path):
    shapes = (
        {},
        {"label": "dog", "shape_type": "rectangle", "points": [[3, 3], [2, 2]]},
        {"label": "dog", "shape_type": "mask", "points": [[4, 0], [5, 1]], "mask": writing.png(grid("10 11") * 255)},
        {"label": "__ignore__", "shape_type": "circle", "points": [[0.5, 3.5], [0.5, 3]]},
        {"label": "dog", "shape_type": "line", "points": [[0, 0], [5, 3]]},
    )
    image = write_image(tmp_path / "elsewhere" / "a.png")
    data = base64.b64encode(image.read_bytes()).decode()
    own = tmp_path / "own"
    write_json(own / "train" / "a.json", writing.labelme(*shapes, image="gone.png", imageData=data))
    write_image(own / "pictures" / "b.png")
    write_json(own / "test" / "b.json", writing.labelme({"label": "cat"}, image="..\\pictures\\b.png"))
    (own / "labels.txt").write_text("__ignore__\n_background_\ndog\ncat\n")
    dataset = open_as_given(own)
    assert recognise(own)[1] == "LabelMe: 2 JSON files"
    assert [each.name for each in dataset.classes] == ["background", "dog", "cat"]
    assert dataset.splits == {"train": ("a",), "test": ("b",)}
    opened = open_sample(dataset, dataset.by_id["a"])
    assert np.array_equal(opened.ids, grid("000010 022211 021200 x00000"))
    assert opened.image.tobytes() == Image.open(image).tobytes()
    assert "line skipped: it has no area" in opened.notes
    assert dataset.by_id["b"].image == own / "pictures" / "b.png"


def test_labelme_at_any_depth_beside_images_that_nobody_annotated(tmp_path):
    own = tmp_path / "test"  # its own name tells no split
    for name in ("train/x/a", "val/b", "y/z/c"):
        write_image(own / f"{name}.png")
        write_json(own / f"{name}.json", writing.labelme({}, image=f"{name[-1]}.png"))
    for name in ("train/x/new", "y/z/empty", "elsewhere/photo", "val/.hidden"):
        write_image(own / f"{name}.png")
    (own / "y" / "z" / "empty.json").write_text("")
    write_json(own / "val" / ".checkpoints" / "b.json", writing.labelme({}, image="../b.png"))
    dataset = open_as_given(own / "train" / "..")
    assert recognise(own)[1] == "LabelMe: 3 JSON files"
    assert dataset.splits == {"train": ("x/a", "y/z/c"), "val": ("b",)}
    assert dataset.skipped == {"image without annotation": ("train/x/new.png", "y/z/empty.png")}
    assert dataset.unlabelled == 2


def test_labelme_files_far_below_images_and_masks_are_what_these_were_made_of(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    write_image(tmp_path / "masks" / "a.png")
    write_image(tmp_path / "drawn" / "by_me" / "a.png")
    write_json(tmp_path / "drawn" / "by_me" / "a.json", writing.labelme({}))
    assert recognise(tmp_path)[1] == "images and masks in folders"
    assert recognise(tmp_path / "drawn")[1] == "LabelMe: 1 JSON files"


def test_label_studio_polygons_in_percent_brushes_and_the_image_of_an_upload(folder):
    regions = (
        ({"points": percent(BOTTOM), "labels": ["dog"]}, {}),
        ({"points": percent(), "polygonlabels": ["cat"]}, {}),
        ({"x": 0, "y": 0, "rectanglelabels": ["cat"]}, {}),
        ({"points": percent()}, {}),  # of a tool apart from its class: it comes again with the class
    )
    old = {"was_cancelled": True, "result": []}
    task = writing.label_studio(*regions)
    task["annotations"].append(old)
    write_image(folder / "images" / "b c.png", 9, 6)
    brushed = ({"format": "rle", "rle": BRUSH, "brushlabels": ["dog"]}, {})
    local = writing.label_studio(brushed, image="/data/local-files/?d=set/b%20c.png", width=9, height=6)
    untouched = {**writing.label_studio(), "annotations": []}
    cancelled = {**writing.label_studio(image=""), "annotations": [old]}
    write_json(folder / "project-1.json", [task, local, untouched, cancelled])
    dataset = open_as_given(folder)
    assert [each.name for each in dataset.classes] == ["background", "cat", "dog"]
    assert np.array_equal(ids_of(folder), grid("000000 011100 011100 222222"))
    assert np.array_equal(ids_of(folder, "b c"), BRUSHED // 255 * 2)
    assert dataset.skipped == {"image without annotation": ("0a1b2c3d-a.png", "task 7")}
