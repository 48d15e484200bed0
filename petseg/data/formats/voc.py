"""Pascal VOC's layout: JPEGImages/, SegmentationClass/ with a colour for each class, ImageSets/Segmentation/.

Classes are those of labelmap.txt (CVAT's export), of class_names.txt (LabelMe's), else the 20 of VOC 2012. What has the
colour (224, 224, 192) is ignored. Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

from petseg.config import DataConfig
from petseg.data.dataset import IGNORE, Class, Dataset, Label, Progress, Sample
from petseg.data.folder import list_of_no_pair
from petseg.data.formats.annotations import IGNORED_NAMES, Images, Names, chosen_classes, named
from petseg.data.images import SUFFIXES, opened
from petseg.data.masks import Table, scan_all
from petseg.errors import PetsegError
from petseg.storage import read_lines

NAME = "Pascal VOC"
WANTED = "Pascal VOC (JPEGImages/, SegmentationClass/, ImageSets/Segmentation/)"
IMAGES, MASKS, LISTS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"
LABELMAP, CLASS_NAMES = "labelmap.txt", "class_names.txt"
VOID = 0xE0E0C0
CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def recognise(folder: Path) -> str | None:
    """Returns whether a folder is of VOC's layout."""
    return NAME if (folder / IMAGES).is_dir() and (folder / MASKS).is_dir() else None


def open_folder(folder: Path, config: DataConfig, on_progress: Progress | None = None) -> Dataset:
    """Returns the dataset of a folder of VOC's layout: each mask that has an image, in the splits of the lists."""
    names, colours = _classes(folder, chosen_classes(folder, config))
    masks = {path.stem: path for path in sorted((folder / MASKS).glob("*.png"))}
    pictures = {path.stem: path for path in sorted((folder / IMAGES).glob("*")) if path.suffix.lower() in SUFFIXES}
    both = sorted(masks.keys() & pictures.keys())
    if not both:
        raise PetsegError(f"data folder {folder}: no {MASKS}/NAME.png with an image {IMAGES}/NAME.jpg")
    skipped = {
        "image without mask": tuple(sorted(pictures.keys() - masks.keys())),
        "mask without image": tuple(sorted(masks.keys() - pictures.keys())),
    }
    listed = {split: _listed(folder, split, masks.keys() | pictures.keys()) for split in ("train", "val", "test")}
    chosen = {name for ids in listed.values() for name in ids}
    skipped["listed, but no mask or image"] = tuple(sorted(chosen - {*both}))
    skipped["pair in no split"] = tuple(sorted({*both} - chosen)) if chosen else ()
    twice = [name for name in both if sum(name in ids for ids in listed.values()) > 1]
    if twice:
        raise PetsegError(f"{folder / LISTS}: {twice[0]} is in two splits; keep it in one")
    numbers = {**{number: number for number in range(len(names.classes))}, IGNORE: IGNORE}
    by_number, by_colour = (Table(names.classes, *how, LABELMAP) for how in ((False, numbers), (True, colours)))

    def read_label(sample: Sample) -> Label:
        with opened(sample.label, f"{sample.id}: mask") as image:
            coloured = image.mode in ("P", "RGB", "RGBA")
        return (by_colour if coloured else by_number).read(sample)

    samples = tuple(Sample(name, pictures[name], masks[name]) for name in both)
    drawn = not (listed["train"] and listed["val"])
    found = scan_all(samples, on_progress) if drawn else {}
    tables = {name: by_number if mask.kind == "ids" else by_colour for name, mask in found.items()}
    return Dataset(
        name=folder.resolve().name,
        samples=samples,
        classes=names.classes,
        splits={split: tuple(sorted({*ids} & {*both})) for split, ids in listed.items() if ids},
        read_label=read_label,
        provenance=f"images of a folder, annotated in {NAME}'s layout",
        fingerprint=str(sorted(colours.items())),
        skipped={kind: names_of for kind, names_of in skipped.items() if names_of},
        holds={name: tables[name].classes_in(mask) for name, mask in found.items()},
    )


def _listed(folder: Path, split: str, known: Set[str]) -> list[str]:
    """Returns the names of a split's list: a line, or its first word where the line is no known name."""
    path = folder / LISTS / f"{split}.txt"
    lines = read_lines(path) if path.is_file() else []
    names = [line if line in known else line.split()[0] for line in lines]
    images = Images(folder)
    for name in names:
        images.find(name, [folder / IMAGES], path.name)  # refuses what leaves the folder
    if names and known.isdisjoint(names):
        raise list_of_no_pair(path, lines, min(known))
    return names


def voc_colours() -> Iterator[int]:
    """Yields VOC's colour 0xRRGGBB of class 0, 1, ...: three bits of the number at a time, from the highest on."""
    for number in range(256):
        red, green, blue = (sum((number >> 3 * bit + part & 1) << 7 - bit for bit in range(3)) for part in range(3))
        yield red << 16 | green << 8 | blue


def _code(colour: str) -> int:
    """Returns 0xRRGGBB of "R,G,B"."""
    red, green, blue = bytes(int(part) for part in colour.split(","))
    return red << 16 | green << 8 | blue


def _classes(folder: Path, chosen: Sequence[Class]) -> tuple[Names, Mapping[int, int]]:
    """Returns the classes, and colour 0xRRGGBB -> class id."""
    if (path := folder / LABELMAP).is_file():
        rows = [line.rsplit(":", 3) for line in read_lines(path) if line[0] != "#"]
        try:
            codes = [_code(row[1]) for row in rows]
        except (IndexError, ValueError):
            raise PetsegError(f"{path}: a line is not as cat:128,0,0::; export it again") from None
        given = [(row[0].strip(), code) for row, code in zip(rows, codes, strict=True)]
        if len(set(codes)) < len(codes):
            raise PetsegError(f"{path}: two classes have one colour; change one, in the masks too")
    elif chosen and not (folder / CLASS_NAMES).is_file():
        given = [(each.name, int(each.colour[1:], 16)) for each in chosen]
    else:
        path = folder / CLASS_NAMES
        lines = read_lines(path) if path.is_file() else CLASSES
        own = [line for line in lines if line not in IGNORED_NAMES]
        given = list(zip(own, voc_colours(), strict=False))
    where = path if path.is_file() else NAME
    names = named([{"name": name, "colour": f"#{code:06X}"} for name, code in given], where, chosen)
    return names, {VOID: IGNORE} | {code: names.ids[name] for name, code in given}
