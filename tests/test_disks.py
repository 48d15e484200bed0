"""Full disks and read-only folders: one clear line, what was there stays, and the same call works once there is room.

The disks are small tmpfs mounts, which root may make; elsewhere these tests are skipped and say so.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from petseg.cli import app
from petseg.config import load_recipe
from petseg.data.cache import Prepared, prepare
from petseg.data.sources import get_data, open_dataset, synthetic_data
from petseg.errors import PetsegError
from petseg.evaluation.evaluate import evaluate_run
from petseg.export import onnx as export
from petseg.report import write_report
from petseg.training.batches import load_splits
from petseg.training.device import choose_hardware
from petseg.training.loop import Execution, train
from tests.conftest import TINY
from tests.test_kills import content

CPU = choose_hardware("fp32", "cpu")
FRESH = Execution(hardware=CPU)
CONFIG = load_recipe(
    "default", [*TINY, "train.epochs=3", "train.deterministic=true", "model.base_channels=2"]
).for_model("unet")
COMPARISON = Path(__file__).parents[1] / "results" / "seed" / "comparison.json"


class Disk:
    """A file system of some megabytes."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.filler = place / "filler"

    def fill(self, leave: int = 0) -> None:
        """Takes all space but `leave` bytes."""
        with self.filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC  # noqa: PT017
            file.truncate(max(0, file.tell() - leave))

    def empty(self) -> None:
        self.filler.unlink()

    def read_only(self, how: bool) -> None:
        subprocess.run(["mount", "-o", f"remount,{'ro' if how else 'rw'}", str(self.place)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount") if sys.platform == "linux" else None
    if mount is None:
        pytest.skip("no small disk: needs Linux's tmpfs")
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no small disk: {made.stderr.decode().strip()} (needs root)")
    try:
        yield Disk(place)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("leave", [0, 4_000, 12_000, 40_000, 60_000, 100_000])
def test_a_disk_that_fills_during_training_costs_no_epoch(
    leave: int, disk: Disk, prepared: Prepared, tmp_path: Path
) -> None:
    """Whichever of the epoch's files is the one that no longer fits."""
    train(CONFIG, prepared, tmp_path / "whole", FRESH)
    run = disk.place / "run"
    kept: dict[str, str] = {}

    def fill(row: object) -> None:
        kept.update(content(run))
        disk.fill(leave)

    with pytest.raises(PetsegError, match=r"cannot be written \(.*[Nn]o space left") as caught:
        train(CONFIG, prepared, run, Execution(hardware=CPU, on_epoch=fill))
    assert "\n" not in str(caught.value)
    found = content(run)
    assert {name: found.get(name) for name in ("resume.safetensors", "config.json")} == {
        name: kept[name] for name in ("resume.safetensors", "config.json")
    }
    disk.empty()
    train(CONFIG, prepared, run, Execution(hardware=CPU, resume=True))
    assert content(run) == content(tmp_path / "whole")


@pytest.mark.parametrize("leave", [0, 8_000, 120_000])
def test_a_disk_too_small_for_the_cache(
    leave: int, disk: Disk, pets_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PETSEG_CACHE", str(disk.place / "cache"))
    disk.fill(leave)
    with pytest.raises(PetsegError, match="free some space or set PETSEG_CACHE") as caught:
        prepare(open_dataset(pets_folder), 32)
    assert "\n" not in str(caught.value)
    assert not list((disk.place / "cache").glob("prepared/*/index.json"))
    disk.empty()
    assert len(prepare(open_dataset(pets_folder), 32).samples) == 48
    assert len(list((disk.place / "cache" / "prepared").glob("*-32-*[!k]"))) == 1


def outcome(call: Callable[[], object]) -> str:
    with pytest.raises(PetsegError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def calls(disk: Disk, prepared: Prepared, pets_folder: Path) -> dict[str, Callable[[], object]]:
    """What writes somewhere, in a folder of the small disk with a trained run."""
    run = disk.place / "run"
    train(CONFIG, prepared, run, FRESH)
    shutil.copy(COMPARISON, disk.place)
    photo = next(iter((pets_folder / "images").glob("*.jpg")))
    shutil.copy(photo, disk.place / "cat.jpg")

    def command(*words: str) -> Callable[[], object]:
        return lambda: app([*words], standalone_mode=False)

    return {
        "train": lambda: train(CONFIG, prepared, disk.place / "new", FRESH),
        "evaluate": lambda: evaluate_run(run, CPU, load_splits(prepared, CONFIG, CPU.device), "val"),
        "report": lambda: write_report(disk.place / COMPARISON.name),
        "predict": command("predict", str(disk.place / "cat.jpg"), "--model", "unet_small"),
        "predict --out": command("predict", str(photo), "--out", str(disk.place / "out"), "--model", "unet_small"),
        "export": command("export", "--model", "unet_small", "--out", str(disk.place / "small.onnx")),
        "export --run": lambda: export.export_run(run, disk.place / "run.onnx"),
        "data get": lambda: get_data(disk.place, rounds=1),
        "synthetic data": synthetic_data,
        "prepare": lambda: prepare(open_dataset(pets_folder), 16),
    }


def test_a_full_disk_is_one_line_for_every_command(
    disk: Disk,
    calls: dict[str, Callable[[], object]],
    monkeypatch: pytest.MonkeyPatch,
    tried: Callable[[int], None],
) -> None:
    monkeypatch.setenv("PETSEG_CACHE", str(disk.place / "cache"))
    disk.fill()
    before = content(disk.place)
    for name, call in calls.items():
        message = outcome(call)
        assert "space" in message, (name, message)
        after = content(disk.place)
        assert {file: after.get(file) for file in before} == before, name
        assert not [file for file in set(after) - set(before) if "cache" not in file], name
    tried(len(calls))


def test_a_read_only_disk_is_one_line_for_every_command(
    disk: Disk,
    calls: dict[str, Callable[[], object]],
    monkeypatch: pytest.MonkeyPatch,
    tried: Callable[[int], None],
) -> None:
    monkeypatch.setenv("PETSEG_CACHE", str(disk.place / "cache"))
    before = content(disk.place)
    disk.read_only(True)
    try:
        del calls["export --run"]  # fails where the shipped one does, and takes seconds
        for name, call in calls.items():
            assert "Read-only file system" in outcome(call), name
    finally:
        disk.read_only(False)
    assert content(disk.place) == before
    assert calls["train"]()
    assert calls["report"]()
    tried(len(calls))
