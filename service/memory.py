"""What a process of the server does with memory: when it seeks garbage, what it keeps of what it freed."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from typing import Final

MIB: Final = 2**20
_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3
_NEW_OBJECTS: Final = 50_000  # ten megabytes, if all were garbage; Python looks after 700


def give_freed_memory_back(kept_bytes: int = MIB, block_bytes: int = MIB // 8) -> None:
    """Have this process keep at most `kept_bytes` of freed memory at the end of its heap, from now on.

    Blocks of `block_bytes` and more go back alone, and come with a page fault a page when they are needed
    again. Left alone, glibc raises both with the largest block that was ever freed: what one opened model or
    one large answer took would stay with an idle server. Does nothing where the C library is another.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, kept_bytes)
        libc.mallopt(_M_MMAP_THRESHOLD, block_bytes)


def collect_garbage_seldom() -> None:
    """Look for garbage in cycles after 50,000 new objects, and never again among those that are here now.

    Requests leave none behind, but those in flight are looked through each time: a twelfth of what the API
    process does for a small request went there, and all of a started server's objects are a pause of its
    event loop.
    """
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
