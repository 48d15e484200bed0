"""Processor time of one image: every shipped model at its own size, the default one in int8 too.

    python benchmarks/default_speed.py --int8 unet_lite2_int8.onnx --out results/benchmarks/default_speed.json

One thread. Unlike the seconds that pass, which `petseg bench` measures, processor time hardly depends on what else the
machine does. `petseg export --model unet_lite2 --int8 --out unet_lite2_int8.onnx` writes the int8 file.
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
from measuring import take_turns

from petseg.environment import environment
from petseg.predict.runtimes import OnnxRuntime, OpenVino
from petseg.predict.segmenter import Segmenter
from petseg.shipped import DEFAULT, KINDS, model_file, shipped_model
from petseg.storage import write_json

IMAGES = 3
"""Computed in a turn, after one that is not counted."""


def milliseconds(network: OnnxRuntime | OpenVino, image: np.ndarray) -> float:
    """Returns the processor time of an image in ms, of all threads of this process."""
    network(image)
    started = time.process_time()
    for _ in range(IMAGES):
        network(image)
    return 1000 * (time.process_time() - started) / IMAGES


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--int8", type=Path, required=True, help="the default model in int8")
    parser.add_argument("--turns", type=int, default=7, help="how often each is measured")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    contenders = {}
    for name in (DEFAULT, *map(shipped_model, KINDS), *(f"{kind}_small" for kind in KINDS)):
        files = {"": model_file(name)} | ({"int8": options.int8.read_bytes()} if name == DEFAULT else {})
        size = Segmenter(name, threads=1).size
        image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
        for kind, file in files.items():
            networks = {f"ONNX Runtime, {kind or 'fp32'}": OnnxRuntime(file, 1)}
            for precision in ("int8",) if kind else ("fp32", "bf16"):
                hint = "bf16" if precision == "bf16" else "f32"
                networks[f"OpenVINO, {precision}"] = OpenVino(file, 1, precision=hint)
            for title, network in networks.items():
                contenders[name, size, title] = partial(milliseconds, network, image)
    found = take_turns(contenders, options.turns)
    rows = [
        {
            "model": name,
            "size": size,
            "title": title,
            "cpu_ms": statistics.median(taken),
            "cpu_low_ms": min(taken),
            "cpu_high_ms": max(taken),
        }
        for (name, size, title), taken in found.items()
    ]
    for row in rows:
        print(f"{row['model']}, {row['size']} px, {row['title']}: {row['cpu_ms']:.1f} ms")
    if options.out is not None:
        result = {
            "kind": "benchmark",
            "what": "processor time of one image on one thread",
            "command": "python benchmarks/default_speed.py",
            "environment": environment(device="cpu", precision="as listed", threads=1),
            "turns": options.turns,
            "rows": rows,
        }
        write_json(options.out, result)


if __name__ == "__main__":
    main()
