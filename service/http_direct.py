"""The short way of a small request: `POST /v1/samples` for one image, without ASGI.

Nearly every request asks for one image. Its way through ASGI (scope, task, layers, messages) costs more than
all that is done for it. So one that came whole is accepted where it is parsed, and answered where its
image comes. Whatever is unusual of a request goes the usual way, `api`'s; both answer alike.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from starlette.responses import Response

from service.api import image_response
from service.encoding import MEDIA_TYPES
from service.errors import CallerLeft
from service.http_access import key_of
from service.http_errors import error_response
from service.http_exchange import Fields
from service.http_log import Entry, RequestLog, tell_that_caller_left
from service.http_protocol import DirectExchange
from service.rows import Rows
from service.sampler import ModelSampler
from service.schema import PlainRequest, parse_plain_request
from service.serving import Serving
from service.ticket import Ticket

_PATH: Final = "/v1/samples"
_JSON: Final = b"application/json"


class DirectSamples:
    """Takes requests for one image."""

    target = (b"POST", _PATH.encode())

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._log = RequestLog(serving)
        # As CORSMiddleware: a cache keeps what a page of another origin asked for apart from this.
        self._vary = [(b"vary", b"Origin")] if serving.settings.allowed_origins else []
        self._untaken: set[asyncio.Task[None]] = set()  # answers that callers are slow to take

    def take(self, exchange: DirectExchange, body: bytes) -> bool:
        """As `http_protocol.Direct`."""
        fields, serving = exchange.fields, self._serving
        wanted = self._read(fields, body)
        if wanted is None:
            return False
        entry = self._log.begin(fields)
        try:
            if serving.keys.needed:
                serving.keys.require_known(key_of([*fields.items()]))
            sampler = serving.sampler(wanted.get("model"))
            entry.facts["model"], entry.facts["rows"] = sampler.name, 1
            manifest = sampler.artifact.manifest
            rows = Rows.of_seeds(
                manifest, [wanted["seed"]], wanted.get("class_idx"), wanted.get("truncation_psi")
            )
            fmt, priority = wanted.get("format", "png"), wanted.get("priority", "interactive")
            ticket = serving.accept(
                sampler, rows, fmt, exchange.connection, wanted.get("timeout_ms"), priority
            )
        except Exception as error:
            response = error_response(entry.facts, error)
            asyncio.get_running_loop().call_soon(self._answer, exchange, entry, response)
        else:
            ticket.when_ended(partial(self._ended, exchange, entry, sampler, ticket))
        return True

    def _read(self, fields: Fields, body: bytes) -> PlainRequest | None:
        """The request, or None if it goes the usual way: what is wrong is told there, too."""
        if len(body) > self._serving.settings.max_body_bytes:
            return None
        if b"origin" in fields or b"content-encoding" in fields:
            return None
        if fields.get(b"content-type", _JSON) != _JSON:
            return None
        wanted, accept = parse_plain_request(body), fields.get(b"accept", b"*/*")
        if wanted is None or accept == b"*/*":
            return wanted
        return wanted if accept == MEDIA_TYPES[wanted.get("format", "png")].encode() else None

    def _ended(self, exchange: DirectExchange, entry: Entry, sampler: ModelSampler, ticket: Ticket) -> None:
        """The image is there, or will not be."""
        self._serving.settle(sampler, ticket, "samples", exchange.connection)
        try:
            if ticket.error is not None:
                response = error_response(entry.facts, ticket.error)
            else:
                assert ticket.fmt is not None
                media_type = MEDIA_TYPES[ticket.fmt]
                response = image_response(entry.facts, sampler, ticket.images[0], media_type, ticket)
        except Exception as error:
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
