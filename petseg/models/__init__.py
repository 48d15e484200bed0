"""The models by name: `build_model(config, num_classes)`.

Axis letters everywhere in petseg: N batch, C classes, D features, H and W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from petseg.config import ModelConfig
from petseg.errors import PetsegError
from petseg.models.external import build_external
from petseg.models.normalisation import OURS, Normalisation
from petseg.models.segnet import VGG16_CONVS, SegNet
from petseg.models.unet import UNet

MODELS: dict[str, tuple[type[UNet | SegNet], dict[str, Any]]] = {
    "unet": (UNet, {"base_channels": 16, "depth": 4, "convs": 2, "batch_norm": True}),
    "segnet": (SegNet, {"base_channels": 16, "depth": 5, "batch_norm": True}),
    "unet_paper": (UNet, {"base_channels": 64, "depth": 4, "convs": 2, "batch_norm": False, "dropout": 0.5}),
    "segnet_paper": (SegNet, {"base_channels": 64, "depth": 5, "batch_norm": True}),
}
"""Name -> class and preset; a field of `ModelConfig` that is given replaces the preset's."""

EXTERNAL_FIELDS = ("encoder_weights", "decoder_channels")
"""Fields of `ModelConfig` that our own models do not have; the others are theirs alone."""

TITLES = {"unet": "U-Net", "segnet": "SegNet", "unet_paper": "U-Net (paper)", "segnet_paper": "SegNet (paper)"}
"""Name -> how a reader knows it."""


def build_model(config: ModelConfig, num_classes: int, *, pretrained: bool = False) -> nn.Module:
    """Returns the model that `config` names, weights drawn from torch's global generator.

    Args:
        config: name and shape.
        num_classes: C, channels of the logits.
        pretrained: load the encoder's weights where the config asks for them: what training starts from.

    Raises:
        PetsegError: a field that this model does not have, or weights that cannot be had.
    """
    given = config.model_dump(exclude={"name"}, exclude_none=True)
    ours = config.name in MODELS
    for field in given:
        if (field in EXTERNAL_FIELDS) == ours:
            raise PetsegError(f"model.{field} was given for {config.name!r}, which has no such option; leave it out")
    if not ours:
        return build_external(config.name, num_classes, pretrained=pretrained, **given)
    kind, preset = MODELS[config.name]
    if kind is SegNet and "skips" in given:
        raise PetsegError(
            f"model.skips was given for {config.name!r}, which has no such option; it belongs to 'unet': write it "
            "under [overrides.unet.model]"
        )
    if kind is SegNet and given.get("upsampling") == "transposed":
        raise PetsegError(f"model.upsampling is 'transposed' for {config.name!r}; choose one of: indices, bilinear")
    options = preset | given
    convs = options.get("convs")
    if kind is UNet:
        if isinstance(convs, tuple):
            if len(set(convs)) != 1:
                raise PetsegError(f"model.convs is {list(convs)}; a U-Net takes one number for all its stages")
            options["convs"] = convs[0]
    else:
        depth = options["depth"]
        if convs is None:
            options["convs"] = (VGG16_CONVS + VGG16_CONVS[-1:] * depth)[:depth]
        elif isinstance(convs, int):
            options["convs"] = (convs,) * depth
        elif len(convs) != depth:
            raise PetsegError(f"model.convs has {len(convs)} numbers for depth {depth}; give one for each stage")
    return kind(num_classes, **options)


def normalise(images: Tensor, model: nn.Module | None = None) -> Tensor:
    """Returns images (float32, values in 0..1) as a model wants them: by its `normalisation`, else in -2..2."""
    normalisation: Normalisation = getattr(model, "normalisation", OURS)
    return normalisation(images)


def to_unit_range(images: Tensor) -> Tensor:
    """Returns uint8 [N, H, W, 3] as float32 [N, 3, H, W] in 0..1.

    Planes, not channels_last: augmentation is twice as fast on them, and the model takes either.
    """
    return images.permute(0, 3, 1, 2).contiguous().to(torch.float32).mul_(1 / 255)


__all__ = ["MODELS", "TITLES", "SegNet", "UNet", "build_model", "normalise", "to_unit_range"]
