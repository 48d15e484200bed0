"""docs/own-images.md, followed from its first line to its last: labels of an annotation tool to a report and masks."""

import re
import time
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg.data.sources import open_dataset
from petseg.schema import ComparisonResult, read_record
from tests.cli.test_commands import succeeds

TUTORIAL = Path(__file__).parents[1] / "docs" / "own-images.md"


@pytest.mark.slow
@pytest.mark.timeout(900)  # of a machine that does much else; what is measured is processor time
def test_the_tutorial_goes_from_labels_to_a_report_and_masks_in_two_minutes(tmp_path):
    started = time.process_time()
    text = TUTORIAL.read_text(encoding="utf-8")
    ran = []
    for language, block in re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL):
        if language == "python":
            with chdir(tmp_path):
                exec(block, {})
        for line in block.splitlines() if language == "sh" else []:
            ran.append(succeeds(*line.split()[1:], cwd=tmp_path))
    assert len(ran) == 5
    assert "LabelMe: 40 JSON files: 40 images, 4 classes; train 28, val 6, test 6" in ran[0].stderr
    folder = tmp_path / "runs" / "compare-shapes"
    compared = read_record(folder / "comparison.json", ComparisonResult)
    assert compared.models[0].evaluations["test"].miou > 0.7
    assert "petseg compare --data shapes --set size=64" in compared.command
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert str(folder / "report.html") in ran[1].stdout
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
    bigger = open_dataset(tmp_path / "bigger")
    assert (len(bigger.samples), bigger.classes) == (43, open_dataset(tmp_path / "shapes").classes)
    assert time.process_time() - started < 120
