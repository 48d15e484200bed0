"""Predictions as files: which photo writes which, many photos at once, each file complete or absent."""

import json
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from itertools import chain, count
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from petseg import storage
from petseg.cores import core_count
from petseg.data.dataset import Progress, palette
from petseg.data.images import SOFTWARE, UNREADABLE
from petseg.errors import DiskError, PetsegError, unknown_name
from petseg.predict.photos import find_photos, key_of
from petseg.predict.png import png
from petseg.predict.segmentation import Segmentation, Summary
from petseg.predict.segmenter import Segmenter

ENDINGS = {kind: f".{kind}.png" for kind in ("mask", "cutout", "overlay", "classes", "trimap")}
ENDINGS["json"] = ".prediction.json"  # output -> how its file's name ends, in the usual format
USUAL = ("mask", "cutout", "overlay")  # written where `--only` names none
# of cut-outs and overlays -> Pillow's name, its options, and the longest side in pixels
FORMATS: dict[str, tuple[str, dict[str, Any], int]] = {
    "png": ("PNG", {}, 2**31 - 1),
    "jpg": ("JPEG", {"quality": 92}, 65_500),
    "webp": ("WEBP", {"quality": 90}, 16_383),
}
# endings of files that are never taken for photos
OURS = (*ENDINGS.values(), *(f".{kind}.{name}" for kind in ("cutout", "overlay") for name in FORMATS))
ENTROPY = "Entropy"  # a text in images of class ids: `Segmentation.entropy`
MARK = "petseg predict"  # how petseg knows its own files: a text in them, in EXIF `SOFTWARE`
WORKERS = min(4, core_count())  # photos in work at once: a cut-out takes some 20 bytes a pixel


@dataclass(frozen=True)
class Look:
    """How cut-outs and overlays are made: as `Segmentation.cutout`, in one of `FORMATS`."""

    matting: bool = False
    background: str | Image.Image | None = None
    crop: bool = False
    format: str = "png"


def _is_written(path: Path) -> bool:
    """Returns whether there is such a file with content: a power cut may leave it empty.

    Not where the system refuses the name, which `predict_job` says.
    """
    try:
        return path.is_file() and path.stat().st_size > 0
    except OSError:
        return False


@dataclass(frozen=True)
class Job:
    """A photo and the files that its prediction is written to."""

    photo: Path
    files: dict[str, Path]  # kind -> file
    note: str = ""  # what is unusual about the files

    def done(self) -> bool:
        """Returns whether every file is there, of this very photo; files appear whole, so what is there is finished."""
        return self.written() and not self.of_others()

    def written(self) -> bool:
        """Returns whether every file is there, whichever photo it is of."""
        return all(map(_is_written, self.files.values()))

    def of_others(self) -> list[Path]:
        """Returns the files that petseg wrote of another photo, or of this one before it changed.

        A file without a key, of an earlier version, is nobody else's; nor is any while the photo cannot be read.
        """
        keys = {path: found for path in self.files.values() if _is_written(path) and (found := written_from(path))}
        try:
            own = key_of(self.photo.read_bytes()) if keys else ""
        except OSError:
            return []
        return [path for path, found in keys.items() if found != own]


@dataclass(frozen=True)
class Outcome:
    """The result of a job: a summary or an error."""

    job: Job
    summary: Summary | None
    error: PetsegError | None

    def result(self) -> Summary:
        """Returns the summary, or raises the error."""
        if self.error is not None:
            raise self.error
        assert self.summary is not None, "there is one of the two"
        return self.summary

    def to_dict(self) -> dict[str, Any]:
        """Returns what `--json` prints."""
        files = {kind: str(path) for kind, path in self.job.files.items()}
        return {"photo": str(self.job.photo), **self.result().to_dict(), "files": files}


def chosen_kinds(only: Sequence[str]) -> tuple[str, ...]:
    """Returns the kinds that were asked for, else the usual ones."""
    for kind in only:
        if kind not in ENDINGS:
            raise unknown_name("--only", kind, ENDINGS)
    return tuple(dict.fromkeys(only)) or USUAL


def plan(
    sources: Sequence[Path], kinds: Sequence[str], out: Path | None, look: Look = Look()
) -> tuple[list[Job], dict[Path, str]]:
    """Returns a job for each photo, sorted by path, and what the folders hold that is left out, with why.

    Files lie beside their photo, or below `out` in the sub-folders of the folder that was named.
    """
    named = [source for source in sources if not (source.name.endswith(OURS) and is_output(source))]
    if sources and not named:
        raise PetsegError(f"{sources[0]}: petseg wrote this file; name the photo itself")
    photos, left_out = find_photos(named, OURS)
    places = [(photo, photo.parent if out is None else out / below.parent) for photo, below in photos]
    jobs = []
    for (photo, place), (own, note) in zip(places, own_names(places), strict=True):
        files = {kind: place / file for kind, file in file_names(own, kinds, look).items()}
        jobs.append(Job(photo, files, note))
    return jobs, left_out


def own_names(places: Sequence[tuple[PurePath, PurePath]]) -> Iterator[tuple[str, str]]:
    """Yields what each photo's files are called before their endings, and a note where that is unusual.

    `places` are photos with the folder that each one's files are written to.
    """
    # some file systems do not tell cases apart, and a plan holds on all of them
    sharing = Counter(str(place / photo.stem).casefold() for photo, place in places)
    taken: dict[str, PurePath] = {}
    for photo, place in places:
        # cat.jpg and cat.png write cat.jpg.mask.png and cat.png.mask.png
        name = photo.stem if sharing[str(place / photo.stem).casefold()] == 1 else photo.name
        names = chain([name], (f"{name}-{number}" for number in count(2)))
        own = next(each for each in names if str(place / each).casefold() not in taken)
        first = taken.get(str(place / name).casefold())
        note = f"written as {own}, since {first} has its name" if first else ""
        taken[str(place / own).casefold()] = photo
        yield own, note


def file_names(own: str, kinds: Sequence[str], look: Look = Look()) -> dict[str, str]:
    """Returns kind -> name of the file of a photo whose own name is given."""
    return {kind: f"{own}{_ending(kind, look)}" for kind in kinds}


def _ending(kind: str, look: Look) -> str:
    return f".{kind}.{look.format}" if kind in ("cutout", "overlay") else ENDINGS[kind]


def is_output(path: Path) -> bool:
    """Returns whether petseg wrote a file."""
    return written_from(path) is not None


def written_from(path: Path) -> str | None:
    """Returns the key of the photo that petseg wrote a file from, "" where the file has none; None of others' files.

    Images carry a text, JSON a field: `MARK`, and the key behind it.
    """
    try:
        if path.suffix == ".json":
            content = path.read_bytes()
            texts = [] if MARK.encode() not in content else [str(json.loads(content).get("software", MARK))]
        else:
            with Image.open(path, formats=[name for name, *_ in FORMATS.values()]) as opened:
                # a PNG's EXIF may lie at its end
                tag = opened.getexif().get(SOFTWARE) if opened.format != "PNG" else None
                texts = [str(opened.info.get("Software")), str(tag)]
    except UNREADABLE:
        return None
    return next((text.removeprefix(MARK).strip() for text in texts if text.partition(MARK)[0] == ""), None)


def check_outputs(jobs: Sequence[Job]) -> None:
    """Checks that no file of these jobs replaces a photo, a file that petseg did not write, or another photo's.

    Beside a photo no other one writes: there the files of a photo that was changed are replaced.
    """
    photos = {job.photo.resolve() for job in jobs}
    for path in (path for job in jobs for path in job.files.values() if _is_written(path)):
        if path.resolve() in photos:
            raise PetsegError(f"{path} is one of the photos and would be replaced; choose another folder (--out)")
        if not is_output(path):
            raise PetsegError(f"{path} is there already and petseg did not write it; move it, or choose --out")
    for job in jobs:
        if elsewhere := [path for path in job.of_others() if path.parent.resolve() != job.photo.parent.resolve()]:
            raise PetsegError(
                f"{elsewhere[0]} is of another photo than {job.photo}, or of this one before it changed; "
                "move it, or choose --out"
            )


def remove_unfinished(jobs: Sequence[Job]) -> None:
    """Removes the half-written files that a killed call left of these jobs."""
    for folder, names in _by_folder(jobs).items():
        storage.remove_unfinished(folder, names)


def check_folders(jobs: Sequence[Job]) -> None:
    """Checks that files can be written to the jobs' folders, which need not be there yet."""
    for folder in _by_folder(jobs):
        storage.check_writable(folder, "choose another folder (--out)")


def _by_folder(jobs: Sequence[Job]) -> dict[Path, list[str]]:
    names: dict[Path, list[str]] = defaultdict(list)
    for path in (path for job in jobs for path in job.files.values()):
        names[path.parent].append(path.name)
    return names


def predict_jobs(
    segmenter: Segmenter,
    jobs: Sequence[Job],
    workers: int = WORKERS,
    *,
    look: Look = Look(),
    on_windows: Progress | None = None,
) -> Generator[Outcome]:
    """Yields the outcome of each job, in order; no more photos are in memory than there are workers.

    A disk that takes no more ends it with `DiskError`. `on_windows` is called as `Segmenter` does, from any worker.
    """
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(partial(predict_job, segmenter, look=look, on_windows=on_windows), jobs)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, photos under way are finished, no more begun


def predict_job(segmenter: Segmenter, job: Job, *, look: Look = Look(), on_windows: Progress | None = None) -> Outcome:
    """Returns the outcome of one photo; its files are written when all of them are made."""
    try:
        result = segmenter(job.photo, on_windows=on_windows)
        contents = contents_of(result, tuple(job.files), look)
        writes = {path: partial(Path.write_bytes, data=contents[kind]) for kind, path in job.files.items()}
        storage.write_together(writes)
        summary = result.summary()
        return Outcome(job, replace(summary, notes=(*summary.notes, job.note)) if job.note else summary, None)
    except DiskError:
        raise
    except PetsegError as error:
        return Outcome(job, None, error)
    except MemoryError:
        return Outcome(job, None, PetsegError(f"{job.photo}: too large for this machine's memory; reduce it first"))


def contents_of(result: Segmentation, kinds: Sequence[str], look: Look = Look()) -> dict[str, bytes]:
    """Returns kind -> content of its file; the files of one photo are made at once."""
    with ThreadPoolExecutor(max(1, len(kinds))) as pool:
        return dict(zip(kinds, pool.map(partial(encoded, result, look=look, key=result.photo.key), kinds), strict=True))


def encoded(result: Segmentation, kind: str, *, look: Look = Look(), key: str = "") -> bytes:
    """Returns the file of one kind: an image, or JSON with a line's end; `key` says in it which photo it is of."""
    software = f"{MARK} {key}".rstrip()
    if kind == "json":
        return (json.dumps({"software": software, **result.summary().to_dict()}, indent=1) + "\n").encode()
    texts = {"Software": software}
    if kind == "classes":
        colours = palette(result.classes)[: len(result.classes)]
        return png(result.class_ids, texts | {ENTROPY: f"{result.entropy:.6f}"}, colours)
    if kind in ("mask", "trimap"):
        return png(result.mask if kind == "mask" else result.trimap, texts)
    if kind == "cutout":
        image = result.cutout(matting=look.matting, background=look.background, crop=look.crop)
    else:
        image = result.overlay()
    name, options, longest = FORMATS[look.format]
    if max(image.size) > longest:
        given = f"{result.photo.name}: its {kind} has {image.width:,} x {image.height:,} pixels"
        raise PetsegError(f"{given}; {look.format} holds at most {longest:,} a side: take --format png")
    if name == "PNG":
        return png(np.asarray(image), texts)
    exif = Image.Exif()
    exif[SOFTWARE] = software
    stream = BytesIO()
    image.save(stream, name, exif=exif, **options)
    return stream.getvalue()
