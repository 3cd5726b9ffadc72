"""One microbatch: rows of several requests on their way through one worker's slot and back.

Owns what stands where in the slot on the API process's side; `worker` is the other side. When a
microbatch runs, where, and again after a death, is `dispatch`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from service.batching import Segment
from service.encoding import Format
from service.line import Line
from service.slots import Slot
from service.ticket import Portion, Ticket


@dataclass(eq=False)
class Microbatch:
    """Rows of one version that run together on one worker."""

    line: Line
    segments: Sequence[Segment[Ticket]]
    deaths: int = 0
    """Workers that died while they ran it."""
    input_s: float = 0.0
    """What writing it for the worker took, the last time."""

    rows: int = field(init=False)
    weight: int = field(init=False)
    """Images that it takes to make: each proposal counts."""
    judged: bool = field(init=False, default=False)
    """D has something to do."""

    def __post_init__(self) -> None:
        self.keep(self.segments)

    def keep(self, segments: Sequence[Segment[Ticket]]) -> None:
        """Hold no more than `segments`."""
        self.segments = segments
        self.rows = self.weight = sum([one.stop - one.start for one in segments])
        if self.line.judges:
            self.weight = sum(len(segment) * segment.request.rows.proposals for segment in segments)
            self.judged = any(segment.request.rows.judging is not None for segment in segments)

    def write(self, slot: Slot, codes: Mapping[Format | None, int]) -> None:
        """Write the rows where a worker reads them; `codes` says what it makes of each format."""
        row = 0
        for segment in self.segments:
            rows, n = segment.request.rows, len(segment)
            here: Any = segment.start
            there: Any = row
            if n > 1:  # else numbers, which cost half as much
                here, there = slice(segment.start, segment.stop), slice(row, row + n)
            slot.seeds[there] = rows.seeds[here]
            slot.class_idx[there] = rows.class_idx[here]
            slot.truncation_psi[there] = rows.truncation_psi[here]
            slot.formats[there] = codes[segment.request.fmt]
            if rows.latents is not None:
                slot.latents[there] = rows.latents[here]
            row += n
        if self.judged:
            slot.proposals[: self.rows] = np.repeat(
                [
                    0 if one.request.rows.judging is None else one.request.rows.proposals
                    for one in self.segments
                ],
                [len(one) for one in self.segments],
            )

    def take(self, slot: Slot) -> list[Portion]:
        """What a worker made of the rows, copied out of its slot: files where it wrote files, else pixels.

        Pixels that stay pixels are copied where their request keeps them.
        """
        slot = slot.first(self.rows)
        if self.judged:
            self._take_realness(slot)
        file_bytes, encode_s = slot.file_bytes.tolist(), slot.encode_s.tolist()
        row, portions = 0, []
        for segment in self.segments:
            start, end = segment.start, row + segment.stop - segment.start
            while row < end:
                first, is_file = row, file_bytes[row] > 0
                while row < end and (file_bytes[row] > 0) is is_file:
                    row += 1
                if is_file:
                    files = [slot.files[one][: file_bytes[one]].tobytes() for one in range(first, row)]
                    portions.append(Portion(segment.request, start, files, sum(encode_s[first:row])))
                else:
                    portions.append(_pixels(segment.request, start, slot.images[first:row]))
                start += row - first
        return portions

    def _take_realness(self, slot: Slot) -> None:
        row = 0
        for segment in self.segments:
            if segment.request.realness is not None:
                there = slot.realness[row : row + len(segment)]
                segment.request.realness[segment.start : segment.stop] = there
            row += len(segment)

    def apart(self) -> list[Microbatch]:
        """The same rows, each alone."""
        return [
            Microbatch(self.line, [Segment(segment.request, row, row + 1)], self.deaths)
            for segment in self.segments
            for row in range(segment.start, segment.stop)
        ]


def _pixels(ticket: Ticket, start: int, made: npt.NDArray[np.uint8]) -> Portion:
    """The pixels `made` of the rows from `start` on, copied."""
    if ticket.fmt is not None:
        return Portion(ticket, start, made.copy())
    pixels = ticket.images[start : start + len(made)]
    pixels[:] = made
    return Portion(ticket, start, pixels)
