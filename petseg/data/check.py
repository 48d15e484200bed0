"""`petseg data check`: how balanced a dataset's classes are, and what is wrong with which file; what stops training."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from petseg.data.balance import Counts, class_pixels, median_frequency
from petseg.data.cache import Prepared
from petseg.data.dataset import SUSPECT, Dataset, Progress, Sample
from petseg.data.duplicates import DRAFT, NEAR, perceptual_hash, stored_hash
from petseg.data.images import EXIF_APPLIED, EXIF_UNSURE, WIDE, open_sample, outcomes
from petseg.data.splits import PARTS, refuse_unsplit
from petseg.errors import PetsegError
from petseg.schema import CheckFinding, ClassBalance, DataCheck, Level

TOLERATED = 0.1  # share of the images that may be left out; more are a fault of the whole set
RARE = 0.01  # share of the labelled pixels below which a class is almost empty: CamVid's pole, sign and bicyclist
MANY_OBJECTS = 8  # classes from where ids may number objects: fewer are often nested, such as a tumour in an organ
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
FRAMES = "Write one file for each frame, each with its mask; --set data.split=blocks keeps neighbours in one split."


@dataclass(frozen=True)
class Rule:
    """What one kind of finding means."""

    pattern: str  # of what a source or a reader calls it
    level: Level
    action: str
    advice: str = ""
    found: str = ""  # as it is called here; "": as there


RULES = (  # the first that matches
    Rule(
        "smoothed edges",
        "error",
        "stops training",
        "Write masks without smoothing: nearest neighbour where they are resized, no antialiasing, PNG and not JPEG.",
        "mask with smoothed edges, whose values lie between two classes",
    ),
    Rule(
        "which no class has",
        "error",
        "stops training",
        "Name these values in classes.toml, as a class or under ignore, or mend the masks.",
        "mask with values that no class has",
    ),
    Rule(
        "lies on its side",
        "warning",
        "left out",
        "Turn the image or the mask; some tools apply the rotation that cameras note (EXIF), others drop it.",
        "image or mask that lies on its side",
    ),
    Rule(
        "different shapes",
        "warning",
        "left out",
        "Export each mask again, from its own image and at that size.",
        "image and mask of different shapes",
    ),
    Rule("git-LFS pointer", "warning", "left out", "Run git lfs pull in the dataset's folder.", "git-LFS pointer"),
    Rule(
        "scale them first",
        "warning",
        "left out",
        "Scale all images to 0 to 255 with the same factor and offset, and export them again.",
        "image whose values are of no known range",
    ),
    Rule(
        "pixels; at most|exceeds limit of",
        "warning",
        "left out",
        "Cut it into tiles, or reduce it, and its mask with it.",
        "image or mask with too many pixels",
    ),
    Rule(
        "; wanted JPEG",
        "warning",
        "left out",
        "Export it as PNG or JPEG, or copy it again.",
        "file that is not a readable image",
    ),
    Rule(
        "transparent pixels",
        "warning",
        "left out",
        "Save masks without alpha, each class in a value or a colour of its own.",
        "mask with transparent pixels",
    ),
    Rule("cannot be decoded", "warning", "left out", "Copy the file again, or export it again as PNG or JPEG."),
    Rule("remapped", "warning", "left out", "Take the trimaps as they were published."),
    Rule("^image without", "warning", "left out", "Label it; a mask is named as its image."),
    Rule("without image$", "warning", "left out", "Add the image; it is named as its mask."),
    Rule("^second ", "warning", "left out", "Keep one of the two."),
    Rule("^(listed|annotated), but", "warning", "left out", "Correct the list, or add what it names."),
    Rule("^pair in no list", "note", "in protocol seed only; species and breed from its name"),
    Rule("^pair in no split", "note", "not used"),
    Rule(
        "of another size",
        "warning",
        "kept",
        "Look at one with its image; masks of the image's own size are exact.",
    ),
    Rule(
        re.escape(EXIF_UNSURE),
        "warning",
        "kept",
        "Look at one with its mask; where a viewer turns the image alone, save its pixels turned.",
    ),
    Rule(
        "stored as JPEG", "warning", "kept", "JPEG changes values near edges: write masks as PNG from the annotations."
    ),
    Rule("^mask: .*first one is used", "warning", "kept: the others are lost", FRAMES, "mask of several frames"),
    Rule("first one is used", "warning", "kept: the others are lost", FRAMES, "image of several frames"),
    Rule(SUSPECT, "note", "kept: all background and border, as in everybody's figures"),
)

MIXED = Rule(
    "",
    "warning",
    "kept: the same value is not equally bright in all",
    "Bring all images to one range with one factor, such as to 8 bits. petseg takes an image's range from its largest "
    "value: up to 255, 4095 or 65535.",
    "image scaled from another range than others",
)


@dataclass(frozen=True)
class Seen:
    """What the check keeps of one sample."""

    notes: tuple[str, ...]
    pixels: Counts  # int64 [C], by class
    ignored: int  # pixels
    size: tuple[int, int]  # width and height
    hash: int


def check_dataset(dataset: Dataset, size: int, on_progress: Progress | None = None) -> DataCheck:
    """Returns the balance of a dataset's classes and what is wrong with it, after opening every pair.

    `size` is the side in pixels at which training would see the images.
    """
    seen: dict[str, Seen] = {}
    reasons: dict[str, str] = {}
    for sample, found in outcomes(partial(_look, dataset), dataset.samples, on_progress):
        if isinstance(found, str):
            reasons[sample.id] = found.removeprefix(f"{sample.id}: ")
        else:
            seen[sample.id] = found
    ordered = sorted(dataset.splits, key=lambda part: (PARTS.index(part) if part in PARTS else len(PARTS), part))
    parts = {part: [one for one in dataset.splits[part] if one in seen] for part in ordered}
    none = np.zeros((0, len(dataset.classes)), np.int64)
    counts = {part: np.stack([seen[one].pixels for one in ids]) if ids else none for part, ids in parts.items()}
    balance = _balance([entry.name for entry in dataset.classes], counts)
    findings = [
        *_of_files(dataset, seen, reasons),
        *_of_classes(balance),
        *_of_labels(seen, dataset.classes[0].name),
        *_of_instances(seen, balance),
        *_of_sizes(seen, size),
        *_of_duplicates(seen, parts),
    ]
    if dataset.refusal and not any(finding.level == "error" for finding in findings):
        findings.append(CheckFinding(level="error", found=dataset.refusal, count=1, names=(), action="stops training"))
    ignored = sum(one.ignored for one in seen.values())
    sizes = sorted((one.size for one in seen.values()), key=lambda size: (size[0] * size[1], size))
    return DataCheck(
        name=dataset.name,
        provenance=dataset.provenance,
        images=len(dataset.samples),
        unlabelled=dataset.unlabelled,
        usable=len(seen),
        splits={part: len(ids) for part, ids in parts.items()},
        smallest=sizes[0] if sizes else None,
        largest=sizes[-1] if sizes else None,
        size=size,
        ignored=ignored / max(1, ignored + sum(int(one.pixels.sum()) for one in seen.values())),
        classes=balance,
        findings=tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level))),
    )


def _look(dataset: Dataset, sample: Sample) -> Seen:
    opened = open_sample(dataset, sample, draft=DRAFT)
    pixels, (height, width) = class_pixels(opened.ids, len(dataset.classes)), opened.ids.shape
    ignored, turned = opened.ids.size - int(pixels.sum()), EXIF_APPLIED in opened.notes
    hashed = stored_hash(sample) if turned else perceptual_hash(opened.image)  # the one that splits are drawn by
    return Seen(opened.notes, pixels, ignored, (width, height), hashed)


def _of_files(dataset: Dataset, seen: Mapping[str, Seen], reasons: Mapping[str, str]) -> Iterator[CheckFinding]:
    """Yields what cannot be used, what is unusual and what is no sample."""
    left_out, noted = defaultdict[Rule, list[str]](list), defaultdict[Rule, list[str]](list)
    for name, reason in reasons.items():
        # what does not differ from sample to sample: no brackets, not what is wanted, what stands after ';'
        kind = re.sub(r"\(.*\)|; wanted.*", "", reason).strip().rpartition("; ")[2]
        left_out[_rule(kind, reason, Rule(kind, "warning", "left out"))].append(name)
    ranges = {note for one in seen.values() for note in one.notes} & {*WIDE.values()}
    for name, one in seen.items():
        for note in one.notes:
            rule = MIXED if len(ranges) > 1 and note in ranges else _rule(note, note, Rule(note, "note", "kept"))
            noted[rule].append(name)
    too_many = _too_many(dataset, len(reasons))
    for rule, names in left_out.items():
        rule = _raised(rule, too_many)
        yield _finding(rule, names, reasons[names[0]])
    for rule, names in noted.items():
        yield _finding(rule, names)
    for kind, files in dataset.skipped.items():
        rule = _rule(kind, kind, Rule(kind, "note", "skipped"))
        if dataset.unmatched and "without" in kind:
            rule = _raised(rule, too_many)
        yield _finding(rule, files)


def _too_many(dataset: Dataset, left_out: int) -> int:
    """Returns how many images cannot be used where that is more than `TOLERATED`, else 0."""
    lost = left_out + dataset.unmatched
    return lost if lost > TOLERATED * (len(dataset.samples) + dataset.unmatched) else 0


def _raised(rule: Rule, too_many: int) -> Rule:
    """Returns a rule as an error where too many images are left out, else as it is."""
    action = f"left out, and {too_many:,} images in all are too many"
    return replace(rule, level="error", action=action) if too_many and rule.level != "error" else rule


def _rule(kind: str, text: str, otherwise: Rule) -> Rule:
    found = next((rule for rule in RULES if re.search(rule.pattern, text)), otherwise)
    return Rule("", found.level, found.action, found.advice, found.found or kind)


def _finding(rule: Rule, names: Sequence[str], reason: str = "") -> CheckFinding:
    return CheckFinding(
        level=rule.level,
        found=rule.found,
        count=len(names),
        names=tuple(names),
        action=rule.action,
        advice=rule.advice,
        reason=reason,
    )


def _balance(names: Sequence[str], counts: Mapping[str, Counts]) -> tuple[ClassBalance, ...]:
    training = counts.get("train", np.zeros((0, len(names)), np.int64))
    shares, weights = training.sum(axis=0) / max(1, training.sum()), median_frequency(training)
    return tuple(
        ClassBalance(
            name=name,
            share=float(shares[place]),
            images={part: int((own[:, place] > 0).sum()) for part, own in counts.items()},
            weight=float(weights[place]),
        )
        for place, name in enumerate(names)
    )


def _of_classes(balance: Sequence[ClassBalance]) -> Iterator[CheckFinding]:
    """Yields which classes are absent or almost empty."""

    def finding(level: Level, found: str, some: Sequence[ClassBalance], advice: str) -> Iterator[CheckFinding]:
        if some:
            names = tuple(entry.name for entry in some)
            yield CheckFinding(level=level, found=found, count=len(some), names=names, action="kept", advice=advice)

    trained = [entry for entry in balance if entry.images.get("train")]
    unseen = [entry for entry in balance if entry not in trained and any(entry.images.values())]
    move = "Move an image that holds it into training, or ignore the class."
    yield from finding("error", "class in no training image", unseen, move)
    if len(trained) == 1:
        yield from finding("error", "the only class in training", trained, "Label a second class, or mend the masks.")
    unused = [entry for entry in balance if not any(entry.images.values())]
    yield from finding("warning", "class in no image", unused, "Label some, or leave the class out.")
    for part in [part for part in balance[0].images if part != "train"]:
        lacking = [entry for entry in trained if not entry.images[part]]
        move = f"It has no score there: move an image that holds it into {part}."
        yield from finding("warning", f"class in no {part} image", lacking, move)
    rare = [entry for entry in trained if entry.share < RARE]
    weights = ", ".join(f"{entry.name} {entry.weight:.3g}" for entry in rare)
    weigh = (
        "Weigh classes in the loss: --set train.class_weights=median_frequency. A class weighs median(f) / f, f being "
        f"its share of the pixels of the images that hold it: {weights}."
    )
    yield from finding("warning", f"class of less than {100 * RARE:g} % of the training pixels", rare, weigh)


def _of_labels(seen: Mapping[str, Seen], first: str) -> Iterator[CheckFinding]:
    """Yields labels of no class or of one, apart where that is the `first` class and the rest is ignored."""
    objects = "255 beside class ids is ignored: if it is an object here, write the value that it has in other masks."
    kinds: dict[tuple[int, bool], tuple[Level, str, str]] = {
        (0, False): ("warning", "label without a labelled pixel", "Label it, or leave the image out."),
        (1, True): ("warning", f"label of {first} and ignored pixels alone", objects),
        (1, False): ("note", "label of one class alone", ""),
    }
    of_kind = defaultdict[tuple[int, bool], list[str]](list)
    for name, one in seen.items():
        held = int(np.count_nonzero(one.pixels))
        of_kind[held, held == 1 and one.ignored > 0 and bool(one.pixels[0])].append(name)
    for kind, (level, found, advice) in kinds.items():
        names = [name for name in of_kind[kind] if SUSPECT not in seen[name].notes]
        if names:
            yield _finding(Rule("", level, "kept", advice, found), names)


def _of_instances(seen: Mapping[str, Seen], balance: Sequence[ClassBalance]) -> Iterator[CheckFinding]:
    """Yields the classes above the first where nearly all labels hold 1 to n of them without a gap, n often another."""
    held = [ids for one in seen.values() if len(ids := np.flatnonzero(one.pixels[1:]))]
    numbered = [len(ids) for ids in held if ids[-1] == len(ids) - 1]
    if len(balance) > MANY_OBJECTS and len(numbered) > 0.9 * len(held) and len({*numbered}) > 4:
        advice = (
            "If the ids number objects, write 1 for all of them and 0 elsewhere (in Python: mask > 0); classes.toml "
            "cannot join ids. petseg predicts classes, not single objects."
        )
        names = [entry.name for entry in balance[1:]]
        found = "class ids that look like numbered objects (instances)"
        yield _finding(Rule("", "warning", "kept, each as a class", advice, found), names)


def _of_sizes(seen: Mapping[str, Seen], size: int) -> Iterator[CheckFinding]:
    small = {name: max(one.size) for name, one in seen.items() if max(one.size) < size}
    if small:
        fitting = max(16, int(np.median([*small.values()])) // 16 * 16)
        advice = f"They are enlarged to {size} px: train at their size, --set data.size={fitting}."
        yield _finding(Rule("", "warning", "kept", advice, f"image smaller than {size} px"), [*small])


def _of_duplicates(seen: Mapping[str, Seen], parts: Mapping[str, Sequence[str]]) -> Iterator[CheckFinding]:
    """Yields which images have a near-duplicate in an earlier split."""
    names, earlier = [], list[tuple[str, str]]()
    for part, ids in parts.items():
        hashes = np.array([seen[one].hash for one, _ in earlier], np.uint64)
        for one in ids if earlier else ():
            near = np.flatnonzero(np.bitwise_count(hashes ^ np.uint64(seen[one].hash)) <= NEAR)
            if len(near):
                other, where = earlier[near[0]]
                names.append(f"{one} ({part}) ~ {other} ({where})")
        earlier += [(one, part) for one in ids]
    advice = (
        "Scores on them are too good: keep each pair in one split. Splits that petseg draws do, where few are alike."
    )
    if names:
        yield _finding(Rule("", "warning", "kept", advice, "near-duplicate in another split"), names)


def refuse_spoiled(prepared: Prepared) -> None:
    """Raises `PetsegError` where training would be wasted: many images left out, or a class only where it is scored."""
    dataset, left_out = prepared.dataset, prepared.left_out
    refuse_unsplit(dataset)
    if too_many := _too_many(dataset, len(left_out)):
        alone = ((name, kind) for kind, names in dataset.skipped.items() if "without" in kind for name in names)
        name, reason = next(iter(left_out.items()), None) or next(alone)
        raise PetsegError(
            f"{dataset.name}: {too_many:,} of {len(dataset.samples) + dataset.unmatched:,} images cannot be used "
            f"(first: {name}: {reason.removeprefix(f'{name}: ')}); `petseg data check` lists them: mend them or take "
            "them out"
        )
    wanted = len(dataset.classes)
    trained = set[int]()
    for row in prepared.rows(dataset.splits["train"]).tolist():
        trained |= {*np.flatnonzero(class_pixels(prepared.label(row), wanted)).tolist()}
        if len(trained) == wanted:
            return  # after a few images, in most datasets
    if len(trained) == 1:
        name = dataset.classes[trained.pop()].name
        raise PetsegError(
            f"{dataset.name}: all training labels are {name}; wanted two classes or more: `petseg data check` shows "
            "what masks hold"
        )
    for label in sorted({*range(wanted)} - trained):
        scored = (one for part, ids in dataset.splits.items() if part != "train" for one in ids)
        held = [
            prepared.samples[row].id for row in prepared.rows(scored).tolist() if (prepared.label(row) == label).any()
        ]
        if held and trained:
            names = ", ".join(held[:3]) + (", ..." if len(held) > 3 else "")
            raise PetsegError(
                f"{dataset.name}: class {dataset.classes[label].name} is in no training image, but in {len(held)} that "
                f"are scored ({names}); move one into training or ignore the class (`petseg data check`)"
            )
