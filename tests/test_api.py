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
