"""The shipped models' tables, from the cards in petseg/weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petseg.report.tables import percent
from petseg.storage import read_json


def model_tables(weights: Path, results: Path) -> dict[str, str]:
    """Returns the table of scores and the list of recipes of every card in a folder, and how the files were checked."""
    cards = [read_json(path) for path in sorted(weights.glob("*.json"))]
    cards.sort(key=lambda card: -card["scores"]["miou"])
    heads = [
        "Model",
        "File",
        "Photos at",
        "mIoU",
        "Pet",
        "Background",
        "Border",
        "Pixel accuracy",
        "Boundary F",
        "Cat or dog",
    ]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)], *map(_scores, cards)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    path = results / "benchmarks" / "weights.json"
    checked = read_json(path) if path.is_file() else {"models": {}}
    files = [_file(card, checked) for card in cards]
    return {"models": table, "recipes": "\n".join(map(_recipe, cards)), "files": "\n".join(files)}


def _scores(card: Mapping[str, Any]) -> list[str]:
    scores = card["scores"]
    species = scores.get("species_accuracy")
    return [
        f"`{card['name']}`",
        f"{card['bytes'] / 1e6:.1f} MB",
        f"{card['size']} px",
        *map(percent, (scores["miou"], *scores["iou"].values(), scores["pixel_accuracy"], scores["mean_boundary_f"])),
        "–" if species is None else percent(species),
    ]


def _recipe(card: Mapping[str, Any]) -> str:
    model, train, made = card["config"]["model"], card["config"]["train"], card["environment"]
    ramp = train.get("ramp")
    sides = (
        f"{', '.join(map(str, dict.fromkeys(ramp)))} and at last {card['size']} px" if ramp else f"{card['size']} px"
    )
    loss = f"cross-entropy + {train['dice_weight']:g} Dice" if train["dice_weight"] else "cross-entropy"
    average = f", weights averaged (EMA {train['ema']:g})" if train["ema"] else ""
    return (
        f"- `{card['name']}`: {card['title']}, {model['base_channels']} base channels; {train['epochs']} epochs of "
        f"{train['batch_size']} pictures a step at {sides}; AdamW, highest rate {train['learning_rate']:g}, "
        f"{loss}{average}; seed {train['seed']}, epoch {card['epoch']} chosen on validation; {made['device']}, "
        f"{made['processor']}, {made['precision']}; commit `{made['commit']}`; scored on the "
        f"{card['scores']['split']} split, {card['scores']['images']:,} pictures."
    )


def _file(card: Mapping[str, Any], checked: Mapping[str, Any]) -> str:
    name, found = card["name"], checked["models"].get(card["name"])
    if found is None or found["sha256"] != card["sha256"]:
        return f"- `{name}`: not checked yet."
    made = checked["environment"]
    file, run, flip = (f"{100 * found['miou'][view]:.2f}" for view in ("file", "run", "flip"))
    return (
        f"- `{name}`: the same class on {100 * found['agreement']:.4f} % of {found['pixels']:,} pixels; mIoU {file} "
        f"instead of {run}, with `--flip` {flip}; {found['split']} split, {found['images']:,} pictures; torch "
        f"{made['torch']}, commit `{made['commit']}`."
    )
