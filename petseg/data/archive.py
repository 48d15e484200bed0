"""Archives from elsewhere, tar or zip, extracted into a new folder: all or nothing, and nothing outside it."""

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from petseg.errors import PetsegError, disk_errors, first_line
from petseg.storage import new_folder

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_MEMBERS, MAX_BYTES = 50_000, 4 * 2**30  # in all; the two official archives hold about 26,000 members and 0.8 GB
MAX_HEADER_BYTES = 2**20  # most bytes of a long name or of extended attributes: tarfile reads them into memory


def extract(paths: Sequence[Path], target: Path, advice: str = "use the official archive") -> None:
    """Extracts archives into a new folder, plain files and folders alone; a folder that exists stays.

    The caller holds a lock. Raises `PetsegError`: an archive is missing, damaged, too large or unsafe, and then what
    `advice` says, or a full disk.
    """
    if target.exists():
        return
    amount = _Amount(advice)
    with disk_errors(target, "free some space or set PETSEG_CACHE"), new_folder(target) as unfinished:
        for path in paths:
            with _faults(path, advice):
                (_unzip if _is_zip(path) else _untar)(path, unfinished, amount)


@dataclass
class _Amount:
    """What several archives hold together so far."""

    advice: str
    members: int = 0
    bytes: int = 0

    def add(self, path: Path, size: int) -> None:
        self.members, self.bytes = self.members + 1, self.bytes + size
        if self.members > MAX_MEMBERS or self.bytes > MAX_BYTES:
            what = f"{self.members:,} members with {self.bytes:,} bytes"
            raise PetsegError(f"{path} holds too much, {what}; {self.advice}")


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")  # with members, or without


def _unzip(path: Path, target: Path, amount: _Amount) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            amount.add(path, member.file_size)  # no more is written: another size is a damaged archive
            name, kind = PurePosixPath(member.filename), stat.S_IFMT(member.external_attr >> 16)
            outside = name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in member.filename
            if outside or kind not in (0, stat.S_IFREG, stat.S_IFDIR) or not member.filename.isprintable():
                raise _UnsafeError(member.filename)
            archive.extract(member, target)


def _untar(path: Path, target: Path, amount: _Amount) -> None:
    with tarfile.open(path, "r:*", tarinfo=_StrictTarInfo) as tar:
        for member in tar:
            amount.add(path, member.size)
            tar.extract(member, target, filter=_plain)
        assert tar.fileobj is not None
        tar.fileobj.read(2**20)  # the padding, so that a compressed archive's own checksum is verified too


def _plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """tarfile's data filter (no device, nothing outside the folder), and no link or control character at all."""
    if not (member.isreg() or member.isdir()) or not member.name.isprintable():
        raise tarfile.SpecialFileError(member)
    return tarfile.data_filter(member, folder)


class _UnsafeError(Exception):
    """A member of a zip that is no plain file or folder below it."""


class _StrictTarInfo(tarfile.TarInfo):
    """A truncated, damaged or huge header is an error; tarfile alone takes the first two for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the block of zeros that ends every archive
            raise tarfile.ReadError(str(error)) from error
        if not member.isreg() and member.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


DAMAGES = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    OSError,
    RuntimeError,
)


@contextmanager
def _faults(path: Path, advice: str) -> Iterator[None]:
    """What an archive's bytes make the libraries raise becomes one line."""
    if not path.is_file():
        raise PetsegError(f"{path} is not a file; an archive is wanted: download it, or put it there")
    try:
        yield
    except PetsegError:
        raise
    except (tarfile.FilterError, _UnsafeError) as error:
        name = error.tarinfo.name if isinstance(error, tarfile.FilterError) else str(error)
        raise PetsegError(f"{path} holds {name!r}, which is no plain file or folder below it; {advice}") from error
    except DAMAGES as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the archive's bytes
        raise PetsegError(
            f"{path} is damaged or only half downloaded ({first_line(error)}); a whole archive is wanted: "
            "delete the file and download it again"
        ) from error
