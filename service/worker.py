"""The worker process: one microbatch after another on one device, and nothing else.

LitServe starts the process, calls `GeneratorAPI.setup` and then runs `MicrobatchLoop`. The worker
opens the session, replays a few golden rows, says hello to the API process and runs what it is
sent until the connection ends. It draws latents from seeds here, so that the work spreads over
workers and the one API process stays light.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any, Final

from litserve import LitAPI
from litserve.loops import LitLoop

from models.errors import ContractError
from models.sampling import LatentSampler
from models.store import Store
from service import channel, log
from service.errors import EXIT_REFUSED, StartError
from service.session import Session
from service.settings import Accelerator
from service.slots import LATENTS_GIVEN, Slot, SlotLayout, map_slots

_GOLDEN_ROWS_AT_START: Final = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a worker needs to know; pickled into it when it is spawned."""

    store: str
    address: str
    """name:version, never a bare name: all workers of a server open the same version."""
    accelerator: Accelerator
    threads: int
    strict: bool
    channel: channel.Address


class GeneratorAPI(LitAPI):
    """One served model, as LitServe knows it: how a worker sets up, and the loop that it runs."""

    def __init__(self, settings: WorkerSettings, model_name: str) -> None:
        super().__init__(api_path=f"/{model_name}", loop=MicrobatchLoop())
        self.settings = settings
        self.model_name = model_name
        self.session: Session
        self.golden_difference: int

    def setup(self, device: str) -> None:
        """Open the session on `device` ("cpu", "cuda:0") and replay golden rows.

        What cannot be served is one sentence on stderr and exit status EXIT_REFUSED.
        """
        # Either may reach the whole process group; a worker ends when the API process does, after its drain.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        settings = self.settings
        try:
            artifact = Store(settings.store).resolve(settings.address)
            device_id = int(device.partition(":")[2] or 0)
            self.session = Session(artifact, settings.accelerator, settings.threads, device_id)
            self.golden_difference = self.session.golden_difference(_GOLDEN_ROWS_AT_START)
            if settings.strict and self.golden_difference:
                raise StartError(
                    f"{artifact.address}: golden rows differ by up to {self.golden_difference} grey levels "
                    f"on {self.session.provider}, and --strict asks for bit-exact ones"
                )
        except (ContractError, StartError) as error:
            print(f"ganserve: {error}", file=sys.stderr, flush=True)
            os._exit(EXIT_REFUSED)  # past LitServe, which would log a traceback and exit with 0
        except Exception:
            log.configure("info")
            logger.exception("worker of %s failed to start", settings.address)
            os._exit(1)


class MicrobatchLoop(LitLoop):
    """Runs microbatches from the API process until the connection ends."""

    def __call__(self, lit_api: GeneratorAPI, device: str, worker_id: int, *_: Any) -> None:
        """LitServe's entry point: called once in the worker; LitServe's own queues stay unused."""
        session = lit_api.session
        manifest = session.artifact.manifest
        try:
            link = channel.connect(lit_api.settings.channel)
            link.send(
                {
                    "token": lit_api.settings.channel.token,
                    "model": lit_api.model_name,
                    "worker": worker_id,
                    "pid": os.getpid(),
                    "provider": session.provider,
                    "runtime": session.runtime_version,
                    "golden_difference": lit_api.golden_difference,
                }
            )
            answer = link.receive_with_fd()
            if answer is None:
                return
            sizes, memory_fd = answer
            slots = map_slots(memory_fd, SlotLayout.of(manifest, sizes["rows"]), sizes["slots"])
            os.close(memory_fd)
            sampler = LatentSampler(manifest.z_dim, manifest.prior)
            while (message := link.receive()) is not None:
                link.send(_run(message, slots[message["slot"]], session, sampler))
        except OSError:  # the API process is gone: there is nobody left to work for
            logger.debug("worker %d of %s: the API process is gone", worker_id, lit_api.model_name)


def _run(message: dict[str, Any], slot: Slot, session: Session, sampler: LatentSampler) -> dict[str, Any]:
    """Run one microbatch in place; return the message that answers it."""
    started, rows = time.monotonic(), message["rows"]
    try:
        seeds = slot.seeds[:rows]
        drawn = seeds != LATENTS_GIVEN
        slot.latents[:rows][drawn] = sampler.draw(seeds[drawn])
        slot.images[:rows] = session.run(
            slot.latents[:rows], slot.class_idx[:rows], slot.truncation_psi[:rows]
        )  # [N, H, W, C] uint8
    except (
        Exception
    ) as error:  # ONNX Runtime raises a dozen unrelated classes; these rows fail, not the worker
        return {"failed": message["run"], "error": f"{type(error).__name__}: {error}"[:500]}
    return {"done": message["run"], "started": started, "device_s": time.monotonic() - started}
