"""The comparison: any number of models trained under one budget, evaluated on the same images, in one JSON.

comparison.json     every figure of the report, with config, version, device, seeds, split
runs/MODEL/         the run folders; of further seeds and folds runs/MODEL-seed1/, runs/MODEL-seed1-fold2/ and so on
baselines/          evaluations of what needs no learning
examples/           image, truth and predictions of the images that the report shows
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from petseg import __version__, environment, schema, storage, units
from petseg.config import Recipe, RunConfig, split_name
from petseg.data.cache import Prepared, prepare
from petseg.data.check import refuse_spoiled
from petseg.data.dataset import SUSPECT, Class, Dataset, palette, scored_ids
from petseg.data.images import open_sample, resize_ids
from petseg.data.sources import open_dataset
from petseg.data.splits import FEW_GROUPS
from petseg.errors import DivergedError, PetsegError, unknown_name
from petseg.evaluation import evaluate as evaluation
from petseg.evaluation.cost import count_cost, measure_latencies
from petseg.evaluation.evaluate import Evaluation, joined_folds, mean_scores
from petseg.evaluation.statistics import Pair, Resampling, family_intervals, paired_bootstrap, summed_by
from petseg.metrics import Confusion, Score, mean_iou
from petseg.models import folder_name, pretrain, run_config, title_of
from petseg.models.baselines import BASELINES, MeanMask
from petseg.models.builder import Input
from petseg.schema import ComparisonResult, CostInfo, EpochRow, LatencyInfo
from petseg.training import runs
from petseg.training.batches import Rows, Split, load_splits
from petseg.training.checkpoint import RESUME
from petseg.training.device import Hardware
from petseg.training.inference import Network, grey_images, new_network
from petseg.training.loop import Execution, train
from petseg.training.start import load_initial

BEST, MEDIAN, WORST, DIFFER = 2, 2, 2, 4  # how many images of each kind the report shows
EXAMPLE_SIDE = 320  # longest side in pixels of the images in the report, so that it stays small enough to send
Why = Literal["best", "median", "worst", "differ"]


@dataclass(frozen=True)
class Plan:
    """What is compared, and how it is carried out."""

    recipe: Recipe
    hardware: Hardware
    command: str  #: how to repeat it, for the report
    reference: str | None = None  #: the model that the others are compared with; None is the first
    export: bool = False  #: write each run's model.onnx too
    resume: bool = False  #: go on in the folder; work that is there is kept
    final: bool = True  #: score the test split too; false stops at validation and marks the whole as quick, no result
    synthetic: bool = False  #: the images are drawn, and every figure says so
    on_stage: Callable[..., None] = lambda title, done, total, detail="": None  #: of what stands on a progress bar

    def progress(self, title: str) -> Callable[..., None]:
        """Returns `on_stage` with a title."""
        return partial(self.on_stage, title)

    def scored_splits(self, splits: Mapping[str, Split]) -> tuple[str, ...]:
        """Returns the splits that are scored; the figures are of the last."""
        return ("val", "test") if self.final and "test" in splits else ("val",)


@dataclass(frozen=True)
class Trial:
    """One training of a comparison: a model, from one of its seeds, without one of the folds."""

    name: str
    place: int  # of its seed among the model's own
    config: RunConfig
    run: Path
    title: str

    @classmethod
    def all_of(cls, recipe: Recipe, out: Path) -> "list[Trial]":
        """Returns the trials of a recipe in the order in which they are made: every model from one seed, then the next.

        Refuses options that a model does not have.
        """
        found, titles = [], titles_of({name: run_config(recipe, name) for name in recipe.models})
        if recipe.data.fold:
            raise PetsegError(f"data.fold is {recipe.data.fold}: a comparison tests every fold; leave it out")
        for place, fold in itertools.product(range(recipe.seeds), range(max(1, recipe.data.folds))):
            data = recipe.data.model_copy(update={"fold": fold})
            for name in recipe.models:
                config = run_config(recipe.model_copy(update={"data": data}), name)
                seed = config.train.seed + place
                config = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
                apart = (f"-seed{seed}" if place else "") + (f"-fold{fold}" if fold else "")
                told = (f", seed {seed}" if recipe.seeds > 1 else "") + (f", fold {fold}" if recipe.data.folds else "")
                found.append(cls(name, place, config, out / "runs" / (folder_name(name) + apart), titles[name] + told))
        return found


def compare(plan: Plan, prepared: Prepared, out: str | Path) -> ComparisonResult:
    """Returns the content of `out/comparison.json` after training and evaluating every model of a recipe."""
    recipe, hardware, out = plan.recipe, plan.hardware, Path(out)
    reference = reference_of(recipe, plan.reference)
    trials = Trial.all_of(recipe, out)
    titles = titles_of({trial.name: trial.config for trial in trials})
    refuse_spoiled(prepared)
    folds = _folds(prepared, trials, hardware)
    splits = folds[0]
    parts = plan.scored_splits(splits)
    split, classes = parts[-1], len(prepared.dataset.classes)
    costs = {trial.name: _checked(trial.config, trial.run, classes, plan) for trial in trials[: len(titles)]}
    with runs.new_folder(out, resume=plan.resume, kind="comparison", own="runs"):
        refuse_change(out, recipe, final=plan.final)
        data = runs.claim_data(out, prepared)
        if plan.final and split == "val":
            logging.getLogger("petseg").warning(
                "petseg: warning: %s: no test images: figures are of the validation split, last epoch", data.name
            )
        histories, notes = _trained(plan, trials, folds)
        trials = [trial for trial in trials if trial.run in histories]
        of_model = {name: [trial for trial in trials if trial.name == name] for name in recipe.models}
        first = {name: own[0] for name, own in of_model.items()}
        evaluations = {trial.run: _evaluated(plan, trial, folds[trial.config.data.fold], parts) for trial in trials}
        baselines = _baselines(plan, folds, out / "baselines")
        networks = {name: evaluation.load_run(trial.run, hardware).network for name, trial in first.items()}
        modules = {name: network.module for name, network in networks.items()}
        latencies = measure_latencies(modules, prepared.size, hardware)
        trainings = {
            name: tuple(_training(trial, histories[trial.run], evaluations[trial.run]) for trial in own)
            for name, own in of_model.items()
        }
        merged = {
            name: _merged([evaluations[trial.run] for trial in own], len(folds), prepared.dataset)
            for name, own in of_model.items()
        }
        models = tuple(
            schema.ModelResult(
                name=name,
                title=titles[name],
                learning_rate=trial.config.train.learning_rate,
                best_epoch=evaluations[trial.run][split].scores.epoch,
                environment=trainings[name][0].environment,
                cost=_cost(costs[name], splits["train"], latencies[name], histories[trial.run]),
                history=histories[trial.run],
                evaluations={
                    part: mean_scores([one.scores for one in of_seeds]) for part, of_seeds in merged[name].items()
                },
                trainings=trainings[name] if len(trainings[name]) > 1 else (),
            )
            for name, trial in first.items()
        )
        counts, over = _drawn_again({name: own[split] for name, own in merged.items()}, recipe, prepared.dataset)
        notes += _limits(counts, prepared.dataset.scored_classes, trainings)
        for note in notes:
            logging.getLogger("petseg").warning("petseg: warning: %s", note)
        last = {name: evaluations[trial.run][split] for name, trial in first.items()}
        comparison = ComparisonResult(
            petseg=__version__,
            command=plan.command,
            created=environment.now(),
            quick=not plan.final,
            synthetic=plan.synthetic,
            split=split,
            seeds=tuple(dict.fromkeys(one.seed for one in trainings[reference])),
            notes=tuple(notes),
            size=prepared.size,
            config=recipe,
            environment=models[0].environment,
            scoring_environment=hardware.environment(),
            data=data.of_all_folds(),
            reference=reference,
            models=models,
            baselines=baselines,
            differences=_differences(counts, reference, split, over),
            examples=_write_examples(out / "examples", splits[split], networks, last, plan),
        )
        schema.write_record(out / "comparison.json", comparison)
        if plan.export:
            from petseg.export.onnx import exported_run  # needs the extra `export`

            for number, trial in enumerate(first.values(), start=1):
                exported_run(trial.run)
                plan.on_stage("export", number, len(first))
        return comparison


def _trained(
    plan: Plan, trials: Sequence[Trial], folds: Sequence[Mapping[str, Split]]
) -> tuple[dict[Path, tuple[EpochRow, ...]], list[str]]:
    """Returns run -> history of the trials of each seed in which every model trained to the end, and what was lost."""
    histories, diverged = {}, list[tuple[Trial, DivergedError]]()
    for trial in trials:
        own = folds[trial.config.data.fold]
        prepared = own["train"].prepared
        if trial.config.data.fraction < 1 and trial.place:  # the seed draws the part
            own = load_splits(prepared, trial.config, plan.hardware.device)
        how = Execution(plan.hardware, plan.resume, own, on_step=plan.progress(f"train {trial.title}"))
        try:
            histories[trial.run] = tuple(train(trial.config, prepared, trial.run, how))
        except DivergedError as error:
            diverged.append((trial, error))
    lost = {trial.place for trial, _ in diverged}
    kept = {trial.run: histories[trial.run] for trial in trials if trial.place not in lost}
    if not kept:
        lost_trial, reason = diverged[0]
        raise DivergedError(f"{lost_trial.title}: {reason}") from reason
    return kept, [f"{trial.title}: training diverged; its seed is left out of every model" for trial, _ in diverged]


def _evaluated(plan: Plan, trial: Trial, splits: Mapping[str, Split], parts: Sequence[str]) -> dict[str, Evaluation]:
    """Returns split -> evaluation of a trial's run."""
    return {
        part: evaluation.evaluate_run(
            trial.run, plan.hardware, splits, part, plan.progress(f"score {trial.title} on {part}")
        )
        for part in parts
    }


def _training(trial: Trial, history: tuple[EpochRow, ...], evaluations: Mapping[str, Evaluation]) -> schema.Training:
    return schema.Training(
        seed=trial.config.train.seed,
        fold=trial.config.data.fold,
        environment=schema.read_record(trial.run / "environment.json", schema.EnvironmentInfo),
        history=history,
        evaluations={part: scored.scores for part, scored in evaluations.items()},
    )


def _merged(
    evaluations: Sequence[Mapping[str, Evaluation]], folds: int, dataset: Dataset
) -> dict[str, list[Evaluation]]:
    """Returns split -> evaluation of all folds, of each seed, from those of one model's trials in their order."""
    by_seed = [evaluations[at : at + folds] for at in range(0, len(evaluations), folds)]
    return {
        part: [joined_folds([fold[part] for fold in of_seed], dataset) for of_seed in by_seed]
        for part in evaluations[0]
    }


def _drawn_again(
    evaluations: Mapping[str, Sequence[Evaluation]], recipe: Recipe, dataset: Dataset
) -> tuple[dict[str, Confusion], str]:
    """Returns model -> counts [seeds, N, C, C] of the images or groups that intervals draw again, and which these are.

    `evaluations` are each model's on one split, of each seed.
    """
    counts = {name: np.stack([one.images.confusions for one in own]) for name, own in evaluations.items()}
    if not recipe.data.groups:
        return counts, "images"
    ids = next(iter(evaluations.values()))[0].images.ids
    groups = [dataset.by_id[one].group for one in ids]
    return {name: summed_by(groups, own) for name, own in counts.items()}, units.plural(len(set(groups)), "group")


def _limits(
    counts: Mapping[str, Confusion], classes: Sequence[Class], trainings: Mapping[str, Sequence[schema.Training]]
) -> Iterator[str]:
    """Yields what limits the figures, of model -> counts [seeds, N, C, C] of the images or groups drawn again."""
    machines = {
        f"{one.environment.device} {one.environment.processor}, {one.environment.precision}"
        for own in trainings.values()
        for one in own
    }
    if len(machines) > 1:
        yield f"not all were trained alike: {'; '.join(sorted(machines))}"
    truth = next(iter(counts.values()))[0].sum(axis=-1)
    held = dict(zip([entry.name for entry in classes], (truth > 0).sum(axis=0).tolist(), strict=True))
    predicted = np.any([own.sum(axis=(0, 1, 2)) > 0 for own in counts.values()], axis=0)
    absent = [name for name, wrongly in zip(held, predicted, strict=True) if wrongly and not held[name]]
    if absent:
        yield f"no scored image holds {', '.join(absent)}: a model that predicts it anywhere has an IoU of 0 there"
    rare = [name for name, number in held.items() if 0 < number < FEW_GROUPS]
    if rare:
        yield f"intervals say little: few of what is drawn again holds {', '.join(rare)}"


def _folds(prepared: Prepared, trials: Sequence[Trial], hardware: Hardware) -> list[dict[str, Split]]:
    """Returns the splits of each fold of a cross-validation; of none, those that the prepared dataset has."""
    found = []
    for fold, config in {trial.config.data.fold: trial.config for trial in reversed(trials)}.items():
        place = prepared.dataset.place
        own = prepared if fold == 0 or place is None else prepare(open_dataset(place, config.data), prepared.geometry)
        found.append(load_splits(own, config, hardware.device))
    return found[::-1]


def reference_of(recipe: Recipe, name: str | None) -> str:
    """Returns the model that the others are compared with, the first where no name is given; refuses an unknown one."""
    if name is not None and name not in recipe.models:
        raise unknown_name("reference", name, recipe.models)
    return name or recipe.models[0]


def titles_of(configs: Mapping[str, RunConfig]) -> dict[str, str]:
    """Returns model -> title, with the weights that it starts from; where two share one, as networks of two files may,
    its name.

    >>> drawn, tuned = RunConfig(), RunConfig(train={"init": "runs/base-unet"})
    >>> titles_of({"unet": tuned, "a.py:Net": drawn, "b.py:Net": drawn})
    {'unet': 'U-Net, from base-unet', 'a.py:Net': 'a.py:Net', 'b.py:Net': 'b.py:Net'}
    """
    titles = [title_of(name) for name in configs]
    return {
        name: (title if titles.count(title) == 1 else name) + _start_of(name, config)
        for (name, config), title in zip(configs.items(), titles, strict=True)
    }


def _start_of(name: str, config: RunConfig) -> str:
    """Returns what a title adds of weights that the name does not tell; "" where all is drawn."""
    encoder = config.model.options.get("encoder_weights")
    if config.train.init:
        return f", from {Path(config.train.init).name}"
    return f", encoder from {Path(encoder).name}" if encoder and "encoder_weights" not in split_name(name)[1] else ""


def refuse_change(out: Path, recipe: Recipe, *, final: bool) -> None:
    """Refuses to go on in the folder of a comparison of other settings; one that was stopped is told by its runs.

    A damaged comparison.json is made again. The command line asks before minutes of preparation.
    """
    try:
        known = schema.read_record(out / "comparison.json", ComparisonResult)
    except PetsegError:
        known = None
    if known is None:
        for trial in Trial.all_of(recipe, out):
            if (trial.run / "config.json").is_file():
                kept = runs.read_config(trial.run)
                runs.refuse_change(trial.run, kept.model_dump(mode="json"), trial.config.model_dump(mode="json"))
        return
    old, new = (given.model_dump(mode="json") for given in (known.config, recipe))
    if known.config.seeds <= recipe.seeds:  # further ones are added
        old["seeds"] = new["seeds"]
    runs.refuse_change(out, {**old, "quick": known.quick}, {**new, "quick": not final})


def _checked(config: RunConfig, run: Path, num_classes: int, plan: Plan) -> CostInfo:
    """Returns what a model costs; what would fail after hours of others' training fails now."""
    network = new_network(config, num_classes, plan.hardware)
    if not (run / RESUME).is_file():
        if config.train.init:
            load_initial(network, config.train.init, [grey_images(config.data.size, plan.hardware)])
        else:
            pretrain(config.model, network.module)
    if plan.export:
        from petseg.export.onnx import check_export  # needs the extra `export`

        check_export(config, num_classes)
    return count_cost(config.model, num_classes, config.data.size)


def _cost(counted: CostInfo, split: Split, latency: LatencyInfo, history: Sequence[EpochRow]) -> CostInfo:
    others = [row.other_seconds / row.seconds for row in history if row.other_seconds is not None]
    measured = {
        "latency_ms": latency,
        "train_seconds": round(runs.epoch_seconds(history) * len(history), 1),
        "train_images_per_second": round(len(split.epoch_rows) / runs.epoch_seconds(history, "train_seconds"), 2),
        "train_others": round(float(np.median(others)), 2) if others else None,
    }
    return counted.model_copy(update=measured)


def _differences(
    counts: Mapping[str, Confusion], reference: str, split: str, over: str
) -> tuple[schema.Difference, ...]:
    """Returns each other model less the reference, from model -> counts int64 [seeds, N, C, C]; N are of `over`."""
    how = Resampling()
    pairs = {name: Pair(own, counts[reference]) for name, own in counts.items() if name != reference}
    found = [paired_bootstrap(pair.first, pair.second, how=how) for pair in pairs.values()]
    together = family_intervals(list(pairs.values()), how=how)
    seeds = len(counts[reference])
    return tuple(
        schema.Difference(
            model=name,
            reference=reference,
            split=split,
            metric="mIoU",
            **one.model_dump(exclude={"share_left_better"}),
            confidence=how.confidence,
            resamples=how.resamples,
            share_better=one.share_left_better,
            over=f"{over}; one seed" if seeds == 1 else f"{over} and {seeds} seeds",
            together=ends if len(pairs) > 1 else None,
        )
        for name, one, ends in zip(pairs, found, together, strict=True)
    )


def _baselines(plan: Plan, folds: Sequence[Mapping[str, Split]], folder: Path) -> tuple[schema.BaselineResult, ...]:
    prepared = folds[0]["train"].prepared
    square = prepared.size, prepared.size
    results = []
    for name, (title, everywhere) in BASELINES.items():
        if prepared.geometry.fit == "crop" and not everywhere:
            continue  # a window does not know where in its image it lies
        found: dict[str, list[Evaluation]] = {}
        for fold, splits in enumerate(folds):
            training = splits["train"]
            labels = (resize_ids(label, square) for label in training.label_images())
            module = MeanMask(labels, len(training.dataset.classes), everywhere=everywhere)
            network = Network(module.to(plan.hardware.device), Input(), plan.hardware)
            for part in plan.scored_splits(splits):
                progress = plan.progress(f"score {title} on {part}")
                stored = folder / name / (f"{part}.fold{fold}.json" if fold else f"{part}.json")
                scored = evaluation.evaluate_once(stored, network, splits[part], on_progress=progress)
                found.setdefault(part, []).append(scored)
        scores = {part: joined_folds(each, prepared.dataset).scores for part, each in found.items()}
        results.append(schema.BaselineResult(name=name, title=title, evaluations=scores))
    return tuple(results)


def choose_examples(scores: Mapping[str, Score]) -> list[tuple[int, Why]]:
    """Returns (row, why) of the images to show, by mean and by difference, from model -> mIoU by image, float64 [N]."""
    values = np.stack(list(scores.values()))
    order = np.argsort(-values.mean(axis=0), kind="stable")
    middle = max(0, len(order) // 2 - MEDIAN // 2)
    median = order[middle : middle + MEDIAN]
    parts: dict[Why, Rows] = {"best": order[:BEST], "median": median, "worst": order[::-1][:WORST]}
    chosen: dict[int, Why] = {}
    for why, rows in parts.items():
        for row in rows:
            chosen.setdefault(int(row), why)
    if len(values) > 1:
        apart = [int(row) for row in np.argsort(-np.ptp(values, axis=0), kind="stable")]
        for row in [row for row in apart if row not in chosen][:DIFFER]:
            chosen[row] = "differ"
    return list(chosen.items())


def _write_examples(
    folder: Path, split: Split, networks: Mapping[str, Network], evaluations: Mapping[str, Evaluation], plan: Plan
) -> tuple[schema.Example, ...]:
    """Writes image, truth and predictions of the chosen images, small, as coloured PNGs, and returns them."""
    scores = {name: mean_iou(scored.images.confusions) for name, scored in evaluations.items()}
    prepared, rows = split.prepared, split.rows
    # a wrong label would be everybody's worst image and tell nothing of the models
    sound = np.flatnonzero([SUSPECT not in prepared.notes.get(prepared.samples[row].id, ()) for row in rows])
    sound = sound[~np.isnan([values[sound] for values in scores.values()]).any(axis=0)]  # nor an image without labels
    chosen = choose_examples({name: values[sound] for name, values in scores.items()})
    folder.mkdir(exist_ok=True)
    examples = []
    for number, (place, why) in enumerate(chosen, start=1):
        row = int(sound[place])
        name, files = prepared.samples[rows[row]].id, {}
        for role, image in _drawn(split, networks, row).items():
            file = f"{name}.{folder_name(role)}.{'jpg' if role == 'image' else 'png'}"
            storage.write_atomically(folder / file, partial(image.save, format="JPEG" if role == "image" else "PNG"))
            files[role] = f"examples/{file}"
        miou = {model: float(values[row]) for model, values in scores.items()}
        examples.append(schema.Example(name=name, why=why, miou=miou, files=files))
        plan.on_stage("draw examples", number, len(chosen))
    return tuple(examples)


def _drawn(split: Split, networks: Mapping[str, Network], row: int) -> dict[str, Image.Image]:
    """Returns image, truth and each model's prediction, coloured and reduced."""
    dataset, place = split.dataset, split.rows[row : row + 1]
    opened = open_sample(dataset, split.prepared.samples[place[0]])
    truth = scored_ids(opened.ids, dataset.merge)
    masks = {"truth": truth}
    for name, network in networks.items():
        masks[name] = evaluation.predict_ids(network, split, place, truth.shape)
    scale = min(1.0, EXAMPLE_SIDE / max(opened.image.size))
    size = (max(1, round(opened.image.width * scale)), max(1, round(opened.image.height * scale)))
    colours = palette(dataset.scored_classes)
    drawn = {name: Image.fromarray(colours[ids]).resize(size, Image.Resampling.NEAREST) for name, ids in masks.items()}
    return {"image": opened.image.resize(size, Image.Resampling.BILINEAR), **drawn}
