"""The models that are served, each at one version, and how another version takes its place.

A model follows the highest version in the store, or the one that `--model` or a reload names. A
reload is refused as a whole (damaged files, golden rows that differ, a worker that cannot load it)
or done as a whole; either way no request notices.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from models.errors import ContractError, DamagedArtifact, show
from models.store import Artifact, Store, parse_address
from service.errors import NotServed, StaleDigest, VersionRefused
from service.metrics import Metrics
from service.provenance import DIGEST_DIGITS
from service.sampler import ModelSampler
from service.settings import Settings

# What a version's folder looks like from outside: each file's name, size and time of change.
_Look = tuple[tuple[str, int, int], ...]
# A version that the watch saw refused: its look then, when it is tried again (monotonic), the wait for that.
_Refusal = tuple[_Look, float, float]
_NEVER: Final[_Refusal] = ((), 0.0, 0.0)
# Why it was refused may pass: a worker that hung, no memory. A version that stays bad must cost little.
_RETRY_S: Final = (5.0, 600.0)  # the first and the longest wait

logger = logging.getLogger(__name__)


class ServedModels:
    """One sampler a model. Used in the event loop's thread only."""

    def __init__(
        self,
        artifacts: Sequence[Artifact],
        settings: Settings,
        encoders: Executor,
        metrics: Metrics,
        on_ready: Callable[[], object],
    ) -> None:
        """Serve `artifacts`, the default model first; `on_ready` hears of each worker that is ready."""
        self._settings = settings
        self._encoders = encoders
        self._metrics = metrics
        self._on_ready = on_ready
        self._store = Store(settings.store)
        self._samplers = {one.manifest.name: self._sampler_of(one) for one in artifacts}
        # The version that a model is held at, by setting and now; None follows the highest.
        self._set = dict(parse_address(address) for address in settings.model_addresses)
        self._pinned = dict(self._set)
        self._replaced: dict[str, list[ModelSampler]] = {name: [] for name in self._samplers}
        self._locks = {name: asyncio.Lock() for name in self._samplers}
        self._refused = dict.fromkeys(self._samplers, _NEVER)

    def _sampler_of(self, artifact: Artifact, replaces: ModelSampler | None = None) -> ModelSampler:
        return ModelSampler(artifact, self._settings, self._encoders, self._metrics, self._on_ready, replaces)

    def all(self) -> list[ModelSampler]:
        """One a served model, the default model first."""
        return list(self._samplers.values())

    def sampler(self, address: str | None) -> ModelSampler:
        """The sampler of `name[:version]`, or of the default model. Raises NotServed, InvalidValue."""
        if address is None:
            return next(iter(self._samplers.values()))
        name, version = parse_address(address)
        sampler = self._samplers.get(name)
        if sampler is None or version not in (None, sampler.artifact.manifest.version):
            served = ", ".join(one.artifact.address for one in self._samplers.values())
            raise NotServed(f"model {address} is not served here; served: {served}")
        return sampler

    def sampler_of_digest(self, name: str, digits: str) -> ModelSampler:
        """The sampler of `name` whose digest begins with `digits`, all DIGEST_DIGITS of them.

        One replaced a moment ago still answers: whoever follows the moving address may come late. Raises
        NotServed, StaleDigest.
        """
        sampler = self.sampler(name)
        for one in (sampler, *reversed(self._replaced[sampler.name])):
            lingers = one is sampler or one.dispatcher.lingers(one.line)
            if lingers and digits == one.artifact.digest[:DIGEST_DIGITS]:
                return one
        served = sampler.artifact.digest[:DIGEST_DIGITS]
        raise StaleDigest(f"{name} is served with the digest {served}, got {show(digits)}")

    async def reload(self, name: str, version: int | None = None) -> bool:
        """Have `name` served at `version` and held there, or (None) at what it follows by setting.

        Returns False if that was what is served already. Raises NotServed, UnknownModel for a version
        that the store has not, and VersionRefused with the reason; then the old version serves on.
        One reload of a model at a time; the next waits.
        """
        self.sampler(name)
        async with self._locks[name]:
            held = self._set[name] if version is None else version
            try:
                changed = await self._switch(name, held)
            except VersionRefused as error:
                self._metrics.reloads.labels(name, "refused").inc()
                serves_on = self._samplers[name].artifact.address
                logger.error("reload refused, %s serves on: %s", serves_on, error)
                raise
            self._pinned[name] = held
            return changed

    async def _switch(self, name: str, version: int | None) -> bool:
        """Serve `name` at `version`, or at the highest; return False if it is served already."""
        old = self._samplers[name]
        address = name if version is None else f"{name}:{version}"
        try:
            artifact = await asyncio.to_thread(_verified, self._store, address)
        except DamagedArtifact as error:
            raise VersionRefused(str(error)) from None
        if artifact.manifest == old.artifact.manifest:
            return False
        new = self._sampler_of(artifact, replaces=old)
        await old.dispatcher.switch_to(new.line)
        self._samplers[name] = new
        lingering = [one for one in self._replaced[name] if one.dispatcher.lingers(one.line)]
        self._replaced[name] = [*lingering, old]
        self._metrics.reloads.labels(name, "done").inc()
        logger.info(
            "%s (%s) is served in place of %s", artifact.address, artifact.digest[:12], old.artifact.address
        )
        return True

    # -- the watch --------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Look at the store every `watch_store_s` seconds, for good: who follows gets the highest version."""
        while True:
            await asyncio.sleep(self._settings.watch_store_s)
            for name, version in list(self._pinned.items()):
                if version is None:
                    await self._follow(name)

    async def _follow(self, name: str) -> None:
        """Serve the highest version of `name`. What was refused is tried again at once when its files
        change, and else after longer and longer waits."""
        try:
            versions = await asyncio.to_thread(self._store.versions, name)
            if not versions or versions[-1] == self._samplers[name].artifact.manifest.version:
                return
            look = await asyncio.to_thread(_look_at, self._store.root / name / str(versions[-1]))
            refused, again, wait_s = self._refused[name]
            first_s, longest_s = _RETRY_S
            if look != refused:
                wait_s = first_s
            elif time.monotonic() < again:
                return
            try:
                await self.reload(name)
            except VersionRefused:
                self._refused[name] = look, time.monotonic() + wait_s, min(2 * wait_s, longest_s)
                raise
            self._refused[name] = _NEVER
        except VersionRefused:
            pass  # it was logged
        except (ContractError, OSError) as error:
            logger.warning("the store could not be read for %s: %s", name, error)
        except Exception:  # the watch goes on whatever happens
            logger.exception("%s could not follow the store", name)


def _verified(store: Store, address: str) -> Artifact:
    artifact = store.resolve(address)
    artifact.verify()
    return artifact


def _look_at(folder: Path) -> _Look:
    facts = ((file.name, file.stat()) for file in sorted(folder.iterdir()))
    return tuple((name, fact.st_size, fact.st_mtime_ns) for name, fact in facts)
