"""Near-duplicates: images that a person takes for one another, by perceptual hash."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from petseg.data.dataset import Progress, Sample
from petseg.data.images import opened, outcomes, to_rgb

# The package imagehash computes the same hash, brings scipy and PyWavelets, and compares pairs one by one in Python.
SIDE, KEPT = 32, 9  # pixels a side of the reduced image; its lowest frequencies a side
COSINES = np.cos(np.pi / SIDE * np.outer(np.arange(KEPT), np.arange(SIDE) + 0.5))  # of a DCT-II, not normalised

# Measured on the 7,390 Oxford-IIIT pets (2026-11-26): all 84 pairs up to 8 bits apart show one scene, and the 41 that
# field notes list are among them; of the 26 pairs at 10, more than half show different animals. An image reduced to
# half or saved as JPEG at quality 10 moves by at most 6. Half of a hash's bits are set, so distances are even.
NEAR = 8

DRAFT = 2 * SIDE  # `open_sample` then decodes a JPEG as `stored_hash` does

Hashes = npt.NDArray[np.uint64]


def perceptual_hash(image: Image.Image) -> int:
    """Returns 64 bits of any image: which of its lowest frequencies lie above their median (pHash, Zauner 2010)."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    low = (COSINES @ grey @ COSINES.T).ravel()[1:65]  # without the mean
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes())


def linked(hashes: Hashes) -> npt.NDArray[np.int64]:
    """Returns int64 [N]: the first row of each row's group, which chains of hashes at most `NEAR` bits apart make."""
    groups = np.full(len(hashes), -1, np.int64)
    rest = np.arange(len(hashes))  # rows without a group: each row leaves once, so there are N comparisons with all
    while len(rest):
        first, rest = rest[0], rest[1:]
        groups[first], reached = first, [first]
        while reached and len(rest):
            near = np.bitwise_count(hashes[rest] ^ hashes[reached.pop()]) <= NEAR
            groups[rest[near]] = first
            reached.extend(rest[near])
            rest = rest[~near]
    return groups


def near_duplicates(samples: Sequence[Sample], on_progress: Progress | None = None) -> dict[str, int]:
    """Returns a group for each sample id, the same for near-duplicates; one that cannot be opened has its own."""
    hashes: dict[str, int] = {}
    for sample, found in outcomes(stored_hash, samples, on_progress):
        if not isinstance(found, str):
            hashes[sample.id] = found
    groups = dict(zip(hashes, linked(np.array([*hashes.values()], np.uint64)).tolist(), strict=True))
    return {sample.id: groups.get(sample.id, -1 - row) for row, sample in enumerate(samples)}


def stored_hash(sample: Sample) -> int:
    """Returns the hash of an image as it is stored, whether or not its label was drawn after EXIF turned it."""
    with opened(sample.image, f"{sample.id}: image") as file:
        file.draft("RGB", (DRAFT, DRAFT))
        return perceptual_hash(to_rgb(file, []))
