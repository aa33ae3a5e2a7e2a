"""JSON of other people: whatever is none is a ValueError."""

import pytest

from jaxmm.json_text import parse_json


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, b"\xff", '{"a": ' * 100_000])
def test_what_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (each library's words)
        parse_json(text)
    assert str(caught.value)


def test_what_is_json_is_parsed():
    assert parse_json(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
