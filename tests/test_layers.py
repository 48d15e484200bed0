"""Nothing heavy is imported before a subcommand needs it; import-linter checks the layers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("module", ["petseg", "petseg.cli"])
def test_importing_the_command_line_is_light(module):
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    loaded = done.stdout.split()
    assert "petseg" in loaded
    assert not {"torch", "numpy", "pydantic", "PIL", "scipy", "matplotlib", "jinja2", "fastapi"} & {*loaded}


@pytest.mark.parametrize(
    "module",
    [
        "petseg.config",
        "petseg.data.cache",
        "petseg.data.check",
        "petseg.training.runs",
        "petseg.predict.segmenter",
        "petseg.predict.outputs",
    ],
)
def test_reading_data_and_predicting_need_no_torch(module):
    """What the base install is for: these run where torch is not."""
    code = f"import sys; sys.modules['torch'] = None; import {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert module in done.stdout.split()


def test_no_module_imports_a_private_name_of_another():
    """A name with an underscore may change without a look at who uses it."""
    for path in (ROOT / "petseg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("petseg"):
                private = [alias.name for alias in node.names if alias.name.startswith("_") and alias.name[:2] != "__"]
                assert not private, f"{path}: {node.module} {private}"
