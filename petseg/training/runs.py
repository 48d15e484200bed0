"""A run is a folder of plain files, readable without petseg.

config.json         the whole RunConfig
environment.json    commit, versions, device, precision
input.json          how images are normalised, as the encoder's library says
data.json           which images: dataset, classes, splits, and the prepared cache's key
place.json          where they lay on this machine, for later commands without --data
network.json        where the file of a network of one's own lay on this machine, and its SHA-256
splits.json         the sample ids of each split, which a later evaluation takes
metrics.jsonl       one line an epoch
*.safetensors       weights and checkpoints (`training.checkpoint`)
evaluations/        one JSON a split, per-image matrices beside it
.lock               held by the process that works in the folder
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from pydantic import ValidationError

from petseg import storage
from petseg.config import RunConfig, flat_fields, validated
from petseg.data.cache import Prepared
from petseg.data.dataset import IGNORE
from petseg.errors import PetsegError, disk_errors
from petseg.schema import ClassInfo, DataInfo, EpochRow, SplitIds, first_reason, read_record, write_record

LOCK = ".lock"
PLACE = "place.json"
NETWORK = "network.json"
# what a run or a comparison that was killed early leaves
HARMLESS = {LOCK, PLACE, NETWORK, "data.json", "environment.json", "input.json", "splits.json"}


def refuse_existing(folder: Path, *, resume: bool) -> None:
    """Refuses a folder that holds something, unless to resume; the command line asks before minutes of preparation."""
    if not resume and folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
        raise PetsegError(f"run folder {folder}: exists; resume it (--resume), or choose another folder (--out)")


def refuse_change(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuses settings other than those that a folder was made with; both as JSON, where a tuple is a list."""
    before, after = dict(flat_fields(old)), dict(flat_fields(new))
    for name in before | after:
        if before.get(name) != after.get(name):
            change = f"{name} is {before.get(name)!r} there, {after.get(name)!r} now"
            raise PetsegError(f"run folder {folder}: holds another config ({change}); choose another folder (--out)")


@contextmanager
def new_folder(folder: Path, *, resume: bool, kind: str = "run", own: str = "config.json") -> Iterator[None]:
    """Makes the folder of a run, or of another `kind`, and keeps other processes out of it until the block's end."""
    refuse_existing(folder, resume=resume)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in names if name not in HARMLESS and not storage.UNFINISHED.fullmatch(name)]
    if others and own not in others:
        raise PetsegError(
            f"run folder {folder}: holds no {kind}, but {', '.join(others)}; choose another folder (--out)"
        )
    lock = FileLock(folder / LOCK)
    with disk_errors(f"run folder {folder}", "choose another folder (--out)"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:  # an OSError too
            raise PetsegError(
                f"run folder {folder}: another process is at work in it; wait for it, or choose another folder (--out)"
            ) from None
    try:
        refuse_existing(folder, resume=resume)  # the lock may have been another's until now
        for place in (folder, folder / "evaluations", folder / "examples", *folder.glob("baselines/*")):
            storage.remove_unfinished(place)
        yield
    finally:
        lock.release()


def read_config(run: Path) -> RunConfig:
    """Returns the config of a run folder; refuses what this version does not understand."""
    return validated(RunConfig, storage.read_json(run / "config.json"), source=f"{run / 'config.json'}")


def read_data(run: Path) -> DataInfo:
    """Returns which images a run folder's figures are of."""
    return read_record(run / "data.json", DataInfo)


def read_splits(run: Path) -> SplitIds | None:
    """Returns which samples a run folder trained on and was scored on; None for a run of before they were kept."""
    path = run / "splits.json"
    return read_record(path, SplitIds) if path.is_file() else None


def claim_data(folder: Path, prepared: Prepared) -> DataInfo:
    """Returns which images a folder's figures come from; writes it down, or refuses other images than were written."""
    data = describe(prepared)
    path = folder / "data.json"
    if not path.is_file():
        write_record(folder / "splits.json", SplitIds(**prepared.dataset.splits))
        write_record(path, data)
    elif (known := read_data(folder)).key != data.key:
        raise PetsegError(
            f"run folder {folder}: holds work on other images ({known.images}); choose another folder (--out)"
        )
    storage.write_json(folder / PLACE, {"data": str(prepared.dataset.place or "")})
    return data


def read_place(run: Path) -> Path | None:
    """Returns where the images of a run or a comparison lay, None where that is not known."""
    with suppress(PetsegError):
        place = Path(str(storage.read_json(run / PLACE).get("data", "")))
        return place if place.is_absolute() else None
    return None


def usable_rows(prepared: Prepared) -> dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Returns split -> rows, none where no image has a labelled pixel; without "test" where that is empty."""
    found = {part: prepared.rows(ids) for part, ids in prepared.dataset.splits.items()}
    for part, rows in found.items():
        if not any((prepared.label(int(row)) != IGNORE).any() for row in rows):
            found[part] = rows[:0]
    return {part: rows for part, rows in found.items() if len(rows) or part != "test"}


def describe(prepared: Prepared) -> DataInfo:
    """Returns what later stages must know of a prepared dataset without opening it."""
    dataset = prepared.dataset
    return DataInfo(
        name=dataset.name,
        provenance=dataset.provenance,
        official=dataset.official,
        largest_side=prepared.largest_side,
        key=prepared.key,
        classes=tuple(ClassInfo(**asdict(entry)) for entry in dataset.classes),
        scored_classes=tuple(ClassInfo(**asdict(entry)) for entry in dataset.scored_classes),
        splits={part: len(rows) for part, rows in usable_rows(prepared).items()},
        left_out=prepared.left_out,
    )


def epoch_seconds(history: Sequence[EpochRow], kind: Literal["seconds", "train_seconds"] = "seconds") -> float:
    """Returns the median epoch's seconds, whole or without validation: a pause of the machine is not the model's."""
    return float(statistics.median(getattr(row, kind) for row in history))


def read_metrics(run: Path, *, up_to: int | None = None) -> list[EpochRow]:
    """Returns the epochs of metrics.jsonl, at most the first `up_to`; drops a half-written last line."""
    path = run / "metrics.jsonl"
    rows: list[EpochRow] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(EpochRow.model_validate_json(line))
        except ValidationError as error:
            if number == len(lines) and error.errors()[0]["type"] == "json_invalid":
                break  # half-written
            raise PetsegError(
                f"{path}: line {number}: {first_reason(error)}; restore the file or train again"
            ) from None
        if rows[-1].epoch != number:
            raise PetsegError(f"{path}: line {number} is not that of epoch {number}; restore the file or train again")
    return rows if up_to is None else rows[:up_to]


def write_metrics(run: Path, rows: Sequence[EpochRow]) -> None:
    """Writes metrics.jsonl anew, atomically (30 short lines: cheaper than reasoning about appends)."""
    storage.write_text(run / "metrics.jsonl", "".join(row.model_dump_json(exclude_none=True) + "\n" for row in rows))
