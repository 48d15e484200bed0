"""The documents: figures come from results/, commands exist, links lead somewhere."""

import ast
import doctest
import json
import re
import shlex
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import petseg
from petseg.cli import app
from petseg.config import load_recipe, load_serving
from petseg.data.download import ARCHIVES
from petseg.errors import PetsegError
from petseg.evaluation.statistics import paired_bootstrap
from petseg.metrics import mean_iou
from petseg.models import folder_name
from petseg.schema import ComparisonResult, read_record
from petseg.shipped import shipped_model, shipped_models
from petseg.storage import read_json
from petseg.training.runs import epoch_seconds, read_metrics
from tests.conftest import scripts

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
ABOVE = [*sorted(ROOT.glob("*.md")), ROOT / "benchmarks" / "README.md"]
DOCUMENTS = [*ABOVE, *sorted((ROOT / "docs").glob("*.md"))]
PUBLISHED = sorted(RESULTS.glob("*/comparison.json"))
FIGURE = scripts("update_docs").FIGURE.pattern  # a tag and its figure


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_figures_are_those_of_their_json_fields_tables_have_no_empty_column_and_links_lead_to_files(document):
    text = document.read_text(encoding="utf-8")
    assert len(re.findall(FIGURE, text)) == text.count("<!-- fig:"), "a tag that is not understood"
    assert not re.search(r"^\W*<!-- fig:", text, re.MULTILINE), "a comment that begins a line begins a paragraph"
    assert scripts("update_docs").with_figures(text, ROOT) == text
    for _, table in re.findall(r"<!-- ([\w-]+):begin -->(.*?)<!-- \1:end -->", text, flags=re.DOTALL):
        rows = [line[2:-2].split(" | ") for line in table.splitlines() if line.startswith("| ")]
        for column in zip(rows[0], *rows[2:], strict=True):
            assert set(column[1:]) != {"–"}, f"{column[0]}: a field of the JSON was renamed"
    for target, place in re.findall(r"\]\((?!http)([^)#\s]*)#?([^)\s]*)", text):
        path = document.parent / target if target else document
        assert path.exists(), target
        assert not place or path.suffix != ".md" or place in headings(path), f"{target}#{place}"


def headings(path):
    """Returns the anchors that GitHub gives a document's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.+)$", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_a_changed_figure_is_written_anew(tmp_path):
    (tmp_path / "a.json").write_text('{"models": [{"name": "unet", "miou": 0.744, "lead": -2.5}, {"name": "segnet"}]}')
    first = "It scores <!-- fig: a.json models[name=unet].miou *100 .1f -->"
    second, third = " (<!-- fig: a.json models[0].lead .1f -->", "| <!-- fig: a.json models[0].miou .2f -->("
    wanted = f"{first}74.4,{second}−2.5). {third}0.74 to 1) |"
    text = f"{first}69.9,{second}9). {third}1 to 1) |"
    assert scripts("update_docs").with_figures(text, tmp_path) == wanted


@pytest.mark.parametrize("name", ["unet-or-segnet.md", "ideas.md", "study.md", "indices.md", "gpu.md"])
def test_every_measured_figure_outside_a_table_is_tagged(name):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    for pattern in (r"<!-- ([\w-]+):begin -->.*?<!-- \1:end -->", FIGURE, r"`[^`]*`"):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    assert re.findall(r"\d+\.\d+", text) == []


def test_the_documents_tables_are_generated_from_results(tmp_path, capsys):
    update = scripts("update_docs")
    assert update.main(["--check"]) == 0, "run scripts/update_docs.py"
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "faults.md").write_text("a <!-- faults:begin -->stale<!-- faults:end --> b", encoding="utf-8")
    (tmp_path / "results").symlink_to(RESULTS)
    assert update.main(["--check", "--root", str(tmp_path)]) == 1
    assert "faults.md differs from its sources" in capsys.readouterr().err
    assert update.main(["--root", str(tmp_path)]) == 0
    written = (tmp_path / "docs" / "faults.md").read_text(encoding="utf-8")
    assert written.startswith("a <!-- faults:begin -->\n\n| File |")
    assert written.endswith("<!-- faults:end --> b")
    assert "stale" not in written
    with pytest.raises(PetsegError, match="its markers begin models and end ; wanted each once"):
        update.with_tables(text.partition("<!-- models:end -->")[0], str)


def test_every_test_that_the_reliability_page_names_exists_and_every_file_that_it_counts():
    cases = read_json(RESULTS / "reliability" / "tests.json")["cases"]
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"\[`(test_\w+)`\]\(\.\./tests/([\w/.]+)\)", page)
    assert len(named) == page.count("[`test_") > 5
    for name, file in named:
        assert re.search(rf"def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8")), name
    # names are those of the commit that was counted
    assert all((ROOT / "tests" / test.partition("::")[0]).is_file() and count > 0 for test, count in cases.items())


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_published_figures_follow_from_the_per_image_counts(path):
    comparison = read_record(path, ComparisonResult)
    matrices = {}
    for model in comparison.models:
        counts = path.parent / "runs" / folder_name(model.name) / "evaluations" / f"{comparison.split}.images.json"
        classes = len(comparison.data.scored_classes)
        matrices[model.name] = np.array([row[1] for row in read_json(counts)["images"]]).reshape(-1, classes, classes)
        scores = model.evaluations[comparison.split]
        assert scores.images == len(matrices[model.name]) == comparison.data.splits[comparison.split]
        assert scores.miou == pytest.approx(float(mean_iou(matrices[model.name].sum(axis=0))))
        assert np.array_equal(scores.confusion, matrices[model.name].sum(axis=0))
        seconds = [row.seconds for row in model.history]
        assert model.cost.train_seconds == pytest.approx(float(np.median(seconds)) * len(seconds), abs=0.1)
    for claimed in comparison.differences:
        found = paired_bootstrap(matrices[claimed.reference], matrices[claimed.model])
        assert [claimed.points, claimed.low, claimed.high] == pytest.approx([-found.points, -found.high, -found.low])
    assert not comparison.synthetic
    assert re.fullmatch(r"\w+", comparison.environment.commit), "of a clean checkout"


def test_a_shipped_file_scores_in_onnx_runtime_what_its_run_scored_in_torch():
    """`scripts/quantise.py --test` measures the files, `petseg evaluate` the runs."""
    measured = read_json(RESULTS / "benchmarks" / "int8.json")["models"]
    for name in shipped_models():
        folder = RESULTS / "models" / name / "evaluations"
        splits = [split for split in measured[name]["scores"] if (folder / f"{split}.json").is_file()]
        assert splits
        for split in splits:
            run, found = read_json(folder / f"{split}.json"), measured[name]["scores"][split]["fp32"]
            assert (found["miou"], found["images"]) == (pytest.approx(run["miou"], abs=0.002), run["images"])


def published(recipe, model):
    """Returns the mIoU on the test split in percent, and the minutes, of one model of a recipe's published runs."""
    run = RESULTS / "models" / f"{model}_{recipe}"
    own = {"default": "official/runs", "seed": "seed/runs", "base": "base"}
    run = RESULTS / own[recipe] / model if recipe in own else run
    history, scores = read_metrics(run), run / "evaluations" / "test.json"
    miou = 100 * read_json(scores)["miou"] if scores.is_file() else None
    return miou, epoch_seconds(history) * len(history) / 60


@pytest.mark.parametrize("name", ["default", "base", "small"])
def test_a_recipe_s_header_gives_the_published_scores_and_minutes(name):
    text = (ROOT / "petseg" / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    unet, segnet = (published(name, model) for model in ("unet", "segnet"))
    assert f"test mIoU {unet[0]:.1f} (U-Net) and {segnet[0]:.1f} (SegNet), one seed" in text
    assert f"AMX, {unet[1]:.0f} minutes for U-Net, {segnet[1]:.0f} for SegNet" in text


def test_the_minutes_and_the_download_are_right():
    official, seed = (sum(published(name, model)[1] for model in ("unet", "segnet")) for name in ("default", "seed"))
    text = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    assert f"{official:.0f} and {seed:.0f} minutes on two cores with AMX" in text.replace("\n", " ")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"({sum(archive.bytes for archive in ARCHIVES) / 1e6:.0f} MB to download)" in text


def numbers(tree):
    if isinstance(tree, dict | list):
        return [found for part in (tree.values() if isinstance(tree, dict) else tree) for found in numbers(part)]
    return [float(tree)] if isinstance(tree, int | float) else []


def test_every_measured_figure_of_the_log_stands_in_results():
    known = [value for path in (RESULTS / "log").glob("*.json") for value in numbers(json.loads(path.read_text()))]
    text = re.sub(FIGURE, "", (ROOT / "docs" / "log.md").read_text(encoding="utf-8"))
    figures = re.findall(r"(?<![\d.])\d+\.\d+(?![\d.])|(?<![\d.])\d+(?= (?:ms|%|MB))", text)
    assert len(figures) > 15
    for figure in figures:
        digits = len(figure.partition(".")[2])
        assert any(abs(value - float(figure)) <= 0.5 * 10**-digits + 1e-9 for value in known), figure


def commands():
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
            for line in block.splitlines():
                found += [part.strip() for part in line.split("#")[0].split("&&") if part.strip().startswith("petseg ")]
        found += [match for match in re.findall(r"`(petseg [^`|]+)`", text) if " | " not in match]
    assert len({*found}) > 8
    assert "petseg compare --quick" in found
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_a_command_in_the_documents_exists_with_its_options(command):
    from typer.main import get_command

    group = get_command(app)
    words = shlex.split(command)[1:]
    while words and words[0] in getattr(group, "commands", {}):
        group = group.commands[words.pop(0)]
    assert not hasattr(group, "commands") or words in ([], ["--help"], ["--version"]), f"{command}: no such subcommand"
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


def test_an_extra_that_a_document_names_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    text = "".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    named = {
        extra for names in re.findall(r"pip install '(?:\.|petseg)\[([\w,]+)\]'", text) for extra in names.split(",")
    }
    assert {"train", "serve"} <= named <= set(extras)


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_the_example_of_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks("python.md")), {"__name__": "example"})
    losses, scores, *_, unet, segnet, report = capsys.readouterr().out.splitlines()
    assert losses.count(",") == 2
    assert re.fullmatch(r"[\d.]+ % mIoU on 24 test images", scores)
    assert (unet.split()[0], segnet.split()[0], report) == ("U-Net", "SegNet", "runs/compared/report.html")
    assert Path(report).is_file()
    assert Path("overlay.png").is_file()


def test_the_reference_of_python_has_every_public_name_and_what_the_example_imports():
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    named = {line.rpartition(".")[2] for line in re.findall(r"auto\w+:: (\S+)", page)}
    found = [node for node in ast.walk(ast.parse("\n".join(blocks("python.md")))) if isinstance(node, ast.ImportFrom)]
    imported = {alias.name for node in found for alias in node.names if node.module.startswith("petseg")}
    assert {*petseg.__all__, *imported, "Builder", "Class"} - {"__version__", "Recipe"} <= named


def test_the_tree_in_contributing_names_what_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for line in re.findall(r"^(?:petseg\.|\w+/).*", text, flags=re.MULTILINE):
        for name in re.findall(r"[\w.]+/|petseg\.\w+", line.partition("  ")[0]):
            path = ROOT / name.replace(".", "/")
            assert path.exists() or path.with_suffix(".py").exists(), name


def test_the_worked_example_of_the_metrics_and_those_in_docstrings_of_scripts_hold():
    metrics = doctest.testfile(str(ROOT / "docs" / "metrics.md"), module_relative=False)
    assert metrics.attempted > 15
    names = ("tables", "update_docs", "notebooks", "measuring", "petseg.export.bench")
    for found in (metrics, *(doctest.testmod(scripts(name)) for name in names)):
        assert (found.attempted > 0, found.failed) == (True, 0), found


def test_nothing_of_the_data_set_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    images = {name for name in listed.stdout.split() if re.search(r"\.(jpe?g|png|npy|gif|webp|html)$", name)}
    drawn = {f"docs/{name}.png" for name in ("cat", "page", "failures", "from-zero")}
    pages = {"petseg/serve/page/index.html", "examples/browser/index.html"}
    samples = {f"petseg/serve/page/{name}.jpg" for name in ("cat", "dog", "coffee")}  # scripts/draw.py says whose
    assert images <= {*drawn, *samples, *pages}
