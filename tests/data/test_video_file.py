"""Video files: what their headers tell, against plain decoding, and the frames that are asked for."""

import gc
import io
import os
import resource
import subprocess
import sys
from fractions import Fraction

import numpy as np
import PIL.Image
import pytest
from films import VARIANTS, decoded, drawn, made, video
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded

from jaxmm.data.documents import Image, Video
from jaxmm.data.media import video_file
from jaxmm.data.media.frame_decoder import FrameDecoder
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.video_file import VideoHeader, header, read_frames
from jaxmm.errors import UserError


def frames(part: Video, *numbers: int) -> list[np.ndarray]:
    return list(read_frames(part, header(part), numbers))


@pytest.mark.parametrize("name", VARIANTS)
def test_header_and_frames_are_those_of_plain_decoding(name):
    data = made(**VARIANTS[name])
    expected = decoded(data)
    known = header(video(data))
    rate = Fraction(VARIANTS[name].get("rate", 30))
    assert known == (*expected[0].shape[:2], len(expected), rate)
    for numbers in ([*range(known.frames)], [0, known.frames // 2, known.frames - 1], [known.frames - 1]):
        got = list(read_frames(video(data), known, numbers))
        assert [frame.shape for frame in got] == [(known.height, known.width, 3)] * len(numbers)
        assert all(frame.dtype == np.uint8 and frame.flags.c_contiguous for frame in got)
        wrong = [n for n, frame in zip(numbers, got, strict=True) if not np.array_equal(frame, expected[n])]
        assert wrong == []


@pytest.mark.parametrize("name", ["mp4", "mp4 with open groups", "mp4 of HEVC", "mkv", "webm", "avi of H.264"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_ascending_numbers_are_read_and_no_frame_is_decoded_twice(name, data):
    film = made(**VARIANTS[name])
    expected = decoded_once(name)
    numbers = sorted(data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=12)))
    seen: list[int] = []

    class Spy(FrameDecoder):
        def _decoded(self):
            for place, frame in super()._decoded():
                seen.append(place)
                yield place, frame

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_file, "FrameDecoder", Spy)
        got = frames(video(film), *numbers)
    assert len(got) == len(numbers)
    assert all(np.array_equal(frame, expected[n]) for n, frame in zip(numbers, got, strict=True))
    assert seen == sorted(set(seen))
    if numbers:
        assert len(seen) <= numbers[-1] + 1 + 8  # what is on its way when the last one is there


def decoded_once(name: str, kept: dict[str, list[np.ndarray]] = {}) -> list[np.ndarray]:  # noqa: B006
    if name not in kept:
        kept[name] = decoded(made(**VARIANTS[name]))
    return kept[name]


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_seeking_passes_over_groups_that_are_not_wanted(kind, monkeypatch):
    seen: list[int] = []
    plain = FrameDecoder._decoded

    def spied(self):
        for place, frame in plain(self):
            seen.append(place)
            yield place, frame

    monkeypatch.setattr(FrameDecoder, "_decoded", spied)
    data = made(kind, n=100, codec_options=(("g", "10"), ("x264-params", "scenecut=0")))
    got = frames(video(data), 5, 52, 91)
    assert all(np.array_equal(a, b) for a, b in zip(got, np.array(decoded(data))[[5, 52, 91]], strict=True))
    assert seen[0] == 0
    assert set(seen) <= {*range(10), *range(50, 60), *range(90, 100)}


def test_keyframes_from_which_a_film_is_refreshed_slowly_are_not_sought():
    data = made(**VARIANTS["mp4 refreshed slowly"])
    expected = decoded(data)
    wrong = [n for n, frame in enumerate(expected) if not np.array_equal(frames(video(data), n)[0], frame)]
    assert wrong == []


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_a_variable_rate_is_sampled_evenly_in_time(kind):
    times = tuple(33 * i if i < 20 else 627 + 100 * (i - 19) for i in range(40))
    data = made(kind, n=40, times=times)
    known = header(video(data))
    assert known.frames == 40
    assert 14.5 < known.rate < 16.5  # 40 frames in 2.6 s
    expected = decoded(data)
    got = frames(video(data), *range(known.frames))
    for number, frame in enumerate(got):
        shown = max(i for i, t in enumerate(times) if Fraction(t, 1000) <= (number + Fraction(1, 2)) / known.rate)
        assert np.array_equal(frame, expected[shown]), number


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize(
    ("start", "stop", "first", "last"),
    [(0, 0, 0, 49), (0.5, 1, 15, 29), (0.51, 0.99, 15, 29), (1.2, 0, 36, 49), (1.6, 99, 48, 49), (0.1, 0.3, 3, 8)],
)
def test_a_part_is_what_is_displayed_between_start_and_stop(kind, start, stop, first, last):
    data = made(kind)
    part = video(data, start=start, stop=stop)
    known = header(part)
    assert known.frames == last - first + 1
    got = list(read_frames(part, known, [0, known.frames - 1]))
    expected = decoded(data)
    assert np.array_equal(got[0], expected[first])
    assert np.array_equal(got[1], expected[last])


@pytest.mark.parametrize(("start", "stop"), [(2, 0), (1, 1), (1, 0.5), (1.7, 1.9), (float("nan"), 0)])
def test_a_part_without_frames_is_a_reason(start, stop):
    for part in (video(made(), start=start, stop=stop), listed(10, start=start * 10, stop=stop * 10)):
        with pytest.raises(BadMedia, match="empty part"):
            header(part)


def test_a_path_and_bytes_give_the_same(tmp_path):
    (tmp_path / "film.txt").write_bytes(made())  # a name says nothing
    by_path = Video(path=str(tmp_path / "film.txt"))
    assert header(by_path) == header(video(made()))
    assert np.array_equal(frames(by_path, 7)[0], frames(video(made()), 7)[0])


def test_numbers_must_ascend_within_the_part():
    known = header(video(made()))
    for numbers in ([1, 0], [-1], [50]):
        with pytest.raises(ValueError, match="frames"):
            list(read_frames(video(made()), known, numbers))
    assert list(read_frames(video(made()), known, [])) == []


def test_another_header_than_known_is_a_change():
    for known in (VideoHeader(48, 64, 51, Fraction(30)), VideoHeader(64, 48, 50, Fraction(30))):
        with pytest.raises(BadMedia, match="changed"):
            list(read_frames(video(made()), known, [0]))


def test_a_gif_is_what_pillow_shows_over_white():
    file = io.BytesIO()
    pictures = []
    for number in range(5):
        picture = PIL.Image.fromarray(drawn(number, 24, 32)).convert("P", palette=PIL.Image.Palette.ADAPTIVE, colors=9)
        picture.info["transparency"] = 3
        pictures.append(picture)
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=100, disposal=2, transparency=3)
    part = video(file.getvalue())
    assert header(part) == (24, 32, 5, 10)
    with PIL.Image.open(io.BytesIO(file.getvalue())) as opened:
        for number, frame in enumerate(frames(part, *range(5))):
            opened.seek(number)
            seen = opened.convert("RGBA")
            white = PIL.Image.new("RGBA", seen.size, "white")
            assert np.array_equal(frame, np.asarray(PIL.Image.alpha_composite(white, seen).convert("RGB")))


def test_transparent_pixels_are_laid_over_white():
    data = made("mov", n=2, codec="qtrle", pixels="argb")
    opaque = frames(video(data), 0)[0]
    assert np.array_equal(opaque, drawn(0, 48, 64))


def listed(n: int = 6, size: tuple[int, int] = (20, 30), **part: float) -> Video:
    return Video(frames=tuple(encoded(PIL.Image.fromarray(drawn(i, *size))) for i in range(n)), **part)


def test_a_list_of_frames_needs_no_library(monkeypatch):
    film = video(made())
    monkeypatch.setitem(sys.modules, "av", None)
    assert header(listed()) == (20, 30, 6, 2)
    assert header(listed(fps=29.97)).rate == Fraction(29.97).limit_denominator(2**31 // 30)
    part = listed(fps=3, start=0.9, stop=1.7)  # frames 2 to 5
    assert header(part).frames == 4
    got = frames(part, 0, 2, 2, 3)
    assert all(np.array_equal(f, drawn(n, 20, 30)) for f, n in zip(got, (2, 4, 4, 5), strict=True))
    with pytest.raises(UserError, match=r"pip install 'jaxmm\[media\]'"):
        header(film)


def test_a_list_of_pictures_of_two_sizes_is_a_reason():
    odd = encoded(PIL.Image.new("RGB", (30, 21)))
    part = listed()._replace(frames=(*listed().frames[:3], odd))
    assert len(frames(part, 0, 2)) == 2
    with pytest.raises(BadMedia, match="frames differ"):
        frames(part, 3)
    with pytest.raises(BadMedia, match="changed"):
        list(read_frames(part, header(listed()), [0]))
    with pytest.raises(BadMedia, match="missing"):
        header(Video(frames=(Image(path="/there/is/none.png"),)))


def test_a_header_reads_little(monkeypatch):
    data = made(n=600, size=(96, 128), options=(("movflags", "faststart"),), codec_options=(("crf", "5"),))
    read = 0

    class Counted(io.BytesIO):
        def read(self, size=-1, /):
            nonlocal read
            read += len(got := super().read(size))
            return got

    known = header(video(data))
    monkeypatch.setattr(video_file, "opened_file", lambda part: Counted(part.data))
    assert header(video(data)) == known
    assert read < 128 << 10 < len(data) / 2


def test_files_and_memory_are_given_back(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(made())
    part = Video(path=str(path))
    known = header(part)

    def rounds(count: int) -> int:
        for _ in range(count):
            assert header(part) == known
            reading = read_frames(part, known, [0, 20, 40])
            next(reading)
            next(reading)
            reading.close()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before, open_before = rounds(60), os.listdir("/proc/self/fd")
    assert rounds(300) - before < 8 << 10  # KiB
    assert len(os.listdir("/proc/self/fd")) == len(open_before)


def test_nothing_is_printed(tmp_path):
    path = tmp_path / "film.mp4"
    data = made(options=(("movflags", "faststart"),))
    path.write_bytes(data[: len(data) - 200])
    program = (
        "import sys\nfrom jaxmm.data.documents import Video\nfrom jaxmm.data.media import video_file\n"
        "from jaxmm.data.media.medium import BadMedia\nfilm = Video(path=sys.argv[1])\n"
        "try:\n    print(len(list(video_file.read_frames(film, video_file.header(film), range(50)))))\n"
        "except BadMedia as error:\n    print(error.reason)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() in ("50", "truncated")
    assert done.stderr == ""


def test_what_decodes_is_let_go_of_at_once():
    film = video(made())
    known = header(film)
    frames(film, 0)
    gc.collect()
    gc.disable()  # a cycle would hold a decoder and its frames until the next collection, gigabytes later
    try:
        frames(film, 0, 20, 49)
        next(read_frames(film, known, [3, 9])).sum()
        assert not [each for each in gc.get_objects() if isinstance(each, FrameDecoder)]
    finally:
        gc.enable()


def test_a_file_without_a_table_is_read_through_once_and_again_when_it_was_written(tmp_path, monkeypatch):
    path, walked, walk = tmp_path / "a.mkv", [], video_file._walked
    path.write_bytes(made(**VARIANTS["mkv"]))

    def noted(*args):
        walked.append(1)
        return walk(*args)

    monkeypatch.setattr(video_file, "_walked", noted)
    known = header(Video(path=str(path)))
    part = Video(path=str(path), start=0.2, stop=0.5)
    inner = header(part)
    whole, some = (list(read_frames(v, h, range(h.frames))) for v, h in ((Video(path=str(path)), known), (part, inner)))
    first = round(0.2 * known.rate)
    np.testing.assert_array_equal(some, whole[first : first + inner.frames])
    assert len(walked) == 1
    was = path.stat()
    path.write_bytes(path.read_bytes())  # of the same size; whoever copies files may set the same time as well
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    header(Video(path=str(path)))
    assert len(walked) == 2
    header(video(path.read_bytes()))
    assert len(walked) == 3, "bytes in memory are no file"


def test_another_release_of_pyav_is_one_line_and_no_video_looks_broken(monkeypatch):
    import av

    film = video(made(**VARIANTS["mkv"]))
    monkeypatch.setattr(av, "__version__", "19.0.2")
    with pytest.raises(UserError, match=r"^video needs PyAV 18, not 19\.0\.2: pip install 'av>=18,<19'$"):
        header(film)
