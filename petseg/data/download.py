"""The two official archives of the Oxford-IIIT Pet Dataset: downloaded and verified.

Source: Parkhi, Vedaldi, Zisserman, Jawahar, "Cats and Dogs", CVPR 2012; licence CC BY-SA 4.0. Sizes and checksums are
those of the files that https://www.robots.ox.ac.uk/~vgg/data/pets/ serves.

A download is `NAME.part` until its checksum is right. Why not pooch, the usual library: it starts an interrupted
download of 792 MB from zero, and it has no mirrors.
"""

import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from petseg.errors import PetsegError

SLOWEST = 1000
"""Bytes a second below which a host is given up: at that pace the archives would take nine days."""

PAUSE = 1.0
"""Seconds waited after the first round of hosts; doubles each round."""

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Archive:
    """An official file: what it is called, what it must hold and where it is served."""

    name: str
    bytes: int
    sha256: str
    urls: tuple[str, ...]


HOSTS = ("https://www.robots.ox.ac.uk/~vgg/data/pets/data", "https://thor.robots.ox.ac.uk/~vgg/data/pets")
ARCHIVES = tuple(
    Archive(name, size, checksum, tuple(f"{host}/{name}" for host in HOSTS))
    for name, size, checksum in (
        ("images.tar.gz", 791_918_971, "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d"),
        ("annotations.tar.gz", 19_173_078, "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91"),
    )
)
IMAGES, ANNOTATIONS = ARCHIVES


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file as 64 lower-case hex digits; reads it in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_official(path: Path, archive: Archive) -> bool:
    """Returns whether `path` is a file of the archive's size and checksum."""
    return path.is_file() and path.stat().st_size == archive.bytes and sha256(path) == archive.sha256


def download(
    archive: Archive,
    folder: Path,
    *,
    timeout: float = 30.0,
    rounds: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Returns the path of the verified archive in `folder`; downloads it, or what is missing of it.

    A `NAME.part` from an earlier call is continued, a verified archive kept, a wrong one replaced. The caller locks.
    `timeout` is in seconds without a byte, or with fewer than SLOWEST each; `rounds` is how often all hosts are tried;
    `on_progress` gets (bytes here, bytes in all) after each chunk.

    Raises:
        PetsegError: No host gave the file, the folder cannot be written, or the disk is too full.
    """
    target, part = folder / archive.name, folder / f"{archive.name}.part"
    failures: dict[str, str] = {}
    with disk_errors(folder, "another folder with `petseg data get --data`"):
        folder.mkdir(parents=True, exist_ok=True)
        if is_official(target, archive):
            return target
        free, have = shutil.disk_usage(folder).free, _size(part)
        if free + have < archive.bytes:
            raise PetsegError(
                f"{folder} has {free:,} bytes free; {archive.name} needs {archive.bytes - have:,}: free some space, or "
                "choose another folder with `petseg data get --data`"
            )
        for number in range(rounds):
            if number:
                time.sleep(PAUSE * 2 ** (number - 1))
            for url in archive.urls:
                try:
                    _fetch(url, part, archive, timeout, on_progress)
                except _HostError as error:
                    failures[url] = str(error)
                else:
                    return part.replace(target)
    reasons = "; ".join(f"{url}: {reason}" for url, reason in failures.items())
    raise PetsegError(
        f"{archive.name} could not be downloaded ({reasons}); wanted {archive.bytes:,} bytes with "
        f"SHA-256 {archive.sha256}: try again later, or download {' or '.join(archive.urls)} yourself and put it into "
        f"{folder}, or set PETSEG_DATA to a folder that holds the dataset already"
    )


class _HostError(Exception):
    """One host failed; the next one may do."""


class _HttpHere(urllib.request.HTTPHandler):
    """Allows http to this machine only, also after a redirect."""

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        if urlsplit(req.full_url).hostname not in LOOPBACK:
            raise _HostError(f"{req.full_url} is not https")
        return super().http_open(req)


def _fetch(
    url: str, part: Path, archive: Archive, timeout: float, on_progress: Callable[[int, int], None] | None
) -> None:
    """Completes and verifies `part`; a wrong one that this host only continued is asked for whole, once."""
    have = _size(part)
    if have < archive.bytes:
        with _open(url, have, timeout) as response:
            done = _start_of(response, have, archive)
            with part.open("ab" if done else "wb") as file:
                if on_progress:
                    on_progress(done, archive.bytes)
                for chunk in _chunks(response, timeout):
                    done += file.write(chunk)
                    if on_progress:
                        on_progress(min(done, archive.bytes), archive.bytes)
                    if done > archive.bytes:
                        break
        if done < archive.bytes:
            raise _HostError(f"broke off after {done:,} of {archive.bytes:,} bytes")
    if is_official(part, archive):
        return
    wrong = f"the file has at least {_size(part):,} bytes and SHA-256 {sha256(part)}"
    part.unlink()
    if not have:
        raise _HostError(wrong)
    _fetch(url, part, archive, timeout, on_progress)


def _open(url: str, have: int, timeout: float) -> Any:
    """Returns the host's response, from byte `have` on if the host can do that."""
    opener = urllib.request.OpenerDirector()  # without the usual handlers of ftp: and file:
    handlers = [_HttpHere, urllib.request.HTTPSHandler, urllib.request.HTTPRedirectHandler]
    handlers += [urllib.request.HTTPErrorProcessor, urllib.request.HTTPDefaultErrorHandler]
    if urlsplit(url).hostname not in LOOPBACK:
        handlers.append(urllib.request.ProxyHandler)
    for handler in (*handlers, urllib.request.UnknownHandler):
        opener.add_handler(handler())
    headers = {"User-Agent": "petseg", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with _host_errors():
        return opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)  # noqa: S310 - see above


def _start_of(response: Any, have: int, archive: Archive) -> int:
    """Returns the position at which the response's body starts: `have`, or 0 from a host that ignores Range."""
    length, answer = response.headers.get("Content-Length"), response.headers.get("Content-Range")
    if response.status == 206 and answer == f"bytes {have}-{archive.bytes - 1}/{archive.bytes}":
        return have
    if response.status != 200:
        raise _HostError(f"HTTP {response.status} with Content-Range {answer!r}, not bytes {have}- of {archive.bytes}")
    if length not in (None, str(archive.bytes)):  # a page that says "moved" must not replace the part
        raise _HostError(f"offers {length} bytes")
    return 0


def _chunks(response: Any, timeout: float) -> Iterator[bytes]:
    """Yields what comes, at once, so that a broken transfer keeps all it received; gives up a host that is too slow."""
    since, got = time.monotonic(), 0
    while True:
        with _host_errors():
            chunk = response.read1(2**20)
        if not chunk:
            return
        yield chunk
        got, seconds = got + len(chunk), time.monotonic() - since
        if seconds > timeout:
            if got < SLOWEST * seconds:
                raise _HostError(f"sends fewer than {SLOWEST} bytes a second")
            since, got = time.monotonic(), 0


@contextmanager
def _host_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:  # urllib's own are OSErrors
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise _HostError(str(error) or type(error).__name__) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def disk_errors(place: Path, advice: str) -> Iterator[None]:
    """Turns an OSError into one line."""
    try:
        yield
    except OSError as error:
        raise PetsegError(
            f"{place} cannot be written ({error.strerror or error}); free some space and run again (a download "
            f"continues), or choose {advice}"
        ) from error
