"""tools/benchmark.py: every row of the table gives its figures, for people and as JSON."""

import json
import subprocess
import sys

import pytest
import small_run
from small_run import ROOT

FAST = ["fill_one_budget", "fill_two_budgets", "planning", "far_batch", "headers", "jpeg"]
NEEDED = {
    "fill_one_budget": {"fill": ">= 0.998"},
    "fill_two_budgets": {"tokens bind: token fill": ">= 0.995", "patches bind: patch fill": ">= 0.995"},
    "planning": {"planned": ">= 1e6", "peak memory": "<= 1"},
    "far_batch": {"process": "<= 2", "reads beyond the batch": "<= 0"},
    "headers": {"all": ">= 5000"},
    "jpeg": {"fast": ">= 600", "exact": ">= 330"},
    "first_batch": {"raw files to batch": "<= 1"},
    "prepare_text": {"prepare / encode_batch": ">= 0.8"},
    "step_base": {"loader / cached": "<= 1.03"},
    "step_wide": {"loader / cached": "<= 1.03"},
}


def run(*flags: str, part: str = "data") -> subprocess.CompletedProcess:
    program = [sys.executable, str(ROOT / "tools/benchmark.py"), f"--part={part}", *flags]
    # Without the tests' eight devices: the step's rows make a device of every core themselves.
    environment = small_run.environment(PYTHONPATH=str(ROOT))
    return subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)


def check(tmp_path, names: list[str], repeats: int) -> None:
    output = tmp_path / "data.json"
    done = run(f"--only={','.join(names)}", "--scale=0.01", f"--repeats={repeats}", f"--output={output}")
    assert not done.returncode, done.stderr
    report = json.loads(output.read_text())
    assert report["seed"] == 0
    assert report["machine"]["cores"] >= 1
    assert report["versions"]["numpy"]
    assert [row["row"] for row in report["rows"]] == names
    for row in report["rows"]:
        found = {name: figure["needed"] for name, figure in row["figures"].items() if figure["needed"]}
        assert found == NEEDED[row["row"]]
        for name, figure in row["figures"].items():
            low, high = figure["spread"]
            assert low <= figure["median"] <= high, (row["row"], name)
            assert len(figure["samples"]) >= 1
            assert (row["row"], name) == ("far_batch", "reads beyond the batch") or figure["median"] > 0
            assert any(line.startswith(row["row"]) and name in line for line in done.stdout.splitlines())


def test_rows_that_need_no_model_give_their_figures(tmp_path):
    check(tmp_path, FAST, repeats=2)


@pytest.mark.slow
def test_the_other_rows_of_the_table_give_their_figures(tmp_path):
    check(tmp_path, [name for name in NEEDED if name not in FAST], repeats=1)


def test_a_row_that_is_not_there_is_one_line(tmp_path):
    done = run("--only=fill_one_buget")
    assert done.returncode == 1
    assert "no row 'fill_one_buget'" in done.stderr
    assert "fill_one_budget" in done.stderr


@pytest.mark.slow
def test_the_rows_of_scale_give_their_figures_and_a_device_holds_its_share(tmp_path):
    output = tmp_path / "scale.json"
    done = run("--only=attention,packed,shards", "--scale=0.1", "--repeats=1", f"--output={output}", part="scale")
    assert not done.returncode, done.stderr
    rows = {row["row"]: row["figures"] for row in json.loads(output.read_text())["rows"]}
    assert set(rows) == {"attention", "packed", "shards"}
    assert all(figure["met"] for figure in rows["shards"].values())
    assert rows["packed"]["packed / padded"]["median"] > 0
    assert rows["attention"]["documents / one"]["needed"] == "<= 0.1667"
