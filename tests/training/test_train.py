"""The train command, end to end on a small dataset of the user's: files, resuming, stopping, and mistakes."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import urllib.request
from pathlib import Path

import jax
import numpy as np
import pytest
import small_run
from ml_collections import ConfigDict
from prometheus_client.parser import text_string_to_metric_families
from small_run import PAGES, assert_same_bits, saved, start, wait_for

from jaxmm import command, evaluate, generate, inspect, train
from jaxmm.atomic import read_lines
from jaxmm.checkpoints import checksums
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.checkpoints.near import Near
from jaxmm.config.file import load_workdir
from jaxmm.errors import UserError
from jaxmm.report.run_curves import charts
from jaxmm.report.run_data import read_run
from jaxmm.runtime import program_cache
from jaxmm.runtime.barrier import Barrier
from jaxmm.training import cpu_dtype, goodput, logger, loop, slow_steps
from jaxmm.training.goodput import RunTime
from jaxmm.training.progress import counts_of
from jaxmm.training.prometheus import Endpoint
from jaxmm.training.run import Run
from jaxmm.workdir.folder import Claim


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_run.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def arguments(data, tmp_path_factory) -> list[str]:
    return small_run.arguments(data, tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory) -> Path:
    """The workdir of a whole run of 8 steps, and ``scraped``, what Prometheus reads at its end."""
    workdir = tmp_path_factory.mktemp("finished")

    def scrape_and_close(endpoint: Endpoint, close=Endpoint.close) -> None:
        with urllib.request.urlopen(endpoint.url) as answer:
            (workdir / "scraped").write_bytes(answer.read())
        close(endpoint)

    extra = ["--config.monitor.attention_every=0", f"--config.log.prometheus=127.0.0.1:{small_run.free_port()}"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Endpoint, "close", scrape_and_close)
        assert train.main([*arguments, *extra, f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture(scope="module")
def stopped(arguments, tmp_path_factory) -> Path:
    """The workdir of a run that ended after 4 steps."""
    workdir = tmp_path_factory.mktemp("stopped")
    assert train.main([*arguments, "--config.steps=4", f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture(scope="module")
def resumed(stopped, arguments, tmp_path_factory) -> tuple[Path, str]:
    """The workdir of that run after it went on to its 8 steps, of which the 7th took 1000 s longer, and its output."""
    workdir, said = shutil.copytree(stopped, tmp_path_factory.mktemp("resumed") / "a run"), io.StringIO()
    late: list[float] = []

    def counted(*args):
        late.append(1000.0 if len(late) == 2 else 0.0)
        return counts_of(*args)

    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stderr(said):
        patched.setattr(slow_steps, "ENOUGH", 1)
        patched.setattr(loop, "counts_of", counted)
        patched.setattr(train, "RunTime", lambda age: RunTime(age, lambda: goodput.clock() + sum(late)))
        assert train.main([*arguments, f"--workdir={workdir}"]) == 0
    return workdir, said.getvalue()


def test_prometheus_reads_what_the_log_has_and_every_figure_has_a_gauge_of_its_own(finished):
    families = {one.name: one for one in text_string_to_metric_families((finished / "scraped").read_text())}
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert "jaxmm_other" not in families, "give these figures rows in training/gauges.py"
    for figure, name in (("loss", "loss"), ("step", "step"), ("token_fill", "token_fill_ratio")):
        assert families[f"jaxmm_{name}"].samples[0].value == last[figure], figure
    assert {tuple(one.labels.values()): one.value for one in families["jaxmm_eval_media_gain_nats"].samples} == {
        ("image", "colours"): last["eval"]["colours"]["media_gain"]["image"]
    }
    assert families["jaxmm_run_info"].samples[0].labels["run"] == finished.name


def test_a_run_leaves_every_file_it_promises(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary) == set(logger.Summary._fields)
    assert summary["steps"] == 8
    assert summary["attention"] == "blocks", "the one that was chosen, as none was asked for on a CPU"
    figures = summary["eval"]["colours"]
    assert figures["answers"] == figures["blind"]["image"]["documents"] == 24
    assert summary["media_gain"] == {"colours": figures["media_gain"]}
    assert (finished / "config.json").exists()
    machine = json.loads((finished / "machine.json").read_text())
    assert (machine["config"], machine["steps"], machine["attention"]) == ("base", 8, "blocks")
    page = (finished / "report.html").read_text()
    assert '<span class="state finished">finished</span> Step 8 of 8' in page
    assert list((finished / "samples").glob("*.png"))
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert set(lines[0]["sources"]) == {"colours", "pages"}
    balance = lines[-1]["balance"]
    assert balance["sources"]["colours"]["asked"] == pytest.approx(0.7)
    for column in ("asked", "tokens", "targets", "loss"):
        assert sum(one[column] for one in balance["sources"].values()) == pytest.approx(1), column
    # Pages are text, colours have a picture.
    assert balance["modalities"]["image"]["tokens"] == balance["sources"]["colours"]["tokens"]
    measured = [line["step"] for line in lines if "gradients" in line]
    assert measured == [4, 8], "where it is evaluated, and at the end"
    assert set(lines[-1]["gradients"]["sources"]["colours"]) == {"vision", "connector", "decoder", "all"}
    assert set(lines[-1]["gradients"]["modalities"]) == {"text", "image"}
    assert sum(one["gradient"] for one in balance["modalities"].values()) == pytest.approx(1)
    assert set(lines[-1]["losses"]["modalities"]) == {"text", "image"}
    assert set(lines[-1]["losses"]["sources"]) == {"colours", "pages"}
    assert all(set(line["eval"]["colours"]["media_gain"]) == {"image"} for line in lines[1::2])
    times = [json.loads(line) for line in (finished / "timeline.jsonl").read_text().splitlines()]
    assert (times[0]["event"], times[-1]["event"], times[-1]["why"]) == ("start", "end", "done")
    told = summary["goodput"]
    wall = times[-1]["time"] - times[0]["time"]
    assert sum(sum(line["seconds"].values()) for line in times[1:]) == pytest.approx(wall, abs=0.01)
    assert 0 < told["total_seconds"] < wall + 0.01, "the end comes after the summary"
    assert told["fraction"] == told["seconds"]["stepping"] / sum(told["seconds"].values())
    by_line = [line["goodput"] for line in lines]
    assert all(before[kind] <= after[kind] for before, after in itertools.pairwise(by_line) for kind in after)
    assert by_line[-1]["evaluating"] > 0 == by_line[-1]["lost"]


def test_a_run_tells_at_evaluations_where_attention_goes_and_keeps_maps_of_its_samples(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    looks = {line["step"]: line["attention"] for line in lines if "attention" in line}
    assert list(looks) == [4, 8]
    for look in looks.values():
        assert (look["layers"], look["heads"]) == (2, 2)
        np.testing.assert_allclose(sum(np.array(mass) for mass in look["mass"].values()), np.ones((2, 2)), atol=1e-5)
        assert set(look["sources"]) == {"colours", "pages"}
        assert min(np.ravel(look["media"]["image"]["mass"])) > 0
    kept = json.loads((finished / "samples" / "colours.json").read_text())
    assert (kept["step"], kept["source"], len(kept["samples"])) == (8, "colours", 8)
    assert all(sample["media"][0]["kind"] == "image" for sample in kept["samples"])


def test_the_page_of_a_run_draws_all_that_the_log_has(finished):
    drawn = {chart.key for section in charts([read_run(finished)]).values() for chart in section}
    assert drawn >= {
        "loss", "loss-sources", "loss-modalities", "answers", "media-gain", "gradients-data", "attention", "shares",
        "memory",
    }  # fmt: skip
    assert (finished / "report.html").stat().st_size < 3_000_000


def test_a_run_stopped_and_resumed_has_the_bits_of_one_that_was_not(finished, resumed):
    assert_same_bits(saved(finished, 8), saved(resumed[0], 8))


def test_a_slow_step_is_told_with_a_command_that_shows_its_rows(resumed, capsys):
    workdir, said = resumed
    (line,) = [line for line in map(json.loads, (workdir / "slow_steps.jsonl").open()) if line["step"] == 7]
    assert (set(line), line["batch"]) == ({"step", "seconds", "median", "batch", "rows"}, 6)
    assert line["seconds"] > 1000 > line["median"]
    (told,) = re.findall(r"step 7 took 1e\+03 s, where \S+ s is usual.*; what it held: (.*)", said)
    module, *options = shlex.split(told.removeprefix("python -m "))
    assert module == inspect.__name__
    assert inspect.main(options) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["batch"], shown["rows"]) == (6, line["rows"])


def test_a_batch_that_a_run_has_no_step_for_is_one_line_and_a_page_ends_with_the_run(resumed, tmp_path, capsys):
    run = f"--workdir={resumed[0]}"
    for more in ([], [f"--output={tmp_path / 'page.html'}"]):
        with pytest.raises(UserError, match=r"'8:9' goes past the end of the run: it has 8 steps, one batch each, 0:8"):
            inspect.main([run, "--batches=8:9", *more])
    assert inspect.main([run, "--batches=7:8"]) == 0
    assert inspect.main([run, "--batches=8:9", "--config.steps=9"]) == 0, "of a longer one"
    capsys.readouterr()
    assert inspect.main([run, f"--output={tmp_path / 'page.html'}", "--rows=100000"]) == 0
    assert "batches 0 to 7;" in capsys.readouterr().out


def test_a_second_start_does_not_trace_the_step_and_has_the_same_bits(stopped, arguments, tmp_path, monkeypatch):
    def export(*args):
        raise AssertionError("was kept by the first start")

    def read(path):
        found.append(original(path))
        return found[-1]

    found, original = [], program_cache._read
    monkeypatch.setattr(program_cache, "_read", read)
    monkeypatch.setattr("jaxmm.runtime.program_cache.export.export", export)
    assert train.main([*arguments, "--config.steps=4", f"--workdir={tmp_path}"]) == 0
    assert len(found) == 2  # the fresh state and the step
    assert None not in found
    assert_same_bits(saved(stopped, 4), saved(tmp_path, 4))


@pytest.mark.slow
def test_a_run_resumes_on_another_mesh_and_with_other_microbatches_with_the_same_loss(
    finished, stopped, arguments, tmp_path
):
    resumed = shutil.copytree(stopped, tmp_path / "resumed")
    other = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--config.accumulation=2"]
    assert train.main([*arguments, *other, f"--workdir={resumed}"]) == 0
    last, reference = (
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["loss"] for folder in (resumed, finished)
    )
    assert last == pytest.approx(reference, rel=1e-5)


def every_file(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("lost", ["deleted", "broken", "deleted with what version 0.2 notes"])
def test_a_run_that_has_lost_what_it_saved_is_refused_and_stays_as_it_is(stopped, arguments, tmp_path, lost):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    if lost == "broken":
        for manifest in workdir.glob("checkpoints/*/state/manifest.ocdbt"):
            manifest.unlink()
    else:
        shutil.rmtree(workdir / "checkpoints")
    if lost.endswith("notes"):
        (workdir / "first_save.json").unlink()
    before = every_file(workdir)
    with pytest.raises(UserError, match="holds a run that has saved, and no checkpoint of it can be used"):
        train.main([*arguments, f"--workdir={workdir}"])
    assert every_file(workdir) == before


def test_a_flipped_bit_in_the_newest_checkpoint_means_the_one_before(stopped, arguments, tmp_path, capsys):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    largest = max((workdir / "checkpoints/4/state").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)
    begun = Run(config_of(arguments), workdir)
    assert begun.start == 2
    assert "ignoring the damaged checkpoint" in capsys.readouterr().err


def test_a_run_that_dies_goes_on_from_its_near_checkpoint_with_the_bits_of_one_that_does_not(
    finished, stopped, arguments, tmp_path, monkeypatch, capsys
):
    workdir, near = shutil.copytree(stopped, tmp_path / "run"), tmp_path / "near"
    argv = [*arguments, "--config.checkpoint.every=0", "--config.checkpoint.near_every=1",
            f"--config.checkpoint.near_dir={near}", f"--workdir={workdir}"]  # fmt: skip

    def struck(self, step: int, *state, save=Near.save) -> None:
        if step == 7:
            raise RuntimeError("struck")
        save(self, step, *state)

    with monkeypatch.context() as patched:
        patched.setattr(Near, "save", struck)
        with pytest.raises(RuntimeError, match="struck"):
            train.main(argv)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4"]
    (left,) = near.glob("*/6.*")
    begun = Run(config_of([*argv[:-1], "--config.checkpoint.near_every=0"]), workdir)
    assert (begun.start, begun.is_from_near) == (4, False), "one that asks for no near ones has none"
    (workdir / "summary.json").write_text("{}")
    assert train.main([*argv, "--config.steps=5"]) == 0
    assert "is finished: 6 of 5 steps are done" in capsys.readouterr().out
    assert left.is_dir(), "nothing else has its steps"
    (workdir / "summary.json").unlink()
    assert train.main(argv) == 0
    said = capsys.readouterr().err
    assert "near checkpoint 6 of 1 process is whole: going on from it; the shared one is of step 4" in said
    assert "going on at step 7 of 8" in said
    assert_same_bits(saved(finished, 8), saved(workdir, 8))
    lines = [read_lines(folder / "metrics.jsonl") for folder in (finished, workdir)]
    steps = [[line["step"] for line in each if "loss" in line] for each in lines]
    assert steps[0] == steps[1]
    assert not list(near.iterdir()), "the workdir has all"
    left.mkdir(parents=True)  # as a kill after the last save leaves it
    assert train.main(argv) == 0
    assert "is finished: 8 of 8 steps are done" in capsys.readouterr().out
    assert not list(near.iterdir())


def test_a_new_run_s_first_near_checkpoint_is_a_shared_one_too(arguments, tmp_path):
    argv = [*arguments, "--config.checkpoint.every=0", "--config.checkpoint.near_every=1", "--config.steps=2",
            f"--config.checkpoint.near_dir={tmp_path / 'near'}", f"--workdir={tmp_path / 'run'}"]  # fmt: skip
    assert train.main(argv) == 0
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["1", "2"]


def config_of(arguments: list[str]) -> ConfigDict:
    return command.parse(arguments, train.FLAGS).config


def test_a_checkpoint_under_another_step_s_name_is_refused(stopped, arguments, tmp_path):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    shutil.copytree(workdir / "checkpoints" / "4", workdir / "checkpoints" / "500")
    with pytest.raises(UserError, match="500 is a checkpoint of step 4"):
        Run(config_of(arguments), workdir)


def test_a_processor_that_is_faster_in_bfloat16_is_new_runs_choice_and_no_older_one_s(
    stopped, arguments, tmp_path, monkeypatch
):
    monkeypatch.setattr(cpu_dtype, "units_here", lambda: "amx_bf16")
    asked = [*arguments, "--config.compute.dtype="]
    begun = Run(config_of(asked), tmp_path / "new")
    assert (begun.recipe.compute.dtype, begun.config.compute.dtype) == ("bfloat16", "bfloat16")
    assert Run(config_of(asked), shutil.copytree(stopped, tmp_path / "run")).recipe.compute.dtype == "float32"


def test_what_was_skipped_in_steps_that_were_not_saved_does_not_count(stopped, arguments, tmp_path):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    with (workdir / "skipped.jsonl").open("a") as file:
        for record in range(1000):
            file.write(json.dumps({"file": "colours.json", "record": record, "reason": "missing"}) + "\n")
    run = Run(config_of(arguments), workdir)
    assert run.start == 4
    assert run.skipped.met == 0


def test_a_second_train_on_a_workdir_is_refused_and_changes_nothing(stopped, arguments, tmp_path):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    with Claim(workdir):
        before = every_file(workdir)
        with pytest.raises(UserError, match=f"is being trained in by process {os.getpid()} on "):
            train.main([*arguments, f"--workdir={workdir}"])
        assert every_file(workdir) == before


def test_evaluate_repeats_the_figures_of_the_run_and_every_process_reads_the_checkpoints(finished, monkeypatch, capsys):
    met: dict[int, list[str]] = {0: [], 1: []}
    read: list[str] = []
    original = checksums.verify
    monkeypatch.setattr(checksums, "verify", lambda *args: read.append(str(args[0])) or original(*args))
    for process, places in met.items():
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        monkeypatch.setattr(Barrier, "largest", lambda self, n, where, places=places: places.append(where) or n)
        assert evaluate.main([f"--workdir={finished}"]) == 0
        told = json.loads((finished / "summary.json").read_text())["eval"]
        assert json.loads((finished / "eval.json").read_text()) == told
        assert process or len(read) == len(set(read))  # a second look at the same bytes would be as long as the first
    assert met[0] == met[1]
    assert capsys.readouterr().out.count("the checkpoint of step 8; the best by its evaluation loss is that of") == 1


def test_generate_answers_about_a_picture(finished, data, capsys):
    capsys.readouterr()
    assert generate.main([f"--workdir={finished}", f"--image={data / '0.png'}", "--prompt=Colour?"]) == 0
    assert capsys.readouterr().out.endswith("\n")


def test_a_run_that_was_killed_while_it_closed_is_closed_by_the_next_start(finished, arguments, tmp_path, capsys):
    workdir = shutil.copytree(finished, tmp_path / "run")
    before = json.loads((workdir / "summary.json").read_text())
    lines = (workdir / "metrics.jsonl").read_text()
    (workdir / "summary.json").unlink()
    shutil.rmtree(workdir / "samples")
    assert train.main([*arguments, f"--workdir={workdir}"]) == 0
    assert "was ended before it was closed" in capsys.readouterr().out
    after = json.loads((workdir / "summary.json").read_text())
    same = ("steps", "loss", "eval", "examples_seen", "examples_skipped", "attention")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert after["tokens_per_second"] is None, "no step was timed"
    assert list((workdir / "samples").iterdir())
    assert (workdir / "metrics.jsonl").read_text() == lines
    assert train.main([*arguments, f"--workdir={workdir}"]) == 0
    assert "is finished" in capsys.readouterr().out


def test_a_finished_run_says_so(finished, arguments, capsys):
    assert train.main([*arguments, f"--workdir={finished}"]) == 0
    assert "raise config.steps" in capsys.readouterr().out


def test_another_seed_in_the_same_workdir_is_refused_with_the_difference(finished, arguments):
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        train.main([*arguments, "--config.steps=9", "--config.seed=1", f"--workdir={finished}"])


def test_a_changed_mixture_is_refused_by_name_or_goes_on_from_the_examples_seen(stopped, arguments, tmp_path, capsys):
    changed = [*arguments, "--config.data.mixture=colours:0.2,pages:0.8", "--config.steps=6", "--config.eval.every=0"]
    resumed = shutil.copytree(stopped, tmp_path / "resumed")
    with pytest.raises(UserError, match=r"data.mixture: 'colours:0.7,pages:0.3' -> .*config.data.allow_change"):
        train.main([*changed, f"--workdir={resumed}"])
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        train.main([*changed, "--config.data.allow_change=True", "--config.seed=1", f"--workdir={resumed}"])
    allowed = [*changed, "--config.data.allow_change=True", f"--workdir={resumed}"]
    assert train.main(allowed) == 0
    with Checkpoints(stopped / "checkpoints") as old, Checkpoints(resumed / "checkpoints") as new:
        seen, plan = old.meta(4)["plan"]["seen"], new.meta(6)["plan"]
    assert plan["batch"] == 4
    assert plan["begun_after"] == seen
    assert all(plan["seen"][name] > seen[name] for name in ("colours", "pages"))
    assert f"{seen['colours']} of colours, {seen['pages']} of pages" in capsys.readouterr().err
    # From here on the new plan is the run's own: it resumes without leave.
    assert train.main([*changed, "--config.steps=8", f"--workdir={resumed}"]) == 0
    with Checkpoints(resumed / "checkpoints") as again:
        assert again.meta(8)["plan"]["begun_after"] == seen
    of_run = Run(config_of([*changed, "--config.steps=8"]), resumed).plan
    assert inspect.planned(load_workdir(str(resumed)), resumed).plan.batch(9) == of_run.batch(9)


@pytest.mark.slow
def test_epochs_set_the_steps_and_every_example_is_seen_as_often(arguments, tmp_path, capsys):
    options = ["--config.epochs=2", "--config.data.max_epochs=pages:1", "--config.eval.every=0"]
    weights = ["--config.data.loss_weight=pages:0", "--config.optimizer.schedule=cosine"]
    assert train.main([*arguments, *options, *weights, f"--workdir={tmp_path}"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert f"all of it ends after step {summary['steps']}" in capsys.readouterr().err
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        meta = checkpoints.meta()
    assert meta["plan"]["seen"] == {"colours": 48, "pages": PAGES}
    assert meta["examples_seen"] == 48 + PAGES
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "sources" in line]
    assert lines[-1]["step"] == summary["steps"]
    assert all(line["sources"]["pages"]["targets"] == 0 < line["sources"]["colours"]["targets"] for line in lines[:1])
    assert lines[-1]["learning_rate"] < 0.6 * max(line["learning_rate"] for line in lines), "the rate falls by its end"


@pytest.mark.slow
def test_init_from_another_run_starts_with_its_weights_alone(finished, arguments, tmp_path):
    options = ["--config.steps=1", "--config.optimizer.rate=0.0", f"--config.init_from={finished}", "--config.seed=3"]
    assert train.main([*arguments, *options, f"--workdir={tmp_path}"]) == 0
    theirs, ours = saved(finished, 8), saved(tmp_path, 1)
    names = [name for name in ours if name.startswith("params.")]
    assert names
    assert_same_bits({name: theirs[name] for name in names}, {name: ours[name] for name in names})
    assert int(ours["step"]) == 1


def test_sigterm_saves_and_says_how_to_go_on(arguments, tmp_path):
    process = start([*arguments, "--config.steps=100000", "--config.eval.every=0"], tmp_path, 8)
    wait_for(tmp_path / "checkpoints" / "2")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143, out
    assert "the same command goes on" in out
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert (checkpoints.latest() or 0) >= 2
