"""A set that is begun again: finished shards are kept, damaged ones made again, another job is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service.offline import records, sampling

Sample = Callable[..., int]

FLAGS = ("--seeds", "0-99", "--format", "webdataset", "--shard-size", "30")


@pytest.fixture
def out(sample: Sample, tmp_path: Path) -> Path:
    """A complete set of four shards."""
    assert sample(*FLAGS, "--out", tmp_path / "out") == 0
    return tmp_path / "out"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the shards that are made from now on."""
    numbers: list[int] = []
    make = sampling._make

    def recorded(request, job, shards, *rest):  # type: ignore[no-untyped-def]
        numbers.extend(shards)
        make(request, job, shards, *rest)

    monkeypatch.setattr(sampling, "_make", recorded)
    return numbers


def begin_again(out: Path) -> None:
    """Have the place look as if the run had ended before the manifest was written."""
    manifest = json.loads((out / "manifest.json").read_text())
    receipts = out / ".ganserve/receipts"
    receipts.mkdir(parents=True)
    (out / ".ganserve/job.json").write_text(json.dumps(manifest["job"]))
    for number, receipt in enumerate(manifest["shards"]):
        (receipts / f"shard-{number:05d}.json").write_text(json.dumps(receipt))
    (out / "manifest.json").unlink()


def test_nothing_but_the_set_and_its_manifest_is_left(out: Path) -> None:
    names = sorted(path.name for path in out.iterdir())

    assert names == ["manifest.json", *(f"shard-0000{number}.tar" for number in range(4))]


def test_a_finished_job_opens_no_session_and_touches_nothing(
    sample: Sample, out: Path, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    monkeypatch.setattr("service.session._open", None)  # calling it would fail

    assert sample(*FLAGS, "--out", out) == 0

    assert made == []
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_finished_shards_are_kept_and_damaged_ones_made_again(
    sample: Sample, out: Path, made: list[int]
) -> None:
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    begin_again(out)
    damaged = bytearray(whole["shard-00002.tar"])
    damaged[1000] ^= 1
    (out / "shard-00002.tar").write_bytes(damaged)
    (out / "shard-00003.tar").unlink()

    assert sample(*FLAGS, "--out", out) == 0

    assert made == [2, 3]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole


def test_a_shard_without_a_receipt_was_in_work_and_is_made_again(
    sample: Sample, out: Path, made: list[int]
) -> None:
    begin_again(out)
    (out / ".ganserve/receipts/shard-00001.json").unlink()
    (out / ".ganserve/receipts/shard-00000.json").write_text("{}")

    assert sample(*FLAGS, "--out", out) == 0

    assert made == [0, 1]


def test_a_complete_set_is_believed_by_its_sizes_and_repaired_where_they_differ(
    sample: Sample, out: Path, made: list[int]
) -> None:
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    with (out / "shard-00001.tar").open("ab") as file:
        file.write(b"more")

    assert sample(*FLAGS, "--out", out) == 0

    assert made == [1]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole


def test_lost_images_and_metadata_of_a_folder_are_noticed(
    sample: Sample, tmp_path: Path, made: list[int]
) -> None:
    flags = ("--seeds", "0-49", "--shard-size", "20", "--out", tmp_path)
    sample(*flags)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    made.clear()
    (tmp_path / "seed0000000025.png").unlink()
    (tmp_path / "metadata.jsonl").write_text("")

    assert sample(*flags) == 0

    assert made == [1]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


@pytest.mark.parametrize("done", ["complete", "begun"])
@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (("--seeds", "0-98"), "seeds was '0-99' and is '0-98' now"),
        (("--class-idx", "3"), "class_idx was null and is 3 now"),
        (("--truncation-psi", "0.5"), "truncation_psi was 1.0 and is 0.5 now"),
        (("--format", "zip"), "format was 'webdataset' and is 'zip' now"),
        (("--images", "webp"), "image_format was 'png' and is 'webp' now"),
        (("--shard-size", "40"), "shard_size was 30 and is 40 now"),
        (("--no-marks",), "marks was true and is false now"),
    ],
)
def test_another_job_in_the_same_place_is_refused_with_what_differs(
    sample: Sample,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    field: str,
    done: str,
) -> None:
    if done == "begun":
        begin_again(out)
    before = sorted(out.rglob("*"))

    assert sample(*FLAGS, *flags, "--out", out) == 5

    assert f"{out} holds another job: " in (said := capsys.readouterr().err)
    assert field in said
    assert sorted(out.rglob("*")) == before


def test_of_two_jobs_begun_at_once_in_one_folder_the_later_is_refused(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, claim_text = tmp_path / "out", records.claim_text

    def claim_second(place, name, data, folder):  # type: ignore[no-untyped-def]
        monkeypatch.setattr(records, "claim_text", claim_text)
        other = json.loads(data) | {"class_idx": 1}
        claim_text(place, name, json.dumps(other).encode(), folder)
        claim_text(place, name, data, folder)

    monkeypatch.setattr(records, "claim_text", claim_second)

    assert sample(*FLAGS, "--out", out) == 5

    assert "holds another job: class_idx was 1 and is null now" in capsys.readouterr().err
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["job.json"]


def test_a_manifest_that_is_not_ours_is_refused_and_left(
    sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "another program\'s"}')

    assert sample(*FLAGS, "--out", tmp_path) == 5

    assert "holds a manifest.json that is not ours" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_machine_that_makes_other_pixels_does_not_go_on(
    sample: Sample, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_again(out)
    (out / "shard-00003.tar").unlink()
    monkeypatch.setattr("service.session.Session.golden_difference", lambda self, rows: 2)

    assert sample(*FLAGS, "--out", out) == 5

    assert (
        "golden rows were off by 0 grey levels there, and are off by 2 grey levels here"
        in capsys.readouterr().err
    )
    assert not (out / "manifest.json").exists()


# -- the check of a whole set ---------------------------------------------------------------------


def test_check_proves_a_whole_set(sample: Sample, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(sample, out) == 0

    assert capsys.readouterr().out.endswith("100 images in 4 shards: 0 damaged; 1 made again and compared\n")
    assert not (out / ".ganserve").exists()


def test_check_finds_a_bit_that_sizes_do_not_show(
    sample: Sample, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray((out / "shard-00002.tar").read_bytes())
    data[5000] ^= 1
    (out / "shard-00002.tar").write_bytes(data)

    assert sample(*FLAGS, "--out", out) == 0  # equal sizes suffice
    assert check(sample, out) == 1

    assert "shard-00002.tar is not what manifest.json says" in capsys.readouterr().out


def test_check_makes_shards_again_so_that_files_which_fit_a_false_manifest_are_found(
    sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--format", "npy", "--out")
    sample("--seeds", "0-9", *flags, tmp_path / "out")
    sample("--seeds", "10-19", *flags, tmp_path / "other")
    shutil.copy(tmp_path / "other/shard-00000.npy", tmp_path / "out/shard-00000.npy")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    manifest["shards"] = json.loads((tmp_path / "other/manifest.json").read_text())["shards"]
    (tmp_path / "out/manifest.json").write_text(json.dumps(manifest))

    assert check(sample, tmp_path / "out") == 1

    assert "shard-00000.npy comes out otherwise when it is made again" in capsys.readouterr().out


def test_check_of_what_is_no_set_is_a_sentence(
    sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(sample, tmp_path) == 5

    assert "must hold a set that ganserve sample made, and holds none" in capsys.readouterr().err


def check(sample: Sample, out: Path) -> int:
    return sample("--check", out)


# -- many machines --------------------------------------------------------------------------------


def test_shares_make_together_what_one_run_makes_and_the_last_writes_the_manifest(
    sample: Sample, out: Path, tmp_path: Path
) -> None:
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    split = tmp_path / "split"
    complete = []

    for share in ("2/3", "0/3", "1/3"):
        assert sample(*FLAGS, "--out", split, "--shards", share) == 0
        complete.append((split / "manifest.json").exists())

    assert complete == [False, False, True]
    assert {path.name: path.read_bytes() for path in split.iterdir()} == whole


def test_a_pod_of_an_indexed_job_takes_its_share_from_its_index(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(*FLAGS, "--out", tmp_path, "--shards", "/4") == 2
    assert "shards /4 takes i from JOB_COMPLETION_INDEX" in capsys.readouterr().err
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")

    assert sample(*FLAGS, "--out", tmp_path, "--shards", "/4") == 0

    assert [path.name for path in tmp_path.glob("*.tar")] == ["shard-00003.tar"]


def test_merge_names_what_lacks_and_seals_a_set_once_it_is_there(
    sample: Sample, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = (out / "manifest.json").read_bytes()
    begin_again(out)
    (out / ".ganserve/receipts/shard-00001.json").rename(out / "aside")

    assert sample("--merge", out) == 1
    assert f"{out} lacks 1 of 4 shards: 1" in capsys.readouterr().err
    (out / "aside").rename(out / ".ganserve/receipts/shard-00001.json")
    assert [sample("--merge", out), sample("--merge", out)] == [0, 0]

    assert (out / "manifest.json").read_bytes() == manifest
    assert not (out / ".ganserve").exists()


@pytest.mark.parametrize("share", ["3/3", "1", "a/b", "/0", "0/0"])
def test_a_share_that_there_is_not_is_a_sentence(
    sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str], share: str
) -> None:
    assert sample(*FLAGS, "--out", tmp_path, "--shards", share) == 2

    assert "shards must be i/N with i from 0 to N-1" in capsys.readouterr().err


def test_pixels_survive_every_way_of_splitting(
    sample: Sample, tmp_path: Path, pixels_of_seeds: Callable[..., np.ndarray]
) -> None:
    seeds = [7, *range(100, 121), 4294967295]
    for size in (1, 5, 1000):
        flags = ("--seeds", "7,100-120,4294967295", "--format", "npy", "--shard-size", size)
        assert sample(*flags, "--out", tmp_path / str(size)) == 0

        shards = sorted((tmp_path / str(size)).glob("*.npy"))
        assert np.array_equal(np.concatenate([np.load(one) for one in shards]), pixels_of_seeds(seeds))
