"""A run's files: config and metrics come back, and clear words where they cannot be read."""

import json
from itertools import product

import pytest

from petseg.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from petseg.schema import EpochRow
from petseg.storage import write_json
from petseg.training.runs import LOCK, epoch_seconds, new_folder, read_config, read_metrics, write_metrics
from tests.conftest import names, refused


def test_config_comes_back(tmp_path):
    refused(r"config\.json: no such file; is this the folder of a finished run\?", read_config, tmp_path)
    config = RunConfig(model=ModelConfig(name="segnet", depth=2), data=DataConfig(size=64), train=TrainConfig(seed=7))
    fields = config.model_dump(mode="json")
    write_json(tmp_path / "config.json", fields)
    assert read_config(tmp_path) == config
    fields["train"]["epoch"] = fields["train"].pop("epochs")  # of another version
    write_json(tmp_path / "config.json", fields)
    refused(r"config\.json: field 'train\.epoch' is unknown; .* one of: train\.epoch", read_config, tmp_path)


FIGURES = {"train_seconds": 1.0, "learning_rate": 1e-3, "train_loss": 0.5, "val_accuracy": 0.5}
ROWS = [
    EpochRow(epoch=1, seconds=2.0, val_loss=1.0, val_miou=0.1, **FIGURES),
    EpochRow(epoch=2, seconds=90.0, val_loss=0.5, val_miou=0.2, **FIGURES),
    EpochRow(epoch=3, seconds=3.0, val_loss=0.3, val_miou=0.3, val_image_class=0.75, **FIGURES),
]


def test_metrics_come_back_but_for_a_half_written_last_line(tmp_path):
    assert read_metrics(tmp_path) == []
    write_metrics(tmp_path, ROWS)
    assert read_metrics(tmp_path) == ROWS
    for up_to, rows in ((2, ROWS[:2]), (0, []), (9, ROWS)):
        assert read_metrics(tmp_path, up_to=up_to) == rows
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    for cut in range(2, len(whole.splitlines()[-1]) + 2):  # with its line end
        path.write_text(whole[:-cut])
        assert read_metrics(tmp_path) == ROWS[:2], cut
    write_metrics(tmp_path, ROWS[:1])  # anew, not behind the others
    (line,) = path.read_text().splitlines()
    assert EpochRow(**json.loads(line)) == ROWS[0]
    assert (epoch_seconds(ROWS), epoch_seconds(ROWS, "train_seconds")) == (3.0, 1.0), "the median"


BROKEN = [
    ('"epoch":2', '"epoch"2', r"metrics\.jsonl: line 2: content: invalid json"),
    ('"epoch":2', '"epoch":3', r"metrics\.jsonl: line 2 is not that of epoch 2; restore the file or train again"),
    ('"seconds":3.0', '"second":3.0', r"metrics\.jsonl: line 3: seconds: field required; restore"),
    ('"val_miou":0.2,', '"val_miou":"no",', r"metrics\.jsonl: line 2: val_miou: input should be a valid number"),
]


@pytest.mark.parametrize(("old", "new", "message"), BROKEN)
def test_a_broken_line_is_reported(old, new, message, tmp_path):
    write_metrics(tmp_path, ROWS)
    path = tmp_path / "metrics.jsonl"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    refused(message, read_metrics, tmp_path)


def test_a_new_folder_and_one_that_holds_something_or_where_a_file_is(tmp_path):
    run = tmp_path / "runs" / "one"
    for _ in range(2):  # with a lock alone it is empty: nothing to lose
        with new_folder(run, resume=False):
            assert {*names(run)} <= {LOCK}
    (run / "config.json").write_text("x")
    match = r"run folder .*: exists; resume it \(--resume\), or choose another folder \(--out\)"
    refused(match, new_folder(run, resume=False).__enter__)
    with new_folder(run, resume=True):
        assert {*names(run)} - {LOCK} == {"config.json"}
    assert (run / "config.json").read_text() == "x"
    match = r"run folder .*: cannot be written \(.*\); choose another folder \(--out\)"
    for place, resume in product((run / "config.json", run / "config.json" / "below"), (False, True)):
        refused(match, new_folder(place, resume=resume).__enter__)
