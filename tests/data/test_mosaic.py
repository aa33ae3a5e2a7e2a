"""Squares that are read as one picture: which grid, what of it, in which order, and black where there is no picture."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
from conftest import picture, plain
from made_index import Made
from parities import squares as plain_words
from pictures import assert_tiles, squares_of

from jaxmm.batch import IGNORED
from jaxmm.clip_spec import VideoSpec
from jaxmm.data.assemble import Assembler
from jaxmm.data.documents import Video
from jaxmm.data.media import extents, geometry, mosaic
from jaxmm.data.media import patches as cutting
from jaxmm.data.media import picture as media
from jaxmm.data.media.medium import NEWLINE, Mixture
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.plan import Budgets, Piece
from jaxmm.data.prepare.index import InMemory
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.image_spec import ImageSpec, SplitSpec
from jaxmm.inference.answers import Prompt
from jaxmm.monitor import heatmaps
from jaxmm.report.view import Viewer

SIZES = tuple((16 * rows, 16 * columns) for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)))
SPEC = ImageSpec(
    patch_size=4, merge=2, min_pixels=1, max_pixels=256, side=16, newline=True,
    split=SplitSpec(side=16, grid="shown", sizes=SIZES),
)  # fmt: skip
ONE = dataclasses.replace(SPEC, split=dataclasses.replace(SPEC.split, sizes=(*SIZES, (16, 16))))
BESIDE = SplitSpec(side=16, grid="bordered", border=(120, 110, 100))
POOLED = dataclasses.replace(ONE, split=dataclasses.replace(ONE.split, pooled_above=2, beside=BESIDE))
sides = st.one_of(st.integers(1, 60), st.integers(1, 3000))


def in_words(height: int, width: int, spec: ImageSpec) -> plain_words.Squares:
    tall, wide = plain_words.best_size(height, width, spec.split.sizes)
    rows, columns = tall // 16, wide // 16
    tiles = np.zeros((rows * columns + 1, 16, 16, 3))
    return plain_words.Squares(tiles, rows, columns, height, width, spec.split.pooled_above)


@hypothesis.given(st.lists(st.tuples(sides, sides), min_size=1, max_size=20), st.sampled_from([SPEC, ONE, POOLED]))
def test_grids_and_soft_tokens_are_those_of_plain_words_many_at_once_as_one_by_one(sizes, spec):
    heights, widths = np.array(sizes, np.int32).T
    rows, columns = geometry.tile_grid(heights, widths, spec)
    counts = mosaic.soft_tokens(heights, widths, rows, columns, spec)
    tiles = geometry.tile_count(heights, widths, spec)
    for n, size in enumerate(sizes):
        wanted = in_words(*size, spec)
        assert (rows[n], columns[n], tiles[n]) == (wanted.rows, wanted.columns, len(wanted.tiles))
        places = list(plain_words.reading_order(wanted, 2))
        assert counts[n] == len(places)
        rows_S, mixture = mosaic.reading(np.arange(tiles[n]) * 4, *size, wanted.rows, wanted.columns, spec)
        assert_taken(rows_S, mixture, places)


def assert_taken(rows_S, mixture, places):
    """Rows of the table with their weights, 4 of a tile, are those of plain words; NEWLINE is where there are none."""
    table = np.zeros((2, len(rows_S), 4 * 40 + 1))
    at = np.arange(len(rows_S))
    for n, parts in enumerate(places):
        for (tile, row, column), weight in parts or [((40, 0, 0), 1.0)]:
            table[0, n, tile * 4 + row * 2 + column] += weight
    table[1, at, np.where(rows_S == NEWLINE, 160, rows_S)] = 1.0 if mixture is None else mixture.weights[:, 0]
    for k in range(3) if mixture is not None else ():
        np.add.at(table[1], (at, mixture.others[:, k]), mixture.weights[:, k + 1])
    np.testing.assert_allclose(table[1], table[0], atol=1e-6)


@pytest.mark.parametrize("size", [(40, 33), (9, 64), (50, 20), (16, 16), (3, 90)])
def test_a_picture_keeps_its_aspect_in_its_squares_and_is_black_around(size):
    image = picture(*size, 3)
    tiling = geometry.one_tiling(*size, ONE)
    found, grid = cutting.patches(image, ONE, size)
    assert grid == (4, 4)
    assert len(found) == 16 * (tiling.squares + 1)
    tall, wide = 16 * tiling.rows, 16 * tiling.columns
    decoded = media.decode(image)
    scale = min(tall / size[0], wide / size[1])
    inner = (min(wide, int(np.ceil(size[1] * scale))), min(tall, int(np.ceil(size[0] * scale))))
    canvas = PIL.Image.new("RGB", (wide, tall))
    canvas.paste(decoded.resize(inner, PIL.Image.Resampling.BICUBIC), ((wide - inner[0]) // 2, (tall - inner[1]) // 2))
    whole = decoded.resize((16, 16), PIL.Image.Resampling.BICUBIC)
    assert_tiles(found, [*squares_of(canvas, tiling.rows, tiling.columns, 16), whole], ONE)


@pytest.fixture(scope="module")
def made():
    """Two documents in a row, and the sizes of their pictures."""
    template = Template(load_tokenizer(""), "pretrain")
    sizes = [(40, 33), (9, 64), (50, 20)]
    images = [picture(*size, n) for n, size in enumerate(sizes)]
    documents = [plain("ab", images[0], "c", images[1], "d"), plain(images[2], "e")]
    source = InMemory("made", [template.encode(one) for one in documents], [images[:2], images[2:]], "made")
    lengths = Lengths(source, SPEC)
    row = [Piece(0, e, 0, int(lengths.tokens_E[e])) for e in range(2)]
    budgets = Budgets(tokens=256, patches=512, items=32, targets=64)
    return template, lengths, Assembler([lengths], budgets, SPEC)([row]), sizes


def test_rows_of_the_table_are_read_over_all_squares_and_its_first_one_ends_them(made):
    _, lengths, loaded, sizes = made
    assert not loaded.skipped
    batch = loaded.batch
    slots = batch.slots_BT[0]
    wanted, first = [], 0
    for size in sizes:
        squares = in_words(*size, SPEC)
        for parts in plain_words.reading_order(squares, 2):
            wanted += [1 + (first + tile) * 4 + row * 2 + column for (tile, row, column), _ in parts] or [0]
        first += len(squares.tiles)
    assert slots[slots != IGNORED].tolist() == wanted
    assert (batch.text.segments[0] > 0).sum() == lengths.tokens_E.sum()
    assert (batch.grids_BM3[0, :, 0] > 0).sum() == first == lengths.items_E.sum()
    assert not batch.weights_BT[0][np.flatnonzero(slots != IGNORED) - 1].any(), "soft tokens are no targets"
    assert lengths.inner_I.sum() == 0


def test_a_row_is_shown_with_each_whole_picture_and_what_is_read_of_its_squares(made):
    template, lengths, loaded, sizes = made
    views = Viewer([lengths], template, SPEC).row(loaded, 0)
    spans = [span for view in views for span in view.spans if span.kind in ("picture", "patches")]
    for n, size in enumerate(sizes):
        whole = media.decode(picture(*size, n)).resize((16, 16), PIL.Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(spans.pop(0).picture.pixels, np.asarray(whole))
        of_squares = int(lengths.slots()[n]) - 4
        assert (of_squares == 0) == (size == (9, 64)), "so long a picture is black alone to a soft token"
        if of_squares:
            assert spans.pop(0).text == f"{of_squares} soft tokens of the squares of this picture, row by row"
    assert not spans


def test_pictures_that_share_a_document_are_squares_with_a_border_and_others_are_pooled():
    template, sizes = Template(load_tokenizer(""), "pretrain"), [(40, 33), (9, 64), (50, 90)]
    images = [picture(*size, n) for n, size in enumerate(sizes)]
    documents = [plain("ab", images[0], "c", images[1], "d"), plain(images[2], "e"), plain("f")]
    source = InMemory("made", [template.encode(one) for one in documents], [images[:2], images[2:], []], "made")
    lengths = Lengths(source, POOLED)
    assert [lengths.extents(n).one().together for n in range(3)] == [2, 2, 1]
    alone = in_words(*sizes[2], POOLED)
    places = list(plain_words.reading_order(alone, 2))
    assert lengths.slots().tolist() == [5, 5, len(places)]
    assert lengths.units_I.tolist() == [16, 16, 16 * len(alone.tiles)]
    assert lengths.items_E.tolist() == [2, len(alone.tiles), 0]
    row = [Piece(0, e, 0, int(lengths.tokens_E[e])) for e in range(3)]
    loaded = Assembler([lengths], Budgets(tokens=128, patches=512, items=16, targets=64), POOLED)([row])
    assert not loaded.skipped
    batch = loaded.batch
    here = np.flatnonzero(batch.slots_BT[0] != IGNORED)
    slots, mixed = batch.slots_BT[0, here], batch.mixed
    assert slots[:10].tolist() == [1, 2, 3, 4, 0, 5, 6, 7, 8, 0]
    assert (mixed.weights_BT4[0, here[:10]] == [1, 0, 0, 0]).all()
    rows_S = np.where(slots[10:] == 0, NEWLINE, slots[10:] - 9)
    own = Mixture(mixed.others_BT3[0, here[10:]] - 9, mixed.weights_BT4[0, here[10:]])
    assert_taken(rows_S, Mixture(np.maximum(own.others, 0), own.weights), places)
    bordered = PIL.Image.new("RGB", (64, 64), BESIDE.border)
    bordered.paste(media.decode(images[1]), (0, 27))
    wanted = np.asarray(bordered.resize((16, 16), PIL.Image.Resampling.BICUBIC))
    spans = [span for view in Viewer([lengths], template, POOLED).row(loaded, 0) for span in view.spans]
    pictures = [span.picture.pixels for span in spans if span.kind == "picture"]
    np.testing.assert_array_equal(pictures[1], wanted)
    assert [span.text for span in spans if span.kind == "patches"] == [
        "the vector that ends the picture", "the vector that ends the picture",
        f"{len(places) - 4} soft tokens of the squares of this picture, row by row",
    ]  # fmt: skip


FILM = ImageSpec(
    patch_size=4, merge=1, min_pixels=1, max_pixels=400, side=20, newline=True,
    split=SplitSpec(side=20, grid="shown", sizes=((20, 40),)),
    video=VideoSpec(
        frames=1, fps=1.0, min_frames=1, max_frames=64, sampling="even", min_pixels=1, max_pixels=400, pool=2,
        newline=True,
    ),
)  # fmt: skip


def test_frames_of_a_film_are_pooled_and_the_vector_ends_it():
    template = Template(load_tokenizer(""), "pretrain")
    assert mosaic.frame_side(27, FILM) == 14, "of the releases' frames"
    still, film = picture(18, 31, 9), Video(frames=tuple(picture(24, 30, n) for n in range(7)), fps=2.0)
    source = InMemory("made", [template.encode(plain("ab", still, film, "cd"))], [[still, film]], "made")
    lengths = Lengths(source, FILM, encode=template.stamp)
    assert lengths.extents(0).one().together == 1, "a film beside a picture does not make it one of several"
    assert lengths.units_I.tolist()[1:] == [3 * 25]
    assert lengths.slots().tolist()[1:] == [3 * 9 + 1]
    budgets = Budgets(tokens=192, patches=256, items=8, targets=64)
    loaded = Assembler([lengths], budgets, FILM)([[Piece(0, 0, 0, int(lengths.tokens_E[0]))]])
    assert not loaded.skipped
    batch, first = loaded.batch, 1 + int(lengths.units_I[0])
    here = np.flatnonzero(batch.slots_BT[0] != IGNORED)[-28:]
    wanted = [
        {first + 25 * frame + 5 * y + x: tall * wide for y, tall in up for x, wide in left if tall * wide}
        for frame in range(3)
        for up in (plain_words.between(row, 3, 5) for row in range(3))
        for left in (plain_words.between(column, 3, 5) for column in range(3))
    ]
    for at, parts in zip(here, [*wanted, {0: 1.0}], strict=True):
        rows = [batch.slots_BT[0, at], *batch.mixed.others_BT3[0, at]]
        weights = batch.mixed.weights_BT4[0, at]
        found = {int(row): float(weight) for row, weight in zip(rows, weights, strict=True) if weight}
        assert found == pytest.approx(parts)
    assert not batch.weights_BT[0, here - 1].any(), "soft tokens are no targets"
    (shown,) = Viewer([lengths], template, FILM).row(loaded, 0)[0].films
    assert (shown.soft, shown.end, [shot.times for shot in shown.shots]) == (27, "", [[0.0], [1.0], [2.0]])
    for shot, number in zip(shown.shots, (0, 2, 4), strict=True):
        whole = media.decode(film.frames[number]).resize((20, 20), PIL.Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(shot.picture.pixels, np.asarray(whole))
    ((of_map,),) = heatmaps.lay_out([Prompt((film,), "what?")], [[70, 71]], template, FILM).shown
    assert (of_map.grid, len(of_map.places), np.diff(of_map.places).tolist()) == ((3, 3, 3), 27, [1] * 26)


@hypothesis.given(st.lists(st.integers(1, 400), min_size=1, max_size=4), st.integers(40, 600), st.integers(2, 60))
def test_films_that_a_row_cannot_hold_lose_frames_until_it_can(counts, tokens, text):
    text += 2 * len(counts)
    index = Made("made", [text], [[(1 + 2 * n, 24, 30, -2) for n in range(len(counts))]], [[(0, 1)]])
    index.media_count_I, ones = np.array(counts), np.ones(len(counts), np.int64)
    index.media_rate_num_I, index.media_rate_den_I = 2 * ones, ones
    video = dataclasses.replace(FILM.video, row_tokens=tokens)
    lengths = Lengths(index, dataclasses.replace(FILM, video=video))
    frames = lengths.units_I // 25
    assert (lengths.slots() == 9 * frames + 1).all()
    if text + 10 * len(counts) <= tokens:
        assert lengths.tokens_E[0] <= tokens
    whole = Lengths(index, dataclasses.replace(FILM, video=FILM.video))
    if whole.tokens_E[0] <= tokens:
        assert lengths.units_I.tolist() == whole.units_I.tolist()


def test_a_specification_of_such_squares_is_whole():
    split = SPEC.split
    for wrong in (
        {"newline": False}, {"split": None}, {"side": 0},
        {"split": dataclasses.replace(split, grid="aspect", sizes=())},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"squares|square of their side"):
            dataclasses.replace(SPEC, **wrong)
    for wrong in (
        {"sizes": ()}, {"sizes": ((16, 24),)}, {"square": "<r{row}>"}, {"border": (1, 2, 3)},
        {"beside": dataclasses.replace(BESIDE, side=32)}, {"grid": "cover", "longest": 48, "pooled_above": 9},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"sizes|no text|colour|border|pooled"):
            dataclasses.replace(split, **wrong)


def test_a_vector_ends_films_of_a_model_that_has_one():
    with pytest.raises(ValueError, match="a vector ends videos where the model has one"):
        dataclasses.replace(FILM, newline=False, split=None)
    with pytest.raises(ValueError, match="with time stamps is not pooled"):
        dataclasses.replace(FILM.video, stamp="at {seconds}")


def test_what_is_kept_on_disk_of_other_pictures_stays():
    assert not {"pool", "newline", "max_seconds"} & VideoSpec().key().keys()
    assert FILM.video.key()["pool"] == 2
    plain_spec = dataclasses.replace(SPEC, split=None, newline=False)
    assert "newline" not in plain_spec.key()
    other = str(dataclasses.replace(plain_spec, split=SplitSpec(side=16, least=2, most=6)).key())
    assert not any(name in other for name in ("sizes", "border", "pooled_above", "beside"))
    assert SPEC.key() != ONE.key()


@hypothesis.given(st.lists(st.lists(st.sampled_from([0, 0, 64, -1]), max_size=5), min_size=1, max_size=30), st.data())
def test_pictures_of_a_document_are_counted_the_same_for_any_media_that_are_asked_about(documents, data):
    kinds = np.array([kind for document in documents for kind in document], np.int32)
    index = SimpleNamespace(images_E1=np.cumsum([0, *map(len, documents)]), image_kind_I=kinds)
    each = np.array([document.count(0) for document in documents for _ in document], np.int64)
    some = np.array(data.draw(st.lists(st.integers(0, len(kinds) - 1), max_size=6) if len(kinds) else st.just([])), int)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(kinds))] * 2)))
    mask = np.isin(np.arange(len(kinds)), some)
    for sparse in (0, 64):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(extents, "SPARSE", sparse)
            for which in (slice(None), slice(start, stop), some, mask):
                np.testing.assert_array_equal(extents.Extents(index, which).together, each[which])
            within = kinds[start:stop] == 0
            inside = extents.Extents(index, slice(start, stop)).those(within).together
            np.testing.assert_array_equal(inside, each[start:stop][within])
            for i in some:
                assert extents.Extents(index, int(i)).together == each[i]
