"""An experiment's runs looked at again, without training: on corrupted images, on subsets, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from petseg.data.oxford_pets import breed_of, committed_leaks
from petseg.evaluation.corruptions import SEVERITIES, Corruption
from petseg.experiments.study.arms import (
    Arm,
    Pair,
    difference,
    distinct,
    distinct_pairs,
    estimate,
    model_pairs,
    rounded,
    scores_of,
    side_by_side,
    stacked,
)
from petseg.experiments.study.claims import Claim, claims
from petseg.experiments.study.recipe import SUBSETS, Experiment, rechecked
from petseg.experiments.study.results import ROBUSTNESS, Results
from petseg.metrics import Confusion, Score, mean_iou
from petseg.schema import (
    CorruptedArm,
    CorruptionDifference,
    CorruptionInfo,
    GroupDifference,
    GroupFindings,
    RobustnessFindings,
    Subset,
    SubsetFindings,
)

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


def find_robustness(results: Results) -> RobustnessFindings | None:
    """Returns each arm's scores on corrupted images, the models' differences, and what was expected of these."""
    recheck = results.study.robustness
    if recheck is None:
        return None
    experiment = rechecked(results.study, recheck, "robustness")
    arms = {
        # of an older study none were scored so
        arm: {seed: run for seed, run in results.arm(experiment, arm).items() if ROBUSTNESS in run.splits}
        for arm in experiment.arms()
    }
    first = next((run for arm in arms.values() for run in arm.values()), None)
    robustness = None if first is None else results.result(first).robustness
    infos = [
        CorruptionInfo(name=kind, title=TITLES[kind][0], unit=TITLES[kind][1], amounts=amounts)
        for kind, amounts in SEVERITIES.items()
    ]
    found = RobustnessFindings(
        experiment=experiment.name,
        every=robustness.every if robustness else None,
        images=robustness.images if robustness else None,
        corruptions=tuple(infos),
        arms=(),
        differences=(),
    )
    if robustness is None:
        return found
    all_claims = claims(experiment, recheck.expected, tuple(SEVERITIES), where="robustness")
    pairs = [
        Pair(experiment, left, right, [claim for claim in all_claims if claim.metric == kind])
        for kind in SEVERITIES
        for left, right in distinct_pairs(results, experiment)
    ]
    kinds = [kind for kind in SEVERITIES for _ in distinct_pairs(results, experiment)]
    scored = [
        CorruptedArm(
            arm=name,
            model=name.partition("/")[0],
            scores={kind: tuple(map(estimate, by_severity(results, kind, [arm])[1][0])) for kind in SEVERITIES},
        )
        for name, arm in distinct(arms).items()
    ]
    differences = [
        _corruption_difference(results, pair, kind, [arms[pair.left], arms[pair.right]])
        for pair, kind in zip(pairs, kinds, strict=True)
    ]
    return found.model_copy(update={"arms": tuple(scored), "differences": tuple(differences)})


def _corruption_difference(results: Results, pair: Pair, kind: str, arms: Sequence[Arm]) -> CorruptionDifference:
    seeds, (first, second) = by_severity(results, kind, arms)
    together = [side_by_side(side[1:]) if seeds else np.zeros(0, np.int64) for side in (first, second)]
    found = pair.compare((seeds, together), _mean_score)
    by = tuple(difference(*sides) for sides in zip(first, second, strict=True))
    return CorruptionDifference(**dict(found), corruption=kind, by_severity=by)


def _mean_score(severities: Confusion) -> Score:
    return np.asarray(scores_of(severities).mean(axis=0))


def by_severity(results: Results, kind: str, arms: Sequence[Arm]) -> tuple[tuple[int, ...], list[list[Confusion]]]:
    """Returns the seeds that all arms have, and for each arm the matrices [S, N, C, C] of the same images unchanged and
    in each severity."""
    seeds, unchanged = stacked(results, arms, "test")
    if not seeds:
        return seeds, [[] for _ in arms]
    corrupted = [stacked(results, arms, Corruption(kind, severity).name)[1] for severity in (1, 2, 3)]
    run = arms[0][seeds[0]]
    row_of = {sample_id: row for row, sample_id in enumerate(results.images(run, "test").ids)}
    rows = [row_of[sample_id] for sample_id in results.images(run, Corruption(kind, 1).name).ids]
    own = [counts[:, rows] for counts in unchanged]
    return seeds, [list(parts) for parts in zip(own, *corrupted, strict=True)]


# --- subsets ---------------------------------------------------------------------------------------------------------


def find_subsets(results: Results) -> SubsetFindings | None:
    """Returns each arm's scores and the models' differences in other views of the same counts, and by group."""
    recheck = results.study.subsets
    if recheck is None:
        return None
    experiment = rechecked(results.study, recheck, "subsets")
    all_claims = claims(experiment, recheck.expected, tuple(SUBSETS), where="subsets")
    arms = {arm: results.arm(experiment, arm) for arm in experiment.arms()}
    found = SubsetFindings(experiment=experiment.name, subsets=(), groups=None)
    scored = next((run for arm in arms.values() for run in arm.values()), None)
    if scored is None or results.manifest.data is None:
        return found
    roles = [entry.role for entry in results.manifest.data.scored_classes]
    looked = [
        _subset(results, experiment, name, [claim for claim in all_claims if claim.metric == name])
        for name in SUBSETS
        if not name.startswith("border") or roles == ["foreground", "background", "boundary"]
    ]
    return found.model_copy(update={"subsets": tuple(looked), "groups": _groups(results, experiment)})


def _subset(results: Results, experiment: Experiment, name: str, own_claims: Sequence[Claim]) -> Subset:
    arms = {arm: results.arm(experiment, arm) for arm in experiment.arms()}
    scored = next(run for arm in arms.values() for run in arm.values())
    images = results.images(scored, "test")
    look = partial(subset_counts, name=name, ids=images.ids, true=images.confusions.sum(axis=2))
    differences = []
    for left, right in distinct_pairs(results, experiment):
        seeds, sides = stacked(results, [arms[left], arms[right]], "test")
        pair = Pair(experiment, left, right, own_claims)
        differences.append(pair.compare((seeds, [look(side) if seeds else side for side in sides])))
    return Subset(
        name=name,
        title=SUBSETS[name],
        images=look(images.confusions[None]).shape[1],
        scores={arm: estimate(look(stacked(results, [runs], "test")[1][0])) for arm, runs in distinct(arms).items()},
        differences=tuple(differences),
    )


SIZES = ("small", "medium", "large")


def subset_counts(counts: Confusion, name: str, ids: Sequence[str], true: Confusion) -> Confusion:
    """Returns the matrices of one of `SUBSETS`: fewer images, or fewer classes.

    Args:
        counts: int64 [S, N, C, C]; for the border's subsets foreground, background, border.
        name: of the subset.
        ids: of the N images.
        true: true pixels by class of each, int64 [N, C]; the first is the foreground.
    """
    if name == "unleaked":
        return counts[:, [sample_id not in committed_leaks() for sample_id in ids]]
    if name in SIZES:
        order = np.argsort(true[:, 0] / true.sum(axis=1), kind="stable")
        return counts[:, np.sort(np.array_split(order, len(SIZES))[SIZES.index(name)])]
    if name == "border_ignored":
        counts = counts[..., :2, :]
    return _merged(counts, into=1 if name == "border_background" else 0)


def _merged(counts: Confusion, into: int) -> Confusion:
    """Returns matrices [..., 2, 2] whose third class is another one."""
    for axis in (-1, -2):
        moved = np.moveaxis(counts, axis, -1)
        if moved.shape[-1] == 3:
            kept = moved[..., :2].copy()
            kept[..., into] += moved[..., 2]
            counts = np.moveaxis(kept, -1, axis)
    return counts


def _groups(results: Results, experiment: Experiment) -> GroupFindings | None:
    """Returns, for the first pair of arms, both scores and the difference on each group's images."""
    if not (pairs := model_pairs(experiment)):
        return None
    arms = [results.arm(experiment, arm) for arm in pairs[0]]
    seeds, (first, second) = stacked(results, arms, "test")
    if not seeds:
        return None
    group_of = np.array([breed_of(sample_id) for sample_id in results.images(arms[0][seeds[0]], "test").ids])
    rows = []
    for group in sorted(set(group_of.tolist())):
        sides = [counts[:, group_of == group] for counts in (first, second)]
        left, right = (rounded(100 * float(mean_iou(counts.sum(axis=1)).mean())) for counts in sides)
        own = difference(sides[0], sides[1])
        count = int((group_of == group).sum())
        rows.append(GroupDifference(**dict(own), group=group, images=count, left=left, right=right))
    return GroupFindings(left=pairs[0][0], right=pairs[0][1], seeds=seeds, rows=tuple(rows))
