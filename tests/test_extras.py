"""What lacks an extra says how to install it, in the same words everywhere."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from jaxmm.data.files import open_binary
from jaxmm.errors import UserError, extra

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("jaxmm", "tools") for path in (ROOT / folder).rglob("*.py")]


def test_the_hint_names_the_package_and_a_clone():
    assert extra("wandb") == "pip install 'jaxmm[wandb]' (in a clone: pip install -e '.[wandb]')"


def test_every_extra_that_a_line_names_is_there_and_no_line_words_it_itself():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for path in SOURCES for name in re.findall(r"extra\([\"'](\w+)[\"']\)", path.read_text())}
    assert {"chat", "cuda", "estimate", "media", "parquet", "ray"} <= named <= set(known)
    by_itself = [path for path in SOURCES if re.search(r"pip install 'jaxmm\[\w", path.read_text())]
    assert by_itself == []


@pytest.mark.parametrize(("url", "package", "name"), [("s3://a/b", "s3fs", "s3"), ("gs://a/b", "gcsfs", "gcs")])
def test_a_store_that_cannot_be_opened_names_its_extra(monkeypatch, url, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        open_binary(url)
    assert str(error.value).endswith(extra(name))
