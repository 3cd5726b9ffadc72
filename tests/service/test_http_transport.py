"""What is written in one turn of the event loop leaves together, in order, and before the end."""

from __future__ import annotations

import asyncio
from typing import Any

from service.http_transport import GatheringTransport


class Recorder:
    """A transport that records what reaches it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def writelines(self, parts: list[bytes]) -> None:
        self.seen.append(b"".join(parts))

    def close(self) -> None:
        self.seen.append("closed")

    def get_extra_info(self, name: str) -> str:
        return name


def test_a_head_and_its_body_leave_together_and_the_next_answer_apart() -> None:
    async def scenario() -> list[Any]:
        there: Any = Recorder()
        transport = GatheringTransport(there, asyncio.get_running_loop())
        transport.write(b"head,")
        transport.write(b"body")
        await asyncio.sleep(0)
        transport.write(b"another")
        await asyncio.sleep(0)
        return list(there.seen)

    assert asyncio.run(scenario()) == [b"head,body", b"another"]


def test_what_waits_is_sent_before_a_close() -> None:
    async def scenario() -> list[Any]:
        there: Any = Recorder()
        transport = GatheringTransport(there, asyncio.get_running_loop())
        transport.write(b"last")
        transport.close()
        await asyncio.sleep(0)
        return list(there.seen)

    assert asyncio.run(scenario()) == [b"last", "closed"]


def test_all_else_is_the_transports_own() -> None:
    there: Any = Recorder()
    loop: Any = None
    transport = GatheringTransport(there, loop)

    assert transport.get_extra_info("peername") == "peername"
