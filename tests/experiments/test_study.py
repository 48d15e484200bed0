"""The study: its recipe is checked before hours of work, each run is made once, and a kill changes nothing."""

import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from petseg.cli.study import study as study_command
from petseg.config import ModelConfig, RunConfig
from petseg.data.cache import prepare
from petseg.data.sources import open_dataset
from petseg.errors import PetsegError
from petseg.experiments.executor import LocalProcesses
from petseg.experiments.ray_tasks import RayTasks
from petseg.experiments.study.findings import write_findings
from petseg.experiments.study.match import MATCHED, count_parameters, find_shape
from petseg.experiments.study.plan import MatchQuestion, best_cell, durations, plain, plan, tuning_cells
from petseg.experiments.study.recipe import CLAIM, Tuning, check_against_data, load_study, study_names
from petseg.experiments.study.results import StudyManifest, publish, read_manifest, read_run
from petseg.experiments.study.run import Making, go_on_from, open_study, run_study
from petseg.models import build_model, folder_name
from petseg.report import write_study_report
from petseg.schema import ClassInfo, CostMatch, DataInfo, EpochRow, TunedCell, write_record
from petseg.storage import read_json, write_json
from petseg.training import runs
from petseg.training.runs import PLACE
from tests.cli.test_commands import child_environment, petseg, succeeds
from tests.clusters import cluster_of
from tests.conftest import refused
from tests.made_studies import BEST, FIRST_EDITION, TUNED
from tests.test_kills import content

TINY = """
title = "Made pets"
model.base_channels = 3
model.depth = 1
data.size = 32
train = { epochs = 2, batch_size = 8, precision = "fp32", deterministic = true }
robustness = { experiment = "skips", expected = ["skips > none in blur"] }
[tuning]
models = ["unet"]
grid.train = { learning_rate = [1e30, 3e-3], warmup = [0.1] }
expected = "the larger rate diverges"
fields = { train.epochs = 1 }
[[experiments]]
name = "skips"
title = "Skips"
expected = ["skips > none by 2 in border: detail", "skips = none"]
models = ["unet"]
seeds = [0]
tuned = true
test = true
variants.skips.title = "skips"
variants.none = { title = "none", fields = { model.skips = false } }
[[experiments]]
name = "size"
title = "Equal parameters"
expected = ["unet > segnet"]
seeds = [0]
variants.parameters = { title = "same parameters", match = "parameters", to = "unet" }
"""
FIRST = load_study(str(FIRST_EDITION))


def altered(folder, old, new):
    assert old in TINY
    (folder / "altered.toml").write_text(TINY.replace(old, new, 1), encoding="utf-8")
    return load_study(str(folder / "altered.toml"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(recipe, pets_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "whole"
    result = succeeds("study", recipe, "--data", pets_folder, "--out", folder)
    assert result.stdout.splitlines()[-1] == f"{folder}: 5 runs: 1 diverged, 4 finished"
    ended = re.findall(r"^(\d) of 5, .*: (?:validation mIoU [\d.]+|.*not a number.*); .* left$", result.stdout, re.M)
    assert ended == ["1", "2", "3", "4", "5"]
    return folder


@pytest.fixture(scope="module")
def tiny(recipe):
    return load_study(str(recipe))


@pytest.fixture
def sizes(pets_folder):
    return {32: prepare(open_dataset(pets_folder), 32)}


def results(folder):
    """Returns all but where the images lay, which is another place on another machine."""
    return {name: found for name, found in content(folder / "runs").items() if Path(name).name != PLACE}


def part(whole, folder, names):
    folder.mkdir()
    shutil.copy(whole / "study.json", folder)
    for name in names:
        shutil.copytree(whole / "runs" / name, folder / "runs" / name)
    return folder


def begun(whole, folder):
    """Returns a folder with costs alone: latencies are the one thing that two studies measure differently."""
    empty = {"runs": (), "data": None, "matches": {}, "tuned": ()}
    write_record(folder / "study.json", read_manifest(whole).model_copy(update=empty))
    return folder


def manifest_of(study, **fields):
    return StudyManifest(petseg="", recipe=study, **fields)


@pytest.mark.slow
def test_arms_may_be_networks_of_other_libraries_and_of_ones_own(sizes, pets_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets").mkdir()
    text = "from torch import nn\ndef Net(num_classes):\n    return nn.Conv2d(3, num_classes, 3, padding=1)\n"
    (tmp_path / "nets" / "mine.py").write_text(text, encoding="utf-8")
    models = ["unet", "nets/mine.py:Net"]
    if find_spec("timm") and find_spec("segmentation_models_pytorch"):
        models.append("smp:Linknet/tu-test_resnet")
    (tmp_path / "arms.toml").write_text(
        f"""
title = "Networks from anywhere"
data.size = 32
train = {{ epochs = 1, batch_size = 8, precision = "fp32" }}
[[experiments]]
name = "any"
title = "Any network"
models = {models}
expected = ["unet > nets/mine.py:Net: a layer sees no shape", "unet/plain > nets/mine.py:Net/plain by 1"]
seeds = [0]
test = true
[experiments.variants.plain]
title = "plain"
[experiments.variants.plain.overrides]
unet.model = {{ base_channels = 4, depth = 1 }}
"smp:Linknet/tu-test_resnet".model = {{ encoder_depth = 3 }}
""",
        encoding="utf-8",
    )
    study = load_study("arms.toml")
    manifest = run_study(study, tmp_path / "out", sizes, Making(pets_folder))
    assert [row.arm for run in manifest.runs for row in run.rows] == [f"{model}/plain" for model in models]
    assert {run.state for run in manifest.runs} == {"finished"}
    folders = sorted(path.name.partition("-32px")[0] for path in (tmp_path / "out" / "runs").iterdir())
    assert folders == sorted(folder_name(model) for model in models)
    page = write_study_report(write_findings(tmp_path / "out")).read_text(encoding="utf-8")
    assert "Net" in page
    assert all(manifest.costs[run.cost].latency_ms for run in manifest.runs)


def test_a_study_makes_each_run_once_and_scores_it(whole):
    manifest = read_manifest(whole)
    assert [entry.state for entry in manifest.runs] == ["diverged", *["finished"] * 4]
    names = [path.name for path in whole.glob("runs/*") if path.is_dir()]
    assert sorted(entry.name for entry in manifest.runs) == sorted(names)
    for entry in manifest.runs[1:]:
        place = whole / "runs" / entry.name
        run = read_run(place, entry)
        assert run.environment.torch
        assert run.config.train.seed == entry.rows[0].seed
        for split, scores in run.evaluations.items():
            stored = read_json(place / "evaluations" / f"{split}.images.json")
            assert len(stored["images"]) == scores.images == manifest.data.splits[split]
        if "robustness" in entry.splits:
            stored = read_json(place / "evaluations" / "robustness.json")
            assert {len(rows) for rows in stored["confusions"].values()} == {len(stored["ids"])} == {24}
    tested = ("val", "test", "robustness")
    assert [entry.splits for entry in manifest.runs] == [("val",), ("val",), tested, tested, ("val",)]
    assert "not a number" in read_run(whole / "runs" / manifest.runs[0].name, manifest.runs[0]).diverged


def test_the_best_setting_and_the_matched_shape_are_taken_and_identical_runs_are_shared(whole):
    manifest = read_manifest(whole)
    assert [cell.miou is None for cell in manifest.tuned] == [True, False]
    assert best_cell(manifest.tuned).fields == {"train.learning_rate": 3e-3, "train.warmup": 0.1}
    tuned = next(entry for entry in manifest.runs if entry.rows[0].arm == "unet/skips")
    # the tuned settings are the defaults, so the untuned U-Net of the other experiment is the same run
    assert [(row.experiment, row.arm) for row in tuned.rows] == [("skips", "unet/skips"), ("size", "unet/parameters")]
    (match,) = manifest.matches.values()
    assert abs(match.reached / match.wanted - 1) <= 0.02
    entry = next(entry for entry in manifest.runs if entry.rows[0].arm == "segnet/parameters")
    model = build_model(read_run(whole / "runs" / entry.name, entry).config.model, 3)
    assert sum(parameter.numel() for parameter in model.parameters()) == match.reached
    assert manifest.costs[entry.cost].parameters == match.reached
    assert {entry.cost for entry in manifest.runs} == set(manifest.costs)
    assert all(0 < cost.latency_ms.p50 <= cost.latency_ms.p95 for cost in manifest.costs.values())
    assert "one thread" in manifest.latency_environment.engine
    (settings,) = {tuple(cost.latencies) for cost in manifest.costs.values()}
    assert len(settings) == (4 if find_spec("openvino") else 2)
    assert settings[0] == MATCHED
    assert all(cost.latencies[MATCHED] == cost.latency_ms for cost in manifest.costs.values())


def started(recipe, data, folder):
    command = [sys.executable, "-m", "petseg", "study", *map(str, (recipe, "--data", data, "--out", folder))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=child_environment(), **pipes)


def ended_when(process, ready, signal_number):
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal_number)
    return process.communicate()[0]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills")
def test_killed_twice_it_comes_to_the_same_manifest_and_results(whole, recipe, pets_folder, tmp_path):
    folder, manifest = begun(whole, tmp_path / "killed"), read_manifest(whole)
    first, _, third, *_ = (folder / "runs" / entry.name for entry in manifest.runs)
    printed = ended_when(process := started(recipe, pets_folder, folder), first.is_dir, signal.SIGINT)
    assert process.returncode == 130
    assert "interrupted; whole epochs are kept: run the same command again to go on" in printed
    assert "Traceback" not in printed
    assert [entry.state for entry in read_manifest(folder).runs].count("finished") == 0
    one_epoch = third / "resume.safetensors"
    ended_when(started(recipe, pets_folder, folder), one_epoch.is_file, signal.SIGKILL)
    states = [entry.state for entry in read_manifest(folder).runs]
    assert (states.count("finished"), states.count("diverged")) == (1, 1)
    result = succeeds("study", recipe, "--data", pets_folder, "--out", folder)
    assert "2 of 5" not in result.stdout, "finished runs are skipped"
    assert (read_manifest(folder), results(folder)) == (manifest, results(whole))


def test_two_runs_at_a_time_give_the_same(whole, tiny, sizes, pets_folder, tmp_path):
    at_once, shown = [], []

    def show(line, ended, total):
        at_once.append(len(multiprocessing.active_children()))
        shown.append(ended)

    folder = begun(whole, tmp_path / "two")
    manifest = run_study(tiny, folder, sizes, Making(pets_folder, executor=LocalProcesses(2), on_status=show))
    assert max(at_once) >= 1, "one of two ended, the other goes on"
    assert shown[-1] == 5
    assert shown == sorted(shown), "two may end between two looks, none is taken back"
    assert [entry.state for entry in manifest.runs] == [entry.state for entry in read_manifest(whole).runs]
    assert results(folder) == results(whole)


def held_at_work(place):
    """Returns the processes that work below a folder, now stopped; none where no run is under way."""

    def at_work():  # a run's folder is gone before its result is sent
        return any(place.glob("petseg-*/run/config.json"))

    if not at_work():
        return []
    mark = f"TMPDIR={place}".encode()
    workers = [path.parent for path in Path("/proc").glob("[0-9]*/environ") if mark in read_quietly(path)]
    workers = [int(path.name) for path in workers if b"ray::" in read_quietly(path / "cmdline")]
    signal_all(workers, signal.SIGSTOP)
    if at_work():
        return workers
    signal_all(workers, signal.SIGCONT)
    return []


def signal_all(processes, number):
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def read_quietly(path):
    try:
        return path.read_bytes().replace(b"\0", b"\n")
    except OSError:  # it has ended
        return b""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_cluster_that_loses_a_machine_comes_to_the_same(whole, tiny, sizes, pets_folder, tmp_path, caplog):
    folder, lines = begun(whole, tmp_path / "ray"), []
    other = tmp_path / "other"
    other.mkdir()
    with cluster_of({"TMPDIR": str(other), "PETSEG_CACHE": str(other / "cache")}) as cluster:

        def kill_the_other_at_work():
            while not (lines and (held := held_at_work(other))):
                time.sleep(0.01)
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            signal_all(held, signal.SIGKILL)  # stopped, they cannot see that their node is gone

        killer = threading.Thread(target=kill_the_other_at_work, daemon=True)
        killer.start()
        making = Making(pets_folder, executor=RayTasks(cluster.address), on_status=lambda *line: lines.append(line))
        manifest = run_study(tiny, folder, sizes, making)
        killer.join(timeout=60)
    retried = [record.message for record in caplog.records if "is tried again" in record.message]
    assert len(retried) == 1, "the kill hit a run"
    assert (other / "cache" / "received").is_dir(), "it had got the data"
    assert manifest == read_manifest(folder) == read_manifest(whole)
    assert results(folder) == results(whole)


def test_a_run_that_fails_stops_no_other(whole, tiny, sizes, pets_folder, tmp_path):
    entries = read_manifest(whole).runs
    folder = part(whole, tmp_path / "failing", [e.name for e in entries if e.rows[0].experiment == "tuning"])
    lost = next(entry.name for entry in entries if entry.rows[0].arm == "unet/none")
    (folder / "runs" / lost).write_text("no folder")
    match = rf"^run {lost}: .*\(the same command tries again, from the last whole epoch\)$"
    refused(match, run_study, tiny, folder, sizes, Making(pets_folder))
    states = {entry.name: entry.state for entry in read_manifest(folder).runs}
    assert states.pop(lost) == "missing"
    assert set(states.values()) == {"finished", "diverged"}
    (folder / "runs" / lost).unlink()
    run_study(tiny, folder, sizes, Making(pets_folder))
    assert results(folder) == results(whole)


def test_a_part_of_a_study_is_made_alone_and_the_rest_later(whole, tiny, recipe, sizes, pets_folder, tmp_path):
    last = next(entry.name for entry in read_manifest(whole).runs if entry.rows[0].arm == "segnet/parameters")
    folder = part(whole, tmp_path / "part", [entry.name for entry in read_manifest(whole).runs if entry.name != last])
    lines = []
    manifest = run_study(tiny, folder, sizes, Making(pets_folder, only=("skips",)))
    states = {entry.name: entry.state for entry in manifest.runs}
    assert states.pop(last) == "missing"
    assert set(states.values()) == {"finished", "diverged"}
    making = Making(pets_folder, only=("size",), on_status=lambda *line: lines.append(line))
    run_study(tiny, folder, sizes, making)
    assert [line[1:] for line in lines] == [(2, 2)], "of the runs of the part: its arms, and no tuning that it needs"
    assert results(folder) == results(whole)
    listed = petseg("study", recipe, "--out", whole, "--list", "--only", "size").stdout
    assert len(re.findall("finished", listed)) == 2
    told = petseg("study", recipe, "--only", "sizes")
    assert (told.returncode, told.stderr.strip()) == (
        2,
        "petseg: --only 'sizes' is unknown; choose one of: size, skips",
    )


def test_a_finished_study_makes_nothing_again(whole, tiny, sizes, pets_folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in whole.glob("runs/**/*")}
    manifest = read_manifest(whole)
    assert run_study(tiny, whole, sizes, Making(pets_folder)) == manifest == read_manifest(whole)
    assert {path: path.stat().st_mtime_ns for path in whole.glob("runs/**/*")} == before
    # a model whose whole grid diverged is named
    folder = shutil.copytree(whole, tmp_path / "hopeless")
    write_json(folder / "runs" / read_manifest(whole).runs[1].name / "diverged.json", {"reason": "the loss is NaN"})
    with pytest.raises(PetsegError, match=r"^study: runs wait for the tuning of unet: every cell diverged; add lower"):
        run_study(tiny, folder, sizes, Making(pets_folder))


def test_another_study_s_published_form_is_refused_and_writes_nothing(whole, tmp_path):
    published, folder = tmp_path / "published", tmp_path / "here"
    publish(whole, published)
    other = tmp_path / "other.toml"
    for old, new, told in (
        (
            "base_channels = 3",
            "base_channels = 4",
            r"published: has no run of '.*'; name the published form of the same",
        ),
        (
            'expected = ["unet > segnet"]',
            'expected = ["segnet > unet"]',
            r"what was expected changed after runs were made",
        ),
    ):
        assert old in TINY
        other.write_text(TINY.replace(old, new))
        refused(told, go_on_from, published, load_study(str(other)), folder)
        assert not folder.exists()


def test_what_was_published_is_not_made_again_but_a_split_that_it_lacks_is(whole, recipe, pets_folder, tmp_path):
    published, folder = tmp_path / "published", tmp_path / "here"
    publish(whole, published)
    command = ("study", recipe, "--data", pets_folder, "--from", published, "--out", folder)
    assert succeeds(*command).stdout.splitlines()[-1] == f"{folder}: 5 runs: 1 diverged, 4 finished"
    assert not list(folder.rglob("*.safetensors")), "nothing was trained"
    scored = next(run for run in read_manifest(whole).runs if "test" in run.splits)
    lost = folder / "runs" / scored.name / "evaluations" / "test.json"
    lost.unlink()
    assert succeeds(*command).stdout.splitlines()[-1] == f"{folder}: 5 runs: 1 diverged, 4 finished"
    assert read_json(lost) == read_json(whole / lost.relative_to(folder))


def test_the_list_says_what_each_run_is_for_and_how_long(whole, recipe, pets_folder, tmp_path, capsys):
    known = petseg("study", recipe, "--out", whole, "--list").stdout
    assert re.search(r"skips unet/skips; size unet/parameters .* s .* finished", known)
    assert "0.0 s left, one run at a time" in known
    study_command(str(recipe), data=pets_folder, out=tmp_path / "fresh", show=True, device="cpu", threads=1)
    fresh, told = capsys.readouterr()
    assert fresh.count("waiting") == 3  # two for the tuning, one for the shape
    assert "time some steps" in told
    whole, left = re.search(r"(.+) in all, (.+) left, one run at a time", fresh).groups()
    assert whole == left
    assert not (tmp_path / "fresh").exists()
    study_command(str(recipe), data=pets_folder, out=tmp_path / "fresh", show=True, device="cpu", threads=2, jobs=2)
    assert "2 runs at a time" in capsys.readouterr().out
    assert torch.get_num_threads() == 1


def test_expectations_may_not_change_after_the_runs(whole, tmp_path):
    for old, new, where in (
        ("skips = none", "skips > none", "experiment 'skips'"),
        ("the larger rate diverges", "it does not", "tuning"),
        ("skips > none in blur", "skips = none in blur", "robustness"),
    ):
        match = rf"^study: {where}: what was expected changed after runs were made; .*restore"
        refused(match, open_study, altered(tmp_path, old, new), whole)


def test_another_folder_or_other_images_are_refused(whole, tiny, sizes, pets_folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused(r"holds no study\.json, but other files; choose another folder \(--out\)$", open_study, tiny, tmp_path)
    refused(r"nowhere: no study\.json in it; name a study's folder", read_manifest, tmp_path / "nowhere")
    folder = part(whole, tmp_path / "copy", [])
    manifest = read_manifest(folder)
    other = manifest.data.model_copy(update={"key": "0", "provenance": "elsewhere"})
    write_record(folder / "study.json", manifest.model_copy(update={"data": other}))
    refused(r"copy: holds work on other images \(elsewhere\)", run_study, tiny, folder, sizes, Making(pets_folder))


def test_what_the_dataset_lacks_is_said_before_the_first_run(whole, tiny, tmp_path):
    data = read_manifest(whole).data
    edge = altered(tmp_path, "2 in border", "2 in edge")
    refused(r"score 'edge' is unknown; choose one of: pet, border, ", check_against_data, edge, data)
    untested = data.model_copy(update={"splits": {"train": 9, "val": 2}})
    refused(r"experiment 'skips' has test, but .* has no test split", check_against_data, tiny, untested)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "Skips"', 'titel = "Skips"', r"experiment 'skips': field 'titel' is unknown; choose one of: title, "),
        ('title = "skips"', 'titel = "skips"', r"variant 'skips': field 'titel' is unknown; choose one of: title, "),
        (
            "warmup = [0.1]",
            "warmups = [0.1]",
            r"tuning: field 'train.warmups' is unknown; choose one of: train.warmup, ",
        ),
        ("train = {", "trian = {", r"field 'trian' is unknown; choose one of: train\."),
        (
            "model.skips = false",
            "model.skip = false",
            r"unet/none: option of model 'unet' 'skip' is unknown; .*: skips",
        ),
        ("model.skips = false", "seed = 3", r"unet/none: model\.name and train\.seed are the study's"),
        ('"skips = none"', '"skips < none"', r"expected 'skips < none' cannot be read; write `unet > segnet`"),
        ('"skips = none"', '"skip = none"', r"expected 'skip = none': arm 'skip' is unknown; choose one of: skips, "),
        ('"skips = none"', '"skips = unet"', r"compares a model with a variant"),
        ('"skips = none"', '"skips = skips"', r"compares an arm with itself"),
        ('to = "unet"', 'to = "none"', r"variant 'parameters': to 'none' is unknown; choose one of: unet, segnet"),
        ('["unet"]\ngrid', '["segnet"]\ngrid', r"is tuned, but 'unet' is not among \[tuning\]"),
        ('name = "size"', 'name = "skips"', r"experiment 'skips' stands there twice"),
        ("in blur", "in blurr", r"study: robustness: expected .*: score 'blurr' is unknown; choose one of: blur, "),
        ("test = true\n", "", r"study: robustness: experiment with test 'skips' is unknown"),
        ("seeds = [0]", "seeds = []", r"experiment 'skips': seeds is \[\]; "),
        ('title = "Made', 'title == "Made', r"not valid TOML \("),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(old, new, message, tmp_path):
    assert refused(message, altered, tmp_path, old, new).startswith("study")
    refused(r"study 'stduy' is unknown; choose one of: study", load_study, "stduy")


def test_each_arm_takes_the_best_cell_that_agrees_with_it():
    for run in plan(manifest_of(FIRST, tuned=TUNED)):
        if run.rows[0].experiment != "tuning":
            rate, warmup = BEST[run.config.model.name]
            rates = {1e-3 if row.arm.endswith("off_low") else rate for row in run.rows}
            assert rates == {run.config.train.learning_rate}
            assert run.config.train.warmup == (0.3 if run.rows[0].arm.endswith("off_low") else warmup)
            assert "tuning" not in run.waits


def test_a_grid_goes_on_until_its_best_lies_inside():
    axes = {"train.learning_rate": [1e-3, 2e-3], "train.warmup": [0.1, 0.2], "model.depth": [3, 4]}
    tuning = Tuning(models=["unet"], grid=axes, widen=2, expected="a peak at 5e-3 and .1, with three levels")

    def score(cell):
        if cell["train.learning_rate"] > 9e-3:
            return None
        off = abs(math.log2(cell["train.learning_rate"] / 5e-3)), abs(math.log2(cell["train.warmup"] / 0.1))
        return 0.9 - 0.1 * sum(off) - 0.1 * (cell["model.depth"] == 4)

    ended, rounds = (), []
    while len(cells := tuning_cells(tuning, ended)) > len(ended):
        rounds.append(len(cells))
        ended = tuple(TunedCell(model=model, fields=cell, miou=score(cell)) for model, cell in cells)
    assert rounds[0] == 8
    assert rounds == sorted(set(rounds))
    best = best_cell(ended).fields
    assert best == {"train.learning_rate": 4e-3, "train.warmup": 0.1, "model.depth": 3}
    for depth in (3, 4):
        line = {
            c.fields["train.learning_rate"]
            for c in ended
            if c.fields["train.warmup"] == 0.1 and c.fields["model.depth"] == depth
        }
        assert line == {1e-3, 2e-3, 4e-3, 8e-3}, "two values beyond the grid, and no more"
        line = {
            c.fields["train.warmup"]
            for c in ended
            if c.fields["train.learning_rate"] == 4e-3 and c.fields["model.depth"] == depth
        }
        assert line == {0.05, 0.1, 0.2}


def test_the_published_study_s_runs_still_follow_from_its_recipe():
    found = plan(manifest_of(FIRST))
    assert len({run.name for run in found if not run.waits}) == 20
    assert found[0].name == plan(manifest_of(FIRST, tuned=TUNED))[0].name, "by its config alone"
    manifest = read_manifest(FIRST_EDITION.parent)
    assert manifest.recipe == FIRST
    assert [run.name for run in plan(manifest)] == [entry.name for entry in manifest.runs]
    # tuning first, then one seed of everything
    seeds = [run.rows[0].seed for run in plan(manifest)[20:]]
    assert seeds == sorted(seeds)


@pytest.mark.parametrize("words", ["border", "class 1", "left ear: it is small"])
def test_a_claim_may_name_a_class_of_several_words(words):
    read = CLAIM.fullmatch(f"unet/plain > segnet/plain by 2 in {words}")
    assert (read["right"], read["points"], read["metric"]) == ("segnet/plain", "2", words.partition(":")[0])


def test_the_shipped_studies_name_what_they_are_for_and_share_five_per_cent():
    studies = {name: load_study(name) for name in study_names()}
    assert sum(study.family_error for study in studies.values()) == pytest.approx(0.05)
    for study in studies.values():
        assert any(experiment.primary for experiment in study.experiments)
        assert study.tuning.widen > 0, "no best cell at an edge"
        assert all(len(experiment.seeds) >= 3 for experiment in study.experiments if experiment.test)
    assert [run.config.data.fold for run in plan(manifest_of(studies["study_isbi"]))[-10:]] == [0, 1, 2, 3, 4] * 2


def test_what_a_preset_says_anyway_is_left_out_and_claims_speak_of_arms():
    def shape(**options):
        return plain(RunConfig(model=ModelConfig(name="segnet", **options))).model

    spelt = shape(base_channels=16, depth=5, convs=[2, 2, 3, 3, 3], batch_norm=True)
    assert spelt == ModelConfig(name="segnet")
    assert shape(depth=4, convs=[2, 2, 3, 3]) == ModelConfig(name="segnet", depth=4)
    # claims speak of arms
    by_name = {experiment.name: experiment for experiment in FIRST.experiments}
    main = by_name["main"].claims()
    assert [(claim.left, claim.right, claim.points) for claim in main[:3]] == [
        (f"unet/{variant}", f"segnet/{variant}", 2.0) for variant in ("width", "parameters", "latency")
    ]
    assert {claim.metric for claim in main} == {"miou", "border"}
    assert by_name["batch_norm"].claims()[-1].left == "segnet/on"


def test_the_time_of_a_run_follows_measured_epochs(tmp_path):
    manifest = manifest_of(FIRST)
    found = plan(manifest)
    run = found[0]
    guessed = durations(manifest, tmp_path, found)
    timed = durations(manifest, tmp_path, found, {run.cost: 0.001})
    learnt, scored = run.config.train.epochs * (3312 + 368 / 3), len(run.splits) * 368 / 3
    assert run.splits == ("val",)
    assert timed[run.name] == pytest.approx(0.001 * (learnt + scored))
    assert timed[found[-1].name] == guessed[found[-1].name]
    row = {"seconds": 90.0, "train_seconds": 80.0, "learning_rate": 0.1}
    row |= dict.fromkeys(("train_loss", "val_loss", "val_miou", "val_accuracy"), 0.5)
    runs.write_metrics(run.place(tmp_path), [EpochRow(epoch=epoch, **row) for epoch in (1, 2)])
    measured = durations(manifest, tmp_path, found)
    assert measured[run.name] == pytest.approx(90 * run.config.train.epochs * (1 + scored / learnt))
    assert durations(manifest, tmp_path, found, {run.cost: 0.001}) == measured, "epochs say more than steps"
    assert guessed[run.name] < measured[run.name]
    other = next(run for run in found if run.config.model.name == "segnet" and run.config.data.size == 96)
    assert measured[other.name] > 0.7 * other.config.train.epochs * 90, "of less arithmetic, by that much quicker"


def test_the_time_of_a_run_counts_the_windows_of_fit_crop(tmp_path):
    classes = (ClassInfo(name="cell", colour="#0072B2", role="foreground"),) * 2
    known = {"name": "", "provenance": "", "official": False, "key": "", "classes": classes, "scored_classes": classes}
    data = DataInfo(**known, largest_side=512, splits={"train": 20, "val": 4, "test": 6})
    manifest = manifest_of(load_study("study_isbi"), data=data)
    tuning, *_, trained = plan(manifest)
    seconds = durations(manifest, tmp_path, [tuning, trained], {tuning.cost: 0.001, trained.cost: 0.001})
    assert (tuning.splits, trained.splits) == (("val",), ("val", "test"))
    learnt = 15 * (20 + 4 / 3) * 4  # crops of half of each side
    assert seconds[tuning.name] == pytest.approx(0.001 * (learnt + 9 * 4 / 3)), "windows overlap by half"
    assert seconds[trained.name] == pytest.approx(0.001 * (learnt + 9 * (4 + 6) / 3))


def asked(model, quantity="parameters"):
    return MatchQuestion(model, ModelConfig(name="unet"), 96, quantity)


def test_a_wider_or_deeper_segnet_of_as_many_parameters():
    found = find_shape(asked(ModelConfig(name="segnet")), 3)
    assert found.options == {"convs": [2, 2, 4, 3, 3]}, "no width alone is within 2 %"
    assert (found.wanted, found.reached) == (1_942_611, 1_917_411)
    assert find_shape(asked(ModelConfig(name="unet", depth=5)), 3).options == {"base_channels": 8}
    assert count_parameters(3)([ModelConfig(name="unet")]) == [1_942_611]


def test_what_costs_the_same_stays_the_nearest_width_wins_and_none_is_one_line():
    def measure(shapes):
        assert len(shapes) == 2, "nothing else is measured"
        return [10.0, 10.4]

    found = find_shape(asked(ModelConfig(name="segnet"), "latency"), 3, measure)
    assert found == CostMatch(options={}, quantity="latency", wanted=10.0, reached=10.4)

    def by_width(shapes):
        return [16.9, *(float(shape.options["base_channels"]) for shape in shapes[1:])]

    assert find_shape(asked(ModelConfig(name="segnet", base_channels=24), "latency"), 3, by_width).reached == 17
    with pytest.raises(PetsegError, match=r"no segnet has the latency of unet 96px within 5 %; the nearest is 100\.0"):
        find_shape(asked(ModelConfig(name="segnet"), "latency"), 3, lambda shapes: [10.0, *[20.0] * (len(shapes) - 1)])


def test_a_match_whose_question_changed_is_searched_anew(whole, tiny, tmp_path):
    def waits(study):
        manifest = read_manifest(whole).model_copy(update={"recipe": study})
        return any("the shape of segnet/parameters" in run.waits for run in plan(manifest))

    wider = altered(tmp_path, "base_channels = 3", "base_channels = 4")
    assert (waits(tiny), waits(wider)) == (False, True)
    size = tiny.experiments[1]
    assert size.matched_to("segnet/parameters") == "unet/parameters"
    assert size.matched_to("unet/parameters") is None
