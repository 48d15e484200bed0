"""Jobs in processes that are killed: forked from one that has everything imported, so that a kill costs no start."""

import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

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


def do(job, folder, *arguments, at=0, after=None):
    """Returns how a job of this module ended: `signal` (0: none), `seconds`, and of a whole one `operations`, `error`.

    It is killed just before file operation `at` (from 1; a file that it opens to be written anew is left half as long),
    or `after` seconds later. Operations are files opened to be written, renames and removals below `folder`. Its cache
    is the folder "cache" beside that, but for the job "prepare".
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


def _child(job, folder, arguments, at, answer):
    count, failure = 0, ""

    def operation(event, given):
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


def prepare(folder, pets, resume=False):
    return cache.prepare(open_dataset(pets), 16)


def train(folder, pets, resume):
    execution = petseg.training.loop.Execution(hardware=CPU, resume=resume)
    petseg.training.loop.train(SMALL.for_model("unet"), prepare(folder, pets), folder, execution)


def score(folder, pets, resume):
    """A trained run resumed, which removes what a kill left; its scores; a report."""
    train(folder, pets, resume=True)
    splits = load_splits(prepare(folder, pets), SMALL.for_model("unet"), CPU.device)
    evaluate_run(folder, CPU, splits, "val")
    write_report(folder / "comparison.json")


def compare(folder, pets, resume):
    plan = petseg.experiments.compare.Plan(SMALL, CPU, command="", resume=resume, synthetic=True)
    petseg.experiments.compare.compare(plan, prepare(folder, pets), folder)
    write_report(folder / "comparison.json")


def predict(folder, pets, resume):
    words = ["predict", str(pets / "images"), "--out", str(folder), "--resume", "--model", "unet_small"]
    app(words, standalone_mode=False)


def download(folder, url, size, sha256):
    download_archive(Archive("pets.tar.gz", size, sha256, (url,)), folder, timeout=20)
