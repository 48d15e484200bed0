"""How a trained run stands corrupted images: every corruption of `petseg.evaluation.corruptions` on a part of test.

evaluations/robustness.json            scores by change
evaluations/robustness.images.json     per-picture counts by change
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from petseg import storage
from petseg.data.cache import Prepared
from petseg.data.oxford_pets import Pet, UInt8, get_task, open_trimap
from petseg.evaluation.corruptions import STRENGTHS, Change, changes
from petseg.evaluation.evaluate import load_run, upsample
from petseg.evaluation.metrics import Confusion, confusion_matrix, iou, mean_iou
from petseg.training.loop import Hardware, Pictures, predict_logits, scored

EVERY = 3
"""Each third test picture, by name: 18 changes of all of them would take as long as the training."""

BATCH = 32
"""Pictures whose truths are held at a time."""


def evaluate_robustness(
    run: Path,
    prepared: Prepared,
    hardware: Hardware,
    *,
    pictures: Pictures,
    kinds: Sequence[str] = tuple(STRENGTHS),
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Returns a run's scores on changed pictures at their own size, computed once and then read back.

    Args:
        run: a trained run of protocol `official`.
        prepared: where the pictures come from.
        hardware: where to compute.
        pictures: the test split.
        kinds: kinds of change, keys of `petseg.evaluation.corruptions.STRENGTHS`.
        on_progress: called with (done, total) pictures.

    Raises:
        PetsegError: not a trained run, or a damaged one.
    """
    model, config, weights, epoch = load_run(run, hardware)
    stored = run / "evaluations" / "robustness.json"
    rows = pictures.rows[np.argsort([prepared.pets[row].name for row in pictures.rows], kind="stable")][::EVERY]
    wanted = {"weights": weights, "epoch": epoch, "data": prepared.key, "every": EVERY, "images": len(rows)}
    asked = [change for change in changes() if change.kind in kinds]
    if stored.is_file():
        known = storage.read_json(stored)
        if {key: known.get(key) for key in wanted} == wanted and all(
            change.name in known["changes"] for change in asked
        ):
            return known
    trained = get_task(config.data.task, config.data.border)
    task = trained.scored
    table, num_classes = task.table(), len(task.classes)
    found: dict[Change, list[Confusion]] = {change: [] for change in asked}

    def score(logits: torch.Tensor, truth: UInt8) -> Confusion:
        prediction = upsample(logits, (truth.shape[0], truth.shape[1])).argmax(dim=0).to(torch.uint8).cpu().numpy()
        return confusion_matrix(truth, prediction, num_classes)

    def opened(pet: Pet) -> UInt8:
        truth: UInt8 = table[pet.species][open_trimap(pet)]
        return truth

    with ThreadPoolExecutor() as pool:
        for batch in np.split(rows, range(BATCH, len(rows), BATCH)):
            pets = [prepared.pets[row] for row in batch]
            truths = list(pool.map(opened, pets))
            images = pictures.images[torch.from_numpy(batch).to(pictures.images.device)].cpu().numpy()
            labels = pictures.labels[torch.from_numpy(batch).to(pictures.labels.device)]
            for change in found:
                worse = [
                    change.image(image, pet.name, (truth.shape[0], truth.shape[1]))
                    for image, pet, truth in zip(images, pets, truths, strict=True)
                ]
                moved = [
                    change.truth(truth, pet.name, config.data.size) for pet, truth in zip(pets, truths, strict=True)
                ]
                part = replace(
                    pictures, images=torch.from_numpy(np.stack(worse)), labels=labels, rows=np.arange(len(batch))
                )
                for _, batch_labels, logits in predict_logits(model, part, part.rows, hardware):
                    logits, _ = scored(logits, batch_labels, trained)
                    start = len(found[change]) % BATCH
                    found[change] += pool.map(score, logits, moved[start : start + len(logits)])
            if on_progress is not None:
                on_progress(len(next(iter(found.values()))), len(rows))
    names = [prepared.pets[row].name for row in rows]
    counts = {change.name: np.stack(matrices) for change, matrices in found.items()}
    scores = {**wanted, "split": "test", "changes": _scores(counts, task.classes)}
    _write(stored, scores, names, counts)
    return scores


def _scores(counts: Mapping[str, Confusion], classes: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for name, matrices in counts.items():
        total = matrices.sum(axis=0)
        by_class = {label: float(value) for label, value in zip(classes, iou(total), strict=True)}
        found[name] = {"miou": float(mean_iou(total)), "iou": by_class}
    return found


def _write(stored: Path, scores: Mapping[str, Any], names: list[str], counts: Mapping[str, Confusion]) -> None:
    rows = {
        change: [[name, matrix.ravel().tolist()] for name, matrix in zip(names, matrices, strict=True)]
        for change, matrices in counts.items()
    }
    text = json.dumps({"columns": ["name", "confusion, rows truth"], "changes": rows}, separators=(",", ":"))
    images = stored.with_suffix(".images.json")
    storage.write_atomically(images, lambda unfinished: unfinished.write_text(text + "\n", encoding="utf-8"))
    storage.write_json(stored, scores)
