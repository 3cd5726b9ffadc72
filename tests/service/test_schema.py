"""What a request that breaks a rule is told: one sentence a rule, with field, rule and value."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.errors import InvalidField
from service.schema import parse_sample_request


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"seed": 1, "class_idx": 1.5}, "class_idx must be a valid integer, got 1.5"),
        ({"seeds": [1], "class_idx": [1.5]}, "class_idx[0] must be a valid integer, got 1.5"),
        ({"seeds": []}, "seeds must have at least 1 item, got []"),
    ],
)
def test_a_field_is_told_once_in_the_words_of_what_was_meant(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidField) as refusal:
        parse_sample_request(json.dumps(fields).encode(), max_rows=10)

    assert str(refusal.value) == sentence
