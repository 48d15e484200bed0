"""Downloads from a real server on this machine, extraction of good, cut-off and hostile archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from petseg.data import download as archives
from petseg.data.download import ANNOTATIONS, ARCHIVES, IMAGES, Archive, download, extract, is_official, sha256
from petseg.errors import PetsegError

BODY = bytes(range(256)) * 4096  # 1 MiB
HALF = len(BODY) // 2
ARCHIVE = Archive(
    "pets.tar.gz", len(BODY), hashlib.sha256(BODY).hexdigest(), ("https://a.example/x", "https://b.example/x")
)


class Handler(BaseHTTPRequestHandler):
    """Behaves as its path says; keeps (path, Range) of each request."""

    server: Server

    def do_GET(self) -> None:
        kind = self.path.strip("/")
        wanted = self.headers.get("Range")
        self.server.seen.append((kind, wanted))
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if kind == "missing":
            self.send_error(404)
        elif kind == "wrong":
            self.reply(200, bytes(len(BODY)))
        elif kind == "short":
            self.reply(200, b"<html>We have moved.</html>")
        elif kind == "longer":
            self.reply(200, BODY + b"more", tell=False)
        elif kind in ("429", "500"):
            self.send_error(int(kind))
        elif kind == "flipped":
            self.reply(200, BODY[:-1] + bytes([BODY[-1] ^ 1]))
        elif kind == "page":  # as long as the archive, and no archive
            self.reply(200, b"<html>We have moved.</html>".ljust(len(BODY)))
        elif kind == "promises-more":
            self.reply(200, b"<html>We have moved.</html>", length=len(BODY))
        elif kind in ("stalls", "trickles"):
            self.reply(
                206 if wanted else 200,
                BODY[start : start + HALF // 2],
                length=len(BODY) - start,
                content_range=f"bytes {start}-{len(BODY) - 1}/{len(BODY)}" if wanted else None,
            )
            while not self.server.closing.wait(0.05):
                if kind == "trickles":
                    self.wfile.write(b"x")
        elif kind == "slow":
            self.send_response(200)
            self.end_headers()
            for place in range(0, len(BODY), 4096):
                if self.server.closing.wait(0.001):
                    return
                self.wfile.write(BODY[place : place + 4096])
        elif kind == "ignores-range":
            self.reply(200, BODY)
        elif kind == "wrong-range":
            self.reply(206, BODY[start:], content_range=f"bytes 0-{len(BODY) - 1}/{len(BODY)}")
        elif kind == "other-size":
            self.reply(206, BODY[start:], content_range=f"bytes {start}-{len(BODY) - 1}/{len(BODY) + 1}")
        elif kind == "empty":
            self.send_response(204)
            self.end_headers()
        elif kind == "to-http":
            self.send_response(302)
            self.send_header("Location", "http://pets.example/pets.tar.gz")
            self.end_headers()
        elif kind == "to-good":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.end_headers()
        else:
            body = BODY[start:]
            told = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}" if wanted else None
            cut = HALF if kind == "breaks-off" and not start else None
            self.reply(206 if wanted else 200, body, content_range=told, cut=cut)

    def reply(
        self,
        status: int,
        body: bytes,
        *,
        content_range: str | None = None,
        cut: int | None = None,
        tell: bool = True,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        if tell:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(body[:cut])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Records what it was asked; says nothing of clients that hang up."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str | None]] = []
        self.closing = threading.Event()

    def url(self, kind: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{kind}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


def get(server: Server, folder: Path, *kinds: str, rounds: int = 2, archive: Archive = ARCHIVE) -> Path:
    return download(archive, folder, urls=[server.url(kind) for kind in kinds], timeout=10, rounds=rounds, back_off=0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Download


def test_official_archives_are_https_with_a_mirror():
    assert ARCHIVES == (IMAGES, ANNOTATIONS)
    for archive in ARCHIVES:
        assert len(archive.sha256) == 64
        assert [url.split("/")[2] for url in archive.urls] == ["www.robots.ox.ac.uk", "thor.robots.ox.ac.uk"]
        assert all(url.startswith("https://") and url.endswith(archive.name) for url in archive.urls)


def test_download_writes_the_verified_file_and_tells_progress(server, tmp_path):
    told = []
    path = download(
        ARCHIVE,
        tmp_path / "new" / "folder",
        urls=[server.url("good")],
        on_progress=lambda *numbers: told.append(numbers),
    )
    assert path == tmp_path / "new" / "folder" / "pets.tar.gz"
    assert path.read_bytes() == BODY
    assert names(path.parent) == ["pets.tar.gz"]
    assert told[0] == (0, len(BODY))
    assert told[-1] == (len(BODY), len(BODY))
    assert told == sorted(told)


def test_verified_file_is_not_downloaded_again(server, tmp_path):
    (tmp_path / "pets.tar.gz").write_bytes(BODY)
    get(server, tmp_path, "good")
    assert server.seen == []


def test_wrong_file_in_place_is_replaced(server, tmp_path):
    (tmp_path / "pets.tar.gz").write_bytes(BODY[:-1] + b"x")
    assert get(server, tmp_path, "good").read_bytes() == BODY


def test_broken_transfer_resumes_where_it_broke_off(server, tmp_path):
    assert get(server, tmp_path, "breaks-off").read_bytes() == BODY
    assert server.seen == [("breaks-off", None), ("breaks-off", f"bytes={HALF}-")]


def test_mirror_continues_the_same_part(server, tmp_path):
    assert get(server, tmp_path, "breaks-off", "good").read_bytes() == BODY
    assert server.seen == [("breaks-off", None), ("good", f"bytes={HALF}-")]


def test_part_of_an_earlier_call_is_continued(server, tmp_path):
    (tmp_path / "pets.tar.gz.part").write_bytes(BODY[:1000])
    told = []
    download(ARCHIVE, tmp_path, urls=[server.url("good")], on_progress=lambda done, total: told.append(done))
    assert server.seen == [("good", "bytes=1000-")]
    assert told[0] == 1000


def test_complete_part_of_an_earlier_call_is_taken_without_asking(server, tmp_path):
    (tmp_path / "pets.tar.gz.part").write_bytes(BODY)
    assert get(server, tmp_path, "good").read_bytes() == BODY
    assert server.seen == []


@pytest.mark.parametrize(
    "part", [b"x" * 1000, b"x" * len(BODY), BODY + b"x"], ids=["wrong", "wrong, whole", "too long"]
)
def test_wrong_part_is_started_anew(server, tmp_path, part):
    (tmp_path / "pets.tar.gz.part").write_bytes(part)
    assert get(server, tmp_path, "good").read_bytes() == BODY


def test_server_that_ignores_range_starts_anew(server, tmp_path):
    (tmp_path / "pets.tar.gz.part").write_bytes(b"x" * 1000)
    assert get(server, tmp_path, "ignores-range", rounds=1).read_bytes() == BODY
    assert server.seen == [("ignores-range", "bytes=1000-")]


@pytest.mark.parametrize(
    "first",
    ["wrong", "flipped", "page", "promises-more", "missing", "429", "500", "short", "longer", "empty", "to-http"],
)
def test_bad_source_goes_on_to_the_mirror(server, tmp_path, first):
    assert get(server, tmp_path, first, "good", rounds=1).read_bytes() == BODY
    # a page in the archive's stead leaves a part that only the whole's checksum shows to be wrong
    again = ["good"] if first == "promises-more" else []
    assert [kind for kind, _ in server.seen] == [first, "good", *again]
    assert names(tmp_path) == ["pets.tar.gz"]


@pytest.mark.parametrize("first", ["missing", "short", "wrong-range", "other-size"])
def test_bad_source_does_not_cost_the_part(server, tmp_path, first):
    (tmp_path / "pets.tar.gz.part").write_bytes(BODY[:HALF])
    assert get(server, tmp_path, first, "good", rounds=1).read_bytes() == BODY
    assert server.seen[-1] == ("good", f"bytes={HALF}-")


def test_redirect_is_followed(server, tmp_path):
    assert get(server, tmp_path, "to-good").read_bytes() == BODY


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "HTTP 404 Not Found"),
        ("wrong", f"the file's SHA-256 is {hashlib.sha256(bytes(len(BODY))).hexdigest()}"),
        ("short", "offers 27 bytes"),
        ("longer", "sends more than the 1,048,576 bytes wanted"),
        ("empty", "HTTP 204"),
        ("to-http", r"redirects to http://pets\.example/pets\.tar\.gz, which is not https"),
    ],
)
def test_all_sources_fail(server, tmp_path, kind, reason):
    with pytest.raises(PetsegError, match=reason) as caught:
        get(server, tmp_path, kind, kind)
    assert len(server.seen) == 4  # two rounds of two urls
    message = str(caught.value)
    assert "\n" not in message
    assert f"wanted 1,048,576 bytes with SHA-256 {ARCHIVE.sha256}" in message
    assert f"download https://a.example/x or https://b.example/x yourself and put it into {tmp_path}" in message
    assert "set PETSEG_DATA" in message
    assert not (tmp_path / "pets.tar.gz").exists()


@pytest.mark.parametrize("kind", ["wrong-range", "other-size"])
def test_wrong_content_range_is_told(server, tmp_path, kind):
    (tmp_path / "pets.tar.gz.part").write_bytes(BODY[:HALF])
    with pytest.raises(PetsegError, match=rf"answered Content-Range 'bytes .*', not bytes {HALF}- of {len(BODY)}"):
        get(server, tmp_path, kind)


def test_break_at_every_try_is_told_and_keeps_the_part(server, tmp_path):
    with pytest.raises(PetsegError, match=r"broke off after 524,288 of 1,048,576 bytes"):
        get(server, tmp_path, "breaks-off", rounds=1)
    assert (tmp_path / "pets.tar.gz.part").read_bytes() == BODY[:HALF]


@pytest.mark.parametrize(("kind", "told"), [("stalls", "timed out"), ("trickles", "fewer than 1000 bytes a second")])
def test_host_that_stalls_is_given_up_and_its_part_goes_on_elsewhere(server, tmp_path, kind, told):
    urls = [server.url(kind)]
    with pytest.raises(PetsegError, match=told):
        download(ARCHIVE, tmp_path, urls=urls, timeout=0.3, rounds=2, back_off=0)
    assert [request[0] for request in server.seen] == [kind] * 2  # bounded
    part = tmp_path / "pets.tar.gz.part"
    assert part.stat().st_size >= HALF // 2
    if kind == "trickles":  # its bytes were wrong ones
        part.write_bytes(BODY[: HALF // 2])
    get(server, tmp_path, "good")
    assert server.seen[-1][1].startswith("bytes=")
    assert (tmp_path / "pets.tar.gz").read_bytes() == BODY


def test_host_that_does_not_answer(server, tmp_path):
    gone = Server()
    url = gone.url("good")
    gone.server_close()
    with pytest.raises(PetsegError, match=r"could not be downloaded \(http://127.*refused"):
        download(ARCHIVE, tmp_path, urls=[url], rounds=1)


@pytest.mark.parametrize(
    "url", ["http://pets.example/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "http://localhost.example/x"]
)
def test_only_https_or_this_machine(tmp_path, url):
    with pytest.raises(PetsegError, match=r"is not https; give an https address"):
        download(ARCHIVE, tmp_path, urls=[url])


def test_full_disk_is_told_before_the_download(server, tmp_path):
    with pytest.raises(PetsegError, match=r"bytes free; pets.tar.gz needs [\d,]+: free some space, or choose another"):
        get(server, tmp_path, "good", archive=replace(ARCHIVE, bytes=2**62))
    assert server.seen == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_told_in_the_download(server, tmp_path):
    (tmp_path / "pets.tar.gz.part").symlink_to("/dev/full")
    with pytest.raises(PetsegError, match=r"no space left on the device for .*; free some and run again"):
        get(server, tmp_path, "good")


def test_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        PetsegError, match=r"cannot be written \(.+\); a folder .* or (choose another|set PETSEG_CACHE)"
    ):
        get(server, tmp_path / "file" / "folder", "good")
    (tmp_path / "pets.tar.gz").mkdir()
    with pytest.raises(PetsegError, match=r"pets.tar.gz cannot be written"):
        get(server, tmp_path, "good")


def test_is_official_checks_size_and_checksum(tmp_path):
    path = tmp_path / "pets.tar.gz"
    assert not is_official(path, ARCHIVE)
    path.write_bytes(BODY)
    assert sha256(path) == ARCHIVE.sha256
    assert is_official(path, ARCHIVE)
    assert not is_official(path, replace(ARCHIVE, bytes=len(BODY) + 1))
    assert not is_official(path, replace(ARCHIVE, sha256="0" * 64))


# Extract

FILES = {"images/a.jpg": b"a" * 3000, "images/b.jpg": b"b" * 70_000, "list.txt": b""}


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def write_tar(path: Path, *members: tarfile.TarInfo, mode: str = "w", files: dict[str, bytes] = FILES) -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        tar.addfile(member("images", type=tarfile.DIRTYPE))
        for name, content in files.items():
            tar.addfile(member(name, size=len(content)), io.BytesIO(content))
        for info in members:
            tar.addfile(info)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(path: Path, match: str) -> str:
    folder = path.parent / "data"
    with pytest.raises(PetsegError, match=match) as caught:
        extract([path], folder / "pets")
    assert names(folder) == []  # neither target nor temporary folder
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_extract_plain_and_compressed(tmp_path, mode):
    extract([write_tar(tmp_path / "x.tar.gz", mode=mode)], tmp_path / "deep" / "pets")
    assert tree(tmp_path / "deep" / "pets") == FILES
    assert names(tmp_path / "deep") == ["pets"]


def test_extract_several_archives_into_one_folder(tmp_path):
    one = write_tar(tmp_path / "1.tar", files={"images/a.jpg": b"a"})
    two = write_tar(tmp_path / "2.tar", files={"annotations/list.txt": b"l"})  # its folder has no member of its own
    extract([one, two], tmp_path / "pets")
    assert tree(tmp_path / "pets") == {"images/a.jpg": b"a", "annotations/list.txt": b"l"}


def test_existing_target_is_left_alone(tmp_path):
    (tmp_path / "pets").mkdir()
    extract([tmp_path / "absent.tar"], tmp_path / "pets")
    assert names(tmp_path / "pets") == []


@pytest.mark.parametrize(
    ("hostile", "match"),
    [
        (member("../evil"), r"has '../evil', which leaves the folder"),
        (member("images/../../evil"), r"which leaves the folder"),
        (member("images\\..\\..\\evil"), r"which leaves the folder"),
        (member("/tmp/evil"), r"has the absolute path '/tmp/evil'"),
        (member("C:\\evil"), r"has the absolute path"),
        (member("\\evil"), r"has the absolute path"),
        (member("link", type=tarfile.SYMTYPE, linkname="/etc"), r"has the link 'link' to '/etc'"),
        (member("link", type=tarfile.LNKTYPE, linkname="list.txt"), r"has the link 'link' to 'list.txt'"),
        (member("pipe", type=tarfile.FIFOTYPE), r"has 'pipe', a device or another special file"),
        (member("null", type=tarfile.CHRTYPE), r"has 'null', a device"),
        (member("disk", type=tarfile.BLKTYPE), r"has 'disk', a device"),
        (member("a\x1b[2Jb"), r"has control characters in the name 'a\\x1b\[2Jb'"),
        (member("a\nb"), r"has control characters in the name 'a\\nb'"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value.name),
)
def test_hostile_member_is_refused(tmp_path, hostile, match):
    path = write_tar(tmp_path / "evil.tar", hostile)
    message = assert_refused(path, match)
    assert message.startswith(str(path))
    assert message.endswith("only plain files and folders are extracted: use the official archive")
    assert names(tmp_path) == ["data", "evil.tar"]


def test_too_many_members(tmp_path):
    header = member("d", type=tarfile.DIRTYPE).tobuf()
    path = tmp_path / "many.tar.gz"
    path.write_bytes(gzip.compress(header * (archives.MAX_MEMBERS + 1) + bytes(1024), 1))
    assert_refused(path, r"holds too many members, more than 50,000 at 'd'")


def test_too_many_bytes(tmp_path):
    path = tmp_path / "big.tar"
    path.write_bytes(member("big", size=archives.MAX_BYTES + 1).tobuf(tarfile.GNU_FORMAT))
    assert_refused(path, r"holds too many bytes, 4,294,967,297 at 'big' where 4,294,967,296 are allowed")


def test_bytes_are_counted_over_all_archives(tmp_path):
    one = write_tar(tmp_path / "1.tar")
    two = tmp_path / "2.tar"
    two.write_bytes(member("big", size=archives.MAX_BYTES).tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(PetsegError, match="too many bytes"):
        extract([one, two], tmp_path / "pets")


DAMAGED = r"is damaged or only half downloaded \(.+\); a whole tar archive is wanted: delete the file and download it"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_archive_cut_off_anywhere_is_refused(tmp_path, mode):
    whole = write_tar(tmp_path / "x.tar", mode=mode, files={"a": os.urandom(2000), "b": os.urandom(100)}).read_bytes()
    ends = {10, 511, 512, 700, 1536, 3072, 3100, 3584, 4096} if mode == "w" else {10, len(whole) // 2, len(whole) - 4}
    assert max(ends) < len(whole)
    for end in ends:  # 1536, 3584 and 4096 lie on block ends, where tarfile itself sees nothing wrong
        (tmp_path / "x.tar").write_bytes(whole[:end])
        assert_refused(tmp_path / "x.tar", DAMAGED)


def test_damaged_bytes_are_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar.gz", mode="w:gz", files={"a": os.urandom(100_000)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert_refused(path, DAMAGED)


def test_damaged_header_is_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", files={"a": b"a", "b": b"b"})
    content = bytearray(path.read_bytes())
    content[512 * 3] ^= 255  # the header of "b"; tarfile would take it for the archive's end
    path.write_bytes(content)
    assert_refused(path, DAMAGED)


@pytest.mark.parametrize("content", [b"", b"<html>We have moved.</html>" * 100])
def test_not_an_archive(tmp_path, content):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    assert_refused(path, r"x.tar is damaged or only half downloaded \(it is not a tar archive\)")


def test_missing_archive(tmp_path):
    assert_refused(tmp_path / "x.tar", r"x.tar is not a file; a tar archive is wanted: download it, or put it there")


def test_extract_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PetsegError, match=r"cannot be written \(.*\); a folder that you may write to is wanted"):
        extract([], tmp_path / "file" / "pets")


def test_member_below_a_file_is_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", member("list.txt/inside"))
    assert_refused(path, r"cannot be written")


@pytest.mark.skipif(sys.platform == "win32", reason="kills by the file size limit, which is POSIX")
def test_killed_extraction_leaves_no_target(tmp_path):
    path = write_tar(tmp_path / "x.tar")
    code = (
        "import resource, signal, sys; from pathlib import Path; from petseg.data.download import extract\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL); resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)); extract([Path(sys.argv[1])], Path(sys.argv[2]))"
    )
    target = tmp_path / "data" / "pets"
    done = subprocess.run([sys.executable, "-B", "-c", code, path, target], check=False, capture_output=True)
    assert done.returncode < 0, done.stderr  # the kernel killed it while it wrote b.jpg
    (stale,) = names(target.parent)
    assert stale.startswith(".pets.")
    assert "images/a.jpg" in tree(target.parent / stale)

    (target.parent / ".pets.1.extracting").write_text("a stale file")
    (target.parent / ".pets2.1.extracting").mkdir()  # another target's
    extract([path], target)
    assert tree(target) == FILES
    assert names(target.parent) == [".pets2.1.extracting", "pets"]
