"""Photos of a store to files and a manifest in another one, on this machine or on a Ray cluster; memory stays flat.

Photos are listed folder by folder, less those that the manifest has, and named and predicted as `outputs` does.
"""

import hashlib
import logging
import platform
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from petseg import __version__
from petseg.data.images import SUFFIXES
from petseg.errors import LongNameError, PetsegError
from petseg.predict.manifest import DONE, FAILED, UNREAD, Finished, Manifest, parts, schema
from petseg.predict.outputs import OURS, WORKERS, Look, contents_of, file_names, own_names
from petseg.predict.photos import Photo
from petseg.predict.segmenter import Segmenter
from petseg.predict.store import Store
from petseg.shipped import model_file

BATCH = 32  # photos that travel together; what a killed worker had under way is done again
AT_ONCE = 4  # photos in work at once for each core: while one is computed, others are read and written
ALL_UNREAD = 100  # so many photos at the beginning, none of which can be read, are no accident
HEAD = {"node:__internal_head__": 0.001}  # Ray's name for the node that must live anyway: it keeps what is listed
# bytes of listed photos that wait in Ray's store, and more for each core: the listing never runs far ahead
WAITING, WAITING_A_CORE = 16 * 2**20, 2**18
Row = dict[str, Any]


@dataclass(frozen=True)
class Listing:
    """The photos of a store that its output's manifest does not have."""

    source: Store
    out: Store
    file: str = ""  # the only one that is wanted
    batch: int = BATCH

    def batches(self) -> Iterator[pa.Table]:
        """Yields tables of at most `batch` photos: path, path of its files before their endings, note.

        Those that cannot be read by their name have a status and a reason; so have folders that cannot be listed.
        """
        finished, waiting = Finished(self.out), list[Row]()
        for folder, photos, mistake in self._folders():
            if mistake:
                waiting.append(_listed(folder, status=UNREAD, reason=mistake))
            place = PurePosixPath(*map(self.source.plain, PurePosixPath(folder).parts))
            names = own_names([(place / self.source.plain(name), place) for name in photos])
            rows = [
                _listed(str(PurePosixPath(folder, name)), str(place / own), note)
                for name, (own, note) in zip(photos, names, strict=True)
            ]
            have = finished.among([row["file"] for row in rows]) if rows else set()
            waiting += [row for row in rows if row["file"] not in have]
            while len(waiting) >= self.batch:
                yield pa.Table.from_pylist(waiting[: self.batch])
                del waiting[: self.batch]
        if waiting:
            yield pa.Table.from_pylist(waiting)

    def check(self) -> None:
        """PetsegError where there is no photo, or none can be listed."""
        if self.file:
            self.source.check(self.file)
        elif not any(photos for _, photos, _ in self._folders()):
            raise PetsegError(f"{self.source}: no images in this folder; wanted {', '.join(SUFFIXES)}")

    def _folders(self) -> Iterator[tuple[str, list[str], str]]:
        """Yields each folder that holds photos, with their names, and each that cannot be listed, with the reason."""
        if self.file:
            yield "", [self.file], ""
            return
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                entries = [entry for entry in self.source.entries(folder) if not entry[0].startswith(".")]
            except PetsegError as error:
                if not folder:
                    raise
                yield folder, [], str(error)
                continue
            folders += [str(PurePosixPath(folder, name)) for name, is_folder in reversed(entries) if is_folder]
            if photos := [name for name, is_folder in entries if not is_folder and is_photo(name)]:
                yield folder, photos, ""


def _listed(file: str, own: str = "", note: str = "", *, status: str = "", reason: str = "") -> Row:
    """Returns the row of a photo; what is not UTF-8 in its name is escaped, as no table can hold it."""
    row = {"file": file, "own": own, "note": note, "status": status, "reason": reason}
    escaped = {key: value.encode("utf-8", "backslashreplace").decode() for key, value in row.items()}
    if escaped != row and not status:
        escaped |= {"status": FAILED, "reason": "its name is not UTF-8; rename it"}
    return escaped


def is_photo(name: str) -> bool:
    """Returns whether a file is named as a photo, and not as what petseg writes."""
    return name.lower().endswith(SUFFIXES) and not name.endswith(OURS)


@dataclass(frozen=True)
class Model:
    """What a machine needs to load the model that another one chose."""

    name: str  # shipped, or of a file
    sha256: str
    content: bytes | None  # of a file; None: each machine has its own, which must be the same
    runtime: str
    options: Mapping[str, Any]  # of `Segmenter.using`

    @classmethod
    def of(cls, segmenter: Segmenter, options: Mapping[str, Any]) -> "Model":
        """Returns the model of a segmenter, and the options that it is used with."""
        content = model_file(segmenter.name)
        own = content if segmenter.name.endswith(".onnx") else None
        return cls(segmenter.name, hashlib.sha256(content).hexdigest(), own, segmenter.runtime, options)

    def load(self) -> Segmenter:
        """Returns the model; PetsegError where this machine has another one of that name, or none."""
        if self.content is None:
            if hashlib.sha256(model_file(self.name)).hexdigest() != self.sha256:
                raise PetsegError(f"its {self.name} is another file; install the same petseg on all machines")
            return Segmenter(self.name, threads=1, runtime=self.runtime).using(**self.options)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(self.name).name)
            path.write_bytes(self.content)
            return Segmenter(path, threads=1, runtime=self.runtime).using(**self.options)


@dataclass(frozen=True)
class Work:
    """A prediction: which photos, to which files, by which model."""

    listing: Listing
    kinds: tuple[str, ...]
    look: Look
    model: Model
    schema: pa.Schema  # of the manifest

    def rows(self, segmenter: Segmenter, photos: pa.Table, workers: int = AT_ONCE) -> pa.Table:
        """Returns the manifest's rows of these photos, whose files are written. PetsegError where one cannot be."""
        with ThreadPoolExecutor(workers) as pool:
            rows = list(pool.map(self._row, repeat(segmenter), photos.to_pylist()))
        return pa.Table.from_pylist(rows, self.schema)

    def _row(self, segmenter: Segmenter, photo: Row) -> Row:
        row, name = {"file": photo["file"]}, self.listing.source.name(photo["file"])
        if photo["status"]:
            return {**row, "status": photo["status"], "reason": photo["reason"]}
        try:
            content = self.listing.source.read(photo["file"])
        except PetsegError as error:
            return {**row, "status": UNREAD, "reason": str(error)}
        try:
            result = segmenter(Photo(content, name))
            contents = contents_of(result, self.kinds, self.look)
            summary = result.summary()
        except PetsegError as error:
            return {**row, "status": FAILED, "reason": str(error).removeprefix(f"{name}: ")}
        except MemoryError:
            return {**row, "status": FAILED, "reason": "too large for this machine's memory; reduce it first"}
        notes = (*summary.notes, *filter(None, [photo["note"]]))
        files = file_names(photo["own"], self.kinds, self.look)
        try:
            self.listing.out.write({files[kind]: contents[kind] for kind in self.kinds})
        except LongNameError as error:
            return {**row, "status": FAILED, "reason": str(error)}
        figures = asdict(replace(summary, notes=notes))
        return {**row, "status": DONE, "files": files, "shares": result.class_shares, **figures}


def work_of(
    segmenter: Segmenter, options: Mapping[str, Any], places: tuple[str, str], kinds: Sequence[str], look: Look
) -> Work:
    """Returns the work of predicting what lies at one place, a folder or one photo, into another."""
    source, out = map(Store.at, places)
    file = ""
    if is_photo(places[0]):
        folder, _, file = source.url.rpartition("/")
        source = Store(folder)
    elif source.holds(out):
        raise PetsegError(f"--out {out} lies in the folder of photos {source}; name one outside of it")
    model = Model.of(segmenter, options)
    background = look.background
    if background is not None and not isinstance(background, str):
        background = hashlib.sha256(background.tobytes()).hexdigest()
    call = {
        "petseg": __version__,
        "photos": source.name(file),
        "model": model.sha256,
        "runtime": model.runtime,
        "files": ", ".join(kinds),
        "options": {name: str(value) for name, value in options.items()},
        "look": {**vars(look), "background": background},
    }
    columns = schema(kinds, [each.name for each in segmenter.classes], call)
    return Work(Listing(source, out, file), tuple(kinds), look, model, columns)


def predict_here(work: Work, segmenter: Segmenter, workers: int | None = None) -> Iterator[pa.Table]:
    """Yields the rows of one batch after the other, computed by threads of this process."""
    for photos in work.listing.batches():
        yield work.rows(segmenter, photos, workers or 2 * WORKERS)


class Worker:
    """Holds the model on one core of a cluster."""

    def __init__(self, work: Work, version: str) -> None:
        self._work, self._version = work, version

    def __call__(self, parcel: pa.Table) -> pa.Table:
        """Returns the rows of the photos in a parcel, or what is wrong: an exception would come back as text."""
        photos, mistake = opened(parcel)
        if photos is None:
            return packed(None, mistake)
        try:
            return packed(self._work.rows(self._segmenter, photos))
        except PetsegError as error:
            return packed(None, f"machine {platform.node()}: {error}")

    @cached_property
    def _segmenter(self) -> Segmenter:
        """The model, loaded with the first photos: what goes wrong is then an error of the work, not of Ray."""
        if __version__ != self._version:
            raise PetsegError(f"petseg is {__version__} there, {self._version} here; install the same on all machines")
        out = self._work.listing.out
        if not parts(out):
            raise PetsegError(f"{out} does not hold the manifest there; name a place that all machines share, as s3://")
        return self._work.model.load()


def predict_on_ray(work: Work, most: int | None = None) -> Iterator[pa.Table]:
    """Yields the rows of each batch as it is done, by at most so many cores of the cluster that this process joined."""
    import ray

    tables = _through_head(work, most) if ray.util.client.ray.is_connected() else _by_ray_data(work, most)
    try:
        yield from tables
    except ray.exceptions.RayError as error:
        raise _mistake(error) from None


def _by_ray_data(work: Work, most: int | None) -> Iterator[pa.Table]:
    import ray
    from ray import data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans
    cores = min(most or 2**31, max(1, int(ray.cluster_resources().get("CPU", 1))))
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # each batch is an object of its own: any core takes the next
    limit = WAITING + WAITING_A_CORE * cores
    context.execution_options.resource_limits = data.ExecutionResources(object_store_memory=limit)
    listing = work.listing

    def listed(_: object) -> Iterator[pa.Table]:
        try:
            yield from map(packed, listing.batches())
        except PetsegError as error:
            yield packed(None, f"machine {platform.node()}: {error}")

    pool = data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=cores)
    batches = data.from_items([0]).map_batches(listed, num_cpus=0, resources=HEAD)
    rows = batches.map_batches(
        Worker, batch_size=1, batch_format="pyarrow", compute=pool, num_cpus=1, fn_constructor_args=(work, __version__)
    )
    parcels: Iterable[Any] = rows.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0)
    for parcel in parcels:
        done, mistake = opened(parcel)
        if done is None:
            raise PetsegError(mistake)
        yield done


class Head:
    """Drives the prediction from the cluster's head, for a process that is none of its machines (ray://)."""

    def __init__(self, work: Work, most: int | None) -> None:
        self._tables = _by_ray_data(work, most)

    def following(self) -> pa.Table | None:
        """Returns the rows of the next batch; None after the last."""
        return next(self._tables, None)


def _through_head(work: Work, most: int | None) -> Iterator[pa.Table]:
    import ray

    head: Any = ray.remote(num_cpus=0, resources=HEAD)(Head).remote(work, most)
    while (rows := ray.get(head.following.remote())) is not None:
        yield rows


def _mistake(error: Exception) -> PetsegError:
    """Returns an error of the cluster in one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, PetsegError):
        return PetsegError(str(cause))
    if missing := re.search(r"No module named '([\w.]+)'", str(error)):
        return PetsegError(f"a machine of the cluster lacks {missing[1]}; install the same petseg[cluster] on all")
    reason = " ".join(str(error).split())[-200:]
    return PetsegError(f"the Ray cluster ended the work ({type(error).__name__}: {reason}); the same command goes on")


def recorded(tables: Iterator[pa.Table], manifest: Manifest) -> Iterator[pa.Table]:
    """Yields the rows of each batch once the manifest has them; ends where no photo can be read."""
    seen = 0
    with manifest:
        for rows in tables:
            manifest.add(rows)
            unread = rows["status"].to_pylist().count(UNREAD)
            seen = seen + unread if unread == len(rows) and seen >= 0 else -1  # -1: one was read
            if seen >= ALL_UNREAD:
                raise PetsegError(f"none of the first {seen} photos can be read: {rows['reason'][0]}")
            yield rows


def packed(table: pa.Table | None, mistake: str = "") -> pa.Table:
    """Returns a table, or what is wrong, as the one row of another: Ray cuts tables between rows."""
    content = None
    if table is not None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        content = sink.getvalue().to_pybytes()
    return pa.table({"content": pa.array([content], pa.binary()), "mistake": [mistake]})


def opened(parcel: pa.Table) -> tuple[pa.Table | None, str]:
    """Returns what was packed."""
    content, mistake = parcel["content"][0].as_py(), parcel["mistake"][0].as_py()
    return (None if content is None else pa.ipc.open_stream(content).read_all()), mistake
