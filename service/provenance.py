"""Who made these bytes: the render id, the mark in each image, and its address.

Same *pixels* for (digest, seed, parameters) on one provider class; same *bytes* for the same
render id besides. A mark is an XMP packet: for the world that the image is generated (IPTC's digital
source type), for `ganserve verify` all that it takes to make it again. It holds no time, and no version:
the digest names the graph, and a graph published again under its name keeps its addresses and their bytes.
"""

from __future__ import annotations

import hashlib
import html
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from models.errors import InvalidValue, show
from models.manifest import Manifest, canonical_json, check_name
from models.sampling import MAX_SEED, MAX_TRUNCATION_PSI
from service.encoding import Format, encode_image, encoder_id
from service.rows import MAX_WALK_FRAMES

DIGEST_DIGITS = 12
"""Digits of a digest in an address; 64 in JSON, headers and marks."""

SOURCE_TYPE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's name for "made by a trained model"."""

_NAMESPACE: Final = "urn:x-ganserve:mark/1/"
_NEAR_BYTES: Final = 8192  # a mark's properties stand no further from its namespace
_PROPERTY: Final = re.compile(
    rb"""ganserve:(?P<name>[A-Za-z]{1,20})"""
    rb"""(?:=(?P<quoted>"[^"<>&]{0,128}"|'[^'<>&]{0,128}')|>(?P<element>[^<>&]{0,128})</ganserve:)"""
)

# XMP specification, part 1, 7.1 and 7.3.2; the id is the one that every packet has.
_PACKET_HEAD: Final = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about=""'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    f' xmlns:ganserve="{_NAMESPACE}"'
    f' Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"'
    ' ganserve:model="{model}"'
    ' ganserve:digest="{digest}" ganserve:renderId="{render_id}"'
)
_PACKET_TAIL: Final = '/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'


class Rendering:
    """One artifact as it is rendered here: what names its bytes, and what marks its images.

    Made once a model; `mark` costs about a microsecond an image.
    """

    def __init__(
        self, manifest: Manifest, provider: str, runtime_version: str, marks: bool, arithmetic: str = ""
    ) -> None:
        """`arithmetic`: what else decides the pixels, as `Session.arithmetic`."""
        name = html.escape(manifest.name)
        facts = {
            "encoder": encoder_id(),
            "marks": [_PACKET_HEAD, _PACKET_TAIL, name] if marks else False,
            "provider": provider,
            "runtime": runtime_version,
        }
        if arithmetic:
            facts["arithmetic"] = arithmetic
        self.render_id: str = hashlib.sha256(canonical_json(facts)).hexdigest()[:16]
        """16 hex that name everything besides the digest that could change an image's bytes."""
        self.marks = marks
        self._has_classes = manifest.num_classes > 0
        self.model = manifest.name
        self.version = manifest.version
        self.digest = manifest.digest
        self._head = _PACKET_HEAD.format(model=name, digest=self.digest, render_id=self.render_id).encode()
        self._tail = _PACKET_TAIL.encode()

    def encode(
        self,
        pixels: npt.NDArray[np.uint8],
        fmt: Format,
        seed: int | None,
        class_idx: int,
        truncation_psi: float,
        proposals: int = 1,
    ) -> bytes:
        """One image [H, W, C] uint8 as a marked file; `class_idx` counts where the model has classes."""
        mark = self.mark(seed, class_idx if self._has_classes else None, truncation_psi, proposals)
        return encode_image(pixels, fmt, mark)

    def mark(
        self, seed: int | None, class_idx: int | None, truncation_psi: float, proposals: int = 1
    ) -> bytes | None:
        """The XMP packet of one image; None where marks are off.

        `seed` None: its latents were given. More than one of `proposals`: it was chosen from them by MH.
        """
        if not self.marks:
            return None
        return b'%b%b%b ganserve:truncationPsi="%b"%b%b' % (
            self._head,
            b"" if seed is None else b' ganserve:seed="%d"' % seed,
            b"" if class_idx is None else b' ganserve:classIdx="%d"' % class_idx,
            psi_text(truncation_psi).encode(),
            b"" if proposals <= 1 else b' ganserve:sampler="mh" ganserve:proposals="%d"' % proposals,
            self._tail,
        )

    def walk_mark(
        self, start: int, end: int, frames: int, frame_ms: int, class_idx: int | None, truncation_psi: float
    ) -> bytes | None:
        """The XMP packet of a walk between two seeds. `class_idx` None: each frame that of its nearer end."""
        if not self.marks:
            return None
        return (
            b'%b ganserve:from="%d" ganserve:to="%d" ganserve:frames="%d" ganserve:frameMs="%d"'
            b'%b ganserve:truncationPsi="%b"%b'
        ) % (
            self._head,
            start,
            end,
            frames,
            frame_ms,
            b"" if class_idx is None else b' ganserve:classIdx="%d"' % class_idx,
            psi_text(truncation_psi).encode(),
            self._tail,
        )


@dataclass(frozen=True)
class WalkMark:
    """What names a walk besides its class and psi."""

    start: int
    end: int
    frames: int
    frame_ms: int


@dataclass(frozen=True)
class Mark:
    """What a mark says. Its values are in their ranges; whether they are true only pixels can tell."""

    model: str
    digest: str
    render_id: str
    seed: int | None
    """None where latents were given, and for a walk."""
    class_idx: int | None
    truncation_psi: float
    proposals: int
    """Images that it was chosen from by MH; 1: it is the plain one."""
    walk: WalkMark | None


def read_mark(data: bytes) -> Mark | None:
    """The mark in an image file's bytes, None if there is none. Raises InvalidValue for impossible values.

    Found by our namespace and read by one pattern, in the form that we write and in those of programs
    that wrote the XMP again: no XML parser, so nothing is expanded, and no more than 16 KiB is looked at.
    """
    at = data.find(_NAMESPACE.encode())
    if at < 0:
        return None
    said: dict[str, str] = {}
    for match in _PROPERTY.finditer(data, max(0, at - _NEAR_BYTES), at + _NEAR_BYTES):
        name, value = match["name"].decode(), (match["quoted"] or match["element"] or b"").decode("latin-1")
        if said.setdefault(name, value.strip("\"'")) != value.strip("\"'"):
            raise InvalidValue(f"{name} must be named once, got {show(said[name])} and {show(value)}")
    walk = None
    if "from" in said:
        walk = WalkMark(
            start=_number(said, "from", 0, MAX_SEED),
            end=_number(said, "to", 0, MAX_SEED),
            frames=_number(said, "frames", 2, MAX_WALK_FRAMES),
            frame_ms=_number(said, "frameMs", 10, 10_000),
        )
    return Mark(
        model=check_name(said.get("model")),
        digest=_hex(said, "digest", 64),
        render_id=_hex(said, "renderId", 16),
        seed=_number(said, "seed", 0, MAX_SEED) if "seed" in said else None,
        class_idx=_number(said, "classIdx", 0, 999_999) if "classIdx" in said else None,
        truncation_psi=_psi(said),
        proposals=_number(said, "proposals", 2, 1_024) if said.get("sampler") == "mh" else 1,
        walk=walk,
    )


def _number(said: dict[str, str], name: str, low: int, high: int) -> int:
    text = said.get(name, "")
    if re.fullmatch(r"[0-9]{1,10}", text) is None or not low <= int(text) <= high:
        raise InvalidValue(f"{name} must be an integer between {low} and {high}, got {show(text)}")
    return int(text)


def _hex(said: dict[str, str], name: str, digits: int) -> str:
    text = said.get(name, "")
    if re.fullmatch(rf"[0-9a-f]{{{digits}}}", text) is None:
        raise InvalidValue(f"{name} must be {digits} hexadecimal digits, got {show(text)}")
    return text


def _psi(said: dict[str, str]) -> float:
    text = said.get("truncationPsi", "")
    if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,60})?", text) is None or float(text) > MAX_TRUNCATION_PSI:
        raise InvalidValue(f"truncationPsi must be between 0 and {MAX_TRUNCATION_PSI:g}, got {show(text)}")
    return float(text)


@lru_cache(256)
def psi_text(truncation_psi: float) -> str:
    """The shortest digits that are this float32 again: the rows that run hold no other."""
    shown = truncation_psi + 0.0  # not -0.0, which is 0.0 to the cache
    return np.format_float_positional(np.float32(shown), trim="-")


@dataclass(frozen=True)
class ImageAddress:
    """One image of one artifact, with every parameter resolved: equal addresses, equal bytes."""

    digest: str
    seed: int
    class_idx: int | None
    truncation_psi: float
    fmt: Format
    proposals: int = 1
    """Images that it is chosen from by MH; 1: it is the plain one."""

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
        if self.proposals > 1:
            facts["mh_proposals"] = self.proposals
        return f'"{hashlib.sha256(canonical_json(facts)).hexdigest()[:32]}"'
