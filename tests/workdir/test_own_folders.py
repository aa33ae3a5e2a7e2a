"""What somebody else has put where a run keeps files of its own: it stays, and the run says so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import small_run
from made_folders import byte_level_tokenizer

from jaxmm import train
from jaxmm.errors import UserError
from jaxmm.workdir import own_folders
from jaxmm.workdir.kept_folders import keep_tokenizer


def every_file(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_what_a_start_has_made_is_removed(tmp_path):
    mine, theirs, link = (tmp_path / name for name in ("mine", "theirs", "link"))
    own_folders.make(mine)
    (mine / "a").touch()
    own_folders.make(mine)
    assert list(mine.iterdir()) == [mine / own_folders.MARK]
    theirs.mkdir()
    (theirs / "weights").touch()
    link.symlink_to(mine)  # to the files of another run
    for folder in (theirs, link):
        with pytest.raises(UserError, match=f"{folder} is where the run keeps files of its own, and holds others"):
            own_folders.make(folder)
        own_folders.remove(folder)
        assert list(folder.iterdir())
    own_folders.remove(mine)
    assert not mine.exists()


@pytest.mark.parametrize(
    ("named", "folder"),
    [
        ("--config.init_from={}/model", "model"),
        ("--config.init_from=vision:{0}/model,decoder:{0}/model", "model"),
        ("--config.init_from={}/model/inner", "model/inner"),
        ("--config.init_from={}", "."),
        ("--config.data.tokenizer={}", "."),
        ("--config.data.tokenizer={}/model", "model"),
        ("--config.seed=0", "model"),
        ("--config.seed=0", "tokenizer"),
    ],
)
def test_a_run_that_would_write_over_what_its_config_names_ends_with_a_line_and_changes_nothing(
    tmp_path, named, folder
):
    workdir = tmp_path / "run"
    (workdir / folder).mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (workdir / folder / name).write_text("{}")
    before = every_file(workdir)
    with pytest.raises(UserError, match=f"{re.escape(str(workdir))}.*files of its own.*another --workdir"):
        train.main([
            *small_run.arguments(tmp_path, tmp_path / "cache"), f"--workdir={workdir}", named.format(workdir)
        ])  # fmt: skip
    assert every_file(workdir) == before


def test_a_tokenizer_that_lies_where_the_run_keeps_its_copy_stays(tmp_path):
    byte_level_tokenizer().save_pretrained(tmp_path / "tokenizer")
    before = every_file(tmp_path)
    keep_tokenizer(str(tmp_path / "tokenizer"), tmp_path)
    assert every_file(tmp_path) == before
