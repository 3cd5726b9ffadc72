"""/openapi.json is true: schemathesis asks a real server what the document says, and what it forbids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode, openapi
from schemathesis.checks import CHECKS, load_all_checks
from server_process import Server

EXAMPLES = 12  # an operation and mode; the same ones each time
QUIET = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
CHECKED = (
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
METHODS = ("get", "head", "post", "put", "patch", "delete", "options", "trace")


@pytest.fixture(scope="module")
def document(shared_server: Server) -> dict[str, Any]:
    read: dict[str, Any] = shared_server.http.get("/openapi.json").json()
    return read


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def path_examples(operation: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["example"] for one in operation.get("parameters", ()) if one["in"] == "path"}


def test_no_request_gets_a_status_or_a_body_that_the_document_does_not_know(
    shared_server: Server, document: dict[str, Any]
) -> None:
    load_all_checks()
    checks = CHECKS.get_by_names(list(CHECKED))
    failures: dict[str, str] = {}
    asked = 0

    def ask(case: Case) -> None:
        nonlocal asked
        asked += 1
        response = case.call(base_url=shared_server.url, allow_redirects=False, timeout=20)
        try:
            assert response.status_code not in (500, 501, 502), "our fault"
            case.validate_response(response, checks=checks)
        except Exception as failure:  # all of them are told, not the first
            failures.setdefault(f"{case.operation.label}: {failure}"[:1500], response.text[:300])

    for result in openapi.from_url(f"{shared_server.url}/openapi.json").get_all_operations():
        operation = result.ok()
        for example in operation.get_strategies_from_examples():
            QUIET(given(example)(ask))()
        known_path = path_examples(document["paths"][operation.path][operation.method])
        for mode, path in [(one, path) for one in GenerationMode for path in (None, known_path)]:
            with suppress(Unsatisfiable):  # a route that takes nothing cannot be asked wrongly
                QUIET(given(operation.as_strategy(generation_mode=mode, path_parameters=path))(ask))()

    print(f"{asked} requests")
    assert not failures, "\n\n".join(f"{failure}\n{body}" for failure, body in failures.items())
    assert asked > 500


REFUSED: list[tuple[str, str, dict[str, Any], int]] = [
    ("post", "/v1/samples", {"content": b"{"}, 400),
    ("post", "/v1/samples", {"json": {"model": "nobody", "seed": 1}}, 404),
    ("post", "/v1/samples", {"json": {"seed": 1}, "headers": {"accept": "text/html"}}, 406),
    ("post", "/v1/samples", {"json": {"seed": 1, "n": 9999}}, 413),
    ("post", "/v1/samples", {"content": b"x", "headers": {"content-type": "text/plain"}}, 415),
    ("post", "/v1/samples", {"json": {"seed": 1, "timeout_ms": 1, "n": 1000, "format": "webp"}}, 504),
    ("get", "/v1/models/{model}", {}, 404),
    ("get", "/v1/models/{model}/walk", {"params": {"from": 1, "to": 2}, "headers": {"accept": "a/b"}}, 406),
    ("get", "/v1/models/{model}/walk", {"params": {"from": 1, "to": 2, "frames": 1}}, 422),
    ("get", "/v1/models/{model}/{file}", {}, 404),
    ("get", "/v1/models/{model}/{file}", {"headers": {"accept": "text/html"}}, 406),
    ("get", "/v1/models/{model}/{file}", {"headers": {"if-none-match": "*"}}, 304),
    ("head", "/v1/models/{model}/{file}", {"headers": {"if-none-match": "*"}}, 304),
]


@pytest.mark.parametrize(("method", "path", "how", "status"), REFUSED)
def test_what_can_be_provoked_is_documented(
    shared_server: Server, document: dict[str, Any], method: str, path: str, how: dict[str, Any], status: int
) -> None:
    operation = document["paths"][path][method]
    names = path_examples(operation) | ({"model": "nobody"} if status == 404 else {})
    answer = httpx.request(method, shared_server.url + path.format(**names), timeout=30, **how)

    assert answer.status_code == status
    told = operation["responses"][str(status)]
    if status == 304:
        assert {"etag", "cache-control", "x-request-id"} <= set(answer.headers)
        assert "content" not in told
    else:
        assert set(told["content"]) == {"application/json"}
        assert (
            answer.json()["code"]
            in document["components"]["schemas"]["ErrorBody"]["properties"]["code"]["enum"]
        )


def test_each_route_has_exactly_the_methods_that_the_document_says(
    shared_server: Server, document: dict[str, Any]
) -> None:
    for path, methods in document["paths"].items():
        address = shared_server.url + path.format(model="toy", file="1.png", version="1")
        for method in {*METHODS} - set(methods):
            answer = httpx.request(method, address)

            assert answer.status_code == 405, f"{method} {path}"
            allowed = {one.strip().lower() for one in answer.headers["allow"].split(",")}
            assert allowed == set(methods), f"{method} {path}"


def test_a_query_parameter_that_is_given_twice_is_refused(shared_server: Server) -> None:
    answer = shared_server.http.get("/v1/models/toy/1.png?class_idx=1&class_idx=2")

    assert answer.status_code == 422
    assert answer.json()["error"] == "class_idx must be given once, got '1' and '2'"


def test_every_operation_has_a_summary_an_id_of_its_own_and_an_example_of_what_it_needs(
    document: dict[str, Any],
) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]

    assert len(ids) == len(set(ids))
    for method, path, operation in operations(document):
        assert operation["summary"], f"{method} {path}"
        for parameter in operation.get("parameters", ()):
            has_example = "example" in parameter or "examples" in parameter["schema"]
            assert has_example or not parameter["required"], f"{method} {path} {parameter['name']}"


def test_a_condition_is_looked_at_only_where_the_answer_would_be_one(shared_server: Server) -> None:
    headers = {"if-none-match": "*", "accept": "text/html"}  # RFC 9110, 13.2.1
    answer = shared_server.http.get("/v1/models/toy/1.png", headers=headers, follow_redirects=True)

    assert answer.status_code == 406
