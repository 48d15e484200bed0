"""SIGKILL at random moments and before each file operation: what is done again ends as if nothing had happened."""

import hashlib
import json
import os
import random
import shutil
from multiprocessing import forkserver
from pathlib import Path

import pytest
from filelock import FileLock

from petseg.data.synthetic import make_pets
from petseg.storage import UNFINISHED
from tests.data.test_download import BODY, Server
from tests.killed import do

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes, which Windows has not")
MANY = int(os.environ.get("PETSEG_KILLS", "1"))  # times as many kills, for a long run
CASES = {  # job -> kills before file operations, kills at random moments, files that it writes
    "train": (8, 8, {"best.safetensors", "last.safetensors", "resume.safetensors", "metrics.jsonl"}),
    "score": (3, 0, {"report.html", "evaluations/val.json", "evaluations/val.images.json"}),
    "compare": (3, 0, {"comparison.json", "report.html", "runs/unet/best.safetensors"}),
    "prepare": (10, 0, set()),
    "predict": (4, 2, {"beagle_1.mask.png", "beagle_1.cutout.png", "beagle_1.overlay.png"}),
}


@pytest.fixture(scope="module", autouse=True)
def own_server():
    """Ends a server that other tests of this process started: it lacks what `tests.killed` has imported."""
    forkserver._forkserver._stop()


@pytest.fixture(scope="module")
def few_pets(tmp_path_factory):
    return make_pets(tmp_path_factory.mktemp("few"), per_breed=4, breeds=4, size=32)


@pytest.fixture(scope="module")
def trained(few_pets, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    whole(do("train", run, few_pets, False))
    shutil.copy(Path(__file__).parents[1] / "results" / "seed" / "comparison.json", run)
    return run


def content(folder):
    """Returns file -> digest of what must not depend on kills: without times, locks and environments."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name.endswith((".lock", "environment.json")):
            continue
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = json.dumps([{key: row[key] for key in row if "seconds" not in key} for row in rows])
        elif path.name == "comparison.json":
            found[name] = json.dumps([model["evaluations"] for model in json.loads(path.read_text())["models"]])
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def chosen(operations, number):
    """Returns file operations to kill before: all of them, or this many, spread evenly, the first and last included."""
    if operations <= number * MANY:
        return list(range(1, operations + 1))
    return sorted({1 + round(place * (operations - 1) / (number * MANY - 1)) for place in range(number * MANY)})


def whole(ended):
    assert (ended["signal"], ended["error"]) == (0, ""), ended
    return ended


@pytest.mark.parametrize("job", CASES)
def test_a_killed_job_is_done_again_to_the_same_bytes(job, few_pets, trained, tmp_path, tried):
    at_operations, at_random, files = CASES[job]

    def begun(name):
        return shutil.copytree(trained, tmp_path / name) if job == "score" else tmp_path / name

    def found(out):
        out = out / "prepared" if job == "prepare" else out
        assert not [path for path in out.rglob("*") if UNFINISHED.fullmatch(path.name) or ".tmp" in path.name]
        written = content(out)
        if job == "compare":  # it shows latencies
            assert (out / "report.html").read_text().endswith("</html>")
            written["report.html"] = ""
        return written

    def hit(number, **when):
        out = begun(f"killed-{number}")
        killed = do(job, out, few_pets, False, **when)["signal"] == 9
        whole(do(job, out, few_pets, True))
        assert found(out) == wanted, when
        return killed

    undisturbed, again = (whole(do(job, begun(name), few_pets, False)) for name in ("whole", "again"))
    wanted = found(tmp_path / "whole")
    assert wanted
    assert files <= set(wanted)
    assert job != "predict" or len(wanted) == 3 * len(list((few_pets / "images").glob("*.jpg")))
    kills = chosen(undisturbed["operations"], at_operations)
    assert all(hit(at, at=at) for at in kills)
    seconds = min(undisturbed["seconds"], again["seconds"])  # the first may have filled caches
    draw, died, tries = random.Random(8), 0, 0
    while died < at_random * MANY:  # a job that was over before its moment does not count
        tries += 1
        assert tries < 100 * MANY, "no kill comes in time"
        died += hit(f"random-{tries}", after=draw.uniform(0.01, 0.95) * seconds)
    tried(len(kills) + died)


def test_a_run_killed_again_and_again_ends_the_same(few_pets, trained, tmp_path, tried):
    died = [do("train", tmp_path / "run", few_pets, True, at=at)["signal"] == 9 for at in range(1, 10)]
    whole(do("train", tmp_path / "run", few_pets, True))
    assert content(tmp_path / "run") == {name: it for name, it in content(trained).items() if name != "comparison.json"}
    tried(sum(died))


def test_a_killed_download_goes_on_where_it_was(tmp_path, tried):
    archive = (len(BODY), hashlib.sha256(BODY).hexdigest())
    draw, died, resumed = random.Random(8), 0, 0
    with Server() as server:
        # the first job of a session also loads what later ones share
        seconds = min(do("download", tmp_path / whose, server.url("slow"), *archive)["seconds"] for whose in "ab")
        for number in range(10 * MANY):
            folder, after = tmp_path / str(number), draw.uniform(0.1, 0.7) * seconds
            died += do("download", folder, server.url("slow"), *archive, after=after)["signal"] == 9
            whole(do("download", folder, server.url("good"), *archive))
            resumed += server.seen[-1][1] is not None
            assert (folder / "pets.tar.gz").read_bytes() == BODY
            assert [path.name for path in folder.iterdir()] == ["pets.tar.gz"]
    assert died > 5 * MANY
    assert resumed > 3 * MANY  # earlier kills leave no byte to go on from
    tried(died)


def test_a_killed_process_leaves_no_lock_held(few_pets, tmp_path, tried):
    assert do("train", tmp_path / "run", few_pets, False, at=6)["signal"] == 9
    with FileLock(tmp_path / "run" / ".lock", timeout=0):
        tried()
