"""A run folder: which file is where, who may write in it, and what a resume takes back.

    config.json                   the resolved config and the data's facts, written before the first image
    snapshot-nimg0000200000.pt    the state of the run (training.snapshot): the newest and the one before it
    metrics.jsonl                 one object a tick, and one an evaluation (`gantrain evaluate`)
    grids/                        one PNG a tick, from fixed seeds
    log.txt                       what the run said of itself, with the time
    lock                          held by the process that trains here

A tick writes its line and its grid first and its snapshot last, and a resume takes back what is newer than
the snapshot it goes on from (`take_back`). So after a kill at any moment each tick is there once. Needs no
torch. Refuses to own: the snapshot's content, whether a config may go on with a run (`training.resume`).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from training.config import TrainConfig
from training.errors import RunError
from training.files import atomic_file, named, remove_parts

SNAPSHOTS_KEPT: Final = 2


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    def snapshot_file(self, cur_nimg: int) -> Path:
        return self.path / f"snapshot-nimg{cur_nimg:010d}.pt"

    def snapshot_files(self) -> list[Path]:
        """The snapshots that are there, the newest first. Raises RunError for one of format 1."""
        if (self.path / "snapshot.pt").exists():
            raise RunError(
                f"{self.path} holds a snapshot.pt, which is of format 1 and is not read any more: "
                "give another --run-dir"
            )
        return sorted(self.path.glob("snapshot-nimg*.pt"), reverse=True)

    def grid_file(self, cur_nimg: int) -> Path:
        return self.path / "grids" / f"nimg{cur_nimg:010d}.png"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder if it is not there, and keep every other process from training in it.

        Raises RunError while another one does. The lock is the kernel's: it goes with its process,
        however that ends.
        """
        (self.path / "grids").mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise RunError(
                    f"{self.path} is in use: process {lock.read().strip() or 'unknown'} trains in it. "
                    "Wait for its end, or give another --run-dir"
                ) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            with self._logged():
                yield

    def write_config(self, config: TrainConfig, data: Mapping[str, Any]) -> None:
        """Write `config.json`, for people to read: a resume asks the snapshot."""
        text = json.dumps({"config": config.to_dict(), "data": data}, indent=2)
        with atomic_file(self.config_file) as file:
            file.write(f"{text}\n".encode())

    def metrics(self) -> list[dict[str, Any]]:
        """The ticks of `metrics.jsonl`, but for a line that a kill cut off."""
        return [row for row in self._rows() if "figures" not in row]

    def figures_of(self, weights: str) -> list[dict[str, Any]]:
        """The figures that evaluations took of G_ema with these weights (a digest), the last of a kind."""
        lines = (row for row in self._rows() if row.get("weights") == weights)
        figures = {
            json.dumps((one["name"], one["protocol"]), sort_keys=True): one
            for row in lines
            for one in row["figures"]
        }
        return list(figures.values())

    def append_figures(self, cur_nimg: int, weights: str, figures: Sequence[Mapping[str, Any]]) -> None:
        """Add what an evaluation found of the weights at `cur_nimg`; the run may be going on meanwhile."""
        self.append_metrics({"cur_nimg": cur_nimg, "weights": weights, "figures": list(figures)})

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to `metrics.jsonl`, in one write: lines of two processes do not mix."""
        line = f"{json.dumps(row, allow_nan=False)}\n".encode()
        with named(self.metrics_file), self.metrics_file.open("ab", buffering=0) as file:
            file.write(line)
            os.fsync(file.fileno())

    def _rows(self) -> list[dict[str, Any]]:
        lines = self.metrics_file.read_bytes().splitlines(keepends=True) if self.metrics_file.exists() else []
        return [json.loads(line) for line in lines if _nimg_of(line) < float("inf")]

    def take_back(self, cur_nimg: int) -> None:
        """Remove snapshots, grids and lines of metrics of after `cur_nimg`, and what a kill left over."""
        grids = self.path / "grids"
        newer = [path for path in self.snapshot_files() if path > self.snapshot_file(cur_nimg)]
        newer += [path for path in grids.glob("nimg*.png") if path > self.grid_file(cur_nimg)]
        for path in newer:
            path.unlink()
        self.drop_old_snapshots()
        for folder in (self.path, grids):
            remove_parts(folder)
        lines = self.metrics_file.read_bytes().splitlines(keepends=True) if self.metrics_file.exists() else []
        kept = [line for line in lines if _nimg_of(line) <= cur_nimg]
        if kept != lines:
            with atomic_file(self.metrics_file) as file:
                file.writelines(kept)

    def drop_old_snapshots(self) -> None:
        """Keep the newest snapshots, and remove the others."""
        for path in self.snapshot_files()[SNAPSHOTS_KEPT:]:
            path.unlink()

    @contextmanager
    def _logged(self) -> Iterator[None]:
        """Write what the package logs meanwhile to `log.txt` too."""
        logger = logging.getLogger("training")
        handler = _LogFile(self.log_file)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)


class _LogFile(logging.Handler):
    """One line a record: UTC time, level, sentence. A full disk costs the line, not the run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{moment} {record.levelname.lower()}: {record.getMessage()}\n")


def _nimg_of(line: bytes) -> float:
    """The `cur_nimg` of one line of metrics; infinite for a line that a kill cut off."""
    try:
        return float(json.loads(line)["cur_nimg"]) if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")
