"""The report and the README's table, from comparisons whose figures are made."""

from __future__ import annotations

import importlib
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from petseg.data.oxford_pets import CLASS_COLOURS
from petseg.errors import PetsegError
from petseg.report import results_table, tables, write_report
from petseg.report.page import MADE_DATA, findings, read_examples
from petseg.report.plots import breed_plot, breed_words, loss_curves, model_styles

ROOT = Path(__file__).parents[2]

# fmt: off
BREEDS = [
    "Abyssinian", "american_bulldog", "american_pit_bull_terrier", "basset_hound", "beagle", "Bengal", "Birman",
    "Bombay", "boxer", "British_Shorthair", "chihuahua", "Egyptian_Mau", "english_cocker_spaniel",
    "english_setter", "german_shorthaired", "great_pyrenees", "havanese", "japanese_chin", "keeshond",
    "leonberger", "Maine_Coon", "miniature_pinscher", "newfoundland", "Persian", "pomeranian", "pug", "Ragdoll",
    "Russian_Blue", "saint_bernard", "samoyed", "scottish_terrier", "shiba_inu", "Siamese", "Sphynx",
    "staffordshire_bull_terrier", "wheaten_terrier", "yorkshire_terrier",
]
# fmt: on

CLASSES = ["pet", "background", "border"]


def made_evaluation(split: str, miou: float, rng: np.random.Generator) -> dict[str, Any]:
    shares = {"pet": miou + 0.08, "background": miou + 0.16, "border": miou - 0.24}
    return {
        "split": split,
        "images": 3669 if split == "test" else 368,
        "frame": "each image's own size",
        "cross_entropy": round(0.95 - 0.93 * miou, 4),
        "cross_entropy_frame": "128 px",
        "cross_entropy_200": round(0.96 - 0.93 * miou, 4),
        "miou": miou,
        "iou": shares,
        "dice": {name: 2 * share / (1 + share) for name, share in shares.items()},
        "mean_dice": miou + 0.1,
        "pixel_accuracy": miou + 0.17,
        "boundary_f": {name: share - 0.1 for name, share in shares.items()},
        "mean_boundary_f": miou - 0.1,
        "image_miou": {"mean": miou - 0.01, "median": miou + 0.01},
        "breed_miou": {name: round(miou + float(rng.normal(0, 0.04)), 4) for name in BREEDS},
    }


def made_model(name: str, title: str, miou: float, scale: float, rng: np.random.Generator) -> dict[str, Any]:
    history = [
        {
            "epoch": epoch,
            "seconds": 40.1,
            "learning_rate": 0.003,
            "train_loss": 0.3 / scale + 0.7 * math.exp(-epoch / 6),
            "val_loss": 0.33 / scale + 0.6 * math.exp(-epoch / 6) + float(rng.normal(0, 0.015)),
            "val_miou": miou - 0.4 * math.exp(-epoch / 7) + float(rng.normal(0, 0.008)),
        }
        for epoch in range(1, 31)
    ]
    return {
        "name": name,
        "title": title,
        "learning_rate": 0.003,
        "best_epoch": max(history, key=lambda row: row["val_miou"])["epoch"],
        "cost": {
            "parameters": int(1_620_000 * scale),
            "macs": int(660_000_000 * scale),
            "activation_bytes": int(9_000_000 * scale**4),
            "training_activation_bytes_per_image": int(21_000_000 * scale**2),
            "latency_ms": {"p50": 7.6 * scale, "p95": 8.8 * scale, "repeats": 50, "batch": 1, "size": 128},
            "train_seconds": 1000.0 * scale,
            "train_images_per_second": 99.0 / scale,
        },
        "history": history,
        "evaluations": {"val": made_evaluation("val", miou - 0.01, rng), "test": made_evaluation("test", miou, rng)},
    }


def made_comparison() -> dict[str, Any]:
    """A comparison in the schema of petseg.experiments.compare; every number in it is made."""
    rng = np.random.default_rng(0)
    baselines = []
    for name, title, miou in (("prior", "All background", 0.195), ("mean_mask", "Mean mask", 0.378)):
        scored = made_evaluation("test", miou, rng)
        if name == "prior":
            scored |= {"dice": {"pet": 0.0, "background": 0.737, "border": 0.0}, "mean_dice": 0.246}
            scored |= {"iou": {"pet": 0.0, "background": 0.584, "border": 0.0}}
            scored |= {"boundary_f": {"pet": None, "background": 0.0, "border": None}, "mean_boundary_f": None}
        baselines.append({"name": name, "title": title, "evaluations": {"test": scored}})
    return {
        "kind": "comparison",
        "version": 1,
        "petseg": "0.1.0",
        "command": "petseg compare --protocol official --set train.epochs=30",
        "created": "2026-11-22T09:00:00Z",
        "made_data": False,
        "protocol": "official",
        "task": "trimap",
        "classes": CLASSES,
        "split": "test",
        "seeds": [0],
        "size": 128,
        "config": {
            "model": {"width": 16, "depth": 4, "batch_norm": True},
            "data": {"size": 128, "task": "trimap", "protocol": "official"},
            "train": {"epochs": 30, "batch_size": 32, "optimizer": "adamw", "weight_decay": 0.01, "clip": None},
        },
        "environment": {
            "commit": "abc1234",
            "device": "cpu",
            "processor": "Intel(R) Xeon(R) Processor",
            "threads": 2,
            "precision": "bf16",
            "torch": "2.13.0",
            "python": "3.11.7",
            "petseg": "0.1.0",
            "platform": "Linux-6.1-x86_64",
        },
        "data": {
            "source": "official archives",
            "pairs": 7390,
            "train": 3312,
            "val": 368,
            "test": 3669,
            "left_out": {"beagle_1": "its mask holds the value 7"},
        },
        "models": [
            made_model("unet", "U-Net", 0.731, 1.2, rng),
            made_model("segnet", "SegNet", 0.677, 1.0, rng),
        ],
        "baselines": baselines,
        "difference": {
            "a": "unet",
            "b": "segnet",
            "split": "test",
            "metric": "mIoU",
            "points": 5.4,
            "interval": [5.0, 5.8],
            "confidence": 0.95,
            "resamples": 2000,
            "share_a_better": 1.0,
            "over": "images; one seed",
        },
        "examples": [
            made_example(name, why)
            for name, why in (
                ("Abyssinian_1", "best"),
                ("pug_12", "median"),
                ("Sphynx_101", "differ"),
                ("Bombay_7", "worst"),
            )
        ],
    }


def made_example(name: str, why: str) -> dict[str, Any]:
    roles = {"image": "jpg", "truth": "png", "unet": "png", "segnet": "png"}
    files = {role: f"examples/{name}.{role}.{ending}" for role, ending in roles.items()}
    return {"name": name, "why": why, "miou": {"unet": 0.93, "segnet": 0.884}, "files": files}


def draw_examples(comparison: dict[str, Any], folder: Path) -> None:
    """Draws a made pet for every example: a photo, a true mask and each model's rougher mask."""
    for at, example in enumerate(comparison["examples"]):
        rng = np.random.default_rng(at)
        size = (300, 225) if at % 3 != 1 else (225, 300)
        for role, name in example["files"].items():
            if role == "image":
                noise = rng.normal(0, 9, (size[1], size[0], 3))
                picture = Image.new("RGB", size, (126, 150, 105))
                draw_pet(picture, (188, 132, 84), (188, 132, 84), 0)
                picture = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
            else:
                picture = Image.new("RGB", size, CLASS_COLOURS["background"])
                draw_pet(
                    picture,
                    CLASS_COLOURS["pet"],
                    CLASS_COLOURS["border"],
                    {"truth": 0, "unet": 4, "segnet": 12}[role],
                    at,
                )
            (folder / name).parent.mkdir(exist_ok=True)
            picture.save(folder / name)


def draw_pet(picture: Image.Image, inside: Any, outside: Any, rough: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    width, height = picture.size
    draw = ImageDraw.Draw(picture)
    for grow, colour in ((6, outside), (0, inside)):
        for x, y, across, down in (
            (0.5, 0.68, 0.24, 0.25),
            (0.5, 0.36, 0.17, 0.19),
            (0.4, 0.2, 0.05, 0.1),
            (0.6, 0.2, 0.05, 0.1),
        ):
            shift = rng.normal(0, rough / 2 + 0.01, 2) if rough else (0, 0)
            x0, y0 = x * width + shift[0], y * height + shift[1]
            a, b = across * width + grow, down * height + grow
            draw.ellipse((x0 - a, y0 - b, x0 + a, y0 + b), fill=colour)


@pytest.fixture
def comparison() -> dict[str, Any]:
    return made_comparison()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    """Writes a comparison.json and returns its path."""

    def written(comparison: Any) -> Path:
        path = tmp_path / "comparison.json"
        path.write_text(comparison if isinstance(comparison, str) else json.dumps(comparison), encoding="utf-8")
        return path

    return written


class Page(HTMLParser):
    """What the tests ask of a page: its text, and every element with its attributes."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> repeats an attribute: {attrs}"
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


# --- the sentences --------------------------------------------------------------------------------------------------


def answer(comparison: dict[str, Any], points: float, interval: list[float]) -> str:
    comparison["difference"] |= {"points": points, "interval": interval}
    return findings(comparison)[0]


def test_findings_name_the_leader_and_the_interval(comparison: dict[str, Any]) -> None:
    assert answer(comparison, 5.42, [5.0, 5.8]) == (
        "U-Net leads SegNet by 5.4 points of mIoU on the test split (95 % interval 5.0 to 5.8, over images; one seed)."
    )
    assert answer(comparison, -5.42, [-5.8, -5.0]) == (
        "SegNet leads U-Net by 5.4 points of mIoU on the test split (95 % interval 5.0 to 5.8, over images; one seed)."
    )


@pytest.mark.parametrize("interval", [[-0.9, 0.3], [0.0, 0.3], [-0.9, 0.0]])
def test_findings_show_no_difference_when_the_interval_holds_zero(
    comparison: dict[str, Any], interval: list[float]
) -> None:
    assert answer(comparison, -0.31, interval).startswith(
        "No difference shown: U-Net minus SegNet is −0.3 points of mIoU on the test split (95 % interval "
    )
    assert findings(comparison)[1].startswith("U-Net costs ")
    assert findings(comparison)[1].endswith(" of SegNet at 128 px.")


def test_findings_say_that_pets_were_made(comparison: dict[str, Any]) -> None:
    comparison["made_data"] = True
    assert answer(comparison, 5.4, [5.0, 5.8]).startswith("On made pets, U-Net leads SegNet")
    assert answer(comparison, 0.1, [-0.2, 0.3]).startswith("On made pets, no difference shown")


LATENCY, MACS, MEMORY = "latency", "multiply-accumulates", "activation memory"


@pytest.mark.parametrize(
    ("latency", "macs", "memory", "told"),
    [
        (1.2, 1.1, 2.3, f"1.2 times the {LATENCY}, 1.1 times the {MACS} and 2.3 times the {MEMORY}"),
        (0.8, 0.5, 0.25, f"only 0.80 times the {LATENCY}, 0.50 times the {MACS} and 0.25 times the {MEMORY}"),
        (1.2, 0.98, 0.5, f"1.2 times the {LATENCY} and the same {MACS}, but only 0.50 times the {MEMORY}"),
        (1.02, 1.0, 0.98, f"the same {LATENCY}, {MACS} and {MEMORY}"),
        (1.2, 1.0, 1.0, f"1.2 times the {LATENCY}, and the same {MACS} and {MEMORY}"),
        (1.0, 1.04, 12.3, f"1.04 times the {MACS}, 12 times the {MEMORY} and the same {LATENCY}"),
        (1.0, 1.0, 0.5, f"the same {LATENCY} and {MACS}, but only 0.50 times the {MEMORY}"),
        (None, 1.1, None, f"1.1 times the {MACS}"),
    ],
)
def test_findings_tell_the_leaders_cost(
    comparison: dict[str, Any], latency: float | None, macs: float | None, memory: float | None, told: str
) -> None:
    for model, scale in zip(comparison["models"], ((latency, macs, memory), (1, 1, 1)), strict=True):
        values = [None if ratio is None else 1000 * ratio for ratio in scale]
        model["cost"] = {"latency_ms": {"p50": values[0]}, "macs": values[1], "activation_bytes": values[2]}
    assert findings(comparison)[1] == f"It costs {told} at 128 px."
    comparison["models"].reverse()  # the order of the models does not matter, their names do
    assert findings(comparison)[1] == f"It costs {told} at 128 px."


def test_the_cost_is_that_of_the_leader(comparison: dict[str, Any]) -> None:
    for model, macs in zip(comparison["models"], (200, 100), strict=True):
        model["cost"] = {"macs": macs}
    answer(comparison, -1.0, [-1.5, -0.5])
    assert findings(comparison)[1] == "It costs only 0.50 times the multiply-accumulates at 128 px."


def test_costs_that_were_not_measured_are_not_told(comparison: dict[str, Any]) -> None:
    for model in comparison["models"]:
        model["cost"] = {}
    assert len(findings(comparison)) == 1


# --- the table ------------------------------------------------------------------------------------------------------


def rows_of(comparison: dict[str, Any]) -> dict[tuple[str, str], list[tables.Cell]]:
    return {
        (row.label, row.remark): list(row.cells)
        for group in tables.comparison_table(comparison)
        for row in group.rows
        if group.title != "Validation"
    }


def test_the_better_model_is_marked_and_never_a_baseline(comparison: dict[str, Any]) -> None:
    comparison["baselines"][0]["evaluations"]["test"]["pixel_accuracy"] = 0.999
    rows = rows_of(comparison)
    assert [cell.best for cell in rows["mIoU", "%"]] == [True, False, False, False]
    assert [cell.best for cell in rows["Pixel accuracy", "%"]] == [True, False, False, False]
    assert [cell.best for cell in rows["Cross-entropy", "at 128 px"]] == [True, False, False, False]
    assert [cell.best for cell in rows["Parameters", ""]] == [False, True, False, False]
    assert [cell.text for cell in rows["Parameters", ""]] == ["1.9 M", "1.6 M", "–", "–"]
    assert [cell.best for cell in rows["Training speed", "images/s"]] == [False, True, False, False]


def test_figures_that_print_the_same_are_not_marked(comparison: dict[str, Any]) -> None:
    for model, share in zip(comparison["models"], (0.90001, 0.90002), strict=True):
        model["evaluations"]["test"]["pixel_accuracy"] = share
    assert not any(cell.best for cell in rows_of(comparison)["Pixel accuracy", "%"])


def test_miou_is_not_marked_when_no_difference_is_shown(comparison: dict[str, Any]) -> None:
    comparison["difference"] |= {"points": 0.1, "interval": [-0.2, 0.4]}
    assert not any(cell.best for cell in rows_of(comparison)["mIoU", "%"])


def test_an_absent_class_is_a_dash_and_an_absent_row_is_left_out(comparison: dict[str, Any]) -> None:
    comparison["models"][0]["evaluations"]["test"]["iou"]["border"] = None
    for column in [*comparison["models"], *comparison["baselines"]]:
        del column["evaluations"]["test"]["cross_entropy_200"]
    rows = rows_of(comparison)
    assert [cell.text for cell in rows["IoU border", "%"]] == ["–", "43.7", "0.0", "13.8"]
    assert not any(cell.best for cell in rows["IoU border", "%"][2:])
    assert ("Cross-entropy", "at 200 px") not in rows


def test_the_original_stands_in_the_table_of_its_own_split_only(comparison: dict[str, Any]) -> None:
    def originals() -> list[list[str]]:
        groups = tables.comparison_table(comparison)
        return [
            [cell.text for cell in row.cells]
            for group in groups
            for row in group.rows
            if row.label == "Original comparison"
        ]

    assert originals() == []
    assert "only protocol seed" in tables.original_note(comparison)
    comparison |= {"protocol": "seed", "split": "val"}
    assert originals() == [["0.3614", "0.4176", "–", "–"]]
    assert "they stand in the table" in tables.original_note(comparison)


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (tables.percent, 0.99951, "100.0"),
        (tables.percent, math.nan, "–"),
        (tables.loss, 1.09861, "1.0986"),
        (tables.count, 1_944_000, "1.9 M"),
        (tables.count, 730_000_000, "0.73 G"),
        (tables.count, 123_456_789, "0.12 G"),
        (tables.count, 999_999, "1.0 M"),
        (tables.count, 31_040_000, "31.0 M"),
        (tables.count, 100, "0.10 k"),
        (tables.count, 0, "0"),
        (tables.byte_size, 12_345_678, "12.3 MB"),
        (tables.byte_size, 999_999, "1.0 MB"),
        (tables.byte_size, 0, "0 B"),
        (tables.duration, 1180, "19.7 min"),
        (tables.duration, 3.21, "3.2 s"),
        (tables.duration, 119.9, "2.0 min"),
        (tables.duration, 7200, "2.0 h"),
        (tables.milliseconds, 9.999, "10.0 ms"),
        (tables.milliseconds, 99.97, "100 ms"),
        (tables.whole, 7390, "7,390"),
        (tables.points, -0.04, "0.0"),
        (tables.points, -1.25, "−1.2"),
    ],
)
def test_numbers_are_formatted(function: Callable[[float], str], value: float, text: str) -> None:
    assert function(value) == text


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_holds_answer_table_plots_pictures_and_settings(
    comparison: dict[str, Any], write: Callable[[Any], Path], tmp_path: Path
) -> None:
    draw_examples(comparison, tmp_path)
    path = write_report(write(comparison))
    assert path == tmp_path / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for sentence in findings(comparison):
        assert sentence in text
    for told in (
        "0.2702",
        "Models differ most",
        "left out: beagle_1",
        "train.weight_decay",
        "petseg compare --protocol official --set train.epochs=30",
        "CC BY-SA 4.0",
        "Parkhi",
        "3,669 images, each image's own size",
        "2026-11-22 09:00 UTC",
        *BREEDS[:1],
    ):
        assert told in text, told
    assert MADE_DATA not in text
    assert len(page.all("img")) == 16
    assert all(
        (image["src"] or "").startswith(("data:image/png;base64,", "data:image/jpeg;")) for image in page.all("img")
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["comparison.json", "examples", "report.html"]


def test_made_pets_are_told_first(comparison: dict[str, Any], write: Callable[[Any], Path]) -> None:
    comparison["made_data"] = True
    html = write_report(write(comparison)).read_text(encoding="utf-8")
    assert Page(html[html.index("<body>") :]).text.strip().startswith(MADE_DATA)


def test_a_taste_is_told_above_the_answer(comparison: dict[str, Any], write: Callable[[Any], Path]) -> None:
    comparison["taste"] = True
    text = write_report(write(comparison)).read_text(encoding="utf-8")
    told = text.index("<code>petseg compare</code> is the real thing.")
    assert text.index("<header>") < told < text.index('<div class="answer">')


def test_the_page_loads_nothing(comparison: dict[str, Any], write: Callable[[Any], Path], tmp_path: Path) -> None:
    draw_examples(comparison, tmp_path)
    html = write_report(write(comparison)).read_text(encoding="utf-8")
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in {"script", "iframe", "object", "embed"}
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            link = attributes.get(name) or ""
            assert link.startswith(("data:", "#")) or not link or (tag == "a" and link.startswith("https://")), link
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert set(re.findall(r"https?://[^\s\"<]+", html)) == {"https://creativecommons.org/licenses/by-sa/4.0/"}


def test_every_picture_has_words_and_every_id_is_unique(
    comparison: dict[str, Any], write: Callable[[Any], Path], tmp_path: Path
) -> None:
    draw_examples(comparison, tmp_path)
    page = Page(write_report(write(comparison)).read_text(encoding="utf-8"))
    assert all(image.get("alt") for image in page.all("img"))
    drawings = [svg for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
    assert len(drawings) == 4
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in drawings)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids) > 0
    used = {link[1:] for _, attributes in page.elements if (link := attributes.get("href") or "").startswith("#")}
    used |= {(attributes["clip-path"] or "")[5:-1] for _, attributes in page.elements if "clip-path" in attributes}
    assert used == set(ids)


def test_the_same_input_gives_the_same_bytes(
    comparison: dict[str, Any], write: Callable[[Any], Path], tmp_path: Path
) -> None:
    draw_examples(comparison, tmp_path)
    path = write(comparison)
    first = write_report(path, tmp_path / "deep" / "first.html").read_bytes()
    assert write_report(path, tmp_path / "second.html").read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_values_are_escaped(comparison: dict[str, Any], write: Callable[[Any], Path], tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    example = made_example(f"{attack}_1", attack)
    example["files"] = {role: f"examples/{role}.png" for role in example["files"]}
    comparison |= {"examples": [example], "command": f"{attack}$x$", "protocol": attack}
    comparison["config"]["train"][attack] = f'"{attack}'
    comparison["data"]["left_out"] = {attack: attack}
    for model in comparison["models"]:
        model["title"] = f"{attack}{model['title']}"
        for evaluation in model["evaluations"].values():
            evaluation["breed_miou"] = {f'{attack}_$\\frac{{"': 0.5, "pug": 0.6}
    (tmp_path / "examples").mkdir()
    for role in example["files"]:
        Image.new("RGB", (8, 8)).save(tmp_path / "examples" / f"{role}.png")
    html = write_report(write(comparison)).read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; 1" in html
    assert all(tag != "script" for tag, _ in Page(html).elements)


def test_a_picture_named_with_a_script_tag_stays_text(
    comparison: dict[str, Any], write: Callable[[Any], Path], tmp_path: Path
) -> None:
    """The file itself is called so, as a user's own data set may have it."""
    name = "<script>alert('pet')<\u2215script>_1"  # a slash, which no file name holds, is one that looks like it
    example = made_example(name, "best")
    example["files"] = {role: f"examples/{name}.{role}.png" for role in example["files"]}
    comparison |= {"examples": [example]}
    (tmp_path / "examples").mkdir()
    for file in example["files"].values():
        Image.new("RGB", (8, 8)).save(tmp_path / file)
    html = write_report(write(comparison)).read_text(encoding="utf-8")
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&#39;pet&#39;)") > 1  # as a name and as words for each picture
    assert all(tag != "script" for tag, _ in Page(html).elements)


@pytest.mark.parametrize(
    ("kept", "told"),
    [(0, "The pictures are not part of this copy."), (3, "The pictures of 1 of 4 examples are not part of this copy.")],
)
def test_missing_pictures_are_told_in_one_sentence(
    comparison: dict[str, Any], write: Callable[[Any], Path], tmp_path: Path, kept: int, told: str
) -> None:
    draw_examples(comparison, tmp_path)
    for example in comparison["examples"][kept:]:
        (tmp_path / example["files"]["unet"]).unlink()
    page = Page(write_report(write(comparison)).read_text(encoding="utf-8"))
    assert told in page.text
    assert len(page.all("img")) == 4 * kept


def test_a_comparison_of_little_still_reports(comparison: dict[str, Any], write: Callable[[Any], Path]) -> None:
    del comparison["baselines"], comparison["examples"]
    for model in comparison["models"]:
        model |= {"history": [], "cost": {}}
        model["evaluations"]["test"].pop("breed_miou")
    page = Page(write_report(write(comparison)).read_text(encoding="utf-8"))
    assert "Training" not in page.words
    assert "By breed" not in page.words
    assert "not part of this copy" not in page.text


def test_one_model_alone_is_reported_without_a_difference(
    comparison: dict[str, Any], write: Callable[[Any], Path]
) -> None:
    comparison |= {"difference": None, "models": comparison["models"][:1], "examples": []}
    assert findings(comparison) == [
        "U-Net reaches 73.1 % mIoU on the test split; it was compared with no model.",
    ]
    text = Page(write_report(write(comparison)).read_text(encoding="utf-8")).text
    assert "interval" not in text.lower()
    assert "✓ 7" not in text


@pytest.mark.parametrize(
    ("task", "border", "told"),
    [("trimap", "pet", False), ("species", "pet", True), ("pet", "ignore", True), ("pet", "background", False)],
)
def test_the_legend_names_pixels_that_do_not_count(
    comparison: dict[str, Any], write: Callable[[Any], Path], tmp_path: Path, task: str, border: str, told: bool
) -> None:
    draw_examples(comparison, tmp_path)
    comparison["task"] = task
    comparison["config"]["data"]["border"] = border
    assert ("not counted " in Page(write_report(write(comparison)).read_text(encoding="utf-8")).text) == told


def test_one_epoch_and_three_models_are_drawn(comparison: dict[str, Any], write: Callable[[Any], Path]) -> None:
    third = json.loads(json.dumps(comparison["models"][1])) | {"name": "unet_bare", "title": "U-Net without skips"}
    comparison["models"].append(third)
    for model in comparison["models"]:
        model["history"] = model["history"][:1]
        model["best_epoch"] = 1
    comparison["examples"] = []
    text = Page(write_report(write(comparison)).read_text(encoding="utf-8")).text
    assert text.count("U-Net without skips") > 3
    styles = model_styles(["unet", "segnet", "unet_bare"])
    assert len({(style.colour, style.dash, style.marker) for style in styles.values()}) == 3
    assert (styles["unet"].colour, styles["segnet"].colour) == ("#0072B2", "#D55E00")


def test_plots_follow_the_pages_colours_and_tell_their_numbers(comparison: dict[str, Any]) -> None:
    history = comparison["models"][0]["history"]
    lowest = min(history, key=lambda row: row["val_loss"])
    drawing = loss_curves(comparison)
    assert drawing is not None
    assert f"lowest {lowest['val_loss']:.4f} at epoch {lowest['epoch']}" in drawing.label
    assert "currentColor" in drawing.svg
    assert "var(--line-0072b2)" in drawing.svg
    for literal in ("#010203", "#fdfefd", "#0072b2", "#000000", "DejaVu", "<style", "<metadata", "http"):
        assert literal not in drawing.svg.replace("--line-0072b2", ""), literal
    assert ">U-Net, validation<" in drawing.svg  # text stays text


def test_breeds_are_told_by_lead(comparison: dict[str, Any]) -> None:
    for model, scores in zip(comparison["models"], ((0.8, 0.6, 0.5), (0.7, 0.65, None)), strict=True):
        model["evaluations"]["test"]["breed_miou"] = dict(zip(("great_pyrenees", "pug", "Bombay"), scores, strict=True))
    assert breed_words(comparison) == (
        "U-Net is ahead of SegNet in 1 of 2 breeds; the widest gap is 10.0 points for U-Net on great pyrenees. "
        "U-Net scores highest on great pyrenees (80.0 %) and lowest on pug (60.0 %)."
    )
    drawing = breed_plot(comparison)
    assert drawing is not None
    assert "Bombay" not in drawing.svg  # SegNet has no figure there


# --- errors ---------------------------------------------------------------------------------------------------------


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path, write: Callable[[Any], Path]) -> None:
    with pytest.raises(PetsegError, match=r"none\.json does not exist; .* name one, or run `petseg compare`"):
        write_report(tmp_path / "none.json")
    with pytest.raises(PetsegError, match=r"is a folder; a report is made from a comparison\.json"):
        write_report(tmp_path)
    with pytest.raises(PetsegError, match=r"is a folder; a report is one HTML file: name a file in it"):
        write_report(write(made_comparison()), tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", r"is not valid JSON \(.*line 1.*\); wanted a comparison\.json: run `petseg compare` again"),
        ("[]", r"holds kind 'list'; a report is made from kind 'comparison'"),
        ('{"kind": "run"}', r"holds kind 'run'; a report is made from kind 'comparison': name the comparison\.json"),
        ('{"kind": "comparison", "version": 2}', r"has version 2; this petseg reads version 1: run `petseg compare`"),
        ('{"kind": "comparison", "version": 1}', r"command is missing; created is missing; .* run it again"),
    ],
)
def test_a_file_of_another_kind_is_told(write: Callable[[Any], Path], text: str, told: str) -> None:
    with pytest.raises(PetsegError, match=told):
        write_report(write(text))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda c: c["models"][1].pop("cost"), r"models\[1\]\.cost is missing"),
        (lambda c: c["models"].append(3), r"models\[2\] is not an object"),
        (lambda c: c["models"][0]["history"][4].pop("epoch"), r"models\[0\]\.history\[4\]\.epoch is missing"),
        (lambda c: c["examples"][0].pop("why"), r"examples\[0\]\.why is missing"),
        (lambda c: c["baselines"][0].pop("title"), r"baselines\[0\]\.title is missing"),
        (lambda c: c.update(size="128"), r'size is "128", not a whole number'),
        (lambda c: c.pop("difference"), r"difference is missing"),
        (lambda c: c["models"].clear(), r"models is empty"),
        (lambda c: c["difference"].pop("interval"), r"difference\.interval is missing"),
        (lambda c: c["difference"].update(interval=[1]), r"difference\.interval is \[1\], not two numbers"),
        (lambda c: c["difference"].update(a="vgg"), r"difference\.a is 'vgg', none of the models unet, segnet"),
    ],
)
def test_a_missing_or_wrong_key_is_named(
    comparison: dict[str, Any], write: Callable[[Any], Path], spoil: Callable[[dict[str, Any]], Any], told: str
) -> None:
    spoil(comparison)
    with pytest.raises(PetsegError, match=rf"{told}.*; wanted the keys that `petseg compare` writes: run it again"):
        write_report(write(comparison))


def test_only_pictures_beside_the_comparison_are_embedded(comparison: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"")
    comparison["examples"][0]["files"]["image"] = "../secret.png"
    with pytest.raises(PetsegError, match=r"picture '\.\./secret\.png', which lies outside its folder; .* edited"):
        read_examples(comparison, tmp_path / "run")
    comparison["examples"][0]["files"]["image"] = "secret.svg"
    with pytest.raises(PetsegError, match=r"picture 'secret\.svg'; a report embeds \.png, \.jpg, \.jpeg: convert it"):
        read_examples(comparison, tmp_path)


def test_a_failed_write_leaves_the_old_report(
    comparison: dict[str, Any], write: Callable[[Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison["examples"] = []
    path = write(comparison)
    (tmp_path / "report.html").write_text("old", encoding="utf-8")

    def broken(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(PetsegError, match=r"report\.html: cannot be written \(disk full\)"):
        write_report(path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["comparison.json", "report.html"]


def test_importing_the_report_imports_no_torch() -> None:
    code = "import sys, petseg.report; sys.exit(any(name.split('.')[0] == 'torch' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the README -----------------------------------------------------------------------------------------------------


def cells(table: str) -> list[list[str]]:
    return [line[2:-2].split(" | ") for line in table.splitlines() if line.startswith("| ")]


def test_results_table_of_two_comparisons(comparison: dict[str, Any]) -> None:
    seed = json.loads(json.dumps(comparison)) | {"protocol": "seed", "split": "val", "seeds": [0, 1, 2]}
    for model in comparison["models"]:
        model["evaluations"]["val"].pop("cross_entropy_200")
    table = results_table([comparison, seed])
    rows = cells(table)
    assert "|".join(rows[0]) == (
        "Protocol|Model|Validation loss|at 200 px|mIoU|IoU pet|IoU background|IoU border|Pixel accuracy|Boundary F|"
        "Parameters|MACs"
    )
    assert {len(row) for row in rows} == {12}
    assert [row[:5] for row in rows[2:]] == [
        ["official", "U-Net", "0.2795", "–", "73.1"],
        ["official", "SegNet", "0.3297", "–", "67.7"],
        ["seed", "U-Net", "0.2795", "0.2895", "72.1"],
        ["seed", "SegNet", "0.3297", "0.3397", "66.7"],
        ["seed, original", "U-Net", "–", "0.3614", "–"],
        ["seed, original", "SegNet", "–", "0.4176", "–"],
    ]
    assert rows[2][-2:] == ["1.9 M", "0.79 G"]
    assert (
        "- `official`: task trimap, test split, 3,669 images at each image's own size; trained at 128 px for 30 "
        "epochs, one seed (0); cpu, Intel(R) Xeon(R) Processor, 2 threads, bf16; commit `abc1234`."
    ) in table
    assert "- `seed`: task trimap, val split, 368 images" in table
    assert "3 seeds (0, 1, 2)" in table


def test_results_table_without_losses_at_200_px_and_without_results(comparison: dict[str, Any]) -> None:
    for model in comparison["models"]:
        model["evaluations"]["val"].pop("cross_entropy_200")
    rows = cells(results_table([comparison]))
    assert "at 200 px" not in rows[0]
    assert rows[-1][:4] == ["seed, original", "SegNet", "0.4176", "–"]
    assert results_table([]) == "No results are published yet."


def test_results_table_refuses_made_pets(comparison: dict[str, Any]) -> None:
    comparison["made_data"] = True
    with pytest.raises(PetsegError, match=r"protocol 'official' was trained on made pets; .* move its file out of"):
        results_table([comparison])


def update_docs(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        code: int = importlib.import_module("update_docs").main(arguments)
    return code


def test_update_docs_writes_between_its_markers(comparison: dict[str, Any], tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    markers = "<!-- results:begin -->\nstale\n<!-- results:end -->\nafter\n<!-- speed:begin -->\n<!-- speed:end -->\n"
    markers += "".join(f"<!-- {name}:begin -->\n<!-- {name}:end -->\n" for name in ("models", "indices", "study"))
    readme.write_text(f"# petseg\n{markers}", encoding="utf-8")
    for protocol in ("seed", "official"):
        folder = tmp_path / "results" / protocol
        folder.mkdir(parents=True)
        (folder / "comparison.json").write_text(json.dumps(comparison | {"protocol": protocol}), encoding="utf-8")
    shutil.copytree(ROOT / "results" / "benchmarks", tmp_path / "results" / "benchmarks")
    for folder in ("benchmarks", "docs", "petseg/weights"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copytree(ROOT / "results" / "reliability", tmp_path / "results" / "reliability")
    assert update_docs("--check", "--root", str(tmp_path)) == 1
    assert "stale" in readme.read_text(encoding="utf-8")
    assert update_docs("--root", str(tmp_path)) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(
        "# petseg\n<!-- results:begin -->\n\n- Protocol `official`: U-Net leads SegNet by 5.4 points"
    )
    assert "\n\n| Protocol" in text
    assert "\n\n<!-- results:end -->\nafter\n<!-- speed:begin -->\n\n- petseg's loop" in text
    assert "stale" not in text
    assert [row[0] for row in cells(text)[2:5]] == ["official", "official", "seed"]
    assert update_docs("--check", "--root", str(tmp_path)) == 0


def test_update_docs_tells_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert update_docs("--root", str(tmp_path)) == 2
    assert "README.md does not exist; wanted" in capsys.readouterr().err
    shutil.copytree(ROOT / "results", tmp_path / "results")
    (tmp_path / "README.md").write_text("# petseg\n", encoding="utf-8")
    assert update_docs("--root", str(tmp_path)) == 2
    assert "README.md holds <!-- results:begin --> 0 times; wanted once: put" in capsys.readouterr().err
    (tmp_path / "README.md").write_text("<!-- results:end --><!-- results:begin -->", encoding="utf-8")
    assert update_docs("--root", str(tmp_path)) == 2
    assert "wanted the other order: swap them" in capsys.readouterr().err
