"""Pages for people: the one at `/`, and the documents at `/docs`. Files only; nothing from other hosts."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles

_PAGE: Final = Path(__file__).parent / "playground"
_POLICY: Final = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


PAGE_PATHS: Final = {
    "/" if file.name == "index.html" else f"/{file.name}": file for file in sorted(_PAGE.iterdir())
}
"""Where each file of the page is found."""
DOCUMENT_PATHS: Final = ("/docs", "/openapi.json")


def add_pages(app: FastAPI) -> None:
    """Give `app` the page's files and the documents."""
    import fastapi_offline  # brings Swagger UI's files; only the folder is used

    assets = Path(fastapi_offline.__file__).parent / "static"

    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="ganserve",
        swagger_js_url="/docs/assets/swagger-ui-bundle.js",
        swagger_css_url="/docs/assets/swagger-ui.css",
        swagger_favicon_url="/favicon.svg",
    ).body
    headers = {**_PAGE_HEADERS, "Content-Security-Policy": _docs_policy(bytes(page).decode())}

    async def docs(request: Request) -> Response:
        return HTMLResponse(page, headers=headers)

    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)
    app.mount("/docs/assets", StaticFiles(directory=assets))
    # One route a file: a mount at "/" would take in every path, and no wrong method would be a 405.
    for path, file in PAGE_PATHS.items():
        app.add_api_route(path, _page_file(file), methods=["GET", "HEAD"], include_in_schema=False)


def _docs_policy(page: str) -> str:
    """The page's policy, and beside it Swagger UI's styles and the one script that the page itself holds."""
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"{_POLICY}; script-src 'self' 'sha256-{digest}'; style-src 'self' 'unsafe-inline'"


def _page_file(file: Path) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        return FileResponse(file, headers=_PAGE_HEADERS)

    return answer
