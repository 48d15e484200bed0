"""Logits of a split, batch by batch, their scores at the training size, and classes that scores take together."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from petseg.config import ModelConfig, RunConfig
from petseg.data.dataset import IGNORE, Merge, UInt8
from petseg.data.geometry import WHOLE, Floats
from petseg.errors import PetsegError, first_line
from petseg.metrics import confusion_matrix, mean_iou, pixel_accuracy
from petseg.models import build_model, model_input, to_unit_range
from petseg.models.builder import Input
from petseg.schema import InputInfo, read_record, write_record
from petseg.threads import keep_pace
from petseg.training import distributed
from petseg.training.batches import Rows, Split
from petseg.training.bf16 import speed_up
from petseg.training.device import Hardware
from petseg.training.losses import CrossEntropySum, cross_entropy
from petseg.training.own import located

EVALUATION_BATCH = 32  # images a batch where no gradient is kept; scores do not depend on it
EVALUATION_PIXELS = 32 * 320 * 320  # of a batch: 32 images of 512 px took 1.8 GB, with 8 channels


@dataclass(frozen=True)
class Network:
    """A model on a device, with what it wants of its input."""

    module: nn.Module
    input: Input
    hardware: Hardware

    def logits(self, images: Tensor) -> Tensor:
        """Returns logits [N, C, H, W] of images float32 [N, 3, H, W] in 0..1, in the hardware's precision."""
        with self.hardware.context():
            logits: Tensor = self.module(self.input.normalise(images).contiguous(memory_format=torch.channels_last))
        return logits

    def probabilities(self, images: UInt8) -> Floats:
        """Returns probabilities [N, C, H, W] of uint8 images [N, H, W, 3], on the host."""
        logits = self.logits(to_unit_range(torch.from_numpy(images).to(self.hardware.device)))
        probabilities: Floats = logits.float().softmax(dim=1).cpu().numpy()
        return probabilities


def build_network(config: ModelConfig, num_classes: int, hardware: Hardware) -> Network:
    """Returns a new network on its device, in channels_last, weights drawn from torch's global generator."""
    module = build_model(config, num_classes)
    if any(isinstance(one, nn.UninitializedParameter | nn.UninitializedBuffer) for one in module.state_dict().values()):
        raise PetsegError(
            f"model {config.name!r}: has parameters without a shape, as LazyConv2d; give each layer its input channels"
        )
    module = module.to(hardware.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    speed_up(module, hardware)
    return Network(module, model_input(config), hardware)


def claim_input(run: Path, wanted: Input) -> Input:
    """Returns what a run's images are normalised by: what was written down, else `wanted`, now written."""
    path = run / "input.json"
    if not path.is_file():
        write_record(path, InputInfo(**asdict(wanted)))
    return read_input(run, wanted)


def read_input(run: Path, wanted: Input) -> Input:
    """Returns what a run's images are normalised by; `wanted` where an older version wrote nothing down."""
    path = run / "input.json"
    return Input(**read_record(path, InputInfo).model_dump()) if path.is_file() else wanted


def run_network(run: Path, config: ModelConfig, num_classes: int, hardware: Hardware) -> Network:
    """Returns `build_network` of a run's folder, with the normalisation that the run wrote down."""
    network = build_network(located(run, config), num_classes, hardware)
    return replace(network, input=read_input(run, network.input))


def grey_images(side: int, hardware: Hardware) -> Tensor:
    """Returns two images [2, 3, side, side] of .5, to try a network on."""
    return torch.full((2, 3, side, side), 0.5, device=hardware.device)


def new_network(config: RunConfig, num_classes: int, hardware: Hardware) -> Network:
    """Returns `build_network` of a run, tried on an image of each side that it computes: before minutes of work.

    A second network is tried in training mode, so nothing of the first changes, nor torch's random state.
    """
    network, sides = build_network(config.model, num_classes, hardware), (*config.train.ramp, config.data.size)
    network.module.eval()
    for side in sides:
        step = network.input.multiple
        advice = f"take sides in steps of {step}" if side % step else "mend the network or take another size"
        with torch.no_grad(), _one_line(config.model, f"cannot compute images of {side} px", advice):
            logits: object = network.logits(grey_images(side, hardware))
        _checked_logits(config.model, logits, [2, num_classes, side, side])
    with hardware.random_state_kept():
        _try_training(config.model, build_network(config.model, num_classes, hardware), num_classes, min(sides))
    return network


def _try_training(config: ModelConfig, network: Network, num_classes: int, side: int) -> None:
    """Refuses a network that cannot learn from two images of a `side`; its gradients and statistics stay changed."""
    reason = "cannot be trained"
    network.module.train()
    with _one_line(config, reason, "mend the network"):
        logits: object = network.logits(grey_images(side, network.hardware))
    checked = _checked_logits(config, logits, [2, num_classes, side, side], " in training mode")
    if not checked.requires_grad:
        raise PetsegError(f"model {config.name!r}: {reason} (no parameter gets a gradient); mend the network")
    with _one_line(config, reason, "mend the network"):
        cross_entropy(checked, checked.new_zeros((2, side, side), dtype=torch.int64)).backward()


@contextmanager
def _one_line(config: ModelConfig, what: str, advice: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a network raises
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise PetsegError(f"model {config.name!r}: {what} ({reason}); {advice}") from None


def _checked_logits(config: ModelConfig, logits: object, wanted: list[int], where: str = "") -> Tensor:
    if isinstance(logits, Tensor) and list(logits.shape) == wanted:
        return logits
    given = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    images = [wanted[0], 3, *wanted[2:]]
    raise PetsegError(f"model {config.name!r}: gives {given} for images {images}{where}; wanted logits {wanted}")


@dataclass(frozen=True)
class Seen:
    """What a network says of a batch of whole images, or of a band of one of fit crop that is too large for memory."""

    rows: Rows
    labels: Tensor  # uint8 [n, h, w], without padding
    logits: Tensor  # float32 [n, C, h, w]
    whole: bool = True
    last: bool = True  # of the image's bands


def predict_logits(network: Network, split: Split, rows: Rows, *, step: int = 0) -> Iterator[Seen]:
    """Yields what a network says of the images of some rows, in their order, no gradient, no dropout.

    Windows of fit crop lie `step` pixels apart, by default half their side.
    """
    network.module.eval()
    fit, contents = split.prepared.geometry.fit, split.prepared.contents
    with torch.inference_mode():
        if fit == "crop":
            for row in rows:
                yield from _windows(network, split, row, step)
            return
        for batch in evaluation_batches(rows, split.prepared.size):
            images, labels = split.batch(batch)
            logits = network.logits(images).float()
            keep_pace()
            if fit == "square":
                yield Seen(batch, labels, logits)
            else:
                for place, row in enumerate(batch):
                    height, width = contents[row]
                    one = slice(place, place + 1), ..., slice(height), slice(width)
                    yield Seen(batch[one[0]], labels[one], logits[one])


def evaluation_batches(rows: Rows, size: int) -> list[Rows]:
    """Returns rows of images of `size` pixels a side in batches that fit into memory.

    >>> [len(batch) for size in (128, 512) for batch in evaluation_batches(np.arange(35), size)]
    [32, 3, 12, 12, 11]
    """
    count = max(1, min(EVALUATION_BATCH, EVALUATION_PIXELS // size**2))
    return np.split(rows, range(count, len(rows), count))


def _windows(network: Network, split: Split, row: int, step: int) -> Iterator[Seen]:
    prepared, content = split.prepared, split.prepared.contents[row]
    bands = prepared.geometry.bands(prepared.image(row), content, network.probabilities, step=step)
    whole = content[0] * content[1] <= WHOLE
    if whole:
        bands = iter([np.concatenate(list(bands), axis=1)])
    top = 0
    for band in bands:
        bottom = top + band.shape[1]
        labels = np.array(prepared.label(row)[top:bottom, : content[1]])
        logits = torch.from_numpy(np.log(np.maximum(band, np.finfo(np.float32).tiny)))
        one, device = np.array([row]), split.device
        last = bottom == content[0]
        yield Seen(one, torch.from_numpy(labels)[None].to(device), logits[None].to(device), whole, last)
        top = bottom


def scored_logits(logits: Tensor, merge: Merge | None) -> Tensor:
    """Returns logits [N, C, H, W] of the scored classes."""
    if merge is None:
        return logits
    parts = [  # a merged class's probability is the sum of its members', so its logit is the logarithm of their sum
        logits[:, list(ids)].logsumexp(dim=1, keepdim=True) if len(ids) > 1 else logits[:, ids[0] : ids[0] + 1]
        for ids in merge.members()
    ]
    return torch.cat(parts, dim=1)


def class_ids(logits: Tensor, dim: int) -> Tensor:
    """Returns the uint8 ids of the largest logits along `dim`, the first of equal ones.

    torch's argmax does the same, at several times the time where each class is a plane: docs/log.md, 2026-11-29.
    """
    return logits.max(dim=dim).indices.to(torch.uint8)


def scored_labels(labels: Tensor, merge: Merge | None) -> Tensor:
    """Returns labels uint8 [N, H, W] of the scored classes; 255 stays."""
    if merge is None:
        return labels
    table = torch.full((256,), IGNORE, dtype=torch.uint8, device=labels.device)
    table[: len(merge.of)] = torch.tensor(merge.of, dtype=torch.uint8, device=labels.device)
    return table[labels.long()]


class ImageClass:
    """Whether each image's merged class is right (cat or dog as pet): the member with the largest sum over pixels."""

    def __init__(self, merge: Merge | None) -> None:
        self.members = next((list(ids) for ids in merge.members() if len(ids) > 1), []) if merge else []
        self.sums: dict[int, list[Tensor]] = defaultdict(list)  # row -> [2, members] of each of its bands

    def add(self, seen: Seen) -> None:
        """Adds what a network says, of the trained classes."""
        if self.members:
            predicted = seen.logits.softmax(dim=1)[:, self.members].sum(dim=(2, 3))
            pixels = torch.stack([(seen.labels == member).flatten(1).sum(dim=1) for member in self.members], dim=1)
            for row, sums in zip(seen.rows.tolist(), torch.stack([predicted, pixels], dim=1), strict=True):
                self.sums[row].append(sums)

    def right(self) -> list[bool]:
        """Returns it for each image that shows such a class."""
        both = [torch.stack(sums).sum(dim=0) for sums in self.sums.values()]
        return [bool(predicted.argmax() == pixels.argmax()) for predicted, pixels in both if pixels.any()]


@dataclass(frozen=True)
class Validation:
    """Scores over all pixels of a split at the training size, of the scored classes."""

    val_loss: float  # cross-entropy in nats
    val_miou: float
    val_accuracy: float
    val_image_class: float | None  # share of images whose class (cat or dog) is right, where classes are merged


def validate(network: Network, split: Split) -> Validation:
    """Returns loss and scores of a network on a split; each rank predicts a part of it."""
    merge = split.dataset.merge
    num_classes = len(split.dataset.scored_classes)
    loss = CrossEntropySum()
    confusion = np.zeros((num_classes, num_classes), np.int64)
    image_class = ImageClass(merge)
    for seen in predict_logits(network, split, distributed.part(split.rows), step=split.prepared.size):
        image_class.add(seen)
        logits, labels = scored_logits(seen.logits, merge), scored_labels(seen.labels, merge)
        loss.add(logits, labels)
        prediction = class_ids(logits, dim=1)
        confusion += confusion_matrix(labels.cpu().numpy(), prediction.cpu().numpy(), num_classes)
    right = image_class.right()
    confusion = distributed.total(torch.from_numpy(confusion)).numpy()
    total, pixels, correct, judged = distributed.total(
        torch.tensor([loss.total, loss.pixels, sum(right), len(right)], dtype=torch.float64)
    ).tolist()
    return Validation(
        val_loss=total / max(1, pixels),
        val_miou=float(mean_iou(confusion)),
        val_accuracy=float(pixel_accuracy(confusion)),
        val_image_class=correct / judged if judged else None,
    )
