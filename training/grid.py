"""Grids of images as PNG files. Refuses to own: what is in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.files import atomic_file

DEFAULT_COLUMNS = 10


def grid_columns(num_classes: int) -> int:
    """Columns that put one class under the other when consecutive seeds take their default class."""
    return num_classes if 2 <= num_classes <= 16 else DEFAULT_COLUMNS


def tile(images: npt.NDArray[np.uint8], columns: int) -> npt.NDArray[np.uint8]:
    """Lay images [N, H, W, C] out row by row: [rows*H, columns*W, C], black where the last row ends early."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    canvas = np.zeros((rows * columns, height, width, channels), dtype=np.uint8)
    canvas[:count] = images
    cells = canvas.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return cells.reshape(rows * height, columns * width, channels)


def save_grid(path: Path, images: npt.NDArray[np.uint8], columns: int, scale: int = 1) -> None:
    """Write images [N, H, W, C] uint8 as one PNG, enlarged `scale` times without smoothing."""
    canvas = tile(images, columns)
    picture = Image.fromarray(canvas[..., 0] if canvas.shape[-1] == 1 else canvas)
    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    with atomic_file(path) as file:
        picture.save(file, format="PNG")
