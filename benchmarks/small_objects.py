"""What `--windows` does for models that were trained on whole photos: mIoU of photos, and of mosaics of 4 x 4 photos.

    python benchmarks/small_objects.py                                    # mIoU of each
    python benchmarks/small_objects.py --out results/benchmarks/small_objects.json

Of validation photos. In a photo the pet is large, and a window shows a part of it; in a mosaic it is small, and windows
are cut where a photo is as large as a window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from measuring import arguments, data_folder, main

from petseg import Segmenter, storage
from petseg.config import load_recipe
from petseg.data.dataset import UInt8, scored_ids
from petseg.data.images import open_sample
from petseg.data.sources import open_dataset
from petseg.environment import environment
from petseg.metrics import confusion_matrix, mean_iou

MODELS, PHOTOS, ACROSS = ("unet_small", "segnet_small"), 64, 4
Labelled = tuple[UInt8, UInt8]  # image [H, W, 3], class ids [H, W]


def mosaic(photos: Sequence[Labelled], side: int) -> Labelled:
    """Returns photos in a square of 4 x 4 cells of `side` pixels, the rest white and ignored."""
    image = np.full((ACROSS * side, ACROSS * side, 3), 255, np.uint8)
    ids = np.full(image.shape[:2], 255, np.uint8)
    for place, (photo, label) in enumerate(photos):
        top, left = (side * part for part in divmod(place, ACROSS))
        image[top : top + label.shape[0], left : left + label.shape[1]] = photo
        ids[top : top + label.shape[0], left : left + label.shape[1]] = label
    return image, ids


def run() -> None:
    """Scores, writes, prints."""
    parser = arguments(__doc__)
    options = parser.parse_args()
    dataset = open_dataset(data_folder(options.data), load_recipe("default", ["task=trimap_species"]).data)
    names = dataset.splits["val"]
    photos = []
    for name in names[:: len(names) // PHOTOS][:PHOTOS]:
        opened = open_sample(dataset, dataset.by_id[name])
        photos.append((np.asarray(opened.image), scored_ids(opened.ids, dataset.merge)))
    side = max(max(ids.shape) for _, ids in photos)
    mosaics = [mosaic(photos[start : start + ACROSS**2], side) for start in range(0, PHOTOS, ACROSS**2)]
    found: dict[str, dict[str, float]] = {}
    for name in MODELS:
        at_once = Segmenter(name, threads=1)
        longer = {"photos": side, "mosaics": at_once.size * ACROSS}
        found[name] = {}
        for kind, images in {"photos": photos, "mosaics": mosaics}.items():
            for view, segmenter in {"at_once": at_once, "windows": at_once.using(windows=longer[kind])}.items():
                counts = [
                    confusion_matrix(ids, scored_ids(segmenter(image).class_ids, dataset.merge), 3)
                    for image, ids in images
                ]
                found[name][f"{kind}_{view}"] = float(mean_iou(np.sum(counts, axis=0)))
                print(f"{name}, {kind}, {view}: mIoU {100 * found[name][f'{kind}_{view}']:.1f}", flush=True)
    if options.out is not None:
        storage.write_json(
            options.out,
            {
                "kind": "benchmark",
                "what": "mIoU of models trained on whole photos, at once and in windows, on photos and mosaics of them",
                "command": "python benchmarks/small_objects.py",
                "environment": environment(device="cpu", precision="fp32", threads=1),
                "photos": PHOTOS,
                "across": ACROSS,
                "rows": [{"name": name, **scores} for name, scores in found.items()],
            },
        )


if __name__ == "__main__":
    main(run)
