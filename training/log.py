"""What the package says while it works, at a prompt: sentences on stdout, cautions on stderr.

Modules log to `logging.getLogger(__name__)`; a run folder keeps the same sentences in its `log.txt`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def said_at_the_prompt() -> Iterator[None]:
    """Print what the package logs meanwhile: from INFO on stdout, from WARNING on stderr."""
    logger = logging.getLogger("training")
    handler, level = _Prompt(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Prompt(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        caution = record.levelno >= logging.WARNING
        stream = sys.stderr if caution else sys.stdout
        line = f"gantrain: caution: {record.getMessage()}" if caution else record.getMessage()
        # Where tqdm is imported there may be a bar: its own print goes around it.
        write = sys.modules["tqdm"].tqdm.write if "tqdm" in sys.modules else print
        write(line, file=stream)
        stream.flush()
