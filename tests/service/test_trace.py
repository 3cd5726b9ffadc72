"""Trace context: which headers are a trace, and what is passed back."""

from __future__ import annotations

import pytest

from service.trace import Span

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(("flags", "sampled"), [("01", True), ("00", False), ("03", True), ("02", False)])
def test_a_span_stays_in_its_callers_trace_and_is_its_own(flags: str, sampled: bool) -> None:
    spans = [Span.under(f"00-{TRACE}-{PARENT}-{flags}".encode()) for _ in range(2)]
    first, second = spans

    assert first is not None
    assert second is not None
    assert (first.trace_id, first.parent_id, first.sampled) == (TRACE, PARENT, sampled)
    assert len({first.span_id, second.span_id, PARENT, "0" * 16}) == 4
    assert first.traceparent.decode() == f"00-{TRACE}-{first.span_id}-0{int(sampled)}"


def test_a_later_version_may_say_more_and_is_answered_in_ours() -> None:
    span = Span.under(f"cc-{TRACE}-{PARENT}-01-what-comes-later".encode())

    assert span is not None
    assert span.traceparent.startswith(f"00-{TRACE}-".encode())


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01\n",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE[:-1]}g-{PARENT}-01",
        f"00_{TRACE}_{PARENT}_01",
        f"cc-{TRACE}-{PARENT}-01.more",
    ],
)
def test_a_header_that_breaks_the_rule_is_no_trace(value: str) -> None:
    assert Span.under(value.encode()) is None
