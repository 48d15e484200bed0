"""What a figure depends on beside its config: code, versions, machine."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from petseg import __version__


def environment(*, device: str, precision: str, threads: int) -> dict[str, Any]:
    """Returns the fields of `schema.EnvironmentInfo`."""
    return {
        "petseg": __version__,
        "commit": _commit(),
        "device": device,
        "processor": _processor(),
        "threads": threads,
        "precision": precision,
        "torch": version("torch") if find_spec("torch") else "none",
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "started": now(),
    }


def now() -> str:
    """Returns the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _commit() -> str:
    """Returns the commit of the code that runs, "-dirty" if it differs; "" where petseg is installed without git."""
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
