"""The executor: plain results, failures that stay alone, and no process that outlives its caller."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from petseg.errors import PetsegError
from petseg.experiments.executor import LocalProcesses
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


def test_an_exception_ends_the_jobs(tmp_path):
    with pytest.raises(KeyboardInterrupt), LocalProcesses(1) as executor:  # noqa: PT012
        running, waiting = (executor.submit(sleep, tmp_path / name) for name in ("running", "waiting"))
        wait_for(tmp_path / "running")
        raise KeyboardInterrupt
    assert multiprocessing.active_children() == []
    assert isinstance(running.exception(), PetsegError)
    assert waiting.cancelled()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills")
def test_a_job_ends_with_its_caller(tmp_path):
    code = (
        "from pathlib import Path\n"
        "from petseg.experiments.executor import LocalProcesses\n"
        "from tests.experiments.test_executor import sleep\n"
        "if __name__ == '__main__':\n"
        f"    LocalProcesses(1).submit(sleep, Path({str(tmp_path / 'started')!r})).result()\n"
    )
    script = tmp_path / "caller.py"
    script.write_text(code)
    root = str(Path(__file__).parents[2])
    caller = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": root})
    job = wait_for(tmp_path / "started")
    caller.kill()
    caller.wait()
    for _ in range(500):
        try:
            os.kill(job, 0)
        except ProcessLookupError:
            return
        if "Z" in (Path(f"/proc/{job}/stat").read_text().split() if Path(f"/proc/{job}").exists() else "Z"):
            return  # ended; nobody has asked for its exit status yet
        time.sleep(0.02)
    pytest.fail("the job outlived its caller")
