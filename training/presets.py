"""Named configs: functions that return a complete one.

Each is headed by its command, what its networks cost, and what it gave when it was measured as `MEASURED`
says. Refuses to own: the fields (`training.config`).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any, Final

from models.errors import InvalidValue, show
from training.config import TrainConfig
from training.data.fashion_mnist import NAME as DEFAULT_DATA

MEASURED: Final = """\
Fréchet distance: of 10,000 images to the test split, on the 128 features of a small classifier that learned
from the training split (which has 0.4; noise has 578). It is an earlier one than `gantrain evaluate` takes,
which gives other numbers: 1.83 in the place of 2.1. Classes found: the share of images in which that
classifier finds the class asked for (in the test split 0.89). Sharpness: the mean of the Laplacian, that of
the training images being 1. One seed each, CPU time of one thread of an AMD EPYC that others used too: the
distances are no ranking of objectives, a learning rate moves them more."""


def fashion_mnist() -> TrainConfig:
    """Ten classes of clothing, 32×32 grey, from 60,000 images.

    gantrain train --preset fashion-mnist --run-dir RUN_DIR

    G: 0.665 M parameters, 9.93 M MACs an image. D: 0.187 M parameters, 4.33 M MACs an image.
    By `gantrain evaluate`, one thread beside other work: 62 minutes (400 images/s), Fréchet distance 1.31
    (training images 0.22), classes found 0.94 (real ones 0.92). At 700 kimg, 16 minutes: 1.83 and 0.93.
    """
    return TrainConfig(
        preset="fashion-mnist",
        total_kimg=1500,
        G_channels=48,
        D_channels=32,
        r1_gamma=0.1,
        G_lr=2e-3,
        D_lr=2e-3,
        adam_beta1=0.0,
        lr_decay_start=0.0,
    )


def emoji() -> TrainConfig:
    """Faces, persons and flags, 64×64 RGB, from 1,209 emoji.

    gantrain train --preset emoji --run-dir RUN_DIR --data package

    G: 0.684 M parameters, 15.6 M MACs an image. D: 0.28 M parameters, 10.8 M MACs an image.
    One thread beside other work: 48 minutes (111 images/s). By `gantrain evaluate` with 1,209 images, on
    features of EfficientNet-Lite0: Fréchet distance 119, coverage 1.7 %; faces vary 0.48 times as real ones.
    """
    return TrainConfig(
        preset="emoji",
        total_kimg=320,
        batch_size=32,
        img_resolution=64,
        G_channels=24,
        D_channels=20,
        r1_gamma=0.3,
        augment="color,translation,cutout",
        G_lr=1e-3,
        D_lr=1e-3,
        adam_beta1=0.0,
        lr_decay_start=0.0,
    )


def textbook() -> TrainConfig:
    """The game as the founding chapter writes it: G minimises log(1 - D(G(z))).

    gantrain train --preset textbook --run-dir RUN_DIR

    G: 0.665 M parameters, 9.93 M MACs an image. D: 0.187 M parameters, 4.33 M MACs an image.
    111 CPU seconds (540 images/s), 60 kimg: Fréchet distance 31.4, classes found 0.89, sharpness 0.93.
    """
    return _small("textbook", total_kimg=60, objective="minimax", G_lr=2e-3, D_lr=2e-3)


def ns_dcgan() -> TrainConfig:
    """The classic: G maximises log D(G(z)), with the DCGAN paper's learning rate and β1.

    gantrain train --preset ns-dcgan --run-dir RUN_DIR

    G: 0.665 M parameters, 9.93 M MACs an image. D: 0.187 M parameters, 4.33 M MACs an image.
    49 CPU seconds (620 images/s), 30 kimg: Fréchet distance 79.4, classes found 0.84, sharpness 0.75.
    """
    return _small(
        "ns-dcgan",
        total_kimg=30,
        objective="nonsaturating",
        G_lr=2e-4,
        D_lr=2e-4,
        adam_beta1=0.5,
        lr_decay_start=1.0,
    )


def r3() -> TrainConfig:
    """The stable recipe: relativistic pairs, R1 and R2 each step, residual networks without normalisation.

    gantrain train --preset r3 --run-dir RUN_DIR

    G: 0.339 M parameters, 14.3 M MACs an image. D: 0.167 M parameters, 7.83 M MACs an image.
    208 CPU seconds (190 images/s), 40 kimg: Fréchet distance 17.9, classes found 0.82, sharpness 0.96.
    """
    return _small(
        "r3",
        network="residual",
        objective="relativistic",
        r1_gamma=1.0,
        r2_gamma=1.0,
        r1_interval=1,
        G_lr=2e-3,
        D_lr=2e-3,
    )


def hinge_sn() -> TrainConfig:
    """The hinge loss, and a spectrally normalised D.

    gantrain train --preset hinge-sn --run-dir RUN_DIR

    G: 0.665 M parameters, 9.93 M MACs an image. D: 0.187 M parameters, 4.33 M MACs an image.
    109 CPU seconds (550 images/s), 60 kimg: Fréchet distance 24.2, classes found 0.90, sharpness 0.96.
    """
    return _small("hinge-sn", total_kimg=60, objective="hinge", D_spectral_norm=True, G_lr=4e-3, D_lr=4e-3)


def lsgan() -> TrainConfig:
    """Least squares: D answers 1 for a real, 0 for a fake, and pays the square of its error.

    gantrain train --preset lsgan --run-dir RUN_DIR

    G: 0.665 M parameters, 9.93 M MACs an image. D: 0.187 M parameters, 4.33 M MACs an image.
    69 CPU seconds (580 images/s), 40 kimg: Fréchet distance 57.2, classes found 0.88, sharpness 0.89.
    """
    return _small("lsgan", objective="least_squares", G_lr=2e-3, D_lr=2e-3)


def wgan_gp() -> TrainConfig:
    """The Wasserstein distance, and the gradient penalty that bounds D's slope; one step of D for one of G.

    gantrain train --preset wgan-gp --run-dir RUN_DIR

    G: 0.665 M parameters, 9.93 M MACs an image. D: 0.187 M parameters, 4.33 M MACs an image.
    90 CPU seconds (440 images/s), 40 kimg: Fréchet distance 40.3, classes found 0.90, sharpness 1.01.
    """
    return _small("wgan-gp", objective="wasserstein", gp_weight=10.0, G_lr=1e-3, D_lr=1e-3, adam_beta2=0.9)


def vae() -> TrainConfig:
    """No game but a variational autoencoder, the contrast: nothing to balance, and blurry images.

    gantrain train --preset vae --run-dir RUN_DIR

    G: 0.665 M parameters, 9.93 M MACs an image. Encoder: 0.431 M parameters, 4.59 M MACs an image.
    46 CPU seconds (880 images/s), 40 kimg: Fréchet distance 129, classes found 0.86, sharpness 0.36.
    """
    return _small("vae", objective="elbo", G_lr=2e-3, D_lr=2e-3)


def _small(preset: str, **fields: Any) -> TrainConfig:
    """What the recipes for Fashion-MNIST share: a run of minutes, with the pair that `fashion-mnist` has."""
    shared = {"total_kimg": 40, "G_channels": 48, "D_channels": 32, "adam_beta1": 0.0, "lr_decay_start": 0.0}
    return TrainConfig(preset=preset, **(shared | fields))


PRESETS: Final[dict[str, Callable[[], TrainConfig]]] = {
    "fashion-mnist": fashion_mnist,
    "emoji": emoji,
    "textbook": textbook,
    "ns-dcgan": ns_dcgan,
    "r3": r3,
    "hinge-sn": hinge_sn,
    "lsgan": lsgan,
    "wgan-gp": wgan_gp,
    "vae": vae,
}


def preset(name: str) -> TrainConfig:
    """Return the config of a preset. Raises InvalidValue for a name that is none."""
    if name not in PRESETS:
        raise InvalidValue(f"preset must be one of {', '.join(PRESETS)}, got {show(name)}")
    return PRESETS[name]()


def train_command(config: TrainConfig, data_name: str, threads: int, processes: int = 1) -> str:
    """Return the command that trains `config` again: its preset, and every field that differs from it.

    DATA stands for the data set where it is not the one that is used without `--data`.
    """
    base = preset(config.preset)
    words = ["gantrain", "train", "--preset", config.preset, "--run-dir", "RUN_DIR"]
    if processes > 1:
        words[:1] = ["torchrun", "--nproc-per-node", str(processes), "-m", "training"]
    if data_name != DEFAULT_DATA:
        words += ["--data", "DATA"]
    words += ["--total-kimg", f"{config.total_kimg:g}", "--seed", str(config.seed), "--threads", str(threads)]
    for name in config.differences(base):
        if name not in ("total_kimg", "seed"):
            words += ["--set", f"{name}={getattr(config, name)}"]
    return shlex.join(words)
