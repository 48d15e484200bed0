"""Writes every generated table of the documents, between their markers, from results/ and the shipped models' cards.

python scripts/update_docs.py          # writes
python scripts/update_docs.py --check  # exits 1 if it would change a document
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmark_tables import benchmark_tables, headline
from inference_tables import indices_tables, inference_tables, start_table
from model_tables import model_tables
from reliability_tables import reliability_tables
from study_tables import study_headline, study_texts

from petseg.errors import PetsegError
from petseg.report import results_table
from petseg.report.page import findings, read_comparison


def with_tables(document: str, tables: Mapping[str, str], name: str = "the document") -> str:
    """Returns the document with each table between its markers.

    >>> print(with_tables("# x\\n<!-- speed:begin -->\\nold\\n<!-- speed:end -->\\n", {"speed": "new"}))
    # x
    <!-- speed:begin -->
    <BLANKLINE>
    new
    <BLANKLINE>
    <!-- speed:end -->
    <BLANKLINE>
    """
    for key, table in tables.items():
        begin, end = f"<!-- {key}:begin -->", f"<!-- {key}:end -->"
        for marker in (begin, end):
            if document.count(marker) != 1:
                raise PetsegError(
                    f"{name} holds {marker} {document.count(marker)} times; wanted once: put {begin} and {end} around "
                    "the place of the table"
                )
        before, rest = document.split(begin)
        if end not in rest:
            raise PetsegError(f"{name} holds {end} before {begin}; wanted the other order: swap them")
        document = f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}"
    return document


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done or up to date, 1 `--check` found a difference, 2 a mistake."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a document would change")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the repository")
    options = parser.parse_args(arguments)
    results, weights = options.root / "results", options.root / "petseg" / "weights"
    changed = []
    try:
        for name, tables in (
            (
                "README.md",
                lambda: {
                    "results": comparison_tables(results),
                    "speed": headline(results),
                    "indices": indices_tables(results)["indices-answer"],
                    "models": model_tables(weights, results)["models"],
                    "study": study_headline(results),
                },
            ),
            ("docs/models.md", lambda: model_tables(weights, results)),
            ("benchmarks/README.md", lambda: {**benchmark_tables(results), **inference_tables(results)}),
            ("docs/predict.md", lambda: start_table(results)),
            ("docs/indices.md", lambda: indices_tables(results)),
            ("docs/unet-or-segnet.md", lambda: study_texts(results)),
            ("docs/reliability.md", lambda: reliability_tables(results)),
        ):
            path = options.root / name
            if not path.is_file():
                raise PetsegError(f"{path} does not exist; wanted the repository's {name}: name its folder with --root")
            old = path.read_text(encoding="utf-8")
            new = with_tables(old, tables(), name)
            if new != old:
                changed.append(name)
                if not options.check:
                    path.write_text(new, encoding="utf-8", newline="\n")
    except PetsegError as error:
        print(error, file=sys.stderr)
        return 2
    if options.check and changed:
        print(f"{', '.join(changed)} differs from its sources: run `python scripts/update_docs.py`", file=sys.stderr)
        return 1
    return 0


def comparison_tables(results: Path) -> str:
    """Returns the sentences and the table of the published comparisons."""
    comparisons = [read_comparison(file) for file in sorted(results.glob("*/comparison.json"))]
    answers = [f"- Protocol `{comparison['protocol']}`: {' '.join(findings(comparison))}" for comparison in comparisons]
    return "\n".join([*answers, "", results_table(comparisons)])


if __name__ == "__main__":
    sys.exit(main())
