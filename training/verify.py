"""Prove a published artifact: its files, its graph, its golden rows, and (if asked) the run it came from.

Needs ONNX Runtime; torch only for the comparison with a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.errors import DamagedArtifact
from models.golden import Golden
from models.manifest import DISCRIMINATOR_FILE, GOLDEN_FILE, GRAPH_FILE
from models.sampling import latents_from_seeds, resolve_class_idx
from models.store import Artifact, Store
from training.graph_session import DiscriminatorSession, GraphSession
from training.promises import (
    MAX_DIFFERENCE_LEVELS,
    MAX_LOGIT_DIFFERENCE,
    Rows,
    check_difference,
    check_discriminator_interface,
    check_interface,
    check_rows,
    check_scores,
)
from training.run_folder import RunFolder


def verify(store: Store, address: str, run_dir: Path | None = None) -> Iterator[str]:
    """Yield one sentence for each proof that holds.

    Raises what `Store.resolve` raises, and DamagedArtifact or GraphRefused at the first proof that fails.
    """
    artifact = store.resolve(address)
    artifact.verify()
    yield f"{artifact.address} {artifact.digest[:12]}: {len(artifact.manifest.files)} files are as published"
    session = GraphSession(artifact.file(GRAPH_FILE))
    check_interface(session, artifact.manifest)
    rows = Rows.sample(artifact.manifest)
    images = check_rows(session.render, rows)
    yield f"graph: {len(images)} rows have the same pixels alone, in any batch and in any order"
    yield _replay_golden(artifact, session)
    if artifact.manifest.calibration is not None:
        yield _replay_discriminator(artifact, images, rows)
    if run_dir is not None:
        halved = artifact.manifest.export.get("precision") == "fp16"
        yield _compare_with_run(images, rows, run_dir, halved=halved)


def render_artifact(artifact: Artifact, seeds: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return the images [N, H, W, C] uint8 that `seeds` name, each in its default class, psi 1."""
    manifest = artifact.manifest
    session = GraphSession(artifact.verified_file(GRAPH_FILE))
    classes = resolve_class_idx(None, list(seeds), manifest.num_classes) or [0] * len(seeds)
    return session.render_many(
        latents_from_seeds(seeds, manifest.z_dim, manifest.prior),  # [N, z_dim]
        np.array(classes, dtype=np.int64),
        np.ones(len(seeds), dtype=np.float32),
    )


def _replay_golden(artifact: Artifact, session: GraphSession) -> str:
    golden = Golden.load(artifact.file(GOLDEN_FILE), artifact.manifest)
    levels = golden.largest_difference(session.render_many, artifact.manifest)
    if levels > MAX_DIFFERENCE_LEVELS:
        raise DamagedArtifact(
            f"{artifact.address}: golden rows must be within {MAX_DIFFERENCE_LEVELS} grey level, "
            f"they differ by {levels}"
        )
    exactness = "bit-exact" if levels == 0 else f"within {levels} grey level, as another CPU may give"
    return f"golden: {len(golden.seeds)} rows, {exactness}"


def _replay_discriminator(artifact: Artifact, images: npt.NDArray[np.uint8], rows: Rows) -> str:
    judge = DiscriminatorSession(artifact.file(DISCRIMINATOR_FILE))
    check_discriminator_interface(judge, artifact.manifest)
    check_scores(judge.score, images, rows.class_idx)
    golden = Golden.load(artifact.file(GOLDEN_FILE), artifact.manifest)
    difference = golden.largest_realness_difference(judge.score_many)
    if not difference <= MAX_LOGIT_DIFFERENCE:
        raise DamagedArtifact(
            f"{artifact.address}: logits of golden rows must be within {MAX_LOGIT_DIFFERENCE:g}, "
            f"they differ by {difference:g}"
        )
    exactness = "the same" if difference == 0 else f"within {difference:g}, as another CPU may give"
    return f"discriminator: {len(golden.seeds)} golden logits, {exactness}"


def _compare_with_run(images: npt.NDArray[np.uint8], rows: Rows, run_dir: Path, *, halved: bool) -> str:
    from training.servable import torch_render
    from training.snapshot import load_newest

    snapshot = load_newest(RunFolder(run_dir))
    levels = check_difference(images, rows.render(torch_render(snapshot.generator())), halved=halved)
    return f"run: within {levels} of 255 grey levels of G_ema at {snapshot.cur_nimg / 1000:g} kimg"
