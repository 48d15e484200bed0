"""Writes the documents' tables, between their markers, and tagged figures, from results/ and the shipped models' cards.

python scripts/update_docs.py          # writes
python scripts/update_docs.py --check  # exits 1 if it would change a document
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tables import table

from petseg.errors import PetsegError
from petseg.storage import read_json

DOCUMENTS = ("*.md", "docs/*.md", "benchmarks/*.md")

FIGURE = re.compile(r"(<!-- fig: (\S+\.json) (\S+)(?: \*(\S+))? (\S+) -->\(?)([^\s|]+?)(?=[).,;:]*(?:[\s|]|$))")
"""`<!-- fig: FILE PATH [*FACTOR] FORMAT -->TEXT`; a step of PATH may be [3] or [name=main,metric=miou],
~ in it stands for a space."""


def at(tree: Any, path: str) -> Any:
    """Returns what stands at a path.

    >>> at({"models": [{"name": "a", "miou": 0.5}]}, "models[name=a].miou")
    0.5
    """
    for selector, key in re.findall(r"\[([^\]]*)\]|([^.\[\]]+)", path):
        if "=" in selector:
            wanted = [condition.split("=", 1) for condition in selector.split(",")]
            tree = next(item for item in tree if all(item[name] == value for name, value in wanted))
        else:
            tree = tree[int(selector)] if selector else tree[key.replace("~", " ")]
    return tree


def with_figures(document: str, root: Path) -> str:
    """Returns the document with each tagged figure as its JSON below `root` has it."""

    def figure(found: re.Match[str]) -> str:
        tag, file, path, factor, spec, _ = found.groups()
        return tag + format(at(read_json(root / file), path) * float(factor or 1), spec).replace("-", "−")

    return FIGURE.sub(figure, document)


def with_tables(document: str, table: Callable[[str], str]) -> str:
    """Returns the document with each table between its markers.

    >>> print(with_tables("# x\\n<!-- speed:begin -->\\nold\\n<!-- speed:end -->\\n", lambda name: "new"))
    # x
    <!-- speed:begin -->
    <BLANKLINE>
    new
    <BLANKLINE>
    <!-- speed:end -->
    <BLANKLINE>

    Raises:
        PetsegError: a table's end marker is missing, or an end has no beginning.
    """
    begins, ends = (re.findall(rf"<!-- ([\w-]+):{end} -->", document) for end in ("begin", "end"))
    if begins != ends:
        raise PetsegError(
            f"its markers begin {', '.join(begins)} and end {', '.join(ends)}; wanted each once, in pairs"
        )
    for name in begins:
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, _, rest = document.partition(begin)
        document = f"{before}{begin}\n\n{table(name)}\n\n{end}{rest.partition(end)[2]}"
    return document


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done or up to date, 1 `--check` found a difference, 2 a mistake."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a document would change")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the repository")
    options = parser.parse_args(arguments)
    changed = []
    try:
        for path in sorted(path for pattern in DOCUMENTS for path in options.root.glob(pattern)):
            old = path.read_text(encoding="utf-8")
            new = with_figures(with_tables(old, partial(table, root=options.root)), options.root)
            if new != old:
                changed.append(path.name)
                if not options.check:
                    path.write_text(new, encoding="utf-8", newline="\n")
    except (PetsegError, OSError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 2
    if options.check and changed:
        print(f"{', '.join(changed)} differs from its sources: run `python scripts/update_docs.py`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
