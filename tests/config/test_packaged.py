"""A config that comes with jaxmm is found by its name from any folder, also by a config that imports it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_run import ROOT

from jaxmm import command
from jaxmm.config import packaged
from jaxmm.errors import UserError

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def parse(name: str):
    return command.parse([f"--config={name}"], {})


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_each_is_found_by_its_name(name):
    args = parse(name)
    assert args.config_name == name
    assert command.differences(args.config, parse(str(ROOT / "configs" / f"{name}.py")).config) == []


def test_an_unknown_name_lists_them():
    with pytest.raises(UserError) as error:
        parse("bass")
    told = str(error.value)
    assert told.startswith(
        "no config 'bass' comes with jaxmm; did you mean 'base'?; there are audio, base, dpo, early_fusion, "
    )
    assert told.endswith("give the path, such as bass.py")
    assert all(name in told for name in NAMES)


def test_a_path_is_the_users(elsewhere):
    (elsewhere / "base.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'steps': 3})\n"
    )
    assert parse("base.py").config.steps == 3
    assert parse("./base.py").config.steps == 3
    assert parse("base").config.steps == 560


@pytest.mark.parametrize(
    "line",
    ["import base", "from configs import base", "from jaxmm.configs import base", "import configs.base as base",
     "import siglip2_qwen3_connector as base", "from configs import siglip2_qwen3 as base"],
)  # fmt: skip
def test_a_config_elsewhere_may_build_on_one(line, elsewhere):
    (elsewhere / "mine.py").write_text(
        f"{line}\ndef get_config():\n    c = base.get_config()\n    c.batch_size = 24\n    return c\n"
    )
    before, finders = set(sys.modules), list(sys.meta_path)
    config = parse("mine.py").config
    assert config.batch_size == 24
    assert config.optimizer.rate in (4e-3, 1e-3, 1e-4)
    assert not {name for name in set(sys.modules) - before if "config" in name or "base" in name or "siglip" in name}
    assert sys.meta_path == finders


@pytest.mark.parametrize("line", ["import base", "from configs import base"])
def test_what_lies_beside_or_is_a_package_of_the_users_wins(line, elsewhere, monkeypatch):
    own = "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'steps': 7})\n"
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "base.py").write_text(own)
    (elsewhere / "configs" / "mine.py").write_text(
        f"{line}\nimport early_fusion\ndef get_config(): return base.get_config()\n"
    )
    monkeypatch.syspath_prepend(str(elsewhere))  # as of `python -m`
    assert parse("configs/mine.py").config.steps == 7
    (elsewhere / "configs" / "base.py").unlink()
    assert parse("configs/mine.py").config.steps == 560


def test_the_packages_own_folder_comes_before_that_of_a_clone(elsewhere, monkeypatch):
    (elsewhere / "jaxmm" / "configs").mkdir(parents=True)
    (elsewhere / "jaxmm" / "configs" / "wheel.py").write_text("")
    monkeypatch.setattr("jaxmm.__file__", str(elsewhere / "jaxmm" / "__init__.py"))
    assert packaged.names() == ["wheel"]
