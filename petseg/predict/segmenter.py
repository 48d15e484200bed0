"""Prediction without torch: `Segmenter()("cat.jpg").mask`. N are images, C classes, h w pixels of the model."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from petseg.cores import MOST_THREADS
from petseg.data.dataset import Class, Progress, UInt8, classes_from, with_foreground
from petseg.data.geometry import FITS, Geometry
from petseg.errors import PetsegError, first_line, shown, unknown_name
from petseg.predict.enlarge import Floats, enlarged
from petseg.predict.photos import Crop, Photo, Source
from petseg.predict.presence import Presence, presence_from
from petseg.predict.runtimes import RUNTIMES, Taken, chosen_runtime
from petseg.predict.segmentation import Segmentation, kept
from petseg.predict.zoom import joined, worth_a_look
from petseg.shipped import DEFAULT, card_of, model_file, shipped_model

LARGEST_SIZE = 2048  # of a model's square in pixels, as in recipes
LARGEST_SIDE = 1 << 20  # of what images are reduced to before windows are cut, in pixels
SIDE_STEP = 32  # sides of other scales are rounded to this, which each level of a network halves evenly


class Segmenter:
    """A model, loaded and ready. Any number of threads may call one segmenter at once.

    `model` is a shipped one (`DEFAULT` if empty), a kind (`unet`, `segnet`) for its best, or an ONNX file of
    `petseg export`. `threads` are of one call; None takes all cores: the fastest for one photo. `runtime` is
    onnxruntime, which computes in float32, or openvino; None takes PETSEG_RUNTIME, else onnxruntime. `one_photo` saves
    memory with ONNX Runtime and makes further photos slower. `using` gives the same model with other options.
    """

    def __init__(
        self, model: str | Path = "", *, threads: int | None = None, runtime: str | None = None, one_photo: bool = False
    ) -> None:
        _check_threads(threads)
        if not isinstance(model, str | Path):
            raise PetsegError(f"model is {shown(model)}; wanted the name of a shipped model, or an ONNX file")
        self.flip, self.raw = False, False
        self.scales: tuple[float, ...] = (1.0,)
        self.windows: int | None = None
        self.foreground: tuple[str, ...] = ()
        self._given = model, threads, runtime, one_photo
        self.name = str(model) if Path(model).suffix == ".onnx" else shipped_model(str(model) or DEFAULT)
        content = model_file(self.name)
        self.runtime = runtime or chosen_runtime(photos=1)
        if self.runtime not in RUNTIMES:
            raise unknown_name("runtime", self.runtime, RUNTIMES)
        try:
            self._run = RUNTIMES[self.runtime](content, threads, one_photo)
            # what the file says of itself: classes, size, scores, licence
            self.card: dict[str, Any] = {name: json.loads(value) for name, value in self._run.metadata.items()}
            if Path(self.name).suffix != ".onnx":  # the card beside a shipped file tells the same in the newest form
                card = card_of(self.name)
                self.card |= {field: card[field] for field in card if field not in ("name", "bytes", "sha256")}
            self.classes, self.geometry = _checked(self.card, self._run.takes)
            given = self.card.get("presence")
            self.presence: Presence | None = None if given is None else presence_from(given)
            self._own = self.classes, self.geometry, self.presence
            self.zoom = self._zooms
        except ModuleNotFoundError:
            raise  # of the runtime
        except Exception as error:  # ONNX Runtime's own have no common base but this
            reason = f"no field {error}" if isinstance(error, KeyError) else first_line(error)
            given = f"model {self.name}: not a model that `petseg export` wrote ({reason})"
            raise PetsegError(f"{given}; export it with that command") from None

    @property
    def size(self) -> int:
        """Side in pixels of the square that the model sees."""
        return self.geometry.size

    def using(  # noqa: PLR0913 - a model's options are its keywords
        self,
        *,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        windows: int | None = None,
        foreground: Sequence[str] = (),
        raw: bool = False,
        zoom: bool | None = None,
    ) -> "Segmenter":
        """Returns the model with these options, whatever this one's are; both share the loaded file.

        `flip` averages with the mirrored photo's result, `scales` over sizes (1 is the model's own). With `windows` the
        model looks through overlapping windows of the photo, reduced to that longer side in pixels (0: at its own
        size); None does so for models that were trained on crops. `foreground` names the classes that are cut out;
        empty takes the model's own. `raw` keeps small pieces and holes, and objects whose presence is too low. `zoom`
        looks a second time, closer, at objects that lie in less than half of the photo; None does so for
        the shipped models, where they see whole photos.
        """
        _check_list("scales", scales)
        _check_list("foreground", foreground)
        scales = tuple(scales)
        _check_options(scales, windows, flip=flip, raw=raw, zoom=zoom or False)
        used = object.__new__(type(self))
        vars(used).update(vars(self))  # the loaded file among them
        used.classes, used.geometry, used.presence = self._own
        used.flip, used.raw, used.scales, used.windows, used.foreground = flip, raw, scales, windows, tuple(foreground)
        sides = {used.side(scale) for scale in scales} - {self.size}
        if sides and None not in self._run.takes[2][1:3]:
            raise PetsegError(f"model {self.name} takes {self.size} px alone; leave the scales out (--scales)")
        if foreground:
            used.classes = with_foreground(used.classes, foreground)
            used.presence = used.presence if used.classes == self._own[0] else None  # it is of the model's own objects
        if windows is not None:
            if windows and windows < self.size:
                raise PetsegError(f"windows is {windows}; wanted 0 or at least {self.size}, the side of one window")
            used.geometry = Geometry(self.size, "crop", windows)
            used.presence = used.presence if used.geometry == self._own[1] else None  # and of maps as these are
        used.zoom = used._zooms if zoom is None else zoom
        if used.geometry.fit == "crop":
            for option, asked, instead in (("scales are", sides, "leave 1"), ("zoom is", used.zoom, "leave it out")):
                if asked:
                    seen = "of photos that are seen at once, and this model looks through windows"
                    raise PetsegError(f"{option} {seen}: {instead}")
        return used

    @property
    def _zooms(self) -> bool:
        """Whether small objects are looked at closer by default: where a model's card says that it was measured."""
        return self.card.get("zoom") is True and self.geometry.fit != "crop"

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets other processes load the same model with the same options."""
        names = ("flip", "scales", "windows", "foreground", "raw", "zoom")
        return _loaded, (*self._given, {name: getattr(self, name) for name in names})

    def side(self, scale: float) -> int:
        """Returns the side in pixels of the square that a photo is resized to at a scale."""
        return self.size if scale == 1 else max(SIDE_STEP, round(self.size * scale / SIDE_STEP) * SIDE_STEP)

    def __call__(self, image: Source | Photo, *, on_windows: Progress | None = None) -> Segmentation:
        """Returns the segmentation of a photo: a path, an encoded file, a PIL image, or uint8 [H, W, 3] in RGB.

        `on_windows` is called with (done, all) windows, where the model looks through windows.
        """
        photo = image if isinstance(image, Photo) else Photo(image)
        if self.geometry.fit == "crop":
            return self._in_windows(photo, on_windows)
        probabilities, seconds = self._look(photo)
        first = self._found(probabilities, photo, seconds)
        crop = worth_a_look(probabilities, self.classes, photo.size) if self.zoom else None
        if crop is None or not (self.raw or first.present):  # of a photo without a pet, a closer look makes one
            return first
        closer, more = self._look(photo, crop)
        return self._found(joined(probabilities, closer, crop, photo.size), photo, seconds + more)

    def _look(self, photo: Photo, crop: Crop | None = None) -> tuple[Floats, float]:
        """Returns probabilities [C, h, w] of a photo or a crop of it, and the seconds that the network took."""
        resized = [photo.resized(replace(self.geometry, size=self.side(scale)), crop)[None] for scale in self.scales]
        started = time.perf_counter()
        (probabilities,) = self._seen(*resized)
        seconds = time.perf_counter() - started
        height, width = self.geometry.content(photo.size if crop is None else (crop[3] - crop[1], crop[2] - crop[0]))
        return probabilities[:, :height, :width], seconds

    def batch(self, images: Iterable[Source | Photo]) -> list[Segmentation]:
        """Returns the same as one call an image, in order; of any sizes.

        On a CPU several at once are no faster, and take memory for all: 24 photos 229 ms each and 1.6 GB, one by one
        168 ms and 229 MB (unet_lite2, one thread of an Intel Xeon, ONNX Runtime 1.32.0, 2026-11-27).
        """
        _check_list("batch", images)
        return [self(image) for image in images]

    def _in_windows(self, photo: Photo, on_windows: Progress | None = None) -> Segmentation:
        image, content, done = photo.resized(self.geometry), self.geometry.content(photo.size), 0

        def network(windows: UInt8) -> Floats:
            nonlocal done
            seen = self._seen(windows)
            done += len(windows)
            if on_windows is not None:
                on_windows(done, self.geometry.count(content))
            return seen

        started = time.perf_counter()
        probabilities, detail = kept(self.geometry.bands(image, content, network), content, self.classes)
        return replace(self._found(probabilities, photo, time.perf_counter() - started), detail=detail)

    def _found(self, probabilities: Floats, photo: Photo, seconds: float) -> Segmentation:
        return Segmentation(probabilities, self.classes, photo, seconds, self.raw, self.presence)

    def _seen(self, *images: UInt8) -> Floats:
        """Returns the mean over all views of the same images in several sizes, [N, C, h, w] at the model's own."""
        views = [view for same in images for view in self._views(same)]
        mean: Floats = views[0] if len(views) == 1 else np.mean(views, axis=0)
        return mean

    def _views(self, images: UInt8) -> Iterator[Floats]:
        """Yields probabilities [N, C, h, w] at the model's own size of images at any: as they are, then mirrored."""
        yield self.at_own_size(self.probabilities(images))
        if self.flip:
            yield self.at_own_size(self.probabilities(np.ascontiguousarray(images[:, :, ::-1]))[..., ::-1])

    def at_own_size(self, probabilities: Floats) -> Floats:
        """Returns probabilities [N, C, h, w] of any size resized to the model's own."""
        size = self.size, self.size
        if probabilities.shape[2:] == size:
            return probabilities
        return np.stack([enlarged(each, size, slice(0, self.size), slice(0, self.size)) for each in probabilities])

    def probabilities(self, images: UInt8) -> Floats:
        """Returns the network's own output, [N, C, h, w], for uint8 [N, h, w, 3] at its own size."""
        try:
            probabilities = self._run(images)
        except Exception as error:  # as above
            raise PetsegError(f"model {self.name}: cannot be computed ({first_line(error)}); export it again") from None
        shape = (len(images), len(self.classes), *images.shape[1:3])
        if probabilities.shape != shape or not (probabilities.min() >= 0 and probabilities.max() < 1.01):  # nan is not
            raise PetsegError(
                f"model {self.name}: gives {list(probabilities.shape)} from {probabilities.min():.3g} to "
                f"{probabilities.max():.3g}; wanted probabilities {list(shape)}: export it again"
            )
        return probabilities


def _loaded(
    model: str | Path, threads: int | None, runtime: str | None, one_photo: bool, options: dict[str, Any]
) -> Segmenter:
    return Segmenter(model, threads=threads, runtime=runtime, one_photo=one_photo).using(**options)


def _check_options(scales: Sequence[Any], windows: Any, **flags: object) -> None:
    if not scales or not all(isinstance(scale, int | float | np.number) and 0.25 <= scale <= 4 for scale in scales):
        raise PetsegError(f"scales are {', '.join(map(str, scales)) or 'none'}; wanted at least one of .25 to 4")
    if windows is not None and (not isinstance(windows, Integral) or isinstance(windows, bool)):
        raise PetsegError(f"windows is {shown(windows)}; wanted a whole number of pixels")
    for name, given in flags.items():
        if not isinstance(given, bool | np.bool_):
            raise PetsegError(f"{name} is {shown(given)}; wanted True or False")


def _check_threads(given: Any) -> None:
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    if given is not None and not (whole and 0 < given <= MOST_THREADS):
        raise PetsegError(f"threads is {shown(given)}; wanted a whole number above zero, or None for all cores")


def _check_list(name: str, given: object) -> None:
    """Refuses a single value, and a string, whose letters would be taken for several."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise PetsegError(f"{name} got {shown(given)}; wanted a list: [{shown(given)}]")


def _checked(card: dict[str, Any], takes: Taken) -> tuple[tuple[Class, ...], Geometry]:
    """Returns classes and geometry of a model; ValueError if they are not what `petseg export` writes."""
    size = card["size"]
    if not isinstance(card["classes"], list):
        raise ValueError("its classes are no list")
    classes = classes_from(card["classes"])
    if all(each.role != "foreground" for each in classes):
        raise ValueError("none of its classes is foreground")
    if type(size) is not int or not 1 <= size <= LARGEST_SIZE:
        raise ValueError(f"its size is {str(size)[:20]}; wanted 1 to {LARGEST_SIZE}")
    name, kind, axes = takes
    wanted = (None, size, size, 3)
    fits = len(axes) == 4 and all(axis in (None, side) for axis, side in zip(axes, wanted, strict=True))
    if (name, kind) != ("image", "uint8") or not fits or axes[3] != 3:
        raise ValueError(f"it takes {str(takes)[:100]}; wanted image, uint8 [N, {size}, {size}, 3]")
    fit, reduce_to = card.get("fit", "square"), card.get("reduce_to", 0)  # of older files, all are squares
    if fit not in FITS or type(reduce_to) is not int or not 0 <= reduce_to <= LARGEST_SIDE:
        given = f"its fit is {str(fit)[:20]} and reduce_to {str(reduce_to)[:20]}"
        raise ValueError(f"{given}; wanted {', '.join(FITS)} and 0 to {LARGEST_SIDE}")
    return classes, Geometry(size, fit, reduce_to)
