"""A whole study in a second: the shipped recipe's runs, with counts that are drawn and never published."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from petseg import storage
from petseg.config import ModelConfig
from petseg.data.oxford_pets import get_task
from petseg.evaluation.corruptions import changes
from petseg.evaluation.evaluate import Evaluation, summarise, write_evaluation
from petseg.evaluation.robustness import EVERY
from petseg.experiments.study.plan import Run, plan
from petseg.experiments.study.recipe import Study, load_study
from petseg.experiments.study.results import ROBUSTNESS
from petseg.training import runs

BREEDS = ("Abyssinian", "Bombay", "beagle", "pug")
TRAPS = ("Abyssinian_177", "Birman_165")
"""Names that lie on both sides of the official split."""

MATCHES: dict[str, Any] = {
    "main:segnet/parameters": {"convs": [2, 2, 4, 3, 3]},
    "main:segnet/latency": {"base_channels": 17},
    "depth:unet/deeper": {"base_channels": 8},
    "depth:segnet/deeper": {"base_channels": 8},
}
TUNED = {"unet": {"learning_rate": 4e-3, "warmup": 0.05}, "segnet": {"learning_rate": 1e-3, "warmup": 0.3}}


def names_of(split: str, count: int) -> tuple[str, ...]:
    first = 1 if split == "val" else 301
    return tuple(sorted(f"{BREEDS[place % len(BREEDS)]}_{first + place // len(BREEDS)}" for place in range(count)))


def truths(split: str, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """True pixels by class of each picture, the same for every run."""
    rng = np.random.default_rng(len(split))
    pet = rng.integers(200, 6000, count)
    return np.stack([pet, rng.integers(3000, 9000, count), pet // 4 + 50], axis=1)


def drawn_counts(true: Any, quality: float, rng: np.random.Generator) -> Any:
    """Confusion matrices of a model that is right in about `quality` of the pixels."""
    easy = np.clip(quality + np.array([0.0, 0.05, -0.15]) + rng.normal(0, 0.03, true.shape), 0.05, 0.99)
    right = np.round(true * easy).astype(np.int64)
    counts = np.zeros((len(true), 3, 3), np.int64)
    for row in range(3):
        wrong = true[:, row] - right[:, row]
        part = np.round(wrong * rng.uniform(0.2, 0.8, len(true))).astype(np.int64)
        first, second = [place for place in range(3) if place != row]
        counts[:, row, row], counts[:, row, first], counts[:, row, second] = right[:, row], part, wrong - part
    return counts


def quality_of(run: Run) -> float:
    """What the made world says a run is worth."""
    model, train = run.config.model, run.config.train
    found = 0.86 if model.name == "unet" else 0.82
    found += 0.02 * np.log2((model.base_channels or 16) / 16) - (0.05 if model.skips is False else 0)
    found += 0.02 * np.log2(run.config.data.fraction) - (0.03 if model.batch_norm is False else 0)
    best = TUNED[model.name]
    found -= (0.01 if model.name == "unet" else 0.03) * abs(np.log2(train.learning_rate / best["learning_rate"]))
    return float(found - (0 if train.augment.flip else 0.01))


def make_study(
    folder: Path,
    study: Study | None = None,
    *,
    val: int = 24,
    test: int = 48,
    shapes: dict[str, Any] = MATCHES,
    leave_out: Any = lambda run: False,
) -> Path:
    """Returns the folder, now with study.json and every run that `leave_out` does not name."""
    study = study or load_study("study")
    pictures = {"train": 3312, "val": val, "test": test}
    matches = {
        key: {"question": {}, "model": model, "quantity": "parameters", "wanted": 100, "found": 101}
        for key, model in shapes.items()
    }
    found = plan(study, matches, TUNED)
    manifest: dict[str, Any] = {
        "kind": "study",
        "version": 1,
        "petseg": "0.1.0",
        "title": study.title,
        "recipe": study.model_dump(mode="json"),
        "data": {"source": "drawn counts", "key": "0", "pictures": pictures},
        "matches": matches,
        "costs": {run.key: made_cost(run.config.model, run.config.data.size) for run in found},
        "latency_environment": {"engine": "ONNX Runtime, one thread, batch 1, float32", "processor": "made"},
        "tuned": TUNED,
        "at_once": [1, 2],
        "runs": [],
    }
    for run in found:
        made = not leave_out(run)
        manifest["runs"].append(
            {
                "name": run.name,
                "state": "finished" if made else "missing",
                "waits": "",
                "cost": run.key,
                "splits": list(run.splits),
                "rows": [asdict(row) for row in run.rows],
            }
        )
        if made:
            make_run(folder / "runs" / run.name, run, pictures)
    storage.write_json(folder / "study.json", manifest)
    return folder


def made_cost(model: ModelConfig, size: int) -> dict[str, Any]:
    width = (model.base_channels or 16) / 16
    heavy = 1.2 if model.name == "unet" else 1.0
    latency = heavy * width**1.6 * size / 16
    return {
        "parameters": int(1_900_000 * heavy * width**2),
        "macs": int(400_000_000 * heavy * width**2),
        "activation_bytes": int(5_000_000 * heavy * width),
        "crossing_bytes": int(2_000_000 * heavy * width),
        "training_activation_bytes_per_image": int(14_000_000 * heavy * width),
        "latency_ms": {"p50": latency, "p95": 1.2 * latency, "repeats": 60},
    }


def make_run(place: Path, run: Run, pictures: dict[str, int]) -> None:
    rng = np.random.default_rng(run.number)
    quality = quality_of(run) + rng.normal(0, 0.004)
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(run.config.model_dump(mode="json")))
    machine = {"device": "cpu", "processor": "made", "threads": 2, "precision": "bf16", "torch": "2.13.0"}
    storage.write_json(place / "environment.json", {**machine, "platform": "made", "commit": "abc"})
    storage.write_json(place / "data.json", {"key": "0", "source": "drawn counts"})
    rows = []
    for epoch in range(1, run.config.train.epochs + 1):
        left = np.exp(-4 * epoch / run.config.train.epochs)
        rows.append(
            {
                "epoch": epoch,
                "seconds": 20.0 + epoch % 3,
                "train_seconds": 18.0,
                "train_loss": float(0.25 + 0.7 * left),
                "val_loss": float(0.3 + 0.7 * left + rng.normal(0, 0.01)),
                "val_miou": float(quality - 0.1 - 0.4 * left + rng.normal(0, 0.01)),
            }
        )
    runs.write_metrics(place, rows)
    for split in run.splits:
        if split == ROBUSTNESS:
            make_robustness(place / "evaluations", quality, pictures["test"], rng)
            continue
        count = pictures[split]
        counts = drawn_counts(truths(split, count), quality, rng)
        names = names_of(split, count)
        outlines = np.clip(rng.normal(quality - 0.3, 0.1, (count, 3)), 0, 1)
        breeds = [name.rpartition("_")[0] for name in names]
        scores = {
            "split": split,
            "images": count,
            "cross_entropy": float(1 - quality),
            **summarise(counts, outlines, breeds, get_task("trimap")),
        }
        write_evaluation(Evaluation(scores, names, counts, outlines), place / "evaluations" / f"{split}.json")


def make_robustness(place: Path, quality: float, test: int, rng: np.random.Generator) -> None:
    names = names_of("test", test)[::EVERY]
    rows = {}
    for change in changes():
        counts = drawn_counts(truths("test", test)[::EVERY], quality - 0.06 * change.strength, rng)
        rows[change.name] = [[name, matrix.ravel().tolist()] for name, matrix in zip(names, counts, strict=True)]
    (place / "robustness.images.json").write_text(json.dumps({"changes": rows}))
    storage.write_json(place / "robustness.json", {"every": EVERY, "images": len(names), "split": "test"})
