"""What a study found, as data: every number of its page, from its runs' per-image counts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
from pydantic import JsonValue

from petseg.config import flat_fields
from petseg.data.oxford_pets import ORIGINAL_LOSSES
from petseg.evaluation.statistics import seed_interval
from petseg.experiments.study.arms import (
    BOUNDARY,
    HOW,
    Arm,
    Pair,
    cost_ratios,
    difference,
    estimate,
    mean,
    model_pairs,
    rounded,
    scores_of,
    scoring,
    side_by_side,
    stacked,
)
from petseg.experiments.study.claims import Claim, claims, verdict
from petseg.experiments.study.plan import MatchQuestion, tuning_arm
from petseg.experiments.study.recipe import Experiment, Tuning, tuning_cells
from petseg.experiments.study.results import TUNING, Results, RunEntry, RunResult
from petseg.experiments.study.subsets import find_robustness, find_subsets
from petseg.metrics import Confusion, Score
from petseg.models import title_of
from petseg.schema import (
    ArmDifference,
    ArmFindings,
    ArmScores,
    Band,
    CostMatch,
    EpochBands,
    EpochRow,
    ExperimentFindings,
    Findings,
    Machine,
    PairedDifference,
    RunState,
    SeedMean,
    SettingLoss,
    TargetLoss,
    TrainingFindings,
    TuningCell,
    TuningFindings,
    Verdict,
    write_record,
)
from petseg.training import runs

FINDINGS = "findings.json"

TARGET_LOSS = ORIGINAL_LOSSES["unet"]
"""The validation loss to which times are given."""

Part = TypeVar("Part")
Progress = Callable[[int, int], None]


def find(folder: Path, on_progress: Progress = lambda done, total: None) -> Findings:
    """Returns the findings of the study in a folder, complete or not.

    Args:
        folder: of the study.
        on_progress: called with the parts that are resampled, and how many there are.

    Raises:
        PetsegError: no study, or a damaged one.
    """
    results = Results(folder)
    manifest, study = results.manifest, results.study
    parts, done = 3 + len(study.experiments), itertools.count(1)

    def after(part: Part) -> Part:
        on_progress(next(done), parts)
        return part

    states = [entry.state for entry in manifest.runs]
    models = [*(study.tuning.models if study.tuning else ()), *(m for e in study.experiments for m in e.models)]
    return Findings(
        petseg=manifest.petseg,
        title=study.title,
        models={name: title_of(name) for name in models},
        data=manifest.data,
        confidence=HOW.confidence,
        resamples=HOW.resamples,
        runs={state: states.count(state) for state in get_args(RunState) if state in states},
        training=_training(results),
        latency_environment=manifest.latency_environment,
        target_loss=TARGET_LOSS,
        tuning=after(_tuning(results)),
        experiments=tuple(after(_experiment(results, experiment)) for experiment in study.experiments),
        robustness=after(find_robustness(results)),
        subsets=after(find_subsets(results)),
        settings=_settings(results),
    )


def write_findings(folder: Path, on_progress: Progress = lambda done, total: None) -> Path:
    """Returns FOLDER/findings.json, written anew; arguments and errors are those of `find`."""
    path = folder / FINDINGS
    write_record(path, find(folder, on_progress))
    return path


# --- an experiment ---------------------------------------------------------------------------------------------------


def _experiment(results: Results, experiment: Experiment) -> ExperimentFindings:
    split = "test" if experiment.test else "val"
    machine = _usual_machine(results, experiment)
    return ExperimentFindings(
        name=experiment.name,
        title=experiment.title,
        split=split,
        size=results.study.arm_config(experiment, experiment.arms()[0]).data.size,
        curve=experiment.curve,
        seeds=experiment.seeds,
        arms=tuple(_arm(results, experiment, name, machine) for name in experiment.arms()),
        differences=tuple(_differences(results, experiment, split)),
    )


def _usual_machine(results: Results, experiment: Experiment) -> str:
    """Returns the kind of machine that trained most of an experiment's runs: times of several do not compare."""
    made = {run.name: run for name in experiment.arms() for run in results.arm(experiment, name).values()}
    kinds = Counter(_machine(results.result(run)) for run in made.values())
    return max(kinds, key=kinds.__getitem__, default="")


def _machine(run: RunResult) -> str:
    made = run.environment
    return f"{made.device} {made.processor} {made.threads} {made.precision}"


def _arm(results: Results, experiment: Experiment, name: str, machine: str) -> ArmFindings:
    model, _, variant = name.partition("/")
    config = results.study.arm_config(experiment, name)
    finished = results.arm(experiment, name)
    trained = next((results.result(entry).config.train for entry in finished.values()), None)
    data = results.manifest.data
    question = MatchQuestion.of(results.study, experiment, name)
    match = None if question is None else results.manifest.matches.get(question.key)
    return ArmFindings(
        arm=name,
        model=model,
        variant=variant,
        title=experiment.variants[variant].title,
        line=experiment.variants[variant].line,
        runs=tuple(entry.name for entry in finished.values()),
        seeds=tuple(finished),
        diverged=tuple(results.arm(experiment, name, "diverged")),
        epochs=config.train.epochs,
        train_images=None if data is None else round(data.splits["train"] * config.data.fraction),
        learning_rate=trained.learning_rate if trained else None,
        warmup=trained.warmup if trained else None,
        match=match and CostMatch(quantity=match.quantity, wanted=match.wanted, reached=match.reached),
        cost=next((results.manifest.costs.get(entry.cost) for entry in finished.values()), None),
        scores=_scores(results, experiment, finished, machine) if finished else None,
    )


def _scores(results: Results, experiment: Experiment, finished: Arm, machine: str) -> ArmScores:
    split = "test" if experiment.test else "val"
    made = [results.result(entry) for entry in finished.values()]
    _, (counts,) = stacked(results, [finished], split)
    _, (edges,) = stacked(results, [finished], split, BOUNDARY)
    classes = list(made[0].evaluations[split].iou)
    reached = [(run, epoch) for run in made if (epoch := _epochs_to(run.history, TARGET_LOSS)) is not None]
    timed = {run.name: runs.epoch_seconds(run.history) for run in made if _machine(run) == machine}
    first = experiment is results.study.experiments[0]
    return ArmScores(
        miou=estimate(counts),
        iou={label: estimate(counts, scoring(label, classes)) for label in classes},
        by_seed={seed: rounded(100 * run.evaluations[split].miou) for seed, run in zip(finished, made, strict=True)},
        boundary_f=estimate(edges, scoring(BOUNDARY, classes)),
        cross_entropy=_over_seeds([run.evaluations[split].cross_entropy for run in made]),
        train_seconds=mean([timed[run.name] * len(run.history) for run in made if run.name in timed]),
        target=TargetLoss(
            runs=len(reached), seconds=mean([timed[run.name] * epoch for run, epoch in reached if run.name in timed])
        ),
        # the page draws those of the first experiment; the others' stand with their runs
        history=_history([run.history for run in made]) if first else (),
    )


def _over_seeds(values: Sequence[float]) -> SeedMean:
    low, high = seed_interval(values) or (None, None)
    ends = {} if low is None or high is None else {"low": rounded(low), "high": rounded(high)}
    return SeedMean(mean=rounded(float(np.mean(values))), **ends)


def _epochs_to(history: Sequence[EpochRow], loss: float) -> int | None:
    """Returns the epoch after which the validation loss was first at or below `loss`; None: never."""
    return next((row.epoch for row in history if row.val_loss <= loss), None)


def _history(histories: Sequence[Sequence[EpochRow]]) -> tuple[EpochBands, ...]:
    """Returns, for each epoch, the mean, lowest and highest over seeds of each curve."""

    def band(values: Sequence[float]) -> Band:
        return Band(mean=rounded(float(np.mean(values))), low=rounded(min(values)), high=rounded(max(values)))

    return tuple(
        EpochBands(
            epoch=rows[0].epoch,
            train_loss=band([row.train_loss for row in rows]),
            val_loss=band([row.val_loss for row in rows]),
            val_miou=band([row.val_miou for row in rows]),
        )
        for rows in zip(*histories, strict=False)
    )


def _differences(results: Results, experiment: Experiment, split: str) -> Iterator[ArmDifference]:
    """Yields each pair of arms that is compared, in the order of the page; claims stand with what they are about."""
    for (left, right, metric), own_claims in _compared(results, experiment).items():
        arms = [results.arm(experiment, arm) for arm in (left, right)]
        if any(entry.name == other.name for seed, entry in arms[0].items() if (other := arms[1].get(seed)) is not None):
            continue  # the same run under two names
        seeds, sides = stacked(results, arms, split, metric)
        diverged = {arm: len(results.arm(experiment, arm, "diverged")) for arm in (left, right)}
        pair = Pair(experiment, left, right, own_claims)
        classes = list(results.result(arms[0][seeds[0]]).evaluations[split].iou) if seeds else [metric]
        found = pair.compare(
            (seeds, sides), scoring(metric, classes), metric, {arm: count for arm, count in diverged.items() if count}
        )
        if seeds:
            costs = (results.manifest.costs.get(arm[seeds[0]].cost) for arm in arms)
            found = found.model_copy(update={"cost_ratios": cost_ratios(*costs)})
        yield found


def _compared(results: Results, experiment: Experiment) -> dict[tuple[str, str, str], list[Claim]]:
    """Returns (left, right, metric) -> claims: models in each variant, variants with the first, and what is claimed."""
    wanted: dict[tuple[str, str, str], list[Claim]] = {}
    for left, right in model_pairs(experiment):
        wanted[left, right, "miou"] = []
        if experiment is results.study.experiments[0]:
            wanted[left, right, BOUNDARY] = []
    plain, *others = experiment.variants
    for variant in others:
        if experiment.variants[variant].line == experiment.variants[plain].line:
            for model in experiment.models:
                wanted[f"{model}/{plain}", f"{model}/{variant}", "miou"] = []
    for claim in claims(experiment):
        key, turned = (claim.left, claim.right, claim.metric), (claim.right, claim.left, claim.metric)
        if turned in wanted and not wanted[turned]:
            wanted = {key if known == turned else known: own for known, own in wanted.items()}
        wanted.setdefault(key, []).append(claim)
    return wanted


# --- tuning ----------------------------------------------------------------------------------------------------------


def _tuning(results: Results) -> TuningFindings | None:
    tuning = results.study.tuning
    if tuning is None:
        return None
    config = results.study.config(tuning.models[0], tuning.seed, [tuning.fields], source="study: tuning")
    more_lost, held = _more_lost(results, tuning)
    return TuningFindings(
        seed=tuning.seed,
        size=config.data.size,
        epochs=config.train.epochs,
        expected=tuning.expected,
        loses_more=tuning.loses_more,
        cells=tuple(_cell(results, tuning, model, cell) for model in tuning.models for cell in tuning_cells(tuning)),
        best=results.manifest.tuned,
        at_the_other_s_best={m: _loss(results, tuning, m) for m in tuning.models if len(tuning.models) == 2},
        more_lost=more_lost,
        verdict=held,
    )


def _cell_run(results: Results, tuning: Tuning, model: str, cell: Mapping[str, float]) -> RunEntry | None:
    return results.entry(TUNING, tuning_arm(model, cell), tuning.seed)


def _cell(results: Results, tuning: Tuning, model: str, cell: Mapping[str, float]) -> TuningCell:
    entry = _cell_run(results, tuning, model, cell)
    scored = entry is not None and entry.state == "finished"
    points = rounded(100 * results.result(entry).evaluations["val"].miou) if entry and scored else None
    return TuningCell(model=model, **cell, state=entry.state if entry else "missing", points=points)


def _own_and_other(results: Results, tuning: Tuning, model: str) -> tuple[RunEntry, RunEntry] | None:
    """Returns a model's run at its own best setting and at the other model's; None before both are known."""
    best = results.manifest.tuned
    other = next(name for name in tuning.models if name != model)
    if model not in best or other not in best:
        return None
    cells = (best[name].model_dump(include={"learning_rate", "warmup"}) for name in (model, other))
    own, others = (_cell_run(results, tuning, model, cell) for cell in cells)
    if own is None or others is None or own.state != "finished" or others.state not in ("finished", "diverged"):
        return None
    return own, others


def _loss(results: Results, tuning: Tuning, model: str) -> SettingLoss | None:
    """Returns what a model loses at the other's best setting."""
    found = _own_and_other(results, tuning, model)
    if found is None:
        return None
    own, other = found
    if other.state == "diverged":
        return SettingLoss(outcome="diverged")
    if own.name == other.name:
        return SettingLoss(outcome="same setting")
    lost = difference(results.counts(own, "val"), results.counts(other, "val"))
    return SettingLoss(outcome="scored", difference=lost)


def _more_lost(results: Results, tuning: Tuning) -> tuple[PairedDifference | None, Verdict | None]:
    """Returns by how much the model that was expected to lose more did, and the verdict."""
    if tuning.loses_more is None or len(tuning.models) != 2:
        return None, None
    models = sorted(tuning.models, key=lambda name: name != tuning.loses_more)
    pairs = [pair for model in models if (pair := _own_and_other(results, tuning, model)) is not None]
    if len(pairs) < 2:
        return None, "open"
    diverged = [other.state == "diverged" for _, other in pairs]
    if any(diverged):
        verdicts: dict[tuple[bool, ...], Verdict] = {(True, False): "held", (False, True): "did not hold"}
        return None, verdicts.get(tuple(diverged), "open")
    # an image's matrices at the own and at the other's setting, side by side: their scores' difference is the loss
    lost = [side_by_side([results.counts(entry, "val") for entry in pair]) for pair in pairs]
    found = difference(lost[0], lost[1], _loss_score)
    return found, verdict(found.low, found.high, equal=False)


def _loss_score(pair: Confusion) -> Score:
    first, second = scores_of(pair)
    return np.asarray(first - second)


# --- the runs and their machines -------------------------------------------------------------------------------------


def _finished(results: Results) -> list[RunResult]:
    return [results.result(entry) for entry in results.manifest.runs if entry.state == "finished"]


def _settings(results: Results) -> dict[str, tuple[JsonValue, ...]]:
    """Returns every field of the runs' configs, with the values that it has in any of them; None: the model's own."""
    configs = [dict(flat_fields(run.config.model_dump(mode="json"))) for run in _finished(results)]
    found: dict[str, list[JsonValue]] = {name: [] for config in configs for name in config}
    for name, values in found.items():
        for config in configs:
            if config.get(name) not in values:
                values.append(config.get(name))
    return {name: tuple(values) for name, values in found.items()}


def _training(results: Results) -> TrainingFindings:
    """Returns how long all runs took, how many at a time, and on what, each kind of machine once."""
    made = _finished(results)
    names = {"device", "processor", "threads", "precision", "torch", "commit"}
    machines = Counter(tuple(sorted(run.environment.model_dump(include=names).items())) for run in made)
    return TrainingFindings(
        seconds=rounded(sum(row.seconds for run in made for row in run.history)),
        at_once=max(results.manifest.at_once, default=1),
        machines=tuple(Machine(**dict(machine), runs=count) for machine, count in machines.items()),
    )
