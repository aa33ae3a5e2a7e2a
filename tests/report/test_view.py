"""What a page shows is what the arrays hold: text, targets, pictures and places; arrays that disagree are told."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
from conftest import IMAGE, chat, picture, plain, random_documents

from jaxmm.data.assemble import Assembler, Loaded
from jaxmm.data.documents import Features, Image, Tokens
from jaxmm.data.media import geometry, table
from jaxmm.data.media import picture as media
from jaxmm.data.packing.plan import Budgets, Lengths, Piece, cut
from jaxmm.data.prepare.index import InMemory
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.report.tally import SourceSums, Tally, over_budget
from jaxmm.report.view import Viewer, places

BUDGETS = Budgets(tokens=128, patches=144, items=6, targets=128)


def whole(lengths, *examples: int) -> list[Piece]:
    return [Piece(0, e, 0, int(lengths.tokens_E[e])) for e in examples]


def loaded(lengths, *rows: list[Piece]) -> Loaded:
    return Assembler([lengths], BUDGETS, IMAGE)(list(rows))


def test_text_targets_and_special_tokens_are_those_of_the_record(template, lengths_of):
    lengths = lengths_of([plain("éa first</s>"), chat(("What <|user|> is it?",), "A — dash")])
    batch = loaded(lengths, whole(lengths, 0, 1))
    first, second = Viewer([lengths], template, IMAGE).row(batch, 0)
    # The first token is predicted by nothing, and a character whose bytes are parted goes with what follows.
    assert [(s.kind, s.text, s.is_target) for s in first.spans] == [
        ("text", "", False),
        ("text", "éa first</s>", True),
        ("special", "</s>", True),
    ]
    assert [(s.kind, s.text, s.is_target) for s in second.spans] == [
        ("special", "<|user|>", False),
        ("text", "What <|user|> is it?", False),
        ("special", "<|end|>", False),
        ("special", "<|assistant|>", False),
        ("text", "A — dash", True),
        ("special", "<|end|>", True),
    ]
    assert (first.name, second.name, second.origin) == ("made/0", "made/1", "made, record 1")
    assert (second.place[0], second.positions[0]) == (first.place[1], 0)
    assert second.targets == len("A — dash".encode()) + 1
    assert second.weights == [1.0]


def test_spans_and_places_cover_a_row_without_gap_or_overlap(template, lengths_of):
    lengths = lengths_of(random_documents(12, seed=3))
    rows = [[piece] for e in range(12) for piece, _ in cut(lengths, 0, e, BUDGETS)]
    batch = loaded(lengths, *rows)
    for b, row in enumerate(rows):
        (view,) = Viewer([lengths], template, IMAGE).row(batch, b)
        assert [view.place] == places(row)
        ends = [0, *(span.last for span in view.spans)]
        assert [span.first for span in view.spans] == ends[:-1]
        assert ends[-1] == view.place[1] == int((batch.batch.text.segments[b] > 0).sum())


def test_a_picture_is_shown_as_the_tower_gets_it(template, lengths_of):
    images = [picture(11, 23, seed=1), picture(40, 9, seed=2)]
    lengths = lengths_of([plain("x"), plain("a", images[0], "b", images[1])])
    _, view = Viewer([lengths], template, IMAGE).row(loaded(lengths, whole(lengths, 0, 1)), 0)
    assert len(view.pictures) == 2
    patch = 0
    for given, shown in zip(images, view.pictures, strict=True):
        rows, columns = geometry.grid_size(*media.image_size(given), IMAGE)
        size = columns * IMAGE.patch_size, rows * IMAGE.patch_size
        resized = media.decode(given).resize(size, PIL.Image.Resampling.BICUBIC)
        assert (shown.rows, shown.columns, shown.patch) == (rows, columns, patch)
        np.testing.assert_array_equal(shown.pixels, np.asarray(resized))
        patch += rows * columns


def test_a_document_that_became_padding_says_why(template, lengths_of):
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(file, "PNG")
    lengths = lengths_of([plain("a"), plain(Image(data=file.getvalue()[:200])), plain("b")])
    batch = loaded(lengths, whole(lengths, 0, 1, 2))
    before, lost, after = Viewer([lengths], template, IMAGE).row(batch, 0)
    assert lost.skipped in table.reasons()
    assert (lost.spans, before.skipped, after.text) == ([], "", "b")
    assert before.place[1] == lost.place[0]
    assert lost.place[1] == after.place[0]
    tally = Tally([lengths], BUDGETS)
    tally.add(batch)
    assert tally.total.documents == 2
    assert len(tally.skipped) == 1


def test_ready_made_media_are_named_in_their_places(lengths_of):
    template = Template(load_tokenizer(""), "sft", 16, True)
    file = io.BytesIO()
    np.save(file, np.ones((2, 4, 16), np.float32))
    parts = "a", Features(data=file.getvalue()), Tokens((3,) * 12), "b"
    source = InMemory("made", [template.encode(plain(*parts))], [parts[1:3]], template.fingerprint)
    lengths = Lengths(source, IMAGE)
    budgets = BUDGETS._replace(features=16)
    batch = Assembler([lengths], budgets, IMAGE)([whole(lengths, 0)])
    (view,) = Viewer([lengths], template, IMAGE).row(batch, 0)
    start, end = ("special", "<|image_start|>", False), ("special", "<|image_end|>", False)
    assert [(s.kind, s.text, s.is_target) for s in view.spans] == [
        ("text", "a", False), start, ("features", "", False), end,
        start, ("tokens", "12 image tokens: 3 3 3 3 3 3 3 3 ...", True), end,
        ("text", "b", True), ("special", "</s>", True),
    ]  # fmt: skip
    tally = Tally([lengths], budgets)
    tally.add(batch)
    assert tally.used.tolist() == [[*lengths.all_needs[0, :3], int(lengths.targets_E[0]) - 1, 8]]  # "a" has no place
    assert (tally.total.images, tally.total.patches, tally.total.soft) == (1, 0, 2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda batch: batch.targets_BT.__setitem__((0, 3), 1), "target"),
        (lambda batch: batch.text.segments.__setitem__((0, 3), 2), "segments"),
        (lambda batch: batch.patches.segments.__setitem__((0, 0), 0), "tile"),
        (lambda batch: batch.patches.positions.__setitem__((0, 0), batch.patches.positions[0, 1]), "overlap"),
        (lambda batch: batch.slots_BT.__setitem__((0, slice(None)), np.maximum(batch.slots_BT[0] - 1, -1)), "tile"),
    ],
)
def test_arrays_that_disagree_are_not_shown_as_if_they_agreed(change, told, template, lengths_of):
    lengths = lengths_of([plain("some text", picture(24, 24), "more")])
    batch = loaded(lengths, whole(lengths, 0))
    change(batch.batch)
    with pytest.raises(ValueError, match=told):
        Viewer([lengths], template, IMAGE).row(batch, 0)


def test_sums_are_those_of_the_plan(lengths_of):
    one = lengths_of(random_documents(8, seed=1), "one")
    two = lengths_of([plain("word " * 80), plain(picture(20, 20), "x" * 200)], "two")
    pieces = [Piece(0, e, 0, int(one.tokens_E[e])) for e in range(8) if (one.needs(np.array([e])) <= BUDGETS).all()]
    pieces += [piece for e in range(2) for piece, _ in cut(two, 1, e, BUDGETS)]
    tally = Tally([one, two], BUDGETS)
    tally.add(Assembler([one, two], BUDGETS, IMAGE)([[piece] for piece in pieces]))
    assert tally.lengths.tolist() == [piece.last - piece.first for piece in pieces]
    assert (tally.used[:, 0] == tally.lengths).all()
    chosen = [piece.example for piece in pieces if piece.source == 0]
    text = int(one.prepared.tokens_E[chosen].sum())
    first_tokens = sum(bool(one.prepared.run_flags_R[one.prepared.runs_E1[e]]) for e in chosen)  # nothing predicts them
    assert tally.sources[0] == SourceSums(
        documents=len(chosen),
        text=text,
        soft=int(one.tokens_E[chosen].sum()) - text,
        targets=int(one.targets_E[chosen].sum()) - first_tokens,
        images=int(one.items_E[chosen].sum()),
        patches=int(one.patches_E[chosen].sum()),
    )
    assert tally.sources[1].images == 1
    assert tally.sources[1].tokens == int(two.tokens_E.sum())
    parts = [piece.example for piece in pieces if piece.source == 1]
    assert tally.parts == {(1, e, 0): parts.count(e) for e in (0, 1)}
    assert min(tally.parts.values()) > 1
    assert over_budget(two, BUDGETS) == {"tokens": 2, "patches": 0, "images": 0, "targets": 2, "any": 2}
