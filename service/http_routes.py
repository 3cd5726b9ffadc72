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
from service.http_log import LogRequests, RequestLog
from service.serving import Serving


class PlainRoute(APIRoute):
    """A route whose function is `async (request, **path parameters) -> Response`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = self.answer

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """The first route whose path fits is the one: a wrong method is its 405, not the next one's."""
        match, child_scope = super().matches(scope)
        return (Match.NONE if match is Match.NONE else Match.FULL), child_scope

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.endpoint(Request(scope, receive, send), **scope["path_params"])
        await response(scope, receive, send)


class ExactRoutes:
    """ASGI layer over a router: a path without parameters is looked up, not matched route after route."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._routes = {
            (method, route.path): route
            for route in app.routes
            if isinstance(route, PlainRoute) and not route.param_convertors
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is not None:
            scope["route"], scope["path_params"] = route, {}
            await route.answer(scope, receive, send)
        else:
            scope["app"] = self._app  # the router raises its 404 and 405 only within an app
            await self._app.router(scope, receive, send)


def surround(app: FastAPI, serving: Serving) -> ASGIApp:
    """`app`'s routes in our layers, in place of FastAPI's; the first to see a request comes last."""
    stack: ASGIApp = ExactRoutes(app)
    if serving.keys.needed:
        stack = RequireKey(stack, serving.keys)
    stack = AnswerErrors(stack)
    if serving.settings.allowed_origins:  # a preflight presents no key, and a refusal is for the page to read
        stack = AnswerErrors(allow_origins(stack, serving.settings.allowed_origins))
    return LogRequests(stack, RequestLog(serving))
