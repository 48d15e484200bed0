"""Export: `export_run(run, out)` writes a trained run as one file that needs neither its run nor this package.

ONNX for everything else that runs networks, a torch.export program for torch, OpenVINO for Intel's processors:

    input   image          uint8   [N, H, W, 3]   RGB; N is free, and so are H and W in even steps (`_first_that_holds`)
    output  probabilities  float32 [N, C, H, W]   0..1, the classes of a pixel add up to 1

Normalisation and softmax are part of the graph; the metadata, each value as JSON, say the rest. A file is kept only
when it gives torch's own answers.
"""

import json
import logging
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import Tensor, nn

from petseg import storage
from petseg.config import RunConfig
from petseg.data import oxford_pets
from petseg.data.dataset import UInt8
from petseg.data.geometry import GREY
from petseg.errors import PetsegError, first_line
from petseg.evaluation.evaluate import load_run
from petseg.export.openvino import Made, as_openvino, drawn_images, keep, unchanged
from petseg.models import title_of, to_unit_range
from petseg.models.external import evenly_padded, pretraining
from petseg.predict.enlarge import Floats
from petseg.shipped import card_of, model_names, shipped_model
from petseg.training.device import choose_hardware
from petseg.training.inference import Network, build_network
from petseg.training.own import located

# Tensors of fewer values stay in float32, tried in this order until the file agrees with torch: rounding the small
# first convolutions moves maxima. On 64 images at 128 px (2026-11-22) SegNet agrees on 99.947 % of pixels with all
# weights in fp16 and on 99.999 % with those below 40,000 values in fp32, U-Net on 99.992 % and 99.999 %.
FP32_BELOW = (40_000, 80_000, 160_000, 320_000)
SAME = 0.01  # of a probability at another size than the traced one: a graph that holds its size is off by tenths
OTHER_WEIGHTS = "another run or file"
LARGEST = 4096  # side in pixels up to which a file takes images of any size
FITTED = {  # how a file's images are prepared, by fit; petseg.data.geometry does it
    "square": "resized to the square by antialiased bilinear resizing",
    "pad": "the longer side resized to `size` by antialiased bilinear resizing, then filled up below or at the right "
    f"with {GREY}",
    "crop": "windows of `size` that overlap by half, of the image reduced to `reduce_to` at its longer side (0: not)",
}
DEFINITIONS = {  # scores that a file's metadata repeat, and what they mean
    "miou": "mean of iou over the scored classes, those that it names",
    "iou": "true positives / (true positives + false positives + false negatives), from one confusion matrix over all "
    "pixels of the split",
    "pixel_accuracy": "share of pixels whose class is right",
    "mean_boundary_f": "mean over classes and images of the boundary F measure, within .75 % of the diagonal",
    "image_class_accuracy": "of merged classes (cat and dog as pet): share of images whose class is right",
}

_QUIET = threading.RLock()  # held by what silences the process: of two at once, each would restore the other's silence

Axes = dict[str, dict[int, Any]]  # input -> axis -> the dimension that stays free
MadeT = TypeVar("MadeT")


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


def export_run(run: str | Path, out: str | Path, kind: str = "onnx", *, fp16: bool = True) -> dict[str, Any]:
    """Returns the metadata of `out`, now the file of a trained run, in one of the formats of `MAKERS`.

    With `fp16` large weights, but for torch's, are stored in half the bytes and computed with in float32 all the same.
    Raises `PetsegError`: not a trained run, or the file disagrees with torch.
    """
    run, out = Path(run), Path(out)
    trained = load_run(run, choose_hardware("fp32", "cpu"))
    config, data = trained.config, trained.data
    description = {
        "model": config.model.name,
        "title": title_of(located(run, config.model).name),
        "pretraining": _knows(config),
        "classes": [entry.model_dump() for entry in data.classes],
        "size": config.data.size,
        "fit": config.data.fit,
        "reduce_to": config.data.reduce_to,
        "preprocessing": f"uint8 RGB [N, H, W, 3], {FITTED[config.data.fit]}; normalisation is part of the graph",
        "input": {"mean": trained.network.input.mean, "std": trained.network.input.std},
        "scores": _scores(run, trained.weights, trained.epoch),
        "definitions": DEFINITIONS,
        "data": {"name": data.name, "copy": data.images},
        "config": config.model_dump(),
        "environment": storage.read_json(run / "environment.json"),
        **(oxford_pets.CARD if data.name == oxford_pets.NAME else {}),
        "weights": trained.weights,
        "weights_sha256": storage.sha256(run / trained.weights),
        "epoch": trained.epoch,
    }
    return export_model(trained.network, description, out, kind, fp16=fp16)


def export_model(
    network: Network, description: Mapping[str, Any], out: Path, kind: str = "onnx", *, fp16: bool = True
) -> dict[str, Any]:
    """Returns the metadata of `out`, now the file of a network on the CPU in fp32; else as `export_run`.

    `description` has at least `classes` and `size`, the side in pixels that photos are resized to.
    """
    served, images, fp16 = _Served(network).eval(), drawn_images(description["size"]), fp16 and kind != "torch"
    with torch.inference_mode():
        theirs = served(torch.from_numpy(images)).numpy()
    try:
        return keep(out, MAKERS[kind](served, images, fp16), theirs, {**description, "fp16": fp16}, "torch")
    except PetsegError as error:
        raise PetsegError(f"{error}; try it without fp16 (--no-fp16)" if fp16 else str(error)) from None


def check_export(config: RunConfig, num_classes: int) -> None:
    """Refuses a model that ONNX cannot hold, found out with drawn weights: before hours of training."""
    served = _Served(build_network(config.model, num_classes, choose_hardware("fp32", "cpu"))).eval()
    try:
        _exported(served, drawn_images(config.data.size))
    except PetsegError as error:
        raise PetsegError(f"model {config.model.name!r}: {error}; train it without export (--export)") from None


def as_onnx(network: Network, size: int) -> bytes:
    """Returns a model (on the CPU, in fp32) as an ONNX file, neither checked nor described: for timing."""
    content: bytes = _exported(_Served(network).eval(), drawn_images(size)).SerializeToString()
    return content


def _onnx_files(make: Callable[[bytes, UInt8], Made], served: _Served, images: UInt8, fp16: bool) -> Iterator[Made]:
    exported = _exported(served, images)
    for file in (stored_in_fp16(exported, fp32_below=below) for below in FP32_BELOW) if fp16 else (exported,):
        yield make(file.SerializeToString(), images)


def _program(served: _Served, images: UInt8, fp16: bool) -> Iterator[Made]:
    assert not fp16, "a program keeps torch's own weights"

    def made(served: nn.Module, sample: Tensor, free: Axes) -> torch.export.ExportedProgram:
        return torch.export.export(served, (sample,), dynamic_shapes=free)

    def content(metadata: Mapping[str, Any]) -> bytes:
        stream = BytesIO()
        texts = {f"{name}.json": json.dumps(value) for name, value in metadata.items()}
        torch.export.save(program, stream, extra_files=texts)
        return stream.getvalue()

    def answers(module: torch.nn.Module, sample: UInt8) -> Floats:
        with torch.inference_mode():
            given: Floats = module(torch.from_numpy(sample)).numpy()
        return given

    program = _first_that_holds(served, images, made, lambda file, sample: answers(file.module(), sample))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the paths of this machine
    with quiet():
        loaded = torch.export.load(BytesIO(content({}))).module()
    yield Made(answers(loaded, images), lambda out, metadata: storage.write_bytes(out, content(metadata)))


# format -> what makes it, the smallest file first; the first that agrees with torch is kept
MAKERS: dict[str, Callable[[_Served, UInt8, bool], Iterator[Made]]] = {
    "onnx": partial(_onnx_files, unchanged),
    "torch": _program,
    "openvino": partial(_onnx_files, as_openvino),
}


def exported_run(run: Path) -> Path:
    """Returns RUN/model.onnx, exported again when weights or scores have changed; elsewhere where RUN is read-only."""
    out = run / "model.onnx"
    if out.is_file():
        with suppress(DecodeError, ValueError, KeyError, TypeError, OSError):  # damaged: exported again
            known = {entry.key: json.loads(entry.value) for entry in onnx.load(out).metadata_props}
            scores = _scores(run, known["weights"], known["epoch"])
            if storage.sha256(run / known["weights"]) == known["weights_sha256"] and known["scores"] == scores:
                return out
    out = storage.writable_folder(run) / out.name
    try:
        export_run(run, out)
    except PetsegError:  # fp16 disagrees with torch; the reason of any other error comes again
        export_run(run, out, fp16=False)
    return out


def stored_in_fp16(file: onnx.ModelProto, *, fp32_below: int) -> onnx.ModelProto:
    """Returns a copy whose float32 tensors of `fp32_below` values or more are fp16, cast back as the file is loaded."""
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


def without_joins(file: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy in which a convolution of two joined maps is the sum of two convolutions, equal but for rounding.

    Joining copies both maps, and ONNX Runtime reorders those whose channels fill no whole blocks of the processor's.
    """
    split = onnx.ModelProto()
    split.CopyFrom(file)
    graph = split.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    values = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    joins = {node.output[0]: node for node in graph.node if node.op_type == "Concat" and len(node.input) == 2}
    uses = Counter(name for node in graph.node for name in node.input)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        join = joins.get(node.input[0]) if node.op_type == "Conv" else None
        if join is None or any(uses[name] > 1 for name in node.input):
            continue
        if node.input[1] not in weights or not {*join.input, *node.output} <= values.keys():
            continue
        weight, whole = weights[node.input[1]], values[node.output[0]]
        first, second = (values[name].type.tensor_type.shape.dim[1].dim_value for name in join.input)
        if weight.dims[1] != first + second:  # of groups, or joined along another axis
            continue
        nodes.remove(join)
        nodes.remove(node)
        graph.initializer.remove(weight)
        for number, part in enumerate(np.split(numpy_helper.to_array(weight), [first], axis=1)):
            convolution = onnx.NodeProto()
            convolution.CopyFrom(node)
            convolution.name, convolution.output[0] = f"{node.name}.{number}", f"{whole.name}.{number}"
            convolution.input[:2] = join.input[number], f"{weight.name}.{number}"
            if number:
                del convolution.input[2:]
            nodes.append(convolution)
            graph.initializer.append(numpy_helper.from_array(part, convolution.input[1]))
            # ONNX Runtime adds within a convolution only where it knows that the shapes are equal
            graph.value_info.add(name=convolution.output[0], type=whole.type)
        nodes.append(onnx.helper.make_node("Add", [f"{whole.name}.0", f"{whole.name}.1"], [whole.name]))
    del graph.node[:]
    graph.node.extend(nodes)
    return split


def _exported(served: _Served, images: UInt8) -> onnx.ModelProto:
    """Returns a network as ONNX, sides free where that gives its answers at other sizes too, else fixed."""
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["probabilities"]}

    def made(served: nn.Module, sample: Tensor, free: Axes) -> onnx.ModelProto:
        program = torch.onnx.export(served, (sample,), dynamo=True, verbose=False, dynamic_shapes=free, **names)
        assert program is not None, "the dynamo exporter returns what it made"
        return program.model_proto

    def answers(proto: onnx.ModelProto, sample: UInt8) -> Floats:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        given: Floats = session.run(None, {"image": sample})[0]
        return given

    proto = _first_that_holds(served, images, made, answers)
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]  # stack traces with the paths of this machine
    return without_joins(proto)


def _first_that_holds(
    served: _Served,
    images: UInt8,
    made: Callable[[nn.Module, Tensor, Axes], MadeT],
    answers: Callable[[MadeT, UInt8], Floats],
) -> MadeT:
    """Returns what an exporter made of a network, traced with the most free axes with which it gives its answers.

    N is free, and H and W in steps that each level of the network halves evenly, if `images` [N, H, W, 3] have such a
    size. It costs nothing: .98 (U-Net) and 1.00 times (SegNet) a fixed one, ONNX Runtime, 192 px, one thread of a Xeon,
    2026-11-22. Raises `PetsegError`, with the exporter's reason, where no file gives them.
    """
    batch: dict[int, Any] = {0: torch.export.Dim("N")}
    ways: list[tuple[nn.Module, Tensor, UInt8, Axes]] = [
        (served, torch.from_numpy(images[:2]), images[:3], {"image": batch})
    ]
    step, side = served.input.multiple, images.shape[1]
    if step > 1 and side % step == 0 and side >= 2 * step:
        sides = ((axis, torch.export.Dim(name, min=2, max=LARGEST // step)) for axis, name in ((1, "h"), (2, "w")))
        free = batch | {axis: step * dim for axis, dim in sides}
        # sides that differ: the tracer would take it as given that they are equal
        sample = torch.zeros(2, 2 * step, 3 * step, 3, dtype=torch.uint8)
        other = np.random.default_rng(0).integers(0, 256, (1, 4 * step, 3 * step, 3), np.uint8)
        ways.insert(0, (evenly_padded(served), sample, other, {"image": free}))
    reason = ""
    for module, sample, other, axes in ways:
        try:
            with quiet():
                file = made(module, sample, axes)
                ours = answers(file, other)
        except Exception as error:  # exporters and runtimes raise of many kinds
            cause: BaseException = error
            while cause.__cause__ is not None:  # torch wraps what went wrong in advice of many lines
                cause = cause.__cause__
            reason = f"{type(cause).__name__}: {first_line(cause)[:200]}"
            continue
        with torch.inference_mode():
            off = np.abs(ours - served(torch.from_numpy(other)).numpy()).max()
        if off < SAME:
            return file
        reason = f"a probability of {' x '.join(map(str, other.shape[1:3]))} px is off by {off:.2g}"
    raise PetsegError(f"cannot be exported ({reason})")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences exporters, which warn of their own deprecations, and print graphs where they fail.

    It silences all threads of the process, so another thread waits until the block has ended.
    """
    with _QUIET:
        before = logging.root.manager.disable
        logging.disable(max(before, logging.WARNING))
        try:
            with warnings.catch_warnings(action="ignore"), redirect_stderr(StringIO()):
                yield
        finally:
            logging.disable(before)


def _knows(config: RunConfig) -> str:
    """Returns what a network learnt from beside its own labels: weights that it began as, and a teacher."""
    init, teacher = config.train.init, config.train.teacher
    begun = pretraining(config.model.name, config.model.options.get("encoder_weights"))
    if init:
        begun = card_of(shipped_model(init))["pretraining"] if init in model_names() else OTHER_WEIGHTS
    lesson = f"; taught by {teacher if teacher in model_names() else OTHER_WEIGHTS}" if teacher else ""
    return begun.removesuffix(lesson) + lesson  # those weights may have had the same teacher


def _scores(run: Path, weights: str, epoch: int) -> dict[str, Any]:
    """Returns what a file says of its scores, from an evaluation of these very weights; of others, nothing."""
    stored = [run / "evaluations" / f"{split}.json" for split in ("test", "val")]
    known = (storage.read_json(path) for path in stored if path.is_file())
    own = (each for each in known if (each.get("weights", weights), each.get("epoch", epoch)) == (weights, epoch))
    evaluation: dict[str, Any] = next(own, {})
    wanted = ("split", "images", "frame", *DEFINITIONS)
    return {name: evaluation[name] for name in wanted if evaluation.get(name) is not None}
