"""What is to be made. A job and its shards are a pure function of seeds, parameters, model and format.

No time, no machine and no path is part of it, so a run that begins again, or runs elsewhere, makes the
same files; two jobs that differ in a field make different ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, get_args

from models.errors import InvalidValue, show

SetFormat = Literal["png", "jpg", "webp", "npy", "npz", "webdataset", "zip", "parquet"]
"""What a set is: a folder of images (png, jpg, webp), or shards of one file each."""
ImageFormat = Literal["png", "jpg", "webp", "raw"]
"""What an image is inside a set; raw: its pixels, uint8."""

SET_FORMATS: Final[tuple[SetFormat, ...]] = get_args(SetFormat)
IMAGE_FORMATS: Final[tuple[ImageFormat, ...]] = get_args(ImageFormat)
SHARD_SUFFIXES: Final[dict[SetFormat, str]] = {
    "npy": "npy",
    "npz": "npz",
    "webdataset": "tar",
    "zip": "zip",
    "parquet": "parquet",
}
"""Endings of the formats whose shards are one file; of the others each image is a file."""

MAX_SHARD_SIZE: Final = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that decides the bytes of a set."""

    model: str
    """The model's name, which marks carry."""
    digest: str
    """64 hex of all that makes the pixels."""
    render_id: str
    """What else could change an image's bytes: provider, runtime, encoder, marks."""
    marks: bool
    """Whether each image says what it is."""
    seeds: str
    """Range text, or `seeds.csv:` and the sha256 of that file."""
    images: int
    """How many rows there are."""
    class_idx: int | str | None
    """The rule: a class, "balanced", "random", "column"; None: seed % num_classes."""
    truncation_psi: float | str | None
    """One for all, or "column"."""
    format: SetFormat
    image_format: ImageFormat
    shard_size: int
    """Images a shard; the last may hold fewer."""
    writer: str | None
    """The library and version that lays out the file, where that is none of ours."""
    signed: bool
    """Signed files are never the same twice."""
    proposals: int = 1
    """Images that each is chosen from, by the sampler mh; 1: plain."""
    realness: bool = False
    """Whether the set tells how real each image is."""
    min_realness: float | None = None
    """Images that are less real are left out."""

    @property
    def is_judged(self) -> bool:
        """Whether D says how real each image is."""
        return self.realness or self.min_realness is not None

    @property
    def chosen_facts(self) -> dict[str, Any]:
        """How the images of the set were chosen, where they are not each row's own; else nothing."""
        chosen: dict[str, Any] = {"sampler": "mh", "proposals": self.proposals} if self.proposals > 1 else {}
        return chosen if self.min_realness is None else {**chosen, "min_realness": self.min_realness}

    @property
    def has_metadata(self) -> bool:
        """Whether a file beside the shards says what each image is, since theirs do not."""
        return self.format not in SHARD_SUFFIXES or self.format == "npy"

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.images // self.shard_size)

    def rows_of(self, shard: int) -> range:
        """The rows of one shard."""
        return range(shard * self.shard_size, min(self.images, (shard + 1) * self.shard_size))

    def file_of(self, shard: int) -> str | None:
        """The name of a shard's file; None where each image is a file of its own."""
        suffix = SHARD_SUFFIXES.get(self.format)
        return None if suffix is None else f"{shard_name(shard)}.{suffix}"

    def to_facts(self) -> dict[str, Any]:
        """What the job says; of D only where it has something to do."""
        facts = asdict(self)
        return {name: value for name, value in facts.items() if name not in _PLAIN or value != _PLAIN[name]}

    @classmethod
    def from_facts(cls, facts: object) -> Job:
        """Read what `to_facts` gave. Raises InvalidValue for what no job says."""
        names = {one.name for one in fields(cls)}
        if not isinstance(facts, dict) or not names - set(_PLAIN) <= set(facts) <= names:
            raise InvalidValue(f"a job must have its fields, and no others, got {show(facts)}")
        job = cls(**facts)
        whole = [job.images, job.shard_size]
        if (
            any(type(one) is not int or one < 1 for one in whole)
            or not all(isinstance(text, str) for text in (job.model, job.digest, job.seeds))
            or (type(job.proposals), type(job.realness)) != (int, bool)
            or not isinstance(job.min_realness, float | None)
            or job.format not in SET_FORMATS
            or job.image_format not in IMAGE_FORMATS
        ):
            raise InvalidValue(f"a job's fields must be as they were written, got {show(facts)}")
        return job

    def differences(self, earlier: Job) -> list[str]:
        """What differs from an earlier job, a few words a field."""
        now, was = asdict(self), asdict(earlier)
        return [
            f"{name} was {show(was[name])} and is {show(now[name])} now"
            for name in now
            if now[name] != was[name]
        ]


_PLAIN: Final[dict[str, object]] = {"proposals": 1, "realness": False, "min_realness": None}
"""What a job says of D where it has nothing to do, and so leaves out."""


def shard_name(shard: int) -> str:
    """`shard-00007`"""
    return f"shard-{shard:05d}"


def to_text(facts: Mapping[str, Any]) -> bytes:
    """JSON as all our files have it: two spaces, one newline at the end."""
    return (json.dumps(facts, indent=2, allow_nan=False) + "\n").encode()
