"""Peak resident memory of one epoch of `petseg train`, beyond what importing torch takes, and its seconds.

    python benchmarks/train_memory.py                                          # megabytes for each model
    python benchmarks/train_memory.py --out results/benchmarks/train_memory.json

Each model trains in a process of its own: training, validation and checkpoint. The prepared images are mapped into
memory and counted.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import arguments, data_folder, main, prepared

CASES = {
    "unet": ("U-Net, 16 channels", []),
    "segnet": ("SegNet, 16 channels", []),
    "unet32": ("U-Net, 32 channels", ["base_channels=32"]),
    "unet32-blocks": (
        "U-Net, 32 channels, `checkpoint_activations`",
        ["base_channels=32", "train.checkpoint_activations=true"],
    ),
}
LIMIT_MB = 1500


def peak_mb() -> float:
    """Returns the process's largest resident memory so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def one(case: str, folder: Path) -> None:
    """Trains one epoch of the default recipe in this process and prints its peak as JSON."""
    import torch  # noqa: F401 - the baseline

    before = peak_mb()
    from petseg.config import load_recipe
    from petseg.memory import keep_freed_memory
    from petseg.training.device import choose_hardware
    from petseg.training.loop import Execution, train
    from petseg.training.runs import read_metrics

    config = load_recipe("default", ["epochs=1", *CASES[case][1]]).for_model("segnet" if case == "segnet" else "unet")
    hardware = choose_hardware()
    keep_freed_memory()  # as the commands do
    with tempfile.TemporaryDirectory() as scratch:
        train(config, prepared(folder, config), Path(scratch) / "run", Execution(hardware=hardware))
        seconds = read_metrics(Path(scratch) / "run")[-1].train_seconds
    found = {"peak_mb": peak_mb() - before, "torch_mb": before, "seconds": seconds}
    print(json.dumps(found | {"environment": hardware.environment().model_dump()}))


def run() -> None:
    """Measures, writes, prints."""
    parser = arguments(__doc__)
    parser.add_argument("--one", choices=CASES, help="measure this case in this process")
    options = parser.parse_args()
    folder = data_folder(options.data)
    if options.one:
        one(options.one, folder)
        return
    cases = {}
    for case, (title, _) in CASES.items():
        command = [sys.executable, __file__, "--one", case, "--data", str(folder)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        environment = found.pop("environment")
        cases[case] = {"title": title} | {name: round(value) for name, value in found.items()}
        print(f"{title:<48} {cases[case]['peak_mb']} MB beyond torch's own {cases[case]['torch_mb']} MB")
    if options.out is not None:
        from petseg.storage import write_json

        write_json(
            options.out,
            {
                "kind": "benchmark",
                "what": "peak resident memory of one training epoch at 128 px beyond importing torch, and its seconds",
                "command": "python benchmarks/train_memory.py",
                "environment": environment,
                "limit_mb": LIMIT_MB,
                "cases": cases,
            },
        )


if __name__ == "__main__":
    main(run)
