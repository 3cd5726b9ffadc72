"""`ganserve sample`: files by seed, and sentences for what cannot be made."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from toy import publish_toy

from service.__main__ import main


def sample(store: Path, *flags: str) -> int:
    return main(["sample", "--store", str(store), *flags])


def test_each_file_is_named_by_its_seed_and_nothing_else_is_left(toy_store: Path, tmp_path: Path) -> None:
    assert sample(toy_store, "--model", "toy", "--seeds", "3,100-139", "--out", str(tmp_path / "out")) == 0

    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    images = [f"seed{seed:010d}.png" for seed in (3, *range(100, 140))]
    assert names == ["manifest.json", "metadata.jsonl", *images]


def test_a_run_repeated_with_other_ranges_gives_the_same_bytes(toy_store: Path, tmp_path: Path) -> None:
    sample(toy_store, "--model", "toy", "--seeds", "0-39", "--out", str(tmp_path / "a"))
    sample(toy_store, "--model", "toy", "--seeds", "37", "--out", str(tmp_path / "b"), "--threads", "2")

    assert (tmp_path / "a/seed0000000037.png").read_bytes() == (
        tmp_path / "b/seed0000000037.png"
    ).read_bytes()


def test_marks_can_be_left_out(toy_store: Path, tmp_path: Path) -> None:
    sample(toy_store, "--model", "toy", "--seeds", "7", "--out", str(tmp_path / "marked"))
    sample(toy_store, "--model", "toy", "--seeds", "7", "--no-marks", "--out", str(tmp_path / "plain"))

    with Image.open(tmp_path / "marked/seed0000000007.png") as marked:
        assert b'ganserve:seed="7"' in marked.info["xmp"]
    with Image.open(tmp_path / "plain/seed0000000007.png") as plain:
        assert "xmp" not in plain.info


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--model", "toy", "--seeds", "9-3"), "seeds must be ranges from low to high, got '9-3'"),
        (
            ("--model", "toy", "--seeds", "1", "--class-idx", "10"),
            "class_idx must be an integer between 0 and 9",
        ),
        (("--model", "plain", "--seeds", "1", "--class-idx", "0"), "the model has no classes"),
        (("--model", "plain", "--seeds", "1", "--truncation-psi", "0.5"), "the model has no truncation"),
        (("--model", "nobody", "--seeds", "1"), "it has: plain, toy"),
        (("--model", "toy", "--seeds", "1", "--threads", "0"), "threads must be between 1 and 256, got 0"),
    ],
)
def test_what_cannot_be_made_is_a_sentence_and_status_2(
    toy_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], sentence: str
) -> None:
    status = sample(toy_store, *flags, "--out", str(tmp_path))

    assert status == 2
    assert sentence in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_a_sentence(
    toy_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")

    status = sample(toy_store, "--model", "toy", "--seeds", "1", "--out", str(tmp_path / "file/out"))

    assert status == 6
    assert "out must be a folder that can be written: Not a directory" in capsys.readouterr().err


def test_models_fails_for_a_missing_store_and_a_damaged_artifact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = publish_toy(tmp_path / "store")
    artifact.file("model.onnx").write_bytes(b"cut")

    assert main(["models", "--store", str(tmp_path / "nowhere")]) == 2
    assert "store must be a folder" in capsys.readouterr().err
    assert main(["models", "--store", str(tmp_path / "store")]) == 1
    assert "toy:1  damaged: toy:1: model.onnx is not the file that was published" in capsys.readouterr().out


def test_models_lists_a_store_and_names_what_is_damaged(
    toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--store", str(toy_store)]) == 0

    said = capsys.readouterr().out
    assert "toy:1" in said
    assert "12x12x3  z 8  10 classes" in said
    assert "plain:1" in said
    assert "unconditional" in said
