"""Fits the presence score of shipped models on validation, scores it once on test, and writes it into their cards.

python scripts/presence.py --model unet_base --figures FOLDER --test --out results/masks/presence.json

Fitted on one look at each image; scored on one, and on what `petseg predict` does: a closer one at small pets, too.
Images with a pet: a split. Without: of each, the largest part that is background alone (`free_part`), and `PHOTOS` of
scikit-image, scikit-learn and matplotlib. `--figures` keeps what was measured of each image, so that a stopped call
goes on. `--model NAME:3` takes every third test image. Needs PETSEG_DATA and the extra dev.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from masks import held
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from petseg import environment as machine
from petseg import storage
from petseg.cli.data import data_folder
from petseg.config import load_recipe
from petseg.data.dataset import Dataset, UInt8
from petseg.data.oxford_pets import BACKGROUND, PET, read_trimap
from petseg.data.sources import open_dataset
from petseg.errors import PetsegError
from petseg.predict.photos import Photo
from petseg.predict.presence import FIGURES, Presence, map_figures
from petseg.predict.segmentation import Segmentation
from petseg.predict.segmenter import Segmenter
from petseg.shipped import WEIGHTS

REJECTED, MISSED = 0.97, 0.005  # photos without a pet called so, two points more than wanted, and pets missed
SMALLEST, LONGEST, STEP = 64, 2.0, 8  # of a free part: its shorter side in pixels, longer by shorter side, grid
BINS = 10  # of reliability
CC0, PUBLIC, FREE = "CC0", "public domain", "no known copyright restrictions"
PHOTOS = {  # where a package holds it -> licence; none shows a pet
    **dict.fromkeys(("skimage brick", "skimage camera", "skimage cell", "skimage coffee", "skimage grass"), CC0),
    **dict.fromkeys(("skimage gravel", "skimage retina"), CC0),
    **dict.fromkeys(("skimage astronaut", "skimage clock", "skimage hubble_deep_field", "skimage rocket"), PUBLIC),
    **dict.fromkeys(("skimage text", "matplotlib grace_hopper.jpg"), PUBLIC),
    **dict.fromkeys(("skimage coins", "skimage immunohistochemistry"), FREE),
    **dict.fromkeys(("sklearn china.jpg", "sklearn flower.jpg"), "CC BY 2.0"),
}
Measured = dict[str, Any]  # figures [N, 5], and of pixels in each bin of the mask's confidence: count, sum, pets


def free_part(trimap: UInt8) -> tuple[int, int, int, int] | None:
    """Returns left, top, right, bottom of the largest rectangle of background; None if there is none of 64 px a side.

    >>> free_part(np.full((80, 200), 2, np.uint8))
    (0, 0, 160, 80)
    """
    height, width = trimap.shape
    pets = np.zeros((height + 1, width + 1), np.int64)
    pets[1:, 1:] = (trimap != BACKGROUND).cumsum(axis=0).cumsum(axis=1)
    best, box = 0, None
    for high in range(SMALLEST, height + 1, STEP):
        for wide in range(max(SMALLEST, int(high / LONGEST)), min(width, int(high * LONGEST)) + 1, STEP):
            if high * wide > best:
                inside = pets[high:, wide:] - pets[:-high, wide:] - pets[high:, :-wide] + pets[:-high, :-wide]
                for top, left in np.argwhere(inside == 0)[:1].tolist():
                    best, box = high * wide, (left, top, left + wide, top + high)
    return box


def packaged_photo(name: str) -> Image.Image:
    """Returns one of `PHOTOS`."""
    package, _, part = name.partition(" ")
    if package == "skimage":
        from skimage import data

        return Image.fromarray(getattr(data, part)())
    import matplotlib as mpl
    import sklearn.datasets

    folders = {
        "sklearn": Path(sklearn.datasets.__path__[0]) / "images",
        "matplotlib": Path(mpl.get_data_path()) / "sample_data",
    }
    return Image.open(folders[package] / part)


def pets(dataset: Dataset, split: str) -> Iterator[tuple[Photo, UInt8]]:
    """Yields each photo of a split and its trimap."""
    for name in dataset.splits[split]:
        sample = dataset.by_id[name]
        yield Photo(sample.image), read_trimap(sample.label)


def free(dataset: Dataset, split: str) -> Iterator[tuple[Photo, UInt8 | None]]:
    """Yields the part without a pet of each photo of a split that has one."""
    for photo, trimap in pets(dataset, split):
        if box := free_part(trimap):
            yield Photo(photo.whole().crop(box)), None


def measured(segmenter: Segmenter, photos: Iterator[tuple[Photo, UInt8 | None]]) -> Measured:
    """Returns the figures of each photo, and how sure the mask is of pixels against how often it is right."""
    rows, counts = [], np.zeros((3, BINS))
    for photo, trimap in photos:
        roles = roles_of(segmenter(photo))
        rows.append(map_figures(*roles[:2]))
        if trimap is not None:
            small = np.asarray(Image.fromarray(trimap).resize(roles.shape[:0:-1], Image.Resampling.NEAREST))
            labelled = (small == PET) | (small == BACKGROUND)
            share = (roles[0] / (roles[0] + roles[1]).clip(1e-9))[labelled]
            place = (share * BINS).astype(int).clip(0, BINS - 1)
            for row, weights in enumerate((None, share, small[labelled] == PET)):
                counts[row] += np.bincount(place, weights, BINS)
    return {"figures": rows, "pixels": counts.tolist()}


def roles_of(result: Segmentation) -> Any:
    """Returns how likely foreground, background and boundary are, [3, h, w]."""
    return np.stack(
        [
            result.probabilities[[place for place, each in enumerate(result.classes) if each.role == role]].sum(axis=0)
            for role in ("foreground", "background", "boundary")
        ]
    )


def kept(path: Path, make: Callable[[], Measured]) -> Measured:
    """Returns what a file holds, else what is made and then kept there."""
    if not path.is_file():
        storage.write_json(path, make())
        print(path.name, flush=True)
    found: Measured = storage.read_json(path)
    return found


def fit(with_pet: Any, without: Any) -> Presence:
    """Returns the score fitted on figures [N, 5] of validation, its threshold the lowest that both wishes allow."""
    figures, truth = np.concatenate([with_pet, without]), np.repeat([1, 0], [len(with_pet), len(without)])
    model = make_pipeline(StandardScaler(), LogisticRegression())
    scores = cross_val_predict(model, figures, truth, cv=10, method="decision_function")
    lowest, highest = np.quantile(scores[truth == 0], REJECTED), np.quantile(scores[truth == 1], MISSED)
    threshold = min(lowest, highest)
    scale, regression = (step for _, step in model.fit(figures, truth).steps)
    coefficients = regression.coef_[0] / scale.scale_
    intercept = regression.intercept_[0] - coefficients @ scale.mean_
    return Presence(tuple(coefficients.tolist()), float(intercept), float(1 / (1 + np.exp(-threshold))))


def reliability(scores: Any, truth: Any) -> list[dict[str, float]]:
    """Returns for each bin of scores how many there are, their mean, and the share that is true."""
    place = (scores * BINS).astype(int).clip(0, BINS - 1)
    return bins([np.bincount(place, weights, BINS) for weights in (None, scores, truth)])


def bins(counts: Any) -> list[dict[str, float]]:
    """Returns count, mean and share of each bin that holds anything, from counts and two sums, [3, BINS]."""
    rows = zip(*counts, strict=True)
    return [{"count": int(n), "mean": total / n, "share": right / n} for n, total, right in rows if n]


def score(presence: Presence, found: dict[str, Measured]) -> dict[str, Any]:
    """Returns pets missed and images without a pet rejected, and how reliable presence and mask are."""
    result: dict[str, Any] = {}
    chances = {
        kind: 1 / (1 + np.exp(-(np.array(each["figures"]) @ presence.coefficients + presence.intercept)))
        for kind, each in found.items()
    }
    for kind, values in chances.items():
        below = int((values < presence.threshold).sum())
        result[kind] = {"images": len(values), "below": below, "share": below / len(values)}
    result["presence"] = reliability(
        np.concatenate([chances["pets"], chances["free"]]),
        np.repeat([1, 0], [len(chances["pets"]), len(chances["free"])]),
    )
    result["mask"] = bins(found["pets"]["pixels"])
    return result


def main() -> None:
    """Fits, scores and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", required=True, help="a shipped model, or NAME:3")
    parser.add_argument("--data", type=Path, help="the data set; default: PETSEG_DATA, then what was downloaded")
    parser.add_argument("--figures", type=Path, required=True, help="folder that keeps what was measured")
    parser.add_argument("--test", action="store_true", help="score the test split too")
    parser.add_argument("--out", type=Path, help="JSON to write; other models in it stay; the cards are written too")
    options = parser.parse_args()
    dataset = open_dataset(data_folder(options.data), load_recipe("default").for_model("unet").data)
    results, environments = held(options.out) if options.out is not None else ({}, {})
    for name, _, every in (model.partition(":") for model in options.model):
        segmenter = Segmenter(name, threads=1, runtime="onnxruntime")
        test = dataset.splits["test"][:: int(every or 1)]
        taken = replace(dataset, splits={**dataset.splits, "test": test})
        splits = ("val", "test") if options.test else ("val",)
        looks: dict[str, dict[str, dict[str, Measured]]] = {}
        for look, used in (("one_look", segmenter.using(zoom=False)), ("splits", segmenter)):
            suffix = "" if look == "one_look" else "_zoom"
            looks[look] = {
                split: {
                    kind: kept(options.figures / f"{name}_{split}_{kind}{suffix}.json", partial(measured, used, photos))
                    for kind, photos in (("pets", pets(taken, split)), ("free", free(taken, split)))
                }
                for split in splits
            }
        presence = fit(*(np.array(looks["one_look"]["val"][kind]["figures"]) for kind in ("pets", "free")))
        photos = measured(segmenter, ((Photo(packaged_photo(photo)), None) for photo in PHOTOS))
        chances = np.array(photos["figures"]) @ presence.coefficients + presence.intercept
        card = {
            "coefficients": dict(zip(FIGURES, presence.coefficients, strict=True)),
            "intercept": presence.intercept,
            "threshold": presence.threshold,
        }
        results[name] = {
            **card,
            **{look: {split: score(presence, found) for split, found in sets.items()} for look, sets in looks.items()},
            "photos": {
                photo: {"licence": PHOTOS[photo], "presence": float(1 / (1 + np.exp(-chance)))}
                for photo, chance in zip(PHOTOS, chances, strict=True)
            },
        }
        print(
            name,
            json.dumps(
                {
                    f"{look} {split}": {k: v["share"] for k, v in of.items() if k in ("pets", "free")}
                    for look in looks
                    for split, of in results[name][look].items()
                }
            ),
        )
        if options.out is not None:
            path = Path(str(WEIGHTS)) / f"{name}.json"
            storage.write_json(path, {**storage.read_json(path), "presence": card})
        environments[name] = machine.environment(device="cpu", precision="fp32", threads=1)
    if options.out is not None:
        storage.write_json(options.out, {"kind": "presence", "environments": environments, "models": results})


if __name__ == "__main__":
    try:
        main()
    except PetsegError as error:
        sys.exit(str(error))
