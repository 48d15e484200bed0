"""Recipes: one typed description of data, model and training, read from TOML, changed by `--set`.

One description serves the file, the flag, the help text and the run folder. Shipped recipes lie in `petseg/recipes`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from petseg.errors import PetsegError, shown, unknown_name

ModelName = Literal["unet", "segnet", "unet_paper", "segnet_paper"]
TaskName = Literal["trimap", "pet", "species", "trimap_species"]
Protocol = Literal["official", "seed"]
Border = Literal["pet", "background", "ignore"]
ExternalName = Annotated[str, Field(pattern=r"^(smp|timm):.+")]
"""`petseg.models.external` says what may follow."""


Convs = Annotated[int, Field(ge=1, le=8)]


class StrictConfig(BaseModel):
    """What every recipe's part is: frozen, no unknown field, `true` no number and "3" no count."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelShape(StrictConfig):
    """The shape of a network; a field left out takes the model's preset (`petseg models` lists them)."""

    base_channels: Annotated[int, Field(ge=1, le=256)] | None = None
    """Channels of the first stage; they double with each halving of the resolution."""
    depth: Annotated[int, Field(ge=1, le=7)] | None = None
    """How many times the resolution is halved."""
    convs: Convs | Annotated[tuple[Convs, ...], Field(strict=False)] | None = None
    """3x3 convolutions a stage: one number, or one for each stage (SegNet only)."""
    batch_norm: bool | None = None
    """Batch normalisation after each convolution."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Probability of dropping a channel of the deepest stage."""
    skips: bool | None = None
    """U-Net only: concatenate the encoder's maps; false is the ablation."""
    upsampling: Literal["indices", "bilinear", "transposed"] | None = None
    """By the pooling's indices (SegNet's own), bilinear, or a learnt 2x2 up-convolution (U-Net's own, U-Net only)."""
    encoder_weights: str | None = None
    """`smp:` and `timm:` models only: a file of the encoder's weights, in place of what the name asks for."""
    decoder_channels: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] | None = None
    """`smp:` and `timm:` models only: channels of each decoder stage, deepest first."""


class ModelConfig(ModelShape):
    """Which network, and its shape."""

    name: ModelName | ExternalName = "unet"
    """The preset, or a network of another library: smp:ARCHITECTURE/ENCODER, timm:ENCODER, each with @imagenet."""


class DataConfig(StrictConfig):
    """What is learnt, on which pictures, at which size."""

    task: TaskName = "trimap"
    """trimap: pet, background, border. pet: background, pet. species: background, cat, dog (border ignored).
    trimap_species: cat, dog, background, border; scored as trimap, cat and dog together, and by species."""
    border: Border = "pet"
    """Task `pet` only: what the border counts as."""
    protocol: Protocol = "official"
    """official: trainval 3,312 / 368 and the test list. seed: the classic tutorial's split, last 1,000 validate."""
    size: Annotated[int, Field(ge=16, le=2048)] = 128
    """Side in pixels of the square that pictures are resized to."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training pictures that train, each breed in proportion, drawn by `train.seed`; a smaller share lies
    within a larger one of the same seed."""


class AugmentConfig(StrictConfig):
    """Random changes of each training picture, on the training device; image and mask move together."""

    flip: bool = True
    """Mirror left and right, every other picture."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Zoom by a factor between 1 / (1 + scale) and 1 + scale, log-uniform."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 15.0
    """Turn by up to this many degrees either way."""
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Move by up to this share of the side either way."""
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Brightness, contrast and saturation change by up to this share either way."""
    aspect: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stretch one side against the other by a factor of up to 1 + aspect."""
    composite: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that another image's pet is pasted in front."""
    background_crop: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that an image is replaced by a part of it without any pet, where it has one."""
    occlusion: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that a plain rectangle, background, hides a part."""
    light: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of darkness, another gamma and a colour cast."""
    blur: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of a Gaussian blur."""
    shrink: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that an image is reduced and enlarged again."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of Gaussian noise."""
    jpeg: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of JPEG compression."""


class TrainConfig(StrictConfig):
    """How the weights are found."""

    epochs: Annotated[int, Field(ge=1)] = 30
    """Passes over the training pictures, if `passes` is 1."""
    passes: Annotated[int, Field(ge=1)] = 1
    """Passes over the training pictures in an epoch: on a GPU a validation costs as much as a pass."""
    batch_size: Annotated[int, Field(ge=2)] = 16
    """Pictures a step; the last, smaller batch of an epoch is kept, a single picture joined to the batch before."""
    ramp: Annotated[tuple[Annotated[int, Field(ge=16, le=2048)], ...], Field(strict=False)] = ()
    """Sides in pixels that training starts with, an equal share of the epochs each, before `data.size` takes the last
    share: small pictures first make the first epochs cheap. Empty trains at `data.size` throughout."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """AdamW's peak rate, reached after the warm-up."""
    encoder_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate for the encoder, which a pretrained one wants below 1."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of all steps in which the rate rises linearly; a cosine then takes it to zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decoupled decay, on weights of convolutions only."""
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    dice_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the soft Dice loss added to cross-entropy."""
    class_weights: Literal["none", "median_frequency"] = "none"
    """median_frequency: median(f) / f_c, f_c the share of class c in the pictures that hold it (SegNet's formula)."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay a step of an exponential moving average of the weights, evaluated in their place; 0 keeps none."""
    init: str | None = None
    """Weights of the same network that training starts from."""
    teacher: str | None = None
    """Folder of a finished run of the same classes, whose probabilities the model learns beside the labels."""
    teacher_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the teacher in the loss; the labels' loss has the rest."""
    teacher_temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides both sides' logits: above 1 small probabilities count for more."""
    augment: AugmentConfig = AugmentConfig()
    seed: Annotated[int, Field(ge=0, lt=2**40)] = 0
    """Fixes initial weights, order of pictures, augmentation and dropout."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where a check says that the hardware gains from it, fp32 elsewhere."""
    compile: bool = False
    """Compile the model for training: faster steps after half a minute; on a CPU it needs a C++ compiler."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune-no-cudagraphs"] = "default"
    """torch.compile's mode; reduce-overhead records CUDA graphs, which pays for small batches."""
    deterministic: bool = False
    """Bit-identical runs on one machine, at some cost in speed."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the extra `tensorboard`)."""


class RunConfig(StrictConfig):
    """Everything that defines one training run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _ramp_rises(self) -> RunConfig:
        sides = [*self.train.ramp, self.data.size]
        if any(later < earlier for earlier, later in pairwise(sides)) or self.data.size in self.train.ramp:
            raise ValueError(
                f"train.ramp is {list(self.train.ramp)} and data.size {self.data.size}; "
                "a ramp holds smaller sides, rising"
            )
        return self

    def side(self, epoch: int) -> int:
        """Returns the side in pixels at which an epoch (from 1) trains.

        >>> config = RunConfig(data=DataConfig(size=96), train=TrainConfig(epochs=4, ramp=(48, 64)))
        >>> [config.side(epoch) for epoch in (1, 2, 3, 4)]
        [48, 48, 64, 96]
        """
        sides = (*self.train.ramp, self.data.size)
        return sides[(epoch - 1) * len(sides) // self.train.epochs]


class Recipe(StrictConfig):
    """A run's description shared by several models, with what differs for each under `overrides`."""

    models: Annotated[tuple[ModelName, ...], Field(strict=False)] = ("unet", "segnet")
    """The two that `petseg compare` trains, in this order."""
    model: ModelShape = ModelShape()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    overrides: dict[ModelName, dict[str, Any]] = {}
    """Model name -> field -> value, for example `[overrides.segnet.train]` with `learning_rate = 1e-3`."""

    @field_validator("models")
    @classmethod
    def _several_models(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(models)) != 2 or len(models) != 2:
            raise ValueError("a comparison names two different models")
        return models

    def for_model(self, name: str) -> RunConfig:
        """Returns the run of one model: shared fields, then its overrides.

        Raises:
            PetsegError: an unknown model, or an override that is no field.
        """
        if name not in MODEL_NAMES:
            raise unknown_name("model", name, MODEL_NAMES)
        fields = self.model_dump(exclude={"models", "overrides"})
        for field, value in flat_fields(self.overrides.get(name, {})):  # type: ignore[call-overload]
            put_field(fields, field, value, source=f"overrides.{name}")
        if "name" in fields["model"]:
            raise PetsegError(f"overrides.{name}: model.name cannot be changed; name models under `models`")
        if fields["data"] != self.data.model_dump():
            raise PetsegError(f"overrides.{name}: data must be the same for both models; change it under [data]")
        fields["model"]["name"] = name
        return validated(RunConfig, fields, source=f"overrides.{name}")


class ServeConfig(StrictConfig):
    """Where `petseg serve` listens, and how much it takes on."""

    host: str = "127.0.0.1"
    """The address; any other than loopback lets others in."""
    port: Annotated[int, Field(ge=0, le=65535)] = 7860
    """0 takes a free one."""
    upload_bytes: Annotated[int, Field(ge=1)] = 20_000_000
    """Largest upload; a larger one is answered 413."""
    pixels: Annotated[int, Field(ge=1)] = 50_000_000
    """Largest photo; a larger one is answered 413. A cut-out takes some 20 bytes a pixel while it is made."""
    concurrent: Annotated[int, Field(ge=1)] = os.cpu_count() or 1
    """Photos computed at once, on one thread each; a core each is fastest."""
    queue: Annotated[int, Field(ge=0)] = 256
    """Requests that may wait beside those; the next one is answered 503."""
    held_bytes: Annotated[int, Field(ge=1)] = 512_000_000
    """Bytes of all uploads in memory together; an upload beyond them is answered 503."""
    seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest time a request may take, its upload and its wait included."""


MODEL_NAMES: tuple[str, ...] = get_args(ModelName)
RECIPES = files("petseg") / "recipes"
ConfigT = TypeVar("ConfigT", bound=StrictConfig)


def recipe_names() -> list[str]:
    """Returns the shipped recipes' names, sorted; studies, which lie among them, are `petseg.study.recipe`'s."""
    names = [entry.name.removesuffix(".toml") for entry in RECIPES.iterdir() if entry.name.endswith(".toml")]
    return sorted(name for name in names if not name.startswith("study"))


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """Returns a shipped recipe by name, or a TOML file by path, with `field=value` settings applied.

    A setting holds for every model: it goes before what the file's `overrides` say.

    Raises:
        PetsegError: unknown recipe, broken TOML, unknown or wrong field, malformed setting.
    """
    if name in recipe_names():
        text = (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
    elif name.endswith(".toml") or "/" in name:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PetsegError(
                f"recipe {name}: cannot be read ({error}); name a TOML file or a shipped recipe"
            ) from None
    else:
        raise unknown_name("recipe", name, recipe_names())
    try:
        fields = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets in thousands of brackets
        raise PetsegError(f"recipe {name}: not valid TOML ({error}); mend the file") from None
    parsed = [_parse_setting(setting) for setting in settings]
    for field, _ in parsed:
        _drop_overrides(fields, _full_name(field))
    for field, value in parsed:
        put_field(fields, field, value, source="--set")
    return validated(Recipe, fields, source=f"recipe {name}")


def load_serving(settings: Sequence[str] = (), **given: Any) -> ServeConfig:
    """Returns what `petseg serve` goes by: `field=value` settings, then the flags that were given.

    Raises:
        PetsegError: unknown or wrong field, malformed setting.
    """
    fields = dict(map(_parse_setting, settings))
    return validated(ServeConfig, {**fields, **given}, source="serve")


def validated(kind: type[ConfigT], fields: Mapping[str, Any], *, source: str) -> ConfigT:
    """Returns `fields` as a `kind`; the first thing wrong becomes one line that names its field.

    Raises:
        PetsegError: an unknown field (nearest first), or a value of the wrong type or range.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        # a misspelt field is unknown and missing at once: the former says what to do
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    names = _field_names(kind)
    path = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        raise PetsegError(f"{source}: {unknown_name('field', '.'.join(path), names)}")
    if first["type"] == "missing":
        raise PetsegError(f"{source}: {'.'.join(path)} is missing; give it")
    # below a field pydantic's path goes on into its own types
    dotted = next(
        (".".join(path[:end]) for end in range(len(path), 0, -1) if ".".join(path[:end]) in names), ".".join(path)
    )
    if first["type"] == "literal_error":
        choices = [choice.strip("' ") for choice in first["ctx"]["expected"].replace(" or ", ", ").split(",")]
        raise PetsegError(f"{source}: {unknown_name(dotted, str(first['input']), choices)}")
    told = first["msg"].removeprefix("Value error, ")
    if not path:  # a rule between fields
        raise PetsegError(f"{source}: {told}")
    raise PetsegError(f"{source}: {dotted} is {shown(first['input'])}; {told[0].lower()}{told[1:]}")


def _field_names(kind: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in kind.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            names += _field_names(nested, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def flat_fields(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted field, value): TOML reads `train.epochs = 3` as a table in a table."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from flat_fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def put_field(fields: dict[str, Any], field: str, value: Any, *, source: str) -> None:
    """Sets a dotted field; a last part that is unique in the recipe may stand alone (`epochs`)."""
    *parents, last = _full_name(field).split(".")
    for parent in parents:
        nested = fields.setdefault(parent, {})
        if not isinstance(nested, dict):
            raise PetsegError(f"{source} {field}: {parent} holds a value, not fields; name a field of the recipe")
        fields = nested
    fields[last] = value


def _full_name(field: str) -> str:
    matches = [name for name in _field_names(Recipe) if name.split(".")[-1] == field]
    return matches[0] if "." not in field and len(matches) == 1 else field


def _drop_overrides(fields: dict[str, Any], field: str) -> None:
    overrides = fields.get("overrides")
    if not isinstance(overrides, dict):
        return  # which is refused later
    for name, own in overrides.items():
        if isinstance(own, dict):
            overrides[name] = {key: value for key, value in flat_fields(own) if _full_name(key) != field}


def _parse_setting(setting: str) -> tuple[str, Any]:
    field, equals, value = setting.partition("=")
    if not equals:
        raise PetsegError(f"--set {setting[:80]}: got no '='; write --set field=value, for example --set epochs=10")
    return field.strip(), _parse_value(value.strip())


def _parse_value(text: str) -> Any:
    """Returns a TOML value, or the bare text where it is none (`--set task=pet` needs no quotes)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
