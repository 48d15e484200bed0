"""Jobs as tasks of a Ray cluster, without a shared disk: what a job reads and writes travels with it.

An `Input` goes into Ray's object store once, in blocks; the first job on a node unpacks it into that node's cache, and
prepares the dataset there under the same key as everywhere. The files themselves travel, not the prepared arrays, since
scores are counted at the labels' own size. A `Workplace` goes there as it is and comes back when its job ends well.
"""

import hashlib
import io
import logging
import pickle
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, TypeVar

from petseg import __version__
from petseg.cluster import connect
from petseg.data.cache import ADVICE, cache_root, locked
from petseg.errors import PetsegError, disk_errors
from petseg.experiments.executor import Input, Workplace
from petseg.experiments.study.results import DIVERGED
from petseg.memory import keep_freed_memory
from petseg.storage import new_folder, write_together
from petseg.threads import wait_without_spinning
from petseg.training import runs

T = TypeVar("T")
Files = dict[str, bytes]  # path within a folder -> content
BLOCK = 64 * 2**20  # bytes of an object in Ray's store: a dataset need not fit into a machine's memory
ENDS = (DIVERGED, "evaluations/")  # by these a run's state is told, so they are written last
MOST_TRIES = 4
MOST_JOBS = 1000  # at a time; a thread here waits for each


@dataclass(frozen=True)
class Share:
    """What each job has for itself."""

    threads: int = 1
    gpus: float = 0  # 0.25: four jobs share one


@dataclass(frozen=True)
class Shipment:
    """A file or folder as a tar stream in Ray's object store."""

    name: str
    digest: str  # SHA-256 of the stream, hex
    blocks: tuple[Any, ...]  # references of objects


class RayTasks(ThreadPoolExecutor):
    """Runs each job on a Ray cluster, as many at a time as fit; one whose worker or node dies is tried again.

    Jobs end when the `with` block ends by an exception, and when this process does. A `Workplace` is a run's folder, at
    most one a job.
    """

    def __init__(self, address: str, share: Share = Share(), most: int | None = None) -> None:
        connect(address)
        import ray

        super().__init__(MOST_JOBS)
        self.threads: int | None = share.threads
        self._share, self._most = share, most
        self._shipped: dict[Path, Shipment] = {}
        self._running: set[Any] = set()
        self._futures: set[Future[Any]] = set()
        self._ended = Event()  # by an exception in the `with` block
        # a task that ran out of memory is retried by Ray without end, whatever max_retries says above 0 (Ray 2.60)
        self._task = ray.remote(num_cpus=share.threads, num_gpus=share.gpus, max_retries=0)(run_job)
        if not self._fitting():
            logging.getLogger("petseg").warning(
                "petseg: warning: no machine of the Ray cluster has %d CPUs and %g GPUs; runs wait until one joins it",
                *(share.threads, share.gpus),
            )

    @property
    def count(self) -> int:
        """Returns how many jobs run at a time: as many as fit into the cluster now, or `most` where that is given."""
        return min(MOST_JOBS, self._most or max(1, self._fitting()))

    def _fitting(self) -> int:
        import ray

        fitting = 0
        for node in ray.nodes():
            resources = node["Resources"] if node["Alive"] else {}
            jobs = resources.get("CPU", 0) / self._share.threads
            if self._share.gpus:
                jobs = min(jobs, resources.get("GPU", 0) / self._share.gpus)
            fitting += int(jobs)
        return fitting

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Returns the future of `fn(*args)`, as `Executor.submit`."""
        assert not kwargs, "jobs take their arguments by place"
        for value in args:
            if isinstance(value, Input) and value.path not in self._shipped:
                self._shipped[value.path] = pack(value.path)
        shipments = {value.path: self._shipped[value.path] for value in args if isinstance(value, Input)}
        place = next((value.path for value in args if isinstance(value, Workplace)), None)
        future = super().submit(self._until_done, pickle.dumps((fn, args)), shipments, place)
        self._futures.add(future)
        return future

    def _until_done(self, job: bytes, shipments: dict[Path, Shipment], place: Path | None) -> Any:
        with runs.new_folder(place, resume=True) if place else nullcontext():
            given = read_files(place) if place else {}
            result, files = self._tried(place.name if place else "a job", job, shipments, given)
            if place:
                write_files(place, files, instead_of=given)
            return result

    def _tried(self, name: str, *parts: Any) -> tuple[Any, Files]:
        """Returns what `run_job` does, tried again where its worker died."""
        import ray

        reason = ""
        for _ in range(MOST_TRIES):
            if self._ended.is_set():
                raise PetsegError("it was ended with the others")
            if reason:
                logging.getLogger("petseg").warning("petseg: warning: %s is tried again: %s", name, reason)
            reference = self._task.remote(__version__, *parts)
            self._running.add(reference)
            try:
                done: tuple[Any, Files] = ray.get(reference)
                return done
            except ray.exceptions.RayTaskError as error:
                raise _mistake(error) or error from None
            except ray.exceptions.RayError as error:
                reason = f"{type(error).__name__}, {' '.join(str(error).split())[:160]}"
            finally:
                self._running.discard(reference)
        raise PetsegError(f"its worker died {MOST_TRIES} times, the last time of {reason}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        if kind is not None:
            self._ended.set()
        self.shutdown(wait=kind is None, cancel_futures=True)
        while running := {future for future in self._futures if not future.done()}:
            for reference in tuple(self._running):
                ray.cancel(reference, force=True)
            wait(running, timeout=0.1)
        ray.shutdown()


def run_job(version: str, job: bytes, shipments: dict[Path, Shipment], files: Files) -> tuple[Any, Files]:
    """Returns what a job returns, and what it left in its workplace; runs on a node of the cluster."""
    if version != __version__:
        raise PetsegError(f"petseg is {__version__} there, {version} here; install the same on all machines")
    wait_without_spinning()
    keep_freed_memory()
    fn, args = pickle.loads(job)  # noqa: S301 (of the process that started this one)
    with tempfile.TemporaryDirectory(prefix="petseg-", ignore_cleanup_errors=True) as scratch:
        here = Path(scratch) / "run"
        write_files(here, files)
        places: dict[Input | Workplace, Path] = {
            value: unpack(shipments[value.path]) for value in args if isinstance(value, Input)
        }
        places |= {value: here for value in args if isinstance(value, Workplace)}
        given = (places[value] if isinstance(value, Input | Workplace) else value for value in args)
        return fn(*given), read_files(here)


def _mistake(error: Any) -> PetsegError | None:
    """Returns a task's error in one line where the caller can do something about it."""
    cause, place = error.cause, re.search(r"\bip=([^,)\s]+)", str(error))
    node = f"machine {place[1]}" if place else "a machine"
    if isinstance(cause, PetsegError):
        return PetsegError(f"{node}: {cause}")
    if isinstance(cause, OSError) and cause.errno:
        return PetsegError(f"{node}: {cause.filename or 'a file'}: cannot be used ({cause.strerror})")
    missing = re.search(r"No module named '([\w.]+)'", str(error))
    if missing and isinstance(cause, ModuleNotFoundError | RuntimeError):  # the latter where `run_job` has no imports
        return PetsegError(f"{node}: {missing[1]} is missing there; install the same petseg[train] on all machines")
    return None


def read_files(folder: Path) -> Files:
    """Returns the files of a run's folder, but its lock."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != runs.LOCK)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write_files(folder: Path, files: Files, *, instead_of: Iterable[str] = ()) -> None:
    """Writes a folder's files, those last that say that a run has ended; then removes what it no longer has."""
    names = sorted(files, key=lambda name: (name.startswith(ENDS), name))
    write_together({folder / name: partial(Path.write_bytes, data=files[name]) for name in names})
    for name in set(instead_of) - set(files):
        (folder / name).unlink(missing_ok=True)


def pack(path: Path) -> Shipment:
    """Returns a file or a folder, links followed, in Ray's object store."""
    store = _Writer()
    with io.BufferedWriter(store, BLOCK) as stream, tarfile.open(fileobj=stream, mode="w|", dereference=True) as tar:
        tar.add(path, path.name)
    return Shipment(path.name, store.digest.hexdigest(), tuple(store.references))


def unpack(shipment: Shipment) -> Path:
    """Returns the copy of what was packed in this machine's cache, unpacked by the first that asks."""
    target = cache_root() / "received" / shipment.digest[:32]
    with locked(target), disk_errors(f"cache {target}", ADVICE):
        if not target.is_dir():
            with (
                new_folder(target) as unfinished,
                io.BufferedReader(_Reader(shipment.blocks)) as stream,
                tarfile.open(fileobj=stream, mode="r|") as tar,
            ):
                tar.extractall(unfinished, filter="data")
    return target / shipment.name


class _Writer(io.RawIOBase):
    """Puts each block that is written into Ray's object store."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.references: list[Any] = []

    def writable(self) -> bool:
        return True

    def write(self, block: Any) -> int:
        import ray

        content = bytes(block)
        self.digest.update(content)
        self.references.append(ray.put(content))
        return len(content)


class _Reader(io.RawIOBase):
    """Reads blocks out of Ray's object store, one at a time."""

    def __init__(self, blocks: Sequence[Any]) -> None:
        self._left = list(blocks)
        self._block = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import ray

        if not self._block and self._left:
            self._block = memoryview(ray.get(self._left.pop(0)))
        count = min(len(buffer), len(self._block))
        buffer[:count], self._block = self._block[:count], self._block[count:]
        return count
