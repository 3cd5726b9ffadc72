"""What changes during a run, as pure functions of `cur_nimg`: learning rates, penalties, augmentation, EMA's
memory.

A resumed run needs no state of theirs. Refuses to own: the optimizers and averages that use them.
"""

from __future__ import annotations

import math

from training.augment import Augment
from training.config import TrainConfig
from training.penalties import PenaltyWeights


def lr_scale(cur_nimg: int, config: TrainConfig) -> float:
    """The factor on both learning rates: 1 up to the knee, then a cosine down to `lr_floor` at the end."""
    return _falling_to(config.lr_floor, cur_nimg, config)


def penalty_weights(cur_nimg: int, config: TrainConfig) -> PenaltyWeights:
    """What the penalties weigh in D's step at `cur_nimg`: each `r1_interval`-th R1 and R2 stand for all.

    Lazy regularisation: Karras 2019, section 3.1, arXiv:1912.04958. γ falls to `gamma_floor` of itself
    as the learning rates fall to theirs.
    """
    step = cur_nimg // config.batch_size
    stands_for = config.r1_interval if step % config.r1_interval == 0 else 0
    scale = _falling_to(config.gamma_floor, cur_nimg, config)
    return PenaltyWeights(
        r1=config.r1_gamma * scale * stands_for,
        r2=config.r2_gamma * scale * stands_for,
        gp=config.gp_weight,
        sigma=config.penalty_sigma if config.penalty_form == "finite_difference" else 0.0,
    )


def augment_at(cur_nimg: int, config: TrainConfig) -> Augment:
    """What D's images go through at `cur_nimg`: ever stronger until `augment_rampup` of the run."""
    rampup_nimg = config.augment_rampup * config.total_nimg
    share = min(cur_nimg / rampup_nimg, 1.0) if rampup_nimg > 0 else 1.0
    return Augment(config.augmentations, share * config.augment_strength)


def ema_beta(cur_nimg: int, config: TrainConfig) -> float:
    """The share of G_ema that survives one step at `cur_nimg`.

    The half-life is `ema_half_life_kimg`, but never more than `ema_rampup` of the images shown, so
    that a run of any length forgets its beginning.
    """
    half_life_nimg = min(config.ema_half_life_kimg * 1000, config.ema_rampup * cur_nimg)
    return float(0.5 ** (config.iteration_nimg / half_life_nimg)) if half_life_nimg > 0 else 0.0


def needs_total(config: TrainConfig) -> str | None:
    """Return which schedule of images before the end depends on `total_kimg`, or None where none does.

    Every schedule here that reads `total_nimg` is named here: a run may grow where there is none.
    """
    falls = config.lr_decay_start < 1
    if falls and config.lr_floor < 1:
        return f"the learning rates' cosine of lr_decay_start {config.lr_decay_start:g} ends there"
    if falls and config.gamma_floor < 1 and config.r1_gamma + config.r2_gamma > 0:
        return f"γ falls to gamma_floor {config.gamma_floor:g} there"
    if config.augment and config.augment_rampup > 0:
        return f"augmentation grows over its share augment_rampup {config.augment_rampup:g}"
    return None


def _falling_to(floor: float, cur_nimg: int, config: TrainConfig) -> float:
    """1 up to `lr_decay_start` of the run, then a cosine down to `floor` at its end and beyond.

    Always 1 where `lr_decay_start` is 1, although a run's last iteration may reach beyond its end.
    """
    knee_nimg = config.lr_decay_start * config.total_nimg
    if cur_nimg <= knee_nimg or config.lr_decay_start == 1:
        return 1.0
    t = min((cur_nimg - knee_nimg) / (config.total_nimg - knee_nimg), 1.0)  # 0 at the knee, 1 at the end
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * t))
