"""Every format, read back with the libraries that its users read it with."""

from __future__ import annotations

import gc
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Sample = Callable[..., int]
Pixels = Callable[..., np.ndarray]

SEEDS = [*range(40), 2**32 - 1]
TEXT = "0-39,4294967295"


@pytest.fixture
def made(sample: Sample, tmp_path: Path) -> Callable[..., list[Path]]:
    """Make 41 images in three shards; `made("zip")` gives the shards."""

    def make(fmt: str, *flags: str, model: str = "toy") -> list[Path]:
        where = ("--out", tmp_path / "out", "--shard-size", "16", "--format", fmt)
        assert sample("--seeds", TEXT, *where, *flags, model=model) == 0
        return sorted((tmp_path / "out").glob("shard-*"))

    return make


def decoded(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def test_a_folder_has_an_image_a_seed_and_a_line_that_says_what_each_is(
    made: Callable[..., list[Path]], tmp_path: Path, pixels_of_seeds: Pixels
) -> None:
    assert made("webp") == []

    lines = [json.loads(line) for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()]
    images = np.stack([decoded((tmp_path / "out" / one["file_name"]).read_bytes()) for one in lines])
    assert [(one["seed"], one["class_idx"], one["truncation_psi"]) for one in lines] == [
        (seed, seed % 10, 1.0) for seed in SEEDS
    ]
    assert np.array_equal(images, pixels_of_seeds(SEEDS))
    assert len(list((tmp_path / "out").iterdir())) == 41 + 2  # and manifest.json


def test_hugging_face_reads_a_folder_with_its_metadata(
    made: Callable[..., list[Path]], tmp_path: Path, pixels_of_seeds: Pixels
) -> None:
    from datasets import load_dataset

    made("png")

    folder, cache = str(tmp_path / "out"), str(tmp_path / "cache")
    rows = load_dataset("imagefolder", data_dir=folder, split="train", cache_dir=cache)

    assert rows["seed"][:] == SEEDS
    assert np.array_equal(np.stack([np.asarray(image) for image in rows["image"]]), pixels_of_seeds(SEEDS))


@pytest.mark.parametrize("model", ["toy", "plain"])
def test_numpy_reads_npy_shards(
    made: Callable[..., list[Path]], tmp_path: Path, pixels_of_seeds: Pixels, model: str
) -> None:
    shards = [np.load(path, mmap_mode="r") for path in made("npy", model=model)]

    lines = [json.loads(line) for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()]
    assert [len(shard) for shard in shards] == [16, 16, 9]
    assert np.array_equal(np.concatenate(shards), pixels_of_seeds(SEEDS, model))
    assert [(one["file"], one["row"], one["seed"]) for one in lines[15:17]] == [
        ("shard-00000.npy", 15, 15),
        ("shard-00001.npy", 0, 16),
    ]


def test_numpy_reads_npz_shards_with_seeds_classes_and_psi(
    made: Callable[..., list[Path]], pixels_of_seeds: Pixels
) -> None:
    shards = [np.load(path) for path in made("npz", "--truncation-psi", "1")]
    whole = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0].files}

    assert np.array_equal(whole["images"], pixels_of_seeds(SEEDS))
    assert whole["images"].dtype == np.uint8
    assert whole["seeds"].tolist() == SEEDS
    assert whole["class_idx"].tolist() == [seed % 10 for seed in SEEDS]
    assert whole["truncation_psi"].tolist() == [1.0] * 41


@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")  # it leaves tars to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("images", ["png", "webp", "raw"])
def test_webdataset_reads_its_shards(
    made: Callable[..., list[Path]], pixels_of_seeds: Pixels, images: str
) -> None:
    import webdataset

    shards = [str(path) for path in made("webdataset", "--images", images)]
    rows = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("rgb8"))
    gc.collect()

    key = "npy" if images == "raw" else images
    assert [row["__key__"] for row in rows] == [f"seed{seed:010d}" for seed in SEEDS]
    assert [row["json"] for row in rows] == [
        {"seed": seed, "class_idx": seed % 10, "truncation_psi": 1.0} for seed in SEEDS
    ]
    assert np.array_equal(np.stack([row[key] for row in rows]), pixels_of_seeds(SEEDS))


def test_a_zip_is_a_data_set_as_stylegan_has_it_and_as_we_train_on(
    made: Callable[..., list[Path]], pixels_of_seeds: Pixels
) -> None:
    from training.data import open_dataset

    for number, path in enumerate(made("zip")):
        seeds = SEEDS[16 * number : 16 * (number + 1)]
        with zipfile.ZipFile(path) as archive:
            facts = json.loads(archive.read("dataset.json"))
            images = [decoded(archive.read(name)) for name, _ in facts["labels"]]
            assert archive.testzip() is None
        assert facts["labels"] == [[f"seed{seed:010d}.png", seed % 10] for seed in seeds]
        assert [seed for _, seed in facts["seeds"]] == seeds
        assert np.array_equal(np.stack(images), pixels_of_seeds(seeds))
        opened = open_dataset(path, 16)
        assert opened.class_idx is not None
        assert sorted(opened.class_idx.tolist()) == sorted(seed % 10 for seed in seeds)


def test_a_zip_of_a_model_without_classes_has_no_labels(made: Callable[..., list[Path]]) -> None:
    with zipfile.ZipFile(made("zip", model="plain")[0]) as archive:
        assert json.loads(archive.read("dataset.json"))["labels"] is None


@pytest.mark.parametrize(("images", "model"), [("png", "toy"), ("webp", "plain")])
def test_hugging_face_reads_parquet_with_its_image_struct(
    made: Callable[..., list[Path]], tmp_path: Path, pixels_of_seeds: Pixels, images: str, model: str
) -> None:
    from datasets import ClassLabel, load_dataset
    from datasets import Image as ImageFeature

    shards = [str(path) for path in made("parquet", "--images", images, model=model)]

    rows = load_dataset("parquet", data_files=shards, split="train", cache_dir=str(tmp_path / "cache"))

    found = np.stack([np.asarray(image).reshape(12, 12, -1)[..., :3] for image in rows["image"]])
    assert isinstance(rows.features["image"], ImageFeature)
    assert np.array_equal(found[..., : 1 if model == "plain" else 3], pixels_of_seeds(SEEDS, model))
    assert rows["seed"][:] == SEEDS
    if model == "toy":
        assert isinstance(rows.features["class_idx"], ClassLabel)
        assert rows["class_idx"][:] == [seed % 10 for seed in SEEDS]
    else:
        assert "class_idx" not in rows.features


def test_pyarrow_reads_raw_pixels_from_parquet(
    made: Callable[..., list[Path]], pixels_of_seeds: Pixels
) -> None:
    from pyarrow import parquet

    tables = [parquet.read_table(path) for path in made("parquet", "--images", "raw")]

    rows = [row for table in tables for row in table.to_pylist()]
    images = [
        np.frombuffer(row["pixels"], np.uint8).reshape(row["height"], row["width"], row["channels"])
        for row in rows
    ]
    assert np.array_equal(np.stack(images), pixels_of_seeds(SEEDS))
    assert [row["seed"] for row in rows] == SEEDS


@pytest.mark.parametrize("fmt", ["png", "npz", "webdataset", "zip", "parquet"])
def test_the_same_job_elsewhere_gives_the_same_manifest_and_so_the_same_bytes(
    sample: Sample, tmp_path: Path, fmt: str
) -> None:
    flags = ("--seeds", "5-60", "--format", fmt, "--shard-size", "23")

    assert sample(*flags, "--out", tmp_path / "a") == 0
    assert sample(*flags, "--out", tmp_path / "b", "--threads", "2") == 0

    manifest = (tmp_path / "a/manifest.json").read_bytes()
    assert manifest == (tmp_path / "b/manifest.json").read_bytes()
    assert [shard["images"] for shard in json.loads(manifest)["shards"]] == [23, 23, 10]
