"""The JSON that travels between stages; a file of another version is an error that names its field."""

import math
import re
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from petseg import storage
from petseg.config import Recipe
from petseg.errors import PetsegError, shown


class Record(BaseModel):
    """A part of a JSON file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ClassInfo(Record):
    """What a pixel can be."""

    name: str
    colour: str  #: as "#0072B2"
    role: Literal["foreground", "background", "boundary"] = "foreground"


class InputInfo(Record):
    """How a run's images are normalised, as `petseg.models.builder.Input`."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    multiple: int


class DataInfo(Record):
    """Which images figures are of."""

    name: str  #: of the dataset
    provenance: str  #: where the files come from, in one sentence
    official: bool  #: whether checksums say that these are the published files
    largest_side: int  #: of all images, in pixels: tells a reduced copy from the original
    key: str  #: names the content of images and labels, the size they are prepared at, and the splits
    classes: tuple[ClassInfo, ...]  #: by class id, as trained
    scored_classes: tuple[ClassInfo, ...]  #: what scores are of
    splits: dict[str, int]  #: split -> images that can be used
    left_out: dict[str, str] = {}  #: sample id -> reason, for those that cannot

    @property
    def images(self) -> str:
        """What the images are, as a table's caption says it."""
        if self.official:
            return f"{self.name}, official archives"
        return f"{self.name}, images of at most {self.largest_side} px: {self.provenance}"

    def of_all_folds(self) -> Self:
        """Returns the same of results that join all folds of a cross-validation."""
        return self.model_copy(update={"provenance": re.sub(r", fold \d+ of (\d+)", r", \1 folds", self.provenance)})


class SplitIds(Record):
    """Which samples each split holds, by id."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...] = ()


class EnvironmentInfo(Record):
    """What a figure depends on beside the config."""

    petseg: str
    commit: str = ""  #: of the code; "" where petseg was installed without git
    device: str
    processor: str = ""
    threads: int
    precision: str
    torch: str = ""
    numpy: str = ""
    python: str = ""
    platform: str = ""
    started: str = ""


class Scores(Record):
    """Every score of one model on one split; scores lie in 0..1, best 1."""

    weights: str = ""  #: file of the run folder; "" for what has no weights
    epoch: int = 0
    split: str
    data: str  #: `DataInfo.key`
    images: int
    frame: str  #: at which size images were scored
    cross_entropy: float  #: in nats, best 0, at the training size
    cross_entropy_frame: str
    cross_entropy_at: dict[str, float] = {}  #: side in pixels -> the same at that size
    image_class_accuracy: float | None = None  #: of merged classes (cat and dog as pet): share of images that are right
    image_class_images: int | None = None
    miou: float
    iou: dict[str, float | None]  #: class -> IoU, None where it is in neither truth nor prediction
    mean_dice: float
    dice: dict[str, float | None]
    pixel_accuracy: float
    mean_boundary_f: float | None
    boundary_f: dict[str, float | None]
    image_miou: dict[Literal["mean", "median"], float]
    group_miou: dict[str, float] = {}  #: group (breed) -> mIoU
    confusion: tuple[tuple[int, ...], ...] = ()  #: pixels of all images, a row each true class; () where not kept


class EpochRow(Record):
    """One line of metrics.jsonl."""

    epoch: int
    seconds: float
    train_seconds: float
    learning_rate: float  #: at the epoch's last step, without `train.encoder_rate`
    train_loss: float
    val_loss: float
    val_miou: float
    val_accuracy: float
    val_image_class: float | None = None
    other_seconds: float | None = None  #: core seconds that other processes computed meanwhile
    ranks: int = 1  #: processes that trained together


class LatencyInfo(Record):
    """Time of one forward pass in milliseconds."""

    p50: float
    p95: float
    rounds: tuple[float, ...] = ()  #: medians of parts of the passes, in their order; those of one measurement pair up
    repeats: int
    batch: int = 1
    size: int
    others: float | None = None  #: cores that other processes kept busy meanwhile


class CostInfo(Record):
    """What a model costs, for one square image."""

    parameters: int
    macs: int  #: multiply-accumulates
    activation_bytes: int  #: largest sum of tensors alive at once in a forward pass, float32, weights not counted
    skip_bytes: int | None  #: kept for the decoder beside the deepest map, indices at 2 bits; None: no map is smaller
    training_activation_bytes_per_image: int  #: what each further image adds to the same, forward and backward
    latency_ms: LatencyInfo | None = None
    latencies: dict[str, LatencyInfo] = {}  #: runtime and threads, such as "OpenVINO, all threads" -> the same there
    train_seconds: float | None = None
    train_images_per_second: float | None = None
    train_others: float | None = None  #: as `latency_ms.others`, in the median epoch

    @property
    def busy(self) -> float:
        """Cores of other work beside which a time was measured, 0 where they were too few to matter."""
        cores = max(self.train_others or 0.0, (self.latency_ms and self.latency_ms.others) or 0.0)
        return cores if cores >= 0.3 else 0.0


class Training(Record):
    """One of several trainings of a model."""

    seed: int
    fold: int = 0  #: of a cross-validation, which tests
    environment: EnvironmentInfo
    history: tuple[EpochRow, ...]
    evaluations: dict[str, Scores]  #: split -> scores


class ModelResult(Record):
    """A model of a comparison, trained once, or from several seeds, or without each of several folds."""

    name: str
    title: str
    learning_rate: float
    best_epoch: int  #: of the first training, as its environment, times and history are
    environment: EnvironmentInfo
    cost: CostInfo
    history: tuple[EpochRow, ...]
    evaluations: dict[str, Scores]  #: split -> scores, of the images of all folds; of several seeds their mean
    trainings: tuple[Training, ...] = ()  #: where there are several


class BaselineResult(Record):
    """What needs no learning."""

    name: str
    title: str
    evaluations: dict[str, Scores]


class Estimate(Record):
    """A score or a difference of two, with its interval, in points (hundredths)."""

    points: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether the interval leaves zero out, ends included."""
        return not self.low <= 0 <= self.high


class Difference(Estimate):
    """A model less the reference, with a bootstrap interval."""

    model: str
    reference: str
    split: str
    metric: str
    confidence: float
    resamples: int
    share_better: float  #: of the resamples in which the model scores higher
    over: str  #: what the interval covers
    together: tuple[float, float] | None = None
    """Of several differences the interval that holds with all the others' at once; None of one, and before 0.2."""

    @property
    def ends(self) -> tuple[float, float]:
        """The interval that is corrected for the number of differences."""
        return self.together or (self.low, self.high)

    @property
    def shown(self) -> bool:
        """Whether the corrected interval leaves zero out, ends included."""
        low, high = self.ends
        return not low <= 0 <= high


class Example(Record):
    """An image that the report shows."""

    name: str
    why: Literal["best", "median", "worst", "differ"]
    miou: dict[str, float]  #: model -> mIoU of this image
    files: dict[str, str]  #: "image", "truth" or a model -> path below the comparison's folder


def exploded(loss: float, classes: int) -> bool:
    """Returns whether a cross-entropy is more than twice that of a guess, ln C."""
    return loss > 2 * math.log(classes)


class ComparisonResult(Record):
    """comparison.json: any number of runs under one budget, and every figure of the report."""

    kind: Literal["comparison"] = "comparison"
    version: Literal[2] = 2
    petseg: str
    command: str
    created: str
    quick: bool  #: scored on validation alone, after a short training: no result
    synthetic: bool  #: the images were drawn by petseg
    split: str  #: what the figures are of
    seeds: tuple[int, ...]  #: in which every model was trained to the end
    notes: tuple[str, ...] = ()  #: what a reader must know of the figures
    size: int
    config: Recipe
    environment: EnvironmentInfo
    scoring_environment: EnvironmentInfo
    data: DataInfo
    reference: str  #: the model that the others are compared with
    models: Annotated[tuple[ModelResult, ...], Field(min_length=1)]
    baselines: tuple[BaselineResult, ...] = ()
    differences: tuple[Difference, ...] = ()  #: each other model less the reference
    examples: tuple[Example, ...] = ()

    @property
    def trainings(self) -> int:
        """How often each model was trained."""
        return max(1, len(self.models[0].trainings))

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        names, classes = {model.name for model in self.models}, len(self.data.scored_classes)
        compared = {self.reference, *(name for one in self.differences for name in (one.model, one.reference))}
        if compared - names:
            raise ValueError(f"{min(compared - names)!r} is compared, and no model has that name")
        scored: list[ModelResult | BaselineResult] = [*self.models, *self.baselines]
        for one in scored:
            if self.split not in one.evaluations:
                raise ValueError(f"{one.name!r} has no scores on the {self.split} split")
            for counts in (scores.confusion for scores in one.evaluations.values()):
                if counts and {len(counts), *map(len, counts)} != {classes}:
                    raise ValueError(f"{one.name!r} has a confusion matrix of other classes than the {classes} scored")
        return self


RunState = Literal["finished", "diverged", "missing", "waiting"]  # waiting for what other runs decide, such as a rate
Verdict = Literal["held", "did not hold", "open"]  # of an expectation that was written before the runs


class PairedDifference(Estimate):
    """A difference of two scores on the same images, left less right."""

    share_left_better: float  #: of the resamples, 0..1


class Ratio(Record):
    """A ratio of two latencies on one processor, with its 95 % interval."""

    ratio: float
    low: float
    high: float


class ArmDifference(Record):
    """Two arms compared, left less right."""

    left: str
    right: str
    metric: str  #: "miou", "boundary_f", a class whose IoU it is, a corruption (the mean of its severities) or a subset
    seeds: tuple[int, ...]  #: that both arms have
    images: int | None  #: or `data.groups` of them: how many are drawn; None without a seed that both have
    diverged: dict[str, int] = {}  #: arm -> seeds in which its training diverged, where there are any
    difference: PairedDifference | None
    primary: bool = False  #: a primary claim is about it
    together: tuple[float, float] | None = None  #: of a primary one: the interval that holds with all others' at once
    latency_ratio: float | None = None  #: left over right, ONNX Runtime with one thread; None for equal shapes
    latency_ratios: dict[str, Ratio] = {}  #: runtime and threads -> the same with its interval
    expected: dict[str, Verdict] = {}  #: what the recipe expected of it -> what became of that
    by_severity: tuple[PairedDifference, ...] = ()  #: of a corruption: the images unchanged, then in each severity


class CostMatch(Record):
    """How near a searched shape comes to the cost that it was to have."""

    options: dict[str, JsonValue]  #: by which the model must differ
    quantity: Literal["parameters", "macs", "latency", "parameters_and_macs"]
    wanted: float
    reached: float  #: of parameters and MACs the share of `wanted` that is further off


class ArmScores(Record):
    """What an arm's finished runs scored on the experiment's split."""

    miou: Estimate
    iou: dict[str, Estimate]  #: by class
    boundary_f: Estimate
    pixel_accuracy: Estimate
    class_accuracy: Estimate  #: mean over classes of the share of its pixels that are right
    train_loss: float  #: in nats, of the last epoch, on augmented images; mean over the runs
    val_loss: float  #: in nats, of the last epoch; far above the other where the fit does not carry over
    train_seconds: float | None  #: mean of the runs that the experiment's usual machine made; None: another made them
    history: dict[str, tuple[tuple[float, float, float], ...]] = {}
    """Curve -> mean, lowest and highest over seeds, epoch by epoch; of the study's first experiment alone."""


class ArmFindings(Record):
    """A model in a variant, written MODEL/VARIANT, trained once a seed."""

    arm: str
    model: str
    variant: str
    title: str  #: of the variant
    line: str = ""  #: of the experiment's curve, where a model has several
    size: int  #: side in pixels at which it trains
    runs: tuple[str, ...]  #: finished, by seed, then fold; arms of the same runs are one network under two names
    seeds: tuple[int, ...]  #: that finished
    train_images: int | None  #: `data.fraction` of them; whole groups come near it
    match: CostMatch | None = None
    cost: CostInfo | None = None
    scores: ArmScores | None = None  #: None before a run has finished


class ExperimentFindings(Record):
    """Arms that are compared, each in every seed."""

    name: str
    title: str
    split: str
    curve: Literal["latency", "images", "size"] | None  #: what mIoU is drawn over
    seeds: tuple[int, ...]  #: as planned
    arms: tuple[ArmFindings, ...]
    differences: tuple[ArmDifference, ...]


class TunedCell(Record):
    """One setting of the grid for one model, all of whose seeds have ended."""

    model: str
    fields: dict[str, JsonValue]  #: dotted field -> value
    miou: float | None  #: on validation, 0..1, mean over the seeds; None: a seed diverged
    best: bool = False  #: of the model's cells


class TuningFindings(Record):
    """The grid that each model's settings come from."""

    seeds: tuple[int, ...]
    size: int
    epochs: int
    expected: str  #: in words
    cells: tuple[TunedCell, ...]


class ClaimFinding(Record):
    """One expectation of the recipe, counted once, however many comparisons it is about."""

    part: str  #: the experiment, "robustness" or "subsets"
    text: str
    primary: bool
    verdict: Verdict  #: held: of every comparison
    comparisons: int  #: those that no claim before it is about; of one run under two names none


class Family(Record):
    """The primary comparisons, whose intervals hold all at once."""

    error: float  #: probability that one of them misses its true difference
    comparisons: int
    resamples: int


class Machine(Record):
    """A kind of machine that trained runs."""

    device: str
    processor: str
    threads: int
    precision: str
    torch: str
    commit: str
    runs: int


class LatencyEnvironment(Record):
    """Where latencies were measured."""

    engine: str
    processor: str
    commit: str = ""
    started: str = ""


class Findings(Record):
    """findings.json: every number of a study's page; what needs runs that are not there is None, or has fewer seeds."""

    kind: Literal["findings"] = "findings"
    version: Literal[5] = 5
    petseg: str
    title: str
    models: dict[str, str]  #: name -> title
    data: DataInfo | None
    confidence: float  #: of every interval
    resamples: int
    runs: dict[RunState, int]
    train_seconds: float  #: summed over the runs
    machines: tuple[Machine, ...]
    latency_environment: LatencyEnvironment | None
    tuning: TuningFindings | None
    family: Family | None  #: None: the recipe names nothing primary
    claims: tuple[ClaimFinding, ...]
    experiments: Annotated[tuple[ExperimentFindings, ...], Field(min_length=1)]  #: the first is the main one
    corrupted: dict[str, dict[str, tuple[Estimate, ...]]]
    """Model -> corruption -> mIoU of the main variant: of the images unchanged, then in each severity."""
    robustness: tuple[ArmDifference, ...]  #: on corrupted test images
    subsets: tuple[ArmDifference, ...]  #: of another part of the images, or with the border counted otherwise
    groups: dict[str, dict[str, float]]  #: group (breed) -> model -> mIoU in points, of the main variant
    settings: dict[str, tuple[JsonValue, ...]]  #: every field of the runs' configs -> its values in any of them

    @property
    def over(self) -> Literal["images", "groups"]:
        """What its intervals are over: images, or `data.groups` of them."""
        return "groups" if any(self.settings.get("data.groups", ())) else "images"

    def experiment(self, name: str) -> ExperimentFindings:
        """Returns an experiment by name."""
        return next(experiment for experiment in self.experiments if experiment.name == name)


Level = Literal["error", "warning", "note"]  # an error would spoil training


class CheckFinding(Record):
    """One kind of thing that `petseg data check` found."""

    level: Level
    found: str
    count: int
    names: tuple[str, ...]  #: files, sample ids or classes
    action: str  #: what petseg does with them
    advice: str = ""  #: what the user can do
    reason: str = ""  #: why the first of `names` is left out, where it was opened


class ClassBalance(Record):
    """How much of a dataset's labels one class is, at the images' own size."""

    name: str
    share: float  #: of the labelled pixels of the training images, 0..1
    images: dict[str, int]  #: split -> images that hold it
    weight: float  #: of `train.class_weights = "median_frequency"`, 0 for a class in no training image


class DataCheck(Record):
    """What `petseg data check --json` prints."""

    kind: Literal["data check"] = "data check"
    version: Literal[1] = 1
    name: str  #: of the dataset
    provenance: str
    images: int  #: with a label file
    unlabelled: int = 0  #: images without one
    usable: int  #: images that are not left out
    splits: dict[str, int]  #: split -> usable images
    smallest: tuple[int, int] | None  #: width and height of the smallest image, by pixels; None where none opens
    largest: tuple[int, int] | None
    size: int  #: side in pixels at which training would see them
    ignored: float = 0.0  #: share of the usable images' pixels that neither train nor count, 0..1
    classes: tuple[ClassBalance, ...]
    findings: tuple[CheckFinding, ...]

    @property
    def spoiled(self) -> int:
        """How many kinds of errors there are."""
        return sum(finding.level == "error" for finding in self.findings)


RecordT = TypeVar("RecordT", bound=Record)


def read_record(path: str | Path, kind: type[RecordT]) -> RecordT:
    """Returns a JSON file as a `kind`; PetsegError where it is missing, no JSON or another, or a field is wrong."""
    path = Path(path)
    content = storage.read_json(path)
    for name, wanted in (("kind", str), ("version", int)):
        default = kind.model_fields[name].default if name in kind.model_fields else None
        if isinstance(default, wanted) and content.get(name) != default:
            raise PetsegError(
                f"{path}: {name} is {shown(content.get(name))}; wanted {shown(default)}: name a file that this version "
                "of petseg wrote"
            )
    try:
        # of JSON, strict knows that an array is a tuple
        return kind.model_validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        raise PetsegError(f"{path}: {first_reason(error)}; restore the file or make it again") from None


def first_reason(error: ValidationError) -> str:
    """Returns the first thing wrong: its field and why."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg'].lower().removeprefix('value error, ')}"


def write_record(path: Path, record: Record) -> None:
    """Writes a record as JSON, atomically."""
    storage.write_json(path, record.model_dump(mode="json"))
