"""What tests share: one thread, a small synthetic dataset, its prepared cache."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest
import torch

from petseg.config import load_recipe
from petseg.data.cache import prepare
from petseg.data.geometry import Geometry
from petseg.data.sources import open_dataset
from petseg.data.synthetic import make_pets
from petseg.environment import environment
from petseg.errors import PetsegError
from petseg.storage import write_json
from petseg.training.device import choose_hardware
from petseg.training.loop import Execution, train

os.environ["PETSEG_RUNTIME"] = "onnxruntime"  # the same answers on every machine, whatever is faster there
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started by a script in the background: children would too
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # 60 steps of a small model took 3 s with one thread and 27 s with two
TINY = (
    "data.size=32",
    "model.base_channels=4",
    "model.depth=2",
    "train.epochs=2",
    "train.batch_size=8",
    "train.precision=fp32",
)
CPU = choose_hardware("fp32", "cpu")
# half a minute or more each
LONG = {"soak", "tutorials", "privacy", "kills", "onnx", "study", "executor", "distributed", "bulk", "own_data", "app"}


def tiny(*settings, model="unet"):
    return load_recipe("default", [*TINY, *settings]).for_model(model)


def prepare_for(config, folder):
    return prepare(open_dataset(folder, config.data), Geometry.of(config.data))


def train_on_cpu(config, prepared, run, **execution):
    return train(config, prepared, run, Execution(hardware=CPU, **execution))


def interrupted_at(step):
    def stop(done, *rest):
        if done == step:
            raise KeyboardInterrupt

    return stop


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def image_bytes(image, kind, **options):
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def refused(match, function, *arguments, **keywords):
    """Returns what a caller's mistake is answered with: one line that matches."""
    with pytest.raises(PetsegError, match=match) as caught:
        function(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FAULTS = ("kills", "disks", "damage", "fuzz", "download", "archive", "hostile", "numbers", "cache", "foreign")
"""Of files test_NAME.py; docs/reliability.md counts their tests."""


def scripts(name):
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("scripts", "benchmarks"):
            patch.syspath_prepend(str(Path(__file__).parents[1] / folder))
        return importlib.import_module(name)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PETSEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="session")
def pets_folder(tmp_path_factory):
    return make_pets(tmp_path_factory.mktemp("pets"), per_breed=8, breeds=6, size=64)


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def runtime(request):
    """What predicts where a test names nothing; a module that uses it runs under each."""
    if request.param == "openvino":
        pytest.importorskip("openvino")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETSEG_RUNTIME", request.param)
        yield request.param


@pytest.fixture
def prepared(pets_folder):
    return prepare(open_dataset(pets_folder), 32)


@pytest.fixture(scope="session")
def publish():
    """What scripts/publish.py does; it takes only official counts, so a test with others sets `publish.OFFICIAL`."""
    return scripts("publish").publish


@pytest.fixture
def tried(record_property):
    """Notes how many cases a test went through; `pytest_sessionfinish` writes the notes."""
    return lambda count=1: record_property("tried", count)


def pytest_collection_modifyitems(items):
    """The files that take long begin, so that none of them is left to one process at the end."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


def pytest_sessionfinish(session):
    """With PETSEG_TRIED, writes to that file how many cases the tests of `FAULTS`, and those it names, went through.

    A test that takes `tried` says how many; any other counts once for each of its parameters.
    """
    path = os.environ.get("PETSEG_TRIED")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not path or reporter is None:
        return
    known = json.loads(Path(path).read_text(encoding="utf-8"))["cases"] if Path(path).is_file() else {}
    cases = Counter[str]()
    for report in reporter.stats.get("passed", []):
        test = report.nodeid.partition("[")[0].removeprefix("tests/")
        if report.when == "call" and (test in known or Path(test.partition("::")[0]).stem[5:] in FAULTS):
            cases[test] += dict(report.user_properties).get("tried", 1)
    here = environment(device="cpu", precision="fp32", threads=1)
    kept = {name: here[name] for name in ("commit", "platform", "python", "torch")}
    write_json(Path(path), {**kept, "cases": dict(sorted(cases.items()))})


def chromium():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


def pytest_terminal_summary(terminalreporter):
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    if count := sum("NO BROWSER:" in reason for reason in skipped):
        message = f"NO BROWSER: {count} tests of the page were SKIPPED; install Chromium to run them"
        terminalreporter.write_line(message, red=True)
    if any("NO MODELS:" in reason for reason in skipped):
        message = "NO MODELS: tests of other libraries' networks were SKIPPED; pip install 'petseg[models]' to run them"
        terminalreporter.write_line(message, red=True)


class Served:
    def __init__(self, *arguments):
        command = [sys.executable, "-m", "petseg", "serve", "--port", "0", "--no-open", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)
        self.url = self.process.stdout.readline().partition(" ")[0]
        assert self.url.startswith("http://"), self.process.communicate()[1]
        self.port = int(self.url.rpartition(":")[2])

    def stop(self, by=signal.SIGINT):
        """Returns what it printed after its address, and on stderr; it must stop on Ctrl-C with exit code 0."""
        self.process.send_signal(by)
        output = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, output
        return output


@pytest.fixture(scope="session")
def served():
    server = Served()
    yield server
    assert server.stop() == ("", ""), "nothing of any request is logged"
