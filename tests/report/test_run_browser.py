"""The page of a run in a browser: curves, maps and bars are those of the log, and can be read on any screen."""

from __future__ import annotations

import base64
import functools
import io
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import made_run
import numpy as np
import PIL.Image
import pytest
from chromium import set_screen
from made_run import ATTACK, COLUMNS, LIT, ROWS

from jaxmm.report import run_page
from jaxmm.report.run_data import read_run

pytestmark = pytest.mark.browser


class Page(NamedTuple):
    """A browser, and the pages in it by their names."""

    browser: Any
    paths: dict[str, Path]

    def open(self, name: str, width: int = 1400, dark: bool = False) -> Any:
        set_screen(self.browser, width, 1000, dark)
        self.browser.get(self.paths[name].as_uri())
        return self.browser.execute_script

    def shot(self, selector: str) -> np.ndarray:
        """uint8 (height, width, 3): an element as it is drawn."""
        box = self.browser.execute_script(
            "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return {x: b.left + scrollX, y: b.top + scrollY, width: b.width, height: b.height, scale: 1}",
            selector,
        )
        what = {"clip": box, "captureBeyondViewport": True}
        drawn = self.browser.execute_cdp_cmd("Page.captureScreenshot", what)["data"]
        return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(drawn))).convert("RGB"))


@pytest.fixture(scope="module")
def pages(chromium, healthy, tmp_path_factory) -> Page:
    folder = tmp_path_factory.mktemp("pages")
    made_run.write_run(folder / "other", seed=5, is_finished=False, batch_size=16)
    one, other = read_run(healthy), read_run(folder / "other")
    lines = made_run.write_run(folder / "rare", samples=[made_run.looked_at_two()])
    for line in lines:
        if "attention" in line:
            kinds = ("image", "video") if line["step"] < 300 else ()
            line["balance"]["sources"] = {"pages": dict.fromkeys(("asked", "tokens", "targets", "loss"), 1.0)}
            line["attention"] = made_run.attention(np.random.default_rng(0), 0.5, (*kinds, *made_run.CLASSES[1:]))
    made_run.write_lines(folder / "rare" / "metrics.jsonl", lines)
    long = made_run.long_run(folder / "long")
    runs = {"healthy": [one], "long": [long], "both": [one, other], "rare": [read_run(folder / "rare")]}
    paths = {name: folder / f"{name}.html" for name in runs}
    for name, of in runs.items():
        run_page.write_page(paths[name], of)
    return Page(chromium, paths)


HOVER = """
  const svg = document.querySelector(`[data-chart="${arguments[0]}"] svg.plot`), box = svg.getBoundingClientRect();
  const at = {clientX: box.left + arguments[1] * box.width, clientY: box.top + 90, pointerType: "mouse", bubbles: true};
  svg.dispatchEvent(new PointerEvent("pointermove", at));
  const rows = [...document.querySelectorAll("#tip .value")];
  const texts = rows.map(row => [...row.children].slice(1).map(e => e.textContent));
  return [document.querySelector("#tip > b").textContent, texts];
"""


def number_in(text: str) -> float:
    return float(text.replace(",", "").rstrip("%")) / (100 if text.endswith("%") else 1)


def test_values_under_the_pointer_are_those_of_the_log(pages, healthy):
    script = pages.open("healthy")
    by_step = {line["step"]: line for line in map(json.loads, (healthy / "metrics.jsonl").open())}
    read = {
        "loss": {"trained on": ("loss",), "held out: held_out": ("eval", "held_out", "loss")},
        "loss-sources": {name: ("sources", name, "loss") for name in ("pages", "chats")},
        "answers": {"held_out": ("eval", "held_out", "answer_accuracy")},
        "media-gain": {"image": ("eval", "held_out", "media_gain", "image")},
        "gradients": {part: ("grad_norm_by_part", part) for part in ("connector", "decoder", "vision")},
        "gradients-data": {name: ("gradients", "sources", name, "all") for name in ("pages", "chats")},
        "loss-modalities": {
            "with image": ("losses", "modalities", "image"),
            "held out: held_out: text alone": ("eval", "held_out", "modalities", "text", "loss"),
        },
        "throughput": {"tokens": ("tokens_per_second",)},
    }
    for chart, curves in read.items():
        for part in (0.3, 0.62, 0.99):
            head, rows = script(HOVER, chart, part)
            step = int(number_in(head.removeprefix("step ")))
            for name, value, *other in rows:
                if name not in curves:
                    continue
                at = int(number_in(other[0].removeprefix("at "))) if other else step
                true = functools.reduce(dict.__getitem__, curves[name], by_step[at])
                assert number_in(value) == pytest.approx(true, rel=1e-4), (chart, name, at)
            assert {name for name, *_ in rows} >= set(curves)
    assert pages.browser.get_log("browser") == []


def test_zoom_legend_and_keys(pages):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    script = pages.open("healthy")
    svg = pages.browser.find_element(By.CSS_SELECTOR, '[data-chart="loss"] svg.plot')
    script("document.activeElement.blur(); arguments[0].focus()", svg)
    svg.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert script("return document.querySelector('[data-chart=loss] output').textContent").startswith("step 30: ")
    svg.send_keys("+")
    pages.browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert script("return one('zoomed').textContent") == "steps 12 to 348"  # three fifths, about step 30
    script("one('reset').click()")
    pages.browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert script("return one('zoomed').textContent + one('reset').disabled") == "true"
    drawn = "return document.querySelectorAll('[data-chart=loss] .drawn').length"
    assert script(drawn) == 2
    script("document.querySelectorAll('[data-chart=loss] .line')[1].click()")
    assert script(drawn) == 1
    script("document.querySelector('[data-chart=loss] details').open = true")
    rows = "return document.querySelectorAll('[data-chart=loss] tbody tr').length"
    pages.browser.execute_async_script("setTimeout(arguments[0], 50)")
    assert script(rows) == len(made_run.log(560, 15))


def test_what_comes_from_data_stays_text(pages):
    script = pages.open("healthy")
    assert pages.browser.title == "healthy – a run of jaxmm"
    assert script("return document.querySelector('.question').textContent") == ATTACK
    assert script("return document.querySelectorAll('.chip')[2].textContent") == ATTACK
    assert script("return document.querySelectorAll('script').length") == 2
    assert script("return document.querySelectorAll('[onerror]').length") == 0
    assert pages.browser.get_log("browser") == []


def bright(cells: np.ndarray) -> np.ndarray:
    """(rows, columns): how bright the middle of each cell of a picture is."""
    height, width = cells.shape[0] / ROWS, cells.shape[1] / COLUMNS

    def middle(n: int, size: float) -> slice:
        return slice(int((n + 0.35) * size), int((n + 0.65) * size))

    return np.array([
        [cells[middle(r, height), middle(c, width)].mean() for c in range(COLUMNS)] for r in range(ROWS)
    ])  # fmt: skip


def test_a_map_lights_its_cell_and_another_head_another(pages):
    script = pages.open("healthy")
    lit = bright(pages.shot(".seen .canvas"))
    assert lit.argmax() == LIT
    assert lit.flat[LIT] > 1.5 * np.delete(lit, LIT).max()
    assert "80% onto the picture" in script("return document.querySelector('.card .told').textContent")
    script("[...document.querySelectorAll('.field')].find(f => f.title.startsWith('layer 1, head 2')).click()")
    assert bright(pages.shot(".seen .canvas")).argmax() == ROWS * COLUMNS - 1
    assert script("return one('head').value") == "1,2"
    script("document.querySelectorAll('.field')[0].click()")
    assert "is not kept" in script("return document.querySelector('.card .told').textContent")
    even = bright(pages.shot(".seen .canvas"))
    assert even.max() - even.min() < 3


def test_bars_and_fields_of_attention_are_those_of_the_log(pages, healthy):
    script = pages.open("healthy")
    of = json.loads((healthy / "metrics.jsonl").read_text().splitlines()[-1])["attention"]
    told = script("return [...document.querySelectorAll('.layers .stack')].map(bar => bar.getAttribute('aria-label'))")
    means = np.array([np.mean(of["mass"][name], 1) for name in made_run.CLASSES])  # classes, layers
    for layer, line in enumerate(told):
        found = [float(part) for part in re.findall(r"([\d.]+)%", line)]
        np.testing.assert_allclose(found, 100 * means[:, layer], atol=0.51)
    fields = script("return [...document.querySelectorAll('.field')].map(field => field.title)")
    shares = [float(re.search(r": ([\d.]+)%", title)[1]) for title in fields]
    np.testing.assert_allclose(shares, 100 * np.ravel(of["mass"]["image"]), atol=0.51)


def test_media_that_the_last_look_lacks_can_be_looked_at(pages):
    script = pages.open("rare")
    chosen = "const select = document.querySelector('#monitor .part select'); select.value = arguments[0];"
    chosen += (
        "select.dispatchEvent(new Event('change')); return [...document.querySelectorAll('.field')].map(f => f.title)"
    )
    assert all(title.endswith(": 0.0%") for title in script(chosen, "media"))
    assert script(chosen, "with image") == []
    assert "Not measured at this step." in script("return one('monitor').textContent")
    script("const at = one('monitored'); at.value = 0; at.dispatchEvent(new Event('input'))")
    assert not all(title.endswith(": 0.0%") for title in script(chosen, "media"))
    assert len(script(chosen, "with image")) == made_run.LAYERS * made_run.HEADS
    assert pages.browser.get_log("browser") == []


@pytest.mark.parametrize("name", ["healthy", "both"])
def test_a_phone_scrolls_no_page_sideways(pages, name):
    script = pages.open(name, width=390)
    assert script("return document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert script("return [...document.querySelectorAll('.plot')].every(p => p.getBoundingClientRect().width > 300)")


def test_ten_thousand_lines_are_drawn_and_answer_the_hand(pages):
    script = pages.open("long")
    head, rows = script(HOVER, "loss", 0.5)
    assert head.startswith("step ")
    assert rows
    assert script(HOVER, "loss", 0.7)[0] != head
    assert pages.browser.get_log("browser") == []


def test_two_runs_have_a_line_each(pages):
    script = pages.open("both")
    _, rows = script(HOVER, "loss", 0.002)
    assert {"trained on · healthy", "trained on · other"} <= {name for name, *_ in rows}
    colours = script("return [...document.querySelectorAll('[data-chart=loss] .drawn')].map(line => line.style.stroke)")
    assert len(set(colours)) == 2
    assert pages.browser.get_log("browser") == []


def test_a_dark_page_is_dark(pages):
    pages.open("healthy", dark=True)
    assert pages.shot("header").mean() < 60
    pages.open("healthy")
    assert pages.shot("header").mean() > 200


def test_each_of_two_pictures_has_a_caption_and_a_frame_of_its_own(pages):
    script = pages.open("rare")
    captions = "return [...document.querySelectorAll('.card figcaption')].map(caption => caption.textContent)"
    assert script(captions) == ["Picture 1: 30%, in the white frame 20%", "Picture 2: 50%, in the white frame 50%"]
    assert script("return document.querySelector('.card .told').textContent") == "All tokens: 80% onto both"
    frames = (
        "return [...document.querySelectorAll('.card .most.over')].map(f => [f.getAttribute('x'), f.getAttribute('y')])"
    )
    assert script(frames) == [["2", "1"], ["3", "2"]]
    script("document.querySelectorAll('.field')[0].click()")  # a head whose map is not kept
    assert script(captions) == ["", ""]
    assert pages.browser.get_log("browser") == []


CONTRAST = """
  const pen = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d");
  const light = (colour) => {
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const parts = [...pen.getImageData(0, 0, 1, 1).data.slice(0, 3)].map(value => value / 255)
      .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05;
  };
  const between = (a, b) => Math.max(light(a) / light(b), light(b) / light(a));
  const back = getComputedStyle(document.body).backgroundColor;
  const texts = [...document.querySelectorAll(".field, .stack:not(.mini) i")].filter(cell => cell.textContent);
  const lines = [...document.querySelectorAll("[data-chart=attention] .drawn")];
  return [
    texts.map(cell => between(getComputedStyle(cell).color, getComputedStyle(cell).backgroundColor)),
    lines.map(line => between(getComputedStyle(line).stroke, back)),
    lines.map(line => `${getComputedStyle(line).stroke} ${line.getAttribute("stroke-dasharray")}`),
  ];
"""


@pytest.mark.parametrize("is_dark", [False, True])
def test_figures_and_lines_of_attention_stand_out_from_what_is_behind_them(pages, is_dark):
    texts, lines, looks = pages.open("healthy", dark=is_dark)(CONTRAST)
    assert len(texts) > made_run.LAYERS * made_run.HEADS
    assert min(texts) >= 4.5
    assert min(lines) >= 3
    assert len({look.rpartition(" ")[0] for look in looks}) == len(made_run.CLASSES)
    assert len({look.rpartition(")")[2] for look in looks}) == 4  # dashes tell the pale ones apart


def test_tables_fit_a_wide_screen_and_most_of_them_a_phone(pages):
    over = (
        "return [...document.querySelectorAll('.wide')].filter(e => e.checkVisibility())"
        ".filter(e => e.scrollWidth > e.clientWidth).map(e => e.getAttribute('aria-label'))"
    )
    for name in ("healthy", "both", "rare"):
        assert pages.open(name, width=1600)(over) == []
        assert set(pages.open(name, width=390)(over)) <= {"Starts", "Evaluations on held_out", "Figures of the runs",
                                                           "Differences between the configs"}  # fmt: skip


def test_an_answer_of_blanks_that_was_cut_is_not_right(pages):
    verdict = """
      const sample = store.runs[0].samples[0].samples[0];
      return arguments[0].map((answer) => new Card({ ...sample, answer, truth: "red", cut: true }, 1).isRight)"""
    assert pages.open("healthy")(verdict, ["re", "red", "  ", "", "blue"]) == [True, True, False, False, False]
