"""SegNet: Badrinarayanan, Kendall, Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image
Segmentation", 2015, arXiv 1511.00561.

The encoder is VGG16's thirteen convolutions in five stages, each ended by a 2x2 max-pooling whose argmax indices are
kept. The decoder mirrors it: each stage places the values back where the maximum stood (unpooling) and fills the sparse
map by convolutions. Only the indices (2 bits a window in principle) cross, not the maps: that should make it light.
Without batch normalisation it hardly learns at five stages: each unpooling makes the signal smaller.

We differ from the paper: weights start at random unless `load_vgg16` gives it the paper's own start; classes may be
unweighted; the head is the last decoder convolution, a 3x3 as in the paper. Switches take the idea apart:
`upsampling="bilinear"` drops the indices; `skips` brings the encoder's maps beside them, added (the paper's
"encoder addition") or concatenated; `last_pooling=False` leaves out the deepest pooling and its unpooling alone, at the
same parameters and arithmetic.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petseg.errors import PetsegError
from petseg.models.layers import conv_stage, initialise, stage_channels

VGG16_CONVS = (2, 2, 3, 3, 3)  # convolutions in each of VGG16's five stages


def vgg16_convs(depth: int) -> tuple[int, ...]:
    """Returns the convolutions of each of `depth` stages: VGG16's, its last number repeated beyond five."""
    return (VGG16_CONVS + VGG16_CONVS[-1:] * depth)[:depth]


class SegNet(nn.Module):
    """Logits [N, num_classes, H, W] of images [N, 3, H, W], for any H and W from 16 up.

    For options see `SegNetOptions`; `convs` has a number for each stage. Channels double up to eight times, as VGG16's.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        base_channels: int = 16,
        depth: int = 5,
        convs: Sequence[int] = VGG16_CONVS,
        batch_norm: bool = True,
        dropout: float = 0.0,
        channels: Sequence[int] | None = None,
        skips: bool = False,
        merge: Literal["concatenate", "add"] = "concatenate",
        upsampling: Literal["indices", "bilinear"] = "indices",
        last_pooling: bool = True,
    ) -> None:
        super().__init__()
        assert len(convs) == depth, "the config checks that each stage has its number of convolutions"
        self.convs = tuple(convs)
        self.skips, self.merge, self.upsampling, self.last_pooling = skips, merge, upsampling, last_pooling
        self.channels = channels = list(channels or stage_channels(base_channels, depth, growth_cap=8))
        joined = 2 if skips and merge == "concatenate" else 1
        self.encoder = nn.ModuleList(
            conv_stage([before] + [after] * count, batch_norm=batch_norm)
            for before, after, count in zip([3, *channels], channels, convs, strict=False)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.decoder = nn.ModuleList()
        for level in reversed(range(1, depth)):
            widths = [joined * channels[level]] + [channels[level]] * (convs[level] - 1) + [channels[level - 1]]
            self.decoder.append(conv_stage(widths, batch_norm=batch_norm))
        widths = [joined * channels[0]] + [channels[0]] * (convs[0] - 1)
        self.decoder.append(conv_stage(widths, batch_norm=batch_norm))
        self.head = nn.Conv2d(widths[-1], num_classes, kernel_size=3, padding=1)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits [N, C, H, W] of an image batch [N, 3, H, W] (range: `petseg.models.Input`)."""
        poolings: list[tuple[Tensor | None, Tensor | None, tuple[int, int]]] = []  # skip, indices, size of each stage
        x = image
        for left, stage in zip(reversed(range(len(self.encoder))), self.encoder, strict=True):
            x, indices = stage(x), None
            skip, size = x if self.skips else None, (x.shape[-2], x.shape[-1])
            if left or self.last_pooling:
                x, indices = max_pool(x, indices=self.upsampling == "indices")
            poolings.append((skip, indices, size))
        x = self.dropout(x)
        for stage in self.decoder:
            skip, indices, size = poolings.pop()
            if x.shape[-2:] != size:
                x = enlarge(x, indices, size)
            if skip is not None:
                x = torch.cat([skip, x], dim=1) if self.merge == "concatenate" else skip + x
            del skip, indices  # their memory is free while the stage computes
            x = stage(x)
        logits: Tensor = self.head(x)
        return logits


def load_vgg16(model: SegNet, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Loads VGG16-BN's convolutions into the encoder of a SegNet of its shape, from torchvision's layout.

    `features.N` is in turn a convolution, its batch normalisation, a ReLU. Its convolutions have biases, which batch
    normalisation cancels: taken off the running mean, they leave the network as it was. `source` is for errors.
    """
    names = [name.removesuffix(".running_mean") for name in tensors if name.endswith(".running_mean")]
    norms = sorted((name for name in names if re.fullmatch(r"features\.\d+", name)), key=lambda name: int(name[9:]))
    ours = [module for module in model.encoder.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    for conv, norm, name in zip(ours[::2], ours[1::2], norms, strict=False):
        before = f"features.{int(name[9:]) - 1}"
        try:
            bias = tensors[f"{before}.bias"]
            new = {part: tensors[f"{name}.{part}"] for part in ("weight", "bias", "running_var")}
            norm.load_state_dict({**new, "running_mean": tensors[f"{name}.running_mean"] - bias}, strict=False)
            conv.load_state_dict({"weight": tensors[f"{before}.weight"]})
        except (KeyError, RuntimeError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else f"{before} and {name} are of other shapes"
            raise PetsegError(f"encoder weights {source}: {reason}; wanted torchvision's vgg16_bn") from None
    if 2 * len(norms) < len(ours):
        raise PetsegError(
            f"encoder weights {source}: {len(norms)} batch normalisations `features.N`; wanted torchvision's vgg16_bn"
        )


def max_pool(x: Tensor, *, indices: bool) -> tuple[Tensor, Tensor | None]:
    """Returns `x` [N, D, H, W] pooled 2x2, rounded up, and the maxima's places where `indices` asks for them."""
    if indices and torch.compiler.is_exporting():
        return pool_places(x)
    # ceil_mode keeps the last row and column of odd sizes, and 1 pixel at 1 pixel
    if indices:
        return F.max_pool2d(x, kernel_size=2, stride=2, ceil_mode=True, return_indices=True)
    return F.max_pool2d(x, kernel_size=2, stride=2, ceil_mode=True), None


def enlarge(x: Tensor, indices: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Returns [N, D, *size]: `x` unpooled by the indices of `max_pool`, or bilinear where there are none."""
    if indices is None:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    return unpool_places(x, indices, size) if torch.compiler.is_exporting() else max_unpool(x, indices, size)


def max_unpool(x: Tensor, indices: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns [N, D, *size]: each value of `x` [N, D, H, W] where its maximum stood, zero elsewhere.

    `indices` are int64 from `max_pool2d`, `size` is the height and width before it: odd ones are ambiguous without it.
    """
    if torch.are_deterministic_algorithms_enabled():
        # max_unpool2d refuses to run then; windows do not overlap, so a scatter gives the same values to the bit
        flat = x.new_zeros(*x.shape[:2], size[0] * size[1])
        return flat.scatter(2, indices.flatten(2), x.flatten(2)).view(*x.shape[:2], *size)
    return F.max_unpool2d(x, indices, kernel_size=[2, 2], stride=[2, 2], output_size=size)


# For export, pooling and unpooling without indices and without scatter. A place in the window takes a byte, of which 2
# bits are used. SegNet at 128 px, 16 channels, ONNX Runtime 1.31, 2026-11-22: at most 2.4 MB of maps are alive at once;
# with places compared at full size and put off until the decoder 4.2 MB, as many as a U-Net's.


def pool_places(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `x` [N, D, H, W] pooled, and the first maximum's place in each window, uint8 0 to 3 in reading order."""
    height, width = x.shape[-2:]
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2), value=float("-inf"))
    # poolings all four, which ONNX Runtime computes in the convolutions' own layout
    pooled, upper = F.max_pool2d(x, 2, 2), F.max_pool2d(x, (1, 2), 2)
    first, left = F.max_pool2d(x, 1, 2), F.max_pool2d(x, (2, 1), 2)
    # where the upper row holds the maximum, its left value is `first`; where not, the lower left is it if `left` is
    in_upper = torch.where(first == pooled, _byte(0), _byte(1))
    in_lower = torch.where(left == pooled, _byte(2), _byte(3))
    places = torch.where(upper == pooled, in_upper, in_lower)
    # adds nothing, but places must be known before the next stage: ONNX Runtime would otherwise put them off until
    # the decoder asks, and keep every stage's whole map for them, which is the memory that indices are to save
    return pooled + (places == 4).to(x.dtype), places


def unpool_places(x: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns [N, D, *size]: each value of `x` where its maximum stood, zero elsewhere; `places` from `pool_places`."""
    # on their device: torch 2.11 says that it is exporting where it compiles, too
    windows = torch.arange(4, dtype=torch.uint8, device=places.device).view(4, 1, 1)
    spread = (places[:, :, None] == windows).to(x.dtype) * x[:, :, None]
    return F.pixel_shuffle(spread.flatten(1, 2), 2)[..., : size[0], : size[1]]


def _byte(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.uint8)
