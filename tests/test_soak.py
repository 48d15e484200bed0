"""The short form of `scripts/soak.py`: seconds instead of half hours, the same figures."""

import os
import subprocess
import sys

import pytest

from tests.conftest import scripts

soak = scripts("soak")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="figures are read from /proc")
MINUTES = 0.08


@pytest.mark.parametrize("name", soak.SOAKS)
def test_nothing_grows_in_seconds(name, tmp_path, tried):
    found = soak.SOAKS[name](MINUTES, tmp_path)
    assert soak.flat(found["growth"]), found
    assert found["done"] > 5
    assert len(found["samples"]) >= 8
    tried(found["done"])


@pytest.mark.parametrize(
    ("code", "grows"),
    [
        ("kept.append(b'x' * 500_000)", "megabytes"),
        ("kept.append(open('/dev/null'))", "files"),
        ("kept.append(threading.Thread(target=time.sleep, args=(60,), daemon=True)); kept[-1].start()", "threads"),
        ("pass", None),
    ],
)
def test_what_grows_is_seen(code, grows):
    leak = f"import threading, time; kept = []\nprint(flush=True)\nwhile True: time.sleep(.01); {code}"
    command = [sys.executable, "-c", leak]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            growth = soak.watch(process.pid, 0.025, lambda: 1)["growth"]
        finally:
            process.kill()
    assert soak.flat(growth) == (grows is None), growth
    if grows:
        assert growth[grows] > 10, growth
