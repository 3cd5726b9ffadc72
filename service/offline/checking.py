"""The check of a whole set: every file hashed, and a random share of the shards made again.

What a set is it says itself, in its manifest; the model comes from the store, by its digest.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from models.errors import DamagedArtifact, UnknownModel, show
from models.store import Artifact, Store
from service.device import Accelerator
from service.offline.errors import OtherJob
from service.offline.formats import library_of
from service.offline.job import Job
from service.offline.making import Maker, Order, source_of
from service.offline.places import Place, open_place
from service.offline.records import MANIFEST_NAME, METADATA_NAME, Receipt, Records, Sealed, SizeOf, counts_of
from service.offline.sampling import files_of
from service.offline.sources import RowSource
from service.settings import usable_cpus


@dataclass(frozen=True)
class Found:
    """What a check found."""

    shards: int
    images: int
    remade: int
    """Shards that were made again and compared."""
    damaged: list[str]
    """A sentence for each shard that is not what it should be."""


def held_job(place: Place, store: Store) -> tuple[Job, Artifact, RowSource]:
    """The job of a place, its model and its rows. Raises OtherJob where there is none, UnknownModel."""
    records = Records(place)
    sealed = records.manifest()
    job = sealed.job if sealed else records.job()
    if job is None:
        raise OtherJob(f"{place} must hold a set that ganserve sample made, and holds none")
    artifact = _artifact(store, job)
    return job, artifact, source_of(job, artifact.manifest, place)


def check(
    out: str, store: Store, accelerator: Accelerator = "cpu", threads: int = 1, remade_share: float = 0.01
) -> Found:
    """Hash every shard of a complete set, and make a random share of them (one at least) again.

    Raises OtherJob where there is no complete set, UnknownModel where the store lacks its model.
    """
    place = open_place(out)
    records = Records(place)
    job, artifact, source = held_job(place, store)
    sealed = records.manifest()
    if sealed is None:
        raise OtherJob(f"{place} must hold a complete set, and its {MANIFEST_NAME} is not there yet")
    size_of = place.sizes()
    damaged = [
        f"{_shard_text(job, shard)} is not what {MANIFEST_NAME} says"
        for shard, receipt in enumerate(sealed.receipts)
        if not records.is_whole(receipt, files_of(job, source, shard, receipt), size_of)
    ]
    damaged += _miscounted(sealed)
    damaged += _not_of_the_set(job, source, sealed.receipts, size_of)
    if sealed.metadata is not None and not records.is_metadata(sealed.metadata):
        damaged.append(f"{METADATA_NAME} is not what {MANIFEST_NAME} says")
    chosen: list[int] = []
    if not job.signed:
        count = max(1, round(remade_share * job.shards))
        chosen = sorted(random.SystemRandom().sample(range(job.shards), count))
        damaged += _remake(sealed, chosen, source, artifact, out, store, accelerator, threads)
    return Found(job.shards, sum(one.images for one in sealed.receipts), len(chosen), damaged)


def _miscounted(sealed: Sealed) -> list[str]:
    """A sentence for each count of the manifest that its rows, or its shards, contradict."""
    job, wrong = sealed.job, []
    for shard, receipt in enumerate(sealed.receipts):
        kept = receipt.rows_kept(job.min_realness)
        if kept is None and job.min_realness is not None:
            continue  # only the file knows: the sum of all, below, is all that is told
        images = len(job.rows_of(shard)) if kept is None else len(kept)
        if receipt.images != images:
            said = f"{MANIFEST_NAME} says {show(receipt.images)}"
            wrong.append(f"{_shard_text(job, shard)} has {images} images, {said}")
    counts = counts_of(job, sealed.receipts)
    for name in sorted(counts | sealed.counts):
        if (told := sealed.counts.get(name)) != (count := counts.get(name)):
            found = "nothing" if count is None else count
            wrong.append(f"{MANIFEST_NAME} says {name} {show(told)}, and its shards say {found}")
    return wrong


def _not_of_the_set(
    job: Job, source: RowSource, receipts: Sequence[Receipt], size_of: SizeOf
) -> Iterator[str]:
    """A sentence for each image file of a row that was left out."""
    if job.min_realness is None or job.file_of(0) is not None:
        return
    for shard, receipt in enumerate(receipts):
        rows, files = job.rows_of(shard), set(files_of(job, source, shard, receipt))
        for name in source.names(rows.start, rows.stop):
            file = f"{name}.{job.image_format}"
            if file not in files and size_of(file) is not None:
                yield f"{file} is there, and its image was rejected"


def _remake(
    sealed: Sealed,
    shards: Sequence[int],
    source: RowSource,
    artifact: Artifact,
    out: str,
    store: Store,
    accelerator: Accelerator,
    threads: int,
) -> list[str]:
    """Make shards again, apart; return a sentence for each that is not what its receipt says."""
    job = sealed.job
    order = Order(
        job=job,
        out=out,
        store=store.root,
        address=artifact.address,
        accelerator=accelerator,
        threads=threads,
        encoders=usable_cpus(),
        marks=job.marks,
        sign_files=None,
    )
    wrong = []

    def compare(images: int, finished: tuple[int, Receipt] | None) -> None:
        if finished is None:
            return
        (shard, made), held = finished, sealed.receipts[finished[0]]
        if (made.sha256, made.images, made.realness) != (held.sha256, held.images, held.realness):
            wrong.append(f"{_shard_text(job, shard)} comes out otherwise when it is made again")

    maker = Maker(order, source=source)
    rendered = maker.generator.rendering.render_id
    if rendered != job.render_id or library_of(job.format) != job.writer:
        raise OtherJob(
            f"{out} was rendered as {job.render_id} ({job.writer or 'no library'}), here it would be as "
            f"{rendered} ({library_of(job.format) or 'no library'}): bytes cannot be compared"
        )
    maker.make_all(shards, compare, keep=False)
    return wrong


def _artifact(store: Store, job: Job) -> Artifact:
    """The version that has the job's digest. Raises UnknownModel."""
    for version in reversed(store.versions(job.model)):
        with suppress(DamagedArtifact):
            artifact = store.resolve(f"{job.model}:{version}")
            if artifact.digest == job.digest:
                artifact.verify()
                return artifact
    raise UnknownModel(f"the store {store.root} has no {job.model} of digest {job.digest[:12]}")


def _shard_text(job: Job, shard: int) -> str:
    return (
        job.file_of(shard) or f"shard {shard} (rows {job.rows_of(shard).start}-{job.rows_of(shard).stop - 1})"
    )
