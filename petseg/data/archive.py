"""Tar archives from elsewhere, extracted into a new folder: all of them or nothing, and nothing outside it."""

import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from petseg.errors import PetsegError, disk_errors
from petseg.storage import new_folder

MAX_MEMBERS, MAX_BYTES = 50_000, 4 * 2**30  # in all; the two official archives hold about 26,000 members and 0.8 GB
MAX_HEADER_BYTES = 2**20  # most bytes of a long name or of extended attributes: tarfile reads them into memory


def extract(paths: Sequence[Path], target: Path) -> None:
    """Extracts tar archives, plain or compressed, into a new folder, files and folders alone; one that exists stays.

    The caller holds a lock. Raises `PetsegError`: an archive is missing, damaged, too large or unsafe, or a full disk.
    """
    if target.exists():
        return
    members = size = 0
    with disk_errors(target, "free some space or set PETSEG_CACHE"), new_folder(target) as unfinished:
        for path in paths:
            with _opened(path) as tar:
                for member in tar:
                    members, size = members + 1, size + member.size
                    if members > MAX_MEMBERS or size > MAX_BYTES:
                        what = f"{members:,} members with {size:,} bytes"
                        raise PetsegError(f"{path} holds too much, {what}; use the official archive")
                    tar.extract(member, unfinished, filter=_plain)


def _plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """tarfile's data filter (no device, nothing outside the folder), and no link or control character at all."""
    if not (member.isreg() or member.isdir()) or not member.name.isprintable():
        raise tarfile.SpecialFileError(member)
    return tarfile.data_filter(member, folder)


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


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """Yields the archive; what its bytes make tarfile and the decompressors raise becomes one line."""
    if not path.is_file():
        raise PetsegError(f"{path} is not a file; a tar archive is wanted: download it, or put it there")
    try:
        with tarfile.open(path, "r:*", tarinfo=_StrictTarInfo) as tar:
            yield tar
            assert tar.fileobj is not None
            tar.fileobj.read(2**20)  # the padding, so that a compressed archive's own checksum is verified too
    except PetsegError:
        raise
    except tarfile.FilterError as error:
        raise PetsegError(
            f"{path} holds {error.tarinfo.name!r}, which is no plain file or folder below it; use the official archive"
        ) from error
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the archive's bytes
        raise PetsegError(
            f"{path} is damaged or only half downloaded ({str(error).splitlines()[0]}); a whole tar archive is wanted: "
            "delete the file and download it again"
        ) from error
