"""One generator has one set of figures: published, in files, and behind a running service."""

from __future__ import annotations

import io
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gantrain_process import gantrain
from PIL import Image
from server_process import GANSERVE, Server
from toy import CLASSES, SIZE, publish_toy
from toy_extractor import save_toy_extractor

from models.calibration import Calibration
from training.__main__ import main
from training.metrics.fakes import evaluation_seeds

N = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, an extractor and labelled data of the toy generator's size."""
    folder = tmp_path_factory.mktemp("evaluate")
    publish_toy(folder / "store", calibration=Calibration(scale=0.8, offset=0.1, mh=True, proposals=4))
    save_toy_extractor(folder / "toy.onnx", size=SIZE, channels=3, num_classes=CLASSES)
    stream = np.random.RandomState(0)
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        for i in range(80):
            file = io.BytesIO()
            Image.fromarray(stream.randint(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)).save(file, "PNG")
            archive.writestr(f"{i:03d}.png", file.getvalue())
        labels = [[f"{i:03d}.png", i % CLASSES] for i in range(80)]
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return folder


def command(target: object, place: Path, *flags: str) -> list[str]:
    extractor = f"{place / 'toy.onnx'}"
    return [
        "evaluate",
        str(target),
        f"--store={place / 'store'}",
        f"--data={place / 'data.zip'}",
        f"--extractor={extractor}",
        f"--judge={extractor}",
        f"--n={N}",
        "--json",
        *flags,
    ]


def figures(target: object, place: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> list[Any]:
    capsys.readouterr()
    assert main(command(target, place, *flags)) == 0
    return json.loads(capsys.readouterr().out)["figures"]


def sampled(place: Path, out: Path, *flags: str) -> Path:
    """What `ganserve sample` makes of evaluation's seeds."""
    seeds = evaluation_seeds(0, N)
    words = [GANSERVE, "sample", "--store", place / "store", "--model", "toy", "--workers", "1", *flags]
    subprocess.run(
        [*words, "--seeds", f"{seeds[0]}-{seeds[-1]}", "--out", out], check=True, capture_output=True
    )
    return out


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    """The images of evaluation as a folder of PNGs."""
    return sampled(place, place / "png", "--format", "png")


def test_artifact_files_and_service_have_the_same_figures_to_the_last_bit(
    place: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = figures("toy:1", place, capsys)

    tars = sampled(place, tmp_path / "tars", "--format", "webdataset", "--shard-size", "25")
    archive = sampled(place, tmp_path / "zip", "--format", "zip")
    server = Server(place / "store", "--model", "toy", "--workers", "1", log=tmp_path / "log")
    try:
        served = figures(server.wait_until_ready().url, place, capsys)
        named = figures(f"{server.url}/v1/models/toy", place, capsys, "--figures=coverage")
        chosen_there = figures(server.url, place, capsys, "--sampler=mh", "--figures=coverage,density")
    finally:
        server.stop()

    names = [one["name"] for one in published]
    assert {"frechet_distance", "coverage", "class_accuracy", "sharpness", "training_distance"} <= set(names)
    assert served == published
    assert named == [one for one in published if one["name"] == "coverage"]
    for target in (folder, tars, archive / "shard-00000.zip"):
        assert figures(target, place, capsys) == published, target
    chosen = figures("toy:1", place, capsys, "--sampler=mh", "--figures=coverage,density")
    assert chosen[0]["protocol"]["sampler"] == "mh, 4 proposals"
    assert chosen == chosen_there != [one for one in published if one["name"] in ("coverage", "density")]
    chosen_set = sampled(place, tmp_path / "mh", "--format", "webdataset", "--sampler", "mh")
    assert figures(chosen_set / "shard-00000.tar", place, capsys, "--figures=coverage,density") == chosen
    one_tar = figures(tars / "shard-00001.tar", place, capsys, "--figures=class_accuracy")
    assert one_tar[0]["protocol"]["n_fake"] == 25


def test_images_in_files_carry_their_truncation_and_how_they_were_chosen(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sampled(place, tmp_path / "png", "--format", "png", "--truncation-psi", "0.5")

    picked = sampled(place, tmp_path / "picked", "--format", "png", "--min-realness", "0.2")
    truncated = figures("toy:1", place, capsys, "--truncation-psi=0.5")

    assert figures(folder, place, capsys) == truncated
    assert truncated[0]["protocol"]["truncation_psi"] == 0.5
    (of_picked,) = figures(picked, place, capsys, "--figures=coverage")
    assert of_picked["protocol"]["sampler"] == "plain, realness of at least 0.2"
    assert of_picked["protocol"]["n_fake"] < N
    (picked / "manifest.json").unlink()  # its images tell it themselves
    assert figures(picked, place, capsys, "--figures=coverage") == [of_picked]


def test_an_artifact_and_files_are_evaluated_without_torch(place: Path, folder: Path) -> None:
    verbs = [
        command("toy:1", place),
        command(folder, place),
        command("data:train", place, "--img-resolution=12"),
    ]

    process = gantrain(
        code=(
            "import sys\n"
            "from training.__main__ import main\n"
            f"assert [main(verb) for verb in {verbs!r}] == [0, 0, 0]\n"
            "sys.exit(', '.join({'torch', 'onnx', 'tqdm'} & set(sys.modules)) or None)"
        )
    )
    printed, errors = process.communicate(timeout=60)

    assert (process.returncode, errors) == (0, "")
    assert len(printed.splitlines()) == 3


def test_a_service_that_wants_a_key_gets_it_from_a_file_and_says_so_without(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "a-key-of-an-evaluation"
    (tmp_path / "key").write_text(f"{key}\n")
    server = Server(
        place / "store",
        *("--model", "toy", "--workers", "1"),
        env={"GANSERVE_API_KEYS": key},
        log=tmp_path / "log",
    )
    try:
        url = server.wait_until_ready().url
        found = figures(url, place, capsys, "--figures=coverage", f"--api-key-file={tmp_path / 'key'}")
        code = main(command(url, place))
    finally:
        server.stop()

    assert len(found) == 1
    assert code == 2
    assert "/v1/models answers 401: " in capsys.readouterr().err
