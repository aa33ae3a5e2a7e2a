"""Ready-made media: image tokens and feature vectors, from a record to the batch that a model gets."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from conftest import IMAGE, picture, plain, rows_of
from made import source_of

from jaxmm.batch import IGNORED, TARGET
from jaxmm.data.assemble import Assembler, Loaded
from jaxmm.data.documents import Document, Features, Skip, Text, Tokens, Turn
from jaxmm.data.media import table
from jaxmm.data.media.extents import Extent
from jaxmm.data.media.features import FeaturesMedium, read_vectors
from jaxmm.data.packing.budgets import choose_budgets
from jaxmm.data.packing.pieces import count_long, cut
from jaxmm.data.packing.plan import Budgets, Lengths, Plan
from jaxmm.data.prepare.index import InMemory
from jaxmm.data.prepare.prepare import prepare
from jaxmm.data.prepare.prepared import Prepared
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.errors import UserError

WIDTH = 16
BUDGETS = Budgets(tokens=96, patches=96, items=4, targets=96, features=64)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def vectors(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*shape, WIDTH)).astype(dtype)


def template_of(codebook: int, predict: bool = False, objective: str = "sft") -> Template:
    return Template(load_tokenizer(""), objective, codebook, predict)


def drawn(question: tuple, *answer: Any) -> Document:
    return Document((Turn("user", question, False), Turn("assistant", answer, True)), "made, record 0")


def load(lengths: Lengths, *rows: list[int], budgets: Budgets = BUDGETS) -> Loaded:
    return Assembler([lengths], budgets, IMAGE)(rows_of(lengths, *rows))


# Discrete image tokens


@pytest.mark.parametrize("predict", [False, True])
def test_image_tokens_stand_between_separators_and_are_targets_where_asked(predict):
    template = template_of(8, predict)
    encoded = template.encode(drawn((Tokens((5,)), Text("a")), Tokens((7, 0)), Text("b")))
    first, start, end = template.codebook.offset, template.own.image_start_id, template.own.image_end_id
    assert template.vocab_size == first + 8
    flags = np.repeat(encoded.run_flags, np.diff(np.append(encoded.run_starts, len(encoded.tokens))))
    a, b = ord("a") + 3, ord("b") + 3
    user, assistant, stop = template.own.role_ids["user"], template.own.role_ids["assistant"], template.end_id
    answer = [start, first + 7, first, end, b, stop]
    assert encoded.tokens.tolist() == [user, start, first + 5, end, a, stop, assistant, *answer]
    assert encoded.tokens[encoded.image_at].tolist() == [first + 5, first + 7]
    learnt = [first + 7, first, b, stop] if predict else [b, stop]
    assert (
        encoded.tokens[(flags & TARGET) > 0].tolist() == learnt
    )  # the question's are read, and separators never learnt
    assert template.decode(encoded.tokens) == "ab"


def test_a_page_of_image_tokens_is_learnt_in_pretraining():
    template = template_of(4, True, "pretrain")
    encoded = template.encode(plain("x", Tokens((1, 2, 3))))
    flags = np.repeat(encoded.run_flags, np.diff(np.append(encoded.run_starts, len(encoded.tokens))))
    first = template.codebook.offset
    learnt = encoded.tokens[(flags & TARGET) > 0].tolist()
    assert learnt == [ord("x") + 3, first + 1, first + 2, first + 3, template.eos_id]


@pytest.mark.parametrize(
    ("codebook", "ids", "message"),
    [
        (0, (1,), r"record 0 has image tokens, but config\.data\.image_tokens is 0"),
        (8, (1, 8), r"record 0 has the image token 8, .* ids are 0 to 7"),
        (8, (-1,), "the image token -1"),
    ],
)
def test_an_id_that_the_codebook_lacks_is_one_line(codebook, ids, message):
    with pytest.raises(UserError, match=message):
        template_of(codebook).encode(drawn((Tokens(ids),), Text("b")))


def test_predicting_needs_a_codebook():
    with pytest.raises(UserError, match=r"needs config\.data\.image_tokens"):
        template_of(0, True)


def test_the_codebook_is_part_of_the_fingerprint():
    made = {template_of(n, predict).fingerprint for n, predict in ((0, False), (8, False), (9, False), (8, True))}
    assert len(made) == 4


@hypothesis.given(st.integers(0, 1 << 30))
def test_split_documents_keep_every_run_of_image_tokens_in_one_piece(seed):
    rng = np.random.default_rng(seed)
    template = template_of(512, True)
    parts: list[Any] = []
    for _ in range(rng.integers(2, 6)):
        parts += ["w" * int(rng.integers(1, 40)), Tokens(tuple(rng.integers(0, 512, rng.integers(1, 30)).tolist()))]

    media_of = [[part for part in parts if isinstance(part, Tokens)]]
    source = Lengths(InMemory("made", [template.encode(plain(*parts))], media_of, ""), IMAGE)
    budgets = Budgets(tokens=48, patches=16, items=1, targets=40)
    pieces = [piece for piece, _ in cut(source, 0, 0, budgets)]
    loaded = Assembler([source], budgets, IMAGE)([[piece] for piece in pieces])
    whole = []
    for b, piece in enumerate(pieces):
        values = loaded.batch.text.values[b, : piece.last - piece.first]
        is_start, is_end = values == template.own.image_start_id, values == template.own.image_end_id
        assert is_start.sum() == is_end.sum()
        assert (np.cumsum(is_start) - np.cumsum(is_end) >= 0).all()
        whole += values.tolist()
        assert (loaded.batch.weights_BT[b] > 0).sum() <= budgets.targets
    assert whole == template.encode(plain(*parts)).tokens.tolist()


def test_a_run_of_image_tokens_longer_than_a_row_is_one_line():

    template, tokens = template_of(8), Tokens((1,) * 60)
    source = Lengths(InMemory("made", [template.encode(plain(tokens, "x"))], [[tokens]], ""), IMAGE)
    with pytest.raises(UserError, match=r"record 0 has 60 image tokens \(62 tokens\).*raise config\.seq_len"):
        count_long(source, Budgets(tokens=48, patches=16, items=1, targets=48), "split")


# Feature vectors


def test_features_of_a_grid_stand_in_tower_order_after_the_patches(lengths_of):
    grid, flat = vectors(2, 4), vectors(4, seed=1)
    documents = [
        plain("a", Features(data=npy(grid)), picture(8, 8), Features(data=npy(flat))),
        plain(picture(8, 8), "b"),
    ]
    source = lengths_of(documents)
    assert source.needs(np.arange(2)).tolist() == [[1 + 2 + 2 + 2 + 1 + 2 + 1 + 1, 4, 1, 2, 12], [5, 4, 1, 2, 0]]
    batch = load(source, [0, 1]).batch
    assert batch.features is not None
    # Groups of 2 x 2 side by side.
    wanted = np.concatenate([grid[:, :2].reshape(4, WIDTH), grid[:, 2:].reshape(4, WIDTH), flat])
    np.testing.assert_array_equal(batch.features.values[0, :12], wanted)
    assert batch.features.segments[0].tolist() == [1] * 8 + [2] * 4 + [0] * 52
    after = BUDGETS.patches // 4
    slots = batch.slots_BT[0]
    assert slots[slots != IGNORED].tolist() == [after, after + 1, 0, after + 2, 1]
    assert batch.grids_BM3[0, :, 0].tolist() == [1, 1, 0, 0]


def test_without_features_a_batch_has_no_array_for_them(lengths_of):
    source = lengths_of([plain(picture(8, 8), "b")])
    budgets = choose_budgets([source], [1.0], 64, 0, 0, IMAGE.merge)
    assert budgets.features == 0
    assert load(source, [0], budgets=budgets).batch.features is None


def test_a_budget_for_features_is_picked_and_kept(lengths_of):
    rng = np.random.default_rng(0)
    documents = [plain("w" * int(rng.integers(1, 60)), Features(data=npy(vectors(2, 6)))) for _ in range(40)]
    source = lengths_of(documents)
    budgets = choose_budgets([source], [1.0], 128, 0, 0, IMAGE.merge)
    assert budgets.features > 0
    assert budgets.features % 4 == 0
    plan = Plan([source], [1], budgets, 4, 0)
    for k in range(3):
        loaded = Assembler([source], budgets, IMAGE)(plan.batch(k))
        assert not loaded.skipped


def test_features_that_do_not_merge_are_one_line(lengths_of):
    with pytest.raises(UserError, match=r"made has feature vectors of 3 x 4, which do not merge by 2 x 2"):
        lengths_of([plain(Features(data=npy(vectors(3, 4))), "x")])
    with pytest.raises(UserError, match=r"6 x 1, which do not merge"):
        lengths_of([plain(Features(data=npy(vectors(6))), "x")])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("fortran", [False, True])
def test_files_of_any_float_are_read_from_bytes_and_paths(tmp_path, dtype, fortran):
    found = vectors(2, 4, dtype=dtype)
    data = npy(np.asfortranarray(found) if fortran else found)
    (tmp_path / "a.npy").write_bytes(data)
    for features in (Features(data=data), Features(path=str(tmp_path / "a.npy"))):
        assert FeaturesMedium().extent(features) == Extent(2, 4, WIDTH)
        read = read_vectors(features, IMAGE, Extent(2, 4, WIDTH))
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read[:4], found[:, :2].reshape(4, WIDTH).astype(np.float32))


BAD = {
    "no features": [b"no array", npy(np.zeros((4, 4), int)), npy(np.zeros(4)), npy(np.zeros((0, 4))),
                    npy(np.array([None, 1], object)), b"\x93NUMPY\x09\x00", npy(np.zeros((1, 1, 1, 1)))],
    "truncated": [npy(vectors(2, 4))[:-1]],
}  # fmt: skip


@pytest.mark.parametrize(("reason", "data"), [(reason, data) for reason, all_ in BAD.items() for data in all_])
def test_a_bad_file_is_a_skip_of_a_closed_list(tmp_path, reason, data):
    good = [plain(Features(data=npy(vectors(2, 2))), str(i)) for i in range(4)]
    documents = [*good, plain(Features(data=data), "x", origin="made, record 9")]
    prepared = Prepared(prepare(source_of(documents), template_of(0), tmp_path))
    assert reason in table.reasons()
    assert (prepared.folder / "skipped.jsonl").read_text().count(f'"{reason}"') == 1
    assert len(prepared) == 4
    assert prepared.meta["feature_widths"] == [WIDTH]


def test_a_file_that_goes_bad_after_planning_becomes_padding_and_nothing_moves(tmp_path, lengths_of):
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", vectors(2, 4))
    documents = [plain(picture(8, 8), Features(path=str(tmp_path / f"{n}.npy")), n, origin=n) for n in "abc"]
    source = lengths_of(documents)
    before = load(source, [0, 2]).batch
    broken = vectors(2, 4)
    broken[1, 1, 3] = np.nan
    for content, reason in ((vectors(4, 2), "changed"), (broken, "not finite"), (None, "missing")):
        (tmp_path / "b.npy").unlink()
        if content is not None:
            np.save(tmp_path / "b.npy", content)
        loaded = load(source, [0, 1, 2])
        assert [skip.reason for skip in loaded.skipped] == [reason]
        features, patches = loaded.batch.features, loaded.batch.patches
        assert features is not None
        assert before.features is not None
        np.testing.assert_array_equal(features.values, before.features.values)
        np.testing.assert_array_equal(features.segments, before.features.segments)
        np.testing.assert_array_equal(patches.values, before.patches.values)
        np.testing.assert_array_equal(loaded.batch.grids_BM3, before.grids_BM3)
        size = int(source.tokens_E[0])
        assert not loaded.batch.weights_BT[0, size : 2 * size].any()
        np.testing.assert_array_equal(
            loaded.batch.slots_BT[0, 2 * size : 3 * size], before.slots_BT[0, size : 2 * size]
        )
        if content is None:
            np.save(tmp_path / "b.npy", vectors(2, 4))


def test_prepared_media_read_back_as_they_were(tmp_path):
    np.save(tmp_path / "a.npy", vectors(2, 4))
    features = [Features(path=str(tmp_path / "a.npy")), Features(data=npy(vectors(8)))]
    document = plain(features[0], Tokens((3, 1)), picture(8, 16), features[1], "x")
    prepared = Prepared(prepare(source_of([document]), template_of(4), tmp_path / "cache"))
    record = prepared.read(0)
    assert record.images == [features[0], None, picture(8, 16), features[1]]
    assert prepared.image_kind_I.tolist() == [WIDTH, -1, 0, WIDTH]
    assert prepared.image_height_I.tolist() == [2, 1, 8, 8]
    assert prepared.image_width_I.tolist() == [4, 2, 16, 1]
    told = json.loads((prepared.folder / "report.json").read_text())
    assert {name: (one["documents"], one["images"], one["pixels"]) for name, one in told["modalities"].items()} == {
        "text": (0, 0, 0), "image": (0, 1, 128), "features": (1, 2, 0), "image_tokens": (0, 1, 0)
    }  # fmt: skip
    assert sum(count for _, count in told["image_pixels"]) == 1


# Records


@pytest.fixture
def folder(tmp_path: Path):
    from readers.reading import Folder

    return Folder(tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        {"text": "a<image>b<image>", "image_tokens": [[1], [2, 3]]},
        {"text": "a<image>b<image>", "features": ["1", "2"], "image_tokens": [[1], [2, 3]]},  # somebody else's column
        {"messages": [{"role": "document", "content": [
            {"type": "text", "text": "a"}, {"type": "image_tokens", "ids": [1]},
            {"type": "text", "text": "b"}, {"type": "image_tokens"},
        ]}], "image_tokens": [[2, 3]]},
    ],
)  # fmt: skip
def test_image_tokens_are_read_from_columns_and_typed_parts(folder, record):
    from readers.reading import only

    (turn,) = only(folder.source([record])).turns
    assert turn == Turn("document", (Text("a"), Tokens((1,)), Text("b"), Tokens((2, 3))), True)


def test_features_follow_the_rules_of_paths(folder, tmp_path):
    inside = {"text": "<image>x", "features": "a/1.npy"}
    outside = {"text": "<image>x", "features": ["../1.npy"]}
    first, second = folder.source([inside, outside]).documents()
    assert first.turns[0].parts[0] == Features(path=str(tmp_path / "a/1.npy"))
    assert isinstance(second, Skip)
    assert second.reason == "outside"
    (allowed,) = folder.source([outside], follow_outside=True).documents()
    assert allowed.turns[0].parts[0] == Features(path=str(tmp_path.parent / "1.npy"))


@pytest.mark.parametrize("ids", [["a"], [], [1.5], [True], None])
def test_ids_that_are_none_are_one_line(folder, ids):
    from readers.reading import refused

    part = {"type": "image_tokens", "ids": ids}
    record = {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "x"}]}
    assert "list of ids" in refused(folder.source([record])) or not ids
