"""Full disks and read-only folders: one clear line, what was there stays, and the same call works once there is room.

The disks are small tmpfs mounts, which root may make; elsewhere these tests are skipped and say so.
"""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from petseg.cli import app
from petseg.data.cache import prepare
from petseg.data.sources import get_data, open_dataset, synthetic_data
from petseg.evaluation.evaluate import evaluate_run
from petseg.export.onnx import export_run
from petseg.report import write_report
from petseg.training.batches import load_splits
from tests.conftest import CPU, refused, tiny, train_on_cpu
from tests.test_kills import content

CONFIG = tiny("train.epochs=3", "train.deterministic=true", "model.base_channels=2", "model.depth=4")
SHALLOW = tiny("train.epochs=1", "model.base_channels=2", "model.depth=1")
COMPARISON = Path(__file__).parents[1] / "results" / "seed" / "comparison.json"


class Disk:
    def __init__(self, place):
        self.place, self.filler = place, place / "filler"

    def fill(self, leave=0):
        with self.filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC  # noqa: PT017
            file.truncate(max(0, file.tell() - leave))

    def mount(self, how):
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.place)], check=True)


@pytest.fixture
def disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount") if sys.platform == "linux" else None
    if mount is None:
        pytest.skip("no small disk: needs Linux's tmpfs")
    command = [mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    made = subprocess.run(command, capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no small disk: {made.stderr.decode().strip()} (needs root)")
    try:
        yield Disk(place)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("leave", [0, 4_000, 12_000, 40_000, 60_000, 100_000])
def test_a_disk_that_fills_during_training_costs_no_epoch(leave, disk, prepared, tmp_path):
    train_on_cpu(CONFIG, prepared, tmp_path / "whole")
    run, before = disk.place / "run", {}

    def fill(row):
        before.update(content(run))
        disk.fill(leave)

    refused(r"cannot be written \(.*[Nn]o space left", train_on_cpu, CONFIG, prepared, run, on_epoch=fill)
    for file in ("resume.safetensors", "config.json"):
        assert content(run)[file] == before[file]
    disk.filler.unlink()
    train_on_cpu(CONFIG, prepared, run, resume=True)
    assert content(run) == content(tmp_path / "whole")


@pytest.mark.parametrize("leave", [0, 8_000, 120_000])
def test_a_disk_too_small_for_the_cache(leave, disk, pets_folder, monkeypatch):
    monkeypatch.setenv("PETSEG_CACHE", str(disk.place / "cache"))
    disk.fill(leave)
    refused("free some space or set PETSEG_CACHE", prepare, open_dataset(pets_folder), 32)
    assert not list((disk.place / "cache").glob("prepared/*/index.json"))
    disk.filler.unlink()
    assert len(prepare(open_dataset(pets_folder), 32).samples) == 48
    assert len(list((disk.place / "cache" / "prepared").glob("*-32-*[!k]"))) == 1


@pytest.fixture
def calls(disk, prepared, pets_folder):
    run, photo = disk.place / "run", next(iter((pets_folder / "images").glob("*.jpg")))
    train_on_cpu(SHALLOW, prepared, run)
    shutil.copy(COMPARISON, disk.place)
    shutil.copy(photo, disk.place / "cat.jpg")

    def command(*words):
        return lambda: app([*map(str, words), "--model", "unet_small"], standalone_mode=False)

    return {
        "train": lambda: train_on_cpu(SHALLOW, prepared, disk.place / "new"),
        "evaluate": lambda: evaluate_run(run, CPU, load_splits(prepared, SHALLOW, CPU.device), "val"),
        "report": lambda: write_report(disk.place / COMPARISON.name),
        "predict": command("predict", disk.place / "cat.jpg"),
        "predict --out": command("predict", photo, "--out", disk.place / "out"),
        "export": command("export", "--out", disk.place / "small.onnx"),
        "export --run": lambda: export_run(run, disk.place / "run.onnx"),
        "data get": lambda: get_data(disk.place, rounds=1),
        "synthetic data": synthetic_data,
        "prepare": lambda: prepare(open_dataset(pets_folder), 16),
    }


@pytest.mark.parametrize("read_only", [False, True], ids=["full", "read-only"])
def test_a_disk_that_takes_no_more_is_one_line_for_every_command(read_only, disk, calls, monkeypatch, tried):
    monkeypatch.setenv("PETSEG_CACHE", str(disk.place / "cache"))
    if read_only:
        del calls["export --run"]  # fails where the shipped one does, and takes seconds
        disk.mount("ro")
    else:
        disk.fill()
    before = content(disk.place)
    try:
        for name, call in calls.items():
            refused("Read-only file system" if read_only else "space", call)
            after = content(disk.place)
            assert {file: after.get(file) for file in before} == before, name
            assert not [file for file in set(after) - set(before) if "cache" not in file], name
    finally:
        disk.mount("rw")
    if read_only:
        assert calls["train"]()
        assert calls["report"]()
    tried(len(calls))
