"""Model files and how far they agree: a shipped model as ONNX or OpenVINO, without torch.

`petseg.export.onnx` writes trained runs with the same checks.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from petseg import storage
from petseg.data.dataset import UInt8
from petseg.data.synthetic import CATS, DOGS, draw_pet
from petseg.errors import PetsegError, unknown_name
from petseg.predict.photos import Photo
from petseg.predict.segmenter import WEIGHTS, Segmenter, shipped_model

AGREEMENT = 0.9999
"""Share of pixels whose class must be the original's."""

ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}
"""Format -> how its file ends. torch is a torch.export program; beside openvino's .xml lies a .bin, the weights."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Parity:
    """How far a file agrees with the original on drawn pets."""

    pixels: int
    agreement: float  # share of pixels with the same class, 0..1
    largest_difference: float  # of a probability, 0..1


def compare(ours: Floats, theirs: Floats) -> Parity:
    """Returns how far two answers agree, both probabilities [N, C, H, W]."""
    return Parity(
        pixels=ours[:, 0].size,
        agreement=float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
        largest_difference=float(np.abs(ours - theirs).max()),
    )


def refusal(out: Path, parity: Parity, original: str) -> PetsegError:
    """Returns the error for a file that disagrees with its original."""
    return PetsegError(
        f"{out}: the exported model agrees with {original} on {100 * parity.agreement:.3f} % of pixels (a probability "
        f"differs by up to {parity.largest_difference:.2g}), wanted {100 * AGREEMENT} %; nothing was written"
    )


def drawn_images(size: int) -> UInt8:
    """Returns 16 synthetic pets, uint8 [16, size, size, 3], the same everywhere: what exports are checked on."""
    breeds = (*CATS[:8], *DOGS[:8])
    return np.stack([Photo(draw_pet(breed, 1, size=max(size, 32))[0]).resized(size) for breed in breeds])


def chosen_format(out: Path, wanted: str) -> str:
    """Returns the format that a file is written in: `wanted`, else what its ending says.

    Raises:
        PetsegError: an unknown format, or an ending that is none or another format's.
    """
    if wanted and wanted not in ENDINGS:
        raise unknown_name("--format", wanted, ENDINGS)
    by_ending = {ending: name for name, ending in ENDINGS.items()}
    if wanted and out.suffix != ENDINGS[wanted]:
        raise PetsegError(f"{out}: a file of format {wanted} ends in {ENDINGS[wanted]}; call it so")
    if out.suffix not in by_ending:
        endings = ", ".join(f"{ending} ({name})" for name, ending in ENDINGS.items())
        raise PetsegError(f"{out}: the ending {out.suffix!r} says no format; end it in {endings}")
    return by_ending[out.suffix]


def export_shipped(name: str, out: Path, kind: str = "onnx") -> Parity:
    """Returns how far `out` agrees with a shipped model: to the bit in ONNX, which is the shipped file itself.

    Raises:
        PetsegError: an unknown model, a format that needs torch's weights, or the file disagrees; nothing is written.
    """
    name = shipped_model(name)
    if kind == "torch":
        raise PetsegError(
            f"model {name} is shipped as ONNX, without torch's weights; export it as onnx or openvino, or give --run"
        )
    content = (WEIGHTS / f"{name}.onnx").read_bytes()
    segmenter = Segmenter(name, threads=1, runtime="onnxruntime")  # OpenVINO may compute in bf16
    images = drawn_images(segmenter.size)
    theirs = segmenter.probabilities(images)
    if kind == "onnx":
        storage.write_atomically(out, partial(Path.write_bytes, data=content))
        return compare(theirs, theirs)
    converted = OpenVINO(content)
    parity = compare(converted.probabilities(images), theirs)
    if parity.agreement < AGREEMENT:
        raise refusal(out, parity, "ONNX Runtime")
    converted.save(out, {**segmenter.card, "parity": asdict(parity)})
    return parity


class OpenVINO:
    """An ONNX file converted for OpenVINO; what is asked of it is asked of the files that `save` writes."""

    def __init__(self, onnx_file: bytes) -> None:
        import openvino

        # convert_model would do the same, and report its use to Intel
        self._model = openvino.Core().read_model(onnx_file)

    def probabilities(self, images: UInt8) -> Floats:
        """Returns [N, C, H, W] of uint8 [N, H, W, 3], computed in float32."""
        import openvino

        core = openvino.Core()
        with tempfile.TemporaryDirectory() as folder:
            self._write(Path(folder) / "model.xml")
            # a processor with bf16 would compute in that by itself
            compiled = core.compile_model(Path(folder) / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            answers: Floats = compiled(images)[0]
        return answers

    def save(self, out: Path, metadata: Mapping[str, Any]) -> None:
        """Writes `out`, an .xml, and its .bin; the .xml appears last."""
        for name, value in metadata.items():
            self._model.set_rt_info(json.dumps(value), ["petseg", name])
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / out.name
            self._write(written)
            for ending in (".bin", ".xml"):
                content = written.with_suffix(ending).read_bytes()
                storage.write_atomically(out.with_suffix(ending), partial(Path.write_bytes, data=content))

    def _write(self, path: Path) -> None:
        import openvino

        # weights that the ONNX file stores in fp16 stay so; others are left as they are
        openvino.save_model(self._model, path, compress_to_fp16=False)
