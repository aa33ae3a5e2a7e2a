"""Whether a checkpoint is of the run that wants to go on from it: what an older version did not have is the default."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_run import ROOT

from jaxmm import command
from jaxmm.checkpoints.resume import Identity, as_it_was
from jaxmm.errors import UserError

DATA = {"sources": {"a": "1f"}, "template": "2e", "budgets": [1, 2], "plan": 3}
HERE = Path("run")


def config(*changes: str) -> dict:
    return command.to_json(command.parse([f"--config={ROOT / 'configs/base.py'}", *changes], {}).config)


def saved(**others) -> dict:
    return {"config": config(), "data": DATA, "plan": {}} | others


def test_a_key_that_an_older_run_lacks_was_its_default():
    meta = saved()
    del meta["config"]["decoder"]["qk_norm"], meta["config"]["optimizer"]["moments"], meta["config"]["image"]
    assert Identity(config(), DATA).check(meta, HERE, False) == []
    with pytest.raises(UserError, match=r"decoder\.qk_norm: False -> True"):
        Identity(config("--config.decoder.qk_norm=True"), DATA).check(meta, HERE, False)


def test_numbers_of_one_value_are_the_same_whatever_they_were_written_as():
    meta = saved()
    meta["config"]["optimizer"]["clip"] = 1
    assert Identity(config(), DATA).check(meta, HERE, False) == []


def test_a_key_that_this_version_does_not_know_is_named():
    meta = saved()
    meta["config"]["optimizer"]["nesterov"] = True
    with pytest.raises(UserError, match=r"optimizer\.nesterov: True -> \(absent\)"):
        Identity(config(), DATA).check(meta, HERE, False)


@pytest.mark.parametrize(
    ("text", "line"),
    [("[]", "no JSON object but a list"), ("{", "no valid JSON"), ('{"seq_len": "x"}', "seq_len is"), ("3", "a int")],
)
def test_a_run_s_damaged_config_is_one_line(tmp_path, text, line):
    (tmp_path / "first_save.json").write_text('{"step": 4}')
    (tmp_path / "config.json").write_text(text)
    new = command.parse([f"--config={ROOT / 'configs/base.py'}"], {}).config
    with pytest.raises(UserError, match=line) as caught:
        as_it_was(new, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ['{"image": 3}', '{"checkpoint": 3}'])
def test_a_group_that_is_none_is_told_and_not_followed(tmp_path, text, capsys):
    (tmp_path / "first_save.json").write_text('{"step": 4}')
    (tmp_path / "config.json").write_text(text)
    new = command.parse([f"--config={ROOT / 'configs/base.py'}"], {}).config
    as_it_was(new, tmp_path)
    assert "does not know, and does not follow" in capsys.readouterr().err
