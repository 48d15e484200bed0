"""The page of a comparison: one HTML file that needs nothing else, from comparison.json and the images beside it."""

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from petseg import units
from petseg.config import flat_fields
from petseg.data import oxford_pets
from petseg.errors import PetsegError
from petseg.report import plots, tables
from petseg.report.plots import Chart, Line, Panel
from petseg.schema import ComparisonResult, EpochRow, ModelResult, exploded, read_record
from petseg.storage import write_text
from petseg.units import percent, points, signed


def headline(result: ComparisonResult) -> list[str]:
    """Returns the answer as labels and values: up to three differences, or the highest score."""
    titles = {model.name: model.title for model in result.models}
    if not 1 <= len(result.differences) <= 3:
        scores = {model.title: model.evaluations[result.split].miou for model in result.models}
        best = max(scores, key=lambda title: scores[title])
        of = f", the highest of {len(scores)}" if len(scores) > 1 else ""
        return [f"{best}: {percent(scores[best])} % mIoU on the {result.split} split{of}"]
    return [
        f"{titles[one.model]} − {titles[one.reference]}: {signed(one.points)} points of {one.metric} "
        f"on the {one.split} split ({100 * one.confidence:.4g} % interval {' to '.join(map(points, one.ends))}"
        f"{', all at once' if one.together else ''}; over {one.over})"
        for one in result.differences
    ]


# settings that say nothing of the pets, as prefixes
OWN_IMAGES = tuple(f"data.{name}" for name in ("classes", "ignore", "split", "val_share", "test_share", "fold"))
_TYPES = {".png": "image/png", ".jpg": "image/jpeg"}
SHOWN = 4  # predictions of an image that stand in the page at first


class GalleryImage(NamedTuple):
    """An image of an example, with its own mIoU in percent; `more` is seen once the reader asks for every model."""

    title: str
    score: str
    source: str  # a data URI
    more: bool


def read_gallery(result: ComparisonResult, folder: Path) -> Iterator[tuple[str, str, list[GalleryImage]]]:
    """Yields (reason, name, images) of each example whose images all lie in `folder`.

    At first the reference and the best of the others are seen.
    """
    best = [model.name for model in tables.ranked(result) if model.name != result.reference]
    more = best[SHOWN - 1 :]
    titles = {"image": "Image", "truth": "Truth", **{model.name: model.title for model in result.models}}
    for example in result.examples:
        images = []
        for role, title in titles.items():
            name = example.files.get(role, "")
            path = folder / name
            kind, beside = _TYPES.get(path.suffix.lower()), path.resolve().is_relative_to(folder.resolve())
            if name and not (beside and kind):
                raise PetsegError(
                    f"the comparison names image {name!r}; a report embeds {', '.join(_TYPES)} in its own folder: was "
                    "the file edited? Remove the image from `examples`"
                )
            if path.is_file():
                score = percent(example.miou[role]) if role in example.miou else ""
                content = base64.b64encode(path.read_bytes()).decode()
                images.append(GalleryImage(title, score, f"data:{kind};base64,{content}", role in more))
        if len(images) == len(titles):
            yield example.why, example.name.replace("_", " "), images


def history_charts(result: ComparisonResult) -> list[Chart]:
    """Returns loss and validation mIoU by epoch, a line for each model; nothing where no history was kept.

    Of several trainings the line is their mean, in a band from the lowest to the highest.
    """
    styles = plots.model_styles([model.name for model in result.models])

    def line(model: ModelResult, what: str, value: Callable[[EpochRow], float], *, thin: bool = False) -> Line:
        histories = [training.history for training in model.trainings] or [model.history]
        by_epoch = list(zip(*histories, strict=False))  # as long as the shortest, where some ended early
        epochs = [float(rows[0].epoch) for rows in by_epoch]
        values = np.array([[value(row) for row in rows] for rows in by_epoch])
        mean, low, high = (reduce(values, axis=1).tolist() for reduce in (np.mean, np.min, np.max))
        label, style = f"{model.title}{what}", styles[model.name]
        if result.trainings > 1:
            return Line(label, style, epochs, mean, low, high, kind="band")
        mark = epochs.index(model.best_epoch) if model.best_epoch in epochs and not thin else None
        return Line(label, style, epochs, mean, kind="thin" if thin else "thick", mark=mark)

    losses, scores = [], []
    few = len(result.models) <= SHOWN and result.trainings == 1
    for model in (model for model in result.models if model.history):
        if few:
            losses.append(line(model, ", training", lambda row: row.train_loss, thin=True))
        losses.append(line(model, ", validation", lambda row: row.val_loss))
        scores.append(line(model, "", lambda row: 100 * row.val_miou))
    if not losses:
        return []
    at = f"at {result.size} px"
    return [
        plots.line_chart("loss", [Panel(f"cross-entropy {at}, nats", losses, "epoch", None)]),
        plots.line_chart("miou", [Panel(f"validation mIoU {at}, %", scores, "epoch", None)]),
    ]


def pareto_charts(result: ComparisonResult) -> list[Chart]:
    """Returns mIoU over each cost that all models have, numbered as in `ranked`; of one model nothing."""
    styles = plots.model_styles([model.name for model in result.models])
    models = tables.ranked(result)
    busy = any(model.cost.busy for model in models)
    charts = []
    for column in tables.COSTS:
        costs = [column.value(model.cost) for model in models]
        if column.head in tables.TRADED and len(models) > 1 and None not in costs:
            found = [
                plots.Point(model.title, styles[model.name], float(cost), model.evaluations[result.split].miou)
                for model, cost in zip(models, costs, strict=True)
                if cost is not None
            ]
            name = re.sub(r"\W+", "-", column.head.lower())
            ranked = not (busy and column.head in tables.TIMES)
            charts.append(plots.pareto_chart(name, column.head, found, column.text, ranked=ranked))
    return charts


class Bar(NamedTuple):
    """A difference with its intervals, each end a place on the picture: 0 to 100 from left to right."""

    middle: float
    alone: tuple[float, float]
    together: tuple[float, float]
    shown: bool


class Bars(NamedTuple):
    """The pictures of all differences on one scale, from `low` to `high` points, and the place of zero."""

    low: float
    high: float
    zero: float
    by_title: dict[str, Bar]


def difference_bars(result: ComparisonResult) -> Bars:
    """Returns each difference's picture, by the model's title."""
    ends = [end for one in result.differences for end in (one.low, one.high, *one.ends)]
    low, high = float(np.floor(min(0.0, *ends))), float(np.ceil(max(0.0, *ends)))
    span = high - low or 1.0

    def place(points: float) -> float:
        return round(100 * (points - low) / span, 2)

    titles = {model.name: model.title for model in result.models}
    bars = {
        titles[one.model]: Bar(
            place(one.points), (place(one.low), place(one.high)), (place(one.ends[0]), place(one.ends[1])), one.shown
        )
        for one in result.differences
    }
    return Bars(low, high, place(0.0), bars)


def part(name: str) -> str:
    """Returns the text of a template, or of the page's script."""
    return (resources.files("petseg.report") / "templates" / name).read_text(encoding="utf-8")


SCRIPT = part("page.js").strip()
# what a Content-Security-Policy allows the script by
SCRIPT_HASH = f"sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}"


def template(name: str) -> Template:
    """Returns one of the report's templates; values are escaped, and a missing one is an error."""
    environment = Environment(
        loader=FunctionLoader(part), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"script": Markup(SCRIPT), "script_hash": SCRIPT_HASH}  # noqa: S704  # our own file
    environment.filters |= {**units.FORMATTERS, "unbroken": unbroken, "wrappable": wrappable, "flat": flat_texts}
    return environment.get_template(name)


def unbroken(text: str) -> str:
    """Returns the text with the space between a number and its unit (%, px) made non-breaking."""
    return re.sub(r"(?<=\d) (?=%|px)", "\N{NO-BREAK SPACE}", text)


def wrappable(text: str) -> Markup:
    """Returns the text, escaped, as HTML that may break after an underscore or a slash: in a network's name."""
    return Markup(re.sub(r"[_/](?=\w)", r"\g<0><wbr>", str(escape(text))))  # noqa: S704  # escaped


def flat_texts(tree: Mapping[str, object]) -> dict[str, str]:
    """Returns dotted name -> text of every field that is set: `{"train.epochs": "30", "sizes": "1, 2"}`."""
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in flat_fields(tree)
        if value not in (None, "", [], ())
    }


def render(result: ComparisonResult, folder: Path) -> str:
    """Returns the page's HTML; the same comparison and images give the same bytes."""
    titles = {model.name: model.title for model in result.models}
    styles = plots.model_styles(list(titles))
    by_group = [model.evaluations[result.split].group_miou for model in result.models]
    common = [group for group in by_group[0] if all(group in scores for scores in by_group)]
    groups = {group: [100 * scores[group] for scores in by_group] for group in common}
    return template("comparison.html.j2").render(
        result=result,
        styles=styles,
        version=result.petseg,
        headline=headline(result),
        cards=[(model, model.evaluations[result.split].miou) for model in result.models],
        bars=difference_bars(result) if result.differences else None,
        ranking=tables.ranking_table(result) if result.differences else None,
        ranked=tables.ranked(result),
        tables=tables.comparison_tables(result),
        class_tables=tables.class_tables(result),
        confusions=tables.confusion_tables(result),
        pareto=pareto_charts(result),
        history=history_charts(result),
        epochs=sorted({row.epoch for model in result.models for row in model.history}),
        gallery=list(read_gallery(result, folder)),
        exploded=[
            model.title + told
            for model in result.models
            for told, history in [(f", seed {one.seed}", one.history) for one in model.trainings]
            or [("", model.history)]
            if history and exploded(history[-1].val_loss, len(result.data.scored_classes))
        ],
        settings={
            name: text
            for name, text in flat_texts(result.config.model_dump(mode="json")).items()
            if not name.startswith(OWN_IMAGES if result.data.name == oxford_pets.NAME else "data.oxford_pets.")
        },
        data=flat_texts(result.data.model_dump(exclude={"classes", "scored_classes"})),
        groups=tables.group_table(groups, list(titles.values())) if groups else None,
    )


def write_page(path: Path, text: str) -> Path:
    """Writes a page whole or not at all, and returns its path."""
    if path.is_dir():
        raise PetsegError(f"{path} is a folder; a report is one HTML file: name a file in it, such as report.html")
    if path.is_file() and b"<p>Written by petseg " not in path.read_bytes():
        raise PetsegError(f"{path} is no report of petseg; name a new file (--out), or remove it")
    write_text(path, text)
    return path


def write_report(comparison: str | Path, out: str | Path | None = None) -> Path:
    """Returns the path of a comparison.json's report: `out`, or report.html beside it; PetsegError where it is bad."""
    comparison = Path(comparison)
    if not comparison.is_file():
        raise PetsegError(f"{comparison} is no file; a report is made from a comparison.json: run `petseg compare`")
    result = read_record(comparison, ComparisonResult)
    return write_page(Path(out or comparison.with_name("report.html")), render(result, comparison.parent))
