"""The tutorials: each notebook is its page, and runs."""

import os
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from petseg.data.sources import open_dataset
from petseg.schema import ComparisonResult, read_record
from tests.conftest import scripts

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """Runs a notebook in `tmp_path`, and returns what each code cell of its page printed."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    def execute(name):
        notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for cell in code:  # IPython goes on after a command that failed
            cell.source = re.sub(r"^!.*", r"\g<0>\nassert _exit_code == 0", cell.source, flags=re.MULTILINE)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
        return ["".join(str(output.get("text", output.get("data"))) for output in cell.outputs) for cell in code[1:]]

    return execute


def test_each_notebook_is_the_copy_of_its_page(capsys):
    assert scripts("notebooks").main(["--check"]) == 0, capsys.readouterr().err


def test_a_pet_is_cut_out(executed, tmp_path):
    printed = executed("cut-out")
    assert "cat" in printed[1]
    with Image.open(tmp_path / "cat.mask.png") as mask:
        assert 0.1 < np.mean(np.asarray(mask) == 255) < 0.9
    with Image.open(tmp_path / "white" / "cat.cutout.jpg") as white:
        assert white.size < mask.size
    assert "image/png" in printed[2]
    assert "image/png" in printed[-1]


@pytest.mark.slow
def test_from_zero_u_net_leads_by_its_skips(executed, tmp_path):
    printed = executed("from-zero")
    assert "[5., 0., 0., 4.]" in printed[0]
    result = read_record(tmp_path / "three" / "comparison.json", ComparisonResult)
    assert [one.shown and one.points < -3 for one in result.differences] == [True, True]
    skips = {model.name: model.cost.skip_bytes for model in result.models}
    assert skips["unet"] > 10 * skips["segnet@depth=4"] > skips["unet@skips=false"] == 0
    assert "image/png" in printed[-1]


@pytest.mark.slow
def test_own_images_go_from_labels_to_a_report_and_masks(executed, tmp_path):
    printed = executed("own-images")
    assert "LabelMe: 40 JSON files: 40 images, 4 classes; train 28, val 6, test 6" in printed[2]
    folder = tmp_path / "runs" / "compare-shapes"
    compared = read_record(folder / "comparison.json", ComparisonResult)
    assert compared.models[0].evaluations["test"].miou > 0.7
    assert "petseg compare --data shapes --set size=64" in compared.command
    page = (folder / "report.html").read_text(encoding="utf-8")
    words = re.sub(r"<style.*?</style>|<script.*?</script>|<[^>]*>", " ", page, flags=re.DOTALL)
    for word in ("disc", "box", "triangle", "shapes", "annotated in LabelMe"):
        assert word in words
    assert not re.search(r"\bpets?\b|\bcats?\b|\bdogs?\b|trimap|breed|Oxford", words)
    masks = tmp_path / "masks"
    assert len({*masks.iterdir()}) == 9
    for photo in (tmp_path / "photos").iterdir():
        with Image.open(masks / f"{photo.stem}.classes.png") as found:
            assert (found.size, found.mode) == ((96, 72), "P")
            assert {0, 1, 2} <= {*np.unique(found).tolist()}, "background, box, disc"
    bigger, shapes = open_dataset(tmp_path / "bigger"), open_dataset(tmp_path / "shapes")
    assert (len(bigger.samples), bigger.classes) == (43, shapes.classes)
    assert [bigger.splits[part] for part in ("val", "test")] == [shapes.splits[part] for part in ("val", "test")]
