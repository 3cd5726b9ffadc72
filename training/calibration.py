"""What D's logits are worth once training is over: fitted on images that D never saw, measured on others.

The held-out images fall in two halves. On the first a logistic is fitted to D's logits of reals and of
fakes; on the second the distance of plain and of MH-chosen fakes is taken. NumPy only. Refuses to own:
D's graph (`training.discriminator`), the distance (`training.metrics`), the chain (`models.sampling`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.calibration import DEFAULT_PROPOSALS, Calibration
from models.choosing import choose_images
from models.golden import Render, Score
from models.manifest import Manifest
from models.sampling import LatentSampler
from training.data import Dataset
from training.metrics import Reference, measure
from training.metrics.extractor import Extractor
from training.metrics.fakes import sampler_text

FIT_SEED: Final = 4_200_000_000
"""The first seed of the fakes that the logistic is fitted on: beyond those of `training.metrics`."""
MEASURE_SEED: Final = 4_100_000_000
"""The first seed of the fakes whose distance is taken."""
MAX_ROWS: Final = 2_500
"""Images of a half that are used: the fit needs no more, and an export shall not take minutes."""
MIN_GAIN: Final = 0.02
"""Share of the plain distance that MH must take away, at least."""
PLAIN_SETS: Final = 5
"""Sets of plain images whose distances tell what is chance: a tenth and more, of so few images."""
FIGURES: Final = ("frechet_distance", "coverage")
"""What is measured; the first one decides."""
_ROWS_A_CHUNK: Final = 5  # of DEFAULT_PROPOSALS images each: what one run of a session takes
_ITERATIONS: Final = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Half:
    """Held-out images of one half."""

    images: npt.NDArray[np.uint8]
    """[N, H, W, C]"""
    class_idx: npt.NDArray[np.int64]
    """[N]; zeros where the data has no classes."""


def halves(held_out: Dataset) -> tuple[Half, Half]:
    """Two halves of `held_out` in a fixed random order, so that neither is of some classes only."""
    order = np.random.RandomState(0).permutation(len(held_out))
    size = min(len(order) // 2, MAX_ROWS)

    def half(rows: npt.NDArray[np.int64]) -> Half:
        classes = np.zeros(len(rows), np.int64) if held_out.class_idx is None else held_out.class_idx[rows]
        return Half(images=held_out.images[rows].transpose(0, 2, 3, 1), class_idx=classes)

    return half(order[:size]), half(order[size : 2 * size])


def fit_logistic(
    real_logits: npt.NDArray[np.floating], fake_logits: npt.NDArray[np.floating]
) -> tuple[float, float]:
    """Return (scale, offset) of P(real) = σ(scale · logit + offset), float64, for logits [N] and [M].

    Newton's method on the cross-entropy with the targets of Platt 1999 (section 2.2), which keep scale
    finite where the two do not overlap; both sides weigh the same, whatever their sizes. Six digits.
    """
    x = np.concatenate([real_logits, fake_logits]).astype(np.float64)
    mean, deviation = float(x.mean()), float(x.std()) or 1.0
    n, m = len(real_logits), len(fake_logits)
    X = np.stack([(x - mean) / deviation, np.ones_like(x)])  # [2, N + M]
    targets = np.concatenate([np.full(n, (n + 1) / (n + 2)), np.full(m, 1 / (m + 2))])
    weights = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    beta = np.zeros(2)

    def loss(beta: npt.NDArray[np.float64]) -> float:
        t = beta @ X
        return float(weights @ (np.logaddexp(0.0, t) - targets * t))

    for _ in range(_ITERATIONS):
        p = np.exp(-np.logaddexp(0.0, -(beta @ X)))
        gradient = X @ (weights * (p - targets))
        curvature = (X * (weights * p * (1 - p))) @ X.T + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while loss(beta - step) > loss(beta) and np.abs(step).max() > 1e-12:
            step /= 2  # the cross-entropy is convex: a shorter step goes down
        beta = beta - step
        if np.abs(step).max() <= 1e-10:
            break
    scale = beta[0] / deviation
    return float(f"{scale:.6g}"), float(f"{beta[1] - scale * mean:.6g}")


def calibrate(
    render: Render,
    score: Score,
    manifest: Manifest,
    held_out: Dataset,
    *,
    extractor: Extractor | None,
    why_no_mh: str = "",
) -> dict[str, Any]:
    """Fit the calibration of D on `held_out`, measure what MH gains; return a manifest's `sampler`.

    `render` and `score` are the artifact's own graphs, for many rows. MH is offered where the Fréchet
    distance on `extractor` is below that of plain images by MIN_GAIN and by two standard deviations, for
    which PLAIN_SETS sets of them are made; `why_no_mh` says why it is not to be tried.
    """
    fit, rest = halves(held_out)
    fakes = _plain_fakes(render, manifest, FIT_SEED, fit.class_idx)
    scale, offset = fit_logistic(score(fit.images, fit.class_idx), score(fakes, fit.class_idx))
    if not scale > 0:
        return {"why_not": "its discriminator finds fakes no less real than reals it never saw"}
    measured: dict[str, Any] = {"measured": []}
    if not why_no_mh and extractor is None:
        why_no_mh = "no extractor was at hand at the export, so what it would gain was not measured"
    if not why_no_mh:
        assert extractor is not None
        reference = Reference(
            images=rest.images,
            extractor=extractor,
            data=held_out.name,
            data_digest=held_out.digest,
            split=f"{len(rest.images)} images of the test split, on none of which D was calibrated",
        )
        measured, why_no_mh = _measured(render, score, manifest, reference, rest.class_idx, scale)
    found = Calibration(scale=scale, offset=offset, mh=not why_no_mh, why_not=why_no_mh)
    fitted_on = {
        "data": held_out.name,
        "data_digest": held_out.digest,
        "n_real": len(fit.images),
        "n_fake": len(fakes),
        "first_seed": FIT_SEED,
    }
    return {**found.to_facts(), "fitted_on": fitted_on, **measured}


def _measured(
    render: Render,
    score: Score,
    manifest: Manifest,
    reference: Reference,
    class_idx: npt.NDArray[np.int64],
    scale: float,
) -> tuple[dict[str, Any], str]:
    """The figures of plain and of chosen fakes of classes [N], and why MH is not offered; empty: it is."""
    sets = [
        measure(reference, _plain_fakes(render, manifest, first_seed, class_idx), figures=FIGURES)
        for first_seed in range(MEASURE_SEED, MEASURE_SEED + PLAIN_SETS * len(class_idx), len(class_idx))
    ]
    chosen = measure(
        reference,
        _chosen_fakes(render, score, manifest, MEASURE_SEED, class_idx, scale),
        figures=FIGURES,
        sampler=sampler_text("mh", DEFAULT_PROPOSALS),
    )
    distances, after = [one[0].value for one in sets], chosen[0].value
    mean, deviation = float(np.mean(distances)), float(np.std(distances, ddof=1))
    why_no_mh = ""
    if not after <= min((1 - MIN_GAIN) * mean, mean - 2 * deviation):
        why_no_mh = (
            f"with {DEFAULT_PROPOSALS} proposals the Fréchet distance is {after:.3g}, and it must be below "
            f"that of plain images, {mean:.3g} ± {deviation:.2g}, by {MIN_GAIN:.0%} and two deviations"
        )
    facts = {
        "first_seed": MEASURE_SEED,
        "measured": [one.to_json() for one in (*sets[0], *chosen)],
        "plain_spread": {"sets": PLAIN_SETS, "mean": mean, "deviation": deviation},
    }
    return facts, why_no_mh


def _plain_fakes(
    render: Render, manifest: Manifest, first_seed: int, class_idx: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """One image [N, H, W, C] of each class asked for, of seeds from `first_seed` on."""
    seeds = first_seed + np.arange(len(class_idx))
    latents = LatentSampler(manifest.z_dim, manifest.prior).draw(seeds)
    return render(latents, class_idx, np.ones(len(seeds), dtype=np.float32))


def _chosen_fakes(
    render: Render,
    score: Score,
    manifest: Manifest,
    first_seed: int,
    class_idx: npt.NDArray[np.int64],
    scale: float,
) -> npt.NDArray[np.uint8]:
    """The same by MH: of each seed the image that its chain of DEFAULT_PROPOSALS ends at."""
    sampler = LatentSampler(manifest.z_dim, manifest.prior)
    parts = []
    for first in range(0, len(class_idx), _ROWS_A_CHUNK):
        classes = class_idx[first : first + _ROWS_A_CHUNK]
        seeds = first_seed + first + np.arange(len(classes))
        latents, uniforms = sampler.draw_proposals(seeds, DEFAULT_PROPOSALS)
        ones = np.ones(len(classes), dtype=np.float32)
        parts.append(choose_images(render, score, scale, latents, uniforms, classes, ones)[0])
    return np.concatenate(parts)
