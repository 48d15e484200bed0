"""Weights to start or to learn from: those of a run's folder, a shipped model, or an ONNX file of `petseg export`.

A file has its batch normalisation folded into the convolutions before it. Here it gets statistics of images again, and
scale and shift such that the network computes what the file does, in training too.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from petseg.config import ModelConfig
from petseg.data.dataset import Class, classes_from
from petseg.errors import PetsegError, first_line
from petseg.shipped import KINDS, card_of, model_file, shipped_model, shipped_models
from petseg.training import checkpoint, runs
from petseg.training.device import Hardware
from petseg.training.inference import Network, build_network, run_network

COUNTER = ".num_batches_tracked"  # of batch normalisation, without use here
Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


@dataclass(frozen=True)
class ModelFile:
    """What an ONNX file of `petseg export` tells of its network."""

    source: str
    model: ModelConfig
    classes: tuple[Class, ...]
    tensors: Mapping[str, Tensor]  # by the network's own names
    biases: Mapping[str, Tensor]  # by the convolution's own name; its batch normalisation's shift is part of it


def is_run(source: str) -> bool:
    """Returns whether weights are those of a run; refuses what is neither that nor a model's file or name."""
    if Path(source).is_dir():
        return True
    names = (*KINDS, *shipped_models())
    if source.endswith(".onnx") or source in names:
        return False
    wanted = f"the folder of a trained run, an ONNX file of `petseg export`, or one of {', '.join(names)}"
    raise PetsegError(f"{source}: no such weights; wanted {wanted}")


def model_of(source: str) -> ModelConfig:
    """Returns which network some weights are of."""
    return runs.read_config(Path(source)).model if is_run(source) else read_model(source).model


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
        for name in [name for name in tensors if name.endswith(".weight.0")]:  # 0.1 cut those of joined maps in two
            whole = name.removesuffix(".0")
            tensors[whole] = torch.cat([tensors[name], tensors[f"{whole}.1"]], dim=1)
        convolutions = [node.input for node in file.graph.node if node.op_type in ("Conv", "ConvTranspose")]
        biases = {
            weight.removeprefix("model.").rpartition(".weight")[0]: torch.tensor(values[bias[0]])
            for _, weight, *bias in convolutions
            if bias
        }
        model, classes = ModelConfig(**card["config"]["model"]), classes_from(card["classes"])
    except Exception as error:  # protobuf's, pydantic's, and whatever a file of another maker leads to
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise PetsegError(f"{source}: not a model that `petseg export` wrote ({reason})") from None
    return ModelFile(source, model, classes, tensors, biases)


def load_initial(network: Network, source: str, images: Tensor) -> None:
    """Loads weights by their names; a head of another number of classes stays as it is.

    `images`, float32 [N, 3, H, W] in 0..1, are those whose statistics a file's batch normalisation gets.
    """
    if is_run(source):
        path = Path(source) / checkpoint.BEST
        tensors, _ = checkpoint.read_tensors(path)
        checkpoint.load(network.module, _with_own_head(network.module, tensors), path)
    else:
        _load_file(network, read_model(source), images)


def load_teacher(source: str, classes: Sequence[Class], hardware: Hardware, images: Tensor) -> Network:
    """Returns the network of some weights, ready to teach; refuses one of other classes. `images` as above."""
    if is_run(source):
        config, known = (
            runs.read_config(Path(source)).model,
            [entry.name for entry in runs.read_data(Path(source)).classes],
        )
        network = run_network(Path(source), config, len(known), hardware)
    else:
        file = read_model(source)
        known = [entry.name for entry in file.classes]
        network = build_network(file.model, len(known), hardware)
    wanted = [entry.name for entry in classes]
    if known != wanted:
        given = f"knows {', '.join(known)}; wanted {', '.join(wanted)}"
        raise PetsegError(f"train.teacher {source}: {given}: train one of these classes")
    load_initial(network, source, images)
    network.module.eval().requires_grad_(False)
    return network


def _with_own_head(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors with the module's own where nothing but the number of classes differs."""
    own = module.state_dict()
    other = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    heads = all(own[name].shape[1:] == tensors[name].shape[1:] for name in other)
    return {**tensors, **{name: own[name] for name in other if heads}}


def _load_file(network: Network, file: ModelFile, images: Tensor) -> None:
    module, own = network.module, network.module.state_dict()
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
            f"{file.source}: weights of another network, without {missing[0]}; name its own by --model, or none"
        )
    tensors = {**{name: given[name] for name in own if name not in kept}, **kept}
    checkpoint.load(module, _with_own_head(module, tensors), Path(file.source))
    _unfold(network, folded, file, images)


@torch.no_grad()
def _unfold(network: Network, folded: Mapping[str, _BatchNorm], file: ModelFile, images: Tensor) -> None:
    """Gives each batch normalisation the statistics of what it gets from a convolution, and lets it undo them."""
    last: dict[str, Tensor] = {}  # what the convolution before gave, and the bias that it has not itself

    def after(layer: str, convolution: nn.Module) -> Hook:
        own = convolution.bias is not None
        bias = torch.zeros(()) if own else file.biases.get(layer, torch.zeros(()))

        def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            last.update(output=output, bias=bias.to(output.device))

        return keep

    def fill(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        if inputs[0] is not last.get("output"):
            raise PetsegError(f"{file.source}: batch normalisation without a convolution; give the folder of its run")
        variance, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3), correction=0)
        norm.load_state_dict(
            {
                "weight": (variance + norm.eps).sqrt(),
                "bias": mean + last["bias"],
                "running_mean": mean,
                "running_var": variance,
            },
            strict=False,
        )

    hooks = [layer.register_forward_pre_hook(fill) for layer in folded.values()]
    for name, layer in network.module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            hooks.append(layer.register_forward_hook(after(name, layer)))
    network.module.eval()
    try:
        network.module(network.input.normalise(images))
    finally:
        for hook in hooks:
            hook.remove()
