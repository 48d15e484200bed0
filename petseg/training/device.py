"""Where and how precisely to compute: CUDA, then MPS, then the CPU."""

from dataclasses import dataclass

import torch

from petseg import environment
from petseg.errors import PetsegError
from petseg.schema import EnvironmentInfo


@dataclass(frozen=True)
class Hardware:
    """A device and a precision."""

    device: torch.device
    autocast: bool
    reason: str  # why this precision, for the terminal

    @property
    def precision(self) -> str:
        """ "bf16" or "fp32"."""
        return "bf16" if self.autocast else "fp32"

    def context(self) -> torch.autocast:
        """Returns the autocast context of a forward pass."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast)

    def environment(self) -> EnvironmentInfo:
        """Returns what the figures of this process depend on."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return EnvironmentInfo.model_validate(
            environment.environment(device=name, precision=self.precision, threads=torch.get_num_threads())
        )


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
            f"device {device!r}: torch has no such device here; choose cpu, or leave --device out"
        ) from None
    if precision != "auto":
        return Hardware(chosen, precision == "bf16", f"{precision} as asked")
    if chosen.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
        return Hardware(chosen, gains, "the GPU has bf16 units" if gains else "the GPU has no bf16 units")
    if chosen.type == "cpu":
        # avx512_bf16 and AMX multiply bf16 natively; elsewhere oneDNN emulates it, slower than fp32
        amx = torch.cpu._is_amx_tile_supported()  # noqa: SLF001 - torch has no public question
        gains = amx or torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001
        unit = "AMX" if amx else "AVX512-BF16"
        return Hardware(chosen, gains, f"the processor has {unit}" if gains else "the processor has no bf16 units")
    return Hardware(chosen, False, "bf16 is not tried on this kind of device")
