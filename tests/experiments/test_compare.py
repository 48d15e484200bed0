"""The comparison end to end, small: every stage real, on made pets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg.config import load_recipe
from petseg.data.cache import Prepared
from petseg.experiments.compare import choose_examples, compare
from petseg.metrics import mean_iou
from petseg.report import write_report
from petseg.report.page import read_comparison
from petseg.training.loop import choose_hardware
from tests.conftest import TINY

CPU = choose_hardware("fp32", "cpu")


@pytest.fixture
def finished(prepared: Prepared, tmp_path: Path) -> Path:
    compare(
        load_recipe("default", TINY), prepared, tmp_path / "out", hardware=CPU, command="petseg compare", made_data=True
    )
    return tmp_path / "out"


def test_a_comparison_holds_every_figure_and_makes_a_report(finished: Path, prepared: Prepared) -> None:
    comparison = read_comparison(finished / "comparison.json")
    assert [model["name"] for model in comparison["models"]] == ["unet", "segnet"]
    assert comparison["split"] == "test"
    assert comparison["data"]["train"] + comparison["data"]["val"] + comparison["data"]["test"] == len(prepared.pets)
    for model in comparison["models"]:
        assert len(model["history"]) == 2
        stored = json.loads((finished / "runs" / model["name"] / "evaluations" / "test.images.json").read_text())
        counts = np.array([row[1] for row in stored["images"]]).reshape(-1, 3, 3)
        assert model["evaluations"]["test"]["miou"] == pytest.approx(float(mean_iou(counts.sum(axis=0))))
        assert model["cost"]["latency_ms"]["p50"] > 0
    points = 100 * np.subtract(*(model["evaluations"]["test"]["miou"] for model in comparison["models"]))
    low, high = comparison["difference"]["interval"]
    assert comparison["difference"]["points"] == pytest.approx(points)
    assert low <= points <= high
    # both saw the same pictures under the same budget
    first, second = (json.loads((finished / "runs" / name / "config.json").read_text()) for name in ("unet", "segnet"))
    assert first["train"] == second["train"]
    assert first["data"] == second["data"]
    page = write_report(finished / "comparison.json").read_text(encoding="utf-8")
    assert "these figures mean nothing for real cats and dogs" in page
    assert page.count("data:image/") == 4 * len(comparison["examples"])


def test_the_background_baseline_says_background_everywhere(finished: Path) -> None:
    comparison = read_comparison(finished / "comparison.json")
    iou = comparison["baselines"][0]["evaluations"]["test"]["iou"]
    assert iou["pet"] == iou["border"] == 0
    assert 0.4 < iou["background"] < 0.8


def test_example_pictures_show_photo_truth_and_both_models(finished: Path) -> None:
    comparison = read_comparison(finished / "comparison.json")
    for example in comparison["examples"]:
        sizes = set()
        for name in example["files"].values():
            with Image.open(finished / name) as picture:
                sizes.add(picture.size)
        assert set(example["files"]) == {"image", "truth", "unet", "segnet"}
        assert len(sizes) == 1


def test_resuming_a_finished_comparison_changes_no_figure(finished: Path, prepared: Prepared) -> None:
    before = read_comparison(finished / "comparison.json")
    after = compare(
        load_recipe("default", TINY),
        prepared,
        finished,
        hardware=CPU,
        command="petseg compare",
        resume=True,
        made_data=True,
    )
    for one, other in zip(before["models"], after["models"], strict=True):
        assert one["history"] == other["history"]
        assert one["evaluations"] == other["evaluations"]
    assert before["difference"] == after["difference"]
    assert before["examples"] == after["examples"]


def test_validation_only_leaves_the_test_split_alone(prepared: Prepared, tmp_path: Path) -> None:
    comparison = compare(
        load_recipe("default", [*TINY, "train.epochs=1"]),
        prepared,
        tmp_path / "out",
        hardware=CPU,
        command="",
        final=False,
    )
    assert comparison["split"] == "val"
    assert not list(tmp_path.glob("out/*/*/evaluations/test*")) + list(tmp_path.glob("out/baselines/*/test*"))


def test_examples_are_best_median_worst_and_where_the_models_differ() -> None:
    a = np.linspace(0, 1, 101)
    b = a.copy()
    b[[20, 30, 80, 90]] -= 0.2
    chosen = choose_examples({"a": a, "b": b})
    by_kind = {why: {row for row, kind in chosen if kind == why} for _, why in chosen}
    assert by_kind["best"] == {100, 99}
    assert by_kind["worst"] == {0, 1}
    assert by_kind["differ"] == {20, 30, 80, 90}
    assert all(45 < row < 56 for row in by_kind["median"])
    assert len({row for row, _ in chosen}) == len(chosen)


def test_examples_of_very_few_pictures_are_not_repeated() -> None:
    chosen = choose_examples({"a": np.array([0.1, 0.2]), "b": np.array([0.2, 0.1])})
    assert sorted(row for row, _ in chosen) == [0, 1]
