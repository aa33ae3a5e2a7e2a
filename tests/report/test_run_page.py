"""The page of a run shows what its folder holds, in a browser too, and a broken folder never stops a run."""

from __future__ import annotations

import base64
import collections
import functools
import io
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import made_run
import numpy as np
import PIL.Image
import pytest

from jaxmm.errors import UserError
from jaxmm.report import __main__ as command
from jaxmm.report import run_page, run_samples, run_tables, run_time, thinning
from jaxmm.report.run_curves import MOST
from jaxmm.report.run_data import RunData, read_run
from jaxmm.training.timeline import Life
from jaxmm.workdir.folder import LOCK

ATTACK = "<script>alert(1)</script></script><img src=x onerror=\"document.title='owned'\">"
ROWS, COLUMNS, LIT = 3, 4, 6  # of soft tokens, and the one that is looked at


def looked(head: int | None = None) -> dict[str, Any]:
    """A sample whose mean map lights one cell alone; with a head, that head lights the last cell of the grid."""
    maps = np.zeros((2, 2, ROWS * COLUMNS))
    maps[0, :, LIT], maps[1, :, -1] = 0.8, 0.5
    pixels = np.full((ROWS * 16, COLUMNS * 16, 3), 120, np.uint8)
    chosen = [(1, 2)] if head is None else [(1, head)]
    return made_run.sample(pixels, ["re", ATTACK], maps, question=ATTACK, truth="red", chosen=chosen)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "healthy"
    made_run.write_run(folder, samples=[looked()])
    return folder


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> RunData:
    """A run of 10,000 lines that has not ended."""
    folder = tmp_path_factory.mktemp("runs") / "long"
    made_run.write_run(folder, steps=100_000, every=10, is_finished=False, seed=1)
    return read_run(folder)


def test_thinning_keeps_the_ends_and_every_extreme():
    values = np.random.default_rng(0).standard_normal(10_007)
    values[[17, 9000]] = 50, -50
    kept = thinning.kept(values.tolist(), 1500)
    assert len(kept) <= 1500
    assert kept == sorted(set(kept))
    assert {0, 17, 9000, 10_006} <= set(kept)
    assert thinning.kept([3.0, 1.0], 1500) == [0, 1]


@pytest.mark.parametrize(("count", "most"), [(5, 9), (9, 5), (100, 1), (2, 2)])
def test_what_is_spread_has_the_last(count, most):
    chosen = thinning.spread(count, most)
    assert chosen[-1] == count - 1
    assert len(chosen) == min(count, most)


def test_a_long_log_makes_a_small_page_that_says_that_it_is_thinned(long):
    page = run_page.render([long])
    assert len(page.encode()) < run_page.LIMIT
    store = store_of(page)
    (loss,) = [chart for chart in store["charts"]["curves"] if chart["key"] == "loss"]
    assert loss["curves"][0]["of"] == 10_000
    assert len(loss["curves"][0]["x"]) <= MOST
    assert "of their 10,000 points" in page


def store_of(page: str) -> dict[str, Any]:
    return json.loads(re.search(r'<script type="application/json" id="store">(.*?)</script>', page, re.S)[1])


def test_a_page_is_small_whatever_its_samples_are_and_says_what_is_left_out(tmp_path):
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (256, 256, 3), np.uint8)
    heads = [(layer, head) for layer in range(4) for head in range(4)]
    maps = rng.random((17, 12, 1024))
    samples = [
        made_run.sample(photo, ["word"] * 12, maps, question=f"{i}?", truth="", grid=(1, 32, 32), chosen=heads)
        for i in range(40)
    ]
    made_run.write_run(tmp_path, samples=samples)
    page = run_page.render([read_run(tmp_path)])
    assert len(page.encode()) < run_page.LIMIT
    kept = store_of(page)["runs"][0]["samples"][0]["samples"]
    assert 0 < len(kept) < 40
    assert "to keep the page small" in page
    assert all(sample["media"][0]["src"].startswith("data:image/jpeg") for sample in kept)


def test_of_many_sources_the_largest_are_shown_and_the_others_told(tmp_path):
    names = [f"source_{n:04}" for n in range(1500)]

    def of(value: float) -> dict[str, Any]:
        return dict.fromkeys(names, value)

    lines = made_run.write_run(tmp_path, steps=60)
    looked_at = dict.fromkeys(names, lines[-1]["attention"]["sources"]["pages"])
    norms = {name: made_run.norms(decoder=0.5) for name in names}
    for line in lines:
        line["sources"] = {name: {"loss": 2.0, "targets": float(n % 1400)} for n, name in enumerate(names)}
        line["balance"]["sources"] = {name: {"asked": 1 / 1500, "tokens": 1 / 1500, "loss": 1 / 1500} for name in names}
        if "attention" in line:
            line["attention"]["sources"] = looked_at
            line["gradients"]["sources"], line["losses"]["sources"] = norms, of(2.0)
        if "eval" in line:
            line["eval"] = dict.fromkeys(names, line["eval"]["held_out"])
    made_run.write_lines(tmp_path / "metrics.jsonl", lines)
    page = run_page.render([read_run(tmp_path)])
    assert len(page.encode()) < run_page.LIMIT / 4
    shown = {f"source_{n:04}" for n in range(1388, 1400)}
    assert set(curves_of(page, "loss-sources")) == shown
    assert set(curves_of(page, "answers")) == shown
    assert set(store_of(page)["runs"][0]["attention"]["steps"][-1]["sources"]) == shown
    assert "<li>The other 1,488 of 1,500 sources, which have fewer targets" in page
    assert "<li>The other 1,488 of 1,500 held-out sources" in page


def test_a_page_that_stays_too_large_leaves_sections_out_and_says_which(tmp_path):
    made_run.write_run(tmp_path, samples=[looked()], generate_prompt="word " * 700_000)
    page = run_page.render([read_run(tmp_path)])
    assert len(page.encode()) < run_page.LIMIT
    assert 'id="config"' not in page
    assert "<li>Config: left out, to keep the page small.</li>" in page
    assert 'id="curves"' in page
    assert curves_of(page, "loss")


def test_samples_that_do_not_fit_are_left_out_and_told(tmp_path):
    good, short, foreign, far = looked(), looked(), looked(), looked()
    short["maps"]["data"] = short["maps"]["data"][:8]
    foreign["media"][0]["src"] = "https://example.com/x.png"
    far["media"][0]["first"] = 5
    made_run.write_run(tmp_path, samples=[good, short, foreign, far])
    found, notes = run_samples.samples_json(read_run(tmp_path), 10**6)
    assert [len(source["samples"]) for source in found] == [1]
    assert notes == [f"{tmp_path.name}: 3 of 4 held-out samples, as their parts do not fit each other"]


def test_a_run_of_before_shows_what_it_has_and_says_the_rest(tmp_path):
    lines = made_run.write_run(tmp_path, is_finished=False)
    new = ("attention", "balance", "goodput", "gradients", "losses", "peak_memory_bytes")
    for line in lines:
        for name in new:
            line.pop(name, None)
        for figures in line.get("eval", {}).values():
            figures.pop("media_gain")
    made_run.write_lines(tmp_path / "metrics.jsonl", lines)
    for name in ("machine.json", "timeline.jsonl", "slow_steps.jsonl", "skipped.jsonl"):
        (tmp_path / name).unlink()
    page = run_page.render([read_run(tmp_path)])
    for name in ("Media gain", "Attention", "Samples", "Balance", "Time", "Machine and versions"):
        assert f"<li>{name}: " in page
    for section in ("attention", "samples", "balance", "time", "skipped"):
        assert f'id="{section}"' not in page
    assert 'id="evaluations"' in page
    assert "the defaults of its keys" in page


def test_damaged_figures_are_left_out(tmp_path):
    lines = made_run.write_run(tmp_path)
    lines[3] |= {"loss": None, "attention": {"layers": 2, "heads": 2, "mass": {"image": [[1]]}}, "balance": 3}
    lines[4] |= {"eval": {"held_out": {"loss": "x", "media_gain": 4}}, "goodput": [], "sources": {"pages": None}}
    made_run.write_lines(tmp_path / "metrics.jsonl", lines)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 580, "lo')  # a kill
    (tmp_path / "summary.json").write_text("[")
    assert run_page.render([read_run(tmp_path)])


def curves_of(page: str, key: str) -> dict[str, dict[str, Any]]:
    """The curves of a chart by their names."""
    charts = [chart for of in store_of(page)["charts"].values() for chart in of if chart["key"] == key]
    return {curve["name"]: curve for chart in charts for curve in chart["curves"]}


def test_the_norm_of_all_parts_is_the_logged_one_or_that_of_its_parts(tmp_path):
    lines = made_run.write_run(tmp_path)
    old = next(line for line in lines if "gradients" in line)
    del old["gradients"]["sources"]["chats"]["all"]
    made_run.write_lines(tmp_path / "metrics.jsonl", lines)
    norms = curves_of(run_page.render([read_run(tmp_path)]), "gradients-data")["chats"]["y"]
    assert len(norms) > 2
    assert norms == pytest.approx([1.0] * len(norms))  # of 0.8 and 0.6


def test_the_loss_by_modality_is_one_and_no_share(tmp_path):
    lines = made_run.write_run(tmp_path)
    found = curves_of(run_page.render([read_run(tmp_path)]), "loss-modalities")
    looks = [line["losses"]["modalities"]["text"] for line in lines if "losses" in line]
    held_out = [line["eval"]["held_out"]["modalities"]["text"]["loss"] for line in lines if "eval" in line]
    assert found["text alone"]["y"] == pytest.approx(looks, rel=1e-5)
    assert found["held out: held_out: text alone"]["y"] == pytest.approx(held_out, rel=1e-5)
    for line in lines:
        line.pop("losses", None)
        for figures in line.get("eval", {}).values():
            figures.pop("modalities")
    made_run.write_lines(tmp_path / "metrics.jsonl", lines)
    assert not curves_of(run_page.render([read_run(tmp_path)]), "loss-modalities")


def test_shares_weigh_by_the_steps_since_the_line_with_shares_before(tmp_path):
    def line(step: int, **shares: float) -> dict[str, Any]:
        return {"step": step, "balance": {"sources": {name: {"tokens": part} for name, part in shares.items()}}}

    made_run.write_run(tmp_path)
    lines = [line(10, a=0.9, b=0.1), {"step": 25, "eval": {}}, line(40, a=0.1, b=0.9)]
    made_run.write_lines(tmp_path / "metrics.jsonl", lines)
    told = run_tables.balance(read_run(tmp_path))
    assert "<td>30.0%</td>" in told  # (10 * 0.9 + 30 * 0.1) / 40
    assert "<td>70.0%</td>" in told


def test_a_look_without_a_class_gives_it_nothing(tmp_path):
    lines = made_run.write_run(tmp_path)
    looks = [line for line in lines if "attention" in line]
    looks[-1]["attention"] = made_run.attention(np.random.default_rng(0), 1.0, made_run.CLASSES[1:])
    made_run.write_lines(tmp_path / "metrics.jsonl", lines)
    run = read_run(tmp_path)
    page = run_page.render([run])
    told = store_of(page)["runs"][0]["attention"]
    assert told["classes"] == list(made_run.CLASSES)
    assert np.max(told["steps"][0]["mass"]["image"]) > 0
    assert np.shape(told["steps"][-1]["mass"]["image"]) == (made_run.LAYERS, made_run.HEADS)
    assert not np.any(told["steps"][-1]["mass"]["image"])
    onto = curves_of(page, "attention")["images"]
    assert (len(onto["y"]), onto["y"][-1]) == (len(looks), 0)
    onto = curves_of(run_page.render([run, run]), "attention")[""]
    assert (len(onto["y"]), onto["y"][-1]) == (len(looks), 0)


def test_the_maps_that_stay_are_those_of_the_heads_that_look_most(tmp_path):
    maps = np.full((5, 3, 64 * 64), 1e-6)
    heads = [(0, 0), (0, 1), (1, 0), (1, 1)]
    for head, part in enumerate((0.1, 0.9, 0.2, 0.8), 1):
        maps[head, :, head::7] = part / (64 * 64)
    pixels = np.zeros((16, 16, 3), np.uint8)
    one = made_run.sample(pixels, list("abc"), maps, question="?", truth="", grid=(1, 64, 64), chosen=heads)
    made_run.write_run(tmp_path, samples=[one])
    ((source,), notes) = run_samples.samples_json(read_run(tmp_path), 3 * 3 * 64 * 64 * 4 // 3 + 2000)
    (kept,) = source["samples"]
    assert kept["chosen"] == [[0, 1], [1, 1]]
    coded = np.frombuffer(base64.b64decode(kept["maps"]["data"]), np.uint8).reshape(3, 3, -1)
    back = (coded / 255.0) ** 2 * np.array(kept["maps"]["scale"])[:, None, None]
    np.testing.assert_allclose(back, maps[[0, 2, 4]], atol=0.01 * maps.max())
    assert "of the 2 heads that look most, of up to 4" in notes[0]


def test_starts_lose_what_the_bar_says_is_lost(tmp_path):
    made_run.write_run(tmp_path)
    life = Life()
    lines = [
        {"event": "start", "format": 1, "time": 0.0, "step": 0},
        {"event": "beat", "time": 12.0, "step": 4, "seconds": {"starting": 4.0, "data": 1.0, "stepping": 7.0}},
        {"event": "beat", "time": 22.0, "step": 8, "seconds": {"data": 2.0, "stepping": 8.0}},
        {"event": "start", "format": 1, "time": 30.0, "step": 6},
        {"event": "beat", "time": 42.0, "step": 10, "seconds": {"starting": 4.0, "stepping": 8.0}},
        {"event": "start", "format": 1, "time": 45.0, "step": 4},
        {"event": "end", "time": 60.0, "step": 12, "seconds": {"starting": 4.0, "stepping": 11.0}, "why": "done"},
    ]
    for line in lines:
        life.add(line)
    made_run.write_lines(tmp_path / "timeline.jsonl", lines)
    run = read_run(tmp_path)
    sums = collections.Counter[str]()
    for start in run_time._starts_of(run.timeline):
        sums.update(start.seconds)
    assert {kind: sums[kind] for kind in life.seconds} == pytest.approx(life.seconds)
    assert sums["lost"] == 18
    told = run_time.time_spent(run)
    assert re.search(r"<th scope=\"row\">1</th><td>0 to 8</td><td>7\.0 s</td>.*?<td>10\.0 s</td>", told)


def test_evaluations_have_their_small_figures_behind_a_fold(tmp_path):
    lines = made_run.write_run(tmp_path)
    lines[-1]["eval"]["held_out"]["answer_accuracy_reversed"] = 0.25
    made_run.write_lines(tmp_path / "metrics.jsonl", lines)
    told = run_tables.evaluations([read_run(tmp_path)])
    before, _, after = told.partition("<details>")
    assert "right, played backwards" in before
    assert "25.0%" in before
    for name in ("documents", "left out", "standard error"):
        assert f"with other media: image: {name}" not in before
        assert f"with other media: image: {name}" in after


def test_the_state_of_a_run(tmp_path):
    made_run.write_run(tmp_path, is_finished=False)
    assert read_run(tmp_path).state == "stopped"
    (tmp_path / LOCK).touch()
    assert read_run(tmp_path).state == "running"
    assert run_page.write_report(tmp_path, print, state="stopped")  # by the process that holds the folder, at its end
    assert '<span class="state stopped">stopped</span>' in (tmp_path / "report.html").read_text()
    (tmp_path / "metrics.jsonl").unlink()
    assert read_run(tmp_path).state == "waiting"
    page = run_page.render([read_run(tmp_path)])
    assert "No line of the log yet" in page
    made_run.write_run(tmp_path)
    assert read_run(tmp_path).state == "finished"


def test_a_page_that_cannot_be_written_is_one_line_and_no_error(healthy, tmp_path):
    said: list[str] = []
    assert run_page.write_report(healthy, said.append)
    assert (healthy / "report.html").stat().st_size > 10_000
    assert not run_page.write_report(tmp_path, said.append)
    (line,) = said
    assert line.startswith(f"warning: {tmp_path / 'report.html'} was not written: ")
    assert "\n" not in line


def test_the_command_writes_a_page_of_one_run_and_of_several(healthy, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_run.write_run(tmp_path / "short", steps=60, is_finished=False)
    assert command.main([f"--workdir={healthy}"]) == 0
    assert capsys.readouterr().out == f"{healthy / 'report.html'}: healthy at step 560; open it in a browser\n"
    assert command.main([f"--workdir={healthy}", f"--workdir=short,{healthy}"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("report.html: healthy at step 560, short at step 60; open it in a browser\n", "")
    assert [run["name"] for run in store_of(Path("report.html").read_text())["runs"]] == ["healthy", "short"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "--workdir is missing"),
        (["--workdir={folder}/none"], "does not exist"),
        (["--workdir={folder}"], "holds no run: there is no config.json"),
        (["--workdir={healthy}", "--output={folder}"], "cannot be written"),
        (["--workdirs=x"], "did you mean '--workdir'"),
    ],
)
def test_mistakes_are_one_line(flags, told, healthy, tmp_path):
    with pytest.raises(UserError, match=re.escape(told)) as raised:
        command.main([flag.format(folder=tmp_path, healthy=healthy) for flag in flags])
    assert "\n" not in str(raised.value)


def test_it_needs_no_jax_and_no_transformers():
    code = "import sys, jaxmm.report.__main__; print({'jax', 'transformers', 'grain'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_is_particular_in_a_config(tmp_path):
    made_run.write_run(tmp_path / "a", batch_size=16)
    made_run.write_run(tmp_path / "b", is_finished=False)
    page = run_page.render([read_run(tmp_path / "a")])
    row = r"<code>batch_size</code></th><td><code>16</code></td><td><code>8</code></td>"
    assert len(re.findall(row, page)) == 1
    assert "<code>seq_len</code>" not in page
    assert "<code>configs/base.py</code> of this jaxmm" in page  # a user's own base.py may have started it
    both = run_page.render([read_run(tmp_path / "a"), read_run(tmp_path / "b")])
    assert row in both.split("Between the runs")[1]


class Page(NamedTuple):
    """A browser, and the pages in it by their names."""

    browser: Any
    paths: dict[str, Path]

    def open(self, name: str, width: int = 1400, dark: bool = False) -> Any:
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
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
def pages(healthy, long, tmp_path_factory) -> Iterator[Page]:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    folder = tmp_path_factory.mktemp("pages")
    made_run.write_run(folder / "other", seed=5, is_finished=False, batch_size=16)
    one, other = read_run(healthy), read_run(folder / "other")
    lines = made_run.write_run(folder / "rare")
    for line in lines:
        if "attention" in line:
            kinds = ("image", "video") if line["step"] < 300 else ()
            line["attention"] = made_run.attention(np.random.default_rng(0), 0.5, (*kinds, *made_run.CLASSES[1:]))
    made_run.write_lines(folder / "rare" / "metrics.jsonl", lines)
    runs = {"healthy": [one], "long": [long], "both": [one, other], "rare": [read_run(folder / "rare")]}
    paths = {name: folder / f"{name}.html" for name in runs}
    for name, of in runs.items():
        run_page.write_page(paths[name], of)
    options = Options()
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", f"user-data-dir={folder / 'profile'}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = shutil.which("chromium") or ""
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield Page(browser, paths)
    finally:
        browser.quit()


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


@pytest.mark.browser
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


@pytest.mark.browser
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


@pytest.mark.browser
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


@pytest.mark.browser
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


@pytest.mark.browser
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


@pytest.mark.browser
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


@pytest.mark.browser
@pytest.mark.parametrize("name", ["healthy", "both"])
def test_a_phone_scrolls_no_page_sideways(pages, name):
    script = pages.open(name, width=390)
    assert script("return document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert script("return [...document.querySelectorAll('.plot')].every(p => p.getBoundingClientRect().width > 300)")


@pytest.mark.browser
def test_ten_thousand_lines_are_drawn_and_answer_the_hand(pages):
    began = time.perf_counter()
    script = pages.open("long")
    head, rows = script(HOVER, "loss", 0.5)
    assert head.startswith("step ")
    assert rows
    assert time.perf_counter() - began < 30
    timed = HOVER.replace("return", "const told =")
    took = script(f"const began = performance.now(); {timed} return performance.now() - began", "loss", 0.7)
    assert took < 2000  # some milliseconds
    assert pages.browser.get_log("browser") == []


@pytest.mark.browser
def test_two_runs_have_a_line_each(pages):
    script = pages.open("both")
    _, rows = script(HOVER, "loss", 0.002)
    assert {"trained on · healthy", "trained on · other"} <= {name for name, *_ in rows}
    colours = script("return [...document.querySelectorAll('[data-chart=loss] .drawn')].map(line => line.style.stroke)")
    assert len(set(colours)) == 2
    assert pages.browser.get_log("browser") == []


@pytest.mark.browser
def test_a_dark_page_is_dark(pages):
    pages.open("healthy", dark=True)
    assert pages.shot("header").mean() < 60
    pages.open("healthy")
    assert pages.shot("header").mean() > 200
