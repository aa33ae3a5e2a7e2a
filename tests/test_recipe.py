"""What the strings of a config mean: mixtures, schedules of them, and numbers by source."""

from __future__ import annotations

import runpy
import sys

import numpy as np
import pytest
from small_run import ROOT

from jaxmm.batch import ImageSpec
from jaxmm.data.assemble import JITTER_FROM
from jaxmm.data.plan import Budgets, Lengths
from jaxmm.errors import UserError
from jaxmm.recipe import (
    Corpus,
    make_assembler,
    make_plan,
    parse_mixture,
    parse_numbers,
    parse_schedule,
    read_budgets,
    read_data,
    read_steps,
    train_corpus,
)

sys.path.append(str(ROOT / "tests/data"))
from made_index import texts

BUDGETS = Budgets(512, 64, 8, 512)


def test_a_mixture_has_shares_by_name():
    assert parse_mixture("a:0.7, b:3") == {"a": 0.7, "b": 3.0}
    assert parse_mixture("a,b") == {"a": 0.0, "b": 0.0}
    assert parse_mixture("") == {}
    for wrong in ("a:x", "a:-1", "a:0", "a:1,b", "a:nan"):
        with pytest.raises(UserError, match=r"config\.data\.mixture"):
            parse_mixture(wrong)


def test_a_schedule_has_shares_from_steps_on():
    assert parse_schedule("a:0.9,b:0.1") == [(0, {"a": 0.9, "b": 0.1})]
    assert parse_schedule("") == [(0, {})]
    assert parse_schedule("a:0.9,b:0.1 @1000 a:1,b:1  @2000 c:1") == [
        (0, {"a": 0.9, "b": 0.1}),
        (1000, {"a": 1.0, "b": 1.0}),
        (2000, {"c": 1.0}),
    ]


@pytest.mark.parametrize(
    "wrong", ["a:1 @0 b:1", "a:1 @20 b:1 @10 a:1", "a:1 @20", "@20 a:1", "a:1 @x b:1", "a:1 @20b:1", "a:1@5 b:x"]
)
def test_a_wrong_schedule_is_one_line_that_names_the_key(wrong):
    with pytest.raises(UserError, match=r"config\.data\.mixture"):
        parse_schedule(wrong)


def test_numbers_by_source_name_sources_that_there_are():
    assert parse_numbers("a:2, b:0.5", "config.data.max_epochs", ["a", "b", "c"]) == {"a": 2.0, "b": 0.5}
    assert parse_numbers("", "config.data.max_epochs", ["a"]) == {}
    assert parse_numbers("a:0", "config.data.loss_weight", ["a"], least=-1e-9) == {"a": 0.0}
    with pytest.raises(UserError, match="no source 'pagse': there are chats, pages; did you mean 'pages'"):
        parse_numbers("pagse:1", "config.data.max_epochs", ["chats", "pages"])
    for wrong in ("a:0", "a", "a:x", "a:inf", "a:-1"):
        with pytest.raises(UserError, match=r"config\.data\.max_epochs"):
            parse_numbers(wrong, "config.data.max_epochs", ["a"])


@pytest.fixture
def corpus() -> Corpus:
    documents: Lengths = texts(np.full(1000, 60), "a")
    return Corpus([documents], [1.0], [])


@pytest.fixture
def config(tmp_path):
    found = runpy.run_path(str(ROOT / "configs/base.py"))["get_config"]()
    found.data.cache = str(tmp_path)
    return found


def test_a_batch_that_no_memory_holds_is_one_line(config, corpus):
    config.batch_size = 10**9
    with pytest.raises(UserError, match=r"config\.batch_size: the pieces .* of 1,000,000,000 rows are 2,133\.3 GB"):
        make_plan(config, corpus, BUDGETS)
    image = ImageSpec(8, 2, 48 * 48, 96 * 96)
    with pytest.raises(UserError, match=r"config\.batch_size: the arrays of 1,000,000,000 rows are [\d,.]+ GB"):
        make_assembler(config, image, corpus, BUDGETS)
    config.batch_size = 8
    make_assembler(config, image, corpus, BUDGETS)
    with pytest.raises(UserError, match="lower it, or seq_len and patch_budget"):
        make_assembler(config, image, corpus, BUDGETS._replace(patches=10**9))


def test_a_row_that_no_memory_holds_is_one_line(config, corpus):
    config.seq_len = 10**9
    with pytest.raises(UserError, match=r"the arrays of 1 row are .* lower it, or seq_len and patch_budget"):
        read_budgets(config, corpus)


@pytest.mark.parametrize("epochs", [1e15, 1e9, float("inf"), float("nan"), -1.0])
def test_more_epochs_than_can_be_counted_are_one_line(config, corpus, epochs):
    config.epochs = epochs
    with pytest.raises(UserError, match=r"config\.epochs"):
        read_steps(config, make_plan(config, corpus, BUDGETS))


def test_a_run_that_ends_before_its_data_does_plans_none_of_the_rest(config, corpus):
    config.data.max_epochs, config.steps = "a:1e15", 50
    plan = make_plan(config, corpus, BUDGETS)
    assert read_steps(config, plan) == 50
    assert len(plan._table.starts) == 1
    config.data.max_epochs = "a:4"
    ends = make_plan(config, corpus, BUDGETS)
    assert read_steps(config, ends) == 50
    config.steps = 1000
    assert read_steps(config, ends) == ends.batches() == pytest.approx(ends.about_batches(), rel=0.1)


@pytest.mark.slow
def test_the_demo_ends_before_its_pictures_begin_to_move(config):
    # They would in its last steps, and its loss would end ten times as high as it was.
    demo = train_corpus(config, read_data(config))
    plan = make_plan(config, demo, read_budgets(config, demo))
    last = plan.batch_arrays(config.steps - 20, config.steps).pieces
    assert last.epoch.max() == JITTER_FROM - 1
