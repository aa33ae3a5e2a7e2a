"""Whether a checkpoint is of the run that wants to go on from it: what an older version did not have is the default."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_run import ROOT

from jaxmm import command
from jaxmm.checkpoints.record import Record
from jaxmm.checkpoints.resume import Identity, as_it_was
from jaxmm.errors import UserError

DATA = {"sources": {"a": "1f"}, "template": "2e", "budgets": [1, 2], "plan": 3}
HERE = Path("run")


def config(*changes: str) -> dict:
    return command.to_json(command.parse([f"--config={ROOT / 'configs/base.py'}", *changes], {}).config)


def saved() -> Record:
    plan = {"batch": 0, "begun_after": {}, "seen": {}}
    return Record.read({"position": 4, "config": config(), "data": DATA, "examples_seen": 9, "plan": plan}, HERE)


def test_a_key_that_an_older_run_lacks_was_its_default():
    record = saved()
    del record.config["decoder"]["qk_norm"], record.config["optimizer"]["moments"], record.config["image"]
    assert Identity(config(), DATA).check(record, HERE, False) == []
    with pytest.raises(UserError, match=r"decoder\.qk_norm: False -> True"):
        Identity(config("--config.decoder.qk_norm=True"), DATA).check(record, HERE, False)


def test_numbers_of_one_value_are_the_same_whatever_they_were_written_as():
    record = saved()
    record.config["optimizer"]["clip"] = 1
    assert Identity(config(), DATA).check(record, HERE, False) == []


def test_a_key_that_this_version_does_not_know_is_named():
    record = saved()
    record.config["optimizer"]["nesterov"] = True
    with pytest.raises(UserError, match=r"optimizer\.nesterov: True -> \(absent\)"):
        Identity(config(), DATA).check(record, HERE, False)


def test_what_follows_from_a_key_is_not_told_beside_it():
    asked = Identity(config("--config.objective=dpo"), DATA | {"budgets": [1, 2, 8], "template": "3d"})
    with pytest.raises(UserError, match=r"other settings \(objective: '' -> 'dpo'\): set them as they were, or give"):
        asked.check(saved(), HERE, False)


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


def test_a_record_of_version_0_1_is_read_and_today_s_is_what_was_written():
    old = saved()
    assert (old.steps, old.skipped_lines, old.versions) == (None, None, {})
    assert old.schedule_steps == old.config["steps"]
    assert old._replace(config=old.config | {"epochs": 2.0}).schedule_steps == 0
    new = old._replace(steps=7, skipped_lines=3)
    assert Record.read(json.loads(json.dumps(new.to_json())), HERE) == new
    assert new.schedule_steps == 7


def test_a_record_without_a_plan_cannot_be_gone_on_from():
    with pytest.raises(UserError, match="or give another --workdir"):
        Identity(config(), DATA).check(saved()._replace(plan=None), HERE, True)


@pytest.mark.parametrize("damaged", [[], {}, {"plan": {"batches": 1}}, {"plan": []}])
def test_a_damaged_record_is_one_line_that_names_the_checkpoint(damaged):
    with pytest.raises(UserError, match="run/4 has a damaged record") as caught:
        Record.read(damaged, Path("run/4"))
    assert "\n" not in str(caught.value)
