"""What a study found: its numbers follow from its runs' counts, also on corrupted images, on subsets and by group."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from petseg.data.oxford_pets import COMMITTED_LEAKS, COMMITTED_VALIDATION
from petseg.errors import PetsegError
from petseg.evaluation.corruptions import KINDS
from petseg.evaluation.statistics import paired_bootstrap, summed_by
from petseg.experiments.study.findings import find, verdict, write_findings
from petseg.experiments.study.results import Results, publish, read_manifest
from petseg.experiments.study.subsets import subset_counts
from petseg.metrics import mean_iou
from petseg.report.study import render_study
from petseg.schema import Findings, read_record, write_record
from petseg.storage import read_json, write_json
from tests import made_studies
from tests.cli.test_commands import one_line_error, petseg, succeeds
from tests.conftest import refused
from tests.made_studies import BEST, MATCHES, diverge, make_study, truths


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("studies") / "whole")


@pytest.fixture(scope="module")
def findings(whole):
    return read_record(write_findings(whole), Findings)


def between(findings, name, left, right, metric="miou"):
    wanted = (left, right, metric)
    return next(d for d in findings.experiment(name).differences if (d.left, d.right, d.metric) == wanted)


def test_scores_and_differences_are_the_bootstrap_s_over_the_runs_own_files(whole, findings):
    counts = []
    for model in ("unet", "segnet"):
        arm = next(arm for arm in findings.experiment("main").arms if arm.arm == f"{model}/width")
        files = [whole / "runs" / run / "evaluations" / "test.images.json" for run in arm.runs]
        counts.append(np.array([[row[1] for row in read_json(file)["images"]] for file in files]).reshape(5, -1, 3, 3))
    wanted = paired_bootstrap(*counts)
    found = between(findings, "main", "unet/width", "segnet/width")
    own = found.difference
    assert [own.points, own.low, own.high] == pytest.approx([wanted.points, wanted.low, wanted.high], abs=1e-4)
    assert found.seeds == (0, 1, 2, 3, 4)
    assert between(findings, "main", "unet/width", "segnet/width", "border").difference.points != own.points
    # boundary F too
    means = {}
    for arm in findings.experiment("main").arms:
        files = [whole / "runs" / run / "evaluations" / "test.json" for run in arm.runs]
        means[arm.arm] = 100 * np.mean([read_json(file)["mean_boundary_f"] for file in files])
        assert arm.scores.boundary_f.points == pytest.approx(means[arm.arm], abs=0.01)
        assert arm.scores.boundary_f.low < arm.scores.boundary_f.points < arm.scores.boundary_f.high
    found = between(findings, "main", "unet/width", "segnet/width", "boundary_f").difference
    assert found.points == pytest.approx(means["unet/width"] - means["segnet/width"], abs=0.01)
    assert found.low < found.points < found.high
    arm = findings.experiment("main").arms[0]
    scores = arm.scores
    assert scores.miou.low < scores.miou.points < scores.miou.high
    own = [read_json(whole / "runs" / run / "evaluations" / "test.json")["miou"] for run in arm.runs]
    assert scores.miou.points == pytest.approx(100 * np.mean(own), abs=1e-3)
    assert (scores.train_seconds, len(scores.history["val_miou"])) == (21.0 * 30, 30)
    assert arm.cost.latency_ms.p95 > arm.cost.latency_ms.p50
    match = findings.experiment("main").arms[3].match
    assert (match.wanted, match.reached) == (100, 101)


def test_times_of_unlike_machines_are_not_mixed_nor_one_run_compared_with_itself(findings, tmp_path):
    folder = make_study(tmp_path / "machines")
    results = Results(folder)
    for name in ("unet/width", "segnet/parameters"):
        for seed in (3, 4) if name == "unet/width" else range(5):
            entry = results.runs("main", name, seed)[0]
            place = folder / "runs" / entry.name
            write_json(place / "environment.json", {**read_json(place / "environment.json"), "processor": "another"})
            metrics = place / "metrics.jsonl"
            metrics.write_text(re.sub(r'"seconds": [\d.]+', '"seconds": 99.0', metrics.read_text()))
    found = find(folder)
    times = {arm.arm: arm.scores for arm in found.experiment("main").arms}
    unet, parameters, segnet = (times[arm] for arm in ("unet/width", "segnet/parameters", "segnet/width"))
    assert (unet.train_seconds, parameters.train_seconds, segnet.train_seconds) == (21.0 * 30, None, 21.0 * 30)
    assert {machine.processor: machine.runs for machine in found.machines} == {"made": 136, "another": 7}
    # one run under two names is compared with nothing
    pairs = {(found.left, found.right) for found in findings.experiment("main").differences}
    assert ("unet/width", "unet/parameters") not in pairs
    assert ("segnet/parameters", "segnet/width") in pairs


def test_an_expectation_is_held_against_the_interval():
    ends = [(0.1, 2), (-0.1, 2), (-2, -0.1)]
    assert [verdict(low, high, equal=False) for low, high in ends] == ["held", "open", "did not hold"]
    assert [verdict(low, high, equal=True) for low, high in ends[:2]] == ["did not hold", "held"]
    ends = [(2.1, 3), (1.2, 3), (0.5, 1.9)]
    assert [verdict(low, high, equal=False, by=2) for low, high in ends] == ["held", "open", "did not hold"]


def test_every_claim_has_a_verdict_every_setting_all_its_values_and_each_group_its_own_images(whole, findings):
    for planned in Results(whole).study.experiments:
        found = findings.experiment(planned.name).differences
        assert {text for one in found for text in one.expected} == set(planned.expected)
    configs = [read_json(path) for path in whole.glob("runs/*/config.json")]
    values = findings.settings["train.learning_rate"]
    assert set(values) == {config["train"]["learning_rate"] for config in configs}
    assert len(values) == len(set(values)) > 1
    assert findings.settings["model.skips"] == (None, False), "None: the model's own"
    assert list(findings.groups) == ["Abyssinian", "Bombay", "beagle", "pug"]
    arm = next(arm for arm in findings.experiment("main").arms if arm.arm == "unet/width")
    scores = [read_json(whole / "runs" / run / "evaluations" / "test.json")["group_miou"]["pug"] for run in arm.runs]
    assert findings.groups["pug"]["unet"] == pytest.approx(100 * np.mean(scores), abs=1e-3)


def test_the_tuning_marks_each_model_s_best_cell(findings):
    best = {cell.model: cell.fields for cell in findings.tuning.cells if cell.best}
    assert best == {
        model: {"train.warmup": warmup, "train.learning_rate": rate} for model, (rate, warmup) in BEST.items()
    }


def test_a_primary_claim_is_held_against_the_interval_of_all_primary_ones(whole, findings, tmp_path):
    manifest = read_manifest(whole)
    main, *others = manifest.recipe.experiments
    claims = ("unet/width > segnet/width", "unet/parameters > segnet/parameters", "segnet/stages > segnet/width")
    low = between(findings, "main", "unet/width", "segnet/width").difference.low
    alone = f"unet/width > segnet/width by {low - 0.01:.2f}"
    barely = f"{alone}: held by its own interval alone"
    main = main.model_copy(update={"primary": (*claims, barely), "expected": (alone,)})
    recipe = manifest.recipe.model_copy(update={"experiments": (main, *others), "family_error": 0.01})
    folder = shutil.copytree(whole, tmp_path / "primary")
    write_record(folder / "study.json", manifest.model_copy(update={"recipe": recipe}))
    found = find(folder)
    assert found.family.comparisons == 3
    one = between(found, "main", "unet/width", "segnet/width")
    assert one.primary
    assert one.together[0] < one.difference.low < one.difference.high < one.together[1]
    assert one.expected[barely] == "open"
    assert one.expected[alone] == "held"
    assert not between(found, "main", "unet/latency", "segnet/latency").primary
    # counted once, whatever it is about
    counted = {(claim.text, claim.primary): claim.comparisons for claim in found.claims if claim.part == "main"}
    assert counted[barely, True] == 1
    assert counted[alone, False] == 0, "said already"
    width = next(claim for claim in found.claims if claim.text == "unet > segnet: at every width")
    assert (width.comparisons, width.verdict) == (3, "held")
    # and recomputed without petseg, the interval of all of them included
    publish(folder, tmp_path / "published")
    write_record(tmp_path / "published" / "findings.json", found)
    assert recomputed(tmp_path / "published")[0] == 0
    other = found.model_dump(mode="json")
    next(each for each in other["experiments"][0]["differences"] if each["primary"])["together"][0] += 0.01
    write_json(tmp_path / "published" / "findings.json", other)
    assert recomputed(tmp_path / "published")[0] == 1


def test_claims_of_cross_validation_are_recomputed_from_all_folds(tmp_path):
    def changed(study):
        data = study.data.model_copy(update={"folds": 3})
        return study.model_copy(update={"data": data, "robustness": None, "subsets": None})

    folder = make_study(tmp_path / "study", changed=changed)
    assert {run.rows[0].fold for run in read_manifest(folder).runs} == {0, 1, 2}
    publish(folder, tmp_path / "published")
    found = find(folder)
    write_record(tmp_path / "published" / "findings.json", found)
    code, lines = recomputed(tmp_path / "published")
    assert code == 0
    assert len(lines) > 5
    page = render_study(found)
    assert "<li>3 folds</li>" in page
    assert "<li>48 test</li>" not in page


def test_claims_where_few_images_hold_a_class_are_recomputed_and_groups_are_refused(tmp_path, monkeypatch):
    """The border lies in 4 of 48 images: resamples without it, and degrees of freedom by class."""

    def changed(study):
        claims = "unet/width > segnet/width", "unet/stages > segnet/stages"
        main = study.experiments[0].model_copy(update={"primary": claims})
        return study.model_copy(update={"experiments": (main,), "robustness": None, "subsets": None})

    def rarely_bordered(split, count):
        return truths(split, count) * np.array([[1, 1, place % 12 == 0] for place in range(count)])

    monkeypatch.setattr(made_studies, "truths", rarely_bordered)
    shapes = {name: shape for name, shape in MATCHES.items() if name.startswith("main")}
    folder = make_study(tmp_path / "study", changed=changed, shapes=shapes)
    publish(folder, tmp_path / "published")
    found = find(folder)
    write_record(tmp_path / "published" / "findings.json", found)
    assert recomputed(tmp_path / "published")[0] == 0
    monkeypatch.setattr("petseg.evaluation.statistics._worth", lambda confusions, _: confusions.shape[1])
    one, before = (between(each, "main", "unet/width", "segnet/width").together for each in (found, find(folder)))
    assert one[1] - one[0] > 1.1 * (before[1] - before[0])
    grouped = found.model_copy(update={"settings": {**found.settings, "data.groups": ("^[a-z]+",)}})
    write_record(tmp_path / "published" / "findings.json", grouped)
    code, lines = recomputed(tmp_path / "published", "stderr")
    assert (code, lines[-1]) == (1, "AssertionError: intervals over data.groups; here they are over images")


def test_every_corruption_has_a_ranking_with_its_interval_and_verdict(findings):
    found = findings.robustness
    assert ({one.images for one in found}, {one.metric for one in found}) == ({16}, set(KINDS))
    for one in found:
        assert one.difference.low <= one.difference.points <= one.difference.high
        assert len(one.by_severity) == 4
        assert one.difference.points == pytest.approx(np.mean([part.points for part in one.by_severity[1:]]), abs=2e-4)
        assert one.expected
    points = [score.points for score in findings.corrupted["unet"]["dark"]]
    assert points == sorted(points, reverse=True)
    # as drawn, U-Net is ahead everywhere: what was expected of noise did not hold
    noise = next(one for one in found if one.metric == "noise")
    assert noise.expected["unet = segnet in noise"] == "did not hold"


def test_a_study_without_these_parts_still_reports(tmp_path):
    folder = make_study(tmp_path / "older")
    manifest = read_manifest(folder)
    entries = [
        entry.model_copy(update={"splits": tuple(split for split in entry.splits if split != "robustness")})
        for entry in manifest.runs
    ]
    manifest = manifest.model_copy(update={"runs": tuple(entries)})
    write_record(folder / "study.json", manifest)
    found = find(folder)
    assert (found.corrupted, {one.difference for one in found.robustness}) == ({}, {None})
    recipe = manifest.recipe.model_copy(update={"robustness": None, "subsets": None})
    write_record(folder / "study.json", manifest.model_copy(update={"recipe": recipe}))
    without = find(folder)
    assert (without.robustness, without.subsets, without.groups) == ((), (), {})


def test_the_border_counted_otherwise_and_the_leaks():
    assert len(COMMITTED_LEAKS) == 22
    assert not COMMITTED_LEAKS & COMMITTED_VALIDATION
    counts = np.array([[[50, 3, 2], [4, 30, 1], [5, 6, 9]]])

    def looked(name):
        ids, found = subset_counts(counts, name, ["beagle_1"])
        assert ids == ["beagle_1"]
        return found[0].tolist()

    assert looked("border_pet") == [[50 + 2 + 5 + 9, 3 + 6], [4 + 1, 30]]
    assert looked("border_background") == [[50, 3 + 2], [4 + 5, 30 + 1 + 6 + 9]]
    assert looked("border_ignored") == [[50 + 2, 3], [4 + 1, 30]]


@pytest.mark.parametrize(
    ("name", "pets"),
    [("unleaked", [60, 50, 40, 30, 20]), ("small", [10, 20]), ("medium", [40, 30]), ("large", [60, 50])],
)
def test_a_part_of_the_images(name, pets):
    ids = [sorted(COMMITTED_LEAKS)[0], *(f"pug_{number}" for number in range(5))]
    counts = np.zeros((6, 3, 3), np.int64)
    counts[:, 1, 1] = 100
    counts[:, 0, 0] = [10, 60, 50, 40, 30, 20]
    kept, found = subset_counts(counts, name, ids)
    assert found[:, 0, 0].tolist() == pets == [counts[ids.index(one), 0, 0] for one in kept]


def test_intervals_of_a_study_are_over_groups_in_every_part(tmp_path):
    """Images of one number, of four breeds, are a group: 12 of them in 48 test images."""

    def changed(study):
        return study.model_copy(update={"data": study.data.model_copy(update={"groups": "[0-9]+$"})})

    folder = make_study(tmp_path / "study", changed=changed)
    found = find(folder)
    assert "4 groups of test images, corrupted" in render_study(found)
    assert {one.images for part in found.experiments for one in part.differences if part.split == "test"} == {12}
    small = next(one for one in found.subsets if (one.metric, one.left) == ("small", "unet/width"))
    results, counts = Results(folder), []
    for model in ("unet", "segnet"):
        arms = results.arm(results.study.experiments[0], f"{model}/width").values()
        images = [results.images(runs, "test") for runs in arms]
        kept = [subset_counts(one.confusions, "small", one.ids) for one in images]
        counts.append(np.stack([summed_by([name.rpartition("_")[2] for name in ids], own) for ids, own in kept]))
    wanted = paired_bootstrap(*counts)
    assert small.images == counts[0].shape[1] < 16, "a third of the images, in fewer groups"
    own = small.difference
    assert [own.points, own.low, own.high] == pytest.approx([wanted.points, wanted.low, wanted.high], abs=1e-4)


def test_arms_of_the_same_runs_are_looked_at_once(tmp_path):
    found = find(make_study(tmp_path / "equal", shapes=MATCHES | {"main:segnet/latency": {}}))
    assert {one.left for one in found.experiment("main").differences} >= {"unet/latency"}
    for part in (found.robustness, found.subsets):
        assert {one.left for one in part} == {"unet/width", "unet/parameters", "unet/stages"}


def test_a_study_without_a_run_and_a_part_have_open_claims(tmp_path):
    def later(run):
        row = run.rows[0]
        return row.experiment not in ("tuning", "main") or (row.experiment == "main" and row.seed > 2)

    nothing = find(make_study(tmp_path / "none", leave_out=lambda run: True))
    assert set(nothing.runs) == {"missing"}
    assert {one.difference for part in nothing.experiments for one in part.differences} == {None}
    verdicts = {v for part in nothing.experiments for one in part.differences for v in one.expected.values()}
    assert verdicts == {"open"}
    assert all(arm.scores is None for part in nothing.experiments for arm in part.arms)
    found = find(make_study(tmp_path / "part", leave_out=later))
    lead = between(found, "main", "unet/width", "segnet/width")
    assert (lead.seeds, set(lead.expected.values())) == ((0, 1, 2), {"open"})
    assert found.experiment("main").arms[0].seeds == (0, 1, 2)
    assert found.experiment("batch_norm").arms[0].scores is None


def test_a_run_that_diverged_is_a_result(tmp_path):
    rows = (("batch_norm", "unet/off", 1), ("tuning", "segnet/0.05-0.004", 0))
    all_seeds = [("batch_norm", "segnet/off", seed) for seed in range(3)]
    found = find(diverge(make_study(tmp_path / "diverged"), *rows, *all_seeds))
    assert found.runs == {"finished": 138, "diverged": 5}
    off = between(found, "batch_norm", "unet/on", "unet/off")
    assert (off.diverged, off.seeds) == ({"unet/off": 1}, (0, 2))
    assert set(off.expected.values()) == {"open"}
    lost = between(found, "batch_norm", "segnet/on", "segnet/off")
    assert lost.difference is None
    assert set(lost.expected.values()) == {"held"}


def test_the_command_writes_findings_and_page(whole, tmp_path):
    result = succeeds("report", whole, "--out", tmp_path / "page.html")
    assert "intervals are resampled" in result.stderr
    succeeds("report", whole / "findings.json", "--out", tmp_path / "again.html")
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "again.html").read_bytes()


def test_wrong_files_are_one_line(tmp_path, whole):
    (tmp_path / "findings.json").write_text('{"kind": "comparison", "version": 1}')
    assert "kind is 'comparison'; wanted 'findings'" in one_line_error(petseg("report", tmp_path / "findings.json"))
    write_json(tmp_path / "study.json", {**read_json(whole / "study.json"), "recipe": {"title": 3}})
    refused(r"study\.json: recipe\.title: input should be a valid string; restore the", Results, tmp_path)


def test_scores_and_counts_agree_and_damaged_counts_are_one_line(tmp_path):
    folder = make_study(tmp_path / "damaged")
    results = Results(folder)
    entry = results.runs("main", "unet/width", 0)[0]
    scores = results.result(entry).evaluations["test"]
    assert mean_iou(results.images((entry,), "test").confusions.sum(axis=0)) == pytest.approx(scores.miou)
    assert len(results.images((entry,), "test").ids) == 48
    file = folder / "runs" / entry.name / "evaluations" / "test.images.json"
    file.write_text(json.dumps({"images": [["a", [1, 2]]]}))
    with pytest.raises(PetsegError, match=r"test\.images\.json: no per-image counts in it \(.*\); score the run again"):
        Results(folder).images((entry,), "test")


RECOMPUTE = Path(__file__).parents[2] / "results" / "study" / "recompute.py"


def recomputed(folder, lines="stdout"):
    result = subprocess.run([sys.executable, RECOMPUTE, folder], capture_output=True, text=True)
    return result.returncode, getattr(result, lines).splitlines()


PUBLISHED = {"study": 7, "study_isbi": 1, "study_pets": 0}  # study -> claims that are recomputed


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_claims_are_recomputed_without_petseg(name):
    text = RECOMPUTE.read_text()
    assert len(text.splitlines()) <= 60
    assert not re.search(r"import.*petseg", text)
    code, lines = recomputed(RECOMPUTE.parents[1] / name)
    assert (code, len(lines)) == (0, PUBLISHED[name])
    assert {path.parent.name for path in RECOMPUTE.parents[1].glob("*/findings.json")} == {*PUBLISHED}


def test_a_claim_that_does_not_follow_from_the_counts_is_caught(whole, findings, tmp_path):
    publish(whole, tmp_path)
    write_record(tmp_path / "findings.json", findings)
    code, lines = recomputed(tmp_path)
    assert code == 0
    assert len(lines) > 5
    other = findings.model_dump(mode="json")
    other["experiments"][0]["differences"][0]["difference"]["low"] += 0.01
    write_json(tmp_path / "findings.json", other)
    assert recomputed(tmp_path)[0] == 1
