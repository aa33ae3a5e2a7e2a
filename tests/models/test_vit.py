"""The tower: position embeddings resized as Pillow resizes, and an order of patches that is the Stream's own affair."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from flax import nnx

from jaxmm.batch import Stream
from jaxmm.models.compute import Compute
from jaxmm.models.towers.vit import VisionSpec, VisionTower, position_weights

SPEC = VisionSpec(width=16, layers=3, heads=2, mlp=24, patch_size=2, positions=4)


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (2, 8), (3, 5), (16, 1), (12, 10), (7, 2)])
def test_position_embeddings_are_resized_with_antialiasing_as_pillow_does(grid):
    rows, columns = grid
    side = 5
    table = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
    expected = np.asarray(PIL.Image.fromarray(table).resize((columns, rows), PIL.Image.Resampling.BILINEAR))
    r, c = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    positions = np.stack([np.zeros(rows * columns, int), r.ravel(), c.ravel()], -1)[None]
    weights = position_weights(jnp.array(positions), jnp.array([[grid] * rows * columns]).reshape(1, -1, 2), side)
    np.testing.assert_allclose(weights[0] @ table.ravel(), expected.ravel(), atol=1e-5)


@pytest.fixture(scope="module")
def tower():
    return VisionTower(SPEC, rngs=nnx.Rngs(0))


def patches_of(grids: list[tuple[int, int]], padding: int = 0) -> tuple[Stream, np.ndarray]:
    """Tiles of noise in raster order, and then padding."""
    count = sum(r * c for r, c in grids) + padding
    values = np.random.default_rng(1).integers(0, 256, (1, count, 12), dtype=np.uint8)
    positions, segments = np.zeros((1, count, 3), np.int32), np.zeros((1, count), np.int32)
    at = 0
    for tile, (rows, columns) in enumerate(grids, start=1):
        here = slice(at, at := at + rows * columns)
        positions[0, here, 1], positions[0, here, 2] = np.divmod(np.arange(rows * columns), columns)
        segments[0, here] = tile
    return Stream(values, positions, segments), np.array([[(1, *grid) for grid in grids]], np.int32)


def features(tower, stream, grids, **options):
    graph, state = nnx.split(tower)
    run = jax.jit(lambda state, *args: nnx.merge(graph, state)(*args, Compute(**options)))
    return np.asarray(run(state, stream, grids).last_BND)[0]


def test_features_follow_their_patches_into_any_order(tower):
    stream, grids = patches_of([(4, 6), (2, 2)])
    order = np.concatenate([np.random.default_rng(0).permutation(24), 24 + np.random.default_rng(1).permutation(4)])
    shuffled = Stream(*(x[:, order] for x in stream))
    found = features(tower, shuffled, grids)
    np.testing.assert_allclose(found, features(tower, stream, grids)[order], atol=1e-5)


def test_the_place_of_a_patch_matters(tower):
    stream, grids = patches_of([(2, 4)])
    moved = stream._replace(positions=stream.positions[:, ::-1])
    assert np.abs(features(tower, stream, grids) - features(tower, moved, grids)).max() > 1e-3


@pytest.mark.parametrize("options", [{"remat": "full"}, {"remat": "dots"}, {"remat": "offload"}, {"unroll": 3}])
def test_how_layers_are_run_changes_no_feature(tower, options):
    stream, grids = patches_of([(2, 4)], padding=3)
    found = features(tower, stream, grids, **options)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, features(tower, stream, grids), atol=1e-6)


def test_mistakes_are_named(tower):
    with pytest.raises(ValueError, match="vision width 10 is no multiple of 4 heads"):
        VisionTower(VisionSpec(width=10, heads=4), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="remat policy 'some' is not one of none, dots, offload, full"):
        features(tower, *patches_of([(2, 2)]), remat="some")
