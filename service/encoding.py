"""Pixels become files, one an image; `containers` puts many into one.

The same pixels always give the same bytes: no time, no random part, fixed options. The encoders
release the GIL, so the calls belong in a thread pool.

PNG is written here: Up filter, stdlib zlib with run-length matches only (Z_RLE), one IDAT. At 64×64 RGB
that takes a third of Pillow's time for a file of the same size. ISA-L takes a third of that again, but under
load it was seen to write one image's stream in two ways: the same pixels, other bytes. Builds of zlib and
Pillow differ too, so `encoder_id` does not trust version numbers alone.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

Format = Literal["png", "jpg", "webp", "npy"]

FORMATS: Final[tuple[Format, ...]] = ("png", "jpg", "webp", "npy")
IMAGE_FORMATS: Final[tuple[Format, ...]] = ("png", "jpg", "webp")
MEDIA_TYPES: Final[dict[str, str]] = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "npy": "application/x-npy",
    "zip": "application/zip",
    "tar": "application/x-tar",
    "json": "application/json",
}

_PNG_DEFLATE: Final = (1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
_PNG_UP: Final = 2  # filter: each row as its difference to the row above
_PNG_COLOUR_TYPES: Final = {1: 0, 3: 2}  # channels: grey, RGB
# Keyword, not compressed, no language, no translated keyword: what the XMP specification, part 3, asks for.
_PNG_XMP: Final = b"XML:com.adobe.xmp\0\0\0\0\0"
_PNG_IDAT_CRC: Final = zlib.crc32(b"IDAT")

# Pillow's.
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
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


def encode_image(pixels: npt.NDArray[np.uint8], fmt: Format, mark: bytes | None = None) -> bytes:
    """One image [H, W, C] uint8 (C 1 or 3) as a PNG, JPEG or lossless WebP file; npy as [1, H, W, C].

    `mark` is an XMP packet to put inside; npy has no place for one.
    """
    if fmt == "png":
        return encode_png(pixels, mark)
    if fmt == "npy":
        return encode_npy(pixels[None])
    file = io.BytesIO()
    _to_pillow(pixels).save(file, **_OPTIONS[fmt], **_xmp(mark))
    return file.getvalue()


def encode_png(pixels: npt.NDArray[np.uint8], mark: bytes | None = None) -> bytes:
    """One image [H, W, C] uint8 (C 1 or 3) as a PNG file. PNG specification: https://www.w3.org/TR/png-3/

    `mark` is an XMP packet to put inside.
    """
    rows = pixels.reshape(len(pixels), -1)  # [H, W*C]
    scanlines = np.empty((rows.shape[0], 1 + rows.shape[1]), dtype=np.uint8)
    scanlines[:, 0] = _PNG_UP
    scanlines[0, 1:] = rows[0]  # the row above the first counts as zeros
    np.subtract(rows[1:], rows[:-1], out=scanlines[1:, 1:])
    deflate = zlib.compressobj(*_PNG_DEFLATE)
    data = deflate.compress(scanlines.data) + deflate.flush()
    check = zlib.crc32(data, _PNG_IDAT_CRC)
    return b"".join(
        (
            _png_head(pixels.shape),
            b"" if mark is None else _png_chunk(b"iTXt", _PNG_XMP + mark),
            len(data).to_bytes(4, "big"),
            b"IDAT",
            data,
            check.to_bytes(4, "big"),
            _PNG_END,
        )
    )


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file: length, kind, data, check sum."""
    check = zlib.crc32(data, zlib.crc32(kind))
    return b"".join((len(data).to_bytes(4, "big"), kind, data, check.to_bytes(4, "big")))


@cache
def _png_head(shape: tuple[int, int, int]) -> bytes:
    """Signature and header of an image [H, W, C]: 8 bits a channel, not interlaced."""
    height, width, channels = shape
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOUR_TYPES[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header)


_PNG_END: Final = _png_chunk(b"IEND", b"")


def encode_npy(values: npt.NDArray[Any]) -> bytes:
    """Images [N, H, W, C] uint8, or any other array, as one .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(values), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def new_npy(shape: tuple[int, ...]) -> tuple[memoryview, npt.NDArray[np.uint8]]:
    """A .npy file of images [N, H, W, C] uint8 that are to be made, and these images, which lie in it."""
    head = _npy_head(shape)
    file = np.empty(len(head) + math.prod(shape), dtype=np.uint8)
    file[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    return file.data, file[len(head) :].reshape(shape)


@lru_cache(maxsize=64)
def _npy_head(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def encode_walk(frames: npt.NDArray[np.uint8], frame_ms: int, mark: bytes | None = None) -> bytes:
    """Frames [N, H, W, C] uint8 as one endless animated WebP, `frame_ms` milliseconds a frame."""
    file = io.BytesIO()
    first, *rest = [_to_pillow(frame) for frame in frames]
    first.save(file, save_all=True, append_images=rest, duration=frame_ms, **_WALK_OPTIONS, **_xmp(mark))
    return file.getvalue()


@cache
def encoder_id() -> str:
    """What encodes here: versions, and a hash of what it makes of one fixed image.

    Part of the render id. The hash tells apart what versions do not: a CPU or a build of a library for
    which the encoders write other bytes. The first call loads Pillow's plugins (20 ms).
    """
    x, y = np.meshgrid(np.arange(48, dtype=np.uint32), np.arange(40, dtype=np.uint32))
    smooth = x * 3 + y * 2
    rough = (x * 2654435761 + y * 40503 + x * y * 69621) >> 13
    fixed = np.stack([smooth, np.where(x < 24, smooth, rough), smooth ^ (y >> 2)], axis=-1).astype(np.uint8)
    made = hashlib.sha256()
    for fmt in IMAGE_FORMATS:
        made.update(encode_image(fixed, fmt, b"mark"))
    made.update(encode_walk(np.stack([fixed, fixed[::-1]]), 40, b"mark"))
    return f"zlib {zlib.ZLIB_RUNTIME_VERSION}, pillow {PIL.__version__}, {made.hexdigest()[:12]}"


@dataclass(frozen=True)
class EncodedImage:
    """One image of an answer, with what names it."""

    name: str
    seed: int | None
    class_idx: int | None
    truncation_psi: float
    data: bytes
    judged: Mapping[str, Any] = field(default_factory=dict)
    """How it was chosen, and how real it is, where a discriminator had to do with it."""


def _xmp(mark: bytes | None) -> dict[str, Any]:
    """What tells Pillow to put `mark` into a file."""
    return {} if mark is None else {"xmp": mark}


def _to_pillow(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """[H, W, 1] becomes a grey image, [H, W, 3] an RGB one."""
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
