"""Own images on the command line: the run folder's name, splits that a run keeps, archives, what stops training."""

import shutil

import numpy as np
import pytest
from PIL import Image

from petseg.data.sources import open_dataset
from petseg.schema import Scores, read_record
from petseg.storage import read_json
from petseg.training.runs import read_splits
from tests.cli.test_commands import SETTINGS, one_line_error, petseg, succeeds
from tests.conftest import names


def draw(folder, names):
    """Writes noise with a bright square in each image, and masks of 0 and 255."""
    for place in ("images", "masks"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for name in names:
        random = np.random.default_rng(int(name))
        image, mask = random.integers(0, 120, (40, 48, 3), np.uint8), np.zeros((40, 48), np.uint8)
        y, x = random.integers(2, 20, 2)
        image[y : y + 16, x : x + 16], mask[y : y + 16, x : x + 16] = 200, 255
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    return folder


def test_a_run_is_named_after_the_data_and_scores_the_images_that_it_did_not_train_on(tmp_path):
    draw(tmp_path / "my", [f"{number:02}" for number in range(30)])
    trained = succeeds("train", "--data", "my", "--model", "unet", *SETTINGS, cwd=tmp_path)
    assert "my: images and masks in folders: 30 images, 2 classes; train 21, val 5, test 4" in trained.stderr
    run = tmp_path / "runs" / "my-unet"
    kept = read_splits(run)
    draw(tmp_path / "my", [f"{number:02}" for number in range(30, 50)])  # more images: other splits would be drawn
    assert not {*kept.val} >= {*open_dataset(tmp_path / "my").splits["val"]}
    scored = succeeds("evaluate", run)  # it knows where its images are
    assert "50 images, 2 classes; train 21, val 5, test 4" in scored.stderr
    scores = read_record(run / "evaluations" / "val.my.json", Scores)
    assert (scores.split, scores.images) == ("val", len(kept.val))
    assert {*scores.iou} == {"background", "foreground"}
    draw(tmp_path / "twin", [f"{number:02}" for number in range(10, 40)])
    for place in ("images", "masks"):  # other images of the same names
        for path in sorted((tmp_path / "twin" / place).iterdir()):
            path.rename(path.with_stem(f"{int(path.stem) - 10:02}"))
    agree = "twin: its names agree with those of the run's images, but the images differ; the run's splits are taken"
    assert agree in succeeds("evaluate", run, "--data", "twin", cwd=tmp_path).stderr
    assert "names agree" not in scored.stderr
    (tmp_path / "my").rename(tmp_path / "moved")
    told = one_line_error(petseg("evaluate", run, cwd=tmp_path))
    assert told.endswith(f"images lay in {tmp_path / 'my'}, which is not there; name their folder (--data)")
    (tmp_path / "moved").rename(tmp_path / "my")
    refused = petseg("train", "--data", "my", "--out", run, "--resume", *SETTINGS, cwd=tmp_path)
    assert "holds work on other images" in one_line_error(refused)


def test_other_images_are_scored_all_and_beside_the_run_s_own_and_a_file_knows_its_splits(tmp_path):
    draw(tmp_path / "my", [f"{number:02}" for number in range(24)])
    draw(tmp_path / "new", [f"{number:02}" for number in range(80, 83)])
    parted = draw(tmp_path / "parted", ["90", "91"])
    for place in (parted / "images", parted / "masks"):
        (place / "test").mkdir()
        for path in place.glob("*.png"):
            path.rename(place / "test" / path.name)
    words = ["train", "--data", "my", "--out", "run", "--set", "split=blocks", *SETTINGS]
    succeeds(*words, cwd=tmp_path)
    succeeds("evaluate", "run", cwd=tmp_path)
    assert "run: all, 3 images" in succeeds("evaluate", "run", "--data", "new", cwd=tmp_path).stdout
    assert (
        "run: test, 2 images" in succeeds("evaluate", "run", "--data", "parted", "--split", "test", cwd=tmp_path).stdout
    )
    refused = one_line_error(petseg("evaluate", "run", "--data", "new", "--split", "test", cwd=tmp_path))
    assert "split 'test' is unknown; choose one of: all" in refused
    assert names(tmp_path / "run" / "evaluations") == [
        "all.new.images.json",
        "all.new.json",
        "test.parted.images.json",
        "test.parted.json",
        "val.images.json",
        "val.json",
    ]
    # on from its own config and images; what is given alone changes
    assert "epoch 3" in succeeds("train", "--resume", "--out", "run", "--set", "epochs=3", cwd=tmp_path).stdout
    pytest.importorskip("onnx", reason="the extra `export`")
    succeeds("export", "--run", "run", "--out", "mine.onnx", cwd=tmp_path)
    small = succeeds("export", "--run", "run", "--int8", "--out", "small.onnx", cwd=tmp_path).stdout
    assert "scales from 16 training images" in small
    other = succeeds("export", "--run", "run", "--int8", "--data", "new", "--out", "other.onnx", cwd=tmp_path).stdout
    assert "of the same images; scales from 3 images" in other
    # of the run's own recipe, with its network named or not
    succeeds("train", "--resume", "--model", "unet", "--out", "run", "--set", "epochs=3", cwd=tmp_path)
    found = succeeds("robustness", "mine.onnx", "--data", "my", "--out", "own.json", cwd=tmp_path).stdout
    assert "mine.onnx: test, 4 images" in found
    assert read_json(tmp_path / "own.json")["ids"] == ["20", "21", "22", "23"]
    assert "all, 3 images" in succeeds("robustness", "mine.onnx", "--data", "new", cwd=tmp_path).stdout
    assert "all, 3 images" in succeeds("robustness", "run", "--data", "new", cwd=tmp_path).stdout


def test_an_archive_is_compared_and_predicted_with_as_its_folder_is(tmp_path):
    folder = draw(tmp_path / "cells", [f"{number:02}" for number in range(24)])
    shutil.make_archive(str(folder), "zip", tmp_path, "cells")
    shutil.rmtree(folder)
    words = ["compare", "--data", "cells.zip", "--set", 'models=["unet"]', "--set", "split=blocks"]
    out = succeeds(*words, *SETTINGS, cwd=tmp_path).stdout
    assert "cells, images of at most 48 px: images and masks in folders, classes from the values" in out
    assert "; val and test blocks of neighbours" in out
    run = tmp_path / "runs" / "compare-cells" / "runs" / "unet"
    assert read_splits(run).test == ("20", "21", "22", "23")
    draw(tmp_path / "new", ["77"])
    succeeds("predict", "--run", run, "new/images", "--out", "found", "--only", "mask", cwd=tmp_path)
    with Image.open(tmp_path / "found" / "77.mask.png") as mask:
        assert mask.size == (48, 40)


def test_a_value_of_no_class_stops_training_before_it_begins(tmp_path):
    folder = draw(tmp_path / "my", [f"{number:02}" for number in range(8)])
    (folder / "classes.toml").write_text('[[classes]]\nname = "soil"\nid = 0\n[[classes]]\nname = "leaf"\nid = 255\n')
    mask = np.zeros((40, 48), np.uint8)
    mask[:3] = 7
    Image.fromarray(mask).save(folder / "masks" / "03.png")
    line = one_line_error(petseg("train", "--data", "my", *SETTINGS, cwd=tmp_path))
    assert "data folder my: mask 03 has 144 pixels of value 7, which no class has (nearest: 0, soil)" in line
    assert not (tmp_path / "runs").exists()


def test_settings_read_data_alike_in_every_command_and_what_they_chose_is_written(tmp_path):
    folder = draw(tmp_path / "my", [f"{number:02}" for number in range(8)])
    for path in (folder / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[:2] = 7
        Image.fromarray(mask).save(path)
    settings = ["--set", "data.ignore=[7]"]
    for words in (["convert", "my"], ["merge", "my", "my"]):
        succeeds("data", *words, *settings, "--out", words[0], cwd=tmp_path)
        back = open_dataset(tmp_path / words[0])
        assert [entry.name for entry in back.classes] == ["background", "foreground"]
        assert np.unique(back.read_label(back.samples[0]).ids).tolist() == [0, 1, 255]
    prepared = succeeds("data", "prepare", "--data", "my", *settings, "--size", "32", cwd=tmp_path)
    assert "8 images, 2 classes" in prepared.stderr
    assert prepared.stdout.endswith(": 8 pairs at 32 px\n")
