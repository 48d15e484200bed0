"""`petseg bench`: what it measures, what it says where something is missing; no test here looks at a time."""

import json
import re

import numpy as np
import pytest

from petseg.errors import PetsegError
from petseg.export import bench
from petseg.export.onnx import export_model
from petseg.shipped import DEFAULT
from tests.cli.test_commands import one_line_error, petseg, succeeds
from tests.export.test_onnx import CLASSES, trained_like
from tests.predict.test_segmenter import toy_model


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "small.onnx"
    config = {"model": {"name": "unet", "base_channels": 4, "depth": 1}}
    description = {"classes": CLASSES, "size": 64, "config": config}
    export_model(trained_like("unet", 3, 1), description, out)
    return str(out)


def test_each_runtime_of_each_size_has_a_row(small, tmp_path):
    out = tmp_path / "bench.json"
    runtimes = ["torch", "onnxruntime-int8", "openvino-bf16", "openvino-int8"]  # each starts a process for each size
    result = succeeds(
        *("bench", "--model", small, "--size", "32,64", "--threads", "1", "--turns", "2", "--out", out),
        *(word for name in runtimes for word in ("--runtime", name)),
    )
    found = json.loads(out.read_text(encoding="utf-8"))
    wanted = [(side, name) for side in (32, 64) for name in runtimes]
    assert [(row["size"], row["runtime"]) for row in found["rows"]] == wanted
    for row in found["rows"]:
        assert 0 < row["p50_low_ms"] <= row["p50_high_ms"]
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert len(row["turn_medians_ms"]) == 2
        assert row["repeats"] >= 10
        assert row["peak_mb"] is None or row["peak_mb"] > 0.1
        assert row["title"] in result.stdout
    assert found["environment"]["processor"]
    assert found["command"].startswith("petseg bench --model ")
    assert found["not_measured"] == {}


def test_models_at_their_own_sizes_take_turns(small, monkeypatch):
    together = []
    monkeypatch.setattr(bench, "_measure", lambda group, *_: together.append({each.size for each in group}) or [])
    bench.bench(bench.Plan([small, "unet_small"], runtimes=["onnxruntime"], turns=1))
    assert [len(sizes) for sizes in together] == [2]


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (DEFAULT, 304, f"--size 304: {DEFAULT} takes multiples of 32; give 288 or 320"),
        (DEFAULT, 17, "--size 17: segnet_small takes multiples of 16; give 16 or 32"),
        ("fixed.onnx", 96, "--size 96: fixed.onnx takes 64 px alone; leave --size out"),
    ],
)
def test_a_size_that_a_network_does_not_take_is_refused_before_the_first_turn(
    model, size, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(bench, "_contenders", pytest.fail)
    monkeypatch.chdir(tmp_path)
    toy_model("fixed.onnx", np.eye(3).tolist(), ["background", "a", "b"], size=64, side=64)
    with pytest.raises(PetsegError, match=f"^{re.escape(message)}$"):
        bench.bench(bench.Plan(["segnet_small", model], sizes=[64, size]))


@pytest.mark.parametrize(
    ("out", "message"),
    [(".", "--out . is a folder; name a file in it"), ("file/bench.json", "file: cannot be written (Not a directory)")],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_first_turn(out, message, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "bench", pytest.fail)
    (tmp_path / "file").touch()
    assert message in one_line_error(petseg("bench", "--model", DEFAULT, "--out", out, cwd=tmp_path))


def test_a_runtime_that_cannot_compute_is_named_and_one_that_is_not_installed_told(small, monkeypatch):
    damaged = bench.Contender("m", 32, 1, "onnxruntime", b"damaged", {}, 3)
    with pytest.raises(PetsegError, match=r"m on onnxruntime: .*; leave it out with --runtime"):
        bench._measure([damaged], 1, print)
    there = bench.find_spec
    monkeypatch.setattr(bench, "find_spec", lambda name: None if name in ("openvino", "torch", "onnx") else there(name))
    result = bench.bench(bench.Plan([small], turns=1))
    assert [row.runtime for row in result.rows] == ["onnxruntime"]
    assert result.not_measured == {
        "torch": "needs torch; pip install 'petseg[train]'",
        "torch-bf16": "needs torch; pip install 'petseg[train]'",
        "onnxruntime-int8": "needs onnx and torch; pip install 'petseg[export]'",
        "openvino": "needs openvino; pip install 'petseg[openvino]'",
        "openvino-bf16": "needs openvino; pip install 'petseg[openvino]'",
        "openvino-int8": "needs openvino and onnx and torch; pip install 'petseg[openvino,export]'",
    }


def test_torch_without_the_library_of_a_network_leaves_that_one_out(small, monkeypatch):
    there = bench.find_spec
    monkeypatch.setattr(bench, "find_spec", lambda name: None if name == "timm" else there(name))
    measured = []
    monkeypatch.setattr(bench, "_measure", lambda group, *_: measured.extend(group) or [])
    result = bench.bench(bench.Plan([DEFAULT, small], runtimes=["torch", "onnxruntime"], turns=1))
    assert {(each.model, each.runtime) for each in measured} == {
        *((model, "onnxruntime") for model in (DEFAULT, small)),
        (small, "torch"),
    }
    assert result.not_measured == {f"{DEFAULT}, torch": "needs timm; pip install 'petseg[models]'"}


def test_figures_of_turns():
    contender = bench.Contender("m", 32, 1, "torch", b"", {}, 3)
    row = bench._row(contender, [[0.001, 0.002, 0.003], [0.004, 0.004, 0.010]], 1.25)
    assert (row.p50_ms, row.p50_low_ms, row.p50_high_ms) == (3.5, 2.0, 4.0)
    assert (row.p95_ms, row.images_per_second) == (pytest.approx(np.quantile([1, 2, 3, 4, 4, 10], 0.95)), 250.0)
    assert row.turn_medians_ms == (2.0, 4.0)
