"""The report's page: reads one comparison.json and the pictures it names, writes one HTML file that needs nothing else.

Nothing is measured here and torch is never imported: a report can be made wherever the JSON lies.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from petseg.data.oxford_pets import COLOURS as CLASS_COLOURS
from petseg.errors import PetsegError
from petseg.report import plots, tables
from petseg.report.tables import DASH, lead_shown, listing, percent, percent_words, pick, points
from petseg.storage import write_atomically

TASTE = "A taste: short training at a small size, scored on validation pictures. `petseg compare` is the real thing."

MADE_DATA = "Trained on made pets: these figures mean nothing for real cats and dogs"

REASONS = {
    "best": "Best image",
    "median": "Median image",
    "worst": "Worst image",
    "differ": "Models differ most",
}

COSTS = (
    ("latency", ("latency_ms", "p50")),
    ("multiply-accumulates", ("macs",)),
    ("activation memory", ("activation_bytes",)),
)

_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    bool: "true or false",
    float: "a number",
}

_KEYS: dict[str, type] = {
    "command": str,
    "created": str,
    "made_data": bool,
    "protocol": str,
    "task": str,
    "classes": list,
    "split": str,
    "seeds": list,
    "size": int,
    "config": dict,
    "environment": dict,
    "data": dict,
    "models": list,
}
_MODEL_KEYS: dict[str, type] = {"name": str, "title": str, "cost": dict, "history": list, "evaluations": dict}
_BASELINE_KEYS: dict[str, type] = {"name": str, "title": str, "evaluations": dict}
_EXAMPLE_KEYS: dict[str, type] = {"name": str, "why": str, "files": dict}
_DIFFERENCE_KEYS: dict[str, type] = {
    "a": str,
    "b": str,
    "split": str,
    "metric": str,
    "points": float,
    "interval": list,
    "confidence": float,
    "over": str,
}


def read_comparison(path: Path) -> dict[str, Any]:
    """Returns the comparison that `path` holds, checked for every key that a report cannot do without.

    Raises:
        PetsegError: the file is missing, is not JSON, is another kind or version of file, or lacks keys.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise PetsegError(f"{path} {found}; a report is made from a comparison.json: name one, or run `petseg compare`")
    try:
        comparison = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PetsegError(
            f"{path} is not valid JSON ({error}); wanted a comparison.json: run `petseg compare` again to write it"
        ) from error
    kind = comparison.get("kind") if isinstance(comparison, dict) else type(comparison).__name__
    if kind != "comparison":
        raise PetsegError(
            f"{path} holds kind {kind!r}; a report is made from kind 'comparison': name the comparison.json that "
            "`petseg compare` wrote"
        )
    if comparison.get("version") != 1:
        raise PetsegError(
            f"{path} has version {comparison.get('version')!r}; this petseg reads version 1: "
            "run `petseg compare` again, or install the petseg that wrote it"
        )
    problems = _problems(comparison, _KEYS, "")
    if not problems:
        for key, keys in (("models", _MODEL_KEYS), ("baselines", _BASELINE_KEYS), ("examples", _EXAMPLE_KEYS)):
            for place, item in enumerate(comparison.get(key, [])):
                problems += _problems(item, keys, f"{key}[{place}].")
        if not comparison["models"]:
            problems.append("models is empty")
        if "difference" not in comparison:
            problems.append("difference is missing")
        elif comparison["difference"] is not None:  # None: one model has nothing to differ from
            problems += _problems(comparison["difference"], _DIFFERENCE_KEYS, "difference.")
    if not problems:
        for place, model in enumerate(comparison["models"]):
            for row, epoch in enumerate(model["history"]):
                problems += _problems(epoch, {"epoch": int}, f"models[{place}].history[{row}].")
        problems += _difference_problems(comparison)
    if problems:
        raise PetsegError(f"{path}: {'; '.join(problems)}; wanted the keys that `petseg compare` writes: run it again")
    return dict(comparison)


def _difference_problems(comparison: Mapping[str, Any]) -> list[str]:
    difference = comparison["difference"]
    if difference is None:
        return []
    names = [model["name"] for model in comparison["models"]]
    problems = [
        f"difference.{side} is {difference[side]!r}, none of the models {', '.join(names)}"
        for side in ("a", "b")
        if difference[side] not in names
    ]
    interval = difference["interval"]
    if len(interval) != 2 or not all(isinstance(end, int | float) for end in interval):
        problems.append(f"difference.interval is {json.dumps(interval)[:40]}, not two numbers")
    return problems


def _problems(got: Any, wanted: Mapping[str, type], where: str) -> list[str]:
    if not isinstance(got, dict):
        return [f"{where.rstrip('.')} is not an object"]
    missing = [f"{where}{key} is missing" for key in wanted if key not in got]
    wrong = [
        f"{where}{key} is {json.dumps(got[key])[:40]}, not {_KINDS[kind]}"
        for key, kind in wanted.items()
        if key in got and not isinstance(got[key], (int, float) if kind is float else kind)
    ]
    return missing + wrong


def findings(comparison: Mapping[str, Any]) -> list[str]:
    """Returns the answer in two sentences: which model is better and by how much, and what the better one costs.

    A lead is told only where the interval excludes zero. Costs within 2 % are the same. The second sentence is left
    out where neither model's costs were measured.

    >>> difference = {"a": "unet", "b": "segnet", "split": "test", "metric": "mIoU", "points": 5.42,
    ...               "interval": [5.0, 5.8], "confidence": 0.95, "over": "images; one seed"}
    >>> models = [{"name": "unet", "title": "U-Net", "cost": {"macs": 110}},
    ...           {"name": "segnet", "title": "SegNet", "cost": {"macs": 100}}]
    >>> for sentence in findings({"difference": difference, "models": models, "size": 128}):
    ...     print(sentence)
    U-Net leads SegNet by 5.4 points of mIoU on the test split (95 % interval 5.0 to 5.8, over images; one seed).
    It costs 1.1 times the multiply-accumulates at 128 px.
    """
    difference = comparison["difference"]
    made = "On made pets, " if comparison.get("made_data") else ""
    if difference is None:
        model, split = comparison["models"][0], comparison["split"]
        reached = percent(pick(model, "evaluations", split, "miou"))
        return [f"{made}{model['title']} reaches {reached} % mIoU on the {split} split; it was compared with no model."]
    models = {model["name"]: model for model in comparison["models"]}
    first, second = models[difference["a"]], models[difference["b"]]
    middle, (low, high) = difference["points"], difference["interval"]
    shown = lead_shown(comparison)
    if shown and high < 0:
        first, second, middle, low, high = second, first, -middle, -high, -low
    where = f"{difference['metric']} on the {difference['split']} split"
    interval = (
        f"({percent_words(difference['confidence'])} interval {points(low)} to {points(high)}, over "
        f"{difference['over']})"
    )
    if shown:
        answer = f"{made}{first['title']} leads {second['title']} by {points(middle)} points of {where} {interval}."
    else:
        answer = (
            f"{made}{'no' if made else 'No'} difference shown: {first['title']} minus {second['title']} is "
            f"{points(middle)} points of {where} {interval}."
        )
    cost = _cost_words(first, second)
    if cost is None:
        return [answer]
    told = f"It costs {cost}" if shown else f"{first['title']} costs {cost} of {second['title']}"
    return [answer, f"{told} at {comparison['size']} px."]


def _cost_words(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """Returns what the first model costs in terms of the second, dearer and equal costs before cheaper ones."""
    dearer: list[str] = []
    same: list[str] = []
    cheaper: list[str] = []
    for noun, path in COSTS:
        ours, theirs = pick(first["cost"], *path), pick(second["cost"], *path)
        if not ours or not theirs:
            continue
        ratio = ours / theirs
        if abs(ours - theirs) <= 0.02 * theirs:
            same.append(noun)
        else:
            (dearer if ratio > 1 else cheaper).append(f"{times(ratio)} times the {noun}")
    equal = [f"the same {listing(same)}"] if same else []
    more = listing([*dearer, *equal]) if len(same) < 2 or not dearer else f"{listing(dearer)}, and {equal[0]}"
    less = f"only {listing(cheaper)}" if cheaper else ""
    return ", but ".join(part for part in (more, less) if part) or None


def times(ratio: float) -> str:
    """Returns a ratio with two digits that count: two decimals below 1.1, none from 10 on.

    >>> times(2.345), times(1.04), times(0.4321), times(12.3)
    ('2.3', '1.04', '0.43', '12')
    """
    return f"{ratio:.{2 if ratio < 1.095 else 1 if ratio < 9.95 else 0}f}"


# --- pictures -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """One picture of the grid, embedded: `source` is a data URI."""

    title: str
    score: str
    alt: str
    source: str


@dataclass(frozen=True)
class Example:
    """One row of the grid."""

    reason: str
    name: str
    pictures: tuple[Picture, ...]


_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


def read_examples(comparison: Mapping[str, Any], folder: Path) -> list[Example]:
    """Returns the examples whose pictures all lie in `folder`; an example with a missing picture is left out.

    Raises:
        PetsegError: a picture's name leaves the folder, or is neither PNG nor JPEG.
    """
    titles = {model["name"]: model["title"] for model in comparison["models"]}
    examples = []
    for example in comparison.get("examples", []):
        name = example["name"].replace("_", " ")
        pictures = []
        for role, title in {"image": "Photo", "truth": "Truth", **titles}.items():
            path = _picture_path(folder, example["files"].get(role, ""))
            if path is None:
                break
            score = percent(pick(example, "miou", role)) if role in titles else ""
            pictures.append(
                Picture(
                    title,
                    score if score != DASH else "",
                    {"image": f"Photo of {name}", "truth": f"True mask of {name}"}.get(
                        role, f"{title}'s mask of {name}, mIoU {score} %"
                    ),
                    f"data:{_TYPES[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}",
                )
            )
        else:
            examples.append(Example(REASONS.get(example["why"], example["why"]), name, tuple(pictures)))
    return examples


def _picture_path(folder: Path, name: str) -> Path | None:
    """Returns the picture's path, or None where no such file exists."""
    if not name:
        return None
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise PetsegError(
            f"the comparison names picture {name!r}, which lies outside its folder; a report embeds only pictures "
            "beside the comparison.json: was the file edited?"
        )
    if path.suffix.lower() not in _TYPES:
        raise PetsegError(
            f"the comparison names picture {name!r}; a report embeds {', '.join(_TYPES)}: convert it, or remove it "
            "from `examples`"
        )
    return path if path.is_file() else None


def picture_note(named: int, found: int) -> str:
    """Returns the sentence on pictures that are missing, or an empty text.

    >>> picture_note(6, 0), picture_note(6, 4), picture_note(6, 6)
    ('The pictures are not part of this copy.', 'The pictures of 2 of 6 examples are not part of this copy.', '')
    """
    if found == named:
        return ""
    return (f"The pictures of {named - found} of {named} examples" if found else "The pictures") + (
        " are not part of this copy."
    )


# --- settings -------------------------------------------------------------------------------------------------------


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Returns every leaf of nested mappings as (dotted name, text).

    >>> flatten({"train": {"epochs": 30, "amp": None}, "sizes": [1, 2]})
    [('train.epochs', '30'), ('train.amp', 'none'), ('sizes', '1, 2')]
    """
    leaves = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves += flatten(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", plain(value)))
    return leaves


def plain(value: Any) -> str:
    """Returns a value of a config as a reader writes it.

    >>> plain(None), plain(True), plain([3, 2]), plain([])
    ('none', 'yes', '3, 2', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(plain(item) for item in value) or "none"
    return str(value)


# --- the page -------------------------------------------------------------------------------------------------------


def template(name: str) -> Template:
    """Returns one of the report's templates; values are escaped, and a missing one is an error."""
    return Environment(
        loader=FunctionLoader(lambda part: (resources.files("petseg.report") / part).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(name)


def svg(drawing: plots.Drawing | None) -> Markup | None:
    """Returns a drawing as it stands in a page."""
    return Markup(drawing.svg) if drawing else None  # noqa: S704  # matplotlib escapes its texts, `inline` the label


def render(comparison: Mapping[str, Any], folder: Path) -> str:
    """Returns the page's HTML; the same comparison and pictures give the same bytes."""
    models = comparison["models"]
    styles = plots.model_styles([model["name"] for model in models])
    examples = read_examples(comparison, folder)
    named = len(comparison.get("examples", []))
    breeds = plots.breed_plot(comparison)
    rows = plots.breed_rows(comparison)
    return template("page.html.j2").render(
        version=comparison.get("petseg", ""),
        comparison=comparison,
        models=models,
        styles=styles,
        made_data=MADE_DATA if comparison["made_data"] else "",
        taste=TASTE if comparison.get("taste") else "",
        findings=[unbroken(sentence) for sentence in findings(comparison)],
        lead=_lead(comparison) if comparison["difference"] else None,
        created=moment(comparison["created"]),
        seeds=tables.seed_words(comparison["seeds"]),
        cards=[_card(comparison, model) for model in models],
        interval=svg(plots.interval_plot(comparison)),
        shown=lead_shown(comparison),
        baselines=comparison.get("baselines", []),
        groups=tables.comparison_table(comparison),
        classes=tables.class_table(comparison),
        original=tables.original_note(comparison),
        loss_curves=svg(plots.loss_curves(comparison)),
        miou_curves=svg(plots.miou_curves(comparison)),
        history=_history(models),
        examples=examples,
        picture_note=picture_note(named, len(examples)),
        scored="the last" if comparison["protocol"] == "seed" else "the best on validation",
        commit=pick(comparison, "environment", "commit") or "unknown",
        class_colours={name: CLASS_COLOURS.get(name, "#888888") for name in comparison["classes"]}
        | ({"not counted": "#FFFFFF"} if _ignores_pixels(comparison) else {}),
        breeds=svg(breeds),
        breed_words=unbroken(plots.breed_words(comparison)) if rows else "",
        breed_rows=[
            (breed.replace("_", " "), [percent(score) for score in scores], points(100 * (scores[0] - scores[-1])))
            for breed, scores in rows
        ],
        leads=_leads(comparison, rows),
        definitions=tables.definitions(comparison),
        settings=flatten(comparison["config"]),
        environment=flatten(comparison["environment"]),
        data=[
            (key.replace("_", " "), tables.whole(value) if isinstance(value, int) else plain(value))
            for key, value in comparison["data"].items()
            if key != "left_out"
        ],
        left_out=comparison["data"].get("left_out") or {},
    )


def _ignores_pixels(comparison: Mapping[str, Any]) -> bool:
    """Returns whether the task leaves the border out; such pixels are white in the true masks."""
    if comparison["task"] == "species":
        return True
    return bool(comparison["task"] == "pet" and pick(comparison, "config", "data", "border") == "ignore")


def _card(comparison: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    scored = pick(model, "evaluations", comparison["split"])
    cost = model["cost"]
    return {
        "name": model["name"],
        "title": model["title"],
        "miou": percent(pick(scored, "miou")),
        "facts": [
            ("parameters", tables.count(cost.get("parameters"))),
            ("latency", tables.milliseconds(pick(cost, "latency_ms", "p50"))),
            ("training", tables.duration(cost.get("train_seconds"))),
        ],
    }


def _lead(comparison: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the difference in points, and for which model; no model where none is shown to lead."""
    difference = comparison["difference"]
    if not lead_shown(comparison):
        return points(difference["points"]), ""
    leader = difference["a" if difference["points"] > 0 else "b"]
    title = next(model["title"] for model in comparison["models"] if model["name"] == leader)
    return points(abs(difference["points"])), title


def _leads(
    comparison: Mapping[str, Any], rows: Sequence[tuple[str, list[float]]]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Returns, for each of the first two models, the five breeds it leads most on and by how many points."""
    if len(comparison["models"]) < 2:
        return []
    leads = []
    for model, sign in zip(comparison["models"][:2], (1, -1), strict=True):
        gaps = sorted((-sign * (scores[0] - scores[1]), breed) for breed, scores in rows)
        ahead = [(breed.replace("_", " "), points(-100 * gap)) for gap, breed in gaps[:5] if gap < 0]
        if ahead:
            leads.append((model["title"], ahead))
    return leads


def moment(created: str) -> str:
    """Returns an ISO 8601 time in UTC as people read it; any other text as it is.

    >>> moment("2026-11-22T09:00:00Z"), moment("yesterday")
    ('2026-11-22 09:00 UTC', 'yesterday')
    """
    return f"{created[:10]} {created[11:16]} UTC" if created[10:11] == "T" and created.endswith("Z") else created


def unbroken(text: str) -> str:
    """Returns the text with the space between a number and its unit made non-breaking.

    >>> unbroken("95 % at 128 px").count("\N{NO-BREAK SPACE}")
    2
    """
    return re.sub(r"(?<=\d) (?=%|px)", "\N{NO-BREAK SPACE}", text)


def _history(models: Sequence[Mapping[str, Any]]) -> list[tuple[int, list[list[str]]]]:
    """Returns (epoch, [training loss, validation loss, validation mIoU] of each model)."""
    epochs = sorted({row["epoch"] for model in models for row in model["history"]})
    by_epoch = [{row["epoch"]: row for row in model["history"]} for model in models]
    return [
        (
            epoch,
            [
                [
                    tables.loss(pick(rows, epoch, "train_loss")),
                    tables.loss(pick(rows, epoch, "val_loss")),
                    percent(pick(rows, epoch, "val_miou")),
                ]
                for rows in by_epoch
            ],
        )
        for epoch in epochs
    ]


def write_report(comparison: Path, out: Path | None = None) -> Path:
    """Returns the path of the report written from the file `comparison`: `out`, or report.html beside it.

    The page holds its pictures, plots and style, so that it can be mailed or printed as one file. It appears whole or
    not at all: it is written beside its place and then moved there.

    Raises:
        PetsegError: the comparison is missing, invalid or of another kind; see `read_comparison`.
    """
    path = out if out is not None else comparison.with_name("report.html")
    if path.is_dir():
        raise PetsegError(f"{path} is a folder; a report is one HTML file: name a file in it, such as report.html")
    text = render(read_comparison(comparison), comparison.parent)
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8", newline="\n"))
    return path
