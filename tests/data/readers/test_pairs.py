"""Pictures with a text of their name beside them."""

from __future__ import annotations

import pytest

from jaxmm.data.reading import Reading
from jaxmm.data.sources import read_sources
from jaxmm.errors import UserError
from readers.reading import Folder, said, skipped


def read(folder: Folder, **reading):
    return read_sources(str(folder.path / "pics"), [], Reading(**reading))[0]


def test_a_text_of_a_pictures_name_is_its_caption(folder: Folder):
    for i in (0, 2, 10):
        folder.write(f"pics/{i}.PNG", b"x")
        folder.write(f"pics/{i}.txt", f"Cat {i},\na photo\n")
    folder.write("pics/README.txt", "Nothing.")
    source = read(folder)
    assert [said(d) for d in source.documents()] == [[("document", f"[{i}.PNG]Cat {i},\na photo")] for i in (0, 2, 10)]
    assert next(iter(source.documents())).origin == "0.txt, record 0"
    (pattern,) = read_sources(str(folder.path / "pics" / "[0-9]*.txt"), [])
    assert len(list(pattern.documents())) == 3


def test_a_record_of_a_pictures_name_is_of_it(folder: Folder):
    talk = {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "A cat."}], "image": None}
    for name in ("a", "b"):
        folder.write(f"pics/{name}.jpg", b"x")
        folder.write(f"pics/{name}.json", talk)
    assert [said(d)[0] for d in read(folder).documents()] == [("user", "[a.jpg]Who?"), ("user", "[b.jpg]Who?")]
    folder.write("pics/a.txt", "A cat.")  # as img2dataset writes both
    folder.write("pics/a.json", {"url": "https://e.org/a.jpg", "caption": "?"})
    folder.write("pics/b.txt", "Two cats.")
    folder.write("pics/b.json", {"url": "https://e.org/b.jpg", "caption": "?"})
    assert [said(d)[0][1] for d in read(folder).documents()] == ["[a.jpg]A cat.", "[b.jpg]Two cats."]


def test_what_has_no_partner_is_told(folder: Folder):
    for i in range(3):
        folder.write(f"pics/{i}.png", b"x")
    for i in range(2):
        folder.write(f"pics/{i}.caption", f"Cat {i}.")
    assert skipped(read(folder)) == [("2.png, record 0", "no caption")]
    folder.write("pics/notes.txt", "Not of a picture.")
    with pytest.raises(UserError, match=r"but .*notes\.txt has no picture of the same name"):
        read(folder)


def test_a_single_text_with_a_picture_beside_it_stops(folder: Folder):
    folder.write("pics/0.png", b"x")
    path = folder.write("pics/0.txt", "A cat.")
    with pytest.raises(UserError, match=r"0\.png lies beside .*0\.txt as if that were its text: give their folder"):
        read_sources(path, [])


def test_an_array_beside_a_picture_of_its_name_is_an_array(folder: Folder):
    folder.write("pics/cats.png", b"x")
    folder.write("pics/cats.json", [{"text": "One."}, {"text": "Two."}])
    assert [said(d)[0][1] for d in read(folder).documents()] == ["One.", "Two."]
