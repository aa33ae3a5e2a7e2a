"""JPEGs decoded at a smaller scale, and patches written to their place in a batch."""

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded, smooth, with_orientation

from jaxmm.data.media import geometry
from jaxmm.data.media import patches as cutting
from jaxmm.data.media import picture as media
from jaxmm.image_spec import ImageSpec


def decoded_sizes(monkeypatch) -> list[tuple[int, int]]:
    """The sizes that pictures are decoded at from now on."""
    found: list[tuple[int, int]] = []
    whole = cutting.decoded

    def noted(opened: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
        found.append(opened.size)
        return whole(opened, orientation)

    monkeypatch.setattr(cutting, "decoded", noted)
    return found


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("edges", [None, cutting.Edges(0.1, -0.05, 0.0, 0.2)])
def test_fast_decoding_shows_what_exact_decoding_does(monkeypatch, orientation, edges):
    spec = ImageSpec(patch_size=8, merge=1, min_pixels=0, max_pixels=48 * 48)
    image = encoded(smooth(205, 301), "JPEG", quality=95, subsampling=0, exif=with_orientation(orientation))
    size = media.image_size(image)
    sizes = decoded_sizes(monkeypatch)
    exact, grid = cutting.patches(image, spec, size, edges)
    fast, fast_grid = cutting.patches(image, spec, size, edges, fast=True)
    assert grid == fast_grid == geometry.grid_size(*size, spec)
    assert sizes[0] == (301, 205)
    assert sizes[1] in ((151, 103), (76, 52))
    difference = np.abs(exact.astype(int) - fast)
    assert difference.mean() < 1.5  # half a pixel to one side would be 2.5
    assert difference.max() < 16


@given(st.integers(8, 400), st.integers(8, 400), st.integers(1, 8), st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))
def test_fast_decoding_never_decodes_smaller_than_what_it_resizes_to(height, width, orientation, left, bottom):
    spec = ImageSpec(patch_size=4, merge=1, min_pixels=0, max_pixels=40 * 40)
    image = encoded(smooth(height, width), "JPEG", exif=with_orientation(orientation))
    with pytest.MonkeyPatch.context() as patch:
        size = media.image_size(image)
        sizes = decoded_sizes(patch)
        edges = cutting.Edges(left, 0.0, 0.0, bottom)
        frame = cutting._frame(*(4 * side for side in geometry.grid_size(*size, spec)[::-1]), edges)
        cutting.patches(image, spec, size, edges, fast=True)
    (decoded,) = sizes
    seen_width, seen_height = decoded if orientation < 5 else decoded[::-1]
    if decoded != (width, height):
        assert seen_width * (1 - max(left, 0)) >= frame.inner_width
        assert seen_height * (1 - max(bottom, 0)) >= frame.inner_height


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_only_jpegs_are_decoded_fast(kind):
    spec = ImageSpec(patch_size=4, merge=1, min_pixels=0, max_pixels=16 * 16)
    image = encoded(smooth(100, 120), kind)
    fast, exact = (cutting.patches(image, spec, (100, 120), fast=fast)[0] for fast in (True, False))
    np.testing.assert_array_equal(fast, exact)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 9))
def test_patches_written_to_a_place_are_those_returned(rows, columns, merge, side):
    spec = ImageSpec(side, merge, min_pixels=0, max_pixels=10**6)
    height, width = rows * merge * side, columns * merge * side
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = encoded(PIL.Image.fromarray(pixels))
    place = np.zeros((rows * columns * merge**2 + 2, side * side * 3), np.uint8)
    got, grid = cutting.patches(image, spec, (height, width), out=place[1:-1])
    assert np.shares_memory(got, place)
    assert not place[[0, -1]].any()
    alone, _ = cutting.patches(image, spec, (height, width))
    np.testing.assert_array_equal(got, alone)
    for patch, (row, column) in zip(got, geometry.patch_positions(*grid, spec), strict=True):
        here = pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]
        np.testing.assert_array_equal(patch.reshape(side, side, 3), here)
