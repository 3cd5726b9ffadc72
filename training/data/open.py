"""Find out what a path holds, and read it.

A folder with IDX files, the emoji package, a folder of images, or a zip of images. Without a path:
Fashion-MNIST where Debian puts it.
"""

from __future__ import annotations

from pathlib import Path

from training.data import emoji, fashion_mnist, images
from training.data.dataset import Dataset, Split
from training.errors import DataError


def open_dataset(path: Path | None, img_resolution: int, split: Split = "train") -> Dataset:
    """Read a split of the data at `path`, padded to `img_resolution`. Raises DataError with the way out."""
    if split not in splits(path):
        raise DataError(f"{path or fashion_mnist.DEBIAN_FOLDER} has no test split: give --split train")
    if path is None:
        return _debian_fashion_mnist(split).padded(img_resolution)
    if path.is_dir():
        return _read_folder(path, split).padded(img_resolution)
    if path.is_file():
        return images.read_zip(path).padded(img_resolution)
    raise DataError(f"--data must name a folder or a zip file, got {str(path)!r}")


def splits(path: Path | None) -> tuple[Split, ...]:
    """The splits of the data set at `path`. Only Fashion-MNIST and its kin come with images held out."""
    folder = path or fashion_mnist.DEBIAN_FOLDER
    return ("train", "test") if fashion_mnist.holds_idx(folder, "test") else ("train",)


def _read_folder(folder: Path, split: Split) -> Dataset:
    if fashion_mnist.holds_idx(folder):
        return fashion_mnist.read_folder(folder, split)
    if emoji.holds_emoji(folder):
        return emoji.read_folder(folder)
    return images.read_folder(folder)


def _debian_fashion_mnist(split: Split) -> Dataset:
    folder = fashion_mnist.DEBIAN_FOLDER
    if not fashion_mnist.holds_idx(folder):
        raise DataError(
            f"{folder} has no Fashion-MNIST: install Debian's package {fashion_mnist.DEBIAN_PACKAGE}, "
            "or run `gantrain download DIR` and give --data DIR"
        )
    return fashion_mnist.read_folder(folder, split)
