"""Who moves in which phase, on whose gradients, and in which precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from toy_training import toy_config, toy_dataset

from training.config import GAMES
from training.errors import NotFinite
from training.losses import LOSSES
from training.penalties import NO_PENALTIES, PenaltyWeights
from training.phases import Batch, Rules, discriminator_phase, elbo_phase, frozen, generator_phase
from training.snapshot import TrainState
from training.streams import RowDraws

RULES = Rules(losses=LOSSES["nonsaturating"])


def _state() -> TrainState:
    """A pair in which G has taken one step, so that it holds gradients and optimizer state."""
    state = TrainState.fresh(toy_config(), toy_dataset().shape)
    generator_phase(state, RULES, [_batch()])
    return state


def _batch(count: int = 16) -> Batch:
    draws = RowDraws(torch.Generator().manual_seed(count), count, slice(None))
    return Batch(
        reals=draws.normal(1, 16, 16), class_idx=torch.arange(count) % 2, z=draws.normal(8), draws=draws
    )


def _bits(network: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter, buffer and gradient, copied."""
    bits = {name: value.clone() for name, value in network.state_dict().items()}
    grads = {name: parameter.grad for name, parameter in network.named_parameters()}
    return bits | {f"{name}.grad": grad.clone() for name, grad in grads.items() if grad is not None}


def _changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    same = {name for name in before.keys() & after.keys() if torch.equal(before[name], after[name])}
    return (before.keys() | after.keys()) - same


@pytest.mark.parametrize("objective", GAMES)
@pytest.mark.parametrize(
    "weights",
    [
        NO_PENALTIES,
        PenaltyWeights(r1=2.0, r2=1.0),
        PenaltyWeights(r1=2.0, r2=1.0, sigma=0.05),
        PenaltyWeights(gp=10.0),
    ],
)
def test_phase_1_leaves_every_bit_of_the_generator_and_moves_the_discriminator(
    objective: str, weights: PenaltyWeights
) -> None:
    state = _state()
    G_before, D_before = _bits(state.G), _bits(state.D)

    discriminator_phase(state, Rules(losses=LOSSES[objective], weights=weights), [_batch()])

    assert _changed(G_before, _bits(state.G)) == set()
    still = {name for name, _ in state.D.named_parameters()} - _changed(D_before, _bits(state.D))
    assert still <= {"head.to_logit.bias"}  # a constant that some games leave open


@pytest.mark.parametrize("objective", GAMES)
def test_phase_2_leaves_every_bit_of_the_discriminator_and_moves_the_generator(objective: str) -> None:
    state = _state()
    discriminator_phase(state, RULES, [_batch()])
    G_before, D_before = _bits(state.G), _bits(state.D)

    generator_phase(state, Rules(losses=LOSSES[objective]), [_batch()])

    assert _changed(D_before, _bits(state.D)) == set()
    moved = _changed(G_before, _bits(state.G))
    assert {name for name, _ in state.G.named_parameters()} <= moved
    assert {name for name, _ in state.G.named_buffers()} <= moved


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        (NO_PENALTIES, set()),
        (PenaltyWeights(r1=2.0), {"r1_penalty"}),
        (PenaltyWeights(r1=2.0, r2=1.0, sigma=0.05), {"r1_penalty", "r2_penalty"}),
        (PenaltyWeights(gp=10.0), {"gradient_penalty"}),
    ],
)
def test_a_penalty_is_told_beside_the_loss_and_changes_the_step(
    weights: PenaltyWeights, names: set[str]
) -> None:
    state, plain = _state(), _state()

    figures = discriminator_phase(state, replace(RULES, weights=weights), [_batch()])
    plain_figures = discriminator_phase(plain, RULES, [_batch()])

    assert figures.keys() - plain_figures.keys() == names
    assert torch.equal(figures["D_loss"], plain_figures["D_loss"])
    assert figures.pop("D_gradient_norm").shape == (1,)
    assert all(values.shape == (16,) and not values.requires_grad for values in figures.values())
    assert (_changed(_bits(plain.D), _bits(state.D)) == set()) == (names == set())


def test_equal_microbatches_give_the_gradient_of_the_whole_batch_where_rows_do_not_touch() -> None:
    whole, parts = _state(), _state()
    batch = _batch()
    halves = [
        Batch(reals=batch.reals[rows], class_idx=batch.class_idx[rows], z=batch.z[rows], draws=batch.draws)
        for rows in (slice(0, 8), slice(8, 16))
    ]
    whole.G.eval()  # BatchNorm by its running statistics: rows do not touch
    parts.G.eval()

    figures = discriminator_phase(whole, replace(RULES, weights=PenaltyWeights(r1=1.0)), [batch])
    in_halves = discriminator_phase(parts, replace(RULES, weights=PenaltyWeights(r1=1.0)), halves)

    for name, values in figures.items():
        torch.testing.assert_close(in_halves[name], values, rtol=1e-5, atol=1e-6)
    for one, other in zip(whole.D.parameters(), parts.D.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("weights", "D_dtypes"),
    [
        (NO_PENALTIES, {torch.bfloat16}),
        (PenaltyWeights(r1=1.0), {torch.float32}),
        (PenaltyWeights(r2=1.0, sigma=0.05), {torch.float32}),
        (PenaltyWeights(gp=1.0), {torch.bfloat16, torch.float32}),
    ],
)
def test_in_bf16_penalties_losses_and_weights_are_fp32(
    weights: PenaltyWeights, D_dtypes: set[torch.dtype]
) -> None:
    state = TrainState.fresh(toy_config(), toy_dataset().shape)
    seen: dict[str, list[torch.dtype]] = {"G": [], "D": []}
    for name, network in (("G", state.G.first), ("D", state.D.blocks)):
        network.register_forward_hook(lambda _, __, x, name=name: seen[name].append(x.dtype))

    figures = discriminator_phase(state, replace(RULES, weights=weights, precision="bf16"), [_batch()])

    assert set(seen["G"]) == {torch.bfloat16}
    assert set(seen["D"]) == D_dtypes
    if weights.gp:  # reals and fakes in bf16, what lies between them in fp32
        assert seen["D"] == [torch.bfloat16, torch.bfloat16, torch.float32]
    figures |= generator_phase(state, replace(RULES, precision="bf16"), [_batch()])
    assert seen["D"][-1] == torch.bfloat16
    assert {values.dtype for values in figures.values()} == {torch.float32}
    gradients = [p.grad for network in (state.G, state.D) for p in network.parameters() if p.grad is not None]
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


@pytest.mark.parametrize(
    ("weights", "reals", "fakes"),
    [
        (NO_PENALTIES, "ConvolutionBackward0", "ConvolutionBackward0"),
        (PenaltyWeights(r1=1.0), "_ConvolutionBackward", "ConvolutionBackward0"),
        (PenaltyWeights(r1=1.0, r2=1.0), "_ConvolutionBackward", "_ConvolutionBackward"),
        (PenaltyWeights(r1=1.0, sigma=0.05), "ConvolutionBackward0", "ConvolutionBackward0"),
    ],
)
def test_only_what_is_differentiated_twice_goes_through_the_kernels_for_that(
    weights: PenaltyWeights, reals: str, fakes: str
) -> None:
    state = TrainState.fresh(toy_config(), toy_dataset().shape)
    first = next(module for module in state.D.modules() if isinstance(module, nn.Conv2d))
    seen: list[str] = []
    first.register_forward_hook(lambda _, __, x: seen.append(type(x.grad_fn).__name__))

    discriminator_phase(state, replace(RULES, weights=weights), [_batch()])
    generator_phase(state, RULES, [_batch()])

    assert (seen[0], seen[1], seen[-1]) == (reals, fakes, "ConvolutionBackward0")


def test_a_penalty_in_bf16_is_that_of_fp32_to_the_last_digits() -> None:
    in_bf16, in_fp32 = _state(), _state()
    weights = PenaltyWeights(r1=1.0)

    figures = [
        discriminator_phase(state, replace(RULES, weights=weights, precision=precision), [_batch()])[
            "r1_penalty"
        ]
        for state, precision in ((in_bf16, "bf16"), (in_fp32, "fp32"))
    ]

    assert torch.equal(*figures)  # of the reals: no bf16 on the way to them


def test_a_frozen_network_normalises_as_in_training_and_thaws_as_it_was() -> None:
    norm = nn.BatchNorm2d(2)
    images = torch.randn(8, 2, 4, 4) * 5 + 3

    with frozen(norm):
        normalised = norm(images)

    assert normalised.mean().abs() < 1e-5
    assert norm.running_mean.tolist() == [0.0, 0.0]
    assert all(parameter.requires_grad for parameter in norm.parameters())
    assert norm.track_running_stats


def test_a_vae_takes_no_half_step() -> None:
    config = toy_config(network="mlp", objective="elbo", r1_gamma=0.0)
    state = TrainState.fresh(config, toy_dataset().shape)
    elbo_phase(state, [_batch()], config.elbo_sigma)
    list(state.G.parameters())[-1].register_hook(lambda grad: grad * torch.nan)
    before = [_weights(network) for network in (state.D, state.G)]

    with pytest.raises(NotFinite, match="the gradient of G is not finite"):
        elbo_phase(state, [_batch()], config.elbo_sigma)

    assert [_changed(bits, _weights(one)) for bits, one in zip(before, (state.D, state.G), strict=True)] == [
        set(),
        set(),
    ]


def _weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}
