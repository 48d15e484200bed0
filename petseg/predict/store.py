"""A folder anywhere that fsspec reaches: this machine, S3, Google's storage, a web server. Paths in it have slashes."""

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec

from petseg import storage
from petseg.errors import ADVICE, LongNameError, PetsegError, first_line, shown

READ = "does it exist, and are credentials with permission to read set?"
WRITE = "name another --out, or set credentials with permission to write"
LONGEST_KEY = 1024  # bytes of a file's name in a bucket of S3 or of Google's storage, at most

# what a decoded name of a web server may not hold: systems take it as a path, as hidden, or not at all
UNSAFE = re.compile(r'^\.|[/\\:*?"<>|\x00-\x1f\x7f]|[. ]$')


def is_url(place: str) -> bool:
    """Returns whether a place is named as a URL, such as s3://photos."""
    return "://" in place


@contextmanager
def store_errors(place: str, action: str, advice: str) -> Iterator[None]:
    """Turns what a store's library raises into one line; each has errors of its own."""
    try:
        yield
    except PetsegError:
        raise
    except Exception as error:
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise PetsegError(f"{place}: cannot be {action} ({reason}); {advice}") from None


def _is_kept(entry: Mapping[str, Any]) -> bool:
    """Returns whether an entry of a listing is a folder or a file; a link that leads nowhere is, as it may once."""
    if not entry.get("islink"):
        return bool(entry["type"] != "other")
    place = Path(entry["name"])
    return place.is_file() or not place.exists()


@dataclass(frozen=True)
class Store:
    """A folder by its URL, or by its absolute path on this machine; opened anew wherever it travels to."""

    url: str

    @classmethod
    def at(cls, place: str) -> "Store":
        """Returns the store at a URL or a path; PetsegError if no library here knows its kind."""
        with store_errors(place, "opened", "name a folder, or a URL such as s3://bucket/folder"):
            fs, root = fsspec.core.url_to_fs(place)
            if not root.strip("/") and is_url(place):
                raise PetsegError(f"{place}: names no bucket; wanted a URL such as s3://bucket/folder")
            local = fs.protocol == "file" or "file" in fs.protocol
            return cls(str(Path(root).resolve()) if local else fs.unstrip_protocol(root.rstrip("/")))

    def __str__(self) -> str:
        return self.url

    @property
    def local(self) -> bool:
        """Whether it is a folder of this machine."""
        return not is_url(self.url)

    def holds(self, other: "Store") -> bool:
        """Returns whether the other one is this folder, or lies in it."""
        return f"{other.url}/".startswith(f"{self.url}/")

    def name(self, path: str) -> str:
        """Returns the URL or path of what lies at `path` in it."""
        return f"{self.url}/{path}" if path else self.url

    def plain(self, name: str) -> str:
        """Returns what files made from a file or folder of that name are called.

        A web server's `my%20cat` is `my cat`, unless that is not UTF-8 or no safe name on some system.
        """
        if not self.url.startswith(("http://", "https://")):
            return name
        try:
            decoded = unquote(name, errors="strict")
        except UnicodeDecodeError:
            return name
        return name if UNSAFE.search(decoded) else decoded

    def entries(self, folder: str = "", *, missing_ok: bool = False) -> list[tuple[str, bool]]:
        """Returns the names in a folder, sorted, and whether each is a folder; none of a missing one if that is ok.

        Pipes, sockets and devices are left out: reading one may never end.
        """
        with store_errors(self.name(folder), "listed", READ):
            fs, at = self.opened(folder)
            try:
                listed = fs.ls(at, detail=True)
            except FileNotFoundError:
                if missing_ok:
                    return []
                raise
            paths = {entry["name"].rstrip("/"): entry["type"] == "directory" for entry in listed if _is_kept(entry)}
            paths.pop(at.rstrip("/"), None)  # a marker that some programs leave for a folder
            return sorted((path.rpartition("/")[2], is_folder) for path, is_folder in paths.items())

    def empty(self, folder: str) -> set[str]:
        """Returns the names of the files in a folder that are known to be empty."""
        with store_errors(self.name(folder), "listed", READ):
            fs, at = self.opened(folder)
            return {entry["name"].rpartition("/")[2] for entry in fs.ls(at, detail=True) if entry.get("size") == 0}

    def check(self, path: str) -> None:
        """PetsegError where there is no such file."""
        with store_errors(self.name(path), "read", READ):
            fs, at = self.opened(path)
            fs.info(at)

    def read(self, path: str) -> bytes:
        """Returns a file's content; PetsegError where it cannot be read."""
        with store_errors(self.name(path), "read", READ):
            fs, at = self.opened(path)
            content: bytes = fs.cat_file(at)
            return content

    def write(self, files: Mapping[str, bytes]) -> None:
        """Writes files, each whole or not at all; LongNameError, and none of them, where a name is too long."""
        if self.local:
            writes = {path: partial(Path.write_bytes, data=content) for path, content in files.items()}
            storage.write_together({Path(self.url, path): write for path, write in writes.items()})
        elif files:
            with store_errors(self.name(next(iter(files))), "written", WRITE):
                for path in files:
                    self._check_key(path)
                fs, root = self.opened()
                fs.pipe({f"{root}/{path}": content for path, content in files.items()})

    def _check_key(self, path: str) -> None:
        kind, _, place = self.name(path).partition("://")
        length = len(place.partition("/")[2].encode())
        if kind in ("s3", "gs") and length > LONGEST_KEY:
            raise LongNameError(
                f"{shown(self.name(path))}: cannot be written (its name in the bucket has {length:,} bytes, at most "
                f"{LONGEST_KEY:,} are taken); {ADVICE[errno.ENAMETOOLONG]}"
            )

    def remove(self, paths: list[str]) -> None:
        """Removes files, or what is left of them."""
        with store_errors(self.url, "changed", "set credentials with permission to delete"):
            fs, root = self.opened()
            for path in paths:
                with suppress(FileNotFoundError):
                    fs.rm_file(f"{root}/{path}")

    def opened(self, path: str = "") -> tuple[Any, str]:
        """Returns fsspec's file system, one a process, and what it calls `path` of this store."""
        # listings are not kept: they would fill the memory. s3fs asks for a file's size first if it may read in parts
        own = {"max_concurrency": 1} if self.url.startswith("s3://") else {}
        fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **own)
        return fs, f"{root}/{path}" if path else root
