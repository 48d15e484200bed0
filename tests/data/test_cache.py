"""The prepared cache: right arrays, one key for one content, whole or not at all."""

import hashlib
import io
import json
import os
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg.config import DataConfig, OxfordPetsConfig
from petseg.data import cache, images
from petseg.data.dataset import SUSPECT, Dataset, Label, Sample, classes_from
from petseg.data.images import open_ids, resize_ids
from petseg.data.oxford_pets import FOLDER
from petseg.data.sources import open_dataset
from tests.conftest import interrupted_at, refused
from tests.data.traps import REASONS, TRAPS

SIZE = 32


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PETSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def prepare(folder, size=SIZE, task="trimap", **options):
    return cache.prepare(open_dataset(folder, DataConfig(oxford_pets=OxfordPetsConfig(task=task))), size, **options)


def counted(folder):
    calls = []
    return prepare(folder, on_progress=lambda *call: calls.append(call)), calls


def names_in(folder):
    return sorted(path.name for path in (folder / "prepared").glob("*") if path.suffix != ".lock")


def digest(prepared):
    return hashlib.sha256(prepared.images.tobytes() + prepared.labels.tobytes()).hexdigest()


def plain(path, size, method=Image.Resampling.BILINEAR):
    with Image.open(path) as image:
        return np.asarray(image.resize((size, size), method), int)


@pytest.mark.parametrize("size", [16, 32, 57])
def test_shapes_types_order_and_rows(eight_pets, cache_folder, size):
    prepared = prepare(eight_pets, size)
    assert (prepared.size, prepared.images.shape) == (size, (8, size, size, 3))
    assert prepared.labels.shape == (8, size, size)
    for array in (prepared.images, prepared.labels):
        assert (array.dtype, array.flags.writeable, type(array)) == (np.uint8, False, np.memmap)
    assert (prepared.samples, prepared.folder.parent) == (prepared.dataset.samples, cache_folder / "prepared")
    assert (prepared.dataset.provenance, prepared.left_out, prepared.notes) == (FOLDER, {}, {})
    assert prepared.largest_side == max(max(open_ids(prepared.dataset, sample).shape) for sample in prepared.samples)
    ids = [sample.id for sample in prepared.samples]
    for wanted, rows in (([ids[3], "no_such_1", ids[0]], [3, 0]), ([], [])):
        assert (prepared.rows(wanted).dtype, prepared.rows(wanted).tolist()) == (np.int64, rows)


def test_images_are_a_plain_resize_but_for_the_decoders_reduction_in_the_samples_order(eight_pets, monkeypatch):
    """At 100 px the decoder may not reduce images of 136 to 184 px. Each sample is another thread's."""
    monkeypatch.setattr(images, "CHUNK", 1)
    monkeypatch.setattr(images, "core_count", lambda: 4)
    prepared, whole = prepare(eight_pets), prepare(eight_pets, 100)
    for row, sample in enumerate(prepared.samples):
        smooth, rough = plain(sample.image, SIZE), plain(sample.image, SIZE, Image.Resampling.NEAREST)
        # synthetic pets are harder than photos, on whose enlarged copies the mean is below 2 levels of 255
        assert np.abs(prepared.images[row] - smooth).mean() < 5.5
        assert np.abs(rough - smooth).mean() > 7  # what no antialiasing at all would give
        assert np.abs(whole.images[row] - plain(sample.image, 100)).max() <= 1


@pytest.mark.parametrize("task", ["trimap", "species"])
def test_labels_are_exactly_nearest(eight_pets, task):
    prepared = prepare(eight_pets, task=task)
    for row, sample in enumerate(prepared.samples):
        wanted = resize_ids(open_ids(prepared.dataset, sample), (SIZE, SIZE))
        np.testing.assert_array_equal(prepared.labels[row], wanted)
    assert {*np.unique(prepared.labels)} == ({0, 1, 2} if task == "trimap" else {0, 1, 2, 255})


def test_unusable_samples_are_left_out_by_name_with_the_reason(trapped):
    prepared, calls = counted(trapped)
    wanted = {name: REASONS[kind].replace("NAME", name) for name, kind in TRAPS.items() if kind in REASONS}
    assert prepared.left_out.keys() == wanted.keys()
    assert all(re.search(wanted[name], prepared.left_out[name]) for name in wanted)
    ids = [sample.id for sample in prepared.dataset.samples]
    assert [sample.id for sample in prepared.samples] == [name for name in ids if name not in wanted]
    assert len(prepared.images) == len(prepared.labels) == len(ids) - 4
    assert calls == [(done, len(ids)) for done in range(1, len(ids) + 1)]
    assert prepared.notes["beagle_904"] == (SUSPECT,)
    assert "beagle_1" not in prepared.notes
    # a row that follows a left-out one is still its own image
    (last,) = prepared.rows(["beagle_911"])
    wanted_ids = resize_ids(open_ids(prepared.dataset, prepared.samples[last]), (SIZE, SIZE))
    np.testing.assert_array_equal(prepared.labels[last], wanted_ids)


def test_an_interrupted_call_or_a_folder_of_unusable_images_leaves_nothing(copied, cache_folder):
    with pytest.raises(KeyboardInterrupt):
        prepare(copied, on_progress=interrupted_at(3))
    assert names_in(cache_folder) == []
    assert len(prepare(copied, 16).samples) == 8
    for path in (copied / "images").iterdir():
        path.write_bytes(b"")
    refused(r"none of 8 images can be used \(first: Abyssinian_1: image cannot be deco", prepare, copied)
    assert len(names_in(cache_folder)) == 1


def test_a_second_call_decodes_nothing_nor_does_one_of_a_copy_with_other_times(eight_pets, copied):
    one, first = counted(eight_pets)
    written = (one.folder / "index.json").stat()
    for path in copied.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert first == [(done, 8) for done in range(1, 9)]
    for folder in (eight_pets, copied):
        again, calls = counted(folder)
        assert (again.folder, calls) == (one.folder, [])
        now = (again.folder / "index.json").stat()
        assert (now.st_mtime_ns, now.st_ino) == (written.st_mtime_ns, written.st_ino)
        assert digest(again) == digest(one)


def spoil(path):
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_an_unchanged_folder_is_not_even_read_and_another_is_whatever_its_sizes_and_times(eight_pets, copied):
    first = prepare(eight_pets)
    label = Path("annotations") / "trimaps" / "beagle_1.png"
    spoil(copied / label)
    assert (copied / label).stat().st_mtime_ns == (eight_pets / label).stat().st_mtime_ns
    assert first.left_out == {}
    second = prepare(copied)
    assert "trimap cannot be decoded" in second.left_out["beagle_1"]
    spoil(copied / "images" / "beagle_2.jpg")
    again = prepare(copied)
    assert (again.folder, again.left_out) == (second.folder, second.left_out)


def test_another_size_or_task_is_another_cache(eight_pets, cache_folder):
    assert len({prepare(eight_pets, size, task).folder for size in (32, 48) for task in ("trimap", "pet")}) == 4
    assert len(names_in(cache_folder)) == 4


IMAGE, TRIMAP = "images/beagle_{}.jpg", "annotations/trimaps/beagle_{}.png"
CHANGES = {  # files of a folder of pets: the first is copied over the second, or is gone
    "another image": [(IMAGE.format(2), IMAGE.format(1))],
    "another trimap": [(TRIMAP.format(2), TRIMAP.format(1))],
    "another species": [("annotations/trainval.txt", "annotations/list.txt")],
    "a pair less": [(IMAGE.format(1), None)],
    "another name": [(file.format(1), new) for file in (IMAGE, TRIMAP) for new in (file.format(99), None)],
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_content_is_another_cache(copied, cache_folder, change):
    names = copied / "annotations" / "trainval.txt"
    names.write_text(names.read_text().replace("beagle_1 5 2 4", "beagle_1 5 1 4"))
    first = prepare(copied)
    for old, new in CHANGES[change]:
        shutil.copy(copied / old, copied / new) if new else (copied / old).unlink()
    second, calls = counted(copied)
    assert second.folder != first.folder
    assert calls
    assert len(names_in(cache_folder)) == 2


def test_splits_and_skipped_files_do_not_change_the_cache_and_a_lost_image_is_left_out(copied):
    first, dataset = prepare(copied), open_dataset(copied)
    (copied / "images" / "._beagle_1.jpg").write_bytes(b"x")
    assert prepare(copied).key == first.key, "a skipped file changes nothing"
    trainval, test = (copied / "annotations" / f"{name}.txt" for name in ("trainval", "test"))
    test.write_text(test.read_text() + trainval.read_text())
    second = prepare(copied)
    assert second.folder == first.folder
    assert second.key != first.key
    assert second.dataset.splits["train"] == ()
    (copied / "images" / "beagle_1.jpg").unlink()
    assert "image cannot be decoded" in cache.prepare(dataset, SIZE).left_out["beagle_1"]


def test_the_key_of_files_is_of_their_bytes(tmp_path):
    samples = [Sample(name, tmp_path / f"{name}.jpg", tmp_path / f"{name}.png") for name in "ab"]
    for path in (path for sample in samples for path in (sample.image, sample.label)):
        path.write_bytes(path.name.encode())
    dataset = Dataset("Own", tuple(samples), classes_from(["soil"]), {}, lambda sample: None, "", fingerprint="x")
    lines = [[one, *(hashlib.sha256(f"{one}.{end}".encode()).hexdigest() for end in ("jpg", "png"))] for one in "ab"]
    text = "\n".join(["['soil'] x", *map(" ".join, lines)])
    assert cache.content_key(dataset) == hashlib.sha256(text.encode()).hexdigest()


def test_labels_that_are_no_files_and_their_images_make_the_key(tmp_path):
    ids = {"a": np.zeros((8, 8), np.uint8), "b": np.zeros((8, 8), np.uint8)}
    samples = tuple(Sample(name, tmp_path / f"{name}.png", Path("/virtual") / name) for name in ids)
    for sample in samples:
        Image.new("RGB", (8, 8), "green").save(sample.image)
    dataset = Dataset(
        "Own", samples, classes_from(["soil", "leaf"]), {}, lambda one: Label(ids[one.id]), "a dictionary"
    )
    keys = [cache.content_key(dataset)]
    assert cache.content_key(dataset) == keys[0]
    ids["b"] = np.eye(8, dtype=np.uint8)
    prepared = cache.prepare(dataset, 8)
    assert np.array_equal(prepared.label(1), ids["b"])
    keys.append(cache.content_key(dataset))
    Image.new("RGB", (8, 8), "red").save(samples[0].image)
    assert cache.prepare(dataset, 8).image(0)[0, 0].tolist() == [255, 0, 0]
    keys.append(cache.content_key(dataset))
    ids["b"] = ids["b"].reshape(4, 16)
    keys.append(cache.content_key(dataset))
    del ids["b"]
    keys.append(cache.content_key(dataset))
    assert len({*keys}) == len(keys)
    assert [*cache.prepare(dataset, 8).left_out] == ["b"]


def test_of_two_callers_the_second_waits_and_reads_the_same(eight_pets, cache_folder):
    half_way, go_on = threading.Event(), threading.Event()

    def pause(done, total):
        if done == 3:
            half_way.set()
            assert go_on.wait(60)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(prepare, eight_pets, on_progress=pause)
        assert half_way.wait(60)
        two = pool.submit(counted, eight_pets)
        with pytest.raises(TimeoutError):
            two.result(1)
        go_on.set()
        assert (digest(one.result(60)), []) == (digest(two.result(60)[0]), two.result()[1])
    assert len(names_in(cache_folder)) == 1


def without(key):
    def change(content):
        index = json.loads(content)
        (index if key in index else index["rows"][0]).pop(key)
        return json.dumps(index).encode()

    return change


def fewer_rows(content):
    buffer = io.BytesIO()
    np.save(buffer, np.load(io.BytesIO(content))[:2])
    return buffer.getvalue()


DAMAGES = {
    "half an index": ("index.json", lambda content: content[:40]),
    "an id of another dataset": ("index.json", lambda content: content.replace(b"beagle_1", b"beagle_9")),
    "an index that is a list": ("index.json", lambda content: b"[]"),
    **{f"an index without {key}": ("index.json", without(key)) for key in ("rows", "size", "left_out", "largest_side")},
    "a row without notes": ("index.json", without("notes")),
    "half the images": ("images.npy", lambda content: content[: len(content) // 2]),
    "half the labels": ("labels.npy", lambda content: content[: len(content) // 2]),
    "half a header": ("images.npy", lambda content: content[:40]),
    "no array": ("images.npy", lambda content: b"x" * len(content)),
    "an empty array": ("images.npy", lambda content: b""),
    "fewer labels than rows": ("labels.npy", fewer_rows),
    "no images": ("images.npy", None),
    "no labels": ("labels.npy", None),
    "no index": ("index.json", None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_again_with_a_warning(eight_pets, damage, caplog):
    name, change = DAMAGES[damage]
    first = prepare(eight_pets)
    wanted, path = digest(first), first.folder / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    again, calls = counted(eight_pets)
    assert (again.folder, len(calls), digest(again)) == (first.folder, 8, wanted)
    if damage == "no index":  # it is written last, so a folder without it is no cache
        assert caplog.messages == []
        return
    (warning,) = caplog.messages
    assert re.fullmatch(r"petseg: warning: cache .* is damaged \([^\n]*\); preparing it again", warning)
    prepare(eight_pets)
    assert caplog.messages == [warning]


def test_without_space_or_a_folder_nothing_is_decoded(eight_pets, cache_folder, tmp_path, monkeypatch):
    match = r"cache .*: \d+\.\d GB free, 3200000\.0 GB wanted; free some space or set PETSEG_CACHE"
    refused(match, prepare, eight_pets, 10_000_000, on_progress=pytest.fail)
    assert names_in(cache_folder) == []
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PETSEG_CACHE", str(tmp_path / "file" / "cache"))
    refused(r"^cache [^\n]*set PETSEG_CACHE$", prepare, eight_pets, on_progress=pytest.fail)
