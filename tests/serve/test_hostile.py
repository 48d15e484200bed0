"""Clients that are slow, many, large or malformed: each is bounded, and the server goes on answering the others."""

import os
import re
import socket
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.conftest import Served, image_bytes
from tests.serve.test_app import image_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory and open files are read from /proc")


@pytest.fixture(scope="module")
def hasty():
    server = Served("--set", "seconds=1", "--set", "concurrent=2")
    import resource

    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (64 + 100, 64 + 100))
    try:
        yield server
        assert server.stop() == ("", ""), "what clients send is not logged"
    finally:
        server.process.kill()


def resident(pid):
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def ended(connection):
    answer = b""
    with suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            answer += part
    return answer


def healthy(server, busy=0):
    ends = time.monotonic() + 20
    while httpx.get(f"{server.url}/health", timeout=20).json()["busy"] > busy:  # what took too long is still computed
        assert time.monotonic() < ends
    while True:  # on a machine that is busy a photo may take longer than this server's second
        answer = httpx.post(f"{server.url}/api/segment?output=json", files={"image": image_file()}, timeout=20)
        if answer.status_code == 200:
            return
        assert answer.status_code == 503
        assert time.monotonic() < ends


def files(server):
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))  # noqa: PTH208


HEAD = b"POST /api/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
SLOW = {
    "says nothing": (b"", b""),
    "half a head": (b"GET /health HT", b""),
    "a head a byte at a time": (b"GET /health HTTP/1.1\r\nX-A: ", b"a"),
    "no body": (HEAD + b"Content-Length: 1000\r\n\r\n", b""),
    "a body a byte at a time": (HEAD + b"Content-Length: 1000\r\n\r\n", b"a"),
    "a chunked body without end": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "a body that nobody wants": (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n", b"a"),
    "a body for what is not there": (b"POST /no HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n", b"a"),
}


@pytest.mark.parametrize("how", SLOW)
def test_a_slow_client_is_closed_and_others_are_answered(how, hasty):
    first, then = SLOW[how]
    with connect(hasty) as connection:
        connection.sendall(first)
        connection.settimeout(0.2)
        began = time.monotonic()
        closed = False
        while not closed:
            assert time.monotonic() - began < 15, "it may go on for ever"
            try:
                connection.sendall(then)
                closed = not connection.recv(1 << 16)
            except TimeoutError:
                healthy(hasty, busy=1)
            except ConnectionError:
                closed = True
    healthy(hasty)


def test_more_connections_than_files_leave_room_for_the_next(hasty):
    healthy(hasty)  # what the server opens at its first request stays open
    before = files(hasty)
    with ExitStack() as stack:
        held = [stack.enter_context(connect(hasty)) for _ in range(400)]
        for connection in held:
            with suppress(ConnectionError):
                connection.sendall(b"GET /he")
        time.sleep(0.1)
        assert files(hasty) <= before + 105
        time.sleep(1.5)
        healthy(hasty)  # while all of them are still open at their end
    ends = time.monotonic() + 10
    while files(hasty) > before + 2:
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("start", "part"),
    [(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"X-A: " + b"a" * 65000 + b"\r\n"), (b"GET /", b"a" * 65000)],
    ids=["headers", "address"],
)
def test_a_head_without_end_is_refused_and_not_kept(start, part, hasty):
    before = resident(hasty.process.pid)
    sent = 0
    with connect(hasty) as connection, suppress(ConnectionError):
        connection.sendall(start)
        while sent < 200_000_000:
            connection.sendall(part)
            sent += len(part)
    assert sent < 20_000_000  # what the system's own buffers take
    assert resident(hasty.process.pid) - before < 10e6
    healthy(hasty)


def test_uploads_over_the_limit_are_not_kept(hasty):
    before = resident(hasty.process.pid)
    for length in (b"Content-Length: 300000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"):
        with connect(hasty) as connection, suppress(ConnectionError):
            connection.sendall(HEAD + length)
            for _ in range(60):
                part = bytes(1_000_000)
                connection.sendall(b"f4240\r\n" + part + b"\r\n" if b"chunked" in length else part)
    assert resident(hasty.process.pid) - before < 60e6
    healthy(hasty)


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"], ids=["sends at once", "asks before"])
def test_a_length_over_the_limit_is_refused_before_the_body(expect, hasty):
    with connect(hasty) as connection:
        connection.sendall(HEAD + expect + b"Content-Length: 300000000\r\n\r\n")
        answer = ended(connection)  # without a byte of the body
        assert answer.startswith(b"HTTP/1.1 413 "), answer[:200]
        assert b"connection: close\r\n" in answer.lower()
        assert b"larger than 20 MB" in answer
    healthy(hasty)


def test_a_client_that_reads_only_after_it_has_sent_all_is_told_of_a_refusal(hasty):
    size = 40_000_000
    with connect(hasty) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % size)
        for _ in range(40):
            connection.sendall(bytes(size // 40))
        began = time.monotonic()
        assert ended(connection).startswith(b"HTTP/1.1 413 ")
        assert time.monotonic() - began < 5, "it is closed as soon as all is sent"


def test_a_client_that_does_not_read_its_answer_holds_nobody_up(hasty):
    photo = image_file(1500, 1500)
    with ExitStack() as stack:
        for _ in range(20):
            connection = stack.enter_context(connect(hasty))
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(photo) + photo)
        ends = time.monotonic() + 20
        while httpx.get(f"{hasty.url}/health", timeout=20).json()["busy"]:
            assert time.monotonic() < ends
        healthy(hasty)


def unread(head, photo):
    """Returns a request whose answer is larger than what systems keep of it unread."""
    head = HEAD.replace(b"segment", b"segment?output=overlay&model=unet_small") + head
    return head + b"Content-Length: %d\r\n\r\n" % len(photo) + photo


NOISE = Image.merge("RGB", [Image.effect_noise((1400, 1400), 100) for _ in range(3)])  # 6 MB as a PNG
UNREAD = {
    "waits": unread(b"", image_bytes(NOISE, "JPEG")),
    "asked to close": unread(b"Connection: close\r\n", image_bytes(NOISE, "JPEG")),
    "asks for more": b"GET /coffee.jpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 100,
}


def held(server, connection):
    """Returns whether the server has its end of a connection open; the system alone may still keep what was sent."""
    ends = f":{server.port:04X}", f":{connection.getsockname()[1]:04X}"
    rows = map(str.split, Path("/proc/net/tcp").read_text().splitlines())
    return any((row[1][-5:], row[2][-5:]) == ends and row[9] != "0" for row in rows)


@pytest.mark.parametrize("how", UNREAD)
def test_an_answer_that_is_not_read_is_dropped(how, hasty):
    answer, ends = b"", time.monotonic() + 60
    while answer != b"HTTP/1.1 200":
        assert answer in (b"", b"HTTP/1.1 503"), "on a busy machine alone"
        assert time.monotonic() < ends
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", hasty.port))
        connection.sendall(UNREAD[how])
        answer = connection.recv(12)
    with connection:
        assert held(hasty, connection)
        began = time.monotonic()
        while held(hasty, connection):
            assert time.monotonic() - began < 15, "it may go on for ever"
            time.sleep(0.1)
    healthy(hasty)


PATHS = r"""
/../../../../etc/passwd /%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd /..%2f..%2f..%2fetc/passwd /..%5c..%5cetc%5cpasswd
//etc/passwd /%2fetc%2fpasswd /etc/passwd%00.html /results/..%2f..%2f..%2fetc%2fpasswd /results/../seed
/results/%2e%2e%2fofficial /app.js/../../app.py /../app.py /..%2fapp.py /\..\app.py http://127.0.0.1/../app.py
/results/<script>alert(1)</script>
"""


@pytest.mark.parametrize("path", PATHS.split())
def test_no_path_leads_out_of_the_page(path, hasty):
    with connect(hasty) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = ended(connection)
    assert re.match(rb"HTTP/1.1 4\d\d ", answer), answer[:200]
    assert b"root:" not in answer
    assert b"FastAPI" not in answer
    assert b"<script" not in answer or b"application/json" in answer


def form(*parts, end=b"--b--\r\n"):
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + end


FIELD = b'Content-Disposition: form-data; name="image"; filename="%s"\r\n\r\n%s'
FORMS = {
    "a name that leaves": (form(FIELD % (b"../../../../tmp/petseg-was-here", image_file())), {200}),
    "a name with a script": (form(FIELD % (b"<script>alert(1)</script>", b"no photo")), {400}),
    "a name with control characters": (form(FIELD % (b"a\x00b\x1b[31m", image_file())), {200, 400}),
    "an endless name": (form(FIELD % (b"a" * 100_000, image_file())), {200, 400}),
    "a thousand fields": (
        form(*(b'Content-Disposition: form-data; name="a%d"\r\n\r\nx' % number for number in range(1000))),
        {400},
    ),
    "a thousand headers": (form(b"X-A: a\r\n" * 1000 + FIELD % (b"a", image_file())), {400}),
    "a thousand photos": (form(*([FIELD % (b"a", b"x")] * 1000)), {400}),
    "no end": (form(FIELD % (b"a", image_file()), end=b""), {200, 400, 422}),
    "no name": (form(b"Content-Disposition: form-data\r\n\r\nx"), {400, 422}),
    "no disposition": (form(b"\r\nx"), {400, 422}),
    "a form in a form": (
        form(b"Content-Type: multipart/mixed; boundary=c\r\n" + FIELD % (b"a", form(FIELD % (b"b", image_file())))),
        {400},
    ),
    "an encoding": (form(b"Content-Transfer-Encoding: base64\r\n" + FIELD % (b"a", b"aGFsbG8=")), {400}),
    "only dashes": (b"-" * 1_000_000, {400, 422}),
    "only line ends": (b"\r\n" * 500_000, {400, 422}),
    "almost boundaries": (form(FIELD % (b"a", b"\r\n--" * 250_000)), {400}),
    "nothing": (b"", {400, 422}),
}


@pytest.mark.parametrize("kind", FORMS)
def test_a_malformed_form_is_answered(kind, hasty):
    body, statuses = FORMS[kind]
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = httpx.post(f"{hasty.url}/api/segment", content=body, headers=headers, timeout=20)
    assert answer.status_code in statuses, answer.text
    if answer.status_code != 200:
        assert "\n" not in answer.json()["detail"]
    assert not Path("/tmp/petseg-was-here").exists()
    healthy(hasty)


REQUESTS = {
    "two lengths": HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    "a length and chunks": HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "a length of 2**70": HEAD + b"Content-Length: 1180591620717411303424\r\n\r\n",
    "a chunk of 2**64": HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "a method of its own": b"BREW / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a head with control characters": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: a\x00b\r\n\r\n",
    "a folded header": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n X: a\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
    "another host": b"GET / HTTP/1.1\r\nHost: pets.example\r\nConnection: close\r\n\r\n",
    "an address that is none": b"GET http://[::1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "an upgrade": b"GET / HTTP/1.1\r\nHost: pets.example\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n",
    "a proxy's request": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_malformed_request_is_refused_or_dropped(kind, hasty):
    with connect(hasty) as connection:
        connection.sendall(REQUESTS[kind])
        connection.settimeout(15)
        answer = ended(connection)
    assert answer == b"" or re.match(rb"HTTP/1.1 4\d\d ", answer), answer[:200]
    assert b"Traceback" not in answer
    healthy(hasty)
