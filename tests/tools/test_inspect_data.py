"""The plan as JSON lines is the plan of the run, and the page shows in a browser what the batch holds."""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pytest
from chromium import set_screen
from conftest import picture

import jaxmm
from jaxmm import command, recipe
from jaxmm import inspect as tool
from jaxmm.corpus import Corpus, make_assembler, make_plan, read_budgets
from jaxmm.data import demo
from jaxmm.data.media import patches
from jaxmm.data.packing.plan import Budgets, Plan
from jaxmm.data.prepare.prepared import Prepared
from jaxmm.errors import UserError
from jaxmm.report.content import DrawnRow

sys.path.append(str(Path(__file__).parents[1] / "data"))
from made_index import texts

ROOT = Path(jaxmm.__file__).parent.parent
TOOL = ROOT / "tools" / "inspect_data.py"
BASE = f"--config={ROOT / 'configs/base.py'}"
ATTACK = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & </script> é"


def write_data(folder: Path) -> Path:
    """Chats with an image each, one of them broken, and pages of which some are longer than a row."""
    rng = np.random.default_rng(0)
    chats = []
    for i in range(30):
        data = picture(*rng.integers(10, 30, 2).tolist(), seed=i).data
        (folder / f"{i}.png").write_bytes(data if i != 7 else data[: len(data) // 2])
        said = ATTACK if i == 3 else f"answer {i}"
        messages = [{"from": "human", "value": f"<image>question {i}"}, {"from": "gpt", "value": said}]
        chats.append({"conversations": messages, "images": [f"{i}.png"]})
    (folder / "chats.json").write_text(json.dumps(chats))
    pages = [{"text": f"page {i} " + "word " * int(rng.integers(1, 60))} for i in range(20)]
    pages[4] = {"text": "a<image>" + "b" * 200 + "<image>c", "images": ["0.png", "1.png"]}
    (folder / "pages.jsonl").write_text("\n".join(map(json.dumps, pages)))
    columns = {"prompt": "text", "response": "", "query": "", "images": "images"}
    info = {
        "chats": {"file_name": "chats.json", "formatting": "sharegpt", "columns": {"images": "images"}},
        "pages": {"file_name": "pages.jsonl", "columns": columns},
    }
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(info))
    return path


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    """A mixture of two sources, in rows of 128 tokens."""
    folder = tmp_path_factory.mktemp("inspected")
    keys = {
        "data.path": write_data(folder), "data.mixture": "chats:0.6,pages:0.4", "data.cache": folder / "cache",
        "seq_len": 128, "batch_size": 4, "image.patch_size": 4, "image.min_pixels": 64, "image.max_pixels": 576,
        "data.jitter": 0,
    }  # fmt: skip
    return [BASE, *(f"--config.{key}={value}" for key, value in keys.items())]


class World(NamedTuple):
    """What a run makes of the same arguments."""

    plan: Plan
    assemble: Any
    corpus: Corpus


def world(arguments: list[str]) -> World:
    config = command.parse(arguments, {}).config
    data = recipe.read_data(config)
    corpus = recipe.train_corpus(config, data)
    budgets = read_budgets(config, corpus)
    return World(
        make_plan(config, corpus, budgets),
        make_assembler(config, data.image, corpus, budgets),
        corpus,
    )


def check_lines(lines: list[str], numbers: range, made: World) -> None:
    assert len(lines) == len(numbers)
    for line, k in zip(lines, numbers, strict=True):
        found = json.loads(line)
        rows = made.plan.batch(k)
        assert list(found) == ["batch", "rows", "tokens", "patches"]
        assert found["batch"] == k
        assert found["rows"] == [
            [[f"{made.corpus.names[p.source]}/{p.example}", p.first, p.last] for p in row] for row in rows
        ]
        assert found["tokens"] == sum(p.last - p.first for row in rows for p in row)
        loaded = made.assemble(rows)
        lost = {skip.origin for skip in loaded.skipped}
        read = [(p, made.corpus.lengths[p.source]) for row in rows for p in row]
        missing = sum(int(s.patches_E[p.example]) for p, s in read if s.prepared.read(p.example).origin in lost)
        assert found["patches"] == int((loaded.batch.patches.segments > 0).sum()) + missing


def test_the_lines_are_the_plan_of_the_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "training_source", functools.partial(demo.training_source, examples=120))
    arguments = [BASE, f"--config.data.cache={tmp_path}"]
    assert tool.main([*arguments, "--batches=1:4"]) == 0
    check_lines(capsys.readouterr().out.splitlines(), range(1, 4), world(arguments))


def test_the_lines_are_the_plan_of_a_mixture_and_no_record_is_read_for_them(arguments, monkeypatch, capsys):
    made = world(arguments)  # prepared here

    def untouched(*_):
        raise AssertionError("a record was read")

    with monkeypatch.context() as patch:
        patch.setattr(Prepared, "read", untouched)
        patch.setattr(patches, "decoded", untouched)
        assert tool.main([*arguments, "--batches=0:12"]) == 0
    lines = capsys.readouterr().out.splitlines()
    check_lines(lines, range(12), made)
    parts = [piece for line in lines for row in json.loads(line)["rows"] for piece in row]
    assert {name.split("/")[0] for name, _, _ in parts} == {"chats", "pages"}
    assert any(first > 0 for _, first, _ in parts)  # the mixture has long documents


def test_a_range_past_the_end_of_the_data_is_one_line_and_a_page_ends_with_it(arguments, tmp_path, capsys):
    once = [*arguments, "--config.epochs=1"]
    count = world(once).plan.batches()
    for more in ([], [f"--output={tmp_path / 'page.html'}"]):
        with pytest.raises(UserError, match=f"past the end of the data: this plan has {count} batches, 0:{count}"):
            tool.main([*once, f"--batches=0:{count + 1}", *more])
    assert capsys.readouterr().out == ""
    assert tool.main([*once, f"--batches={count - 1}:{count}"]) == 0
    check_lines(capsys.readouterr().out.splitlines(), range(count - 1, count), world(once))
    assert tool.main([*once, f"--output={tmp_path / 'page.html'}", "--rows=100000"]) == 0
    assert f"batches 0 to {count - 1};" in capsys.readouterr().out


def test_as_a_program_it_prints_nothing_else_and_looks_for_no_device(arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "none_such"}
    done = subprocess.run(
        [sys.executable, str(TOOL), *arguments, "--batches=0:2"], env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["batch"] for line in done.stdout.splitlines()] == [0, 1]


def test_a_range_at_the_start_plans_none_of_the_rest(tmp_path):
    corpus = Corpus([texts(np.full(1000, 60), "a")], [1.0], [])
    config = command.parse([BASE, "--config.data.max_epochs=a:1e8", f"--config.data.cache={tmp_path}"], {}).config
    plan = make_plan(config, corpus, Budgets(512, 64, 8, 512))
    assert tool.within(plan, (0, 4), is_asked=True) == (0, 4)
    assert len(plan._table.starts) == 2  # one window, and where the next one would begin


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--batches=3:3"], "--batches '3:3' is no range"),
        (["--batches=-1:2"], "--batches '-1:2' is no range"),
        (["--batches=4"], "--batches '4' is no range"),
        (["--batches=0:1", "--rows=0"], "--rows is 0"),
        (["--batches=0:1", "--config.batch_size=0"], "config.batch_size is 0"),
        (["--outputs=x"], "did you mean '--output'"),
        ([], "nothing to show"),
        (["--output={folder}"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(flags, told, arguments, tmp_path):
    flags = [flag.format(folder=tmp_path) for flag in flags]
    with pytest.raises(UserError, match=re.escape(told)) as raised:
        tool.main([*arguments, *flags])
    assert "\n" not in str(raised.value)


class Page(NamedTuple):
    """A page, opened, and what it was made from."""

    browser: Any
    rows: list[DrawnRow]
    html: str


@pytest.fixture(scope="module")
def page(arguments, chromium, tmp_path_factory) -> Page:
    path = tmp_path_factory.mktemp("page") / "report.html"
    args = command.parse(arguments, {})
    report = tool.make_report(args.config, "a <b>title</b>", (0, 12), 40)
    tool.write_page(path, report)
    set_screen(chromium, 1400, 1000)
    chromium.get(path.as_uri())
    return Page(chromium, report.rows, path.read_text())


def views(page: Page) -> list[Any]:
    return [view for row in page.rows for view in row.views]


def open_document(page: Page, number: int) -> None:
    page.browser.execute_script("document.querySelectorAll('.doc')[arguments[0]].click()", number)


@pytest.mark.browser
def test_the_page_has_a_bar_for_each_document_of_each_row(page, arguments):
    made = world(arguments)
    rows = [row for k in range(12) for row in made.plan.batch(k)][:40]
    counts = page.browser.execute_script(
        "return [...document.querySelectorAll('.row')].map(r => r.querySelectorAll('.doc').length)"
    )
    assert counts == [len(row) for row in rows]
    widths = page.browser.execute_script(
        "return [...document.querySelectorAll('.doc')]"
        ".map(d => d.getBoundingClientRect().width / d.parentElement.getBoundingClientRect().width)"
    )
    sizes = [(piece.last - piece.first) / 128 for row in rows for piece in row]
    np.testing.assert_allclose(widths, sizes, atol=0.005)
    assert page.browser.get_log("browser") == []


@pytest.mark.browser
def test_the_page_loads_nothing(page):
    assert page.browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)"
                                       ".filter(name => !name.startsWith('data:'))") == []  # fmt: skip
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page.html.split('<script type="application/json"')[0])


@pytest.mark.browser
def test_text_is_that_of_the_record_and_never_markup(page, arguments, template):
    made = world(arguments)
    shown = {view.name: number for number, view in enumerate(views(page)) if not view.skipped}
    assert "chats/3" in shown
    for name, number in list(shown.items())[:25]:
        view = views(page)[number]
        open_document(page, number)
        text = page.browser.execute_script(
            "return [...document.querySelectorAll('#text .text')].map(s => s.textContent).join('')"
        )
        piece = view.piece
        record = made.corpus.lengths[piece.source].prepared.read(piece.example)
        whole = template.decode(record.tokens)
        assert text == whole if piece.last - piece.first == view.length else text in whole, name
        learnt = page.browser.execute_script("return document.querySelectorAll('#text .learnt').length")
        assert learnt == sum(span.is_target for span in view.spans)
        assert page.browser.find_element("id", "panel-name").text == name
    open_document(page, shown["chats/3"])
    assert ATTACK in page.browser.find_element("id", "text").get_attribute("textContent")
    assert page.browser.title.startswith("a <b>title</b>")
    assert page.browser.get_log("browser") == []


@pytest.mark.browser
def test_images_have_the_size_and_the_pixels_the_model_gets(page):
    with_pictures = [(number, view) for number, view in enumerate(views(page)) if view.pictures]
    for number, view in with_pictures[:8]:
        open_document(page, number)
        page.browser.execute_async_script(
            "const done = arguments[0];"
            "Promise.all([...document.querySelectorAll('#text img')].map(i => i.decode())).then(() => done())"
        )
        found = page.browser.execute_script(
            "return [...document.querySelectorAll('#text img')].map(i => [i.naturalWidth, i.naturalHeight, i.src])"
        )
        assert [size[:2] for size in found] == [[4 * p.columns, 4 * p.rows] for p in view.pictures]
        for (_, _, source), shown in zip(found, view.pictures, strict=True):
            decoded = PIL.Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
            np.testing.assert_array_equal(np.asarray(decoded), shown.pixels)


@pytest.mark.browser
def test_the_keyboard_opens_closes_and_moves(page):
    from selenium.webdriver.common.keys import Keys

    browser = page.browser
    active = "return document.activeElement.dataset.document ?? document.activeElement.id"
    browser.execute_script("document.querySelector('#close').click()")
    stops = browser.find_elements("css selector", ".doc[tabindex='0']")
    assert len(stops) == 1  # of the Tab key
    stops[0].send_keys(Keys.HOME)
    assert browser.execute_script(active) == "0"
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert browser.execute_script(active) == "1"
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    below = int(browser.execute_script(active))
    row = 1 if len(page.rows[0].views) > 1 else 2  # the one below document 1
    start = sum(len(above.views) for above in page.rows[:row])
    assert start <= below < start + len(page.rows[row].views)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.execute_script(active) == "panel"
    assert browser.find_element("id", "panel-name").text == views(page)[below].name
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert browser.execute_script(active) == str(below)
    assert not browser.find_element("id", "panel").is_displayed()


def test_columns_that_were_read_and_those_that_were_not_are_told(arguments, tmp_path):
    records = [{"id": i, "text": f"page {i}", "url": "https://e.org/a.png"} for i in range(9)]
    (tmp_path / "web.jsonl").write_text("\n".join(map(json.dumps, records)))
    keys = {"data.path": tmp_path / "web.jsonl", "data.mixture": "", "data.cache": tmp_path / "cache"}
    given = [*arguments, *(f"--config.{key}={value}" for key, value in keys.items())]
    args = command.parse(given, tool.FLAGS, about="")
    shown = re.sub("<[^>]+>", "", tool.render(tool.make_report(args.config, "t", (0, 1), 1)))
    assert "web: columns of its records: text (9) read; id (9) not read; url (9) not read; in 9 a picture" in shown


@pytest.mark.browser
def test_what_became_padding_and_what_was_cut_is_told(page):
    lost = [number for number, view in enumerate(views(page)) if view.skipped]
    assert lost
    open_document(page, lost[0])
    assert "truncated" in page.browser.find_element("id", "facts").text
    told = page.browser.find_element("id", "left").text
    assert "chats.json, record 7" in told
    assert "data.long_documents=split" in told


@pytest.mark.browser
def test_it_fits_a_phone(page):
    from selenium.webdriver.common.by import By

    browser = page.browser
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        open_document(page, 2)
        box = browser.find_element(By.ID, "panel").rect
        assert (box["x"], box["width"]) == (0, 390)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
