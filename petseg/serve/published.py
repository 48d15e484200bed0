"""The published study's answer, a part of the page: what to take, one plot, one table; from the JSON under results/."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from threading import Lock

from petseg.report.study import render_answer
from petseg.schema import Findings, read_record

PACKAGE = Path(str(files("petseg")))
# a wheel carries the study's findings inside the package; in a checkout they lie beside it
RESULTS = next(folder for folder in (PACKAGE / "results", PACKAGE.parent / "results") if folder.is_dir())
_drawing = Lock()  # matplotlib draws one figure at a time


@cache
def answer() -> str:
    """Returns the answer as HTML."""
    with _drawing:
        return render_answer(read_record(RESULTS / "study" / "findings.json", Findings))
