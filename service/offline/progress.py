"""How far a run is: a bar on a terminal, a line now and then elsewhere, or JSON lines."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final, Literal, TextIO

Style = Literal["bar", "lines", "json"]

_EVERY_S: Final[dict[str, float]] = {"bar": 0.1, "lines": 10.0, "json": 1.0}
_WIDTH: Final = 24
_MEMORY_S: Final = 30.0  # the rate is that of so long, or of the run where it is shorter


class Progress:
    """Counts images and shards, and tells of them at times. A bar and lines go to stderr, JSON to stdout."""

    def __init__(self, style: Style, images: int, shards: int, to: TextIO | None = None) -> None:
        self._style = style
        self._to = to or (sys.stdout if style == "json" else sys.stderr)
        self._images, self._shards = images, shards
        self.images_done = self.shards_done = 0
        self._began = self._told = time.monotonic()
        self._marks = [(self._began, 0)]  # (when, images made by then), a second apart
        self._made = 0

    def keep(self, images: int, shards: int) -> None:
        """Count what was finished before."""
        self.images_done += images
        self.shards_done += shards

    def made(self, images: int, shards: int) -> None:
        """Count what was made now, and tell if it is time."""
        self.images_done += images
        self.shards_done += shards
        self._made += images
        now = time.monotonic()
        if now - self._told >= _EVERY_S[self._style]:
            self._told = now
            self._tell(now)

    def end(self) -> None:
        """Tell where the run is at its end."""
        self._tell(time.monotonic())
        if self._style == "bar":
            print(file=self._to, flush=True)

    def say(self, event: str, **facts: Any) -> None:
        """One JSON line, where that is the style."""
        if self._style == "json":
            print(json.dumps({"event": event, **facts}), file=self._to, flush=True)

    def _tell(self, now: float) -> None:
        rate = self._rate(now)
        left = self._images - self.images_done
        eta_s = left / rate if rate > 0 else None
        if self._style == "json":
            self.say(
                "progress",
                images=self.images_done,
                images_total=self._images,
                shards=self.shards_done,
                shards_total=self._shards,
                images_per_s=round(rate, 1),
                eta_s=None if eta_s is None else round(eta_s, 1),
            )
            return
        text = (
            f"{self.images_done:,}/{self._images:,} images, {rate:,.0f} images/s, "
            f"{self.shards_done:,}/{self._shards:,} shards, "
            f"{'ETA ' + _clock(eta_s) if eta_s is not None else 'ETA unknown'}"
        )
        if self._style == "bar":
            full = _WIDTH * self.images_done // max(1, self._images)
            print(f"\r[{'=' * full}{' ' * (_WIDTH - full)}] {text}\x1b[K", end="", file=self._to, flush=True)
        else:
            print(text, file=self._to, flush=True)

    def _rate(self, now: float) -> float:
        """Images a second, of the last while."""
        if now - self._marks[-1][0] >= 1.0:
            self._marks.append((now, self._made))
        while len(self._marks) > 2 and now - self._marks[0][0] > _MEMORY_S:
            del self._marks[0]
        since, before = self._marks[0]
        return (self._made - before) / max(1e-9, now - since)


def _clock(seconds: float) -> str:
    """`1:02:03`, `02:03`"""
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, 3600)
    minutes = f"{rest // 60:02d}:{rest % 60:02d}"
    return f"{hours}:{minutes}" if hours else minutes
