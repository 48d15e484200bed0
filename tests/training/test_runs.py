"""A run's files: config and metrics come back, and clear words where they cannot be read."""

from __future__ import annotations

import json

import pytest

from petseg.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from petseg.errors import PetsegError
from petseg.schema import EpochRow
from petseg.storage import write_json
from petseg.training.runs import LOCK, epoch_seconds, new_folder, read_config, read_metrics, write_metrics


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_config_comes_back(tmp_path):
    config = RunConfig(
        model=ModelConfig(name="segnet", convs=(1, 2), depth=2), data=DataConfig(size=64), train=TrainConfig(seed=7)
    )
    write_json(tmp_path / "config.json", config.model_dump(mode="json"))
    assert read_config(tmp_path).model_dump(mode="json") == config.model_dump(mode="json")


def test_a_config_of_another_version_and_none(tmp_path):
    with pytest.raises(PetsegError, match=r"config\.json: no such file; is this the folder of a finished run\?"):
        read_config(tmp_path)
    fields = RunConfig().model_dump(mode="json")
    fields["train"]["epoch"] = fields["train"].pop("epochs")
    write_json(tmp_path / "config.json", fields)
    with pytest.raises(
        PetsegError, match=r"config\.json: field 'train\.epoch' is unknown; choose one of: train\.epoch"
    ):
        read_config(tmp_path)


# metrics.jsonl

ROWS = [
    EpochRow(
        epoch=epoch,
        seconds=seconds,
        train_seconds=1.0,
        learning_rate=1e-3,
        train_loss=0.5,
        val_loss=1 / epoch,
        val_miou=0.1 * epoch,
        val_accuracy=0.5,
        val_image_class=None if epoch < 3 else 0.75,
    )
    for epoch, seconds in ((1, 2.0), (2, 90.0), (3, 3.0))
]


def test_metrics_come_back(tmp_path):
    assert read_metrics(tmp_path) == []
    write_metrics(tmp_path, ROWS)
    assert read_metrics(tmp_path) == ROWS
    for up_to, rows in ((2, ROWS[:2]), (0, []), (9, ROWS)):
        assert read_metrics(tmp_path, up_to=up_to) == rows
    write_metrics(tmp_path, ROWS[:1])  # anew, not behind the others
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert EpochRow(**json.loads(line)) == ROWS[0]
    assert (epoch_seconds(ROWS), epoch_seconds(ROWS, "train_seconds")) == (3.0, 1.0), "the median"


def test_a_half_written_last_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_metrics(tmp_path, ROWS)
    whole = path.read_text()
    last = len(whole.splitlines()[-1]) + 1  # with its line end
    for cut in range(2, last + 1):
        path.write_text(whole[:-cut])
        assert read_metrics(tmp_path) == ROWS[:2], cut


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"epoch":2', '"epoch"2', r"metrics\.jsonl: line 2: line: invalid json"),
        ('"epoch":2', '"epoch":3', r"metrics\.jsonl: line 2 is not that of epoch 2; restore the file or train again"),
        ('"seconds":3.0', '"second":3.0', r"metrics\.jsonl: line 3: seconds: field required; restore"),
        ('"val_miou":0.2,', '"val_miou":"no",', r"metrics\.jsonl: line 2: val_miou: input should be a valid number"),
    ],
)
def test_a_broken_line_is_reported(old, new, message, tmp_path):
    write_metrics(tmp_path, ROWS)
    path = tmp_path / "metrics.jsonl"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(PetsegError, match=message):
        read_metrics(tmp_path)


# Folders


def test_a_new_folder(tmp_path):
    for _ in range(2):  # with a lock alone it is empty: nothing to lose
        with new_folder(tmp_path / "runs" / "one", resume=False):
            assert names(tmp_path / "runs" / "one") <= {LOCK}


def test_a_folder_that_holds_something_is_kept(tmp_path):
    (tmp_path / "config.json").write_text("x")
    with pytest.raises(PetsegError, match=r"run folder .*: exists; go on with --resume, or choose another with --out"):
        new_folder(tmp_path, resume=False).__enter__()
    with new_folder(tmp_path, resume=True):
        pass
    assert names(tmp_path) - {LOCK} == {"config.json"}
    assert (tmp_path / "config.json").read_text() == "x"


@pytest.mark.parametrize("place", ["file", "file/below"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_where_a_file_is(place, resume, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(PetsegError, match=r"run folder .*: cannot be made \(.*\); choose another with --out"):
        new_folder(tmp_path / place, resume=resume).__enter__()
