"""What SegNet's indices save: maps alive at once, peak memory and latency beside U-Net's, in ONNX Runtime on a CPU.

    python benchmarks/indices.py --out results/benchmarks/indices.json

Two pairs of shipped models: equal width, `unet_small` and `segnet_small`, trained by one recipe; equal accuracy, those
that differ least in mIoU, each at its own size. Maps are followed through ONNX Runtime's own order of steps, which its
profile tells.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from petseg.export.bench import Plan, bench
from petseg.shipped import KINDS, WEIGHTS, model_file, shipped_models
from petseg.storage import read_json, write_json

BYTES = {"float": 4, "int64": 8, "uint8": 1, "bool": 1}
LARGE = 512
"""Side in pixels at which maps, and not weights, take most of the memory."""


def follow(file: bytes, size: int) -> dict[str, Any]:
    """Returns how many bytes of maps are alive, as ONNX Runtime computes one image on one thread.

    `peak` is the most at once; `held` what waits for the decoder while the deepest stage is computed; `stages` the
    most in each stage, in order. Steps that could write over their input are counted as if they did not.
    """
    with tempfile.TemporaryDirectory() as folder:
        import onnxruntime  # after petseg, which switches its reports of use off

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3  # it warns that the optimised file fits this machine alone
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        session.run(None, {"image": np.zeros((1, size, size, 3), np.uint8)})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        graph = onnx.load(options.optimized_model_filepath).graph
    nodes = {node.name: node for node in graph.node}
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    steps = [nodes[event["name"].removesuffix("_kernel_time")] for event in kernels]
    last = {name: place for place, node in enumerate(steps) for name in node.input}
    last |= {output.name: len(steps) for output in graph.output}
    alive: dict[str, int] = {}
    stages: dict[str, int] = {}
    stage, peak, held = "input", 0, 0
    for place, (node, event) in enumerate(zip(steps, kernels, strict=True)):
        for name, shape in zip(filter(None, node.output), event["args"]["output_type_shape"], strict=False):
            ((kind, sides),) = shape.items()
            alive[name] = BYTES[kind] * prod(sides)
        found = re.search(r"(encoder|decoder)\.(\d+)", " ".join(node.input))
        stage = f"{found[1]} {int(found[2]) + 1}" if found else stage
        total = sum(alive.values())
        peak, stages[stage] = max(peak, total), max(stages.get(stage, 0), total)
        if stage.startswith("encoder") and node.op_type == "Conv":
            held = sum(count for name, count in alive.items() if name not in (*node.input, *node.output))
        for name in [name for name in alive if last.get(name, place) <= place]:
            del alive[name]
    return {"peak": peak, "held": held, "stages": stages}


def measure(names: Sequence[str], found: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures of two shipped models, a U-Net and a SegNet, of what `bench` found."""
    models: dict[str, Any] = {}
    for name in names:
        card, file = read_json(WEIGHTS / f"{name}.json"), model_file(name)
        speed = [row for row in found["rows"] if row["model"] == name]
        models[card["model"]] = {
            "name": name,
            "title": card["title"],
            "size": card["size"],
            "split": card["scores"]["split"],
            "miou": card["scores"]["miou"],
            "maps": {str(side): follow(file, side) for side in sorted({row["size"] for row in speed})},
            "speed": speed,
        }
    return models


def nearest() -> tuple[str, str]:
    """Returns the shipped U-Net and SegNet, both from scratch, that differ least in mIoU."""
    cards = {name: read_json(WEIGHTS / f"{name}.json") for name in shipped_models()}

    def gap(pair: tuple[str, str]) -> float:
        first, second = (cards[name]["scores"]["miou"] for name in pair)
        return abs(float(first) - float(second))

    kinds = [[name for name, card in cards.items() if card["model"] == kind] for kind in KINDS]
    return min(product(*kinds), key=gap)  # type: ignore[arg-type]


def main() -> None:
    """Measures, writes, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=7, help="how often each contender is measured")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    names = {"width": ("unet_small", "segnet_small"), "accuracy": nearest()}
    sides = {"width": [read_json(WEIGHTS / "unet_small.json")["size"], LARGE], "accuracy": []}
    runtimes = ["onnxruntime", "openvino-bf16"]
    found = {
        kind: bench(Plan(names[kind], sides[kind], [1], runtimes, options.turns)).model_dump(mode="json")
        for kind in names
    }
    pairs = {kind: measure(names[kind], found[kind]) for kind in names}
    for kind, models in pairs.items():
        for model in models.values():
            maps = {side: round(at["peak"] / 1e6, 2) for side, at in model["maps"].items()}
            print(f"equal {kind}: {model['name']}, mIoU {model['miou']:.4f}: MB of maps by side {maps}")
    if options.out is not None:
        write_json(
            options.out,
            {
                "kind": "benchmark",
                "what": "maps alive at once in ONNX Runtime, peak memory and latency of U-Net and SegNet",
                "command": "python benchmarks/indices.py",
                **{key: found["width"][key] for key in ("environment", "versions", "turns", "not_measured")},
                "pairs": pairs,
            },
        )


if __name__ == "__main__":
    main()
