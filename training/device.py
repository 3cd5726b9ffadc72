"""Where a run computes: a name on the command line becomes a torch device, and a device has a name.

Refuses to own: what is computed there.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

import torch

from models.errors import InvalidValue, show
from training.config import Precision

CPU: Final = torch.device("cpu")


def choose_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:N` means here; `auto` is cuda where there is one.

    Raises InvalidValue for another name, and for one that this machine does not have.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if count else "cpu"
    kind, colon, index = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (colon and not index.isdecimal())):
        raise InvalidValue(f"--device must be auto, cpu, cuda or cuda:N, got {show(name)}")
    if kind == "cuda" and int(index or 0) >= count:
        raise InvalidValue(f"--device must be there, got {show(name)} where torch sees {count} CUDA devices")
    return torch.device(name)


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise InvalidValue where `device` cannot compute in `precision`. Every CPU can, some slowly."""
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise InvalidValue(f"precision must be fp32 on {device_name(device)}, which has no bf16, got 'bf16'")


def check_compiler(device: torch.device) -> None:
    """Raise InvalidValue where torch.compile makes no kernels for `device`: it needs a C++ compiler there, or
    Triton. Takes seconds."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise InvalidValue(
            f"compile must be false on {device_name(device)}, where torch.compile fails, got true: {reason}"
        ) from error


def device_name(device: torch.device) -> str:
    """Kind and name of a device, for people."""
    return f"GPU, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else f"CPU, {cpu_name()}"


def cpu_name() -> str:
    """The processor's name as Linux gives it, or the architecture where it gives none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
