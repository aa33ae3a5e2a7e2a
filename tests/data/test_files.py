"""Names that come from a file and become names of files."""

from __future__ import annotations

import pytest

from jaxmm.data import files


@pytest.mark.parametrize("name", ["chats", "a-b_c.d", "中文", "été", "v1.2"])
def test_a_name_that_is_bare_stays(name):
    assert files.bare(name) == name


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "/etc/x", "..", ".", "", ".hidden", "a\\b", "a\nb", "a b", "x" * 300]
)
def test_any_other_name_becomes_one_that_leads_nowhere_and_is_its_own(name):
    found = files.bare(name)
    assert "/" not in found
    assert "\\" not in found
    assert not found.startswith(".")
    assert 8 < len(found) < 120
    assert found == files.bare(name) != files.bare(name + "y")
    assert files.bare("a/b") != files.bare("a_b") == "a_b"
