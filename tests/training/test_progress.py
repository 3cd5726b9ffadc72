"""A bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from training.progress import Progress

ROW = {
    "cur_nimg": 1_500,
    "D_loss": 1.25,
    "G_loss": 0.75,
    "D_real_probability": 0.6,
    "D_fake_probability": 0.4,
    "images_per_s": 800.4,
    "train_s": 2.2,
}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _run() -> None:
    with Progress(total_nimg=3_000, cur_nimg=1_000) as progress:
        progress.advance(500)
        progress.tick(ROW)


def test_elsewhere_a_tick_is_one_line_and_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    _run()

    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out == (
        "kimg      1.5/3  D_loss 1.250  G_loss 0.750  D(x) 0.60  D(G(z)) 0.40  800 images/s  2 s\n"
    )


def test_logits_that_are_no_probabilities_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    logits = {name.replace("probability", "logit"): value for name, value in ROW.items()}

    with Progress(total_nimg=3_000, cur_nimg=1_000) as progress:
        progress.tick(logits | {"D_real_logit": 12.5})

    assert "logit(x) 12.50  logit(G(z)) 0.40" in capsys.readouterr().out


def test_on_a_terminal_a_bar_counts_images_and_the_line_is_there_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    _run()

    assert "1.50k/3.00k" in terminal.getvalue()
    assert "kimg      1.5/3" in capsys.readouterr().out
