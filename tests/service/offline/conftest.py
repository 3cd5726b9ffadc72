"""What the tests of `ganserve sample` share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.store import Store
from service.__main__ import main
from service.generator import Generator
from service.rows import Rows

Sample = Callable[..., int]

os.environ["HF_HUB_OFFLINE"] = "1"  # `datasets` has nothing to ask anybody


@pytest.fixture
def sample(toy_store: Path) -> Sample:
    """Run the command in this process: `sample("--seeds", "0-9", "--out", out)` gives the exit status."""

    def run(*flags: str | Path, model: str = "toy") -> int:
        arguments = ["sample", "--store", toy_store, "--model", model, "--workers", "1", *flags]
        return main([str(one) for one in arguments])

    return run


@pytest.fixture(scope="session")
def pixels_of_seeds(toy_store: Path) -> Callable[..., np.ndarray]:
    """Make images [N, H, W, C] of seeds as the server does, one at a time."""
    generators = {name: Generator(Store(toy_store).resolve(name)) for name in ("toy", "plain")}

    def make(seeds: list[int], model: str = "toy", class_idx: list[int] | None = None) -> np.ndarray:
        generator = generators[model]
        rows = Rows.of_seeds(generator.manifest, seeds, class_idx)
        each = [slice(row, row + 1) for row in range(len(seeds))]
        return np.concatenate(
            [generator.make(rows.seeds[i], rows.class_idx[i], rows.truncation_psi[i]) for i in each]
        )

    return make
