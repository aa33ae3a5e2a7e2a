"""Slices of long pictures: which, of what, where their soft tokens and the text around them stand."""

from __future__ import annotations

import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
from conftest import picture, plain
from pictures import assert_tiles, encoded, smooth

from jaxmm.batch import IGNORED
from jaxmm.data.assemble import Assembler
from jaxmm.data.documents import Turn
from jaxmm.data.media import geometry
from jaxmm.data.media import patches as cutting
from jaxmm.data.media import picture as media
from jaxmm.data.media.extents import Extent, Extents
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.limits import Budgets
from jaxmm.data.packing.plan import Piece
from jaxmm.data.packing.swapped import swap
from jaxmm.data.prepare.index import InMemory
from jaxmm.data.text import intros
from jaxmm.data.text.chat import Markup
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.image_spec import ImageSpec, SplitSpec

SPEC = ImageSpec(
    patch_size=4, merge=2, min_pixels=1, max_pixels=256, side=16, bidirectional=True, resample="bilinear",
    split=SplitSpec(
        side=16, grid="slices", least_slice=10, most=4, above=1.2,
        intro="see ", whole=") and ", between=")~", square="(",
    ),
)  # fmt: skip
SIZES = [(30, 100), (16, 16), (70, 30), (9, 30)]  # of 3 slices, of none, of 2, and too small for slices of 10 pixels
sides = st.one_of(st.integers(1, 60), st.integers(1, 5000))


def slices_in_words(height: int, width: int, split: SplitSpec) -> list[tuple[int, int, int, int]]:
    """The rule as the processor's own code has it: (left, top, right, bottom) of each slice; none of most pictures."""
    long, short = max(height, width), min(height, width)
    if long / short < split.above:
        return []
    count = min(max(2, min(math.floor(long / split.least_slice), math.floor(long / short + 0.5))), split.most)
    step = math.ceil(long / count)
    if min(step, short) < split.least_slice:
        return []
    edges = [(step * n, min(step * (n + 1), long)) for n in range(count)]
    return [(first, 0, last, height) if width >= height else (0, first, width, last) for first, last in edges]


@hypothesis.given(
    st.lists(st.tuples(sides, sides), min_size=1, max_size=20), st.integers(2, 6), st.integers(6, 300),
    st.sampled_from([1.0, 1.2, 2.5]),
)  # fmt: skip
def test_long_pictures_are_cut_by_their_aspect_many_at_once_as_one_by_one(sizes, most, least, above):
    spec = dataclasses.replace(SPEC, split=dataclasses.replace(SPEC.split, most=most, least_slice=least, above=above))
    heights, widths = np.array(sizes, np.int32).T
    rows, columns = geometry.tile_grid(heights, widths, spec)
    tiles = geometry.tile_count(heights, widths, spec)
    for n, size in enumerate(sizes):
        wanted = slices_in_words(*size, spec.split)
        assert tiles[n] == len(wanted) + 1
        assert rows[n] * columns[n] == max(len(wanted), 1)
        tiling = geometry.one_tiling(*size, spec)
        assert (tiling.rows, tiling.columns, tiling.squares) == (rows[n], columns[n], len(wanted))
        if wanted:
            assert geometry.slice_boxes(*size, tiling.rows, tiling.columns) == wanted


def resized(picture: PIL.Image.Image) -> PIL.Image.Image:
    return picture.resize((16, 16), PIL.Image.Resampling.BILINEAR)


@pytest.mark.parametrize("size", [(31, 101), (71, 31)])
def test_a_slice_is_cut_out_before_it_is_resized_and_the_whole_travels_last(size):
    image = picture(*size, 3)
    found, grid = cutting.patches(image, SPEC, size)
    assert grid == (4, 4)
    decoded = media.decode(image)
    slices = [decoded.crop(box) for box in slices_in_words(*size, SPEC.split)]
    assert len({one.size for one in slices}) == 2, "the last one is smaller"
    assert_tiles(found, [*map(resized, slices), resized(decoded)], SPEC)


def test_edges_of_a_picture_move_before_it_is_sliced_and_a_fast_decoded_one_shows_the_same():
    inner = smooth(64, 240)
    large = PIL.Image.new("RGB", (300, 64))
    large.paste(inner, (60, 0))
    moved, _ = cutting.patches(encoded(large), SPEC, (64, 300), cutting.Edges(0.2, 0.0, 0.0, 0.0))
    plain_, _ = cutting.patches(encoded(inner), SPEC, (64, 240))
    assert np.abs(moved[-16:].astype(int) - plain_[-16:]).max() <= 3, "the whole one"
    assert geometry.tile_grid(64, 300, SPEC) == geometry.tile_grid(64, 240, SPEC) == (1, 4)
    assert np.abs(moved.astype(int) - plain_).max() <= 6
    jpeg = encoded(smooth(205, 301 * 2), "JPEG", quality=95, subsampling=0)
    exact, fast = (cutting.patches(jpeg, SPEC, (205, 602), fast=is_fast)[0] for is_fast in (False, True))
    assert np.abs(exact.astype(int) - fast).mean() < 1.5


@pytest.fixture(scope="module")
def made():
    """The template, two documents of two pictures each, with what stands before these, and their lengths."""
    template = Template(load_tokenizer(""), "pretrain", markup=Markup("(", ")"))
    images = [picture(*size, n) for n, size in enumerate(SIZES)]
    documents = [plain("ab", images[0], "c", images[1], "d"), plain(images[2], "e", images[3], "f")]
    extents = [Extent(*size) for size in SIZES]
    written = [intros.written(one, extents[2 * n : 2 * n + 2], SPEC) for n, one in enumerate(documents)]
    encoded_ = [template.encode(one) for one in written]
    source = InMemory("made", encoded_, [images[:2], images[2:]], template.fingerprint)
    return template, documents, Lengths(source, SPEC, encode=template.stamp)


def test_the_whole_picture_is_read_first_and_each_tile_sees_itself_alone_both_ways(made):
    template, _, lengths = made
    assert lengths.items_E.tolist() == [5, 4]
    row = [Piece(0, e, 0, int(lengths.tokens_E[e])) for e in range(2)]
    loaded = Assembler([lengths], Budgets(tokens=256, patches=256, items=16, targets=64), SPEC)([row])
    assert not loaded.skipped
    batch = loaded.batch
    used = int((batch.text.segments[0] > 0).sum())
    assert used == lengths.tokens_E.sum()
    slots, blocks, values = (array[0, :used] for array in (batch.slots_BT, batch.blocks_BT, batch.text.values))
    # Pictures have 3 slices and the whole, one, 2 and the whole, one; each tile has 4 soft tokens.
    of_tile = [3, 0, 1, 2, 4, 7, 5, 6, 8]
    assert (slots[slots != IGNORED] // 4).tolist() == np.repeat(of_tile, 4).tolist()
    shown = "".join(
        chr(ord("A") + slot // 4) if slot != IGNORED else template.decode([value])
        for slot, value in zip(slots.tolist(), values.tolist(), strict=True)
    )
    assert shown == ("absee (DDDD) and (AAAA)~(BBBB)~(CCCC)c(EEEE)d" + "see (HHHH) and (FFFF)~(GGGG)e(IIII)f")
    within = blocks[slots != IGNORED].reshape(9, 4)
    assert (within == within[:, :1]).all()
    assert within[:, 0].tolist() == [1, 2, 3, 4, 5, 1, 2, 3, 4]
    assert not blocks[slots == IGNORED].any()
    learnt = template.decode(values[1:][batch.weights_BT[0, : used - 1] > 0])
    assert learnt == "bcdef", "what stands around pictures is no target"


def test_a_prompt_has_the_text_of_a_document(made):
    _, documents, _ = made
    for document in documents:
        sizes = [Extent(*media.image_size(part)) for part in document.turns[0].parts if hasattr(part, "data")]
        wanted = intros.written(document, sizes, SPEC).turns
        assert tuple(intros.prompted(document.turns, SPEC)) == wanted
    turns = (Turn("user", (media_without_size(),), False),)
    assert intros.prompted(turns, SPEC) == list(turns), "who lays the prompt out tells what is wrong with it"
    assert intros.prompted(turns, dataclasses.replace(SPEC, split=None)) is turns


def test_prepared_text_loses_what_was_written_before_pictures_and_nothing_alike_that_was_said(made):
    template = made[0]
    images = [picture(*size, n) for n, size in enumerate(SIZES)]
    document = plain("see this see ", images[0], "see ", images[1], " see ", images[2], "see ", images[3], "see ")
    prepared = template.encode(intros.written(document, [Extent(*size) for size in SIZES], SPEC))
    extents = Extents(InMemory("made", [prepared], [images], template.fingerprint))
    found = intros.without(prepared.tokens, prepared.image_at, extents, template.decode, SPEC)
    assert found == template.decode(template.encode(document).tokens) != template.decode(prepared.tokens)


def media_without_size():
    return encoded(PIL.Image.new("RGB", (4, 4)))._replace(data=b"no picture")


def test_a_swapped_picture_stands_behind_the_text_that_it_has_itself():
    template = Template(load_tokenizer(""), "pretrain")
    sizes = [(30, 100), (16, 16)] * 6 + [(70, 30)]
    images = [picture(*size, n) for n, size in enumerate(sizes)]
    source = InMemory("made", [template.encode(plain(one, "a")) for one in images], [[one] for one in images], "made")
    lengths = Lengths(source, SPEC, encode=template.stamp)
    one = swap(lengths, "image", Budgets(tokens=64, patches=256, items=16, targets=64), template.stamp)
    assert one.is_swapped_E.all()
    is_cut = [bool(slices_in_words(*size, SPEC.split)) for size in sizes]
    assert [is_cut[n] for n in one.lengths.prepared.from_I] == is_cut
    alone = swap(lengths, "image", Budgets(tokens=64, patches=256, items=16, targets=64), template.stamp, examples=2)
    assert not alone.is_swapped_E.any(), "a picture with other text is no partner"


def test_a_specification_of_slices_is_whole():
    for wrong in (
        {"most": 1}, {"least_slice": 3}, {"above": 0.5}, {"grid": "aspect"}, {"row_end": "/"},
        {"grid": "aspect", "least_slice": 0},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="slices"):
            dataclasses.replace(SPEC.split, **wrong)
    aspect = SplitSpec(side=16)
    with pytest.raises(ValueError, match="of one size"):
        dataclasses.replace(SPEC, side=0, split=aspect)
    other = str(dataclasses.replace(SPEC, bidirectional=False, split=aspect).key())
    assert not any(name in other for name in ("least_slice", "intro")), "what is kept on disk of other pictures stays"
