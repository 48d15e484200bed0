"""A study's recipe (`petseg/recipes/study.toml` shows every field): experiments of arms, and what was expected of each.

An arm is a model in a variant, written `unet/skips`; it is trained once for each seed.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field

from petseg.config import (
    RECIPES,
    DataConfig,
    ModelOptions,
    RunConfig,
    StrictConfig,
    TrainConfig,
    flat_fields,
    put_fields,
    read_toml,
    validated,
)
from petseg.errors import PetsegError, unknown_name
from petseg.evaluation.corruptions import KINDS
from petseg.experiments.study.subsets import SUBSETS
from petseg.models import builder_of, model_options
from petseg.schema import DataInfo

Quantity = Literal["parameters", "macs", "latency", "parameters_and_macs"]
Models = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Claims = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**40)]
# how far, as a share, a matched arm may be from what it is matched to
TOLERANCE: dict[Quantity, float] = {"parameters": 0.02, "macs": 0.02, "latency": 0.05, "parameters_and_macs": 0.03}


class Variant(StrictConfig):
    """One form of an experiment's models."""

    title: str  # how a reader knows it
    fields: dict[str, Any] = Field(default_factory=dict)  # recipe fields that differ, for example `model.skips = false`
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)  # the same for one model
    match: Quantity | None = None  # search the shape of the same cost, within `TOLERANCE`, as `to`
    to: str = ""  # a model, matched by the other models' arms of this variant; or a variant, for the arm of each model
    line: str = ""  # names the line of the experiment's curve that the variant lies on, where there are several a model


@dataclass(frozen=True)
class Claim:
    """One expectation as data: arm `left` scores higher than arm `right`, or the same."""

    text: str
    left: str
    right: str
    equal: bool
    points: float
    metric: str
    primary: bool = False


CLAIM = re.compile(
    r"(?P<left>\S+) (?P<sign>[>=]) (?P<right>\S+?)(?: by (?P<points>\d+(?:\.\d+)?))?(?: in (?P<metric>[^:]+))?(?:: .+)?"
)


class Experiment(StrictConfig):
    """Arms that are compared, each in every seed."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    title: str
    # written before the runs: `unet > segnet`, `unet/skips > unet/indices by 1: a map holds more than places`. A model
    # stands for its arm in each variant, a variant for its arm of each model; `=` expects that no difference is shown;
    # `by` is in points, `in` names another score (a class's IoU) than mIoU; what follows the colon says why
    expected: Claims
    primary: Annotated[tuple[str, ...], Field(strict=False)] = ()  # those of `expected` that the study is for; each is
    # about two arms' mIoU, and judged by the interval that holds for all of them at once
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)]
    models: Models = ("unet", "segnet")
    tuned: bool = False  # take each model's best cell of the tuning grid among those that agree with what the arm gives
    test: bool = False  # score the test split too
    curve: Literal["latency", "images", "size"] | None = None  # draw mIoU over this, a line for each model
    fields: dict[str, Any] = Field(default_factory=dict)  # recipe fields that hold for all arms
    variants: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], Variant] = Field(default_factory=dict)

    @property
    def split(self) -> Literal["val", "test"]:
        """The split that its scores and differences are of."""
        return "test" if self.test else "val"

    @property
    def texts(self) -> tuple[str, ...]:
        """All that is expected, the primary first."""
        return tuple(dict.fromkeys((*self.primary, *self.expected)))

    def arms(self) -> list[str]:
        """Returns `MODEL/VARIANT` of every arm, variant by variant."""
        return [f"{model}/{variant}" for variant in self.variants for model in self.models]

    def model_pairs(self) -> list[tuple[str, str]]:
        """Returns the arms of one variant, model against model."""
        models = list(zip(self.models, self.models[1:], strict=False))
        return [(f"{one}/{variant}", f"{other}/{variant}") for variant in self.variants for one, other in models]

    def claims(self, expected: Sequence[str] = (), metrics: Sequence[str] = (), part: str = "") -> list[Claim]:
        """Returns claims about single arms: its own, or those `expected` by another `part` of the recipe.

        A claim is about one of `metrics`, the first without `in`; without `metrics` anything, mIoU without `in`.
        """
        found = []
        for text in expected or self.texts:
            source = f"study: {part or f'experiment {self.name!r}'}: expected {text!r}"
            read = CLAIM.fullmatch(text)
            if read is None:
                raise PetsegError(
                    f"{source} cannot be read; write `unet > segnet`, `unet/a > unet/b by 1.5`, `a = b` or `a > b in "
                    "border`, and the reason after a colon"
                )
            metric = read["metric"] or (metrics[0] if metrics else "miou")
            if metrics and metric not in metrics:
                raise unknown_name(f"{source}: score", metric, metrics)
            first, second = (self._arms_of(read[side], source) for side in ("left", "right"))
            pairs = [(first[key], second[key]) for key in first if key in second]
            if not pairs:
                raise PetsegError(f"{source} compares a model with a variant; compare two of a kind, or two arms")
            if any(one == other for one, other in pairs):
                raise PetsegError(f"{source} compares an arm with itself; name two")
            equal, points = read["sign"] == "=", float(read["points"] or 0)
            primary = not expected and text in self.primary
            if primary and (equal or metric != "miou" or len(pairs) > 1):
                raise PetsegError(f"{source} is primary; wanted one arm above another in mIoU: `unet/a > segnet/a`")
            found += [Claim(text, left, right, equal, points, metric, primary) for left, right in pairs]
        return found

    def _arms_of(self, name: str, source: str) -> dict[str, str]:
        """Returns key -> arm of a name in a claim; two names are compared key by key."""
        if name in self.arms():
            return {"": name}
        if name in self.models:
            return {f"variant {variant}": f"{name}/{variant}" for variant in self.variants}
        if name in self.variants:
            return {f"model {model}": f"{model}/{name}" for model in self.models}
        raise unknown_name(f"{source}: arm", name, [*self.models, *self.variants, *self.arms()])

    def matched_to(self, arm: str) -> str | None:
        """Returns the arm whose cost `arm` is matched to, None where its shape is given."""
        model, _, name = arm.rpartition("/")
        variant = self.variants[name]
        if variant.match is None:
            return None
        if variant.to in self.models:
            return None if variant.to == model else f"{variant.to}/{name}"
        source = f"study: experiment {self.name!r}: variant {name!r}: to"
        others = [other for other in self.variants if other != name]
        if variant.to not in others:
            raise unknown_name(source, variant.to, [*self.models, *others])
        target = f"{model}/{variant.to}"
        if self.matched_to(target) is not None:
            raise PetsegError(f"{source} is {variant.to!r}, which is searched itself; name one whose shape is given")
        return target


WIDENED = ("train.learning_rate", "train.warmup")  # fields of a grid that go on while the best lies at an edge


class Tuning(StrictConfig):
    """The same grid for each model, scored on validation, before anything is compared."""

    models: Models = ("unet", "segnet")
    grid: dict[str, Any]  # recipe field -> values, as `train.warmup = [0.1, 0.2]`; a model takes the options it has
    widen: Annotated[int, Field(ge=0)] = 0  # values that each of `WIDENED` may go beyond either edge of the grid
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)] = (0,)
    expected: str  # in words
    fields: dict[str, Any] = Field(default_factory=dict)

    def axes(self, model: str) -> dict[str, list[Any]]:
        """Returns the fields of a model's grid and their values, as given."""
        options = builder_of(model).options.model_fields
        grid = dict(flat_fields(self.grid))
        return {name: grid[name] for name in grid if not name.startswith("model.") or name[6:] in options}

    def all_cells(self) -> list[tuple[str, dict[str, Any]]]:
        """Returns model and fields of every cell of the grid."""
        return [(model, cell) for model in self.models for cell in self.cells(model)]

    def cells(self, model: str) -> list[dict[str, Any]]:
        """Returns a model's grid: the fields of each cell."""
        axes = self.axes(model)
        return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


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
    robustness: Recheck | None = None  # on corrupted test images; a claim is about one kind, the mean of its severities
    family_error: Annotated[float, Field(gt=0, le=0.05)] = 0.05
    """Probability that one of the primary comparisons misses its true difference; parts of one question share 5 %."""
    subsets: Recheck | None = None  # on a part of the images or another view of the border; claims are about `SUBSETS`
    experiments: Annotated[tuple[Experiment, ...], Field(strict=False, min_length=1)]

    def rechecks(self) -> dict[str, Recheck]:
        """Returns the parts that look at runs again."""
        parts = {"robustness": self.robustness, "subsets": self.subsets}
        return {part: recheck for part, recheck in parts.items() if recheck is not None}

    def claims(self) -> list[tuple[str, str, bool]]:
        """Returns part, text and whether it is primary of every expectation, the primary ones of a part first."""
        own = [(each.name, text, text in each.primary) for each in self.experiments for text in each.texts]
        return own + [(part, text, False) for part, each in self.rechecks().items() for text in each.expected]

    def recheck_claims(self, part: str) -> tuple[Experiment, list[Claim]]:
        """Returns the experiment whose runs are looked at again, and what is expected of that."""
        recheck, metrics = self.rechecks()[part], tuple(KINDS if part == "robustness" else SUBSETS)
        known = {experiment.name: experiment for experiment in self.experiments if experiment.test}
        if recheck.experiment not in known:
            raise unknown_name(f"study: {part}: experiment with test", recheck.experiment, known)
        experiment = known[recheck.experiment]
        return experiment, experiment.claims(recheck.expected, metrics, part)

    def config(self, model: str, seed: int, changes: Iterable[Mapping[str, Any]], *, source: str) -> RunConfig:
        """Returns one run's config: the shared fields, then `changes` in their order; `source` names it in errors."""
        tree = self.model_dump(include={"model", "data", "train"})
        for change in changes:
            put_fields(tree, change, source=source)
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
        """Returns an arm's config: the tuned fields, what the recipe says, then the shape of equal cost."""
        changes = [tuned or {}, own_fields(experiment, arm), {"model": shape or {}}]
        return self.config(
            arm.rpartition("/")[0], seed, changes, source=f"study: experiment {experiment.name!r}: {arm}"
        )


def own_fields(experiment: Experiment, arm: str) -> dict[str, Any]:
    """Returns what the recipe says of an arm: dotted field -> value."""
    model, _, name = arm.rpartition("/")
    variant = experiment.variants[name]
    parts = (experiment.fields, variant.fields, variant.overrides.get(model, {}))
    return {field: value for part in parts for field, value in flat_fields(part)}


def study_names() -> list[str]:
    """Returns the shipped studies' names."""
    return sorted(path.name.removesuffix(".toml") for path in RECIPES.iterdir() if path.name.startswith("study"))


def load_study(name: str) -> Study:
    """Returns the shipped study by name, or a TOML file by path; PetsegError where a field or a claim is wrong."""
    source = f"study {name}"
    fields = read_toml("study", name, study_names())
    experiments = fields.pop("experiments", None)
    if not isinstance(experiments, list) or not all(isinstance(entry, dict) for entry in experiments):
        raise PetsegError(f"{source}: no [[experiments]] in it; a study has at least one")
    # part by part, so that an error names the part
    if isinstance(fields.get("tuning"), dict):
        fields["tuning"] = validated(Tuning, fields["tuning"], source=f"{source}: tuning")
    fields["experiments"] = tuple(_experiment(entry, source) for entry in experiments)
    study = validated(Study, fields, source=source)
    names = [experiment.name for experiment in study.experiments]
    for experiment in study.experiments:
        where = f"study: experiment {experiment.name!r}"
        if names.count(experiment.name) > 1:
            raise PetsegError(f"{where} stands there twice; give each a name of its own")
        experiment.claims()
        for arm in experiment.arms():
            experiment.matched_to(arm)
            study.arm_config(experiment, arm)
        untuned = [model for model in experiment.models if study.tuning is None or model not in study.tuning.models]
        if experiment.tuned and untuned:
            raise PetsegError(f"{where} is tuned, but {untuned[0]!r} is not among [tuning] models; add it there")
    for part in study.rechecks():
        study.recheck_claims(part)
    if study.tuning is not None:
        for model, cell in study.tuning.all_cells():
            study.config(model, 0, [study.tuning.fields, cell], source="study: tuning")
    return study


def _experiment(fields: dict[str, Any], source: str) -> Experiment:
    source = f"{source}: experiment {fields.get('name', '')!r}"
    variants = fields.get("variants")
    if not isinstance(variants, dict) or not all(isinstance(variant, dict) for variant in variants.values()):
        raise PetsegError(f"{source}: no [experiments.variants.NAME] in it; an experiment has at least one")
    for name, variant in variants.items():
        variants[name] = validated(Variant, variant, source=f"{source}: variant {name!r}")
    return validated(Experiment, fields, source=source)


def check_against_data(study: Study, data: DataInfo) -> None:
    """Finds the mistakes that depend on the dataset."""
    for experiment in study.experiments:
        experiment.claims(metrics=("miou", *(entry.name for entry in data.scored_classes)))
        if experiment.test and "test" not in data.splits:
            raise PetsegError(
                f"study: experiment {experiment.name!r} has test, but {data.name} has no test split; take `test` out"
            )
