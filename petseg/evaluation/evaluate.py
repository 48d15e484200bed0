"""Evaluation: every score of a model on one split, at each image's own size.

Logits are enlarged (bilinear) to the size of the image on disk, the class with the largest wins, and the prediction is
compared with the untouched label. Cross-entropy is the one score at the training size: it belongs to the loss.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from petseg import storage
from petseg.config import RunConfig
from petseg.data.dataset import IGNORE, Class, Dataset, Sample, UInt8, scored_ids
from petseg.data.images import open_ids, resize_ids
from petseg.errors import PetsegError, unknown_name
from petseg.metrics import (
    Confusion,
    Score,
    boundary_counts,
    boundary_f,
    confusion_matrix,
    dice,
    iou,
    mean_iou,
    mean_over_classes,
    pixel_accuracy,
)
from petseg.schema import DataInfo, ImageMiou, Record, Scores, read_record, write_record
from petseg.training import runs
from petseg.training.batches import Split
from petseg.training.checkpoint import BEST, LAST, load_weights
from petseg.training.device import Hardware
from petseg.training.inference import (
    Network,
    build_network,
    predict_logits,
    right_image_class,
    scored_labels,
    scored_logits,
)
from petseg.training.losses import cross_entropy

Progress = Callable[[int, int], None]
"""Called with (done, total) images."""


@dataclass(frozen=True)
class ImageScores:
    """What all scores but cross-entropy come from; row i is one image."""

    ids: tuple[str, ...]
    confusions: Confusion
    """int64 [N, C, C]: rows truth, columns prediction."""
    boundaries: Score
    """float64 [N, C]: boundary F-score of each class, nan where it has none."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of one model on one split, and the counts that they come from."""

    scores: Scores
    images: ImageScores


def evaluate(network: Network, split: Split, name: str, on_progress: Progress | None = None) -> Evaluation:
    """Returns the scores of a network on the images of one split.

    Args:
        network: gives logits [N, C, H, W].
        split: the images.
        name: of the split, written into the scores.
        on_progress: called with (done, total) images.
    """
    dataset, prepared = split.dataset, split.prepared
    losses = {size: _EntropySum() for size in (0, *dataset.loss_sizes)}
    right: list[bool] = []
    ids: list[str] = []
    confusions: list[Confusion] = []
    boundaries: list[list[float]] = []
    with ThreadPoolExecutor() as pool:
        for rows, trained_labels, trained_logits in predict_logits(network, split, split.rows):
            right += right_image_class(trained_logits, trained_labels, dataset.merge)
            logits, labels = scored_logits(trained_logits, dataset.merge), scored_labels(trained_labels, dataset.merge)
            losses[0].add(logits, labels)
            samples = [prepared.samples[row] for row in rows]
            for one, image in zip(logits, pool.map(partial(_score, dataset), samples, logits), strict=True):
                ids.append(image.id)
                confusions.append(image.confusion)
                boundaries.append(image.edges)
                for size in dataset.loss_sizes:
                    small = torch.from_numpy(resize_ids(image.truth, (size, size)).copy())[None].to(one.device)
                    losses[size].add(upsample(one, (size, size))[None], small)
            if on_progress is not None:
                on_progress(len(confusions), len(split.rows))
    images = ImageScores(tuple(ids), np.stack(confusions), np.array(boundaries))
    groups = [prepared.samples[row].group for row in split.rows]
    summary = summarise(images, dataset.scored_classes, groups)
    scores = summary.model_copy(
        update={
            "split": name,
            "data": prepared.key,
            "cross_entropy": losses[0].mean(),
            "cross_entropy_frame": f"{prepared.size} px",
            "cross_entropy_at": {str(size): losses[size].mean() for size in dataset.loss_sizes},
            "image_class_accuracy": float(np.mean(right)) if right else None,
            "image_class_images": len(right) or None,
        }
    )
    return Evaluation(scores, images)


@dataclass(frozen=True)
class _Scored:
    id: str
    truth: UInt8
    confusion: Confusion
    edges: list[float]


def _score(dataset: Dataset, sample: Sample, logits: Tensor) -> _Scored:
    """Returns one image's scores at its own size, from logits [C, h, w] of the scored classes."""
    truth = scored_ids(open_ids(dataset, sample), dataset.merge)
    prediction = predicted_ids(logits, (truth.shape[0], truth.shape[1]))
    num_classes = len(dataset.scored_classes)
    edges = [boundary_f(boundary_counts(truth, prediction, label)) for label in range(num_classes)]
    return _Scored(sample.id, truth, confusion_matrix(truth, prediction, num_classes), edges)


def predicted_ids(logits: Tensor, size: tuple[int, int]) -> UInt8:
    """Returns the class ids uint8 [H, W] of logits [C, h, w], enlarged to a height and width."""
    ids: UInt8 = upsample(logits, size).argmax(dim=0).to(torch.uint8).cpu().numpy()
    return ids


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns logits [C, H, W] at another height and width, bilinear."""
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


class _EntropySum:
    """Cross-entropy summed over pixels, so that batches of any size give the same mean."""

    def __init__(self) -> None:
        self.total, self.pixels = 0.0, 0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        counted = int((labels != IGNORE).sum())
        if counted:
            self.total += float(cross_entropy(logits, labels.long())) * counted
            self.pixels += counted

    def mean(self) -> float:
        return self.total / max(1, self.pixels)


def summarise(images: ImageScores, classes: Sequence[Class], groups: Sequence[str]) -> Scores:
    """Returns every score but cross-entropy from per-image counts; None for a class that is absent.

    Args:
        images: confusions [N, C, C] and boundary scores [N, C].
        classes: C, as scored.
        groups: N names, "" where there are none.
    """
    confusions = images.confusions
    total = confusions.sum(axis=0)
    per_image = mean_iou(confusions)
    edges = mean_over_classes(images.boundaries.T)
    of_group: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        if group:
            of_group[group].append(row)

    def by_class(scores: Score) -> dict[str, float | None]:
        return {entry.name: _number(value) for entry, value in zip(classes, scores, strict=True)}

    return Scores(
        split="",
        data="",
        images=len(images.ids),
        frame="each image's own size",
        cross_entropy=0.0,
        cross_entropy_frame="",
        miou=float(mean_iou(total)),
        iou=by_class(iou(total)),
        mean_dice=float(mean_over_classes(dice(total))),
        dice=by_class(dice(total)),
        pixel_accuracy=float(pixel_accuracy(total)),
        mean_boundary_f=_number(mean_over_classes(edges)),
        boundary_f=by_class(edges),
        image_miou=ImageMiou(mean=float(np.nanmean(per_image)), median=float(np.nanmedian(per_image))),
        group_miou={group: float(mean_iou(confusions[rows].sum(axis=0))) for group, rows in sorted(of_group.items())},
    )


def _number(value: Score) -> float | None:
    return None if np.isnan(value) else float(value)


# --- trained runs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedRun:
    """A run folder's model on the device."""

    network: Network
    config: RunConfig
    data: DataInfo
    weights: str
    """The file's name."""
    epoch: int
    """That the weights are of."""


def load_run(run: Path, hardware: Hardware) -> TrainedRun:
    """Returns a trained run: the weights of the best validation epoch where the dataset has a test split.

    Without one, the figures are themselves validation figures, and the weights are those of the last epoch.

    Raises:
        PetsegError: not a trained run, or a damaged one.
    """
    config, data = runs.read_config(run), runs.read_data(run)
    weights = BEST if "test" in data.splits else LAST
    network = build_network(config.model, len(data.classes), hardware)
    return TrainedRun(network, config, data, weights, load_weights(network.module, run / weights))


def evaluate_run(
    run: Path,
    hardware: Hardware,
    splits: Mapping[str, Split],
    name: str,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Returns the evaluation of a trained run on a split (`load_run`: of which weights), computed once and kept.

    Args:
        run: its folder.
        hardware: where to compute.
        splits: of `load_splits`.
        name: of the split.
        on_progress: called with (done, total) images.

    Raises:
        PetsegError: not a trained run, a split that the dataset does not have, or one of other classes.
    """
    trained = load_run(run, hardware)
    if name not in splits:
        raise unknown_name("split", name, splits)
    split = splits[name]
    own, given = ([entry.name for entry in classes] for classes in (trained.data.classes, split.dataset.classes))
    if own != given:
        raise PetsegError(f"{run} was trained on classes {', '.join(own)}; the labels are of {', '.join(given)}")
    stored = run / "evaluations" / f"{name}.json"
    known = read_evaluation(stored)
    wanted = (trained.weights, trained.epoch, split.prepared.key, len(split.rows))
    if known is not None:
        scores = known.scores
        if (scores.weights, scores.epoch, scores.data, len(known.images.ids)) == wanted:
            return known
    new = evaluate(trained.network, split, name, on_progress)
    scores = new.scores.model_copy(update={"weights": trained.weights, "epoch": trained.epoch})
    write_evaluation(Evaluation(scores, new.images), stored)
    return Evaluation(scores, new.images)


class ImageRows(Record):
    """SPLIT.images.json: a row an image."""

    columns: tuple[str, ...]
    images: tuple[tuple[str, tuple[int, ...], tuple[float | None, ...]], ...]


def _images_file(stored: Path) -> Path:
    return stored.with_suffix(".images.json")


def write_evaluation(evaluation: Evaluation, stored: Path) -> None:
    """Writes SPLIT.images.json (one line an image), then SPLIT.json."""
    images = evaluation.images
    rows = zip(images.ids, images.confusions, images.boundaries, strict=True)

    def lines() -> Iterator[str]:
        for sample_id, confusion, edges in rows:
            scores = [None if np.isnan(f) else round(float(f), 4) for f in edges]
            yield json.dumps([sample_id, confusion.ravel().tolist(), scores])

    head = '{"columns": ["name", "confusion, rows truth", "boundary F by class"],\n"images": [\n'
    text = head + ",\n".join(lines()) + "\n]}\n"
    storage.write_atomically(_images_file(stored), lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
    write_record(stored, evaluation.scores)


def read_images(stored: Path, num_classes: int) -> ImageScores:
    """Returns the per-image counts beside SPLIT.json.

    Raises:
        PetsegError: missing or damaged.
    """
    path = _images_file(stored)
    try:
        rows = ImageRows.model_validate_json(path.read_bytes()).images
        ids, confusions, edges = zip(*rows, strict=True)
        counts = np.array(confusions, np.int64).reshape(-1, num_classes, num_classes)
        return ImageScores(tuple(ids), counts, np.array(edges, np.float64).reshape(-1, num_classes))
    except (OSError, ValidationError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise PetsegError(f"{path}: no per-image counts in it ({reason}); score the run again") from None


def read_evaluation(stored: Path) -> Evaluation | None:
    """Returns a stored evaluation, None where there is none or a damaged one: scoring again costs seconds."""
    try:
        scores = read_record(stored, Scores)
        return Evaluation(scores, read_images(stored, len(scores.iou)))
    except PetsegError:
        return None
