"""Inception Score and the histogram of classes against what can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from training.metrics.classes import accuracy, histogram, inception_score
from training.metrics.sharpness import laplacian, sharpness


def certain(class_idx: np.ndarray, num_classes: int = 4) -> np.ndarray:
    """Logits of a classifier that has no doubt."""
    return 1_000.0 * np.eye(num_classes)[class_idx]


def test_the_score_of_certain_and_even_answers_is_the_number_of_classes_in_any_order() -> None:
    even = np.repeat(np.arange(4), 250)

    assert inception_score(certain(even), seed=0) == pytest.approx(4, abs=0.1)  # its ten parts are drawn
    assert inception_score(certain(np.zeros(1_000, dtype=int)), seed=0) == pytest.approx(1)
    assert inception_score(np.zeros((1_000, 4)), seed=0) == pytest.approx(1)


def test_a_histogram_is_held_against_that_of_the_reals() -> None:
    even, half = certain(np.arange(1_000) % 4), certain(np.arange(1_000) % 2)

    assert vars(histogram(even, even)) == {"min_share": 0.25, "max_share": 0.25, "jsd": 0}
    collapsed = histogram(half, even)
    assert (collapsed.min_share, collapsed.max_share) == (0, 0.5)
    m = np.array([0.375, 0.375, 0.125, 0.125])
    jsd = (2 * 0.5 * np.log(0.5 / m[0]) + 2 * 0.25 * np.log(0.25 / m[0]) + 2 * 0.25 * np.log(0.25 / m[2])) / 2
    assert collapsed.jsd == pytest.approx(jsd)


def test_accuracy_is_the_share_of_images_that_show_their_class() -> None:
    assert accuracy(certain(np.array([0, 1, 2, 3])), np.array([0, 1, 3, 3])) == 0.75


def test_a_laplacian_is_that_of_one_bright_pixel_by_hand() -> None:
    """Of 3×3 inner pixels the bright one has 4 · 9 and its four neighbours 9 each."""
    images = np.zeros((2, 5, 5, 1), dtype=np.uint8)
    images[:, 2, 2] = 9

    assert laplacian(images) == pytest.approx((4 * 9 + 4 * 9) / 9)
    assert laplacian(np.full((1, 8, 8, 3), 200, dtype=np.uint8)) == 0


def test_a_blurred_image_is_less_sharp_than_itself() -> None:
    reals = np.random.RandomState(0).randint(0, 256, (600, 8, 8, 3)).astype(np.uint8)
    blurred = ((reals.astype(int) + np.roll(reals, 1, 1) + np.roll(reals, 1, 2)) // 3).astype(np.uint8)

    assert sharpness(reals, reals) == 1
    assert sharpness(blurred, reals) < 0.7
