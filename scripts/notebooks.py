"""Writes the tutorials of docs/ as notebooks, examples/NAME.ipynb; a page is the source, its notebook a copy.

python scripts/notebooks.py          # writes
python scripts/notebooks.py --check  # exits 1 if a notebook differs from its page

A page is the source because its changes can be read line by line, its figures are checked as those of other pages are,
and the site, the repository and the sdist show it without a program.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ("cut-out", "from-zero", "own-images")
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
PLAIN = "# a notebook is no terminal: progress in lines\n%env TTY_COMPATIBLE=0"


def notebook(page: str) -> nbformat.NotebookNode:
    """Returns a page's notebook, without outputs: Python and shell blocks are cells, links lead to docs/.

    >>> found = notebook("# A\\n\\n[B](b.md#c)\\n\\n```sh\\npetseg models\\n```\\n")
    >>> [cell.source for cell in found.cells if cell.source != PLAIN]
    ['# A\\n\\n[B](../docs/b.md#c)', '!petseg models']
    """
    page = re.sub(r"<!-- fig: .*? -->", "", page)
    page = re.sub(r"\]\((?!https?:|#|\.\./)", "](../docs/", page)
    texts = re.split(r"```(python|sh)\n(.*?)```\n", page, flags=re.DOTALL)
    cells = [new_markdown_cell(texts[0].strip()), new_code_cell(PLAIN)]
    for language, code, text in zip(texts[1::3], texts[2::3], texts[3::3], strict=True):
        commands = re.sub(r"^(?=petseg )", "!", code, flags=re.MULTILINE)  # %%sh is nothing that Windows has
        cells.append(new_code_cell((code if language == "python" else commands).strip()))
        cells += [new_markdown_cell(text.strip())] if text.strip() else []
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # nbformat draws one at random
    made = new_notebook(cells=cells, metadata=KERNEL)
    nbformat.validate(made)
    return made


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 done or up to date, 1 `--check` found a difference."""
    changed = []
    for name in TUTORIALS:
        page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        path, new = ROOT / "examples" / f"{name}.ipynb", nbformat.writes(notebook(page)) + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != new:
            changed.append(path.name)
            if "--check" not in arguments:
                path.write_text(new, encoding="utf-8", newline="\n")
    if changed and "--check" in arguments:
        print(f"{', '.join(changed)} differs from its page: run `python scripts/notebooks.py`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
