"""The HTTP surface: the routes, and what each answers.

Parse, validate, admit, sample, pack, answer. Routes are added to LitServe's FastAPI app.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import Any, Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from models.errors import show
from models.sampling import MAX_SEED, check_seed, seeds_text
from service import __version__
from service.api_v2 import add_v2_routes
from service.containers import pack
from service.encoding import (
    IMAGE_FORMATS,
    MEDIA_TYPES,
    Format,
    encode_walk,
)
from service.errors import InvalidField, Unavailable
from service.http_access import require_admin
from service.http_exchange import header
from service.http_log import facts_of
from service.http_protocol import connection_of
from service.http_request import accepted, decompressed, matches, read_body
from service.http_routes import PlainRoute
from service.line import DeviceFacts
from service.openapi import (
    IMAGE_DOC,
    LIST_DOC,
    LIVE_DOC,
    METRICS_DOC,
    MODEL_DOC,
    READY_DOC,
    RELOAD_DOC,
    SAMPLES_DOC,
    STARTED_DOC,
    WALK_DOC,
    add_document,
)
from service.pages import add_pages
from service.provenance import DIGEST_DIGITS, ImageAddress
from service.rows import Rows
from service.sampler import ModelSampler, named_images
from service.schema import (
    ImageQuery,
    SampleRequest,
    WalkQuery,
    check_large_body,
    parse_query,
    parse_reload_request,
    parse_sample_request,
)
from service.serving import Serving
from service.ticket import Ticket

_LARGE_BODY_BYTES: Final = 64 * 2**10  # read in a thread: others need the event loop meanwhile
_MAX_SEEDS_HEADER_BYTES: Final = 1024
_IMAGE_FILE = re.compile(r"(0|[1-9]\d{0,9})\.([a-z]{3,4})", re.ASCII)
_IMMUTABLE: Final = "max-age=31536000, immutable"


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
    app.router.redirect_slashes = False  # it would redirect to whatever the Host header says
    app.router.route_class = PlainRoute
    routes = _Routes(serving)
    image = "/v1/models/{model}/{file}"
    app.add_api_route("/v1/samples", routes.create_samples, methods=["POST"], **SAMPLES_DOC)
    app.add_api_route("/v1/models", routes.list_models, methods=["GET"], **LIST_DOC)
    app.add_api_route("/v1/models/{model}", routes.describe_model, methods=["GET"], **MODEL_DOC)
    app.add_api_route("/v1/models/{model}/reload", routes.reload, methods=["POST"], **RELOAD_DOC)
    app.add_api_route("/v1/models/{model}/walk", routes.walk, methods=["GET"], **WALK_DOC)
    app.add_api_route(image, routes.image, methods=["GET", "HEAD"], **IMAGE_DOC)
    app.add_api_route("/livez", routes.live, methods=["GET", "HEAD"], **LIVE_DOC)
    app.add_api_route("/readyz", routes.ready, methods=["GET", "HEAD"], **READY_DOC)
    app.add_api_route("/startupz", routes.started, methods=["GET", "HEAD"], **STARTED_DOC)
    app.add_api_route("/metrics", routes.metrics, methods=["GET"], **METRICS_DOC)
    add_v2_routes(app, serving)
    add_pages(app)
    add_document(app, serving)


class _Routes:
    """One method a route."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        # A shared cache would hand what it holds to callers without a key.
        self._immutable = f"{'private' if serving.keys.needed else 'public'}, {_IMMUTABLE}"

    # -- sampling ---------------------------------------------------------------------------------

    async def create_samples(self, request: Request) -> Response:
        settings = self._serving.settings
        body = await read_body(request, settings.max_body_bytes, settings.timeout_ms)
        if (encoding := header(request.scope["headers"], b"content-encoding")) is not None:
            body = await asyncio.to_thread(decompressed, body, encoding, settings.max_body_bytes)
        if len(body) > _LARGE_BODY_BYTES:
            check_large_body(body, settings.max_request_rows, self._serving.largest_z_dim)
            wanted = await asyncio.to_thread(parse_sample_request, body, settings.max_request_rows)
        else:
            wanted = parse_sample_request(body, settings.max_request_rows)
        sampler = self._serving.sampler(wanted.model)
        facts_of(request).update(model=sampler.name, rows=wanted.row_count)
        self._serving.check_rows(wanted.row_count)
        media_type = accepted(request, _media_type_of(wanted))
        signer = self._serving.signer
        if wanted.sign and signer is None:
            raise InvalidField("sign must be left out: this server has no sign_cert_file, got true")
        rows = rows_of(wanted, sampler)
        if wanted.needs_discriminator:
            rows = self._judged(rows, wanted, sampler)
        fmt = None if wanted.format == "npy" else wanted.format
        ticket = await self._serving.make(
            sampler, rows, fmt, "samples", connection_of(request.scope), wanted.timeout_ms, wanted.priority
        )
        if fmt is None:
            return _answer(request, sampler, ticket.npy, media_type, ticket)
        images = ticket.images
        if wanted.sign and signer is not None:
            images = await self._serving.finish(ticket, partial(signer.sign_all, images, fmt))
        if is_single(wanted):
            data = images[0]
        else:
            data = await self._serving.finish(ticket, partial(_pack, ticket, images, wanted, sampler))
        response = _answer(request, sampler, data, media_type, ticket)
        if wanted.sign:
            response.headers["Cache-Control"] = "no-store"  # another signature each time
        return response

    def _judged(self, rows: Rows, wanted: SampleRequest | ImageQuery, sampler: ModelSampler) -> Rows:
        """`rows` for the model's discriminator. Raises InvalidValue, and TooLarge for too many proposals."""
        manifest = sampler.artifact.manifest
        judged = rows.judged(manifest, wanted.sampler, wanted.proposals, wanted.realness)
        self._serving.check_rows(len(judged), judged.proposals)
        return judged

    async def image(self, request: Request, model: str, file: str) -> Response:
        name, at, digits = model.partition("@")
        served = self._serving.models
        sampler = served.sampler_of_digest(name, digits) if at else served.sampler(name)
        facts_of(request).update(model=sampler.name, rows=1)
        seed, fmt = _parse_image_file(file)
        query = parse_query(ImageQuery, request.query_params)
        rows = Rows.of_seeds(sampler.artifact.manifest, [seed], query.class_idx, query.truncation_psi)
        if query.needs_discriminator:
            rows = self._judged(rows, query, sampler)
        digest = sampler.artifact.digest[:DIGEST_DIGITS]
        if not at:
            where = f"/v1/models/{name}@{digest}/{file}" + (
                f"?{request.url.query}" if request.url.query else ""
            )
            return RedirectResponse(where, 307, headers={"Cache-Control": "no-cache"})
        rendering = sampler.rendering
        if rendering is None:
            raise Unavailable(f"model {name} is loading", retry_after_s=1)

        media_type = accepted(request, MEDIA_TYPES[fmt])
        address = ImageAddress(
            digest=sampler.artifact.digest,
            seed=seed,
            class_idx=int(rows.class_idx[0]) if sampler.artifact.manifest.num_classes else None,
            truncation_psi=float(rows.truncation_psi[0]),
            fmt=fmt,
            proposals=rows.proposals,
        )
        headers = {"ETag": address.etag(rendering.render_id), "Cache-Control": self._immutable}
        if matches(request, headers["ETag"]):
            self._serving.metrics.not_modified.labels().inc()
            return Response(status_code=304, headers=headers)
        if request.method == "HEAD":
            headers["X-Model-Digest"] = sampler.artifact.digest
            response = Response(headers=headers, media_type=media_type)
            del response.headers["content-length"]  # 0 would say that the image is empty
            return response
        ticket = await self._serving.make(sampler, rows, fmt, "image", connection_of(request.scope))
        response = _answer(request, sampler, ticket.images[0], media_type, ticket)
        response.headers.update(headers)
        return response

    async def walk(self, request: Request, model: str) -> Response:
        sampler = self._serving.sampler(model)
        query = parse_query(WalkQuery, request.query_params)
        facts_of(request).update(model=sampler.name, rows=query.frames)
        self._serving.check_rows(query.frames)
        media_type = accepted(request, MEDIA_TYPES["webp"])
        rows = Rows.of_walk(
            sampler.artifact.manifest,
            query.start,
            query.end,
            query.frames,
            query.class_idx,
            query.truncation_psi,
        )
        ticket = await self._serving.make(sampler, rows, None, "walk", connection_of(request.scope))
        assert sampler.rendering is not None  # a worker made the pixels
        mark = sampler.rendering.walk_mark(
            query.start,
            query.end,
            query.frames,
            query.frame_ms,
            query.class_idx,
            float(rows.truncation_psi[0]),
        )
        data = await self._serving.finish(ticket, partial(encode_walk, ticket.images, query.frame_ms, mark))
        return _answer(request, sampler, data, media_type, ticket)

    # -- facts ------------------------------------------------------------------------------------

    async def list_models(self, request: Request) -> Response:
        return JSONResponse({"models": [self._describe(sampler) for sampler in self._serving.samplers]})

    async def describe_model(self, request: Request, model: str) -> Response:
        return JSONResponse(self._describe(self._serving.sampler(model)))

    def _describe(self, sampler: ModelSampler) -> dict[str, Any]:
        manifest, settings = sampler.artifact.manifest, self._serving.settings
        device, calibration = sampler.line.device, manifest.calibration
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
            "samplers": ["plain", "mh"] if calibration is not None and calibration.mh else ["plain"],
            "discriminator": None if calibration is None else dict(manifest.sampler or {}),
            "licence": manifest.licence,
            "provider": device and device.provider,
            "render_id": sampler.rendering and sampler.rendering.render_id,
            "determinism": device and _determinism(device),
            "ready": sampler.dispatcher.ready,
            "limits": {
                "max_rows": settings.max_request_rows,
                "max_queued_rows": settings.max_queued_rows,
                "max_body_bytes": settings.max_body_bytes,
                "max_pixel_bytes": settings.max_pixel_bytes,
                "max_timeout_ms": settings.max_timeout_ms,
                "max_seed": MAX_SEED,
            },
            "image_url": f"/v1/models/{manifest.name}@{manifest.digest[:DIGEST_DIGITS]}/{{seed}}.png",
        }

    async def reload(self, request: Request, model: str) -> Response:
        require_admin(request, self._serving.keys)
        settings = self._serving.settings
        body = await read_body(request, settings.max_body_bytes, settings.timeout_ms)
        wanted = parse_reload_request(body)
        name = self._serving.sampler(model).name
        facts_of(request).update(model=name)
        changed = await self._serving.reload(name, wanted.version)
        return JSONResponse({"changed": changed, **self._describe(self._serving.sampler(name))})

    # -- probes -----------------------------------------------------------------------------------

    async def live(self, request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(self, request: Request) -> Response:
        if (trouble := self._serving.trouble) is not None:
            raise Unavailable(trouble)
        return JSONResponse({"status": "ready"})

    async def started(self, request: Request) -> Response:
        if self._serving.was_ready:
            return JSONResponse({"status": "started"})
        raise Unavailable("a model is loading")

    async def metrics(self, request: Request) -> Response:
        return Response(self._serving.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


# -- requests -------------------------------------------------------------------------------------


def rows_of(wanted: SampleRequest, sampler: ModelSampler) -> Rows:
    """What `wanted` asks for, of this model. Raises InvalidValue."""
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


def is_single(wanted: SampleRequest) -> bool:
    """The answer is one image as it is, in no container."""
    return wanted.container is None and wanted.row_count == 1


def _media_type_of(wanted: SampleRequest) -> str:
    if wanted.format == "npy":
        return MEDIA_TYPES["npy"]
    if is_single(wanted):
        return MEDIA_TYPES[wanted.format]
    return MEDIA_TYPES[wanted.container or "zip"]


# -- answers --------------------------------------------------------------------------------------


class _ImageResponse(Response):
    """An answer with images: Starlette's, without its way from a dict of headers to bytes."""

    def __init__(self, body: bytes | memoryview, media_type: str, headers: list[tuple[bytes, bytes]]) -> None:
        """`headers` have lower-case names."""
        self.status_code, self.body, self.background = 200, body, None
        self.raw_headers = [
            (b"content-length", b"%d" % len(body)),
            (b"content-type", media_type.encode()),
            *headers,
        ]


def _pack(ticket: Ticket, files: list[bytes], wanted: SampleRequest, sampler: ModelSampler) -> bytes:
    assert sampler.rendering is not None  # it made the images
    images = named_images(sampler.artifact.manifest, ticket.rows, files, ticket.realness)
    return pack(wanted.container or "zip", images, wanted.format, sampler.rendering)


def _answer(
    request: Request, sampler: ModelSampler, data: bytes | memoryview, media_type: str, ticket: Ticket
) -> Response:
    return image_response(facts_of(request), sampler, data, media_type, ticket)


def image_response(
    facts: dict[str, Any], sampler: ModelSampler, data: bytes | memoryview, media_type: str, ticket: Ticket
) -> Response:
    """An answer with the images of `ticket`, made into `data`; `facts` are the request's."""
    rows, timing = ticket.rows, ticket.timing
    facts["timing"] = timing
    headers = [
        (b"x-model-digest", sampler.artifact.digest.encode()),
        (b"server-timing", timing.header()),
    ]
    if rows.latents is None:
        seeds = seeds_text(rows.seeds.tolist())
        if len(seeds) <= _MAX_SEEDS_HEADER_BYTES:
            headers.append((b"x-seeds", seeds.encode()))
    if rows.judging is not None and rows.judging.realness and len(rows) == 1:
        assert ticket.realness is not None
        headers.append((b"x-realness", b"%.4f" % ticket.realness[0]))
    return _ImageResponse(data, media_type, headers)


def _determinism(device: DeviceFacts) -> str:
    levels, logits = device.golden_difference, device.realness_difference
    if not levels and not logits:
        return "bit_exact"
    return f"differs by {levels}" + (f", realness by {logits:.3g} of a logit" if logits else "")
