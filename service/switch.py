"""A version on its way into every worker: what they say of it, and whether it will be served.

It is refused if one worker cannot load it, if its golden rows come out too differently, or if
workers die of it; it is served once every worker has loaded it. A worker that says nothing refuses
nothing: when time is up, one that has loaded it is enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from typing import Any, Final

from service.errors import VersionRefused
from service.line import Line

_MAX_DEATHS: Final = 2  # of workers that were loading it; one may die of something else
_ROUNDING: Final = 2  # grey levels by which another device may make golden rows differ


class Switch:
    """The outcome of one reload, as it becomes known."""

    def __init__(self, line: Line, served_difference: int) -> None:
        """Switch to `line`; the golden rows of the version served now differ by `served_difference` here."""
        self.line = line
        self._max_difference = max(_ROUNDING, served_difference)
        self._outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._deaths = 0
        self._one_has_it = False  # and that worker is still there

    def heard(self, message: dict[str, Any]) -> None:
        """Take in what a worker says of the version."""
        if "refused" in message:
            self._refuse(message["error"])
        elif message["golden_difference"] > self._max_difference:
            self._refuse(
                f"{self.line.artifact.address}: its golden rows must come out as they were published, "
                f"got pixels that differ by up to {message['golden_difference']} grey levels"
            )

    def died(self) -> None:
        """A worker died while it loaded the version."""
        self._deaths += 1
        if self._deaths > _MAX_DEATHS:
            self._refuse(f"{self.line.artifact.address}: workers died {self._deaths} times while loading it")

    def check(self, loaded: Sequence[Container[Line]]) -> None:
        """Be done once each worker, and at least one, has the version among what it has `loaded`."""
        have = [self.line in lines for lines in loaded]
        self._one_has_it = any(have)
        if not self._outcome.done() and have and all(have):
            self._outcome.set_result(None)

    def _refuse(self, reason: str) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(VersionRefused(reason))

    async def settled(self, timeout_s: float) -> None:
        """Return when every worker has loaded the version, or one when time is up. Raises VersionRefused."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._outcome
        except TimeoutError:
            if not self._one_has_it:
                raise VersionRefused(
                    f"{self.line.artifact.address}: no worker has loaded it after {timeout_s:g} s"
                ) from None
