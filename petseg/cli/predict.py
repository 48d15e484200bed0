"""`petseg predict`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from petseg.cli.options import ThreadsOption
from petseg.cli.terminal import exit_code, progress_bar, results_only, resumable, terminable
from petseg.errors import DiskError, PetsegError, unknown_name
from petseg.units import plural

if TYPE_CHECKING:
    from petseg.data.dataset import Class
    from petseg.predict.outputs import Job, Look, Outcome
    from petseg.predict.segmenter import Segmenter

PHOTOS_HELP = "Photos, folders of photos, one URL such as s3://photos, or - for one photo on stdin."
MODEL_HELP = "A shipped model or an ONNX file of `petseg export`."
RUN_HELP = "Use a trained run; needs the extra `export`."
ONLY_HELP = "mask, cutout, overlay, classes, trimap or json. Repeatable."
JSON_HELP = "Print a line of JSON for each photo; write files only where --only names them."
SCALES_HELP = "Average over sizes of the photo: 1,1.25 takes the model's own and a larger one."
FOREGROUND_HELP = "Classes to cut out, as cat,dog; the others become background."
RAW_HELP = "Keep small pieces and holes in cut-outs, overlays and boxes, and what is hardly a pet."
FLIP_HELP = "Average with what is seen in the mirrored photo, at twice the time."
ZOOM_HELP = "Look a second time, closer, at small objects. Default: shipped models do, others do not."
WINDOWS_HELP = "Look through windows of the photo, its longer side at most this many pixels; 0: at its own size."
MATTING_HELP = "Finer hair and no holes in cut-outs, in more time; needs the extra `matting`."
BACKGROUND_HELP = "Lay cut-outs on a colour (white, #ff8800) or an image."
OUT_HELP = "Folder to write to, or a URL such as s3://masks."
RAY_HELP = "Predict a folder or a bucket on a Ray cluster: auto, HOST:6379 or ray://HOST:10001; extra `cluster`."
FORMAT_HELP = "png, jpg or webp for cut-outs and overlays."


def predict(
    photos: Annotated[list[str], typer.Argument(help=PHOTOS_HELP)],
    model: Annotated[str, typer.Option(help=MODEL_HELP, show_default="unet_lite2")] = "",
    run: Annotated[Path | None, typer.Option(help=RUN_HELP, show_default=False)] = None,
    out: Annotated[str | None, typer.Option(help=OUT_HELP, show_default="beside each photo")] = None,
    only: Annotated[list[str] | None, typer.Option(help=ONLY_HELP, show_default="mask, cutout, overlay")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
    foreground: Annotated[str, typer.Option(help=FOREGROUND_HELP, show_default="the model's")] = "",
    raw: Annotated[bool, typer.Option("--raw", help=RAW_HELP)] = False,
    flip: Annotated[bool, typer.Option("--flip", help=FLIP_HELP)] = False,
    scales: Annotated[str, typer.Option(help=SCALES_HELP)] = "1",
    zoom: Annotated[bool | None, typer.Option("--zoom/--no-zoom", help=ZOOM_HELP, show_default=False)] = None,
    windows: Annotated[int | None, typer.Option(min=0, help=WINDOWS_HELP, show_default="as it was trained")] = None,
    matting: Annotated[bool, typer.Option("--matting", help=MATTING_HELP)] = False,
    background: Annotated[str | None, typer.Option(help=BACKGROUND_HELP, show_default=False)] = None,
    crop: Annotated[bool, typer.Option("--crop", help="Crop cut-outs to what is seen.")] = False,
    kind: Annotated[str, typer.Option("--format", help=FORMAT_HELP)] = "png",
    resume: Annotated[bool, typer.Option("--resume", help="Skip photos whose files are all there.")] = False,
    threads: ThreadsOption = None,
    ray: Annotated[str | None, typer.Option(help=RAY_HELP, show_default=False)] = None,
) -> None:
    """Write a mask, a cut-out and an overlay of each photo. Exit code 1 if some of several photos failed."""
    from petseg.predict import outputs
    from petseg.threads import thread_count

    kinds = outputs.chosen_kinds(only or ()) if only or not as_json else ()
    look = _look(outputs.Look(matting, background, crop, kind), kinds)
    threads = thread_count(threads)
    options: dict[str, Any] = {"flip": flip, "raw": raw, "windows": windows, "zoom": zoom}
    options |= {"scales": _scales(scales), "foreground": _names(foreground)}

    def chosen(photos: int) -> Segmenter:
        return chosen_segmenter(model, run, photos, threads, windows).using(**options)

    if ray is not None or any("://" in place for place in (*photos, out or "")):
        from petseg.predict.runtimes import WORTH_STARTING

        # or more: how many a bucket holds is known when all are listed
        _predict_stored(partial(chosen, WORTH_STARTING), options, (photos, out), kinds, look, ray, threads, as_json)
        return

    if resume and not kinds:
        raise PetsegError("--resume was given with --json alone, which writes no file to go by; name files with --only")
    if photos == ["-"]:
        if out is not None or resume or len(kinds) + as_json != 1:
            raise PetsegError("- reads one photo and prints one thing: give a single --only, or --json, and no --out")
        with results_only() as results:
            _predict_stdin(chosen(1), kinds, look, results)
        return
    jobs, left_out = outputs.plan([Path(photo) for photo in photos], kinds, None if out is None else Path(out), look)
    if resume:
        outputs.remove_unfinished(jobs)
        total, jobs = len(jobs), [job for job in jobs if not job.done()]
        print(f"{total - len(jobs)} of {total} photos are done already", file=sys.stderr)
    outputs.check_folders(jobs)
    outputs.check_outputs(jobs)
    with results_only() as results:
        segmenter = chosen(len(jobs))
        workers = threads or outputs.WORKERS
        if len(photos) > 1 or Path(photos[0]).is_dir():
            print(f"{segmenter.name} by {segmenter.runtime}, {plural(workers, 'photo')} at once", file=sys.stderr)
            outcomes = outputs.predict_jobs(segmenter, jobs, workers, look=look)
            written = f"{', '.join(kinds)} {f'in {out}' if out else 'beside each photo'}"
            told = None if as_json else (segmenter.classes, written)
            _print_many(outcomes, jobs, left_out, results, told)
            return
        with progress_bar() if segmenter.geometry.fit == "crop" else nullcontext() as advance:
            on_windows = partial(advance, "windows") if advance else None
            found = list(outputs.predict_jobs(segmenter, jobs, workers, look=look, on_windows=on_windows))
        for outcome in found:  # none, if it is done already
            print(json.dumps(outcome.to_dict()) if as_json else _line(outcome, segmenter.classes), file=results)


def _predict_stored(
    choose: Callable[[], Segmenter],
    options: Mapping[str, Any],
    places: tuple[list[str], str | None],
    kinds: tuple[str, ...],
    look: Look,
    ray: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Predicts what lies in a store, or on a cluster; the call may be repeated until all is done."""
    from petseg.predict import bulk
    from petseg.predict.manifest import Finished, Manifest

    photos, out = places
    if len(photos) != 1 or out is None or photos == ["-"]:
        raise PetsegError(
            "URLs and --ray take one folder or bucket, and an --out that the manifest is written to as well"
        )
    with resumable("run the same command again to go on"), results_only() as results:
        segmenter = choose()
        work = bulk.work_of(segmenter, options, (photos[0], out), kinds, look)
        work.listing.check()
        if ray is not None:
            from petseg.cluster import connect

            connect(ray)
        manifest = Manifest(work.listing.out, work.schema)
        finished = Finished(work.listing.out)
        earlier = finished.failed()
        if len(finished):
            print(f"{plural(len(finished), 'photo')} are in the manifest already and left out", file=sys.stderr)
        tables = bulk.predict_here(work, segmenter, threads) if ray is None else bulk.predict_on_ray(work, threads)
        counts, failed = Counter[str](), 0
        with progress_bar() as advance:
            for rows in bulk.recorded(tables, manifest):
                counts.update(rows["status"].to_pylist())
                counts["empty"] += rows["foreground"].to_pylist().count(False)
                if as_json:
                    results.writelines(f"{json.dumps(row)}\n" for row in rows.to_pylist())
                failed = counts["failed"] + counts["unread"]
                advance("predict", counts["done"] + failed, None, f"{failed} failed" if failed else "")
        if not as_json:
            print(_summary(counts["done"] + failed, counts["empty"], failed), file=results)
    if failed or earlier:
        manifested = work.listing.out.name("manifest")
        number = f"{plural(failed + earlier, 'photo')} failed{f', {earlier:,} in earlier calls' if earlier else ''}"
        print(f"petseg: {number}; {manifested} says why (column `reason`)", file=sys.stderr)
        raise typer.Exit(1)


def _summary(total: int, empty: int, failed: int) -> str:
    """Returns what came of some photos: all, those without foreground, those that failed."""
    return f"{plural(total, 'photo')}: {total - failed - empty} with foreground, {empty} without, {failed} failed"


def _look(look: Look, kinds: tuple[str, ...]) -> Look:
    """Returns the look of cut-outs with its background opened, if the kinds can have it."""
    from dataclasses import replace

    from petseg.predict.cutout import opened_background
    from petseg.predict.outputs import FORMATS

    if look.format not in FORMATS:
        raise unknown_name("--format", look.format, FORMATS)
    for option in ("matting", "background", "crop"):
        if getattr(look, option) and "cutout" not in kinds:
            raise PetsegError(f"--{option} is of cut-outs, and none is written; add --only cutout or leave it out")
    if look.format != "png" and not {"cutout", "overlay"} & {*kinds}:
        raise PetsegError(f"--format {look.format} is of cut-outs and overlays, and none is written; leave it out")
    if look.format == "jpg" and "cutout" in kinds and look.background is None:
        raise PetsegError("--format jpg holds no transparency, and a cut-out has it; add --background or take webp")
    if look.matting:
        import scipy  # noqa: F401 - an error now if it is missing, not after the first photo
    return look if look.background is None else replace(look, background=opened_background(look.background))


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]


def _scales(given: str) -> list[float]:
    try:
        return [float(part) for part in given.split(",")]
    except ValueError:
        raise PetsegError(f"--scales {given!r} is no list of numbers; give 1,1.25 or the like") from None


def chosen_segmenter(
    model: str, run: Path | None, photos: int, threads: int | None, windows: int | None = None
) -> Segmenter:
    """Returns the model for so many photos: one takes all threads, several take one each; a run is exported first."""
    from petseg.memory import give_back_freed_memory
    from petseg.predict.runtimes import chosen_runtime
    from petseg.predict.segmenter import Segmenter

    name: str | Path = model
    if run is not None:
        if model:
            raise PetsegError(f"--run {run} was given with --model {model}; choose one: a run holds its own model")
        from petseg.export.onnx import exported_run

        name = exported_run(run)
    # one call of a shipped model, which are trained on whole photos; through windows a photo takes many
    one_photo = photos == 1 and run is None and windows is None and not model.endswith(".onnx")
    if one_photo:
        give_back_freed_memory()
    runtime = chosen_runtime(photos)
    return Segmenter(name, threads=1 if photos > 1 else threads, runtime=runtime, one_photo=one_photo)


def _print_many(
    outcomes: Generator[Outcome],
    jobs: Sequence[Job],
    left_out: Mapping[Path, str],
    results: TextIO,
    told: tuple[Sequence[Class], str] | None,  # the classes, and which files lie where; None: lines of JSON
) -> None:
    from petseg.predict.photos import UNREAD_FOLDER

    failed, noted, empty, made = 0, [], 0, 0
    try:
        with terminable(), closing(outcomes), progress_bar() as advance:
            for done, outcome in enumerate(outcomes, start=1):
                if outcome.summary is None:
                    failed += 1
                    print(f"petseg: {outcome.error}", file=sys.stderr)
                else:
                    made += 1
                    empty += not outcome.summary.foreground
                    if told is None:
                        print(json.dumps(outcome.to_dict()), file=results)
                    elif outcome.summary.notes or not outcome.summary.foreground:
                        noted.append(_line(outcome, told[0]))
                advance("predict", done, len(jobs), f"{failed} failed" if failed else "")
    except (DiskError, KeyboardInterrupt) as error:
        _stop(error, jobs, made)
    unread = {path: reason for path, reason in left_out.items() if reason.startswith(UNREAD_FOLDER)}
    for path, reason in unread.items():
        print(f"petseg: {path}: {reason}", file=sys.stderr)
    noted += _left_out(left_out, as_json=told is None)
    if told is not None:
        noted.append(f"{_summary(len(jobs), empty, failed)}; {told[1]}")
    for line in noted:
        print(line, file=results)
    if failed or unread:
        raise typer.Exit(1)


def _stop(error: DiskError | KeyboardInterrupt, jobs: Sequence[Job], made: int) -> NoReturn:
    """Ends a call before its last photo with how many are done, of which `made` were seen to be."""
    files = any(job.files for job in jobs[:1])
    number = sum(job.written() for job in jobs) if files else made  # photos under way were finished meanwhile
    done = f"{number:,} of {plural(len(jobs), 'photo')} are done{'; run it again with --resume' if files else ''}"
    if isinstance(error, DiskError):
        raise DiskError(f"{error}; {done}") from None
    print(f"petseg: interrupted: {done}", file=sys.stderr)
    raise typer.Exit(exit_code(error)) from None


def _left_out(left_out: Mapping[Path, str], *, as_json: bool) -> list[str]:
    from petseg.predict.photos import reasons

    if as_json:
        return [json.dumps({"left_out": str(path), "reason": reason}) for path, reason in left_out.items()]
    return [f"{len(left_out):,} left out: {reasons(left_out)}"] if left_out else []


def _predict_stdin(segmenter: Segmenter, kinds: tuple[str, ...], look: Look, results: TextIO) -> None:
    from petseg.predict.outputs import encoded
    from petseg.predict.photos import Photo
    from petseg.predict.segmentation import in_words

    if sys.stdin is None:
        raise PetsegError("stdin is closed; pipe a photo into it, or name its file")
    result = segmenter(Photo(sys.stdin.buffer.read(), "stdin"))
    if not kinds:
        print(json.dumps({"photo": "-", **result.summary().to_dict()}), file=results)
        return
    for note in (*(() if result.boxes else (in_words(result.summary(), result.classes),)), *result.photo.notes):
        print(f"petseg: stdin: {note}", file=sys.stderr)
    results.buffer.write(encoded(result, kinds[0], look=look, key=result.photo.key))


def _line(outcome: Outcome, classes: Sequence[Class]) -> str:
    from petseg.predict.segmentation import in_words

    summary = outcome.result()
    parts = [in_words(summary, classes), *summary.notes, *map(str, outcome.job.files.values())]
    return f"{outcome.job.photo}: {'; '.join(parts)}"
