"""How likely a photo shows any foreground object: logistic regression on five figures of the model's map.

Fitted and its threshold chosen by scripts/presence.py on validation images and crops without an object; the
coefficients travel in a model's metadata. A model that has none is believed as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from petseg.predict.enlarge import Floats
from petseg.predict.regions import find_regions

FIGURES = ("share", "mean", "unsure", "highest", "region")
CERTAIN = 1e-4  # probabilities are at least this, and this from 1, before their log odds are taken


@dataclass(frozen=True)
class Presence:
    """The probability of an object from a map, and from where on there is one."""

    coefficients: tuple[float, ...]  # of `FIGURES`
    intercept: float
    threshold: float  # 0 to 1

    def __call__(self, foreground: Floats, background: Floats) -> float:
        """Returns how likely there is an object, 0 to 1; `foreground` and `background` are probabilities [h, w]."""
        figures = map_figures(foreground, background)
        return float(1 / (1 + np.exp(-(np.dot(self.coefficients, figures) + self.intercept))))


def map_figures(foreground: Floats, background: Floats) -> list[float]:
    """Returns `FIGURES` of probabilities [h, w].

    The mask's share; mean p(foreground); mean p (1 - p); log odds of the highest p and of the largest region's mean.
    """
    mask = foreground > background
    regions = find_regions(mask.view(np.uint8))
    region = 0.0
    if regions.count:
        areas = regions.areas()
        region = float(foreground[regions.pixels(areas == areas.max(), len(mask))].mean())
    unsure = float((foreground * (1 - foreground)).mean())
    return [float(mask.mean()), float(foreground.mean()), unsure, _log_odds(float(foreground.max())), _log_odds(region)]


def presence_from(given: Mapping[str, Any]) -> Presence:
    """Returns what metadata hold; ValueError, KeyError or TypeError where that is something else."""
    coefficients = tuple(float(given["coefficients"][name]) for name in FIGURES)
    found = Presence(coefficients, float(given["intercept"]), float(given["threshold"]))
    if not (np.isfinite([*coefficients, found.intercept]).all() and 0 <= found.threshold <= 1):
        raise ValueError("its presence score has coefficients that are no numbers, or a threshold outside 0 to 1")
    return found


def _log_odds(share: float) -> float:
    share = min(max(share, CERTAIN), 1 - CERTAIN)
    return float(np.log(share / (1 - share)))
