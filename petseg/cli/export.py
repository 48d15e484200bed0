"""`petseg export`, `petseg bench` and `petseg models`."""

import shlex
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import Annotated

import typer

from petseg.cli.options import DataOption, SizeOption, checked_size
from petseg.cli.terminal import print_table, progress_bar
from petseg.errors import PetsegError

FORMAT_HELP = "onnx, torch (a torch.export program) or openvino."
INT8_HELP = (
    "Compute in int8, on scales from images of --data, else a run's own, of a shipped model else synthetic pets; needs "
    "the extra `export`."
)
FILE_HELP = "A shipped model or an ONNX file of `petseg export`."
MODEL_HELP = "A shipped model or an ONNX file. Repeatable."
RUNTIME_HELP = "torch, torch-bf16, onnxruntime, onnxruntime-int8, openvino, openvino-bf16 or -int8. Repeatable."
QUERY_HELP = "Part of a name, as efficientnet, or the whole name of a network, as smp:FPN/resnet18."
COST_NOTE = "activations: most bytes alive at once; training: those of each further image of a batch"
THREADS_HELP = "Threads of one call, for example 1,2."


def export(
    out: Annotated[Path, typer.Option(help="The file to write.", show_default=False)],
    model: Annotated[str, typer.Option(help=FILE_HELP, show_default=False)] = "",
    run: Annotated[
        Path | None, typer.Option(help="A trained run; needs the extra `export`.", show_default=False)
    ] = None,
    kind: Annotated[str, typer.Option("--format", help=FORMAT_HELP, show_default="by --out")] = "",
    fp16: Annotated[bool, typer.Option(help="Store a run's large weights in half the bytes; not for torch.")] = True,
    int8: Annotated[bool, typer.Option("--int8", help=INT8_HELP)] = False,
    data: DataOption = None,
) -> None:
    """Write a model as one file for other programs. It is checked against the original first."""
    from petseg.export.openvino import chosen_format, export_file

    if (run is None) == (not model):
        raise PetsegError("give one of --model MODEL, a shipped one or an ONNX file, and --run RUN, a trained one")
    if not fp16 and (model or int8):
        raise PetsegError("--no-fp16 is of --run in float32; leave it out")
    if data and not int8:
        raise PetsegError("--data sets the scales of int8; add --int8 or leave it out")
    chosen = chosen_format(out, kind)
    if int8:
        if chosen != "onnx":
            raise PetsegError(f"{out}: int8 is written as ONNX; end it in .onnx")
        _export_int8(model, run, out, data)
        return
    if run is None:
        metadata, original = export_file(model, out, chosen), model
    else:
        from petseg.export.onnx import export_run

        metadata, original = export_run(run, out, chosen, fp16=fp16), "torch"
    agreement = 100 * metadata["parity"]["agreement"]
    print(f"{out}: agrees with {original} on {agreement:.3f} % of the pixels of synthetic pets")


def _export_int8(model: str, run: Path | None, out: Path, data: Path | None) -> None:
    from petseg.cli.data import data_folder, data_of, prepare_data
    from petseg.config import RunConfig, validated
    from petseg.data.sources import find_data
    from petseg.export.onnx import exported_run
    from petseg.export.quantise import export_int8
    from petseg.predict.segmenter import Segmenter
    from petseg.shipped import model_names

    if run is not None:
        model, data = str(exported_run(run)), data_of(run, data)
    # other models than the shipped ones may be of anything, and synthetic pets set no scales of that
    folder = find_data(data) if model in model_names() else data_folder(data)
    segmenter = Segmenter(model, threads=1, runtime="onnxruntime")
    config = validated(RunConfig, segmenter.card.get("config", {}), source=model)
    metadata = export_int8(segmenter, out, None if folder is None else prepare_data(folder, config.data, run))
    parity = metadata["parity"]
    agreement = (
        f"agrees with {model} in float32 on {100 * parity['agreement']:.2f} % of the pixels of {parity['images']}"
    )
    print(f"{out}: {agreement}; scales from {metadata['scales']}")


def bench(
    model: Annotated[list[str] | None, typer.Option(help=MODEL_HELP, show_default="all shipped models")] = None,
    size: Annotated[str, typer.Option(help="In pixels, for example 128,256.", show_default="each model's own")] = "",
    threads: Annotated[str, typer.Option(help=THREADS_HELP, show_default="PETSEG_THREADS, else 1")] = "",
    runtime: Annotated[list[str] | None, typer.Option(help=RUNTIME_HELP, show_default="all at hand")] = None,
    turns: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 7,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="JSON to write.", show_default=False)] = None,
) -> None:
    """Measure time and memory of one image on this machine. Every runtime at hand takes its turns."""
    from petseg import storage
    from petseg.data.sources import find_data
    from petseg.export import bench as measuring
    from petseg.schema import write_record
    from petseg.shipped import shipped_models
    from petseg.threads import thread_count
    from petseg.units import whole

    if out is not None:
        if out.is_dir():
            raise PetsegError(f"--out {out} is a folder; name a file in it")
        if out.suffix != ".json":
            raise PetsegError(f"--out {out}: the table is JSON; name a file that ends in .json")
        storage.check_writable(out.parent, "choose another --out")
    threads = threads or str(thread_count() or 1)
    sizes = [checked_size(side) for side in _whole_numbers(size, "--size")]
    counts = _whole_numbers(threads, "--threads")
    plan = measuring.Plan(model or shipped_models(), sizes, counts, runtime or (), turns, find_data(data))
    with progress_bar() as advance:
        result = measuring.bench(plan, partial(advance, "bench"))
    machine = result.environment
    versions = ", ".join(f"{name} {number}" for name, number in {"torch": machine.torch, **result.versions}.items())
    title = f"one image at a time, {result.turns} turns; {machine.processor} ({', '.join(result.instructions)})"
    columns = ("model", ">px", ">threads", "runtime", ">p50 ms", ">by turn", ">p95", ">1/s", ">MB")
    rows = []
    for row in sorted(result.rows, key=lambda row: (row.size, row.threads, row.model)):
        times = f"{row.p50_ms:.2f}", f"{row.p50_low_ms:.1f}-{row.p50_high_ms:.1f}", f"{row.p95_ms:.1f}"
        others = whole(row.images_per_second), whole(row.peak_mb)
        rows.append((row.model, str(row.size), str(row.threads), row.title, *times, *others))
    print_table(title, columns, rows, caption=versions)
    for name, reason in result.not_measured.items():
        print(f"not measured: {name}: {reason}", file=sys.stderr)
    if out is not None:
        write_record(out, result.model_copy(update={"command": shlex.join(["petseg", *sys.argv[1:]])}))


def models(
    query: Annotated[str, typer.Argument(help=QUERY_HELP, show_default=False)] = "",
    size: SizeOption = 128,
    classes: Annotated[int, typer.Option(min=2, max=255, help="Classes of the output.")] = 3,
) -> None:
    """List the shipped models and the networks to train. The extra `models` adds those of other libraries."""
    from petseg.config import NETWORKS
    from petseg.shipped import card_of, shipped_models
    from petseg.units import byte_size

    cards = {name: card_of(name) for name in shipped_models() if query in name}
    if cards:
        rows = [
            (name, card["title"], f"{card['size']} px", f"{100 * card['scores']['miou']:.1f}", byte_size(card["bytes"]))
            for name, card in cards.items()
        ]
        print_table("shipped, for predict, serve and export", ("model", "", ">image", ">mIoU, %", ">size"), rows)
    # the whole name of a network of another library is a network to count, not a word to look for
    names = [query] if ":" in query else [name for name in NETWORKS if query in name]
    if names and find_spec("torch") is None:
        print(f"networks: {', '.join(names)}; pip install 'petseg[train]' trains them")
    elif names:
        heads = ("network", "", ">parameters", ">MACs", ">activations", ">training")
        title = f"networks to train: one image of {size} x {size} px, {classes} classes, float32"
        print_table(title, heads, [_cost_row(name, checked_size(size), classes) for name in names], caption=COST_NOTE)
    found = _print_encoders(query)
    if not (names or cards or found):
        raise PetsegError(f"no model has {query!r} in its name; `petseg models` lists them")


def _print_encoders(query: str) -> int:
    """Prints the encoders of other libraries that a query names, or how to look for one; returns how many."""
    if not find_spec("timm") or not find_spec("segmentation_models_pytorch"):
        print("networks of segmentation_models_pytorch and timm: pip install 'petseg[models]'")
        return 0
    from petseg.models.external import architectures, encoders

    known = [] if ":" in query else encoders(query)
    if query and known:
        heads = ("network", "ImageNet weights (@imagenet)")
        print_table("", heads, known)
    if not query or known:
        print(
            fill(
                f"smp:ARCHITECTURE/NAME or, of timm's encoders, smp:ARCHITECTURE/tu-NAME: {', '.join(architectures())}"
            )
        )
        print("timm:NAME: our U-Net's decoder on an encoder that halves at each map")
        print("FILE.py:CLASS: a network of your own")
    if not query:
        print(f"`petseg models resnet` searches {len(known):,} encoders; @imagenet behind a name takes their weights")
    return len(known)


def _cost_row(name: str, size: int, classes: int) -> tuple[str, ...]:
    from petseg.config import ModelConfig, split_name
    from petseg.evaluation.cost import count_cost
    from petseg.models import title_of
    from petseg.units import byte_size, count

    network, options = split_name(name)
    cost = count_cost(ModelConfig(name=network, **options), classes, size)
    memory = byte_size(cost.activation_bytes), byte_size(cost.training_activation_bytes_per_image)
    return name, title_of(name), count(cost.parameters), count(cost.macs), *memory


def _whole_numbers(text: str, option: str) -> list[int]:
    """Returns the numbers of a list like 128,256, each above zero."""
    numbers = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if len(numbers) != len(text.split(",")) * bool(text) or 0 in numbers:
        raise PetsegError(f"{option} is {text!r}; wanted whole numbers above zero, for example 1,2")
    return numbers
