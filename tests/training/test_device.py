"""The device: CUDA, MPS, CPU in that order; what torch does not have is refused."""

import pytest
import torch

from petseg.training.device import choose_hardware
from tests.conftest import refused


@pytest.mark.parametrize(
    ("cuda", "mps", "wanted"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_order_is_cuda_mps_cpu(cuda, mps, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)  # neither is here to allocate on
    chosen = choose_hardware("fp32")
    assert (chosen.device.type, chosen.precision) == (wanted, "fp32")
    if wanted == "mps":
        assert choose_hardware("auto").precision == "fp32", "bf16 is not tried there"


def test_precision_is_as_asked_and_a_device_that_is_not_there_refused():
    assert choose_hardware("bf16", "cpu").precision == "bf16"
    assert choose_hardware("fp32", "cpu").environment().precision == "fp32"
    for device in ("tpu9", "cuda:99", "meta"):
        refused(f"device '{device}': torch has no such device here; choose cpu", choose_hardware, "auto", device)
