"""Files as other programs write them: odd tags, wide pixels, ends that are missing, and what is no image at all."""

import io
import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffTags

from petseg.data.images import FORMATS, SUFFIXES, formats
from petseg.data.synthetic import draw_pet
from petseg.predict.photos import Photo, to_srgb
from tests.conftest import image_bytes, refused
from tests.data.test_images import blank, opened, png

PET = Image.fromarray(draw_pet("beagle", 1, size=64)[0])
COLOURS = np.array([[40_000, 10_000, 0], [1000, 2000, 3000], [500, 500, 500], [65_535] * 3], ">u2")


def pixels(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def exif(*entries):
    """Returns EXIF bytes of (tag, type, count, four bytes) as they are."""
    rows = b"".join(struct.pack("<HHL", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + bytes(4) + b"72 dpi\0\0" * 40


LYING = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
TYPES = range(1, 13)
TAGS = [tag for tag in TiffTags.TAGS_V2 if tag not in (0x0112, *range(0x0100, 0x0104))]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_orientation_is_read_whatever_the_other_tags_are(tried):
    """Pillow writes all tags anew when it turns a photo, and stumbles over one of an odd type."""
    upright = np.rot90(pixels(image_bytes(PET, "JPEG")), -1)
    for tag, kind in itertools.product(TAGS, TYPES):
        for place in (40, 2**31):  # of the values: in the text behind the tags, or nowhere
            tags = exif(*sorted([LYING, (tag, kind, 3, struct.pack("<L", place))]))
            photo = Photo(image_bytes(PET, "JPEG", exif=tags))
            assert photo.size == (PET.width, PET.height)
            assert np.array_equal(photo.whole(), upright), (tag, kind)
    tried(2 * len(TAGS) * len(TYPES))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("broken", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0no TIFF at all"], ids=repr)
def test_a_photo_whose_exif_cannot_be_read_is_upright(broken, tmp_path):
    content = image_bytes(PET, "JPEG", exif=broken)
    assert np.array_equal(Photo(content).whole(), pixels(image_bytes(PET, "JPEG")))
    assert opened(tmp_path, content, blank(PET.height, PET.width)).notes == ()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_tiff_turned_or_whose_next_page_leads_nowhere(tmp_path):
    content = image_bytes(PET, "TIFF", tiffinfo={0x0112: 6})
    lying = Photo(content)
    assert (lying.size, lying.whole().size) == ((PET.width, PET.height), (PET.height, PET.width))
    assert np.array_equal(opened(tmp_path, content, blank(PET.width, PET.height)).image, np.rot90(PET, -1))
    refused("one of them lies on its side", opened, tmp_path, content, blank(PET.height, PET.width))
    content = bytearray(image_bytes(PET, "TIFF"))
    (start,) = struct.unpack("<L", content[4:8])
    (count,) = struct.unpack("<H", content[start : start + 2])
    content[start + 2 + 12 * count : start + 6 + 12 * count] = struct.pack("<L", 2**31)
    photo = Photo(bytes(content))
    assert np.array_equal(photo.whole(), PET)
    assert photo.notes == ("its further pages cannot be read, the first one is used",)
    assert np.array_equal(opened(tmp_path, bytes(content), blank(PET.height, PET.width)).image, PET)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}], ids=str)
def test_a_jpeg_without_its_last_bytes_is_read_with_a_note_and_left_out_of_a_dataset(options, tmp_path):
    whole = image_bytes(PET, "JPEG", **options)
    assert Photo(whole + b"a film\xff\xda").notes == ()
    for end in (1, 2):
        photo = Photo(whole[:-end])
        assert photo.notes == ("its last bytes are missing, no pixel is",)
        assert np.array_equal(photo.whole(), pixels(whole))
        match = r"^beagle_1: image cannot be decoded \(.*truncated"
        refused(match, opened, tmp_path, whole[:-end], blank(PET.height, PET.width))
    for end in (20, len(whole) // 3):
        refused("truncated", Photo(whole[:-end]).whole)


RAMP = np.linspace(0, 1, 256).reshape(16, 16)
WIDE = {
    "floats of 0..1": (RAMP.astype(np.float32), "floats of 0 to 1, scaled to 8-bit"),
    "floats of 0..255": ((255 * RAMP).astype(np.float32), "8-bit values in wide pixels"),
    "floats of 0..65535": ((65_535 * RAMP).astype(np.float32), "16-bit, scaled to 8"),
    "32-bit of 0..255": ((255 * RAMP).round().astype(np.int32), "8-bit values in wide pixels"),
    "32-bit of 0..65535": ((65_535 * RAMP).round().astype(np.int32), "16-bit, scaled to 8"),
    "16-bit of 0..4095": ((4095 * RAMP).round().astype(np.uint16), "12-bit, scaled to 8"),
    "16-bit": ((65_535 * RAMP).round().astype(np.uint16), "16-bit, scaled to 8"),
}


@pytest.mark.parametrize("kind", WIDE)
def test_wide_pixels_are_scaled_by_their_values(kind, tmp_path):
    values, note = WIDE[kind]
    content = image_bytes(Image.fromarray(values), "TIFF")
    photo = Photo(content)
    sample = opened(tmp_path, content, blank(16, 16))
    assert photo.notes == (note,)
    assert sample.notes == ("TIFF named .jpg", note)
    for image in (photo.whole(), sample.image):
        assert image.mode == "RGB"
        np.testing.assert_allclose(np.asarray(image, int)[..., 0], 255 * RAMP, atol=1)


@pytest.mark.parametrize("values", [[-1.0, 1.0], [0, 70_000.0], [0, np.nan], [0, np.inf], [-5, 3], [0, 2**20]], ids=str)
def test_wide_pixels_of_another_range_are_refused(values, tmp_path):
    kind = np.int32 if all(isinstance(value, int) for value in values) else np.float32
    content = image_bytes(Image.fromarray(np.array([values], kind)), "TIFF")
    match = r"cannot be decoded \(pixels of .* to .*; wanted 0 to 1, 255, 4095 or 65535"
    refused(match, Photo, content)
    refused(match, opened, tmp_path, content, blank(1, 2))


def test_a_16_bit_grey_png_with_a_transparent_value_is_white_there_alone():
    values = (65_535 * RAMP).round().astype(np.uint16)
    content = image_bytes(Image.fromarray(values), "PNG", transparency=int(values[0, 3]))
    grey = np.asarray(Photo(content).whole(), int)[..., 0]
    assert grey[0, 3] == 255
    grey[0, 3] = 255 * RAMP[0, 3]
    np.testing.assert_allclose(grey, 255 * RAMP, atol=1)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (png(2, 0, [b"\x1b"], b"\0\1"), [0, 255, 170, 255]),
        (png(4, 0, [b"\x01\x2f"], b"\0\2"), [0, 17, 255, 255]),
        (png(16, 2, [COLOURS.tobytes()], COLOURS[1].tobytes()), [156, 255, 1, 255]),
    ],
    ids=["2 bits", "4 bits", "3 x 16 bits"],
)
def test_a_transparent_value_of_other_depths_is_white_there_alone(content, wanted):
    assert np.asarray(Photo(content).whole())[0, :, 0].tolist() == wanted


def profile(gamma, name):
    """Returns an ICC profile of sRGB's primaries with another curve, by the bytes of Pillow's own."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {
        bytes(content[at : at + 4]): struct.unpack(">LL", content[at + 4 : at + 12])
        for at in range(132, len(content), 12)
    }
    for tag in (b"rTRC", b"gTRC", b"bTRC"):
        start, size = tags[tag]
        content[start : start + size] = (b"curv" + struct.pack(">LLH", 0, 1, round(256 * gamma))).ljust(size, b"\0")
    start, size = tags[b"desc"]
    text = content[start : start + size].replace("sRGB".encode("utf-16-be"), name.encode("utf-16-be")[:8])
    content[start : start + size] = text
    return bytes(content)


def test_a_profile_is_applied_by_what_it_does_not_by_its_name():
    image = Image.new("RGB", (8, 8), (200, 60, 60))
    for name in ("sRGB", "line"):
        curve = profile(1.0, name)
        assert ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(curve))).startswith(name)
        shown = Photo(image_bytes(image, "PNG", icc_profile=curve)).whole()
        # linear light 60 / 255 is .235, which sRGB writes as 133
        assert np.abs(np.asarray(shown, int) - (228, 133, 133)).max() <= 3
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert to_srgb(image) == image, "to the bit"


KINDS = {
    "git-LFS pointer.*git lfs pull": [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"],
    "web page": [b"<!DOCTYPE html><html>", b"\n<html lang='en'>"],
    "SVG": [b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", b"<svg/>"],
    "JPEG XL": [b"\xff\x0a\xfa\x1f", b"\0\0\0\x0cJXL \r\n\x87\n"],
    "PDF": [b"%PDF-1.7"],
    "film": [b"\0\0\0\x18ftypmp42", b"\0\0\0\x14ftypqt  "],
    "not an image": [b"words"],
}


@pytest.mark.parametrize(("kind", "content"), [(kind, content) for kind in KINDS for content in KINDS[kind]])
def test_what_is_no_photo_is_called_by_its_kind(kind, content, tmp_path):
    for read in (lambda: Photo(content, "cat.jpg"), lambda: opened(tmp_path, content, blank())):
        refused(rf"cannot be decoded \(.*{kind}.*\)$", read)


def test_heic_is_read_where_pillow_heif_is_installed(monkeypatch, tmp_path):
    pytest.importorskip("pillow_heif")
    assert "HEIF" in formats()
    content = image_bytes(PET, "HEIF", quality=90)
    assert np.abs(np.asarray(Photo(content).whole(), int) - np.asarray(PET)).mean() < 10
    assert opened(tmp_path, content, blank(PET.height, PET.width)).notes == ("HEIF named .jpg",)
    monkeypatch.setitem(Image.OPEN, "HEIF", None)
    monkeypatch.delitem(Image.OPEN, "HEIF")
    formats.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    refused(r"a HEIC photo, which pip install 'petseg\[heif\]' can read", Photo, content)
    formats.cache_clear()


def test_one_list_says_what_is_read():
    assert set(SUFFIXES) >= {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".tif", ".tiff", ".heic"}
    assert set(formats()) <= set(FORMATS)
    for page in ("predict", "reliability"):
        text = (Path(__file__).parents[2] / "docs" / f"{page}.md").read_text(encoding="utf-8").upper()
        assert [name for name in FORMATS if name != "MPO" and name.replace("HEIF", "HEIC") not in text] == [], page
