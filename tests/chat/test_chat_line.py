"""Questions wait in a line, and neither a fault nor who leaves stops another."""

from __future__ import annotations

import threading

import pytest

from jaxmm.chat.line import MOST_WAITING, Failed, FullError, Line, Waiting
from jaxmm.errors import UserError


def test_who_comes_later_waits_in_line_and_a_fault_stops_no_other():
    line, may_go = Line(), threading.Event()

    def slow(is_stopped):
        may_go.wait()
        yield "slow"

    def broken(is_stopped):
        raise UserError("of two\nlines")
        yield

    first, second = line.join(slow), line.join(broken)
    waiting = second.events()
    assert next(waiting) == Waiting(1)
    assert line.find(second.name) is second
    others = [line.join(slow) for _ in range(MOST_WAITING - 1)]
    with pytest.raises(FullError, match="wait already"):
        line.join(slow)
    may_go.set()
    assert list(first.events()) == ["slow"]
    assert [event for event in waiting if not isinstance(event, Waiting)] == [Failed("of two lines")]
    assert [list(other.events())[-1] for other in others] == ["slow"] * len(others)
    assert line.find(second.name) is None


def test_who_leaves_makes_room_in_the_line_and_nothing_is_begun_for_them():
    line, may_go, begun = Line(), threading.Event(), []

    def slow(job):
        may_go.wait()
        yield "slow"

    def counted(job):
        begun.append(job)
        yield "well"

    first = line.join(slow)
    others = [line.join(counted) for _ in range(MOST_WAITING)]
    with pytest.raises(FullError):
        line.check_room()
    others[0].leave()
    last = line.join(counted)
    may_go.set()
    assert first.first(str, lambda: False) == "slow"
    assert last.first(str, lambda: False) == "well"
    assert begun == [*others[1:], last]


def test_a_line_outlives_a_bug_and_tells_its_terminal(capsys):
    line = Line()
    job = line.join(lambda is_stopped: 1 / 0)  # type: ignore[arg-type]
    assert isinstance(list(job.events())[-1], Failed)
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert list(line.join(lambda is_stopped: iter(["well"])).events())[-1] == "well"
