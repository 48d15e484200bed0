"""Numbers as people read them: formatters, the page's comparison table and the README's results table.

A share (IoU, Dice, accuracy, F) is stored in 0..1 and shown in percent, so that a difference reads in points.
A value that does not exist (a class absent from every image, a cost that was not measured) is shown as a dash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from petseg.errors import PetsegError

DASH = "–"

ORIGINAL = {"unet": 0.3614, "segnet": 0.4176}
"""Validation loss after 30 epochs in the comparison petseg descends from, whose split protocol `seed` repeats."""

Number = float | int | None
Format = Callable[[Any], str]
Better = Callable[[Iterable[Any]], Any]


# --- formatters -----------------------------------------------------------------------------------------------------


def percent(value: Number) -> str:
    """Returns a share of 0..1 in percent with one decimal, without the sign.

    >>> percent(0.7314), percent(1), percent(None)
    ('73.1', '100.0', '–')
    """
    return DASH if value is None or math.isnan(value) else f"{100 * value:.1f}"


def loss(value: Number) -> str:
    """Returns a cross-entropy in nats with four decimals, as the original comparison prints it.

    >>> loss(0.36142), loss(None)
    ('0.3614', '–')
    """
    return DASH if value is None or math.isnan(value) else f"{value:.4f}"


def count(value: Number) -> str:
    """Returns a count with the prefix k, M, G or T that leaves at least 0.1 before it; below 100 it is exact.

    >>> count(1_944_000), count(730_000_000), count(31_040_000), count(42), count(None)
    ('1.9 M', '0.73 G', '31.0 M', '42', '–')
    """
    if value is None or math.isnan(value):
        return DASH
    for prefix, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        scaled = value / unit
        if scaled >= 0.1:
            return f"{scaled:.{2 if scaled < 0.995 else 1}f} {prefix}"
    return f"{value:.0f}"


def byte_size(value: Number) -> str:
    """Returns bytes in decimal units (1 MB is 10^6 bytes) with one decimal.

    >>> byte_size(12_345_678), byte_size(999), byte_size(2_500_000_000), byte_size(None)
    ('12.3 MB', '999 B', '2.5 GB', '–')
    """
    if value is None or math.isnan(value):
        return DASH
    for prefix, unit in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= 0.99995 * unit:
            return f"{value / unit:.1f} {prefix}"
    return f"{value:.0f} B"


def duration(seconds: Number) -> str:
    """Returns seconds as s below two minutes, min below two hours, else h.

    >>> duration(1180), duration(45.2), duration(9000), duration(None)
    ('19.7 min', '45 s', '2.5 h', '–')
    """
    if seconds is None or math.isnan(seconds):
        return DASH
    if seconds < 119.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def milliseconds(value: Number) -> str:
    """Returns milliseconds with three significant digits.

    >>> milliseconds(9.12), milliseconds(0.5), milliseconds(123.4), milliseconds(None)
    ('9.12 ms', '0.500 ms', '123 ms', '–')
    """
    if value is None or math.isnan(value):
        return DASH
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3}f} ms"


def whole(value: Number) -> str:
    """Returns a whole number with commas.

    >>> whole(3669), whole(None)
    ('3,669', '–')
    """
    return DASH if value is None or math.isnan(value) else f"{value:,.0f}"


def points(value: float, digits: int = 1) -> str:
    """Returns percentage points with one decimal or more and a true minus sign; never "−0.0".

    >>> points(5.42), points(-0.31), points(-0.04), points(-0.04, 2)
    ('5.4', '−0.3', '0.0', '−0.04')
    """
    text = f"{value:.{digits}f}"
    return text.replace("-", "" if float(text) == 0 else "−")


def plural(number: int, noun: str) -> str:
    """Returns the number with its noun.

    >>> plural(1, "epoch"), plural(3669, "image")
    ('1 epoch', '3,669 images')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def seed_words(seeds: Sequence[int]) -> str:
    """Returns how many seeds stand behind the figures, and which.

    >>> seed_words([0]), seed_words([0, 1, 2])
    ('one seed (0)', '3 seeds (0, 1, 2)')
    """
    return f"{'one seed' if len(seeds) == 1 else f'{len(seeds)} seeds'} ({', '.join(str(seed) for seed in seeds)})"


def listing(items: Sequence[str]) -> str:
    """Returns the items as a sentence lists them.

    >>> listing(["a"]), listing(["a", "b"]), listing(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def pick(tree: Mapping[str, Any] | None, *path: str) -> Any:
    """Returns what stands at `path` in nested mappings, or None where a step is missing.

    >>> pick({"iou": {"pet": 0.8}}, "iou", "pet"), pick({"iou": None}, "iou", "pet")
    (0.8, None)
    """
    found: Any = tree
    for step in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(step)
    return found


# --- the page's table -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One figure of the table; `best` marks the better of the compared models, never a baseline."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One measure: its name, a short remark on it, and a cell for each column."""

    label: str
    remark: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Group:
    """Rows under one heading, which `remark` makes precise."""

    title: str
    remark: str
    rows: tuple[Row, ...]


def lead_shown(comparison: Mapping[str, Any]) -> bool:
    """Returns whether one model is shown to lead: the difference's interval excludes zero, ends included."""
    if comparison["difference"] is None:
        return False
    low, high = comparison["difference"]["interval"]
    return not low <= 0 <= high


def comparison_table(comparison: Mapping[str, Any]) -> list[Group]:
    """Returns the page's table: a column for each model, then for each baseline.

    A row whose figures are all missing is left out. The better figure is marked unless both print the same; the
    mIoU that the comparison's interval speaks about is marked only where that interval excludes zero.
    """
    split, size = comparison["split"], f"{comparison['size']} px"
    classes, columns = comparison["classes"], _columns(comparison)
    scored: Mapping[str, Any] = next((found for column in columns if (found := pick(column, "evaluations", split))), {})
    where = [plural(scored["images"], "image") if "images" in scored else None, scored.get("frame")]

    def shares(label: str, *path: str, better: Better | None = max) -> Row | None:
        return _row(comparison, label, "%", ("evaluations", *path), percent, better)

    def losses(name: str) -> list[Row | None]:
        frames = (pick(column, "evaluations", name, "cross_entropy_frame") for column in columns)
        frame = next((f"at {frame}" for frame in frames if frame), "")
        return [
            _row(comparison, "Cross-entropy", frame, ("evaluations", name, "cross_entropy"), loss, min),
            _row(comparison, "Cross-entropy", "at 200 px", ("evaluations", name, "cross_entropy_200"), loss, min),
        ]

    def cost(label: str, remark: str, text: Format, *path: str, better: Better = min) -> Row | None:
        return _row(comparison, label, remark, ("cost", *path), text, better)

    batch = next((found for column in columns if (found := pick(column, "cost", "latency_ms", "batch"))), 1)
    timed = "" if batch == 1 else f"{plural(batch, 'image')} at once"
    quality = [
        shares("mIoU", split, "miou", better=max if lead_shown(comparison) else None),
        *(shares(f"IoU {name}", split, "iou", name) for name in classes),
        shares("Mean Dice", split, "mean_dice"),
        shares("Pixel accuracy", split, "pixel_accuracy"),
        shares("Mean boundary F", split, "mean_boundary_f"),
        shares("mIoU of the median image", split, "image_miou", "median"),
        *(losses(split) if split != "val" else []),
    ]
    scored_epoch = "the last" if comparison["protocol"] == "seed" else "best mIoU on validation"
    validation = [
        *losses("val"),
        _original_row(comparison),
        shares("mIoU", "val", "miou") if split != "val" else None,
        _row(comparison, "Epoch scored", scored_epoch, ("best_epoch",), whole, None),
    ]
    costs = [
        cost("Parameters", "", count, "parameters"),
        cost("Multiply-accumulates", "", count, "macs"),
        cost("Latency, median", timed, milliseconds, "latency_ms", "p50"),
        cost("Latency, 95th percentile", timed, milliseconds, "latency_ms", "p95"),
        cost("Activation memory, inference", "", byte_size, "activation_bytes"),
        cost("Activation memory, training", "per image", byte_size, "training_activation_bytes_per_image"),
        cost("Training time", "", duration, "train_seconds"),
        cost("Training speed", "images/s", whole, "train_images_per_second", better=max),
    ]
    return [
        *_group(f"Quality on the {split} split", listing_of_present(where), quality),
        *_group("Validation", "" if split == "val" else "the split that chose the epoch", validation),
        *_group("Cost", f"one image of {size}", costs),
    ]


def class_table(comparison: Mapping[str, Any]) -> list[Group]:
    """Returns Dice and boundary F of each class, in the columns of `comparison_table`."""
    split = comparison["split"]
    return [
        group
        for title, key in (("Dice", "dice"), ("Boundary F", "boundary_f"))
        for group in _group(
            title,
            "%",
            (
                _row(comparison, name, "", ("evaluations", split, key, name), percent, max)
                for name in comparison["classes"]
            ),
        )
    ]


def _columns(comparison: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*comparison["models"], *comparison.get("baselines", [])]


def _group(title: str, remark: str, rows: Iterable[Row | None]) -> list[Group]:
    kept = tuple(row for row in rows if row is not None)
    return [Group(title, remark, kept)] if kept else []


def _row(
    comparison: Mapping[str, Any], label: str, remark: str, path: Sequence[str], text: Format, better: Better | None
) -> Row | None:
    """Returns the row of what stands at `path` in each column, or None where no column holds it."""
    values = [pick(column, *path) for column in _columns(comparison)]
    texts = [text(value) for value in values]
    compared = len(comparison["models"])
    best = None
    if better is not None and len(set(texts[:compared]) - {DASH}) > 1:
        best = text(better(value for value in values[:compared] if text(value) != DASH))
    cells = tuple(Cell(text, place < compared and text == best) for place, text in enumerate(texts))
    return Row(label, remark, cells) if set(texts) != {DASH} else None


def _original_row(comparison: Mapping[str, Any]) -> Row | None:
    if comparison["protocol"] != "seed":
        return None
    cells = tuple(Cell(loss(ORIGINAL.get(column["name"]))) for column in _columns(comparison))
    return Row("Original comparison", "its loss on this split after 30 epochs", cells)


def original_note(comparison: Mapping[str, Any]) -> str:
    """Returns the sentence that sets the original comparison's losses beside these, or keeps them apart."""
    figures = listing(
        [f"{loss(ORIGINAL[name])} ({title})" for name, title in (("unet", "U-Net"), ("segnet", "SegNet"))]
    )
    told = f"The comparison petseg descends from printed validation losses of {figures} after 30 epochs"
    if comparison["protocol"] == "seed":
        return f"{told}, on the split that protocol seed repeats; they stand in the table."
    return (
        f"{told} on a split of its own; only protocol seed, which repeats that split, has figures to set beside them."
    )


def definitions(comparison: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns each metric of the page with its definition in one line."""
    classes = len(comparison["classes"])
    return [
        (
            "Cross-entropy",
            f"mean over pixels of −ln(probability of the true class), in nats; a uniform guess among {classes} "
            f"classes scores {loss(math.log(classes))}; lower is better.",
        ),
        (
            "IoU",
            "intersection over union of a class, TP / (TP + FP + FN), from one confusion matrix over all pixels of "
            "all images; higher is better.",
        ),
        ("mIoU", "plain mean of the IoU of the classes present."),
        ("Dice", "2 TP / (2 TP + FP + FN) of a class, from the same matrix; mean Dice is their plain mean."),
        ("Pixel accuracy", "share of pixels whose class is predicted; large classes weigh most."),
        (
            "Boundary F",
            "harmonic mean of precision and recall of a class's outline in one image, mean over images; a point is "
            "found within 0.75 % of the image's diagonal.",
        ),
        ("mIoU of an image", "the same mean over one image's own pixels; by breed, over the images of that breed."),
        ("Multiply-accumulates", f"MACs of one forward pass over one image of {comparison['size']} px."),
        ("Latency", "wall time of one forward pass on the machine below, its median and 95th percentile."),
        (
            "Activation memory",
            "most bytes of tensors alive at once for one image, weights not counted: in a forward pass without "
            "gradients, and in a forward and backward pass.",
        ),
        *_interval_definition(comparison["difference"]),
    ]


def _interval_definition(difference: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if difference is None:
        return []
    resamples = f"; {plural(difference['resamples'], 'resample')}" if difference.get("resamples") else ""
    told = f"{percent_words(difference['confidence'])} paired bootstrap over {difference['over']}{resamples}."
    return [("Interval", told)]


def percent_words(share: float) -> str:
    """Returns a confidence as words say it.

    >>> percent_words(0.95), percent_words(0.999)
    ('95 %', '99.9 %')
    """
    return f"{100 * share:.4g} %"


# --- the README's table ---------------------------------------------------------------------------------------------


def results_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Returns the README's results as Markdown: a row for each protocol and model, the originals, the conditions.

    Quality is that of the comparison's own split; the losses are always those of its validation images. No training
    time stands here: two runs of a shared machine, hours apart, do not compare.

    Raises:
        PetsegError: a comparison was trained on made pets, whose figures say nothing about real ones.
    """
    if not comparisons:
        return "No results are published yet."
    for comparison in comparisons:
        if comparison.get("made_data"):
            raise PetsegError(
                f"the comparison of protocol {comparison['protocol']!r} was trained on made pets; the README's table "
                "holds real results only: compare on the Oxford-IIIT Pet Dataset, or move its file out of results/"
            )
    classes = list(dict.fromkeys(name for comparison in comparisons for name in comparison["classes"]))
    at_200 = any(
        pick(model, "evaluations", "val", "cross_entropy_200") is not None
        for comparison in comparisons
        for model in comparison["models"]
    )
    head = ["Protocol", "Model", "Validation loss", *(["at 200 px"] if at_200 else []), "mIoU"]
    head += [f"IoU {name}" for name in classes]
    head += ["Pixel accuracy", "Boundary F", "Parameters", "MACs"]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for comparison in comparisons:
        for model in comparison["models"]:
            validation = pick(model, "evaluations", "val")
            scored = pick(model, "evaluations", comparison["split"])
            cost = model["cost"]
            lines.append(
                [
                    comparison["protocol"],
                    model["title"],
                    loss(pick(validation, "cross_entropy")),
                    *([loss(pick(validation, "cross_entropy_200"))] if at_200 else []),
                    percent(pick(scored, "miou")),
                    *(percent(pick(scored, "iou", name)) for name in classes),
                    percent(pick(scored, "pixel_accuracy")),
                    percent(pick(scored, "mean_boundary_f")),
                    count(cost.get("parameters")),
                    count(cost.get("macs")),
                ]
            )
    titles = {model["name"]: model["title"] for comparison in comparisons for model in comparison["models"]}
    for name, figure in ORIGINAL.items():
        figures = [DASH, loss(figure)] if at_200 else [loss(figure)]
        row = ["seed, original", titles.get(name, name), *figures]
        lines.append([*row, *[DASH] * (len(head) - len(row))])
    sentences = [
        "Shares are in percent. The original rows are the validation losses after 30 epochs that the comparison "
        "petseg descends from printed; protocol `seed` repeats its split.",
        *(_conditions(comparison) for comparison in comparisons),
    ]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return table + "\n\n" + "\n".join(f"- {sentence}" for sentence in sentences)


def _conditions(comparison: Mapping[str, Any]) -> str:
    split, environment = comparison["split"], comparison["environment"]
    scored: Mapping[str, Any] = next(
        (e for model in comparison["models"] if (e := pick(model, "evaluations", split))), {}
    )
    epochs = pick(comparison, "config", "train", "epochs")
    machine = listing_of_present(
        [environment.get("device"), environment.get("processor"), _threads(environment), environment.get("precision")]
    )
    measured = f", {plural(scored['images'], 'image')}" if "images" in scored else ""
    measured += f" at {scored['frame']}" if "frame" in scored else ""
    return (
        f"`{comparison['protocol']}`: task {comparison['task']}, {split} split{measured}; trained at "
        f"{comparison['size']} px" + (f" for {plural(epochs, 'epoch')}" if epochs else "") + f", "
        f"{seed_words(comparison['seeds'])}; {machine}; commit `{environment.get('commit') or 'unknown'}`."
    )


def _threads(environment: Mapping[str, Any]) -> str | None:
    return plural(environment["threads"], "thread") if environment.get("threads") else None


def listing_of_present(items: Iterable[str | None]) -> str:
    """Returns the items that exist, between commas.

    >>> listing_of_present(["cpu", None, "bf16"])
    'cpu, bf16'
    """
    return ", ".join(item for item in items if item)
