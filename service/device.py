"""Which device runs a generator, and how a session uses it: words, on which `session` and `buckets` act."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Accelerator = Literal["cpu", "cuda"]
CUDA_BUCKETS: Final = (1, 4, 16, 64)


@dataclass(frozen=True)
class DeviceOptions:
    """How a session uses its device."""

    buckets: tuple[int, ...] | None = None
    """Batch sizes to pad to, ascending; None: CUDA_BUCKETS on cuda, on cpu any number of rows as it is."""
    cuda_graphs: bool = True
    """Replay a captured graph a bucket in place of launching kernels one by one."""
    tf32: bool = False
    """Let cuda round the factors of matrix products to 10 bits."""
    deterministic: bool = False
    """Have ONNX Runtime choose only kernels that repeat their result."""

    def buckets_on(self, accelerator: Accelerator) -> tuple[int, ...]:
        """Batch sizes to pad to, empty for none."""
        if self.buckets is None:
            return CUDA_BUCKETS if accelerator == "cuda" else ()
        return self.buckets
