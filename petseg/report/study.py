"""The page of a study: one HTML file from findings.json. Nothing is measured or resampled here."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from petseg import schema
from petseg.evaluation.corruptions import KINDS
from petseg.experiments.study.subsets import SUBSETS
from petseg.report import plots, tables
from petseg.report.page import template, write_page
from petseg.report.plots import Chart, Line, Panel, model_styles
from petseg.report.tables import COSTS, Column, Table
from petseg.schema import read_record
from petseg.units import duration, points, signed, whole


def label(findings: schema.Findings, experiment: schema.ExperimentFindings, one: schema.ArmDifference) -> str:
    """Returns which arm is subtracted from which; what both share stands first."""
    arms = {arm.arm: arm for arm in experiment.arms}
    left, right = arms[one.left], arms[one.right]
    first, second = findings.models[left.model], findings.models[right.model]
    if left.variant == right.variant:
        return f"{left.title}: {first} − {second}"
    if left.model == right.model:
        shared = f"{first}: " if len({arm.model for arm in experiment.arms}) > 1 else ""
        return f"{shared}{left.title} − {right.title}"
    return f"{first}, {left.title} − {second}, {right.title}"


def headline(findings: schema.Findings) -> list[str]:
    """Returns the main experiment's differences of mIoU between two models, each pair of networks once."""
    main = findings.experiments[0]
    arms = {arm.arm: arm for arm in main.arms}
    lines: dict[tuple[tuple[str, ...], ...], str] = {}
    for one in main.differences:
        left, right = arms[one.left], arms[one.right]
        if (found := one.difference) and one.metric == "miou" and left.variant == right.variant:
            ends = f"{100 * findings.confidence:.4g} % interval {points(found.low)} to {points(found.high)}"
            latency = f", latency × {one.latency_ratio:.2f}" if one.latency_ratio else ""
            line = f"{label(findings, main, one)}: {signed(found.points)} points of mIoU ({ends}){latency}"
            lines.setdefault((left.runs, right.runs), line)
    return list(lines.values())


class Network(NamedTuple):
    """An arm that was scored."""

    arm: schema.ArmFindings
    scores: schema.ArmScores


def arm_table(findings: schema.Findings) -> Table:
    """Returns a row for each network of the study, by image size and mIoU; shared ones once."""
    rows: dict[tuple[str, ...], tuple[str, Network]] = {}
    for experiment in findings.experiments:
        for arm in experiment.arms:
            if arm.scores:
                title = f"{experiment.name}: {findings.models[arm.model]}, {arm.title}"
                rows.setdefault(arm.runs, (title, Network(arm, arm.scores)))
    ordered = sorted(rows.values(), key=lambda row: (-row[1].arm.size, -row[1].scores.miou.points))
    border = [entry.name for entry in findings.data.scored_classes if entry.role == "boundary"] if findings.data else []

    def iou(name: str) -> Column[Network]:
        return Column(f"IoU {name}", lambda row: row.scores.iou[name].points, points)

    def cost(column: Column[schema.CostInfo]) -> Column[Network]:
        return Column(column.head, lambda row: column.value(row.arm.cost) if row.arm.cost else None, column.text)

    columns: list[Column[Network]] = [
        Column("px", lambda row: row.arm.size, whole),
        Column("Seeds", lambda row: len(row.arm.seeds), whole),
        Column("mIoU", lambda row: row.scores.miou.points, points),
        Column("low", lambda row: row.scores.miou.low, points),
        Column("high", lambda row: row.scores.miou.high, points),
        *map(iou, border),
        *map(cost, COSTS[:-1]),
        Column("Training time", lambda row: row.scores.train_seconds, duration),
    ]
    return tables.table(("Every network", ""), columns, ordered, len(ordered))


def curve_chart(findings: schema.Findings, experiment: schema.ExperimentFindings) -> Chart | None:
    """Returns mIoU with its interval over latency or over training images, a curve for each model and line."""
    by_latency, size = experiment.curve == "latency", experiment.arms[0].size
    styles, found = model_styles(list(findings.models)), dict[tuple[str, str], dict[float, schema.ArmFindings]]()
    for arm in experiment.arms:
        latency = arm.cost.latency_ms.p50 if arm.cost and arm.cost.latency_ms else None
        over = {"latency": latency, "images": arm.train_images, "size": arm.size}
        if arm.scores and experiment.curve and (at := over[experiment.curve]) is not None:
            found.setdefault((arm.model, arm.line), {}).setdefault(at, arm)
    lines = []
    for (model, name), arms in found.items():
        title = ", ".join(part for part in (findings.models[model], name) if part)
        arms = dict(sorted(arms.items()))
        line = interval_line(title, styles[model], {at: arm.scores.miou for at, arm in arms.items() if arm.scores})
        notes = [arm.title for arm in arms.values()] if by_latency and len(arms) > 1 else []
        lines.append(replace(line, notes=notes, kind="hollow bars" if name else "bars"))
    if not lines:
        return None
    x_labels = {
        "latency": f"ms for an image of {size} px, one thread",
        "images": "training images, equal steps",
        "size": "image size, px",
    }
    x_label = x_labels[experiment.curve or "size"]
    ticks = {} if by_latency else {at: whole(at) for line in lines for at in sorted(line.x)}
    panel = Panel(f"mIoU on the {experiment.split} split, %", lines, x_label, ticks=ticks, log=not by_latency)
    return plots.line_chart(f"{experiment.curve}-{experiment.name}", [panel], (430, 330))


def interval_line(title: str, style: plots.Style, scores: Mapping[float, schema.Estimate]) -> Line:
    """Returns points with their intervals as bars, from x -> score."""
    middle, low, high = ([getattr(each, key) for each in scores.values()] for key in ("points", "low", "high"))
    return Line(title, style, list(scores), middle, low, high, "bars")


def training_charts(findings: schema.Findings) -> Iterator[Chart]:
    """Yields mIoU and loss over epochs for the first variant: mean over seeds, band from lowest to highest."""
    main = findings.experiments[0]
    first = [arm for arm in main.arms if arm.variant == main.arms[0].variant]
    histories = {arm.model: arm.scores.history for arm in first if arm.scores and arm.scores.history}
    styles = model_styles(list(findings.models))
    curves: dict[str, tuple[str, int, plots.Corner]] = {
        "val_miou": ("validation mIoU, %", 100, "lower right"),
        "val_loss": ("validation cross-entropy, nats", 1, "upper right"),
    }
    for curve, (title, scale, legend) in curves.items():
        lines = []
        for model, history in histories.items():
            mean, low, high = ([scale * value for value in values] for values in zip(*history[curve], strict=True))
            epochs = [float(epoch) for epoch in range(1, len(mean) + 1)]
            lines.append(Line(findings.models[model], styles[model], epochs, mean, low, high, "band"))
        if lines:
            yield plots.line_chart(curve, [Panel(title, lines, "epoch", legend)])


def contents(findings: schema.Findings, *, training: bool) -> dict[str, str]:
    """Returns id -> heading of each part of the page that is closed at first; no experiment's name has a hyphen."""
    parts = {experiment.name: experiment.title for experiment in findings.experiments}
    shown = {
        ("equal-tuning", "Equal tuning"): findings.tuning,
        ("corrupted-images", "Corrupted images"): findings.corrupted,
        ("subset-analysis", "Subset analysis"): findings.subsets,
        ("training-curves", "Training"): training,
        ("every-network", "Every network"): True,
        ("what-figures-mean", "What each figure means"): True,
        ("repeat-it", "Repeat it"): True,
    }
    return parts | dict(part for part, wanted in shown.items() if wanted)


def render_study(findings: schema.Findings) -> str:
    """Returns the page's HTML; the same findings give the same bytes."""
    styles = model_styles(list(findings.models))
    groups = {group: list(scores.values()) for group, scores in findings.groups.items()}
    titles = [findings.models[model] for model in next(iter(findings.groups.values()), {})]
    training = list(training_charts(findings))
    panels = []  # mIoU over the severity of each corruption, for the first variant's arms
    for name, kind in KINDS.items():
        lines = [
            interval_line(findings.models[model], styles[model], dict(enumerate(own[name])))
            for model, own in findings.corrupted.items()
        ]
        ticks: dict[float, str] = dict(enumerate(["none", *(f"{amount:g}" for amount in kind.amounts)]))
        panels.append(Panel(kind.unit, lines, legend="lower left", ticks=ticks))
    return template("study.html.j2").render(
        findings=findings,
        version=findings.petseg,
        styles=styles,
        headline=headline(findings),
        contents=contents(findings, training=bool(training)),
        label=label,
        curves=[(one, chart) for one in findings.experiments if one.curve and (chart := curve_chart(findings, one))],
        arms=arm_table(findings),
        settings={name: "; ".join(map(str, values)) for name, values in findings.settings.items()},
        training=training,
        corruptions=plots.line_chart("corruptions", panels, (820, 490)) if findings.corrupted else None,
        groups=tables.group_table(groups, titles) if groups else None,
        kinds=KINDS,
        subsets=SUBSETS,
    )


def render_answer(findings: schema.Findings) -> str:
    """Returns the published study's answer as a part of a page: a sentence, a plot, a table. HTML."""
    main = findings.experiments[0]
    arms = {arm.runs: arm for arm in reversed(main.arms) if arm.scores}  # a network that several arms share stands once
    rows = sorted(arms.values(), key=lambda arm: -arm.scores.miou.points if arm.scores else 0.0)
    found = {(one.left, one.right): one for one in main.differences if one.metric == "miou"}
    return template("answer.html.j2").render(
        findings=findings,
        main=main,
        styles=model_styles(list(findings.models)),
        rows=rows,
        same_time=found["unet/latency", "segnet/latency"],
        same_stages=found.get(("unet/stages", "segnet/stages")),
        chart=curve_chart(findings, main),
    )


def write_study_report(findings: str | Path, out: str | Path | None = None) -> Path:
    """Returns the path of the page written from a findings.json: `out`, or report.html beside it."""
    page = Path(out or Path(findings).with_name("report.html"))
    return write_page(page, render_study(read_record(findings, schema.Findings)))
