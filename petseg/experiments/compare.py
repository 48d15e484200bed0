"""The comparison: any number of models trained under one budget, evaluated on the same images, in one JSON.

comparison.json     every figure of the report, with config, version, device, seeds, split
runs/MODEL/         the run folders
baselines/          evaluations of what needs no learning
examples/           image, truth and predictions of the images that the report shows
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from petseg import __version__, environment, schema, storage
from petseg.config import Recipe, RunConfig
from petseg.data.cache import Prepared
from petseg.data.dataset import SUSPECT, palette, scored_ids
from petseg.data.images import open_sample
from petseg.evaluation import evaluate as evaluation
from petseg.evaluation.cost import count_cost, measure_latencies
from petseg.evaluation.evaluate import Evaluation
from petseg.evaluation.statistics import Resampling, paired_bootstrap
from petseg.metrics import Score, mean_iou
from petseg.models import Input, run_config, title_of
from petseg.models.baselines import BASELINES, MeanMask
from petseg.schema import ComparisonResult, CostInfo, EpochRow, LatencyInfo
from petseg.training import runs
from petseg.training.batches import Rows, Split, load_splits
from petseg.training.device import Hardware
from petseg.training.inference import Network, predict_logits, scored_logits
from petseg.training.loop import Execution, train

BEST, MEDIAN, WORST, DIFFER = 2, 2, 2, 4
"""How many images of each kind the report shows."""

EXAMPLE_SIDE = 320
"""Longest side in pixels of the images in the report, so that it stays small enough to send."""

Why = Literal["best", "median", "worst", "differ"]


@dataclass(frozen=True)
class Plan:
    """What is compared, and how it is carried out."""

    recipe: Recipe
    hardware: Hardware
    command: str  # how to repeat it, for the report
    resume: bool = False  # go on in the folder; work that is there is kept
    final: bool = True  # score the test split too; false stops at validation and marks the whole as quick, no result
    synthetic: bool = False  # the images are drawn, and every figure says so
    on_stage: Callable[..., None] = lambda title, done, total, detail="": None
    """Called with what stands on a progress bar."""

    def scored_splits(self, splits: Mapping[str, Split]) -> tuple[str, ...]:
        """Returns the splits that are scored; the figures are of the last."""
        return ("val", "test") if self.final and "test" in splits else ("val",)


def compare(plan: Plan, prepared: Prepared, out: Path) -> ComparisonResult:
    """Returns the content of `out/comparison.json` after training and evaluating every model of a recipe."""
    recipe, hardware = plan.recipe, plan.hardware
    configs = {name: run_config(recipe, name) for name in recipe.models}
    folders = {name: out / "runs" / name for name in configs}
    splits = load_splits(prepared, configs[recipe.models[0]], hardware.device)
    split = plan.scored_splits(splits)[-1]
    with runs.new_folder(out, resume=plan.resume):
        data = runs.claim_data(out, prepared)
        histories = {name: _train(plan, prepared, folders[name], config, splits) for name, config in configs.items()}
        evaluations = {name: _evaluate(plan, run, title_of(name), splits) for name, run in folders.items()}
        baselines = _baselines(plan, splits, out / "baselines")
        networks = {name: evaluation.load_run(run, hardware).network for name, run in folders.items()}
        modules = {name: network.module for name, network in networks.items()}
        latencies = measure_latencies(modules, prepared.size, hardware)
        models = tuple(
            schema.ModelResult(
                name=name,
                title=title_of(name),
                learning_rate=config.train.learning_rate,
                best_epoch=evaluations[name][split].scores.epoch,
                environment=schema.read_record(folders[name] / "environment.json", schema.EnvironmentInfo),
                cost=_cost(config, splits["train"], latencies[name], histories[name]),
                history=tuple(histories[name]),
                evaluations={part: scored.scores for part, scored in evaluations[name].items()},
            )
            for name, config in configs.items()
        )
        last = {name: parts[split] for name, parts in evaluations.items()}
        comparison = ComparisonResult(
            petseg=__version__,
            command=plan.command,
            created=environment.now(),
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
            models=models,
            baselines=baselines,
            differences=tuple(_difference(name, recipe.models[0], last, split) for name in recipe.models[1:]),
            examples=_Gallery(out / "examples", splits[split], networks).write(last, plan.on_stage),
        )
        schema.write_record(out / "comparison.json", comparison)
        return comparison


def _train(
    plan: Plan, prepared: Prepared, run: Path, config: RunConfig, splits: Mapping[str, Split]
) -> Sequence[EpochRow]:
    on_step = partial(plan.on_stage, f"train {title_of(config.model.name)}")
    return train(config, prepared, run, Execution(plan.hardware, resume=plan.resume, splits=splits, on_step=on_step))


def _evaluate(plan: Plan, run: Path, title: str, splits: Mapping[str, Split]) -> dict[str, Evaluation]:
    return {
        part: evaluation.evaluate_run(
            run, plan.hardware, splits, part, partial(plan.on_stage, f"score {title} on {part}")
        )
        for part in plan.scored_splits(splits)
    }


def _cost(config: RunConfig, split: Split, latency: LatencyInfo, history: Sequence[EpochRow]) -> CostInfo:
    measured = {
        "latency_ms": latency,
        "train_seconds": round(runs.epoch_seconds(history) * len(history), 1),
        "train_images_per_second": round(len(split.rows) / runs.epoch_seconds(history, "train_seconds"), 2),
    }
    return count_cost(config.model, len(split.dataset.classes), latency.size).model_copy(update=measured)


def _difference(model: str, reference: str, evaluations: Mapping[str, Evaluation], split: str) -> schema.Difference:
    how = Resampling()
    first, second = (evaluations[name].images.confusions for name in (model, reference))
    found = paired_bootstrap(first, second, how=how)
    return schema.Difference(
        model=model,
        reference=reference,
        split=split,
        metric="mIoU",
        **found.model_dump(exclude={"share_left_better"}),
        confidence=how.confidence,
        resamples=how.resamples,
        share_better=found.share_left_better,
        over="images; one seed",
    )


def _baselines(plan: Plan, splits: Mapping[str, Split], folder: Path) -> tuple[schema.BaselineResult, ...]:
    training = splits["train"]
    labels = training.labels.cpu().numpy()[training.rows]
    results = []
    for name, (title, everywhere) in BASELINES.items():
        module = MeanMask(labels, len(training.dataset.classes), everywhere=everywhere).to(plan.hardware.device)
        network = Network(module, Input(), plan.hardware)
        scores = {}
        for part in plan.scored_splits(splits):
            stored = folder / name / f"{part}.json"
            known = evaluation.read_evaluation(stored)
            if known is None or known.scores.data != training.prepared.key:
                on_progress = partial(plan.on_stage, f"score {title} on {part}")
                known = evaluation.evaluate(network, splits[part], part, on_progress)
                evaluation.write_evaluation(known, stored)
            scores[part] = known.scores
        results.append(schema.BaselineResult(name=name, title=title, evaluations=scores))
    return tuple(results)


def choose_examples(scores: Mapping[str, Score]) -> list[tuple[int, Why]]:
    """Returns (row, why) of the images to show: by the models' mean score, then where models differ most.

    Scores are per-image mIoU, float64 [N], by model.
    """
    values = np.stack(list(scores.values()))
    order = np.argsort(-values.mean(axis=0), kind="stable")
    middle = max(0, len(order) // 2 - MEDIAN // 2)
    parts: dict[Why, Rows] = {
        "best": order[:BEST],
        "median": order[middle : middle + MEDIAN],
        "worst": order[::-1][:WORST],
    }
    chosen: dict[int, Why] = {}
    for why, rows in parts.items():
        for row in rows:
            chosen.setdefault(int(row), why)
    if len(values) > 1:
        apart = [int(row) for row in np.argsort(-np.ptp(values, axis=0), kind="stable")]
        for row in [row for row in apart if row not in chosen][:DIFFER]:
            chosen[row] = "differ"
    return list(chosen.items())


@dataclass(frozen=True)
class _Gallery:
    """Writes image, truth and predictions of the chosen images, small, as coloured PNGs."""

    folder: Path
    split: Split
    networks: Mapping[str, Network]

    def write(self, evaluations: Mapping[str, Evaluation], on_stage: Callable[..., None]) -> tuple[schema.Example, ...]:
        scores = {name: mean_iou(scored.images.confusions) for name, scored in evaluations.items()}
        prepared, rows = self.split.prepared, self.split.rows
        # a wrong label would be everybody's worst image and tell nothing of the models
        sound = np.flatnonzero([SUSPECT not in prepared.notes.get(prepared.samples[row].id, ()) for row in rows])
        chosen = choose_examples({name: np.nan_to_num(values[sound]) for name, values in scores.items()})
        self.folder.mkdir(exist_ok=True)
        examples = []
        for number, (place, why) in enumerate(chosen, start=1):
            row = int(sound[place])
            name = prepared.samples[rows[row]].id
            miou = {model: float(np.nan_to_num(values[row])) for model, values in scores.items()}
            examples.append(schema.Example(name=name, why=why, miou=miou, files=self._draw(row)))
            on_stage("draw examples", number, len(chosen))
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
            ids = evaluation.predicted_ids(scored_logits(logits, dataset.merge)[0], truth.shape)
            files[name] = self._save(Image.fromarray(colours[ids]), f"{sample.id}.{name}.png")
        return files

    def _save(self, image: Image.Image, name: str) -> str:
        """Returns the path, below the comparison's folder, of the image reduced."""
        photo = name.endswith("jpg")
        scale = min(1.0, EXAMPLE_SIDE / max(image.size))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        small = image.resize(size, Image.Resampling.BILINEAR if photo else Image.Resampling.NEAREST)
        kind = "JPEG" if photo else "PNG"
        storage.write_atomically(self.folder / name, lambda unfinished: small.save(unfinished, kind))
        return f"examples/{name}"
