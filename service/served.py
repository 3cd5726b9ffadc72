"""The models that are served, each at one version, and how another version takes its place.

A model follows the highest version in the store, or the one that `--model` or a reload names. A
reload is refused as a whole (damaged files, golden rows that differ, a worker that cannot load it)
or done as a whole; either way no request notices.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from models.errors import ContractError, DamagedArtifact
from models.store import Artifact, Store, parse_address
from service.errors import NotServed, VersionRefused
from service.metrics import Metrics
from service.sampler import ModelSampler
from service.settings import Settings

# What a version's folder looks like from outside: each file's name, size and time of change.
_Look = tuple[tuple[str, int, int], ...]
_NOTHING: Final[_Look] = ()

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
        self._locks = {name: asyncio.Lock() for name in self._samplers}
        self._refused = dict.fromkeys(self._samplers, _NOTHING)

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
        """Serve the highest version of `name`. What was refused is tried again only when its files change."""
        try:
            versions = await asyncio.to_thread(self._store.versions, name)
            if not versions or versions[-1] == self._samplers[name].artifact.manifest.version:
                return
            look = await asyncio.to_thread(_look_at, self._store.root / name / str(versions[-1]))
            if look == self._refused[name]:
                return
            self._refused[name] = look
            await self.reload(name)
            self._refused[name] = _NOTHING
        except VersionRefused:
            pass  # it was logged; a folder that is still being copied changes, and is tried again
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
