"""Publishing a study: four files from which the same arrays, findings and page come out."""

import gzip
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from petseg.experiments.study.findings import difference, measure, write_findings
from petseg.experiments.study.plan import plan
from petseg.experiments.study.results import Results, read_manifest, sections, take_over
from petseg.report import write_study_report
from petseg.schema import Findings, read_record, write_record
from petseg.training.runs import read_metrics
from tests.conftest import refused
from tests.made_studies import diverge, make_study
from tests.test_layers import ROOT

OFFICIAL = {"train": 3312, "val": 6, "test": 8}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = make_study(tmp_path_factory.mktemp("studies") / "whole", val=6, test=8)
    return diverge(folder, ("batch_norm", "unet/off", 1))


@pytest.fixture(scope="module")
def published(whole, publish, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("publish.OFFICIAL_IMAGES", OFFICIAL)
        return publish(whole, "study", tmp_path_factory.mktemp("results"))


def test_findings_and_page_come_out_of_the_published_study_byte_for_byte(whole, published, tmp_path):
    write_findings(whole)
    before = (published / "findings.json").read_bytes()
    assert before == (whole / "findings.json").read_bytes()
    assert write_findings(published).read_bytes() == before
    pages = [write_study_report(at / "findings.json", tmp_path / "x.html").read_bytes() for at in (whole, published)]
    assert pages[0] == pages[1]
    four = {"findings.json", "images.jsonl.gz", "runs.jsonl.gz", "study.json"}
    assert {path.name for path in published.rglob("*")} == four


def test_runs_and_counts_come_back_as_they_were(whole, published):
    ours, theirs = Results(whole), Results(published)
    assert ours.manifest == theirs.manifest
    for entry in ours.manifest.runs:
        assert theirs.result(entry) == ours.result(entry)
        for section in sections(entry):
            found, wanted = theirs.images((entry,), section), ours.images((entry,), section)
            assert found.ids == wanted.ids
            assert (found.confusions == wanted.confusions).all()
            assert np.array_equal(found.boundaries, wanted.boundaries.round(4), equal_nan=True)
    diverged = [r.diverged for e in ours.manifest.runs if (r := theirs.result(e)).diverged]
    assert diverged == ["The loss became NaN or infinite."]
    # readable without petseg
    text = gzip.decompress((published / "images.jsonl.gz").read_bytes()).decode()
    lines = [json.loads(line) for line in text.splitlines()]
    shared = {line["section"]: line for line in lines if "ids" in line}
    line = next(line for line in lines if line["section"] == "test" and "run" in line)
    stored = json.loads((whole / "runs" / line["run"] / "evaluations" / "test.images.json").read_text())["images"]
    name, counts, boundary = stored[0]
    assert shared["test"]["ids"][0] == name
    assert [wrong[0] for wrong in line["wrong"]] == [counts[at] for at in (1, 2, 3, 5, 6, 7)]
    assert [true[0] for true in shared["test"]["true"]] == [sum(counts[at : at + 3]) for at in (0, 3, 6)]
    assert [parts[0] for parts in line["boundary"]] == [round(10_000 * score) for score in boundary]


def test_a_study_goes_on_from_what_was_published_elsewhere(whole, published, publish, tmp_path, monkeypatch):
    monkeypatch.setattr("publish.OFFICIAL_IMAGES", OFFICIAL)
    folder = tmp_path / "here"
    take_over(published, folder)
    manifest = read_manifest(folder)
    assert [run.entry(folder) for run in plan(manifest)] == list(manifest.runs) == list(read_manifest(whole).runs)
    again = publish(folder, "study", tmp_path / "results")
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in published.iterdir()
    }
    # what the folder holds already is its own; what a killed take-over lacks is added
    mine, lost = (folder / "runs" / manifest.runs[at].name for at in (0, 1))
    (mine / "evaluations" / "val.json").write_text("{}")
    shutil.rmtree(lost)
    take_over(published, folder)
    assert (mine / "evaluations" / "val.json").read_text() == "{}"
    assert read_metrics(lost) == list(Results(published).result(manifest.runs[1]).history)


def test_the_published_study_is_whole_and_small():
    folder = ROOT / "results" / "study"
    results = Results(folder)
    assert {entry.state for entry in results.manifest.runs} == {"finished"}
    assert results.manifest.data.splits == {"train": 3312, "val": 368, "test": 3669}
    entry = results.manifest.runs[-1]
    scores = results.result(entry).evaluations["test"]
    total = results.images((entry,), "test").confusions.sum(axis=0)
    assert total.trace() / total.sum() == pytest.approx(scores.pixel_accuracy)
    main = results.study.experiments[0]
    published = read_record(folder / "findings.json", Findings).experiment("main").differences
    for found in published[:2]:  # mIoU and boundary F
        again = difference(results, main, (found.left, found.right), found.metric, measure(results, main, found.metric))
        assert found == again.model_copy(update={"expected": found.expected}), "every interval can be computed again"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 15_000_000


def test_synthetic_images_are_not_published(whole, publish, tmp_path):
    refused(
        r"a study of .*'test': 8.*; of the pets only results on the whole dataset, ", publish, whole, "study", tmp_path
    )
    assert list(tmp_path.iterdir()) == []
    script = [sys.executable, str(ROOT / "scripts" / "publish.py"), str(whole), "study"]
    result = subprocess.run(script, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


def test_runs_of_other_images_are_refused_and_a_part_of_a_study_says_so(publish, tmp_path, monkeypatch):
    monkeypatch.setattr("publish.OFFICIAL_IMAGES", OFFICIAL)
    folder = make_study(tmp_path / "mixed", val=6, test=8)
    file = folder / "runs" / read_manifest(folder).runs[3].name / "evaluations" / "val.images.json"
    file.write_text(file.read_text().replace("beagle", "boxer"))
    before = tmp_path / "results" / "study" / "before.json"
    before.parent.mkdir(parents=True)
    before.write_text("{}")
    refused(r"was scored on other val images; score it again", publish, folder, "study", tmp_path / "results")
    assert list((tmp_path / "results").rglob("*.*")) == [before], "what was published stays until the new is whole"
    other = make_study(tmp_path / "other", val=6, test=8)  # a dataset of one's own is whole as it is
    manifest = read_manifest(other)
    cells = manifest.data.model_copy(update={"name": "cells", "splits": {"train": 20, "val": 6, "test": 8}})
    write_record(other / "study.json", manifest.model_copy(update={"data": cells}))
    assert (publish(other, "study_cells", tmp_path / "results") / "findings.json").is_file()
    part = make_study(tmp_path / "part", val=6, test=8, leave_out=lambda run: run.rows[0].arm == "unet/deeper")
    found = read_record(publish(part, "study", tmp_path / "results") / "findings.json", Findings)
    assert found.runs["missing"] == 3


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("images.jsonl.gz", lambda text: re.sub(r'"wrong":\[\[\d+,', '"wrong":[[', text, count=1)),
        ("images.jsonl.gz", lambda text: re.sub(r'"boundary":\[\[\d+,', '"boundary":[[', text, count=1)),
        ("images.jsonl.gz", lambda text: text.split("\n", 1)[1]),
        ("images.jsonl.gz", lambda text: text[:-9]),
        ("runs.jsonl.gz", lambda text: text.replace('"epoch":1,', "", 1)),
        ("runs.jsonl.gz", lambda text: text.replace("{", "[", 1)),
        ("runs.jsonl.gz", None),
    ],
)
def test_damaged_files_are_one_line(published, tmp_path, name, change):
    folder = shutil.copytree(published, tmp_path / "copy")
    text = gzip.decompress((folder / name).read_bytes()).decode()
    (folder / name).write_bytes(gzip.compress(change(text).encode(), 1) if change else b"not gzip")
    refused(rf"^.*{re.escape(name)}: cannot be read \(.*\); restore the file$", Results, folder)
