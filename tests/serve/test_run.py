"""`petseg serve --run`: a run of three classes that are no pets, by the API and in a real Chromium."""

import json
import re

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from petseg.predict.segmenter import Segmenter
from tests.cli.test_commands import one_line_error, petseg
from tests.conftest import Served, chromium, prepare_for, tiny, train_on_cpu

COLOURS = {"background": (40, 40, 40), "leaf": (40, 200, 60), "stem": (200, 120, 40)}


def plants(folder):
    """Writes images of a green and a brown square, and their masks of class ids."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(12):
        ids = np.zeros((48, 64), np.uint8)
        ids[8 : 20 + number, 6:26], ids[10 : 30 + number, 38:54] = 1, 2
        image = np.array(list(COLOURS.values()), np.uint8)[ids] + draw.integers(0, 20, (48, 64, 3), np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{number:02}.png")
        Image.fromarray(ids).save(folder / "masks" / f"{number:02}.png")
    lines = [f'[[classes]]\nname = "{name}"\n' for name in COLOURS]
    (folder / "classes.toml").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plants")
    config = tiny("train.epochs=4", "train.learning_rate=0.02")
    train_on_cpu(config, prepare_for(config, plants(folder / "data")), folder / "my-plants")
    return folder / "my-plants"


@pytest.fixture(scope="module")
def served_run(run):
    server = Served("--run", str(run))
    yield server
    server.stop()


def test_the_api_knows_the_run_s_classes_and_no_pets(served_run, run):
    listed = httpx.get(f"{served_run.url}/api/models").json()
    assert (listed["default"], listed["shipped"]) == ("my-plants", False)
    (model,) = listed["models"]
    assert [each["name"] for each in model["classes"]] == list(COLOURS)
    photo = (run.parent / "data" / "images" / "03.png").read_bytes()
    segmenter = Segmenter(run / "model.onnx", threads=1)
    for options in ({}, {"foreground": ["stem"]}, {"foreground": ["leaf", "background"], "raw": True}):
        asked = {"output": "json", **options}
        answer = httpx.post(f"{served_run.url}/api/segment", params=asked, files={"image": photo}, timeout=60).json()
        wanted = segmenter.using(**options)(photo).summary().to_dict()
        assert (answer.pop("model"), answer["presence"], answer.pop("milliseconds") > 0) == ("my-plants", None, True)
        assert answer == json.loads(json.dumps(wanted))
    wrong = httpx.post(f"{served_run.url}/api/segment?model=unet", files={"image": photo})
    assert (wrong.status_code, wrong.json()["detail"]) == (422, "model 'unet' is unknown; choose one of: my-plants")
    assert str(run.parent) not in httpx.get(f"{served_run.url}/openapi.json").text


def test_what_is_no_run_is_one_line(tmp_path):
    assert "is this the folder of a finished run" in one_line_error(petseg("serve", "--run", tmp_path, "--no-open"))


def test_the_page_has_the_run_s_colours_and_words(served_run, run):
    if chromium() is None:
        pytest.skip("NO BROWSER: no Chromium on the path, so the page is not tested")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(served_run.url)
        page.wait_for_selector("body[data-ready]")
        page.set_input_files("#file", run.parent / "data" / "images" / "03.png")
        expect(page.locator(".sees")).to_have_text(re.compile("leaf|stem"), timeout=60_000)
        expect(page.locator("#title")).to_have_text("Cut out: leaf, stem")
        expect(page.locator("input[name=view]")).to_have_count(2)
        page.locator("input[value=masks]").check(force=True)
        expect(page.locator(".legend li")).to_have_text(list(COLOURS))
        assert page.locator("[data-output=trimap]").count() == 0
        for place in ("#try", "#api"):
            page.goto(f"{served_run.url}/{place}")
            words = page.locator("body").inner_text().lower()
            assert not {"cat", "dog", "pet"} & {*words.replace("petseg", "").replace(",", " ").split()}
            assert "u-net and segnet" not in words
        browser.close()
