"""The cores that a process may use: by its affinity, and by the limits of its container."""

import os
import subprocess
import sys

import pytest

from petseg import cores


@pytest.mark.parametrize(
    ("group", "limits", "count"),
    [
        ("/", {}, 4),
        ("/", {"": "max 100000"}, 4),
        ("/", {"": "250000 100000"}, 2),
        ("/", {"": "50000 100000"}, 1),
        ("/", {"": "900000 100000"}, 4),
        ("/system.slice/pets.service", {"system.slice": "300000 100000", "system.slice/pets.service": "max 100000"}, 3),
        ("/docker/not-seen-in-here", {"": "200000 100000"}, 2),
    ],
)
def test_the_cores_are_those_of_the_affinity_and_the_container(group, limits, count, monkeypatch, tmp_path):
    for name, text in limits.items():
        (tmp_path / "groups" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name / "cpu.max").write_text(f"{text}\n")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(f"0::{group}\n")
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: range(4), raising=False)
    monkeypatch.setattr(cores, "PROC", tmp_path)
    monkeypatch.setattr(cores, "CGROUPS", tmp_path / "groups")
    assert cores.core_count() == count


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone has it")
def test_serving_and_predicting_take_no_more_cores_than_the_process_may_use():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from petseg.config import ServeConfig; from petseg.predict.outputs import WORKERS\n"
    code += "print(ServeConfig().concurrent, WORKERS)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.stdout.split() == ["1", "1"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or os.cpu_count() == 1, reason="Linux has it; of two cores")
def test_a_model_takes_no_more_threads_than_the_process_may_use_cores():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from petseg.predict.segmenter import Segmenter; before = len(os.listdir('/proc/self/task'))\n"
    code += "segmenter = Segmenter('unet_small', runtime='onnxruntime')\n"
    code += "print(len(os.listdir('/proc/self/task')) - before)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.stdout.split() == ["0"]
