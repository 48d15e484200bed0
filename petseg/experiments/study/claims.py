"""Expectations that were written before the runs: `unet > segnet by 2 in border: why`, and whether they held."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from petseg.errors import PetsegError, unknown_name
from petseg.schema import ArmDifference, Expectation, Verdict

if TYPE_CHECKING:
    from petseg.experiments.study.recipe import Experiment

DifferenceT = TypeVar("DifferenceT", bound=ArmDifference)


@dataclass(frozen=True)
class Claim:
    """One expectation as data: arm `left` scores higher than arm `right`, or the same."""

    text: str
    left: str
    right: str
    equal: bool
    points: float
    metric: str


CLAIM = re.compile(
    r"(?P<left>\S+) (?P<sign>[>=]) (?P<right>\S+?)(?: by (?P<points>\d+(?:\.\d+)?))?(?: in (?P<metric>\w+))?(?:: .+)?"
)


def claims(
    experiment: Experiment, expected: Sequence[str] = (), metrics: Sequence[str] = (), *, where: str = ""
) -> list[Claim]:
    """Returns claims about single arms of an experiment, its own unless `expected` are given.

    A claim is about one of `metrics`, the first without `in`; without `metrics` anything, mIoU without `in`. `where`
    is the recipe's part that the claims stand in, for errors.
    """
    found = []
    for text in expected or experiment.expected:
        source = f"study: {where or f'experiment {experiment.name!r}'}: expected {text!r}"
        read = CLAIM.fullmatch(text)
        if read is None:
            raise PetsegError(
                f"{source} cannot be read; write `unet > segnet`, `unet/a > unet/b by 1.5`, `a = b` or `a > b in "
                "border`, and the reason after a colon"
            )
        metric = read["metric"] or (metrics[0] if metrics else "miou")
        if metrics and metric not in metrics:
            raise unknown_name(f"{source}: score", metric, metrics)
        for left, right in _pairs(experiment, read["left"], read["right"], source):
            found.append(Claim(text, left, right, read["sign"] == "=", float(read["points"] or 0), metric))
    return found


def _pairs(experiment: Experiment, left: str, right: str, source: str) -> list[tuple[str, str]]:
    """Returns the arms that a claim's two names stand for, pair by pair."""
    first, second = _arms(experiment, left, source), _arms(experiment, right, source)
    pairs = [(first[key], second[key]) for key in first if key in second]
    if not pairs:
        raise PetsegError(f"{source} compares a model with a variant; compare two of a kind, or two arms")
    if any(one == other for one, other in pairs):
        raise PetsegError(f"{source} compares an arm with itself; name two")
    return pairs


def _arms(experiment: Experiment, name: str, source: str) -> dict[str, str]:
    """Returns key -> arm; two names are compared key by key."""
    if name in experiment.arms():
        return {"": name}
    if name in experiment.models:
        return {f"variant {variant}": f"{name}/{variant}" for variant in experiment.variants}
    if name in experiment.variants:
        return {f"model {model}": f"{model}/{name}" for model in experiment.models}
    choices = [*experiment.models, *experiment.variants, *experiment.arms()]
    raise unknown_name(f"{source}: arm", name, choices)


def verdict(low: float, high: float, *, equal: bool, by: float = 0.0) -> Verdict:
    """Returns whether an expectation held, by the interval of left less right.

    `left > right by X` held where the whole interval lies above X, and did not where it lies below; between, it is
    open. `left = right` held where no difference is shown.
    """
    if equal:
        return "held" if low <= 0 <= high else "did not hold"
    return "held" if low > by else "did not hold" if high < by else "open"


def expect(found: DifferenceT, own_claims: Sequence[Claim], seeds: int) -> DifferenceT:
    """Returns a difference with those claims that are about its arms, in either order, and their verdicts.

    A claim stays open as long as a seed of its arms is missing. An arm whose training diverged in every seed has lost.
    """
    about = [claim for claim in own_claims if {claim.left, claim.right} == {found.left, found.right}]
    expected = tuple(Expectation(text=claim.text, verdict=_judge(claim, found, seeds)) for claim in about)
    return found.model_copy(update={"expected": expected})


def _judge(claim: Claim, found: ArmDifference, seeds: int) -> Verdict:
    left_lost, right_lost = (found.diverged.get(arm) == seeds for arm in (claim.left, claim.right))
    if left_lost != right_lost:
        return "held" if right_lost and not claim.equal else "did not hold"
    if found.difference is None or len(found.seeds) < seeds:
        return "open"
    low, high = found.difference.low, found.difference.high
    ends = (low, high) if claim.left == found.left else (-high, -low)
    return verdict(*ends, equal=claim.equal, by=claim.points)
