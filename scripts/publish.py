"""Copies what a finished comparison or a study may publish into results/: every JSON, no image, no weights.

python scripts/publish.py runs/compare-default official
python scripts/publish.py runs/study study
python scripts/publish.py runs/study_isbi study_isbi
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from petseg.data.oxford_pets import NAME, OFFICIAL_IMAGES
from petseg.errors import PetsegError
from petseg.experiments.study.findings import write_findings
from petseg.experiments.study.results import MANIFEST, read_manifest
from petseg.experiments.study.results import publish as publish_study
from petseg.schema import ComparisonResult, read_record
from petseg.training.runs import NETWORK, PLACE

RESULTS = Path(__file__).parent.parent / "results"


def publish(source: Path, name: str, results: Path = RESULTS) -> Path:
    """Returns results/NAME, now with what the comparison or study in the folder `source` publishes, and nothing else.

    Raises:
        PetsegError: neither is there, it is of other images than the real dataset's, or a study lacks runs.
    """
    if (source / MANIFEST).is_file():
        return _publish_study(source, results / name)
    return _publish_comparison(source, results / name)


def _publish_comparison(comparison: Path, target: Path) -> Path:
    found = read_record(comparison / "comparison.json", ComparisonResult)
    if found.synthetic:
        raise PetsegError(f"{comparison} was trained on synthetic images; only results on real ones are published")
    return copy_records(comparison, target)


def _publish_study(source: Path, target: Path) -> Path:
    """Writes the study in its published form, and the findings from that."""
    data = read_manifest(source).data
    if data is None or (data.name == NAME and data.splits != OFFICIAL_IMAGES):
        raise PetsegError(
            f"{source} is a study of {data and data.splits}; of the pets only results on the whole dataset, "
            f"{OFFICIAL_IMAGES}, are published"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unfinished = Path(folder) / target.name
        publish_study(source, unfinished)
        write_findings(unfinished)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    return target


def copy_records(source: Path, target: Path) -> Path:
    """Returns the target, now with every JSON of the source alone, but for lists of names."""
    shutil.rmtree(target, ignore_errors=True)
    for path in (*source.rglob("*.json"), *source.rglob("*.jsonl")):
        # thousands of names, which the dataset's own lists and the scores hold too; and places on one machine
        if path.name in ("splits.json", PLACE, NETWORK):
            continue
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return target


def main(arguments: Sequence[str] | None = None) -> None:
    """Publishes what the command line names, and prints where."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="the folder of a finished comparison or a study")
    parser.add_argument("name", help="of the folder in results/")
    options = parser.parse_args(arguments)
    try:
        print(publish(options.source, options.name))
    except PetsegError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
