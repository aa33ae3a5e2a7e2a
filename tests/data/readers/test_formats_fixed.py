"""A reader that makes something else of the same bytes has another FORMAT, so that no cache gives what it made before.

Where a digest here differs, what people have prepared differs from what they would get today: raise the reader's
FORMAT, and note number and digest below. Nothing else is to be changed for it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from jaxmm.data.documents import Document, Image, Skip
from jaxmm.data.readers import containers, preferences
from jaxmm.data.readers.parts import SkipRecord
from jaxmm.data.sources import read_sources
from jaxmm.errors import UserError
from readers.reading import Folder

RECORDS = [
    {"text": "A <image> b.", "image": "p/a.png", "n": 1},
    {"text": "Zwei, \u732b \"q\" [x] {y}.", "image": None, "n": None},
    {"text": "", "image": "https://e.org/a.jpg", "n": 3},
]  # fmt: skip
LINES = "\n".join(map(json.dumps, RECORDS)).encode()


def packed_tar() -> bytes:
    parts = [{"type": "image", "image": "1.png"}, {"type": "text", "text": "b"}, {"type": "image", "image": "k.0.png"}]
    talk = {"messages": [{"role": "user", "content": parts}]}
    members = {
        "a.img10.png": b"ten", "a.img2.png": b"two", "a.txt": b" A cat.\n", "a.cls": b"3",
        "b.json": json.dumps({"conversations": [], "image": "x/y.jpg"}).encode(), "b.jpg": b"jpg",
        "k.json": json.dumps(talk).encode(), "k.0.png": b"zero", "k.1.png": b"one",
        "l.json": json.dumps(["0.png", "text"]).encode(), "l.0.png": b"zero",
        "m.json": b"{", "n.bmp": b"bmp", "n.avif": b"avif", "n.caption": b"Two.",
    }  # fmt: skip
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def parquet() -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), out)
    return out.getvalue()


def arrow() -> bytes:
    out = io.BytesIO()
    table = pyarrow.Table.from_pylist(RECORDS)
    with pyarrow.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    return out.getvalue()


CONTAINERS = {
    "lines": {
        "a.jsonl": LINES + b'\n{"a": \n[1]\n{"a": 1, "a": 2}\n{"x": NaN, "y": Infinity}\n\n',
        "a.txt": b"\xef\xbb\xbfOne.\r\n\n Two\xe9.\n",
        "a.jsonl.gz": gzip.compress(LINES),
        "b.jsonl": LINES.decode().encode("utf-16"),
    },
    "arrays": {
        "a.json": json.dumps([*RECORDS, 3]).encode(),
        "b.json": b'[{"a": 1},\n// no\n{"a": 2},]',
        "c.json": b"[1",
    },
    "objects": {
        "a.json": json.dumps({"data": RECORDS}, indent=1).encode(),
        "b.json": b"".join(json.dumps(record, indent=1).encode() for record in RECORDS),
        "c.json": json.dumps({"a": [{"b": 1}], "c": {"d": 1}}, indent=1).encode(),
    },
    "csv": {"a.csv": b'\xef\xbb\xbfa,b\r\n1,"x\ny"\r\n2\r\n', "a.tsv": b"a\tb\n1,2\t3\n", "b.csv": b"a;b\n1;2\n"},
    "tars": {"a.tar": packed_tar()},
    "parquet": {"a.parquet": parquet()},
    "arrow": {"a.arrow": arrow()},
}
TALK = [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "I."}]
PARTS = [
    {"type": "image", "image": "a.png"},
    {"type": "text", "text": "<image>?"},
    {"type": "image_tokens", "ids": [1]},
]
SAID = {"role": "user", "content": PARTS}, {"role": "assistant", "content": "I.", "tool_calls": []}
CALL = {"function": {"name": "f", "arguments": '{"x": 1}'}}
PIXELS = "iVBORw0KGgo" + "A" * 81
FORMATS = {
    "Conversation": [
        {"image": "a.png", "conversations": TALK, "system": "S.", "tools": '[{"name": "f"}]'},
        {"img": ["a.png"], "conversations": TALK},
        {"messages": [*SAID, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
        {"messages": json.dumps([{"role": "User", "content": "<img>a.png</img>?"}])},
        {"messages": [{"role": "user", "content": "?"}], "file_name": "a.png"},
        {"messages": []},
    ],
    "Exchange": [{"prompt": [SAID[0]], "completion": [SAID[1]]}],
    "Alpaca": [
        {"instruction": "Who?", "input": "You.", "output": "I.", "history": [["a", "b"]], "image": "a.png"},
        {"instruction": "Who? <image>", "output": None, "images": ["a.png"], "system": "S."},
    ],
    "Plain": [
        {"text": "A <image> b.", "images": ["a.png"]},
        {"text": "A <image> b.", "url": "https://e.org/a.png"},
        {"text": "A cat.", "Image": {"base64": PIXELS, "path": "x.png"}},
        {"text": "A cat.", "features": ["a.npy"]},
        {"text": "", "image": "a.png"},
    ],
    "Parallel": [{"texts": [None, "One.", "Two.", None], "images": ["a.png", None, None, "b.png"]}],
    "Matched": [{"text_list": ["One.", "Two."], "image_info": [{"image_name": "b.jpg", "matched_text_index": 1}]}],
    "Pairs": [{"images": ["a.png"], "texts": [{"user": "Who?", "assistant": "I."}]}],
}
CALLS = {"role": "assistant", "content": "Calls.", "tool_calls": [CALL]}
PREFERENCES = {
    "pairs": [
        {"prompt": "Who?", "chosen": "I.", "rejected": [{**SAID[1], "content": "You."}], "image": "a.png"},
        {"conversations": TALK[:1], "chosen": TALK[1], "rejected": "You.", "images": ["a.png"], "system": "S."},
        {"instruction": "Who?", "history": [["a", "b"]], "chosen": "I.", "rejected": None},
        {"chosen": SAID, "rejected": [SAID[0], {**SAID[1], "content": "You."}], "prompt": "Who?"},
        {"input": {"messages": [SAID[0]]}, "preferred_output": [SAID[1]], "non_preferred_output": [CALLS]},
    ],
    "judged": [
        {"prompt": f"Who? {n}", "completion": said, "label": n % 2, "image": "a.png"}
        for n, said in enumerate(("I.", "You.", None))
    ],
}
# FORMAT, and the digest of what is made of the above.
EXPECTED = {
    "lines": (2, "15363a428d2feccf"),
    "arrays": (3, "f0670d23fd438bef"),
    "objects": (1, "7c32f8758cc7a5ca"),
    "csv": (2, "58b9513a09729d8c"),
    "tars": (2, "2c98054e7038febb"),
    "parquet": (1, "123ba2a7cc98c0ec"),
    "arrow": (1, "71eea986d12b5dab"),
    "pairs": (1, "83252092bce6672f"),
    "Conversation": (3, "5676ff99dbda558c"),
    "Exchange": (3, "91962e580a44509c"),
    "Alpaca": (3, "8eaf890ae74e2472"),
    "Plain": (3, "c542984039b5977a"),
    "Parallel": (3, "6e33522ba1136ddc"),
    "Matched": (3, "5716604a4958e640"),
    "Pairs": (3, "95b831d21a8d69c8"),
    "preferences": (1, "a5d58bebfe597180"),
}


def digest(found: object) -> str:
    return hashlib.sha256(repr(found).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def plain(record: object) -> object:
    return (record.reason, record.detail) if isinstance(record, SkipRecord) else record


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_that_reads_otherwise_has_another_number(folder: Folder, name):
    found = []
    for file, content in CONTAINERS[name].items():
        path = folder.write(file, content)
        kind = containers.container(path)
        assert kind.version[0] == name
        for unit in kind.units(path, 1 << 20):
            try:
                found += [(file, number, plain(record)) for number, record in kind.records(unit)]
            except UserError as error:
                found.append((file, 0, str(error).replace(path, "")))
    assert (kind.version[1], digest(found)) == EXPECTED[name], "raise the reader's FORMAT: see above"


def test_pairs_that_read_otherwise_have_another_number(folder: Folder):
    for name in ("0.png", "1.jpg", "2.gif"):
        folder.write(f"pics/{name}", b"x")
    folder.write("pics/0.txt", " One.\n")
    folder.write("pics/1.json", {"caption": "Two.", "image": ""})
    (source,) = read_sources(str(folder.path / "pics"), [])
    assert (containers.PAIRS.version[1], digest(shown(source, folder))) == EXPECTED["pairs"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_that_makes_other_documents_has_another_number(folder: Folder, name):
    found, version = [], 0
    for record in FORMATS[name]:
        source = folder.source([record])
        form = source.read.keywords["form"].first
        assert type(form).__name__ == name
        version = form.version
        found.append(shown(source, folder))
    assert (version, digest(found)) == EXPECTED[name], "raise the format's FORMAT: see above"


def test_preferences_that_read_otherwise_have_another_number(folder: Folder):
    found = [shown(folder.source([record], preferences="pairs"), folder) for record in PREFERENCES["pairs"]]
    found.append(shown(folder.source(PREFERENCES["judged"], preferences="judged"), folder))
    assert (preferences.FORMAT, digest(found)) == EXPECTED["preferences"], "raise preferences.FORMAT: see above"


def shown(source, folder: Folder) -> list[object]:
    """Documents without what else may be added to a turn, and without the place of the folder."""
    found: list[object] = []
    for document in source.documents():
        if isinstance(document, Skip):
            found.append(tuple(document))
            continue
        assert isinstance(document, Document)
        turns, other = (
            [(turn.role, [_shown(part, folder) for part in turn.parts]) for turn in turns]
            for turns in (document.turns, document.other)
        )
        found.append(
            (document.origin, turns, document.verdict, other) if document.verdict else (document.origin, turns)
        )
    return found


def _shown(part: tuple, folder: Folder) -> object:
    read = part[:2] if isinstance(part, Image) else part  # its intro is set where it is encoded
    fields = [value.replace(str(folder.path), "") if isinstance(value, str) else value for value in read]
    return type(part).__name__, fields
