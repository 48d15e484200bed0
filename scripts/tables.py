"""The documents' generated tables: tables.toml says their columns; here are the rows that JSON does not hold as such.

A cell is a format string over a row, `{scores.miou:percent}`; what is missing or null is a dash.
"""

import json
import string
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace as Row
from typing import Any

import numpy as np

from petseg import units
from petseg.data.oxford_pets import ORIGINAL_LOSSES
from petseg.metrics import iou
from petseg.models import folder_name
from petseg.report.study import arm_table
from petseg.schema import ComparisonResult, DataInfo, Findings, read_record

ROOT = Path(__file__).resolve().parents[1]

TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def spread(ratio: Any) -> str:
    """Returns a ratio's median, lowest and highest turn: one decimal from 2 on, two below."""
    digits = 1 if ratio.median >= 2 else 2
    return f"{ratio.median:.{digits}f} ({ratio.low:.{digits}f} to {ratio.high:.{digits}f})"


FORMATS: dict[str, Callable[[Any], str]] = {
    **units.FORMATTERS,
    "percent2": lambda share: f"{100 * share:.2f}",
    "MB1": lambda size: f"{size / 1e6:.1f} MB",
    "MB2": lambda size: f"{size / 1e6:.2f} MB",
    "spread": spread,
    "median_percent": lambda values: f"{units.percent(float(np.median(values)))} %",
    "gain": lambda gain: f"{gain.points:+.1f} ({gain.low:.1f} to {gain.high:.1f})",
    "list": lambda values: ", ".join(map(str, values)),
    "length": lambda values: str(len(values)),
}


class Cells(string.Formatter):
    """Format strings over rows, with the formats above and a dash for what is missing."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Returns what stands at a dotted name of the row; None where a step is missing."""
        value: Any = args[0]
        for name in field_name.split("."):
            value = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
        return value, field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        """Returns the value as the format says."""
        if value is None:
            return units.DASH
        return FORMATS[format_spec](value) if format_spec in FORMATS else str(format(value, format_spec))


def markdown(columns: Mapping[str, str], rows: Iterable[Any], caption: str = "") -> str:
    """Returns a Markdown table, its first column left, the others right, and the caption below it.

    >>> print(markdown({"a": "{name}", "b": "{score:percent}"}, [Row(name="x", score=0.5)], "One row."))
    | a | b |
    | --- | ---: |
    | x | 50.0 |
    <BLANKLINE>
    One row.
    """
    lines = [list(columns), ["---", *["---:"] * (len(columns) - 1)]]
    lines += [[Cells().vformat(cell, [row], {}).replace("|", "\\|") for cell in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + (f"\n\n{caption}" if caption else "")


def read(path: Path) -> Any:
    """Returns JSON with its objects' fields as attributes."""
    return json.loads(path.read_text(encoding="utf-8"), object_hook=lambda fields: Row(**fields))


def named(objects: Any) -> list[Any]:
    """Returns the fields of an object as rows, each with its `key`; a list as it is."""
    return (
        objects if isinstance(objects, list) else [Row(key=key, **vars(value)) for key, value in vars(objects).items()]
    )


def measured(result: Any) -> str:
    """Returns the line below a table of measurements: the command, the machine, the commit."""
    machine = result.environment
    versions = [f"{name} {number}" for name, number in vars(getattr(result, "versions", Row())).items()]
    turns = [f"{result.turns} turns each"] if hasattr(result, "turns") else []
    threads = units.plural(machine.threads, "thread")
    parts = [*turns, machine.processor, threads, machine.precision, f"torch {machine.torch}", *versions]
    return f"`{result.command}`: {', '.join(part for part in parts if part != 'as listed')}, commit `{machine.commit}`."


def table(name: str, root: Path = ROOT) -> str:
    """Returns the table of a marker."""
    if (path := root / "results" / name / "findings.json").is_file():
        return study(path)
    described = TABLES[name]
    source: Any = read(root / "results" / described["source"]) if "source" in described else root
    if "rows" not in described:
        return markdown(described["columns"], *ROWS[name](source))
    rows = source
    for part in described["rows"].split("."):
        rows = getattr(rows, part)
    caption = f"Commit `{source.environment.commit}`." if name == "fuzz" else measured(source)
    return markdown(described["columns"], named(rows), caption)


Rows = tuple[list[Any], str]
"""The rows of a table and its caption."""


def listed(result: Any) -> Rows:
    """Returns a benchmark's rows as they are; itself where it is one."""
    return getattr(result, "rows", [result]), measured(result)


def results(root: Path) -> Rows:
    """Returns a row for each model of the published comparisons, and the losses of the comparison before petseg."""
    rows, captions = [], []
    for path in sorted((root / "results").glob("*/comparison.json")):
        result = read_record(path, ComparisonResult)
        if result.config.models != ("unet", "segnet"):
            continue  # `networks` has a table of its own
        protocol, machine = f"`{result.config.data.oxford_pets.protocol}`", result.environment
        differences = {one.model: one for one in result.differences}
        for model in result.models:
            row = Row(protocol=f"{protocol}, {result.split}", model=model, scores=model.evaluations[result.split])
            row.validation, row.difference = model.evaluations["val"], differences.get(model.name)
            row.at_200 = row.validation.cross_entropy_at.get("200")
            rows.append(row)
        captions.append(
            f"{protocol}: {rows[-1].scores.images:,} images, {result.config.train.epochs} epochs at {result.size} px, "
            f"{units.plural(len(result.seeds), 'seed')}; {machine.device}, {machine.processor}, "
            f"{units.plural(machine.threads, 'thread')}, {machine.precision}, commit `{machine.commit}`. "
            f"Images: {result.data.images}."
        )
    titles = {row.model.name: row.model.title for row in rows}
    for name, loss in ORIGINAL_LOSSES.items():
        rows.append(Row(protocol="`seed`, original", model=Row(title=titles.get(name, name)), at_200=loss))
    return rows, "\n\n".join(captions)


def networks(root: Path) -> Rows:
    """Returns the networks of the recipe `networks`, the best first, with what they cost in ONNX Runtime."""
    result = read_record(root / "results" / "networks" / "comparison.json", ComparisonResult)
    bench: Any = read(root / "results" / "benchmarks" / "networks.json")
    differences = {one.model: one for one in result.differences}
    rows = []
    for model in result.models:
        file = f"{folder_name(model.name)}.onnx"
        times = {(row.runtime, row.threads): row for row in bench.rows if row.model == file}
        row = Row(model=model, scores=model.evaluations[result.split], difference=differences.get(model.name))
        row.low, row.high = row.difference.ends if row.difference else (None, None)
        row.one, row.two = times["onnxruntime", 1], times["onnxruntime", 2]
        rows.append(row)
    machine, count = result.environment, f"{rows[0].scores.images:,} {result.split} images"
    caption = (
        f"`{result.command}`: {count}, {result.config.train.epochs} epochs at {result.size} px, "
        f"{units.plural(len(result.seeds), 'seed')}; {machine.processor}, {machine.precision}, commit "
        f"`{machine.commit}`. Times: {measured(bench)} Images: {result.data.images}."
    )
    return sorted(rows, key=lambda row: -row.scores.miou), caption


def study(path: Path) -> str:
    """Returns every network of a study."""
    findings = read_record(path, Findings)
    table = arm_table(findings)
    columns = {"Network": "{label}", **{head: f"{{cells.{place}}}" for place, head in enumerate(table.heads)}}
    rows = [Row(label=label, cells={str(at): cell.text for at, cell in enumerate(row)}) for label, row in table.rows]
    machines = dict.fromkeys(f"{one.device}, {one.processor}, {one.precision}" for one in findings.machines)
    caption = f"{units.duration(findings.train_seconds)} of training on {'; '.join(machines)}."
    return markdown(columns, rows, f"{caption} Images: {findings.data.images}." if findings.data else caption)


def cards(root: Path) -> list[Any]:
    """Returns the shipped models' cards, the best first, each with the images that it was trained on."""
    found = sorted(map(read, (root / "petseg" / "weights").glob("*.json")), key=lambda card: -card.scores.miou)
    for card in found:
        data = read_record(root / "results" / "models" / card.name / "data.json", DataInfo)
        card.images = f"Images: {data.images}."
        card.sizes = list(dict.fromkeys([*(card.config.train.ramp or []), card.size]))
    return found


def models(root: Path) -> Rows:
    """Returns the shipped models."""
    found = cards(root)
    machines: dict[str, list[str]] = {}
    for card in found:
        machine = card.environment
        device = machine.processor if machine.device == "cpu" else machine.device
        machines.setdefault(f"{device}, {machine.precision}", []).append(f"`{card.name}`")
    trained = "; ".join(f"{', '.join(names)} on {machine}" for machine, names in machines.items())
    return found, f"{found[0].images} Trained: {trained}."


def failures(root: Path) -> Rows:
    """Returns how many test images have a pet IoU below or above some shares, of each shipped model."""
    rows = []
    for card in cards(root):
        stored = json.loads(
            (root / "results" / "models" / card.name / "evaluations" / "test.images.json").read_text(encoding="utf-8")
        )
        confusions = np.array([image[1] for image in stored["images"]]).reshape(-1, 3, 3)
        pet = iou(confusions)[:, 0]
        counts = {"below_50": pet < 0.5, "below_70": pet < 0.7, "above_90": pet > 0.9}
        rows.append(Row(name=card.name, **{name: int(those.sum()) for name, those in counts.items()}))
    return rows, f"Number of the {len(pet):,} test images by their IoU of pet."


def time_to_loss(plain: Any) -> Rows:
    """Returns the time until the validation loss of the U-Net before petseg."""
    folder = ROOT / "results" / "benchmarks"
    speedrun = read_record(folder / "speedrun" / "comparison.json", ComparisonResult)
    speed = read(folder / "train_speed.json")
    runs = [(f"`speedrun`, {model.title}", model.history, model.evaluations["val"]) for model in speedrun.models]
    rows = []
    for title, history, scores in [*runs, ("`default`, U-Net", plain.history, None)]:
        epochs = next((row.epoch for row in history if row.val_loss <= ORIGINAL_LOSSES["unet"]), len(history))
        row = Row(title=title, epochs=epochs, loss=history[epochs - 1].val_loss)
        row.seconds = sum(each.seconds for each in history[:epochs])
        row.at_200 = scores.cross_entropy_at.get("200") if scores else None
        rows.append(row)
    epoch = speed.training_images / float(np.median(speed.loops.tutorial.images_per_second))
    rows += [Row(title="the tutorial's network, not trained", epochs=n, seconds=n * epoch) for n in (1, 30)]
    for row in rows:
        row.times = row.seconds / rows[0].seconds
    plain.command = speedrun.command
    return rows, f"{measured(plain)} Images: {speedrun.data.images}."


def against(row: Any, base: Any) -> Any:
    """Returns how many times as fast a row is as another: median, lowest and highest over turns."""
    ratio = np.divide(base.turn_medians_ms, row.turn_medians_ms)
    return Row(median=float(np.median(ratio)), low=float(ratio.min()), high=float(ratio.max()))


def runtimes(result: Any) -> Rows:
    """Returns `petseg bench` at the most threads and the largest size that it measured."""
    most = max((row.threads, row.size) for row in result.rows)
    rows = sorted((row for row in result.rows if (row.threads, row.size) == most), key=lambda row: row.model)
    bases = {(row.model, row.size): row for row in rows if row.runtime == "onnxruntime"}
    for row in rows:
        row.speed = against(row, bases[row.model, row.size])
    return rows, f"{measured(result)} Processor: {', '.join(result.instructions)}."


def precisions(result: Any) -> Rows:
    """Returns the scores of each model on each split."""
    rows, machines = [], {}
    for model in named(result.models):
        rows += [Row(name=model.key, bytes=model.bytes, scores=scores) for scores in named(model.scores)]
        line = measured(Row(command=result.command, environment=model.environment))
        machines.setdefault(line, []).append(f"`{model.key}`")
    lines = [f"{', '.join(names)}: {line}" for line, names in machines.items()]
    return rows, f"{' '.join(lines)} {cards(ROOT)[0].images}"


def indices(result: Any) -> Rows:
    """Returns U-Net and SegNet at equal width and at equal accuracy, each side in turn."""
    rows = []
    for kind, pair in vars(result.pairs).items():
        unet_sides, segnet_sides = (sorted(map(int, vars(model.maps))) for model in (pair.unet, pair.segnet))
        for sides in zip(unet_sides, segnet_sides, strict=True):
            base = speeds(pair.unet, sides[0])
            for model, side in zip((pair.unet, pair.segnet), sides, strict=True):
                row = Row(kind=kind, name=model.name, side=side, maps=getattr(model.maps, str(side)))
                row.miou = model.miou if side == model.size else None
                row.runtimes = {name: against(one, base[name]) for name, one in speeds(model, side).items()}
                row.peak_mb = speeds(model, side)["onnxruntime"].peak_mb
                rows.append(row)
    return rows, f"{measured(result)} {cards(ROOT)[0].images}"


def speeds(model: Any, side: int) -> dict[str, Any]:
    """Returns runtime -> row of one model at one side."""
    return {row.runtime: row for row in model.speed if row.size == side}


def stages(result: Any) -> Rows:
    """Returns the maps alive in each stage."""
    unet, segnet = (vars(getattr(model.maps, str(model.size)).stages) for model in vars(result.pairs.width).values())
    names = sorted({*unet, *segnet}, key=lambda name: (name != "input", name[0] != "e", name))
    return [Row(stage=name, unet=unet.get(name), segnet=segnet.get(name)) for name in names], ""


def faults(counted: Any) -> Rows:
    """Returns the files of tests of faults and hostile input: how many tests, and how many cases those went through."""
    files: dict[str, list[int]] = {}
    for test, cases in vars(counted.cases).items():
        files.setdefault(test.partition("::")[0], []).append(cases)
    rows = [Row(file=file, tests=len(cases), cases=sum(cases)) for file, cases in files.items()]
    total = sum(row.cases for row in rows)
    return rows, f"{total:,} cases. Python {counted.python}, commit `{counted.commit}`."


def soak(soaked: Any) -> Rows:
    """Returns what long runs hold, and how it grew."""
    rows = [row for row in named(soaked) if hasattr(row, "samples")]
    for row in rows:
        row.last = row.samples[-1]
    return rows, f"Commit `{soaked.environment.commit}`."


def mask_options(result: Any) -> Rows:
    """Returns what mirrored photos and larger copies gain and cost."""
    rows = [Row(model=model, **vars(row)) for model, found in vars(result.models).items() for row in found]
    plain = {row.model: row.miou for row in rows if not row.option}
    for row in rows:
        row.gain = 100 * (row.miou - plain[row.model])
        row.option = f"`{row.option}`" if row.option else "alone"
    return rows, f"{result.images} validation images; time on one thread of {processors(result)}."


def zoom(result: Any) -> Rows:
    """Returns what a second, closer look changes."""
    rows = [Row(model=model, **vars(row)) for model, found in vars(result.models).items() for row in found]
    images = f"{result.images} validation images ({result.data})"
    return rows, f"{images}; time on one thread of {processors(result)}."


def processors(result: Any) -> str:
    """Returns the processors on which the models were measured."""
    return ", ".join(sorted({environment.processor for environment in vars(result.environments).values()}))


def cleaning(result: Any) -> Rows:
    """Returns masks as the networks give them, and clean."""
    rows = []
    for model, found in vars(result.models).items():
        rows += [
            Row(model=model, what="raw" if row is found[0] else "clean", **vars(row))
            for row in found
            if row is found[0] or row.chosen
        ]
    return rows, f"{result.images} validation images."


def presence(result: Any) -> Rows:
    """Returns pets missed and parts without a pet recognised, of each model and split."""
    models = vars(result.models).items()
    pairs = [(name, model, split, of) for name, model in models for split, of in vars(model.splits).items()]
    rows = [Row(model=name, split=split, threshold=model.threshold, **vars(of)) for name, model, split, of in pairs]
    return rows, "With the closer look at small pets; coefficients and threshold are from validation, from one look."


def pet_free_photos(result: Any) -> Rows:
    """Returns photos that packages ship, none with a pet, and the presence that each model sees."""
    models = vars(result.models)
    first = vars(next(iter(models.values())).photos)
    rows = []
    for name, photo in first.items():
        seen = [(model, vars(found.photos)[name].presence, found.threshold) for model, found in models.items()]
        shown = ", ".join(f"{100 * chance:.0f} %{'' if chance < limit else ' (a pet)'}" for _, chance, limit in seen)
        rows.append(Row(name=name, licence=photo.licence, presence=shown))
    return rows, f"Presence by {', '.join(f'`{model}`' for model in models)}."


BILLION, MEGABYTE, CORES = 1e9, 1e6, 16  # photos, bytes of one, cores of a machine


def billion(result: Any) -> Rows:
    """Returns what a billion photos would take at the steady rate of Ray's workers: hours, and bits to be moved."""
    rate = result.steady_photos_per_second.ray / result.environment.threads
    rows = []
    for machines in (1, 10, 100, 1000):
        photos = rate * CORES * machines
        row = Row(machines=machines, photos=photos, hours=BILLION / photos / 3600)
        row.read, row.written = 8 * photos * MEGABYTE / 1e9, photos * result.mask_bytes
        rows.append(row)
    manifest = BILLION * result.manifest_bytes_a_photo / 1e9
    rates = f"{rate:.1f} photos of {result.photo_bytes / 1000:.0f} kB a second and core by `{result.model}`"
    return rows, f"{rates}; the manifest has {manifest:.0f} GB. {measured(result)}"


def scale(root: Path) -> Rows:
    """Returns what more training images would take at measured rates: a cache at 128 px, an epoch of `default`."""
    large, loops, prepared = (
        read(root / "results" / "benchmarks" / f"{name}.json")
        for name in ("large_data", "train_speed_wide", "prepare_speed")
    )
    card = read(root / "results" / "gpu" / "measured.json")
    size = 128
    image_bytes = large.bytes / large.images * size**2 / large.size**2
    cores = float(np.median(loops.loops.default.images_per_second))
    preparing = float(np.median(getattr(prepared.images_per_second, "official size, petseg")))
    gpu = getattr(card, "unet 128 px, 16 channels, batch 16").petseg
    rows = [
        Row(
            images=images,
            gigabytes=images * image_bytes / 1e9,
            prepare=images / preparing,
            cores=images / cores,
            gpu=images / gpu,
        )
        for images in (3312, 33_120, 331_200, 3_312_000)
    ]
    rates = (
        f"Measured, images a second: {preparing:,.0f} prepared (2 cores, {prepared.environment.processor}), "
        f"{cores:,.0f} trained on 2 cores ({loops.environment.processor}), {gpu:,.0f} on one {card.environment.device}"
    )
    return rows, f"{rates}; {image_bytes / 1000:.1f} kB an image in the cache. The rest is reckoned."


LINKS = {"nvlink": 450.0, "pcie": 32.0, "fast": 25 / 8, "slow": 10 / 8}  # GB a second in each direction


def links(root: Path) -> Rows:
    """Returns images a second of one to eight cards if each step waits for its gradients to go round the ring."""
    profile = read(root / "results" / "gpu" / "profile.json")
    network = profile.networks.unet
    step, gradient = network.milliseconds.whole_step.step / 1000, 4 * network.parameters / 1e9
    rows = []
    for cards in (1, 2, 4, 8):
        moved = 2 * (cards - 1) / cards * gradient  # each card's part of a ring's all-reduce
        rates = {name: cards * network.batch / (step + moved / rate) for name, rate in LINKS.items()}
        rows.append(Row(cards=cards, moved=moved * 1e9, **rates))
    measured_one = f"a step of {network.batch} images took {1000 * step:.1f} ms on one {profile.environment.device}"
    return rows, f"Measured: {measured_one}, U-Net of 32 channels at {network.size} px. The rest is reckoned."


def cluster_predict(result: Any) -> Rows:
    """Returns the rate of a folder, and of the same photos with a manifest, by Ray and without."""
    titles = {"plain": "of a folder", "here": "with a manifest, without Ray", "ray": "`--ray`, on the same cores"}
    rows = [Row(title=title, rate=getattr(result.photos_per_second, name)) for name, title in titles.items()]
    for row, name in zip(rows[1:], ("here", "ray"), strict=True):
        row.ratio, row.steady = getattr(result.of_plain, name), getattr(result.steady_of_plain, name)
    started = f"Ray's workers took {units.duration(result.start_seconds)} to start."
    return rows, f"{result.photos:,} photos to masks by `{result.model}`. {started} {measured(result)}"


def ablation(result: Any) -> Rows:
    """Returns mIoU with all camera faults in training, then what each one, and all of them, add to it."""
    rows = []
    left_out = {"all": "nothing", "none": "all of them"}
    for found in result.rows:
        looks = {name: look for name, look in vars(found).items() if isinstance(look, Row)}
        whole = found.arm == "all"
        cells = {
            name: units.percent(look.miou) if whole else FORMATS["gain"](look.gain) for name, look in looks.items()
        }
        cells["part"] = units.percent(found.pet_in_free_parts)
        rows.append(Row(title=left_out.get(found.arm, found.title), **cells))
    return rows, f"{measured(result)} Images: {result.images}."


def corrupted(result: Any) -> Rows:
    """Returns the shipped models' mIoU under each corruption."""
    images = f"{result.images:,} {result.split} images, every third; intervals over images, one seed."
    return result.rows, f"mIoU in percent. {measured(result)} {images} {cards(ROOT)[0].images}"


ROWS: dict[str, Callable[[Any], Rows]] = {
    "robustness": corrupted,
    "ablation": ablation,
    "mask-options": mask_options,
    "zoom": zoom,
    "billion": billion,
    "scale": scale,
    "links": links,
    "cluster-predict": cluster_predict,
    "ddp-speed": listed,
    "ray-study": listed,
    "beside": listed,
    "cleaning": cleaning,
    "presence": presence,
    "pet-free-photos": pet_free_photos,
    "results": results,
    "networks": networks,
    "models": models,
    "recipes": models,
    "failures": failures,
    "time-to-loss": time_to_loss,
    "inference": runtimes,
    "default-speed": listed,
    "inference-accuracy": precisions,
    "indices-figures": indices,
    "indices-stages": stages,
    "faults": faults,
    "soak": soak,
}
