"""Pictures: sizes from headers, RGB from anything, and what is no picture."""

import contextlib
import io
import os
import socket
import struct
import subprocess
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded, smooth, with_orientation

from jaxmm.data.documents import Features, Image
from jaxmm.data.media import patches as cutting
from jaxmm.data.media import picture as media
from jaxmm.data.media import table
from jaxmm.data.media.features import FeaturesMedium
from jaxmm.image_spec import ImageSpec

SPEC = ImageSpec(patch_size=4, merge=2, min_pixels=16 * 16, max_pixels=64 * 64)
PICTURE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
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
        (Image(path="/"), "no file"),
        (Image(path="/dev/zero"), "no file"),
        (Image(), "empty"),
        (Image(data=b"not a picture"), "unreadable"),
        (Image(data=b"P6 20000 20000 255\n"), "too large"),
    ],
)
def test_what_is_no_picture_has_a_reason(image, reason):
    with pytest.raises(media.BadMedia) as caught:
        media.image_size(image)
    assert caught.value.reason == str(caught.value) == reason
    assert reason in table.reasons()


@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a pipe", "folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "socket":
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.close()
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    for look, medium in (
        (media.image_size, Image(path=str(path))),
        (FeaturesMedium().extent, Features(path=str(path))),
    ):
        with pytest.raises(media.BadMedia, match="no file"):
            look(medium)
    assert "no file" in table.reasons()


@pytest.mark.parametrize(("height", "width"), [(1, 170_000_000), (170_000_000, 1), (2, media.MAX_SIDE + 1)])
def test_a_side_that_takes_gigabytes_to_resize_is_too_large(height, width):
    header = png_of([(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", b"")])
    with pytest.raises(media.BadMedia, match="too large"):
        media.image_size(header)


def test_the_longest_sides_are_resized():
    for size in ((media.MAX_SIDE, 1), (1, media.MAX_SIDE)):
        found, _ = cutting.patches(encoded(PIL.Image.new("L", size, 90)), SPEC, size[::-1])
        assert (found == 90).all()


def test_a_resize_that_takes_gigabytes_before_a_crop_is_too_large():
    spec = ImageSpec(patch_size=16, merge=1, side=336, crop=True)
    image = encoded(PIL.Image.new("L", (media.MAX_SIDE, 2)))
    with pytest.raises(media.BadMedia, match="too large"):
        cutting.patches(image, spec, (2, media.MAX_SIDE))


def test_a_picture_without_an_area_is_unreadable():
    for content in (b"P6 0 5 255\n", png_of([(b"IHDR", struct.pack(">IIBBBBB", 0, 4, 8, 2, 0, 0, 0))]).data):
        with pytest.raises(media.BadMedia, match="unreadable"):
            media.image_size(Image(data=content))


def test_a_file_of_more_bytes_than_a_picture_needs_is_too_large(tmp_path, monkeypatch):
    PICTURE.save(tmp_path / "a.png")
    monkeypatch.setattr(media, "MAX_BYTES", 99)
    with pytest.raises(media.BadMedia, match="too large"):
        media.image_size(Image(path=str(tmp_path / "a.png")))


def test_a_jpeg_of_more_scans_than_there_is_time_for_is_too_large(monkeypatch):
    whole = encoded(smooth(64, 64), "JPEG", progressive=True).data
    last = whole.rindex(b"\xff\xda")
    many = Image(data=whole[:-2] + whole[last:-2] * 500 + whole[-2:])
    media.decode(many)
    monkeypatch.setattr(media, "MAX_PASSES", 64 * 64 * 100)
    media.decode(Image(data=whole))
    with pytest.raises(media.BadMedia, match="too large"):
        media.decode(many)


def test_memory_that_runs_out_costs_one_picture(monkeypatch):
    def none_left(*args, **kwargs):
        raise MemoryError

    image = encoded(PICTURE, "BMP")
    for name in ("load", "resize"):
        with monkeypatch.context() as patched:
            patched.setattr(PIL.Image.Image, name, none_left)
            with pytest.raises(media.BadMedia, match="too large"):
                cutting.patches(image, SPEC, PICTURE.size[::-1])


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
            cutting.patches(image, SPEC, (height, width))


def test_decoding_leaves_no_file_open_and_pillow_as_it_was(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    limit = PIL.Image.MAX_IMAGE_PIXELS
    picture = media.decode(Image(path=str(tmp_path / "a.png")))
    (tmp_path / "a.png").unlink()
    assert (limit, picture.tobytes()) == (PIL.Image.MAX_IMAGE_PIXELS, PICTURE.tobytes())


# Bad media


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, content) of each chunk."""
    found, at = [], 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def png_of(chunks: list[tuple[bytes, bytes]], broken: bytes = b"") -> Image:
    """A PNG of chunks; the checksums of those of kind ``broken`` are wrong."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        checksum = zlib.crc32(kind + content) ^ (kind == broken)
        parts.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum))
    return Image(data=b"".join(parts))


def test_a_png_with_damaged_or_too_few_pixels_is_skipped():
    chunks = png_chunks(encoded(PICTURE).data)
    assert media.decode(png_of(chunks)).tobytes() == PICTURE.tobytes()
    with pytest.raises(media.BadMedia, match="unreadable"):
        media.image_size(png_of(chunks, broken=b"IHDR"))
    whole = png_of(chunks).data
    start, end = whole.index(b"IDAT") + 4, whole.index(b"IEND") - 8
    reasons = []
    for at in range(start, end, 53):
        damaged = Image(data=whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        assert media.image_size(damaged) == (20, 30)  # headers cannot tell
        try:
            assert media.decode(damaged).tobytes() == PICTURE.tobytes()  # a bit that meant nothing
        except media.BadMedia as error:
            reasons.append(error.reason)
    assert set(reasons) <= {"unreadable", "truncated"}
    assert len(reasons) > 30
    # Zlib's own checksum holds the pixels together: where only the chunk's is wrong, they are right.
    assert media.decode(png_of(chunks, broken=b"IDAT")).tobytes() == PICTURE.tobytes()
    pixels = zlib.decompress(b"".join(content for kind, content in chunks if kind == b"IDAT"))
    short = [(kind, zlib.compress(pixels[:900]) if kind == b"IDAT" else content) for kind, content in chunks]
    with pytest.raises(media.BadMedia, match="truncated"):
        media.decode(png_of(short))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (20000, 10), (10, 20000)])
@pytest.mark.parametrize("fast", [False, True])
def test_pictures_of_extreme_shape_become_patches(height, width, fast):
    image = encoded(PIL.Image.new("RGB", (width, height), (10, 200, 30)), "JPEG", quality=95)
    assert media.image_size(image) == (height, width)
    got, (rows, columns) = cutting.patches(image, SPEC, (height, width), fast=fast)
    assert got.shape == (rows * columns, SPEC.patch_size**2 * 3)
    assert np.abs(got.reshape(-1, 3).astype(int) - (10, 200, 30)).max() < 8


@pytest.mark.parametrize("fast", [False, True])
def test_print_colours_grey_and_progressive_jpegs_are_decoded(fast):
    for mode, options in (("CMYK", {}), ("L", {}), ("RGB", {"progressive": True})):
        picture = smooth(120, 160).convert(mode)
        got, _ = cutting.patches(encoded(picture, "JPEG", quality=95, **options), SPEC, (120, 160), fast=fast)
        exact, _ = cutting.patches(encoded(picture.convert("RGB")), SPEC, (120, 160))
        assert np.abs(got.astype(int) - exact).mean() < 3, mode


def test_a_bomb_is_too_large_at_the_named_limit_and_nothing_is_printed():
    """In a program of its own: pytest would hide what is printed."""

    def header_of(height: int, width: int) -> str:
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b"")]
        return repr(png_of(chunks).data)

    side = media.MAX_PIXELS // 10_000
    program = (
        "from jaxmm.data.media import picture as media\n"
        "from jaxmm.data.documents import Image\n"
        f"print(media.image_size(Image({header_of(10_000, side)})))\n"
        "try:\n"
        f"    print(media.image_size(Image({header_of(10_000, side + 1)})))\n"
        "except media.BadMedia as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == (f"(10000, {side})\ntoo large\n", "")


def test_broken_exif_and_palette_transparency_print_nothing():
    broken = encoded(PICTURE, "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    palette = PIL.Image.new("P", (4, 4), 0)
    palette.putpalette([200, 10, 20, 30, 210, 40])
    clear = encoded(palette, transparency=bytes([0, 128]))
    program = (
        "from jaxmm.data.media import picture as media\n"
        "from jaxmm.data.documents import Image\n"
        f"print(media.image_size(Image({broken.data!r})), media.decode(Image({clear.data!r})).getpixel((0, 0)))\n"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("(20, 30) (255, 255, 255)\n", "")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_a_header_tells_whether_pictures_follow_the_first(kind):
    frames = [PIL.Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    moving = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert media.header(moving) == (6, 8, True)
    assert media.header(encoded(frames[0], kind)) == (6, 8, False)
    red, _, blue = media.decode(moving).getpixel((3, 3))
    assert red > 240
    assert blue < 15


def test_of_two_pictures_in_one_jpeg_the_first_counts():
    frames = [smooth(64, 48), PIL.Image.new("RGB", (64, 48))]
    double = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert media.header(double) == (64, 48, True)
    spec = ImageSpec(patch_size=4, merge=1, min_pixels=0, max_pixels=16 * 16)
    for fast in (False, True):
        got, _ = cutting.patches(double, spec, (64, 48), fast=fast)
        wanted, _ = cutting.patches(encoded(frames[0]), spec, (64, 48))
        assert np.abs(got.astype(int) - wanted).mean() < 3


def _saved(picture: PIL.Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _of_all_modes() -> dict[str, bytes]:
    """Pictures of one noise: opaque and transparent, in the modes that files have."""
    rng = np.random.default_rng(0)
    pixels, alpha = rng.integers(0, 256, (16, 16, 3), np.uint8), rng.integers(0, 256, (16, 16), np.uint8)
    alpha[:4], alpha[4:8] = 0, 255
    rgb = PIL.Image.fromarray(pixels)
    grey, palette, bits = rgb.convert("L"), rgb.quantize(16), rgb.convert("1")
    rgba, la = rgb.copy(), grey.copy()
    rgba.putalpha(PIL.Image.fromarray(alpha))
    la.putalpha(PIL.Image.fromarray(alpha))
    return {
        "RGB": _saved(rgb), "L": _saved(grey), "P": _saved(palette), "1": _saved(bits), "RGBA": _saved(rgba),
        "LA": _saved(la), "RGBA, WebP": _saved(rgba, "WEBP", lossless=True),
        "P, one clear colour": _saved(palette, transparency=3), "GIF": _saved(palette, "GIF", transparency=3),
        "P, many": _saved(palette, transparency=bytes(range(0, 256, 16))),
        "RGB, a clear colour": _saved(rgb, transparency=tuple(pixels[5, 5].tolist())),
        "L, a clear grey": _saved(grey, transparency=int(np.asarray(grey)[5, 5])),
        "1, a clear bit": _saved(bits, transparency=1), "CMYK, JPEG": _saved(rgb.convert("CMYK"), "JPEG"),
        "CMYK, TIFF": _saved(rgb.convert("CMYK"), "TIFF"),
    }  # fmt: skip


@pytest.mark.parametrize("mode", _of_all_modes())
def test_a_picture_of_any_mode_is_what_processors_of_transformers_make_of_it(mode):
    from transformers.image_transforms import convert_to_rgb

    data = _of_all_modes()[mode]
    theirs = convert_to_rgb(PIL.Image.open(io.BytesIO(data)), return_numpy=True)
    np.testing.assert_array_equal(np.asarray(media.decode(Image(data=data))), theirs)
