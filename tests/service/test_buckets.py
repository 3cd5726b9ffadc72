"""Buckets on the CPU provider: the same mechanism as on CUDA, and the same pixels as without it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import SIZE, Z_DIM, publish_toy

from models.sampling import latents_from_seeds
from models.store import Artifact
from service.buckets import Buckets
from service.device import DeviceOptions
from service.errors import DeviceLost, StartError
from service.session import Session

SIZES = (1, 4, 16)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return publish_toy(tmp_path_factory.mktemp("store"))


def rows(n: int, first_seed: int = 0) -> dict[str, Any]:
    seeds = range(first_seed, first_seed + n)
    return {
        "latents": latents_from_seeds(seeds, Z_DIM),
        "class_idx": np.array(seeds) % 10,
        "truncation_psi": np.ones(n, np.float32),
    }


def onnx_session(artifact: Artifact) -> Any:
    return Session(artifact)._session


def test_a_row_has_the_same_pixels_in_every_bucket_and_position_as_without_buckets(
    artifact: Artifact,
) -> None:
    exact, padded = Session(artifact), Session(artifact, options=DeviceOptions(SIZES))
    wanted = exact.run(**rows(41))

    for n in (1, 2, 4, 5, 16, 17, 41):
        assert np.array_equal(padded.run(**rows(n)), wanted[:n]), n
    backwards = {name: value[::-1] for name, value in rows(16).items()}
    assert np.array_equal(padded.run(**backwards)[::-1], wanted[:16])
    assert [padded.bucket(n) for n in (1, 2, 4, 5, 16)] == [1, 4, 4, 16, 16]
    assert [exact.bucket(n) for n in (1, 2, 5)] == [1, 2, 5]


def test_golden_rows_are_bit_exact_in_buckets(artifact: Artifact) -> None:
    for sizes in ((1,), (3,), (4,), (64,), (1, 4, 16, 64)):
        assert Session(artifact, options=DeviceOptions(sizes)).golden_difference() == 0


def test_an_unconditional_grey_generator_runs_in_buckets_too(tmp_path: Path) -> None:
    plain = publish_toy(tmp_path, "plain", channels=1, conditional=False, truncation=False)

    images = Session(plain, options=DeviceOptions((4,))).run(**rows(6))

    assert np.array_equal(images, Session(plain).run(**rows(6)))
    assert images.shape == (6, SIZE, SIZE, 1)


def test_an_answer_is_not_overwritten_by_the_next(artifact: Artifact) -> None:
    session = Session(artifact, options=DeviceOptions(SIZES))
    first = session.run(**rows(4))
    before = first.copy()

    session.run(**rows(4, first_seed=100))

    assert np.array_equal(first, before)


def test_threads_that_share_a_session_get_their_own_rows(artifact: Artifact) -> None:
    session = Session(artifact, options=DeviceOptions(SIZES))
    wanted = Session(artifact).run(**rows(80))

    with ThreadPoolExecutor(4) as threads:
        images = list(threads.map(lambda k: session.run(**rows(2, first_seed=2 * k)), range(40)))

    assert np.array_equal(np.concatenate(images), wanted)


def test_what_is_no_float32_never_reaches_the_device(artifact: Artifact) -> None:
    session = Session(artifact, options=DeviceOptions(SIZES))
    values = rows(4)
    values["latents"] = values["latents"].astype(np.float64)

    with pytest.raises(TypeError, match="Cannot cast"):
        session.run(**values)
    with pytest.raises(AssertionError, match="class_idx"):
        session.run(**{**rows(4), "class_idx": np.zeros(3, np.int64)})
    assert np.array_equal(session.run(**rows(4)), Session(artifact).run(**rows(4)))


class PlayedDevice:
    """An ONNX Runtime session on the CPU that does what a GPU may: `after` sees each run's pixels."""

    def __init__(self, session: Any, after: Callable[[int, np.ndarray], None]) -> None:
        self._session = session
        self._after = after
        self.runs: list[tuple[int, int]] = []
        """(graph id, rows) of each run."""

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self._session.run_with_iobinding(binding, options)
        images = binding.get_outputs()[0].numpy()
        graph_id = int(options.get_run_config_entry("gpu_graph_id"))
        self.runs.append((graph_id, len(images)))
        self._after(graph_id, images)


def played(
    artifact: Artifact, after: Callable[[int, np.ndarray], None], graphs: bool = True
) -> tuple[PlayedDevice, Buckets]:
    device, manifest = PlayedDevice(onnx_session(artifact), after), artifact.manifest
    tensors = manifest.graph_inputs, manifest.graph_outputs
    return device, Buckets(device, *tensors, SIZES, "cpu", graphs=graphs)


def nothing(graph_id: int, images: np.ndarray) -> None:
    """A device that does what it should."""


def test_each_bucket_runs_and_captures_its_own_graph_before_the_first_row(artifact: Artifact) -> None:
    device, buckets = played(artifact, nothing)
    buckets.warm(rows(16))
    warm_runs = len(device.runs)

    images = buckets.run(rows(3))

    assert {graph_id: n for graph_id, n in device.runs if graph_id != -1} == {1: 1, 4: 4, 16: 16}
    assert all(graph_id in (-1, n) for graph_id, n in device.runs)
    assert [n for graph_id, n in device.runs[:warm_runs] if graph_id == -1] == [1] * 16 + [4] * 4 + [16]
    assert device.runs[warm_runs:] == [(4, 4)]
    assert np.array_equal(images, Session(artifact).run(**rows(3)))


def test_without_graphs_none_is_asked_for(artifact: Artifact) -> None:
    device, buckets = played(artifact, nothing, graphs=False)
    buckets.warm(rows(16))
    buckets.run(rows(3))

    assert {graph_id for graph_id, _ in device.runs} == {-1}


def test_a_graph_that_replays_the_rows_of_its_capture_is_refused(artifact: Artifact) -> None:
    captured: dict[int, np.ndarray] = {}

    def replay(graph_id: int, images: np.ndarray) -> None:
        if graph_id == 4:
            images[:] = captured.setdefault(graph_id, images.copy())

    _, buckets = played(artifact, replay)

    with pytest.raises(StartError, match="graph of bucket 4 makes other pixels than its kernels do"):
        buckets.warm(rows(16))


def test_a_bucket_that_makes_other_pixels_than_the_largest_is_left_out_and_said(
    artifact: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    def other_kernel(graph_id: int, images: np.ndarray) -> None:
        if len(images) == 1:
            images[0, 5, 5, 0] ^= 1

    _, buckets = played(artifact, other_kernel)

    with caplog.at_level(logging.WARNING):
        buckets.warm(rows(16))

    assert buckets.sizes == (4, 16)
    assert "buckets 1 make other pixels than bucket 16 on this device, and are not used" in caplog.text
    assert np.array_equal(buckets.run(rows(1)), Session(artifact).run(**rows(1)))


@pytest.mark.parametrize("failures", [1, 99])
def test_a_run_that_fails_is_its_own_error_unless_the_device_runs_nothing_any_more(
    artifact: Artifact, failures: int
) -> None:
    left = 0

    def fail(graph_id: int, images: np.ndarray) -> None:
        nonlocal left
        if left:
            left -= 1
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    _, buckets = played(artifact, fail)
    buckets.warm(rows(16))
    left = failures

    with pytest.raises(RuntimeError if failures == 1 else DeviceLost, match="CUDA failure 700"):
        buckets.run(rows(2))


def test_padding_leaves_the_callers_rows_alone(artifact: Artifact) -> None:
    values, before = rows(3), rows(3)

    Session(artifact, options=DeviceOptions(SIZES)).run(**values)

    assert all(np.array_equal(values[name], before[name]) for name in before)
