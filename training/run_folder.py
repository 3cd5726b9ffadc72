"""A run folder: which file is where, and whether a run may go on in it.

    config.json      the resolved config and the facts of the data, written before the first image
    snapshot.pt      the state of the run (training.snapshot)
    metrics.jsonl    one object a tick
    grids/           one PNG a tick, from fixed seeds

Needs no torch. Refuses to own: the snapshot's content.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from models.errors import InvalidValue
from training.config import TrainConfig
from training.errors import RunError

_CONFIG_FILE: Final = "config.json"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / _CONFIG_FILE

    @property
    def snapshot_file(self) -> Path:
        return self.path / "snapshot.pt"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def grid_file(self, cur_nimg: int) -> Path:
        return self.path / "grids" / f"nimg{cur_nimg:010d}.png"

    def open(self, config: TrainConfig, data: Mapping[str, Any]) -> None:
        """Write `config.json`, or check that it says the same. Raises RunError naming what differs."""
        (self.path / "grids").mkdir(parents=True, exist_ok=True)
        if self.config_file.exists():
            self._check_same(config, data)
            return
        temporary = self.path / f".{_CONFIG_FILE}"
        text = json.dumps({"config": config.to_dict(), "data": data}, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(self.config_file)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to `metrics.jsonl`."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def _check_same(self, config: TrainConfig, data: Mapping[str, Any]) -> None:
        try:
            stored = json.loads(self.config_file.read_bytes())
            theirs = TrainConfig.from_dict(stored["config"])
            digest = stored["data"]["digest"]
        except (ValueError, KeyError, TypeError, InvalidValue) as error:
            raise RunError(f"{self.config_file} cannot be read as a run's config: {error}") from None
        changes = [
            f"{name} was {getattr(theirs, name)!r} and is now {getattr(config, name)!r}"
            for name in config.differences(theirs)
        ]
        if digest != data["digest"]:
            changes.append(f"the data set was {digest[:12]}… and is now {data['digest'][:12]}…")
        if changes:
            raise RunError(
                f"{self.path} holds another run: {'; '.join(changes)}. "
                "Give the same settings to go on with it, or another --run-dir"
            )
