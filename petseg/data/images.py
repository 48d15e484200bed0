"""Opens image files from elsewhere: accepted formats, errors of the decoders, conversion to RGB."""

import math
import re
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from importlib import import_module
from io import BytesIO
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from petseg.cores import core_count
from petseg.data.arrays import register
from petseg.data.dataset import IGNORE, Dataset, Label, Progress, Sample, UInt8
from petseg.errors import PetsegError, first_line

FORMATS = {  # what is decoded -> its suffixes. Pillow reads more, some of it with other programs such as Ghostscript.
    **{"JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "MPO": (), "PNG": (".png",), "WEBP": (".webp",), "AVIF": (".avif",)},
    **{"HEIF": (".heic", ".heif"), "GIF": (".gif",), "BMP": (".bmp",), "TIFF": (".tif", ".tiff")},
    "NPY": (".npy",),
}

# of Pillow's forty; loading all takes a thirtieth of a cold start
PLUGINS = ("Jpeg", "Mpo", "Png", "WebP", "Avif", "Gif", "Bmp", "Tiff")
SUFFIXES = tuple(chain.from_iterable(FORMATS.values()))  # what a folder of photos is searched for, in lower case

KINDS = {  # how a file that no decoder knows begins -> what it is
    rb".{4}ftyp(hei|hev|mif1|msf1)": "a HEIC photo, which pip install 'petseg[heif]' can read",
    rb".{4}ftyp": "a film",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "a JPEG XL image",
    rb"version https://git-lfs": "a git-LFS pointer in the file's place: run git lfs pull",
    rb"%PDF": "a PDF document",
    rb"\s*(<\?xml[^>]*>\s*)?<(!doctype html|html)": "a web page",
    rb"\s*<.*svg": "an SVG drawing",
}

WIDE = {  # largest value of a range that wide pixels may be of -> what is noted
    1: "floats of 0 to 1, scaled to 8-bit",
    255: "8-bit values in wide pixels",
    4095: "12-bit, scaled to 8",
    65_535: "16-bit, scaled to 8",
}

ORIENTATION, SOFTWARE = 0x0112, 0x0131  # tags of EXIF
STORED_WIDTH = 0x0100  # a tag of TIFF
COPY = "petseg copy of "  # the text of the second in an image that petseg wrote again, before the file's SHA-256
CHANNELS = 0x0115  # a tag of TIFF
TURNS = dict(enumerate(("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE"), start=2))
TURNS |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
"""EXIF orientation -> what makes the image upright."""
TURNED = (5, 6, 7, 8)  # those that lay an image on its side

UNREADABLE = (  # what Pillow raises for files that are no image, damaged, or too large: what a decoder stumbles over
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError, TypeError, AttributeError, MemoryError),
    *(LookupError, ArithmeticError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
SAME_ASPECT = 0.02  # a label of another size is resized when the ratio of its sides differs by less than this share
EXIF_NOT_APPLIED = "EXIF rotation, not applied (the label has none)"
EXIF_APPLIED = "EXIF rotation, applied (the label has it)"
EXIF_UNSURE = "EXIF rotation, not applied (the label's shape does not tell)"
Size = tuple[int, int]  # width and height
Result = TypeVar("Result")


@dataclass(frozen=True)
class LabelledImage:
    """An opened sample in the frame of its image."""

    image: Image.Image  # mode RGB; reduced already where `draft` asked for it
    ids: UInt8  # [H, W] class ids at the image's own size, 255 ignored
    notes: tuple[str, ...]  # what was unusual and how it was handled, for `petseg data check`


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Returns those of `FORMATS` that this Pillow has; HEIF comes with the extra `heif`."""
    for plugin in PLUGINS:
        with suppress(ImportError):  # AVIF of an older Pillow
            import_module(f"PIL.{plugin}ImagePlugin")
    register()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def unidentified(head: bytes) -> str:
    """Returns what a file is that none of `FORMATS` is, by its first thousand bytes, and what is wanted."""
    flags = re.DOTALL | re.IGNORECASE
    kind = next((kind for start, kind in KINDS.items() if re.match(start, head[:1000], flags)), None)
    return f"{kind or 'not an image that can be read'}; wanted {', '.join(formats())}"


def draft_side(size: int) -> int:
    """Returns how many pixels the JPEG decoder, which can halve an image as it decodes, must leave of each side."""
    # most official images (500 x 333 px and more) are then halved for sizes below 134 px, which takes half the time
    return size + size // 4


def check_pixels(opened: Image.Image) -> None:
    """Raises `Image.DecompressionBombError` for an image that is too large to decode."""
    # Pillow itself only warns up to twice its limit, and all threads share one filter of warnings
    pixels, limit = opened.width * opened.height, Image.MAX_IMAGE_PIXELS
    if limit and pixels > limit:
        raise Image.DecompressionBombError(f"{pixels:,} pixels; at most {limit:,} are read")


@contextmanager
def opened(path: Path, what: str) -> Iterator[Image.Image]:
    """Yields an image file, not yet decoded; what a decoder stumbles over in the block becomes one line."""
    try:
        with Image.open(path, formats=formats()) as image:
            check_pixels(image)
            yield image
    except PetsegError:  # of the block, in words of its own
        raise
    except UNREADABLE as error:
        # without the folder, which a published comparison should not name
        reason = str(error).replace(repr(str(path)), repr(path.name)).replace(str(path), path.name)
        if isinstance(error, UnidentifiedImageError):
            reason = unidentified(path.read_bytes()) if path.stat().st_size else "is empty"
        raise PetsegError(f"{what} cannot be decoded ({reason})") from None


def scaled_transparency(opened: ImageFile.ImageFile) -> Image.Image:
    """Returns a PNG whose transparent value is scaled as Pillow scaled its pixels, of 2, 4 or 3 x 16 bits."""
    clear, raw = opened.info.get("transparency"), opened.tile[0][3] if opened.tile else None
    if raw in ("L;2", "L;4") and clear is not None:
        opened.info["transparency"] = clear * (85 if raw == "L;2" else 17)
    elif raw == "RGB;16B" and clear is not None:
        opened.info["transparency"] = tuple(value >> 8 for value in clear)
    return opened


def orientation(opened: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8, whatever other tags hold; 1 where it cannot be read, as viewers do."""
    found = None
    with suppress(struct.error, KeyError):  # Pillow reads all tags, and none behind one that it cannot read
        tags = (opened.info.get("exif") or b"").removeprefix(b"Exif\0\0")
        order = {b"II": "<", b"MM": ">"}[tags[:2]]
        (start,) = struct.unpack_from(f"{order}L", tags, 4)
        (count,) = struct.unpack_from(f"{order}H", tags, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tags, place)
            if tag == ORIENTATION:
                (found,) = struct.unpack_from(order + {1: "B", 3: "H", 4: "L"}[kind], tags, place + 8)
    with suppress(*UNREADABLE):  # of a TIFF's own tags, or of XMP
        found = found or opened.getexif().get(ORIENTATION)
    return found if found in TURNS else 1


def upright_size(opened: Image.Image) -> Size:
    """Returns width and height of an image that is not decoded yet, turned as its EXIF says."""
    turned = orientation(opened) in TURNED
    if opened.format == "TIFF":  # newer versions of Pillow swap its width and height at opening
        turned = turned and opened.width == opened.getexif().get(STORED_WIDTH, opened.width)
    return opened.size[::-1] if turned else opened.size


def upright(opened: Image.Image) -> Image.Image:
    """Returns a turned copy; `ImageOps.exif_transpose` also writes all tags anew, which fails on one of an odd type."""
    opened.load()  # by which Pillow itself turns a TIFF
    turn = orientation(opened)
    return opened.transpose(Image.Transpose[TURNS[turn]]) if turn in TURNS else opened.copy()


def copy_of(content: bytes) -> Image.Exif:
    """Returns the EXIF of an image that is written again, upright for example: it names the file that it was."""
    exif = Image.Exif()
    exif[SOFTWARE] = COPY + sha256(content).hexdigest()
    return exif


def original(path: Path) -> str:
    """Returns the SHA-256 of an image's file, or of that which petseg wrote it again from; an OSError is passed on."""
    content = path.read_bytes()
    with suppress(*UNREADABLE), Image.open(BytesIO(content)) as image:
        software = str(image.getexif().get(SOFTWARE, ""))
        if software.startswith(COPY):
            return software.removeprefix(COPY)
    return sha256(content).hexdigest()


def mended_jpeg(content: bytes) -> bytes:
    """Returns a JPEG that lacks its end, but no pixel, with one; anything else as it is."""
    if content.rfind(b"\xff\xd9") > content.rfind(b"\xff\xda"):  # its end stands behind its last pixels
        return content
    with suppress(*UNREADABLE):  # a film behind the photo may hold any bytes
        _pixels(content)
        return content
    # where a pixel is missing, what stands before the end changes it
    ends = [content.removesuffix(b"\xff") + more + b"\xff\xd9" for more in (b"", b"\x55\xaa" * 16)]
    with suppress(*UNREADABLE):
        return ends[0] if _pixels(ends[0]) == _pixels(ends[1]) else content
    return content


def _pixels(content: bytes) -> bytes:
    with Image.open(BytesIO(content)) as image:
        return image.tobytes()


def narrowed(opened: Image.Image, notes: list[str]) -> Image.Image:
    """Returns pixels of 16 bits, 32 bits or floats as 8-bit grey, scaled by the range they are of; others as they are.

    The mode is L, or LA where a value is transparent. Raises `ValueError` where they are of no range of `WIDE`.
    """
    if not opened.mode.startswith("I;16") and opened.mode not in ("I", "F"):
        return opened
    values = np.asarray(opened, np.float64)
    low, high = values.min(), values.max()
    full = next((full for full in WIDE if high <= full and (full > 1 or opened.mode == "F")), None)
    if full is None or not low >= 0:
        raise ValueError(f"pixels of {low:g} to {high:g}; wanted 0 to 1, 255, 4095 or 65535: scale them first")
    notes.append(WIDE[full])
    grey = Image.fromarray((values / (full / 255)).round().astype(np.uint8))
    if (clear := opened.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def unused(opened: Image.Image) -> tuple[str, ...]:
    """Returns what is not used of a file that is not decoded yet: further frames or pages, channels, lower bits."""
    notes: list[str] = []
    first = opened.tell() if hasattr(opened, "tell") else 0
    try:  # MPO is a JPEG with the camera's own preview behind it, no animation
        frames = getattr(opened, "n_frames", 1) if opened.format != "MPO" else 1
    except UNREADABLE:
        if opened.format != "TIFF":
            raise
        opened.seek(first)  # Pillow stays at the last page that it could read
        notes.append("its further pages cannot be read, the first one is used")
    else:
        if frames > 1 and first == 0:  # who gives a PIL image at a later frame means that one
            notes.append(f"{frames} frames, the first one is used")
    channels, kept = getattr(opened, "tag_v2", {}).get(CHANNELS, 1), len(opened.getbands())
    if channels > kept:
        notes.append(f"{channels} channels, {kept} used")
    tiles = getattr(opened, "tile", ())
    scaled = not opened.mode.startswith(("I", "F"))  # by Pillow; others are scaled by their values, in `narrowed`
    if scaled and tiles and ";16" in str(tiles[0][3]):
        notes.append(WIDE[65_535])
    return tuple(notes)


def to_rgb(opened: Image.Image, notes: list[str]) -> Image.Image:
    """Returns the image in RGB; alpha is dropped, since labels describe the colours below it."""
    if opened.mode == "RGB":
        opened.load()
        return opened  # its pixels outlive the file
    if (grey := narrowed(opened, notes)) is not opened:
        return grey.convert("RGB")
    notes.append(f"mode {opened.mode}, converted to RGB")
    return (opened.convert("RGBA") if "transparency" in opened.info else opened).convert("RGB")


def read_ids(path: Path, kind: str = "label") -> npt.NDArray[Any]:
    """Returns the values of an image file of one channel as they are stored, [H, W], of any type."""
    with opened(path, f"{path.stem}: {kind}") as image:
        values = np.asarray(image)
    if values.ndim != 2:
        raise PetsegError(f"{path.stem}: {kind} has shape {values.shape}; a {kind} has one channel")
    return values


def open_sample(dataset: Dataset, sample: Sample, *, draft: int | None = None) -> LabelledImage:
    """Returns the image as RGB and its class ids, both at the image's own size and orientation on disk.

    EXIF rotation is applied only where the label has the shape of the turned image alone: most are drawn on the stored
    pixels. `draft` lets the JPEG decoder reduce the image (the label stays), as long as both sides keep this many
    pixels. Raises `PetsegError` with the reason that `petseg data check` prints.
    """
    with opened(sample.image, f"{sample.id}: image") as file:
        notes = [*unused(file)]
        own_size, turn = _frame(file)
        if file.format != "JPEG" and sample.image.suffix.lower() not in FORMATS[str(file.format)]:
            notes.append(f"{file.format} named {sample.image.suffix}")
        if draft is not None:
            file.draft("RGB", (draft, draft))
        image = to_rgb(file, notes)
    label = open_label(dataset, sample)
    if turn := _applied(label, own_size, turn, notes):
        image, own_size = image.transpose(Image.Transpose[TURNS[turn]]), _turned(own_size, turn)
    return LabelledImage(image, _match(label, own_size, sample.id, notes), tuple(notes))


def open_ids(dataset: Dataset, sample: Sample) -> UInt8:
    """Returns the class ids at the image's own size, as `open_sample` does, without decoding the image."""
    with opened(sample.image, f"{sample.id}: image") as file:
        own_size, turn = _frame(file)
    label = open_label(dataset, sample)
    return _match(label, _turned(own_size, _applied(label, own_size, turn, [])), sample.id, [])


def open_label(dataset: Dataset, sample: Sample) -> Label:
    """Returns what the dataset's `read_label` returns, its ids as uint8; the function may be anybody's.

    Raises `PetsegError` with the sample's id where it fails, or returns anything but 2-D ids of its classes or 255.
    """
    try:
        label: Any = dataset.read_label(sample)
    except PetsegError:
        raise
    except Exception as error:  # of any kind, in a function that is not ours
        reason = (getattr(error, "strerror", None) or first_line(error))[:200]  # without the folder
        raise PetsegError(f"{sample.id}: label cannot be read ({type(error).__name__}: {reason})") from error
    ids: Any = label.ids if isinstance(label, Label) else None
    if not isinstance(label, Label) or not isinstance(ids, np.ndarray):
        kind = type(ids if isinstance(label, Label) else label).__name__
        raise PetsegError(f"{sample.id}: read_label gives a {kind}; wanted Label(ids), ids a NumPy array")
    if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "bui":
        raise PetsegError(f"{sample.id}: label is {ids.dtype} of shape {ids.shape}; wanted integers of shape (H, W)")
    own = ids if ids.dtype == np.uint8 else ids.astype(np.uint8)
    # 255 + 1 is 0 in uint8: one look at all ids, which takes 12 us at 500 x 375 px
    if int((own + np.uint8(1)).max()) > len(dataset.classes) or (own is not ids and (own != ids).any()):
        wrong = ids[(ids != IGNORE) & ((ids < 0) | (ids >= len(dataset.classes)))][0]
        most = len(dataset.classes) - 1
        raise PetsegError(
            f"{sample.id}: label holds an id of no class ({wrong}); wanted 0 to {most}, or {IGNORE}: ignored"
        )
    return label if own is ids else replace(label, ids=own)


def _frame(file: Image.Image) -> tuple[Size, int]:
    """Returns the width and height of an image as it is decoded, and the EXIF orientation that is left to apply."""
    if file.format == "TIFF":  # Pillow itself turns it
        return upright_size(file), 1
    # a JPEG without the segment needs no parsing
    return file.size, orientation(file) if file.format != "JPEG" or "exif" in file.info else 1


def _turned(size: Size, turn: int) -> Size:
    return size[::-1] if turn in TURNED else size


def _applied(label: Label, own_size: Size, turn: int, notes: list[str]) -> int:
    """Returns the EXIF orientation to apply to an image, 0 for none; what was decided goes to `notes`."""
    if turn not in TURNS:
        return 0
    stored, shown = _same_shape(label.ids, own_size), _same_shape(label.ids, _turned(own_size, turn))
    if shown and (label.ids == IGNORE).all():  # nothing was drawn on the pixels as they are stored
        stored = False
    notes.append(EXIF_UNSURE if stored and shown else EXIF_APPLIED if shown else EXIF_NOT_APPLIED)
    return turn if shown and not stored else 0


def _same_shape(ids: UInt8, size: Size) -> bool:
    height, width = ids.shape
    return abs(math.log(width / height * size[1] / size[0])) <= SAME_ASPECT


CHUNK = 5  # samples that a thread takes at once: handing out single ones costs a tenth of the speed


def outcomes(
    work: Callable[[Sample], Result], samples: Sequence[Sample], on_progress: Progress | None = None
) -> Iterator[tuple[Sample, Result | str]]:
    """Yields each sample, in order, with what `work`, in a thread a core, returns, or its `PetsegError` as text.

    At most two chunks a thread wait to be taken: all results together may be larger than memory.
    """

    def outcome(sample: Sample) -> Result | str:
        try:
            return work(sample)
        except PetsegError as error:
            return str(error)

    workers = core_count()
    chunks = (samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK))
    counter = count(1)
    with ThreadPoolExecutor(workers) as pool:
        running = deque[Future[list[tuple[Sample, Result | str]]]]()
        try:
            while True:
                for chunk in islice(chunks, 2 * workers - len(running)):
                    running.append(pool.submit(lambda chunk: [(sample, outcome(sample)) for sample in chunk], chunk))
                if not running:
                    return
                for sample, result in running.popleft().result():
                    yield sample, result
                    if on_progress is not None:
                        on_progress(next(counter), len(samples))
        finally:
            for future in running:
                future.cancel()


def _match(label: Label, own_size: Size, name: str, notes: list[str]) -> UInt8:
    """Returns the ids at `own_size`; what was done goes to `notes`."""
    ids, (own_width, own_height) = label.ids, own_size
    height, width = ids.shape
    if (width, height) != own_size:
        if not _same_shape(ids, own_size):
            sizes = f"label is {width}x{height}, image {own_width}x{own_height}"
            lies = _same_shape(ids, (own_height, own_width))
            fault = "one of them lies on its side" if lies else "different shapes cannot be matched"
            raise PetsegError(f"{name}: {sizes}; {fault}")
        ids = resize_ids(ids, (own_height, own_width))
        notes.append("label of another size, resized (nearest)")
    notes.extend(label.notes)
    return ids


def resize_ids(ids: UInt8, size: tuple[int, int]) -> UInt8:
    """Returns class ids uint8 [H, W] at another size (height, width), nearest."""
    return np.asarray(Image.fromarray(ids).resize((size[1], size[0]), Image.Resampling.NEAREST))
