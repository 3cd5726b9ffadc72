"""What can be judged: a run, a published artifact, images in files, a running service, the data themselves.

Wherever the images come from, the same generator and seeds give the same images, and so the same figures;
those of a run are torch's, and may differ from its artifact's by a grey level. Refuses to own: figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from models.calibration import resolve_proposals
from models.choosing import choose_images
from models.errors import InvalidValue, show
from models.golden import Render, Score
from models.manifest import DISCRIMINATOR_FILE, GRAPH_FILE, Manifest
from models.sampling import LatentSampler, resolve_truncation_psi
from models.store import Artifact, Store
from training.data import Split, open_dataset
from training.errors import DataError
from training.metrics.classes import ClassIdx
from training.metrics.extractor import Images
from training.metrics.fakes import (
    ROWS_A_PASS,
    Fakes,
    Make,
    Wanted,
    evaluation_seeds,
    made,
    plain,
    sampler_text,
)
from training.metrics.measure import draw
from training.metrics.pictures import is_pictures, read_pictures
from training.metrics.service import ask_service
from training.run_folder import RunFolder

if TYPE_CHECKING:
    from training.snapshot import Snapshot

DATA_TARGETS: Final[dict[str, Split]] = {"data:train": "train", "data:test": "test"}


def is_run(target: str) -> bool:
    """Whether `target` is a run folder."""
    run = RunFolder(Path(target))
    return run.path.is_dir() and (run.config_file.exists() or bool(run.snapshot_files()))


def images_at(target: str, wanted: Wanted, *, store: Store, api_key: str | None = None) -> Fakes:
    """Images of a target that is neither a run nor the data: of a service by its URL, of files by their path,
    of an artifact by its name. Needs no torch."""
    if target.startswith(("http://", "https://")):
        return ask_service(target, wanted, api_key)
    path = Path(target)
    if is_pictures(path):
        if not wanted.is_plain:
            raise InvalidValue("truncation_psi and sampler must be left out for images in files")
        return read_pictures(path)
    if target.startswith("data:") and not target.removeprefix("data:").isdecimal():  # which is a version
        raise InvalidValue(f"target must be {' or '.join(DATA_TARGETS)} for the data, got {show(target)}")
    if "/" in target or path.is_file():  # no model's name has one
        raise DataError(f"{target} must be a run, a folder, zip or tar of images, and it is none")
    return images_of_artifact(store.resolve(target), wanted)


def images_of_artifact(artifact: Artifact, wanted: Wanted) -> Fakes:
    """Images by ONNX Runtime, as the service has them."""
    from training.graph_session import DiscriminatorSession, GraphSession

    manifest = artifact.manifest
    psi = resolve_truncation_psi(wanted.truncation_psi, manifest.has_truncation)
    proposals = resolve_proposals(
        wanted.sampler, wanted.proposals, manifest.calibration, manifest.why_no_calibration
    )
    session = GraphSession(artifact.verified_file(GRAPH_FILE))
    if wanted.sampler == "mh":
        if psi != 1:
            raise InvalidValue(f"truncation_psi must be 1 with the sampler mh, got {psi:g}")
        D = DiscriminatorSession(artifact.verified_file(DISCRIMINATOR_FILE))
        make = _chosen(session.render_many, D.score_many, manifest, proposals)
    else:
        make = plain(session.render, z_dim=manifest.z_dim, prior=manifest.prior, truncation_psi=psi)
    images, class_idx = made(
        make,
        evaluation_seeds(wanted.seed, wanted.n),
        manifest.num_classes,
        rows_a_pass=max(1, ROWS_A_PASS // proposals),
    )
    return Fakes(
        label=artifact.address,
        images=images,
        class_idx=class_idx,
        truncation_psi=psi,
        sampler=sampler_text(wanted.sampler, proposals),
        learned_from=_name_of_data(manifest),
    )


def _chosen(render: Render, score: Score, manifest: Manifest, proposals: int) -> Make:
    """Of each seed the image that D's chain ends at."""
    calibration, latents_of = manifest.calibration, LatentSampler(manifest.z_dim, manifest.prior)
    assert calibration is not None

    def make(seeds: Sequence[int], class_idx: ClassIdx) -> Images:
        latents, uniforms = latents_of.draw_proposals(seeds, proposals)
        ones = np.ones(len(seeds), dtype=np.float32)
        return choose_images(render, score, calibration.scale, latents, uniforms, class_idx, ones)[0]

    return make


def images_of_snapshot(snapshot: Snapshot, wanted: Wanted) -> Fakes:
    """Images of G_ema by torch. Nothing of the run is changed: the seeds are evaluation's own."""
    from training.servable import torch_render

    if wanted.sampler != "plain":
        raise InvalidValue("sampler must be plain for a run: its discriminator is calibrated at the export")
    G = snapshot.generator()
    psi = resolve_truncation_psi(wanted.truncation_psi, G.truncation != "none")
    make = plain(torch_render(G), z_dim=G.z_dim, prior="normal", truncation_psi=psi)
    images, class_idx = made(make, evaluation_seeds(wanted.seed, wanted.n), G.num_classes)
    return Fakes(
        label=f"run at {snapshot.cur_nimg / 1000:g} kimg",
        images=images,
        class_idx=class_idx,
        truncation_psi=psi,
        learned_from=snapshot.data["name"],
    )


def images_of_data(target: str, path: Path | None, img_resolution: int, wanted: Wanted) -> Fakes:
    """Real images in the place of fakes: what a perfect generator gets. The draw is that of `of_reals`."""
    if not wanted.is_plain:
        raise InvalidValue(f"truncation_psi and sampler must be left out for {target}")
    dataset = open_dataset(path, img_resolution, DATA_TARGETS[target])
    images, class_idx = draw(dataset, wanted.n, wanted.seed)
    return Fakes(label=f"{dataset.name}, {DATA_TARGETS[target]}", images=images, class_idx=class_idx)


def _name_of_data(manifest: Manifest) -> str:
    """The data's name in a manifest that an exported run has; another publisher may tell what he likes."""
    data = manifest.training.get("data")
    return str(data.get("name", "")) if isinstance(data, dict) else ""
