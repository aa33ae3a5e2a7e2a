"""tools/faults.py: what it calls a fault is one, and the trials of one seed find none."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import faults
import pytest
from faulting.bench import STEPS, Bench, metrics, once
from faulting.damage import HOSTILE, damaged, damaged_json
from faulting.process import Process
from faulting.trial import HANDLED, HANG, LINE, SILENT, TRACEBACK, Ended, Trial, judged

from jaxmm.errors import UserError

SEED = 22
FEW = {  # trials of each part in CI
    "kills-train": 1, "kills-prepare": 1, "kills-store": 1, "kills-near": 1, "ray": 1, "signals": 1, "twins": 1,
    "checkpoints": 2, "prepared": 2, "disk": 2, "config-values": 3, "config-files": 2, "data": 10, "images": 2,
    "models": 1, "tokenizers": 4, "templates": 4, "prompts": 2,
}  # fmt: skip


# The judge


def ended(program: str, folder: Path, limit: float = 30) -> Ended:
    with Process(["-c", program], folder / "said.txt", dict(os.environ), folder) as process:
        return process.ended(limit)


@pytest.mark.parametrize(
    ("program", "verdict", "told"),
    [
        ("import sys; sys.exit(print('error: no', file=sys.stderr) or 1)", LINE, "error: no"),
        ("1 / 0", TRACEBACK, "ZeroDivisionError"),
        ("import sys; print('Traceback (most recent call last):\\nE: x'); sys.exit(0)", TRACEBACK, "E: x"),
        ("import os; os.abort()", TRACEBACK, "SIGABRT"),
        ("import sys; print('error: a\\nerror: b'); sys.exit(1)", TRACEBACK, "status 1 with 2 lines of errors"),
        ("import sys; sys.exit(1)", TRACEBACK, "status 1 with 0 lines of errors"),
        ("import sys; print('error: a'); sys.exit(3)", TRACEBACK, "status 3"),
        ("print('error: a')", SILENT, "status 0 after error: a"),
        ("print('warning: one record less')", HANDLED, "one record less"),
    ],
)  # fmt: skip
def test_an_end_is_judged_by_status_and_words(program, verdict, told, tmp_path):
    found = judged(ended(program, tmp_path))
    assert found[0] == verdict
    assert told in found[1]


def test_what_does_not_end_is_a_hang_and_leaves_no_process(tmp_path):
    program = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.stdin.close()\n"
    found = ended(program + "while True: pass", tmp_path, limit=2)
    assert judged(found)[0] == HANG
    child = Path(f"/proc/{found.output.strip()}/stat")
    end = time.monotonic() + 60
    while child.exists() and ") Z" not in child.read_text() and time.monotonic() < end:
        time.sleep(0.05)
    assert not child.exists() or ") Z" in child.read_text()


def test_an_end_that_seems_well_is_silent_where_something_is_wrong():
    well = Ended(0, "all is well\n")
    assert judged(well) == (HANDLED, "")
    assert judged(well, lambda: "2 of 9 arrays differ") == (SILENT, "2 of 9 arrays differ")
    assert judged(Ended(1, "error: no\n"), lambda: "never asked")[0] == LINE


def test_damage_is_damage_and_the_same_for_a_seed():
    for data in (b"", b"x", b"\0" * 40, json.dumps(list(range(500))).encode()):
        for seed in range(40):
            what, other = damaged(random.Random(seed), data)
            assert other != data
            assert (what, other) == damaged(random.Random(seed), data)
    tree = json.dumps({"a": [1, {"b": "c"}], "d": None})
    found = {damaged_json(random.Random(seed), tree)[1] for seed in range(200)}
    assert len(found) > len(HOSTILE)


def test_a_trial_is_drawn_by_its_own_number_alone(tmp_path):
    def one(bench, rng):
        yield Trial("", str(rng.random()), SILENT, "")

    part = faults.Part("made-up", one, 5)
    with Bench(tmp_path) as bench:
        all_of_them = list(faults.run_part(part, bench, 3))
        (again,) = faults.run_part(part, bench, 3, first=2, trials=1)
    assert again == all_of_them[2]
    assert again.again == "python tools/faults.py --part=made-up --seed=3 --first=2 --trials=1"
    assert len({trial.what for trial in all_of_them}) == 5


def test_the_table_counts_verdicts_by_part():
    trials = [Trial("data", "x", verdict, "") for verdict in (LINE, LINE, HANDLED, SILENT)]
    trials += [Trial("kills-train", "x", HANDLED, "")] * 3
    rows = [line.split() for line in faults.table(trials).splitlines()]
    assert rows[1:] == [["data", "4", "2", "1", "0", "0", "1"], ["kills-train", "3", "0", "3", "0", "0", "0"],
                        ["all", "7", "2", "4", "0", "0", "1"]]  # fmt: skip
    assert faults.summary(trials) == "kills survived: 3 of 3; bad inputs ended in a line or were handled: 3 of 4"


def test_a_part_is_called_by_the_beginning_of_its_name():
    assert [part.name for part in faults.parts_of("kills,images")] == [
        "kills-train",
        "kills-prepare",
        "kills-store",
        "kills-near",
        "images",
    ]
    with pytest.raises(UserError, match=r"--part=imagse is no part.*did you mean 'images'"):
        faults.parts_of("imagse")


def test_a_part_whose_extra_is_missing_is_left_out_with_a_line(monkeypatch, capsys):
    monkeypatch.setattr(faults.importlib.util, "find_spec", lambda name: None)
    assert "ray" not in [part.name for part in faults.parts_of("")]
    assert "left out: the part 'ray' needs pip install 'jaxmm[ray]'" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"the part 'ray' needs pip install 'jaxmm\[ray\]'"):
        faults.parts_of("ray")


def test_of_a_flag_that_is_given_twice_the_last_counts():
    assert once(["--a=1", "--b=2", "--a=3"]) == ["--a=3", "--b=2"]


# The trials


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with Bench(tmp_path_factory.mktemp("faults"), slack=4) as bench:
        yield bench


def as_parameter(part):
    """With the marker of what it needs, where that is more than the tests do."""
    return pytest.param(part, marks=[getattr(pytest.mark, part.extra)] if part.extra else [], id=part.name)


@pytest.mark.slow
@pytest.mark.parametrize("part", [as_parameter(part) for part in faults.PARTS])
def test_no_trial_of_one_seed_ends_in_a_traceback_a_hang_or_silence(part, bench):
    trials = list(faults.run_part(part, bench, SEED, trials=FEW[part.name]))
    assert len(trials) >= FEW[part.name]
    assert [faults.line(trial) for trial in trials if trial.is_bad] == []


@pytest.mark.slow
def test_a_run_of_which_something_is_missing_is_no_whole_one(bench):
    assert bench.wrong_run(bench.whole) == ""
    workdir = bench.copied(bench.whole)
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert len(metrics(workdir)[0]) == STEPS
    for changed, told in ((lines[1:], "has steps"), ([*lines, lines[2]], "3 again"), ([*lines, "{"], "no metrics")):
        (workdir / "metrics.jsonl").write_text("".join(changed))
        assert told in bench.wrong_run(workdir)
    (workdir / "metrics.jsonl").write_text("".join(lines))
    other = bench.train(bench.place() / "run", "--config.seed=1")
    assert other.status == 0, other.output
    assert "arrays differ" in bench.wrong_run(Path(other.output.split("--workdir=")[1].split()[0]))


@pytest.mark.slow
def test_a_fork_that_hangs_is_killed_and_the_next_one_runs(bench):
    assert judged(bench.run("jaxmm.generate", [f"--workdir={bench.whole}", "--prompt=hi"], limit=0.02))[0] == HANG
    assert judged(bench.run("jaxmm.generate", ["--workdir=nowhere", "--prompt=hi"]))[0] == LINE
