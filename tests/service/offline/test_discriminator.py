"""Sets that D had a hand in: chosen images, their realness in every format, and those that are left out."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import republish, toy_discriminator

from models.errors import DamagedArtifact, InvalidValue
from models.golden import Golden
from models.manifest import DISCRIMINATOR_FILE, GOLDEN_FILE, MANIFEST_FILE
from models.store import Store
from service.__main__ import main
from service.generator import Generator
from service.rows import Rows

SEEDS = range(60)
LEAST = 0.6


@pytest.fixture
def sample(judged_store: Path, tmp_path: Path) -> Callable[..., int]:
    """`sample("--realness")` makes 60 images of `judged` in four shards below `out`."""

    def run(*flags: str, model: str = "judged") -> int:
        where = ("--out", str(tmp_path / "out"), "--shard-size", "16", "--workers", "1")
        return main(
            ["sample", "--store", str(judged_store), "--model", model, "--seeds", "0-59", *where, *flags]
        )

    return run


@pytest.fixture(scope="module")
def wanted(judged_store: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images [60, H, W, C] chosen from five each, and their realness [60]."""
    generator = Generator(Store(judged_store).resolve("judged"))
    rows = Rows.of_seeds(generator.manifest, SEEDS).judged(generator.manifest, "mh", 5, True)
    parts = [generator.judge_rows(rows[start : start + 7]) for start in range(0, 60, 7)]  # another packing
    return np.concatenate([images for images, _ in parts]), np.concatenate([told for _, told in parts])


MH = ("--sampler", "mh", "--proposals", "5", "--realness")
CHOSEN = {"sampler": "mh", "proposals": 5, "min_realness": LEAST}


def rows_of(out: Path, fmt: str) -> list[tuple[int, float]]:
    """(seed, realness) of each image, as the set tells it, and how it was chosen."""
    shards = sorted(out.glob("shard-*"))
    facts: list[Any] = []
    if fmt in ("png", "npy"):
        facts = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    elif fmt == "npz":
        for shard in shards:
            arrays = np.load(shard)
            pairs = zip(arrays["seeds"].tolist(), arrays["realness"].tolist(), strict=True)
            facts += [{"seed": seed, "realness": told} for seed, told in pairs]
    elif fmt == "webdataset":
        for shard in shards:
            with tarfile.open(shard) as tar:
                facts += [json.load(tar.extractfile(one)) for one in tar if one.name.endswith(".json")]  # type: ignore[arg-type]
    elif fmt == "zip":
        for shard in shards:
            told = json.loads(zipfile.ZipFile(shard).read("dataset.json"))
            pairs = zip(told["seeds"], told["realness"], strict=True)
            chosen = {fact: told[fact] for fact in CHOSEN}
            facts += [{"seed": seed, "realness": value} | chosen for (_, seed), (_, value) in pairs]
    else:
        from pyarrow import parquet

        facts = [row for shard in shards for row in parquet.read_table(shard).to_pylist()]
    if fmt in ("png", "npy", "webdataset", "zip"):
        assert all({fact: one[fact] for fact in CHOSEN} == CHOSEN for one in facts)
    return [(one["seed"], one["realness"]) for one in facts]


@pytest.mark.parametrize("fmt", ["png", "npy", "npz", "webdataset", "zip", "parquet"])
def test_every_format_tells_realness_and_leaves_out_what_is_less_real(
    sample: Callable[..., int],
    wanted: tuple[np.ndarray, np.ndarray],
    judged_store: Path,
    tmp_path: Path,
    fmt: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, realness = wanted
    kept = np.flatnonzero(realness >= LEAST)
    assert 10 < len(kept) < 50

    assert sample(*MH, "--min-realness", str(LEAST), "--format", fmt) == 0

    said = capsys.readouterr().out.splitlines()[-1]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert f"{len(kept)} images of judged:1" in said
    assert f"{60 - len(kept)} rejected" in said
    assert (manifest["images"], manifest["rejected"]) == (len(kept), 60 - len(kept))
    assert rows_of(tmp_path / "out", fmt) == [(int(row), float(realness[row])) for row in kept]
    if fmt in ("npy", "npz"):
        arrays = [np.load(path) for path in sorted((tmp_path / "out").glob("shard-*"))]
        made = np.concatenate([one if fmt == "npy" else one["images"] for one in arrays])
        assert np.array_equal(made, images[kept])
    assert sample(*MH, "--min-realness", str(LEAST), "--format", fmt) == 0
    assert "were there already" in capsys.readouterr().out
    assert main(["sample", "--store", str(judged_store), "--check", str(tmp_path / "out")]) == 0
    assert f"{len(kept)} images in 4 shards: 0 damaged; 1 made again" in capsys.readouterr().out


def test_a_damaged_image_of_a_judged_folder_is_made_again_and_nothing_else(
    sample: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (*MH, "--min-realness", str(LEAST))
    assert sample(*flags) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    victim = sorted((tmp_path / "out").glob("*.png"))[3]
    victim.unlink()

    assert sample(*flags) == 0

    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert "kept" in capsys.readouterr().out.splitlines()[-1]


def test_a_threshold_that_nothing_passes_gives_an_empty_set(
    sample: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample("--min-realness", "1", "--format", "npy") == 0
    said = capsys.readouterr().out
    assert said.startswith("0 images of judged:1")
    assert said.endswith("out, 60 rejected\n")

    shards = [np.load(path) for path in sorted((tmp_path / "out").glob("shard-*"))]
    assert [shard.shape[0] for shard in shards] == [0, 0, 0, 0]
    assert json.loads((tmp_path / "out/manifest.json").read_text())["rejected"] == 60


@pytest.mark.parametrize("fmt", ["png", "npz"])
def test_a_check_finds_counts_that_are_not_true_and_images_that_were_rejected(
    sample: Callable[..., int],
    judged_store: Path,
    tmp_path: Path,
    fmt: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    check = ["sample", "--store", str(judged_store), "--check", str(out)]
    assert sample("--min-realness", str(LEAST), "--format", fmt) == 0
    whole = (out / "manifest.json").read_text()
    for path in (("images",), ("rejected",), ("shards", 2, "images")):
        facts = json.loads(whole)
        place = facts
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] += 1
        (out / "manifest.json").write_text(json.dumps(facts))
        capsys.readouterr()
        assert main(check) == 1
        assert "manifest.json says" in capsys.readouterr().out
    (out / "manifest.json").write_text(whole)
    if fmt == "png":
        lines = (out / "metadata.jsonl").read_text().splitlines()
        seeds = {json.loads(line)["seed"] for line in lines}
        rejected = min(set(SEEDS) - seeds)
        stray = out / f"seed{rejected:010d}.png"
        stray.write_bytes((out / f"seed{min(seeds):010d}.png").read_bytes())
        assert main(check) == 1
        assert capsys.readouterr().out.startswith(f"{stray.name} is there, and its image was rejected\n")
        stray.unlink()
    assert main(check) == 0


def test_a_plain_job_says_nothing_of_a_discriminator(sample: Callable[..., int], tmp_path: Path) -> None:
    assert sample() == 0

    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert not {"proposals", "realness", "min_realness", "rejected"} & (set(manifest["job"]) | set(manifest))


@pytest.mark.parametrize(
    ("model", "flags", "sentence"),
    [
        ("told", ("--sampler", "mh"), "sampler must be plain: the distance rises from 2 to 7, got 'mh'"),
        ("judged", ("--proposals", "4"), "proposals must be left out where sampler is plain, got 4"),
        ("judged", (*MH, "--truncation-psi", "0.5"), "truncation_psi must be 1 where sampler is mh"),
        ("judged", ("--min-realness", "1.5"), "min_realness must be between 0 and 1, got 1.5"),
    ],
)
def test_what_is_not_offered_is_refused_before_anything_is_made(
    sample: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    flags: tuple[str, ...],
    sentence: str,
) -> None:
    assert sample(*flags, model=model) == 2

    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("discriminator", "sentence"),
    [
        (b"garbage", "discriminator.onnx cannot be loaded"),
        (toy_discriminator(channels=1), "the graph's images must be tensor(uint8) ['N', 12, 12, 3]"),
    ],
)
def test_a_discriminator_that_is_none_is_the_artifacts_fault(
    judged_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    discriminator: bytes,
    sentence: str,
) -> None:
    republish(Store(judged_store).resolve("judged"), tmp_path / "store", discriminator)
    flags = ["--model", "judged", "--seeds", "0-9", "--realness", "--out", str(tmp_path / "out")]

    assert main(["sample", "--store", str(tmp_path / "store"), *flags]) == 2

    said = capsys.readouterr().err
    assert sentence in said
    assert "DamagedArtifact" not in said


def test_a_manifest_that_lists_no_discriminator_is_refused_and_one_without_calibration_says_so(
    judged_store: Path, tmp_path: Path
) -> None:
    artifact = republish(Store(judged_store).resolve("judged"), tmp_path)
    whole = artifact.manifest
    files = {name: digest for name, digest in whole.files.items() if name != DISCRIMINATOR_FILE}
    artifact.file(MANIFEST_FILE).write_text(replace(whole, files=files).to_json())
    with pytest.raises(DamagedArtifact, match=r"judged:1: the manifest lists no discriminator\.onnx"):
        Store(tmp_path).resolve("judged")

    with pytest.raises(InvalidValue, match="the model's discriminator has no calibration, got 'mh'"):
        Rows.of_seeds(whole, [0]).judged(replace(whole, sampler=None), "mh")
    plain = Golden.load(artifact.file(GOLDEN_FILE), whole)
    replace(plain, realness=None).save(artifact.file(GOLDEN_FILE))
    with pytest.raises(DamagedArtifact, match=r"judged:1: golden\.npz must hold one realness a row"):
        Golden.load(artifact.file(GOLDEN_FILE), whole)


def test_a_machine_whose_logits_differ_does_not_go_on_with_a_judged_set(
    sample: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sample("--realness") == 0
    (tmp_path / "out/seed0000000003.png").unlink()
    monkeypatch.setattr("service.session.DiscriminatorSession.golden_difference", lambda self, rows: 0.5)

    assert sample("--realness") == 5

    assert "off by 0 grey levels there, and are off by 0 grey levels and 0.5 of a logit" in (
        capsys.readouterr().err
    )


def test_another_threshold_is_another_job(
    sample: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample("--min-realness", "0.2") == 0

    assert sample("--min-realness", "0.4") == 5
    assert "min_realness was 0.2 and is 0.4 now" in capsys.readouterr().err
