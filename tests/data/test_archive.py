"""Good, truncated and hostile archives."""

import gzip
import io
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from petseg.data import archive as archives
from petseg.data.archive import extract
from petseg.errors import PetsegError
from tests.conftest import names, refused

FILES = {"images/a.jpg": b"a" * 3000, "images/b.jpg": b"b" * 70_000, "list.txt": b""}
MODES = ["w", "w:gz", "w:bz2", "w:xz"]
DAMAGED = r"is damaged or only half downloaded \(.+\); a whole archive is wanted: delete the file and download it"


def member(name, **fields):
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


LINKS = [(tarfile.SYMTYPE, "/etc"), (tarfile.SYMTYPE, "list.txt"), (tarfile.LNKTYPE, "list.txt")]
HOSTILE = [
    *(member(name) for name in ("../evil", "images/../../evil", "a\x1b[2Jb", "a\nb")),
    *(member("link", type=kind, linkname=target) for kind, target in LINKS),
    *(member("special", type=kind) for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)),
]


def write_tar(path, *members, mode="w", files=FILES):
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        tar.addfile(member("images", type=tarfile.DIRTYPE))
        for name, content in files.items():
            tar.addfile(member(name, size=len(content)), io.BytesIO(content))
        for info in members:
            tar.addfile(info)
    return path


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(path, match):
    folder = path.parent / "data"
    with pytest.raises(PetsegError, match=match) as caught:
        extract([path], folder / "pets")
    assert names(folder) == []  # neither target nor temporary folder
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", MODES)
def test_extract_plain_and_compressed_archives_into_one_folder_once(tmp_path, mode):
    one = write_tar(tmp_path / "1.tar.gz", mode=mode)
    two = write_tar(tmp_path / "2.tar", files={"annotations/list.txt": b"l"})  # its folder has no member of its own
    target = tmp_path / "deep" / "pets"
    extract([one, two], target)
    extract([tmp_path / "absent.tar"], target)  # an existing target stays as it is
    assert tree(target) == FILES | {"annotations/list.txt": b"l"}
    assert names(tmp_path / "deep") == ["pets"]


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda value: repr(value.name))
def test_hostile_member_is_refused(tmp_path, hostile):
    assert_refused(write_tar(tmp_path / "evil.tar", hostile), "no plain file or folder below it; use the official")
    assert names(tmp_path) == ["data", "evil.tar"]


@pytest.mark.parametrize("name", ["/petseg-evil", "C:\\petseg-evil", "\\petseg-evil", "images\\..\\..\\petseg-evil"])
def test_an_absolute_or_foreign_path_stays_below_the_target(tmp_path, name):
    """tarfile's filter takes the root off; what a backslash means depends on the system."""
    try:
        extract([write_tar(tmp_path / "evil.tar", member(name))], tmp_path / "data" / "pets")
    except PetsegError:
        assert sys.platform == "win32"
    assert not Path("/petseg-evil").exists()
    assert names(tmp_path) == ["data", "evil.tar"]
    assert names(tmp_path / "data") in (["pets"], [])


def test_too_many_members_or_bytes_over_all_archives(tmp_path, monkeypatch):
    path = tmp_path / "big.tar"
    path.write_bytes(member("big", size=archives.MAX_BYTES + 1).tobuf(tarfile.GNU_FORMAT))
    assert_refused(path, r"holds too much, 1 members with 4,294,967,297 bytes")
    path.write_bytes(member("big", size=archives.MAX_BYTES).tobuf(tarfile.GNU_FORMAT))
    refused("holds too much", extract, [write_tar(tmp_path / "1.tar"), path], tmp_path / "pets")
    assert archives.MAX_MEMBERS == 50_000
    monkeypatch.setattr(archives, "MAX_MEMBERS", 50)
    path.write_bytes(gzip.compress(member("d", type=tarfile.DIRTYPE).tobuf() * 51 + bytes(1024), 1))
    assert_refused(path, r"holds too much, 51 members with 0 bytes; use the official archive")


def zip_member(name, mode=stat.S_IFREG | 0o644):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def write_zip(path, *members, files=FILES):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("images")
        for name, content in files.items():
            archive.writestr(name, content)
        for info in members:
            archive.writestr(info, b"list.txt")
    return path


def test_a_zip_is_extracted_by_its_content(tmp_path):
    extract([write_zip(tmp_path / "named.tar")], tmp_path / "data" / "pets")
    assert tree(tmp_path / "data" / "pets") == FILES


HOSTILE_ZIPS = [
    *(zip_member(name) for name in ("../evil", "images/../../evil", "/evil", "C:\\evil", "..\\evil", "a\x1b[2Jb")),
    *(zip_member("link", kind) for kind in (stat.S_IFLNK | 0o777, stat.S_IFIFO, stat.S_IFCHR)),
]


@pytest.mark.parametrize("hostile", HOSTILE_ZIPS, ids=lambda value: repr(value.filename))
def test_a_hostile_member_of_a_zip_is_refused(tmp_path, hostile):
    assert_refused(write_zip(tmp_path / "evil.zip", hostile), "no plain file or folder below it; use the official")
    assert names(tmp_path) == ["data", "evil.zip"]


def test_a_zip_that_is_damaged_locked_too_large_or_lies_of_its_sizes(tmp_path, monkeypatch):
    path = tmp_path / "x.zip"
    whole = write_zip(path, files={"a": os.urandom(2000), "b": os.urandom(100)}).read_bytes()
    for end in (5, 700, 2200, len(whole) - 4):
        path.write_bytes(whole[:end])
        assert_refused(path, DAMAGED)
    place = whole.index(b"PK\x01\x02", whole.index(b"PK\x01\x02") + 4)  # of "a" in the list at the end
    for at, bits in ((8, b"\x01"), (10, b"\x63"), (24, b"\x05\0"), (16, b"\x05")):  # locked, method, size, checksum
        path.write_bytes(whole[: place + at] + bits + whole[place + at + len(bits) :])
        assert_refused(path, DAMAGED)
    with zipfile.ZipFile(path, "w") as archive:  # stored, and said to be longer than the file: EOFError without a word
        archive.writestr("a", b"a")
    whole = path.read_bytes()
    place = whole.index(b"PK\x01\x02")
    path.write_bytes(whole[: place + 20] + b"\xff\xff\0\0\xff\xff\0\0" + whole[place + 28 :])
    assert_refused(path, DAMAGED)
    monkeypatch.setattr(archives, "MAX_BYTES", 99_000)
    bomb = write_zip(path, files={"zeros": bytes(100_000)})
    assert bomb.stat().st_size < 1000
    assert_refused(path, r"holds too much, 2 members with 100,000 bytes; use the official archive")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_would_fill_the_memory_is_refused(tmp_path, kind):
    """4 MB of gzip could hold a name of 4 GB, which tarfile would read whole."""
    path = tmp_path / "name.tar.gz"
    headers = member("a").tobuf() + member("x", type=kind, size=2**32).tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(gzip.compress(headers + bytes(2**20), 1))
    assert_refused(path, r"a header of 4,294,967,296 bytes")


@pytest.mark.parametrize("mode", MODES)
def test_archive_truncated_anywhere_is_refused(tmp_path, mode):
    whole = write_tar(tmp_path / "x.tar", mode=mode, files={"a": os.urandom(2000), "b": os.urandom(100)}).read_bytes()
    ends = {10, 511, 512, 700, 1536, 3072, 3100, 3584, 4096} if mode == "w" else {10, len(whole) // 2, len(whole) - 4}
    assert max(ends) < len(whole)
    for end in ends:  # 1536, 3584 and 4096 lie on block ends, where tarfile itself sees nothing wrong
        (tmp_path / "x.tar").write_bytes(whole[:end])
        assert_refused(tmp_path / "x.tar", DAMAGED)


@pytest.mark.parametrize(("mode", "place"), [("w:gz", 50_000), ("w", 512 * 3)])
def test_damaged_bytes_are_refused(tmp_path, mode, place):
    """Among the data; and in the header of b, which tarfile would take for the archive's end."""
    path = tmp_path / "x.tar"
    assert_refused(path, r"x.tar is not a file; an archive is wanted: download it, or put it there")
    files = {"a": os.urandom(100_000)} if mode == "w:gz" else {"a": b"a", "b": b"b"}
    content = bytearray(write_tar(path, mode=mode, files=files).read_bytes())
    content[place] ^= 255
    path.write_bytes(content)
    assert_refused(path, DAMAGED)
    for page in (b"", b"<html>We have moved.</html>" * 100):
        path.write_bytes(page)
        assert_refused(path, r"x.tar is damaged or only half downloaded \(file could not be opened")


def test_extract_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    refused(r"cannot be written \(.*\); free some space .* PETSEG_CACHE", extract, [], tmp_path / "file" / "pets")
    below = write_tar(tmp_path / "x.tar", member("list.txt/inside"))
    refused("cannot be written", extract, [below], tmp_path / "data" / "pets")
    assert names(tmp_path / "data") == []


@pytest.mark.skipif(sys.platform == "win32", reason="kills by the file size limit, which is POSIX")
def test_killed_extraction_leaves_no_target(tmp_path):
    path = write_tar(tmp_path / "x.tar")
    code = (
        "import resource, signal, sys; from pathlib import Path; from petseg.data.archive import extract\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL); resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)); extract([Path(sys.argv[1])], Path(sys.argv[2]))"
    )
    target = tmp_path / "data" / "pets"
    done = subprocess.run([sys.executable, "-B", "-c", code, path, target], check=False, capture_output=True)
    assert done.returncode < 0, done.stderr  # the kernel killed it while it wrote b.jpg
    assert names(target.parent) == [".pets.tmp"]
    assert "images/a.jpg" in tree(target.parent / ".pets.tmp")
    (target.parent / ".pets2.tmp").mkdir()  # another target's
    extract([path], target)
    assert (tree(target), names(target.parent)) == (FILES, [".pets2.tmp", "pets"])
