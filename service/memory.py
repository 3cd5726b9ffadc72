"""What glibc's allocator does with memory that a process of the server has freed."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Final

_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_KEPT_BYTES: Final = 2**20


def give_freed_memory_back() -> None:
    """Have this process keep at most 1 MiB of freed memory at the end of its heap, from now on.

    Left alone, glibc keeps twice the largest block that was ever freed: what one opened model or one
    large answer took would stay with an idle server. Does nothing where the C library is another.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
