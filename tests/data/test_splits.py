"""Who trains, who validates, who tests: the committed split, the tutorial's, and the one for other sets."""

from __future__ import annotations

import os
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from petseg.config import DataConfig, RunConfig, TrainConfig
from petseg.data.cache import Prepared, open_data
from petseg.data.oxford_pets import (
    Pet,
    breed_of,
    committed_validation,
    species_of,
    split_names,
    stratified_validation,
    training_part,
)
from petseg.data.synthetic import CATS, DOGS
from petseg.training.loop import load_splits

TRAINVAL = dict.fromkeys(CATS + DOGS, 100) | {
    "Bombay": 96,
    "Egyptian_Mau": 93,
    "Siamese": 99,
    "english_cocker_spaniel": 96,
    "newfoundland": 96,
}
"""Breed -> names in the official trainval.txt; 3,680 in all."""


def made_lists() -> dict[str, str]:
    """Returns 7,390 names -> list; trainval holds the committed names and as many of each breed as the official one."""
    listed = dict.fromkeys(sorted(committed_validation()), "trainval")
    for breed, wanted in TRAINVAL.items():
        free = (name for number in range(1, 300) if (name := f"{breed}_{number}") not in listed)
        for _ in range(wanted - sum(breed_of(name) == breed for name in committed_validation())):
            listed[next(free)] = "trainval"
    for part, count in (("test", 3669), ("none", 41)):
        listed |= {
            f"{(CATS + DOGS)[number % 37]}_{1000 + number}{'0' * (part == 'none')}": part for number in range(count)
        }
    names = list(listed)
    random.Random(5).shuffle(names)  # no order that a folder happens to give may matter
    return {name: listed[name] for name in names}


@pytest.fixture(scope="module")
def listed() -> dict[str, str]:
    made = made_lists()
    assert Counter(made.values()) == {"trainval": 3680, "test": 3669, "none": 41}
    return made


# The committed split


def test_committed_validation():
    names = committed_validation()
    assert len(names) == 368
    by_breed = Counter(breed_of(name) for name in names)
    assert {*by_breed} == {*CATS, *DOGS}
    for breed, count in by_breed.items():
        assert abs(count - TRAINVAL[breed] / 10) < 1, breed


def test_the_committed_file_is_sorted_and_without_doubles():
    path = Path(__file__).parents[2] / "petseg" / "data" / "splits" / "official_val.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    names = [line for line in lines if not line.startswith("#")]
    assert names == sorted(set(names))
    assert frozenset(names) == committed_validation()


def test_official_protocol(listed):
    splits = split_names(list(listed), listed, "official")
    assert {part: len(names) for part, names in splits.items()} == {"train": 3312, "val": 368, "test": 3669}
    assert {*splits["val"]} == committed_validation()
    assert {*splits["train"]} == {name for name in listed if listed[name] == "trainval"} - committed_validation()
    assert {*splits["test"]} == {name for name in listed if listed[name] == "test"}
    for names in splits.values():
        assert names == sorted(names)


def test_official_protocol_of_another_set_validates_on_a_tenth_of_its_own_trainval():
    listed = {f"beagle_{number}": "trainval" for number in range(300, 340)} | {"beagle_1": "test", "beagle_2": "none"}
    splits = split_names(list(listed), listed, "official")
    assert splits["val"] == stratified_validation([name for name in listed if listed[name] == "trainval"])
    assert {part: len(names) for part, names in splits.items()} == {"train": 36, "val": 4, "test": 1}


def test_official_protocol_with_a_picture_missing_keeps_the_others(listed):
    """Else near-duplicates of training pictures validate, and figures stand beside others of another split."""
    gone = sorted(committed_validation())[7]
    splits = split_names([name for name in listed if name != gone], listed, "official")
    assert {*splits["val"]} == committed_validation() - {gone}


# The tutorial's split


def tutorial(names: list[str], val_samples: int = 1000) -> tuple[list[str], list[str]]:
    """Returns (train, val) as keras-io's "Image segmentation with a U-Net-like architecture" makes them.

    Its own lines: `input_img_paths = sorted(os.path.join(input_dir, fname) for fname in os.listdir(input_dir) if
    fname.endswith(".jpg"))`, `random.Random(1337).shuffle(input_img_paths)`, `input_img_paths[:-val_samples]`.
    """
    paths = sorted("images/" + name + ".jpg" for name in names)
    random.Random(1337).shuffle(paths)
    stems = [path.removeprefix("images/").removesuffix(".jpg") for path in paths]
    return stems[:-val_samples], stems[-val_samples:]


def test_seed_protocol_is_the_tutorials(listed):
    splits = split_names(list(listed), listed, "seed")
    train, val = tutorial(list(listed))
    assert {part: len(names) for part, names in splits.items()} == {"train": 6390, "val": 1000}
    assert {*splits["train"]} == {*train}
    assert {*splits["val"]} == {*val}
    for names in splits.values():
        assert names == sorted(names)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_left_out_picture_does_not_shift_the_seed_protocol(listed, part):
    """Names come from `all_listed`, which holds left-out pictures too; rows from the pictures that are there."""
    train, val = tutorial(list(listed))
    gone = (train if part == "train" else val)[17]
    prepared = a_prepared_set(listed, left_out={gone})
    splits = split_names(list(prepared.all_listed), prepared.all_listed, "seed")
    rows = {part: prepared.rows(names) for part, names in splits.items()}
    assert {part: len(r) for part, r in rows.items()} == {
        "train": 6390 - (part == "train"),
        "val": 1000 - (part == "val"),
    }
    there = {part: {prepared.pets[row].name for row in r} for part, r in rows.items()}
    assert there == {"train": {*train} - {gone}, "val": {*val} - {gone}}


def a_prepared_set(listed: dict[str, str], left_out: set[str]) -> Prepared:
    pets = tuple(
        Pet(name, Path(f"{name}.jpg"), Path(f"{name}.png"), breed_of(name), species_of(name), listed[name])
        for name in sorted(listed)
        if name not in left_out
    )
    return Prepared(
        folder=Path("prepared"),
        size=1,
        images=np.zeros((len(pets), 1, 1, 3), np.uint8),
        trimaps=np.ones((len(pets), 1, 1), np.uint8),
        pets=pets,
        left_out=dict.fromkeys(left_out, "made"),
        notes={},
        source="made",
        all_listed=dict(sorted(listed.items())),
    )


def test_seed_protocol_of_a_small_set_validates_on_half_at_most():
    names = [f"beagle_{number}" for number in range(9)]
    splits = split_names(names, {}, "seed")
    train, val = tutorial(names, val_samples=4)
    assert splits == {"train": sorted(train), "val": sorted(val)}


# A stratified draw

BREEDS = ("Abyssinian", "Sphynx", "beagle", "pug", "samoyed")
counts = st.dictionaries(st.sampled_from(BREEDS), st.integers(1, 40), min_size=1)


def names_of(counts: dict[str, int]) -> list[str]:
    return [f"{breed}_{number}" for breed, count in counts.items() for number in range(1, count + 1)]


@given(counts, st.floats(0.01, 0.99), st.integers(0, 5))
def test_quotas(counts, share, seed):
    names = names_of(counts)
    drawn = stratified_validation(names, share=share, seed=seed)
    assert drawn == sorted(set(drawn))
    assert {*drawn} <= {*names}
    assert len(drawn) == max(1, round(share * len(names)))
    by_breed = Counter(breed_of(name) for name in drawn)
    for breed, count in counts.items():
        assert abs(by_breed[breed] - share * count) < 1 + 1e-9


def test_largest_remainders_get_the_rest():
    """A tenth of 14, 16 and 27: floors 1, 1, 2 make 4 of 6; the remainders .7 (27) and .6 (16) get one each."""
    drawn = stratified_validation(names_of({"beagle": 14, "pug": 16, "samoyed": 27}))
    assert Counter(breed_of(name) for name in drawn) == {"beagle": 1, "pug": 2, "samoyed": 3}


@given(counts, st.data(), st.floats(0.01, 0.99))
def test_barred_names_are_never_drawn(counts, data, share):
    names = names_of(counts)
    barred = frozenset(data.draw(st.sets(st.sampled_from(names))))
    drawn = stratified_validation(names, share=share, barred=barred)
    assert not barred & {*drawn}
    free = Counter(breed_of(name) for name in names if name not in barred)
    wanted = Counter(breed_of(name) for name in stratified_validation(names, share=share))
    # the quota is that of the whole breed, as far as free names go
    assert Counter(breed_of(name) for name in drawn) == +Counter({b: min(wanted[b], free[b]) for b in counts})


@given(counts, st.randoms(use_true_random=False))
def test_same_seed_same_draw_whatever_the_order(counts, rng):
    names = names_of(counts)
    drawn = stratified_validation(names, share=0.3, seed=3)
    rng.shuffle(names)
    assert stratified_validation(names, share=0.3, seed=3) == drawn


def test_another_seed_another_draw():
    names = names_of({"beagle": 40, "pug": 40})
    assert stratified_validation(names) == stratified_validation(names, seed=0, share=0.1)
    assert stratified_validation(names, seed=1) != stratified_validation(names, seed=0)


def test_a_breed_more_leaves_the_draws_of_the_others_alone():
    one = stratified_validation(names_of({"beagle": 40}))
    two = stratified_validation(names_of({"beagle": 40, "pug": 40}))
    assert [name for name in two if breed_of(name) == "beagle"] == one


def test_one_name_at_least():
    assert len(stratified_validation(["beagle_1", "beagle_2"], share=0.1)) == 1


# Disjoint, always


@settings(max_examples=150)
@given(
    st.dictionaries(
        st.one_of(
            st.builds("{}_{}".format, st.sampled_from(BREEDS), st.integers(1, 200)),
            st.sampled_from(sorted(committed_validation())),
            st.text(min_size=1, max_size=8),
        ),
        st.sampled_from(["trainval", "test", "none"]),
        min_size=2,
        max_size=80,
    ),
    st.sampled_from(["official", "seed"]),
)
def test_parts_are_disjoint_and_nobody_is_lost(listed, protocol):
    splits = split_names(list(listed), listed, protocol)
    together = [name for names in splits.values() for name in names]
    assert len(together) == len({*together})
    if protocol == "seed":
        assert {*together} == {*listed}
        assert len(splits["val"]) == len(listed) // 2
    else:
        assert {*splits["train"], *splits["val"]} == {name for name in listed if listed[name] == "trainval"}
        assert {*splits["test"]} == {name for name in listed if listed[name] == "test"}


# The real lists


@pytest.mark.real
def test_splits_of_the_real_set():
    """Archives are unpacked into the tests' cache: give a folder in the official layout to save that minute."""
    folder = os.environ.get("PETSEG_DATA")
    if not folder:
        pytest.skip("PETSEG_DATA is not set: the splits of the REAL data set were NOT tested")
    contents, _ = open_data(Path(folder))
    listed = {pet.name: pet.listed for pet in contents.pets}
    assert Counter(listed.values()) == {"trainval": 3680, "test": 3669, "none": 41}
    assert Counter(breed_of(name) for name in listed if listed[name] == "trainval") == TRAINVAL
    assert Counter(pet.species for pet in contents.pets if pet.listed != "none") == {1: 2371, 2: 4978}
    official = split_names(list(listed), listed, "official")
    assert {part: len(names) for part, names in official.items()} == {"train": 3312, "val": 368, "test": 3669}
    assert {*official["val"]} == committed_validation()
    seed = split_names(list(listed), listed, "seed")
    train, val = tutorial([path.stem for path in (contents.folder / "images").glob("[!.]*.jpg")])
    assert seed == {"train": sorted(train), "val": sorted(val)}
    assert (len(seed["train"]), len(seed["val"])) == (6390, 1000)


# Fractions of the training pictures


@pytest.mark.parametrize("share", [0.125, 0.25, 0.5, 1.0])
def test_a_fraction_holds_each_breed_in_proportion(listed, share):
    names = split_names(list(listed), listed, "official")["train"]
    part = training_part(reversed(names), share)
    assert len(part) == round(share * len(names))
    assert part == sorted(set(part))
    whole, drawn = Counter(map(breed_of, names)), Counter(map(breed_of, part))
    for breed, count in whole.items():
        assert abs(drawn[breed] - share * count) <= 1, breed


def test_a_smaller_fraction_lies_within_a_larger_one(listed):
    names = split_names(list(listed), listed, "official")["train"]
    shares = [set(training_part(names, share)) for share in (0.01, 0.125, 0.25, 0.5, 1.0)]
    assert all(smaller < larger for smaller, larger in pairwise(shares))
    assert shares[-1] == set(names)
    assert training_part(names, 0.5, seed=1) != sorted(shares[3])


def test_a_fraction_of_few_pictures_keeps_two():
    assert len(training_part(["pug_1", "pug_2", "pug_3"], 0.01)) == 2


def test_each_seed_draws_its_own_fraction(prepared):
    data = DataConfig(size=32, fraction=0.5)
    first, second, again = (
        load_splits(prepared, RunConfig(data=data, train=TrainConfig(seed=seed)), torch.device("cpu"))["train"].rows
        for seed in (0, 1, 0)
    )
    assert first.tolist() == again.tolist() != second.tolist()


def test_training_on_a_fraction_leaves_validation_and_test_alone(prepared):
    whole, half = (
        load_splits(prepared, RunConfig(data=DataConfig(size=32, fraction=share)), torch.device("cpu"))
        for share in (1.0, 0.5)
    )
    assert len(half["train"].rows) == round(len(whole["train"].rows) / 2)
    assert set(half["train"].rows) < set(whole["train"].rows)
    for part in ("val", "test"):
        assert half[part].rows.tolist() == whole[part].rows.tolist()
