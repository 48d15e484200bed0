"""A network and a dataset from outside the package go all the way: trained, scored, compared, exported, predicted."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from petseg import Segmenter
from petseg.config import load_recipe
from petseg.data.cache import prepare
from petseg.data.dataset import Dataset, Label, Sample, classes_from
from petseg.data.images import read_ids
from petseg.data.sources import open_dataset
from petseg.data.synthetic import make_pets
from petseg.evaluation.cost import count_cost
from petseg.evaluation.evaluate import evaluate_run
from petseg.experiments.compare import Plan, compare
from petseg.export.onnx import export_run
from petseg.models import MODELS, Builder, run_config
from petseg.report import write_report
from petseg.schema import ComparisonResult, read_record
from petseg.training.batches import load_splits
from tests.conftest import CPU, interrupted_at, train_on_cpu


class TwoScales(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fine = nn.Conv2d(3, 8, 3, padding=1)
        self.coarse = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.classify = nn.Conv2d(24, num_classes, 1)

    def forward(self, images):
        fine = self.fine(images).relu()
        coarse = F.interpolate(self.coarse(fine).relu(), size=fine.shape[-2:], mode="bilinear")
        return self.classify(torch.cat([fine, coarse], dim=1))


class Unusual(nn.Module):
    """Tied weights, a frozen and an unused parameter, grouped convolution, maps joined along another axis."""

    def __init__(self, num_classes):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second, self.third = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.third.weight, self.third.bias = self.second.weight, self.second.bias
        self.first.bias.requires_grad_(False)
        self.unused = nn.Parameter(torch.zeros(3))
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.classify = nn.Conv2d(16, num_classes, 1)

    def forward(self, images):
        second = self.second(self.first(images).relu()).relu()
        joined = self.grouped(torch.cat([second, self.third(second).relu()], dim=1))
        return self.classify(torch.cat([joined, joined.flip(2)], dim=2))[:, :, : images.shape[2]]


RECIPE = """
models = ["two_scales", "unet"]
data.size = 32
train = {epochs = 20, batch_size = 4, learning_rate = 0.02, precision = "fp32"}
overrides.unet.model = {base_channels = 4, depth = 2}
"""
CLASSES = classes_from([{"name": "sky", "role": "background"}, {"name": "leaf", "colour": "#00AA00"}, "fruit"])
COLOURS = np.uint8([[120, 180, 250], [40, 140, 50], [220, 60, 40]])


def draw(number):
    """Returns an image uint8 [H, W, 3] and its class ids [H, W]: a leaf and a fruit on it, of size 40 x 48 and more."""
    generator = np.random.default_rng(number)
    height, width = 40 + number, 48 + number
    rows, columns = np.mgrid[:height, :width]
    ids = np.zeros((height, width), np.uint8)
    for label, radius in ((1, 14), (2, 6)):
        y, x = generator.integers(16, 26, 2)
        ids[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = label
    noise = generator.integers(-20, 20, (height, width, 3))
    return np.clip(COLOURS[ids] + noise, 0, 255).astype(np.uint8), ids


@pytest.fixture
def garden(tmp_path):
    samples = []
    for number in range(20):
        sample = Sample(f"{number:02}", tmp_path / f"{number}.png", tmp_path / f"{number}.ids.png", "ab"[number % 2])
        for path, values in zip((sample.image, sample.label), draw(number), strict=True):
            Image.fromarray(values).save(path)
        samples.append(sample)
    ids = tuple(sample.id for sample in samples)
    splits = {"train": ids[:12], "val": ids[12:16], "test": ids[16:]}
    return Dataset("Garden", (*samples,), CLASSES, splits, lambda one: Label(read_ids(one.label)), "drawn by a test")


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    monkeypatch.setitem(MODELS, "two_scales", Builder("Two scales", TwoScales))
    monkeypatch.setitem(MODELS, "unusual", Builder("Unusual", Unusual))
    (tmp_path / "garden.toml").write_text(RECIPE)
    return load_recipe(str(tmp_path / "garden.toml"))


def test_it_is_trained_scored_counted_exported_and_predicted_with(recipe, garden, tmp_path):
    config, prepared, run = run_config(recipe, "two_scales"), prepare(garden, 32), tmp_path / "run"
    history = train_on_cpu(config, prepared, run)
    assert history[-1].train_loss < 0.5 * history[0].train_loss
    scores = evaluate_run(run, CPU, load_splits(prepared, config, CPU.device), "test").scores
    assert (list(scores.iou), set(scores.group_miou)) == (["sky", "leaf", "fruit"], {"a", "b"})
    assert scores.miou > 0.7
    cost = count_cost(config.model, 3, 32)
    assert cost.macs == 32 * 32 * (3 * 8 * 9 + 24 * 3) + 16 * 16 * 8 * 16 * 9
    assert cost.skip_bytes is None, "no layer takes a smaller map than the image"

    metadata = export_run(run, tmp_path / "garden.onnx")
    assert (metadata["title"], metadata["data"]["name"]) == ("Two scales", "Garden")
    assert not {"licence", "limits", "url"} & {*metadata, *metadata["data"]}, "those are of the pets"
    image, ids = draw(99)
    found = Segmenter(tmp_path / "garden.onnx")(image)
    assert found.classes == CLASSES
    assert (found.class_ids == ids).mean() > 0.9
    assert (found.mask == 255 * (ids > 0)).mean() > 0.9, "leaf and fruit are foreground"
    assert (found.cutout().mode, found.overlay().size) == ("RGBA", image.shape[1::-1])


def test_a_network_of_unusual_parts_resumes_and_is_exported(recipe, garden, tmp_path):
    config, prepared = run_config(recipe, "unusual"), prepare(garden, 32)
    config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 2, "ema": 0.9})})
    whole = train_on_cpu(config, prepared, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_on_cpu(config, prepared, tmp_path / "cut", on_step=interrupted_at(4))
    resumed = train_on_cpu(config, prepared, tmp_path / "cut", resume=True)
    assert [row.val_loss for row in resumed] == pytest.approx([row.val_loss for row in whole], rel=1e-6)
    assert export_run(tmp_path / "cut", tmp_path / "unusual.onnx")["parity"]["agreement"] > 0.999


@pytest.mark.usefixtures("recipe")  # which adds the network
def test_paths_may_be_strings(garden, tmp_path):
    short = load_recipe(tmp_path / "garden.toml", ["epochs=1", "models=['two_scales']"])
    prepared, out, run = prepare(garden, 32), str(tmp_path / "out"), str(tmp_path / "run")
    config = run_config(short, "two_scales")
    train_on_cpu(config, prepared, run)
    evaluate_run(run, CPU, load_splits(prepared, config, CPU.device), "test")
    export_run(run, f"{run}.onnx")
    found = compare(Plan(short, CPU, "a test"), prepared, out)
    assert read_record(f"{out}/comparison.json", ComparisonResult) == found
    assert write_report(f"{out}/comparison.json") == tmp_path / "out" / "report.html"
    assert write_report(f"{out}/comparison.json", f"{out}/other.html") == tmp_path / "out" / "other.html"
    pets = make_pets(f"{out}/pets", per_breed=2, breeds=2, size=32)
    assert len(open_dataset(str(pets)).samples) == 4


@pytest.mark.parametrize("models", [("two_scales",), ("two_scales", "unet")], ids=" ".join)
def test_it_is_compared_and_reported(models, recipe, garden, tmp_path):
    recipe = recipe.model_copy(update={"models": models})
    found = compare(Plan(recipe, CPU, "a test"), prepare(garden, 32), tmp_path / "out")
    assert read_record(tmp_path / "out" / "comparison.json", ComparisonResult) == found
    assert (found.models[0].name, found.models[0].title) == ("two_scales", "Two scales")
    assert [difference.model for difference in found.differences] == list(models[1:])
    assert found.data.images == "Garden, images of at most 67 px: drawn by a test"
    page = write_report(tmp_path / "out" / "comparison.json").read_text(encoding="utf-8")
    for text in ("Two scales", "Garden", "fruit", "#00AA00"):
        assert text in page
    words = re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    # among all settings stands another source's section of the recipe, with its defaults
    words = re.sub(r"data\.oxford_pets\.\w+\s+\w+", "", words)
    for word in ("Oxford", "border", "pet ", "cat ", "dog", "trimap"):
        assert word not in words


def exported(module):
    """Returns what mypy --strict lets others import: made in a module, in its `__all__`, or imported "as" itself."""
    found = set()
    for node in ast.walk(ast.parse(Path(find_spec(module).origin).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found |= {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
            if "__all__" in found:
                found |= {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names if alias.asname == alias.name}
    return found


def test_each_name_that_it_takes_is_exported_to_type_checkers():
    given = [node for node in ast.walk(ast.parse(Path(__file__).read_text())) if isinstance(node, ast.ImportFrom)]
    names = {(node.module, alias.name) for node in given for alias in node.names if node.module.startswith("petseg")}
    names |= {("petseg.models", "Input"), ("petseg.models", "build_model")}
    assert {(module, name) for module, name in names if name not in exported(module)} == set()
