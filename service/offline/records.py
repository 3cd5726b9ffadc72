"""What is done: a receipt for each finished shard, and at last `manifest.json`, which says that all are.

A receipt is written when a shard's files are under their names, the manifest when every shard has its
receipt: whichever process finds that writes it, and whoever writes it writes the same. Then nothing is
left below `.ganserve/`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from models.errors import InvalidValue, show
from service.offline.errors import OtherJob
from service.offline.job import Job, shard_name, to_text
from service.offline.places import OWN_FOLDER, Place, claim_text, put_text

MANIFEST_NAME: Final = "manifest.json"
METADATA_NAME: Final = "metadata.jsonl"
SEEDS_NAME: Final = "seeds.csv"
SCHEMA_VERSION: Final = 1

_JOB_NAME: Final = "job.json"
_RECEIPTS: Final = f"{OWN_FOLDER}/receipts"
_RECEIPT: Final = re.compile(r"shard-(\d{5,9})\.json", re.ASCII)
_CHUNK_BYTES: Final = 1 << 20
_STEPS: Final = 10_000  # as fine as realness is told
_REALNESS: Final = re.compile(r"\d{1,5}( \d{1,5})*", re.ASCII)


SizeOf = Callable[[str], int | None]


class GoldenDifference(NamedTuple):
    """By how much golden rows come out otherwise on a machine."""

    levels: int
    """The largest grey-level difference; 0: bit-exact."""
    logits: float = 0.0
    """The largest difference of D's logits, where D has a part in the set."""

    def __str__(self) -> str:
        return f"{self.levels} grey levels" + (f" and {self.logits:g} of a logit" if self.logits else "")


@dataclass(frozen=True)
class Receipt:
    """What a finished shard's files are."""

    images: int
    bytes: int
    """Of all its files together."""
    sha256: str
    """64 hex, over its files one after the other."""
    golden_difference: int
    """The largest grey-level difference of golden rows where it was made; 0: bit-exact."""
    realness_difference: float = 0.0
    """That of D's logits, told where they differ."""
    realness: str | None = None
    """Of each of its rows, those left out among them, in ten-thousandths with spaces between: what files and
    `metadata.jsonl` follow from. None where D has no part in that."""

    @classmethod
    def of(
        cls,
        images: int,
        files: Sequence[Path],
        difference: GoldenDifference,
        realness: npt.NDArray[np.float64] | None = None,
    ) -> Receipt:
        """The receipt of local files; `realness` [rows] of its rows."""
        total = sum(file.stat().st_size for file in files)
        digest = _sha256(file.open("rb") for file in files)
        told = None if realness is None else " ".join(map(str, np.rint(_STEPS * realness).astype(int)))
        return cls(images, total, digest, *difference, told)

    @property
    def difference(self) -> GoldenDifference:
        return GoldenDifference(self.golden_difference, self.realness_difference)

    def realness_of_rows(self) -> npt.NDArray[np.float64] | None:
        """[rows], as D told it."""
        return None if self.realness is None else np.array(self.realness.split(), dtype=np.float64) / _STEPS

    def rows_kept(self, min_realness: float | None) -> npt.NDArray[np.int64] | None:
        """The places of the shard's rows that are in its files; None: of all."""
        if min_realness is None or (realness := self.realness_of_rows()) is None:
            return None
        return np.flatnonzero(realness >= min_realness)

    def to_facts(self) -> dict[str, Any]:
        facts = asdict(self)
        return {name: value for name, value in facts.items() if name not in _UNTOLD or value != _UNTOLD[name]}

    @classmethod
    def from_facts(cls, facts: Any) -> Receipt:
        """Raises InvalidValue."""
        wanted = {one.name for one in fields(cls)} - set(_UNTOLD)
        if not isinstance(facts, dict) or not wanted <= set(facts):
            raise InvalidValue(f"a receipt must name images, bytes and sha256, got {show(facts)}")
        told = _UNTOLD | facts
        receipt = cls(**{name: told[name] for name in wanted | set(_UNTOLD)})
        realness = receipt.realness
        if realness is not None and not (isinstance(realness, str) and _REALNESS.fullmatch(realness)):
            raise InvalidValue(f"a receipt's realness must be ten-thousandths, got {show(realness)}")
        if any(type(one) is not int for one in (receipt.images, receipt.bytes, receipt.golden_difference)):
            raise InvalidValue(f"a receipt's counts must be integers, got {show(facts)}")
        if type(receipt.realness_difference) is not float:
            raise InvalidValue(f"a receipt's realness_difference must be a number, got {show(facts)}")
        return receipt


_UNTOLD: Final[dict[str, Any]] = {"realness_difference": 0.0, "realness": None}
"""What a receipt does not say, since it goes without saying."""


@dataclass(frozen=True)
class Metadata:
    """What the file of the rows' facts is, where a set has one."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Sealed:
    """What the manifest of a complete set says."""

    job: Job
    receipts: list[Receipt]
    metadata: Metadata | None
    counts: dict[str, Any]
    """How many images and bytes it says there are, and how many images were rejected."""


def counts_of(job: Job, receipts: Sequence[Receipt]) -> dict[str, int]:
    """What a manifest says of all shards together."""
    images = sum(one.images for one in receipts)
    rejected = {} if job.min_realness is None else {"rejected": job.images - images}
    return {"images": images, **rejected, "bytes": sum(one.bytes for one in receipts)}


def _sha256(files: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for opened in files:
        with opened as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


class Records:
    """What a place says of one job."""

    def __init__(self, place: Place) -> None:
        self.place = place

    # -- the job ----------------------------------------------------------------------------------

    def job(self) -> Job | None:
        """The job that is at work here, None if there is none. Raises OtherJob for what is no job."""
        data = self.place.read(f"{OWN_FOLDER}/{_JOB_NAME}")
        return None if data is None else self._job(data, _JOB_NAME)

    def claim(self, job: Job) -> None:
        """Have the place hold `job`, if it holds none. Raises OtherJob if it holds another."""
        self.check(job)
        claim_text(self.place, _JOB_NAME, to_text(job.to_facts()), OWN_FOLDER)
        self.check(job)  # another may have come first

    def check(self, job: Job) -> Sealed | None:
        """What the manifest says, None while there is none. Raises OtherJob if another job is here."""
        sealed = self.manifest()
        held = sealed.job if sealed else self.job()
        if held is not None and (changes := job.differences(held)):
            raise OtherJob(f"{self.place} holds another job: {'; '.join(changes)}")
        return sealed

    def _job(self, data: bytes, name: str) -> Job:
        try:
            facts = json.loads(data)
            return Job.from_facts(facts["job"] if name == MANIFEST_NAME else facts)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise OtherJob(f"{self.place} holds a {name} that is not ours: {error}") from None

    # -- shards -----------------------------------------------------------------------------------

    def put_receipt(self, shard: int, receipt: Receipt) -> None:
        put_text(self.place, f"{shard_name(shard)}.json", to_text(receipt.to_facts()), _RECEIPTS)

    def receipts(self) -> set[int]:
        """The shards that have a receipt of their own."""
        found = (_RECEIPT.fullmatch(name) for name in self.place.names(_RECEIPTS))
        return {int(match[1]) for match in found if match}

    def receipt(self, shard: int) -> Receipt | None:
        """A shard's own receipt, None where there is none or it cannot be read."""
        data = self.place.read(f"{_RECEIPTS}/{shard_name(shard)}.json")
        try:
            return None if data is None else Receipt.from_facts(json.loads(data))
        except (ValueError, RecursionError):
            return None

    def golden_difference(self) -> GoldenDifference | None:
        """That of a shard that is there, None where none is."""
        for shard in self.receipts():
            if receipt := self.receipt(shard):
                return receipt.difference
        sealed = self.manifest()
        return sealed.receipts[0].difference if sealed else None

    def has_sizes(self, receipt: Receipt, files: Iterable[str], size_of: SizeOf) -> bool:
        """Whether a shard's files are there and together as large as its receipt says."""
        total = 0
        for name in files:
            size = size_of(name)
            if size is None:
                return False
            total += size
        return total == receipt.bytes

    def is_whole(self, receipt: Receipt, files: Sequence[str], size_of: SizeOf) -> bool:
        """Whether a shard's files are what its receipt says, to the last bit."""
        if not self.has_sizes(receipt, files, size_of):
            return False
        return _sha256(self.place.open(name) for name in files) == receipt.sha256

    # -- the whole --------------------------------------------------------------------------------

    def manifest(self) -> Sealed | None:
        """What the manifest says, None while there is none. Raises OtherJob for one that is not ours."""
        data = self.place.read(MANIFEST_NAME)
        if data is None:
            return None
        job = self._job(data, MANIFEST_NAME)
        try:
            facts = json.loads(data)
            receipts = [Receipt.from_facts(one) for one in facts["shards"]]
            described = facts["metadata"]
            metadata = described and Metadata(int(described["bytes"]), str(described["sha256"]))
        except (KeyError, TypeError, ValueError) as error:
            raise OtherJob(f"{self.place} holds a {MANIFEST_NAME} that is not ours: {error}") from None
        if len(receipts) != job.shards:
            raise OtherJob(
                f"{self.place} holds a {MANIFEST_NAME} that is not ours: "
                f"its job has {job.shards} shards, it lists {len(receipts)}"
            )
        counts = {name: facts[name] for name in ("images", "rejected", "bytes") if name in facts}
        return Sealed(job, receipts, metadata, counts)

    def is_metadata(self, metadata: Metadata) -> bool:
        """Whether the file of the rows' facts is what the manifest says."""
        if self.place.size(METADATA_NAME) != metadata.bytes:
            return False
        return _sha256([self.place.open(METADATA_NAME)]) == metadata.sha256

    def put_manifest(self, job: Job, receipts: Sequence[Receipt], metadata: Metadata | None) -> None:
        """Say that the set is complete, and tidy up."""
        shards = []
        for number, receipt in enumerate(receipts):
            rows = job.rows_of(number)
            where = {"file": name} if (name := job.file_of(number)) else {"rows": [rows.start, rows.stop]}
            shards.append({**where, **receipt.to_facts()})
        facts = {
            "schema_version": SCHEMA_VERSION,
            "job": job.to_facts(),
            **counts_of(job, receipts),
            "metadata": metadata and {"file": METADATA_NAME, **asdict(metadata)},
            "shards": shards,
        }
        put_text(self.place, MANIFEST_NAME, to_text(facts))
        self.place.tidy()
