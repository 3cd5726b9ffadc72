"""What a caller may ask: the shapes of requests, and sentences for those that break a rule.

Checks what can be known without a model (types, ranges, which fields go together). What depends
on the model (sizes, classes, truncation) is `service.rows`' and `models.sampling`'s business.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, Required, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import from_json
from starlette.datastructures import QueryParams
from typing_extensions import TypedDict

from models.calibration import Sampler
from models.errors import show
from models.manifest import MAX_VERSION
from models.sampling import MAX_SEED, MAX_TRUNCATION_PSI
from service.batching import Priority
from service.containers import Container
from service.encoding import Format
from service.errors import InvalidField, MalformedBody, TooLarge
from service.rows import MAX_WALK_FRAMES

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
TruncationPsi = Annotated[float, Field(ge=0, le=MAX_TRUNCATION_PSI, allow_inf_nan=False)]
_MANY_LISTS: Final = 10_000  # what is quick to parse is let through, to be told in detail
_MANY_VALUES: Final = 500_000
_DIGITS: Final = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)
_NUMBER_BRANCHES: Final = frozenset(
    {"int", "float", "constrained-float"}
)  # of a union with a list, by pydantic
_MAX_SENTENCES: Final = 5  # of a request that breaks more rules, these are told


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


# A list stops at its first wrong item: a million of them must not take a million sentences.
SeedList = Annotated[list[Seed], Field(fail_fast=True, min_length=1)]
LatentRow = Annotated[list[float], Field(fail_fast=True)]
LatentList = Annotated[list[LatentRow], Field(fail_fast=True, min_length=1)]
ClassList = Annotated[list[int], Field(fail_fast=True)]
PsiList = Annotated[list[TruncationPsi], Field(fail_fast=True)]


class SampleRequest(_Request):
    """Body of `POST /v1/samples`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"seed": 42},
                {"seed": 0, "n": 16, "class_idx": 8},
                {"seeds": [7, 99], "format": "npy"},
            ]
        }
    )

    model: str | None = Field(None, description="NAME or NAME:VERSION; default: the server's first model")
    seed: Seed | None = Field(None, description="with n: the seeds seed, seed+1, … seed+n-1")
    n: int | None = Field(None, ge=1, description="how many images; default 1")
    seeds: SeedList | None = Field(None, description="one image a seed, instead of seed and n")
    latents: LatentList | None = Field(None, description="one image a row of z_dim numbers, instead of seeds")
    class_idx: int | ClassList | None = Field(
        None, description="one class for all images or one each; default seed % num_classes"
    )
    truncation_psi: TruncationPsi | PsiList | None = Field(
        None, description="one for all images or one each; 1 (default) is off, 0 the average image"
    )
    sampler: Sampler = Field(
        "plain", description="mh: each image is chosen by the model's discriminator, where that is offered"
    )
    proposals: int | None = Field(
        None, ge=1, description="with mh: how many images each is chosen from; each counts as a row"
    )
    realness: bool = Field(
        False, description="tell how probably each image is a real one, by the model's discriminator"
    )
    format: Format = Field("png", description="npy is one uint8 array [n, H, W, C]")
    container: Container | None = Field(
        None, description="of more than one image: zip (default), tar or json, with a manifest"
    )
    sign: bool = Field(False, description="sign each file with the operator's certificate (C2PA)")
    priority: Priority = Field(
        "interactive", description="interactive requests get their rows before batch requests"
    )
    timeout_ms: int | None = Field(None, ge=1, description="deadline from acceptance, in milliseconds")

    @model_validator(mode="after")
    def _fields_fit(self) -> SampleRequest:
        seed, n = self.seed, self.n
        if (seed is not None) + (self.seeds is not None) + (self.latents is not None) != 1:
            given = [name for name in ("seed", "seeds", "latents") if getattr(self, name) is not None]
            got = " and ".join(given) or "none of them"
            raise ValueError(f"exactly one of seed, seeds and latents must be given, got {got}")
        if n is not None and seed is None:
            other = "seeds" if self.latents is None else "latents"
            raise ValueError(f"n must be left out where {other} is given, got {show(n)}")
        if seed is not None and seed + (n or 1) - 1 > MAX_SEED:
            raise ValueError(f"seed + n - 1 must be at most {MAX_SEED}, got {show(seed)} + {show(n)} - 1")
        if self.format == "npy":
            self._npy_fits()
        return self

    def _npy_fits(self) -> None:
        if self.container is not None:
            raise ValueError(f"container must be left out where format is npy, got {show(self.container)}")
        if self.sign:
            raise ValueError("sign must be left out where format is npy, got true")
        if self.realness and self.row_count > 1:
            raise ValueError("realness must be left out where format is npy and n is more than 1, got true")

    @property
    def needs_discriminator(self) -> bool:
        return self.realness or self.sampler != "plain" or self.proposals is not None

    @property
    def row_count(self) -> int:
        if self.latents is not None:
            return len(self.latents)
        return len(self.seeds) if self.seeds is not None else (self.n or 1)

    @property
    def all_seeds(self) -> list[int]:
        """Every seed; only where no latents are given."""
        if self.seeds is not None:
            return self.seeds
        assert self.seed is not None
        n = self.n or 1
        return [self.seed] if n == 1 else list(range(self.seed, self.seed + n))


_SAMPLE_FIELDS: Final = frozenset(SampleRequest.model_fields)


class PlainRequest(TypedDict, total=False):
    """A `SampleRequest` for one plain image, as nearly every one is; read in a third of the time.

    A field that can say nothing but its default is there for callers that send every field.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    model: str | None
    seed: Required[Seed]
    n: Annotated[int, Field(ge=1, le=1)] | None
    seeds: None
    latents: None
    class_idx: int | None
    truncation_psi: TruncationPsi | None
    sampler: Literal["plain"]
    proposals: None
    realness: bool
    format: Literal["png", "jpg", "webp"]
    container: None
    sign: bool
    priority: Priority
    timeout_ms: Annotated[int, Field(ge=1)] | None


_plain_request: Final = TypeAdapter(PlainRequest).validator


class ReloadRequest(_Request):
    """Body of `POST /v1/models/{name}/reload`; it may be left out."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"version": 2}]})

    version: Annotated[int, Field(ge=1, le=MAX_VERSION)] | None = Field(
        None, description="serve this one and stay with it; default: what the server follows by its settings"
    )


class _Query(_Request):
    """Query parameters arrive as text, so they are read leniently."""

    model_config = ConfigDict(strict=False)


def _plain_digits(text: str) -> str:
    """An integer has one spelling in an address. Raises ValueError."""
    if _DIGITS.fullmatch(text) is None:
        raise ValueError(f"proposals must be plain digits, got {show(text)}")
    return text


class ImageQuery(_Query):
    """Query of an image's address."""

    class_idx: int | None = None
    truncation_psi: TruncationPsi | None = None
    sampler: Sampler = "plain"
    proposals: Annotated[int, BeforeValidator(_plain_digits), Field(ge=1)] | None = None
    realness: bool = False

    @property
    def needs_discriminator(self) -> bool:
        return self.realness or self.sampler != "plain" or self.proposals is not None


class WalkQuery(_Query):
    """Query of `GET /v1/models/{name}/walk`."""

    model_config = ConfigDict(validate_by_alias=True)

    start: Seed = Field(alias="from", description="seed of the first frame", examples=[1])
    end: Seed = Field(alias="to", description="seed of the last frame", examples=[11])
    frames: int = Field(32, ge=2, le=MAX_WALK_FRAMES)
    frame_ms: int = Field(60, ge=10, le=10_000, description="milliseconds a frame")
    class_idx: int | None = Field(
        None, description="one class for all frames; default: that of the nearer end"
    )
    truncation_psi: TruncationPsi | None = None


_QueryT = TypeVar("_QueryT", bound=_Query)
_ModelT = TypeVar("_ModelT", bound=BaseModel)


class ErrorBody(BaseModel):
    """Body of every answer that is an error."""

    error: str = Field(description="one sentence that names field, rule and value")
    code: Literal[
        "bad_request", "unauthorized", "forbidden", "not_found", "method_not_allowed", "not_acceptable",
        "digest_not_served", "version_refused", "too_large", "unsupported_media_type", "invalid",
        "overloaded", "internal", "worker_crashed", "unavailable", "deadline",
    ]  # fmt: skip
    request_id: str


def parse_query(model: type[_QueryT], values: QueryParams) -> _QueryT:
    """Read query parameters as `model`. Raises InvalidField naming field, rule and value."""
    for name in values:
        if len(given := values.getlist(name)) > 1:
            raise InvalidField(
                f"{show(name)[1:-1]} must be given once, got {' and '.join(map(show, given[:2]))}"
            )
    return checked(model, dict(values))


def checked(model: type[_ModelT], values: object) -> _ModelT:
    """`values` as a `model`. Raises InvalidField naming field, rule and value of the first broken rules."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InvalidField(_sentences(error)) from None


def check_large_body(body: bytes, max_rows: int, z_dim: int) -> None:
    """Raise TooLarge for JSON of more lists or values than `max_rows` rows of `z_dim` latents can have.

    Parsing holds the interpreter, in a thread too: 15 MB of nested lists take it for seconds, and the
    largest request of use for a tenth. Counting takes milliseconds.
    """
    lists, values = body.count(b"[") + body.count(b"{"), body.count(b",")
    if lists > max(_MANY_LISTS, max_rows + 8) or values > max(_MANY_VALUES, max_rows * (z_dim + 2) + 32):
        raise TooLarge(f"max_rows is {max_rows} rows a request, got a body of {lists} lists, {values} values")


def parse_sample_request(body: bytes, max_rows: int) -> SampleRequest:
    """Read a JSON body.

    Raises MalformedBody where it is no JSON, InvalidField where it breaks a rule, TooLarge for lists
    longer than `max_rows`. What would take long to refuse (long lists, many unknown fields) is
    refused before it is looked into: this runs in the event loop.
    """
    values = _json_object(body)
    if not values.keys() <= _SAMPLE_FIELDS:
        unknown = [name for name in values if name not in _SAMPLE_FIELDS]
        told = [
            f"{show(name)[1:-1]} is not a field of this request, got {show(values[name])}"
            for name in unknown[:3]
        ]
        raise InvalidField("; ".join(told))
    for name in ("seeds", "latents", "class_idx", "truncation_psi"):
        if isinstance(values.get(name), list) and len(values[name]) > max_rows:
            raise TooLarge(f"max_rows is {max_rows} rows a request, got {len(values[name])} in {name}")
    return checked(SampleRequest, values)


def parse_plain_request(body: bytes) -> PlainRequest | None:
    """Read a JSON body; None for every other request, and for what is none: `parse_sample_request` tells."""
    try:
        wanted: PlainRequest = _plain_request.validate_json(body)
    except ValidationError:
        return None
    return None if wanted.get("realness") or wanted.get("sign") else wanted


def parse_reload_request(body: bytes) -> ReloadRequest:
    """Read a JSON body, or none. Raises MalformedBody, InvalidField."""
    return checked(ReloadRequest, _json_object(body) if body.strip() else {})


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        values = from_json(body)
    except ValueError as error:
        raise MalformedBody(f"the body must be JSON: {error}") from None
    if not isinstance(values, dict):
        raise InvalidField(f"the body must be a JSON object, got {show(values)}")
    return values


def _sentences(error: ValidationError) -> str:
    """The first few broken rules, each as field, rule and value."""
    errors = [one for one in error.errors(include_url=False) if not _of_other_branch(one)]
    sentences = dict.fromkeys(_sentence(one) for one in errors)
    return "; ".join(list(sentences)[:_MAX_SENTENCES])


def _of_other_branch(error: Any) -> bool:
    """It tells of the branch of a union that is not meant: of a list for a number, or the other way."""
    _, *branches = error["loc"] or (None,)
    branch = branches[-1] if branches else None
    if branch in _NUMBER_BRANCHES:
        return isinstance(error["input"], list)
    return str(branch).startswith("list[") and not isinstance(error["input"], list)


def _sentence(error: Any) -> str:
    # A union's branches ("class_idx.int", "class_idx.list[int]") are no part of the field's name.
    parts = [
        part
        for depth, part in enumerate(error["loc"])
        if isinstance(part, int) or (part.isidentifier() and not (depth and part in _NUMBER_BRANCHES))
    ]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    if error["type"] == "extra_forbidden":
        return f"{name or show(error['loc'][-1])} is not a field of this request, got {show(error['input'])}"
    if error["type"] == "missing":
        return f"{name} must be given"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    rule = str(error["msg"]).replace("Input should", "must").replace("List should", "must")
    rule = rule.partition(" after validation, not ")[0]  # how many there are is seen in the value
    return f"{name or 'the body'} {rule}, got {show(error['input'])}"
