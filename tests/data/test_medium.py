"""The seam of media: a new one is a file and a line in the table. Here a toy, which only these tests know."""

from __future__ import annotations

import copy
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import picture
from made import document, source_of

import jaxmm
from jaxmm.batch import IGNORED, Stream
from jaxmm.data.assemble import Assembler, Loaded, row_bytes
from jaxmm.data.documents import Document, Image, Text
from jaxmm.data.media import table
from jaxmm.data.media.extents import Extent
from jaxmm.data.media.medium import BadMedia, Filled, Medium
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.limits import FIRST, Budgets
from jaxmm.data.packing.pieces import count_long
from jaxmm.data.packing.plan import Piece, Plan, choose_budgets
from jaxmm.data.prepare.prepare import prepare
from jaxmm.data.prepare.prepared import Prepared
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec
from jaxmm.report.tally import Tally, over_budget
from jaxmm.report.view import Viewer

TEMPLATE = Template(load_tokenizer(""), "pretrain")


class Beeps(NamedTuple):
    """Raw int16 samples."""

    data: bytes = b""
    path: str = ""


@dataclass(frozen=True)
class Heard(ImageSpec):
    """``samples`` make a unit: what a config may change without preparing anything again."""

    samples: int = 10


SPEC = Heard(patch_size=4, merge=2, min_pixels=8 * 8, max_pixels=24 * 24)
LIMITS = {"tokens": 96, "patches": 72, "items": 4, "targets": 96, "beeps": 24}


class BeepsMedium(Medium):
    """A unit of samples each, in whole groups of four, which make a soft token."""

    name, part, kind = "beeps", Beeps, -100
    budgets, stream = ("beeps",), "beeps"
    advice = {"odd bytes": "samples are two bytes each"}  # noqa: RUF012

    def extent(self, part):
        if len(part.data) % 2:
            raise BadMedia("odd bytes")
        return Extent(1, len(part.data) // 2, self.kind)

    def units(self, extents, spec):
        return -(-extents.width.astype(np.int64) // (4 * spec.samples)) * 4

    def group(self, spec):
        return 4

    def empty(self, rows, budgets, spec, width):
        count = budgets.get("beeps")
        if not count:
            return {}
        values = np.zeros((rows, count, spec.samples), np.int16)
        return {"beeps": Stream(values, np.zeros((rows, count, 1), np.int32), np.zeros((rows, count), np.int32))}

    def fill(self, space, item, spec, settings):
        stream, first = space.batch.media["beeps"], space.taken.get("beeps", 0)
        there = slice(first, first + item.units)
        samples = np.frombuffer(item.part.data, "<i2")
        stream.values[space.b, there].reshape(-1)[: len(samples)] = samples
        if (samples == -1).any():  # what only decoding tells
            raise BadMedia("odd bytes")
        stream.positions[space.b, there, 0] = np.arange(item.units)
        stream.segments[space.b, there] = space.media.get("beeps", 0) + 1
        return Filled(np.arange(item.soft_tokens), (1, 1, item.soft_tokens))


@pytest.fixture(autouse=True)
def in_the_table(monkeypatch):
    monkeypatch.setitem(table.MEDIA, "beeps", BeepsMedium())


def limits(**changed: int) -> Budgets:
    return Budgets(**(LIMITS | changed))


def beeps(count: int, first: int = 1) -> Beeps:
    return Beeps(np.arange(first, first + count, dtype="<i2").tobytes())


def documents(seed: int = 0, count: int = 60) -> list[Document]:
    """Texts with up to three media each: beeps of up to 60 samples, and pictures."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        parts: list[Any] = [Text("w" * int(rng.integers(1, 20)))]
        for k in range(rng.integers(0, 4)):
            medium = beeps(int(rng.integers(1, 61)), 100 * k) if rng.random() < 0.7 else picture(12, 16, i)
            parts += [medium, Text("a" * int(rng.integers(1, 9)))]
        found.append(document(*parts, i=i))
    return found


def lengths_of(folder: Path, found: list[Document], spec: ImageSpec = SPEC) -> Lengths:
    return Lengths(Prepared(prepare(source_of(found), TEMPLATE, folder, workers=1)), spec)


def load(lengths: list[Lengths], budgets: Budgets, batches: int = 6) -> list[Loaded]:
    plan = Plan(lengths, [1.0] * len(lengths), budgets, 2, 0)
    return [Assembler(lengths, budgets, SPEC)(plan.batch(k)) for k in range(batches)]


def test_it_is_prepared_and_told_of_by_its_name(tmp_path):
    found = documents()
    source = lengths_of(tmp_path, found).prepared
    parts = [part for one in found for part in one.turns[0].parts if isinstance(part, Beeps)]
    assert source.meta["media"] == ["beeps"]
    told = json.loads((source.folder / "report.json").read_text())["modalities"]["beeps"]
    assert told["images"] == len(parts) > 40
    assert (source.image_kind_I == -100).sum() == len(parts)
    for example, one in enumerate(found):
        assert source.read(example).images == [part for part in one.turns[0].parts if not isinstance(part, Text)]


def test_the_content_is_in_the_fingerprint(tmp_path):
    one, other = (lengths_of(tmp_path / str(n), [document(beeps(20, n))]).prepared for n in (1, 2))
    assert one.meta["fingerprint"] != other.meta["fingerprint"]


def test_what_it_takes_depends_on_the_spec_and_nothing_is_prepared_again(tmp_path):
    lengths = lengths_of(tmp_path, [document(Text("ab"), beeps(41)), document(Text("ab"), picture(8, 8))])
    assert lengths.columns == (*FIRST, "beeps")
    assert lengths.of("beeps").tolist() == [8, 0]
    assert lengths.of("patches").tolist() == [0, 4]
    assert lengths.slots().tolist() == [2, 1]
    finer = Lengths(lengths.prepared, Heard(patch_size=4, merge=2, min_pixels=64, max_pixels=576, samples=5))
    assert finer.of("beeps").tolist() == [12, 0]
    assert finer.tokens_E[0] == lengths.tokens_E[0] + 1


def test_rows_hold_its_budget_and_its_units_stand_where_the_slots_say(tmp_path):
    found = documents()
    lengths = lengths_of(tmp_path, found)
    binds = 0
    for loaded in load([lengths], limits()):
        stream = loaded.batch.media["beeps"]
        assert stream.values.shape == (2, 24, 10)
        for b, row in enumerate(loaded.rows):
            taken = sum(int(lengths.of("beeps")[piece.example]) for piece in row)
            assert (stream.segments[b] > 0).sum() == taken <= 24
            binds += taken == 24
            slots = loaded.batch.slots_BT[b]
            own = slots[slots >= 72 // 4] - 72 // 4  # those of patches come first in the table
            assert own.tolist() == list(range(taken // 4))
            said = [part for p in row for part in found[p.example].turns[0].parts if isinstance(part, Beeps)]
            for number, part in enumerate(said, start=1):
                samples = stream.values[b, stream.segments[b] == number].reshape(-1)
                wanted = np.frombuffer(part.data, "<i2")
                np.testing.assert_array_equal(samples[: len(wanted)], wanted)
                assert not samples[len(wanted) :].any()
    assert binds


def test_it_is_packed_by_its_own_budget_and_not_by_another(tmp_path):
    lengths = lengths_of(tmp_path, [document(Text("a"), beeps(80), i=i) for i in range(12)])
    for held in (8, 16, 24):
        budgets = limits(beeps=held)
        assert all(len(row) == held // 8 for loaded in load([lengths], budgets, 2) for row in loaded.rows)


def test_budgets_are_picked_for_it_beside_a_source_that_has_none(tmp_path):
    lengths = [lengths_of(tmp_path / "a", documents()), lengths_of(tmp_path / "b", [document(Text("ab" * 9))])]
    assert "beeps" not in lengths[1].columns
    budgets = choose_budgets(lengths, [1, 1], 96, 0, 0, SPEC.merge)
    assert budgets.names == (*FIRST, "beeps")
    assert budgets.get("beeps") % 64 == 0 < budgets.get("beeps")
    loaded = load(lengths, budgets)
    assert {piece.source for each in loaded for row in each.rows for piece in row} == {0, 1}
    assert any(each.batch.media["beeps"].segments.any() for each in loaded)
    more = row_bytes(budgets, SPEC) - row_bytes(Budgets(*budgets[:5]), SPEC)
    assert more == budgets.get("beeps") * (10 * 2 + 4 + 4)


def test_a_long_document_is_cut_between_them(tmp_path):
    lengths = lengths_of(tmp_path, [document(*(part for n in range(6) for part in (Text("ab"), beeps(90, n))))])
    assert count_long(lengths, limits(), "split").pieces == 3  # of 72 units, 24 a row
    (loaded,) = load([lengths], limits(), 1)
    assert [int((segments > 0).sum()) for segments in loaded.batch.media["beeps"].segments] == [24, 24]


def test_what_no_row_holds_is_named_with_its_budget(tmp_path):
    lengths = lengths_of(tmp_path, [document(Text("ab"), beeps(500), i=7)])
    with pytest.raises(UserError, match=r"record 7 has beeps of 52 beeps .*more than a row holds \(24 beeps, config"):
        Plan([lengths], [1.0], limits(), 1, 0)
    with pytest.raises(UserError, match="0 beeps"):
        Plan([lengths], [1.0], Budgets(*limits()[:5]), 1, 0)
    with pytest.raises(UserError, match="no example that fits"):
        Plan([lengths], [1.0], limits(), 1, 0, "drop")


def test_one_that_cannot_be_used_is_skipped_with_its_reason_and_advice(tmp_path):
    bad = [document(Beeps(b"abc"), Text("a"), i=9)]
    source = lengths_of(tmp_path / "a", [*documents(), *bad]).prepared
    assert '"reason": "odd bytes"' in (source.folder / "skipped.jsonl").read_text()
    with pytest.raises(UserError, match=r"1 odd bytes.*; samples are two bytes each"):
        lengths_of(tmp_path / "b", bad)


def test_one_that_turns_out_broken_leaves_padding_and_the_rest_as_it_is(tmp_path):
    broken = Beeps(np.array([3, -1], "<i2").tobytes())
    good = document(beeps(30), i=0)
    source = lengths_of(tmp_path, [good, document(beeps(10, 50), broken, i=1), document(beeps(20, 70), i=2)])
    rows = [[Piece(0, e, 0, int(source.tokens_E[e])) for e in range(3)]]
    loaded = Assembler([source], limits(), SPEC)(rows)
    alone = Assembler([source], limits(), SPEC)([[rows[0][0], rows[0][2]]])
    assert [tuple(skip) for skip in loaded.skipped] == [("made, record 1", "odd bytes", "beeps", 1)]
    for got, wanted in zip(loaded.batch.media["beeps"], alone.batch.media["beeps"], strict=True):
        np.testing.assert_array_equal(got, wanted)
    slots = loaded.batch.slots_BT[0]
    assert slots[slots != IGNORED].tolist() == alone.batch.slots_BT[0][alone.batch.slots_BT[0] != IGNORED].tolist()


def test_figures_have_it_by_name(tmp_path):
    lengths = lengths_of(tmp_path, documents())
    tally, viewer = Tally([lengths], limits()), Viewer([lengths], TEMPLATE, SPEC)
    shown = []
    for loaded in load([lengths], limits(), 3):
        tally.add(loaded)
        shown += [view for b in range(2) for view in viewer.row(loaded, b)]
    held = [sum(int(lengths.of("beeps")[view.piece.example]) for view in shown), int(tally.used_of("beeps").sum())]
    assert held[0] == held[1] > 0
    spans = [span for view in shown for span in view.spans if span.kind == "beeps"]
    assert sum(span.last - span.first for span in spans) == held[0] // 4
    assert over_budget(lengths, limits(beeps=8))["beeps"] == int((lengths.of("beeps") > 8).sum()) > 0


def test_a_folder_with_media_that_nobody_knows_is_refused(tmp_path, monkeypatch):
    folder = lengths_of(tmp_path, documents(count=3)).prepared.folder
    monkeypatch.delitem(table.MEDIA, "beeps")
    with pytest.raises(UserError, match="media that this version does not know, beeps"):
        Prepared(folder)


def test_budgets_are_a_tuple_with_names_that_pickles():
    for again in (pickle.loads(pickle.dumps(limits())), copy.deepcopy(limits()), Budgets(**limits()._asdict())):
        assert again == limits()
        assert (again.names, again.get("beeps")) == ((*FIRST, "beeps"), 24)
    assert json.dumps(limits()) == "[96, 72, 4, 96, 0, 24]"
    assert json.dumps(Budgets(1, 2, 3, 4)) == "[1, 2, 3, 4, 0]"
    assert Budgets.most([limits(), Budgets(100, 2, 3, 4)]) == Budgets(100, 72, 4, 96, beeps=24)
    with pytest.raises(TypeError, match="nothing takes of a budget 'hums'"):
        Budgets(1, 2, 3, 4, hums=5)


def test_every_medium_keeps_what_is_on_disk():
    kinds = {name: medium.kind for name, medium in table.MEDIA.items() if name in table.FIRST}
    assert kinds == {"image": 0, "features": 1, "image_tokens": -1}
    assert table.packed(Image(b"a")) == {"data": b"a"}
    for part in (Image(path="a"), Beeps(b"ab"), None):
        assert table.unpacked(table.packed(part)) == part
    assert "media" not in table.described(np.array([0, -1, 16]))
    with pytest.raises(ValueError, match="stored as"):
        table.unpacked({"medium": "hums"})
    with pytest.raises(ValueError, match="no medium has some of the kinds"):
        list(table.by_medium(np.array([0, -7])))


ASKS = ("data/packing/*", "data/prepare/*", "data/assemble", "data/layout", "data/loader", "data/media/headers")
ASKS += ("report/*", "training/evaluator", "inspect")
TELLS_APART = re.compile(
    r"from jaxmm\.data\.media\.(image|features|tokens) import"
    r"|from jaxmm\.data\.documents import .*\b(Image|Features|Tokens)\b"
    r"|image_kind_I(\[[^]]*\])?\)? *(==|!=|<|>)"
    r"|\b(needs|used|totals|budgets)\w*\[(:, *)?\d"
)


def test_nothing_that_asks_media_tells_them_apart_or_counts_columns():
    root = Path(jaxmm.__file__).parent
    sources = [path for pattern in ASKS for path in root.glob(f"{pattern}.py") if path.name != "pack.py"]  # any columns
    assert len(sources) > 30
    lines = [f"{path.name}: {line}" for path in sources for line in path.read_text().splitlines()]
    assert [line for line in lines if TELLS_APART.search(line)] == []


@pytest.mark.parametrize(
    "line",
    [
        "if prepared.image_kind_I[3] == 0:",
        "needs[:, 1] = 5",
        "source.totals[0]",
        "from jaxmm.data.media.tokens import TOKENS",
    ],
)
def test_a_line_that_does_is_found(line):
    assert TELLS_APART.search(line)
