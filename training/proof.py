"""What every published graph must pass and carry, whoever made it: the checks, golden rows, the preview.

`training.export` brings a run's G, `training.importing` a file from elsewhere; both end here. Needs
ONNX Runtime and `onnx`, never torch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from models.golden import Golden, Render
from models.manifest import DISCRIMINATOR_FILE, GOLDEN_FILE, Manifest
from models.sampling import MAX_SEED, latents_from_seeds
from models.store import Artifact, Draft
from training.card import (
    CARD_FILE,
    PREVIEW_FILE,
    TRUNCATED_PREVIEW_FILE,
    TRUNCATED_PREVIEW_PSI,
    write_card,
)
from training.graph import check_graph
from training.graph_session import DiscriminatorSession, GraphSession
from training.grid import DEFAULT_COLUMNS, save_grid
from training.promises import Rows, batch_sizes, check_difference, check_interface, check_rows

# Few enough to be replayed in a moment, odd enough to catch a wrong stream: both ends of the range are in.
GOLDEN_SEEDS: Final = (0, MAX_SEED, 1, 2, 3, 5, 8, 13, 21, 42, 100, 1_000, 65_535, 65_536, 2**31 - 1, 2**31)
GOLDEN_PSIS: Final = (1.0, 0.7)
_PREVIEW_SIDE_PX: Final = 1_280


def check_graph_file(
    path: Path,
    manifest: Manifest,
    reference: Render,
    reference_name: str = "torch",
    *,
    halved: bool = False,
) -> tuple[GraphSession, int]:
    """Hold the graph at `path` to every promise, with `reference` as the truth of its pixels.

    `halved` says that its weights were stored as float16 and the reference's were not.
    Returns its session and the largest difference in grey levels. Raises GraphRefused with the way out.
    """
    check_graph(onnx.load(path))
    session = GraphSession(path)
    check_interface(session, manifest)
    rows = Rows.sample(manifest)
    images = check_rows(session.render, rows)  # [N, H, W, C]
    differences = [
        check_difference(images[:size], rows[slice(size)].render(reference), reference_name, halved=halved)
        for size in batch_sizes(manifest)
    ]
    return session, max(differences)


def seal(draft: Draft, session: GraphSession, manifest: Manifest) -> Artifact:
    """Write golden rows, previews and card beside the checked graph of `draft`, and publish it."""
    golden = golden_rows(session.render_many, manifest)
    if manifest.calibration is not None:
        score = DiscriminatorSession(draft.path / DISCRIMINATOR_FILE).score_many
        golden = replace(golden, realness=score(golden.images, golden.class_idx))
    golden.save(draft.path / GOLDEN_FILE)
    save_preview(draft.path / PREVIEW_FILE, session.render_many, manifest)
    if manifest.has_truncation:
        save_preview(
            draft.path / TRUNCATED_PREVIEW_FILE, session.render_many, manifest, TRUNCATED_PREVIEW_PSI
        )
    write_card(draft.path / CARD_FILE, manifest)
    return draft.publish(manifest)


def golden_rows(render: Render, manifest: Manifest) -> Golden:
    """Return the rows that prove the artifact: every seed of GOLDEN_SEEDS at each psi, classes in turn."""
    psis = GOLDEN_PSIS if manifest.has_truncation else (1.0,)
    seeds = np.tile(np.array(GOLDEN_SEEDS, dtype=np.int64), len(psis))
    class_idx = np.arange(len(seeds), dtype=np.int64) % max(manifest.num_classes, 1)
    truncation_psi = np.repeat(np.array(psis, dtype=np.float32), len(GOLDEN_SEEDS))
    latents = latents_from_seeds(seeds, manifest.z_dim, manifest.prior)  # [N, z_dim]
    return Golden(
        seeds=seeds,
        class_idx=class_idx,
        truncation_psi=truncation_psi,
        images=render(latents, class_idx, truncation_psi),
    )


def save_preview(path: Path, render: Render, manifest: Manifest, truncation_psi: float = 1.0) -> None:
    """One row a class with the seeds 0..9; ten rows of consecutive seeds without classes.

    Fewer of each where the picture would be wider or higher than 1,280 pixels.
    """
    columns = max(1, min(DEFAULT_COLUMNS, _PREVIEW_SIDE_PX // manifest.img_width))
    most_rows = max(1, _PREVIEW_SIDE_PX // manifest.img_height)
    rows = min(manifest.num_classes or DEFAULT_COLUMNS, most_rows)
    cells = np.arange(rows * columns, dtype=np.int64)
    seeds = cells % columns if manifest.num_classes else cells
    images = render(
        latents_from_seeds(seeds, manifest.z_dim, manifest.prior),
        cells // columns if manifest.num_classes else np.zeros_like(cells),
        np.full(len(cells), truncation_psi, dtype=np.float32),
    )
    small = 2 * max(columns * manifest.img_width, rows * manifest.img_height) <= _PREVIEW_SIDE_PX
    save_grid(path, images, columns, scale=2 if small else 1)
