"""Enlarging: torch's own interpolation is the oracle."""

import numpy as np
import pytest
import torch

from petseg.evaluation.evaluate import upsample
from petseg.predict.enlarge import enlarged, windows


@pytest.mark.parametrize("size", [(1, 1), (128, 128), (300, 451), (7, 1000), (64, 90)])
@pytest.mark.parametrize("step", [(64, 1 << 20), (50, 33)])
def test_windows_together_are_torch_s_interpolation(size, step):
    maps = np.random.default_rng(0).normal(size=(3, 64, 48)).astype(np.float32)
    whole = np.zeros((3, *size), np.float32)
    for window in windows(size, step):  # each place once, or the sums are wrong
        whole[:, *window] += enlarged(maps, size, *window)
    assert np.abs(whole - upsample(torch.from_numpy(maps), size).numpy()).max() < 1e-4
