"""Requests in flight end in time, in whatever order they came, with an answer, and leave nothing behind."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
from toy import publish_toy

from models.store import Store
from service import channel
from service.errors import CallerLeft, DeadlineExceeded
from service.http_direct import DirectSamples
from service.line import DeviceFacts
from service.rows import Rows
from service.serving import Serving
from service.settings import Settings
from service.ticket import Ticket


class Caller:
    """A connection whose caller stays."""

    def when_lost(self, call: Callable[[], object] | None, /) -> None:
        """Nobody leaves."""


def test_each_request_ends_when_its_time_is_up_whoever_came_first(tmp_path: Path) -> None:
    publish_toy(tmp_path)
    ended: list[int] = []

    async def scene() -> None:
        artifact = Store(tmp_path).resolve("toy")
        serving = Serving(Settings(store=tmp_path, model="toy"), [artifact])
        sampler = serving.sampler(None)
        sampler.line.device = DeviceFacts("CPUExecutionProvider", "1", 0)  # and then all workers died

        async def ask(timeout_ms: int) -> float:
            rows = Rows.of_seeds(artifact.manifest, [1])
            with pytest.raises(DeadlineExceeded, match=f"not made within {timeout_ms} ms"):
                await serving.make(sampler, rows, "png", "samples", Caller(), timeout_ms)
            ended.append(timeout_ms)
            return time.monotonic() - started

        started = time.monotonic()
        took_s = await asyncio.gather(*map(ask, (300, 100, 200)))
        serving.close()
        assert all(s >= ms / 1000 for s, ms in zip(took_s, (300, 100, 200), strict=True))
        assert max(took_s) < 5

    asyncio.run(scene())
    assert ended == [100, 200, 300]


def test_a_request_that_failed_is_freed_at_once(tmp_path: Path) -> None:
    """Its error knows the frames that it passed, and they must not keep the images: some are of megabytes."""
    publish_toy(tmp_path)
    made: list[weakref.ref[Ticket]] = []

    class Leaver(Caller):
        def when_lost(self, call: Callable[[], object] | None, /) -> None:
            if call is not None:
                asyncio.get_running_loop().call_soon(call)
                made.append(weakref.ref(cast(Any, call).__self__))

    async def scene() -> None:
        artifact = Store(tmp_path).resolve("toy")
        serving = Serving(Settings(store=tmp_path, model="toy"), [artifact])
        sampler = serving.sampler(None)
        sampler.line.device = DeviceFacts("CPUExecutionProvider", "1", 0)
        with pytest.raises(CallerLeft):
            await serving.make(sampler, Rows.of_seeds(artifact.manifest, [1]), None, "samples", Leaver())
        serving.close()

    gc.disable()
    try:
        asyncio.run(scene())
        assert [one() for one in made] == [None]
    finally:
        gc.enable()


def test_an_answer_that_cannot_be_put_together_is_an_error_and_the_request_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_toy(tmp_path)
    told: list[int] = []
    exchange: Any = SimpleNamespace(
        fields={},
        connection=SimpleNamespace(when_lost=lambda call: None, is_waiting=False),
        answer=lambda status, headers, body: told.append(status),
    )

    def broken(*_: object) -> NoReturn:
        raise RuntimeError("no answer can be put together")

    async def scene() -> None:
        serving = Serving(Settings(store=tmp_path, model="toy"), [Store(tmp_path).resolve("toy")])
        line = serving.sampler(None).line
        line.device = DeviceFacts("CPUExecutionProvider", "1", 0)
        monkeypatch.setattr("service.http_direct.image_response", broken)
        assert DirectSamples(serving).take(exchange, b'{"seed": 1}')
        (segment,) = line.queue.take(16)
        segment.request.place(0, [b"file"])
        assert serving.metrics.answering == 0
        serving.close()

    asyncio.run(scene())
    assert told == [500]


def test_a_worker_that_no_descriptor_is_free_for_is_taken_in_later_and_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish_toy(tmp_path)
    monkeypatch.setattr("service.serving._PAUSE_S", 0.2)
    address = channel.Address()

    def none_free(listener: socket.socket) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    async def scene() -> None:
        serving = Serving(Settings(store=tmp_path, model="toy"), [Store(tmp_path).resolve("toy")])
        with channel.listen(address) as listener:
            with monkeypatch.context() as full:
                full.setattr(channel, "accept", none_free)
                serving.listen_for_workers(listener, address)
                worker = await asyncio.to_thread(channel.connect, address)
                await asyncio.sleep(0.1)
            worker.send({"token": address.token, "model": "toy"})
            while not serving.sampler("toy").dispatcher.workers:
                await asyncio.sleep(0.01)
            asyncio.get_running_loop().remove_reader(listener.fileno())
        worker.close()
        serving.close()

    asyncio.run(asyncio.wait_for(scene(), 5))
    assert [record.message for record in caplog.records] == [
        "no worker can be taken in for 0.2 s: Too many open files"
    ]
