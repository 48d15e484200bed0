"""What a study found, as data: every number of its page, from its runs' per-image counts."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
from pydantic import JsonValue

from petseg import schema
from petseg.config import flat_fields
from petseg.data import oxford_pets
from petseg.data.dataset import group_of
from petseg.evaluation.corruptions import KINDS, Corruption
from petseg.evaluation.statistics import (
    Interval,
    Pair,
    Resampling,
    Scoring,
    bootstrap,
    family_intervals,
    paired_bootstrap,
    ratio_of,
    summed_by,
)
from petseg.experiments.study.plan import MatchQuestion, best_cell
from petseg.experiments.study.recipe import Claim, Experiment
from petseg.experiments.study.results import ROBUSTNESS, Results, RunResult, Runs
from petseg.experiments.study.subsets import SUBSETS, subset_counts
from petseg.metrics import (
    Confusion,
    Score,
    boundary_sums,
    class_accuracy,
    iou,
    mean_boundary_f,
    mean_iou,
    pixel_accuracy,
)
from petseg.models import title_of
from petseg.training import runs

FINDINGS = "findings.json"
HOW = Resampling()  # every interval is made so
FAMILY_RESAMPLES = 10_000  # of the primary ones, whose ends lie further out
BOUNDARY = "boundary_f"  # the metric that is no score of confusion matrices
SCORES: dict[str, Scoring] = {"miou": mean_iou, "pixel_accuracy": pixel_accuracy, "class_accuracy": class_accuracy}
EstimateT = TypeVar("EstimateT", bound=schema.Estimate)
Arm = Mapping[int, Runs]  # seed -> its runs
Key = tuple[str, frozenset[str], str]  # of a difference: experiment, arms, metric


def find(folder: Path) -> schema.Findings:
    """Returns the findings of the study in a folder, complete or not."""
    results = Results(folder)
    manifest, study = results.manifest, results.study
    states = [entry.state for entry in manifest.runs]
    models = [*(study.tuning.models if study.tuning else ()), *(m for e in study.experiments for m in e.models)]
    made = [results.result(entry) for entry in manifest.runs if entry.state == "finished"]
    parts = {"device", "processor", "threads", "precision", "torch", "commit"}
    machines = Counter(tuple(sorted(run.environment.model_dump(include=parts).items())) for run in made)
    found = {experiment.name: list(_differences(results, experiment)) for experiment in study.experiments}
    together = _family(results, found)
    for experiment in study.experiments:
        claims = experiment.claims()
        found[experiment.name] = [_judged(one, experiment, claims, together) for one in found[experiment.name]]
    found |= {"robustness": list(_robustness(results)), "subsets": list(_subsets(results))}
    return schema.Findings(
        petseg=manifest.petseg,
        title=study.title,
        models={name: title_of(name) for name in models},
        data=manifest.data and manifest.data.of_all_folds(),
        confidence=HOW.confidence,
        resamples=HOW.resamples,
        runs={state: states.count(state) for state in get_args(schema.RunState) if state in states},
        train_seconds=_round(sum(row.seconds for run in made for row in run.history)),
        machines=tuple(schema.Machine(**dict(machine), runs=count) for machine, count in machines.items()),
        latency_environment=manifest.latency_environment,
        tuning=_tuning(results),
        family=schema.Family(error=study.family_error, comparisons=len(together), resamples=FAMILY_RESAMPLES)
        if any(experiment.primary for experiment in study.experiments)
        else None,
        claims=tuple(_claims(results, found)),
        experiments=tuple(_experiment(results, experiment, found[experiment.name]) for experiment in study.experiments),
        corrupted=_corrupted(results),
        robustness=tuple(found["robustness"]),
        subsets=tuple(found["subsets"]),
        groups=_groups(results),
        settings=_settings(made),
    )


def write_findings(folder: Path) -> Path:
    """Returns FOLDER/findings.json, written anew."""
    path = folder / FINDINGS
    schema.write_record(path, find(folder))
    return path


@dataclass(frozen=True)
class Measure:
    """A metric: what is counted of runs' images, int64 [N, ..., C], and the score of such counts' sum."""

    counts: Callable[[Runs], Confusion]
    score: Scoring = mean_iou
    split: str = ""  # a part of the runs' `splits` that it needs beside the experiment's

    def of(self, arm: Arm, seeds: Sequence[int]) -> Confusion:
        """Returns the counts of some seeds, int64 [S, N, ..., C]."""
        return np.stack([self.counts(arm[seed]) for seed in seeds])


def measure(results: Results, experiment: Experiment, metric: str) -> Measure:
    """Returns the measure of "boundary_f", one of `SCORES` or a class's IoU on the experiment's split."""

    def counts(runs: Runs) -> Confusion:
        images = results.images(runs, experiment.split)
        return _whole(
            results, images.ids, boundary_sums(images.boundaries) if metric == BOUNDARY else images.confusions
        )

    if metric == BOUNDARY:
        return Measure(counts, mean_boundary_f)
    classes = [entry.name for entry in results.manifest.data.scored_classes] if results.manifest.data else []
    one_class = lambda confusion: iou(confusion)[..., classes.index(metric)]  # noqa: E731
    return Measure(counts, SCORES.get(metric, one_class))


def _whole(results: Results, ids: Sequence[str], counts: Confusion) -> Confusion:
    """Returns counts of images, int64 [N, ..., C], as those of what is drawn: images, or `data.groups` of them."""
    pattern = results.study.data.groups
    return summed_by([group_of(pattern, name) for name in ids], counts) if pattern else counts


def _on_subset(results: Results, name: str) -> Measure:
    def counts(runs: Runs) -> Confusion:
        images = results.images(runs, "test")
        return _whole(results, *subset_counts(images.confusions, name, images.ids))

    return Measure(counts)


def _on_corruption(results: Results, kind: str, severities: Sequence[int]) -> Measure:
    """Returns the mean mIoU of some severities of a corruption; 0 is the same images unchanged."""

    def counts(runs: Runs) -> Confusion:
        parts = [results.images(runs, Corruption(kind, severity).name) for severity in severities]
        return _whole(results, parts[0].ids, np.concatenate([part.confusions for part in parts], axis=-2))

    return Measure(counts, lambda parts: np.asarray(_scores_of(parts).mean(axis=0)), ROBUSTNESS)


def _scores_of(parts: Confusion) -> Score:
    """Returns the mIoU of each of P matrices that lie side by side, [..., P * C, C], float64 [P, ...]."""
    *_, rows, classes = parts.shape
    return np.stack([mean_iou(part) for part in np.split(parts, rows // classes, axis=-2)])


def _round(value: float) -> float:
    """Returns what stands in JSON: what is beyond a ten-thousandth differs between machines."""
    return round(float(value), 4) + 0.0  # no -0.0


def _rounded(found: EstimateT) -> EstimateT:
    return type(found)(**{name: _round(value) for name, value in found})


def _estimate(measure: Measure, arm: Arm) -> schema.Estimate:
    return _rounded(bootstrap(measure.of(arm, list(arm)), score=measure.score, how=HOW))


def difference(
    results: Results, experiment: Experiment, pair: tuple[str, str], metric: str, measure: Measure
) -> schema.ArmDifference:
    """Returns the first arm's score less the second's over the seeds that both have, with its interval."""
    arms = [results.arm(experiment, arm, split=measure.split) for arm in pair]
    seeds = tuple(sorted(arms[0].keys() & arms[1].keys()))
    found = ratio = images = None
    ratios: dict[str, schema.Ratio] = {}
    if seeds:
        first, second = (measure.of(arm, seeds) for arm in arms)
        found, images = _rounded(paired_bootstrap(first, second, score=measure.score, how=HOW)), first.shape[1]
        one, other = (results.manifest.costs.get(arm[seeds[0]][0].cost) for arm in arms)
        if one and other and one != other and one.latency_ms and other.latency_ms:
            ratio = _round(one.latency_ms.p50 / other.latency_ms.p50)
            both = one.latencies.keys() & other.latencies.keys()
            ratios = {name: ratio_of(one.latencies[name], other.latencies[name]) for name in sorted(both)}
    diverged = {arm: len(results.arm(experiment, arm, "diverged")) for arm in pair}
    return schema.ArmDifference(
        left=pair[0],
        right=pair[1],
        metric=metric,
        seeds=seeds,
        images=images,
        diverged={arm: count for arm, count in diverged.items() if count},
        difference=found,
        latency_ratio=ratio,
        latency_ratios=ratios,
    )


def verdict(low: float, high: float, *, equal: bool, by: float = 0.0) -> schema.Verdict:
    """Returns whether `left > right by X`, or `left = right`, held by the interval of left less right.

    The former is open where X lies within the interval; the latter held where no difference is shown.
    """
    if equal:
        return "held" if low <= 0 <= high else "did not hold"
    return "held" if low > by else "did not hold" if high < by else "open"


def _judged(
    found: schema.ArmDifference,
    experiment: Experiment,
    claims: Sequence[Claim],
    together: Mapping[Key, Interval] | None = None,
) -> schema.ArmDifference:
    """Returns a difference with those claims that are about it, its arms in either order, and their verdicts.

    A claim stays open as long as a seed of its arms is missing. An arm that diverged in every seed has lost. A primary
    claim is held against the interval that holds `together` with the others'.
    """
    expected: dict[str, schema.Verdict] = {}
    ends = (together or {}).get((experiment.name, frozenset((found.left, found.right)), found.metric))
    seeds = len(experiment.seeds)
    for claim in claims:
        if {claim.left, claim.right} != {found.left, found.right} or claim.metric != found.metric:
            continue
        left_lost, right_lost = (found.diverged.get(arm) == seeds for arm in (claim.left, claim.right))
        if left_lost != right_lost:
            expected[claim.text] = "held" if right_lost and not claim.equal else "did not hold"
        elif found.difference is None or len(found.seeds) < seeds:
            expected[claim.text] = "open"
        else:
            low, high = ends if claim.primary and ends else (found.difference.low, found.difference.high)
            low, high = (low, high) if claim.left == found.left else (-high, -low)
            expected[claim.text] = verdict(low, high, equal=claim.equal, by=claim.points)
    primary = any(claim.primary for claim in claims if claim.text in expected)
    return found.model_copy(update={"expected": expected, "primary": primary, "together": ends if primary else None})


def _family(results: Results, parts: Mapping[str, Sequence[schema.ArmDifference]]) -> dict[Key, Interval]:
    """Returns the simultaneous intervals of the primary differences that have one by now."""
    pairs: dict[Key, Pair] = {}
    for experiment in results.study.experiments:
        wanted = {frozenset((claim.left, claim.right)) for claim in experiment.claims() if claim.primary}
        for one in parts[experiment.name]:
            key = (experiment.name, frozenset((one.left, one.right)), one.metric)
            if one.metric == "miou" and key[1] in wanted and one.difference:
                made = measure(results, experiment, one.metric)
                left, right = (results.arm(experiment, arm) for arm in (one.left, one.right))
                pairs[key] = Pair(made.of(left, one.seeds), made.of(right, one.seeds), made.score)
    how = Resampling(FAMILY_RESAMPLES, 1 - results.study.family_error)
    intervals = family_intervals(list(pairs.values()), how=how)
    return {key: (_round(low), _round(high)) for key, (low, high) in zip(pairs, intervals, strict=True)}


def _claims(results: Results, parts: Mapping[str, Sequence[schema.ArmDifference]]) -> Iterator[schema.ClaimFinding]:
    """Yields each expectation once, with those of its comparisons that no earlier one is about.

    Two claims are about one comparison where the runs, the metric and what is claimed are the same.
    """
    known: set[tuple[object, ...]] = set()
    claims_of = {each.name: (each, each.claims()) for each in results.study.experiments}
    claims_of |= {part: results.study.recheck_claims(part) for part in results.study.rechecks()}
    for part, text, primary in results.study.claims():
        experiment, claims = claims_of[part]
        place = part if part in results.study.rechecks() else experiment.split
        verdicts = []
        for claim in (each for each in claims if each.text == text):
            sides = tuple(
                tuple(run.name for seed in experiment.seeds for run in results.runs(experiment.name, arm, seed))
                for arm in (claim.left, claim.right)
            )
            key = (place, sides, claim.metric, claim.equal, claim.points)
            about = [
                one.expected[text]
                for one in parts[part]
                if {one.left, one.right} == {claim.left, claim.right} and one.metric == claim.metric
            ]
            if about and key not in known:
                verdicts += about
                known.add(key)
        worst: schema.Verdict = "did not hold" if "did not hold" in verdicts else "open"
        yield schema.ClaimFinding(
            part=part,
            text=text,
            primary=primary,
            verdict="held" if set(verdicts) == {"held"} else worst,
            comparisons=len(verdicts),
        )


def _differences(results: Results, experiment: Experiment) -> Iterator[schema.ArmDifference]:
    for left, right, metric in _compared(results, experiment, experiment.claims()):
        arms = [results.arm(experiment, arm) for arm in (left, right)]
        if not any(arms[0][seed] == arms[1][seed] for seed in arms[0].keys() & arms[1].keys()):
            yield difference(results, experiment, (left, right), metric, measure(results, experiment, metric))


def _experiment(
    results: Results, experiment: Experiment, differences: Sequence[schema.ArmDifference]
) -> schema.ExperimentFindings:
    return schema.ExperimentFindings(
        name=experiment.name,
        title=experiment.title,
        split=experiment.split,
        curve=experiment.curve,
        seeds=experiment.seeds,
        arms=tuple(_arm(results, experiment, name) for name in experiment.arms()),
        differences=tuple(differences),
    )


def _compared(results: Results, experiment: Experiment, claims: Sequence[Claim]) -> Iterator[tuple[str, str, str]]:
    """Yields (left, right, metric): models in each variant, variants with the first, claims; those say what is left."""
    metrics = ("miou", BOUNDARY) if experiment is results.study.experiments[0] else ("miou",)
    wanted = [(left, right, metric) for left, right in experiment.model_pairs() for metric in metrics]
    plain, *others = experiment.variants
    for variant in others:
        if experiment.variants[variant].line == experiment.variants[plain].line:
            wanted += [(f"{model}/{plain}", f"{model}/{variant}", "miou") for model in experiment.models]
    claimed = [(claim.left, claim.right, claim.metric) for claim in claims]
    sides = {frozenset(key): key for key in (*reversed(wanted), *reversed(claimed))}
    for key in dict.fromkeys(map(frozenset, (*wanted, *claimed))):
        yield sides[key]


def _arm(results: Results, experiment: Experiment, name: str) -> schema.ArmFindings:
    model, _, variant = name.rpartition("/")
    config = results.study.arm_config(experiment, name)
    finished = results.arm(experiment, name)
    runs = tuple(run for of_seed in finished.values() for run in of_seed)
    data = results.manifest.data
    question = MatchQuestion.of(results.manifest, experiment, name)
    return schema.ArmFindings(
        arm=name,
        model=model,
        variant=variant,
        title=experiment.variants[variant].title,
        line=experiment.variants[variant].line,
        size=config.data.size,
        runs=tuple(run.name for run in runs),
        seeds=tuple(finished),
        train_images=None if data is None else round(data.splits["train"] * config.data.fraction),
        match=results.manifest.matches.get(question.key) if question else None,
        cost=next((results.manifest.costs.get(run.cost) for run in runs), None),
        scores=_scores(results, experiment, finished) if finished else None,
    )


def _scores(results: Results, experiment: Experiment, finished: Arm) -> schema.ArmScores:
    made = [results.result(run) for runs_of_seed in finished.values() for run in runs_of_seed]
    classes = made[0].evaluations[experiment.split].iou
    estimates = {
        metric: _estimate(measure(results, experiment, metric), finished) for metric in (*SCORES, *classes, BOUNDARY)
    }
    # the kind of machine that trained most of the experiment's runs: times of several do not compare
    all_runs = {
        run.name: run
        for name in experiment.arms()
        for of_seed in results.arm(experiment, name).values()
        for run in of_seed
    }
    usual = Counter(_machine(results.result(run)) for run in all_runs.values()).most_common(1)[0][0]
    times = [runs.epoch_seconds(run.history) * len(run.history) for run in made if _machine(run) == usual]
    history = {}
    for curve in ("val_loss", "val_miou") if experiment is results.study.experiments[0] else ():
        epochs = zip(*([getattr(row, curve) for row in run.history] for run in made), strict=False)
        history[curve] = tuple((_round(float(np.mean(of))), _round(min(of)), _round(max(of))) for of in epochs)
    return schema.ArmScores(
        boundary_f=estimates.pop(BOUNDARY),
        **{metric: estimates.pop(metric) for metric in SCORES},
        iou=estimates,
        train_loss=_round(float(np.mean([run.history[-1].train_loss for run in made]))),
        val_loss=_round(float(np.mean([run.history[-1].val_loss for run in made]))),
        train_seconds=_round(float(np.mean(times))) if times else None,
        history=history,
    )


def _machine(run: RunResult) -> str:
    made = run.environment
    return f"{made.device} {made.processor} {made.threads} {made.precision}"


def _corrupted(results: Results) -> dict[str, dict[str, tuple[schema.Estimate, ...]]]:
    """Returns model -> corruption -> the first variant's scores on the images unchanged, then in each severity."""
    if results.study.robustness is None:
        return {}
    experiment, _ = results.study.recheck_claims("robustness")
    first = next(iter(experiment.variants))
    arms = {model: results.arm(experiment, f"{model}/{first}", split=ROBUSTNESS) for model in experiment.models}
    return {
        model: {
            kind: tuple(_estimate(_on_corruption(results, kind, [severity]), arm) for severity in range(4))
            for kind in KINDS
        }
        for model, arm in arms.items()
        if arm
    }


def _rechecked(results: Results, part: str, measures: Mapping[str, Measure]) -> Iterator[schema.ArmDifference]:
    """Yields the models' differences by each measure, those of the same runs as earlier ones left out."""
    if part not in results.study.rechecks():
        return
    experiment, claims = results.study.recheck_claims(part)
    pairs: dict[tuple[Runs, ...], tuple[str, str]] = {}
    for pair in experiment.model_pairs():  # a shape may have been equal all along
        pairs.setdefault(tuple(results.runs(experiment.name, arm, s) for arm in pair for s in experiment.seeds), pair)
    for metric, pair in itertools.product(measures, pairs.values()):
        found = difference(results, experiment, pair, metric, measures[metric])
        yield _judged(found, experiment, claims)


def _robustness(results: Results) -> Iterator[schema.ArmDifference]:
    """Yields the models' differences on each corruption, the mean of its severities, and in each of them."""
    for whole in _rechecked(results, "robustness", {kind: _on_corruption(results, kind, (1, 2, 3)) for kind in KINDS}):
        experiment, _ = results.study.recheck_claims("robustness")
        measures = (_on_corruption(results, whole.metric, [severity]) for severity in range(4))
        each = (difference(results, experiment, (whole.left, whole.right), "", one).difference for one in measures)
        yield whole.model_copy(update={"by_severity": tuple(filter(None, each))})


def _subsets(results: Results) -> Iterator[schema.ArmDifference]:
    """Yields the models' differences in other views of the same counts."""
    roles = [entry.role for entry in results.manifest.data.scored_classes] if results.manifest.data else []
    bordered = roles == ["foreground", "background", "boundary"]
    names = [name for name in SUBSETS if bordered or not name.startswith("border")]
    return _rechecked(results, "subsets", {name: _on_subset(results, name) for name in names})


def _groups(results: Results) -> dict[str, dict[str, float]]:
    """Returns the mIoU of the subsets' experiment's first variant on each group's images."""
    data = results.manifest.data
    if results.study.subsets is None or data is None or data.name != oxford_pets.NAME:
        return {}
    experiment, _ = results.study.recheck_claims("subsets")
    found: dict[str, dict[str, float]] = {}
    for model in experiment.models:
        made = [
            results.images(runs, "test")
            for runs in results.arm(experiment, f"{model}/{next(iter(experiment.variants))}").values()
        ]
        groups = np.array([oxford_pets.breed_of(name) for name in made[0].ids] if made else [])
        for group in sorted(set(groups.tolist())):
            scores = [float(mean_iou(images.confusions[groups == group].sum(axis=0))) for images in made]
            found.setdefault(group, {})[model] = _round(100 * float(np.mean(scores)))
    return {group: scores for group, scores in found.items() if len(scores) == len(experiment.models)}


def _tuning(results: Results) -> schema.TuningFindings | None:
    tuning = results.study.tuning
    if tuning is None:
        return None
    config = results.study.config(tuning.models[0], 0, [tuning.fields], source="study: tuning")
    best = [best_cell([cell for cell in results.manifest.tuned if cell.model == model]) for model in tuning.models]
    return schema.TuningFindings(
        seeds=tuning.seeds,
        size=config.data.size,
        epochs=config.train.epochs,
        expected=tuning.expected,
        cells=tuple(cell.model_copy(update={"best": cell in best}) for cell in results.manifest.tuned),
    )


def _settings(made: Sequence[RunResult]) -> dict[str, tuple[JsonValue, ...]]:
    """Returns every field of the runs' configs, with the values that it has in any of them; None: the model's own."""
    configs = [dict(flat_fields(run.config.model_dump(mode="json"))) for run in made]
    found: dict[str, list[JsonValue]] = {name: [] for config in configs for name in config}
    for name, values in found.items():
        for config in configs:
            if config.get(name) not in values:
                values.append(config.get(name))
    return {name: tuple(values) for name, values in found.items()}
