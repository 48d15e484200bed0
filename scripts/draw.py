"""Draws the documents' images: docs/cat.png, docs/page.png, docs/failures.png, docs/speedrun.svg,
docs/confidence.svg and docs/gap.svg; and the samples of `petseg serve`.

    python scripts/draw.py cat         # needs scikit-image, which carries the photo (Chelsea, CC0)
    python scripts/draw.py samples     # the same
    python scripts/draw.py page        # needs a Chromium on the path and the extra dev
    python scripts/draw.py failures    # needs the data set (PETSEG_DATA)
    python scripts/draw.py speedrun
    python scripts/draw.py confidence
    python scripts/draw.py gap

cat: a photo that no network has seen, the default model's cut-outs on a plain colour, and what the models see in it.
samples: the coffee that is neither cat nor dog (scikit-image, CC0) and a dog of petseg/data/synthetic.py.
page: `petseg serve` as it opens. failures: what models predict for test images on which the default is worst.
speedrun: validation loss against time, the speedrun beside the plain recipe.
confidence: how often pixels and photos are pets, against how sure the models are, on test.
gap: by how much U-Net leads SegNet, with intervals, against the image size and by SegNet's stages.
"""

import shutil
import subprocess
import sys
from io import BytesIO
from itertools import accumulate
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from petseg import Segmenter
from petseg.cli.data import data_folder
from petseg.config import DataConfig
from petseg.data.dataset import palette
from petseg.data.oxford_pets import ORIGINAL_LOSSES
from petseg.data.sources import open_dataset
from petseg.data.synthetic import draw_pet
from petseg.evaluation.evaluate import read_images
from petseg.evaluation.statistics import paired_bootstrap
from petseg.experiments.study.findings import measure
from petseg.experiments.study.results import Results
from petseg.metrics import iou
from petseg.report.plots import STYLES
from petseg.schema import PairedDifference
from petseg.shipped import DEFAULT, KINDS, shipped_model
from petseg.storage import read_json

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def on_plain(cutout: Image.Image) -> Image.Image:
    """Returns an RGBA image on a plain colour, RGB."""
    plain = Image.new("RGBA", cutout.size, "#56B4E9")
    plain.alpha_composite(cutout)
    return plain.convert("RGB")


def cat() -> None:
    """Writes cat.png."""
    from skimage import data

    photo = data.chelsea()  # type: ignore[no-untyped-call]
    found = {name: Segmenter(name)(photo) for name in (DEFAULT, *map(shipped_model, KINDS))}
    panels = {
        "photo": Image.fromarray(photo),
        "cut out": on_plain(found[DEFAULT].cutout()),
        "cut out --matting": on_plain(found[DEFAULT].cutout(matting=True)),
        **{name: segmentation.overlay() for name, segmentation in found.items()},
    }
    height, width, _ = photo.shape
    gap, caption, columns = 12, 34, 3
    rows = len(panels) // columns
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + caption)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=22)
    for place, (title, panel) in enumerate(panels.items()):
        left, top = place % columns * (width + gap), place // columns * (height + caption)
        sheet.paste(panel, (left, top + caption))
        draw.text((left + 2, top + 3), title, fill="black", font=font)
    sheet.save(DOCS / "cat.png", optimize=True)


def samples() -> None:
    """Writes coffee.jpg and dog.jpg of the page."""
    from skimage import data

    drawn, _ = draw_pet("basset_hound", 7, size=420)
    for name, image in {"coffee": data.coffee(), "dog": drawn}.items():  # type: ignore[no-untyped-call]
        Image.fromarray(image).save(ROOT / "petseg" / "serve" / "page" / f"{name}.jpg", quality=88)


def page() -> None:
    """Writes page.png."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    command = [sys.executable, "-m", "petseg", "serve", "--port", "0", "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page(viewport={"width": 1100, "height": 800})
        address = server.stdout.readline().split()[0]
        for _ in range(2):  # the first visit warms the networks up, so that the time shown is a usual one
            view.goto(address)
            view.locator("canvas[data-painted]").wait_for()
            view.wait_for_load_state("networkidle")
        seen = Image.open(BytesIO(view.screenshot(full_page=True))).convert("RGB")
        browser.close()
        server.terminate()
    # few colours beside the photo's: half the bytes, and the eye sees none of it
    seen.quantize(256, method=Image.Quantize.MAXCOVERAGE).save(DOCS / "page.png", optimize=True)


def failures() -> None:
    """Writes failures.png: what the models predict, no image and no label of the data set."""
    stored = read_json(ROOT / "results" / "models" / DEFAULT / "evaluations" / "test.images.json")["images"]
    pet = {name: float(iou(np.array(counts).reshape(3, 3))[0]) for name, counts, *_ in stored}
    worst = sorted(pet, key=pet.__getitem__)[10:18]  # the labels of the ten before are wrong: empty or inverted
    models = {name: Segmenter(name) for name in (DEFAULT, shipped_model("unet"))}
    card = models[DEFAULT].card["config"]["data"]
    dataset = open_dataset(data_folder(None), DataConfig.model_validate(card))
    samples = {sample.id: sample for sample in dataset.samples}
    colours, side, gap, caption = palette(dataset.classes), 150, 8, 26
    sheet = Image.new("RGB", (len(worst) * (side + gap), len(models) * (side + caption)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    for column, name in enumerate(worst):
        for row, (title, model) in enumerate(models.items()):
            left, top = column * (side + gap), row * (side + caption)
            panel = Image.fromarray(colours[model(samples[name].image).class_ids])
            panel.thumbnail((side, side), Image.Resampling.NEAREST)
            sheet.paste(panel, (left, top + caption))
            text = f"{pet[name]:.0%}" if title == DEFAULT else title
            draw.text((left, top + 4), text, fill="black", font=font)
    sheet.quantize(16).save(DOCS / "failures.png", optimize=True)


def save(figure: Figure, name: str) -> None:
    """Writes a plot as docs/NAME.svg, its axes open above and at the right."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / f"{name}.svg", format="svg", metadata={"Date": None})


def speedrun() -> None:
    """Writes speedrun.svg."""
    benchmarks, wanted = ROOT / "results" / "benchmarks", ORIGINAL_LOSSES["unet"]
    models = read_json(benchmarks / "speedrun" / "comparison.json")["models"]
    lines = [(f"speedrun, {model['title']}", model["history"], model["name"], 2.2) for model in models]
    lines.append(("default, U-Net", read_json(benchmarks / "plain_recipe.json")["history"], "unet", 1.0))
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for title, history, name, width in lines:
        style = STYLES[name]
        seconds = list(accumulate(row["seconds"] for row in history))
        losses = [row["val_loss"] for row in history]
        axes.plot(seconds, losses, color=style.colour, linestyle=style.dash, marker=style.marker, linewidth=width)
        axes.annotate(title, (seconds[0], losses[0]), xytext=(9, 4), textcoords="offset points", va="center")
    axes.axhline(wanted, color="#777777", linewidth=0.8)
    words = f"the original U-Net after 30 epochs, {wanted}"
    axes.annotate(words, (1, wanted - 0.01), xycoords=("axes fraction", "data"), ha="right", va="top")
    axes.set(xlabel="seconds of training and validation", ylabel="validation cross-entropy", ylim=(0.3, 0.75))
    axes.set_xlim(0, 1.25 * max(sum(row["seconds"] for row in history) for _, history, _, _ in lines))
    save(figure, "speedrun")


def confidence() -> None:
    """Writes confidence.svg."""
    found = read_json(ROOT / "results" / "masks" / "presence.json")["models"]
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    titles = {"mask": "A pixel of the mask is pet", "presence": "The photo shows a pet"}
    for axes, (kind, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="#777777", linewidth=0.8)
        for (name, model), marker in zip(found.items(), "osD", strict=False):
            bins = model["splits"]["test"][kind]
            axes.plot([each["mean"] for each in bins], [each["share"] for each in bins], marker=marker, label=name)
        axes.set(title=title, xlabel="how sure the model is", ylabel="how often it is so", aspect="equal")
    axes.legend(frameon=False, fontsize=9)
    save(figure, "confidence")


def gap() -> None:
    """Writes gap.svg."""
    study = Results(ROOT / "results" / "study")
    experiments = {one.name: one for one in study.study.experiments}

    def arms(name: str, first: str, second: str) -> PairedDifference:
        experiment = experiments[name]
        measured = measure(study, experiment, "miou")
        pair = [measured.of(study.arm(experiment, arm), experiment.seeds) for arm in (first, second)]
        return paired_bootstrap(*pair)

    def runs(first: str, second: str) -> PairedDifference:
        places = [ROOT / "results" / run / "evaluations" / "test.json" for run in (first, second)]
        one, other = (read_images(place, num_classes=3) for place in places)
        assert one.ids == other.ids
        return paired_bootstrap(one.confusions, other.confusions)

    lines = {
        "SegNet with five stages, as in its paper": {
            64: arms("depth", "unet/plain", "segnet/plain"),
            96: arms("main", "unet/width", "segnet/width"),
            128: runs("official/runs/unet", "official/runs/segnet"),
        },
        "with four stages, widened to U-Net's parameters": {
            64: arms("depth", "unet/plain", "segnet/shallower"),
            96: arms("main", "unet/stages", "segnet/stages"),
        },
        "with four stages, of U-Net's width": {
            160: runs("models/unet_small", "models/segnet_small"),
            192: runs("base/unet", "base/segnet"),
        },
    }
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.subplots()
    for (title, points), marker, colour in zip(lines.items(), "sov", ("#D55E00", "#0072B2", "#009E73"), strict=True):
        leads = [lead.points for lead in points.values()]
        reach = np.array([(lead.points - lead.low, lead.high - lead.points) for lead in points.values()]).T
        axes.errorbar(list(points), leads, reach, marker=marker, color=colour, linewidth=1, capsize=3, label=title)
        for side, lead in points.items():
            axes.annotate(f"{lead.points:.1f}", (side, lead.points), xytext=(6, 5), textcoords="offset points")
    axes.set(xlabel="image size in pixels", ylabel="U-Net leads by, points of mIoU", ylim=(0, 12), xlim=(54, 202))
    axes.set_xticks(sorted({side for points in lines.values() for side in points}))
    axes.legend(frameon=False)
    save(figure, "gap")


if __name__ == "__main__":
    pictures = {
        "cat": cat,
        "samples": samples,
        "page": page,
        "failures": failures,
        "speedrun": speedrun,
        "confidence": confidence,
        "gap": gap,
    }
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "petseg", "font.size": 11})
    pictures[sys.argv[1]]()
