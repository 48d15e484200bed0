"""Photos labelled by a model, as a task to correct: the labels are the model's, upright, in every format."""

import csv

import numpy as np
import onnx
import pytest
from PIL import Image

from petseg.data.images import open_sample, original
from petseg.data.sources import open_as_given
from petseg.data.synthetic import draw_pet
from petseg.predict.segmenter import Segmenter
from petseg.shipped import model_file
from tests.cli.test_commands import one_line_error, petseg, succeeds
from tests.conftest import names

KINDS = ["png", "coco", "cvat", "voc", "labelme"]


@pytest.fixture
def photos(tmp_path):
    """One that EXIF turns and one in a format that annotation programs do not open, of the same name; one damaged."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    lying = Image.Exif()
    lying[0x0112] = 6
    pet = Image.fromarray(draw_pet("beagle", 1, size=48)[0])
    pet.save(folder / "cat.jpg", exif=lying, quality=95)
    pet.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "more" / "cat.png")
    Image.new("RGB", (40, 30), "white").save(folder / "blank.gif")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_holds_the_model_s_labels_of_upright_images(kind, photos, tmp_path):
    task = tmp_path / "task"
    result = succeeds("annotate", photos, "--model", "unet_small", "--format", kind, "--out", task)
    assert result.stdout == f"{task}: 3 photos as {kind}; {task / 'order.csv'}: the least certain first\n"
    dataset = open_as_given(task)
    segmenter = Segmenter("unet_small", threads=1)
    assert [each.name for each in dataset.classes] == [each.name for each in segmenter.classes]
    sources = {"cat": "cat.jpg", "more_cat": "more/cat.png", "blank": "blank.gif"}
    found = {name: segmenter(photos / path) for name, path in sources.items()}
    assert dataset.by_id.keys() == found.keys()
    for name, result in found.items():
        read = open_sample(dataset, dataset.by_id[name])
        assert np.array_equal(read.ids, result.class_ids), name
        assert original(dataset.by_id[name].image) == original(photos / sources[name]), "which `data merge` goes by"
        assert np.abs(np.asarray(read.image, int) - np.asarray(result.photo.whole(), int)).mean() < 4
    rows = list(csv.DictReader((task / "order.csv").read_text().splitlines()))
    assert [row["image"].partition(".")[0] for row in rows] == sorted(found, key=lambda name: -found[name].entropy)
    assert float(rows[0]["entropy"]) == pytest.approx(max(each.entropy for each in found.values()), abs=1e-6)


def test_entropy_is_zero_for_certain_pixels_and_one_for_classes_that_are_equally_likely():
    result = Segmenter("unet_small", threads=1)(np.zeros((8, 8, 3), np.uint8))
    count = len(result.classes)
    for probabilities, entropy in ((np.eye(count)[0], 0), (np.full(count, 1 / count), 1)):
        maps = np.broadcast_to(probabilities.astype(np.float32)[:, None, None], (count, 4, 4))
        assert type(result)(maps, result.classes, result.photo).entropy == pytest.approx(entropy, abs=1e-6)


def test_resuming_labels_what_is_missing_and_a_damaged_photo_is_named(photos, tmp_path):
    (photos / "bad.jpg").write_bytes(b"x")
    (photos / "notes.txt").write_text("x")
    task = tmp_path / "task"
    words = ("annotate", photos, "--model", "unet_small", "--format", "labelme", "--out", task)
    first = petseg(*words)
    assert (first.returncode, "3 photos as labelme" in first.stdout) == (1, True)
    assert "bad.jpg: cannot be decoded" in first.stderr
    assert "left out: " in first.stderr
    assert {"blank.jpg", "blank.json", "cat.jpg", "cat.json", "more_cat.png"} < {*names(task)}
    kept = task / "prelabels" / "cat.classes.png"
    before = kept.stat().st_mtime_ns
    (task / "prelabels" / "blank.classes.png").unlink()
    Image.new("RGB", (40, 30), "red").save(photos / "bad.jpg")
    assert "is there already; resume it (--resume)" in one_line_error(petseg(*words))
    assert "4 photos as labelme" in succeeds(*words, "--resume").stdout
    assert kept.stat().st_mtime_ns == before
    assert len(open_as_given(task).samples) == 4


def test_a_task_that_cannot_be_written_is_one_line(photos, tmp_path):
    (tmp_path / "full").mkdir()
    for arguments, message in (
        ("--format yolo --out task", "--format 'yolo' is unknown; choose one of: coco"),
        ("--format labelme --polygons --out task", "--polygons was given with --format labelme"),
        ("--out full", "full is there already; choose another folder"),
        ("--resume --out task", "task holds no task to go on with"),
        ("--model unett --out task", "model 'unett' is unknown"),
    ):
        assert message in one_line_error(petseg("annotate", photos, *arguments.split(), cwd=tmp_path))
    assert names(tmp_path) == ["full", "photos"]


def test_a_class_that_the_format_cannot_name_is_refused_before_a_photo_is_labelled(photos, tmp_path):
    file = onnx.load_from_string(model_file("unet_small"))
    (classes,) = (entry for entry in file.metadata_props if entry.key == "classes")
    classes.value = classes.value.replace("cat", "#cat")
    onnx.save(file, tmp_path / "odd.onnx")
    words = ("annotate", photos, "--model", tmp_path / "odd.onnx", "--format", "voc", "--out", tmp_path / "task")
    assert "class '#cat' begins with # or has a blank at an end" in one_line_error(petseg(*words))
    assert not [*(tmp_path / "task").rglob("*.png")]
