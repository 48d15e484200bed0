"""A Ray cluster that somebody started: joining it, and its errors in one line. Ray is of the extra `cluster`."""

import logging
import os
import re
import socket

from petseg.errors import PetsegError, first_line

CLIENT_PORT = 10001
WANTED = "wanted auto, HOST:6379 or ray://HOST:10001"


def connect(address: str) -> None:
    """Joins the running Ray cluster at an address: `auto` (this machine's), HOST:PORT of its head, or ray://HOST:PORT.

    Raises `PetsegError` where none answers there, or one of another version of Ray or Python.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine
    import ray

    if ray.is_initialized():
        return
    if address != "auto":
        _knock(address)
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise PetsegError(f"--ray {address}: no Ray cluster answers there ({first_line(error)}); {START}") from None
    except (RuntimeError, ValueError) as error:  # of other versions, among others
        reason = " ".join(str(error).split())[:300]
        raise PetsegError(
            f"--ray {address}: the cluster cannot be joined ({reason}); install the same Ray and Python on all machines"
        ) from None


START = "start one with `ray start --head`, or leave --ray out to work on this machine"


def _knock(address: str) -> None:
    """Refuses an address at which nothing listens; Ray itself tries for minutes."""
    match = re.fullmatch(r"(?P<client>ray://)?(?P<host>[^:/]+|\[[\da-fA-F:]+\])(:(?P<port>\d{1,5}))?", address)
    if not match or not (match["client"] or match["port"]):
        raise PetsegError(f"--ray {address}: is no address of a Ray cluster; {WANTED}")
    place = match["host"].strip("[]"), int(match["port"] or CLIENT_PORT)
    try:
        socket.create_connection(place, timeout=10).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PetsegError(f"--ray {address}: no Ray cluster answers there ({reason}); {START}") from None
