"""What reads bytes from elsewhere, each as a function of bytes; only a refusal in petseg's own words may come out.

python fuzz/targets.py image FILE...          # tries files, such as one that `fuzz/run.py` kept
python fuzz/targets.py image FOLDER -runs=N   # libFuzzer by atheris, led by the coverage of petseg and Pillow
"""

from __future__ import annotations

import atexit
import json
import mmap
import os
import random
import shutil
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

LONGEST = 20_000
"""Bytes of a case at most: seeds are small, so that thousands of cases take minutes."""


@dataclass(frozen=True)
class Target:
    """A reader and what it reads when all is well."""

    read: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    mend: Callable[[bytes], bytes] = bytes
    """Puts checksums and lengths right, or every mutation would be refused for them alone."""


class RefusedError(Exception):
    """The reader said no in petseg's own words."""


@contextmanager
def _refusals() -> Iterator[None]:
    """Lets refusals through; anything else is a finding."""
    from petseg.errors import PetsegError

    try:
        yield
    except PetsegError as error:
        message = str(error)
        assert message, "a refusal says why"
        assert len(message) < 3000, f"{len(message)} characters are no line"
        raise RefusedError(message) from None


@cache
def _scratch() -> Path:
    """A folder, gone at the end: some readers take paths."""
    named = os.environ.get("PETSEG_FUZZ_SCRATCH")
    if named is not None:
        return Path(named)
    folder = tempfile.mkdtemp(prefix="petseg-fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _file(name: str, content: bytes) -> Path:
    path = _scratch() / name
    path.write_bytes(content)
    return path


# --- images ----------------------------------------------------------------------------------------------------------


def read_image(content: bytes) -> None:
    """A photo as `petseg predict` and the server read it: as the model sees it, as an overlay's ground, and whole."""
    from petseg.predict.photos import Photo

    with _refusals():
        photo = Photo(content, "photo")
        assert photo.resized(64).shape == (64, 64, 3)
        photo.reduced(256)
        assert (photo.whole().height, photo.whole().width) == photo.size


def read_pair(content: bytes) -> None:
    """A trimap of the dataset, and the same bytes as an image of it."""
    from petseg.data.dataset import Sample
    from petseg.data.duplicates import near_duplicates
    from petseg.data.images import open_ids, open_sample

    sound, dataset = _file("sound.png", small_image("PNG", "L")), trimaps()
    for image, trimap in ((sound, _file("fuzzed.png", content)), (_file("fuzzed.jpg", content), sound)):
        sample = Sample("beagle_1", image, trimap)
        try:
            with _refusals():
                open_ids(dataset, sample)
                open_sample(dataset, sample, draft=64)
                near_duplicates([sample])
        except RefusedError:
            if image != sound:
                raise


def read_mask(content: bytes) -> None:
    """A mask: which classes its values are, its class ids, and those by the classes of another mask."""
    from petseg.config import DataConfig
    from petseg.data.classes import choose_table
    from petseg.data.dataset import Sample
    from petseg.data.masks import scan

    sample = Sample("mask", Path(), _file("fuzzed.png", content))
    with _refusals():
        own = scan(sample)
        sound = scan(Sample("sound", Path(), _file("sound.png", small_image("PNG", "L", size=(40, 30)))))
        for masks in ({"fuzzed": own}, {"sound": sound}):
            ids = choose_table(masks, _scratch(), DataConfig()).read(sample).ids
            assert (ids.ndim, ids.dtype) == (2, "uint8")


@cache
def trimaps() -> Any:
    """Returns a dataset whose labels are trimaps."""
    from petseg.data.dataset import Dataset, Label, classes_from
    from petseg.data.oxford_pets import read_trimap

    classes = classes_from(["pet", "background", "border"])
    return Dataset("pets", (), classes, {}, lambda sample: Label(read_trimap(sample.label) - 1), "fuzzed")


def small_image(kind: str, mode: str = "RGB", size: tuple[int, int] = (24, 17), **options: Any) -> bytes:
    """A small image with some shapes in it; of values 1, 2, 3 in mode L."""
    from PIL import Image, ImageDraw

    if mode == "L":
        image = Image.new("L", size, 2)
        ImageDraw.Draw(image).ellipse((4, 3, 15, 12), 1, 3)
    else:
        coloured = Image.new("RGB", size, "tan")
        ImageDraw.Draw(coloured).ellipse((4, 3, 15, 12), "navy", "white")
        image = coloured.convert(mode)
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def image_seeds() -> list[bytes]:
    """Returns images in every format that is read, and in some that are not."""
    from PIL import Image, ImageCms

    turned = Image.Exif()
    turned[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    more = [Image.new("RGB", (24, 17), "red"), Image.new("RGB", (24, 17), "blue")]
    frames = {"save_all": True, "append_images": more}
    wanted: list[tuple[str, str, dict[str, Any]]] = [
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True, "exif": turned}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "L", {"icc_profile": profile}),
        ("MPO", "RGB", frames),
        *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        ("PNG", "RGB", {"exif": turned, "icc_profile": profile}),
        ("PNG", "P", {"transparency": 0}),
        ("PNG", "RGB", frames),
        ("GIF", "RGB", frames),
        ("GIF", "P", {"transparency": 0}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGBA", {"lossless": True, "exif": turned}),
        ("WEBP", "RGB", frames),
        ("AVIF", "RGB", {}),
        *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
        *(("TIFF", "RGB", {"compression": kind}) for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")),
        ("TIFF", "1", {"compression": "group4"}),
        ("TIFF", "CMYK", {}),
        ("TIFF", "RGB", frames),
        *((kind, "RGB", {}) for kind in ("PPM", "TGA", "ICO", "PCX", "EPS", "SGI", "JPEG2000", "PDF", "DDS")),
    ]
    found = []
    for kind, mode, given in wanted:
        with suppress(KeyError, OSError, TypeError):  # not every Pillow writes all of them
            found.append(small_image(kind, mode, **given))
    return found


def trimap_seeds() -> list[bytes]:
    """Returns trimaps, right and wrong ones."""
    small = {"size": (12, 9)}
    return [
        small_image("PNG", "L"),
        small_image("PNG", "L", **small),
        small_image("PNG", "L", size=(17, 24)),
        small_image("PNG", "P"),
        small_image("PNG", "1"),
        small_image("PNG", "LA"),
        small_image("PNG", "I;16"),
        small_image("GIF", "L"),
        small_image("TIFF", "L"),
        small_image("BMP", "L"),
        small_image("JPEG", "L"),
        small_image("WEBP"),
    ]


def mask_seeds() -> list[bytes]:
    """Returns masks of class ids, indexed, of colours, and with smoothed edges."""
    from PIL import Image

    smooth = Image.open(BytesIO(small_image("PNG", "L"))).resize((60, 40), Image.Resampling.BICUBIC)
    stream = BytesIO()
    smooth.point(lambda value: value * 80).save(stream, "PNG")
    modes = ("RGB", "RGBA", "P", "1", "LA", "I;16", "L")
    return [*trimap_seeds(), stream.getvalue(), *(small_image("PNG", mode, size=(40, 30)) for mode in modes)]


def mend_png(content: bytes) -> bytes:
    """Returns a PNG with the checksum of each chunk put right; anything else as it is."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    mended, place = bytearray(content[:8]), 8
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(content):
            break
        mended += content[place:end] + zlib.crc32(content[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(mended + content[place:])


# --- data sets -----------------------------------------------------------------------------------------------------


def read_archive(content: bytes) -> None:
    """An archive of a dataset, zip or tar: nothing of it lies beside its folder."""
    from petseg.data.archive import extract

    with tempfile.TemporaryDirectory(dir=_scratch()) as place, _refusals():
        folder, path = Path(place, "below", "my"), _file("my.zip", content)
        try:
            extract([path], folder)
        finally:
            found = {path.relative_to(place).parts[:2] for path in Path(place).rglob("*")}
            assert found <= {("below",), ("below", "my")}, found


def archive_seeds() -> list[bytes]:
    """Returns archives of two files, one of them below a folder: zip, stored and deflated, and tar, plain and gzip."""
    seeds = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        stream = BytesIO()
        with zipfile.ZipFile(stream, "w", method) as archive:
            for name in ("images/a.png", "train.txt"):
                archive.writestr(name, b"a" * 300)
        seeds.append(stream.getvalue())
    for mode in ("w", "w:gz"):
        stream = BytesIO()
        with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
            for name in ("images/a.png", "train.txt"):
                member = tarfile.TarInfo(name)
                member.size = 300
                tar.addfile(member, BytesIO(b"a" * 300))
        seeds.append(stream.getvalue())
    return seeds


def read_annotations(content: bytes) -> None:
    """An annotation file of COCO, CVAT, LabelMe or Label Studio beside its image, and every label that it draws."""
    from petseg.config import DataConfig
    from petseg.data.formats import coco, cvat, label_studio, labelme

    with tempfile.TemporaryDirectory(dir=_scratch()) as place:
        folder = Path(place)
        (folder / "a.png").write_bytes(small_image("PNG"))
        (folder / ("a.xml" if content[:1] == b"<" else "a.json")).write_bytes(content)
        reader = next((each for each in (coco, cvat, label_studio, labelme) if each.recognise(folder)), None)
        if reader is None:
            raise RefusedError
        with _refusals():
            dataset = reader.open_folder(folder, DataConfig())
            for sample in dataset.samples:
                assert dataset.read_label(sample).ids.size


def annotation_seeds() -> list[bytes]:
    """Returns what petseg writes of one image, with outlines and with run lengths, and an export of Label Studio."""
    import numpy as np

    from petseg.data.dataset import Dataset, Label, Sample, classes_from
    from petseg.data.formats.convert import convert

    image = _file("a.png", small_image("PNG"))
    ids = np.kron(np.uint8([[0, 1, 255], [2, 1, 0]]), np.ones((9, 8), np.uint8))[:17]
    classes = classes_from(["background", "cat", "dog"])
    dataset = Dataset("a", (Sample("a", image, image),), classes, {}, lambda sample: Label(ids), "drawn")
    seeds = []
    with tempfile.TemporaryDirectory(dir=_scratch()) as place:
        for kind, polygons in (("coco", False), ("coco", True), ("cvat", False), ("cvat", True), ("labelme", False)):
            out = Path(place, f"{kind}{polygons}")
            convert(dataset, out, kind, polygons=polygons)
            seeds += [path.read_bytes() for path in sorted(out.rglob("*")) if path.suffix in (".json", ".xml")]
    value = {"points": [[10, 10], [50, 10], [50, 50]], "polygonlabels": ["cat"]}
    region = {"original_width": 24, "original_height": 17, "value": value}
    task = {"id": 1, "annotations": [{"result": [region]}], "data": {"image": "a.png"}}
    return [*seeds, json.dumps([task]).encode()]


def read_classes(content: bytes) -> None:
    """A classes file, for masks of ids and of colours."""
    from petseg.config import DataConfig
    from petseg.data.classes import choose_table
    from petseg.data.masks import MaskFile

    config = DataConfig(classes=str(_file("classes.toml.fuzzed", content)))
    refused = 0
    for mask in (MaskFile("ids", {0: 5, 3: 2}, {}), MaskFile("colours", {0x00AA00: 5, 0: 2}, {})):
        try:
            with _refusals():
                table = choose_table({"a": mask}, _scratch(), config)
                assert 2 <= len(table.classes) <= 255
                table.unknown(mask)
        except RefusedError:
            refused += 1
    if refused == 2:
        raise RefusedError


def classes_seeds() -> list[bytes]:
    """Returns classes by place, by id and by colour, with what is ignored."""
    return [
        b'[[classes]]\nname = "soil"\nrole = "background"\n[[classes]]\nname = "leaf"\n',
        b'ignore = [3, "#000000"]\nclasses = [{name = "a", id = 0, colour = "#00AA00"}, {name = "b", id = 7}]\n',
        b'ignore = ["#000000"]\nclasses = [{name = "a", colour = "#00AA00"}, {name = "b", colour = "#AA0000"}]\n',
        b"classes = " + b"[" * 2000,
    ]


# --- texts -----------------------------------------------------------------------------------------------------------


def read_recipe(content: bytes) -> None:
    """A recipe, and its first line as `--set`."""
    from petseg.config import load_recipe

    path = str(_file("recipe.toml", content))
    first = content.partition(b"\n")[0].decode(errors="replace")
    with suppress(RefusedError), _refusals():
        load_recipe("default", [first]).for_model("segnet")
    with _refusals():
        recipe = load_recipe(path)
        for name in recipe.models:
            recipe.for_model(name)


def recipe_seeds() -> list[bytes]:
    """Returns the shipped recipes, and what recipes may hold besides."""
    from petseg.config import RECIPES, recipe_names

    return [
        *((RECIPES / f"{name}.toml").read_bytes() for name in recipe_names()),
        b'train.epochs = 3\nmodels = ["segnet", "unet"]\n[overrides.segnet.train]\nlearning_rate = 1e-3\n',
        b"[model]\nconvs = [2, 2, 3]\ndepth = 3\n[train]\nramp = [64, 96]\n",
        b'[data.oxford_pets]\ntask = "pet"\nborder = "ignore"\n',
        b"train.epochs = " + b"[" * 2000,
        b"epochs=" + b"9" * 5000,
        b"a" + b".a" * 2000 + b" = 1",
        b'train.batch_size = "' + b"a" * 5000 + b'"',
        b'overrides = {segnet = {"model.upsampling" = "bilinear"}}\ntrain = {augment = {flip = false}}\n',
    ]


RUN_FILES = ("config.json", "metrics.jsonl", "evaluations/val.json", "evaluations/val.images.json", "comparison.json")


def read_run(content: bytes) -> None:
    """A file of a run's folder; the first byte says which."""
    from petseg.evaluation.evaluate import read_evaluation
    from petseg.report.page import headline
    from petseg.schema import ComparisonResult, read_record
    from petseg.training import runs

    name = RUN_FILES[content[0] % len(RUN_FILES)] if content else RUN_FILES[0]
    folder = _scratch() / "run"
    for file, whole in _run_files().items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content[1:] if file == name else whole)
    with _refusals():
        read_evaluation(folder / "evaluations" / "val.json")
        runs.read_metrics(folder)
        runs.read_config(folder)
        headline(read_record(folder / "comparison.json", ComparisonResult))


@cache
def _run_files() -> dict[str, bytes]:
    from petseg.config import RunConfig

    rows = [["beagle_1", [*range(9)], [0.5, None, 0.2]], ["beagle_2", [*range(9)], [0.25, 1.0, 0.2]]]
    images = {"columns": ["name", "confusion", "boundary F"], "images": rows}
    published = Path(__file__).parents[1] / "results" / "seed" / "comparison.json"
    comparison = json.loads(published.read_text(encoding="utf-8"))
    for model in comparison["models"]:
        model["history"] = model["history"][:2]
        for evaluation in model["evaluations"].values():
            evaluation["group_miou"] = dict(list(evaluation["group_miou"].items())[:2])
    comparison["baselines"], comparison["examples"] = comparison["baselines"][:1], []
    first = comparison["models"][0]
    contents = (
        RunConfig().model_dump(mode="json"),
        first["history"][0],
        first["evaluations"]["val"],
        images,
        comparison,
    )
    return {name: json.dumps(content).encode() for name, content in zip(RUN_FILES, contents, strict=True)}


def run_seeds() -> list[bytes]:
    """Returns each file of a run, led by its number."""
    nested = [bytes([number]) + b"[" * 3000 for number in range(len(RUN_FILES))]
    return nested + [bytes([number]) + content for number, content in enumerate(_run_files().values())]


# --- weights ---------------------------------------------------------------------------------------------------------


def read_checkpoint(content: bytes) -> None:
    """A checkpoint that training resumes from, and the same file as weights."""
    from petseg.schema import EpochRow
    from petseg.training.checkpoint import State, load_weights, restore
    from petseg.training.loop import make_optimiser
    from petseg.training.runs import write_metrics

    model, config = _tiny_model()
    path = _file("resume.safetensors", content)
    _file("best.safetensors", content)
    row = dict.fromkeys(("seconds", "train_seconds", "learning_rate", "train_loss", "val_loss", "val_accuracy"), 0.5)
    write_metrics(path.parent, [EpochRow(**row, epoch=epoch, val_miou=epoch / 10) for epoch in range(1, 4)])
    with suppress(RefusedError), _refusals():
        load_weights(model, path)
    with _refusals():
        assert restore(path.parent, State(model, make_optimiser(model, config), None))


@cache
def _tiny_model() -> Any:
    import torch

    from petseg.config import ModelConfig, TrainConfig
    from petseg.models import build_model

    torch.set_num_threads(1)
    return build_model(ModelConfig(base_channels=1, depth=1), 3), TrainConfig()


def checkpoint_seeds() -> list[bytes]:
    """Returns checkpoints of the small model: weights alone, and with the optimiser's state."""
    import torch
    from safetensors.torch import save

    from petseg.training.loop import make_optimiser

    weights = {name: tensor.contiguous() for name, tensor in _tiny_model()[0].state_dict().items()}
    state = {f"model.{name}": tensor for name, tensor in weights.items()}
    groups = make_optimiser(*_tiny_model()).param_groups
    for number, parameter in enumerate(parameter for group in groups for parameter in group["params"]):
        state[f"optimiser.{number}.step"] = torch.tensor(3.0)
        for kind in ("exp_avg", "exp_avg_sq"):
            state[f"optimiser.{number}.{kind}"] = torch.zeros_like(parameter)
    return [
        save(weights, {"epoch": "1"}),
        save(state, {"epoch": "3"}),
        save({"a": torch.zeros(2, dtype=torch.bfloat16)}, {"epoch": "2"}),
        save({"a": torch.zeros(0)}),
    ]


def mend_checkpoint(content: bytes) -> bytes:
    """Returns a safetensors file with the length of its header put right, where the header still has its end."""
    end = content.find(b"}}", 8) + 2
    while content[end : end + 1] == b" ":
        end += 1
    return struct.pack("<Q", end - 8) + content[8:] if end > 9 else content


def read_onnx(content: bytes) -> None:
    """A model file given with --model, and a photo through it."""
    import numpy as np

    from petseg.predict.segmenter import Segmenter

    with _refusals():
        segmenter = Segmenter(_file("model.onnx", content), threads=1)
        found = segmenter(np.full((20, 30, 3), 99, np.uint8))
        json.dumps(found.summary().to_dict(), allow_nan=False)
        found.cutout()
        assert found.class_ids.shape == found.mask.shape == (20, 30)


def read_card(content: bytes) -> None:
    """A sound network with a card as bytes say: a name and its JSON on each line."""
    import onnx

    file = onnx.ModelProto.FromString(onnx_seeds()[0])
    del file.metadata_props[:]
    for line in content.decode(errors="replace").splitlines()[:20]:
        name, _, value = line.partition(" ")
        file.metadata_props.add(key=name, value=value)
    read_onnx(file.SerializeToString())


CARD = {"classes": ["pet", "background", "border"], "size": 16, "scores": {"miou": 0.7}, "title": "U-Net"}


@cache
def onnx_seeds() -> list[bytes]:
    """Returns small networks with their cards: as `petseg export` writes, one of four classes, some that lie."""
    from onnx import TensorProto, helper

    def network(classes: int, card: dict[str, Any], pads: int = 0) -> bytes:
        nodes = [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["planes", "weight"], ["logits"], kernel_shape=[1, 1], pads=[pads] * 4),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ]
        weight = helper.make_tensor(
            "weight", TensorProto.FLOAT, [classes, 3, 1, 1], [0.01 * n for n in range(3 * classes)]
        )
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 16, 16, 3])
        answer = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", classes, None, None])
        graph = helper.make_graph(nodes, "pets", [image], [answer], [weight])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        for name, value in card.items():
            model.metadata_props.add(key=name, value=json.dumps(value))
        content: bytes = model.SerializeToString()
        return content

    species = {**CARD, "classes": ["cat", "dog", "background", "border"]}
    return [network(3, CARD), network(4, species), network(3, {}), network(2, CARD), network(3, CARD, pads=3)]


def card_seeds() -> list[bytes]:
    """Returns cards: right, wrong and odd."""
    right = [f"{name} {json.dumps(value)}" for name, value in CARD.items()]
    others = (
        ["size 16", 'classes ["pet"]'],
        ["size 1000000000", right[0]],
        ["size -1", right[0]],
        ["size 16.0", right[0]],
        ["size true", 'classes "pbx"'],
        ['size "16"', "classes [1, 2, 3]"],
        ["size 16", 'classes ["pet", "pet", "background"]'],
        ["size 16", 'classes ["background", "border", "pet"]'],
        ["size null", "classes {}"],
        ["size 16", "classes " + "[" * 3000],
    )
    alike = (right, right[::-1], [*right, "config {}", 'licence {"weights": "CC BY-SA 4.0"}'], right[:2])
    return ["\n".join(lines).encode() for lines in (*alike, *others)]


# --- the server ------------------------------------------------------------------------------------------------------

KINDS = (
    "multipart/form-data; boundary=b",
    "image/png",
    "application/octet-stream",
    "multipart/form-data",
    "text/plain",
)
QUERIES = ("", "output=json", "output=mask&output=cutout", "model=segnet&output=overlay", "output=no", "model=%00")


def read_body(content: bytes) -> None:
    """The body of a request; the first byte says its content type and its query."""
    import asyncio

    first = content[0] if content else 0
    sent: list[dict[str, Any]] = []
    messages = [{"type": "http.request", "body": content[1:], "more_body": False}]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/segment",
        "query_string": QUERIES[first // len(KINDS) % len(QUERIES)].encode(),
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", KINDS[first % len(KINDS)].encode())],
    }

    async def ask() -> None:
        async def receive() -> dict[str, Any]:
            return messages.pop() if messages else await asyncio.Future()

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await _server()(scope, receive, send)

    asyncio.run(ask())
    assert sent[0]["status"] in (200, 400, 413, 415, 422), sent
    if sent[0]["status"] != 200:
        detail = json.loads(sent[1]["body"])["detail"]
        assert "\n" not in detail, detail
        raise RefusedError(detail)


@cache
def _server() -> Any:
    from petseg.config import ServeConfig
    from petseg.serve import make_app

    return make_app(ServeConfig(concurrent=1, pixels=100_000))


def body_seeds() -> list[bytes]:
    """Returns bodies as curl sends them, and photos alone, led by the number of their content type and query."""
    photo = small_image("PNG")
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    forms = [
        part + photo + b"\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' + part + photo + b"\r\n--b--\r\n",
        part.replace(b"image", b"photo") + photo + b"\r\n--b--\r\n",
    ]
    return [
        *(bytes([len(KINDS) * query]) + form for form in forms for query in range(len(QUERIES))),
        *(bytes([1]) + content for content in image_seeds()[:24]),
        *(bytes([kind]) + photo for kind in range(2, len(KINDS))),
    ]


TARGETS = {
    "image": Target(read_image, image_seeds, mend_png),
    "trimap": Target(read_pair, trimap_seeds, mend_png),
    "mask": Target(read_mask, mask_seeds, mend_png),
    "archive": Target(read_archive, archive_seeds),
    "annotations": Target(read_annotations, annotation_seeds),
    "classes": Target(read_classes, classes_seeds),
    "recipe": Target(read_recipe, recipe_seeds),
    "run": Target(read_run, run_seeds),
    "checkpoint": Target(read_checkpoint, checkpoint_seeds, mend_checkpoint),
    "onnx": Target(read_onnx, onnx_seeds),
    "card": Target(read_card, card_seeds),
    "body": Target(read_body, body_seeds),
}


def touched(content: bytes, draw: random.Random) -> bytes:
    """Returns a file with one to three small changes: a byte, a bit, a run cut out or repeated."""
    found = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 3))):
        place, length = draw.randrange(len(found) + 1), draw.choice((1, 2, 4, 16, 200))
        kind = draw.randrange(4)
        if kind == 0:
            found[place : place + 1] = draw.randbytes(1)
        elif kind == 1 and place < len(found):
            found[place] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del found[place : place + length]
        else:
            found[place:place] = found[place : place + length]
    return bytes(found)


def _counter() -> memoryview:
    """Returns a number in the file that PETSEG_FUZZ_READ names: libFuzzer ends its process without a word to Python."""
    name = os.environ.get("PETSEG_FUZZ_READ")
    if name is None:
        return memoryview(bytearray(8)).cast("Q")
    with Path(name).open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")


def main() -> None:
    """Fuzzes one target under libFuzzer, whose options follow its name."""
    import logging
    import warnings

    import atheris

    with atheris.instrument_imports(include=["petseg", "PIL", "tomllib", "python_multipart", "starlette.formparsers"]):
        target = TARGETS[sys.argv[1]]
        for seed in target.seeds():
            with suppress(RefusedError):
                target.read(seed)
    warnings.simplefilter("ignore")  # Pillow's, of metadata that it passes over
    logging.disable()

    read = _counter()

    def one(content: bytes) -> None:
        with suppress(RefusedError):
            target.read(content)
            read[0] += 1

    seeds = target.seeds()

    def mutate(content: bytes, longest: int, seed: int) -> bytes:
        draw = random.Random(seed)  # noqa: S311 - cases, not secrets
        # libFuzzer piles mutations up, and sees no coverage in libraries written in C: half start from a sound file
        mutated = touched(draw.choice(seeds), draw) if draw.random() < 0.5 else atheris.Mutate(content, longest)
        return bytes(target.mend(mutated) if draw.random() < 0.9 else mutated)[:longest]

    os.environ["OMP_NUM_THREADS"] = "1"
    atheris.Setup([sys.argv[0], *sys.argv[2:]], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
