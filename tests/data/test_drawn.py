"""Splits that are drawn: in proportion, near-duplicates on one side, by blocks, by folds, the same each time."""

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg.config import DataConfig
from petseg.data.dataset import Dataset, Label, Sample, classes_from, with_groups
from petseg.data.splits import continued, stratified, with_recorded, with_splits
from tests.conftest import refused

RARE = {"a": 0.1, "b": 0.3, "c": 1.0}  # class -> share of the images that hold it


def made(count, splits=None, folder=Path("nowhere"), holds=None):
    samples = tuple(Sample(f"s{number:03}", folder / f"s{number:03}.png", Path()) for number in range(count))
    draw = np.random.default_rng(0).random((count, len(RARE)))
    drawn = {
        s.id: frozenset(np.flatnonzero(row < [*RARE.values()]).tolist()) for s, row in zip(samples, draw, strict=True)
    }
    label = Label(np.zeros((4, 4), np.uint8))
    return Dataset("Made", samples, classes_from([*RARE]), splits or {}, lambda _: label, "made", holds=holds or drawn)


def sizes(dataset):
    return {part: len(ids) for part, ids in dataset.splits.items()}


def test_each_class_in_proportion_and_every_sample_once():
    dataset = with_splits(made(200), DataConfig(val_share=0.2, test_share=0.1))
    assert sizes(dataset) == {"train": 140, "val": 40, "test": 20}
    assert sorted(one for ids in dataset.splits.values() for one in ids) == sorted(dataset.by_id)
    counts = {
        part: Counter(label for one in ids for label in dataset.holds[one]) for part, ids in dataset.splits.items()
    }
    whole = sum(counts.values(), Counter())
    for label in (0, 1, 2):
        assert counts["val"][label] == pytest.approx(0.2 * whole[label], abs=1)
        assert counts["test"][label] == pytest.approx(0.1 * whole[label], abs=1)
    again, other = (
        with_splits(made(200), DataConfig(val_share=0.2, test_share=0.1, split_seed=seed)) for seed in (0, 1)
    )
    assert again.splits == dataset.splits != other.splits
    assert sizes(with_splits(made(4), DataConfig(val_share=0.01, test_share=0.01))) == {"train": 2, "val": 1, "test": 1}
    assert sizes(with_splits(made(3), DataConfig(test_share=0))) == {"train": 2, "val": 1}


GROUPS = (68, 46, 33, 16, 15, 13, 7, 6, 6, 5, 4, *[3] * 8, *[2] * 40, *[1] * 150)  # images each, much as CamVid has


@pytest.mark.parametrize("sizes_of", [GROUPS, (3, 2, 2, *[1] * 23), (4,) * 10], ids=len)
@pytest.mark.parametrize("seed", range(8))
def test_shares_are_of_images_whatever_the_sizes_of_groups(sizes_of, seed):
    """To within two images; a class that seven groups hold, one of 15 % by proportion, is in each split."""
    draw, ends = np.random.default_rng(seed), np.cumsum(sizes_of)
    units = [[f"s{one}" for one in range(end - size, end)] for size, end in zip(sizes_of, ends, strict=True)]
    labels = [frozenset(np.flatnonzero(draw.random(3) < [*RARE.values()]).tolist()) for _ in units]
    holds = {one: held for unit, held in zip(units, labels, strict=True) for one in unit}
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    parts = stratified(units, shares, holds, seed)
    for part, share in shares.items():
        assert len(parts[part]) == pytest.approx(share * ends[-1], abs=2)
        assert all({*unit} <= {*parts[part]} or not {*unit} & {*parts[part]} for unit in units)
        common = {label for label in range(3) if sum(label in held for held in labels) >= 7}
        assert common <= frozenset().union(*(holds[one] for one in parts[part]))
    assert parts == stratified(units, shares, holds, seed)


def test_groups_stay_on_one_side_and_near_duplicates_join_theirs(tmp_path, caplog):
    """Ten patients of ten images each; a picture of the first is one of the second too."""
    draw, dataset = np.random.default_rng(1), made(100, folder=tmp_path)
    pictures = [draw.integers(0, 256, (8, 8, 3), np.uint8) for _ in dataset.samples]
    pictures[10] = pictures[0]
    for sample, picture in zip(dataset.samples, pictures, strict=True):
        Image.fromarray(picture).resize((64, 64)).save(sample.image)
    config = DataConfig(groups=r"s(\d\d)", val_share=0.2, test_share=0.2)
    dataset = with_groups(dataset, config.groups)
    for seed in range(5):
        drawn = with_splits(dataset, config.model_copy(update={"split_seed": seed}))
        assert sizes(drawn) == {"train": 60, "val": 20, "test": 20}
        parts = {part: {name[:3] for name in ids} for part, ids in drawn.splits.items()}
        assert sum(map(len, parts.values())) == 10, "no patient in two splits"
        assert any({"s00", "s01"} <= own for own in parts.values())
    assert drawn.provenance.endswith("drawn at random, seed 4, each of 10 groups on one side")
    few = "petseg: warning: Made: test has 2 of the groups, over which an interval says little; raise data.test_share, "
    assert caplog.messages[-1] == few + "or test every group by data.folds"
    folds = [with_splits(dataset, config.model_copy(update={"folds": 5, "fold": fold})) for fold in range(5)]
    tested = [{name[:3] for name in one.splits["test"]} for one in folds]
    assert sorted(name for own in tested for name in own) == [f"s0{n}" for n in range(10)]
    # what cannot be, and splits that tear groups apart
    told = r"Made: data\.groups finds 2 groups, such as '0', of which near-duplicates leave 1 apart; wanted at least 3"
    refused(told, with_splits, with_groups(made(12, folder=tmp_path), r"s0(\d)"), config)
    two = with_groups(made(12, folder=tmp_path), r"s0(\d)")
    halves = DataConfig(groups=config.groups, folds=2)
    refused(r"finds 2 groups, .*; wanted at least 3, one for each part", with_splits, two, halves)
    told = r"data\.groups 's01' finds nothing in 90 of 100 image names, such as 's000'; write what is in every name"
    refused(told, with_splits, with_groups(dataset, "s01"), DataConfig(groups="s01"))
    caplog.clear()
    with_splits(replace(dataset, splits={"train": ("s000", "s010", "s020"), "val": ("s011", "s030")}), config)
    assert caplog.messages == [
        "petseg: warning: Made: 1 of 4 groups lie in several of its splits, such as '01' in train and val: scores "
        "flatter; make the splits anew, or leave them out to have them drawn"
    ]


def test_films_of_alike_frames_are_groups_without_a_warning_that_they_fall_apart(tmp_path, caplog):
    dataset, draw = made(60, folder=tmp_path), np.random.default_rng(2)
    for number, sample in enumerate(dataset.samples):
        if number % 12 == 0:
            picture = Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64))
        picture.save(sample.image)
    films = {sample.id: str(number // 12) for number, sample in enumerate(dataset.samples)}
    samples = tuple(replace(sample, group=films[sample.id]) for sample in dataset.samples)
    drawn = with_splits(replace(dataset, samples=samples), DataConfig(groups="s", folds=5))
    assert caplog.messages == []
    assert len({films[name] for name in drawn.splits["test"]}) == 1


def test_a_class_of_one_image_leaves_no_split_empty():
    holds = {f"s{number:03}": frozenset([number]) for number in range(6)}
    assert sizes(with_splits(made(6, holds=holds), DataConfig())) == {"train": 4, "val": 1, "test": 1}
    assert stratified([["a"], ["b"]], {"train": 1, "val": 0.01}, {}, 0).keys() == {"train", "val"}


GIVEN = {"train": tuple(f"s{number:03}" for number in range(0, 20)), "test": ("s020", "s021")}


def test_given_splits_stay():
    whole = {**GIVEN, "val": ("s022",)}
    dataset = made(30, whole)
    assert with_splits(dataset, DataConfig()) is dataset
    drawn = with_splits(made(30, GIVEN), DataConfig())
    assert drawn.splits["test"] == GIVEN["test"]
    assert {*drawn.splits["train"], *drawn.splits["val"]} == {*GIVEN["train"]}
    assert sizes(drawn) == {"train": 17, "val": 3, "test": 2}
    assert sizes(with_splits(made(30, {"test": GIVEN["test"]}), DataConfig())) == {"train": 24, "val": 4, "test": 2}
    message = refused(
        "^data.folds is 3, but Made brings splits .train, test, val.; set data", with_splits, dataset, THREE
    )
    assert "without lists" in message


THREE = DataConfig(folds=3, fold=1)


@pytest.mark.parametrize("split", ["random", "blocks"])
def test_folds_test_every_image_once(split):
    tested = []
    for fold in range(5):
        dataset = with_splits(made(52), DataConfig(split=split, folds=5, fold=fold, val_share=0.1))
        assert sum(sizes(dataset).values()) == len({one for ids in dataset.splits.values() for one in ids}) == 52
        assert sizes(dataset)["val"] == pytest.approx(5, abs=1)
        tested += dataset.splits["test"]
    assert sorted(tested) == sorted(dataset.by_id)


def test_more_folds_than_images_that_differ_are_refused_before_any_is_trained(tmp_path):
    refused(
        "^data.folds is 9, for 6 images; take at most 6$", with_splits, made(6), DataConfig(split="blocks", folds=9)
    )
    names = [f"s{number:03}" for number in range(8)]
    for name in names:
        image = np.random.default_rng(int(name[1:]) // 2).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / f"{name}.png")  # four pairs of equal images
    message = (
        r"^data.folds is 5, too many for 4 images that differ \(near-duplicates and groups count as one\); take fewer$"
    )
    refused(message, with_splits, made(8, folder=tmp_path), DataConfig(folds=5, fold=0))


def test_blocks_are_runs_in_natural_order():
    names = [f"slice {number}" for number in range(1, 21)]
    samples = tuple(Sample(name, Path(), Path()) for name in sorted(names))
    dataset = Dataset("Slices", samples, classes_from([*RARE]), {}, lambda _: Label(np.zeros((4, 4), np.uint8)), "made")
    drawn = with_splits(dataset, DataConfig(split="blocks", test_share=0.2)).splits
    assert {part: set(ids) for part, ids in drawn.items()} == {
        "train": {*names[:13]},
        "val": {*names[13:16]},
        "test": {*names[16:]},
    }
    first = with_splits(dataset, DataConfig(split="blocks", folds=5, fold=0)).splits
    assert (set(first["test"]), set(first["val"])) == ({*names[:4]}, {*names[17:]}), "a ring"


def pictures(folder, count, alike):
    """Writes noise, each `alike` files of the same."""
    for number in range(count):
        coarse = np.random.default_rng(number // alike).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"s{number:03}.png")


def test_near_duplicates_lie_on_one_side_unless_they_are_too_many(tmp_path, caplog):
    pictures(tmp_path, 40, 2)
    with caplog.at_level(logging.WARNING, "petseg"):
        splits = with_splits(made(40, folder=tmp_path), DataConfig(val_share=0.2, test_share=0.2)).splits
    assert caplog.messages == []
    for ids in splits.values():
        assert Counter(int(one[1:]) // 2 for one in ids).most_common()[-1][1] == 2
    pictures(tmp_path, 40, 40)
    splits = with_splits(made(40, folder=tmp_path), DataConfig(val_share=0.2, test_share=0.2)).splits
    assert [len(splits[part]) for part in ("train", "val", "test")] == [24, 8, 8]
    assert "40 of 40 images resemble each other in a chain" in caplog.messages[0]


def test_too_few_images():
    refused(
        r"^Made: 3 labelled images to draw train, val, test from; wanted at least 4", with_splits, made(3), DataConfig()
    )


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"folds": 1}, "data.fold is 0 of data.folds 1; folds are 0 or at least 2"),
        ({"folds": 3, "fold": 3}, "data.fold is 3 of data.folds 3"),
        ({"val_share": 0.5, "test_share": 0.5}, "val_share is 0.5 and the test share 0.5; training needs the rest"),
        ({"val_share": 0.5, "folds": 2}, "training needs the rest"),
    ],
)
def test_shares_that_leave_nothing(fields, match):
    with pytest.raises(ValueError, match=match):
        DataConfig(**fields)


def test_splits_that_a_run_wrote_down_stay_though_images_come_and_go():
    recorded = with_splits(made(40), DataConfig()).splits
    more = with_recorded(made(60), recorded)
    assert more.splits == recorded
    fewer = with_recorded(made(30), recorded)
    assert {part: set(ids) for part, ids in fewer.splits.items()} == {
        part: {one for one in ids if int(one[1:]) < 30} for part, ids in recorded.items()
    }
    assert with_recorded(made(20), recorded) is None, "half of them: another dataset"


def test_what_goes_on_from_a_run_keeps_its_splits_then_the_datas_own_and_new_images_train():
    recorded = {"train": ("s000",), "val": ("s001",), "test": ("s002",)}
    other, whole = made(0), made(5)
    given, own = continued([other, whole], recorded)
    assert given is other
    assert own.splits == {"train": ("s000", "s003", "s004"), "val": ("s001",), "test": ("s002",)}
    listed = replace(whole, splits={"train": ("s000", "s001"), "test": ("s003",)})
    assert continued([listed], recorded)[0].splits == {"train": ("s000",), "val": ("s001",), "test": ("s002", "s003")}
    refused("^--splits: most of the run's images are not in Made, Made; name", continued, [other, made(1)], recorded)
