"""Several datasets of the same classes as one: an image that is in two of them has the later one's label."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count

import numpy as np

from petseg.data.dataset import IGNORE, Dataset, Label, Progress, Sample, UInt8
from petseg.data.images import original, outcomes
from petseg.errors import PetsegError


@dataclass(frozen=True)
class Merged:
    """A dataset made of several, not yet written."""

    dataset: Dataset
    relabelled: tuple[str, ...]  # ids whose label a later dataset replaced, sorted
    renamed: Mapping[str, str]  # id of an added image -> its new one, since another image has its name


def merge(datasets: Sequence[Dataset], *, on_progress: Progress | None = None) -> Merged:
    """Returns the datasets as one, with the classes of the first, after reading every image file.

    An image is the same where its file's bytes are, or those of the file that petseg wrote it again from. It stays in
    the split where it is; what is added keeps its own, and trains where it has none. Raises `PetsegError` where
    classes differ by name.
    """
    first = datasets[0]
    tables = [_table(first, dataset) for dataset in datasets]
    chosen: dict[str, tuple[int, Sample]] = {}  # id -> the dataset whose label counts, and its sample there
    split_of: dict[str, str] = {}
    known: dict[str, list[str]] = defaultdict(list)  # digest of an image -> ids
    relabelled: set[str] = set()
    renamed: dict[str, str] = {}
    for number, dataset in enumerate(datasets):
        own = {sample_id: part for part, ids in dataset.splits.items() for sample_id in ids}
        added: dict[str, list[str]] = defaultdict(list)
        for sample, digest in outcomes(_digest, dataset.samples, on_progress):
            for same in known[digest]:
                chosen[same] = (number, sample)
                split_of.setdefault(same, own.get(sample.id, ""))
                relabelled.add(same)
            if not known[digest]:
                names = chain([sample.id], (f"{sample.id}-{place}" for place in count(2)))
                name = next(each for each in names if each not in chosen)
                renamed |= {sample.id: name} if name != sample.id else {}
                chosen[name] = (number, sample)
                split_of |= {name: own[sample.id]} if sample.id in own else {}
                added[digest].append(name)
        known |= added

    def read_label(sample: Sample) -> Label:
        number, source = chosen[sample.id]
        label = datasets[number].read_label(source)
        return replace(label, ids=tables[number][label.ids])

    parts: dict[str, list[str]] = defaultdict(list)
    for name in sorted(chosen):
        parts[split_of.get(name) or "train"].append(name)
    dataset = replace(
        first,
        samples=tuple(replace(chosen[name][1], id=name) for name in sorted(chosen)),
        splits={part: tuple(ids) for part, ids in parts.items()} if any(split_of.values()) else {},
        read_label=read_label,
        provenance="; ".join(dict.fromkeys(each.provenance for each in datasets)),
    )
    return Merged(dataset, tuple(sorted(relabelled)), renamed)


def _table(first: Dataset, other: Dataset) -> UInt8:
    """Returns class id of `other` -> class id of `first`, uint8 [256]."""
    place = {each.name: number for number, each in enumerate(first.classes)}
    names = [each.name for each in other.classes]
    if only := next((name for name in names if name not in place), None):
        raise PetsegError(f"{other.name} has class {only!r}, which {first.name} has not; name classes alike in both")
    if missing := next((name for name in place if name not in names), None):
        raise PetsegError(f"{first.name} has class {missing!r}, which {other.name} has not; name classes alike in both")
    table = np.full(256, IGNORE, np.uint8)
    table[: len(names)] = [place[name] for name in names]
    return table


def _digest(sample: Sample) -> str:
    try:
        return original(sample.image)
    except OSError as error:
        return f"{sample.image} {error.strerror}"  # left out by name when it is opened
