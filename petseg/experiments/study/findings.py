"""What a study found, as data: every number of its page, from its runs' per-image counts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
from pydantic import JsonValue

from petseg import schema
from petseg.config import flat_fields
from petseg.experiments.study import intervals
from petseg.experiments.study.claims import Claim, claims, expect, verdict
from petseg.experiments.study.plan import MatchQuestion, tuning_arm
from petseg.experiments.study.recipe import Experiment, Tuning, tuning_cells
from petseg.experiments.study.results import TUNING, Results, RunEntry, RunResult
from petseg.experiments.study.subsets import find_robustness, find_subsets
from petseg.metrics import Confusion, Score
from petseg.models import title_of
from petseg.training import runs

FINDINGS = "findings.json"

Part = TypeVar("Part")
Progress = Callable[[int, int], None]


def find(folder: Path, on_progress: Progress = lambda done, total: None) -> schema.Findings:
    """Returns the findings of the study in a folder, complete or not."""
    results = Results(folder)
    manifest, study = results.manifest, results.study
    parts, done = 3 + len(study.experiments), itertools.count(1)

    def after(part: Part) -> Part:
        on_progress(next(done), parts)
        return part

    states = [entry.state for entry in manifest.runs]
    models = [*(study.tuning.models if study.tuning else ()), *(m for e in study.experiments for m in e.models)]
    return schema.Findings(
        petseg=manifest.petseg,
        title=study.title,
        models={name: title_of(name) for name in models},
        data=manifest.data,
        confidence=intervals.HOW.confidence,
        resamples=intervals.HOW.resamples,
        runs={state: states.count(state) for state in get_args(schema.RunState) if state in states},
        training=_training(results),
        latency_environment=manifest.latency_environment,
        tuning=after(_tuning(results)),
        experiments=tuple(after(_experiment(results, experiment)) for experiment in study.experiments),
        robustness=after(find_robustness(results)),
        subsets=after(find_subsets(results)),
        settings=_settings(results),
    )


def write_findings(folder: Path, on_progress: Progress = lambda done, total: None) -> Path:
    """Returns FOLDER/findings.json, written anew."""
    path = folder / FINDINGS
    schema.write_record(path, find(folder, on_progress))
    return path


# --- an experiment ---------------------------------------------------------------------------------------------------


def _experiment(results: Results, experiment: Experiment) -> schema.ExperimentFindings:
    machine = _usual_machine(results, experiment)
    return schema.ExperimentFindings(
        name=experiment.name,
        title=experiment.title,
        split=experiment.split,
        size=results.study.arm_config(experiment, experiment.arms()[0]).data.size,
        curve=experiment.curve,
        seeds=experiment.seeds,
        arms=tuple(_arm(results, experiment, name, machine) for name in experiment.arms()),
        differences=tuple(_differences(results, experiment)),
    )


def _usual_machine(results: Results, experiment: Experiment) -> str:
    """Returns the kind of machine that trained most of an experiment's runs: times of several do not compare."""
    made = {run.name: run for name in experiment.arms() for run in results.arm(experiment, name).values()}
    kinds = Counter(_machine(results.result(run)) for run in made.values())
    return max(kinds, key=kinds.__getitem__, default="")


def _machine(run: RunResult) -> str:
    made = run.environment
    return f"{made.device} {made.processor} {made.threads} {made.precision}"


def _arm(results: Results, experiment: Experiment, name: str, machine: str) -> schema.ArmFindings:
    model, _, variant = name.partition("/")
    config = results.study.arm_config(experiment, name)
    finished = results.arm(experiment, name)
    data = results.manifest.data
    question = MatchQuestion.of(results.study, experiment, name)
    match = None if question is None else results.manifest.matches.get(question.key)
    return schema.ArmFindings(
        arm=name,
        model=model,
        variant=variant,
        title=experiment.variants[variant].title,
        line=experiment.variants[variant].line,
        runs=tuple(entry.name for entry in finished.values()),
        seeds=tuple(finished),
        diverged=tuple(results.arm(experiment, name, "diverged")),
        train_images=None if data is None else round(data.splits["train"] * config.data.fraction),
        match=match and schema.CostMatch(quantity=match.quantity, wanted=match.wanted, reached=match.reached),
        cost=next((results.manifest.costs.get(entry.cost) for entry in finished.values()), None),
        scores=_scores(results, experiment, finished, machine) if finished else None,
    )


def _scores(results: Results, experiment: Experiment, finished: intervals.Arm, machine: str) -> schema.ArmScores:
    made = [results.result(entry) for entry in finished.values()]
    (counts,) = intervals.stacked(results, [finished], experiment.split)[1]
    (edges,) = intervals.stacked(results, [finished], experiment.split, intervals.BOUNDARY)[1]
    classes = list(made[0].evaluations[experiment.split].iou)
    times = [runs.epoch_seconds(run.history) * len(run.history) for run in made if _machine(run) == machine]
    return schema.ArmScores(
        miou=intervals.estimate(counts),
        iou={label: intervals.estimate(counts, intervals.scoring(label, classes)) for label in classes},
        boundary_f=intervals.estimate(edges, intervals.scoring(intervals.BOUNDARY, classes)),
        train_seconds=intervals.rounded(float(np.mean(times))) if times else None,
        # the page draws those of the first experiment; the others' stand with their runs
        history=_history(made) if experiment is results.study.experiments[0] else (),
    )


def _history(made: Sequence[RunResult]) -> tuple[schema.EpochBands, ...]:
    def band(rows: Sequence[schema.EpochRow], curve: str) -> schema.Band:
        values = [getattr(row, curve) for row in rows]
        mean, low, high = map(intervals.rounded, (float(np.mean(values)), min(values), max(values)))
        return schema.Band(mean=mean, low=low, high=high)

    curves = ("train_loss", "val_loss", "val_miou")
    return tuple(
        schema.EpochBands(epoch=rows[0].epoch, **{curve: band(rows, curve) for curve in curves})
        for rows in zip(*(run.history for run in made), strict=False)
    )


def _differences(results: Results, experiment: Experiment) -> Iterator[schema.ArmDifference]:
    for (left, right, metric), own_claims in _compared(results, experiment).items():
        arms = [results.arm(experiment, arm) for arm in (left, right)]
        if any(entry.name == other.name for seed, entry in arms[0].items() if (other := arms[1].get(seed)) is not None):
            continue  # the same run under two names
        seeds, sides = intervals.stacked(results, arms, experiment.split, metric)
        difference = ratio = None
        if seeds:
            entries = [arm[seeds[0]] for arm in arms]
            classes = list(results.result(entries[0]).evaluations[experiment.split].iou)
            difference = intervals.difference(sides[0], sides[1], intervals.scoring(metric, classes))
            ratio = _latency_ratio(*(results.manifest.costs.get(entry.cost) for entry in entries))
        diverged = {arm: len(results.arm(experiment, arm, "diverged")) for arm in (left, right)}
        found = schema.ArmDifference(
            left=left,
            right=right,
            metric=metric,
            seeds=seeds,
            diverged={arm: count for arm, count in diverged.items() if count},
            difference=difference,
            latency_ratio=ratio,
        )
        yield expect(found, own_claims, len(experiment.seeds))


def _latency_ratio(first: schema.CostInfo | None, second: schema.CostInfo | None) -> float | None:
    if first is None or second is None or first == second or not (first.latency_ms and second.latency_ms):
        return None
    return intervals.rounded(first.latency_ms.p50 / second.latency_ms.p50)


def _compared(results: Results, experiment: Experiment) -> dict[tuple[str, str, str], list[Claim]]:
    """Returns (left, right, metric) -> claims: models in each variant, variants with the first, and what is claimed."""
    wanted: dict[tuple[str, str, str], list[Claim]] = {}
    for left, right in intervals.model_pairs(experiment):
        wanted[left, right, "miou"] = []
        if experiment is results.study.experiments[0]:
            wanted[left, right, intervals.BOUNDARY] = []
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


def _tuning(results: Results) -> schema.TuningFindings | None:
    tuning = results.study.tuning
    if tuning is None:
        return None
    config = results.study.config(tuning.models[0], tuning.seed, [tuning.fields], source="study: tuning")
    pairs = {model: _own_and_other(results, tuning, model) for model in tuning.models if len(tuning.models) == 2}
    more_lost, held = _more_lost(results, tuning, pairs)
    return schema.TuningFindings(
        seed=tuning.seed,
        size=config.data.size,
        epochs=config.train.epochs,
        expected=tuning.expected,
        cells=tuple(_cell(results, tuning, model, cell) for model in tuning.models for cell in tuning_cells(tuning)),
        best=results.manifest.tuned,
        at_the_other_s_best={model: _loss(results, pair) for model, pair in pairs.items()},
        more_lost=more_lost,
        verdict=held,
    )


def _cell(results: Results, tuning: Tuning, model: str, cell: Mapping[str, float]) -> schema.TuningCell:
    entry = results.entry(TUNING, tuning_arm(model, cell), tuning.seed)
    points = None
    if entry is not None and entry.state == "finished":
        points = intervals.rounded(100 * results.result(entry).evaluations["val"].miou)
    return schema.TuningCell(model=model, **cell, state=entry.state if entry else "missing", points=points)


def _own_and_other(results: Results, tuning: Tuning, model: str) -> list[RunEntry]:
    """Returns a model's run at its own best setting and at the other model's; nothing before both have ended."""
    best = results.manifest.tuned
    if not set(tuning.models) <= set(best):
        return []
    names = sorted(tuning.models, key=lambda name: name != model)  # its own first
    cells = (best[name].model_dump(include={"learning_rate", "warmup"}) for name in names)
    found = [results.entry(TUNING, tuning_arm(model, cell), tuning.seed) for cell in cells]
    return [entry for entry in found if entry] if all(e and e.state in ("finished", "diverged") for e in found) else []


def _loss(results: Results, pair: Sequence[RunEntry]) -> schema.SettingLoss | None:
    """Returns what a model loses at the other's best setting."""
    if not pair:
        return None
    if pair[1].state == "diverged":
        return schema.SettingLoss(outcome="diverged")
    if pair[0].name == pair[1].name:
        return schema.SettingLoss(outcome="same setting")
    own, other = (results.images(entry, "val").confusions for entry in pair)
    return schema.SettingLoss(outcome="scored", difference=intervals.difference(own, other))


def _more_lost(
    results: Results, tuning: Tuning, pairs: Mapping[str, Sequence[RunEntry]]
) -> tuple[schema.PairedDifference | None, schema.Verdict | None]:
    """Returns by how much the model that was expected to lose more did, and the verdict."""
    if tuning.loses_more is None or not pairs:
        return None, None
    if not all(pairs.values()):
        return None, "open"
    ordered = [pairs[model] for model in sorted(pairs, key=lambda name: name != tuning.loses_more)]
    first, second = (pair[1].state == "diverged" for pair in ordered)
    if first or second:
        return None, "open" if first and second else "held" if first else "did not hold"
    # an image's matrices at the own and at the other's setting, side by side: their scores' difference is the loss
    lost = [intervals.side_by_side([results.images(entry, "val").confusions for entry in pair]) for pair in ordered]
    found = intervals.difference(lost[0], lost[1], _loss_score)
    return found, verdict(found.low, found.high, equal=False)


def _loss_score(pair: Confusion) -> Score:
    first, second = intervals.scores_of(pair)
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


def _training(results: Results) -> schema.TrainingFindings:
    """Returns how long all runs took, how many at a time, and on what, each kind of machine once."""
    made = _finished(results)
    names = {"device", "processor", "threads", "precision", "torch", "commit"}
    machines = Counter(tuple(sorted(run.environment.model_dump(include=names).items())) for run in made)
    return schema.TrainingFindings(
        seconds=intervals.rounded(sum(row.seconds for run in made for row in run.history)),
        machines=tuple(schema.Machine(**dict(machine), runs=count) for machine, count in machines.items()),
    )
