"""What SegNet's indices save: maps alive at once, peak memory and latency beside U-Net's, in ONNX Runtime on a CPU.

    python benchmarks/indices.py --out results/benchmarks/indices.json

Two pairs of published models: equal width, the comparison `official`; equal accuracy, the published comparison whose
models differ least in mIoU. Networks are built from the published configs; memory and time do not depend on weights,
which are drawn at random. Maps are followed through ONNX Runtime's own order of steps, which its profile tells.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from petseg.bench import bench
from petseg.config import ModelConfig
from petseg.convert import drawn_pictures
from petseg.errors import PetsegError
from petseg.export import export_model
from petseg.models import build_model, normalise, to_unit_range
from petseg.runs import read_json, write_json

RESULTS = Path(__file__).parent.parent / "results"
BYTES = {"float": 4, "int64": 8, "uint8": 1, "bool": 1}
LARGE = 512
"""Side in pixels at which maps, and not weights, take most of the memory."""


def follow(file: bytes, size: int) -> dict[str, Any]:
    """Returns how many bytes of maps are alive, as ONNX Runtime computes one picture on one thread.

    `peak` is the most at once; `held` what waits for the decoder while the deepest stage is computed; `stages` the
    most in each stage, in order. Steps that could write over their input are counted as if they did not.
    """
    with tempfile.TemporaryDirectory() as folder:
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


def exported(config: dict[str, Any], classes: list[str], size: int, out: Path) -> None:
    """Writes a network of random weights, whose batch normalisation has seen drawn pets."""
    pictures = normalise(to_unit_range(torch.from_numpy(drawn_pictures(size))))
    for seed in range(5):
        torch.manual_seed(seed)
        network = build_model(ModelConfig(**config), len(classes))
        with torch.no_grad():
            for _ in range(20):
                network(pictures)
        description = {"classes": classes, "size": size, "config": {"model": config}}
        try:
            export_model(network.eval(), description, out, fp16=False)
            return
        except PetsegError:  # untrained, it may stand so near the edge between classes that rounding decides
            if seed == 4:
                raise


def measure(comparison: Path, turns: int) -> dict[str, Any]:
    """Returns the figures of the two models of a published comparison."""
    published = read_json(comparison)
    size, classes = published["size"], published["classes"]
    models: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for model in published["models"]:
            name = model["name"]
            config = read_json(comparison.parent / "runs" / name / "config.json")["model"]
            files[name] = Path(folder) / f"{name}.onnx"
            scores = model["evaluations"][published["split"]]
            models[name] = {"title": model["title"], "miou": scores["miou"], "parameters": model["cost"]["parameters"]}
            exported(config, classes, size, files[name])
        sides = [size, LARGE] if all(free(file) for file in files.values()) else [size]
        for name, file in files.items():
            models[name]["maps"] = {str(side): follow(file.read_bytes(), side) for side in sides}
        paths = {str(path): name for name, path in files.items()}
        runtimes = ["onnxruntime", "openvino-bf16"]
        found = bench(list(paths), sides, [1], runtimes, turns=turns)
        for row in found["rows"]:
            models[paths[row.pop("model")]].setdefault("speed", []).append(row)
    return {
        "comparison": comparison.parent.relative_to(RESULTS).as_posix(),
        "size": size,
        "split": published["split"],
        "protocol": published["protocol"],
        "models": models,
        "not_measured": found["not_measured"],
        "environment": found["environment"],
        "versions": found["versions"],
    }


def free(file: Path) -> bool:
    """Returns whether a file takes pictures of any size, and not of the size trained at alone."""
    return not onnx.load(file).graph.input[0].type.tensor_type.shape.dim[1].HasField("dim_value")


def nearest(comparisons: list[Path]) -> Path:
    """Returns the comparison whose two models differ least in mIoU."""

    def gap(path: Path) -> float:
        published = read_json(path)
        first, second = (model["evaluations"][published["split"]]["miou"] for model in published["models"])
        return abs(float(first) - float(second))

    return min(comparisons, key=gap)


def main() -> None:
    """Measures, writes, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=7, help="how often each contender is measured")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    comparisons = sorted(RESULTS.rglob("comparison.json"))
    pairs = {
        "width": measure(RESULTS / "official" / "comparison.json", options.turns),
        "accuracy": measure(nearest(comparisons), options.turns),
    }
    for kind, pair in pairs.items():
        for model in pair["models"].values():
            maps = {side: round(found["peak"] / 1e6, 2) for side, found in model["maps"].items()}
            print(f"equal {kind}: {model['title']}, mIoU {model['miou']:.4f}: MB of maps by side {maps}")
    environment = pairs["width"].pop("environment")
    versions = pairs["width"].pop("versions")
    del pairs["accuracy"]["environment"], pairs["accuracy"]["versions"]
    if options.out is not None:
        write_json(
            options.out,
            {
                "kind": "benchmark",
                "what": "maps alive at once in ONNX Runtime, peak memory and latency of U-Net and SegNet",
                "command": "python benchmarks/indices.py",
                "environment": environment,
                "versions": versions,
                "turns": options.turns,
                "pairs": pairs,
            },
        )


if __name__ == "__main__":
    main()
