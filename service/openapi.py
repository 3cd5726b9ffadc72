"""What /openapi.json says of each route. The routes read their requests themselves, so it is said here."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response

from service.encoding import MEDIA_TYPES
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
