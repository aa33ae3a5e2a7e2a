"""Every second of a run's life is of one kind, over kills, clocks that are set, damaged files and full disks."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from test_logger import no_room

from jaxmm.training import goodput
from jaxmm.training.goodput import RunTime
from jaxmm.training.line_file import LineFile
from jaxmm.training.step_ends import StepEnds
from jaxmm.training.timeline import KINDS, Life, is_line


class World:
    """A machine: its time of day, which can be set, and its clock, which cannot."""

    def __init__(self) -> None:
        self.now, self.clock = 1000.0, 5.0
        self.said: list[str] = []

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.clock += seconds

    def start(self, age: float = 0.0) -> RunTime:
        return RunTime(age, lambda: self.clock, lambda: self.now)


def lines_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / goodput.FILE).read_text().splitlines()]


def spent(run_time: RunTime) -> dict[str, float]:
    """Without the kinds that have no time."""
    return {kind: pytest.approx(seconds) for kind, seconds in run_time.seconds().items() if abs(seconds) > 1e-9}


def test_what_a_start_does_is_counted_by_its_kind(tmp_path):
    world = World()
    run_time = world.start(age=2)
    world.passes(3)
    run_time.begin(tmp_path, 0, world.said.append)
    run_time.mark("stepping")
    for _ in range(2):
        with run_time.of("data"):
            world.passes(1)
        with run_time.of("compiling"):
            world.passes(4)
        world.passes(10)
    with run_time.of("evaluating"):
        world.passes(5)
        with run_time.of("saving"):
            world.passes(7)
        world.passes(1)
    run_time.end("done")
    summary = run_time.summary()
    assert summary["seconds"] == dict(zip(KINDS, (5, 8, 2, 20, 6, 7, 0, 0), strict=True))
    assert (summary["total_seconds"], summary["fraction"], summary["starts"]) == (48, 20 / 48, 1)
    assert lines_of(tmp_path)[0]["time"] == 998
    assert [lines_of(tmp_path)[-1][name] for name in ("event", "time", "step", "why")] == ["end", 1046, 0, "done"]
    assert goodput.closing_rows(summary)[:2] == [("goodput", "41.7% of 48s, 1 start"), ("time starting", "5s, 10.4%")]


def test_a_wait_for_data_counts_only_while_no_step_runs(tmp_path):
    world = World()
    run_time = world.start()
    run_time.mark("stepping")
    for end, data in ((-math.inf, 10), (14.0, 10), (math.inf, 0), (41.0, 4)):
        before = run_time.seconds()
        run_time.busy_until = functools.partial(float, end)
        with run_time.of("data"):
            world.passes(10)
        after = run_time.seconds()
        assert after["data"] - before["data"] == data
        assert after["stepping"] - before["stepping"] == 10 - data


class Step(NamedTuple):
    data: int
    stepping: int
    then: str  # "", "log", "evaluate" or "save"
    seconds: int


class Start(NamedTuple):
    gap: int  # seconds before it
    starting: int
    steps: list[Step]
    ends: bool  # else it is killed
    from_save: int  # which of the saves it goes on from, the newest is 0


SECONDS = st.integers(0, 9)
STEPS = st.lists(
    st.builds(Step, SECONDS, SECONDS, st.sampled_from(["", "log", "evaluate", "save"]), SECONDS), max_size=6
)
STARTS = st.lists(st.builds(Start, SECONDS, SECONDS, STEPS, st.booleans(), st.integers(0, 2)), min_size=1, max_size=5)


@hypothesis.given(STARTS)
@hypothesis.settings(max_examples=100)
def test_over_any_starts_and_kills_the_seconds_add_up_and_steps_done_again_are_lost(tmp_path_factory, starts):
    workdir, world = tmp_path_factory.mktemp("run"), World()
    known: list[tuple[str, int, int]] = []  # kind, step it is of (0: of none), seconds
    saves, alive = [0], 0
    for n, start in enumerate(starts):
        world.passes(start.gap)
        alive += start.gap
        step = saves[max(0, len(saves) - 1 - start.from_save)]
        saves = [save for save in saves if save <= step]
        known = [("lost" if kind in ("data", "stepping") and of > step else kind, of, s) for kind, of, s in known]
        known += [("down", 0, alive)] if n else []
        run_time = world.start()
        world.passes(start.starting)
        known.append(("starting", 0, start.starting))
        open_: list[tuple[str, int, int]] = []  # of no line yet
        run_time.begin(workdir, step, world.said.append)
        run_time.mark("stepping")
        for done in start.steps:
            with run_time.of("data"):
                world.passes(done.data)
            world.passes(done.stepping)
            step += 1
            open_ += [("data", step, done.data), ("stepping", step, done.stepping)]
            run_time.done(step)
            if sum(s for _, _, s in open_) >= goodput.BEAT:
                known, open_ = known + open_, []
            if done.then == "log":
                run_time.beat()
                known, open_ = known + open_, []
            elif done.then:
                kind = {"evaluate": "evaluating", "save": "saving"}[done.then]
                if done.then == "save":
                    run_time.beat_steps()
                    saves.append(step)
                with run_time.of(kind):
                    world.passes(done.seconds)
                open_.append((kind, 0, done.seconds))
                run_time.beat()
                known, open_ = known + open_, []
        if start.ends:
            run_time.end("SIGTERM")
            known, open_ = known + open_, []
        alive = sum(s for _, _, s in open_)
    lines, life = lines_of(workdir), Life()
    for line in lines:
        life.add(line)
    assert life.seconds == pytest.approx({k: sum(s for kind, _, s in known if kind == k) for k in KINDS}, abs=1e-6)
    assert sum(life.seconds.values()) == pytest.approx(lines[-1]["time"] - lines[0]["time"], abs=1e-6)
    assert life.starts == len(starts)
    assert not world.said


def begun(world: World, workdir: Path, step: int = 0, age: float = 0.0) -> RunTime:
    run_time = world.start(age)
    run_time.begin(workdir, step, world.said.append)
    run_time.mark("stepping")
    return run_time


def test_a_line_with_steps_before_and_after_the_checkpoint_is_split(tmp_path):
    world = World()
    run_time = begun(world, tmp_path)
    world.passes(40)
    run_time.done(4)
    again = begun(world, tmp_path, step=3)
    assert spent(again) == {"stepping": 30, "lost": 10}
    world.passes(8)
    again.done(4)
    again.beat()
    assert spent(begun(world, tmp_path, step=3)) == {"stepping": 30, "lost": 18}, "what is lost is lost once"
    assert spent(begun(world, tmp_path, step=0)) == {"lost": 48}


def test_a_clock_that_is_set_within_a_start_changes_nothing(tmp_path):
    world = World()
    run_time = begun(world, tmp_path)
    world.passes(10)
    world.now -= 5000
    world.passes(10)
    run_time.end("done")
    assert lines_of(tmp_path)[-1]["time"] == 1020


def test_a_clock_that_goes_back_between_two_starts_is_told_and_counts_no_time_twice(tmp_path):
    world = World()
    run_time = begun(world, tmp_path)
    world.passes(10)
    run_time.end("SIGTERM")
    world.now -= 500
    later = world.start()
    world.passes(7)
    later.begin(tmp_path, 0, world.said.append)
    assert spent(later) == {"starting": 7, "stepping": 10}
    assert world.said == [
        "the clock of this machine is 500 s behind the last line of timeline.jsonl: "
        "for how long the run was down is not known"
    ]


def test_a_process_that_is_older_than_the_run_s_last_line_counts_from_there(tmp_path):
    world = World()
    run_time = begun(world, tmp_path)
    world.passes(10)
    run_time.end("done")
    world.passes(1)
    assert spent(begun(world, tmp_path, age=50.0)) == {"starting": 1, "stepping": 10}
    assert not world.said


def test_a_line_that_a_kill_has_cut_is_replaced(tmp_path):
    world = World()
    run_time = begun(world, tmp_path)
    world.passes(10)
    run_time.beat()
    whole = (tmp_path / goodput.FILE).read_bytes()
    (tmp_path / goodput.FILE).write_bytes(whole + b'{"event": "beat", "ti')
    world.passes(20)
    assert spent(begun(world, tmp_path)) == {"stepping": 10, "down": 20}
    assert all(map(is_line, lines_of(tmp_path)))
    assert not world.said


WHOLE = b'{"event": "start", "format": 1, "time": 1, "step": 0}\n'


@pytest.mark.parametrize(
    "content",
    [
        b"my notes\n",
        b'{"event": "beat", "time": 1, "step": 0, "seconds": {}}\n',
        b'{"event": "start", "format": 2, "time": 1, "step": 0}\n',
        WHOLE + b"\x00\x00\n",
        WHOLE + b'{"event": "end", "time": 2, "step": 0, "seconds": 1}\n',
        b'{"event": "start", "format": 1, "time": NaN, "step": 0}\n',
    ],
)
def test_a_file_that_is_no_timeline_is_put_aside_and_told(tmp_path, content):
    (tmp_path / goodput.FILE).write_bytes(content)
    (tmp_path / "timeline.old-1.jsonl").write_text("of another time")
    world = World()
    begun(world, tmp_path)
    (line,) = world.said
    assert "is no timeline of a run, by its line" in line
    assert line.endswith("it is now timeline.old-2.jsonl, and a new one begins")
    assert (tmp_path / "timeline.old-2.jsonl").read_bytes() == content
    assert (tmp_path / "timeline.old-1.jsonl").read_text() == "of another time"
    assert [line["event"] for line in lines_of(tmp_path)] == ["start", "beat"]


def test_a_full_disk_is_told_once_and_no_second_is_missing_later(tmp_path):
    world = World()
    run_time = begun(world, tmp_path)
    world.passes(1)
    run_time.beat()
    with no_room((tmp_path / goodput.FILE).stat().st_size + 20):
        for _ in range(3):
            world.passes(10)
            run_time.beat()
    assert spent(run_time) == {"stepping": 31}
    world.passes(10)
    run_time.end("done")
    assert spent(begun(world, tmp_path)) == {"stepping": 41}
    (line,) = world.said
    assert re.search(r"timeline.jsonl cannot be written \(.+\): its seconds go into the next line that can be", line)


def test_a_disk_that_is_full_from_the_start_on_ends_nothing(tmp_path):
    world = World()
    with no_room(0):
        run_time = begun(world, tmp_path)
        world.passes(10)
        run_time.end("done")
    assert run_time.summary()["seconds"]["stepping"] == 10
    assert len(world.said) == 1
    with no_room(0):
        (tmp_path / "file").mkdir()
        assert not LineFile(tmp_path / "file", world.said.append, "so it is").append({})
    assert len(world.said) == 2


def test_a_run_that_began_without_a_timeline_says_what_is_not_known(tmp_path):
    world = World()
    run_time = begun(world, tmp_path, step=40)
    assert world.said == [
        "timeline.jsonl begins with this start: where the time of the first 40 steps went is not known"
    ]
    assert run_time.summary()["starts"] == 1


def test_other_processes_and_starts_that_never_began_write_nothing(tmp_path):
    world = World()
    run_time = world.start()
    world.passes(3)
    run_time.beat()
    run_time.end("UserError")
    other = world.start()
    other.begin(None, 0, world.said.append)
    other.done(5)
    other.end("done")
    assert list(tmp_path.iterdir()) == []
    assert not world.said


def test_the_age_of_a_process_is_known_where_linux_tells():
    program = "from jaxmm.runtime.startup import process_age as age; import time; time.sleep(0.2); print(age())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    least = 0.19 if os.path.exists("/proc/self/stat") else 0.0
    assert least <= float(done.stdout) < 60


def test_the_end_of_a_step_is_noted_while_the_loop_does_something_else():
    clock = [0.0]
    with StepEnds(lambda: clock[0]) as ends:
        assert ends.busy_until() == -math.inf
        ends.begun(jax.numpy.asarray(np.ones(3)) * 2)
        deadline = time.monotonic() + 60
        while ends.busy_until() == math.inf and time.monotonic() < deadline:
            pass
        assert ends.busy_until() == 0
        clock[0] = 5
        ends.paused()
        clock[0] = 7
        ends.begun(np.ones(3))
        assert ends.idle == 2
