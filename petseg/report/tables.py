"""The tables of a comparison: a row for each model and baseline, a column for each measure."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Generic, TypeVar

from petseg import units
from petseg.schema import BaselineResult, ComparisonResult, CostInfo, ModelResult, Scores
from petseg.units import Format, Number

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Column(Generic[Measured]):
    """A measure: its name, its value, how it is written, and which end is better (min, max or neither)."""

    head: str
    value: Callable[[Measured], Number]
    text: Format
    better: Callable[[Iterable[float]], float] | None = None


@dataclass(frozen=True)
class Cell:
    """One figure; `value` is what a sort goes by, `best` marks the best of the compared models, never a baseline."""

    text: str
    value: Number = None
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Rows (label, cells) under a heading, which `remark` makes precise; baselines come after `compared` rows."""

    title: str
    remark: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    compared: int


QUALITY: tuple[Column[Scores], ...] = (
    Column("Mean Dice", lambda scores: scores.mean_dice, units.percent, max),
    Column("Pixel accuracy", lambda scores: scores.pixel_accuracy, units.percent, max),
    Column("Boundary F", lambda scores: scores.mean_boundary_f, units.percent, max),
    Column("mIoU, median image", lambda scores: scores.image_miou["median"], units.percent, max),
    Column("Class of the image", lambda scores: scores.image_class_accuracy, units.percent, max),
)

COSTS: tuple[Column[CostInfo], ...] = (
    Column("Parameters", lambda cost: cost.parameters, units.count, min),
    Column("MACs", lambda cost: cost.macs, units.count, min),
    Column("Latency, median", lambda cost: cost.latency_ms.p50 if cost.latency_ms else None, units.milliseconds, min),
    Column("95th percentile", lambda cost: cost.latency_ms.p95 if cost.latency_ms else None, units.milliseconds, min),
    Column("Memory, inference", lambda cost: cost.activation_bytes, units.byte_size, min),
    Column("Memory, training", lambda cost: cost.training_activation_bytes_per_image, units.byte_size, min),
    Column("Skip bytes", lambda cost: cost.skip_bytes, units.byte_size, min),
    Column("Training time", lambda cost: cost.train_seconds, units.duration, min),
)
TRADED = ("Latency, median", "Memory, inference", "Parameters", "Training time")  # mIoU is drawn over these
TIMES = ("Latency, median", "95th percentile", "Training time")


def loss_columns(scored: Scores) -> list[Column[Scores]]:
    """Returns cross-entropy at the training size, and at each further size that is scored."""

    def at(side: str) -> Column[Scores]:
        return Column(f"at {side} px", lambda scores: scores.cross_entropy_at.get(side), units.loss, min)

    own = Column[Scores](
        f"Cross-entropy at {scored.cross_entropy_frame}", lambda scores: scores.cross_entropy, units.loss, min
    )
    return [own, *map(at, scored.cross_entropy_at)]


def comparison_tables(result: ComparisonResult) -> list[Table]:
    """Returns quality, validation (where it is not the quality) and cost; an empty column is left out."""
    compared = len(result.models)
    miou = Column[Scores]("mIoU", lambda scores: scores.miou, units.percent, max if _best_is_shown(result) else None)
    scored, validated = scores_of(result, result.split), scores_of(result, "val")
    (_, first), *_ = scored
    quality = [miou, *QUALITY, *loss_columns(first)]
    remark = f"percent; {units.plural(first.images, 'image')}, {first.frame}"
    tables = [table((f"Quality on the {result.split} split", remark), quality, scored, compared)]
    if result.trainings > 1:
        tables = [*tables, training_table(result)]
    if result.split != "val" and validated:
        epoch = Column[Scores]("Epoch scored", lambda scores: scores.epoch, units.whole)
        validation = [miou, *loss_columns(validated[0][1]), *([epoch] if result.trainings == 1 else [])]
        title = ("Validation", "the split that chose the epoch")
        tables.append(table(title, validation, validated[:compared], compared))
    costs = [(model.title, model.cost) for model in result.models]
    remark, busy = f"one image of {result.size} px", max(model.cost.busy for model in result.models)
    if busy:
        remark += f"; the machine was busy with other work ({busy:.1f} cores): times are not ranked"
    columns = [replace(column, better=None) if busy and column.head in TIMES else column for column in COSTS]
    return [*tables, table(("Cost", remark), columns, costs, compared)]


def training_table(result: ComparisonResult) -> Table:
    """Returns the mIoU of each training and, of the same images, how far a model's trainings lie apart."""
    folds = result.config.data.folds
    measured = [
        (model.title, [training.evaluations[result.split].miou for training in model.trainings])
        for model in result.models
    ]
    columns: list[Column[list[float]]] = [
        Column(f"seed {one.seed}" + (f", fold {one.fold}" if folds else ""), itemgetter(place), units.percent)
        for place, one in enumerate(result.models[0].trainings)
    ]
    if not folds:
        columns.append(Column("Standard deviation", statistics.stdev, units.percent))
    found = table(("mIoU of each training", f"percent, {result.split} split"), columns, measured, len(measured))
    return turned(found) if len(columns) > max(5, len(measured)) else found


def printed_tables(result: ComparisonResult) -> list[Table]:
    """Returns what a terminal shows: of more than two models their differences, then `comparison_tables`."""
    return [*([ranking_table(result)] if len(result.differences) > 1 else []), *comparison_tables(result)]


def _best_is_shown(result: ComparisonResult) -> bool:
    """Returns whether the highest mIoU differs from every other: they are compared with the reference alone."""
    all_shown = all(difference.shown for difference in result.differences)
    return all_shown and (len(result.models) == 2 or ranked(result)[0].name == result.reference)


def ranking_table(result: ComparisonResult) -> Table:
    """Returns each model, best first: mIoU, points less the reference, its interval alone and of all at once."""
    titles, found = {model.name: model.title for model in result.models}, {one.model: one for one in result.differences}

    def ends(interval: tuple[float, float]) -> str:
        return " to ".join(map(units.points, interval))

    def cells(model: ModelResult) -> tuple[Cell, ...]:
        miou, one = model.evaluations[result.split].miou, found.get(model.name)
        score = Cell(units.percent(miou), miou)
        if one is None:
            return score, *[Cell(units.DASH)] * 3
        alone, together = Cell(ends((one.low, one.high)), one.low), Cell(ends(one.ends), one.ends[0])
        return score, Cell(units.signed(one.points), one.points), alone, together

    percent = f"{100 * result.differences[0].confidence:.4g} %"
    heads = ("mIoU", "Difference", f"{percent} interval, alone", "All at once")
    remark = f"percent; difference: points less {titles[result.reference]}, over {result.differences[0].over}"
    rows = tuple((model.title, cells(model)) for model in ranked(result))
    return Table(f"mIoU on the {result.split} split", remark, heads, rows, len(rows))


def ranked(result: ComparisonResult) -> list[ModelResult]:
    """Returns the models, highest mIoU first."""
    return sorted(result.models, key=lambda model: -model.evaluations[result.split].miou)


def scores_of(result: ComparisonResult, split: str) -> list[tuple[str, Scores]]:
    """Returns (title, scores) of the models, then of the baselines."""
    found: list[ModelResult | BaselineResult] = [*result.models, *result.baselines]
    return [(one.title, one.evaluations[split]) for one in found if split in one.evaluations]


def table(
    title: tuple[str, str], columns: Sequence[Column[Measured]], rows: Sequence[tuple[str, Measured]], compared: int
) -> Table:
    """Returns the columns that hold a figure; the best one of each is marked unless all print the same."""
    shown: dict[str, list[Cell]] = {}
    for column in columns:
        values = [column.value(measured) for _, measured in rows]
        texts = [column.text(value) for value in values]
        ranked = [value for value in values[:compared] if value is not None]
        rank = column.better and len({column.text(value) for value in ranked}) > 1
        best = column.text(column.better(ranked)) if column.better and rank else ""
        cells = zip(texts, values, strict=True)
        if any(text != units.DASH for text in texts):
            shown[column.head] = [
                Cell(text, value, at < compared and text == best) for at, (text, value) in enumerate(cells)
            ]
    by_row = tuple((label, tuple(cells[place] for cells in shown.values())) for place, (label, _) in enumerate(rows))
    return Table(*title, tuple(shown), by_row, compared)


def class_tables(result: ComparisonResult) -> list[Table]:
    """Returns IoU, Dice and boundary F of each class: the classes are the columns, or the rows where they are more."""
    scored = scores_of(result, result.split)

    def column(field: str, name: str) -> Column[Scores]:
        return Column(name, lambda scores: getattr(scores, field).get(name), units.percent, max)

    titles = {"iou": "IoU of each class", "dice": "Dice", "boundary_f": "Boundary F"}
    names = [entry.name for entry in result.data.scored_classes]
    found = [
        table((title, "percent"), [column(field, name) for name in names], scored, len(result.models))
        for field, title in titles.items()
    ]
    return [turned(one) for one in found] if len(names) > len(scored) else found


def turned(given: Table) -> Table:
    """Returns the table with its rows as columns."""
    columns = zip(*(cells for _, cells in given.rows), strict=True)
    rows = tuple(zip(given.heads, columns, strict=True))
    return Table(given.title, given.remark, tuple(label for label, _ in given.rows), rows, len(rows))


@dataclass(frozen=True)
class ConfusionTable:
    """Where the pixels of each true class (a row) went, as counts and as shares of the row."""

    title: str
    counts: tuple[tuple[int, ...], ...]

    @property
    def shares(self) -> tuple[tuple[float, ...], ...]:
        """The counts over their row's sum, 0..1; 0 in a row without pixels."""
        return tuple(tuple(count / max(1, sum(row)) for count in row) for row in self.counts)


def confusion_tables(result: ComparisonResult) -> list[ConfusionTable]:
    """Returns the confusion matrix of each model that has one, highest mIoU first; comparisons before 0.2 have none."""
    scored = [(model.title, model.evaluations[result.split].confusion) for model in ranked(result)]
    return [ConfusionTable(title, counts) for title, counts in scored if counts]


def group_table(groups: Mapping[str, Sequence[float]], titles: Sequence[str]) -> Table:
    """Returns the mIoU in points of each model by group (breed), and of two models the difference."""
    columns: list[Column[Sequence[float]]] = [
        Column(title, itemgetter(place), units.points) for place, title in enumerate(titles)
    ]
    if len(titles) == 2:
        columns.append(Column(f"{titles[1]} − {titles[0]}", lambda scores: scores[1] - scores[0], units.points))
    rows = [(group.replace("_", " "), scores) for group, scores in groups.items()]
    return table(("By group", "mIoU in percent"), columns, rows, len(rows))
