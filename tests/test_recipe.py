"""What the strings of a config mean: mixtures, schedules of them, and numbers by source."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from small_run import ROOT

from jaxmm import command
from jaxmm.config.shares import parse_mixture, parse_numbers, parse_schedule
from jaxmm.corpus import Corpus, foreseen_budgets, make_assembler, make_plan, read_budgets, read_jitter, read_steps
from jaxmm.data.media.image import JITTER_FROM
from jaxmm.data.packing.plan import Budgets, Lengths, choose_budgets
from jaxmm.data.reading import Reading
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec
from jaxmm.recipe import eval_corpus, read_data, read_reading, train_corpus

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


@pytest.mark.parametrize("epochs", [1e15, 1e9])
def test_more_epochs_than_can_be_counted_are_one_line(config, corpus, epochs):
    config.epochs = epochs
    with pytest.raises(UserError, match=r"config\.epochs"):
        read_steps(config, make_plan(config, corpus, BUDGETS))


def test_a_run_that_ends_before_its_data_does_plans_none_of_the_rest(config, corpus):
    config.data.max_epochs, config.steps = "a:1e8", 50
    plan = make_plan(config, corpus, BUDGETS)
    assert read_steps(config, plan) == 50
    assert len(plan._table.starts) == 1
    config.data.max_epochs = "a:4"
    ends = make_plan(config, corpus, BUDGETS)
    assert read_steps(config, ends) == 50
    config.steps = 1000
    assert read_steps(config, ends) == ends.batches() == pytest.approx(ends.about_batches(), rel=0.1)


# Training data and held-out data


def corpora(tmp_path: Path, **keys: object):
    """The texts of the training data and of the held-out data, as a run with these keys reads them."""
    given = [f"--config.{key.replace('__', '.')}={value}" for key, value in keys.items()]
    base = [f"--config={ROOT / 'configs/base.py'}", f"--config.data.cache={tmp_path / 'cache'}"]
    config = command.parse([*base, *given], {}, about="").config
    recipe = read_data(config)
    return [
        _texts(corpus) if corpus else None for corpus in (train_corpus(config, recipe), eval_corpus(config, recipe))
    ]


def _texts(corpus) -> list[str]:
    (source,) = corpus.lengths
    return [bytes(t - 3 for t in source.prepared.read(i).tokens[:-1]).decode() for i in range(len(source))]


def write(path: Path, count: int, said: str = "page") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": f"{said} {i}"}) + "\n" for i in range(count)))
    return path


@pytest.mark.parametrize("same", [True, False])
def test_a_part_kept_for_evaluation_is_not_trained_on(tmp_path, same):
    path = write(tmp_path / "a.jsonl", 200)
    train, held_out = corpora(
        tmp_path, data__path=path, data__val_size=0.2, eval__path=path if same else "", data__mixture="a:1"
    )
    assert 10 < len(held_out) < 80
    assert sorted(train + held_out) == sorted(f"page {i}" for i in range(200))
    assert corpora(tmp_path, data__path=path)[1] is None


def test_held_out_data_without_answers_is_no_reason_to_stop_and_training_data_is(tmp_path):
    write(tmp_path / "a.jsonl", 3)
    turns = [{"role": "user", "content": "page?"}, {"role": "assistant", "content": "page", "weight": 0}]
    (tmp_path / "b.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 3)
    paths = [f"--config.data.path={tmp_path / 'a.jsonl'}", f"--config.eval.path={tmp_path / 'b.jsonl'}"]
    base = [f"--config={ROOT / 'configs/base.py'}", f"--config.data.cache={tmp_path / 'cache'}"]
    config = command.parse([*base, *paths], {}, about="").config
    recipe = read_data(config)
    assert len(train_corpus(config, recipe).lengths[0]) == 3
    held_out = eval_corpus(config, recipe)
    assert len(held_out.lengths[0]) == 3
    assert choose_budgets(held_out.lengths, [1.0], 64, 0, 0, recipe.image.merge).targets > 0
    config.data.path = str(tmp_path / "b.jsonl")
    with pytest.raises(UserError, match=r"nothing to learn: .* config\.data\.mixture"):
        train_corpus(config, recipe)


def test_a_folder_of_splits_is_both(tmp_path):
    write(tmp_path / "web/train-0.jsonl", 3, "train")
    write(tmp_path / "web/validation-0.jsonl", 2, "validation")
    write(tmp_path / "web/test-0.jsonl", 1, "test")
    web = tmp_path / "web"
    train, held_out = corpora(tmp_path, data__path=web, eval__path=web)
    assert (train[0], held_out) == ("train 0", ["validation 0", "validation 1"])
    assert corpora(tmp_path, data__path=web, data__split="val", eval__path=web, eval__split="test")[1] == ["test 0"]


def test_the_keys_of_reading_have_its_defaults():
    config = command.parse([f"--config={ROOT / 'configs/base.py'}"], {}, about="").config
    assert read_reading(config, read_data(config)) == Reading()


def test_keys_that_prepared_data_cannot_follow_are_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", 20)
    corpora(tmp_path, data__path=path)
    for key, value in (("data__val_size", 0.1), ("data__columns", "text=text"), ("data__split", "train")):
        with pytest.raises(UserError, match=re.escape(f"config.{key.replace('__', '.')}")):
            corpora(tmp_path, data__path=tmp_path / "cache" / "prepared", **{key: value})
    with pytest.raises(UserError, match=r"config\.data\.val_size: the demo has held-out data"):
        corpora(tmp_path, data__val_size=0.1)


def test_keys_that_prepared_data_has_settled_are_told(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", 20)
    corpora(tmp_path, data__path=path, data__media_dir=tmp_path)
    prepared = tmp_path / "cache" / "prepared"
    assert "settled" not in capsys.readouterr().err
    corpora(tmp_path, data__path=prepared, data__media_dir=tmp_path, data__drop_image=True, data__allow_urls=True)
    told = f"{prepared} is prepared data, of which all is settled: "
    assert f"{told}config.data.media_dir, config.data.drop_image do not count\n" in capsys.readouterr().err


def test_prepared_data_of_other_keys_names_them_all(tmp_path):
    path = write(tmp_path / "a.jsonl", 20)
    corpora(tmp_path, data__path=path, data__learn="last")
    keys = "tokenizer, objective, image_tokens, predict_image_tokens, learn, thinking, special_tokens"
    with pytest.raises(UserError, match=rf"set config\.data\.{keys} and special_tokens_in as they were"):
        corpora(tmp_path, data__path=tmp_path / "cache" / "prepared")


def test_a_part_kept_for_evaluation_has_no_split_of_its_own(tmp_path):
    path = write(tmp_path / "a.jsonl", 20)
    for same in ("", path, f"{path.parent}/./a.jsonl"):
        with pytest.raises(UserError, match=r"config\.eval\.split does not go with config\.data\.val_size"):
            corpora(tmp_path, data__path=path, data__val_size=0.2, eval__path=same, eval__split="test")


@pytest.mark.slow
def test_the_demo_ends_before_its_pictures_begin_to_move(config):
    # They would in its last steps, and its loss would end ten times as high as it was.
    demo = train_corpus(config, read_data(config))
    budgets = read_budgets(config, demo)
    assert budgets == foreseen_budgets(config)  # else its step is compiled twice
    plan = make_plan(config, demo, budgets)
    last = plan.batch_arrays(config.steps - 20, config.steps).pieces
    assert last.epoch.max() == JITTER_FROM - 1


def config_of(*flags: str):
    return command.parse([f"--config={ROOT / 'configs/base.py'}", *flags], {}).config


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ([], 0.15),
        (["--config.data.jitter=0"], 0.0),
        (["--config.init_from=runs/other"], 0.0),
        (["--config.init_from=runs/other", "--config.data.jitter=0.1"], 0.1),
    ],
)
def test_edges_move_by_themselves_only_for_random_weights(flags, wanted):
    assert read_jitter(config_of(*flags)) == wanted


@pytest.mark.parametrize(
    ("least", "most", "wanted"),
    [(0, 0, (2304, 9216)), (0, 1024, (1024, 1024)), (20000, 0, (20000, 20000)), (256, 50176, (256, 50176))],
)
def test_limits_of_pictures_of_random_weights_are_small_and_give_way_to_what_is_asked(least, most, wanted):
    image = read_data(config_of(f"--config.image.min_pixels={least}", f"--config.image.max_pixels={most}")).image
    assert (image.min_pixels, image.max_pixels) == wanted
