"""How far a long stage is: a count on a terminal, nothing elsewhere. Needs no tqdm: that comes with torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def counted(title: str, items: Sequence[T]) -> Iterator[T]:
    """Yield `items`, with the share that is done on stderr where that is a terminal."""
    shown = sys.stderr.isatty()
    for done, item in enumerate(items):
        if shown:
            print(f"\r{title}: {done / len(items):4.0%}", end="", file=sys.stderr, flush=True)
        yield item
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
