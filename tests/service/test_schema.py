"""What a request that breaks a rule is told: one sentence a rule, with field, rule and value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import InvalidField
from service.schema import (
    PlainRequest,
    SampleRequest,
    parse_plain_request,
    parse_reload_request,
    parse_sample_request,
)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"seed": 1, "class_idx": 1.5}, "class_idx must be a valid integer, got 1.5"),
        ({"seeds": [1], "class_idx": [1.5]}, "class_idx[0] must be a valid integer, got 1.5"),
        ({"seed": 1, "truncation_psi": "a"}, "truncation_psi must be a valid number, got 'a'"),
        ({"seed": 1, "truncation_psi": 3}, "truncation_psi must be less than or equal to 2, got 3"),
        ({"seeds": [1], "truncation_psi": [3]}, "truncation_psi[0] must be less than or equal to 2, got 3"),
        ({"seeds": []}, "seeds must have at least 1 item, got []"),
    ],
)
def test_a_field_is_told_once_in_the_words_of_what_was_meant(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidField) as refusal:
        parse_sample_request(json.dumps(fields).encode(), max_rows=10)

    assert str(refusal.value) == sentence


def test_a_field_that_is_named_as_a_type_is_told() -> None:
    with pytest.raises(InvalidField, match=r"^int is not a field of this request, got \[1\]$"):
        parse_reload_request(b'{"int": [1]}')


_VALUES = {
    "model": [None, "toy", 1],
    "seed": [0, 2**32 - 1, 2**32, -1, 1.0, True, None, "1"],
    "n": [None, 1, 2, 0, 1.0, True],
    "seeds": [None, [1]],
    "latents": [None, [[0.0]]],
    "class_idx": [None, 0, -1, [0], 1.0, True],
    "truncation_psi": [None, 1, 0.5, [0.5], 2.5, True, "1"],
    "sampler": ["plain", "mh", None],
    "proposals": [None, 1],
    "realness": [False, True, 0, None],
    "format": ["png", "jpg", "webp", "npy", "gif", None],
    "container": [None, "zip"],
    "sign": [False, True, 0],
    "priority": ["interactive", "batch", "high", None],
    "timeout_ms": [None, 1, 0, 1.5],
    "unknown": [1],
}


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({}, optional={name: st.sampled_from(_VALUES[name]) for name in _VALUES}))
def test_what_is_read_as_a_plain_request_is_the_same_request_for_one_image(fields: dict[str, Any]) -> None:
    body = json.dumps({"seed": 5} | fields).encode()
    plain = parse_plain_request(body)
    if plain is None:
        return
    whole = parse_sample_request(body, max_rows=10)

    assert {name: getattr(whole, name) for name in plain} == plain
    assert whole.row_count == 1
    assert whole.container is None
    assert whole.format != "npy"
    assert not whole.needs_discriminator
    assert not whole.sign


@pytest.mark.parametrize("name", list(PlainRequest.__annotations__))
def test_a_plain_request_may_name_every_field(name: str) -> None:
    plain = [
        value
        for value in _VALUES[name]
        if parse_plain_request(json.dumps({"seed": 5} | {name: value}).encode()) is not None
    ]

    assert plain
    assert PlainRequest.__annotations__.keys() == SampleRequest.model_fields.keys()


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'{"seed": 1', b'{"seed": NaN}', b'"seed"', b"\xff"])
def test_what_is_no_plain_request_is_left_to_be_told(body: bytes) -> None:
    assert parse_plain_request(body) is None
