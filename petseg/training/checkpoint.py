"""Checkpoints: weights and the optimiser's state after each whole epoch, and how a run goes on from them.

best.safetensors    weights of the best epoch on validation
last.safetensors    weights of the last epoch
resume.safetensors  weights, optimiser and average after the last whole epoch; written last
*.previous.*        best and resume of the epoch before, taken where the newer file is damaged
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_map

from petseg import storage
from petseg.errors import PetsegError
from petseg.schema import EpochRow
from petseg.training import distributed, runs

BEST, PREVIOUS_BEST = "best.safetensors", "best.previous.safetensors"
LAST = "last.safetensors"
RESUME, PREVIOUS_RESUME = "resume.safetensors", "resume.previous.safetensors"


@dataclass(frozen=True)
class State:
    """What training changes: weights, the optimiser's moments, and the averaged weights where there are any."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    average: AveragedModel | None

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are scored and kept."""
        return self.model if self.average is None else self.average.module


def best_epoch(history: Sequence[EpochRow]) -> int:
    """Returns the epoch with the best validation mIoU, the first of equals."""
    return max(history, key=lambda row: row.val_miou).epoch


def read_tensors(path: Path) -> tuple[dict[str, Tensor], int]:
    """Returns the tensors of a safetensors file and the epoch it was written after; refuses a damaged one."""
    if not path.is_file():
        raise PetsegError(f"{path}: no such weights; is this the folder of a trained run?")
    try:
        with safe_open(path, framework="pt") as file:
            tensors, epoch = {name: file.get_tensor(name) for name in file.keys()}, int(file.metadata()["epoch"])  # noqa: SIM118
        if epoch < 1:
            raise ValueError(f"epoch {epoch}")
        return tensors, epoch
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise PetsegError(f"{path}: damaged ({error}); train again, into another folder") from None


def load_weights(model: nn.Module, path: Path) -> int:
    """Loads weights into a model and returns the epoch they are of; refuses those of another model."""
    tensors, epoch = read_tensors(path)
    _load(model, tensors, path)
    return epoch


def _load(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        raise PetsegError(f"{path}: weights of another model than its config.json describes; restore both") from None


def _save(path: Path, tensors: dict[str, Tensor], epoch: int, keep: Path | None = None) -> None:
    """Writes weights; the file that was there goes to `keep` once the new one is whole."""

    def write(unfinished: Path) -> None:
        unfinished.touch()
        mode = unfinished.stat().st_mode  # as the caller's umask has it; safetensors puts a file of mode 0600 there
        try:
            save_file(tensors, unfinished, metadata={"epoch": str(epoch)})
            unfinished.chmod(mode)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        if keep is not None and path.is_file():
            path.replace(keep)

    storage.write_atomically(path, write)


def save(run: Path, state: State, history: Sequence[EpochRow]) -> None:
    """Writes weights and metrics, and last the file that a resumed run starts from: it names the whole epoch."""
    epoch = history[-1].epoch
    weights = _named(state.evaluated)
    new_best = best_epoch(history) == epoch
    if new_best:
        _save(run / BEST, weights, epoch, keep=run / PREVIOUS_BEST)
    _save(run / LAST, weights, epoch)
    runs.write_metrics(run, history)
    tensors = _named(state.model, "model.")
    known = state.optimiser.state_dict()["state"]
    for number, parameter in enumerate(_parameters(state.optimiser)):
        zeros = torch.zeros_like(parameter)  # of a parameter that never had a gradient
        values = known.get(number, {"step": torch.zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros.clone()})
        tensors |= {f"optimiser.{number}.{name}": value.contiguous() for name, value in values.items()}
    if state.average is not None:
        tensors |= _named(state.average, "average.")
    _save(run / RESUME, tensors, epoch, keep=run / PREVIOUS_RESUME)
    if not new_best:
        (run / PREVIOUS_BEST).unlink(missing_ok=True)  # the best is that of both epochs that are kept


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _named(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    # copies: safetensors refuses tensors that share memory, as tied weights do
    tensors = model.state_dict().items()
    return {prefix + name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors}


def restore(run: Path, state: State) -> list[EpochRow]:
    """Returns the rows of the whole epochs kept, with the state after them; the newer checkpoint may be damaged."""
    damage: PetsegError | None = None
    for path in (run / RESUME, run / PREVIOUS_RESUME):
        if not path.is_file():
            continue
        try:
            epoch = _restore(path, state)
            history = runs.read_metrics(run, up_to=epoch)
            if len(history) < epoch:
                raise PetsegError(
                    f"{run / 'metrics.jsonl'}: holds {len(history)} epochs where {path.name} is after {epoch}; "
                    "restore the file, or train again into another folder"
                )
            _settle_best(run, best_epoch(history))
        except PetsegError as error:
            damage = damage or error
            continue
        if damage is not None:
            reason = str(damage).partition(";")[0]
            logging.getLogger("petseg").warning("petseg: warning: %s; going on after epoch %d", reason, epoch)
            shutil.rmtree(run / "evaluations", ignore_errors=True)  # they may be of weights that come out otherwise now
        return history
    if damage is not None:
        raise damage
    return []


def share(state: State, history: Sequence[EpochRow]) -> list[EpochRow]:
    """Gives every rank the state and the rows of the first one."""
    if distributed.count() == 1:
        return list(history)
    parts = {"model": state.model, "average": state.average, "optimiser": state.optimiser}
    kept = {name: tree_map(_on_host, part.state_dict()) for name, part in parts.items() if part is not None}
    rows, kept = distributed.shared((list(history), kept))
    if distributed.rank() > 0:
        for name, part in parts.items():
            if part is not None:
                part.load_state_dict(kept[name])
    return rows


def _on_host(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def _settle_best(run: Path, epoch: int) -> None:
    """Sees to it that the best weights are of `epoch`, the best one of those kept."""
    best, previous = run / BEST, run / PREVIOUS_BEST  # killed before a new best's epoch was kept, previous is right
    try:
        if read_tensors(best)[1] == epoch:
            return
    except PetsegError:
        if not previous.is_file():
            raise
    if not previous.is_file() or read_tensors(previous)[1] != epoch:
        raise PetsegError(f"{best}: not the weights of epoch {epoch}, the best one; restore it, or train again")
    previous.replace(best)


def _restore(path: Path, state: State) -> int:
    tensors, epoch = read_tensors(path)
    optimiser, parameters = state.optimiser, _parameters(state.optimiser)

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    _load(state.model, part("model."), path)
    if state.average is not None:
        _load(state.average, part("average."), path)
    kept = part("optimiser.")
    shapes = {
        f"{number}.{kind}": () if kind == "step" else tuple(parameter.shape)
        for number, parameter in enumerate(parameters)
        for kind in ("step", "exp_avg", "exp_avg_sq")
    }
    if {name: tuple(tensor.shape) for name, tensor in kept.items()} != shapes:
        raise PetsegError(f"{path}: not the optimiser's state of this model; train again, into another folder")
    moments: dict[int, dict[str, Tensor]] = {number: {} for number in range(len(parameters))}
    for name, tensor in kept.items():
        number, _, kind = name.partition(".")
        like = parameters[int(number)]
        # copies: a view would keep the file mapped, and Windows replaces no mapped file. The fused kernel walks memory,
        # so its averages must lie as the weights do (channels_last)
        moments[int(number)][kind] = tensor.clone() if kind == "step" else torch.empty_like(like).copy_(tensor)
    optimiser.load_state_dict(optimiser.state_dict() | {"state": moments})
    return epoch
