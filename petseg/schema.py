"""The JSON that travels between stages: written by training, evaluation and experiments, read by report, page and docs.

Every record is immutable and rejects unknown keys, so a file of another version is an error that names its field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from petseg import storage
from petseg.config import Recipe
from petseg.errors import PetsegError, shown


class Record(BaseModel):
    """A part of a JSON file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class ClassInfo(Record):
    """What a pixel can be."""

    name: str
    colour: str
    """As "#0072B2"."""
    role: Literal["foreground", "background", "boundary"] = "foreground"


class DataInfo(Record):
    """Which images figures are of."""

    name: str
    """Of the dataset."""
    provenance: str
    """Where the files come from, in one sentence."""
    official: bool
    """Whether checksums say that these are the published files."""
    largest_side: int
    """Of all images, in pixels: tells a reduced copy from the original."""
    key: str
    """Names the content of images and labels, the size they are prepared at, and the splits."""
    classes: tuple[ClassInfo, ...]
    """By class id, as trained."""
    scored_classes: tuple[ClassInfo, ...]
    """What scores are of."""
    splits: dict[str, int]
    """Split -> images that can be used."""
    left_out: dict[str, str] = {}
    """Sample id -> reason, for those that cannot."""

    @property
    def images(self) -> str:
        """What the images are, as a table's caption says it."""
        if self.official:
            return f"{self.name}, the official files"
        return f"{self.name}, a copy with images of at most {self.largest_side} px ({self.provenance})"


class EnvironmentInfo(Record):
    """What a figure depends on beside the config."""

    petseg: str
    commit: str = ""
    """Of the code; "" where petseg was installed without git."""
    device: str
    processor: str = ""
    threads: int
    precision: str
    torch: str = ""
    numpy: str = ""
    python: str = ""
    platform: str = ""
    started: str = ""


class ImageMiou(Record):
    """mIoU taken image by image."""

    mean: float
    median: float


class Scores(Record):
    """Every score of one model on one split; scores lie in 0..1, best 1."""

    weights: str = ""
    """File of the run folder; "" for what has no weights."""
    epoch: int = 0
    split: str
    data: str
    """`DataInfo.key`."""
    images: int
    frame: str
    """At which size images were scored."""
    cross_entropy: float
    """In nats, best 0, at the training size."""
    cross_entropy_frame: str
    cross_entropy_at: dict[str, float] = {}
    """Side in pixels -> the same at that size."""
    image_class_accuracy: float | None = None
    """Of merged classes (cat and dog as pet): share of images whose class is right."""
    image_class_images: int | None = None
    miou: float
    iou: dict[str, float | None]
    """Class -> IoU, None where it is in neither truth nor prediction."""
    mean_dice: float
    dice: dict[str, float | None]
    pixel_accuracy: float
    mean_boundary_f: float | None
    boundary_f: dict[str, float | None]
    image_miou: ImageMiou
    group_miou: dict[str, float] = {}
    """Group (breed) -> mIoU."""


class EpochRow(Record):
    """One line of metrics.jsonl."""

    epoch: int
    seconds: float
    train_seconds: float
    learning_rate: float
    """At the epoch's last step."""
    train_loss: float
    val_loss: float
    val_miou: float
    val_accuracy: float
    val_image_class: float | None = None


class LatencyInfo(Record):
    """Time of one forward pass in milliseconds."""

    p50: float
    p95: float
    repeats: int
    batch: int = 1
    size: int


class CostInfo(Record):
    """What a model costs, for one square image."""

    parameters: int
    macs: int
    """Multiply-accumulates."""
    activation_bytes: int
    """Largest sum of tensors alive at once in a forward pass, float32, weights not counted."""
    skip_bytes: int | None
    """What the encoder keeps for the decoder beside its deepest map; None where that cannot be told."""
    training_activation_bytes_per_image: int
    latency_ms: LatencyInfo | None = None
    train_seconds: float | None = None
    train_images_per_second: float | None = None


class ModelResult(Record):
    """One trained run of a comparison."""

    name: str
    title: str
    learning_rate: float
    best_epoch: int
    environment: EnvironmentInfo
    cost: CostInfo
    history: tuple[EpochRow, ...]
    evaluations: dict[str, Scores]
    """Split -> scores."""


class BaselineResult(Record):
    """What needs no learning."""

    name: str
    title: str
    evaluations: dict[str, Scores]


class Difference(Record):
    """A model less the reference, with a bootstrap interval."""

    model: str
    reference: str
    split: str
    metric: str
    points: float
    """Hundredths."""
    low: float
    high: float
    confidence: float
    resamples: int
    share_better: float
    """Of the resamples in which the model scores higher."""
    over: str
    """What the interval covers."""

    @property
    def shown(self) -> bool:
        """Whether the interval leaves zero out, ends included."""
        return not self.low <= 0 <= self.high


class Example(Record):
    """An image that the report shows."""

    name: str
    why: Literal["best", "median", "worst", "differ"]
    miou: dict[str, float]
    """Model -> mIoU of this image."""
    files: dict[str, str]
    """"image", "truth" or a model -> path below the comparison's folder."""


class ComparisonResult(Record):
    """comparison.json: any number of runs under one budget, and every figure of the report."""

    kind: Literal["comparison"] = "comparison"
    version: Literal[2] = 2
    petseg: str
    command: str
    created: str
    quick: bool
    """Scored on validation alone, after a short training: no result."""
    synthetic: bool
    """The images were drawn by petseg."""
    split: str
    """What the figures are of."""
    seeds: tuple[int, ...]
    size: int
    config: Recipe
    environment: EnvironmentInfo
    scoring_environment: EnvironmentInfo
    data: DataInfo
    reference: str
    """The model that the others are compared with."""
    models: Annotated[tuple[ModelResult, ...], Field(min_length=1)]
    baselines: tuple[BaselineResult, ...] = ()
    differences: tuple[Difference, ...] = ()
    """Each other model less the reference."""
    examples: tuple[Example, ...] = ()


RecordT = TypeVar("RecordT", bound=Record)


def read_record(path: Path, kind: type[RecordT]) -> RecordT:
    """Returns a JSON file as a `kind`; integers, floats and strings are not coerced into one another.

    Raises:
        PetsegError: missing, not JSON, another kind or version of file, or a field that is missing or wrong.
    """
    content = storage.read_json(path)
    for name, wanted in (("kind", str), ("version", int)):
        default = kind.model_fields[name].default if name in kind.model_fields else None
        if isinstance(default, wanted) and content.get(name) != default:
            raise PetsegError(
                f"{path}: {name} is {shown(content.get(name))}; wanted {shown(default)}: name a file that this version "
                "of petseg wrote"
            )
    try:
        return kind.model_validate(content, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PetsegError(f"{path}: {where}: {first['msg'].lower()}; restore the file or make it again") from None


def write_record(path: Path, record: Record) -> None:
    """Writes a record as JSON, atomically."""
    storage.write_json(path, record.model_dump(mode="json"))
