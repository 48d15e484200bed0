"""The models that come with the package: NAME.onnx in petseg/weights, and NAME.json, its card."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from petseg.errors import PetsegError, unknown_name

WEIGHTS = files("petseg") / "weights"
DEFAULT = "unet_lite2"  # the shipped model where none is named
KINDS = ("unet", "segnet")  # each stands for the best plain network of its kind


def model_file(name: str) -> bytes:
    """Returns the ONNX file of a shipped model or the best of a kind, or the file at a path that ends in .onnx."""
    try:
        return (Path(name) if name.endswith(".onnx") else WEIGHTS / f"{shipped_model(name)}.onnx").read_bytes()
    except OSError as error:
        raise PetsegError(f"model {name}: cannot be read ({error.strerror or error})") from None


def card_of(name: str) -> dict[str, Any]:
    """Returns what a shipped model says of itself: title, classes, size, scores, licence, bytes."""
    card: dict[str, Any] = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    return card


def shipped_models() -> list[str]:
    """Returns the names of the models that come with the package, sorted."""
    return sorted(entry.name.removesuffix(".onnx") for entry in WEIGHTS.iterdir() if entry.name.endswith(".onnx"))


def model_names() -> list[str]:
    """Returns every name that means a shipped model: the kinds, then the models' own."""
    return [*KINDS, *shipped_models()]


def shipped_model(name: str) -> str:
    """Returns the shipped model that a name means: its own, or the best one of a kind."""
    if Path(name).suffix:
        raise PetsegError(
            f"model {name}: wanted an ONNX file, which ends in .onnx, or a shipped model; `petseg models` lists these"
        )
    shipped = shipped_models()
    meant = next((each for each in (name, f"{name}_base", f"{name}_small") if each in shipped), None)
    if meant is None:
        raise unknown_name("model", name, model_names())
    return meant
