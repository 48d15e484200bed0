"""The documents: figures come from results/, commands exist, links lead somewhere."""

from __future__ import annotations

import doctest
import json
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from petseg.cli import app
from petseg.config import load_recipe, load_serving, recipe_names
from petseg.data.download import ARCHIVES
from petseg.evaluation.statistics import paired_bootstrap
from petseg.metrics import mean_iou
from petseg.predict.segmenter import shipped_model
from petseg.report.page import read_comparison
from petseg.training.runs import epoch_seconds, read_metrics

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PUBLISHED = sorted((ROOT / "results").glob("*/comparison.json"))


def commands() -> list[str]:
    """Every petseg command in a code block or in backticks of a document, comments cut off."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
            for line in block.splitlines():
                found += [part.strip() for part in line.split("#")[0].split("&&") if part.strip().startswith("petseg ")]
        found += [match for match in re.findall(r"`(petseg [^`|]+)`", text) if " | " not in match]
    return sorted(set(found))


def test_the_readme_s_table_is_generated_from_results() -> None:
    result = subprocess.run([sys.executable, str(ROOT / "scripts" / "update_docs.py"), "--check"], check=False)
    assert result.returncode == 0, "run scripts/update_docs.py"


def test_every_row_of_the_reliability_page_names_a_test() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    from reliability_tables import named_tests

    for test in named_tests():
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), flags=re.MULTILINE), (
            test
        )
    counted = json.loads((ROOT / "results" / "reliability" / "tests.json").read_text(encoding="utf-8"))["cases"]
    assert set(counted) == named_tests()
    assert min(counted.values()) > 0


@pytest.mark.parametrize("command", commands())
def test_a_command_in_the_documents_exists_with_its_options(command: str) -> None:
    from typer.main import get_command

    group = get_command(app)
    words = shlex.split(command)[1:]
    while words and words[0] in getattr(group, "commands", {}):
        group = group.commands[words.pop(0)]  # type: ignore[attr-defined]
    assert not hasattr(group, "commands") or not words, f"{command}: no such subcommand"
    options = {name for parameter in group.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    assert {word for word in words if word.startswith("--")} <= options
    settings = [after for word, after in pairwise(words) if word == "--set" and "field" not in after]
    model = words[words.index("--model") + 1] if "--model" in words else "unet"
    if command.startswith("petseg serve"):
        load_serving(settings)
        return
    if command.startswith(("petseg predict ", "petseg export ", "petseg bench")):
        assert model.endswith(".onnx") or shipped_model(model)
        return
    load_recipe("default", settings).for_model(model)


def test_there_are_commands_to_check() -> None:
    assert "petseg compare --quick" in commands()
    assert len(commands()) > 8


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.parent.name + "/" + path.name)
def test_links_and_pictures_lead_to_files(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_tree_in_the_readme_names_what_exists() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("```\npetseg/\n")[1].split("```")[0]
    for line in tree.splitlines():
        names = re.match(r"\s*((?:[\w./]+\s{1,2})+)", line + "  ")
        assert names is not None
        inside = ROOT / "petseg" if line.startswith("  ") else ROOT
        for name in names[1].split():
            assert (inside / name).exists(), name


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_published_figures_follow_from_the_per_image_counts(path: Path) -> None:
    comparison = read_comparison(path)
    split = comparison["split"]
    matrices = {}
    for model in comparison["models"]:
        stored = json.loads((path.parent / "runs" / model["name"] / "evaluations" / f"{split}.images.json").read_text())
        classes = len(comparison["classes"])
        matrices[model["name"]] = np.array([row[1] for row in stored["images"]]).reshape(-1, classes, classes)
        scores = model["evaluations"][split]
        assert scores["images"] == len(matrices[model["name"]]) == comparison["data"][split]
        assert scores["miou"] == pytest.approx(float(mean_iou(matrices[model["name"]].sum(axis=0))))
    claimed = comparison["difference"]
    found = paired_bootstrap(matrices[claimed["a"]], matrices[claimed["b"]])
    assert claimed["points"] == pytest.approx(found.points)
    assert claimed["interval"] == pytest.approx([found.low, found.high])
    assert not comparison["made_data"]
    assert comparison["environment"]["commit"]
    assert not comparison["environment"]["commit"].endswith("dirty")


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_s_header_gives_its_command(name: str) -> None:
    text = (ROOT / "petseg" / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    assert re.search(r"^# Command:  petseg compare", text, flags=re.MULTILINE)


def published_score(recipe: str, model: str) -> float:
    """Returns the mIoU on the test split of one model of a recipe's published runs, 0 to 1."""
    if recipe == "default":
        official = read_comparison(ROOT / "results" / "official" / "comparison.json")
        return float(next(run["evaluations"]["test"]["miou"] for run in official["models"] if run["name"] == model))
    evaluation = ROOT / "results" / "models" / f"{model}_{recipe}" / "evaluations" / "test.json"
    return float(json.loads(evaluation.read_text(encoding="utf-8"))["miou"])


@pytest.mark.parametrize("name", ["default", "base", "small"])
def test_a_recipe_s_header_gives_the_published_scores(name: str) -> None:
    text = (ROOT / "petseg" / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    unet, segnet = (f"{100 * published_score(name, model):.1f}" for model in ("unet", "segnet"))
    assert f"test mIoU {unet} (U-Net) and {segnet} (SegNet), one seed" in text


def published_minutes(run: Path) -> float:
    """Returns the median epoch times epochs of a published run."""
    history = read_metrics(run)
    return epoch_seconds(history) * len(history) / 60


def test_the_minutes_of_recipes_and_readme_are_those_of_the_published_runs() -> None:
    results = ROOT / "results"
    for name, folder in (
        ("base", results / "models" / "{}_base"),
        ("small", results / "models" / "{}_small"),
        ("default", results / "official" / "runs" / "{}"),
    ):
        unet, segnet = (published_minutes(Path(str(folder).format(model))) for model in ("unet", "segnet"))
        text = (ROOT / "petseg" / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
        assert f"AMX, {unet:.0f} minutes for U-Net, {segnet:.0f} for SegNet" in text
    first, second = (
        sum(published_minutes(results / name / "runs" / model) for model in ("unet", "segnet"))
        for name in ("official", "seed")
    )
    told = f"The first two took {first:.0f} and {second:.0f} minutes on two cores with AMX"
    assert told in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_size_of_the_download_is_that_of_the_archives() -> None:
    said = f"({sum(archive.bytes for archive in ARCHIVES) / 1e6:.0f} MB)"
    assert said in (ROOT / "README.md").read_text(encoding="utf-8")
    assert said in (ROOT / "petseg" / "cli" / "data.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_published_training_time_is_the_median_epoch_times_epochs(path: Path) -> None:
    for model in read_comparison(path)["models"]:
        seconds = [row["seconds"] for row in model["history"]]
        assert model["cost"]["train_seconds"] == pytest.approx(float(np.median(seconds)) * len(seconds), abs=0.1)


def numbers(tree: object) -> list[float]:
    if isinstance(tree, dict | list):
        return [found for part in (tree.values() if isinstance(tree, dict) else tree) for found in numbers(part)]
    return [float(tree)] if isinstance(tree, int | float) else []


def test_every_measured_figure_of_the_log_stands_in_results() -> None:
    known = [
        value for path in (ROOT / "results" / "log").glob("*.json") for value in numbers(json.loads(path.read_text()))
    ]
    text = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    figures = re.findall(r"(?<![\d.])\d+\.\d+(?![\d.])|(?<![\d.])\d+(?= (?:ms|%|MB))", text)
    assert len(figures) > 15
    for figure in figures:
        digits = len(figure.partition(".")[2])
        assert any(abs(value - float(figure)) <= 0.5 * 10**-digits + 1e-9 for value in known), figure


def test_what_serving_costs_stands_in_results() -> None:
    found = json.loads((ROOT / "results" / "benchmarks" / "serve_speed.json").read_text(encoding="utf-8"))
    text = " ".join((ROOT / "docs" / "serve.md").read_text(encoding="utf-8").split())
    assert f"With `{found['model']}` and photos of {found['photo_width']} px" in text
    assert f"gives {100 * found['ratio']:.0f} % of the photos a second" in text
    assert f"({100 * found['ratio_lowest']:.0f} to {100 * found['ratio_highest']:.0f} % over 7 turns)" in text
    assert f"its memory grows by {found['memory_growth_bytes'] / 1e6:.1f} MB" in text
    assert found["ratio"] >= 0.85


def test_the_worked_example_of_the_metrics_runs() -> None:
    found = doctest.testfile(str(ROOT / "docs" / "metrics.md"), module_relative=False)
    assert found.failed == 0
    assert found.attempted > 15


def test_nothing_of_the_data_set_is_committed() -> None:
    """The only pictures in the repository are named here."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    pictures = {name for name in listed.stdout.split() if re.search(r"\.(jpe?g|png|npy|gif|webp|html)$", name)}
    pages = {"petseg/serve/page/index.html", "examples/browser/index.html"}
    assert pictures <= {"docs/cat.png", "docs/page.png", "petseg/serve/page/cat.jpg", *pages}
