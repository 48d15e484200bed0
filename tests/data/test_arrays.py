"""NumPy arrays as images and as masks: what other formats say of the same pixels, and what is refused in a line."""

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from petseg.data.check import check_dataset
from petseg.data.formats.convert import convert
from petseg.data.images import open_sample
from petseg.data.sources import open_dataset
from petseg.predict.photos import Photo
from tests.conftest import image_bytes, refused

DRAW = np.random.default_rng(0)
COLOURS = DRAW.integers(0, 256, (24, 32, 3), np.uint8)
IDS = (DRAW.random((24, 32)) < 0.4).astype(np.uint8)


def array_bytes(array, **how):
    stream = BytesIO()
    np.save(stream, array, **how)
    return stream.getvalue()


def folder_of(folder, image, mask, count=6):
    for number in range(count):
        for kind, content in (("images", image), ("masks", mask)):
            path = folder / kind / f"{number}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else array_bytes(content))
    return folder


@pytest.mark.parametrize("kind", ["?", "u1", "i2", "<u2", ">u2", "u4", "i8", "f4", "f8"])
def test_masks_of_any_numbers_are_class_ids(kind, tmp_path):
    dataset = open_dataset(folder_of(tmp_path, COLOURS, IDS.astype(kind)))
    opened = open_sample(dataset, dataset.samples[0])
    assert np.array_equal(opened.image, COLOURS)
    assert np.array_equal(opened.ids, IDS)


@pytest.mark.parametrize(
    "array",
    [COLOURS[..., 0], COLOURS[..., :1], COLOURS, np.dstack([COLOURS, COLOURS[..., :1]]), np.asfortranarray(COLOURS)],
    ids=["grey", "one channel", "RGB", "RGBA", "columns first"],
)
def test_an_array_is_what_a_png_of_it_is(array):
    picture = image_bytes(Image.fromarray(array.squeeze()), "PNG")
    assert np.array_equal(Photo(array_bytes(array)).whole(), Photo(picture).whole())


def test_wide_values_are_scaled_by_their_range_as_in_a_tiff():
    values = IDS * np.uint16(65_000)
    tiff = Photo(image_bytes(Image.fromarray(values), "TIFF"))
    for array in (values, values.astype(np.int64), values.astype(">u2")):
        photo = Photo(array_bytes(array))
        assert np.array_equal(photo.whole(), tiff.whole())
        assert "16-bit, scaled to 8" in photo.notes
    floats = Photo(array_bytes(IDS.astype(np.float64))).whole()
    assert np.array_equal(np.asarray(floats)[..., 0], 255 * IDS)


class Code:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (
            array_bytes(np.array([[Code()]]), allow_pickle=True),
            r"an array of shape \(1, 1\) and object; wanted numbers",
        ),
        (
            array_bytes(np.zeros(9)),
            r"an array of shape \(9,\) and float64; wanted numbers of shape \[H, W\] or \[H, W, 3",
        ),
        (array_bytes(COLOURS.transpose(2, 0, 1)), r"an array of shape \(3, 24, 32\) and uint8; wanted"),
        (array_bytes(COLOURS / 255), r"3 channels of float64; wanted uint8: scale them first"),
        (array_bytes(IDS * 1j), r"and complex128; wanted numbers"),
        (array_bytes(IDS + np.int64(1 << 40)), r"values up to 1099511627777; wanted at most 2,147,483,647"),
        (array_bytes(IDS)[:200], r"cannot be decoded"),
        (array_bytes(IDS)[:30], r"cannot be decoded"),
        (array_bytes(IDS).replace(b"(24, 32)", b"(9999, 9)"), r"cannot be decoded"),
        (array_bytes(IDS[:, :0]), r"cannot be decoded"),
        (
            array_bytes(np.zeros((1, 1))).replace(b"(1, 1)", b"(99999, 99999)"),
            r"9,999,800,001 pixels; at most 89,478,485",
        ),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value[:40],
)
def test_other_arrays_are_refused_in_a_line(content, match, capfd):
    refused(match, Photo, content, "x")
    assert capfd.readouterr().out == "", "nothing was unpickled"


def test_a_check_names_a_bad_array_and_other_programs_get_a_png(tmp_path):
    folder = folder_of(tmp_path / "data", COLOURS, IDS)
    (folder / "images" / "3.npy").write_bytes(array_bytes(COLOURS / 255))
    dataset = open_dataset(folder)
    assert "3 channels of float64; wanted uint8" in check_dataset(dataset, 32).model_dump_json()
    convert(dataset, tmp_path / "coco", "coco")
    written = json.loads(next((tmp_path / "coco").rglob("*.json")).read_text())
    assert {image["file_name"].rpartition(".")[2] for image in written["images"]} == {"png"}
