"""Settings: what is read, from where, and how many CPUs there are."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from service.device import CUDA_BUCKETS
from service.errors import StartError
from service.settings import (
    SECRET_FIELDS,
    DeviceOptions,
    Settings,
    _cgroup_cpus,
    add_flags,
    load_settings,
    usable_gpus,
)


def load(*flags: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return load_settings(parser.parse_args(flags))


def test_every_setting_is_a_flag() -> None:
    values = {
        "store": "/srv/store", "model": "a,b:2", "host": "::", "port": "9000", "accelerator": "cuda",
        "workers": "3", "threads": "2", "max_microbatch": "8", "max_microbatch_ms": "5", "max_rows": "7",
        "max_queued_rows": "70", "max_body_bytes": "2048", "timeout_ms": "10", "max_timeout_ms": "20",
        "encode_threads": "4", "drain_s": "1", "drain_delay_s": "2", "log_level": "debug",
            "sign_cert_file": "/srv/chain.pem", "sign_key_file": "/srv/key.pem",
            "sign_algorithm": "ed25519",
        "max_pixel_bytes": "4096", "max_header_bytes": "8192", "header_timeout_s": "3",
        "send_timeout_s": "4",
        "worker_timeout_s": "3", "load_timeout_s": "60", "watch_store_s": "5",
        "cors_origins": "https://a.example", "api_keys_file": "/run/keys", "admin_keys_file": "/run/admin",
        "buckets": "2,8",
    }  # fmt: skip

    settings = load(
        *(part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value))
    )

    assert {name: str(getattr(settings, name)).removesuffix(".0") for name in values} == values
    switches = {"strict", "marks", "cuda_graphs", "tf32"}
    assert set(values) | switches == set(Settings.model_fields) - SECRET_FIELDS
    assert load("--strict").strict
    assert not load("--no-marks").marks
    assert load(
        "--strict", "--tf32", "--no-cuda-graphs", "--buckets", "1, 4"
    ).device_options == DeviceOptions((1, 4), cuda_graphs=False, tf32=True, deterministic=True)
    assert settings.model_addresses == ["a", "b:2"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--port", "80"), "port must be greater than or equal to 1024, got '80'"),
        (("--host", "example"), "host must be '127.0.0.1', '0.0.0.0' or '::', got 'example'"),
        (("--max-rows", "many"), "max_rows must be a valid integer.*got 'many'"),
        (("--timeout-ms", "200000"), r"timeout_ms must be at most max_timeout_ms \(120000\), got 200000"),
        (("--cors-origins", "https://a.example/x"), r"cors_origins must be \* or origins.*got 'https://a.ex"),
        (("--cors-origins", "https://a.example,"), "cors_origins must be"),
        (("--buckets", "4,1"), "buckets must be ascending integers between 1 and 1024 with .*, got '4,1'"),
        (("--buckets", "4,4"), "buckets must be ascending"),
        (("--buckets", "0,4"), "buckets must be ascending"),
        (("--buckets", ""), "buckets must be ascending"),
        (("--buckets", "1,2048"), "buckets must be ascending integers between 1 and 1024"),
        (
            ("--buckets", "1,4", "--max-microbatch", "5"),
            r"max_microbatch must be at most the largest of buckets \(4\), got 5",
        ),
        (("--accelerator", "cuda", "--max-microbatch", "65"), r"the largest of buckets \(64\), got 65"),
        (("--config", "/nowhere.yaml"), "config must be a readable file: No such file or directory"),
    ],
)
def test_a_setting_that_breaks_a_rule_is_a_sentence(flags: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(StartError, match=sentence):
        load(*flags)


def test_a_secret_is_shown_neither_by_help_nor_by_repr_nor_by_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    monkeypatch.setenv("GANSERVE_API_KEYS", "a-secret-of-some-length")
    (tmp_path / "c.yaml").write_text("admin_keys: [another-secret-of-some-length]\n")

    with pytest.raises(StartError, match="admin_keys") as refused:
        load("--config", str(tmp_path / "c.yaml"))

    assert "secret" not in str(refused.value)
    assert "secret" not in repr(load())
    assert "api-keys " not in parser.format_help()


def test_a_yaml_true_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("workers: true\nstrict: true\n")

    with pytest.raises(StartError, match=r"^workers must not be true or false, got true$"):
        load("--config", str(tmp_path / "c.yaml"))


@pytest.mark.parametrize("text", ["- a list", "port: [", "just text", "1: toy"])
def test_a_config_that_is_no_mapping_is_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)

    with pytest.raises(StartError, match="config must be"):
        load("--config", str(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_cgroups_quota_is_read_in_both_of_its_forms(
    tmp_path: Path, files: dict[str, str], cpus: float | None
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    assert _cgroup_cpus(tmp_path) == cpus


@pytest.mark.parametrize(
    ("flags", "rows", "buckets"),
    [
        ((), 16, ()),
        (("--accelerator", "cuda"), 64, CUDA_BUCKETS),
        (("--accelerator", "cuda", "--max-microbatch", "20"), 20, CUDA_BUCKETS),
        (("--buckets", "2,8"), 8, (2, 8)),
        (("--buckets", "2,8", "--max-microbatch", "8"), 8, (2, 8)),
    ],
)
def test_a_microbatch_holds_what_the_largest_bucket_holds_unless_less_is_asked_for(
    flags: tuple[str, ...], rows: int, buckets: tuple[int, ...]
) -> None:
    settings = load(*flags)

    assert settings.microbatch_rows == rows
    assert settings.device_options.buckets_on(settings.accelerator) == buckets


@pytest.mark.parametrize(
    ("visible", "devices"),
    [("0", 1), ("1,0", 2), ("GPU-5ae1,GPU-77b0", 2), ("", 0), ("-1", 0), ("2,-1,3", 1)],
)
def test_gpus_are_those_that_cuda_may_see(
    monkeypatch: pytest.MonkeyPatch, visible: str, devices: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert usable_gpus() == devices
    assert load("--accelerator", "cuda").devices == devices
    assert load().devices == 1
