"""Steps that take much longer than those before them are told, and a noisy machine does not flood the log."""

from __future__ import annotations

import json

from test_logger import no_room

from jaxmm.training.slow_steps import ENOUGH, FILE, RECENT, SlowSteps


def added(slow: SlowSteps, first: int, seconds: list[float], waited: float = 0.0) -> int:
    for step, took in enumerate(seconds, first):
        slow.add(step, took, waited, lambda: [[["made/3", 0, 7]]])
    return first + len(seconds)


def test_a_slow_step_is_told_once_there_are_enough_to_compare_with(tmp_path):
    said: list[str] = []
    slow = SlowSteps(tmp_path, said.append, "look")
    step = added(slow, 1, [1.0] * (ENOUGH - 2) + [9.0, 1.0])
    assert not said
    step = added(slow, step, [2.9, 3.0])
    assert said == [f"step {step - 1} took 3 s, where 1 s is usual; what it held: look --batches={step - 2}:{step - 1}"]
    added(slow, step, [40.0], waited=39.0)
    assert "took 40 s, where 1 s is usual, 39 s of them waiting for data;" in said[1]
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    rows = [[["made/3", 0, 7]]]
    assert lines[0] == {"step": step - 1, "seconds": 3.0, "median": 1.0, "batch": step - 2, "rows": rows}
    assert [line["step"] for line in lines] == [step - 1, step]


def test_a_run_that_gets_slower_for_good_is_compared_with_itself(tmp_path):
    said: list[str] = []
    slow = SlowSteps(tmp_path, said.append, "look")
    step = added(slow, 1, [1.0] * RECENT + [5.0] * RECENT)
    slow.end_window()
    said.clear()
    added(slow, step, [5.0] * 10)
    slow.end_window()
    assert not said


def test_of_many_slow_steps_in_a_window_few_are_told_and_the_others_counted(tmp_path):
    said: list[str] = []
    slow = SlowSteps(tmp_path, said.append, "look")
    step = added(slow, 1, [1.0] * RECENT)
    added(slow, step, [4.0] * 7 + [6.0])
    slow.end_window()
    assert len(said) == 4
    assert said[3] == f"5 more steps up to {step + 7} were slow, up to 6 s"
    added(slow, step + 8, [4.0])
    slow.end_window()
    assert len(said) == 5
    assert len((tmp_path / FILE).read_text().splitlines()) == 4


def test_a_run_without_slow_steps_has_no_file_and_a_full_disk_is_told_once(tmp_path):
    said: list[str] = []
    slow = SlowSteps(tmp_path, said.append, "look")
    step = added(slow, 1, [1.0] * ENOUGH)
    assert list(tmp_path.iterdir()) == []
    with no_room(10):
        added(slow, step, [4.0, 4.0])
    assert sum("cannot be written" in line for line in said) == 1
    added(slow, step + 2, [4.0])
    assert len((tmp_path / FILE).read_text().splitlines()) == 1


def test_other_processes_tell_nothing():
    said: list[str] = []
    added(SlowSteps(None, said.append, "look"), 1, [1.0] * ENOUGH + [9.0])
    assert not said
