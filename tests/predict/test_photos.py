"""Photos: every format, rotation and profile; every kind of bad file in one line."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg.data.synthetic import draw_pet
from petseg.predict.photos import Photo, find_photos
from tests.conftest import image_bytes, refused

IMAGE = draw_pet("beagle", 1, size=96)[0]


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PNG", {"icc_profile": b"no profile at all" * 10})]
)
def test_a_lossless_file_gives_its_pixels_whatever_its_profile(kind, options):
    photo = Photo(image_bytes(Image.fromarray(IMAGE), kind, **options))
    assert photo.size == IMAGE.shape[:2]
    assert (np.asarray(photo.whole()) == IMAGE).all()
    assert photo.notes == ()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_is_applied(kind, orientation):
    upright = Image.new("RGB", (64, 96), "white")
    upright.paste("black", (0, 0, 64, 40))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(back[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = Photo(image_bytes(stored, kind, exif=exif))
    assert photo.size == (96, 64)
    shown = np.asarray(photo.whole()).astype(int)
    assert shown.shape[:2] == photo.size
    assert np.abs(shown - np.asarray(upright)).mean() < 3
    resized = photo.resized(32)
    assert resized[:12].mean() < 20
    assert resized[16:].mean() > 235


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb_and_what_is_transparent_white(mode):
    image = Image.fromarray(IMAGE)
    grey = image.convert("L")
    stored = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    shown = Photo(image_bytes(stored, "TIFF" if mode == "CMYK" else "PNG")).whole()
    assert shown.mode == "RGB"
    if mode not in ("1", "P"):
        wanted = np.asarray(image if mode in ("RGBA", "CMYK") else grey.convert("RGB")).astype(int)
        assert np.abs(np.asarray(shown) - wanted).max() <= 1
    clear = Image.new("RGBA", (4, 4), (10, 200, 30, 0))
    assert (np.asarray(Photo(image_bytes(clear, "PNG")).whole()) == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_used_and_it_says_so(kind):
    first, second = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 10), "blue")
    photo = Photo(image_bytes(first, kind, save_all=True, append_images=[second]))
    assert photo.notes == ("2 frames, the first one is used",)
    assert np.asarray(photo.whole())[..., 0].min() > 200


@pytest.mark.parametrize("shape", [(1, 1), (20, 20000), (20000, 20), (3, 7)])
def test_any_shape_is_resized(shape):
    assert (Photo(np.full((*shape, 3), 77, np.uint8)).resized(64) == np.full((64, 64, 3), 77)).all()


def test_a_jpeg_is_resized_as_the_dataset_was_and_reduced_in_its_shape(prepared):
    for row, sample in enumerate(prepared.samples):
        assert (Photo(sample.image).resized(32) == prepared.images[row]).all(), sample.id
    for width, reduced in ((4000, (400, 100)), (40, (40, 10))):
        assert Photo(image_bytes(Image.new("RGB", (width, width // 4)), "JPEG")).reduced(400).size == reduced


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", r"^x: is empty \(zero bytes\)"),
        (b"no image, only words", r"^x: cannot be decoded \(not an image that can be read; wanted JPEG, .*TIFF, NPY\)"),
        (image_bytes(Image.fromarray(IMAGE), "JPEG")[:600], "^x: cannot be decoded .*was it copied completely"),
        (image_bytes(Image.fromarray(IMAGE), "PNG")[:600], "^x: cannot be decoded .*was it copied completely"),
        (image_bytes(Image.fromarray(IMAGE), "TIFF")[:200], "^x: cannot be decoded"),
    ],
    ids=["empty", "words", "truncated JPEG", "truncated PNG", "truncated TIFF"],
)
def test_a_bad_file_is_one_line(content, problem):
    for decode in (Photo.whole, lambda photo: photo.resized(32)):
        refused(problem, lambda decode=decode: decode(Photo(content, "x")))


@pytest.mark.parametrize("pixels", [100, 40])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch, pixels):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    refused(
        r"^bomb: cannot be decoded .*pixels.*; reduce it first$",
        Photo,
        image_bytes(Image.new("RGB", (12, 10)), "PNG"),
        "bomb",
    )


def test_a_folder_accounts_for_every_file(tmp_path, monkeypatch):
    names = "b.JPG a.png deep/er/c.webp .hidden.jpg .cache/d.jpg note.txt a.mask.png IMG x/"
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "deep")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    scan = os.scandir

    def scandir(folder):
        if Path(folder).name == "x":
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)  # who tests may be root
    photos, left_out = find_photos([tmp_path], (".mask.png",))
    assert [below.as_posix() for _, below in photos] == ["a.png", "b.JPG", "deep/er/c.webp"]
    assert {path.relative_to(tmp_path).as_posix(): reason for path, reason in left_out.items()} == {
        ".hidden.jpg": "hidden",
        ".cache": "hidden",
        "note.txt": "named .txt",
        "IMG": "named without an ending",
        "a.mask.png": "written by petseg",
        "link": "linked folder",
        "gone.jpg": "no file",
        "x": "folder that cannot be read (Permission denied)",
    }
    assert len(find_photos([tmp_path, tmp_path / "a.png", tmp_path / "a.mask.png"], (".mask.png",))[0]) == 4
    only = r"x: no images in this folder, but 1 folder that cannot be read \(Permission denied\); wanted \.jpg, "
    refused(only, find_photos, [tmp_path, tmp_path / "x"], ())
    for name in ("1.txt", "2.txt", "IMG"):
        (tmp_path / "words" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "words" / name).touch()
    why = "words: no images in this folder, but 2 named .txt, 1 named without an ending; wanted"
    refused(why, find_photos, [tmp_path / "words"], ())


def test_of_a_link_and_its_target_the_target_is_taken_and_the_link_is_left_out(tmp_path):
    (tmp_path / "z.jpg").touch()
    (tmp_path / "deep").mkdir()
    for link in ("a.jpg", "deep/b.jpg"):
        (tmp_path / link).symlink_to(tmp_path / "z.jpg")
    why = "the same file as another photo"
    for sources in ([tmp_path], [tmp_path / "a.jpg", tmp_path / "z.jpg", tmp_path / "deep" / "b.jpg"]):
        photos, left_out = find_photos(sources, ())
        assert [photo for photo, _ in photos] == [tmp_path / "z.jpg"]
        assert left_out == {tmp_path / "a.jpg": why, tmp_path / "deep" / "b.jpg": why}
    assert find_photos([tmp_path / "a.jpg"], ()) == ([(tmp_path / "a.jpg", Path("a.jpg"))], {})
    assert find_photos([tmp_path / "z.jpg"] * 2, ())[1] == {}


def test_what_is_not_there_or_no_photo_is_an_error(tmp_path):
    for array in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        refused(r"wanted uint8 \[H, W, 3\] in RGB", Photo, array)
    refused(r"nowhere\.jpg: cannot be read", Photo, tmp_path / "nowhere.jpg")
    refused("no images in this folder", find_photos, [tmp_path], ())
    refused("no such file or folder", find_photos, [tmp_path / "nowhere"], ())
