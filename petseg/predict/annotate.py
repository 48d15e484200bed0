"""Photos labelled by a model, as a task for an annotation program, in which people correct what is wrong."""

import csv
from collections.abc import Sequence
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np

from petseg.data.dataset import Dataset, Label, Progress, Sample
from petseg.data.formats.convert import FORMATS, LabelledFile, Target, write_folder
from petseg.data.images import copy_of, opened, orientation, read_ids, upright
from petseg.errors import PetsegError
from petseg.predict.outputs import ENDINGS, ENTROPY, Job, plan
from petseg.predict.photos import to_srgb
from petseg.storage import write_text

PRELABELS = "prelabels"  # the model's own labels, beside the task's files
ORDER = "order.csv"
SHOWN = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")  # what annotation programs open; others become JPEG


def plan_task(photos: Sequence[Path], out: Path, *, resume: bool) -> tuple[list[Job], dict[Path, str]]:
    """Returns a job of `predict_jobs` for each photo, and what is left out with why; checks the task's folder."""
    if resume and not (out / PRELABELS).is_dir():
        raise PetsegError(f"{out} holds no task to go on with; leave out --resume")
    if out.exists() and not resume:
        advice = "resume it (--resume)" if (out / PRELABELS).is_dir() else "choose another folder (--out)"
        raise PetsegError(f"{out} is there already; {advice}")
    return plan(photos, ("classes",), out / PRELABELS)


def write_task(
    jobs: Sequence[Job], target: Target, kind: str, on_progress: Progress | None = None
) -> tuple[int, dict[str, str]]:
    """Returns how many photos a task was written of, and photo -> why, of those left out.

    `jobs` are those that `predict_jobs` has done. `ORDER` lists the images, the least certain first.
    """
    ending = ENDINGS["classes"]
    places = [(job.files["classes"], job.photo) for job in jobs]
    names = [path.relative_to(target.folder / PRELABELS).as_posix().removesuffix(ending) for path, _ in places]
    samples = tuple(Sample(name, photo, label) for name, (label, photo) in zip(names, places, strict=True))
    dataset = Dataset(target.folder.name, samples, target.classes, {}, _read_label, "labelled by a model")
    written, left_out = write_folder(dataset, target, FORMATS[kind], _labelled, on_progress)
    entropies = {written[sample.id].image: _entropy(sample.label) for sample in samples if sample.id in written}
    rows = sorted(entropies.items(), key=lambda row: (-row[1], row[0]))
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([("image", "entropy"), *((name, f"{x:.6f}") for name, x in rows)])
    write_text(target.folder / ORDER, text.getvalue())
    return len(written), left_out


def _read_label(sample: Sample) -> Label:
    return Label(read_ids(sample.label).astype(np.uint8))


def _entropy(label: Path) -> float:
    with opened(label, label.name) as image:
        return float(image.info[ENTROPY])


def _labelled(sample: Sample) -> LabelledFile:
    """Returns a photo's file as it is; as JPEG, upright, where EXIF turns it or annotation programs do not open it."""
    ids = _read_label(sample).ids
    with opened(sample.image, sample.image.name) as image:
        if image.format in SHOWN and orientation(image) == 1:
            return LabelledFile(sample.image.suffix, sample.image.read_bytes(), ids)
        stream, copied = BytesIO(), copy_of(sample.image.read_bytes())
        to_srgb(upright(image)).save(stream, "JPEG", quality=95, subsampling=0, exif=copied)
    return LabelledFile(".jpg", stream.getvalue(), ids)
