"""The HTTP surface: routes, what each answers, and which error becomes which status.

Parse, validate, admit, sample, pack, answer. Nothing deeper knows a status code. Routes are added
to LitServe's FastAPI app; the page and the documents' assets are files served from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from models.errors import ContractError, InvalidValue, UnknownModel, show
from models.sampling import MAX_SEED, check_seed, latents_from_seeds, seeds_text, slerp
from service import __version__
from service.encoding import IMAGE_FORMATS, MEDIA_TYPES, Format, encode_npy, encode_walk, pack_json, pack_zip
from service.errors import (
    DeadlineExceeded,
    InvalidField,
    MalformedBody,
    NotAcceptable,
    NotServed,
    Overloaded,
    RetryableError,
    ServiceError,
    StaleDigest,
    TooLarge,
    Unavailable,
    UnknownMediaType,
    WorkerCrashed,
)
from service.http_log import facts_of
from service.provenance import DIGEST_DIGITS, ImageAddress
from service.rows import Rows
from service.sampler import ModelSampler, Sample
from service.schema import ErrorBody, ImageQuery, SampleRequest, WalkQuery, parse_query, parse_sample_request
from service.serving import Serving

STATUS: Final[dict[type[Exception], tuple[int, str]]] = {
    MalformedBody: (400, "bad_request"),
    NotServed: (404, "not_found"),
    UnknownModel: (404, "not_found"),
    NotAcceptable: (406, "not_acceptable"),
    StaleDigest: (409, "digest_not_served"),
    TooLarge: (413, "too_large"),
    UnknownMediaType: (415, "unsupported_media_type"),
    InvalidField: (422, "invalid"),
    InvalidValue: (422, "invalid"),
    Overloaded: (429, "overloaded"),
    WorkerCrashed: (500, "worker_crashed"),
    Unavailable: (503, "unavailable"),
    DeadlineExceeded: (504, "deadline"),
}
"""Which error becomes which status; the nearest class counts, and what is not here is 500 internal."""

_ROUTER_CODES: Final = {404: "not_found", 405: "method_not_allowed"}
_CALLER_LEFT: Final = 499  # never seen by anyone; it marks the request in log and metrics
_MAX_SEEDS_HEADER_BYTES: Final = 1024
_IMMUTABLE: Final = "public, max-age=31536000, immutable"
_IMAGE_FILE = re.compile(r"(\d{1,10})\.([a-z]{3,4})", re.ASCII)
_PAGE: Final = Path(__file__).parent / "playground"
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class CallerLeft(Exception):
    """The client closed its connection before the answer."""


def add_routes(app: FastAPI, serving: Serving) -> None:
    """Give `app` every route of the service."""
    app.title, app.version = "ganserve", __version__
    app.description = (
        "A seed names an image: the same seed, model digest and parameters give the same pixels."
    )
    # The documents' page and the ones that FastAPI and LitServe bring load scripts from other hosts.
    app.router.routes[:] = [
        route for route in app.router.routes if getattr(route, "path", "") == "/openapi.json"
    ]
    _add_errors(app)
    routes = _Routes(serving)
    image = "/v1/models/{model}/{file}"
    app.add_api_route("/v1/samples", routes.create_samples, methods=["POST"], **_SAMPLES_DOC)
    app.add_api_route(
        "/v1/models", routes.list_models, methods=["GET"], **_doc("The models served, the default first")
    )
    app.add_api_route(
        "/v1/models/{model}", routes.describe_model, methods=["GET"], **_doc("One model's facts", 404, 422)
    )
    app.add_api_route("/v1/models/{model}/walk", routes.walk, methods=["GET"], **_WALK_DOC)
    app.add_api_route(image, routes.image, methods=["GET"], **_IMAGE_DOC)
    app.add_api_route(image, routes.image, methods=["HEAD"], include_in_schema=False)
    app.add_api_route("/livez", routes.live, methods=["GET"], **_doc("The process answers"))
    app.add_api_route("/readyz", routes.ready, methods=["GET"], **_doc("May get traffic", 503))
    app.add_api_route("/startupz", routes.started, methods=["GET"], **_doc("Was ready once", 503))
    app.add_api_route("/metrics", routes.metrics, methods=["GET"], **_doc("Prometheus metrics"))
    _add_pages(app)


def _add_pages(app: FastAPI) -> None:
    import fastapi_offline  # brings Swagger UI's files; only the folder is used

    assets = Path(fastapi_offline.__file__).parent / "static"

    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="ganserve",
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/favicon.svg",
        )

    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)
    app.mount("/docs/assets", StaticFiles(directory=assets))
    # One route a file: a mount at "/" would take in every path, and no wrong method would be a 405.
    for file in sorted(_PAGE.iterdir()):
        path = "/" if file.name == "index.html" else f"/{file.name}"
        app.add_api_route(path, _page_file(file), methods=["GET"], include_in_schema=False)


def _page_file(file: Path) -> Callable[[], Any]:
    async def answer() -> Response:
        return FileResponse(file, headers=_PAGE_HEADERS)

    return answer


class _Routes:
    """One method a route."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    # -- sampling ---------------------------------------------------------------------------------

    async def create_samples(self, request: Request) -> Response:
        body = await _read_body(request, self._serving.settings.max_body_bytes)
        wanted = parse_sample_request(body)
        sampler = self._serving.sampler(wanted.model)
        facts_of(request).update(model=sampler.dispatcher.name, rows=wanted.row_count)
        self._check_size(wanted.row_count)
        media_type = _accepted(request, _media_type_of(wanted))
        rows = _rows_of(wanted, sampler)
        async with self._answering(request):
            if wanted.format == "npy":
                sample = await sampler.pixels(rows, self._timeout_s(wanted.timeout_ms), "samples")
                assert sample.pixels is not None
                data = encode_npy(sample.pixels)
            else:
                sample = await sampler.encoded(
                    rows, wanted.format, self._timeout_s(wanted.timeout_ms), "samples"
                )
                data = await asyncio.to_thread(_pack, sample, wanted)
        return _answer(request, sampler, data, media_type, sample, rows)

    async def image(self, request: Request, model: str, file: str) -> Response:
        name, at, digits = model.partition("@")
        sampler = self._serving.sampler(name)
        facts_of(request).update(model=sampler.dispatcher.name, rows=1)
        seed, fmt = _parse_image_file(file)
        query = parse_query(ImageQuery, request.query_params)
        rows = Rows.of_seeds(sampler.artifact.manifest, [seed], query.class_idx, query.truncation_psi)
        digest = sampler.artifact.digest[:DIGEST_DIGITS]
        if not at:
            where = f"/v1/models/{name}@{digest}/{file}" + (
                f"?{request.url.query}" if request.url.query else ""
            )
            return RedirectResponse(where, 307, headers={"Cache-Control": "no-cache"})
        if digits != digest:
            raise StaleDigest(f"{name} is served with the digest {digest}, got {show(digits)}")
        render = sampler.render_id
        if render is None:
            raise Unavailable(f"model {name} is loading", retry_after_s=1)

        media_type = _accepted(request, MEDIA_TYPES[fmt])
        address = ImageAddress(
            digest=sampler.artifact.digest,
            seed=seed,
            class_idx=int(rows.class_idx[0]) if sampler.artifact.manifest.num_classes else None,
            truncation_psi=float(rows.truncation_psi[0]),
            fmt=fmt,
        )
        headers = {"ETag": address.etag(render), "Cache-Control": _IMMUTABLE}
        if _matches(request.headers.get("if-none-match"), headers["ETag"]):
            self._serving.metrics.not_modified.inc()
            return Response(status_code=304, headers=headers)
        if request.method == "HEAD":
            headers["X-Model-Digest"] = sampler.artifact.digest
            return Response(headers=headers, media_type=media_type)
        async with self._answering(request):
            sample = await sampler.encoded(rows, fmt, self._timeout_s(None), "image")
        response = _answer(request, sampler, sample.images[0].data, media_type, sample, rows)
        response.headers.update(headers)
        return response

    async def walk(self, request: Request, model: str) -> Response:
        sampler = self._serving.sampler(model)
        manifest = sampler.artifact.manifest
        query = parse_query(WalkQuery, request.query_params)
        facts_of(request).update(model=sampler.dispatcher.name, rows=query.frames)
        self._check_size(query.frames)
        media_type = _accepted(request, MEDIA_TYPES["webp"])
        ends = Rows.of_seeds(manifest, [query.start, query.end], query.class_idx, query.truncation_psi)
        start, end = latents_from_seeds([query.start, query.end], manifest.z_dim, manifest.prior)
        # Each frame takes the class of the nearer end, so that both ends are the images their seeds name.
        nearer = np.repeat(ends.class_idx, [(query.frames + 1) // 2, query.frames // 2]).tolist()
        rows = Rows.of_latents(
            manifest,
            slerp(start, end, query.frames),
            nearer if manifest.num_classes else None,
            query.truncation_psi,
        )
        async with self._answering(request):
            sample = await sampler.pixels(rows, self._timeout_s(None), "walk")
            assert sample.pixels is not None
            data = await asyncio.to_thread(encode_walk, sample.pixels, query.frame_ms)
        return _answer(request, sampler, data, media_type, sample, rows)

    @asynccontextmanager
    async def _answering(self, request: Request) -> AsyncIterator[None]:
        """Hold one accepted request, and end the work on it when its caller leaves."""
        with self._serving.admitted():
            async with _unless_caller_leaves(request):
                yield

    def _check_size(self, rows: int) -> None:
        max_rows = self._serving.settings.max_rows
        if rows > max_rows:
            raise TooLarge(f"max_rows is {max_rows} rows a request, got {rows}")

    def _timeout_s(self, timeout_ms: int | None) -> float:
        settings = self._serving.settings
        if timeout_ms is None:
            return settings.timeout_ms / 1000
        if timeout_ms > settings.max_timeout_ms:
            raise InvalidField(
                f"timeout_ms must be at most {settings.max_timeout_ms}, got {show(timeout_ms)}"
            )
        return timeout_ms / 1000

    # -- facts ------------------------------------------------------------------------------------

    async def list_models(self) -> Response:
        return JSONResponse({"models": [self._describe(sampler) for sampler in self._serving.samplers]})

    async def describe_model(self, model: str) -> Response:
        return JSONResponse(self._describe(self._serving.sampler(model)))

    def _describe(self, sampler: ModelSampler) -> dict[str, Any]:
        manifest, settings = sampler.artifact.manifest, self._serving.settings
        device = sampler.dispatcher.device
        return {
            "name": manifest.name,
            "version": manifest.version,
            "digest": manifest.digest,
            "z_dim": manifest.z_dim,
            "img_height": manifest.img_height,
            "img_width": manifest.img_width,
            "img_channels": manifest.img_channels,
            "num_classes": manifest.num_classes,
            "class_names": list(manifest.class_names),
            "prior": manifest.prior,
            "truncation": manifest.truncation,
            "licence": manifest.licence,
            "provider": device and device.provider,
            "render_id": sampler.render_id,
            "determinism": device and _determinism(device.golden_difference),
            "ready": sampler.dispatcher.ready,
            "limits": {
                "max_rows": settings.max_rows,
                "max_queued_rows": settings.max_queued_rows,
                "max_body_bytes": settings.max_body_bytes,
                "max_timeout_ms": settings.max_timeout_ms,
                "max_seed": MAX_SEED,
            },
            "image_url": f"/v1/models/{manifest.name}@{manifest.digest[:DIGEST_DIGITS]}/{{seed}}.png",
        }

    # -- probes -----------------------------------------------------------------------------------

    async def live(self) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(self) -> Response:
        if self._serving.ready:
            return JSONResponse({"status": "ready"})
        raise Unavailable("the server is draining" if self._serving.draining else "a model is loading")

    async def started(self) -> Response:
        if self._serving.was_ready:
            return JSONResponse({"status": "started"})
        raise Unavailable("a model is loading")

    async def metrics(self) -> Response:
        return Response(self._serving.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


# -- requests -------------------------------------------------------------------------------------


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """The body, if it is JSON by its content type and no longer than `max_bytes`."""
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise UnknownMediaType(f"content-type must be application/json, got {show(content_type)}")
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise TooLarge(f"max_body_bytes is {max_bytes} bytes a body, got more")
        chunks.append(chunk)
    return b"".join(chunks)


def _rows_of(wanted: SampleRequest, sampler: ModelSampler) -> Rows:
    manifest = sampler.artifact.manifest
    if wanted.latents is not None:
        return Rows.of_latents(manifest, wanted.latents, wanted.class_idx, wanted.truncation_psi)
    return Rows.of_seeds(manifest, wanted.all_seeds, wanted.class_idx, wanted.truncation_psi)


def _parse_image_file(file: str) -> tuple[int, Format]:
    match = _IMAGE_FILE.fullmatch(file)
    formats = (*IMAGE_FORMATS, "npy")
    if match is None or match[2] not in formats:
        raise InvalidField(f"an image's address must end in SEED.{'|'.join(formats)}, got {show(file)}")
    fmt: Any = match[2]
    return check_seed(int(match[1])), fmt


def _media_type_of(wanted: SampleRequest) -> str:
    if wanted.format == "npy":
        return MEDIA_TYPES["npy"]
    if wanted.container is None and wanted.row_count == 1:
        return MEDIA_TYPES[wanted.format]
    return MEDIA_TYPES[wanted.container or "zip"]


def _accepted(request: Request, media_type: str) -> str:
    """`media_type`, if the caller's `Accept` allows it. Raises NotAcceptable."""
    accept = request.headers.get("accept", "*/*")
    kind = media_type.partition("/")[0]
    for entry in accept.split(","):
        pattern, *parameters = (part.strip().lower() for part in entry.split(";"))
        refused = any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
        if pattern in ("*/*", f"{kind}/*", media_type, "") and not refused:
            return media_type
    raise NotAcceptable(f"accept must allow {media_type}, which this request asks for, got {show(accept)}")


def _matches(if_none_match: str | None, etag: str) -> bool:
    """RFC 9110, 13.1.2: weak comparison with each listed tag, or "*"."""
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


@asynccontextmanager
async def _unless_caller_leaves(request: Request) -> AsyncIterator[None]:
    """Cancel the block when the client closes its connection; what it raises then is CallerLeft."""
    handler = asyncio.current_task()
    assert handler is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        handler.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not left:
            raise
        handler.uncancel()
        raise CallerLeft from None
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher


# -- answers --------------------------------------------------------------------------------------


def _pack(sample: Sample, wanted: SampleRequest) -> bytes:
    if wanted.container is None and len(sample.images) == 1:
        return sample.images[0].data
    pack = pack_json if wanted.container == "json" else pack_zip
    return pack(sample.images, wanted.format)


def _answer(
    request: Request, sampler: ModelSampler, data: bytes, media_type: str, sample: Sample, rows: Rows
) -> Response:
    headers = {"X-Model-Digest": sampler.artifact.digest, "Server-Timing": sample.timing.header()}
    if rows.latents is None:
        seeds = seeds_text(rows.seeds.tolist())
        if len(seeds) <= _MAX_SEEDS_HEADER_BYTES:
            headers["X-Seeds"] = seeds
    facts_of(request).update(
        queue_ms=round(sample.timing.queue_s * 1000, 2),
        device_ms=round(sample.timing.device_s * 1000, 2),
        encode_ms=round(sample.timing.encode_s * 1000, 2),
    )
    return Response(data, media_type=media_type, headers=headers)


def _determinism(golden_difference: int) -> str:
    return "bit_exact" if golden_difference == 0 else f"differs by {golden_difference}"


def _add_errors(app: FastAPI) -> None:
    async def domain_error(request: Request, error: Exception) -> Response:
        return _error_response(request, error)

    async def router_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _ROUTER_CODES.get(error.status_code, "bad_request")
        return _error_body(request, error.status_code, code, str(error.detail), error.headers)

    async def caller_left(request: Request, error: Exception) -> Response:
        return Response(status_code=_CALLER_LEFT)

    async def unexpected(request: Request, error: Exception) -> Response:
        return _error_body(request, 500, "internal", "internal error; the log has this request_id")

    handlers: dict[Any, Callable[[Request, Exception], Any]] = {
        Exception: unexpected,
        ServiceError: domain_error,
        ContractError: domain_error,
        HTTPException: router_error,
        CallerLeft: caller_left,
        ClientDisconnect: caller_left,
    }
    app.exception_handlers.update(handlers)


def _error_response(request: Request, error: Exception) -> Response:
    """One domain error as the answer that STATUS gives it."""
    status, code = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), (500, "internal"))
    headers = {}
    if isinstance(error, RetryableError):
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    facts_of(request)["code"] = code
    return _error_body(request, status, code, str(error), headers)


def _error_body(request: Request, status: int, code: str, message: str, headers: Any = None) -> Response:
    facts = facts_of(request)
    facts["error"] = message
    body = {"error": message, "code": code, "request_id": facts["request_id"]}
    return JSONResponse(body, status, headers=dict(headers or {}))


# -- documents ------------------------------------------------------------------------------------


def _doc(summary: str, *error_statuses: int, answers: dict[str, Any] | None = None) -> dict[str, Any]:
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


_SAMPLES_DOC: Final = {
    **_doc(
        "Make images from seeds or latents",
        *(400, 404, 406, 413, 415, 422, 429, 500, 503, 504),
        answers={
            **_binary("png", "jpg", "webp", "npy", "zip"),
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
_IMAGE_DOC: Final = {
    **_doc(
        "One image: MODEL@DIGEST12/SEED.png never changes, MODEL/SEED.png redirects to it",
        *(404, 406, 409, 422, 429, 500, 503, 504),
        answers=_binary("png", "jpg", "webp", "npy"),
    ),
    "openapi_extra": {"parameters": _query_parameters(ImageQuery)},
}
_WALK_DOC: Final = {
    **_doc(
        "A walk between two seeds' images as an animated WebP",
        *(404, 406, 422, 429, 500, 503, 504),
        answers=_binary("webp"),
    ),
    "openapi_extra": {"parameters": _query_parameters(WalkQuery)},
}
