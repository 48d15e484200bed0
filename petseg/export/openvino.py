"""Model files that are checked before they are kept, and ONNX files as ONNX or OpenVINO, without torch."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np

from petseg import storage
from petseg.data.dataset import UInt8
from petseg.data.synthetic import CATS, DOGS, draw_pet
from petseg.errors import PetsegError, unknown_name
from petseg.predict.enlarge import Floats
from petseg.predict.photos import Photo
from petseg.predict.runtimes import OnnxRuntime, openvino_core
from petseg.predict.segmenter import Segmenter
from petseg.shipped import model_file

AGREEMENT = 0.9999  # share of pixels whose class must be the original's
ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}  # beside openvino's lies a .bin, the weights
METADATA = 14  # the field of an ONNX file that holds a pair of its metadata: the key, field 1, and the value, field 2


@dataclass(frozen=True)
class Made:
    """A model in some format, not yet kept."""

    answers: Floats  # what it gives for the synthetic pets
    save: Callable[[Path, Mapping[str, Any]], None]  # writes it with its metadata


@dataclass(frozen=True)
class Parity:
    """How far a file agrees with the original on synthetic pets."""

    pixels: int
    agreement: float  # share of pixels with the same class, 0..1
    largest_difference: float  # of a probability, 0..1


def compare(ours: Floats, theirs: Floats) -> Parity:
    """Returns how far two answers agree, both probabilities [N, C, H, W]."""
    agreement = float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())
    return Parity(ours[:, 0].size, agreement, float(np.abs(ours - theirs).max()))


def keep(out: Path, made: Iterable[Made], theirs: Floats, metadata: Mapping[str, Any], original: str) -> dict[str, Any]:
    """Returns the metadata of `out`, now the first file that agrees with the original; PetsegError where none does."""
    for each in made:
        parity = compare(each.answers, theirs)
        if parity.agreement >= AGREEMENT:
            written = {**metadata, "parity": asdict(parity)}
            each.save(out, written)
            return written
    raise PetsegError(
        f"{out}: the exported model agrees with {original} on {100 * parity.agreement:.3f} % of pixels (a probability "
        f"differs by up to {parity.largest_difference:.2g}), wanted {100 * AGREEMENT} %; nothing was written"
    )


def drawn_images(size: int, number: int = 1) -> UInt8:
    """Returns 16 synthetic pets, uint8 [16, size, size, 3], the same everywhere: what exports are checked on.

    Each `number` has other ones.
    """
    breeds = (*CATS[:8], *DOGS[:8])
    return np.stack([Photo(draw_pet(breed, number, size=max(size, 32))[0]).resized(size) for breed in breeds])


def chosen_format(out: Path, wanted: str) -> str:
    """Returns `wanted`, else the format that the ending says; PetsegError if it is unknown or the ending another's."""
    if wanted and wanted not in ENDINGS:
        raise unknown_name("--format", wanted, ENDINGS)
    if wanted and out.suffix != ENDINGS[wanted]:
        raise PetsegError(f"{out}: a file of format {wanted} ends in {ENDINGS[wanted]}; call it so")
    by_ending = {ending: name for name, ending in ENDINGS.items()}
    if out.suffix not in by_ending:
        endings = ", ".join(f"{ending} ({name})" for ending, name in by_ending.items())
        raise PetsegError(f"{out}: the ending {out.suffix!r} says no format; end it in {endings}")
    return by_ending[out.suffix]


def export_file(model: str, out: Path, kind: str = "onnx") -> dict[str, Any]:
    """Returns the metadata of `out`, now a shipped model or that of an ONNX file.

    A shipped model's are its card, which is newer than what the shipped file says.
    """
    segmenter = Segmenter(model, threads=1, runtime="onnxruntime")  # OpenVINO may compute in bf16
    if kind == "torch":
        raise PetsegError(
            f"model {segmenter.name} is an ONNX file, without torch's weights; export it as onnx or openvino, or give "
            "its run (--run)"
        )
    images, network = drawn_images(segmenter.size), with_metadata(model_file(segmenter.name), {})
    made = (unchanged if kind == "onnx" else as_openvino)(network, images)
    return keep(out, [made], segmenter.probabilities(images), segmenter.card, "ONNX Runtime")


def unchanged(onnx_file: bytes, images: UInt8) -> Made:
    """Returns an ONNX file as it is, with its answers to uint8 [N, H, W, 3]."""
    answers = OnnxRuntime(onnx_file, 1)(images)
    return Made(answers, lambda out, metadata: storage.write_bytes(out, with_metadata(onnx_file, metadata)))


def as_openvino(onnx_file: bytes, images: UInt8) -> Made:
    """Returns an ONNX file converted for OpenVINO, with its answers to uint8 [N, H, W, 3] in float32."""
    import openvino

    model = openvino_core().read_model(onnx_file)  # convert_model would do the same, and report its use to Intel

    def write(path: Path) -> None:
        openvino.save_model(model, path, compress_to_fp16=False)  # what the ONNX file stores in fp16 stays so

    def save(out: Path, metadata: Mapping[str, Any]) -> None:
        if (weights := out.with_suffix(".bin")).exists() and not out.exists():
            raise PetsegError(f"{weights} is there without {out.name}, and would be replaced; choose another --out")
        for name, value in metadata.items():
            model.set_rt_info(json.dumps(value), ["petseg", name])
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / out.name
            write(written)
            halves = [written.with_suffix(ending) for ending in (".bin", ".xml")]  # the .xml appears last
            storage.write_together({out.with_suffix(half.suffix): partial(copyfile, half) for half in halves})

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "model.xml")
        # a processor with bf16 would compute in that by itself
        compiled = openvino_core().compile_model(Path(folder) / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return Made(compiled(images)[0], save)


def with_metadata(file: bytes, metadata: Mapping[str, Any]) -> bytes:
    """Returns an ONNX file with other metadata in place of its own, each value as JSON.

    The light install lacks the package onnx. A file is a row of protobuf's fields, which may come in any order
    (protobuf.dev/programming-guides/encoding).
    """
    parts, place = [], 0
    while place < len(file):
        start = place
        tag, place = _number_at(place, file)
        value, place = _number_at(place, file)
        place += value if tag & 7 == 2 else 0  # type 2 is bytes, and the number their length; the others are type 0
        if tag >> 3 != METADATA:
            parts.append(file[start:place])
    for name, content in metadata.items():
        pair = _field(1, name.encode()) + _field(2, json.dumps(content).encode())
        parts.append(_field(METADATA, pair))
    return b"".join(parts)


def _number_at(place: int, file: bytes) -> tuple[int, int]:
    """Returns the number at a place, seven bits a byte, the lowest first, and the place after it."""
    number = shift = 0
    while file[place] > 127:
        number |= (file[place] & 127) << shift
        place, shift = place + 1, shift + 7
    return number | file[place] << shift, place + 1


def _field(number: int, content: bytes) -> bytes:
    head, length = [number << 3 | 2], len(content)
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    return bytes([*head, length]) + content
