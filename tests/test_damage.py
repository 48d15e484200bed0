"""A run's folder damaged, shared or of another version: said, and recovered from the epoch before where possible."""

import json
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from petseg.config import load_recipe
from petseg.data.sources import get_data
from petseg.errors import PetsegError
from petseg.evaluation.evaluate import evaluate_run
from petseg.experiments.compare import Plan, compare
from petseg.training.batches import load_splits
from petseg.training.runs import LOCK, new_folder
from tests.conftest import CPU, TINY, prepare_for, refused, tiny, train_on_cpu
from tests.data.test_download import ARCHIVE, BODY, Server

CONFIG = tiny("train.epochs=3", "train.deterministic=true", "model.base_channels=2")


@pytest.fixture(scope="module")
def whole(pets_folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETSEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        run = tmp_path_factory.mktemp("trained") / "run"
        train_on_cpu(CONFIG, prepare_for(CONFIG, pets_folder), run)
    return run


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def scored(run, prepared):
    return evaluate_run(run, CPU, load_splits(prepared, CONFIG, CPU.device), "val")


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(change):
    return lambda path: path.write_text(change(path.read_text()))


def tensors(change, **metadata):
    return lambda path: save_file(change(load(path.read_bytes())), path, metadata)


STATE, METRICS, MOMENT = "resume.safetensors", "metrics.jsonl", "optimiser.0.exp_avg"
OTHERS = "not the optimiser's state of this model"
RECOVERED = {
    "half a checkpoint": (STATE, half, r"resume\.safetensors: damaged"),
    "an empty checkpoint": (STATE, lambda path: path.write_bytes(b""), "damaged"),
    "another model's": (STATE, tensors(lambda _: {"model.weight": torch.zeros(3)}, epoch="3"), "of another model"),
    "no optimiser": (
        STATE,
        tensors(lambda old: {name: old[name] for name in old if name != MOMENT}, epoch="3"),
        OTHERS,
    ),
    "another optimiser": (STATE, tensors(lambda old: {**old, MOMENT: torch.zeros(5)}, epoch="3"), OTHERS),
    "no epoch": (STATE, tensors(dict), "damaged"),
    "epoch -1": (STATE, tensors(dict, epoch="-1"), "damaged"),
    "a line lost": (METRICS, text(lambda old: old[: old.rindex("{")]), "2 epochs where resume.safetensors is after 3"),
    "a line cut": (METRICS, text(lambda old: old[:-20]), "holds 2 epochs"),
}


@pytest.mark.parametrize("damage", RECOVERED)
def test_a_damaged_state_is_said_and_the_epoch_before_taken(damage, run, whole, prepared, caplog):
    scored(run, prepared)
    file, harm, message = RECOVERED[damage]
    harm(run / file)
    history = train_on_cpu(CONFIG, prepared, run, resume=True)
    (warning,) = caplog.messages
    assert warning.startswith("petseg: warning: ")
    assert warning.endswith("; going on after epoch 2")
    assert re.search(message, warning)
    assert [row.epoch for row in history] == [1, 2, 3]
    for name in ("best.safetensors", "last.safetensors", "resume.safetensors"):
        wanted, found = load_file(whole / name), load_file(run / name)
        assert all(torch.equal(tensor, found[key]) for key, tensor in wanted.items()), name
    assert not (run / "evaluations").exists()  # of weights that may have come out otherwise
    train_on_cpu(CONFIG, prepared, run, resume=True)
    assert caplog.messages == [warning]


LOST = {
    "both checkpoints": ("resume*.safetensors", half, "damaged .*; train again, into"),
    "the best weights": ("best*.safetensors", half, r"best.*\.safetensors: damaged"),
    "all metrics": (METRICS, text(lambda old: ""), "holds 0 epochs where"),
    "a line between": (METRICS, text(lambda old: "x\n" + old), "line 1: .*invalid json"),
    "lines of other epochs": (METRICS, text(lambda old: old * 2), "line 4 is not that of epoch 4"),
    "a line that is a list": (METRICS, text(lambda old: "[1]\n" + old), "line 1: .*should be an object"),
    "scores in the metrics": (METRICS, text(lambda old: old.replace("val_miou", "val_xxxx")), "val_miou"),
    "the config": ("config.json", half, r"config\.json: not readable as JSON"),
    "another version's": ("config.json", text(lambda old: old.replace("ema", "momentum")), r"'train\.momentum' is unk"),
}


@pytest.mark.parametrize("damage", LOST)
def test_what_cannot_be_recovered_is_said_and_left_as_it_is(damage, run, prepared):
    files, harm, message = LOST[damage]
    for file in run.glob(files):
        harm(file)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(PetsegError, match=message) as caught:
        train_on_cpu(CONFIG, prepared, run, resume=True)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("file", ["val.json", "val.images.json"])
@pytest.mark.parametrize("harm", [half, text(lambda old: "{}"), lambda path: path.unlink()])
def test_a_damaged_evaluation_is_scored_again(file, harm, run, prepared):
    first = scored(run, prepared)
    harm(run / "evaluations" / file)
    again = scored(run, prepared)
    assert again.scores == first.scores
    assert (again.images.confusions == first.images.confusions).all()
    assert json.loads((run / "evaluations" / "val.json").read_text())["miou"] == first.scores.miou


def test_labels_of_another_task_are_refused(run, pets_folder, prepared, tmp_path):
    species = tiny("task=species")
    splits = load_splits(prepare_for(species, pets_folder), species, CPU.device)
    with pytest.raises(PetsegError, match="classes pet, background, border; the labels are of background, cat, dog"):
        evaluate_run(run, CPU, splits, "val")
    refused("load them from the same dataset", train_on_cpu, CONFIG, prepared, tmp_path / "new", splits=splits)


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_training_or_comparison_in_one_folder_is_refused(resume, prepared, tmp_path):
    message = r"run folder .*: another process is at work in it; wait for it, or choose another folder \(--out\)"
    code = (
        "import sys; from pathlib import Path; from petseg.training.runs import new_folder\n"
        "with new_folder(Path(sys.argv[1]), resume=True): print('here', flush=True); sys.stdin.readline()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "here\n"
        refused(message, train_on_cpu, CONFIG, prepared, tmp_path / "run", resume=resume)
        plan = Plan(load_recipe("default", TINY), CPU, "", resume=resume)
        refused(message, compare, plan, prepared, tmp_path / "run")
        assert {path.name for path in (tmp_path / "run").iterdir()} == {LOCK}
        other.communicate("\n", timeout=60)
    assert len(train_on_cpu(CONFIG, prepared, tmp_path / "run")) == 3


def at_once(count, call):
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(call, range(count)))


def test_of_trainings_that_start_together_one_trains(tmp_path):
    outcomes, start = [], threading.Barrier(6)

    def begin(number):
        start.wait()
        try:
            with new_folder(tmp_path / "run", resume=False):
                (tmp_path / "run" / "config.json").touch()  # by which others know a run
                (tmp_path / "run" / f"{number}.txt").write_text("mine")
                outcomes.append("worked")
        except PetsegError as error:
            outcomes.append("at work" if "at work" in str(error) else "exists" if "exists" in str(error) else "?")

    at_once(6, begin)
    assert outcomes.count("worked") == 1
    assert set(outcomes) <= {"worked", "at work", "exists"}
    assert len(list((tmp_path / "run").glob("*.txt"))) == 1


def test_a_second_download_waits_for_the_first(tmp_path, monkeypatch):
    with Server() as server:
        monkeypatch.setattr("petseg.data.sources.ARCHIVES", (replace(ARCHIVE, urls=(server.url("slow"),)),))
        at_once(3, lambda number: get_data(tmp_path))
    assert [kind for kind, _ in server.seen] == ["slow"]
    assert (tmp_path / ARCHIVE.name).read_bytes() == BODY
