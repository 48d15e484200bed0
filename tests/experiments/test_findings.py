"""What a study found: its numbers follow from its counts, its sentences from its numbers, its page from both."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from petseg.errors import PetsegError
from petseg.evaluation.statistics import paired_bootstrap
from petseg.experiments.study.findings import find, verdict, write_findings
from petseg.experiments.study.results import Results
from petseg.metrics import mean_iou
from petseg.report import study_plots, tables, write_study_report
from petseg.report.study import (
    Names,
    answers,
    each_strength,
    missing_words,
    other_leaders,
    pictures_words,
    read_findings,
    render_study,
    settings_words,
    tuning_words,
)
from petseg.storage import read_json, write_json
from tests.cli.test_commands import one_line_error, petseg
from tests.made_studies import MATCHES, make_study
from tests.report.test_report import Page


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("studies") / "whole")


@pytest.fixture(scope="module")
def findings(whole: Path) -> dict[str, Any]:
    return read_findings(write_findings(whole))


def experiment(findings: dict[str, Any], name: str) -> dict[str, Any]:
    return next(found for found in findings["experiments"] if found["name"] == name)


def contrast(findings: dict[str, Any], name: str, left: str, right: str, metric: str = "miou") -> dict[str, Any]:
    wanted = (left, right, metric)
    return next(c for c in experiment(findings, name)["contrasts"] if (c["left"], c["right"], c["metric"]) == wanted)


# Numbers


def test_a_difference_is_the_bootstrap_s_over_the_runs_own_files(whole: Path, findings: dict[str, Any]) -> None:
    counts = []
    for model in ("unet", "segnet"):
        arm = next(arm for arm in experiment(findings, "main")["arms"] if arm["arm"] == f"{model}/width")
        files = [whole / "runs" / run / "evaluations" / "test.images.json" for run in arm["runs"]]
        counts.append(np.array([[row[1] for row in read_json(file)["images"]] for file in files]).reshape(5, -1, 3, 3))
    wanted = paired_bootstrap(*counts)
    found = contrast(findings, "main", "unet/width", "segnet/width")
    assert [found[key] for key in ("points", "low", "high")] == pytest.approx(
        [wanted.points, wanted.low, wanted.high], abs=1e-4
    )
    assert found["seeds"] == [0, 1, 2, 3, 4]
    assert 0 < found["p_value"] <= 0.01
    border = contrast(findings, "main", "unet/width", "segnet/width", "border")
    assert border["points"] != found["points"]


def test_boundary_f_has_its_interval_too(whole: Path, findings: dict[str, Any]) -> None:
    means = {}
    for arm in experiment(findings, "main")["arms"]:
        files = [whole / "runs" / run / "evaluations" / "test.json" for run in arm["runs"]]
        means[arm["arm"]] = 100 * np.mean([read_json(file)["mean_boundary_f"] for file in files])
        assert arm["boundary_f"]["points"] == pytest.approx(means[arm["arm"]], abs=0.01)
        assert arm["boundary_f"]["low"] < arm["boundary_f"]["points"] < arm["boundary_f"]["high"]
    found = contrast(findings, "main", "unet/width", "segnet/width", "boundary_f")
    assert found["points"] == pytest.approx(means["unet/width"] - means["segnet/width"], abs=0.01)
    assert found["low"] < found["points"] < found["high"]
    assert 0 < found["p_value"] <= 1
    names = Names(experiment(findings, "main"), findings["models"])
    assert " points of boundary F, 95 % interval " in names.sentence(found)
    assert names.label(found) == "same base width: U-Net minus SegNet (boundary F)"


def test_cross_entropy_has_an_interval_over_seeds(findings: dict[str, Any]) -> None:
    found = experiment(findings, "main")["arms"][0]["cross_entropy"]
    assert found["low"] < found["mean"] < found["high"]
    assert f"{found['mean']:.4f} ({found['low']:.4f} to {found['high']:.4f})" in Page(render_study(findings)).text


def test_an_arm_has_its_score_cost_and_time(findings: dict[str, Any]) -> None:
    arm = experiment(findings, "main")["arms"][0]
    assert arm["miou"]["low"] < arm["miou"]["points"] < arm["miou"]["high"]
    assert arm["miou"]["points"] == pytest.approx(np.mean(list(arm["by_seed"].values())), abs=1e-3)
    assert arm["train_seconds"] == 21.0 * 30
    assert arm["reached"]["runs"] == 5
    assert arm["cost"]["latency_ms"]["p95"] > arm["cost"]["latency_ms"]["p50"]
    assert len(arm["history"]) == 30


def test_times_of_unlike_machines_are_not_mixed(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "machines")
    for name in ("unet/width", "segnet/parameters"):
        for seed in (3, 4) if name == "unet/width" else range(5):
            run = Results.read(folder).run("main", name, seed)
            assert run is not None
            write_json(run.folder / "environment.json", {**run.environment, "processor": "another"})
            metrics = run.folder / "metrics.jsonl"
            metrics.write_text(re.sub(r'"seconds": [\d.]+', '"seconds": 99.0', metrics.read_text()))
    arms = {arm["arm"]: arm for arm in experiment(find(folder), "main")["arms"]}
    assert arms["unet/width"]["train_seconds"] == 21.0 * 30
    assert arms["unet/width"]["reached"]["runs"] == 5
    assert arms["unet/width"]["reached"]["seconds"] < 21.0 * 30
    assert arms["segnet/parameters"]["train_seconds"] is None
    assert arms["segnet/width"]["train_seconds"] == 21.0 * 30


def test_one_run_under_two_names_is_compared_with_nothing(findings: dict[str, Any]) -> None:
    pairs = {(c["left"], c["right"]) for c in experiment(findings, "main")["contrasts"]}
    assert ("unet/width", "unet/parameters") not in pairs
    assert ("segnet/parameters", "segnet/width") in pairs


@pytest.mark.parametrize(
    ("low", "high", "options", "told"),
    [
        (0.1, 2, {"equal": False}, "held"),
        (-0.1, 2, {"equal": False}, "open"),
        (-2, -0.1, {"equal": False}, "did not hold"),
        (2.1, 3, {"equal": False, "by": 2}, "held"),
        (1.2, 3, {"equal": False, "by": 2}, "open"),
        (0.5, 1.9, {"equal": False, "by": 2}, "did not hold"),
        (-0.1, 2, {"equal": True}, "held"),
        (0.1, 2, {"equal": True}, "did not hold"),
    ],
)
def test_an_expectation_is_held_against_the_interval(
    low: float, high: float, options: dict[str, Any], told: str
) -> None:
    assert verdict(low, high, **options) == told


def test_every_claim_of_the_recipe_has_a_verdict(findings: dict[str, Any]) -> None:
    for found in findings["experiments"]:
        told = {claim["text"] for contrast in found["contrasts"] for claim in contrast["expected"]}
        assert told == set(found["expected"])


def test_what_is_lost_at_the_other_s_best_setting(findings: dict[str, Any], whole: Path) -> None:
    tuning = findings["tuning"]
    lost = tuning["at_the_other_s_best"]
    cells = {(cell["model"], cell["learning_rate"], cell["warmup"]): cell["miou"] for cell in tuning["cells"]}
    assert lost["segnet"]["points"] == pytest.approx(cells["segnet", 1e-3, 0.3] - cells["segnet", 4e-3, 0.05], abs=2e-4)
    assert tuning["more_lost"]["points"] == pytest.approx(lost["segnet"]["points"] - lost["unet"]["points"], abs=2e-4)
    assert tuning["verdict"] == "held"
    assert not any("the grid's last" in told for told in tuning_words(findings))
    best = {"unet": {"learning_rate": 8e-3, "warmup": 0.05}, "segnet": {"learning_rate": 5e-4, "warmup": 0.3}}
    assert tuning_words(findings | {"tuning": tuning | {"best": best}})[:2] == [
        "U-Net's best rate, 0.008, is the grid's last: a higher one may be better.",
        "SegNet's best rate, 0.0005, is the grid's last: a lower one may be better.",
    ]
    assert re.fullmatch(
        r"At SegNet's best setting U-Net loses \d\.\d points of mIoU on validation "
        r"\(95 % interval −?\d\.\d to \d\.\d; one seed\)\.",
        tuning_words(findings)[0],
    )


def test_another_thousand_pictures_follow_the_last_doubling(findings: dict[str, Any]) -> None:
    data = experiment(findings, "data")
    found = data["another_thousand"]["segnet"]
    assert (found["from"], found["to"], found["more"]) == (1656, 3312, 1000)
    share = np.log(4312 / 3312) / np.log(2)
    assert found["points"] == pytest.approx(share * found["measured"]["points"], abs=1e-3)
    assert "another 1,000 pictures gain" in pictures_words(data, findings["models"])[1]


def test_the_same_study_gives_the_same_findings(whole: Path, findings: dict[str, Any]) -> None:
    assert find(whole) == findings


# Sentences


def said(points: float, low: float, high: float, **more: Any) -> str:
    models = {"unet": "U-Net", "segnet": "SegNet"}
    arms = [
        {"arm": f"{model}/{variant}", "model": model, "variant": variant, "title": title}
        for model in models
        for variant, title in (("a", "same width"), ("b", "same latency"))
    ]
    finding = {"left": "unet/a", "right": "segnet/a", "metric": "miou", "seeds": [0, 1]}
    finding |= {"points": points, "low": low, "high": high, "costs": {"latency": 1.3}} | more
    return Names({"arms": arms, "seeds": [0, 1]}, models).sentence(finding)


def test_a_sentence_names_the_leader_the_interval_and_the_cost() -> None:
    assert said(1.8, 1.2, 2.4) == (
        "Same width: U-Net leads SegNet by 1.8 points of mIoU, 95 % interval 1.2 to 2.4, at 1.3 times the latency."
    )
    assert said(-1.8, -2.4, -1.2) == (
        "Same width: SegNet leads U-Net by 1.8 points of mIoU, 95 % interval 1.2 to 2.4, at 0.77 times the latency."
    )
    assert said(0.2, -0.3, 0.7, costs={"latency": 1.01}) == (
        "Same width: no difference shown: U-Net minus SegNet is 0.2 points of mIoU, 95 % interval −0.3 to 0.7, at the "
        "same latency."
    )
    assert said(1.8, 1.2, 2.4, right="unet/b", metric="border", costs={}) == (
        "U-Net: “same width” leads “same latency” by 1.8 points of border IoU, 95 % interval 1.2 to 2.4."
    )
    assert said(1.8, 1.2, 2.4, right="segnet/b", costs={}, seeds=[0]) == (
        "U-Net (same width) leads SegNet (same latency) by 1.8 points of mIoU, 95 % interval 1.2 to 2.4 (1 of 2 seeds "
        "so far)."
    )


# The page


def test_the_page_holds_answers_expectations_figures_and_their_data(findings: dict[str, Any]) -> None:
    page = render_study(findings)
    text = Page(page).text
    for sentence in answers(findings):
        assert sentence in text
    assert "U-Net > SegNet by 2 points: a skip hands over the whole map" in text
    assert "SegNet, same parameters: 101 for 100 parameters, 1.0 % off." in text
    assert "✓ held" in text
    assert "diverged" not in text
    assert "these figures say nothing" in text, "48 test pictures are not the data set"
    data = {
        name: base64.b64decode(csv).decode()
        for name, csv in re.findall(r'download="(.*?)" href="data:text/csv;base64,(.*?)"', page)
    }
    assert set(data) == {
        *("latency-main.csv", "latency-width.csv", "forest.csv", "pictures-data.csv"),
        *("training-val-miou.csv", "training-val-loss.csv", "robustness.csv", "breeds.csv"),
    }
    for rows in data.values():
        widths = {len(row.split(",")) for row in rows.splitlines() if '"' not in row}
        assert len(widths) == 1
    assert data["pictures-data.csv"].startswith("model,line,pictures,miou,low,high,seeds\nunet,,3312,")
    assert page.count("<svg viewBox") >= len(data)


def test_the_page_loads_nothing_and_repeats_byte_for_byte(
    whole: Path, findings: dict[str, Any], tmp_path: Path
) -> None:
    written = [write_study_report(whole / "findings.json", tmp_path / f"{name}.html").read_bytes() for name in "ab"]
    assert written[0] == written[1]
    assert not re.findall(r'(?:src|href)="(?!data:|https://creativecommons|#)', written[0].decode())
    ids = re.findall(r' id="([^"]+)"', written[0].decode())
    assert len(ids) == len(set(ids))


def test_the_whole_data_set_carries_no_warning(findings: dict[str, Any]) -> None:
    assert "these figures say nothing" not in render_study({**findings, "official": True})


def test_every_value_of_a_setting_in_any_run_is_told(whole: Path, findings: dict[str, Any]) -> None:
    configs = [read_json(path) for path in whole.glob("runs/*/config.json")]
    told = findings["settings"]["train.learning_rate"]
    assert sorted(told) == sorted({config["train"]["learning_rate"] for config in configs})
    assert len(told) > 1
    assert settings_words("train.learning_rate", told) in Page(render_study(findings)).text


def test_a_kind_of_change_is_the_mean_of_its_strengths_and_each_is_told(findings: dict[str, Any]) -> None:
    contrasts = findings["robustness"]["contrasts"]
    for found in contrasts:
        strengths = [one["points"] for one in found["by_strength"][1:]]
        assert found["points"] == pytest.approx(np.mean(strengths), abs=2e-4)
    names = Names(experiment(findings, "main"), findings["models"])
    given = contrasts[0] | {"points": -2.0, "low": -3.0, "high": -1.0}
    parts = [given | {"points": points, "low": points - 1, "high": points + 1} for points in (9, 2, -0.5, -7)]
    given["by_strength"] = parts
    assert other_leaders(given, [25, 12, 6], names) == " (but U-Net at 25)"
    assert other_leaders(given | {"low": -5.0, "high": 1.0}, [25, 12, 6], names) == " (but U-Net at 25 and SegNet at 6)"
    assert each_strength(given, [25, 12, 6], names) == (
        "; U-Net minus SegNet 2.0 (1.0 to 3.0) at 25, −0.5 (−1.5 to 0.5) at 12, −7.0 (−8.0 to −6.0) at 6"
    )


def test_where_each_model_leads_is_told_before_the_rows(findings: dict[str, Any]) -> None:
    text = Page(render_study(findings)).text
    of_width = [c for c in findings["robustness"]["contrasts"] if c["left"] == "unet/width"]
    leads = [findings["robustness"]["titles"][c["kind"]] for c in of_width if c["low"] > 0]
    assert 0 < len(leads) <= len(of_width)
    assert f"Same base width: U-Net is shown to lead with {tables.listing(leads)}" in text
    views = [c for view in findings["honesty"]["views"] for c in view["contrasts"] if c["left"] == "unet/width"]
    assert (
        f"Same base width: U-Net is shown to lead SegNet on {sum(c['low'] > 0 for c in views)} of {len(views)}" in text
    )


def test_a_chart_s_words_and_rows_hold_its_numbers(findings: dict[str, Any]) -> None:
    chart = study_plots.latency_chart(experiment(findings, "width"), findings["models"])
    assert chart is not None
    arm = experiment(findings, "width")["arms"][0]
    assert f"U-Net, 8 channels: {arm['miou']['points']:.1f} % at" in chart.drawing.label
    assert f",{arm['miou']['points']},{arm['miou']['low']},{arm['miou']['high']},3" in chart.csv


def test_an_arm_under_two_names_stands_once_where_it_came_first(findings: dict[str, Any]) -> None:
    found = [arm["arm"] for arm in study_plots.scored(experiment(findings, "main")["arms"])]
    assert found == ["unet/width", "segnet/width", "segnet/parameters", "segnet/latency", "segnet/stages"]


def test_two_views_of_the_same_runs_are_told_once(tmp_path: Path) -> None:
    """Where SegNet of U-Net's latency is SegNet as it is, main has both footings and the rest one."""
    folder = make_study(tmp_path / "equal", shapes=MATCHES | {"main:segnet/latency": {}})
    found = find(folder)
    assert len(answers(found)) == 4
    assert answers(found)[2] == "Same latency: the same networks as with the same base width."
    assert contrast(found, "main", "unet/latency", "segnet/latency")["points"]
    for part in (found["robustness"]["contrasts"], *(view["contrasts"] for view in found["honesty"]["views"])):
        pairs = {c["left"] for c in part}
        assert pairs == {"unet/width", "unet/parameters", "unet/stages"}


# Studies that are not complete


def test_a_study_without_a_run_says_so(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "none", leave_out=lambda run: True)
    found, count = find(folder), len(read_json(folder / "study.json")["runs"])
    page = Page(render_study(found)).text
    assert "No comparison has been run yet." in page
    assert f"{count} runs of {count} are not made yet" in page
    assert "U-Net against SegNet: not run yet." in page
    assert "held" not in {
        claim["verdict"] for part in found["experiments"] for c in part["contrasts"] for claim in c["expected"]
    }


def test_a_part_tells_what_it_has_and_what_is_missing(tmp_path: Path) -> None:
    def later(run: Any) -> bool:
        row = run.rows[0]
        return row.experiment not in ("tuning", "main") or (row.experiment == "main" and row.seed > 2)

    found = find(make_study(tmp_path / "part", leave_out=later))
    lead = contrast(found, "main", "unet/width", "segnet/width")
    assert lead["seeds"] == [0, 1, 2]
    assert lead["expected"][0]["verdict"] == "open"
    assert answers(found)[0].endswith("(3 of 5 seeds so far).")
    assert "U-Net against SegNet at equal footing: U-Net, same base width: 2 of 5 seeds missing." in missing_words(
        found
    )
    assert "Batch normalisation on and off: SegNet, off: 3 of 3 seeds missing." in missing_words(found)
    assert "so far" in render_study(found)


def test_a_run_that_diverged_is_a_result(tmp_path: Path, whole: Path) -> None:
    folder = make_study(tmp_path / "diverged")
    manifest = read_json(folder / "study.json")
    for run in manifest["runs"]:
        if {"experiment": "batch_norm", "arm": "unet/off", "seed": 1} in run["rows"] or (
            {"experiment": "tuning", "arm": "segnet/0.004-0.05", "seed": 0} in run["rows"]
        ):
            run["state"] = "diverged"
            write_json(folder / "runs" / run["name"] / "diverged.json", {"reason": "not a number"})
    write_json(folder / "study.json", manifest)
    found = find(folder)
    assert found["runs"] == {"finished": len(manifest["runs"]) - 2, "diverged": 2}
    off = contrast(found, "batch_norm", "unet/on", "unet/off")
    sentence = Names(experiment(found, "batch_norm"), found["models"]).sentence(off)
    assert sentence.endswith("(2 of 3 seeds; “off” diverged in 1 of 3 seeds).")
    assert {claim["verdict"] for claim in off["expected"]} == {"open"}
    assert missing_words(found) == ["Batch normalisation on and off: U-Net, off: diverged with seed 1."]
    assert contrast(found, "batch_norm", "unet/on", "unet/off")["seeds"] == [0, 2]
    assert tuning_words(found)[1] == "At U-Net's best setting SegNet diverges."
    assert found["tuning"]["verdict"] == "held"
    assert "diverged" in Page(render_study(found)).text


def test_an_arm_that_diverges_in_every_seed_has_lost(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "diverged")
    manifest = read_json(folder / "study.json")
    for run in manifest["runs"]:
        if any((row["experiment"], row["arm"]) == ("batch_norm", "unet/off") for row in run["rows"]):
            run["state"] = "diverged"
            write_json(folder / "runs" / run["name"] / "diverged.json", {"reason": "not a number"})
    write_json(folder / "study.json", manifest)
    found = find(folder)
    lost = contrast(found, "batch_norm", "unet/on", "unet/off")
    assert [claim["verdict"] for claim in lost["expected"]] == ["held"]
    names = Names(experiment(found, "batch_norm"), found["models"])
    assert names.sentence(lost) == "U-Net: “on” against “off”: “off” diverged in every seed."
    assert "“off” diverged in every seed" in Page(render_study(found)).text


# Files


def test_the_command_writes_findings_and_page(whole: Path, tmp_path: Path) -> None:
    result = petseg("report", whole, "--out", tmp_path / "page.html")
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1] == "resample: 100 %"
    again = petseg("report", whole / "findings.json", "--out", tmp_path / "again.html")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "again.html").read_bytes()


def test_wrong_files_are_one_line(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "findings.json").write_text('{"kind": "comparison", "version": 1}')
    told = one_line_error(petseg("report", tmp_path / "findings.json"))
    assert "kind 'comparison', version 1; wanted findings of version 2: run `petseg report` on the study's" in told
    manifest = read_json(whole / "study.json")
    write_json(tmp_path / "study.json", {**manifest, "recipe": {"title": 3}})
    with pytest.raises(PetsegError, match=r"its recipe cannot be read .*; read it with the petseg that made it"):
        Results.read(tmp_path)


def test_scores_and_counts_agree(whole: Path) -> None:
    results = Results.read(whole)
    run = results.run("main", "unet/width", 0)
    assert run is not None
    names, counts = results.counts(run, "test")
    assert len(names) == len(counts) == 48
    assert mean_iou(counts.sum(axis=0)) == pytest.approx(run.scores("test")["miou"])


def test_damaged_counts_are_one_line(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "damaged")
    results = Results.read(folder)
    run = results.run("main", "unet/width", 0)
    assert run is not None
    file = run.folder / "evaluations" / "test.images.json"
    file.write_text(json.dumps({"images": [["a", [1, 2]]]}))
    with pytest.raises(PetsegError, match=r"test\.images\.json: not per-picture counts \(.*\); score the run again"):
        results.counts(run, "test")
