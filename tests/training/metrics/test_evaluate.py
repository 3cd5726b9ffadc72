"""`gantrain evaluate`: what it leaves in a run, what an export takes from there, mistakes as sentences."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gantrain_process import save_toy_zip
from toy_extractor import save_toy_extractor
from toy_training import toy_config, toy_dataset

from models.errors import InvalidValue
from models.store import Artifact, Store
from training.__main__ import main
from training.data import Dataset, open_dataset
from training.export import export_run
from training.loop import train
from training.metrics.fakes import Fakes, Wanted, evaluation_seeds
from training.metrics.targets import images_of_artifact, images_of_snapshot
from training.metrics.yardstick import Yardstick
from training.run_folder import RunFolder
from training.snapshot import load_newest

NIMG = 64


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data as a zip, and an extractor of their size."""
    folder = tmp_path_factory.mktemp("evaluate")
    save_toy_zip(folder / "halves.zip")
    save_toy_extractor(folder / "toy.onnx", size=16, channels=1, num_classes=2)
    return folder


def words(target: object, place: Path, *flags: str) -> list[str]:
    extractor = f"{place / 'toy.onnx'}"
    data = f"--data={place / 'halves.zip'}"
    return [
        "evaluate",
        str(target),
        data,
        f"--extractor={extractor}",
        f"--judge={extractor}",
        "--n=50",
        *flags,
    ]


def trained(run: RunFolder, nimg: int) -> None:
    """The toy run up to `nimg` of 128 images."""
    train(
        toy_config(), toy_dataset(), run, tick_kimg=0.032, should_stop=lambda: len(_ticks(run)) * 32 >= nimg
    )


def _ticks(run: RunFolder) -> list[dict[str, Any]]:
    rows = run.metrics()
    return [{name: value for name, value in row.items() if not name.endswith("_s")} for row in rows]


def _weights(run: RunFolder) -> dict[str, bytes]:
    state = load_newest(run).state
    networks = {name: state[name] for name in ("G", "D", "G_ema")}
    return {
        f"{name}.{key}": one.numpy().tobytes() for name, them in networks.items() for key, one in them.items()
    }


def test_a_run_that_is_evaluated_on_its_way_ends_as_one_that_was_left_alone(
    place: Path, tmp_path: Path
) -> None:
    alone, judged = RunFolder(tmp_path / "alone"), RunFolder(tmp_path / "judged")
    trained(alone, 128)
    trained(judged, NIMG)
    streams = torch.get_rng_state()

    assert main(words(judged.path, place)) == 0

    assert torch.equal(torch.get_rng_state(), streams)
    trained(judged, 128)
    assert _weights(judged) == _weights(alone)
    assert _ticks(judged) == _ticks(alone)
    (kept,) = (json.loads(one) for one in judged.metrics_file.read_text().splitlines() if "figures" in one)
    assert kept["cur_nimg"] == NIMG


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Artifact, list[Any]]:
    """A run that was judged on its way and three times at its end, its artifact, and the earlier figures."""
    folder = tmp_path_factory.mktemp("finished")
    run = RunFolder(folder / "run")
    trained(run, NIMG)
    assert main(words(run.path, place)) == 0
    earlier = run.figures_of(load_newest(run).weights)
    trained(run, 128)
    assert run.figures_of(load_newest(run).weights) == []
    for flags in ((), ("--figures=coverage",), ("--truncation-psi=0.5", "--figures=coverage")):
        assert main(words(run.path, place, *flags)) == 0
    with run.metrics_file.open("ab") as file:
        file.write(b'{"cur_nimg": 128, "weights": "cut o')  # by a kill
    return run, export_run(run, Store(folder / "store"), name="halves"), earlier


def test_an_export_takes_the_figures_of_its_own_weights_the_last_of_each(
    finished: tuple[RunFolder, Artifact, list[Any]],
) -> None:
    _, artifact, earlier = finished

    taken = artifact.manifest.metrics

    assert len(taken) == len(earlier) + 1
    assert [one["name"] for one in taken].count("coverage") == 2
    assert {one["name"]: one for one in taken}["coverage"]["protocol"]["truncation_psi"] == 0.5
    assert {one["name"]: one["value"] for one in earlier} != {one["name"]: one["value"] for one in taken[:-1]}


def test_an_export_of_halved_weights_takes_none_since_it_has_others(
    finished: tuple[RunFolder, Artifact, list[Any]], tmp_path: Path
) -> None:
    run, _, _ = finished

    artifact = export_run(run, Store(tmp_path), name="halves", precision="fp16")

    assert artifact.manifest.metrics == ()


def test_images_of_a_run_are_those_of_its_artifact_to_a_grey_level(
    finished: tuple[RunFolder, Artifact, list[Any]],
) -> None:
    run, artifact, _ = finished
    wanted = Wanted(n=30, seed=7, truncation_psi=0.8)

    by_torch, published = images_of_snapshot(load_newest(run), wanted), images_of_artifact(artifact, wanted)

    assert np.abs(by_torch.images.astype(int) - published.images.astype(int)).max() <= 1
    assert by_torch.class_idx.tolist() == published.class_idx.tolist() == [i % 2 for i in range(30)]
    assert by_torch.truncation_psi == published.truncation_psi == 0.8


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(
        bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    )


def save_splits(folder: Path, dataset: Dataset, held_out: int) -> Path:
    """The data set in the layout of Fashion-MNIST, its last images as the test split."""
    folder.mkdir()
    for prefix, rows in (("train", slice(-held_out)), ("t10k", slice(-held_out, None))):
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(dataset.images[rows, 0]))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(dataset.class_idx[rows].astype(np.uint8)))
    return folder


def test_beside_each_figure_stands_what_training_images_get_in_the_place_of_fakes(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = save_splits(tmp_path / "data", toy_dataset(), held_out=80)
    flags = [f"--data={data}", "--img-resolution=16"]

    codes = [
        main(words("data:train", place, *flags, "--json")),
        main(words("data:train", place, *flags, "--split=train", "--json")),
        main(words("data:train", place, *flags)),
    ]

    against_test, against_train, *table = capsys.readouterr().out.splitlines()
    assert codes == [0, 0, 0]
    figures = {one["name"]: one for one in json.loads(against_test)["figures"]}
    fd, density = figures["frechet_distance"], figures["density"]
    assert fd["value"] == fd["of_reals"] > 0
    assert density["value"] == density["of_reals"]
    assert (fd["protocol"]["split"], fd["protocol"]["n_real"], fd["protocol"]["n_fake"]) == ("test", 50, 50)
    assert figures["training_distance"]["protocol"]["split"] == "train"
    assert figures["class_accuracy"]["of_reals"] != figures["class_accuracy"]["value"]
    of_train = {one["name"]: one for one in json.loads(against_train)["figures"]}["frechet_distance"]
    assert "of_reals" not in of_train
    assert of_train["value"] == pytest.approx(0, abs=1e-4)  # the very same images
    assert "Fréchet distance: 1.00 times that of real images" in table


def test_figures_of_several_protocols_are_printed_in_a_table_each(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words("data:train", place, "--img-resolution=16")) == 0

    tables = capsys.readouterr().out.split("50 images; reals: ")[1:]

    where = {
        name: [i for i, table in enumerate(tables) if f"| {name} |" in table]
        for name in ("Fréchet distance", "sharpness", "distance to the nearest training image")
    }
    assert where == {
        "Fréchet distance": [0],
        "sharpness": [1],
        "distance to the nearest training image": [2],
    }


def test_seeds_of_evaluation_are_its_own_and_draw_the_classes_evenly() -> None:
    seeds = evaluation_seeds(999, 1_000_000)

    assert evaluation_seeds(0, 10)[0] == 3_000_000_000
    assert set(evaluation_seeds(1, 10)).isdisjoint(evaluation_seeds(0, 1_000_000))
    assert seeds[-1] == 3_999_999_999 < 2**32
    assert np.bincount(np.array(evaluation_seeds(3, 103)) % 10).tolist() == [11, 11, 11] + [10] * 7


@pytest.mark.parametrize(
    ("target", "flags", "sentence"),
    [
        ("data:train", ["--figures=fid"], "figures must be of frechet_distance, "),
        ("data:train", ["--split=test"], "halves.zip has no test split: give --split train"),
        ("data:train", ["--img-resolution=20"], "the extractor toy takes images of 16×16×1, got 20×20×1"),
        ("data:train", ["--extractor=vgg"], "extractor must be one of fashion-mnist, "),
        ("data:train", ["--img-resolution=12"], "those of halves are 16×16: raise img_resolution"),
        (
            "data:train",
            ["--truncation-psi=0.5"],
            "truncation_psi and sampler must be left out for data",
        ),
        ("data:train", ["--sampler=mh"], "truncation_psi and sampler must be left out for data"),
        ("data:all", [], "target must be data:train or data:test for the data, got 'data:all'"),
        ("data:train", ["--extractor=broken.tar"], "broken.tar cannot be loaded by ONNX Runtime"),
        ("run", ["--proposals=4"], "proposals must be left out where sampler is plain, got 4"),
        (".", ["--proposals=4"], "proposals must be left out where sampler is plain, got 4"),
        ("run", ["--n=6"], "n must be at least 7, got 6"),
        ("images.npz", [], "images.npz must be a run, a folder, zip or tar of images, and it is none"),
        (
            "http://127.0.0.1:9",
            ["--api-key-file=images.npz"],
            "images.npz must hold one key, a line",
        ),
        ("http://127.0.0.1:9", ["--api-key-file=two.txt"], "two.txt must hold one key, a line of ASCII text"),
        ("http://127.0.0.1:9/v1/models", [], "http://127.0.0.1:9/v1/models cannot be asked: "),
        ("http://127.0.0.1:9/v1/models/toy", [], "http://127.0.0.1:9/v1/models cannot be asked: "),
        ("run", ["--seed=1000"], "seed must be between 0 and 999, got 1000"),
        ("run", ["--n=1000001"], "n must be between 1 and 1000000, got 1000001"),
        ("nowhere/at/all", [], "nowhere/at/all must be a run, a folder, zip or tar of images"),
        ("broken.tar", [], "broken.tar must be a folder, a zip or a tar of images: "),
        ("http://127.0.0.1:9", [], "http://127.0.0.1:9/v1/models cannot be asked: "),
    ],
)
def test_a_mistake_is_one_sentence(
    target: str,
    flags: list[str],
    sentence: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.tar").write_bytes(b"no tar")
    Path("images.npz").write_bytes(b"\xff\xfe")
    Path("two.txt").write_text("a key\nanother\n", encoding="ascii")
    if target == "run":
        trained(RunFolder(tmp_path / "run"), 32)

    code = main(words(target, place, *flags))

    errors = capsys.readouterr().err
    assert code == 2
    assert sentence in errors
    assert errors.count("\n") == 1


def test_a_figure_that_is_asked_for_and_cannot_be_taken_is_refused(place: Path) -> None:
    data, extractor = place / "halves.zip", str(place / "toy.onnx")
    yardstick = Yardstick(img_resolution=16, data=data, n=50, extractor=extractor, judge=extractor)
    images = open_dataset(data, 16).images[:20].transpose(0, 2, 3, 1)

    with pytest.raises(InvalidValue, match="class_accuracy cannot be taken here"):
        yardstick.figures(Fakes(label="unlabelled", images=images), ["coverage", "class_accuracy"])
    assert len(yardstick.figures(Fakes(label="unlabelled", images=images), ["coverage"])) == 1
