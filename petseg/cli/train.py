"""`petseg train` and `petseg evaluate`."""

import json
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petseg.cli.data import data_folder, data_of, open_data, prepare_data, run_name
from petseg.cli.options import (
    DataOption,
    DeviceOption,
    ExportOption,
    ResumeOption,
    SetOption,
    ThreadsOption,
    chosen_hardware,
)
from petseg.cli.terminal import print_table, progress_bar, results_only, resumable
from petseg.errors import PetsegError
from petseg.units import loss, percent

if TYPE_CHECKING:
    from petseg.config import RunConfig

DEFAULT = "default"  # the recipe


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A shipped recipe or a TOML file.", show_default="default; with --resume that of --out"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="unet, segnet, or as `petseg models` says.", show_default="that of --init, else the recipe's first"
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Weights to start from: a run folder, a shipped model, or an ONNX file of `petseg export`."),
    ] = None,
    unlabelled: Annotated[Path | None, typer.Option(help="Folder of images without labels to learn from.")] = None,
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder.", show_default="runs/RECIPE-MODEL or runs/DATA-MODEL")
    ] = None,
    settings: SetOption = None,
    export: ExportOption = False,
    resume: ResumeOption = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Train one model into a run folder."""
    from petseg.models import folder_name, title_of
    from petseg.training import distributed
    from petseg.training.loop import Execution
    from petseg.training.loop import train as train_model
    from petseg.training.runs import refuse_existing
    from petseg.training.unlabelled import prepare_unlabelled

    given = [*(settings or ())]
    if wrong := [setting for setting in given if setting.partition("=")[0].strip() in ("models", "seeds")]:
        raise PetsegError(
            f"--set {wrong[0]}: is for `petseg compare`; a run has one model (--model) and one seed (train.seed)"
        )
    given += [] if init is None else [f"train.init={json.dumps(init, ensure_ascii=False)}"]
    given += [] if unlabelled is None else [f"train.unlabelled.source={json.dumps(str(unlabelled))}"]
    kept = out if resume and out is not None and (out / "config.json").is_file() else None
    config = _config(recipe, model, given, kept)
    model = config.model.name
    run = out or Path("runs") / f"{run_name(recipe or DEFAULT, data)}-{folder_name(model)}"
    if distributed.rank_started() == 0:
        refuse_existing(run, resume=resume)
    hardware = chosen_hardware(config.train.precision, device, threads, run)
    prepared = prepare_data(data_folder(data_of(run, data) if resume else data), config.data)
    if export and distributed.rank_started() == 0:
        from petseg.export.onnx import check_export

        check_export(config, len(prepared.dataset.classes))
    with distributed.joined(hardware.device), resumable(), results_only(), progress_bar() as advance:
        if unlabelled is not None:
            prepare_unlabelled(config, prepared.dataset.classes, partial(advance, "prepare unlabelled"))
        on_step = partial(advance, f"train {title_of(model)}")
        how = Execution(hardware=hardware, resume=resume, more_epochs=resume, on_step=on_step)
        last = train_model(config, prepared, run, how)[-1]
    score = f"val loss {loss(last.val_loss)}, val mIoU {percent(last.val_miou)} % at the training size"
    print(f"{run}: epoch {last.epoch}, {score}")
    if export and distributed.rank_started() == 0:
        from petseg.export.onnx import exported_run

        print(f"exported: {exported_run(run)}")


def _config(recipe: str | None, model: str | None, given: list[str], kept: Path | None) -> "RunConfig":
    """Returns the config of a training; of a run that is `kept` the settings alone change it."""
    from petseg.config import load_recipe, with_settings
    from petseg.models import model_options, run_config
    from petseg.training.runs import read_config
    from petseg.training.start import model_of

    own_config = read_config(kept) if kept and not recipe else None
    if own_config and model in (None, own_config.model.name):
        return with_settings(own_config, given)
    recipe = recipe or DEFAULT
    loaded = load_recipe(recipe, given)
    if model is None and loaded.train.init:
        begun = model_of(str(kept or loaded.train.init))
        model = begun.name
        own = [f"model.{name}={json.dumps(value)}" for name, value in model_options(begun).items() if value is not None]
        loaded = load_recipe(recipe, [*own, *given])
    model = model or loaded.models[0]
    return run_config(loaded.model_copy(update={"models": (model,)}), model)  # an option that it has not is refused


def robustness(
    model: Annotated[str, typer.Argument(help="A run folder, a shipped model or an ONNX file of `petseg export`.")],
    split: Annotated[
        str | None, typer.Option(help="test, or val to choose by.", show_default="test, or all of other images")
    ] = None,
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file for the counts of each image; a stopped call goes on.")
    ] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Score a model on images corrupted as files. Corruptions: JPEG, blur, noise, darkness, scale and rotation."""
    import torch

    from petseg.config import RunConfig, validated
    from petseg.evaluation.corruptions import KINDS, UNCHANGED, Corruption
    from petseg.evaluation.robustness import evaluate_robustness, shipped_robustness
    from petseg.metrics import mean_iou
    from petseg.predict.runtimes import chosen_runtime
    from petseg.predict.segmenter import Segmenter
    from petseg.schema import write_record
    from petseg.threads import free_cores, thread_count
    from petseg.training.runs import read_config

    again = (
        "run the same command again to go on" if out or Path(model).is_dir() else "with --out the next one can go on"
    )
    with resumable(again), progress_bar() as advance:
        if Path(model).is_dir():
            config = read_config(Path(model))
            hardware = chosen_hardware(config.train.precision, device, threads)
            prepared = prepare_data(data_folder(data_of(Path(model), data)), config.data, Path(model))
            split = chosen_split(split, "test", prepared.dataset.splits)
            found = evaluate_robustness(Path(model), hardware, prepared, partial(advance, "score"), split=split)
            if out is not None:
                write_record(out, found)
        else:
            torch.set_num_threads(1)  # of a call
            segmenter = Segmenter(model, threads=1, runtime=chosen_runtime())
            calls = thread_count(threads) or free_cores()
            config_data = validated(RunConfig, segmenter.card.get("config", {}), source=f"model {model}").data
            known = segmenter.card.get("data", {}).get("name", "")
            dataset = open_data(data_folder(data), config_data, trained_on=known)
            split = chosen_split(split, "test", dataset.splits)
            score = partial(advance, "score")
            found = shipped_robustness(segmenter, dataset, score, split=split, out=out, calls=calls)
    miou = {name: 100 * float(mean_iou(found.counts(name).sum(axis=0))) for name in found.confusions}
    by = f" ({found.runtime})" if found.runtime else ""
    print(f"{model}: {split}, {len(found.ids)} images, mIoU unchanged {miou[UNCHANGED.name]:.1f}{by}")
    rows = []
    for name, kind in KINDS.items():
        scores = (f"{miou[Corruption(name, severity).name]:.1f}" for severity in (1, 2, 3))
        rows.append((f"{kind.unit}: {', '.join(f'{amount:g}' for amount in kind.amounts)}", *scores))
    print_table("", ("corruption", ">mild", ">medium", ">strong"), rows)


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    split: Annotated[
        str | None,
        typer.Option(
            help="val, or test for the final figure of a finished run.", show_default="val, or all of other images"
        ),
    ] = None,
    data: DataOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Score a trained run on a split, at each image's own size. The scores are kept in the run folder.

    Images that the run does not know are scored as one split, all, unless they bring splits.
    """
    from petseg.evaluation.evaluate import evaluate_run
    from petseg.training.batches import scored_splits
    from petseg.training.runs import read_config

    config = read_config(run)
    hardware = chosen_hardware(config.train.precision, device, threads)
    prepared = prepare_data(data_folder(data_of(run, data)), config.data, run)
    splits = scored_splits(prepared, hardware.device)
    split = chosen_split(split, "val", splits)
    with progress_bar() as advance:
        evaluation = evaluate_run(run, hardware, splits, split, partial(advance, f"score {split}"))
    scores = evaluation.scores
    print(f"{run}: {split}, {scores.images} images, epoch {scores.epoch}")
    figures = {name: (scores.iou[name], scores.dice[name], scores.boundary_f[name]) for name in scores.iou}
    figures["mean"] = scores.miou, scores.mean_dice, scores.mean_boundary_f
    rows = [(name, *map(percent, values)) for name, values in figures.items()]
    print_table("percent", ("class", ">IoU", ">Dice", ">boundary F"), rows)
    entropy = f"cross-entropy {loss(scores.cross_entropy)} at {scores.cross_entropy_frame}"
    print(f"pixel accuracy {percent(scores.pixel_accuracy)} %, {entropy}")


def chosen_split(given: str | None, usual: str, splits: Collection[str]) -> str:
    """Returns the split to score: what was given, else the only one, such as "all" of other images, else the usual."""
    return given or (next(iter(splits)) if len(splits) == 1 else usual)
