"""The short way of a small request: `POST /v1/samples` for one image, without ASGI.

Nearly every request asks for one image. Its way through ASGI (scope, task, layers, messages) costs more than
all that is done for it. So one that came whole is accepted where it is parsed, and answered where its
image comes. Whatever is unusual of a request goes the usual way, `api`'s; both answer alike.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from pydantic import ValidationError
from starlette.responses import Response

from service.api import image_response, is_single, rows_of
from service.encoding import MEDIA_TYPES
from service.errors import CallerLeft
from service.http_access import key_of
from service.http_errors import error_response
from service.http_exchange import RawHeaders
from service.http_log import Entry, RequestLog, tell_that_caller_left
from service.http_protocol import DirectExchange
from service.sampler import ModelSampler
from service.schema import SampleRequest
from service.serving import Serving
from service.ticket import Ticket

_PATH: Final = "/v1/samples"


class DirectSamples:
    """Takes requests for one image."""

    target = (b"POST", _PATH.encode())

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._log = RequestLog(serving)
        # As CORSMiddleware: a cache keeps what a page of another origin asked for apart from this.
        self._vary = [(b"vary", b"Origin")] if serving.settings.allowed_origins else []
        self._untaken: set[asyncio.Task[None]] = set()  # answers that callers are slow to take

    def take(self, exchange: DirectExchange, headers: RawHeaders, body: bytes) -> bool:
        """As `http_protocol.Direct`."""
        wanted = self._read(headers, body)
        if wanted is None:
            return False
        entry, serving = self._log.begin(headers), self._serving
        try:
            if serving.keys.needed:
                serving.keys.require_known(key_of(headers))
            sampler = serving.sampler(wanted.model)
            entry.facts.update(model=sampler.name, rows=1)
            rows = rows_of(wanted, sampler)
            ticket = serving.accept(
                sampler, rows, wanted.format, exchange.connection, wanted.timeout_ms, wanted.priority
            )
        except Exception as error:
            response = error_response(entry.facts, error)
            asyncio.get_running_loop().call_soon(self._answer, exchange, entry, response)
        else:
            ticket.made.add_done_callback(partial(self._made, exchange, entry, sampler, ticket))
        return True

    def _read(self, headers: RawHeaders, body: bytes) -> SampleRequest | None:
        """The request, or None if it goes the usual way: what is wrong is told there, too."""
        settings = self._serving.settings
        if len(body) > settings.max_body_bytes:
            return None
        accept = None
        for name, value in headers:
            if name == b"accept":
                accept = value
            elif name == b"origin" or (name == b"content-type" and value != b"application/json"):
                return None
        try:
            wanted = SampleRequest.model_validate_json(body)
        except ValidationError:
            return None
        if not is_single(wanted) or wanted.format == "npy" or wanted.needs_discriminator or wanted.sign:
            return None
        if isinstance(wanted.class_idx, list):  # it may be longer than a request's rows
            return None
        if accept not in (None, b"*/*", MEDIA_TYPES[wanted.format].encode()):
            return None
        return wanted

    def _made(
        self,
        exchange: DirectExchange,
        entry: Entry,
        sampler: ModelSampler,
        ticket: Ticket,
        made: asyncio.Future[None],
    ) -> None:
        """The image is there, or will not be."""
        self._serving.settle(sampler, ticket, "samples", exchange.connection)
        error = made.exception()
        if error is None:
            assert ticket.fmt is not None
            media_type = MEDIA_TYPES[ticket.fmt]
            response = image_response(entry.facts, sampler, ticket.images[0], media_type, ticket)
        else:
            response = error_response(entry.facts, error)
        self._answer(exchange, entry, response)

    def _answer(self, exchange: DirectExchange, entry: Entry, response: Response) -> None:
        response.raw_headers.extend(self._vary)
        self._log.answer(entry, response.status_code, response.raw_headers)
        exchange.answer(response.status_code, response.raw_headers, bytes(response.body))
        if exchange.connection.is_waiting:
            task = asyncio.get_running_loop().create_task(self._end_when_taken(exchange, entry))
            self._untaken.add(task)
            task.add_done_callback(self._untaken.discard)
        else:
            self._end(entry)

    async def _end_when_taken(self, exchange: DirectExchange, entry: Entry) -> None:
        try:
            await exchange.connection.taken()
        except CallerLeft as error:
            tell_that_caller_left(entry.facts, error)
        finally:  # also where the time to drain is over
            self._end(entry)

    def _end(self, entry: Entry) -> None:
        self._log.end(entry, "POST", _PATH, _PATH)
