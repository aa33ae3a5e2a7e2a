"""Patches of a picture: their bytes, their order, and what augmentation moves."""

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded

from jaxmm.data.media import geometry
from jaxmm.data.media import patches as cutting
from jaxmm.data.media import picture as media
from jaxmm.image_spec import ImageSpec

SPEC = ImageSpec(patch_size=4, merge=2, min_pixels=16 * 16, max_pixels=64 * 64)
PICTURE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def test_a_patch_is_row_column_channel_and_groups_are_adjacent():
    spec = ImageSpec(patch_size=2, merge=2, min_pixels=0, max_pixels=10**4)
    height, width = 4, 8
    y, x, channel = np.indices((height, width, 3))
    pixels = (y * 50 + x * 3 + channel).astype(np.uint8)
    got, grid = cutting.patches(encoded(PIL.Image.fromarray(pixels)), spec, (height, width))
    assert grid == (2, 4)
    assert got.dtype == np.uint8
    assert got.shape == (8, 12)
    positions = geometry.patch_positions(2, 4, spec)
    assert positions.dtype == np.int32
    # The left 2 x 2 patches become one soft token, the right ones the next.
    assert positions.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
    for patch, (row, column) in zip(got, positions.tolist(), strict=True):
        expected = [(row * 2 + i) * 50 + (column * 2 + j) * 3 + c for i in range(2) for j in range(2) for c in range(3)]
        assert patch.tolist() == expected


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3))
def test_positions_visit_each_patch_once_group_by_group(rows, columns, merge):
    spec = ImageSpec(patch_size=2, merge=merge, min_pixels=0, max_pixels=10**6)
    positions = geometry.patch_positions(rows * merge, columns * merge, spec)
    assert len({tuple(p) for p in positions.tolist()}) == len(positions) == rows * columns * merge**2
    groups = (positions // merge).reshape(rows * columns, merge**2, 2)
    assert (groups == groups[:, :1]).all()
    assert groups[:, 0].tolist() == sorted(groups[:, 0].tolist())
    in_groups = positions.reshape(groups.shape).tolist()
    assert in_groups == [sorted(group) for group in in_groups]


def test_a_picture_is_resized_whole_to_its_grid():
    big = PIL.Image.new("RGB", (300, 100), (9, 90, 200))
    got, (rows, columns) = cutting.patches(encoded(big), SPEC, (100, 300))
    assert (rows, columns) == geometry.grid_size(100, 300, SPEC)
    assert (got.reshape(-1, 3) == (9, 90, 200)).all()


def test_a_picture_of_another_size_than_prepared_has_changed():
    with pytest.raises(media.BadMedia, match="changed"):
        cutting.patches(encoded(PICTURE), SPEC, (30, 20))


def test_edges_move_what_a_grid_shows_and_never_the_grid():
    columns = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2)  # 16 x 24, a ramp
    image, spec = encoded(PIL.Image.fromarray(columns)), ImageSpec(patch_size=4, merge=1, min_pixels=0)

    def across(*edges: float) -> np.ndarray:
        pixels, grid = cutting.patches(image, spec, (16, 24), cutting.Edges(*edges) if edges else None)
        assert grid == (4, 6)
        whole = pixels.reshape(4, 6, 4, 4, 3).transpose(0, 2, 1, 3, 4).reshape(16, 24, 3)
        assert (whole == whole[:1]).all()
        return whole[0, :, 0].astype(int)

    np.testing.assert_array_equal(across(0, 0, 0, 0), across())
    cut = across(0.25, 0, 0.25, 0)  # the middle half, twice as wide
    assert abs(cut[0] - 60) <= 5
    assert abs(cut[-1] - 170) <= 5
    assert (np.diff(cut) >= 0).all()
    wide = across(-0.25, 0.1, 0, -0.2)  # a quarter of its first column, then all of it
    assert (wide[:6] == wide[6]).all()
    assert wide[6] <= 5
    assert wide[-1] >= 225


@pytest.mark.parity
@pytest.mark.usefixtures("whole_transformers")
def test_patches_are_those_of_transformers_siglip2():
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    picture = PICTURE.resize((24, 16))
    spec = ImageSpec(patch_size=4, merge=1, min_pixels=0, max_pixels=10**5)
    got, grid = cutting.patches(encoded(picture), spec, (16, 24))
    processor = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=24, do_rescale=False, do_normalize=False)
    reference = processor(picture, return_tensors="np")
    assert reference["spatial_shapes"].tolist() == [list(grid)]
    np.testing.assert_array_equal(got, reference["pixel_values"][0])
