"""The public Python API: every name resolves, is documented, and costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import petseg


@pytest.mark.parametrize("name", [name for name in petseg.__all__ if name != "__version__"])
def test_a_public_name_resolves_and_is_documented(name: str) -> None:
    assert getattr(petseg, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'unet'"):
        petseg.unet  # noqa: B018


def test_importing_petseg_imports_nothing_heavy() -> None:
    code = "import petseg, sys; print(sorted({'torch', 'numpy', 'pydantic', 'PIL'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("code", "foreign"),
    [
        (
            "sys.argv = ['petseg', '--help']; from petseg.cli import main; main()",
            "numpy PIL onnxruntime pydantic torch",
        ),
        (
            "sys.argv = ['petseg', 'predict', '--help']; from petseg.cli import main; main()",
            "numpy PIL onnxruntime torch",
        ),
        ("import petseg.cli, petseg.outputs, petseg.predict", "pydantic torch onnx openvino"),
    ],
    ids=["help", "predict --help", "predict"],
)
def test_a_command_starts_without_what_it_does_not_need(code: str, foreign: str) -> None:
    """What is loaded decides how soon it answers: pydantic takes .07 s, numpy .05, ONNX Runtime .04 (2026-11-22)."""
    command = (
        f"import atexit, sys; atexit.register(lambda: print(sorted({set(foreign.split())} & set(sys.modules)))); {code}"
    )
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
