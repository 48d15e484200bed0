"""The parts of scripts/gpu.sh: everything that one card does for petseg in ten minutes.

    python scripts/gpu.py pack   --data DATA --pack pets.tar    # trainval's images and trimaps, small enough to carry
    python scripts/gpu.py unpack --data DATA --pack pets.tar
    python scripts/gpu.py warm   NAME ...                       # compiles and measures, so that `train` need not
    python scripts/gpu.py train  NAME --seconds 150 ...         # default, unet or segnet, with as many epochs as fit
    python scripts/gpu.py keep   NAME ...                       # weights and scores to --out; `train` ends with it
    python scripts/gpu.py speed  ...                            # loops side by side, speedrun, share of the peak
    python scripts/gpu.py ablate --seconds 60 ...               # one kind of augmentation left out at a time

Each part writes what it has as it goes, and needs nothing of the others but `train unet` the default model.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from petseg import runs
from petseg.config import RunConfig, load_recipe, put_field, validated
from petseg.data import camera
from petseg.data.cache import Prepared, prepare
from petseg.data.oxford_pets import get_task, read_contents
from petseg.evaluate import evaluate
from petseg.models import build_model, normalise
from petseg.train import (
    BEST,
    Hardware,
    Pictures,
    augmented,
    choose_hardware,
    compiled,
    environment,
    load_splits,
    load_teacher,
    load_weights,
    make_optimiser,
    read_tensors,
    train,
    train_step,
    validate,
)

QUALITY = 80
"""Of the packed WebP images: 3,680 of them, 288 px on the longer side, take 40 MB."""

SAFETY = 0.92
"""Share of the seconds left that the planned epochs may take."""

FP16_FROM = 40_000
"""Values from which a tensor is kept in fp16; `petseg.export` says why small ones are not."""

LOOPS = ((128, 16, 16), (128, 32, 64), (256, 32, 64), (256, 64, 32))
"""Sides in pixels, base channels and batches of the loops that `speed` compares."""

MEASURED = "measured.json"
"""What `speed` and `ablate` write."""

STRONG = {
    **{"scale": 0.5, "rotation": 20.0, "shift": 0.12, "colour": 0.4, "aspect": 0.2},
    **{"composite": 0.15, "background_crop": 0.1, "occlusion": 0.1},
    **{"light": 0.2, "blur": 0.12, "shrink": 0.2, "noise": 0.12, "jpeg": 0.35},
}
SHARED: dict[str, Any] = {
    **{"data.task": "trimap_species", "data.size": 256, "train.batch_size": 32, "train.passes": 4},
    **{"train.warmup": 0.05, "train.weight_decay": 0.02, "train.dice_weight": 0.5, "train.ema": 0.999},
    **{f"train.augment.{field}": value for field, value in STRONG.items()},
}
MODELS: dict[str, dict[str, Any]] = {
    "default": {
        **{"model.name": "timm:tf_efficientnet_lite2@imagenet", "model.decoder_channels": [192, 96, 64, 32, 24]},
        **{"data.size": 288, "train.ramp": [256], "train.batch_size": 72},
        **{"train.learning_rate": 1.2e-3, "train.encoder_rate": 0.4},
    },
    "unet": {
        **{"model.name": "unet", "model.base_channels": 32, "train.ramp": [128, 160, 192]},
        **{"train.learning_rate": 2.5e-3},
    },
    "segnet": {
        **{"model.name": "segnet", "model.base_channels": 32, "model.depth": 4, "train.ramp": [128, 160, 192]},
        **{"train.learning_rate": 1.5e-3},
    },
}
STUDENT = {"train.teacher_weight": 0.7, "train.teacher_temperature": 1.0}
ABLATIONS = {
    "all": {},
    "no camera": {f"train.augment.{field}": 0.0 for field in ("light", "blur", "shrink", "noise", "jpeg")},
    "no scene": {f"train.augment.{field}": 0.0 for field in ("composite", "background_crop", "occlusion")},
    "mild moves": {"train.augment.scale": 0.25, "train.augment.aspect": 0.0, "train.augment.colour": 0.25},
}


@dataclass(frozen=True)
class Place:
    """Where things lie, and how small a try is."""

    data: Path
    work: Path
    """Runs, and the rates that `warm` measured."""
    out: Path
    """What is to be kept."""
    encoder: Path | None
    """Weights that the default model starts from; None takes those of its encoder."""
    seconds: float
    size: int | None
    """Side in pixels in place of each config's: for a try."""
    batch: int | None
    fraction: float
    """Of the training images; below 1 for a try."""

    def config(self, name: str, changes: dict[str, Any] | None = None) -> RunConfig:
        """Returns the config of `default`, `unet` or `segnet`, with changes."""
        fields: dict[str, Any] = {}
        wanted = SHARED | MODELS[name]
        if name != "default" and (self.work / "default" / BEST).is_file():
            wanted |= STUDENT | {"train.teacher": str(self.work / "default")}
        if name == "default" and self.encoder is not None:
            wanted["train.init"] = str(self.encoder)
        if self.size is not None:
            wanted |= {"data.size": self.size, "train.ramp": [self.size // 2]}
        if self.batch is not None:
            wanted["train.batch_size"] = self.batch
        wanted["data.fraction"] = self.fraction
        for field, value in (wanted | (changes or {})).items():
            put_field(fields, field, value, source="gpu")
        return validated(RunConfig, fields, source="gpu")


# --- data ------------------------------------------------------------------------------------------------------------


def pack(data: Path, file: Path) -> None:
    """Writes the official training split's images, as WebP, with trimaps and lists, into one tar file."""
    contents = read_contents(data)
    with tarfile.open(file, "w:gz") as tar:

        def add(name: str, content: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))

        for name in ("list.txt", "trainval.txt", "test.txt"):
            add(f"annotations/{name}", (data / "annotations" / name).read_bytes())
        for pet in contents.pets:
            if pet.listed == "trainval":
                encoded = io.BytesIO()
                Image.open(pet.image).convert("RGB").save(encoded, "WEBP", quality=QUALITY, method=4)
                add(f"images/{pet.name}.jpg", encoded.getvalue())  # petseg goes by content, not by name
                add(f"annotations/trimaps/{pet.name}.png", pet.trimap.read_bytes())
    print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")


def unpack(file: Path, data: Path) -> None:
    """Unpacks what `pack` wrote, once."""
    if not (data / "annotations").is_dir():
        with tarfile.open(file) as tar:
            tar.extractall(data, filter="data")


# --- training --------------------------------------------------------------------------------------------------------


class Loop:
    """The training loop's own step, for measuring: batch, augmentation, teacher, step."""

    def __init__(
        self, config: RunConfig, splits: dict[str, Pictures], hardware: Hardware, side: int | None = None
    ) -> None:
        self.settings, self.hardware, self.pictures = config.train, hardware, splits["train"]
        task = get_task(config.data.task)
        self.background = task.classes.index("background")
        model = build_model(config.model, len(task.classes)).to(hardware.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model.train()
        self.optimiser = make_optimiser(self.model, config.train)
        self.stepped = compiled(self.model, config.train) if config.train.compile else self.model
        self.teacher = None
        if config.train.teacher is not None:
            self.teacher = load_teacher(Path(config.train.teacher), task, hardware)
        self.generator = torch.Generator().manual_seed(0)
        self.rows = np.random.default_rng(0)
        self.batches: Iterator[Any] = iter(())
        self.side = side or config.data.size
        torch.backends.cudnn.benchmark = False

    def step(self) -> None:
        """Trains on one batch, without waiting for the device."""
        try:
            _, images, labels, soft = next(self.batches)
        except StopIteration:
            draw = [self.rows.choice(self.pictures.rows, self.settings.batch_size) for _ in range(60)]
            self.batches = augmented(
                *(draw, self.pictures, self.side, self.settings, self.generator),
                *(self.background, self.teacher),
            )
            _, images, labels, soft = next(self.batches)
        train_step(self.stepped, self.optimiser, images, labels, self.settings, self.hardware, None, soft)

    def rate(self, seconds: float = 2.0) -> float:
        """Returns images a second, over at least 3 steps and `seconds`."""
        return self.settings.batch_size / per_call(self.step, seconds, self.hardware.device)


def per_call(call: Callable[[], object], seconds: float, device: torch.device, warm: int = 3) -> float:
    """Returns seconds a call, over at least 3 calls and `seconds`, the device's queue emptied before and after."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(warm):
        call()
    wait()
    started, calls = time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - started < seconds:
        call()
        calls += 1
        if calls % 10 == 0:
            wait()
    wait()
    return (time.perf_counter() - started) / calls


def warm(place: Place, name: str) -> None:
    """Measures a model's training with and without compilation, and notes both; the compilations stay cached."""
    hardware = choose_hardware()
    plain = place.config(name)
    splits = load_splits(prepare(place.data, plain.data.size), plain, hardware.device)
    rates: dict[str, float] = {}
    for kind, changes in (("plain", {}), ("compiled", {"train.compile": True})):
        started = time.perf_counter()
        loop = Loop(place.config(name, changes), splits, hardware)
        loop.step()
        ready = time.perf_counter() - started
        rates[kind] = loop.rate(min(2.0, place.seconds / 10))
        note(f"{name} {kind}: {rates[kind]:.0f} images/s at {plain.data.size} px, first step after {ready:.1f} s")
        runs.write_json(place.work / f"rates-{name}.json", {**rates, "ready": ready})


def train_model(place: Place, name: str) -> None:
    """Trains with as many epochs as fit into `place.seconds` of this process, then keeps weights and scores."""
    started = time.perf_counter()
    noted = place.work / f"rates-{name}.json"
    rates = runs.read_json(noted) if noted.is_file() else {}
    faster = rates.get("compiled", 0) > 1.1 * rates.get("plain", 1)
    # what fails on this card's software is left out, the fastest first
    for compiles, precision in [(True, "auto")] * faster + [(False, "auto"), (False, "fp32")]:
        hardware = choose_hardware(precision)
        changes: dict[str, Any] = {"train.compile": compiles, "train.precision": precision}
        config = place.config(name, changes)
        prepared = prepare(place.data, config.data.size)
        splits = load_splits(prepared, config, hardware.device)
        measure = partial(measured, config, splits, hardware, min(3.0, place.seconds / 20))
        if rate := attempt(f"{name}, compiled {compiles}, {precision}", measure):
            break
    images = config.train.passes * len(splits["train"].rows)
    left = SAFETY * (place.seconds - (time.perf_counter() - started))
    changes["train.epochs"] = max(1, int(left / (images / rate + 0.6)))
    note(f"{name}: {rate:.0f} images/s, {left:.0f} s left, {changes}")
    config = place.config(name, changes)

    def told(row: Any) -> None:
        if row["epoch"] % 5 == 0 or row["epoch"] in (1, config.train.epochs):
            note(f"{name} epoch {row['epoch']}: val {row['val_loss']:.4f} {row['val_miou']:.4f}, {row['seconds']} s")

    shutil.rmtree(place.work / name, ignore_errors=True)
    train(config, prepared, place.work / name, hardware=hardware, splits=splits, on_epoch=told)
    keep(place, name)


def measured(config: RunConfig, splits: dict[str, Pictures], hardware: Hardware, seconds: float) -> float:
    """Returns images a second of a config's training, over all sides of its ramp."""
    sides = [*config.train.ramp, config.data.size]
    return len(sides) / sum(1 / Loop(config, splits, hardware, side).rate(seconds / len(sides)) for side in sides)


def keep(place: Place, name: str) -> None:
    """Writes the best weights, large tensors in fp16, and their scores on the official validation split."""
    hardware = choose_hardware()
    run = place.work / name
    config = runs.read_config(run)
    tensors, epoch = read_tensors(run / BEST)
    small = {key: value.half() if value.numel() >= FP16_FROM else value for key, value in tensors.items()}
    runs.write_atomically(
        place.out / f"{name}.safetensors", lambda path: save_file(small, path, metadata={"epoch": str(epoch)})
    )
    model = build_model(config.model, len(get_task(config.data.task).classes)).to(hardware.device)
    load_weights(model, place.out / f"{name}.safetensors")  # what is scored is what was written
    prepared = prepare(place.data, config.data.size)
    splits = load_splits(prepared, config, hardware.device)
    result: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "environment": runs.read_json(run / "environment.json"),
        "images": f"{prepared.source}; WebP of quality {QUALITY}",
        "epoch": epoch,
        "history": runs.read_metrics(run),
    }
    runs.write_json(place.out / f"{name}.json", result)
    result["corrupted"] = attempt("corrupted", lambda: corrupted(model, splits["val"], hardware))
    val = attempt("val", lambda: evaluate(model, prepared, splits["val"], config, hardware, split="val").scores)
    result["val"] = val
    runs.write_json(place.out / f"{name}.json", result)
    told = ("miou", "pixel_accuracy", "mean_boundary_f", "species_accuracy")
    note(f"{name} kept, at own size: {val and {key: round(val[key], 4) for key in told}}, {result['corrupted']}")


def corrupted(model: nn.Module, pictures: Pictures, hardware: Hardware) -> dict[str, float]:
    """Returns validation mIoU at the training size, clean and with each kind of fault in all images."""
    faults: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
        "clean": lambda images, _: images,
        "jpeg 10": lambda images, _: camera.compress(images, images.new_full((len(images),), 10.0)),
        **{"light": camera.light, "blur": camera.blur, "shrink": camera.shrink, "noise": camera.noise},
    }
    found = {}
    for name, fault in faults.items():
        worse = Faulty(pictures.images, pictures.labels, pictures.rows, pictures.device, pictures.task, fault)
        found[name] = round(validate(model, worse, pictures.task, hardware)["val_miou"], 4)
    return found


@dataclass(frozen=True)
class Faulty(Pictures):
    """Pictures that went through a fault of the camera."""

    fault: Callable[[Tensor, torch.Generator], Tensor]

    def batch(self, rows: Any, side: int | None = None) -> tuple[Tensor, Tensor]:
        """Returns as `Pictures.batch`."""
        images, labels = super().batch(rows, side)
        return self.fault(images, torch.Generator().manual_seed(int(rows[0]))), labels


# --- measuring -------------------------------------------------------------------------------------------------------


class JpegPets(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """What a usual data set does for an image: open, resize, augment, to tensor."""

    def __init__(self, prepared: Prepared, size: int) -> None:
        from torchvision.transforms import v2

        self.pets = [pet for pet in prepared.pets if pet.listed == "trainval"]
        self.change = v2.Compose(
            [
                *(v2.Resize((size, size)), v2.RandomHorizontalFlip(), v2.RandomAffine(15, (0.1, 0.1), (0.8, 1.25))),
                *(v2.ColorJitter(0.25, 0.25, 0.25), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)),
            ]
        )

    def __len__(self) -> int:
        return len(self.pets)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        from torchvision import tv_tensors

        trimap = torch.from_numpy(np.asarray(Image.open(self.pets[row].trimap)).copy())
        image, mask = self.change(Image.open(self.pets[row].image).convert("RGB"), tv_tensors.Mask(trimap[None]))
        return image, (mask[0].long() - 1).clamp(0, 2)


def usual_rate(config: RunConfig, prepared: Prepared, hardware: Hardware, seconds: float, workers: int) -> float:
    """Returns images a second of the usual loop: a DataLoader, fp32, NCHW, AdamW, the loss read at each step."""
    model = build_model(config.model, 3).to(hardware.device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(
        JpegPets(prepared, config.data.size),
        config.train.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=hardware.device.type == "cuda",
    )
    batches: Iterator[tuple[Tensor, Tensor]] = chain.from_iterable(repeat(loader))

    def step() -> None:
        images, labels = next(batches)
        loss = F.cross_entropy(model(images.to(hardware.device)), labels.to(hardware.device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()

    return config.train.batch_size / per_call(step, seconds, hardware.device)


def speed(place: Place) -> None:
    """Measures one thing after another and writes the file anew after each."""
    hardware = choose_hardware()
    file = place.out / MEASURED
    result: dict[str, Any] = {"environment": environment(hardware)}
    small = place.size is not None
    turn = min(3.0, place.seconds / 20)

    def write(key: str, value: Any) -> None:
        result[key] = value
        note(f"{key}: {json.dumps(value)}")
        runs.write_json(file, result)

    def recipe(name: str, **changes: Any) -> RunConfig:
        return load_recipe(name, [f"{field}={value}" for field, value in changes.items()]).for_model("unet")

    attempt("speedrun", lambda: write("speedrun", speedrun(place, hardware, recipe)))
    attempt("predict", lambda: write("predict", predict_rates(place, hardware, turn)))
    peak = attempt("peak", lambda: matmul_rate(hardware, 256 if small else 8192))
    write("matmul_bf16_tflops", peak)
    loops = {}
    for size, channels, batch in LOOPS:
        size, batch, channels = place.size or size, place.batch or batch, 4 if small else channels
        settings = {"data.size": size, "model.base_channels": channels, "train.batch_size": batch}
        loops[f"unet {size} px, {channels} channels, batch {batch}"] = recipe("default", **settings)
    for title, config in loops.items():
        write(title, attempt(title, lambda config=config: loop_rates(place, config, hardware, turn, peak)))
    if hardware.device.type == "cuda":  # last: each compiles for half a minute
        smallest, *others = loops
        for title in (*others[-1:], smallest, *others[:-1]):
            mode = "reduce-overhead" if title == smallest else "default"
            fields = loops[title].model_dump()
            fields["train"] |= {"compile": True, "compile_mode": mode}
            config = validated(RunConfig, fields, source="gpu")
            write(f"{title}, {mode}", attempt(title, lambda config=config: petseg_rate(place, config, hardware, turn)))


def petseg_rate(place: Place, config: RunConfig, hardware: Hardware, seconds: float) -> float:
    """Returns images a second of petseg's loop."""
    splits = load_splits(prepare(place.data, config.data.size), config, hardware.device)
    return Loop(config, splits, hardware).rate(seconds)


def loop_rates(
    place: Place, config: RunConfig, hardware: Hardware, seconds: float, peak: float | None
) -> dict[str, Any]:
    """Returns images a second of petseg's loop and of the usual one, and the share of a matrix product's rate."""
    prepared = prepare(place.data, config.data.size)
    ours = petseg_rate(place, config, hardware, seconds)
    usual = attempt("usual loop", lambda: usual_rate(config, prepared, hardware, seconds, min(16, os.cpu_count() or 1)))
    tflops = ours * training_flops(config) / 1e12
    return {
        **{"petseg": ours, "usual": usual, "ratio": usual and ours / usual},
        **{"tflops": tflops, "share_of_matmul": peak and tflops / peak},
    }


def training_flops(config: RunConfig) -> float:
    """Returns floating-point operations of one image's training step, forward and backward, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model(config.model, 3)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, config.data.size, config.data.size)).sum().backward()
    return float(counter.get_total_flops())


def matmul_rate(hardware: Hardware, side: int) -> float:
    """Returns TFLOP/s of a square bf16 matrix product of random numbers: the median of ten."""
    left, right = (torch.randn(side, side, device=hardware.device, dtype=torch.bfloat16) for _ in range(2))
    times = [per_call(lambda: left @ right, 0.05, hardware.device) for _ in range(10)]
    return 2 * side**3 / median(times) / 1e12


def speedrun(place: Place, hardware: Hardware, recipe: Callable[..., RunConfig]) -> dict[str, Any]:
    """Returns the seconds until U-Net's validation loss is below .3614, validation included.

    Twice the recipe's epochs: the packed images are half of those that the recipe has.
    """
    config = recipe("speedrun", **{"train.epochs": 6, "data.protocol": "official"})
    prepared = prepare(place.data, config.data.size)
    splits = load_splits(prepared, config, hardware.device)
    for run in ("speedrun", "speedrun-warm"):
        shutil.rmtree(place.work / run, ignore_errors=True)
    train(config, prepared, place.work / "speedrun-warm", hardware=hardware, splits=splits)  # kernels are loaded
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []

    def told(row: Any) -> None:
        rows.append({"seconds": round(time.perf_counter() - started, 2), "val_loss": row["val_loss"]})

    train(config, prepared, place.work / "speedrun", hardware=hardware, splits=splits, on_epoch=told)
    return {"epochs": rows, "reached": next((row["seconds"] for row in rows if row["val_loss"] < 0.3614), None)}


def predict_rates(place: Place, hardware: Hardware, seconds: float) -> dict[str, float]:
    """Returns images a second of the default model's forward pass, by batch."""
    config = place.config("default")
    model = build_model(config.model, 4).to(hardware.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    found = {}
    for batch in (1, 32, 256):
        batch = min(batch, place.batch or batch)
        images = torch.rand(batch, 3, config.data.size, config.data.size, device=hardware.device)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), hardware.context():
            found[f"batch {batch}"] = batch / per_call(
                lambda images=images: model(normalise(images, model)), seconds, hardware.device
            )
    return found


def ablate(place: Place) -> None:
    """Trains the default model briefly with one kind of augmentation left out at a time, and scores all alike."""
    hardware = choose_hardware()
    ends = time.perf_counter() + place.seconds
    share = place.seconds / len(ABLATIONS)
    found: dict[str, Any] = {}
    for name, left_out in ABLATIONS.items():
        changes = {"data.size": place.size or 192, "train.passes": 2, **left_out}
        config = place.config("default", changes)
        prepared = prepare(place.data, config.data.size)
        splits = load_splits(prepared, config, hardware.device)
        rate = Loop(config, splits, hardware).rate(1.0 if place.size is None else 0.1)
        if not found:  # the same for all
            epochs = max(1, int(0.75 * share / (2 * len(splits["train"].rows) / rate + 0.5)))
        run = place.work / f"ablate-{name.replace(' ', '-')}"
        config = place.config("default", changes | {"train.epochs": epochs})
        shutil.rmtree(run, ignore_errors=True)
        train(config, prepared, run, hardware=hardware, splits=splits)
        model = build_model(config.model, 4).to(hardware.device)
        load_weights(model, run / "last.safetensors")
        found[name] = {"epochs": epochs, **corrupted(model, splits["val"], hardware)}
        note(f"ablation {name}: {found[name]}")
        file = place.out / MEASURED
        runs.write_json(file, {**(runs.read_json(file) if file.is_file() else {}), "ablations": found})
        if time.perf_counter() + share > ends + 5:
            break


# --- around ----------------------------------------------------------------------------------------------------------


def attempt(what: str, call: Callable[[], Any]) -> Any:
    """Returns what a call returns, None where it fails: the next measurement comes all the same."""
    try:
        return call()
    except Exception as error:
        note(f"FAILED {what}: {type(error).__name__}: {str(error)[:500]}")
        return None


def note(text: str) -> None:
    """Prints a line with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["pack", "unpack", "prepare", "warm", "train", "keep", "speed", "ablate"])
    parser.add_argument("name", nargs="?", choices=sorted(MODELS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs-gpu"))
    parser.add_argument("--out", type=Path, default=Path("out-gpu"))
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--size", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--fraction", type=float, default=1.0)
    given = parser.parse_args()
    for folder in (given.work, given.out):
        folder.mkdir(parents=True, exist_ok=True)
    places = (given.data, given.work, given.out, given.encoder)
    place = Place(*places, given.seconds, given.size, given.batch, given.fraction)
    parts: dict[str, Callable[[], None]] = {
        "pack": lambda: pack(given.data, given.pack),
        "unpack": lambda: unpack(given.pack, given.data),
        "prepare": lambda: [prepare(given.data, size) for size in {place.config(name).data.size for name in MODELS}],
        "warm": lambda: warm(place, given.name),
        "train": lambda: train_model(place, given.name),
        "keep": lambda: keep(place, given.name),
        "speed": lambda: speed(place),
        "ablate": lambda: ablate(place),
    }
    parts[given.part]()


if __name__ == "__main__":
    sys.exit(main())
