import io

import numpy as np
import pytest
from PIL import Image

from petseg.predict import png as module
from petseg.predict.png import png


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (37, 23), (300, 200)])
def test_is_read_as_it_was(mode, size, monkeypatch):
    monkeypatch.setattr(module, "STRIP", 1000)  # so that most take several strips
    colours = np.array([[0, 0, 0], [230, 159, 0], [86, 180, 233], [0, 158, 115]], np.uint8) if mode == "P" else None
    bands = Image.new(mode, (1, 1)).getbands()
    shape = size if len(bands) == 1 else (*size, len(bands))
    pixels = np.random.default_rng(0).integers(0, 4 if mode == "P" else 256, shape, np.uint8)
    file = png(pixels, {"Software": "petseg predict"}, colours)
    assert b"\0\0\0\0IDAT" not in file, "no chunk is empty"
    read = Image.open(io.BytesIO(file))
    assert (read.mode, read.info["Software"]) == (mode, "petseg predict")
    assert np.array_equal(np.asarray(read), pixels)
    if colours is not None:
        assert read.getpalette()[:12] == colours.ravel().tolist()
