"""One Batch holds the inputs of every family: full-size shapes traced, small examples compared with masks by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.models import zoo
from jaxmm.models.attention import attention

SIZES = {"rows": 2, "seq_len": 8192, "patch_budget": 16448, "items": 16}


def empty(spec: zoo.InputSpec, t: int, n: int, m: int = 4):
    """A small Batch of zeros."""
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), zoo.batch_shapes(spec, 1, t, n, m))


def dense(intervals, count: int) -> np.ndarray:
    start, end = (np.asarray(x)[0, :count, None] for x in intervals)
    keys = np.arange(count)
    return (keys >= start) & (keys < end)


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_every_family_fits_the_batch_at_full_size(family):
    spec = zoo.FAMILIES[family]
    batch = zoo.batch_shapes(spec, **SIZES)

    def run(batch):
        pixels = batch.patches.values.astype(jnp.float32)
        features = jnp.ones((pixels.shape[-1], 64)).T @ pixels[..., None]
        x_BNHD = features.reshape(*pixels.shape[:2], 4, 16)
        for intervals in zoo.tower_intervals(spec, batch).values():
            x_BNHD = attention(x_BNHD, x_BNHD, x_BNHD, intervals)
        table = zoo.soft_tokens(spec, x_BNHD.reshape(*pixels.shape[:2], 64))
        text = jnp.take_along_axis(table, jnp.maximum(batch.slots_BT, 0)[..., None], axis=1)
        x_BTHD = text.reshape(*batch.slots_BT.shape, -1, 16)
        for intervals in zoo.text_intervals(spec, batch).values():
            x_BTHD = attention(x_BTHD, x_BTHD[:, :, :2], x_BTHD[:, :, :2], intervals)
        return table, x_BTHD

    table, out = jax.eval_shape(run, batch)
    assert table.shape[:2] == (2, SIZES["patch_budget"] // spec.merge**2)
    assert out.shape[:2] == (2, SIZES["seq_len"])
    assert batch.text.positions.shape == (2, SIZES["seq_len"], spec.text_axes)


@pytest.mark.parametrize(
    ("family", "grid", "patches", "slots"),
    [
        ("qwen2.5-vl", (24, 36), 864, 216),
        ("internvl-3", (0, 0), 1024 + 4, 256),
        ("gemma-3", (0, 0), 4096, 256),
        ("siglip2-naflex", (10, 20), 200, 50),
    ],
)
def test_a_tile_takes_the_positions_its_paper_says(family, grid, patches, slots):
    spec = zoo.FAMILIES[family]
    assert spec.tile_patches(*grid) == patches
    classes = -(-spec.class_tokens // spec.merge**2)
    assert patches // spec.merge**2 - classes == slots


def test_a_grid_that_merge_groups_do_not_fill_is_refused():
    with pytest.raises(ValueError, match="5 x 4 patches does not divide into 2 x 2"):
        zoo.QWEN2_5_VL.tile_patches(5, 4)


def window_order(frames: int, rows: int, columns: int, window: int, merge: int) -> np.ndarray:
    """(frame, row, column) of patches, window after window, and merge group after merge group in a window."""
    places = [(f, r, c) for f in range(frames) for r in range(rows) for c in range(columns)]

    def key(place):
        f, r, c = place
        return f, r // window, c // window, r // merge, c // merge, r, c

    return np.array(sorted(places, key=key), np.int32)


def test_qwen_s_windows_are_runs_of_its_patches_within_one_frame_of_one_image():
    spec = zoo.QWEN2_5_VL
    tiles = [window_order(1, 12, 18, 8, 2), window_order(2, 6, 10, 8, 2)]  # windows cut short at the edges
    positions = np.concatenate(tiles)
    count = len(positions)
    segments = np.repeat([1, 2], [len(t) for t in tiles])
    batch = empty(spec, 8, count + 6)
    batch.patches.positions[0, :count] = positions
    batch.patches.segments[0, :count] = segments
    found = zoo.tower_intervals(spec, batch)
    unit = np.stack([segments, positions[:, 0]])
    frame = (unit[:, :, None] == unit[:, None]).all(0)
    np.testing.assert_array_equal(dense(found["all"], count), frame)
    window = positions[:, 1:].T // 8
    same_window = (window[:, :, None] == window[:, None]).all(0)
    np.testing.assert_array_equal(dense(found["window"], count), frame & same_window)
    groups = positions.reshape(-1, 4, 3)
    assert (np.ptp(groups, axis=1).max(0) == [0, 1, 1]).all(), "the patches of a soft token are adjacent"
    for start_or_end in found["window"]:
        assert not np.asarray(start_or_end)[0, count:].any(), "padding sees nothing"


def test_internvl_s_class_token_sees_its_tile_and_its_group_gives_no_slot():
    spec = zoo.InputSpec(**{**vars(zoo.INTERNVL_3), "tile": 4 * 14})  # tiles of 4 x 4 patches
    each = spec.tile_patches()
    assert each == 16 + 4
    batch = empty(spec, 8, 2 * each)
    for tile in range(2):
        here = slice(tile * each, tile * each + 17)
        batch.patches.positions[0, here] = [*window_order(1, 4, 4, 4, 2), (0, -1, 0)]
        batch.patches.segments[0, here] = tile + 1
    mask = dense(zoo.tower_intervals(spec, batch)["all"], 2 * each)
    segments = batch.patches.segments[0]
    np.testing.assert_array_equal(mask, (segments[:, None] == segments[None]) & (segments > 0)[:, None])
    assert mask[16].sum() == 17, "the class token sees its tile and itself"
    features = np.arange(2 * each, dtype=np.float32)[None, :, None]
    table = np.asarray(zoo.soft_tokens(spec, features))[0]
    # Rows 4 and 9 are the class tokens' groups.
    assert table[[0, 1, 2, 3, 5, 6, 7, 8]].ravel().tolist() == [*range(16), *range(20, 36)]


def test_gemma_s_local_layers_are_window_and_causal_or_image():
    spec = zoo.InputSpec(**{**vars(zoo.GEMMA_3), "text_window": 5})
    batch = empty(spec, 24, 16)
    segments, blocks = batch.text.segments[0], batch.blocks_BT[0]
    segments[:14], segments[14:22] = 1, 2
    blocks[3:11], blocks[16:20] = 1, 2  # two images of 8 and 4 soft tokens
    found = zoo.text_intervals(spec, batch)
    i, j = np.arange(24)[:, None], np.arange(24)[None]
    document = (segments[:, None] == segments[None]) & (segments > 0)[:, None]
    image = (blocks[:, None] == blocks[None]) & (blocks > 0)[:, None]
    np.testing.assert_array_equal(dense(found["all"], 24), document & ((j <= i) | image))
    np.testing.assert_array_equal(dense(found["window"], 24), document & ((j <= i) | image) & (j > i - 5))


def test_gemma_s_soft_tokens_are_the_averages_of_sixteen_patches():
    positions = window_order(1, 8, 8, 8, 4)
    features = positions[None, :, 1:].astype(np.float32)
    table = np.asarray(zoo.soft_tokens(zoo.GEMMA_3, features))[0]
    assert table.tolist() == [[1.5, 1.5], [1.5, 5.5], [5.5, 1.5], [5.5, 5.5]]


def test_naflex_images_see_themselves_and_text_is_causal():
    batch = empty(zoo.SIGLIP2_NAFLEX, 6, 16)
    batch.patches.segments[0, :12] = np.repeat([1, 2], [4, 8])
    batch.text.segments[0, :5] = 1
    assert set(zoo.tower_intervals(zoo.SIGLIP2_NAFLEX, batch)) == {"all"}
    mask = dense(zoo.tower_intervals(zoo.SIGLIP2_NAFLEX, batch)["all"], 16)
    assert mask.sum(1).tolist() == [4] * 4 + [8] * 8 + [0] * 4
    assert dense(zoo.text_intervals(zoo.SIGLIP2_NAFLEX, batch)["all"], 6).sum(1).tolist() == [1, 2, 3, 4, 5, 0]
