"""Figures are honest, files are whole after a kill, and the progress line fits where it goes."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxmm import atomic, formatting
from jaxmm.training import logger, throughput
from jaxmm.training.logger import Logger
from jaxmm.training.skipped import SkippedFile
from jaxmm.training.terminal import progress
from jaxmm.training.throughput import Counts, Meter


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def read(path: Path) -> list[dict]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


STEP = Counts(examples=5, tokens=90, token_capacity=100, images=4, patches=30, patch_capacity=60, flops=1e12)


def test_rates_leave_out_the_first_step_and_every_pause():
    clock = Clock()
    meter = Meter("NVIDIA H100 80GB HBM3", 2, clock)
    clock.now += 30  # compiles, and waits for the first two batches
    meter.waited(29)
    meter.step(STEP)
    assert meter.first_step_seconds == 30
    assert meter.window()["tokens_per_second"] is None
    for _ in range(4):
        clock.now += 2
        meter.waited(0.5)
        meter.step(STEP)
        with meter.pause():
            clock.now += 100  # evaluates
    figures = meter.window()
    assert figures == {
        "tokens_per_second": 45,
        "images_per_second": 2,
        "token_fill": 0.9,
        "patch_fill": 0.5,
        "data_wait_fraction": 0.25,
        "mfu": pytest.approx(0.5e12 / (2 * 989e12)),
        "step_seconds": 2,
    }
    del figures["step_seconds"]
    assert meter.totals() == figures
    assert meter.steps == 5
    assert meter.wall_seconds == 438


def test_a_step_ends_when_it_has_and_not_when_the_loop_learns_of_it():
    """As on a CPU, which runs a step within its dispatch: to the loop both end with the second."""
    clock = Clock()
    meter = Meter(clock=clock)
    ends = clock.now + 30, clock.now + 50
    clock.now += 50
    for end in ends:
        meter.step(STEP, end)
    assert meter.first_step_seconds == 30
    assert meter.window()["step_seconds"] == 20


def test_a_window_is_a_sum_over_a_sum():
    clock = Clock()
    meter = Meter(clock=clock)
    meter.step(Counts())
    for tokens, seconds in ((10, 1), (90, 3)):
        clock.now += seconds
        meter.step(Counts(tokens=tokens, token_capacity=100))
    figures = meter.window()
    assert figures["tokens_per_second"] == 25
    assert figures["token_fill"] == 0.5
    assert figures["patch_fill"] is None
    assert figures["mfu"] is None
    assert meter.window()["tokens_per_second"] is None


def test_clips_are_counted_apart_from_images_where_a_run_has_them():
    clock = Clock()
    meter = Meter("", 1, clock, media={"image", "video", "audio"})
    for _ in range(3):
        clock.now += 2
        meter.step(Counts(images=4, videos=2, recordings=1, frames=30, frame_capacity=40))
    figures = meter.window()
    named = ("images_per_second", "videos_per_second", "recordings_per_second", "audio_fill")
    assert [figures[name] for name in named] == [2, 1, 0.5, 0.75]
    line = "  ".join(part.text for part in progress(3, 9, figures))
    assert "2 img/s  1 videos/s  0.5 recordings/s" in line
    assert "fill audio 0.75" in line


def test_what_a_process_counts_of_its_own_rows_is_added_up_over_all_rows():
    clock = Clock()
    meter = Meter("TPU v4", 1, clock, total=lambda numbers: [3 * number for number in numbers])
    for _ in range(3):
        clock.now += 2
        meter.step(Counts(tokens=30, token_capacity=100, images=4, patches=10, patch_capacity=60, flops=1e12))
        figures = meter.window()
        assert (figures["token_fill"], figures["patch_fill"]) == (0.9, 0.5)
    assert (figures["tokens_per_second"], figures["images_per_second"]) == (45, 6)
    assert figures["mfu"] == pytest.approx(1.5e12 / 275e12)
    del figures["step_seconds"]
    assert meter.totals() == figures


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v4 lite", None),
        ("cpu", None),
    ],
)
def test_the_peak_goes_by_the_device_kind(kind, peak):
    assert throughput.peak_flops(kind) == peak
    assert throughput.mfu(1e15, kind, 4) == (None if peak is None else 1e15 / (4 * peak))


def test_peak_memory_is_the_devices_or_else_the_process():
    class Device:
        def __init__(self, stats: dict | None) -> None:
            self.memory_stats = lambda: stats

    assert throughput.peak_memory_bytes([Device({"peak_bytes_in_use": 5}), Device({"peak_bytes_in_use": 7})]) == 7
    assert throughput.peak_memory_bytes([Device(None)]) > 1_000_000


def test_the_summary_has_the_promised_fields(tmp_path):
    evaluated = {"demo_test": {"loss": np.float32(0.5), "answer_accuracy_by_kind": {"count": 1.0}}}
    summary = logger.Summary(3, math.nan, evaluated, 1.0, 2.0, 0.9, 0.5, 0.0, None, 1.0, 2.0, 7, 0, 11, "blocks")
    atomic.write_json(tmp_path / "summary.json", summary._asdict())
    written = json.loads((tmp_path / "summary.json").read_text())
    assert ", ".join(written) == (
        "steps, loss, eval, tokens_per_second, images_per_second, token_fill, patch_fill, data_wait_fraction, mfu, "
        "first_step_seconds, wall_seconds, examples_seen, examples_skipped, peak_memory_bytes, attention, cut_short, "
        "videos_per_second, recordings_per_second, audio_fill, media_gain, goodput"
    )
    assert written["loss"] is None
    assert written["eval"] == {"demo_test": {"loss": 0.5, "answer_accuracy_by_kind": {"count": 1.0}}}


def test_a_json_file_has_no_negative_zero(tmp_path):
    atomic.write_json(tmp_path / "a.json", {"a": [-0.0, np.float32(-0.0), -1.5]})
    assert "-0.0" not in (tmp_path / "a.json").read_text()
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [0.0, 0.0, -1.5]}


def test_a_json_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "config.json"
    atomic.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        atomic.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_full_disk_leaves_the_lines_that_were_whole(tmp_path):
    log = Logger(tmp_path, 10, writers=(), out=io.StringIO())
    log.log(1, {"loss": 1.0})
    with no_room(40):
        with pytest.raises(OSError, match="File too large"):
            log.log(2, {"more": "x" * 100})
        with pytest.raises(OSError, match="File too large"):  # the same again
            log.close()
    with Logger(tmp_path, 10, start=1, writers=(), out=io.StringIO()) as log:
        log.log(2, {"loss": 1.0})
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_full_disk_leaves_a_json_file_as_it_was_and_no_other(tmp_path):
    atomic.write_json(tmp_path / "config.json", {"a": 1})
    with no_room(40), pytest.raises(OSError, match="File too large"):
        atomic.write_json(tmp_path / "config.json", {"a": "b" * 100})
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert atomic.read_json(tmp_path / "config.json") == {"a": 1}
    (tmp_path / "config.json").write_text("[1")
    assert atomic.read_json(tmp_path / "config.json") == atomic.read_json(tmp_path / "none") == {}


@contextlib.contextmanager
def no_room(size: int) -> Iterator[None]:
    """No file may be longer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_run_goes_on_without_events_where_they_cannot_be_written(tmp_path):
    out = io.StringIO()
    with Logger(tmp_path, 10, out=out) as log:
        log.log(1, {"loss": 1.0})
        with no_room(10 * len((tmp_path / "metrics.jsonl").read_bytes())):
            log.log(2, {f"figure{n}": float(n) for n in range(5)})
        log.log(3, {"loss": 1.0})
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert out.getvalue().count("warning: no more TensorBoard events are written: File too large") == 1


def test_a_terminal_that_has_gone_does_not_end_the_run(tmp_path):
    class Gone(Tty):
        def write(self, text):
            raise OSError(5, "Input/output error")

    with Logger(tmp_path, 10, writers=(), out=Gone()) as log:
        log.say("hello")
        log.log(1, {"loss": 1.0})
    assert len(read(tmp_path / "metrics.jsonl")) == 1


def test_names_cannot_steer_the_terminal(tmp_path):
    out = io.StringIO()
    with Logger(tmp_path, 10, writers=(), out=out) as log:
        log.say("data: \x1b]0;mine\x07a\rb\u202ec \udcff é漢\n\tnext")
    assert out.getvalue() == "data: \\x1b]0;mine\\x07a\\rb\\u202ec \\udcff é漢\n\tnext\n"


def test_a_run_that_logged_nothing_leaves_no_empty_file(tmp_path):
    with Logger(tmp_path, 10, out=io.StringIO()) as log:
        log.say("hello")
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_strict_json_one_line_a_step(tmp_path):
    with Logger(tmp_path, 10, writers=(), out=io.StringIO()) as log:
        log.log(1, {"loss": np.float32(2.0), "grad_norm": math.inf, "sources": {"demo": {"loss": math.nan}}})
        assert len(read(tmp_path / "metrics.jsonl")) == 1  # written at once
        log.log(2, {"loss": 1.0})
        log.log(2, {"eval": {"demo_test": {"loss": 0.5}}})
        log.log(3, {"loss": 0.5})
    assert read(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 2.0, "grad_norm": None, "sources": {"demo": {"loss": None}}},
        {"step": 2, "loss": 1.0, "eval": {"demo_test": {"loss": 0.5}}},
        {"step": 3, "loss": 0.5},
    ]


def test_a_resumed_run_drops_the_lines_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 8)) + '{"step": 8, "lo')
    with Logger(tmp_path, 10, start=5, writers=(), out=io.StringIO()) as log:
        assert [line["step"] for line in read(path)] == [1, 2, 3, 4, 5]
        log.log(6, {"loss": 1.0})
    assert [line["step"] for line in read(path)] == [1, 2, 3, 4, 5, 6]


def test_tensorboard_events_are_written(tmp_path):
    with Logger(tmp_path, 10, out=io.StringIO()) as log:
        log.log(1, {"loss": 1.0, "eval": {"demo_test": {"loss": None, "answer_accuracy": 0.5}}})
    events = b"".join(path.read_bytes() for path in tmp_path.glob("events.out.tfevents.*"))
    assert b"eval/demo_test/answer_accuracy" in events
    assert b"eval/demo_test/loss" not in events


def test_other_processes_write_and_print_nothing(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Logger(None, 10) as log:
        log.log(1, {"loss": 1.0})
        log.say("hello")
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


FIGURES = {
    "loss": 1.23456,
    "tokens_per_second": 12345.6,
    "images_per_second": 99.96,
    "token_fill": 0.987,
    "patch_fill": 0.5,
    "data_wait_fraction": 0.014,
    "mfu": None,
    "grad_norm": 0.5,
    "learning_rate": 3e-4,
    "step_seconds": 0.5,
}


def line_of(step: int, figures) -> str:
    return "  ".join(part.text for part in progress(step, 200, figures))


def test_the_line_of_a_step_tells_what_is_known():
    assert line_of(20, FIGURES) == (
        "step 20/200  loss 1.2346  12.3k tok/s  100 img/s  fill 0.99/0.50  wait 1%  grad 0.50  lr 3.0e-04  ETA 1m30s"
    )
    assert line_of(1, {"loss": None, "token_fill": 0.5}) == "step 1/200  loss not finite  fill 0.50"
    empty = {"loss": None, "sources": {"a": {"loss": None, "targets": 0.0}}}
    assert line_of(1, empty) == "step 1/200  no target, no loss"


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 140])
def test_a_narrow_terminal_loses_what_matters_least_and_never_what_is_left_to_do(tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    terminal, pipe = Tty(), io.StringIO()
    for out in (terminal, pipe):
        with Logger(tmp_path, 200, writers=(), out=out) as log:
            log.log(20, FIGURES)
    (line,) = terminal.getvalue().splitlines()
    assert len(line) < columns
    assert line.startswith("step 20/200  loss 1.2346")
    assert line.endswith("ETA 1m30s")
    assert ("lr" in line) == (columns == 140)
    assert "lr 3.0e-04" in pipe.getvalue()


def test_lines_stay_and_what_goes_on_is_rewritten_in_place_on_a_terminal_only(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, pipe = Tty(), io.StringIO()
    for out in (terminal, pipe):
        with Logger(tmp_path, 200, writers=(), out=out) as log:
            log.status("evaluating", at_once=True)
            log.log(1, FIGURES)
            log.log(2, {"eval": {}})
            log.say("warning: a cat")
    shown = re.sub(r"\x1b\[\d+m", "", terminal.getvalue())
    at_last = [line.rsplit("\r\x1b[K", 1)[-1] for line in shown.split("\n")]
    assert [line[:14] for line in at_last] == ["step 1/200  lo", "warning: a cat", ""]
    assert shown.count("evaluating") == 3
    assert "\x1b[33mwarning: a cat\x1b[0m" in terminal.getvalue()
    assert [line[:14] for line in pipe.getvalue().splitlines()] == ["step 1/200  lo", "warning: a cat"]
    assert "\x1b" not in pipe.getvalue()


def test_a_skipped_record_is_listed_once_over_resumes_and_kills(tmp_path):
    path = tmp_path / "skipped.jsonl"
    skipped = SkippedFile(path)
    assert not path.exists()
    assert skipped.add("a.json", 3, "missing")
    assert not skipped.add("a.json", 3, "missing")
    assert skipped.add("a.json", 4, "truncated")
    path.write_text(path.read_text() + '{"file": "a.js')
    skipped = SkippedFile(path)
    assert len(skipped) == 2
    assert not skipped.add("a.json", 4, "truncated")
    assert skipped.add("b.json", "c4", "missing")
    assert read(path) == [
        {"file": "a.json", "record": 3, "reason": "missing"},
        {"file": "a.json", "record": 4, "reason": "truncated"},
        {"file": "b.json", "record": "c4", "reason": "missing"},
    ]


def test_processes_with_a_file_each_list_what_all_have_skipped(tmp_path):
    items: list[dict] = []

    def gather(new):  # the other process met a record of its own, and one that this one has too
        items.extend(new)
        return [
            *new,
            {"file": "b.json", "record": 9, "reason": "gone"},
            {"file": "a.json", "record": 1, "reason": "gone"},
        ]

    skipped = SkippedFile(tmp_path / "skipped.jsonl", gather=gather)
    skipped.note([{"file": "c.json", "record": 0, "reason": "empty"}])
    skipped.add("a.json", 1, "gone")
    for _ in range(2):
        skipped.reread()
    assert items == [{"file": "a.json", "record": 1, "reason": "gone"}]
    assert [line["file"] for line in read(tmp_path / "skipped.jsonl")] == ["c.json", "a.json", "b.json"]
    assert skipped.met == 2


def test_what_later_steps_skipped_is_dropped_and_what_preparing_left_out_is_not_met(tmp_path):
    path = tmp_path / "skipped.jsonl"
    left_out = [{"file": "b.json", "record": 1, "reason": "empty"}]
    skipped = SkippedFile(path)
    skipped.note(left_out)
    skipped.add("a.json", 3, "missing")
    lines = skipped.lines()
    assert (skipped.met, len(skipped), lines) == (1, 2, 2)
    for record in range(100):  # an outage, in steps that no checkpoint has
        skipped.add("a.json", record, "timeout")
    other = SkippedFile(path, lines, writes=False)
    assert len(read(path)) == 102
    again = SkippedFile(path, lines)
    for one in (other, again):
        one.note(left_out)
        assert (one.met, len(one)) == (1, 2)
    assert len(read(path)) == 2
    assert again.add("a.json", 5, "timeout")
    assert SkippedFile(path).met == 0, "version 0.1 counted no lines: none of them is held against the run"


def test_what_another_process_of_the_job_skipped_counts_once_the_file_is_reread(tmp_path):
    ours, theirs = (SkippedFile(tmp_path / "skipped.jsonl") for _ in range(2))
    for skipped, record in ((ours, 1), (theirs, 2), (theirs, 3)):
        skipped.add("a.json", record, "truncated")
    assert len(ours) == 1
    ours.reread()
    assert len(ours) == 3
    assert not ours.add("a.json", 2, "truncated")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5"), (999.4, "999"), (999.9, "1k"), (12345, "12.3k"), (999_600, "1M"), (2.5e9, "2.5G"), (1e12, "1000G")],
)
def test_large_numbers_are_short(value, text):
    assert formatting.short(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0s"), (59.6, "1m00s"), (75, "1m15s"), (7260, "2h01m")])
def test_durations_are_short(seconds, text):
    assert formatting.duration(seconds) == text


def test_a_table_is_aligned():
    rows = [("kind", "questions", "accuracy"), ("colour", 120, 0.98765432), ("count", 7, None), ("all", 123456.7)]
    assert formatting.table(rows).splitlines() == [
        "kind    questions  accuracy",
        "colour        120    0.9877",
        "count           7         -",
        "all        123457",
    ]
    assert formatting.table([]) == ""
