"""Where the file of a network of one's own lay when a run was made, and whether it still is that file.

A run's config names the file as it was typed, which leads nowhere from another folder; `network.json` beside it names
the place on this machine, as `place.json` does for images.
"""

import logging
from contextlib import suppress
from functools import cache
from pathlib import Path

from petseg import storage
from petseg.config import ModelConfig
from petseg.errors import PetsegError
from petseg.models.own import is_own
from petseg.training import distributed
from petseg.training.runs import NETWORK


def claim_file(run: Path, config: ModelConfig) -> None:
    """Writes down, once, where the file of a run's network lies, and its SHA-256; nothing of other networks."""
    if is_own(config.name) and not (run / NETWORK).is_file():
        file = Path(config.name.rpartition(":")[0]).resolve()
        storage.write_json(run / NETWORK, {"file": str(file), "sha256": storage.sha256(file)})


def located(run: Path, config: ModelConfig) -> ModelConfig:
    """Returns a run's model, named by the place that was written down where the config's file is not there.

    Warns, once in a process, of a file that has changed since.
    """
    if not is_own(config.name):
        return config
    file, _, attribute = config.name.rpartition(":")
    with suppress(PetsegError):  # a run of before it was written down
        known = storage.read_json(run / NETWORK)
        place = str(known.get("file", ""))
        if not Path(file).is_file() and Path(place).is_file():
            file = place
        if Path(file).is_file() and storage.sha256(Path(file)) != known.get("sha256") and distributed.rank() == 0:
            _warn(run.resolve(), file)
    return config.model_copy(update={"name": f"{file}:{attribute}"})


@cache
def _warn(run: Path, file: str) -> None:
    logging.getLogger("petseg").warning(
        "petseg: warning: %s: %s has changed since the run began, so scores may differ; restore the file", run, file
    )
