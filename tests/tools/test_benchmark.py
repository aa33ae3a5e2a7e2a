"""tools/benchmark.py: every row of the table gives its figures, for people and as JSON."""

import json
import subprocess
import sys

import pytest
import small_run
from small_run import ROOT

from jaxmm.errors import extra

FAST = ["fill_one_budget", "fill_two_budgets", "planning", "far_batch", "headers", "jpeg"]
CLIPS = ["clip_headers", "video", "audio", "fill_clips", "video_memory"]
NEEDED = {
    "fill_one_budget": {"fill": ">= 0.998"},
    "fill_two_budgets": {"tokens bind: token fill": ">= 0.995", "patches bind: patch fill": ">= 0.995"},
    "planning": {"planned": ">= 1e6", "peak memory": "<= 1"},
    "far_batch": {"process": "<= 2", "reads beyond the batch": "<= 0"},
    "headers": {"all": ">= 5000"},
    "jpeg": {"fast": ">= 600", "exact": ">= 330"},
    "clip_headers": {"mp4": ">= 200", "wav": ">= 5000", "mp3": ">= 1000"},
    "video": {"keyframes every 250: ours / PyAV": "<= 1.15", "keyframes every 30: ours / PyAV": "<= 1.15"},
    "audio": {
        "wav: ours / alone": "<= 1.3", "flac: ours / alone": "<= 1.3", "mp3: ours / alone": "<= 1.3",
        "log-mel: transformers / ours": ">= 4",
    },
    "fill_clips": {"fill of the binding budget": ">= 0.99"},
    "video_memory": {"growth by 1,000 batches": "<= 10"},
    "first_batch": {"raw files to batch": "<= 1"},
    "prepare_text": {"prepare / encode_batch": ">= 0.8"},
    "step_base": {"loader / cached": "<= 1.03"},
    "step_wide": {"loader / cached": "<= 1.03"},
}  # fmt: skip
MAY_BE_0 = [("far_batch", "reads beyond the batch"), ("video_memory", "growth by 1,000 batches")]


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
    told = done.stderr
    for number, name in enumerate(names, 1):
        assert len(names) == 1 or f" row {number} of {len(names)}: {name}\n" in told, "what it is at"
        assert f" {name}: done in " in told
    for row in report["rows"]:
        found = {name: figure["needed"] for name, figure in row["figures"].items() if figure["needed"]}
        assert found == NEEDED[row["row"]]
        for name, figure in row["figures"].items():
            low, high = figure["spread"]
            assert low <= figure["median"] <= high, (row["row"], name)
            assert len(figure["samples"]) >= 1
            assert (row["row"], name) in MAY_BE_0 or figure["median"] > 0
            assert any(line.startswith(row["row"]) and name in line for line in done.stdout.splitlines())


def test_rows_that_need_no_model_give_their_figures(tmp_path):
    check(tmp_path, FAST, repeats=2)


def test_rows_of_clips_give_their_figures(tmp_path):
    for package in ("av", "soundfile", "soxr"):
        pytest.importorskip(package)
    check(tmp_path, CLIPS, repeats=1)


@pytest.mark.slow
def test_the_other_rows_of_the_table_give_their_figures(tmp_path):
    check(tmp_path, [name for name in NEEDED if name not in [*FAST, *CLIPS]], repeats=1)


def test_rows_without_their_packages_are_left_out_with_a_line(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['soxr'] = None\n")
    program = [
        sys.executable,
        str(ROOT / "tools/benchmark.py"),
        "--only=fill_clips,audio",
        "--scale=0.001",
        "--repeats=1",
    ]
    environment = small_run.environment(PYTHONPATH=f"{tmp_path}:{ROOT}")
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert f"row 'audio' is left out: it needs soxr: {extra('media')}" in done.stderr
    assert "fill_clips" in done.stdout
    assert "audio  " not in done.stdout.splitlines()[-1]


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


@pytest.mark.slow
@pytest.mark.full
def test_the_row_of_deltanet_gives_its_figures_and_packed_is_as_alone(tmp_path):
    output = tmp_path / "delta.json"
    done = run("--only=delta", "--scale=0.05", "--repeats=1", f"--output={output}", part="scale")
    assert not done.returncode, done.stderr
    (row,) = json.loads(output.read_text())["rows"]
    assert row["figures"]["packed, apart from alone"]["met"]
    named = {f"{n}: {by}, documents" for n in (2048, 8192, 32768) for by in ("rule", "attention")}
    assert named < row["figures"].keys()
