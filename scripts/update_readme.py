"""Writes the results table between the markers of README.md, from results/*/comparison.json.

python scripts/update_readme.py          # writes it
python scripts/update_readme.py --check  # exits 1 if it would change
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from petseg.errors import PetsegError
from petseg.report import results_table
from petseg.report.page import findings, read_comparison

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def with_results(readme: str, table: str) -> str:
    """Returns the README with `table` between its markers.

    >>> print(with_results(f"# x\\n{BEGIN}\\nold\\n{END}\\n", "new"))
    # x
    <!-- results:begin -->
    <BLANKLINE>
    new
    <BLANKLINE>
    <!-- results:end -->
    <BLANKLINE>
    """
    for marker in (BEGIN, END):
        if readme.count(marker) != 1:
            raise PetsegError(
                f"README.md holds {marker} {readme.count(marker)} times; wanted once: put {BEGIN} and {END} around "
                "the place of the results table"
            )
    before, rest = readme.split(BEGIN)
    if END not in rest:
        raise PetsegError(f"README.md holds {END} before {BEGIN}; wanted the other order: swap them")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done or up to date, 1 `--check` found a difference, 2 a mistake."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if README.md would change")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the repository")
    options = parser.parse_args(arguments)
    path = options.root / "README.md"
    try:
        if not path.is_file():
            raise PetsegError(f"{path} does not exist; wanted the repository's README.md: name its folder with --root")
        found = sorted((options.root / "results").glob("*/comparison.json"))
        old = path.read_text(encoding="utf-8")
        comparisons = [read_comparison(file) for file in found]
        answers = [
            f"- Protocol `{comparison['protocol']}`: {' '.join(findings(comparison))}" for comparison in comparisons
        ]
        new = with_results(old, "\n".join([*answers, "", results_table(comparisons)]))
    except PetsegError as error:
        print(error, file=sys.stderr)
        return 2
    if new == old:
        return 0
    if options.check:
        print("README.md differs from results/: run `python scripts/update_readme.py`", file=sys.stderr)
        return 1
    path.write_text(new, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
