"""Every reader of foreign bytes against mutated files: refusals in petseg's own words, nothing else.

A short run of what `python fuzz/run.py` does for hours; and what that found, one case each.
"""

import json
import sys
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from petseg.config import load_recipe
from petseg.data.dataset import Sample
from petseg.data.images import open_sample
from petseg.errors import PetsegError
from petseg.export.onnx import exported_run
from petseg.models import model_options
from petseg.predict.photos import Photo
from petseg.predict.segmenter import Segmenter

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))
from targets import CARD, TARGETS, RefusedError, mend_png, onnx_seeds, small_image, trimaps

from tests.conftest import refused

EXAMPLES = 150  # of each target


def mutated(target):
    kinds = st.sampled_from(["change", "cut", "repeat", "insert"])
    edits = st.tuples(kinds, st.floats(0, 0.999), st.binary(max_size=8))

    def edit(seed, changes, mend):
        content = bytearray(seed)
        for kind, where, what in changes:
            place, size = int(where * (len(content) + 1)), len(what)
            if kind == "change":
                content[place : place + size] = what
            elif kind == "cut":
                del content[place : place + 1 + size**3]
            elif kind == "repeat":
                content[place:place] = content[place : place + 1 + size**3]
            else:
                content[place:place] = what
        return target.mend(bytes(content)) if mend else bytes(content)

    return st.builds(edit, st.sampled_from(target.seeds()), st.lists(edits, max_size=6), st.booleans())


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore")  # Pillow's, of metadata that it passes over
def test_a_mutated_file_is_read_or_refused(name, tried):
    target, counted = TARGETS[name], [0, 0]

    def is_refused(content):
        try:
            target.read(content)
        except RefusedError:
            return True
        return False

    @settings(max_examples=EXAMPLES, deadline=10_000, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(mutated(target))
    def read(content):
        counted[is_refused(content)] += 1

    assert not all(map(is_refused, target.seeds())), "no seed is read: all cases would end at the first check"
    read()
    assert sum(counted) >= EXAMPLES
    assert counted[True] > 0, "nothing was refused: is it read at all?"
    tried(sum(counted))


def test_a_gif_that_ends_inside_its_second_frame_is_refused():
    whole = small_image("GIF", save_all=True, append_images=[Image.new("RGB", (24, 17), "red")], duration=50)
    place = whole.index(b"!\xf9\x04", whole.index(b"!\xf9\x04") + 1)
    refused("photo: cannot be decoded", Photo, whole[:place] + b"!\xf9\x01\x00", "photo")


@pytest.mark.filterwarnings("ignore")
def test_a_trimap_larger_than_what_is_read_is_not_decoded(tmp_path):
    """118 megapixels of WebP took 9 seconds: Pillow only warns of them."""
    for name, size in (("image.png", (24, 17)), ("large.png", (10_000, 9_000))):
        Image.new("L", size, 1).save(tmp_path / name, compress_level=1)
    for image, trimap in (("image.png", "large.png"), ("large.png", "image.png")):
        sample = Sample("beagle_1", tmp_path / image, tmp_path / trimap)
        refused(r"90,000,000 pixels; at most 89,478,485 are read", open_sample, trimaps(), sample)


@pytest.mark.parametrize("kind", ["EPS", "PPM", "PCX", "TGA"])
def test_formats_that_nobody_photographs_in_are_not_opened(kind, tmp_path):
    """Pillow hands EPS to Ghostscript, a program that runs what the file says."""
    content = small_image(kind)
    Image.open(BytesIO(content)).close()
    refused("not an image that can be read", Photo, content)


@pytest.mark.parametrize("text", ["a = " + "[" * 3000, "train.epochs = " + "9" * 5000, "a = {b = " * 2000])
def test_toml_that_python_itself_gives_up_on_is_refused(text, tmp_path):
    (tmp_path / "recipe.toml").write_text(text)
    refused("not valid TOML", load_recipe, str(tmp_path / "recipe.toml"))
    with pytest.raises(PetsegError):
        model_options(load_recipe("default", [text]).for_model("unet").model)


def test_a_refusal_does_not_repeat_a_whole_file(tmp_path):
    (tmp_path / "recipe.toml").write_text(f'[train]\n"{"a" * 10_000}" = 1')
    assert len(refused("is unknown", load_recipe, str(tmp_path / "recipe.toml"))) < 2000


def network(tmp_path, card, seed=0, location=None):
    file = onnx.ModelProto.FromString(onnx_seeds()[seed])
    del file.metadata_props[:]
    for name, value in card.items():
        file.metadata_props.add(key=name, value=json.dumps(value))
    if location:
        (weight,) = file.graph.initializer
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.ClearField("float_data")
        for key, value in (("location", location), ("offset", "0"), ("length", "4")):
            weight.external_data.add(key=key, value=value)
    (tmp_path / "model.onnx").write_bytes(file.SerializeToString())
    return tmp_path / "model.onnx"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size": 10**9}, "its size is 1000000000; wanted 1 to 2048"),
        ({"size": 32}, r"wanted image, uint8 \[N, 32, 32, 3\]"),
        ({"size": True}, "its size is True"),
        ({"classes": [{"name": "pet", "colour": "blue"}]}, "has colour 'blue'; wanted one as #0072B2"),
        ({"classes": [{"name": "pet", "role": "plant"}]}, "role 'plant'"),
        ({"classes": [f"class {number}" for number in range(256)]}, "256 classes; wanted 1 to 255"),
    ],
)
def test_a_card_that_lies_is_refused_before_a_photo_is_read(change, reason, tmp_path):
    refused(f"not a model that `petseg export` wrote .*{reason}", Segmenter, network(tmp_path, {**CARD, **change}))


@pytest.mark.parametrize(("seed", "reason"), [(3, r"gives \[1, 2, 16, 16\]"), (4, r"gives \[1, 3, 22, 22\]")])
def test_a_network_that_gives_something_else_is_refused(seed, reason, tmp_path):
    segmenter = Segmenter(network(tmp_path, CARD, seed))
    refused(reason, segmenter, np.zeros((9, 9, 3), np.uint8))


@pytest.mark.parametrize("place", ["/etc/hostname", "../../../../../../etc/hostname"])
def test_a_model_reads_no_file_beside_itself(place, tmp_path):
    with pytest.raises(PetsegError, match=r"not a model that `petseg export` wrote \(.*[Ee]xternal data path"):
        Segmenter(network(tmp_path, CARD, location=place))


def test_png_checksums_are_put_right():
    whole = small_image("PNG")
    broken = bytearray(whole)
    broken[20] ^= 1  # the width
    assert mend_png(whole) == whole
    with suppress(PetsegError):
        assert Photo(mend_png(bytes(broken))).size[1] != 24


def test_a_damaged_export_is_made_again(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"half")
    made = []
    monkeypatch.setattr("petseg.export.onnx.export_run", lambda run, out: made.append(out))
    assert exported_run(tmp_path) == tmp_path / "model.onnx"
    assert made == [tmp_path / "model.onnx"]
