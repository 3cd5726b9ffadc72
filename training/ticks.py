"""What a tick leaves in the run folder: a line of metrics, a grid and a snapshot, in this order.

The sentinel reads the line before it is written: it warns when a game begins to be won or collapses.
Refuses to own: the files' form (`training.run_folder`), the judgement (`training.watch`), the words
(`training.advice`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from models.sampling import resolve_class_idx
from training import advice
from training.config import TrainConfig
from training.data import Dataset
from training.errors import Collapsed, NotFinite, RunError
from training.grid import grid_columns, save_grid
from training.run_folder import RunFolder
from training.servable import render_seeds
from training.snapshot import TrainState, save_snapshot
from training.watch import COLLAPSED_SINCE, WON_SINCE, GridSpread, alarms

GRID_ROWS: Final = 8
MAINTENANCE_SHARE: Final = 0.1
"""A session in which ticks cost more than this share of the training between them is told once."""

_log = logging.getLogger(__name__)


class Ticks:
    """The ticks of one session in a run folder that is held. Goes on from the lines that are there."""

    def __init__(self, config: TrainConfig, dataset: Dataset, run: RunFolder, state: TrainState) -> None:
        self._config = config
        self._data = dataset.facts()
        self._run = run
        self._state = state
        self._rows = run.metrics()
        self._columns = grid_columns(dataset.num_classes)
        self._seeds = range(self._columns * GRID_ROWS)
        classes = resolve_class_idx(None, list(self._seeds), dataset.num_classes) or [0] * len(self._seeds)
        self._spread = GridSpread(dataset, np.array(classes, dtype=np.int64))
        self._maintenance_s = 0.0
        self._trained_s = state.train_s
        self._told_cost = False

    def leave_tick(self) -> dict[str, Any]:
        """Leave all of it, and return the line."""
        began_s = time.monotonic()
        state = self._state
        state.check_finite()
        images = render_seeds(state.G_ema, self._seeds)  # [N, H, W, C]
        row = {
            "cur_nimg": state.cur_nimg,
            **state.averages.take_row(),
            **self._spread.figures(images),
            "train_s": round(state.train_s, 1),
            "maintenance_s": round(self._maintenance_s, 3),  # of the tick before: this one's is not over
        }
        row |= alarms([*self._rows, row], self._config.objective)
        self._warn_of_new_alarms(row)
        self._run.append_metrics(row)
        self._rows.append(row)
        save_grid(self._run.grid_file(state.cur_nimg), images, self._columns)
        save_snapshot(self._run, self._config, self._data, state)
        self._tell_cost(time.monotonic() - began_s)
        return row

    def leave_snapshot(self) -> None:
        """Leave what a stop within a tick leaves."""
        self._state.check_finite()
        save_snapshot(self._run, self._config, self._data, self._state)

    @property
    def collapsed(self) -> bool:
        """Whether the last tick is part of a collapse."""
        return bool(self._rows) and COLLAPSED_SINCE in self._rows[-1]

    def check_collapse(self) -> None:
        """Raise Collapsed where the last tick is part of a collapse."""
        if self.collapsed:
            raise Collapsed(
                f"stopped at {_kimg(self._state.cur_nimg)}, since G has collapsed "
                f"({_kimg(self._rows[-1][COLLAPSED_SINCE])}). "
                f"Try {advice.when_collapsed(self._config)}, in another --run-dir"
            )

    @contextmanager
    def telling_what_is_kept(self) -> Iterator[None]:
        """Turn what ends a run into a sentence that says what there is to go on from."""
        try:
            yield
        except NotFinite as error:
            raise RunError(
                f"{error} at {_kimg(self._state.cur_nimg)}; {self._kept()}. "
                f"Try {advice.when_not_finite(self._config)}, with --override or in another --run-dir"
            ) from None
        except OSError as error:
            raise RunError(
                f"{error.filename or self._run.path} cannot be written: {error.strerror}; {self._kept()}. "
                "Make room, and the same command goes on from there"
            ) from error

    def _tell_cost(self, maintenance_s: float) -> None:
        tick_s = self._state.train_s - self._trained_s
        self._trained_s, self._maintenance_s = self._state.train_s, maintenance_s
        if maintenance_s > MAINTENANCE_SHARE * tick_s and not self._told_cost:
            self._told_cost = True
            _log.info(
                "a tick trained for %.2f s and took %.2f s more to leave its grid and snapshot: "
                "a longer --tick-kimg costs less",
                tick_s,
                maintenance_s,
            )

    def _kept(self) -> str:
        files = self._run.snapshot_files()
        return f"{files[0].name} is kept" if files else "there is no snapshot yet"

    def _warn_of_new_alarms(self, row: dict[str, Any]) -> None:
        before = self._rows[-1] if self._rows else {}
        if WON_SINCE in row and WON_SINCE not in before:
            _log.warning(
                "D has won since %s: it is certain of every sample, and G learns nothing from it. Try %s",
                _kimg(row[WON_SINCE]),
                advice.when_won(self._config),
            )
        if COLLAPSED_SINCE in row and COLLAPSED_SINCE not in before:
            _log.warning(
                "G has collapsed since %s: images of the grid are %.2f times as far apart as reals, "
                "and %.2f times as far from the nearest. Try %s",
                _kimg(row[COLLAPSED_SINCE]),
                row["grid_spread"],
                row["grid_nearest"],
                advice.when_collapsed(self._config),
            )


def _kimg(cur_nimg: int) -> str:
    return f"{cur_nimg / 1000:g} kimg"
