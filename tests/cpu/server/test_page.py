"""The chat page in a real browser, before real servers; a scripted one says what no model can be made to say."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from paiton_runtime.server.pages import _load_page
from tests.cpu.server.browser import CHROMIUM, DRIVER, Browser
from tests.cpu.server.conftest import StartServer
from tests.cpu.server.server_process import Server

EVIL = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>&amp; \U0001f642"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests: it takes a second to start."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium or chromedriver is missing (apt-get install chromium chromium-driver)")
    started = Browser()
    started.resize(1400, 900)
    yield started
    started.close()


class Scripted:
    """The page, and an interface whose answers a test writes: events of a stream, or a status and a body."""

    def __init__(self) -> None:
        self.answers: list[list[object] | tuple[int, object]] = []
        self.requests: list[dict[str, Any]] = []
        scripted = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def send(self, status: int, headers: tuple[tuple[str, str], ...], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                if self.path == "/":
                    self.send(200, *_load_page())
                else:
                    boot = {"state": "ready", "model": EVIL, "device": EVIL, "stages": [], "running": [], "now": 1.0}
                    self.send(200, (("content-type", "application/json"),), json.dumps(boot).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                scripted.requests.append({"authorization": self.headers["authorization"], **body})
                answer = scripted.answers.pop(0)
                if isinstance(answer, tuple):
                    kind = "application/json"
                    self.send(answer[0], (("content-type", kind),), json.dumps(answer[1]).encode())
                else:
                    data = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in answer)
                    self.send(200, (("content-type", "text/event-stream"),), data)

            def log_message(self, *words: object) -> None:
                del words

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Ends the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A scripted server for one test."""
    server = Scripted()
    yield server
    server.close()


def piece(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


def say(browser: Browser, text: str) -> None:
    browser.wait_for_status("Ready")
    browser.element("prompt").send_keys(text + Keys.ENTER)


def set_field(browser: Browser, name: str, value: object) -> None:
    (field,) = browser.all(f"[name={name}]")
    field.clear()
    field.send_keys(str(value))


def answered(browser: Browser, count: int = 1) -> Callable[[], bool]:
    """A condition: there are so many answers, and the last one is complete."""
    return lambda: len(browser.all(".assistant .stats")) == count and not browser.all("[aria-busy]")


def press_stop(browser: Browser) -> None:
    browser.element("send").click()


def press_escape(browser: Browser) -> None:
    browser.element("prompt").send_keys(Keys.ESCAPE)


def test_page_is_self_contained_and_its_policy_fits(server: Server) -> None:
    answer = server.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    text = answer.body.decode()
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)
    assert "innerHTML" not in text
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    for element in ("style", "script"):
        (body,) = re.findall(f"<{element}>(.*?)</{element}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert policy[f"{element}-src"] == f"'sha256-{digest}'"


def test_an_answer_streams_and_is_what_the_interface_says(browser: Browser, smollm2_server: Server) -> None:
    question = "Name three colours."
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 24}
    expected = smollm2_server.post("/v1/chat/completions", body).json()
    browser.open(smollm2_server.url)
    set_field(browser, "temperature", 0)
    set_field(browser, "max_tokens", 24)
    say(browser, question)
    seen: set[str] = set()
    done = answered(browser)

    def complete() -> bool:
        seen.update(browser.texts(".assistant .text"))
        return done()

    browser.wait(complete)
    assert browser.texts(".user .text") == [question]
    (text,) = browser.texts(".assistant .text")
    assert text == expected["choices"][0]["message"]["content"]
    assert len(seen) > 2  # it grew
    (stats,) = browser.texts(".stats")
    usage = expected["usage"]
    assert f"{usage['completion_tokens']} tokens" in stats
    assert f"prompt of {usage['prompt_tokens']}" in stats
    assert re.search(r"first token [\d.]+ m?s · [\d.]+ tokens/s", stats)
    assert browser.console() == []


def test_the_conversation_goes_on_and_a_new_one_begins(browser: Browser, scripted: Scripted) -> None:
    browser.open(scripted.url)
    set_field(browser, "system", "Be brief.")
    set_field(browser, "seed", 7)
    for count in (1, 2):
        scripted.answers.append([piece("answer "), piece(str(count), "stop")])
        say(browser, f"question {count}")
        browser.wait(answered(browser, count))
    assert browser.texts(".assistant .text") == ["answer 1", "answer 2"]
    roles = [(message["role"], message["content"]) for message in scripted.requests[1]["messages"]]
    assert roles == [
        ("system", "Be brief."),
        ("user", "question 1"),
        ("assistant", "answer 1"),
        ("user", "question 2"),
    ]
    assert scripted.requests[1]["seed"] == 7
    assert scripted.requests[1]["temperature"] == 0.7
    assert "max_tokens" not in scripted.requests[1]
    browser.element("fresh").click()
    assert browser.all("article") == []
    assert browser.element("welcome").is_displayed()
    scripted.answers.append([piece("again", "stop")])
    say(browser, "question 3")
    browser.wait(lambda: browser.texts(".assistant .text") == ["again"])
    assert [message["content"] for message in scripted.requests[2]["messages"]] == ["Be brief.", "question 3"]


def test_whatever_anybody_says_is_text(browser: Browser, scripted: Scripted) -> None:
    browser.open(scripted.url)
    scripted.answers.append([piece(EVIL), piece(EVIL, "stop")])
    say(browser, EVIL.replace("\U0001f642", ""))  # which the driver cannot type
    browser.wait(lambda: browser.texts(".assistant .text") == [EVIL + EVIL])
    scripted.answers.append((400, {"error": {"message": EVIL}}))
    say(browser, "more")
    browser.wait(lambda: browser.texts(".error p") == [EVIL])
    assert browser.texts("h1") == [EVIL]
    assert browser.driver.title == EVIL
    assert browser.all("img, main script") == []


def test_an_answer_can_be_stopped(browser: Browser, smollm2_server: Server) -> None:
    browser.open(smollm2_server.url)
    set_field(browser, "max_tokens", 4000)
    set_field(browser, "temperature", 0)  # this model's drawn answers are short at times
    for count, stop in enumerate((press_stop, press_escape), 1):
        say(browser, "Write a long story about a dog that travels around the world.")
        browser.wait(lambda: len("".join(browser.texts("[aria-busy] .text"))) > 20)
        assert browser.element("send").text == "Stop"
        stop(browser)
        browser.wait(answered(browser, count))
        assert browser.texts(".stats")[-1].endswith("stopped")
        assert len(browser.texts(".assistant .text")[-1]) > 20
        browser.wait(lambda: re.search(rb"num_requests_running{.*} 0.0\n", smollm2_server.get("/metrics").body))
    assert browser.element("send").text == "Send"


def test_a_refusal_can_be_tried_again(browser: Browser, scripted: Scripted) -> None:
    browser.open(scripted.url)
    scripted.answers += [(429, {"error": {"message": "too many requests"}}), [piece("at last", "stop")]]
    say(browser, "hello")
    browser.wait(lambda: browser.texts(".error p") == ["too many requests"])
    (again,) = browser.all(".error button")
    again.click()
    browser.wait(lambda: browser.texts(".assistant .text") == ["at last"])
    assert browser.all(".error") == []
    assert scripted.requests[0]["messages"] == scripted.requests[1]["messages"]


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([piece("half")], "The answer broke off."),
        ([piece("half"), {"error": {"message": "the engine has failed"}}], "the engine has failed"),
    ],
)
def test_an_answer_that_breaks_off_says_so(
    browser: Browser, scripted: Scripted, events: list[object], message: str
) -> None:
    browser.open(scripted.url)
    scripted.answers += [events, [piece("whole", "stop")]]
    say(browser, "hello")
    browser.wait(lambda: browser.texts(".error p") == [message])
    assert browser.texts(".assistant .text") == ["half"]
    (again,) = browser.all(".error button")
    again.click()
    browser.wait(lambda: browser.texts(".assistant .text") == ["whole"])
    assert scripted.requests[1]["messages"] == [{"role": "user", "content": "hello"}]


def test_a_boot_is_watched_until_it_is_done(
    browser: Browser, start_server: StartServer, tiny_bundle: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    server = start_server(tiny_bundle, hold=(gate, "tokenizer"))
    browser.open(server.url)
    browser.wait_for_status("Booting")
    browser.element("prompt").send_keys("written meanwhile")
    assert not browser.element("send").is_enabled()
    gate.touch()
    browser.wait_for_status("Ready")
    assert browser.element("send").is_enabled()
    boot = server.get("/boot").json()
    rows = {row["stage"]: row for row in boot["stages"]}
    total = rows.pop("total")["end"]
    assert browser.element("boot-time").text in (f"{total:.2f} s", f"{total * 1000:.0f} ms")
    assert browser.element("model").text == boot["model"]
    assert set(browser.texts("#boot li span")) == set(rows)
    (track, *_) = browser.all("#boot .track")
    width = track.size["width"]
    bars = dict(zip(browser.texts("#boot li span"), browser.all("#boot .bar"), strict=True))
    for stage, row in rows.items():
        left = bars[stage].location["x"] - track.location["x"]
        assert left == pytest.approx(width * min(0.99, row["start"] / total), abs=2)
        assert bars[stage].size["width"] == pytest.approx(width * (row["end"] - row["start"]) / total, abs=3)


def test_a_server_that_goes_is_missed(browser: Browser, start_server: StartServer, tiny_bundle: Path) -> None:
    server = start_server(tiny_bundle).wait_until_ready()
    browser.open(server.url)
    browser.wait_for_status("Ready")
    server.close()
    browser.element("prompt").send_keys("hello" + Keys.ENTER)
    browser.wait_for_status("No connection")
    browser.wait(lambda: browser.texts(".error p") == ["The server cannot be reached."])
    assert not browser.element("send").is_enabled()


def test_a_key_is_asked_for_and_sent(browser: Browser, start_server: StartServer, tiny_bundle: Path) -> None:
    server = start_server(tiny_bundle, "--api-key", "s3cret").wait_until_ready()
    browser.open(server.url)
    set_field(browser, "max_tokens", 3)
    say(browser, "hello")
    browser.wait(lambda: "API key" in "".join(browser.texts(".error p")))
    focused = browser.driver.switch_to.active_element
    assert focused.get_attribute("id") == "key"
    focused.send_keys("s3cret")
    (again,) = browser.all(".error button")
    again.click()
    browser.wait(answered(browser))
    assert browser.all(".error") == []


@pytest.mark.parametrize("width", [400, 768, 1400])
def test_everything_fits_the_width(browser: Browser, scripted: Scripted, width: int) -> None:
    browser.resize(width, 800)
    try:
        browser.open(scripted.url)
        scripted.answers.append([piece("word " * 300 + "x" * 300, "stop")])
        say(browser, "hello " * 40)
        browser.wait(answered(browser))
        assert browser.script("return document.documentElement.scrollWidth") == width
        boxes = [browser.element(name).rect for name in ("model", "log", "composer")]
        for above, below in pairwise(boxes):
            assert above["y"] + above["height"] <= below["y"] + 1
        assert boxes[-1]["y"] + boxes[-1]["height"] <= 801
        (last,) = browser.all(".stats")
        assert last.rect["y"] + last.rect["height"] <= boxes[-1]["y"]  # it scrolled along
        if width < 960:
            assert not browser.element("key").is_displayed()
            browser.element("more").click()
        assert browser.element("key").is_displayed()
        assert browser.script("return document.documentElement.scrollWidth") == width
    finally:
        browser.resize(1400, 900)


def test_the_keyboard_is_enough(browser: Browser, scripted: Scripted) -> None:
    browser.resize(400, 800)
    try:
        browser.open(scripted.url)
        browser.wait_for_status("Ready")
        assert browser.driver.switch_to.active_element.get_attribute("id") == "prompt"
        scripted.answers.append([piece("ok", "stop")])
        prompt = browser.element("prompt")
        prompt.send_keys("first line" + Keys.SHIFT + Keys.ENTER + Keys.NULL + "second line" + Keys.ENTER)
        browser.wait(lambda: browser.texts(".assistant .text") == ["ok"])
        assert browser.texts(".user .text") == ["first line\nsecond line"]
        reached = []
        browser.script("document.activeElement.blur()")
        for _ in range(5):
            focused = browser.driver.switch_to.active_element
            focused.send_keys(Keys.TAB)
            reached.append(browser.driver.switch_to.active_element.get_attribute("id"))
        assert {"fresh", "more", "log", "prompt"} <= set(reached)
        browser.element("more").send_keys(Keys.ENTER)
        assert browser.element("key").is_displayed()
        browser.element("key").send_keys(Keys.ESCAPE)
        assert not browser.element("key").is_displayed()
    finally:
        browser.resize(1400, 900)


def test_colours_follow_the_preference_and_can_be_read(browser: Browser, scripted: Scripted) -> None:
    """Contrast of at least 4.5, as WCAG 2 asks of text."""
    code = """
      const channels = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
        .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
      const light = (text) => channels(text).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
      const page = getComputedStyle(document.body).backgroundColor;
      const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      const names = ["model", "status", "boot-about", "keys", "prompt"];
      return [light(page), ...names.map((id) => ratio(
        light(page), light(getComputedStyle(document.getElementById(id)).color)))];
    """
    pages = {}
    try:
        for scheme in ("light", "dark"):
            browser.prefer(scheme)
            browser.open(scripted.url)
            browser.wait_for_status("Ready")
            pages[scheme], *ratios = browser.script(code)
            assert min(ratios) >= 4.5
    finally:
        browser.prefer("light")
    assert pages["dark"] < 0.1
    assert pages["light"] > 0.8
