"""D at work after training: its graph beside G's, held to the same promises, and what it is good for.

D goes into an artifact where its logits can be told as a probability: a game's D (no Wasserstein critic,
no VAE), whose rows do not depend on each other, calibrated on images it never saw. Where that is not so
the artifact says why, in the sentence that a caller is answered with. Refuses to own: the calibration
(`training.calibration`), what a graph must promise (`training.promises`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
import torch

from models.errors import InvalidValue
from models.manifest import DISCRIMINATOR_FILE, Manifest
from training.calibration import calibrate
from training.config import Objective
from training.data import Dataset, fashion_mnist, open_dataset, splits
from training.errors import GraphRefused
from training.folding import folded
from training.graph import check_graph, write_model
from training.graph_session import DiscriminatorSession, GraphSession
from training.metrics.extractor import Extractor
from training.metrics.extractor_files import open_extractor, shipped_names
from training.networks import Discriminator
from training.promises import (
    Rows,
    batch_sizes,
    check_discriminator_interface,
    check_logit_difference,
    check_scores,
)
from training.servable import ServableDiscriminator, torch_score
from training.snapshot import Snapshot
from training.tracing import to_onnx, trace

_TRACE_ROWS: Final = 3
_SHIPPED_RESOLUTION: Final = 32  # what shipped extractors of small classifiers take
_NO_PROBABILITY: Final[dict[Objective, str]] = {
    "wasserstein": "a Wasserstein critic scores differences, which are no probability of being real",
    "elbo": "a variational autoencoder has no discriminator",
}
_NO_RATIO: Final[dict[Objective, str]] = {
    "hinge": "a discriminator of the hinge game does not tell the ratio of densities that MH needs",
    "least_squares": "a discriminator of the least squares game has no logit of the ratio that MH needs",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What D is calibrated and MH measured with."""

    held_out: Dataset | None
    """Images that D never saw, of the size that G makes."""
    why_none: str = "no images that it never saw were at hand at the export to calibrate it on"
    """Why there are none, where there are none."""
    extractor: Extractor | None = None
    """Whose features the gain of MH is measured on."""


Gather = Callable[[Snapshot], Evidence]
"""Finds the evidence for a run; asked only where its D could be at work."""


def no_evidence(snapshot: Snapshot) -> Evidence:
    """D stays out."""
    return Evidence(held_out=None)


def evidence_of(snapshot: Snapshot, data: Path | None, extractor: str | None) -> Evidence:
    """The test split of the run's data, at `data` or where Debian puts it, and the `extractor` named.

    Without a name the shipped one for this data, if there is one. Raises InvalidValue for data that the run
    did not learn from, DataError.
    """
    name, img_resolution = snapshot.data["name"], snapshot.config.img_resolution
    if data is None and name != fashion_mnist.NAME:
        return Evidence(held_out=None)
    if "test" not in splits(data):
        return Evidence(held_out=None, why_none=f"{data or name} has no images held out to calibrate it on")
    found = open_dataset(data, img_resolution).digest
    if found != snapshot.data["digest"]:
        raise InvalidValue(
            f"data must be what the run learned from, {name} with digest {snapshot.data['digest'][:12]}, "
            f"got {data or fashion_mnist.DEBIAN_FOLDER} with {found[:12]}"
        )
    held_out = open_dataset(data, img_resolution, "test")
    if extractor is None and name in shipped_names() and img_resolution == _SHIPPED_RESOLUTION:
        extractor = name
    return Evidence(held_out=held_out, extractor=None if extractor is None else open_extractor(extractor))


def add_discriminator(
    folder: Path, session: GraphSession, manifest: Manifest, snapshot: Snapshot, gather: Gather
) -> dict[str, Any]:
    """Write DISCRIMINATOR_FILE of `snapshot`'s D into `folder` where it can be at work.

    `session` is G's checked graph. Returns the manifest's `sampler`, which says why where it cannot.
    """
    objective = snapshot.config.objective
    if objective in _NO_PROBABILITY:
        return {"why_not": _NO_PROBABILITY[objective]}
    evidence = gather(snapshot)
    if evidence.held_out is None:
        return {"why_not": evidence.why_none}
    path = folder / DISCRIMINATOR_FILE
    try:
        judge = write_discriminator(path, session, manifest, snapshot.discriminator())
        facts = calibrate(
            session.render_many,
            judge.score_many,
            manifest,
            evidence.held_out,
            extractor=evidence.extractor,
            why_no_mh=_NO_RATIO.get(objective, ""),
        )
    except GraphRefused as error:
        facts = {"why_not": f"its discriminator cannot be served: {error}"}
    if "scale" not in facts:
        path.unlink(missing_ok=True)
    return facts


def write_discriminator(
    path: Path, session: GraphSession, manifest: Manifest, D: Discriminator
) -> DiscriminatorSession:
    """Write the graph of `D` to `path` and hold it to every promise on images of G's `session`.

    Spectral norm is folded into the weights, which stay float32. Raises GraphRefused with the way out.
    """
    rows = Rows.sample(manifest)
    images = rows.render(session.render)  # [N, H, W, C]
    example = [torch.tensor(images[:_TRACE_ROWS])]
    if manifest.num_classes:
        example.append(torch.tensor(rows.class_idx[:_TRACE_ROWS]))
    program = trace(folded(ServableDiscriminator(D)), example)
    model = to_onnx(program, list(manifest.discriminator_outputs), list(manifest.discriminator_inputs))
    write_model(model, path)
    check_graph(onnx.load(path))
    judge = DiscriminatorSession(path)
    check_discriminator_interface(judge, manifest)
    logits = check_scores(judge.score, images, rows.class_idx)
    reference = torch_score(D)
    for size in batch_sizes(manifest):
        check_logit_difference(logits[:size], reference(images[:size], rows.class_idx[:size]))
    return judge


def discriminator_sentence(manifest: Manifest) -> str:
    """What came of D at an export."""
    calibration = manifest.calibration
    if calibration is None:
        return f"no discriminator: {manifest.why_no_calibration}"
    mh = "with sampler mh" if calibration.mh else f"without sampler mh: {calibration.why_not}"
    return f"discriminator: calibrated, {mh}"
