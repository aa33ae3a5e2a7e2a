"""The page of a run shows what its folder holds and says what it lacks; a broken folder never stops a run."""

from __future__ import annotations

import collections
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import made_run
import pytest
import run_store

from jaxmm.errors import UserError
from jaxmm.report import __main__ as command
from jaxmm.report import run_page, run_tables, run_time
from jaxmm.report.run_data import read_run
from jaxmm.training.timeline import Life
from jaxmm.workdir.folder import LOCK
from jaxmm.workdir.objects import Objects, StoreError


def test_a_page_that_stays_too_large_leaves_sections_out_and_says_which(tmp_path):
    made_run.write_run(tmp_path, samples=[made_run.looked()], generate_prompt="word " * 700_000)
    page = run_page.render([read_run(tmp_path)])
    assert len(page.encode()) < run_page.LIMIT
    assert 'id="config"' not in page
    assert "<li>Config: left out, to keep the page small.</li>" in page
    assert 'id="curves"' in page
    assert run_store.curves_of(page, "loss")


def test_a_store_that_cannot_be_written_to_costs_no_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXMM_SPOOL", str(tmp_path / "spools"))
    (tmp_path / "store/run").mkdir(parents=True)
    made_run.write_run(tmp_path / "store/run")

    def refuse(*_):
        raise StoreError("it may not be used")

    monkeypatch.setattr(Objects, "write", refuse)
    with pytest.raises(StoreError, match="may not be used"):
        command.main([f"--workdir=file://{tmp_path}/store/run"])
    path, _, told = capsys.readouterr().out.partition(": ")
    assert Path(path).exists()
    assert "open it in a browser" in told


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


def test_a_run_of_text_alone_is_asked_for_no_media_and_has_no_negative_zero(tmp_path):
    lines = made_run.write_run(tmp_path)
    made_run.leave_text_alone(tmp_path)
    page = run_page.render([read_run(tmp_path)])
    assert "where their attention goes: to the text of the same turn or to the first position" in page
    for word in ("Media gain", "Samples", "image", "special tokens</li>", "Media a second"):
        assert word not in re.sub(r"<script.*?</script>|<style.*?</style>|<pre>.*?</pre>", "", page, flags=re.S), word
    told = run_tables.balance(read_run(tmp_path))
    assert "Balance by source" in told
    assert "Balance by modality" not in told
    lines[-1]["eval"]["held_out"] |= {"loss": -0.0, "answer_accuracy": -0.0}
    made_run.write_lines(tmp_path / "metrics.jsonl", lines)
    told = run_tables.evaluations([read_run(tmp_path)])
    assert "<td>0</td><td>0.0%</td>" in told
    assert "-0" not in told


def test_damaged_figures_are_left_out(tmp_path):
    lines = made_run.write_run(tmp_path)
    lines[3] |= {"loss": None, "attention": {"layers": 2, "heads": 2, "mass": {"image": [[1]]}}, "balance": 3}
    lines[4] |= {"eval": {"held_out": {"loss": "x", "media_gain": 4}}, "goodput": [], "sources": {"pages": None}}
    made_run.write_lines(tmp_path / "metrics.jsonl", lines)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 580, "lo')  # a kill
    (tmp_path / "summary.json").write_text("[")
    assert run_page.render([read_run(tmp_path)])


def test_shares_weigh_by_the_steps_since_the_line_with_shares_before(tmp_path):
    def line(step: int, **shares: float) -> dict[str, Any]:
        return {"step": step, "balance": {"sources": {name: {"tokens": part} for name, part in shares.items()}}}

    made_run.write_run(tmp_path)
    lines = [line(10, a=0.9, b=0.1), {"step": 25, "eval": {}}, line(40, a=0.1, b=0.9)]
    made_run.write_lines(tmp_path / "metrics.jsonl", lines)
    told = run_tables.balance(read_run(tmp_path))
    assert "<td>30.0%</td>" in told  # (10 * 0.9 + 30 * 0.1) / 40
    assert "<td>70.0%</td>" in told


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
    assert command.main([f"--workdir={healthy}", f"--workdir=short,{healthy}/"]) == 0
    out, err = capsys.readouterr()
    assert out == "report.html: healthy at step 560, short at step 60; open it in a browser\n"
    assert err == f"--workdir {healthy} is given twice: the page shows it once\n"
    assert [run["name"] for run in run_store.store_of(Path("report.html").read_text())["runs"]] == ["healthy", "short"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "--workdir is missing"),
        (["--workdir={folder}/none"], "does not exist"),
        (["--workdir={folder}"], "holds no run: there is no config.json"),
        (["--workdir={healthy}", "--output={folder}"], "cannot be written"),
        (["--workdir={healthy}", "--output={folder}/none/a.html"], "--output={folder}/none/a.html: there is no folder"),
        (["--steps=3"], "unknown flag --steps; --help lists the flags"),
        (["--workdirs=x"], "did you mean '--workdir'"),
    ],
)
def test_mistakes_are_one_line(flags, told, healthy, tmp_path):
    places = {"folder": tmp_path, "healthy": healthy}
    with pytest.raises(UserError, match=re.escape(told.format(**places))) as raised:
        command.main([flag.format(**places) for flag in flags])
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
