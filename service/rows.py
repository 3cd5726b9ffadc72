"""Rows: what one request asks for, resolved to one seed (or latents), class and psi an image.

Endpoint and offline runs both build their rows here, from the rules of `models.sampling`, so a
seed with its parameters means the same image in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.calibration import Sampler, check_realness, resolve_proposals
from models.errors import InvalidValue, show
from models.manifest import Manifest
from models.sampling import (
    check_seed,
    latents_from_seeds,
    resolve_class_idx,
    resolve_truncation_psi,
    slerp,
)
from service.slots import LATENTS_GIVEN

MAX_WALK_FRAMES: Final = 240


@dataclass(frozen=True, kw_only=True)
class Judging:
    """What D does for rows that are not plain."""

    proposals: int = 1
    """Images that each row's is chosen from, by MH; 1: it is the plain one."""
    realness: bool = False
    """Whether the caller is told how real each image is."""


@dataclass(eq=False, slots=True)  # frozen would take three times as long to make
class Rows:
    """N rows to make; not to be changed. Compared by identity: two requests for the same image stay two."""

    seeds: npt.NDArray[np.int64]
    """[N]; LATENTS_GIVEN where the caller gave the latents."""
    latents: npt.NDArray[np.float32] | None
    """[N, z_dim], or None where seeds name every row."""
    class_idx: npt.NDArray[np.int64]
    """[N]; zeros for an unconditional model."""
    truncation_psi: npt.NDArray[np.float32]
    """[N]; ones for a model without truncation."""
    judging: Judging | None = None
    """None: D has nothing to do with these rows."""

    def __len__(self) -> int:
        return len(self.seeds)

    @classmethod
    def of_seeds(
        cls,
        manifest: Manifest,
        seeds: Sequence[int],
        class_idx: int | Sequence[int] | None = None,
        truncation_psi: float | Sequence[float] | None = None,
    ) -> Rows:
        """Rows named by seeds. Raises InvalidValue naming field, rule and value."""
        checked = [check_seed(seed, "seeds") for seed in seeds]
        return cls._resolved(manifest, checked, np.array(checked, np.int64), None, class_idx, truncation_psi)

    @classmethod
    def of_latents(
        cls,
        manifest: Manifest,
        latents: npt.ArrayLike,
        class_idx: int | Sequence[int] | None = None,
        truncation_psi: float | Sequence[float] | None = None,
    ) -> Rows:
        """Rows whose latents [N, z_dim] the caller gives. Raises InvalidValue."""
        try:
            with np.errstate(over="ignore"):  # 1e39 becomes infinite and is refused below
                values = np.asarray(latents, dtype=np.float32)  # [N, Z]
        except (ValueError, TypeError, OverflowError):
            raise InvalidValue(
                f"latents must be rows of {manifest.z_dim} numbers, got {_odd_row(latents, manifest.z_dim)}"
            ) from None
        if values.ndim != 2 or values.shape[1] != manifest.z_dim:
            raise InvalidValue(f"latents must have the shape [n, {manifest.z_dim}], got {list(values.shape)}")
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise InvalidValue(
                f"latents must be finite in float32, got {float(values[row, column])} at [{row}][{column}]"
            )
        n = len(values)
        no_seeds = np.full(n, LATENTS_GIVEN)
        return cls._resolved(manifest, [None] * n, no_seeds, values, class_idx, truncation_psi)

    @classmethod
    def of_walk(
        cls,
        manifest: Manifest,
        start: int,
        end: int,
        frames: int,
        class_idx: int | None = None,
        truncation_psi: float | None = None,
    ) -> Rows:
        """The frames of a walk from one seed's image to another's. Raises InvalidValue."""
        ends = cls.of_seeds(manifest, [start, end], class_idx, truncation_psi)
        first, last = latents_from_seeds([start, end], manifest.z_dim, manifest.prior)
        # Each frame takes the class of the nearer end, so that both ends are the images their seeds name.
        nearer = np.repeat(ends.class_idx, [(frames + 1) // 2, frames // 2]).tolist()
        return cls.of_latents(
            manifest, slerp(first, last, frames), nearer if manifest.num_classes else None, truncation_psi
        )

    def judged(
        self,
        manifest: Manifest,
        sampler: Sampler | None = None,
        proposals: int | None = None,
        realness: bool = False,
    ) -> Rows:
        """The same rows, chosen by `sampler` out of `proposals` each, or with their realness told.

        Raises InvalidValue naming the field where the model's discriminator cannot.
        """
        calibration, why_none = manifest.calibration, manifest.why_no_calibration
        count = resolve_proposals(sampler, proposals, calibration, why_none)
        if sampler == "mh" and self.latents is not None:
            raise InvalidValue(
                "sampler must be plain where latents are given: further proposals are a seed's, got 'mh'"
            )
        off = np.flatnonzero(self.truncation_psi != 1.0)
        if sampler == "mh" and len(off):
            psi = float(self.truncation_psi[off[0]])
            raise InvalidValue(
                f"truncation_psi must be 1 where sampler is mh, for which D was calibrated, got {psi:g}"
            )
        if realness:
            check_realness(calibration, "realness", True, why_none)
        if count == 1 and not realness:  # the plain image, to the last byte
            return self
        return replace(self, judging=Judging(proposals=count, realness=realness))

    def __getitem__(self, index: slice | npt.NDArray[np.int64]) -> Rows:
        """Some of the rows."""
        return replace(
            self,
            seeds=self.seeds[index],
            latents=None if self.latents is None else self.latents[index],
            class_idx=self.class_idx[index],
            truncation_psi=self.truncation_psi[index],
        )

    def judged_facts(self, realness: npt.NDArray[np.float64] | None) -> list[dict[str, Any]]:
        """What a manifest says of each row beyond seed, class and psi: how it was chosen, and how real it is.

        `realness` [N] is D's; nothing is said of plain rows.
        """
        if self.judging is None:
            return [{}] * len(self)
        chosen = {"sampler": "mh", "proposals": self.proposals} if self.proposals > 1 else {}
        if not self.judging.realness:
            return [chosen] * len(self)
        assert realness is not None
        return [{**chosen, "realness": value} for value in realness.tolist()]

    @property
    def proposals(self) -> int:
        """Images that a row takes to make."""
        return 1 if self.judging is None else self.judging.proposals

    @classmethod
    def _resolved(
        cls,
        manifest: Manifest,
        names: Sequence[int | None],
        seeds: npt.NDArray[np.int64],
        latents: npt.NDArray[np.float32] | None,
        class_idx: int | Sequence[int] | None,
        truncation_psi: float | Sequence[float] | None,
    ) -> Rows:
        n = len(names)
        classes = resolve_class_idx(class_idx, names, manifest.num_classes)
        psi = _resolve_psi(truncation_psi, n, manifest.has_truncation)
        return cls(seeds, latents, _no_classes(n) if classes is None else np.array(classes, np.int64), psi)

    def seed(self, row: int) -> int | None:
        """The seed of one row, or None where its latents were given."""
        seed = int(self.seeds[row])
        return None if seed == LATENTS_GIVEN else seed

    def name(self, row: int) -> str:
        """What a file of this row is called, without its ending: `seed0000000042`, `row00007`."""
        seed = self.seed(row)
        return f"row{row:05d}" if seed is None else f"seed{seed:010d}"


# What most requests have alike; they share it.
@lru_cache(maxsize=4)
def _no_classes(rows: int) -> npt.NDArray[np.int64]:
    classes = np.zeros(rows, dtype=np.int64)
    classes.setflags(write=False)
    return classes


@lru_cache(maxsize=4)
def _all_psi(rows: int, psi: float) -> npt.NDArray[np.float32]:
    each = np.full(rows, psi, dtype=np.float32)
    each.setflags(write=False)
    return each


def _resolve_psi(
    truncation_psi: float | Sequence[float] | None, rows: int, has_truncation: bool
) -> npt.NDArray[np.float32]:
    """One psi a row [rows]: of one for all, of as many as rows, or of none."""
    if truncation_psi is None:
        return _all_psi(rows, 1.0)
    if isinstance(truncation_psi, int | float):
        one = resolve_truncation_psi(truncation_psi, has_truncation)
        return _all_psi(rows, one)
    if len(truncation_psi) != rows:
        raise InvalidValue(
            f"truncation_psi must be one number or as many as the rows ({rows}), "
            f"got {len(truncation_psi)} values"
        )
    each = [
        resolve_truncation_psi(psi, has_truncation, f"truncation_psi[{row}]")
        for row, psi in enumerate(truncation_psi)
    ]
    return np.array(each, dtype=np.float32)


def _odd_row(latents: Any, z_dim: int) -> str:
    """Which of `latents`, that are no array, is no row of `z_dim` numbers."""
    rows = latents if isinstance(latents, list) else []
    for number, row in enumerate(rows):
        if isinstance(row, list) and len(row) != z_dim:
            return f"{len(row)} at [{number}]"
    return show(latents)
