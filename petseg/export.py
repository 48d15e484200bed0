"""Export: `export_run(run, out)` writes a trained run as one ONNX file that needs neither torch nor this package.

    input   image          uint8   [N, H, W, 3]   RGB; H and W are the size trained at, N is free
    output  probabilities  float32 [N, C, H, W]   0..1, the classes of a pixel add up to 1

Normalisation and softmax are part of the graph. The file's metadata say the rest, each value as JSON (`petseg.predict`
reads them): classes, size, scores, licence. A file is kept only when it gives torch's own answers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from petseg import runs
from petseg.config import RunConfig
from petseg.data.oxford_pets import UInt8, get_task
from petseg.data.synthetic import CATS, DOGS, draw_pet
from petseg.errors import PetsegError
from petseg.evaluate import load_run
from petseg.models import TITLES, normalise, to_unit_range
from petseg.photos import Photo
from petseg.train import choose_hardware

AGREEMENT = 0.9999
"""Share of pixels whose class must be torch's."""

FP32_BELOW = (40_000, 80_000, 160_000)
"""Tensors of fewer values stay in float32, tried in this order until the file agrees with torch.

The first convolutions are small and the most sensitive: rounding them moves a maximum to another place, and every
later stage sees it. On 64 pictures of the data set at 128 px (2026-11-22) SegNet agrees on 99.947 % of pixels with all
weights in fp16 and on 99.999 % with those below 40,000 values in fp32, U-Net on 99.992 % and 99.999 %.
"""

EXACT_FROM = 1000
"""Tensors of at least so many values are stored in fp16 whenever that loses nothing: SegNet's places."""

LICENCE = {
    "weights": "CC BY-SA 4.0",
    "data": 'The Oxford-IIIT Pet Dataset by Omkar M. Parkhi, Andrea Vedaldi, Andrew Zisserman and C. V. Jawahar ("Cats '
    'and Dogs", CVPR 2012), CC BY-SA 4.0',
}

SCORES = ("split", "images", "frame", "miou", "iou", "pixel_accuracy", "mean_boundary_f", "species_accuracy")
"""What of an evaluation a file's metadata repeat, where it has it."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Parity:
    """How far a file agrees with torch on drawn pets."""

    pixels: int
    agreement: float
    """Share of pixels with the same class, 0..1."""
    largest_difference: float
    """Of a probability, 0..1."""


class _Served(nn.Module):
    """Probabilities [N, C, H, W] of uint8 [N, H, W, 3]: what the file computes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model(normalise(to_unit_range(image)))
        return logits.softmax(dim=1)


def export_run(run: Path, out: Path, *, fp16: bool = True) -> dict[str, Any]:
    """Returns the metadata of `out`, now the ONNX file of a trained run (`evaluate.load_run` says of which weights).

    Args:
        run: the run folder.
        out: the file, replaced in one step.
        fp16: store large weights in half the bytes; they are computed with in float32 all the same.

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
    return export_model(model, description, out, fp16=fp16)


def export_model(model: nn.Module, description: Mapping[str, Any], out: Path, *, fp16: bool = True) -> dict[str, Any]:
    """Returns the metadata of `out`, now the ONNX file of a model: `description`, and how far it agrees with torch.

    Args:
        model: logits [N, C, H, W] of normalised images, on the CPU.
        description: at least `classes`, C names, and `size`, the side in pixels that photos are squeezed to.
        out: the file, replaced in one step.
        fp16: as `export_run`.

    Raises:
        PetsegError: the file disagrees with torch; nothing is written.
    """
    served = _Served(model).eval()
    pictures = drawn_pictures(description["size"])
    exported = _export(served, pictures[:2])
    files = (stored_in_fp16(exported, fp32_below=below) for below in FP32_BELOW) if fp16 else iter([exported])
    for file in files:
        parity = compare_with_torch(file, served, pictures)
        if parity.agreement >= AGREEMENT:
            break
    else:
        raise PetsegError(
            f"{out}: the exported model agrees with torch on {100 * parity.agreement:.3f} % of pixels (a probability "
            f"differs by up to {parity.largest_difference:.2g}), wanted {100 * AGREEMENT} %; nothing was written"
            + ("; try --no-fp16" if fp16 else "")
        )
    metadata = {**description, "fp16": fp16, "parity": asdict(parity)}
    for name, value in metadata.items():
        file.metadata_props.add(key=name, value=json.dumps(value))
    runs.write_atomically(out, lambda unfinished: unfinished.write_bytes(file.SerializeToString()))
    return metadata


def exported_run(run: Path) -> Path:
    """Returns RUN/model.onnx, exported at the first call and again when the run's weights have changed."""
    out = run / "model.onnx"
    if out.is_file():
        known = {entry.key: json.loads(entry.value) for entry in onnx.load(out).metadata_props}
        if _digest(run / known["weights"]) == known["weights_sha256"]:
            return out
    export_run(run, out)
    return out


def drawn_pictures(size: int) -> UInt8:
    """Returns 16 made pets, uint8 [16, size, size, 3], the same everywhere: what exports are checked on."""
    breeds = (*CATS[:8], *DOGS[:8])
    return np.stack([Photo(draw_pet(breed, 1, size=max(size, 32))[0]).squeezed(size) for breed in breeds])


def compare_with_torch(file: onnx.ModelProto, served: nn.Module, pictures: UInt8) -> Parity:
    """Returns how far ONNX Runtime's answers on `pictures` [N, H, W, 3] agree with torch's."""
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    ours: Floats = session.run(None, {"image": pictures})[0]
    with torch.inference_mode():
        theirs = served(torch.from_numpy(pictures)).numpy()
    return Parity(
        pixels=ours[:, 0].size,
        agreement=float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
        largest_difference=float(np.abs(ours - theirs).max()),
    )


def stored_in_fp16(file: onnx.ModelProto, *, fp32_below: int) -> onnx.ModelProto:
    """Returns a copy whose float32 tensors are stored as fp16 and cast back, once, as ONNX Runtime loads the file.

    Those of fewer than `fp32_below` values are left alone, unless they are large and fp16 holds them exactly.
    """
    smaller = onnx.ModelProto()
    smaller.CopyFrom(file)
    casts = []
    for tensor in smaller.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32:
            continue
        half = values.astype(np.float16)
        if values.size >= fp32_below or (values.size >= EXACT_FROM and (half == values).all()):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.fp16"))
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *smaller.graph.node]
    del smaller.graph.node[:]
    smaller.graph.node.extend(nodes)
    return smaller


def _export(served: nn.Module, pictures: UInt8) -> onnx.ModelProto:
    with _quiet():
        program = torch.onnx.export(
            served,
            (torch.from_numpy(pictures),),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["probabilities"],
            # H and W stay fixed: photos are squeezed to the size trained at, and a free size costs SegNet shape sums
            dynamic_shapes={"image": {0: torch.export.Dim("N")}},
        )
    assert program is not None, "the dynamo exporter returns what it made"
    proto: onnx.ModelProto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]  # stack traces with the paths of this machine
    return proto


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
    stored = [run / "evaluations" / f"{split}.json" for split in ("test", "val")]
    evaluation = next((runs.read_json(path) for path in stored if path.is_file()), {})
    return {
        "model": config.model.name,
        "title": TITLES[config.model.name],
        "classes": list(get_task(config.data.task, config.data.border).classes),
        "size": config.data.size,
        "preprocessing": "uint8 RGB [N, H, W, 3], squeezed to the square by antialiased bilinear resizing; "
        "normalisation is part of the graph",
        "scores": {name: evaluation[name] for name in SCORES if name in evaluation},
        "config": config.model_dump(),
        "environment": runs.read_json(run / "environment.json"),
        "licence": LICENCE,
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
