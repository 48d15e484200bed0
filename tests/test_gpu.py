"""What only a GPU can show: kernels, bf16, compilation, data on the device, resuming to the same result.

Skipped, loudly, where there is none. CUBLAS_WORKSPACE_CONFIG=:4096:8 makes cuBLAS deterministic.
"""

import pytest
import torch
from torch.nn import functional as F

from petseg.config import AugmentConfig, ModelConfig
from petseg.data.augment import augment
from petseg.data.camera import compress
from petseg.models import model_input
from petseg.storage import read_json
from petseg.training.batches import load_splits
from petseg.training.checkpoint import LAST, read_tensors
from petseg.training.device import choose_hardware
from petseg.training.inference import Network, build_network, validate
from petseg.training.loop import Execution, train
from tests.conftest import tiny

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU: the tests of CUDA were SKIPPED")

STRONG = AugmentConfig(
    **{"composite": 0.5, "background_crop": 0.5, "occlusion": 0.5, "aspect": 0.2},
    **{"light": 0.5, "blur": 0.5, "shrink": 0.5, "jpeg": 0.5},
)


def on_device(precision="auto"):
    return choose_hardware(precision, DEVICE)


def batch(count=8, side=64):
    generator = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.rand(count, 3, 8, 8, generator=generator), size=(side, side), mode="bilinear")
    labels = torch.full((count, side, side), 1, dtype=torch.uint8)
    labels[:, 16:40, 20:50] = 0
    return images, labels


def test_images_lie_on_the_device(prepared):
    split = load_splits(prepared, tiny(), torch.device(DEVICE))["train"]
    images, labels = split.batch(split.rows[:4])
    assert {split.images.device.type, images.device.type, labels.device.type} == {DEVICE}


@pytest.mark.parametrize("config", [AugmentConfig(), STRONG], ids=["default", "strong"])
def test_augmentation_as_on_the_cpu(config):
    images, labels = batch()
    wanted = augment(images, labels, config, torch.Generator().manual_seed(3), 1)
    found = augment(images.to(DEVICE), labels.to(DEVICE), config, torch.Generator().manual_seed(3), 1)
    # a value that falls between two steps of JPEG's, or a pixel between two labels, may round either way
    assert ((found[0].cpu() - wanted[0]).abs() < 0.02).float().mean() > 0.99
    assert (found[1].cpu() == wanted[1]).float().mean() > 0.999


def test_jpeg_as_on_the_cpu():
    images, _ = batch()
    quality = torch.linspace(5, 95, len(images))
    assert (compress(images.to(DEVICE), quality.to(DEVICE)).cpu() - compress(images, quality)).abs().mean() < 1e-3


@pytest.mark.parametrize("name", ["unet", "segnet", "timm:tf_efficientnet_lite0"])
def test_bf16_agrees_with_fp32(name):
    if ":" in name:
        pytest.importorskip("timm")
    config, images = ModelConfig(name=name), batch()[0].to(DEVICE)
    torch.manual_seed(0)
    exact = build_network(config, 3, on_device("fp32"))
    rough = Network(exact.module, model_input(config), on_device("bf16"))
    exact.module.eval()
    with torch.inference_mode():
        wanted, found = exact.logits(images).float(), rough.logits(images).float()
    # the classes of a network that learnt nothing are near ties: on a CPU too, a tenth of SegNet's turn in bf16
    assert (found - wanted).abs().mean() < 0.2 * wanted.std()


@pytest.mark.parametrize("name", ["unet", "segnet"])
def test_training_and_validation_as_on_the_cpu(name, prepared, tmp_path):
    config = tiny("train.epochs=3", model=name)
    there, here = (
        train(config, prepared, tmp_path / device, Execution(choose_hardware("fp32", device)))
        for device in (DEVICE, "cpu")
    )
    assert there[0].train_loss == pytest.approx(here[0].train_loss, rel=0.05)
    assert there[-1].train_loss < there[0].train_loss
    if DEVICE == "cuda":
        assert read_json(tmp_path / DEVICE / "environment.json")["device"] == torch.cuda.get_device_name()
    torch.manual_seed(0)
    module = build_network(config.model, 3, choose_hardware("fp32", "cpu")).module
    scores = []
    for device in ("cpu", DEVICE):
        hardware = choose_hardware("fp32", device)
        network = Network(module.to(device), model_input(config.model), hardware)
        scores.append(validate(network, load_splits(prepared, config, hardware.device)["val"]))
    # cuDNN rounds to TF32, so a few of SegNet's maxima stand elsewhere: on an H200 its mIoU was off by 2e-3
    assert scores[1].val_loss == pytest.approx(scores[0].val_loss, rel=1e-2)
    assert scores[1].val_miou == pytest.approx(scores[0].val_miou, rel=1e-2)


@pytest.mark.parametrize("name", ["unet", "segnet"])
def test_a_resumed_run_ends_as_one_that_went_through(name, prepared, tmp_path):
    config = tiny("train.deterministic=true", "train.ema=0.9", "train.epochs=3", model=name)
    train(config, prepared, tmp_path / "through", Execution(on_device()))

    def stop(row):
        if row.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, prepared, tmp_path / "stopped", Execution(on_device(), on_epoch=stop))
    train(config, prepared, tmp_path / "stopped", Execution(on_device(), resume=True))
    through, resumed = (read_tensors(tmp_path / run / LAST)[0] for run in ("through", "stopped"))
    assert all(torch.equal(through[key], resumed[key]) for key in through)


def test_the_caller_s_random_numbers_go_on_as_if_nothing_had_been_trained(prepared, tmp_path):
    found = []
    for trains in (False, True):
        torch.manual_seed(7)
        if trains:
            train(tiny("model.dropout=0.5"), prepared, tmp_path / "run", Execution(on_device()))
        found.append((torch.rand(3).tolist(), torch.rand(3, device=DEVICE).tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["unet", "segnet"])
@pytest.mark.filterwarnings("ignore")  # of torch's own deprecations while it loads its compiler
def test_a_compiled_step_trains_alike(name, prepared, tmp_path):
    plain, compiled = (
        train(tiny(f"train.compile={each}", model=name), prepared, tmp_path / each, Execution(on_device("fp32")))
        for each in ("false", "true")
    )
    assert compiled[0].train_loss == pytest.approx(plain[0].train_loss, rel=1e-2)
