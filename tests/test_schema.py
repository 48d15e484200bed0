"""Records: what is written comes back; what is wrong with a file is one line that names the file and the field."""

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from petseg.schema import ComparisonResult, DataInfo, Estimate, Findings, read_record, write_record
from tests.conftest import refused

RESULTS = Path(__file__).parents[1] / "results"
PUBLISHED = RESULTS / "official" / "comparison.json"
MISSING = object()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("official/comparison.json", ComparisonResult),
        ("seed/comparison.json", ComparisonResult),
        ("official/data.json", DataInfo),
        ("study/findings.json", Findings),
    ],
)
def test_published_records_come_back_as_they_were_written(name, kind, tmp_path):
    record = read_record(RESULTS / name, kind)
    write_record(tmp_path / "again.json", record)
    assert read_record(tmp_path / "again.json", kind) == record


def changed(name, value):
    """Returns the published comparison with one field, such as "models.0.cost.macs", set or, for MISSING, taken out."""
    content = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    *parents, last = (int(part) if part.isdigit() else part for part in name.split("."))
    place = content
    for parent in parents:
        place = place[parent]
    if value is MISSING:
        del place[last]
    else:
        place[last] = value
    return content


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kind", "findings", "kind is 'findings'; wanted 'comparison': name a file that this version of petseg wrote"),
        ("kind", MISSING, "kind is None; wanted 'comparison'"),
        ("version", 1, "version is 1; wanted 2: name a file that this version of petseg wrote"),
        ("version", "2", "version is '2'; wanted 2"),
        ("split", MISSING, "split: field required; restore the file or make it again"),
        ("models.1.cost.macs", MISSING, "models.1.cost.macs: field required"),
        ("crossing", 1, "crossing: extra inputs are not permitted"),
        ("models.0.evaluations.test.taste", 1, "models.0.evaluations.test.taste: extra inputs are not permitted"),
        ("models", [], "models: tuple should have at least 1 item"),
        ("size", "128", "size: input should be a valid integer"),
        ("quick", 0, "quick: input should be a valid boolean"),
        ("differences.0.low", True, "differences.0.low: input should be a valid number"),
        ("differences.0.low", float("nan"), "differences.0.low: input should be a finite number"),
        ("data.classes.0.role", "pet", "data.classes.0.role: input should be 'foreground', 'background' or 'boundary'"),
        ("reference", "nobody", "content: 'nobody' is compared, and no model has that name"),
        ("differences.0.model", "nobody", "content: 'nobody' is compared, and no model has that name"),
        ("split", "train", "content: 'unet' has no scores on the train split"),
        (
            "models.0.evaluations.test.confusion",
            [[1, 2], [3, 4]],
            "content: 'unet' has a confusion matrix of other classes than the 3 scored",
        ),
        ("config.train.epochs", 0, "config.train.epochs: input should be greater than or equal to 1"),
    ],
)
def test_a_wrong_field_is_one_line(field, value, message, tmp_path):
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(changed(field, value)), encoding="utf-8")
    refused(f"^{re.escape(f'{path}: {message}')}", read_record, path, ComparisonResult)
    refused(r"nowhere\.json: no such file", read_record, tmp_path / "nowhere.json", ComparisonResult)


def test_a_record_never_changes_and_says_what_it_shows():
    with pytest.raises(ValidationError, match="frozen"):
        Estimate(points=0.5, low=0.5, high=0.5).low = 0.6
    with pytest.raises(ValidationError, match="finite number"):
        Estimate(points=0.5, low=float("nan"), high=0.5)
    # the caption names what the images are
    data = read_record(RESULTS / "official" / "data.json", DataInfo)
    assert data.model_copy(update={"official": True}).images == "Oxford-IIIT Pet, official archives"
    reduced = data.model_copy(update={"official": False, "largest_side": 288, "provenance": "a mirror"})
    assert reduced.images == "Oxford-IIIT Pet, images of at most 288 px: a mirror"
    # a difference is shown where its interval leaves zero out
    (difference,) = read_record(PUBLISHED, ComparisonResult).differences
    for low, high, shown in ((0.1, 2.0, True), (-2.0, -0.1, True), (-0.1, 2.0, False), (0.0, 2.0, False)):
        assert difference.model_copy(update={"low": low, "high": high}).shown is shown
