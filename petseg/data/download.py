"""The two official archives of the Oxford-IIIT Pet Dataset: downloaded, verified, extracted.

Source: Parkhi, Vedaldi, Zisserman, Jawahar, "Cats and Dogs", CVPR 2012; licence CC BY-SA 4.0. Sizes and
checksums are those of the files that https://www.robots.ox.ac.uk/~vgg/data/pets/ serves.

Nothing half-done ever carries a final name: a download is `NAME.part` until its checksum is right, an extraction is a
hidden sibling of its target until its last byte is written. Neither function locks; the caller does.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path, PureWindowsPath
from typing import IO, Any
from urllib.parse import urlsplit

from petseg.errors import PetsegError

MAX_MEMBERS = 50_000
"""Most members that `extract` accepts in all; the two archives hold about 26,000."""

MAX_BYTES = 4 * 2**30
"""Most bytes that `extract` writes in all; the two archives hold about 0.8 GB."""

SLOWEST = 1000
"""Bytes a second below which a host is given up: at that pace the archives would take nine days."""

_CHUNK = 2**20
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Archive:
    """An official file: what it is called, what it must hold and where it is served."""

    name: str
    bytes: int
    sha256: str
    urls: tuple[str, ...]


IMAGES = Archive(
    name="images.tar.gz",
    bytes=791_918_971,
    sha256="67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
    urls=(
        "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
        "https://thor.robots.ox.ac.uk/~vgg/data/pets/images.tar.gz",
    ),
)
ANNOTATIONS = Archive(
    name="annotations.tar.gz",
    bytes=19_173_078,
    sha256="52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
    urls=(
        "https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",
        "https://thor.robots.ox.ac.uk/~vgg/data/pets/annotations.tar.gz",
    ),
)
ARCHIVES = (IMAGES, ANNOTATIONS)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file as 64 lower-case hex digits; reads it in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_official(path: Path, archive: Archive) -> bool:
    """Returns whether `path` is a file of the archive's size and checksum. The size goes first: it costs nothing."""
    return path.is_file() and path.stat().st_size == archive.bytes and sha256(path) == archive.sha256


# --------------------------------------------------------------------------------------------------------------------
# Download


def download(
    archive: Archive,
    folder: Path,
    *,
    urls: Sequence[str] | None = None,
    timeout: float = 30.0,
    on_progress: Callable[[int, int], None] | None = None,
    rounds: int = 4,
    back_off: float = 1.0,
) -> Path:
    """Returns the path of the verified archive in `folder`; downloads it, or what is missing of it.

    A `NAME.part` from an earlier call is continued. An archive that is there already and verifies is not downloaded
    again; one that does not verify is replaced once a right one is complete.

    Args:
        archive: The file wanted, with its size and checksum.
        folder: Where it goes; made when it is missing.
        urls: Where to ask, in this order; the archive's own by default. https, or http on this machine.
        timeout: Seconds without a byte, or with fewer than SLOWEST each, after which a host is given up.
        on_progress: Called with (bytes here, bytes in all) at the start of each transfer and after each chunk.
        rounds: How often the whole list of urls is tried.
        back_off: Seconds waited after the first round; doubles each round.

    Raises:
        PetsegError: No url gave the file, the folder cannot be written, or the disk is too full.
    """
    sources = list(archive.urls if urls is None else urls)
    for url in sources:
        _check_url(url)
    target, part = folder / archive.name, folder / f"{archive.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if is_official(target, archive):
            return target
        have = part.stat().st_size if part.exists() else 0
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise _cannot_write(folder, error, ANOTHER_FOLDER) from error
    if free + have < archive.bytes:
        raise PetsegError(
            f"{folder} has {free:,} bytes free; {archive.name} needs {archive.bytes - have:,}: "
            f"free some space, or {ANOTHER_FOLDER}"
        )

    failures: dict[str, str] = {}
    for number in range(rounds):
        if number:
            time.sleep(back_off * 2 ** (number - 1))
        for url in sources:
            try:
                _fetch(url, part, archive, timeout, on_progress)
            except _SourceError as error:
                failures[url] = str(error)
                continue
            try:
                part.replace(target)  # atomic
            except OSError as error:
                raise _cannot_write(target, error, ANOTHER_FOLDER) from error
            return target

    told = "; ".join(f"{url}: {reason}" for url, reason in failures.items())
    raise PetsegError(
        f"{archive.name} could not be downloaded ({told}); wanted {archive.bytes:,} bytes with "
        f"SHA-256 {archive.sha256}: try again later, or download {' or '.join(archive.urls)} yourself and put it into "
        f"{folder}, or set PETSEG_DATA to a folder that holds the data set already"
    )


class _SourceError(Exception):
    """One url failed; the next one may do."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects under the rule for first addresses: never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        try:
            _check_url(newurl)
        except PetsegError as error:
            raise _SourceError(f"redirects to {newurl}, which is not https") from error
        # http.client.HTTPMessage is the only Message that urllib passes; typeshed asks for it by name.
        assert isinstance(headers, http.client.HTTPMessage)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        return
    raise PetsegError(f"url {url!r} is not https; give an https address (http only for a server on this machine)")


def _fetch(
    url: str, part: Path, archive: Archive, timeout: float, on_progress: Callable[[int, int], None] | None
) -> None:
    """Completes `part` from one url and verifies it; on a wrong checksum deletes it.

    A part that was there may hold another host's wrong bytes, so this url is then asked for the whole once more.

    Raises:
        _SourceError: The url did not give the file. A `part` that may still be right stays for the next url.
        PetsegError: `part` cannot be written.
    """
    try:
        have = part.stat().st_size if part.exists() else 0
        if have > archive.bytes:
            part.unlink()
            have = 0
        if have < archive.bytes:
            _transfer(url, part, have, archive, timeout, on_progress)
        got = sha256(part)
        if got != archive.sha256:
            part.unlink()
            if have:
                _fetch(url, part, archive, timeout, on_progress)
                return
            raise _SourceError(f"the file's SHA-256 is {got}")
    except OSError as error:
        raise _cannot_write(part, error, ANOTHER_FOLDER) from error


def _transfer(
    url: str, part: Path, have: int, archive: Archive, timeout: float, on_progress: Callable[[int, int], None] | None
) -> None:
    """Appends to `part`, which holds `have` bytes, until it holds all. OSError: the disk; _SourceError: the host."""
    headers = {"User-Agent": "petseg", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    handlers: list[urllib.request.BaseHandler] = [_Redirects()]
    if urlsplit(url).hostname in _LOOPBACK:
        handlers.append(urllib.request.ProxyHandler({}))  # a proxy's loopback is not ours
    opener = urllib.request.build_opener(*handlers)
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)  # noqa: S310 (_check_url)
    except urllib.error.HTTPError as error:
        error.close()
        raise _SourceError(f"HTTP {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _SourceError(_reason(error)) from error

    with response:
        start = _start_of(response, have, archive)
        done = start
        with part.open("ab" if start else "wb") as file:
            if on_progress:
                on_progress(done, archive.bytes)
            since, before = time.monotonic(), done
            while chunk := _read(response):
                done += len(chunk)
                if done > archive.bytes:
                    break
                file.write(chunk)
                if on_progress:
                    on_progress(done, archive.bytes)
                seconds = time.monotonic() - since
                if seconds > timeout:
                    if done - before < SLOWEST * seconds:
                        raise _SourceError(f"sends fewer than {SLOWEST} bytes a second")
                    since, before = time.monotonic(), done
    if done > archive.bytes:
        part.unlink()
        raise _SourceError(f"sends more than the {archive.bytes:,} bytes wanted")
    if done < archive.bytes:
        raise _SourceError(f"broke off after {done:,} of {archive.bytes:,} bytes")


def _start_of(response: Any, have: int, archive: Archive) -> int:
    """Returns the position at which the response's body starts: `have`, or 0 from a server that ignores Range."""
    if response.status == 206:
        told = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", told)
        if not have or not match or int(match[1]) != have or match[2] not in ("*", str(archive.bytes)):
            raise _SourceError(f"answered Content-Range {told!r}, not bytes {have}- of {archive.bytes}")
        return have
    if response.status != 200:
        raise _SourceError(f"HTTP {response.status}")
    # A page that says "moved" must not cost the part that is here: the length is read before the file is opened.
    told = response.headers.get("Content-Length")
    if told is not None and told != str(archive.bytes):
        raise _SourceError(f"offers {told} bytes")
    return 0


def _read(response: Any) -> bytes:
    """Returns the bytes that have come, empty at the end; read1, so that a broken transfer keeps all it received."""
    try:
        chunk: bytes = response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _SourceError(_reason(error)) from error
    return chunk


def _reason(error: Exception) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(inner) or type(inner).__name__


ANOTHER_FOLDER = "choose another folder with `petseg data get --data`"
ANOTHER_CACHE = "set PETSEG_CACHE to a folder on another disk"


def _cannot_write(path: Path, error: OSError, advice: str) -> PetsegError:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return PetsegError(
            f"no space left on the device for {path}; free some and run again (a download continues where it "
            f"broke off), or {advice}"
        )
    return PetsegError(
        f"{path} cannot be written ({error.strerror or error}); a folder that you may write to is wanted: "
        f"change its permissions, or {advice}"
    )


# --------------------------------------------------------------------------------------------------------------------
# Extract


def extract(paths: Sequence[Path], target: Path) -> None:
    """Extracts tar archives, plain or compressed, into one new folder `target`; all of them or nothing.

    Files and folders alone are written, with this process's own permissions. A `target` that exists is left as it is.
    What a killed extraction left beside `target` is removed, so the caller holds a lock.

    Raises:
        PetsegError: An archive is missing, cut off or damaged; a member is one that no picture set needs (a link, a
            device, a name that leaves the folder or hides control characters); there are more than MAX_MEMBERS or
            MAX_BYTES in all; or `target` cannot be written.
    """
    if target.exists():
        return
    prefix, suffix = f".{target.name}.", ".extracting"
    temporary = target.with_name(f"{prefix}{os.getpid()}{suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for entry in list(target.parent.iterdir()):
            if entry.name.startswith(prefix) and entry.name.endswith(suffix):
                _remove(entry)
        temporary.mkdir()
    except OSError as error:
        raise _cannot_write(target, error, ANOTHER_CACHE) from error
    try:
        budget = _Budget()
        for path in paths:
            _extract_one(path, temporary, budget)
        try:
            temporary.rename(target)  # atomic
        except OSError as error:
            raise _cannot_write(target, error, ANOTHER_CACHE) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after a successful rename there is nothing of that name


@dataclass
class _Budget:
    """What all archives of one call have used."""

    members: int = 0
    bytes: int = 0


class _StrictTarInfo(tarfile.TarInfo):
    """A header that is cut off or damaged is an error; tarfile alone takes it for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictTarInfo:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the block of zeros that ends every archive
            raise tarfile.ReadError(str(error)) from error


class _DamageError(Exception):
    """The archive's bytes are not what a tar holds."""


def _extract_one(path: Path, folder: Path, budget: _Budget) -> None:
    if not path.is_file():
        raise PetsegError(f"{path} is not a file; a tar archive is wanted: download it, or put it there")
    try:
        with _reading(path) as tar:
            while (member := _next(tar)) is not None:
                budget.members += 1
                budget.bytes += member.size if member.isreg() else 0
                _check_member(path, member, budget)
                _write(tar, member, folder)
            _drain(tar)
    except _DamageError as error:
        raise PetsegError(
            f"{path} is damaged or only half downloaded ({error}); a whole tar archive is wanted: "
            "delete the file and download it again"
        ) from error
    except OSError as error:
        raise _cannot_write(folder, error, ANOTHER_CACHE) from error


# What the decompressors and tarfile raise for bad bytes. gzip.BadGzipFile and a failing disk are both OSError: where
# only the archive is read, either means that it cannot be read.
_READ_ERRORS: tuple[type[Exception], ...] = (tarfile.TarError, EOFError, zlib.error, OSError, ValueError)
try:
    from lzma import LZMAError

    _READ_ERRORS = (*_READ_ERRORS, LZMAError)
except ImportError:  # a Python built without lzma: tarfile then reads no .xz either
    pass


def _reading(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:*", tarinfo=_StrictTarInfo)
    except tarfile.ReadError as error:
        raise _DamageError("it is not a tar archive") from error  # tarfile's own words list every method over six lines
    except _READ_ERRORS as error:
        raise _DamageError(str(error)) from error


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except _READ_ERRORS as error:
        raise _DamageError(str(error)) from error


def _drain(tar: tarfile.TarFile) -> None:
    """Reads the padding behind the last member, so that a compressed archive's own checksum is verified too."""
    assert tar.fileobj is not None
    try:
        for _ in range(16):  # tar pads to 10 KiB; endless zeros are not worth the reading
            if not tar.fileobj.read(2**16):
                return
    except _READ_ERRORS as error:
        raise _DamageError(str(error)) from error


def _check_member(path: Path, member: tarfile.TarInfo, budget: _Budget) -> None:
    name = member.name
    windows = PureWindowsPath(name)  # splits at both kinds of slash and knows drives, so that one rule holds everywhere
    if not name.isprintable():
        bad = f"has control characters in the name {name!r}"
    elif windows.drive or windows.root:
        bad = f"has the absolute path {name!r}"
    elif ".." in windows.parts:
        bad = f"has {name!r}, which leaves the folder"
    elif member.issym() or member.islnk():
        bad = f"has the link {name!r} to {member.linkname!r}"
    elif not (member.isreg() or member.isdir()):
        bad = f"has {name!r}, a device or another special file"
    elif budget.members > MAX_MEMBERS:
        bad = f"holds too many members, more than {MAX_MEMBERS:,} at {name!r}"
    elif budget.bytes > MAX_BYTES:
        bad = f"holds too many bytes, {budget.bytes:,} at {name!r} where {MAX_BYTES:,} are allowed"
    else:
        return
    raise PetsegError(f"{path} {bad}; only plain files and folders are extracted: use the official archive")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Writes one checked member. OSError means the disk, _DamageError the archive."""
    place = folder.joinpath(*PureWindowsPath(member.name).parts)
    if member.isdir():
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None  # regular files have one
    with source, place.open("wb") as file:
        while True:
            try:
                chunk = source.read(_CHUNK)
            except _READ_ERRORS as error:
                raise _DamageError(str(error)) from error
            if not chunk:
                return
            file.write(chunk)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
