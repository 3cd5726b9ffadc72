"""How a run shows itself: a bar on a terminal, one plain line a tick elsewhere.

Refuses to own: the figures (`metrics.jsonl` is their record).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from tqdm import tqdm

# Name in a row, what it is called here, format.
_LOSSES: Final = (
    ("D_loss", "D_loss", ".3f"),
    ("G_loss", "G_loss", ".3f"),
    ("reconstruction_loss", "reconstruction_loss", ".1f"),
    ("kl_divergence", "kl_divergence", ".1f"),
)
_PROBABILITIES: Final = (("D_real_probability", "D(x)", ".2f"), ("D_fake_probability", "D(G(z))", ".2f"))
_LOGITS: Final = (("D_real_logit", "logit(x)", ".2f"), ("D_fake_logit", "logit(G(z))", ".2f"))


class Progress:
    """Progress in images shown. Use as a context manager; `advance` is cheap enough for each iteration.

    There is a bar where stderr is a terminal and it is to be `shown`.
    """

    def __init__(self, total_nimg: int, cur_nimg: int, shown: bool = True) -> None:
        self._total_nimg = total_nimg
        # tqdm counts the images of this session for its rate and all images for its bar.
        self._bar = tqdm(
            total=total_nimg,
            initial=cur_nimg,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not (shown and sys.stderr.isatty()),
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
        answers = _PROBABILITIES if "D_real_probability" in row else _LOGITS
        figures = [f"{label} {row[name]:{form}}" for name, label, form in _LOSSES + answers if name in row]
        self.say(
            f"kimg {row['cur_nimg'] / 1000:8.1f}/{self._total_nimg / 1000:g}  {'  '.join(figures)}"
            f"  {row['images_per_s']:.0f} images/s  {row['train_s']:.0f} s"
        )
