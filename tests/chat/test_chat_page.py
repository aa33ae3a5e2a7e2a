"""The page in a browser: a picture goes in, the answer comes, and a token lights cells of what the model saw."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import set_screen
from talking import COLOUR, PICTURE, answered, longer, make_run, serving

from jaxmm.chat.speaker import Speaker

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(chromium, tmp_path_factory) -> Any:
    chromium.picture = str(tmp_path_factory.mktemp("pictures") / "a.png")
    Path(chromium.picture).write_bytes(PICTURE)
    return chromium


def open_page(browser: Any, url: str, width: int) -> None:
    set_screen(browser, width)
    browser.get(url)
    fill(browser, max_tokens=8)


def fill(browser: Any, **values: float) -> None:
    """Sets settings, whatever the fields allow."""
    code = "const f = document.getElementById(arguments[0]); f.value = arguments[1]"
    for name, value in values.items():
        browser.execute_script(code, name, value)


def ask(browser: Any, text: str, with_picture: bool = False) -> None:
    """Types a question, and waits until it is answered."""
    if with_picture:
        browser.find_element("id", "picker").send_keys(browser.picture)
        wait_for(browser, "document.querySelectorAll('#files img').length === 1")
    before = len(browser.find_elements("css selector", "li.model"))
    browser.find_element("id", "text").send_keys(f"{text}\n")
    answers = "document.querySelectorAll('li.model').length"
    wait_for(browser, f"{answers} > {before} && !document.querySelector('#ask').hidden")


def wait_for(browser: Any, condition: str) -> None:
    browser.execute_async_script(
        f"const told = arguments[0], look = () => ({condition}) ? told() : setTimeout(look, 30); look()"
    )


def shade(browser: Any) -> np.ndarray:
    """How opaque the shade over the first picture is, by pixel."""
    return np.array(browser.execute_script(
        "const c = document.querySelector('.seen canvas'), copy = new OffscreenCanvas(c.width, c.height);"
        "const pen = copy.getContext('2d', { willReadFrequently: true });"
        "pen.drawImage(c, 0, 0);"
        "const data = pen.getImageData(0, 0, c.width, c.height).data;"
        "return Array.from({ length: data.length / 4 }, (_, i) => data[4 * i + 3])"
    ))  # fmt: skip


def brightest(look: dict[str, Any], token: int) -> list[int]:
    """Row and column of the cell of a picture that a token looked at most, mean over all heads."""
    (picture,) = look["media"]
    maps = np.frombuffer(base64.b64decode(look["maps"]["data"]), np.uint8)
    cells = maps.reshape(-1, len(look["tokens"]), look["soft"])[0, token]
    return [int(at) for at in np.unravel_index(cells.argmax(), picture["grid"])[1:]]


@pytest.mark.parametrize("width", [390, 1400])
def test_a_question_about_a_picture_is_answered_and_its_tokens_light_cells(browser, chat_url, chat_speaker, width):
    open_page(browser, chat_url, width)
    ask(browser, "Colour?", with_picture=True)
    tokens = browser.find_elements("css selector", ".token")
    assert len(tokens) == 8
    text = browser.execute_script("return document.querySelector('.tokens').textContent")
    look = answered(chat_speaker, [COLOUR], max_tokens=8)[-1].look
    assert text == "".join(look["tokens"])
    assert text.strip()
    assert browser.find_element("css selector", ".user .media img").is_displayed()
    assert "8 tokens" in browser.find_element("css selector", ".state").text
    mean = shade(browser)
    assert len(np.unique(mean)) > 3, "cells differ"
    group = browser.find_element("css selector", ".tokens")
    group.send_keys("\ue014\ue014")  # the right arrow, twice
    assert "pinned" in tokens[1].get_attribute("class")
    row, column = brightest(look, token=1)
    said = browser.find_element("css selector", ".told").text
    assert re.fullmatch(rf"Token 2 of 8, “.*”: most onto row {row}, column {column} \(.*%\)", said), "all count from 0"
    second = shade(browser)
    assert not np.array_equal(second, mean)
    browser.execute_script(
        "const s = document.querySelector('.looks select'); s.value = 1; s.dispatchEvent(new Event('change'))"
    )
    assert not np.array_equal(shade(browser), second), "a head of its own"
    widths = browser.execute_script(
        "return [...document.querySelectorAll('.stack i')].map(i => parseFloat(i.style.width))"
    )
    assert sum(widths) == pytest.approx(100, abs=0.5)
    ask(browser, "And now?")
    assert len(browser.find_elements("css selector", ".looks")) == 2
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.find_element("id", "clear").click()
    assert browser.find_elements("css selector", ".looks") == []
    assert browser.get_log("browser") == []


def test_a_page_says_where_an_answer_is_longer_than_its_maps(browser, chat_url, chat_speaker, monkeypatch):
    monkeypatch.setattr(chat_speaker, "answer", longer(chat_speaker, 70))
    open_page(browser, chat_url, 1400)
    ask(browser, "Colour?", with_picture=True)
    said = browser.find_element("css selector", ".told")
    assert said.text.startswith("The first 8 of 70 tokens, on average: most onto row ")
    browser.find_elements("css selector", ".token")[1].click()
    assert said.text.startswith("Token 2 of 70, ")


def test_a_file_that_is_broken_is_named(browser, chat_url, tmp_path, monkeypatch):
    (tmp_path / "cut.png").write_bytes(PICTURE[:-200])
    open_page(browser, chat_url, 1400)
    monkeypatch.setattr(browser, "picture", str(tmp_path / "cut.png"))
    ask(browser, "Colour?", with_picture=True)
    assert browser.find_element("css selector", ".failed").text.startswith("cut.png: an image's file ends early")


def test_an_error_is_shown_and_the_question_comes_back(browser, chat_url):
    open_page(browser, chat_url, 1400)
    fill(browser, max_tokens=100000)
    browser.find_element("id", "text").send_keys("<b>hm?</b>\n")
    assert browser.find_element("id", "problem").text == "max_tokens: give a number from 1 to 4096"
    browser.execute_script("document.getElementById('top_p').min = 0")
    fill(browser, max_tokens=4, temperature=1, top_p=0)
    browser.find_element("id", "text").send_keys("\n")
    wait_for(browser, "document.querySelector('.failed') && !document.querySelector('#ask').hidden")
    assert browser.find_element("css selector", ".failed").text == "top_p is 0.0: it must be above 0 and at most 1"
    assert browser.execute_script("return document.querySelector('#text').value") == "<b>hm?</b>"
    assert [entry["message"] for entry in browser.get_log("browser") if "400" not in entry["message"]] == []


def test_a_diverged_model_is_told_where_maps_would_be(browser, tmp_path):
    with serving([Speaker("diverged", make_run(tmp_path / "diverged", factor=float("nan")))]) as url:
        open_page(browser, url, 1400)
        ask(browser, "Colour?", with_picture=True)
    assert "numbers are not finite" in browser.find_element("css selector", ".failed").text
    assert browser.find_elements("css selector", ".looks") == []
    assert browser.get_log("browser") == []


def test_two_runs_answer_side_by_side_and_below_each_other_on_a_phone(browser, chat_speaker, tmp_path):
    other = Speaker("other <i>run</i>", make_run(tmp_path / "other", seed=2))
    with serving([chat_speaker, other]) as url:
        for width in (1400, 390):
            open_page(browser, url, width)
            places = "[...document.querySelectorAll('.side')].map(s => s.getBoundingClientRect())"
            boxes = browser.execute_script(f"return {places}.map(box => [box.left, box.top])")
            assert (boxes[0][1] == boxes[1][1]) is (width == 1400)
            assert (boxes[0][0] == boxes[1][0]) is (width == 390)
        ask(browser, "Colour?", with_picture=True)
    assert [one.text for one in browser.find_elements("css selector", "h2")] == ["tiny", other.name]
    first, second = (one.text for one in browser.find_elements("css selector", ".tokens"))
    assert first != second
    assert len(browser.find_elements("css selector", ".looks")) == 2
    assert browser.get_log("browser") == []
