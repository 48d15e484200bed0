"""docs/unet-or-segnet.md from results/study/findings.json: answers, ideas, what did not hold, and the rows behind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark_tables import markdown

from petseg.report.study import (
    Names,
    between_models,
    count_words,
    ends_words,
    kind_words,
    lacking_seeds,
    latency_words,
    led,
    read_findings,
    sentence,
    shown,
    total_words,
    variant,
    verdict_words,
)
from petseg.report.study import answers as model_answers
from petseg.report.study_plots import scored
from petseg.report.tables import DASH, byte_size, count, duration, milliseconds, plural, points, whole

NOT_RUN = "The study is not finished: there is no answer here yet, and no figure."

OTHER_VIEWS = (
    "Looked at otherwise (near-identical pictures left out, the border as pet, as background or not counted, small to "
    "large pets)"
)
"""The views of `petseg.experiments.study.recipe.VIEWS` in short."""

MECHANISM = "mechanism"
"""The experiment that takes one network apart."""

Finding = Mapping[str, Any]


def study_texts(results: Path) -> dict[str, str]:
    """Returns marker -> text of docs/unet-or-segnet.md."""
    findings = published(results)
    if findings is None:
        return dict.fromkeys(TELLERS, NOT_RUN)
    return {marker: tell(findings) for marker, tell in TELLERS.items()}


def study_headline(results: Path) -> str:
    """Returns the README's text."""
    findings = published(results)
    return NOT_RUN if findings is None else headline(findings)


def published(results: Path) -> dict[str, Any] | None:
    """Returns the published study's findings, of whole experiments alone; None before the main one is whole."""
    path = results / "study" / "findings.json"
    if not path.is_file():
        return None
    findings = read_findings(path)
    experiments = findings["experiments"]
    unfinished = [
        experiment["title"]
        for experiment in experiments
        if any(lacking_seeds(experiment, arm) for arm in experiment["arms"])
    ]
    if experiments[0]["title"] in unfinished:
        return None
    whole = [experiment for experiment in experiments if experiment["title"] not in unfinished]
    return findings | {"experiments": whole, "unfinished": unfinished}


def headline(findings: Mapping[str, Any]) -> str:
    """Returns the models' differences and what crosses from encoder to decoder is worth, a bullet each."""
    told = model_answers(findings)
    for experiment in findings["experiments"]:
        if experiment["name"] == MECHANISM:
            names = Names(experiment, findings["models"])
            told += [
                f"In one network: {names.sentence(finding)}"
                for finding in experiment["contrasts"]
                if finding["metric"] == "miou" and finding["expected"] and "points" in finding
            ]
    main = findings["experiments"][0]
    names = Names(main, findings["models"])
    if found := worse(main, findings, first=True):
        about, left, right = names.pair(found[0][1]["left"], found[0][1]["right"])
        told.append(sentence(f"Worse pictures, {about}", kind_words(found, left, right)))
    if found := views(main, findings, first=True):
        about, left, right = names.pair(found[0][1]["left"], found[0][1]["right"])
        counted = count_words([finding for _, finding in found], left, right, "view")
        told.append(sentence(f"{OTHER_VIEWS}, {about}", counted))
    return "\n".join([*(f"- {line}" for line in told), "", where(findings)])


def answers(findings: Mapping[str, Any]) -> str:
    """Returns what each reader should take, and why, claims linked to their rows."""
    main = findings["experiments"][0]
    told = []
    for reader, taken, claims in (
        (
            "Best masks",
            leader(main, findings, first=True),
            [*best(main, findings), *links(main, findings, ("miou", "border"), first=True)],
        ),
        (
            "Smallest device",
            leader(main, findings, first=False),
            [*links(main, findings, ("miou",), first=False), *smallest(findings)],
        ),
        ("Least memory", lightest(main, findings), memory(main, findings)),
    ):
        told.append(f"**{reader}: {taken}.** {' '.join(claims)}" if claims else f"**{reader}.** Not run yet.")
    if found := worse(main, findings, first=True):
        names = Names(main, findings["models"])
        about, *_ = names.pair(found[0][1]["left"], found[0][1]["right"])
        kinds = "; ".join(
            f"{worse_words(finding, names)} with {kind} {link(renamed(main, f'with {kind}'), finding)}"
            for kind, finding in found
        )
        told.append("**Worse pictures.** " + sentence(f"{about}, over a kind's strengths", kinds))
    return "\n\n".join(told)


def leader(main: Mapping[str, Any], findings: Mapping[str, Any], *, first: bool) -> str:
    """Returns the model that is shown to lead in mIoU, in the first variant or in each of the others."""
    found = in_variants(main, ("miou",), first=first)
    ahead = {led(finding)["left"].partition("/")[0] if shown(finding) else None for finding in found}
    (model, *others) = ahead or {None}
    return findings["models"][model] if model is not None and not others else "either, as no lead is shown throughout"


def lightest(main: Mapping[str, Any], findings: Mapping[str, Any]) -> str:
    """Returns the model to take for the least memory.

    That is the one whose arms score higher with fewer bytes, at another width where they must, wherever it has one of
    fewer bytes; where there is none, or no experiment made it in several sizes, the one that holds the fewest in the
    first variant.
    """
    outcomes: dict[str, set[bool]] = {}
    for experiment, lighter, arm in lighter_rivals(findings):
        own = [other for other in experiment["arms"] if other["model"] == lighter["model"] and other["cost"]]
        if len({held(other) for other in own}) > 1:
            outcomes.setdefault(lighter["model"], set()).add(above(lighter, arm))
    always = [model for model, seen in outcomes.items() if seen == {True}]
    plain = [arm for arm in main["arms"] if arm["variant"] == main["arms"][0]["variant"] and arm["cost"]]
    fewest = [min(plain, key=held)["model"]] if plain else []
    return " or ".join(findings["models"][model] for model in always or fewest)


def worse(main: Mapping[str, Any], findings: Mapping[str, Any], *, first: bool) -> list[tuple[str, Finding]]:
    """Returns (kind of worse picture, difference over its strengths) of the first variant or of all."""
    robustness, plain = findings["robustness"], main["arms"][0]["variant"]
    return [
        (robustness["titles"][finding["kind"]], finding)
        for finding in (robustness["contrasts"] if robustness else [])
        if "points" in finding and (not first or variant(finding["left"]) == plain)
    ]


def views(main: Mapping[str, Any], findings: Mapping[str, Any], *, first: bool) -> list[tuple[str, Finding]]:
    """Returns (other view of the same pictures, difference) of the first variant or of all."""
    honesty, plain = findings["honesty"], main["arms"][0]["variant"]
    return [
        (view["title"], finding)
        for view in (honesty["views"] if honesty else [])
        for finding in view["contrasts"]
        if "points" in finding and (not first or variant(finding["left"]) == plain)
    ]


def worse_words(finding: Finding, names: Names) -> str:
    """Returns who leads and by how much, with the interval."""
    ahead = led(finding)
    _, leader, _ = names.pair(ahead["left"], ahead["right"])
    told = f"{leader} by {points(ahead['points'])} points" if shown(finding) else "no difference shown"
    return f"{told} ({ends_words(ahead)})"


def renamed(main: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns the main experiment under the name that its rows on other pictures or in another view have."""
    return {**main, "name": name, "title": name}


def differences(findings: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Finding]]:
    """Yields every difference that has a row, with the experiment that its row is called after."""
    for experiment in findings["experiments"]:
        for finding in experiment["contrasts"]:
            if "points" in finding or finding.get("diverged"):
                yield experiment, finding
    main = findings["experiments"][0]
    for kind, finding in worse(main, findings, first=False):
        yield renamed(main, f"with {kind}"), finding
    for view, finding in views(main, findings, first=False):
        yield renamed(main, view), finding


def verdicts(findings: Mapping[str, Any]) -> str:
    """Returns how many expectations held, and each that did not or is open, with what was found."""
    counted = Counter[str]()
    missed: dict[tuple[str, str, str], list[str]] = {}
    for experiment, finding in differences(findings):
        names = Names(experiment, findings["models"])
        for claim in finding["expected"]:
            counted[claim["verdict"]] += 1
            if claim["verdict"] != "held":
                expected = f"{names.claim(claim)}{', as ' if claim['why'] else ''}{claim['why']}"
                found = f"{names.sentence(finding)[:-1]} {link(experiment, finding)}."
                missed.setdefault((claim["verdict"], experiment["title"], expected), []).append(found)
    told = (
        f"{plural(counted.total(), 'expectation')}, counted once for each pair of arms: {counted['held']} held, "
        f"{counted['did not hold']} did not, {counted['open']} are open."
    )
    bullets = [
        f"- **{title[0].upper()}{title[1:]}**, {verdict}: {expected}. {' '.join(found)}"
        for (verdict, title, expected), found in sorted(missed.items(), key=lambda item: item[0][0] == "open")
    ]
    return "\n".join([told, "", *bullets]) if bullets else told


def held(arm: Mapping[str, Any]) -> int:
    """Returns the most bytes of maps that are alive at once."""
    return int(arm["cost"]["activation_bytes"])


def above(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Returns whether an arm's whole interval lies above another's."""
    return bool(first["miou"]["low"] > second["miou"]["high"])


def lighter_rivals(
    findings: Mapping[str, Any],
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]]:
    """Yields (experiment, the best arm of another model that holds fewer bytes, arm) where models come in widths."""
    for experiment in findings["experiments"]:
        arms = [arm for arm in scored(experiment["arms"]) if arm["cost"] and experiment["curve"] == "latency"]
        for arm in arms:
            lighter = [other for other in arms if other["model"] != arm["model"] and held(other) < held(arm)]
            if lighter:
                yield experiment, max(lighter, key=lambda other: other["miou"]["low"]), arm


def best(main: Mapping[str, Any], findings: Mapping[str, Any]) -> list[str]:
    """Returns which arm of the main comparison scores highest."""
    arms = scored(main["arms"])
    if not arms:
        return []
    arm = max(arms, key=lambda arm: arm["miou"]["points"])
    return [f"{called(arm, findings)} scores highest: {score(arm)} {link(main, arm['arm'])}."]


def links(
    main: Mapping[str, Any], findings: Mapping[str, Any], metrics: Sequence[str], *, first: bool
) -> Iterator[str]:
    """Yields the models' differences, in the first variant or in the others."""
    names = Names(main, findings["models"])
    for finding in in_variants(main, metrics, first=first):
        yield f"{names.sentence(finding)[:-1]} {link(main, finding)}."


def in_variants(main: Mapping[str, Any], metrics: Sequence[str], *, first: bool) -> list[Finding]:
    """Returns the scored differences of two models in the first variant, or those in the others."""
    plain = main["arms"][0]["variant"]
    return [finding for finding in between_models(main, metrics) if (variant(finding["left"]) == plain) == first]


def smallest(findings: Mapping[str, Any]) -> Iterator[str]:
    """Yields each model's arm of fewest parameters among all, with its score."""
    found = [
        (experiment, arm)
        for experiment in findings["experiments"]
        for arm in scored(experiment["arms"])
        if arm["cost"] and experiment["curve"] == "latency"
    ]
    for model in findings["models"]:
        own = [(experiment, arm) for experiment, arm in found if arm["model"] == model]
        if own:
            experiment, arm = min(own, key=lambda pair: pair[1]["cost"]["parameters"])
            cost = arm["cost"]
            latency = milliseconds(cost.get("latency_ms", {}).get("p50"))
            yield (
                f"The smallest {findings['models'][model]} here ({arm['title']}, {experiment['size']} px) has "
                f"{count(cost['parameters'])} parameters, takes {latency} and scores {score(arm)} on the "
                f"{experiment['split']} split {link(experiment, arm['arm'])}."
            )


def memory(main: Mapping[str, Any], findings: Mapping[str, Any]) -> list[str]:
    """Returns what each model holds at once, and what skips over indices buy for what they keep."""
    told = []
    plain = main["arms"][0]["variant"]
    for arm in main["arms"]:
        if arm["variant"] == plain and "miou" in arm and arm["cost"]:
            cost = arm["cost"]
            told.append(
                f"{called(arm, findings)} holds {byte_size(cost['activation_bytes'])} at once at {main['size']} px, "
                f"keeps {byte_size(cost['crossing_bytes'])} of them for its decoder and scores {score(arm)} "
                f"{link(main, arm['arm'])}."
            )
    if rivals := [
        f"{called(winner, findings)} with {byte_size(held(winner))} at {experiment['size']} px and {score(winner)} "
        f"{link(experiment, winner['arm'])}, against {called(arm, findings)} with {byte_size(held(arm))} and "
        f"{score(arm)} {link(experiment, arm['arm'])}"
        for experiment, winner, arm in lighter_rivals(findings)
        if above(winner, arm)
    ]:
        told.append(f"Fewer bytes and a higher score: {'; '.join(rivals)}.")
    for experiment in findings["experiments"]:
        names = Names(experiment, findings["models"])
        variants = [finding["left"].partition("/")[2] for finding in experiment["contrasts"]]
        for finding, left in zip(experiment["contrasts"], variants, strict=True):
            pair = {left, finding["right"].partition("/")[2]}
            if pair == {"skips", "indices"} and finding["metric"] == "miou" and "points" in finding:
                kept = {arm["variant"]: byte_size(arm["cost"].get("crossing_bytes")) for arm in experiment["arms"]}
                told.append(
                    f"In one network, but for what crosses and what takes it up: {names.sentence(finding)[:-1]}; skips "
                    f"keep {kept['skips']} for the decoder, indices {kept['indices']} {link(experiment, finding)}."
                )
    return told


def ideas(findings: Mapping[str, Any]) -> str:
    """Returns what each change within a model is worth, a bullet for each experiment after the first."""
    told = []
    for experiment in findings["experiments"][1:]:
        names = Names(experiment, findings["models"])
        claims = [
            f"{worth(finding, names)} {link(experiment, finding)}"
            for finding in experiment["contrasts"]
            if finding["metric"] == "miou" and finding["expected"] and same_model(finding)
            if "points" in finding or finding.get("diverged")
        ]
        claims += another_thousand(experiment, findings)
        if claims:
            told.append(f"- **{experiment['title']}**, {experiment['size']} px: {'; '.join(claims)}.")
    return "\n".join(told) or "Not run yet."


def same_model(finding: Finding) -> bool:
    """Returns whether a difference is one within a model."""
    return bool(finding["left"].partition("/")[0] == finding["right"].partition("/")[0])


def worth(finding: Finding, names: Names) -> str:
    """Returns which variant is ahead, by how much with the interval, and at what latency, without a stop."""
    if "points" not in finding:
        return names.sentence(finding)[:-1]
    ahead = led(finding)
    about, better, other = names.pair(ahead["left"], ahead["right"])
    size = f"{points(ahead['points'])} points ({ends_words(ahead)})"
    told = f"{better} over {other} {size}" if shown(finding) else f"{better} minus {other} {size}, no difference shown"
    told += latency_words(ahead)
    return f"{about}: {told}" if about else told


def another_thousand(experiment: Mapping[str, Any], findings: Mapping[str, Any]) -> Iterator[str]:
    """Yields what more pictures would gain each model, linked to the step it is extrapolated from."""
    for model, found in experiment.get("another_thousand", {}).items():
        step = next(
            finding
            for finding in experiment["contrasts"]
            if same_model(finding) and finding["left"].startswith(f"{model}/")
            if all(finding.get(key) == value for key, value in found["measured"].items())
        )
        yield (
            f"another {whole(found['more'])} pictures, extrapolated, gain {findings['models'][model]} "
            f"{points(found['points'])} points ({ends_words(found)}) {link(experiment, step)}"
        )


def called(arm: Mapping[str, Any], findings: Mapping[str, Any]) -> str:
    """Returns model and variant."""
    return f"{findings['models'][arm['model']]} ({arm['title']})"


def score(arm: Mapping[str, Any]) -> str:
    """Returns mIoU with its interval."""
    found = arm["miou"]
    low, high = points(found["low"]), points(found["high"])
    return f"{points(found['points'])} % mIoU ({low} to {high}; {plural(len(arm['seeds']), 'seed')})"


def anchor(experiment: Mapping[str, Any], what: Finding | str) -> str:
    """Returns the name of a row: an arm's, or a difference's."""
    parts = [what] if isinstance(what, str) else [what["left"], what["right"], what["metric"]]
    return re.sub("[^a-z0-9]+", "-", "-".join([experiment["name"], *parts]).lower())


def link(experiment: Mapping[str, Any], what: Finding | str) -> str:
    """Returns a link to a row."""
    return f"([row](#{anchor(experiment, what)}))"


def rows(findings: Mapping[str, Any]) -> str:
    """Returns two tables: every arm, and every difference."""
    arms = [["Experiment", "Arm", "Split", "Seeds", "mIoU %", "Border IoU %", "Parameters", "MACs", "Latency"]]
    arms[0] += ["At once", "For the decoder", "Training"]
    compared = [["Experiment", "Difference", "Points", "95 % interval", "p", "Seeds", "Expected"]]
    for experiment in findings["experiments"]:
        arms += [arm_row(experiment, arm, findings) for arm in experiment["arms"] if "miou" in arm]
    for experiment, finding in differences(findings):
        compared.append(difference_row(experiment, finding, Names(experiment, findings["models"])))
    return "\n\n".join([*(table(lines) for lines in (arms, compared) if len(lines) > 1), where(findings)])


def arm_row(experiment: Mapping[str, Any], arm: Mapping[str, Any], findings: Mapping[str, Any]) -> list[str]:
    """Returns an arm's row."""
    cost = arm["cost"]
    estimate, border = arm["miou"], arm["iou"].get("border")
    return [
        f'<a id="{anchor(experiment, arm["arm"])}"></a>{experiment["name"]}',
        called(arm, findings),
        f"{experiment['split']}, {experiment['size']} px",
        str(len(arm["seeds"])),
        f"{points(estimate['points'])} ({points(estimate['low'])} to {points(estimate['high'])})",
        DASH if border is None else points(border["points"]),
        count(cost.get("parameters")),
        count(cost.get("macs")),
        milliseconds(cost.get("latency_ms", {}).get("p50")),
        byte_size(cost.get("activation_bytes")),
        byte_size(cost.get("crossing_bytes")),
        duration(arm["train_seconds"]),
    ]


def difference_row(experiment: Mapping[str, Any], finding: Finding, names: Names) -> list[str]:
    """Returns a difference's row; without a score where an arm diverged in every seed."""
    scored = "points" in finding
    claims = [f"{names.claim(claim)}: {verdict_words(claim)}" for claim in finding["expected"]]
    _, left, right = names.pair(finding["left"], finding["right"])
    called = {finding["left"]: left, finding["right"]: right}
    lost = [f"{called[arm]} diverged in {number}" for arm, number in finding.get("diverged", {}).items()]
    return [
        f'<a id="{anchor(experiment, finding)}"></a>{experiment["name"]}',
        names.label(finding),
        points(finding["points"]) if scored else DASH,
        ends_words(finding) if scored else DASH,
        f"{finding['p_value']:.4f}" if scored else DASH,
        "; ".join([str(len(finding["seeds"])), *lost]),
        "; ".join(claims) or DASH,
    ]


def table(lines: Sequence[Sequence[str]]) -> str:
    """Returns lines, the head first, as Markdown."""
    return markdown(lines[0], lines[1:])


def where(findings: Mapping[str, Any]) -> str:
    """Returns on what, and how long, the study ran."""
    training = findings["training"]
    machines = "; ".join(
        f"{plural(machine['runs'], 'run')} on {machine['device']}, {machine['processor']}, {machine['precision']}, "
        f"commit `{machine['commit']}`"
        for machine in training["machines"]
    )
    runs = plural(findings["runs"].get("finished", 0), "run")
    pictures = f" Pictures: {findings['data']['source']}." if findings["data"] else ""
    quoted = ", ".join(f"“{title}”" for title in findings.get("unfinished", []))
    lacking = f" Not finished, and not told here: {quoted}." if quoted else ""
    return f"{runs}, {total_words(training)}{': ' if machines else ''}{machines}.{pictures}{lacking}"


TELLERS = {"study-answers": answers, "study-ideas": ideas, "study-verdicts": verdicts, "study-rows": rows}
"""Marker of docs/unet-or-segnet.md -> what writes its text."""
