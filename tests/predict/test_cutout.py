"""The cut-out and the overlay: hand-made photos whose right answer is known."""

from unittest import mock

import numpy as np
import pytest
from PIL import Image

from petseg.data.dataset import classes_from
from petseg.data.synthetic import draw_pet
from petseg.predict import cutout, matting
from petseg.predict.cutout import BACKGROUND, BOUNDARY, FOREGROUND, cut_out, overlay
from petseg.predict.matting import solved_opacity

RED, GREEN = np.array([200.0, 40, 30]), np.array([30.0, 120, 40])


def disc(height, width, radius, soft=2.0):
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height / 2 + 0.5, columns - width / 2 + 0.5)
    return ((radius - distance) / soft + 0.5).clip(0, 1)


def composed(opacity):
    return Image.fromarray((opacity[..., None] * RED + (1 - opacity[..., None]) * GREEN).round().astype(np.uint8))


def trimap_of(opacity, band):
    sides = np.where(opacity >= 0.5, np.uint8(FOREGROUND), np.uint8(BACKGROUND))
    return np.where(np.abs(opacity - 0.5) < band, np.uint8(BOUNDARY), sides)


@pytest.mark.parametrize("matted", [False, True])
def test_a_red_disc_on_green_is_recovered(matted):
    opacity = disc(240, 320, 80)
    coarse = disc(24, 32, 8.3, soft=3).astype(np.float32)
    rgba = np.asarray(cut_out(composed(opacity), coarse, trimap_of(coarse, 0.4) if matted else None)).astype(float)
    assert np.abs(rgba[..., 3] / 255 - opacity).mean() < 0.01
    fringe = (rgba[..., 3] > 30) & (rgba[..., 3] < 225)
    assert fringe.sum() > 100
    assert np.abs(rgba[fringe][:, :3] - RED).mean() < 20
    mixed = np.asarray(composed(opacity)).astype(float)
    assert np.abs(mixed[fringe] - RED).mean() > 25  # so there was something to take out


def test_far_inside_it_is_the_photo_and_far_outside_it_is_nothing():
    photo = Image.fromarray(draw_pet("beagle", 1, size=300)[0])
    opacity = disc(photo.height, photo.width, 80)
    rgba = np.asarray(cut_out(photo, opacity.astype(np.float32)))
    inside, outside = disc(photo.height, photo.width, 60) == 1, disc(photo.height, photo.width, 100) == 0
    assert (rgba[inside][:, :3] == np.asarray(photo)[inside]).all()
    assert (rgba[inside][:, 3] == 255).all()
    assert (rgba[outside] == 0).all()


def test_matting_closes_a_hole_that_looks_like_the_foreground():
    opacity = disc(240, 320, 80)
    hole = disc(240, 320, 12) > 0
    mask = np.where(hole, 0.3, opacity).astype(np.float32)
    trimap = np.where(hole, np.uint8(BOUNDARY), trimap_of(opacity, 0.49))
    plain, matted = (np.asarray(cut_out(composed(opacity), mask, each))[120, 160, 3] for each in (None, trimap))
    assert plain < 128
    assert matted > 250


@pytest.mark.parametrize("value", [FOREGROUND, BACKGROUND, BOUNDARY])
def test_without_both_sides_there_is_nothing_to_matte(value):
    photo = Image.fromarray(draw_pet("beagle", 1, size=100)[0])
    opacity = disc(100, 100, 30).astype(np.float32)
    trimap = np.full((32, 32), value, np.uint8)
    assert np.array_equal(np.asarray(cut_out(photo, opacity, trimap)), np.asarray(cut_out(photo, opacity)))


def test_opacity_of_two_colours_is_their_mixture_at_any_size_that_is_solved(monkeypatch):
    opacity = disc(60, 90, 20, soft=8)
    image = (opacity[..., None] * RED + (1 - opacity[..., None]) * GREEN) / 255
    known = np.where((opacity > 0) & (opacity < 1), np.nan, opacity)
    assert np.isnan(known).sum() > 500
    solved = solved_opacity(image.astype(np.float32), known, np.full((60, 90), 0.5, np.float32))
    assert np.abs(solved - opacity).max() < 0.01
    coarse, trimap = opacity.astype(np.float32), trimap_of(opacity, 0.49)
    whole = np.asarray(cut_out(composed(opacity), coarse, trimap)).astype(int)
    monkeypatch.setattr(cutout, "MOST_UNKNOWN", 1000)
    monkeypatch.setattr(matting, "solved_opacity", solver := mock.Mock(side_effect=solved_opacity))
    small = np.asarray(cut_out(composed(opacity), coarse, trimap)).astype(int)
    assert solver.call_args.args[1].shape == (43, 65)
    assert np.abs(whole - small)[..., 3].mean() < 3


@pytest.mark.parametrize("whole", [0.0, 1.0])
def test_all_or_nothing(whole):
    photo = Image.fromarray(draw_pet("beagle", 1, size=200)[0])
    rgba = np.asarray(cut_out(photo, np.full((32, 32), whole, np.float32)))
    assert (rgba[..., 3] == 255 * whole).all()
    assert (rgba[..., :3] == np.asarray(photo) * int(whole)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (4000, 5), (5, 4000), (129, 257)])
def test_any_size_has_a_cut_out_of_that_size(size):
    photo = Image.new("RGB", size, "white")
    cut = cut_out(photo, disc(32, 32, 9).astype(np.float32))
    assert (cut.size, cut.mode) == (size, "RGBA")


def test_tiles_leave_no_seam():
    width = np.linspace(0, 1, 500)
    photo = Image.fromarray(np.broadcast_to((255 * width)[None, :, None], (400, 500, 3)).astype(np.uint8))
    share = np.broadcast_to((np.arange(50) < 25)[None], (40, 50)).astype(np.float32)
    alpha = np.asarray(cut_out(photo, share))[..., 3].astype(int)
    assert np.abs(np.diff(alpha, axis=0)).max() <= 1


def test_an_overlay_tints_each_class():
    photo = Image.new("RGB", (4, 1), (100, 100, 100))
    three = classes_from([{"name": "leaf", "colour": "#0000FF"}, "background", {"name": "border", "colour": "#FF8000"}])
    seen = np.asarray(overlay(photo, np.array([[0, 1, 2, 0]], np.uint8), three))[0].astype(int)
    assert seen[0] == pytest.approx([55, 55, 170], abs=1)
    assert seen[1] == pytest.approx([185, 185, 185], abs=1)  # paler, whatever its colour
    assert seen[2] == pytest.approx([208, 120, 30], abs=1)
    assert (seen[3] == seen[0]).all()
