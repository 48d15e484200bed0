"""The dataset contract: classes from metadata, their colours, merged classes, nested shares of a split."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from petseg.data.dataset import (
    BACKGROUND_COLOUR,
    COLOURS,
    Class,
    Dataset,
    Merge,
    Sample,
    classes_from,
    palette,
    part_of,
)
from petseg.data.dataset import scored_ids as scored
from tests.conftest import refused


def test_classes_of_names_get_colours_and_roles_and_objects_keep_what_they_bring():
    classes = classes_from(["leaf", "background", "border", "stem"])
    assert classes == (
        Class("leaf", COLOURS[0], "foreground"),
        Class("background", BACKGROUND_COLOUR, "background"),
        Class("border", COLOURS[2], "boundary"),
        Class("stem", COLOURS[3], "foreground"),
    )
    many = classes_from([f"class {number}" for number in range(255)])
    assert many[3].colour == COLOURS[3]
    assert len({entry.colour for entry in many}) == 255
    sky, tree = classes_from([{"name": "sky", "colour": "#0a0B0c", "role": "background"}, {"name": "tree"}])
    assert (sky, tree) == (Class("sky", "#0a0B0c", "background"), Class("tree", COLOURS[1], "foreground"))


BAD_COLOURS = ["red", "#12345", "#12345g", "#+12345", "#12_345", "0072B2#", 114, "#0072B2\n"]
BAD_CLASSES = [
    ([], "there are 0 classes; wanted 1 to 255"),
    ([f"class {number}" for number in range(256)], "there are 256 classes"),
    (["leaf", "leaf"], "two classes are named leaf"),
    *((["leaf", entry], "class 1 has no name") for entry in ("", {"colour": "#000000"}, {"name": 3}, ["leaf"], None)),
    ([{"name": "leaf", "role": "edge"}], "leaf has role 'edge'; wanted foreground, background or boundary"),
    ([{"name": "leaf", "role": ["x"]}], r"leaf has role \['x'\]"),
    *(([{"name": "leaf", "colour": colour}], r"leaf has colour .*; wanted one as #0072B2") for colour in BAD_COLOURS),
]


@pytest.mark.parametrize(("entries", "match"), BAD_CLASSES)
def test_classes_that_are_refused(entries, match):
    with pytest.raises(ValueError, match=match):
        classes_from(entries)


def own(ids=("a", "b", "c"), label=Path("label.png"), **splits):
    samples = tuple(Sample(one, Path("image.png"), label) for one in ids)
    return Dataset("Garden", samples, classes_from(["soil"]), splits, lambda sample: None, "drawn")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ids": ("a", "b", "a")}, "^Garden: 2 samples have the id 'a'; give each its own$"),
        ({"ids": ("a", 7)}, "^Garden: sample id 7 is of type int; wanted str$"),
        ({"label": "label.png"}, "label of a is 'label.png'; wanted a pathlib.Path$"),
        ({"label": None}, "label of a is None"),
        ({"train": ("a", "b"), "val": ("b", "c")}, "'b' is in train and in val; an image lies in one split, once$"),
        ({"train": ("a", "b"), "test": ("c", "c")}, "'c' is twice in test; an image"),
        ({"train": ("a", "b"), "val": ("x",)}, "split val has 'x', the id of no sample; take it out$"),
        ({"train": (0, 1)}, "split train has 0, the id of no sample"),
    ],
)
def test_samples_and_splits_that_are_refused(options, match):
    refused(match, own, **options)


def test_splits_may_be_none_empty_of_some_samples_or_of_any_name():
    for splits in ({}, {"train": ()}, {"train": ("a",), "val": ()}, {"all": ("a", "b", "c")}, {"train": ["b"]}):
        assert own(**splits).splits == splits
    assert own(ids=()).samples == ()


def test_palette_is_white_beyond_the_classes_and_merged_classes():
    colours = palette(classes_from([{"name": "leaf", "colour": "#0072B2"}, "background"]))
    assert (colours.shape, colours.dtype) == ((256, 3), np.uint8)
    assert colours[:3].tolist() == [[0x00, 0x72, 0xB2], [0xBB, 0xBB, 0xBB], [255, 255, 255]]
    assert (colours[2:] == 255).all()
    merge = Merge(classes_from(["pet", "background", "border"]), (0, 0, 1, 2))
    assert merge.members() == ((0, 1), (2,), (3,))
    labels = np.uint8([[0, 1, 2], [3, 255, 0]])
    assert (scored(labels, merge).tolist(), scored(labels, merge).dtype) == ([[0, 0, 1], [2, 255, 0]], np.uint8)
    assert scored(labels, None) is labels


GROUPS = {"Bombay": 86, "beagle": 90, "pug": 31}
SAMPLES = [Sample(f"{name}_{n}", Path(), Path(), name) for name, count in GROUPS.items() for n in range(count)]


def test_a_share_holds_each_group_in_proportion_and_any_smaller_share():
    parts = {share: part_of(reversed(SAMPLES), share) for share in (0.01, 0.125, 0.25, 0.5, 1.0)}
    for share, part in parts.items():
        assert (len(part), list(part)) == (round(share * len(SAMPLES)), sorted(set(part)))
        drawn = Counter(sample_id.partition("_")[0] for sample_id in part)
        assert all(abs(drawn[group] - share * count) <= 1 for group, count in GROUPS.items())
    assert all(set(smaller) < set(larger) for smaller, larger in pairwise(parts.values()))
    assert set(parts[1.0]) == {sample.id for sample in SAMPLES}
    assert part_of(SAMPLES, 0.5) == parts[0.5] != part_of(SAMPLES, 0.5, seed=1)
    assert [len(part_of(SAMPLES[:count], 0.01)) for count in (3, 1)] == [2, 1], "a share of few keeps two"


def test_a_share_of_whole_groups_comes_nearest_to_that_share_of_the_images():
    rng = np.random.default_rng(0)
    sizes = {f"P{number:02}": int(size) for number, size in enumerate(rng.integers(1, 9, 30))}
    samples = [Sample(f"{name}_{n}", Path(), Path(), name) for name, count in sizes.items() for n in range(count)]
    shares = (0.01, 0.125, 0.25, 0.5, 1.0)
    for seed in range(20):
        parts = [part_of(reversed(samples), share, seed=seed, whole=True) for share in shares]
        for share, part in zip(shares, parts, strict=True):
            held = Counter(sample_id.partition("_")[0] for sample_id in part)
            assert held == {name: sizes[name] for name in held}
            assert len(part) >= 2
            assert abs(len(part) - share * len(samples)) <= max(sizes.values())
        assert all(set(smaller) <= set(larger) for smaller, larger in pairwise(parts))
        assert set(parts[-1]) == {sample.id for sample in samples}
    assert len({part_of(samples, 0.25, seed=seed, whole=True) for seed in range(20)}) > 10
    alone = [Sample(name, Path(), Path(), name) for name in "abc"]
    assert [len(part_of(some, 0.01, whole=True)) for some in (alone, alone[:1], [])] == [2, 1, 0]
