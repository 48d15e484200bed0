"""The dataset contract: all that later stages know of labelled images, whichever source read them."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from petseg.errors import PetsegError, shown, unknown_name

UInt8 = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]  # called with (done, total)
IGNORE = 255  # the class id of pixels that neither train nor count
Role = Literal["foreground", "background", "boundary"]  # in a cut-out: kept, dropped, a band that is half of each
ROLES: dict[str, Role] = {"background": "background", "border": "boundary"}  # of a class name where none is given
# of classes that bring none (Okabe and Ito's palette, then Paul Tol's); `colour_of` goes on after ten
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#882255", "#44AA99", "#999933")
BACKGROUND_COLOUR = "#BBBBBB"
SUSPECT = "label without any foreground"  # a note on a likely wrong label: it trains and counts, but is no example


@dataclass(frozen=True)
class Class:
    """What a pixel can be."""

    name: str
    colour: str  #: as "#0072B2", in every image, legend and plot
    role: Role = "foreground"


def colour_of(place: int) -> str:
    """Returns the colour of the class at a place, from 0, where it brings none; the first 255 all differ.

    >>> colour_of(0), len({colour_of(place) for place in range(255)})
    ('#0072B2', 255)
    """
    return _colours()[place % 255]


@cache
def _colours() -> tuple[str, ...]:
    """Returns `COLOURS`, then of a grid whichever lies farthest from all before it, from white, black and grey."""
    taken = [bytes.fromhex(colour[1:]) for colour in (*COLOURS, BACKGROUND_COLOUR, "#FFFFFF", "#000000")]
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 42)] * 3), axis=-1).reshape(-1, 3)
    nearest = np.full(len(grid), np.inf)
    for colour in taken:
        nearest = np.minimum(nearest, np.square(grid - np.frombuffer(colour, np.uint8)).sum(axis=1))
    found = list(COLOURS)
    while len(found) < 255:
        red, green, blue = chosen = grid[int(nearest.argmax())]
        found.append(f"#{red:02X}{green:02X}{blue:02X}")
        nearest = np.minimum(nearest, np.square(grid - chosen).sum(axis=1))
    return tuple(found)


def classes_from(entries: Sequence[str | Mapping[str, Any]]) -> tuple[Class, ...]:
    """Returns classes from metadata: names, or objects with name, colour and role; what is missing is filled in.

    >>> [entry.role for entry in classes_from(["background", "leaf"])]
    ['background', 'foreground']
    """
    classes = []
    for place, entry in enumerate(entries):
        given: Any = {"name": entry} if isinstance(entry, str) else entry  # of a file that others wrote
        name = given.get("name") if isinstance(given, Mapping) else None
        if not isinstance(name, str) or not name:
            raise ValueError(f"class {place} has no name")
        role = given.get("role") or ROLES.get(name, "foreground")
        if role not in ("foreground", "background", "boundary"):
            raise ValueError(f"class {name} has role {role!r}; wanted foreground, background or boundary")
        colour = given.get("colour") or (BACKGROUND_COLOUR if role == "background" else colour_of(place))
        if not re.fullmatch("#[0-9A-Fa-f]{6}", str(colour)):
            raise ValueError(f"class {name} has colour {colour!r}; wanted one as #0072B2")
        classes.append(Class(name, colour, role))
    if not 0 < len(classes) <= IGNORE:
        raise ValueError(f"there are {len(classes)} classes; wanted 1 to {IGNORE}")
    if twice := [name for name, count in Counter(entry.name for entry in classes).items() if count > 1]:
        raise ValueError(f"two classes are named {twice[0]}; give each its own name")
    return tuple(classes)


def with_foreground(classes: Sequence[Class], names: Sequence[str]) -> tuple[Class, ...]:
    """Returns the classes with those named as foreground, the other objects as background; PetsegError if unknown."""
    known = [entry.name for entry in classes]
    for name in names:
        if name not in known:
            raise unknown_name("foreground", name, known)
    roles: dict[bool, Role] = {True: "foreground", False: "background"}
    own = {entry.name: entry.name in names for entry in classes if entry.name in names or entry.role == "foreground"}
    return tuple(replace(entry, role=roles[own[entry.name]]) if entry.name in own else entry for entry in classes)


def palette(classes: Sequence[Class]) -> UInt8:
    """Returns the classes' colours by class id, uint8 [256, 3]; white for ids that no class has."""
    colours = np.full((256, 3), 255, np.uint8)
    colours[: len(classes)] = [tuple(bytes.fromhex(entry.colour[1:])) for entry in classes]
    return colours


@dataclass(frozen=True)
class Merge:
    """Classes that scores take together; an image's own is the member of the first group that it shows most of."""

    classes: tuple[Class, ...]  #: what scores are of
    of: tuple[int, ...]  #: for each trained class id, its scored class id

    def members(self) -> tuple[tuple[int, ...], ...]:
        """Returns, for each scored class, the trained class ids that it holds."""
        ids = range(len(self.classes))
        return tuple(tuple(own for own, scored in enumerate(self.of) if scored == target) for target in ids)


@dataclass(frozen=True)
class Sample:
    """One image and its label, not yet opened."""

    id: str
    image: Path
    label: Path  #: where there is no such file, the prepared cache goes by what `read_label` returns
    group: str = ""  #: such as a breed; scores are also reported by group. "" where there are no groups


@dataclass(frozen=True)
class Label:
    """An opened label: what each pixel is."""

    ids: UInt8  #: [H, W] class ids, 255 where ignored; at the label file's own size
    notes: tuple[str, ...] = ()  #: what is unusual about it, for `petseg data check`


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images with their classes and splits."""

    name: str  #: as tables name it
    samples: tuple[Sample, ...]  #: sorted by id
    classes: tuple[Class, ...]  #: by class id, 0..C-1
    #: "train", "val" and, where there is one, "test": sample ids, sorted; a source leaves out what `open_dataset` draws
    splits: Mapping[str, tuple[str, ...]]
    read_label: Callable[[Sample], Label]  #: opens a label; raises `PetsegError` where it cannot be used
    provenance: str  #: where the images come from, in one sentence
    official: bool = False  #: whether checksums say that these are the published files
    fingerprint: str = ""  #: what class ids depend on beside the files' bytes, such as how trimaps become classes
    merge: Merge | None = None
    loss_sizes: tuple[int, ...] = ()  #: sides in pixels at which the cross-entropy is reported too
    skipped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  #: kind of file that is no sample -> names
    holds: Mapping[str, frozenset[int]] = field(default_factory=dict)  #: sample id -> its label's class ids, if known
    place: Path | None = None  #: the folder or archive that it was opened from
    refusal: str = ""  #: why it must not train as it is, in one line; `data check` opens it all the same

    def __post_init__(self) -> None:
        """Raises `PetsegError` where samples or splits cannot be: an id twice, in two splits, of no sample."""
        given: Sequence[Any] = self.samples
        if odd := next((one for one in given if not isinstance(one.id, str)), None):
            raise PetsegError(f"{self.name}: sample id {shown(odd.id)} is of type {type(odd.id).__name__}; wanted str")
        for one in given:
            if not (isinstance(one.image, Path) and isinstance(one.label, Path)):
                kind = "label" if isinstance(one.image, Path) else "image"
                path = shown(getattr(one, kind))
                raise PetsegError(f"{self.name}: {kind} of {one.id} is {path}; wanted a pathlib.Path")
        known = {one.id for one in self.samples}
        if len(known) < len(self.samples):
            (twice, count), *_ = Counter(one.id for one in self.samples).most_common(1)
            raise PetsegError(f"{self.name}: {count} samples have the id {shown(twice)}; give each its own")
        placed = [*chain.from_iterable(self.splits.values())]
        if not known.issuperset(placed) or len({*placed}) < len(placed):
            self._refuse_splits(known)

    def _refuse_splits(self, known: Set[str]) -> None:
        part_of: dict[str, str] = {}
        for part, ids in self.splits.items():
            for one in ids:
                if one not in known:
                    raise PetsegError(f"{self.name}: split {part} has {shown(one)}, the id of no sample; take it out")
                if one in part_of:
                    where = f"in {part_of[one]} and in {part}" if part_of[one] != part else f"twice in {part}"
                    raise PetsegError(f"{self.name}: {shown(one)} is {where}; an image lies in one split, once")
                part_of[one] = part

    @property
    def scored_classes(self) -> tuple[Class, ...]:
        """The classes that scores are of."""
        return self.merge.classes if self.merge else self.classes

    @property
    def background(self) -> int:
        """The class id of what is no object; 255, ignored, where no class has that role."""
        return next((index for index, entry in enumerate(self.classes) if entry.role == "background"), IGNORE)

    @property
    def unlabelled(self) -> int:
        """How many images have no label file."""
        return sum(len(names) for kind, names in self.skipped.items() if kind.startswith("image without"))

    @property
    def unmatched(self) -> int:
        """How many images and label files lack each other, whose names may be at fault; 0 where only images are left.

        An image alone is one that was not labelled yet.
        """
        labels = sum(len(names) for kind, names in self.skipped.items() if kind.endswith("without image"))
        return min(self.unlabelled, labels)

    @cached_property
    def by_id(self) -> Mapping[str, Sample]:
        """Sample id -> sample."""
        return {sample.id: sample for sample in self.samples}


def scored_ids(labels: UInt8, merge: Merge | None) -> UInt8:
    """Returns labels of the trained classes as labels of the scored ones; any shape."""
    if merge is None:
        return labels
    table = np.full(256, IGNORE, np.uint8)
    table[: len(merge.of)] = merge.of
    return table[labels]


def with_groups(dataset: Dataset, pattern: str) -> Dataset:
    """Returns the dataset with the group of each sample that a regular expression finds in its id, "" for nothing."""
    samples = tuple(replace(sample, group=group_of(pattern, sample.id)) for sample in dataset.samples)
    return replace(dataset, samples=samples)


def group_of(pattern: str, name: str) -> str:
    """Returns what a regular expression finds in a sample's id: its first group, else all that it matches; or "".

    >>> group_of(r"P\\d+", "P07_slice3"), group_of(r"_(\\w+)$", "P07_left"), group_of("x", "P07")
    ('P07', 'left', '')
    """
    match = re.search(pattern, name)
    return (match[1 if match.re.groups else 0] or "") if match else ""


def part_of(samples: Iterable[Sample], share: float, *, seed: int = 0, whole: bool = False) -> tuple[str, ...]:
    """Returns the ids of a share of the samples, sorted, at least two: each group in proportion, or `whole` groups.

    Whole ones, such as patients, are drawn until they come nearest to that share of the samples. Shares are nested: a
    smaller one lies within a larger one of that seed, so a learning curve only adds images.

    >>> samples = [Sample(f"{group}_{n}", Path(), Path(), group) for group in ("pug", "Bombay") for n in range(3)]
    >>> [len(part_of(samples, share)) for share in (0.5, 1.0)]
    [3, 6]
    >>> part_of(samples, 0.4, whole=True)
    ('Bombay_0', 'Bombay_1', 'Bombay_2')
    """
    by_group: dict[str, list[str]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: sample.id):
        by_group[sample.group].append(sample.id)
    if whole:
        return tuple(sorted(_whole_groups(by_group, share, seed)))
    placed: list[tuple[float, str]] = []  # a group's samples spread evenly over 0..1; a share is what lies below it
    for group, ids in by_group.items():
        draw = random.Random(f"{seed} {group}")  # noqa: S311 - a split, not a secret
        draw.shuffle(ids)
        offset = draw.random()
        placed += [((place + offset) / len(ids), sample_id) for place, sample_id in enumerate(ids)]
    count = min(len(placed), max(2, round(share * len(placed))))
    return tuple(sorted(sample_id for _, sample_id in sorted(placed)[:count]))


def _whole_groups(by_group: Mapping[str, Sequence[str]], share: float, seed: int) -> list[str]:
    names = sorted(by_group)
    random.Random(f"{seed}").shuffle(names)  # noqa: S311 - a split, not a secret
    counts = list(accumulate(len(by_group[name]) for name in names))

    def miss(place: int) -> tuple[bool, float]:
        return counts[place] < 2, abs(counts[place] - share * counts[-1])

    last = min(range(len(names)), key=miss, default=-1)
    return [one for name in names[: last + 1] for one in by_group[name]]
