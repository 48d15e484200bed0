"""`petseg data check` finds every trap, says what happens to it, and loses nothing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg.data.check import STRAYS, Finding, check_pairs
from petseg.data.oxford_pets import Contents, read_contents
from petseg.data.synthetic import make_pets
from tests.data.traps import TRAPS, make_trapped_pets

KEPT_EMPTY = "kept: it counts as all background and border, as in everybody's figures"

ROWS = {
    "hidden file beside the trimaps": [("hidden file among the trimaps", "passed over")],
    "hidden file among the images": [("hidden file among the images", "passed over")],
    "mat file among the images": [("not a .jpg among the images", "passed over")],
    "RGB PNG named .jpg": [("PNG named .jpg", "kept")],
    "RGBA PNG named .jpg": [("PNG named .jpg", "kept"), ("mode RGBA, converted to RGB", "kept")],
    "GIF named .jpg": [("GIF named .jpg", "kept"), ("mode P, converted to RGB", "kept")],
    "palette PNG with transparency named .jpg": [("PNG named .jpg", "kept"), ("mode P, converted to RGB", "kept")],
    "CMYK JPEG": [("mode CMYK, converted to RGB", "kept")],
    "16-bit grey PNG named .jpg": [("PNG named .jpg", "kept"), ("16-bit, scaled to 8", "kept")],
    "truncated JPEG": [("image cannot be decoded", "left out")],
    "EXIF orientation": [("EXIF rotation, not applied (the trimap has none)", "kept")],
    "empty image file": [("image cannot be decoded", "left out")],
    "trimap without pet": [("trimap without any pet", KEPT_EMPTY)],
    "trimap of half the size": [("trimap of another size, resized (nearest)", "kept")],
    "trimap of another aspect": [("different shapes cannot be matched", "left out")],
    "trimap of other values": [("was it remapped already?", "left out")],
    "image without trimap": [("image without trimap", "left out")],
    "trimap without image": [("trimap without image", "left out")],
    "listed without image": [("listed, but no image", "left out")],
    "image in no list": [("pair in no list", "in protocol seed only; species and breed from its name")],
}
"""Kind of trap -> (the row that it is in, or how that row's title ends; what happens)."""


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    return read_contents(make_trapped_pets(tmp_path_factory.mktemp("pets"), per_breed=3, breeds=4))


@pytest.fixture(scope="module")
def rows(contents: Contents) -> list[Finding]:
    return check_pairs(contents)


@pytest.mark.parametrize(("trap", "kind"), TRAPS.items())
def test_every_trap_is_in_its_rows_and_in_no_other(rows, trap, kind):
    for title, action in ROWS[kind]:
        (row,) = [row for row in rows if row.found == title or (row.left_out and row.found.endswith(title))]
        assert trap in row.names
        assert row.action == action
        assert row.left_out == (action == "left out")
    assert sum(trap in row.names for row in rows) == len(ROWS[kind])


def test_rows_hold_traps_alone(rows):
    named = {name for row in rows for name in row.names}
    assert named == {*TRAPS}


def test_counts_add_up(contents, rows):
    """Every pair is sound, noted or left out, and only one of them."""
    sound, *others = rows
    assert (sound.found, sound.action, sound.names, sound.left_out) == ("sound pair", "used", (), False)
    for row in others:
        assert row.count == len(row.names) > 0
        assert row.names == tuple(sorted(row.names))
    of_strays = {kind for kind in contents.strays if kind in STRAYS}
    of_pairs = [row for row in others if row.found not in of_strays]
    noted = {name for row in of_pairs if not row.left_out for name in row.names}
    left_out = [name for row in of_pairs if row.left_out for name in row.names]
    assert len(left_out) == len({*left_out})
    assert not noted & {*left_out}
    names = {pet.name for pet in contents.pets}
    assert noted | {*left_out} <= names
    assert sound.count == len(names) - len(noted) - len(left_out)
    # 12 drawn pictures and the two in no list are the sound ones
    assert names - noted - {*left_out} == (names - {*TRAPS}) | {"Abyssinian_911", "beagle_911"}
    assert sound.count == 14


def test_nothing_that_lies_in_the_folder_vanishes(contents, rows):
    """Every file is part of an opened pair or named in a row."""
    named = {name for row in rows for name in row.names}
    pairs = {pet.name for pet in contents.pets}
    for place in (contents.folder / "images", contents.folder / "annotations" / "trimaps"):
        for path in place.iterdir():
            assert path.stem in pairs or path.stem in named or path.name in named, path.name


def test_no_row_twice(rows):
    found = [row.found for row in rows]
    assert len(found) == len({*found})


def test_progress_counts_pairs(contents):
    calls: list[tuple[int, int]] = []
    check_pairs(contents, on_progress=lambda done, total: calls.append((done, total)))
    total = len(contents.pets)
    assert calls == [(done, total) for done in range(1, total + 1)]


def test_a_clean_folder_has_one_row(tmp_path):
    folder = make_pets(tmp_path, per_breed=2, breeds=2, size=32)
    assert check_pairs(read_contents(folder)) == [Finding("sound pair", 4, "used", (), False)]


def test_a_file_among_the_trimaps(tmp_path):
    folder = make_pets(tmp_path, per_breed=2, breeds=2, size=32)
    (folder / "annotations" / "trimaps" / "Thumbs.db").write_bytes(b"x")
    assert check_pairs(read_contents(folder))[1:] == [
        Finding("not a .png among the trimaps", 1, "passed over", ("Thumbs.db",), False)
    ]


@pytest.fixture
def remapped(tmp_path: Path) -> Contents:
    """A folder whose trimaps were all remapped, and are each of another size."""
    folder = make_pets(tmp_path, per_breed=2, breeds=4, size=48)
    for number, path in enumerate(sorted((folder / "annotations" / "trimaps").iterdir())):
        side = 0 if number % 2 else 20 + number
        with Image.open(path) as trimap:
            values = np.asarray(trimap)
        Image.fromarray(np.ones((9, 9 + side), np.uint8) if side else values - 1).save(path)
    return read_contents(folder)


def test_one_kind_is_left_out_by_name(remapped):
    rows = check_pairs(remapped)
    assert rows[0].count == 0
    assert sorted(name for row in rows for name in row.names) == [pet.name for pet in remapped.pets]
    assert all(row.left_out for row in rows[1:])


def test_one_kind_is_one_row(remapped):
    """A folder of 7,390 remapped trimaps must not print 7,390 rows."""
    assert [row.count for row in check_pairs(remapped)] == [0, 4, 4]


def test_a_row_names_no_folder(contents, rows):
    for row in rows:
        assert str(contents.folder) not in row.found
        assert not re.search(r"[/\\]", row.found)


def test_a_picture_that_got_lost_after_listing_is_left_out(tmp_path):
    folder = make_pets(tmp_path, per_breed=2, breeds=2, size=32)
    contents = read_contents(folder)
    shutil.rmtree(folder / "images")
    (sound, row) = check_pairs(contents)
    assert sound.count == 0
    assert (row.found, row.count, row.left_out) == ("image cannot be decoded", 4, True)
