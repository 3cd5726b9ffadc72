"""How a route calls its function: the request and the path's parameters in, a response out.

FastAPI writes /openapi.json from the routes; what else it does for a request (dependencies, exit
stacks, four layers around the router) is not used here and costs more than the rest of a small
request, so the routes and the layers around them are our own.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http_access import RequireKey, allow_origins
from service.http_errors import AnswerErrors
from service.http_log import RequestLog
from service.serving import Serving


class PlainRoute(APIRoute):
    """A route whose function is `async (request, **path parameters) -> Response`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = self._answer

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """The first route whose path fits is the one: a wrong method is its 405, not the next one's."""
        match, child_scope = super().matches(scope)
        return (Match.NONE if match is Match.NONE else Match.FULL), child_scope

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.endpoint(Request(scope, receive, send), **scope["path_params"])
        await response(scope, receive, send)


def surround(app: FastAPI, serving: Serving) -> None:
    """Put our layers around `app`'s router, in place of FastAPI's; the first to see a request comes last."""
    stack: ASGIApp = app.router
    if serving.keys.needed:
        stack = RequireKey(stack, serving.keys)
    stack = AnswerErrors(stack)
    if serving.settings.allowed_origins:  # a preflight presents no key, and a refusal is for the page to read
        stack = allow_origins(stack, serving.settings.allowed_origins)
    app.middleware_stack = RequestLog(stack, serving)
