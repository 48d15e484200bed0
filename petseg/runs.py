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
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from petseg import __version__
from petseg.errors import PetsegError

if TYPE_CHECKING:
    from petseg.config import RunConfig

LOCK = ".lock"

UNFINISHED = re.compile(r"\.(.+)\.tmp\d+|\.tmp\w{6}")
"""What `write_atomically` calls a file until it is whole; the number is its process. safetensors writes to a name of
its own first, the second one."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a path beside `path`, then moves the file there in one step.

    Raises:
        PetsegError: the disk is full or the folder not writable; the old file is left as it was.
    """
    write_together({path: write})


def write_together(files: Mapping[Path, Callable[[Path], object]]) -> None:
    """As `write_atomically`, of several files: none is moved to its place before all are written.

    Raises:
        PetsegError: as `write_atomically`.
    """
    unfinished = {path: path.with_name(f".{path.name}.tmp{os.getpid()}") for path in files}
    path = Path()
    try:
        for path, write in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(unfinished[path])
        for path, half in unfinished.items():
            half.replace(path)
    except OSError as error:
        raise PetsegError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or choose another folder"
        ) from None
    finally:
        for half in unfinished.values():
            with suppress(OSError):  # never made, or the disk is gone
                half.unlink()


def remove_unfinished(folder: Path, names: Iterable[str] | None = None) -> None:
    """Removes what killed processes left half-written in a folder: all of it, or the halves of some files."""
    wanted = None if names is None else set(names)
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        found = UNFINISHED.fullmatch(path.name)
        if found and (wanted is None or found[1] in wanted):
            with suppress(OSError):  # it is in nobody's way
                path.unlink()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON that people can read, atomically; nan is not JSON and raises `ValueError`."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON object.

    Raises:
        PetsegError: the file is missing, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PetsegError(f"{path}: no such file; is this the folder of a finished run?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PetsegError(f"{path}: not readable as JSON ({error}); restore it or run again") from None
    if not isinstance(content, dict):
        raise PetsegError(f"{path}: holds a {type(content).__name__}; wanted a JSON object")
    return content


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
            remove_unfinished(place)
        yield
    finally:
        lock.release()


def read_config(run: Path) -> RunConfig:
    """Returns the config of a run folder.

    Raises:
        PetsegError: not a run folder, or a config that this version does not understand.
    """
    from petseg.config import RunConfig, validated  # pydantic takes .07 s, and predictions are written without it

    return validated(RunConfig, read_json(run / "config.json"), source=f"{run / 'config.json'}")


def claim_data(folder: Path, key: str, source: str) -> None:
    """Writes which pictures a folder's figures come from, or checks that they are these.

    Raises:
        PetsegError: the folder holds work on other pictures.
    """
    path = folder / "data.json"
    if not path.is_file():
        write_json(path, {"key": key, "source": source})
    elif (found := read_json(path)).get("key") != key:
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
    write_atomically(run / "metrics.jsonl", lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def environment(*, device: str, precision: str, threads: int) -> dict[str, Any]:
    """Returns what a figure depends on beside the config: code, versions, machine."""
    return {
        "petseg": __version__,
        "commit": _commit(),
        "device": device,
        "processor": _processor(),
        "threads": threads,
        "precision": precision,
        "torch": version("torch") if find_spec("torch") else "none",
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "started": now(),
    }


def now() -> str:
    """Returns the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _commit() -> str:
    """Returns the commit of the code that runs, "-dirty" if it differs; "" where petseg is installed without git."""
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
