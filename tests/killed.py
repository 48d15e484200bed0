"""A process that has everything imported and forks a child a job, so that a kill costs no start of Python.

It reads jobs as lines of JSON and answers each with a line: how it ended. `at` kills the child just before its file
operation of that number (from 1) below `folder`: a file opened to be written, a rename, a removal; a file that is
opened to be written anew is left half as long. `after` kills it after that many seconds.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


class Killed:
    """The process, from the outside."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.killed"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[1],
        )

    def __enter__(self) -> Killed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)

    def do(self, job: str, folder: Path, *, at: int = 0, after: float = 0.0, **arguments: Any) -> dict[str, Any]:
        """Returns how a job ended: `signal` (0 for none), `seconds`, and of a whole one `operations` and `error`.

        Args:
            job: a function of this module.
            folder: where operations are counted.
            at: the operation before which it is killed; 0 none.
            after: the seconds after which it is killed; 0 never.
            arguments: the job's own.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {"job": job, "folder": str(folder), "at": at, "after": after, "arguments": arguments}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        ended: dict[str, Any] = json.loads(self.process.stdout.readline())
        return ended


SMALL = ("data.size=16", "model.base_channels=2", "model.depth=2", "train.deterministic=true", "train.precision=fp32")


def train(folder: str, data: str, resume: bool) -> None:
    """A deterministic run of three epochs."""
    from petseg.config import load_recipe
    from petseg.data.cache import prepare
    from petseg.data.sources import open_dataset
    from petseg.training.device import choose_hardware
    from petseg.training.loop import Execution, train

    recipe = load_recipe("default", [*SMALL, "train.epochs=3", "train.batch_size=4", "train.ema=0.9"])
    execution = Execution(hardware=choose_hardware("fp32", "cpu"), resume=resume)
    train(recipe.for_model("unet"), prepare(open_dataset(Path(data)), 16), Path(folder), execution)


def score(folder: str, data: str) -> None:
    """The scores of a trained run, and a report."""
    from petseg.data.cache import prepare
    from petseg.data.sources import open_dataset
    from petseg.evaluation.evaluate import evaluate_run
    from petseg.report import write_report
    from petseg.training.batches import load_splits
    from petseg.training.device import choose_hardware
    from petseg.training.runs import read_config

    cpu, prepared = choose_hardware("fp32", "cpu"), prepare(open_dataset(Path(data)), 16)
    evaluate_run(Path(folder), cpu, load_splits(prepared, read_config(Path(folder)), cpu.device), "val")
    write_report(Path(folder) / "comparison.json")


def compare(folder: str, data: str, resume: bool) -> None:
    """A whole comparison with its report."""
    from petseg.config import load_recipe
    from petseg.data.cache import prepare
    from petseg.data.sources import open_dataset
    from petseg.experiments.compare import Plan, compare
    from petseg.report import write_report
    from petseg.training.device import choose_hardware

    recipe = load_recipe("default", [*SMALL, "train.epochs=1", "train.batch_size=8"])
    plan = Plan(recipe, choose_hardware("fp32", "cpu"), command="", resume=resume, synthetic=True)
    compare(plan, prepare(open_dataset(Path(data)), 16), Path(folder))
    write_report(Path(folder) / "comparison.json")


def prepare(folder: str, data: str) -> None:
    """The prepared cache, in `folder`."""
    from petseg.data.cache import prepare
    from petseg.data.sources import open_dataset

    os.environ["PETSEG_CACHE"] = folder
    prepare(open_dataset(Path(data)), 16)


def download(folder: str, url: str, size: int, sha256: str) -> None:
    """One archive."""
    from petseg.data.download import Archive, download

    download(Archive("pets.tar.gz", size, sha256, (url,)), Path(folder), timeout=20)


def predict(folder: str, photos: str) -> None:
    """A folder of photos, as the command line does it."""
    from petseg.cli import app

    app(["predict", photos, "--out", folder, "--resume", "--model", "unet_small"], standalone_mode=False)


def _child(order: dict[str, Any], answer: int) -> None:
    folder, count = order["folder"], 0

    def operation(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in OPERATIONS or not str(arguments[0]).startswith(folder):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        count += 1
        if count == order["at"]:
            if event == "open" and arguments[2] & os.O_TRUNC and Path(arguments[0]).is_file():
                os.truncate(arguments[0], Path(arguments[0]).stat().st_size // 2)  # killed a little later
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(operation)
    failure = ""
    try:
        globals()[order["job"]](folder, **order["arguments"])
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    os.write(answer, json.dumps({"operations": count, "error": failure}).encode())


def main() -> None:
    """Answers until standard input ends."""
    import onnxruntime  # noqa: F401
    import torch
    import torch._dynamo  # optimisers ask for it, a second of imports
    import torch._inductor.config

    import petseg.cli
    import petseg.experiments.compare
    import petseg.report  # noqa: F401

    torch.set_num_threads(1)
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what jobs print
    os.dup2(1, 2)
    for line in sys.stdin:
        order = json.loads(line)
        reading, writing = os.pipe()
        started = time.perf_counter()
        child = os.fork()
        if not child:
            os.close(reading)
            _child(order, writing)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            if order["after"] and not select.select([pipe], [], [], order["after"])[0]:
                os.kill(child, signal.SIGKILL)  # nobody has waited for it, so the number is still its own
            answer = json.loads(pipe.read() or b"{}")
        _, status = os.waitpid(child, 0)
        ended = {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0}
        ended["seconds"] = time.perf_counter() - started
        os.write(out, json.dumps({**ended, **answer}).encode() + b"\n")


if __name__ == "__main__":
    main()
