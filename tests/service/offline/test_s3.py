"""Sets on S3: a real server, one that fails for a while, one whose bucket is gone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_server import FlakyWay, S3Server

Sample = Callable[..., int]

FLAGS = ("--seeds", "0-59", "--shard-size", "20")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3") / "log")
    yield server
    server.stop()


@pytest.fixture
def way(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyWay]:
    """The way to the server, and the environment that leads clients to it."""
    import s3fs

    way = FlakyWay(server.port)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": way.url,
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    server.make_bucket()
    yield way
    s3fs.S3FileSystem.clear_instance_cache()
    way.stop()


def objects(place: str) -> dict[str, bytes]:
    """All that is to be seen at an address."""
    import fsspec

    fs, root = fsspec.url_to_fs(place, use_listings_cache=False)
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("fmt", ["png", "webdataset"])
def test_a_set_on_s3_is_the_one_in_a_folder(sample: Sample, way: FlakyWay, tmp_path: Path, fmt: str) -> None:
    flags, url = (*FLAGS, "--format", fmt), f"s3://sets/{fmt}"
    assert sample(*flags, "--out", tmp_path / "here") == 0

    assert sample(*flags, "--out", url) == 0

    assert objects(url) == files(tmp_path / "here")
    asked = way.asked
    assert sample(*flags, "--out", url) == 0
    assert way.asked - asked <= 8  # one look at the sizes, and nothing is made
    assert sample("--check", url) == 0


def test_requests_that_fail_are_made_again(sample: Sample, way: FlakyWay, tmp_path: Path) -> None:
    flags = (*FLAGS, "--format", "webdataset")
    assert sample(*flags, "--out", tmp_path / "here") == 0
    way.fails = lambda method, path, number: (None, "500", None, "cut")[number % 4]

    assert sample(*flags, "--out", "s3://sets/flaky") == 0

    assert way.failed > 10
    way.fails = lambda method, path, number: None
    assert objects("s3://sets/flaky") == files(tmp_path / "here")


def test_a_store_that_stays_away_is_a_sentence_and_what_is_finished_is_kept(
    sample: Sample,
    way: FlakyWay,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.offline.places._FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    flags = (*FLAGS, "--format", "webdataset")
    sample(*flags, "--out", tmp_path / "here")
    whole = files(tmp_path / "here")
    way.fails = lambda method, path, number: (
        "cut" if method == "PUT" and path.partition("?")[0].endswith("shard-00002.tar") else None
    )

    assert sample(*flags, "--out", "s3://sets/away") == 6

    assert "s3://sets/away cannot be used, after 6 tries" in capsys.readouterr().err
    way.fails = lambda method, path, number: None
    seen = {name: data for name, data in objects("s3://sets/away").items() if name.endswith(".tar")}
    assert {"shard-00000.tar", "shard-00001.tar"} <= set(seen)
    assert "shard-00002.tar" not in seen
    assert seen.items() <= whole.items()  # nothing half-written has its name
    assert sample(*flags, "--out", "s3://sets/away") == 0
    assert objects("s3://sets/away") == whole


@pytest.mark.parametrize("when", ["before", "after two shards"])
def test_a_bucket_that_is_gone_is_a_sentence(
    sample: Sample, server: S3Server, way: FlakyWay, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    def vanish(method: str, path: str, number: int) -> None:
        if method == "PUT" and "shard-00002.tar" in path:
            server.vanish()

    if when == "before":
        server.vanish()
    way.fails = vanish

    assert sample(*FLAGS, "--format", "webdataset", "--out", "s3://sets/gone") == 6

    assert "s3://sets/gone cannot be used: " in (said := capsys.readouterr().err)
    assert "bucket does not exist" in said


def test_damage_on_s3_is_found_and_repaired(sample: Sample, way: FlakyWay) -> None:
    import fsspec

    flags = (*FLAGS, "--format", "npy", "--out", "s3://sets/damaged")
    sample(*flags)
    whole = objects("s3://sets/damaged")
    fs, root = fsspec.url_to_fs("s3://sets/damaged")
    fs.pipe_file(f"{root}/shard-00001.npy", bytes(len(whole["shard-00001.npy"])))

    assert sample("--check", "s3://sets/damaged") == 1
    fs.rm(f"{root}/shard-00001.npy")
    assert sample(*flags) == 0

    assert objects("s3://sets/damaged") == whole


def test_shares_meet_on_s3_and_the_last_writes_the_manifest(
    sample: Sample, way: FlakyWay, tmp_path: Path
) -> None:
    flags = (*FLAGS, "--format", "npz")
    sample(*flags, "--out", tmp_path / "here")

    for share in range(3):
        assert sample(*flags, "--out", "s3://sets/split", "--shards", f"{share}/3") == 0
        assert ("manifest.json" in objects("s3://sets/split")) is (share == 2)

    assert objects("s3://sets/split") == files(tmp_path / "here")
    assert sample("--merge", "s3://sets/split") == 0
    assert json.loads(objects("s3://sets/split")["manifest.json"])["images"] == 60
