"""Wall time of a study of twelve small runs: tasks of a Ray cluster on this machine against processes, two at a time.

    python benchmarks/ray_study.py                                          # seconds of each, and the ratio
    python benchmarks/ray_study.py --out results/benchmarks/ray_study.json

Needs the extra `cluster`. The cluster is started before; joining it counts, and so does sending it the data. Latencies
and costs are counted once, before. Each turn is a new study folder.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measuring import arguments, data_folder, finish, main, ratio, take_turns

from petseg.data.cache import prepare
from petseg.data.geometry import Geometry
from petseg.data.sources import open_dataset
from petseg.experiments.executor import Executor, LocalProcesses
from petseg.experiments.ray_tasks import RayTasks
from petseg.experiments.study.recipe import Study, load_study
from petseg.experiments.study.results import MANIFEST, StudyManifest
from petseg.experiments.study.run import Making, run_study
from petseg.schema import write_record
from petseg.training.device import choose_hardware

MOST = 1.05
AT_ONCE = 2
RECIPE = """
title = "Twelve small runs"
model.base_channels = 8
data = {{ size = {size}, fraction = {fraction} }}
train = {{ epochs = 2, precision = "fp32" }}
[[experiments]]
name = "seeds"
title = "Seeds"
expected = ["unet = segnet"]
seeds = [0, 1, 2, 3, 4, 5]
variants.plain.title = "plain"
"""


def whole(study: Study, known: StudyManifest, folder: Path, start: Callable[[], Executor]) -> float:
    """Returns the seconds that a study takes in a new folder with an executor that is started for it."""
    prepared = {study.data.size: prepare(open_dataset(folder, study.data), Geometry.of(study.data))}
    with tempfile.TemporaryDirectory() as scratch:
        write_record(Path(scratch) / MANIFEST, known)
        started = time.perf_counter()
        manifest = run_study(study, Path(scratch), prepared, Making(folder, "cpu", start()))
        seconds = time.perf_counter() - started
    assert [run.state for run in manifest.runs] == ["finished"] * 12
    return seconds


def run() -> None:
    """Measures, writes, prints."""
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--fraction", type=float, default=0.25, help="share of the training images")
    options = parser.parse_args()
    folder = data_folder(options.data)
    torch.set_num_threads(AT_ONCE)
    root = Path(__file__).resolve().parents[1]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, sys.path)])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as scratch:
        recipe = Path(scratch) / "twelve.toml"
        recipe.write_text(RECIPE.format(size=options.size, fraction=options.fraction), encoding="utf-8")
        study = load_study(str(recipe))
        prepared = {study.data.size: prepare(open_dataset(folder, study.data), Geometry.of(study.data))}
        known = run_study(study, Path(scratch) / "first", prepared, Making(folder, "cpu", LocalProcesses(AT_ONCE)))
    known = known.model_copy(update={"runs": ()})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": AT_ONCE, "include_dashboard": False})
    try:
        starts = {"Ray": partial(RayTasks, cluster.address), "processes": partial(LocalProcesses, AT_ONCE)}
        contenders = {name: partial(whole, study, known, folder, start) for name, start in starts.items()}
        found = take_turns(contenders, options.turns)
    finally:
        cluster.shutdown()
    import ray

    result = {
        "kind": "benchmark",
        "what": "wall seconds of a study of twelve small runs, Ray over local processes, two at a time",
        "command": "python benchmarks/ray_study.py",
        "environment": choose_hardware("fp32", "cpu").environment().model_dump() | {"threads": AT_ONCE},
        "ray": ray.__version__,
        "turns": options.turns,
        "side": options.size,
        "fraction": options.fraction,
        "most": MOST,
        "seconds": found,
        "ratio": ratio(found["Ray"], found["processes"]),
    }
    finish(options.out, result, f"Ray takes {{ratio:.2f}} times as long; at most {MOST} is wanted")


if __name__ == "__main__":
    main(run)
