"""A run is a folder of plain files, readable without petseg.

    config.json         the whole RunConfig
    environment.json    commit, versions, device, precision
    data.json           which pictures: the prepared cache's key
    metrics.jsonl       one line an epoch
    best.safetensors    weights of the best epoch on validation
    last.safetensors    weights of the last epoch
    resume.safetensors  weights, optimiser and average after the last whole epoch; written last
    *.previous.*        best and resume of the epoch before, taken where the newer file is damaged
    evaluations/        one JSON a split, per-image matrices beside it
    .lock               held by the process that works in the folder

Each file is written beside its place and moved there whole, so a kill at any moment leaves the old one or the new one.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from petseg import storage
from petseg.errors import PetsegError

if TYPE_CHECKING:
    from petseg.config import RunConfig

LOCK = ".lock"


def refuse_existing(folder: Path, *, resume: bool) -> None:
    """Checks that a run may use the folder; the command line asks before minutes of preparation.

    Raises:
        PetsegError: it holds something and `resume` is false.
    """
    if not resume and folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
        raise PetsegError(f"run folder {folder}: exists; go on with --resume, or choose another with --out")


@contextmanager
def new_folder(folder: Path, *, resume: bool) -> Iterator[None]:
    """Makes the folder of a run and keeps other processes out of it until the end of the block.

    Raises:
        PetsegError: it holds something and `resume` is false, another process works in it, or it cannot be made.
    """
    refuse_existing(folder, resume=resume)
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise PetsegError(
            f"run folder {folder}: another process is at work in it; wait for it, or choose another with --out"
        ) from None
    except OSError as error:
        raise PetsegError(
            f"run folder {folder}: cannot be made ({error.strerror or error}); choose another with --out"
        ) from None
    try:
        refuse_existing(folder, resume=resume)  # the lock may have been another's until now
        for place in (folder, folder / "evaluations", folder / "examples", *folder.glob("baselines/*")):
            storage.remove_unfinished(place)
        yield
    finally:
        lock.release()


def read_config(run: Path) -> RunConfig:
    """Returns the config of a run folder.

    Raises:
        PetsegError: not a run folder, or a config that this version does not understand.
    """
    from petseg.config import RunConfig, validated  # pydantic takes .07 s, and predictions are written without it

    return validated(RunConfig, storage.read_json(run / "config.json"), source=f"{run / 'config.json'}")


def claim_data(folder: Path, key: str, source: str) -> None:
    """Writes which pictures a folder's figures come from, or checks that they are these.

    Raises:
        PetsegError: the folder holds work on other pictures.
    """
    path = folder / "data.json"
    if not path.is_file():
        storage.write_json(path, {"key": key, "source": source})
    elif (found := storage.read_json(path)).get("key") != key:
        raise PetsegError(
            f"run folder {folder}: holds work on other pictures ({found.get('source')}); choose another with --out"
        )


def epoch_seconds(history: Sequence[Mapping[str, Any]], kind: str = "seconds") -> float:
    """Returns the median epoch's seconds: a pause of the machine is not the model's.

    Args:
        history: as `read_metrics`, at least one epoch.
        kind: "seconds", of the whole epoch, or "train_seconds", without validation.
    """
    return float(statistics.median(row[kind] for row in history))


def read_metrics(run: Path, *, up_to: int | None = None) -> list[dict[str, Any]]:
    """Returns the epochs of metrics.jsonl, at most the first `up_to`; a half-written last line is dropped.

    Raises:
        PetsegError: another line is damaged, or the epochs are not 1, 2, 3, ...
    """
    path = run / "metrics.jsonl"
    rows: list[Any] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise PetsegError(
                    f"{path}: line {number} is not JSON ({error}); restore the file or train again"
                ) from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or row.get("epoch") != number:
            raise PetsegError(f"{path}: line {number} is not that of epoch {number}; restore the file or train again")
    return rows if up_to is None else rows[:up_to]


def write_metrics(run: Path, rows: list[dict[str, Any]]) -> None:
    """Writes metrics.jsonl anew, atomically (30 short lines: cheaper than reasoning about appends)."""
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    storage.write_atomically(run / "metrics.jsonl", lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
