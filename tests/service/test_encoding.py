"""The same pixels give the same bytes, and lossless formats give the pixels back."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from service.encoding import (
    EncodedImage,
    Format,
    encode_image,
    encode_npy,
    encode_walk,
    pack_json,
    pack_zip,
)


def noise(*shape: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8)


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


def test_npy_reads_back() -> None:
    images = noise(4, 9, 7, 3)

    assert np.array_equal(np.load(io.BytesIO(encode_npy(images)), allow_pickle=False), images)


def test_a_walk_holds_every_frame() -> None:
    frames = noise(5, 9, 7, 3)

    animation = Image.open(io.BytesIO(encode_walk(frames, 50)))

    assert animation.n_frames == 5  # type: ignore[attr-defined]
    for number, frame in enumerate(frames):
        animation.seek(number)
        assert np.array_equal(np.asarray(animation.convert("RGB")), frame)


def test_containers_name_each_image() -> None:
    images = [EncodedImage(f"seed{seed:010d}", seed, None, b"data") for seed in (1, 2)]

    with zipfile.ZipFile(io.BytesIO(pack_zip(images, "png"))) as archive:
        assert archive.namelist() == ["seed0000000001.png", "seed0000000002.png"]
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    again = [EncodedImage("seed0000000007", 7, class_idx, b"data") for class_idx in range(3)]
    with zipfile.ZipFile(io.BytesIO(pack_zip(again, "png"))) as archive:
        assert archive.namelist() == ["seed0000000007.png", "seed0000000007-2.png", "seed0000000007-3.png"]
    entry = json.loads(pack_json(images, "webp"))["images"][1]
    assert entry == {"seed": 2, "class_idx": None, "media_type": "image/webp", "data": "ZGF0YQ=="}
