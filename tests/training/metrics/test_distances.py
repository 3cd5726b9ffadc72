"""Distances against closed forms, and what they promise of samples."""

from __future__ import annotations

import numpy as np
import pytest

from training.metrics.distances import (
    Gaussian,
    frechet_distance,
    frechet_distance_limit,
    kernel_distance,
    standardised,
)


def rotated(angle: float, *variances: float) -> np.ndarray:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ np.diag(variances) @ turn.T


def test_the_frechet_distance_of_two_gaussians_along_the_axes_is_the_closed_form() -> None:
    """|μ - ν|² + Σ(σ - τ)²."""
    p = Gaussian(mean=np.array([1.0, -2.0, 0.5]), covariance=np.diag([4.0, 9.0, 0.25]))
    q = Gaussian(mean=np.array([0.0, 1.0, 0.5]), covariance=np.diag([1.0, 16.0, 2.25]))

    assert frechet_distance(p, q) == pytest.approx(1 + 9 + (1 + 1 + 1), abs=1e-6)


def test_the_frechet_distance_of_two_gaussians_that_do_not_commute_is_the_closed_form() -> None:
    """In the plane the trace of (AB)^½ is (tr AB + 2 (det AB)^½)^½."""
    a, b = rotated(0.3, 4.0, 0.5), rotated(1.1, 9.0, 0.1)
    p, q = Gaussian(mean=np.zeros(2), covariance=a), Gaussian(mean=np.ones(2), covariance=b)

    root_trace = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))

    assert frechet_distance(p, q) == pytest.approx(2 + np.trace(a + b) - 2 * root_trace, abs=1e-6)
    assert frechet_distance(q, p) == pytest.approx(frechet_distance(p, q), abs=1e-6)


def test_features_that_lie_in_a_plane_have_a_distance_all_the_same() -> None:
    samples = np.random.RandomState(0).randn(50, 2) @ np.random.RandomState(1).randn(2, 64)

    moved = Gaussian.of(samples + np.full(64, 0.5))

    assert frechet_distance(Gaussian.of(samples), moved) == pytest.approx(64 * 0.25, abs=1e-3)


def test_the_limit_takes_away_what_few_samples_add_to_the_distance() -> None:
    stream = np.random.RandomState(0)
    truth = Gaussian(mean=np.zeros(16), covariance=np.eye(16))
    sets = [stream.randn(500, 16) + 0.1 for _ in range(20)]  # at a distance of 16 · 0.01

    at_once = np.mean([frechet_distance(truth, Gaussian.of(fakes)) for fakes in sets])
    limit = np.mean([frechet_distance_limit(truth, fakes, seed=0) for fakes in sets])

    assert at_once - 0.16 > 0.05
    assert abs(limit - 0.16) < (at_once - 0.16) / 4
    assert frechet_distance_limit(truth, sets[0], seed=0) == frechet_distance_limit(truth, sets[0], seed=0)


def test_the_kernel_distance_of_equal_distributions_is_near_0_on_either_side() -> None:
    stream = np.random.RandomState(0)

    of_equals = [kernel_distance(stream.randn(200, 8), stream.randn(200, 8), seed=0) for _ in range(8)]

    assert min(of_equals) < 0 < max(of_equals)
    assert np.mean(of_equals) == pytest.approx(0, abs=0.02)


def test_the_kernel_distance_of_two_sets_is_the_mean_over_the_pairs_that_are_not_one_sample() -> None:
    x, y = np.random.RandomState(0).randn(2, 6, 3)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    within = [k(s[i], s[j]) for s in (x, y) for i in range(6) for j in range(6) if i != j]
    between = [k(a, b) for a in x for b in y]

    assert kernel_distance(x, y, seed=0) == pytest.approx(np.sum(within) / 30 - 2 * np.mean(between))


def test_standardised_features_have_one_scale_whatever_they_came_with() -> None:
    stream = np.random.RandomState(0)
    reals, fakes = stream.rand(100, 3) * [1, 2, 3] + 5, stream.rand(80, 3)

    plain, scaled = standardised(reals, fakes), standardised(reals * 100, fakes * 100)

    for one, other in zip(plain, scaled, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)
    np.testing.assert_allclose(plain[0].mean(axis=0), 0, atol=1e-9)
    assert plain[0].var(axis=0).mean() == pytest.approx(1)
    assert plain[0][:, 2].std() > 2 * plain[0][:, 0].std()  # features keep their weights
