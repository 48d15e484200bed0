"""Who trains, who validates, who tests: the committed split, the tutorial's, and the one for other datasets."""

import contextlib
import dataclasses
import itertools
import os
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from petseg.config import DataConfig, RunConfig, TrainConfig
from petseg.data.check import refuse_spoiled
from petseg.data.oxford_pets import COMMITTED_VALIDATION, breed_of, read_contents, split_names, stratified_validation
from petseg.data.sources import open_dataset
from petseg.data.synthetic import CATS, DOGS
from petseg.errors import PetsegError
from petseg.training.batches import load_splits
from tests.conftest import refused

OTHERS = {"Bombay": 96, "Egyptian_Mau": 93, "Siamese": 99, "english_cocker_spaniel": 96, "newfoundland": 96}
TRAINVAL = dict.fromkeys(CATS + DOGS, 100) | OTHERS  # breed -> names in the official trainval.txt; 3,680 in all
CPU = torch.device("cpu")
OFFICIAL = {"train": 3312, "val": 368, "test": 3669}


@pytest.fixture(scope="module")
def listed():
    """7,390 names -> list; trainval holds the committed names and as many of each breed as the official one."""
    lists = dict.fromkeys(sorted(COMMITTED_VALIDATION), "trainval")
    for breed, wanted in TRAINVAL.items():
        free = (name for number in range(1, 300) if (name := f"{breed}_{number}") not in lists)
        for _ in range(wanted - sum(breed_of(name) == breed for name in COMMITTED_VALIDATION)):
            lists[next(free)] = "trainval"
    breeds = itertools.cycle(CATS + DOGS)
    lists |= {f"{next(breeds)}_{number}": "test" if number < 4669 else "none" for number in range(1000, 4710)}
    assert Counter(lists.values()) == {"trainval": 3680, "test": 3669, "none": 41}
    names = list(lists)
    random.Random(5).shuffle(names)  # no order that a folder happens to give may matter
    return {name: lists[name] for name in names}


def names_in(listed, part):
    return {name for name in listed if listed[name] == part}


def test_committed_validation_is_the_official_protocols(listed):
    assert len(COMMITTED_VALIDATION) == 368
    by_breed = Counter(map(breed_of, COMMITTED_VALIDATION))
    assert {*by_breed} == {*CATS, *DOGS}
    assert all(abs(count - TRAINVAL[breed] / 10) < 1 for breed, count in by_breed.items())
    # else near-duplicates of training images validate, and figures stand beside others of another split
    splits = split_names(list(listed), listed, "official")
    assert {part: len(names) for part, names in splits.items()} == OFFICIAL
    assert {*splits["val"]} == COMMITTED_VALIDATION
    assert {*splits["train"]} == names_in(listed, "trainval") - COMMITTED_VALIDATION
    assert {*splits["test"]} == names_in(listed, "test")
    assert all(names == sorted(names) for names in splits.values())
    missing = splits["val"][7]
    fewer = split_names([name for name in listed if name != missing], listed, "official")
    assert {*fewer["val"]} == COMMITTED_VALIDATION - {missing}


def test_other_datasets_validate_on_a_tenth_by_largest_remainders():
    listed = {f"beagle_{number}": "trainval" for number in range(300, 340)} | {"beagle_1": "test", "beagle_2": "none"}
    splits = split_names(list(listed), listed, "official")
    assert splits["val"] == stratified_validation(names_in(listed, "trainval"))
    assert {part: len(names) for part, names in splits.items()} == {"train": 36, "val": 4, "test": 1}
    # a tenth of 14, 16 and 27: floors 1, 1, 2 make 4 of 6; the remainders .7 (27) and .6 (16) get one each
    drawn = stratified_validation(names_of({"beagle": 14, "pug": 16, "samoyed": 27}))
    assert Counter(map(breed_of, drawn)) == {"beagle": 1, "pug": 2, "samoyed": 3}
    one, two = names_of({"beagle": 40}), names_of({"beagle": 40, "pug": 40})
    drawn = stratified_validation(two)
    assert drawn == stratified_validation(two, seed=0, share=0.1) != stratified_validation(two, seed=1)
    assert [name for name in drawn if breed_of(name) == "beagle"] == stratified_validation(one)


def tutorial(names, val_samples=1000):
    """Returns (train, val) as keras-io's "Image segmentation with a U-Net-like architecture" makes them.

    Its own lines: `input_img_paths = sorted(os.path.join(input_dir, fname) for fname in os.listdir(input_dir) if
    fname.endswith(".jpg"))`, `random.Random(1337).shuffle(input_img_paths)`, `input_img_paths[:-val_samples]`.
    """
    paths = sorted("images/" + name + ".jpg" for name in names)
    random.Random(1337).shuffle(paths)
    stems = [path.removeprefix("images/").removesuffix(".jpg") for path in paths]
    return sorted(stems[:-val_samples]), sorted(stems[-val_samples:])


def test_seed_protocol_is_the_tutorials_and_a_left_out_image_does_not_shift_it(listed, prepared, pets_folder):
    for names, val_samples in ((list(listed), 1000), ([f"beagle_{number}" for number in range(9)], 4)):
        splits = split_names(names, listed, "seed")
        assert (splits["train"], splits["val"]) == tutorial(names, val_samples)
        assert {part: len(names) for part, names in splits.items()}["val"] == val_samples
    # splits are of all pairs, the left-out ones too; rows are of the images that are there
    listed = read_contents(pets_folder).listed
    splits = split_names(list(listed), listed, "seed")
    missing = {splits["train"][7], splits["val"][7]}
    kept = tuple(sample for sample in prepared.samples if sample.id not in missing)
    for names in splits.values():
        rows = dataclasses.replace(prepared, samples=kept).rows(names)
        assert [kept[row].id for row in rows] == [name for name in names if name not in missing]


BREEDS = ("Abyssinian", "Sphynx", "beagle", "pug", "samoyed")
counts = st.dictionaries(st.sampled_from(BREEDS), st.integers(1, 40), min_size=1)


def names_of(counts):
    return [f"{breed}_{number}" for breed, count in counts.items() for number in range(1, count + 1)]


@given(counts, st.floats(0.01, 0.99), st.integers(0, 5), st.randoms(use_true_random=False))
def test_quotas_whatever_the_order(counts, share, seed, rng):
    names = names_of(counts)
    drawn = stratified_validation(names, share=share, seed=seed)
    assert drawn == sorted({*drawn} & {*names})
    assert len(drawn) == max(1, round(share * len(names)))
    by_breed = Counter(map(breed_of, drawn))
    assert all(abs(by_breed[breed] - share * count) < 1 + 1e-9 for breed, count in counts.items())
    rng.shuffle(names)
    assert stratified_validation(names, share=share, seed=seed) == drawn


NAMES = st.one_of(
    st.builds("{}_{}".format, st.sampled_from(BREEDS), st.integers(1, 200)),
    st.sampled_from(sorted(COMMITTED_VALIDATION)),
    st.text(min_size=1, max_size=8),
)
LISTS = st.dictionaries(NAMES, st.sampled_from(["trainval", "test", "none"]), min_size=2, max_size=80)


@settings(max_examples=150)
@given(LISTS, st.sampled_from(["official", "seed"]))
def test_parts_are_disjoint_and_nobody_is_lost(listed, protocol):
    splits = split_names(list(listed), listed, protocol)
    together = [name for names in splits.values() for name in names]
    assert len(together) == len({*together})
    if protocol == "seed":
        assert {*together} == {*listed}
        assert len(splits["val"]) == len(listed) // 2
    else:
        assert {*splits["train"], *splits["val"]} == names_in(listed, "trainval")
        assert {*splits["test"]} == names_in(listed, "test")


@pytest.mark.real
def test_splits_of_the_real_dataset():
    """Archives are unpacked into the tests' cache: give a folder in the official layout to save that minute."""
    folder = os.environ.get("PETSEG_DATA")
    if not folder:
        pytest.skip("PETSEG_DATA is not set: the splits of the REAL dataset were NOT tested")
    dataset = open_dataset(Path(folder))
    contents = read_contents(dataset.samples[0].image.parents[1])
    assert Counter(contents.listed.values()) == {"trainval": 3680, "test": 3669, "none": 41}
    assert Counter(map(breed_of, names_in(contents.listed, "trainval"))) == TRAINVAL
    in_a_list = [contents.species[name] for name, part in contents.listed.items() if part != "none"]
    assert Counter(in_a_list) == {1: 2371, 2: 4978}
    assert {part: len(names) for part, names in dataset.splits.items()} == OFFICIAL
    assert {*dataset.splits["val"]} == COMMITTED_VALIDATION
    seed = split_names(list(contents.listed), contents.listed, "seed")
    images = [path.stem for path in dataset.samples[0].image.parent.glob("[!.]*.jpg")]
    assert (seed["train"], seed["val"]) == tutorial(images)
    assert (len(seed["train"]), len(seed["val"])) == (6390, 1000)


def test_training_on_a_fraction_leaves_validation_and_test_alone(prepared):
    def rows(share, seed=0):
        config = RunConfig(data=DataConfig(size=32, fraction=share), train=TrainConfig(seed=seed))
        return {part: split.rows.tolist() for part, split in load_splits(prepared, config, CPU).items()}

    whole, half = rows(1.0), rows(0.5)
    assert len(half["train"]) == round(len(whole["train"]) / 2)
    assert set(half["train"]) < set(whole["train"])
    assert (half["val"], half["test"]) == (whole["val"], whole["test"])
    assert rows(0.5) == half
    assert rows(0.5, seed=1)["train"] != half["train"], "each seed draws its own"


def test_a_fraction_of_images_that_have_groups_is_of_groups(prepared):
    config = RunConfig(data=DataConfig(size=32, fraction=0.5, groups="^([A-Za-z]+)"))
    names = [prepared.samples[row].id for row in load_splits(prepared, config, CPU)["train"].rows]
    breeds = Counter(breed_of(name) for name in prepared.dataset.splits["train"])
    held = Counter(map(breed_of, names))
    assert 0 < len(held) < len(breeds)
    assert held == {breed: breeds[breed] for breed in held}


@pytest.mark.parametrize(("train", "val"), [(0, 0), (1, 1), (2, 0), (2, 1)])
def test_too_few_images_to_train(prepared, train, val):
    names = [sample.id for sample in prepared.samples]
    splits = {"train": tuple(names[:train]), "val": tuple(names[train : train + val])}
    small = dataclasses.replace(prepared, dataset=dataclasses.replace(prepared.dataset, splits=splits))
    match = rf"{train} training and {val} validation images can be used; wanted at"
    with contextlib.nullcontext() if (train, val) == (2, 1) else pytest.raises(PetsegError, match=match):
        load_splits(small, RunConfig(data=DataConfig(size=32)), CPU)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ((), "no split train and no val; given are none: name both"),
        (("train", "test"), "no split val; given are 'train', 'test'"),
        (("val",), "no split train; given are 'val': .*with_splits` draw them"),
    ],
)
def test_without_train_or_val_nothing_trains(prepared, parts, match, tmp_path):
    splits = {part: prepared.dataset.splits[part] for part in parts}
    unsplit = dataclasses.replace(prepared, dataset=dataclasses.replace(prepared.dataset, splits=splits))
    config = RunConfig(data=DataConfig(size=32, fraction=0.5))
    refused(f"^Oxford-IIIT Pet: {match}", load_splits, unsplit, config, CPU)
    refused(match, refuse_spoiled, unsplit)
