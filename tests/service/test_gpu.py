"""The same session on a CUDA device; without one these skip (test_session.py holds the CPU to the same)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from toy import Z_DIM, publish_toy

from models.sampling import latents_from_seeds
from service.errors import StartError
from service.session import Session


@pytest.fixture
def session(tmp_path: Path) -> Session:
    if shutil.which("nvidia-smi") is None:
        pytest.skip("needs a CUDA device and the extra gpu")
    try:
        return Session(publish_toy(tmp_path), "cuda")
    except StartError as error:
        pytest.skip(f"needs a CUDA device and the extra gpu: {error}")


@pytest.mark.gpu
def test_golden_rows_are_within_one_grey_level_on_cuda(session: Session) -> None:
    assert session.provider == "CUDAExecutionProvider"
    assert session.golden_difference() <= 1


@pytest.mark.gpu
def test_a_row_on_cuda_does_not_depend_on_its_batch_mates(session: Session) -> None:
    latents, class_idx, psi = (
        latents_from_seeds(range(16), Z_DIM),
        np.arange(16) % 10,
        np.ones(16, np.float32),
    )
    together = session.run(latents, class_idx, psi)

    backwards = session.run(latents[::-1].copy(), class_idx[::-1].copy(), psi)

    assert np.array_equal(together[::-1], backwards)
