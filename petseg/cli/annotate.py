"""`petseg annotate`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from petseg.cli.convert import FORMAT_HELP, POLYGONS_HELP
from petseg.cli.options import ThreadsOption
from petseg.cli.predict import FLIP_HELP, MODEL_HELP, RUN_HELP, chosen_segmenter
from petseg.cli.terminal import progress_bar, results_only, resumable
from petseg.units import plural


def annotate(
    photos: Annotated[list[Path], typer.Argument(help="Photos or folders of photos.")],
    out: Annotated[Path, typer.Option(help="New folder to write to.", show_default=False)],
    model: Annotated[str, typer.Option(help=MODEL_HELP, show_default="unet_lite2")] = "",
    run: Annotated[Path | None, typer.Option(help=RUN_HELP, show_default=False)] = None,
    kind: Annotated[str, typer.Option("--format", help=FORMAT_HELP)] = "coco",
    polygons: Annotated[bool, typer.Option("--polygons", help=POLYGONS_HELP)] = False,
    flip: Annotated[bool, typer.Option("--flip", help=FLIP_HELP)] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted call stopped.")] = False,
    threads: ThreadsOption = None,
) -> None:
    """Label photos with a model, to be corrected by hand. Exit code 1 if some photos failed."""
    from petseg.data.formats.convert import FORMATS, Target, check_format, check_names
    from petseg.predict import outputs
    from petseg.predict.annotate import ORDER, plan_task, write_task
    from petseg.threads import thread_count

    threads = thread_count(threads)
    check_format(kind, polygons=polygons)
    jobs, left_out = plan_task(photos, out, resume=resume)
    outputs.remove_unfinished(jobs)
    waiting = [job for job in jobs if not job.done()]
    outputs.check_folders(jobs)
    outputs.check_outputs(jobs)
    with resumable("run the same command with --resume to go on"), results_only(), progress_bar() as advance:
        segmenter = chosen_segmenter(model, run, len(waiting), threads).using(flip=flip)
        check_names(segmenter.classes, FORMATS[kind])
        outcomes = outputs.predict_jobs(segmenter, waiting, threads or outputs.WORKERS)
        failed = []
        for done, outcome in enumerate(outcomes, start=1):
            failed += [str(outcome.error)] if outcome.error else []
            advance("label", done, len(waiting))
        if labelled := [job for job in jobs if job.done()]:
            target = Target(out, segmenter.classes, polygons)
            written, lost = write_task(labelled, target, kind, partial(advance, "write"))
            failed += [f"{name}: {reason}" for name, reason in lost.items()]
    for message in failed:
        print(f"petseg: {message}", file=sys.stderr)
    for path, reason in left_out.items():
        print(f"petseg: left out: {path}: {reason}", file=sys.stderr)
    if labelled:
        print(f"{out}: {plural(written, 'photo')} as {kind}; {out / ORDER}: the least certain first")
    if failed:
        raise typer.Exit(1)
