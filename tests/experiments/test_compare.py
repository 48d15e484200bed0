"""The comparison end to end, small: every stage real, on synthetic pets."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg.config import ModelConfig, RunConfig, load_recipe
from petseg.data.cache import prepare
from petseg.data.sources import open_dataset
from petseg.errors import DivergedError, PetsegError
from petseg.evaluation.evaluate import read_images
from petseg.evaluation.statistics import paired_bootstrap, summed_by
from petseg.experiments.compare import Plan, choose_examples, compare, titles_of
from petseg.metrics import mean_iou
from petseg.report import write_report
from petseg.schema import ComparisonResult, EnvironmentInfo, Scores, read_record, write_record
from petseg.training.loop import train
from petseg.training.runs import read_config, read_metrics, read_splits
from tests.conftest import CPU, TINY, prepare_for, refused, tiny, train_on_cpu


def plan_of(models=("unet", "segnet"), *settings, **how):
    named = ", ".join(f'"{name}"' for name in models)
    return Plan(load_recipe("default", [*TINY, f"models=[{named}]", *settings]), CPU, "petseg compare", **how)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pets_folder):
    folder = tmp_path_factory.mktemp("finished") / "out"
    stages = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETSEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        plan = plan_of(synthetic=True, on_stage=lambda *stage: stages.append(stage[:3]))
        compare(plan, prepare(open_dataset(pets_folder), 32), folder)
    assert {title for title, *_ in stages} >= {"train U-Net", "score SegNet on test", "draw examples"}
    assert all(done <= total for _, done, total in stages)
    return folder


@pytest.fixture
def comparison(finished):
    return read_record(finished / "comparison.json", ComparisonResult)


def test_a_comparison_holds_every_figure(comparison, finished, prepared):
    assert [model.name for model in comparison.models] == ["unet", "segnet"]
    assert (comparison.split, comparison.quick, comparison.synthetic) == ("test", False, True)
    assert comparison.data.splits == {part: len(ids) for part, ids in prepared.dataset.splits.items()}
    for model in comparison.models:
        assert [row.epoch for row in model.history] == [1, 2]
        images = read_images(finished / "runs" / model.name / "evaluations" / "test.json", 3)
        assert model.evaluations["test"].miou == pytest.approx(float(mean_iou(images.confusions.sum(axis=0))))
        assert model.best_epoch == model.evaluations["test"].epoch
        assert model.evaluations["test"].confusion == tuple(map(tuple, images.confusions.sum(axis=0).tolist()))
        assert model.cost.latency_ms.p50 > 0
    assert [difference.together for difference in comparison.differences] == [None]
    # both saw the same images under the same budget
    first, second = (comparison.config.for_model(name) for name in ("unet", "segnet"))
    assert (first.train, first.data) == (second.train, second.data)
    # the background baseline calls everything background
    iou = comparison.baselines[0].evaluations["test"].iou
    assert iou["pet"] == iou["border"] == 0
    assert 0.4 < iou["background"] < 0.8


def test_examples_show_image_truth_and_every_model(comparison, finished):
    assert {example.why for example in comparison.examples} == {"best", "median", "worst", "differ"}
    for example in comparison.examples:
        assert set(example.files) == {"image", "truth", "unet", "segnet"}
        sizes = set()
        for name in example.files.values():
            with Image.open(finished / name) as opened:
                sizes.add(opened.size)
        assert len(sizes) == 1
    page = write_report(finished / "comparison.json", finished.with_name("report.html")).read_text(encoding="utf-8")
    assert "Trained on synthetic images: these figures mean nothing" in page
    assert page.count('src="data:image/') == 4 * len(comparison.examples)


def test_resuming_a_finished_comparison_changes_no_figure(comparison, finished, prepared):
    refused(r"exists; resume it \(--resume\)", compare, plan_of(), prepared, finished)
    after = compare(plan_of(resume=True, synthetic=True), prepared, finished)
    for one, other in zip(comparison.models, after.models, strict=True):
        assert (one.history, one.evaluations) == (other.history, other.evaluations)
    for field in ("baselines", "differences", "examples"):
        assert getattr(comparison, field) == getattr(after, field)
    # and another reference needs no training
    (difference,) = comparison.differences
    turned = compare(plan_of(resume=True, synthetic=True, reference="segnet"), prepared, finished)
    assert (turned.reference, turned.differences[0].model) == ("segnet", "unet")
    assert turned.differences[0].points == pytest.approx(-difference.points)
    compare(plan_of(resume=True, synthetic=True), prepared, finished)


def test_resuming_otherwise_leaves_what_is_finished(finished, prepared):
    before = (finished / "comparison.json").read_bytes()
    for plan, told in (
        (plan_of(("unet",), resume=True), r"models is \['unet', 'segnet'\] there, \['unet'\] now"),
        (plan_of(("unet", "segnet"), "train.epochs=3", resume=True), r"train\.epochs is 2 there, 3 now"),
        (plan_of(resume=True, final=False), r"quick is False there, True now"),
    ):
        match = rf"^run folder .*: holds another config \({told}\); choose another folder \(--out\)$"
        refused(match, compare, plan, prepared, finished)
    with pytest.raises(
        PetsegError, match=r"out: holds no run, but .*comparison\.json, .*; choose another folder \(--out\)$"
    ):
        train_on_cpu(tiny(), prepared, finished, resume=True)
    with pytest.raises(PetsegError, match=r"unet: holds no comparison, but .*; choose another folder \(--out\)$"):
        compare(plan_of(resume=True), prepared, finished / "runs" / "unet")
    assert (finished / "comparison.json").read_bytes() == before
    assert not (finished / "config.json").exists()


def test_without_test_images_it_is_said_first_and_validation_scored(prepared, tmp_path, caplog):
    empty = replace(prepared, dataset=replace(prepared.dataset, splits={**prepared.dataset.splits, "test": ()}))
    said = []
    plan = plan_of(("unet",), "train.epochs=1", on_stage=lambda title, *_: said.append((title, list(caplog.messages))))
    found = compare(plan, empty, tmp_path / "out")
    warning = "petseg: warning: Oxford-IIIT Pet: no test images: figures are of the validation split, last epoch"
    assert said[0] == ("train U-Net", [warning])
    assert (found.split, "test" in found.data.splits) == ("val", False)
    assert found.models[0].evaluations["val"].weights == "last.safetensors"


def test_a_thin_image_and_a_truth_that_is_all_border_come_through(pets_folder, tmp_path):
    folder = shutil.copytree(pets_folder, tmp_path / "pets")
    thin, ignored, *_ = (line.split()[0] for line in (folder / "annotations" / "test.txt").read_text().splitlines())
    trimap = np.full((2, 1500), 2, np.uint8)
    trimap[:, :99] = 1
    for name, values in ((thin, trimap), (ignored, np.full((64, 64), 3, np.uint8))):
        Image.new("RGB", values.shape[::-1]).save(folder / "images" / f"{name}.jpg")
        Image.fromarray(values).save(folder / "annotations" / "trimaps" / f"{name}.png")
    plan = plan_of(("unet",), "train.epochs=1", "task=species")
    found = compare(plan, prepare_for(plan.recipe.for_model("unet"), folder), tmp_path / "out")
    assert (found.models[0].evaluations["test"].images, len(found.examples)) == (24, 6)
    assert ignored not in {example.name for example in found.examples}, "it has no score, and would be the worst"


def test_few_images_of_which_one_has_no_label_have_an_interval_and_a_class_in_none_is_said(prepared, tmp_path):
    few = prepared.dataset.splits["test"][:3]
    dataset = replace(prepared.dataset, splits={**prepared.dataset.splits, "test": few})

    def read_label(sample):  # of those the first is all ignored, the others are without the last class
        label = prepared.dataset.read_label(sample)
        if sample.id not in few:
            return label
        return replace(label, ids=np.where(label.ids == 2, 1, label.ids) if sample.id != few[0] else label.ids | 255)

    part = replace(prepared, dataset=replace(dataset, read_label=read_label))
    found = compare(plan_of(("unet", "segnet"), "train.epochs=1"), part, tmp_path / "out")
    (one,) = found.differences
    assert one.low <= one.points <= one.high
    assert found.models[0].evaluations["test"].confusion[2] == (0, 0, 0)
    assert "no scored image holds border: a model that predicts it anywhere has an IoU of 0 there" in found.notes


@pytest.mark.parametrize("models", [("segnet",), ("segnet", "unet", "segnet_paper")], ids=len)
def test_one_model_or_three_quick(models, prepared, tmp_path):
    found = compare(plan_of(models, "train.epochs=1", final=False), prepared, tmp_path / "out")
    assert read_record(tmp_path / "out" / "comparison.json", ComparisonResult) == found
    assert tuple(model.name for model in found.models) == models
    assert (found.split, found.quick) == ("val", True)
    assert not list(tmp_path.rglob("test*")), "the test split is left alone"
    # each other model less the first, which is the reference
    assert found.reference == "segnet"
    assert [(one.model, one.reference) for one in found.differences] == [(name, "segnet") for name in models[1:]]
    reference, *others = (model.evaluations["val"].miou for model in found.models)
    for difference, own in zip(found.differences, others, strict=True):
        assert difference.points == pytest.approx(100 * (own - reference))
        assert difference.together is not None
        low, high = difference.together
        assert low <= difference.low <= difference.points <= difference.high <= high
    for example in found.examples:
        assert set(example.files) == {"image", "truth", *models}
        assert len(models) > 1 or example.why != "differ"
    # a wrong option or reference is an error before any work
    with pytest.raises(PetsegError, match=r"^reference 'segnett' is unknown; choose one of: segnet"):
        compare(plan_of(models, reference="segnett"), prepared, tmp_path / "new")
    with pytest.raises(PetsegError, match=r"model\.last_pooling was given for 'unet', which has no such option"):
        compare(plan_of(("unet", "unet_paper"), "model.last_pooling=false"), prepared, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_further_seeds_are_added_and_figures_are_their_mean(finished, prepared, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    one = read_record(out / "comparison.json", ComparisonResult)
    found = compare(plan_of(("unet", "segnet"), "seeds=3", resume=True, synthetic=True), prepared, out)
    assert sorted(path.name for path in (out / "runs").iterdir()) == [
        *("segnet", "segnet-seed1", "segnet-seed2"),
        *("unet", "unet-seed1", "unet-seed2"),
    ]
    assert found.seeds == (0, 1, 2)
    counts = {}
    for before, model in zip(one.models, found.models, strict=True):
        assert (model.trainings[0].history, model.trainings[0].evaluations) == (before.history, before.evaluations)
        for training, suffix in zip(model.trainings, ("", "-seed1", "-seed2"), strict=True):
            run = out / "runs" / (model.name + suffix)
            assert read_config(run).train.seed == training.seed
            assert read_record(run / "evaluations" / "test.json", Scores) == training.evaluations["test"]
        own = [training.evaluations["test"] for training in model.trainings]
        assert len({scores.miou for scores in own}) == 3, "another seed, another network"
        mean = model.evaluations["test"]
        assert mean.miou == pytest.approx(np.mean([scores.miou for scores in own]))
        assert mean.iou["border"] == pytest.approx(np.mean([scores.iou["border"] for scores in own]))
        assert np.array_equal(mean.confusion, np.sum([scores.confusion for scores in own], axis=0))
        runs = (out / "runs" / (model.name + suffix) for suffix in ("", "-seed1", "-seed2"))
        counts[model.name] = np.stack([read_images(run / "evaluations" / "test.json", 3).confusions for run in runs])
    (difference,) = found.differences
    wanted = paired_bootstrap(counts["segnet"], counts["unet"])
    assert (difference.points, difference.low, difference.high) == (wanted.points, wanted.low, wanted.high)
    assert difference.over == "images and 3 seeds"
    page = write_report(out / "comparison.json").read_text(encoding="utf-8")
    for words in ("3 seeds (0, 1, 2)", "mean of 3 seeds", "mIoU of each training", "Every epoch of the first training"):
        assert words in page
    with pytest.raises(PetsegError, match=r"seeds is 3 there, 1 now"):
        compare(plan_of(resume=True), prepared, out)


def test_a_seed_that_diverges_or_another_machine_is_told_and_every_model_counts_from_its_own_seed(
    prepared, tmp_path, monkeypatch, caplog
):
    made = train

    def train_or_diverge(config, prepared, run, how):
        if run.name == "segnet-seed8":
            raise DivergedError("training: the loss is not a number")
        history = made(config, prepared, run, how)
        if run.name == "unet-seed2":
            about = read_record(run / "environment.json", EnvironmentInfo)
            write_record(run / "environment.json", about.model_copy(update={"precision": "bf16"}))
        return history

    monkeypatch.setattr("petseg.experiments.compare.train", train_or_diverge)
    settings = ("seeds=3", "train.epochs=1", "overrides.segnet.train.seed=7")
    found = compare(plan_of(("unet", "segnet"), *settings, final=False), prepared, tmp_path / "out")
    unet, segnet = found.models
    assert [one.seed for one in unet.trainings] == [0, 2]
    assert [one.seed for one in segnet.trainings] == [7, 9]
    assert found.differences[0].over == "images and 2 seeds"
    assert found.notes[0] == "SegNet, seed 8: training diverged; its seed is left out of every model"
    assert found.notes[1].startswith("not all were trained alike: cpu ")
    assert f"petseg: warning: {found.notes[0]}" in caplog.messages
    assert "SegNet, seed 8: training diverged" in write_report(tmp_path / "out" / "comparison.json").read_text()
    monkeypatch.setattr(
        "petseg.experiments.compare.train", lambda *_: train_or_diverge(None, None, Path("segnet-seed8"), None)
    )
    with pytest.raises(DivergedError, match=r"^U-Net: training: the loss is not a number"):
        compare(plan_of(("unet",), "train.epochs=1", final=False), prepared, tmp_path / "all")


def test_intervals_are_over_groups_where_images_have_them(pets_folder, tmp_path):
    plan = plan_of(("unet", "segnet"), "train.epochs=1", r"data.groups='^([A-Za-z]+)'")
    grouped = prepare_for(plan.recipe.for_model("unet"), pets_folder)
    found = compare(plan, grouped, tmp_path / "out")
    (difference,) = found.differences
    files = [tmp_path / "out" / "runs" / name / "evaluations" / "test.json" for name in ("segnet", "unet")]
    segnet, unet = (read_images(file, 3) for file in files)
    groups = [re.match(r"[A-Za-z]+", name)[0] for name in unet.ids]
    assert difference.over == f"{len(set(groups))} groups; one seed"
    assert found.notes == ()
    wanted = paired_bootstrap(*(summed_by(groups, one.confusions) for one in (segnet, unet)))
    assert (difference.points, difference.low, difference.high) == (wanted.points, wanted.low, wanted.high)


def test_a_model_that_starts_from_weights_is_named_with_them(finished, prepared, tmp_path):
    start = finished / "runs" / "unet"
    plan = plan_of(("unet", "segnet"), "train.epochs=1", f"overrides.unet.train.init='{start}'", final=False)
    found = compare(plan, prepared, tmp_path / "out")
    assert [model.title for model in found.models] == ["U-Net, from unet", "SegNet"]
    first, drawn = (read_metrics(tmp_path / "out" / "runs" / "unet")[0], read_metrics(start)[0])
    assert first.train_loss < drawn.train_loss
    page = write_report(tmp_path / "out" / "comparison.json").read_text(encoding="utf-8")
    assert "SegNet − U-Net, from unet: " in page
    config = RunConfig(model=ModelConfig(name="segnet_paper", encoder_weights="a/vgg.pth"))
    assert titles_of({"segnet_paper": config}) == {"segnet_paper": "SegNet (paper), encoder from vgg.pth"}


def test_folds_test_each_image_once_by_a_network_that_has_not_seen_it(tmp_path):
    folder = tmp_path / "shapes"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(12):
        ids = np.kron(draw.integers(0, 2, (4, 4)), np.ones((8, 8))).astype(np.uint8)
        noise = draw.integers(0, 99, (32, 32, 3), np.uint8)
        Image.fromarray(noise + 150 * ids[..., None]).save(folder / "images" / f"{number:02}.png")
        Image.fromarray(ids).save(folder / "masks" / f"{number:02}.png")
    plan = plan_of(("unet", "segnet"), "data.folds=3", "seeds=2", "train.epochs=1")
    found = compare(plan, prepare_for(plan.recipe.for_model("unet"), folder), tmp_path / "out")
    runs = [f"unet{suffix}" for suffix in ("", "-fold1", "-fold2", "-seed1", "-seed1-fold1", "-seed1-fold2")]
    assert {path.name for path in (tmp_path / "out" / "runs").glob("unet*")} == {*runs}
    model, (difference,) = found.models[0], found.differences
    assert [(one.seed, one.fold) for one in model.trainings] == [(seed, fold) for seed in (0, 1) for fold in range(3)]
    tested, counts = [], {}
    for name in ("unet", "segnet"):
        for suffix in (run.removeprefix("unet") for run in runs):
            run = tmp_path / "out" / "runs" / (name + suffix)
            images, splits = read_images(run / "evaluations" / "test.json", 2), read_splits(run)
            assert images.ids == splits.test
            assert not {*splits.test} & {*splits.train, *splits.val}
            counts.setdefault((name, "seed1" in suffix), []).append(images.confusions)
            tested += splits.test
    assert sorted(tested) == sorted([f"{number:02}" for number in range(12)] * 4)
    joined = {one: np.concatenate(parts) for one, parts in counts.items()}
    seeds = [float(mean_iou(joined["unet", seed].sum(axis=0))) for seed in (False, True)]
    scores = model.evaluations["test"]
    assert (scores.images, scores.miou) == (12, pytest.approx(np.mean(seeds)))
    parts = [one.evaluations["test"].cross_entropy for one in model.trainings]
    assert scores.cross_entropy == pytest.approx(np.mean(parts)), "four images a fold"
    stacked = [np.stack([joined[name, seed] for seed in (False, True)]) for name in ("segnet", "unet")]
    assert difference.points == pytest.approx(paired_bootstrap(*stacked).points)
    assert {one.evaluations["test"].images for one in found.baselines} == {12}
    assert found.data.provenance.endswith("drawn at random, seed 0, 3 folds")
    page = write_report(tmp_path / "out" / "comparison.json").read_text(encoding="utf-8")
    for words in ("3 folds", "by the training that has not seen it", "seed 1, fold 2"):
        assert words in page
    again = compare(replace(plan, resume=True), prepare_for(plan.recipe.for_model("unet"), folder), tmp_path / "out")
    assert (again.differences, again.baselines) == (found.differences, found.baselines)
    one, again = plan_of(("unet",), "data.folds=3", "data.fold=1"), prepare_for(tiny(), folder)
    refused(r"data\.fold is 1: a comparison tests every fold", compare, one, again, tmp_path / "new")


def test_a_seed_draws_its_own_part_of_the_training_images(prepared, tmp_path):
    plan = plan_of(("unet",), "seeds=2", "train.epochs=1", "fraction=0.5", final=False)
    seen = []
    own = replace(plan, on_stage=lambda title, *_: seen.append(title))
    compare(own, prepared, tmp_path / "out")
    assert {"train U-Net, seed 0", "train U-Net, seed 1"} <= set(seen)
    alone = plan.recipe.for_model("unet")
    train_on_cpu(
        alone.model_copy(update={"train": alone.train.model_copy(update={"seed": 1})}), prepared, tmp_path / "one"
    )
    histories = [
        read_metrics(run)[0].train_loss for run in (tmp_path / "one", tmp_path / "out" / "runs" / "unet-seed1")
    ]
    assert histories[0] == histories[1]


def test_examples_are_best_median_worst_and_where_the_models_differ():
    a = np.linspace(0, 1, 101)
    b = a.copy()
    b[[20, 30, 80, 90]] -= 0.2
    chosen = choose_examples({"a": a, "b": b, "c": a})
    rows = {why: {row for row, kind in chosen if kind == why} for _, why in chosen}
    assert (rows["best"], rows["worst"], rows["differ"]) == ({100, 99}, {0, 1}, {20, 30, 80, 90})
    assert all(45 < row < 56 for row in rows["median"])
    assert len({row for row, _ in chosen}) == len(chosen)
    # of very few images none is repeated
    chosen = choose_examples({"a": np.array([0.1, 0.2]), "b": np.array([0.2, 0.1])})
    assert sorted(row for row, _ in chosen) == [0, 1]
