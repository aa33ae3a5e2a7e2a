"""Which files of this machine a record may name, and what stands for an image."""

import os
import pickle

import pytest

from jaxmm.data.documents import Image
from jaxmm.data.readers.parts import SkipRecord
from jaxmm.data.readers.pictures import Pictures
from readers.reading import Folder, openai, skipped


@pytest.fixture
def place(tmp_path):
    """data/ with links, and secret/ beside it."""
    for name in ("data/pics", "data/deep", "secret", "database"):
        (tmp_path / name).mkdir(parents=True)
    os.symlink(tmp_path / "secret", tmp_path / "data" / "out")
    os.symlink(tmp_path / "secret" / "a.png", tmp_path / "data" / "a.png")
    os.symlink(tmp_path / "data" / "pics", tmp_path / "data" / "in")
    return tmp_path


@pytest.mark.parametrize(
    "path",
    [
        "../secret/a.png",
        "pics/../../secret/a.png",
        "/etc/passwd",
        "out/a.png",
        "a.png",
        "file:///etc/passwd",
        "../data.png",
        "local:///etc/passwd",
        "simplecache::file:///etc/passwd",
        "../database/a.png",
        "in/../../x.png",
    ],
)
def test_what_leads_out_is_left_out_unless_allowed(place, path):
    data = str(place / "data")
    with pytest.raises(SkipRecord) as caught:
        Pictures(data, data).image(path)
    assert caught.value.reason == "outside"
    if "::" not in path:
        allowed = Pictures(data, data, follow_outside=True).image(path).path
        assert allowed == os.path.normpath(os.path.join(data, path.removeprefix("file://").removeprefix("local://")))


@pytest.mark.parametrize(
    "path", ["pics/a.png", "pics/../b.png", "in/a.png", "DATA/pics/a.png", "deep/../../data/a2.png", "a..b.png"]
)
def test_what_stays_inside_is_taken(place, path):
    data = str(place / "data")
    found = Pictures(data, data).image(path.replace("DATA", data)).path
    assert found == os.path.normpath(os.path.join(data, path.replace("DATA", data)))


def test_a_data_folder_that_is_a_link_itself_is_inside(place):
    os.symlink(place / "data", place / "link")
    data = str(place / "link")
    assert Pictures(data, data).image("pics/a.png").path == f"{data}/pics/a.png"
    assert Pictures(data, data).image(str(place / "data" / "pics" / "a.png"))


def test_the_media_folder_is_inside_too(place):
    pictures = Pictures(str(place / "secret"), str(place / "data"))
    assert pictures.image("a.png").path == str(place / "secret" / "a.png")
    assert pictures.image(str(place / "data" / "pics" / "a.png"))
    with pytest.raises(SkipRecord, match="outside"):
        pictures.image("../database/a.png")
    assert pickle.loads(pickle.dumps(pictures)) == pictures


def test_a_store_is_left_by_no_path_either():
    pictures = Pictures("s3://bucket/data", "s3://bucket/data")
    assert pictures.image("a/b.png").path == "s3://bucket/data/a/b.png"
    for path in ("../b.png", "/etc/passwd", "../../../x.png"):
        with pytest.raises(SkipRecord, match="outside"):
            pictures.image(path)


def test_a_record_with_an_image_outside_is_skipped_and_says_so(folder: Folder):
    records = [openai(("user", "<image>"), images=[path]) for path in ("a.png", "/elsewhere/b.png", "../c.png")]
    assert skipped(folder.source(records)) == [("data.json, record 1", "outside"), ("data.json, record 2", "outside")]
    assert skipped(folder.source(records, follow_outside=True)) == []
    assert folder.source(records).entry != folder.source(records, follow_outside=True).entry


@pytest.mark.parametrize(
    "uri", ["data:image/png;base64,%%%", "data:image/png;base64,", "data:image/png,abc", "data:image/png;base64"]
)
def test_a_data_uri_that_is_none_is_unreadable(uri):
    with pytest.raises(SkipRecord, match="unreadable"):
        Pictures("/d", "/d").image(uri)


@pytest.mark.parametrize("path", ["a\0.png", "a\udce9.png"])
def test_a_path_that_no_file_can_have_is_broken_text(path):
    with pytest.raises(SkipRecord, match="broken text"):
        Pictures("/d", "/d").image(path)


def test_a_path_that_begins_as_base64_does_stays_a_path():
    assert Pictures("/", "/").image("/9j/" + "a" * 100 + ".png") == Image(path="/9j/" + "a" * 100 + ".png")
    assert Pictures("/d", "/d").image("iVBORw0KGgo") == Image(path="/d/iVBORw0KGgo")


@pytest.mark.parametrize("value", [3, "", b"", {}, {"bytes": None, "path": None}, None, ["a"]])
def test_what_stands_for_no_image_is_told(value):
    with pytest.raises(ValueError, match="an image must be"):
        Pictures("/d", "/d").image(value)
