"""A folder in the official layout: its pairs, species, breeds and lists, its trimaps, and what a task calls a pixel."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from petseg.config import OxfordPetsConfig
from petseg.data import oxford_pets
from petseg.data.dataset import IGNORE, SUSPECT
from petseg.data.oxford_pets import breed_of, get_task, open_oxford_pets, read_contents, read_trimap, species_of
from petseg.data.synthetic import CATS, DOGS
from tests.conftest import refused
from tests.data.traps import TRAPS


def of_kind(kind):
    return tuple(sorted(name for name, set_trap in TRAPS.items() if set_trap == kind))


def test_pairs_are_sorted_and_carry_breed_species_and_list_and_other_files_are_skipped_by_kind(trapped, eight_pets):
    contents = read_contents(trapped)
    names = [sample.id for sample in contents.samples]
    single = {*of_kind("image without trimap"), *of_kind("trimap without image"), *of_kind("listed without image")}
    pairs = {name for name in TRAPS if "." not in name} - single
    assert names == sorted({"Abyssinian_1", "Abyssinian_2", "beagle_1", "beagle_2"} | pairs)
    assert list(contents.species) == list(contents.listed) == names
    for sample in contents.samples:
        assert sample.image == trapped / "images" / f"{sample.id}.jpg"
        assert sample.label == trapped / "annotations" / "trimaps" / f"{sample.id}.png"
        cat = sample.id[0] == "A"
        assert (sample.group, contents.species[sample.id]) == (("Abyssinian", 1) if cat else ("beagle", 2))
    assert {name for name in names if contents.listed[name] == "test"} == {"Abyssinian_2", "beagle_2"}
    assert {name for name in names if contents.listed[name] == "none"} == {*of_kind("image in no list")}
    assert {*contents.listed.values()} == {"trainval", "test", "none"}
    assert read_contents(eight_pets).skipped == {}
    assert contents.skipped == {
        "hidden file among the images": of_kind("hidden file among the images"),
        "not a .jpg among the images": of_kind("mat file among the images"),
        "hidden file among the trimaps": of_kind("hidden file beside the trimaps"),
        "image without trimap": of_kind("image without trimap"),
        "trimap without image": of_kind("trimap without image"),
        "listed, but no image": of_kind("listed without image"),
        "pair in no list": of_kind("image in no list"),
    }


def test_capital_suffixes_and_more_files_that_are_skipped(copied):
    images, trimaps = copied / "images", copied / "annotations" / "trimaps"
    shutil.copy(images / "beagle_1.jpg", images / "beagle_1.JPEG")
    shutil.copy(trimaps / "beagle_1.png", trimaps / "beagle_1.PNG")
    (images / "beagle_2.jpg").rename(images / "beagle_2.JPG")
    (trimaps / "Thumbs.db").write_bytes(b"x")
    (images / "folder.jpg").mkdir()
    (trimaps / "folder.png").mkdir()
    contents = read_contents(copied)
    assert len(contents.samples) == 8
    assert contents.skipped == {
        "not a .jpg among the images": ("folder.jpg",),
        "second image of one name": ("beagle_1.jpg",),
        "not a .png among the trimaps": ("Thumbs.db", "folder.png"),
        "second trimap of one name": ("beagle_1.png",),
    }


def test_species_is_the_third_column_of_the_list_else_the_name_decides(copied_traps):
    """Each row is made so that the name, the class id and the breed id all say the other species."""
    path = copied_traps / "annotations" / "list.txt"
    path.write_text("#NAME CLASS SPECIES BREED\nAbyssinian_1 1 2 1\nbeagle_1 2 1 2\n")
    species = read_contents(copied_traps).species
    assert [species[f"{breed}_{n}"] for n in (1, 911) for breed in ("Abyssinian", "beagle")] == [2, 1, 1, 2]
    for breed in CATS + DOGS:
        for name in (f"{breed}_7", f"{breed}_108"):
            assert (breed_of(name), species_of(name)) == (breed, 1 if breed in CATS else 2)


@pytest.mark.parametrize("files", ["images/*.jpg", "annotations/trimaps/*.png"])
def test_no_images_or_no_trimaps(copied_traps, files):
    place = (copied_traps / files).parent
    for path in place.glob("[!.]*"):
        path.unlink()
    assert any(place.iterdir())  # the hidden file stays, and does not count
    match = rf"data folder .*: no {re.escape(files)} in it; wanted the official layout .* `petseg data get`"
    for remove in (lambda: None, lambda: shutil.rmtree(place)):
        remove()
        refused(match, read_contents, copied_traps)


@pytest.mark.parametrize("name", ["list", "trainval", "test"])
def test_a_list_that_is_missing_or_has_a_wrong_line(copied, name):
    path = copied / "annotations" / f"{name}.txt"
    for line, match in (
        (b"# a comment\nbeagle_77 5", r"line 'beagle_77 5' has 2 fields; wanted name, class, species"),
        (b"beagle_1 5 dog 4", r"beagle_1 has species 'dog'; wanted 1 cat or 2 dog"),
        (b"beagle_1 5 7 4", r"beagle_1 has species '7'; wanted 1 cat or 2 dog"),
        (b"b\xe4gle_1 5 2 4", r"cannot be read \(.*decode.*; unpack annotations"),
    ):
        if name == "list" or "has species" not in match:
            path.write_bytes(line + b"\n")
            refused(rf"{name}\.txt: {match}", read_contents, copied)
    path.unlink()
    refused(rf"annotations/{name}\.txt: cannot be read \(.*No such file.*; unpack ann", read_contents, copied)


def test_a_trimap_of_16_bits_or_with_a_palette_is_its_values_and_others_are_refused(tmp_path):
    values, path = np.array([[1, 2], [3, 1]], np.uint8), tmp_path / "beagle_1.png"
    palette = Image.fromarray(values)
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    for trimap in (Image.fromarray(values.astype(np.uint16)), palette):
        trimap.save(path)
        assert read_trimap(path).dtype == np.uint8
        np.testing.assert_array_equal(read_trimap(path), values)
    for values, match in (
        (np.zeros((8, 8), np.uint8), r"^beagle_1\.png holds values \{0\}; a trimap holds 1 pet, .* remapped already"),
        (np.full((8, 8), 255, np.uint8), r"holds values \{255\};"),
        (np.full((8, 8), 257, np.uint16), r"holds values \{257\};"),
        (np.arange(64, dtype=np.uint8).reshape(8, 8), r"holds values \{0, 1, 2, 3, 4, 5, \.\.\.\};"),
        (np.ones((8, 8, 3), np.uint8), r"^beagle_1: trimap has shape \(8, 8, 3\); a trimap has one channel$"),
    ):
        Image.fromarray(values).save(tmp_path / "beagle_1.png")
        refused(match, read_trimap, tmp_path / "beagle_1.png")


PETS = [("pet", "#0072B2", "foreground"), ("background", "#BBBBBB", "background"), ("border", "#E69F00", "boundary")]
CAT_DOG = [("cat", "#CC79A7", "foreground"), ("dog", "#009E73", "foreground")]
TASKS = [
    ("trimap", PETS, [0, 1, 2], [0, 1, 2]),
    ("pet", [PETS[1], PETS[0]], [1, 0, 1], [1, 0, 1]),
    ("species", [PETS[1], *CAT_DOG], [1, 0, IGNORE], [2, 0, IGNORE]),
    ("trimap_species", [*CAT_DOG, *PETS[1:]], [0, 2, 3], [1, 2, 3]),
]


@pytest.mark.parametrize(("task", "classes", "cat", "dog"), TASKS)
def test_tasks(task, classes, cat, dog):
    got = get_task(OxfordPetsConfig(task=task))
    assert [(entry.name, entry.colour, entry.role) for entry in got.classes] == classes
    assert (got.table.dtype, got.table.tolist()) == (np.uint8, [[IGNORE] * 4, [IGNORE, *cat], [IGNORE, *dog]])
    merged = got.merge and ([entry.name for entry in got.merge.classes], got.merge.of)
    assert merged == ((["pet", "background", "border"], (0, 0, 1, 2)) if task == "trimap_species" else None)


@pytest.mark.parametrize(("border", "becomes"), [("pet", 1), ("background", 0), ("ignore", IGNORE)])
def test_border_matters_in_task_pet_alone(border, becomes):
    assert get_task(OxfordPetsConfig(task="pet", border=border)).table[1:, 3].tolist() == [becomes, becomes]
    for task in ("trimap", "species", "trimap_species"):
        other, usual = get_task(OxfordPetsConfig(task=task, border=border)), get_task(OxfordPetsConfig(task=task))
        assert (other.classes, other.table.tolist()) == (usual.classes, usual.table.tolist())


@pytest.mark.parametrize("protocol", ["official", "seed"])
def test_dataset(trapped, protocol):
    contents = read_contents(trapped)
    config = OxfordPetsConfig(task="trimap_species", protocol=protocol)
    dataset = open_oxford_pets(trapped, config, provenance="a folder")
    assert (dataset.name, dataset.provenance, dataset.official) == ("Oxford-IIIT Pet", "a folder", False)
    assert (dataset.samples, dataset.skipped) == (contents.samples, contents.skipped)
    splits = oxford_pets.split_names(list(contents.listed), contents.listed, protocol)
    assert dataset.splits == {part: tuple(names) for part, names in splits.items()}
    assert dataset.loss_sizes == ((200,) if protocol == "seed" else ())
    assert [entry.name for entry in dataset.scored_classes] == ["pet", "background", "border"]
    assert len(dataset.classes) == 4
    for name, pet in (("Abyssinian_1", 0), ("beagle_1", 1)):
        label, trimap = dataset.read_label(dataset.by_id[name]), read_trimap(dataset.by_id[name].label)
        assert label.notes == ()
        np.testing.assert_array_equal(label.ids, np.choose(trimap - 1, [pet, 2, 3]))
    (empty,) = of_kind("trimap without pet")
    assert dataset.read_label(dataset.by_id[empty]).notes == (SUSPECT,)


def test_fingerprint_tells_tasks_and_species_apart(copied):
    def fingerprint(**options):
        return open_oxford_pets(copied, OxfordPetsConfig(**options), provenance="").fingerprint

    prints = [fingerprint(task=task) for task in ("trimap", "pet", "species", "trimap_species")]
    prints += [fingerprint(task="pet", border=border) for border in ("background", "ignore")]
    path = copied / "annotations" / "list.txt"
    path.write_text(path.read_text().replace("beagle_1 5 2 4", "beagle_1 5 1 4"))
    prints.append(fingerprint())
    assert len(set(prints)) == len(prints)
    assert fingerprint() == fingerprint(protocol="seed"), "splits share a cache"
