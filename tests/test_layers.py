"""The house order: a file imports files above it, never below; and nothing heavy before a subcommand needs it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ORDER = (
    *("petseg", "petseg.errors", "petseg.config"),
    *("petseg.data", "petseg.data.archives", "petseg.data.oxford_pets", "petseg.data.synthetic"),
    *(
        "petseg.data.cache",
        "petseg.data.check",
        "petseg.data.camera",
        "petseg.data.scene",
        "petseg.data.augment",
        "petseg.data.corrupt",
    ),
    *("petseg.models.layers", "petseg.models.segnet", "petseg.models.unet", "petseg.models.baselines"),
    *("petseg.models.normalisation", "petseg.models.external", "petseg.models"),
    *("petseg.losses", "petseg.metrics", "petseg.runs"),
    *("petseg.enlarge", "petseg.regions", "petseg.cutout", "petseg.photos", "petseg.runtimes"),
    *("petseg.predict", "petseg.outputs"),
    "petseg.convert",
    *(
        "petseg.distil",
        "petseg.train",
        "petseg.evaluate",
        "petseg.robustness",
        "petseg.export",
        "petseg.quantise",
        "petseg.cost",
        "petseg.stats",
    ),
    *("petseg.bench", "petseg.compare"),
    *("petseg.study.recipe", "petseg.study.results", "petseg.study.plan", "petseg.study.match", "petseg.study.run"),
    *("petseg.study.findings", "petseg.study"),
    *("petseg.report.tables", "petseg.report.plots", "petseg.report.page"),
    *("petseg.report.study_plots", "petseg.report.study", "petseg.report"),
    *("petseg.serve.upload", "petseg.serve.work", "petseg.serve.published", "petseg.serve.app"),
    *("petseg.serve.server", "petseg.serve", "petseg.cli"),
)
"""From top to bottom: data, models, train, evaluate, compare, report, serve. A new file takes its place here."""

MAY_IMPORT = {
    "petseg.data": ("petseg.errors", "petseg.config", "petseg.data"),
    "petseg.models": ("petseg.errors", "petseg.config", "petseg.data.oxford_pets", "petseg.models"),
    "petseg.report": ("petseg.errors", "petseg.runs", "petseg.data.oxford_pets", "petseg.report"),
}
"""Package -> all that its files may import of petseg, whatever stands above them: a report reads plain files."""


def modules(root: Path) -> dict[str, Path]:
    """Returns dotted name -> file of every module of the package."""
    found = {}
    for path in sorted((root / "petseg").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Yields (line, module of petseg) for each import of a file, those in functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "petseg")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name if path.name == "__init__.py" else name.rpartition(".")[0]
                parents = package.split(".")[: len(package.split(".")) + 1 - node.level]
                base = ".".join([*parents, *([base] if base else [])])
            if base.split(".")[0] == "petseg":
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    yield node.lineno, inner if inner in known else base


def lazy_lines(path: Path) -> set[int]:
    """Returns the lines of what a file imports for type checkers alone: the public names, imported when first used."""
    blocks = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    return {each.lineno for node in blocks if ast.unparse(node.test) == "TYPE_CHECKING" for each in node.body}


def broken(root: Path) -> list[str]:
    """Returns "file:line: ..." for each import against the order, empty when it holds."""
    files = modules(root)
    place = {name: number for number, name in enumerate(ORDER)}
    found = [f"{name} has no place in ORDER" for name in files if name not in place]
    for name, path in files.items():
        package = next((package for package in MAY_IMPORT if name == package or name.startswith(f"{package}.")), None)
        public = lazy_lines(path) if name == "petseg" else set()
        for line, target in imports(name, path, frozenset(files)):
            if line in public:
                continue
            where = f"{path.relative_to(root).as_posix()}:{line}: {name} imports {target}"
            if target not in files:
                found.append(f"{where}, which is no file")
            elif place.get(target, 0) >= place.get(name, len(ORDER)):
                found.append(f"{where}, which stands below it")
            elif (
                package
                and target != "petseg"
                and not any(target == free or target.startswith(f"{free}.") for free in MAY_IMPORT[package])
            ):
                found.append(f"{where}; {package} may import {', '.join(MAY_IMPORT[package])} alone")
    return found


def test_a_file_imports_files_above_it():
    assert broken(ROOT) == []


def test_every_place_in_the_order_is_a_file():
    assert {*ORDER} == {*modules(ROOT)}
    assert len(ORDER) == len({*ORDER})


@pytest.mark.parametrize(
    ("file", "code", "told"),
    [
        (
            "errors.py",
            "from petseg.config import RunConfig",
            "petseg.errors imports petseg.config, which stands below it",
        ),
        ("train.py", "def f():\n    import petseg.evaluate", "train.py:2: petseg.train imports petseg.evaluate, which"),
        ("train.py", "from petseg import compare", "petseg.train imports petseg.compare, which stands below it"),
        ("train.py", "from . import cli", "petseg.train imports petseg.cli, which stands below it"),
        ("train.py", "from .report.page import x", "petseg.train imports petseg.report.page, which stands below it"),
        ("data/cache.py", "from ..models import x", "petseg.data.cache imports petseg.models, which stands below it"),
        (
            "models/__init__.py",
            "from . import unet\nfrom ..losses import x",
            ":2: petseg.models imports petseg.losses, which",
        ),
        ("metrics.py", "from petseg.metrics import x", "petseg.metrics imports petseg.metrics, which stands below it"),
        (
            "models/unet.py",
            "from petseg.data.cache import x",
            "; petseg.models may import petseg.errors, petseg.config, ",
        ),
        ("report/page.py", "from petseg.train import x", "; petseg.report may import petseg.errors, petseg.runs, "),
        ("train.py", "from petseg.nowhere import x", "petseg.train imports petseg.nowhere, which is no file"),
        ("utils.py", "", "petseg.utils has no place in ORDER"),
        (
            "train.py",
            "if TYPE_CHECKING:\n    from petseg.cli import x",
            "train.py:2: petseg.train imports petseg.cli, which",
        ),
    ],
)
def test_the_guard_bites(tmp_path, file, code, told):
    for name, path in modules(ROOT).items():
        empty = tmp_path / path.relative_to(ROOT)
        empty.parent.mkdir(parents=True, exist_ok=True)
        empty.write_text("", encoding="utf-8")
        assert name in ORDER
    assert broken(tmp_path) == []
    (tmp_path / "petseg" / file).write_text(code, encoding="utf-8")
    (line,) = broken(tmp_path)
    assert told in line


@pytest.mark.parametrize("module", ["petseg", "petseg.cli"])
def test_importing_the_command_line_is_light(module):
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    loaded = done.stdout.split()
    assert "petseg" in loaded
    assert not {"torch", "numpy", "pydantic", "PIL", "scipy", "matplotlib", "jinja2", "fastapi"} & {*loaded}


@pytest.mark.parametrize(
    "module",
    ["petseg.config", "petseg.data.cache", "petseg.data.check", "petseg.runs", "petseg.predict", "petseg.outputs"],
)
def test_reading_data_and_predicting_need_no_torch(module):
    """What the base install is for: these run where torch is not."""
    code = f"import sys; sys.modules['torch'] = None; import {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert module in done.stdout.split()
