"""What the terminal shows: progress bars, tables, and what to do after Ctrl-C."""

import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import BufferedWriter, FileIO, TextIOWrapper
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal, TextIO

import typer

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from rich.progress import TextColumn


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a call as Ctrl-C does."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raises `Terminated` where SIGTERM comes; elsewhere than in the main thread, signals are nobody's."""

    def end(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(interruption: KeyboardInterrupt) -> int:
    """Returns what a shell expects of a call that was interrupted: 128 and the signal's number."""
    return 143 if isinstance(interruption, Terminated) else 130


@contextmanager
def resumable(advice: str = "whole epochs are kept: run the same command with --resume to go on") -> Iterator[None]:
    """Says, after Ctrl-C, how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\npetseg: interrupted; {advice}", file=sys.stderr)
        raise typer.Exit(130) from None


class _Stdout(FileIO):
    """Stdout, which its errors name."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Writes as `FileIO` does."""
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, "stdout") from None


@contextmanager
def results_only() -> Iterator[TextIO]:
    """Yields where results are printed; what anything else prints meanwhile, a C library too, goes to stderr.

    Where nobody reads on, as behind `head`, the call ends quietly with the code of SIGPIPE.
    """
    stream, kept = sys.stdout, os.dup(1)
    stream.flush()
    os.dup2(2, 1)
    try:
        binary = BufferedWriter(_Stdout(kept, "wb", closefd=False))
        with redirect_stdout(sys.stderr), TextIOWrapper(binary, stream.encoding, "replace", line_buffering=True) as own:
            yield own if stream is sys.__stdout__ else stream
    except BrokenPipeError as error:
        if error.filename != "stdout":
            raise
        raise typer.Exit(141) from None
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def progress_bar(*, transfer: bool = False) -> Iterator[Callable[..., None]]:
    """Yields advance(title, done, total, detail=""): a bar a title with the time left, in a log a line each tenth.

    A total of None is not known: the bar counts, a log has a line each ten seconds.
    """
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        steps: dict[str, int] = {}

        def log(title: str, done: int, total: int | None, detail: str = "") -> None:
            step = int(time.monotonic() / 10) if total is None else 10 * done // max(1, total)
            if steps.get(title) != step:
                steps[title] = step
                reached = f"{done:,}" if total is None else f"{10 * step} %"
                print(f"{title}: {reached} {detail}".rstrip(), file=sys.stderr, flush=True)

        yield log
        return
    amount: progress.ProgressColumn = progress.DownloadColumn() if transfer else progress.MofNCompleteColumn()
    # in 80 columns a row is one line: the bar gives way first, then the ends of the words
    title, detail = (
        _words(f"{{task.{field}}}", width) for field, width in (("description", 24), ("fields[detail]", 26))
    )
    wide = console.width >= 110
    times = [progress.TimeElapsedColumn()] * wide + [progress.TimeRemainingColumn()]
    bar_column = progress.BarColumn(bar_width=40 if wide else 10)
    ids: dict[str, progress.TaskID] = {}
    with progress.Progress(title, bar_column, amount, *times, detail, console=console) as bar:

        def advance(title: str, done: int, total: int | None, detail: str = "") -> None:
            if title not in ids:
                ids[title] = bar.add_task(title, total=total, detail=detail)
            bar.update(ids[title], completed=done, total=total, detail=detail)

        yield advance


def _words(text: str, width: int) -> "TextColumn":
    """Returns a column of a progress bar that is one line high; what is longer than `width` characters is cut."""
    from rich.progress import TextColumn
    from rich.table import Column

    return TextColumn(text, table_column=Column(no_wrap=True, overflow="ellipsis", max_width=width))


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", widths: Sequence[int] = ()
) -> None:
    """Prints a table; a column whose name starts with ">" is aligned at the right; `widths` are in characters."""
    from rich.console import Console
    from rich.table import Table

    padding = (0, 1 if len(columns) < 9 else 0)  # nine columns fit into 80 characters
    table = Table(title=title or None, caption=caption or None, title_justify="left", padding=padding)
    for column, width in zip_longest(columns, widths):
        side: Literal["right", "left"] = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=side, overflow="fold", width=width)
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


def print_figures(title: str, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Prints figures of labelled rows within the terminal's width, a table in parts where one is too wide.

    Where the labels fit side by side each is a column: few networks have many figures.
    """
    from rich.console import Console

    width = Console().width - 1
    figures = [cells for _, cells in rows]
    own = [max(len(label), *map(len, cells)) for label, cells in rows]
    if len(rows) <= len(heads) and max(map(len, heads)) + sum(own) + 3 * len(rows) + 3 <= width:
        turned = zip(heads, *figures, strict=True)
        print_table(title, ["", *(f">{label}" for label, _ in rows)], turned)
        return
    widths = [max(map(len, (*head.split(), *cells))) for head, *cells in zip(heads, *figures, strict=True)]
    longest = max(len(label) for label, _ in rows)
    # as few parts as can be, then the widest labels; what is longer is folded
    options = [(_parts(widths, width - label - 3), label) for label in range(max(16, min(longest, 40)), 15, -1)]
    parts, label = min(options, key=lambda option: len(option[0]))
    for number, part in enumerate(parts):
        shown = [(own, *(cells[place] for place in part)) for own, cells in rows]
        columns = ["", *(f">{heads[place]}" for place in part)]
        taken = [min(longest, label), *(widths[place] for place in part)]
        print_table("" if number else title, columns, shown, widths=taken)


def _parts(widths: Sequence[int], width: int) -> list[list[int]]:
    """Returns the places of the columns that fit side by side, part by part."""
    parts, left = [list[int]()], width
    for place, own in enumerate(widths):
        if parts[-1] and own + 3 > left:
            parts.append([])
            left = width
        parts[-1].append(place)
        left -= own + 3
    return parts
