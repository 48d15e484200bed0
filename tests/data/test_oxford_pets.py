"""Reading a folder in the official layout, opening its pairs trap by trap, and what a task calls a pixel."""

from __future__ import annotations

import io
import shutil
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from petseg.data.oxford_pets import (
    CLASS_COLOURS,
    IGNORE,
    Pet,
    breed_of,
    get_task,
    open_pair,
    open_trimap,
    read_contents,
    read_trimap,
    species_of,
)
from petseg.data.synthetic import CATS, DOGS, draw_pet, make_pets
from petseg.errors import PetsegError
from tests.data.traps import TRAPS, make_trapped_pets


@pytest.fixture(scope="module")
def trapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trapped_pets(tmp_path_factory.mktemp("trapped"))


@pytest.fixture(scope="module")
def pets(trapped: Path) -> dict[str, Pet]:
    return {pet.name: pet for pet in read_contents(trapped).pets}


@pytest.fixture
def copy(trapped: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(trapped, tmp_path / "copy")


def of_kind(*kinds: str) -> tuple[str, ...]:
    names = tuple(sorted(name for name, kind in TRAPS.items() if kind in kinds))
    assert names, kinds
    return names


def a_pet(folder: Path, image: bytes | Image.Image, trimap: np.ndarray | bytes) -> Pet:
    """Writes one pair and returns it."""
    pet = Pet("beagle_1", folder / "beagle_1.jpg", folder / "beagle_1.png", "beagle", 2, "trainval")
    if isinstance(image, bytes):
        pet.image.write_bytes(image)
    else:
        image.save(pet.image, "PNG")
    if isinstance(trimap, bytes):
        pet.trimap.write_bytes(trimap)
    else:
        Image.fromarray(trimap).save(pet.trimap)
    return pet


def jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def nearest(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes by taking, for the middle of each new pixel, the old pixel below it."""
    rows = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * labels.shape[1] / width).astype(int)
    return labels[rows[:, None], columns]


def grey(value: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.full((height, width), value, np.uint8)


# Reading a folder


def test_pairs_are_sorted_and_carry_breed_species_and_list(trapped):
    contents = read_contents(trapped)
    names = [pet.name for pet in contents.pets]
    single = of_kind("image without trimap", "trimap without image", "listed without image")
    pictures = {name for name in TRAPS if "." not in name}
    assert names == sorted({"Abyssinian_1", "Abyssinian_2", "beagle_1", "beagle_2"} | (pictures - set(single)))
    assert contents.folder == trapped
    for pet in contents.pets:
        assert pet.image == trapped / "images" / f"{pet.name}.jpg"
        assert pet.trimap == trapped / "annotations" / "trimaps" / f"{pet.name}.png"
        assert (pet.breed, pet.species) == (("Abyssinian", 1) if pet.name[0] == "A" else ("beagle", 2))
    listed = {pet.name: pet.listed for pet in contents.pets}
    assert {name for name in names if listed[name] == "test"} == {"Abyssinian_2", "beagle_2"}
    assert {name for name in names if listed[name] == "none"} == {*of_kind("image in no list")}
    assert {*listed.values()} == {"trainval", "test", "none"}


def test_strays_by_kind(trapped):
    assert read_contents(trapped).strays == {
        "hidden file among the images": of_kind("hidden file among the images"),
        "not a .jpg among the images": of_kind("mat file among the images"),
        "hidden file among the trimaps": of_kind("hidden file beside the trimaps"),
        "image without trimap": of_kind("image without trimap"),
        "trimap without image": of_kind("trimap without image"),
        "listed, but no image": of_kind("listed without image"),
        "pair in no list": of_kind("image in no list"),
    }


def test_a_file_that_is_no_png_among_the_trimaps(copy):
    (copy / "annotations" / "trimaps" / "Thumbs.db").write_bytes(b"x")
    assert read_contents(copy).strays["not a .png among the trimaps"] == ("Thumbs.db",)


def test_a_clean_folder_has_no_strays(tmp_path):
    assert read_contents(make_pets(tmp_path, per_breed=2, breeds=2, size=32)).strays == {}


def test_species_is_the_third_column_of_the_list(copy):
    """Each row is made so that the name, the class id and the breed id all say the other species."""
    (copy / "annotations" / "list.txt").write_text("#NAME CLASS SPECIES BREED\nAbyssinian_1 1 2 1\nbeagle_1 2 1 2\n")
    species = {pet.name: pet.species for pet in read_contents(copy).pets}
    assert species["Abyssinian_1"] == 2
    assert species["beagle_1"] == 1
    assert species["Abyssinian_911"] == 1  # unlisted: the name decides
    assert species["beagle_911"] == 2


@pytest.mark.parametrize("breed", CATS + DOGS)
def test_breed_and_species_from_a_name(breed):
    for name in (f"{breed}_7", f"{breed}_108"):
        assert breed_of(name) == breed
        assert species_of(name) == (1 if breed in CATS else 2)


@pytest.mark.parametrize("place", ["images", "annotations/trimaps"])
def test_no_images_or_no_trimaps(copy, place):
    wanted = {"images": r"no images/\*\.jpg in it", "annotations/trimaps": r"no annotations/trimaps/\*\.png in it"}[
        place
    ]
    for path in (copy / place).iterdir():
        if not path.name.startswith("."):
            path.unlink()
    assert any((copy / place).iterdir())  # the hidden file stays, and does not count
    with pytest.raises(PetsegError, match=f"data folder .*: {wanted}; wanted the official layout .* `petseg data get`"):
        read_contents(copy)
    shutil.rmtree(copy / place)
    with pytest.raises(PetsegError, match=wanted):
        read_contents(copy)


@pytest.mark.parametrize("name", ["list", "trainval", "test"])
def test_a_list_is_missing(copy, name):
    (copy / "annotations" / f"{name}.txt").unlink()
    with pytest.raises(
        PetsegError, match=rf"annotations/{name}\.txt is missing; unpack annotations\.tar\.gz completely"
    ):
        read_contents(copy)


@pytest.mark.parametrize("name", ["list", "trainval", "test"])
def test_a_list_with_a_short_line(copy, name):
    with (copy / "annotations" / f"{name}.txt").open("a") as file:
        file.write("\n# a comment\nbeagle_77 5\n")
    with pytest.raises(
        PetsegError, match=rf"{name}\.txt: line 'beagle_77 5' has 2 fields; wanted name, class, species, br"
    ):
        read_contents(copy)


@pytest.mark.parametrize("line", [b"beagle_1 5 dog 4", b"beagle_1 5 7 4", b"b\xe4gle_1 5 2 4"])
def test_a_list_with_a_wrong_species_or_encoding(copy, line):
    (copy / "annotations" / "list.txt").write_bytes(line + b"\n")
    with pytest.raises(PetsegError, match=r"list\.txt"):
        read_contents(copy)


def test_two_images_of_one_name_are_told(copy):
    shutil.copy(copy / "images" / "beagle_1.jpg", copy / "images" / "beagle_1.jpeg")
    told = [name for names in read_contents(copy).strays.values() for name in names]
    assert {"beagle_1.jpg", "beagle_1.jpeg"} & {*told}


def test_capital_suffixes(tmp_path):
    folder = make_pets(tmp_path, per_breed=2, breeds=2, size=32)
    for path in [*(folder / "images").iterdir()]:
        path.rename(path.with_suffix(".JPG"))
    assert len(read_contents(folder).pets) == 4


# Opening a pair


def drawn(name: str) -> tuple[np.ndarray, np.ndarray]:
    breed, _, number = name.rpartition("_")
    return draw_pet(breed, int(number))


def test_a_sound_pair(pets):
    pair = open_pair(pets["beagle_1"])
    image, trimap = drawn("beagle_1")
    assert pair.notes == ()
    assert pair.image.mode == "RGB"
    assert np.abs(np.asarray(pair.image, int) - image).mean() < 6  # JPEG's loss
    assert pair.trimap.dtype == np.uint8
    np.testing.assert_array_equal(pair.trimap, trimap)


USABLE = {
    "RGB PNG named .jpg": ("PNG named .jpg",),
    "RGBA PNG named .jpg": ("PNG named .jpg", "mode RGBA, converted to RGB"),
    "GIF named .jpg": ("GIF named .jpg", "mode P, converted to RGB"),
    "palette PNG with transparency named .jpg": ("PNG named .jpg", "mode P, converted to RGB"),
    "CMYK JPEG": ("mode CMYK, converted to RGB",),
    "16-bit grey PNG named .jpg": ("PNG named .jpg", "16-bit, scaled to 8"),
    "EXIF orientation": ("EXIF rotation, not applied (the trimap has none)",),
    "trimap without pet": ("trimap without any pet",),
    "trimap of half the size": ("trimap of another size, resized (nearest)",),
    "image in no list": (),
}
"""Kind of trap -> what `open_pair` notes."""


@pytest.mark.parametrize(("kind", "notes"), USABLE.items())
@pytest.mark.parametrize("draft", [None, 32])
def test_notes_of_every_usable_trap(pets, kind, notes, draft):
    for name in of_kind(kind):
        pair = open_pair(pets[name], draft=draft)
        assert pair.notes == notes
        assert pair.image.mode == "RGB"
        with Image.open(pets[name].image) as opened:
            assert pair.trimap.shape == (opened.height, opened.width)
        assert {*np.unique(pair.trimap)} <= {1, 2, 3}
        np.testing.assert_array_equal(open_trimap(pets[name]), pair.trimap)


@pytest.mark.parametrize("kind", ["RGB PNG named .jpg", "RGBA PNG named .jpg"])
def test_pixels_of_a_png_are_the_drawn_ones(pets, kind):
    """Alpha, a ramp from 0 to 255 here, neither darkens nor whitens: the colours below it are kept."""
    (name,) = of_kind(kind)
    image, _ = drawn(name)
    np.testing.assert_array_equal(np.asarray(open_pair(pets[name]).image), image)


def test_pixels_of_a_palette(pets):
    (name,) = of_kind("palette PNG with transparency named .jpg")
    quantized = Image.fromarray(drawn(name)[0]).quantize(64)
    assert np.any(np.asarray(quantized) == 0)  # the transparent entry is in use
    np.testing.assert_array_equal(np.asarray(open_pair(pets[name]).image), np.asarray(quantized.convert("RGB")))


@pytest.mark.parametrize(("kind", "tolerance"), [("GIF named .jpg", 10), ("CMYK JPEG", 6)])
def test_pixels_of_a_gif_and_of_cmyk(pets, kind, tolerance):
    (name,) = of_kind(kind)
    image, _ = drawn(name)
    assert np.abs(np.asarray(open_pair(pets[name]).image, int) - image).mean() < tolerance


def test_16_bits_are_scaled(pets, tmp_path):
    (name,) = of_kind("16-bit grey PNG named .jpg")
    wanted = np.asarray(Image.fromarray(drawn(name)[0]).convert("RGB").convert("L").convert("RGB"))
    np.testing.assert_array_equal(np.asarray(open_pair(pets[name]).image), wanted)
    values = np.array([[0, 128, 129, 257], [25_700, 32_768, 65_278, 65_535]], np.uint16)
    pair = open_pair(a_pet(tmp_path, Image.fromarray(values), grey(1, 2, 4)))
    assert np.asarray(pair.image)[..., 0].tolist() == [[0, 0, 1, 1], [100, 128, 254, 255]]


def test_exif_rotation_is_not_applied(pets):
    (name,) = of_kind("EXIF orientation")
    image, trimap = drawn(name)
    assert image.shape[0] != image.shape[1]
    pair = open_pair(pets[name])
    assert np.abs(np.asarray(pair.image, int) - np.rot90(image)).mean() < 6
    np.testing.assert_array_equal(pair.trimap, np.rot90(trimap))


UNUSABLE = {
    "truncated JPEG": r"^NAME: image cannot be decoded \(image file is truncated",
    "empty image file": r"^NAME: image cannot be decoded \(cannot identify image file",
    "trimap of another aspect": r"^NAME: trimap is \d+x\d+, image \d+x\d+; different shapes cannot be matched$",
    "trimap of other values": (
        r"^NAME\.png holds values \{0, 4\}; a trimap holds 1 pet, 2 background, 3 border: was it remapped already\?$"
    ),
}
"""Kind of trap -> the reason that `open_pair` gives."""


@pytest.mark.parametrize(("kind", "match"), UNUSABLE.items())
def test_unusable_traps(pets, kind, match):
    (name,) = of_kind(kind)
    for draft in (None, 32):
        with pytest.raises(PetsegError, match=match.replace("NAME", name)):
            open_pair(pets[name], draft=draft)


def test_every_trap_of_a_pair_is_tested_here():
    unpaired = {"image without trimap", "trimap without image", "listed without image"}
    assert {kind for name, kind in TRAPS.items() if "." not in name} == {*USABLE, *UNUSABLE} | unpaired


def test_open_trimap_refuses_what_is_no_picture_and_what_does_not_fit(pets):
    (name,) = of_kind("empty image file")
    with pytest.raises(PetsegError, match=rf"^{name}: image cannot be decoded"):
        open_trimap(pets[name])
    (name,) = of_kind("trimap of another aspect")
    with pytest.raises(PetsegError, match="different shapes cannot be matched"):
        open_trimap(pets[name])


def test_a_reason_names_no_folder(pets):
    (name,) = of_kind("empty image file")
    with pytest.raises(PetsegError) as caught:
        open_pair(pets[name])
    assert str(pets[name].image.parent) not in str(caught.value)


def test_a_trimap_of_half_the_size_is_enlarged_nearest(pets):
    (name,) = of_kind("trimap of half the size")
    small = read_trimap(pets[name].trimap)
    pair = open_pair(pets[name])
    height, width = pair.trimap.shape
    assert (height, width) == (pair.image.height, pair.image.width)
    assert small.shape == (height // 2, width // 2)
    np.testing.assert_array_equal(pair.trimap, nearest(small, height, width))


@pytest.mark.parametrize(
    ("width", "fits"), [(100, True), (101, True), (99, True), (103, False), (97, False), (50, False)]
)
def test_how_far_a_trimap_may_differ(tmp_path, width, fits):
    pet = a_pet(tmp_path, jpeg(100, 100), grey(1, 100, width))
    if fits:
        assert open_pair(pet).trimap.shape == (100, 100)
    else:
        with pytest.raises(
            PetsegError, match=rf"trimap is {width}x100, image 100x100; different shapes cannot be matched"
        ):
            open_pair(pet)


@pytest.mark.parametrize(
    ("trimap", "match"),
    [
        (b"", r"^beagle_1: trimap cannot be decoded \(cannot identify"),
        (b"\x89PNG\r\n\x1a\n", r"^beagle_1: trimap cannot be decoded"),
        (np.ones((8, 8, 3), np.uint8), r"^beagle_1: trimap has shape \(8, 8, 3\); a trimap has one channel$"),
        (grey(0), r"^beagle_1\.png holds values \{0\}; a trimap holds 1 pet, .* remapped already\?$"),
        (grey(255), r"holds values \{255\};"),
        (np.arange(64, dtype=np.uint8).reshape(8, 8), r"holds values \{0, 1, 2, 3, 4, 5, \.\.\.\};"),
    ],
)
def test_unusable_trimaps(tmp_path, trimap, match):
    with pytest.raises(PetsegError, match=match):
        open_pair(a_pet(tmp_path, jpeg(8, 8), trimap))


def test_a_trimap_of_16_bits_or_with_a_palette_is_its_values(tmp_path):
    values = np.array([[1, 2], [3, 1]], np.uint8)
    pet = a_pet(tmp_path, jpeg(2, 2), values)
    Image.fromarray(values.astype(np.uint16)).save(pet.trimap)
    np.testing.assert_array_equal(read_trimap(pet.trimap), values)
    palette = Image.fromarray(values)
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    palette.save(pet.trimap)
    got = read_trimap(pet.trimap)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, values)


def huge_png(side: int) -> bytes:
    """A PNG of a few bytes whose header claims `side` x `side` pixels."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


@pytest.mark.parametrize("side", [10_000, 50_000])  # Pillow warns at the first, raises at the second
def test_a_picture_that_claims_too_many_pixels(tmp_path, side):
    with pytest.raises(PetsegError, match=r"^beagle_1: image cannot be decoded \(Image size .* exceeds limit"):
        open_pair(a_pet(tmp_path, huge_png(side), grey(1)))


def test_a_trimap_that_claims_too_many_pixels(tmp_path):
    pet = a_pet(tmp_path, jpeg(8, 8), huge_png(50_000))
    with pytest.raises(PetsegError, match=r"^beagle_1: trimap cannot be decoded"):
        open_pair(pet)
    pet = a_pet(tmp_path, huge_png(50_000), grey(1))
    with pytest.raises(PetsegError, match=r"^beagle_1: image cannot be decoded"):
        open_trimap(pet)


def test_opening_in_threads_leaves_the_warning_filters_alone(tmp_path, monkeypatch):
    """Two threads are held inside open_pair and leave it in the order in which they came."""
    pet = a_pet(tmp_path, jpeg(8, 8), grey(1))
    before = list(warnings.filters)
    both, first_is_out, threads, lock = threading.Barrier(2, timeout=20), threading.Event(), [], threading.Lock()
    really_open = Image.open

    def held(path: Path, *args: object, **named: object) -> Image.Image:
        if Path(path).suffix == ".jpg":
            with lock:
                threads.append(threading.get_ident())
            both.wait()
            if threads[0] != threading.get_ident():
                assert first_is_out.wait(20)
        elif threads[0] == threading.get_ident():  # the trimap's turn: the image is done
            first_is_out.set()
        return really_open(path, *args, **named)

    monkeypatch.setattr(Image, "open", held)
    try:
        with ThreadPoolExecutor(2) as pool:
            assert all(pair.notes == () for pair in pool.map(open_pair, [pet, pet]))
        assert list(warnings.filters) == before
    finally:
        warnings.filters[:] = before


# Draft


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("draft")


@settings(max_examples=60, deadline=None)
@given(st.integers(16, 300), st.integers(16, 300), st.integers(8, 200))
def test_draft_keeps_the_size_asked_for_and_the_trimaps_own(scratch, width, height, draft):
    pet = a_pet(scratch, jpeg(width, height), grey(1, height, width))
    pair = open_pair(pet, draft=draft)
    if min(width, height) >= draft:
        assert min(pair.image.size) >= draft
        # one more halving would have gone below: the reduction is used, up to 8 in each direction
        assert min(pair.image.size) <= max(2 * draft, -(-min(width, height) // 8)) + 1
    else:
        assert pair.image.size == (width, height)
    assert pair.trimap.shape == (height, width)
    assert pair.notes == ()


def test_draft_reduces_a_jpeg_and_leaves_a_png(tmp_path):
    pet = a_pet(tmp_path, jpeg(400, 300), grey(1, 300, 400))
    assert open_pair(pet).image.size == (400, 300)
    assert open_pair(pet, draft=150).image.size == (200, 150)
    assert open_pair(pet, draft=151).image.size == (400, 300)
    pet = a_pet(tmp_path, Image.new("RGB", (400, 300)), grey(1, 300, 400))
    assert open_pair(pet, draft=150).image.size == (400, 300)


# Tasks

NONE = [IGNORE] * 4


@pytest.mark.parametrize(
    ("name", "border", "classes", "cat", "dog"),
    [
        ("trimap", "pet", ("pet", "background", "border"), [IGNORE, 0, 1, 2], [IGNORE, 0, 1, 2]),
        ("pet", "pet", ("background", "pet"), [IGNORE, 1, 0, 1], [IGNORE, 1, 0, 1]),
        ("pet", "background", ("background", "pet"), [IGNORE, 1, 0, 0], [IGNORE, 1, 0, 0]),
        ("pet", "ignore", ("background", "pet"), [IGNORE, 1, 0, IGNORE], [IGNORE, 1, 0, IGNORE]),
        ("species", "pet", ("background", "cat", "dog"), [IGNORE, 1, 0, IGNORE], [IGNORE, 2, 0, IGNORE]),
    ],
)
def test_tasks(name, border, classes, cat, dog):
    task = get_task(name, border)
    assert (task.name, task.classes) == (name, classes)
    table = task.table()
    assert table.dtype == np.uint8
    assert table.tolist() == [NONE, cat, dog]


@pytest.mark.parametrize("name", ["trimap", "species"])
@pytest.mark.parametrize("border", ["pet", "background", "ignore"])
def test_border_matters_in_task_pet_alone(name, border):
    assert get_task(name, border) == get_task(name)


def test_border_counts_as_pet_unless_told_otherwise():
    assert get_task("pet") == get_task("pet", "pet")


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("trimap", [[0x00, 0x72, 0xB2], [0xBB, 0xBB, 0xBB], [0xE6, 0x9F, 0x00]]),
        ("pet", [[0xBB, 0xBB, 0xBB], [0x00, 0x72, 0xB2]]),
        ("species", [[0xBB, 0xBB, 0xBB], [0xCC, 0x79, 0xA7], [0x00, 0x9E, 0x73]]),
    ],
)
def test_palettes(name, rows):
    palette = get_task(name).palette()
    assert palette.dtype == np.uint8
    assert palette.tolist() == rows


def test_colours_differ():
    assert len({*CLASS_COLOURS.values()}) == len(CLASS_COLOURS)
