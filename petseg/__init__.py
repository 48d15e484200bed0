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
import os
import sys
from typing import TYPE_CHECKING, Any

# Nothing leaves the machine. ONNX Runtime (from 1.29) and OpenVINO would report their use and keep an id below the home
# folder; both are switched off here, before anything of petseg can load them, for this process and its children.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # OpenVINO does without the package

if TYPE_CHECKING:  # for type checkers alone, which cannot follow `__getattr__`
    from petseg.config import Recipe as Recipe
    from petseg.config import load_recipe as load_recipe
    from petseg.data.cache import prepare as prepare
    from petseg.data.sources import open_dataset as open_dataset
    from petseg.errors import PetsegError as PetsegError
    from petseg.evaluation.cost import count_cost as count_cost
    from petseg.evaluation.evaluate import evaluate_run as evaluate_run
    from petseg.evaluation.statistics import paired_bootstrap as paired_bootstrap
    from petseg.export.onnx import export_run as export_run
    from petseg.models import build_model as build_model
    from petseg.predict.segmentation import Segmentation as Segmentation
    from petseg.predict.segmenter import Segmenter as Segmenter
    from petseg.report import write_report as write_report

__version__ = "0.2.0.dev0"

_HOME = {  # of each public name; `train` and `compare` are modules: `from petseg.training.loop import train`
    "PetsegError": "petseg.errors",
    "Recipe": "petseg.config",
    "load_recipe": "petseg.config",
    "open_dataset": "petseg.data.sources",
    "prepare": "petseg.data.cache",
    "build_model": "petseg.models",
    "evaluate_run": "petseg.evaluation.evaluate",
    "paired_bootstrap": "petseg.evaluation.statistics",
    "count_cost": "petseg.evaluation.cost",
    "Segmenter": "petseg.predict.segmenter",
    "Segmentation": "petseg.predict.segmentation",
    "export_run": "petseg.export.onnx",
    "write_report": "petseg.report",
}

__all__ = ["__version__", *sorted(_HOME)]


if not TYPE_CHECKING:  # which would then take any name for one of these

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'petseg' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
