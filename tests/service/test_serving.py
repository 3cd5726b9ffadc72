"""Requests in flight end in time, however many there are and in whatever order they came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from toy import publish_toy

from models.store import Store
from service.errors import DeadlineExceeded
from service.line import DeviceFacts
from service.rows import Rows
from service.serving import Serving
from service.settings import Settings


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
