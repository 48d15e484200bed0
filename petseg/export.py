"""Export: `export_run(run, out)` writes a trained run as one file that needs neither its run nor this package.

ONNX for everything else that runs networks, a torch.export program for torch, OpenVINO for Intel's processors:

    input   image          uint8   [N, H, W, 3]   RGB; N is free, and so are H and W in even steps (`_traced`)
    output  probabilities  float32 [N, C, H, W]   0..1, the classes of a pixel add up to 1

Normalisation and softmax are part of the graph. The file's metadata say the rest, each value as JSON (`petseg.predict`
reads them): classes, size, scores, licence. A file is kept only when it gives torch's own answers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import Tensor, nn

from petseg import runs
from petseg.config import RunConfig
from petseg.convert import AGREEMENT, OpenVINO, compare, drawn_pictures, refusal
from petseg.data.oxford_pets import UInt8, get_task
from petseg.errors import PetsegError
from petseg.evaluate import load_run
from petseg.models import TITLES, normalise, to_unit_range
from petseg.train import choose_hardware

FP32_BELOW = (40_000, 80_000, 160_000)
"""Tensors of fewer values stay in float32, tried in this order until the file agrees with torch.

The first convolutions are small and the most sensitive: rounding them moves a maximum to another place, and every
later stage sees it. On 64 pictures of the data set at 128 px (2026-11-22) SegNet agrees on 99.947 % of pixels with all
weights in fp16 and on 99.999 % with those below 40,000 values in fp32, U-Net on 99.992 % and 99.999 %.
"""

LARGEST = 4096
"""Side in pixels up to which a file takes pictures of any size."""

LICENCE = {
    "weights": "CC BY-SA 4.0",
    "url": "https://creativecommons.org/licenses/by-sa/4.0/",
    "data": 'The Oxford-IIIT Pet Dataset by Omkar M. Parkhi, Andrea Vedaldi, Andrew Zisserman and C. V. Jawahar ("Cats '
    'and Dogs", CVPR 2012), CC BY-SA 4.0',
}

DATA_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/"

DEFINITIONS = {
    "miou": "mean over pet, background and border of iou; cat and dog count as pet",
    "iou": "true positives / (true positives + false positives + false negatives), from one confusion matrix over all "
    "pixels of the split",
    "pixel_accuracy": "share of pixels whose class is right",
    "mean_boundary_f": "mean over classes and pictures of the boundary F measure, within .75 % of the diagonal",
    "species_accuracy": "share of the pictures with a pet whose species is right",
}

LIMITS = (
    "cats and dogs alone: other animals, toys and drawings may be called pet or not",
    "trained on photos of one pet of 37 breeds, most of it in view",
    "a photo is squeezed to a square of `size` pixels: a pet that is small in it is seen coarsely; crop first",
    "border is a band around the pet's outline as the data set's annotators saw it",
)

SCORES = ("split", "images", "frame", "miou", "iou", "pixel_accuracy", "mean_boundary_f", "species_accuracy")
"""What of an evaluation a file's metadata repeat, where it has it."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Made:
    """A model in some format, not yet kept."""

    answers: Floats
    """What it gives for the drawn pets."""
    save: Callable[[Path, Mapping[str, Any]], None]
    """Writes it with its metadata."""


class _Served(nn.Module):
    """Probabilities [N, C, H, W] of uint8 [N, H, W, 3]: what the file computes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model(normalise(to_unit_range(image), self.model))
        # ONNX Runtime's own softmax transposes the classes to the end and back: .5 ms of 11, this .15 (2026-11-22)
        powers = (logits - logits.amax(dim=1, keepdim=True)).exp()
        return powers / powers.sum(dim=1, keepdim=True)


def export_run(run: Path, out: Path, kind: str = "onnx", *, fp16: bool = True) -> dict[str, Any]:
    """Returns the metadata of `out`, now the file of a trained run (`evaluate.load_run` says of which weights).

    Args:
        run: the run folder.
        out: the file, replaced in one step.
        kind: onnx, torch (a torch.export program) or openvino.
        fp16: store large weights in half the bytes; they are computed with in float32 all the same. Not for torch.

    Raises:
        PetsegError: not a trained run, or the file disagrees with torch.
    """
    model, config, weights, epoch = load_run(run, choose_hardware("fp32", "cpu"))
    description = {
        **_description(run, config),
        "weights": weights,
        "weights_sha256": _digest(run / weights),
        "epoch": epoch,
    }
    return export_model(model, description, out, kind, fp16=fp16)


def export_model(
    model: nn.Module, description: Mapping[str, Any], out: Path, kind: str = "onnx", *, fp16: bool = True
) -> dict[str, Any]:
    """Returns the metadata of `out`, now the file of a model: `description`, and how far it agrees with torch.

    Args:
        model: logits [N, C, H, W] of normalised images, on the CPU.
        description: at least `classes`, C names, and `size`, the side in pixels that photos are squeezed to.
        out: the file, replaced in one step.
        kind: as `export_run`.
        fp16: as `export_run`.

    Raises:
        PetsegError: the file disagrees with torch; nothing is written.
    """
    served = _Served(model).eval()
    pictures = drawn_pictures(description["size"])
    with torch.inference_mode():
        theirs = served(torch.from_numpy(pictures)).numpy()
    for made in MAKERS[kind](served, pictures, fp16 and kind != "torch"):
        parity = compare(made.answers, theirs)
        if parity.agreement >= AGREEMENT:
            break
    else:
        advice = "; try --no-fp16" if fp16 and kind != "torch" else ""
        raise PetsegError(f"{refusal(out, parity, 'torch')}{advice}")
    metadata = {**description, "fp16": fp16 and kind != "torch", "parity": asdict(parity)}
    made.save(out, metadata)
    return metadata


def as_onnx(model: nn.Module, size: int) -> bytes:
    """Returns a model as an ONNX file in float32, neither checked nor described: for timing.

    Args:
        model: logits [N, C, H, W] of normalised images, on the CPU.
        size: side in pixels.
    """
    content: bytes = without_concat(_export(_Served(model).eval(), drawn_pictures(size))).SerializeToString()
    return content


def _onnx(served: _Served, pictures: UInt8, fp16: bool) -> Iterator[Made]:
    for file in _onnx_files(served, pictures, fp16):

        def save(out: Path, metadata: Mapping[str, Any], file: onnx.ModelProto = file) -> None:
            for name, value in metadata.items():
                file.metadata_props.add(key=name, value=json.dumps(value))
            runs.write_atomically(out, partial(Path.write_bytes, data=file.SerializeToString()))

        session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
        yield Made(session.run(None, {"image": pictures})[0], save)


def _openvino(served: _Served, pictures: UInt8, fp16: bool) -> Iterator[Made]:
    for file in _onnx_files(served, pictures, fp16):
        converted = OpenVINO(file.SerializeToString())
        yield Made(converted.probabilities(pictures), converted.save)


def _program(served: _Served, pictures: UInt8, fp16: bool) -> Iterator[Made]:
    assert not fp16, "a program keeps torch's own weights"
    sample, free = _traced(served, pictures)
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
        answers = loaded(torch.from_numpy(pictures)).numpy()
    yield Made(
        answers,
        lambda out, metadata: runs.write_atomically(out, partial(Path.write_bytes, data=content(metadata))),
    )


MAKERS: dict[str, Callable[[_Served, UInt8, bool], Iterator[Made]]] = {
    "onnx": _onnx,
    "torch": _program,
    "openvino": _openvino,
}
"""Format -> what makes it, the smallest file first; the first that agrees with torch is kept."""


def _onnx_files(served: _Served, pictures: UInt8, fp16: bool) -> Iterator[onnx.ModelProto]:
    exported = without_concat(_export(served, pictures))
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
        if values.dtype != np.float32:
            continue
        if values.size >= fp32_below:
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
    }
    nodes = []
    for node in graph.node:
        join = joins.get(node.input[0]) if node.op_type == "Conv" else None
        if join is None:
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


def _export(served: _Served, pictures: UInt8) -> onnx.ModelProto:
    sample, free = _traced(served, pictures)
    with _quiet():
        program = torch.onnx.export(
            served,
            sample,
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_shapes=free,
        )
    assert program is not None, "the dynamo exporter returns what it made"
    proto: onnx.ModelProto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]  # stack traces with the paths of this machine
    return proto


def _traced(served: _Served, pictures: UInt8) -> tuple[tuple[Tensor], dict[str, dict[int, Any]]]:
    """Returns what to trace a network with, and which axes of [N, H, W, 3] stay free.

    N does, and H and W in steps that each level of the network halves evenly, if `pictures` have such a size. A free
    size costs nothing: ONNX Runtime took .98 (U-Net) and 1.00 times (SegNet) what it takes for a fixed one, at 192 px
    with 16 channels, one thread of an Intel Xeon, the files taking turns, 2026-11-22.
    """
    free: dict[int, Any] = {0: torch.export.Dim("N")}
    step = 2 ** len(cast(Sized, served.model.encoder))
    side = pictures.shape[1]
    if side % step or side < 2 * step:
        return (torch.from_numpy(pictures[:2]),), {"image": free}
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


def _description(run: Path, config: RunConfig) -> dict[str, Any]:
    """Returns what a file says of itself beside its weights."""
    return {
        "model": config.model.name,
        "title": TITLES[config.model.name],
        "classes": list(get_task(config.data.task, config.data.border).classes),
        "size": config.data.size,
        "preprocessing": "uint8 RGB [N, H, W, 3], squeezed to the square by antialiased bilinear resizing; "
        "normalisation is part of the graph",
        "scores": _scores(run),
        "definitions": DEFINITIONS,
        "limits": LIMITS,
        "data": {
            "name": "Oxford-IIIT Pet Dataset",
            "url": DATA_URL,
            "protocol": config.data.protocol,
            "copy": runs.read_json(run / "data.json")["source"],
        },
        "config": config.model_dump(),
        "environment": runs.read_json(run / "environment.json"),
        "licence": LICENCE,
    }


def _scores(run: Path) -> dict[str, Any]:
    stored = [run / "evaluations" / f"{split}.json" for split in ("test", "val")]
    evaluation = next((runs.read_json(path) for path in stored if path.is_file()), {})
    return {name: evaluation[name] for name in SCORES if name in evaluation}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
