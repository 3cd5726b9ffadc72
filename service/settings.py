"""Facts about a deployment: read once, from flag > environment > YAML > default.

Every field is a flag (`--max-queued-rows`), an environment variable (`GANSERVE_MAX_QUEUED_ROWS`)
and a key of the YAML file that `--config` names. Unknown keys are refused wherever they stand.
Facts about a model live in its manifest, not here.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import yaml
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, SettingsConfigDict
from pydantic_settings import PydanticBaseSettingsSource as Source

from models.errors import show
from models.store import SHIPPED_STORE
from service.device import Accelerator, DeviceOptions
from service.errors import StartError

ENV_PREFIX: Final = "GANSERVE_"
_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+", re.ASCII)

SignAlgorithm = Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"]


@dataclass(frozen=True)
class SignFiles:
    """The operator's certificate."""

    cert_file: Path
    """PEM: the signing certificate, then those that issued it."""
    key_file: Path
    """PEM, PKCS #8: the first certificate's private key."""
    algorithm: SignAlgorithm


class Settings(BaseSettings):
    """One server's settings. Frozen; each field's description is its flag's help."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, protected_namespaces=()
    )

    store: Path = Field(SHIPPED_STORE, description="folder of published artifacts; default: the shipped one")
    model: str = Field(
        "fashion-mnist",
        description="what to serve: NAME[:VERSION][,NAME[:VERSION]…]; the first is the default",
    )
    host: Literal["127.0.0.1", "0.0.0.0", "::"] = Field(
        "127.0.0.1", description="address to listen on; 0.0.0.0 for every interface"
    )
    port: int = Field(8000, ge=1024, le=65535, description="port to listen on")
    accelerator: Accelerator = Field("cpu", description="device that runs the generator: cpu or cuda")
    workers: int | None = Field(
        None,
        ge=1,
        le=256,
        description="worker processes a model; default: CPUs this process may use, 1 a device on cuda",
    )
    threads: int = Field(1, ge=1, le=256, description="ONNX Runtime threads a worker")
    max_microbatch: int = Field(
        16, ge=1, le=1024, description="rows of one device run at most; default: 16, the largest of buckets"
    )
    buckets: str | None = Field(
        None,
        description="batch sizes that the device runs, rows padded up to the next; "
        "default: 1,4,16,64 on cuda, any number of rows on cpu",
    )
    cuda_graphs: bool = Field(True, description="run each bucket on cuda as one captured graph")
    tf32: bool = Field(False, description="let cuda compute faster and with fewer digits: other images")
    max_microbatch_ms: float = Field(
        20.0,
        gt=0,
        le=10_000,
        description="device time of one microbatch at most, by what rows were measured to cost",
    )
    max_rows: int = Field(1024, ge=1, le=1_000_000, description="rows of one request at most")
    max_queued_rows: int = Field(
        8192, ge=1, description="rows that wait at most, a model; more is refused with 429"
    )
    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="bytes of one request body at most")
    max_pixel_bytes: int = Field(
        256 * 2**20,
        ge=1024,
        description="bytes of one request's pixels at most: rows x height x width x channels",
    )
    max_header_bytes: int = Field(
        32 * 2**10, ge=1024, le=2**20, description="bytes of a request's line and headers at most"
    )
    header_timeout_s: float = Field(
        10.0, gt=0, le=3600, description="seconds in which a request's line and headers must arrive"
    )
    send_timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="a caller that takes nothing of its answer for so many seconds is cut off",
    )
    cors_origins: str | None = Field(
        None,
        description="other origins whose pages may ask (https://example.org), comma separated, or *",
    )
    timeout_ms: int = Field(
        30_000, ge=1, description="deadline of a request that names none, in milliseconds"
    )
    max_timeout_ms: int = Field(120_000, ge=1, description="longest deadline that a request may ask for")
    worker_timeout_s: float = Field(
        10.0,
        ge=0.1,
        le=3600,
        description="a worker is killed, and its rows sent to another, when a microbatch takes so many "
        "seconds and 20 times what its rows were measured to cost, or when it is idle and gives no sign "
        "of life for so many",
    )
    load_timeout_s: float = Field(
        120.0, ge=1, le=3600, description="seconds that a worker may take to load a version"
    )
    watch_store_s: float = Field(
        0.0,
        ge=0,
        le=86_400,
        description="look into the store every so many seconds, and serve the highest version of models "
        "that name none; 0 is never, POST /v1/models/NAME/reload does it on request",
    )
    encode_threads: int | None = Field(
        None, ge=1, le=256, description="threads that encode images; default: as CPUs"
    )
    drain_s: float = Field(
        20.0, ge=0, le=3600, description="after SIGTERM: seconds that accepted requests may take"
    )
    drain_delay_s: float = Field(
        0.0,
        ge=0,
        le=600,
        description="after SIGTERM: seconds in which new requests are still accepted (5 on Kubernetes)",
    )
    strict: bool = Field(False, description="refuse to become ready unless the golden rows are bit-exact")
    marks: bool = Field(
        True, description="write into each image (XMP) that it is generated, and how to make it again"
    )
    api_keys: SecretStr | None = Field(
        None, description="keys that callers must present, comma separated; no flag, since flags can be seen"
    )
    api_keys_file: Path | None = Field(
        None,
        description="file of keys that callers must present, one a line, # comments; read again when it "
        "changes; GANSERVE_API_KEYS holds more",
    )
    admin_keys: SecretStr | None = Field(
        None, description="keys that may also reload models, comma separated; no flag"
    )
    admin_keys_file: Path | None = Field(
        None,
        description="file of keys that may also reload models, as api_keys_file; "
        "GANSERVE_ADMIN_KEYS holds more",
    )
    sign_cert_file: Path | None = Field(
        None, description="PEM file of the C2PA signing certificate and its issuers; needs the extra c2pa"
    )
    sign_key_file: Path | None = Field(None, description="PEM file of that certificate's private key")
    sign_algorithm: SignAlgorithm = Field("es256", description="of that key")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="what is logged to stderr"
    )

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_origins(cls, value: str | None) -> str | None:
        for origin in _parts(value):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError("must be * or origins such as https://example.org:8443, without a path")
        return value

    @field_validator("buckets")
    @classmethod
    def _buckets_ascend(cls, value: str | None) -> str | None:
        parts = _parts(value)
        sizes = [int(part) if re.fullmatch("[0-9]{1,4}", part, re.ASCII) else 0 for part in parts]
        ascend = all(one < other for one, other in itertools.pairwise(sizes))
        if value is not None and not (ascend and all(1 <= size <= 1024 for size in sizes)):
            raise ValueError("must be ascending integers between 1 and 1024 with commas between")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """YAML's `workers: true` would be read as 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("must not be true or false")
        return value

    @model_validator(mode="after")
    def _timeouts_fit(self) -> Settings:
        if self.timeout_ms > self.max_timeout_ms:
            raise ValueError(
                f"timeout_ms must be at most max_timeout_ms ({self.max_timeout_ms}), got {self.timeout_ms}"
            )
        return self

    @model_validator(mode="after")
    def _a_microbatch_fits_a_bucket(self) -> Settings:
        buckets = self.device_options.buckets_on(self.accelerator)
        if buckets and "max_microbatch" in self.model_fields_set and self.max_microbatch > buckets[-1]:
            raise ValueError(
                f"max_microbatch must be at most the largest of buckets ({buckets[-1]}), "
                f"got {self.max_microbatch}"
            )
        return self

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> Settings:
        if self.sign_cert_file is not None and self.sign_key_file is None:
            raise ValueError(f"sign_key_file must be given with sign_cert_file ({self.sign_cert_file})")
        if self.sign_key_file is not None and self.sign_cert_file is None:
            raise ValueError(f"sign_cert_file must be given with sign_key_file ({self.sign_key_file})")
        return self

    @property
    def sign_files(self) -> SignFiles | None:
        """What images are signed with on request, if with anything."""
        if self.sign_cert_file is None or self.sign_key_file is None:
            return None
        return SignFiles(self.sign_cert_file, self.sign_key_file, self.sign_algorithm)

    @property
    def model_addresses(self) -> list[str]:
        """What to serve, in order; the first is the default model."""
        return _parts(self.model)

    @property
    def allowed_origins(self) -> list[str]:
        """Origins of pages that CORS lets ask; none by default."""
        return _parts(self.cors_origins)

    @property
    def max_request_rows(self) -> int:
        """Rows of one request at most: more than the queue holds could never be accepted."""
        return min(self.max_rows, self.max_queued_rows)

    @property
    def device_options(self) -> DeviceOptions:
        buckets = None if self.buckets is None else tuple(map(int, _parts(self.buckets)))
        return DeviceOptions(buckets, self.cuda_graphs, self.tf32, deterministic=self.strict)

    @property
    def microbatch_rows(self) -> int:
        """Rows of one microbatch at most."""
        buckets = self.device_options.buckets_on(self.accelerator)
        if buckets and "max_microbatch" not in self.model_fields_set:
            return buckets[-1]
        return self.max_microbatch

    @property
    def workers_per_model(self) -> int:
        """Worker processes a model and device."""
        if self.workers is not None:
            return self.workers
        return 1 if self.accelerator == "cuda" else usable_cpus()

    @property
    def devices(self) -> int:
        """Devices that each model has workers on."""
        return usable_gpus() if self.accelerator == "cuda" else 1

    @property
    def encode_pool_threads(self) -> int:
        return self.encode_threads or usable_cpus()


def _parts(value: str | None) -> list[str]:
    return [] if value is None else [part.strip() for part in value.split(",")]


SECRET_FIELDS: Final = frozenset({"api_keys", "admin_keys"})
"""Settings that are no flags, since every user of a machine sees flags, and that no message shows."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give `parser` one flag a field of Settings, and `--config`."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file of settings, below flags and environment"
    )
    for name, field in Settings.model_fields.items():
        flag = "--" + name.replace("_", "-")
        if name in SECRET_FIELDS:
            continue
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=_help(field))
        else:
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            metavar = f"{{{','.join(choices)}}}" if choices else name.upper()
            parser.add_argument(flag, default=None, metavar=metavar, help=_help(field))


def _help(field: FieldInfo) -> str:
    """What a field is, and its default unless that is none or told already."""
    told = field.description or ""
    if field.default is None or "default:" in told:
        return told
    default = ("off", "on")[field.default] if isinstance(field.default, bool) else field.default
    return f"{told} (default: {f'{default:g}' if isinstance(default, float) else default})"


def flags_of(arguments: argparse.Namespace) -> list[str]:
    """The flags that were parsed, to be given to another process."""
    flags = [] if arguments.config is None else ["--config", str(arguments.config)]
    for name, field in Settings.model_fields.items():
        value, flag = getattr(arguments, name, None), "--" + name.replace("_", "-")
        if value is not None and field.annotation is bool:
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        elif value is not None:
            flags += [flag, str(value)]
    return flags


def load_settings(arguments: argparse.Namespace) -> Settings:
    """Read settings from parsed flags, environment and YAML. Raises StartError, one sentence a mistake."""
    _refuse_unknown_environment(os.environ)
    flags = {
        name: value for name in Settings.model_fields if (value := getattr(arguments, name, None)) is not None
    }
    yaml_values = _read_yaml(arguments.config)

    class Configured(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: Source,
            env_settings: Source,
            dotenv_settings: Source,
            file_secret_settings: Source,
        ) -> tuple[Source, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=yaml_values)

    try:
        return Configured(**flags)
    except ValidationError as error:
        raise StartError("; ".join(_sentence(one) for one in error.errors())) from None


def _read_yaml(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartError(f"config must be a readable file: {error.strerror}, got {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise StartError(f"config must be YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise StartError(f"config must be a YAML mapping of settings, got {show(values)}")
    return values


def _refuse_unknown_environment(environment: Mapping[str, str]) -> None:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(
        name for name in environment if name.upper().startswith(ENV_PREFIX) and name.upper() not in known
    )
    if unknown:
        raise StartError(
            f"unknown setting in the environment: {', '.join(unknown)}; see ganserve serve --help"
        )


def _sentence(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown setting {name}; see ganserve serve --help"
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should", "must")
    if not name:
        return message
    return f"{name} {message}" if name in SECRET_FIELDS else f"{name} {message}, got {show(error['input'])}"


def usable_cpus() -> int:
    """CPUs that this process may use: the smaller of its affinity and its cgroup quota, at least 1."""
    affinity = len(os.sched_getaffinity(0))
    quota = _cgroup_cpus()
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def usable_gpus() -> int:
    """CUDA devices that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        from litserve.connector import check_cuda_with_nvidia_smi

        return int(check_cuda_with_nvidia_smi())
    # CUDA takes names (numbers or GPU-… ids) up to the first that is none; LitServe knows numbers only.
    return len(list(itertools.takewhile(lambda name: name.strip() not in ("", "-1"), visible.split(","))))


def check_devices(settings: Settings) -> None:
    """Raise StartError where there is no device of the accelerator that was asked for."""
    if not settings.devices:
        raise StartError(
            f"accelerator {settings.accelerator} was asked for, but no such device is to be seen"
        )


def _cgroup_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The cgroup's CPU quota in CPUs, or None without one. Reads v2, then v1."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit_us = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((cgroup / "cpu/cpu.cfs_period_us").read_text())
        return limit_us / period_us if limit_us > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
