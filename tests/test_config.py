"""Recipes: every shipped one parses, and each mistake in one is a line that names its field."""

import re
import tomllib
from operator import attrgetter

import pytest
from pydantic import ValidationError

from petseg import config
from petseg.config import (
    AugmentConfig,
    ModelConfig,
    Recipe,
    RunConfig,
    ServeConfig,
    TrainConfig,
    load_recipe,
    load_serving,
    with_settings,
)
from petseg.errors import PetsegError
from petseg.models import MODELS, build_model, run_config
from tests.conftest import refused


@pytest.fixture
def write(tmp_path):
    def write_recipe(text):
        (tmp_path / "written.toml").write_text(text, encoding="utf-8")
        return str(tmp_path / "written.toml")

    return write_recipe


def settable(kind=Recipe, prefix=""):
    names = []
    for name, field in kind.model_fields.items():
        nested = hasattr(field.annotation, "model_fields")
        names += settable(field.annotation, f"{prefix}{name}.") if nested else [prefix + name]
    return names


def value_of(recipe, field):
    return attrgetter(field)(recipe)


@pytest.mark.parametrize("name", [path.name.removesuffix(".toml") for path in config.RECIPES.iterdir()])
def test_shipped_recipe(name):
    text = (config.RECIPES / f"{name}.toml").read_text(encoding="utf-8")
    assert text.startswith("# "), "a recipe says first what it is for"
    if name.startswith("study"):  # they have a reader of their own
        return
    assert name in config.recipe_names()
    assert re.search(r"^# Command:  petseg (compare|train)", text, re.MULTILINE)
    recipe = load_recipe(name)
    if any(":" in model for model in recipe.models):
        pytest.importorskip("timm", reason="the extra `models`")
    for section, fields in tomllib.loads(text).items():
        if section not in ("models", "overrides"):
            written = getattr(recipe, section).model_dump(mode="json")
            kept = {key: written[key] for key in fields if not isinstance(fields[key], dict)}
            assert kept == {key: fields[key] for key in kept}
    assert set(recipe.overrides) <= set(recipe.models)
    for model in recipe.models:
        run = run_config(recipe, model)
        assert model.startswith(run.model.name)  # less its options
        assert build_model(run.model, 3) is not None


def test_names_defaults_round_trip_and_descriptions():
    assert {"default", "quick", "base"} <= set(config.recipe_names())
    assert config.recipe_names() == sorted(config.recipe_names())
    assert load_recipe("default").train == TrainConfig()
    recipe = load_recipe("base", ["epochs=3", "model.convs=[2, 2, 3, 3, 3]"])
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.epochs = 3
    kinds = [ModelConfig, config.OxfordPetsConfig, config.DataConfig, AugmentConfig, config.UnlabelledConfig]
    kinds += [TrainConfig, ServeConfig]
    undescribed = [
        f"{kind.__name__}.{name}"
        for kind in (*kinds, *(builder.options for builder in MODELS.values()))
        for name, field in kind.model_fields.items()
        if not field.description and not hasattr(field.annotation, "model_fields")
    ]
    assert undescribed == []


def test_a_file_by_path_or_one_that_cannot_be_read(write, tmp_path):
    recipe = load_recipe(write('models = ["segnet", "unet_paper"]\n[train]\nepochs = 7\n[train.augment]\nflip = false'))
    assert recipe.models == ("segnet", "unet_paper")
    assert recipe.train == TrainConfig(epochs=7, augment=AugmentConfig(flip=False))
    (tmp_path / "image.toml").write_bytes(b"\xff\xd8\xff\xe0")
    for name, match in (
        (str(tmp_path / "gone.toml"), r"^recipe .*gone\.toml: cannot be read \(.*No such file.*\); name a TOML"),
        (str(tmp_path / "image.toml"), r"^recipe .*image\.toml: cannot be read \(.*decode"),
        (f"{tmp_path}/", r"cannot be read \(.*directory"),
        (write("[train]\nepochs = = 3"), r"^recipe .*: not valid TOML \(.*line 2.*\); mend the file$"),
        ("quik", r"^recipe 'quik' is unknown; choose one of: quick, "),
    ):
        refused(match, load_recipe, name)


LEAST = "greater than or equal to"
RANGES = [
    ("train.epochs", 1, 0, f"{LEAST} 1"),
    ("train.batch_size", 2, 1, f"{LEAST} 2"),
    ("train.learning_rate", 1e-9, 0, "greater than 0"),
    *(("train.learning_rate", 1, wrong, "a finite number") for wrong in ("nan", "inf")),
    *((f"train.{name}", 0, -0.1, f"{LEAST} 0") for name in ("weight_decay", "dice_weight", "augment.colour")),
    *((f"train.{name}", 0, -1, f"{LEAST} 0") for name in ("gradient_clip", "seed")),
    *((f"train.{name}", 0.999, 1, "less than 1") for name in ("warmup", "ema", "augment.scale", "augment.shift")),
    ("train.augment.rotation", 180, 181, "less than or equal to 180"),
    *(("data.size", 16, 15, f"{LEAST} 16"), ("data.size", 2048, 2049, "less than or equal to 2048")),
    *(("data.fraction", 1, 0, "greater than 0"), ("data.fraction", 0.1, 1.1, "less than or equal to 1")),
]


@pytest.mark.parametrize(("field", "accepted", "wrong", "bound"), RANGES)
def test_ranges(field, accepted, wrong, bound):
    assert value_of(load_recipe("default", [f"{field}={accepted}"]), field) == accepted
    match = rf"^recipe default: {re.escape(field)} is {wrong}; input should be {bound}"
    refused(match, load_recipe, "default", [f"{field}={wrong}"])


@pytest.mark.parametrize("settings", [("reduce_to=300",), ("fit=pad", "reduce_to=300"), ("fit=crop", "reduce_to=100")])
def test_images_are_reduced_for_crops_alone_and_to_no_less_than_one(settings):
    with pytest.raises(
        PetsegError, match=r"data\.reduce_to is \d00, data\.size 128 and .*; it is for fit 'crop', and at"
    ):
        load_recipe("default", settings)
    assert load_recipe("default", ["fit=crop", "reduce_to=128"]).data.reduce_to == 128


def test_serving_and_a_ramp_that_rises_to_the_size():
    assert config.load_serving(["pixels=5"], port=0) == ServeConfig(pixels=5, port=0)
    refused(r"^serve: field 'pixel' is unknown; choose one of: pixels, ", config.load_serving, ["pixel=5"])
    run = load_recipe("default", ["ramp=[64, 64, 96]", "size=97"]).for_model("unet")
    assert [run.side(epoch) for epoch in (1, 14, 20, 30)] == [64, 64, 96, 97]
    for ramp in ("[64, 48]", "[96]", "[128]"):
        with pytest.raises(PetsegError, match=rf"train\.ramp is {re.escape(ramp)} and data\.size 96; a ramp holds"):
            load_recipe("default", [f"ramp={ramp}", "size=96"]).for_model("unet")


def test_set_wins_over_the_file_and_reaches_every_field_and_option(write):
    for setting in ("epochs=9", "train.epochs=9", " epochs = 9 ", "train.epochs = 9"):
        recipe = load_recipe(write("[train]\nepochs = 3\nseed = 4"), ["epochs=5", setting])
        assert recipe.train == TrainConfig(epochs=9, seed=4)
    # no two fields end alike, so that every last part may stand alone; nor is an option near a field's name
    bare = [name.rsplit(".", 1)[-1] for name in settable()]
    assert sorted(bare) == sorted(set(bare))
    assert "train.augment.flip" in settable()
    assert load_recipe("default", ["flip=false"]).train.augment.flip is False
    for option in {name for builder in MODELS.values() for name in builder.options.model_fields}:
        assert load_recipe("default", [f"{option}=1"]).model.options[option] == 1


VALUES = [
    ("data.oxford_pets.task=pet", "pet"),
    ('data.oxford_pets.task="pet"', "pet"),
    ("train.learning_rate=1e-3", 1e-3),
    ("train.deterministic=true", True),
    ("model.convs=2", 2),
    ("model.convs=[2, 2, 3]", [2, 2, 3]),
    ('models=["segnet", "unet"]', ("segnet", "unet")),
]


@pytest.mark.parametrize(("setting", "value"), VALUES)
def test_set_values(setting, value):
    field = setting.partition("=")[0]
    for name in (setting, f"{field.rpartition('.')[2]}={setting.partition('=')[2]}"):
        got = value_of(load_recipe("default", [name]), field)
        assert (got, type(got)) == (value, type(value))


WRONG_FIELDS = [
    ("[train]\nepoch = 3", r"field 'train\.epoch' is unknown; choose one of: train\.epochs, "),
    ("[data]\nsise = 64", r"field 'data\.sise' is unknown; choose one of: data\.size, "),
    ("[train.augment]\nflips = true", r"field 'train\.augment\.flips' is unknown; .* of: train\.augment\.flip,"),
    ("[data]\ntask = 'pet'", r"field 'data\.task' is unknown; choose one of: data\.oxford_pets\.task, "),
    ("[modle]\nskips = true", r"field 'modle' is unknown; choose one of: model"),
    ("[train]\nepochs = 2.5", r"train\.epochs is 2\.5; input should be a valid integer"),
    ('[train]\nepochs = "ten"', r"train\.epochs is 'ten'; input should be a valid integer"),
    ("[train]\nepochs = [3]", r"train\.epochs is \[3\]; input should be a valid integer"),
    ("[train]\nlearning_rate = 'fast'", r"train\.learning_rate is 'fast'; input should be a valid number"),
    ("[train]\ndeterministic = 3", r"train\.deterministic is 3; input should be a valid boolean"),
    ("[data]\noxford_pets.task = 'cats'", r"data\.oxford_pets\.task 'cats' is unknown; .* one of: species, pet"),
    ("[model]\nname = 'unet'", r"model\.name cannot be set; name the models under `models`"),
    ("models = 'unet'", r"models is 'unet'; input should be a list"),
    ("models = []", r"models is \[\]; tuple should have at least 1 item"),
    ("models = ['unet', 'unet']", r"a comparison names each model once"),
    ("[data]\ngroups = 'P('", r"data\.groups is 'P\(', which is no regular expression: missing \), unterminated"),
    ("[data]\ngroups = 'P'\nsplit = 'blocks'", r"data\.groups is for data\.split random; blocks are cut wherever"),
    *(
        (f"{field} = 3", rf"{field} is 3; input should be a table of fields$")
        for field in ("train", "model", "overrides")
    ),
]
WRONG_SETTINGS = [
    ("epochs", r"^setting epochs: got no '='; write field=value, for example --set epochs=10$"),
    ("epoch=3", r"field 'epoch' is unknown; choose one of: train\.epochs, "),
    ("train.epoch=3", r"field 'train\.epoch' is unknown; choose one of: train\.epochs, "),
    ("epochs=", r"train\.epochs is ''; input should be a valid integer"),
    ("epochs=true", r"train\.epochs is True; input should be a valid integer"),
    ('epochs="10"', r"train\.epochs is '10'; input should be a valid integer"),
    ("train.epochs.x=1", r"train\.epochs"),
    ("train=3", r"train is 3; input should be a table of fields"),
    ("name=segnet", r"model\.name cannot be set"),
]
WRONG_MODELS = [
    ("overrides.segnt.train.epochs=3", r"^model 'segnt' is unknown; choose one of: segnet, "),
    ("overrides.segnet.model.dept=3", r"^option of model 'segnet' 'dept' is unknown; choose one of: depth, "),
    ("overrides.segnet.train.epoch=3", r"segnet: field 'train\.epoch' is unknown; choose one of: train\.epochs, "),
    ("overrides.segnet.train.epochs=0", r"segnet: train\.epochs is 0; input should be greater than or equal to 1"),
    ("overrides.segnet.train.epochs.x=1", r"train\.epochs\.x: epochs holds a value, not fields"),
    ("overrides.segnet.model.name=unet", r"overrides\.segnet: model\.name cannot be set"),
    *(
        (f"overrides.segnet.data.{setting}", r"overrides\.segnet: data must be the same for all models")
        for setting in ("size=64", "oxford_pets.protocol=seed", "oxford_pets.task=pet")
    ),
    ("models=['unett']", r"^model 'unett' is unknown; choose one of: unet, "),
    ("base_channels=0", r"^model 'unet': base_channels is 0; input should be greater than or equal to 1$"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_FIELDS)
def test_wrong_field(write, text, message):
    with pytest.raises(PetsegError, match=rf"^recipe .*written\.toml: {message}") as caught:
        load_recipe(write(text))
    assert "\n" not in str(caught.value)
    refused(r"train\.epochs: train holds a value, not fields", load_recipe, write("train = 3"), ["train.epochs=3"])


@pytest.mark.parametrize(("setting", "message"), WRONG_SETTINGS)
def test_wrong_setting(setting, message):
    refused(message, load_recipe, "default", [setting])


def test_settings_are_no_string():
    wanted = r"^settings are the string 'epochs=1'; wanted a list of them: \['epochs=1'\]$"
    for function, first in ((load_recipe, "default"), (with_settings, RunConfig())):
        refused(wanted, function, first, "epochs=1")
    refused("^settings are the string", load_serving, "queue=1")


@pytest.mark.parametrize(("setting", "message"), WRONG_MODELS)
def test_models_their_overrides_and_options_are_checked_before_a_run(setting, message):
    recipe = load_recipe("default", [setting])
    with pytest.raises(PetsegError, match=message):
        [run_config(recipe, model) for model in recipe.models]


OVERRIDES = """
[train]
epochs = 7
learning_rate = 0.02
[overrides.segnet]
"train.learning_rate" = 0.001
"train.augment.flip" = false
"model.upsampling" = "bilinear"
warmup = 0.3
"""


def test_overrides_are_for_one_model_and_may_be_tables(write):
    recipe = load_recipe(write(OVERRIDES))
    unet, segnet = (recipe.for_model(name) for name in ("unet", "segnet"))
    assert unet == RunConfig(model=ModelConfig(name="unet"), train=TrainConfig(epochs=7, learning_rate=0.02))
    assert segnet.model == ModelConfig(name="segnet", upsampling="bilinear")
    own = {"learning_rate": 0.001, "warmup": 0.3, "augment": AugmentConfig(flip=False)}
    assert segnet.train == unet.train.model_copy(update=own)
    assert recipe.for_model("unet") == unet, "asking leaves the recipe as it was"
    for form in ("[overrides.segnet]\ntrain.learning_rate = 0.001", "[overrides.segnet.train]\nlearning_rate = 0.001"):
        segnet = load_recipe(write(f"[train]\nepochs = 7\n{form}")).for_model("segnet")
        assert (segnet.train.epochs, segnet.train.learning_rate) == (7, 0.001)
    assert load_recipe("default", ["overrides.segnet.train.epochs=3"]).for_model("segnet").train.epochs == 3


@pytest.mark.parametrize("field", ["learning_rate", "train.learning_rate"])
def test_a_setting_goes_before_overrides(write, field):
    recipe = write("[overrides.segnet.train]\nlearning_rate = 0.001\nwarmup = 0.3\n")
    segnet = load_recipe(recipe, [f"{field}=0.002"]).for_model("segnet")
    assert (segnet.train.learning_rate, segnet.train.warmup) == (0.002, 0.3)
    own = load_recipe(recipe, ["overrides.segnet.train.learning_rate=0.004", f"{field}=0.002"])
    assert [own.for_model(name).train.learning_rate for name in ("segnet", "unet")] == [0.004, 0.002]
