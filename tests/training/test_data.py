"""Files become data sets, or a sentence that names what is wrong with them."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import json
import struct
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data import DataOrder, Dataset, fashion_mnist, open_dataset
from training.data.idx import parse_idx
from training.errors import DataError

needs_fashion_mnist = pytest.mark.skipif(
    not fashion_mnist.holds_idx(fashion_mnist.DEBIAN_FOLDER),
    reason=f"needs Debian's package {fashion_mnist.DEBIAN_PACKAGE}",
)


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx_folder(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{fashion_mnist.IMAGES_FILE}.gz").write_bytes(gzip.compress(idx_bytes(images)))
    (folder / fashion_mnist.LABELS_FILE).write_bytes(idx_bytes(labels))
    return folder


def png(color: object, mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, format="PNG")
    return file.getvalue()


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


# Fashion-MNIST and IDX


@needs_fashion_mnist
def test_fashion_mnist_is_found_where_debian_puts_it_and_known_by_its_content() -> None:
    dataset = open_dataset(None, img_resolution=32)

    assert dataset.name == "fashion-mnist"
    assert dataset.images.shape == (60_000, 1, 32, 32)
    assert dataset.class_names[9] == "Ankle boot"
    assert np.bincount(dataset.class_idx).tolist() == [6_000] * 10
    assert dataset.images[:, :, :2].max() == 0  # the margins are black
    assert dataset.images[0, 0].sum() == 76_247  # the first boot, whole
    assert dataset.class_idx[0] == 9


def test_without_the_debian_package_the_ways_out_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path)

    with pytest.raises(DataError) as refusal:
        open_dataset(None, img_resolution=32)

    assert "dataset-fashion-mnist" in str(refusal.value)
    assert "gantrain download" in str(refusal.value)


def test_an_idx_folder_of_another_set_is_read_under_its_own_name(tmp_path: Path) -> None:
    images = np.arange(3 * 14 * 14, dtype=np.uint8).reshape(3, 14, 14)
    folder = write_idx_folder(tmp_path / "kuzushiji", images, np.array([0, 2, 1], dtype=np.uint8))

    dataset = open_dataset(folder, img_resolution=16)

    assert (dataset.name, dataset.class_names, dataset.num_classes) == ("kuzushiji", (), 3)
    np.testing.assert_array_equal(dataset.images[:, 0, 1:15, 1:15], images)
    assert dataset.class_idx.tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "must be an IDX file of uint8 values"),
        (b"\x89PNG", "must be an IDX file of uint8 values, its first bytes are 89504e47"),
        (b"\0\0\x0d\x01\0\0\0\0", "must be an IDX file of uint8 values"),
        (b"\0\0\x08\x03\0\0", "must be an IDX file of uint8 values"),
        (b"\0\0\x08\x01\0\0\0\x05abc", r"must hold 5 values after its header \(\(5,\)\), it holds 3"),
    ],
)
def test_a_file_that_is_no_idx_is_refused(content: bytes, rule: str) -> None:
    with pytest.raises(DataError, match=f"images {rule}"):
        parse_idx(content, "images")


def test_a_truncated_gzip_is_a_sentence(tmp_path: Path) -> None:
    folder = write_idx_folder(tmp_path, np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.uint8))
    packed = folder / f"{fashion_mnist.IMAGES_FILE}.gz"
    packed.write_bytes(packed.read_bytes()[:-12])

    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        open_dataset(folder, img_resolution=16)


def test_labels_of_another_length_are_refused(tmp_path: Path) -> None:
    folder = write_idx_folder(tmp_path, np.zeros((3, 4, 4), np.uint8), np.zeros(2, np.uint8))

    with pytest.raises(DataError, match=r"must hold images \[N, H, W\] and labels \[N\]"):
        open_dataset(folder, img_resolution=16)


def test_a_folder_without_labels_names_the_missing_file(tmp_path: Path) -> None:
    folder = write_idx_folder(tmp_path, np.zeros((3, 4, 4), np.uint8), np.zeros(3, np.uint8))
    (folder / fashion_mnist.LABELS_FILE).unlink()

    with pytest.raises(DataError, match="must hold train-labels-idx1-ubyte"):
        open_dataset(folder, img_resolution=16)


# Download


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A local HTTP server and the folder it serves."""
    root = tmp_path / "mirror"
    root.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", root
        server.shutdown()
        thread.join()


@needs_fashion_mnist
def test_a_download_is_checked_and_becomes_a_folder_to_train_on(
    mirror: tuple[str, Path], tmp_path: Path
) -> None:
    url, root = mirror
    for name in fashion_mnist.UNPACKED_SHA256:
        (root / f"{name}.gz").symlink_to(fashion_mnist.DEBIAN_FOLDER / f"{name}.gz")

    fashion_mnist.download(tmp_path / "data", mirrors=[f"{url}/nothing-here", url])

    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    ]
    train, test = (fashion_mnist.read_folder(tmp_path / "data", split) for split in ("train", "test"))
    assert (train.name, test.name) == ("fashion-mnist", "fashion-mnist")
    assert (len(train), len(test)) == (60_000, 10_000)


def test_data_without_a_held_out_part_has_no_test_split(tmp_path: Path) -> None:
    folder = write_idx_folder(tmp_path, np.zeros((2, 4, 4), dtype=np.uint8), np.array([0, 1], dtype=np.uint8))

    with pytest.raises(DataError, match="has no test split: give --split train"):
        open_dataset(folder, img_resolution=32, split="test")


def test_a_download_with_other_content_leaves_nothing(mirror: tuple[str, Path], tmp_path: Path) -> None:
    url, root = mirror
    (root / f"{fashion_mnist.IMAGES_FILE}.gz").write_bytes(gzip.compress(b"not the images"))

    with pytest.raises(DataError) as refusal:
        fashion_mnist.download(tmp_path / "data", mirrors=[url])

    assert "sha256 of the content must be" in str(refusal.value)
    assert "dataset-fashion-mnist" in str(refusal.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_download_that_unpacks_to_more_than_the_data_is_refused(
    mirror: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, root = mirror
    monkeypatch.setitem(fashion_mnist.UNPACKED_BYTES, fashion_mnist.IMAGES_FILE, 1_000)
    (root / f"{fashion_mnist.IMAGES_FILE}.gz").write_bytes(gzip.compress(bytes(500_000)))

    with pytest.raises(DataError, match="sha256 of the content must be"):
        fashion_mnist.download(tmp_path / "data", mirrors=[url])


# The emoji package


def emoji_package(folder: Path) -> Path:
    """A face, a person in two skin tones, a flag, and what is not used of such a package."""

    def entry(image: str, subcategory: str, **more: object) -> dict[str, object]:
        return {"image": image, "subcategory": subcategory, "has_img_google": True, **more}

    tone = {"1F3FB": {"image": "c.png", "has_img_google": True}}
    entries = [
        entry("d.png", "country-flag"),
        entry("a.png", "face-smiling"),
        entry("b.png", "person", skin_variations=tone),
        entry("x.png", "food-fruit"),
        entry("y.png", "person") | {"has_img_google": False},
    ]
    colors = {"a": (255, 0, 0, 255), "b": (0, 255, 0, 255), "c": (0, 0, 255, 255), "d": (9, 9, 9, 0)}
    images = {f"img/google/64/{name}.png": png(c, "RGBA", (64, 64)) for name, c in colors.items()}
    return write_files(folder, images | {"emoji.json": json.dumps(entries).encode()})


def test_the_emoji_package_is_faces_persons_and_flags_with_every_skin_tone(tmp_path: Path) -> None:
    dataset = open_dataset(emoji_package(tmp_path / "package"), img_resolution=64)

    assert (dataset.name, dataset.licence) == ("emoji", "Apache-2.0")
    assert "`npm pack emoji-datasource-google@" in dataset.padded(64).facts()["source"]
    assert [dataset.class_names[i] for i in dataset.class_idx] == ["Face", "Person", "Person", "Flag"]
    assert dataset.images[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ({"emoji.json": b'{"a": 1}'}, r"emoji\.json must be the list of emoji-datasource-google$"),
        ({"img/google/64/a.png": b""}, r"a\.png cannot be read as an image"),
        ({"img/google/64/a.png": None}, "must be the whole package emoji-datasource-google: .*No such file"),
    ],
)
def test_an_emoji_package_that_is_not_whole_is_refused(
    damage: dict[str, bytes | None], sentence: str, tmp_path: Path
) -> None:
    folder = emoji_package(tmp_path)
    for name, content in damage.items():
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)

    with pytest.raises(DataError, match=sentence):
        open_dataset(folder, img_resolution=64)


# Folders and zips of images


FILES = {"b/2.png": png((0, 0, 255)), "a/1.png": png((255, 0, 0)), "notes.txt": b"not an image"}


@pytest.mark.parametrize("packed", [False, True])
def test_images_are_read_in_the_order_of_their_paths(packed: bool, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", FILES) if packed else write_files(tmp_path / "set", FILES)

    dataset = open_dataset(path, img_resolution=16)

    assert (dataset.name, dataset.class_idx) == ("set", None)
    assert dataset.images[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize("packed", [False, True])
def test_dataset_json_labels_the_images(packed: bool, tmp_path: Path) -> None:
    labels = json.dumps({"labels": [["a/1.png", 1], ["b/2.png", 0]]}).encode()
    files = FILES | {"dataset.json": labels}
    path = write_zip(tmp_path / "set.zip", files) if packed else write_files(tmp_path / "set", files)

    dataset = open_dataset(path, img_resolution=32)

    assert dataset.class_idx.tolist() == [1, 0]
    assert dataset.images.shape == (2, 3, 32, 32)


def test_null_labels_are_none(tmp_path: Path) -> None:
    folder = write_files(tmp_path, FILES | {"dataset.json": b'{"labels": null}'})

    dataset = open_dataset(folder, img_resolution=16)

    assert dataset.num_classes == 0


def test_grey_images_stay_one_channel_and_transparent_ones_lie_on_white(tmp_path: Path) -> None:
    grey = write_files(tmp_path / "grey", {"1.png": png(7, "L"), "2.png": png(9, "L")})
    mixed = write_files(tmp_path / "mixed", {"1.png": png(7, "L"), "2.png": png((9, 9, 9, 0), "RGBA")})

    grey_images = open_dataset(grey, img_resolution=16).images
    mixed_images = open_dataset(mixed, img_resolution=16).images

    assert grey_images[:, :, 0, 0].tolist() == [[7], [9]]
    assert mixed_images[:, :, 0, 0].tolist() == [[7, 7, 7], [255, 255, 255]]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"notes.txt": b""}, "must hold images"),
        (
            {"1.png": png(0), "2.png": b"not a png"},
            "2.png cannot be read as an image: it is of no",
        ),
        ({"1.png": png(0), "2.png": png(0)[:45]}, "2.png cannot be read as an image"),
        ({"1.png": png(0), "2.png": png(0, size=(8, 16))}, "all images must have one size: 1.png is 16×16"),
        ({"1.png": png(0, size=(64, 64)), "2.png": png(0, size=(64, 64))}, "must be at most img_resolution"),
        ({"1.png": png(0)}, "must hold at least 2 images"),
        (FILES | {"dataset.json": b"[]"}, "dataset.json must be"),
        (FILES | {"dataset.json": b"[" * 200_000}, "dataset.json must be JSON: it is nested too deeply"),
        (FILES | {"dataset.json": b'{"labels": [["a/1.png", 0]]}'}, "b/2.png has no label"),
        (
            FILES | {"dataset.json": b'{"labels": [["a/1.png", 0], ["b/2.png", -1]]}'},
            "the class of b/2.png must be a whole number from 0 to 65535, got -1",
        ),
    ],
)
def test_a_bad_folder_is_a_sentence_that_names_the_file(
    files: dict[str, bytes], sentence: str, tmp_path: Path
) -> None:
    folder = write_files(tmp_path / "set", files)

    with pytest.raises(DataError) as refusal:
        open_dataset(folder, img_resolution=16)

    assert sentence in str(refusal.value)


def test_a_file_that_is_no_zip_and_a_path_that_is_nothing_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"not a zip")

    with pytest.raises(DataError, match="must be a zip file"):
        open_dataset(tmp_path / "set.zip", img_resolution=16)
    with pytest.raises(DataError, match="--data must name a folder or a zip file"):
        open_dataset(tmp_path / "nothing", img_resolution=16)


# Digest and order


def _dataset(pixel: int = 0, label: int = 0) -> Dataset:
    images = np.zeros((4, 1, 16, 16), dtype=np.uint8)
    images[3, 0, 15, 15] = pixel
    return Dataset(name="toy", images=images, class_idx=np.array([0, 1, 1, label]))


def test_the_digest_knows_every_pixel_and_label_and_not_the_name() -> None:
    base = _dataset()
    renamed = Dataset(name="other", images=base.images, class_idx=base.class_idx)

    digests = {_dataset().digest, _dataset(pixel=1).digest, _dataset(label=1).digest}

    assert len(digests) == 3
    assert renamed.digest == base.digest


def test_an_epoch_shows_every_image_once_and_the_next_one_in_another_order() -> None:
    order = DataOrder(num_images=10, seed=3)

    shown = [order.rows(cur_nimg, 4) for cur_nimg in range(0, 20, 4)]

    epochs = np.concatenate(shown).reshape(2, 10)
    assert np.sort(epochs).tolist() == [list(range(10))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()


def test_the_order_is_a_function_of_seed_and_position_alone() -> None:
    order, resumed = DataOrder(num_images=10, seed=3), DataOrder(num_images=10, seed=3)
    for cur_nimg in range(0, 24, 4):
        order.rows(cur_nimg, 4)

    assert order.rows(24, 4).tolist() == resumed.rows(24, 4).tolist()
    assert order.rows(0, 10).tolist() != DataOrder(num_images=10, seed=4).rows(0, 10).tolist()


def test_a_batch_may_be_longer_than_the_data() -> None:
    rows = DataOrder(num_images=3, seed=0).rows(2, 8)

    assert len(rows) == 8
    assert set(rows.tolist()) == {0, 1, 2}
