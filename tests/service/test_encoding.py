"""The same pixels give the same bytes, and lossless formats give the pixels back."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service import encoding
from service.encoding import (
    Format,
    encode_image,
    encode_npy,
    encode_png,
    encode_walk,
    encoder_id,
    new_npy,
)


def noise(*shape: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8)


def chunks_of(png: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, data) of each chunk, after checking signature, lengths and check sums."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        data = png[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", png, at + 8 + length) == (zlib.crc32(kind + data),)
        chunks.append((kind, data))
        at += 12 + length
    assert at == len(png)
    return chunks


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fmt", ["png", "webp", "jpg", "npy"])
def test_the_same_pixels_give_the_same_bytes(fmt: Format, channels: int) -> None:
    pixels = noise(9, 7, channels)

    assert encode_image(pixels, fmt) == encode_image(np.asfortranarray(pixels), fmt)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_png_and_webp_are_lossless(channels: int, mode: str) -> None:
    pixels = noise(9, 7, channels)

    for fmt in ("png", "webp"):
        image = Image.open(io.BytesIO(encode_image(pixels, fmt)))  # type: ignore[arg-type]
        assert image.size == (7, 9)
        assert np.array_equal(np.asarray(image.convert(mode)).reshape(pixels.shape), pixels)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
    levels=st.sampled_from([1, 2, 256]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_any_image_survives_as_a_valid_png(
    height: int, width: int, channels: int, levels: int, seed: int
) -> None:
    pixels = np.random.RandomState(seed).randint(0, levels, (height, width, channels), dtype=np.uint8)

    png = encode_png(pixels)

    (head, header), (data, deflated), end = chunks_of(png)
    assert (head, data, end) == (b"IHDR", b"IDAT", (b"IEND", b""))
    assert struct.unpack(">IIBBBBB", header) == (width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    assert len(zlib.decompress(deflated)) == height * (1 + width * channels)
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == {1: "L", 3: "RGB"}[channels]
        assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (1, 4096, 3), (4096, 1, 1), (1024, 1024, 3)])
def test_small_long_and_large_images_survive_as_png(shape: tuple[int, int, int]) -> None:
    pixels = np.cumsum(noise(*shape) % 5, axis=0, dtype=np.uint8)

    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert np.array_equal(np.asarray(image).reshape(shape), pixels)


def test_an_encoder_that_writes_other_bytes_has_another_id(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = encoder_id()
    monkeypatch.setattr(encoding, "_PNG_DEFLATE", (9,))  # as another build of zlib does
    encoder_id.cache_clear()
    try:
        other = encoder_id()
    finally:
        encoder_id.cache_clear()

    assert other != usual
    assert other.rpartition(", ")[0] == usual.rpartition(", ")[0]


def test_npy_reads_back() -> None:
    images = noise(4, 9, 7, 3)

    assert np.array_equal(np.load(io.BytesIO(encode_npy(images)), allow_pickle=False), images)


def test_an_npy_file_that_images_are_written_into_is_the_one_made_of_them() -> None:
    images = noise(4, 9, 7, 3)
    file, inside = new_npy(images.shape)

    inside[:] = images

    assert bytes(file) == encode_npy(images)


def test_a_walk_holds_every_frame() -> None:
    frames = noise(5, 9, 7, 3)

    animation = Image.open(io.BytesIO(encode_walk(frames, 50)))

    assert animation.n_frames == 5  # type: ignore[attr-defined]
    for number, frame in enumerate(frames):
        animation.seek(number)
        assert np.array_equal(np.asarray(animation.convert("RGB")), frame)
