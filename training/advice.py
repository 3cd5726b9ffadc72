"""What to try when a game goes wrong: the remedies that a config does not use yet, as words of a sentence.

Why they help: the papers that `training.losses` and `training.penalties` name. Pure functions of the
config. Refuses to own: finding out that it goes wrong (`training.watch`).
"""

from __future__ import annotations

from training.config import TrainConfig


def when_not_finite(config: TrainConfig) -> str:
    """A loss or a gradient was not finite."""
    tries = [f"G_lr and D_lr below {config.G_lr:g} and {config.D_lr:g}"]
    if config.precision == "bf16":
        tries.insert(0, "precision=fp32")
    if config.objective != "elbo" and not (config.r1_gamma or config.gp_weight or config.D_spectral_norm):
        tries.append("r1_gamma above 0")
    return " or ".join(tries)


def when_won(config: TrainConfig) -> str:
    """D is certain of every sample, so that G learns nothing."""
    tries = [f"r1_gamma above {config.r1_gamma:g}", f"D_lr below {config.D_lr:g}"]
    if config.gp_weight:
        tries[0] = f"gp_weight above {config.gp_weight:g}"
    if config.objective == "minimax":
        tries.append("objective=nonsaturating")
    if not config.augment:
        tries.append("augment=color,translation,cutout (few images are learned by heart)")
    return " or ".join(tries)


def when_collapsed(config: TrainConfig) -> str:
    """G makes the same few images."""
    if config.objective == "elbo":  # the noise it assumes is so strong that latents say nothing
        return f"elbo_sigma below {config.elbo_sigma:g}"
    tries = []
    if config.objective != "relativistic" or not config.r1_gamma or not config.r2_gamma:
        tries.append("objective=relativistic with r1_gamma and r2_gamma above 0")
    tries.append(f"G_lr and D_lr below {config.G_lr:g} and {config.D_lr:g}")
    return " or ".join(tries)
