"""A day's worst half hour, simulated: callers, cache, queues, pods and the autoscaler, second by second.

Rates are what one pod of two CPUs was measured to do (README.md, "Measured"); the autoscaler is as its
manifest says. What was assumed is told at each parameter. Writes the plot `capacity.svg` beside this file:

    python deploy/load/simulate.py
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

MINUTE = 60


@dataclass(frozen=True)
class Cluster:
    """What the simulation builds on."""

    pod_images_s: float = 1061.0
    """One pod of two CPUs, reference generator 64x64 RGB, PNG, 32 clients (README.md, "Measured")."""
    pod_queue_rows: int = 8192
    """max_queued_rows; more is refused with 429."""
    pod_start_s: int = 12
    """1.2 s until the first image (README.md, "Measured"), and 10 for scheduling and probes, assumed; the
    image is on the node."""
    min_pods: int = 2
    max_pods: int = 40
    target_busy: float = 0.7
    """averageUtilization of the HPA, the second trigger of the ScaledObject."""
    target_queued_rows: float | None = None
    """A pod, the first trigger of the ScaledObject; None: the HPA, which knows CPU only."""
    look_s: int = 15
    """The autoscaler's period; what it reads is as old."""
    calm_s: int = 300
    """stabilizationWindowSeconds of scaling down."""
    addressed: float = 0.0
    """The share of the images that callers ask for by digest address, through a CDN."""
    distinct: int = 2_000_000
    """Addresses that are asked for at all, by a Zipf law of exponent 1, assumed."""


@dataclass(frozen=True)
class Second:
    """One second of the simulated service, in images."""

    asked: float
    hits: float
    made: float
    refused: float
    queued: float
    pods: int
    wanted: int


def demand(second: int) -> float:
    """Images a second asked for: a step to three times, then up to a million a minute."""
    if second < 5 * MINUTE:
        return 1_500.0
    if second < 12 * MINUTE:
        return 4_500.0
    climbed = min(1.0, (second - 12 * MINUTE) / (6 * MINUTE))
    return 4_500.0 + climbed * (1e6 / 60 - 4_500.0)


def simulate(
    cluster: Cluster, asked_for: Callable[[int], float] = demand, seconds: int = 30 * MINUTE
) -> Iterator[Second]:
    """Yield each second. The same arguments give the same seconds: nothing here is random."""
    starting: list[tuple[int, int]] = []  # (when ready, how many)
    pods, queued = cluster.min_pods, 0.0
    cache = _Cache(cluster.distinct)
    busy = queued_seen = 0.0  # as the autoscaler last read them
    wishes: list[int] = []
    for now in range(seconds):
        pods += sum(n for ready, n in starting if ready <= now)
        starting = [(ready, n) for ready, n in starting if ready > now]
        asked = asked_for(now)
        hits = cache.hits(asked * cluster.addressed)
        room = pods * cluster.pod_queue_rows
        waiting = queued + asked - hits
        made = min(waiting, pods * cluster.pod_images_s)
        queued = min(waiting - made, room)
        refused = waiting - made - queued
        there = pods + sum(n for _, n in starting)
        wish = _wish(cluster, pods, there, busy, queued_seen)
        wishes.append(wish)
        if now % cluster.look_s == cluster.look_s - 1:
            lowest = max(wishes[-cluster.calm_s :])
            if wish > there:
                starting.append((now + cluster.pod_start_s, min(wish, 2 * there) - there))
            elif lowest < there and now % MINUTE == MINUTE - 1 and not starting:
                pods = max(lowest, math.ceil(0.75 * pods))
            busy, queued_seen = made / (pods * cluster.pod_images_s), queued
        yield Second(asked, hits, made, refused, queued, pods, wish)


def _wish(cluster: Cluster, pods: int, there: int, busy: float, queued: float) -> int:
    """Pods that the autoscaler wants: it changes nothing within a tenth of its target."""
    ratio = busy / cluster.target_busy
    wish = there if abs(ratio - 1) <= 0.1 else math.ceil(pods * ratio)
    if cluster.target_queued_rows is not None:
        wish = max(wish, math.ceil(queued / cluster.target_queued_rows))
    return max(cluster.min_pods, min(cluster.max_pods, wish))


class _Cache:
    """A CDN that never forgets, since addresses with a digest never change."""

    def __init__(self, distinct: int, bins: int = 200) -> None:
        """Popularity k of `distinct` addresses is 1/k; addresses of like popularity share a bin."""
        edges = sorted({round(distinct ** (n / bins)) for n in range(bins + 1)} | {distinct + 1})
        total = math.log(distinct) + 0.5772
        self._bins = [
            [float(high - low), math.log((high - 0.5) / (low - 0.5)) / total / (high - low), 1.0]
            for low, high in itertools.pairwise(edges)
        ]

    def hits(self, requests: float) -> float:
        """How many of so many requests were asked for before; the others are from now on."""
        misses = 0.0
        for one in self._bins:
            addresses, popularity, unseen = one
            one[2] = unseen * math.exp(-popularity * requests)
            misses += addresses * (unseen - one[2])
        return max(0.0, requests - misses)


CASES = {
    "CPU (HPA)": Cluster(),
    "queued rows (KEDA)": Cluster(target_queued_rows=256),
    "KEDA, half by address": Cluster(target_queued_rows=256, addressed=0.5),
}


def describe(name: str, seconds: Sequence[Second]) -> str:
    """One line of what a case came to."""
    refused = sum(one.refused for one in seconds)
    short = sum(one.refused > 0 for one in seconds)
    last = seconds[-1]
    return (
        f"{name:22}  refused {refused:9,.0f} images in {short:3} s;  in the end {last.pods:2} pods, "
        f"{last.hits / last.asked:4.0%} from the cache;  most pods {max(one.pods for one in seconds)}"
    )


def plot(runs: dict[str, Sequence[Second]]) -> str:
    """The runs as SVG: pods above, refused images a second below; demand in grey."""
    width, height, colours = 760, 230, ("#b3432b", "#2b6cb3", "#2b8a4b")
    length = len(next(iter(runs.values())))
    top_pods = max(one.pods for run in runs.values() for one in run)
    top_asked = max(one.asked for run in runs.values() for one in run)
    top_refused = max(1.0, *(one.refused for run in runs.values() for one in run))

    def line(values: list[float], top: float, y: int, colour: str, dashed: bool = False) -> str:
        points = " ".join(
            f"{60 + 680 * t / length:.1f},{y + height - 40 - (height - 70) * value / top:.1f}"
            for t, value in enumerate(values)
            if t % 5 == 0
        )
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        return f'<polyline fill="none" stroke="{colour}" stroke-width="1.6"{dash} points="{points}"/>'

    def text(x: float, y: float, words: str, colour: str = "#333", anchor: str = "start") -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}" text-anchor="{anchor}">{words}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {2 * height + 20}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{2 * height + 20}" fill="#fff"/>',
    ]
    first = next(iter(runs.values()))
    for y, title, top in ((0, "pods", float(top_pods)), (height, "images refused a second", top_refused)):
        parts.append(text(60, y + 18, title))
        for share in (0.0, 0.5, 1.0):
            at = y + height - 40 - (height - 70) * share
            parts.append(f'<path d="M60 {at:.0f}H740" stroke="#ddd"/>')
            parts.append(text(54, at + 4, f"{top * share:,.0f}", anchor="end"))
        parts += [
            text(60 + 680 * minute * MINUTE / length, y + height - 22, f"{minute} min", anchor="middle")
            for minute in range(0, length // MINUTE + 1, 5)
        ]
    parts.append(line([one.asked for one in first], top_asked, 0, "#999", dashed=True))
    parts.append(text(740, 18, f"dashed: asked for, up to {top_asked:,.0f} images/s", "#777", "end"))
    for number, ((name, run), colour) in enumerate(zip(runs.items(), colours, strict=True)):
        parts.append(line([float(one.pods) for one in run], top_pods, 0, colour))
        parts.append(line([one.refused for one in run], top_refused, height, colour))
        parts.append(text(60 + 220 * number, 2 * height + 8, f"— {name}", colour))
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Print a line a case and write the plot."""
    runs = {name: list(simulate(cluster)) for name, cluster in CASES.items()}
    for name, seconds in runs.items():
        print(describe(name, seconds))
    for rate in (0.3, 0.5, 0.9):
        seconds = list(simulate(replace(CASES["queued rows (KEDA)"], addressed=rate)))
        print(describe(f"{rate:.0%} by address", seconds))
    Path(__file__).with_name("capacity.svg").write_text(plot(runs))


if __name__ == "__main__":
    main()
