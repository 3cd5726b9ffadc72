"""One run of `ganserve sample`: what is there is kept, what lacks is made, what is complete is sealed.

Many runs may work on one job at once, each on its share of the shards: nothing tells them what to do but
the job itself, and whichever finds that all shards are there writes the manifest.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Final

import numpy as np

from models.errors import InvalidValue, show
from models.store import Artifact, sha256_of
from service.device import Accelerator
from service.errors import StartError
from service.offline.errors import OtherJob, WorkerDied
from service.offline.formats import library_of, row_facts
from service.offline.job import ImageFormat, Job, SetFormat
from service.offline.making import Maker, Order, work
from service.offline.places import (
    Place,
    open_place,
    put_text,
    remove_stale_scratch,
    scratch,
    sentences,
)
from service.offline.progress import Progress, Style
from service.offline.records import (
    METADATA_NAME,
    SEEDS_NAME,
    GoldenDifference,
    Metadata,
    Receipt,
    Records,
    Sealed,
    SizeOf,
)
from service.offline.sources import RowSource, SeedTable
from service.provenance import Rendering
from service.session import arithmetic_of, check_runtime, provider_of
from service.settings import SignFiles, usable_cpus, usable_gpus

INDEX_VARIABLE: Final = "JOB_COMPLETION_INDEX"
"""Where Kubernetes tells a pod of an Indexed Job which one it is."""

_SHARE: Final = re.compile(r"(\d{1,9})?/(\d{1,9})", re.ASCII)
_METADATA_ROWS: Final = 4096
_ENDS_WITHIN_S: Final = 10.0


@dataclass(frozen=True)
class Share:
    """Which shards are ours: those whose number is `index` modulo `of`."""

    index: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> Share:
        """Read `i/N`, or `/N` with i from JOB_COMPLETION_INDEX. Raises InvalidValue."""
        match = _SHARE.fullmatch(text)
        if match is None or not int(match[2]):
            raise InvalidValue(f"shards must be i/N with i from 0 to N-1, or /N, got {show(text)}")
        index, of = match[1], int(match[2])
        if index is None:
            index = environment.get(INDEX_VARIABLE, "")
            if re.fullmatch(r"\d{1,9}", index, re.ASCII) is None:
                raise InvalidValue(
                    f"shards /{of} takes i from {INDEX_VARIABLE}, which must be a number, got {show(index)}"
                )
        if not int(index) < of:
            raise InvalidValue(f"shards must be i/N with i from 0 to N-1, got {index}/{of}")
        return cls(int(index), of)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for."""

    store: Path
    artifact: Artifact
    source: RowSource
    out: str
    format: SetFormat = "png"
    image_format: ImageFormat = "png"
    shard_size: int = 1000
    share: Share = Share()
    marks: bool = True
    sign_files: SignFiles | None = None
    accelerator: Accelerator = "cpu"
    threads: int = 1
    workers: int | None = None
    """Processes a device; None: CPUs on the CPU, 1 on cuda."""
    realness: bool = False
    """Whether the set tells how real each image is."""
    min_realness: float | None = None
    """Images that are less real are left out; `source` must have their realness told."""


@dataclass(frozen=True)
class Outcome:
    """What a run did."""

    made: int
    """Images made now."""
    kept: int
    """Images of our shards that were there before."""
    complete: bool
    """Whether every shard of the job is there, and the manifest."""
    rejected: int = 0
    """Images of our shards that were not real enough."""


def job_of(request: Request) -> Job:
    """The job that is asked for. Raises StartError for a library or a runtime that is not installed."""
    source, manifest = request.source, request.artifact.manifest
    table = source.seeds if isinstance(source.seeds, SeedTable) else None
    runtime, provider = check_runtime(request.accelerator), provider_of(request.accelerator)
    rendering = Rendering(manifest, provider, runtime, request.marks, arithmetic_of(request.accelerator))
    has_column = {
        "class_idx": table is not None and table.class_idx is not None,
        "truncation_psi": table is not None and table.truncation_psi is not None,
    }
    return Job(
        model=manifest.name,
        digest=manifest.digest,
        render_id=rendering.render_id,
        marks=request.marks,
        seeds=str(source.seeds) if table is None else f"{SEEDS_NAME}:{table.sha256}",
        images=len(source),
        class_idx="column" if has_column["class_idx"] else source.class_idx,
        truncation_psi="column" if has_column["truncation_psi"] else _psi(source.truncation_psi),
        format=request.format,
        image_format=request.image_format,
        shard_size=request.shard_size,
        writer=library_of(request.format),
        signed=request.sign_files is not None,
        proposals=1 if source.judging is None else source.judging.proposals,
        realness=request.realness,
        min_realness=request.min_realness,
    )


def _psi(truncation_psi: float | None) -> float:
    return 1.0 if truncation_psi is None else truncation_psi + 0.0


def sample(request: Request, style: Style = "lines") -> Outcome:
    """Make what lacks of the job's shards that are ours; seal the set when all shards are there.

    Raises OtherJob where the place holds another job, PlaceLost, DiskFull, WorkerDied, StartError.
    """
    job, source, place = job_of(request), request.source, open_place(request.out)
    records = Records(place)
    sealed = records.check(job)
    ours = range(request.share.index, job.shards, request.share.of)
    size_of = place.sizes()
    if sealed and _has_sizes(records, sealed, source, ours, size_of):
        place.tidy()
        return _outcome(records, job, [], ours, True)

    remove_stale_scratch(place)
    if isinstance(source.seeds, SeedTable):
        _put_seeds(records, job, source.seeds)
    else:
        records.claim(job)
    known = _known(records, sealed)
    todo = [
        shard
        for shard in ours
        if (receipt := known(shard)) is None
        or not records.is_whole(receipt, files_of(job, source, shard, receipt), size_of)
    ]
    progress = Progress(style, _rows(job, ours), len(ours))
    progress.keep(_rows(job, ours) - _rows(job, todo), len(ours) - len(todo))
    if todo:
        _make(request, job, todo, progress, records.golden_difference())
    progress.end()
    complete = seal(place, source)
    return _outcome(records, job, todo, ours, complete)


def _put_seeds(records: Records, job: Job, table: SeedTable) -> None:
    """Claim the place and have it hold the seeds. Raises OtherJob, also for a seeds.csv of other seeds."""
    place = records.place
    held = place.read(SEEDS_NAME)
    if held not in (None, table.csv):
        raise OtherJob(f"{place} holds another {SEEDS_NAME}: give another folder, or move it away")
    records.claim(job)
    if held is None:
        put_text(place, SEEDS_NAME, table.csv)


def seal(place: Place, source: RowSource) -> bool:
    """Write the manifest if every shard of the place's job is there; return whether the set is complete.

    Raises OtherJob if its shards come from machines that make different pixels.
    """
    records = Records(place)
    sealed, job = records.manifest(), records.job()
    if job is None or (sealed is None and len(records.receipts()) < job.shards):
        # Another may have sealed it, and tidied up, meanwhile.
        if complete := sealed is not None or records.manifest() is not None:
            place.tidy()
        return complete
    known = _known(records, sealed)
    receipts = [receipt for shard in range(job.shards) if (receipt := known(shard)) is not None]
    if len(receipts) < job.shards:
        return records.manifest() is not None
    differences = sorted({receipt.difference for receipt in receipts})
    if len(differences) > 1:
        raise OtherJob(
            f"{place} holds shards of machines that differ: golden rows are off by {differences[0]} "
            f"on one, by {differences[-1]} on another"
        )
    records.put_manifest(job, receipts, _put_metadata(place, job, source, receipts))
    return True


def files_of(job: Job, source: RowSource, shard: int, receipt: Receipt) -> list[str]:
    """The names of a shard's files."""
    rows, file = job.rows_of(shard), job.file_of(shard)
    if file is not None:
        return [file]
    names, kept = source.names(rows.start, rows.stop), receipt.rows_kept(job.min_realness)
    if kept is not None:
        names = [names[row] for row in kept if row < len(names)]
    return [f"{name}.{job.image_format}" for name in names]


def _known(records: Records, sealed: Sealed | None) -> Callable[[int], Receipt | None]:
    """The function that gives a shard's receipt: its own, which is newer, or the manifest's."""
    own = records.receipts()

    def known(shard: int) -> Receipt | None:
        receipt = records.receipt(shard) if shard in own else None
        return receipt or (sealed.receipts[shard] if sealed else None)

    return known


def _has_sizes(
    records: Records, sealed: Sealed, source: RowSource, shards: Sequence[int], size_of: SizeOf
) -> bool:
    """Whether all files are there and as large as the manifest says."""
    metadata = sealed.metadata
    return (metadata is None or size_of(METADATA_NAME) == metadata.bytes) and all(
        records.has_sizes(receipt, files_of(sealed.job, source, shard, receipt), size_of)
        for shard in shards
        for receipt in [sealed.receipts[shard]]
    )


def _rows(job: Job, shards: Sequence[int]) -> int:
    return sum(len(job.rows_of(shard)) for shard in shards)


def _outcome(records: Records, job: Job, made: Sequence[int], ours: Sequence[int], complete: bool) -> Outcome:
    """What there is of our shards, of which `made` were made now."""
    made_rows, rows = _rows(job, made), _rows(job, ours)
    if job.min_realness is None:
        return Outcome(made_rows, rows - made_rows, complete)
    known, now = _known(records, records.manifest()), set(made)
    images = {shard: receipt.images for shard in ours if (receipt := known(shard)) is not None}
    made_images = sum(count for shard, count in images.items() if shard in now)
    total = sum(images.values())
    return Outcome(made_images, total - made_images, complete, rows - total)


def _put_metadata(place: Place, job: Job, source: RowSource, receipts: Sequence[Receipt]) -> Metadata | None:
    """Where files do not say it themselves, say what each image is: a line an image, in their order.

    Named as Hugging Face's image folders want it.
    """
    if not job.has_metadata:
        return None
    with scratch(place.scratch_root) as folder, sentences(METADATA_NAME, folder):
        path = folder / METADATA_NAME
        with path.open("w", encoding="ascii") as file:
            for shard, receipt in enumerate(receipts):
                for at, (name, fact) in enumerate(_facts_of(job, source, shard, receipt)):
                    where = (
                        {"file_name": f"{name}.{job.image_format}"}
                        if job.format != "npy"
                        else {"file": job.file_of(shard), "row": at}
                    )
                    file.write(json.dumps(where | fact) + "\n")
        metadata = Metadata(path.stat().st_size, sha256_of(path))
        place.put([path])
    return metadata


def _facts_of(
    job: Job, source: RowSource, shard: int, receipt: Receipt
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and facts of each image that is in a shard."""
    within, realness = job.rows_of(shard), receipt.realness_of_rows()
    kept = receipt.rows_kept(job.min_realness)
    is_kept = np.ones(len(within), dtype=bool) if kept is None else np.isin(np.arange(len(within)), kept)
    for start in range(within.start, within.stop, _METADATA_ROWS):
        stop = min(start + _METADATA_ROWS, within.stop)
        here = slice(start - within.start, stop - within.start)
        told = None if realness is None else realness[here]
        facts = row_facts(job, source.manifest, source.rows(start, stop), told)
        rows = zip(source.names(start, stop), facts, is_kept[here], strict=True)
        yield from ((name, fact) for name, fact, in_it in rows if in_it)


# -- processes ------------------------------------------------------------------------------------


def _make(
    request: Request, job: Job, shards: Sequence[int], progress: Progress, there: GoldenDifference | None
) -> None:
    """Make `shards`, here or in processes of their own.

    `there`: by how much golden rows are off of the shards that are there; None where there are none.
    """
    devices = usable_gpus() if request.accelerator == "cuda" else 1
    if not devices:
        raise StartError("accelerator cuda was asked for, but no such device is to be seen")
    a_device = request.workers or (1 if request.accelerator == "cuda" else usable_cpus())
    processes = min(devices * a_device, len(shards))
    order = Order(
        job=job,
        out=request.out,
        store=request.store,
        address=request.artifact.address,
        accelerator=request.accelerator,
        threads=request.threads,
        encoders=max(1, usable_cpus() // processes),
        marks=request.marks,
        sign_files=request.sign_files,
    )

    def ready(found: GoldenDifference) -> None:
        if there not in (None, found):
            raise OtherJob(
                f"{request.out} holds shards of a machine that differs: golden rows were off by "
                f"{there} there, and are off by {found} here"
            )

    def tell(images: int, finished: tuple[int, Receipt] | None) -> None:
        progress.made(images, int(finished is not None))

    if processes == 1:
        maker = Maker(order, source=request.source)
        ready(maker.golden_difference)
        maker.make_all(shards, tell)
        return
    with _processes(order, processes, devices) as links:
        waiting = iter(shards)
        while links:
            for link in wait(list(links)):
                assert isinstance(link, Connection)
                try:
                    what, *facts = link.recv()
                except (EOFError, OSError):
                    raise _death(links[link]) from None
                if what == "failed":
                    raise facts[0]
                if what == "ready":
                    ready(*facts)
                elif what == "made":
                    tell(*facts)
                elif what == "done":
                    links.pop(link).join()
                    link.close()
                elif (shard := next(waiting, None)) is not None:
                    link.send(shard)
                else:
                    link.send(None)


@contextmanager
def _processes(order: Order, count: int, devices: int) -> Iterator[dict[Connection, SpawnProcess]]:
    """Start processes that make shards; give what they say, and end those that are left at the end."""
    spawn = multiprocessing.get_context("spawn")
    links: dict[Connection, SpawnProcess] = {}
    started: list[SpawnProcess] = []
    try:
        for number in range(count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=work, args=(order, number % devices, theirs), daemon=True)
            process.start()
            theirs.close()
            links[ours] = process
            started.append(process)
        yield links
    finally:
        for link in links:  # those that have not said that they are done
            link.close()
        for process in started:
            if process.exitcode is None and process in links.values():
                process.terminate()
        for process in started:
            process.join(_ENDS_WITHIN_S)
            if process.exitcode is None:
                process.kill()
                process.join()


def _death(process: SpawnProcess) -> WorkerDied:
    process.join()
    code = process.exitcode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
    return WorkerDied(
        f"a process that made shards {how}; what is finished is kept, the same command goes on from there"
    )
