"""tools/check.py: a part that crashes or hangs costs its rows alone, and what is wrong is told and counts."""

from __future__ import annotations

import importlib
import json
import os
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from jaxmm import check
from jaxmm.checks import attention as check_attention
from jaxmm.checks import loss as check_loss
from jaxmm.checks import part as check_part
from jaxmm.checks import proof, required
from jaxmm.checks import row as check_row
from jaxmm.checks import speed as check_speed
from jaxmm.checks import step as check_step
from jaxmm.checks.row import FAILED, MEASURED, NOT_HERE, RIGHT, WRONG, Row
from jaxmm.errors import UserError
from jaxmm.models import attention as attn
from jaxmm.models.kernels import device

# A part whose process does what its argument says.
MADE = """
import json, os, pathlib, signal, subprocess, sys, time
from jaxmm.checks.row import MEASURED, Row
def rows(what, path=""):
    yield Row("begun", MEASURED, "it began")
    print("a library says something")
    if what == "crash":
        print("it hurt", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "raise":
        raise ValueError("of no use")
    if what == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        pathlib.Path(path).write_text(f"{os.getpid()} {child.pid}")
        time.sleep(300)
    if what == "look":
        yield Row("written before", MEASURED, str(len(json.loads(pathlib.Path(path).read_text())["rows"])))
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """``made(name, what, path="")``: a part of its own module."""
    (tmp_path / "made_part.py").write_text(MADE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{small_run.ROOT}")

    def part(name: str, what: str, path: Path | str = "", limit: float = 60) -> check.Part:
        return check.Part(name, "made_part", (what, str(path)), limit)

    return part


def test_a_part_that_crashes_costs_its_rows_alone_and_each_part_is_written_when_it_is_done(
    made, tmp_path, monkeypatch, capsys
):  # fmt: skip
    output = tmp_path / "check.json"
    parts = made("attention-x", "crash"), made("speed-y", "raise"), made("speed-z", "look", output)
    monkeypatch.setattr(check, "PARTS", parts)
    assert check.main([f"--output={output}"]) == 1
    told = capsys.readouterr().out.splitlines()
    report = json.loads(output.read_text())
    assert [(row["part"], row["what"], row["verdict"]) for row in report["rows"]] == [
        ("attention-x", "begun", MEASURED), ("attention-x", "the rest", FAILED),
        ("speed-y", "begun", MEASURED), ("speed-y", "the rest", FAILED),
        ("speed-z", "begun", MEASURED), ("speed-z", "written before", MEASURED),
    ]  # fmt: skip
    crash, error, seen = (report["rows"][n]["told"] for n in (1, 3, 5))
    assert crash == "ended by signal SIGSEGV: it hurt"
    assert error == "ended by status 1: ValueError: of no use"
    assert seen == "4"
    assert told[-1] == report["summary"]
    assert "1 WRONG or failed: attention-x" in told[-1]
    assert "not measured to the end: speed-y" in told[-1]
    assert [line.split()[0] for line in told[:-1]] == [row["part"] for row in report["rows"]]
    assert report["machine"]["cores"] >= 1


def test_a_part_that_hangs_is_killed_at_its_limit_with_what_it_started(made, tmp_path, monkeypatch, capsys):
    pids = tmp_path / "pids"
    monkeypatch.setattr(check, "PARTS", (made("speed-a", "hang", pids, limit=12), made("speed-b", "fine")))
    assert check.main(["--limit=0.5"]) == 0, "no proof failed"
    told = capsys.readouterr().out.splitlines()
    assert any("over its limit of 6 s, and killed" in line for line in told)
    assert told[-2].startswith("speed-b  measured  begun")
    deadline = time.monotonic() + 90
    for pid in map(int, pids.read_text().split()):
        while is_running(pid):
            assert time.monotonic() < deadline, "it runs on"
            time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_every_backend_has_its_parts_and_what_must_be_right_comes_first():
    assert set(check.BACKENDS) == set(attn.BACKENDS)
    names = [part.name for part in check.PARTS]
    assert len(set(names)) == len(names)
    for backend in attn.BACKENDS:
        assert {f"attention-{backend}-bfloat16", f"speed-{backend}"} <= set(names)
        assert (f"attention-{backend}-float32" in names) == (backend not in required.BACKENDS), "they refuse it"
    assert check.ASKED_FOR == required.BACKENDS == tuple(device.PACKAGES)
    proofs = [part.must_be_right for part in check.PARTS]
    assert proofs == sorted(proofs, reverse=True)
    assert all(callable(importlib.import_module(part.module).rows) for part in check.PARTS)
    assert [part.name for part in check.parts_of("loss, step-2B")] == ["loss-bfloat16", "loss-float32", "step-2B"]


@pytest.mark.parametrize(
    ("flag", "told"),
    [("--part=atention", "did you mean 'attention"), ("--limit=0", "must be positive"), ("--output=no/x", "no folder")],
)
def test_a_mistake_is_one_line(flag, told):
    with pytest.raises(UserError, match=told):
        check.main([flag])


def test_an_attention_backend_is_held_against_float64(monkeypatch):
    case = next(case for case in check_attention.CASES if case.softcap)
    tried = check_attention.held_against_float64, case, "blocks", "float32", 40
    row = check_row.tried("soft-cap", lambda: tried[0](*tried[1:]))
    assert row.verdict == RIGHT
    assert set(row.figures["apart"]) == {"out", "dq", "dk", "dv", "padding"}
    causal = attn.causal

    def one_key_more(*args, **kwargs):
        start, end = causal(*args, **kwargs)
        return start, jnp.minimum(end + 1, 40)

    monkeypatch.setattr(attn, "causal", one_key_more)
    assert check_row.tried("soft-cap", lambda: tried[0](*tried[1:])).verdict == WRONG


def test_all_that_is_promised_of_attention_is_tried():
    kinds = {case.kind for case in check_attention.CASES}
    assert kinds == {"causal", "two-way", "window", "images"}
    assert {case.layout for case in check_attention.CASES} == {"one", "padded", "uneven"}
    assert any(case.softcap for case in check_attention.CASES)
    assert any(case.heads > case.kv_heads for case in check_attention.CASES)
    segments = check_attention.layouts(200)
    assert not segments["padded"][1].any()
    assert len(set(np.bincount(segments["uneven"][0])[1:].tolist())) > 2


@pytest.mark.parametrize("name", ["fused", "splash"])
def test_a_backend_that_does_not_run_here_says_why(name):
    rows = [*check_attention.rows(name, "float32"), *check_speed.rows(name), *check_speed.rows("library-cudnn")]
    assert [row.verdict for row in rows] == [NOT_HERE] * 3
    assert "not on cpu" in rows[0].told


def test_the_loss_is_held_against_float64():
    row = check_loss.held_against_float64("soft-cap", *check_loss.CASES["soft-cap"], "float32")
    assert row.verdict == RIGHT, row.told


def test_what_is_not_a_number_is_wrong_and_what_raises_costs_its_row_alone():
    assert check_row.compared("x", {"out": float("nan")}, {"out": 1.0}).verdict == WRONG
    assert check_row.compared("x", {"out": 1.0, "dq": 2.0}, {"out": 1.0, "dq": 1.0}).verdict == WRONG
    row = check_row.tried("x", lambda: 1 // 0)
    assert (row.verdict, row.told.split(":")[0]) == (FAILED, "ZeroDivisionError")
    assert check_row.read(check_row.written(row)) == row
    assert check_row.read("something else") is None


def row_of(part: str, verdict: str, what: str = "x", **figures) -> dict:
    return {"part": part, **Row(what, verdict, "", figures)._asdict()}


def test_steps_run_with_the_fastest_backend_that_was_right():
    rate = "forward + backward TFLOP/s"
    rows = [
        row_of("attention-fused-bfloat16", RIGHT), row_of("attention-fused-bfloat16", WRONG),
        row_of("attention-splash-bfloat16", NOT_HERE), row_of("attention-blocks-bfloat16", RIGHT),
        row_of("speed-fused", MEASURED, "lognormal, heads of 64", **{rate: 300.0}),
        row_of("speed-blocks", MEASURED, "lognormal, heads of 64", **{rate: 30.0}),
        row_of("speed-blocks", MEASURED, "one document, heads of 64", **{rate: 60.0}),
    ]  # fmt: skip
    assert check.attention_for_steps(rows) == "blocks"
    assert "attention right by blocks; fastest of these on packed rows: blocks (30 TFLOP/s)" in check.summary(rows)
    rows[1] = row_of("attention-fused-bfloat16", RIGHT)
    assert check.attention_for_steps(rows) == "fused"
    assert check.attention_for_steps(rows[:4]) == "", "nothing was measured"
    for name in ("attention-{}-bfloat16", "speed-{}"):
        rows += [{**row, "part": name.format("tokamax")} for row in rows if row["part"] == name.format("fused")]
    rows[-1]["figures"] = {rate: 400.0}
    assert "packed rows: tokamax (400 TFLOP/s, by config.compute.attention=tokamax)" in check.summary(rows)


def test_useful_work_is_that_of_pairs_that_see_each_other():
    intervals = attn.causal(np.array([[1, 1, 1, 2, 2, 0]], np.int32))
    assert check_speed.useful_flops(intervals, heads=2, head=8) == 4 * 2 * 8 * (6 + 3)
    segments = check_speed.segments_of("lognormal", check_speed.SMALL)
    assert segments.min() > 0, "rows are full"
    assert segments.max() == check_speed.SMALL.documents


def test_a_model_that_does_not_fit_is_tried_with_less_kept_and_then_told(monkeypatch):
    tries = []

    def measured(name, size, remat, attention, on_cpu):
        tries.append(remat)
        if len(tries) == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return Row(name, MEASURED, "")

    monkeypatch.setattr(check_step, "measured", measured)
    monkeypatch.setattr(check_step, "SMALL_SIZES", check_step.SIZES)
    assert [row.verdict for row in check_step.rows("0.5B")] == [MEASURED]
    assert tries == ["none", "full"]
    monkeypatch.setitem(check_step.SIZES, "0.5B", check_step.SIZES["0.5B"]._replace(remats=("full",)))
    tries.clear()
    (row,) = check_step.rows("0.5B")
    assert row.verdict == FAILED
    assert "does not fit" in row.told


@pytest.mark.parametrize(("name", "least", "most"), [("0.5B", 0.45e9, 0.65e9), ("2B", 1.9e9, 2.3e9)])
def test_models_have_the_sizes_they_are_called_by(name, least, most):
    from jaxmm.models.flops import parameter_counts
    from jaxmm.models.multimodal import abstract_params

    assert least < sum(parameter_counts(abstract_params(check_step.spec_of(check_step.SIZES[name]))).values()) < most


def test_a_part_prints_rows_as_they_come(capsys):
    assert check_part.main(["--module=jaxmm.checks.attention", "--arguments=splash,float32"]) == 0
    row = check_row.read(capsys.readouterr().out.strip())
    assert row is not None
    assert row.verdict == NOT_HERE


@pytest.mark.slow
def test_the_whole_check_runs_on_a_cpu_at_small_sizes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(small_run.ROOT))
    monkeypatch.setenv("XLA_FLAGS", small_run.environment()["XLA_FLAGS"])  # without the tests' eight devices
    output = tmp_path / "check.json"
    assert check.main([f"--output={output}"]) == 0
    report = json.loads(output.read_text())
    assert not [row for row in report["rows"] if row["verdict"] in (WRONG, FAILED)]
    assert {row["part"] for row in report["rows"]} == {part.name for part in check.PARTS}
    assert "a CPU: small sizes" in capsys.readouterr().out.splitlines()[-1]
    step = next(row["figures"] for row in report["rows"] if row["part"] == "step-0.5B")
    assert step["tokens/s"] > 0
    assert step["MFU"] is None
    assert step["loader / cached"] > 0


def test_a_backend_that_must_be_proven_is_held_against_float64_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def rows(backend, dtype):
        asked.append(dtype)
        verdict = WRONG if dtype == "float16" else RIGHT
        if verdict == RIGHT:
            proof.keep(backend, dtype)
        yield Row("soft-cap", NOT_HERE, "it takes none")
        yield Row("window", verdict, "dq 3.0e-01 (limit 0.02)")

    monkeypatch.setattr(check_attention, "rows", rows)
    assert required.require_attention("blocks", "bfloat16") == ""
    assert "is right on this machine: 1 cases" in required.require_attention("hopper", "bfloat16")
    assert "was right on this machine before" in required.require_attention("hopper", "bfloat16")
    for _ in range(2):
        with pytest.raises(UserError, match=r"hopper is not right .*window: WRONG, dq 3.0e-01 .*take 'fused'"):
            required.require_attention("hopper", "float16")
    assert asked == ["bfloat16", "float16", "float16"], "what was wrong is asked again"
    monkeypatch.setattr(proof.program_cache, "CODE", "of another version")
    required.require_attention("hopper", "bfloat16")
    assert len(asked) == 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_proof_that_does_not_end_is_told_and_ends_the_process_with_a_line(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(required, "EVERY", 0.01)
    monkeypatch.setattr(required, "LIMIT", 0.03)
    said, ended = [], threading.Event()

    def end_at_once(line):
        said.append(line)
        ended.set()
        raise SystemExit  # of the thread that watches

    def rows(backend, dtype):
        yield Row("window", RIGHT, "")
        assert ended.wait(60)

    monkeypatch.setattr(required, "end_at_once", end_at_once)
    monkeypatch.setattr(check_attention, "rows", rows)
    required.require_attention("hopper", "bfloat16", said.append)
    *told, last = said
    assert told
    assert all(" of 9 cases beside float64 after 0.0" in line for line in told)
    assert last.startswith("attention by 'hopper' was held against float64 for 0.03 s, and 1 of 9 cases were done")
