"""A study's recipe: experiments of arms, and what was expected of each before anything ran.

An arm is a model in a variant, written `unet/skips`; it is trained once for each seed. `petseg/recipes/study.toml`
shows every field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain, product
from typing import Annotated, Any, Literal

from pydantic import Field

from petseg.config import (
    DataConfig,
    ModelOptions,
    RunConfig,
    StrictConfig,
    TrainConfig,
    flat_fields,
    put_field,
    read_toml,
    validated,
)
from petseg.errors import PetsegError, unknown_name
from petseg.evaluation.corruptions import SEVERITIES
from petseg.experiments.study.claims import Claim, claims
from petseg.models import model_options
from petseg.schema import DataInfo

Quantity = Literal["parameters", "latency"]
Models = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Claims = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**40)]

TOLERANCE: dict[Quantity, float] = {"parameters": 0.02, "latency": 0.05}
"""How far, as a share, a matched arm may be from what it is matched to."""


class Variant(StrictConfig):
    """One form of an experiment's models."""

    title: str  # how a reader knows it
    fields: dict[str, Any] = Field(default_factory=dict)  # recipe fields that differ, for example `model.skips = false`
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)  # the same for one model
    match: Quantity | None = None
    """Search the shape of the same parameters (within 2 %) or of the same latency (within 5 %) as `to`."""
    to: str = ""
    """A model, whose arm in this variant is matched by the other models' arms; or a variant, whose arm of the same
    model is matched."""
    line: str = ""  # names the line of the experiment's curve that the variant lies on, where there are several a model


class Experiment(StrictConfig):
    """Arms that are compared, each in every seed."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    title: str
    expected: Claims
    """Claims, written before the runs: `unet > segnet`, `unet/skips > unet/indices by 1: a map holds more than places`.
    A model stands for its arm in each variant, a variant for its arm of each model; `=` expects that no difference is
    shown; `by` is in points, `in` names another score (a class's IoU) than mIoU; what follows the colon says why."""
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)]
    models: Models = ("unet", "segnet")
    tuned: bool = False
    """Take each model's best learning rate and warm-up of the tuning grid, where a variant does not give its own."""
    test: bool = False  # score the test split too
    curve: Literal["latency", "images"] | None = None  # draw mIoU over this, a line for each model
    fields: dict[str, Any] = Field(default_factory=dict)  # recipe fields that hold for all arms
    variants: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], Variant] = Field(default_factory=dict)

    @property
    def split(self) -> Literal["val", "test"]:
        """The split that its scores and differences are of."""
        return "test" if self.test else "val"

    def arms(self) -> list[str]:
        """Returns `MODEL/VARIANT` of every arm, variant by variant."""
        return [f"{model}/{variant}" for variant in self.variants for model in self.models]


class Tuning(StrictConfig):
    """The same small grid for each model, scored on validation, before anything is compared."""

    models: Models = ("unet", "segnet")
    learning_rate: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1)]
    warmup: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(strict=False, min_length=1)]
    seed: Seed = 0
    expected: str  # in words
    loses_more: str | None = None  # the model that is expected to lose more at the other's best setting
    fields: dict[str, Any] = Field(default_factory=dict)


class Recheck(StrictConfig):
    """The runs of an experiment looked at again, without training."""

    experiment: str  # its name; it has `test`
    expected: Claims  # claims as an experiment's; each names with `in` what it is about


class Study(StrictConfig):
    """All that is studied; model, data and train are shared by all runs unless an experiment says otherwise."""

    title: str
    model: ModelOptions = ModelOptions()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    tuning: Tuning | None = None
    robustness: Recheck | None = None
    """On corrupted test images; a claim is about one of `petseg.evaluation.corruptions`, the mean of its severities."""
    subsets: Recheck | None = None
    """On a part of the test images, or with the border counted otherwise; a claim is about one of `SUBSETS`."""
    experiments: Annotated[tuple[Experiment, ...], Field(strict=False, min_length=1)]

    def rechecks(self) -> dict[str, Recheck]:
        """Returns the parts that look at runs again."""
        parts = {"robustness": self.robustness, "subsets": self.subsets}
        return {part: recheck for part, recheck in parts.items() if recheck is not None}

    def config(self, model: str, seed: int, changes: Iterable[Mapping[str, Any]], *, source: str) -> RunConfig:
        """Returns one run's config: the shared fields, then `changes` in their order; `source` names it in errors."""
        tree = self.model_dump(include={"model", "data", "train"})
        for name, value in chain.from_iterable(map(flat_fields, changes)):
            put_field(tree, name, value, source=source)
        if "name" in tree["model"] or tree["train"]["seed"] != self.train.seed:
            raise PetsegError(f"{source}: model.name and train.seed are the study's; give `models` and `seeds`")
        tree["model"]["name"], tree["train"]["seed"] = model, seed
        config = validated(RunConfig, tree, source=source)
        try:
            model_options(config.model)
        except PetsegError as error:
            raise PetsegError(f"{source}: {error}") from None
        return config

    def arm_config(
        self,
        experiment: Experiment,
        arm: str,
        seed: int = 0,
        tuned: Mapping[str, Any] | None = None,
        shape: Mapping[str, Any] | None = None,
    ) -> RunConfig:
        """Returns an arm's config: the tuned fields of training, what the recipe says, then the shape of equal cost."""
        model, _, name = arm.partition("/")
        variant = experiment.variants[name]
        own = [experiment.fields, variant.fields, variant.overrides.get(model, {})]
        changes = [{"train": tuned or {}}, *own, {"model": shape or {}}]
        return self.config(model, seed, changes, source=f"study: experiment {experiment.name!r}: {arm}")


SUBSETS = {
    "unleaked": "without the test images that have a near-identical one in trainval",
    "border_pet": "border counted as pet, two classes",
    "border_background": "border counted as background, two classes",
    "border_ignored": "border pixels not counted, predicted border as pet, two classes",
    "small": "the third of the images with the smallest pets",
    "medium": "the middle third",
    "large": "the third with the largest pets",
}
"""Other ways to look at the same counts."""


def matched_to(experiment: Experiment, arm: str) -> str | None:
    """Returns the arm whose cost `arm` is matched to, None where its shape is given."""
    model, _, name = arm.partition("/")
    variant = experiment.variants[name]
    if variant.match is None:
        return None
    if variant.to in experiment.models:
        target = f"{variant.to}/{name}"
        return None if target == arm else target
    source = f"study: experiment {experiment.name!r}: variant {name!r}: to"
    others = [other for other in experiment.variants if other != name]
    if variant.to not in others:
        raise unknown_name(source, variant.to, [*experiment.models, *others])
    target = f"{model}/{variant.to}"
    if matched_to(experiment, target) is not None:
        raise PetsegError(f"{source} is {variant.to!r}, which is searched itself; name one whose shape is given")
    return target


def load_study(name: str) -> Study:
    """Returns the shipped study by name, or a TOML file by path.

    Raises:
        PetsegError: no such study, broken TOML, an unknown or wrong field, a claim about no arm.
    """
    source = f"study {name}"
    fields = read_toml("study", name, ["study"])
    experiments = fields.pop("experiments", None)
    if not isinstance(experiments, list) or not all(isinstance(entry, dict) for entry in experiments):
        raise PetsegError(f"{source}: no [[experiments]] in it; a study has at least one")
    # part by part, so that an error names the part
    if isinstance(fields.get("tuning"), dict):
        fields["tuning"] = validated(Tuning, fields["tuning"], source=f"{source}: tuning")
    fields["experiments"] = tuple(_experiment(entry, source) for entry in experiments)
    study = validated(Study, fields, source=source)
    _check(study)
    return study


def _experiment(fields: dict[str, Any], source: str) -> Experiment:
    source = f"{source}: experiment {fields.get('name', '')!r}"
    variants = fields.get("variants")
    if not isinstance(variants, dict) or not all(isinstance(variant, dict) for variant in variants.values()):
        raise PetsegError(f"{source}: no [experiments.variants.NAME] in it; an experiment has at least one")
    for name, variant in variants.items():
        variants[name] = validated(Variant, variant, source=f"{source}: variant {name!r}")
    return validated(Experiment, fields, source=source)


def _check(study: Study) -> None:
    """Finds the mistakes that can be found without the data."""
    names = [experiment.name for experiment in study.experiments]
    for experiment in study.experiments:
        if names.count(experiment.name) > 1:
            raise PetsegError(f"study: experiment {experiment.name!r} stands there twice; give each a name of its own")
        claims(experiment)
        for arm in experiment.arms():
            matched_to(experiment, arm)
            study.arm_config(experiment, arm)
        untuned = [model for model in experiment.models if study.tuning is None or model not in study.tuning.models]
        if experiment.tuned and untuned:
            raise PetsegError(
                f"study: experiment {experiment.name!r} is tuned, but {untuned[0]!r} is not among [tuning] models"
            )
    for part in study.rechecks():
        recheck_claims(study, part)
    if study.tuning is not None:
        for model in study.tuning.models:
            study.config(model, 0, [study.tuning.fields], source="study: tuning")


def check_against_data(study: Study, data: DataInfo) -> None:
    """Finds the mistakes that depend on the dataset."""
    scores = ("miou", *(entry.name for entry in data.scored_classes))
    for experiment in study.experiments:
        claims(experiment, metrics=scores)
        if experiment.test and "test" not in data.splits:
            raise PetsegError(
                f"study: experiment {experiment.name!r} has test, but {data.name} has no test split; take `test` out"
            )


def recheck_claims(study: Study, part: str) -> tuple[Experiment, list[Claim]]:
    """Returns the experiment whose runs are looked at again, and what is expected of that."""
    recheck, metrics = study.rechecks()[part], tuple(SEVERITIES if part == "robustness" else SUBSETS)
    known = {experiment.name: experiment for experiment in study.experiments if experiment.test}
    if recheck.experiment not in known:
        raise unknown_name(f"study: {part}: experiment with test", recheck.experiment, known)
    experiment = known[recheck.experiment]
    return experiment, claims(experiment, recheck.expected, metrics, where=part)


def tuning_cells(tuning: Tuning) -> list[dict[str, float]]:
    """Returns the grid: learning rate and warm-up of each cell."""
    return [{"learning_rate": rate, "warmup": warmup} for warmup, rate in product(tuning.warmup, tuning.learning_rate)]
