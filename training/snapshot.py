"""The state of a run between two iterations, and its one file.

A snapshot holds all that the next iteration reads: config, data facts, both networks, G_ema,
both optimizers, cur_nimg. The random streams and the order of the data are functions of
cur_nimg and need no saving. The file is what `torch.save` writes, with the sha256 of that behind it:
torch alone takes a flipped bit for a weight. It is read with `weights_only=True`, so nothing in it can
run. A run folder keeps two.
"""

from __future__ import annotations

import copy
import hashlib
import io
import logging
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from training.config import TrainConfig
from training.data.dataset import DataShape
from training.device import CPU
from training.digest import weights_digest
from training.environment import environment
from training.errors import DamagedSnapshot, NotFinite, RunError
from training.files import atomic_file
from training.guard import adam
from training.networks import Discriminator, Encoder, Generator, build_generator, build_pair
from training.processes import Processes
from training.run_folder import RunFolder
from training.watch import TickAverages

FORMAT: Final = 2

_log = logging.getLogger(__name__)
_DIGEST_BYTES: Final = hashlib.sha256().digest_size


@dataclass(kw_only=True)
class TrainState:
    """All that changes while a run goes on."""

    G: Generator
    D: Discriminator | Encoder
    """What G learns from; a VAE has its encoder here."""
    G_ema: Generator
    G_optimizer: torch.optim.Optimizer
    D_optimizer: torch.optim.Optimizer
    cur_nimg: int = 0
    """Real images shown."""
    train_s: float = 0.0
    """Seconds spent training, all sessions of the run together."""
    averages: TickAverages = field(default_factory=TickAverages)
    """The figures of the tick that is not over yet."""
    departures: list[str] = field(default_factory=list)
    """Why the config alone does not give these weights again: what was overridden, and what was not exact."""

    @classmethod
    def fresh(cls, config: TrainConfig, shape: DataShape, device: torch.device = CPU) -> TrainState:
        """The state at image 0: a function of the config and the data's shape, whatever the device."""
        G, D = build_pair(config, shape)
        for network in (G, D):  # 11-15 % faster convolutions on a CPU
            network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # no stub
        G_ema = copy.deepcopy(G).eval().requires_grad_(False)
        if config.compile:
            G.compile()
            if not config.differentiates_twice:
                D.compile()
        waits = device.type == "cpu"
        return cls(
            G=G,
            D=D,
            G_ema=G_ema,
            G_optimizer=adam(G.parameters(), config.G_lr, config, waits=waits),
            D_optimizer=adam(D.parameters(), config.D_lr, config, waits=waits),
        )

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.G.parameters()).device

    def check_finite(self) -> None:
        """Raise NotFinite where a weight or a buffer is not finite."""
        for network in _NETWORKS:
            for name, value in getattr(self, network).state_dict().items():
                if value.is_floating_point() and not value.isfinite().all():
                    raise NotFinite(f"{name} of {network} is not finite")

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        return {
            "cur_nimg": self.cur_nimg,
            "train_s": self.train_s,
            "averages": self.averages.to_dict(),
            "departures": list(self.departures),
            **{name: getattr(self, name).state_dict() for name in _NETWORKS},
            **{name: getattr(self, name).state_dict()["state"] for name in _OPTIMIZERS},
        }

    def load_dict(self, values: dict[str, Any]) -> None:
        """Take over what `to_dict` gave."""
        for name in _NETWORKS:
            getattr(self, name).load_state_dict(values[name])
        for name in _OPTIMIZERS:  # their moments: learning rates and betas are always the config's
            optimizer = getattr(self, name)
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": values[name], "param_groups": groups})
        self.cur_nimg = values["cur_nimg"]
        self.train_s = values["train_s"]
        self.averages.load_dict(values["averages"])
        self.departures = list(values["departures"])


_NETWORKS: Final = ("G", "D", "G_ema")
_OPTIMIZERS: Final = ("G_optimizer", "D_optimizer")


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

    @property
    def weights(self) -> str:
        """sha256 (64 hex) of G_ema's weights: what figures are of."""
        return weights_digest(self.state["G_ema"])

    def restore(self, state: TrainState) -> None:
        """Load into `state`. Raises RunError where it was made for other networks."""
        try:
            state.load_dict(self.state)
        except (RuntimeError, ValueError, KeyError):  # what torch raises for other names and shapes
            raise RunError(
                f"the snapshot of {self.cur_nimg / 1000:g} kimg holds other networks than the config makes, "
                "and --override cannot change them: give another --run-dir"
            ) from None

    def generator(self) -> Generator:
        """Return G_ema in eval mode: what is drawn in grids and exported."""
        shape = DataShape(img_channels=self.data["img_channels"], num_classes=self.data["num_classes"])
        with torch.random.fork_rng(devices=[]):
            G_ema = build_generator(self.config, shape)
        G_ema.load_state_dict(self.state["G_ema"])
        return G_ema.eval().requires_grad_(False)

    def discriminator(self) -> Discriminator:
        """Return D in eval mode, as it last learned: it has no moving average. Not of a VAE."""
        shape = DataShape(img_channels=self.data["img_channels"], num_classes=self.data["num_classes"])
        _, D = build_pair(self.config, shape)
        assert isinstance(D, Discriminator)
        D.load_state_dict(self.state["D"])
        return D.eval().requires_grad_(False)


def save_snapshot(run: RunFolder, config: TrainConfig, data: dict[str, Any], state: TrainState) -> None:
    """Write the newest snapshot of `run`, and keep the one before it. A file is whole or not there."""
    values = {
        "format": FORMAT,
        "config": config.to_dict(),
        "data": data,
        "environment": environment(state.device),
        "state": state.to_dict(),
    }
    content = io.BytesIO()
    torch.save(values, content)
    with atomic_file(run.snapshot_file(state.cur_nimg)) as file:
        file.write(content.getbuffer())
        file.write(hashlib.sha256(content.getbuffer()).digest())
    run.drop_old_snapshots()


def follow_leader(state: TrainState, processes: Processes) -> None:
    """Make `state` in every process what it is in the leader."""
    if processes.count == 1:
        return
    content = io.BytesIO()
    if processes.leads:
        torch.save(state.to_dict(), content)
    values = torch.load(io.BytesIO(processes.from_leader(content.getvalue())), "cpu", weights_only=True)
    if not processes.leads:
        state.load_dict(values)


def load_newest(run: RunFolder) -> Snapshot:
    """Read the newest snapshot of `run` that is whole, with a warning where it is not the newest.

    Raises RunError where there is none, or one of another format.
    """
    damages = []
    for path in run.snapshot_files():
        try:
            snapshot = load_snapshot(path)
        except DamagedSnapshot as error:
            damages.append(str(error))
        else:
            for damage in damages:
                _log.warning("%s; the one before it is used, of %g kimg", damage, snapshot.cur_nimg / 1000)
            return snapshot
    if damages:
        raise RunError(f"{'; '.join(damages)}. No snapshot of {run.path} is whole: give another --run-dir")
    raise RunError(f"{run.path} has no snapshot: nothing was trained there yet")


def load_snapshot(path: Path) -> Snapshot:
    """Read one snapshot. Raises DamagedSnapshot if it is, and RunError if it is of another format."""
    try:
        bytes_read = path.read_bytes()
    except OSError as error:
        raise DamagedSnapshot(f"{path} cannot be read: {error.strerror}") from None
    content, digest = bytes_read[:-_DIGEST_BYTES], bytes_read[-_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise DamagedSnapshot(f"{path} is damaged: its digest is not that of its content")
    try:
        values = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError):  # torch's own text tells how to load it all the same
        raise RunError(f"{path} must be a snapshot: tensors and plain values, saved by torch") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise RunError(f"{path} must be a snapshot of format {FORMAT}: give another --run-dir")
    return Snapshot(
        config=TrainConfig.from_dict(values["config"]),
        data=values["data"],
        environment=values["environment"],
        state=values["state"],
    )
