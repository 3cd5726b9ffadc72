"""Images in files: what is told of them is read, and what is wrong with them is a sentence."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from training.errors import DataError
from training.metrics.pictures import read_pictures


def png(grey: int = 7) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), grey).save(file, format="PNG")
    return file.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A header, and next to no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(bytes(9)), b"IEND")
    packed = (struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def save(path: Path, files: dict[str, bytes]) -> Path:
    """`files` in a folder, a zip or a tar, as the name of `path` says."""
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    elif path.suffix == ".tar":
        with tarfile.open(path, "w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    else:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return path


IMAGES = {f"{i}.png": png(i) for i in range(3)}


def answer(**facts: object) -> dict[str, bytes]:
    """Images and their manifest, as a service packs them."""
    rows = [{"name": name, "class_idx": i, **facts} for i, name in enumerate(IMAGES)]
    return IMAGES | {"manifest.json": json.dumps({"model": "toy", "images": rows}).encode()}


@pytest.mark.parametrize("name", ["answer.zip", "ANSWER.ZIP", "answer.tar", "unpacked"])
def test_an_answer_of_a_service_tells_classes_truncation_and_sampler(name: str, tmp_path: Path) -> None:
    fakes = read_pictures(save(tmp_path / name, answer(truncation_psi=0.5, sampler="mh", proposals=4)))

    assert fakes.class_idx is not None
    assert fakes.class_idx.tolist() == [0, 1, 2]
    assert (fakes.truncation_psi, fakes.sampler) == (0.5, "mh, 4 proposals")
    assert fakes.images[:, 0, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("job", [None, {"proposals": None}, {"proposals": "4", "min_realness": "x"}])
def test_the_manifest_of_another_tool_tells_nothing(job: object, tmp_path: Path) -> None:
    told = json.dumps({"job": job, "images": [3, {"id": 1}]}).encode()

    fakes = read_pictures(save(tmp_path / "set", IMAGES | {"manifest.json": told}))

    assert (fakes.class_idx, fakes.truncation_psi, fakes.sampler) == (None, 1.0, "plain")


def save_odd_zip(path: Path, *, flags: int = 0, method: int = 0) -> Path:
    """A zip whose headers say that its files are encrypted, or packed by a method that none knows."""
    content = bytearray(save(path, IMAGES).read_bytes())
    for signature, at in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        start = -1
        while (start := content.find(signature, start + 1)) >= 0:
            content[start + at] = flags
            content[start + at + 2] = method
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("flags", "method", "sentence"),
    [(1, 0, "odd.zip: 0.png cannot be read: .* encrypted"), (0, 99, "odd.zip: 0.png cannot be read: ")],
)
def test_a_zip_that_cannot_be_unpacked_is_refused(
    flags: int, method: int, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=sentence):
        read_pictures(save_odd_zip(tmp_path / "odd.zip", flags=flags, method=method))


def test_a_tar_with_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "links.tar", IMAGES)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("9.png")
        link.type, link.linkname = tarfile.SYMTYPE, "nowhere.png"
        tar.addfile(link)

    with pytest.raises(DataError, match=r"9\.png in .*links\.tar is a link to a file that is not there"):
        read_pictures(path)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"0.json": b'{"truncation_psi": null}'}, "truncation_psi of 0.png must .* from 0 to 2, got null"),
        ({"0.json": b'{"truncation_psi": "x"}'}, "truncation_psi of 0.png must be .*, got 'x'"),
        ({"0.json": b'{"truncation_psi": NaN}'}, "truncation_psi of 0.png must be .*, got nan"),
        ({"0.json": b'{"truncation_psi": 0.5}'}, r"images of one truncation_psi, it holds \[0.5, 1.0\]"),
        ({"0.json": b'{"sampler": "mh", "proposals": 4}'}, "one sampler, .* .'mh, 4 proposals', 'plain'"),
        ({"0.json": b'{"sampler": 3}'}, "sampler of 0.png must be a text, got 3"),
        ({"0.json": b'{"sampler": "mh", "proposals": "4"}'}, "proposals of 0.png must be .*, got '4'"),
        ({"0.json": b'{"min_realness": "x"}'}, "min_realness of 0.png must be a number from 0 to 1, got 'x'"),
        ({"0.json": b"[" * 200_000}, "0.json must be JSON: it is nested too deeply"),
        ({"0.json": b"{"}, "0.json must be JSON: Expecting"),
        ({"metadata.jsonl": b'{"file_name": 3}'}, "metadata.jsonl must tell of images as"),
        ({"dataset.json": b"[]"}, "dataset.json must tell of images as `ganserve sample` does$"),
        ({"dataset.json": b'{"labels": [["0.png", -1]]}'}, "class of 0.png must be .* 0 to 65535, got -1"),
        ({"dataset.json": b'{"labels": [["0.png", 99999]]}'}, "the class of 0.png must be .*, got 99999"),
        ({"0.json": b'{"class_idx": 1' + b"0" * 30 + b"}"}, "the class of 0.png must be .*, got 1000"),
        ({"0.png": png_of_size(100_000, 100_000)}, "0.png must be at most 4096 pixels on each"),
        ({"0.png": png_of_size(10_000, 10_000)}, "at most 4096 pixels on each side, it is 10000×10000"),
        ({".ganserve/job.json": b"{}"}, "must be a whole set, shards of it lack"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_a_sentence(files: dict[str, bytes], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=sentence):
        read_pictures(save(tmp_path / "set", IMAGES | files))


def test_labels_of_several_numbers_are_no_classes(tmp_path: Path) -> None:
    labels = json.dumps({"labels": [[name, [0.1, 0.2]] for name in IMAGES]}).encode()

    assert read_pictures(save(tmp_path / "set", IMAGES | {"dataset.json": labels})).class_idx is None
