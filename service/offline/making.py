"""Shards, made by one process on one device: device, encoding and writing overlap.

The device runs one microbatch after another, also of the next shard; encoders make files of those that
came before, and one thread writes them. Each waits for the next when it is too far ahead, so memory does
not grow with the set. The device is the server's (`service.generator`): the same bytes come of it.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from models.errors import ContractError, DamagedArtifact
from models.manifest import DISCRIMINATOR_FILE, Manifest
from models.sampling import SeedRanges
from models.store import Store
from service.device import CUDA_BUCKETS, Accelerator
from service.encoding import Format
from service.errors import StartError
from service.generator import GOLDEN_ROWS_AT_START, Generator
from service.offline.errors import DeviceFailed, OtherJob, SampleError
from service.offline.formats import WRITERS, Made
from service.offline.job import Job
from service.offline.places import Place, open_place, scratch, sentences
from service.offline.records import SEEDS_NAME, GoldenDifference, Receipt, Records
from service.offline.sources import ClassRule, RowSource, read_seeds
from service.rows import Rows
from service.settings import SignFiles
from service.signing import ImageSigner

_MICROBATCH: Final = 16
_AHEAD: Final = 8  # microbatches between device and writer
_LOOK_EVERY_S: Final = 0.1  # whether the other side has failed
_TELL_EVERY_S: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a process needs to know to make shards of a job; pickled into it when it is spawned."""

    job: Job
    out: str
    store: Path
    address: str
    accelerator: Accelerator
    threads: int
    encoders: int
    """Threads that make files of pixels."""
    marks: bool
    sign_files: SignFiles | None


Tell = Callable[[int, tuple[int, Receipt] | None], None]
"""(images written since the last time, the shard that they finish and its receipt)"""


def source_of(job: Job, manifest: Manifest, place: Place) -> RowSource:
    """The rows of a job. Raises InvalidValue, PlaceLost."""
    if not job.seeds.startswith(f"{SEEDS_NAME}:"):
        seeds: Any = SeedRanges.parse(job.seeds)
    else:
        data = place.read(SEEDS_NAME)
        seeds = None if data is None else read_seeds(iter(data.decode().splitlines()), ".csv", SEEDS_NAME)
        if seeds is None or job.seeds != f"{SEEDS_NAME}:{seeds.sha256}":
            raise OtherJob(f"{place} must hold the {SEEDS_NAME} that its job names, and does not")
    class_idx = None if job.class_idx == "column" else job.class_idx
    psi = None if job.truncation_psi == "column" else job.truncation_psi
    return RowSource(
        manifest,
        seeds,
        cast(ClassRule, class_idx),
        cast("float | None", psi),
        sampler="mh" if job.proposals > 1 else None,
        proposals=job.proposals if job.proposals > 1 else None,
        realness=job.is_judged,
    )


class Maker:
    """Makes shards of one job on one device."""

    def __init__(self, order: Order, device_id: int = 0, source: RowSource | None = None) -> None:
        self.job = order.job
        self.place = open_place(order.out)
        artifact = Store(order.store).resolve(order.address)
        if artifact.digest != order.job.digest:
            raise DamagedArtifact(f"{artifact.address} was replaced in the store while it was at work")
        self._source = source or source_of(order.job, artifact.manifest, self.place)
        self.generator = Generator(artifact, order.accelerator, order.threads, device_id, marks=order.marks)
        levels = self.generator.session.golden_difference(GOLDEN_ROWS_AT_START)
        logits = 0.0
        if self._source.judging is not None:  # here, where what is wrong with D is the artifact's fault
            logits = self._logits_difference(artifact.address)
        self.golden_difference = GoldenDifference(levels, logits)
        self._encoders = order.encoders
        images = CUDA_BUCKETS[-1] if order.accelerator == "cuda" else _MICROBATCH
        self._microbatch = max(1, images // self.job.proposals)  # rows
        self._signer = ImageSigner(order.sign_files) if order.sign_files else None

    def _logits_difference(self, address: str) -> float:
        """That of D's golden rows. Raises DamagedArtifact for a D that does not run."""
        try:
            return self.generator.discriminator.golden_difference(GOLDEN_ROWS_AT_START)
        except (ContractError, StartError):
            raise
        except Exception as error:  # ONNX Runtime raises a dozen unrelated classes
            why = str(error).partition("\n")[0][:500]
            raise DamagedArtifact(f"{address}: {DISCRIMINATOR_FILE} does not run: {why}") from None

    def make_all(self, shards: Iterable[int], tell: Tell, keep: bool = True) -> None:
        """Make `shards`; have them appear with their receipts, unless they are not for keeping.

        Raises PlaceLost, DiskFull, DeviceFailed.
        """
        with (
            ThreadPoolExecutor(self._encoders, "encode") as encoders,
            ThreadPoolExecutor(1, "write") as writer,
        ):
            at_work: list[Future[None]] = []
            for shard in shards:
                at_work = [one for one in at_work if not one.done() or one.result()]
                rows: _Line = queue.Queue(_AHEAD)
                at_work.append(writer.submit(self._write, shard, _taken(rows), tell, keep))
                last: BaseException | None = None
                try:
                    for made in self._made(shard, encoders):
                        _hand(rows, made, at_work)
                except BaseException as error:
                    last = error
                    raise
                finally:
                    _hand(rows, last, at_work[-1:])
            for one in at_work:
                one.result()

    def _made(self, shard: int, encoders: ThreadPoolExecutor) -> Iterator[Future[Made]]:
        """A shard's microbatches, run on the device and handed to the encoders."""
        within = self.job.rows_of(shard)
        for start in range(within.start, within.stop, self._microbatch):
            stop = min(start + self._microbatch, within.stop)
            rows = self._source.rows(start, stop)
            realness = None
            try:
                if rows.judging is None:
                    images = self.generator.make(rows.seeds, rows.class_idx, rows.truncation_psi)
                else:
                    images, realness = self.generator.judge_rows(rows)  # [n, H, W, C], [n]
            except Exception as error:  # ONNX Runtime raises a dozen unrelated classes
                why = f"{type(error).__name__}: {str(error)[:500]}"
                raise DeviceFailed(f"seeds from {rows.seeds[0]} on cannot be made: {why}") from None
            yield encoders.submit(self._encode, self._source.names(start, stop), rows, images, realness)

    def _encode(
        self,
        names: list[str],
        rows: Rows,
        images: npt.NDArray[np.uint8],
        judged: npt.NDArray[np.float64] | None,
    ) -> Made:
        """The rows as they go into the set: those that are real enough, as files or pixels."""
        if not self.job.is_judged:
            judged = None
        realness = judged
        if judged is not None and (least := self.job.min_realness) is not None:
            kept = np.flatnonzero(judged >= least)
            names, rows = [names[row] for row in kept], rows[kept]
            images, realness = images[kept], judged[kept]
        if self.job.image_format == "raw":
            return Made(names, rows, images, None, realness, judged)
        fmt: Format = self.job.image_format
        files = [
            self.generator.rendering.encode(pixels, fmt, seed, class_idx, psi, rows.proposals)
            for pixels, seed, class_idx, psi in zip(
                images,
                rows.seeds.tolist(),
                rows.class_idx.tolist(),
                rows.truncation_psi.tolist(),
                strict=True,
            )
        ]
        files = self._signer.sign_all(files, fmt) if self._signer else files
        return Made(names, rows, images, files, realness, judged)

    def _write(self, shard: int, rows: Iterator[Made], tell: Tell, keep: bool) -> None:
        images, judged = 0, list[npt.NDArray[np.float64]]()

        def counted() -> Iterator[Made]:
            nonlocal images
            for made in rows:
                yield made
                images += len(made.names)
                if made.judged is not None:
                    judged.append(made.judged)
                tell(len(made.names) if made.judged is None else len(made.judged), None)

        with scratch(self.place.scratch_root if keep else None) as folder:
            with sentences("a shard", folder):
                files = WRITERS[self.job.format](folder, shard, self.job, self.generator.manifest, counted())
                receipt = Receipt.of(
                    images,
                    files,
                    self.golden_difference,
                    np.concatenate(judged) if judged and self.job.has_metadata else None,
                )
            if keep:
                self.place.put(files)
                Records(self.place).put_receipt(shard, receipt)
        tell(0, (shard, receipt))


_Line = queue.Queue["Future[Made] | BaseException | None"]
"""A shard's microbatches on their way to the writer; None, or what went wrong, is the last."""


def _taken(line: _Line) -> Iterator[Made]:
    while (item := line.get()) is not None:
        if isinstance(item, BaseException):
            raise RuntimeError("the device has stopped") from item
        yield item.result()


def _hand(line: _Line, item: Future[Made] | BaseException | None, writers: Sequence[Future[None]]) -> None:
    """Put `item` into the line. Raises what a writer raised that no longer takes anything out."""
    while True:
        for writer in writers:
            if writer.done():
                writer.result()
        with suppress(queue.Full):
            return line.put(item, timeout=_LOOK_EVERY_S)


# -- a process of its own -------------------------------------------------------------------------


def work(order: Order, device_id: int, link: Connection) -> None:
    """The life of a process that makes the shards it is told to: until there are none, or nobody tells.

    It says ("ready", golden difference), then ("next",) whenever it wants a shard, ("made", images,
    (shard, receipt) or None) as it goes on, and at last ("done",), or ("failed", error).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it may reach the whole process group; our parent ends us
    lock, told = threading.Lock(), [0, time.monotonic()]

    def send(*message: Any) -> None:
        with lock:
            try:
                link.send(message)
            except OSError:
                os._exit(1)  # our parent is gone

    def tell(images: int, finished: tuple[int, Receipt] | None) -> None:
        told[0] += images
        if finished or time.monotonic() - told[1] > _TELL_EVERY_S:
            send("made", told[0], finished)
            told[:] = 0, time.monotonic()

    def shards() -> Iterator[int]:
        while True:
            send("next")
            try:
                shard = link.recv()
            except (EOFError, OSError):
                os._exit(1)
            if shard is None:
                return
            yield shard

    try:
        maker = Maker(order, device_id)
        send("ready", maker.golden_difference)
        maker.make_all(shards(), tell)
        send("made", told[0], None)
        send("done")
    except (SampleError, ContractError, StartError) as error:
        send("failed", error)
