"""The command line; each subcommand is a public function, and nothing heavy is imported before one needs it."""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from petseg import __version__
from petseg.cli import annotate, compare, convert, data, export, predict, serve, study, train
from petseg.errors import PetsegError
from petseg.threads import wait_without_spinning

app = typer.Typer(
    name="petseg",
    help="Cuts pets out of photos; trains and compares U-Net, SegNet and other networks on pets or your own images.",
    no_args_is_help=True,
    rich_markup_mode=None,  # which takes a third of the time of --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: petseg predict cat.jpg, or petseg compare --quick",
)

EXTRA_OF = {  # package that the light install lacks -> the extra that brings it
    **dict.fromkeys(("torch", "safetensors"), "train"),
    **dict.fromkeys(("matplotlib", "jinja2"), "report"),
    **dict.fromkeys(("onnx", "onnxscript"), "export"),
    **dict.fromkeys(("timm", "segmentation_models_pytorch"), "models"),
    "openvino": "openvino",
    "scipy": "matting",
    **dict.fromkeys(("pycocotools", "contourpy", "shapely"), "formats"),
    **dict.fromkeys(("fastapi", "uvicorn", "python_multipart"), "serve"),
    **dict.fromkeys(("ray", "pyarrow", "fsspec", "s3fs"), "cluster"),
}


def main() -> None:
    """Runs the command line; a caller's mistake is one line on stderr and exit code 2."""
    wait_without_spinning()
    # Pillow warns of damaged metadata in images that decode; here, because threads share one list of filters
    warnings.filterwarnings("ignore", module="PIL")
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a sign that the terminal lacks must not end a run of hours
            stream.reconfigure(errors="replace")
    try:
        _check_values(sys.argv[1:])
        with _only_the_first_rank_talks():
            app()
    except Exception as error:
        mistake = _mistake(error)
        if debug or mistake is None:
            raise
        if os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" in os.environ:
            sys.exit(2)  # the first one on this host says the same
        print(f"petseg: {mistake}", file=sys.stderr)
        sys.exit(2)


def _check_values(words: Sequence[str]) -> None:
    """Refuses an empty word: an unset shell variable, which `Path` would take for the current folder."""
    for before, word in pairwise(("petseg", *words)):
        option, _, value = word.partition("=") if word.startswith("--") else (before, "", word)
        if not value and word != option:
            raise PetsegError(f"got an empty value after {option}; give one (. is this folder), or leave it out")


@contextmanager
def _only_the_first_rank_talks() -> Iterator[None]:
    """Silences a process that torchrun started beside another on its host; errors are raised all the same."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0":
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _mistake(error: Exception) -> str | None:
    """Returns what the caller can do about an error, None if it is our own."""
    if isinstance(error, PetsegError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRA_OF:
        return f"this command needs {error.name}; pip install 'petseg[{EXTRA_OF[error.name]}]'"
    if isinstance(error, OSError) and error.errno:  # what the system says of a path
        return f"{error.filename or 'a file'}: cannot be used ({error.strerror}); name another path"
    if type(error).__name__.startswith("Dist") or "gloo" in str(error):  # torch.distributed's, by the same reason
        return f"another rank ended ({str(error).splitlines()[0][:120]}); go on with --resume once its reason is mended"
    if type(error).__name__ == "OutOfMemoryError":  # torch's own, which is not imported here
        return "the GPU's memory is full; lower train.batch_size or data.size with --set"
    return None


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"petseg {__version__}")
        raise typer.Exit


@app.callback()
def global_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. May stand anywhere.")] = False,
) -> None:
    """Options before any subcommand; `main` takes --debug out before they are parsed."""


data.app.command()(convert.convert)
data.app.command()(convert.merge)
app.add_typer(data.app, name="data")
own = (export.models, train.train, train.evaluate, train.robustness, compare.compare, study.study, compare.report)
for command in (*own, predict.predict, annotate.annotate, export.export, export.bench, serve.serve):
    app.command()(command)
