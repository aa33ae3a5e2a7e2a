"""What families ask of the data side: windows, positions of three axes, squares, class tokens, two-way images."""

from __future__ import annotations

import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
from conftest import IMAGE, picture, plain

from jaxmm.data.assemble import Assembler
from jaxmm.data.layout import text_positions
from jaxmm.data.media import patches as cutting
from jaxmm.data.media import picture as media
from jaxmm.data.media.geometry import grid_size
from jaxmm.data.media.medium import Placed
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.pieces import Piece
from jaxmm.data.packing.plan import Budgets
from jaxmm.image_spec import ImageSpec

BUDGETS = Budgets(tokens=128, patches=288, items=8, targets=128)
SIDE = IMAGE.patch_size
UNIT = SIDE * IMAGE.merge  # pixels of a soft token
grids = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3)


def loaded(lengths_of, spec: ImageSpec, *documents):
    """Whole documents in one row, under a spec of the test's."""
    lengths = Lengths(lengths_of(list(documents)).prepared, spec)
    row = [Piece(0, e, 0, int(n)) for e, n in enumerate(lengths.tokens_E)]
    return Assembler([lengths], BUDGETS, spec)([row]).batch


def made(sizes):
    """A document of pictures of so many soft tokens, text around them."""
    parts = [part for k, (r, c) in enumerate(sizes) for part in ("ab", picture(r * UNIT, c * UNIT, k))]
    return plain(*parts, "cd")


@hypothesis.given(grids, st.sampled_from([0, 2, 4, 6]))
@hypothesis.settings(max_examples=15)
def test_a_soft_token_is_made_of_its_own_square_in_whatever_order_patches_travel(lengths_of, sizes, window):
    spec = dataclasses.replace(IMAGE, window=window, min_pixels=1, max_pixels=16 * UNIT**2)
    batch = loaded(lengths_of, spec, made(sizes))
    slots = batch.slots_BT[0][batch.slots_BT[0] >= 0]
    places = [(tile, r, c) for tile, (rows, columns) in enumerate(sizes) for r in range(rows) for c in range(columns)]
    assert len(slots) == len(places)
    merge, positions, segments = spec.merge, batch.patches.positions[0].tolist(), batch.patches.segments[0].tolist()
    for slot, (tile, row, column) in zip(slots.tolist(), places, strict=True):
        group = slice(slot * merge**2, (slot + 1) * merge**2)
        assert segments[group] == [tile + 1] * merge**2
        assert positions[group] == [
            [0, row * merge + i, column * merge + j] for i in range(merge) for j in range(merge)
        ]
    if window:  # each window is one run
        keys = [(s, r // window, c // window) for s, (_, r, c) in zip(segments, positions, strict=True) if s]
        runs = [key for i, key in enumerate(keys) if i == 0 or keys[i - 1] != key]
        assert len(runs) == len(set(runs))


@hypothesis.given(grids, st.sampled_from([0, 4]))
@hypothesis.settings(max_examples=10)
def test_pixels_travel_with_their_positions(lengths_of, sizes, window):
    spec = dataclasses.replace(IMAGE, window=window, min_pixels=1, max_pixels=16 * UNIT**2)
    batch = loaded(lengths_of, spec, made(sizes))
    for k, (rows, columns) in enumerate(sizes):
        pixels = np.asarray(media.decode(picture(rows * UNIT, columns * UNIT, k)))
        here = batch.patches.segments[0] == k + 1
        for values, (_, r, c) in zip(batch.patches.values[0, here], batch.patches.positions[0, here], strict=True):
            wanted = pixels[r * SIDE : (r + 1) * SIDE, c * SIDE : (c + 1) * SIDE]
            np.testing.assert_array_equal(values.reshape(SIDE, SIDE, 3), wanted)


@hypothesis.given(grids)
def test_positions_of_three_axes_are_those_of_qwen_written_out(sizes):
    slots, wanted, at, soft = [], [], 0, 0
    for rows, columns in sizes:
        for _ in range(3):
            slots.append(-1)
            wanted.append([at] * 3)
            at += 1
        for r in range(rows):
            for c in range(columns):
                slots.append(soft)
                soft += 1
                wanted.append([at, at + r, at + c])
        at += max(rows, columns)
    slots.append(-1)
    wanted.append([at] * 3)
    found = text_positions(np.array(slots), [Placed((1, *size)) for size in sizes], ImageSpec(text_axes=3))
    np.testing.assert_array_equal(found, wanted)


def written_out(height: int, width: int, unit: int, most: int) -> tuple[int, int]:
    """Sides in soft tokens by the words of the rule: of the image's aspect, as large as fits, both rounded down."""
    tall, wide = (side * math.sqrt(most * unit**2 / (height * width)) for side in (height, width))
    rows, columns = int(tall // unit), int(wide // unit)
    if not rows:
        return 1, min(width // height, most)
    return (rows, columns) if columns else (min(height // width, most), 1)


@hypothesis.given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([4, 70, 280]))
@hypothesis.example(1, 3000, 280)
@hypothesis.example(3000, 1, 70)
def test_a_filled_picture_is_as_large_as_its_limit_lets_it_be(height, width, most):
    spec = ImageSpec(patch_size=4, merge=3, min_pixels=144, max_pixels=most * 144, filled=True)
    rows, columns = grid_size(height, width, spec)
    assert (rows // 3, columns // 3) == written_out(height, width, 12, most)
    assert 9 <= rows * columns <= 9 * most
    together = grid_size(np.array([height, 7]), np.array([width, 7]), spec)
    assert (together[0][0], together[1][0]) == (rows, columns)


def test_class_tokens_travel_after_the_patches_and_give_no_soft_token(lengths_of):
    spec = dataclasses.replace(IMAGE, class_tokens=1, side=2 * UNIT)
    batch = loaded(lengths_of, spec, plain("a", picture(10, 30), "b"), plain(picture(40, 12), "c"))
    positions, segments = batch.patches.positions[0], batch.patches.segments[0]
    count = (2 * IMAGE.merge) ** 2
    assert segments[: 2 * (count + 4)].tolist() == [*[1] * (count + 1), 0, 0, 0, *[2] * (count + 1), 0, 0, 0]
    assert positions[count].tolist() == [0, -1, 0]
    slots = batch.slots_BT[0][batch.slots_BT[0] >= 0].tolist()
    assert slots == [0, 1, 2, 3, 5, 6, 7, 8]


def test_two_way_images_are_numbered_and_text_is_not(lengths_of):
    spec = dataclasses.replace(IMAGE, bidirectional=True)
    batch = loaded(lengths_of, spec, made([(1, 2), (2, 2)]))
    blocks, slots = batch.blocks_BT[0], batch.slots_BT[0]
    assert blocks[slots >= 0].tolist() == [1, 1, 2, 2, 2, 2]
    assert not blocks[slots < 0].any()


@pytest.mark.parametrize(("height", "width"), [(30, 47), (47, 30), (24, 24), (13, 90)])
def test_a_cropped_square_is_the_middle_of_the_picture_resized_by_its_shorter_side(height, width):
    spec = ImageSpec(patch_size=4, merge=1, min_pixels=1, side=16, crop=True)
    source, short = picture(height, width, 3), min(height, width)
    patches, grid = cutting.patches(source, spec, (height, width))
    assert grid == (4, 4)
    size = int(16 * width / short), int(16 * height / short)
    resized = media.decode(source).resize(size, PIL.Image.Resampling.BICUBIC)
    left, top = (resized.width - 16) // 2, (resized.height - 16) // 2
    wanted = np.asarray(resized.crop((left, top, left + 16, top + 16)))
    found = patches.reshape(4, 4, 4, 4, 3).swapaxes(1, 2).reshape(16, 16, 3)
    np.testing.assert_array_equal(found, wanted)
