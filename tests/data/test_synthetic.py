"""The synthetic dataset has the official layout and plausible images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg.data.synthetic import CATS, DOGS, draw_pet, make_pets
from petseg.errors import PetsegError


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pets(tmp_path_factory.mktemp("pets"))


def listed(folder: Path, name: str) -> list[str]:
    rows = (folder / "annotations" / f"{name}.txt").read_text().splitlines()
    return [row for row in rows if not row.startswith("#")]


def listed_names(folder: Path, name: str) -> set[str]:
    return {row.split()[0] for row in listed(folder, name)}


def trimap_of(folder: Path, name: str) -> np.ndarray:
    with Image.open(folder / "annotations" / "trimaps" / f"{name}.png") as trimap:
        return np.asarray(trimap)


def test_layout_and_lists_with_the_official_ids(pets, tmp_path):
    assert {path.name for path in pets.iterdir()} == {"annotations", "images"}
    files = {path.name for path in (pets / "annotations").iterdir()}
    assert files == {"list.txt", "test.txt", "trainval.txt", "trimaps"}
    names = listed_names(pets, "list")
    assert {path.name for path in (pets / "images").iterdir()} == {f"{name}.jpg" for name in names}
    assert {path.name for path in (pets / "annotations" / "trimaps").iterdir()} == {f"{name}.png" for name in names}
    assert (pets / "annotations" / "list.txt").read_text().startswith("#Image CLASS-ID SPECIES BREED ID\n")
    rows = listed(pets, "list")
    assert (len(rows), rows[0], "beagle_1 5 2 4" in rows) == (36, "Abyssinian_1 1 1 1", True)
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
    make_pets(tmp_path, per_breed=2, breeds=37, size=32)
    rows = [row.split() for row in listed(tmp_path, "trainval")]
    assert [int(row[1]) for row in rows] == list(range(1, 38))
    assert [int(row[3]) for row in rows if row[2] == "1"] == list(range(1, 13))
    assert [int(row[3]) for row in rows if row[2] == "2"] == list(range(1, 26))
    assert rows[36][0] == "yorkshire_terrier_1"


def test_images_and_trimaps_fit_and_shares_of_classes_are_near_the_official_ones(pets):
    sizes, counts = [], []
    for path in (pets / "images").iterdir():
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            image.load()
        sizes.append(image.size)
        trimap = trimap_of(pets, path.stem)
        assert (trimap.dtype, trimap.shape) == (np.uint8, (image.height, image.width))
        assert set(np.unique(trimap)) == {1, 2, 3}
        counts.append(np.bincount(trimap.ravel(), minlength=4)[1:] / trimap.size)
        for one, other in ((trimap[1:], trimap[:-1]), (trimap[:, 1:], trimap[:, :-1])):
            assert set(np.unique(one[one != other] + other[one != other])) <= {4, 5}, "a border parts pet and the rest"
    assert all(136 <= max(size) <= 184 for size in sizes)
    assert {np.sign(width - height) for width, height in sizes} >= {-1, 1}
    assert any(width % 2 and height % 2 for width, height in sizes)
    assert len(set(sizes)) > 20
    pet, background, border = np.mean(counts, axis=0)
    assert 0.26 < pet < 0.34
    assert 0.52 < background < 0.63
    assert 0.10 < border < 0.15
    assert np.min(counts, axis=0)[0] > 0.10


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
    assert (image.dtype, trimap.dtype, image.shape) == (np.uint8, np.uint8, (*trimap.shape, 3))
    assert abs(max(trimap.shape) / size - 1) < 0.18
    assert set(np.unique(trimap)) == {1, 2, 3}


def test_numbers_out_of_range_and_unknown_breeds(tmp_path):
    for name, least, most in (("per_breed", 2, 900), ("breeds", 2, 37), ("size", 32, 4096), ("seed", 0, None)):
        for value in (least - 1, *([most + 1] if most else [])):
            with pytest.raises(PetsegError, match=f"{name} is {value}; give one from {least} to {most or ''}"):
                make_pets(tmp_path / "pets", **{name: value})
    assert not (tmp_path / "pets").exists()
    with pytest.raises(PetsegError, match="breed 'begle' is unknown; choose one of: beagle,"):
        draw_pet("begle", 1)
