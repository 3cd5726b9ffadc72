"""Who may ask: API keys and CORS, over HTTP against a real server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from server_process import Server, wait_for

Serve = Callable[..., Server]
ALICE, BOB, ADMIN = "alice-key-0123456789", "bob-key-0123456789", "admin-key-0123456789"


@pytest.fixture(scope="module")
def keyed(toy_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that wants a key; its page's origin is the only one that CORS does not ask for."""
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "keys").write_text(f"# callers\n{ALICE}\n")
    flags = ("--model", "toy", "--workers", "1", "--api-keys-file", str(folder / "keys"))
    server = Server(
        toy_store, *flags, env={"GANSERVE_ADMIN_KEYS": ADMIN}, log=folder / "server.log"
    ).wait_until_ready()
    yield server
    server.stop()


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {ALICE}"},
        {"Authorization": f"bearer {ALICE}"},
        {"X-API-Key": ALICE},
        {"X-API-Key": ADMIN},
    ],
)
def test_a_known_key_opens_every_route(keyed: Server, headers: dict[str, str]) -> None:
    image = httpx.post(f"{keyed.url}/v1/samples", json={"seed": 1}, headers=headers)
    models = httpx.get(f"{keyed.url}/v1/models", headers=headers)

    assert (image.status_code, models.status_code) == (200, 200)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": f"Bearer {ALICE}x"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {ALICE}"},
        {"Authorization": f"Bearer {BOB}", "X-API-Key": ALICE},
        {"X-API-Key": ""},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/toy/1.png", "/v2", "/nowhere"])
def test_without_a_known_key_no_route_answers(keyed: Server, path: str, headers: dict[str, str]) -> None:
    answer = httpx.get(keyed.url + path, headers=headers)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["code"] == "unauthorized"
    assert ALICE not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/app.js", "/favicon.svg", "/docs", "/docs/assets/swagger-ui.css", "/openapi.json"),
        *("/livez", "/readyz", "/startupz", "/metrics"),
    ],
)
def test_the_page_the_documents_and_the_probes_need_no_key(keyed: Server, path: str) -> None:
    assert httpx.get(keyed.url + path).status_code == 200


def test_images_behind_a_key_are_for_no_shared_cache(keyed: Server) -> None:
    answer = httpx.get(
        f"{keyed.url}/v1/models/toy/1.png", headers={"X-API-Key": ALICE}, follow_redirects=True
    )

    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"


def test_the_document_says_where_a_key_is_needed(keyed: Server, shared_server: Server) -> None:
    with_keys = httpx.get(f"{keyed.url}/openapi.json").json()
    without = httpx.get(f"{shared_server.url}/openapi.json").json()
    asking, probe = with_keys["paths"]["/v1/samples"]["post"], with_keys["paths"]["/livez"]["get"]

    assert asking["security"] == [{"bearer": []}, {"header": []}]
    assert set(with_keys["components"]["securitySchemes"]) == {"bearer", "header"}
    assert "WWW-Authenticate" in asking["responses"]["401"]["headers"]
    assert "security" not in probe
    assert "401" not in probe["responses"]
    assert "401" not in without["paths"]["/v1/samples"]["post"]["responses"]


def test_a_key_that_is_added_opens_and_one_that_is_removed_closes_without_a_restart(
    serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(f"{ALICE}\n")
    server = serve("--model", "toy", "--workers", "1", "--api-keys-file", str(tmp_path / "keys"))

    def status(key: str) -> int:
        return httpx.get(f"{server.url}/v1/models", headers={"X-API-Key": key}).status_code

    before = status(ALICE), status(BOB)
    (tmp_path / "new").write_text(f"{BOB}\n")
    os.replace(tmp_path / "new", tmp_path / "keys")
    wait_for(lambda: (status(ALICE), status(BOB)) == (401, 200), seconds=5)
    (tmp_path / "keys").write_text("broken")
    wait_for(lambda: status(BOB) == 200 and "the keys stay as they were" in server.log, seconds=5)

    assert before == (200, 401)
    assert ALICE not in server.log
    assert BOB not in server.log


# -- pages of other origins -------------------------------------------------------------------------

PAGE = "https://shop.example"


@pytest.fixture(scope="module")
def crossed(toy_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that wants a key and lets pages of `PAGE` ask."""
    log = tmp_path_factory.mktemp("crossed") / "server.log"
    flags = ("--model", "toy", "--workers", "1", "--cors-origins", f"{PAGE}, http://localhost:3000")
    server = Server(toy_store, *flags, env={"GANSERVE_API_KEYS": ALICE}, log=log).wait_until_ready()
    yield server
    server.stop()


def preflight(server: Server, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    return httpx.request("OPTIONS", f"{server.url}/v1/samples", headers=headers)


def test_a_page_of_a_named_origin_may_ask_with_a_key_and_read_our_headers(crossed: Server) -> None:
    asked = preflight(crossed, PAGE)
    headers = {"Origin": PAGE, "Authorization": f"Bearer {ALICE}"}
    answer = httpx.post(f"{crossed.url}/v1/samples", json={"seed": 1}, headers=headers)
    exposed = answer.headers["access-control-expose-headers"].split(", ")

    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert "POST" in asked.headers["access-control-allow-methods"]
    allowed = asked.headers["access-control-allow-headers"].lower().split(", ")
    assert {"authorization", "content-type"} <= set(allowed)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert {"X-Model-Digest", "X-Seeds", "X-Request-Id", "Server-Timing", "ETag"} <= set(exposed)
    assert {"x-model-digest", "x-seeds", "x-request-id", "server-timing"} <= set(answer.headers)


def test_a_page_of_a_named_origin_can_read_why_it_was_refused(crossed: Server) -> None:
    answer = httpx.post(f"{crossed.url}/v1/samples", json={"seed": 1}, headers={"Origin": PAGE})

    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == PAGE


def test_a_cache_keeps_answers_to_pages_apart_from_others(crossed: Server, shared_server: Server) -> None:
    key = {"X-API-Key": ALICE}
    plain = httpx.get(f"{crossed.url}/v1/models/toy/1.png", headers=key, follow_redirects=True)
    page = httpx.get(
        f"{crossed.url}/v1/models/toy/1.png", headers={**key, "Origin": PAGE}, follow_redirects=True
    )
    without_setting = httpx.get(f"{shared_server.url}/v1/models/toy/1.png", follow_redirects=True)
    posted = httpx.post(f"{crossed.url}/v1/samples", json={"seed": 1}, headers=key)

    assert plain.headers["vary"] == page.headers["vary"] == posted.headers["vary"] == "Origin"
    assert "vary" not in without_setting.headers


def test_a_page_of_another_origin_may_not_ask(crossed: Server, shared_server: Server) -> None:
    other = preflight(crossed, "https://evil.example")
    without_setting = preflight(shared_server, PAGE)
    answer = httpx.get(f"{shared_server.url}/v1/models", headers={"Origin": PAGE})

    assert (other.status_code, other.json()["code"]) == (403, "forbidden")
    assert "cors_origins" in other.json()["error"]
    assert "got origin 'https://evil.example', method 'POST'" in other.json()["error"].replace('"', "'")
    assert other.json()["request_id"] == other.headers["x-request-id"]
    assert "access-control-allow-origin" not in other.headers
    assert without_setting.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]
