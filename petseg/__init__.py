"""petseg: U-Net and SegNet on cats and dogs, trained and compared under one fair budget, and ready to use.

    >>> found = petseg.Segmenter("unet")("cat.jpg")
    >>> found.cutout().save("cat.cutout.png")

    >>> import petseg
    >>> recipe = petseg.load_recipe("default", ["epochs=10"])
    >>> model = petseg.build_model(recipe.for_model("segnet").model, num_classes=3)

Names are imported when they are first used: importing this package imports neither torch nor numpy, so that
`petseg --help` answers at once.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "PetsegError": "petseg.errors",
    "Recipe": "petseg.config",
    "load_recipe": "petseg.config",
    "prepare": "petseg.data.cache",
    "build_model": "petseg.models",
    "evaluate_run": "petseg.evaluate",
    "paired_bootstrap": "petseg.stats",
    "count_cost": "petseg.cost",
    "Segmenter": "petseg.predict",
    "Segmentation": "petseg.predict",
    "export_run": "petseg.export",
    "write_report": "petseg.report",
}
"""Public name -> its module. `train` and `compare` are modules themselves: `from petseg.train import train`."""

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'petseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
