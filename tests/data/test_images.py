"""Opening a sample: what is unusual is noted, what cannot be used is refused by name, any mode becomes RGB."""

import io
import re
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from petseg.cores import core_count
from petseg.data.cache import prepare
from petseg.data.dataset import Dataset, Label, Sample, classes_from
from petseg.data.images import CHUNK, open_ids, open_label, open_sample, outcomes, read_ids, resize_ids, unused
from petseg.data.masks import Table, scan
from petseg.data.sources import open_dataset
from petseg.data.synthetic import draw_pet
from petseg.errors import PetsegError
from petseg.predict.photos import Photo
from tests.conftest import image_bytes, refused
from tests.data.traps import NOTES, REASONS, TRAPS


@pytest.fixture(scope="module")
def dataset(trapped):
    opened = open_dataset(trapped)
    assert {kind for name, kind in TRAPS.items() if name in opened.by_id} == {*NOTES, *REASONS}, "each is tested below"
    return opened


def of_kind(dataset, kind):
    return dataset.by_id[next(name for name, set_trap in TRAPS.items() if set_trap == kind)]


def drawn(sample):
    image, trimap = draw_pet(sample.group, int(sample.id.rpartition("_")[2]))
    return image, trimap - 1


def one_sample(folder, image, label):
    """Returns a dataset of one sample, whose files have these bytes, or hold these pixels as PNG."""
    sample = Sample("beagle_1", folder / "beagle_1.jpg", folder / "beagle_1.png")
    for path, content in ((sample.image, image), (sample.label, label)):
        pixels = Image.fromarray(content) if isinstance(content, np.ndarray) else content
        path.write_bytes(pixels if isinstance(pixels, bytes) else image_bytes(pixels, "PNG"))
    classes = classes_from(["leaf"])
    return Dataset("one", (sample,), classes, {}, lambda sample: Label(read_ids(sample.label)), "this test"), sample


def opened(folder, image, label):
    return open_sample(*one_sample(folder, image, label))


def jpeg(width, height):
    return image_bytes(Image.linear_gradient("L").resize((width, height)).convert("RGB"), "JPEG")


def nearest(ids, height, width):
    rows = ((np.arange(height) + 0.5) * ids.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * ids.shape[1] / width).astype(int)
    return ids[rows[:, None], columns]


def blank(height=8, width=8):
    return np.zeros((height, width), np.uint8)


@pytest.mark.parametrize(("kind", "notes"), NOTES.items())
@pytest.mark.parametrize("draft", [None, 32])
def test_notes_of_every_usable_trap(dataset, kind, notes, draft):
    sample = of_kind(dataset, kind)
    got = open_sample(dataset, sample, draft=draft)
    assert (got.notes, got.image.mode) == (notes, "RGB")
    with Image.open(sample.image) as stored:
        assert got.ids.shape == (stored.height, stored.width)
    assert {*np.unique(got.ids)} <= {0, 1, 2}
    np.testing.assert_array_equal(open_ids(dataset, sample), got.ids)


@pytest.mark.parametrize(("kind", "match"), REASONS.items())
def test_reasons_of_every_unusable_trap(dataset, kind, match):
    sample = of_kind(dataset, kind)
    for draft in (None, 32):
        said = refused(match.replace("NAME", sample.id), open_sample, dataset, sample, draft=draft)
        assert str(sample.image.parent) not in said, "a reason stands in published comparisons"
    if kind != "truncated JPEG":  # whose header is whole
        refused(match.replace("NAME", sample.id).partition(r" \(")[0], open_ids, dataset, sample)


LOSS = {"image in no list": 6, "GIF named .jpg": 10, "CMYK JPEG": 7, "EXIF orientation": 7}
"""Mean difference from the drawn pixels, in levels of 255; formats without loss have none."""


@pytest.mark.parametrize("kind", [*LOSS, "RGB PNG named .jpg", "RGBA PNG named .jpg"])
def test_pixels_are_the_drawn_ones(dataset, kind):
    sample = of_kind(dataset, kind)
    image, ids = drawn(sample)
    if kind == "EXIF orientation":  # lies as it is stored, and so does its trimap
        image, ids = np.rot90(image), np.rot90(ids)
    got = open_sample(dataset, sample)
    assert np.abs(np.asarray(got.image, int) - image).mean() <= LOSS.get(kind, 0)
    assert got.ids.dtype == np.uint8
    np.testing.assert_array_equal(got.ids, ids)


def test_pixels_of_a_palette_and_of_16_bits(dataset, tmp_path):
    sample = of_kind(dataset, "palette PNG with transparency named .jpg")
    quantized = Image.fromarray(drawn(sample)[0]).quantize(64)
    assert np.any(np.asarray(quantized) == 0)  # the transparent entry is in use
    got = open_sample(dataset, sample).image
    np.testing.assert_array_equal(np.asarray(got), np.asarray(quantized.convert("RGB")))
    quantized.info["transparency"] = bytes(range(64))  # an alpha for each entry, of which Pillow would warn
    got = opened(tmp_path, quantized, blank(*np.asarray(quantized).shape)).image
    np.testing.assert_array_equal(np.asarray(got), np.asarray(quantized.convert("RGBA").convert("RGB")))
    sample = of_kind(dataset, "16-bit grey PNG named .jpg")
    wanted = Image.fromarray(drawn(sample)[0]).convert("L").convert("RGB")
    np.testing.assert_array_equal(np.asarray(open_sample(dataset, sample).image), np.asarray(wanted))
    values = np.array([[0, 128, 129, 257], [25_700, 32_768, 65_278, 65_535]], np.uint16)
    got = opened(tmp_path, Image.fromarray(values), blank(2, 4)).image
    assert np.asarray(got)[..., 0].tolist() == [[0, 0, 1, 1], [100, 128, 254, 255]]


def test_resize_ids_is_nearest_and_enlarges_a_label_of_half_the_size(dataset):
    ids = np.random.default_rng(0).choice([0, 1, 2, 255], (20, 31)).astype(np.uint8)
    for size in ((5, 9), (40, 23), (17, 17)):
        assert resize_ids(ids, size).dtype == np.uint8
        np.testing.assert_array_equal(resize_ids(ids, size), nearest(ids, *size))
    sample = of_kind(dataset, "trimap of half the size")
    small = dataset.read_label(sample).ids
    got = open_sample(dataset, sample)
    height, width = got.ids.shape
    assert (width, height) == got.image.size
    assert small.shape == (height // 2, width // 2)
    np.testing.assert_array_equal(got.ids, nearest(small, height, width))


def test_how_far_a_label_may_differ_and_unusable_ones(tmp_path):
    for width in (99, 100, 101):
        assert opened(tmp_path, jpeg(100, 100), blank(100, width)).ids.shape == (100, 100)
    for label, match in (
        *((blank(100, w), rf"label is {w}x100, image 100x100; different shapes cannot be") for w in (50, 97, 103)),
        (b"", r"^beagle_1: label cannot be decoded \(is empty"),
        (b"\x89PNG\r\n\x1a\n", r"^beagle_1: label cannot be decoded"),
        (np.ones((8, 8, 3), np.uint8), r"^beagle_1: label has shape \(8, 8, 3\); a label has one channel$"),
    ):
        refused(match, opened, tmp_path, jpeg(100, 100), label)


def raised(error):
    raise error


SQUARE = np.zeros((8, 8), np.uint8)
OWN_LABELS = {  # what an own `read_label` does -> the reason
    "no file": (lambda: np.load("/own/a.npy"), r"cannot be read \(FileNotFoundError: No such file or directory\)$"),
    "no key": (lambda: {}["a"], r"cannot be read \(KeyError: 'a'\)$"),
    "lines": (lambda: raised(ValueError("one\ntwo")), r"cannot be read \(ValueError: one\)$"),
    "array": (lambda: SQUARE, "read_label gives a ndarray; wanted Label"),
    "nothing": (lambda: None, "read_label gives a NoneType; wanted Label"),
    "list": (lambda: Label(SQUARE.tolist()), "read_label gives a list; .* a NumPy array$"),
    "floats": (lambda: Label(SQUARE * 0.5), r"label is float64 of shape \(8, 8\); wanted integers"),
    "channels": (lambda: Label(np.zeros((8, 8, 1), int)), r"label is int64 of shape \(8, 8, 1\); .* \(H, W\)$"),
    "empty": (lambda: Label(SQUARE[:0]), r"of shape \(0, 8\)"),
    "id": (lambda: Label(SQUARE + np.uint8(2)), r"holds an id of no class \(2\); wanted 0 to 1, or 255: ignored$"),
    "254": (lambda: Label(SQUARE + np.uint8(254)), r"of no class \(254\)"),
    "negative": (lambda: Label(SQUARE.astype(int) - 1), r"of no class \(-1\)"),
    "wrapped": (lambda: Label(SQUARE.astype(int) + 256), r"of no class \(256\)"),
}


@pytest.mark.parametrize("kind", OWN_LABELS)
def test_what_an_own_read_label_does_wrong_is_a_reason_with_the_samples_id(kind, tmp_path):
    read, match = OWN_LABELS[kind]
    dataset, sample = one_sample(tmp_path, SQUARE, SQUARE)
    dataset = replace(dataset, classes=classes_from(["leaf", "stem"]), read_label=lambda _: read())
    for function in (open_sample, open_ids):
        refused(rf"^beagle_1: .*{match}", function, dataset, sample)
    sound = replace(sample, id="pug_2")
    one_wrong = lambda one: Label(SQUARE) if one is sound else read()  # noqa: E731
    dataset = replace(dataset, samples=(sample, sound), read_label=one_wrong, fingerprint=kind)
    (reason,) = prepare(dataset, 16).left_out.values()
    assert re.search(f"^beagle_1: .*{match}", reason)


def test_integer_ids_of_an_own_label_become_uint8(tmp_path):
    dataset, sample = one_sample(tmp_path, SQUARE, SQUARE)
    for kind in ("bool", "int64", "uint16", "int32"):
        ids = np.array([[0, 1], [1, 0 if kind == "bool" else 255]], kind)
        read = lambda _, ids=ids: Label(ids, ("odd",))  # noqa: E731
        own = replace(dataset, classes=classes_from(["leaf", "stem"]), read_label=read)
        found = open_label(own, sample)
        assert (found.ids.dtype, found.ids.tolist(), found.notes) == (np.uint8, ids.astype(int).tolist(), ("odd",))
        assert open_sample(own, sample).ids.shape == (8, 8)


def huge_png(side):
    content = bytearray(image_bytes(Image.new("L", (1, 1)), "PNG"))
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("side", "reason"), [(10_000, "100,000,000 pixels; at most"), (50_000, "Image size")])
def test_files_that_claim_too_many_pixels(tmp_path, monkeypatch, side, reason):
    """Pillow warns of the first and raises at the second; the filter of warnings, which all threads share, is left."""
    with monkeypatch.context() as patch:
        patch.setattr(warnings, "catch_warnings", None)
        for read in (open_sample, open_ids):
            with pytest.raises(PetsegError, match=rf"^beagle_1: image cannot be decoded \({reason}"):
                read(*one_sample(tmp_path, huge_png(side), blank()))
        refused(r"^beagle_1: label cannot be decoded", opened, tmp_path, jpeg(8, 8), huge_png(side))
        assert opened(tmp_path, jpeg(8, 8), blank()).notes == ()


@settings(max_examples=60, deadline=None)
@given(st.integers(16, 300), st.integers(16, 300), st.integers(8, 200))
def test_draft_keeps_the_size_asked_for_and_the_labels_own(tmp_path_factory, width, height, draft):
    scratch = tmp_path_factory.getbasetemp()
    got = open_sample(*one_sample(scratch, jpeg(width, height), blank(height, width)), draft=draft)
    if min(width, height) >= draft:
        # one more halving would have gone below: the reduction is used, up to 8 in each direction
        assert draft <= min(got.image.size) <= max(2 * draft, -(-min(width, height) // 8)) + 1
    else:
        assert got.image.size == (width, height)
    assert (got.ids.shape, got.notes) == ((height, width), ())
    pair = one_sample(scratch, Image.new("RGB", (width, height)), blank(height, width))  # a PNG
    assert open_sample(*pair, draft=draft).image.size == (width, height)


def test_outcomes_keep_their_order_and_threads_wait_until_they_are_taken():
    """The results of all samples together may be larger than memory."""
    started = []

    def work(sample):
        started.append(sample)
        if sample.id.endswith("7"):
            raise PetsegError(f"{sample.id} is odd")
        return int(sample.id)

    samples = [Sample(str(number), Path(), Path()) for number in range(1000)]
    ahead = 2 * core_count() * CHUNK
    seen, counts = [], []
    for sample, found in outcomes(work, samples, lambda done, total: counts.append((done, total))):
        assert found == (f"{sample.id} is odd" if sample.id.endswith("7") else int(sample.id))
        seen.append(sample)
        assert len(started) <= len(seen) + ahead
    assert seen == samples
    assert counts == [(done, 1000) for done in range(1, 1001)]
    for _ in outcomes(work, samples):
        break  # nothing is left behind
    assert list(outcomes(work, [])) == []


def png(depth, kind, rows, clear):
    """Returns a PNG of some bits a channel with a transparent value, as optimisers write them and Pillow does not."""
    header = struct.pack(">IIBBBBB", 4, len(rows), depth, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"tRNS", clear), (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))))
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return content


RGB, TAG = Image.new("RGB", (8, 8), (9, 90, 200)), b"\x06\x01\x03\0\x01\0\0\0"  # PhotometricInterpretation, a number
UNUSED = {  # what a file holds beside the pixels that are used -> its bytes
    "3 frames, the first one is used": image_bytes(RGB, "TIFF", save_all=True, append_images=[RGB, RGB]),
    # four channels, which Pillow writes as CMYK alone
    "4 channels, 3 used": image_bytes(RGB.convert("CMYK"), "TIFF", tiffinfo={338: 0}).replace(TAG + b"\5", TAG + b"\2"),
    "16-bit, scaled to 8": png(16, 2, [np.full((4, 3), 7, ">u2").tobytes()], b"\0" * 6),
}


@pytest.mark.parametrize("note", UNUSED)
def test_frames_channels_and_bits_that_are_not_used_are_noted_of_images_masks_and_photos(note, tmp_path):
    size = Image.open(io.BytesIO(UNUSED[note])).size[::-1]
    assert note in opened(tmp_path, UNUSED[note], blank(*size)).notes
    assert Photo(UNUSED[note]).notes == (note,)
    (tmp_path / "mask.png").write_bytes(UNUSED[note])
    sample = Sample("mask", tmp_path / "mask.png", tmp_path / "mask.png")
    table = Table(classes_from(["soil"]), True, dict.fromkeys(scan(sample).counts, 0), "this test")
    assert table.read(sample).notes == (f"mask: {note}",)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_the_first_page_is_used_where_a_later_one_is_damaged():
    pages = [Image.new("L", size, value) for size, value in (((20, 10), 200), ((30, 40), 5), ((60, 50), 9))]
    stream = io.BytesIO()
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
    content = bytearray(stream.getvalue())
    place = 4  # of the place of the next page's fields
    for _ in pages[:2]:
        (start,) = struct.unpack_from("<I", content, place)
        place = start + 2 + 12 * struct.unpack_from("<H", content, start)[0]
    struct.pack_into("<I", content, place, 2**31)
    with Image.open(io.BytesIO(bytes(content))) as opened:
        notes = unused(opened)
        assert opened.size == (20, 10)
        assert opened.getpixel((0, 0)) == 200
    assert "its further pages cannot be read, the first one is used" in notes
