"""The state of a run between two iterations, and its one file.

A snapshot holds all that the next iteration reads: config, data facts, both networks, G_ema,
both optimizers, cur_nimg. The random streams and the order of the data are functions of
cur_nimg and need no saving. Written under a temporary name and renamed, so the file is a whole
one at any moment; read with `weights_only=True`, so nothing in it can run.
"""

from __future__ import annotations

import copy
import os
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from training.config import TrainConfig
from training.data.dataset import DataShape
from training.device import CPU
from training.environment import environment
from training.errors import RunError
from training.networks import Discriminator, Generator, build_generator, build_pair

FORMAT: Final = 1


@dataclass(kw_only=True)
class TrainState:
    """All that changes while a run goes on."""

    G: Generator
    D: Discriminator
    G_ema: Generator
    G_optimizer: torch.optim.Optimizer
    D_optimizer: torch.optim.Optimizer
    cur_nimg: int = 0
    """Real images shown."""
    train_s: float = 0.0
    """Seconds spent training, all sessions of the run together."""

    @classmethod
    def fresh(cls, config: TrainConfig, shape: DataShape, device: torch.device = CPU) -> TrainState:
        """The state at image 0: a function of the config and the data's shape, whatever the device."""
        G, D = build_pair(config, shape)
        for network in (G, D):  # 11-15 % faster convolutions on a CPU
            network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # no stub
        betas = (config.adam_beta1, config.adam_beta2)
        return cls(
            G=G,
            D=D,
            G_ema=copy.deepcopy(G).eval().requires_grad_(False),
            G_optimizer=torch.optim.Adam(G.parameters(), lr=config.G_lr, betas=betas),
            D_optimizer=torch.optim.Adam(D.parameters(), lr=config.D_lr, betas=betas),
        )

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.G.parameters()).device

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        return {
            "cur_nimg": self.cur_nimg,
            "train_s": self.train_s,
            **{name: getattr(self, name).state_dict() for name in _WITH_STATE},
        }

    def load_dict(self, values: dict[str, Any]) -> None:
        """Take over what `to_dict` gave."""
        for name in _WITH_STATE:
            getattr(self, name).load_state_dict(values[name])
        self.cur_nimg = values["cur_nimg"]
        self.train_s = values["train_s"]


_WITH_STATE: Final = ("G", "D", "G_ema", "G_optimizer", "D_optimizer")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a snapshot file holds, read back."""

    config: TrainConfig
    data: dict[str, Any]
    """Facts of the data set: `Dataset.facts()`."""
    environment: dict[str, Any]
    """What the last session of the run was computed on: `environment()`."""
    state: dict[str, Any]
    """`TrainState.to_dict()`."""

    @property
    def cur_nimg(self) -> int:
        return int(self.state["cur_nimg"])

    def generator(self) -> Generator:
        """Return G_ema in eval mode: what is drawn in grids and exported."""
        shape = DataShape(img_channels=self.data["img_channels"], num_classes=self.data["num_classes"])
        with torch.random.fork_rng(devices=[]):
            G_ema = build_generator(self.config, shape)
        G_ema.load_state_dict(self.state["G_ema"])
        return G_ema.eval().requires_grad_(False)


def save_snapshot(path: Path, config: TrainConfig, data: dict[str, Any], state: TrainState) -> None:
    """Write a snapshot; `path` is the old file or the whole new one, at any moment."""
    content = {
        "format": FORMAT,
        "config": config.to_dict(),
        "data": data,
        "environment": environment(state.device),
        "state": state.to_dict(),
    }
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_snapshot(path: Path) -> Snapshot:
    """Read a snapshot. Raises RunError if it is missing, damaged or of another format."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path.parent} has no {path.name}: nothing was trained there yet") from None
    except pickle.UnpicklingError:  # torch's own text tells how to load it all the same
        raise RunError(
            f"{path} cannot be read as a snapshot: it is damaged, or holds more than tensors and plain values"
        ) from None
    except (OSError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise RunError(f"{path} cannot be read as a snapshot: {reason}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RunError(f"{path} must be a snapshot of format {FORMAT}")
    return Snapshot(
        config=TrainConfig.from_dict(content["config"]),
        data=content["data"],
        environment=content["environment"],
        state=content["state"],
    )
