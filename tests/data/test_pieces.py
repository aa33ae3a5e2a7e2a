"""Lengths and cuts: counted as by hand, position by position, and no image is ever cut."""

from __future__ import annotations

import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from conftest import IMAGE, picture, plain
from made_index import BUDGETS, is_whole, made, needs_of, positions, positions_of, texts

from jaxmm.data.packing import array_file
from jaxmm.data.packing import lengths as lengths_module
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.limits import Budgets
from jaxmm.data.packing.pieces import Piece, count_long, cut, cut_examples, pieces_of
from jaxmm.errors import UserError

budgets = st.builds(
    Budgets, st.integers(40, 80), st.integers(9, 30).map(lambda n: 4 * n), st.integers(1, 5), st.integers(10, 60),
    st.integers(9, 20).map(lambda n: 4 * n),
)  # fmt: skip


@hypothesis.given(st.integers(0, 1 << 30), st.booleans())
def test_lengths_are_what_stands_in_the_index(seed, ready):
    source = made(seed, ready=ready)
    for example in range(len(source)):
        whole = Piece(0, example, 0, int(source.tokens_E[example]))
        np.testing.assert_array_equal(source.needs(np.array([example]))[0], needs_of(source, whole))
    np.testing.assert_array_equal(source.totals, source.needs(np.arange(len(source))).sum(0))


def cut_by_hand(source: Lengths, example: int, limits: Budgets) -> list[tuple[int, int]]:
    """Position by position: a part grows while it fits, and ends at the last place that is not inside an image."""
    kinds, _ = positions(source, example)
    inside = set()  # places between two positions where an image with its separators would be cut
    for i in {n for kind, n in kinds if kind == "soft"}:
        at = kinds.index(("soft", i))
        inside |= set(range(at, at + positions_of(source, i) + 1))
    edges, first = [], 0
    while first < len(kinds):
        last = first
        for stop in range(first + 1, len(kinds) + 1):
            if stop in inside:
                continue
            if (needs_of(source, Piece(0, example, first, stop)) > np.array(limits)).any():
                break
            last = stop
        assert last > first
        edges.append((first, last))
        first = last
    return edges


@hypothesis.given(st.integers(0, 1 << 30), budgets, st.booleans())
@hypothesis.settings(max_examples=40)
def test_a_cut_gives_the_fewest_parts_that_fit_and_no_image_is_cut(seed, limits, ready):
    source = made(seed, 12, ready=ready)
    for example in range(len(source)):
        found = cut(source, 3, example, limits, 2)
        assert [(p.first, p.last) for p, _ in found] == cut_by_hand(source, example, limits)
        for piece, needs in found:
            assert piece[:2] == (3, example)
            assert piece.epoch == 2
            np.testing.assert_array_equal(needs, needs_of(source, piece))


@hypothesis.given(st.integers(0, 1 << 30), budgets, st.booleans())
def test_examples_cut_together_are_cut_as_each_by_itself(seed, limits, ready):
    source = made(seed, ready=ready)
    asked = np.random.default_rng(seed).permutation(len(source))[:20]
    parts = cut_examples(source, asked, limits)
    alone = [(i, p.first, p.last, *need) for i, e in enumerate(asked) for p, need in cut(source, 0, int(e), limits)]
    assert [(*row[:3], *row[3]) for row in zip(*parts, strict=True)] == alone
    first = cut_examples(source, asked, limits, only_first=True)
    assert first.of.tolist() == list(range(20))
    assert list(zip(first.of, first.last, strict=True)) == [(i, last) for i, start, last, *_ in alone if start == 0]


@hypothesis.given(st.integers(0, 1 << 30))
def test_split_loses_nothing_truncate_keeps_the_beginning_drop_leaves_out(seed):
    source = made(seed)
    every = np.arange(len(source))
    long = set(np.flatnonzero((source.needs(every) > np.array(BUDGETS)).any(1)).tolist())
    by_mode = {}
    for mode in ("split", "truncate", "drop"):
        found, needs, of = pieces_of(source, 0, every, every + 7, BUDGETS, mode)
        pieces = found.listed()
        np.testing.assert_array_equal(needs, [needs_of(source, p) for p in pieces])
        assert [p.example for p in pieces] == of.tolist()
        assert all(p.epoch == p.example + 7 for p in pieces)
        by_mode[mode] = {e: [p for p in pieces if p.example == e] for e in range(len(source))}
        counted = count_long(source, BUDGETS, mode)
        assert counted == (len(source), len(long), sum(len(by_mode[mode][e]) for e in long))
    for e in range(len(source)):
        assert is_whole(source, by_mode["split"][e])
        assert (len(by_mode["split"][e]) > 1) == (e in long)
        assert by_mode["truncate"][e] == by_mode["split"][e][:1]
        assert by_mode["drop"][e] == ([] if e in long else by_mode["split"][e])


def test_long_documents_are_told_in_a_line():
    source = texts([10, 64, 65, 200])
    assert count_long(source, BUDGETS, "split").line(source, "split") == (
        "texts, 3 of 4 documents longer than a row: split into 9 pieces"
    )
    assert count_long(source, BUDGETS, "drop").line(source, "drop").endswith("longer than a row: dropped")
    assert count_long(texts([5]), BUDGETS, "split").line(texts([5]), "split") == ""


def test_an_image_larger_than_a_row_is_one_line_with_its_file(lengths_of):
    source = lengths_of([plain("a"), plain(picture(24, 24))])
    with pytest.raises(UserError, match=r"made, record 1 has an image of 36 patches .*config.patch_budget 32"):
        count_long(source, BUDGETS._replace(patches=32), "truncate")
    with pytest.raises(UserError, match=r"config\.seq_len 10"):
        cut(source, 0, 1, BUDGETS._replace(tokens=10))
    assert count_long(source, BUDGETS._replace(patches=32), "drop").long == 1


def test_processes_that_open_a_large_source_at_once_count_it_once_and_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(lengths_module, "SAVED_FROM", 60)
    monkeypatch.setattr(lengths_module, "BLOCK", 7)
    whole, counted, blocks = made(5), Lengths._counted, []

    def noted(lengths):
        for block in counted(lengths):
            blocks.append(len(block[0]))
            time.sleep(0.001)  # so that the others come meanwhile
            yield block

    monkeypatch.setattr(Lengths, "_counted", noted)
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: Lengths(whole.prepared, IMAGE, tmp_path), range(4)))
    assert sum(blocks) == len(whole), "once"
    assert max(blocks) == 7
    for one in opened:
        np.testing.assert_array_equal(one.all_needs, whole.all_needs)
        assert one.media_counts() == whole.media_counts()
    assert not list(tmp_path.glob(".*")), "neither locks nor unfinished files are left"


@pytest.mark.parametrize("shape", [(0,), (5,), (0, 3), (4, 3)])
def test_an_array_written_in_blocks_is_as_numpy_writes_it_with_a_checksum_behind(tmp_path, shape):
    array, file = np.arange(np.prod(shape), dtype=np.int32).reshape(shape), tmp_path / "made.npy"
    array_file.save_arrays([file], [(array.dtype, shape)], [[array[:2]], [array[2:]]])
    np.save(tmp_path / "plain.npy", array)
    assert file.read_bytes()[: -array_file.CHECKSUM] == (tmp_path / "plain.npy").read_bytes()
    assert array_file.is_whole(file)
    np.testing.assert_array_equal(np.load(file, mmap_mode="r"), array)
    with pytest.raises(UserError, match="could not be written"):
        array_file.save_arrays([tmp_path / "made.npy" / "below.npy"], [(array.dtype, shape)], [[array]])


def test_lengths_of_a_large_source_are_counted_once_and_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(lengths_module, "SAVED_FROM", 60)
    monkeypatch.setattr(lengths_module, "BLOCK", 7)
    whole = made(5)
    index = whole.prepared
    first = Lengths(index, IMAGE, tmp_path)
    monkeypatch.setattr(Lengths, "_counted", None)  # a second count would fail
    again = Lengths(index, IMAGE, tmp_path)
    for name in ("all_needs", "units_I", "totals"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    for media in (slice(None), slice(3, 9), slice(4, 4), np.array([7, 2, 2])):
        np.testing.assert_array_equal(again.spans(media), whole.spans()[media])
    assert isinstance(again.all_needs, np.memmap)
    assert len(pickle.dumps(again)) < len(pickle.dumps(index)) + 1000, "the columns do not travel"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again)).all_needs, first.all_needs)
    (saved,) = tmp_path.glob("*.needs.npy")
    content = saved.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    monkeypatch.undo()
    monkeypatch.setattr(lengths_module, "SAVED_FROM", 60)
    for damaged in (content[:200], flipped, b""):
        saved.write_bytes(damaged)
        np.testing.assert_array_equal(Lengths(index, IMAGE, tmp_path).all_needs, whole.all_needs)
        assert saved.read_bytes() == content, "counted and written anew"
