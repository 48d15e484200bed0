"""NumPy's .npy files as images: a reader for Pillow, so that they are read wherever images are."""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

MAGIC = b"\x93NUMPY"
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class ArrayFile(ImageFile.ImageFile):
    """An array [H, W] of any numbers, or uint8 [H, W, 1], [H, W, 3] or [H, W, 4]; nothing is unpickled."""

    format = "NPY"
    format_description = "NumPy array"

    def _open(self) -> None:
        assert self.fp is not None
        read_header = HEADERS.get(np.lib.format.read_magic(self.fp))
        if read_header is None:
            raise ValueError("an array with names in its type; wanted one of numbers")
        shape, _, dtype = read_header(self.fp)
        channels = shape[2] if len(shape) == 3 else 1
        if len(shape) not in (2, 3) or channels not in (1, 3, 4) or dtype.kind not in "biuf":
            raise ValueError(f"an array of shape {shape} and {dtype}; wanted numbers of shape [H, W] or [H, W, 3]")
        if channels > 1 and dtype != np.uint8:
            raise ValueError(f"{channels} channels of {dtype}; wanted uint8: scale them first")
        limit = Image.MAX_IMAGE_PIXELS or math.inf
        if math.prod(shape[:2]) > limit:  # before they are read
            raise Image.DecompressionBombError(f"{math.prod(shape[:2]):,} pixels; at most {limit:,} are read")
        self.fp.seek(0)
        array = np.load(self.fp)  # which unpickles nothing unless told to
        picture = Image.fromarray(_plain(array if channels > 1 else array.reshape(shape[:2])))
        self._mode, self._size, self.im, self.tile = picture.mode, picture.size, picture.im, []


def _plain(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Returns the array as a type that Pillow has: uint8, uint16, int32 or float32."""
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind == "b" or array.dtype == np.uint8:
        return array.astype(np.uint8)
    if array.dtype == np.uint16:
        return array.astype("<u2")
    whole = array.astype(np.int32)
    if (whole != array).any():
        raise ValueError(f"values up to {array.max()}; wanted at most {np.iinfo(np.int32).max:,}")
    return whole


def register() -> None:
    """Lets Pillow read .npy files."""
    Image.register_open(ArrayFile.format, ArrayFile, lambda start: start.startswith(MAGIC))
