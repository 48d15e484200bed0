"""Downloads from a real server on this machine."""

import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from petseg.data import download as downloads
from petseg.data.download import ARCHIVES, Archive, download, is_official
from petseg.errors import PetsegError
from petseg.storage import sha256
from tests.conftest import refused

BODY = bytes(range(256)) * 4096  # 1 MiB
HALF = len(BODY) // 2
PAGE = b"<html>We have moved.</html>"
ARCHIVE = Archive("pets.tar.gz", len(BODY), hashlib.sha256(BODY).hexdigest(), ())
BAD = ["wrong", "flipped", "page", "promises-more", "404", "429", "500", "short", "longer", "204", "to-http"]


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self):
        kind, wanted = self.path.strip("/"), self.headers.get("Range")
        self.server.seen.append((kind, wanted))
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        whole = len(BODY) + (kind == "other-size")
        place = f"bytes {0 if kind == 'wrong-range' else start}-{whole - 1}/{whole}" if wanted else None
        length = len(BODY) - start
        status, body = (206, BODY[start:]) if wanted else (200, BODY)
        if kind.isdecimal():
            self.send_error(int(kind))
            return
        if kind in ("breaks-off", "stalls", "trickles"):
            body = body[: HALF if not start else None] if kind == "breaks-off" else body[: HALF // 2]
        elif kind in ("to-http", "to-good"):
            status, body, length = 302, b"", 0
        elif kind in BODIES:
            status, place, (body, length) = 200, None, BODIES[kind]
        self.send_response(status)
        for name, value in (("Content-Length", length), ("Content-Range", place), ("Location", REDIRECTS.get(kind))):
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        self.close_connection = True
        for start in range(0, len(body), 1 << 14):
            self.wfile.write(body[start : start + (1 << 14)])
            if kind == "slow" and self.server.closing.wait(0.01):
                return
        while kind in ("stalls", "trickles") and not self.server.closing.wait(0.05):
            self.wfile.write(b"x" * (kind == "trickles"))

    def log_message(self, format, *args):
        pass


REDIRECTS = {"to-http": "http://pets.example/pets.tar.gz", "to-good": "/good"}
BODIES = {  # kind -> body and the length that the header promises; status 200, whatever Range was asked for
    "ignores-range": (BODY, len(BODY)),
    "wrong": (bytes(len(BODY)), len(BODY)),
    "flipped": (BODY[:-1] + bytes([BODY[-1] ^ 1]), len(BODY)),
    "page": (PAGE.ljust(len(BODY)), len(BODY)),
    "promises-more": (PAGE, len(BODY)),
    "short": (PAGE, len(PAGE)),
    "longer": (BODY + b"more", None),
}


class Server(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str | None]] = []
        self.closing = threading.Event()

    def url(self, kind):
        return f"http://127.0.0.1:{self.server_address[1]}/{kind}"

    def handle_error(self, request, client_address):
        pass

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.closing.set()
        self.shutdown()
        self.thread.join()
        self.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE", 0)
    with Server() as server:
        yield server


def get(server, folder, *kinds, **settings):
    archive = replace(ARCHIVE, urls=tuple(server.url(kind) for kind in kinds))
    return download(archive, folder, **{"timeout": 10, "rounds": 2, **settings})  # type: ignore[arg-type]


def test_download_writes_the_verified_file_and_reports_progress(server, tmp_path):
    seen = []
    path = get(server, tmp_path / "new" / "folder", "to-good", on_progress=lambda *numbers: seen.append(numbers))
    assert (path.relative_to(tmp_path).as_posix(), path.read_bytes()) == ("new/folder/pets.tar.gz", BODY)
    assert [file.name for file in path.parent.iterdir()] == ["pets.tar.gz"]
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == ((0, len(BODY)), (len(BODY), len(BODY)))
    assert [archive.name for archive in ARCHIVES] == ["images.tar.gz", "annotations.tar.gz"]
    for archive in ARCHIVES:
        assert len(archive.sha256) == 64
        assert [url.split("/")[2] for url in archive.urls] == ["www.robots.ox.ac.uk", "thor.robots.ox.ac.uk"]
        assert all(url.startswith("https://") and url.endswith(archive.name) for url in archive.urls)


def test_a_verified_file_is_kept_and_a_wrong_one_is_replaced(server, tmp_path):
    path = tmp_path / "pets.tar.gz"
    assert not is_official(path, ARCHIVE)
    path.write_bytes(BODY)
    assert sha256(path) == ARCHIVE.sha256
    assert is_official(path, ARCHIVE)
    assert not is_official(path, replace(ARCHIVE, bytes=len(BODY) + 1))
    assert not is_official(path, replace(ARCHIVE, sha256="0" * 64))
    get(server, tmp_path, "good")
    assert server.seen == []
    path.write_bytes(BODY[:-1] + b"x")
    assert get(server, tmp_path, "good").read_bytes() == BODY


PARTS = {
    "right": (BODY[:1000], "good", ["bytes=1000-"]),
    "right, whole": (BODY, "good", []),
    "wrong": (b"x" * 1000, "good", ["bytes=1000-", None]),
    "wrong, whole": (b"x" * len(BODY), "good", [None]),
    "too long": (BODY + b"x", "good", [None]),
    "host ignores Range": (b"x" * 1000, "ignores-range", ["bytes=1000-"]),
}


@pytest.mark.parametrize("case", PARTS)
def test_the_part_of_an_earlier_call_is_continued_if_it_is_right(server, tmp_path, case):
    part, kind, ranges = PARTS[case]
    (tmp_path / "pets.tar.gz.part").write_bytes(part)
    assert get(server, tmp_path, kind, rounds=1).read_bytes() == BODY
    assert server.seen == [(kind, wanted) for wanted in ranges]


@pytest.mark.parametrize("first", [*BAD, "wrong-range", "other-size"])
def test_after_a_bad_host_the_mirror_is_asked_and_goes_on_with_the_part(server, tmp_path, first):
    if first in BAD:
        assert get(server, tmp_path, first, "good", rounds=1).read_bytes() == BODY
        # a page in the archive's stead leaves a part that only the whole's checksum shows to be wrong
        again = ["good"] if first == "promises-more" else []
        assert [kind for kind, _ in server.seen] == [first, "good", *again]
        assert [path.name for path in tmp_path.iterdir()] == ["pets.tar.gz"]
    if first in ("404", "short", "wrong-range", "other-size"):
        (tmp_path / "pets.tar.gz").unlink(missing_ok=True)
        (tmp_path / "pets.tar.gz.part").write_bytes(BODY[:HALF])
        assert get(server, tmp_path, first, "good", rounds=1).read_bytes() == BODY
        assert server.seen[-1] == ("good", f"bytes={HALF}-")


FAILURES = {
    "404": "HTTP Error 404: Not Found",
    "wrong": f"1,048,576 bytes and SHA-256 {hashlib.sha256(bytes(len(BODY))).hexdigest()}",
    "short": "offers 27 bytes",
    "longer": "at least 1,048,580 bytes",
    "204": "HTTP 204",
    "to-http": r"http://pets\.example/pets\.tar\.gz is not https",
}


@pytest.mark.parametrize("kind", FAILURES)
def test_if_all_hosts_fail_the_error_says_what_to_do(server, tmp_path, kind):
    with pytest.raises(PetsegError, match=FAILURES[kind]) as caught:
        get(server, tmp_path, kind, kind)
    assert len(server.seen) == 4  # two rounds of two hosts
    message = str(caught.value)
    assert "\n" not in message
    assert f"wanted 1,048,576 bytes with SHA-256 {ARCHIVE.sha256}" in message
    assert f"download {server.url(kind)} or {server.url(kind)} yourself and put it into {tmp_path}" in message
    assert "set PETSEG_DATA" in message
    assert not (tmp_path / "pets.tar.gz").exists()


@pytest.mark.parametrize("kinds", [("breaks-off",), ("breaks-off", "good")], ids=["same host", "mirror"])
def test_a_broken_transfer_resumes_where_it_broke_off_if_the_host_answers_what_was_asked(server, tmp_path, kinds):
    assert get(server, tmp_path, *kinds).read_bytes() == BODY
    assert server.seen == [("breaks-off", None), (kinds[-1], f"bytes={HALF}-")]
    (tmp_path / "pets.tar.gz").unlink()
    part = tmp_path / "pets.tar.gz.part"
    refused(r"broke off after 524,288 of 1,048,576 bytes", get, server, tmp_path, "breaks-off", rounds=1)
    assert part.read_bytes() == BODY[:HALF]
    for kind in ("wrong-range", "other-size"):
        refused(rf"with Content-Range 'bytes .*', not bytes {HALF}- of {len(BODY)}", get, server, tmp_path, kind)


@pytest.mark.parametrize(("kind", "reason"), [("stalls", "timed out"), ("trickles", "fewer than 1000 bytes a second")])
def test_a_slow_host_is_given_up_and_its_part_is_continued_elsewhere(server, tmp_path, kind, reason):
    refused(reason, get, server, tmp_path, kind, timeout=0.3)
    assert [request[0] for request in server.seen] == [kind] * 2  # bounded
    part = tmp_path / "pets.tar.gz.part"
    assert part.stat().st_size >= HALF // 2
    if kind == "trickles":  # its bytes were wrong ones
        part.write_bytes(BODY[: HALF // 2])
    assert get(server, tmp_path, "good").read_bytes() == BODY
    assert server.seen[-1][1].startswith("bytes=")


REFUSED = [
    ("http://127.0.0.1:9/x", "refused"),
    *((f"{place}/x", "is not https") for place in ("http://pets.example", "http://localhost.example")),
    *((url, "is not https") for url in ("ftp://127.0.0.1/x", "file:///etc/passwd")),
]


@pytest.mark.parametrize(("url", "reason"), REFUSED)
def test_only_https_or_this_machine(tmp_path, url, reason, monkeypatch):
    monkeypatch.delenv("http_proxy", raising=False)
    with pytest.raises(PetsegError, match=rf"could not be downloaded \({url}: .*{reason}"):
        download(replace(ARCHIVE, urls=(url,)), tmp_path, rounds=1)


def test_too_little_space_or_a_folder_that_cannot_be_written(server, tmp_path):
    with pytest.raises(PetsegError, match=r"bytes free; pets.tar.gz needs [\d,]+: free some space, or choose another"):
        download(replace(ARCHIVE, bytes=2**62, urls=(server.url("good"),)), tmp_path)
    assert server.seen == []
    (tmp_path / "file").touch()
    (tmp_path / "pets.tar.gz").mkdir()
    for folder in (tmp_path / "file" / "folder", tmp_path):
        refused(r"cannot be written \(.+\); free some space .* or choose another folder", get, server, folder, "good")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported_during_the_download(server, tmp_path):
    (tmp_path / "pets.tar.gz.part").symlink_to("/dev/full")
    refused(r"cannot be written \(No space left on device\); free some space and run", get, server, tmp_path, "good")
