"""The tables of benchmarks/README.md, from the JSON under results/benchmarks/."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from petseg.report.tables import duration, loss, percent
from petseg.storage import read_json

LOSS = 0.3614
"""Validation loss of the U-Net that petseg descends from, after 30 epochs."""


TUTORIAL_EPOCHS = 30
"""Of the run that gave LOSS."""


def benchmark_tables(results: Path) -> dict[str, str]:
    """Returns marker -> Markdown table."""
    found = {path.stem: read_json(path) for path in sorted((results / "benchmarks").glob("*.json"))}
    speedrun = read_json(results / "benchmarks" / "speedrun" / "comparison.json")
    return {
        "train-speed": train_speed(found["train_speed"]),
        "time-to-loss": time_to_loss(speedrun, found["plain_recipe"], found["train_speed"]),
        "same-numbers": same_numbers(found["same_numbers"]),
        "prepare-speed": prepare_speed(found["prepare_speed"]),
        "train-memory": train_memory(found["train_memory"]),
    }


def headline(results: Path) -> str:
    """Returns the README's sentences on speed."""
    speed = read_json(results / "benchmarks" / "train_speed.json")
    (found, *_) = read_json(results / "benchmarks" / "speedrun" / "comparison.json")["models"]
    epochs_seconds = reached(found["history"])
    assert epochs_seconds is not None, "the speedrun's U-Net must reach the loss that it is published for"
    machine = speed["environment"]
    return (
        f"- petseg's loop, compiled, trains a U-Net {times(speed['ratio'])} times as fast as the usual loop (a "
        f"DataLoader that decodes JPEGs, fp32), same network and batch, on {machine['threads']} cores of an "
        f"{machine['processor']}.\n"
        f"- `petseg compare --recipe speedrun` brings U-Net to the validation loss {LOSS}, the original's after 30 "
        f"epochs, in {duration(epochs_seconds[1])} from a prepared cache, validation included (one seed)."
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table, its first column left, the others right.

    >>> print(markdown(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | ---: |
    | 1 | 2 |
    """
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def times(ratio: Mapping[str, float]) -> str:
    """Returns a ratio in words.

    >>> times({"median": 5.04, "low": 4.9, "high": 5.25}), times({"median": 1.042, "low": 1.02, "high": 1.05})
    ('5.0 (4.9 to 5.2)', '1.04 (1.02 to 1.05)')
    """
    digits = 1 if ratio["median"] >= 2 else 2
    return f"{ratio['median']:.{digits}f} ({ratio['low']:.{digits}f} to {ratio['high']:.{digits}f})"


def conditions(result: Mapping[str, Any]) -> str:
    """Returns the line below a table: how to repeat it, and where it was measured."""
    machine = result["environment"]
    turns = f"{result['turns']} turns each; median (lowest to highest turn). " if "turns" in result else ""
    return (
        f"`{result['command']}`. {turns}{machine['processor']}, {machine['threads']} threads, {machine['precision']}, "
        f"torch {machine['torch']}; commit `{machine['commit']}`."
    )


def train_speed(result: Mapping[str, Any]) -> str:
    """Returns the table of training loops."""
    rows = [
        (
            loop["title"],
            str(loop["size"]),
            str(loop["batch"]),
            times(loop["ratio"]),
            f"{percent(float(np.median(loop['data_share'])))} %",
        )
        for loop in result["loops"].values()
    ]
    head = ["Training loop", "px", "Batch", "petseg's first loop is faster by", "Share of a step waiting for data"]
    return f"{markdown(head, rows)}\n\n{conditions(result)}"


def time_to_loss(speedrun: Mapping[str, Any], plain: Mapping[str, Any], speed: Mapping[str, Any]) -> str:
    """Returns the table of the time until the validation loss of the original U-Net."""
    fastest = reached(speedrun["models"][0]["history"])
    assert fastest is not None, "the speedrun's U-Net must reach the loss that it is published for"
    rows = []
    for model in speedrun["models"]:
        at_200 = model["evaluations"]["val"]["cross_entropy_200"]
        rows.append(
            row(f"`speedrun`, {model['title']}", model["history"], f"; at the end {loss(at_200)} at 200 px", fastest)
        )
    rows.append(row("`default`, U-Net", plain["history"], "", fastest))
    epoch = speed["training_images"] / float(np.median(speed["loops"]["tutorial"]["images_per_second"]))
    for epochs in (1, TUTORIAL_EPOCHS):
        seconds = epochs * epoch
        rows.append(
            [
                "the tutorial's network, an epoch" if epochs == 1 else "the tutorial's network, all its epochs",
                *(str(epochs), "not trained here", duration(seconds), f"{seconds / fastest[1]:.0f}"),
            ]
        )
    text = markdown(["", "Epochs", "Validation loss", "Time", "Times the speedrun's"], rows)
    told = conditions({**plain, "command": speedrun["command"]})
    return f"{text}\n\n{told} The tutorial's rows: torch {speed['environment']['torch']}, from the table above."


def reached(history: Sequence[Mapping[str, Any]]) -> tuple[int, float] | None:
    """Returns the first epoch whose validation loss is at most LOSS, and the seconds until its end.

    >>> reached([{"epoch": 1, "val_loss": 0.5, "seconds": 2.0}, {"epoch": 2, "val_loss": 0.3, "seconds": 2.5}])
    (2, 4.5)
    """
    for place, entry in enumerate(history):
        if entry["val_loss"] <= LOSS:
            return entry["epoch"], sum(earlier["seconds"] for earlier in history[: place + 1])
    return None


def row(title: str, history: Sequence[Mapping[str, Any]], remark: str, fastest: tuple[int, float]) -> list[str]:
    """Returns a row of `time_to_loss`; where the loss was not reached, the time is a lower bound."""
    found = reached(history)
    epochs, seconds = found or (len(history), sum(entry["seconds"] for entry in history))
    more = "" if found else "more than "
    value = history[epochs - 1]["val_loss"]
    return [
        title,
        f"{more}{epochs}",
        f"{loss(value)}{remark}",
        f"{more}{duration(seconds)}",
        f"{more}{seconds / fastest[1]:.1f}",
    ]


def same_numbers(result: Mapping[str, Any]) -> str:
    """Returns the sentence on what speed cost in accuracy."""
    largest = result["largest_difference"]
    first = "epoch" if result["epochs"] == 1 else f"{result['epochs']} epochs"
    means = (
        "they are the same numbers, so the scores published before stand: a difference of 0, interval 0 to 0"
        if largest == 0
        else f"they differ by up to {largest:.2g}"
    )
    return (
        f"The training and validation losses of the first {first} of `{result['comparison']}`, U-Net and SegNet, by "
        f"this code and as published: {means}.\n\n{conditions(result)}"
    )


def prepare_speed(result: Mapping[str, Any]) -> str:
    """Returns the table of preparing the cache."""
    rows = [
        (name, f"{found['pictures']:,}", f"{found['longest_side_median']} px", times(found["ratio"]))
        for name, found in result["sets"].items()
    ]
    head = ["Pictures", "Number", "Longest side, median", "petseg is faster than a plain Pillow loop by"]
    return f"{markdown(head, rows)}\n\n{conditions(result)}"


def train_memory(result: Mapping[str, Any]) -> str:
    """Returns the table of peak memory."""
    rows = [
        (case["title"], f"{case['peak_mb']:,} MB", "yes" if case["peak_mb"] <= result["limit_mb"] else "no")
        for case in result["cases"].values()
    ]
    head = ["Recipe `default`", "Beyond torch", f"Within {result['limit_mb']:,} MB"]
    return f"{markdown(head, rows)}\n\n{conditions(result)}"
