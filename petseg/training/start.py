"""Weights to start or to learn from: those of a run's folder, a shipped model, or an ONNX file of `petseg export`.

A file has its batch normalisation folded into the convolutions before it. Here it gets statistics of images again, and
scale and shift such that the network computes what the file does, in training too.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from petseg.config import ModelConfig
from petseg.data.dataset import Class, classes_from
from petseg.errors import PetsegError, first_line
from petseg.models.builder import Input
from petseg.shipped import card_of, model_file, model_names, shipped_model
from petseg.training import checkpoint, runs
from petseg.training.device import Hardware
from petseg.training.inference import Network, build_network, grey_images, read_input, run_network
from petseg.training.own import located

COUNTER = ".num_batches_tracked"  # of batch normalisation, without use here
OWN_NETWORK = "train the network of these weights (leave --model and its options out)"
Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


@dataclass(frozen=True)
class ModelFile:
    """What an ONNX file of `petseg export` tells of its network."""

    source: str
    model: ModelConfig
    classes: tuple[Class, ...]
    tensors: Mapping[str, Tensor]  # by the network's own names
    biases: Mapping[str, Tensor]  # by the convolution's own name; its batch normalisation's shift is part of it
    input: Input | None  # None in files of older versions


def is_run(source: str) -> bool:
    """Returns whether weights are those of a run; refuses what is neither that nor a model's file or name."""
    names = model_names()
    if (Path(source) / "config.json").is_file() or (source and source not in names and Path(source).is_dir()):
        return True
    if source.endswith(".onnx") or source in names:
        return False
    wanted = f"the folder of a trained run, an ONNX file of `petseg export`, or one of {', '.join(names)}"
    raise PetsegError(f"{source}: no such weights; wanted {wanted}")


def model_of(source: str) -> ModelConfig:
    """Returns which network some weights are of."""
    return located(Path(source), runs.read_config(Path(source)).model) if is_run(source) else read_model(source).model


def read_model(source: str) -> ModelFile:
    """Returns what a shipped model or an ONNX file holds; refuses a file that `petseg export` did not write."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise PetsegError("a model's file is read by onnx, which is missing; pip install 'petseg[export]'") from None
    content = model_file(source)
    try:
        file = onnx.load_from_string(content)
        card: dict[str, Any] = {entry.key: json.loads(entry.value) for entry in file.metadata_props}
        if not source.endswith(".onnx"):  # files of older versions say it in an older form
            card |= card_of(shipped_model(source))
        values = {entry.name: numpy_helper.to_array(entry) for entry in file.graph.initializer}
        for node in file.graph.node:
            if node.op_type == "Cast" and node.input[0] in values:  # stored in fp16
                values[node.output[0]] = values[node.input[0]].astype("float32")
        tensors = {name.removeprefix("model."): torch.tensor(value) for name, value in values.items()}
        for name in [name for name in tensors if name.endswith(".weight.0")]:  # those of joined maps are in two
            whole = name.removesuffix(".0")
            tensors[whole] = torch.cat([tensors[name], tensors[f"{whole}.1"]], dim=1)
        convolutions = [node.input for node in file.graph.node if node.op_type in ("Conv", "ConvTranspose")]
        biases = {
            weight.removeprefix("model.").rpartition(".weight")[0]: torch.tensor(values[bias[0]])
            for _, weight, *bias in convolutions
            if bias
        }
        model, classes = ModelConfig(**card["config"]["model"]), classes_from(card["classes"])
        seen = card.get("input") and Input(tuple(card["input"]["mean"]), tuple(card["input"]["std"]))
    except Exception as error:  # protobuf's, pydantic's, and whatever a file of another maker leads to
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise PetsegError(f"{source}: not a model that `petseg export` wrote ({reason})") from None
    return ModelFile(source, model, classes, tensors, biases, seen)


def load_initial(network: Network, source: str, images: Iterable[Tensor]) -> None:
    """Loads weights by their names; a head of another number of classes stays as it is.

    `images`, batches float32 [N, 3, H, W] in 0..1, are those whose statistics a file's batch normalisation gets.
    """
    if is_run(source):
        _load_run(network, Path(source))
    else:
        _load_file(network, read_model(source), images)


def load_teacher(source: str, classes: Sequence[Class], hardware: Hardware, side: int) -> Network:
    """Returns the network of some weights, ready to teach images of a `side`; refuses one of other classes."""
    run, file = Path(source), None if is_run(source) else read_model(source)
    known = [entry.name for entry in (runs.read_data(run) if file is None else file).classes]
    wanted = [entry.name for entry in classes]
    if known != wanted:
        given = f"knows {', '.join(known)}; wanted {', '.join(wanted)}"
        raise PetsegError(f"train.teacher {source}: {given}: train one of these classes")
    if file is None:
        network = run_network(run, runs.read_config(run).model, len(known), hardware)
        _load_run(network, run)
    else:
        network = build_network(file.model, len(known), hardware)
        # what it says does not depend on the statistics, so grey images do
        _load_file(network, file, [grey_images(side, hardware)])
    network.module.eval().requires_grad_(False)
    return network


def _load(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Loads tensors, but keeps the module's own where nothing but the number of classes differs."""
    own = module.state_dict()
    other = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    heads = all(own[name].shape[1:] == tensors[name].shape[1:] for name in other)
    try:
        module.load_state_dict({**tensors, **{name: own[name] for name in other if heads}})
    except RuntimeError:
        raise PetsegError(f"{source}: weights of another network; {OWN_NETWORK}") from None


def _refuse_other_input(network: Network, seen: Input, source: str) -> None:
    given, wanted = ((some.mean, some.std) for some in (seen, network.input))
    if given != wanted:
        raise PetsegError(
            f"{source}: its images have mean and deviation {given}, this network's {wanted}; {OWN_NETWORK}"
        )


def _load_run(network: Network, run: Path) -> None:
    _refuse_other_input(network, read_input(run, network.input), str(run))
    tensors, _ = checkpoint.read_tensors(run / checkpoint.BEST)
    _load(network.module, tensors, str(run))


def _load_file(network: Network, file: ModelFile, images: Iterable[Tensor]) -> None:
    module, own = network.module, network.module.state_dict()
    if file.input is not None:
        _refuse_other_input(network, file.input, file.source)
    given = {**file.tensors, **{f"{layer}.bias": bias for layer, bias in file.biases.items()}}
    folded = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and f"{name}.running_mean" not in given
    }
    kept = {name: value for name, value in own.items() if name.rpartition(".")[0] in folded or name.endswith(COUNTER)}
    missing = sorted(own.keys() - given.keys() - kept.keys())
    if missing:
        raise PetsegError(
            f"{file.source}: holds no {missing[0]} of this network; {OWN_NETWORK}, or give the folder of its run"
        )
    _load(module, {**{name: given[name] for name in own if name not in kept}, **kept}, file.source)
    _unfold(network, [*folded.values()], file, images)


@torch.no_grad()
def _unfold(network: Network, folded: Sequence[_BatchNorm], file: ModelFile, images: Iterable[Tensor]) -> None:
    """Gives each batch normalisation the statistics of what it gets from a convolution, and lets it undo them.

    What it returns does not depend on the statistics, so one pass over the images finds those of all layers.
    """
    last: dict[str, Tensor] = {}  # what the convolution before gave, and the bias that it has not itself
    sums: dict[nn.Module, Tensor] = {}  # float64 [3, C]: pixels, their sum, the sum of their squares

    def after(layer: str, convolution: nn.Module) -> Hook:
        own = convolution.bias is not None
        bias = torch.zeros(()) if own else file.biases.get(layer, torch.zeros(()))

        def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            last.update(output=output, bias=bias)

        return keep

    def fill(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        maps = inputs[0].float()
        if inputs[0] is not last.get("output"):
            raise PetsegError(f"{file.source}: batch normalisation without a convolution; give the folder of its run")
        pixels = torch.full_like(maps[0, :, 0, 0], maps[:, 0].numel())
        seen = torch.stack([pixels, maps.sum(dim=(0, 2, 3)), maps.square().sum(dim=(0, 2, 3))]).cpu().double()
        count, total, squares = sums[norm] = sums.get(norm, torch.zeros_like(seen)) + seen
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        values = {"weight": (variance + norm.eps).sqrt(), "bias": mean + last["bias"]}
        norm.load_state_dict({**values, "running_mean": mean, "running_var": variance}, strict=False)

    hooks = [layer.register_forward_pre_hook(fill) for layer in folded]
    for name, layer in network.module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            hooks.append(layer.register_forward_hook(after(name, layer)))
    network.module.eval()
    try:
        for batch in images if folded else ():
            network.module(network.input.normalise(batch))
    finally:
        for hook in hooks:
            hook.remove()
