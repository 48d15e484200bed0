"""The server against the bare model: photos a second on the same cores, and memory over many requests.

    python benchmarks/serve_speed.py --out serve_speed.json

Bare: a pool of threads calls `Segmenter` and `encoded` in a process of its own. Served: the same photos over HTTP, with
as many threads behind it; the clients run on the same cores. The two take turns. A ratio of 1 is as fast as bare.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from petseg.environment import environment
from petseg.predict.outputs import encoded
from petseg.predict.segmenter import Segmenter
from petseg.storage import write_json

CAT = Path(__file__).parent.parent / "petseg" / "serve" / "page" / "cat.jpg"
HEADERS = {"Content-Type": "image/jpeg"}
MODEL = "unet_small"  # the less a network takes, the more the rest shows


def cats(number: int, side: int) -> list[bytes]:
    """Returns JPEG files of a cat, each cropped a little differently, `side` pixels wide."""
    photos = []
    with Image.open(CAT) as cat:
        for place in range(number):
            stream = BytesIO()
            height = round(side * (300 - place) / 451)
            cat.crop((0, place, 451, 300)).resize((side, height)).save(stream, "JPEG", quality=90)
            photos.append(stream.getvalue())
    return photos


@cache
def segmenter() -> Segmenter:
    """Returns the model, loaded once a process."""
    return Segmenter(MODEL, threads=1)


def bare(photos: list[bytes], requests: int, output: str, threads: int) -> tuple[float, float]:
    """Returns photos a second and seconds of processor a photo, without a server."""
    model = segmenter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda photo: encoded(model(photo), output), photos))
        started, used = time.perf_counter(), time.process_time()
        list(pool.map(lambda place: encoded(model(photos[place % len(photos)]), output), range(requests)))
        return requests / (time.perf_counter() - started), (time.process_time() - used) / requests


def asked(port: int, photos: list[bytes], requests: int, output: str, clients: int) -> float:
    """Returns photos a second over HTTP, each client on a connection of its own."""
    path = f"/api/segment?model={MODEL}&output={output}"
    places = iter(range(requests))
    lock = threading.Lock()

    def ask() -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                place = next(places, None)
            if place is None:
                return
            connection.request("POST", path, photos[place % len(photos)], HEADERS)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for client in [pool.submit(ask) for _ in range(clients)]:
            client.result()
    return requests / (time.perf_counter() - started)


def processor_seconds(pid: int) -> float:
    """Returns what a process has used of the processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Returns a process's memory in bytes."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=5, help="how often bare and served are measured")
    parser.add_argument("--requests", type=int, default=400, help="photos a turn")
    parser.add_argument("--memory", type=int, default=2000, help="requests over which memory is watched")
    parser.add_argument("--output", default="mask", help="what is asked for")
    parser.add_argument("--side", type=int, default=451, help="width of the photos in pixels")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="photos computed at once")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    photos = cats(20, options.side)
    command = [sys.executable, "-m", "petseg", "serve", "--port", "0", "--no-open"]
    server = subprocess.Popen([*command, "--set", f"concurrent={options.threads}"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = int(server.stdout.readline().partition(" ")[0].rpartition(":")[2])
    turns: list[dict[str, float]] = []
    memory: list[int] = []
    try:
        with ProcessPoolExecutor(1) as alone, ProcessPoolExecutor(1) as client:
            work = (photos, options.requests, options.output)
            ask = lambda number: client.submit(  # noqa: E731
                asked, port, photos, number, options.output, 4 * options.threads
            ).result()
            ask(50)
            for turn in range(options.turns):
                found: dict[str, float] = {}
                for contender in ("bare", "served")[:: 1 if turn % 2 == 0 else -1]:
                    if contender == "bare":
                        found["bare"], found["bare_cpu"] = alone.submit(bare, *work, options.threads).result()
                    else:
                        used = processor_seconds(server.pid)
                        found["served"] = ask(options.requests)
                        found["served_cpu"] = (processor_seconds(server.pid) - used) / options.requests
                turns.append(found)
                print(json.dumps(found), file=sys.stderr)
            for _ in range(0, options.memory, 100):
                memory.append(resident(server.pid))
                ask(100)
            memory.append(resident(server.pid))
    finally:
        server.terminate()
        server.wait()
    result: dict[str, Any] = {
        "kind": "serve_speed",
        "command": "python benchmarks/serve_speed.py",
        "model": MODEL,
        "output": options.output,
        "photo_width": options.side,
        "requests_a_turn": options.requests,
        "environment": environment(device="cpu", precision="fp32", threads=options.threads),
        "photos_per_second": {name: median(turn[name] for turn in turns) for name in ("bare", "served")},
        "cpu_ms_per_photo": {name: 1000 * median(turn[f"{name}_cpu"] for turn in turns) for name in ("bare", "served")},
        "ratio": median(turn["served"] / turn["bare"] for turn in turns),
        "ratio_lowest": min(turn["served"] / turn["bare"] for turn in turns),
        "ratio_highest": max(turn["served"] / turn["bare"] for turn in turns),
        "ratio_cpu": median(turn["bare_cpu"] / turn["served_cpu"] for turn in turns),
        "turns": turns,
        "memory_requests": options.memory,
        "memory_bytes_every_100": memory,
        "memory_growth_bytes": memory[-1] - memory[min(2, len(memory) - 1)] if memory else 0,
    }
    if options.out:
        write_json(options.out, result)
    print(f"served / bare: {result['ratio']:.3f} of the photos a second, {result['ratio_cpu']:.3f} by processor time")
    print(f"memory: {result['memory_growth_bytes'] / 1e6:+.1f} MB from request 200 to {options.memory}")


if __name__ == "__main__":
    main()
