"""The grid of patches that a picture of any size is resized to."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmm.data.media import geometry
from jaxmm.image_spec import ImageSpec

specs = st.builds(
    lambda patch_size, merge, least, most: ImageSpec(
        patch_size,
        merge,
        min_pixels=min(least, most * (patch_size * merge) ** 2),
        max_pixels=most * (patch_size * merge) ** 2,
    ),
    st.integers(1, 20),
    st.integers(1, 4),
    st.integers(0, 10**6),
    st.integers(1, 2000),
)
sides = st.integers(1, 30_000)


# The grid


@given(sides, sides, specs, st.integers(0, 50))
def test_a_grid_never_exceeds_max_pixels_and_is_whole_soft_tokens(height, width, spec, odd):
    if spec.max_pixels + odd < spec.min_pixels:
        return
    spec = ImageSpec(spec.patch_size, spec.merge, spec.min_pixels, spec.max_pixels + odd)  # any number of pixels
    rows, columns = geometry.grid_size(height, width, spec)
    assert rows * columns * spec.patch_size**2 <= spec.max_pixels
    assert rows >= spec.merge
    assert columns >= spec.merge
    assert rows % spec.merge == columns % spec.merge == 0
    assert rows * columns % spec.merge**2 == 0


@given(st.lists(st.tuples(sides, sides), max_size=20), specs)
def test_the_grids_of_many_images_are_those_of_each_alone(sizes, spec):
    heights, widths = (np.array([size[i] for size in sizes], np.int32) for i in (0, 1))
    rows, columns = geometry.grid_size(heights, widths, spec)
    assert rows.shape == columns.shape == heights.shape
    alone = [geometry.grid_size(height, width, spec) for height, width in sizes]
    assert alone == list(zip(rows.tolist(), columns.tolist(), strict=True))
    assert all(isinstance(side, int) for grid in alone for side in grid)


@given(sides, sides, st.integers(1, 60))
def test_by_the_longest_edge_a_picture_keeps_its_aspect_and_is_made_larger_to_whole_soft_tokens_alone(high, wide, most):
    spec = ImageSpec(7, 2, max_pixels=(14 * most) ** 2, min_pixels=1, by_longest=True)
    ratio = max(high / (14 * most), wide / (14 * most), 1)
    wanted = [max(-(-int(side / ratio) // 14), 1) for side in (high, wide)]
    assert [side // 2 for side in geometry.grid_size(high, wide, spec)] == wanted
    rows, columns = geometry.grid_size(np.array([high]), np.array([wide]), spec)
    assert [rows[0] // 2, columns[0] // 2] == wanted


@given(st.integers(24, 60), st.integers(24, 60))
def test_an_image_in_range_keeps_its_sides_to_half_a_soft_token(height, width):
    spec = ImageSpec(patch_size=2, merge=2, min_pixels=400, max_pixels=64 * 64)
    rows, columns = geometry.grid_size(height, width, spec)
    assert abs(rows * 2 - height) <= 2
    assert abs(columns * 2 - width) <= 2


@given(st.integers(200, 4000), st.floats(0.25, 4.0))
def test_a_large_image_keeps_its_aspect_to_a_soft_token_a_side_and_fills_its_area(width, aspect):
    spec = ImageSpec(patch_size=2, merge=2, min_pixels=0, max_pixels=128 * 128)
    height = max(200, round(width * aspect))
    rows, columns = geometry.grid_size(height, width, spec)
    scale = (spec.max_pixels / (height * width)) ** 0.5
    assert 0 <= height * scale - rows * 2 <= 4 + 1e-6
    assert 0 <= width * scale - columns * 2 <= 4 + 1e-6


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_small_image_grows_to_min_pixels(height, width):
    spec = ImageSpec(patch_size=4, merge=2, min_pixels=64 * 64, max_pixels=640 * 640)
    rows, columns = geometry.grid_size(height, width, spec)
    assert rows * columns * 16 >= spec.min_pixels


@pytest.mark.parametrize(("height", "width"), [(20000, 10), (10, 20000), (1, 100_000_000), (30000, 30000), (1, 1)])
def test_extreme_sizes_fit(height, width):
    spec = ImageSpec()
    rows, columns = geometry.grid_size(height, width, spec)
    assert min(rows, columns) >= spec.merge
    assert rows * columns * spec.patch_size**2 <= spec.max_pixels
    assert (rows > columns) == (height > width)


def test_grids_of_a_known_rule():
    spec = ImageSpec(patch_size=16, merge=2, min_pixels=64 * 64, max_pixels=512 * 512)
    assert geometry.grid_size(480, 640, spec) == (26, 36)  # 262144/307200: 443.4 x 591.2, floored to 32
    assert geometry.grid_size(224, 224, spec) == (14, 14)
    assert geometry.grid_size(48, 80, spec) == (4, 4)  # 1.5 and 2.5 round to even, as in the reference
    assert geometry.grid_size(10, 10, spec) == (4, 4)
    # What comes to whole tokens stays whole: 1000 / sqrt(1000 * 1000 / 512**2) / 32 is 16.
    assert all(geometry.grid_size(side, side, spec) == (32, 32) for side in range(529, 3000))


def test_a_thin_picture_is_grown_only_where_its_family_does_that():
    spec = ImageSpec(patch_size=14, merge=2, min_pixels=56 * 56, max_pixels=1003520)
    assert geometry.grid_size(10, 1990, spec) == (2, 142)
    assert geometry.grid_size(10, 1990, dataclasses.replace(spec, thin=True)) == (2, 58)  # 10 / 28 rounds to 0
