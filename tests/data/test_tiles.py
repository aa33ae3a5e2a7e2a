"""Images of several tiles: how many, what they cost, and where they stand in a row."""

from __future__ import annotations

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
from conftest import picture, plain
from made_index import Made
from pictures import assert_tiles, squares_of

from jaxmm.batch import IGNORED, TARGET
from jaxmm.data.assemble import Assembler
from jaxmm.data.media import geometry
from jaxmm.data.media import patches as cutting
from jaxmm.data.media import picture as media
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.pieces import BOUNDLESS
from jaxmm.data.packing.plan import Budgets, Piece, Plan, choose_budgets
from jaxmm.data.prepare.index import InMemory
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec, SplitSpec

SPEC = ImageSpec(patch_size=4, merge=2, min_pixels=1, max_pixels=256, side=16, max_tiles=6, class_tokens=1)
TILE, SOFT = 20, 4  # patch positions of a tile: 16 patches, a class token, and what fills its merge group; soft tokens


def counted(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """The rule in plain words: the nearest aspect; of equal ones the last that the image fills by half."""
    best, found = float("inf"), (1, 1)
    for total in range(spec.min_tiles, spec.max_tiles + 1):
        for columns in range(1, total + 1):
            if total % columns:
                continue
            rows = total // columns
            distance = abs(width / height - columns / rows)
            if distance < best or (distance == best and height * width > 0.5 * spec.side**2 * total):
                best, found = distance, (rows, columns)
    return found


@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=20),
    st.integers(1, 4), st.integers(0, 12),
)  # fmt: skip
def test_tiles_are_chosen_by_the_nearest_aspect_many_at_once_as_one_by_one(sizes, least, more):
    spec = dataclasses.replace(SPEC, side=448, min_tiles=least, max_tiles=least + more, max_pixels=448**2)
    heights, widths = np.array(sizes, np.int32).T
    rows, columns = geometry.tile_grid(heights, widths, spec)
    expected = [counted(*size, spec) if spec.max_tiles > 1 else (1, 1) for size in sizes]
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected
    assert [geometry.tile_grid(*size, spec) for size in sizes] == expected


def test_a_picture_is_cut_into_squares_row_by_row_and_the_whole_comes_last():
    image = picture(40, 60, 3)
    rows, columns = geometry.tile_grid(40, 60, SPEC)
    assert (rows, columns) == (2, 3)
    found, grid = cutting.patches(image, SPEC, (40, 60))
    assert grid == (4, 4)
    assert len(found) == 16 * (rows * columns + 1)
    decoded = media.decode(image)
    large = decoded.resize((16 * columns, 16 * rows), PIL.Image.Resampling.BICUBIC)
    whole = decoded.resize((16, 16), PIL.Image.Resampling.BICUBIC)
    assert_tiles(found, [*squares_of(large, rows, columns, 16), whole], SPEC)


@pytest.fixture(scope="module")
def lengths():
    template = Template(load_tokenizer(""), "sft")
    images = [picture(16, 16, 1), picture(16, 32, 2), picture(40, 20, 3)]
    documents = [plain("ab", images[1], "c", images[0], "d"), plain(images[2], "e"), plain("fgh")]
    encoded = [template.encode(document) for document in documents]
    held = [[images[1], images[0]], [images[2]], []]
    return Lengths(InMemory("made", encoded, held, template.fingerprint), SPEC)


def test_what_an_image_costs_is_counted_from_its_header(lengths):
    assert [geometry.tile_count(*size, SPEC) for size in ((16, 32), (16, 16), (40, 20))] == [3, 1, 3]
    assert lengths.units_I.tolist() == [3 * TILE, TILE, 3 * TILE]
    assert lengths.slots().tolist() == [3 * SOFT, SOFT, 3 * SOFT]
    assert lengths.items_E.tolist() == [4, 3, 0]
    assert lengths.patches_E.tolist() == [4 * TILE, 3 * TILE, 0]
    assert (lengths.tokens_E - lengths.prepared.tokens_E).tolist() == [4 * SOFT, 3 * SOFT, 0]


def test_each_tile_is_a_segment_and_its_soft_tokens_follow_each_other_in_one_run(lengths):
    budgets = Budgets(tokens=64, patches=160, items=8, targets=64)
    row = [Piece(0, e, 0, int(lengths.tokens_E[e])) for e in (0, 1)]
    loaded = Assembler([lengths], budgets, SPEC)([row])
    assert not loaded.skipped
    assert loaded.media == {"image": 3}, "an image of several tiles is one"
    batch = loaded.batch
    segments, positions = batch.patches.segments[0], batch.patches.positions[0]
    for tile in range(7):
        there = slice(tile * TILE, tile * TILE + 16)
        assert (segments[there] == tile + 1).all()
        np.testing.assert_array_equal(positions[there, 1:], geometry.patch_positions(4, 4, SPEC))
        assert segments[there.stop] == tile + 1, "its class token"
        assert positions[there.stop].tolist() == [0, -1, 0]
        assert not segments[there.stop + 1 : (tile + 1) * TILE].any()
    assert not segments[7 * TILE :].any()
    assert batch.grids_BM3[0].tolist() == [[1, 4, 4]] * 7 + [[0, 0, 0]]
    slots = batch.slots_BT[0]
    # The soft tokens of tile k are rows 5k to 5k + 3 of the table; row 5k + 4 is its class token's group.
    assert slots[slots != IGNORED].tolist() == [5 * tile + n for tile in range(7) for n in range(SOFT)]
    runs = np.flatnonzero(np.diff(np.concatenate([[False], slots != IGNORED, [False]]).astype(int)))
    assert (runs[1::2] - runs[::2]).tolist() == [3 * SOFT, SOFT, 3 * SOFT]
    alone, _ = cutting.patches(lengths.prepared.read(1).images[0], SPEC, (40, 20))
    for n in range(3):
        found = batch.patches.values[0, (4 + n) * TILE : (4 + n) * TILE + 16]
        np.testing.assert_array_equal(found, alone[16 * n : 16 * n + 16])


def index_of(images: list[tuple[int, int]]) -> Lengths:
    """One image of a size, between separators, in each example."""
    return Lengths(
        Made("made", [4] * len(images), [[(2, *size)] for size in images], [[(0, TARGET)]] * len(images)), SPEC
    )


def test_picked_budgets_hold_the_image_of_most_tiles():
    lengths = index_of([(16, 16)] * 50 + [(16, 96)])
    budgets = choose_budgets([lengths], [1.0], 64, 0, 0, SPEC.merge)
    assert budgets.items >= 7
    assert budgets.patches >= 7 * TILE
    rows = Plan([lengths], [1.0], budgets, 4, 0, "split").rows(0, 40)
    assert 50 in {piece.example for row in rows for piece in row}


def test_an_image_of_more_tiles_than_a_row_holds_is_named_or_left_out():
    lengths = index_of([(16, 16)] * 5 + [(16, 96)])
    for budgets in (Budgets(20, BOUNDLESS, 64, 20), Budgets(64, 6 * TILE, 64, 64), Budgets(64, BOUNDLESS, 6, 64)):
        with pytest.raises(UserError, match=r"record 5 has an image of 7 tiles, 140 patches \(30 tokens\)"):
            Plan([lengths], [1.0], budgets, 4, 0, "split").rows(0, 8)
        rows = Plan([lengths], [1.0], budgets, 4, 0, "drop").rows(0, 8)
        assert {piece.example for row in rows for piece in row} == set(range(5))


def test_tiles_need_a_square_and_an_order():
    for wrong in ({"side": 0}, {"min_tiles": 7}, {"min_tiles": 0}, {"crop": True}, {"text_axes": 3}):
        with pytest.raises(ValueError, match="tiles"):
            dataclasses.replace(SPEC, **wrong)


SPLIT = SplitSpec(
    side=16, least=2, most=6, square="<r{row}c{column}>", between="~", row_end="/", whole="<all>", alone="<one>"
)
ASPECT = ImageSpec(patch_size=4, merge=2, min_pixels=64, max_pixels=640, split=SPLIT)
COVER = ImageSpec(
    patch_size=4, merge=2, min_pixels=1, max_pixels=256, side=16, resample="lanczos",
    split=dataclasses.replace(SPLIT, grid="cover", longest=48),
)  # fmt: skip


def split_by_words(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """Both rules of ``SplitSpec``, in plain words."""
    if spec is ASPECT:
        large = max(round(height / 8) * 8, 4) * max(round(width / 8) * 8, 4) > 2 * 640
        like = dataclasses.replace(SPEC, side=16, min_tiles=2, max_tiles=6)
        return counted(height, width, like) if large else (1, 1)
    sides = [height, width]
    long, short = (1, 0) if width >= height else (0, 1)
    for last in (False, True):
        aspect = sides[1] / sides[0]
        sides[long] = 48
        sides[short] = int(48 / aspect) if long else int(48 * aspect)
        sides[short] = -(-sides[short] // 16) * 16 if last else max(sides[short] + sides[short] % 2, 1)
    return sides[0] // 16, sides[1] // 16


@hypothesis.given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=20))
def test_pictures_are_split_by_the_rules_of_their_families_many_at_once_as_one_by_one(sizes):
    heights, widths = np.array(sizes, np.int32).T
    for spec in (ASPECT, COVER):
        rows, columns = geometry.tile_grid(heights, widths, spec)
        assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [split_by_words(*s, spec) for s in sizes]
        tilings = [geometry.one_tiling(*size, spec) for size in sizes]
        assert geometry.tile_count(heights, widths, spec).tolist() == [len(tiling.grids) for tiling in tilings]


@pytest.mark.parametrize("spec", [ASPECT, COVER], ids=["aspect", "cover"])
def test_text_stands_between_the_tiles_of_a_picture_and_is_no_target(spec):
    template = Template(load_tokenizer(""), "pretrain")
    images = [picture(30, 90, 1), picture(8, 8, 2), picture(40, 70, 3)]
    documents = [plain("ab", images[0], "c", images[1], "d"), plain(images[2], "e"), plain("fgh")]
    held = [images[:2], images[2:], []]
    source = InMemory("made", [template.encode(one) for one in documents], held, template.fingerprint)
    lengths = Lengths(source, spec, encode=lambda text: [1000 + ord(letter) for letter in text])
    tiles = [geometry.one_tiling(*size, spec) for size in ((30, 90), (8, 8), (40, 70))]
    assert [len(one.grids) for one in tiles] == ([4, 1, 7] if spec is ASPECT else [4, 10, 7])
    assert lengths.units_I.tolist() == [sum(r * c for r, c in one.grids) for one in tiles]
    assert lengths.items_E.tolist() == [len(tiles[0].grids) + len(tiles[1].grids), len(tiles[2].grids), 0]
    budgets = Budgets(tokens=1024, patches=1024, items=32, targets=512)
    row = [Piece(0, e, 0, int(lengths.tokens_E[e])) for e in range(3)]
    batch = Assembler([lengths], budgets, spec)([row]).batch
    slots, values, learnt = batch.slots_BT[0], batch.text.values[0], batch.weights_BT[0] > 0
    used = int((batch.text.segments[0] > 0).sum())
    assert used == lengths.tokens_E.sum()
    assert np.array_equal(slots[slots != IGNORED], np.arange(lengths.slots().sum())), "soft tokens are in order"
    shown = "".join(
        "." if slot != IGNORED else chr(value - 1000) if value >= 1000 else ""
        for slot, value in zip(slots[:used].tolist(), values[:used].tolist(), strict=True)
    )
    wanted = ""
    for one in tiles:
        squares = [f"<r{r + 1}c{c + 1}>" for r in range(one.rows) for c in range(one.columns)] if one.squares else []
        for n, (text, grid) in enumerate(zip([*squares, "<all>" if squares else "<one>"], one.grids, strict=True)):
            ended = "/" if squares and n and n % one.columns == 0 else ""
            between = "~" if 0 < n < len(squares) else ""
            wanted += ended + between + text + "." * (grid[0] * grid[1] // 4)
    assert shown == wanted
    assert (values[np.flatnonzero(learnt) + 1] < 1000).all(), "what is predicted is the document's own text"
    assert learnt.sum() == lengths.targets_E.sum() - 2, "all but the first tokens of the two that begin with text"
    grids = [grid for one in tiles for grid in one.grids]
    assert batch.grids_BM3[0, : len(grids), 1:].tolist() == [list(grid) for grid in grids]


def test_what_is_kept_on_disk_changes_only_where_pictures_are_split():
    plain_spec = dataclasses.replace(ASPECT, split=None)
    assert "split" not in str(plain_spec.key())
    assert len(plain_spec.key()) == len(ASPECT.key()) - 1


def test_split_pictures_are_squares_of_whole_soft_tokens():
    for wrong in ({"side": 20}, {"grid": "circles"}, {"least": 1}, {"grid": "cover"}):
        with pytest.raises(ValueError, match=r"square|split|longest"):
            dataclasses.replace(ASPECT, split=dataclasses.replace(SPLIT, **wrong))
