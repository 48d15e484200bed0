"""SegNet-Basic: Badrinarayanan, Kendall, Cipolla, "SegNet", 2015, arXiv 1511.00561, section 3.

The small SegNet of the paper's own experiments on CamVid: four encoders of one 7x7 convolution with 64 channels, batch
normalisation and ReLU, each ended by a 2x2 max-pooling; four decoders that unpool by its indices and convolve again,
without ReLU. No convolution has a bias. Its Table 1 counts 1.425 M parameters; with 11 classes we count 1.416 M.

We differ from the paper: images are normalised by fixed numbers, without local contrast normalisation. `skips` adds the
encoder's maps after unpooling, the paper's "encoder addition"; `upsampling="bilinear"` is its bilinear arm.
"""

from typing import Literal

from torch import Tensor, nn

from petseg.models.layers import initialise
from petseg.models.segnet import enlarge, max_pool

STAGES = 4


class SegNetBasic(nn.Module):
    """Logits [N, num_classes, H, W] of images [N, 3, H, W], for any H and W from 16 up; see `SegNetBasicOptions`."""

    def __init__(
        self,
        num_classes: int,
        *,
        base_channels: int = 64,
        skips: bool = False,
        upsampling: Literal["indices", "bilinear"] = "indices",
    ) -> None:
        super().__init__()
        self.skips, self.upsampling = skips, upsampling
        self.encoder = nn.ModuleList(
            nn.Sequential(*_normalised(before, base_channels), nn.ReLU(inplace=True))
            for before in (3, *[base_channels] * (STAGES - 1))
        )
        self.decoder = nn.ModuleList(nn.Sequential(*_normalised(base_channels, base_channels)) for _ in range(STAGES))
        self.head = nn.Conv2d(base_channels, num_classes, kernel_size=1)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits [N, C, H, W] of an image batch [N, 3, H, W] (range: `petseg.models.Input`)."""
        poolings: list[tuple[Tensor | None, Tensor | None, tuple[int, int]]] = []  # skip, indices, size of each stage
        x = image
        for stage in self.encoder:
            x = stage(x)
            skip, size = x if self.skips else None, (x.shape[-2], x.shape[-1])
            x, indices = max_pool(x, indices=self.upsampling == "indices")
            poolings.append((skip, indices, size))
        for stage in self.decoder:
            skip, indices, size = poolings.pop()
            x = enlarge(x, indices, size)
            x = stage(x if skip is None else x + skip)
        logits: Tensor = self.head(x)
        return logits


def _normalised(before: int, after: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(before, after, kernel_size=7, padding=3, bias=False), nn.BatchNorm2d(after)
