"""Publishing a study: a small folder from which the page comes out byte for byte."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from petseg.errors import PetsegError
from petseg.experiments.study.findings import find, write_findings
from petseg.experiments.study.results import (
    Results,
    add_pictures,
    read_counts,
    read_edges,
    read_pictures,
    write_counts,
    write_edges,
    write_pictures,
)
from petseg.report import write_study_report
from petseg.storage import read_json
from tests.made_studies import make_study
from tests.test_layers import ROOT


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("studies") / "whole", val=6, test=8)


@pytest.fixture(scope="module")
def published(whole: Path, publish: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("publish.OFFICIAL", {"train": 3312, "val": 6, "test": 8})
        return publish(whole, "study", tmp_path_factory.mktemp("results"))


def test_the_page_comes_out_of_the_published_study_byte_for_byte(whole: Path, published: Path, tmp_path: Path) -> None:
    write_findings(whole)
    assert (published / "findings.json").read_bytes() == (whole / "findings.json").read_bytes()
    pages = [
        write_study_report(folder / "findings.json", tmp_path / "page.html").read_bytes()
        for folder in (whole, published)
    ]
    assert pages[0] == pages[1]
    assert find(published) == read_json(published / "findings.json")


def test_it_holds_json_and_counts_alone(whole: Path, published: Path) -> None:
    kinds = {path.name if path.name.endswith(".gz") else path.suffix for path in published.rglob("*.*")}
    assert kinds == {"pictures.gz", "counts.gz", "edges.gz", ".json", ".jsonl"}
    assert not list(published.rglob("*.images.json"))
    run = read_json(whole / "study.json")["runs"][20]["name"]
    assert sorted(path.name for path in (published / "runs" / run).rglob("*.*")) == [
        *("config.json", "counts.gz", "edges.gz", "environment.json", "metrics.jsonl"),
        *("robustness.json", "test.json", "val.json"),
    ]


def test_counts_are_readable_text(published: Path, whole: Path) -> None:
    run = read_json(whole / "study.json")["runs"][20]["name"]
    rows = gzip.decompress((published / "runs" / run / "counts.gz").read_bytes()).decode().splitlines()
    pictures = gzip.decompress((published / "pictures.gz").read_bytes()).decode().splitlines()
    start, first = rows.index("# test"), pictures.index("# test")
    name, pet, *_ = pictures[first + 1].split()
    stored = read_json(whole / "runs" / run / "evaluations" / "test.images.json")["images"][0]
    assert stored[0] == name
    assert stored[1][1:3] == [int(count) for count in rows[start + 1].split()[:2]]
    assert sum(stored[1][:3]) == int(pet)


def test_counts_come_back_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 10**6, (5, 4))
    runs = {}
    for name in ("a", "b"):
        counts = rng.multinomial(1000, np.full(16, 1 / 16), 5).reshape(5, 4, 4).astype(np.int64)
        counts[:, range(4), range(4)] = 0
        counts[:, range(4), range(4)] = true - counts.sum(axis=2)
        runs[name] = {"val": (tuple("pqrst"), counts), "test": (tuple("uvwxy"), counts[::-1])}
        write_counts(tmp_path / name, runs[name])
    write_pictures(tmp_path / "pictures", runs["a"])
    pictures = read_pictures(tmp_path / "pictures")
    for name, wanted in runs.items():
        found = read_counts(pictures, tmp_path / name)
        for section in wanted:
            assert found[section][0] == wanted[section][0]
            assert (found[section][1] == wanted[section][1]).all()
    again = (tmp_path / "a").read_bytes()
    write_counts(tmp_path / "a", runs["a"])
    assert (tmp_path / "a").read_bytes() == again


def test_boundary_scores_come_back_with_four_decimals(tmp_path: Path) -> None:
    scores = np.array([[0.12344, 1.0, 0.0], [np.nan, 0.5, 0.25]])
    write_edges(tmp_path / "edges.gz", {"test": scores})
    assert gzip.decompress((tmp_path / "edges.gz").read_bytes()) == b"# test\n1234 10000 0\n-1 5000 2500\n"
    assert np.allclose(read_edges(tmp_path / "edges.gz")["test"], scores.round(4), equal_nan=True)


def test_boundary_scores_of_other_pictures_are_one_line(published: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(published, tmp_path / "copy")
    run = next(run for run in Results.read(folder).all_runs() if "test" in run.splits)
    write_edges(run.folder / "edges.gz", {"test": np.zeros((3, 3))})
    with pytest.raises(PetsegError, match=r"edges\.gz: not the scores of the test pictures; restore the file"):
        find(folder)


def test_a_whole_study_stays_small(publish: Callable[..., Path], tmp_path: Path) -> None:
    """Runs of the real size, of those that are scored on worse pictures too; the others take a twentieth."""
    folder = make_study(tmp_path / "big", val=368, test=3669, leave_out=lambda run: run.rows[0].arm != "unet/width")
    results = Results.read(folder)
    made = [run for run in results.all_runs() if run.state == "finished"]
    for run in made:
        sys.modules["publish"]._publish_run(results, run, tmp_path / "small", {})
    sizes = [sum(path.stat().st_size for path in run.rglob("*.*")) for run in (tmp_path / "small" / "runs").iterdir()]
    assert len(sizes) == len(made) == 5
    assert max(sizes) < 300_000


def test_made_pets_are_not_published(whole: Path, publish: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(PetsegError, match=r"a study of .*'test': 8.*; only results on the whole real data set, "):
        publish(whole, "study", tmp_path)
    assert list(tmp_path.iterdir()) == []
    script = [sys.executable, str(ROOT / "scripts" / "publish.py"), str(whole), "study"]
    result = subprocess.run(script, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


def test_runs_of_other_pictures_are_refused(
    publish: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_study(tmp_path / "mixed", val=6, test=8)
    run = read_json(folder / "study.json")["runs"][3]["name"]
    file = folder / "runs" / run / "evaluations" / "val.images.json"
    file.write_text(file.read_text().replace("beagle", "boxer"))
    monkeypatch.setattr("publish.OFFICIAL", {"train": 3312, "val": 6, "test": 8})
    before = tmp_path / "results" / "study" / "before.json"
    before.parent.mkdir(parents=True)
    before.write_text("{}")
    with pytest.raises(PetsegError, match=r"its val pictures are not those of the other runs; score it again"):
        publish(folder, "study", tmp_path / "results")
    assert list((tmp_path / "results").rglob("*.*")) == [before], "what was published stays until the new is whole"


def test_a_part_of_a_study_is_not_published(
    publish: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_study(tmp_path / "part", val=6, test=8, leave_out=lambda run: run.rows[0].arm == "unet/deeper")
    monkeypatch.setattr("publish.OFFICIAL", {"train": 3312, "val": 6, "test": 8})
    with pytest.raises(PetsegError, match=r"lacks 3 runs, the first unet-64px-.*; a study is published whole"):
        publish(folder, "study", tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_published_runs_of_other_pictures_are_not_collected(tmp_path: Path) -> None:
    counts = np.ones((1, 2, 2), np.int64)
    write_pictures(tmp_path / "ours.gz", {"val": (("beagle_1",), counts)})
    before = (tmp_path / "ours.gz").read_bytes()
    write_pictures(tmp_path / "theirs.gz", {"test": (("pug_1",), counts), "val": (("boxer_1",), counts)})
    with pytest.raises(PetsegError, match=r"theirs\.gz: its val pictures are not those of .*ours\.gz; collect runs of"):
        add_pictures(tmp_path / "ours.gz", tmp_path / "theirs.gz")
    assert (tmp_path / "ours.gz").read_bytes() == before


def test_damaged_counts_are_one_line(published: Path, tmp_path: Path) -> None:
    pictures = read_pictures(published / "pictures.gz")
    run = next((published / "runs").iterdir())
    whole = gzip.decompress((run / "counts.gz").read_bytes())
    for content, told in (
        (b"not gzip", r"cannot be read \("),
        (
            gzip.compress(b"\n".join(whole.splitlines()[:-2])),
            r"holds \d pictures of 6 counts, pictures\.gz \d of 3 classes; restore both",
        ),
        (gzip.compress(whole.replace(b"1", b"x")), r"a row is not all numbers"),
    ):
        (tmp_path / "counts.gz").write_bytes(content)
        with pytest.raises(PetsegError, match=told):
            read_counts(pictures, tmp_path / "counts.gz")
    manifest = json.loads((published / "study.json").read_text())
    assert Results.read(published).manifest == manifest
