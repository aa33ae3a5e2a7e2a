"""What a config means: mixtures, schedules of them, numbers by source, and attention on each platform."""

from __future__ import annotations

import pytest

from configs.base import get_config
from jaxmm.errors import UserError
from jaxmm.recipe import parse_mixture, parse_numbers, parse_schedule, read_recipe


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


@pytest.mark.parametrize(
    ("platform", "seq_len", "patches", "backends"),
    [
        ("cpu", 1 << 18, 0, "blocks"),
        ("gpu", 1 << 18, 0, "fused"),
        ("tpu", 8192, 0, "splash"),
        ("tpu", 32768, 0, "splash, in the tower blocks"),  # a row of images alone has 131,072 patches
        ("tpu", 32768, 65536, "splash"),
        ("tpu", 1 << 17, 65536, "blocks, in the tower splash"),
    ],
)
def test_decoder_and_tower_each_have_the_attention_that_their_rows_allow(platform, seq_len, patches, backends):
    config = get_config()
    config.seq_len, config.patch_budget = seq_len, patches
    assert read_recipe(config, platform=platform).compute.backends == backends
