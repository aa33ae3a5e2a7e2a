"""Typed parts that are videos and recordings, and what they may say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxmm.data.documents import Audio, Image, Video
from readers.reading import Folder, only, openai, refused, said


def parts(*content: dict, **more) -> dict:
    return openai(("user", [*content, {"type": "text", "text": "?"}]), ("assistant", "I."), **more)


def first(source):
    return only(source).turns[0].parts[0]


# Typed parts


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "video", "video": "a.mp4"}, Video(path="a.mp4")),
        ({"type": "video", "video": ["0.png", "1.png"]}, Video(frames=(Image(path="0.png"), Image(path="1.png")))),
        (
            {"type": "video", "video": ["0.png"], "fps": 2, "max_pixels": None},
            Video(frames=(Image(path="0.png"),), fps=2.0),
        ),
        (
            {"type": "video", "video": "a.mp4", "video_start": 1, "video_end": 2.5},
            Video(path="a.mp4", start=1, stop=2.5),
        ),
        ({"type": "video", "path": "a.mp4", "start": 3}, Video(path="a.mp4", start=3)),
        ({"type": "video", "video": {"path": "a.mp4", "end": 3}}, Video(path="a.mp4", stop=3)),
        ({"type": "video_url", "video_url": {"url": "a.mp4"}}, Video(path="a.mp4")),
        ({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}, Video(data=b"\0\0\0")),
        ({"video": "a.mp4"}, Video(path="a.mp4")),
        ({"type": "audio", "audio": "a.wav"}, Audio(path="a.wav")),
        ({"type": "audio", "audio_url": "a.wav", "text": None}, Audio(path="a.wav")),
        ({"type": "audio", "path": "a.wav", "audio_start": 0, "audio_end": 0.5}, Audio(path="a.wav", stop=0.5)),
        ({"type": "audio", "url": "a.mp4"}, Audio(path="a.mp4")),  # a film's sound track
        ({"type": "audio_url", "audio_url": {"url": "a.wav"}}, Audio(path="a.wav")),
        ({"type": "input_audio", "input_audio": {"data": "SUQz", "format": "mp3"}}, Audio(data=b"ID3")),
        ({"type": "audio", "audio": "SUQz" + "A" * 80}, Audio(data=b"ID3" + bytes(60))),
    ],
    ids=str,
)
def test_parts_are_clips(folder: Folder, part, expected):
    found = first(folder.source([parts(part)]))
    if found.path:
        found = found._replace(path=str(Path(found.path).relative_to(folder.path)))
    if isinstance(found, Video):
        frames = tuple(Image(path=str(Path(f.path).relative_to(folder.path))) for f in found.frames)
        found = found._replace(frames=frames)
    assert found == expected


def test_parts_without_a_value_are_the_records_next_of_their_kind(folder: Folder):
    asked = parts({"type": "audio"}, {"type": "video"}, {"type": "image"}, {"type": "video", "video": None})
    record = asked | {"videos": ["a.mp4", "b.mp4"], "audios": ["c.wav"], "images": ["d.png"]}
    assert said(only(folder.source([record])))[0] == ("user", "[c.wav][a.mp4][d.png][b.mp4]?")
    assert "has 2 <video> placeholders but 0 videos" in refused(folder.source([record | {"videos": []}]))
    assert "has 1 <audio> placeholders but 0 audios" in refused(folder.source([parts({"type": "audio"})]))


def test_clips_that_parts_and_a_column_name_come_once(folder: Folder):
    record = parts({"type": "video", "video": "a.mp4"}, {"type": "image"}, images=["c.png"], videos=["x/a.mp4"])
    assert said(only(folder.source([record])))[0] == ("user", "[a.mp4][c.png]?")
    record["videos"] = ["b.mp4", "c.mp4"]
    assert "its parts name 1 videos, and 'videos' 2 others" in refused(folder.source([record]))


@pytest.mark.parametrize(
    ("part", "line"),
    [
        *(
            ({"video": "a.mp4", key: 3}, f"a video has its own '{key}', which is not supported: how videos are resized")
            for key in ("max_pixels", "total_pixels", "nframes", "min_frames", "max_frames", "resized_height", "fps")
        ),
        ({"video": {"path": "a.mp4", "fps": 1}}, "a video has its own 'fps'"),
        ({"video": ["0.png"], "fps": 0}, "the 'fps' of a video must be a number above 0, not 0"),
        ({"video": ["0.png"], "fps": "2"}, "must be a number above 0, not '2'"),
        ({"video": ["0.png"], "start": 1}, "a list of frames has a start or an end"),
        ({"video": ["a.mp4"]}, "a list in the place of a video has its frames, but 'a.mp4' is a video"),
        ({"video": [3]}, "an image must be a path"),
        ({"video": "a.png"}, "a video cannot be the picture 'a.png'"),
        ({"video": 3}, "a video must be a path, a URL, bytes or base64, or a list of frames, not"),
        ({"video": "a.mp4", "video_start": -1}, "'video_start' must be a number of seconds from 0 on, not -1"),
        ({"video": "a.mp4", "video_end": float("inf")}, "'video_end' must be a number of seconds from 0 on, not inf"),
        ({"video": "a.mp4", "end": True}, "'end' must be a number of seconds from 0 on, not True"),
        ({"video": "a.mp4", "start": 2, "end": 2}, "a video ends at 2 s, but starts at 2 s"),
        ({"video": "a.mp4", "end": 0}, "a video ends at 0 s, but starts at 0 s"),
        ({"type": "audio", "audio": "a.wav", "audio_start": 3, "audio_end": 1}, "a recording ends at 1 s, but starts"),
        ({"type": "audio", "audio": {"data": "AAAA", "format": "pcm16"}}, "the format 'pcm16' is no file"),
        ({"type": "audio", "audio": 3}, "a recording must be a path, a URL, bytes or base64, not"),
        ({"type": "video", "start": 3}, "a part has 'start', but no video of its own: give both in one place"),
        ({"type": "video", "nframes": 3}, "a video has its own 'nframes'"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_clip_may_not_say_is_told(folder: Folder, part, line):
    record = parts({"type": "video", **part}) | {"videos": ["a.mp4"]}
    message = refused(folder.source([record], "a.jsonl"))
    assert message.startswith("a.jsonl, record 0: what 'user' says: ")
    assert line in message
