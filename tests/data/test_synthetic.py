"""The synthetic dataset has the official layout and plausible images; the traps of the tests are what they claim."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg.data.synthetic import CATS, DOGS, draw_pet, make_pets
from petseg.errors import PetsegError
from tests.data.traps import TRAPS, make_trapped_pets


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pets(tmp_path_factory.mktemp("pets"))


@pytest.fixture(scope="module")
def trapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trapped_pets(tmp_path_factory.mktemp("trapped"))


def listed(folder: Path, name: str) -> list[str]:
    rows = (folder / "annotations" / f"{name}.txt").read_text().splitlines()
    return [row for row in rows if not row.startswith("#")]


def listed_names(folder: Path, name: str) -> set[str]:
    return {row.split()[0] for row in listed(folder, name)}


def stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir()}


def trimap_of(folder: Path, name: str) -> np.ndarray:
    with Image.open(folder / "annotations" / "trimaps" / f"{name}.png") as trimap:
        return np.asarray(trimap)


def test_layout(pets):
    assert sorted(path.name for path in pets.iterdir()) == ["annotations", "images"]
    assert sorted(path.name for path in (pets / "annotations").iterdir()) == [
        *("list.txt", "test.txt", "trainval.txt", "trimaps"),
    ]
    assert {path.suffix for path in (pets / "images").iterdir()} == {".jpg"}
    assert stems(pets / "images") == stems(pets / "annotations" / "trimaps") == listed_names(pets, "list")
    assert len(listed_names(pets, "list")) == 36


def test_lists(pets):
    assert (pets / "annotations" / "list.txt").read_text().startswith("#Image CLASS-ID SPECIES BREED ID\n")
    rows = listed(pets, "list")
    assert rows[0] == "Abyssinian_1 1 1 1"
    assert "beagle_1 5 2 4" in rows
    for row in rows:
        name, class_id, species, breed_id = row.split()
        breed = name.rpartition("_")[0]
        assert species == ("1" if name[0].isupper() else "2")
        assert breed == (CATS if species == "1" else DOGS)[int(breed_id) - 1]
        assert 1 <= int(class_id) <= 37
    trainval, test = listed(pets, "trainval"), listed(pets, "test")
    assert sorted(trainval + test) == sorted(rows)
    assert len(trainval) == len(test) == 18
    assert {row.split()[1] for row in trainval} == {row.split()[1] for row in test}


def test_all_breeds_have_the_official_ids(tmp_path):
    make_pets(tmp_path, per_breed=2, breeds=37, size=32)
    rows = [row.split() for row in listed(tmp_path, "trainval")]
    assert [int(row[1]) for row in rows] == list(range(1, 38))
    assert [int(row[3]) for row in rows if row[2] == "1"] == list(range(1, 13))
    assert [int(row[3]) for row in rows if row[2] == "2"] == list(range(1, 26))
    assert rows[36][0] == "yorkshire_terrier_1"


def test_images_and_trimaps_fit(pets):
    sizes = []
    for path in (pets / "images").iterdir():
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            image.load()
            sizes.append(image.size)
        trimap = trimap_of(pets, path.stem)
        assert trimap.dtype == np.uint8
        assert trimap.shape == (image.height, image.width)
        assert set(np.unique(trimap)) == {1, 2, 3}
    assert all(136 <= max(size) <= 184 for size in sizes)
    assert any(width > height for width, height in sizes)
    assert any(width < height for width, height in sizes)
    assert any(width % 2 and height % 2 for width, height in sizes)
    assert len(set(sizes)) > 20


def test_shares_of_classes_are_near_the_official_ones(pets):
    counts = np.array(
        [np.bincount(trimap_of(pets, name).ravel(), minlength=4)[1:] for name in listed_names(pets, "list")]
    )
    pet, background, border = counts.sum(0) / counts.sum()
    assert 0.26 < pet < 0.34
    assert 0.52 < background < 0.63
    assert 0.10 < border < 0.15
    assert (counts[:, 0] / counts.sum(1)).min() > 0.10


def test_border_lies_between_pet_and_background(pets):
    for name in listed_names(pets, "list"):
        trimap = trimap_of(pets, name)
        for one, other in ((trimap[1:], trimap[:-1]), (trimap[:, 1:], trimap[:, :-1])):
            assert not np.any((one == 1) & (other == 2))
            assert not np.any((one == 2) & (other == 1))


def test_colour_alone_does_not_find_the_pet(pets):
    """The best threshold on any one channel stays far from a segmentation."""
    pixels, is_pet = [], []
    for name in sorted(listed_names(pets, "list")):
        trimap = trimap_of(pets, name)
        with Image.open(pets / "images" / f"{name}.jpg") as image:
            pixels.append(np.asarray(image)[trimap != 3])
        is_pet.append(trimap[trimap != 3] == 1)
    colours, truth = np.concatenate(pixels), np.concatenate(is_pet)
    best = 0.0
    for channel in range(3):
        for threshold in range(16, 256, 16):
            for guess in (colours[:, channel] < threshold, colours[:, channel] >= threshold):
                best = max(best, (guess & truth).sum() / (guess | truth).sum())
    assert best < 0.5


def test_same_seed_same_pixels(pets, tmp_path):
    again = make_pets(tmp_path / "again", per_breed=3, breeds=4)
    other = make_pets(tmp_path / "other", per_breed=3, breeds=4, seed=1)
    for name in listed_names(again, "list"):  # a smaller set is a part of the larger one
        file = f"{name}.jpg"
        with Image.open(pets / "images" / file) as a, Image.open(again / "images" / file) as b:
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        np.testing.assert_array_equal(trimap_of(pets, name), trimap_of(again, name))
        with Image.open(again / "images" / file) as a, Image.open(other / "images" / file) as b:
            assert a.size != b.size or np.any(np.asarray(a) != np.asarray(b))


@pytest.mark.parametrize("size", [32, 97, 256])
def test_draw_pet_at_other_sizes(size):
    image, trimap = draw_pet("beagle", 7, size=size)
    assert image.dtype == trimap.dtype == np.uint8
    assert image.shape == (*trimap.shape, 3)
    assert abs(max(trimap.shape) / size - 1) < 0.18
    assert set(np.unique(trimap)) == {1, 2, 3}


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        ({"per_breed": 1}, "per_breed is 1; give one from 2 to 900"),
        ({"per_breed": 901}, "per_breed is 901; give one from 2 to 900"),
        ({"breeds": 1}, "breeds is 1; give one from 2 to 37"),
        ({"breeds": 38}, "breeds is 38; give one from 2 to 37"),
        ({"size": 31}, "size is 31; give one from 32 to 4096"),
        ({"seed": -1}, "seed is -1; give one from 0 to"),
    ],
)
def test_numbers_out_of_range(tmp_path, argument, match):
    with pytest.raises(PetsegError, match=match):
        make_pets(tmp_path / "pets", **argument)
    assert not (tmp_path / "pets").exists()


def test_unknown_breed():
    with pytest.raises(PetsegError, match="breed 'begle' is unknown; choose one of: beagle,"):
        draw_pet("begle", 1)


def of_kind(kind: str) -> str:
    (name,) = [name for name, got in TRAPS.items() if got == kind]
    return name


def test_every_trap_is_set_and_nothing_else(trapped, pets):
    """And the sound images are those of the dataset without traps."""
    sound = {f"{breed}_{number}" for breed in ("Abyssinian", "beagle") for number in (1, 2)}
    images = {name for name in TRAPS if "." not in name}
    no_image = {of_kind("trimap without image"), of_kind("listed without image")}
    no_trimap = {of_kind("image without trimap"), of_kind("listed without image")}
    wanted = {f"{name}.jpg" for name in (sound | images) - no_image}
    wanted |= {f"{name}.png" for name in (sound | images) - no_trimap}
    files = {path.name for path in [*(trapped / "images").iterdir(), *(trapped / "annotations/trimaps").iterdir()]}
    assert files == wanted | (set(TRAPS) - images)
    in_a_list = images - {name for name, kind in TRAPS.items() if kind in ("image in no list", "trimap without image")}
    assert listed_names(trapped, "list") == sound | in_a_list
    assert listed_names(trapped, "trainval") == {"Abyssinian_1", "beagle_1"} | in_a_list
    assert listed_names(trapped, "test") == {"Abyssinian_2", "beagle_2"}
    for name in ("Abyssinian_1", "beagle_2"):
        assert (trapped / "images" / f"{name}.jpg").read_bytes() == (pets / "images" / f"{name}.jpg").read_bytes()


@pytest.mark.parametrize(
    ("kind", "format", "mode"),
    [
        ("RGB PNG named .jpg", "PNG", "RGB"),
        ("RGBA PNG named .jpg", "PNG", "RGBA"),
        ("GIF named .jpg", "GIF", "P"),
        ("palette PNG with transparency named .jpg", "PNG", "P"),
        ("CMYK JPEG", "JPEG", "CMYK"),
        ("16-bit grey PNG named .jpg", "PNG", "I;16"),
        ("EXIF orientation", "JPEG", "RGB"),
    ],
)
def test_formats(trapped, kind, format, mode):
    name = of_kind(kind)
    with Image.open(trapped / "images" / f"{name}.jpg") as image:
        assert (image.format, image.mode) == (format, mode)
        image.load()
        assert trimap_of(trapped, name).shape == (image.height, image.width)
        if kind.startswith("RGBA"):
            low, high = image.getextrema()[3]
            assert low < 2 < 253 < high
        if kind.startswith("palette"):
            assert image.info["transparency"] == 0
            assert np.any(np.asarray(image) == 0)
        if kind.startswith("16-bit"):
            assert np.asarray(image).max() > 255
        if kind.startswith("EXIF"):
            assert image.getexif()[0x0112] == 6
            upright, trimap = draw_pet("beagle", int(name.rpartition("_")[2]))
            assert np.abs(np.rot90(np.asarray(image), -1).astype(int) - upright).mean() < 12  # what the tag asks for
            np.testing.assert_array_equal(np.rot90(trimap_of(trapped, name), -1), trimap)


@pytest.mark.parametrize(
    ("kind", "values", "scale"),
    [
        ("trimap without pet", {2, 3}, (1, 1)),
        ("trimap of other values", {0, 4}, (1, 1)),
        ("trimap of half the size", {1, 2, 3}, (2, 2)),
        ("trimap of another aspect", {1, 2, 3}, (1, 3)),
    ],
)
def test_trimap_traps(trapped, kind, values, scale):
    name = of_kind(kind)
    with Image.open(trapped / "images" / f"{name}.jpg") as image:
        assert trimap_of(trapped, name).shape == (image.height // scale[0], image.width // scale[1])
    assert set(np.unique(trimap_of(trapped, name))) <= values


def test_damaged_images(trapped):
    truncated = trapped / "images" / f"{of_kind('truncated JPEG')}.jpg"
    with Image.open(truncated) as image, pytest.raises(OSError, match="truncated"):
        image.load()
    assert (trapped / "images" / f"{of_kind('empty image file')}.jpg").stat().st_size == 0
