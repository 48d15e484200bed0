"""Splits of a dataset that brings none: drawn, stratified by class, or cut into blocks of neighbours."""

import logging
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic import TypeAdapter

from petseg.config import DataConfig
from petseg.data.cache import Work, remembered
from petseg.data.dataset import Dataset, Progress, Sample
from petseg.data.duplicates import near_duplicates
from petseg.errors import PetsegError, shown

PARTS = ("train", "val", "test")
FEW_GROUPS = 5  # below which an interval over groups says little
GROUPS = TypeAdapter(dict[str, int])
Parts = dict[str, list[str]]


def natural(name: str) -> list[tuple[int, str]]:
    """Returns a key that sorts numbers within names by their value: slice 2 before slice 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def with_splits(dataset: Dataset, config: DataConfig, on_progress: Progress | None = None) -> Dataset:
    """Returns the dataset with "train" and "val", and "test" where it brings one or `data.test_share` draws one.

    Given splits are kept. What is missing beside "train" is drawn from it; of no split at all, from every sample. A
    dataset that brings "train" and "val" stays as it is. Raises `PetsegError`: too few samples, folds of given splits.
    """
    given = {part: list(ids) for part, ids in dataset.splits.items() if ids}
    if config.groups:
        _check_groups(dataset, config.groups)
    if config.folds and given:
        raise PetsegError(
            f"data.folds is {config.folds}, but {dataset.name} brings splits ({', '.join(given)}); set data.folds=0, "
            "or put its images into one folder, without lists"
        )
    if {"train", "val"} <= dataset.splits.keys():
        return dataset
    taken = {one for part, ids in given.items() if part != "train" for one in ids}
    pool = [dataset.by_id[one] for one in given.get("train", dataset.by_id) if one not in taken]
    shares = {part: share for part, share in _shares(config).items() if part not in given}
    if len(pool) < 2 + len(shares):
        what = f"{len(pool)} labelled images to draw train, {', '.join(shares)} from"
        raise PetsegError(f"{dataset.name}: {what}; wanted at least {2 + len(shares)}: label more")
    if config.split == "blocks":
        drawn = blocks([sample.id for sample in pool], shares, config)
    else:
        units = _units(pool, 1 if config.groups else min(shares.values()), on_progress)
        if config.groups:
            units = _grouped(units, dataset, max(len(shares) + 1, config.folds))
        drawn = _drawn(units, dataset.holds, shares, config)
    parts = given | drawn
    if config.groups and not config.folds:  # which test all of them
        _warn_of_few_groups(dataset, {part: drawn[part] for part in shares})
    how = "blocks of neighbours" if config.split == "blocks" else f"drawn at random, seed {config.split_seed}"
    if config.folds:
        how += f", fold {config.fold} of {config.folds}"
    if config.groups:
        how += f", each of {len({sample.group for sample in pool})} groups on one side"
    return replace(
        dataset,
        splits={str(part): tuple(sorted(parts[part])) for part in PARTS if parts.get(part)},
        provenance=f"{dataset.provenance}; {' and '.join(shares)} {how}",
    )


def of_others(dataset: Dataset) -> Dataset:
    """Returns a dataset that a model to score was not trained on: with its own splits, else all of it as one, "all"."""
    return dataset if dataset.splits else replace(dataset, splits={"all": tuple(sorted(dataset.by_id))})


def refuse_unsplit(dataset: Dataset) -> None:
    """Raises `PetsegError` for a dataset without "train" or without "val", which cannot train."""
    if missing := [part for part in ("train", "val") if part not in dataset.splits]:
        given = ", ".join(map(shown, dataset.splits)) or "none"
        raise PetsegError(
            f"{dataset.name}: no split {' and no '.join(missing)}; given are {given}: name both in `splits`, or let "
            "`petseg.data.splits.with_splits` draw them"
        )


def with_recorded(dataset: Dataset, recorded: Mapping[str, Sequence[str]]) -> Dataset | None:
    """Returns the dataset with splits that were written down, of which samples may have gone or come; None where most
    of their samples are not in it: it is another dataset.
    """
    kept = {part: tuple(sorted(one for one in ids if one in dataset.by_id)) for part, ids in recorded.items()}
    if 2 * sum(map(len, kept.values())) <= sum(map(len, recorded.values())):
        return None
    return replace(dataset, splits={part: ids for part, ids in kept.items() if ids or part != "test"})


def continued(datasets: Sequence[Dataset], recorded: Mapping[str, Sequence[str]]) -> list[Dataset]:
    """Returns the datasets, the one that holds most of the `recorded` samples with those splits.

    Its other samples keep the split that the data bring, and train where they bring none. Raises `PetsegError` where
    the splits are another dataset's.
    """
    ids = {one for part in recorded.values() for one in part}
    place = max(range(len(datasets)), key=lambda place: len(ids & datasets[place].by_id.keys()))
    dataset = datasets[place]
    known = with_recorded(dataset, recorded)
    if known is None:
        names = ", ".join(each.name for each in datasets)
        raise PetsegError(f"--splits: most of the run's images are not in {names}; name a run that was trained on one")
    given = dataset.splits or {"train": tuple(dataset.by_id)}
    part_of = {one: part for splits in (given, known.splits) for part, own in splits.items() for one in own}
    splits = {part: tuple(one for one in sorted(part_of) if part_of[one] == part) for part in PARTS}
    whole = replace(dataset, splits={part: own for part, own in splits.items() if own})
    return [*datasets[:place], whole, *datasets[place + 1 :]]


def _shares(config: DataConfig) -> dict[str, float]:
    test = 1 / config.folds if config.folds else config.test_share
    return {part: share for part, share in (("val", config.val_share), ("test", test)) if share}


def blocks(ids: Sequence[str], shares: Mapping[str, float], config: DataConfig) -> Parts:
    """Returns runs of neighbours in natural order: test the last one, or that of `data.fold`, val just before it."""
    ordered = sorted(ids, key=natural)
    count = len(ordered)
    if config.folds > count:
        raise PetsegError(f"data.folds is {config.folds}, for {count} images; take at most {count}")
    sizes = {part: max(1, round(share * count)) for part, share in shares.items()}
    start, end = count - sizes.get("test", 0), count
    if config.folds:
        start, end = (place * count // config.folds for place in (config.fold, config.fold + 1))
    around = [*ordered[end:], *ordered[:start]]  # a ring: before the first comes the last
    test, val = ordered[start:end], around[len(around) - sizes.get("val", 0) :]
    parts = {"train": around[: len(around) - len(val)], "val": val, "test": test}
    return {part: names for part, names in parts.items() if part == "train" or part in shares}


def _drawn(
    units: Sequence[Sequence[str]], holds: Mapping[str, frozenset[int]], shares: Mapping[str, float], config: DataConfig
) -> Parts:
    seed, rest = config.split_seed, 1 - sum(shares.values())
    if not config.folds:
        return stratified(units, {"train": rest, **shares}, holds, seed)
    folds = stratified(units, {str(number): 1 / config.folds for number in range(config.folds)}, holds, seed)
    if not all(folds.values()):
        apart = f"{len(units)} images that differ (near-duplicates and groups count as one)"
        raise PetsegError(f"data.folds is {config.folds}, too many for {apart}; take fewer")
    test = folds[str(config.fold)]
    others = [unit for unit in units if unit[0] not in test]
    return {**stratified(others, {"train": rest, "val": shares["val"]}, holds, seed), "test": test}


def _units(samples: Sequence[Sample], share: float, on_progress: Progress | None) -> list[list[str]]:
    """Returns sample ids, near-duplicates together; a group too large for one side falls apart, with a warning."""
    work = Work(lambda: GROUPS.dump_json(near_duplicates(samples, on_progress)).decode(), GROUPS.validate_json)
    ids = [sample.id for sample in samples]
    group_of = remembered("duplicates-v1", str(ids), (sample.image for sample in samples), work)
    groups: dict[int, list[str]] = {}
    for one in sorted(ids):
        groups.setdefault(group_of[one], []).append(one)
    largest = max(groups.values(), key=len)
    if len(largest) <= max(2, share * len(ids)):
        return list(groups.values())
    logging.getLogger("petseg").warning(
        "petseg: warning: %d of %d images resemble each other in a chain, too many for one side of a split: they are "
        "drawn one by one; for slices of a volume or frames of a film set data.split=blocks",
        len(largest),
        len(ids),
    )
    return [*(group for group in groups.values() if group is not largest), *([one] for one in largest)]


def _grouped(units: Sequence[Sequence[str]], dataset: Dataset, wanted: int) -> list[list[str]]:
    """Returns units joined where samples of a group are in several; refuses fewer than `wanted`."""
    above: dict[str, str] = {}  # group -> another of its unit, up to one that stands for all

    def top(group: str) -> str:
        while (other := above.setdefault(group, group)) != group:
            above[group] = above[other]
            group = other
        return group

    group_of = {one: dataset.by_id[one].group for unit in units for one in unit}
    for unit in units:
        for one in unit:
            above[top(group_of[one])] = top(group_of[unit[0]])
    joined: dict[str, list[str]] = {}
    for one in sorted(group_of):
        joined.setdefault(top(group_of[one]), []).append(one)
    if len(joined) < wanted:
        names = sorted({*group_of.values()})
        apart = "" if len(joined) == len(names) else f", of which near-duplicates leave {len(joined)} apart"
        raise PetsegError(
            f"{dataset.name}: data.groups finds {len(names)} groups, such as {names[0]!r}{apart}; wanted at least "
            f"{wanted}, one for each part: find smaller ones, or draw fewer parts (data.test_share=0)"
        )
    return list(joined.values())


def _check_groups(dataset: Dataset, pattern: str) -> None:
    """Refuses samples without a group, and warns of splits that tear groups apart."""
    if lost := [sample.id for sample in dataset.samples if not sample.group]:
        raise PetsegError(
            f"data.groups {pattern!r} finds nothing in {len(lost)} of {len(dataset.samples)} image names, such as "
            f"{lost[0]!r}; write what is in every name, or leave it out"
        )
    parts: dict[str, set[str]] = {}
    for part, ids in dataset.splits.items():
        for one in ids:
            parts.setdefault(dataset.by_id[one].group, set()).add(part)
    if torn := [group for group, own in sorted(parts.items()) if len(own) > 1]:
        logging.getLogger("petseg").warning(
            "petseg: warning: %s: %d of %d groups lie in several of its splits, such as %r in %s: scores flatter; make "
            "the splits anew, or leave them out to have them drawn",
            *(dataset.name, len(torn), len(parts), torn[0], " and ".join(p for p in PARTS if p in parts[torn[0]])),
        )


def _warn_of_few_groups(dataset: Dataset, parts: Mapping[str, Sequence[str]]) -> None:
    counts = {part: len({dataset.by_id[one].group for one in ids}) for part, ids in parts.items()}
    part = [*counts][-1]
    if counts[part] < FEW_GROUPS:
        logging.getLogger("petseg").warning(
            "petseg: warning: %s: %s has %d of the groups, over which an interval says little; raise data.%s_share, or "
            "test every group by data.folds",
            *(dataset.name, part, counts[part], part),
        )


def stratified(
    units: Sequence[Sequence[str]], shares: Mapping[str, float], holds: Mapping[str, frozenset[int]], seed: int
) -> Parts:
    """Returns part -> ids, a unit on one side, each class in proportion to the shares (of any sum) as far as can be.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas, ECML 2011, algorithm 1): the rarest class first. We differ
    from the paper: shares are of images, whatever the units' sizes, and a part that is full takes no more.
    """
    draw = random.Random(seed)  # noqa: S311 - a split, not a secret
    left = [(unit, Counter(label for one in unit for label in holds.get(one, ()))) for unit in units]
    draw.shuffle(left)
    left.sort(key=lambda entry: len(entry[0]), reverse=True)  # small ones then fill what large ones leave open
    counts = Counter(label for _, held in left for label in held.elements())
    size, whole = sum(map(len, units)), sum(shares.values())
    wanted: dict[str, dict[int | None, float]] = {
        part: {label: share / whole * count for label, count in counts.items()} for part, share in shares.items()
    }
    room = {part: share / whole * size for part, share in shares.items()}
    parts: dict[str, list[Sequence[str]]] = {part: [] for part in shares}
    while left:
        rarest = min(counts, key=lambda label: (counts[label], label), default=None)
        now = [entry for entry in left if rarest is None or rarest in entry[1]]
        left = [entry for entry in left if not (rarest is None or rarest in entry[1])]
        for unit, held in now:
            half = len(unit) / 2  # a part overshoots by no more, as long as another one has room
            part = max(parts, key=lambda name: (room[name] >= half, wanted[name].get(rarest, 0.0), room[name]))
            parts[part].append(unit)
            room[part] -= len(unit)
            for label, count in held.items():
                wanted[part][label] -= count
        counts = Counter(label for _, held in left for label in held.elements())
    for own in parts.values():
        donor = max(parts.values(), key=len)
        if not own and len(donor) > 1:  # a share of less than one image
            own.append(donor.pop())
    return {part: [one for unit in own for one in unit] for part, own in parts.items()}
