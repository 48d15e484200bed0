"""A run of a network in a file: found from any folder, and a file that has changed is remarked."""

import json
import logging
from hashlib import sha256

import pytest
import torch

from petseg.config import ModelConfig, RunConfig
from petseg.evaluation.evaluate import load_run
from petseg.export.onnx import export_run
from petseg.storage import read_json
from petseg.training.start import load_teacher, model_of
from tests.conftest import CPU, names, refused, scripts, tiny, train_on_cpu

TEXT = """
from torch import nn
from petseg.models import Builder
class Net(nn.Conv2d):
    def __init__(self, num_classes):
        super().__init__(3, num_classes, 1)
    def forward(self, image):
        return super().forward(image)
Named = Builder("My own", Net)
"""
EDITED = TEXT.replace("super().forward(image)", "2 * super().forward(image)")


@pytest.fixture
def run(prepared, tmp_path, monkeypatch):
    """Returns the folder of a run of nets/odd.py:Named, seen from another folder than it was trained in."""
    (tmp_path / "work" / "nets").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "work" / "nets" / "odd.py").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "work")
    train_on_cpu(config_of(2), prepared, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "run"


def config_of(epochs):
    usual = tiny(f"train.epochs={epochs}")
    return RunConfig(model=ModelConfig(name="nets/odd.py:Named"), data=usual.data, train=usual.train)


def logits(run):
    with torch.no_grad():
        return load_run(run, CPU).network.logits(torch.full((1, 3, 32, 32), 0.3))


def test_a_run_is_found_from_another_folder(run, prepared, tmp_path, monkeypatch, caplog):
    file = tmp_path / "work" / "nets" / "odd.py"
    assert read_json(run / "network.json") == {"file": str(file), "sha256": sha256(TEXT.encode()).hexdigest()}
    assert read_json(run / "config.json")["model"] == {"name": "nets/odd.py:Named"}, "as it was typed"
    found = logits(run)
    monkeypatch.chdir(tmp_path / "work")
    assert torch.equal(logits(run), found)
    assert model_of(str(run)).name == "nets/odd.py:Named"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert model_of(str(run)).name == f"{file}:Named", "where the typed name leads nowhere"
    assert load_teacher(str(run), prepared.dataset.classes, CPU, 32).module.out_channels == 3
    assert len(train_on_cpu(config_of(3), prepared, run, resume=True, more_epochs=True)) == 3
    assert read_json(run / "config.json")["model"] == {"name": "nets/odd.py:Named"}
    assert caplog.messages == []
    metadata = export_run(run, tmp_path / "model.onnx", fp16=False)
    assert metadata["title"] == "My own"
    assert str(tmp_path) not in json.dumps(metadata)


def test_a_changed_file_is_remarked_once(run, tmp_path, caplog):
    before = logits(run)
    (tmp_path / "work" / "nets" / "odd.py").write_text(EDITED, encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="petseg"):
        assert torch.allclose(logits(run), 2 * before)
        logits(run)
    assert caplog.messages == [
        f"petseg: warning: {run}: {tmp_path}/work/nets/odd.py has changed since the run began, so scores may differ; "
        "restore the file"
    ]


def test_a_file_that_is_gone_and_a_run_of_before(run, tmp_path, monkeypatch):
    (tmp_path / "work" / "nets" / "odd.py").rename(tmp_path / "odd.py")
    refused(r"^model 'nets/odd\.py:Named': FileNotFoundError: ", load_run, run, CPU)
    (tmp_path / "odd.py").rename(tmp_path / "work" / "nets" / "odd.py")
    (run / "network.json").unlink()
    refused(r"^model 'nets/odd\.py:Named': FileNotFoundError: ", load_run, run, CPU)
    monkeypatch.chdir(tmp_path / "work")
    assert logits(run).shape == (1, 3, 32, 32)


def test_what_is_published_or_packed_names_no_folder_of_this_machine(run, tmp_path):
    copied = scripts("publish").copy_records(run, tmp_path / "published")
    assert "config.json" in names(copied)
    packed = dict(scripts("pack").run_files(run))
    assert "run/config.json" in packed
    texts = [path.read_text() for path in copied.glob("*.json")] + [str(content) for content in packed.values()]
    assert not any("network.json" in name for name in (*names(copied), *packed))
    assert not any(str(tmp_path / "work") in text for text in texts)


def test_a_model_of_the_package_has_no_file(prepared, tmp_path):
    train_on_cpu(tiny("train.epochs=1"), prepared, tmp_path / "unet")
    assert "network.json" not in names(tmp_path / "unet")
