"""Holds shipped files against the runs they come from, on every test picture: same class by pixel, same mIoU; and
scores what `--flip` gains.

python scripts/check_weights.py unet_base=runs/base/unet segnet_base=runs/base/segnet

A file holds fp16 weights and runs in ONNX Runtime; the run's weights are fp32 and run in torch, in fp32.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petseg import environment as machine
from petseg import storage
from petseg.data.cache import find_data, prepare
from petseg.data.oxford_pets import Pet, UInt8, get_task, open_trimap
from petseg.errors import PetsegError
from petseg.evaluation.evaluate import load_run, upsample
from petseg.export.quantise import LogProbabilities
from petseg.metrics import confusion_matrix, mean_iou
from petseg.predict.segmenter import Segmenter, model_file
from petseg.training.loop import choose_hardware, load_splits, predict_logits, scored

OUT = Path(__file__).parent.parent / "results" / "benchmarks" / "weights.json"

SMALLEST_AGREEMENT = 0.9999
"""Of pixels that get the same class."""

LARGEST_LOSS = 0.002
"""Of mIoU."""


def check(model: str | Path, run: Path, data: Path, split: str = "test") -> dict[str, Any]:
    """Returns how far a shipped model, or an exported file, gives what its run gives, at each picture's own size.

    Raises:
        PetsegError: the run is not the one that the file was made from.
    """
    hardware = choose_hardware("fp32", "cpu")
    trained_model, config, _, epoch = load_run(run, hardware)
    segmenter = Segmenter(model, runtime="onnxruntime")
    if (segmenter.card["config"], segmenter.card["epoch"]) != (config.model_dump(mode="json"), epoch):
        raise PetsegError(f"{run}: {model} was not made from it; name the run that was exported")
    prepared = prepare(data, config.data.size)
    pictures = load_splits(prepared, config, hardware.device)[split]
    trained = get_task(config.data.task, config.data.border)
    classes, table = len(trained.scored.classes), trained.scored.table()

    def compare(pet: Pet, *views: Tensor) -> tuple[Any, ...]:
        truth = table[pet.species][open_trimap(pet)]
        size = (truth.shape[0], truth.shape[1])
        found = [_classes(logits, size) for logits in views]
        same = int((found[0] == found[1]).sum())
        return same, truth.size, *(confusion_matrix(truth, labels, classes) for labels in found)

    model_and_file = _Views(LogProbabilities(segmenter.probabilities), trained_model)
    found = []
    with ThreadPoolExecutor() as pool:
        for rows, labels, logits in predict_logits(model_and_file, pictures, pictures.rows, hardware):
            views = [scored(each, labels, trained)[0] for each in logits.chunk(len(VIEWS), dim=1)]
            found += pool.map(compare, [prepared.pets[row] for row in rows], *views)
    same, pixels, *confusions = (sum(column) for column in zip(*found, strict=True))
    miou = {name: float(mean_iou(confusion)) for name, confusion in zip(VIEWS, confusions, strict=True)}
    return {
        "split": split,
        "images": len(found),
        "frame": "each image's own size",
        "pixels": pixels,
        "agreement": same / pixels,
        "miou": miou,
        "loss": miou["run"] - miou["file"],
        "epoch": epoch,
        "sha256": hashlib.sha256(model_file(str(model))).hexdigest(),
    }


VIEWS = ("file", "run", "flip")
"""The shipped file, the run in torch, and the file as `petseg predict --flip` uses it."""


class _Views(nn.Module):
    def __init__(self, file: nn.Module, run: nn.Module) -> None:
        super().__init__()
        self.file, self.run = file, run

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits of `VIEWS`, [N, 3C, H, W]."""
        plain, mirrored = self.file(images), self.file(images.flip(-1)).flip(-1)
        return torch.cat([plain, self.run(images), torch.logaddexp(plain, mirrored)], dim=1)


def _classes(logits: Tensor, size: tuple[int, int]) -> UInt8:
    labels: UInt8 = upsample(logits, size).argmax(dim=0).to(torch.uint8).numpy()
    return labels


def main() -> None:
    """Checks each and writes what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=RUN", help="a shipped model and the run it was made from")
    parser.add_argument("--data", type=Path, help="the data set; default: PETSEG_DATA, then what was downloaded")
    options = parser.parse_args()
    pairs = [(name, run) for name, _, run in (model.partition("=") for model in options.models)]
    data = find_data(options.data)
    if data is None:
        raise PetsegError("no data set: give --data or PETSEG_DATA, or run `petseg data get`")
    result: dict[str, Any] = {
        "kind": "benchmark",
        "command": "python scripts/check_weights.py " + " ".join(f"{name}=RUN" for name, _ in pairs),
        "environment": machine.environment(device="cpu", precision="fp32", threads=torch.get_num_threads()),
        "models": {},
    }
    for name, run in pairs:
        found = result["models"][name] = check(name, Path(run), data)
        good = found["agreement"] >= SMALLEST_AGREEMENT and found["loss"] <= LARGEST_LOSS
        print(
            f"{name}: same class on {100 * found['agreement']:.4f} % of {found['pixels']:,} pixels, mIoU "
            f"{found['miou']['file']:.4f} instead of {found['miou']['run']:.4f}: {'good' if good else 'NOT GOOD'}; "
            f"mirrored too, {found['miou']['flip']:.4f}"
        )
    storage.write_json(OUT, result)


if __name__ == "__main__":
    try:
        main()
    except PetsegError as error:
        sys.exit(str(error))
