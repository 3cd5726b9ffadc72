"""Tell anew what a published artifact says of itself: its card, and the runs that stand beside it.

A version is never overwritten in what makes its pixels: model, golden rows, discriminator and digest stay as
they are. Refuses to own: what the card says (`training.card`), how figures are taken (`gantrain evaluate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from models.errors import InvalidValue
from models.manifest import MANIFEST_FILE
from models.store import Artifact, sha256_of
from training.card import CARD_FILE, card_text, is_own
from training.errors import RunError
from training.files import atomic_file
from training.run_folder import RunFolder
from training.snapshot import load_newest


def renew_card(artifact: Artifact, beside: Sequence[RunFolder] = ()) -> Artifact:
    """Write the card of `artifact` anew, with runs `beside` it in place of those before (none: those stay).

    Raises InvalidValue for runs beside an artifact that no run made, RunError for one without figures, and
    DamagedArtifact where another file than the card is not as published.
    """
    manifest = artifact.manifest
    if beside and not is_own(manifest):
        raise InvalidValue(f"--beside needs an artifact of a run, {artifact.address} was made elsewhere")
    for name in manifest.files:
        if name != CARD_FILE:
            artifact.verified_file(name)
    if beside:
        facts = {**manifest.training, "beside": [compared(run) for run in beside]}
        manifest = replace(manifest, training=facts)
    card = artifact.file(CARD_FILE)
    with atomic_file(card) as file:
        file.write(card_text(manifest).encode())
    manifest = replace(manifest, files={**manifest.files, CARD_FILE: sha256_of(card)})
    with atomic_file(artifact.file(MANIFEST_FILE)) as file:
        file.write(manifest.to_json().encode())
    return Artifact(artifact.path, manifest)


def compared(run: RunFolder) -> dict[str, Any]:
    """What a manifest says of a run that another one is compared with. Raises RunError."""
    snapshot = load_newest(run)
    figures = run.figures_of(snapshot.weights)
    if not figures:
        raise RunError(f"{run.path} has no figures to compare with: take them with gantrain evaluate")
    return {
        "preset": snapshot.config.preset,
        "config": snapshot.config.to_dict(),
        "kimg": snapshot.cur_nimg / 1000,
        "train_s": round(snapshot.state["train_s"], 1),
        "departures": snapshot.state["departures"],
        "metrics": figures,
    }
