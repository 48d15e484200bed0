"""What a figure depends on beside its config."""

import json
import os
import re
import sys
from pathlib import Path

import petseg
from petseg.environment import environment
from petseg.schema import EnvironmentInfo


def here():
    return environment(device="cpu", precision="bf16", threads=3)


def test_environment_has_its_keys():
    got = here()
    assert {*got} == {*EnvironmentInfo.model_fields}
    assert (got["device"], got["precision"], got["threads"]) == ("cpu", "bf16", 3)
    assert got["petseg"] == petseg.__version__
    assert got["python"] == ".".join(str(part) for part in sys.version_info[:3])
    for key in ("torch", "numpy"):
        assert re.match(r"\d+\.\d+", got[key])
    assert got["processor"]
    assert got["platform"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", got["started"])
    assert json.loads(json.dumps(got)) == got
    assert str(Path.home()) not in json.dumps(got), "nothing of whoever ran it"


def test_commit_is_that_of_the_code_whatever_folder_it_runs_in(tmp_path, monkeypatch):
    commit = here()["commit"]
    monkeypatch.chdir(tmp_path)
    assert here()["commit"] == commit
    checkout = (Path(petseg.__file__).parents[1] / ".git").exists()
    assert re.fullmatch(r"[0-9a-f]{10,}(-dirty)?" if checkout else "", commit)
    monkeypatch.setenv("PATH", os.devnull)
    assert here()["commit"] == "", "without git"
