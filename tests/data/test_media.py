"""Images: sizes from headers, the grid rule, RGB from anything, and the bytes and order of patches."""

import contextlib
import io
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmm.batch import ImageSpec
from jaxmm.data import media
from jaxmm.data.documents import Image

SPEC = ImageSpec(patch_size=4, merge=2, min_pixels=16 * 16, max_pixels=64 * 64)
PICTURE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def encoded(picture: PIL.Image.Image, kind: str = "PNG", **options: Any) -> Image:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return Image(data=file.getvalue())


def with_orientation(value: int) -> bytes:
    exif = PIL.Image.Exif()
    exif[media.ORIENTATION] = value
    return exif.tobytes()


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
    rows, columns = media.grid_size(height, width, spec)
    assert rows * columns * spec.patch_size**2 <= spec.max_pixels
    assert rows >= spec.merge
    assert columns >= spec.merge
    assert rows % spec.merge == columns % spec.merge == 0
    assert media.soft_tokens(rows, columns, spec) * spec.merge**2 == rows * columns


@given(st.lists(st.tuples(sides, sides), max_size=20), specs)
def test_the_grids_of_many_images_are_those_of_each_alone(sizes, spec):
    heights, widths = (np.array([size[i] for size in sizes], np.int32) for i in (0, 1))
    rows, columns = media.grid_size(heights, widths, spec)
    assert rows.shape == columns.shape == heights.shape
    alone = [media.grid_size(height, width, spec) for height, width in sizes]
    assert alone == list(zip(rows.tolist(), columns.tolist(), strict=True))
    assert all(isinstance(side, int) for grid in alone for side in grid)


@given(st.integers(24, 60), st.integers(24, 60))
def test_an_image_in_range_keeps_its_sides_to_half_a_soft_token(height, width):
    spec = ImageSpec(patch_size=2, merge=2, min_pixels=400, max_pixels=64 * 64)
    rows, columns = media.grid_size(height, width, spec)
    assert abs(rows * 2 - height) <= 2
    assert abs(columns * 2 - width) <= 2


@given(st.integers(200, 4000), st.floats(0.25, 4.0))
def test_a_large_image_keeps_its_aspect_to_a_soft_token_a_side_and_fills_its_area(width, aspect):
    spec = ImageSpec(patch_size=2, merge=2, min_pixels=0, max_pixels=128 * 128)
    height = max(200, round(width * aspect))
    rows, columns = media.grid_size(height, width, spec)
    scale = (spec.max_pixels / (height * width)) ** 0.5
    assert 0 <= height * scale - rows * 2 <= 4 + 1e-6
    assert 0 <= width * scale - columns * 2 <= 4 + 1e-6


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_small_image_grows_to_min_pixels(height, width):
    spec = ImageSpec(patch_size=4, merge=2, min_pixels=64 * 64, max_pixels=640 * 640)
    rows, columns = media.grid_size(height, width, spec)
    assert rows * columns * 16 >= spec.min_pixels


@pytest.mark.parametrize(("height", "width"), [(20000, 10), (10, 20000), (1, 100_000_000), (30000, 30000), (1, 1)])
def test_extreme_sizes_fit(height, width):
    spec = ImageSpec()
    rows, columns = media.grid_size(height, width, spec)
    assert min(rows, columns) >= spec.merge
    assert rows * columns * spec.patch_size**2 <= spec.max_pixels
    assert (rows > columns) == (height > width)


def test_grids_of_a_known_rule():
    spec = ImageSpec(patch_size=16, merge=2, min_pixels=64 * 64, max_pixels=512 * 512)
    assert media.grid_size(480, 640, spec) == (26, 36)  # 262144/307200: 443.4 x 591.2, floored to 32
    assert media.grid_size(224, 224, spec) == (14, 14)
    assert media.grid_size(48, 80, spec) == (4, 4)  # 1.5 and 2.5 round to even, as in the reference
    assert media.grid_size(10, 10, spec) == (4, 4)


# Sizes and decoding


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_the_size_comes_from_the_header(kind):
    image = encoded(PICTURE, kind)
    assert media.image_size(image) == (20, 30)
    half = Image(data=image.data[: len(image.data) * 2 // 3])
    if kind in ("JPEG", "PNG"):
        assert media.image_size(half) == (20, 30)
        with pytest.raises(media.BadMedia, match="truncated"):
            media.decode(half)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_size_and_pixels_alike(kind, orientation):
    corners = PIL.Image.new("RGB", (32, 16))
    corners.paste((255, 255, 255), (0, 0, 16, 8))  # white where the camera's row 0 and column 0 meet
    image = encoded(corners, kind, exif=with_orientation(orientation))
    turned = media.decode(image)
    assert media.image_size(image) == (turned.height, turned.width) == ((16, 32) if orientation < 5 else (32, 16))
    # The EXIF standard's table: where row 0 and column 0 of the stored picture are to be seen.
    corner = ["", "top left", "top right", "bottom right", "bottom left"][(orientation - 1) % 4 + 1]
    y = 2 if "top" in corner else turned.height - 3
    x = 2 if "left" in corner else turned.width - 3
    pixels = np.asarray(turned)
    assert pixels[y, x].min() > 200
    assert pixels[-1 - y, -1 - x].max() < 50


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_leaves_the_picture():
    image = encoded(PICTURE, "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert media.image_size(image) == (20, 30)
    assert media.decode(image).size == (30, 20)


def test_transparent_pixels_become_white():
    picture = PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    picture.paste((10, 20, 30, 255), (0, 0, 4, 8))
    picture.putpixel((7, 7), (0, 0, 0, 128))
    got = media.decode(encoded(picture))
    assert [got.getpixel(at) for at in ((0, 0), (5, 5), (7, 7))] == [(10, 20, 30), (255, 255, 255), (127, 127, 127)]


def test_a_palette_keeps_its_colours_and_its_transparency():
    picture = PIL.Image.new("P", (4, 4), 0)
    picture.putpalette([200, 10, 20, 30, 210, 40])
    picture.putpixel((1, 1), 1)
    assert media.decode(encoded(picture)).getpixel((1, 1)) == (30, 210, 40)
    clear = media.decode(encoded(picture, transparency=1))
    assert (clear.getpixel((1, 1)), clear.getpixel((0, 0))) == ((255, 255, 255), (200, 10, 20))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK"])
def test_grey_and_print_colours_become_rgb(mode):
    picture = PICTURE.convert(mode)
    got = media.decode(encoded(picture, "TIFF"))
    assert got.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(got), np.asarray(PICTURE.convert(mode).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled(kind):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    got = np.asarray(media.decode(encoded(PIL.Image.fromarray(values), kind)))
    assert got[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (got == got[:, :, :1]).all()


def test_of_an_animation_the_first_frame_counts():
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    image = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert media.decode(image).getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image(path="/nowhere/picture.png"), "missing"),
        (Image(path="/"), "missing"),
        (Image(), "empty"),
        (Image(data=b"not a picture"), "unreadable"),
        (Image(data=b"P6 20000 20000 255\n"), "too large"),
    ],
)
def test_what_is_no_picture_has_a_reason(image, reason):
    with pytest.raises(media.BadMedia) as caught:
        media.image_size(image)
    assert caught.value.reason == str(caught.value) == reason
    assert reason in media.REASONS


def test_a_file_of_no_bytes_is_empty(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(media.BadMedia, match="empty"):
        media.image_size(Image(path=str(tmp_path / "a.png")))


@given(st.data())
def test_damaged_pictures_are_bad_media_and_nothing_else(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]))
    whole = bytearray(encoded(PICTURE, kind).data)
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    image = Image(data=bytes(whole[: data.draw(st.integers(1, len(whole)))]))
    with contextlib.suppress(media.BadMedia):
        height, width = media.image_size(image)
        if height * width < 10**6:
            media.patches(image, SPEC, (height, width))


def test_decoding_leaves_no_file_open_and_pillow_as_it_was(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    limit = PIL.Image.MAX_IMAGE_PIXELS
    picture = media.decode(Image(path=str(tmp_path / "a.png")))
    (tmp_path / "a.png").unlink()
    assert (limit, picture.tobytes()) == (PIL.Image.MAX_IMAGE_PIXELS, PICTURE.tobytes())


# Patches


def test_a_patch_is_row_column_channel_and_groups_are_adjacent():
    spec = ImageSpec(patch_size=2, merge=2, min_pixels=0, max_pixels=10**4)
    height, width = 4, 8
    y, x, channel = np.indices((height, width, 3))
    pixels = (y * 50 + x * 3 + channel).astype(np.uint8)
    got, grid = media.patches(encoded(PIL.Image.fromarray(pixels)), spec, (height, width))
    assert grid == (2, 4)
    assert got.dtype == np.uint8
    assert got.shape == (8, 12)
    positions = media.patch_positions(2, 4, spec)
    assert positions.dtype == np.int32
    # The left 2 x 2 patches become one soft token, the right ones the next.
    assert positions.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
    for patch, (row, column) in zip(got, positions.tolist(), strict=True):
        expected = [(row * 2 + i) * 50 + (column * 2 + j) * 3 + c for i in range(2) for j in range(2) for c in range(3)]
        assert patch.tolist() == expected


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3))
def test_positions_visit_each_patch_once_group_by_group(rows, columns, merge):
    spec = ImageSpec(patch_size=2, merge=merge, min_pixels=0, max_pixels=10**6)
    positions = media.patch_positions(rows * merge, columns * merge, spec)
    assert len({tuple(p) for p in positions.tolist()}) == len(positions) == rows * columns * merge**2
    groups = (positions // merge).reshape(rows * columns, merge**2, 2)
    assert (groups == groups[:, :1]).all()
    assert groups[:, 0].tolist() == sorted(groups[:, 0].tolist())
    in_groups = positions.reshape(groups.shape).tolist()
    assert in_groups == [sorted(group) for group in in_groups]


def test_a_picture_is_resized_whole_to_its_grid():
    big = PIL.Image.new("RGB", (300, 100), (9, 90, 200))
    got, (rows, columns) = media.patches(encoded(big), SPEC, (100, 300))
    assert (rows, columns) == media.grid_size(100, 300, SPEC)
    assert (got.reshape(-1, 3) == (9, 90, 200)).all()


def test_a_picture_of_another_size_than_prepared_has_changed():
    with pytest.raises(media.BadMedia, match="changed"):
        media.patches(encoded(PICTURE), SPEC, (30, 20))


def test_edges_move_what_a_grid_shows_and_never_the_grid():
    columns = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2)  # 16 x 24, a ramp
    image, spec = encoded(PIL.Image.fromarray(columns)), ImageSpec(patch_size=4, merge=1, min_pixels=0)

    def across(*edges: float) -> np.ndarray:
        pixels, grid = media.patches(image, spec, (16, 24), media.Edges(*edges) if edges else None)
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
def test_patches_are_those_of_transformers_siglip2():
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    picture = PICTURE.resize((24, 16))
    spec = ImageSpec(patch_size=4, merge=1, min_pixels=0, max_pixels=10**5)
    got, grid = media.patches(encoded(picture), spec, (16, 24))
    processor = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=24, do_rescale=False, do_normalize=False)
    reference = processor(picture, return_tensors="np")
    assert reference["spatial_shapes"].tolist() == [list(grid)]
    np.testing.assert_array_equal(got, reference["pixel_values"][0])
