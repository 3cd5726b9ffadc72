"""What one version's microbatches and requests came to since it is served.

Sums and counts only. What the Open Inference Protocol calls them is `protocol_v2`'s business;
what Prometheus reads is `metrics`'.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Durations:
    """How often something was measured, and what that came to in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds


@dataclass
class Compute:
    """How often rows were made, and what the three parts of that came to."""

    count: int = 0
    input_s: float = 0.0
    """Writing the rows' seeds, latents and parameters where the worker reads them."""
    infer_s: float = 0.0
    """Device time: drawing latents and running the graph."""
    output_s: float = 0.0
    """Taking the images from where the worker wrote them."""

    def add(self, input_s: float, device_s: float, output_s: float) -> None:
        self.count += 1
        self.input_s += input_s
        self.infer_s += device_s
        self.output_s += output_s


@dataclass
class Statistics:
    """One version's statistics. Used in the event loop's thread only."""

    rows: int = 0
    """Rows that microbatches made."""
    last_request_ms: int = 0
    """When rows were last asked for, in milliseconds since 1970; 0: never."""
    microbatches: dict[int, Compute] = field(default_factory=dict)
    """Microbatches that were made, by how many rows they held."""
    success: Durations = field(default_factory=Durations)
    """Requests that got all their rows, from accepted to the last row."""
    fail: Durations = field(default_factory=Durations)
    """Requests that asked for rows and did not get them all: refused, late, left, or failed."""
    queue_s: float = 0.0
    """Successful requests' waiting, from accepted to their first device start."""
    requests: Compute = field(default_factory=Compute)
    """Successful requests, each with the sums over the microbatches that held its rows: device time that
    workers spent side by side, and shared with other requests, counts whole."""

    @property
    def executions(self) -> int:
        """Microbatches that were made."""
        return sum(size.count for size in self.microbatches.values())

    def asked(self) -> None:
        """A request asks for rows."""
        self.last_request_ms = time.time_ns() // 1_000_000

    def ran(self, rows: int, input_s: float, device_s: float, output_s: float) -> None:
        """A microbatch of `rows` rows was made."""
        self.rows += rows
        size = self.microbatches.get(rows)
        if size is None:
            size = self.microbatches[rows] = Compute()
        size.add(input_s, device_s, output_s)

    def succeeded(
        self, seconds: float, queue_s: float, input_s: float, device_s: float, output_s: float
    ) -> None:
        """A request got its rows after `seconds`."""
        self.success.add(seconds)
        self.queue_s += queue_s
        self.requests.add(input_s, device_s, output_s)
