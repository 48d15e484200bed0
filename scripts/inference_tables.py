"""The inference tables of benchmarks/README.md and docs/indices.md, from the JSON under results/benchmarks/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_tables import markdown, times

from petseg.report.tables import percent
from petseg.storage import read_json

PRECISIONS = {"fp32": "float32", "int8": "int8", "openvino_bf16": "bf16 (OpenVINO)"}


def inference_tables(results: Path) -> dict[str, str]:
    """Returns marker -> table of benchmarks/README.md."""
    folder = results / "benchmarks"
    return {
        "inference": runtimes(read_json(folder / "inference.json")),
        "inference-accuracy": precisions(read_json(folder / "int8.json")),
        "predict-speed": predict_speed(read_json(folder / "predict_speed.json")),
    }


def indices_tables(results: Path) -> dict[str, str]:
    """Returns marker -> text of docs/indices.md."""
    found = read_json(results / "benchmarks" / "indices.json")
    return {
        "indices-answer": "\n".join(f"- {answer(kind, pair)}" for kind, pair in found["pairs"].items()),
        "indices-figures": f"{figures(found)}\n\n{measured_on(found)}",
        "indices-stages": stages(found["pairs"]["width"]),
    }


def measured_on(result: Mapping[str, Any]) -> str:
    """Returns the line below a table."""
    machine = result["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in result.get("versions", {}).items())
    turns = f"{result['turns']} turns each. " if "turns" in result else ""
    return (
        f"`{result['command']}`. {turns}{machine['processor']}, torch {machine['torch']}"
        f"{', ' if versions else ''}{versions}; commit `{machine['commit']}`."
    )


def against(row: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Returns how many times as fast a row is as another, turn by turn.

    >>> against({"turn_medians_ms": [1.0, 2.0]}, {"turn_medians_ms": [4.0, 10.0]})
    '4.5 (4.0 to 5.0)'
    """
    ratio = np.divide(base["turn_medians_ms"], row["turn_medians_ms"])
    return times({"median": float(np.median(ratio)), "low": float(ratio.min()), "high": float(ratio.max())})


def runtimes(result: Mapping[str, Any]) -> str:
    """Returns the table of `petseg bench` at the most threads that it measured."""
    rows = []
    most = max(row["threads"] for row in result["rows"])
    shown = (row for row in result["rows"] if row["threads"] == most)
    for row in sorted(shown, key=lambda row: (row["size"], row["model"])):
        same = [each for each in result["rows"] if all(each[key] == row[key] for key in ("model", "size", "threads"))]
        base = next(each for each in same if each["runtime"] == "onnxruntime")
        rows.append(
            [
                f"`{row['model']}`, {row['size']} px",
                row["title"],
                against(row, base),
                f"{row['p50_ms']:.1f} ({row['p50_low_ms']:.1f} to {row['p50_high_ms']:.1f})",
                f"{row['p95_ms']:.1f}",
                f"{row['images_per_second']:.0f}",
                "–" if row["peak_mb"] is None else f"{row['peak_mb']:.0f} MB",
            ]
        )
    head = [
        "One picture",
        "Runtime",
        "Times as fast as ONNX Runtime, fp32",
        "p50 ms",
        "p95 ms",
        "Images a second",
        "Memory",
    ]
    absent = [f"Not measured: {name} ({why})." for name, why in result["not_measured"].items()]
    processor = f"{most} threads. The processor has {', '.join(result['instructions'])}."
    return "\n\n".join([markdown(head, rows), " ".join([measured_on(result), processor, *absent])])


def precisions(result: Mapping[str, Any]) -> str:
    """Returns the table of mIoU by precision."""
    rows = [
        [
            f"`{name}`, {split}, {scores['fp32']['images']:,} images",
            *(f"{100 * scores[precision]['miou']:.2f}" for precision in PRECISIONS),
            f"{100 * -scores['int8_loss']:+.2f}",
            f"{model['bytes']['fp16'] / 1e6:.1f} MB",
            f"{model['bytes']['int8'] / 1e6:.1f} MB",
        ]
        for name, model in result["models"].items()
        for split, scores in model["scores"].items()
    ]
    head = ["mIoU", *PRECISIONS.values(), "int8 against float32", "File", "int8 file"]
    return f"{markdown(head, rows)}\n\n{measured_on(result)}"


def start_table(results: Path) -> dict[str, str]:
    """Returns the table of cold starts."""
    result = read_json(results / "benchmarks" / "predict_speed.json")
    return {"start": f"{markdown(['What', 'Measured', 'Peak memory'], _cold_rows(result))}\n\n{measured_on(result)}"}


def _cold_rows(result: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            f"{found['command']}, cold{', ' + result['default_model'] if '.jpg' in found['command'] else ''}",
            f"{found['seconds']:.2f} s ({found['seconds_low']:.2f} to {found['seconds_high']:.2f})",
            "–" if found["peak_mb"] is None else f"{found['peak_mb']} MB",
        ]
        for found in result["cold"].values()
    ]


def predict_speed(result: Mapping[str, Any]) -> str:
    """Returns the table of cold starts, single photos and folders."""
    one, folder = result["one_photo"], result["folder"]
    rows = _cold_rows(result)
    rows += [
        [
            f"one decoded photo of {one['side']} px to its mask, {name.replace(' ', ', ')}",
            f"{rate['median']:.0f} a second ({rate['low']:.0f} to {rate['high']:.0f})",
            "–",
        ]
        for name, rate in one["photos_per_second"].items()
    ]
    rows += [
        [
            f"a folder to masks in files, {name.replace(' ', ', ')}",
            f"{100 * ratio['median']:.0f} % of the model alone ({100 * ratio['low']:.0f} to {100 * ratio['high']:.0f})",
            "–",
        ]
        for name, ratio in folder["of_model_alone"].items()
    ]
    return f"{markdown(['What', 'Measured', 'Peak memory'], rows)}\n\n{measured_on(result)}"


def answer(kind: str, pair: Mapping[str, Any]) -> str:
    """Returns the sentences that a reader may quote: what is saved, what of that is left in the process, the time."""
    unet, segnet = pair["unet"], pair["segnet"]
    theirs, ours = (model["maps"][str(model["size"])] for model in (unet, segnet))
    ratio = ours["peak"] / theirs["peak"]
    compared = f"{100 - 100 * ratio:.0f} % less" if ratio < 1 else f"{ratio:.1f} times as much"
    fast = against(*(_speeds(model, model["size"])["onnxruntime"] for model in (segnet, unet)))
    largest = [
        max((row for row in model["speed"] if row["runtime"] == "onnxruntime"), key=lambda row: row["size"])
        for model in (segnet, unet)
    ]
    told = ""
    if all(row["peak_mb"] for row in largest):
        resident = [f"{row['peak_mb']:.0f} MB ({row['size']} px)" for row in largest]
        told = f" Beyond the runtime's own, SegNet's memory peaks at {resident[0]}, U-Net's at {resident[1]}."
    return (
        f"At equal {kind} (`{unet['name']}` at {unet['size']} px and `{segnet['name']}` at {segnet['size']} px; mIoU "
        f"{percent(unet['miou'])} and {percent(segnet['miou'])} on {unet['split']}, one seed each) SegNet keeps "
        f"{ours['held'] / 1e6:.2f} MB for its decoder where U-Net keeps {theirs['held'] / 1e6:.2f} MB, and holds at "
        f"most {ours['peak'] / 1e6:.2f} MB of maps at once instead of {theirs['peak'] / 1e6:.2f} MB, "
        f"{compared}. In ONNX Runtime it is {fast} times as fast.{told}"
    )


def figures(result: Mapping[str, Any]) -> str:
    """Returns the table of both pairs: memory and time."""
    rows = []
    for kind, pair in result["pairs"].items():
        models = pair["unet"], pair["segnet"]
        for sides in zip(*(sorted(map(int, model["maps"])) for model in models), strict=True):
            theirs = _speeds(models[0], sides[0])
            for model, side in zip(models, sides, strict=True):
                speeds, maps = _speeds(model, side), model["maps"][str(side)]
                peak = speeds["onnxruntime"]["peak_mb"]
                rows.append(
                    [
                        f"equal {kind}: `{model['name']}`, {side} px",
                        percent(model["miou"]) if side == model["size"] else "–",
                        f"{maps['held'] / 1e6:.2f} MB",
                        f"{maps['peak'] / 1e6:.2f} MB",
                        "–" if peak is None else f"{peak:.0f} MB",
                        *(against(row, theirs[name]) for name, row in speeds.items()),
                    ]
                )
    titles = [row["title"] for row in result["pairs"]["width"]["unet"]["speed"]]
    head = ["Pair", "mIoU", "Kept for the decoder", "Maps at once, most", "Peak memory beyond the runtime"]
    return markdown([*head, *(f"Times as fast as U-Net: {title}" for title in dict.fromkeys(titles))], rows)


def _speeds(model: Mapping[str, Any], side: int) -> dict[str, Mapping[str, Any]]:
    """Returns runtime -> row of one model at one side."""
    return {row["runtime"]: row for row in model["speed"] if row["size"] == side}


def stages(pair: Mapping[str, Any]) -> str:
    """Returns the table of maps alive in each stage."""
    found = {model["title"]: model["maps"][str(model["size"])]["stages"] for model in pair.values()}
    names = sorted(
        {name for each in found.values() for name in each}, key=lambda name: (name != "input", name[0] != "e", name)
    )
    rows = [
        [name, *(f"{each[name] / 1e6:.2f} MB" if name in each else "–" for each in found.values())] for name in names
    ]
    return markdown(["Stage", *found], rows)
