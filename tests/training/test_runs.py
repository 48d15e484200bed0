"""A run's files: whole or not written, and clear words where they cannot be read."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from petseg import __version__
from petseg.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from petseg.environment import environment, now
from petseg.errors import PetsegError
from petseg.storage import read_json, remove_unfinished, write_atomically, write_json
from petseg.training import runs
from petseg.training.runs import LOCK, new_folder, read_config, read_metrics, write_metrics


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Writing


def test_write_atomically_moves_the_whole_file_there(tmp_path):
    path = tmp_path / "new" / "file.txt"
    seen: list[Path] = []

    def write(unfinished: Path) -> None:
        seen.append(unfinished)
        unfinished.write_text("whole")
        assert not path.exists()

    write_atomically(path, write)
    assert path.read_text() == "whole"
    assert names(path.parent) == ["file.txt"]
    assert seen[0].parent == path.parent  # on the same disk, or the move is a copy


@pytest.mark.parametrize(
    ("error", "raised", "match"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            PetsegError,
            r"file\.txt: cannot be written \(No space left .*\);",
        ),
        (OSError("odd"), PetsegError, r"cannot be written \(odd\); free some space or choose another folder$"),
        (RuntimeError("bug"), RuntimeError, "^bug$"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path, error, raised, match):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(unfinished: Path) -> None:
        unfinished.write_text("ne")
        raise error

    with pytest.raises(raised, match=match):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, place):
    (tmp_path / "file").write_text("x")
    with pytest.raises(PetsegError, match=r"a\.txt: cannot be written \(.*\); free some space or choose") as caught:
        write_atomically(tmp_path / place / "a.txt", lambda unfinished: unfinished.write_text("x"))
    assert "\n" not in str(caught.value)


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    code = (
        "import os, signal, sys; from pathlib import Path; from petseg.training.runs import write_atomically\n"
        "def write(unfinished):\n"
        "    unfinished.write_text('ne')\n"
        "    os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))\n"
        "write_atomically(Path(sys.argv[1]), write)"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code, path], check=False, capture_output=True)
    assert done.returncode != 0
    assert b"Traceback" not in done.stderr
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2  # the half stands beside it, hidden, under a name that nobody reads
    assert names(tmp_path)[0].startswith(".file.txt.tmp")


def test_what_killed_writes_left_is_swept_and_nothing_else(tmp_path):
    def left() -> set[str]:
        return {path.name for path in tmp_path.iterdir()}

    # the second is safetensors' own
    for name in (".mask.png.tmp12", ".tmp9RhjQI", ".tmp-of-somebody", "metrics.jsonl"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path, ["mask.png"])
    assert left() == {".tmp9RhjQI", ".tmp-of-somebody", "metrics.jsonl"}, "a folder of photos is not ours to sweep"
    remove_unfinished(tmp_path)
    assert left() == {".tmp-of-somebody", "metrics.jsonl"}


def test_json_is_read_as_it_was_written(tmp_path):
    content = {"mIoU": 0.7284, "classes": ["pet", "Mähne"], "none": None, "nested": {"a": 1}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert len(text.splitlines()) > 5  # for people


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_what_is_no_number(tmp_path, value):
    write_json(tmp_path / "a.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"rows": [{"loss": value}]})
    assert read_json(tmp_path / "a.json") == {"loss": 1.0}
    assert names(tmp_path) == ["a.json"]


# Reading


def test_no_such_json(tmp_path):
    with pytest.raises(PetsegError, match=r"a\.json: no such file; is this the folder of a finished run\?"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b'{"a": "\xff"}', b"a"])
def test_broken_json(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(PetsegError, match=r"a\.json: not readable as JSON \(.*\); restore it or run again"):
        read_json(tmp_path / "a.json")


def test_a_folder_where_json_should_be(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(PetsegError, match=r"a\.json: not readable as JSON"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(("content", "kind"), [("[1]", "list"), ("3", "int"), ("null", "NoneType"), ('"a"', "str")])
def test_json_that_is_no_object(tmp_path, content, kind):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(PetsegError, match=rf"a\.json: holds a {kind}; wanted a JSON object"):
        read_json(tmp_path / "a.json")


def test_config_comes_back(tmp_path):
    config = RunConfig(
        model=ModelConfig(name="segnet", convs=(1, 2), depth=2), data=DataConfig(size=64), train=TrainConfig(seed=7)
    )
    write_json(tmp_path / "config.json", config.model_dump())
    assert read_config(tmp_path) == config


def test_a_config_of_another_version(tmp_path):
    fields = RunConfig().model_dump()
    fields["train"]["epoch"] = fields["train"].pop("epochs")
    write_json(tmp_path / "config.json", fields)
    with pytest.raises(
        PetsegError, match=r"config\.json: field 'train\.epoch' is unknown; choose one of: train\.epochs"
    ):
        read_config(tmp_path)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(PetsegError, match=r"config\.json: no such file; is this the folder of a finished run\?"):
        read_config(tmp_path)


# metrics.jsonl

ROWS = [{"epoch": epoch, "val_loss": 1 / epoch, "val_miou": 0.1 * epoch} for epoch in (1, 2, 3)]


def test_metrics_come_back(tmp_path):
    assert read_metrics(tmp_path) == []
    write_metrics(tmp_path, ROWS)
    assert read_metrics(tmp_path) == ROWS
    assert read_metrics(tmp_path, up_to=2) == ROWS[:2]
    assert read_metrics(tmp_path, up_to=0) == []
    assert read_metrics(tmp_path, up_to=9) == ROWS
    write_metrics(tmp_path, ROWS[:1])  # anew, not behind the others
    assert read_metrics(tmp_path) == ROWS[:1]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS[:1]


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_half_written_last_line_is_dropped(tmp_path, cut):
    write_metrics(tmp_path, ROWS)
    whole = (tmp_path / "metrics.jsonl").read_text()
    last = len(whole.splitlines()[-1]) + 1  # with its line end
    (tmp_path / "metrics.jsonl").write_text(whole[: len(whole) - min(cut + 1, last - 1)])
    assert read_metrics(tmp_path) == ROWS[:2]


def test_a_broken_line_in_the_middle_is_told(tmp_path):
    write_metrics(tmp_path, ROWS)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace('"epoch": 2', '"epoch" 2'))
    with pytest.raises(PetsegError, match=r"metrics\.jsonl: line 2"):
        read_metrics(tmp_path)


# Folders


def test_a_new_folder(tmp_path):
    for _ in range(2):  # with a lock alone it is empty: nothing to lose
        with new_folder(tmp_path / "runs" / "one", resume=False):
            assert set(names(tmp_path / "runs" / "one")) <= {LOCK}


def test_a_folder_that_holds_something_is_kept(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("x")
    with pytest.raises(
        PetsegError, match=r"run folder .*run: exists; go on with --resume, or choose another with --out"
    ):
        new_folder(run, resume=False).__enter__()
    with new_folder(run, resume=True):
        pass
    assert set(names(run)) - {LOCK} == {"config.json"}
    assert (run / "config.json").read_text() == "x"


def test_a_folder_where_a_file_is(tmp_path):
    (tmp_path / "run").write_text("x")
    for path in (tmp_path / "run", tmp_path / "run" / "below"):
        for resume in (False, True):
            with pytest.raises(PetsegError, match=r"run folder .*: cannot be made \(.*\); choose another with --out"):
                new_folder(path, resume=resume).__enter__()


# Environment


def test_environment_has_its_keys():
    got = environment(device="cpu", precision="bf16", threads=3)
    assert {*got} == {
        *(
            "petseg",
            "commit",
            "device",
            "processor",
            "threads",
            "precision",
            "torch",
            "numpy",
            "python",
            "platform",
            "started",
        ),
    }
    assert (got["device"], got["precision"], got["threads"]) == ("cpu", "bf16", 3)
    assert got["petseg"] == __version__
    assert got["python"] == ".".join(str(part) for part in sys.version_info[:3])
    for key in ("torch", "numpy"):
        assert re.match(r"\d+\.\d+", got[key])
    assert got["processor"]
    assert got["platform"]
    assert json.loads(json.dumps(got)) == got
    # nothing of whoever ran it
    assert str(Path.home()) not in json.dumps(got)


def test_commit_is_that_of_the_code_whatever_folder_it_runs_in(tmp_path, monkeypatch):
    here = environment(device="cpu", precision="fp32", threads=1)["commit"]
    monkeypatch.chdir(tmp_path)
    assert environment(device="cpu", precision="fp32", threads=1)["commit"] == here
    if (Path(runs.__file__).parent.parent / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{10,}(-dirty)?", here)
    else:
        assert here == ""


def test_commit_without_git(monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    assert environment(device="cpu", precision="fp32", threads=1)["commit"] == ""


def test_now_is_utc_to_the_second():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", now())
