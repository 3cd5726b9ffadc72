"""The Open Inference Protocol (V2) as Triton, KServe and their clients speak it: its words and its bytes.

Describes a generator as such clients ask for it, reads inference requests (JSON, or JSON followed
by binary tensors) into rows, and writes their answers. No HTTP, no server: the routes are
`api_v2`'s. A generator has two names: `NAME` takes `latents`, `NAME_seed` takes `seed`.

https://github.com/kserve/open-inference-protocol, and the binary tensor data extension of Triton.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from models.errors import show
from models.manifest import Manifest
from models.sampling import check_seed
from service.batching import Priority
from service.errors import InvalidField, MalformedBody, TooLarge
from service.rows import Rows
from service.schema import check_large_body, checked
from service.statistics import Compute, Statistics

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
"""The HTTP header that says how many bytes of JSON come before the binary tensors, both ways."""
SEED_SUFFIX: Final = "_seed"

_DTYPES: Final[dict[str, np.dtype[Any]]] = {"FP32": np.dtype("<f4"), "INT64": np.dtype("<i8")}
_BYTES_LENGTH = re.compile(r"\d{1,12}", re.ASCII)
_MAX_INT64: Final = 2**63 - 1
_MAX_TENSORS: Final = 8
_MAX_DIMENSIONS: Final = 8


# -- what a generator looks like ------------------------------------------------------------------


@dataclass(frozen=True)
class TensorSpec:
    """One input or output."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    """Sizes after the batch axis."""
    optional: bool = False

    def metadata(self) -> dict[str, Any]:
        """As model metadata has it: -1 is any size."""
        return {"name": self.name, "datatype": self.datatype, "shape": [-1, *self.dims]}

    def config(self) -> dict[str, Any]:
        """As Triton's model configuration has it: without the batch axis."""
        facts: dict[str, Any] = {
            "name": self.name,
            "data_type": f"TYPE_{self.datatype}",
            "dims": list(self.dims),
        }
        return {**facts, "optional": True} if self.optional else facts


@dataclass(frozen=True)
class Variant:
    """One generator under one of its two names."""

    manifest: Manifest
    by_seed: bool

    @property
    def name(self) -> str:
        return self.manifest.name + (SEED_SUFFIX if self.by_seed else "")

    @property
    def version(self) -> str:
        """An integer as text, as the protocol wants it."""
        return str(self.manifest.version)

    @property
    def inputs(self) -> list[TensorSpec]:
        """The one that makes the rows first; the optional ones have the defaults of `POST /v1/samples`."""
        first = (
            TensorSpec("seed", "INT64", (1,))
            if self.by_seed
            else TensorSpec("latents", "FP32", (self.manifest.z_dim,))
        )
        inputs = [first]
        if self.manifest.num_classes:
            inputs.append(TensorSpec("class_idx", "INT64", (1,), optional=True))
        if self.manifest.has_truncation:
            inputs.append(TensorSpec("truncation_psi", "FP32", (1,), optional=True))
        return inputs

    @property
    def output(self) -> TensorSpec:
        return TensorSpec("images", "UINT8", self.manifest.img_shape)

    def metadata(self) -> dict[str, Any]:
        """The answer to `GET /v2/models/{name}`."""
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": "onnxruntime_onnx",
            "inputs": [spec.metadata() for spec in self.inputs],
            "outputs": [self.output.metadata()],
        }

    def config(self, max_rows: int) -> dict[str, Any]:
        """The answer to `GET /v2/models/{name}/config`, which perf_analyzer does not start without."""
        return {
            "name": self.name,
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "max_batch_size": max_rows,
            "input": [spec.config() for spec in self.inputs],
            "output": [self.output.config()],
            "dynamic_batching": {"priority_levels": 2, "default_priority_level": 1},
        }

    def statistics(self, statistics: Statistics) -> dict[str, Any]:
        """One entry of the answer to `GET /v2/models/{name}/stats`: the generator's, whichever name asks."""
        return {
            "name": self.name,
            "version": self.version,
            "last_inference": statistics.last_request_ms,
            "inference_count": statistics.rows,
            "execution_count": statistics.executions,
            "inference_stats": {
                "success": _duration(statistics.success.count, statistics.success.seconds),
                "fail": _duration(statistics.fail.count, statistics.fail.seconds),
                "queue": _duration(statistics.success.count, statistics.queue_s),
                **_compute(statistics.requests),
                "cache_hit": _duration(0, 0.0),
                "cache_miss": _duration(0, 0.0),
            },
            "batch_stats": [
                {"batch_size": rows, **_compute(compute)}
                for rows, compute in sorted(statistics.microbatches.items())
            ],
        }


def _compute(compute: Compute) -> dict[str, Any]:
    return {
        "compute_input": _duration(compute.count, compute.input_s),
        "compute_infer": _duration(compute.count, compute.infer_s),
        "compute_output": _duration(compute.count, compute.output_s),
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}


# -- requests -------------------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


Size = Annotated[int, Field(ge=0)]


class InputTensor(_Part):
    """One tensor of a request: its data here as a list, or after the JSON in `binary_data_size` bytes."""

    name: str
    shape: list[Size] = Field(fail_fast=True, max_length=_MAX_DIMENSIONS, description="rows first")
    datatype: str = Field(description="FP32 or INT64, as the model's metadata says")
    parameters: dict[str, Any] | None = Field(None, description="binary_data_size")
    data: list[Any] | None = Field(None, description="the elements in row-major order, flat or nested")


class OutputTensor(_Part):
    """One tensor that is wanted."""

    name: str
    parameters: dict[str, Any] | None = Field(None, description="binary_data: true for bytes after the JSON")


class InferBody(_Part):
    """The JSON of `POST /v2/models/{model}/infer`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": [{"name": "seed", "shape": [2, 1], "datatype": "INT64", "data": [42, 43]}]},
            ]
        }
    )

    id: str | None = Field(None, description="comes back in the answer")
    model_name: str | None = Field(None, description="not looked at: the address names the model")
    model_version: str | None = Field(None, description="not looked at: the address names the version")
    parameters: dict[str, Any] | None = Field(
        None,
        description="binary_data_output (bool), timeout (microseconds), priority (1: interactive, 2: batch); "
        "sampler, proposals and realness are refused: /v1/samples has them; others change nothing",
    )
    inputs: list[InputTensor] = Field(fail_fast=True, min_length=1, max_length=_MAX_TENSORS)
    outputs: list[OutputTensor] | None = Field(
        None, fail_fast=True, max_length=_MAX_TENSORS, description="images, or left out"
    )


@dataclass(frozen=True)
class InferRequest:
    """What one inference request asks for."""

    id: str | None
    rows: Rows
    binary: bool
    """The pixels are wanted as bytes after the JSON."""
    timeout_ms: int | None
    priority: Priority


def parse_infer_request(
    body: bytes, header_length: str | None, variant: Variant, max_rows: int
) -> InferRequest:
    """Read a request's body; `header_length` is the text of its HEADER_LENGTH, if it has one.

    Raises MalformedBody where it is not JSON of that length, InvalidField and InvalidValue where a
    field breaks a rule, TooLarge for more than `max_rows` rows.
    """
    head, blob = _split(body, header_length)
    check_large_body(head, max_rows, variant.manifest.z_dim)
    try:
        values = from_json(head)
    except ValueError as error:
        raise MalformedBody(f"the body must be JSON: {error}") from None
    if not isinstance(values, dict):
        raise InvalidField(f"the body must be a JSON object, got {show(values)}")
    _refuse_unknown(values)
    wanted = checked(InferBody, values)
    parameters = wanted.parameters or {}
    _refuse_samplers(parameters)
    return InferRequest(
        id=wanted.id,
        rows=_rows(variant, _tensors(wanted.inputs, blob, variant, max_rows)),
        binary=_binary_wanted(wanted.outputs or [], parameters, variant),
        timeout_ms=_timeout_ms(parameters),
        priority="batch" if _count(parameters, "priority", "a level") > 1 else "interactive",
    )


def _split(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """The JSON and the bytes after it."""
    if header_length is None:
        return body, memoryview(b"")
    if _BYTES_LENGTH.fullmatch(header_length) is None or not 1 <= int(header_length) <= len(body):
        raise MalformedBody(
            f"{HEADER_LENGTH.lower()} must be the bytes of JSON in the body, "
            f"between 1 and its {len(body)}, got {show(header_length)}"
        )
    return body[: int(header_length)], memoryview(body)[int(header_length) :]


def _refuse_unknown(values: dict[str, Any]) -> None:
    """Raise InvalidField for fields that no request has: here, where a million take no million sentences."""
    places: list[tuple[str, Any, type[BaseModel]]] = [("", values, InferBody)]
    kinds: dict[str, type[BaseModel]] = {"inputs": InputTensor, "outputs": OutputTensor}
    for name, model in kinds.items():
        if isinstance(tensors := values.get(name), list):
            places += [(f"{name}[{k}].", one, model) for k, one in enumerate(tensors[:_MAX_TENSORS])]
    for place, found, kind in places:
        if isinstance(found, dict) and (unknown := [key for key in found if key not in kind.model_fields]):
            told = [f"{place}{show(key)[1:-1]} is not a field of this request" for key in unknown[:3]]
            raise InvalidField("; ".join(told))


def _refuse_samplers(parameters: dict[str, Any]) -> None:
    """Raise InvalidField where they ask for what would otherwise be left undone in silence."""
    for name in ("sampler", "proposals", "realness"):
        if name in parameters:
            raise InvalidField(
                f"parameters.{name} must be left out: samplers are asked for at POST /v1/samples, "
                f"got {show(parameters[name])}"
            )


def _rows(variant: Variant, tensors: dict[str, Any]) -> Rows:
    """The rows that the tensors make; what is left out has its default."""
    class_idx, truncation_psi = (
        values[0] if values is not None and len(values) == 1 else values
        for values in (tensors.get("class_idx"), tensors.get("truncation_psi"))
    )
    if variant.by_seed:
        seeds = [check_seed(seed, "seed") for seed in tensors["seed"]]
        return Rows.of_seeds(variant.manifest, seeds, class_idx, truncation_psi)
    return Rows.of_latents(variant.manifest, tensors["latents"], class_idx, truncation_psi)


def _binary_wanted(outputs: Sequence[OutputTensor], parameters: dict[str, Any], variant: Variant) -> bool:
    """Whether the images go out as bytes: what the output says, else what the request says, else no."""
    binary = _flag(parameters, "binary_data_output", "parameters.binary_data_output") or False
    for place, output in enumerate(outputs):
        if output.name != variant.output.name:
            raise InvalidField(f"outputs[{place}].name must be images, got {show(output.name)}")
        if place:
            raise InvalidField("outputs must name images once")
        own = output.parameters or {}
        _refuse_unsupported(own, "images", "classification", "shared_memory_region")
        flag = _flag(own, "binary_data", "images.binary_data")
        binary = binary if flag is None else flag
    return binary


def _flag(parameters: dict[str, Any], key: str, field: str) -> bool | None:
    value = parameters.get(key)
    if value is not None and not isinstance(value, bool):
        raise InvalidField(f"{field} must be true or false, got {show(value)}")
    return value


def _timeout_ms(parameters: dict[str, Any]) -> int | None:
    """The deadline in milliseconds; the protocol counts microseconds, and 0 is the server's default."""
    return -(-_count(parameters, "timeout", "microseconds") // 1000) or None


def _count(parameters: dict[str, Any], name: str, what: str) -> int:
    """A parameter that is an integer and 0 or more; 0, as left out, is the default."""
    value = parameters.get(name)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= _MAX_INT64:
        raise InvalidField(
            f"parameters.{name} must be {what}, an integer between 0 and {_MAX_INT64}, got {show(value)}"
        )
    return value


def _refuse_unsupported(parameters: dict[str, Any], tensor: str, *names: str) -> None:
    for name in names:
        if name in parameters:
            raise InvalidField(f"{tensor}.{name} must be left out: this server does not have that extension")


# -- tensors --------------------------------------------------------------------------------------


def _tensors(
    inputs: Sequence[InputTensor], blob: memoryview, variant: Variant, max_rows: int
) -> dict[str, Any]:
    """The inputs by name: `latents` as float32 [N, z_dim], what has one element a row as a list."""
    specs = {spec.name: spec for spec in variant.inputs}
    found: dict[str, Any] = {}
    offset = 0
    for place, tensor in enumerate(inputs):
        spec = specs.get(tensor.name)
        if spec is None:
            raise InvalidField(
                f"inputs[{place}].name must be one of {', '.join(specs)}, got {show(tensor.name)}"
            )
        if tensor.name in found:
            raise InvalidField(f"inputs must name {tensor.name} once")
        parameters = tensor.parameters or {}
        _refuse_unsupported(parameters, tensor.name, "shared_memory_region")
        _check_tensor(tensor, spec, max_rows)
        size = parameters.get("binary_data_size")
        if size is None:
            values = _from_list(tensor)
        else:
            values = _from_bytes(tensor, size, blob[offset:])
            offset += size
        # What has one element a row may have the shape [n] too: only latents keep their shape.
        found[tensor.name] = values.reshape(tensor.shape) if tensor.name == "latents" else values.tolist()
    if offset != len(blob):
        raise InvalidField(
            f"binary_data_size of all inputs must be the {len(blob)} bytes after the JSON, got {offset}"
        )
    if (first := variant.inputs[0].name) not in found:
        raise InvalidField(f"inputs must have {first}, got {', '.join(found)}")
    return found


def _check_tensor(tensor: InputTensor, spec: TensorSpec, max_rows: int) -> None:
    if tensor.datatype != spec.datatype:
        raise InvalidField(f"{spec.name}.datatype must be {spec.datatype}, got {show(tensor.datatype)}")
    shape, dims = tensor.shape, list(spec.dims)
    if shape[1:] != dims and not (dims == [1] and len(shape) == 1):
        rule = f"[n, {dims[0]}]" + (" or [n]" if dims == [1] else "")
        raise InvalidField(f"{spec.name}.shape must be {rule}, got {show(shape)}")
    if shape[0] == 0:
        raise InvalidField(f"{spec.name}.shape must have at least 1 row, got {show(shape)}")
    if shape[0] > max_rows:
        raise TooLarge(f"max_rows is {max_rows} rows a request, got {show(shape[0])} in {spec.name}")


def _from_bytes(tensor: InputTensor, size: Any, rest: memoryview) -> npt.NDArray[Any]:
    """A tensor's elements [n] from `size` bytes at the beginning of `rest`: little-endian, row-major."""
    dtype = _DTYPES[tensor.datatype]
    needed = math.prod(tensor.shape) * dtype.itemsize
    if tensor.data is not None:
        raise InvalidField(f"{tensor.name}.data must be left out where binary_data_size is given")
    if type(size) is not int or size != needed:
        raise InvalidField(
            f"{tensor.name}.binary_data_size must be {needed} for {tensor.datatype} of the shape "
            f"{show(tensor.shape)}, got {show(size)}"
        )
    if needed > len(rest):
        raise InvalidField(
            f"{tensor.name}.binary_data_size must be at most the {len(rest)} bytes that are left after the "
            f"JSON, got {needed}"
        )
    return np.frombuffer(rest[:needed], dtype=dtype)


def _from_list(tensor: InputTensor) -> npt.NDArray[Any]:
    """A tensor's elements [n] from its `data`, flat or nested as its shape.

    Integers stay Python's, so that one beyond int64 is refused by its own rule.
    """
    name, shape = tensor.name, tensor.shape
    if tensor.data is None:
        raise InvalidField(f"{name} must have data, or binary_data_size and bytes after the JSON")
    flat: list[Any] = tensor.data
    if flat and isinstance(flat[0], list):
        if len(flat) != shape[0]:
            raise InvalidField(f"{name}.data must hold {shape[0]} rows for its shape, got {len(flat)}")
        for size in shape[1:]:
            if not all(isinstance(row, list) and len(row) == size for row in flat):
                raise InvalidField(f"{name}.data must be flat, or nested as its shape {show(shape)}")
            flat = list(itertools.chain.from_iterable(flat))
    if len(flat) != math.prod(shape):
        raise InvalidField(
            f"{name}.data must hold {math.prod(shape)} elements for its shape {show(shape)}, got {len(flat)}"
        )
    allowed, what = ({int, float}, "numbers") if tensor.datatype == "FP32" else ({int}, "integers")
    if set(map(type, flat)) - allowed:
        wrong = next(value for value in flat if type(value) not in allowed)
        raise InvalidField(f"{name}.data must be {what}, got {show(wrong)}")
    if tensor.datatype != "FP32":
        return np.array(flat, dtype=object)
    try:
        with np.errstate(over="ignore"):  # 1e39 becomes infinite and is refused as such
            return np.array(flat, dtype=np.float32)
    except OverflowError:
        raise InvalidField(f"{name}.data must be finite in float32, got {show(max(flat, key=abs))}") from None


# -- answers --------------------------------------------------------------------------------------

# Each grey level as the bytes of its JSON number and a comma, padded with spaces to four.
_LEVELS: Final = np.array([list(f"{level},".encode().ljust(4)) for level in range(256)], dtype=np.uint8)
_PIXELS_AT_ONCE: Final = 1 << 18


def write_answer(
    variant: Variant, request_id: str | None, images: npt.NDArray[np.uint8], binary: bool
) -> tuple[list[bytes | memoryview], int | None]:
    """The answer that holds `images` [N, H, W, C]: its body in parts, and its HEADER_LENGTH if it has one.

    Binary pixels are a view of `images`, not a copy.
    """
    output: dict[str, Any] = {"name": "images", "datatype": "UINT8", "shape": list(images.shape)}
    if binary:
        output["parameters"] = {"binary_data_size": images.nbytes}
    answer: dict[str, Any] = {} if request_id is None else {"id": request_id}
    answer.update(model_name=variant.name, model_version=variant.version, outputs=[output])
    head = json.dumps(answer, separators=(",", ":")).encode()
    if binary:
        return [head, images.reshape(-1).data], len(head)
    end = b"}]}"
    assert head.endswith(end)
    return [head[: -len(end)], b',"data":[', *_level_texts(images.reshape(-1)), b"]", end], None


def _level_texts(levels: npt.NDArray[np.uint8]) -> list[bytes]:
    """The JSON of grey levels [n], comma-separated, in parts; other threads run between two."""
    texts = []
    for start in range(0, len(levels), _PIXELS_AT_ONCE):
        padded = _LEVELS[levels[start : start + _PIXELS_AT_ONCE]]  # [n, 4]
        texts.append(padded[padded != ord(" ")].tobytes())
    if texts:
        texts[-1] = texts[-1][:-1]  # no comma after the last
    return texts
