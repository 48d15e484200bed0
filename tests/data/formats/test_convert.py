"""What is written reads back to the same pixels, classes and splits, by the reader of each format; datasets merged."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from petseg.data.cache import content_key, prepare
from petseg.data.dataset import IGNORE, Class, Dataset, Label, Sample
from petseg.data.formats.convert import FORMATS, NO_SPLIT, convert
from petseg.data.formats.merge import merge
from petseg.data.formats.outlines import outlines
from petseg.data.formats.shapes import Shape, painted
from petseg.data.images import open_ids, open_sample, original
from petseg.data.sources import open_as_given, open_dataset, recognise
from petseg.schema import SplitIds, write_record
from petseg.training.runs import read_metrics
from tests.cli.test_commands import one_line_error, petseg, succeeds
from tests.conftest import names, refused, tiny, train_on_cpu

WRITTEN = [*((kind, False) for kind in FORMATS), ("coco", True), ("cvat", True)]
RECOGNISED = {
    "png": "images and masks in folders",
    "coco": "COCO: instances_train.json, instances_val.json",
    "cvat": "CVAT for images 1.1: annotations.xml",
    "voc": "Pascal VOC",
    "labelme": "LabelMe: 4 JSON files",
}


def noisy(rng, values, size=(17, 23)):
    """Returns ids with single pixels, holes and regions that touch the edge."""
    coarse = rng.choice(values, (5, 6)).repeat(4, 0).repeat(4, 1)[: size[0], : size[1]]
    return np.where(rng.random(size) < 0.1, rng.choice(values, size), coarse).astype(np.uint8)


@pytest.fixture
def drawn(tmp_path):
    """Four images in two splits, with ignored pixels; a class that no label has; roles and colours of their own."""
    rng = np.random.default_rng(0)
    folder, ids, samples = tmp_path / "drawn", {}, []
    folder.mkdir()
    for name in ("a", "b/c", "d", "e"):
        image = folder / f"{name.replace('/', '-')}.png"
        Image.fromarray(rng.integers(0, 255, (17, 23, 3), np.uint8)).save(image)
        ids[name] = noisy(rng, [0, 1, 2, IGNORE])
        samples.append(Sample(name, image, image))
    classes = (
        Class("leaf", "#123456"),
        Class("background", "#BBBBBB", "background"),
        Class("rim", "#E69F00", "boundary"),
        Class("flower", "#CC79A7"),
    )
    splits = {"train": ("a", "b/c"), "val": ("d", "e")}
    return Dataset("drawn", tuple(samples), classes, splits, lambda sample: Label(ids[sample.id]), "drawn")


@pytest.mark.parametrize(("kind", "polygons"), WRITTEN)
def test_what_was_written_reads_back_to_the_same(kind, polygons, drawn, tmp_path):
    out = tmp_path / "out"
    assert convert(drawn, out, kind, polygons=polygons) == (4, {})
    assert recognise(out)[1] == RECOGNISED[kind]
    back = open_as_given(out)
    assert back.classes == drawn.classes
    assert back.splits == {"train": ("a", "b_c"), "val": ("d", "e")}
    for sample in drawn.samples:
        read = open_sample(back, back.by_id[sample.id.replace("/", "_")])
        assert np.array_equal(read.ids, drawn.read_label(sample).ids)
        assert np.array_equal(read.image, Image.open(sample.image))


def test_classes_without_a_background_and_no_splits(drawn, tmp_path):
    """What nothing covers is then ignored, as it was."""
    classes = tuple(replace(each, name=each.name.replace("background", "soil")) for each in drawn.classes)
    dataset = replace(drawn, classes=classes, splits={})
    for kind, polygons in WRITTEN:
        out = tmp_path / f"{kind}{polygons}"
        convert(dataset, out, kind, polygons=polygons)
        back = open_as_given(out)
        assert (back.classes, back.splits) == (classes, {})
        for sample in dataset.samples:
            read = open_ids(back, back.by_id[sample.id.replace("/", "_")])
            assert np.array_equal(read, dataset.read_label(sample).ids), kind


@pytest.mark.parametrize("kind", FORMATS)
def test_names_with_blanks_keep_their_splits(kind, drawn, tmp_path):
    ids = {each.id: f"my {each.id} 1" for each in drawn.samples if "/" not in each.id} | {"b/c": "my"}
    dataset = replace(
        drawn,
        samples=tuple(replace(each, id=ids[each.id]) for each in drawn.samples),
        splits={part: tuple(ids[each] for each in names) for part, names in drawn.splits.items()},
        read_label=lambda sample: drawn.read_label(drawn.samples[0]),
    )
    convert(dataset, tmp_path / "out", kind)
    assert open_as_given(tmp_path / "out").splits == {"train": ("my", "my a 1"), "val": ("my d 1", "my e 1")}


def named_as(drawn, name):
    return replace(drawn, classes=(replace(drawn.classes[0], name=name), *drawn.classes[1:]))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["road: wet", "a:1,2,3::", "roof #1", 'quoted "roof" <&>', "übung 😀"])
def test_class_names_of_any_letters_read_back(kind, name, drawn, tmp_path):
    dataset = named_as(drawn, name)
    convert(dataset, tmp_path / "out", kind)
    assert open_as_given(tmp_path / "out").classes == dataset.classes
    (tmp_path / "out" / "classes.toml").unlink()
    assert kind == "png" or name in [each.name for each in open_as_given(tmp_path / "out").classes]


def test_class_names_that_could_not_be_read_back_are_refused(drawn, tmp_path):
    for kind in FORMATS:
        for name in ("two\nlines", "bell\a", "\x7f", "half \ud83d"):
            refused(
                "^class .* has a control character; rename it", convert, named_as(drawn, name), tmp_path / "x", kind
            )
    for name in ("#roof", " roof", "roof\u3000"):
        line = "^class .* begins with # or has a blank at an end, which labelmap.txt cannot hold; rename it"
        refused(line, convert, named_as(drawn, name), tmp_path / "x", "voc")
        convert(named_as(drawn, name), tmp_path / name, "png")
        assert open_as_given(tmp_path / name).classes[0].name == name
    assert not (tmp_path / "x").exists()


def test_outlines_give_any_label_back():
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = noisy(rng, [0, 1, 2, 3], tuple(rng.integers(3, 20, 2)))
        shapes = [Shape(class_id, (polygon,)) for class_id, polygon in outlines(ids, 1)]
        assert np.array_equal(painted(ids.shape, shapes, 1), ids)


def test_an_image_that_exif_turns_and_one_that_is_damaged(drawn, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    samples = [replace(sample, image=tmp_path / f"{place}.jpg") for place, sample in enumerate(drawn.samples)]
    for sample in samples:
        Image.fromarray(np.full((17, 23, 3), 90, np.uint8)).save(sample.image, exif=exif)
    samples[3].image.write_bytes(b"x")
    dataset = replace(drawn, samples=tuple(samples), splits={"train": ("a", "e"), "val": ("d",)})
    written, left_out = convert(dataset, tmp_path / "out", "png")
    assert (written, sorted(left_out)) == (2, ["b/c", "e"])
    assert left_out["b/c"] == NO_SPLIT
    assert "cannot be decoded" in left_out["e"]
    assert names(tmp_path / "out" / "images") == ["a.png", "d.png"]
    with Image.open(tmp_path / "out" / "images" / "a.png") as written_upright:
        assert written_upright.getexif().get(0x0112) is None
    assert original(tmp_path / "out" / "images" / "a.png") == original(samples[0].image), "which merge goes by"
    back = open_as_given(tmp_path / "out")
    assert np.array_equal(open_ids(back, back.by_id["a"]), drawn.read_label(drawn.samples[0]).ids)


def test_the_pets_as_indexed_masks_train_to_the_same_losses(pets_folder, tmp_path):
    config = tiny("epochs=1")
    given = open_dataset(pets_folder, config.data)
    convert(given, tmp_path / "png", "png")
    back = open_dataset(tmp_path / "png", config.data)
    losses = []
    for name, dataset in (("given", given), ("back", back)):
        train_on_cpu(config, prepare(dataset, 32), tmp_path / name)
        losses.append([(row.train_loss, row.val_loss) for row in read_metrics(tmp_path / name)])
    assert losses[0] == losses[1]


def test_merging_takes_the_later_label_keeps_splits_and_maps_classes_by_name(drawn, tmp_path):
    convert(drawn, tmp_path / "first", "png")
    corrected = {"d": np.full((17, 23), 3), "z": np.full((17, 23), 2), "a": 3 - np.eye(17, 23)}
    other = Image.fromarray(np.zeros((17, 23, 3), np.uint8))
    other.save(tmp_path / "a.png")
    other.point(lambda _: 9).save(tmp_path / "z.png")
    samples = (
        Sample("a", tmp_path / "a.png", tmp_path),  # another image of that name
        Sample("d", drawn.by_id["d"].image, tmp_path),
        Sample("z", tmp_path / "z.png", tmp_path),
    )
    second = replace(
        drawn,
        name="second",
        classes=drawn.classes[::-1],
        splits={},
        samples=samples,
        read_label=lambda sample: Label(np.uint8(corrected[sample.id])),
    )
    merged = merge([open_as_given(tmp_path / "first"), second])
    assert merged.relabelled == ("d",)
    assert merged.renamed == {"a": "a-2"}
    assert merged.dataset.splits == {"train": ("a", "a-2", "b_c", "z"), "val": ("d", "e")}
    convert(merged.dataset, tmp_path / "bigger", "png")
    back = open_as_given(tmp_path / "bigger")
    assert back.classes == drawn.classes
    assert [np.unique(open_ids(back, back.by_id[name])).tolist() for name in ("d", "z", "a-2")] == [[0], [1], [0, 1]]
    assert np.array_equal(open_ids(back, back.by_id["e"]), drawn.read_label(drawn.by_id["e"]).ids)
    lacking = replace(second, classes=second.classes[:3])
    refused("drawn has class 'leaf', which second has not", merge, [drawn, lacking])
    refused("drawn has class 'leaf', which second has not; name", merge, [lacking, drawn])


def test_convert_and_merge_from_the_command_line(drawn, tmp_path):
    convert(drawn, tmp_path / "my", "png")
    result = succeeds("data", "convert", tmp_path / "my", "--format", "coco", "--polygons", "--out", tmp_path / "there")
    assert result.stdout == f"{tmp_path / 'there'}: 4 images as coco\n"
    result = succeeds("data", "merge", tmp_path / "my", tmp_path / "there", "--out", tmp_path / "both")
    assert "4 images; splits: train 2, val 2" in result.stdout
    assert "4 images with the later label: a, b_c, d, e" in result.stdout
    for arguments, message in (
        (
            ["convert", tmp_path / "my", "--format", "cocoo", "--out", "x"],
            "--format 'cocoo' is unknown; choose one of: coco",
        ),
        (["convert", tmp_path / "my", "--polygons", "--out", "x"], "--polygons was given with --format png"),
        (["convert", tmp_path / "my", "--out", tmp_path / "both"], "is there already; choose another folder (--out)"),
        (["merge", tmp_path / "my", "--out", "x"], "alone was given; name at least two folders"),
    ):
        assert message in one_line_error(petseg("data", *arguments, cwd=tmp_path))
    assert names(tmp_path) == ["both", "drawn", "my", "there"]
    (tmp_path / "my" / "images" / "a.png").write_bytes(b"x")
    result = petseg("data", "convert", tmp_path / "my", "--out", tmp_path / "less")
    assert result.returncode == 1
    assert "petseg: left out: a: image cannot be decoded" in result.stderr


def test_merging_keeps_a_runs_splits_and_new_images_train(drawn, tmp_path):
    """Else the images that scored the first run train the second one, and what `--init` starts from has seen them."""
    rng, label = np.random.default_rng(0), drawn.read_label(drawn.samples[0])
    for number in range(9):
        Image.fromarray(rng.integers(0, 255, (17, 23, 3), np.uint8)).save(tmp_path / f"{number}.png")
    for name, numbers in (("my", range(6)), ("new", range(5, 9))):
        samples = [Sample(f"s{place}", tmp_path / f"{n}.png", tmp_path) for place, n in enumerate(numbers)]
        whole = replace(drawn, samples=tuple(samples), splits={}, read_label=lambda _: label)
        convert(whole, tmp_path / name, "png")
    recorded = open_dataset(tmp_path / "my").splits
    write_record(tmp_path / "run" / "splits.json", SplitIds(**recorded))
    result = succeeds("data", "merge", "my", "new", "--splits", "run", "--out", "bigger", cwd=tmp_path)
    assert "warning" not in result.stderr
    kept = open_dataset(tmp_path / "bigger").splits
    assert (kept["val"], kept["test"]) == (recorded["val"], recorded["test"])
    assert {*kept["train"]} == {*recorded["train"], "s1-2", "s2-2", "s3-2"}  # s0 is s5 of the first folder
    succeeds("data", "merge", "new", "my", "--splits", "run", "--out", "turned", cwd=tmp_path)
    sizes = {part: len(ids) for part, ids in open_dataset(tmp_path / "turned").splits.items()}
    assert sizes == {"train": 7, "val": 1, "test": 1}
    succeeds("data", "convert", "my", "--splits", "run", "--format", "voc", "--out", "voc", cwd=tmp_path)
    assert open_as_given(tmp_path / "voc").splits == recorded
    result = succeeds("data", "merge", "my", "new", "--out", "unsplit", cwd=tmp_path)
    assert "petseg: warning: unsplit: without splits, so training draws them anew" in result.stderr
    refusal = petseg("data", "merge", "my", "new", "--splits", "my", "--out", "x", cwd=tmp_path)
    assert "--splits my: no splits.json in it; name the folder of a run or a comparison" in one_line_error(refusal)


@pytest.mark.parametrize(
    ("module", "options"), [("pycocotools", "--format coco"), ("shapely", "--format cvat --polygons")]
)
def test_the_light_install_is_told_the_extra_and_writes_nothing(module, options, drawn, tmp_path, monkeypatch):
    convert(drawn, tmp_path / "my", "png")
    monkeypatch.setitem(sys.modules, module, None)
    result = petseg("data", "convert", "my", *options.split(), "--out", "there", cwd=tmp_path)
    assert (result.returncode, f"needs {module}; pip install 'petseg[formats]'" in result.stderr) == (2, True)
    assert names(tmp_path) == ["drawn", "my"]


def test_a_changed_annotation_file_is_another_dataset_for_the_cache(drawn, tmp_path):
    convert(replace(drawn, splits={}), tmp_path / "coco", "coco")
    path = tmp_path / "coco" / "annotations" / "instances_default.json"
    before = content_key(open_as_given(tmp_path / "coco"))
    assert content_key(open_as_given(tmp_path / "coco")) == before
    path.write_text(path.read_text().replace('"category_id": 3', '"category_id": 4'))
    assert content_key(open_as_given(tmp_path / "coco")) != before
