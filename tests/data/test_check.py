"""`petseg data check` finds every trap and says what happens to it; what would spoil training stops it."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg.data.cache import prepare
from petseg.data.check import LEVELS, RULES, check_dataset, refuse_spoiled
from petseg.data.dataset import SUSPECT, Dataset, Label, Sample, classes_from
from petseg.data.sources import open_dataset
from petseg.training.losses import median_frequency_weights
from tests.conftest import image_bytes, refused
from tests.data.traps import NOTES, TRAPS

MANY = "left out, and 5 images in all are too many"  # and one lacks its mask, as one mask its image
ROWS = {  # kind of trap -> (the row that it is in, or how that row's title ends; its level; what happens)
    "hidden file beside the trimaps": [("hidden file among the trimaps", "note", "skipped")],
    "hidden file among the images": [("hidden file among the images", "note", "skipped")],
    "mat file among the images": [("not a .jpg among the images", "note", "skipped")],
    **{kind: [(note, "note", "kept") for note in notes] for kind, notes in NOTES.items()},
    "trimap without pet": [(SUSPECT, "note", "kept: all background and border, as in everybody's figures")],
    "trimap of half the size": [("label of another size, resized (nearest)", "warning", "kept")],
    "truncated JPEG": [("image cannot be decoded", "error", MANY)],
    "empty image file": [("image cannot be decoded", "error", MANY)],
    "trimap of another aspect": [("image and mask of different shapes", "error", MANY)],
    "trimap of other values": [("was it remapped already?", "error", MANY)],
    **{kind: [(kind, "error", MANY)] for kind in ("image without trimap", "trimap without image")},
    "listed without image": [("listed, but no image", "warning", "left out")],
    "image in no list": [("pair in no list", "note", "in protocol seed only; species and breed from its name")],
}


@pytest.fixture(scope="module")
def dataset(trapped):
    return open_dataset(trapped)


@pytest.fixture(scope="module")
def check(dataset):
    return check_dataset(dataset, 128)


@pytest.mark.parametrize(("trap", "kind"), TRAPS.items())
def test_every_trap_is_in_its_rows_and_in_no_other(check, trap, kind):
    for title, level, action in ROWS[kind]:
        (row,) = [row for row in check.findings if row.found == title or (title in row.found and row.level == "error")]
        assert trap in row.names
        assert (row.level, row.action) == (level, action)
        assert row.level == "note" or row.advice, "what is wrong can be mended"
    assert sum(trap in row.names for row in check.findings) == len(ROWS[kind])


def test_counts_add_up_and_nothing_that_lies_in_the_folder_vanishes(dataset, check, trapped):
    """Every pair is sound, noted or left out, and only one of them; rows hold traps alone, and none stands twice."""
    for row in check.findings:
        assert row.count == len(row.names) > 0
        assert row.names == tuple(sorted(row.names))
        assert not re.search(r"[/\\]", row.found), "a row names no folder"
    assert len({row.found for row in check.findings}) == len(check.findings)
    assert {name for row in check.findings for name in row.names} == {*TRAPS}
    levels = [row.level for row in check.findings]
    assert levels == sorted(levels, key=LEVELS.index), "errors first"
    of_pairs = [row for row in check.findings if row.found not in dataset.skipped]
    left_out = [name for row in of_pairs if row.action.startswith("left out") for name in row.names]
    noted = {name for row in of_pairs for name in row.names} - {*left_out}
    assert len(left_out) == len({*left_out})
    ids = {sample.id for sample in dataset.samples}
    assert noted | {*left_out} <= ids
    assert (check.images, check.usable) == (len(ids), len(ids) - len(left_out))
    # the drawn images and the two in no list are the sound ones
    assert ids - noted - {*left_out} == (ids - {*TRAPS}) | {"Abyssinian_911", "beagle_911"}
    for path in [*(trapped / "images").iterdir(), *(trapped / "annotations" / "trimaps").iterdir()]:
        assert {path.stem, path.name} & (ids | {*TRAPS}), "a file is part of an opened pair or named in a row"


def test_a_clean_folder_has_no_row_and_an_image_that_is_lost_after_listing_is_left_out(copied):
    calls = []
    dataset = open_dataset(copied)
    check = check_dataset(dataset, 128, on_progress=lambda done, total: calls.append((done, total)))
    assert (check.findings, check.images, check.usable, check.spoiled) == ((), 8, 8, 0)
    assert calls == [(done, 8) for done in range(1, 9)]
    shutil.rmtree(copied / "images")
    check = check_dataset(dataset, 128)
    (row,) = [row for row in check.findings if row.found == "image cannot be decoded"]
    assert (check.usable, check.smallest, row.count, row.level) == (0, None, 8, "error")


def test_one_kind_is_one_row(copied):
    # a folder of 7,390 remapped trimaps, each of another size, must not print 7,390 rows
    for number, path in enumerate(sorted((copied / "annotations" / "trimaps").iterdir())):
        with Image.open(path) as trimap:
            values = np.asarray(trimap) - 1
        Image.fromarray(values if number % 2 else np.ones((9, 30 + number), np.uint8)).save(path)
    rows = [row for row in check_dataset(open_dataset(copied), 128).findings if "left out" in row.action]
    assert [row.count for row in rows] == [4, 4]


IDS = np.zeros((48, 64), np.uint8)
IDS[8:30, 10:50] = 1
IDS[12:20, 20:40] = 2
SMOOTHED = np.asarray(Image.fromarray(120 * IDS).resize((32, 24), Image.Resampling.BILINEAR))
LYING = (64, 48), {"exif": Image.Exif()}
LYING[1]["exif"][0x0112] = 6
COLOURS = np.uint8([[0, 0, 0], [200, 40, 0], [0, 90, 250]])
FILES = {  # what is wrong with masks -> pixels of the first mask, size and options of the first image; the row
    "smoothed": (SMOOTHED, (32, 24), {}, ("mask with smoothed edges", "error", "stops training", "nearest neighbour")),
    "smoothed colours": (
        np.asarray(Image.fromarray(COLOURS[IDS]).resize((128, 96), Image.Resampling.BICUBIC)),
        *((64, 48), {}, ("mask with smoothed edges", "error", "stops training", "not JPEG")),
    ),
    "of no class": (
        np.where(IDS == 2, 7, 120 * IDS).astype(np.uint8),
        *((64, 48), {}, ("mask with values that no class has", "error", "stops training", r"classes\.toml")),
    ),
    "on its side": (
        np.rot90(120 * IDS),
        *((64, 48), {}, ("image or mask that lies on its side", "warning", "left out", "EXIF")),
    ),
    "of another shape": (
        120 * IDS[:, :20],
        *((64, 48), {}, ("image and mask of different shapes", "warning", "left out", "from its own image")),
    ),
    "of the turned image": (
        np.rot90(120 * IDS),
        *LYING,
        ("EXIF rotation, applied (the label has it)", "note", "kept", ""),
    ),
    "of the stored image": (
        120 * IDS,
        *LYING,
        ("EXIF rotation, not applied (the label has none)", "note", "kept", ""),
    ),
    "of either": (
        120 * IDS[:48, :48],
        *((48, 48), LYING[1], ("EXIF rotation, not applied (the label's shape", "warning", "kept", "a viewer")),
    ),
    "small": (120 * IDS[:24, :24], (24, 24), {}, ("image smaller than 32 px", "warning", "kept", r"data\.size=16\.")),
}


@pytest.mark.parametrize("fault", FILES)
def test_what_is_wrong_with_files(fault, tmp_path):
    """The first of 20 pairs has the fault; no more is found than that."""
    mask, size, options, (found, level, action, advice) = FILES[fault]
    colours = mask.ndim == 3
    draw = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(20):
        shape = (*(size[::-1] if number == 0 else IDS.shape), 3)
        image = Image.fromarray(draw.integers(0, 255, shape, np.uint8))
        image.save(tmp_path / f"images/{number:02}.jpg", **(options if number == 0 else {}))
        own = mask if number == 0 else COLOURS[IDS] if colours else 120 * IDS
        Image.fromarray(own).save(tmp_path / f"masks/{number:02}.png")
    entries = ""
    for place, name in enumerate(("soil", "leaf", "fruit")):
        value = f'colour = "#{COLOURS[place].tobytes().hex()}"' if colours else f"id = {120 * place}"
        entries += f'[[classes]]\nname = "{name}"\n{value}\n'
    (tmp_path / "classes.toml").write_text(entries)
    dataset = open_dataset(tmp_path)
    check = check_dataset(dataset, 32)
    (row,) = check.findings
    assert row.found.startswith(found)
    assert (row.level, row.action, row.names) == (level, action, ("00",))
    assert re.search(advice, row.advice)
    assert check.spoiled == (level == "error")
    if level == "error":
        refused(r"mask 00 has .* pixels of .*`petseg data check` lists them", prepare, dataset, 32)
    else:
        assert list(prepare(dataset, 32).left_out) == (["00"] if action == "left out" else [])


def made(folder, labels, size=(32, 32), copies=()):
    """Returns a dataset of class ids by split, each image another; `copies` are (split, number) of the first image."""
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(0)
    first = Image.fromarray(draw.integers(0, 255, (*size, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    samples, splits, ids_of = [], {}, {}
    for part, images in labels.items():
        splits[part] = tuple(f"{part}{number}" for number in range(len(images)))
        for number, (name, ids) in enumerate(zip(splits[part], images, strict=True)):
            image = Image.fromarray(draw.integers(0, 255, (*size, 3), np.uint8))
            path = folder / f"{name}.png"
            (first if (part, number) in [("train", 0), *copies] else image).save(path)
            samples.append(Sample(name, path, path))
            ids_of[name] = np.uint8(ids) * np.ones(size, np.uint8)
    classes = classes_from(["soil", "leaf", "fruit"])
    samples.sort(key=lambda sample: sample.id)
    key = str([ids.tobytes() for ids in ids_of.values()])
    read = lambda sample: Label(ids_of[sample.id])  # noqa: E731
    return Dataset("made", tuple(samples), classes, splits, read, "drawn here", fingerprint=key)


HALVES = np.repeat([0, 1], 16)  # soil and leaf
THIRDS = np.repeat([0, 1, 2], [15, 16, 1])  # and fruit, a 32nd
SPECK = np.where(np.arange(1024) == 0, 2, np.arange(1024) % 2).reshape(32, 32)  # fruit on one pixel
BALANCE = {  # labels by split, copies -> level, found, names, advice of the only row but notes
    "sound": ({"train": [THIRDS] * 4, "val": [THIRDS], "test": [THIRDS]}, (), None),
    "never trained": (
        {"train": [HALVES] * 4, "val": [THIRDS], "test": [HALVES]},
        *((), ("error", "class in no training image", ("fruit",), "into training")),
    ),
    "not validated": (
        {"train": [THIRDS] * 4, "val": [HALVES], "test": [THIRDS]},
        *((), ("warning", "class in no val image", ("fruit",), "into val")),
    ),
    "nowhere": (
        {"train": [HALVES] * 4, "val": [HALVES]},
        *((), ("warning", "class in no image", ("fruit",), "leave the class out")),
    ),
    "almost empty": (
        {"train": [SPECK] * 4, "val": [THIRDS]},
        (),
        ("warning", "class of less than 1 % of the training pixels", ("fruit",), "=median_frequency.*: fruit 511"),
    ),
    "twice": (
        {"train": [THIRDS] * 4, "val": [THIRDS] * 2, "test": [THIRDS] * 2},
        *(
            [("val", 1), ("test", 0)],
            (
                "warning",
                "near-duplicate in another split",
                ("val1 (val) ~ train0 (train)", "test0 (test) ~ train0 (train)"),
                "one split",
            ),
        ),
    ),
    "nothing labelled": (
        {"train": [THIRDS] * 4 + [255], "val": [THIRDS]},
        *((), ("warning", "label without a labelled pixel", ("train4",), "Label it")),
    ),
}


@pytest.mark.parametrize("kind", BALANCE)
def test_what_is_wrong_with_classes_and_splits(kind, tmp_path):
    labels, copies, wanted = BALANCE[kind]
    dataset = made(tmp_path, labels, copies=copies)
    check = check_dataset(dataset, 32)
    rows = [row for row in check.findings if row.level != "note"]
    if wanted is None:
        assert rows == []
    else:
        level, found, names, advice = wanted
        (row,) = rows
        assert (row.level, row.found, row.names, row.count) == (level, found, names, len(names))
        assert re.search(advice, row.advice)
    prepared = prepare(dataset, 32)
    if wanted and wanted[0] == "error":
        message = r"^made: class fruit is in no training image, but in 1 that are scored \(val0\); .*`petseg data"
        refused(message, refuse_spoiled, prepared)
    else:
        refuse_spoiled(prepared)
    # the balance is that of the labels
    training = [dataset.read_label(dataset.by_id[name]).ids for name in dataset.splits["train"]]
    weights = median_frequency_weights(training, 3)
    assert [entry.weight for entry in check.classes] == pytest.approx(weights.tolist())
    labelled = np.concatenate([ids[ids < 3] for ids in training])
    assert [entry.share for entry in check.classes] == pytest.approx(np.bincount(labelled, minlength=3) / len(labelled))
    assert check.classes[2].images["train"] == sum(bool((ids == 2).any()) for ids in training)


IGNORED = {  # labels of the training images -> which are of the first class and ignored pixels alone
    "beside the first class": ([np.where(HALVES == 1, 255, 0), THIRDS] * 3, ("train0", "train2", "train4")),
    "beside another class": ([np.where(HALVES == 0, 255, 1), THIRDS] * 3, ()),
    "beside two classes": ([np.where(THIRDS == 2, 255, THIRDS), THIRDS] * 3, ()),
    "none": ([THIRDS, 0 * THIRDS] * 3, ()),
}


@pytest.mark.parametrize("kind", IGNORED)
def test_objects_that_may_be_ignored_are_a_warning_and_the_share_of_ignored_pixels_is_counted(kind, tmp_path):
    labels, wanted = IGNORED[kind]
    check = check_dataset(made(tmp_path, {"train": labels, "val": [THIRDS] * 2}), 32)
    rows = [row for row in check.findings if row.found == "label of soil and ignored pixels alone"]
    assert [(row.level, row.names) for row in rows] == [("warning", wanted)] * bool(wanted)
    assert check.ignored == pytest.approx(np.mean([*labels, THIRDS, THIRDS] == np.uint8(255)))


def held(*ids):
    """Returns a label that holds these class ids."""
    return np.resize(np.array(ids), 1024).reshape(32, 32)


CLASSES = 12
INSTANCES = {  # labels -> whether the ids look like numbered objects
    "objects numbered in each label": ([held(*range(n)) for n in (4, 12, 7, 9, 7, 11, 1, 12)], True),
    "objects that touch, no background": ([held(*range(1, n)) for n in (4, 12, 7, 9, 7, 11, 8, 12)], True),
    "all classes in each": ([held(*range(CLASSES))] * 8, False),
    "rare classes last": ([held(*range(n)) for n in (12, 12, 11, 10, 9, 12, 12, 12)], False),
    "any classes": ([held(*np.random.default_rng(n).permutation(CLASSES)[:5]) for n in range(8)], False),
    "few nested classes": ([held(*range(n)) for n in (1, 2, 3, 4, 5, 6, 7, 8)], False),
}


@pytest.mark.parametrize("kind", INSTANCES)
def test_ids_that_look_like_numbered_objects_are_a_warning(kind, tmp_path):
    labels, wanted = INSTANCES[kind]
    dataset = made(tmp_path, {"train": labels, "val": labels[:1]})
    names = [f"class {number}" for number in range(1 + max(map(np.max, labels)))]
    check = check_dataset(replace(dataset, classes=classes_from(names)), 32)
    rows = [row for row in check.findings if "numbered objects" in row.found]
    assert [(row.level, row.names) for row in rows] == [("warning", tuple(names[1:]))] * wanted
    assert all("mask > 0" in row.advice for row in rows)


def test_one_class_alone_stops_training(tmp_path):
    dataset = made(tmp_path, {"train": [0, 0, 0], "val": [HALVES]})
    rows = [(row.level, row.found, row.names) for row in check_dataset(dataset, 32).findings]
    assert ("error", "the only class in training", ("soil",)) in rows
    assert ("note", "label of one class alone", ("train0", "train1", "train2")) in rows
    refused("^made: all training labels are soil; wanted two classes or more", refuse_spoiled, prepare(dataset, 32))


@pytest.mark.parametrize(("broken", "stops"), [(1, False), (2, True)])
def test_more_than_a_tenth_left_out_stops_training(broken, stops, tmp_path):
    dataset = made(tmp_path, {"train": [THIRDS] * 8, "val": [THIRDS] * 2})
    for sample in dataset.samples[:broken]:
        Path(sample.image).write_bytes(b"no image")
    check = check_dataset(dataset, 32)
    (row,) = [row for row in check.findings if row.action.startswith("left out")]
    assert (row.level, row.count, check.spoiled) == ("error" if stops else "warning", broken, stops)
    prepared = prepare(dataset, 32)
    if stops:
        message = r"^made: 2 of 10 images cannot be used \(first: train0: image.*; `petseg data check` lists them"
        refused(message, refuse_spoiled, prepared)
    else:
        refuse_spoiled(prepared)


@pytest.mark.parametrize("brightest", [[60_000] * 8, [60_000, 4000] * 4], ids=["one range", "two ranges"])
def test_16_bit_images_that_are_scaled_by_different_ranges_are_one_warning(brightest, tmp_path):
    dataset = made(tmp_path, {"train": [THIRDS] * 6, "val": [THIRDS] * 2})
    draw = np.random.default_rng(1)
    for sample, high in zip(dataset.samples, brightest, strict=True):
        values = draw.integers(0, high, (32, 32)).astype(np.uint16)
        values[0, 0] = high
        Image.fromarray(values).save(sample.image)
    (row,) = check_dataset(dataset, 32).findings
    assert row.count == 8
    if len({*brightest}) == 1:
        assert (row.level, row.found) == ("note", "16-bit, scaled to 8")
    else:
        assert (row.level, row.found) == ("warning", "image scaled from another range than others")
        assert "not equally bright" in row.action
        assert "Bring all images to one range" in row.advice


def test_files_of_several_frames_are_a_warning_of_images_and_one_of_masks(tmp_path):
    for number in range(8):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            page = Image.fromarray(120 * np.roll(IDS, 5 * number))
            stack = {"save_all": True, "append_images": [page] * (number % 2)}
            page.save(tmp_path / folder / f"{number}.tif", **stack)
    rows = [row for row in check_dataset(open_dataset(tmp_path), 32).findings if "frames" in row.found]
    assert [(row.level, row.found, row.names) for row in rows] == [
        ("warning", f"{what} of several frames", tuple("1357")) for what in ("image", "mask")
    ]
    assert all("one file for each frame" in row.advice for row in rows)


UNREADABLE = {  # first bytes of the first two images -> the row's title, what its reason and its advice say
    "git-LFS pointer": (b"version https://git-lfs.github.com/spec/v1", "run git lfs pull", "Run git lfs pull"),
    "file that is not a readable image": (b"<!doctype html>", "a web page; wanted JPEG", "Export it as PNG"),
    "image whose values are of no known range": (
        image_bytes(Image.fromarray(np.float32([[-2, 1]])), "TIFF"),
        *("pixels of -2 to 1; wanted 0 to 1", "the same factor"),
    ),
    "image or mask with too many pixels": (image_bytes(Image.new("1", (30_000, 9000)), "PNG"), "pixels", "into tiles"),
    "image cannot be decoded": (image_bytes(Image.effect_noise((64, 64), 9), "PNG")[:2000], "truncated", "Copy"),
}


def test_images_that_cannot_be_read_are_rows_by_reason_each_with_one_and_its_advice(tmp_path):
    dataset = made(tmp_path, {"train": [THIRDS] * 98, "val": [THIRDS] * 2})
    for place, (content, _, _) in enumerate(UNREADABLE.values()):
        for sample in dataset.samples[2 * place : 2 * place + 2]:
            Path(sample.image).write_bytes(content)
    rows = [row for row in check_dataset(dataset, 32).findings if row.action == "left out"]
    assert [row.found for row in rows] == [*UNREADABLE]
    for place, row in enumerate(rows):
        _, reason, advice = UNREADABLE[row.found]
        assert row.names == tuple(sample.id for sample in dataset.samples[2 * place : 2 * place + 2])
        assert reason in row.reason
        assert advice in row.advice


ALONE = {  # images without mask, masks without image -> whether it stops
    "not labelled yet": (24, 0, False),
    "masks of images elsewhere": (0, 24, False),
    "one name of ten differs": (1, 1, False),
    "two names of eleven differ": (2, 2, True),
    "one mask of a half labelled project": (24, 1, False),
}


@pytest.mark.parametrize("kind", ALONE)
def test_images_without_mask_stop_training_only_beside_masks_without_image(kind, tmp_path):
    images, masks, stops = ALONE[kind]
    dataset = made(tmp_path, {"train": [THIRDS] * 8, "val": [THIRDS] * 1})
    alone = {"image without mask": images, "mask without image": masks}
    skipped = {kind: tuple(f"lost{number}" for number in range(count)) for kind, count in alone.items() if count}
    dataset = replace(dataset, skipped=skipped)
    check = check_dataset(dataset, 32)
    assert [(row.level, row.count) for row in check.findings] == [
        ("error" if stops else "warning", count) for count in alone.values() if count
    ]
    assert all("is named as its" in row.advice for row in check.findings)
    assert (check.images, check.unlabelled, bool(check.spoiled)) == (9, images, stops)
    if stops:
        match = r"^made: 2 of 11 images cannot be used \(first: lost0: image without mask\); `petseg data check` lists"
        refused(match, refuse_spoiled, prepare(dataset, 32))
    else:
        refuse_spoiled(prepare(dataset, 32))


def test_a_dataset_that_its_source_refuses_is_an_error(tmp_path):
    dataset = replace(made(tmp_path, {"train": [THIRDS] * 2, "val": [THIRDS]}), refusal="its masks are upside down")
    check = check_dataset(dataset, 32)
    assert [(row.found, row.action) for row in check.findings] == [("its masks are upside down", "stops training")]
    assert check.spoiled == 1
    assert {rule.level for rule in RULES} == {"error", "warning", "note"}
