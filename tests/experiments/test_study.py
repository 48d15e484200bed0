"""The study: its recipe is checked before hours of work, each run is made once, and a kill changes nothing."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petseg import cli
from petseg.config import ModelConfig
from petseg.data.cache import prepare
from petseg.errors import PetsegError
from petseg.experiments.study.match import count_parameters, find_shape
from petseg.experiments.study.plan import Pace, plain, plan, state
from petseg.experiments.study.recipe import claims, load_study, matched_to, study_names
from petseg.experiments.study.results import read_manifest
from petseg.experiments.study.run import Shard, Status, collect, open_study, parse_shard, planned, run_study, sizes
from petseg.metrics import mean_iou
from petseg.models import build_model
from tests.cli.test_commands import child_environment, petseg

TINY = """
title = "Made pets"
[model]
base_channels = 4
[data]
size = 32
[train]
epochs = 2
batch_size = 8
precision = "fp32"
deterministic = true
[tuning]
models = ["unet"]
learning_rate = [1e30, 3e-3]
warmup = [0.1]
expected = "the larger rate diverges"
fields = { train.epochs = 1 }
[robustness]
experiment = "skips"
expected = ["skips > none in blur"]
[[experiments]]
name = "skips"
title = "Skips"
expected = ["skips > none by 2 in border: detail", "skips = none"]
models = ["unet"]
seeds = [0]
tuned = true
test = true
[experiments.variants.skips]
title = "skips"
[experiments.variants.none]
title = "none"
fields = { model.skips = false }
[[experiments]]
name = "size"
title = "Equal parameters"
expected = ["unet > segnet"]
seeds = [0]
[experiments.variants.parameters]
title = "same parameters"
match = "parameters"
to = "unet"
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, pets_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that nothing disturbed, made by the command."""
    folder = tmp_path_factory.mktemp("study") / "whole"
    result = petseg("study", recipe, "--data", pets_folder, "--out", folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"{folder}: 5 runs: 1 diverged, 4 finished"
    ended = re.findall(r"^(\d) of [56], .*: (?:validation mIoU [\d.]+|.*not a number.*); .* left$", result.stdout, re.M)
    assert ended == ["1", "2", "3", "4", "5"]
    return folder


def results(folder: Path) -> dict[str, Any]:
    """Everything a study holds but times: each run's files by name, weights as bytes."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("runs/*/**/*")):
        if path.is_dir() or path.name == "environment.json":
            continue
        key = str(path.relative_to(folder))
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[key] = [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in rows]
        else:
            found[key] = path.read_bytes()
    return found


# The whole


def test_a_study_makes_each_run_once_and_scores_it(whole: Path, recipe: Path) -> None:
    manifest = read_manifest(whole)
    assert [run["state"] for run in manifest["runs"]] == ["diverged", *["finished"] * 4]
    assert sorted(run["name"] for run in manifest["runs"]) == sorted(
        path.name for path in whole.glob("runs/*") if path.is_dir()
    )
    for run in manifest["runs"][1:]:
        place = whole / "runs" / run["name"]
        config = json.loads((place / "config.json").read_text())
        assert json.loads((place / "environment.json").read_text())["torch"]
        assert config["train"]["seed"] == run["rows"][0]["seed"]
        for split in run["splits"]:
            scores = json.loads((place / "evaluations" / f"{split}.json").read_text())
            stored = json.loads((place / "evaluations" / f"{split}.images.json").read_text())
            if split == "robustness":
                assert {len(rows) for rows in stored["changes"].values()} == {scores["images"]} == {8}
            else:
                assert len(stored["images"]) == scores["images"] == manifest["data"]["pictures"][split]
    tested = ["val", "test", "robustness"]
    assert [run["splits"] for run in manifest["runs"]] == [["val"], ["val"], tested, tested, ["val"]]


def test_the_best_setting_is_taken_and_identical_runs_are_shared(whole: Path) -> None:
    manifest = read_manifest(whole)
    best = manifest["tuned"]["unet"]
    assert (best["learning_rate"], best["warmup"]) == (3e-3, 0.1)
    tuned = next(run for run in manifest["runs"] if run["rows"][0]["arm"] == "unet/skips")
    # the tuned settings are the defaults, so the untuned U-Net of the other experiment is the same run
    assert [(row["experiment"], row["arm"]) for row in tuned["rows"]] == [
        ("skips", "unet/skips"),
        ("size", "unet/parameters"),
    ]


def test_the_matched_shape_is_trained(whole: Path) -> None:
    manifest = read_manifest(whole)
    match = manifest["matches"]["size:segnet/parameters"]
    assert abs(match["found"] / match["wanted"] - 1) <= 0.02
    run = next(run for run in manifest["runs"] if run["rows"][0]["arm"] == "segnet/parameters")
    config = json.loads((whole / "runs" / run["name"] / "config.json").read_text())
    model = build_model(ModelConfig.model_validate_json(json.dumps(config["model"])), 3)
    assert sum(parameter.numel() for parameter in model.parameters()) == match["found"]
    assert manifest["costs"][run["cost"]]["parameters"] == match["found"]


def test_every_shape_s_latency_is_measured_in_turn(whole: Path) -> None:
    manifest = read_manifest(whole)
    assert {run["cost"] for run in manifest["runs"]} == set(manifest["costs"])
    for cost in manifest["costs"].values():
        assert 0 < cost["latency_ms"]["p50"] <= cost["latency_ms"]["p95"]
    assert "one thread" in manifest["latency_environment"]["engine"]


def started(recipe: Path, data: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "petseg.cli", "study", str(recipe), "--data", str(data), "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=child_environment(),
    )


def ended_at(process: subprocess.Popen[str], pattern: str, signal_number: int) -> str:
    """Reads a study's lines up to one that matches, sends the signal, and returns what was printed after it."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if re.search(pattern, line):
            process.send_signal(signal_number)
            if signal_number == signal.SIGINT:
                return process.communicate()[0]
            process.wait()
            process.stdout.close()
            return ""
    pytest.fail(f"no line matched {pattern}:\n{seen}")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills")
def test_killed_twice_it_comes_to_the_same_manifest_and_results(
    whole: Path, recipe: Path, pets_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    # latencies are the one thing that two studies measure differently, so both get the same
    manifest = read_manifest(whole)
    kept = {name: manifest[name] for name in ("kind", "version", "recipe", "costs", "latency_environment")}
    (folder / "study.json").write_text(json.dumps({**kept, "runs": []}))
    process = started(recipe, pets_folder, folder)
    told = ended_at(process, r"1 of 6, .*epoch 1", signal.SIGINT)
    assert process.returncode == 130
    assert "interrupted; whole epochs are kept: run the same command again to go on" in told
    assert "Traceback" not in told
    ended_at(started(recipe, pets_folder, folder), r"2 of 6, .*epoch 1", signal.SIGKILL)
    assert [run["state"] for run in read_manifest(folder)["runs"]].count("finished") == 0
    ended_at(started(recipe, pets_folder, folder), r"4 of 5, .*epoch \d", signal.SIGKILL)
    assert [run["state"] for run in read_manifest(folder)["runs"]].count("finished") == 2
    result = petseg("study", recipe, "--data", pets_folder, "--out", folder)
    assert result.returncode == 0, result.stderr
    assert "3 of 5" not in result.stdout, "finished runs are skipped"
    assert read_manifest(folder) == manifest
    assert results(folder) == results(whole)


def test_two_runs_at_a_time_give_the_same(whole: Path, recipe: Path, pets_folder: Path, tmp_path: Path) -> None:
    study, at_once, told = load_study(str(recipe)), [], []

    def tell(status: Status) -> None:
        at_once.append(len(multiprocessing.active_children()))
        told.append(status)

    prepared = {size: prepare(pets_folder, size) for size in sizes(study)}
    manifest = run_study(study, tmp_path / "two", pets_folder, prepared, at_once=2, tell=tell)
    assert max(at_once) == 2
    assert [status.words[0] for status in told if status.run_ended] == ["1", "2", "3", "4", "5"]
    assert manifest["at_once"] == [2]
    assert [run["state"] for run in manifest["runs"]] == [run["state"] for run in read_manifest(whole)["runs"]]
    assert results(tmp_path / "two") == results(whole)


def test_a_run_that_fails_stops_no_other(whole: Path, recipe: Path, pets_folder: Path, tmp_path: Path) -> None:
    known = [run for run in read_manifest(whole)["runs"] if run["rows"][0]["experiment"] != "size"]
    folder = part(whole, tmp_path / "failing", [run["name"] for run in known])
    study = load_study(str(recipe))
    prepared = {size: prepare(pets_folder, size) for size in sizes(study)}
    lost = next(run["name"] for run in read_manifest(whole)["runs"] if run["rows"][0]["arm"] == "segnet/parameters")
    (folder / "runs" / lost).write_text("no folder")
    with pytest.raises(
        PetsegError, match=rf"^run {lost}: .*\(the same command tries again, from the last whole epoch\)$"
    ):
        run_study(study, folder, pets_folder, prepared)
    states = {run["name"]: run["state"] for run in read_manifest(folder)["runs"]}
    assert states.pop(lost) == "missing"
    assert set(states.values()) == {"finished", "diverged"}
    (folder / "runs" / lost).unlink()
    run_study(study, folder, pets_folder, prepared)
    assert results(folder) == results(whole)


def test_a_finished_study_makes_nothing_again(whole: Path, recipe: Path, pets_folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("runs/**/*")}
    manifest = read_manifest(whole)
    study = load_study(str(recipe))
    again = run_study(study, whole, pets_folder, {size: prepare(pets_folder, size) for size in sizes(study)})
    assert again == manifest == read_manifest(whole)
    assert {path: path.stat().st_mtime_ns for path in whole.glob("runs/**/*")} == before


def test_the_list_says_what_each_run_is_for_and_how_long(
    whole: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = petseg("study", recipe, "--out", whole, "--list").stdout
    assert re.search(r"skips unet/skips; size unet/parameters .* s .* finished", known)
    assert "0.0 s left (from measured epochs)" in known
    cli.study(str(recipe), out=tmp_path / "fresh", show=True)
    fresh = capsys.readouterr().out
    assert fresh.count("waiting") == 3  # two for the tuning, one for the shape
    assert "no epoch measured yet" in fresh
    assert not (tmp_path / "fresh").exists()


# Shards


def part(whole: Path, folder: Path, names: list[str], **changes: Any) -> Path:
    """Returns a shard's folder: the manifest and some of the runs."""
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps(read_manifest(whole) | changes))
    for name in names:
        shutil.copytree(whole / "runs" / name, folder / "runs" / name)
    return folder


def test_shards_share_all_runs_between_them(recipe: Path) -> None:
    found = plan(load_study(str(recipe)), {}, {})
    shares = [[run.number for run in found if Shard(number, 3).holds(run)] for number in (1, 2, 3)]
    assert sorted(number for share in shares for number in share) == [run.number for run in found]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_collecting_shards_gives_the_whole(whole: Path, recipe: Path, tmp_path: Path) -> None:
    names = [run["name"] for run in read_manifest(whole)["runs"]]
    shards = [part(whole, tmp_path / str(number), names[number::2], tuned={}) for number in (0, 1)]
    merged = collect(load_study(str(recipe)), tmp_path / "merged", shards)
    assert merged == read_manifest(whole) == read_manifest(tmp_path / "merged")
    assert results(tmp_path / "merged") == results(whole)


def test_another_machine_goes_on_with_what_is_published_so_far(
    whole: Path,
    recipe: Path,
    pets_folder: Path,
    publish: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study, manifest = load_study(str(recipe)), read_manifest(whole)
    monkeypatch.setattr("publish.OFFICIAL", manifest["data"]["pictures"])
    names = [run["name"] for run in manifest["runs"]]
    states = [run if run["name"] != names[3] else {**run, "state": "missing"} for run in manifest["runs"]]
    first = part(whole, tmp_path / "first", names[:3] + names[4:], runs=states)
    so_far = publish(first, "study", tmp_path / "results", so_far=True)
    assert (so_far / "findings.json").is_file()
    assert {path.name for path in (so_far / "runs").iterdir()} == {*names} - {names[3]}

    second = tmp_path / "second"
    assert collect(study, second, [so_far])["runs"] == states
    run_study(study, second, pets_folder, {size: prepare(pets_folder, size) for size in sizes(study)})
    assert read_manifest(second) == manifest
    one, other = (publish(folder, "study", tmp_path / folder.name / "results") for folder in (whole, second))
    assert (one / "findings.json").is_file()
    assert results(one) == results(other)
    assert (one / "pictures.gz").read_bytes() == (other / "pictures.gz").read_bytes()


def test_a_shard_without_the_tuning_waits_for_the_others(
    whole: Path, recipe: Path, pets_folder: Path, tmp_path: Path
) -> None:
    names = [run["name"] for run in read_manifest(whole)["runs"]]
    # the first cell of the tuning is the other shard's
    folder = part(whole, tmp_path / "shard", [names[1], names[4]])
    result = petseg("study", recipe, "--data", pets_folder, "--out", folder, "--only", "2/2")
    assert result.returncode == 0, result.stderr
    assert " of 3, " not in result.stdout, "nothing could be made"
    assert "What waits needs other shards' runs" in result.stdout
    assert [run["state"] for run in read_manifest(folder)["runs"]] == [
        *("missing", "finished", "waiting", "waiting", "missing", "finished"),
    ]


def test_a_shard_of_another_study_is_refused(whole: Path, recipe: Path, tmp_path: Path) -> None:
    changed = tmp_path / "other.toml"
    changed.write_text(TINY.replace("batch_size = 8", "batch_size = 4"), encoding="utf-8")
    with pytest.raises(PetsegError, match=r"whole: a shard of another study \(Made pets\); collect shards of one"):
        collect(load_study(str(changed)), tmp_path / "merged", [whole])
    with pytest.raises(PetsegError, match=r"nowhere: no study\.json in it; name a study's folder"):
        collect(load_study(str(recipe)), tmp_path / "merged", [tmp_path / "nowhere"])


@pytest.mark.parametrize("text", ["3", "0/2", "3/2", "a/b", "1/", "-1/2"])
def test_a_wrong_shard_is_one_line(text: str) -> None:
    with pytest.raises(PetsegError, match=r"wanted K/N with K from 1 to N, for example --only 3/8$"):
        parse_shard(text)


# What a study refuses


def test_expectations_may_not_change_after_the_runs(whole: Path, recipe: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.toml"
    changed.write_text(TINY.replace("skips = none", "skips > none"), encoding="utf-8")
    with pytest.raises(PetsegError, match=r"'skips': its `expected` changed after runs were made; .*restore"):
        open_study(load_study(str(changed)), whole)
    changed.write_text(TINY.replace("the larger rate diverges", "it does not"), encoding="utf-8")
    with pytest.raises(PetsegError, match=r"study: tuning: what was expected changed after runs were made; .*restore"):
        open_study(load_study(str(changed)), whole)


def test_other_pictures_are_refused(whole: Path, recipe: Path, tmp_path: Path, pets_folder: Path) -> None:
    folder = part(whole, tmp_path / "copy", [], data={"source": "elsewhere", "key": "0", "pictures": {}})
    study = load_study(str(recipe))
    with pytest.raises(PetsegError, match=r"copy: holds work on other pictures \(elsewhere\)"):
        run_study(study, folder, pets_folder, {32: prepare(pets_folder, 32)})


def test_another_folder_is_refused(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PetsegError, match=r"holds no study\.json, but other files; choose another with --out$"):
        open_study(load_study(str(recipe)), tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "Skips"', 'titel = "Skips"', r"experiment 'skips': field 'titel' is unknown; choose one of: title, "),
        ('title = "skips"', 'titel = "skips"', r"variant 'skips': field 'titel' is unknown; choose one of: title, "),
        ("warmup = [0.1]", "warmups = [0.1]", r"tuning: field 'warmups' is unknown; choose one of: warmup, "),
        ("[train]", "[trian]", r"field 'trian' is unknown; choose one of: train\."),
        (
            "model.skips = false",
            "model.skip = false",
            r"experiment 'skips': unet/none: field 'model\.skip' is unknown; choose one of: model\.skips",
        ),
        ("model.skips = false", "seed = 3", r"unet/none: model\.name and train\.seed are the study's"),
        ('"skips = none"', '"skips < none"', r"expected 'skips < none' cannot be read; write `unet > segnet`"),
        ('"skips = none"', '"skip = none"', r"expected 'skip = none': arm 'skip' is unknown; choose one of: skips, "),
        ('"skips = none"', '"skips = unet"', r"compares a model with a variant"),
        ('"skips = none"', '"skips = skips"', r"compares an arm with itself"),
        ("2 in border", "2 in edge", r"score 'edge' is unknown; choose one of: pet, border, "),
        ('to = "unet"', 'to = "none"', r"variant 'parameters': to 'none' is unknown; choose one of: unet, segnet"),
        (
            'models = ["unet"]\nlearning',
            'models = ["segnet"]\nlearning',
            r"is tuned, but 'unet' is not among \[tuning\]",
        ),
        ('name = "size"', 'name = "skips"', r"experiment 'skips' stands there twice"),
        ("size = 32", 'size = 32\nprotocol = "seed"', r"has test, which protocol 'seed' has not"),
        ("seeds = [0]", "seeds = []", r"experiment 'skips': seeds is \[\]; "),
        ('title = "Made', 'title == "Made', r"not valid TOML \("),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert TINY.count(old) >= 1
    path = tmp_path / "wrong.toml"
    path.write_text(TINY.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(PetsegError, match=message) as caught:
        load_study(str(path))
    assert str(caught.value).startswith("study")
    assert "\n" not in str(caught.value)


def test_an_unknown_study_names_the_shipped_ones() -> None:
    with pytest.raises(PetsegError, match=r"study 'stduy' is unknown; choose one of: study$"):
        load_study("stduy")


# The plan


def test_the_shipped_study() -> None:
    assert study_names() == ["study"]
    study = load_study("study")
    found = plan(study, {}, {})
    experiments = {experiment.name: experiment for experiment in study.experiments}
    assert len(experiments["main"].seeds) >= 5
    assert all(len(experiment.seeds) >= 3 for experiment in study.experiments)
    main = [run for run in found if run.rows[0].experiment == "main"]
    assert all(run.config.data.size >= 96 and run.config.train.epochs >= 30 for run in main)
    assert all(run.splits == ("val", "test", "robustness") for run in main)
    grids = {
        model: {
            (run.config.train.learning_rate, run.config.train.warmup)
            for run in found
            if f"{model}/" in run.rows[0].arm and run.rows[0].experiment == "tuning"
        }
        for model in ("unet", "segnet")
    }
    assert grids["unet"] == grids["segnet"]
    # equal steps, whatever the share of pictures
    steps = {run.config.train.epochs * run.config.data.fraction for run in found if run.rows[-1].experiment == "data"}
    assert len(steps) == 1
    assert sum(len(claims(experiment)) for experiment in study.experiments) > 20


def test_the_order_is_tuning_then_seed_by_seed() -> None:
    rows = [run.rows[0] for run in plan(load_study("study"), {}, {})]
    order = [row.experiment for row in rows]
    assert order[:20] == ["tuning"] * 20
    main = [row.seed for row in rows if row.experiment == "main"]
    assert main == sorted(main)
    assert order.index("mechanism") == 20 + len(main)


def test_tuned_settings_go_to_the_model_that_they_were_found_for() -> None:
    study = load_study("study")
    best = {
        "unet": {"learning_rate": 4e-3, "warmup": 0.05},
        "segnet": {"learning_rate": 1e-3, "warmup": 0.3},
    }
    for run in plan(study, {}, best):
        if run.rows[0].experiment != "tuning":
            own = best[run.config.model.name]["learning_rate"]
            rates = {1e-3 if row.arm.endswith("off_low") else own for row in run.rows}
            assert rates == {run.config.train.learning_rate}
            assert run.config.train.warmup == best[run.config.model.name]["warmup"]
            assert "tuning" not in run.waits


def test_a_run_s_number_does_not_depend_on_what_is_known() -> None:
    """Shards go by it, and one may know the tuning before another."""
    study = load_study("study")
    same = {"learning_rate": study.train.learning_rate, "warmup": study.train.warmup}
    unknown = {row: run.number for run in plan(study, {}, {}) for row in run.rows}
    known = {row: run.number for run in plan(study, {}, {"unet": same, "segnet": same}) for row in run.rows}
    assert known == unknown


def test_a_run_s_name_follows_from_its_config_alone() -> None:
    found = plan(load_study("study"), {}, {})
    assert len({run.name for run in found if not run.waits}) == 20
    assert found[0].name == plan(load_study("study"), {"x": {}}, {})[0].name


def test_what_a_preset_says_anyway_is_left_out() -> None:
    config = load_study("study").config("segnet", 0, source="a test")
    spelt = config.model_copy(
        update={"model": ModelConfig(name="segnet", base_channels=16, depth=5, convs=(2, 2, 3, 3, 3), batch_norm=True)}
    )
    assert plain(spelt).model == ModelConfig(name="segnet")
    other = config.model_copy(update={"model": ModelConfig(name="segnet", depth=4, convs=(2, 2, 3, 3))})
    assert plain(other).model == ModelConfig(name="segnet", depth=4)


def test_claims_speak_of_arms() -> None:
    study = load_study("study")
    by_name = {experiment.name: experiment for experiment in study.experiments}
    main = claims(by_name["main"])
    assert [(claim.left, claim.right, claim.points) for claim in main[:3]] == [
        (f"unet/{variant}", f"segnet/{variant}", 2.0) for variant in ("width", "parameters", "latency")
    ]
    assert {claim.metric for claim in main} == {"miou", "border"}
    assert claims(by_name["batch_norm"])[-1].left == "segnet/on"


def test_the_time_of_a_run_follows_measured_epochs(tmp_path: Path) -> None:
    found = plan(load_study("study"), {}, {})
    run = found[0]
    pace = Pace({run.key: 400_000_000 for run in found}, {"train": 1000, "val": 100, "test": 100})
    guessed = pace.seconds(run)
    place = tmp_path / "runs" / run.name
    place.mkdir(parents=True)
    rows = [{"epoch": epoch, "seconds": 21.0, "train_seconds": 20.0, "val_miou": 0.5} for epoch in (1, 2)]
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pace.measure(tmp_path, found)
    assert pace.seconds(run) - run.config.train.epochs * 21 == pytest.approx(6 + 0.8)
    assert guessed < pace.seconds(run)
    other = next(run for run in found if run.config.model.name == "segnet" and run.config.data.size == 96)
    assert pace.seconds(other) > 0.9 * other.config.train.epochs * 20, "of the same arithmetic, so about as long"


# Equal cost


def test_a_wider_or_deeper_segnet_of_as_many_parameters() -> None:
    found = find_shape(ModelConfig(name="segnet"), ModelConfig(name="unet"), "parameters", count_parameters(3))
    assert found["model"] == {"convs": [2, 2, 4, 3, 3]}, "no width alone is within 2 %"
    assert (found["wanted"], found["found"]) == (1_942_611, 1_917_411)
    deeper = find_shape(ModelConfig(name="unet", depth=5), ModelConfig(name="unet"), "parameters", count_parameters(3))
    assert deeper["model"] == {"base_channels": 8}


def test_an_arm_that_costs_the_same_stays_as_it_is() -> None:
    def measure(shapes: list[ModelConfig]) -> list[float]:
        assert len(shapes) == 2, "nothing else is measured"
        return [10.0, 10.4]

    found = find_shape(ModelConfig(name="segnet"), ModelConfig(name="unet"), "latency", measure)
    assert found == {"model": {}, "quantity": "latency", "wanted": 10.0, "found": 10.4}


def test_the_nearest_width_wins() -> None:
    def measure(shapes: list[ModelConfig]) -> list[float]:
        return [16.9, *(float(shape.base_channels or 20) for shape in shapes[1:])]

    found = find_shape(ModelConfig(name="segnet", base_channels=24), ModelConfig(name="unet"), "latency", measure)
    assert found["model"] == {"base_channels": 17}


def test_no_shape_of_equal_cost_is_one_line() -> None:
    def measure(shapes: list[ModelConfig]) -> list[float]:
        return [10.0, *[20.0] * (len(shapes) - 1)]

    with pytest.raises(PetsegError, match=r"no segnet has the latency of unet within 5 %; the nearest is 100\.0 % off"):
        find_shape(ModelConfig(name="segnet"), ModelConfig(name="unet"), "latency", measure)


def test_a_match_whose_question_changed_is_searched_anew(whole: Path, recipe: Path, tmp_path: Path) -> None:
    manifest = read_manifest(whole)
    study = load_study(str(recipe))
    assert not any("shape" in run.waits for run in planned(study, manifest))
    changed = tmp_path / "changed.toml"
    changed.write_text(TINY.replace("base_channels = 4", "base_channels = 5"), encoding="utf-8")
    assert any("the shape of size:segnet" in run.waits for run in planned(load_study(str(changed)), manifest))
    size = study.experiments[1]
    assert matched_to(size, "segnet/parameters") == "unet/parameters"
    assert matched_to(size, "unet/parameters") is None


def test_scores_of_a_run_follow_from_its_counts(whole: Path) -> None:
    import numpy as np

    run = read_manifest(whole)["runs"][2]
    place = whole / "runs" / run["name"] / "evaluations"
    counts = np.array([row[1] for row in json.loads((place / "test.images.json").read_text())["images"]])
    scores = json.loads((place / "test.json").read_text())
    assert scores["miou"] == pytest.approx(float(mean_iou(counts.reshape(-1, 3, 3).sum(axis=0))))
    assert state(whole, planned(load_study_of(whole), read_manifest(whole))[2]) == "finished"


def load_study_of(folder: Path) -> Any:
    from petseg.experiments.study.recipe import Study

    return Study.model_validate_json(json.dumps(read_manifest(folder)["recipe"]))
