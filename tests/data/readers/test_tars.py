"""Tars as webdataset writes them, and half of one."""

import io
import tarfile
from pathlib import Path

import pytest
import webdataset

from jaxmm.data.documents import Skip, Source
from jaxmm.data.readers import tars
from jaxmm.data.reading import Reading
from jaxmm.data.sources import read_sources
from jaxmm.errors import UserError
from readers.reading import Folder, only, refused, said, skipped


def shard(folder: Folder, samples: list[dict], name: str = "shard-0.tar") -> str:
    """Writes samples with webdataset; images are bytes, whatever they say."""
    path = folder.write(name, b"")
    with webdataset.TarWriter(path, encoder=True) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def opened(folder: Folder, *samples: dict) -> Source:
    return read_sources(shard(folder, list(samples)), [])[0]


def test_an_image_with_its_text_is_a_caption(folder):
    samples = [
        {"__key__": f"{i:04}", kind: f"i{i}".encode(), "txt": f"Cat {i}."}
        for i, kind in enumerate(["jpg", "png", "webp"])
    ]
    source = opened(folder, *samples)
    assert source.name == "shard-0"
    got = list(source.documents())
    assert [said(d) for d in got] == [[("document", f"[i{i}]Cat {i}.")] for i in range(3)]
    assert [d.origin for d in got] == [f"shard-0.tar, record {i}" for i in range(3)]


def test_keys_may_lie_in_folders_and_hold_case_and_other_things(folder):
    samples = [
        {"__key__": f"{part}/a", "JPG": part.encode(), "txt": part, "cls": "3", "npy": b"x"} for part in ("x", "y")
    ]
    source = opened(folder, *samples)
    assert [said(d)[0][1] for d in source.documents()] == ["[x]x", "[y]y"]


def test_several_images_of_a_sample_are_in_the_order_of_their_numbers(folder):
    sample = {"__key__": "a", "10.jpg": b"ten", "2.jpg": b"two", "0.png": b"zero"}
    assert said(only(opened(folder, {**sample, "txt": "A <image>, <image>, <image>."}))) == [
        ("document", "A [zero], [two], [ten].")
    ]
    pages = {**sample, "json": {"texts": [None, "and", None, "after"], "images": ["2.jpg", None, "a.0.png", None]}}
    assert said(only(opened(folder, pages))) == [("document", "[two]and[zero]after")]


def test_a_sample_may_hold_a_conversation_or_a_caption_in_its_json(folder):
    talk = {
        "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "A."}],
        "image": "x/y.jpg",
    }
    assert said(only(opened(folder, {"__key__": "a", "jpg": b"cat", "json": talk}))) == [
        ("user", "[cat]?"),
        ("assistant", "A."),
    ]
    # What img2dataset writes.
    meta = {"caption": "A cat.", "url": "https://example.org/a.jpg", "key": "a", "status": "success", "width": 3}
    assert said(only(opened(folder, {"__key__": "a", "jpg": b"cat", "json": meta, "txt": "A cat!"}))) == [
        ("document", "[cat]A cat!")
    ]
    assert said(only(opened(folder, {"__key__": "a", "jpg": b"cat", "json": meta}))) == [("document", "[cat]A cat.")]


def test_text_alone_is_a_document_and_an_image_alone_is_nothing(folder):
    source = opened(
        folder,
        {"__key__": "a", "txt": "Only <image> text."},
        {"__key__": "b", "jpg": b"b"},
        {"__key__": "c", "cls": "1"},
    )
    first, *rest = source.documents()
    assert said(first) == [("document", "Only <image> text.")]
    assert [skip.reason for skip in rest] == ["empty", "empty"]


def test_bad_samples_cost_themselves(folder):
    path = folder.write("a.tar", b"")
    with tarfile.open(path, "w") as tar:
        for name, content in (
            ("a.txt", b"One."),
            ("README", b"?"),
            ("b.txt", b"Two."),
            ("b.txt", b"Two again."),
            ("c.txt", b"Thr\xe9."),
            ("d.json", b'{"text": '),
            (".hidden.txt", b"?"),
            ("e.txt", b"Five."),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("f.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (source,) = read_sources(path, [])
    assert skipped(source) == [
        ("a.tar, record 1", "duplicate keys"),
        ("a.tar, record 2", "broken text"),
        ("a.tar, record 3", "broken JSON"),
    ]
    assert [said(d)[0][1] for d in source.documents() if not isinstance(d, Skip)] == ["One.", "Five."]


def test_half_a_tar_gives_its_whole_samples_wherever_it_is_cut(folder):
    samples = [{"__key__": str(i), "jpg": bytes(700), "txt": f"Cat {i}."} for i in range(4)]
    path = shard(folder, samples)
    whole = Path(path).read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    # A sample is known to be whole when the next one's header has been read, which ends where its content begins.
    known = [member.offset_data for member in members[2::2]]
    for cut in range(known[0], members[-1].offset_data, 300):
        *documents, last = read_sources(folder.write("half.tar", whole[:cut]), [])[0].documents()
        complete = sum(end <= cut for end in known)
        assert [said(d)[0][1].strip("[\0]") for d in documents] == [f"Cat {i}." for i in range(complete)]
        assert last[:2] == (f"half.tar, record {complete}", "cut short")
        assert f"{cut:,}" in last.detail
    assert len(list(read_sources(folder.write("half.tar", whole), [])[0].documents())) == 4


def test_a_header_that_is_overwritten_is_not_taken_for_the_end(folder):
    samples = [{"__key__": str(i), "txt": f"Cat {i}."} for i in range(4)]
    path = shard(folder, samples)
    with tarfile.open(path) as tar:
        at = tar.getmembers()[2].offset
    data = bytearray(Path(path).read_bytes())
    data[at : at + 512] = b"x" * 512
    (source,) = read_sources(folder.write("a.tar", bytes(data)), [])
    assert [said(d)[0][1] for d in source.documents() if not isinstance(d, Skip)] == ["Cat 0."]
    assert skipped(source) == [("a.tar, record 1", "cut short")]


def test_what_is_no_tar_is_named(folder):
    for content in (b"", b"no tar" * 200):
        with pytest.raises(UserError, match=r"a\.tar is no tar that can be read"):
            read_sources(folder.write("a.tar", content), [])


def test_a_compressed_tar_is_read_as_one(folder):
    path = shard(folder, [{"__key__": str(i), "txt": f"Cat {i}. " * 500} for i in range(50)], "a.tar.gz")
    (source,) = read_sources(path, [])
    assert source.name == "a"
    assert len(list(source.documents())) == 50
    whole = Path(path).read_bytes()
    (half,) = read_sources(folder.write("b.tgz", whole[: len(whole) // 2]), [])
    *documents, last = half.documents()
    assert 0 < len(documents) < 50
    assert last.reason == "cut short"


def test_each_tar_of_a_pattern_is_a_unit(folder):
    for part in (2, 0, 1):
        shard(folder, [{"__key__": "a", "txt": f"Part {part}."}], f"shards/train-{part}.tar")
    (source,) = read_sources(str(folder.path / "shards" / "train-*.tar"), ["train"])
    assert [unit.file for unit in source.units()] == list(source.files)
    assert [d.origin for d in source.documents()] == [f"train-{part}.tar, record 0" for part in range(3)]


def test_pictures_are_in_the_order_of_the_numbers_in_their_names(folder):
    for style in ("frames.{}", "img{}", "image_{}", "{}"):
        sample = {f"{style.format(i)}.png": str(i).encode() for i in (0, 1, 2, 9, 10, 11, 100)}
        source = opened(folder, {"__key__": "s", "txt": "<image>" * 7, **sample})
        assert said(only(source)) == [("document", "[0][1][2][9][10][11][100]")]


@pytest.mark.parametrize("ending", ["bmp", "tif", "tiff", "avif", "gif", "JPEG", "heic"])
def test_members_of_every_kind_of_picture_are_read(folder, ending):
    assert said(only(opened(folder, {"__key__": "a", ending: b"x", "txt": "A cat."}))) == [("document", "[x]A cat.")]


def test_a_member_of_another_name_that_is_a_picture_stops(folder):
    source = opened(folder, {"__key__": "a", "bin": b"\xff\xd8\xff\xe0" + bytes(99), "cls": "3", "txt": "A cat."})
    assert "has no picture, but its '.bin' looks like one" in refused(source)


def test_what_a_record_names_is_where_it_says(folder):
    parts = [
        {"type": "image", "image": "1.png"},
        {"type": "text", "text": "or"},
        {"type": "image_url", "image_url": {"url": "x/s.0.png"}},
    ]
    talk = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "I."}]}
    sample = {"__key__": "s", "json": talk, "0.png": b"zero", "1.png": b"one"}
    assert said(only(opened(folder, sample)))[0] == ("user", "[one]or[zero]")
    for path in ("elsewhere/cat.png", "s.png"):
        talk = {"messages": [{"role": "user", "content": [{"type": "image", "image": path}]}]}
        assert said(only(opened(folder, {"__key__": "s", "json": talk, "png": b"cat"})))[0] == ("user", "[cat]")
    asked = {"shot": "s.jpg", "question": "Who?", "answer": "I."}
    path = shard(folder, [{"__key__": "s", "json": asked, "jpg": b"cat"}])
    (source,) = read_sources(path, [], Reading(columns="image=shot,prompt=question,response=answer"))
    assert said(only(source))[0] == ("user", "[cat]Who?")
    page = ["0.png", "One.", "1.png", "Two."]
    sample = {"__key__": "s", "json": page, "0.png": b"zero", "1.png": b"one"}
    assert said(only(opened(folder, sample))) == [("document", "[zero]One.[one]Two.")]


def test_a_member_that_is_too_large_is_one_line(folder, monkeypatch):
    monkeypatch.setattr(tars, "MAX_MEMBER", 1000)
    path = shard(folder, [{"__key__": "a", "txt": "x" * 2000}], "a.tgz")
    with pytest.raises(UserError, match=r"the member a\.txt has 2,000 bytes, more than"):
        read_sources(path, [])
    path = shard(folder, [{"__key__": "a", "bin": bytes(2000), "txt": "A cat."}], "b.tgz")
    assert said(only(read_sources(path, [])[0])) == [("document", "A cat.")]
