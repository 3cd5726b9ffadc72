"""W3C Trace Context: the caller's trace of which one request is a part.

https://www.w3.org/TR/trace-context/ level 1. We export no spans: our span id names the request in the
caller's trace, in our log and in our answer. Without a (valid) header there is no trace; the request
id names the request then, as always.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

# version, trace id, parent's span id, flags; neither id may be zero, and version ff is no version.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-[ -~]*)?"
)
_SAMPLED: Final = 1


@dataclass(frozen=True)
class Span:
    """One request as a part of its caller's trace. Ids are lower-case hex, 32 and 16 digits."""

    trace_id: str
    span_id: str
    """Ours, made for this request."""
    parent_id: str
    """The caller's span."""
    sampled: bool

    @classmethod
    def under(cls, traceparent: bytes) -> Span | None:
        """A new span under the caller's, or None where the header's value breaks the rule."""
        match = _TRACEPARENT.fullmatch(traceparent)
        if match is None:
            return None
        version, trace_id, parent_id, flags, more = match.groups()
        if more is not None and version == b"00":  # only later versions may have more fields
            return None
        sampled = bool(int(flags, 16) & _SAMPLED)
        return cls(trace_id.decode(), _new_span_id(), parent_id.decode(), sampled)

    @property
    def traceparent(self) -> bytes:
        """The header's value with our span, in version 00."""
        return f"00-{self.trace_id}-{self.span_id}-{self.sampled:02x}".encode()


def _new_span_id() -> str:
    return f"{int.from_bytes(os.urandom(8)) or 1:016x}"  # zero is no span id
