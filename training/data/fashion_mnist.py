"""Fashion-MNIST (Xiao 2017, arXiv:1708.07747): where it is found, and how it is checked.

Looked for in the folder of Debian's package `dataset-fashion-mnist`, read from any folder that
holds its IDX files, or downloaded. Known by the sha256 of the *unpacked* files: whoever packs
them again changes the gzip header, not the data. The training split is learned from, the test split
is for evaluation.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from training.data.dataset import Dataset, Split
from training.data.idx import parse_idx, read_bytes
from training.errors import DataError

NAME: Final = "fashion-mnist"
LICENCE: Final = "MIT"
CLASS_NAMES: Final = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DEBIAN_PACKAGE: Final = "dataset-fashion-mnist"
DEBIAN_FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")

IMAGES_FILE: Final = "train-images-idx3-ubyte"
LABELS_FILE: Final = "train-labels-idx1-ubyte"
TEST_IMAGES_FILE: Final = "t10k-images-idx3-ubyte"
TEST_LABELS_FILE: Final = "t10k-labels-idx1-ubyte"
_FILES: Final[dict[Split, tuple[str, str]]] = {
    "train": (IMAGES_FILE, LABELS_FILE),
    "test": (TEST_IMAGES_FILE, TEST_LABELS_FILE),
}
UNPACKED_SHA256: Final = {
    IMAGES_FILE: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    LABELS_FILE: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    TEST_IMAGES_FILE: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    TEST_LABELS_FILE: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
UNPACKED_BYTES: Final = {
    IMAGES_FILE: 47_040_016,
    LABELS_FILE: 60_008,
    TEST_IMAGES_FILE: 7_840_016,
    TEST_LABELS_FILE: 10_008,
}
MIRRORS: Final = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
)
_TIMEOUT_S: Final = 30


def holds_idx(folder: Path, split: Split = "train") -> bool:
    """True if `folder` has the images of `split` as an IDX file, plain or gzipped."""
    images_file, _ = _FILES[split]
    return any((folder / f"{images_file}{suffix}").is_file() for suffix in ("", ".gz"))


def read_folder(folder: Path, split: Split = "train") -> Dataset:
    """Read a split from IDX files: train [60000, 1, 28, 28], test [10000, …]. Raises DataError.

    A folder of the same layout with other content (MNIST, KMNIST) is read too: it goes by its
    folder's name, and its classes have no names.
    """
    images_file, labels_file = _FILES[split]
    contents = {name: read_bytes(_find(folder, name)) for name in (images_file, labels_file)}
    images = parse_idx(contents[images_file], images_file)  # [N, H, W]
    labels = parse_idx(contents[labels_file], labels_file)  # [N]
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{folder} must hold images [N, H, W] and labels [N], it holds {images.shape} and {labels.shape}"
        )
    known = all(_sha256(content) == UNPACKED_SHA256[name] for name, content in contents.items())
    return Dataset(
        name=NAME if known else folder.resolve().name,
        images=images[:, None],  # [N, 1, H, W]
        class_idx=labels.astype(np.int64),
        class_names=CLASS_NAMES if known else (),
        licence=LICENCE if known else "",
    )


def download(folder: Path, mirrors: Sequence[str] = MIRRORS) -> None:
    """Fetch both splits into `folder` from the first mirror that answers, checked by sha256.

    A file appears only when its digest is right; one that is there already is kept. Raises DataError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in UNPACKED_SHA256:
        target = folder / f"{name}.gz"
        if not target.exists():
            _write_atomically(target, _fetch_checked(name, mirrors))


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise DataError(f"{folder} must hold {name}.gz or {name}")


def _fetch_checked(name: str, mirrors: Sequence[str]) -> bytes:
    failures = []
    for mirror in mirrors:
        url = f"{mirror}/{name}.gz"
        try:
            packed = _fetch(url, max_bytes=UNPACKED_BYTES[name])
            _check_digest(packed, name)
        except (OSError, EOFError, zlib.error, DataError) as error:
            failures.append(f"{url}: {getattr(error, 'reason', error)}")
        else:
            return packed
    raise DataError(
        f"{name} could not be downloaded ({'; '.join(failures)}). "
        f"Debian has it as the package {DEBIAN_PACKAGE}; --data names a folder that holds it"
    )


def _fetch(url: str, max_bytes: int) -> bytes:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
        packed: bytes = answer.read(max_bytes + 1)
    if len(packed) > max_bytes:
        raise DataError(f"the answer must be at most {max_bytes} bytes")
    return packed


def _check_digest(packed: bytes, name: str) -> None:
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    content = unpacker.decompress(packed, UNPACKED_BYTES[name] + 1)  # bounded: a bomb stops here
    found = _sha256(content)
    if found != UNPACKED_SHA256[name]:
        raise DataError(f"sha256 of the content must be {UNPACKED_SHA256[name][:12]}…, it is {found[:12]}…")


def _write_atomically(target: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
