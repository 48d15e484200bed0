"""Export: ONNX Runtime gives torch's answers, and a file that does not is never kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch.nn import functional as F

from petseg import storage
from petseg.config import ModelConfig, load_recipe
from petseg.data.cache import prepare
from petseg.data.sources import open_dataset
from petseg.errors import PetsegError
from petseg.export import onnx as export
from petseg.export.onnx import (
    AGREEMENT,
    drawn_images,
    export_model,
    export_run,
    exported_run,
    stored_in_fp16,
    without_concat,
)
from petseg.models import to_unit_range
from petseg.models.segnet import max_unpool, pool_places, unpool_places
from petseg.predict.segmenter import WEIGHTS, Segmenter, shipped_models
from petseg.training.device import choose_hardware
from petseg.training.inference import Network, build_network
from petseg.training.loop import Execution, train
from tests.conftest import TINY, scripts

CLASSES = [
    {"name": "pet", "colour": "#0072B2", "role": "foreground"},
    {"name": "background", "colour": "#BBBBBB", "role": "background"},
    {"name": "border", "colour": "#E69F00", "role": "boundary"},
]
CPU = choose_hardware("fp32", "cpu")


@pytest.fixture(scope="module")
def run(pets_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SegNet trained for two epochs, with a made-up evaluation."""
    folder = tmp_path_factory.mktemp("export") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETSEG_CACHE", str(folder.parent / "cache"))
        config = load_recipe("default", TINY).for_model("segnet")
        train(config, prepare(open_dataset(pets_folder), 32), folder, Execution(hardware=CPU))
    storage.write_json(folder / "evaluations" / "val.json", {"split": "val", "miou": 0.5, "group_miou": {}})
    return folder


def trained_like(name: str, classes: int) -> Network:
    """A model of random weights whose batch normalisation has seen images."""
    torch.manual_seed(0)
    network = build_network(ModelConfig(name=name, base_channels=4), classes, CPU)
    images = to_unit_range(torch.from_numpy(drawn_images(32)))
    with torch.no_grad():
        for _ in range(20):
            network.logits(images)
    network.module.eval()
    return network


def probabilities(network: Network, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network.logits(to_unit_range(torch.from_numpy(images))).softmax(dim=1).numpy()


@pytest.mark.parametrize("name", ["unet", "segnet"])
@pytest.mark.parametrize("size", [32, 37])
@pytest.mark.parametrize("fp16", [True, False])
def test_the_file_gives_torch_s_probabilities(tmp_path, name, size, fp16):
    model = trained_like(name, 3)
    out = tmp_path / "model.onnx"
    export_model(model, {"classes": CLASSES, "size": size}, out, fp16=fp16)
    images = np.random.default_rng(1).integers(0, 256, (5, size, size, 3), np.uint8)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (ours,) = session.run(None, {"image": images})
    theirs = probabilities(model, images)
    assert np.abs(ours - theirs).max() < (2e-3 if fp16 else 1e-4)
    assert np.abs(ours.sum(axis=1) - 1).max() < 1e-4
    (alone,) = session.run(None, {"image": images[3:4]})
    assert np.abs(alone - ours[3:4]).max() < 1e-4


@pytest.mark.parametrize("name", ["unet", "segnet"])
def test_a_file_takes_images_of_other_sizes(name, tmp_path):
    model = trained_like(name, 3)
    out = tmp_path / "model.onnx"
    export_model(model, {"classes": CLASSES, "size": 64}, out, fp16=False)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).integers(0, 256, (3, 96, 160, 3), np.uint8)
    theirs = probabilities(model, images)
    assert np.abs(session.run(None, {"image": images})[0] - theirs).max() < 1e-3


def test_a_size_that_does_not_halve_evenly_stays_fixed(tmp_path):
    out = tmp_path / "model.onnx"
    export_model(trained_like("unet", 3), {"classes": CLASSES, "size": 24}, out, fp16=False)
    axes = onnx.load(out).graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_value for axis in axes] == [0, 24, 24, 3]


def test_metadata_say_what_a_reader_needs(run, tmp_path):
    out = tmp_path / "model.onnx"
    export_run(run, out)
    known = {entry.key: json.loads(entry.value) for entry in onnx.load(out).metadata_props}
    assert known["classes"] == CLASSES
    assert known["size"] == 32
    assert known["model"] == "segnet"
    assert known["scores"] == {"split": "val", "miou": 0.5}
    assert known["config"]["train"]["epochs"] == 2
    assert known["parity"]["agreement"] >= AGREEMENT
    assert "CC BY-SA 4.0" in known["licence"]["data"]
    assert [entry.name for entry in Segmenter(out).classes] == ["pet", "background", "border"]


def test_the_file_holds_no_path_of_this_machine(run, tmp_path):
    out = tmp_path / "model.onnx"
    export_run(run, out)
    content = out.read_bytes()
    for message in (str(Path(export.__file__).parent), str(tmp_path), "site-packages", 'File "'):
        assert message.encode() not in content


def test_a_file_that_disagrees_is_refused_with_the_difference(run, tmp_path, monkeypatch):
    def spoilt(file, *, fp32_below):
        copy = stored_in_fp16(file, fp32_below=fp32_below)
        for tensor in copy.graph.initializer:
            if len(tensor.dims) == 4:
                values = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(values * values.dtype.type(1.5), tensor.name))
        return copy

    monkeypatch.setattr(export, "stored_in_fp16", spoilt)
    with pytest.raises(PetsegError, match=r"agrees with torch on [\d.]+ % of pixels .*nothing was written"):
        export_run(run, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_run_that_fp16_would_change_is_kept_in_fp32(run, tmp_path, monkeypatch):
    place = tmp_path / "run"
    shutil.copytree(run, place)
    (place / "model.onnx").unlink(missing_ok=True)
    made = export.export_model

    def refused(*arguments: Any, fp16: bool) -> dict[str, Any]:
        if fp16:
            raise PetsegError("agrees too little")
        return made(*arguments, fp16=fp16)

    monkeypatch.setattr(export, "export_model", refused)
    assert Segmenter(exported_run(place)).card["fp16"] is False


def test_an_exported_run_has_the_scores_of_today(run, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(run, place)
    shutil.rmtree(place / "evaluations", ignore_errors=True)
    assert Segmenter(exported_run(place)).card["scores"] == {}
    storage.write_json(place / "evaluations" / "val.json", {"split": "val", "images": 3, "miou": 0.5})
    assert Segmenter(exported_run(place)).card["scores"]["miou"] == 0.5


def test_an_exported_run_is_kept_until_its_weights_change(pets_folder, run):
    first = exported_run(run)
    stamp = first.stat().st_mtime_ns
    assert exported_run(run).stat().st_mtime_ns == stamp
    weights = run / "best.safetensors"
    before = weights.read_bytes()
    weights.write_bytes((run / "last.safetensors").read_bytes())
    changed = before != weights.read_bytes()
    exported_run(run)
    weights.write_bytes(before)
    assert (first.stat().st_mtime_ns != stamp) == changed


def test_fp16_halves_large_tensors():
    large, small = np.linspace(0, 1, 5000, dtype=np.float32), np.array([1, 2], np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [name], [f"{name}_out"]) for name in ("large", "small")],
        "graph",
        [],
        [
            onnx.helper.make_tensor_value_info(f"{name}_out", onnx.TensorProto.FLOAT, values.shape)
            for name, values in (("large", large), ("small", small))
        ],
        [numpy_helper.from_array(values, name) for name, values in (("large", large), ("small", small))],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    stored = stored_in_fp16(model, fp32_below=2000)
    onnx.checker.check_model(stored)
    kinds = {tensor.name: tensor.data_type for tensor in stored.graph.initializer}
    assert kinds == {"large.fp16": onnx.TensorProto.FLOAT16, "small": onnx.TensorProto.FLOAT}
    session = onnxruntime.InferenceSession(stored.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {})
    assert np.array_equal(outputs[0], large.astype(np.float16).astype(np.float32))
    assert np.array_equal(outputs[1], small)
    assert {tensor.name for tensor in model.graph.initializer} == {"large", "small"}


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 1), (2, 1), (1, 2), (5, 1), (13, 6)])
@pytest.mark.parametrize("values", [2, 100])
def test_places_pool_and_unpool_as_indices_do_to_the_bit(size, values):
    """Few values make many ties; ReLU's zeros make more."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-1, values, (2, 3, *size), generator=generator).float().relu()
    pooled, indices = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
    ours, places = pool_places(x)
    assert torch.equal(ours, pooled)
    assert places.dtype == torch.uint8
    assert set(places.unique().tolist()) <= {0, 1, 2, 3}
    y = torch.randn(pooled.shape, generator=generator)
    assert torch.equal(unpool_places(y, places, size), max_unpool(y, indices, size))


def test_segnet_s_file_scatters_nothing(run, tmp_path):
    export_run(run, tmp_path / "model.onnx")
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert not {kind for kind in kinds if "Scatter" in kind or "Unpool" in kind}


@pytest.mark.parametrize("name", shipped_models())
def test_what_onnx_runtime_makes_of_a_shipped_model_is_the_network_alone(name, tmp_path):
    """Structure, not time: batch normalisation folded, weights cast once at loading, nothing scattered or joined."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it warns that the file fits this machine alone
    onnxruntime.InferenceSession(WEIGHTS / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    kinds = Counter(node.op_type for node in graph.node)
    for foreign in ("Scatter", "Gather", "Unpool", "BatchNormalization", "Softmax", "Resize", "Upsample"):
        assert not [kind for kind in kinds if foreign in kind]
    joined = {node.output[0] for node in graph.node if node.op_type == "Concat"}  # of shapes alone
    assert not [
        node.name for node in graph.node if node.op_type in ("Conv", "ReorderInput") and node.input[0] in joined
    ]
    weights = {tensor.name for tensor in graph.initializer}
    assert not [node.name for node in graph.node if node.op_type == "Cast" and node.input[0] in weights]
    assert not [tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
    assert kinds["Transpose"] == 1, "the image, once"


def test_convolutions_of_the_parts_are_the_convolution_of_the_whole():
    generator = np.random.default_rng(0)
    kernel, bias = generator.normal(size=(4, 5, 3, 3)).astype(np.float32), np.arange(4, dtype=np.float32)
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    nodes = [
        onnx.helper.make_node("Relu", ["a"], ["x"]),
        onnx.helper.make_node("Relu", ["b"], ["y"]),
        onnx.helper.make_node("Concat", ["x", "y"], ["whole"], axis=1),
        onnx.helper.make_node("Conv", ["whole", "kernel", "bias"], ["out"], pads=[1] * 4),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [info("a", kind, [1, 2, 6, 7]), info("b", kind, [1, 3, 6, 7])],
        [info("out", kind, [1, 4, 6, 7])],
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(bias, "bias")],
        value_info=[info("x", kind, [1, 2, 6, 7]), info("y", kind, [1, 3, 6, 7])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    split = without_concat(model)
    onnx.checker.check_model(split, full_check=True)
    assert Counter(node.op_type for node in split.graph.node) == {"Relu": 2, "Conv": 2, "Add": 1}
    feeds = {name: generator.normal(size=(1, width, 6, 7)).astype(np.float32) for name, width in (("a", 2), ("b", 3))}
    theirs, ours = (
        onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for file in (model, split)
    )
    assert np.abs(ours - theirs).max() < 1e-5
    assert len(model.graph.node) == 4


@pytest.fixture
def ship():
    return scripts("ship")


def test_shipping_writes_a_model_and_its_card(ship, run, tmp_path):
    results = tmp_path / "results"
    out = ship.ship(run, "segnet_tiny", tmp_path, results)
    card = json.loads((tmp_path / "segnet_tiny.json").read_text(encoding="utf-8"))
    content = out.read_bytes()
    assert (card["bytes"], card["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert card["scores"]["miou"] == 0.5
    assert card["environment"]["torch"] == torch.__version__
    assert "Parkhi" in card["licence"]["data"]
    assert {"data", "definitions", "limits"} <= set(card)
    kept = {path.relative_to(results / "segnet_tiny").as_posix() for path in results.rglob("*") if path.is_file()}
    assert {"config.json", "environment.json", "data.json", "metrics.jsonl", "evaluations/val.json"} <= kept
    assert not any(name.endswith(".safetensors") for name in kept)


def test_shipping_refuses_what_is_unscored_or_too_large(ship, run, tmp_path, monkeypatch):
    with pytest.raises(PetsegError, match="a model is shipped with its scores: run `petseg evaluate"):
        ship.ship(tmp_path / "unscored", "segnet_tiny", tmp_path, tmp_path)
    monkeypatch.setattr(ship, "LARGEST", 1000)
    with pytest.raises(PetsegError, match=r"would make [\d,]+ bytes of weights; wanted at most 1,000"):
        ship.ship(run, "segnet_tiny", tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(PetsegError, match="is this the folder of a finished run"):
        export_run(tmp_path, tmp_path / "model.onnx")
