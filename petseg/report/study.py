"""The study's page: reads one findings.json, says in sentences what its numbers show, writes one HTML file.

Nothing is measured or resampled here, so the same JSON gives the same bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petseg.errors import PetsegError
from petseg.report import plots, study_plots, tables
from petseg.report.page import flatten, plain, svg, template, times, unbroken
from petseg.report.study_plots import Chart
from petseg.report.tables import DASH, percent_words, plural, points
from petseg.storage import read_json, write_atomically

Finding = Mapping[str, Any]


def read_findings(path: Path) -> dict[str, Any]:
    """Returns what `path` holds.

    Raises:
        PetsegError: no such file, not JSON, or another kind or version.
    """
    found = read_json(path)
    if (found.get("kind"), found.get("version")) != ("findings", 2):
        raise PetsegError(
            f"{path}: kind {found.get('kind')!r}, version {found.get('version')!r}; wanted findings of version 2: run "
            "`petseg report` on the study's folder"
        )
    return found


# --- sentences -------------------------------------------------------------------------------------------------------


def interval_words(finding: Finding) -> str:
    """Returns the interval as a sentence tells it.

    >>> interval_words({"low": 1.2, "high": 2.4, "confidence": 0.95})
    '95 % interval 1.2 to 2.4'
    """
    return f"{percent_words(finding.get('confidence', 0.95))} interval {ends_words(finding)}"


def ends_words(finding: Finding) -> str:
    """Returns both ends; one close to zero, or to the size that was expected, has the decimals that tell it from that.

    >>> ends_words({"low": 0.04, "high": 2.44}), ends_words({"low": -0.04, "high": 2.44, "expected": [{"points": 2.4}]})
    ('0.04 to 2.4', '−0.04 to 2.44')
    """
    bounds = [0.0, *(claim["points"] for claim in finding.get("expected", []))]

    def told(end: float) -> str:
        fit = (digits for digits in (1, 2, 3) if all(abs(end) == b or round(abs(end), digits) != b for b in bounds))
        return points(end, next(fit, 4))

    return f"{told(finding['low'])} to {told(finding['high'])}"


def metric_words(metric: str) -> str:
    """Returns the score's name after a number of points.

    >>> metric_words("miou"), metric_words("border"), metric_words("boundary_f")
    ('points of mIoU', 'points of border IoU', 'points of boundary F')
    """
    return f"points of {METRICS.get(metric, f'{metric} IoU')}"


METRICS = {"miou": "mIoU", "boundary_f": "boundary F"}
"""Names of scores that are no IoU of a class."""


def shown(finding: Finding) -> bool:
    """Returns whether a difference is shown: its interval leaves zero out, ends included."""
    return not finding["low"] <= 0 <= finding["high"]


def turned(finding: Finding) -> Finding:
    """Returns the same difference seen from the other side."""
    costs = {name: 1 / ratio for name, ratio in finding.get("costs", {}).items()}
    ends = {"points": -finding["points"], "low": -finding["high"], "high": -finding["low"]}
    share = 1 - finding.get("share_left_better", 0.0)
    sides = {"left": finding["right"], "right": finding["left"]}
    return {**finding, **ends, **sides, "costs": costs, "share_left_better": share}


def led(finding: Finding) -> Finding:
    """Returns the difference from the side of the leader, as it is where none is shown."""
    return turned(finding) if shown(finding) and finding["points"] < 0 else finding


def lead_words(finding: Finding, left: str, right: str) -> str:
    """Returns a difference as a sentence without its stop; the leader stands first.

    >>> found = {"left": "a", "right": "b", "metric": "miou", "points": 1.8, "low": 1.2, "high": 2.4,
    ...          "costs": {"latency": 1.31}}
    >>> lead_words(found, "U-Net", "SegNet")
    'U-Net leads SegNet by 1.8 points of mIoU, 95 % interval 1.2 to 2.4, at 1.3 times the latency'
    >>> lead_words({**found, "low": -0.1}, "U-Net", "SegNet")
    'no difference shown: U-Net minus SegNet is 1.8 points of mIoU, 95 % interval −0.1 to 2.4, at 1.3 times the latency'
    """
    if led(finding) is not finding:
        return lead_words(turned(finding), right, left)
    size = f"{points(finding['points'])} {metric_words(finding['metric'])}, {interval_words(finding)}"
    if shown(finding):
        return f"{left} leads {right} by {size}{latency_words(finding)}"
    return f"no difference shown: {left} minus {right} is {size}{latency_words(finding)}"


def latency_words(finding: Finding) -> str:
    """Returns what the left side takes, as the end of a sentence; nothing where it is not measured.

    >>> latency_words({"costs": {"latency": 1.01}}), latency_words({"costs": {"latency": 1.31}}), latency_words({})
    (', at the same latency', ', at 1.3 times the latency', '')
    """
    ratio = finding.get("costs", {}).get("latency")
    if ratio is None:
        return ""
    return f", at {'the same' if abs(ratio - 1) <= 0.02 else f'{times(ratio)} times the'} latency"


def sentence(where: str, told: str) -> str:
    """Returns words as a sentence, after what they are about.

    >>> sentence("same width", "no difference shown"), sentence("", "no difference shown")
    ('Same width: no difference shown.', 'No difference shown.')
    """
    whole = f"{where}: {told}" if where else told
    return f"{whole[0].upper()}{whole[1:]}."


@dataclass(frozen=True)
class Names:
    """How an experiment's arms are called in sentences and plots."""

    experiment: Mapping[str, Any]
    models: Mapping[str, str]

    def pair(self, left: str, right: str) -> tuple[str, str, str]:
        """Returns what two arms share, and what tells each apart."""
        (model, first), (other, second) = (self._parts(arm) for arm in (left, right))
        if left.partition("/")[2] == right.partition("/")[2]:
            return (first if len(self._variants()) > 1 else "", model, other)
        if model == other:
            return (
                model if len({arm["model"] for arm in self.experiment["arms"]}) > 1 else "",
                f"“{first}”",
                f"“{second}”",
            )
        return "", f"{model} ({first})", f"{other} ({second})"

    def _parts(self, name: str) -> tuple[str, str]:
        arm = next(arm for arm in self.experiment["arms"] if arm["arm"] == name)
        return self.models[arm["model"]], arm["title"]

    def _variants(self) -> set[str]:
        return {arm["variant"] for arm in self.experiment["arms"]}

    def label(self, finding: Finding) -> str:
        """Returns what is subtracted from what."""
        where, left, right = self.pair(finding["left"], finding["right"])
        metric = finding["metric"]
        what = "" if metric == "miou" else f" ({METRICS.get(metric, metric)})"
        return f"{where}: {left} minus {right}{what}" if where else f"{left} minus {right}{what}"

    def claim(self, claim: Mapping[str, Any]) -> str:
        """Returns an expectation without its reason; its score is that of the finding beside it."""
        _, left, right = self.pair(claim["left"], claim["right"])
        size = f" by {claim['points']:g} point{'' if claim['points'] == 1 else 's'}" if claim["points"] else ""
        return f"{left} {'=' if claim['equal'] else '>'} {right}{size}"

    def sentence(self, finding: Finding) -> str:
        """Returns what a contrast shows, or that its runs are missing."""
        where, left, right = self.pair(finding["left"], finding["right"])
        wanted, had = len(self.experiment["seeds"]), len(finding["seeds"])
        seeds, called = plural(wanted, "seed"), {finding["left"]: left, finding["right"]: right}
        diverged = " and ".join(
            f"{called[arm]} diverged in {'every seed' if count == wanted else f'{count} of {seeds}'}"
            for arm, count in finding.get("diverged", {}).items()
        )
        if "points" not in finding:
            told = f"{left} against {right}: {diverged or 'not run yet'}"
        else:
            told = lead_words(finding, left, right)
            if had < wanted:
                told += f" ({had} of {seeds}{f'; {diverged}' if diverged else ' so far'})"
            elif had == 1:
                told += " (one seed)"
        return sentence(where, told)


def answers(findings: Mapping[str, Any]) -> list[str]:
    """Returns the first experiment's sentences on the models, mIoU alone: the study's answer.

    A footing whose networks are those of an earlier one is told as that.
    """
    experiment = findings["experiments"][0]
    names = Names(experiment, findings["models"])
    trained = {arm["arm"]: tuple(arm["runs"]) for arm in experiment["arms"]}
    told = []
    first: dict[tuple[tuple[str, ...], ...], str] = {}
    for finding in between_models(experiment, ("miou",)):
        sides = finding["left"], finding["right"]
        where, *_ = names.pair(*sides)
        known = first.setdefault(tuple(trained[arm] for arm in sides), where)
        same = f"the same networks as with the {known[:1].lower()}{known[1:]}"
        told.append(names.sentence(finding) if known == where else sentence(where, same))
    return told


def between_models(experiment: Mapping[str, Any], metrics: Sequence[str]) -> Iterator[Finding]:
    """Yields an experiment's scored differences of two models in one variant."""
    for finding in experiment["contrasts"]:
        if (
            finding["metric"] in metrics
            and "points" in finding
            and variant(finding["left"]) == variant(finding["right"])
        ):
            yield finding


def variant(arm: str) -> str:
    """Returns the variant of `MODEL/VARIANT`."""
    return arm.partition("/")[2]


def total_words(training: Mapping[str, Any]) -> str:
    """Returns how long the runs took, one after the other or several at a time."""
    at_once = training["at_once"]
    together = f", up to {at_once} runs at a time on the same cores" if at_once > 1 else ""
    return f"{tables.duration(training['seconds'])} of training{together}"


def tuning_words(findings: Mapping[str, Any]) -> list[str]:
    """Returns whose best rate is the grid's last, and what each model loses at the other's best setting."""
    tuning, models = findings["tuning"], findings["models"]
    told = []
    rates = [cell["learning_rate"] for cell in tuning["cells"]]
    for model, best in tuning["best"].items():
        rate = best["learning_rate"]
        if rate in (min(rates), max(rates)):
            beyond = "higher" if rate == max(rates) else "lower"
            told.append(f"{models[model]}'s best rate, {rate:g}, is the grid's last: a {beyond} one may be better.")
    for model, lost in tuning["at_the_other_s_best"].items():
        other = next(models[name] for name in tuning["at_the_other_s_best"] if name != model)
        if lost is None:
            told.append(f"{models[model]} at {other}'s best setting: not known yet.")
        elif lost["diverged"]:
            told.append(f"At {other}'s best setting {models[model]} diverges.")
        elif lost["same"]:
            told.append(f"{models[model]} has the same best setting as {other}, and loses nothing.")
        else:
            size = f"{points(lost['points'])} points of mIoU on validation"
            told.append(f"At {other}'s best setting {models[model]} loses {size} ({interval_words(lost)}; one seed).")
    return told


def match_words(experiment: Mapping[str, Any], models: Mapping[str, str]) -> Iterator[str]:
    """Yields how near each searched shape comes to the cost that it was to have."""
    for arm in experiment["arms"]:
        if (match := arm["match"]) is not None:
            by_time = match["quantity"] == "latency"
            tell = tables.milliseconds if by_time else tables.whole
            found, wanted = tell(match["found"]), tell(match["wanted"])
            what = "in the quickest tenth of passes" if by_time else "parameters"
            off = points(100 * (match["found"] / match["wanted"] - 1))
            yield f"{models[arm['model']]}, {arm['title']}: {found} for {wanted} {what}, {off} % off."


def pictures_words(experiment: Mapping[str, Any], models: Mapping[str, str]) -> list[str]:
    """Returns what another thousand pictures would buy, if the next doubling bought what the last did."""
    told = []
    for model, found in experiment.get("another_thousand", {}).items():
        first, last, doubling = found["from"], found["to"], found["measured"]
        told.append(
            f"{models[model]}: from {tables.whole(first)} to {tables.whole(last)} pictures it gains "
            f"{points(doubling['points'])} points of mIoU ({interval_words(doubling)}). If the next doubling gains as "
            f"much, another {tables.whole(found['more'])} pictures gain {points(found['points'])} points "
            f"({ends_words(found)}): an extrapolation."
        )
    return told


def breed_sentences(breeds: Mapping[str, Any], models: Mapping[str, str]) -> list[str]:
    """Returns in how many breeds each model is shown to lead, and what the plot shows."""
    left, right = (models[breeds[side].partition("/")[0]] for side in ("left", "right"))
    return [
        f"{count_words(breeds['rows'], left, right, 'breed')}; of so many intervals one in twenty leaves zero out by "
        "chance.",
        plots.breed_words(study_plots.as_comparison(breeds, models)),
    ]


def by_leader(found: Sequence[Finding]) -> tuple[list[Finding], list[Finding], list[Finding]]:
    """Returns the differences that show a lead of the left, those of the right, and those that show none."""
    for_left = [finding for finding in found if finding["low"] > 0]
    for_right = [finding for finding in found if finding["high"] < 0]
    return for_left, for_right, [finding for finding in found if not shown(finding)]


def count_words(found: Sequence[Finding], left: str, right: str, what: str) -> str:
    """Returns in how many of several ways of looking at two arms each leads, without a stop.

    >>> count_words([{"low": 1, "high": 2}, {"low": -1, "high": 1}], "U-Net", "SegNet", "view")
    'U-Net is shown to lead SegNet on 1 of 2 views, SegNet to lead U-Net on 0'
    """
    for_left, for_right, _ = by_leader(found)
    count = plural(len(found), what)
    return f"{left} is shown to lead {right} on {len(for_left)} of {count}, {right} to lead {left} on {len(for_right)}"


def kind_words(found: Sequence[tuple[str, Finding]], left: str, right: str) -> str:
    """Returns which of two arms leads with which kind of picture, without a stop.

    >>> found = [("blur", {"low": 1, "high": 2}), ("noise", {"low": -1, "high": 1}), ("JPEG", {"low": 1, "high": 3})]
    >>> kind_words(found, "U-Net", "SegNet")
    'U-Net is shown to lead with blur and JPEG; no difference is shown with noise'
    """
    clauses = (f"{left} is shown to lead with", f"{right} is shown to lead with", "no difference is shown with")
    groups = by_leader([finding for _, finding in found])
    return "; ".join(
        f"{clause} {tables.listing([kind for kind, finding in found if finding in group])}"
        for clause, group in zip(clauses, groups, strict=True)
        if group
    )


def other_leaders(finding: Finding, amounts: Sequence[float], names: Names) -> str:
    """Returns at which strengths of a change another leader is shown than over all of them; empty: at none."""
    _, left, right = names.pair(finding["left"], finding["right"])

    def leader(one: Finding) -> str:
        return "" if not shown(one) else left if one["points"] > 0 else right

    at: dict[str, list[str]] = {}
    for amount, one in zip(amounts, finding["by_strength"][1:], strict=False):
        if leader(one) not in ("", leader(finding)):
            at.setdefault(leader(one), []).append(f"{amount:g}")
    others = [f"{name} at {tables.listing(strengths)}" for name, strengths in at.items()]
    return f" (but {tables.listing(others)})" if others else ""


def each_strength(finding: Finding, amounts: Sequence[float], names: Names) -> str:
    """Returns the difference at each strength of a change."""
    _, left, right = names.pair(finding["left"], finding["right"])
    parts = zip(amounts, finding["by_strength"][1:], strict=False)
    told = [f"{points(one['points'])} ({ends_words(one)}) at {amount:g}" for amount, one in parts]
    return f"; {left} minus {right} {', '.join(told)}" if told else ""


def by_pair(
    found: Sequence[tuple[str, Finding]], names: Names
) -> Iterator[tuple[str, str, str, list[tuple[str, Finding]]]]:
    """Yields, for each pair of arms that has a score, what `Names.pair` calls them, and its share of what was found.

    Args:
        found: (the way that a pair was looked at, its difference).
        names: of the experiment's arms.
    """
    pairs: dict[tuple[str, str], list[tuple[str, Finding]]] = {}
    for way, finding in found:
        if "points" in finding:
            pairs.setdefault((finding["left"], finding["right"]), []).append((way, finding))
    for sides, ways in pairs.items():
        yield *names.pair(*sides), ways


def lacking_seeds(experiment: Mapping[str, Any], arm: Mapping[str, Any]) -> int:
    """Returns how many of an arm's runs are not made."""
    return len(experiment["seeds"]) - len(arm["seeds"]) - len(arm["diverged"])


def missing_words(findings: Mapping[str, Any]) -> list[str]:
    """Returns what the study lacks, experiment by experiment; empty where it is complete."""
    runs = findings["runs"]
    told = []
    lacking = sum(count for state, count in runs.items() if state in ("missing", "waiting"))
    if lacking or not runs:
        told.append(
            f"{plural(lacking, 'run')} of {sum(runs.values()):,} are not made yet; what stands here may change."
        )
    for experiment in findings["experiments"]:
        names = Names(experiment, findings["models"])
        for arm in experiment["arms"]:
            absent = lacking_seeds(experiment, arm)
            title = f"{experiment['title']}: {names.models[arm['model']]}, {arm['title']}"
            if absent:
                told.append(f"{title}: {absent} of {plural(len(experiment['seeds']), 'seed')} missing.")
            if arm["diverged"]:
                told.append(f"{title}: diverged with {tables.listing([f'seed {seed}' for seed in arm['diverged']])}.")
    return told


# --- the page --------------------------------------------------------------------------------------------------------


MARKS = {"held": "✓", "did not hold": "✗", "open": "?"}


def verdict_words(claim: Mapping[str, Any]) -> str:
    """Returns whether an expectation held. That no difference is shown does not make two equal.

    >>> verdict_words({"verdict": "held", "equal": False}), verdict_words({"verdict": "held", "equal": True})
    ('held', 'not refuted')
    """
    return "not refuted" if claim["equal"] and claim["verdict"] == "held" else str(claim["verdict"])


def _figure(chart: Chart | None) -> dict[str, Any] | None:
    if chart is None:
        return None
    data = base64.b64encode(chart.csv.encode()).decode()
    return {"svg": svg(chart.drawing), "file": f"{chart.name}.csv", "csv": f"data:text/csv;base64,{data}"}


def _estimate(value: Finding | None) -> str:
    if value is None:
        return DASH
    return f"{points(value['points'])} ({points(value['low'])} to {points(value['high'])})"


def _loss(found: Mapping[str, float | None]) -> str:
    mean, low, high = (tables.loss(found[key]) for key in ("mean", "low", "high"))
    return mean if found["low"] is None else f"{mean} ({low} to {high})"


def _arm_rows(experiment: Mapping[str, Any], models: Mapping[str, str]) -> Iterator[list[str]]:
    for arm in study_plots.scored(experiment["arms"]):
        cost = arm["cost"]
        latency = cost.get("latency_ms", {})
        reached = arm["reached"]
        yield [
            f"{models[arm['model']]}, {arm['title']}",
            _estimate(arm["miou"]),
            _estimate(arm["iou"].get("border")),
            _estimate(arm["boundary_f"]),
            _loss(arm["cross_entropy"]),
            str(len(arm["seeds"])),
            tables.count(cost.get("parameters")),
            tables.count(cost.get("macs")),
            tables.milliseconds(latency.get("p50")),
            tables.milliseconds(latency.get("p95")),
            tables.byte_size(cost.get("activation_bytes")),
            tables.byte_size(cost.get("crossing_bytes")),
            tables.byte_size(cost.get("training_activation_bytes_per_image")),
            tables.duration(arm["train_seconds"]),
            f"{tables.duration(reached['seconds'])} ({reached['runs']} of {len(arm['seeds'])})"
            if reached["runs"]
            else DASH,
        ]


ARM_COLUMNS = (
    *(
        "Arm",
        "mIoU %",
        "Border IoU %",
        "Boundary F",
        "Cross-entropy",
        "Seeds",
        "Parameters",
        "MACs",
        "Latency p50",
        "p95",
    ),
    *("Memory, inference", "of it crossing", "Memory, training, per image", "Training", "Time to loss"),
)


def _finding_rows(names: Names, contrasts: Sequence[Finding], about: str = "") -> Iterator[dict[str, Any]]:
    """Yields a row for each contrast; `about` stands before the sentence."""
    for finding in contrasts:
        resampled = "points" in finding
        yield {
            "sentence": unbroken(names.sentence(finding)),
            "about": about,
            "share": f"{100 * led(finding)['share_left_better']:.1f} %" if resampled else DASH,
            "p": f"{finding['p_value']:.4f}" if resampled else DASH,
            "expected": [
                (names.claim(claim), claim["why"], f"{MARKS[claim['verdict']]} {verdict_words(claim)}")
                for claim in finding["expected"]
            ],
        }


def _tuning_table(findings: Mapping[str, Any]) -> list[list[str]]:
    """Returns a row for each setting: rate, warm-up, each model's score; the best is marked."""
    tuning = findings["tuning"]
    cells = {(cell["model"], cell["learning_rate"], cell["warmup"]): cell for cell in tuning["cells"]}
    rows = []
    for rate, warmup in dict.fromkeys((cell["learning_rate"], cell["warmup"]) for cell in tuning["cells"]):
        row = [f"{rate:g}", f"{warmup:g}"]
        for model in dict.fromkeys(cell["model"] for cell in tuning["cells"]):
            cell, best = cells[model, rate, warmup], tuning["best"].get(model, {})
            text = (
                points(cell["miou"])
                if cell["miou"] is not None
                else "diverged"
                if cell["state"] == "diverged"
                else DASH
            )
            row.append(f"✓ {text}" if (best.get("learning_rate"), best.get("warmup")) == (rate, warmup) else text)
        rows.append(row)
    return rows


def _forest(findings: Mapping[str, Any]) -> Chart | None:
    groups = []
    for experiment in findings["experiments"]:
        names = Names(experiment, findings["models"])
        where = f"{experiment['title']} ({experiment['split']}, {experiment['size']} px)"
        rows = [
            (names.label(finding), finding)
            for finding in experiment["contrasts"]
            if finding["metric"] == "miou" and "points" in finding
        ]
        groups.append((where, rows))
    return study_plots.forest_chart(groups)


def _robustness(findings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the section on worse pictures, None before it has a score."""
    robustness, models = findings["robustness"], findings["models"]
    if not robustness or not robustness["arms"]:
        return None
    names = Names(_experiment(findings, robustness["experiment"]), models)
    told = [
        (finding, robustness["titles"][finding["kind"]], robustness["amounts"][finding["kind"]])
        for finding in robustness["contrasts"]
    ]
    kinds = [(kind + other_leaders(finding, amounts, names), finding) for finding, kind, amounts in told]
    return {
        "every": robustness["every"],
        "pictures": tables.whole(robustness["pictures"]),
        "chart": _figure(study_plots.robustness_chart(robustness, models)),
        "words": [
            unbroken(sentence(where, kind_words(ways, left, right)))
            for where, left, right, ways in by_pair(kinds, names)
        ],
        "findings": [
            row
            for finding, kind, amounts in told
            for row in _finding_rows(names, [finding], kind + each_strength(finding, amounts, names))
        ],
    }


def _honesty(findings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the section on other views, None before it has a score."""
    honesty, models = findings["honesty"], findings["models"]
    if not honesty or not honesty["views"]:
        return None
    names = Names(_experiment(findings, honesty["experiment"]), models)
    breeds = honesty["breeds"]
    views = [
        (f"{view['title']} ({tables.whole(view['pictures'])} pictures)", finding)
        for view in honesty["views"]
        for finding in view["contrasts"]
    ]
    return {
        "words": [
            unbroken(sentence(where, count_words([finding for _, finding in ways], left, right, "view")))
            for where, left, right, ways in by_pair(views, names)
        ],
        "findings": [row for view, finding in views for row in _finding_rows(names, [finding], view)],
        "breeds": _figure(study_plots.breeds_chart(breeds, models)) if breeds else None,
        "breed_words": [unbroken(told) for told in breed_sentences(breeds, models)] if breeds else [],
    }


def settings_words(field: str, values: Sequence[Any]) -> str:
    """Returns the values that a field of the config has in the runs.

    >>> settings_words("train.epochs", [15, 30]), settings_words("model.convs", [None, [2, 2, 4]])
    ('15; 30', "the network's own; 2, 2, 4")
    """
    own = "the network's own"
    return "; ".join(own if value is None and field.startswith("model.") else plain(value) for value in values)


def _experiment(findings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(experiment for experiment in findings["experiments"] if experiment["name"] == name)


def render_study(findings: Mapping[str, Any]) -> str:
    """Returns the page's HTML; the same findings give the same bytes."""
    models = findings["models"]
    main = findings["experiments"][0]
    latency, learning = {}, {}
    for experiment in findings["experiments"]:
        if experiment["curve"] == "latency":
            latency[experiment["title"]] = _figure(study_plots.latency_chart(experiment, models))
        elif experiment["curve"] == "pictures":
            learning[experiment["title"]] = (
                _figure(study_plots.learning_chart(experiment, models)),
                pictures_words(experiment, models),
            )
    training = findings["training"]
    return template("study.html.j2").render(
        version=findings["petseg"],
        findings=findings,
        styles=plots.model_styles(list(models)),
        answers=[unbroken(sentence) for sentence in answers(findings)],
        missing=missing_words(findings),
        latency={title: figure for title, figure in latency.items() if figure},
        learning={title: found for title, found in learning.items() if found[0]},
        forest=_figure(_forest(findings)),
        training=[
            figure for key in study_plots.CURVES if (figure := _figure(study_plots.training_chart(main, models, key)))
        ],
        main=main,
        columns=ARM_COLUMNS,
        experiments=[
            {
                "name": experiment["name"],
                "title": experiment["title"],
                "where": f"{experiment['split']} split, {experiment['size']} px, "
                f"{plural(len(experiment['seeds']), 'seed')}",
                "arms": list(_arm_rows(experiment, models)),
                "matches": [unbroken(told) for told in match_words(experiment, models)],
                "findings": list(_finding_rows(Names(experiment, models), experiment["contrasts"])),
            }
            for experiment in findings["experiments"]
        ],
        tuning_words=[unbroken(told) for told in tuning_words(findings)] if findings["tuning"] else [],
        tuning_rows=_tuning_table(findings) if findings["tuning"] else [],
        verdict=f"{MARKS[verdict]} {verdict}" if (verdict := (findings["tuning"] or {}).get("verdict")) else "",
        robustness=_robustness(findings),
        honesty=_honesty(findings),
        total=total_words(findings["training"]),
        machines=[flatten(machine) for machine in training["machines"]],
        latency_environment=flatten(findings["latency_environment"] or {}),
        settings=[(name, settings_words(name, values)) for name, values in findings["settings"].items()],
        loss=tables.loss(findings["reached_loss"]),
        pictures={
            name: tables.whole(count) for name, count in ((findings["data"] or {}).get("pictures") or {}).items()
        },
    )


def write_study_report(findings: Path, out: Path | None = None) -> Path:
    """Returns the path of the page written from a findings.json: `out`, or report.html beside it.

    Raises:
        PetsegError: as `read_findings`, or the page cannot be written.
    """
    path = out if out is not None else findings.with_name("report.html")
    if path.is_dir():
        raise PetsegError(f"{path} is a folder; a report is one HTML file: name a file in it, such as report.html")
    text = render_study(read_findings(findings))
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8", newline="\n"))
    return path
