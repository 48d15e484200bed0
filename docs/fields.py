"""Generated reference pages: recipe fields and JSON with type, range, default and meaning, from the types; commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sphinx.pycode import ModuleAnalyzer
from typer.cli import get_docs_for_click
from typer.main import get_command
from typer.models import Context

from petseg.cli import app
from petseg.config import DataConfig, RunConfig, ServeConfig, TrainConfig
from petseg.models import MODELS
from petseg.schema import ComparisonResult, DataCheck, DataInfo, EpochRow, Findings, InputInfo, Scores, SplitIds
from petseg.storage import write_json

HEAD = """# Recipe fields

Every field of a recipe, from the types in `petseg/config.py` and `petseg/models`. Change one with
`--set field=value`; the last part of a name is enough where it is unique (`--set epochs=10`).
"""

RECORDS: dict[str, tuple[type[BaseModel], str]] = {
    "comparison.json": (ComparisonResult, "a comparison's folder"),
    "findings.json": (Findings, "a study's folder"),
    "config.json": (RunConfig, "a run's folder"),
    "data.json": (DataInfo, "a run's folder"),
    "splits.json": (SplitIds, "a run's folder"),
    "input.json": (InputInfo, "a run's folder"),
    "metrics.jsonl": (EpochRow, "a run's folder, a line an epoch"),
    "evaluations/SPLIT.json": (Scores, "a run's folder"),
    "check.json": (DataCheck, "what `petseg data check --json` prints"),
}
"""File -> its type, where it lies."""

RECORDS_HEAD = """# JSON files

What petseg writes into its folders, from the types in `petseg/schema.py`. An unknown field, or another version, is
refused when a file is read.

| File | In | Fields | JSON schema |
| --- | --- | --- | --- |"""


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
        name = entry["$ref"].rpartition("/")[2]
        if "properties" not in known[name]:
            return shape(known[name], known)
        return "[recipe](recipe.md)" if name == "Recipe" else f"[{name}](#{name.lower()})"
    if "const" in entry:
        return f"`{entry['const']}`"
    if "enum" in entry:
        return "one of " + ", ".join(f"`{value}`" for value in entry["enum"])
    if "anyOf" in entry:
        return " or ".join(shape(one, known) for one in entry["anyOf"])
    if isinstance(entry.get("additionalProperties"), dict):
        return f"object of {shape(entry['additionalProperties'], known)}"
    if entry.get("type") == "array":
        inner = entry.get("items") or entry.get("prefixItems", [{}])[0]
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


def write_records(page: Path) -> None:
    """Writes the page of the JSON files' fields, and each file's JSON schema below schemas/ beside it."""
    notes = ModuleAnalyzer.for_module("petseg.schema").find_attr_docs()
    files, records = [], dict[str, dict[str, Any]]()
    for file, (kind, where) in RECORDS.items():
        schema = kind.model_json_schema(mode="serialization")
        known = schema.get("$defs", {}) | {kind.__name__: schema}
        for record, name in ((known[title], title) for title in known):
            for field, entry in record.get("properties", {}).items():
                if note := " ".join(notes.get((name, field), [])).strip():
                    entry["description"] = note
        path = page.parent / "schemas" / f"{Path(file).stem.lower()}.schema.json"
        path.parent.mkdir(exist_ok=True)
        write_json(path, schema)
        link = f"[{kind.__name__}](#{kind.__name__.lower()})" if kind is not RunConfig else "[recipe fields](recipe.md)"
        files.append(f"| `{file}` | {where} | {link} | {{download}}`schema <schemas/{path.name}>` |")
        if kind is not RunConfig:
            records |= {name: record | {"known": known} for name, record in known.items() if "properties" in record}
    parts = [RECORDS_HEAD, *files]
    first = [kind.__name__ for kind, _ in RECORDS.values()]
    for name in sorted(records, key=lambda name: (name not in first, name)):
        if name == "Recipe" or name.endswith("Config"):
            continue  # on the page of recipe fields
        meaning = " ".join(records[name].get("description", "").split())
        parts += ["", f"## {name}", "", meaning, "", "| Field | Type | Meaning |", "| --- | --- | --- |"]
        for field, entry in records[name]["properties"].items():
            parts.append(f"| `{field}` | {shape(entry, records[name]['known'])} | {entry.get('description', '')} |")
    page.write_text("\n".join(parts) + "\n", encoding="utf-8")


def write_fields(path: Path) -> None:
    """Writes the page of recipe fields."""
    parts = [HEAD, "## data\n", *rows(DataConfig, "data."), "## train\n", *rows(TrainConfig, "train.")]
    for name, builder in MODELS.items():
        parts += [f"## model, of {name}\n", *rows(builder.options, "model.")]
    parts += ["## petseg serve\n", *rows(ServeConfig, "")]
    path.write_text("\n".join(parts), encoding="utf-8")
