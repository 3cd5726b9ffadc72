"""A line: one version of a model being served, and the rows that wait for it.

A model has one line, and during a reload two: the old version's, which runs empty, and the new
one's. They share the model's workers and nothing else, since sizes and cost a row may differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from models.store import Artifact
from service.batching import MicrobatchSize, PriorityRowQueue
from service.settings import Settings
from service.slots import SlotLayout
from service.statistics import Statistics
from service.ticket import Portion, Ticket

_numbers = itertools.count()


@dataclass(frozen=True)
class DeviceFacts:
    """What a model's workers said of what they run on; the same for all of them."""

    provider: str
    """ONNX Runtime's execution provider."""
    runtime_version: str
    golden_difference: int
    """Largest grey-level difference of the golden rows replayed when it was loaded; 0 is bit-exact."""
    realness_difference: float = 0.0
    """Largest difference of D's logits of those rows; 0, too, where no discriminator is at work."""
    arithmetic: str = ""
    """What else decides its pixels, as `Session.arithmetic`."""


class Line:
    """One version being served. Compared by identity."""

    def __init__(
        self, artifact: Artifact, settings: Settings, deliver: Callable[[list[Portion]], None]
    ) -> None:
        """`deliver` takes what one microbatch made."""
        self.number = next(_numbers)
        """Names it to workers."""
        self.artifact = artifact
        self.deliver = deliver
        self.judges = artifact.manifest.calibration is not None
        """Whether rows may ask for more than a plain image."""
        max_rows = settings.microbatch_rows
        self.layout = SlotLayout.of(artifact.manifest, max_rows)
        self.queue: PriorityRowQueue[Ticket] = PriorityRowQueue()
        buckets = settings.device_options.buckets_on(settings.accelerator)
        self.size = MicrobatchSize(max_rows, settings.max_microbatch_ms / 1000, buckets)
        self.statistics = Statistics()
        self.device: DeviceFacts | None = None
        """None until the first worker has loaded it."""
        self.replaced: float | None = None
        """When another version took its place (monotonic); what it has accepted is still made."""
