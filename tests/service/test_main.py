"""The command `ganserve` before any verb runs."""

from __future__ import annotations

import pytest

from service.__main__ import main


def test_an_interrupt_while_the_settings_are_imported_is_a_status_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("service.settings.add_flags", interrupted)

    assert main(["serve"]) == 130
    assert capsys.readouterr().err == ""
