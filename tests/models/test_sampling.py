"""A seed names an image: the rules behind that."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.calibration import Calibration, Sampler, resolve_proposals
from models.errors import InvalidValue
from models.sampling import (
    MAX_SEED,
    LatentSampler,
    Prior,
    SeedRanges,
    latents_from_seeds,
    mh_choices,
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


# Metropolis-Hastings: several images of one seed, and the one that the chain ends at


@given(st.lists(seeds, min_size=1, max_size=6), st.integers(1, 9), st.sampled_from(["normal", "uniform"]))
def test_proposals_come_from_the_seeds_one_stream_in_the_written_order(
    many: list[int], z_dim: int, prior: Prior
) -> None:
    sampler = LatentSampler(z_dim, prior)

    latents, uniforms = sampler.draw_proposals(many, 5)
    fewer, fewer_uniforms = sampler.draw_proposals(many[-1:], 3)

    assert np.array_equal(latents[:, 0], sampler.draw(many))  # the plain image's latents are unchanged
    assert np.array_equal(fewer[0], latents[-1, :3])  # alone or in any batch, and a prefix of a longer chain
    assert np.array_equal(fewer_uniforms[0], uniforms[-1, :3])
    stream = np.random.RandomState(many[0])
    draw = stream.randn if prior == "normal" else lambda n: stream.uniform(-1, 1, n)
    draw(z_dim)
    for proposal in range(1, 5):
        assert np.array_equal(latents[0, proposal], draw(z_dim).astype(np.float32))
        assert uniforms[0, proposal] == stream.random_sample()


@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 12), st.floats(0.1, 1.5))
def test_a_chain_is_the_papers_row_by_row_and_alone_as_in_any_batch(
    seed: int, rows: int, proposals: int, scale: float
) -> None:
    random = np.random.RandomState(seed)
    logits, uniforms = random.randn(rows, proposals) * 2, random.rand(rows, proposals)

    chosen = mh_choices(logits, uniforms, scale)

    for row in range(rows):
        D = 1 / (1 + np.exp(-scale * np.round(logits[row], 3)))
        at = 0
        for proposal in range(1, proposals):
            if uniforms[row, proposal] < min(1.0, (1 / D[at] - 1) / (1 / D[proposal] - 1)):  # Turner 2019
                at = proposal
        assert chosen[row] == at
        assert chosen[row] == mh_choices(logits[row : row + 1], uniforms[row : row + 1], scale)[0]


def test_one_proposal_is_the_plain_image_and_the_last_bits_of_a_logit_decide_nothing() -> None:
    logits, uniforms = np.array([[1.0, 0.5, 0.7]]), np.array([[0.0, 0.61, 0.9]])

    assert mh_choices(logits[:, :1], uniforms[:, :1], 1.0).tolist() == [0]
    assert mh_choices(logits, uniforms, 1.0).tolist() == mh_choices(logits + 4e-4, uniforms, 1.0).tolist()


def test_the_chain_samples_what_the_discriminator_knows_of_the_data() -> None:
    """A G that makes one of two images in one of ten rows where the data has both alike: D mends it."""
    random = np.random.RandomState(0)
    rare = random.rand(20_000, 64) < 0.1
    logits = np.where(rare, np.log(0.5 / 0.1), np.log(0.5 / 0.9))  # log p_data / p_g

    chosen = mh_choices(logits, random.rand(20_000, 64), 1.0)

    assert rare[np.arange(20_000), chosen].mean() == pytest.approx(0.5, abs=0.02)


CALIBRATION = Calibration(scale=2.0, offset=-1.0, mh=True, max_proposals=16)


def test_realness_is_the_calibrated_probability_of_the_rounded_logit() -> None:
    assert CALIBRATION.realness(np.array([0.5, 0.50049, -1e6, 1e6])).tolist() == [0.5, 0.5, 0.0, 1.0]
    assert CALIBRATION.realness(np.array([1.0]))[0] == 0.7311


def test_the_sampler_resolves_to_a_number_of_proposals() -> None:
    assert resolve_proposals(None, None, None) == resolve_proposals("plain", None, CALIBRATION) == 1
    assert resolve_proposals("mh", None, CALIBRATION) == 12
    assert resolve_proposals("mh", 1, CALIBRATION) == 1


@pytest.mark.parametrize(
    ("sampler", "proposals", "calibration", "sentence"),
    [
        ("plain", 4, CALIBRATION, "proposals must be left out where sampler is plain, got 4"),
        ("mh", 17, CALIBRATION, "proposals must be an integer between 1 and 16, got 17"),
        ("mh", 0, CALIBRATION, "proposals must be an integer between 1 and 16, got 0"),
        ("greedy", None, CALIBRATION, "sampler must be one of plain, mh, got 'greedy'"),
        ("mh", None, None, "sampler must be plain: the model has no discriminator, got 'mh'"),
        ("mh", None, replace(CALIBRATION, mh=False, why_not="it was worse"), "it was worse, got 'mh'"),
    ],
)
def test_a_sampler_that_is_not_offered_is_refused(
    sampler: Sampler, proposals: int | None, calibration: Calibration | None, sentence: str
) -> None:
    with pytest.raises(InvalidValue, match=re.escape(sentence)):
        resolve_proposals(sampler, proposals, calibration)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"scale": 0}, "sampler.scale must be a number above 0, got 0"),
        ({"scale": float("nan")}, "sampler.scale must be a number above 0, got nan"),
        ({"mh": 1}, "sampler.mh must be true or false, and why_not text, got 1"),
        ({"kind": "isotonic"}, "sampler.kind must be logistic, got 'isotonic'"),
        ({"max_proposals": 0}, "sampler.max_proposals must be an integer between 1 and 1024, got 0"),
        ({"max_proposals": 11}, "sampler.max_proposals must be at least sampler.proposals, 12, got 11"),
        ({"mh": False}, "sampler.why_not must say why where sampler.mh is false, got ''"),
    ],
)
def test_a_calibration_that_breaks_a_rule_is_refused(facts: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidValue, match=re.escape(sentence)):
        Calibration.from_facts(CALIBRATION.to_facts() | facts)


def test_a_calibration_reads_back_and_one_without_a_scale_is_none() -> None:
    assert Calibration.from_facts(CALIBRATION.to_facts() | {"measured": []}) == CALIBRATION
    assert Calibration.from_facts({"why_not": "a critic"}) is None
