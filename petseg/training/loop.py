"""Training: `train(config, prepared, run)` fills a run folder; an epoch's random numbers come from (seed, epoch)."""

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from petseg.config import RunConfig, TrainConfig
from petseg.data.augment import augment
from petseg.data.cache import Prepared
from petseg.data.check import refuse_spoiled
from petseg.data.dataset import IGNORE
from petseg.errors import DivergedError, PetsegError
from petseg.models import pretrain, pretrained
from petseg.schema import EpochRow, exploded, write_record
from petseg.storage import write_json
from petseg.threads import OtherWork, follow, keep_pace
from petseg.training import checkpoint, distributed, runs
from petseg.training.batches import Rows, Split, epoch_batches, load_splits
from petseg.training.checkpoint import State
from petseg.training.device import Hardware, choose_hardware
from petseg.training.distillation import distillation_loss, lesson
from petseg.training.inference import Network, claim_input, evaluation_batches, new_network, read_input, validate
from petseg.training.losses import cross_entropy, dice_loss, median_frequency_weights
from petseg.training.own import claim_file, located
from petseg.training.recompute import recompute_blocks
from petseg.training.start import load_initial, load_teacher
from petseg.training.unlabelled import batches_beside, load_unlabelled

STATISTICS = 128  # images whose statistics a model's file gets; of 8, a first step at 192 px began at .27, not .15
CHECK_EVERY = 50  # steps between looks at the losses for nan: each look waits for the device
OnStep = Callable[[int, int, str], None]  # called with the steps done, all steps, and what stands beside a progress bar


@dataclass(frozen=True)
class Execution:
    """How a run is carried out; nothing of it is part of what the run is."""

    hardware: Hardware | None = None  #: None: by `config.train.precision`
    resume: bool = False  #: go on after the last whole epoch in the folder; a finished run returns at once
    splits: Mapping[str, Split] | None = None  #: of `load_splits`, where the caller has them already
    on_step: OnStep = lambda done, total, detail: None  #: after each: steps done, all steps, what stands beside a bar
    more_epochs: bool = False  #: a finished run may be given more of them; the rate then follows the longer schedule
    on_epoch: Callable[[EpochRow], None] = lambda row: None  #: after each, once its row is written


def train(config: RunConfig, prepared: Prepared, run: str | Path, execution: Execution = Execution()) -> list[EpochRow]:
    """Returns the rows of metrics.jsonl after training the model of `config` into the folder `run`.

    Refuses a folder that exists (when resuming: one of another config, or with damaged checkpoints), and ends with
    `DivergedError` where the loss becomes NaN or infinite. Random numbers are of `train.seed`; the caller's own go on
    as if nothing had been trained.
    """
    run = Path(run)
    distributed.check_batch(config.train.batch_size)
    hardware = execution.hardware or choose_hardware(config.train.precision)
    if config.train.compile:
        _check_compiler(hardware.device)
    refuse_spoiled(prepared)
    splits = execution.splits or load_splits(prepared, config, hardware.device)
    if splits["train"].dataset.classes != prepared.dataset.classes:
        raise PetsegError("the splits hold other classes than the dataset; load them from the same dataset")
    placed = config.model_copy(update={"model": located(run, config.model)})  # what is built; the run keeps its config
    with hardware.random_state_kept():
        network = _drawn(placed, len(prepared.dataset.classes), hardware)
        if not (execution.resume and (run / checkpoint.RESUME).is_file()):
            _initialise(network, placed, splits["train"])
        with _folder(run, config, prepared, execution):
            settled = claim_input if distributed.rank() == 0 else read_input
            network = replace(network, input=settled(run, network.input))
            trainer = Trainer(placed, network, splits["train"], load_unlabelled(config, splits["train"]))
            history = checkpoint.restore(run, trainer.state) if execution.resume and distributed.rank() == 0 else []
            history = checkpoint.share(trainer.state, history)
            if len(history) >= config.train.epochs or _waited(history, config):
                return history
            keep = _keeper(run, config, hardware, trainer.state)
            with _determinism(config.train.deterministic):
                while len(history) < config.train.epochs and not _waited(history, config):
                    history.append(_next_epoch(trainer, history, splits["val"], execution.on_step))
                    keep(history)
                    execution.on_epoch(history[-1])
            _remark(run, history[-1].val_loss, len(prepared.dataset.scored_classes))
            return history


def _next_epoch(trainer: "Trainer", history: Sequence[EpochRow], val: Split, on_step: OnStep) -> EpochRow:
    """Returns the row of the epoch after those of `history`, trained and validated now."""
    epoch, started, others = len(history) + 1, time.perf_counter(), OtherWork()
    detail = f"epoch {epoch}" + (f", val loss {history[-1].val_loss:.4f}" if history else "")
    train_loss = trainer.epoch(epoch, detail, on_step)
    trained = time.perf_counter()
    distributed.share_buffers(trainer.state.evaluated)
    scores = validate(replace(trainer.network, module=trainer.state.evaluated), val)
    if not math.isfinite(scores.val_loss):
        raise _diverged("validation loss", f"after epoch {epoch}")
    return EpochRow(
        epoch=epoch,
        seconds=round(time.perf_counter() - started, 3),
        train_seconds=round(trained - started, 3),
        learning_rate=max(float(group["lr"]) for group in trainer.state.optimiser.param_groups),
        train_loss=train_loss,
        other_seconds=others.seconds(),
        ranks=distributed.count(),
        **asdict(scores),
    )


def _drawn(config: RunConfig, num_classes: int, hardware: Hardware) -> Network:
    torch.manual_seed(config.train.seed)
    network = new_network(config, num_classes, hardware)
    if config.train.synchronise:
        network = replace(network, module=distributed.synchronised(network.module))
    return network


def _initialise(network: Network, config: RunConfig, split: Split) -> None:
    if distributed.rank() > 0:  # the first rank's weights are shared
        return
    if config.train.init:
        load_initial(network, config.train.init, _first_images(config, split))
    else:
        pretrain(config.model, network.module)


def _first_images(config: RunConfig, split: Split) -> Iterator[Tensor]:
    """Yields batches of `STATISTICS` images, or of all, as the first epoch sees them without augmentation."""
    generator = torch.Generator().manual_seed(config.train.seed)
    rows = np.random.default_rng(config.train.seed).permutation(split.epoch_rows)[:STATISTICS]
    for batch in evaluation_batches(rows, config.side(1)):
        yield split.batch(batch, config.side(1), generator)[0]


@contextmanager
def _folder(run: Path, config: RunConfig, prepared: Prepared, execution: Execution) -> Iterator[None]:
    """Makes the run's folder, or takes it up again, for the block; of several ranks, the first does."""
    if distributed.rank() > 0:
        yield
        return
    with runs.new_folder(run, resume=execution.resume):
        _claim(run, config, prepared, execution)
        yield


def _keeper(run: Path, config: RunConfig, hardware: Hardware, state: State) -> Callable[[list[EpochRow]], None]:
    """Writes down what the run is, and returns what keeps each epoch's state; of several ranks, the first does."""
    if distributed.rank() > 0:
        return lambda history: None
    if not (run / "environment.json").is_file():
        write_record(run / "environment.json", hardware.environment())
    write_json(run / "config.json", config.model_dump(mode="json"))
    log = _tensorboard(run) if config.train.tensorboard else lambda row: None

    def keep(history: list[EpochRow]) -> None:
        checkpoint.save(run, state, history)
        log(history[-1])

    return keep


class Trainer:
    """A model, its optimiser and its averaged weights, and how one epoch changes them."""

    def __init__(self, config: RunConfig, network: Network, split: Split, unlabelled: Split | None = None) -> None:
        settings, model = config.train, network.module
        self.config = config
        self.network = network
        self.split = split
        decay = get_ema_multi_avg_fn(settings.ema) if settings.ema else None
        average = AveragedModel(model, multi_avg_fn=decay, use_buffers=True) if decay else None
        self.encoder = getattr(model, "encoder", None) if settings.init or pretrained(config.model) else None
        self.state = State(model, make_optimiser(model, settings, self.encoder), average)
        self.unlabelled = unlabelled
        if settings.checkpoint_activations:
            recompute_blocks(model)
        self.parallel: nn.Module | None = None  # the model with its gradients averaged over ranks
        weights = None
        if settings.class_weights != "none":
            weights = median_frequency_weights(split.label_images(), len(split.dataset.classes)).to(split.device)
        self.objective = Objective(settings, weights)

    @cached_property
    def teacher(self) -> Network | None:
        """What the model learns from beside the labels; a finished run needs none."""
        if not self.config.train.teacher:
            return None
        classes, side = self.split.dataset.classes, self.config.side(1)
        teacher = load_teacher(self.config.train.teacher, classes, self.network.hardware, side)
        return self._compiled(teacher) if self.config.train.compile else teacher

    def epoch(self, epoch: int, detail: str, on_step: OnStep) -> float:
        """Returns the epoch's mean cross-entropy over images, unweighted, without Dice, augmentation and dropout on."""
        settings, side, teacher = self.config.train, self.config.side(epoch), self.teacher
        batches = epoch_batches(self.split.epoch_rows, epoch, settings)
        beside: list[Rows] = []
        if self.unlabelled is not None:
            beside = batches_beside(self.unlabelled, epoch, [len(rows) for rows in batches], settings)
        steps = settings.epochs * len(batches)
        torch.manual_seed(epoch_seed(settings.seed, epoch))  # dropout
        generator = torch.Generator().manual_seed(epoch_seed(settings.seed, epoch))
        background = self.split.dataset.background
        augmented = partial(augment, config=settings.augment, generator=generator, background=background)
        # a compilation for each size of a batch, and none for validation, which would be one more
        network = replace(self.network, module=self._start_training(epoch))
        if settings.compile:
            network = self._compiled(network)
        losses: list[Tensor] = []
        objectives: list[Tensor] = []
        for index, rows in enumerate(batches):
            step = (epoch - 1) * len(batches) + index
            for group in self.state.optimiser.param_groups:
                group["lr"] = learning_rate(step, steps, settings) * group["factor"]
            images, labels = augmented(*self.split.batch(distributed.part(rows), side, generator))
            wanted = self.objective
            if self.unlabelled is not None:
                more, _ = augmented(*self.unlabelled.batch(distributed.part(beside[index]), side, generator))
                unknown = labels.new_full((len(more), *labels.shape[1:]), IGNORE)
                images, labels = torch.cat([images, more]), torch.cat([labels, unknown])
            if teacher is not None:
                wanted = replace(wanted, taught=lesson(teacher, images))
            loss, objective = train_step(network, self.state.optimiser, images, labels, wanted)
            if self.state.average is not None:
                self.state.average.update_parameters(self.state.model)
            losses.append(loss * len(rows))
            objectives.append(objective)
            if (index + 1) % CHECK_EVERY == 0 or index + 1 == len(batches):
                finite = (distributed.total((~torch.isfinite(torch.stack(objectives))).float()) == 0).tolist()
                if not all(finite):
                    first = step + 1 - len(finite) + finite.index(False)
                    raise _diverged("loss", f"at step {first + 1} (epoch {epoch})")
            on_step(step + 1, steps, detail)
            keep_pace()
        return float(distributed.total(torch.stack(losses).sum())) / distributed.count() / sum(map(len, batches))

    def _compiled(self, network: Network) -> Network:
        return replace(network, module=cast(nn.Module, torch.compile(network.module, dynamic=False)))

    def _start_training(self, epoch: int) -> nn.Module:
        """Returns the network in training mode, but for what of its encoder stays as it is in this epoch."""
        settings, model = self.config.train, self.state.model
        model.train()
        frozen = self.encoder is not None and epoch <= settings.frozen_epochs
        if self.encoder is not None:
            if settings.frozen_epochs:
                self.encoder.requires_grad_(not frozen)
            for module in self.encoder.modules():
                if frozen or (settings.encoder_batch_norm == "frozen" and isinstance(module, _BatchNorm)):
                    module.training = False
        if self.parallel is None or epoch == settings.frozen_epochs + 1:
            self.parallel = None  # the one before takes its hooks along
            self.parallel = distributed.parallel(model)  # it waits for the gradients of what has them now
        return self.parallel


@dataclass(frozen=True)
class Objective:
    """What is minimised."""

    settings: TrainConfig
    class_weights: Tensor | None = None  # float32 [C] or None
    taught: Tensor | None = None  # a teacher's logits of the batch

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the cross-entropy and the objective (scalars) of logits [N, C, H, W] and labels int64 [N, H, W]."""
        if self.taught is not None:
            loss, objective = replace(self, taught=None)(logits, labels)
            part = self.settings.teacher_weight
            apart = distributed.weight(labels.numel) * distillation_loss(logits, self.taught)
            return loss, (1 - part) * objective + part * apart
        loss = distributed.weight(lambda: (labels != IGNORE).sum()) * cross_entropy(logits, labels)
        objective = loss
        if self.class_weights is not None:
            weights = self.class_weights
            weighed = distributed.weight(lambda: weights[labels[labels != IGNORE]].sum())
            objective = weighed * cross_entropy(logits, labels, weights)
        if self.settings.dice_weight:
            objective = objective + self.settings.dice_weight * dice_loss(logits, labels)
        return loss, objective


def make_optimiser(model: nn.Module, config: TrainConfig, encoder: nn.Module | None = None) -> torch.optim.AdamW:
    """Returns AdamW (arXiv 1711.05101), weight decay on convolution weights only, one fused kernel a step.

    A group's "factor" multiplies the learning rate of its parameters: `train.encoder_rate` for an `encoder` given.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    slower = set() if encoder is None else {id(parameter) for parameter in encoder.parameters()}
    for parameter in model.parameters():
        factor = config.encoder_rate if id(parameter) in slower else 1.0
        groups.setdefault((factor, config.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    parts = [{"params": some, "weight_decay": decay, "factor": factor} for (factor, decay), some in groups.items()]
    return torch.optim.AdamW(parts, lr=config.learning_rate, fused=True)


def epoch_seed(seed: int, epoch: int) -> int:
    """Returns what an epoch's augmentation and dropout are drawn from: ranks draw apart."""
    return (seed + 2**20 * distributed.rank()) * 1_000_003 + epoch


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Returns the rate of a step (from 0): linear warm-up, then a cosine to zero at the end.

    >>> learning_rate(99, 100, TrainConfig(learning_rate=1.0)) < 1e-3
    True
    """
    warmup = config.warmup * steps
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))


def train_step(
    network: Network, optimiser: torch.optim.Optimizer, images: Tensor, labels: Tensor, objective: Objective
) -> tuple[Tensor, Tensor]:
    """Returns the batch's cross-entropy and what was minimised (scalars, detached), after one step of the optimiser.

    Images are float32 [N, 3, H, W] in 0..1, labels uint8 [N, H, W], 255 ignored; the network is in training mode.
    """
    loss, minimised = objective(network.logits(images), labels.long())
    optimiser.zero_grad(set_to_none=True)
    minimised.backward()
    if objective.settings.gradient_clip:
        nn.utils.clip_grad_norm_(network.module.parameters(), objective.settings.gradient_clip)
    optimiser.step()
    return loss.detach(), minimised.detach()


def _diverged(what: str, where: str) -> DivergedError:
    return DivergedError(
        f"training: the {what} is not a number {where}; the run is kept as of the whole epoch before: "
        "try a lower train.learning_rate in another folder"
    )


def _remark(run: Path, loss: float, classes: int) -> None:
    if distributed.rank() == 0 and exploded(loss, classes):
        logging.getLogger("petseg").warning(
            "petseg: warning: %s: validation loss %.4g is more than twice a guess's, %.2f: the model learnt nothing; "
            "try a lower train.learning_rate in another folder",
            *(run, loss, math.log(classes)),
        )


def _check_compiler(device: torch.device) -> None:
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "cl"]
    if device.type == "cpu" and not any(map(shutil.which, names)):
        raise PetsegError(
            f"train.compile is true, but there is no C++ compiler here (looked for {', '.join(names)}); "
            "install one, or leave it false"
        )


def _waited(history: Sequence[EpochRow], config: RunConfig) -> bool:
    """Returns whether `train.patience` epochs have passed without a better one."""
    patience = config.train.patience
    return bool(history) and 0 < patience <= history[-1].epoch - checkpoint.best_epoch(history)


def _claim(run: Path, config: RunConfig, prepared: Prepared, execution: Execution) -> None:
    """Refuses a folder of another config or other images, and writes down which images they are."""
    if (run / "config.json").is_file():
        known, given = runs.read_config(run), config.train.epochs
        if execution.more_epochs and len(runs.read_metrics(run)) >= known.train.epochs < given:
            known = known.model_copy(update={"train": known.train.model_copy(update={"epochs": given})})
        runs.refuse_change(run, known.model_dump(mode="json"), config.model_dump(mode="json"))
    runs.claim_data(run, prepared)
    claim_file(run, config.model)


@contextmanager
def _determinism(enabled: bool) -> Iterator[None]:
    """Torch's deterministic algorithms while training, restored after; and one number of threads, from then on."""
    if enabled:
        follow(None)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(enabled or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _tensorboard(run: Path) -> Callable[[EpochRow], None]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise PetsegError("train.tensorboard: tensorboard is missing; pip install 'petseg[tensorboard]'") from None
    board: Any = SummaryWriter(run / "tensorboard")

    def log(row: EpochRow) -> None:
        for name in ("train_loss", "val_loss", "val_miou", "learning_rate"):
            board.add_scalar(name, getattr(row, name), row.epoch)
        board.flush()

    return log
