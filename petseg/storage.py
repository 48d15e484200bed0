"""Files written beside their place and moved there whole, so that a kill leaves the old or the new one; files read."""

import atexit
import codecs
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from petseg.errors import PetsegError, disk_errors

# what `write_atomically` calls a file until it is whole, with its process, and what safetensors does
UNFINISHED = re.compile(r"\.(.+)\.tmp(\d+)|\.tmp\w{6}")
OLD = 3600  # seconds: no write takes so long, and the number of a dead process is given to others


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a path beside `path`, then moves the file there; a full disk leaves the old file as it was."""
    write_together({path: write})


def write_together(files: Mapping[Path, Callable[[Path], object]]) -> None:
    """As `write_atomically`, of several files: none is moved to its place before all are written."""
    unfinished = {path: path.with_name(f".{_short(path.name)}.tmp{os.getpid()}") for path in files}
    try:
        for path, write in files.items():
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                write(unfinished[path])
        for path, half in unfinished.items():
            with disk_errors(path):
                half.replace(path)
    finally:
        for half in unfinished.values():
            with suppress(OSError):  # never made, or the disk is gone
                half.unlink()


def _short(name: str) -> str:
    """Returns a file's name as it stands in the unfinished file's; a long one would leave no room around it."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= 200 else hashlib.blake2b(encoded, digest_size=8).hexdigest()


def writable_folder(folder: Path) -> Path:
    """Returns a folder if files can be written to it, else one that is gone when the process ends."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="petseg-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def check_writable(folder: Path, advice: str) -> None:
    """Checks that files can be written to a folder, which need not be there yet."""
    with disk_errors(folder, advice):
        there = next(each for each in (folder, *folder.parents) if each.exists())
        tempfile.TemporaryFile(dir=there).close()


def remove_unfinished(folder: Path, names: Iterable[str] | None = None) -> None:
    """Removes what killed processes left half-written in a folder: all of it, or the halves of some files.

    What another live process of this machine has written lately is its own.
    """
    wanted = None if names is None else {_short(name) for name in names}
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        found = UNFINISHED.fullmatch(path.name)
        if found and (wanted is None or found[1] in wanted):
            with suppress(OSError):  # it is in nobody's way
                if not (found[2] and _is_alive(int(found[2])) and time.time() - path.stat().st_mtime < OLD):
                    path.unlink()


def _is_alive(process: int) -> bool:
    """Returns whether another process of this machine has that number."""
    # on Windows signal 0 is Ctrl-C, and the system keeps files that are open
    if process == os.getpid() or os.name == "nt":
        return False
    try:
        os.kill(process, 0)
    except PermissionError:  # another user's
        return True
    except (OSError, OverflowError):
        return False
    with suppress(OSError):  # Linux: a process that has ended keeps its number until its parent asks
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    return True


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `target` at the block's end, or is gone after an error; the caller locks."""
    unfinished = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # after the rename nothing has that name


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8, atomically."""
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8", newline="\n"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes, atomically."""
    write_atomically(path, lambda unfinished: unfinished.write_bytes(content))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON that people can read, atomically; nan is not JSON and raises `ValueError`."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_text(path: Path) -> str:
    """Returns the text of a file that a person or another program wrote: UTF-8, or UTF-16 with its byte order mark."""
    try:
        content = path.read_bytes()
        marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as PowerShell's > writes it
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except OSError as error:
        raise PetsegError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    except UnicodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without its mark
        raise PetsegError(f"{path}: is not UTF-8 text; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[str]:
    """Returns the lines of such a file that are not blank, without blanks at their ends."""
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file as 64 lower-case hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON object; refuses a file that is missing, not JSON, or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PetsegError(f"{path}: no such file; is this the folder of a finished run?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PetsegError(f"{path}: not readable as JSON ({error}); restore it or run again") from None
    if not isinstance(content, dict):
        raise PetsegError(f"{path}: holds a {type(content).__name__}; wanted a JSON object")
    return content
