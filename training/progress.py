"""How a run shows itself: a bar on a terminal, one plain line a tick elsewhere.

Refuses to own: the figures (`metrics.jsonl` is their record).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm


class Progress:
    """Progress in images shown. Use as a context manager; `advance` is cheap enough for each iteration."""

    def __init__(self, total_nimg: int, cur_nimg: int) -> None:
        self._total_nimg = total_nimg
        # tqdm counts the images of this session for its rate and all images for its bar.
        self._bar = tqdm(
            total=total_nimg,
            initial=cur_nimg,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def advance(self, num_images: int) -> None:
        self._bar.update(num_images)

    def say(self, sentence: str) -> None:
        """Print a line without breaking the bar."""
        tqdm.write(sentence, file=sys.stdout)
        sys.stdout.flush()

    def tick(self, row: Mapping[str, Any]) -> None:
        """Show one row of `metrics.jsonl`; D's answers as probabilities where they are such."""
        told, kind = ("D", "probability") if "D_real_probability" in row else ("logit", "logit")
        self.say(
            f"kimg {row['cur_nimg'] / 1000:8.1f}/{self._total_nimg / 1000:g}"
            f"  D_loss {row['D_loss']:.3f}  G_loss {row['G_loss']:.3f}"
            f"  {told}(x) {row[f'D_real_{kind}']:.2f}  {told}(G(z)) {row[f'D_fake_{kind}']:.2f}"
            f"  {row['images_per_s']:.0f} images/s  {row['train_s']:.0f} s"
        )
