"""What the terminal shows: progress bars, tables, and what to do after Ctrl-C."""

import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Literal, TextIO

import typer


@contextmanager
def resumable(advice: str = "run the same command with --resume to go on") -> Iterator[None]:
    """Says, after Ctrl-C, how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\npetseg: interrupted; whole epochs are kept: {advice}", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def results_only() -> Iterator[TextIO]:
    """Yields where results are printed; what anything else prints meanwhile, a C library too, goes to stderr."""
    stream, kept = sys.stdout, os.dup(1)
    stream.flush()
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr), open(kept, "w", 1, stream.encoding, "replace", closefd=False) as own:
            yield own if stream is sys.__stdout__ else stream
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def progress_bar(*, transfer: bool = False) -> Iterator[Callable[..., None]]:
    """Yields advance(title, done, total, detail=""): a bar a title with the time left, in a log a line each tenth."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        tenths: dict[str, int] = {}

        def log(title: str, done: int, total: int, detail: str = "") -> None:
            tenth = 10 * done // max(1, total)
            if tenths.get(title) != tenth:
                tenths[title] = tenth
                print(f"{title}: {10 * tenth} % {detail}".rstrip(), file=sys.stderr, flush=True)

        yield log
        return
    amount: progress.ProgressColumn = progress.DownloadColumn() if transfer else progress.MofNCompleteColumn()
    times = (progress.TimeElapsedColumn(), progress.TimeRemainingColumn())
    texts = [progress.TextColumn(f"{{task.{field}}}") for field in ("description", "fields[detail]")]
    ids: dict[str, progress.TaskID] = {}
    with progress.Progress(texts[0], progress.BarColumn(), amount, *times, texts[1], console=console) as bar:

        def advance(title: str, done: int, total: int, detail: str = "") -> None:
            if title not in ids:
                ids[title] = bar.add_task(title, total=total, detail=detail)
            bar.update(ids[title], completed=done, total=total, detail=detail)

        yield advance


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> None:
    """Prints a table; a column whose name starts with ">" is aligned at the right."""
    from rich.console import Console
    from rich.table import Table

    padding = (0, 1 if len(columns) < 9 else 0)  # nine columns fit into 80 characters
    table = Table(title=title or None, caption=caption or None, title_justify="left", padding=padding)
    for column in columns:
        side: Literal["right", "left"] = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=side, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_lines(text: str, *, indent: int = 0, style: str = "") -> None:
    """Prints a text in lines of the terminal's width."""
    from rich.console import Console
    from rich.text import Text

    console, space = Console(), " " * indent
    lines = textwrap.wrap(text, console.width, initial_indent=space, subsequent_indent=space, break_on_hyphens=False)
    for line in lines:
        console.print(Text(line, style=style), soft_wrap=True)
