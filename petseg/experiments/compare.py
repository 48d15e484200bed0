"""The comparison: any number of models trained under one budget, evaluated on the same images, in one JSON.

comparison.json     every figure of the report, with config, version, device, seeds, split
runs/MODEL/         the run folders
baselines/          evaluations of what needs no learning
examples/           image, truth and predictions of the images that the report shows
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from petseg import __version__, storage
from petseg.config import Recipe, RunConfig
from petseg.data.cache import Prepared
from petseg.data.dataset import SUSPECT, UInt8, palette, scored_ids
from petseg.data.images import open_sample
from petseg.environment import now
from petseg.evaluation.cost import count_cost, measure_latencies
from petseg.evaluation.evaluate import (
    Evaluation,
    evaluate,
    evaluate_run,
    load_run,
    predicted_ids,
    read_evaluation,
    write_evaluation,
)
from petseg.evaluation.statistics import paired_bootstrap
from petseg.metrics import Score, mean_iou
from petseg.models import Input, run_config, title_of
from petseg.models.baselines import BASELINES, MeanMask
from petseg.schema import (
    BaselineResult,
    ComparisonResult,
    CostInfo,
    Difference,
    EnvironmentInfo,
    EpochRow,
    Example,
    LatencyInfo,
    ModelResult,
    read_record,
    write_record,
)
from petseg.training import runs
from petseg.training.batches import Split, load_splits
from petseg.training.device import Hardware
from petseg.training.inference import Network, predict_logits, scored_logits
from petseg.training.loop import Execution, Progress, train

BEST, MEDIAN, WORST, DIFFER = 2, 2, 2, 4
"""How many images of each kind the report shows."""

EXAMPLE_SIDE = 320
"""Longest side in pixels of the images in the report, so that it stays small enough to send."""


@dataclass(frozen=True)
class Stage:
    """What a comparison is doing, for a progress bar."""

    title: str
    done: int
    total: int
    detail: str = ""


@dataclass(frozen=True)
class Plan:
    """What is compared, and how it is carried out."""

    recipe: Recipe
    hardware: Hardware
    command: str
    """How to repeat it, for the report."""
    resume: bool = False
    """Go on in the folder; work that is there is kept."""
    final: bool = True
    """Score the test split too; false stops at validation and marks the whole as quick, no result."""
    synthetic: bool = False
    """The images are drawn, and every figure says so."""
    on_stage: Callable[[Stage], None] = lambda stage: None

    def scored_splits(self, splits: Mapping[str, Split]) -> tuple[str, ...]:
        """Returns the splits that are scored; the figures are of the last."""
        return ("val", "test") if self.final and "test" in splits else ("val",)


def compare(plan: Plan, prepared: Prepared, out: Path) -> ComparisonResult:
    """Returns the content of `out/comparison.json` after training and evaluating every model of a recipe.

    Args:
        plan: recipe, device, and how far to go.
        prepared: the dataset at the recipe's size.
        out: folder to make; with `plan.resume` it may hold a part of the work.

    Raises:
        PetsegError: as `train` and `evaluate_run`.
    """
    recipe, hardware = plan.recipe, plan.hardware
    configs = {name: run_config(recipe, name) for name in recipe.models}
    splits = load_splits(prepared, configs[recipe.models[0]], hardware.device)
    split = plan.scored_splits(splits)[-1]
    with runs.new_folder(out, resume=plan.resume):
        data = runs.claim_data(out, prepared)
        histories = {
            name: _train(plan, prepared, out / "runs" / name, config, splits) for name, config in configs.items()
        }
        evaluations = {name: _evaluate(plan, out / "runs" / name, title_of(name), splits) for name in configs}
        baselines = _baselines(plan, splits, out / "baselines")
        networks = {name: load_run(out / "runs" / name, hardware).network for name in configs}
        modules = {name: network.module for name, network in networks.items()}
        latencies = measure_latencies(modules, prepared.size, hardware)
        models = []
        for name, config in configs.items():
            latency = LatencyInfo(**asdict(latencies[name]), size=prepared.size)
            cost = _cost(config, prepared, latency, histories[name], len(splits["train"].rows))
            models.append(_model_result(config, out / "runs" / name, cost, histories[name], evaluations[name]))
        last = {name: parts[split] for name, parts in evaluations.items()}
        comparison = ComparisonResult(
            petseg=__version__,
            command=plan.command,
            created=now(),
            quick=not plan.final,
            synthetic=plan.synthetic,
            split=split,
            seeds=(recipe.train.seed,),
            size=prepared.size,
            config=recipe,
            environment=models[0].environment,
            scoring_environment=hardware.environment(),
            data=data,
            reference=recipe.models[0],
            models=tuple(models),
            baselines=baselines,
            differences=_differences(recipe.models, last, split),
            examples=_Gallery(out / "examples", splits[split], networks).write(last, plan.on_stage),
        )
        write_record(out / "comparison.json", comparison)
        return comparison


def _model_result(
    config: RunConfig,
    run: Path,
    cost: CostInfo,
    history: Sequence[EpochRow],
    evaluations: Mapping[str, Evaluation],
) -> ModelResult:
    scores = {part: evaluation.scores for part, evaluation in evaluations.items()}
    return ModelResult(
        name=config.model.name,
        title=title_of(config.model.name),
        learning_rate=config.train.learning_rate,
        best_epoch=list(scores.values())[-1].epoch,
        environment=read_record(run / "environment.json", EnvironmentInfo),
        cost=cost,
        history=tuple(history),
        evaluations=scores,
    )


def _train(
    plan: Plan, prepared: Prepared, run: Path, config: RunConfig, splits: Mapping[str, Split]
) -> Sequence[EpochRow]:
    title = f"train {title_of(config.model.name)}"

    def on_step(progress: Progress) -> None:
        plan.on_stage(Stage(title, progress.step, progress.steps, progress.detail))

    execution = Execution(hardware=plan.hardware, resume=plan.resume, splits=splits, on_step=on_step)
    return train(config, prepared, run, execution)


def _evaluate(plan: Plan, run: Path, title: str, splits: Mapping[str, Split]) -> dict[str, Evaluation]:
    evaluations = {}
    for part in plan.scored_splits(splits):

        def on_progress(done: int, total: int, part: str = part) -> None:
            plan.on_stage(Stage(f"score {title} on {part}", done, total))

        evaluations[part] = evaluate_run(run, plan.hardware, splits, part, on_progress)
    return evaluations


def _cost(
    config: RunConfig, prepared: Prepared, latency: LatencyInfo, history: Sequence[EpochRow], images: int
) -> CostInfo:
    cost = count_cost(config.model, len(prepared.dataset.classes), prepared.size)
    return CostInfo(
        **asdict(cost),
        latency_ms=latency,
        train_seconds=round(runs.epoch_seconds(history) * len(history), 1),
        train_images_per_second=round(images / runs.epoch_seconds(history, "train_seconds"), 2),
    )


def _differences(names: Sequence[str], evaluations: Mapping[str, Evaluation], split: str) -> tuple[Difference, ...]:
    """Returns each other model less the first, which is the reference."""
    reference, *others = names
    differences = []
    for name in others:
        found = paired_bootstrap(evaluations[name].images.confusions, evaluations[reference].images.confusions)
        differences.append(
            Difference(
                model=name,
                reference=reference,
                split=split,
                metric="mIoU",
                points=found.points,
                low=found.low,
                high=found.high,
                confidence=found.confidence,
                resamples=found.resamples,
                share_better=found.share_first_better,
                over="images; one seed",
            )
        )
    return tuple(differences)


def _baselines(plan: Plan, splits: Mapping[str, Split], folder: Path) -> tuple[BaselineResult, ...]:
    training = splits["train"]
    labels = training.labels.cpu().numpy()[training.rows]
    results = []
    for name, (title, everywhere) in BASELINES.items():
        module = MeanMask(labels, len(training.dataset.classes), everywhere=everywhere).to(plan.hardware.device)
        network = Network(module, Input(), plan.hardware)
        scores = {}
        for part in plan.scored_splits(splits):
            stored = folder / name / f"{part}.json"
            evaluation = read_evaluation(stored)
            if evaluation is None or evaluation.scores.data != training.prepared.key:

                def on_progress(done: int, total: int, step: str = f"score {title} on {part}") -> None:
                    plan.on_stage(Stage(step, done, total))

                evaluation = evaluate(network, splits[part], part, on_progress)
                write_evaluation(evaluation, stored)
            scores[part] = evaluation.scores
        results.append(BaselineResult(name=name, title=title, evaluations=scores))
    return tuple(results)


# --- examples --------------------------------------------------------------------------------------------------------

Why = str


def choose_examples(scores: Mapping[str, Score]) -> list[tuple[int, Why]]:
    """Returns (row, why) of the images to show: by the models' mean score, then where models differ most.

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
        apart = np.argsort(-np.ptp(values, axis=0), kind="stable")
        wanted += [(row, "differ") for row in apart[: DIFFER + BEST + MEDIAN + WORST]]
    chosen: dict[int, Why] = {}
    for row, why in wanted:
        if why != "differ" or list(chosen.values()).count("differ") < DIFFER:
            chosen.setdefault(int(row), why)
    return list(chosen.items())


@dataclass(frozen=True)
class _Gallery:
    """Writes image, truth and predictions of the chosen images, small, as coloured PNGs."""

    folder: Path
    split: Split
    networks: Mapping[str, Network]

    def write(self, evaluations: Mapping[str, Evaluation], on_stage: Callable[[Stage], None]) -> tuple[Example, ...]:
        scores = {name: mean_iou(evaluation.images.confusions) for name, evaluation in evaluations.items()}
        prepared, rows = self.split.prepared, self.split.rows
        # a wrong label would be everybody's worst image and tell nothing of the models
        sound = np.flatnonzero([SUSPECT not in prepared.notes.get(prepared.samples[row].id, ()) for row in rows])
        chosen = choose_examples({name: np.nan_to_num(values[sound]) for name, values in scores.items()})
        self.folder.mkdir(exist_ok=True)
        examples = []
        for number, (place, why) in enumerate(chosen, start=1):
            row = int(sound[place])
            examples.append(
                Example.model_validate(
                    {
                        "name": prepared.samples[rows[row]].id,
                        "why": why,
                        "miou": {name: float(np.nan_to_num(values[row])) for name, values in scores.items()},
                        "files": self._draw(row),
                    }
                )
            )
            on_stage(Stage("draw examples", number, len(chosen)))
        return tuple(examples)

    def _draw(self, row: int) -> dict[str, str]:
        dataset = self.split.dataset
        place = self.split.rows[row : row + 1]
        sample = self.split.prepared.samples[place[0]]
        opened = open_sample(dataset, sample)
        colours = palette(dataset.scored_classes)
        truth = scored_ids(opened.ids, dataset.merge)
        files = {
            "image": self._save(opened.image, f"{sample.id}.image.jpg"),
            "truth": self._save(Image.fromarray(colours[truth]), f"{sample.id}.truth.png"),
        }
        for name, network in self.networks.items():
            ((_, _, logits),) = predict_logits(network, self.split, place)
            ids: UInt8 = predicted_ids(scored_logits(logits, dataset.merge)[0], cast(tuple[int, int], truth.shape))
            files[name] = self._save(Image.fromarray(colours[ids]), f"{sample.id}.{name}.png")
        return files

    def _save(self, image: Image.Image, name: str) -> str:
        """Returns the path, below the comparison's folder, of the image reduced."""
        kind, resampling = (
            ("JPEG", Image.Resampling.BILINEAR) if name.endswith("jpg") else ("PNG", Image.Resampling.NEAREST)
        )
        scale = min(1.0, EXAMPLE_SIDE / max(image.size))
        small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resampling)
        storage.write_atomically(self.folder / name, lambda unfinished: small.save(unfinished, kind))
        return f"examples/{name}"


__all__ = ["Plan", "Stage", "choose_examples", "compare"]
