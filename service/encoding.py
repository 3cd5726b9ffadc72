"""Pixels become files: one image, or many in one container.

The same pixels always give the same bytes: no time, no random part, fixed options. Pillow's
encoders release the GIL, so the calls belong in a thread pool.
"""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

Format = Literal["png", "jpg", "webp", "npy"]
Container = Literal["zip", "json"]

IMAGE_FORMATS: Final[tuple[Format, ...]] = ("png", "jpg", "webp")
MEDIA_TYPES: Final[dict[str, str]] = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "npy": "application/x-npy",
    "zip": "application/zip",
    "json": "application/json",
}

# zlib level 1: a generator's output hardly shrinks further, and level 6 costs three times as much.
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "png": {"format": "PNG", "compress_level": 1},
    "jpg": {"format": "JPEG", "quality": 92, "subsampling": 0},
    "webp": {"format": "WEBP", "lossless": True, "quality": 0, "method": 0},
}
_WALK_OPTIONS: Final[dict[str, Any]] = {
    "format": "WEBP",
    "lossless": True,
    "quality": 50,
    "method": 0,
    "loop": 0,
}
_ZIP_TIME: Final = (
    1980,
    1,
    1,
    0,
    0,
    0,
)  # the earliest that a zip can say: bytes must not depend on the clock

ENCODER: Final = f"pillow {PIL.__version__}"
"""Encoder and version: part of the render id, since another encoder writes other bytes."""


def encode_image(pixels: npt.NDArray[np.uint8], fmt: Format) -> bytes:
    """One image [H, W, C] uint8 (C 1 or 3) as a PNG, JPEG or lossless WebP file; npy as [1, H, W, C]."""
    if fmt == "npy":
        return encode_npy(pixels[None])
    file = io.BytesIO()
    _to_pillow(pixels).save(file, **_OPTIONS[fmt])
    return file.getvalue()


def encode_npy(images: npt.NDArray[np.uint8]) -> bytes:
    """Images [N, H, W, C] uint8 as one .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(images), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def encode_walk(frames: npt.NDArray[np.uint8], frame_ms: int) -> bytes:
    """Frames [N, H, W, C] uint8 as one endless animated WebP, `frame_ms` milliseconds a frame."""
    file = io.BytesIO()
    first, *rest = [_to_pillow(frame) for frame in frames]
    first.save(file, save_all=True, append_images=rest, duration=frame_ms, **_WALK_OPTIONS)
    return file.getvalue()


def warm_up() -> None:
    """Load Pillow's plugins (20 ms) before the first request needs them."""
    for fmt in IMAGE_FORMATS:
        encode_image(np.zeros((1, 1, 1), dtype=np.uint8), fmt)


@dataclass(frozen=True)
class EncodedImage:
    """One image of an answer, with what names it."""

    name: str
    seed: int | None
    class_idx: int | None
    data: bytes


def pack_zip(images: Sequence[EncodedImage], fmt: Format) -> bytes:
    """The files in one zip, stored uncompressed (they are compressed already).

    A seed that is asked for again, with another class say, gets a number: `seed0000000007-2.png`.
    """
    file = io.BytesIO()
    times_named: Counter[str] = Counter()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for image in images:
            times_named[image.name] += 1
            again = f"-{times_named[image.name]}" if times_named[image.name] > 1 else ""
            archive.writestr(zipfile.ZipInfo(f"{image.name}{again}.{fmt}", date_time=_ZIP_TIME), image.data)
    return file.getvalue()


def pack_json(images: Sequence[EncodedImage], fmt: Format) -> bytes:
    """{"images": [{"seed", "class_idx", "media_type", "data": base64}]}."""
    entries = [
        {
            "seed": image.seed,
            "class_idx": image.class_idx,
            "media_type": MEDIA_TYPES[fmt],
            "data": base64.b64encode(image.data).decode("ascii"),
        }
        for image in images
    ]
    return json.dumps({"images": entries}, separators=(",", ":")).encode()


def _to_pillow(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """[H, W, 1] becomes a grey image, [H, W, 3] an RGB one."""
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
