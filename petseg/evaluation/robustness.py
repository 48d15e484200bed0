"""How a model stands corrupted files: every one of `evaluation.corruptions` on the images of a split.

A file is decoded at its own size, corrupted there, and only then seen as the model sees any image. Counts are kept
image by image, so that a stopped call goes on.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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

Counts = list[tuple[int, ...]]  # of an image under each corruption: confusion matrices, flat


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
    """Returns `empty` with its counts, written to `out` if that is given; `sha256` is of the weights."""
    kinds = corruptions()
    about = json.dumps([sha256, [each.name for each in kinds], empty.model_dump(mode="json")])
    with _unfinished(out, about) as (found, keep):
        waiting = [name for name in empty.ids if name not in found]
        look, samples = partial(looked_at, looker, dataset, kinds), (dataset.by_id[name] for name in waiting)
        with ThreadPoolExecutor(looker.calls) as pool:
            # `pool.map` has no name here, so that Ctrl-C calls off the images that wait for their turn
            for name, counts in zip(waiting, pool.map(look, samples), strict=True):
                found[name] = counts
                keep(name, counts)
                on_progress(len(found), len(empty.ids))
        columns = zip(*(found[name] for name in empty.ids), strict=True)
        confusions = {each.name: column for each, column in zip(kinds, columns, strict=True)}
        whole = empty.model_copy(update={"confusions": confusions})
        if out is not None:
            storage.write_text(out, whole.model_dump_json() + "\n")
        return whole


@contextmanager
def _unfinished(out: Path | None, about: str) -> Iterator[tuple[dict[str, Counts], Callable[[str, Counts], None]]]:
    """Yields image -> counts that a stopped call `about` the same left beside `out`, and what keeps those of an image.

    They lie in OUT.part.jsonl, a line an image, until the block has ended well.
    """
    if out is None:
        yield {}, lambda name, counts: None
        return
    part, found = out.with_suffix(".part.jsonl"), {}
    with suppress(OSError, ValueError):  # none, or a line that was being written
        first, *lines = part.read_text(encoding="utf-8").splitlines()
        for line in lines if first == about else ():
            name, counts = json.loads(line)
            found[name] = [tuple(row) for row in counts]
    part.parent.mkdir(parents=True, exist_ok=True)
    storage.write_text(part, "".join(f"{line}\n" for line in (about, *map(json.dumps, found.items()))))
    with part.open("a", encoding="utf-8") as stream:
        yield found, lambda *of_image: print(json.dumps(of_image), file=stream, flush=True)
    part.unlink(missing_ok=True)


def looked_at(looker: Looker, dataset: Dataset, kinds: Sequence[Corruption], sample: Sample) -> Counts:
    """Returns the confusion matrix, flat, of an image under each corruption."""
    opened, found = open_sample(dataset, sample), []
    image, truth = np.asarray(opened.image), scored_ids(opened.ids, dataset.merge)
    for corruption in kinds:
        with torch.inference_mode():  # which is of a thread
            seen = looker.ids(corruption.image(image, sample.id), dataset.merge)
        counts = confusion_matrix(corruption.truth(truth, sample.id), seen, len(dataset.scored_classes))
        found.append(tuple(counts.ravel().tolist()))
    return found
