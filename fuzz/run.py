"""Fuzzes every reader of foreign bytes and counts the cases, resumable: `python fuzz/run.py`.

Each target (fuzz/targets.py) runs under libFuzzer in a process of its own, in chunks: no traceback, no crash, no case
over 10 seconds, no memory over 1.5 GB. After each chunk the counts are written, so that a stopped run goes on where it
was. What a target fails on is kept under fuzz/findings.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from targets import LONGEST, TARGETS  # noqa: E402

from petseg import environment as machine  # noqa: E402
from petseg import storage  # noqa: E402

CASES = {"image": 100_000}
"""Cases of a long run where not 20,000."""

SECONDS, MEGABYTES = 10, 1500
"""A case's most time, a process's most memory."""

CHUNK = 5000
MOST_FINDINGS = 5
"""After so many a target is left alone: it fails on everything."""


def main() -> int:
    """Returns the exit code: 0 nothing found, 1 something found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all unless told")
    parser.add_argument("--cases", type=int, help="of each; 100,000 of images and 20,000 of others unless told")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "reliability" / "fuzz.json")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder for corpora; delete it to start anew")
    options = parser.parse_args()
    os.nice(5)
    counts = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {"targets": {}}
    for name in options.targets or TARGETS:
        wanted = options.cases or CASES.get(name, 20_000)
        corpus = _corpus(name, options.work)
        found = counts["targets"].setdefault(name, {"cases": 0, "seconds": 0.0, "findings": []})
        while found["cases"] < wanted and len(found["findings"]) < MOST_FINDINGS:
            chunk = min(CHUNK, wanted - found["cases"])
            _add(found, _fuzz(name, corpus, chunk, seed=1 + found["cases"]))
            counts["seconds_a_case"], counts["megabytes"] = SECONDS, MEGABYTES
            counts["environment"] = {
                **machine.environment(device="cpu", precision="fp32", threads=1),
                **{package: version(package) for package in ("atheris", "pillow", "safetensors", "onnxruntime")},
            }
            storage.write_json(options.out, counts)
            _tell(name, found, wanted)
        print(flush=True)
    return int(any(found["findings"] for found in counts["targets"].values()))


def _corpus(name: str, work: Path) -> Path:
    corpus = work / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (corpus / f"seed-{number:03}").write_bytes(seed)
    return corpus


def _fuzz(name: str, corpus: Path, cases: int, seed: int) -> dict[str, Any]:
    """Returns what one process did: cases, those read rather than refused, time, memory, findings."""
    findings = HERE / "findings"
    findings.mkdir(exist_ok=True)
    started = time.monotonic()
    read = corpus.with_suffix(".read")
    read.write_bytes(bytes(8))
    limits = [f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}", f"-max_len={LONGEST}", f"-runs={cases}"]
    kept = [f"-artifact_prefix={findings}/{name}-", f"-seed={seed}", "-print_final_stats=1"]
    memory = Path("/dev/shm")  # noqa: S108 - a name of its own is made below it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        done = subprocess.run(
            [sys.executable, str(HERE / "targets.py"), name, str(corpus), *limits, *kept],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PETSEG_FUZZ_READ": str(read),
                "PETSEG_FUZZ_SCRATCH": scratch,  # libFuzzer ends its process without cleaning up
            },
            check=False,
        )
    told = done.stderr.decode(errors="replace")
    stats = {key: int(value) for key, value in re.findall(r"stat::(\w+):\s+(\d+)", told)}
    found = re.findall(r"Test unit written to (\S+)", told)
    if done.returncode and not found:
        found = [f"exit code {done.returncode}"]
        print(told[-3000:], file=sys.stderr)
    if done.returncode:
        (findings / f"{name}-{seed}.txt").write_text(told[-20_000:], encoding="utf-8")
    return {
        "cases": stats.get("number_of_executed_units", 0),
        "read": int.from_bytes(read.read_bytes(), sys.byteorder),
        "seconds": time.monotonic() - started,
        "slowest_seconds": stats.get("slowest_unit_time_sec", 0),
        "peak_megabytes": stats.get("peak_rss_mb", 0),
        "findings": [Path(path).name for path in found],
    }


def _add(found: dict[str, Any], chunk: dict[str, Any]) -> None:
    found["cases"] += chunk["cases"]
    found["read"] = found.get("read", 0) + chunk["read"]
    found["seconds"] = round(found["seconds"] + chunk["seconds"], 1)
    found["findings"] += chunk["findings"]
    for key in ("slowest_seconds", "peak_megabytes"):
        found[key] = max(found.get(key, 0), chunk[key])


def _tell(name: str, found: dict[str, Any], wanted: int) -> None:
    left = (wanted - found["cases"]) * found["seconds"] / max(1, found["cases"])
    print(
        f"\r{name}: {found['cases']:,} of {wanted:,} cases, {found['read']:,} read, {len(found['findings'])} findings, "
        f"{left / 60:.0f} minutes left   ",
        end="",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
