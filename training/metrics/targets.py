"""What can be judged: a run, a published artifact, images in files, a running service, the data themselves.

Wherever the images come from, the same generator and seeds give the same images, and so the same figures;
those of a run are torch's, and may differ from its artifact's by a grey level. Refuses to own: figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from models.errors import InvalidValue
from models.manifest import GRAPH_FILE, Manifest
from models.sampling import resolve_truncation_psi
from models.store import Artifact, Store
from training.data import Split, open_dataset
from training.errors import DataError
from training.metrics.fakes import Fakes, default_classes, evaluation_seeds, rendered
from training.metrics.measure import draw
from training.metrics.pictures import read_pictures
from training.metrics.service import ask_service
from training.run_folder import RunFolder

if TYPE_CHECKING:
    from training.snapshot import Snapshot

DATA_TARGETS: Final[dict[str, Split]] = {"data:train": "train", "data:test": "test"}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How many images, and which."""

    n: int = 10_000
    """Of a generator or of the data; of files all that there are."""
    seed: int = 0
    """Which seeds a generator gets: `evaluation_seeds`."""
    truncation_psi: float = 1.0


def is_run(target: str) -> bool:
    """Whether `target` is a run folder."""
    run = RunFolder(Path(target))
    return run.path.is_dir() and (run.config_file.exists() or bool(run.snapshot_files()))


def images_at(target: str, wanted: Wanted, *, store: Store, api_key: str | None = None) -> Fakes:
    """Images of a target that is neither a run nor the data: of a service by its URL, of files by their path,
    of an artifact by its name. Needs no torch."""
    if target.startswith(("http://", "https://")):
        return ask_service(target, wanted.n, wanted.seed, wanted.truncation_psi, api_key)
    path = Path(target)
    if path.is_dir() or path.suffix in (".zip", ".tar"):
        if wanted.truncation_psi != 1:
            psi = f"{wanted.truncation_psi:g}"
            raise InvalidValue(f"truncation_psi must be left out for images in files, got {psi}")
        return read_pictures(path)
    if "/" in target:  # no model's name has one
        raise DataError(f"{target} must be a run, a folder, zip or tar of images, and it is none")
    return images_of_artifact(store.resolve(target), wanted)


def images_of_artifact(artifact: Artifact, wanted: Wanted) -> Fakes:
    """Images by ONNX Runtime, as the service has them."""
    from training.graph_session import GraphSession

    manifest = artifact.manifest
    seeds = evaluation_seeds(wanted.seed, wanted.n)
    psi = resolve_truncation_psi(wanted.truncation_psi, manifest.has_truncation)
    images = rendered(
        GraphSession(artifact.verified_file(GRAPH_FILE)).render,
        seeds,
        z_dim=manifest.z_dim,
        prior=manifest.prior,
        num_classes=manifest.num_classes,
        truncation_psi=psi,
    )
    return Fakes(
        label=artifact.address,
        images=images,
        class_idx=default_classes(seeds, manifest.num_classes),
        truncation_psi=psi,
        learned_from=_name_of_data(manifest),
    )


def images_of_snapshot(snapshot: Snapshot, wanted: Wanted) -> Fakes:
    """Images of G_ema by torch. Nothing of the run is changed: the seeds are evaluation's own."""
    from training.servable import torch_render

    G = snapshot.generator()
    seeds = evaluation_seeds(wanted.seed, wanted.n)
    psi = resolve_truncation_psi(wanted.truncation_psi, G.truncation != "none")
    images = rendered(
        torch_render(G),
        seeds,
        z_dim=G.z_dim,
        prior="normal",
        num_classes=G.num_classes,
        truncation_psi=psi,
    )
    return Fakes(
        label=f"run at {snapshot.cur_nimg / 1000:g} kimg",
        images=images,
        class_idx=default_classes(seeds, G.num_classes),
        truncation_psi=psi,
        learned_from=snapshot.data["name"],
    )


def images_of_data(target: str, path: Path | None, img_resolution: int, wanted: Wanted) -> Fakes:
    """Real images in the place of fakes: what a perfect generator gets. The draw is that of `of_reals`."""
    dataset = open_dataset(path, img_resolution, DATA_TARGETS[target])
    images, class_idx = draw(dataset, wanted.n, wanted.seed)
    return Fakes(label=f"{dataset.name}, {DATA_TARGETS[target]}", images=images, class_idx=class_idx)


def _name_of_data(manifest: Manifest) -> str:
    """The data's name in a manifest that an exported run has; another publisher may tell what he likes."""
    data = manifest.training.get("data")
    return str(data.get("name", "")) if isinstance(data, dict) else ""
