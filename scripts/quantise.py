"""Quantises shipped models to int8 and scores float32, int8 and OpenVINO's bf16 and int8 side by side.

python scripts/quantise.py --out results/benchmarks/int8.json               # validation
python scripts/quantise.py --test --out results/benchmarks/int8.json        # validation and test

The scales come from training images; `petseg export --int8` writes such a file.
Models that are not named keep what --out holds of them.
Models of protocol `official` alone: the others have no test split.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from petseg import environment as machine
from petseg import storage
from petseg.cli.data import data_folder, prepare_data
from petseg.config import RunConfig
from petseg.errors import PetsegError
from petseg.export.quantise import Network, accuracy, export_int8
from petseg.predict.runtimes import OnnxRuntime, OpenVino
from petseg.predict.segmenter import Segmenter
from petseg.shipped import model_file, shipped_models

LARGEST_LOSS = 0.005
"""Of mIoU below float32."""

KEPT = {"miou", "iou", "pixel_accuracy", "mean_boundary_f", "images", "frame"}
"""Fields of the scores that are published."""


def measure(name: str, data: Path, splits: list[str]) -> dict[str, Any]:
    """Returns the scores of a shipped model in each precision, and the size of its int8 file."""
    segmenter = Segmenter(name, threads=1, runtime="onnxruntime")
    config = RunConfig.model_validate(segmenter.card["config"])
    prepared = prepare_data(data, config.data)
    file = model_file(name)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "int8.onnx"
        export_int8(segmenter, written, prepared)
        smaller = written.read_bytes()
    contenders: dict[str, Network] = {
        "fp32": OnnxRuntime(file),
        "int8": OnnxRuntime(smaller),
        "openvino_bf16": OpenVino(file, precision="bf16"),
        "openvino_int8": OpenVino(smaller, precision="f32"),
    }
    scores: dict[str, dict[str, Any]] = {}
    for split in splits:
        scores[split] = {}
        for precision, network in contenders.items():
            found = accuracy(network, prepared, config, split).scores
            scores[split][precision] = found.model_dump(include=KEPT)
            print(f"{name} {split} {precision}: mIoU {found.miou:.4f}", flush=True)
        scores[split]["int8_loss"] = scores[split]["fp32"]["miou"] - scores[split]["int8"]["miou"]
    return {
        "size": config.data.size,
        "bytes": {"fp16": len(file), "int8": len(smaller)},
        "scores": scores,
        "environment": machine.environment(device="cpu", precision="as listed", threads=1),
    }


def main() -> None:
    """Quantises, scores, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", help="a shipped model; default: all")
    parser.add_argument("--data", type=Path, help="the data set; default: PETSEG_DATA, then what was downloaded")
    parser.add_argument("--test", action="store_true", help="score the test split too")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    data = data_folder(options.data)
    splits = ["val", "test"] if options.test else ["val"]
    kept = storage.read_json(options.out)["models"] if options.out is not None and options.out.is_file() else {}
    found = {name: measure(name, data, splits) for name in options.model or shipped_models()}
    for name, model in found.items():
        for split in splits:
            loss = model["scores"][split]["int8_loss"]
            verdict = "within" if loss <= LARGEST_LOSS else "MORE THAN"
            print(f"{name} {split}: int8 loses {loss:+.4f}, {verdict} {LARGEST_LOSS}")
    if options.out is not None:
        storage.write_json(
            options.out,
            {
                "kind": "benchmark",
                "what": "mIoU of the shipped models in float32, int8 and bf16, and the bytes of their files",
                "command": f"python scripts/quantise.py{' --test' if options.test else ''}",
                "environment": machine.environment(device="cpu", precision="as listed", threads=1),
                "limit": LARGEST_LOSS,
                "models": dict(sorted((kept | found).items())),
            },
        )


if __name__ == "__main__":
    try:
        main()
    except PetsegError as error:
        sys.exit(str(error))
