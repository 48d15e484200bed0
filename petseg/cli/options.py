"""Options that several commands share, each one's check, and the device that they choose."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petseg.cores import MOST_THREADS
from petseg.units import plural

if TYPE_CHECKING:
    from petseg.config import DataConfig
    from petseg.training.device import Hardware

DATA_HELP = (
    "Folder of labelled images, such as images/ and masks/, or an archive of one. Default: of a run that is there, its "
    "own; then PETSEG_DATA, then the pets that `petseg data get` downloaded."
)
SET_HELP = "Change a field of the recipe, for example --set epochs=10 or --set task=pet. Repeatable."
DEVICE_HELP = "cpu, cuda, cuda:1 or mps. Default: cuda where there is one, else mps, else cpu."
THREADS_HELP = "Threads of the processor. Default: PETSEG_THREADS, then as many as there are free cores."
DataOption = Annotated[Path | None, typer.Option("--data", help=DATA_HELP, show_default=False)]
SetOption = Annotated[list[str] | None, typer.Option("--set", help=SET_HELP)]
DeviceOption = Annotated[str | None, typer.Option(help=DEVICE_HELP, show_default=False)]
ThreadsOption = Annotated[int | None, typer.Option(min=1, max=MOST_THREADS, help=THREADS_HELP, show_default=False)]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on in the folder of an interrupted run.")]
EXPORT_HELP = "Write each run's model.onnx too; a model that ONNX cannot hold is refused before training."
ExportOption = Annotated[bool, typer.Option("--export", help=EXPORT_HELP)]
SizeOption = Annotated[int, typer.Option(help="Side of the square in pixels, 16 to 2048.")]


def checked_size(size: int) -> int:
    """Returns the size if a recipe may have it; the recipe's own field says which."""
    from petseg.config import DataConfig, validated

    return validated(DataConfig, {"size": size}, source="--size").size


def data_config(settings: Sequence[str] | None) -> "DataConfig":
    """Returns how data are read: recipe default with `--set`."""
    from petseg.config import load_recipe

    return load_recipe("default", settings or ()).data


def chosen_hardware(precision: str, device: str | None, threads: int | None, run: Path | None = None) -> "Hardware":
    """Returns the device and precision to compute with; sets torch's threads, those of a `run` to go on; says all.

    Memory that is freed is kept from here on.
    """
    import torch

    from petseg.memory import keep_freed_memory
    from petseg.threads import Follower, follow, free_cores, recorded_threads, thread_count
    from petseg.training import distributed
    from petseg.training.device import choose_hardware

    if device is None and torch.cuda.is_available():
        device = f"cuda:{distributed.local_rank()}"
    hardware = choose_hardware(precision, device)
    given, cores, ranks = thread_count(threads), torch.get_num_threads(), distributed.local_count()
    count = given or (recorded_threads(run) if run else None)
    # torchrun gives each one thread unless told otherwise
    count = count or max(1, free_cores() // ranks if ranks > 1 else min(free_cores(), cores))
    torch.set_num_threads(count)
    keep_freed_memory()
    follow(Follower(cores, count) if given is None and ranks == 1 < cores else None)
    chosen = f"{hardware.device} in {hardware.precision} ({hardware.reason})"
    if distributed.local_rank() == 0:
        line = f"computing on {chosen}, {plural(count, 'thread')}" + (f", {ranks} processes" if ranks > 1 else "")
        print(line, file=sys.stderr)
    return hardware
