"""An experiment's runs on corrupted images, on subsets and group by group."""

from __future__ import annotations

import numpy as np
import pytest

from petseg.data.oxford_pets import committed_leaks, committed_validation
from petseg.evaluation.corruptions import SEVERITIES
from petseg.experiments.study.findings import find
from petseg.experiments.study.results import read_manifest
from petseg.experiments.study.subsets import subset_counts
from petseg.schema import write_record
from tests.made_studies import MATCHES, make_study


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return find(make_study(tmp_path_factory.mktemp("studies") / "whole"))


def test_every_corruption_has_a_ranking_with_its_interval_and_verdict(findings):
    found = findings.robustness
    assert found.images == 16
    assert {one.corruption for one in found.differences} == set(SEVERITIES)
    for one in found.differences:
        assert one.difference.low <= one.difference.points <= one.difference.high
        assert len(one.by_severity) == 4
        assert one.difference.points == pytest.approx(np.mean([part.points for part in one.by_severity[1:]]), abs=2e-4)
        assert one.expected
    points = [score.points for score in found.arms[0].scores["dark"]]
    assert points == sorted(points, reverse=True)
    # as drawn, U-Net is ahead everywhere: what was expected of noise did not hold
    noise = next(one for one in found.differences if one.corruption == "noise")
    assert noise.expected[0].verdict == "did not hold"


def test_a_study_without_these_parts_still_reports(tmp_path):
    folder = make_study(tmp_path / "older")
    manifest = read_manifest(folder)
    entries = [
        entry.model_copy(update={"splits": tuple(split for split in entry.splits if split != "robustness")})
        for entry in manifest.runs
    ]
    manifest = manifest.model_copy(update={"runs": tuple(entries)})
    write_record(folder / "study.json", manifest)
    found = find(folder).robustness
    assert (found.arms, found.differences) == ((), ())
    recipe = manifest.recipe.model_copy(update={"robustness": None, "subsets": None})
    write_record(folder / "study.json", manifest.model_copy(update={"recipe": recipe}))
    without = find(folder)
    assert (without.robustness, without.subsets) == (None, None)


def test_leaks_are_22_test_images_and_none_validates():
    assert len(committed_leaks()) == 22
    assert not committed_leaks() & committed_validation()


def test_the_border_counted_otherwise():
    counts = np.array([[[[50, 3, 2], [4, 30, 1], [5, 6, 9]]]])

    def looked(name):
        return subset_counts(counts, name, ["beagle_1"], counts[0].sum(axis=2))[0, 0].tolist()

    assert looked("border_pet") == [[50 + 2 + 5 + 9, 3 + 6], [4 + 1, 30]]
    assert looked("border_background") == [[50, 3 + 2], [4 + 5, 30 + 1 + 6 + 9]]
    assert looked("border_ignored") == [[50 + 2, 3], [4 + 1, 30]]


@pytest.mark.parametrize(
    ("name", "pets"),
    [("unleaked", [60, 50, 40, 30, 20]), ("small", [10, 20]), ("medium", [40, 30]), ("large", [60, 50])],
)
def test_a_part_of_the_images(name, pets):
    ids = [sorted(committed_leaks())[0], *(f"pug_{number}" for number in range(5))]
    counts = np.zeros((2, 6, 3, 3), np.int64)
    counts[..., 1, 1] = 100
    counts[:, :, 0, 0] = [10, 60, 50, 40, 30, 20]
    assert subset_counts(counts, name, ids, counts[0].sum(axis=2))[1, :, 0, 0].tolist() == pets


def test_groups_have_their_own_images(findings):
    groups = findings.subsets.groups
    assert [row.group for row in groups.rows] == ["Abyssinian", "Bombay", "beagle", "pug"]
    assert sum(row.images for row in groups.rows) == 48
    for row in groups.rows:
        assert row.points == pytest.approx(row.left - row.right, abs=2e-4)


def test_arms_of_the_same_runs_are_looked_at_once(tmp_path):
    """Where SegNet of U-Net's latency is SegNet as it is, main has both arms and the rest one."""
    found = find(make_study(tmp_path / "equal", shapes=MATCHES | {"main:segnet/latency": {}}))
    assert {one.left for one in found.experiment("main").differences} >= {"unet/latency"}
    for part in (found.robustness.differences, *(subset.differences for subset in found.subsets.subsets)):
        assert {one.left for one in part} == {"unet/width", "unet/parameters", "unet/stages"}
