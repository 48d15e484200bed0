"""The report's figures as inline SVG: they take the page's text colour and font, and repeat byte for byte.

One drawing serves light, dark and print. Models differ by dash and marker too, never by colour alone.
"""

import base64
import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html import escape
from importlib import resources
from itertools import count, zip_longest
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.style
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, Locator, LogLocator, MaxNLocator, NullLocator

from petseg.units import Format, percent

Places = npt.NDArray[np.float64]
SECONDS = {"min": 60, "h": 3600}  # of the units of `duration`; the others are powers of ten
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
    note: str = ""  # what stands below it

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
    legend: Corner | None = "lower right"
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
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    if any(line.notes for line in panel.lines):
        axes.margins(0.45, 0.14)  # words beside the first point stay right of the axis
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value >= 0 else "")  # no negative times
    if first and panel.legend:
        few = len(panel.lines) <= 4
        pairs = zip(axes.get_legend_handles_labels()[0], panel.lines, strict=True)
        handles = [handle for handle, line in pairs if few or line.kind != "thin"]
        place: dict[str, Any] = {"loc": panel.legend, "ncols": 1 if few else 2}
        if len(handles) <= 2 and any(line.notes for line in panel.lines):  # words may lie in any corner
            place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 2, "columnspacing": 1.2}
        axes.legend(handles=handles, prop={"size": 11 if few else 8}, **place)


@dataclass(frozen=True)
class Point:
    """One model in a plot of its mIoU (0..1) over a cost."""

    title: str
    style: Style
    cost: float
    miou: float


def pareto_front(models: Sequence[Point]) -> list[Point]:
    """Returns, by rising cost, the models that no other beats: none costs less and scores as high or higher.

    >>> at = lambda cost, miou: Point("", STYLES["unet"], cost, miou)
    >>> [point.cost for point in pareto_front([at(3, 0.5), at(1, 0.5), at(2, 0.4), at(4, 0.9)])]
    [1, 4]
    """
    front: list[Point] = []
    for point in sorted(models, key=lambda point: (point.cost, -point.miou)):
        if not front or point.miou > front[-1].miou:
            front.append(point)
    return front


def pareto_chart(name: str, what: str, models: Sequence[Point], text: Format, *, ranked: bool = True) -> Chart:
    """Returns mIoU over a cost, models numbered as they come; those on the front are filled and named below.

    `text` writes a cost; without `ranked` no front is drawn, as of times that a busy machine took.
    """
    front = pareto_front(models) if ranked else []
    numbered = {id(point): f"{number} {point.title}" for number, point in enumerate(models, start=1)}
    with look(name):
        figure = Figure(figsize=(400 / 72, 275 / 72))
        axes = figure.add_subplot()
        if front:
            reached = [100 * point.miou for point in (*front, front[-1])]
            steps = [*(point.cost for point in front), max(point.cost for point in models)]
            axes.step(steps, reached, where="post", color=INK, linewidth=1.2, alpha=0.5)
        for point in models:
            face = point.style.colour if point in front else PAPER
            axes.plot(point.cost, 100 * point.miou, point.style.marker, color=point.style.colour, markerfacecolor=face)
        _set_costs([point.cost for point in models], axes, text)
        axes.set_title("mIoU, %")
        axes.set_xlabel(what)
        figure.draw_without_rendering()
        ends = [(point.cost, 100 * point.miou) for point in models]
        offsets = _free_offsets(axes.transData.transform(ends) * 72 / figure.dpi)
        for number, (end, offset) in enumerate(zip(ends, offsets, strict=True), start=1):
            words: dict[str, Any] = {"textcoords": "offset points", "fontsize": 10, "ha": "center", "va": "center"}
            axes.annotate(str(number), end, offset, **words)
        rows = [(point.title, point.cost, 100 * point.miou, int(point in front)) for point in models]
        texts = [f"{point.title} {text(point.cost)}, {percent(point.miou)} %" for point in models]
        label = f"mIoU over {what}: {'; '.join(texts)}."
        head = ("model", what, "mIoU %", "on the Pareto front")
        chart = charted(name, figure, label, [head, *rows], [point.style for point in models])
    names = " · ".join(numbered[id(point)] for point in front)
    return replace(chart, note=f"Pareto front: {names}" if front else "Pareto front: not drawn, the machine was busy")


def _set_costs(costs: Sequence[float], axes: Axes, text: Format) -> None:
    """Sets the axis of a cost: logarithmic above a ratio of 4, and never so narrow that equal costs look apart."""
    decades = np.log10(max(costs) / min(costs)) if min(costs) > 0 else 0.0
    locator: Locator = MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
    if decades > np.log10(4):
        axes.set_xscale("log")
        locator = LogLocator(subs=(1, 2, 5) if decades < 1.6 else (1, 3) if decades < 2.6 else (1,), numticks=9)
    axes.margins(0.12)
    if decades < np.log10(2):
        axes.set_xlim(max(costs) / 1.7, min(costs) * 1.7 or 1)
    # round in the unit that is written: 1,050,000 bytes would be labelled 1.1 MB, and 500 s 8.3 min
    name = text(max(costs)).split()[-1]
    unit = SECONDS.get(name, 1)
    low, high = axes.get_xlim()
    ticks = locator.tick_values(low / unit, high / unit)
    axes.xaxis.set_major_locator(FixedLocator([unit * tick for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    # 140 s, beyond the last cost, would be 2.3 min
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s" if name == "s" else text(value))


def _free_offsets(places: Places) -> list[tuple[int, int]]:
    """Returns where to write beside each place, [N, 2] in points: the side that is freest of markers and numbers."""
    taken = [np.asarray(place) for place in places]
    offsets = []
    for place in places:
        sides = [(10, 7), (10, -7), (-10, 7), (-10, -7)]
        offset = max(sides, key=lambda side: min(np.hypot(*(other - place - side)) for other in taken) // 9)
        taken.append(place + offset)
        offsets.append(offset)
    return offsets
