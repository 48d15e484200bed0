"""The two official archives of the Oxford-IIIT Pet Dataset (https://www.robots.ox.ac.uk/~vgg/data/pets/), verified.

Not by pooch, the usual library: it starts an interrupted download of 792 MB from zero, and it has no mirrors.
"""

import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from petseg.data.dataset import Progress
from petseg.errors import PetsegError, disk_errors
from petseg.storage import sha256

SLOWEST = 1000  # bytes a second below which a host is given up: at that pace the archives would take nine days
PAUSE = 1.0  # seconds waited after the first round of hosts; doubles each round
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Archive:
    """An official file."""

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


def is_official(path: Path, archive: Archive) -> bool:
    """Returns whether `path` is a file of the archive's size and checksum."""
    return path.is_file() and path.stat().st_size == archive.bytes and sha256(path) == archive.sha256


def download(
    archive: Archive, folder: Path, *, timeout: float = 30.0, rounds: int = 4, on_progress: Progress | None = None
) -> Path:
    """Returns the path of the verified archive in `folder`; downloads it as `NAME.part`, or what is missing of that.

    A wrong archive is replaced; the caller locks. `timeout` is in seconds without a byte, or with fewer than SLOWEST
    each; `rounds` is how often all hosts are tried; `on_progress` gets bytes. Raises `PetsegError` where no host gave
    the file or it cannot be written.
    """
    target, part = folder / archive.name, folder / f"{archive.name}.part"
    failures: dict[str, str] = {}
    elsewhere = "choose another folder with `petseg data get --data`"
    with disk_errors(folder, f"free some space and run again (a download continues), or {elsewhere}"):
        folder.mkdir(parents=True, exist_ok=True)
        if is_official(target, archive):
            return target
        free, have = shutil.disk_usage(folder).free, _size(part)
        if free + have < archive.bytes:
            wanted = f"{archive.name} needs {archive.bytes - have:,}"
            raise PetsegError(f"{folder} has {free:,} bytes free; {wanted}: free some space, or {elsewhere}")
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


def _fetch(url: str, part: Path, archive: Archive, timeout: float, on_progress: Progress | None) -> None:
    """Completes and verifies `part`; a wrong one that this host only continued is asked for whole, once."""
    have = done = _size(part)
    if have < archive.bytes:
        with part.open("ab") as file, closing(_received(url, have, archive, timeout)) as chunks:
            for place, chunk in chunks:
                if place < file.tell():
                    file.truncate(place)
                done = place + file.write(chunk)
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


def _received(url: str, have: int, archive: Archive, timeout: float) -> Generator[tuple[int, bytes]]:
    """Yields (place in the file, bytes) as they come, first no bytes, from `have` on if the host can do that."""
    headers = {"User-Agent": "petseg", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    direct = [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in LOOPBACK else []
    opener = urllib.request.build_opener(_HttpsOnly, *direct)
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - _HttpsOnly checks it
        with opener.open(request, timeout=timeout) as response:
            place, since, got = _start_of(response, have, archive), time.monotonic(), 0
            yield place, b""
            while chunk := response.read1(2**20):
                yield place, chunk
                place, got, seconds = place + len(chunk), got + len(chunk), time.monotonic() - since
                if seconds > timeout:
                    if got < SLOWEST * seconds:
                        raise _HostError(f"sends fewer than {SLOWEST} bytes a second")
                    since, got = time.monotonic(), 0
    except (OSError, http.client.HTTPException) as error:  # urllib's own are OSErrors
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise _HostError(str(error) or type(error).__name__) from error


class _HttpsOnly(urllib.request.BaseHandler):
    """Refuses all but https, and http to this machine, also after a redirect."""

    def default_open(self, request: urllib.request.Request) -> None:
        url = urlsplit(request.full_url)
        if url.scheme != "https" and (url.scheme != "http" or url.hostname not in LOOPBACK):
            raise _HostError(f"{request.full_url} is not https")


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


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
