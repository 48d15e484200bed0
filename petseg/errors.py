"""The errors petseg raises for a caller's mistake."""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from reprlib import Repr


class PetsegError(ValueError):
    """A caller's mistake, told in one line: what was got, what was wanted, what to do."""


class DiskError(PetsegError):
    """The disk takes no more of anything: what follows fails as well."""


class LongNameError(PetsegError):
    """The system takes no file of so long a name; others it may."""


class DivergedError(PetsegError):
    """The loss became NaN or infinite: a result of the settings, which a study records and goes on."""


ADVICE = {  # what to do where a file cannot be written, by the system's number of the error
    errno.ENAMETOOLONG: "give the photo or the folder a shorter name",
    errno.EACCES: "choose another folder",
    errno.EROFS: "choose another folder",
    errno.ENOSPC: "free some space",
}
DISK = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)


@contextmanager
def disk_errors(place: object, advice: str = "") -> Iterator[None]:
    """Turns an OSError of the block (a full disk, a place that is not writable) into one line."""
    try:
        yield
    except OSError as error:
        do = advice or ADVICE.get(error.errno or 0, "free some space or choose another folder")
        kind = LongNameError if error.errno == errno.ENAMETOOLONG else PetsegError
        kind = DiskError if error.errno in DISK else kind
        raise kind(f"{place}: cannot be written ({error.strerror or error}); {do}") from error


def first_line(error: BaseException) -> str:
    """Returns the first line of what a library says of a fault, or the fault's name."""
    return str(error).partition("\n")[0] or type(error).__name__


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: object) -> str:
    """Returns a value as Python writes it, long ones cut in their middle: an error is one line.

    >>> shown("unett"), len(shown("a" * 1000))
    ("'unett'", 80)
    """
    return " ".join(_SHORT.repr(value).split())


MOST_CHOICES = 60  # names that an error lists; of a library's 1,500 only the nearest help


def unknown_name(kind: str, got: str, choices: Iterable[str]) -> PetsegError:
    """Returns the error for a name that is not one of `choices`, nearest choice first.

    >>> str(unknown_name("model", "unett", ["segnet", "unet"]))
    "model 'unett' is unknown; choose one of: unet, segnet"
    """

    text = str(got)  # of the API it may be anything

    def likeness(name: str) -> float:
        whole = difflib.SequenceMatcher(None, text[:80], name).ratio()
        # of dotted fields the last part is what people remember
        last = difflib.SequenceMatcher(None, text[-80:].split(".")[-1], name.split(".")[-1]).ratio()
        return max(whole, last)

    ordered = sorted(choices, key=lambda name: (-likeness(name), name))
    more = f" and {len(ordered) - MOST_CHOICES} more" if len(ordered) > MOST_CHOICES else ""
    told = ", ".join(ordered[:MOST_CHOICES] if more else ordered)
    do = f"choose one of: {told}{more}" if ordered else "there is none: leave it out"
    return PetsegError(f"{kind} {shown(got)} is unknown; {do}")
