"""The small synthetic folders that tests of data read, and copies of them that a test may spoil."""

import shutil

import pytest

from petseg.data.synthetic import make_pets
from tests.data.traps import make_trapped_pets


@pytest.fixture(scope="session")
def eight_pets(tmp_path_factory):
    return make_pets(tmp_path_factory.mktemp("pets"), per_breed=2, breeds=4)


@pytest.fixture(scope="session")
def trapped(tmp_path_factory):
    return make_trapped_pets(tmp_path_factory.mktemp("trapped"))


@pytest.fixture
def copied(eight_pets, tmp_path):
    return shutil.copytree(eight_pets, tmp_path / "copied")


@pytest.fixture
def copied_traps(trapped, tmp_path):
    return shutil.copytree(trapped, tmp_path / "copied_traps")
