"""What goes wrong is a sentence with an exit status of its own, and what is finished is kept."""

from __future__ import annotations

import builtins
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.store import Store
from service.offline import formats

Sample = Callable[..., int]


@pytest.mark.parametrize(
    ("flags", "status", "sentence"),
    [
        (("--seeds", "0-9,5"), 2, "seeds must not name an image twice, got 5 in two ranges of '0-9,5'"),
        (("--seeds", "9-3"), 2, "seeds must be ranges from low to high, got '9-3'"),
        (("--class-idx", "10"), 2, "class_idx must be an integer between 0 and 9, got 10"),
        (("--class-idx", "shoes"), 2, "class_idx must be an integer, balanced or random, got 'shoes'"),
        (("--truncation-psi", "nan"), 2, "truncation_psi must be between 0 and 2, got nan"),
        (("--shard-size", "0"), 2, "shard_size must be between 1 and 10000000, got 0"),
        (("--workers", "0"), 2, "workers must be between 1 and 1024, got 0"),
        (("--images", "webp"), 2, "images must be left out where format is png, got 'webp'"),
        (("--digest", "xyz"), 2, "digest must be 12 to 64 hexadecimal digits, got 'xyz'"),
        (("--digest", "0" * 12), 4, "digest must be that of toy:1, "),
        (
            ("--out", "nowhere://bucket/set"),
            2,
            "out must be a folder or an address, got 'nowhere://bucket/set'",
        ),
    ],
)
def test_a_mistake_is_a_sentence_and_nothing_is_written(
    sample: Sample,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    status: int,
    sentence: str,
) -> None:
    given = ("--seeds", "0-9", "--out", tmp_path / "out", *flags)

    assert sample(*given) == status

    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rule", ["balanced", "random"])
def test_a_model_without_classes_takes_no_rule_for_them(
    sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str
) -> None:
    assert sample("--seeds", "1", "--out", tmp_path, "--class-idx", rule, model="plain") == 2

    assert f"class_idx must be left out: the model has no classes, got {rule}" in capsys.readouterr().err


def test_the_digest_that_is_asked_for_is_made(sample: Sample, toy_store: Path, tmp_path: Path) -> None:
    digest = Store(toy_store).resolve("toy").digest

    assert sample("--seeds", "1", "--out", tmp_path, "--digest", digest[:12]) == 0
    assert sample("--seeds", "1", "--out", tmp_path, "--digest", digest) == 0


@pytest.mark.parametrize(
    ("package", "flags", "way_out"),
    [
        (
            "pyarrow",
            ("--format", "parquet", "--out", "OUT"),
            "format parquet needs pyarrow; install",
        ),
        ("fsspec", ("--out", "s3://sets/a"), "install the extra 's3' beside the others"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    sample: Sample,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    flags: tuple[str, ...],
    way_out: str,
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)

    assert sample("--seeds", "1", *(flag.replace("OUT", str(tmp_path / "out")) for flag in flags)) == 2

    assert way_out in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "status", "sentence"),
    [
        (errno.ENOSPC, 7, "there is no room left in"),
        (errno.EIO, 6, "out must be a folder that can be written"),
    ],
)
def test_a_disk_that_fails_at_the_third_shard_keeps_two_and_goes_on_later(
    sample: Sample,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    status: int,
    sentence: str,
) -> None:
    flags = ("--seeds", "0-99", "--shard-size", "20", "--format", "npz", "--out", tmp_path)
    write = formats.write_npz

    def fails(folder: Path, shard: int, *rest: Any) -> list[Path]:
        if shard == 2:
            raise OSError(number, "as the system says it")
        return write(folder, shard, *rest)

    with monkeypatch.context() as broken:
        broken.setitem(formats.WRITERS, "npz", fails)
        assert sample(*flags) == status

    assert sentence in capsys.readouterr().err
    there = {path.name for path in tmp_path.glob("*.npz")}
    assert {"shard-00000.npz", "shard-00001.npz"} <= there
    assert "shard-00002.npz" not in there
    assert not list((tmp_path / ".ganserve").glob("ganserve-work-*"))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    assert sample(*flags) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert json.loads((tmp_path / "manifest.json").read_text())["images"] == 100


def test_a_device_that_fails_is_a_sentence_and_ends_the_run(
    sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.generator import Generator

    make, calls = Generator.make, iter(range(100))

    def fails(self: Generator, *rest: Any) -> Any:
        if next(calls) > 3:
            raise RuntimeError("the device is gone")
        return make(self, *rest)

    monkeypatch.setattr(Generator, "make", fails)

    assert sample("--seeds", "0-99", "--shard-size", "20", "--format", "npz", "--out", tmp_path) == 9

    assert "seeds from 40 on cannot be made: RuntimeError: the device is gone" in capsys.readouterr().err
    assert {path.name for path in tmp_path.glob("*.npz")} == {"shard-00000.npz", "shard-00001.npz"}
