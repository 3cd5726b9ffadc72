"""Randomness of a run as a function of its position: the same (seed, cur_nimg, phase), the same draws.

No generator outlives an iteration, so a resumed run has no random state to lose, and nothing
here or elsewhere in the package draws from torch's global generator during training.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

Phase = Literal["D", "G"]


def generator_at(seed: int, cur_nimg: int, phase: Phase) -> torch.Generator:
    """Return a fresh torch generator for one phase of the iteration that begins at `cur_nimg`."""
    words = np.random.SeedSequence((seed, cur_nimg, "DG".index(phase))).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))
