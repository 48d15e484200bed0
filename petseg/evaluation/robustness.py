"""How a model stands corrupted files: every one of `evaluation.corruptions` on the images of a split.

A file is decoded at its own size, corrupted there, and only then seen as the model sees any image. It is an hour's work
for a large model on two cores, so counts are kept image by image, and a stopped call goes on.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from petseg import storage
from petseg.data.cache import Prepared
from petseg.data.dataset import Dataset, Merge, Progress, Sample, UInt8, scored_ids
from petseg.data.geometry import Floats, Geometry
from petseg.data.images import open_sample
from petseg.errors import PetsegError
from petseg.evaluation.corruptions import Corruption, corruptions
from petseg.evaluation.evaluate import load_run, others_suffix, predicted_ids, silent
from petseg.metrics import Confusion, confusion_matrix
from petseg.predict.runtimes import fast_precision
from petseg.predict.segmenter import Segmenter
from petseg.schema import Record, read_record
from petseg.shipped import model_file
from petseg.training.device import Hardware

MOST = 1500  # images: 19 looks at each of more take as long as a training


class Robustness(Record):
    """robustness.json: confusion matrices, rows truth, of images under each corruption."""

    weights: str
    epoch: int
    data: str  # what names the images
    runtime: str = ""  # of an ONNX file: what computed it, and in which precision
    ids: tuple[str, ...]
    confusions: dict[str, tuple[tuple[int, ...], ...]]  # corruption and severity -> image -> matrix, flat

    def counts(self, corruption: str) -> Confusion:
        """Returns the matrices under a corruption, int64 [N, C, C]."""
        flat = np.array(self.confusions[corruption], np.int64)
        side = round(flat.shape[1] ** 0.5)
        return flat.reshape(-1, side, side)


@dataclass(frozen=True)
class Looker:
    """What sees images: probabilities [N, C, h, w] of uint8 [N, h, w, 3], and how images become those."""

    probabilities: Callable[[UInt8], Floats]
    geometry: Geometry
    calls: int  # at once

    def ids(self, image: UInt8, merge: Merge | None) -> UInt8:
        """Returns the scored class ids uint8 [H, W] of an image uint8 [H, W, 3]."""
        own = (image.shape[0], image.shape[1])
        content, canvas = self.geometry.content(own), self.geometry.image(Image.fromarray(image), own)
        if self.geometry.fit == "crop":
            seen = np.concatenate(list(self.geometry.bands(canvas, content, self.probabilities)), axis=1)
        else:
            seen = self.probabilities(canvas[None].copy())[0][:, : content[0], : content[1]]
        if merge is not None:
            seen = np.stack([seen[list(members)].sum(axis=0) for members in merge.members()])
        return predicted_ids(torch.from_numpy(np.ascontiguousarray(seen)), own)


def evaluate_robustness(
    run: Path, hardware: Hardware, prepared: Prepared, on_progress: Progress = silent, *, split: str = "test"
) -> Robustness:
    """Returns a run's counts on corrupted images at their own size, computed once and kept in its folder."""
    trained = load_run(run, hardware)
    name = "robustness" if split == "test" else f"robustness_{split}"
    stored = run / "evaluations" / f"{name}{others_suffix(trained.data, prepared)}.json"
    ids = corrupted_ids(prepared.dataset, split, prepared.left_out)
    empty = Robustness(weights=trained.weights, epoch=trained.epoch, data=prepared.key, ids=ids, confusions={})
    with suppress(PetsegError):
        known = read_record(stored, Robustness)
        if known.model_copy(update={"confusions": {}}) == empty:
            return known
    looker = Looker(trained.network.probabilities, Geometry.of(trained.config.data), torch.get_num_threads())
    return _count(looker, prepared.dataset, empty, storage.sha256(run / trained.weights), stored, on_progress)


def shipped_robustness(  # noqa: PLR0913 - three of them are keywords with a default
    segmenter: Segmenter,
    dataset: Dataset,
    on_progress: Progress = silent,
    *,
    split: str = "test",
    out: Path | None = None,
    calls: int = 1,
) -> Robustness:
    """Returns the same of a shipped model or an exported file, kept in `out` if that is given; `calls` run at once."""
    own, given = ([entry.name for entry in classes] for classes in (segmenter.classes, dataset.classes))
    if own != given:
        raise PetsegError(
            f"model {segmenter.name} has classes {', '.join(own)}; the labels are of {', '.join(given)}: give data of "
            "its classes"
        )
    ids = corrupted_ids(dataset, split)
    precision = fast_precision() if segmenter.runtime == "openvino" else ""
    runtime = f"{segmenter.runtime}, {precision or 'f32'}"
    data = dataset.provenance
    empty = Robustness(weights=segmenter.name, epoch=0, data=data, runtime=runtime, ids=ids, confusions={})
    looker = Looker(segmenter.probabilities, segmenter.geometry, calls)
    return _count(looker, dataset, empty, hashlib.sha256(model_file(segmenter.name)).hexdigest(), out, on_progress)


def corrupted_ids(dataset: Dataset, split: str, left_out: Collection[str] = ()) -> tuple[str, ...]:
    """Returns the images of a split that are corrupted, by id: all, or each second, third ... of very many."""
    ids = sorted(set(dataset.splits.get(split, ())).difference(left_out))
    if not ids:
        raise PetsegError(f"{dataset.name}: has no {split} split; choose one of {', '.join(dataset.splits)}")
    return tuple(ids[:: -(-len(ids) // MOST)])


def _count(  # noqa: PLR0913 - what is counted, of what, and where it is kept
    looker: Looker, dataset: Dataset, empty: Robustness, sha256: str, out: Path | None, on_progress: Progress
) -> Robustness:
    """Returns `empty` with its counts, written to `out`; those of single images lie beside it until all are there.

    OUT.part.jsonl: first a line that says of what, with the SHA-256 of the weights, then a line an image.
    """
    kinds = corruptions()
    head = json.dumps([sha256, [each.name for each in kinds], empty.model_dump(mode="json")])
    part = None if out is None else out.with_suffix(".part.jsonl")
    found = {} if part is None else _kept(part, head)
    waiting = [name for name in empty.ids if name not in found]
    with ExitStack() as stack:
        lines = None
        if part is not None:
            part.parent.mkdir(parents=True, exist_ok=True)
            storage.write_text(part, "".join(f"{line}\n" for line in (head, *map(json.dumps, found.items()))))
            lines = stack.enter_context(part.open("a", encoding="utf-8"))
        pool = stack.enter_context(ThreadPoolExecutor(looker.calls))
        samples = (dataset.by_id[name] for name in waiting)
        for name, counts in zip(waiting, pool.map(partial(looked_at, looker, dataset, kinds), samples), strict=True):
            found[name] = counts
            if lines is not None:
                lines.write(json.dumps((name, counts)) + "\n")
                lines.flush()
            on_progress(len(found), len(empty.ids))
    columns = zip(*(found[name] for name in empty.ids), strict=True)
    whole = empty.model_copy(
        update={"confusions": {each.name: column for each, column in zip(kinds, columns, strict=True)}}
    )
    if out is not None and part is not None:
        storage.write_text(out, whole.model_dump_json() + "\n")
        part.unlink(missing_ok=True)
    return whole


def _kept(part: Path, head: str) -> dict[str, list[tuple[int, ...]]]:
    """Returns image -> counts of a stopped call about the same; a line that was being written is left out."""
    found = {}
    with suppress(OSError, ValueError):
        first, *lines = part.read_text(encoding="utf-8").splitlines()
        for line in lines if first == head else ():
            name, counts = json.loads(line)
            found[name] = [tuple(row) for row in counts]
    return found


def looked_at(looker: Looker, dataset: Dataset, kinds: Sequence[Corruption], sample: Sample) -> list[tuple[int, ...]]:
    """Returns the confusion matrix, flat, of an image under each corruption."""
    opened, found = open_sample(dataset, sample), []
    image, truth = np.asarray(opened.image), scored_ids(opened.ids, dataset.merge)
    for corruption in kinds:
        with torch.inference_mode():  # which is of a thread
            seen = looker.ids(corruption.image(image, sample.id), dataset.merge)
        counts = confusion_matrix(corruption.truth(truth, sample.id), seen, len(dataset.scored_classes))
        found.append(tuple(counts.ravel().tolist()))
    return found
