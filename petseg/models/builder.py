"""What stands beside a network: how it is made, its options, and what it wants of its images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from petseg.config import StrictConfig


@dataclass(frozen=True)
class Input:
    """What a model wants of its images."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  #: taken off each channel of values in 0..1
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)  #: what each is divided by then; fixed, no statistics of data
    multiple: int = 1  #: step of sides that every level halves evenly, in which an exported file is free; 1: not known

    def normalise(self, images: Tensor) -> Tensor:
        """Returns images [N, 3, H, W] in 0..1 (float32, any layout) as the model wants them."""
        if len({*self.mean}) == len({*self.std}) == 1:
            return (images - self.mean[0]) * (1 / self.std[0])
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std


@dataclass(frozen=True)
class Builder:
    """How a model is made from its options, and what stands beside it."""

    title: str  #: how a reader knows it
    #: of num_classes and the options as keywords; torch's global generator draws weights
    build: Callable[..., nn.Module]
    options: type[StrictConfig] = StrictConfig  #: names, types and ranges of the options
    preset: Mapping[str, Any] = field(default_factory=dict)  #: option -> value where a recipe gives none
    input: Input = Input()
    pretrain: Callable[..., None] | None = None  #: of a new model and its options: loads weights that it starts from
    pretrained_input: Input | None = None  #: what it wants where it starts from weights, if that is another input
