"""A folder or a zip of images, with labels in `dataset.json` where there are any.

StyleGAN's convention: every image file below the root, in the order of its path, and
`{"labels": [["path", class], …]}` (or null) beside them. A zip is read member by member, never
unpacked to disk. Refuses to own: resizing and cropping; what is trained on is what is in the files.
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from models.errors import show
from training.data.dataset import Dataset
from training.errors import DataError

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LABELS_FILE: Final = "dataset.json"
MAX_SIDE: Final = 4_096
MAX_CLASS_IDX: Final = 65_535

Read = Callable[[str], bytes]


def read_folder(folder: Path) -> Dataset:
    """Read every image below `folder`. Raises DataError naming the file that is wrong."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return _assemble(folder.resolve().name, names, lambda name: (folder / name).read_bytes())


def read_zip(path: Path) -> Dataset:
    """Read every image in the zip at `path`. Raises DataError naming the member that is wrong."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _assemble(path.stem, sorted(archive.namelist()), lambda name: read_member(archive, name))
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} must be a zip file: {error}") from None


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a file in a zip. Raises DataError for one that is damaged, encrypted or packed oddly."""
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, RuntimeError, zlib.error, EOFError) as error:
        raise DataError(f"{archive.filename}: {name} cannot be read: {error}") from None


def parse_json(content: bytes, file: str) -> Any:
    """What the content of `file` says. Raises DataError."""
    try:
        return json.loads(content)
    except RecursionError:
        raise DataError(f"{file} must be JSON: it is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{file} must be JSON: {error}") from None


def check_class_idx(class_idx: object, file: str, where: str = LABELS_FILE) -> None:
    """Raise DataError where what is told of `file` is no class."""
    if type(class_idx) is not int or not 0 <= class_idx <= MAX_CLASS_IDX:
        raise DataError(
            f"{where}: the class of {file} must be a whole number from 0 to {MAX_CLASS_IDX}, "
            f"got {show(class_idx)}"
        )


def _assemble(name: str, files: Iterable[str], read: Read) -> Dataset:
    files = list(files)
    image_files = [file for file in files if file.lower().endswith(SUFFIXES)]
    return Dataset(
        name=name,
        images=read_images(name, image_files, read),
        class_idx=_labels(read(LABELS_FILE), image_files) if LABELS_FILE in files else None,
    )


def read_images(name: str, files: list[str], read: Read) -> npt.NDArray[np.uint8]:
    """Return the images [N, C, H, W] of the data set `name` that are in `files`, one after the other.

    Raises DataError where there are none, and naming the file that is wrong.
    """
    if not files:
        raise DataError(f"{name} must hold images ({', '.join(SUFFIXES)}), it holds none")
    with warnings.catch_warnings():  # `_decode` has its own limit
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return _stack([_decode(read(file), file) for file in files], files)


def _decode(content: bytes, file: str) -> npt.NDArray[np.uint8]:
    """Return [C, H, W]: one channel for grey files, else three; what is transparent becomes white."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if max(image.size) > MAX_SIDE:
                width, height = image.size
                raise DataError(
                    f"{file} must be at most {MAX_SIDE} pixels on each side, it is {width}×{height}"
                )
            if image.mode in ("1", "L"):
                return np.asarray(image.convert("L"))[None]
            white = Image.new("RGBA", image.size, "white")
            flat = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
            return np.asarray(flat).transpose(2, 0, 1)
    except UnidentifiedImageError:  # whose text is where the bytes lie in memory
        raise DataError(f"{file} cannot be read as an image: it is of no known format") from None
    except Image.DecompressionBombError:  # raised before its size can be asked
        raise DataError(f"{file} must be at most {MAX_SIDE} pixels on each side, it is far larger") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file} cannot be read as an image: {error}") from None


def _stack(arrays: list[npt.NDArray[np.uint8]], files: list[str]) -> npt.NDArray[np.uint8]:
    """Return [N, C, H, W]: grey only if every image is. Raises DataError for mixed sizes."""
    channels = max(array.shape[0] for array in arrays)
    height, width = arrays[0].shape[1:]
    for array, file in zip(arrays, files, strict=True):
        if array.shape[1:] != (height, width):
            raise DataError(
                f"all images must have one size: {files[0]} is {width}×{height}, "
                f"{file} is {array.shape[2]}×{array.shape[1]}"
            )
    return np.stack([np.broadcast_to(array, (channels, height, width)) for array in arrays])


def _labels(content: bytes, image_files: list[str]) -> npt.NDArray[np.int64] | None:
    """Return the class [N] of each image, or None where `dataset.json` has none."""
    told = parse_json(content, LABELS_FILE)
    try:
        labels = told["labels"]
        classes = None if labels is None else {str(file): label for file, label in labels}
    except (ValueError, KeyError, TypeError):
        raise DataError(f'{LABELS_FILE} must be {{"labels": [["path", class], …]}}') from None
    if classes is None:
        return None
    if missing := [file for file in image_files if file not in classes]:
        raise DataError(f"{LABELS_FILE} must label every image; {missing[0]} has no label")
    for file in image_files:
        check_class_idx(classes[file], file)
    return np.array([classes[file] for file in image_files], dtype=np.int64)
