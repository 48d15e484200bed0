"""How a trained run stands corrupted images: every corruption of `evaluation.corruptions` on a part of the test split.

evaluations/robustness.json            scores by corruption
evaluations/robustness.images.json     per-image counts by corruption
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from petseg import storage
from petseg.data.dataset import Sample, UInt8, scored_ids
from petseg.data.images import open_ids
from petseg.errors import PetsegError
from petseg.evaluation.corruptions import Corruption, corruptions
from petseg.evaluation.evaluate import Progress, load_run, predicted_ids, silent
from petseg.metrics import Confusion, confusion_matrix, iou, mean_iou
from petseg.models import to_unit_range
from petseg.schema import Record, read_record, write_record
from petseg.training.batches import Split
from petseg.training.device import Hardware
from petseg.training.inference import Network, scored_logits

EVERY = 3
"""Each third test image, by id: 18 corruptions of all of them would take as long as the training."""

BATCH = 32
"""Images whose labels and logits are held at a time."""


class CorruptedScores(Record):
    """Scores under one corruption."""

    miou: float
    iou: dict[str, float | None]  # class -> IoU, None where it is in neither truth nor prediction


class Robustness(Record):
    """robustness.json."""

    weights: str
    epoch: int
    data: str  # `DataInfo.key`
    every: int
    images: int
    split: str = "test"
    corruptions: dict[str, CorruptedScores]  # corruption and severity -> scores


class CorruptedRows(Record):
    """robustness.images.json: for each corruption a row an image."""

    columns: tuple[str, ...]
    corruptions: dict[str, tuple[tuple[str, tuple[int, ...]], ...]]


def evaluate_robustness(
    run: Path,
    hardware: Hardware,
    split: Split,
    wanted: Sequence[Corruption] | None = None,
    on_progress: Progress = silent,
) -> Robustness:
    """Returns a run's scores on corrupted images of the test split at their own size, computed once and kept.

    Where none are `wanted`, all corruptions are.
    """
    trained = load_run(run, hardware)
    stored = run / "evaluations" / "robustness.json"
    wanted = corruptions() if wanted is None else wanted
    ids = [split.prepared.samples[row].id for row in split.rows]
    rows = split.rows[np.argsort(ids, kind="stable")][::EVERY]
    head = Robustness(
        weights=trained.weights,
        epoch=trained.epoch,
        data=split.prepared.key,
        every=EVERY,
        images=len(rows),
        corruptions={},
    )
    known = _stored(stored)
    current = known is not None and known.model_copy(update={"corruptions": {}}) == head
    if known is not None and current and all(corruption.name in known.corruptions for corruption in wanted):
        return known
    counts = _count(trained.network, replace(split, rows=rows), wanted, on_progress)
    names = [entry.name for entry in split.dataset.scored_classes]
    by_corruption = {name: _scores(matrices, names) for name, matrices in counts.items()}
    scores = head.model_copy(update={"corruptions": by_corruption})
    _write(stored, scores, [split.prepared.samples[row].id for row in rows], counts)
    return scores


def _stored(path: Path) -> Robustness | None:
    try:
        return read_record(path, Robustness)
    except PetsegError:
        return None


def _count(network: Network, split: Split, wanted: Sequence[Corruption], on_progress: Progress) -> dict[str, Confusion]:
    """Returns corruption -> confusion matrices int64 [N, C, C] of the split's images."""
    found: dict[str, list[Confusion]] = {corruption.name: [] for corruption in wanted}
    done = 0
    with ThreadPoolExecutor() as pool:
        for rows in np.split(split.rows, range(BATCH, len(split.rows), BATCH)):
            images = np.array(split.prepared.images[rows])
            samples = [split.prepared.samples[row] for row in rows]
            truths = list(pool.map(partial(_truth, split), samples))
            names, sizes = [sample.id for sample in samples], [truth.shape for truth in truths]
            for corruption in wanted:
                corrupted = np.stack(list(map(corruption.image, images, names, sizes)))
                score = partial(_confusion, corruption, split)
                found[corruption.name] += pool.map(score, samples, truths, _logits(network, split, corrupted))
            done += len(rows)
            on_progress(done, len(split.rows))
    return {name: np.stack(matrices) for name, matrices in found.items()}


def _truth(split: Split, sample: Sample) -> UInt8:
    return scored_ids(open_ids(split.dataset, sample), split.dataset.merge)


def _logits(network: Network, split: Split, images: UInt8) -> torch.Tensor:
    """Returns logits float32 [n, C, h, w] of the scored classes, of images uint8 [n, S, S, 3]."""
    network.module.eval()
    with torch.inference_mode():
        logits = network.logits(to_unit_range(torch.from_numpy(images).to(split.device)))
    return scored_logits(logits.float(), split.dataset.merge)


def _confusion(corruption: Corruption, split: Split, sample: Sample, truth: UInt8, logits: torch.Tensor) -> Confusion:
    moved = corruption.truth(truth, sample.id, split.prepared.size)
    return confusion_matrix(moved, predicted_ids(logits, moved.shape), len(split.dataset.scored_classes))


def _scores(matrices: Confusion, names: Sequence[str]) -> CorruptedScores:
    total = matrices.sum(axis=0)
    by_class = {name: None if np.isnan(value) else float(value) for name, value in zip(names, iou(total), strict=True)}
    return CorruptedScores(miou=float(mean_iou(total)), iou=by_class)


def _write(stored: Path, scores: Robustness, ids: Sequence[str], counts: dict[str, Confusion]) -> None:
    rows = {
        name: [[sample_id, matrix.ravel().tolist()] for sample_id, matrix in zip(ids, matrices, strict=True)]
        for name, matrices in counts.items()
    }
    text = json.dumps({"columns": ["name", "confusion, rows truth"], "corruptions": rows}, separators=(",", ":"))
    storage.write_text(stored.with_suffix(".images.json"), text + "\n")
    write_record(stored, scores)


def read_corrupted(run: Path, num_classes: int) -> dict[str, tuple[tuple[str, ...], Confusion]]:
    """Returns corruption -> sample ids and confusion matrices int64 [N, C, C], of a run that was scored so."""
    rows = read_record(run / "evaluations" / "robustness.images.json", CorruptedRows).corruptions
    return {
        name: (
            tuple(row[0] for row in part),
            np.array([row[1] for row in part], np.int64).reshape(-1, num_classes, num_classes),
        )
        for name, part in rows.items()
    }
