"""A network of one's own in a file, by the name FILE.py:CLASS: CLASS(num_classes) is called, or a `Builder` taken."""

import importlib
import os
import sys
from functools import cache
from hashlib import blake2b
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from torch import nn

from petseg.errors import PetsegError, first_line
from petseg.models.builder import Builder

MODULE = "petseg_model_"  # how the names of such modules begin


def is_own(name: str) -> bool:
    """Returns whether a model's name is one of a file.

    >>> is_own("my/nets.py:MyNet"), is_own("timm:resnet18")
    (True, False)
    """
    return name.rpartition(":")[0].endswith(".py")


def own_builder(name: str) -> Builder:
    """Returns the builder of a class in a file; the file is run, as the user who names it asks for."""
    path, _, attribute = name.rpartition(":")
    try:
        network = getattr(_module(Path(path).resolve(), Path(path).stat().st_mtime_ns), attribute)
    except (Exception, SystemExit) as error:  # whatever the file raises, as a script that parses its arguments does
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise PetsegError(f"model {name!r}: {reason}; wanted a class in a Python file") from None
    if isinstance(network, Builder):
        return network

    def build(num_classes: int) -> nn.Module:
        try:
            model: nn.Module = network(num_classes)
        except Exception as error:  # whatever it raises
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise PetsegError(f"model {name!r}: {reason}; it is called with num_classes alone") from None
        return model

    return Builder(attribute, build)


def own_title(name: str) -> str:
    """Returns how a reader knows a network of a file: its `Builder`'s title, else its class, as where the file is gone.

    >>> own_title("gone/nets.py:MyNet")
    'MyNet'
    """
    try:
        return own_builder(name).title
    except PetsegError:
        return name.rpartition(":")[2]


@cache
def _module(path: Path, changed: int) -> ModuleType:
    """Returns a file as a module, run once for each time that it was `changed`."""
    digest = blake2b(os.fsencode(path), digest_size=4).hexdigest()  # a/net.py and b/net.py are two modules
    spec = spec_from_file_location(f"{MODULE}{path.stem}_{digest}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look there
    _import_from(path.parent)
    spec.loader.exec_module(module)
    return module


def _import_from(folder: Path) -> None:
    """Puts a folder first where Python looks for modules, as it does with a script's.

    What lies beside another network's file is forgotten where this folder has something of that name: else the second
    of two networks would be built from the first one's blocks.
    """
    sys.path[:] = [str(folder), *(place for place in sys.path if place != str(folder))]
    importlib.invalidate_caches()
    networks = [module for name, module in sys.modules.items() if name.startswith(MODULE)]
    others = {Path(str(module.__file__)).parent for module in networks} - {folder}
    if not others:
        return
    loaded = {name.partition(".")[0] for name in sys.modules}
    here = {name for name in loaded if (folder / name).is_dir() or (folder / f"{name}.py").is_file()}
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] in here and any(_lies_in(name, module, other) for other in others):
            del sys.modules[name]


def _lies_in(name: str, module: ModuleType, folder: Path) -> bool:
    """Returns whether a module was imported from a folder on Python's path."""
    file, place = getattr(module, "__file__", None), folder.joinpath(*name.split("."))
    if file is None:  # a folder without __init__.py
        return hasattr(module, "__path__") and place.is_dir()
    return Path(file) in (place.parent / f"{place.name}.py", place / "__init__.py")
