"""The pages in a real Chromium, against the service as a process: what a person does and sees."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from sparse_encoder.store import Store
from tests.app.server import running
from tests.app.web.test_access import bearer, entry
from tests.tiny import SENTENCES, publish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KEY = "right"
MOST_BYTES = 20_000
PATIENCE = 120_000  #: milliseconds; nothing is asserted about them
HOSTILE = "<img src=x onerror=\"document.title='taken'\"> '\"><script>document.title='taken'</script> ${1} `x` 손해배상"


def chromium() -> str:
    """The test is left out without one, but not in CI."""
    if found := shutil.which("chromium"):
        return found
    message = "left out: needs chromium (apt-get install chromium)"
    if os.environ.get("CI"):
        pytest.fail(f"{message}, which CI must install")
    pytest.skip(message)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address. It has two versions and asks for a key."""
    root = tmp_path_factory.mktemp("playground")
    store = Store(str(root / "store"))
    store.publish(publish(root / "v1", "v1"), aliases=["stable"], by="test")
    store.publish(publish(root / "v2", "v2", bias_shift=0.1), aliases=["next"], by="test")
    flags = [
        "--port",
        "0",
        "--store",
        str(root / "store"),
        "--cache-dir",
        str(root / "cache"),
        "--encoder-threads",
        "1",
    ]
    flags += ["--max-body-bytes", str(MOST_BYTES), "--precision", "f32"]
    with running("-m", "app", *flags, SPARSE_ENCODER_API_KEYS=entry("search", KEY)) as server:
        yield server.url


class Opened:
    """A page, and what it did that no page of ours may do."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(address)

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and "the server responded with a status of" not in text:
            self.complaints.append(text)

    def give_key(self) -> None:
        self.page.locator("#key").fill(KEY)
        expect(self.page.locator(".word").first).to_be_visible(timeout=PATIENCE)

    def show(self, text: str) -> None:
        self.page.locator("#text").fill(text)
        start = text.split()[0][:20]
        expect(self.page.locator("#results .marked").first).to_contain_text(start, timeout=PATIENCE)


@pytest.fixture
def opened(browser: Browser, service: str) -> Iterator[Opened]:
    context = browser.new_context(locale="ko-KR", viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    made = Opened(context.new_page(), service)
    made.give_key()
    yield made
    context.close()
    assert made.complaints == []
    assert {url for url in made.requests if not url.startswith((service, "data:"))} == set()


def encoded(service: str, text: str, **options: object) -> dict[str, float]:
    body = {"texts": [text], **options}
    answer = httpx.post(f"{service}/encode", json=body, headers=bearer(KEY), timeout=PATIENCE / 1000)
    vector: dict[str, float] = answer.raise_for_status().json()[0]
    return vector


def explained(service: str, text: str) -> list[dict[str, Any]]:
    body = {"texts": [text]}
    answer = httpx.post(f"{service}/explain", json=body, headers=bearer(KEY), timeout=PATIENCE / 1000)
    words: list[dict[str, Any]] = answer.raise_for_status().json()["texts"][0]["words"]
    return words


def test_typing_gives_bars(opened: Opened, service: str) -> None:
    opened.show(SENTENCES[0])
    expected = encoded(service, SENTENCES[0])
    bars = opened.page.locator("#results .word")
    expect(bars).to_have_count(len(expected), timeout=PATIENCE)
    assert bars.locator(".name").all_text_contents() == list(expected)
    heaviest = list(expected.values())[:5]
    assert bars.locator(".weight").all_text_contents()[:5] == [f"{weight:.2f}" for weight in heaviest]
    lengths = "all => all.map((fill) => Number(fill.style.getPropertyValue('--length')))"
    shown = opened.page.eval_on_selector_all(".word .fill", lengths)
    assert shown[:5] == pytest.approx([weight / heaviest[0] for weight in heaviest])
    assert opened.page.locator("#results .marked").text_content() == SENTENCES[0]
    own = opened.page.locator("#results .word.own .name").all_text_contents()
    assert own == [word["word"] for word in explained(service, SENTENCES[0]) if word["own"]]
    opened.page.locator("#top-k").fill("3")
    expect(bars).to_have_count(3, timeout=PATIENCE)
    opened.page.locator("#input-type").select_option("query")
    opened.page.locator("#inference-free").check()
    few = encoded(service, SENTENCES[0], input_type="query", query_encoding="inference_free", top_k=3)
    expect(bars.locator(".name")).to_have_text(list(few), timeout=PATIENCE)


def test_a_word_and_what_brought_it_are_linked_both_ways(opened: Opened) -> None:
    opened.show(SENTENCES[0])
    page = opened.page
    page.locator(".word.related").first.hover()
    word = page.locator(".word.related .name").first.text_content()
    expect(page.locator(".why")).to_contain_text(str(word))
    assert page.locator(".token.lit").count() >= 1
    page.locator(".token").nth(1).hover()
    lit = page.locator(".word.lit").count()
    assert lit >= 1
    assert page.locator(".word.dim").count() == page.locator(".word").count() - lit
    expect(page.locator(".why")).to_contain_text(str(lit))
    page.mouse.move(0, 0)
    expect(page.locator(".lit")).to_have_count(0)


def test_the_keyboard_does_what_a_mouse_does(opened: Opened) -> None:
    opened.show(SENTENCES[0])
    page = opened.page
    page.locator("#tab-words").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#search")).to_be_visible()
    held: list[Route] = []
    page.route("**/explain", lambda route: held.append(route))
    with page.expect_request("**/explain", timeout=PATIENCE):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#words")).to_be_visible()
    page.locator(".token[tabindex='0']").focus()
    with page.expect_response("**/explain", timeout=PATIENCE):
        held[0].continue_()  # only now, so that its answer comes while the focus is in the words
    page.unroute("**/explain")
    expect(page.locator("body")).not_to_contain_class("busy")  # the answer was the same: the focus stays
    assert page.locator(".word.lit").count() >= 1
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.classList.contains('token')")
    page.keyboard.press("Tab")  # past all other tokens, to the words
    assert page.evaluate("document.activeElement.classList.contains('word')")
    first = page.locator(".why").text_content()
    page.keyboard.press("ArrowDown")
    assert page.locator(".why").text_content() != first
    assert page.locator(".word.lit").count() == 1
    page.keyboard.press("Escape")
    expect(page.locator(".lit")).to_have_count(0)


def test_documents_are_ranked_as_opensearch_would_and_each_says_why(opened: Opened, service: str) -> None:
    page = opened.page
    page.locator("#tab-search").click()
    for number, text in enumerate(SENTENCES[:3]):
        page.locator("#documents textarea").nth(number).fill(text)
    for query in ("임대차 계약 해지", "당뇨병 운동"):
        body = {"query": query, "texts": SENTENCES[:3]}
        answer = httpx.post(f"{service}/explain", json=body, headers=bearer(KEY), timeout=PATIENCE / 1000).json()
        scores = [score["score"] for score in answer["scores"]]
        order = sorted(range(3), key=lambda index: -scores[index])
        page.locator("#query").fill(query)
        shown = [f"{scores[index]:.{2 if scores[index] < 10 else 1}f}" for index in order]
        said = [f"점수 {score}" if float(score) else "0" for score in shown]
        expect(page.locator(".found .score")).to_have_text(said, timeout=PATIENCE)
        found = page.locator(".found")
        assert [found.nth(place).get_attribute("data-document") for place in range(3)] == [str(n + 1) for n in order]
        best = answer["scores"][order[0]]["words"]
        assert found.first.locator(".shared .name").all_text_contents() == [word["word"] for word in best[:6]]
        assert found.first.locator("mark").count() >= 1
    page.locator("#documents .remove").first.click()
    expect(page.locator(".found")).to_have_count(2, timeout=PATIENCE)


def test_two_versions_stand_side_by_side(opened: Opened, service: str) -> None:
    opened.show(SENTENCES[0])
    page = opened.page
    page.locator("#other").select_option("v2")
    expect(page.locator(".result h2")).to_have_text(["v1", "v2"], timeout=PATIENCE)
    for place, version in enumerate(("v1", "v2")):
        names = page.locator(".result").nth(place).locator(".name").all_text_contents()
        assert names == list(encoded(service, SENTENCES[0], version=version))


def test_errors_say_what_to_do(browser: Browser, service: str, opened: Opened) -> None:
    page = opened.page
    trouble = page.locator("#trouble")
    refusals = 0

    def refuse_once(route: Route) -> None:
        nonlocal refusals
        refusals += 1
        if refusals > 1:
            route.continue_()
            return
        body = json.dumps({"error": {"type": "overloaded", "message": "30 texts are in flight", "param": None}})
        route.fulfill(status=429, headers={"Retry-After": "1"}, content_type="application/json", body=body)

    page.route("**/explain", refuse_once)
    page.locator("#text").fill("손해배상 청구")
    expect(trouble).to_contain_text("1초 뒤에 다시", timeout=PATIENCE)
    expect(trouble).to_contain_text("30 texts are in flight")
    expect(trouble).to_be_hidden(timeout=PATIENCE)  # it asked again by itself
    expect(page.locator("#results .marked")).to_have_text("손해배상 청구")
    page.unroute("**/explain")

    page.locator("#text").fill("가" * MOST_BYTES)
    expect(trouble).to_contain_text("너무 깁니다", timeout=PATIENCE)
    expect(trouble).to_contain_text(str(MOST_BYTES))
    opened.show(" ".join(SENTENCES))
    expect(trouble).to_be_hidden(timeout=PATIENCE)
    cut = str(page.locator(".cut").text_content())
    assert " ".join(SENTENCES).endswith(cut)
    expect(page.locator(".note").first).to_contain_text(f"{len(cut)}자")

    page.locator("#options summary").click()  # closed: it opens by itself
    page.locator("#key").evaluate("key => { key.value = 'wrong'; key.dispatchEvent(new Event('input')); }")
    expect(trouble).to_contain_text("API 키", timeout=PATIENCE)
    expect(page.locator("#key")).to_be_focused()


def test_hostile_texts_and_tokens_stay_texts(opened: Opened) -> None:
    page = opened.page
    page.locator("#text").fill(HOSTILE)
    expect(page.locator("#results .marked")).to_have_text(HOSTILE, timeout=PATIENCE)

    def poison(route: Route) -> None:
        answer = route.fetch()
        body: dict[str, Any] = answer.json()
        body["version"] = HOSTILE
        for explanation in [*body["texts"], *([body["query"]] if body["query"] else [])]:
            for word in explanation["words"]:
                word["word"] = HOSTILE
                word["related"] = [{"id": 1, "word": HOSTILE, "logit": 1.0}]
            for token in explanation["tokens"]:
                token["token"] = HOSTILE
            explanation["left_out"]["unwritable"] = [{"id": 1, "word": HOSTILE, "weight": 1.0}]
        route.fulfill(response=answer, json=body)

    page.route("**/explain", poison)
    page.locator("#text").fill("손해배상")
    expect(page.locator("#results .name").first).to_have_text(HOSTILE, timeout=PATIENCE)
    page.locator(".word.related").first.hover()
    expect(page.locator(".why")).to_contain_text("onerror")
    page.locator("#tab-search").click()
    page.locator("#query").fill(HOSTILE)
    expect(page.locator(".found").first).to_be_visible(timeout=PATIENCE)
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "Sparse encoder"


def test_texts_are_neither_stored_nor_put_into_the_address(opened: Opened, service: str) -> None:
    secret = "비밀스러운"
    opened.show(f"{secret} 손해배상")
    page = opened.page
    page.locator("#tab-search").click()
    page.locator("#query").fill(secret)
    expect(page.locator(".found").first).to_be_visible(timeout=PATIENCE)
    assert page.url == f"{service}/"
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert json.loads(kept) == [{"language": "ko", "theme": "Auto"}, {}, ""]
    assert not [url for url in opened.requests if "%EB%B9%84" in url or secret in url]
    assert page.evaluate("indexedDB.databases ? indexedDB.databases().then((all) => all.length) : 0") == 0


def test_what_is_copied_works_where_it_is_pasted(opened: Opened, service: str) -> None:
    text = "임대차 계약의 '해지' \"방법\""
    opened.show(text)
    page = opened.page
    page.locator("#input-type").select_option("query")
    expected = encoded(service, text, input_type="query")
    expect(page.locator("#results .word")).to_have_count(len(expected), timeout=PATIENCE)

    def copied(name: str) -> str:
        page.get_by_role("button", name=name, exact=True).click()
        expect(page.locator(".said")).to_have_text("복사했습니다")
        return str(page.evaluate("navigator.clipboard.readText()"))

    query = json.loads(copied("OpenSearch 질의"))
    assert query == {"query": {"neural_sparse": {"text_sparse": {"query_tokens": expected}}}}
    assert json.loads(copied("JSON")) == expected
    command = copied("curl")
    assert KEY not in command.split()
    done = subprocess.run(
        ["bash", "-c", command], env={**os.environ, "API_KEY": KEY}, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [expected]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nobody_is_left_out(browser: Browser, service: str, scheme: Any, width: int) -> None:
    """No serious finding of axe, nothing wider than the screen, in both languages."""
    context = browser.new_context(
        locale="en-US", color_scheme=scheme, viewport={"width": width, "height": 800}, reduced_motion="reduce"
    )
    opened = Opened(context.new_page(), service)
    page = opened.page
    expect(page.locator("#trouble")).to_contain_text("API key", timeout=PATIENCE)
    opened.give_key()
    for tab, result in (("words", ".word"), ("search", ".found")):
        page.locator(f"#tab-{tab}").click()
        expect(page.locator(result).first).to_be_visible(timeout=PATIENCE)
        findings = Axe().run(page).response["violations"]
        serious = [
            (finding["id"], [node["html"] for node in finding["nodes"]][:3])
            for finding in findings
            if finding["impact"] in ("serious", "critical")
        ]
        assert serious == []
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    page.locator("#language").click()
    expect(page.locator("h1")).to_have_text("글에서 검색 낱말까지")
    assert page.evaluate("document.documentElement.lang") == "ko"
    page.locator("#theme").click()
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    context.close()
    assert opened.complaints == []


def test_an_example_of_the_documentation_works_when_pressed_in_a_closed_network(browser: Browser, service: str) -> None:
    context = browser.new_context(extra_http_headers=bearer(KEY))
    opened = Opened(context.new_page(), f"{service}/docs")
    page = opened.page
    for path in ("/encode", "/explain"):
        block = page.locator(f".opblock:has([data-path='{path}'])").first
        block.locator(".opblock-summary-control").click()
        block.locator(".execute").click()
        live = block.locator(".live-responses-table tbody .response-col_status").first
        expect(live).to_contain_text("200", timeout=PATIENCE)
    assert {url for url in opened.requests if not url.startswith((service, "data:", "blob:"))} == set()
    context.close()
    assert opened.complaints == []
