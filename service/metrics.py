"""Every metric, declared once. Names are in base units and end in them.

The one API process sees all requests and all workers' answers, so plain in-process metrics are
right: no files shared between processes, nothing to clean up after a restart.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Generic, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.ticket import Ticket

# A forward pass takes 1-50 ms; the client library's first bucket, 5 ms, would hide it.
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 120.0)
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Count:
    """One series of a counter."""

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount


class Distribution:
    """One series of a histogram."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """`bounds` are the buckets' upper ends, ascending, without infinity."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """(upper end, how many were no larger), as Prometheus wants them."""
        ends = [*map(str, self._bounds), "+Inf"]
        return list(zip(ends, itertools.accumulate(self._counts), strict=True))


_Series = TypeVar("_Series", Count, Distribution)


class Family(Collector, Generic[_Series]):
    """A metric by its labels' values.

    The client library's own checks each value, makes text of each label and takes locks: a tenth of what
    a small request costs. One thread counts here, and the same one reads.
    """

    def __init__(
        self, make: Callable[[], _Series], describe: Callable[..., Any], labelnames: tuple[str, ...]
    ) -> None:
        """`make` gives a new series, `describe(labels=…)` the library's metric that holds them all."""
        self.labelnames = labelnames
        self._describe = describe
        self._series: dict[tuple[object, ...], _Series] = {}

        def labels(*values: object) -> _Series:
            return self._series.setdefault(values, make())

        self.labels: Callable[..., _Series] = cache(labels)
        if not labelnames:
            self.labels()

    def collect(self) -> Iterator[Metric]:
        metric = self._describe(labels=self.labelnames)
        for values, series in self._series.items():
            texts = [str(value) for value in values]
            if isinstance(series, Count):
                metric.add_metric(texts, series.value)
            else:
                metric.add_metric(texts, series.buckets, series.sum)
        yield metric


@dataclass(frozen=True)
class ModelState:
    """What is true of one model now; asked when /metrics is read."""

    queued_rows: int
    workers_up: int


class Metrics:
    """The metrics of one API process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Family[Count]:
            describe = partial(CounterMetricFamily, f"ganserve_{name}", text)
            return self._register(Family(Count, describe, labels))

        def histogram(
            name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
        ) -> Family[Distribution]:
            describe = partial(HistogramMetricFamily, f"ganserve_{name}", text)
            return self._register(Family(partial(Distribution, buckets), describe, labels))

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"ganserve_{name}", text, labels, registry=registry)

        self.requests = counter("requests_total", "Requests answered.", "endpoint", "model", "code")
        self.request_seconds = histogram("request_seconds", "From request line to answer.", "endpoint")
        self.queue_seconds = histogram("queue_seconds", "From accepted to device start.", "model")
        self.device_seconds = histogram("device_seconds", "Device time of one microbatch.", "model")
        self.encode_seconds = histogram("encode_seconds", "Encoding time of one request's images.", "format")
        self.images = counter("images_total", "Images made for an answer.", "model", "source")
        self.realness = histogram(
            "realness", "How probably an image is a real one, where D judged it.", "model", buckets=_SHARES
        )
        self.batch_rows = histogram("batch_rows", "Rows of one microbatch.", "model", buckets=_ROWS)
        self.batches = counter("batches_total", "Microbatches run.", "model", "bucket")
        self.padding_rows = counter("padding_rows_total", "Rows run to fill a bucket.", "model")
        self.rejected = counter("rejected_total", "Requests refused before any work.", "reason")
        self.cancelled = counter("cancelled_total", "Requests that ended before their images.", "stage")
        self.not_modified = counter("not_modified_total", "Answers 304, without device work.")
        self.worker_restarts = counter("worker_restarts_total", "Workers that ended unasked.", "model")
        self.reloads = counter("reloads_total", "Reloads of a model: done or refused.", "model", "outcome")
        self.worker_timeouts = counter(
            "worker_timeouts_total", "Workers killed because they hung; they count as ended, too.", "model"
        )
        self.worker_busy_seconds = counter(
            "worker_busy_seconds_total", "Device time of all workers.", "model"
        )
        self.replayed_batches = counter("replayed_batches_total", "Microbatches sent again.", "model")
        self.answering = 0
        self.inflight_requests = gauge("inflight_requests", "Requests being answered.")
        self.inflight_requests.set_function(lambda: self.answering)
        self.model_info = gauge(
            "model_info", "1 for each model served.", "model", "version", "digest", "provider"
        )
        self.states: dict[str, Callable[[], ModelState]] = {}
        registry.register(_StateCollector(self.states))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

    def _register(self, family: Family[_Series]) -> Family[_Series]:
        self.registry.register(family)
        return family

    def of_model(self, model: str) -> ModelSeries:
        """What counts the work of `model`; its series are there from now on, so that a rate over those that
        may never count is 0, not nothing."""
        for one in (self.worker_restarts, self.worker_timeouts, self.replayed_batches):
            one.labels(model)
        return ModelSeries(self, model)

    def text(self) -> bytes:
        """The exposition that Prometheus reads."""
        return generate_latest(self.registry)


class ModelSeries:
    """The series of one model that every microbatch and request counts in, looked up once."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._model = model
        self._metrics = metrics
        self._device_seconds = metrics.device_seconds.labels(model)
        self._queue_seconds = metrics.queue_seconds.labels(model)
        self._busy_seconds = metrics.worker_busy_seconds.labels(model)
        self._batch_rows = metrics.batch_rows.labels(model)
        self._padding_rows = metrics.padding_rows.labels(model)

    def ran(self, rows: int, bucket: int, device_s: float, busy_s: float) -> None:
        """Count a microbatch of `rows` rows, run as `bucket`."""
        self._device_seconds.observe(device_s)
        self._busy_seconds.value += busy_s
        self._batch_rows.observe(rows)
        self._padding_rows.value += bucket - rows
        self._metrics.batches.labels(self._model, bucket).value += 1

    def made(self, source: str, ticket: Ticket) -> None:
        """Count the images of one finished request, and where its time went."""
        metrics, timing = self._metrics, ticket.timing
        metrics.images.labels(self._model, source).value += len(ticket.images)
        self._queue_seconds.observe(timing.queue_s)
        if ticket.realness is not None:
            series = metrics.realness.labels(self._model)
            for value in ticket.realness.tolist():
                series.observe(value)
        if ticket.fmt is not None:
            metrics.encode_seconds.labels(ticket.fmt).observe(timing.encode_s)


class _StateCollector(Collector):
    """Gauges that are asked for when they are read, so they cannot go stale."""

    def __init__(self, states: dict[str, Callable[[], ModelState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        queued = GaugeMetricFamily("ganserve_queued_rows", "Rows that wait for a worker.", labels=["model"])
        up = GaugeMetricFamily("ganserve_worker_up", "Workers that are ready.", labels=["model"])
        for name, state in self._states.items():
            now = state()
            queued.add_metric([name], now.queued_rows)
            up.add_metric([name], now.workers_up)
        yield queued
        yield up
