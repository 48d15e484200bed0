"""The documentation site: sphinx-build -W -b html docs site (extras `docs`, `train`).

Sphinx with MyST reads the same Markdown files that the repository shows. Material for MkDocs is at the end of its life,
and its successor Zensical has no stable version yet; Sphinx also documents Python from its docstrings and checks links.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from petseg import __version__

sys.path.insert(0, str(Path(__file__).parent))
from fields import write_commands, write_fields, write_records

project, author, release = "petseg", "The petseg authors", __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_favicon = "../petseg/serve/page/icon.svg"
html_title = f"petseg {release}"
html_show_sphinx = html_show_copyright = False
myst_enable_extensions = ["colon_fence", "attrs_inline", "deflist"]
myst_heading_anchors = 4
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
nitpicky = False
REPOSITORY = os.environ.get(
    "PETSEG_REPOSITORY", ""
)  # where files beside docs/ are shown, as https://host/name/blob/main


def files_elsewhere(app: Sphinx, docname: str, source: list[str]) -> None:
    """Points links to files beside docs/ (code, results, benchmarks) at the repository; without one, names them."""
    top = Path(app.srcdir).resolve()

    def elsewhere(link: re.Match[str]) -> str:
        path = (top / docname).parent.joinpath(link[2]).resolve()
        if path.is_relative_to(top):
            return link[0]
        name = path.relative_to(top.parent).as_posix()
        text = link[1] if link[1].strip("`") == name else f"{link[1]} (`{name}`)"
        return f"[{link[1]}]({REPOSITORY}/{name})" if REPOSITORY else text

    source[0] = re.sub(r"\[([^\]]*)\]\(([^)#:]+)(?:#[^)]*)?\)", elsewhere, source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Writes the generated pages and connects the links."""
    write_fields(Path(app.srcdir) / "reference" / "recipe.md")
    write_records(Path(app.srcdir) / "reference" / "records.md")
    for name in ("CONTRIBUTING", "CHANGELOG"):
        text = (Path(app.srcdir).parent / f"{name}.md").read_text(encoding="utf-8")
        text = re.sub(r"\]\((?!https?:|#)", "](../../", text)
        (Path(app.srcdir) / "reference" / f"{name.lower()}.md").write_text(text, encoding="utf-8")
    write_commands(Path(app.srcdir) / "reference" / "commands.md")
    app.connect("source-read", files_elsewhere)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
