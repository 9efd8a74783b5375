"""The playground in a real Chromium: every control, states, hostile documents, keyboard, a small screen."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from gircse_rag import Embedder
from gircse_rag.errors import StoreError
from gircse_rag.qdrant import Document, ingest, open_client
from gircse_rag.serving.service import Service
from gircse_rag.serving.settings import Settings
from tests.http_server import serve
from tests.unit.serving.conftest import MODEL

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::gircse_rag.errors.GircseWarning"),  # as in `gircse serve`
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium (Debian: apt-get install chromium)"),
]
expect = playwright.expect

HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'><b>bold</b> &amp; 'quotes'"
LONG = "the way of the world. " * 20_000
DOCUMENTS = [
    *[Document(f"{kind} {n}", f"the {kind} number {n}", {"kind": kind}) for kind in ("cat", "dog") for n in range(6)],
    Document("<i>hostile</i>", HOSTILE, {"<u>key</u>": "<s>value</s>", "kind": "<img src=x>"}),
    Document("wörld/ü", "the way of the world, in \u202eother\u202c words 世界", {"kind": "dog"}),
]
Start = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # Chromium refuses its sandbox as root, as in containers
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield opened
        opened.close()


@pytest.fixture
def start(embedder: Embedder, browser: Any, tmp_path: Path) -> Iterator[Start]:
    """Start a server over `documents` and open its page; a fault in the console, also of the policy, fails the test."""
    faults: list[str] = []
    with closing(open_client(tmp_path / "store")) as client, ExitStack() as stack:

        def begin(documents: Any = DOCUMENTS, width: int = 1280, key: str | None = None, scheme: str = "light") -> Any:
            if documents is not None:
                ingest(documents, collection="notes", embedder=embedder, client=client)
            service = Service(embedder, Settings(model=MODEL, api_key=key), client=client, collection="notes")
            url = stack.enter_context(serve(service))
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            stack.callback(page.close)  # before the server, which would wait for the page
            page.set_default_timeout(20_000)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("console", lambda message: faults.extend(policy_faults(message.text)))
            page.goto(url)
            return page

        yield begin
    assert not faults


def policy_faults(text: str) -> list[str]:
    return [text] if "Content Security Policy" in text else []


def search(page: Any, question: str = "the cat number 3") -> None:
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#status")).to_contain_text("rankings in")


def test_a_search_with_three_instructions(start: Start) -> None:
    page = start()
    expect(page.locator("#collection")).to_have_value("notes")
    page.get_by_role("button", name="Compare with another instruction").click()
    page.get_by_role("textbox", name="B", exact=True).fill("find dogs")
    page.get_by_role("button", name="Compare with another instruction").click()
    page.get_by_role("textbox", name="C", exact=True).fill("find words")
    expect(page.locator("#add-instruction")).to_be_hidden()
    page.get_by_label("Passages", exact=True).fill("5")
    page.get_by_label("Steps", exact=True).fill("7")
    page.locator("#mode").select_option("dense")
    search(page)
    for column in range(3):
        expect(page.locator(f"#hits-{column} > li")).to_have_count(5)
    expect(page.get_by_role("slider")).to_have_attribute("max", "7")
    ids = [
        [each.get_attribute("data-passage") for each in page.locator(f"#hits-{column} > li").all()] for column in (0, 1)
    ]
    shared = len(set(ids[0]) & set(ids[1]))
    assert page.locator("#lines path").count() >= shared > 0
    page.get_by_role("button", name="Remove instruction B").click()
    expect(page.get_by_role("textbox", name="B", exact=True)).to_have_value("find words")
    search(page)
    expect(page.locator(".column")).to_have_count(2)


def test_the_slider_shows_the_ranking_of_each_step(start: Start) -> None:
    page = start()
    with page.expect_response("**/v1/playground/search") as answer:
        search(page)
    found = answer.value.json()
    slider = page.get_by_role("slider")
    slider.focus()
    slider.press("Home")
    for step, hits in enumerate(found["steps"], start=1):
        expect(page.locator("#step-value")).to_have_text(f"K = {step}")
        cards = page.locator("#hits-0 > li").all()
        assert [card.get_attribute("data-passage") for card in cards] == [hit["id"] for hit in hits]
        assert [card.locator(".score").text_content() for card in cards] == [f"{hit['score']:.3f}" for hit in hits]
        slider.press("ArrowRight")
    expect(page.locator("#times")).to_contain_text("in one pass of")
    expect(page.locator("#settling-chart canvas")).to_be_visible()
    expect(page.locator("#settling-text")).to_contain_text(re.compile("The first passage .* The order of all 8 "))
    page.locator("#settling-chart .u-over").click(position={"x": 2, "y": 20})
    expect(page.locator("#step-value")).to_have_text("K = 1")


def test_soft_tokens_are_a_table_per_instruction(start: Start) -> None:
    page = start()
    search(page)
    page.get_by_role("tab", name="Soft tokens").click()
    expect(page.locator("#tokens table")).to_have_count(1)
    expect(page.locator("#tokens tbody tr")).to_have_count(10)
    expect(page.locator("#tokens tbody tr").first.locator("td")).to_have_count(8)
    assert (
        page.locator("#tokens td").first.evaluate("cell => getComputedStyle(cell).backgroundColor")
        != "rgba(0, 0, 0, 0)"
    )


def test_the_map(start: Start) -> None:
    page = start()
    page.get_by_role("tab", name="Map").click()
    expect(page.locator("#map-status")).to_contain_text("14 passages; the plane shows")
    expect(page.locator("#map-chart canvas")).to_be_visible()
    expect(page.locator("#zoom")).to_be_disabled()
    expect(page.locator("#colour")).to_have_value("kind")
    expect(page.locator("#map-legend li")).to_have_text(["dog", "cat", "<img src=x>"])
    search(page)
    expect(page.locator("#map-legend")).to_contain_text("path of A, z1 to z10")
    before = page.locator("#map-chart canvas").evaluate("canvas => canvas.toDataURL()")
    page.get_by_role("button", name="Zoom to the path").click()
    assert page.locator("#map-chart canvas").evaluate("canvas => canvas.toDataURL()") != before
    page.get_by_label("Colour").select_option("")
    expect(page.locator("#map-legend li")).to_have_count(2)
    page.locator("#map-chart").press("ArrowRight")
    best = page.locator("#hits-0 .source").first.text_content()
    expect(page.locator("#map-point")).to_contain_text(f"{best}: ")
    page.get_by_role("button", name="Reload").click()
    expect(page.locator("#map-status")).to_contain_text("14 passages")


def test_compare_instructions_and_copy_the_code(start: Start) -> None:
    page = start()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("tab", name="Compare").click()
    page.locator("#pairs").fill("the cat number 1")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#compare-status")).to_contain_text('line 1 is not "question | document id"')
    page.locator("#pairs").fill("the cat number 1 | cat 1\n\nthe dog number 2 | dog 2")
    page.locator("#wordings").fill('find "texts"\nfind dogs')
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#scores tbody tr")).to_have_count(3)
    expect(page.locator("#scores caption")).to_contain_text("2 questions")
    expect(page.locator("#scores tbody th").first).to_contain_text("the bare question")
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#copied")).to_have_text("Copied.")
    code = page.evaluate("navigator.clipboard.readText()")
    compile(code, "copied", "exec")
    assert 'collection="notes"' in code and "instruction=" in code
    page.locator("#pairs").fill("the cat number 1 | nobody")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#unfound")).to_be_visible()
    expect(page.locator(".badge")).to_have_count(0)


def test_html_and_script_in_documents_stay_text(start: Start) -> None:
    page = start()
    search(page, "bold quotes")
    card = page.locator("#hits-0 > li", has_text="<i>hostile</i>")
    expect(card.locator(".excerpt")).to_contain_text("<script>")
    card.get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("#passage-title")).to_have_text("<i>hostile</i>")
    expect(dialog.locator("#passage-text")).to_have_text(HOSTILE)
    expect(dialog.locator("#passage-metadata")).to_contain_text("<u>key</u>")
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    page.get_by_role("tab", name="Map").click()
    expect(page.locator("#map-legend")).to_contain_text("<img src=x>")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main script, main i i, main u, main s").count() == 0


def test_a_very_long_document_keeps_its_place(start: Start) -> None:
    page = start([Document("long", LONG), Document("word", "x" * 5_000), Document("short", "the way")], width=375)
    search(page, "the way of the world")
    heights = page.locator(".hit").evaluate_all("hits => hits.map(hit => hit.offsetHeight)")
    assert len(heights) == 8 and set(heights) == {96}
    page.locator(".hit").first.click()
    box = page.get_by_role("dialog").bounding_box()
    assert box["width"] <= 375 and box["height"] <= 800
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_no_collection_then_an_empty_one_then_documents(start: Start) -> None:
    page = start(None)
    expect(page.locator("#notice")).to_contain_text("There is no collection notes yet.")
    expect(page.get_by_role("button", name="Search")).to_be_disabled()
    body = {"documents": [{"id": "bad", "text": ""}]}
    origin = page.evaluate("location.origin")
    page.request.post(f"{origin}/v1/collections/notes/documents", data=body)
    page.get_by_role("button", name="Look again").click()
    expect(page.locator("#notice")).to_contain_text("The collection notes is empty.")
    search(page)
    expect(page.locator("#rankings-empty")).to_have_text("The collection is empty.")
    page.get_by_role("tab", name="Map").click()
    expect(page.locator("#map-status")).to_have_text("The collection is empty.")
    page.request.post(
        f"{origin}/v1/collections/notes/documents", data={"documents": [{"id": "cats", "text": "A cat purrs."}]}
    )
    page.get_by_role("button", name="Look again").click()
    expect(page.locator("#notice")).to_be_hidden()
    page.get_by_role("tab", name="Rankings").click()
    search(page)
    expect(page.locator("#hits-0 .source")).to_have_text(["cats"])


def test_a_server_error_is_said_and_the_next_search_works(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    page = start()
    from gircse_rag.serving import playground_api

    def fail(*_: Any, **__: Any) -> Any:
        raise StoreError("the store is down; start it")

    with monkeypatch.context() as patch:
        patch.setattr(playground_api, "search_trajectory", fail)
        page.get_by_label("Question", exact=True).fill("a question")
        page.get_by_role("button", name="Search").click()
        expect(page.get_by_role("alert")).to_contain_text("The store is down; start it")
    search(page)
    expect(page.get_by_role("alert")).to_be_hidden()
    page.get_by_label("Question", exact=True).fill("word " * 600)
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("alert")).to_contain_text("shorten it")


def test_a_server_that_is_gone_is_said(start: Start) -> None:
    page = start()
    expect(page.locator("#instruction-0")).to_be_visible()
    page.context.set_offline(True)
    page.get_by_label("Question", exact=True).fill("a question")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")


def test_the_key_is_asked_for_and_not_stored(start: Start) -> None:
    page = start(key="s3cret")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Key").fill("wrong")
    dialog.get_by_role("button", name="Continue").click()
    expect(dialog).to_contain_text("refused this key")
    dialog.get_by_label("Key").fill("s3cret")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    search(page)
    stored = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie, location.href]")
    assert stored[:3] == [0, 0, ""] and "s3cret" not in stored[3]
    page.reload()
    expect(page.get_by_role("dialog")).to_be_visible()


def test_with_the_keyboard_only(start: Start) -> None:
    page = start()
    expect(page.locator("#instruction-0")).to_be_visible()

    def tab_to(selector: str) -> None:
        for _ in range(60):
            if page.evaluate(f"document.activeElement.matches({selector!r})"):
                style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert style != "none", f"{selector} shows no focus"
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"the keyboard does not reach {selector}")

    tab_to("#question")
    page.keyboard.type("the cat number 3")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("rankings in")
    tab_to("#step")
    page.keyboard.press("End")
    expect(page.locator("#step-value")).to_have_text("K = 10")
    tab_to(".hit")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Shift+Tab")
    page.locator("#tab-rankings").focus()
    for name in ("tokens", "map", "compare", "rankings"):
        page.keyboard.press("ArrowRight")
        expect(page.locator(f"#tab-{name}")).to_be_focused()
        expect(page.locator(f"#panel-{name}")).to_be_visible()
    page.keyboard.press("End")
    expect(page.locator("#panel-compare")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_375_pixels_and_both_colour_schemes(start: Start, scheme: str) -> None:
    page = start(width=375, scheme=scheme)
    page.get_by_role("button", name="Compare with another instruction").click()
    page.get_by_role("textbox", name="B", exact=True).fill("find " + "very long words " * 9)
    search(page)
    for name in ("Soft tokens", "Map", "Compare", "Rankings"):
        page.get_by_role("tab", name=name).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, f"{name} is too wide"
    expect(page.locator("#lines")).to_be_hidden()
    luminance = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (luminance < 64) == (scheme == "dark")
