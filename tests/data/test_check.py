"""`petseg data check` finds every trap, says what happens to it, and loses nothing."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from petseg.data.check import HANDLED, Finding, check_samples
from petseg.data.sources import open_dataset
from tests.data.traps import NOTES, TRAPS

ROWS = {  # kind of trap -> (the row that it is in, or how that row's title ends; what happens)
    "hidden file beside the trimaps": [("hidden file among the trimaps", "skipped")],
    "hidden file among the images": [("hidden file among the images", "skipped")],
    "mat file among the images": [("not a .jpg among the images", "skipped")],
    **{kind: [(note, HANDLED.get(note, "kept")) for note in notes] for kind, notes in NOTES.items()},
    "truncated JPEG": [("image cannot be decoded", "left out")],
    "empty image file": [("image cannot be decoded", "left out")],
    "trimap of another aspect": [("different shapes cannot be matched", "left out")],
    "trimap of other values": [("was it remapped already?", "left out")],
    **{kind: [(kind, "left out")] for kind in ("image without trimap", "trimap without image")},
    "listed without image": [("listed, but no image", "left out")],
    "image in no list": [("pair in no list", "in protocol seed only; species and breed from its name")],
}


@pytest.fixture(scope="module")
def dataset(trapped):
    return open_dataset(trapped)


@pytest.fixture(scope="module")
def rows(dataset):
    return check_samples(dataset)


@pytest.mark.parametrize(("trap", "kind"), TRAPS.items())
def test_every_trap_is_in_its_rows_and_in_no_other(rows, trap, kind):
    for title, action in ROWS[kind]:
        (row,) = [row for row in rows if row.found == title or (row.left_out and row.found.endswith(title))]
        assert trap in row.names
        assert (row.action, row.left_out) == (action, action == "left out")
    assert sum(trap in row.names for row in rows) == len(ROWS[kind])


def test_counts_add_up_and_nothing_that_lies_in_the_folder_vanishes(dataset, rows, trapped):
    """Every pair is sound, noted or left out, and only one of them; rows hold traps alone, and none stands twice."""
    sound, *others = rows
    assert (sound.found, sound.action, sound.names, sound.left_out) == ("sound pair", "used", (), False)
    for row in others:
        assert row.count == len(row.names) > 0
        assert row.names == tuple(sorted(row.names))
        assert not re.search(r"[/\\]", row.found), "a row names no folder"
    assert len({row.found for row in rows}) == len(rows)
    assert {name for row in rows for name in row.names} == {*TRAPS}
    of_pairs = [row for row in others if row.found not in dataset.skipped]
    noted = {name for row in of_pairs if not row.left_out for name in row.names}
    left_out = [name for row in of_pairs if row.left_out for name in row.names]
    assert len(left_out) == len({*left_out})
    assert not noted & {*left_out}
    ids = {sample.id for sample in dataset.samples}
    assert noted | {*left_out} <= ids
    # the drawn images and the two in no list are the sound ones
    assert ids - noted - {*left_out} == (ids - {*TRAPS}) | {"Abyssinian_911", "beagle_911"}
    assert sound.count == len(ids) - len(noted) - len(left_out) == 6
    for path in [*(trapped / "images").iterdir(), *(trapped / "annotations" / "trimaps").iterdir()]:
        assert {path.stem, path.name} & (ids | {*TRAPS}), "a file is part of an opened pair or named in a row"


def test_a_clean_folder_has_one_row_and_an_image_that_is_lost_after_listing_is_left_out(copied):
    calls = []
    dataset = open_dataset(copied)
    rows = check_samples(dataset, on_progress=lambda done, total: calls.append((done, total)))
    assert rows == [Finding("sound pair", 8, "used", (), False)]
    assert calls == [(done, 8) for done in range(1, 9)]
    shutil.rmtree(copied / "images")
    (sound, row) = check_samples(dataset)
    assert (sound.count, row.found, row.count, row.left_out) == (0, "image cannot be decoded", 8, True)


def test_more_files_among_the_trimaps_and_one_kind_is_one_row(copied):
    path = shutil.copy(copied / "annotations/trimaps/beagle_1.png", copied / "annotations/trimaps/beagle_1.PNG")
    row = Finding("second trimap of one name", 1, "left out", ("beagle_1.png",), True)
    assert check_samples(open_dataset(copied))[1:] == [row]
    path.unlink()
    # a folder of 7,390 remapped trimaps, each of another size, must not print 7,390 rows
    for number, path in enumerate(sorted((copied / "annotations" / "trimaps").iterdir())):
        with Image.open(path) as trimap:
            values = np.asarray(trimap) - 1
        Image.fromarray(values if number % 2 else np.ones((9, 30 + number), np.uint8)).save(path)
    dataset = open_dataset(copied)
    rows = check_samples(dataset)
    assert [(row.count, row.left_out) for row in rows] == [(0, False), (4, True), (4, True)]
    assert sorted(name for row in rows for name in row.names) == [sample.id for sample in dataset.samples]
