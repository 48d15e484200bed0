"""Copies what a finished comparison or a study may publish into results/: every JSON, no picture, no weights.

python scripts/publish.py runs/compare-default official
python scripts/publish.py runs/study study
python scripts/publish.py runs/study study --so-far  # the finished runs, so that another machine can go on with them
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from petseg.errors import PetsegError
from petseg.experiments.study.findings import OFFICIAL, write_findings
from petseg.experiments.study.results import (
    COUNTS,
    DIVERGED,
    EDGES,
    MANIFEST,
    PICTURES,
    Counts,
    Result,
    Results,
    write_counts,
    write_edges,
    write_pictures,
)
from petseg.schema import ComparisonResult, read_record
from petseg.units import plural

RESULTS = Path(__file__).parent.parent / "results"


def publish(source: Path, name: str, results: Path = RESULTS, *, so_far: bool = False) -> Path:
    """Returns results/NAME, now with what a comparison or a study publishes; what stood there before is gone.

    Args:
        source: the folder of a comparison or a study.
        name: of the folder in `results`.
        results: where what is published lies.
        so_far: whether a study that lacks runs is taken too.

    Raises:
        PetsegError: neither is there, it is of other pictures than the real data set's, or a study lacks runs.
    """
    if (source / MANIFEST).is_file():
        return _publish_study(source, results / name, so_far=so_far)
    return _publish_comparison(source, results / name)


def _publish_comparison(comparison: Path, target: Path) -> Path:
    found = read_record(comparison / "comparison.json", ComparisonResult)
    if found.synthetic:
        raise PetsegError(f"{comparison} was trained on synthetic images; only results on real ones are published")
    if target.exists():
        shutil.rmtree(target)
    for path in sorted([*comparison.rglob("*.json"), *comparison.rglob("*.jsonl")]):
        _copy(path, target / path.relative_to(comparison))
    return target


def _publish_study(source: Path, target: Path, *, so_far: bool) -> Path:
    """Writes the manifest, each run's JSON and its counts in the compact form, and the findings from these."""
    results = Results.read(source)
    pictures = (results.manifest["data"] or {}).get("pictures")
    if pictures != OFFICIAL:
        raise PetsegError(
            f"{source} is a study of {pictures}; only results on the whole real data set, {OFFICIAL}, are published"
        )
    made = [run for run in results.all_runs() if run.state in ("finished", "diverged")]
    missing = [run.name for run in results.all_runs() if run not in made]
    if missing and not so_far:
        raise PetsegError(
            f"{source} lacks {plural(len(missing), 'run')}, the first {missing[0]}; a study is published whole: go on "
            "with `petseg study`, or hand on what is there with --so-far"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unfinished = Path(folder) / target.name
        _copy(source / MANIFEST, unfinished / MANIFEST)
        sections: dict[str, Counts] = {}
        for run in made:
            _publish_run(results, run, unfinished, sections)
        write_pictures(unfinished / PICTURES, sections)
        write_findings(unfinished)
        if target.exists():
            shutil.rmtree(target)
        unfinished.rename(target)
    return target


def _publish_run(results: Results, run: Result, target: Path, sections: dict[str, Counts]) -> None:
    place = target / "runs" / run.name
    for name in ("config.json", "environment.json", "metrics.jsonl", DIVERGED):
        if (run.folder / name).is_file():
            _copy(run.folder / name, place / name)
    if run.state == "diverged":
        return
    for split in run.splits:
        _copy(run.folder / "evaluations" / f"{split}.json", place / "evaluations" / f"{split}.json")
    counts = results.sections(run)
    for section, (names, confusions) in counts.items():
        known, true = sections.setdefault(section, (names, confusions))
        if known != names or (true.sum(axis=2) != confusions.sum(axis=2)).any():
            raise PetsegError(f"{run.folder}: its {section} pictures are not those of the other runs; score it again")
    write_counts(place / COUNTS, counts)
    write_edges(place / EDGES, {split: results.edges(run, split) for split in results.splits(run)})


def _copy(path: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, copy)


def main(arguments: Sequence[str] | None = None) -> None:
    """Publishes what the command line names, and prints where."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="the folder of a finished comparison or a study")
    parser.add_argument("name", help="of the folder in results/")
    parser.add_argument("--so-far", action="store_true", help="take a study that lacks runs too")
    options = parser.parse_args(arguments)
    try:
        print(publish(options.source, options.name, so_far=options.so_far))
    except PetsegError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
