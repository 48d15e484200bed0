"""The public Python API: every name resolves, is documented, and costs nothing until it is used."""

import ast
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

import petseg
from petseg.data.cache import prepare
from petseg.data.sources import open_dataset
from petseg.models.external import read_tensors as read_encoder
from petseg.predict.segmenter import Segmenter
from petseg.training.checkpoint import read_tensors
from tests.conftest import refused

PACKAGE = Path(petseg.__file__).parent


def test_type_checkers_see_every_public_name_and_an_unknown_one_is_an_attribute_error():
    tree = ast.parse(Path(petseg.__file__).read_text(encoding="utf-8"))
    block, _ = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: node.module for node in imports for alias in node.names}
    assert seen == petseg._HOME
    with pytest.raises(AttributeError, match="no attribute 'unet'"):
        petseg.unet  # noqa: B018


def test_a_prompt_completes_the_public_names():
    assert {*dir(petseg)} == {*petseg.__all__}


@pytest.mark.parametrize("name", [name for name in petseg.__all__ if name != "__version__"])
def test_a_public_name_resolves_and_is_documented(name):
    assert getattr(petseg, name).__doc__


STARTS_OR_EXECUTES = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.loads", "pickle.load", "torch.load"),
    *("marshal.loads", "shelve.open", "joblib.load", "subprocess.run", "subprocess.Popen", "subprocess.check_output"),
    *("torch.hub.load", "importlib.import_module", "yaml.load", "torch.jit.load", "torch.export.load", "ctypes.CDLL"),
}

REASONED = {
    ("ray_tasks.py", "pickle.loads"): "a job of the process that started the task, by way of Ray, which pickles too",
    ("environment.py", "subprocess.run"): "git, for the commit of petseg's own code",
    ("onnx.py", "torch.export.load"): "the program that it has just written, from memory",
    ("memory.py", "ctypes.CDLL"): "malloc's settings, of the C library that this process has already",
    ("external.py", "torch.load"): "encoder weights that others publish, tensors alone: weights_only",
    ("__init__.py", "importlib.import_module"): "petseg's own modules, by its own table",
}


def test_nothing_is_unpickled_or_executed(prepared, pets_folder, tmp_path):
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in STARTS_OR_EXECUTES:
                    found.add((path.name, name))
                allowed = [word for word in node.keywords if word.arg in ("allow_pickle", "shell")]
                assert not allowed, ast.unparse(node)
                if name == "torch.load":
                    assert "weights_only=True" in ast.unparse(node)
    assert found <= set(REASONED), found - set(REASONED)

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was here"),)

    attack = tmp_path / "attack"
    attack.write_bytes(pickle.dumps(Attack()))
    refused("damaged", read_tensors, attack)
    refused("cannot be read", read_encoder, attack)
    refused("not a model", Segmenter, attack.rename(tmp_path / "attack.onnx"))
    objects, images = np.array([Attack()], object), np.array(prepared.images)
    (prepared.folder / "images.npy").unlink()  # it is mapped here
    np.save(prepared.folder / "images.npy", objects, allow_pickle=True)
    assert (prepare(open_dataset(pets_folder), 32).images == images).all()
    assert not (tmp_path / "was here").exists()
    pickle.loads(pickle.dumps(Attack()))
    assert (tmp_path / "was here").exists()  # it would have worked
