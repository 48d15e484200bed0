"""What a study found, as data: every number of its page, from its runs' per-picture counts.

Points are hundredths of mIoU (or of a class's IoU), rounded to a ten-thousandth: what is beyond differs between
machines. A finding that needs runs which are not there is None, or has fewer seeds, and says so.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from petseg import storage
from petseg.config import flat_fields
from petseg.data.oxford_pets import breed_of, committed_leaks
from petseg.evaluation.corruptions import SEVERITIES, Corruption, corruptions
from petseg.evaluation.statistics import (
    Difference,
    Estimate,
    Scoring,
    bootstrap,
    paired_bootstrap,
    seed_interval,
)
from petseg.experiments.study.recipe import VIEWS, Claim, Experiment, Tuning, claims, rechecked, tuning_cells
from petseg.experiments.study.results import ROBUSTNESS, TUNING, Result, Results
from petseg.metrics import Confusion, Score, boundary_sums, iou, mean_boundary_f, mean_iou
from petseg.models import title_of
from petseg.schema import EpochRow
from petseg.training import runs

FINDINGS = "findings.json"

KINDS = {
    "blur": "blur",
    "noise": "noise",
    "jpeg": "JPEG",
    "dark": "darkness",
    "small": "small scale",
    "rotated": "rotation",
}
UNITS = {
    "blur": "blur, share of the side",
    "noise": "noise, share of the range",
    "jpeg": "JPEG quality",
    "dark": "light left",
    "small": "size left",
    "rotated": "degrees rotated",
}
"""Kind of corruption -> what its severities count."""

REACHED = 0.3614
"""The validation loss of the comparison petseg descends from, after 30 epochs of a U-Net: the time to it is told."""

OFFICIAL = {"train": 3312, "val": 368, "test": 3669}
"""Pictures of the whole data set; a study of others says so, and is not published."""

Verdict = Literal["held", "did not hold", "open"]

Part = TypeVar("Part")


def find(folder: Path, on_progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Returns the findings of the study in a folder, complete or not, ready for JSON.

    Args:
        folder: of the study.
        on_progress: called with the parts that are resampled, and how many there are.

    Raises:
        PetsegError: no study, or a damaged one.
    """
    results = Results.read(folder)
    parts, ready = 3 + len(results.study.experiments), itertools.count(1)

    def told(part: Part) -> Part:
        if on_progress is not None:
            on_progress(next(ready), parts)
        return part

    manifest, study = results.manifest, results.study
    states = [run["state"] for run in manifest["runs"]]
    pictures = (manifest["data"] or {}).get("pictures", {})
    return {
        "kind": "findings",
        "version": 2,
        "petseg": manifest["petseg"],
        "title": study.title,
        "models": {name: title_of(name) for name in _models(results)},
        "official": pictures == OFFICIAL,
        "data": manifest["data"],
        "settings": _settings(results),
        "runs": {
            state: states.count(state) for state in ("finished", "diverged", "missing", "waiting") if state in states
        },
        "training": _training(results),
        "latency_environment": manifest["latency_environment"],
        "reached_loss": REACHED,
        "tuning": told(_tuning(results)),
        "experiments": [told(_experiment(results, experiment)) for experiment in study.experiments],
        "robustness": told(_robustness(results)),
        "honesty": told(_honesty(results)),
    }


def write_findings(folder: Path, on_progress: Callable[[int, int], None] | None = None) -> Path:
    """Returns FOLDER/findings.json, written anew; arguments and errors are those of `find`."""
    path = folder / FINDINGS
    storage.write_json(path, find(folder, on_progress))
    return path


def verdict(low: float, high: float, *, equal: bool, by: float = 0.0) -> Verdict:
    """Returns whether an expectation held, by the interval of left less right.

    `left > right by X` held where the whole interval lies above X, and did not where it lies below; between, it is
    open. `left = right` held where no difference is shown.

    >>> verdict(1.2, 2.4, equal=False, by=1), verdict(1.2, 2.4, equal=False, by=2), verdict(-1, -0.2, equal=False)
    ('held', 'open', 'did not hold')
    """
    if equal:
        return "held" if low <= 0 <= high else "did not hold"
    return "held" if low > by else "did not hold" if high < by else "open"


def _models(results: Results) -> list[str]:
    study = results.study
    named = [*(study.tuning.models if study.tuning else ()), *(m for e in study.experiments for m in e.models)]
    return list(dict.fromkeys(named))


def _round(value: float) -> float:
    return round(float(value), 4) + 0.0  # no -0.0


def _estimate(found: Estimate) -> dict[str, float]:
    return {"points": _round(found.points), "low": _round(found.low), "high": _round(found.high)}


def _difference(found: Difference) -> dict[str, Any]:
    return {
        **_estimate(found),
        "share_left_better": _round(found.share_first_better),
        "resamples": found.resamples,
        "confidence": found.confidence,
    }


def _mean(values: Sequence[float]) -> float | None:
    return _round(float(np.mean(values))) if len(values) else None


def _over_seeds(values: Sequence[float]) -> dict[str, float | None]:
    """Returns the mean of what is one number a run, and its interval where there are several seeds."""
    ends = seed_interval(values)
    low, high = (None, None) if ends is None else map(_round, ends)
    return {"mean": _mean(values), "low": low, "high": high}


# --- scores ----------------------------------------------------------------------------------------------------------


def class_iou(confusion: Confusion, place: int) -> Score:
    """Returns the IoU of one class, float64 [...]."""
    return iou(confusion)[..., place]


def _scoring(metric: str, classes: Sequence[str]) -> Scoring:
    if metric == BOUNDARY:
        return mean_boundary_f
    return mean_iou if metric == "miou" else partial(class_iou, place=classes.index(metric))


BOUNDARY = "boundary_f"
"""The metric that is no score of confusion matrices."""


def stacked(
    results: Results, arms: Sequence[Mapping[int, Result]], section: str, metric: str = "miou"
) -> tuple[list[int], list[Confusion]]:
    """Returns the seeds that all arms have, and what each arm's score is made from.

    That is matrices int64 [S, N, C, C], and for the boundary F-score its sums, int64 [S, N, 2, C].
    """
    seeds = sorted(set.intersection(*(set(arm) for arm in arms)))

    def of_pictures(run: Result) -> Confusion:
        return boundary_sums(results.edges(run, section)) if metric == BOUNDARY else results.counts(run, section)[1]

    return seeds, [np.stack([of_pictures(arm[seed]) for seed in seeds]) if seeds else _NONE for arm in arms]


_NONE = np.zeros((0, 0, 0, 0), np.int64)


def compare(first: Confusion, second: Confusion, score: Scoring = mean_iou) -> dict[str, Any]:
    """Returns the difference of two models with its interval and the p-value of a permutation test."""
    return {
        **_difference(paired_bootstrap(first, second, score=score)),
        "p_value": 0.0,
    }


# --- an experiment ---------------------------------------------------------------------------------------------------


def _experiment(results: Results, experiment: Experiment) -> dict[str, Any]:
    split = "test" if experiment.test else "val"
    machine = _usual_machine(results, experiment)
    arms = [_arm(results, experiment, name, split, machine) for name in experiment.arms()]
    sample = results.study.arm_config(experiment, experiment.arms()[0])
    contrasts = list(_contrasts(results, experiment, split))
    return {
        "name": experiment.name,
        "title": experiment.title,
        "split": split,
        "size": sample.data.size,
        "curve": experiment.curve,
        "seeds": list(experiment.seeds),
        "expected": list(experiment.expected),
        "arms": arms,
        "contrasts": contrasts,
        **({"another_thousand": _another_thousand(arms, contrasts)} if experiment.curve == "pictures" else {}),
    }


MORE = 1000
"""Pictures whose worth is extrapolated."""


def _another_thousand(arms: Sequence[Mapping[str, Any]], contrasts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns, for each model, what the largest step of pictures gained and what `MORE` would at the same rate.

    The rate is per doubling: learning curves are about straight over the logarithm of the pictures.
    """
    found = {}
    for model in dict.fromkeys(arm["model"] for arm in arms):
        own = sorted(
            (arm for arm in arms if arm["model"] == model and not arm["line"] and "miou" in arm), key=_pictures
        )
        if len(own) < 2:
            continue
        less, most = own[-2:]
        step = next(
            (c for c in contrasts if (c["left"], c["right"], c["metric"]) == (most["arm"], less["arm"], "miou")), {}
        )
        if "points" in step and less["pictures"] < most["pictures"]:
            count = most["pictures"]
            share = float(np.log((count + MORE) / count) / np.log(count / less["pictures"]))
            measured = {key: step[key] for key in ("points", "low", "high", "confidence")}
            scaled = {key: _round(share * step[key]) for key in ("points", "low", "high")}
            found[model] = {"from": less["pictures"], "to": count, "more": MORE, "measured": measured, **scaled}
    return found


def _pictures(arm: Mapping[str, Any]) -> int:
    return arm["pictures"] or 0


def _usual_machine(results: Results, experiment: Experiment) -> str:
    """Returns the kind of machine that trained most of an experiment's runs: times of several do not compare."""
    made = {run.name: run for name in experiment.arms() for run in results.arm(experiment, name).values()}
    kinds = Counter(map(_machine, made.values()))
    return max(kinds, key=kinds.__getitem__, default="")


def _machine(run: Result) -> str:
    return " ".join(str(run.environment.get(key)) for key in ("device", "processor", "threads", "precision"))


def _arm(results: Results, experiment: Experiment, name: str, split: str, machine: str) -> dict[str, Any]:
    model, _, variant = name.partition("/")
    config = results.study.arm_config(experiment, name)
    finished = results.arm(experiment, name)
    cost = next((run.cost for run in finished.values()), {})
    trained = next(iter(finished.values()), None)
    train = results.manifest["data"]["pictures"]["train"] if results.manifest["data"] else None
    found = {
        "arm": name,
        "model": model,
        "variant": variant,
        "title": experiment.variants[variant].title,
        "line": experiment.variants[variant].line,
        "runs": [run.name for run in finished.values()],
        "seeds": list(finished),
        "diverged": list(results.arm(experiment, name, "diverged")),
        "epochs": config.train.epochs,
        "pictures": None if train is None else round(train * config.data.fraction),
        "match": _match(results, experiment, name),
        "settings": None
        if trained is None
        else {key: trained.config["train"][key] for key in ("learning_rate", "warmup")},
        "cost": dict(cost),
    }
    first = experiment is results.study.experiments[0]
    if not finished:
        return found
    scores = [run.scores(split) for run in finished.values()]
    seeds, (counts,) = stacked(results, [finished], split)
    _, (edges,) = stacked(results, [finished], split, BOUNDARY)
    classes = list(scores[0]["iou"])
    reached = {run.name: epoch for run in finished.values() if (epoch := _epochs_to(run.history, REACHED)) is not None}
    timed = {run.name: runs.epoch_seconds(run.history) for run in finished.values() if _machine(run) == machine}
    return found | {
        "miou": _estimate(bootstrap(counts)),
        "iou": {label: _estimate(bootstrap(counts, score=_scoring(label, classes))) for label in classes},
        "by_seed": {str(seed): _round(100 * score["miou"]) for seed, score in zip(seeds, scores, strict=True)},
        BOUNDARY: _estimate(bootstrap(edges, score=mean_boundary_f)),
        "cross_entropy": _over_seeds([score["cross_entropy"] for score in scores]),
        "train_seconds": _mean([timed[run.name] * len(run.history) for run in finished.values() if run.name in timed]),
        "reached": {
            "runs": len(reached),
            "seconds": _mean([timed[run] * epoch for run, epoch in reached.items() if run in timed]),
        },
        # the page draws those of the first experiment; the others' stand in their runs' metrics.jsonl
        **({"history": _history([run.history for run in finished.values()])} if first else {}),
    }


def _match(results: Results, experiment: Experiment, arm: str) -> dict[str, Any] | None:
    found = results.manifest["matches"].get(f"{experiment.name}:{arm}")
    return None if found is None else {key: found[key] for key in ("quantity", "wanted", "found")}


def _epochs_to(history: Sequence[EpochRow], loss: float) -> int | None:
    """Returns the epoch after which the validation loss was first at or below `loss`; None: never."""
    return next((row.epoch for row in history if row.val_loss <= loss), None)


def _history(histories: Sequence[Sequence[EpochRow]]) -> list[dict[str, Any]]:
    """Returns, for each epoch, the mean, lowest and highest over seeds of each curve."""
    found = []
    for rows in zip(*histories, strict=False):
        epoch: dict[str, Any] = {"epoch": rows[0].epoch}
        for key in ("train_loss", "val_loss", "val_miou"):
            values = [getattr(row, key) for row in rows]
            epoch[key] = {
                "mean": _round(float(np.mean(values))),
                "low": _round(min(values)),
                "high": _round(max(values)),
            }
        found.append(epoch)
    return found


def _contrasts(results: Results, experiment: Experiment, split: str) -> Iterator[dict[str, Any]]:
    """Yields each pair of arms that is compared, in the order of the page; claims stand with what they are about."""
    wanted: dict[tuple[str, str, str], list[Any]] = {}
    for left, right in _model_pairs(experiment):
        wanted[left, right, "miou"] = []
        if experiment is results.study.experiments[0]:
            wanted[left, right, BOUNDARY] = []
    plain, *others = experiment.variants
    for variant in others:
        if experiment.variants[variant].line != experiment.variants[plain].line:
            continue
        for model in experiment.models:
            wanted[f"{model}/{plain}", f"{model}/{variant}", "miou"] = []
    for claim in claims(experiment):
        key, turned = (claim.left, claim.right, claim.metric), (claim.right, claim.left, claim.metric)
        if turned in wanted and not wanted[turned]:
            wanted = {key if known == turned else known: told for known, told in wanted.items()}
        wanted.setdefault(key, []).append(claim)
    for (left, right, metric), told in wanted.items():
        arms = [results.arm(experiment, arm) for arm in (left, right)]
        if any(run.name == other.name for seed, run in arms[0].items() if (other := arms[1].get(seed)) is not None):
            continue  # the same run under two names
        seeds, (first, second) = stacked(results, arms, split, metric)
        diverged = {arm: len(results.arm(experiment, arm, "diverged")) for arm in (left, right)}
        found: dict[str, Any] = {
            **{"left": left, "right": right, "metric": metric, "seeds": seeds},
            "diverged": {arm: count for arm, count in diverged.items() if count},
        }
        if seeds:
            classes = list(arms[0][seeds[0]].scores(split)["iou"])
            found |= compare(first, second, _scoring(metric, classes))
            found["costs"] = _cost_ratios(arms[0][seeds[0]].cost, arms[1][seeds[0]].cost)
        found["expected"] = _verdicts(told, left, right, metric, found, experiment, seeds)
        yield found


def _cost_ratios(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, float]:
    """Returns what the first costs in units of the second, where both were measured; nothing of one same shape."""
    if first == second:
        return {}
    flat = [
        {**cost, "latency": cost["latency_ms"]["p50"]} if "latency_ms" in cost else dict(cost)
        for cost in (first, second)
    ]
    names = ("latency", "macs", "parameters", "activation_bytes")
    return {name: _round(flat[0][name] / flat[1][name]) for name in names if all(name in cost for cost in flat)}


# --- tuning ----------------------------------------------------------------------------------------------------------


def _tuning(results: Results) -> dict[str, Any] | None:
    tuning = results.study.tuning
    if tuning is None:
        return None
    config = results.study.config(tuning.models[0], tuning.seed, [tuning.fields], source="study: tuning")
    cells = [
        {"model": model, **cell, **_cell(results, tuning, model, cell)}
        for model in tuning.models
        for cell in tuning_cells(tuning)
    ]
    losses = {model: _loss(results, tuning, model) for model in tuning.models if len(tuning.models) == 2}
    return {
        "seed": tuning.seed,
        "size": config.data.size,
        "epochs": config.train.epochs,
        "expected": tuning.expected,
        "loses_more": tuning.loses_more,
        "cells": cells,
        "best": dict(results.manifest["tuned"]),
        "at_the_other_s_best": losses,
        **_more_lost(results, tuning),
    }


def _cell_run(results: Results, tuning: Tuning, model: str, cell: Mapping[str, float]) -> Result | None:
    arm = f"{model}/{cell['learning_rate']:g}-{cell['warmup']:g}"
    return results.run(TUNING, arm, tuning.seed)


def _cell(results: Results, tuning: Tuning, model: str, cell: Mapping[str, float]) -> dict[str, Any]:
    run = _cell_run(results, tuning, model, cell)
    state = "missing" if run is None else run.state
    scored = run is not None and state == "finished"
    return {"state": state, "miou": _round(100 * run.scores("val")["miou"]) if scored and run else None}


def _own_and_other(results: Results, tuning: Tuning, model: str) -> tuple[Result, Result] | None:
    """Returns a model's run at its own best setting and at the other model's; None before both are known."""
    best = results.manifest["tuned"]
    other = next(name for name in tuning.models if name != model)
    if model not in best or other not in best:
        return None
    own, others = (_cell_run(results, tuning, model, best[name]) for name in (model, other))
    if own is None or others is None or own.state != "finished" or others.state not in ("finished", "diverged"):
        return None
    return own, others


def _loss(results: Results, tuning: Tuning, model: str) -> dict[str, Any] | None:
    """Returns what a model loses at the other's best setting: one seed, so the interval is over pictures alone."""
    found = _own_and_other(results, tuning, model)
    if found is None:
        return None
    own, other = found
    if other.state == "diverged":
        return {"diverged": True}
    if own.name == other.name:
        return {"diverged": False, "same": True, "points": 0.0, "low": 0.0, "high": 0.0}
    first, second = (results.counts(run, "val")[1] for run in found)
    return {"diverged": False, "same": False, **compare(first, second)}


def _more_lost(results: Results, tuning: Tuning) -> dict[str, Any]:
    """Returns by how much the model that was expected to lose more did, and the verdict."""
    if tuning.loses_more is None or len(tuning.models) != 2:
        return {"more_lost": None, "verdict": None}
    first = tuning.loses_more
    second = next(name for name in tuning.models if name != first)
    pairs = [_own_and_other(results, tuning, model) for model in (first, second)]
    if pairs[0] is None or pairs[1] is None:
        return {"more_lost": None, "verdict": "open"}
    diverged = [pair[1].state == "diverged" for pair in pairs if pair is not None]
    if any(diverged):
        told = "held" if diverged == [True, False] else "did not hold" if diverged == [False, True] else "open"
        return {"more_lost": None, "verdict": told}
    # a picture's matrices at the own and at the other's setting, side by side: their scores' difference is the loss
    lost = [_side_by_side([results.counts(run, "val")[1] for run in pair]) for pair in pairs if pair]
    found = paired_bootstrap(lost[0], lost[1], score=_loss_score)
    return {"more_lost": _difference(found), "verdict": verdict(found.low, found.high, equal=False)}


def _side_by_side(counts: Sequence[Confusion]) -> Confusion:
    """Returns P matrices [..., C, C] of each picture as one, int64 [..., P * C, C], for a score of all P."""
    return np.concatenate(counts, axis=-2)


def _scores(side_by_side: Confusion) -> Score:
    """Returns the mIoU of each of P matrices side by side, float64 [P, ...]."""
    *_, rows, classes = side_by_side.shape
    return np.stack([mean_iou(part) for part in np.split(side_by_side, rows // classes, axis=-2)])


def _loss_score(pair: Confusion) -> Score:
    first, second = _scores(pair)
    return np.asarray(first - second)


def _mean_score(strengths: Confusion) -> Score:
    return np.asarray(_scores(strengths).mean(axis=0))


# --- looked at again -------------------------------------------------------------------------------------------------


def _robustness(results: Results) -> dict[str, Any] | None:
    """Returns each arm's scores on worse pictures, the models' differences, and what was expected of these."""
    recheck = results.study.robustness
    if recheck is None:
        return None
    experiment = rechecked(results.study, recheck, "robustness")
    arms = _distinct({arm: _scored_worse(results, experiment, arm) for arm in experiment.arms()})
    scored = next((run for arm in arms.values() for run in arm.values()), None)
    told = claims(experiment, recheck.expected, tuple(SEVERITIES), where="robustness")
    found: dict[str, Any] = {
        "experiment": experiment.name,
        "every": None if scored is None else scored.scores(ROBUSTNESS)["every"],
        "pictures": None if scored is None else scored.scores(ROBUSTNESS)["images"],
        "amounts": {kind: list(amounts) for kind, amounts in SEVERITIES.items()},
        "titles": KINDS,
        "units": UNITS,
        "expected": list(recheck.expected),
        "arms": [],
        "contrasts": [],
    }
    if scored is None:
        return found
    worse = results.counts(scored, next(iter(corruptions())).name)[0]
    for name, arm in arms.items():
        if arm:
            scores = {
                kind: [_estimate(bootstrap(counts)) for counts in _by_strength(results, kind, [arm], worse)[0]]
                for kind in SEVERITIES
            }
            found["arms"].append({"arm": name, "model": name.partition("/")[0], "scores": scores})
    for kind in SEVERITIES:
        for left, right in _distinct_pairs(results, experiment):
            sides = [_scored_worse(results, experiment, arm) for arm in (left, right)]
            seeds, _ = stacked(results, sides, "test")
            first, second = _by_strength(results, kind, sides, worse) if seeds else ([], [])
            by_strength = [_difference(paired_bootstrap(*pair)) for pair in zip(first, second, strict=True)]
            together = compare(_side_by_side(first[1:]), _side_by_side(second[1:]), score=_mean_score) if seeds else {}
            found["contrasts"].append(
                {
                    **{"left": left, "right": right, "metric": "miou", "kind": kind, "seeds": seeds},
                    **together,
                    "by_strength": by_strength,
                    "expected": _verdicts(told, left, right, kind, together, experiment, seeds),
                }
            )
    return found


def _scored_worse(results: Results, experiment: Experiment, arm: str) -> dict[int, Result]:
    """Returns an arm's finished runs that were scored on worse pictures; an older study's were not."""
    return {seed: run for seed, run in results.arm(experiment, arm).items() if ROBUSTNESS in run.splits}


def _by_strength(
    results: Results, kind: str, arms: Sequence[Mapping[int, Result]], worse: Sequence[str]
) -> list[list[Confusion]]:
    """Returns, for each arm, matrices [S, N, C, C] of the same pictures unchanged and in each strength."""
    names = results.counts(next(iter(arms[0].values())), "test")[0]
    places = [names.index(name) for name in worse]
    found = [[counts[:, places]] for counts in stacked(results, arms, "test")[1]]
    for strength in (1, 2, 3):
        for arm, counts in zip(found, stacked(results, arms, Corruption(kind, strength).name)[1], strict=True):
            arm.append(counts)
    return found


def _honesty(results: Results) -> dict[str, Any] | None:
    """Returns each arm's scores and the models' differences in other views of the same counts, and by breed."""
    recheck = results.study.honesty
    if recheck is None:
        return None
    experiment = rechecked(results.study, recheck, "honesty")
    told = claims(experiment, recheck.expected, tuple(VIEWS), where="honesty")
    arms = {arm: results.arm(experiment, arm) for arm in experiment.arms()}
    found: dict[str, Any] = {
        "experiment": experiment.name,
        "expected": list(recheck.expected),
        "views": [],
        "breeds": None,
    }
    scored = next((run for arm in arms.values() for run in arm.values()), None)
    if scored is None:
        return found
    names, counts = results.counts(scored, "test")
    for view, title in VIEWS.items():
        if view.startswith("border") and list(scored.scores("test")["iou"]) != ["pet", "background", "border"]:
            continue
        look = partial(seen, view=view, names=names, true=counts.sum(axis=2))
        contrasts = []
        for left, right in _distinct_pairs(results, experiment):
            seeds, (first, second) = stacked(results, [arms[left], arms[right]], "test")
            finding = compare(look(first), look(second)) if seeds else {}
            expected = _verdicts(told, left, right, view, finding, experiment, seeds)
            pair = {"left": left, "right": right, "metric": "miou", "seeds": seeds}
            contrasts.append({**pair, **finding, "expected": expected})
        scores = {
            name: _estimate(bootstrap(look(stacked(results, [arm], "test")[1][0])))
            for name, arm in _distinct(arms).items()
            if arm
        }
        pictures = look(counts[None]).shape[1]
        found["views"].append(
            {"view": view, "title": title, "pictures": pictures, "scores": scores, "contrasts": contrasts}
        )
    found["breeds"] = _breeds(results, arms, _model_pairs(experiment)[:1], names)
    return found


def seen(counts: Confusion, view: str, names: Sequence[str], true: Confusion) -> Confusion:
    """Returns the matrices of one of `VIEWS`: fewer pictures, or fewer classes.

    Args:
        counts: int64 [S, N, C, C]; for the border views pet, background, border.
        view: its name.
        names: of the N pictures.
        true: true pixels by class of each, int64 [N, C]; the pet is the first.
    """
    if view == "unleaked":
        return counts[:, [name not in committed_leaks() for name in names]]
    if view in SIZES:
        order = np.argsort(true[:, 0] / true.sum(axis=1), kind="stable")
        return counts[:, np.sort(np.array_split(order, len(SIZES))[SIZES.index(view)])]
    if view == "border_ignored":
        counts = counts[..., :2, :]
    return _merged(counts, into=1 if view == "border_background" else 0)


SIZES = ("small", "medium", "large")


def _merged(counts: Confusion, into: int) -> Confusion:
    """Returns matrices [..., 2, 2] whose third class is another one."""
    for axis in (-1, -2):
        moved = np.moveaxis(counts, axis, -1)
        if moved.shape[-1] == 3:
            kept = moved[..., :2].copy()
            kept[..., into] += moved[..., 2]
            counts = np.moveaxis(kept, -1, axis)
    return counts


def _breeds(
    results: Results, arms: Mapping[str, Mapping[int, Result]], pairs: Sequence[tuple[str, str]], names: Sequence[str]
) -> dict[str, Any] | None:
    """Returns, for the first pair of arms, both scores and the difference on each breed's pictures."""
    if not pairs:
        return None
    left, right = pairs[0]
    seeds, (first, second) = stacked(results, [arms[left], arms[right]], "test")
    if not seeds:
        return None
    breeds = np.array([breed_of(name) for name in names])
    rows = []
    for breed in sorted(set(breeds.tolist())):
        own, other = first[:, breeds == breed], second[:, breeds == breed]
        scores = [_round(100 * float(mean_iou(counts.sum(axis=1)).mean())) for counts in (own, other)]
        pictures = int((breeds == breed).sum())
        difference = _difference(paired_bootstrap(own, other))
        rows.append({"breed": breed, "pictures": pictures, "left": scores[0], "right": scores[1], **difference})
    return {"left": left, "right": right, "seeds": seeds, "rows": rows}


def _model_pairs(experiment: Experiment) -> list[tuple[str, str]]:
    """Returns the arms of one variant, model against model."""
    return [
        (f"{first}/{variant}", f"{second}/{variant}")
        for variant in experiment.variants
        for first, second in zip(experiment.models, experiment.models[1:], strict=False)
    ]


def _distinct_pairs(results: Results, experiment: Experiment) -> list[tuple[str, str]]:
    """Returns `_model_pairs` without those of the same runs as an earlier one: a shape that was equal all along."""
    kept: dict[tuple[Any, ...], tuple[str, str]] = {}
    for pair in _model_pairs(experiment):
        runs_of_both = tuple(
            run.name if (run := results.run(experiment.name, arm, seed)) is not None else (arm, seed)
            for arm in pair
            for seed in experiment.seeds
        )
        kept.setdefault(runs_of_both, pair)
    return list(kept.values())


def _distinct(arms: Mapping[str, Mapping[int, Result]]) -> dict[str, Mapping[int, Result]]:
    """Returns the arms without those whose runs another arm has already."""
    kept: dict[tuple[str, ...], str] = {}
    for name, arm in arms.items():
        kept.setdefault(tuple(run.name for run in arm.values()), name)
    return {name: arms[name] for name in kept.values()}


def _verdicts(
    told: Sequence[Claim],
    left: str,
    right: str,
    metric: str,
    finding: Mapping[str, Any],
    experiment: Experiment,
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Returns the claims about a pair of arms, in either order, with their verdicts."""
    found = []
    for claim in told:
        if claim.metric != metric or {claim.left, claim.right} != {left, right}:
            continue
        known = "open"
        if len(seeds) == len(experiment.seeds) and "points" in finding:
            low, high = finding["low"], finding["high"]
            ends = (low, high) if claim.left == left else (-high, -low)
            known = verdict(*ends, equal=claim.equal, by=claim.points)
        diverged = [finding.get("diverged", {}).get(arm) == len(experiment.seeds) for arm in (claim.left, claim.right)]
        if any(diverged) and not all(diverged):  # in every seed: it has no score, and lost
            known = "held" if diverged[1] and not claim.equal else "did not hold"
        found.append(asdict(claim) | {"verdict": known})
    return found


# --- the runs and their machines -------------------------------------------------------------------------------------


def _settings(results: Results) -> dict[str, list[Any]]:
    """Returns every field of the runs' configs, with the values that it has in any of them."""
    found: dict[str, list[Any]] = {}
    for run in results.all_runs():
        if run.state == "finished":
            for name, value in flat_fields(run.config):
                values = found.setdefault(name, [])
                if value not in values:
                    values.append(value)
    return found


def _training(results: Results) -> dict[str, Any]:
    """Returns how long all runs took, how many at a time, and on what, each kind of machine once."""
    seconds = 0.0
    machines: dict[str, dict[str, Any]] = {}
    for run in results.all_runs():
        if run.state == "finished":
            seconds += sum(row.seconds for row in run.history)
            keys = ("device", "processor", "threads", "precision", "torch", "platform", "commit")
            machine = {key: run.environment.get(key) for key in keys}
            known = machines.setdefault(str(machine), {**machine, "runs": 0})
            known["runs"] += 1
    at_once = max(results.manifest["at_once"], default=1)
    return {"seconds": _round(seconds), "at_once": at_once, "machines": list(machines.values())}
