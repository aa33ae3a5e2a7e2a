"""Videos and recordings in records: columns, placeholders and typed parts, each with its own kind's rules."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxmm
from jaxmm.data.documents import Audio, Image, Text, Video
from jaxmm.data.reading import Reading
from jaxmm.errors import UserError
from readers.reading import OPENAI, Folder, only, openai, refused, said, skipped

ALL = {"images": "images", "videos": "videos", "audios": "audios"}
PAGE = (Path(jaxmm.__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")


def described(folder: Folder, records: list, **columns: str):
    columns = {"messages": "messages", **(columns or ALL)}
    return folder.dataset("t", records, formatting="sharegpt", columns=columns, tags=OPENAI)


def parts(*content: dict, **more) -> dict:
    return openai(("user", [*content, {"type": "text", "text": "?"}]), ("assistant", "I."), **more)


def first(source):
    return only(source).turns[0].parts[0]


# LLaMA-Factory's columns


def test_videos_and_recordings_stand_where_their_placeholders_are(folder: Folder):
    record = openai(
        ("user", "<video><audio>What does <image> say? <video>"),
        ("assistant", "<audio>"),
        images=["c.png"],
        videos=["v/1.mp4", ["v/0.jpg", "v/1.jpg"]],
        audios=["1.mp3", "2.wav"],
    )
    document = only(described(folder, [record]))
    assert said(document) == [
        ("user", "[1.mp4][1.mp3]What does [c.png] say? [[0.jpg][1.jpg]]"),
        ("assistant", "[2.wav]"),
    ]
    video, audio, _, _, _, frames = document.turns[0].parts
    assert video == Video(path=str(folder.path / "v/1.mp4"))
    assert audio == Audio(path=str(folder.path / "1.mp3"))
    assert frames == Video(frames=tuple(Image(path=str(folder.path / f"v/{i}.jpg")) for i in (0, 1)))


@pytest.mark.parametrize("column", ["videos", "audios"])
def test_numbers_must_agree_by_kind(folder: Folder, column):
    name = column[:-1]
    called = {"video": "video", "audio": "recording"}[name]
    record = openai(("user", f"<image><{name}>?"), images=["a.png"], **{column: ["a.mp4", "b.mp4"]})
    line = refused(described(folder, [record]))
    assert line.startswith(f"t.json, record 0 has 1 <{name}> placeholders but 2 {column}: give each {called} one place")
    record[column] = []
    line = refused(described(folder, [record]))
    assert f"has 1 <{name}> placeholders but 0 {column}" in line
    assert f"where <{name}> is only text, write it in typed parts, or set config.data.bare_placeholder=text" in line


def test_a_placeholder_is_text_where_no_clip_can_be_meant(folder: Folder):
    html = openai(("user", "What is <video> in HTML, and <audio>?"), ("assistant", "<video src=a></video>"))
    expected = [("user", "What is <video> in HTML, and <audio>?"), ("assistant", "<video src=a></video>")]
    assert said(only(described(folder, [html], images="images"))) == expected
    assert said(only(folder.source([html]))) == expected
    # where a column can hold some, even if this record has none, a placeholder must have its clip
    assert "has 1 <video> placeholders but 0 videos" in refused(described(folder, [html], videos="clips"))
    assert "has 1 <audio> placeholders but 0 audios" in refused(folder.source([html | {"audio": None}]))
    assert said(only(folder.source([html | {"audio": None, "videos": []}], bare_placeholder="text"))) == expected
    given = html | {"audio": ["a.wav"], "videos": []}  # text in one kind, and not in the other
    assert "[a.wav]" in said(only(folder.source([given], bare_placeholder="text")))[0][1]


def test_plain_texts_keep_their_tags(folder: Folder):
    assert said(only(folder.source([{"text": "A <video> tag."}]))) == [("document", "A <video> tag.")]
    asked = {"instruction": "A <video>?", "output": "An <audio>."}
    assert said(only(folder.source([asked]))) == [("user", "A <video>?"), ("assistant", "An <audio>.")]
    assert "has 1 <video> placeholders but 0 videos" in refused(folder.source([{"text": "A <video>.", "video": ""}]))


def test_alpaca_and_documents_have_clips_too(folder: Folder):
    columns = {"prompt": "instruction", "response": "output", "videos": "videos"}
    asked = {"instruction": "<video>Who?", "output": "I.", "videos": ["a.mp4"]}
    assert said(only(folder.dataset("a", [asked], columns=columns)))[0] == ("user", "[a.mp4]Who?")
    columns = {"prompt": "text", "audios": "sound"}
    assert said(only(folder.dataset("b", [{"text": "A bell.", "sound": "a.wav"}], columns=columns))) == [
        ("document", "[a.wav]A bell.")
    ]
    assert skipped(folder.dataset("c", [{"text": "", "sound": "a.wav"}], columns=columns)) == [
        ("c.json, record 0", "empty")
    ]


@given(
    st.lists(st.sampled_from(["<image>", "<video>", "<audio>", "a ", "<", "<videos>", "\n"]), max_size=12), st.data()
)
def test_any_interleaving_keeps_the_order_of_each_kind(pieces, data):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Folder(Path(scratch))
        media = {"<image>": "images", "<video>": "videos", "<audio>": "audios"}
        ending = {"images": "png", "videos": "mp4", "audios": "wav"}
        cut = data.draw(st.integers(0, len(pieces)))
        record, expected, count = openai(), "", dict.fromkeys(ending, 0)
        for piece in pieces:
            if column := media.get(piece):
                expected += f"[{count[column]}.{ending[column]}]"
                count[column] += 1
            else:
                expected += piece
        for column, many in count.items():
            record[column] = [f"{i}.{ending[column]}" for i in range(many)]
        for content in ("".join(pieces[:cut]), "".join(pieces[cut:])):
            record["messages"].append({"role": "user", "content": content})
        assert "".join(text for _, text in said(only(described(folder, [record])))) == expected
        for column in count:
            more = record | {column: [*record[column], f"more.{ending[column]}"]}
            assert f"{count[column] + 1} {column}" in refused(described(folder, [more]))


# Without a description


@pytest.mark.parametrize(
    ("column", "value", "shown"),
    [
        ("videos", ["a.mp4"], "<video>Who?"),
        ("video", "a.mp4", "Who?"),
        ("video", ["a.mp4"], "<video>Who?"),
        ("Video_Path", "a.mkv", "Who?"),
        ("audios", ["a.wav"], "<audio>Who?"),
        ("audio", {"bytes": None, "path": "a.flac"}, "Who?"),
        ("audioFile", "a.xyz", "<audio>Who?"),
        ("file_name", "a.MP4", "Who?"),
        ("path", "a.opus", "Who?"),
        ("clip", "a.ogg", "Who?"),
        ("video", ["0.jpg", "1.jpg"], "Who?"),
        ("videos", [["0.jpg", {"path": "1.jpg"}]], "<video>Who?"),
        ("videos", ["0.jpg", "1.jpg"], "<video>Who?"),
        ("video", "['a.mp4']", "Who?"),
        ("video", "a.gif", "<video>Who?"),
    ],
)
def test_columns_of_clips_are_found_by_their_names(folder: Folder, column, value, shown):
    record = openai(("user", shown), ("assistant", "I."), **{column: value})
    what, text = only(folder.source([record])).turns[0].parts
    assert isinstance(what, Video | Audio)
    assert text == Text("Who?")
    files = [part.path for part in what.frames] if isinstance(what, Video) and what.frames else [what.path]
    assert [Path(file).parent for file in files] == [folder.path] * len(files)


def test_a_lone_clip_stands_in_front_unless_its_column_has_several(folder: Folder):
    record = openai(("system", "S."), ("user", "Who?"), video="a.mp4", audio="a.wav", image="a.png")
    assert said(only(folder.source([record])))[1] == ("user", "[a.png][a.mp4][a.wav]Who?")
    assert "has 0 <video> placeholders but 1 videos" in refused(
        folder.source([openai(("user", "?"), videos=["a.mp4"])])
    )
    told = {"prompt": [{"role": "user", "content": "?"}], "completion": [{"role": "assistant", "content": "I."}]}
    assert said(only(folder.source([told | {"videos": ["a.mp4"]}])))[0] == ("user", "[a.mp4]?")


def test_the_user_names_columns_of_clips(folder: Folder):
    record = {"q": "Who?", "a": "I.", "seen": "a.mp4", "heard": "b.wav", "video": "c.png"}
    source = folder.source([record], columns="video=seen,audios=heard,image=video,prompt=q,response=a")
    assert said(only(source))[0] == ("user", "[c.png][a.mp4][b.wav]Who?")
    assert isinstance(only(source).turns[0].parts[0], Image)
    assert said(only(folder.source([{"text": "A.", "video": 3}], columns="video="))) == [("document", "A.")]
    with pytest.raises(UserError, match="video and videos are the same"):
        Reading(columns="video=a,videos=b")


def test_messages_have_clips_of_their_own(folder: Folder):
    def talk(content, **more):
        return [{"messages": [{"role": "user", "content": content, **more}, {"role": "assistant", "content": "I."}]}]

    more = {"videos": ["a.mp4"], "audio": "b.wav", "images": ["c.png"]}
    assert said(only(folder.source(talk("Who?", **more))))[0] == ("user", "[c.png][a.mp4][b.wav]Who?")
    assert said(only(folder.source(talk("<audio> <video> <image>", **more))))[0] == ("user", "[b.wav] [a.mp4] [c.png]")
    assert "a message has 2 <video> placeholders but 1 videos of its own" in refused(
        folder.source(talk("<video><video>", videos=["a.mp4"]))
    )
    assert "has a 'shot' that looks like a video but is not read: call it videos" in refused(
        folder.source(talk("Who?", shot="a.mp4"))
    )
    record = talk("<video>, <audio>", videos=["a.mp4"])[0] | {"audios": ["b.wav"]}
    assert said(only(folder.source([record])))[0] == ("user", "[a.mp4], [b.wav]")


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


def test_the_page_has_examples_that_read(folder: Folder):
    section = PAGE.split("## Videos and recordings\n")[1].split("\n## ")[0]
    examples = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        text = "".join(shown for _, shown in said(only(folder.source(f"[{example}]"))))
        for file in re.findall(r"[\w.]*\d\.(?:mp4|wav|jpg)", example):
            assert f"[{file}]" in text
