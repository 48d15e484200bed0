"""docs/unet-or-segnet.md: every number in it stands in results/study/, and without a study there is none."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from petseg.runs import read_json, write_json
from petseg.study.findings import find
from tests.made_studies import make_study
from tests.test_layers import ROOT

PUBLISHED = ROOT / "results" / "study" / "findings.json"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    sys.path.insert(0, str(ROOT / "scripts"))
    module = importlib.import_module("study_tables")
    sys.path.pop(0)
    return module


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return find(make_study(tmp_path_factory.mktemp("studies") / "whole"))


def values(tree: object) -> list[float]:
    """Every number in JSON, those in texts too: titles and claims hold some."""
    if isinstance(tree, dict):
        return [found for key, value in tree.items() for found in [*values(key), *values(value)]]
    if isinstance(tree, list):
        return [found for value in tree for found in values(value)]
    if isinstance(tree, str):
        return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", tree)]
    return [float(tree)] if isinstance(tree, int | float) else []


UNITS = (1, 100, 1e-3, 1e-6, 1e-9, 1 / 60, 1 / 3600)
"""A stored number may be told in percent, k, M, G, minutes or hours."""


def untraced(text: str, findings: dict[str, Any]) -> list[str]:
    """Returns the numbers of a text that no stored number rounds to."""
    stored = values(findings)
    contrasts = [contrast for experiment in findings["experiments"] for contrast in experiment["contrasts"]]
    stored += [
        1 / ratio for contrast in contrasts for ratio in contrast.get("costs", {}).values()
    ]  # the other way round
    lost = []
    visible = re.sub(r'<a id="[^"]*"></a>|\(#[^)]*\)|commit `\w+`', "", text)
    for number in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?", visible):
        plain = number.replace(",", "").rstrip(",")
        near = 0.5 * 10 ** -len(plain.partition(".")[2]) * (1 + 1e-6)
        if not any(abs(abs(value) * unit - float(plain)) <= near for value in stored for unit in UNITS):
            lost.append(number)
    return lost


@pytest.mark.parametrize(
    ("document", "markers"),
    [("README.md", ["study"]), ("docs/unet-or-segnet.md", ["study-answers", "study-rows"])],
)
def test_every_number_of_a_page_stands_in_the_published_study(
    document: str, markers: list[str], tables: ModuleType
) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    parts = re.findall(r"<!-- (study(?:-\w+)?):begin -->\n(.*?)\n<!-- \1:end -->", text, re.DOTALL)
    assert [name for name, _ in parts] == markers
    for _, part in parts:
        if PUBLISHED.is_file():
            assert untraced(part, read_json(PUBLISHED)) == []
        else:
            assert part.strip() == tables.NOT_RUN
            assert not re.search(r"\d", part)


def test_three_readers_get_answers_with_rows(tables: ModuleType, findings: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "study" / "findings.json", findings)
    texts = tables.study_texts(tmp_path)
    told = tables.study_headline(tmp_path)
    assert "- Same base width: U-Net leads SegNet by" in told
    assert "- In one network: “concatenated skips” leads “no skips, pooling indices” by" in told
    for reader in ("Best masks", "Smallest device", "Least memory"):
        assert f"**{reader}.** " in texts["study-answers"]
    assert "U-Net leads SegNet by" in texts["study-answers"]
    assert "“concatenated skips” leads “no skips, pooling indices” by" in texts["study-answers"]
    linked = re.findall(r"\(\[row\]\(#([^)]+)\)\)", texts["study-answers"])
    rows = re.findall(r'<a id="([^"]+)">', texts["study-rows"])
    assert len(linked) >= 8
    assert set(linked) <= set(rows)
    assert len(rows) == len(set(rows))
    claims = re.sub(r"\*\*.*?\*\* ", "", texts["study-answers"])
    assert all("(#" in claim for claim in re.split(r"(?<=\)\))\. ?", claims) if claim.strip()), "each claim is linked"


def test_every_number_traces_and_a_changed_one_does_not(tables: ModuleType, findings: dict[str, Any]) -> None:
    for text in (tables.answers(findings), tables.rows(findings), tables.headline(findings)):
        assert untraced(text, findings) == []
    told = tables.answers(findings)
    lead = re.search(r"leads SegNet by (\d+\.\d)", told)
    assert lead is not None
    assert untraced(told.replace(lead[1], "77.77"), findings) == ["77.77"]


def test_a_part_of_a_study_answers_in_part(tables: ModuleType, tmp_path: Path) -> None:
    found = find(make_study(tmp_path / "none", leave_out=lambda run: True))
    assert tables.answers(found).count("Not run yet.") == 3
    assert untraced(tables.rows(found), found) == []
