"""Progress bars, and what Ctrl-C says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
def progress_bar(*, transfer: bool = False) -> Iterator[Callable[..., None]]:
    """Yields advance(title, done, total, detail=""): one bar a title, with the time left.

    Without a terminal it prints a line a tenth of the way, so that a log stays readable.
    """
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
    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        amount,
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[detail]}"),
        console=console,
    )
    ids: dict[str, progress.TaskID] = {}
    with bar:

        def advance(title: str, done: int, total: int, detail: str = "") -> None:
            if title not in ids:
                ids[title] = bar.add_task(title, total=total, detail=detail)
            bar.update(ids[title], completed=done, total=total, detail=detail)

        yield advance
