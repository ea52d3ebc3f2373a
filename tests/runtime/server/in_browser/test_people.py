"""The page as people use it: what it asks of the server, and what they see, hear, keep and save."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dasheng_edge.runtime.captioner import Captioner
from tests.fixtures.page_server import PageServer

from .conftest import LONG, Open, ask_for, load, result, said, saved, written

pytestmark = pytest.mark.slow


def test_file_is_described(visit: Open, server: PageServer, clip: Path) -> None:
    page = visit()
    load(page, clip)
    ask_for(page)
    assert result(page) == ["a dog barks while rain falls"]
    assert server.asked[0] == {
        "model": "micro:caption", "response_format": "json", "stream": "true", "timestamp_granularities[]": "segment",
        "file": ("garden.wav", clip.stat().st_size),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("transcribe", {"model": "micro", "language": "de"}),
        ("sounds", {"model": "micro:caption", "prompt": "Which labels describe the sound?"}),
        ("subtitles", {"model": "micro:caption", "response_format": "vtt"}),
    ],
)
def test_each_task_asks_as_it_should(
    visit: Open, server: PageServer, clip: Path, task: str, fields: dict[str, str]
) -> None:
    page = visit()
    load(page, clip)
    if task == "transcribe":
        page.locator("#task-transcribe").check(force=True)
        page.select_option("#language", "de")
    ask_for(page, task)
    result(page)
    assert server.asked[0].items() >= fields.items()


def test_questions_are_turns_of_one_conversation(visit: Open, server: PageServer, clip: Path) -> None:
    page = visit()
    load(page, clip)
    ask_for(page, "ask", "How many people?")
    assert result(page) == [server.answer]
    ask_for(page, "ask", "Are they the same?")
    page.wait_for_selector("#parts li:nth-child(2)")
    assert result(page) == [server.answer] * 2
    first, second, third = server.asked[1]["messages"]
    assert [part["type"] for part in first["content"]] == ["input_audio", "text"]
    assert first["content"][0]["input_audio"]["format"] == "wav"
    assert (second["content"], third["content"]) == (server.answer, "Are they the same?")


def test_long_file_comes_in_parts_whose_times_lead_there(visit: Open, server: PageServer, long_clip: Path) -> None:
    server.parts, server.delay_s = LONG, 0.005
    page = visit()
    load(page, long_clip)
    ask_for(page)
    page.wait_for_selector("#parts li:nth-child(3)")
    assert "of 6:00 done" in page.inner_text("#progress-says")
    assert result(page) == [text for _, _, text in LONG]
    page.click("#parts li:nth-child(5) button")
    page.wait_for_selector("#parts li:nth-child(5)[aria-current=true]")
    assert page.evaluate("document.querySelector('video').currentTime") == pytest.approx(120, abs=5)


def test_screen_reader_hears_each_thing_once(visit: Open, server: PageServer, clip: Path, long_clip: Path) -> None:
    server.delay_s = 0.005
    page = visit()
    load(page, clip)
    ask_for(page)
    result(page)
    assert said(page) == ["Opened garden.wav.", "Started.", "a dog barks while rain falls", "Finished."]
    server.parts = LONG
    load(page, long_clip)
    ask_for(page)
    result(page)
    heard = [text for text in said(page) if "number" in text]
    assert heard == [f"{at // 2}:{30 * (at % 2):02d}: {text}" for at, (_, _, text) in enumerate(LONG)]
    assert not page.locator("#result [aria-live], #result [role=status], #result [role=log]").count()


def test_keyboard_alone(visit: Open, clip: Path) -> None:
    page = visit()
    page.wait_for_selector("#model option", state="attached")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "pick":
            break
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(str(clip))
    page.wait_for_function("() => document.activeElement.id === 'start'")
    page.keyboard.press("Enter")
    assert result(page) == ["a dog barks while rain falls"]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")
    assert page.locator("#task-transcribe").is_checked()
    for wanted in ("start", "copy"):
        page.keyboard.press("Tab")
        while page.evaluate("document.activeElement.id") not in (wanted, ""):
            page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("navigator.clipboard.readText()") == "a dog barks while rain falls"
    page.focus("#seek")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#seek", "aria-valuetext") == "0:02 of 0:03"


def test_cancel_lets_go_at_the_server(visit: Open, server: PageServer, long_clip: Path) -> None:
    server.parts, server.delay_s = LONG, 0.05
    page = visit()
    load(page, long_clip)
    ask_for(page)
    page.wait_for_selector("#parts li:nth-child(2)")
    page.keyboard.press("Escape")
    assert "sound number 0 is heard" in result(page)
    assert page.locator("#start").is_visible()
    page.wait_for_timeout(500)
    assert server.asked[-1] == {"left": True}


def test_another_file_lets_go_of_what_runs(visit: Open, server: PageServer, long_clip: Path, clip: Path) -> None:
    server.parts, server.delay_s = LONG, 0.05
    page = visit()
    load(page, long_clip)
    ask_for(page)
    page.wait_for_selector("#parts li:nth-child(2)")
    page.set_input_files("#file", str(clip))
    page.wait_for_selector("#length:text-is('0:03')")
    assert page.locator("#start").is_visible()
    assert page.locator("#progress, #result").first.is_hidden()
    page.wait_for_timeout(500)
    assert server.asked[-1] == {"left": True}


@pytest.mark.parametrize(("kind", "data"), [("drop", "dataTransfer"), ("paste", "clipboardData")])
def test_files_are_dropped_and_pasted(visit: Open, clip: Path, kind: str, data: str) -> None:
    page = visit()
    give = (
        "([bytes, names, kind, data]) => { const given = new DataTransfer();"
        " for (const name of names) given.items.add(new File([new Uint8Array(bytes)], name, { type: 'audio/wav' }));"
        " const event = new Event(kind, { bubbles: true, cancelable: true });"
        " Object.defineProperty(event, data, { value: given }); document.body.dispatchEvent(event); }"
    )
    content = list(clip.read_bytes())
    page.evaluate(give, [content, [], kind, data])
    assert "That is no file" in page.inner_text("[role=alert]")
    page.evaluate(give, [content, ["one.wav", "two.wav"], kind, data])
    page.wait_for_selector("#length:text-is('0:03')")
    assert page.inner_text("#name") == "one.wav"
    assert "The first of the files was opened" in page.inner_text("[role=alert]")


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((429, "rate_limit_exceeded", "too many"), "The server is busy\nTry again in 5 seconds."),
        ((413, "request_too_large", "200 MB at most"), "The file is too large for this server\n200 MB at most"),
        ((400, "audio_too_long", "an hour at most"), "The recording is too long for this server\nan hour at most"),
        ((400, "invalid_audio", "no audio track"), "No sound could be read from this file\nno audio track"),
        ((503, "memory_short", "x"), "The server is short of memory"),
        ((500, "", "it failed"), "The server failed\nit failed"),
        ((418, "", "I am a teapot"), "That did not work\nI am a teapot"),
    ],
)
def test_errors_are_words(
    visit: Open, server: PageServer, clip: Path, refusal: tuple[int, str, str], words: str
) -> None:
    server.refusal = refusal
    page = visit()
    load(page, clip)
    ask_for(page)
    page.wait_for_selector("[role=alert] strong")
    assert words in "\n".join(page.locator("[role=alert] p").all_inner_texts())
    server.refusal = None
    page.click("[role=alert] button")
    assert result(page) == ["a dog barks while rain falls"]
    assert not page.inner_text("[role=alert]")


@pytest.mark.parametrize(("fault", "words"), [("cut", "The connection was cut"), ("fault", "It took too long")])
def test_stream_that_breaks_off_keeps_what_came(
    visit: Open, server: PageServer, clip: Path, fault: str, words: str
) -> None:
    setattr(server, fault, True)
    page = visit()
    load(page, clip)
    ask_for(page)
    assert result(page) == ["a dog barks while rain falls"]
    assert words in page.inner_text("[role=alert]")


def test_key_is_asked_for_and_sent(visit: Open, server: PageServer, clip: Path) -> None:
    server.key = "k" * 20
    page = visit()
    page.click("[role=alert] button")
    page.fill("#key", "k" * 20)
    page.keyboard.press("Enter")
    page.wait_for_selector("#model option", state="attached")
    load(page, clip)
    ask_for(page)
    assert result(page) == ["a dog barks while rain falls"]


def test_subtitles_are_shown_over_the_player_and_saved(visit: Open, server: PageServer, clip: Path) -> None:
    page = visit()
    load(page, clip)
    ask_for(page, "subtitles")
    assert result(page) == ["[dog barks]", "[rain falling]"]
    assert page.get_attribute("#cc", "aria-pressed") == "true"
    page.evaluate("document.querySelector('video').currentTime = 2")
    page.wait_for_selector("#cue:has-text('[rain falling]')")
    for name, text in {
        "VTT": server.vtt,
        "SRT": "1\n00:00:00,400 --> 00:00:01,400\n[dog barks]\n\n2\n00:00:01,600 --> 00:00:03,000\n[rain falling]\n",
        "TXT": "[0:00-0:01] [dog barks]\n[0:01-0:03] [rain falling]\n",
    }.items():
        assert saved(page, name) == ("garden", text)
    rows = json.loads(saved(page, "JSON")[1])
    assert rows["cues"][0] == {"start_s": 0.4, "end_s": 1.4, "lines": ["[dog barks]"]}


def test_markup_in_a_caption_is_text(visit: Open, server: PageServer, clip: Path) -> None:
    text = "<img src=x onerror=alert(1)> & {\\an8} <b>bold</b>"
    server.parts = [(0.0, 3.5, text)]
    page = visit()
    load(page, clip)
    ask_for(page)
    assert result(page) == [text]
    assert "&lt;img src=x onerror=alert(1)&gt; &amp; {\\an8}" in saved(page, "VTT")[1]
    assert "\u2039img src=x onerror=alert(1)\u203a & (/an8)" in saved(page, "SRT")[1]


def test_history_is_kept_searched_and_deleted(visit: Open, server: PageServer, clip: Path) -> None:
    page = visit()
    for text in ("a dog barks", "rain falls"):
        server.parts = [(0.0, 3.5, text)]
        load(page, clip)
        ask_for(page)
        result(page)
    page.reload()
    page.wait_for_selector("#past-list li:nth-child(2)")
    page.fill("#search", "DOG")
    assert page.locator("#past-list .open b").all_inner_texts() == ["a dog barks"]
    page.click("#past-list .open")
    assert result(page) == ["a dog barks"]
    assert page.inner_text("#name") == "garden.wav"
    page.click("#past-list li button:nth-child(2)")
    page.click("#past-note button")
    page.wait_for_selector("#past-list .open b:text-is('a dog barks')")
    page.click("#past-list li button:nth-child(2)")
    page.fill("#search", "cat")
    page.wait_for_selector("#past-note:text-is('Nothing matches.')")
    page.fill("#search", "")
    assert page.locator("#past-list .open b").all_inner_texts() == ["rain falls"]
    page.click("#clear")
    page.click("#clear")
    page.wait_for_selector("#past", state="hidden")
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert page.locator("#past").is_hidden()


def test_recording(visit: Open, server: PageServer) -> None:
    page = visit()
    page.click("#record")
    page.wait_for_selector("#take-clock:text-matches('0:(0[2-9]|[1-5].)')")
    page.click("#take-stop")
    page.wait_for_selector("#length:not(:text-is('0:00'))")
    ask_for(page)
    assert result(page) == ["a dog barks while rain falls"]
    name, size = server.asked[0]["file"]
    assert name.startswith("Recording")
    assert size > 1000


def test_live_captions_without_a_websocket(visit: Open, server: PageServer) -> None:
    page = visit()
    page.click("#live")
    page.wait_for_selector("#parts li:has-text('dog')", timeout=40_000)
    page.click("#take-stop")
    page.wait_for_selector("#player:visible")
    assert set(result(page)) == {"a dog barks while rain falls"}
    assert server.asked[0]["file"][0] == "live.wav"
    assert page.locator("#past-list li").count() == 1


def test_microphone_that_is_not_allowed(visit: Open) -> None:
    page = visit()
    page.evaluate(
        "() => { navigator.mediaDevices.getUserMedia ="
        " async () => { throw new DOMException('', 'NotAllowedError'); }; }"
    )
    page.click("#record")
    page.wait_for_selector("[role=alert] strong:text-is('The microphone was not allowed')")


def test_long_file_does_not_freeze_the_page(visit: Open, tmp_path: Path) -> None:
    page = visit()
    page.evaluate(
        "() => { window.slow = [];"
        " new PerformanceObserver((list) => slow.push(...list.getEntries().map((one) => one.duration)))"
        ".observe({ type: 'longtask' }); }"
    )
    load(page, written(tmp_path / "hours.wav", 5400.0, rate=8000))
    page.wait_for_function("() => source.levels?.at(-1) > 0")
    assert max(page.evaluate("slow"), default=0) < 500  # ms; on an idle machine, 50


def test_with_the_server_itself(browser: Any, tiny_bundle: Path, clip: Path) -> None:
    words = [sys.executable, "-m", "dasheng_edge", "serve", str(tiny_bundle), "--port", "0", "--threads", "1"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        found = re.search(r"http://\S+(?=/v1)", server.stderr.readline())
        assert found
        page = browser.new_page(permissions=["microphone"])
        page.goto(found[0])
        load(page, clip)
        ask_for(page)
        with Captioner.open(tiny_bundle) as captioner:
            assert result(page) == [captioner.caption(clip).text or "Silence"]
        for task in ("transcribe", "sounds", "subtitles", "ask"):
            ask_for(page, task, "What is heard?" if task == "ask" else "")
            page.wait_for_selector("#start:visible")
            assert not page.inner_text("[role=alert]")
        page.click("#away")
        with page.expect_websocket() as socket:
            page.click("#live")
        page.wait_for_selector("#parts .at")
        page.click("#take-stop")
        page.wait_for_selector("#past-list li:has-text('Live captions')")
        assert socket.value.is_closed()
        assert not page.inner_text("[role=alert]")
        page.close()
        server.terminate()
        server.communicate(timeout=20)
