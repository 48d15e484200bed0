"""What a network wants of its input: data beside the model, not code inside a training loop."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Normalisation:
    """Takes values in 0..1 to (x - mean) / deviation, channel by channel."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    deviation: tuple[float, float, float] = (0.25, 0.25, 0.25)

    def __call__(self, images: Tensor) -> Tensor:
        """Returns images [N, 3, H, W] of values in 0..1 (float) as the network wants them."""
        if len(set(self.mean)) == len(set(self.deviation)) == 1:
            return (images - self.mean[0]) * (1.0 / self.deviation[0])
        mean, deviation = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.deviation))
        return (images - mean) / deviation


OURS = Normalisation()
"""Of U-Net and SegNet: -2..2. Fixed numbers, so that a model carries no hidden statistics of its data."""
