"""Training: `train(config, prepared, run)` fills a run folder.

Every random number of an epoch comes from (seed, epoch), so a resumed run needs no generator's state and both models of
a comparison see the same pictures in the same order.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from petseg import runs
from petseg.config import RunConfig, TrainConfig, flat_fields
from petseg.data.augment import arrange, recolour
from petseg.data.cache import Prepared
from petseg.data.camera import send
from petseg.data.oxford_pets import IGNORE, Task, get_task, split_names, training_part
from petseg.distil import Teacher, check_classes, distillation_loss
from petseg.errors import DivergedError, PetsegError
from petseg.losses import cross_entropy, dice_loss, median_frequency_weights
from petseg.metrics import confusion_matrix, mean_iou, pixel_accuracy
from petseg.models import build_model, normalise, to_unit_range

Rows = npt.NDArray[np.int64]

CHECK_EVERY = 50
"""Steps between looks at the losses for nan: each look waits for the device."""

GPU_SHARE = 0.5
"""Of a GPU's free memory that the pictures may take; a larger set stays on the host."""

EVALUATION_BATCH = 32
"""Pictures a batch where no gradient is kept; scores do not depend on it."""


@dataclass(frozen=True)
class Progress:
    """What a progress bar needs, after each step."""

    epoch: int
    step: int
    steps: int
    """In the whole run."""
    loss: float | None
    """Validation cross-entropy of the last whole epoch."""

    @property
    def words(self) -> str:
        """What stands beside the bar."""
        return f"epoch {self.epoch}" + (f", val loss {self.loss:.4f}" if self.loss is not None else "")


@dataclass(frozen=True)
class Hardware:
    """Where and how precisely to compute."""

    device: torch.device
    autocast: bool
    reason: str
    """Why this precision, in words, for the terminal."""

    @property
    def precision(self) -> str:
        """ "bf16" or "fp32"."""
        return "bf16" if self.autocast else "fp32"

    def context(self) -> torch.autocast:
        """Returns the autocast context of a forward pass."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast)


def choose_hardware(precision: str = "auto", device: str | None = None) -> Hardware:
    """Returns the fastest device at hand, and bf16 where its hardware multiplies it faster than fp32.

    Args:
        precision: "auto", "fp32" or "bf16".
        device: "cpu", "cuda", "cuda:1", "mps"; None chooses.

    Raises:
        PetsegError: a device that torch does not know or does not have.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type not in ("cpu", "cuda", "mps"):
            raise ValueError(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, ValueError):
        raise PetsegError(
            f"device {device!r}: torch has no such device here; choose cpu, or leave --device out"
        ) from None
    if precision != "auto":
        return Hardware(chosen, precision == "bf16", f"{precision} as asked")
    if chosen.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
        return Hardware(chosen, gains, "the GPU has bf16 units" if gains else "the GPU has no bf16 units")
    if chosen.type == "cpu":
        # avx512_bf16 and AMX multiply bf16 natively; elsewhere oneDNN emulates it, slower than fp32
        amx = torch.cpu._is_amx_tile_supported()
        gains = amx or torch.cpu._is_avx512_bf16_supported()
        unit = "AMX" if amx else "AVX512-BF16"
        return Hardware(chosen, gains, f"the processor has {unit}" if gains else "the processor has no bf16 units")
    return Hardware(chosen, False, "bf16 is not tried on this kind of device")


@dataclass(frozen=True)
class Pictures:
    """The pictures of one split, on the training device or, where they do not fit, in the host's memory."""

    images: Tensor
    """uint8 [N, H, W, 3]: the whole prepared array; `rows` says which belong to the split."""
    labels: Tensor
    """uint8 [N, H, W]: of the task, 255 ignored."""
    rows: Rows
    device: torch.device
    """Where batches are wanted."""
    task: Task
    """What the labels mean."""

    def batch(self, rows: Rows, side: int | None = None) -> tuple[Tensor, Tensor]:
        """Returns images float32 [n, 3, H, W] in 0..1 and labels uint8 [n, H, W] of some rows, on `device`.

        With `side` both are reduced to that many pixels, images antialiased, labels nearest.
        """
        index = send(torch.from_numpy(rows), self.images.device)
        images, labels = self.images[index].to(self.device), self.labels[index].to(self.device)
        if side in (None, images.shape[1]):
            return to_unit_range(images), labels
        planes = images.permute(0, 3, 1, 2)
        if planes.device.type != "cpu":
            planes = planes.float()  # antialiased bytes are the CPU's, and 50 times as fast there
        planes = F.interpolate(planes, size=(side, side), mode="bilinear", antialias=True)
        labels = F.interpolate(labels[:, None], size=(side, side), mode="nearest-exact")[:, 0]
        return to_unit_range(planes.permute(0, 2, 3, 1)), labels


def task_labels(prepared: Prepared, task: Task) -> npt.NDArray[np.uint8]:
    """Returns the task's labels of every prepared picture, uint8 [N, H, W]."""
    table = task.table()
    labels = np.empty(prepared.trimaps.shape, np.uint8)
    for row, (species, trimap) in enumerate(zip(prepared.species, prepared.trimaps, strict=True)):
        labels[row] = table[species][trimap]  # picture by picture: numpy widens an index to eight bytes
    return labels


def load_splits(prepared: Prepared, config: RunConfig, device: torch.device) -> dict[str, Pictures]:
    """Returns "train", "val" and, under protocol `official`, "test".

    Raises:
        PetsegError: another size than the config's, or too few pictures for a training and a validation part.
    """
    if prepared.size != config.data.size:
        raise PetsegError(
            f"pictures are prepared at {prepared.size} px, data.size is {config.data.size}; prepare them at it"
        )
    task = get_task(config.data.task, config.data.border)
    names = split_names(list(prepared.all_listed), prepared.all_listed, config.data.protocol)
    if config.data.fraction < 1:
        names["train"] = training_part(names["train"], config.data.fraction, seed=config.train.seed)
    # copy-on-write: torch wants writable memory, the cache stays as it is and is paged in as it is used
    images = torch.from_numpy(np.load(prepared.folder / "images.npy", mmap_mode="c"))
    labels = torch.from_numpy(task_labels(prepared, task))
    if device.type != "cuda" or images.nbytes + labels.nbytes < GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
        images, labels = images.to(device), labels.to(device)
    splits = {
        part: Pictures(images, labels, prepared.rows(part_names), device, task) for part, part_names in names.items()
    }
    if len(splits["train"].rows) < 2 or not len(splits["val"].rows):
        raise PetsegError(
            f"protocol {config.data.protocol}: {len(splits['train'].rows)} training and {len(splits['val'].rows)} "
            "validation pictures; wanted at least 2 and 1: is the data folder complete? (`petseg data check`)"
        )
    return splits


def check_task(pictures: Pictures, task: Task) -> None:
    """Checks that labels are those of a task.

    Raises:
        PetsegError: they are another's.
    """
    if pictures.task != task:
        raise PetsegError(
            f"pictures are labelled for task {pictures.task.name} ({', '.join(pictures.task.classes)}), the run is of "
            f"{task.name} ({', '.join(task.classes)}); load the splits with the run's own config"
        )


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Returns the rate of a step (from 0): linear warm-up, then a cosine to zero at the end.

    >>> learning_rate(99, 100, TrainConfig(learning_rate=1.0)) < 1e-3
    True
    """
    warmup = config.warmup * steps
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))


def epoch_batches(rows: Rows, epoch: int, config: TrainConfig) -> list[Rows]:
    """Returns the epoch's batches: every row once in each of `config.passes`, in an order that (seed, epoch) fixes.

    A last batch of a single picture is joined to the one before: batch normalisation needs two.
    """
    random = np.random.default_rng([config.seed, epoch])
    cuts = list(range(config.batch_size, len(rows), config.batch_size))
    if cuts and len(rows) - cuts[-1] == 1 and config.batch_size > 1:
        cuts.pop()
    return [batch for _ in range(config.passes) for batch in np.split(random.permutation(rows), cuts)]


def make_optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Returns AdamW (arXiv 1711.05101), weight decay on convolution weights only, one fused kernel a step.

    A group's "factor" multiplies the learning rate of its parameters.
    """
    encoder = {id(parameter) for name, parameter in model.named_parameters() if name.startswith("encoder.")}
    groups = []
    for factor, wanted in ((1.0, False), (config.encoder_rate, True)):
        part = [
            parameter
            for parameter in model.parameters()
            if config.encoder_rate == 1 or (id(parameter) in encoder) == wanted
        ]
        decayed = [parameter for parameter in part if parameter.ndim > 1]
        plain = [parameter for parameter in part if parameter.ndim <= 1]
        groups.append({"params": decayed, "weight_decay": config.weight_decay, "factor": factor})
        groups.append({"params": plain, "weight_decay": 0.0, "factor": factor})
        if config.encoder_rate == 1:
            break
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate, fused=True)


def train(
    config: RunConfig,
    prepared: Prepared,
    run: Path,
    *,
    hardware: Hardware | None = None,
    resume: bool = False,
    splits: Mapping[str, Pictures] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl after training the model of `config` into the folder `run`.

    Args:
        config: model, data and training.
        prepared: the data set at `config.data.size`.
        run: folder to make; with `resume` it may exist, and a finished run returns at once.
        hardware: None chooses by `config.train.precision`.
        resume: go on after the last whole epoch of `run`.
        splits: of `load_splits`, where the caller has them already.
        on_progress: called after each step.
        on_epoch: called with each new row.

    Raises:
        PetsegError: the folder exists, holds another config, or a damaged checkpoint; or the loss is not a number.
    """
    hardware = hardware or choose_hardware(config.train.precision)
    settings = config.train
    task = get_task(config.data.task, config.data.border)
    if settings.compile:
        _check_compiler(hardware.device)
    splits = splits or load_splits(prepared, config, hardware.device)
    check_task(splits["train"], task)
    torch.manual_seed(settings.seed)
    # weights that are resumed need no start
    fresh = settings.init is None and not (resume and (run / RESUME).is_file())
    model = build_model(config.model, len(task.classes), pretrained=fresh)
    if settings.init is not None:
        load_weights(model, Path(settings.init))
    model = model.to(hardware.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher = None if settings.teacher is None else load_teacher(Path(settings.teacher), task, hardware)
    with runs.new_folder(run, resume=resume):
        if resume and (run / "config.json").is_file() and (known := runs.read_config(run)) != config:
            raise PetsegError(
                f"run folder {run}: holds another config ({_difference(known, config)}); choose another --out"
            )
        runs.claim_data(run, prepared.key, prepared.source)
        average = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True)
            if settings.ema
            else None
        )
        optimiser = make_optimiser(model, settings)
        history = _resume(run, model, optimiser, average) if resume else []
        first_epoch = len(history) + 1
        if first_epoch > settings.epochs:
            return history
        board = _tensorboard(run) if settings.tensorboard else None
        if not (run / "environment.json").is_file():
            runs.write_json(run / "environment.json", environment(hardware))
        runs.write_json(run / "config.json", config.model_dump(mode="json"))

        class_weights = None
        if settings.class_weights == "median_frequency":
            labels = splits["train"].labels.cpu().numpy()[splits["train"].rows]
            class_weights = median_frequency_weights(labels, len(task.classes)).to(hardware.device)
        with _determinism(settings.deterministic), _fastest_kernels(hardware, settings):
            for epoch in range(first_epoch, settings.epochs + 1):
                started = time.perf_counter()
                train_loss = _train_epoch(
                    epoch,
                    model,
                    average,
                    optimiser,
                    splits["train"],
                    config.side(epoch),
                    settings,
                    hardware,
                    class_weights,
                    teacher,
                    task,
                    history,
                    on_progress,
                )
                trained = time.perf_counter()
                evaluated = average.module if average is not None else model
                val = validate(evaluated, splits["val"], task, hardware)
                if not math.isfinite(val["val_loss"]):
                    raise _not_a_number("validation loss", f"after epoch {epoch}")
                row = {
                    "epoch": epoch,
                    "seconds": round(time.perf_counter() - started, 3),
                    "train_seconds": round(trained - started, 3),
                    "learning_rate": optimiser.param_groups[0]["lr"],
                    "train_loss": train_loss,
                    **val,
                }
                history.append(row)
                _checkpoint(run, epoch, history, model, optimiser, average)
                if board is not None:
                    for name in ("train_loss", "val_loss", "val_miou", "learning_rate"):
                        board.add_scalar(name, row[name], epoch)
                    board.flush()
                if on_epoch is not None:
                    on_epoch(row)
        return history


def _train_epoch(
    epoch: int,
    model: nn.Module,
    average: AveragedModel | None,
    optimiser: torch.optim.Optimizer,
    pictures: Pictures,
    side: int,
    settings: TrainConfig,
    hardware: Hardware,
    class_weights: Tensor | None,
    teacher: Teacher | None,
    task: Task,
    history: list[dict[str, Any]],
    on_progress: Callable[[Progress], None] | None,
) -> float:
    """Returns the mean cross-entropy of the epoch over pictures, augmentation and dropout on.

    Unweighted and without Dice whatever is optimised, so that it stands beside the validation loss.
    """
    batches = epoch_batches(pictures.rows, epoch, settings)
    steps = settings.epochs * len(batches)
    torch.manual_seed(settings.seed * 1_000_003 + epoch)  # dropout
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    model.train()
    # a compilation for each size of a batch, and none for validation, which would be one more
    stepped = compiled(model, settings) if settings.compile else model
    follow = _Average(average, model, settings.ema) if average is not None else None
    background = task.classes.index("background")
    losses: list[Tensor] = []
    objectives: list[Tensor] = []
    prepared = augmented(batches, pictures, side, settings, generator, background, teacher)
    for index, (rows, images, labels, soft) in enumerate(prepared):
        step = (epoch - 1) * len(batches) + index
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, settings) * group["factor"]
        loss, objective = train_step(stepped, optimiser, images, labels, settings, hardware, class_weights, soft)
        if follow is not None:
            follow.step()
        losses.append(loss * len(rows))
        objectives.append(objective)
        if (index + 1) % CHECK_EVERY == 0 or index + 1 == len(batches):
            _check_finite(objectives, epoch, step)
        if on_progress is not None:
            on_progress(Progress(epoch, step + 1, steps, history[-1]["val_loss"] if history else None))
    if follow is not None:
        follow.finish()
    return float(torch.stack(losses).sum()) / sum(map(len, batches))


def augmented(
    batches: list[Rows],
    pictures: Pictures,
    side: int,
    settings: TrainConfig,
    generator: torch.Generator,
    background: int,
    teacher: Teacher | None,
) -> Iterator[tuple[Rows, Tensor, Tensor, Tensor | None]]:
    """Yields rows, images, labels and the teacher's logits of each batch, augmented.

    On a GPU several batches are augmented at once: its launches cost as much for few images as for many.
    """
    together = max(1, TOGETHER // settings.batch_size) if pictures.device.type == "cuda" else 1
    for start in range(0, len(batches), together):
        some = batches[start : start + together]
        images, labels = pictures.batch(np.concatenate(some), side)
        images, labels = arrange(images, labels, settings.augment, generator, background=background)
        soft = teacher(images) if teacher is not None else None
        images = recolour(images, settings.augment, generator)
        counts = [len(rows) for rows in some]
        softs = soft.split(counts) if soft is not None else [None] * len(some)
        yield from zip(some, images.split(counts), labels.split(counts), softs, strict=True)


TOGETHER = 96
"""Images that are augmented at once on a GPU, at most, unless a batch has more."""


def compiled(model: nn.Module, settings: TrainConfig) -> nn.Module:
    """Returns the model compiled for steps of one size."""
    mode = settings.compile_mode
    return cast(nn.Module, torch.compile(model, dynamic=False, mode=None if mode == "default" else mode))


def load_teacher(run: Path, task: Task, hardware: Hardware) -> Teacher:
    """Returns the best weights of a finished run as a teacher.

    Raises:
        PetsegError: not a trained run, or one of other classes.
    """
    config = runs.read_config(run)
    check_classes(run, get_task(config.data.task, config.data.border), task)
    model = build_model(config.model, len(task.classes)).to(hardware.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    load_weights(model, run / BEST)
    return Teacher(model, hardware.context())


class _Average:
    """Moves an AveragedModel, without waiting for the device.

    Its own `update_parameters` sends a counter there at each step and walks integer buffers one by one.
    """

    def __init__(self, average: AveragedModel, model: nn.Module, decay: float) -> None:
        self.average, self.decay = average, decay
        ours = [*average.module.parameters(), *average.module.buffers()]
        theirs = [*model.parameters(), *model.buffers()]
        self.pairs = [(mine.detach(), other.detach()) for mine, other in zip(ours, theirs, strict=True)]
        moving = [pair for pair in self.pairs if pair[0].is_floating_point()]
        self.mine, self.theirs = [pair[0] for pair in moving], [pair[1] for pair in moving]

    def step(self) -> None:
        """Follows the model after a step of the optimiser; the first time, copies it."""
        if self.average.n_averaged == 0:
            torch._foreach_copy_(self.mine, self.theirs)
        else:
            torch._foreach_lerp_(self.mine, self.theirs, 1 - self.decay)
        self.average.n_averaged += 1

    def finish(self) -> None:
        """Copies the counters of batch normalisation, at the end of an epoch."""
        for mine, other in self.pairs:
            if not mine.is_floating_point():
                mine.copy_(other)


def train_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    settings: TrainConfig,
    hardware: Hardware,
    class_weights: Tensor | None = None,
    soft: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the batch's cross-entropy and what was minimised (scalars, detached), after one step of the optimiser.

    Args:
        model: in training mode, its weights in channels_last.
        optimiser: of the model's parameters.
        images: float32 [N, 3, H, W] in 0..1.
        labels: uint8 [N, H, W], 255 ignored.
        settings: Dice's weight and the gradient's clip are read.
        hardware: says the precision.
        class_weights: float32 [C] or None.
        soft: a teacher's logits [N, C, H, W], or None.
    """
    with hardware.context():
        logits = model(normalise(images, model).contiguous(memory_format=torch.channels_last))
    targets = labels.long()
    objective = loss = cross_entropy(logits, targets)
    if class_weights is not None:
        objective = cross_entropy(logits, targets, class_weights)
    if settings.dice_weight:
        objective = objective + settings.dice_weight * dice_loss(logits, targets)
    if soft is not None:
        share = settings.teacher_weight
        objective = (1 - share) * objective + share * distillation_loss(logits, soft, settings.teacher_temperature)
    optimiser.zero_grad(set_to_none=True)
    objective.backward()
    if settings.gradient_clip:
        nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
    optimiser.step()
    return loss.detach(), objective.detach()


def _check_finite(objectives: list[Tensor], epoch: int, step: int) -> None:
    bad = (~torch.isfinite(torch.stack(objectives))).nonzero()
    if len(bad):
        first = step - (len(objectives) - 1 - int(bad[0]))
        raise _not_a_number("loss", f"at step {first + 1} (epoch {epoch})")


def _not_a_number(what: str, where: str) -> DivergedError:
    return DivergedError(
        f"training: the {what} is not a number {where}; the run is kept as of the whole epoch before: "
        "try a lower train.learning_rate in another folder"
    )


def validate(model: nn.Module, pictures: Pictures, task: Task, hardware: Hardware) -> dict[str, float]:
    """Returns val_loss (cross-entropy in nats), val_miou and val_accuracy over all pixels at the training size.

    Of `task.scored`; `trimap_species` adds val_species, the share of pictures whose species is right.
    """
    num_classes = len(task.scored.classes)
    total = torch.zeros((), dtype=torch.float64)
    confusion = np.zeros((num_classes, num_classes), np.int64)
    species: list[bool] = []
    for _, labels, logits in predict_logits(model, pictures, pictures.rows, hardware):
        species += right_species(logits, labels, task)
        logits, labels = scored(logits, labels, task)
        counted = int((labels != IGNORE).sum())
        if counted:
            total += cross_entropy(logits, labels.long()).cpu().double() * counted
        predicted = logits.argmax(dim=1).to(torch.uint8)
        if labels.is_cuda:  # counted there: the masks of a split take longer to fetch than to compute
            pairs = labels.long() * num_classes + predicted
            counts = torch.bincount(pairs[labels != IGNORE], minlength=num_classes**2)
            confusion += counts.view(num_classes, num_classes).cpu().numpy()
        else:
            confusion += confusion_matrix(labels.numpy(), predicted.numpy(), num_classes)
    return {
        "val_loss": float(total) / int(confusion.sum()),
        "val_miou": float(mean_iou(confusion)),
        "val_accuracy": float(pixel_accuracy(confusion)),
        **({"val_species": float(np.mean(species))} if species else {}),
    }


def scored(logits: Tensor, labels: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Returns logits [N, C, H, W] and labels [N, H, W] of `task.scored`.

    The probability of a pet is that of a cat plus that of a dog, so its logit is the logarithm of their sum.
    """
    if task.name != "trimap_species":
        return logits, labels
    merged = torch.cat([logits[:, :2].logsumexp(dim=1, keepdim=True), logits[:, 2:]], dim=1)
    # 0 cat and 1 dog become 0; 2 and 3 move down; 255 stays
    return merged, torch.where((labels == 0) | (labels == IGNORE), labels, labels - 1)


def right_species(logits: Tensor, labels: Tensor, task: Task) -> list[bool]:
    """Returns, for each picture with a pet, whether its species is right; none for a task without species.

    A picture's species is that with the larger sum of probabilities over all pixels.

    Args:
        logits: float [N, C, H, W].
        labels: uint8 [N, H, W].
        task: of both.
    """
    if task.name != "trimap_species":
        return []
    predicted = logits.softmax(dim=1)[:, :2].sum(dim=(2, 3)).argmax(dim=1)
    shown = torch.stack([(labels == species).flatten(1).any(dim=1) for species in (0, 1)], dim=1)
    return (predicted == shown.int().argmax(dim=1))[shown.any(dim=1)].tolist()


def predict_logits(
    model: nn.Module, pictures: Pictures, rows: Rows, hardware: Hardware
) -> Iterator[tuple[Rows, Tensor, Tensor]]:
    """Yields (rows, labels uint8 [n, H, W], logits float32 [n, C, H, W]) batch by batch, no gradient, no dropout."""
    model.eval()
    with torch.inference_mode():
        for batch in np.split(rows, range(EVALUATION_BATCH, len(rows), EVALUATION_BATCH)):
            images, labels = pictures.batch(batch)
            with hardware.context():
                logits = model(normalise(images, model).contiguous(memory_format=torch.channels_last))
            yield batch, labels, logits.float()


def best_epoch(history: list[dict[str, Any]]) -> int:
    """Returns the epoch with the best validation mIoU, the first of equals."""
    return int(max(history, key=lambda row: row["val_miou"])["epoch"])


# --- checkpoints -----------------------------------------------------------------------------------------------------


def _checkpoint(
    run: Path,
    epoch: int,
    history: list[dict[str, Any]],
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: AveragedModel | None,
) -> None:
    """Writes weights and metrics, and last the file that a resumed run starts from: it names the whole epoch."""
    weights = _plain(average.module if average is not None else model)
    new_best = best_epoch(history) == epoch
    if new_best:
        _save(run / BEST, weights, epoch, keep=run / PREVIOUS_BEST)
    _save(run / "last.safetensors", weights, epoch)
    runs.write_metrics(run, history)
    state = {f"model.{name}": tensor for name, tensor in _plain(model).items()}
    for number, values in optimiser.state_dict()["state"].items():
        state |= {f"optimiser.{number}.{name}": value.contiguous() for name, value in values.items()}
    if average is not None:
        state |= {f"average.{name}": tensor for name, tensor in _plain(average).items()}
    _save(run / RESUME, state, epoch, keep=run / PREVIOUS_RESUME)
    if not new_best:
        (run / PREVIOUS_BEST).unlink(missing_ok=True)  # the best is that of both epochs that are kept


BEST, PREVIOUS_BEST = "best.safetensors", "best.previous.safetensors"
RESUME, PREVIOUS_RESUME = "resume.safetensors", "resume.previous.safetensors"


def _resume(
    run: Path, model: nn.Module, optimiser: torch.optim.Optimizer, average: AveragedModel | None
) -> list[dict[str, Any]]:
    """Returns the rows of the whole epochs that a run goes on after, none for a new run; the model is as after them.

    Where the newest checkpoint or its line of metrics is damaged, the one before is taken and that is said.

    Raises:
        PetsegError: all that is there is damaged, or of another model.
    """
    damage: PetsegError | None = None
    for path in (run / RESUME, run / PREVIOUS_RESUME):
        if not path.is_file():
            continue
        try:
            epoch = _restore(path, model, optimiser, average)
            history = runs.read_metrics(run, up_to=epoch)
            if len(history) < epoch:
                raise PetsegError(
                    f"{run / 'metrics.jsonl'}: holds {len(history)} epochs where {path.name} is after {epoch}; "
                    "restore the file, or train again into another folder"
                )
            if not all(isinstance(row.get("val_miou"), float) for row in history):
                raise PetsegError(f"{run / 'metrics.jsonl'}: a line lacks val_miou; restore the file or train again")
            _settle_best(run, best_epoch(history))
        except PetsegError as error:
            damage = damage or error
            continue
        if damage is not None:
            told = str(damage).partition(";")[0]
            logging.getLogger("petseg").warning("petseg: warning: %s; going on after epoch %d", told, epoch)
            shutil.rmtree(run / "evaluations", ignore_errors=True)  # they may be of weights that come out otherwise now
        return history
    if damage is not None:
        raise damage
    return []


def _settle_best(run: Path, epoch: int) -> None:
    """Sees to it that the best weights are of `epoch`, the best one of those kept.

    A kill after a new best was written and before its epoch was kept leaves the right ones under the previous name.

    Raises:
        PetsegError: neither file has them.
    """
    best, previous = run / BEST, run / PREVIOUS_BEST
    try:
        found = read_tensors(best)[1]
    except PetsegError:
        if not previous.is_file():
            raise
        found = 0
    if found == epoch:
        return
    if not previous.is_file() or read_tensors(previous)[1] != epoch:
        raise PetsegError(f"{best}: not the weights of epoch {epoch}, the best one; restore it, or train again")
    previous.replace(best)


def _plain(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}


def _save(path: Path, tensors: dict[str, Tensor], epoch: int, keep: Path | None = None) -> None:
    """Writes weights; the file that was there goes to `keep` once the new one is whole."""

    def write(unfinished: Path) -> None:
        try:
            save_file(tensors, unfinished, metadata={"epoch": str(epoch)})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        if keep is not None and path.is_file():
            path.replace(keep)

    runs.write_atomically(path, write)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], int]:
    """Returns the tensors of a safetensors file and the epoch it was written after.

    Raises:
        PetsegError: missing or damaged.
    """
    if not path.is_file():
        raise PetsegError(f"{path}: no such weights; is this the folder of a trained run?")
    try:
        with safe_open(path, framework="pt") as file:
            tensors, epoch = {name: file.get_tensor(name) for name in file.keys()}, int(file.metadata()["epoch"])  # noqa: SIM118
        if epoch < 1:
            raise ValueError(f"epoch {epoch}")
        return tensors, epoch
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise PetsegError(f"{path}: damaged ({error}); train again without --resume, into another folder") from None


def load_weights(model: nn.Module, path: Path) -> int:
    """Loads weights into a model and returns the epoch they are of.

    Raises:
        PetsegError: missing, damaged, or of another model.
    """
    tensors, epoch = read_tensors(path)
    _load(model, tensors, path)
    return epoch


def _load(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        raise PetsegError(
            f"{path}: weights of another model than its config.json describes; restore the pair"
        ) from None


def _restore(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, average: AveragedModel | None) -> int:
    tensors, epoch = read_tensors(path)

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    _load(model, part("model."), path)
    if average is not None:
        _load(average, part("average."), path)
    state = optimiser.state_dict()
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    kept = part("optimiser.")
    expected = {(f"{number}.{kind}") for number in range(len(parameters)) for kind in ("step", "exp_avg", "exp_avg_sq")}
    if kept.keys() != expected:
        raise PetsegError(f"{path}: not the optimiser's state of this model; train again, into another folder")
    state["state"] = {number: {} for number in range(len(parameters))}
    for name, tensor in kept.items():
        number, _, kind = name.partition(".")
        like = parameters[int(number)]
        if tensor.shape != (like.shape if kind != "step" else ()):
            raise PetsegError(f"{path}: not the optimiser's state of this model; train again, into another folder")
        # copies: a view would keep the file mapped, and Windows replaces no mapped file. The fused kernel walks memory,
        # so its averages must lie as the weights do (channels_last)
        state["state"][int(number)][kind] = tensor.clone() if kind == "step" else torch.empty_like(like).copy_(tensor)
    optimiser.load_state_dict(state)
    return epoch


# --- around ----------------------------------------------------------------------------------------------------------


@contextmanager
def _determinism(enabled: bool) -> Iterator[None]:
    """Torch's deterministic algorithms while training, restored after."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(enabled or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _fastest_kernels(hardware: Hardware, settings: TrainConfig) -> Iterator[None]:
    """On a GPU, cuDNN times its convolutions at each new size and keeps the fastest; restored after."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or (hardware.device.type == "cuda" and not settings.deterministic and not settings.ramp)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _check_compiler(device: torch.device) -> None:
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "cl"]
    if device.type == "cpu" and not any(map(shutil.which, names)):
        raise PetsegError(
            f"train.compile is true, but there is no C++ compiler here (looked for {', '.join(names)}); "
            "install one, or leave it false"
        )


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory for the process's next blocks, in huge pages; returns whether that was possible.

    A training step frees and takes the same activations again. By default large blocks go back to the system, which
    zeroes their pages anew at every step (figures in docs/log.md). It changes the whole process, so the command line
    calls it and the library does not.
    """
    if sys.platform != "linux":
        return False
    try:
        libc = ctypes.CDLL(None)
        mallopt, madvise, malloc, free = libc.mallopt, libc.madvise, libc.malloc, libc.free
    except (OSError, AttributeError):  # another C library
        return False
    if not all(mallopt(option, value) == 1 for option, value in GLIBC_KEEPS):
        return False
    malloc.restype = ctypes.c_void_p
    # the heap grows by what training will need; asked for, not used, so it takes no memory yet
    block = malloc(ctypes.c_size_t(HEAP))
    if block:
        start = -(-block // HUGE_PAGE) * HUGE_PAGE
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(block + HEAP - start), MADV_HUGEPAGE)
        free(ctypes.c_void_p(block))
    return True


GLIBC_KEEPS = ((-4, 0), (-1, 2**31 - 1), (-2, 64 * 2**20))
"""M_MMAP_MAX: no block is mapped by itself; M_TRIM_THRESHOLD: none goes back; M_TOP_PAD: the heap grows by 64 MB."""

HEAP, HUGE_PAGE, MADV_HUGEPAGE = 1500 * 2**20, 2 * 2**20, 14
"""Bytes of heap in huge pages (below the threshold, or freeing them gives them back); <sys/mman.h>."""


def _difference(known: RunConfig, wanted: RunConfig) -> str:
    """Returns the first field that differs, in words."""
    old, new = dict(flat_fields(known.model_dump())), dict(flat_fields(wanted.model_dump()))
    field = next(name for name in old if old[name] != new[name])
    return f"{field} is {old[field]!r} there, {new[field]!r} now"


def environment(hardware: Hardware) -> dict[str, Any]:
    """Returns what the figures of this process depend on (`runs.environment`)."""
    device = hardware.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return runs.environment(device=name, precision=hardware.precision, threads=torch.get_num_threads())


def _tensorboard(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise PetsegError(
            "train.tensorboard is true, but tensorboard is missing; pip install 'petseg[tensorboard]'"
        ) from None
    return SummaryWriter(run / "tensorboard")
