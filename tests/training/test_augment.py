"""DiffAugment: what each augmentation does to a row, that gradients flow back, and that 0 is nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from toy_training import toy_config, toy_dataset

from models.errors import InvalidValue
from training.augment import NO_AUGMENT, Augment
from training.config import AUGMENTATIONS
from training.data import DataShape
from training.loop import Trainer
from training.losses import LOSSES
from training.penalties import PenaltyWeights
from training.phases import Batch, Rules, discriminator_phase, generator_phase
from training.reals import DatasetReals
from training.snapshot import TrainState
from training.streams import RowDraws

ALL = Augment(AUGMENTATIONS)


def _draws(count: int, rows: slice = slice(None)) -> RowDraws:
    return RowDraws(torch.Generator().manual_seed(0), count, rows)


class AlwaysDraws(RowDraws):
    """Draws that are all the same."""

    def __init__(self, value: float) -> None:
        self.value = value

    def uniform(self, *shape: int) -> Tensor:
        return torch.full((1, *shape), self.value)


def _images(count: int = 6, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_at_strength_0_no_bit_changes() -> None:
    images = _images()

    assert torch.equal(Augment(AUGMENTATIONS, strength=0.0)(images, _draws(6)), images)
    assert torch.equal(Augment(())(images, _draws(6)), images)
    assert not torch.equal(ALL(images, _draws(6)), images)


def test_each_goes_less_far_at_less_strength() -> None:
    images = _images()
    strengths = (0.01, 0.3, 1.0)

    for name in ("color", "translation", "cutout"):
        changes = [
            (Augment((name,), strength)(images, _draws(6)) - images).square().mean() for strength in strengths
        ]
        assert changes == sorted(changes)
        assert changes[0] < 0.01 < changes[-1]


def test_color_shifts_the_mean_by_at_most_half_and_keeps_where_things_are() -> None:
    images = _images()

    changed = Augment(("color",))(images, _draws(6))

    shifts = (changed - images).mean(dim=(1, 2, 3))
    assert shifts.abs().max() <= 0.5
    assert len(set(shifts.tolist())) == 6  # each row its own
    brightest = Augment(("color",))(images[:1], AlwaysDraws(1.0))
    factor = (brightest[0, 0, 0, 0] - brightest[0, 1, 0, 0]) / (images[0, 0, 0, 0] - images[0, 1, 0, 0])
    assert factor.item() == pytest.approx(2 * 1.5, rel=1e-4)  # saturation times contrast
    assert (brightest.mean() - images[:1].mean()).item() == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(("draw", "shift"), [(0.0, 2), (0.5, 0), (0.999, -2)])
def test_translation_moves_by_up_to_an_eighth_and_brings_in_zeros(draw: float, shift: int) -> None:
    images = _images(1)

    (moved,) = Augment(("translation",))(images, AlwaysDraws(draw))

    expected = torch.zeros_like(images[0])
    kept = slice(max(shift, 0), 16 + min(shift, 0))
    source = slice(max(-shift, 0), 16 - max(shift, 0))
    expected[:, kept, kept] = images[0, :, source, source]
    assert torch.equal(moved, expected)


@pytest.mark.parametrize(("draw", "pixels"), [(0.5, 64), (0.0, 16)])
def test_cutout_clears_a_square_of_half_the_side_that_may_reach_over_the_edge(
    draw: float, pixels: int
) -> None:
    images = torch.ones(1, 1, 16, 16)

    cut = Augment(("cutout",))(images, AlwaysDraws(draw))

    assert int((cut == 0).sum()) == pixels
    assert set(cut.unique().tolist()) == {0.0, 1.0}


def test_gradients_flow_back_to_where_each_pixel_came_from() -> None:
    images = _images(2, side=8).double().requires_grad_()

    def augmented(values: Tensor) -> Tensor:
        return ALL(values, _draws(2))

    assert torch.autograd.gradcheck(augmented, (images,), fast_mode=True)
    assert torch.autograd.gradgradcheck(
        augmented, (images,), fast_mode=True
    )  # a penalty differentiates twice


def test_a_row_is_changed_the_same_however_the_batch_is_split() -> None:
    images = _images()

    whole = ALL(images, _draws(6))

    part = ALL(images[2:5], _draws(6, rows=slice(2, 5)))
    assert torch.equal(part, whole[2:5])


def test_both_phases_show_d_augmented_images_and_penalties_are_of_the_images_as_they_are() -> None:
    config, reals = toy_config(), DatasetReals(toy_dataset(), 0)
    figures = []
    for augment in (NO_AUGMENT, ALL):
        state = TrainState.fresh(config, toy_dataset().shape)
        images, class_idx = reals.batch(0, 16)
        batch = Batch(reals=images, class_idx=class_idx, z=torch.ones(16, 8), draws=_draws(16))
        weights = PenaltyWeights(r1=1.0, r2=1.0)
        rules = Rules(losses=LOSSES["relativistic"], weights=weights, augment=augment)
        figures.append(generator_phase(state, rules, [batch]))
        state = TrainState.fresh(config, toy_dataset().shape)
        figures[-1] |= discriminator_phase(state, rules, [batch])

    plain, augmented = figures
    torch.testing.assert_close(augmented["r1_penalty"], plain["r1_penalty"])
    torch.testing.assert_close(augmented["r2_penalty"], plain["r2_penalty"])
    for name in ("D_real_logit", "D_fake_logit", "G_loss"):
        assert (augmented[name] - plain[name]).abs().max() > 1e-4


def test_a_run_with_augmentation_is_a_function_of_its_config() -> None:
    config, dataset = toy_config(augment="color,translation,cutout"), toy_dataset()

    def weights_after_two_iterations() -> Tensor:
        state = TrainState.fresh(config, dataset.shape)
        trainer = Trainer(config, DatasetReals(dataset, 0), state)
        trainer.run_iteration()
        trainer.run_iteration()
        return torch.cat([parameter.flatten() for parameter in state.D.parameters()])

    assert torch.equal(weights_after_two_iterations(), weights_after_two_iterations())


def test_points_are_not_augmented() -> None:
    config = toy_config(augment="cutout", network="mlp")
    reals = SimpleNamespace(shape=DataShape(img_channels=0, num_classes=0, point_dim=2))

    with pytest.raises(InvalidValue, match="augment must be empty for data of points, got 'cutout'"):
        Trainer(config, reals, TrainState.fresh(config, reals.shape))


def test_an_augmentation_that_is_none_is_a_sentence() -> None:
    with pytest.raises(InvalidValue, match="augment must be one of color, translation, cutout, got 'flip'"):
        toy_config(augment="color,flip")
