"""What an artifact says about itself: `manifest.json`, read, validated and written.

Facts about a model live here; facts about a deployment live in settings. Every value that a
reader depends on is checked when a manifest is read, and a wrong one is a sentence that names
the field, the rule and the value.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Final, Literal

from models.calibration import Calibration
from models.errors import DamagedArtifact, InvalidValue, show
from models.sampling import PRIORS, Prior

SCHEMA_VERSION: Final = 1

GRAPH_FILE: Final = "model.onnx"
DISCRIMINATOR_FILE: Final = "discriminator.onnx"
GOLDEN_FILE: Final = "golden.npz"
MANIFEST_FILE: Final = "manifest.json"
REQUIRED_FILES: Final = (GRAPH_FILE, GOLDEN_FILE)

Truncation = Literal["none", "z", "w"]
TRUNCATIONS: Final[tuple[Truncation, ...]] = ("none", "z", "w")

# A name is a folder, an address and a label: lower case, no separator, never starting with a dot.
NAME_RULE: Final = "1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
MAX_VERSION: Final = 999_999_999
MAX_Z_DIM: Final = 65_536


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The facts of one published generator. Raises InvalidValue when a field breaks its rule."""

    name: str
    """Folder and address of the model."""
    version: int
    """1 or more; an export takes the highest there is plus one."""
    z_dim: int
    """Width of the graph's input `latents` float32 [N, z_dim]."""
    img_height: int
    img_width: int
    img_channels: int
    """1 (grey) or 3 (RGB): the graph's output `images` is uint8 [N, img_height, img_width, img_channels]."""
    num_classes: int = 0
    """0: unconditional. Otherwise the graph has the input `class_idx` int64 [N]."""
    class_names: tuple[str, ...] = ()
    """One name a class, or none."""
    prior: Prior = "normal"
    """What `latents` are drawn from: N(0, 1), or U(-1, 1)."""
    truncation: Truncation = "none"
    """Toward what `truncation_psi` float32 [N] pulls: "z" the zero latent, "w" the mean of w;
    "none": the graph has no such input."""
    files: Mapping[str, str] = field(default_factory=dict)
    """sha256 of every file beside the manifest, by file name."""
    licence: str = ""
    """Licence of the weights, and of the data they learned from."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """How it was trained: resolved config, data set and its digest, kimg, device. Of a module that was
    published what its publisher says; empty if imported."""
    metrics: tuple[Mapping[str, Any], ...] = ()
    """Figures, each with its protocol."""
    export: Mapping[str, Any] = field(default_factory=dict)
    """Opset, precision, largest grey-level difference to torch, tools and versions."""
    sampler: Mapping[str, Any] | None = None
    """Calibration of the discriminator (`Calibration`) and the figures behind it; or, without one, only
    `why_not`. None where the generator came alone."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _integer(self.schema_version, "schema_version", SCHEMA_VERSION, SCHEMA_VERSION)
        check_name(self.name)
        _integer(self.version, "version", 1, MAX_VERSION)
        _integer(self.z_dim, "z_dim", 1, MAX_Z_DIM)
        _integer(self.img_height, "img_height", 1, 8_192)
        _integer(self.img_width, "img_width", 1, 8_192)
        channels_fit = type(self.img_channels) is int and self.img_channels in (1, 3)
        _rule(channels_fit, "img_channels", "1 (grey) or 3 (RGB)", self.img_channels)
        _integer(self.num_classes, "num_classes", 0, 1_000_000)
        _rule(
            len(self.class_names) in (0, self.num_classes)
            and all(isinstance(name, str) for name in self.class_names),
            "class_names",
            f"one name for each of the {self.num_classes} classes, or none",
            list(self.class_names),
        )
        _rule(self.prior in PRIORS, "prior", f"one of {', '.join(PRIORS)}", self.prior)
        _rule(
            self.truncation in TRUNCATIONS, "truncation", f"one of {', '.join(TRUNCATIONS)}", self.truncation
        )
        for file, digest in self.files.items():
            _rule(
                _NAME.fullmatch(file.lower()) is not None and file != MANIFEST_FILE,
                "files",
                "plain names of files beside the manifest",
                file,
            )
            _rule(
                isinstance(digest, str) and _SHA256.fullmatch(digest) is not None,
                f"files[{file}]",
                "64 hexadecimal digits",
                digest,
            )
        _rule(isinstance(self.licence, str), "licence", "text", self.licence)
        _rule(
            all(isinstance(one, Mapping) for one in self.metrics),
            "metrics",
            "a list of objects",
            self.metrics,
        )
        _rule(isinstance(self.sampler, Mapping | None), "sampler", "an object or null", self.sampler)
        _ = self.calibration  # raises where it breaks a rule

    @property
    def img_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.img_height, self.img_width, self.img_channels

    @property
    def graph_inputs(self) -> dict[str, tuple[str, list[int]]]:
        """The graph's inputs by name: (type as ONNX Runtime writes it, sizes after the batch axis)."""
        inputs: dict[str, tuple[str, list[int]]] = {"latents": ("tensor(float)", [self.z_dim])}
        if self.num_classes:
            inputs["class_idx"] = ("tensor(int64)", [])
        if self.has_truncation:
            inputs["truncation_psi"] = ("tensor(float)", [])
        return inputs

    @property
    def graph_outputs(self) -> dict[str, tuple[str, list[int]]]:
        """The graph's one output, in the same form."""
        return {"images": ("tensor(uint8)", list(self.img_shape))}

    @property
    def discriminator_inputs(self) -> dict[str, tuple[str, list[int]]]:
        """The inputs of DISCRIMINATOR_FILE, where there is one, in the same form."""
        inputs: dict[str, tuple[str, list[int]]] = {"images": ("tensor(uint8)", list(self.img_shape))}
        if self.num_classes:
            inputs["class_idx"] = ("tensor(int64)", [])
        return inputs

    @property
    def discriminator_outputs(self) -> dict[str, tuple[str, list[int]]]:
        """Its one output: D's raw logit of each image."""
        return {"realness": ("tensor(float)", [])}

    @cached_property
    def calibration(self) -> Calibration | None:
        """What D's logits mean; None where no discriminator is at work."""
        return None if self.sampler is None else Calibration.from_facts(self.sampler)

    @property
    def why_no_calibration(self) -> str:
        """Why no discriminator is at work, in a sentence, where the artifact says so; else empty."""
        told = "" if self.sampler is None else str(self.sampler.get("why_not", ""))
        uncalibrated = "the model's discriminator has no calibration"
        return told or (uncalibrated if DISCRIMINATOR_FILE in self.files else "")

    @property
    def required_files(self) -> tuple[str, ...]:
        """What the artifact must hold."""
        return REQUIRED_FILES if self.calibration is None else (*REQUIRED_FILES, DISCRIMINATOR_FILE)

    @property
    def has_truncation(self) -> bool:
        return self.truncation != "none"

    @cached_property
    def digest(self) -> str:
        """sha256 (64 hex) over the canonical JSON of all that makes the pixels."""
        facts = {
            "discriminator": self.files.get(DISCRIMINATOR_FILE),
            "graph": self.files.get(GRAPH_FILE),
            "prior": self.prior,
            "sampler": self.sampler,
            "truncation": self.truncation,
        }
        return hashlib.sha256(canonical_json(facts)).hexdigest()

    def to_json(self) -> str:
        """The text of `manifest.json`: sorted keys, two spaces, one newline at the end."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read `manifest.json`. Raises DamagedArtifact for text that is no manifest, or breaks a rule."""
        try:
            facts = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise DamagedArtifact(f"the manifest must be JSON: {error}") from None
        if not isinstance(facts, dict):
            raise DamagedArtifact(f"the manifest must be a JSON object, got {show(facts)}")
        known = {one.name for one in fields(cls)}
        if unknown := sorted(set(facts) - known):
            raise DamagedArtifact(f"the manifest has unknown fields: {', '.join(unknown)}")
        if missing := sorted(
            {"name", "version", "z_dim", "img_height", "img_width", "img_channels"} - set(facts)
        ):
            raise DamagedArtifact(f"the manifest lacks the fields: {', '.join(missing)}")
        for key in ("class_names", "metrics"):
            if key in facts:
                _container(facts, key, list)
                facts[key] = tuple(facts[key])
        for key in ("files", "training", "export"):
            if key in facts:
                _container(facts, key, dict)
        try:
            return cls(**facts)
        except InvalidValue as error:
            raise DamagedArtifact(f"the manifest is not valid: {error}") from None


def check_name(name: object) -> str:
    """Return `name` if it may be a model's name, or raise InvalidValue."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None or ".." in name:
        raise InvalidValue(f"name must be {NAME_RULE}, got {show(name)}")
    return name


def canonical_json(value: object) -> bytes:
    """JSON that two programs write alike: sorted keys, no spaces, ASCII."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _rule(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        raise InvalidValue(f"{name} must be {rule}, got {show(value)}")


def _integer(value: object, name: str, low: int, high: int) -> None:
    holds = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    _rule(holds, name, str(low) if low == high else f"an integer between {low} and {high}", value)


def _container(facts: dict[str, Any], key: str, kind: type) -> None:
    if not isinstance(facts[key], kind):
        wanted = "a list" if kind is list else "an object"
        raise DamagedArtifact(f"the manifest is not valid: {key} must be {wanted}, got {show(facts[key])}")
