"""IDX files, plain or gzipped: the format of MNIST and of the sets that took its place.

Layout: two zero bytes, a type code (8 = uint8), the number of dimensions, each size as a
big-endian uint32, then the values. Refuses to own: which files make a data set.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.errors import DataError

_UINT8_CODE = 8
_MAX_DIMENSIONS = 4


def read_bytes(path: Path) -> bytes:
    """Read a file, unpacked if its name ends in .gz. Raises DataError."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return file.read()
        return path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def parse_idx(content: bytes, label: str) -> npt.NDArray[np.uint8]:
    """Return the array that IDX `content` holds. Raises DataError naming `label`."""
    dimensions = content[3] if len(content) >= 4 else 0
    header_bytes = 4 + 4 * dimensions
    if (
        content[:3] != bytes((0, 0, _UINT8_CODE))
        or not 1 <= dimensions <= _MAX_DIMENSIONS
        or len(content) < header_bytes
    ):
        raise DataError(
            f"{label} must be an IDX file of uint8 values, its first bytes are {content[:4].hex()}"
        )
    shape = tuple(int(size) for size in np.frombuffer(content[4:header_bytes], dtype=">u4"))
    values = np.frombuffer(content, dtype=np.uint8, offset=header_bytes)
    if values.size != math.prod(shape):
        raise DataError(
            f"{label} must hold {math.prod(shape)} values after its header ({shape}), it holds {values.size}"
        )
    return values.reshape(shape)
