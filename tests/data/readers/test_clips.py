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


def test_a_placeholder_may_be_another_or_that_of_pictures(folder: Folder):
    def talk(content, **more):
        return folder.source([openai(("user", content), ("assistant", "I."), **more)], **words)

    words = {"video_placeholder": "<image>", "audio_placeholder": "<|sound|>"}  # as LLaVA-Video has it
    assert said(only(talk("<image><|sound|><audio>?", video="a.mp4", audio="b.wav")))[0] == (
        "user",
        "[a.mp4][b.wav]<audio>?",
    )
    assert said(only(talk("<image>?", image="a.png", video=None)))[0] == ("user", "[a.png]?")
    assert (
        "has images and videos, and <image> stands for both: give each its own by config.data.placeholder"
        in refused(talk("<image><image>?", image="a.png", video="b.mp4"))
    )
    assert "has 1 <image> placeholders but 0 images" in refused(talk("<image>?", video=""))
    words = {"video_placeholder": ""}
    assert said(only(talk("<video>?", video="a.mp4")))[0] == ("user", "[a.mp4]<video>?")


def test_a_switch_is_no_clip_and_what_is_none_says_how_to_say_so(folder: Folder):
    for value in (False, True, 0, None, [], float("nan")):
        assert said(only(folder.source([{"text": "A.", "video": value, "audio": value}], "a.jsonl"))) == [
            ("document", "A.")
        ]
    line = refused(folder.source([{"text": "A.", "video": {"title": "A film", "seconds": 3}}]))
    assert "'video': a video must be a path, a URL, bytes or base64, or a list of frames, not {'title'" in line
    assert "; if it holds no videos, say so with config.data.columns=video=; " in line


def test_a_page_of_texts_and_images_reads_no_clips_and_says_so(folder: Folder):
    page = {"texts": ["A.", None], "images": [None, "a.png"], "videos": ["b.mp4", None]}
    assert "has no video, but its 'videos' looks like one" in refused(folder.source([page]))
    assert said(only(folder.source([page], columns="video="))) == [("document", "A.[a.png]")]
    with pytest.raises(UserError, match="records with 'texts' hold no videos: write them as messages"):
        folder.source([page], columns="video=videos")


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


def test_the_page_has_examples_that_read(folder: Folder):
    section = PAGE.split("## Videos and recordings\n")[1].split("\n## ")[0]
    examples = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        text = "".join(shown for _, shown in said(only(folder.source(f"[{example}]"))))
        for file in re.findall(r"[\w.]*\d\.(?:mp4|wav|jpg)", example):
            assert f"[{file}]" in text
