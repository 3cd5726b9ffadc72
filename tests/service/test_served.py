"""The models of a server: the watch on the store, and what a replaced version may still answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from toy import publish_toy

from models.store import Artifact
from service.errors import StaleDigest, VersionRefused
from service.metrics import Metrics
from service.served import ServedModels
from service.settings import Settings
from service.switch import Switch


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return publish_toy(tmp_path)


@pytest.fixture
def served(artifact: Artifact) -> Iterator[ServedModels]:
    """The models of a server without workers."""
    settings = Settings(store=artifact.path.parent.parent, model="toy", watch_store_s=0.02)
    with ThreadPoolExecutor(1) as encoders:
        yield ServedModels([artifact], settings, encoders, Metrics(), lambda: None)


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The versions that were tried. The first two times workers are too slow, then they load it."""
    tried: list[str] = []

    async def settled(switch: Switch, timeout_s: float) -> None:
        tried.append(switch.line.artifact.address)
        if len(tried) <= 2:
            raise VersionRefused("no worker has loaded it")

    monkeypatch.setattr(Switch, "settled", settled)
    return tried


def watching(served: ServedModels, scenario: Callable[[], Awaitable[None]]) -> None:
    """Run `scenario` beside the watch."""

    async def bounded() -> None:
        watch = asyncio.create_task(served.watch())
        try:
            async with asyncio.timeout(10):
                await scenario()
        finally:
            watch.cancel()

    asyncio.run(bounded())


def test_a_version_that_was_refused_is_tried_again_and_served_when_the_trouble_has_passed(
    served: ServedModels, artifact: Artifact, tries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.served._RETRY_S", (0.05, 0.1))
    publish_toy(artifact.path.parent.parent, weights_seed=1)

    async def scenario() -> None:
        while served.sampler("toy").artifact.manifest.version == 1:
            await asyncio.sleep(0.01)

        assert tries == ["toy:2"] * 3

    watching(served, scenario)


def test_a_version_that_was_refused_waits_for_its_turn_unless_its_files_change(
    served: ServedModels, artifact: Artifact, tries: list[str]
) -> None:
    new = publish_toy(artifact.path.parent.parent, weights_seed=1)

    async def scenario() -> None:
        while not tries:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert tries == ["toy:2"]
        new.file("golden.npz").touch()
        while len(tries) == 1:
            await asyncio.sleep(0.01)

    watching(served, scenario)


def test_the_digest_of_a_replaced_version_is_answered_by_it_for_a_moment(
    served: ServedModels, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.dispatch._LINGER_S", 0.3)
    monkeypatch.setattr(Switch, "settled", lambda *_: asyncio.sleep(0))
    new = publish_toy(artifact.path.parent.parent, weights_seed=1)
    old_digits, new_digits = artifact.digest[:12], new.digest[:12]

    async def scenario() -> None:
        assert await served.reload("toy")
        assert served.sampler_of_digest("toy", old_digits).artifact == artifact
        assert served.sampler_of_digest("toy", new_digits).artifact == new
        await asyncio.sleep(0.4)
        assert served.sampler_of_digest("toy", new_digits).artifact == new
        with pytest.raises(StaleDigest, match=f"served with the digest {new_digits}, got '{old_digits}'"):
            served.sampler_of_digest("toy", old_digits)
        with pytest.raises(StaleDigest):
            served.sampler_of_digest("toy", "")

    asyncio.run(scenario())
