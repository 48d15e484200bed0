"""U-Net: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015, arXiv
1505.04597.

The encoder halves the resolution level by level while it doubles the channels; the decoder doubles the resolution again
and concatenates the encoder's whole map at each level (the skip connection), so that detail is kept. The price is
memory: each skip stays alive until its decoder stage has used it.

We differ from the paper: convolutions are padded, so the output has the size of the input; batch normalisation may
follow each (not in the `unet_paper` preset); dropout is channel-wise and optional. Switches take the idea apart:
`skips=False` drops the maps; `merge="add"` adds them instead; `upsampling` replaces the up-convolution by a 1x1
convolution and an enlargement that learns nothing, bilinear or by SegNet's indices.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from petseg.models.layers import conv_stage, initialise, stage_channels
from petseg.models.segnet import enlarge, max_pool


class UNet(nn.Module):
    """Logits [N, num_classes, H, W] of images [N, 3, H, W], for any H and W from 16 up; options: `UNetOptions`."""

    def __init__(
        self,
        num_classes: int,
        *,
        base_channels: int = 16,
        depth: int = 4,
        convs: int = 2,
        batch_norm: bool = True,
        dropout: float = 0.0,
        channels: Sequence[int] | None = None,
        skips: bool = True,
        merge: Literal["concatenate", "add"] = "concatenate",
        upsampling: Literal["transposed", "bilinear", "indices"] = "transposed",
    ) -> None:
        super().__init__()
        self.skips, self.merge, self.upsampling = skips, merge, upsampling
        self.channels = channels = list(channels or stage_channels(base_channels, depth + 1, growth_cap=2**depth))
        self.encoder = nn.ModuleList(
            conv_stage([before] + [after] * convs, batch_norm=batch_norm)
            for before, after in zip([3, *channels], channels, strict=False)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.upsample = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for below, level in zip(channels[:0:-1], channels[-2::-1], strict=True):
            self.upsample.append(
                nn.ConvTranspose2d(below, level, kernel_size=2, stride=2)
                if upsampling == "transposed"
                else nn.Conv2d(below, level, kernel_size=1)
            )
            merged = 2 * level if skips and merge == "concatenate" else level
            self.decoder.append(conv_stage([merged] + [level] * convs, batch_norm=batch_norm))
        self.head = nn.Conv2d(channels[0], num_classes, kernel_size=1)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits [N, C, H, W] of an image batch [N, 3, H, W] (range: `petseg.models.Input`)."""
        carried: list[tuple[Tensor | None, Tensor | None, tuple[int, int]]] = []  # skip, indices, size of each level
        x = self.encoder[0](image)
        for stage in list(self.encoder)[1:]:
            size = (x.shape[-2], x.shape[-1])
            skip = x if self.skips else None
            x, indices = max_pool(x, indices=self.upsampling == "indices")
            carried.append((skip, indices, size))
            x = stage(x)
        x = self.dropout(x)
        for upsample, stage in zip(self.upsample, self.decoder, strict=True):
            skip, indices, size = carried.pop()
            x = upsample(x)
            # the up-convolution doubles; odd sizes lose what pooling's rounding up added
            x = x[..., : size[0], : size[1]] if self.upsampling == "transposed" else enlarge(x, indices, size)
            if skip is not None:
                x = torch.cat([skip, x], dim=1) if self.merge == "concatenate" else skip + x
            del skip, indices  # their memory is free while the stage computes
            x = stage(x)
        logits: Tensor = self.head(x)
        return logits
