"""How a trained run stands corrupted images: every one of `evaluation.corruptions` on a part of the test split."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from petseg import storage
from petseg.data.dataset import UInt8
from petseg.errors import PetsegError
from petseg.evaluation.corruptions import Corruption, corruptions
from petseg.evaluation.evaluate import Progress, load_run, predicted_ids, read_truth, silent
from petseg.metrics import Confusion, confusion_matrix
from petseg.schema import Record, read_record
from petseg.training.batches import Split
from petseg.training.device import Hardware
from petseg.training.inference import Network, evaluation_batches, predict_logits, scored_logits

EVERY = 3  # each third test image, by id: 18 corruptions of all of them would take as long as the training


class Robustness(Record):
    """robustness.json: confusion matrices, rows truth, of images under each corruption."""

    weights: str
    epoch: int
    data: str  # `DataInfo.key`
    ids: tuple[str, ...]
    confusions: dict[str, tuple[tuple[int, ...], ...]]  # corruption and severity -> image -> matrix, flat

    def counts(self, corruption: str) -> Confusion:
        """Returns the matrices under a corruption, int64 [N, C, C]."""
        flat = np.array(self.confusions[corruption], np.int64)
        side = round(flat.shape[1] ** 0.5)
        return flat.reshape(-1, side, side)


def evaluate_robustness(run: Path, hardware: Hardware, split: Split, on_progress: Progress = silent) -> Robustness:
    """Returns a run's counts on corrupted images of the test split at their own size, computed once and kept."""
    if (fit := split.prepared.geometry.fit) != "square":
        raise PetsegError(f"{run}: its data.fit is {fit!r}; corruptions are of squares: leave robustness out")
    trained, stored = load_run(run, hardware), run / "evaluations" / "robustness.json"
    rows = np.array(sorted(split.rows, key=lambda row: split.prepared.samples[row].id))[::EVERY]
    ids = tuple(split.prepared.samples[row].id for row in rows)
    key = split.prepared.key
    found = Robustness(weights=trained.weights, epoch=trained.epoch, data=key, ids=ids, confusions={})
    with suppress(PetsegError):
        known = read_record(stored, Robustness)
        if known.model_copy(update={"confusions": {}}) == found:
            return known
    counts = _count(trained.network, replace(split, rows=rows), on_progress)
    found = found.model_copy(update={"confusions": {name: tuple(matrices) for name, matrices in counts.items()}})
    storage.write_text(stored, found.model_dump_json() + "\n")
    return found


def _count(network: Network, split: Split, on_progress: Progress) -> dict[str, list[tuple[int, ...]]]:
    """Returns corruption -> confusion matrix, flat, of each of the split's images."""
    found: dict[str, list[tuple[int, ...]]] = {corruption.name: [] for corruption in corruptions()}
    dataset, done = split.dataset, 0

    def score(corruption: Corruption, name: str, truth: UInt8, logits: Tensor) -> tuple[int, ...]:
        moved = corruption.truth(truth, name, split.prepared.size)
        counts = confusion_matrix(moved, predicted_ids(logits, moved.shape), len(dataset.scored_classes))
        return tuple(counts.ravel().tolist())

    with ThreadPoolExecutor() as pool:
        for rows in evaluation_batches(split.rows, split.prepared.size):
            images = np.array(split.prepared.images[rows])
            samples = [split.prepared.samples[row] for row in rows]
            truths = list(pool.map(partial(read_truth, dataset), samples))
            names, sizes = [sample.id for sample in samples], [truth.shape for truth in truths]
            for corruption in corruptions():
                corrupted = torch.from_numpy(np.stack(list(map(corruption.image, images, names, sizes))))
                batch = replace(split, images=corrupted, labels=split.labels[rows])
                (seen,) = predict_logits(network, batch, np.arange(len(rows)))
                found[corruption.name] += pool.map(
                    partial(score, corruption), names, truths, scored_logits(seen.logits, dataset.merge)
                )
            done += len(rows)
            on_progress(done, len(split.rows))
    return found
