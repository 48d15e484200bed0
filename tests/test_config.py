"""Recipes: every shipped one parses, and each mistake in one is told in a line that names its field."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from petseg.config import (
    MODEL_NAMES,
    RECIPES,
    ModelConfig,
    Recipe,
    RunConfig,
    TrainConfig,
    flat_fields,
    load_recipe,
    recipe_names,
    validated,
)
from petseg.errors import PetsegError, unknown_name
from petseg.models import MODELS, TITLES, build_model

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Returns a function that writes a recipe and returns its path."""

    def write_recipe(text: str) -> str:
        path = tmp_path / "made.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write_recipe


def settable(kind: type = Recipe, prefix: str = "") -> list[str]:
    """Returns the dotted name of every field that holds a value."""
    names = []
    for name, field in kind.model_fields.items():
        inner = field.annotation
        names += settable(inner, f"{prefix}{name}.") if hasattr(inner, "model_fields") else [prefix + name]
    return names


# Shipped recipes


def test_shipped_names():
    assert {"default", "quick", "base"} <= set(recipe_names())
    assert recipe_names() == sorted(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipe(name):
    text = (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
    assert text.startswith("# "), "a recipe says first what it is for"
    assert re.search(r"^# Command: +petseg compare", text, re.MULTILINE)
    recipe = load_recipe(name)
    for section, fields in tomllib.loads(text).items():
        if section not in ("models", "overrides"):
            written = dict(flat_fields(getattr(recipe, section).model_dump(mode="json")))
            given = dict(flat_fields(fields))
            assert {key: written[key] for key in given} == given
    assert set(recipe.overrides) <= set(recipe.models) <= set(MODELS)
    for model in recipe.models:
        config = recipe.for_model(model)
        assert config.model.name == model
        assert build_model(config.model, 3) is not None


def test_default_recipe_is_the_defaults():
    assert load_recipe("default").train == TrainConfig()


def test_round_trip():
    recipe = load_recipe("base", ["epochs=3", "model.convs=[2, 2, 3, 3, 3]"])
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_config_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe("quick").train.epochs = 3


def test_every_field_says_what_it_is():
    undescribed = [
        f"{kind.__name__}.{name}"
        for kind in (ModelConfig, TrainConfig, *(type(getattr(Recipe(), part)) for part in ("data",)))
        for name, field in kind.model_fields.items()
        if not field.description and not hasattr(field.annotation, "model_fields")
    ]
    assert undescribed == []


# From a file


def test_file_by_path(write):
    recipe = load_recipe(write('models = ["segnet", "unet_paper"]\n[train]\nepochs = 7\n[train.augment]\nflip = false'))
    assert recipe.models == ("segnet", "unet_paper")
    assert recipe.train.epochs == 7
    assert recipe.train.augment.flip is False
    assert recipe.train.augment.scale == TrainConfig().augment.scale


def test_missing_file(tmp_path):
    with pytest.raises(PetsegError, match=r"^recipe .*gone\.toml: cannot be read \(.*No such file.*\); name a TOML"):
        load_recipe(str(tmp_path / "gone.toml"))


def test_file_that_is_no_text(tmp_path):
    (tmp_path / "picture.toml").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(PetsegError, match=r"^recipe .*picture\.toml: cannot be read \(.*decode"):
        load_recipe(str(tmp_path / "picture.toml"))


def test_folder(tmp_path):
    with pytest.raises(PetsegError, match=r"cannot be read \(.*directory"):
        load_recipe(f"{tmp_path}/")


def test_broken_toml(write):
    with pytest.raises(PetsegError, match=r"^recipe .*made\.toml: not valid TOML \(.*line 2.*\); mend the file$"):
        load_recipe(write("[train]\nepochs = = 3"))


def test_unknown_recipe():
    with pytest.raises(PetsegError, match=r"^recipe 'quik' is unknown; choose one of: quick, "):
        load_recipe("quik")


# Fields


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nepoch = 3", r"field 'train\.epoch' is unknown; choose one of: train\.epochs, "),
        ("[data]\nsise = 64", r"field 'data\.sise' is unknown; choose one of: data\.size, "),
        (
            "[train.augment]\nflips = true",
            r"field 'train\.augment\.flips' is unknown; choose one of: train\.augment\.flip,",
        ),
        ("[modle]\nskips = true", r"field 'modle' is unknown; choose one of: model"),
        ("[train]\nepochs = 2.5", r"train\.epochs is 2\.5; input should be a valid integer"),
        ('[train]\nepochs = "ten"', r"train\.epochs is 'ten'; input should be a valid integer"),
        ("[train]\nepochs = [3]", r"train\.epochs is \[3\]; input should be a valid integer"),
        ("[train]\nlearning_rate = 'fast'", r"train\.learning_rate is 'fast'; input should be a valid number"),
        ("[train]\ndeterministic = 3", r"train\.deterministic is 3; input should be a valid boolean"),
        ("[data]\ntask = 'cats'", r"data\.task 'cats' is unknown; choose one of: species, pet, trimap"),
        (
            "[model]\nupsampling = 'nearest'",
            r"model\.upsampling 'nearest' is unknown; choose one of: bilinear, indices, transposed",
        ),
        ("[model]\nconvs = 'two'", r"model\.convs\S* is 'two'; input should be a valid integer"),
        ("models = 'unet'", r"models is 'unet'; input should be a valid tuple"),
        ("train = 3", r"train is 3; input should be a valid dictionary"),
        ("overrides = 3", r"overrides is 3; input should be a valid dictionary"),
    ],
)
def test_wrong_field(write, text, message):
    with pytest.raises(PetsegError, match=rf"^recipe .*made\.toml: {message}") as caught:
        load_recipe(write(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "accepted", "refused", "bound"),
    [
        ("train.epochs", 1, 0, "greater than or equal to 1"),
        ("train.batch_size", 2, 1, "greater than or equal to 2"),
        ("train.learning_rate", 1e-9, 0, "greater than 0"),
        ("train.learning_rate", 1, "nan", "a finite number"),
        ("train.warmup", 0, 1, "less than 1"),
        ("train.weight_decay", 0, -0.1, "greater than or equal to 0"),
        ("train.gradient_clip", 0, -1, "greater than or equal to 0"),
        ("train.dice_weight", 0, -1, "greater than or equal to 0"),
        ("train.ema", 0.999, 1, "less than 1"),
        ("train.seed", 0, -1, "greater than or equal to 0"),
        ("train.augment.scale", 0, 1, "less than 1"),
        ("train.augment.rotation", 180, 181, "less than or equal to 180"),
        ("train.augment.shift", 0.9, 1, "less than 1"),
        ("train.augment.colour", 0, -0.1, "greater than or equal to 0"),
        ("data.size", 16, 15, "greater than or equal to 16"),
        ("data.size", 2048, 2049, "less than or equal to 2048"),
        ("model.base_channels", 256, 257, "less than or equal to 256"),
        ("model.depth", 7, 8, "less than or equal to 7"),
        ("model.depth", 1, 0, "greater than or equal to 1"),
        ("model.dropout", 0, 1, "less than 1"),
    ],
)
def test_ranges(field, accepted, refused, bound):
    value = load_recipe("default", [f"{field}={accepted}"])
    for part in field.split("."):
        value = getattr(value, part)
    assert value == accepted
    with pytest.raises(
        PetsegError, match=rf"^recipe default: {re.escape(field)} is {refused}; input should be {bound}"
    ):
        load_recipe("default", [f"{field}={refused}"])


@pytest.mark.parametrize("models", [["unet"], [], ["unet", "unet"]], ids=str)
def test_a_comparison_needs_two_models(models):
    with pytest.raises(PetsegError, match="a comparison names two different models"):
        load_recipe("default", [f"models={models}"])


def test_validated_names_its_source():
    with pytest.raises(PetsegError, match=r"^the flag: train\.epochs is 0; input should be greater"):
        validated(RunConfig, {"train": {"epochs": 0}}, source="the flag")


# --set


@pytest.mark.parametrize("setting", ["epochs=9", "train.epochs=9", " epochs = 9 ", "train.epochs = 9"])
def test_set_bare_or_dotted(setting):
    assert load_recipe("default", [setting]).train == TrainConfig(epochs=9)


def test_set_reaches_every_field_by_its_bare_name():
    """No two fields end alike, so that every last part may stand alone."""
    bare = [name.rsplit(".", 1)[-1] for name in settable()]
    assert sorted(bare) == sorted(set(bare))
    assert "train.augment.flip" in settable()
    assert load_recipe("default", ["flip=false"]).train.augment.flip is False


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("task=pet", "pet"),
        ('task="pet"', "pet"),
        ("learning_rate=1e-3", 1e-3),
        ("deterministic=true", True),
        ("convs=2", 2),
        ("convs=[2, 2, 3]", (2, 2, 3)),
        ('models=["segnet", "unet"]', ("segnet", "unet")),
    ],
)
def test_set_values(setting, value):
    recipe = load_recipe("default", [setting])
    name = setting.split("=")[0]
    (dotted,) = [field for field in settable() if field.split(".")[-1] == name]
    found = recipe
    for part in dotted.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_set_wins_over_the_file_and_the_last_over_the_first(write):
    path = write("[train]\nepochs = 3\nseed = 4")
    recipe = load_recipe(path, ["epochs=5", "train.epochs=6"])
    assert (recipe.train.epochs, recipe.train.seed) == (6, 4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs", r"^--set epochs: got no '='; write --set field=value, for example --set epochs=10$"),
        ("epoch=3", r"field 'epoch' is unknown; choose one of: train\.epochs, "),
        ("train.epoch=3", r"field 'train\.epoch' is unknown; choose one of: train\.epochs, "),
        ("epochs=", r"train\.epochs is ''; input should be a valid integer"),
        ("train.epochs.x=1", r"train\.epochs"),
        ("train=3", r"train is 3; input should be a valid dictionary"),
    ],
)
def test_wrong_setting(setting, message):
    with pytest.raises(PetsegError, match=message):
        load_recipe("default", [setting])


def test_set_below_a_value(write):
    with pytest.raises(PetsegError, match=r"train\.epochs: train holds a value, not fields"):
        load_recipe(write("train = 3"), ["train.epochs=3"])


# Overrides


def test_overrides_are_for_one_model(write):
    recipe = load_recipe(
        write(
            '[train]\nepochs = 7\nlearning_rate = 0.02\n[overrides.segnet]\n"train.learning_rate" = 0.001\n'
            '"train.augment.flip" = false\n"model.upsampling" = "bilinear"\n'
        )
    )
    unet, segnet = (recipe.for_model(name) for name in ("unet", "segnet"))
    assert unet == RunConfig(model=ModelConfig(name="unet"), train=TrainConfig(epochs=7, learning_rate=0.02))
    assert segnet.model == ModelConfig(name="segnet", upsampling="bilinear")
    assert (segnet.train.epochs, segnet.train.learning_rate) == (7, 0.001)
    assert (unet.train.augment.flip, segnet.train.augment.flip) == (True, False)
    assert segnet.train.augment.scale == unet.train.augment.scale
    assert recipe.for_model("unet") == unet, "asking leaves the recipe as it was"


def test_overrides_may_be_tables_and_leave_the_rest_of_a_section(write):
    shared = "[train]\nepochs = 7\n"
    for form in ("[overrides.segnet]\ntrain.learning_rate = 0.001", "[overrides.segnet.train]\nlearning_rate = 0.001"):
        segnet = load_recipe(write(shared + form)).for_model("segnet")
        assert (segnet.train.epochs, segnet.train.learning_rate) == (7, 0.001)
    assert load_recipe(write(shared), ["overrides.segnet.train.epochs=3"]).for_model("segnet").train.epochs == 3


@pytest.mark.parametrize("field", ["learning_rate", "train.learning_rate"])
def test_a_setting_goes_before_overrides(write, field):
    recipe = write("[overrides.segnet.train]\nlearning_rate = 0.001\nwarmup = 0.3\n")
    segnet = load_recipe(recipe, [f"{field}=0.002"]).for_model("segnet")
    assert (segnet.train.learning_rate, segnet.train.warmup) == (0.002, 0.3)
    own = ["overrides.segnet.train.learning_rate=0.004", f"{field}=0.002"]
    assert load_recipe(recipe, own).for_model("segnet").train.learning_rate == 0.004
    assert load_recipe(recipe, own).for_model("unet").train.learning_rate == 0.002


def test_overrides_of_an_unknown_model_are_refused(write):
    with pytest.raises(PetsegError, match=r"overrides.* 'segnt' is unknown; choose one of: segnet, "):
        load_recipe(write("[overrides.segnt]\nlearning_rate = 0.001"))


def test_a_model_cannot_be_renamed(write):
    with pytest.raises(PetsegError, match=r"field 'model\.name' is unknown"):
        load_recipe("default", ["model.name=segnet"])
    with pytest.raises(PetsegError, match=r"overrides\.segnet: model\.name cannot be changed"):
        load_recipe(write('[overrides.segnet]\nmodel.name = "unet"')).for_model("segnet")
    with pytest.raises(PetsegError, match=r"model 'unett' is unknown; choose one of: unet, "):
        load_recipe("default").for_model("unett")


@pytest.mark.parametrize("setting", ["epochs=true", 'epochs="10"', "learning_rate=inf", "convs=true"])
def test_a_truth_value_a_text_or_infinity_is_no_number(setting):
    with pytest.raises(PetsegError, match=setting.partition("=")[0]):
        load_recipe("default", [setting])


@pytest.mark.parametrize("setting", ["data.size=64", "data.protocol=seed", "data.task=pet"])
def test_both_models_get_the_same_data(setting):
    with pytest.raises(PetsegError, match=r"overrides\.segnet: data must be the same for both models"):
        load_recipe("default", [f"overrides.segnet.{setting}"]).for_model("segnet")


def test_every_model_name_has_a_model():
    assert set(MODEL_NAMES) == set(MODELS) == set(TITLES)


def test_bare_name_in_overrides(write):
    recipe = load_recipe(write("[overrides.segnet]\nlearning_rate = 0.001"))
    assert recipe.for_model("segnet").train == TrainConfig(learning_rate=0.001)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"train.epoch" = 3', r"overrides\.segnet: field 'train\.epoch' is unknown; choose one of: train\.epochs, "),
        ('"train.epochs" = 0', r"overrides\.segnet: train\.epochs is 0; input should be greater than or equal to 1"),
        ('"train.epochs.x" = 1', r"train\.epochs\.x: epochs holds a value, not fields"),
    ],
)
def test_wrong_override(write, line, message):
    with pytest.raises(PetsegError, match=message):
        load_recipe(write(f"[overrides.segnet]\n{line}")).for_model("segnet")


# Names


@pytest.mark.parametrize(
    ("got", "first"), [("unett", "unet"), ("segnt", "segnet"), ("UNET", "background"), ("segnet_papr", "segnet_paper")]
)
def test_unknown_name_lists_the_nearest_first(got, first):
    choices = ["segnet", "unet", "segnet_paper", "background"]
    message = str(unknown_name("model", got, choices))
    listed = message.split("choose one of: ")[1].split(", ")
    assert message.startswith(f"model {got!r} is unknown; ")
    assert listed[0] == first
    assert sorted(listed) == sorted(choices)
