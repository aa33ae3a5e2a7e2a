"""Video files that are cut, edited, hostile or no films, and the arithmetic of times."""

import io
import math
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from films import decoded, edited, made, sound, video, with_reference, with_sound
from hypothesis import given
from hypothesis import strategies as st

from jaxmm.data.documents import Video
from jaxmm.data.media import container, frame_decoder, mp4_table, timeline, video_file
from jaxmm.data.media.container import Turn
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.timeline import Timeline
from jaxmm.data.media.video_file import header, read_frames


def reason(part: Video) -> str:
    """Why a header cannot be used, or its last frame cannot be read; '' if both can."""
    try:
        known = header(part)
        list(read_frames(part, known, [known.frames - 1]))
    except BadMedia as error:
        return error.reason if error.reason in video_file.ADVICE else f"no reason: {error.reason}"
    return ""


FAST = (("movflags", "faststart"),)


@pytest.mark.parametrize("options", [FAST, ()])
@pytest.mark.parametrize("part", [0.01, 0.5, 0.8])
def test_a_cut_mp4_is_truncated(options, part):
    data = made(n=300, options=options)
    assert reason(video(data[: int(len(data) * part)])) == "truncated"


def test_a_cut_mkv_and_avi_are_truncated():
    for kind in ("mkv", "avi"):
        data = made(kind, n=100)
        assert reason(video(data[: len(data) // 2])) == "truncated"
        assert reason(video(data[:300])) in ("unreadable", "truncated", "no video")


def test_sound_that_goes_on_after_the_pictures_is_no_cut():
    data = with_sound(made(), 6)
    assert header(video(data)).frames == 50
    assert reason(video(data[: len(data) // 2])) == "truncated"


def test_the_last_frame_stands_for_two_that_are_missing_and_no_more():
    data = made(n=60, options=FAST, codec_options=(("bf", "0"), ("g", "15")))
    expected = decoded(data)
    table = mp4_table.table(io.BytesIO(data), 1)
    assert table is not None
    for missing in (1, 2, 3):
        cut = video(data[: int(table.starts[-missing])])
        known = header(cut)
        assert known.frames == 60
        if missing == 3:
            with pytest.raises(BadMedia, match="truncated"):
                list(read_frames(cut, known, [59]))
            assert np.array_equal(next(read_frames(cut, known, [58])), expected[56])
        else:
            assert np.array_equal(next(read_frames(cut, known, [59])), expected[59 - missing])


def test_what_is_no_film_is_a_reason(tmp_path):
    assert reason(video(b"")) == "empty"
    assert reason(Video(path=str(tmp_path / "none.mp4"))) == "missing"
    assert reason(Video(path=str(tmp_path))) == "no file"
    assert reason(video(sound())) == "no video"
    assert reason(video(b"a film of text\n" * 99)) == "unreadable"
    assert reason(video(made(n=0, codec="mpeg4"))) == "no video"


def test_a_size_out_of_bounds_is_too_large():
    data = bytearray(made())
    place = data.index(b"avc1", data.index(b"stsd")) + 28
    assert struct.unpack_from(">HH", data, place) == (64, 48)
    struct.pack_into(">HH", data, place, 16000, 12000)
    assert reason(video(bytes(data))) == "too large"


def test_frames_larger_than_the_header_says_are_bounded_too(monkeypatch):
    known = header(video(made()))
    monkeypatch.setattr(frame_decoder, "MAX_PIXELS", 1000)
    with pytest.raises(BadMedia):
        list(read_frames(video(made()), known, [0]))


def test_no_file_makes_ffmpeg_open_another(tmp_path):
    film = tmp_path / "film.mp4"
    film.write_bytes(made())
    tricks = {
        "list.m3u8": (f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{film}\n#EXT-X-ENDLIST\n".encode(), "hls"),
        "list.ffconcat": (f"ffconcat version 1.0\nfile '{film}'\n".encode(), "concat"),
    }
    for name, (text, kind) in tricks.items():
        path = tmp_path / name
        path.write_bytes(text)
        options = {"safe": "0"} if kind == "concat" else {"allowed_extensions": "ALL", "extension_picky": "0"}
        with av.open(str(path), format=kind, options=options) as opened:
            assert next(opened.decode(video=0)).width == 64, "the trick works where it is allowed"
        for end in (name, "text.mp4"):
            (tmp_path / end).write_bytes(text)
            assert reason(Video(path=str(tmp_path / end))) == "unreadable"


def test_the_data_of_a_mov_is_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # FFmpeg tries the bare name too
    film = tmp_path / "film.mov"
    film.write_bytes(made("mov"))
    trick = with_reference(made("mov"), str(film))
    at = trick.index(b"mdat") + 4
    (size,) = struct.unpack_from(">I", trick, at - 8)
    trick = trick[:at] + b"\0" * (size - 8) + trick[at + size - 8 :]  # its own data is gone
    path = tmp_path / "trick.mov"
    path.write_bytes(trick)
    with av.open(str(path), options={"enable_drefs": "1", "use_absolute_path": "1"}) as opened:
        assert len(list(opened.decode(video=0))) == 50, "the trick works where it is allowed"
    assert reason(Video(path=str(path))) in ("unreadable", "no video", "truncated")


@pytest.mark.parametrize(
    "edits",
    [
        [(1000, 1024 + 512 * 10)],
        [(800, 1024)],
        [(500, -1), (1000, 1024 + 512 * 20)],
        [(300, 1024), (300, 1024 + 512 * 30)],
    ],
)
def test_edit_lists_show_what_plain_decoding_shows(edits):
    data = edited(made("mov"), edits)
    expected = decoded(data)
    known = header(video(data))
    assert 0 < len(expected) < 50
    assert known.frames == len(expected)
    got = list(read_frames(video(data), known, range(known.frames)))
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


@given(st.sampled_from(["mp4", "mkv", "avi"]), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=6))
def test_broken_bytes_give_a_reason_or_frames(kind, changes):
    data = bytearray(made(kind, n=10))
    for place, value in changes:
        data[place % len(data)] = value
    assert "no reason" not in reason(video(bytes(data)))


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("flip_y", [False, True])
def test_a_turn_moves_each_pixel_as_its_matrix_says(swap, flip_x, flip_y):
    x, y = (-1) ** flip_x, (-1) ** flip_y
    matrix = np.array([[0, y], [x, 0]] if swap else [[x, 0], [0, y]])
    turn = container.turn_of(matrix)
    assert turn == Turn(swap, flip_x, flip_y)
    stored = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    seen = turn.pixels(stored)
    assert turn.size(2, 3) == seen.shape[:2]
    corners = np.array([[column, row] for row in range(2) for column in range(3)]) @ matrix
    for (column, row), value in zip(corners - corners.min(0), stored.reshape(-1, 3), strict=True):
        assert (seen[row, column] == value).all()


def line(times: list[int], end: int, tick: Fraction = Fraction(1, 1000)) -> Timeline:
    return Timeline(np.array(times, np.int64), end, tick, np.array([], np.int64))


RATES = st.sampled_from([Fraction(30000, 1001), Fraction(24000, 1001), Fraction(25), Fraction(60), Fraction(1, 2)])


@given(RATES, st.integers(2, 400), st.integers(0, 10**6))
def test_a_constant_rate_with_times_in_milliseconds_gives_each_frame_once(rate, n, first):
    times = [first + round(i / rate * 1000) for i in range(n)]
    made_line = line(times, first + round(n / rate * 1000))
    assert timeline.rate_of(made_line, [None, rate]) == rate
    assert timeline.frames_at(made_line, rate, range(n)) == [*range(n)]
    average = timeline.rate_of(made_line)
    assert timeline.frames_at(made_line, average, range(n)) == [*range(n)]


def test_a_time_half_a_frame_off_makes_a_rate_variable():
    steady = [0, 100, 200, 300, 400]
    assert timeline.rate_of(line(steady, 500), [Fraction(10)]) == 10
    assert timeline.rate_of(line([0, 100, 245, 300, 400], 480), [Fraction(10)]) == 10
    assert timeline.rate_of(line([0, 100, 255, 300, 400], 480), [Fraction(10)]) == Fraction(5000, 480)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30, unique=True).map(sorted), st.integers(1, 500))
def test_frames_at_are_the_last_ones_not_after_the_middle_of_a_step(times, last):
    made_line = line(times, times[-1] + last)
    rate = timeline.rate_of(made_line, [Fraction(30)])
    got = timeline.frames_at(made_line, rate, range(len(times)))
    for number, index in enumerate(got):
        limit = (number + Fraction(1, 2)) / rate
        assert index == max(i for i, t in enumerate(times) if Fraction(t - times[0], 1000) <= limit)


@given(st.fractions(min_value=Fraction(1, 10**12), max_value=10**12))
def test_rates_fit_an_int32(rate):
    got = timeline.int32_terms(rate)
    assert 0 < got.numerator < 2**31
    assert 0 < got.denominator < 2**31
    if Fraction(1, 1000) < rate < 2**31:
        assert math.isclose(got, rate, rel_tol=1e-6)


@given(RATES, st.integers(1, 300), st.integers(0, 300), st.integers(0, 300))
def test_a_part_between_two_frames_begins_and_ends_with_them(rate, n, first, last):
    got = timeline.part(n, rate, float(first / rate), float(last / rate))
    expected = range(first, min(last, n) if last else n)
    assert list(got) == list(expected)
