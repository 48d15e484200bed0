"""A run's folder damaged, shared or of another version: said, and recovered from the epoch before where possible."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from petseg.config import RunConfig, load_recipe
from petseg.data.cache import Prepared, prepare
from petseg.data.sources import get_data, open_dataset
from petseg.errors import PetsegError
from petseg.evaluation.evaluate import Evaluation, evaluate_run
from petseg.experiments.compare import Plan, compare
from petseg.training.batches import load_splits
from petseg.training.device import choose_hardware
from petseg.training.loop import Execution, train
from petseg.training.runs import LOCK, new_folder
from tests.conftest import TINY
from tests.data.test_download import ARCHIVE, BODY, Server

CPU = choose_hardware("fp32", "cpu")
FRESH, RESUMED = Execution(hardware=CPU), Execution(hardware=CPU, resume=True)


def config(*settings: str, model: str = "unet") -> RunConfig:
    deterministic = ("train.epochs=3", "train.deterministic=true", "model.base_channels=2", "data.size=32")
    return load_recipe("default", [*TINY, *deterministic, *settings]).for_model(model)


@pytest.fixture(scope="module")
def trained(pets_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Returns a function that copies a run of three epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETSEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        run = tmp_path_factory.mktemp("trained") / "run"
        train(config(), prepare(open_dataset(pets_folder), 32), run, FRESH)
    return lambda place: shutil.copytree(run, place / "run")


def scored(run: Path, prepared: Prepared) -> Evaluation:
    return evaluate_run(run, CPU, load_splits(prepared, config(), CPU.device), "val")


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def last_line_lost(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def last_line_cut(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


def other_model(path: Path) -> None:
    save_file({"model.weight": torch.zeros(3)}, path, metadata={"epoch": "3"})


def optimiser_lost(path: Path) -> None:
    kept = {name: tensor for name, tensor in load(path.read_bytes()).items() if name != "optimiser.0.exp_avg"}
    save_file(kept, path, metadata={"epoch": "3"})


def optimiser_of_another_shape(path: Path) -> None:
    save_file({**load(path.read_bytes()), "optimiser.0.exp_avg": torch.zeros(5)}, path, metadata={"epoch": "3"})


def without_epoch(path: Path) -> None:
    save_file(load(path.read_bytes()), path)


def before_the_first(path: Path) -> None:
    save_file(load(path.read_bytes()), path, metadata={"epoch": "-1"})


RECOVERED = {
    "half a checkpoint": ("resume.safetensors", half, r"resume\.safetensors: damaged"),
    "an empty checkpoint": ("resume.safetensors", lambda path: path.write_bytes(b""), "damaged"),
    "another model's": ("resume.safetensors", other_model, "weights of another model"),
    "no optimiser": ("resume.safetensors", optimiser_lost, "not the optimiser's state of this model"),
    "another optimiser": ("resume.safetensors", optimiser_of_another_shape, "not the optimiser's state of this model"),
    "no epoch": ("resume.safetensors", without_epoch, "damaged"),
    "epoch -1": ("resume.safetensors", before_the_first, "damaged"),
    "a line of metrics lost": ("metrics.jsonl", last_line_lost, r"holds 2 epochs where resume\.safetensors is after 3"),
    "a line of metrics cut": ("metrics.jsonl", last_line_cut, "holds 2 epochs"),
}


@pytest.mark.parametrize("damage", RECOVERED)
def test_a_damaged_state_is_said_and_the_epoch_before_taken(
    damage: str,
    trained: Callable[[Path], Path],
    prepared: Prepared,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = trained(tmp_path)
    wanted = {name: load((run / f"{name}.safetensors").read_bytes()) for name in ("best", "last", "resume")}
    scored(run, prepared)
    file, harm, message = RECOVERED[damage]
    harm(run / file)
    history = train(config(), prepared, run, RESUMED)
    (warning,) = caplog.messages
    assert warning.startswith("petseg: warning: ")
    assert warning.endswith("; going on after epoch 2")
    assert re.search(message, warning)
    assert [row.epoch for row in history] == [1, 2, 3]
    for name, tensors in wanted.items():
        found = load_file(run / f"{name}.safetensors")
        assert all(torch.equal(tensor, found[key]) for key, tensor in tensors.items()), name
    assert not (run / "evaluations").exists()  # of weights that may have come out otherwise
    train(config(), prepared, run, RESUMED)
    assert caplog.messages == [warning]


LOST = {
    "both checkpoints": (
        ("resume.safetensors", "resume.previous.safetensors"),
        half,
        "damaged .*; train again without --resume",
    ),
    "all metrics": (("metrics.jsonl",), lambda path: path.write_text(""), "holds 0 epochs where"),
    "a line between": (
        ("metrics.jsonl",),
        lambda path: path.write_text("x\n" + path.read_text()),
        "line 1: .*invalid json",
    ),
    "lines of other epochs": (
        ("metrics.jsonl",),
        lambda path: path.write_text(path.read_text() * 2),
        "line 4 is not that of epoch 4",
    ),
    "a line that is a list": (
        ("metrics.jsonl",),
        lambda path: path.write_text("[1]\n" + path.read_text()),
        "line 1: .*should be an object",
    ),
    "scores in the metrics": (
        ("metrics.jsonl",),
        lambda path: path.write_text(path.read_text().replace("val_miou", "val_xxxx")),
        "val_miou",
    ),
    "the config": (("config.json",), half, r"config\.json: not readable as JSON"),
    "the best weights": (("best.safetensors", "best.previous.safetensors"), half, r"best.*\.safetensors: damaged"),
}


@pytest.mark.parametrize("damage", LOST)
def test_what_cannot_be_recovered_is_said_and_left_as_it_is(
    damage: str, trained: Callable[[Path], Path], prepared: Prepared, tmp_path: Path
) -> None:
    run = trained(tmp_path)
    files, harm, message = LOST[damage]
    for file in files:
        if (run / file).is_file():
            harm(run / file)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(PetsegError, match=message) as caught:
        train(config(), prepared, run, RESUMED)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("file", ["val.json", "val.images.json"])
@pytest.mark.parametrize("harm", [half, lambda path: path.write_text("{}"), lambda path: path.unlink()])
def test_a_damaged_evaluation_is_scored_again(
    file: str, harm: Callable[[Path], None], trained: Callable[[Path], Path], prepared: Prepared, tmp_path: Path
) -> None:
    run = trained(tmp_path)
    first = scored(run, prepared)
    harm(run / "evaluations" / file)
    again = scored(run, prepared)
    assert again.scores == first.scores
    assert (again.images.confusions == first.images.confusions).all()
    assert json.loads((run / "evaluations" / "val.json").read_text())["miou"] == first.scores.miou


def test_a_config_of_another_version_is_said(
    trained: Callable[[Path], Path], prepared: Prepared, tmp_path: Path
) -> None:
    run = trained(tmp_path)
    fields = json.loads((run / "config.json").read_text())
    fields["train"]["momentum"] = 0.9
    (run / "config.json").write_text(json.dumps(fields))
    with pytest.raises(PetsegError, match=r"field 'train\.momentum' is unknown"):
        train(config(), prepared, run, RESUMED)


def test_labels_of_another_task_are_refused(
    trained: Callable[[Path], Path], pets_folder: Path, prepared: Prepared, tmp_path: Path
) -> None:
    """One split of labels may serve many runs; those of the same classes alone."""
    species = config("task=species")
    others = prepare(open_dataset(pets_folder, species.data), 32)
    splits = load_splits(others, species, CPU.device)
    with pytest.raises(PetsegError, match="classes pet, background, border; the labels are of background, cat, dog"):
        evaluate_run(trained(tmp_path), CPU, splits, "val")
    with pytest.raises(PetsegError, match="load them from the same dataset"):
        train(config(), prepared, tmp_path / "new", Execution(hardware=CPU, splits=splits))


# --- two at once -----------------------------------------------------------------------------------------------------


def test_a_second_training_or_comparison_in_one_folder_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    message = r"run folder .*: another process is at work in it; wait for it, or choose another with --out"
    code = (
        "import sys; from pathlib import Path; from petseg.training.runs import new_folder\n"
        "with new_folder(Path(sys.argv[1]), resume=True): print('here', flush=True); sys.stdin.readline()"
    )
    for resume in (False, True):
        command = [sys.executable, "-c", code, str(tmp_path / "run")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "here\n"
            with pytest.raises(PetsegError, match=message):
                train(config(), prepared, tmp_path / "run", Execution(hardware=CPU, resume=resume))
            with pytest.raises(PetsegError, match=message):
                compare(Plan(load_recipe("default", TINY), CPU, "", resume), prepared, tmp_path / "run")
            assert {path.name for path in (tmp_path / "run").iterdir()} == {LOCK}
            other.communicate("\n", timeout=60)
    assert len(train(config(), prepared, tmp_path / "run", FRESH)) == 3


def test_of_trainings_that_start_together_one_trains(prepared: Prepared, tmp_path: Path) -> None:
    """The others come after its lock or after its end: both are refused, nothing is mixed."""
    outcomes: list[str] = []
    start = threading.Barrier(6)

    def begin(number: int) -> None:
        start.wait()
        try:
            with new_folder(tmp_path / "run", resume=False):
                (tmp_path / "run" / f"{number}.txt").write_text("mine")
                outcomes.append("worked")
        except PetsegError as error:
            outcomes.append("at work" if "at work" in str(error) else "exists" if "exists" in str(error) else "?")

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("worked") == 1
    assert set(outcomes) <= {"worked", "at work", "exists"}
    assert len(list((tmp_path / "run").glob("*.txt"))) == 1


def test_a_second_download_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And finds its work done: the host is asked once."""
    with Server() as server:
        host = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        host.start()
        try:
            archive = replace(ARCHIVE, urls=(server.url("slow"),))
            monkeypatch.setattr("petseg.data.sources.ARCHIVES", (archive,))
            threads = [threading.Thread(target=get_data, args=(tmp_path,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            server.closing.set()
            server.shutdown()
            host.join()
    assert [kind for kind, _ in server.seen] == ["slow"]
    assert (tmp_path / ARCHIVE.name).read_bytes() == BODY
