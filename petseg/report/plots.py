"""The report's figures as inline SVG: they take the page's text colour and font, and repeat byte for byte.

Matplotlib draws in sentinel colours; `inline` turns those into `currentColor` and CSS variables, so that one drawing
serves light, dark and print. Models differ by dash and marker too, never by colour alone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from petseg.report.tables import lead_shown, loss, percent, percent_words, pick, plural, points

INK, PAPER = "#010203", "#fdfefd"
"""Sentinels: become the page's text colour and its background. Nothing else may be drawn in them."""


@dataclass(frozen=True)
class ModelStyle:
    """How one model is drawn; `dark` is the same hue, light enough for a dark page."""

    colour: str
    dark: str
    dash: str
    marker: str

    @property
    def variable(self) -> str:
        """The CSS variable that holds its colour."""
        return f"--line-{self.colour[1:].lower()}"


STYLES = {
    "unet": ModelStyle("#0072B2", "#5CB3E8", "solid", "o"),
    "segnet": ModelStyle("#D55E00", "#F58A42", "dashed", "s"),
}
FURTHER_STYLES = (
    ModelStyle("#009E73", "#2FC79B", "dashdot", "D"),
    ModelStyle("#AA4499", "#D97FCB", "dotted", "^"),
)


def model_styles(names: Sequence[str]) -> dict[str, ModelStyle]:
    """Returns a style for each model: U-Net's and SegNet's are fixed, others take the next free one."""
    free = [*FURTHER_STYLES, *(style for name, style in STYLES.items() if name not in names)]
    others = [name for name in names if name not in STYLES]
    further = {name: free[place % len(free)] for place, name in enumerate(others)}
    return {name: STYLES.get(name) or further[name] for name in names}


@dataclass(frozen=True)
class Drawing:
    """An SVG to stand in the page as it is, and the words that say what it shows."""

    svg: str
    label: str


_LOOK: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.03,
    "figure.constrained_layout.h_pad": 0.03,
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.8,
    "axes.linewidth": 0.8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.borderaxespad": 0.2,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}


@contextmanager
def look(name: str) -> Iterator[None]:
    """Draws and saves in the report's look, whatever the user's matplotlibrc says; `name` salts the ids."""
    with mpl.style.context("default"), mpl.rc_context({**_LOOK, "svg.hashsalt": f"petseg-{name}"}):
        yield


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Returns a figure of `width` x `height` SVG units (one unit is one CSS pixel where nothing scales it)."""
    figure = Figure(figsize=(width / 72, height / 72))
    return figure, figure.add_subplot()


def inline(figure: Figure, name: str, label: str, styles: Mapping[str, ModelStyle]) -> Drawing:
    """Returns the figure as SVG for an HTML page: no prolog, no metadata; ids only where referenced, with a prefix."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)  # it would style the page
    used = set(re.findall(r'(?:xlink:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)  # the form before matplotlib 3.10
    text = re.sub(r" ?font-family: [^;\"]*;?", "", text)
    box = re.search(r'viewBox="[^"]+"', text)
    assert box is not None
    text = f'<svg {box[0]} role="img" aria-label="{escape(label)}">' + text[text.index(">") + 1 :]
    text = re.sub(INK, "currentColor", text, flags=re.IGNORECASE)
    text = re.sub(PAPER, "var(--paper)", text, flags=re.IGNORECASE)
    for style in styles.values():
        text = re.sub(style.colour, f"var({style.variable})", text, flags=re.IGNORECASE)
    return Drawing(re.sub(r"\n\s*", "\n", text).strip(), label)


def escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def _series(model: Mapping[str, Any], key: str) -> tuple[list[int], list[float]]:
    rows = [row for row in model["history"] if row.get(key) is not None]
    return [row["epoch"] for row in rows], [row[key] for row in rows]


def _mark_best(axes: Axes, model: Mapping[str, Any], key: str, style: ModelStyle) -> None:
    epochs, values = _series(model, key)
    if model.get("best_epoch") in epochs:
        best = epochs.index(model["best_epoch"])
        axes.plot(epochs[best], values[best], style.marker, color=style.colour, markersize=6.5, zorder=5)


def loss_curves(comparison: Mapping[str, Any]) -> Drawing | None:
    """Returns training (thin) and validation (thick) cross-entropy by epoch, or None where no history was kept."""
    models = [model for model in comparison["models"] if model["history"]]
    if not models:
        return None
    styles = model_styles([model["name"] for model in comparison["models"]])
    told = []
    with look("loss"):
        figure, axes = new_figure(400, 275)
        for model in models:
            style = styles[model["name"]]
            line: dict[str, Any] = {"color": style.colour, "linestyle": style.dash}
            lone = style.marker if len(model["history"]) == 1 else ""
            axes.plot(
                *_series(model, "train_loss"),
                **line,
                linewidth=1.1,
                alpha=0.75,
                marker=lone,
                markersize=4,
                label=f"{model['title']}, training",
            )
            epochs, values = _series(model, "val_loss")
            axes.plot(epochs, values, **line, linewidth=2.3, label=f"{model['title']}, validation")
            _mark_best(axes, model, "val_loss", style)
            if values:
                low = min(values)
                told.append(
                    f"{model['title']}'s validation loss goes from {loss(values[0])} to {loss(values[-1])}, lowest "
                    f"{loss(low)} at epoch {epochs[values.index(low)]}"
                )
        axes.set_title(f"cross-entropy at {comparison['size']} px, nats")
        _epoch_axis(axes, models)
        axes.legend(loc="upper right", ncols=1)
        epochs_told = plural(max(len(model["history"]) for model in models), "epoch")
        return inline(figure, "loss", f"Loss over {epochs_told}: {'; '.join(told)}.", styles)


def miou_curves(comparison: Mapping[str, Any]) -> Drawing | None:
    """Returns validation mIoU in percent by epoch, or None where the history holds none."""
    models = [model for model in comparison["models"] if _series(model, "val_miou")[0]]
    if not models:
        return None
    styles = model_styles([model["name"] for model in comparison["models"]])
    told = []
    with look("miou"):
        figure, axes = new_figure(400, 275)
        for model in models:
            style = styles[model["name"]]
            epochs, values = _series(model, "val_miou")
            axes.plot(
                epochs,
                [100 * value for value in values],
                color=style.colour,
                linestyle=style.dash,
                linewidth=2.3,
                label=model["title"],
            )
            scaled = {
                **model,
                "history": [
                    {**row, "val_miou": 100 * row["val_miou"]}
                    for row in model["history"]
                    if row.get("val_miou") is not None
                ],
            }
            _mark_best(axes, scaled, "val_miou", style)
            high = max(values)
            told.append(f"{model['title']} reaches {percent(high)} % at epoch {epochs[values.index(high)]}")
        axes.set_title(f"validation mIoU at {comparison['size']} px, %")
        _epoch_axis(axes, models)
        axes.legend(loc="lower right")
        return inline(figure, "miou", f"Validation mIoU: {'; '.join(told)}.", styles)


def _epoch_axis(axes: Axes, models: Sequence[Mapping[str, Any]]) -> None:
    last = max(row["epoch"] for model in models for row in model["history"])
    axes.set_xlim(0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.set_xlabel("epoch")


def interval_plot(comparison: Mapping[str, Any]) -> Drawing | None:
    """Returns the difference with its interval against zero, in points; right of zero the first model leads.

    None where one model stands alone.
    """
    difference = comparison["difference"]
    if difference is None:
        return None
    titles = {model["name"]: model["title"] for model in comparison["models"]}
    first, second = titles[difference["a"]], titles[difference["b"]]
    middle, (low, high) = difference["points"], difference["interval"]
    styles = model_styles(list(titles))
    leader = styles[difference["a"] if middle >= 0 else difference["b"]]
    colour = leader.colour if lead_shown(comparison) else INK
    left, right = min(low, 0.0), max(high, 0.0)
    room = max(right - left, 0.1) * 0.12
    with look("interval"):
        figure, axes = new_figure(290, 76)
        axes.axvline(0, color=INK, linewidth=1.2, alpha=0.6)
        axes.plot([low, high], [0, 0], color=colour, linewidth=6, solid_capstyle="butt", alpha=0.4)
        axes.plot(middle, 0, "o", color=colour, markersize=10)
        axes.set(xlim=(left - room, right + room), ylim=(-1, 1), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
        axes.tick_params(labelsize=12.5)
        axes.set_xlabel(f"{first} minus {second}, points", fontsize=12.5)
        label = (
            f"{first} minus {second}: {points(middle)} points of {difference['metric']}, "
            f"{percent_words(difference['confidence'])} interval {points(low)} to {points(high)}."
        )
        return inline(figure, "interval", label, styles)


def breed_rows(comparison: Mapping[str, Any]) -> list[tuple[str, list[float]]]:
    """Returns (breed, mIoU of each model in 0..1) where all models have one, the first model's highest first."""
    split = comparison["split"]
    scores = [pick(model, "evaluations", split, "breed_miou") or {} for model in comparison["models"]]
    rows = [
        (breed, [score[breed] for score in scores])
        for breed in (scores[0] if scores else {})
        if all(score.get(breed) is not None for score in scores)
    ]
    return sorted(rows, key=lambda row: (-row[1][0], row[0]))


def breed_words(comparison: Mapping[str, Any]) -> str:
    """Returns the sentence that the breeds' plot shows."""
    rows, models = breed_rows(comparison), comparison["models"]
    highest, lowest = rows[0], rows[-1]
    told = (
        f"{models[0]['title']} scores highest on {highest[0].replace('_', ' ')} ({percent(highest[1][0])} %) and "
        f"lowest on {lowest[0].replace('_', ' ')} ({percent(lowest[1][0])} %)."
    )
    if len(models) < 2:
        return told
    ahead = sum(scores[0] > scores[1] for _, scores in rows)
    widest = max(rows, key=lambda row: abs(row[1][0] - row[1][1]))
    gap = widest[1][0] - widest[1][1]
    leader = models[0 if gap > 0 else 1]["title"]
    return (
        f"{models[0]['title']} is ahead of {models[1]['title']} in {ahead} of {plural(len(rows), 'breed')}; the widest "
        f"gap is {points(100 * abs(gap))} points for {leader} on {widest[0].replace('_', ' ')}. {told}"
    )


def breed_plot(comparison: Mapping[str, Any]) -> Drawing | None:
    """Returns mIoU by breed, a line for each breed and a dot for each model, or None without breeds."""
    rows, models = breed_rows(comparison), comparison["models"]
    if not rows:
        return None
    styles = model_styles([model["name"] for model in models])
    with look("breeds"):
        figure, axes = new_figure(400, 85 + 16 * len(rows))
        places = list(range(len(rows)))
        axes.hlines(
            places,
            [100 * min(scores) for _, scores in rows],
            [100 * max(scores) for _, scores in rows],
            color=INK,
            alpha=0.3,
            linewidth=1.4,
        )
        for at, model in enumerate(models):
            style = styles[model["name"]]
            axes.plot(
                [100 * scores[at] for _, scores in rows],
                places,
                style.marker,
                color=style.colour,
                markerfacecolor=style.colour if at == 0 else PAPER,
                markeredgewidth=1.7,
                markersize=6.5,
                label=model["title"],
            )
        axes.set_yticks(places, [breed.replace("_", " ") for breed, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", alpha=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.set_xlabel("mIoU, %")
        figure.legend(loc="outside upper center", ncols=len(models), handletextpad=0.2)
        return inline(figure, "breeds", f"mIoU by breed: {breed_words(comparison)}", styles)


__all__ = [
    "Drawing",
    "ModelStyle",
    "breed_plot",
    "breed_rows",
    "breed_words",
    "interval_plot",
    "loss_curves",
    "miou_curves",
    "model_styles",
]
