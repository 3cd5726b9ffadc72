"""The routes of the Open Inference Protocol, under /v2: what each answers.

They share models, admission, deadlines and errors with /v1; what their bodies mean is
`protocol_v2`'s business. Names and versions stand in the path, as Triton has them.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

from fastapi import FastAPI
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from models.errors import show
from models.store import Store
from service import __version__
from service.errors import InvalidField, MalformedBody, NotServed, TooLarge, Unavailable
from service.http_access import require_admin
from service.http_log import facts_of
from service.http_protocol import connection_of
from service.http_request import decompressed, read_body, read_bytes
from service.http_routes import PlainRoute
from service.openapi import V2
from service.protocol_v2 import (
    HEADER_LENGTH,
    SEED_SUFFIX,
    InferRequest,
    Variant,
    parse_infer_request,
    write_answer,
)
from service.sampler import ModelSampler
from service.serving import Serving

P = ParamSpec("P")
T = TypeVar("T")
_EXTENSIONS: Final = [
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
]
_INFER_TYPES: Final = ("application/json", "application/octet-stream")
_INLINE_BYTES: Final = 64 * 1024
"""Bodies up to this size are read, and answers written, in the event loop: a thread would cost more."""


def add_v2_routes(app: FastAPI, serving: Serving) -> None:
    """Give `app` the protocol's routes."""
    routes = _Routes(serving)

    def add(method: str, path: str, answer: Callable[[Request], Any], doc: dict[str, Any]) -> None:
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)}", path)
        ]
        extra = {**doc.get("openapi_extra", {})}
        extra["parameters"] = [*parameters, *extra.get("parameters", [])]
        app.router.add_api_route(
            path, answer, methods=[method], route_class_override=_Route, **{**doc, "openapi_extra": extra}
        )

    add("GET", "/v2", routes.server, V2["server"])
    add("GET", "/v2/health/live", routes.live, V2["live"])
    add("GET", "/v2/health/ready", routes.ready, V2["ready"])
    add("GET", "/v2/models/stats", routes.all_statistics, V2["all_statistics"])
    for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        add("GET", model, routes.model, V2["model"])
        add("GET", f"{model}/ready", routes.model_ready, V2["model_ready"])
        add("GET", f"{model}/config", routes.config, V2["config"])
        add("GET", f"{model}/stats", routes.statistics, V2["statistics"])
        add("POST", f"{model}/infer", routes.infer, V2["infer"])
    add("POST", "/v2/repository/index", routes.index, V2["index"])
    add("POST", "/v2/repository/models/{model}/load", routes.load, V2["load"])
    add("POST", "/v2/repository/models/{model}/unload", routes.unload, V2["unload"])


class _Route(PlainRoute):
    """A route whose function is `async (request) -> Response` and finds the path's parameters in it."""

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


class _Routes:
    """One method a route."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    # -- inference --------------------------------------------------------------------------------

    async def infer(self, request: Request) -> Response:
        serving, settings = self._serving, self._serving.settings
        self._model(request)  # before its body is waited for
        body = await read_body(request, settings.max_body_bytes, settings.timeout_ms, _INFER_TYPES)
        header_length = request.headers.get(HEADER_LENGTH)
        encoding = request.headers.get("content-encoding", "")

        def parse(variant: Variant) -> InferRequest:
            plain = decompressed(body, encoding, settings.max_body_bytes)
            return parse_infer_request(plain, header_length, variant, settings.max_request_rows)

        while True:
            sampler, variant = self._model(request)
            wanted = await _here_or_in_thread(parse, _INLINE_BYTES + 1 if encoding else len(body), variant)
            if self._model(request)[0] is sampler:  # else another version came while a thread read the body
                break
        facts_of(request).update(rows=len(wanted.rows))
        ticket = await serving.make(
            sampler, wanted.rows, None, "v2", connection_of(request.scope), wanted.timeout_ms, wanted.priority
        )
        images = ticket.images  # [N, H, W, C] uint8
        write = partial(write_answer, variant, wanted.id, images, wanted.binary)
        in_loop = wanted.binary or images.nbytes <= _INLINE_BYTES
        parts, json_bytes = write() if in_loop else await serving.finish(ticket, write)
        facts_of(request)["timing"] = ticket.timing
        headers = {
            "X-Model-Digest": sampler.artifact.digest,
            "Server-Timing": ticket.timing.header().decode(),
        }
        if json_bytes is None:
            return _Parts(parts, "application/json", headers)
        return _Parts(parts, "application/octet-stream", {**headers, HEADER_LENGTH: str(json_bytes)})

    # -- facts ------------------------------------------------------------------------------------

    async def server(self, request: Request) -> Response:
        return JSONResponse({"name": "ganserve", "version": __version__, "extensions": _EXTENSIONS})

    async def model(self, request: Request) -> Response:
        _, variant = self._model(request)
        return JSONResponse(variant.metadata())

    async def config(self, request: Request) -> Response:
        sampler, variant = self._model(request)
        settings = self._serving.settings
        pixel_bytes = math.prod(sampler.artifact.manifest.img_shape)  # of one row
        return JSONResponse(
            variant.config(min(settings.max_request_rows, settings.max_pixel_bytes // pixel_bytes))
        )

    async def statistics(self, request: Request) -> Response:
        sampler, variant = self._model(request)
        return JSONResponse({"model_stats": [variant.statistics(sampler.line.statistics)]})

    async def all_statistics(self, request: Request) -> Response:
        models = [
            Variant(one.artifact.manifest, by_seed=False).statistics(one.line.statistics)
            for one in self._serving.samplers
        ]
        return JSONResponse({"model_stats": models})

    # -- probes -----------------------------------------------------------------------------------

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        if (trouble := self._serving.trouble) is not None:
            raise Unavailable(trouble)
        return JSONResponse({"ready": True})

    async def model_ready(self, request: Request) -> Response:
        sampler, variant = self._model(request)
        if (trouble := sampler.dispatcher.trouble) is not None:
            raise Unavailable(trouble)
        return JSONResponse({"name": variant.name, "ready": True})

    # -- the repository ---------------------------------------------------------------------------

    async def index(self, request: Request) -> Response:
        fields = await self._body_fields(request, "ready")
        only_ready = fields.get("ready", False)
        if not isinstance(only_ready, bool):
            raise InvalidField(f"ready must be true or false, got {show(only_ready)}")
        models: list[dict[str, str]] = []
        for one in self._serving.samplers:
            trouble = one.dispatcher.trouble
            state, reason = ("READY", "") if trouble is None else ("UNAVAILABLE", trouble)
            models += [_entry(each.name, each.version, state, reason) for each in self._variants(one)]
        if only_ready:
            return JSONResponse([one for one in models if one["state"] == "READY"])
        served = {(one["name"], one["version"]) for one in models}
        for name, version in await asyncio.to_thread(self._published):
            if (name, version) not in served:
                models.append(_entry(name, version, "UNAVAILABLE", "in the store, not served"))
        return JSONResponse(models)

    async def load(self, request: Request) -> Response:
        require_admin(request, self._serving.keys)
        sampler, _ = self._model(request)
        fields = await self._body_fields(request, "parameters")
        if fields.get("parameters"):
            raise InvalidField(
                "parameters must be left out: a model's files and configuration come from the store, "
                f"got {show(fields['parameters'])}"
            )
        await self._serving.reload(sampler.name, None)
        return JSONResponse({})

    async def unload(self, request: Request) -> Response:
        require_admin(request, self._serving.keys)
        sampler, _ = self._model(request)
        await self._body_fields(request, "parameters")
        raise InvalidField(
            f"unload must not name {sampler.name}: it is served until the server ends; "
            "leave it out of --model"
        )

    # -- requests ---------------------------------------------------------------------------------

    def _model(self, request: Request) -> tuple[ModelSampler, Variant]:
        """The model that the path names, and under which of its two names. Raises NotServed, InvalidValue."""
        name, version = request.path_params["model"], request.path_params.get("version")
        if ":" in name:
            raise NotServed(f"model {show(name)} is not served here: /versions/ names a version")
        names = {one.name for one in self._serving.samplers}
        base = name.removesuffix(SEED_SUFFIX)
        by_seed = name not in names and base != name and base in names
        address = base if by_seed else name
        sampler = self._serving.sampler(address if version is None else f"{address}:{version}")
        facts_of(request).update(model=sampler.name)
        return sampler, Variant(sampler.artifact.manifest, by_seed)

    def _variants(self, sampler: ModelSampler) -> list[Variant]:
        """The names under which one model is served; another model may have taken its second name."""
        names = {one.name for one in self._serving.samplers}
        both = [Variant(sampler.artifact.manifest, by_seed) for by_seed in (False, True)]
        return [one for one in both if not one.by_seed or one.name not in names]

    def _published(self) -> list[tuple[str, str]]:
        store = Store(self._serving.settings.store)
        return [(name, str(version)) for name in store.names() for version in store.versions(name)]

    async def _body_fields(self, request: Request, *known: str) -> dict[str, Any]:
        """The fields of a body: empty, or a JSON object of `known` fields, whatever content type it names."""
        settings = self._serving.settings
        body = await read_bytes(request, settings.max_body_bytes, settings.timeout_ms)
        if len(body) > _INLINE_BYTES:
            raise TooLarge(f"the body must be at most {_INLINE_BYTES} bytes here, got {len(body)}")
        try:
            fields = from_json(body) if body.strip() else {}
        except ValueError as error:
            raise MalformedBody(f"the body must be JSON or empty: {error}") from None
        if not isinstance(fields, dict):
            raise InvalidField(f"the body must be a JSON object, got {show(fields)}")
        if unknown := [name for name in fields if name not in known]:
            raise InvalidField(
                f"{show(unknown[0])} is not a field of this request; it has {', '.join(known)}"
            )
        return fields


async def _here_or_in_thread(work: Callable[P, T], n_bytes: int, *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns; over _INLINE_BYTES it runs in a thread, so that other requests need not wait."""
    if n_bytes <= _INLINE_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def _entry(name: str, version: str, state: str, reason: str) -> dict[str, str]:
    return {"name": name, "version": version, "state": state, "reason": reason}


class _Parts(Response):
    """An answer whose body is sent in parts, so that pixels are not copied to stand behind their JSON."""

    def __init__(self, parts: list[bytes | memoryview], media_type: str, headers: dict[str, str]) -> None:
        self._body_parts = parts
        length = str(sum(len(part) for part in parts))
        super().__init__(media_type=media_type, headers={**headers, "Content-Length": length})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in self._body_parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
