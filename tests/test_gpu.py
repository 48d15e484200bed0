"""What only a GPU can show: kernels, bf16, compilation, CUDA graphs, data on the device, resuming to the same result.

Skipped, loudly, where there is none.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from petseg import runs
from petseg.config import AugmentConfig, ModelConfig, RunConfig, load_recipe
from petseg.data.augment import arrange, augment, recolour
from petseg.data.cache import prepare
from petseg.data.camera import compress
from petseg.data.oxford_pets import get_task
from petseg.distil import Teacher
from petseg.models import build_model, normalise
from petseg.train import (
    Hardware,
    _Average,
    _fastest_kernels,
    choose_hardware,
    compiled,
    load_splits,
    make_optimiser,
    read_tensors,
    train,
    train_step,
    validate,
)

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU: the tests of CUDA were SKIPPED"),
]

STRONG = AugmentConfig(
    **{"composite": 0.5, "background_crop": 0.5, "occlusion": 0.5, "aspect": 0.2},
    **{"light": 0.5, "blur": 0.5, "shrink": 0.5, "jpeg": 0.5},
)


def small(*settings: str, model: str = "unet") -> RunConfig:
    wanted = ("data.size=64", "model.base_channels=8", "train.epochs=3", "train.batch_size=8", *settings)
    return load_recipe("default", wanted).for_model(model)


@pytest.fixture
def hardware() -> Hardware:
    return choose_hardware()


def batch(count: int = 8, side: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.rand(count, 3, 8, 8, generator=generator), size=(side, side), mode="bilinear")
    labels = torch.full((count, side, side), 1, dtype=torch.uint8)
    labels[:, 16:40, 20:50] = 0
    return images, labels


def test_hardware(hardware):
    assert hardware.device.type == "cuda"
    assert hardware.autocast == torch.cuda.is_bf16_supported(including_emulation=False)


def test_pictures_lie_on_the_device(pets_folder, hardware):
    splits = load_splits(prepare(pets_folder, 64), small(), hardware.device)
    images, labels = splits["train"].batch(splits["train"].rows[:4])
    assert splits["train"].images.is_cuda
    assert images.is_cuda
    assert labels.is_cuda


@pytest.mark.parametrize("config", [AugmentConfig(), STRONG], ids=["default", "strong"])
def test_augmentation_as_on_the_cpu(config):
    images, labels = batch()
    expected = augment(images, labels, config, torch.Generator().manual_seed(3))
    found = augment(images.cuda(), labels.cuda(), config, torch.Generator().manual_seed(3))
    # a value that falls between two steps of JPEG's, or a pixel between two labels, may round either way
    assert ((found[0].cpu() - expected[0]).abs() < 0.02).float().mean() > 0.99
    assert (found[1].cpu() == expected[1]).float().mean() > 0.999


def test_jpeg_as_on_the_cpu():
    images, _ = batch()
    quality = torch.linspace(5, 95, len(images))
    assert (compress(images.cuda(), quality.cuda()).cpu() - compress(images, quality)).abs().mean() < 1e-3


@pytest.mark.parametrize("name", ["unet", "segnet", "timm:tf_efficientnet_lite0"])
def test_bf16_agrees_with_fp32(name, hardware):
    if ":" in name:
        pytest.importorskip("timm")
    torch.manual_seed(0)
    model = build_model(ModelConfig(name=name), 3).cuda().eval()
    images = normalise(batch()[0].cuda(), model)
    with torch.inference_mode():
        exact = model(images)
        with hardware.context():
            rough = model(images.contiguous(memory_format=torch.channels_last)).float()
    assert (exact.argmax(1) == rough.argmax(1)).float().mean() > 0.9


@pytest.mark.parametrize("name", ["unet", "segnet"])
def test_training_as_on_the_cpu(name, pets_folder, tmp_path, hardware):
    prepared = prepare(pets_folder, 64)
    config = small("train.precision=fp32", model=name)
    on_gpu = train(config, prepared, tmp_path / "gpu", hardware=choose_hardware("fp32"))
    on_cpu = train(config, prepared, tmp_path / "cpu", hardware=choose_hardware("fp32", "cpu"))
    assert on_gpu[0]["train_loss"] == pytest.approx(on_cpu[0]["train_loss"], rel=0.05)
    assert on_gpu[-1]["train_loss"] < on_gpu[0]["train_loss"]
    assert runs.read_json(tmp_path / "gpu" / "environment.json")["device"] == torch.cuda.get_device_name()


def test_validation_counts_as_on_the_cpu(pets_folder):
    task = get_task("trimap")
    torch.manual_seed(0)
    model = build_model(ModelConfig(base_channels=4), 3)
    scores = []
    for device in ("cpu", "cuda"):
        there = choose_hardware("fp32", device)
        pictures = load_splits(prepare(pets_folder, 64), small(), there.device)["val"]
        scores.append(validate(model.to(there.device), pictures, task, there))
    assert scores[1] == pytest.approx(scores[0], rel=1e-3)


@pytest.mark.parametrize("name", ["unet", "segnet"])
def test_resumed_run_ends_as_one_that_went_through(name, pets_folder, tmp_path, hardware):
    prepared = prepare(pets_folder, 64)
    config = small("train.deterministic=true", "train.ema=0.9", model=name)
    train(config, prepared, tmp_path / "through", hardware=hardware)

    def stop(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, prepared, tmp_path / "stopped", hardware=hardware, on_epoch=stop)
    train(config, prepared, tmp_path / "stopped", hardware=hardware, resume=True)
    through, resumed = (read_tensors(tmp_path / run / "last.safetensors")[0] for run in ("through", "stopped"))
    assert all(torch.equal(through[key], resumed[key]) for key in through)


def test_a_step_does_not_wait_for_the_device(pets_folder, hardware):
    config = small("train.ema=0.9", "train.dice_weight=0.5")
    pictures = load_splits(prepare(pets_folder, 64), config, hardware.device)["train"]
    model = build_model(config.model, 3).cuda().to(memory_format=torch.channels_last).train()
    average = AveragedModel(model, use_buffers=True)
    follow = _Average(average, model, config.train.ema)
    teacher = Teacher(copy.deepcopy(model), hardware.context())
    optimiser = make_optimiser(model, config.train)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        images, labels = arrange(*pictures.batch(pictures.rows[:8]), STRONG, generator)
        soft = teacher(images)
        images = recolour(images, STRONG, generator)
        train_step(model, optimiser, images, labels, config.train, hardware, None, soft)
        follow.step()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_steps_train_as_plain_ones(mode, hardware):
    if shutil.which("g++") is None and shutil.which("gcc") is None:
        pytest.skip("no compiler")
    images, labels = (tensor.cuda() for tensor in batch())
    losses = []
    for compiles in (False, True):
        config = small(f"train.compile={str(compiles).lower()}", f"train.compile_mode={mode}").train
        torch.manual_seed(0)
        model = build_model(ModelConfig(base_channels=8, depth=2), 3).cuda().to(memory_format=torch.channels_last)
        model.train()
        stepped = compiled(model, config) if compiles else model
        optimiser = make_optimiser(model, config)
        with _fastest_kernels(hardware, config):
            steps = [train_step(stepped, optimiser, images, labels, config, hardware)[0] for _ in range(12)]
        losses.append([float(loss) for loss in steps])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1][-1] < losses[1][0]


def test_a_run_compiles_and_records_graphs(pets_folder, tmp_path: Path, hardware):
    config = small("train.compile=true", "train.compile_mode=reduce-overhead", "train.ema=0.9")
    rows = train(config, prepare(pets_folder, 64), tmp_path / "run", hardware=hardware)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
