"""The prepared cache: right arrays, one key for one content, whole or not at all; and where data are looked for."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg.data import cache
from petseg.data.cache import UNOFFICIAL, find_data, get_data, made_data, open_data, prepare, resize_labels
from petseg.data.download import ARCHIVES
from petseg.data.oxford_pets import read_contents
from petseg.data.synthetic import make_pets
from petseg.errors import PetsegError
from tests.data.traps import TRAPS, make_trapped_pets

SIZE = 32


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PETSEG_DATA", raising=False)
    monkeypatch.setenv("PETSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pets(tmp_path_factory.mktemp("pets"), per_breed=2, breeds=4)


@pytest.fixture(scope="module")
def trapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trapped_pets(tmp_path_factory.mktemp("trapped"))


@pytest.fixture
def copy(pets: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(pets, tmp_path / "copy")


class Count:
    """Keeps what a call of `prepare` reports; empty when it decoded nothing."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))


def nearest(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes by taking, for the middle of each new pixel, the old pixel below it."""
    rows = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * labels.shape[1] / width).astype(int)
    return labels[rows[:, None], columns]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def prepared_names(folder: Path) -> list[str]:
    """Returns what lies among the prepared sets, locks left out."""
    return sorted(path.name for path in (folder / "prepared").glob("*") if path.suffix != ".lock")


# What a cache holds


@pytest.mark.parametrize("size", [16, 32, 57])
def test_shapes_types_and_order(pets, cache_folder, size):
    prepared = prepare(pets, size)
    assert prepared.size == size
    assert prepared.images.shape == (8, size, size, 3)
    assert prepared.trimaps.shape == (8, size, size)
    for array in (prepared.images, prepared.trimaps):
        assert array.dtype == np.uint8
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable
    assert prepared.pets == read_contents(pets).pets
    assert prepared.folder.parent == cache_folder / "prepared"
    assert prepared.source == "a folder in the official layout"
    assert (prepared.left_out, prepared.notes) == ({}, {})
    assert prepared.all_listed == {pet.name: pet.listed for pet in prepared.pets}


def test_images_are_a_plain_resize_but_for_the_decoders_reduction(pets):
    prepared = prepare(pets, SIZE)
    for row, pet in enumerate(prepared.pets):
        with Image.open(pet.image) as image:
            plain = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR), int)
            rough = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.NEAREST), int)
        apart = np.abs(prepared.images[row] - plain)
        # synthetic pets are harder than photos, on whose enlarged copies the mean is below 2 levels of 255
        assert apart.mean() < 5.5
        assert np.abs(rough - plain).mean() > 7  # what no antialiasing at all would give


def test_images_at_their_decoded_size_are_exactly_a_plain_resize(pets):
    """At 100 px the decoder may not reduce pictures of 136 to 184 px."""
    prepared = prepare(pets, 100)
    for row, pet in enumerate(prepared.pets):
        with Image.open(pet.image) as image:
            plain = np.asarray(image.resize((100, 100), Image.Resampling.BILINEAR), int)
        assert np.abs(prepared.images[row] - plain).max() <= 1


def test_trimaps_are_exactly_nearest(pets):
    prepared = prepare(pets, SIZE)
    for row, pet in enumerate(prepared.pets):
        np.testing.assert_array_equal(prepared.trimaps[row], nearest(pixels(pet.trimap), SIZE, SIZE))
    assert {*np.unique(prepared.trimaps)} == {1, 2, 3}


@pytest.mark.parametrize("size", [(5, 9), (40, 23), (17, 17)])
def test_resize_labels_takes_height_then_width(size):
    labels = np.random.default_rng(0).choice([0, 1, 2, 255], (20, 31)).astype(np.uint8)
    got = resize_labels(labels, size)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, nearest(labels, *size))


def test_threads_do_not_change_the_order(pets, cache_folder):
    one = prepare(pets, SIZE, workers=1)
    kept = np.array(one.images), np.array(one.trimaps)
    shutil.rmtree(one.folder)
    four = prepare(pets, SIZE, workers=4)
    np.testing.assert_array_equal(four.images, kept[0])
    np.testing.assert_array_equal(four.trimaps, kept[1])


def test_species_and_rows(pets):
    prepared = prepare(pets, SIZE)
    names = [pet.name for pet in prepared.pets]
    assert prepared.species.dtype == np.uint8
    assert prepared.species.tolist() == [1 if name[0].isupper() else 2 for name in names]
    assert {*prepared.species.tolist()} == {1, 2}
    rows = prepared.rows([names[3], "no_such_1", names[0]])
    assert rows.dtype == np.int64
    assert rows.tolist() == [3, 0]
    assert prepared.rows([]).tolist() == []


def test_bad_pairs_are_left_out_by_name_with_the_reason(trapped):
    count = Count()
    prepared = prepare(trapped, SIZE, on_progress=count)
    reasons = {
        "truncated JPEG": "image cannot be decoded",
        "empty image file": "image cannot be decoded",
        "trimap of another aspect": "different shapes cannot be matched",
        "trimap of other values": "was it remapped already?",
    }
    wanted = {name: reasons[kind] for name, kind in TRAPS.items() if kind in reasons}
    assert prepared.left_out.keys() == wanted.keys()
    for name, reason in wanted.items():
        assert name in prepared.left_out[name]
        assert reason in prepared.left_out[name]
    contents = read_contents(trapped)
    names = [pet.name for pet in contents.pets]
    assert [pet.name for pet in prepared.pets] == [name for name in names if name not in wanted]
    assert len(prepared.images) == len(prepared.trimaps) == len(prepared.species) == len(names) - 4
    assert prepared.all_listed == {pet.name: pet.listed for pet in contents.pets}
    assert count.calls == [(done, len(names)) for done in range(1, len(names) + 1)]
    assert prepared.notes["beagle_904"] == ("trimap without any pet",)
    assert "beagle_1" not in prepared.notes
    # a row that follows a left-out one is still its own picture
    last = prepared.rows(["beagle_911"])[0]
    np.testing.assert_array_equal(prepared.trimaps[last], nearest(pixels(prepared.pets[last].trimap), SIZE, SIZE))


def test_a_folder_of_unusable_pairs(copy, cache_folder):
    for path in (copy / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        PetsegError, match=r"none of 8 pairs can be used \(first: Abyssinian_1: image cannot be decoded"
    ):
        prepare(copy, SIZE)
    assert prepared_names(cache_folder) == []


# The key


def test_a_second_call_decodes_nothing(pets, cache_folder):
    first, again = Count(), Count()
    one = prepare(pets, SIZE, on_progress=first)
    written = (one.folder / "index.json").stat()
    two = prepare(pets, SIZE, on_progress=again)
    assert first.calls == [(done, 8) for done in range(1, 9)]
    assert again.calls == []
    assert two.folder == one.folder
    now = (two.folder / "index.json").stat()
    assert (now.st_mtime_ns, now.st_ino) == (written.st_mtime_ns, written.st_ino)
    np.testing.assert_array_equal(one.images, two.images)


def test_an_unchanged_folder_is_not_even_read(copy):
    """Names, sizes and times are enough: bytes that changed behind them are not seen."""
    first = prepare(copy, SIZE)
    path = copy / "images" / "beagle_1.jpg"
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = prepare(copy, SIZE)
    assert again.folder == first.folder
    assert again.left_out == {}


def test_a_copy_elsewhere_with_other_times_finds_the_same_cache(pets, copy):
    for path in copy.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    first = prepare(pets, SIZE)
    count = Count()
    assert prepare(copy, SIZE, on_progress=count).folder == first.folder
    assert count.calls == []


def test_another_folder_is_read_even_if_sizes_and_times_agree(pets, copy):
    path = copy / "annotations" / "trimaps" / "beagle_1.png"
    status = path.stat()
    assert status.st_mtime_ns == (pets / "annotations" / "trimaps" / "beagle_1.png").stat().st_mtime_ns
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert prepare(pets, SIZE).left_out == {}
    assert "trimap cannot be decoded" in prepare(copy, SIZE).left_out["beagle_1"]


def test_another_size_is_another_cache(pets, cache_folder):
    assert prepare(pets, SIZE).folder != prepare(pets, 48).folder
    assert len(prepared_names(cache_folder)) == 2


def change_image(folder: Path) -> None:
    shutil.copy(folder / "images" / "beagle_2.jpg", folder / "images" / "beagle_1.jpg")
    shutil.copy(
        folder / "annotations" / "trimaps" / "beagle_2.png", folder / "annotations" / "trimaps" / "beagle_1.png"
    )


def change_trimap(folder: Path) -> None:
    path = folder / "annotations" / "trimaps" / "beagle_1.png"
    changed = np.where(pixels(path) == 1, 3, 2).astype(np.uint8)
    Image.fromarray(changed).save(path)


def change_lists(folder: Path) -> None:
    trainval, test = (folder / "annotations" / f"{name}.txt" for name in ("trainval", "test"))
    test.write_text(test.read_text() + trainval.read_text())


def change_species(folder: Path) -> None:
    path = folder / "annotations" / "list.txt"
    path.write_text(path.read_text().replace("beagle_1 5 2 4", "beagle_1 5 1 4"))


def drop_a_pair(folder: Path) -> None:
    (folder / "images" / "beagle_1.jpg").unlink()


def rename_a_pair(folder: Path) -> None:
    (folder / "images" / "beagle_1.jpg").rename(folder / "images" / "beagle_99.jpg")
    (folder / "annotations" / "trimaps" / "beagle_1.png").rename(folder / "annotations" / "trimaps" / "beagle_99.png")


@pytest.mark.parametrize(
    "change", [change_image, change_trimap, change_lists, change_species, drop_a_pair, rename_a_pair]
)
def test_another_content_is_another_cache(copy, cache_folder, change):
    first = prepare(copy, SIZE)
    change(copy)
    count = Count()
    assert prepare(copy, SIZE, on_progress=count).folder != first.folder
    assert count.calls
    assert len(prepared_names(cache_folder)) == 2


def test_a_stray_file_changes_nothing(copy):
    first = prepare(copy, SIZE)
    (copy / "images" / "._beagle_1.jpg").write_bytes(b"x")
    assert prepare(copy, SIZE).folder == first.folder


# Two processes, and a killed one

WORKER = """
import hashlib, sys
from pathlib import Path
from petseg.data.cache import prepare

calls = []

def on_progress(done, total):
    calls.append(done)
    if done == 3 and sys.argv[2] == "stops half-way":
        print("half-way", flush=True)
        sys.stdin.readline()

print("ready", flush=True)
prepared = prepare(Path(sys.argv[1]), 32, on_progress=on_progress)
print(len(calls), hashlib.sha256(prepared.images.tobytes() + prepared.trimaps.tobytes()).hexdigest())
"""


def start(folder: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, folder, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_two_processes_at_once_make_one_cache(pets, cache_folder):
    processes = [start(pets, "runs through") for _ in range(2)]
    try:
        out = [process.communicate(timeout=60)[0].split() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    prepared = prepare(pets, SIZE)
    here = hashlib.sha256(prepared.images.tobytes() + prepared.trimaps.tobytes()).hexdigest()
    assert sorted(out) == [["ready", "0", here], ["ready", "8", here]]  # one of them decoded, both read the same
    assert len(prepared_names(cache_folder)) == 1


def test_the_second_process_waits_for_the_first(pets):
    with start(pets, "stops half-way") as one:
        try:
            assert one.stdout is not None
            assert [one.stdout.readline() for _ in range(2)] == ["ready\n", "half-way\n"]
            with start(pets, "runs through") as two:
                try:
                    assert two.stdout is not None
                    assert two.stdout.readline() == "ready\n"
                    with pytest.raises(subprocess.TimeoutExpired):
                        two.wait(1)
                    out_one, _ = one.communicate("\n", timeout=60)
                    out_two, _ = two.communicate(timeout=60)
                finally:
                    two.kill()
        finally:
            one.kill()
    assert out_one.split()[0] == "8"
    assert out_two.split()[0] == "0"
    assert out_one.split()[1] == out_two.split()[1]


def test_a_killed_process_leaves_nothing_under_the_name(pets, cache_folder):
    with start(pets, "stops half-way") as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "half-way\n"]
        process.kill()
    assert process.returncode != 0
    (unfinished,) = prepared_names(cache_folder)
    assert ".tmp" in unfinished
    assert not (cache_folder / "prepared" / unfinished / "index.json").exists()
    count = Count()
    prepared = prepare(pets, SIZE, on_progress=count)
    assert len(count.calls) == len(prepared.pets) == 8
    assert prepared_names(cache_folder) == [prepared.folder.name]
    assert unfinished.startswith(f"{prepared.folder.name}.tmp")


def test_an_interrupted_call_leaves_nothing(pets, cache_folder):
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(pets, SIZE, on_progress=interrupt)
    assert prepared_names(cache_folder) == []
    assert len(prepare(pets, SIZE).pets) == 8


# Damage, full disks, no permission


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def without(key: str) -> Callable[[bytes], bytes]:
    """Returns a change of index.json that drops a key of it, or of its first row."""

    def change(content: bytes) -> bytes:
        index = json.loads(content)
        (index if key in index else index["rows"][0]).pop(key)
        return json.dumps(index).encode()

    return change


def fewer_rows(content: bytes) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.load(io.BytesIO(content))[:2])
    return buffer.getvalue()


DAMAGES = {
    "half an index": ("index.json", half),
    "a name of another set": ("index.json", lambda content: content.replace(b"beagle_1", b"beagle_9")),
    "an index without rows": ("index.json", without("rows")),
    "half the images": ("images.npy", half),
    "half the trimaps": ("trimaps.npy", half),
    "half a header": ("images.npy", lambda content: content[:40]),
    "no array": ("images.npy", lambda content: b"x" * len(content)),
    "an index that is a list": ("index.json", lambda content: b"[]"),
    "an index without size": ("index.json", without("size")),
    "an index without left_out": ("index.json", without("left_out")),
    "a row without notes": ("index.json", without("notes")),
    "an empty array": ("images.npy", lambda content: b""),
    "fewer trimaps than rows": ("trimaps.npy", fewer_rows),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_said_and_made_again(pets, damage, caplog):
    name, change = DAMAGES[damage]
    first = prepare(pets, SIZE)
    wanted = np.array(first.images), np.array(first.trimaps)
    (first.folder / name).write_bytes(change((first.folder / name).read_bytes()))
    again = prepare(pets, SIZE)
    (told,) = caplog.messages
    assert re.fullmatch(r"petseg: warning: cache .* is damaged \([^\n]*\); preparing it again", told)
    assert (again.images == wanted[0]).all()
    assert (again.trimaps == wanted[1]).all()
    prepare(pets, SIZE)
    assert caplog.messages == [told]


@pytest.mark.parametrize("name", ["images.npy", "trimaps.npy"])
def test_a_cache_without_an_array_is_made_again(pets, name, caplog):
    (prepare(pets, SIZE).folder / name).unlink()
    assert len(prepare(pets, SIZE).pets) == 8
    assert "is damaged" in caplog.text


def test_a_cache_without_its_index_is_made_again(pets):
    """The index is written last, so a folder without it is no cache."""
    first = prepare(pets, SIZE)
    (first.folder / "index.json").unlink()
    count = Count()
    assert prepare(pets, SIZE, on_progress=count).folder == first.folder
    assert len(count.calls) == 8


def test_too_little_space_is_said_before_anything_is_decoded(pets, cache_folder):
    count = Count()
    with pytest.raises(
        PetsegError, match=r"cache .*: \d+\.\d GB free, 3200000\.0 GB wanted; free some space or set PETSEG_C"
    ):
        prepare(pets, 10_000_000, on_progress=count)
    assert count.calls == []
    assert prepared_names(cache_folder) == []


@pytest.mark.skipif(os.name == "nt", reason="no limit of file sizes on Windows")
def test_a_write_that_fails_is_one_line(pets, cache_folder):
    """The system itself refuses to let a file grow, as on a full disk."""
    code = (
        "import resource, sys; from pathlib import Path; from petseg.data.cache import prepare\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try: prepare(Path(sys.argv[1]), 32)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code, pets], check=True, capture_output=True, text=True)
    assert done.stdout == (
        f"PetsegError cache {cache_folder / 'prepared'}: File too large; free some space or set PETSEG_CACHE\n"
    )
    assert prepared_names(cache_folder) == []
    assert len(prepare(pets, SIZE).pets) == 8


@pytest.mark.parametrize("call", ["prepare", "made_data", "open_data"])
def test_a_cache_that_cannot_be_written_is_one_line(pets, tmp_path, monkeypatch, call):
    """Below a plain file no folder can be made, whoever asks (root may write anywhere else)."""
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PETSEG_CACHE", str(tmp_path / "file" / "cache"))
    calls = {
        "prepare": lambda: prepare(pets, SIZE),
        "made_data": made_data,
        "open_data": lambda: open_data(packed(pets, tmp_path / "archives")),
    }
    with pytest.raises(PetsegError, match="set PETSEG_CACHE") as caught:
        calls[call]()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["images/beagle_1.jpg", "annotations/trimaps/beagle_1.png"])
def test_a_folder_that_is_named_like_a_picture_is_passed_over_by_name(copy, place):
    (copy / place).unlink()
    (copy / place).mkdir()
    prepared = prepare(copy, SIZE)
    assert len(prepared.rows(["beagle_1"])) == 0
    assert len(prepared.pets) == 7
    told = [name for names in read_contents(copy).strays.values() for name in names]
    assert {*prepared.left_out} | {*told} >= {"beagle_1"}


# Data folders


def packed(pets: Path, folder: Path, *, compressed: bool = True) -> Path:
    """Returns a folder with the set as two archives."""
    folder.mkdir()
    suffix, mode = (".tar.gz", "w:gz") if compressed else (".tar", "w")
    for name in ("images", "annotations"):
        with tarfile.open(folder / f"{name}{suffix}", mode) as tar:
            tar.add(pets / name, arcname=name)
    return folder


@pytest.mark.parametrize("compressed", [True, False])
def test_archives_are_unpacked_once_and_said_to_be_unofficial(pets, tmp_path, cache_folder, compressed):
    folder = packed(pets, tmp_path / "archives", compressed=compressed)
    contents, source = open_data(folder)
    assert source == UNOFFICIAL
    assert "other checksums than the official ones" in source
    assert contents.folder.parent == cache_folder / "extracted"
    unpacked = contents.folder.stat()
    again, _ = open_data(folder)
    assert again == contents
    assert (again.folder.stat().st_ino, again.folder.stat().st_mtime_ns) == (unpacked.st_ino, unpacked.st_mtime_ns)
    assert [pet.name for pet in contents.pets] == [pet.name for pet in read_contents(pets).pets]
    for pet in contents.pets:
        assert pet.image.read_bytes() == (pets / "images" / f"{pet.name}.jpg").read_bytes()


def test_archives_find_the_cache_of_the_folder_they_were_made_from(pets, tmp_path):
    first = prepare(pets, SIZE)
    second = prepare(packed(pets, tmp_path / "archives"), SIZE)
    assert second.folder == first.folder
    assert second.source == UNOFFICIAL


def test_other_archives_of_the_same_names_are_unpacked_anew(pets, copy, tmp_path):
    folder = packed(pets, tmp_path / "archives")
    first, _ = open_data(folder)
    drop_a_pair(copy)
    shutil.rmtree(folder)
    second, _ = open_data(packed(copy, folder))
    assert second.folder != first.folder
    assert len(second.pets) == len(first.pets) - 1


def test_a_damaged_archive(pets, tmp_path, cache_folder):
    folder = packed(pets, tmp_path / "archives")
    path = folder / "images.tar.gz"
    path.write_bytes(half(path.read_bytes()))
    with pytest.raises(PetsegError, match=r"images\.tar\.gz is damaged or only half downloaded"):
        open_data(folder)
    assert [path.suffix for path in (cache_folder / "extracted").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("there", "match"),
    [
        ((), r"images\.tar\.gz and annotations\.tar\.gz missing; wanted images/ and annotations/, or the two archives"),
        (("images.tar.gz",), r": annotations\.tar\.gz missing;"),
        (("annotations.tar",), r": images\.tar\.gz missing;"),
    ],
)
def test_a_folder_with_neither(tmp_path, there, match):
    for name in there:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(PetsegError, match=match):
        open_data(tmp_path)


def test_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    for name in ("nowhere", "file"):
        with pytest.raises(PetsegError, match=rf"data folder .*{name}: not a folder; run `petseg data get`, or point"):
            open_data(tmp_path / name)


def test_half_an_official_layout_says_what_is_missing(copy):
    shutil.rmtree(copy / "annotations")
    with pytest.raises(PetsegError, match=r"no annotations/trimaps/\*\.png in it"):
        open_data(copy)


def test_find_data_takes_given_then_the_variable_then_the_download(tmp_path, monkeypatch):
    downloaded = tmp_path / "downloaded"
    monkeypatch.setattr(cache, "default_data_folder", lambda: downloaded)
    assert find_data(None) is None
    downloaded.mkdir()
    for archive in ARCHIVES:
        assert find_data(None) is None  # both archives, or nothing
        (downloaded / archive.name).write_bytes(b"x")
    assert find_data(None) == downloaded
    monkeypatch.setenv("PETSEG_DATA", str(tmp_path / "named"))
    assert find_data(None) == tmp_path / "named"
    assert find_data(tmp_path / "given") == tmp_path / "given"
    monkeypatch.setenv("PETSEG_DATA", "")
    assert find_data(None) == downloaded


def test_get_data_into_a_place_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        PetsegError, match=r"data folder .*: cannot be written \(Not a directory\); choose another with --data"
    ):
        get_data(tmp_path / "file" / "data")


def test_made_data_is_drawn_once(cache_folder, monkeypatch):
    monkeypatch.setattr(cache, "MADE_PER_BREED", 2)
    stale = cache_folder / "made_pets" / f"2-v{cache.CACHE_VERSION}.tmp" / "images"
    stale.mkdir(parents=True)  # a killed call's
    (stale / "beagle_77.jpg").write_bytes(b"x")
    folder = made_data()
    status = folder.stat()
    contents = read_contents(folder)
    assert len(contents.pets) == 74
    assert contents.strays == {}
    assert len({pet.breed for pet in contents.pets}) == 37
    assert made_data() == folder
    assert (folder.stat().st_ino, folder.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    assert folder.parent == cache_folder / "made_pets"
    assert not stale.exists()
