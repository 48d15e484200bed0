"""A whole study in a second: the shipped recipe's runs, with counts that are drawn and never published."""

from pathlib import Path

import numpy as np

from petseg import schema, storage
from petseg.data.dataset import classes_from
from petseg.data.oxford_pets import NAME
from petseg.evaluation.corruptions import KINDS, corruptions
from petseg.evaluation.evaluate import Evaluation, ImageScores, summarise, write_evaluation
from petseg.evaluation.robustness import Robustness
from petseg.experiments.study.plan import MatchQuestion, plan
from petseg.experiments.study.recipe import Recheck, load_study
from petseg.experiments.study.results import DIVERGED, MANIFEST, ROBUSTNESS, StudyManifest, read_manifest
from petseg.schema import write_record
from petseg.training import runs

BREEDS = ("Abyssinian", "Bombay", "beagle", "pug")
MATCHES = {
    "main:segnet/parameters": {"convs": [2, 2, 4, 3, 3]},
    "main:segnet/latency": {"base_channels": 17},
    "depth:unet/deeper": {"base_channels": 8},
    "depth:segnet/deeper": {"base_channels": 8},
    "main:segnet/stages": {"base_channels": 23},
    "depth:unet/shallower": {"base_channels": 32},
    "depth:segnet/shallower": {"base_channels": 24},
}
FIRST_EDITION = Path(__file__).parents[1] / "results" / "study" / "recipe.toml"
ROBUST = Recheck(
    experiment="main", expected=(*(f"unet > segnet in {kind}" for kind in KINDS), "unet = segnet in noise")
)
BEST = {"unet": (4e-3, 0.05), "segnet": (1e-3, 0.3)}  # rate and warm-up
TUNED = tuple(
    schema.TunedCell(model=model, fields=cell, miou=0.6 if tuple(cell.values())[::-1] == BEST[model] else 0.4)
    for model, cell in load_study(str(FIRST_EDITION)).tuning.all_cells()
)
CLASSES = classes_from(["pet", "background", "border"])


def names_of(split, count, fold=0):
    first = (1 if split == "val" else 301) + 1000 * fold
    return tuple(sorted(f"{BREEDS[place % len(BREEDS)]}_{first + place // len(BREEDS)}" for place in range(count)))


def truths(split, count):
    rng = np.random.default_rng(len(split))
    pet = rng.integers(200, 6000, count)
    return np.stack([pet, rng.integers(3000, 9000, count), pet // 4 + 50], axis=1)


def drawn_counts(true, quality, rng):
    easy = np.clip(quality + np.array([0.0, 0.05, -0.15]) + rng.normal(0, 0.03, true.shape), 0.05, 0.99)
    shares = (1 - easy[..., None]) / 2 * (1 - np.eye(3)) + easy[..., None] * np.eye(3)
    return rng.multinomial(true, shares)


def quality_of(run):
    model, train = run.config.model, run.config.train
    found = 0.86 if model.name == "unet" else 0.82
    found += 0.02 * np.log2(model.options.get("base_channels", 16) / 16)
    found -= 0.05 if model.options.get("skips") is False else 0
    found += 0.02 * np.log2(run.config.data.fraction) - (0.03 if model.options.get("batch_norm") is False else 0)
    best, _ = BEST[model.name]
    found -= (0.01 if model.name == "unet" else 0.03) * abs(np.log2(train.learning_rate / best))
    return float(found - (0 if train.augment.flip else 0.01))


def make_study(folder, *, val=24, test=48, shapes=MATCHES, leave_out=lambda run: False, changed=lambda study: study):
    study = changed(load_study(str(FIRST_EDITION)).model_copy(update={"robustness": ROBUST}))
    classes = tuple(schema.ClassInfo(name=entry.name, colour=entry.colour, role=entry.role) for entry in CLASSES)
    named = {"name": NAME, "provenance": "drawn by a test", "official": False, "key": "0"}  # its groups are breeds
    seen = {"classes": classes, "scored_classes": classes, "largest_side": 500}
    data = schema.DataInfo(**named, **seen, splits={"train": 3312, "val": val, "test": test})
    engine = schema.LatencyEnvironment(engine="ONNX Runtime, one thread", processor="made", commit="abc")
    manifest = StudyManifest(petseg="0.2.0", recipe=study, data=data, latency_environment=engine, tuned=TUNED)
    manifest = manifest.model_copy(update={"matches": matches_of(manifest, shapes)})
    planned = plan(manifest)
    for number, run in enumerate(planned):
        if not leave_out(run):
            make_run(run.place(folder), run, data, np.random.default_rng(number))
    costs = {run.cost: made_cost(run.config.model, run.config.data.size) for run in planned}
    entries = tuple(run.entry(folder) for run in planned)
    write_record(folder / MANIFEST, manifest.model_copy(update={"costs": costs, "runs": entries}))
    return folder


def matches_of(manifest, shapes):
    """Returns matches from EXPERIMENT:ARM -> options."""
    by_name = {experiment.name: experiment for experiment in manifest.recipe.experiments}
    found = {}
    for name, options in shapes.items():
        experiment, _, arm = name.partition(":")
        key = MatchQuestion.of(manifest, by_name[experiment], arm).key
        found[key] = schema.CostMatch(options=options, quantity="parameters", wanted=100, reached=101)
    return found


def diverge(folder, *rows):
    manifest, entries = read_manifest(folder), []
    for entry in manifest.runs:
        lost = any((row.experiment, row.arm, row.seed) in rows for row in entry.rows)
        if lost:
            storage.write_json(folder / "runs" / entry.name / DIVERGED, {"reason": "The loss became NaN or infinite."})
        entries.append(entry.model_copy(update={"state": "diverged"}) if lost else entry)
    write_record(folder / MANIFEST, manifest.model_copy(update={"runs": tuple(entries)}))
    return folder


def made_cost(model, size):
    width = model.options.get("base_channels", 16) / 16
    heavy = 1.2 if model.name == "unet" else 1.0
    latency = heavy * width**1.6 * size / 16
    squared = {"parameters": 1.9e6, "macs": 4e8}
    linear = {"activation_bytes": 5e6, "skip_bytes": 2e6, "training_activation_bytes_per_image": 14e6}
    costs = {name: int(value * heavy * width**2) for name, value in squared.items()}
    costs |= {name: int(value * heavy * width) for name, value in linear.items()}
    times = schema.LatencyInfo(p50=latency, p95=1.2 * latency, repeats=60, size=size)
    return schema.CostInfo(**costs, latency_ms=times)


def make_run(place, run, data, rng):
    quality = quality_of(run) + rng.normal(0, 0.004)
    write_record(place / "data.json", data)
    storage.write_json(place / "config.json", run.config.model_dump(mode="json"))
    machine = schema.EnvironmentInfo(
        petseg="0.2.0", commit="abc", device="cpu", processor="made", threads=2, precision="bf16", torch="2.13.0"
    )
    write_record(place / "environment.json", machine)
    rows = []
    for epoch in range(1, run.config.train.epochs + 1):
        left = float(np.exp(-4 * epoch / run.config.train.epochs))
        losses = {"train_loss": 0.25 + 0.7 * left, "val_loss": 0.3 + 0.7 * left + rng.normal(0, 0.01)}
        scores = {"val_miou": quality - 0.1 - 0.4 * left + rng.normal(0, 0.01), "val_accuracy": 0.9}
        times = {"seconds": 20.0 + epoch % 3, "train_seconds": 18.0}
        rows.append(schema.EpochRow(epoch=epoch, learning_rate=0.001, **losses, **scores, **times))
    runs.write_metrics(place, rows)
    for split in run.splits:
        if split == ROBUSTNESS:
            make_robustness(place / "evaluations", quality, data.splits["test"], rng)
            continue
        count = data.splits[split]
        outlines = np.clip(rng.normal(quality - 0.3, 0.1, (count, 3)), 0, 1)
        images = ImageScores(
            names_of(split, count, run.config.data.fold), drawn_counts(truths(split, count), quality, rng), outlines
        )
        groups = [name.rpartition("_")[0] for name in images.ids]
        rest = {"split": split, "data": "0", "cross_entropy": float(1 - quality), "cross_entropy_frame": "96 px"}
        scores = summarise(images, CLASSES, groups, **rest)
        write_evaluation(Evaluation(scores, images), place / "evaluations" / f"{split}.json")


def make_robustness(place, quality, test, rng):
    ids = names_of("test", test)[::3]
    confusions = {}
    for corruption in corruptions():
        counts = drawn_counts(truths("test", test)[::3], quality - 0.06 * corruption.severity, rng)
        confusions[corruption.name] = counts.reshape(len(ids), -1).tolist()
    record = Robustness(weights="best.safetensors", epoch=1, data="0", ids=ids, confusions=confusions)
    write_record(place / "robustness.json", record)
