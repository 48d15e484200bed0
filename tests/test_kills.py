"""SIGKILL at random moments and before each file operation: what is done again ends as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from petseg.data.synthetic import make_pets
from petseg.storage import UNFINISHED
from tests.data.test_download import BODY, Server
from tests.killed import Killed

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes, which Windows has not")

MANY = int(os.environ.get("PETSEG_KILLS", "1"))
"""Times as many random kills, for a long run."""


@pytest.fixture(scope="module")
def killed() -> Iterator[Killed]:
    with Killed() as process:
        yield process


@pytest.fixture(scope="module")
def few_pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pets(tmp_path_factory.mktemp("few"), per_breed=4, breeds=4, size=32)


def content(folder: Path) -> dict[str, str]:
    """Returns the digest of each file that must not depend on kills; times and locks are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name.endswith((".lock", "environment.json")):
            continue
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            kept = [{key: row[key] for key in row if "seconds" not in key} for row in rows]
            found[name] = json.dumps(kept)
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def halves(folder: Path) -> list[Path]:
    """Returns what an interrupted write left."""
    return [path for path in folder.rglob("*") if UNFINISHED.fullmatch(path.name) or ".tmp" in path.name]


def chosen(operations: int, number: int) -> list[int]:
    """Returns file operations to kill before: all of them, or this many, spread evenly, the first and last included."""
    if operations <= number * MANY:
        return list(range(1, operations + 1))
    return sorted({1 + round(place * (operations - 1) / (number * MANY - 1)) for place in range(number * MANY)})


def whole(ended: dict[str, object]) -> dict[str, object]:
    assert (ended["signal"], ended["error"]) == (0, ""), ended
    return ended


def test_a_killed_training_resumes_to_the_bit(killed, few_pets, tmp_path, tried):
    undisturbed = whole(killed.do("train", tmp_path / "whole", data=str(few_pets), resume=False))
    wanted = content(tmp_path / "whole")
    assert {"best.safetensors", "last.safetensors", "resume.safetensors", "metrics.jsonl"} <= set(wanted)
    draw, died, tries = random.Random(8), 0, 0

    def kill_and_resume(**when: float) -> bool:
        run = tmp_path / f"killed-{tries}"
        hit = killed.do("train", run, data=str(few_pets), resume=False, **when)["signal"] == 9
        whole(killed.do("train", run, data=str(few_pets), resume=True))
        assert content(run) == wanted, when
        assert halves(run) == []
        return hit

    again = killed.do("train", tmp_path / "again", data=str(few_pets), resume=False)
    seconds = min(undisturbed["seconds"], again["seconds"])  # the first may have filled caches
    while died < 8 * MANY:  # a run that was over before its moment does not count
        tries += 1
        assert tries < 100 * MANY, "no kill comes in time"
        died += kill_and_resume(after=draw.uniform(0.01, 0.95) * seconds)
    for at in chosen(undisturbed["operations"], 8):
        tries += 1
        assert kill_and_resume(at=at)
        died += 1
    tried(died)


def test_a_run_killed_again_and_again_ends_the_same(killed, few_pets, tmp_path, tried):
    undisturbed = whole(killed.do("train", tmp_path / "whole", data=str(few_pets), resume=False))
    died = 0
    for at in range(1, undisturbed["operations"]):
        died += killed.do("train", tmp_path / "run", data=str(few_pets), resume=True, at=at)["signal"] == 9
        if at > 8:
            break
    whole(killed.do("train", tmp_path / "run", data=str(few_pets), resume=True))
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    tried(died)


def test_a_killed_evaluation_or_report_is_made_again(killed, few_pets, tmp_path, tried):
    comparison = Path(__file__).parents[1] / "results" / "seed" / "comparison.json"
    whole(killed.do("train", tmp_path / "trained", data=str(few_pets), resume=False))
    shutil.copy(comparison, tmp_path / "trained")
    shutil.copytree(tmp_path / "trained", tmp_path / "whole")
    undisturbed = whole(killed.do("score", tmp_path / "whole", data=str(few_pets)))
    wanted = content(tmp_path / "whole")
    assert {"report.html", "evaluations/val.json", "evaluations/val.images.json"} <= set(wanted)
    kills = chosen(undisturbed["operations"], 4)
    for at in kills:
        run = tmp_path / f"killed-{at}"
        shutil.copytree(tmp_path / "trained", run)
        assert killed.do("score", run, data=str(few_pets), at=at)["signal"] == 9
        whole(killed.do("train", run, data=str(few_pets), resume=True))  # cleans up what the kill left
        whole(killed.do("score", run, data=str(few_pets)))
        assert {name: digest for name, digest in content(run).items() if ".tmp" not in name} == wanted
        assert halves(run) == []
    tried(len(kills))


def test_a_killed_comparison_goes_on(killed, few_pets, tmp_path, tried):
    undisturbed = whole(killed.do("compare", tmp_path / "whole", data=str(few_pets), resume=False))
    timeless = ("comparison.json", "report.html")  # hold latencies
    wanted = {name: digest for name, digest in content(tmp_path / "whole").items() if name not in timeless}
    scores = [model["evaluations"] for model in json.loads((tmp_path / "whole/comparison.json").read_text())["models"]]
    kills = chosen(undisturbed["operations"], 4)
    for at in kills:
        out = tmp_path / f"killed-{at}"
        assert killed.do("compare", out, data=str(few_pets), resume=False, at=at)["signal"] == 9
        whole(killed.do("compare", out, data=str(few_pets), resume=True))
        assert {name: digest for name, digest in content(out).items() if name not in timeless} == wanted
        again = json.loads((out / "comparison.json").read_text())
        assert [model["evaluations"] for model in again["models"]] == scores
        assert (out / "report.html").read_text().endswith("</html>")
    tried(len(kills))


def test_a_killed_preparation_is_done_again(killed, few_pets, tmp_path, tried):
    undisturbed = whole(killed.do("prepare", tmp_path / "whole", data=str(few_pets)))
    wanted = content(tmp_path / "whole" / "prepared")
    kills = chosen(undisturbed["operations"], 10)
    for at in kills:
        cache = tmp_path / f"killed-{at}"
        assert killed.do("prepare", cache, data=str(few_pets), at=at)["signal"] == 9
        whole(killed.do("prepare", cache, data=str(few_pets)))
        assert content(cache / "prepared") == wanted, at
        assert halves(cache / "prepared") == []
    tried(len(kills))


def test_a_killed_download_goes_on_where_it_was(killed, tmp_path, tried):
    """The host sends 16 kB at a time, so that a kill comes at any byte."""
    order = {"size": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()}
    draw = random.Random(8)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            died, resumed = 0, 0
            whole_seconds = killed.do("download", tmp_path / "whole", url=server.url("slow"), **order)["seconds"]
            for number in range(10 * MANY):
                folder = tmp_path / str(number)
                after = draw.uniform(0.1, 0.7) * whole_seconds
                died += killed.do("download", folder, after=after, url=server.url("slow"), **order)["signal"] == 9
                whole(killed.do("download", folder, url=server.url("good"), **order))
                resumed += server.seen[-1][1] is not None
                assert (folder / "pets.tar.gz").read_bytes() == BODY
                assert [path.name for path in folder.iterdir()] == ["pets.tar.gz"]
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
    assert died > 5 * MANY
    assert resumed > 3 * MANY  # earlier kills leave no byte to go on from
    tried(died)


def test_a_killed_folder_prediction_resumes(killed, few_pets, tmp_path, tried):
    photos = few_pets / "images"
    undisturbed = whole(killed.do("predict", tmp_path / "whole", photos=str(photos)))
    wanted = content(tmp_path / "whole")
    assert len(wanted) == 3 * len(list(photos.glob("*.jpg")))
    draw = random.Random(8)
    moments = [("at", at) for at in chosen(undisturbed["operations"], 4)]
    moments += [("after", draw.uniform(0.1, 0.9) * undisturbed["seconds"]) for _ in range(4 * MANY)]
    died = 0
    for number, (how, when) in enumerate(moments):
        out = tmp_path / f"killed-{number}"
        died += killed.do("predict", out, photos=str(photos), **{how: when})["signal"] == 9
        whole(killed.do("predict", out, photos=str(photos)))
        assert content(out) == wanted, (how, when)
    assert died >= len(moments) - 2
    tried(died)


def test_a_killed_process_leaves_no_lock_held(killed, few_pets, tmp_path, tried):
    assert killed.do("train", tmp_path / "run", data=str(few_pets), resume=False, at=6)["signal"] == 9
    lock = FileLock(tmp_path / "run" / ".lock")
    lock.acquire(timeout=0)
    lock.release()
    tried()
