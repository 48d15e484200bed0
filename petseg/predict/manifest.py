"""The manifest of a prediction: Parquet files in the folder `manifest` of the output, a row a photo.

Rows of photos that could not be read lie in files of their own, which the next call removes: it tries those again.

Object stores have no locks, and not all have conditional writes, but a listing shows all that was written. So a call
lists the manifest before and after it writes rows. Where another call has written since this one began, it removes its
own rows again and ends: of two files with rows of one photo, the call that wrote the later one sees the other.
"""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import dataset

from petseg.errors import PetsegError, shown
from petseg.predict.store import READ, Store, store_errors

FOLDER = "manifest"
ROWS, SECONDS = 100_000, 60  # a part is written at so many rows, or after this time; a kill loses no more than one
DONE, FAILED, UNREAD = "done", "failed", "unread"  # a row's status
PART, AGAIN = "part-", "unread-"  # how names of parts begin
MEND = "restore the damaged part, or remove it: its photos are predicted again"
CALL = b"petseg"  # the key of the call in a part's metadata


def schema(kinds: Sequence[str], classes: Sequence[str], call: Mapping[str, Any]) -> pa.Schema:
    """Returns the columns; below `width` they are those of `Summary`. `call` is what a later call must agree with."""
    likeliest = pa.struct([("name", pa.string()), ("probability", pa.float32())])
    corners = [(side, pa.int32()) for side in ("left", "top", "right", "bottom")]
    figures = [("share", pa.float32()), ("confidence", pa.float32()), ("foreground_class", likeliest)]
    columns = {
        "file": pa.string(),  # its path below the folder that was named
        "status": pa.string(),
        "reason": pa.string(),  # why it failed
        "files": pa.struct([(kind, pa.string()) for kind in kinds]),  # below the output
        "shares": pa.struct([(name, pa.float32()) for name in classes]),  # as `Segmentation.class_shares`
        "width": pa.int32(),
        "height": pa.int32(),
        "foreground": pa.bool_(),
        "presence": pa.float32(),
        "foreground_share": pa.float32(),
        "confidence": pa.float32(),
        "foreground_class": likeliest,
        "boxes": pa.list_(pa.struct([*corners, *figures])),
        "notes": pa.list_(pa.string()),
    }
    if not kinds:
        del columns["files"]
    return pa.schema(columns, {CALL: json.dumps(call)})


def parts(out: Store) -> list[str]:
    """Returns the manifest's parts, sorted, but for those that a power cut left empty."""
    names = [name for name in _seen(out, FOLDER) if name.startswith(PART)]
    empty = out.empty(FOLDER) if names else set()
    return [f"{FOLDER}/{name}" for name in names if name not in empty]


def _seen(out: Store, folder: str = "") -> list[str]:
    return [name for name, _ in out.entries(folder, missing_ok=True) if not name.startswith(".")]


class Finished:
    """What a manifest has at one time."""

    def __init__(self, out: Store) -> None:
        fs, root = out.opened()
        self._place = out.name(FOLDER)
        with store_errors(self._place, "read", READ):
            self._rows = dataset.dataset([f"{root}/{part}" for part in parts(out)], filesystem=fs, format="parquet")

    def __len__(self) -> int:
        with store_errors(self._place, "read", MEND):
            return int(self._rows.count_rows())

    def failed(self) -> int:
        """Returns how many photos failed for good."""
        with store_errors(self._place, "read", MEND):
            return int(self._rows.count_rows(filter=dataset.field("status") == FAILED))

    def among(self, names: Sequence[str]) -> set[str]:
        """Returns which of these files it has; only parts between the first and the last name are read."""
        file = dataset.field("file")
        wanted = (file >= min(names)) & (file <= max(names)) & file.isin(pa.array(names))
        with store_errors(self._place, "read", MEND):
            return set(self._rows.to_table(["file"], filter=wanted)["file"].to_pylist())


class Manifest:
    """Writes rows in parts. As a context: what is not written yet is written at its end, after an error too."""

    def __init__(self, out: Store, columns: pa.Schema) -> None:
        self.out, self.schema = out, columns
        self._waiting: dict[str, list[pa.Table]] = {PART: [], AGAIN: []}
        self._call = secrets.token_hex(4)  # two calls at once replace none of each other's files
        self._written = time.monotonic()
        self._known = self._files()  # of earlier calls and of this one
        self._again = [path for path in self._known if path.startswith(f"{FOLDER}/{AGAIN}")]  # of earlier calls
        self._number = len(self._known)
        if begun := parts(out):
            self._check_call(begun[0])
            return
        # an empty folder of a manifest is what two calls that began at the same moment may leave
        if held := [name for name in _seen(out) if name != FOLDER or _seen(out, FOLDER)]:
            raise PetsegError(f"{out}: holds {held[0]} and no manifest of petseg; name an empty folder with --out")
        self._write(PART, columns.empty_table())  # says whose the output is, and that it can be written

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()

    def add(self, rows: pa.Table) -> None:
        """Takes rows; writes a part if it is due."""
        later = pa.compute.equal(rows["status"], UNREAD)
        self._waiting[AGAIN].append(rows.filter(later))
        self._waiting[PART].append(rows.filter(pa.compute.invert(later)))
        waiting = sum(len(table) for tables in self._waiting.values() for table in tables)
        if waiting >= ROWS or time.monotonic() - self._written > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that wait. PetsegError where another call has written rows since this one began."""
        if self._again:
            self._check_alone()
            self.out.remove(self._again)
            self._again = []
        for kind, tables in self._waiting.items():
            rows = pa.concat_tables([self.schema.empty_table(), *tables])
            if len(rows):
                self._write(kind, rows)
            tables.clear()
        self._written = time.monotonic()

    def _check_call(self, part: str) -> None:
        with store_errors(self.out.name(part), "read", "restore it, or name another --out"):
            theirs = json.loads(pq.read_schema(BytesIO(self.out.read(part))).metadata[CALL])
        ours = json.loads(self.schema.metadata[CALL])
        for name in ours:
            if theirs.get(name) != ours[name]:
                raise PetsegError(
                    f"{self.out}: was begun with {name} {shown(theirs.get(name))}, this call has {shown(ours[name])}; "
                    "give the same photos, model and options, or another --out"
                )

    def _files(self) -> set[str]:
        return {f"{FOLDER}/{name}" for name in _seen(self.out, FOLDER) if name.startswith((PART, AGAIN))}

    def _check_alone(self) -> None:
        if self._files() - self._known:
            raise PetsegError(
                f"{self.out}: another call has written to its manifest since this one began; "
                "run the command again when that one has ended, or name another --out"
            )

    def _write(self, kind: str, rows: pa.Table) -> None:
        stream = BytesIO()
        pq.write_table(rows, stream, compression="zstd")
        path = f"{FOLDER}/{kind}{self._number:06}-{self._call}.parquet"
        self._check_alone()
        self.out.write({path: stream.getvalue()})
        self._known.add(path)
        self._number += 1
        try:
            self._check_alone()
        except PetsegError:
            self.out.remove([path])
            raise
