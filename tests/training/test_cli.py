"""`gantrain` at a prompt: the whole thread, signals to a real process, and mistakes as sentences."""

from __future__ import annotations

import json
import signal
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from gantrain_process import gantrain, save_toy_zip, train_arguments
from PIL import Image
from toy_training import toy_config, toy_dataset

from training.__main__ import main
from training.loop import Trainer, train
from training.phases import Figures
from training.processes import Processes
from training.run_folder import RunFolder
from training.snapshot import load_newest


@pytest.fixture(scope="module")
def data_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data set as a user would bring it."""
    return save_toy_zip(tmp_path_factory.mktemp("data") / "halves.zip")


def test_train_export_verify_and_grid_say_what_came_out(
    data_zip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, store = tmp_path / "run", tmp_path / "store"

    codes = [
        main(train_arguments(run_dir, data_zip, total_kimg=0.128)),
        main(["export", str(run_dir), "--name", "halves", "--store", str(store)]),
        main(["verify", "halves:1", "--store", str(store), "--run-dir", str(run_dir)]),
        main(["grid", str(run_dir), "--seeds", "0-5,9", "--out", str(tmp_path / "run.png")]),
        main(
            ["grid", "halves", "--store", str(store), "--seeds", "0-5,9", "--out", str(tmp_path / "art.png")]
        ),
    ]

    printed = capsys.readouterr().out
    assert codes == [0] * 5
    for sentence in (
        "data: halves",
        "config: preset=fashion-mnist",
        "MACs an image",
        "0.128 kimg",
        "published halves:1",
    ):
        assert sentence in printed
    assert "bit-exact" in printed
    of_run, of_artifact = (np.asarray(Image.open(tmp_path / name)) for name in ("run.png", "art.png"))
    assert of_run.shape == (16 * 4, 16 * 2)  # a class a column, the last cell empty
    assert np.abs(of_run.astype(int) - of_artifact.astype(int)).max() <= 1
    config = json.loads((run_dir / "config.json").read_text())["config"]
    assert (config["z_dim"], config["total_kimg"]) == (8, 0.128)


class _AnotherIsSignalled(Processes):
    """Of this run another process gets the signal."""

    def any(self, flag: bool) -> bool:
        return True


def test_a_run_that_another_process_stops_is_not_called_trained(
    data_zip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = nullcontext((_AnotherIsSignalled(), torch.device("cpu")))
    monkeypatch.setattr("training.processes.joined", lambda device: both)

    code = main(train_arguments(tmp_path / "run", data_zip, total_kimg=0.128))

    printed = capsys.readouterr().out
    assert code == 4
    assert "stopped at 0 kimg; the same command goes on from there" in printed
    assert "trained" not in printed


def test_a_signal_leaves_a_snapshot_that_exports_and_goes_on(
    data_zip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt of a process of its own, and then SIGTERM after one iteration more."""
    run = RunFolder(tmp_path / "run")
    arguments = train_arguments(run.path, data_zip, total_kimg=1_000)
    process = gantrain(*arguments)
    deadline = time.monotonic() + 60
    while not run.metrics_file.exists() and time.monotonic() < deadline:
        time.sleep(0.02)

    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)

    assert (process.returncode, errors) == (130, "")
    stopped_nimg = load_newest(run).cur_nimg
    assert stopped_nimg > 0
    assert f"stopped at {stopped_nimg / 1000:g} kimg; the same command goes on from there" in printed
    assert main(["export", str(run.path), "--name", "halves", "--store", str(tmp_path / "store")]) == 0

    def told(trainer: Trainer) -> Figures:
        signal.raise_signal(signal.SIGTERM)
        return play(trainer)

    play = Trainer.run_iteration
    monkeypatch.setattr(Trainer, "run_iteration", told)
    code = main(arguments)

    assert code == 143
    assert f"going on from {stopped_nimg / 1000:g} kimg" in capsys.readouterr().out
    assert load_newest(run).cur_nimg == stopped_nimg + 16


def test_verify_grid_of_an_artifact_and_presets_import_no_torch(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    train(toy_config(total_kimg=0.032), toy_dataset(), run, tick_kimg=1)
    assert main(["export", str(run.path), "--name", "halves", "--store", str(tmp_path)]) == 0
    store = ["--store", str(tmp_path)]
    verbs = [
        ["verify", "halves", *store],
        ["grid", "halves", "--out", str(tmp_path / "g.png"), *store],
        ["presets"],
    ]

    process = gantrain(
        code=(
            "import sys\n"
            "from training.__main__ import main\n"
            f"assert [main(verb) for verb in {verbs!r}] == [0, 0, 0]\n"
            "sys.exit(', '.join({'torch', 'onnx', 'tqdm'} & set(sys.modules)) or None)"
        )
    )
    _, errors = process.communicate(timeout=60)

    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("module", "verb", "extra"),
    [
        ("torch", ["train", "--preset=fashion-mnist", "--run-dir=run"], "train"),
        ("torch", ["export", "run", "--name=toy"], "train"),
        ("onnx", ["export", "run", "--name=toy"], "train"),
        ("onnxruntime", ["verify", "toy"], "cpu"),
    ],
)
def test_a_missing_package_is_a_sentence_that_names_the_extra(
    module: str, verb: list[str], extra: str, tmp_path: Path
) -> None:
    code = (
        f"import os, sys\nos.chdir({str(tmp_path)!r})\nsys.modules[{module!r}] = None\n"
        f"from training.__main__ import main\nsys.exit(main({verb!r}))"
    )

    process = gantrain(code=code)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 2
    assert errors.startswith(f"gantrain: this needs {module}, which is not installed")
    assert f"pip install -e '.[{extra}]'" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(("chosen", "found"), [(None, "passive"), ("active", "active")])
def test_threads_sleep_while_they_wait_unless_the_environment_says_otherwise(
    chosen: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if chosen is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", chosen)
    code = (
        "import os, sys\n"
        "class Told:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': sys.exit(os.environ['OMP_WAIT_POLICY'])\n"
        "sys.meta_path.insert(0, Told())\n"
        "from training.__main__ import main\n"
        "main(['train', '--preset=fashion-mnist', '--run-dir=run'])"
    )

    _, errors = gantrain(code=code).communicate(timeout=60)

    assert errors.strip() == found  # when torch is first asked for, which reads it then


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["train", "--preset=cifar", "--run-dir=r"], 2, "preset must be one of fashion-mnist, "),
        (
            ["train", "--preset=fashion-mnist", "--run-dir=r", "--set", "z_dim"],
            2,
            "--set must be field=value, got 'z_dim'",
        ),
        (
            ["train", "--preset=fashion-mnist", "--run-dir=r", "--set=residual_blocks=2"],
            2,
            "residual_blocks has no effect without network residual: leave it out, got 2",
        ),
        (
            ["train", "--preset=fashion-mnist", "--run-dir=r", "--total-kimg=long"],
            2,
            "total_kimg must be a number, got 'long'",
        ),
        (
            ["train", "--preset=fashion-mnist", "--run-dir=r", "--data=nowhere"],
            2,
            "--data must name a folder or a zip file, got 'nowhere'",
        ),
        (["export", "nowhere", "--name=toy"], 2, "nowhere has no snapshot: nothing was trained there yet"),
        (
            ["verify", "toy"],
            2,
            "no model named 'toy': the store store is not a folder",
        ),
        (["verify", "toy:x"], 2, "version must be an integer between 1 and 999999999, got 'x'"),
        (
            ["grid", "toy", "--seeds=9-1", "--out=g.png"],
            2,
            "seeds must be ranges from low to high, got '9-1'",
        ),
        (["grid", "./nowhere", "--out=g.png"], 2, "nowhere has no snapshot"),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr(
    arguments: list[str],
    code: int,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    returned = main(arguments)

    errors = capsys.readouterr().err
    assert returned == code
    assert errors.startswith(f"gantrain: {sentence}")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--threads=0", "must be an integer of 1 or more, got '0'"),
        ("--threads=two", "must be an integer of 1 or more, got 'two'"),
        ("--tick-kimg=0", "must be a number above 0, got '0'"),
        ("--tick-kimg=nan", "must be a number above 0, got 'nan'"),
    ],
)
def test_a_flag_that_cannot_be_names_its_rule(
    flag: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "--preset=fashion-mnist", "--run-dir=r", flag])

    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_damaged_artifact_fails_verify_with_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "run")
    train(toy_config(total_kimg=0.032), toy_dataset(), run, tick_kimg=1)
    assert main(["export", str(run.path), "--name", "halves", "--store", str(tmp_path)]) == 0
    with (tmp_path / "halves" / "1" / "model.onnx").open("ab") as file:
        file.write(b"\0")

    code = main(["verify", "halves", "--store", str(tmp_path)])

    assert code == 1
    assert "model.onnx is not the file that was published" in capsys.readouterr().err


def test_a_changed_setting_in_the_same_run_folder_is_refused_by_name_unless_overridden(
    data_zip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = train_arguments(tmp_path, data_zip, total_kimg=0.032)
    assert main(arguments) == 0

    codes = [main([*arguments, "--set=G_lr=0.1", *more]) for more in ([], ["--override"])]

    refused, overridden = capsys.readouterr().err.splitlines()
    assert codes == [2, 0]
    assert "G_lr was 0.002 and is now 0.1" in refused
    assert overridden == "gantrain: caution: overridden at 0.032 kimg: G_lr was 0.002 and is now 0.1"


def test_a_grid_of_a_run_whose_newest_snapshot_is_damaged_is_of_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "run")
    train(toy_config(total_kimg=0.032), toy_dataset(), run, tick_kimg=0.016)
    grid = ["grid", str(run.path), "--seeds=0-3", "--out", str(tmp_path / "grid.png")]
    run.snapshot_file(32).write_bytes(b"cut off")

    code = main(grid)

    assert code == 0
    caution = capsys.readouterr().err
    assert "gantrain: caution:" in caution
    assert "is damaged" in caution
    assert "the one before it is used, of 0.016 kimg" in caution
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (32, 32)
