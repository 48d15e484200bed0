"""`petseg compare` and `petseg report`."""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from petseg.cli.data import data_folder, data_of, data_or_synthetic, prepare_data, run_name
from petseg.cli.options import (
    DataOption,
    DeviceOption,
    ExportOption,
    ResumeOption,
    SetOption,
    ThreadsOption,
    chosen_hardware,
)
from petseg.cli.terminal import print_figures, progress_bar, results_only, resumable
from petseg.errors import PetsegError

QUICK_HELP = "Takes minutes: small images, few epochs, validation only; draws pets if no dataset can be had."
RECIPE_HELP = "A shipped recipe (default, base, small, quick, speedrun, networks, pretrained) or a TOML file."
MODELS_HELP = "Instead of the recipe's: unet,smp:ARCHITECTURE/ENCODER,timm:ENCODER,FILE.py:CLASS."
SEEDS_HELP = "Trainings of each model, three or more: intervals are then over seeds too. With --resume more are added."
FOLDS_HELP = "Cross-validation: each image is tested once, by networks that have not seen it. For few images."
REFERENCE_HELP = "The model that the others are compared with; with --resume it changes without training."
SOURCE_HELP = "A comparison's or a study's folder, a comparison.json or a findings.json."


def compare(
    quick: Annotated[bool, typer.Option("--quick", help=QUICK_HELP)] = False,
    recipe: Annotated[str, typer.Option(help=RECIPE_HELP)] = "default",
    models: Annotated[str | None, typer.Option(help=MODELS_HELP)] = None,
    reference: Annotated[str | None, typer.Option(help=REFERENCE_HELP, show_default="the first")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help=SEEDS_HELP, show_default="1")] = None,
    folds: Annotated[int | None, typer.Option(min=2, help=FOLDS_HELP, show_default=False)] = None,
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Its folder.", show_default="runs/compare-RECIPE or runs/compare-DATA")
    ] = None,
    settings: SetOption = None,
    export: ExportOption = False,
    resume: ResumeOption = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Train U-Net, SegNet or any networks under one budget. Score them, print tables and write report.html."""
    from petseg.config import load_recipe
    from petseg.data import oxford_pets
    from petseg.experiments.compare import Plan, reference_of, refuse_change
    from petseg.experiments.compare import compare as compare_models
    from petseg.models import run_config
    from petseg.report import write_report
    from petseg.report.page import headline
    from petseg.report.tables import printed_tables
    from petseg.training.runs import refuse_existing

    if quick and recipe != "default":
        raise PetsegError(f"--quick was given with --recipe {recipe}; choose one: --quick is the recipe `quick`")
    name = "quick" if quick else recipe
    settings = [*(settings or ())]
    settings += [f"models={json.dumps([model.strip() for model in models.split(',')])}"] if models else []
    settings += [f"seeds={seeds}"] if seeds else []
    settings += [f"data.folds={folds}"] if folds else []
    loaded = load_recipe(name, settings)
    for model in loaded.models:
        run_config(loaded, model)  # a mistake in the recipe shows before minutes of work
    reference_of(loaded, reference)
    folder = out or Path("runs") / f"compare-{run_name(name, data)}"
    refuse_existing(folder, resume=resume)
    refuse_change(folder, loaded, final=not quick)
    hardware = chosen_hardware(loaded.train.precision, device, threads, folder)
    data = data_of(folder, data) if resume else data
    source, synthetic = data_or_synthetic(data) if quick else (data_folder(data, fetch=True), False)
    prepared = prepare_data(source, loaded.data)
    started = time.monotonic()
    words = ["petseg", "compare", *(["--quick"] if quick else [])]  # repeats it, wherever data and results lie
    words += [] if prepared.dataset.name == oxford_pets.NAME else ["--data", source.name]
    words += ["--recipe", recipe] if recipe != "default" else []
    words += [word for setting in settings or () for word in ("--set", setting)]
    words += ["--reference", reference] if reference else []
    words += ["--device", device] if device else []
    with resumable(), results_only(), progress_bar() as advance:
        plan = Plan(
            recipe=loaded,
            hardware=hardware,
            command=shlex.join(words),
            reference=reference,
            export=export,
            resume=resume,
            final=not quick,
            synthetic=synthetic,
            on_stage=advance,
        )
        comparison = compare_models(plan, prepared, folder)
    report_path = write_report(folder / "comparison.json")
    for part in printed_tables(comparison):
        rows = [(label, [cell.text for cell in cells]) for label, cells in part.rows]
        print_figures(f"{part.title}: {part.remark}", part.heads, rows)
    print(comparison.data.images, *headline(comparison), sep="\n")
    if quick:
        print("This was a quick look: short training, scored on validation images. `petseg compare` is the real thing.")
    print(f"took {(time.monotonic() - started) / 60:.1f} minutes")
    print(f"report: {report_path.resolve()}")


def report(
    source: Annotated[Path, typer.Argument(metavar="folder", help=SOURCE_HELP)],
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="report.html beside it")] = None,
) -> None:
    """Write the page of a comparison or of a study from its JSON."""
    from petseg.report import write_report, write_study_report

    if (source / "study.json").is_file():
        from petseg.experiments.study.findings import write_findings

        print("intervals are resampled, which takes some 20 seconds for the shipped study", file=sys.stderr)
        source = write_findings(source)
    if source.name == "findings.json":
        print(f"report: {write_study_report(source, out).resolve()}")
        return
    path = source / "comparison.json" if source.is_dir() else source
    print(f"report: {write_report(path, out).resolve()}")
