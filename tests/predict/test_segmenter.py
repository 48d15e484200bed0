"""Segmenter: what it returns is right, the same from any thread and batch, and mistakes are one line."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from petseg import Segmenter
from petseg.data.oxford_pets import BACKGROUND, BORDER, PET
from petseg.data.synthetic import CATS, DOGS, draw_pet
from petseg.errors import PetsegError
from petseg.evaluation.evaluate import upsample
from petseg.export.onnx import export_model
from petseg.predict.photos import Photo
from petseg.predict.segmenter import Segmentation, shipped_models
from tests.export.test_onnx import trained_like

PICTURES = [draw_pet(breed, 1, size=96)[0] for breed in (*CATS[:3], *DOGS[:3])]
CLASSES = ("pet", "background", "border")
SPECIES = ("cat", "dog", "background", "border")


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter("unet_small", threads=1)


def seen(
    probabilities: np.ndarray, classes: tuple[str, ...] = CLASSES, size: tuple[int, int] = (40, 60)
) -> Segmentation:
    """What follows from probabilities [C, h, w] that a test makes up."""
    photo = Photo(np.zeros((*size, 3), np.uint8))
    return Segmentation((probabilities / probabilities.sum(axis=0)).astype(np.float32), classes, photo)


def merged(found: Segmentation) -> torch.Tensor:
    """Pet, background, border [3, h, w], of whatever classes."""
    of = dict(zip(found.classes, torch.from_numpy(found.probabilities), strict=True))
    return torch.stack([of["pet"] if "pet" in of else of["cat"] + of["dog"], of["background"], of["border"]])


def squares(*places: tuple[slice, slice]) -> np.ndarray:
    """Probabilities [3, 20, 20]: pet in each place, background elsewhere."""
    probabilities = np.full((3, 20, 20), 0.05)
    probabilities[1] = 0.9
    for place in places:
        probabilities[:, *place] = np.array([0.9, 0.05, 0.05])[:, None, None]
    return probabilities


# --- what it returns -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_finds_a_drawn_pet(name):
    shipped = Segmenter(name, threads=1)
    overlaps = []
    for breed in (*CATS[:4], *DOGS[:4]):
        image, trimap = draw_pet(breed, 1, size=160)
        found = shipped(image)
        assert found.mask.shape == found.trimap.shape == trimap.shape
        assert found.boxes
        truth, mask = trimap != BACKGROUND, found.mask == 255
        overlaps.append((truth & mask).sum() / (truth | mask).sum())
    assert np.mean(overlaps) > 0.5


@pytest.mark.parametrize("name", shipped_models())
def test_each_shipped_model_has_its_card(name):
    weights = files("petseg") / "weights"
    card = json.loads((weights / f"{name}.json").read_text(encoding="utf-8"))
    content = (weights / f"{name}.onnx").read_bytes()
    assert (card["name"], card["bytes"]) == (name, len(content))
    known = Segmenter(name, threads=1).card
    assert {field: card[field] for field in known} == known
    assert card["parity"]["agreement"] >= 0.9999
    assert "Parkhi" in card["licence"]["data"]
    assert {*card["scores"]} - {"split", "images", "frame"} <= {*card["definitions"]}
    assert card["limits"]
    assert card["data"]["protocol"] == "official"
    published = Path(__file__).parents[2] / "results" / "models" / name
    evaluation = json.loads((published / "evaluations" / "test.json").read_text(encoding="utf-8"))
    assert card["scores"] == {key: evaluation[key] for key in card["scores"]}
    trained = json.loads((published / "config.json").read_text(encoding="utf-8"))["train"]
    assert trained == {field: card["config"]["train"][field] for field in trained}
    assert card["scores"]["miou"] > 0.5


def test_shipped_models_take_at_most_40_mb():
    weights = files("petseg") / "weights"
    assert sum(len(entry.read_bytes()) for entry in weights.iterdir()) <= 40_000_000


def test_the_mask_is_where_pet_is_likelier_than_background(segmenter):
    for picture in PICTURES:
        found = segmenter(picture)
        logits = upsample(merged(found).log(), found.size).numpy()
        assert ((found.mask == 255) == (logits[0] > logits[1])).mean() > 0.9999
        assert set(np.unique(found.mask)) <= {0, 255}


def test_the_trimap_is_what_evaluation_scores(segmenter):
    """Enlarged log-probabilities differ from enlarged logits by the same number in every class."""
    for picture in PICTURES:
        found = segmenter(picture)
        labels = upsample(merged(found).log(), found.size).argmax(dim=0).numpy()
        assert (found.trimap == np.array([PET, BACKGROUND, BORDER])[labels]).mean() > 0.9999


def test_a_model_without_border_has_no_border_in_its_trimap():
    found = seen(squares((slice(5, 10), slice(5, 10)))[[1, 0]], ("background", "pet"))
    assert set(np.unique(found.trimap)) == {PET, BACKGROUND}
    assert ((found.trimap == PET) == (found.mask == 255)).all()


def test_boxes_tell_each_region_the_largest_first():
    found = seen(squares((slice(2, 6), slice(2, 6)), (slice(10, 18), slice(8, 18))))
    large, small = found.boxes
    # 20 x 20 model pixels on 40 x 60: a model pixel is 2 high and 3 wide, an outline runs between two of them
    assert (large.left, large.top, large.right, large.bottom) == pytest.approx((24, 20, 54, 36), abs=1)
    assert (small.left, small.top, small.right, small.bottom) == pytest.approx((6, 4, 18, 12), abs=1)
    assert large.share > small.share
    assert large.share + small.share == pytest.approx(found.pet_share)
    assert large.confidence == pytest.approx(0.9 / 0.95, abs=0.02)


def test_a_speckle_is_no_pet():
    probabilities = np.full((3, 128, 128), 0.05)
    probabilities[1] = 0.9
    probabilities[:, 60:63, 60:63] = np.array([0.9, 0.05, 0.05])[:, None, None]
    found = seen(probabilities, size=(256, 256))
    assert found.pet_share > 0
    assert found.boxes == ()
    assert found.confidence is None
    assert not np.asarray(found.cutout()).any()


def test_no_pet_says_so(segmenter):
    summary = segmenter(np.full((50, 80, 3), 90, np.uint8)).summary()
    assert summary["pet"] is False
    assert summary["boxes"] == []
    assert summary["species"] is None
    json.dumps(summary, allow_nan=False)


# --- species ---------------------------------------------------------------------------------------------------------


def test_species_is_the_mean_weighted_by_how_much_pet_a_pixel_is():
    probabilities = np.zeros((4, 20, 20))
    probabilities[2] = 1
    probabilities[:, 5:15, 5:10] = np.array([0.9, 0.1, 0, 0])[:, None, None]
    probabilities[:, 5:15, 10:15] = np.array([0.1, 0.4, 0.4, 0.1])[:, None, None]
    found = seen(probabilities, SPECIES)
    # cat .9 and .1, dog .1 and .4, on equally many pixels
    assert (found.species.name, found.species.probability) == ("cat", pytest.approx(1.0 / 1.5))


def test_each_of_several_pets_has_its_own_species():
    probabilities = np.full((4, 20, 20), 0.01)
    probabilities[2] = 0.97
    probabilities[:, 2:8, 2:8] = np.array([0.97, 0.01, 0.01, 0.01])[:, None, None]
    probabilities[:, 11:18, 11:19] = np.array([0.01, 0.97, 0.01, 0.01])[:, None, None]
    dog, cat = seen(probabilities, SPECIES).boxes
    assert (dog.species.name, cat.species.name) == ("dog", "cat")
    assert dog.species.probability == pytest.approx(0.97 / 0.98, abs=0.01)


def test_a_model_of_cat_and_dog_works_from_export_to_mask(tmp_path):
    out = tmp_path / "four.onnx"
    export_model(trained_like("segnet", 4), {"classes": list(SPECIES), "size": 32}, out)
    found = Segmenter(out, threads=1)(PICTURES[0])
    assert found.classes == SPECIES
    assert found.probabilities.shape == (4, 32, 32)
    cat, dog, background, _ = found.probabilities
    merged = upsample(torch.from_numpy(np.stack([cat + dog, background])).log(), found.size).numpy()
    assert ((found.mask == 255) == (merged[0] > merged[1])).mean() > 0.9999
    if found.boxes:
        wanted = cat.sum() / (cat.sum() + dog.sum())
        assert found.species.probability == pytest.approx(max(wanted, 1 - wanted), abs=1e-4)
        assert found.species.name == ("cat" if wanted >= 0.5 else "dog")


def test_three_classes_have_no_species():
    found = seen(squares((slice(5, 10), slice(5, 10))))
    assert found.boxes
    assert found.species is None
    assert found.summary()["boxes"][0]["species"] is None


# --- mirrored --------------------------------------------------------------------------------------------------------


def test_with_flip_a_mirrored_photo_has_the_mirrored_answer():
    flipping, plain = (Segmenter("unet_small", threads=1, flip=flip) for flip in (True, False))
    for picture in PICTURES[:2]:
        found = flipping(picture)
        mirrored = flipping(np.ascontiguousarray(picture[:, ::-1]))
        assert np.abs(found.probabilities - mirrored.probabilities[..., ::-1]).max() < 1e-6
        assert np.allclose(found.probabilities.sum(axis=0), 1, atol=1e-5)
        assert np.abs(found.probabilities - plain(picture).probabilities).max() > 1e-3


# --- the same from anywhere ------------------------------------------------------------------------------------------


def test_a_batch_is_its_single_photos(segmenter):
    for alone, together in zip(map(segmenter, PICTURES), segmenter.batch(PICTURES), strict=True):
        assert np.abs(alone.probabilities - together.probabilities).max() < 1e-5
        assert (alone.mask == together.mask).mean() > 0.999
    assert segmenter.batch([]) == []


def test_four_threads_get_the_same_answers(segmenter):
    wanted = [segmenter(picture) for picture in PICTURES]
    with ThreadPoolExecutor(4) as pool:
        for again in range(5):
            found = list(pool.map(segmenter, PICTURES))
            for one, other in zip(wanted, found, strict=True):
                assert (one.probabilities == other.probabilities).all(), again
                assert (one.mask == other.mask).all()


def test_path_bytes_image_and_array_are_the_same_photo(segmenter, tmp_path):
    path = tmp_path / "pet.png"
    Image.fromarray(PICTURES[0]).save(path)
    wanted = segmenter(PICTURES[0]).probabilities
    with Image.open(path) as opened:
        for source in (path, str(path), path.read_bytes(), Image.fromarray(PICTURES[0]), opened):
            assert (segmenter(source).probabilities == wanted).all()


def test_a_cut_out_and_an_overlay_have_the_photo_s_size(segmenter):
    found = segmenter(PICTURES[3])
    height, width = found.size
    cut = found.cutout()
    assert (cut.mode, cut.size) == ("RGBA", (width, height))
    opaque = np.asarray(cut)[..., 3] > 127
    assert (opaque == (found.mask == 255)).mean() > 0.93
    assert (found.overlay().mode, found.overlay().size) == ("RGB", (width, height))


def test_an_overlay_has_at_most_2048_pixels_a_side(segmenter):
    stream = BytesIO()
    Image.new("RGB", (3000, 1500), "grey").save(stream, "JPEG")
    found = segmenter(stream.getvalue())
    assert found.mask.shape == (1500, 3000)
    assert found.overlay().size == (2048, 1024)


@pytest.mark.parametrize("shape", [(1, 1), (20, 20000), (20000, 20)])
def test_any_shape_is_predicted(segmenter, shape):
    found = segmenter(np.full((*shape, 3), 120, np.uint8))
    assert found.mask.shape == found.trimap.shape == shape
    assert found.cutout().size == shape[::-1]
    found.summary()


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_told_with_the_choices():
    with pytest.raises(PetsegError, match=r"model 'unet_smal' is unknown; choose one of: .*unet_small"):
        Segmenter("unet_smal")


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_a_file_that_is_no_model_is_told(tmp_path, content):
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(PetsegError, match="not a model that `petseg export` wrote") as caught:
        Segmenter(tmp_path / "x.onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(PetsegError, match="cannot be read"):
        Segmenter(tmp_path / "nowhere.onnx")


def test_one_bad_photo_of_a_batch_is_named(segmenter, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"words")
    with pytest.raises(PetsegError, match=r"bad\.jpg: cannot be decoded"):
        segmenter.batch([PICTURES[0], tmp_path / "bad.jpg"])


def test_prediction_needs_no_torch():
    code = (
        "import sys\n"
        "for name in ('torch', 'scipy', 'onnx', 'matplotlib'): sys.modules[name] = None\n"
        "import numpy as np, petseg\n"
        "found = petseg.Segmenter(threads=1)(np.zeros((40, 60, 3), np.uint8))\n"
        "found.cutout(); found.overlay(); print(found.mask.shape)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(40, 60)"
