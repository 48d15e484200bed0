"""The study's figures, each with its data: an SVG as in `plots`, and the rows that a CSV holds."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from petseg.report.plots import INK, PAPER, Drawing, ModelStyle, breed_plot, inline, look, model_styles, new_figure
from petseg.report.tables import milliseconds, plural, points, whole


@dataclass(frozen=True)
class Chart:
    """A figure of the study's page."""

    name: str
    drawing: Drawing
    rows: Sequence[Sequence[Any]]
    """Head and data."""

    @property
    def csv(self) -> str:
        """The data as CSV."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self.rows)
        return text.getvalue()


def scored(arms: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the arms that have a score, each set of runs once, under its first name."""
    found: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for arm in arms:
        if "miou" in arm:
            found.setdefault(tuple(arm["runs"]), arm)
    return list(found.values())


def _error_bars(arms: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Returns how far each interval reaches below and above its score."""
    return [
        [arm["miou"]["points"] - arm["miou"]["low"] for arm in arms],
        [arm["miou"]["high"] - arm["miou"]["points"] for arm in arms],
    ]


def _curve(
    axes: Axes, xs: Sequence[float], arms: Sequence[Mapping[str, Any]], style: ModelStyle, **options: Any
) -> None:
    given = {"color": style.colour, "linestyle": style.dash, "marker": style.marker, "capsize": 3, "linewidth": 2}
    axes.errorbar(
        xs, [arm["miou"]["points"] for arm in arms], yerr=_error_bars(arms), elinewidth=1.2, **{**given, **options}
    )


def latency_chart(experiment: Mapping[str, Any], models: Mapping[str, str]) -> Chart | None:
    """Returns mIoU with its interval against latency, a curve for each model; None before there is a point."""
    styles = model_styles(list(models))
    arms = [arm for arm in scored(experiment["arms"]) if "latency_ms" in arm["cost"]]
    if not arms:
        return None
    told = []
    name = f"latency-{experiment['name']}"
    with look(name):
        figure, axes = new_figure(430, 330)
        for model, title in models.items():
            own = sorted(
                (arm for arm in arms if arm["model"] == model), key=lambda arm: arm["cost"]["latency_ms"]["p50"]
            )
            xs = [arm["cost"]["latency_ms"]["p50"] for arm in own]
            if not own:
                continue
            _curve(axes, xs, own, styles[model], label=title)
            for place, (x, arm) in enumerate(zip(xs, own, strict=True)):
                if len(own) > 1:
                    below = place % 2 == 1
                    axes.annotate(
                        arm["title"],
                        (x, arm["miou"]["low" if below else "high"]),
                        xytext=(-6, -5) if below else (6, 5),  # left above or right below: off a curve that rises
                        textcoords="offset points",
                        ha="left" if below else "right",
                        va="top" if below else "bottom",
                        fontsize=9,
                        color=styles[model].colour,
                    )
                told.append(f"{title}, {arm['title']}: {points(arm['miou']['points'])} % at {milliseconds(x)}")
        axes.margins(0.3, 0.14)
        axes.set_title(f"mIoU on the {experiment['split']} split, %")
        axes.set_xlabel(f"milliseconds a picture of {experiment['size']} px, one thread, median")
        axes.legend(loc="lower right")
        drawing = inline(figure, name, f"Accuracy against latency. {'; '.join(told)}.", styles)
    rows: list[list[Any]] = [["model", "variant", "p50_ms", "p95_ms", "miou", "low", "high", "seeds"]]
    rows += [
        [
            arm["model"],
            arm["title"],
            *(round(arm["cost"]["latency_ms"][key], 4) for key in ("p50", "p95")),
            *_values(arm["miou"]),
            len(arm["seeds"]),
        ]
        for arm in arms
    ]
    return Chart(name, drawing, rows)


def _values(estimate: Mapping[str, float]) -> list[float]:
    return [estimate[key] for key in ("points", "low", "high")]


def learning_chart(experiment: Mapping[str, Any], models: Mapping[str, str]) -> Chart | None:
    """Returns mIoU with its interval against training pictures, a curve a model and line; None before a point."""
    styles = model_styles(list(models))
    arms = [arm for arm in scored(experiment["arms"]) if arm["pictures"]]
    if not arms:
        return None
    name = f"pictures-{experiment['name']}"
    told = []
    with look(name):
        figure, axes = new_figure(430, 330)
        for model, title in models.items():
            for line in dict.fromkeys(arm["line"] for arm in arms):
                own = sorted(
                    (arm for arm in arms if (arm["model"], arm["line"]) == (model, line)),
                    key=lambda arm: arm["pictures"],
                )
                if not own:
                    continue
                label = ", ".join(part for part in (title, line) if part)
                faint: dict[str, Any] = {"markerfacecolor": PAPER, "linewidth": 1.2} if line else {}
                _curve(axes, [arm["pictures"] for arm in own], own, styles[model], label=label, **faint)
                told += [f"{label}: {points(arm['miou']['points'])} % with {whole(arm['pictures'])}" for arm in own]
        axes.set_xscale("log")
        ticks = sorted({arm["pictures"] for arm in arms})
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: whole(value))
        axes.set_title(f"mIoU on the {experiment['split']} split, %")
        axes.set_xlabel("training pictures, equal steps")
        axes.legend(loc="lower right")
        drawing = inline(figure, name, f"Learning curves. {'; '.join(told)}.", styles)
    rows: list[list[Any]] = [["model", "line", "pictures", "miou", "low", "high", "seeds"]]
    rows += [[arm["model"], arm["line"], arm["pictures"], *_values(arm["miou"]), len(arm["seeds"])] for arm in arms]
    return Chart(name, drawing, rows)


def forest_chart(
    groups: Sequence[tuple[str, Sequence[tuple[str, Mapping[str, Any]]]]], name: str = "forest"
) -> Chart | None:
    """Returns differences in points with their intervals, a row each, under headings; None without rows.

    A dot is full where the interval leaves zero out, hollow where no difference is shown.

    Args:
        groups: (heading, rows of (label, finding with `points`, `low`, `high`)).
        name: of the figure.
    """
    lines: list[tuple[str, Mapping[str, Any] | None]] = []
    for heading, found in groups:
        if found:
            lines += [(heading, None), *found]
    if not lines:
        return None
    told = []
    with look(name):
        figure, axes = new_figure(760, 60 + 17.5 * len(lines))
        axes.axvline(0, color=INK, linewidth=1.2, alpha=0.6)
        for place, (label, finding) in enumerate(lines):
            if finding is None:
                continue
            low, high = finding["low"], finding["high"]
            shown = not low <= 0 <= high
            axes.plot([low, high], [place, place], color=INK, linewidth=1.6, alpha=0.7)
            axes.plot(finding["points"], place, "o", color=INK, markerfacecolor=INK if shown else PAPER, markersize=6)
            told.append(f"{label} {points(finding['points'])} ({points(low)} to {points(high)})")
        axes.set_yticks(range(len(lines)), [label for label, _ in lines])
        for tick, (_, finding) in zip(axes.get_yticklabels(), lines, strict=True):
            if finding is None:
                tick.set_fontweight("bold")
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", alpha=0.0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
        axes.set_xlabel("difference in points, 95 % interval")
        drawing = inline(figure, name, f"Differences in points: {'; '.join(told)}.", {})
    heading = ""
    rows: list[list[Any]] = [["experiment", "difference", "points", "low", "high", "p_value"]]
    for label, finding in lines:
        if finding is None:
            heading = label
        else:
            rows.append([heading, label, *_values(finding), finding.get("p_value", "")])
    return Chart(name, drawing, rows)


def robustness_chart(robustness: Mapping[str, Any], models: Mapping[str, str]) -> Chart | None:
    """Returns mIoU over the strength of each kind of change, for the first variant's arms; None before a score."""
    arms = robustness["arms"]
    arms = [arm for arm in arms if arm["arm"].partition("/")[2] == arms[0]["arm"].partition("/")[2]]
    if not arms:
        return None
    styles = model_styles(list(models))
    told = []
    rows: list[list[Any]] = [["model", "change", "amount", "miou", "low", "high"]]
    with look("robustness"):
        figure = Figure(figsize=(820 / 72, 490 / 72))
        figure.set_layout_engine("constrained", hspace=0.08, wspace=0.06)
        grid = figure.subplots(2, 3, sharey=True)
        for axes, (kind, amounts) in zip(grid.flat, robustness["amounts"].items(), strict=True):
            for arm in arms:
                scores = arm["scores"][kind]
                label = models[arm["model"]]
                _curve(axes, range(4), [{"miou": score} for score in scores], styles[arm["model"]], label=label)
                told.append(f"{label}, {kind}: {', '.join(points(score['points']) for score in scores)} %")
                rows += [
                    [arm["model"], kind, amount, *_values(score)]
                    for amount, score in zip(["", *amounts], scores, strict=True)
                ]
            axes.set_xticks(range(4), ["as it is", *(f"{amount:g}" for amount in amounts)])
            axes.set_title(robustness["units"][kind])
        grid[0, 0].set_ylabel("mIoU, %")
        grid[1, 0].set_ylabel("mIoU, %")
        grid[0, 0].legend(loc="lower left")
        drawing = inline(figure, "robustness", f"mIoU by strength of a change. {'; '.join(told)}.", styles)
    return Chart("robustness", drawing, rows)


def breeds_chart(breeds: Mapping[str, Any], models: Mapping[str, str]) -> Chart:
    """Returns mIoU by breed as the comparison's page draws it."""
    drawing = breed_plot(as_comparison(breeds, models))
    assert drawing is not None, "there are breeds"
    columns = ("breed", "pictures", "left", "right", "points", "low", "high")
    names = [breeds[side].partition("/")[0] for side in ("left", "right")]
    head = ["breed", "pictures", *names, "difference", "low", "high"]
    return Chart("breeds", drawing, [head, *([row[key] for key in columns] for row in breeds["rows"])])


def as_comparison(breeds: Mapping[str, Any], models: Mapping[str, str]) -> dict[str, Any]:
    """Returns the breeds in the form of a comparison, for what draws and tells those."""
    sides = {side: breeds[side].partition("/")[0] for side in ("left", "right")}
    return {
        "split": "test",
        "models": [
            {
                "name": model,
                "title": models[model],
                "evaluations": {"test": {"breed_miou": {row["breed"]: row[side] / 100 for row in breeds["rows"]}}},
            }
            for side, model in sides.items()
        ],
    }


CURVES = {
    "val_miou": ("validation mIoU at the training size, %", 100),
    "val_loss": ("validation cross-entropy, nats", 1),
}


def training_chart(experiment: Mapping[str, Any], models: Mapping[str, str], key: str) -> Chart | None:
    """Returns a curve over epochs for each model of the first variant: mean over seeds, band from lowest to highest."""
    styles = model_styles(list(models))
    arms = [arm for arm in experiment["arms"] if arm.get("history")]
    arms = [arm for arm in arms if arm["variant"] == arms[0]["variant"]]
    if not arms:
        return None
    title, scale = CURVES[key]
    name = f"training-{key.replace('_', '-')}"
    rows: list[list[Any]] = [["model", "epoch", "mean", "low", "high", "seeds"]]
    with look(name):
        figure, axes = new_figure(430, 290)
        for arm in arms:
            style = styles[arm["model"]]
            epochs = [row["epoch"] for row in arm["history"]]
            mean, low, high = ([scale * row[key][side] for row in arm["history"]] for side in ("mean", "low", "high"))
            axes.fill_between(epochs, low, high, color=style.colour, alpha=0.22, linewidth=0)
            axes.plot(epochs, mean, color=style.colour, linestyle=style.dash, linewidth=2, label=models[arm["model"]])
            count = len(arm["seeds"])
            rows += [
                [arm["model"], row["epoch"], *(row[key][side] for side in ("mean", "low", "high")), count]
                for row in arm["history"]
            ]
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.legend(loc="lower right" if key == "val_miou" else "upper right")
        told = "; ".join(
            f"{models[arm['model']]} ends at {scale * arm['history'][-1][key]['mean']:.3g} after "
            f"{plural(len(arm['history']), 'epoch')}, mean of {plural(len(arm['seeds']), 'seed')}"
            for arm in arms
        )
        drawing = inline(figure, name, f"{title[0].upper()}{title[1:]}: {told}.", styles)
    return Chart(name, drawing, rows)
