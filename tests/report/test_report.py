"""The pages of comparisons and studies, made from published ones with their figures changed."""

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from petseg import units
from petseg.errors import PetsegError
from petseg.report import write_report, write_study_report
from petseg.report.page import difference_bars, headline, history_charts, pareto_charts, read_gallery
from petseg.report.plots import STYLES, Point, model_styles, pareto_chart
from petseg.report.tables import class_tables, comparison_tables, group_table, ranking_table
from petseg.schema import ClassInfo, ComparisonResult, Example, Findings, read_record, write_record
from tests.conftest import refused

RESULTS = Path(__file__).parents[2] / "results"
QUALITY = "Quality on the test split"


@pytest.fixture(scope="module")
def published():
    return read_record(RESULTS / "official" / "comparison.json", ComparisonResult).model_copy(update={"examples": ()})


@pytest.fixture(scope="module")
def findings():
    return read_record(RESULTS / "study" / "findings.json", Findings)


@pytest.fixture
def page(tmp_path):
    def written(record):
        path = tmp_path / f"{record.kind}.json"
        write_record(path, record)
        write = write_report if isinstance(record, ComparisonResult) else write_study_report
        return write(path).read_text(encoding="utf-8")

    return written


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.elements = []
        self.words = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"<{tag}> repeats an attribute: {attrs}"
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def changed(record, **values):
    return record.model_copy(update=values)


def rescored(model, split="test", **values):
    return changed(model, evaluations={**model.evaluations, split: changed(model.evaluations[split], **values)})


def runs(result, number):
    models, differences = list(result.models[:number]), list(result.differences[: number - 1])
    for place in range(3, number + 1):
        models.append(changed(result.models[-1], name=f"model-{place}", title=f"Model {place}"))
        differences.append(changed(result.differences[0], model=f"model-{place}"))
    if number > 2:
        differences = [changed(one, together=(-5.5, -3.9)) for one in differences]
    return changed(result, models=tuple(models), differences=tuple(differences))


def with_examples(result, folder, name="pug_1"):
    roles = ("image", "truth", *(model.name for model in result.models))
    files = {role: f"examples/{name}.{role}.png" for role in roles}
    (folder / "examples").mkdir(exist_ok=True)
    for file in files.values():
        Image.new("RGB", (8, 8)).save(folder / file)
    miou = {model.name: 0.931 for model in result.models}
    return changed(result, examples=(Example(name=name, why="best", miou=miou, files=files),))


def test_the_headline_is_the_difference_with_its_interval(published):
    (line,) = headline(published)
    assert (
        line
        == "SegNet − U-Net: −4.7 points of mIoU on the test split (95 % interval −4.9 to −4.4; over images; one seed)"
    )
    assert headline(runs(published, 1)) == ["U-Net: 74.4 % mIoU on the test split"]
    assert len(headline(runs(published, 4))) == 3
    assert "(95 % interval −5.5 to −3.9, all at once; over images; one seed)" in headline(runs(published, 4))[2]
    assert headline(runs(published, 12)) == ["U-Net: 74.4 % mIoU on the test split, the highest of 12"]


def cells(result, title, head):
    table = next(table for table in comparison_tables(result) if table.title == title)
    return [row[table.heads.index(head)] for _, row in table.rows]


def test_the_best_model_is_marked_and_never_a_baseline(published):
    result = changed(published, baselines=(rescored(published.baselines[0], pixel_accuracy=0.999),))
    assert [cell.best for cell in cells(result, QUALITY, "Pixel accuracy")] == [True, False, False]
    assert [cell.best for cell in cells(result, QUALITY, "Cross-entropy at 128 px")] == [True, False, False]
    parameters = [(cell.text, cell.best) for cell in cells(result, "Cost", "Parameters")]
    assert parameters == [("1.9 M", False), ("1.8 M", True)]
    # mIoU only where a difference is shown, other figures where they print otherwise
    assert [cell.best for cell in cells(published, QUALITY, "mIoU")][:2] == [True, False]
    close = changed(published, differences=(changed(published.differences[0], low=-0.4, high=0.0),))
    three = runs(published, 3)
    corrected = changed(three, differences=tuple(changed(one, together=(-9.0, 0.1)) for one in three.differences))
    others = changed(three, reference="segnet")  # the best is compared with one of two
    for result, marked in ((three, True), (close, False), (corrected, False), (others, False)):
        assert any(cell.best for cell in cells(result, QUALITY, "mIoU")) == marked
    models = tuple(rescored(model, pixel_accuracy=0.9 + place / 1e5) for place, model in enumerate(published.models))
    assert not any(cell.best for cell in cells(changed(published, models=models), QUALITY, "Pixel accuracy"))


def test_an_absent_class_is_a_dash_and_an_absent_column_is_left_out(published):
    iou = {**published.models[0].evaluations["test"].iou, "border": None}
    result = changed(published, models=(rescored(published.models[0], iou=iou), published.models[1]))
    assert [row[2].text for _, row in class_tables(result)[0].rows] == ["–", "42.0", "0.0", "0.0"]
    assert "Class of the image" not in comparison_tables(result)[0].heads
    seed = read_record(RESULTS / "seed" / "comparison.json", ComparisonResult)
    assert [table.title for table in comparison_tables(seed)] == ["Quality on the val split", "Cost"]
    assert "at 200 px" in comparison_tables(seed)[0].heads


NUMBERS = {
    units.percent: {0.7314: "73.1", 0.99951: "100.0", None: "–", math.nan: "–"},
    units.loss: {0.36142: "0.3614"},
    units.count: {31_040_000: "31.0 M", 42: "42", 123_456_789: "0.12 G", 999_999: "1.0 M", 0: "0"},
    units.byte_size: {999: "999 B", 2_500_000_000: "2.5 GB", 999_999: "1.0 MB", 0: "0 B"},
    units.duration: {45.2: "45 s", 119.9: "2.0 min", 7200: "2.0 h"},
    units.milliseconds: {0.5: "0.500 ms", 9.999: "10.0 ms", 123.4: "123 ms"},
    units.whole: {3669: "3,669"},
    units.points: {-0.04: "0.0"},
    units.signed: {-1.25: "−1.2", 4.67: "+4.7", -0.04: "0.0"},
}


@pytest.mark.parametrize("function", NUMBERS, ids=lambda function: function.__name__)
def test_numbers_are_formatted(function):
    assert {value: function(value) for value in NUMBERS[function]} == NUMBERS[function]


@pytest.mark.parametrize("number", [1, 2, 12])
def test_a_page_of_any_number_of_runs_holds_all_its_figures(published, page, tmp_path, number):
    result = with_examples(runs(published, number), tmp_path)
    html = page(result)
    text = Page(html).text.replace("\N{NO-BREAK SPACE}", " ")
    for words in (*headline(result), result.command, result.data.images, "CC BY-SA 4.0", "train.weight_decay"):
        assert words in text
    for model in result.models:
        assert text.count(model.title) >= 7
    assert "3,669 images, each image's own size" in text
    assert f"commit {result.environment.commit}" in text
    assert len(Page(html).all("img")) == number + 2
    assert ("interval" in text) == (number > 1)
    assert ("All at once" in text) == (number > 2)
    assert ("Pareto front: 2 SegNet · 1 U-Net." in text) == (number > 1)
    assert html.count('class="more"') == max(0, number - 4)
    assert ("Show the masks of all 12 models" in text) == (number == 12)
    assert ("✓" in text.replace("✓ marks", "")) == (number > 1)


def test_the_ranking_holds_both_intervals_and_pictures_on_one_scale(published):
    result = runs(published, 3)
    table = ranking_table(result)
    assert [(label, *(cell.text for cell in cells)) for label, cells in table.rows] == [
        ("U-Net", "74.4", "–", "–", "–"),
        ("SegNet", "69.8", "−4.7", "−4.9 to −4.4", "−5.5 to −3.9"),
        ("Model 3", "69.8", "−4.7", "−4.9 to −4.4", "−5.5 to −3.9"),
    ]
    bars = difference_bars(result)
    assert (bars.low, bars.high, bars.zero) == (-6, 0, 100)
    assert bars.by_title["SegNet"].together == (pytest.approx(100 * 0.5 / 6, abs=0.01), pytest.approx(35))
    assert bars.by_title["SegNet"].shown
    wide = [changed(one, together=(-9.0, 3.0)) for one in result.differences]
    bars = difference_bars(changed(result, differences=tuple(wide)))
    assert (bars.zero, bars.by_title["SegNet"].shown) == (75, False)


def test_a_difference_by_group_says_which_model_is_subtracted():
    table = group_table({"pug": (73.1, 70.0)}, ["U-Net", "SegNet"])
    assert table.heads == ("U-Net", "SegNet", "SegNet − U-Net")
    assert [cell.text for cell in table.rows[0][1]] == ["73.1", "70.0", "−3.1"]


def test_more_classes_than_networks_are_rows_and_their_confusions_are_shares_of_the_truth(published, page):
    names = [f"class {number}" for number in range(20)]
    scores = dict.fromkeys(names, 0.5)
    counts = tuple(tuple(30 if row == column else int(column == 0) * 10 for column in range(20)) for row in range(20))
    fields = {"iou": scores, "dice": scores, "boundary_f": scores}
    better = rescored(published.models[1], **{**fields, "iou": {**scores, "class 3": 0.75}}, confusion=counts)
    models = (rescored(published.models[0], **fields, confusion=()), better)  # as before 0.2
    models = tuple(changed(model, evaluations={"test": model.evaluations["test"]}) for model in models)
    classes = tuple(ClassInfo(name=name, colour="#123456") for name in names)
    data = changed(published.data, classes=classes, scored_classes=classes)
    result = changed(published, models=models, data=data, baselines=())
    iou, *_ = class_tables(result)
    assert iou.heads == ("U-Net", "SegNet")
    label, (first, second) = iou.rows[3]
    assert (label, first.text, second.text, first.best, second.best) == ("class 3", "50.0", "75.0", False, True)
    html = page(result)
    assert 'title="class 2 as class 0: 25.0 %, 10 pixels">25.0<' in html
    assert html.count(' pixels">') == 20 + 19
    assert 'class="confusion upright many"' in html
    assert html.count('<table class="confusion') == 1


def test_the_pareto_front_is_named_and_a_busy_machine_has_none_over_times(published):
    first, second = published.models
    worse = changed(rescored(second, miou=0.6), name="worse", title="Worse")
    result = changed(published, models=(worse, first, second))
    charts = {chart.name: chart for chart in pareto_charts(result)}
    assert list(charts) == ["parameters", "latency-median", "memory-inference", "training-time"]
    assert charts["parameters"].note == "Pareto front: 2 SegNet · 1 U-Net"
    assert [row[0::3] for row in charts["parameters"].rows[1:]] == [("U-Net", 1), ("SegNet", 1), ("Worse", 0)]
    busy = changed(first.cost, train_others=1.0)
    notes = {
        chart.name: chart.note for chart in pareto_charts(changed(result, models=(changed(first, cost=busy), second)))
    }
    assert notes["training-time"] == "Pareto front: not drawn, the machine was busy"
    assert notes["parameters"] == "Pareto front: 2 SegNet · 1 U-Net"
    assert pareto_charts(runs(published, 1)) == []


@pytest.mark.parametrize(
    ("text", "costs", "labels"),
    [
        (units.count, [0.96e6, 1.94e6], ["1.0 M", "1.5 M", "2.0 M"]),
        (units.byte_size, [786.6e3, 1.1e6], ["800.0 kB", "1.0 MB", "1.2 MB"]),
        (units.duration, [534, 1434], ["10.0 min", "15.0 min", "20.0 min", "25.0 min"]),
        (units.duration, [90, 110], ["80 s", "100 s", "120 s", "140 s"]),
        (units.duration, [1000, 8000], ["30.0 min", "60.0 min", "2.0 h"]),
        (units.milliseconds, [5, 5], ["4.00 ms", "6.00 ms", "8.00 ms"]),
    ],
)
def test_a_tick_of_a_cost_is_round_in_the_unit_of_its_label(text, costs, labels):
    chart = pareto_chart("cost", "Cost", [Point("", STYLES["unet"], cost, 0.5) for cost in costs], text)
    drawn = re.findall(r">([\d.]+ [a-zA-Z]+)</text>", chart.svg)
    assert drawn == labels


def test_synthetic_images_and_a_quick_look_are_named_first_and_no_commit_is_none(published, page):
    environment = changed(published.environment, commit="")
    html = page(changed(published, synthetic=True, quick=True, environment=environment))
    assert f"petseg {published.petseg}, {published.created[:10]}" in Page(html).text
    assert "unknown" not in Page(html).text
    words = Page(html[html.index("<body>") :]).text.strip()
    assert words.startswith("Trained on synthetic images: these figures mean nothing for real ones")
    assert html.index("<code>petseg compare</code> is the real thing.") < html.index('<div class="answer">')


def test_a_busy_machine_is_said_and_its_times_are_not_ranked(published, page):
    first, second = published.models
    cost = changed(first.cost, latency_ms=changed(first.cost.latency_ms, others=1.4))
    result = changed(published, models=(changed(first, cost=cost), second))
    for head in ("Latency, median", "95th percentile", "Training time"):
        assert any(cell.best for cell in cells(published, "Cost", head))
        assert not any(cell.best for cell in cells(result, "Cost", head))
    assert any(cell.best for cell in cells(result, "Cost", "Parameters"))
    assert "the machine was busy with other work (1.4 cores): times are not ranked" in Page(page(result)).text
    assert "busy" not in Page(page(published)).text
    assert "<dt>latency</dt>" in page(published)
    assert "<dt>latency</dt>" not in page(result)


def test_a_loss_that_exploded_and_only_settings_of_its_dataset_are_shown(published, page):
    (*rows, last) = published.models[1].history
    wild = changed(published.models[1], history=(*rows, changed(last, val_loss=7e10)))
    garden = changed(published.data, name="Garden")
    text = Page(page(changed(published, models=(published.models[0], wild), data=garden))).text
    assert "SegNet: the last validation loss is more than twice a guess's" in text
    assert "oxford_pets" not in text
    plain = Page(page(published)).text
    assert "a guess's" not in plain
    assert "data.oxford_pets.task" in plain


def test_pages_load_nothing_and_every_drawing_has_words_and_every_id_is_its_own(published, findings, page, tmp_path):
    for html, number in ((page(with_examples(published, tmp_path)), 6), (page(findings), 5)):
        parsed = Page(html)
        for tag, attributes in parsed.elements:
            assert tag not in {"iframe", "object", "embed"}
            for name in ("src", "href", "xlink:href", "srcset", "action"):
                link = attributes.get(name) or ""
                assert link.startswith(("data:", "#")) or not link or (tag == "a" and link.startswith("https://")), link
        assert len(parsed.all("script")) == 1, "the one that sorts tables"
        assert "@import" not in html
        assert all(target.startswith(("#", "data:image/")) for target in re.findall(r"url\(([^)]*)\)", html))
        assert set(re.findall(r"https?://[^\s\"<]+", html)) <= {"https://creativecommons.org/licenses/by-sa/4.0/"}
        assert all(image.get("alt") for image in parsed.all("img"))
        drawings = [svg for svg in parsed.all("svg") if svg.get("aria-hidden") != "true"]
        assert len(drawings) == number
        assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in drawings)
        ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
        assert len(set(ids)) == len(ids) > 0
        used = {link[1:] for _, attributes in parsed.elements if (link := attributes.get("href") or "").startswith("#")}
        used |= {(one["clip-path"] or "")[5:-1] for _, one in parsed.elements if "clip-path" in one}
        assert used <= set(ids)


def test_the_same_input_gives_the_same_bytes(published, findings, tmp_path):
    for record, write in ((with_examples(published, tmp_path), write_report), (findings, write_study_report)):
        path = tmp_path / f"{record.kind}.json"
        write_record(path, record)
        first = write(path, tmp_path / "deep" / "first.html").read_bytes()
        assert write(path, tmp_path / "second.html").read_bytes() == first
        assert write(str(path), str(tmp_path / "third.html")).read_bytes() == first
        assert str(tmp_path).encode() not in first


def test_values_are_escaped(published, findings, page, tmp_path):
    attack = "<script>alert(1)</script>"
    data = changed(published.data, name=attack, left_out={attack: attack})
    models = tuple(
        rescored(changed(model, title=attack), group_miou={f'{attack}_$\\frac{{"': 0.5, "pug": 0.6})
        for model in published.models
    )
    result = changed(published, models=models, data=data, command=f"{attack}$x$", created=attack)
    study = changed(findings, title=attack, models=dict.fromkeys(findings.models, attack))
    for html in (page(with_examples(result, tmp_path)), page(study)):
        assert html.count("<script") == 1
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
        assert len(Page(html).all("script")) == 1
    # the file itself is called so, as a user's own dataset may have it; no file name holds a /
    html = page(with_examples(published, tmp_path, "<script>alert('pet')<\u2215script>_1"))
    assert html.count("<script") == 1
    assert html.count("&lt;script&gt;alert(&#39;pet&#39;)") > 1  # as a name and as words for each image


def test_missing_images_are_counted_and_little_still_reports(published, page, tmp_path):
    result = with_examples(published, tmp_path)
    (tmp_path / result.examples[0].files["unet"]).unlink()
    assert "Images of 1 of 1 examples are not part of this copy." in Page(page(result)).text
    models = tuple(rescored(changed(model, history=()), group_miou={}) for model in published.models)
    words = Page(page(changed(published, models=models, baselines=()))).words
    assert not {"Training", "By group", "Images"} & set(words)


def test_plots_differ_without_colour_follow_the_page_s_colours_and_hold_their_data(published):
    styles = model_styles(["unet", "segnet", *(f"model-{number}" for number in range(10))])
    assert len({(style.colour, style.dash, style.marker) for style in styles.values()}) == 12
    assert (styles["unet"].colour, styles["segnet"].colour) == ("#0072B2", "#D55E00")
    loss, miou = history_charts(published)
    last = published.models[0].history[-1]
    assert f"U-Net, validation {last.val_loss:.4g}" in loss.label
    assert len(miou.rows) == 1 + 2 * 30
    for literal in (">cross-entropy at 128 px, nats<", "currentColor", "var(--line-0072b2)"):  # text stays text
        assert literal in loss.svg, literal
    for literal in ("#010203", "#fdfefd", "#0072b2", "#000000", "DejaVu", "<style", "<metadata", "http"):
        assert literal not in loss.svg.replace("--line-0072b2", ""), literal


def test_a_study_s_page_holds_every_difference_and_network(findings, page):
    html = page(findings)
    text = Page(html).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "same base width: U-Net − SegNet: +6.2 points of mIoU (95 % interval 5.6 to 6.7), latency × 0.99" in text
    for experiment in findings.experiments:
        section = html[html.index(f'<details class="print" id="{experiment.name}">') :].partition("</details>")[0]
        assert section.count("<tr>") == 1 + len(experiment.differences)
    networks = {arm.runs for experiment in findings.experiments for arm in experiment.arms}
    table = html[html.index('<details class="print" id="every-network">') :].partition("</details>")[0]
    assert table.count("<tr>") == 1 + len(networks)
    assert 'class="wide sort"' in table
    assert findings.data.images in text
    closed = re.findall(r'<details class="print" id="([^"]+)">', html)
    assert re.findall(r'<li><a href="#([^"]+)">', html) == closed, "the contents name every closed part, in order"
    assert not {"corrupted-images"} & set(closed), "but none that is not there"


def test_a_study_s_page_says_groups_where_intervals_are_over_groups(findings, page):
    grouped = changed(findings, settings={**findings.settings, "data.groups": ("^P[0-9]+",)})
    for given, over in ((findings, "images"), (grouped, "groups")):
        text = Page(page(given)).text
        assert re.findall(r"(?:intervals|bootstrap|one seed,) over (\w+)", text) == [over] * 3
        assert f"Difference {over.capitalize()} Points" in text


def test_a_study_without_a_run_still_reports(findings, page):
    experiments = []
    for experiment in findings.experiments:
        arms = tuple(changed(arm, scores=None, cost=None, runs=(), seeds=()) for arm in experiment.arms)
        gone = {"difference": None, "latency_ratio": None, "seeds": ()}
        differences = tuple(changed(one, **gone) for one in experiment.differences)
        experiments.append(changed(experiment, arms=arms, differences=differences))
    empty = {"robustness": (), "corrupted": {}, "subsets": (), "groups": {}, "tuning": None, "data": None}
    empty |= {"runs": {"missing": 141}, "experiments": tuple(experiments)}
    text = Page(page(changed(findings, **empty))).text
    for words in (
        "No comparison has been run yet.",
        "141 runs missing",
        "The study is not finished.",
        "96 px, 0 of 5 seeds",
    ):
        assert words in text


def test_a_missing_file_a_folder_and_another_kind_are_one_line(published, tmp_path):
    (tmp_path / "comparison.json").write_text('{"kind": "run"}', encoding="utf-8")
    refused(r"comparison\.json: kind is 'run'; wanted 'comparison'", write_report, tmp_path / "comparison.json")
    for path in (tmp_path / "none.json", tmp_path):
        refused(r" is no file; a report is made from a comparison\.json: run `pet", write_report, path)
    write_record(tmp_path / "comparison.json", published)
    with pytest.raises(PetsegError, match=r"is a folder; a report is one HTML file: name a file in it"):
        write_report(tmp_path / "comparison.json", tmp_path)


def test_a_page_replaces_nothing_but_a_page(published, tmp_path):
    write_record(tmp_path / "comparison.json", published)
    (tmp_path / "thesis.html").write_text("<h1>Mine</h1>")
    told = r"thesis\.html is no report of petseg; name a new file \(--out\), or remove it$"
    refused(told, write_report, tmp_path / "comparison.json", tmp_path / "thesis.html")
    assert (tmp_path / "thesis.html").read_text() == "<h1>Mine</h1>"
    first = write_report(tmp_path / "comparison.json")
    assert write_report(tmp_path / "comparison.json") == first


def test_only_images_beside_the_comparison_are_embedded(published, tmp_path):
    result = with_examples(published, tmp_path)
    (tmp_path / "secret.png").write_bytes(b"")
    for name in ("../secret.png", "secret.svg"):
        example = changed(result.examples[0], files={**result.examples[0].files, "image": name})
        told = f"image {name!r}; a report embeds .png, .jpg in its own folder: was the file edited?"
        refused(re.escape(told), list, read_gallery(changed(result, examples=(example,)), tmp_path / "run"))


@pytest.mark.parametrize("source", ["official/comparison.json", "study/findings.json"])
def test_a_report_needs_no_torch(tmp_path, source):
    code = (
        "import sys; sys.modules['torch'] = None; from petseg.cli import main\n"
        f"sys.argv = ['petseg', 'report', {str(RESULTS / source)!r}, '--out', {str(tmp_path / 'a.html')!r}]; main()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "a.html").stat().st_size > 10_000
