"""What a run was computed on: facts for snapshots, manifests and cards."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Device, threads and versions of this process."""
    return {
        "device": f"CPU, {cpu_name()}",
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),  # a TorchVersion would not load with weights_only
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    """The processor's name as Linux gives it, or the architecture where it gives none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
