"""Rows of a global batch are the same whether they are arrays or lists."""

from __future__ import annotations

import hypothesis
import numpy as np
from hypothesis import strategies as st

from jaxmm.data.packing.pieces import Piece, Pieces
from jaxmm.data.packing.rows import Listed, Rows, begun


@hypothesis.given(st.lists(st.lists(st.tuples(*[st.integers(0, 3)] * 5), max_size=4), max_size=6), st.data())
def test_rows_that_are_listed_when_asked_for_are_the_same(numbers, data):
    lists = [[Piece(*piece) for piece in row] for row in numbers]
    flat = np.array([piece for row in lists for piece in row], np.int64).reshape(-1, 5)
    listed = Listed(Rows(Pieces(*flat.T), np.cumsum([0, *map(len, lists)])))
    assert (len(listed), list(listed)) == (len(lists), lists)
    assert listed == lists
    assert lists == listed
    assert listed != [*lists, []]
    some = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=4) if lists else st.just([]))
    assert listed.those(some) == [lists[i] for i in some]
    assert [listed[i] for i in some] == listed.those(some)
    assert listed[1:3] == lists[1:3]
    assert begun(listed) == begun(lists) == sum(piece.first == 0 for row in lists for piece in row)
