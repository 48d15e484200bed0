"""Nothing heavy is imported before a subcommand needs it; import-linter checks the layers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def loaded(code):
    program = f"import atexit, sys; atexit.register(lambda: print(*sys.modules)); {code}"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


HEAVY = "torch numpy pydantic PIL scipy matplotlib jinja2 fastapi onnxruntime"
CAT = str(ROOT / "petseg" / "serve" / "page" / "cat.jpg")
RUN = "from petseg.cli import main; main()"


@pytest.mark.parametrize(
    ("code", "foreign"),
    [
        ("import petseg", HEAVY),
        ("import petseg.cli", HEAVY),
        (f"sys.argv = ['petseg', '--help']; {RUN}", HEAVY),
        (f"sys.argv = ['petseg', 'predict', '--help']; {RUN}", "numpy PIL onnxruntime torch"),
        ("import petseg.cli, petseg.predict.outputs, petseg.predict.segmenter", "pydantic torch onnx openvino"),
        (f"sys.argv = ['petseg', 'predict', {CAT!r}, '--json']; {RUN}", "torch ray fsspec pyarrow"),
    ],
)
def test_what_is_not_needed_is_not_loaded(code, foreign):
    """What is loaded decides how soon it answers: pydantic takes .07 s, numpy .05, ONNX Runtime .04 (2026-11-22)."""
    modules = loaded(code)
    assert "petseg" in modules
    assert not set(foreign.split()) & modules


@pytest.mark.parametrize(
    "module",
    ["config", "data.cache", "data.check", "training.runs", "predict.segmenter", "predict.outputs", "serve", "report"],
)
def test_reading_data_predicting_and_showing_need_no_torch(module):
    assert f"petseg.{module}" in loaded(f"sys.modules |= {{'torch': None, 'scipy': None}}; import petseg.{module}")


def test_no_module_imports_a_private_name_of_another():
    for path in (ROOT / "petseg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("petseg"):
                private = [alias.name for alias in node.names if alias.name.startswith("_") and alias.name[:2] != "__"]
                assert not private, f"{path}: {node.module} {private}"
