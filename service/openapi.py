"""What /openapi.json says of each route. The routes read their requests themselves, so it is said here.

Each route says its summary, its statuses and its bodies; what is the same everywhere (headers, what a
status means, path parameters, who needs a key) is put in by `add_document`, with the names of the
models that are served as examples.
"""

from __future__ import annotations

import re
import warnings
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from service.encoding import MEDIA_TYPES
from service.http_access import is_open
from service.protocol_v2 import HEADER_LENGTH, InferBody
from service.schema import ErrorBody, ImageQuery, ReloadRequest, SampleRequest, WalkQuery
from service.serving import Serving

_WHEN: Final = {
    200: "made",
    304: "the caller has it already; no device work",
    307: "the address of the digest that is served now",
    400: "the body is not what its content type says",
    401: "no API key, or one that is not known",
    403: "the API key is no admin key, or none is set",
    404: "no such model or version is served",
    406: "`Accept` cannot be met",
    409: "the digest in the address is not served; a version to be loaded is refused",
    413: "more rows, pixels or bytes than a limit; the sentence names it",
    415: "the request's content type is not known",
    422: "a field is invalid or unknown; the sentence names field, rule and value",
    429: "the queue is full",
    500: "our fault; `worker_crashed` for rows that kill workers",
    503: "loading or draining",
    504: "the deadline passed",
}
_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "X-Request-Id": {"description": "the caller's, or ours", "schema": {"type": "string"}},
    "X-Model-Digest": {
        "description": "sha256 of all that makes the pixels",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    },
    "X-Seeds": {
        "description": 'range text, "0-15"; left out above 1 kB',
        "schema": {"type": "string"},
    },
    "X-Realness": {
        "description": "of one image, where `realness` is asked for: how probably it is a real one",
        "schema": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "Server-Timing": {"description": "queue, device and encode, in ms", "schema": {"type": "string"}},
    "ETag": {"description": "strong; the same for the same bytes", "schema": {"type": "string"}},
    "Cache-Control": {"schema": {"type": "string"}},
    "Location": {"schema": {"type": "string"}},
    "Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"schema": {"type": "string", "enum": ["Bearer"]}},
}
_STATUS_HEADERS: Final[dict[str, tuple[str, ...]]] = {
    "304": ("ETag", "Cache-Control"),
    "307": ("Location", "Cache-Control"),
    "401": ("WWW-Authenticate",),
    "429": ("Retry-After",),
    "503": ("Retry-After",),
}
_KEY_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def doc(
    summary: str,
    *statuses: int,
    answers: dict[str, Any] | None = None,
    headers: tuple[str, ...] = (),
) -> dict[str, Any]:
    """OpenAPI facts of a route: the `statuses` it has beside 200, the bodies and `headers` of its 200."""
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody} if status >= 400 else {} for status in statuses
    }
    responses[200] = {"headers": {name: _HEADERS[name] for name in headers}}
    if answers is not None:
        responses[200]["content"] = answers
    for status, response in responses.items():
        response["description"] = _WHEN[int(status)]
    return {"summary": summary, "responses": responses, "response_class": Response}


def add_document(app: FastAPI, serving: Serving) -> None:
    """Have /openapi.json describe `app` as it is: its routes, its models, and whether it wants a key."""
    made: dict[str, dict[str, Any]] = {}

    def openapi() -> dict[str, Any]:
        model = serving.samplers[0].artifact
        if model.digest not in made:
            made.clear()
            made[model.digest] = _document(app, serving.keys.needed, model.manifest.name, model.digest[:12])
        return made[model.digest]

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _document(app: FastAPI, needs_key: bool, model: str, digest: str) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two methods of one route with one id: ids are given below
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
    examples = {"model": model, "file": "42.png", "version": "1"}
    for path, operations in document["paths"].items():
        example = {**examples, "model": f"{model}@{digest}"} if path.endswith("{file}") else examples
        for method, operation in operations.items():
            operation["operationId"] = re.sub(r"\W+", "_", f"{method}{path}").strip("_")
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter.update(_PATH_PARAMETERS[parameter["name"]], example=example[parameter["name"]])
            if needs_key and not is_open(path):
                operation["security"] = [{name: []} for name in _KEY_SCHEMES]
                refusal = {"description": _WHEN[401], "content": _ERROR}
                operation["responses"] = {"401": refusal, **operation["responses"]}
            for status, response in operation["responses"].items():
                names = ("X-Request-Id", *_STATUS_HEADERS.get(status, ()))
                headers = {**response.get("headers", {}), **{name: _HEADERS[name] for name in names}}
                response["headers"] = headers
                if method == "head":
                    response.pop("content", None)
    if needs_key:
        document["components"]["securitySchemes"] = _KEY_SCHEMES
    return document


def _query_parameters(model: Any) -> list[dict[str, Any]]:
    schema = model.model_json_schema()
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", []), "schema": _given(facts)}
        for name, facts in schema["properties"].items()
    ]


def _given(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an optional value where it is given: a query has no null."""
    branches = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    facts = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    return {**branches[0], **facts} if len(branches) == 1 else schema


def _binary(*formats: str) -> dict[str, Any]:
    return {MEDIA_TYPES[fmt]: {"schema": {"type": "string", "format": "binary"}} for fmt in formats}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object that always has these properties."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_FLAG: Final = {"type": "boolean"}
_ERROR: Final = _json({"$ref": "#/components/schemas/ErrorBody"})
_MADE: Final = ("X-Model-Digest", "X-Seeds", "Server-Timing")
_PATH_PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "model": {"description": "NAME or NAME:VERSION of a served model; of an image also NAME@DIGEST12"},
    "version": {"description": "the version that is served"},
    "file": {
        "description": "SEED.png, .jpg, .webp or .npy",
        "schema": {"type": "string", "pattern": r"^(0|[1-9][0-9]{0,9})\.(png|jpg|webp|npy)$"},
    },
}
_MODEL: Final = _object(
    name=_TEXT,
    version={"type": "integer", "minimum": 1},
    digest=_HEADERS["X-Model-Digest"]["schema"],
    z_dim=_COUNT,
    img_height=_COUNT,
    img_width=_COUNT,
    img_channels={"enum": [1, 3]},
    num_classes=_COUNT,
    class_names=_list(_TEXT),
    prior=_TEXT,
    truncation=_TEXT,
    samplers=_list({"type": "string", "enum": ["plain", "mh"]}),
    discriminator={"type": ["object", "null"]},
    licence=_TEXT,
    provider={"type": ["string", "null"]},
    render_id={"type": ["string", "null"]},
    determinism={"type": ["string", "null"], "examples": ["bit_exact"]},
    ready=_FLAG,
    limits={"type": "object", "additionalProperties": _COUNT},
    image_url=_TEXT,
)
_STATUS: Final = _json(_object(status=_TEXT))

SAMPLES_DOC: Final = {
    **doc(
        "Make images from seeds or latents",
        *(400, 404, 406, 413, 415, 422, 429, 500, 503, 504),
        answers={
            **_binary("png", "jpg", "webp", "npy", "zip", "tar"),
            **_json({"type": "object", "required": ["images"]}),
        },
        headers=(*_MADE, "X-Realness"),
    ),
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": SampleRequest.model_json_schema(),
                    "examples": {
                        "one image": {"value": {"seed": 42}},
                        "sixteen of one class, in a zip": {"value": {"seed": 0, "n": 16, "class_idx": 8}},
                        "two as one array": {"value": {"seeds": [7, 99], "format": "npy"}},
                    },
                }
            },
        }
    },
}
LIST_DOC: Final = doc("The models served, the default first", answers=_json(_object(models=_list(_MODEL))))
MODEL_DOC: Final = doc("One model's facts", 404, 422, answers=_json(_MODEL))
LIVE_DOC: Final = doc("The process answers", answers=_STATUS)
READY_DOC: Final = doc("May get traffic", 503, answers=_STATUS)
STARTED_DOC: Final = doc("Was ready once", 503, answers=_STATUS)
METRICS_DOC: Final = doc("Prometheus metrics", answers={"text/plain": {"schema": _TEXT}})
IMAGE_DOC: Final = {
    **doc(
        "One image: MODEL@DIGEST12/SEED.png never changes, MODEL/SEED.png redirects to it",
        *(304, 307, 404, 406, 409, 422, 429, 500, 503, 504),
        answers=_binary("png", "jpg", "webp", "npy"),
        headers=(*_MADE, "X-Realness", "ETag", "Cache-Control"),
    ),
    "openapi_extra": {"parameters": _query_parameters(ImageQuery)},
}
WALK_DOC: Final = {
    **doc(
        "A walk between two seeds' images as an animated WebP",
        *(404, 406, 413, 422, 429, 500, 503, 504),
        answers=_binary("webp"),
        headers=_MADE,
    ),
    "openapi_extra": {"parameters": _query_parameters(WalkQuery)},
}

RELOAD_DOC: Final = {
    **doc(
        "Serve the version that the model follows, or the one named; needs an admin key",
        *(400, 401, 403, 404, 409, 413, 415, 422, 503, 504),
        answers=_json(_object(changed=_FLAG, **_MODEL["properties"])),
    ),
    "openapi_extra": {
        "requestBody": {"required": False, "content": _json(ReloadRequest.model_json_schema())}
    },
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


def _fields(**properties: dict[str, Any]) -> dict[str, Any]:
    """The request body of a route that takes a JSON object of optional fields, or nothing."""
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {"requestBody": {"required": False, "content": _json(schema)}}


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
            *(400, 401, 403, 404, 409, 413, 422, 503, 504),
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
