"""What a run was computed on: facts for snapshots, manifests and cards."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from training.device import CPU, device_name


def environment(device: torch.device = CPU) -> dict[str, Any]:
    """Device, threads and versions of this process, which computes on `device`, and how many there are."""
    return {
        "device": device_name(device),
        "processes": dist.get_world_size() if dist.is_initialized() else 1,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),  # a TorchVersion would not load with weights_only
        "numpy": np.__version__,  # its permutations are the order of the data
        "python": platform.python_version(),
    }
