"""The executor: plain results, failures that stay alone, and no process that outlives its caller."""

import importlib
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from petseg.cluster import connect
from petseg.errors import PetsegError
from petseg.experiments import ray_tasks
from petseg.experiments.executor import Input, LocalProcesses, Workplace
from petseg.experiments.ray_tasks import RayTasks, run_job
from tests.cli.test_commands import one_line_error, petseg
from tests.clusters import NODE, cluster_of
from tests.conftest import refused


def where(text):
    return text, os.getpid()


def fail():
    raise PetsegError("a mistake")


def sleep(started):
    started.write_text(str(os.getpid()))
    time.sleep(600)


def test_each_job_has_a_process_of_its_own_and_fails_alone():
    with LocalProcesses(2) as executor:
        first, second = executor.submit(where, "a"), executor.submit(where, text="b")
        failed, died = executor.submit(fail), executor.submit(os._exit, 3)
        assert [first.result()[0], second.result()[0]] == ["a", "b"]
        assert len({os.getpid(), first.result()[1], second.result()[1]}) == 3
        refused(r"^a mistake$", failed.result)
        refused(r"its process was ended from outside \(out of memory\?\)", died.result)
    assert multiprocessing.active_children() == []


def wait_for(path):
    while not path.is_file() or not path.read_text():
        time.sleep(0.02)
    return int(path.read_text())


def ended(process):
    """Returns whether a process has ended, within half a minute."""
    for _ in range(1500):
        stat = Path(f"/proc/{process}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True  # nobody has asked for a Z's exit status yet
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def cluster():
    with cluster_of({}) as started:
        yield started


@pytest.fixture(params=["LocalProcesses", "RayTasks"])
def executor(request):
    """Returns Python that makes an executor of two jobs at a time."""
    if request.param == "LocalProcesses":
        return "LocalProcesses(2)"
    return f"RayTasks({request.getfixturevalue('cluster').address!r})"


def made(code):
    module = importlib.import_module("petseg.experiments." + {"L": "executor", "R": "ray_tasks"}[code[0]])
    return eval(code, vars(module))


def test_an_exception_ends_the_jobs(executor, tmp_path):
    with pytest.raises(KeyboardInterrupt), made(executor) as started:  # noqa: PT012
        jobs = {tmp_path / name: started.submit(sleep, tmp_path / name) for name in ("one", "two", "three")}
        while len(begun := list(tmp_path.iterdir())) < 2:  # which two is not promised
            time.sleep(0.02)
        processes = [wait_for(path) for path in begun]
        raise KeyboardInterrupt
    assert all(map(ended, processes))
    first, second = (jobs.pop(path) for path in begun)
    assert isinstance(first.exception(), PetsegError)
    assert isinstance(second.exception(), PetsegError)
    ((left, waiting),) = jobs.items()
    assert waiting.cancelled() or isinstance(waiting.exception(), PetsegError)
    assert not left.exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kills, and looks into /proc")
def test_a_job_ends_with_its_caller(executor, tmp_path):
    code = (
        "from pathlib import Path\n"
        f"from petseg.experiments.{'executor' if executor[0] == 'L' else 'ray_tasks'} import *\n"
        "from tests.experiments.test_executor import sleep\n"
        "if __name__ == '__main__':\n"
        f"    {executor}.submit(sleep, Path({str(tmp_path / 'started')!r})).result()\n"
    )
    script = tmp_path / "caller.py"
    script.write_text(code)
    root = str(Path(__file__).parents[2])
    with subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": root}) as caller:
        job = wait_for(tmp_path / "started")
        caller.kill()
    assert ended(job)


def work_in(place, data, tries):
    """Goes on in a folder; ends its process for as long as it was called fewer times than `tries`."""
    count = int((place / "count").read_text()) + 1 if (place / "count").is_file() else 1
    asked = Path(tries)
    asked.write_text(asked.read_text() + "." if asked.is_file() else ".")
    if len(asked.read_text()) < 3:
        os._exit(1)
    assert [path.name for path in sorted(data.rglob("*")) if path.is_file()] == ["a.txt", "b.txt"]
    (place / "evaluations").mkdir()
    (place / "evaluations" / "val.json").write_text("{}")
    (place / "count").write_text(str(count))
    (place / "config.json").unlink(missing_ok=True)
    return (data / "a.txt").read_text()


def test_files_travel_and_a_dead_worker_s_job_is_tried_again(cluster, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(ray_tasks, "BLOCK", 4096)  # several to a folder
    data, run = tmp_path / "data", tmp_path / "run"
    (data / "deep").mkdir(parents=True)
    (data / "a.txt").write_text("words" * 3000)
    (data / "deep" / "b.txt").write_text("b" * 9000)
    run.mkdir()
    (run / "count").write_text("1")
    (run / "config.json").write_text("{}")
    with made(f"RayTasks({cluster.address!r})") as executor:
        assert (executor.count, executor.threads) == (2, 1)
        place, given = Workplace(run), Input(data)
        assert executor.submit(work_in, place, given, str(tmp_path / "tries")).result() == "words" * 3000
        assert sorted(path.name for path in run.rglob("*") if path.is_file()) == [".lock", "count", "val.json"]
        assert (run / "count").read_text() == "2", "what died left nothing"
        assert [record.message.partition(" is")[0] for record in caplog.records] == ["petseg: warning: run"] * 2
        # a mistake is not tried again, and names the machine
        refused(r"^machine [\d.]+: a mistake$", executor.submit(fail).result)
        refused(r"^its worker died 4 times, the last time of WorkerCrashedError", executor.submit(os._exit, 1).result)


def test_a_cluster_that_cannot_be_joined_is_one_line(cluster):
    ray = pytest.importorskip("ray")
    for address, match in {
        "ray://": r"^--ray ray://: is no address of a Ray cluster; wanted auto, HOST:6379 or ray://HOST:10001",
        "localhost": r"^--ray localhost: is no address",
        "localhost:1": r"^--ray localhost:1: no Ray cluster answers there \(.*refused.*\); start one with `ray start",
        "ray://localhost:1": r"no Ray cluster answers there",
    }.items():
        refused(match, RayTasks, address)
    from ray._private.worker import global_worker
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    connect(cluster.address)
    key = {"key": b"CLUSTER_METADATA", "namespace": b"cluster"}
    known = _internal_kv_get(**key)
    _internal_kv_put(value=known.replace(b'"ray_version": "', b'"ray_version": "0.'), overwrite=True, **key)
    kept = global_worker.gcs_client
    ray.shutdown()
    match = (
        r"the cluster cannot be joined \(Version mismatch: The cluster was started with: Ray: 0\..*install the same Ray"
    )
    refused(match, RayTasks, cluster.address)
    kept.internal_kv_put(key["key"], known, True, key["namespace"])


def use_torch():
    import torch

    return torch.__version__


def test_a_machine_without_the_packages_is_named(cluster, tmp_path):
    refused(r"^petseg is \S+ there, 0\.0\.1 here; install the same on all machines$", run_job, "0.0.1", b"", {}, {})
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2]), *filter(None, sys.path)])
    cluster.add_node(num_cpus=2, env_vars={"PYTHONPATH": path}, **NODE)
    with made(f"RayTasks({cluster.address!r}, Share(threads=2))") as executor:
        match = r"^machine [\d.]+: torch is missing there; install the same petseg\[train\] on all machines$"
        refused(match, executor.submit(use_torch).result)


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = petseg("study", "--ray", "auto", "--out", tmp_path)
    assert one_line_error(result) == "petseg: this command needs ray; pip install 'petseg[cluster]'"
    assert one_line_error(petseg("study", "--gpus", "0.5")).startswith("petseg: --gpus is of runs on a Ray cluster")
