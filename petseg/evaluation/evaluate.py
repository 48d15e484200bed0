"""Evaluation: every score of a model on one split, at each image's own size.

Logits are enlarged (bilinear) to the size of the picture on disk, the class with the largest wins, and the prediction
is compared with the untouched trimap. Cross-entropy is the one score at the training size: it belongs to the loss.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petseg import storage
from petseg.config import RunConfig
from petseg.data.cache import Prepared, resize_labels
from petseg.data.oxford_pets import IGNORE, Pet, Task, UInt8, get_task, open_trimap
from petseg.errors import PetsegError, unknown_name
from petseg.evaluation.metrics import (
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
from petseg.models import build_model
from petseg.training import runs
from petseg.training.loop import (
    Hardware,
    Pictures,
    check_task,
    load_splits,
    load_weights,
    predict_logits,
    right_species,
    scored,
)
from petseg.training.losses import cross_entropy

SEED_SIZE = 200
"""The classic tutorial's side in pixels: under protocol `seed` the cross-entropy is reported there too."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of one model on one split, and the counts that they come from."""

    scores: dict[str, Any]
    """As written to `evaluations/SPLIT.json`."""
    names: tuple[str, ...]
    confusions: Confusion
    """int64 [N, C, C], one a picture: rows truth, columns prediction."""
    boundaries: Score
    """float64 [N, C]: boundary F-score of each class in each picture, nan where it has none."""


def evaluate(
    model: nn.Module,
    prepared: Prepared,
    pictures: Pictures,
    config: RunConfig,
    hardware: Hardware,
    *,
    split: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Returns the scores of a model on the pictures of one split.

    Args:
        model: gives logits [N, C, H, W] of normalised images.
        prepared: where the pictures come from.
        pictures: the split.
        config: names task, protocol and size.
        hardware: where to compute.
        split: its name, written into the scores.
        on_progress: called with (done, total) pictures.

    Raises:
        PetsegError: the pictures are labelled for another task.
    """
    trained = get_task(config.data.task, config.data.border)
    task = trained.scored
    check_task(pictures, trained)
    num_classes = len(task.classes)
    table = task.table()
    species: list[bool] = []
    confusions: list[Confusion] = []
    boundaries: list[list[float]] = []
    entropy, entropy_seed = _EntropySum(), _EntropySum()

    def score(logits: Tensor, pet: Pet) -> tuple[Confusion, list[float], UInt8]:
        truth = table[pet.species][open_trimap(pet)]
        prediction = upsample(logits, (truth.shape[0], truth.shape[1])).argmax(dim=0).to(torch.uint8).cpu().numpy()
        edges = [boundary_f(boundary_counts(truth, prediction, label)) for label in range(num_classes)]
        return confusion_matrix(truth, prediction, num_classes), edges, truth

    with ThreadPoolExecutor() as pool:
        for rows, batch_labels, logits in predict_logits(model, pictures, pictures.rows, hardware):
            species += right_species(logits, batch_labels, trained)
            logits, batch_labels = scored(logits, batch_labels, trained)
            entropy.add(logits, batch_labels)
            pets = [prepared.pets[row] for row in rows]
            for one_logits, (confusion, edges, truth) in zip(logits, pool.map(score, logits, pets), strict=True):
                confusions.append(confusion)
                boundaries.append(edges)
                if config.data.protocol == "seed":
                    labels = torch.from_numpy(resize_labels(truth, (SEED_SIZE, SEED_SIZE)).copy())
                    entropy_seed.add(
                        upsample(one_logits, (SEED_SIZE, SEED_SIZE))[None], labels[None].to(hardware.device)
                    )
            if on_progress is not None:
                on_progress(len(confusions), len(pictures.rows))

    names = tuple(prepared.pets[row].name for row in pictures.rows)
    breeds = [prepared.pets[row].breed for row in pictures.rows]
    matrices, outlines = np.stack(confusions), np.array(boundaries)
    scores = {
        "split": split,
        "data": prepared.key,
        "images": len(names),
        "frame": "each image's own size",
        "cross_entropy": entropy.mean(),
        "cross_entropy_frame": f"{config.data.size} px",
        **({f"cross_entropy_{SEED_SIZE}": entropy_seed.mean()} if config.data.protocol == "seed" else {}),
        **({"species_accuracy": float(np.mean(species)), "species_images": len(species)} if species else {}),
        **summarise(matrices, outlines, breeds, task),
    }
    return Evaluation(scores, names, matrices, outlines)


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
        return self.total / self.pixels


def summarise(confusions: Confusion, boundaries: Score, breeds: Sequence[str], task: Task) -> dict[str, Any]:
    """Returns every score but cross-entropy from per-image counts; None for a class that is absent.

    Args:
        confusions: int64 [N, C, C].
        boundaries: float64 [N, C], nan where a class has no boundary.
        breeds: N names.
        task: names the classes.
    """
    total = confusions.sum(axis=0)
    per_image = mean_iou(confusions)
    edges = mean_over_classes(boundaries.T)
    of_breed: dict[str, list[int]] = defaultdict(list)
    for row, breed in enumerate(breeds):
        of_breed[breed].append(row)

    def by_class(scores: Score) -> dict[str, float | None]:
        return {
            name: None if np.isnan(value) else float(value) for name, value in zip(task.classes, scores, strict=True)
        }

    return {
        "miou": float(mean_iou(total)),
        "iou": by_class(iou(total)),
        "mean_dice": float(mean_over_classes(dice(total))),
        "dice": by_class(dice(total)),
        "pixel_accuracy": float(pixel_accuracy(total)),
        "mean_boundary_f": float(mean_over_classes(edges)),
        "boundary_f": by_class(edges),
        "image_miou": {"mean": float(np.nanmean(per_image)), "median": float(np.nanmedian(per_image))},
        "breed_miou": {
            breed: float(mean_iou(confusions[rows].sum(axis=0))) for breed, rows in sorted(of_breed.items())
        },
    }


def load_run(run: Path, hardware: Hardware) -> tuple[nn.Module, RunConfig, str, int]:
    """Returns a trained model on the device, its config, the weights' file name and the epoch they are of.

    Under protocol `official` the weights of the best validation epoch; under `seed` those of the last, since its
    figures are themselves validation figures.

    Raises:
        PetsegError: not a trained run, or a damaged one.
    """
    config = runs.read_config(run)
    weights = "best.safetensors" if config.data.protocol == "official" else "last.safetensors"
    num_classes = len(get_task(config.data.task, config.data.border).classes)
    model = build_model(config.model, num_classes).to(hardware.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    epoch = load_weights(model, run / weights)
    return model, config, weights, epoch


def evaluate_run(
    run: Path,
    prepared: Prepared,
    hardware: Hardware,
    *,
    split: str,
    splits: Mapping[str, Pictures] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Returns the evaluation of a trained run (`load_run` says of which weights), computed once and then read back.

    Raises:
        PetsegError: not a trained run, or a split that the protocol does not have.
    """
    model, config, weights, epoch = load_run(run, hardware)
    splits = splits or load_splits(prepared, config, hardware.device)
    if split not in splits:
        raise unknown_name(f"split of protocol {config.data.protocol}", split, splits)
    stored = run / "evaluations" / f"{split}.json"
    known = read_evaluation(stored, len(splits[split].rows), weights=weights, epoch=epoch, data=prepared.key)
    if known is not None:
        return known
    found_now = evaluate(model, prepared, splits[split], config, hardware, split=split, on_progress=on_progress)
    scores = {"weights": weights, "epoch": epoch, **found_now.scores}
    evaluation = Evaluation(scores, found_now.names, found_now.confusions, found_now.boundaries)
    write_evaluation(evaluation, stored)
    return evaluation


def _images_file(stored: Path) -> Path:
    return stored.with_suffix(".images.json")


def write_evaluation(evaluation: Evaluation, stored: Path) -> None:
    """Writes SPLIT.images.json (one line a picture), then SPLIT.json."""
    rows = [
        json.dumps([name, confusion.ravel().tolist(), [None if np.isnan(f) else round(float(f), 4) for f in edges]])
        for name, confusion, edges in zip(evaluation.names, evaluation.confusions, evaluation.boundaries, strict=True)
    ]
    text = (
        '{"columns": ["name", "confusion, rows truth", "boundary F by class"],\n"images": [\n'
        + ",\n".join(rows)
        + "\n]}\n"
    )
    storage.write_atomically(_images_file(stored), lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
    storage.write_json(stored, evaluation.scores)


def read_evaluation(stored: Path, images: int, **wanted: Any) -> Evaluation | None:
    """Returns a stored evaluation, None where there is none of this many pictures and these `wanted` values.

    A damaged one is none either: scoring again costs seconds and loses nothing.
    """
    try:
        scores, rows = storage.read_json(stored), storage.read_json(_images_file(stored))["images"]
        if any(scores.get(name) != value for name, value in wanted.items()) or len(rows) != images:
            return None
        num_classes = len(scores["iou"])
        names, confusions, edges = zip(*rows, strict=True)
        return Evaluation(
            scores,
            tuple(names),
            np.array(confusions, np.int64).reshape(-1, num_classes, num_classes),
            np.array(edges, np.float64).reshape(-1, num_classes),
        )
    except (PetsegError, KeyError, TypeError, ValueError):
        return None
