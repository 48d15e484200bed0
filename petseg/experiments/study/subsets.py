"""An experiment's runs looked at again, without training: on corrupted images, on subsets, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from petseg import schema
from petseg.data import oxford_pets
from petseg.evaluation.corruptions import SEVERITIES, Corruption
from petseg.experiments.study import intervals
from petseg.experiments.study.claims import Claim, expect
from petseg.experiments.study.recipe import SUBSETS, Experiment, recheck_claims
from petseg.experiments.study.results import ROBUSTNESS, Results
from petseg.metrics import Confusion, Score, mean_iou

TITLES = {
    "blur": ("blur", "blur, share of the side"),
    "noise": ("noise", "noise, share of the range"),
    "jpeg": ("JPEG", "JPEG quality"),
    "dark": ("darkness", "light left"),
    "small": ("small scale", "size left"),
    "rotated": ("rotation", "degrees rotated"),
}
"""Corruption -> its name for a reader, and what its severities count."""

# --- corruptions -----------------------------------------------------------------------------------------------------


def find_robustness(results: Results) -> schema.RobustnessFindings | None:
    """Returns each arm's scores on corrupted images, the models' differences, and what was expected of these."""
    if results.study.robustness is None:
        return None
    experiment, own_claims = recheck_claims(results.study, "robustness")
    arms = {
        # of an older study none were scored so
        arm: {seed: run for seed, run in results.arm(experiment, arm).items() if ROBUSTNESS in run.splits}
        for arm in experiment.arms()
    }
    scored, pairs = intervals.distinct(arms), intervals.distinct_pairs(results, experiment)
    first = next((results.result(run).robustness for arm in scored.values() for run in arm.values()), None)
    return schema.RobustnessFindings(
        images=first.images if first else None,
        corruptions=tuple(
            schema.CorruptionInfo(name=kind, title=TITLES[kind][0], unit=TITLES[kind][1], amounts=amounts)
            for kind, amounts in SEVERITIES.items()
        ),
        arms=tuple(_corrupted_arm(results, name, arm) for name, arm in scored.items()),
        differences=tuple(
            expect(
                _on_corruption(results, kind, pair, [arms[arm] for arm in pair]),
                [claim for claim in own_claims if claim.metric == kind],
                len(experiment.seeds),
            )
            for kind in SEVERITIES
            for pair in (pairs if first else ())
        ),
    )


def _corrupted_arm(results: Results, name: str, arm: intervals.Arm) -> schema.CorruptedArm:
    counts = {kind: _by_severity(results, kind, [arm])[1][0] for kind in SEVERITIES}
    scores = {kind: tuple(map(intervals.estimate, own)) for kind, own in counts.items()}
    return schema.CorruptedArm(arm=name, model=name.partition("/")[0], scores=scores)


def _on_corruption(
    results: Results, kind: str, pair: tuple[str, str], arms: Sequence[intervals.Arm]
) -> schema.CorruptionDifference:
    seeds, sides = _by_severity(results, kind, arms)
    together = [intervals.side_by_side(side[1:]) for side in sides]
    return schema.CorruptionDifference(
        left=pair[0],
        right=pair[1],
        metric="miou",
        seeds=seeds,
        difference=intervals.difference(together[0], together[1], _mean_score) if seeds else None,
        corruption=kind,
        by_severity=tuple(intervals.difference(one, other) for one, other in zip(*sides, strict=True)) if seeds else (),
    )


def _mean_score(severities: Confusion) -> Score:
    return np.asarray(intervals.scores_of(severities).mean(axis=0))


def _by_severity(
    results: Results, kind: str, arms: Sequence[intervals.Arm]
) -> tuple[tuple[int, ...], list[list[Confusion]]]:
    """Returns the seeds that all arms have, and each arm's counts of the same images unchanged and in each severity."""
    seeds, unchanged = intervals.stacked(results, arms, "test")
    if not seeds:
        return seeds, []
    corrupted = [intervals.stacked(results, arms, Corruption(kind, severity).name)[1] for severity in (1, 2, 3)]
    run = arms[0][seeds[0]]
    ids = results.images(run, "test").ids
    rows = [ids.index(sample_id) for sample_id in results.images(run, Corruption(kind, 1).name).ids]
    return seeds, [list(parts) for parts in zip([counts[:, rows] for counts in unchanged], *corrupted, strict=True)]


# --- subsets ---------------------------------------------------------------------------------------------------------


def find_subsets(results: Results) -> schema.SubsetFindings | None:
    """Returns each arm's scores and the models' differences in other views of the same counts, and by group."""
    if results.study.subsets is None:
        return None
    experiment, own_claims = recheck_claims(results.study, "subsets")
    roles = [entry.role for entry in results.manifest.data.scored_classes] if results.manifest.data else []
    found = [
        _subset(results, experiment, name, [claim for claim in own_claims if claim.metric == name])
        for name in SUBSETS
        if any(results.arm(experiment, arm) for arm in experiment.arms())
        and (not name.startswith("border") or roles == ["foreground", "background", "boundary"])
    ]
    return schema.SubsetFindings(subsets=tuple(found), groups=_groups(results, experiment) if found else None)


def _subset(results: Results, experiment: Experiment, name: str, own_claims: Sequence[Claim]) -> schema.Subset:
    arms = {arm: results.arm(experiment, arm) for arm in experiment.arms()}
    images = results.images(next(run for arm in arms.values() for run in arm.values()), "test")
    look = partial(subset_counts, name=name, ids=images.ids, true=images.confusions.sum(axis=2))
    differences = []
    for left, right in intervals.distinct_pairs(results, experiment):
        seeds, sides = intervals.stacked(results, [arms[left], arms[right]], "test")
        own = intervals.difference(look(sides[0]), look(sides[1])) if seeds else None
        found = schema.ArmDifference(left=left, right=right, metric="miou", seeds=seeds, difference=own)
        differences.append(expect(found, own_claims, len(experiment.seeds)))
    count = look(images.confusions[None]).shape[1]
    return schema.Subset(name=name, title=SUBSETS[name], images=count, differences=tuple(differences))


SIZES = ("small", "medium", "large")


def subset_counts(counts: Confusion, name: str, ids: Sequence[str], true: Confusion) -> Confusion:
    """Returns the matrices of one of `SUBSETS`: fewer images, or fewer classes.

    `counts` are int64 [S, N, C, C] of images with these `ids` and `true` pixels by class, int64 [N, C]. The classes are
    foreground, background and border where the border is counted otherwise; the first is the foreground anyway.
    """
    if name == "unleaked":
        return counts[:, [sample_id not in oxford_pets.committed_leaks() for sample_id in ids]]
    if name in SIZES:
        order = np.argsort(true[:, 0] / true.sum(axis=1), kind="stable")
        return counts[:, np.sort(np.array_split(order, len(SIZES))[SIZES.index(name)])]
    # the border's true pixels are left out, or go to a class; what is predicted as border goes to one in any case
    into = 1 if name == "border_background" else 0
    merged = counts[..., :2, :2].copy()
    merged[..., into] += counts[..., :2, 2]
    if name != "border_ignored":
        merged[..., into, :] += counts[..., 2, :2]
        merged[..., into, into] += counts[..., 2, 2]
    return merged


def _groups(results: Results, experiment: Experiment) -> schema.GroupFindings | None:
    """Returns, for the first pair of arms, both scores and the difference on each group's images."""
    data, pairs = results.manifest.data, intervals.model_pairs(experiment)
    if data is None or data.name != oxford_pets.NAME or not pairs:
        return None
    arms = [results.arm(experiment, arm) for arm in pairs[0]]
    seeds, sides = intervals.stacked(results, arms, "test")
    if not seeds:
        return None
    ids = results.images(arms[0][seeds[0]], "test").ids
    group_of = np.array([oxford_pets.breed_of(sample_id) for sample_id in ids])
    rows = []
    for group in sorted(set(group_of.tolist())):
        own = [counts[:, group_of == group] for counts in sides]
        left, right = (intervals.rounded(100 * float(mean_iou(counts.sum(axis=1)).mean())) for counts in own)
        count = int((group_of == group).sum())
        ends = dict(intervals.difference(own[0], own[1]))
        rows.append(schema.GroupDifference(**ends, group=group, images=count, left=left, right=right))
    return schema.GroupFindings(left=pairs[0][0], right=pairs[0][1], rows=tuple(rows))
