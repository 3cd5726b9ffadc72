"""A count on a terminal, and nothing elsewhere: a pipe gets what a program can read."""

from __future__ import annotations

import pytest

from training.metrics.counting import counted


@pytest.mark.parametrize(("terminal", "shown"), [(True, ["images:   0%", "images:  50%", ""]), (False, [""])])
def test_the_share_that_is_done_is_shown_on_a_terminal_and_wiped_at_the_end(
    terminal: bool, shown: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)

    assert list(counted("images", "ab")) == ["a", "b"]

    parts = capsys.readouterr().err.replace("\x1b[K", "").split("\r")
    assert [part for part in parts if part] + [""] == shown
