"""Recipes: one typed description of data, model and training, read from TOML, changed by `--set`."""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from petseg.cores import MOST_THREADS, core_count
from petseg.errors import PetsegError, shown, unknown_name


class StrictConfig(BaseModel):
    """Immutable; rejects unknown keys; no type coercion."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


NETWORKS = {  # name -> how a reader knows it; here, so that they can be listed without torch
    "unet": "U-Net",
    "segnet": "SegNet",
    "unet_paper": "U-Net (paper)",
    "segnet_paper": "SegNet (paper)",
    "segnet_basic": "SegNet-Basic",
    "tutorial": "Tutorial",
}


class ModelOptions(StrictConfig):
    """Options of a network, by name; its builder in `petseg.models` checks them (`petseg models` lists them)."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """Option -> value, as given; what is left out takes the model's preset."""
        return dict(self.model_extra or {})


class ModelConfig(ModelOptions):
    """Which network, and its options."""

    name: str = "unet"
    """One of `petseg.models.MODELS`."""


class OxfordPetsConfig(StrictConfig):
    """How the Oxford-IIIT Pet Dataset's trimaps, species and lists are used; other datasets have no such choices."""

    task: Literal["trimap", "pet", "species", "trimap_species"] = "trimap"
    """trimap: pet, background, border. pet: background, pet. species: background, cat, dog (border ignored).
    trimap_species: cat, dog, background, border; scored as trimap, cat and dog together, and by species."""
    border: Literal["pet", "background", "ignore"] = "pet"
    """Task `pet` only: what the border counts as."""
    protocol: Literal["official", "seed"] = "official"
    """official: trainval 3,312 / 368 and the test list. seed: the classic tutorial's split, last 1,000 validate."""


Fit = Literal["square", "pad", "crop"]


class DataConfig(StrictConfig):
    """Which images train, and at which size."""

    size: Annotated[int, Field(ge=16, le=2048)] = 128
    """Side in pixels of the square that the model sees."""
    fit: Fit = "square"
    """square: the whole image, resized to it. pad: the whole image in its own aspect, the rest grey and ignored. crop:
    random crops of that size train, and prediction joins overlapping windows; an epoch has as many crops as windows
    side by side."""
    reduce_to: Annotated[int, Field(ge=0)] = 0
    """Fit crop: longer side in pixels that larger images are reduced to before crops are cut; 0 keeps their size."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training images that train, each group (breed) in proportion, drawn by `train.seed`; a smaller share
    lies within a larger one of the same seed. With `data.groups`, whole groups that come nearest to it."""
    classes: str = ""
    """TOML file that names the classes of masks, in the data folder or by path. Empty: its classes.toml, if any."""
    ignore: Annotated[tuple[int | str, ...], Field(strict=False)] = ()
    """Values of masks, or colours as "#0072B2", that neither train nor count; a classes file may name more."""
    split: Literal["random", "blocks"] = "random"
    """How splits are drawn where the data bring none. random: each class in proportion, near-duplicates on one side.
    blocks: runs of neighbours by name, for slices of a volume or frames of a film."""
    groups: str = ""
    """Regular expression that finds in an image's name what it belongs to, such as a patient or a film: "^P[0-9]+". Its
    first group, else all that it matches. A drawn split keeps a group on one side, `data.fraction` draws whole
    groups, and intervals are over groups."""
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the images that validate, where that split is drawn."""
    test_share: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Share of the images for the final score, where that split is drawn; 0 draws none."""
    folds: Annotated[int, Field(ge=0)] = 0
    """Cross-validation over this many drawn folds, one of which tests; 0: a single split by the shares."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Which fold tests, from 0."""
    split_seed: Annotated[int, Field(ge=0, lt=2**40)] = 0
    """Fixes what a random split draws."""
    oxford_pets: OxfordPetsConfig = OxfordPetsConfig()

    @model_validator(mode="after")
    def _groups_can_be_found(self) -> Self:
        try:
            re.compile(self.groups)
        except re.error as error:
            raise ValueError(f"data.groups is {self.groups!r}, which is no regular expression: {error}") from None
        if self.groups and self.split == "blocks":
            raise ValueError("data.groups is for data.split random; blocks are cut wherever a share ends")
        return self

    @model_validator(mode="after")
    def _parts_leave_training_images(self) -> Self:
        if self.folds == 1 or self.fold >= max(1, self.folds):
            raise ValueError(f"data.fold is {self.fold} of data.folds {self.folds}; folds are 0 or at least 2, from 0")
        test = 1 / self.folds if self.folds else self.test_share
        if self.val_share + test >= 1:
            raise ValueError(
                f"data.val_share is {self.val_share:g} and the test share {test:g}; training needs the rest"
            )
        return self

    @model_validator(mode="after")
    def _reduced_images_are_cropped(self) -> Self:
        if self.reduce_to and (self.fit != "crop" or self.reduce_to < self.size):
            given = f"data.reduce_to is {self.reduce_to}, data.size {self.size} and data.fit {self.fit!r}"
            raise ValueError(f"{given}; it is for fit 'crop', and at least the size: leave it out, or change them")
        return self


class AugmentConfig(StrictConfig):
    """Random changes of each training image, on the training device; image and mask move together."""

    flip: bool = True
    """Mirror left and right, every other image."""
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
    """Probability that another image's foreground is pasted in front."""
    background_crop: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that an image is replaced by a part of it that is all background, where it has one."""
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


class UnlabelledConfig(StrictConfig):
    """Images without labels that training learns from; `train.teacher` says what is on them."""

    source: str = ""
    """Their folder, or `rest`: the training images that `data.fraction` leaves out. Empty: none."""
    ratio: Annotated[float, Field(gt=0)] = 1.0
    """Images of them a step, for each labelled one."""


class TrainConfig(StrictConfig):
    """How the model is trained."""

    epochs: Annotated[int, Field(ge=1)] = 30
    """Passes over the training images."""
    batch_size: Annotated[int, Field(ge=2)] = 16
    """Images a step; the last, smaller batch of an epoch is kept, a single image joined to the batch before."""
    ramp: Annotated[tuple[Annotated[int, Field(ge=16, le=2048)], ...], Field(strict=False)] = ()
    """Sides in pixels that training starts with, an equal share of the epochs each; `data.size` takes the last share.
    Epochs at small images are cheap. Empty: `data.size` throughout."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """AdamW's peak rate, reached after the warm-up."""
    encoder_rate: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Factor of the rate for an encoder (`model.encoder`) that starts from weights; 0 leaves those as they are."""
    frozen_epochs: Annotated[int, Field(ge=0)] = 0
    """First epochs in which an encoder that starts from weights stays as it is, batch normalisation included."""
    encoder_batch_norm: Literal["train", "frozen"] = "train"
    """frozen: an encoder that starts from weights keeps the means and variances of its batch normalisation."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of all steps in which the rate rises linearly; a cosine then takes it to zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decoupled decay, on weights of convolutions only."""
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    dice_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the soft Dice loss added to cross-entropy."""
    class_weights: Literal["none", "median_frequency"] = "none"
    """median_frequency: median(f) / f_c, f_c the share of class c in the images that hold it (SegNet's formula)."""
    synchronise: bool = True
    """Under torchrun: batch normalisation over the images of all ranks, as if one had them all."""
    checkpoint_activations: bool = False
    """Keep of each block of layers only its input, and compute the rest again for the gradient: less memory, slower."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay a step of an exponential moving average of the weights, evaluated in their place; 0 keeps none."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Stop after this many epochs without a better validation mIoU, the rate as for all of them; 0 trains them all."""
    init: str = ""
    """Weights that training starts from: a run folder (its best), a shipped model or an ONNX file of `petseg export`; a
    head of another number of classes is drawn. Empty: all is drawn."""
    teacher: str = ""
    """A model of the same classes, named as for `init`, whose probabilities are learnt beside labels. Empty: none."""
    teacher_weight: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Share of the teacher in what is minimised; the labels have the rest."""
    augment: AugmentConfig = AugmentConfig()
    unlabelled: UnlabelledConfig = UnlabelledConfig()
    seed: Annotated[int, Field(ge=0, lt=2**40)] = 0
    """Fixes initial weights, order of images, augmentation and dropout."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where a check says that the hardware gains from it, fp32 elsewhere."""
    compile: bool = False
    """Compile the model for training: faster steps after half a minute; on a CPU it needs a C++ compiler."""
    deterministic: bool = False
    """Bit-identical runs on one machine, at some cost in speed."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the extra `tensorboard`)."""

    @model_validator(mode="after")
    def _a_teacher_labels(self) -> Self:
        if self.unlabelled.source and not self.teacher:
            raise ValueError("train.unlabelled needs a trained run that labels it; name one by train.teacher")
        return self

    @model_validator(mode="after")
    def _a_compiled_network_is_whole(self) -> Self:
        if self.compile and self.checkpoint_activations:
            raise ValueError("train.compile and train.checkpoint_activations exclude each other; choose one")
        return self


class RunConfig(StrictConfig):
    """Everything that defines one training run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _ramp_rises(self) -> Self:
        sides = [*self.train.ramp, self.data.size]
        if any(later < earlier for earlier, later in pairwise(sides)) or self.data.size in self.train.ramp:
            given = f"train.ramp is {list(self.train.ramp)} and data.size {self.data.size}"
            raise ValueError(f"{given}; a ramp holds smaller sides, rising")
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

    models: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("unet", "segnet")
    """What `petseg compare` trains, in this order; the others are compared with the first or with `--reference`. A name
    may bring options of its own: `segnet@depth=4`."""
    seeds: Annotated[int, Field(ge=1)] = 1
    """How often `petseg compare` trains each model, from `train.seed` and those after it. Intervals are then over seeds
    as well."""
    model: ModelOptions = ModelOptions()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    overrides: dict[str, dict[str, Any]] = {}
    """Model name -> field -> value, for example `[overrides.segnet.train]` with `learning_rate = 1e-3`."""

    @model_validator(mode="after")
    def _models_are_named_once(self) -> Self:
        if len(set(self.models)) < len(self.models):
            raise ValueError("a comparison names each model once")
        if "name" in self.model.options:
            raise ValueError("model.name cannot be set; name the models under `models`")
        return self

    def for_model(self, name: str) -> RunConfig:
        """Returns the run of one model: shared fields, then its overrides; `models.run_config` checks them."""
        network, options = split_name(name)
        fields = self.model_dump(exclude={"models", "seeds", "overrides"})
        for place in dict.fromkeys((network, name)):
            put_fields(fields, self.overrides.get(place, {}), source=f"overrides.{place}")
        if "name" in fields["model"]:
            raise PetsegError(f"overrides.{name}: model.name cannot be set; name the models under `models`")
        if fields["data"] != self.data.model_dump():
            raise PetsegError(f"overrides.{name}: data must be the same for all models; change it under [data]")
        fields["model"] |= options | {"name": network}
        return validated(RunConfig, fields, source=f"overrides.{name}")


def split_name(name: str) -> tuple[str, dict[str, Any]]:
    """Returns a model's name without the options that it brings, and those.

    >>> split_name("unet@skips=false@convs=1"), split_name("timm:resnet18@imagenet")
    (('unet', {'skips': False, 'convs': 1}), ('timm:resnet18@imagenet', {}))
    """
    network, *parts = re.split(r"@(?=\w+=)", name)
    return network, dict(map(_parse_setting, parts))


# "*", or a name as browsers send it, "*." before it for all below; or an address, of IPv6 in brackets
HOST = r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\]"


class ServeConfig(StrictConfig):
    """Where `petseg serve` listens, and how much it takes on."""

    host: str = "127.0.0.1"
    """The address; any other than loopback lets others in."""
    port: Annotated[int, Field(ge=0, le=65535)] = 7860
    """0 takes a free one."""
    run: str = ""
    """Folder of a trained run that is served in place of the shipped models."""
    allowed_hosts: list[str] = []
    """Names beside this machine's own that it is asked under, for a proxy; `*.example.org` for all below one."""
    upload_bytes: Annotated[int, Field(ge=1)] = 20_000_000
    """Largest upload; a larger one is answered 413."""
    pixels: Annotated[int, Field(ge=1)] = 50_000_000
    """Largest photo; a larger one is answered 413. A cut-out takes some 20 bytes a pixel while it is made."""
    concurrent: Annotated[int, Field(ge=1, le=MOST_THREADS)] = core_count()
    """Photos computed at once, on one thread each; a core each is fastest."""
    queue: Annotated[int, Field(ge=0)] = 256
    """Requests that may wait beside those; the next one is answered 503."""
    held_bytes: Annotated[int, Field(ge=1)] = 512_000_000
    """Bytes of all uploads in memory together; an upload beyond them is answered 503."""
    seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest time a request may take, its upload and its wait included."""

    @model_validator(mode="after")
    def _allowed_hosts_can_match(self) -> Self:
        for name in self.allowed_hosts:
            if not re.fullmatch(HOST, name):
                wanted = "a name without scheme, port or path, such as pets.example.org, *.example.org or *"
                plain = re.sub(r"^[a-z]+://|[:/].*$", "", name)
                write = f"write {plain}" if re.fullmatch(HOST, plain) else "change --allowed-host"
                raise ValueError(f"allowed_hosts holds {name!r}; wanted {wanted}: {write}")
        return self


RECIPES = files("petseg") / "recipes"
ConfigT = TypeVar("ConfigT", bound=StrictConfig)


def recipe_names() -> list[str]:
    """Returns the shipped recipes' names, sorted; those of studies are left to `experiments.study.recipe`."""
    names = [entry.name.removesuffix(".toml") for entry in RECIPES.iterdir() if entry.name.endswith(".toml")]
    return sorted(name for name in names if not name.startswith("study"))


def load_recipe(name: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Returns a shipped recipe or a TOML file, changed by `field=value` settings, which hold for every model."""
    fields = read_toml("recipe", str(name), recipe_names())
    parsed = _parsed(settings)
    changed = {_full_name(field) for field, _ in parsed}
    overrides = fields.get("overrides")
    if isinstance(overrides, dict):  # anything else is refused below
        for model, own in overrides.items():
            if isinstance(own, dict):
                overrides[model] = {key: value for key, value in flat_fields(own) if _full_name(key) not in changed}
    for field, value in parsed:
        put_field(fields, field, value, source="setting")
    return validated(Recipe, fields, source=f"recipe {name}")


def with_settings(config: "RunConfig", settings: Sequence[str]) -> "RunConfig":
    """Returns a run's config changed by `field=value` settings."""
    fields = config.model_dump()
    for field, value in _parsed(settings):
        put_field(fields, field, value, source="setting")
    return validated(RunConfig, fields, source="settings")


def read_toml(kind: str, name: str, shipped: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of a shipped TOML file by name, or of one by path; errors call it a `kind`."""
    if name not in shipped and not name.endswith(".toml") and "/" not in name:
        raise unknown_name(kind, name, shipped)
    try:
        text = (RECIPES / f"{name}.toml" if name in shipped else Path(name)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PetsegError(f"{kind} {name}: cannot be read ({error}); name a TOML file or a shipped {kind}") from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets in thousands of brackets
        raise PetsegError(f"{kind} {name}: not valid TOML ({error}); mend the file") from None


def load_serving(settings: Sequence[str] = (), **given: Any) -> ServeConfig:
    """Returns what `petseg serve` goes by: `field=value` settings, then the flags that were given."""
    return validated(ServeConfig, {**dict(_parsed(settings)), **given}, source="serve")


def validated(kind: type[ConfigT], fields: Mapping[str, Any], *, source: str) -> ConfigT:
    """Returns `fields` as a `kind`; the first thing wrong becomes a `PetsegError` that names its field."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise PetsegError(f"{source}: {first_mistake(kind, error)}") from None


def first_mistake(kind: type[BaseModel], error: ValidationError) -> str:
    """Returns the first thing that is wrong with the fields of a `kind`, in one line without a full stop."""
    # a misspelt field is unknown and missing at once: the former says what to do
    first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    names, field = _field_names(kind), ".".join(map(str, first["loc"]))
    message = re.sub(r"valid dictionary( or instance of \w+)?", "table of fields", first["msg"])
    message = message.removeprefix("Value error, ").replace("valid tuple", "list")
    if first["type"] == "extra_forbidden":
        entries, own = _entry_names(kind, first["loc"]), first["loc"][-1]
        if entries and own in kind.model_fields:
            table = f"[[{first['loc'][0]}]]"
            return f"{own} stands below {table}; it is of the whole file: write it above the first {table}"
        return str(unknown_name("field", field, [*names, *entries]))
    if first["type"] == "missing":
        return f"{field} is missing; give it"
    if not field or first["type"] == "value_error":  # a rule of ours, which names what it is about
        return message
    while field not in names and "." in field:  # below a field pydantic's path goes on into its own types
        field = field.rpartition(".")[0]
    if first["type"] == "literal_error":
        choices = [choice.strip("' ") for choice in first["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return str(unknown_name(field, str(first["input"]), choices))
    return f"{field} is {shown(first['input'])}; {message[0].lower()}{message[1:]}"


def _entry_names(kind: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Returns the fields of an entry of a list of models, as `classes.1.name`; none where the place is in no list."""
    if len(place) < 3 or not isinstance(place[1], int):
        return []
    models = get_args(kind.model_fields[str(place[0])].annotation)
    return [name for each in models[:1] for name in _field_names(each, f"{place[0]}.{place[1]}.")]


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


def put_fields(fields: dict[str, Any], changes: Mapping[str, Any], *, source: str) -> None:
    """Sets the fields of a tree of changes."""
    for name, value in flat_fields(changes):
        put_field(fields, name, value, source=source)


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
    """Returns the whole dotted name of a field; a bare name that is no field's, nor near one, is a model's option."""
    if "." in field or field in Recipe.model_fields:
        return field
    names = _field_names(Recipe)
    matches = [name for name in names if name.split(".")[-1] == field]
    if len(matches) == 1:
        return matches[0]
    misspelt = difflib.get_close_matches(field, [name.split(".")[-1] for name in names], cutoff=0.8)
    return field if matches or misspelt or not field.isidentifier() else f"model.{field}"


def _parsed(settings: Sequence[str]) -> list[tuple[str, Any]]:
    """Returns (field, value) of each setting; refuses a string, which is a sequence of letters."""
    if isinstance(settings, str):
        raise PetsegError(f"settings are the string {shown(settings)}; wanted a list of them: [{shown(settings)}]")
    return [_parse_setting(setting) for setting in settings]


def _parse_setting(setting: str) -> tuple[str, Any]:
    field, equals, value = setting.partition("=")
    if not equals:
        raise PetsegError(f"setting {setting[:80]}: got no '='; write field=value, for example --set epochs=10")
    try:
        return field.strip(), tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):  # `--set task=pet` needs no quotes
        return field.strip(), value.strip()
