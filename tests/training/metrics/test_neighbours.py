"""Precision, recall, density and coverage as the papers define them, sample by sample."""

from __future__ import annotations

import numpy as np
import pytest

from training.metrics.neighbours import nearest_distances, neighbourhoods


def by_definition(reals: np.ndarray, fakes: np.ndarray) -> dict[str, float]:
    """Loops over single samples, nothing shared with the code under test."""

    def radius(samples: np.ndarray, i: int, k: int) -> float:
        return sorted(float(np.linalg.norm(samples[i] - samples[j])) for j in range(len(samples)) if j != i)[
            k - 1
        ]

    apart = [[float(np.linalg.norm(real - fake)) for fake in fakes] for real in reals]
    real3, real5 = ([radius(reals, i, k) for i in range(len(reals))] for k in (3, 5))
    fake3 = [radius(fakes, j, 3) for j in range(len(fakes))]
    rows, columns = range(len(reals)), range(len(fakes))
    return {
        "precision": np.mean([any(apart[i][j] <= real3[i] for i in rows) for j in columns]),
        "recall": np.mean([any(apart[i][j] <= fake3[j] for j in columns) for i in rows]),
        "density": np.mean([sum(apart[i][j] <= real5[i] for i in rows) for j in columns]) / 5,
        "coverage": np.mean([any(apart[i][j] <= real5[i] for j in columns) for i in rows]),
    }


def test_all_four_are_what_the_definitions_give_sample_by_sample() -> None:
    stream = np.random.RandomState(0)
    reals, fakes = stream.randn(230, 4), 0.7 * stream.randn(90, 4) + 0.5

    found = neighbourhoods(reals, fakes)

    assert vars(found) == pytest.approx(by_definition(reals, fakes), abs=1e-12)
    assert 0.2 < found.recall < found.precision < 1  # a set that is too narrow


def test_a_generator_of_one_mode_has_precision_and_no_coverage() -> None:
    """Half of the reals are at 0 and half at 100; G makes the first half only."""
    stream = np.random.RandomState(0)
    reals = np.concatenate([stream.randn(200, 4), stream.randn(200, 4) + 100])

    found = neighbourhoods(reals, stream.randn(400, 4))

    assert found.precision > 0.9
    assert (found.recall, found.coverage) == pytest.approx((0.5, 0.5), abs=0.05)


def test_equal_distributions_have_density_1_and_coverage_1() -> None:
    """The expected coverage of equal distributions at k = 5 is 1 - 2⁻⁵: Naeem 2020, equation 10."""
    reals, fakes = np.random.RandomState(0).randn(2, 1_000, 4)

    found = neighbourhoods(reals, fakes)

    assert found.density == pytest.approx(1, abs=0.05)
    assert found.coverage == pytest.approx(1 - 2**-5, abs=0.02)


def test_a_copied_image_is_at_distance_0_of_training_and_a_training_image_passes_over_itself() -> None:
    training = np.random.RandomState(0).randn(700, 8).astype(np.float32)
    own = np.array([5, 600, 3])

    copied = nearest_distances(training[own], training)
    others = nearest_distances(training[own], training, own)

    assert copied.tolist() == [0, 0, 0]
    np.testing.assert_allclose(
        others,
        [np.sort(np.linalg.norm(training - training[i], axis=1))[1] for i in own],
        rtol=1e-6,
    )
