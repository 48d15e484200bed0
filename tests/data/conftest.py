"""The small synthetic folders that tests of data read, and copies of them that a test may spoil."""

import shutil
from pathlib import Path

import pytest

from petseg.data.synthetic import make_pets
from tests.data.traps import make_trapped_pets


@pytest.fixture(scope="session")
def eight_pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pets(tmp_path_factory.mktemp("pets"), per_breed=2, breeds=4)


@pytest.fixture(scope="session")
def trapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trapped_pets(tmp_path_factory.mktemp("trapped"))


@pytest.fixture
def copied(eight_pets: Path, tmp_path: Path) -> Path:
    return shutil.copytree(eight_pets, tmp_path / "copied")


@pytest.fixture
def copied_traps(trapped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trapped, tmp_path / "copied_traps")
