"""What holds in buckets, on the CPU provider and, where there is one, on a CUDA device: `pytest -m gpu`."""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import publish_toy

from models.sampling import LatentSampler
from models.store import SHIPPED_STORE, Artifact, Store
from service.device import CUDA_BUCKETS, Accelerator, DeviceOptions
from service.session import Session

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def accelerator(request: pytest.FixtureRequest) -> Accelerator:
    accelerator: Accelerator = request.param
    if accelerator == "cuda" and shutil.which("nvidia-smi") is None:
        pytest.skip("needs a CUDA device and the extra gpu")
    return accelerator


@pytest.fixture(params=["matrix products", "a shape computed in the graph", "the shipped convolutions"])
def artifact(request: pytest.FixtureRequest, tmp_path: Path) -> Artifact:
    if request.param == "the shipped convolutions":
        return Store(SHIPPED_STORE).resolve("fashion-mnist")
    return publish_toy(tmp_path, computes_shape="shape" in request.param)


def open_session(artifact: Artifact, accelerator: Accelerator, **options: Any) -> Session:
    return Session(artifact, accelerator, options=DeviceOptions(**{"buckets": CUDA_BUCKETS, **options}))


def rows(artifact: Artifact, n: int, first_seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seeds = np.arange(first_seed, first_seed + n)
    manifest = artifact.manifest
    latents = LatentSampler(manifest.z_dim, manifest.prior).draw(seeds)
    return latents, seeds % max(1, manifest.num_classes), np.ones(n, np.float32)


def test_golden_rows_are_within_one_grey_level_on_the_provider_that_was_asked_for(
    artifact: Artifact, accelerator: Accelerator
) -> None:
    session = open_session(artifact, accelerator)

    assert session._session.get_providers()[0] == session.provider == PROVIDERS[accelerator]
    assert session.golden_difference() <= (1 if accelerator == "cuda" else 0)


def test_a_row_has_the_same_pixels_in_every_bucket_and_position(
    artifact: Artifact, accelerator: Accelerator
) -> None:
    session = open_session(artifact, accelerator)
    latents, class_idx, psi = rows(artifact, 64, first_seed=1000)
    together = session.run(latents, class_idx, psi)

    order = np.random.RandomState(0).permutation(64)
    assert np.array_equal(session.run(latents[order], class_idx[order], psi), together[order])
    for n in (1, 3, 4, 5, 16):
        for start in range(0, 64 - n, 7):
            here = slice(start, start + n)
            assert np.array_equal(session.run(latents[here], class_idx[here], psi[here]), together[here])


def test_graphs_change_no_pixel(artifact: Artifact, accelerator: Accelerator) -> None:
    values = rows(artifact, 64)

    replayed = open_session(artifact, accelerator).run(*values)
    launched = open_session(artifact, accelerator, cuda_graphs=False).run(*values)

    assert np.array_equal(replayed, launched)


def test_every_kind_of_generator_of_ours_is_captured(
    artifact: Artifact, accelerator: Accelerator, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        session = open_session(artifact, accelerator)

    assert "without CUDA graphs" not in caplog.text
    assert session.bucket(64) == 64


@pytest.mark.parametrize("deterministic", [False, True])
def test_runs_repeat_their_pixels_within_a_session_and_over_sessions(
    artifact: Artifact, accelerator: Accelerator, deterministic: bool
) -> None:
    values = rows(artifact, 16)
    session = open_session(artifact, accelerator, deterministic=deterministic)
    first = session.run(*values)

    for n in (1, 64, 4, 16):  # other buckets between
        session.run(*rows(artifact, n, first_seed=500))
        assert np.array_equal(session.run(*values), first)
    again = open_session(artifact, accelerator, deterministic=deterministic)
    assert np.array_equal(again.run(*values), first)


def test_a_session_that_opens_beside_another_disturbs_no_microbatch(
    artifact: Artifact, accelerator: Accelerator
) -> None:
    served = open_session(artifact, accelerator)
    values = rows(artifact, 5)
    wanted = served.run(*values)

    with ThreadPoolExecutor(1) as loader:
        opening = loader.submit(open_session, artifact, accelerator)
        runs = [served.run(*values)]
        while not opening.done():
            runs.append(served.run(*values))

    assert all(np.array_equal(images, wanted) for images in runs)
    assert np.array_equal(opening.result().run(*values), wanted)
    del served  # as when the replaced version is dropped
    assert np.array_equal(opening.result().run(*values), wanted)
