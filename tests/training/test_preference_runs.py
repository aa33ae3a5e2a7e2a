"""Runs that learn from preferences: over the model beneath their adapters, or over what it was asked before."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import PIL.Image
import pytest
import small_run
from made_folders import folder_of
from small_run import by_variables, free_port, start

import jaxmm
from jaxmm import command, evaluate, inspect, reference, sharding, train
from jaxmm.atomic import read_lines
from jaxmm.config.file import load_workdir
from jaxmm.data.assemble import REPLACED, UNKNOWN
from jaxmm.errors import UserError
from jaxmm.recipe import eval_corpus, read_recipe
from jaxmm.training.preference_evaluator import make_evaluator
from jaxmm.training.run import Run

pytestmark = pytest.mark.usefixtures("whole_transformers")
OPTIMIZER = (
    "--config.optimizer.name=adamw", "--config.optimizer.rate=3e-3", "--config.eval.every=0", "--config.log.every=1",
    "--config.eval.examples=8",
)  # fmt: skip
ADAPTERS = ("--config.adapter.rank=2", "--config.objective=dpo")


def make_data(folder: Path) -> Path:
    """Pictures of one colour: pairs of a right and a wrong name, a pair longer than any row, and names with labels."""
    names = list(small_run.COLOURS)
    pairs, judged = [], []
    for i in range(24):
        name, wrong = names[i % 3], names[(i + 1 + i // 12) % 3]
        PIL.Image.new("RGB", (32, 24), small_run.COLOURS[name]).save(folder / f"{i}.png")
        question = [{"from": "human", "value": "<image>Colour?"}]
        said = [{"from": "gpt", "value": one} for one in (name, wrong)]
        pairs.append({
            "conversations": question, "chosen": said[0], "rejected": said[1], "images": [f"{i}.png"]
        })  # fmt: skip
        judged.append({"conversations": [*question, said[i % 2]], "label": i % 2 == 0, "images": [f"{i}.png"]})
    pairs.append(pairs[0] | {"chosen": {"from": "gpt", "value": "long " * 100}})
    (folder / "pairs.json").write_text(json.dumps(pairs))
    (folder / "judged.json").write_text(json.dumps(judged))
    columns = {"messages": "conversations", "images": "images"}
    info = {
        "pairs": {"file_name": "pairs.json", "formatting": "sharegpt", "ranking": True,
                  "columns": columns | {"chosen": "chosen", "rejected": "rejected"}},
        "judged": {"file_name": "judged.json", "formatting": "sharegpt", "columns": columns | {"kto_tag": "label"}},
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture(scope="module")
def arguments(qwen_vl, tmp_path_factory) -> list[str]:
    return arguments_of(make_data(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("cache"), qwen_vl)


def arguments_of(data: Path, cache: Path, base: Path) -> list[str]:
    own = [*small_run.arguments(data, cache), small_run.SCANNED]
    of_data = ["--config.data.mixture=pairs", "--config.eval.mixture=pairs"]
    return [*(one for one in own if "mixture" not in one), *of_data, *OPTIMIZER, f"--config.init_from={base}"]


class Finished(NamedTuple):
    workdir: Path
    said: str


@pytest.fixture(scope="module")
def run(arguments, tmp_path_factory) -> Finished:
    """A run over the model beneath its adapters, and what it said."""
    workdir, said = tmp_path_factory.mktemp("runs") / "finished", io.StringIO()
    with contextlib.redirect_stderr(said):
        assert train.main([*arguments, *ADAPTERS, f"--workdir={workdir}"]) == 0
    return Finished(workdir, said.getvalue())


@pytest.fixture(scope="module")
def finished(run) -> Path:
    return run.workdir


def logged(workdir: Path) -> list[dict]:
    return [line for line in read_lines(workdir / "metrics.jsonl") if "loss" in line]


def test_a_run_over_its_own_base_begins_where_the_reference_is_and_learns_what_is_better(finished):
    first, *_, last = logged(finished)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["preferences"]["pairs"]["margin"] == pytest.approx(0, abs=1e-5)
    assert last["loss"] < first["loss"] - 0.01
    assert last["preferences"]["pairs"]["margin"] > 0.01
    assert last["preference_accuracy"] > 0.5


def test_a_pair_longer_than_a_row_is_dropped_whole_and_told(run):
    assert "data: pairs, 1 of 25 pairs longer than a row: dropped whole" in run.said


def test_a_run_that_stopped_and_went_on_has_the_bits_of_one_that_did_not(arguments, finished, tmp_path):
    for steps in (4, 8):
        of_steps = [*arguments, *ADAPTERS, *small_run.UNSEEN, f"--config.steps={steps}"]
        assert train.main([*of_steps, f"--workdir={tmp_path / 'run'}"]) == 0
    small_run.assert_same_bits(small_run.saved(finished, 8), small_run.saved(tmp_path / "run", 8))


def test_evaluation_asks_the_base_too(finished):
    assert evaluate.main([f"--workdir={finished}"]) == 0
    of_run = json.loads((finished / "summary.json").read_text())["eval"]["pairs"]
    found = json.loads((finished / "eval.json").read_text())["pairs"]
    blind, of_run_blind = (figures.pop("preference_accuracy_blind") for figures in (found, of_run))
    assert found == pytest.approx(of_run, rel=1e-4, abs=1e-5)
    assert found["pairs"] == 8
    assert blind == of_run_blind
    assert 0 <= blind["image"] <= 1
    assert found["margin"] == pytest.approx(found["chosen_reward"] - found["rejected_reward"], abs=1e-6)


def test_whole_weights_learn_next_to_what_their_base_was_asked_before(arguments, finished, tmp_path, capsys):
    whole = [*arguments, "--config.objective=dpo", "--config.steps=3"]
    asked = [*arguments, *ADAPTERS, "--config.preference.reference=asked"]
    ask = "the reference was not asked about 25 of 25 pairs: ask it by `jaxmm reference` with the"
    ways = rf"{ask} same config; or train adapters alone .*; or take config.objective=simpo or orpo"
    with pytest.raises(UserError, match=ways):
        train.main([*whole, f"--workdir={tmp_path / 'run'}"])
    with pytest.raises(UserError, match=f"{ask} same config; or leave config.preference.reference=asked out: each"):
        train.main([*asked, f"--workdir={tmp_path / 'run'}"])
    with pytest.raises(UserError, match=f"{ask} config of the run and the keys given here$"):
        evaluate.main([f"--workdir={finished}", "--config.preference.reference=asked"])
    with pytest.raises(UserError, match=r"asks the model beneath them .* set config\.preference\.reference=asked for"):
        reference.main([*arguments, *ADAPTERS])
    assert reference.main(whole) == 0
    of_training, held_out = capsys.readouterr().out.splitlines()  # they are the same data
    assert "pairs: asked about 24 of 25 pairs, 1 longer than a row: " in of_training
    assert "pairs: asked about 0 of 25 pairs, 24 known from before, 1 longer than a row: " in held_out
    with pytest.raises(UserError, match="fast_decode=True: the run would see the pictures of pairs otherwise than"):
        train.main([*whole, "--config.data.fast_decode=True", f"--workdir={tmp_path / 'run'}"])
    for more in ((*small_run.UNSEEN, "--config.steps=2"), ("--config.steps=3",)):  # the second goes on
        assert train.main([*whole, *more, f"--workdir={tmp_path / 'run'}"]) == 0
    first = logged(tmp_path / "run")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert evaluate.main([f"--workdir={tmp_path / 'run'}"]) == 0
    beneath = [*asked, "--config.steps=3", *small_run.UNSEEN]
    assert train.main([*beneath, f"--workdir={tmp_path / 'adapters'}"]) == 0
    found, wanted = ([line["loss"] for line in logged(run)][:3] for run in (tmp_path / "adapters", finished))
    assert found == pytest.approx(wanted, rel=1e-4), "asked before or in each step, it says the same"
    other = folder_of("qwen2.5-vl", tmp_path / "other", seed=2)
    with pytest.raises(UserError, match=r"about 25 of 25 pairs \(what is kept was asked with other weights \(config"):
        train.main([*whole, f"--config.init_from={other}", f"--workdir={tmp_path / 'next'}"])


def test_an_evaluation_of_pairs_of_which_no_row_holds_one_stops(finished):
    told = r"among the 8 that are used of it: nothing to evaluate; the smallest has \d+ tokens.* raise config\.seq_len$"
    with pytest.raises(UserError, match=told):
        evaluate.main([f"--workdir={finished}", "--config.seq_len=8"])


def test_held_out_pairs_longer_than_a_row_are_told(finished):
    config = load_workdir(str(finished))
    recipe, mesh = read_recipe(config, finished), sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        evaluator = make_evaluator(eval_corpus(config, recipe), recipe, mesh, seq_len=128, batch_size=8, examples=0)
    assert "pairs, 1 of 25 pairs longer than a row: dropped whole" in evaluator.notes


def test_the_newest_checkpoint_of_another_run_is_chosen_once(arguments, finished, tmp_path, monkeypatch):
    taken = []

    def take(*_, init_from: str, seed: int) -> None:
        taken.append(init_from)
        raise InterruptedError(seed)

    for module in (reference, sys.modules["jaxmm.training.run"]):
        monkeypatch.setattr(module, "started_params", take)
    asked = [*arguments, *ADAPTERS, f"--config.init_from={finished}"]
    with pytest.raises(InterruptedError):
        reference.main([*asked, "--config.preference.reference=asked"])
    with pytest.raises(InterruptedError):
        Run(command.parse(asked, {}).config, tmp_path / "run").initial_state()
    assert taken == [f"{finished.resolve()}@8"] * 2


def test_the_pages_show_both_answers_and_how_far_they_are_apart(arguments, finished, tmp_path):
    page = tmp_path / "page.html"
    assert inspect.main([*arguments, *ADAPTERS, "--batches=0:1", f"--output={page}"]) == 0
    text = page.read_text()
    assert re.search("1 pair of 25 over a row’s budgets \\(1 by tokens.*: left out whole, as both answers must", text)
    assert "cut into parts" not in text
    assert "the better answer; from " in text
    assert "Pairs a row" in text
    told = (finished / "report.html").read_text()
    assert all(title in told for title in ("Preferences right", "Rewards", "Margin"))


def test_a_loop_of_ones_own_has_the_loss_of_the_objective(arguments, finished):
    config = command.parse([*arguments, *ADAPTERS], {}).config
    model = jaxmm.make_model(config)
    batch = next(jaxmm.batches(config, 0, 1))
    params = jax.jit(model.init)(jax.random.key(0))
    assert float(jax.jit(model.loss)(params, batch)) == pytest.approx(math.log(2), abs=1e-5)
    config.preference.reference = "asked"
    config.init_from = str(finished)
    with pytest.raises(UserError, match="was not asked about"):
        jaxmm.batches(config, 0, 1)


@pytest.mark.slow
def test_a_pair_that_the_reference_could_not_read_is_left_out_and_told(qwen_vl, tmp_path, capsys):
    for folder in ("data", "cache"):
        (tmp_path / folder).mkdir()
    broken = make_data(tmp_path / "data") / "3.png"
    whole, picture = [*arguments_of(tmp_path / "data", tmp_path / "cache", qwen_vl), ADAPTERS[1]], broken.read_bytes()
    broken.write_bytes(picture[:-30])
    assert reference.main(whole) == 0
    assert "asked about 23 of 25 pairs, 1 longer than a row, 1 could not be read: " in capsys.readouterr().out
    broken.write_bytes(picture)
    assert train.main([*whole, "--config.steps=3", *small_run.UNSEEN, f"--workdir={tmp_path / 'run'}"]) == 0
    (left,) = read_lines(tmp_path / "run" / "skipped.jsonl")
    assert (left["record"], left["reason"]) == (3, UNKNOWN)


@pytest.mark.slow
def test_a_picture_that_was_replaced_under_its_name_is_never_compared_with_what_was_said_of_another(
    qwen_vl, tmp_path, capsys
):  # fmt: skip
    for folder in ("data", "cache"):
        (tmp_path / folder).mkdir()
    picture = make_data(tmp_path / "data") / "3.png"
    whole = [*arguments_of(tmp_path / "data", tmp_path / "cache", qwen_vl), ADAPTERS[1], "--config.steps=3"]
    whole.append("--config.eval.examples=24")
    assert reference.main(whole) == 0
    PIL.Image.new("RGB", (32, 24), (1, 2, 3)).save(picture)
    assert train.main([*whole, f"--workdir={tmp_path / 'run'}"]) == 0
    (left,) = read_lines(tmp_path / "run" / "skipped.jsonl")
    assert (left["record"], left["reason"]) == (3, REPLACED)
    assert f"record 3 could not be used ({REPLACED}); " in capsys.readouterr().err
    held_out = json.loads((tmp_path / "run" / "summary.json").read_text())["eval"]["pairs"]
    assert (held_out["pairs"], held_out["pairs_skipped"]) == (23, 1)
    assert reference.main(whole) == 0
    assert "asked about 1 of 25 pairs, 23 known from before, 1 longer than a row: " in capsys.readouterr().out
    assert train.main([*whole, f"--workdir={tmp_path / 'again'}"]) == 0
    assert not (tmp_path / "again" / "skipped.jsonl").exists()
    assert "pairs_skipped" not in json.loads((tmp_path / "again" / "summary.json").read_text())["eval"]["pairs"]


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_dropout_included(arguments, tmp_path):
    asked = [one for one in arguments if "config.eval." not in one]
    asked += [*ADAPTERS, "--config.adapter.dropout=0.2", "--config.steps=3", "--config.eval.every=0"]
    running = [start(asked, tmp_path / "two", 4, **mine) for mine in by_variables(2, free_port())]
    assert train.main([*asked, f"--workdir={tmp_path / 'one'}"]) == 0
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert len(one) == 3
    for name in ("loss", "preference_accuracy", "examples_seen"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=1e-6), name


def test_judged_answers_are_learnt_by_kto(arguments, tmp_path):
    asked = [one.replace("=pairs", "=judged") for one in arguments]
    assert train.main([*asked, *ADAPTERS, "--config.objective=kto", f"--workdir={tmp_path / 'run'}"]) == 0
    first, *_, last = logged(tmp_path / "run")
    assert first["loss"] == pytest.approx(0.5, abs=1e-5)
    assert first["preferences"]["judged"]["kl"] == pytest.approx(0, abs=1e-5)
    assert last["preferences"]["judged"]["margin"] > 0.01


@pytest.mark.parametrize(("more", "message"), [
    (["--config.objective=kto"], "pairs"),
    (["--config.objective=", "--config.preference.beta=0.2"], r"preference.beta goes with config.objective=dpo or ipo"),
    (["--config.objective=dpo", "--config.preference.margin=1.0"], r"margin goes with config.objective=simpo, and"),
    (["--config.objective=dpo", "--config.data.objective=pretrain"], r"leave config.data.objective=pretrain out"),
    (["--config.objective=dop"], r"did you mean 'dpo'"),
])  # fmt: skip
def test_what_does_not_go_together_is_one_line(more, message, arguments, tmp_path):
    with pytest.raises(UserError, match=message):
        train.main([*arguments, *ADAPTERS[:1], *more, f"--workdir={tmp_path / 'run'}"])
