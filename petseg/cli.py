"""The command line: `petseg predict | serve | export | bench | data | models | train | evaluate | compare | study |
report`.

Each subcommand is a public function. Nothing heavy is imported before a subcommand needs it.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petseg import __version__
from petseg.errors import PetsegError

if TYPE_CHECKING:
    from petseg.data.cache import Prepared
    from petseg.experiments.compare import Stage
    from petseg.experiments.study.recipe import Study
    from petseg.predict.segmenter import Segmenter
    from petseg.training.loop import Hardware

app = typer.Typer(
    name="petseg",
    help="U-Net or SegNet for cats and dogs: trains both on the Oxford-IIIT Pet Dataset and compares them fairly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: petseg compare --quick",
)
data_app = typer.Typer(help="Get, check and prepare the data set.", no_args_is_help=True)
app.add_typer(data_app, name="data")

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Folder with images/ and annotations/, or with the two archives. Default: PETSEG_DATA, then what "
        "`petseg data get` downloaded.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Change a field of the recipe, for example --set epochs=10 or --set data.task=pet. Repeatable."
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1 or mps. Default: cuda where there is one, else cpu.", show_default=False),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on in the folder of an interrupted run.")]


EXTRA_OF = {
    **dict.fromkeys(("torch", "safetensors", "scipy", "matplotlib", "jinja2"), "train"),
    **dict.fromkeys(("onnx", "onnxscript"), "export"),
    "openvino": "openvino",
    "pymatting": "matting",
    **dict.fromkeys(("fastapi", "uvicorn", "python_multipart"), "serve"),
}
"""Package that the light install lacks -> the extra that brings it."""


def main() -> None:
    """Runs the command line; a caller's mistake is one line on stderr and exit code 2."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a sign that the terminal lacks must not end a run of hours
            stream.reconfigure(errors="replace")
    try:
        app()
    except PetsegError as error:
        if debug:
            raise
        print(f"petseg: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if debug or error.name not in EXTRA_OF:
            raise
        print(f"petseg: this command needs {error.name}; pip install 'petseg[{EXTRA_OF[error.name]}]'", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if debug or type(error).__name__ != "OutOfMemoryError":  # torch's own, which is not imported here
            raise
        print("petseg: the GPU's memory is full; lower train.batch_size or data.size with --set", file=sys.stderr)
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"petseg {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. May stand anywhere.")] = False,
) -> None:
    """Options before any subcommand; `main` takes --debug out before they are parsed."""


# --- data ------------------------------------------------------------------------------------------------------------


@data_app.command("get")
def data_get(
    data: Annotated[
        Path | None, typer.Option("--data", help="Where to put the archives.", show_default="the user's data folder")
    ] = None,
) -> None:
    """Download the two official archives (811 MB), verified; an interrupted transfer goes on where it stopped."""
    from petseg.data.cache import default_data_folder

    folder = data or default_data_folder()
    _download(folder)
    print(f"{folder}: images.tar.gz and annotations.tar.gz, checksums right")
    if data is not None:
        print(f"Use it with --data {shlex.quote(str(folder))} or PETSEG_DATA")


@data_app.command("check")
def data_check(data: DataOption = None) -> None:
    """Open every pair; print what was found and what happens to it. Exit code 1 if something is left out."""
    from rich.console import Console
    from rich.table import Table

    from petseg.data.cache import open_data
    from petseg.data.check import check_pairs

    folder = _data_folder(data)
    contents, source = open_data(folder)
    with _bar() as advance:
        findings = check_pairs(contents, on_progress=lambda done, total: advance("check", done, total))
    table = Table(title=f"{folder}: {source}")
    for column, justify in (("found", "left"), ("files", "right"), ("what happens", "left"), ("names", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for finding in findings:
        shown = ", ".join(finding.names[:6]) + (f", ... (+{len(finding.names) - 6})" if len(finding.names) > 6 else "")
        table.add_row(finding.found, f"{finding.count:,}", finding.action, shown)
    Console().print(table)
    if any(finding.left_out for finding in findings):
        raise typer.Exit(1)


@data_app.command("prepare")
def data_prepare(
    data: DataOption = None,
    size: Annotated[int, typer.Option(help="Side of the square in pixels, 16 to 2048.")] = 128,
) -> None:
    """Decode and resize the whole data set once, into the cache that training reads."""
    prepared = _prepare(_data_folder(data), _size(size))
    print(f"{prepared.folder}: {len(prepared.pets):,} pairs at {size} px")


# --- models ----------------------------------------------------------------------------------------------------------


@app.command()
def models(
    size: Annotated[int, typer.Option(help="Side of the image in pixels, 16 to 2048.")] = 128,
    classes: Annotated[int, typer.Option(min=2, max=255, help="Classes of the output.")] = 3,
) -> None:
    """List the models with parameters, multiply-accumulates and peak activation memory for one image."""
    from rich.console import Console
    from rich.table import Table

    from petseg.config import ModelConfig
    from petseg.evaluation.cost import count_cost
    from petseg.models import MODELS, TITLES
    from petseg.report.tables import byte_size, count

    table = Table(title=f"one image of {size} x {size} px, {classes} classes, float32")
    for column in ("model", "", "parameters", "MACs", "activations", "each further image, training"):
        table.add_column(column, justify="left" if column in ("model", "") else "right")
    for name in MODELS:
        cost = count_cost(ModelConfig(name=name), classes, _size(size))
        table.add_row(
            name,
            TITLES[name],
            count(cost.parameters),
            count(cost.macs),
            byte_size(cost.activation_bytes),
            byte_size(cost.training_activation_bytes_per_image),
        )
    Console().print(table)


# --- training --------------------------------------------------------------------------------------------------------


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a TOML file.")] = "default",
    model: Annotated[str, typer.Option(help="unet, segnet, unet_paper or segnet_paper.")] = "unet",
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/RECIPE-MODEL")] = None,
    settings: SetOption = None,
    resume: ResumeOption = False,
    device: DeviceOption = None,
) -> None:
    """Train one model into a run folder."""
    from petseg.config import load_recipe
    from petseg.evaluation.cost import count_cost
    from petseg.models import TITLES
    from petseg.training.loop import train as train_model
    from petseg.training.runs import refuse_existing

    config = load_recipe(recipe, settings or ()).for_model(model)
    count_cost(config.model, 3, config.data.size)  # an option that the model lacks is told before minutes of work
    run = out or Path("runs") / f"{Path(recipe).stem}-{model}"
    refuse_existing(run, resume=resume)
    hardware = _hardware(config.train.precision, device)
    prepared = _prepare(_data_folder(data), config.data.size)
    with _resumable(), _bar() as advance:
        history = train_model(
            config,
            prepared,
            run,
            hardware=hardware,
            resume=resume,
            on_progress=lambda progress: advance(
                f"train {TITLES[model]}",
                progress.step,
                progress.steps,
                progress.words,
            ),
        )
    last = history[-1]
    print(
        f"{run}: epoch {last['epoch']}, val loss {last['val_loss']:.4f}, "
        f"val mIoU {last['val_miou']:.4f} at the training size"
    )


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    split: Annotated[str, typer.Option(help="val, or test for the final figure of a finished run.")] = "val",
    data: DataOption = None,
    device: DeviceOption = None,
) -> None:
    """Score a trained run on a split, at each image's own size; kept in the run folder."""
    from rich.console import Console
    from rich.table import Table

    from petseg.evaluation.evaluate import evaluate_run
    from petseg.training.runs import read_config

    config = read_config(run)
    hardware = _hardware(config.train.precision, device)
    prepared = _prepare(_data_folder(data), config.data.size)
    with _bar() as advance:
        scores = evaluate_run(
            run, prepared, hardware, split=split, on_progress=lambda done, total: advance(f"score {split}", done, total)
        ).scores
    print(f"{run}: {split}, {scores['images']} images, epoch {scores['epoch']}")
    table = Table()
    for column in ("class", "IoU", "Dice", "boundary F"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name in scores["iou"]:
        table.add_row(name, *(_score(scores[kind][name]) for kind in ("iou", "dice", "boundary_f")))
    table.add_row("mean", *(_score(scores[kind]) for kind in ("miou", "mean_dice", "mean_boundary_f")), style="bold")
    Console().print(table)
    print(
        f"pixel accuracy {scores['pixel_accuracy']:.4f}, "
        f"cross-entropy {scores['cross_entropy']:.4f} at {scores['cross_entropy_frame']}"
    )


@app.command()
def compare(
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A taste in minutes: small pictures, few epochs, validation only; draws pets if none can be had.",
        ),
    ] = False,
    recipe: Annotated[
        str, typer.Option(help="A shipped recipe (default, base, small, quick, speedrun) or a TOML file.")
    ] = "default",
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the comparison.", show_default="runs/compare-RECIPE")
    ] = None,
    settings: SetOption = None,
    resume: ResumeOption = False,
    device: DeviceOption = None,
) -> None:
    """Train U-Net and SegNet under one budget, score both, print a table and write report.html."""
    from petseg.config import load_recipe
    from petseg.experiments.compare import compare as compare_models
    from petseg.report import write_report
    from petseg.report.page import TASTE
    from petseg.training.runs import refuse_existing

    if quick and recipe != "default":
        raise PetsegError(f"--quick was given with --recipe {recipe}; choose one: --quick is the recipe `quick`")
    name = "quick" if quick else recipe
    loaded = load_recipe(name, settings or ())
    folder = out or Path("runs") / f"compare-{Path(name).stem}"
    refuse_existing(folder, resume=resume)
    hardware = _hardware(loaded.train.precision, device)
    found, made = _data_or_made(data) if quick else (_data_or_download(data), False)
    prepared = _prepare(found, loaded.data.size)
    started = time.monotonic()
    with _resumable(), _bar() as advance:

        def show(stage: Stage) -> None:
            advance(stage.title, stage.done, stage.total, stage.detail)

        comparison = compare_models(
            loaded,
            prepared,
            folder,
            hardware=hardware,
            command=_compare_command(quick, recipe, settings or [], device),
            resume=resume,
            made_data=made,
            final=not quick,
            on_stage=show,
        )
    report_path = write_report(folder / "comparison.json")
    _print_comparison(comparison)
    if quick:
        print(TASTE)
    print(f"took {(time.monotonic() - started) / 60:.1f} minutes")
    print(f"report: {report_path.resolve()}")


@app.command()
def study(
    recipe: Annotated[str, typer.Argument(help="The shipped study or a TOML file.")] = "study",
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study.", show_default="runs/RECIPE")] = None,
    only: Annotated[
        str | None, typer.Option(help="Make one shard of the runs, for example 3/8.", show_default=False)
    ] = None,
    collect: Annotated[
        list[Path] | None,
        typer.Option(help="Copy what a shard's folder holds into this one, and run nothing. Repeatable."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Print the runs and the time they take, and run nothing.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Runs made at once; they share the cores.")] = 1,
    device: DeviceOption = None,
) -> None:
    """Make a matrix of runs, each once; Ctrl-C is safe, and the same command goes on."""
    from petseg.experiments.study import run as studies
    from petseg.experiments.study.recipe import load_study
    from petseg.report.tables import duration

    loaded = load_study(recipe)
    folder = out or Path("runs") / Path(recipe).stem
    if (only is not None) + bool(collect) + show > 1:
        raise PetsegError("--only, --collect and --list exclude each other; give one")
    if show:
        _print_runs(loaded, folder)
        return
    if collect:
        manifest = studies.collect(loaded, folder, collect)
    else:
        shard = studies.parse_shard(only) if only else studies.Shard()
        found = _data_folder(data)
        prepared = {size: _prepare(found, size) for size in studies.sizes(loaded)}
        _hardware(loaded.train.precision, device)
        with _resumable("run the same command again to go on"), _bar() as advance:

            def tell(status: studies.Status) -> None:
                left = f"{status.words}; {duration(status.left)} left"
                advance("study", round(status.done), round(status.total), left)
                if status.run_ended:
                    print(left, flush=True)

            manifest = studies.run_study(
                loaded, folder, found, prepared, shard=shard, device=device, at_once=jobs, tell=tell
            )
    states = [run["state"] for run in manifest["runs"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    print(f"{folder}: {len(states)} runs: {counts}")
    if "waiting" in states and not collect:
        print("What waits needs other shards' runs: merge them with --collect, then run the shards again from there")


@app.command()
def report(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="A comparison's or a study's folder, a comparison.json or a findings.json."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the page.", show_default="report.html beside it")
    ] = None,
) -> None:
    """Write the page of a comparison or of a study, complete or not, from its JSON."""
    from petseg.report import write_report, write_study_report

    if (source / "study.json").is_file():
        from petseg.experiments.study.findings import write_findings

        with _bar() as advance:
            source = write_findings(source, lambda done, total: advance("resample", done, total))
    if source.name == "findings.json":
        print(f"report: {write_study_report(source, out).resolve()}")
        return
    path = source / "comparison.json" if source.is_dir() else source
    print(f"report: {write_report(path, out).resolve()}")


# --- prediction ------------------------------------------------------------------------------------------------------


@app.command()
def predict(
    photos: Annotated[list[str], typer.Argument(help="Photos, folders of photos, or - for one photo on stdin.")],
    model: Annotated[
        str, typer.Option(help="A shipped model or an ONNX file of `petseg export`.", show_default="unet")
    ] = "",
    run: Annotated[
        Path | None, typer.Option(help="Use a trained run; needs the extra `export`.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to.", show_default="beside each photo")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="mask, cutout, overlay, trimap or json. Repeatable.", show_default="mask, cutout, overlay"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON a photo; write files only where --only names them.")
    ] = False,
    flip: Annotated[
        bool, typer.Option("--flip", help="Average with what is seen in the mirrored photo, at twice the time.")
    ] = False,
    matting: Annotated[
        bool,
        typer.Option("--matting", help="Finer hair and no holes in cut-outs, in more time; needs the extra `matting`."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Skip photos whose files are all there.")] = False,
) -> None:
    """Write a mask, a cut-out and an overlay of each photo. Exit code 1 if some of several photos failed."""
    import warnings

    from petseg.predict.outputs import check_folders, chosen_kinds, plan, predict_job, predict_jobs, remove_halves

    warnings.filterwarnings("ignore", module="PIL")  # of damaged metadata in pictures that decode
    kinds = chosen_kinds(only or ()) if only or not as_json else ()
    if matting:
        import pymatting  # noqa: F401 - told now if it is missing, not after the first photo

        if "cutout" not in kinds:
            raise PetsegError("--matting is of cut-outs, and none is written; add --only cutout or leave it out")
    if resume and not kinds:
        raise PetsegError("--resume was given with --json alone, which writes no file to go by; name files with --only")
    if photos == ["-"]:
        if out is not None or resume or len(kinds) + as_json != 1:
            raise PetsegError("- reads one photo and prints one thing: give a single --only, or --json, and no --out")
        _predict_stdin(_segmenter(model, run, flip, photos=1), kinds, matting)
        return
    jobs = plan([Path(photo) for photo in photos], kinds, out)
    if resume:
        remove_halves(jobs)
        total, jobs = len(jobs), [job for job in jobs if not job.done()]
        print(f"{total - len(jobs)} of {total} photos are done already", file=sys.stderr)
    if kinds:
        check_folders([out] if out is not None else [job.photo.parent for job in jobs])
    segmenter = _segmenter(model, run, flip, photos=len(jobs))
    if len(photos) == 1 and not Path(photos[0]).is_dir():
        for job in jobs:
            outcome = predict_job(segmenter, job, matting=matting)
            if outcome.error is not None:
                raise outcome.error
            assert outcome.summary is not None, "no error, so it has one"
            print(_told(outcome.summary, as_json=as_json))
        return
    failed, noted, empty = [], [], 0
    with _bar() as advance:
        for done, outcome in enumerate(predict_jobs(segmenter, jobs, matting=matting), start=1):
            if outcome.summary is None:
                failed.append(str(outcome.error))
            else:
                empty += not outcome.summary["pet"]
                if as_json:
                    print(_told(outcome.summary, as_json=True))
                elif outcome.summary["notes"] or not outcome.summary["pet"]:
                    noted.append(_told(outcome.summary, as_json=False))
            advance(f"predict with {segmenter.name}", done, len(jobs))
    for told in failed:
        print(f"petseg: {told}", file=sys.stderr)
    for told in noted:
        print(told)
    if not as_json:
        print(
            f"{len(jobs)} photos: {len(jobs) - len(failed) - empty} with a pet, {empty} without, {len(failed)} failed"
        )
    if failed:
        raise typer.Exit(1)


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="The file to write.", show_default=False)],
    model: Annotated[str, typer.Option(help="A shipped model.", show_default=False)] = "",
    run: Annotated[Path | None, typer.Option(help="A trained run; needs the extra export.", show_default=False)] = None,
    kind: Annotated[
        str, typer.Option("--format", help="onnx, torch (a torch.export program) or openvino.", show_default="by --out")
    ] = "",
    fp16: Annotated[bool, typer.Option(help="Store a run's large weights in half the bytes; not for torch.")] = True,
) -> None:
    """Write a model as one file for other programs; checked against the original first."""
    from petseg.export.openvino import chosen_format, export_shipped

    if (run is None) == (not model):
        raise PetsegError("give one of --model NAME, a shipped model, and --run RUN, a trained one")
    chosen = chosen_format(out, kind)
    if run is None:
        parity, original = export_shipped(model, out, chosen).agreement, "the shipped model"
    else:
        from petseg.export.onnx import export_run

        parity, original = export_run(run, out, chosen, fp16=fp16)["parity"]["agreement"], "torch"
    print(f"{out}: agrees with {original} on {100 * parity:.3f} % of the pixels of drawn pets")


@app.command()
def bench(
    model: Annotated[
        list[str] | None,
        typer.Option(help="A shipped model or an ONNX file. Repeatable.", show_default="all shipped models"),
    ] = None,
    size: Annotated[
        str, typer.Option(help="Sides in pixels, for example 128,256.", show_default="each model's own")
    ] = "",
    threads: Annotated[str, typer.Option(help="Threads of one call, for example 1,2.")] = "1",
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="torch, torch-bf16, onnxruntime, onnxruntime-int8, openvino or openvino-bf16. Repeatable.",
            show_default="all at hand",
        ),
    ] = None,
    turns: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 7,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="JSON to write.", show_default=False)] = None,
) -> None:
    """Measure time and memory of one picture, for every runtime at hand, taking turns on this machine."""
    from rich.console import Console
    from rich.table import Table

    from petseg.data.cache import find_data
    from petseg.export.bench import bench as bench_models
    from petseg.predict.segmenter import shipped_models
    from petseg.storage import write_json

    sizes = [_size(side) for side in _whole_numbers(size, "--size")]
    counts = _whole_numbers(threads, "--threads")
    with _bar() as advance:
        found = bench_models(
            model or shipped_models(),
            sizes,
            counts,
            runtime or (),
            turns=turns,
            data=find_data(data),
            on_progress=lambda done, total: advance("bench", done, total),
        )
    machine = found["environment"]
    extras = ", ".join(found["instructions"])
    table = Table(
        padding=(0, 0),
        title=f"one picture at a time, {turns} turns; {machine['processor']} ({extras})",
        caption=", ".join(
            f"{name} {number}" for name, number in {"torch": machine["torch"], **found["versions"]}.items()
        ),
    )
    for column in ("model", "px", "threads", "runtime", "p50 ms", "by turn", "p95", "1/s", "MB"):
        table.add_column(column, justify="left" if column in ("model", "runtime") else "right", no_wrap=True)
    for row in sorted(found["rows"], key=lambda row: (row["size"], row["threads"], row["model"])):
        table.add_row(
            row["model"],
            str(row["size"]),
            str(row["threads"]),
            row["title"],
            f"{row['p50_ms']:.2f}",
            f"{row['p50_low_ms']:.1f}-{row['p50_high_ms']:.1f}",
            f"{row['p95_ms']:.1f}",
            f"{row['images_per_second']:.0f}",
            "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
        )
    Console().print(table)
    for name, reason in found["not_measured"].items():
        print(f"not measured: {name}: {reason}")
    if out is not None:
        words = ["petseg", "bench", *(word for name in model or () for word in ("--model", name))]
        words += [*(("--size", size) if size else ()), "--threads", threads]
        words += [word for name in runtime or () for word in ("--runtime", name)]
        write_json(out, {"kind": "benchmark", "command": shlex.join([*words, "--turns", str(turns)]), **found})


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1, this machine alone")
    ] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free one.", show_default="7860")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a limit: upload_bytes, pixels, concurrent, queue, held_bytes or seconds. Repeatable.",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Open a page that tries both models on your own photo, and an API beside it, until Ctrl-C."""
    import threading
    import webbrowser

    from petseg.config import load_serving

    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    config = load_serving(settings or (), **given)
    from petseg.serve.server import is_loopback
    from petseg.serve.server import serve as serve_pages

    if not is_loopback(config.host):
        print(f"petseg: warning: {config.host} lets others on the network in; there is no password", file=sys.stderr)

    def ready(url: str) -> None:
        print(f"{url}  (Ctrl-C stops it)", flush=True)
        if show and _has_screen():
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

    serve_pages(config, ready)


# --- around ----------------------------------------------------------------------------------------------------------


def _has_screen() -> bool:
    """Returns whether a window can open; a browser that is text would take the terminal."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _whole_numbers(text: str, option: str) -> list[int]:
    """Returns the numbers of a list like 128,256, each above zero."""
    numbers = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if len(numbers) != len(text.split(",")) * bool(text) or 0 in numbers:
        raise PetsegError(f"{option} is {text!r}; wanted whole numbers above zero, for example 1,2")
    return numbers


def _size(size: int) -> int:
    """Returns the size if a recipe may have it; the recipe's own field says which."""
    from petseg.config import DataConfig, validated

    return validated(DataConfig, {"size": size}, source="--size").size


def _segmenter(model: str, run: Path | None, flip: bool, photos: int) -> Segmenter:
    """Returns the model for so many photos: one takes all cores, several take one each."""
    from petseg.predict.runtimes import chosen_runtime
    from petseg.predict.segmenter import Segmenter

    if run is not None and model:
        raise PetsegError(f"--run {run} was given with --model {model}; choose one: a run holds its own model")
    name: str | Path = model
    if run is not None:
        from petseg.export.onnx import exported_run

        name = exported_run(run)
    return Segmenter(name, threads=1 if photos > 1 else None, runtime=chosen_runtime(photos), flip=flip)


def _predict_stdin(segmenter: Segmenter, kinds: tuple[str, ...], matting: bool) -> None:
    from petseg.predict.outputs import encoded
    from petseg.predict.photos import Photo

    (found,) = segmenter.batch([Photo(sys.stdin.buffer.read(), "stdin")])
    if not kinds:
        print(_told({"photo": "-", **found.summary()}, as_json=True))
        return
    for told in (*(() if found.boxes else ("no pet found",)), *found.photo.notes):
        print(f"petseg: stdin: {told}", file=sys.stderr)
    sys.stdout.buffer.write(encoded(found, kinds[0], matting=matting))


def _told(summary: dict[str, Any], *, as_json: bool) -> str:
    """Returns one photo's prediction in a line."""
    if as_json:
        return json.dumps(summary)
    species = summary["species"]
    sure = f", {100 * species['probability']:.0f} % sure" if species else ""
    seen = f"{species['name'] if species else 'pet'}{sure}, {100 * summary['pet_share']:.0f} % of the photo"
    words = [seen if summary["pet"] else "no pet found", *summary["notes"], *map(str, summary["files"].values())]
    return f"{summary['photo']}: {'; '.join(words)}"


def _compare_command(quick: bool, recipe: str, settings: list[str], device: str | None) -> str:
    """Returns the command that repeats a comparison from its start, wherever data and results lie."""
    words = [
        "petseg",
        "compare",
        *(["--quick"] if quick else []),
        *(["--recipe", recipe] if recipe != "default" else []),
    ]
    for setting in settings:
        words += ["--set", setting]
    return shlex.join([*words, *(["--device", device] if device else [])])


def _data_folder(given: Path | None) -> Path:
    from petseg.data.cache import find_data

    folder = find_data(given)
    if folder is None:
        raise PetsegError(
            "no data set: neither --data nor PETSEG_DATA is given and nothing was downloaded; run `petseg data get`"
        )
    return folder


def _data_or_download(given: Path | None) -> Path:
    from petseg.data.cache import default_data_folder, find_data

    folder = find_data(given)
    if folder is None:
        folder = default_data_folder()
        _download(folder)
    return folder


def _data_or_made(given: Path | None) -> tuple[Path, bool]:
    """Returns a data folder and whether its pets are made; a folder that was named must be right, though."""
    from petseg.data.cache import default_data_folder, find_data, made_data

    folder = find_data(given)
    if folder is not None:
        return folder, False
    try:
        _download(default_data_folder(), rounds=1)
        return default_data_folder(), False
    except PetsegError as error:
        from rich.console import Console

        console = Console(stderr=True, soft_wrap=True)
        console.print(f"petseg: {error}", style="dim", highlight=False)
        console.print(
            "MADE PETS: the real data set is not at hand and cannot be downloaded; training on drawn cats and dogs, "
            "whose figures mean nothing for real ones",
            style="bold white on red",
        )
        return made_data(), True


def _download(folder: Path, rounds: int = 4) -> None:
    from petseg.data.cache import get_data

    with _bar(transfer=True) as advance:
        get_data(folder, rounds=rounds, on_progress=lambda name, done, total: advance(f"download {name}", done, total))


def _prepare(folder: Path, size: int) -> Prepared:
    from petseg.data.cache import UNOFFICIAL, prepare

    with _bar() as advance:
        prepared = prepare(folder, size, on_progress=lambda done, total: advance(f"prepare {size} px", done, total))
    if prepared.source == UNOFFICIAL:
        print(f"petseg: warning: {folder}: {UNOFFICIAL}; figures are of these pictures", file=sys.stderr)
    for name, reason in prepared.left_out.items():
        print(f"petseg: left out: {name}: {reason.removeprefix(f'{name}: ')}", file=sys.stderr)
    return prepared


def _hardware(precision: str, device: str | None) -> Hardware:
    from petseg.training.loop import choose_hardware, keep_freed_memory

    hardware = choose_hardware(precision, device)
    if hardware.device.type == "cpu":
        keep_freed_memory()
    print(f"computing on {hardware.device} in {hardware.precision} ({hardware.reason})")
    return hardware


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _print_comparison(comparison: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from petseg.report.page import findings
    from petseg.report.tables import comparison_table

    columns = [*comparison["models"], *comparison["baselines"]]
    table = Table(title=f"{comparison['split']} split, task {comparison['task']}, {comparison['size']} px")
    table.add_column("")
    for column in columns:
        table.add_column(column["title"], justify="right")
    for group in comparison_table(comparison):
        table.add_row(" - ".join(filter(None, (group.title, group.remark))), style="bold")
        for row in group.rows:
            table.add_row(f"{row.label} {row.remark}".strip(), *(cell.text for cell in row.cells))
        table.add_section()
    console = Console()
    console.print(table)
    for sentence in findings(comparison):
        console.print(sentence, highlight=False)


def _print_runs(study: Study, folder: Path) -> None:
    """Prints a study's runs in their order, with what they are for, and the time they take."""
    from rich.console import Console
    from rich.table import Table

    from petseg.experiments.study import run as studies
    from petseg.experiments.study.plan import state
    from petseg.report.tables import duration

    manifest = studies.open_study(study, folder)
    known = studies.pace(study, manifest, folder)
    table = Table(title=f"{study.title}: {folder}")
    for column in ("", "run", "for", "time", "state"):
        table.add_column(column, justify="right" if column in ("", "time") else "left", overflow="fold")
    total = left = 0.0
    for run in studies.planned(study, manifest):
        rows: dict[str, list[str]] = {}
        for row in run.rows:
            rows.setdefault(row.experiment, []).append(row.arm)
        stands_for = "; ".join(f"{name} {', '.join(arms)}" for name, arms in rows.items())
        seconds, found = known.seconds(run), state(folder, run)
        total += seconds
        left += seconds if found in ("missing", "waiting") else 0
        # its config is not known yet, so neither is its name
        name = run.name.rpartition("-")[0] if run.waits else run.name
        table.add_row(str(run.number), name, stands_for, duration(seconds), found)
    Console().print(table)
    measured = "from measured epochs" if known.per_picture else "no epoch measured yet: as on two cores with AMX"
    print(f"{duration(total)} in all, {duration(left)} left ({measured})")


@contextmanager
def _resumable(advice: str = "run the same command with --resume to go on") -> Iterator[None]:
    """Says, after Ctrl-C, how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\npetseg: interrupted; whole epochs are kept: {advice}", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def _bar(*, transfer: bool = False) -> Iterator[Callable[..., None]]:
    """Yields advance(title, done, total, detail=""): one bar a title, with the time left.

    Without a terminal it prints a line a tenth of the way, so that a log stays readable.
    """
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        tenths: dict[str, int] = {}

        def log(title: str, done: int, total: int, detail: str = "") -> None:
            tenth = 10 * done // max(1, total)
            if tenths.get(title) != tenth:
                tenths[title] = tenth
                print(f"{title}: {10 * tenth} % {detail}".rstrip(), file=sys.stderr, flush=True)

        yield log
        return
    amount: progress.ProgressColumn = progress.DownloadColumn() if transfer else progress.MofNCompleteColumn()
    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        amount,
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[detail]}"),
        console=console,
    )
    ids: dict[str, progress.TaskID] = {}
    with bar:

        def advance(title: str, done: int, total: int, detail: str = "") -> None:
            if title not in ids:
                ids[title] = bar.add_task(title, total=total, detail=detail)
            bar.update(ids[title], completed=done, total=total, detail=detail)

        yield advance


if __name__ == "__main__":
    main()
