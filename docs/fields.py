"""Generated reference pages: recipe fields with type, range, default and meaning, read from the types; commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel
from typer.cli import get_docs_for_click
from typer.main import get_command
from typer.models import Context

from petseg.cli import app
from petseg.config import DataConfig, ServeConfig, TrainConfig
from petseg.models import MODELS

HEAD = """# Recipe fields

Every field of a recipe, from the types in `petseg/config.py` and `petseg/models`. Change one with
`--set field=value`; the last part of a name is enough where it is unique (`--set epochs=10`).
"""


def rows(kind: type[BaseModel], prefix: str) -> list[str]:
    """Returns a definition for each field of a type, those of nested types in their place."""
    schema = kind.model_json_schema()
    found: list[str] = []
    for name, field in kind.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            found += rows(nested, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else f"default `{field.get_default(call_default_factory=True)!r}`"
        limits = shape(schema["properties"][name], schema.get("$defs", {}))
        meaning = " ".join((field.description or "").split())
        found.append(f"`{prefix}{name}`\n: {limits}, {default}. {meaning}\n")
    return found


def shape(entry: dict[str, Any], known: dict[str, Any]) -> str:
    """Returns a JSON schema's type and range in words.

    >>> shape({"type": "integer", "minimum": 1}, {})
    'integer, at least 1'
    """
    if "$ref" in entry:
        return shape(known[entry["$ref"].rpartition("/")[2]], known)
    if "enum" in entry:
        return "one of " + ", ".join(f"`{value}`" for value in entry["enum"])
    if "anyOf" in entry:
        return " or ".join(shape(one, known) for one in entry["anyOf"])
    if entry.get("type") == "array":
        inner = entry.get("items") or {}
        return f"list of {shape(inner, known)}" if inner else "list"
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    limits = [f"{word} {entry[key]}" for key, word in words.items() if key in entry]
    return ", ".join([str(entry.get("type", "any")).replace("null", "none"), *limits])


def write_commands(path: Path) -> None:
    """Writes the command line's reference, by Typer's own generator."""
    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=Context(command), name="petseg", title="Commands")
    path.write_text(text, encoding="utf-8")


def write_fields(path: Path) -> None:
    """Writes the page of recipe fields."""
    parts = [HEAD, "## data\n", *rows(DataConfig, "data."), "## train\n", *rows(TrainConfig, "train.")]
    for name, builder in MODELS.items():
        parts += [f"## model, of {name}\n", *rows(builder.options, "model.")]
    parts += ["## petseg serve\n", *rows(ServeConfig, "")]
    path.write_text("\n".join(parts), encoding="utf-8")
