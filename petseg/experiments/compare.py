"""The comparison: both models trained under one budget, evaluated on the same pictures, told in one JSON.

comparison.json     every figure of the report, with config, commit, device, seeds, split
runs/MODEL/         the run folders
baselines/          evaluations of what needs no learning
examples/           photo, truth and predictions of the pictures that the report shows
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from petseg import __version__, storage
from petseg import environment as machine
from petseg.config import Recipe, RunConfig
from petseg.data.cache import Prepared
from petseg.data.oxford_pets import NO_PET, get_task, open_pair
from petseg.evaluation.cost import count_cost, measure_latencies
from petseg.evaluation.evaluate import (
    Evaluation,
    evaluate,
    evaluate_run,
    load_run,
    read_evaluation,
    upsample,
    write_evaluation,
)
from petseg.evaluation.metrics import mean_iou
from petseg.evaluation.statistics import paired_bootstrap
from petseg.models import TITLES
from petseg.models.baselines import BASELINES, MeanMask
from petseg.training import runs
from petseg.training.loop import Hardware, Pictures, environment, load_splits, predict_logits, scored, train

BEST, MEDIAN, WORST, DIFFER = 2, 2, 2, 4
"""How many pictures of each kind the report shows."""

EXAMPLE_SIDE = 320
"""Longest side in pixels of the pictures in the report, so that it stays small enough to send."""


@dataclass(frozen=True)
class Stage:
    """What a comparison is doing, for a progress bar."""

    title: str
    done: int
    total: int
    detail: str = ""


def compare(
    recipe: Recipe,
    prepared: Prepared,
    out: Path,
    *,
    hardware: Hardware,
    command: str,
    resume: bool = False,
    made_data: bool = False,
    final: bool = True,
    on_stage: Callable[[Stage], None] | None = None,
) -> dict[str, Any]:
    """Returns the content of `out/comparison.json` after training and evaluating every model of a recipe.

    Args:
        recipe: models, data, training.
        prepared: the data set at the recipe's size.
        out: folder to make; with `resume` it may hold a part of the work, which is kept.
        hardware: where to compute.
        command: how to repeat it, for the report.
        resume: go on in `out`.
        made_data: the pictures are drawn, and every figure says so.
        final: score the official test split too; false stops at validation and calls the whole a taste, not a result.
        on_stage: called often.

    Raises:
        PetsegError: as `train` and `evaluate_run`.
    """
    tell = on_stage or (lambda stage: None)
    configs: dict[str, RunConfig] = {name: recipe.for_model(name) for name in recipe.models}
    task = get_task(recipe.data.task, recipe.data.border)
    costs = {name: count_cost(config.model, len(task.classes), config.data.size) for name, config in configs.items()}
    pictures = load_splits(prepared, configs[recipe.models[0]], hardware.device)
    with runs.new_folder(out, resume=resume):
        runs.claim_data(out, prepared.key, prepared.source)
        histories = {}
        for name, config in configs.items():
            train_title = f"train {TITLES[name]}"
            histories[name] = train(
                config,
                prepared,
                out / "runs" / name,
                hardware=hardware,
                resume=resume,
                splits=pictures,
                on_progress=lambda step, title=train_title: tell(Stage(title, step.step, step.steps, step.words)),  # type: ignore[misc]
            )

        protocol = recipe.data.protocol
        splits = ["val", "test"] if protocol == "official" and final else ["val"]
        split = splits[-1]
        evaluations: dict[str, dict[str, Evaluation]] = {name: {} for name in configs}
        for part in splits:
            for name in configs:
                bar_title = f"score {TITLES[name]} on {part}"
                evaluations[name][part] = evaluate_run(
                    out / "runs" / name,
                    prepared,
                    hardware,
                    split=part,
                    splits=pictures,
                    on_progress=lambda done, total, title=bar_title: tell(Stage(title, done, total)),  # type: ignore[misc]
                )
        baselines = _evaluate_baselines(configs[recipe.models[0]], prepared, pictures, out, hardware, splits, tell)
        models = {name: load_run(out / "runs" / name, hardware)[0] for name in configs}
        latencies = measure_latencies(models, recipe.data.size, hardware)
        examples = _write_examples(
            recipe,
            prepared,
            pictures[split],
            models,
            {name: evaluations[name][split] for name in configs},
            out,
            hardware,
            tell,
        )

        environments = {name: storage.read_json(out / "runs" / name / "environment.json") for name in configs}
        comparison: dict[str, Any] = {
            "kind": "comparison",
            "version": 1,
            "petseg": __version__,
            "command": command,
            "created": machine.now(),
            "made_data": made_data,
            "taste": not final,
            "protocol": protocol,
            "task": recipe.data.task,
            "classes": list(task.scored.classes),
            "split": split,
            "seeds": [recipe.train.seed],
            "size": recipe.data.size,
            "config": recipe.model_dump(mode="json"),
            "environment": environments[recipe.models[0]],
            "scoring_environment": environment(hardware),
            "data": {
                "source": "made pets, drawn by petseg" if made_data else prepared.source,
                "key": prepared.key,
                "pairs": len(prepared.all_listed),
                **{part: len(found.rows) for part, found in pictures.items()},
                "left_out": prepared.left_out,
            },
            "models": [
                {
                    "name": name,
                    "title": TITLES[name],
                    "learning_rate": config.train.learning_rate,
                    "best_epoch": evaluations[name][split].scores["epoch"],
                    "environment": environments[name],
                    "cost": {
                        **asdict(costs[name]),
                        "latency_ms": {**asdict(latencies[name]), "batch": 1, "size": config.data.size},
                        **_training_time(histories[name], len(pictures["train"].rows)),
                    },
                    "history": histories[name],
                    "evaluations": {part: found.scores for part, found in evaluations[name].items()},
                }
                for name, config in configs.items()
            ],
            "baselines": baselines,
            "difference": _difference(recipe.models, evaluations, split),
            "examples": examples,
        }
        storage.write_json(out / "comparison.json", comparison)
        return comparison


def _training_time(history: Sequence[Mapping[str, Any]], images: int) -> dict[str, float]:
    """Returns time and speed of training by the median epoch."""
    return {
        "train_seconds": round(runs.epoch_seconds(history) * len(history), 1),
        "train_images_per_second": round(images / runs.epoch_seconds(history, "train_seconds"), 2),
    }


def _difference(
    names: Sequence[str], evaluations: Mapping[str, Mapping[str, Evaluation]], split: str
) -> dict[str, Any]:
    first, second = names[0], names[1]
    found = paired_bootstrap(evaluations[first][split].confusions, evaluations[second][split].confusions)
    return {
        "a": first,
        "b": second,
        "split": split,
        "metric": "mIoU",
        "points": found.points,
        "interval": [found.low, found.high],
        "confidence": found.confidence,
        "resamples": found.resamples,
        "share_a_better": found.share_first_better,
        "over": "images; one seed",
    }


def _evaluate_baselines(
    config: RunConfig,
    prepared: Prepared,
    pictures: Mapping[str, Pictures],
    out: Path,
    hardware: Hardware,
    splits: Sequence[str],
    tell: Callable[[Stage], None],
) -> list[dict[str, Any]]:
    task = get_task(config.data.task, config.data.border)
    training = pictures["train"]
    labels = training.labels.cpu().numpy()[training.rows]
    found: list[dict[str, Any]] = []
    for name, (title, everywhere) in BASELINES.items():
        model = MeanMask(labels, len(task.classes), everywhere=everywhere).to(hardware.device)
        scores = {}
        for part in splits:
            stored = out / "baselines" / name / f"{part}.json"
            evaluation = read_evaluation(stored, len(pictures[part].rows), data=prepared.key)
            if evaluation is None:
                evaluation = evaluate(
                    model,
                    prepared,
                    pictures[part],
                    config,
                    hardware,
                    split=part,
                    on_progress=lambda done, total, title=f"score {title} on {part}": tell(Stage(title, done, total)),  # type: ignore[misc]
                )
                write_evaluation(evaluation, stored)
            scores[part] = evaluation.scores
        found.append({"name": name, "title": title, "evaluations": scores})
    return found


def choose_examples(scores: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]) -> list[tuple[int, str]]:
    """Returns (row, why) of the pictures to show: by the models' mean score, then where the first two differ most.

    Args:
        scores: model -> per-image mIoU, float64 [N].
    """
    values = np.stack(list(scores.values()))
    order = np.argsort(-values.mean(axis=0), kind="stable")
    middle = max(0, len(order) // 2 - MEDIAN // 2)
    wanted = [(row, "best") for row in order[:BEST]]
    wanted += [(row, "median") for row in order[middle : middle + MEDIAN]]
    wanted += [(row, "worst") for row in order[::-1][:WORST]]
    if len(values) > 1:
        apart = np.argsort(-np.abs(values[0] - values[1]), kind="stable")
        wanted += [(row, "differ") for row in apart[: DIFFER + BEST + MEDIAN + WORST]]
    chosen: dict[int, str] = {}
    for row, why in wanted:
        if why != "differ" or list(chosen.values()).count("differ") < DIFFER:
            chosen.setdefault(int(row), why)
    return list(chosen.items())


def _write_examples(
    recipe: Recipe,
    prepared: Prepared,
    pictures: Pictures,
    models: Mapping[str, torch.nn.Module],
    evaluations: Mapping[str, Evaluation],
    out: Path,
    hardware: Hardware,
    tell: Callable[[Stage], None],
) -> list[dict[str, Any]]:
    """Writes photo, truth and predictions of the chosen pictures, small, as coloured PNGs."""
    trained = get_task(recipe.data.task, recipe.data.border)
    task = trained.scored
    palette = np.concatenate([task.palette(), np.full((256 - len(task.classes), 3), 255, np.uint8)])
    scores = {name: mean_iou(evaluation.confusions) for name, evaluation in evaluations.items()}
    # a trimap without any pet is a wrong label: it would be everybody's worst picture and say nothing of the models
    sound = np.flatnonzero([NO_PET not in prepared.notes.get(prepared.pets[row].name, ()) for row in pictures.rows])
    of_sound = {name: np.nan_to_num(values[sound]) for name, values in scores.items()}
    chosen = [(int(sound[place]), why) for place, why in choose_examples(of_sound)]
    folder = out / "examples"
    folder.mkdir(exist_ok=True)
    examples = []
    for number, (row, why) in enumerate(chosen, start=1):
        pet = prepared.pets[pictures.rows[row]]
        pair = open_pair(pet)
        truth = task.table()[pet.species][pair.trimap]
        size = (truth.shape[0], truth.shape[1])
        files: dict[str, str] = {}

        def save(
            image: Image.Image, kind: str, suffix: str, name: str = pet.name, files: dict[str, str] = files
        ) -> None:
            resampling = Image.Resampling.BILINEAR if suffix == "jpg" else Image.Resampling.NEAREST
            scale = min(1.0, EXAMPLE_SIDE / max(image.size))
            small = image.resize((round(image.width * scale), round(image.height * scale)), resampling)
            path = folder / f"{name}.{kind}.{suffix}"
            storage.write_atomically(
                path, lambda unfinished: small.save(unfinished, "JPEG" if suffix == "jpg" else "PNG")
            )
            files[kind] = f"examples/{path.name}"

        save(pair.image, "image", "jpg")
        save(Image.fromarray(palette[truth]), "truth", "png")
        for name, model in models.items():
            ((_, labels, logits),) = predict_logits(model, pictures, pictures.rows[row : row + 1], hardware)
            logits, _ = scored(logits, labels, trained)
            prediction = upsample(logits[0], size).argmax(dim=0).cpu().numpy()
            save(Image.fromarray(palette[prediction]), name, "png")
        examples.append(
            {
                "name": pet.name,
                "why": why,
                "miou": {name: float(values[row]) for name, values in scores.items()},
                "files": files,
            }
        )
        tell(Stage("draw examples", number, len(chosen)))
    return examples
