"""The report's figures as inline SVG: they take the page's text colour and font, and repeat byte for byte.

One drawing serves light, dark and print. Models differ by dash and marker too, never by colour alone.
"""

import base64
import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from itertools import count, zip_longest
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from petseg.units import points

INK, PAPER = "#010203", "#fdfefd"  # become the page's text colour and its background; nothing else is drawn in them


@dataclass(frozen=True)
class Style:
    """How one model is drawn; `dark` is the same hue, light enough for a dark page."""

    colour: str
    dark: str
    dash: str
    marker: str

    @property
    def variable(self) -> str:
        """The CSS variable that holds its colour."""
        return f"--line-{self.colour[1:].lower()}"


STYLES = {"unet": Style("#0072B2", "#5CB3E8", "solid", "o"), "segnet": Style("#D55E00", "#F58A42", "dashed", "s")}
COLOURS = ("#009E73", "#AA4499", "#8A6D00", "#5B5FC7", "#0F7B8A")
DARK = ("#2FC79B", "#D97FCB", "#D9B534", "#9EA2F5", "#4FC3D4")
DASHES, MARKERS = ("dashdot", "dotted", "solid", "dashed"), ("D", "^", "v", "P")


def model_styles(names: Sequence[str]) -> dict[str, Style]:
    """Returns a style for each model: U-Net's and SegNet's are fixed; others have 20 before one comes again."""
    free = (Style(COLOURS[place % 5], DARK[place % 5], DASHES[place % 4], MARKERS[place % 4]) for place in count())
    return {name: STYLES[name] if name in STYLES else next(free) for name in names}


@dataclass(frozen=True)
class Chart:
    """An SVG to stand in the page as it is, the words that say what it shows, and its data: head and rows."""

    name: str
    svg: Markup
    label: str
    rows: Sequence[Sequence[object]]

    @property
    def csv(self) -> str:
        """The data as a CSV file's data URI."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self.rows)
        return f"data:text/csv;base64,{base64.b64encode(text.getvalue().encode()).decode()}"


@dataclass(frozen=True)
class Line:
    """One model's points; with `low` and `high` an interval each, as bars or as a band."""

    label: str
    style: Style
    x: list[float]
    y: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    kind: Literal["thick", "thin", "band", "bars", "hollow bars"] = "thick"
    notes: Sequence[str] = ()  # words beside each point
    mark: int | None = None  # which point has a dot


Corner = Literal["lower right", "upper right", "lower left"]


@dataclass(frozen=True)
class Panel:
    """Lines on one pair of axes."""

    title: str
    lines: Sequence[Line]
    x_label: str = ""
    legend: Corner = "lower right"
    ticks: Mapping[float, str] = field(default_factory=dict)  # place -> label; without any they are chosen
    log: bool = False


@contextmanager
def look(name: str) -> Iterator[None]:
    """Draws and saves in the report's look, whatever the user's matplotlibrc says; `name` salts the ids."""
    style = resources.files("petseg.report") / "templates" / "plots.mplstyle"
    with mpl.style.context(["default", str(style)]), mpl.rc_context({"svg.hashsalt": f"petseg-{name}"}):
        yield


def charted(name: str, figure: Figure, label: str, rows: Sequence[Sequence[object]], styles: Sequence[Style]) -> Chart:
    """Returns the figure as SVG for an HTML page: no prolog, no metadata; ids only where referenced, with a prefix."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)  # it would style the page
    used = set(re.findall(r'(?:xlink:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)  # the form before matplotlib 3.10
    text = re.sub(r" ?font-family: [^;\"]*;?", "", text)
    head = re.search(r'<svg[^>]*(viewBox="[^"]+")[^>]*>', text)
    assert head is not None
    text = f'<svg {head[1]} role="img" aria-label="{escape(label)}">' + text[head.end() :]
    variables = {style.colour: f"var({style.variable})" for style in styles}
    for colour, variable in {INK: "currentColor", PAPER: "var(--paper)", **variables}.items():
        text = re.sub(colour, variable, text, flags=re.IGNORECASE)
    return Chart(name, Markup(re.sub(r"\n\s*", "\n", text).strip()), label, rows)  # noqa: S704  # texts are escaped


def line_chart(name: str, panels: Sequence[Panel], size: tuple[float, float] = (400, 275)) -> Chart:
    """Returns panels of lines side by side, three in a row, of `size` SVG units together; a unit is a CSS pixel."""
    columns = min(3, len(panels))
    rows: list[Sequence[object]] = [["panel", "line", "x", "y", "low", "high"]]
    label = []
    with look(name):
        figure = Figure(figsize=(size[0] / 72, size[1] / 72))
        grid = figure.subplots(-(-len(panels) // columns), columns, sharey=True, squeeze=False)
        for place, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
            for line in panel.lines:
                _draw(axes, line)
                values = zip_longest(line.x, line.y, line.low, line.high)
                rows += [[panel.title, line.label, *each] for each in values]
            _set_axes(axes, panel, place == 0)
            label.append(f"{panel.title}: {', '.join(f'{line.label} {line.y[-1]:.4g}' for line in panel.lines)}")
        styles = list(dict.fromkeys(line.style for panel in panels for line in panel.lines))
        return charted(name, figure, f"{'; '.join(label)} (last values).", rows, styles)


def _draw(axes: Axes, line: Line) -> None:
    style, thin = line.style, line.kind in ("thin", "hollow bars")
    look: dict[str, Any] = {"color": style.colour, "linestyle": style.dash, "label": line.label}
    look |= {"linewidth": 1.1 if thin else 2.2, "marker": style.marker if len(line.x) == 1 else ""}
    if "bars" in line.kind:
        ends = np.abs(np.subtract([line.low, line.high], line.y))
        look |= {"marker": style.marker, "capsize": 3, "elinewidth": 1.2}
        axes.errorbar(line.x, line.y, yerr=ends, markerfacecolor=PAPER if thin else style.colour, **look)
    else:
        axes.plot(line.x, line.y, alpha=0.75 if thin else 1, **look)
    if line.kind == "band":
        axes.fill_between(line.x, line.low, line.high, color=style.colour, alpha=0.22, linewidth=0)
    if line.mark is not None:
        axes.plot(line.x[line.mark], line.y[line.mark], style.marker, color=style.colour, markersize=6.5)
    for place, note in enumerate(line.notes):
        below = place % 2 == 1  # left above or right below, in turn: off a curve that rises
        words: dict[str, Any] = {"xytext": (6, -5) if below else (-6, 5), "textcoords": "offset points", "fontsize": 9}
        words |= {"ha": "left" if below else "right", "va": "top" if below else "bottom", "color": style.colour}
        axes.annotate(note, (line.x[place], (line.low if below else line.high)[place]), **words)


def _set_axes(axes: Axes, panel: Panel, first: bool) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label)
    if panel.log:
        axes.set_xscale("log")
    if panel.ticks:
        axes.xaxis.set_major_locator(FixedLocator(list(panel.ticks)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels(list(panel.ticks.values()))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    if any(line.notes for line in panel.lines):
        axes.margins(0.3, 0.14)
    if first:
        few = len(panel.lines) <= 4
        pairs = zip(axes.get_legend_handles_labels()[0], panel.lines, strict=True)
        handles = [handle for handle, line in pairs if few or line.kind != "thin"]
        axes.legend(handles=handles, loc=panel.legend, prop={"size": 11 if few else 8}, ncols=1 if few else 2)


Interval = tuple[str, float, float, float]  # label, middle, low, high


def forest_chart(name: str, lines: Sequence[Interval], width: int = 760) -> Chart:
    """Returns differences in points with their intervals, a row each; a dot is hollow where the interval holds zero."""
    with look(name):
        figure = Figure(figsize=(width / 72, (50 + 17.5 * len(lines)) / 72))
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=1.2, alpha=0.6)
        axes.set_yticks(range(len(lines)), [label for label, *_ in lines])
        for place, (_, middle, low, high) in enumerate(lines):
            axes.plot([low, high], [place, place], color=INK, linewidth=1.6, alpha=0.7)
            axes.plot(middle, place, "o", color=INK, markerfacecolor=PAPER if low <= 0 <= high else INK, markersize=6)
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", alpha=0.0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=max(4, width // 60), steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
        axes.set_xlabel("difference in points, 95 % interval")
        texts = [f"{label} {points(middle)} ({points(low)} to {points(high)})" for label, middle, low, high in lines]
        table = [("difference", "points", "low", "high"), *lines]
        return charted(name, figure, f"Differences in points: {'; '.join(texts)}.", table, [])
