"""The command `ganserve` before any verb runs."""

from __future__ import annotations

import subprocess
import sys

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


@pytest.mark.parametrize("command", ["service models", "training presets"])
def test_a_reader_that_leaves_is_told_nothing_as_by_every_other_command(command: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", *command.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None
    program.stdout.close()

    assert program.stderr is not None
    assert (program.stderr.read(), program.wait()) == (b"", 141)
    program.stderr.close()
