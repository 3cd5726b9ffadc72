"""The page at `/`, driven in a real browser against a real server."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

CHROMIUM = Path("/usr/bin/chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
KEY = "page-key-0123456789"
SHOWN = '.tile[data-state="shown"]'
PIXELS = """async image => {
    await image.decode();
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext("2d");
    canvas.drawImage(image, 0, 0);
    return Array.from(canvas.getImageData(0, 0, image.naturalWidth, image.naturalHeight).data);
}"""
"""What an <img> shows, as RGBA values."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip("the page's tests drive a browser: install the Debian package chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, shared_server: Any) -> Iterator[Any]:
    """A fresh desktop page whose relative addresses are the shared server's."""
    context = browser.new_context(base_url=shared_server.url, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(10_000)
    yield context.new_page()
    context.close()


def open_page(page: Any, address: str = "/", count: int = 24) -> None:
    """Open an address and wait until every image is there."""
    page.goto(address)
    expect(page.locator(SHOWN)).to_have_count(count)


def tile(page: Any, seed: int) -> Any:
    """The tile whose caption is `seed`."""
    return page.locator(".tile", has=page.get_by_text(str(seed), exact=True))


def shown_seeds(page: Any) -> list[int]:
    return [int(text) for text in page.locator(".tile-seed").all_text_contents()]


def status(page: Any) -> Any:
    return page.locator("#status")


def query(address: str) -> dict[str, str]:
    return dict(httpx.URL(address).params)


# -- opening --------------------------------------------------------------------------------------


def test_the_grid_shows_images_within_two_seconds_of_opening(page: Any) -> None:
    page.goto("/", wait_until="commit")

    expect(page.locator(SHOWN)).to_have_count(24, timeout=2_000)
    sizes = page.locator(".tile img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert sizes == [12] * 24


def test_the_page_tells_the_models_facts(page: Any, shared_server: Any) -> None:
    facts = httpx.get(f"{shared_server.url}/v1/models/toy").json()

    open_page(page)

    expect(page.locator("h1")).to_have_text("toy:1")
    expect(page.locator("#facts li")).to_have_text(
        ["12 × 12 RGB", "10 classes", f"digest {facts['digest'][:12]}", "bit-exact"]
    )


def test_the_page_asks_no_other_host(page: Any, shared_server: Any) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    open_page(page)

    hosts = {urlsplit(address).netloc for address in asked}
    assert hosts == {urlsplit(shared_server.url).netloc}


def test_a_visit_leaves_the_console_empty(page: Any) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))

    open_page(page)
    page.locator("#next").click()
    expect(status(page)).to_have_text("Seeds 24 to 47")
    tile(page, 24).click()
    expect(page.locator("#detail")).to_be_visible()

    assert said == []


def test_nothing_moves_while_images_load(page: Any) -> None:
    held: list[Any] = []
    page.route(re.compile(r"\.png"), lambda route: held.append(route))
    page.goto("/")
    expect(page.locator('.tile[data-state="loading"]')).to_have_count(24)
    before = page.locator(".tile").evaluate_all(
        "tiles => tiles.map(tile => tile.getBoundingClientRect().toJSON())"
    )

    for route in held:
        route.continue_()
    page.unroute(re.compile(r"\.png"))
    expect(page.locator(SHOWN)).to_have_count(24)

    after = page.locator(".tile").evaluate_all(
        "tiles => tiles.map(tile => tile.getBoundingClientRect().toJSON())"
    )
    assert after == before


def test_a_loading_model_is_said_and_waited_for(page: Any) -> None:
    loading = {"status": 503, "headers": {"Retry-After": "1"}, "json": {"error": "toy is loading"}}
    page.route("**/v1/models", lambda route: route.fulfill(**loading), times=1)

    page.goto("/")

    expect(status(page)).to_have_text("The model is loading…")
    expect(page.locator(SHOWN)).to_have_count(24)


def test_an_image_refused_for_load_is_asked_for_again(page: Any) -> None:
    refused: list[str] = []

    def refuse_twice(route: Any) -> None:
        if len(refused) < 2:
            refused.append(route.request.url)
            route.fulfill(
                status=429, headers={"Retry-After": "1"}, json={"error": "the queue holds 8192 rows of 8192"}
            )
        else:
            route.continue_()

    page.route(re.compile(r"/5\.png"), refuse_twice)
    page.goto("/")

    expect(status(page)).to_have_text("the queue holds 8192 rows of 8192; trying again…")
    expect(page.locator(SHOWN)).to_have_count(24)
    assert len(refused) == 2


def test_an_image_that_cannot_be_made_is_told_in_the_services_sentence(page: Any) -> None:
    body = {"error": "internal error; the log has this request_id", "request_id": "c0ffee"}
    page.route(re.compile(r"/5\.png"), lambda route: route.fulfill(status=500, json=body))

    open_page(page, count=23)

    expect(status(page)).to_have_text("internal error; the log has this request_id (request_id c0ffee)")
    expect(tile(page, 5)).to_have_attribute("data-state", "failed")


def test_a_model_replaced_meanwhile_is_shown_anew(page: Any, shared_server: Any) -> None:
    models = httpx.get(f"{shared_server.url}/v1/models").json()["models"]
    replaced = [{**models[0], "image_url": "/v1/models/toy@0123456789ab/{seed}.png"}]
    page.route("**/v1/models", lambda route: route.fulfill(json={"models": replaced}), times=1)

    open_page(page)

    source = page.locator(".tile img").first.get_attribute("src")
    assert source == models[0]["image_url"].format(seed=0)


# -- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "parameters"),
    [("/?seed=42", {}), ("/?seed=42&class=7&psi=0.5", {"class_idx": "7", "truncation_psi": "0.5"})],
)
def test_a_tile_shows_the_image_its_address_names(
    page: Any, shared_server: Any, address: str, parameters: dict[str, str]
) -> None:
    moving = f"{shared_server.url}/v1/models/toy/45.png"
    answer = httpx.get(moving, params=parameters, follow_redirects=True)
    expected = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGBA"))

    open_page(page, address)
    image = tile(page, 45).locator("img")

    assert query(image.evaluate("image => image.src")) == parameters
    assert image.evaluate("image => new URL(image.src).pathname") == answer.url.path
    assert image.evaluate(PIXELS) == expected.ravel().tolist()


def test_an_image_is_described_in_words(page: Any) -> None:
    open_page(page, "/?seed=42")
    conditional = tile(page, 42).locator("img").get_attribute("alt")
    open_page(page, "/?model=plain&seed=42")
    unconditional = tile(page, 42).locator("img").get_attribute("alt")

    assert (conditional, unconditional) == ("toy seed 42, class 2", "plain seed 42")


def test_image_pixels_cover_whole_screen_pixels(page: Any) -> None:
    open_page(page)
    style = "image => [image.getBoundingClientRect().width, getComputedStyle(image).imageRendering]"
    width, rendering = page.locator(".tile img").first.evaluate(style)

    assert width % 12 == 0
    assert rendering == "pixelated"


# -- controls -------------------------------------------------------------------------------------


def test_class_and_truncation_controls_appear_only_where_the_model_has_them(page: Any) -> None:
    open_page(page)
    expect(page.get_by_label("Class", exact=True)).to_be_visible()
    expect(page.get_by_label("Truncation")).to_be_visible()

    page.get_by_role("combobox", name="Model").select_option("plain")

    expect(page.locator("h1")).to_have_text("plain:1")
    expect(page.get_by_label("Class", exact=True)).to_be_hidden()
    expect(page.get_by_label("Truncation")).to_be_hidden()


def test_the_model_picker_is_hidden_where_there_is_one_model(page: Any, shared_server: Any) -> None:
    models = httpx.get(f"{shared_server.url}/v1/models").json()["models"]
    page.route("**/v1/models", lambda route: route.fulfill(json={"models": models[:1]}))

    open_page(page)

    expect(page.locator("#model-field")).to_be_hidden()


def test_the_class_picker_offers_each_seeds_own_class_and_every_class(page: Any) -> None:
    open_page(page)
    choices = page.locator("#class option").all_text_contents()

    assert choices == ["each seed's own", *(f"class {k}" for k in range(10))]


def test_pages_of_seeds_are_turned_and_end_where_seeds_end(page: Any) -> None:
    open_page(page, "/?seed=10")
    page.get_by_role("button", name="Next seeds").click()
    after_next = shown_seeds(page)
    page.get_by_role("button", name="Previous seeds").click()
    page.get_by_role("button", name="Previous seeds").click()
    after_previous = shown_seeds(page)
    page.get_by_label("First seed").fill(str(2**32 - 3))
    page.get_by_label("First seed").press("Enter")
    expect(page.locator(SHOWN)).to_have_count(3)

    assert after_next == list(range(34, 58))
    assert after_previous == list(range(24))
    assert shown_seeds(page) == list(range(2**32 - 3, 2**32))
    expect(page.get_by_role("button", name="Next seeds")).to_be_disabled()


def test_random_goes_to_another_first_seed(page: Any) -> None:
    open_page(page)

    page.get_by_role("button", name="Random").click()

    page.wait_for_url(lambda address: query(address)["seed"] != "0")
    assert shown_seeds(page)[0] == int(query(page.url)["seed"])


def test_a_bad_seed_is_told_in_a_sentence(page: Any) -> None:
    open_page(page)
    for text in ("4294967296", "-1", "1.5", "shoe", ""):
        page.get_by_label("First seed").fill(text)
        page.get_by_label("First seed").press("Enter")

        sentence = f"The first seed must be a whole number between 0 and 4294967295, got “{text}”."
        expect(status(page)).to_have_text(sentence)
        expect(page.get_by_label("First seed")).to_have_attribute("aria-invalid", "true")
        assert shown_seeds(page)[0] == 0


def test_a_good_seed_clears_the_sentence_of_a_bad_one(page: Any) -> None:
    open_page(page)
    page.get_by_label("First seed").fill("shoe")
    page.get_by_label("First seed").press("Enter")
    page.get_by_label("First seed").fill("7")
    page.get_by_label("First seed").press("Enter")

    expect(status(page)).to_have_text("Seeds 7 to 30")
    expect(page.get_by_label("First seed")).not_to_have_attribute("aria-invalid", "true")


def test_the_address_bar_holds_the_view(page: Any) -> None:
    open_page(page)
    page.get_by_label("First seed").fill("100")
    page.get_by_label("First seed").press("Enter")
    page.get_by_text("12", exact=True).first.click()
    page.get_by_label("Class", exact=True).select_option("class 3")
    page.get_by_label("Truncation").fill("0.7")
    page.wait_for_url(lambda address: "psi" in query(address))
    held = query(page.url)
    page.reload()
    expect(page.locator(SHOWN)).to_have_count(12)

    assert held == {"seed": "100", "n": "12", "class": "3", "psi": "0.7"}
    assert shown_seeds(page) == list(range(100, 112))
    expect(page.get_by_label("Class", exact=True)).to_have_value("3")
    expect(page.locator("#psi-value")).to_have_text("0.70")
    address = tile(page, 100).locator("img").get_attribute("src")
    assert query(f"http://host{address}") == {"class_idx": "3", "truncation_psi": "0.7"}


def test_an_address_with_bad_values_opens_with_a_sentence_for_each(page: Any) -> None:
    open_page(page, "/?model=shoes&seed=no&class=10&psi=9")

    expect(status(page)).to_contain_text("This server has no model “shoes”.")
    expect(status(page)).to_contain_text("The first seed must be a whole number")
    expect(status(page)).to_contain_text("The class must be a whole number between 0 and 9, got “10”.")
    expect(status(page)).to_contain_text("The truncation must be between 0 and 1.5, got “9”.")


# -- keyboard -------------------------------------------------------------------------------------


def test_the_grid_is_walked_with_arrow_keys_and_opened_with_enter(page: Any) -> None:
    open_page(page)
    columns = page.locator("#grid").evaluate(
        "grid => getComputedStyle(grid).gridTemplateColumns.split(' ').length"
    )
    page.get_by_role("button", name="Download zip").focus()
    page.keyboard.press("Tab")
    expect(tile(page, 0)).to_be_focused()

    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
    expect(tile(page, columns)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_be_visible()
    expect(page.locator("#detail-title")).to_have_text(f"Seed {columns}")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#detail-title")).to_have_text(f"Seed {columns + 1}")
    page.keyboard.press("Escape")

    expect(page.locator("#detail")).to_be_hidden()
    expect(tile(page, columns + 1)).to_be_focused()


def test_one_tile_is_in_the_tab_order(page: Any) -> None:
    open_page(page)
    tile(page, 0).focus()
    page.keyboard.press("End")

    assert page.locator('.tile[tabindex="0"]').count() == 1
    expect(tile(page, 23)).to_be_focused()


# -- one image ------------------------------------------------------------------------------------


def test_an_opened_image_tells_its_seed_class_digest_address_and_command(
    page: Any, shared_server: Any
) -> None:
    digest = httpx.get(f"{shared_server.url}/v1/models/toy").json()["digest"]
    address = f"{shared_server.url}/v1/models/toy@{digest[:12]}/42.png?class_idx=3"

    open_page(page, "/?seed=40&class=3")
    tile(page, 42).click()

    expect(page.locator("#detail-title")).to_have_text("Seed 42")
    expect(page.locator("#detail-class")).to_have_text("class 3")
    expect(page.locator("#detail-digest")).to_have_text(digest)
    expect(page.locator("#detail-address")).to_have_text(address)
    expect(page.locator("#detail-curl")).to_have_text(f"curl -o toy-seed0000000042.png '{address}'")
    assert page.locator("#detail-image").evaluate("image => image.src") == address


def test_an_images_address_is_copied(page: Any, shared_server: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=shared_server.url)
    open_page(page)
    tile(page, 3).click()

    page.get_by_role("button", name="Copy the address").click()

    expect(page.locator("#detail-note")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#detail-address").text_content()


def test_an_image_downloads_under_its_seeds_name(page: Any, shared_server: Any) -> None:
    expected = httpx.get(f"{shared_server.url}/v1/models/toy/7.png", follow_redirects=True).content
    open_page(page)
    tile(page, 7).click()

    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()

    assert download.value.suggested_filename == "toy-seed0000000007.png"
    assert Path(download.value.path()).read_bytes() == expected


# -- many images ----------------------------------------------------------------------------------


def test_the_grid_downloads_as_zip(page: Any, shared_server: Any) -> None:
    open_page(page, "/?seed=5&n=12&class=2", count=12)

    with page.expect_download() as download:
        page.get_by_role("button", name="Download zip").click()

    files = zipfile.ZipFile(download.value.path())
    address = f"{shared_server.url}/v1/models/toy/5.png"
    first = httpx.get(address, params={"class_idx": 2}, follow_redirects=True).content
    assert download.value.suggested_filename == "toy-seeds-5-16.zip"
    assert [name for name in files.namelist() if name.endswith(".png")] == [
        f"seed{seed:010d}.png" for seed in range(5, 17)
    ]
    assert files.read("seed0000000005.png") == first


def test_a_refused_download_is_told_in_the_services_sentence(page: Any) -> None:
    sentence = "max_rows is 8 rows a request, got 24"
    page.route("**/v1/samples", lambda route: route.fulfill(status=413, body=json.dumps({"error": sentence})))
    open_page(page)

    page.get_by_role("button", name="Download zip").click()

    expect(status(page)).to_have_text(sentence)


def test_a_walk_between_two_chosen_images_is_shown(page: Any, shared_server: Any) -> None:
    path = f"{shared_server.url}/v1/models/toy/walk"
    expected = httpx.get(path, params={"from": 3, "to": 6, "frames": 32, "class_idx": 1}).content
    open_page(page, "/?class=1")
    tile(page, 3).click()
    page.get_by_role("button", name="Walk from here").click()
    expect(status(page)).to_have_text("The walk starts at seed 3. Now choose its end.")
    tile(page, 6).click()
    page.get_by_role("button", name="Walk to here").click()

    expect(page.locator("#walk-title")).to_have_text("Walk from seed 3 to seed 6")
    expect(page.get_by_alt_text("toy walk from seed 3 to seed 6")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "toy-walk-3-6.webp"
    assert Path(download.value.path()).read_bytes() == expected


def test_the_ends_of_a_walk_are_chosen_by_key_and_kept_in_the_address(page: Any) -> None:
    open_page(page)
    tile(page, 2).focus()
    page.keyboard.press("a")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("b")

    expect(page.locator("#walk-title")).to_have_text("Walk from seed 2 to seed 3")
    assert query(page.url) == {"seed": "0", "from": "2", "to": "3"}


# -- small screens --------------------------------------------------------------------------------


def test_the_page_fits_a_phone(browser: Any, shared_server: Any) -> None:
    context = browser.new_context(
        base_url=shared_server.url, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    page = context.new_page()
    width = "document.documentElement.scrollWidth"
    small = """() => [...document.querySelectorAll("button, select, input:not([type=radio]), .choice, a")]
        .filter(one => one.offsetParent !== null && one.getBoundingClientRect().height < 40)
        .map(one => one.outerHTML)"""

    open_page(page, "/?seed=4294967200&from=4294967201&to=4294967202")
    grid_width, grid_small = page.evaluate(width), page.evaluate(small)
    page.locator(".tile").first.tap()
    expect(page.locator("#detail")).to_be_visible()
    panel_width = page.locator("#detail").evaluate("panel => panel.scrollWidth")
    panel_small = page.evaluate(small)
    context.close()

    assert (grid_width, panel_width) == (360, 360)
    assert (grid_small, panel_small) == ([], [])


# -- a service that wants a key ---------------------------------------------------------------------


@pytest.fixture
def keyed_page(browser: Any, serve: Any) -> Iterator[Any]:
    """A page of a server that wants the key `KEY`."""
    server = serve("--model", "toy", "--workers", "1", env={"GANSERVE_API_KEYS": KEY})
    context = browser.new_context(base_url=server.url, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(10_000)
    yield context.new_page()
    context.close()


def give_key(page: Any, key: str) -> None:
    page.get_by_label("Key, kept in this tab only").fill(key)
    page.get_by_role("button", name="Use this key").click()


def test_a_key_that_no_header_can_carry_is_refused_in_the_dialog_and_not_kept(keyed_page: Any) -> None:
    keyed_page.goto("/")
    give_key(keyed_page, "ключ-0123456789-0123")
    expect(keyed_page.locator("#key-note")).to_have_text(
        "A key has only letters A to Z, digits and . _ ~ + / = -; this one has others."
    )
    assert keyed_page.evaluate("Object.values(sessionStorage)") == []

    give_key(keyed_page, KEY)
    expect(keyed_page.locator(SHOWN)).to_have_count(24)


def test_a_key_is_asked_for_until_it_is_known_and_then_every_image_comes(keyed_page: Any) -> None:
    keyed_page.goto("/")
    expect(keyed_page.locator("#key-note")).to_have_text("This service wants an API key.")
    asked = keyed_page.locator("#key").bounding_box()
    field = keyed_page.locator("#key-value").bounding_box()
    give_key(keyed_page, "wrong-key-0123456789")
    expect(keyed_page.locator("#key-note")).to_have_text(
        "the API key must be one that is known here, got another."
    )
    give_key(keyed_page, KEY)
    expect(keyed_page.locator(SHOWN)).to_have_count(24)
    keyed_page.reload()
    expect(keyed_page.locator(SHOWN)).to_have_count(24)

    assert asked["height"] < 300  # as high as what it says, on a screen of 900
    assert field["height"] >= 40
    assert keyed_page.evaluate("Object.values(sessionStorage)") == [KEY]
    assert keyed_page.evaluate("Object.values(localStorage).length + document.cookie.length") == 0
    assert keyed_page.locator(".tile img").first.evaluate("image => image.src").startswith("blob:")


def test_with_a_key_images_walks_and_zips_can_be_saved_and_the_key_is_written_nowhere(
    keyed_page: Any,
) -> None:
    keyed_page.goto("/?seed=40&from=41&to=42")
    give_key(keyed_page, KEY)
    expect(keyed_page.locator(SHOWN)).to_have_count(24)
    with keyed_page.expect_download() as zipped:
        keyed_page.get_by_role("button", name="Download zip").click()
    keyed_page.get_by_role("button", name="Show walk").click()
    expect(keyed_page.locator('#walk-picture[data-state="shown"]')).to_be_visible()
    keyed_page.keyboard.press("Escape")
    tile(keyed_page, 42).click()
    with keyed_page.expect_download() as saved:
        keyed_page.locator("#detail-download").click()

    archive = zipfile.ZipFile(io.BytesIO(zipped.value.path().read_bytes()))
    assert len(archive.namelist()) >= 24
    assert Image.open(io.BytesIO(saved.value.path().read_bytes())).size == (12, 12)
    assert saved.value.suggested_filename == "toy-seed0000000042.png"
    assert '-H "Authorization: Bearer $KEY"' in keyed_page.locator("#detail-curl").text_content()
    assert KEY not in keyed_page.content() + keyed_page.url


def test_a_visitor_without_a_key_is_told_so(keyed_page: Any) -> None:
    keyed_page.goto("/")
    expect(keyed_page.locator("#key")).to_be_visible()
    keyed_page.keyboard.press("Escape")

    expect(status(keyed_page)).to_contain_text("an API key must be given")


def test_the_documents_show_every_route_under_a_policy_that_lets_in_no_other_script(page: Any) -> None:
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))

    answer = page.goto("/docs")

    expect(page.locator(".opblock").first).to_be_visible()
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self' 'sha256-" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
    assert not [text for text in told if "Content Security Policy" in text]
