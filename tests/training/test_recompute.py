"""Activation checkpointing changes the memory of a step, and nothing of what is trained."""

import pytest
import torch
from torch import nn

from petseg.config import ModelConfig, load_recipe
from petseg.evaluation.cost import LiveBytes
from petseg.models import build_model
from petseg.training.checkpoint import LAST
from petseg.training.recompute import recompute_blocks
from tests.conftest import refused, tiny, train_on_cpu


@pytest.mark.parametrize(
    "settings",
    [("model.dropout=0.2", "train.ema=0.5"), ("model.name=segnet",)],
)
def test_a_run_is_the_same(settings, prepared, tmp_path):
    name = "segnet" if "model.name=segnet" in settings else "unet"
    given = [setting for setting in settings if "name" not in setting]
    found = {}
    for recomputed in ("false", "true"):
        config = tiny(*given, "train.deterministic=true", f"train.checkpoint_activations={recomputed}", model=name)
        history = train_on_cpu(config, prepared, tmp_path / recomputed)
        losses = [(row.train_loss, row.val_loss, row.val_miou) for row in history]
        found[recomputed] = losses, (tmp_path / recomputed / LAST).read_bytes()
    assert found["true"] == found["false"], "running statistics included"


@pytest.mark.parametrize(
    ("name", "blocks", "share"), [("unet", 9, 0.75), ("segnet", 10, 0.75), ("smp:Unet/resnet18", 12, 1.0)]
)
def test_a_step_keeps_less(name, blocks, share):
    if name.startswith("smp:"):
        pytest.importorskip("segmentation_models_pytorch", reason="NO MODELS: pip install 'petseg[models]'")
    peaks = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        model = build_model(ModelConfig(name=name), 3).train()
        if recomputed:
            assert recompute_blocks(model) == blocks
        images = torch.rand(8, 3, 64, 64)
        with LiveBytes() as step:
            model(images).square().mean().backward()
        peaks.append(step.peak)
    assert peaks[1] < share * peaks[0]


def test_single_layers_are_no_blocks():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1))
    assert recompute_blocks(plain) == 0
    match = "train.compile and train.checkpoint_activations exclude each other; choose one"
    refused(match, load_recipe, "default", ["compile=true", "checkpoint_activations=true"])
