"""Where and how precisely to compute: CUDA, then MPS, then the CPU."""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache

import torch

from petseg import environment
from petseg.errors import PetsegError
from petseg.schema import EnvironmentInfo


@dataclass(frozen=True)
class Hardware:
    """A device and a precision."""

    device: torch.device
    autocast: bool
    reason: str  #: why this precision, for the terminal

    @property
    def precision(self) -> str:
        """ "bf16" or "fp32"."""
        return "bf16" if self.autocast else "fp32"

    def context(self) -> torch.autocast:
        """Returns the autocast context of a forward pass."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast)

    def random_state_kept(self) -> AbstractContextManager[None]:
        """Returns a context after which torch's random numbers go on as if its block had drawn none."""
        gpus = range(torch.cuda.device_count() if self.device.type == "cuda" else 0)  # a seed is given to all of them
        return torch.random.fork_rng(gpus)

    def environment(self) -> EnvironmentInfo:
        """Returns what the figures of this process depend on."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return EnvironmentInfo.model_validate(
            environment.environment(device=name, precision=self.precision, threads=torch.get_num_threads())
        )


@cache
def bf16_gain() -> float:
    """Returns how many times as fast as float32 matrices the CPU multiplies those in bf16; measured in 30 ms.

    By AVX512-BF16 an AMD EPYC is about twice as fast, an Intel Xeon without AMX half as fast.
    """
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    matrices = {dtype: torch.ones(384, 384, dtype=dtype) for dtype in seconds}
    for _ in range(9):
        for dtype, matrix in matrices.items():
            started = time.perf_counter()
            torch.mm(matrix, matrix)
            seconds[dtype].append(time.perf_counter() - started)
    return min(seconds[torch.float32]) / min(seconds[torch.bfloat16])


def choose_hardware(precision: str = "auto", device: str | None = None) -> Hardware:
    """Returns CUDA, else MPS, else the CPU, and bf16 where the hardware multiplies it faster than fp32.

    `precision` is "auto", "fp32" or "bf16"; `device` is "cpu", "cuda", "cuda:1", "mps", or None, which chooses.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type not in ("cpu", "cuda", "mps"):
            raise ValueError(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, ValueError):
        raise PetsegError(
            f"device {device!r}: torch has no such device here; choose cpu, or leave the device out"
        ) from None
    if precision != "auto":
        return Hardware(chosen, precision == "bf16", f"{precision} as asked")
    if chosen.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
        return Hardware(chosen, gains, "the GPU has bf16 units" if gains else "the GPU has no bf16 units")
    if chosen.type == "cpu":
        if torch.cpu._is_amx_tile_supported():  # noqa: SLF001 - torch has no public question
            return Hardware(chosen, True, "the processor has AMX")
        if not torch.cpu._is_avx512_bf16_supported():  # noqa: SLF001 - oneDNN emulates it, slower than fp32
            return Hardware(chosen, False, "the processor has no bf16 units")
        gain = bf16_gain()
        return Hardware(chosen, gain > 1, f"bf16 multiplies {gain:.1f} times as fast here")
    return Hardware(chosen, False, "bf16 is not tried on this kind of device")
