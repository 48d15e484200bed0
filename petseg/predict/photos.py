"""Photos as people have them: any format, size, rotation and colour profile. H W are their pixels after rotation."""

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from petseg.data import images
from petseg.data.dataset import UInt8
from petseg.data.geometry import Geometry
from petseg.data.images import SUFFIXES, UNREADABLE, check_pixels, formats, to_rgb
from petseg.errors import PetsegError, first_line

# a path, an encoded file, a file object, a PIL image, or uint8 [H, W, 3] RGB
Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | UInt8
WANTED = "a path, bytes, a file object open in binary mode, a PIL image, or uint8 [H, W, 3] in RGB"
UNREAD_FOLDER = "folder that cannot be read"  # how the reason begins of what is left out against the user's will
Crop = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are one past it
_RAMP = Image.linear_gradient("L").resize((32, 32))
PROBE = Image.merge("RGB", [_RAMP, _RAMP.rotate(90), _RAMP.rotate(180)])  # colours by which two profiles are told apart


class TooManyPixelsError(PetsegError):
    """The photo is too large to decode."""


class Photo:
    """A photo, checked as far as its header; decoding it may still raise PetsegError where it is damaged."""

    def __init__(self, source: Source, name: str = "") -> None:
        self.name = name or (str(source) if isinstance(source, str | os.PathLike) else "image")
        self._kept = self._keep(source)
        self.key = key_of(self._kept) if isinstance(self._kept, bytes) else ""
        with self._opened() as opened:
            check_pixels(opened)
            # what a user should know: of an animation, that its first frame is used
            self.notes = images.unused(source if isinstance(source, Image.Image) else opened)
            self.size = images.upright_size(opened)[::-1]  # height and width
            if opened.format == "JPEG" and isinstance(self._kept, bytes):
                mended = images.mended_jpeg(self._kept)
                self.notes += ("its last bytes are missing, no pixel is",) if mended is not self._kept else ()
                self._kept = mended
            scaled: list[str] = []
            images.narrowed(opened, scaled)
            self.notes += tuple(scaled)

    def resized(self, geometry: Geometry | int, crop: Crop | None = None) -> UInt8:
        """Returns the photo, or a crop of it, as a model sees it, [h, w, 3], resized and filled up as a dataset's are.

        A number is the side of a square. `crop` is left, top, right, bottom in pixels, right and bottom one past it.
        """
        if isinstance(geometry, int):
            geometry = Geometry(geometry)
        if crop is None:
            return geometry.image(self.whole(draft=geometry.draft), self.size)
        height, width = self.size
        left, top, right, bottom = crop
        own = bottom - top, right - left
        # of all pixels, so that the crop has as many as the whole photo would be left
        draft = geometry.draft and math.ceil(geometry.draft * max(height / own[0], width / own[1]))
        image = self.whole(draft=draft)
        across, down = image.width / width, image.height / height
        box = round(left * across), round(top * down), round(right * across), round(bottom * down)
        return geometry.image(image.crop(box), own)

    def reduced(self, side: int) -> Image.Image:
        """Returns the photo with its longer side at most `side` pixels: mode RGB, upright, in sRGB."""
        image = self.whole(draft=side)
        image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
        return image

    def whole(self, *, draft: int | None = None) -> Image.Image:
        """Returns the photo in mode RGB, upright, in sRGB; `draft` lets a JPEG shrink to no less than this side."""
        with self._opened() as opened:
            if draft is not None:
                opened.draft("RGB", (draft, draft))
            return to_srgb(images.upright(opened))

    def opacity(self) -> Image.Image | None:
        """Returns how opaque the photo is at its own size, mode L, upright; None where it is opaque."""
        with self._opened() as opened:
            if not opened.has_transparency_data:
                return None
            return images.narrowed(images.upright(opened), []).convert("RGBA").getchannel("A")

    def _keep(self, source: Source) -> bytes | Image.Image:
        if isinstance(source, np.ndarray):
            if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or not source.size:
                given = f"an array of {source.dtype} {list(source.shape)}"
                raise PetsegError(f"{self.name}: {given}; wanted uint8 [H, W, 3] in RGB")
            return Image.fromarray(source)
        if isinstance(source, Image.Image):
            try:
                return source.copy()  # a file that is opened lazily is read here, by one thread
            except UNREADABLE as error:
                raise self._unreadable(error) from None
        try:
            content = Path(source).read_bytes() if isinstance(source, str | os.PathLike) else source
            content = content.read() if hasattr(content, "read") else content
        except (OSError, ValueError) as error:  # a closed file, a path with a zero byte
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise PetsegError(f"{self.name}: cannot be read ({reason})") from None
        if not isinstance(content, bytes | bytearray | memoryview):
            raise PetsegError(f"{self.name}: got {type(content).__name__}; wanted {WANTED}")
        if not len(content):
            raise PetsegError(f"{self.name}: is empty (zero bytes); was it copied completely?")
        return bytes(content)

    @contextmanager
    def _opened(self) -> Iterator[Image.Image]:
        try:
            if not isinstance(self._kept, bytes):
                yield self._kept
                return
            with images.scaled_transparency(Image.open(BytesIO(self._kept), formats=formats())) as opened:
                yield opened
        except UNREADABLE as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> PetsegError:
        reason = first_line(error)
        if isinstance(error, UnidentifiedImageError):
            reason = images.unidentified(self._kept) if isinstance(self._kept, bytes) else str(error)
        elif re.search("truncated|data stream", reason, re.IGNORECASE):
            reason += "; was it copied completely?"
        too_large = isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning)
        kind = TooManyPixelsError if too_large else PetsegError
        return kind(f"{self.name}: cannot be decoded ({reason}){'; reduce it first' if too_large else ''}")


def key_of(content: bytes) -> str:
    """Returns what tells photos apart wherever they lie: a hash of the file, which says nothing of its folder."""
    return blake2b(content, digest_size=8).hexdigest()


def to_srgb(image: Image.Image) -> Image.Image:
    """Returns the image in mode RGB and sRGB, on white; a profile that does not fit is ignored, as browsers do."""
    profile = image.info.get("icc_profile")
    image = images.narrowed(image, [])
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white.convert("RGB")
    elif image.mode not in ("RGB", "CMYK", "L"):
        image = to_rgb(image, [])
    if profile:
        try:
            own = ImageCms.ImageCmsProfile(BytesIO(profile))
            # a profile that leaves colours as they are is sRGB, whatever it is called
            if image.mode != "RGB" or np.abs(np.asarray(_converted(PROBE, own), int) - np.asarray(PROBE)).max() > 2:
                return _converted(image, own)
        except (ImageCms.PyCMSError, OSError):
            pass
    return image if image.mode == "RGB" else image.convert("RGB")


def _converted(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None, "only a conversion in place returns nothing"
    return converted


def find_photos(sources: Iterable[Path], ours: tuple[str, ...]) -> tuple[list[tuple[Path, Path]], dict[Path, str]]:
    """Returns (photo, its path below the folder named), sorted, each once, and what, such as `ours`, is left out."""
    photos: dict[Path, tuple[Path, Path]] = {}  # by their place without links
    found: list[tuple[Path, Path]] = []
    left_out: dict[Path, str] = {}
    for source in sources:
        if not source.exists():
            raise PetsegError(f"{source}: no such file or folder")
        folder = source if source.is_dir() else source.parent
        inside = _photos_below(source, ours, left_out) if source.is_dir() else [source]
        if not inside:
            others = {path: reason for path, reason in left_out.items() if path.is_relative_to(source)}
            instead = f", but {reasons(others)}" if others else ""
            raise PetsegError(f"{source}: no images in this folder{instead}; wanted {', '.join(SUFFIXES)}")
        found += [(path, path.relative_to(folder)) for path in inside]
    for path, below in sorted(found, key=lambda each: each[0].is_symlink()):  # of a link and its target, the target
        first, _ = photos.setdefault(path.resolve(), (path, below))
        if first != path:
            left_out[path] = "the same file as another photo"
    return sorted(photos.values()), left_out


def reasons(left_out: Mapping[Path, str]) -> str:
    """Returns why paths were left out, each reason with its number, the most frequent first."""
    return ", ".join(f"{number:,} {reason}" for reason, number in Counter(left_out.values()).most_common())


def _photos_below(folder: Path, ours: tuple[str, ...], left_out: dict[Path, str]) -> list[Path]:
    photos = []

    def refused(error: OSError) -> None:
        left_out[Path(error.filename)] = f"{UNREAD_FOLDER} ({error.strerror})"

    for parent, folders, names in os.walk(folder, onerror=refused):
        for path in (Path(parent, name) for name in sorted((*folders, *names))):
            if reason := _reason(path, ours):
                left_out[path] = reason
            elif path.name in names:
                photos.append(path)
        folders[:] = sorted(name for name in folders if Path(parent, name) not in left_out)
    return photos


def _reason(path: Path, ours: tuple[str, ...]) -> str:
    """Returns why a path is left out; empty: it is not."""
    if path.name.startswith("."):
        return "hidden"
    if path.is_dir():
        return "linked folder" if path.is_symlink() else ""
    if path.name.endswith(ours):
        return "written by petseg"
    if path.suffix.lower() not in SUFFIXES:
        return f"named {path.suffix.lower() or 'without an ending'}"
    return "" if path.is_file() else "no file"
