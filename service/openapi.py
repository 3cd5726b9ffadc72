"""What /openapi.json says of each route. The routes read their requests themselves, so it is said here."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response

from service.encoding import MEDIA_TYPES
from service.protocol_v2 import HEADER_LENGTH, InferBody
from service.schema import ErrorBody, ImageQuery, SampleRequest, WalkQuery


def doc(summary: str, *error_statuses: int, answers: dict[str, Any] | None = None) -> dict[str, Any]:
    """OpenAPI facts of a route that reads its request itself."""
    responses: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in error_statuses}
    if answers is not None:
        responses[200] = {"description": "made", "content": answers}
    return {"summary": summary, "responses": responses, "response_class": Response}


def _query_parameters(model: Any) -> list[dict[str, Any]]:
    schema = model.model_json_schema()
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", []), "schema": facts}
        for name, facts in schema["properties"].items()
    ]


def _binary(*formats: str) -> dict[str, Any]:
    return {MEDIA_TYPES[fmt]: {"schema": {"type": "string", "format": "binary"}} for fmt in formats}


SAMPLES_DOC: Final = {
    **doc(
        "Make images from seeds or latents",
        *(400, 404, 406, 413, 415, 422, 429, 500, 503, 504),
        answers={
            **_binary("png", "jpg", "webp", "npy", "zip", "tar"),
            "application/json": {"schema": {"type": "object"}},
        },
    ),
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": SampleRequest.model_json_schema()}},
        }
    },
}
IMAGE_DOC: Final = {
    **doc(
        "One image: MODEL@DIGEST12/SEED.png never changes, MODEL/SEED.png redirects to it",
        *(404, 406, 409, 422, 429, 500, 503, 504),
        answers=_binary("png", "jpg", "webp", "npy"),
    ),
    "openapi_extra": {"parameters": _query_parameters(ImageQuery)},
}
WALK_DOC: Final = {
    **doc(
        "A walk between two seeds' images as an animated WebP",
        *(404, 406, 422, 429, 500, 503, 504),
        answers=_binary("webp"),
    ),
    "openapi_extra": {"parameters": _query_parameters(WalkQuery)},
}


# -- the Open Inference Protocol ------------------------------------------------------------------


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema without references, so that it can stand anywhere in the document."""
    parts = schema.get("$defs", {})

    def resolved(node: Any) -> Any:
        if isinstance(node, list):
            return [resolved(one) for one in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolved(parts[node["$ref"].rpartition("/")[2]])
        return {key: resolved(value) for key, value in node.items() if key != "$defs"}

    return resolved(schema)  # type: ignore[no-any-return]  # a dict goes in, a dict comes out


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object that always has these properties."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _fields(**properties: dict[str, Any]) -> dict[str, Any]:
    """The request body of a route that takes a JSON object of optional fields, or nothing."""
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {"requestBody": {"required": False, "content": _json(schema)}}


_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_FLAG: Final = {"type": "boolean"}
_TENSOR: Final = _object(name=_TEXT, datatype=_TEXT, shape=_list({"type": "integer", "minimum": -1}))
_CONFIG_TENSOR: Final = _object(name=_TEXT, data_type=_TEXT, dims=_list(_COUNT))
_DURATION: Final = _object(count=_COUNT, ns=_COUNT)
_COMPUTE: Final = {f"compute_{part}": _DURATION for part in ("input", "infer", "output")}
_REQUESTS: Final = dict.fromkeys(
    ("success", "fail", "queue", *_COMPUTE, "cache_hit", "cache_miss"), _DURATION
)
_STATISTICS: Final = _object(
    model_stats=_list(
        _object(
            name=_TEXT,
            version=_TEXT,
            last_inference=_COUNT,
            inference_count=_COUNT,
            execution_count=_COUNT,
            inference_stats=_object(**_REQUESTS),
            batch_stats=_list(_object(batch_size=_COUNT, **_COMPUTE)),
        )
    )
)
_BYTES: Final = {"type": "string", "format": "binary"}
_INFER_BODY: Final = _inlined(InferBody.model_json_schema())
_INFER_ANSWER: Final = _object(
    model_name=_TEXT,
    model_version=_TEXT,
    outputs=_list(_object(name=_TEXT, datatype=_TEXT, shape=_list(_COUNT))),
)
_INFER_HEADERS: Final = [
    {
        "name": HEADER_LENGTH,
        "in": "header",
        "required": False,
        "description": "bytes of JSON before the binary tensors; left out where the body is JSON only",
        "schema": {"type": "integer", "minimum": 1},
    },
    {
        "name": "Content-Encoding",
        "in": "header",
        "required": False,
        "schema": {"type": "string", "enum": ["identity", "gzip", "deflate"]},
    },
]
V2: Final[dict[str, dict[str, Any]]] = {
    "server": doc(
        "The server and its extensions",
        answers=_json(_object(name=_TEXT, version=_TEXT, extensions=_list(_TEXT))),
    ),
    "live": doc("The process answers", answers=_json(_object(live=_FLAG))),
    "ready": doc("May get traffic", 503, answers=_json(_object(ready=_FLAG))),
    "model": doc(
        "A model's inputs and outputs",
        *(404, 422),
        answers=_json(
            _object(
                name=_TEXT,
                versions=_list(_TEXT),
                platform=_TEXT,
                inputs=_list(_TENSOR),
                outputs=_list(_TENSOR),
            )
        ),
    ),
    "model_ready": doc(
        "A model may get traffic", *(404, 422, 503), answers=_json(_object(name=_TEXT, ready=_FLAG))
    ),
    "config": doc(
        "A model's configuration, as Triton words it",
        *(404, 422),
        answers=_json(
            _object(
                name=_TEXT,
                platform=_TEXT,
                max_batch_size=_COUNT,
                input=_list(_CONFIG_TENSOR),
                output=_list(_CONFIG_TENSOR),
            )
        ),
    ),
    "statistics": doc("What a model did since the start", *(404, 422), answers=_json(_STATISTICS)),
    "all_statistics": doc("What every model did since the start", answers=_json(_STATISTICS)),
    "infer": {
        **doc(
            "Make images: MODEL takes latents, MODEL_seed takes seeds",
            *(400, 404, 413, 415, 422, 429, 500, 503, 504),
            answers={**_json(_INFER_ANSWER), "application/octet-stream": {"schema": _BYTES}},
        ),
        "openapi_extra": {
            "parameters": _INFER_HEADERS,
            "requestBody": {
                "required": True,
                "content": {**_json(_INFER_BODY), "application/octet-stream": {"schema": _BYTES}},
            },
        },
    },
    "index": {
        **doc(
            "Models served, and versions in the store that are not",
            *(400, 413, 422, 504),
            answers=_json(_list(_object(name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT))),
        ),
        "openapi_extra": _fields(ready=_FLAG),
    },
    "load": {
        **doc(
            "Have a served model's newest version served; needs an admin key",
            *(400, 401, 403, 404, 413, 422, 503, 504),
            answers=_json({"type": "object"}),
        ),
        "openapi_extra": _fields(parameters={"type": "object"}),
    },
    "unload": {
        **doc(
            "Refused: a model is served until the server ends",
            *(400, 401, 403, 404, 413, 422, 504),
        ),
        "openapi_extra": _fields(parameters={"type": "object"}),
    },
}
"""What is said of each route of the protocol, by the name of the method that answers it."""
