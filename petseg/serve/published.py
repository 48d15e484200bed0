"""The published comparisons as pages: the same report that `petseg compare` writes, from the JSON under results/."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from threading import Lock

from petseg.report.page import render
from petseg.schema import ComparisonResult, read_record

PACKAGE = Path(str(files("petseg")))
# a wheel carries the comparisons inside the package; in a checkout they lie beside it
RESULTS = next(folder for folder in (PACKAGE / "results", PACKAGE.parent / "results") if folder.is_dir())
_drawing = Lock()  # matplotlib draws one figure at a time


@cache
def comparisons() -> dict[str, ComparisonResult]:
    """Returns name -> published comparison, sorted."""
    return {path.parent.name: read_record(path, ComparisonResult) for path in sorted(RESULTS.glob("*/comparison.json"))}


@cache
def page(name: str) -> str:
    """Returns a comparison's report, HTML that needs nothing else."""
    with _drawing:
        return render(comparisons()[name], RESULTS / name)
