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
    values = np.random.default_rng(0).integers(
        0, 4 if mode == "P" else 256, (*size, len(Image.new(mode, (1, 1)).getbands()))
    )
    image = Image.fromarray(values.astype(np.uint8).squeeze(2) if values.shape[2] == 1 else values.astype(np.uint8))
    if mode == "P":
        image.putpalette([0, 0, 0, 230, 159, 0, 86, 180, 233, 0, 158, 115])
    content = png(image, {"Software": "petseg predict"})
    read = Image.open(io.BytesIO(content))
    assert (read.mode, read.info["Software"]) == (mode, "petseg predict")
    assert np.array_equal(np.asarray(read), np.asarray(image))
    if mode == "P":
        assert read.getpalette()[:12] == image.getpalette()[:12]
