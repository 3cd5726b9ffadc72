"""Seeds become latents here, and nowhere else.

Owns the rule that makes a seed the name of an image: which random stream a seed opens, which
class a conditional model takes when none is asked for, which values of `class_idx` and
`truncation_psi` are allowed, how seed ranges are written, the path between two latents, and the
Metropolis-Hastings chain that chooses among several images of one seed.
Endpoint, offline runs and training grids all call these functions, so they cannot disagree.
Refuses to own: networks, sessions, files.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from models.errors import InvalidValue, show

Prior = Literal["normal", "uniform"]
PRIORS: Final[tuple[Prior, ...]] = ("normal", "uniform")

MAX_SEED: Final = 2**32 - 1
MAX_TRUNCATION_PSI: Final = 2.0
LOGIT_STEP: Final = 1e-3
"""D's logits are rounded to this before they are compared."""

_INTEGERS: Final = (int, np.integer)
_SEED_RANGE = re.compile(r"(\d{1,12})(?:-(\d{1,12}))?", re.ASCII)


class LatentSampler:
    """Draws latents for one model: the same seed gives the same row, alone or in any batch.

    A seed opens NumPy's frozen legacy stream, `RandomState(seed)`, and the row is its first
    `z_dim` draws, cast once to float32. That is the convention of StyleGAN's `generate.py`, so
    seed 42 is the image its users expect. One `RandomState` is re-seeded for each row: 3-9 µs
    where building a new one costs 90.

    Not for use by two threads at once: the stream is state. Give each thread a sampler.
    """

    def __init__(self, z_dim: int, prior: Prior = "normal") -> None:
        if prior not in PRIORS:
            raise InvalidValue(f"prior must be one of {', '.join(PRIORS)}, got {show(prior)}")
        self.z_dim = z_dim
        self.prior = prior
        self._stream = np.random.RandomState()

    def draw(self, seeds: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Return latents [len(seeds), z_dim] float32; N(0, 1), or U(-1, 1) for the uniform prior."""
        latents = np.empty((len(seeds), self.z_dim), dtype=np.float32)
        for row, seed in enumerate(seeds):
            self._stream.seed(int(seed))
            if self.prior == "normal":
                latents[row] = self._stream.randn(self.z_dim)
            else:
                latents[row] = self._stream.uniform(-1.0, 1.0, self.z_dim)
        return latents

    def draw_proposals(
        self, seeds: Sequence[int] | npt.NDArray[np.integer], proposals: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """Return the latents [N, proposals, z_dim] float32 and uniforms [N, proposals] float64 of MH chains.

        In this order from the seed's one stream: the latents that `draw` gives, which are proposal 0;
        then for each further proposal its latents and its uniform, `random_sample()` in [0, 1). So a
        longer chain begins as a shorter one. Proposal 0 is taken without a uniform: its entry is 0.
        """
        latents = np.empty((len(seeds), proposals, self.z_dim), dtype=np.float32)
        uniforms = np.zeros((len(seeds), proposals))
        stream, normal = self._stream, self.prior == "normal"
        for row, seed in enumerate(seeds):
            stream.seed(int(seed))
            for proposal in range(proposals):
                latents[row, proposal] = (
                    stream.randn(self.z_dim) if normal else stream.uniform(-1.0, 1.0, self.z_dim)
                )
                if proposal:
                    uniforms[row, proposal] = stream.random_sample()
        return latents, uniforms


def rounded_logits(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Logits as they are compared: to LOGIT_STEP, so that the last bits of a device decide nothing."""
    return np.rint(logits.astype(np.float64) / LOGIT_STEP) * LOGIT_STEP


def mh_choices(
    logits: npt.NDArray[np.floating], uniforms: npt.NDArray[np.float64], scale: float
) -> npt.NDArray[np.int64]:
    """Which proposal each row's chain ends at: [N], of D's logits [N, K] and uniforms [N, K].

    Independence Metropolis-Hastings with G as proposal distribution (Turner 2019, arXiv:1811.11357,
    section 3): from x_k the chain moves to x' with probability

        α(x', x_k) = min(1, (D(x_k)⁻¹ - 1) / (D(x')⁻¹ - 1))

    where D is calibrated. With D = σ(scale · logit + offset) that is min(1, exp(scale · (logit' - logit_k))):
    the offset cancels. The chain begins at proposal 0, the plain image, not at a real one as in the paper,
    which needs data: K = 1 is the plain sampler. Each row depends on its own values alone.
    """
    logits = rounded_logits(logits)
    rows, chosen = np.arange(len(logits)), np.zeros(len(logits), dtype=np.int64)
    for proposal in range(1, logits.shape[1]):
        gain = scale * (logits[:, proposal] - logits[rows, chosen])  # [N]
        accepted = uniforms[:, proposal] < np.exp(np.minimum(gain, 0.0))
        chosen[accepted] = proposal
    return chosen


def latents_from_seeds(
    seeds: Sequence[int] | npt.NDArray[np.integer], z_dim: int, prior: Prior = "normal"
) -> npt.NDArray[np.float32]:
    """Return the latents [N, z_dim] float32 that `seeds` name. Raises InvalidValue for a bad seed."""
    for seed in seeds:
        check_seed(seed)
    return LatentSampler(z_dim, prior).draw(seeds)


def check_seed(seed: object, field: str = "seed") -> int:
    """Return `seed` as an int in 0..2**32-1, or raise InvalidValue. Seeds are never wrapped."""
    if isinstance(seed, bool) or not isinstance(seed, _INTEGERS):
        raise InvalidValue(f"{field} must be an integer, got {show(seed)}")
    if not 0 <= seed <= MAX_SEED:
        raise InvalidValue(f"{field} must be between 0 and {MAX_SEED}, got {show(seed)}")
    return int(seed)


def default_class_idx(seed: int, num_classes: int) -> int:
    """The class a conditional model takes for `seed` when none is asked for."""
    return seed % num_classes


def resolve_class_idx(
    class_idx: int | Sequence[int] | None, seeds: Sequence[int | None], num_classes: int
) -> list[int] | None:
    """Return one class a row, or None for an unconditional model (`num_classes` 0).

    `class_idx` is one integer for all rows, a list as long as the rows, or None for the default
    of each seed. A row without a seed (explicit latents) has no default: it takes class 0.
    Raises InvalidValue naming field, rule and value.
    """
    if num_classes == 0:
        if class_idx is not None:
            raise InvalidValue(f"class_idx must be left out: the model has no classes, got {show(class_idx)}")
        return None
    if class_idx is None:
        return [0 if seed is None else default_class_idx(seed, num_classes) for seed in seeds]
    if isinstance(class_idx, _INTEGERS):
        return [_check_class(class_idx, num_classes, "class_idx")] * len(seeds)
    if len(class_idx) != len(seeds):
        raise InvalidValue(
            f"class_idx must be one integer or a list as long as the rows ({len(seeds)}), "
            f"got {len(class_idx)} values"
        )
    return [_check_class(value, num_classes, f"class_idx[{row}]") for row, value in enumerate(class_idx)]


def _check_class(value: object, num_classes: int, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, _INTEGERS) or not 0 <= value < num_classes:
        raise InvalidValue(f"{field} must be an integer between 0 and {num_classes - 1}, got {show(value)}")
    return int(value)


def resolve_truncation_psi(
    truncation_psi: float | None, has_truncation: bool, field: str = "truncation_psi"
) -> float:
    """Return the psi to use: 1 (off) unless the model has truncation. Raises InvalidValue naming `field`."""
    psi = 1.0 if truncation_psi is None else truncation_psi
    if not 0.0 <= psi <= MAX_TRUNCATION_PSI:  # also refuses NaN
        raise InvalidValue(f"{field} must be between 0 and {MAX_TRUNCATION_PSI:g}, got {show(psi)}")
    if not has_truncation and psi != 1.0:
        raise InvalidValue(f"{field} must be 1 or left out: the model has no truncation, got {show(psi)}")
    return float(psi) + 0.0  # -0.0 becomes 0.0: one image, one address


def slerp(
    start: npt.NDArray[np.float32], end: npt.NDArray[np.float32], frames: int
) -> npt.NDArray[np.float32]:
    """Return `frames` latents [frames, z_dim] float32 along the great circle from `start` to `end`.

    Both ends are returned to the last bit. A straight line would leave the shell on which
    N(0, 1) latents lie (White 2016, arXiv:1609.04468, section 2.1).
    """
    if frames < 2:
        raise InvalidValue(f"frames must be at least 2, got {show(frames)}")
    a, b = start.astype(np.float64), end.astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(np.clip(a @ b / norms, -1.0, 1.0)) if norms > 0 else 1.0
    omega = np.arccos(cosine)
    t = np.linspace(0.0, 1.0, frames)[:, None]  # [frames, 1]
    if np.sin(omega) < 1e-6:  # the same direction, or opposite ones: no unique great circle
        path = (1.0 - t) * a + t * b
    else:
        path = (np.sin((1.0 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)
    frames_latents: npt.NDArray[np.float32] = path.astype(np.float32)  # [frames, z_dim]
    frames_latents[0], frames_latents[-1] = start, end
    return frames_latents


@dataclass(frozen=True)
class SeedRanges(Sequence[int]):
    """Seeds written as range text, such as "0-63,99": a sequence that is never expanded in memory."""

    ranges: tuple[range, ...]

    @classmethod
    def parse(cls, text: str) -> SeedRanges:
        """Read range text. Raises InvalidValue for bad text, reversed or overlapping ranges."""
        ranges = []
        for part in text.split(","):
            match = _SEED_RANGE.fullmatch(part.strip())
            if match is None:
                raise InvalidValue(
                    f'seeds must be ranges such as "0-63,99", got {show(part)} in {show(text)}'
                )
            first = check_seed(int(match[1]), "seeds")
            last = check_seed(int(match[2]), "seeds") if match[2] is not None else first
            if last < first:
                raise InvalidValue(f"seeds must be ranges from low to high, got {show(part)}")
            ranges.append(range(first, last + 1))
        ordered = sorted(ranges, key=lambda one: one.start)
        for left, right in itertools.pairwise(ordered):
            if right.start < left.stop:
                raise InvalidValue(
                    f"seeds must not name an image twice, got {right.start} in two ranges of {show(text)}"
                )
        return cls(tuple(ranges))

    @cached_property
    def _ends(self) -> list[int]:
        """The position after the last seed of each range."""
        return list(itertools.accumulate(len(one) for one in self.ranges))

    def __len__(self) -> int:
        return self._ends[-1] if self.ranges else 0

    def __str__(self) -> str:
        """Range text of the same seeds in the same order; ranges that follow each other become one."""
        joined: list[range] = []
        for one in self.ranges:
            if joined and joined[-1].stop == one.start:
                one = range(joined.pop().start, one.stop)
            joined.append(one)
        return ",".join(f"{one[0]}" if len(one) == 1 else f"{one[0]}-{one[-1]}" for one in joined)

    def __iter__(self) -> Iterator[int]:
        for one in self.ranges:
            yield from one

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # the overloads would be longer than the body
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._ends, position)
        return self.ranges[number][position - self._ends[number]]


def seeds_text(seeds: Iterable[int]) -> str:
    """Write seeds as range text in their order: [0, 1, 2, 9] is "0-2,9"."""
    parts: list[str] = []
    first = last = None
    for seed in seeds:
        if last is not None and seed == last + 1:
            last = seed
            continue
        if first is not None:
            parts.append(f"{first}" if first == last else f"{first}-{last}")
        first = last = seed
    if first is not None:
        parts.append(f"{first}" if first == last else f"{first}-{last}")
    return ",".join(parts)
