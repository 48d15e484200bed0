"""Images without labels, upright, as a dataset whose every pixel is ignored."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from petseg.data.dataset import IGNORE, Class, Dataset, Label, Sample
from petseg.data.images import SUFFIXES, opened, upright_size
from petseg.errors import PetsegError


def open_unlabelled(folder: Path, classes: Sequence[Class]) -> Dataset:
    """Returns all images below a folder, in one split "unlabelled", with the classes of the labelled dataset."""
    if not folder.is_dir():
        raise PetsegError(f"unlabelled images {folder}: not a folder; name one with images")
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not paths:
        raise PetsegError(f"unlabelled images {folder}: no images in this folder; wanted {', '.join(SUFFIXES)}")
    found = {path.relative_to(folder).as_posix(): path for path in paths}
    return Dataset(
        name="unlabelled images",
        samples=tuple(Sample(name, found[name], found[name]) for name in sorted(found)),
        classes=tuple(classes),
        splits={"unlabelled": tuple(sorted(found))},
        read_label=_ignored,
        provenance="images without labels",
        fingerprint="unlabelled, upright",
    )


def _ignored(sample: Sample) -> Label:
    with opened(sample.image, f"{sample.id}: image") as file:
        width, height = upright_size(file)
    return Label(np.full((height, width), IGNORE, np.uint8))
