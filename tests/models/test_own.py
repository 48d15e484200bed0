"""Networks of one's own, in files: what they import, their names, and what is kept of them with a run."""

import inspect
import pickle
import re
import sys

import pytest
import torch

from petseg.config import ModelConfig, Recipe
from petseg.models import build_model, model_input, run_config, title_of
from tests.conftest import refused
from tests.test_layers import ROOT

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


def test_the_programs_of_the_documents(tmp_path):
    text = (ROOT / "docs" / "any-network.md").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), encoding="utf-8")
    names = [f"{tmp_path}/mine.py:{name}" for name in ("MyNet", "Plain", "Plain@width=32", "Gone")]
    assert [title_of(name) for name in names] == ["MyNet", "Two layers", "Two layers, width 32", "Gone"]
    assert title_of("gone/mine.py:Plain@width=32") == "Plain, width 32"
    config = run_config(Recipe(models=(names[2],)), names[2]).model
    assert build_model(config, 5)[0].out_channels == 32
    assert model_input(config).mean == (0.485, 0.456, 0.406)
    assert build_model(ModelConfig(name=names[0]), 5)(torch.zeros(1, 3, 8, 8)).shape == (1, 5, 8, 8)


@pytest.mark.parametrize("ends", ["sys.exit(3)", "__import__('argparse').ArgumentParser().parse_args(['-x'])"])
def test_a_script_that_ends_the_program_is_one_line(tmp_path, ends):
    (tmp_path / "net.py").write_text(f"import sys\n{ends}\n")
    name = f"{tmp_path}/net.py:Net"
    refused(r"^model .*net\.py:Net': SystemExit: \d; wanted a class", build_model, ModelConfig(name=name), 2)
