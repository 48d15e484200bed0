"""Where a dataset is looked for, what lies in a folder, and which files count as the official ones."""

import gzip
import hashlib
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from petseg.config import DataConfig, OxfordPetsConfig
from petseg.data import oxford_pets, sources
from petseg.data.cache import prepare
from petseg.data.download import ARCHIVES
from petseg.data.sources import find_data, get_data, open_dataset, synthetic_data, unpacked
from petseg.errors import PetsegError
from tests.conftest import refused


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("PETSEG_DATA", raising=False)
    monkeypatch.setenv("PETSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def packed(pets, folder, suffix=".tar.gz"):
    folder.mkdir()
    for name in ("images", "annotations"):
        with tarfile.open(folder / f"{name}{suffix}", "w:gz" if suffix == ".tar.gz" else "w") as tar:
            tar.add(pets / name, arcname=name)
    return folder


@pytest.fixture
def archives(eight_pets, tmp_path):
    return packed(eight_pets, tmp_path / "archives")


def publish(monkeypatch, folder):
    published = []
    for archive in ARCHIVES:
        content = (folder / archive.name).read_bytes()
        published.append(replace(archive, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()))
    monkeypatch.setattr(oxford_pets, "ARCHIVES", tuple(published))


@pytest.mark.parametrize("wrong", [None, *(archive.name for archive in ARCHIVES)])
def test_official_are_archives_of_the_right_bytes(archives, monkeypatch, wrong):
    publish(monkeypatch, archives)
    if wrong:
        (archives / wrong).write_bytes(gzip.compress(gzip.decompress((archives / wrong).read_bytes()), mtime=1))
    dataset = open_dataset(archives)
    wanted = (oxford_pets.UNOFFICIAL, False) if wrong else (oxford_pets.OFFICIAL, True)
    assert (dataset.provenance, dataset.official, len(dataset.samples)) == (*wanted, 8)
    monkeypatch.setattr(oxford_pets, "is_official", None)
    assert open_dataset(archives).official == (not wrong), "checksums are computed once"


def test_a_damaged_memo_is_not_believed_nor_a_folder_ever_official(archives, cache_folder, eight_pets, monkeypatch):
    open_dataset(archives)
    (path,) = (cache_folder / "extracted").glob("*.official")
    for memo in (b"", b"tru", b"\xff", b"True"):
        path.write_bytes(memo)
        assert not open_dataset(archives).official
        assert path.read_bytes() == b"false"
    # even with the official archives beside it: its files are not checked
    publish(monkeypatch, archives)
    for name in ("images", "annotations"):
        shutil.copytree(eight_pets / name, archives / name)
    dataset = open_dataset(archives)
    assert (dataset.provenance, dataset.official) == (oxford_pets.FOLDER, False)
    assert dataset.samples[0].image.parent == archives / "images"


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar"])
def test_archives_are_unpacked_once_and_read_as_their_folder_is(eight_pets, tmp_path, cache_folder, suffix):
    folder = packed(eight_pets, tmp_path / "archives", suffix)
    dataset = open_dataset(folder)
    assert "other checksums than the official ones" in dataset.provenance
    place = dataset.samples[0].image.parents[1]
    assert place.parent == cache_folder / "extracted"
    written = place.stat()
    assert open_dataset(folder).samples == dataset.samples
    assert (place.stat().st_ino, place.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    shutil.rmtree(place)
    assert open_dataset(folder).samples == dataset.samples, "a cache that was emptied is filled again"
    for sample in dataset.samples:
        assert sample.image.read_bytes() == (eight_pets / "images" / sample.image.name).read_bytes()
    assert prepare(dataset, 32).key == prepare(open_dataset(eight_pets), 32).key
    config = DataConfig(oxford_pets=OxfordPetsConfig(task="species", protocol="seed"))
    for place in (eight_pets, folder):
        dataset = open_dataset(place, config)
        assert [entry.name for entry in dataset.classes] == ["background", "cat", "dog"]
        assert "test" not in dataset.splits


def test_other_archives_of_the_same_names_are_unpacked_anew_and_damaged_ones_refused(archives, copied, cache_folder):
    (copied / "images" / "beagle_1.jpg").unlink()
    assert len(open_dataset(archives).samples) == 8
    shutil.rmtree(archives)
    assert len(open_dataset(packed(copied, archives)).samples) == 7
    shutil.rmtree(cache_folder)
    path = archives / "images.tar.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(r"images\.tar\.gz is damaged or only half downloaded", open_dataset, archives)
    assert [path.suffix for path in (cache_folder / "extracted").iterdir()] == [".lock"]


def test_folders_without_a_dataset_and_places_that_cannot_be_written(archives, copied, tmp_path, monkeypatch):
    shutil.rmtree(copied / "annotations")
    for name, file, match in (
        ("nowhere", None, r"data folder .*nowhere: not a folder; run `petseg data get`, or name one \(--"),
        ("images.txt", "images.txt", r"images.txt: not a folder; .* or an archive \(\.zip, \.tar, "),
        ("images.tar.gz", "images.tar.gz", r"images.tar.gz is damaged or only half downloaded"),
        ("", None, r": annotations\.tar\.gz missing; wanted images/ and annotations/, or the two archives"),
        (
            "empty",
            "empty/file",
            r"empty: no labelled images that petseg knows; wanted images/ and annotations/trimaps/ of",
        ),
        ("second", "second/annotations.tar", r": images\.tar\.gz missing;"),
        ("hollow", "hollow/annotations/trimaps/file", r"hollow: no images/\*\.jpg in it; wanted the official layout"),
        ("copied", None, r"no labelled images that petseg knows"),
    ):
        if file is not None:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes(b"x")
        refused(match, open_dataset, tmp_path / name)
    (tmp_path / "file").write_text("x")
    with pytest.raises(PetsegError, match=r"^data folder .*: cannot be written \(Not a .*\); choose another \(--da"):
        get_data(tmp_path / "file" / "data")
    monkeypatch.setenv("PETSEG_CACHE", str(tmp_path / "file" / "cache"))
    for call in (synthetic_data, lambda: open_dataset(archives)):
        refused(r"^[^\n]*set PETSEG_CACHE$", call)


def test_find_data_takes_given_then_the_variable_then_the_download(tmp_path, monkeypatch):
    downloaded = tmp_path / "downloaded"
    monkeypatch.setattr(sources, "default_data_folder", lambda: downloaded)
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


def test_synthetic_data_is_drawn_once(cache_folder, monkeypatch):
    monkeypatch.setattr(sources, "SYNTHETIC_PER_BREED", 2)
    target = cache_folder / "synthetic_pets" / f"2-v{sources.SYNTHETIC_VERSION}"
    stale = target.with_name(f".{target.name}.tmp") / "images"
    stale.mkdir(parents=True)  # a killed call's
    (stale / "beagle_77.jpg").write_bytes(b"x")
    assert synthetic_data() == target
    status = target.stat()
    dataset = open_dataset(target)
    assert (dataset.provenance, dataset.official) == (oxford_pets.SYNTHETIC, False)
    assert (len(dataset.samples), dataset.skipped) == (74, {})
    assert len({sample.group for sample in dataset.samples}) == 37
    assert synthetic_data() == target
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    assert not stale.exists()
    monkeypatch.chdir(target.parent)
    assert open_dataset(Path(target.name)).provenance == oxford_pets.SYNTHETIC


@pytest.mark.parametrize("kind", ["zip", "gztar"])
@pytest.mark.parametrize("below", ["", "my"])
def test_an_archive_of_a_folder_is_read_as_the_folder_is(kind, below, eight_pets, tmp_path, cache_folder):
    place = tmp_path / "packed" / below
    shutil.copytree(eight_pets, place / "deep" / "my" if below else place / "deep")
    file = Path(shutil.make_archive(str(tmp_path / "my"), kind, place / "deep"))
    dataset = open_dataset(file)
    assert [sample.id for sample in dataset.samples] == [sample.id for sample in open_dataset(eight_pets).samples]
    folder = unpacked(file)
    assert (folder.name, cache_folder in folder.parents) == ("my", True)
    assert open_dataset(file).samples == dataset.samples
    assert unpacked(eight_pets) == eight_pets


def test_groups_are_wanted_where_splits_are_drawn_and_not_of_other_images(eight_pets, tmp_path):
    lost = DataConfig(groups="no such name")
    folder = shutil.copytree(eight_pets, tmp_path / "pets")
    refused(r"data\.groups 'no such name' finds nothing in 8 of 8 image names", open_dataset, folder, lost)
    assert open_dataset(folder, lost, trained_on="others").splits.keys() == {"train", "val", "test"}
    assert open_dataset(folder, lost, splits={"test": ("strange",)}).by_id.keys() == open_dataset(folder).by_id.keys()
