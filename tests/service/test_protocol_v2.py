"""The Open Inference Protocol's bytes: read as its own client writes them, written as it reads them."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from models.errors import ContractError, InvalidValue
from models.manifest import Manifest
from service.errors import InvalidField, MalformedBody, ServiceError, TooLarge, UnknownMediaType
from service.http_request import decompressed
from service.protocol_v2 import InferRequest, Variant, parse_infer_request, write_answer
from service.statistics import Statistics

Z_DIM, CLASSES, MAX_ROWS = 4, 10, 20
MANIFEST = Manifest(
    name="toy",
    version=3,
    z_dim=Z_DIM,
    img_height=2,
    img_width=3,
    img_channels=3,
    num_classes=CLASSES,
    truncation="z",
)
BY_LATENTS, BY_SEED = Variant(MANIFEST, by_seed=False), Variant(MANIFEST, by_seed=True)
PLAIN = Variant(Manifest(name="plain", version=1, z_dim=2, img_height=4, img_width=4, img_channels=1), True)

FLOATS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, MAX_ROWS), st.just(Z_DIM)),
    elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
)


def packed(tensors: dict[str, np.ndarray], binary: bool, **options: Any) -> tuple[bytes, str | None]:
    """A request's body and header length as tritonclient packs them."""
    inputs = []
    for name, values in tensors.items():
        datatype = "FP32" if values.dtype == np.float32 else "INT64"
        tensor = InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values, binary_data=binary)
        inputs.append(tensor)
    body, length = InferenceServerClient.generate_request_body(inputs, **options)
    return body, None if length is None else str(length)


def parse(
    tensors: dict[str, np.ndarray], variant: Variant, binary: bool = True, **options: Any
) -> InferRequest:
    body, length = packed(tensors, binary, **options)
    return parse_infer_request(body, length, variant, MAX_ROWS)


def column(*values: float, dtype: Any = np.int64) -> np.ndarray:
    return np.array(values, dtype=dtype)[:, None]


@given(latents=FLOATS, binary=st.booleans())
def test_latents_arrive_to_the_last_bit(latents: np.ndarray, binary: bool) -> None:
    rows = parse({"latents": latents}, BY_LATENTS, binary).rows

    assert rows.latents is not None
    assert np.array_equal(rows.latents, latents)


@given(
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=MAX_ROWS),
    flat=st.booleans(),
    binary=st.booleans(),
)
def test_seeds_arrive_in_either_shape(seeds: list[int], flat: bool, binary: bool) -> None:
    values = np.array(seeds, dtype=np.int64)
    rows = parse({"seed": values if flat else values[:, None]}, BY_SEED, binary).rows

    assert rows.seeds.tolist() == seeds
    assert rows.class_idx.tolist() == [seed % CLASSES for seed in seeds]
    assert set(rows.truncation_psi.tolist()) == {1.0}


@given(
    images=hnp.arrays(np.uint8, st.tuples(st.integers(1, 5), st.just(2), st.just(3), st.just(3))),
    binary=st.booleans(),
    request_id=st.none() | st.text(max_size=20),
)
def test_images_leave_to_the_last_bit(images: np.ndarray, binary: bool, request_id: str | None) -> None:
    parts, length = write_answer(BY_SEED, request_id, images, binary)

    result = InferenceServerClient.parse_response_body(b"".join(parts), header_length=length)
    assert np.array_equal(result.as_numpy("images"), images)
    assert result.as_numpy("images").dtype == np.uint8
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"]) == ("toy_seed", "3")
    assert answer.get("id") == request_id


def test_binary_pixels_are_the_array_itself_and_json_is_what_json_writes() -> None:
    images = np.random.RandomState(0).randint(0, 256, (3, 400, 300, 3)).astype(np.uint8)

    parts, _ = write_answer(BY_LATENTS, None, images, binary=True)
    text, length = write_answer(BY_LATENTS, None, images, binary=False)

    assert np.shares_memory(np.frombuffer(parts[1], np.uint8), images)
    assert length is None
    assert json.loads(b"".join(text))["outputs"][0]["data"] == images.reshape(-1).tolist()


def test_classes_and_psi_are_one_for_all_rows_or_one_a_row() -> None:
    seeds = column(1, 2, 3)
    one = {"class_idx": column(7), "truncation_psi": column(0.5, dtype=np.float32)}
    each = {"class_idx": column(7, 8, 9), "truncation_psi": column(0.5, 1, 0.75, dtype=np.float32)}

    for_all, a_row = (parse({"seed": seeds, **tensors}, BY_SEED).rows for tensors in (one, each))

    assert (for_all.class_idx.tolist(), for_all.truncation_psi.tolist()) == ([7, 7, 7], [0.5, 0.5, 0.5])
    assert (a_row.class_idx.tolist(), a_row.truncation_psi.tolist()) == ([7, 8, 9], [0.5, 1, 0.75])


def test_latents_without_a_class_take_class_0() -> None:
    assert parse({"latents": np.zeros((2, Z_DIM), np.float32)}, BY_LATENTS).rows.class_idx.tolist() == [0, 0]


def test_what_outputs_and_parameters_say_decides_how_pixels_leave() -> None:
    seed = {"seed": column(1)}
    both = [InferRequestedOutput("images", binary_data=flag) for flag in (True, False)]

    assert parse(seed, BY_SEED).binary  # tritonclient asks for bytes where no output is named
    assert [parse(seed, BY_SEED, outputs=[output]).binary for output in both] == [True, False]
    body = {"inputs": [{"name": "seed", "shape": [1], "datatype": "INT64", "data": [1]}]}
    assert not parse_infer_request(json.dumps(body).encode(), None, BY_SEED, MAX_ROWS).binary


@pytest.mark.parametrize(
    ("timeout_us", "timeout_ms"),
    [(None, None), (0, None), (1, 1), (1000, 1), (1001, 2), (30_000_000, 30_000)],
)
def test_a_timeout_in_microseconds_becomes_a_deadline(timeout_us: int | None, timeout_ms: int | None) -> None:
    assert parse({"seed": column(1)}, BY_SEED, timeout=timeout_us).timeout_ms == timeout_ms


@pytest.mark.parametrize(
    ("level", "priority"), [(0, "interactive"), (1, "interactive"), (2, "batch"), (9, "batch")]
)
def test_a_priority_of_1_comes_before_all_others(level: int, priority: str) -> None:
    assert parse({"seed": column(1)}, BY_SEED, priority=level).priority == priority


def test_ids_come_through_and_parameters_that_mean_nothing_here_change_nothing() -> None:
    asked = parse({"seed": column(1)}, BY_SEED, request_id="a-1", sequence_id=7, parameters={"mine": "x"})

    assert asked.id == "a-1"
    assert asked.rows.seeds.tolist() == [1]


def body_of(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "latents", "shape": [1, Z_DIM], "datatype": "FP32", "data": [0.0] * Z_DIM, **changes}
    return {"inputs": [{name: value for name, value in tensor.items() if value is not None}]}


SIZED: dict[str, Any] = {"data": None, "parameters": {"binary_data_size": 4 * Z_DIM}}
SEED_1 = {"name": "seed", "shape": [1], "datatype": "INT64", "data": [1]}
REFUSED: list[tuple[Any, type[Exception], str]] = [
    (b"{", MalformedBody, "the body must be JSON"),
    (b"\xff", MalformedBody, "the body must be JSON"),
    ([], InvalidField, "the body must be a JSON object, got []"),
    ({}, InvalidField, "inputs must be given"),
    ({"inputs": []}, InvalidField, "inputs must have at least 1 item"),
    ({"inputs": [{}] * 9}, InvalidField, "inputs"),
    ({"inputs": 3}, InvalidField, "inputs must be a valid list, got 3"),
    ({**body_of(), "imputs": 1}, InvalidField, "imputs is not a field of this request"),
    (body_of(dtype="FP32"), InvalidField, "inputs[0].dtype is not a field of this request"),
    ({**body_of(), "id": 7}, InvalidField, "id must be a valid string, got 7"),
    (
        {**body_of(), "outputs": [{"name": "logits"}]},
        InvalidField,
        "outputs[0].name must be images, got 'logits'",
    ),
    ({**body_of(), "outputs": [{"name": "images"}] * 2}, InvalidField, "outputs must name images once"),
    (
        {**body_of(), "outputs": [{"name": "images", "parameters": {"classification": 2}}]},
        InvalidField,
        "images.classification must be left out",
    ),
    (
        {**body_of(), "outputs": [{"name": "images", "parameters": {"binary_data": 1}}]},
        InvalidField,
        "images.binary_data must be true or false, got 1",
    ),
    (
        {**body_of(), "parameters": {"binary_data_output": "yes"}},
        InvalidField,
        "binary_data_output must be true or",
    ),
    ({**body_of(), "parameters": {"timeout": -1}}, InvalidField, "parameters.timeout must be microseconds"),
    (
        {**body_of(), "parameters": {"sampler": "mh"}},
        InvalidField,
        "parameters.sampler must be left out: samplers are asked for at POST /v1/samples, got 'mh'",
    ),
    ({**body_of(), "parameters": {"timeout": 1.5}}, InvalidField, "got 1.5"),
    ({**body_of(), "parameters": {"priority": -1}}, InvalidField, "parameters.priority must be a level"),
    (
        body_of(name="z"),
        InvalidField,
        "inputs[0].name must be one of latents, class_idx, truncation_psi, got 'z'",
    ),
    ({"inputs": body_of()["inputs"] * 2}, InvalidField, "inputs must name latents once"),
    (
        {"inputs": [{"name": "class_idx", "shape": [1], "datatype": "INT64", "data": [1]}]},
        InvalidField,
        "inputs must have latents, got class_idx",
    ),
    (body_of(datatype="FP64"), InvalidField, "latents.datatype must be FP32, got 'FP64'"),
    (
        body_of(datatype="BYTES", data=["a"] * Z_DIM),
        InvalidField,
        "latents.datatype must be FP32, got 'BYTES'",
    ),
    (body_of(shape=[Z_DIM]), InvalidField, f"latents.shape must be [n, {Z_DIM}], got [{Z_DIM}]"),
    (body_of(shape=[1, 5]), InvalidField, f"latents.shape must be [n, {Z_DIM}], got [1, 5]"),
    (
        body_of(shape=[-1, Z_DIM]),
        InvalidField,
        "inputs[0].shape[0] must be greater than or equal to 0, got -1",
    ),
    (body_of(shape=[1.0, Z_DIM]), InvalidField, "inputs[0].shape[0] must be a valid integer, got 1.0"),
    (body_of(shape=[0, Z_DIM], data=[]), InvalidField, "latents.shape must have at least 1 row"),
    (body_of(shape=[21, Z_DIM]), TooLarge, "max_rows is 20 rows a request, got 21 in latents"),
    (body_of(shape=[10**4000, Z_DIM]), TooLarge, "max_rows is 20 rows a request"),
    (body_of(data=[0.0] * 3), InvalidField, "latents.data must hold 4 elements for its shape [1, 4], got 3"),
    (body_of(data=[[0.0] * 3]), InvalidField, "latents.data must be flat, or nested as its shape [1, 4]"),
    (body_of(data=[[0.0] * 4] * 2), InvalidField, "latents.data must hold 1 rows for its shape, got 2"),
    (body_of(data=[0.0, "1", 0.0, 0.0]), InvalidField, "latents.data must be numbers, got '1'"),
    (body_of(data=[0.0, True, 0.0, 0.0]), InvalidField, "latents.data must be numbers, got true"),
    (body_of(data=[0.0, None, 0.0, 0.0]), InvalidField, "latents.data must be numbers, got null"),
    (
        body_of(data=[float("nan"), 0, 0, 0]),
        InvalidValue,
        "latents must be finite in float32, got nan at [0][0]",
    ),
    (body_of(data=[1e39, 0, 0, 0]), InvalidValue, "latents must be finite in float32, got inf"),
    (body_of(data=[0, -(10**400), 0, 0]), InvalidField, "latents.data must be finite in float32, got -1000"),
    (body_of(data=None), InvalidField, "latents must have data, or binary_data_size"),
    (
        body_of(parameters={"binary_data_size": 16}),
        InvalidField,
        "latents.data must be left out where binary_data_size is given",
    ),
    (
        body_of(**SIZED),
        InvalidField,
        "binary_data_size must be at most the 0 bytes that are left after the JSON",
    ),
    (
        body_of(data=None, parameters={"binary_data_size": 17}),
        InvalidField,
        "latents.binary_data_size must be 16 for FP32 of the shape [1, 4], got 17",
    ),
    (body_of(data=None, parameters={"binary_data_size": 16.0}), InvalidField, "got 16.0"),
    (body_of(data=None, parameters={"binary_data_size": -16}), InvalidField, "got -16"),
    (
        body_of(parameters={"shared_memory_region": "r"}),
        InvalidField,
        "latents.shared_memory_region must be left out",
    ),
    (
        {
            "inputs": [
                *body_of()["inputs"],
                {"name": "class_idx", "shape": [2], "datatype": "INT64", "data": [1, 2]},
            ]
        },
        InvalidValue,
        "class_idx must be one integer or a list as long as the rows (1), got 2 values",
    ),
    (
        {
            "inputs": [
                *body_of()["inputs"],
                {"name": "class_idx", "shape": [1], "datatype": "INT64", "data": [10]},
            ]
        },
        InvalidValue,
        "class_idx must be an integer between 0 and 9, got 10",
    ),
    (
        {
            "inputs": [
                *body_of()["inputs"],
                {"name": "truncation_psi", "shape": [1], "datatype": "FP32", "data": [3]},
            ]
        },
        InvalidValue,
        "truncation_psi must be between 0 and 2, got 3.0",
    ),
]


@pytest.mark.parametrize(("body", "error", "sentence"), REFUSED, ids=[one[2] for one in REFUSED])
def test_a_mistake_is_a_sentence_that_names_field_rule_and_value(
    body: Any, error: type[Exception], sentence: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    with pytest.raises(error, match=re.escape(sentence)) as refusal:
        parse_infer_request(content, None, BY_LATENTS, MAX_ROWS)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70])
def test_seeds_are_never_wrapped(seed: int) -> None:
    body = {"inputs": [{**SEED_1, "data": [seed]}]}

    with pytest.raises(InvalidValue, match=f"seed must be between 0 and 4294967295, got {seed}"):
        parse_infer_request(json.dumps(body).encode(), None, BY_SEED, MAX_ROWS)


@pytest.mark.parametrize("length", ["-1", "0", "x", "", "1e2", "9999", "9" * 5000, "١"])
def test_a_header_length_that_cannot_be_is_refused(length: str) -> None:
    with pytest.raises(MalformedBody, match="inference-header-content-length must be the bytes of JSON"):
        parse_infer_request(json.dumps(body_of()).encode(), length, BY_LATENTS, MAX_ROWS)


def test_bytes_that_no_input_claims_are_refused() -> None:
    head = json.dumps({"inputs": [SEED_1]}).encode()

    with pytest.raises(InvalidField, match="must be the 3 bytes after the JSON, got 0"):
        parse_infer_request(head + b"abc", str(len(head)), BY_SEED, MAX_ROWS)


def test_an_input_that_the_model_does_not_have_is_refused_and_its_name_told() -> None:
    body = {"inputs": [SEED_1, {**SEED_1, "name": "class_idx"}]}

    with pytest.raises(InvalidField, match=r"inputs\[1\].name must be one of seed, got 'class_idx'"):
        parse_infer_request(json.dumps(body).encode(), None, PLAIN, MAX_ROWS)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200)
@given(
    place=st.sampled_from(["", "name", "shape", "datatype", "data", "parameters"]),
    value=JSON_VALUES,
    length=st.none() | st.integers(-5, 300).map(str),
    tail=st.binary(max_size=40),
    variant=st.sampled_from([BY_LATENTS, BY_SEED, PLAIN]),
)
def test_any_other_body_is_refused_as_the_callers_mistake(
    place: str, value: Any, length: str | None, tail: bytes, variant: Variant
) -> None:
    tensor = {**SEED_1, place: value} if place else value
    content = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode() + tail

    try:
        asked = parse_infer_request(content, length, variant, MAX_ROWS)
    except (ServiceError, ContractError):
        return
    assert 1 <= len(asked.rows) <= MAX_ROWS


@given(body=st.binary(max_size=1000))
def test_a_compressed_body_is_what_it_was(body: bytes) -> None:
    assert decompressed(gzip.compress(body), "gzip", 1000) == body
    assert decompressed(zlib.compress(body), " Deflate", 1000) == body
    assert decompressed(body, "", 1000) == body


@pytest.mark.parametrize(
    ("body", "encoding", "error", "sentence"),
    [
        (b"x", "br", UnknownMediaType, "content-encoding must be gzip, deflate or left out, got 'br'"),
        (b"x", "gzip, gzip", UnknownMediaType, "got 'gzip, gzip'"),
        (b"{}", "gzip", MalformedBody, "the body must be gzip by its content-encoding"),
        (gzip.compress(b"{}", mtime=0)[:-1], "gzip", MalformedBody, "whole and with nothing after it"),
        (gzip.compress(b"{}", mtime=0) + b"x", "gzip", MalformedBody, "whole and with nothing after it"),
        (b"", "deflate", MalformedBody, "whole"),
        (
            gzip.compress(bytes(10**7), mtime=0),
            "gzip",
            TooLarge,
            "max_body_bytes is 1000 bytes a body, got more",
        ),
        (zlib.compress(bytes(1001)), "deflate", TooLarge, "max_body_bytes is 1000 bytes a body, got more"),
    ],
)
def test_a_body_that_does_not_unpack_is_refused(
    body: bytes, encoding: str, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        decompressed(body, encoding, 1000)


def test_metadata_and_configuration_say_the_same_of_each_tensor() -> None:
    for variant in (BY_LATENTS, BY_SEED, PLAIN):
        metadata, config = variant.metadata(), variant.config(MAX_ROWS)

        assert (metadata["name"], config["max_batch_size"]) == (config["name"], MAX_ROWS)
        for of_metadata, of_config in (("inputs", "input"), ("outputs", "output")):
            for one, other in zip(metadata[of_metadata], config[of_config], strict=True):
                assert (one["name"], one["shape"]) == (other["name"], [-1, *other["dims"]])
                assert f"TYPE_{one['datatype']}" == other["data_type"]
    assert [one["name"] for one in BY_LATENTS.metadata()["inputs"]] == [
        "latents",
        "class_idx",
        "truncation_psi",
    ]
    assert [one["name"] for one in PLAIN.metadata()["inputs"]] == ["seed"]


def test_statistics_are_whole_nanoseconds_under_the_protocols_names() -> None:
    statistics = Statistics()
    statistics.asked()
    statistics.ran(4, 1e-6, 2e-3, 3e-6)
    statistics.ran(4, 1e-6, 2e-3, 3e-6)
    statistics.succeeded(0.01, 0.002, 2e-6, 4e-3, 6e-6)
    statistics.fail.add(0.5)

    told = BY_SEED.statistics(statistics)

    assert (told["name"], told["version"]) == ("toy_seed", "3")
    assert (told["inference_count"], told["execution_count"]) == (8, 2)
    assert told["last_inference"] > 1_700_000_000_000
    assert told["inference_stats"]["success"] == {"count": 1, "ns": 10_000_000}
    assert told["inference_stats"]["fail"] == {"count": 1, "ns": 500_000_000}
    assert told["inference_stats"]["compute_infer"] == {"count": 1, "ns": 4_000_000}
    (batch,) = told["batch_stats"]
    assert (batch["batch_size"], batch["compute_output"]) == (4, {"count": 2, "ns": 6000})
