"""The same photos by `petseg predict` of a folder and by Ray Data on the same cores, taking turns, from files to masks.

    python benchmarks/cluster_predict.py --out results/benchmarks/cluster_predict.json

Ray is started once, on this machine; each turn starts its actors and loads the model anew, as each call does. The
steady rate leaves that out: of all photos after the first ones, until the last. A run of the same function without Ray
takes its turn too. From the rates and sizes follows what a billion such photos would take (docs/cluster.md).
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from measuring import arguments, main, ratio, take_turns
from serve_speed import cats

from petseg.cores import core_count
from petseg.environment import environment
from petseg.predict.bulk import Work, predict_here, predict_on_ray, recorded, work_of
from petseg.predict.manifest import FOLDER, Manifest
from petseg.predict.outputs import Look, plan, predict_jobs
from petseg.predict.runtimes import chosen_runtime
from petseg.predict.segmenter import Segmenter
from petseg.shipped import DEFAULT
from petseg.storage import write_json
from petseg.threads import OtherWork

SIDE, KINDS = 451, ("mask",)


def resident(process: str = "self") -> float:
    """Returns the resident memory of a process in MB, 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmRSS")), 0.0)


def workers() -> list[str]:
    """Returns the processes that predict, as Ray names them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"MapBatches(Worker)" in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            pass  # it has ended
    return found


class Contest:
    """The photos, and what is noted beside the rate of a whole call."""

    def __init__(self, folder: Path, photos: int) -> None:
        self.folder, self.photos = folder / "photos", photos
        self.folder.mkdir()
        sizes = []
        for place, photo in enumerate(cats(min(100, photos), SIDE)):
            for copy in range(place, photos, 100):
                (self.folder / f"{copy:06}.jpg").write_bytes(photo)
            sizes.append(len(photo))
        self.photo_bytes = statistics.mean(sizes)
        self.steady: dict[str, list[float]] = {"ray": [], "here": []}
        self.others: list[float] = []  # cores that other processes kept busy in the plain mode's turns
        self.memory: list[dict[str, float]] = []
        self.out = folder / "out"
        self.sizes: dict[str, float] = {}

    def plain(self) -> float:
        """Returns photos a second of a folder as `petseg predict` takes it, the loading of the model included."""
        shutil.rmtree(self.out, ignore_errors=True)
        started, others = time.perf_counter(), OtherWork()
        segmenter = Segmenter(threads=1, runtime=chosen_runtime(self.photos))
        jobs, _ = plan([self.folder], KINDS, self.out)
        failed = sum(outcome.error is not None for outcome in predict_jobs(segmenter, jobs))
        assert (len(jobs), failed) == (self.photos, 0)
        self.others.append(others.cores() or 0.0)
        return self.photos / (time.perf_counter() - started)

    def stored(self, name: str) -> float:
        """Returns the same with a manifest, by Ray or without."""
        shutil.rmtree(self.out, ignore_errors=True)
        started = time.perf_counter()
        segmenter = Segmenter(threads=1, runtime=chosen_runtime(self.photos))
        work = work_of(segmenter, {}, (str(self.folder), str(self.out)), KINDS, Look())
        tables = predict_on_ray(work) if name == "ray" else predict_here(work, segmenter)
        self._follow(name, work, tables)
        taken = time.perf_counter() - started
        files = [path for path in self.out.rglob("*") if path.is_file()]
        parts = [path.stat().st_size for path in files if path.parent.name == FOLDER]
        self.sizes = {
            "photo_bytes": self.photo_bytes,
            "mask_bytes": statistics.mean(path.stat().st_size for path in files if path.parent.name != FOLDER),
            "manifest_bytes_a_photo": sum(parts) / self.photos,
        }
        return self.photos / taken

    def _follow(self, name: str, work: Work, tables: Iterator[pa.Table]) -> None:
        seen, first = 0, 0
        start = last = time.perf_counter()
        for rows in recorded(tables, Manifest(work.listing.out, work.schema)):
            seen += len(rows)
            last = time.perf_counter()
            if not first and seen >= self.photos / 10:
                first, start = seen, last
            if name == "ray" and seen * 4 % self.photos < len(rows):
                used = [resident(process) for process in workers()]
                self.memory.append({"photos": seen, "driver_mb": resident(), "worker_mb": max(used, default=0.0)})
        assert seen == self.photos
        self.steady[name].append((seen - first) / (last - start))


def run() -> None:
    """Measures, prints, writes."""
    parser = arguments(__doc__)
    parser.add_argument("--photos", type=int, default=2000)
    options = parser.parse_args()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # as nice as the plain mode
    import ray

    ray.init("local", num_cpus=core_count(), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as scratch:
        contest = Contest(Path(scratch), options.photos)
        contenders = {"plain": contest.plain, **{name: partial(contest.stored, name) for name in ("ray", "here")}}
        rates = take_turns(contenders, options.turns)
    ray.shutdown()
    plain = statistics.median(rates["plain"])
    result: dict[str, Any] = {
        "kind": "benchmark",
        "what": "a folder of photos to masks: as a folder, by Ray Data on the same cores, and by its function alone",
        "command": "python benchmarks/cluster_predict.py",
        "environment": environment(device="cpu", precision="as listed", threads=core_count())
        | {"ray": ray.__version__},
        "turns": options.turns,
        "photos": options.photos,
        "model": DEFAULT,
        "runtime": chosen_runtime(options.photos),
        "photos_per_second": {name: statistics.median(found) for name, found in rates.items()},
        "of_plain": {name: ratio(rates[name], rates["plain"]) for name in ("ray", "here")},
        "steady_of_plain": {name: ratio(found, rates["plain"]) for name, found in contest.steady.items()},
        "steady_photos_per_second": {name: statistics.median(found) for name, found in contest.steady.items()},
        "start_seconds": statistics.median(
            contest.photos / whole - contest.photos / steady
            for whole, steady in zip(rates["ray"], contest.steady["ray"], strict=True)
        ),
        "other_cores": statistics.median(contest.others),
        **contest.sizes,
        "memory": contest.memory,
    }
    print(f"plain {plain:.1f} photos a second; Ray {result['of_plain']['ray']}, steady {result['steady_of_plain']}")
    if options.out is not None:
        write_json(options.out, result)


if __name__ == "__main__":
    main(run)
