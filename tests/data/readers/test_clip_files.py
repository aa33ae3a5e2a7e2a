"""Clips in tars, tables and folders, as samples, and outside of the data; what is not read; what stays as prepared."""

from __future__ import annotations

import base64
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from jaxmm.data.documents import Audio, Image, Skip, Text, Video
from jaxmm.data.readers import tars
from jaxmm.data.readers.columns import looks
from jaxmm.data.readers.kinds import AUDIO, IMAGE, VIDEO, of_part
from jaxmm.data.readers.parts import SkipRecord
from jaxmm.data.readers.pictures import Pictures
from jaxmm.data.reading import Reading
from jaxmm.data.sources import read_sources
from jaxmm.errors import UserError
from readers.reading import OPENAI, Folder, only, openai, refused, said, skipped
from readers.test_tars import opened, shard

MP4 = b"\0\0\0\x18ftypmp42" + bytes(80)
MKV = b"\x1a\x45\xdf\xa3" + bytes(80)


def kinds(document) -> list[str]:
    return [kind.name for turn in document.turns for part in turn.parts if (kind := of_part(part))]


# Tars


@pytest.mark.parametrize("ending", ["mp4", "mkv", "webm", "avi", "mov", "MP4"])
def test_a_film_in_a_tar_is_its_samples_video(folder: Folder, ending):
    document = only(opened(folder, {"__key__": "a", ending: b"film", "txt": "A cat runs."}))
    assert document.turns[0].parts == (Video(data=b"film"), Text("A cat runs."))


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3", "ogg", "opus", "m4a"])
def test_a_recording_in_a_tar_is_its_samples_audio(folder: Folder, ending):
    document = only(opened(folder, {"__key__": "a", ending: b"sound", "txt": "A cat."}))
    assert document.turns[0].parts == (Audio(data=b"sound"), Text("A cat."))


def test_a_sample_may_have_all_kinds_and_name_them(folder: Folder):
    members = {"__key__": "s", "gif": b"gif", "mp4": b"film", "mp3": b"sound"}
    assert said(only(opened(folder, {**members, "txt": "A."}))) == [("document", "[gif][film][sound]A.")]
    talk = openai(("user", "<audio>, <video>, <image>?"), ("assistant", "I."), videos=["x/s.mp4"], audios=["mp3"])
    assert said(only(opened(folder, {**members, "json": talk | {"images": ["s.gif"]}})))[0] == (
        "user",
        "[sound], [film], [gif]?",
    )
    parts = [{"type": "audio", "audio": "elsewhere.mp3"}, {"type": "video", "video": "s.1.mp4"}, {"type": "video"}]
    talk = {"messages": [{"role": "user", "content": parts[:2]}]}
    two = {"__key__": "s", "1.mp4": b"one", "mp3": b"sound", "json": talk}
    assert said(only(opened(folder, two)))[0] == ("user", "[sound][one]")
    numbered = {"__key__": "s", "10.mp4": b"ten", "9.mp4": b"nine", "txt": "<video> and <video>"}
    assert said(only(opened(folder, numbered))) == [("document", "[nine] and [ten]")]


def test_frames_in_a_tar_are_those_that_the_record_lists(folder: Folder):
    members = {"__key__": "s", "0.jpg": b"zero", "1.jpg": b"one", "2.jpg": b"two"}
    talk = openai(("user", "<video><image>?"), ("assistant", "I."), videos=[["s.0.jpg", "1.jpg"]])
    document = only(opened(folder, {**members, "json": talk}))
    assert document.turns[0].parts[0] == Video(frames=(Image(b"zero"), Image(b"one")))
    assert said(document)[0] == ("user", "[[zero][one]][two]?")
    typed = {"messages": [{"role": "user", "content": [{"type": "video", "video": ["1.jpg", "0.jpg", "2.jpg"]}]}]}
    assert said(only(opened(folder, {**members, "json": typed})))[0] == ("user", "[[one][zero][two]]")


def test_a_clip_without_a_text_is_nothing_and_a_huge_one_stops(folder: Folder, monkeypatch):
    assert skipped(opened(folder, {"__key__": "a", "mp4": b"film"})) == [("shard-0.tar, record 0", "empty")]
    monkeypatch.setattr(tars, "MAX_MEMBER", 1000)
    path = shard(folder, [{"__key__": "a", "mp4": bytes(2000), "txt": "A cat."}])
    with pytest.raises(UserError, match=r"the member a\.mp4 has 2,000 bytes.*should be a file of its own"):
        read_sources(path, [])


# Tables, folders


@pytest.mark.parametrize("name", ["video", "audio"])
def test_tables_hold_clips_as_datasets_writes_them(folder: Folder, name):
    columns = {
        "bytes": [{"bytes": b"content", "path": "a.xyz"}, {"bytes": None, "path": "b.mp3"}, None],
        "raw": [b"content", b"more", None],
    }
    for how, values in columns.items():
        path = folder.write(f"{how}.parquet", b"")
        table = pyarrow.table({name: values, "text": [f"<{name}>A.", f"<{name}>B.", "C."]})
        pyarrow.parquet.write_table(table, path)
        (source,) = read_sources(path, [])
        texts = [said(document)[0][1] for document in source.documents()]
        assert texts == ["[content]A.", "[b.mp3]B." if how == "bytes" else "[more]B.", "C."]
        assert kinds(next(iter(source.documents()))) == [name]


def test_lists_of_clips_in_a_table(folder: Folder):
    path = folder.write("a.parquet", b"")
    talk = [[{"role": "user", "content": "<video><video>?"}, {"role": "assistant", "content": "I."}]]
    for videos, shown in (([["a.mp4", "b.mp4"]], "[a.mp4][b.mp4]?"), ([[["0.jpg", "1.jpg"], ["2.jpg"]]], "[[0.jpg]")):
        pyarrow.parquet.write_table(pyarrow.table({"messages": talk, "videos": videos}), path)
        assert said(only(read_sources(path, [])[0]))[0][1].startswith(shown.replace("[[0.jpg]", "[[0.jpg][1.jpg]]"))


def test_a_text_of_a_clips_name_is_its_caption(folder: Folder):
    for i, ending in enumerate(("mp4", "WAV", "png")):
        folder.write(f"clips/{i}.{ending}", b"x")
        folder.write(f"clips/{i}.txt", f"Clip {i}.")
    folder.write("clips/3.mp4", b"x")
    folder.write("clips/3.mp3", b"x")
    folder.write("clips/3.json", {"text": "<audio> and <video>."})
    folder.write("clips/4.mkv", b"x")
    (source,) = read_sources(str(folder.path / "clips"), [])
    *documents, last = source.documents()
    assert [said(d)[0][1] for d in documents] == [
        "[0.mp4]Clip 0.",
        "[1.WAV]Clip 1.",
        "[2.png]Clip 2.",
        "[3.mp3] and [3.mp4].",
    ]
    assert [kinds(d) for d in documents] == [["video"], ["audio"], ["image"], ["audio", "video"]]
    assert last == Skip("4.mkv, record 0", "no caption")
    with pytest.raises(UserError, match=r"0\.mp4 lies beside .*0\.txt"):
        read_sources(str(folder.path / "clips" / "0.txt"), [])


def test_a_list_of_files_with_their_texts(folder: Folder):
    table = folder.write("sounds/metadata.csv", "file_name,text\na.wav,A bell.\nb.mp4,A cat runs.\nc.png,A dog.\n")
    (source,) = read_sources(table, [])
    assert [said(d)[0][1] for d in source.documents()] == ["[a.wav]A bell.", "[b.mp4]A cat runs.", "[c.png]A dog."]
    assert [kinds(d) for d in source.documents()] == [["audio"], ["video"], ["image"]]
    mixed = {"text": "<video> <image> <audio> <image>", "files": ["0.png", "1.mp4", "2.wav", "3.jpg"]}
    assert said(only(folder.source([mixed])))[0][1] == "[1.mp4] [0.png] [2.wav] [3.jpg]"


# Safety


@pytest.mark.parametrize("name", ["video", "audio"])
@pytest.mark.parametrize(
    "path", ["../x.mp4", "/etc/x.mp4", "file:///etc/x.mp4", "out/x.mp4", "simplecache::file://x.mp4"]
)
def test_clips_outside_the_data_are_left_out_unless_allowed(folder: Folder, tmp_path, name, path):
    folder.path.mkdir()
    (tmp_path / "secret").mkdir()
    os.symlink(tmp_path / "secret", folder.path / "out")
    values = [path, {"path": path}, *([[["0.png", path.replace("mp4", "png")]]] if name == "video" else [])]
    for value in values:
        record = openai(("user", f"<{name}>?"), ("assistant", "I."), **{name: value})
        assert skipped(folder.source([record])) == [("data.json, record 0", "outside")]
        typed = openai(("user", [{"type": name, name: value[0] if isinstance(value, list) else value}]))
        assert skipped(folder.source([typed])) == [("data.json, record 0", "outside")]
        if "::" not in path:
            assert kinds(only(folder.source([record], follow_outside=True))) == [name]


def test_clips_by_url_are_fetched_only_if_allowed(folder: Folder):
    for part in (
        {"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}},
        {"type": "audio", "audio": "https://example.org/a.wav"},
        {"type": "video", "video": ["https://example.org/0.png"]},
    ):
        record = openai(("user", [part]))
        assert "URLs are not fetched by default: allow them with config.data.allow_urls" in refused(
            folder.source([record])
        )
        assert kinds(only(folder.source([record], allow_urls=True))) == [part["type"].removesuffix("_url")]
    with pytest.raises(ValueError, match="private network"):
        Pictures("/d", "/d", allow_urls=True).medium("audio", "http://127.0.0.1/a.wav")


def test_base64_that_cannot_be_decoded_is_unreadable():
    pictures = Pictures("/d", "/d")
    for value in ({"data": "%%%", "format": "wav"}, "data:audio/wav;base64,%%", {"base64": ""}):
        with pytest.raises((SkipRecord, ValueError)):
            pictures.medium("audio", value)
    assert pictures.medium("video", base64.b64encode(MP4).decode()) == Video(data=MP4)
    assert pictures.medium("audio", base64.b64encode(b"\xff\xfb" + bytes(80)).decode()).data[:1] == b"\xff"
    assert pictures.medium("audio", "AAAA/" + "b" * 90 + ".wav") == Audio(path="/d/AAAA/" + "b" * 90 + ".wav")


# What is not read


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("a.mp4", VIDEO),
        (["b.webm"], VIDEO),
        ({"bytes": None, "path": "a.wav"}, AUDIO),
        (base64.b64encode(MP4).decode(), VIDEO),
        (base64.b64encode(b"RIFF\0\0\0\0WAVE" + bytes(80)).decode(), AUDIO),
        ({"array": [0.1, 0.2], "sampling_rate": 16000}, AUDIO),
        ("['a.flac']", AUDIO),
    ],
    ids=str,
)
def test_a_record_without_a_clip_stops_where_a_column_looks_like_one(folder: Folder, value, kind):
    line = refused(folder.source([{"text": "A cat.", "shot": value, "image": "a.png"}]))
    assert f"data.json, record 0 has no {kind.noun}, but its 'shot' looks like one" in line
    assert f"config.data.columns={kind.name}=shot" in line
    assert only(folder.source([{"text": "A cat.", "shot": value}], columns=f"{kind.name}="))


def test_an_entry_that_names_no_clips_stops_as_well(folder: Folder):
    def dataset(record, **columns):
        return folder.dataset("t", [record], formatting="openai", columns={"messages": "messages", **columns})

    record = openai(("user", "Who?"), ("assistant", "I."), videos=[["0.jpg"]], images=["a.png"])
    assert "has no video, but its 'videos' looks like one" in refused(dataset(record, images="shown", videos=None))
    assert said(only(dataset(record | {"images": []}, images="", videos="")))[0] == ("user", "Who?")
    link = {"text": "A page.", "url": "https://e.org/a.mp4", "video_url": "https://youtube.com/watch?v=1"}
    assert said(only(folder.source([link]))) == [("document", "A page.")]


def test_contents_are_known_by_their_beginning():
    webp, wav = b"RIFF\0\0\0\0WEBP", b"RIFF\0\0\0\0WAVE"
    known = {
        VIDEO: (MP4, MKV, b"RIFF\0\0\0\0AVI "),
        AUDIO: (wav, b"ID3\4" + bytes(9), b"OggS" + bytes(9), b"fLaC" + bytes(9), b"\0\0\0\x18ftypM4A "),
        IMAGE: (webp, b"\0\0\0\x18ftypavif", b"\x89PNG\r\n\x1a\n"),
    }
    for kind, contents in known.items():
        for content in contents:
            assert [other for other in known if looks(content, other)] == [kind]
            text = base64.b64encode(content.ljust(90, b"\0")).decode()
            assert kind is IMAGE or [other for other in known if looks(text, other)] == [kind]
    for nothing in (b"text", b"", b"\0" * 20, "a.ts", "A.mp4.txt", "AAAA" * 30, "x" * 200, 3):
        assert not any(looks(nothing, kind) for kind in known)


# What was prepared


def test_without_clips_a_source_has_the_key_that_it_had(folder: Folder):
    def key(source) -> dict:
        return json.loads(source.entry)

    talk = openai(("user", "Who?"), ("assistant", "I."))
    conversation, plain = key(folder.source([talk])), key(folder.source([{"text": "A."}]))
    assert conversation["first"]["later"] == ["videos", "video", "audios", "audio"]
    assert plain["first"] == {"images": ["*", "features", "image_tokens"], "later": [], "texts": ["text"]}
    columns = {"messages": "messages", "images": "images"}
    entry = key(folder.dataset("t", [talk], formatting="openai", columns=columns, tags=OPENAI))
    assert entry["later"] == []
    for one in (conversation, plain, entry):
        assert not {"clips", "videos", "audios", "has_clips"} & (one.keys() | one.get("first", {}).keys())
    typed = openai(("user", [{"type": "audio", "audio": "a.wav"}]))
    for record in (talk | {"video": None}, {"text": "A.", "file": "a.wav"}, typed):
        assert key(folder.source([record]))["clips"][0] == 1
    columns["videos"] = "videos"
    entry = key(folder.dataset("t", [talk], formatting="openai", columns=columns, tags=OPENAI))
    assert entry["clips"] == [1, ["videos"], []]
    assert key(folder.source([talk], video_placeholder="<v>"))["placeholders"] == ["<v>", "<audio>"]


def test_boxes_count_pictures_alone(folder: Folder):
    objects = {"bbox": [[1, 2, 3, 4]], "image_id": [0]}
    record = openai(("user", "<video><image>?"), ("assistant", "<bbox>"), video="a.mp4", image="b.png", objects=objects)
    (one,) = only(folder.source([record], boxes="thousandths")).objects
    assert one.image == 1
    objects["image_id"] = [1]
    assert "name the picture 1, of 1" in refused(folder.source([record], boxes="thousandths"))


def test_a_reading_with_clips_names_all_columns():
    assert Reading(columns="videos=a,audio=b").named() == {"video": "a", "audio": "b"}
