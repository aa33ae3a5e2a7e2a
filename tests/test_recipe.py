"""What the strings of a config mean: mixtures, schedules of them, and numbers by source."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxmm import command
from jaxmm.errors import UserError
from jaxmm.recipe import parse_mixture, parse_numbers, parse_schedule, read_data, read_jitter

ROOT = Path(__file__).parents[1]


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


@pytest.mark.parametrize("jitter", [-0.1, 0.5, -2])
def test_a_jitter_out_of_range_is_one_line(jitter):
    with pytest.raises(UserError, match=r"config\.data\.jitter is .* or -1 for automatic"):
        read_jitter(config_of(f"--config.data.jitter={jitter}"))


@pytest.mark.parametrize(
    ("least", "most", "wanted"),
    [(0, 0, (2304, 9216)), (0, 1024, (1024, 1024)), (20000, 0, (20000, 20000)), (256, 50176, (256, 50176))],
)
def test_limits_of_pictures_of_random_weights_are_small_and_give_way_to_what_is_asked(least, most, wanted):
    image = read_data(config_of(f"--config.image.min_pixels={least}", f"--config.image.max_pixels={most}")).image
    assert (image.min_pixels, image.max_pixels) == wanted
