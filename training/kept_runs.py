"""A file of finished runs, one JSON line each: what a search that was cut off goes on from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from training.errors import RunError

Run = TypeVar("Run")


def read_kept_runs(file: Path, from_json: Callable[[str], Run], command: str) -> list[Run]:
    """Read the runs that `command` kept; none where the file is not there yet.

    Raises RunError for a line that is none.
    """
    runs = []
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            runs.append(from_json(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{file} must hold one run of `{command}` a line, line {number} is none ({error}): "
                "give another file with --out"
            ) from None
    return runs
