"""Export: `export_run(run, out)` writes a trained run as one file that needs neither its run nor this package.

ONNX for everything else that runs networks, a torch.export program for torch, OpenVINO for Intel's processors:

    input   image          uint8   [N, H, W, 3]   RGB; N is free, and so are H and W in even steps (`_traced`)
    output  probabilities  float32 [N, C, H, W]   0..1, the classes of a pixel add up to 1

Normalisation and softmax are part of the graph. The file's metadata say the rest, each value as JSON
(`petseg.predict.segmenter` reads them): classes, size, scores, licence. A file is kept only when it
gives torch's own answers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import Tensor, nn

from petseg import storage
from petseg.data.dataset import UInt8
from petseg.data.oxford_pets import NAME as OXFORD_PETS_NAME
from petseg.errors import PetsegError
from petseg.evaluation.evaluate import TrainedRun, load_run
from petseg.export.openvino import AGREEMENT, OpenVINO, compare, drawn_images, refusal
from petseg.models import title_of, to_unit_range
from petseg.training.device import choose_hardware
from petseg.training.inference import Network

FP32_BELOW = (40_000, 80_000, 160_000)
"""Tensors of fewer values stay in float32, tried in this order until the file agrees with torch.

The first convolutions are small and the most sensitive: rounding them moves a maximum to another place, and every
later stage sees it. On 64 images of the dataset at 128 px (2026-11-22) SegNet agrees on 99.947 % of pixels with all
weights in fp16 and on 99.999 % with those below 40,000 values in fp32, U-Net on 99.992 % and 99.999 %.
"""

LARGEST = 4096
"""Side in pixels up to which a file takes images of any size."""

DEFINITIONS = {
    "miou": "mean of iou over the scored classes, those that it names",
    "iou": "true positives / (true positives + false positives + false negatives), from one confusion matrix over all "
    "pixels of the split",
    "pixel_accuracy": "share of pixels whose class is right",
    "mean_boundary_f": "mean over classes and images of the boundary F measure, within .75 % of the diagonal",
    "image_class_accuracy": "of merged classes (cat and dog as pet): share of images whose class is right",
}

OXFORD_PETS_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/"

OXFORD_PETS = {
    "limits": (
        "cats and dogs alone: other animals, toys and drawings may be called pet or not",
        "trained on photos of one pet of 37 breeds, most of it in view",
        "a photo is resized to a square of `size` pixels: a pet that is small in it is seen coarsely; crop first",
        "border is a band around the pet's outline as the dataset's annotators saw it",
    ),
    "licence": {
        "weights": "CC BY-SA 4.0",
        "url": "https://creativecommons.org/licenses/by-sa/4.0/",
        "data": "The Oxford-IIIT Pet Dataset by Omkar M. Parkhi, Andrea Vedaldi, Andrew Zisserman and C. V. Jawahar "
        '("Cats and Dogs", CVPR 2012), CC BY-SA 4.0',
    },
}
"""What a file says too where that dataset trained it; of others, limits and licence are not known here."""

SCORES = ("split", "images", "frame", "miou", "iou", "pixel_accuracy", "mean_boundary_f", "image_class_accuracy")
"""What of an evaluation a file's metadata repeat, where it has it."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Made:
    """A model in some format, not yet kept."""

    answers: Floats  # what it gives for the drawn pets
    save: Callable[[Path, Mapping[str, Any]], None]  # writes it with its metadata


class _Served(nn.Module):
    """Probabilities [N, C, H, W] of uint8 [N, H, W, 3]: what the file computes."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.model, self.input = network.module, network.input

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model(self.input.normalise(to_unit_range(image)))
        # ONNX Runtime's own softmax transposes the classes to the end and back: .5 ms of 11, this .15 (2026-11-22)
        powers = (logits - logits.amax(dim=1, keepdim=True)).exp()
        return powers / powers.sum(dim=1, keepdim=True)


def export_run(run: Path, out: Path, kind: str = "onnx", *, fp16: bool = True) -> dict[str, Any]:
    """Returns the metadata of `out`, now the file of a trained run (`evaluate.load_run` says of which weights).

    `kind` is one of `MAKERS`. With `fp16` large weights are stored in half the bytes and computed with in float32 all
    the same; torch's programs are not.

    Raises:
        PetsegError: not a trained run, or the file disagrees with torch.
    """
    trained = load_run(run, choose_hardware("fp32", "cpu"))
    description = {
        **_description(run, trained),
        "weights": trained.weights,
        "weights_sha256": _digest(run / trained.weights),
        "epoch": trained.epoch,
    }
    return export_model(trained.network, description, out, kind, fp16=fp16)


def export_model(
    network: Network, description: Mapping[str, Any], out: Path, kind: str = "onnx", *, fp16: bool = True
) -> dict[str, Any]:
    """Returns the metadata of `out`, now the file of a model: `description`, and how far it agrees with torch.

    Args:
        network: on the CPU, in fp32.
        description: at least `classes` and `size`, the side in pixels that photos are resized to.
        out: replaced in one step.
        kind: as `export_run`, and so is fp16.

    Raises:
        PetsegError: the file disagrees with torch; nothing is written.
    """
    served = _Served(network).eval()
    images = drawn_images(description["size"])
    with torch.inference_mode():
        theirs = served(torch.from_numpy(images)).numpy()
    for made in MAKERS[kind](served, images, fp16 and kind != "torch"):
        parity = compare(made.answers, theirs)
        if parity.agreement >= AGREEMENT:
            break
    else:
        advice = "; try --no-fp16" if fp16 and kind != "torch" else ""
        raise PetsegError(f"{refusal(out, parity, 'torch')}{advice}")
    metadata = {**description, "fp16": fp16 and kind != "torch", "parity": asdict(parity)}
    made.save(out, metadata)
    return metadata


def as_onnx(network: Network, size: int) -> bytes:
    """Returns a model (on the CPU, in fp32) as an ONNX file, neither checked nor described: for timing."""
    content: bytes = without_concat(_export(_Served(network).eval(), drawn_images(size))).SerializeToString()
    return content


def _onnx(served: _Served, images: UInt8, fp16: bool) -> Iterator[Made]:
    for file in _onnx_files(served, images, fp16):

        def save(out: Path, metadata: Mapping[str, Any], file: onnx.ModelProto = file) -> None:
            for name, value in metadata.items():
                file.metadata_props.add(key=name, value=json.dumps(value))
            _write(out, file.SerializeToString())

        session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
        yield Made(session.run(None, {"image": images})[0], save)


def _write(out: Path, content: bytes) -> None:
    storage.write_atomically(out, partial(Path.write_bytes, data=content))


def _openvino(served: _Served, images: UInt8, fp16: bool) -> Iterator[Made]:
    for file in _onnx_files(served, images, fp16):
        converted = OpenVINO(file.SerializeToString())
        yield Made(converted.probabilities(images), converted.save)


def _program(served: _Served, images: UInt8, fp16: bool) -> Iterator[Made]:
    assert not fp16, "a program keeps torch's own weights"
    sample, free = _traced(served, images)
    with _quiet():
        program = torch.export.export(served, sample, dynamic_shapes=free)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the paths of this machine

    def content(metadata: Mapping[str, Any]) -> bytes:
        stream = BytesIO()
        texts = {f"{name}.json": json.dumps(value) for name, value in metadata.items()}
        torch.export.save(program, stream, extra_files=texts)
        return stream.getvalue()

    with _quiet():
        loaded = torch.export.load(BytesIO(content({}))).module()
    with torch.inference_mode():
        answers = loaded(torch.from_numpy(images)).numpy()
    yield Made(answers, lambda out, metadata: _write(out, content(metadata)))


Maker = Callable[[_Served, UInt8, bool], Iterator[Made]]
MAKERS: dict[str, Maker] = {"onnx": _onnx, "torch": _program, "openvino": _openvino}
"""Format -> what makes it, the smallest file first; the first that agrees with torch is kept."""


def _onnx_files(served: _Served, images: UInt8, fp16: bool) -> Iterator[onnx.ModelProto]:
    exported = without_concat(_export(served, images))
    if not fp16:
        yield exported
        return
    for below in FP32_BELOW:
        yield stored_in_fp16(exported, fp32_below=below)


def exported_run(run: Path) -> Path:
    """Returns RUN/model.onnx, exported at the first call and again when the run's weights or scores have changed."""
    out = run / "model.onnx"
    if out.is_file():
        with suppress(DecodeError, ValueError, KeyError, TypeError, OSError):  # damaged: exported again
            known = {entry.key: json.loads(entry.value) for entry in onnx.load(out).metadata_props}
            if _digest(run / known["weights"]) == known["weights_sha256"] and known["scores"] == _scores(run):
                return out
    try:
        export_run(run, out)
    except PetsegError:  # fp16 disagrees with torch; the reason of any other error comes again
        export_run(run, out, fp16=False)
    return out


def stored_in_fp16(file: onnx.ModelProto, *, fp32_below: int) -> onnx.ModelProto:
    """Returns a copy whose float32 tensors are stored as fp16 and cast back, once, as ONNX Runtime loads the file.

    Those of fewer than `fp32_below` values are left alone.
    """
    smaller = onnx.ModelProto()
    smaller.CopyFrom(file)
    casts = []
    for tensor in smaller.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= fp32_below:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.fp16"))
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *smaller.graph.node]
    del smaller.graph.node[:]
    smaller.graph.node.extend(nodes)
    return smaller


def without_concat(file: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy in which a convolution of two maps joined by Concat is the sum of two convolutions.

    The joined map is as large as both together and never computed with: without it a U-Net of 16 channels at 128 px
    holds 3.1 instead of 4.2 MB of maps and takes 3 % less time (ONNX Runtime 1.31, one thread, 2026-11-22).
    """
    split = onnx.ModelProto()
    split.CopyFrom(file)
    graph = split.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {info.name: [entry.dim_value for entry in info.type.tensor_type.shape.dim] for info in graph.value_info}
    readers = Counter(name for node in graph.node for name in node.input)
    joins = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "Concat" and len(node.input) == 2 and readers[node.output[0]] == 1
        if _integer(node, "axis", 1) == 1 and node.input[0] in shapes
    }
    nodes = []
    for node in graph.node:
        join = joins.get(node.input[0]) if node.op_type == "Conv" else None
        kernel_shared = join is not None and (node.input[1] not in weights or readers[node.input[1]] > 1)
        if join is None or kernel_shared or _integer(node, "group", 1) > 1:
            nodes.append(node)
            continue
        nodes.remove(join)
        kernel = numpy_helper.to_array(weights[node.input[1]])
        graph.initializer.remove(weights[node.input[1]])
        parts = np.split(kernel, [shapes[join.input[0]][1]], axis=1)
        for place, (source, part) in enumerate(zip(join.input, parts, strict=True)):
            name = f"{node.input[1]}.{place}"
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(part), name))
            convolution = onnx.NodeProto()
            convolution.CopyFrom(node)
            convolution.name, convolution.output[0] = f"{node.name}.{place}", f"{node.output[0]}.{place}"
            del convolution.input[:]
            convolution.input.extend([source, name, *(node.input[2:] if place else [])])  # the bias counts once
            nodes.append(convolution)
        halves = [f"{node.output[0]}.{place}" for place in range(2)]
        nodes.append(onnx.helper.make_node("Add", halves, [node.output[0]], f"{node.name}.sum"))
    del graph.node[:]
    graph.node.extend(nodes)
    return split


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    """Returns an attribute of a node."""
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)


def _export(served: _Served, images: UInt8) -> onnx.ModelProto:
    sample, free = _traced(served, images)
    with _quiet():
        names: dict[str, Any] = {"input_names": ["image"], "output_names": ["probabilities"]}
        program = torch.onnx.export(served, sample, dynamo=True, verbose=False, dynamic_shapes=free, **names)
    assert program is not None, "the dynamo exporter returns what it made"
    proto: onnx.ModelProto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]  # stack traces with the paths of this machine
    return proto


def _traced(served: _Served, images: UInt8) -> tuple[tuple[Tensor], dict[str, dict[int, Any]]]:
    """Returns what to trace a network with, and which axes of [N, H, W, 3] stay free.

    N does, and H and W in steps that each level of the network halves evenly, if `images` have such a size. A free
    size costs nothing: ONNX Runtime took .98 (U-Net) and 1.00 times (SegNet) what it takes for a fixed one, at 192 px
    with 16 channels, one thread of an Intel Xeon, the files taking turns, 2026-11-22.
    """
    free: dict[int, Any] = {0: torch.export.Dim("N")}
    step = served.input.multiple
    side = images.shape[1]
    if step == 1 or side % step or side < 2 * step:
        return (torch.from_numpy(images[:2]),), {"image": free}
    free |= {axis: step * torch.export.Dim(name, min=2, max=LARGEST // step) for axis, name in ((1, "h"), (2, "w"))}
    # sides that differ: the tracer would take it as given that they are equal
    return (torch.zeros(2, 2 * step, 3 * step, 3, dtype=torch.uint8),), {"image": free}


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own deprecations and of a missing torchvision, which no model here uses."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _description(run: Path, trained: TrainedRun) -> dict[str, Any]:
    """Returns what a file says of itself beside its weights."""
    config, pets = trained.config, trained.data.name == OXFORD_PETS_NAME
    return {
        "model": config.model.name,
        "title": title_of(config.model.name),
        "classes": [entry.model_dump() for entry in trained.data.classes],
        "size": config.data.size,
        "preprocessing": "uint8 RGB [N, H, W, 3], resized to the square by antialiased bilinear resizing; "
        "normalisation is part of the graph",
        "scores": _scores(run),
        "definitions": DEFINITIONS,
        "data": {
            "name": trained.data.name,
            "copy": trained.data.images,
            **({"url": OXFORD_PETS_URL} if pets else {}),
        },
        "config": config.model_dump(),
        "environment": storage.read_json(run / "environment.json"),
        **(OXFORD_PETS if pets else {}),
    }


def _scores(run: Path) -> dict[str, Any]:
    stored = [run / "evaluations" / f"{split}.json" for split in ("test", "val")]
    evaluation = next((storage.read_json(path) for path in stored if path.is_file()), {})
    return {name: evaluation[name] for name in SCORES if evaluation.get(name) is not None}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
