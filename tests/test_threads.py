"""The number of threads, and that those that wait do not spin."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from petseg import threads
from tests.conftest import refused


def test_the_option_goes_before_the_variable_and_a_wrong_one_is_named(monkeypatch):
    monkeypatch.delenv("PETSEG_THREADS", raising=False)
    assert threads.thread_count() is None
    monkeypatch.setenv("PETSEG_THREADS", "3")
    assert (threads.thread_count(), threads.thread_count(2)) == (3, 2)
    for named in ("0", "two", "-1", "1.5", "1025", "9" * 20):
        monkeypatch.setenv("PETSEG_THREADS", named)
        refused(f"PETSEG_THREADS is '{named}'; wanted a whole number above zero", threads.thread_count)


@pytest.mark.parametrize(("busy", "free"), [(0.0, 4), (0.4, 4), (1.1, 3), (3.0, 1), (9.0, 1), (None, 2)])
def test_free_cores_are_those_that_were_idle(monkeypatch, busy, free):
    """`busy` is what other processes keep busy of four cores; without /proc it is the load of the last minute."""
    clock = iter([100.0, 101.0])
    worked = iter([None] if busy is None else [50.0, 50.0 + busy])
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "core_count", lambda: 4)
    monkeypatch.setattr(threads.os, "getloadavg", lambda: (2.2, 0, 0))
    monkeypatch.setattr(threads.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(threads, "_busy_seconds", lambda: next(worked))
    assert threads.free_cores(0) == free


def test_what_goes_on_takes_the_threads_it_began_with(tmp_path):
    assert threads.recorded_threads(tmp_path) is None
    (tmp_path / "environment.json").write_text("damaged")
    run = tmp_path / "runs" / "unet"
    run.mkdir(parents=True)
    (run / "environment.json").write_text('{"threads": 7}')
    assert threads.recorded_threads(tmp_path) == threads.recorded_threads(run) == 7


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux counts there")
def test_this_machine_counts_its_work():
    before = threads._busy_seconds()
    sum(range(10_000_000))
    assert threads._busy_seconds() > before


def test_the_command_line_does_not_spin_unless_the_user_says_so():
    code = "import os, sys; sys.argv = ['petseg', '--version']; from petseg.cli import main\n"
    code += "try: main()\nfinally: print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    clean = {name: value for name, value in os.environ.items() if name not in threads.PATIENCE}
    for extra, wanted in (({}, "10000 PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE")):
        done = subprocess.run([sys.executable, "-c", code], env=clean | extra, stdout=subprocess.PIPE, text=True)
        assert done.stdout.splitlines()[-1] == wanted


def test_threads_follow_the_cores_that_others_leave(monkeypatch, capsys):
    now, busy, taken = [0.0], [0.0], []
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(threads.OtherWork, "cores", lambda self: busy[0])
    monkeypatch.setattr("torch.set_num_threads", taken.append)
    follower = threads.Follower(most=4, count=4)
    monkeypatch.setattr(threads, "_follower", follower)
    for others in (0.4, 1.2, 1.2, 3.9, 9.0, None, 2.9, 2.2, 0.1):
        before, busy[0] = len(taken), others
        now[0] += 1.9
        threads.keep_pace()
        assert len(taken) == before, "it looks once in two seconds"
        now[0] += 0.2
        threads.keep_pace()
    # 2.9 leave a second core too seldom, 2.2 leave it
    assert taken == [3, 1, 2, 4]
    assert capsys.readouterr().err == "other programs are busy: 3 of 4 threads until they end\n"
    threads.follow(None)
    now[0], busy[0] = 100.0, 3.0
    threads.keep_pace()
    assert len(taken) == 4
