"""Networks of one's own, in files: what they import, and that two files are two modules."""

import inspect
import pickle
import sys

import pytest
import torch

from petseg.config import ModelConfig
from petseg.models import build_model

NET = """
from torch import nn
from {blocks} import block
class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layers = block(num_classes)
    def forward(self, image):
        return self.layers(image)  # of {folder}
"""
BLOCK = "from torch import nn\ndef block(num_classes):\n    return nn.Conv2d(3, num_classes, {kernel})\n"


@pytest.fixture(autouse=True)
def own_modules(monkeypatch):
    """Leaves Python's path and modules as they were."""
    known = {*sys.modules}
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in {*sys.modules} - known:
        if name.partition(".")[0] in ("blocks", "parts"):
            del sys.modules[name]


@pytest.fixture(params=["blocks", "parts.blocks", "parts.made.blocks"])
def two_folders(request, tmp_path):
    """Returns the names of two networks, each with a module of the same name beside it, in a package or without one."""
    for folder, kernel in (("a", 1), ("b", 3)):
        file = tmp_path.joinpath(folder, *request.param.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True)
        file.write_text(BLOCK.format(kernel=kernel))
        if "made" in request.param:
            (file.parent / "__init__.py").touch()
            (file.parent.parent / "__init__.py").touch()
        (tmp_path / folder / "net.py").write_text(NET.format(blocks=request.param, folder=folder))
    return [f"{tmp_path}/{folder}/net.py:Net" for folder in "ab"]


def test_a_file_imports_what_lies_beside_it_and_not_beside_another(two_folders):
    first, second = (build_model(ModelConfig(name=name), 2) for name in two_folders)
    assert (first.layers.kernel_size, second.layers.kernel_size) == ((1, 1), (3, 3))
    assert build_model(ModelConfig(name=two_folders[0]), 2).layers.kernel_size == (1, 1)


def test_files_of_one_name_are_two_modules(two_folders):
    for name, folder in zip(two_folders, "ab", strict=True):
        model = build_model(ModelConfig(name=name), 2)
        build_model(ModelConfig(name=two_folders[1]), 2)
        copied = pickle.loads(pickle.dumps(model))
        assert torch.equal(copied.layers.weight, model.layers.weight)
        assert f"# of {folder}" in inspect.getsource(type(model))
