"""What tests share: one thread, a small made set, its prepared cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from petseg.config import Recipe, load_recipe
from petseg.data.cache import Prepared, prepare
from petseg.data.synthetic import make_pets

torch.set_num_threads(1)  # 60 steps of a small model took 3 s with one thread and 27 s with two

TINY = ("data.size=32", "model.base_channels=4", "train.epochs=2", "train.batch_size=8", "train.precision=fp32")
"""Settings under which a run takes a second."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache or data."""
    monkeypatch.setenv("PETSEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="session")
def pets_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made set: 6 breeds of 8 pictures, half of them in test.txt."""
    return make_pets(tmp_path_factory.mktemp("pets"), per_breed=8, breeds=6, size=64)


@pytest.fixture
def prepared(pets_folder: Path) -> Prepared:
    return prepare(pets_folder, 32)


@pytest.fixture
def tiny_recipe() -> Recipe:
    return load_recipe("default", TINY)
