"""`gantrain bench`: how fast recipes train, beside the loop that everybody writes first.

`PlainLoop` is that loop, straight down: two optimizers, a DataLoader, G's graph built and thrown away in
phase 1, gradients of D in phase 2 that nobody uses. It learns the same mathematics with the same networks
as the preset `ns-dcgan` (fresh latents in both phases, as the paper's algorithm 1 has it), so their ratio is
what this package's loop is worth. Everything is measured in turns in one process, on noise instead of a
data set; a figure is the median of its rounds, a ratio the median of the rounds' ratios. On one CPU thread
the clock is CPU time, which repeats where other processes share the cores. Refuses to own: the loop.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from models.errors import InvalidValue, show
from training.config import TrainConfig
from training.data import Dataset
from training.device import check_compiler, check_precision, device_name
from training.loop import Trainer
from training.networks import build_pair
from training.presets import preset
from training.reals import DatasetReals
from training.snapshot import TrainState

PLAIN: Final = "ns-dcgan"
PENALISED: Final = "r3"
_NUM_IMAGES: Final = 8_192
"""Of the noise, where a batch is no larger."""
_ITERATIONS_A_ROUND: Final = 8
_TOTAL_KIMG: Final = 10**6

_PLAIN_GAME: Final[dict[str, object]] = {
    "objective": "nonsaturating",
    "d_steps": 1,
    "r1_gamma": 0,
    "r2_gamma": 0,
    "gp_weight": 0,
    "augment": "",
    "D_spectral_norm": False,
    "microbatches": 1,
}
"""What a config must say for `PlainLoop` to learn the same of it as this package. It has no part in how
that is computed: precision and compile are for this package's rows alone."""

Iteration = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender's figures."""

    name: str
    images_per_s: float
    """Real images shown, median of the rounds."""
    ratio: float
    """Against the first contender of its table, median of the rounds: of images/s."""


class PlainLoop:
    """DCGAN training as PyTorch's first example has it, with classes, and fresh latents in phase 2."""

    def __init__(self, config: TrainConfig, dataset: Dataset, device: torch.device) -> None:
        self.config = config
        self.device = device
        G, D = build_pair(config, dataset.shape)
        self.G, self.D = G.to(device), D.to(device)
        betas = (config.adam_beta1, config.adam_beta2)
        self.G_optimizer = torch.optim.Adam(self.G.parameters(), lr=config.G_lr, betas=betas)
        self.D_optimizer = torch.optim.Adam(self.D.parameters(), lr=config.D_lr, betas=betas)
        self.criterion = nn.BCEWithLogitsLoss()
        self.stream = torch.Generator().manual_seed(config.seed)
        self.batches = self._epochs(dataset)

    def run_iteration(self) -> tuple[float, float]:
        reals, class_idx = (values.to(self.device) for values in next(self.batches))
        rows = len(reals)
        asked = torch.randint(int(self.G.num_classes), (rows,), generator=self.stream).to(self.device)
        z_D, z_G = (
            torch.randn(rows, self.config.z_dim, generator=self.stream).to(self.device) for _ in range(2)
        )
        return self.learn(reals, class_idx, z_D, asked, z_G)

    def learn(
        self, reals: Tensor, class_idx: Tensor, z_D: Tensor, asked: Tensor, z_G: Tensor
    ) -> tuple[float, float]:
        """Both phases on reals [N, C, R, R] and latents [N, z_dim]. Returns the losses of D and of G."""
        ones = torch.ones(len(reals), device=self.device)
        zeros = torch.zeros(len(reals), device=self.device)

        self.D.zero_grad()
        real_loss = self.criterion(self.D(reals, class_idx), ones)
        real_loss.backward()
        fakes = self.G(z_D, class_idx)
        fake_loss = self.criterion(self.D(fakes.detach(), class_idx), zeros)
        fake_loss.backward()
        self.D_optimizer.step()

        self.G.zero_grad()
        G_loss = self.criterion(self.D(self.G(z_G, asked), asked), ones)
        G_loss.backward()
        self.G_optimizer.step()
        return real_loss.item() + fake_loss.item(), G_loss.item()

    def _epochs(self, dataset: Dataset) -> Iterator[list[Tensor]]:
        images = torch.from_numpy(dataset.images).float() / 127.5 - 1  # [N, C, R, R]
        assert dataset.class_idx is not None
        loader = DataLoader(
            TensorDataset(images, torch.from_numpy(dataset.class_idx)),
            batch_size=self.config.batch_size,
            shuffle=True,
            drop_last=True,
            generator=torch.Generator().manual_seed(self.config.seed),
        )
        assert len(loader) > 0, "an epoch without a batch would never end"
        while True:
            yield from loader


def bench_recipes(
    names: Sequence[str], *, device: torch.device, rounds: int, changes: Mapping[str, str]
) -> list[Row]:
    """The plain loop, `PLAIN` as this package trains it, and the presets `names`; ratios are to the first."""
    plain = _config(PLAIN, changes)
    for name, value in _PLAIN_GAME.items():
        if getattr(plain, name) != value:
            raise InvalidValue(
                f"--set {name} must be left to the presets, since the plain loop plays one game only, "
                f"got {show(getattr(plain, name))}"
            )
    contenders: dict[str, tuple[Iteration, TrainConfig]] = {
        "plain loop": (PlainLoop(plain, _noise(plain), device).run_iteration, plain)
    }
    for name in dict.fromkeys([PLAIN, *names]):
        config = _config(name, changes)
        contenders[name] = (_trainer(config, device).run_iteration, config)
    return _measure(contenders, device, rounds)


def bench_penalties(*, device: torch.device, rounds: int, changes: Mapping[str, str]) -> list[Row]:
    """What R1 and R2 cost in `PENALISED`, by form and interval; ratios are to the recipe without them."""
    base = _config(PENALISED, changes)
    variants = {
        "no penalty": {"r1_gamma": 0.0, "r2_gamma": 0.0},
        "exact, each step": {"penalty_form": "exact", "r1_interval": 1},
        "exact, every 2nd": {"penalty_form": "exact", "r1_interval": 2},
        "exact, every 4th": {"penalty_form": "exact", "r1_interval": 4},
        "finite difference, each step": {"penalty_form": "finite_difference", "r1_interval": 1},
        "finite difference, every 2nd": {"penalty_form": "finite_difference", "r1_interval": 2},
    }
    configs = {name: dataclasses.replace(base, **fields) for name, fields in variants.items()}  # type: ignore[arg-type]  # checked when made
    contenders = {name: (_trainer(config, device).run_iteration, config) for name, config in configs.items()}
    return _measure(contenders, device, rounds)


def table(rows: Sequence[Row], title: str) -> str:
    """The rows as a table in Markdown; the last column is what an image costs, the first row being 1."""
    lines = [f"| {title} | images/s | ratio | time an image |", "|---|---|---|---|"]
    lines += [
        f"| {row.name} | {row.images_per_s:.0f} | {row.ratio:.2f} | {1 / row.ratio:.2f} |" for row in rows
    ]
    return "\n".join(lines)


def conditions(device: torch.device, rounds: int) -> str:
    """One line: what the figures were measured on."""
    clock = "CPU seconds" if _clock(device) is time.process_time else "seconds"
    return (
        f"{device_name(device)}; {torch.get_num_threads()} threads; torch {torch.__version__}; "
        f"median of {rounds} rounds of {_ITERATIONS_A_ROUND} iterations in turns, by {clock}"
    )


def _measure(
    contenders: Mapping[str, tuple[Iteration, TrainConfig]], device: torch.device, rounds: int
) -> list[Row]:
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    clock = _clock(device)
    for round_ in range(rounds + 1):
        for name, (iterate, config) in contenders.items():
            began_s = clock()
            for _ in range(_ITERATIONS_A_ROUND):
                iterate()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round_:  # the first warms caches, and kernels that are chosen by trying
                rates[name].append(_ITERATIONS_A_ROUND * config.iteration_nimg / (clock() - began_s))
    first = next(iter(rates.values()))
    return [
        Row(
            name=name,
            images_per_s=statistics.median(values),
            ratio=statistics.median(ours / theirs for ours, theirs in zip(values, first, strict=True)),
        )
        for name, values in rates.items()
    ]


def _clock(device: torch.device) -> Callable[[], float]:
    on_one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if on_one_thread else time.perf_counter


def _config(name: str, changes: Mapping[str, str]) -> TrainConfig:
    """The preset with `changes`, long enough that its schedules stand still."""
    return preset(name).override({**changes, "total_kimg": str(_TOTAL_KIMG)})


def _trainer(config: TrainConfig, device: torch.device) -> Trainer:
    check_precision(config.precision, device)
    if config.compile:
        check_compiler(device)
    dataset = _noise(config)
    state = TrainState.fresh(config, dataset.shape, device)
    return Trainer(config, DatasetReals(dataset, config.seed, device), state)


def _noise(config: TrainConfig) -> Dataset:
    """Grey noise in ten classes, as large as Fashion-MNIST's images come to the networks: a batch or more."""
    stream = np.random.RandomState(0)
    count = max(_NUM_IMAGES, config.batch_size)
    shape = (count, 1, config.img_resolution, config.img_resolution)
    return Dataset(
        name="noise",
        images=stream.randint(0, 256, size=shape, dtype=np.uint8),
        class_idx=np.arange(count) % 10,
    )
