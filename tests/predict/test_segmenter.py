"""Segmenter: shipped models and models of any classes, the same from any thread and batch, mistakes in one line."""

import copy
import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from petseg import Segmenter
from petseg.config import OxfordPetsConfig, RunConfig
from petseg.data.dataset import Class
from petseg.data.oxford_pets import get_task
from petseg.data.synthetic import CATS, DOGS, draw_pet
from petseg.predict.outputs import encoded
from petseg.shipped import WEIGHTS, model_file, shipped_models
from tests.conftest import refused, scripts

IMAGES = [draw_pet(breed, 1, size=96)[0] for breed in (*CATS[:3], *DOGS[:3])]
pytestmark = pytest.mark.usefixtures("runtime")


@pytest.fixture(scope="module")
def segmenter(runtime):
    return Segmenter("unet_small", threads=1)


def toy_model(path, weights, classes, size=32, side=None):
    height, width = (side, side) if side else ("H", "W")
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> toy '
        f"(uint8[N,{height},{width},3] image) => (float[N,{len(weights)},{height},{width}] probabilities) "
        "{ numbers = Cast<to=1>(image)  planes = Transpose<perm=[0,3,1,2]>(numbers)  scaled = Mul(planes, scale)"
        "  logits = Conv(scaled, kernel)  probabilities = Softmax<axis=1>(logits) }"
    )
    kernel, scale = np.array(weights, np.float32)[:, :, None, None], np.array(20 / 255, np.float32)
    model.graph.initializer.extend([numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(scale, "scale")])
    onnx.helper.set_model_props(model, {"classes": json.dumps(classes), "size": json.dumps(size)})
    onnx.save(model, path)
    return path


CELLS = [
    {"name": "plasma", "colour": "#111111", "role": "background"},
    {"name": "red cell", "colour": "#D55E00"},
    {"name": "white cell", "colour": "#56B4E9", "role": "foreground"},
]


@pytest.fixture(scope="module")
def three_colours():
    return np.repeat(np.repeat(np.eye(3, dtype=np.uint8)[None] * 255, 48, axis=0), 32, axis=1)


def test_three_classes_of_its_own(tmp_path, three_colours):
    model = toy_model(tmp_path / "cells.onnx", np.eye(3).tolist(), CELLS)
    segmenter = Segmenter(model, threads=1)
    result = segmenter(three_colours)
    assert segmenter.classes == result.classes
    assert result.classes[1] == Class("red cell", "#D55E00", "foreground")
    assert (result.class_ids == np.arange(3).repeat(32)).all()
    assert ((result.mask == 255) == (result.class_ids > 0)).all()
    alpha = np.asarray(result.cutout())[..., 3]
    assert (alpha[:, :20] == 0).all()
    assert (alpha[:, 44:] == 255).all()
    summary = result.summary().to_dict()
    assert summary["foreground_class"]["name"] in ("red cell", "white cell")
    assert summary["foreground_class"]["probability"] == pytest.approx(0.5, abs=0.05)
    overlay = np.asarray(result.overlay()).astype(int)
    assert (overlay[0, 10] > 100).all()  # background is paler, whatever its colour
    assert overlay[0, 80] == pytest.approx([0.45 * 0x56, 0.45 * 0xB4, 255 - 0.45 * (255 - 0xE9)], abs=2)
    with Image.open(BytesIO(encoded(result, "classes"))) as stored:
        assert stored.mode == "P"
        assert (np.asarray(stored) == result.class_ids).all()
        assert bytes(stored.getpalette()[:9]) == bytes.fromhex("111111D55E0056B4E9")


def test_eleven_classes_without_background_are_all_foreground(tmp_path, three_colours):
    names = [f"class {number}" for number in range(11)]
    weights = np.random.default_rng(1).normal(size=(11, 3)).tolist()
    result = Segmenter(toy_model(tmp_path / "eleven.onnx", weights, names), threads=1)(three_colours)
    assert (result.mask == 255).all()
    assert (np.asarray(result.cutout())[..., 3] == 255).all()
    assert result.class_ids[24, [16, 48, 80]].tolist() == np.argmax(weights, axis=0).tolist()
    (box,) = result.boxes
    assert (box.left, box.top, box.right, box.bottom, box.share) == (0, 0, 96, 48, 1)
    assert result.confidence is None  # there is no background to be told from
    assert result.summary().to_dict()["boxes"][0]["foreground_class"]["name"] == result.foreground_class.name
    for kind in ("mask", "cutout", "overlay", "classes", "json"):
        assert encoded(result, kind)
    refused("no boundary class", encoded, result, "trimap")


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_segments_a_drawn_pet_in_the_colours_of_its_dataset(name):
    shipped = Segmenter(name, threads=1).using(raw=True)  # a drawing may be too unlike a photo for `presence`
    assert shipped.classes == get_task(OxfordPetsConfig(task="trimap_species")).classes
    overlaps = []
    for breed in (*CATS[:4], *DOGS[:4]):
        image, trimap = draw_pet(breed, 1, size=160)
        result = shipped(image)
        assert result.mask.shape == result.trimap.shape == result.class_ids.shape == trimap.shape
        assert result.boxes
        assert result.foreground_class is not None
        truth, mask = trimap != 2, result.mask == 255
        overlaps.append((truth & mask).sum() / (truth | mask).sum())
    assert np.mean(overlaps) > 0.5


@pytest.mark.parametrize("name", shipped_models())
def test_each_shipped_model_has_its_card(name):
    card = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    assert (card["name"], card["bytes"]) == (name, len(model_file(name)))
    assert sum(len(entry.read_bytes()) for entry in WEIGHTS.iterdir()) <= scripts("ship").LARGEST
    known = Segmenter(name, threads=1).card
    assert {field: card[field] for field in known} == known
    assert card["parity"]["agreement"] >= 0.9999
    assert "Parkhi" in card["licence"]["data"]
    assert {*card["scores"]} - {"split", "images", "frame"} <= {*card["definitions"]}
    assert card["limits"]
    assert RunConfig.model_validate(card["config"]).data.oxford_pets.protocol == "official"
    published = Path(__file__).parents[2] / "results" / "models" / name
    evaluation = json.loads((published / "evaluations" / "test.json").read_text(encoding="utf-8"))
    assert card["scores"] == {key: evaluation[key] for key in card["scores"]}
    trained = json.loads((published / "config.json").read_text(encoding="utf-8"))["train"]
    assert trained == {field: card["config"]["train"][field] for field in trained}
    assert card["scores"]["miou"] > 0.5


def test_a_grey_wall_has_no_foreground(segmenter):
    summary = segmenter(np.full((50, 80, 3), 90, np.uint8)).summary().to_dict()
    assert summary["foreground"] is False
    assert (summary["boxes"], summary["foreground_class"], summary["confidence"]) == ((), None, None)
    json.dumps(summary, allow_nan=False)


def test_with_flip_a_mirrored_photo_has_the_mirrored_answer():
    plain = Segmenter("unet_small", threads=1)
    flipping = plain.using(flip=True)
    for image in IMAGES[:2]:
        result = flipping(image)
        mirrored = flipping(np.ascontiguousarray(image[:, ::-1]))
        assert np.abs(result.probabilities - mirrored.probabilities[..., ::-1]).max() < 1e-6
        assert np.allclose(result.probabilities.sum(axis=0), 1, atol=1e-5)
        assert np.abs(result.probabilities - plain(image).probabilities).max() > 1e-3


def test_scales_average_what_each_size_sees_at_the_model_s_own():
    plain = Segmenter("unet_small", threads=1)
    larger = plain.using(scales=[1.25])
    assert [plain.side(scale) for scale in (1, 1.25, 0.1)] == [160, 192, 32]
    both = plain.using(scales=[1, 1.25])(IMAGES[0]).probabilities
    wanted = (plain(IMAGES[0]).probabilities + larger(IMAGES[0]).probabilities) / 2
    assert np.abs(both - wanted).max() < 1e-6
    assert both.shape == (4, 160, 160)
    assert np.abs(both - plain(IMAGES[0]).probabilities).max() > 1e-3


@pytest.mark.parametrize("names", [["cat"], ["background"], ["border", "dog"]])
def test_any_named_class_is_cut_out_and_the_others_are_background(names):
    plain = Segmenter("unet_small", threads=1)
    result, wanted = plain.using(foreground=names)(IMAGES[0]), plain(IMAGES[0]).probabilities
    ids = {each.name: place for place, each in enumerate(plain.classes)}
    own = wanted[[ids[name] for name in names]].sum(axis=0)
    rest = wanted[[ids[name] for name in ids if name not in (*names, "border")]].sum(axis=0)
    resized = result.mask[:: result.size[0] // 8, :: result.size[1] // 8]
    small = np.asarray(Image.fromarray(255 * (own > rest).astype(np.uint8)).resize(result.size[::-1]))
    assert (resized == small[:: result.size[0] // 8, :: result.size[1] // 8]).mean() > 0.9
    assert [each.name for each in result.classes if each.role == "foreground"] == [n for n in ids if n in names]
    refused("foreground 'cats' is unknown; choose one of: cat, ", plain.using, foreground=["cats"])


def test_options_are_the_model_s_own_but_for_those_given_and_travel_to_other_processes(segmenter):
    dogs = segmenter.using(foreground=["dog"], flip=True, scales=[1, 1.25], raw=True)
    plain = dogs.using()
    assert (plain.classes, plain.presence, plain.flip, plain.raw) == (
        *(segmenter.classes, segmenter.presence),
        *(False, False),
    )
    assert segmenter.using(windows=2 * segmenter.size).using().geometry == segmenter.geometry
    again = pickle.loads(pickle.dumps(dogs))
    assert (again.classes, again.flip, again.scales, again.raw) == (dogs.classes, True, (1, 1.25), True)
    assert np.array_equal(again(IMAGES[0]).mask, dogs(IMAGES[0]).mask)
    assert np.array_equal(copy.deepcopy(segmenter)(IMAGES[0]).mask, segmenter(IMAGES[0]).mask)
    assert segmenter.using(scales=np.array([1, 1.25])).scales == (1, 1.25)
    refused(r"scales are 1, x; wanted at least one of", segmenter.using, scales=[1, "x"])
    refused(r"windows is '300'; wanted a whole number", segmenter.using, windows="300")
    refused(r"flip is 'no'; wanted True or False", segmenter.using, flip="no")


def test_a_batch_and_four_threads_give_the_answers_of_single_photos_and_a_bad_one_is_named(segmenter, tmp_path):
    for alone, together in zip(map(segmenter, IMAGES), segmenter.batch(IMAGES), strict=True):
        assert np.abs(alone.probabilities - together.probabilities).max() < 1e-5
        assert (alone.mask == together.mask).mean() > 0.999
    assert segmenter.batch([]) == []
    (tmp_path / "bad.jpg").write_bytes(b"words")
    refused(r"bad\.jpg: cannot be decoded", segmenter.batch, [IMAGES[0], tmp_path / "bad.jpg"])
    wanted = [segmenter(image).probabilities for image in IMAGES]
    with ThreadPoolExecutor(4) as pool:
        for again, result in enumerate(pool.map(segmenter, IMAGES * 5)):
            assert (wanted[again % len(IMAGES)] == result.probabilities).all(), again


def test_path_bytes_image_and_array_are_the_same_photo(segmenter, tmp_path):
    path = tmp_path / "pet.png"
    Image.fromarray(IMAGES[0]).save(path)
    wanted = segmenter(IMAGES[0]).probabilities
    with Image.open(path) as opened, path.open("rb") as file:
        content = path.read_bytes()
        alike = (content, bytearray(content), memoryview(content))
        for source in (path, str(path), *alike, file, Image.fromarray(IMAGES[0]), opened):
            assert (segmenter(source).probabilities == wanted).all()


def test_what_is_of_another_type_is_one_line(segmenter, tmp_path):
    given = ((None, "NoneType"), (["cat.jpg"], "list"), (StringIO("cat"), "str"), (5, "int"))
    for source, kind in given:
        refused(f"^image: got {kind}; wanted a path, bytes, .* or uint8", segmenter, source)
    (tmp_path / "words.jpg").write_bytes(b"\xff")
    with (tmp_path / "words.jpg").open(encoding="utf-8") as file:
        refused("^image: cannot be read .*can't decode", segmenter, file)
    with (tmp_path / "words.jpg").open("rb") as closed:
        pass
    refused("^image: cannot be read .*closed file", segmenter, closed)
    refused("^a\0b: cannot be read .*null byte", segmenter, "a\0b")
    for model in (None, 3):
        refused(f"^model is {model}; wanted the name of a shipped model, or an ONNX file$", Segmenter, model)
    refused("^foreground 1 is unknown; choose one of: ", segmenter.using, foreground=[1])
    refused(r"^background array\(.* is neither a file", segmenter(IMAGES[0]).cutout, background=np.zeros((3, 4)))
    for threads in ("2", 0, -1, 1.5, 1025):
        refused(f"threads is {threads!r}; wanted a whole number above zero, or None", Segmenter, threads=threads)
    refused(r"^foreground got 'cat'; wanted a list: \['cat'\]$", segmenter.using, foreground="cat")
    refused(r"^scales got 1\.25; wanted a list: \[1\.25\]$", segmenter.using, scales=1.25)
    refused(r"^batch got 'cat\.jpg'; wanted a list: \['cat\.jpg'\]$", segmenter.batch, "cat.jpg")


def test_a_background_is_a_colour_in_words_or_numbers_or_an_image(segmenter, tmp_path):
    Image.new("RGB", (5, 5), (255, 0, 0)).save(tmp_path / "red.png")
    result = segmenter(IMAGES[0])
    red = np.asarray(result.cutout(background="red"))
    for same in ((255, 0, 0), tmp_path / "red.png", str(tmp_path / "red.png"), Image.new("RGB", (1, 1), "red")):
        assert (np.asarray(result.cutout(background=same)) == red).all(), same
    for wrong in ((1, 2), 5, [255, 0, 0], "rde", tmp_path / "nowhere.png"):
        refused(
            r"^background .* is neither a file nor a colour; give an image file, or a colour as white, ",
            result.cutout,
            background=wrong,
        )


@pytest.mark.parametrize("shape", [(1, 1), (20, 20000), (20000, 20), (1500, 3000), (96, 144)])
def test_every_map_has_the_photo_s_size_and_an_overlay_at_most_2048_pixels_a_side(segmenter, shape):
    result = segmenter(np.full((*shape, 3), 120, np.uint8))
    assert result.mask.shape == result.trimap.shape == result.class_ids.shape == shape
    cut, overlay = result.cutout(), result.overlay()
    assert (cut.mode, cut.size) == ("RGBA", shape[::-1])
    scale = min(1, 2048 / max(shape))
    assert (overlay.mode, overlay.size) == ("RGB", tuple(max(1, round(side * scale)) for side in shape[::-1]))
    result.summary()


def test_a_cut_out_is_never_more_opaque_than_the_photo(segmenter):
    photo = Image.fromarray(IMAGES[3])
    opacity = np.random.default_rng(0).integers(0, 256, IMAGES[3].shape[:2], np.uint8)
    opacity[:20] = 0
    photo.putalpha(Image.fromarray(opacity))
    cut = np.asarray(segmenter(photo).cutout())
    assert (cut[..., 3] <= opacity).all()
    assert cut[..., 3].any()
    assert not cut[cut[..., 3] == 0].any()


def test_a_notebook_shows_the_overlay_and_a_cut_out_is_opaque_where_the_mask_is(segmenter):
    result = segmenter(IMAGES[3])
    with Image.open(BytesIO(result._repr_png_())) as shown:
        assert (np.asarray(shown) == np.asarray(result.overlay())).all()
    opaque = np.asarray(result.cutout())[..., 3] > 127
    assert (opaque == (result.mask == 255)).mean() > 0.93


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_what_is_no_model_is_an_error(tmp_path, content):
    (tmp_path / "x.onnx").write_bytes(content)
    refused("not a model that `petseg export` wrote", Segmenter, tmp_path / "x.onnx")
    foreign = toy_model(tmp_path / "x.onnx", np.eye(3).tolist(), CELLS)
    model = onnx.load(foreign)
    del model.metadata_props[:]
    onnx.save(model, foreign)
    refused(r"x\.onnx: .* \(no field 'size'\); export it with that command", Segmenter, foreign)
    refused("cannot be read", Segmenter, tmp_path / "nowhere.onnx")
    refused(r"model 'unet_smal' is unknown; choose one of: .*unet_small", Segmenter, "unet_smal")


def test_prediction_needs_no_torch_and_loads_no_decoder_in_vain():
    code = (
        "import sys\n"
        "for name in ('torch', 'scipy', 'onnx', 'matplotlib'): sys.modules[name] = None\n"
        "import petseg\n"
        "result = petseg.Segmenter(threads=1)('petseg/serve/page/cat.jpg')\n"
        "result.cutout(); result.overlay(); print(result.mask.shape, 'PIL.PsdImagePlugin' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(300, 451) False"
