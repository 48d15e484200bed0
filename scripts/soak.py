"""Training and serving for as long as you like, with memory, open files and threads written down: they must not grow.

    python scripts/soak.py                 # 30 minutes each, into results/reliability/soak.json

Linux alone: the figures are read from /proc. Growth is the median of the last quarter less that of the second, so that
what is taken once at the start does not count.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from PIL import Image

from petseg.data.synthetic import draw_pet, make_pets
from petseg.environment import environment
from petseg.storage import write_json

MOST_MEGABYTES, MOST_FILES, MOST_THREADS = 20.0, 3, 1
"""Growth that is none: the allocator's own, a connection under way."""
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "1048576"}
"""Has glibc give a freed megabyte back at once, where it would keep bodies of 20 MB for each of its arenas that has
seen one, and with them the measure would tell of the allocator."""


def sample(process: int) -> dict[str, float]:
    """Returns megabytes in memory, open files and threads of a process."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = {name: int(value) for name, value in re.findall(r"(VmRSS|Threads):\s+(\d+)", status)}
    files = len(list(Path(f"/proc/{process}/fd").iterdir()))
    return {"megabytes": round(found["VmRSS"] / 1024, 1), "files": files, "threads": found["Threads"]}


def watch(process: int, minutes: float, work: Callable[[], int]) -> dict[str, Any]:
    """Returns samples of a process while `work` is called again and again, what it did in all, and the growth.

    It goes on after its minutes until each quarter has two samples: a slow machine must not leave one empty. Where
    something grew, it looks once more for as long: what is taken once and late (two requests meet in one model for the
    first time) does not come again, a leak does.
    """
    found = _watched(process, minutes, work)
    if flat(found["growth"]):
        return found
    again = _watched(process, minutes, work)
    return {**again, "done": found["done"] + again["done"], "before": found["samples"]}


def _watched(process: int, minutes: float, work: Callable[[], int]) -> dict[str, Any]:
    samples: list[dict[str, float]] = []
    started, done = time.monotonic(), 0
    while (now := time.monotonic() - started) < 60 * minutes or len(samples) < 8:
        done += work()
        if now >= len(samples) * 60 * minutes / 120:  # 120 samples
            samples.append({"minute": round(now / 60, 2), **sample(process)})
    quarter = len(samples) // 4
    growth = {}
    for key in ("megabytes", "files", "threads"):
        second, last = ([each[key] for each in part] for part in (samples[quarter : 2 * quarter], samples[-quarter:]))
        growth[key] = round(median(last) - median(second), 1)
    return {"minutes": minutes, "done": done, "growth": growth, "samples": samples}


def flat(growth: dict[str, float]) -> bool:
    """Returns whether nothing grew."""
    limits = {"megabytes": MOST_MEGABYTES, "files": MOST_FILES, "threads": MOST_THREADS}
    return all(growth[key] <= limit for key, limit in limits.items())


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    """Returns the process of a petseg command of this very checkout; `options` are Popen's, `env` of further names."""
    env = {**os.environ, **GIVING_BACK, **options.pop("env", {})}
    return subprocess.Popen([sys.executable, "-m", "petseg", *words], text=True, env=env, **options)


def soak_training(minutes: float, folder: Path) -> dict[str, Any]:
    """Returns the figures of one run that trains, validates and writes checkpoints all the time; `done` is epochs."""
    pets = make_pets(folder / "pets", per_breed=8, breeds=12, size=96)
    settings = ("epochs=1000000", "data.size=64", "model.base_channels=8", "train.ema=0.9", "train.warmup=0")
    words = [word for setting in settings for word in ("--set", setting)]
    run, log = folder / "run", (folder / "log.txt").open("wb")
    env = {"OMP_NUM_THREADS": "1", "PETSEG_CACHE": str(folder / "cache")}
    process = start("train", "--data", str(pets), "--out", str(run), *words, stdout=log, stderr=log, env=env)
    try:
        metrics = run / "metrics.jsonl"
        while not metrics.is_file():
            if process.poll() is not None:
                raise RuntimeError((folder / "log.txt").read_text(encoding="utf-8"))
            time.sleep(0.05)

        def epochs() -> int:
            return len(metrics.read_text(encoding="utf-8").splitlines())

        def wait() -> int:
            before = epochs()
            while not (new := epochs() - before):
                assert process.poll() is None, (folder / "log.txt").read_text(encoding="utf-8")
                time.sleep(min(0.2, 60 * minutes / 200))
            return new

        return watch(process.pid, minutes, wait)
    finally:
        process.kill()
        process.wait(60)
        log.close()


def requests() -> list[tuple[str, bytes, int]]:
    """Returns (query, body, status): photos of several sizes and formats, and what is refused."""
    found = []
    for number, (kind, side) in enumerate((("JPEG", 200), ("PNG", 120), ("WEBP", 333), ("GIF", 90), ("JPEG", 700))):
        stream = BytesIO()
        Image.fromarray(draw_pet("beagle", number, size=side)[0]).save(stream, kind)
        for query in ("output=json", "output=mask&output=cutout", "model=segnet&output=overlay"):
            found.append((query, stream.getvalue(), 200))
        found.append(("", stream.getvalue()[: 60 + number], 400))
    return [*found, ("", b"words", 400), ("", b"", 422), ("output=no", b"x", 422), ("", bytes(20_100_000), 413)]


def soak_serving(minutes: float, folder: Path) -> dict[str, Any]:
    """Returns the figures of a server under mixed requests, some of them half sent; `done` is requests."""
    process = start("serve", "--port", "0", "--no-open", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().partition(" ")[0]
        port = int(url.rpartition(":")[2])
        todo = requests()

        def ask(query: str, body: bytes, wanted: int) -> None:
            kind = {"Content-Type": "application/octet-stream"}
            status = httpx.post(f"{url}/api/segment?{query}", content=body, headers=kind, timeout=60).status_code
            assert status == wanted, (query, len(body), status, wanted)

        def work() -> int:
            with socket.create_connection(("127.0.0.1", port)) as gone:
                gone.sendall(b"POST /api/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999\r\n\r\nhalf")
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(ask, *zip(*todo, strict=True)))
            return len(todo) + 1

        for _ in range(4):
            work()  # takes what is taken once, however slow the machine
        return watch(process.pid, minutes, work)
    finally:
        process.terminate()
        process.communicate(timeout=60)


SOAKS = {"training": soak_training, "serving": soak_serving}


def main() -> int:
    """Returns the exit code: 0 flat, 1 something grew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of each")
    parser.add_argument("--only", choices=SOAKS, help="one of them")
    out = Path(__file__).resolve().parents[1] / "results" / "reliability" / "soak.json"
    parser.add_argument("--out", type=Path, default=out)
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    for name, soak in SOAKS.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                found[name] = soak(options.minutes, Path(folder))
            found["environment"] = environment(device="cpu", precision="fp32", threads=1)
            write_json(options.out, found)
            print(f"{name}: {found[name]['done']:,} done, growth {found[name]['growth']}")
    return int(not all(flat(found[name]["growth"]) for name in SOAKS if name in found))


if __name__ == "__main__":
    sys.exit(main())
