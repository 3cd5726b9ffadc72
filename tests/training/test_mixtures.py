"""The 2-D mixtures of the mode-collapse tests, and their measures against closed form."""

import math

import numpy as np
import pytest
import torch

from training.data.mixtures import Mixture, coverage, grid, ring
from training.reals import MixtureReals


def test_the_ring_and_the_grid_are_those_of_the_published_test():
    angles = np.degrees(np.arctan2(ring().means[:, 1], ring().means[:, 0])) % 360

    np.testing.assert_allclose(np.linalg.norm(ring().means, axis=1), 1.0)
    np.testing.assert_allclose(angles, np.arange(8) * 45.0, atol=1e-9)
    assert ring().sigma == 0.01
    assert {tuple(mean) for mean in grid().means} == {
        (x, y) for x in (-4, -2, 0, 2, 4) for y in (-4, -2, 0, 2, 4)
    }
    assert grid().sigma == 0.05


@pytest.mark.parametrize("mixture", [ring(), grid()], ids=lambda mixture: mixture.name)
def test_the_data_itself_covers_every_mode_at_the_quality_that_theory_gives(mixture):
    points = mixture.points(100_000, np.random.default_rng(0))

    found = coverage(points, mixture)
    assert (found.modes, found.modes10) == (len(mixture.means),) * 2
    assert found.high_quality == pytest.approx(1 - math.exp(-4.5), abs=0.002)  # Rayleigh, 3 sigma
    assert found.jsd < 1e-3


@pytest.mark.parametrize("mixture", [ring(), grid()], ids=lambda mixture: mixture.name)
def test_scaled_coordinates_have_a_root_mean_square_of_one(mixture):
    points = mixture.points(100_000, np.random.default_rng(0)) / mixture.scale

    assert np.square(points).mean() == pytest.approx(1.0, abs=0.02)


def test_the_density_is_that_of_the_formula_and_sums_to_one():
    mixture = Mixture(name="two", means=np.array([[-1.0], [1.0]]), sigma=0.5)
    x = np.linspace(-6, 6, 4001)

    density = mixture.density(x[:, None])

    by_hand = sum(np.exp(-((x - m) ** 2) / 0.5) / (0.5 * math.sqrt(2 * math.pi)) for m in (-1, 1)) / 2
    np.testing.assert_allclose(density, by_hand, rtol=1e-12)
    assert np.trapezoid(density, x) == pytest.approx(1.0, abs=1e-6)


def test_a_generator_that_makes_one_mode_gets_the_divergence_of_closed_form():
    points = np.tile(ring().means[3], (100, 1))

    found = coverage(points, ring())

    m = 9 / 16  # of p = (1, 0, …) and u = 1/8 at the mode; u/2 elsewhere
    expected = math.log(1 / m) / 2 + (math.log((1 / 8) / m) / 8 + 7 / 8 * math.log(2)) / 2
    assert (found.modes, found.modes10, found.high_quality) == (1, 1, 1.0)
    assert found.jsd == pytest.approx(expected, rel=1e-12)


def test_high_quality_ends_at_three_sigma():
    inside = grid().means + np.array([0.149, 0.0])
    outside = grid().means + np.array([0.151, 0.0])

    assert coverage(inside, grid()).high_quality == 1.0
    assert coverage(outside, grid()).high_quality == 0.0


def test_one_sample_makes_a_mode_but_modes10_asks_for_a_tenth_of_its_share():
    counts = [1000] * 6 + [100, 99]  # of 8,000 samples each mode is due 1,000, and a tenth is 100
    points = np.repeat(ring().means, counts, axis=0)
    bridge = np.zeros((8000 - len(points), 2))

    found = coverage(np.concatenate([points, bridge]), ring())

    assert (found.modes, found.modes10) == (8, 7)
    assert found.high_quality == pytest.approx(6199 / 8000)


def test_samples_that_are_all_astray_or_not_finite_are_nobodys():
    points = np.array([[0.0, 0.0], [np.nan, 1.0], [np.inf, 0.0]])

    found = coverage(points, ring())

    assert (found.modes, found.modes10, found.high_quality) == (0, 0, 0.0)
    assert found.jsd == pytest.approx(math.log(2))


def test_the_point_at_a_position_is_the_same_in_any_batch_and_another_with_another_seed():
    first = MixtureReals.BLOCK - 5
    whole, class_idx = MixtureReals(grid(), seed=3).batch(first, 12)  # reaches over the end of a block
    other = MixtureReals(grid(), seed=4).batch(first, 12)[0]
    again = MixtureReals(grid(), seed=3)

    parts = [again.batch(position, 4)[0] for position in (first + 8, first, first + 4)]

    assert class_idx is None
    assert whole.dtype == torch.float32
    assert torch.equal(whole, torch.cat([parts[1], parts[2], parts[0]]))
    assert not torch.equal(whole, other)


def test_a_batch_is_the_callers_to_change():
    reals = MixtureReals(ring(), seed=0)
    before = reals.batch(0, 4)[0].clone()

    reals.batch(0, 4)[0].zero_()

    assert torch.equal(reals.batch(0, 4)[0], before)
