"""What a figure depends on beside its config: the machine, the code, and the device that was chosen."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

import petseg
from petseg.environment import environment
from petseg.schema import EnvironmentInfo
from petseg.training.device import bf16_gain, choose_hardware
from tests.conftest import refused


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
    assert all(got[name] for name in ("processor", "platform"))
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


@pytest.mark.parametrize(
    ("cuda", "mps", "wanted"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_order_is_cuda_mps_cpu(cuda, mps, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)  # neither is here to allocate on
    chosen = choose_hardware("fp32")
    assert (chosen.device.type, chosen.precision) == (wanted, "fp32")
    if wanted == "mps":
        assert choose_hardware("auto").precision == "fp32", "bf16 is not tried there"


def test_bf16_is_taken_where_it_is_measured_to_be_faster_or_there_are_units_for_it(monkeypatch):
    units = {"_is_amx_tile_supported": False, "_is_avx512_bf16_supported": True}
    for name in units:
        monkeypatch.setattr(torch.cpu, name, lambda name=name: units[name])
    for gain, wanted in ((0.5, "fp32"), (2.0, "bf16")):
        monkeypatch.setattr("petseg.training.device.bf16_gain", lambda gain=gain: gain)
        chosen = choose_hardware("auto", "cpu")
        assert (chosen.precision, chosen.reason) == (wanted, f"bf16 multiplies {gain} times as fast here")
    units["_is_avx512_bf16_supported"] = False
    assert choose_hardware("auto", "cpu").precision == "fp32", "emulated"
    units["_is_amx_tile_supported"] = True
    assert choose_hardware("auto", "cpu").reason == "the processor has AMX"


def test_the_gain_of_bf16_is_of_the_slower_and_the_faster_product(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("petseg.training.device.time.perf_counter", lambda: next(clock))

    def multiply(one, other):
        for _ in range(2 if one.dtype == torch.float32 else 5):
            next(clock)

    monkeypatch.setattr(torch, "mm", multiply)
    assert bf16_gain.__wrapped__() == 3 / 6


def test_precision_is_as_asked_and_a_device_that_is_not_there_refused():
    assert choose_hardware("bf16", "cpu").precision == "bf16"
    assert choose_hardware("fp32", "cpu").environment().precision == "fp32"
    for device in ("tpu9", "cuda:99", "meta"):
        refused(f"device '{device}': torch has no such device here; choose cpu", choose_hardware, "auto", device)
