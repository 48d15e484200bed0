"""docs/unet-or-segnet.md: every number in it stands in results/study/, and without a study there is none."""

from __future__ import annotations

import copy
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from petseg.experiments.study.findings import find, write_findings
from petseg.storage import write_json
from tests.made_studies import make_study
from tests.test_layers import ROOT


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


UNITS = {"k": 1e-3, "kB": 1e-3, "M": 1e-6, "MB": 1e-6, "G": 1e-9, "GB": 1e-9, "min": 1 / 60, "h": 1 / 3600}
"""What a stored number is multiplied by to be told in a unit."""

LINK = re.compile(r"\(\[row\]\(#([^)]+)\)\)")
ANCHOR = re.compile(r'<a id="([^"]*)"></a>')


def untraced(text: str, stored: list[float]) -> list[str]:
    """Returns the numbers of a text that no stored number rounds to."""
    lost = []
    for number, unit in re.findall(r"(?<![\w.])(\d[\d,]*(?:\.\d+)?)(?: ([kMG]B?|min|h)\b)?", text):
        plain = number.replace(",", "")
        near = 0.5 * 10 ** -len(plain.partition(".")[2]) * (1 + 1e-6)
        if not any(abs(abs(value) * UNITS.get(unit, 1) - float(plain)) <= near for value in stored):
            lost.append(number)
    return lost


def behind(tables: ModuleType, findings: dict[str, Any]) -> dict[str, list[float]]:
    """Returns, for each row's anchor, the numbers of that arm or difference and no other's."""
    found = {}
    for experiment in findings["experiments"]:
        arms = {arm["arm"]: arm for arm in experiment["arms"]}
        shared = [experiment["size"], len(experiment["seeds"])]
        for name, arm in arms.items():
            kept = {
                key: value for key, value in arm.items() if key not in ("runs", "history", "by_seed", "arm", "variant")
            }
            found[tables.anchor(experiment, name)] = [*values(kept), *shared, len(arm["seeds"])]
        for contrast in experiment["contrasts"]:
            sides = [arms[contrast[side]] for side in ("left", "right")]
            own = {
                key: contrast.get(key) for key in ("points", "low", "high", "p_value", "costs", "expected", "diverged")
            }
            other_way = [1 / ratio for ratio in contrast.get("costs", {}).values()]
            titles = [[arm["title"], arm["cost"].get("crossing_bytes")] for arm in sides]
            confidence = 100 * contrast.get("confidence", 0.95)
            more = [
                found
                for found in experiment.get("another_thousand", {}).values()
                if found["measured"]["points"] == contrast.get("points")
            ]
            found[tables.anchor(experiment, contrast)] = [
                *values([own, titles, more]), *other_way, *shared, len(contrast["seeds"]), confidence,
            ]  # fmt: skip
    main, robustness, honesty = findings["experiments"][0], findings["robustness"], findings["honesty"]
    again = [
        (f"with {robustness['titles'][found['kind']]}", found)
        for found in (robustness or {"contrasts": []})["contrasts"]
    ]
    again += [(view["title"], found) for view in (honesty or {"views": []})["views"] for found in view["contrasts"]]
    for name, contrast in again:
        own = {key: contrast.get(key) for key in ("points", "low", "high", "p_value", "expected")}
        found[tables.anchor(tables.renamed(main, name), contrast)] = [
            *values(own), len(contrast["seeds"]), 100 * contrast.get("confidence", 0.95),
        ]  # fmt: skip
    return found


def of_the_study(findings: dict[str, Any]) -> list[float]:
    """Numbers of what the whole study took, of how many expectations held, and of how many views show who leads."""
    again = [findings["robustness"] or {}, *(findings["honesty"] or {}).get("views", [])]
    claims = [
        claim["verdict"]
        for part in [*findings["experiments"], *again]
        for contrast in part.get("contrasts", [])
        if "points" in contrast or contrast.get("diverged")
        for claim in contrast["expected"]
    ]
    return [
        *values([findings["runs"], findings["training"]]),
        len(claims),
        *(claims.count(verdict) for verdict in ("held", "did not hold", "open")),
    ]


def of_the_views(findings: dict[str, Any]) -> list[float]:
    """How many views there are of the first variant, and in how many each model is shown to lead."""
    first = [view["contrasts"][0] for view in (findings["honesty"] or {"views": []})["views"]]
    return [len(first), sum(found["low"] > 0 for found in first), sum(found["high"] < 0 for found in first)]


def wrong(tables: ModuleType, findings: dict[str, Any], text: str) -> list[str]:
    """Returns the numbers that are not those of what the text says they are of.

    That is the row that a claim links to, the arm or difference of a table's row, one difference for a bullet, and
    the runs for the last line.
    """
    rows, lost = behind(tables, findings), []
    for line in re.sub(r"commit `\w+`", "", text).splitlines():
        if LINK.search(line):
            *told, rest = LINK.split(line)
            assert not re.search(r"\d", rest), "a claim without a link"
            for claim, row in zip(told[::2], told[1::2], strict=True):
                lost += untraced(claim, rows[row])
        elif anchor := ANCHOR.search(line):
            lost += untraced(ANCHOR.sub("", line), rows[anchor[1]])
        elif line.startswith("- "):
            lost += min((untraced(line, stored) for stored in [*rows.values(), of_the_views(findings)]), key=len)
        elif not line.startswith("|"):
            lost += untraced(line, of_the_study(findings))
    return lost


@pytest.mark.parametrize(
    ("document", "markers"),
    [
        ("README.md", ["study"]),
        ("docs/unet-or-segnet.md", ["study-answers", "study-ideas", "study-verdicts", "study-rows"]),
    ],
)
def test_every_number_of_a_page_stands_in_the_published_study(
    document: str, markers: list[str], tables: ModuleType
) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    parts = re.findall(r"<!-- (study(?:-\w+)?):begin -->\n(.*?)\n<!-- \1:end -->", text, re.DOTALL)
    assert [name for name, _ in parts] == markers
    for _, part in parts:
        if (findings := tables.published(ROOT / "results")) is not None:
            assert wrong(tables, findings, part) == []
        else:
            assert part.strip() == tables.NOT_RUN
            assert not re.search(r"\d", part)


def test_three_readers_get_answers_with_rows(tables: ModuleType, findings: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "study" / "findings.json", findings)
    texts = tables.study_texts(tmp_path)
    told = tables.study_headline(tmp_path)
    assert "- Same base width: U-Net leads SegNet by" in told
    assert "- In one network: “concatenated skips” leads “no skips, pooling indices” by" in told
    for told in ("Best masks: U-Net", "Smallest device: U-Net", "Least memory: SegNet"):
        assert f"**{told}.** " in texts["study-answers"]
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
    for text in (*(tell(findings) for tell in tables.TELLERS.values()), tables.headline(findings)):
        assert wrong(tables, findings, text) == []
        numbers = set(re.findall(r"(?<![\w.#-])\d+\.\d(?!\d)(?! h)", text))
        caught = 0
        for number in numbers:
            changed = f"{float(number) + 0.1:.1f}"
            other = re.sub(rf"(?<![\w.#-]){re.escape(number)}(?!\d)", changed, text)
            caught += changed in wrong(tables, findings, other)
        assert caught > 0.9 * len(numbers) > 5, "some meet another number of the same row by chance"


def test_a_part_of_a_study_answers_in_part(tables: ModuleType, tmp_path: Path) -> None:
    found = find(make_study(tmp_path / "none", leave_out=lambda run: True))
    assert tables.answers(found).count("Not run yet.") == 3
    assert wrong(tables, found, tables.rows(found)) == []


def test_each_idea_is_told_with_its_worth_and_its_row(tables: ModuleType, findings: dict[str, Any]) -> None:
    told = tables.ideas(findings).splitlines()
    assert len(told) == len(findings["experiments"]) - 1
    assert all(line.startswith("- **") and LINK.search(line) for line in told)
    rows = set(ANCHOR.findall(tables.rows(findings)))
    assert {row for line in told for row in LINK.findall(line)} <= rows
    normalised = next(experiment for experiment in findings["experiments"] if experiment["name"] == "batch_norm")
    finding = next(found for found in normalised["contrasts"] if found["left"] == "segnet/on")
    assert tables.same_model(finding)

    def worth(**given: object) -> str:
        names = tables.Names(normalised, findings["models"])
        return str(tables.worth({**finding, "costs": {"latency": 1.25}, **given}, names))

    led = worth(points=3.0, low=1.0, high=5.0)
    assert led == "SegNet: “on” over “off” 3.0 points (1.0 to 5.0), at 1.2 times the latency"
    led = worth(points=-3.0, low=-5.0, high=-1.0)
    assert led == "SegNet: “off” over “on” 3.0 points (1.0 to 5.0), at 0.80 times the latency"
    level = worth(points=3.0, low=-1.0, high=7.0, costs={})
    assert level == "SegNet: “on” minus “off” 3.0 points (−1.0 to 7.0), no difference shown"
    without = {key: value for key, value in finding.items() if key != "points"}
    told = tables.worth(
        {**without, "seeds": [], "diverged": {"segnet/off": 3}}, tables.Names(normalised, findings["models"])
    )
    assert told == "SegNet: “on” against “off”: “off” diverged in every seed"
    assert "; another 1,000 pictures, extrapolated, gain SegNet " in tables.ideas(findings)


def test_what_did_not_hold_is_told_with_what_was_expected_and_why(tables: ModuleType, findings: dict[str, Any]) -> None:
    mechanism = next(experiment for experiment in findings["experiments"] if experiment["name"] == "mechanism")
    contrast = next(found for found in mechanism["contrasts"] if found["expected"])
    (claim, *_) = contrast["expected"]
    given = copy.deepcopy({**findings, "robustness": None, "honesty": None, "experiments": [mechanism]})

    def told(verdict: str) -> list[str]:
        for found in given["experiments"][0]["contrasts"]:
            held = {**claim, "verdict": verdict if found["left"] == contrast["left"] else "held"}
            found["expected"] = [held] if found["metric"] == "miou" else []
        return str(tables.verdicts(given)).splitlines()

    kept = [found for found in given["experiments"][0]["contrasts"] if found["metric"] == "miou"]
    missed = sum(found["left"] == contrast["left"] for found in kept)
    counted = f"{len(kept)} expectations, counted once for each pair of arms"
    assert told("held") == [f"{counted}: {len(kept)} held, 0 did not, 0 are open."]
    first, _, line = told("did not hold")
    assert first == f"{counted}: {len(kept) - missed} held, {missed} did not, 0 are open."
    assert line.startswith(f"- **{mechanism['title']}**, did not hold: “concatenated skips” > “no skips”")
    assert f", as {claim['why']}. " in line
    assert len(LINK.findall(line)) == missed
    assert ", open: " in told("open")[2]


def test_an_unfinished_study_tells_its_whole_experiments(tables: ModuleType, tmp_path: Path) -> None:
    def written(folder: Path, missing: str) -> Path:
        """Returns a results folder whose study lacks the runs that `missing` alone needs."""
        study = make_study(folder / "study", leave_out=lambda run: {row.experiment for row in run.rows} == {missing})
        write_findings(study)
        return folder

    findings = tables.published(written(tmp_path / "late", "batch_norm"))
    told = tables.study_texts(tmp_path / "late")
    assert "batch_norm" not in [experiment["name"] for experiment in findings["experiments"]]
    assert "batch-norm" not in told["study-rows"]
    assert told["study-rows"].endswith("Not finished, and not told here: “Batch normalisation on and off”.")
    assert "U-Net leads SegNet by" in told["study-answers"]
    for text in (*told.values(), tables.study_headline(tmp_path / "late")):
        assert wrong(tables, findings, text) == []

    assert tables.published(written(tmp_path / "early", "main")) is None
    assert set(tables.study_texts(tmp_path / "early").values()) == {tables.NOT_RUN}
    assert tables.study_headline(tmp_path / "early") == tables.NOT_RUN


def test_an_arm_that_diverged_has_its_row(tables: ModuleType, findings: dict[str, Any]) -> None:
    main = findings["experiments"][0]
    lost = {"left": "unet/width", "right": "segnet/width", "metric": "miou", "seeds": []}
    lost |= {"diverged": {"segnet/width": 5}, "expected": main["contrasts"][0]["expected"]}
    given = findings | {"experiments": [main | {"contrasts": [lost]}]}
    row = next(line for line in tables.rows(given).splitlines() if 'id="main-unet-width-segnet-width-miou"' in line)
    assert "| – | – | – | 0; SegNet diverged in 5 |" in row
    assert wrong(tables, given, tables.rows(given)) == []


def test_a_reader_is_told_when_no_lead_is_shown(tables: ModuleType, findings: dict[str, Any]) -> None:
    main = findings["experiments"][0]
    close = [found | {"low": -1.0} if found["left"] == "unet/stages" else found for found in main["contrasts"]]
    assert tables.leader(main, findings, first=False) == "U-Net"
    told = tables.leader(main | {"contrasts": close}, findings, first=False)
    assert told == "either, as no lead is shown throughout"


def test_the_model_for_the_least_memory_scores_higher_with_fewer_bytes(
    tables: ModuleType, findings: dict[str, Any]
) -> None:
    main, width = findings["experiments"][0], next(e for e in findings["experiments"] if e["name"] == "width")
    assert tables.lightest(main, findings) == "SegNet", (
        "it holds fewer bytes, and no U-Net of fewer is shown to be better"
    )
    better = []
    for arm in width["arms"]:
        scored = {"points": 80.0, "low": 79.0, "high": 81.0} if arm["model"] == "unet" else arm["miou"]
        better.append(arm | {"miou": scored})
    given = findings | {"experiments": [main, width | {"arms": better}]}
    assert tables.lightest(main, given) == "U-Net"
    told = tables.answers(given).split("\n\n")[2]
    assert "Fewer bytes and a higher score: U-Net (8 channels) with 3.0 MB at 64 px and 80.0 % mIoU" in told
    assert "), against SegNet (16 channels) with 5.0 MB and 63.5 % mIoU" in told
    assert wrong(tables, given, told) == []


def test_one_size_of_a_model_is_no_answer_for_the_least_memory(tables: ModuleType, findings: dict[str, Any]) -> None:
    main = findings["experiments"][0]
    unet = main["arms"][0]
    smaller, larger = ({"activation_bytes": unet["cost"]["activation_bytes"] + more} for more in (-8, 8))
    arms = [arm if arm["model"] == "unet" else arm | {"cost": arm["cost"] | smaller} for arm in main["arms"]]
    arms[-1] |= {"cost": arms[-1]["cost"] | larger}
    assert arms[-1]["miou"]["high"] < unet["miou"]["low"], "the one U-Net beats the larger SegNet with fewer bytes"
    assert tables.lightest(main | {"arms": arms}, {**findings, "experiments": [main | {"arms": arms}]}) == "SegNet"


def test_each_kind_of_worse_picture_has_its_leader_and_rows(tables: ModuleType, findings: dict[str, Any]) -> None:
    def told(**ends: float) -> tuple[str, str]:
        contrasts = [
            finding | ends if finding["kind"] == "jpeg" else finding for finding in findings["robustness"]["contrasts"]
        ]
        given = findings | {"robustness": findings["robustness"] | {"contrasts": contrasts}}
        for text in (tables.answers(given), tables.rows(given), tables.headline(given)):
            assert wrong(tables, given, text) == []
        return tables.answers(given).split("\n\n")[3], tables.headline(given)

    said, bullet = told(points=-5.5, low=-7.9, high=-2.9)
    assert said.startswith("**Worse pictures.** Same base width, over a kind's strengths: ")
    assert "; SegNet by 5.5 points (2.9 to 7.9) with JPEG ([row](#with-jpeg-unet-width-segnet-width-miou))" in said
    assert "SegNet is shown to lead with JPEG" in bullet
    said, bullet = told(points=1.5, low=-1.9, high=4.9)
    assert "; no difference shown (−1.9 to 4.9) with JPEG ([row](#with-jpeg-" in said
    assert "no difference is shown with JPEG" in bullet
    assert '<a id="with-small-scale-unet-width-segnet-width-miou"></a>with small scale' in tables.rows(findings)
    assert "**Worse" not in tables.answers(findings | {"robustness": None})
