"""int8: `export_int8(segmenter, out)` writes a smaller, faster ONNX file, and `accuracy` says what it costs."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

from petseg import storage
from petseg.config import RunConfig
from petseg.data.cache import Prepared
from petseg.data.dataset import UInt8
from petseg.errors import PetsegError
from petseg.evaluation.evaluate import Evaluation, evaluate
from petseg.export.onnx import quiet
from petseg.export.openvino import compare, drawn_images, with_metadata
from petseg.models.builder import Input
from petseg.predict.enlarge import Floats
from petseg.predict.runtimes import OnnxRuntime
from petseg.predict.segmenter import Segmenter
from petseg.shipped import model_file
from petseg.training.batches import load_splits, scored_splits
from petseg.training.device import choose_hardware
from petseg.training.inference import Network as Scored

Network = Callable[[UInt8], Floats]  # uint8 [N, H, W, 3] -> probabilities [N, C, H, W]
CALIBRATION = 128  # training images that set the scales


def export_int8(segmenter: Segmenter, out: Path, prepared: Prepared | None = None) -> dict[str, Any]:
    """Returns the metadata of `out`, now a shipped model or that of an ONNX file with its convolutions in int8.

    Training images of `prepared` set the scales, and validation images show how far it agrees with float32; None takes
    synthetic pets for both. `segmenter` is on ONNX Runtime. Scores are of float32, so the file has none.
    """
    card = {name: value for name, value in segmenter.card.items() if name not in ("scores", "definitions")}
    if prepared is None:
        scaling, others = drawn_images(segmenter.size, 2), drawn_images(segmenter.size)
        named = f"{len(scaling)} synthetic pets", f"{len(others)} synthetic pets"
    else:
        own, given = ([entry.name for entry in classes] for classes in (segmenter.classes, prepared.dataset.classes))
        if own != given:
            raise PetsegError(
                f"model {segmenter.name} has classes {', '.join(own)}; the images are of {', '.join(given)}: give "
                "those that it was trained on (--data)"
            )
        scaling, others = (calibration_images(prepared, split) for split in ("train", "val"))
        named = (
            (f"{len(scaling)} training images", f"{len(others)} validation images")
            if {"train", "val"} <= prepared.dataset.splits.keys()
            else (f"{len(scaling)} images", "the same images")
        )
    file = quantised(model_file(segmenter.name), scaling)
    answers: list[Network] = [OnnxRuntime(file, 1), segmenter.probabilities]
    parity = compare(*(np.concatenate([network(image[None]) for image in others]) for network in answers))
    about = {"precision": "int8", "fp16": False, "scales": named[0], "parity": {"images": named[1], **asdict(parity)}}
    storage.write_bytes(out, with_metadata(file, card | about))
    return card | about


def calibration_images(prepared: Prepared, split: str = "train") -> UInt8:
    """Returns images of a split, of the first one where it is missing: uint8 [128, size, size, 3], at most all.

    Of fit crop they are the images' middles.
    """
    splits = scored_splits(prepared, torch.device("cpu"))
    rows = splits[split if split in splits else next(iter(splits))].rows
    chosen = rows[np.linspace(0, len(rows) - 1, min(CALIBRATION, len(rows))).astype(int)]
    side, images = prepared.size, [prepared.image(row) for row in chosen]
    starts = [((image.shape[0] - side) // 2, (image.shape[1] - side) // 2) for image in images]
    return np.stack(
        [image[top : top + side, left : left + side] for image, (top, left) in zip(images, starts, strict=True)]
    )


def quantised(file: bytes, images: UInt8) -> bytes:
    """Returns an ONNX file with its convolutions in int8, undescribed; images are uint8 [N, H, W, 3] of its size.

    Activations are unsigned, weights signed: other pairs are slower than float32 (docs/log.md).
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, smaller = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        options = onnxruntime.SessionOptions()
        # folds the casts of fp16 weights, and nothing that would fit this machine alone
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(plain)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(plain).graph.node
        with quiet():  # it advises to prepare the file, which was just done
            quantize_static(
                plain,
                smaller,
                _Reader(images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Add", "MaxPool"],
                nodes_to_exclude=kept_in_fp32(nodes),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
        return smaller.read_bytes()


def kept_in_fp32(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """Returns the names of the nodes that stay in float32: convolutions of the image, and the head, which matter most.

    So do depthwise ones, few of the operations: with them in int8 the default model loses .39 points on validation, not
    .11, in .92 of the time (2026-11-27). Of a SegNet also what finds the places, where a value must equal its maximum
    to the bit (in int8: mIoU .21).
    """
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    image, *_ = convolutions[0].input
    kept = [node.name for node in convolutions if node.input[0] == image or _groups(node) > 1]
    kept.append(convolutions[-1].name)
    if any(node.op_type == "Equal" for node in nodes):
        kept += [node.name for node in nodes if node.op_type == "MaxPool"]
        sums = {name for node in convolutions for name in node.output}
        kept += [node.name for node in nodes if node.op_type == "Add" and not sums >= set(node.input)]
    return kept


def _groups(convolution: onnx.NodeProto) -> int:
    return next((int(entry.i) for entry in convolution.attribute if entry.name == "group"), 1)


def accuracy(network: Network, prepared: Prepared, config: RunConfig, split: str) -> Evaluation:
    """Returns the scores of anything that gives probabilities, under the config of the run that it comes from."""
    hardware = choose_hardware("fp32", "cpu")
    images = load_splits(prepared, config, hardware.device)[split]
    unchanged = Input(mean=(0, 0, 0), std=(1, 1, 1))
    return evaluate(Scored(_LogProbabilities(network), unchanged, hardware), images, split)


class _LogProbabilities(nn.Module):
    """Any network as a module: logarithms of its probabilities, which are logits, of images [N, 3, H, W] in 0..1."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        stored = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        return torch.from_numpy(np.log(np.maximum(self.network(stored), np.finfo(np.float32).tiny)))


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: UInt8) -> None:
        self._left: Iterator[UInt8] = iter(images[:, None])

    def get_next(self) -> dict[str, Any] | None:
        image = next(self._left, None)
        return None if image is None else {"image": image}
