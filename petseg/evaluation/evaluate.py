"""Evaluation: every score of a model on one split, of logits enlarged (bilinear) to each image's own size.

Cross-entropy is the one score at the training size: it belongs to the loss.
"""

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from petseg import metrics, storage
from petseg.config import RunConfig
from petseg.data.cache import Prepared
from petseg.data.dataset import Class, Dataset, Progress, Sample, UInt8, scored_ids
from petseg.data.images import open_ids, resize_ids
from petseg.errors import PetsegError, first_line, unknown_name
from petseg.metrics import Confusion, Score
from petseg.schema import DataInfo, Record, Scores, read_record, write_record
from petseg.training import checkpoint, inference, runs
from petseg.training.batches import Rows, Split
from petseg.training.device import Hardware
from petseg.training.inference import Network, Seen, class_ids, scored_logits
from petseg.training.losses import CrossEntropySum


def silent(done: int, total: int) -> None:
    """Reports progress to nobody."""


@dataclass(frozen=True)
class ImageScores:
    """What all scores but cross-entropy come from; row i is one image."""

    ids: tuple[str, ...]
    confusions: Confusion  #: int64 [N, C, C]: rows truth, columns prediction
    boundaries: Score  #: float64 [N, C]: boundary F-score of each class, nan where it has none


@dataclass(frozen=True)
class Evaluation:
    """The scores of one model on one split, and the counts that they come from."""

    scores: Scores
    images: ImageScores


def evaluate(network: Network, split: Split, name: str, on_progress: Progress = silent) -> Evaluation:
    """Returns the scores of a network on the images of one split; `name` is the split's, for the scores."""
    dataset, prepared = split.dataset, split.prepared
    sizes = dataset.loss_sizes if prepared.geometry.fit == "square" else ()  # figures to compare, which are of squares
    loss, loss_at = CrossEntropySum(), {size: CrossEntropySum() for size in sizes}
    image_class = inference.ImageClass(dataset.merge)
    ids: list[str] = []
    confusions: list[Confusion] = []
    boundaries: list[list[float]] = []
    with ThreadPoolExecutor() as pool:
        bands: list[Tensor] = []
        for seen in inference.predict_logits(network, split, split.rows):
            image_class.add(seen)
            logits = scored_logits(seen.logits, dataset.merge)
            loss.add(logits, inference.scored_labels(seen.labels, dataset.merge))
            if not (images := joined(seen, logits, bands)):
                continue
            samples = [prepared.samples[row] for row in seen.rows]
            ids += [sample.id for sample in samples]
            scored = pool.map(partial(_score, dataset), samples, images)
            for one, (truth, confusion, edges) in zip(images, scored, strict=True):
                confusions.append(confusion)
                boundaries.append(edges)
                for size, total in loss_at.items():
                    small = torch.from_numpy(resize_ids(truth, (size, size)).copy())[None].to(one.device)
                    total.add(upsample(one, (size, size))[None], small)
            on_progress(len(confusions), len(split.rows))
    right = image_class.right()
    counts = ImageScores(tuple(ids), np.stack(confusions), np.array(boundaries))
    groups = [prepared.samples[row].group for row in split.rows]
    scores = summarise(
        counts,
        dataset.scored_classes,
        groups,
        split=name,
        data=prepared.key,
        cross_entropy=loss.mean(),
        cross_entropy_frame=str(prepared.geometry),
        cross_entropy_at={str(size): total.mean() for size, total in loss_at.items()},
        image_class_accuracy=float(np.mean(right)) if right else None,
        image_class_images=len(right) or None,
    )
    return Evaluation(scores, counts)


def joined(seen: Seen, logits: Tensor, bands: list[Tensor]) -> list[Tensor]:
    """Returns the logits [C, h, w] of each image, or the class ids uint8 [h, w] of one whose `bands` are complete."""
    if seen.whole:
        return list(logits)
    bands.append(class_ids(logits[0], dim=0))
    if not seen.last:
        return []
    ids = torch.cat(bands)
    bands.clear()
    return [ids]


def _score(dataset: Dataset, sample: Sample, seen: Tensor) -> tuple[UInt8, Confusion, list[float]]:
    """Returns truth, confusion matrix and boundary F-scores of one image, of what `joined` returns of it."""
    truth = read_truth(dataset, sample)
    prediction = predicted_ids(seen, truth.shape)
    num_classes = len(dataset.scored_classes)
    edges = [metrics.boundary_f(metrics.boundary_counts(truth, prediction, label)) for label in range(num_classes)]
    return truth, metrics.confusion_matrix(truth, prediction, num_classes), edges


def read_truth(dataset: Dataset, sample: Sample) -> UInt8:
    """Returns the scored class ids uint8 [H, W] of a sample's label, at its own size."""
    return scored_ids(open_ids(dataset, sample), dataset.merge)


def predicted_ids(logits: Tensor, size: Sequence[int]) -> UInt8:
    """Returns class ids uint8 [H, W] of logits [C, h, w], enlarged to a height and width, or of class ids [h, w]."""
    if logits.ndim == 2:
        return resize_ids(logits.cpu().numpy(), (size[0], size[1]))
    ids: UInt8 = class_ids(upsample(logits, size), dim=0).cpu().numpy()
    return ids


def predict_ids(network: Network, split: Split, row: Rows, size: Sequence[int]) -> UInt8:
    """Returns the scored class ids uint8 [H, W] that a network predicts for an image, at a height and width."""
    bands: list[Tensor] = []
    for seen in inference.predict_logits(network, split, row):
        images = joined(seen, scored_logits(seen.logits, split.dataset.merge), bands)
    return predicted_ids(images[0], size)


def upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Returns logits [C, H, W] at another height and width, bilinear."""
    return F.interpolate(logits[None], size=list(size), mode="bilinear", align_corners=False)[0]


def joined_folds(folds: Sequence[Evaluation], dataset: Dataset) -> Evaluation:
    """Returns the evaluation of the images of all folds of a cross-validation, each by the network of its own fold."""
    if len(folds) == 1:
        return folds[0]
    images = ImageScores(
        tuple(name for fold in folds for name in fold.images.ids),
        np.concatenate([fold.images.confusions for fold in folds]),
        np.concatenate([fold.images.boundaries for fold in folds]).round(4),  # as in files, from where it goes on
    )
    losses = mean_scores([fold.scores for fold in folds], [len(fold.images.ids) for fold in folds])
    kept = ("split", "data", "cross_entropy", "cross_entropy_frame", "cross_entropy_at", "image_class_accuracy")
    others = {name: getattr(losses, name) for name in kept}
    others["image_class_images"] = sum(fold.scores.image_class_images or 0 for fold in folds) or None
    groups = [dataset.by_id[name].group for name in images.ids]
    return Evaluation(summarise(images, dataset.scored_classes, groups, **others), images)


def mean_scores(trainings: Sequence[Scores], weights: Sequence[float] | None = None) -> Scores:
    """Returns the mean of each score over trainings of one model, and all their confusion matrices together."""
    if len(trainings) == 1:
        return trainings[0]

    def mean(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {name: mean([value.get(name) for value in values]) for name in values[0]}
        known = [place for place, value in enumerate(values) if isinstance(value, float)]
        if not known:
            return values[0]
        return float(
            np.average([values[place] for place in known], weights=weights and [weights[place] for place in known])
        )

    found = {name: mean([getattr(scores, name) for scores in trainings]) for name in Scores.model_fields}
    together = np.sum([scores.confusion for scores in trainings], axis=0).tolist()
    return Scores(**found | {"epoch": 0, "confusion": tuple(map(tuple, together))})


def summarise(images: ImageScores, classes: Sequence[Class], groups: Sequence[str], **others: Any) -> Scores:
    """Returns every score of per-image counts, and the `others`; None for an absent class; a group may be ""."""
    confusions = images.confusions
    total = confusions.sum(axis=0)
    per_image = metrics.mean_iou(confusions)
    edges = metrics.mean_over_classes(images.boundaries.T)
    of_group = {group: [row for row, own in enumerate(groups) if own == group] for group in sorted({*groups} - {""})}
    by_group = {group: float(metrics.mean_iou(confusions[rows].sum(axis=0))) for group, rows in of_group.items()}

    def by_class(scores: Score) -> dict[str, float | None]:
        return {entry.name: _number(value) for entry, value in zip(classes, scores, strict=True)}

    return Scores(
        images=len(images.ids),
        frame="each image's own size",
        miou=float(metrics.mean_iou(total)),
        iou=by_class(metrics.iou(total)),
        mean_dice=float(metrics.mean_over_classes(metrics.dice(total))),
        dice=by_class(metrics.dice(total)),
        pixel_accuracy=float(metrics.pixel_accuracy(total)),
        mean_boundary_f=_number(metrics.mean_over_classes(edges)),
        boundary_f=by_class(edges),
        image_miou={"mean": float(np.nanmean(per_image)), "median": float(np.nanmedian(per_image))},
        confusion=tuple(tuple(row) for row in total.tolist()),
        group_miou={group: miou for group, miou in by_group.items() if not np.isnan(miou)},  # nan: no labelled pixel
        **others,
    )


def _number(value: Score) -> float | None:
    return None if np.isnan(value) else float(value)


@dataclass(frozen=True)
class TrainedRun:
    """A run folder's model on the device, from the file `weights` of some epoch."""

    network: Network
    config: RunConfig
    data: DataInfo
    weights: str
    epoch: int


def load_run(run: Path, hardware: Hardware) -> TrainedRun:
    """Returns a trained run: its best weights on validation, or the last where, without a test split, that scores."""
    config, data = runs.read_config(run), runs.read_data(run)
    weights = checkpoint.BEST if "test" in data.splits else checkpoint.LAST
    network = inference.run_network(run, config.model, len(data.classes), hardware)
    epoch = checkpoint.load_weights(network.module, run / weights)
    network.module.eval()
    return TrainedRun(network, config, data, weights, epoch)


def evaluate_run(
    run: str | Path, hardware: Hardware, splits: Mapping[str, Split], name: str, on_progress: Progress = silent
) -> Evaluation:
    """Returns the evaluation of a trained run (see `load_run`) on a split of its classes, computed once and kept.

    That of other images than the run's is kept under their name, beside the run's own.
    """
    run = Path(run)
    trained = load_run(run, hardware)
    if name not in splits:
        raise unknown_name("split", name, splits)
    split = splits[name]
    own, given = ([entry.name for entry in classes] for classes in (trained.data.classes, split.dataset.classes))
    if own != given:
        raise PetsegError(f"{run} was trained on classes {', '.join(own)}; the labels are of {', '.join(given)}")
    stored = run / "evaluations" / f"{name}{others_suffix(trained.data, split.prepared)}.json"
    return evaluate_once(stored, trained.network, split, (trained.weights, trained.epoch), on_progress)


def others_suffix(own: DataInfo, prepared: Prepared) -> str:
    """Returns what the name of a run's file about other images than its own has after the split's."""
    return "" if prepared.key == own.key else "." + re.sub(r"[^\w-]+", "_", prepared.dataset.name)


def evaluate_once(
    stored: Path, network: Network, split: Split, weights: tuple[str, int] = ("", 0), on_progress: Progress = silent
) -> Evaluation:
    """Returns the evaluation in the file `stored`, made anew if it is of other weights, epoch or images.

    Its name begins with the split's, up to a point.
    """
    known, wanted = read_evaluation(stored), (*weights, split.prepared.key, len(split.rows))
    if known and (known.scores.weights, known.scores.epoch, known.scores.data, len(known.images.ids)) == wanted:
        return known
    new = evaluate(network, split, stored.name.partition(".")[0], on_progress)
    new = replace(new, scores=new.scores.model_copy(update={"weights": weights[0], "epoch": weights[1]}))
    write_evaluation(new, stored)
    return new


class ImageRows(Record):
    """SPLIT.images.json: a row an image."""

    columns: tuple[str, ...]
    images: tuple[tuple[str, tuple[int, ...], tuple[float | None, ...]], ...]


def write_evaluation(evaluation: Evaluation, stored: Path) -> None:
    """Writes SPLIT.images.json (one line an image), then SPLIT.json."""
    images = evaluation.images
    lines = []
    for sample_id, confusion, edges in zip(images.ids, images.confusions, images.boundaries, strict=True):
        scores = [None if np.isnan(f) else round(float(f), 4) for f in edges]
        lines.append(json.dumps([sample_id, confusion.ravel().tolist(), scores]))
    head = '{"columns": ["name", "confusion, rows truth", "boundary F by class"],\n"images": [\n'
    storage.write_text(stored.with_suffix(".images.json"), head + ",\n".join(lines) + "\n]}\n")
    write_record(stored, evaluation.scores)


def read_images(stored: Path, num_classes: int) -> ImageScores:
    """Returns the per-image counts beside SPLIT.json."""
    path = stored.with_suffix(".images.json")
    try:
        rows = ImageRows.model_validate_json(path.read_bytes()).images
        ids, confusions, edges = zip(*rows, strict=True)
        counts = np.array(confusions, np.int64).reshape(-1, num_classes, num_classes)
        return ImageScores(tuple(ids), counts, np.array(edges, np.float64).reshape(-1, num_classes))
    except (OSError, ValueError) as error:
        raise PetsegError(f"{path}: no per-image counts in it ({first_line(error)}); score the run again") from None


def read_evaluation(stored: Path) -> Evaluation | None:
    """Returns a stored evaluation, None where there is none or a damaged one: scoring again costs seconds."""
    try:
        scores = read_record(stored, Scores)
        return Evaluation(scores, read_images(stored, len(scores.iou)))
    except PetsegError:
        return None
