"""Who made these bytes: the render id, and the names under which an image can be asked for again.

Same *pixels* for (digest, seed, parameters) on one provider class; same *bytes* for the same
render id besides.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from models.manifest import canonical_json
from service.encoding import Format, encoder_id

DIGEST_DIGITS = 12
"""Digits of a digest in an address; 64 in JSON, headers and marks."""


def render_id(provider: str, runtime_version: str) -> str:
    """16 hex that name everything besides the artifact that could change an image's bytes."""
    facts = {"encoder": encoder_id(), "marks": False, "provider": provider, "runtime": runtime_version}
    return hashlib.sha256(canonical_json(facts)).hexdigest()[:16]


@dataclass(frozen=True)
class ImageAddress:
    """One image of one artifact, with every parameter resolved: equal addresses, equal bytes."""

    digest: str
    seed: int
    class_idx: int | None
    truncation_psi: float
    fmt: Format

    def etag(self, render: str) -> str:
        """A strong ETag, known before any device work."""
        facts = {
            "class_idx": self.class_idx,
            "digest": self.digest,
            "format": self.fmt,
            "render": render,
            "seed": self.seed,
            "truncation_psi": self.truncation_psi,
        }
        return f'"{hashlib.sha256(canonical_json(facts)).hexdigest()[:32]}"'
