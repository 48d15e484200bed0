"""Draws docs/speedrun.svg: validation loss against time, the speedrun beside the plain recipe.

python scripts/draw_speedrun.py
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from petseg.data.oxford_pets import ORIGINAL_LOSSES
from petseg.report.plots import STYLES
from petseg.storage import read_json

LOSS = ORIGINAL_LOSSES["unet"]
ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "results" / "benchmarks"


def draw(out: Path) -> None:
    """Writes the drawing."""
    plain = read_json(BENCHMARKS / "plain_recipe.json")
    speedrun = read_json(BENCHMARKS / "speedrun" / "comparison.json")
    lines = [(f"speedrun, {model['title']}", model["history"], model["name"], 2.2) for model in speedrun["models"]]
    lines.append(("default, U-Net", plain["history"], "unet", 1.0))
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "petseg", "font.size": 11})
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for title, history, name, width in lines:
        style = STYLES[name]
        seconds = list(accumulate(row["seconds"] for row in history))
        losses = [row["val_loss"] for row in history]
        axes.plot(seconds, losses, color=style.colour, linestyle=style.dash, marker=style.marker, linewidth=width)
        first = (seconds[0], losses[0])
        axes.annotate(title, first, xytext=(9, 4), textcoords="offset points", va="center")
    axes.axhline(LOSS, color="#777777", linewidth=0.8)
    words = f"the original U-Net after 30 epochs, {LOSS}"
    axes.annotate(
        words,
        (1, LOSS),
        xycoords=("axes fraction", "data"),
        xytext=(0, -6),
        textcoords="offset points",
        ha="right",
        va="top",
    )
    axes.set(xlabel="seconds of training and validation", ylabel="validation cross-entropy", ylim=(0.3, 0.75))
    axes.set_xlim(0, 1.25 * max(sum(row["seconds"] for row in history) for _, history, _, _ in lines))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    draw(ROOT / "docs" / "speedrun.svg")
