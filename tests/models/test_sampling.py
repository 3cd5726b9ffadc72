"""A seed names an image: the rules behind that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InvalidValue
from models.sampling import (
    MAX_SEED,
    SeedRanges,
    latents_from_seeds,
    resolve_class_idx,
    resolve_truncation_psi,
    seeds_text,
    slerp,
)

seeds = st.integers(0, MAX_SEED)


@given(st.lists(seeds, min_size=1, max_size=20), st.integers(1, 40))
def test_a_row_is_the_first_draws_of_numpys_frozen_stream_whatever_its_batch(
    many: list[int], z_dim: int
) -> None:
    latents = latents_from_seeds(many, z_dim)

    expected = [np.random.RandomState(seed).randn(z_dim).astype(np.float32) for seed in many]
    assert latents.dtype == np.float32
    assert np.array_equal(latents, np.stack(expected))


def test_seed_42_is_pinned_for_good() -> None:
    latents = latents_from_seeds([42], 4)

    assert latents.tolist() == [
        [0.49671414494514465, -0.13826429843902588, 0.6476885676383972, 1.5230298042297363]
    ]


def test_the_uniform_prior_comes_from_the_same_stream() -> None:
    latents = latents_from_seeds([7], 5, "uniform")

    assert np.array_equal(latents[0], np.random.RandomState(7).uniform(-1, 1, 5).astype(np.float32))


@pytest.mark.parametrize("seed", [-1, 2**32, pytest.param(10**5000, id="huge"), 1.0, True, "1", None])
def test_a_seed_outside_its_range_is_refused_and_never_wrapped(seed: object) -> None:
    with pytest.raises(InvalidValue, match="seed must be"):
        latents_from_seeds([seed], 4)  # type: ignore[list-item]


def test_the_default_class_is_the_seed_modulo_the_classes() -> None:
    assert resolve_class_idx(None, [0, 9, 10, 2**32 - 1, None], 10) == [0, 9, 0, 5, 0]


def test_one_class_serves_all_rows_and_a_list_serves_each() -> None:
    assert resolve_class_idx(3, [1, 2], 10) == [3, 3]
    assert resolve_class_idx([3, 4], [1, 2], 10) == [3, 4]
    assert resolve_class_idx(None, [1, 2], 0) is None


@pytest.mark.parametrize(
    ("class_idx", "num_classes", "sentence"),
    [
        (10, 10, "class_idx must be an integer between 0 and 9, got 10"),
        (-1, 10, "class_idx must be an integer between 0 and 9, got -1"),
        ([1, 11], 10, r"class_idx\[1\] must be an integer between 0 and 9, got 11"),
        ([1], 10, r"as long as the rows \(2\), got 1 values"),
        (0, 0, "the model has no classes, got 0"),
    ],
)
def test_a_class_the_model_does_not_have_is_refused(
    class_idx: object, num_classes: int, sentence: str
) -> None:
    with pytest.raises(InvalidValue, match=sentence):
        resolve_class_idx(class_idx, [1, 2], num_classes)  # type: ignore[arg-type]


@pytest.mark.parametrize("psi", [-0.1, 2.1, float("nan"), float("inf")])
def test_a_psi_outside_its_range_is_refused(psi: float) -> None:
    with pytest.raises(InvalidValue, match="truncation_psi must be between 0 and 2"):
        resolve_truncation_psi(psi, True)


def test_a_psi_on_a_model_without_truncation_is_refused_unless_it_is_off() -> None:
    assert resolve_truncation_psi(None, False) == resolve_truncation_psi(1.0, False) == 1.0
    with pytest.raises(InvalidValue, match="no truncation"):
        resolve_truncation_psi(0.7, False)


@given(seeds, seeds, st.integers(2, 50))
def test_a_walk_holds_both_ends_to_the_last_bit_and_stays_on_the_shell(
    first: int, last: int, frames: int
) -> None:
    start, end = latents_from_seeds([first, last], 64)

    path = slerp(start, end, frames)

    assert path.shape == (frames, 64)
    assert np.array_equal(path[0], start)
    assert np.array_equal(path[-1], end)
    norms, ends = np.linalg.norm(path, axis=1), sorted([np.linalg.norm(start), np.linalg.norm(end)])
    assert norms.max() <= ends[1] * 1.2
    assert norms.min() >= ends[0] * 0.8


def test_a_walk_between_opposite_or_zero_latents_is_finite() -> None:
    one = latents_from_seeds([1], 8)[0]

    assert np.isfinite(slerp(one, -one, 5)).all()
    assert np.isfinite(slerp(np.zeros(8, np.float32), one, 5)).all()


@given(st.lists(seeds, unique=True, min_size=1, max_size=30))
def test_range_text_reads_back_as_the_same_seeds(many: list[int]) -> None:
    assert list(SeedRanges.parse(seeds_text(many))) == many


def test_range_text_is_a_sequence_that_is_never_expanded() -> None:
    everything = SeedRanges.parse("0-4294967295")

    assert len(everything) == 2**32
    assert everything[-1] == MAX_SEED
    assert everything[5:8] == [5, 6, 7]
    assert seeds_text([0, 1, 2, 9]) == "0-2,9"


@pytest.mark.parametrize(
    "text", ["", "a", "1-", "-1", "5-3", "0-4294967296", "1,1", "0-9,5", "1--2", "1.5", "٣"]
)
def test_bad_range_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="seeds must"):
        SeedRanges.parse(text)
