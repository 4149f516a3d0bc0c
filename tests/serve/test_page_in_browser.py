"""The page of the server in a browser: each text is the server's own, and nothing comes from another host."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmcli.explain import VocabEntry
from llmcli.render.text import token_label
from tests.serve.conftest import post, server

TOKENS = "[...document.querySelectorAll('.reply:last-child .tokens .token')]"
IDLE = "body:not(.running) .reply:last-child .tools button >> nth=0"
KEY = "a-key-of-this-test"


@pytest.fixture(scope="module")
def prose(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server that needs a key, with a model that has no chat template, and with another one that has."""
    path = tmp_path_factory.mktemp("prose")
    (path / "key").write_text(KEY)
    shutil.copytree(folder, path / "base", ignore=shutil.ignore_patterns("chat_template.jinja"))
    options = ("--models", str(folder), "--api-key-file", str(path / "key"), "--threads", "1")
    with server("-m", str(path / "base"), *options) as running:
        yield running


@pytest.fixture
def opened(browser: Any, url: str) -> Iterator[Any]:
    yield from open_page(browser, url)


def open_page(browser: Any, url: str, *expected: str) -> Iterator[Any]:
    """The page in a window of its own. Afterwards it has reported no errors but those with a text of ``expected``."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(300_000)  # machines differ
    messages, requests = list[str](), list[str]()
    context.on("console", lambda message: messages.append(message.text))
    context.on("weberror", lambda error: messages.append(str(error.error)))
    context.on("request", lambda request: requests.append(request.url))
    window = context.new_page()
    window.on("dialog", lambda dialog: dialog.accept())
    window.goto(url)
    yield window
    assert [message for message in messages if not any(text in message for text in expected)] == []
    assert [each for each in requests if not each.startswith(f"{url}/")] == []
    context.close()


def settings(window: Any, **values: float) -> None:
    window.click("#show-settings")
    for name, value in values.items():
        window.fill(f"#setting-{name}", str(value))
    window.click("#show-settings")


def send(window: Any, text: str) -> None:
    window.fill("#draft", text)
    window.press("#draft", "Enter")
    window.wait_for_selector(IDLE)


def reply(window: Any) -> str:
    """The text of the last reply."""
    text: str = window.evaluate(f"{TOKENS}.map((each) => each.textContent).join('')")
    return text


def seed(window: Any) -> int:
    return int(window.locator(".reply:last-child .seed").inner_text().removeprefix("Seed "))


def prompt_of(url: str, messages: list[dict[str, str]]) -> dict[str, Any]:
    status, found = post(f"{url}/tokenize", {"messages": messages})
    assert status == 200, found
    return found


def completion(url: str, found: dict[str, Any], more: list[int], **options: Any) -> dict[str, Any]:
    """The server's own text after a conversation and the tokens ``more``."""
    body = {"prompt": [*found["tokens"], *more], "stop_token_ids": found["stop_token_ids"], "logprobs": 10, **options}
    status, answer = post(f"{url}/v1/completions", body)
    assert status == 200, answer
    choice: dict[str, Any] = answer["choices"][0]
    return choice


def test_a_conversation(opened: Any, url: str) -> None:
    settings(opened, max_tokens=12, seed=5, temperature=1.3)
    send(opened, "Who is <b>he</b>?")
    first = {"role": "user", "content": "Who is <b>he</b>?"}
    options = {"max_tokens": 12, "temperature": 1.3}
    expected = completion(url, prompt_of(url, [first]), [], **options, seed=5)["text"]
    assert (reply(opened), seed(opened)) == (expected, 5)

    settings(opened, seed="")
    send(opened, "And she?")
    dialog = [first, {"role": "assistant", "content": expected}, {"role": "user", "content": "And she?"}]
    second = completion(url, prompt_of(url, dialog), [], **options, seed=seed(opened))["text"]
    assert reply(opened) == second

    opened.reload()
    opened.wait_for_selector(".reply")
    assert reply(opened) == second
    before = seed(opened)
    opened.click(".reply:last-child button:text('Regenerate')")
    opened.wait_for_selector(IDLE)
    again = reply(opened)
    assert seed(opened) != before
    assert again == completion(url, prompt_of(url, dialog), [], **options, seed=seed(opened))["text"]
    opened.click(".reply:last-child .seed")
    opened.wait_for_selector(IDLE)
    assert reply(opened) == again

    opened.click(".user >> nth=0 >> button")
    opened.fill(".edit", "Who?")
    opened.press(".edit", "Enter")
    opened.wait_for_selector(IDLE)
    assert opened.locator(".turn").count() == 2
    edited = completion(url, prompt_of(url, [{"role": "user", "content": "Who?"}]), [], **options, seed=seed(opened))
    assert reply(opened) == edited["text"]


def test_another_token(opened: Any, url: str, browser: Any) -> None:
    settings(opened, max_tokens=10, seed=3)
    send(opened, "A fox")
    found = prompt_of(url, [{"role": "user", "content": "A fox"}])
    drawn = completion(url, found, [], max_tokens=10, seed=3)["logprobs"]["content"]
    opened.hover(".tokens .token >> nth=4")
    rivals = opened.locator("#rivals .rival")
    rivals.first.wait_for()
    assert [int(id) for id in rivals.evaluate_all("(all) => all.map((each) => each.dataset.id)")] == [
        rival["id"] for rival in drawn[4]["top_logprobs"]
    ]
    chosen = next(rival for rival in drawn[4]["top_logprobs"][2:] if rival["id"] != drawn[4]["id"])
    opened.click(f"#rivals [data-id='{chosen['id']}']")
    opened.wait_for_selector(IDLE)
    kept = [*(token["id"] for token in drawn[:4]), chosen["id"]]
    after = completion(url, found, kept, max_tokens=10, seed=3)["text"]
    text = b"".join(bytes(token["bytes"]) for token in [*drawn[:4], chosen]).decode()
    assert reply(opened) == text + after

    for number, given in ((4, True), (6, False)):
        token = opened.locator(".tokens .token").nth(number)
        opened.mouse.move(0, 0)
        token.hover()
        opened.locator("#rivals .title b").wait_for()
        label = opened.locator("#rivals .title b").inner_text()
        with opened.context.expect_page() as event:
            opened.click("#rivals .why")
        why = event.value
        why.locator("#check:not(:empty)").wait_for()
        assert why.locator("#check").inner_text().startswith("check: ok")
        where = why.locator("#where").inner_text()
        assert (f"Token 1 of 1: {label}" in where, "given" in where) == (True, given)


def with_reply(window: Any, texts: list[str], **more: Any) -> None:
    """Load the page again, in a tab that keeps a conversation whose reply has these tokens."""
    tokens = [{"id": 5, "bytes": list(text.encode()), "p": 0.5, "rank": 0, "top": []} for text in texts]
    given = {"role": "assistant", "tokens": tokens, "prompt": [5], "stops": [], "runs": [], "ended": "stop", **more}
    kept = json.dumps({"model": "tales", "turns": [{"role": "user", "text": "Hi"}, given]})
    window.add_init_script(f"sessionStorage.conversation = {json.dumps(kept)}")
    window.reload()
    window.wait_for_selector(".reply .token")


def test_what_would_be_lost_is_asked_for(opened: Any, url: str) -> None:
    """Later turns, a draft, and settings that are out of range."""
    settings(opened, max_tokens=3)
    for said in ("Hi", "And?"):
        send(opened, said)
    opened.fill("#draft", "Not sent")
    opened.reload()
    opened.wait_for_selector(".reply")
    assert opened.input_value("#draft") == "Not sent"
    asked = list[str]()
    context = opened.context
    other = context.new_page()
    other.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    other.add_init_script(
        f"sessionStorage.conversation ??= {json.dumps(opened.evaluate('sessionStorage.conversation'))}"
    )
    other.goto(url)
    other.wait_for_selector(".reply")
    other.locator(".reply >> nth=0").get_by_text("Regenerate").click()
    other.click("#new")
    assert asked == ["Later turns will be deleted.", "This conversation will be deleted."]
    assert other.locator(".turn").count() == 4
    settings(other, top_p=7)
    other.locator(".reply >> nth=1").get_by_text("Regenerate").click()
    assert other.evaluate("document.activeElement.id") == "setting-top_p"
    assert len(asked) == 2


def test_control_characters_of_a_reply_are_visible(opened: Any) -> None:
    with_reply(opened, ["\x1b[31mred", "\u202e", "\x85", "\n", "<b>"])
    assert reply(opened) == "␛[31mred<202E><85>\n<b>"
    labels = opened.locator(".token").evaluate_all("(all) => all.map((each) => each.ariaLabel)")
    assert labels[:4] == ["␛[31mred, 50.0%", "<202E>, 50.0%", "<85>, 50.0%", "⏎, 50.0%"]


@pytest.mark.parametrize(
    ("texts", "state", "thoughts", "reasoning"),
    [
        (["<th", "ink>", "\nHm", ".\n</", "think>", "\n\n", "Yes", "."], "start", 5, "Hm."),
        (["Hm", ".\n</think>", "\nYes", "."], "thoughts", 2, "Hm."),
        (["<the>", " Yes", "."], "start", 0, None),
        (["</think>", "Yes."], "answer", 0, None),
    ],
)
def test_thoughts_are_no_part_of_the_answer(
    opened: Any, texts: list[str], state: str, thoughts: int, reasoning: str | None
) -> None:
    tags = {"open": "<think>", "close": "</think>", "skip": ""}
    with_reply(opened, texts, generated=[], thinking={**tags, "state": state})
    assert opened.locator(".thought").all_inner_texts() == [
        each.inner_text() for each in opened.locator(".token").all()[:thoughts]
    ]
    if thoughts:
        opened.click("text=Hide thoughts")
        assert not opened.locator(".thought").first.is_visible()
        opened.locator(".token").nth(thoughts).focus()
        opened.keyboard.press("Home")
        assert opened.evaluate(f"{TOKENS}.indexOf(document.activeElement)") == thoughts
    with opened.expect_request("**/tokenize") as asked:
        send(opened, "And?")
    _, said, _ = asked.value.post_data_json["messages"]
    assert said["content"] == "".join(texts[thoughts:]).lstrip("\n")
    assert said.get("reasoning_content") == reasoning
    assert opened.locator(".reply >> nth=0").locator(".thought:visible").count() == 0


def test_thinking_can_be_switched(opened: Any) -> None:
    settings(opened, max_tokens=4, seed=1)
    opened.click("#show-settings")
    opened.select_option("#setting-think", "on")
    with opened.expect_response("**/tokenize") as found:
        send(opened, "Hi")
    assert found.value.json()["thinking"] == {"open": "<think>", "close": "</think>", "skip": "", "state": "thoughts"}
    assert opened.locator(".thought").count() == 4
    opened.select_option("#setting-think", "off")
    opened.click(".reply button:text('Regenerate')")
    opened.wait_for_selector(IDLE)
    assert opened.locator(".token.thought").count() == 0


def test_without_a_mouse(opened: Any) -> None:
    settings(opened, max_tokens=2000, seed=4)
    press = opened.keyboard.press
    opened.focus("#draft")
    opened.keyboard.type("A tale")
    press("Shift+Enter")
    assert opened.input_value("#draft") == "A tale\n"
    press("Enter")
    opened.locator(".reply:last-child .token").nth(5).wait_for()
    press("Escape")
    opened.wait_for_selector(IDLE)
    count = opened.locator(".tokens .token").count()
    assert 5 < count < 1900
    settings(opened, max_tokens=3)
    opened.focus("#draft")
    for _ in range(4):  # the buttons of the reply
        press("Shift+Tab")
    assert opened.evaluate(f"{TOKENS}.indexOf(document.activeElement)") == 0
    press("Escape")
    press("Escape")
    press("ArrowUp")
    assert opened.evaluate(f"{TOKENS}.indexOf(document.activeElement)") == count - 1
    press("Home")
    for _ in range(4):
        press("ArrowRight")
    assert opened.evaluate(f"{TOKENS}.indexOf(document.activeElement)") == 4
    press("Enter")
    press("ArrowDown")
    id = opened.evaluate("document.activeElement.dataset.id")
    press("Enter")
    opened.wait_for_selector(IDLE)
    assert opened.locator(".tokens .token").count() == 8
    assert opened.evaluate("JSON.parse(sessionStorage.conversation).turns[1].tokens[4].id") == int(id)
    assert opened.evaluate(f"{TOKENS}.indexOf(document.activeElement)") == 4
    press("ArrowLeft")
    assert opened.locator("#rivals").is_visible()
    press("Escape")
    assert not opened.locator("#rivals").is_visible()


def test_errors_are_one_line(browser: Any, url: str) -> None:
    for window in open_page(browser, url, "400", "429"):
        wrong = {"status": 400, "json": {"error": {"message": "<img src=x onerror=alert(2)>"}}}
        window.route("**/v1/completions", partial(fulfill, wrong))
        send(window, "<img src=x onerror=alert(1)>")
        assert window.locator("#notice").inner_text() == "<img src=x onerror=alert(2)> Try again"
        assert window.locator("img").count() == 0
        window.unroute_all()
        settings(window, temperature=0, max_tokens=2)
        window.click("#notice button")
        window.locator(".tokens .token").nth(1).wait_for()
        assert window.locator("#notice").inner_text() == ""
        busy = {"status": 429, "headers": {"Retry-After": "3"}, "json": {"error": {"message": "the queue is full"}}}
        window.route("**/v1/completions", partial(fulfill, busy))
        window.click("button:text('Continue')")
        window.locator("#notice button").wait_for()
        assert window.locator("#notice").inner_text() == "the queue is full (try again in 3 s) Try again"
        assert window.locator(".tokens .token").count() == 2
        kept = reply(window)
        window.click("button:text('Regenerate')")
        window.locator("#notice button").wait_for()
        assert reply(window) == kept
        window.unroute_all()
        window.click("#notice button")
        window.wait_for_selector("#notice:empty", state="attached")
        window.wait_for_selector(IDLE)
        assert window.locator(".tokens .token").count() == 2


def fulfill(answer: dict[str, Any], route: Any) -> None:
    route.fulfill(**answer)


def test_narrow_and_dark(opened: Any) -> None:
    settings(opened, max_tokens=30)
    send(opened, "word" * 60)
    opened.set_viewport_size({"width": 320, "height": 600})
    opened.hover(".tokens .token >> nth=0")
    opened.locator("#rivals .rival").first.wait_for()
    assert opened.evaluate("document.documentElement.scrollWidth") <= 320
    light = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    opened.emulate_media(color_scheme="dark")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") != light


def test_labels_are_those_of_the_views(opened: Any) -> None:
    samples = [" the", "\n\n", "\t", "é\u202e", "🙂", "\x1b[31m", "a b", "\ufeff"]
    all_bytes = [text.encode() for text in samples] + ["🙂".encode()[:2], b"\x98\x80", b"a\xe2\x80", b"\xff\xfe \xc3"]
    shown = opened.evaluate(
        "async (all) => { const { label } = await import('/page/bytes.js'); return all.map(label); }",
        [list(each) for each in all_bytes],
    )
    assert shown == [token_label(VocabEntry(0, "", each)) for each in all_bytes]


def test_a_key_a_text_and_a_lost_connection(browser: Any, prose: tuple[str, subprocess.Popen[str]]) -> None:
    url, process = prose
    for window in open_page(browser, url, "401", "503", "ERR_"):
        for given in ("wrong", KEY):
            window.fill("#key", given)
            window.press("#key", "Enter")
            window.locator("dialog:has-text('refused') #key, #draft[placeholder='Your text']").first.wait_for()
        window.locator("#draft[placeholder='Your text']").wait_for()
        settings(window, max_tokens=3)
        send(window, "A hen")
        missing = {"status": 503, "json": {"error": {"message": "tales cannot be loaded"}}}
        window.route("**/tokenize", partial(fulfill, missing))
        window.select_option("#models", "tales")
        window.locator("#notice button").wait_for()
        assert window.locator(".turn").count() == 2, "the conversation is still there"
        window.unroute_all()
        window.click("#notice button")
        window.locator("#draft[placeholder='Message']").wait_for()
        send(window, "Who?")
        assert window.evaluate("JSON.parse(sessionStorage.conversation).model") == "tales"
        window.select_option("#models", "base")
        window.locator("#draft[placeholder='Your text']").wait_for()
        assert window.locator(".turn").count() == 0
        settings(window, max_tokens=7, seed=1)
        send(window, "Once upon a")
        send(window, " There was a")
        turns = window.evaluate("JSON.parse(sessionStorage.conversation).turns")
        text = "Once upon a" + "".join(
            bytes(byte for token in turn["tokens"] for byte in token["bytes"]).decode() if "tokens" in turn else ""
            for turn in turns[:2]
        )
        body = {"prompt": f"{text} There was a", "max_tokens": 7, "seed": 1}
        status, answer = post(f"{url}/v1/completions", body, {"Authorization": f"Bearer {KEY}"})
        assert (status, reply(window)) == (200, answer["choices"][0]["text"])

        window.reload()
        settings(window, max_tokens=5000)
        window.click(".reply:last-child button:text('Continue')")
        window.locator(".reply:last-child .token").nth(20).wait_for()
        process.kill()
        window.locator("#notice button").wait_for()
        assert window.locator("#notice").inner_text().startswith("The connection was lost.")
        assert reply(window).startswith(answer["choices"][0]["text"])
        count = window.locator(".reply:last-child .token").count()
        window.click("#notice button")
        window.locator("#notice:has-text('cannot be reached')").wait_for()
        assert window.locator(".reply:last-child .token").count() == count > 20
        assert json.loads(window.evaluate("JSON.stringify(sessionStorage)")).keys() == {"api-key", "conversation"}
