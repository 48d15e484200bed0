"""Numbers as people read them; a value that does not exist (an absent class, a cost not measured) is a dash.

>>> percent(0.7314), percent(1), percent(None), loss(0.36142), whole(3669)
('73.1', '100.0', '–', '0.3614', '3,669')
"""

import math
from collections.abc import Callable
from functools import wraps

DASH = "–"
PREFIXES = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}
Number = float | int | None
Format = Callable[[Number], str]


def dashed(text: Callable[[float], str]) -> Format:
    """Returns the formatter with a dash for what does not exist."""
    return wraps(text)(lambda value: DASH if value is None or math.isnan(value) else text(value))


percent = dashed(lambda share: f"{100 * share:.1f}")  # of a share of 0..1, without the sign: 73.1
loss = dashed(lambda nats: f"{nats:.4f}")
whole = dashed(lambda value: f"{value:,.0f}")


@dashed
def count(value: float) -> str:
    """Returns a count with the prefix that leaves at least 0.1 before it, 730_000_000 as 0.73 G; exact below 100."""
    for prefix, unit in PREFIXES.items():
        scaled = value / unit
        if scaled >= 0.1:
            return f"{scaled:.{2 if scaled < 0.995 else 1}f} {prefix}"
    return f"{value:.0f}"


@dashed
def byte_size(value: float) -> str:
    """Returns bytes in decimal units (1 MB is 10^6 bytes) with one decimal: 12.3 MB."""
    for prefix, unit in PREFIXES.items():
        if value >= 0.99995 * unit:
            return f"{value / unit:.1f} {prefix}B"
    return f"{value:.0f} B"


@dashed
def duration(seconds: float) -> str:
    """Returns seconds as s below two minutes, min below two hours, else h: 19.7 min."""
    if seconds < 119.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dashed
def milliseconds(value: float) -> str:
    """Returns milliseconds with three significant digits: 9.12 ms."""
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3}f} ms"


@dashed
def points(value: float) -> str:
    """Returns percentage points with a true minus sign: −0.3; never −0.0."""
    text = f"{value:.1f}"
    return text.replace("-", "" if float(text) == 0 else "−")


def signed(value: float) -> str:
    """Returns percentage points with their sign: +4.7."""
    text = points(value)
    return f"+{text}" if value > 0 and text != "0.0" else text


def plural(number: int, noun: str) -> str:
    """Returns the number with its noun: 1 epoch, 3,669 images."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


FORMATTERS: dict[str, Callable[..., str]] = {  # name -> formatter, for templates and tables
    **{"percent": percent, "loss": loss, "whole": whole},
    **{text.__name__: text for text in (count, byte_size, duration, milliseconds, points, signed, plural)},
}
