"""Opacity where neither foreground nor background is certain (Levin, Lischinski, Weiss, TPAMI 2008, eq. 12 to 15).

Within each window of 3 x 3 pixels, opacity is a linear function of colour; the unknown pixels follow from the known by
conjugate gradients. We differ from the paper: only windows that hold an unknown pixel are set up.

Why no library: pymatting's numba compiles for 40 to 70 s at its first use; its result is the same.
"""

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import cg

from petseg.predict.enlarge import Floats

Doubles = npt.NDArray[np.float64]
EPSILON = 1e-7  # added to each window's covariance of colour (0..1), as in the paper's code
TOLERANCE, STEPS = 1e-5, 2000  # of conjugate gradients: relative residual at which it stops, and most steps


def solved_opacity(image: Floats, known: Doubles, start: Floats) -> Floats:
    """Returns opacity [h, w] in 0..1 of an image [h, w, 3] in 0..1; `known` is 0 or 1, nan where it is solved for.

    `start`, [h, w], is where the solver begins. At least 3 x 3 pixels.
    """
    unknown = np.isnan(known)
    if not unknown.any():
        return known.astype(np.float32)
    laplacian = _laplacian(image.astype(np.float64), unknown)
    places, others = np.flatnonzero(unknown), np.flatnonzero(~unknown)
    rows = laplacian[places]
    inner, rest = rows[:, places], -rows[:, others] @ known.ravel()[others]
    scale = sparse.diags(1 / np.maximum(inner.diagonal(), EPSILON))
    found, _ = cg(inner, rest, x0=start.ravel()[places], rtol=TOLERANCE, maxiter=STEPS, M=scale)
    opacity = known.copy()
    opacity[unknown] = found
    return opacity.clip(0, 1).astype(np.float32)


def _laplacian(image: Doubles, unknown: npt.NDArray[np.bool_]) -> sparse.csr_array:
    """Returns the matting Laplacian [h * w, h * w] of the windows that hold an unknown pixel."""
    height, width = unknown.shape
    near = np.lib.stride_tricks.sliding_window_view(unknown, (3, 3)).any(axis=(2, 3))
    top, left = np.nonzero(near)
    steps = np.arange(3)
    pixels = ((top[:, None, None] + steps[:, None]) * width + left[:, None, None] + steps).reshape(len(top), 9)
    colours = image.reshape(-1, 3)[pixels]
    colours -= colours.mean(axis=1, keepdims=True)
    covariance = np.einsum("nki,nkj->nij", colours, colours) / 9 + EPSILON / 9 * np.eye(3)
    affinity = (1 + np.einsum("nki,nij,nlj->nkl", colours, np.linalg.inv(covariance), colours, optimize=True)) / 9
    values = np.eye(9) - affinity
    shape = (height * width, height * width)
    at = np.repeat(pixels, 9, axis=1).ravel(), np.tile(pixels, (1, 9)).ravel()
    return sparse.coo_array((values.ravel(), at), shape=shape).tocsr()
