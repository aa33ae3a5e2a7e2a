"""The scanner of JSON arrays against the standard parser, whatever the text and wherever it is cut."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmm.data.documents import Skip, Unit
from jaxmm.data.readers import arrays, containers
from jaxmm.data.readers.parts import SkipRecord
from jaxmm.errors import UserError
from readers.reading import refused, said

TRICKY = st.text(alphabet='ab"\\[]{},: \n\u00e9\u2603\U0001f600', max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TRICKY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRICKY, inner, max_size=4),
    max_leaves=12,
)
ARRAYS = st.lists(VALUES, max_size=8)


def written(array: list, **options) -> bytes:
    return json.dumps(array, **options).encode()


def elements(data: bytes, block: int = 1 << 20) -> list:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        Path(file.name).write_bytes(data)
        return list(arrays.elements(Unit(file.name, 0, len(data), 0), block))


@settings(max_examples=150, deadline=None)
@given(
    ARRAYS,
    st.integers(1, 40),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.sampled_from([b"", b"\xef\xbb\xbf", b" \n "]),
)
def test_elements_are_those_of_the_standard_parser(array, block, indent, ascii_only, before):
    data = before + written(array, indent=indent, ensure_ascii=ascii_only)
    assert [json.loads(raw) for raw in elements(data, block)] == array


@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(TRICKY, VALUES, max_size=3), max_size=12), st.integers(1, 60), st.integers(1, 50))
def test_units_one_after_the_other_are_the_whole(array, unit_bytes, block):
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        data = written(array, ensure_ascii=False)
        Path(file.name).write_bytes(data)
        units = arrays.units(file.name, unit_bytes)
        assert [unit.start for unit in units] == [0, *(unit.stop for unit in units[:-1])]
        assert units[-1].stop == len(data)
        got = [record for unit in units for record in arrays.records(unit, block)]
        assert got == list(enumerate(array))
        for unit in units[:-1]:
            assert unit.stop - unit.start >= unit_bytes


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_an_array_that_is_cut_gives_what_is_whole_and_says_so(cut):
    array = [{"text": f"number {i}"} for i in range(5)]
    *whole, last = elements(written(array)[:-cut])
    assert [json.loads(raw) for raw in whole] == array[: len(whole)]
    assert isinstance(last, SkipRecord)
    assert last.reason == "cut short"


def test_a_broken_element_costs_itself_only(folder):
    text = '[{"text": "One."}, {"text" "Two."}, 3, {"text": "4", "text": "4"},, {"text": "Six."},]'
    got = list(folder.source(text, "a.json").documents())
    assert [d.reason if isinstance(d, Skip) else said(d)[0][1] for d in got] == [
        "One.",
        "broken JSON",
        "not an object",
        "duplicate keys",
        "broken JSON",
        "Six.",
        "broken JSON",
    ]
    assert [d.origin for d in got] == [f"a.json, record {i}" for i in range(7)]


@pytest.mark.parametrize(
    "text", ['[{"text": "1"}}, {"text": "2"}]', '[{"text": "1"}] {"text": "2"}', '[{"text": "1"}]]']
)
def test_brackets_that_do_not_match_stop_with_their_place(folder, text):
    assert "more follows: a bracket or a quote before it is missing or one too many" in refused(folder.source(text))


def test_an_element_without_an_end_is_not_held_for_ever(folder, monkeypatch):
    monkeypatch.setattr(arrays, "MAX_ELEMENT", 100)
    path = folder.write("a.json", '[{"text": "1"}, {"text": "' + "x" * 1000)
    with pytest.raises(UserError, match="an element has no end within"):
        list(arrays.elements(Unit(path, 0, 1026, 0), 50))


def test_what_is_no_array_is_lines(folder):
    for text, kind in (
        ('\n [{"text": "1"}]', "ARRAY"),
        ('{"text": "1"}\n', "LINES"),
        ("", "LINES"),
        (" " * 9000 + "[]", "ARRAY"),
    ):
        assert containers.container(folder.write("a.jsonl", text)) is getattr(containers, kind)


def test_an_empty_array_has_no_records(folder):
    assert elements(b" [ \n] ") == []
    with pytest.raises(UserError, match="holds no records"):
        folder.source("[]")
