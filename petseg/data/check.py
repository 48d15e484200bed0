"""`petseg data check`: which files of a data folder are unusual, and what happens to each."""

import re
from collections import defaultdict
from dataclasses import dataclass

from petseg.data.dataset import SUSPECT, Dataset, Progress
from petseg.data.images import open_sample, outcomes

SKIPPED = {  # kind of file that is no sample, as a source names it -> what happens to it; every other kind is skipped
    "second image of one name": "left out",
    "second trimap of one name": "left out",
    "image without trimap": "left out",
    "trimap without image": "left out",
    "listed, but no image": "left out",
    "pair in no list": "in protocol seed only; species and breed from its name",
}

HANDLED = {SUSPECT: "kept: it counts as all background and border, as in everybody's figures"}  # other notes: kept


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    found: str
    count: int
    action: str
    names: tuple[str, ...]  # files or sample ids, sorted; empty for the row of sound pairs
    left_out: bool


def check_samples(dataset: Dataset, *, on_progress: Progress | None = None) -> list[Finding]:
    """Returns a row for the sound pairs, then one for each kind of unusual file, after opening every pair."""
    noted: dict[str, list[str]] = defaultdict(list)
    broken: dict[str, list[str]] = defaultdict(list)
    sound = 0
    for sample, notes in outcomes(lambda sample: open_sample(dataset, sample).notes, dataset.samples, on_progress):
        if isinstance(notes, str):
            # what does not differ from sample to sample: no brackets, what stands after ';'
            kind = re.sub(r"\(.*\)", "", notes.removeprefix(f"{sample.id}: ")).strip().rpartition("; ")[2]
            broken[kind].append(sample.id)
        else:
            sound += not notes
            for note in notes:
                noted[note].append(sample.id)
    rows = [
        *((kind, HANDLED.get(kind, "kept"), names) for kind, names in sorted(noted.items())),
        *((kind, "left out", names) for kind, names in sorted(broken.items())),
        *((kind, SKIPPED.get(kind, "skipped"), names) for kind, names in dataset.skipped.items()),
    ]
    found = [Finding(kind, len(names), action, tuple(names), action == "left out") for kind, action, names in rows]
    return [Finding("sound pair", sound, "used", (), False), *found]
