"""Going on with a run: which config and data set may, and from where.

Every field of the config makes the run what it is, with one exception: `total_kimg` may grow where nothing
before the new end depends on it. Where the run folder lies, the length of a tick and what is logged are no
fields. Refuses to own: the files (`training.run_folder`, `training.snapshot`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import torch

from training.config import TrainConfig
from training.data import Dataset
from training.environment import environment
from training.errors import RunError
from training.run_folder import RunFolder
from training.schedules import needs_total
from training.snapshot import TrainState, load_newest

_log = logging.getLogger(__name__)
_EXACTNESS: Final = ("device", "processes", "threads", "torch", "numpy")
"""Facts of `environment()` that the last bit of a result depends on."""


def open_run(
    config: TrainConfig, dataset: Dataset, run: RunFolder, device: torch.device, *, override: bool
) -> TrainState:
    """Return the state that `run` goes on from, with its folder as it was then.

    Call it while the folder is held. Raises RunError naming what makes it another run, unless `override`.
    """
    data = dataset.facts()
    state = TrainState.fresh(config, dataset.shape, device)
    if run.snapshot_files():
        snapshot = load_newest(run)
        found = changes(snapshot.config, snapshot.data, config, data)
        if found and not override:
            raise RunError(
                f"{run.path} holds another run: {'; '.join(found)}. Give the same settings to go on with it, "
                "another --run-dir, or --override to go on all the same"
            )
        snapshot.restore(state)
        kimg = f"{state.cur_nimg / 1000:g} kimg"
        departures = [f"overridden at {kimg}: {change}" for change in found]
        if state.cur_nimg < config.total_nimg:
            _log.info("going on from %s", kimg)
            if differences := inexactness(snapshot.environment, environment(device)):
                departures.append(f"going on from {kimg}, not bit-exact: {'; '.join(differences)}")
        for departure in departures:
            _log.warning(departure)
        state.departures += departures
    run.write_config(config, data)
    run.take_back(state.cur_nimg)
    return state


def changes(
    was: TrainConfig, was_data: Mapping[str, Any], now: TrainConfig, now_data: Mapping[str, Any]
) -> list[str]:
    """Return what makes it another run, one "field was … and is now …" each."""
    found = [
        f"{name} was {getattr(was, name)!r} and is now {getattr(now, name)!r}"
        for name in now.differences(was)
        if name != "total_kimg"
    ]
    if now.total_kimg != was.total_kimg:
        changed = f"total_kimg was {was.total_kimg:g} and is now {now.total_kimg:g}"
        if now.total_kimg < was.total_kimg:
            found.append(f"{changed} (it may only grow)")
        elif reason := needs_total(was):
            found.append(f"{changed} ({reason})")
    if was_data["digest"] != now_data["digest"]:
        found.append(f"the data set was {was_data['digest'][:12]}… and is now {now_data['digest'][:12]}…")
    return found


def inexactness(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what makes one `environment()` give other last bits than another, as `changes` words it."""
    return [
        f"{name} was {was.get(name)!r} and is now {now[name]!r}"
        for name in _EXACTNESS
        if was.get(name) != now[name]
    ]
