"""Jobs in processes that are killed: forked from one that has everything imported, so that a kill costs no start."""

import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # optimisers ask for it, a second of imports
import torch._inductor.config

import petseg.experiments.compare
import petseg.training.loop
from petseg.cli import app
from petseg.config import load_recipe
from petseg.data import cache
from petseg.data.download import Archive
from petseg.data.download import download as download_archive
from petseg.data.sources import open_dataset
from petseg.evaluation.evaluate import evaluate_run
from petseg.report import write_report
from petseg.training.batches import load_splits
from petseg.training.device import choose_hardware

torch.set_num_threads(1)

CPU = choose_hardware("fp32", "cpu")
NARROW = ("data.size=16", "model.base_channels=2", "model.depth=2", "train.precision=fp32")
SMALL = load_recipe("default", [*NARROW, "epochs=3", "batch_size=4", "ema=0.9", "deterministic=true"])
OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


def do(job: str, folder: Path, *arguments: Any, at: int = 0, after: float | None = None) -> dict[str, Any]:
    """Returns how a job ended: `signal` (0 for none), `seconds`, and of a whole one `operations` and `error`.

    Args:
        job: a function of this module.
        folder: where it writes, and where its file operations are counted: a file opened to be written, a rename, a
            removal. Its cache is the folder "cache" beside it, but for the job "prepare".
        arguments: the job's own.
        at: the operation (from 1) just before which it is killed; a file that it opens to be written anew is left half
            as long. 0: none.
        after: the seconds after which it is killed. None: never.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.killed"])
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(job, folder, arguments, at, writing))
    started = time.perf_counter()
    process.start()
    writing.close()
    if not reading.poll(after):
        process.kill()
    process.join()
    ended = {"signal": -process.exitcode, "seconds": time.perf_counter() - started}
    with suppress(EOFError):
        ended |= reading.recv()
    reading.close()
    process.close()
    return ended


def _child(job: str, folder: Path, arguments: tuple[Any, ...], at: int, answer: Connection) -> None:
    count, failure = 0, ""

    def operation(event: str, given: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in OPERATIONS or not str(given[0]).startswith(str(folder)):
            return
        if event == "open" and not given[2] & (os.O_WRONLY | os.O_RDWR):
            return
        count += 1
        if count == at:
            if event == "open" and given[2] & os.O_TRUNC and Path(given[0]).is_file():
                os.truncate(given[0], Path(given[0]).stat().st_size // 2)  # killed a little later
            os.kill(os.getpid(), signal.SIGKILL)

    os.environ["PETSEG_CACHE"] = str(folder if job == "prepare" else folder.parent / "cache")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what jobs print
    os.dup2(1, 2)
    sys.addaudithook(operation)
    try:
        globals()[job](folder, *arguments)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    answer.send({"operations": count, "error": failure})


def prepare(folder: Path, pets: Path, resume: bool = False) -> cache.Prepared:
    return cache.prepare(open_dataset(pets), 16)


def train(folder: Path, pets: Path, resume: bool) -> None:
    execution = petseg.training.loop.Execution(hardware=CPU, resume=resume)
    petseg.training.loop.train(SMALL.for_model("unet"), prepare(folder, pets), folder, execution)


def score(folder: Path, pets: Path, resume: bool) -> None:
    """A trained run resumed, which removes what a kill left; its scores; a report."""
    train(folder, pets, resume=True)
    splits = load_splits(prepare(folder, pets), SMALL.for_model("unet"), CPU.device)
    evaluate_run(folder, CPU, splits, "val")
    write_report(folder / "comparison.json")


def compare(folder: Path, pets: Path, resume: bool) -> None:
    plan = petseg.experiments.compare.Plan(SMALL, CPU, command="", resume=resume, synthetic=True)
    petseg.experiments.compare.compare(plan, prepare(folder, pets), folder)
    write_report(folder / "comparison.json")


def predict(folder: Path, pets: Path, resume: bool) -> None:
    words = ["predict", str(pets / "images"), "--out", str(folder), "--resume", "--model", "unet_small"]
    app(words, standalone_mode=False)


def download(folder: Path, url: str, size: int, sha256: str) -> None:
    download_archive(Archive("pets.tar.gz", size, sha256, (url,)), folder, timeout=20)
