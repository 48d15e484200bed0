"""The models by name: `build_model(config, num_classes)`.

A model is any `torch.nn.Module` from images [N, 3, H, W] to logits [N, C, H, W]; a `Builder` says what input it wants.
One from elsewhere is one line: `MODELS["mine"] = Builder("My network", lambda num_classes: MyNet(num_classes))`.
Axis letters everywhere in petseg: N batch, C classes, D features, H and W pixels.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from petseg.config import NETWORKS, ModelConfig, ModelOptions, Recipe, RunConfig, StrictConfig, split_name, validated
from petseg.errors import PetsegError, unknown_name
from petseg.models import external
from petseg.models.builder import Builder as Builder
from petseg.models.builder import Input as Input
from petseg.models.segnet import SegNet, load_vgg16, vgg16_convs
from petseg.models.segnet_basic import STAGES, SegNetBasic
from petseg.models.tutorial import Tutorial
from petseg.models.unet import UNet

Convs = Annotated[int, Field(ge=1, le=8)]


class StageOptions(StrictConfig):
    """Options of an encoder and a decoder of several stages; `Input.multiple` follows from their depth."""

    base_channels: Annotated[int, Field(ge=1, le=256)]
    """Channels of the first stage; they double with each halving of the resolution."""
    depth: Annotated[int, Field(ge=1, le=7)]
    """How many times the resolution is halved."""
    batch_norm: bool
    """Batch normalisation after each convolution."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of dropping a channel of the deepest stage."""
    channels: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] | None = None
    """Channels of each stage (U-Net: and of the bottom), where they do not double from `base_channels`."""
    merge: Literal["concatenate", "add"] = "concatenate"
    """How the encoder's maps join the decoder's; added, they cost neither parameters nor arithmetic."""

    def stages(self) -> int:
        """Returns how many numbers `channels` has."""
        return self.depth

    @model_validator(mode="after")
    def _channels_of_each_stage(self) -> Self:
        if self.channels is not None and len(self.channels) != self.stages():
            raise ValueError(
                f"channels has {len(self.channels)} numbers for depth {self.depth}; wanted {self.stages()}"
            )
        return self


class UNetOptions(StageOptions):
    """Options of U-Net."""

    convs: Convs
    """3x3 convolutions a stage."""
    skips: bool = True
    """Concatenate the encoder's maps; false is the ablation."""
    upsampling: Literal["transposed", "bilinear", "indices"] = "transposed"
    """A learnt 2x2 up-convolution (U-Net's own), bilinear, or by the pooling's indices (SegNet's own)."""

    def stages(self) -> int:
        """Returns the stages and the bottom."""
        return self.depth + 1


class SegNetOptions(StageOptions):
    """Options of SegNet."""

    convs: Convs | Annotated[tuple[Convs, ...], Field(strict=False)] | None = None
    """3x3 convolutions a stage: one number, or one for each stage; none takes VGG16's 2, 2, 3, 3, 3."""
    upsampling: Literal["indices", "bilinear"] = "indices"
    """By the pooling's indices (SegNet's own), or bilinear: the ablation."""
    skips: bool = False
    """Bring the encoder's maps to the decoder beside the indices."""
    last_pooling: bool = True
    """Pool after the deepest stage, as the paper; false leaves that out at the same cost."""
    encoder_weights: str | None = None
    """VGG16-BN's weights, the paper's own start: "imagenet" asks timm's hub, else a file in torchvision's layout."""

    @model_validator(mode="after")
    def _convs_of_each_stage(self) -> Self:
        if isinstance(self.convs, tuple) and len(self.convs) != self.depth:
            raise ValueError(f"convs has {len(self.convs)} numbers for depth {self.depth}; give one for each stage")
        return self

    @model_validator(mode="after")
    def _shape_of_vgg16(self) -> Self:
        stages = (self.convs,) * self.depth if isinstance(self.convs, int) else self.convs or vgg16_convs(self.depth)
        shape = self.base_channels, self.batch_norm, self.depth <= 5 and tuple(stages) == vgg16_convs(self.depth)
        if self.encoder_weights is not None and shape != (64, True, True):
            raise ValueError(
                f"encoder_weights is given with base_channels {self.base_channels}, depth {self.depth}, convs "
                f"{list(stages)} and batch_norm {self.batch_norm}; VGG16-BN has 64, at most 5, 2, 2, 3, 3, 3 and True: "
                "take segnet_paper"
            )
        return self


class SegNetBasicOptions(StrictConfig):
    """Options of SegNet-Basic."""

    base_channels: Annotated[int, Field(ge=1, le=256)]
    """Channels of every stage."""
    skips: bool = False
    """Add the encoder's maps after unpooling."""
    upsampling: Literal["indices", "bilinear"] = "indices"
    """By the pooling's indices, or bilinear."""


class TutorialOptions(StrictConfig):
    """Options of the tutorial's network."""

    base_channels: Annotated[int, Field(ge=1, le=256)]
    """Channels of the first stage; the second has twice as many, the third four times."""


def _segnet(
    num_classes: int, *, convs: int | tuple[int, ...] | None, depth: int, encoder_weights: str | None, **options: Any
) -> SegNet:
    stages = (convs,) * depth if isinstance(convs, int) else convs or vgg16_convs(depth)
    return SegNet(num_classes, convs=stages, depth=depth, **options)


def _start_as_vgg16(model: SegNet, *, encoder_weights: str, **_: Any) -> None:
    asked = encoder_weights == "imagenet"
    tensors = external.imagenet_tensors("vgg16_bn") if asked else external.read_tensors(Path(encoder_weights))
    load_vgg16(model, tensors, source=encoder_weights)


_VGG16_INPUT = Input((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision's
_UNET = Builder(NETWORKS["unet"], UNet, UNetOptions, {"base_channels": 16, "depth": 4, "convs": 2, "batch_norm": True})
_SEGNET = Builder(
    NETWORKS["segnet"],
    _segnet,
    SegNetOptions,
    {"base_channels": 16, "depth": 5, "batch_norm": True},
    pretrain=_start_as_vgg16,
    pretrained_input=_VGG16_INPUT,
)
_UNET_PAPER = {"base_channels": 64, "depth": 4, "convs": 2, "batch_norm": False, "dropout": 0.5}

MODELS: dict[str, Builder] = {  # name -> builder
    "unet": _UNET,
    "segnet": _SEGNET,
    "unet_paper": replace(_UNET, title=NETWORKS["unet_paper"], preset=_UNET_PAPER),
    "segnet_paper": replace(_SEGNET, title=NETWORKS["segnet_paper"], preset={**_SEGNET.preset, "base_channels": 64}),
    "segnet_basic": Builder(
        NETWORKS["segnet_basic"],
        SegNetBasic,
        SegNetBasicOptions,
        {"base_channels": 64},
        Input(multiple=2**STAGES),
    ),
    "tutorial": Builder(
        NETWORKS["tutorial"],
        Tutorial,
        TutorialOptions,
        {"base_channels": 64},
        Input((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 8),
    ),
}


def builder_of(name: str) -> Builder:
    """Returns the builder of a model; for an unknown name, an error with the choices."""
    if name in MODELS:
        return MODELS[name]
    if ":" in name:
        return external.builder(name)
    raise unknown_name("model", name, MODELS)


def model_options(config: ModelConfig) -> dict[str, Any]:
    """Returns every option of a model, the preset's where the config gives none; refuses what the model has not."""
    builder = builder_of(config.name)
    given = {name: value for name, value in config.options.items() if value is not None}
    for unknown in [name for name in given if name not in builder.options.model_fields]:
        owner = next((name for name, other in MODELS.items() if unknown in other.options.model_fields), None)
        if owner is None:
            raise unknown_name(f"option of model {config.name!r}", unknown, builder.options.model_fields)
        raise PetsegError(
            f"model.{unknown} was given for {config.name!r}, which has no such option; it belongs to {owner!r}: "
            f"write it under [overrides.{owner}.model]"
        )
    return validated(builder.options, {**builder.preset, **given}, source=f"model {config.name!r}").model_dump()


def run_config(recipe: Recipe, name: str) -> RunConfig:
    """Returns the run of one model of a recipe, after checking names and options: before minutes of work.

    An option under [model] goes to those of the compared models that have it.
    """
    names = (name, *recipe.models, *recipe.overrides)
    fields = {model: builder_of(split_name(model)[0]).options.model_fields for model in names}
    compared = [fields[model] for model in (name, *recipe.models)]
    kept = {
        option: value
        for option, value in recipe.model.options.items()
        if option in fields[name] or not any(option in known for known in compared)
    }
    config = recipe.model_copy(update={"model": ModelOptions(**kept)}).for_model(name)
    model_options(config.model)
    return config


def build_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """Returns the model that `config` names, weights drawn from torch's global generator."""
    model: object = builder_of(config.name).build(num_classes, **model_options(config))
    if not isinstance(model, nn.Module):
        raise PetsegError(f"model {config.name!r}: gives {type(model).__name__}; wanted a torch.nn.Module")
    return model


def pretrain(config: ModelConfig, model: nn.Module) -> None:
    """Loads the weights that a new model's encoder starts from, where its config names some; else all is as drawn."""
    start = builder_of(config.name).pretrain
    if start is not None and pretrained(config):
        start(model, **model_options(config))


def pretrained(config: ModelConfig) -> bool:
    """Returns whether a config names weights that the encoder starts from."""
    return config.name.endswith("@imagenet") or model_options(config).get("encoder_weights") is not None


def model_input(config: ModelConfig) -> Input:
    """Returns what a model wants of its images."""
    builder, options = builder_of(config.name), model_options(config)
    wanted = builder.pretrained_input if builder.pretrained_input and pretrained(config) else builder.input
    staged = issubclass(builder.options, StageOptions)
    return replace(wanted, multiple=2 ** options["depth"]) if staged else wanted


def title_of(name: str) -> str:
    """Returns how a reader knows a model; its own name where it is none of `MODELS` any more.

    >>> title_of("segnet@depth=4@batch_norm=false")
    'SegNet, depth 4, batch norm false'
    """
    network, options = split_name(name)
    title = MODELS[network].title if network in MODELS else external.title(network)
    return ", ".join(
        [title, *(f"{option.replace('_', ' ')} {str(value).lower()}" for option, value in options.items())]
    )


def folder_name(name: str) -> str:
    """Returns a model's name as part of a path.

    >>> folder_name("smp:Unet/resnet18@imagenet"), folder_name("unet")
    ('smp_Unet_resnet18@imagenet', 'unet')
    """
    return re.sub(r"[^\w.@-]+", "_", name)


def to_unit_range(images: Tensor) -> Tensor:
    """Returns uint8 [N, H, W, 3] as float32 [N, 3, H, W] in 0..1, in planes: augmentation is twice as fast on them."""
    return images.permute(0, 3, 1, 2).contiguous().to(torch.float32).mul_(1 / 255)
