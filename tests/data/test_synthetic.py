"""The synthetic dataset has the official layout and plausible images."""

import numpy as np
import pytest
from PIL import Image

from petseg.data.synthetic import CATS, DOGS, draw_pet, make_pets
from petseg.errors import PetsegError
from tests.conftest import refused


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    return make_pets(tmp_path_factory.mktemp("pets"))


def listed(folder, name):
    rows = (folder / "annotations" / f"{name}.txt").read_text().splitlines()
    return [row.split() for row in rows if not row.startswith("#")]


def pair(folder, name):
    with Image.open(folder / "images" / f"{name}.jpg") as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        with Image.open(folder / "annotations" / "trimaps" / f"{name}.png") as trimap:
            return np.asarray(image), np.asarray(trimap)


def test_layout_and_lists_with_the_official_ids(pets, tmp_path):
    rows = listed(pets, "list")
    names = {row[0] for row in rows}
    annotations = {f"annotations/{name}" for name in ("list.txt", "test.txt", "trainval.txt", "trimaps")}
    wanted = {"annotations", "images", *annotations, *(f"images/{name}.jpg" for name in names)}
    wanted |= {f"annotations/trimaps/{name}.png" for name in names}
    assert {path.relative_to(pets).as_posix() for path in pets.rglob("*")} == wanted
    assert (pets / "annotations" / "list.txt").read_text().startswith("#Image CLASS-ID SPECIES BREED ID\n")
    assert (len(rows), rows[0], ["beagle_1", "5", "2", "4"] in rows) == (36, ["Abyssinian_1", "1", "1", "1"], True)
    for name, class_id, species, breed_id in rows:
        assert species == ("1" if name[0].isupper() else "2")
        assert name.rpartition("_")[0] == (CATS if species == "1" else DOGS)[int(breed_id) - 1]
        assert 1 <= int(class_id) <= 37
    trainval, test = listed(pets, "trainval"), listed(pets, "test")
    assert sorted(trainval + test) == sorted(rows)
    assert len(trainval) == len(test) == 18
    assert {row[1] for row in trainval} == {row[1] for row in test}
    rows = listed(make_pets(tmp_path, per_breed=2, breeds=37, size=32), "trainval")
    assert [int(row[1]) for row in rows] == list(range(1, 38))
    assert [int(row[3]) for row in rows if row[2] == "1"] == list(range(1, 13))
    assert [int(row[3]) for row in rows if row[2] == "2"] == list(range(1, 26))
    assert rows[36][0] == "yorkshire_terrier_1"


def test_images_and_trimaps_fit_and_shares_of_classes_are_near_the_official_ones(pets):
    sizes, counts, pixels, is_pet = [], [], [], []
    for name, *_ in listed(pets, "list"):
        image, trimap = pair(pets, name)
        sizes.append(trimap.shape)
        assert (trimap.dtype, image.shape) == (np.uint8, (*trimap.shape, 3))
        assert set(np.unique(trimap)) == {1, 2, 3}
        counts.append(np.bincount(trimap.ravel(), minlength=4)[1:] / trimap.size)
        pixels.append(image[trimap != 3])
        is_pet.append(trimap[trimap != 3] == 1)
        for one, other in ((trimap[1:], trimap[:-1]), (trimap[:, 1:], trimap[:, :-1])):
            assert set(np.unique(one[one != other] + other[one != other])) <= {4, 5}, "a border parts pet and the rest"
    assert all(136 <= max(size) <= 184 for size in sizes)
    assert {np.sign(width - height) for height, width in sizes} >= {-1, 1}
    assert any(width % 2 and height % 2 for height, width in sizes)
    assert len(set(sizes)) > 20
    pet, background, border = np.mean(counts, axis=0)
    assert 0.26 < pet < 0.34
    assert 0.52 < background < 0.63
    assert 0.10 < border < 0.15
    assert np.min(counts, axis=0)[0] > 0.10
    # colour alone does not find the pet: the best threshold on any one channel stays far from a segmentation
    colours, truth = np.concatenate(pixels), np.concatenate(is_pet)
    guesses = [colours[:, channel] < level for channel in range(3) for level in range(16, 256, 16)]
    assert max((guess & truth).sum() / (guess | truth).sum() for one in guesses for guess in (one, ~one)) < 0.5


def test_same_seed_same_pixels_and_other_sizes(pets, tmp_path):
    again = make_pets(tmp_path / "again", per_breed=3, breeds=4)
    other = make_pets(tmp_path / "other", per_breed=3, breeds=4, seed=1)
    for name, *_ in listed(again, "list"):  # a smaller set is a part of the larger one
        for one, same in zip(pair(pets, name), pair(again, name), strict=True):
            np.testing.assert_array_equal(one, same)
        assert not np.array_equal(pair(again, name)[0], pair(other, name)[0])
    for size in (32, 97, 256):
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
    refused("breed 'begle' is unknown; choose one of: beagle,", draw_pet, "begle", 1)
