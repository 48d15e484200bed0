"""The API: answers equal Python's, every refusal has its status and a sentence, and nothing is lost, kept or logged."""

import asyncio
import email
import email.policy
import json
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from unittest import mock

import httpx
import numpy as np
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from petseg.config import ServeConfig, load_serving
from petseg.data.synthetic import draw_pet
from petseg.predict.outputs import encoded
from petseg.predict.segmenter import Segmenter
from petseg.serve import make_app, upload
from petseg.serve.app import PROBLEMS, Prediction
from petseg.serve.server import is_loopback
from petseg.serve.work import Place
from petseg.shipped import DEFAULT, shipped_models
from tests.cli.test_commands import one_line_error, petseg
from tests.conftest import Served, image_bytes, refused
from tests.data.test_images import huge_png

ROOT = Path(__file__).parents[2]
CAT = ROOT / "petseg" / "serve" / "page" / "cat.jpg"
OUTPUTS = ("mask", "overlay", "cutout", "classes", "trimap", "json")
RAW = {"content-type": "application/octet-stream"}


def image_file(width=40, height=30, kind="PNG"):
    return image_bytes(Image.new("RGB", (width, height), "grey"), kind)


def summary_of(result):
    return json.loads(json.dumps(result.summary().to_dict()))


def post(url, content, **query):
    return httpx.post(f"{url}/api/segment", params=query, files={"image": content}, timeout=60)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("model", ["unet_small", "segnet_small"])
def test_an_answer_is_what_python_gives(served, model, output):
    answer = post(served.url, CAT.read_bytes(), model=model, output=output)
    assert answer.status_code == 200, answer.text
    result = Segmenter(model, threads=1)(CAT)
    if output != "json":
        assert (answer.headers["content-type"], answer.content) == ("image/png", encoded(result, output))
        return
    row = answer.json()
    assert TypeAdapter(Prediction).validate_python(row).model == row.pop("model") == model
    assert 0 < row.pop("milliseconds") < 60_000
    assert row == summary_of(result)


def test_a_raw_body_is_the_same_as_a_form_and_a_field_as_a_parameter(served):
    content = CAT.read_bytes()
    form = post(served.url, content)
    for fields in ({"model": "segnet", "output": "json"}, {"output": ["overlay", "trimap"]}):
        given = httpx.post(f"{served.url}/api/segment?model=unet", files={"image": content}, data=fields, timeout=60)
        wanted = post(served.url, content, **{"model": "unet", **fields})
        assert given.headers["content-type"].partition(";")[0] == wanted.headers["content-type"].partition(";")[0]
        assert len(given.content) == pytest.approx(len(wanted.content), abs=9), "times differ"
    for kind in ("image/jpeg", "image/png", "application/octet-stream"):  # Pillow looks at the bytes, not at the name
        raw = httpx.post(f"{served.url}/api/segment", content=content, headers={"content-type": kind}, timeout=60)
        assert raw.content == form.content
    assert form.headers["cache-control"] == "no-store"
    assert re.fullmatch(r"network;dur=[\d.]+, all;dur=[\d.]+", form.headers["server-timing"])


def test_a_form_may_hold_every_parameter_as_often_as_it_may_be_repeated(served):
    most = {"output": OUTPUTS, "scales": [0.5, 0.75, 1, 1.25], "foreground": ["cat"] * 255}
    once = {"model": "unet_small", "flip": "true", "matting": "true", "raw": "true"}
    photo = {"image": CAT.read_bytes()}
    answer = httpx.post(f"{served.url}/api/segment", files=photo, data=most | once, timeout=60)
    assert answer.status_code == 200, answer.text
    more = httpx.post(f"{served.url}/api/segment", files=photo, data=most | {"foreground": ["cat"] * 260}, timeout=60)
    assert (more.status_code, "Too many fields" in more.json()["detail"]) == (400, True)


def test_several_outputs_come_in_one_answer(served):
    answer = post(served.url, CAT.read_bytes(), output=OUTPUTS)
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    parts = email.message_from_bytes(head + answer.content, policy=email.policy.HTTP).iter_parts()
    result = {part.get_param("name", header="content-disposition"): part.get_payload(decode=True) for part in parts}
    assert tuple(result) == OUTPUTS
    assert json.loads(result["json"])["foreground"]
    assert result["cutout"] == post(served.url, CAT.read_bytes(), output="cutout").content


def test_a_kind_stands_for_its_best_model(served):
    listed = httpx.get(f"{served.url}/api/models").json()
    assert sorted(card["name"] for card in listed["models"]) == shipped_models()
    scores = {card["name"]: card["miou"] for card in listed["models"]}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert listed["default"] == DEFAULT == listed["models"][0]["name"]
    for kind in ("unet", "segnet"):
        best = next(card["name"] for card in listed["models"] if card["kind"] == kind)
        assert [card["name"] for card in listed["models"] if card["kind"] == kind and card["best"]] == [best]
        row = post(served.url, CAT.read_bytes(), model=kind, output="json").json()
        assert row["model"] == best
    for card in listed["models"]:
        assert [entry["role"] for entry in card["classes"]][-2:] == ["background", "boundary"]


IMAGE = {"files": {"image": image_file()}}


@pytest.mark.parametrize(
    ("request_", "status", "problem"),
    [
        ({"files": {"image": b"words"}}, 400, "not an image that can be read; wanted JPEG, PNG"),
        ({"files": {"image": image_file()[:60]}}, 400, "the photo: cannot be decoded"),
        ({"files": {"image": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}}, 400, "not an image"),
        ({"files": {"image": huge_png(100_000)}}, 413, "the photo has far more than 50,000,000 pixels"),
        ({"files": {"image": b""}}, 422, "the photo is empty"),
        ({"files": {"photo": image_file()}}, 422, "the field 'image' is missing"),
        ({"data": {"image": "text"}, "files": {"x": b""}}, 422, "the field 'image' holds text, no file"),
        ({"files": [("image", b"a"), ("image", b"b")]}, 400, "Too many files"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "Missing boundary"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "content type text/plain; wanted"),
        ({"content": b"x"}, 415, "content type is missing"),
        ({"data": {"image": "text"}}, 415, "content type application/x-www-form-urlencoded"),
        ({**IMAGE, "params": {"model": "unett"}}, 422, "model 'unett' is unknown; choose one of: unet, "),
        ({**IMAGE, "params": {"foreground": "cats"}}, 422, "foreground 'cats' is unknown; choose one of: cat, "),
        ({**IMAGE, "params": {"scales": "9"}}, 422, "scales is '9'; input should be less than or equal to 2"),
        ({**IMAGE, "params": {"output": "masks"}}, 422, "output is 'masks'; input"),
        ({**IMAGE, "params": {"modle": "segnet"}}, 422, "parameter 'modle' is unknown; choose one of: model, "),
        ({**IMAGE, "data": {"modle": "segnet"}}, 422, "parameter 'modle' is unknown; choose one of: model, "),
        ({**IMAGE, "data": {"output": "jsn"}}, 422, "output is 'jsn'; input"),
        ({"files": {"image": bytes(20_100_000)}}, 413, "larger than 20 MB"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, int) else "",
)
def test_a_refusal_has_its_status_and_a_sentence(served, request_, status, problem):
    answer = httpx.post(f"{served.url}/api/segment", timeout=60, **request_)
    assert (answer.status_code, problem in answer.json()["detail"]) == (status, True), answer.text
    assert status in PROBLEMS
    assert httpx.get(f"{served.url}/health").json()["busy"] == 0


def in_process(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")


@pytest.mark.parametrize(
    ("limits", "status", "problem"),
    [
        ({"pixels": 1199}, 413, "the photo has 1,200 pixels; at most 1,199 are taken"),
        ({"pixels": 1200}, 200, ""),
        ({"held_bytes": 50}, 503, "too many photos are held"),
        ({"upload_bytes": 1}, 413, "larger than 1e-06 MB"),
    ],
)
def test_a_limit_is_a_setting(limits, status, problem):
    content = image_file() + bytes(20_000 if "upload_bytes" in limits else 0)

    async def chunks():
        for start in range(0, len(content), 1000):
            yield content[start : start + 1000]

    async def ask():
        async with in_process(make_app(ServeConfig(**limits))) as client:
            for body in (content, chunks()):
                answer = await client.post("/api/segment", content=body, headers=RAW)
                assert (answer.status_code, problem in answer.text) == (status, True), answer.text
                assert ("retry-after" in answer.headers) == (status == 503)

    asyncio.run(ask())


def test_a_full_queue_answers_503_and_then_takes_photos_again():
    async def ask():
        going = asyncio.Event()

        async def slow():
            yield image_file()
            await going.wait()

        async with in_process(make_app(ServeConfig(concurrent=1, queue=0))) as client:
            first = asyncio.create_task(client.post("/api/segment", content=slow(), headers=RAW))
            while (await client.get("/health")).json()["busy"] == 0:
                await asyncio.sleep(0)
            second = await client.post("/api/segment", content=image_file(), headers=RAW)
            assert (second.status_code, second.headers["retry-after"]) == (503, "1")
            assert "the queue is full" in second.text
            going.set()
            assert (await first).status_code == 200
            assert (await client.post("/api/segment", content=image_file(), headers=RAW)).status_code == 200

    asyncio.run(ask())


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_slow_uploads_beyond_held_bytes_are_refused_at_once_and_the_others_answered(declared):
    content = image_file() + bytes(1000)
    half = len(content) // 2

    async def ask():
        going = asyncio.Event()

        async def slow():
            yield content[:half]
            await going.wait()
            yield content[half:]

        app = make_app(ServeConfig(concurrent=1, held_bytes=5 * len(content)))
        headers = RAW | ({"content-length": str(len(content))} if declared else {})
        async with in_process(app) as client:
            asked = [client.post("/api/segment", content=slow(), headers=headers) for _ in range(12)]
            tasks = [asyncio.create_task(each) for each in asked]
            while sum(task.done() for task in tasks) < (7 if declared else 2):  # 5 photos fit, or 10 halves
                await asyncio.sleep(0)
            going.set()
            answers = [answer.status_code for answer in await asyncio.gather(*tasks)]
            assert set(answers) == {200, 503}
            assert not declared or answers.count(200) == 5
            whole = await client.post("/api/segment", content=content, headers=RAW)
            assert whole.status_code == 200, "what was refused is given back"

    asyncio.run(asyncio.wait_for(ask(), 20))


def test_a_slow_upload_answers_408_and_a_slow_answer_503():
    async def ask():
        async def slow():
            yield image_file()
            await asyncio.Event().wait()

        app = make_app(ServeConfig(concurrent=1, seconds=0.2))
        async with in_process(app) as client:
            late = await client.post("/api/segment", content=slow(), headers=RAW)
            assert (late.status_code, late.json()["detail"]) == (408, "the upload took longer than 0.2 s; try again")
            done = threading.Event()
            blocking = asyncio.create_task(app.state.petseg.run(done.wait, Place()))
            busy = await client.post("/api/segment", content=image_file(), headers=RAW)
            assert (busy.status_code, busy.headers["retry-after"]) == (503, "5")
            done.set()
            await blocking
            assert (await client.get("/health")).json()["busy"] == 0

    asyncio.run(ask())


def test_a_photo_that_takes_too_long_keeps_its_place_until_its_thread_is_free(monkeypatch):
    done = threading.Event()
    monkeypatch.setattr("petseg.serve.app._compute", lambda *arguments: done.wait())

    async def ask():
        content = image_file()
        limits = {"concurrent": 1, "queue": 1, "seconds": 0.2, "held_bytes": 2 * len(content) - 1}
        async with in_process(make_app(ServeConfig(**limits))) as client:

            async def health():
                row = (await client.get("/health")).json()
                return row["busy"], row["computing"]

            late = await client.post("/api/segment", content=content, headers=RAW)
            assert (late.status_code, await health()) == (503, (1, 1))
            second = await client.post("/api/segment", content=content, headers=RAW)
            assert "too many photos are held" in second.text, "its bytes are held as well"
            assert await health() == (1, 1)
            waiting = await client.post("/api/segment", content=content[:50], headers=RAW)
            assert (waiting.status_code, await health()) == (503, (1, 1)), "what only waited is not kept"
            done.set()
            while await health() != (0, 0):
                await asyncio.sleep(0)

    try:
        asyncio.run(asyncio.wait_for(ask(), 20))
    finally:
        done.set()


def test_a_client_that_goes_away_frees_its_place_and_is_not_computed(monkeypatch):
    async def ask():
        app = make_app(ServeConfig(concurrent=1))
        done = threading.Event()
        computed = []
        monkeypatch.setattr("petseg.serve.app._compute", lambda *arguments: computed.append(arguments))
        blocking = asyncio.create_task(app.state.petseg.run(done.wait, Place()))
        gone = asyncio.Event()
        messages = [{"type": "http.request", "body": image_file(), "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        sent = []

        async def send(message):
            sent.append(message)

        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/octet-stream")]
        scope = {"type": "http", "method": "POST", "path": "/api/segment", "query_string": b"", "headers": headers}
        asked = asyncio.create_task(app(scope, receive, send))
        while app.state.petseg.taken == 0 or messages:
            await asyncio.sleep(0)
        gone.set()
        await asked
        assert sent[0]["status"] == 499
        assert app.state.petseg.taken == 0
        done.set()
        await blocking
        app.state.petseg.close()
        assert computed == []

    asyncio.run(ask())


def busy_until(served, wanted):
    ends = time.monotonic() + 20
    while httpx.get(f"{served.url}/health").json()["busy"] != wanted:
        assert time.monotonic() < ends


def test_an_upload_never_touches_the_disk(monkeypatch):
    """A form of 3 MB, three times what Starlette keeps in memory by itself."""

    async def ask():
        async with in_process(make_app(ServeConfig())) as client:
            return (await client.post("/api/segment", files={"image": CAT.read_bytes() + bytes(3_000_000)})).status_code

    rollover = tempfile.SpooledTemporaryFile.rollover
    with mock.patch.object(tempfile.SpooledTemporaryFile, "rollover", autospec=True, side_effect=rollover) as spilled:
        assert (asyncio.run(ask()), spilled.call_count) == (200, 0)
        monkeypatch.setattr(upload.InMemory, "spool_max_size", 1_000_000)
        assert (asyncio.run(ask()), spilled.call_count) == (200, 1)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", "/api/segment", 405), ("POST", "/health", 405), ("POST", "/api/models", 405), ("POST", "/", 405)),
        *(("HEAD", "/health", 200), ("HEAD", "/api/models", 200), ("HEAD", "/", 200), ("HEAD", "/nowhere", 404)),
    ],
)
def test_a_method_that_a_path_has_not_is_405(served, method, path, status):
    answer = httpx.request(method, served.url + path)
    assert (answer.status_code, "allow" in answer.headers) == (status, status == 405), answer.text


def test_only_this_machine_s_own_names_are_answered_and_no_answer_lets_the_browser_load_anything_else(served):
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "0.0.0.0", "pc")] == [True, True, False, False]
    for host, status in (("127.0.0.1", 200), ("localhost:80", 200), ("pets.example", 400)):
        assert httpx.get(f"{served.url}/health", headers={"host": host}).status_code == status
    for path in ("/", "/app.js", "/api/models", "/answer", "/nowhere"):
        policy = httpx.get(served.url + path, timeout=60).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "http" not in policy


@pytest.mark.parametrize("host", ["::", "127.0.0.2", "0.0.0.0"])
def test_an_address_that_is_printed_answers_and_so_does_a_proxy_s_name(host):
    if host != "::" and sys.platform != "linux":
        pytest.skip("127.0.0.2 is up on Linux alone")
    server = Served("--host", host, "--allowed-host", "pets.example")
    for name, status in ((None, 200), ("pets.example", 200), ("other.example", 400)):
        answer = httpx.get(f"{server.url}/health", headers={"host": name} if name else {})
        assert answer.status_code == status, name
    server.stop()


def test_another_host_warns_and_a_taken_port_is_an_error(tmp_path):
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = petseg("serve", "--no-open", "--host", "0.0.0.0", "--port", port)
    assert "petseg: warning: 0.0.0.0 lets others on the network in; there is no password" in result.stderr
    assert f"0.0.0.0:{port} cannot be had (" in one_line_error(result)
    assert "choose another with --port" in result.stderr
    for host in ("192.0.2.1", "nowhere.invalid"):  # no machine has the first (RFC 5737)
        result = petseg("serve", "--no-open", "--host", host, "--port", "0")
        assert result.stderr.splitlines()[-1].endswith("; choose another with --host"), result.stderr


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("queue=many", "serve: queue is 'many'; input should be a valid integer"),
        ("queues=3", "serve: field 'queues' is unknown; choose one of: queue"),
        ("queue", "setting queue: got no '='"),
        ("port=70000", "serve: port is 70000; input should be less than or equal to 65535"),
    ],
)
def test_settings_are_taken_and_a_wrong_one_is_named(setting, problem):
    config = load_serving(["queue=3", "seconds=2"], port=0)
    assert (config.queue, config.seconds, config.port, config.host) == (3, 2.0, 0, "127.0.0.1")
    refused(re.escape(problem), load_serving, [setting])


WANTED = "wanted a name without scheme, port or path, such as pets.example.org, *.example.org or *"


@pytest.mark.parametrize(
    ("name", "do"),
    [
        ("https://pets.example.org", "write pets.example.org"),
        ("https://pets.example.org:8443/pets/", "write pets.example.org"),
        ("pets.example.org:443", "write pets.example.org"),
        ("pets.example.org/pets", "write pets.example.org"),
        *(
            (name, "change --allowed-host")
            for name in ("a*b", "*.*.org", "*example.org", "pets.", "a b", "", "größe.de")
        ),
    ],
)
def test_a_host_that_can_never_match_is_refused(name, do):
    refused(re.escape(f"allowed_hosts holds {name!r}; {WANTED}: {do}"), load_serving, allowed_hosts=["ok.org", name])


def test_hosts_that_can_match_are_taken():
    names = ["pets.example.org", "*.example.org", "*", "localhost", "10.0.0.2", "[::1]", "my_pets", "Pets.Example"]
    assert load_serving(allowed_hosts=names).allowed_hosts == names
    make_app(ServeConfig(), hosts=names)
    result = petseg("serve", "--no-open", "--port", "0", "--allowed-host", "a*b")
    assert (result.returncode, "allowed_hosts holds 'a*b'; wanted" in one_line_error(result)) == (2, True)


def test_a_stop_answers_what_is_under_way():
    server = Served()
    content = CAT.read_bytes()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"Host: 127.0.0.1\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}"
        connection.sendall(f"POST /api/segment HTTP/1.1\r\n{head}\r\n\r\n".encode() + content[:1000])
        busy_until(server, 1)
        stopping = ThreadPoolExecutor(1).submit(server.stop)
        ends = time.monotonic() + 20
        while time.monotonic() < ends:  # it listens no longer, so the stop has begun
            try:
                socket.create_connection(("127.0.0.1", server.port)).close()
            except OSError:
                break
        connection.sendall(content[1000:])
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(encoded(Segmenter("", threads=1)(CAT), "mask"))
    assert stopping.result(60) == ("", "")


HEAD = "POST /api/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process at once")
def test_sigterm_is_no_error_and_does_not_wait_for_an_upload_that_stalls():
    server = Served("--set", "seconds=50")
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(f"{HEAD}Content-Length: 1000\r\n\r\n".encode() + b"a")
        busy_until(server, 1)
        began = time.monotonic()
        assert server.stop(by=signal.SIGTERM) == ("", "")
    assert time.monotonic() - began < 25
    assert Served().stop(by=signal.SIGTERM) == ("", ""), "as soon as its address is printed"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process at once")
def test_a_second_ctrl_c_ends_at_once():
    server = Served("--set", "seconds=50", "--set", "concurrent=1")
    photo = image_file(6000, 6000)  # it computes for many seconds
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(f"{HEAD.replace('segment', 'segment?matting=true&output=cutout')}".encode())
        connection.sendall(f"Content-Length: {len(photo)}\r\n\r\n".encode() + photo)
        ends = time.monotonic() + 20
        while httpx.get(f"{server.url}/health").json()["computing"] == 0:
            assert time.monotonic() < ends
        server.process.send_signal(signal.SIGINT)
        while time.monotonic() < ends:  # it listens no longer, so the stop has begun
            try:
                socket.create_connection(("127.0.0.1", server.port)).close()
            except OSError:
                break
        server.process.send_signal(signal.SIGINT)
        output = server.process.communicate(timeout=60)
        assert connection.recv(1 << 16) == b"", "it did not wait for the answer"
    assert (server.process.returncode, output) == (130, ("", ""))


def test_the_answer_is_the_study_s_and_the_wheel_carries_it(served):
    answer = httpx.get(f"{served.url}/answer", timeout=60)
    assert answer.headers["content-type"].startswith("text/html")
    assert re.search(r"Take U-Net\..*points of mIoU", answer.text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"results/study/findings.json": "petseg/results/study/findings.json"}


def test_matting_is_python_s_and_without_scipy_a_sentence(served):
    answer = post(served.url, CAT.read_bytes(), model="unet_small", output="cutout", matting=True)
    result = Segmenter("unet_small", threads=1)(CAT)
    cutouts = Image.open(BytesIO(answer.content)), result.cutout(matting=True), result.cutout()
    found, wanted, usual = (np.asarray(each, int) for each in cutouts)  # its sums are rounded by the number of threads
    assert np.abs(found - wanted).max() <= 1 < np.abs(found - usual).max()
    with mock.patch("petseg.serve.app.matting_at_hand", return_value=False):
        client = TestClient(make_app(ServeConfig()), base_url="http://localhost")
        assert client.get("/api/models").json()["matting"] is False
        refusal = client.post("/api/segment?matting=true", files={"image": image_file()})
    assert (refusal.status_code, "pip install 'petseg[matting]'" in refusal.json()["detail"]) == (422, True)


def test_two_hundred_requests_at_once_each_get_their_own_answer(served):
    drawn = [Image.fromarray(draw_pet("beagle", number, size=300)[0]) for number in range(20)]
    photos = [image_bytes(image, "JPEG") for image in drawn]
    segmenter = Segmenter("unet_small", threads=1)
    wanted = [summary_of(segmenter(photo)) for photo in photos]

    async def ask():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=served.url, limits=limits, timeout=120) as client:
            ask_one = partial(client.post, "/api/segment?model=unet_small&output=json", headers=RAW)
            return await asyncio.gather(*(ask_one(content=photos[place % 20]) for place in range(200)))

    for place, answer in enumerate(asyncio.run(ask())):
        assert answer.status_code == 200, answer.text
        row = answer.json()
        del row["model"], row["milliseconds"]
        assert row == wanted[place % 20]
    assert httpx.get(f"{served.url}/health").json()["busy"] == 0


FILES = st.sampled_from([image_file(), image_file(1, 1), image_file(300, 2, "JPEG"), image_file()[:50], b"words", b""])
for kind in ("image/jpeg", "image/png", "image/webp", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, FILES)

schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(ServeConfig(seconds=30), hosts=["*"]))


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_api_keeps_its_openapi_document(case):
    """No check that what fits the schema is taken: a schema cannot say "an image"."""
    answers = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    case.call_and_validate(checks=[*answers, negative_data_rejection])


def test_the_document_has_examples_and_every_status():
    document = make_app(ServeConfig(), hosts=["*"]).openapi()
    operation = document["paths"]["/api/segment"]["post"]
    assert set(operation["responses"]) == {"200", *map(str, PROBLEMS)}
    model = operation["parameters"][0]["schema"]
    assert model["default"] == DEFAULT
    assert {"unet", "segnet", *shipped_models()} == {*model["enum"]}
    assert operation["parameters"][1]["schema"]["examples"] == [["cutout"], [*OUTPUTS]]
    assert {"Prediction", "Problem", "ModelList", "Health"} <= {*document["components"]["schemas"]}
