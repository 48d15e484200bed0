"""Writes every generated table of the documents, between their markers, from results/ and the shipped models' cards.

python scripts/update_docs.py          # writes
python scripts/update_docs.py --check  # exits 1 if it would change a document
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tables import table

from petseg.errors import PetsegError

DOCUMENTS = ("README.md", "docs/*.md")


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
            new = with_tables(old, partial(table, root=options.root))
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
