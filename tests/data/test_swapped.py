"""Swapped sources: the text and the number of media stay, and no medium is of its own example."""

from __future__ import annotations

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from conftest import IMAGE, chat, picture, plain
from made_index import BUDGETS, Made, made, texts

from jaxmm.clip_spec import VideoSpec
from jaxmm.data.media.audio import AUDIO
from jaxmm.data.media.table import MODALITIES
from jaxmm.data.media.tokens import TOKENS
from jaxmm.data.media.video import VIDEO
from jaxmm.data.packing.limits import Budgets
from jaxmm.data.packing.modalities import modality_codes, modality_name
from jaxmm.data.packing.plan import Lengths, Pass
from jaxmm.data.packing.swapped import NEAR, Swap, swap
from jaxmm.data.prepare.index import COLUMNS

WIDE = Budgets(tokens=4096, patches=4096, items=256, targets=4096, features=4096)


def owners(lengths: Lengths) -> np.ndarray:
    return np.repeat(np.arange(len(lengths)), np.diff(lengths.prepared.images_E1))


def assert_is_swapped(lengths: Lengths, one: Swap, modality: str) -> None:
    """What holds of every swapped source."""
    before, after = lengths.prepared, one.lengths.prepared
    kept = [name for name in COLUMNS if name in ("tokens_E", "labels_E", "image_at_I") or "run" in name or "E1" in name]
    for name in (*kept, "image_kind_I"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=name)
    owner, from_I = owners(lengths), after.from_I  # type: ignore[attr-defined]
    moved = from_I != np.arange(len(from_I))
    assert (owner[from_I] != owner)[moved].all(), "no medium of its own example"
    np.testing.assert_array_equal(after.image_height_I, before.image_height_I[from_I])
    np.testing.assert_array_equal(one.lengths.slots(), lengths.slots()[from_I])
    is_own = {"image": before.image_kind_I >= 0, "video": before.image_kind_I == VIDEO}[modality]
    assert not moved[~is_own].any(), "media of others stay"
    whole = np.bincount(owner, is_own & ~moved, len(lengths)) == 0
    assert not (one.is_swapped_E & ~whole).any(), "all media of a swapped document are others"
    assert not (one.is_swapped_E & ~one.has_E).any()


@hypothesis.given(st.integers(0, 1 << 30), st.booleans(), st.sampled_from([WIDE, BUDGETS._replace(features=96)]))
def test_counts_and_text_stay_and_no_medium_is_of_its_own_example(seed, ready, budgets):
    lengths = made(seed, examples=int(np.random.default_rng(seed).integers(1, 60)), ready=ready)
    one = swap(lengths, "image", budgets)
    assert_is_swapped(lengths, one, "image")
    again = swap(lengths, "image", budgets)
    np.testing.assert_array_equal(again.lengths.prepared.from_I, one.lengths.prepared.from_I)  # type: ignore[attr-defined]
    fitted = ~lengths.is_long(lengths.all_needs, budgets)
    outgrown = fitted & one.lengths.is_long(one.lengths.all_needs, budgets)
    assert not (outgrown & one.is_swapped_E).any(), "what fitted a row fits it still"


@pytest.mark.parametrize("seed", range(3))
def test_documents_stay_of_about_the_same_length(seed):
    lengths = made(seed, examples=400)
    one = swap(lengths, "image", WIDE)
    change = one.lengths.tokens_E.astype(int) - lengths.tokens_E
    assert one.is_swapped_E.sum() == one.has_E.sum() > 200
    assert abs(change.mean()) < 0.1
    assert np.abs(change).max() <= 2


def test_a_document_that_would_outgrow_its_row_takes_what_is_no_larger():
    budgets = Budgets(tokens=30, patches=96, items=4, targets=48)
    # Between sizes of 1, 4 and 9 soft tokens only those of 4 have a full row.
    sizes = [(8, 8)] * 3 + [(16, 16)] * 2 + [(24, 24)] * 3
    tokens = [10] * 3 + [26] * 2 + [10] * 3
    lengths = Lengths(Made("full", tokens, [[(3, *size)] for size in sizes], [[(0, 1)]] * 8), IMAGE)
    assert lengths.tokens_E[3:5].tolist() == [30, 30]
    one = swap(lengths, "image", budgets)
    assert one.is_swapped_E.all()
    assert (one.lengths.tokens_E <= 30).all()
    tight = Lengths(Made("tight", [26, 10], [[(3, 8, 8)], [(3, 24, 24)]], [[(0, 1)]] * 2), IMAGE)
    assert swap(tight, "image", budgets).is_swapped_E.tolist() == [False, True], "nothing fits the first"


def test_pictures_of_one_size_that_may_be_the_same_one_are_not_partners_where_others_are_near():
    """Several questions about each picture: what stands next to it in the order of sizes is mostly itself."""
    shapes = [(200 + n // 5, 300 + n // 5) for n in range(100)]
    lengths = Lengths(Made("asked", [10] * 100, [[(3, *shape)] for shape in shapes], [[(0, 1)]] * 100), IMAGE)
    after = swap(lengths, "image", WIDE).lengths.prepared
    same = [(h, w) == shape for h, w, shape in zip(after.image_height_I, after.image_width_I, shapes, strict=True)]
    assert not any(same)


def test_an_example_with_very_many_media_finds_partners_and_one_alone_is_left():
    many = [[(3, 16, 16)] * (3 * NEAR), [(3, 16, 16)], []]
    lengths = Lengths(Made("many", [10] * 3, many, [[(0, 1)]] * 3), IMAGE)
    assert swap(lengths, "image", WIDE).is_swapped_E.tolist() == [True, True, False]
    alone = Lengths(Made("alone", [10] * 2, [[(3, 16, 16)] * 2, []], [[(0, 1)]] * 2), IMAGE)
    one = swap(alone, "image", WIDE)
    assert (one.has_E.tolist(), one.is_swapped_E.tolist()) == ([True, False], [False, False])
    kinds = [[(3, 4, 4, 16)], [(3, 4, 4, 16)], [(3, 16, 16)]]  # vectors, vectors, and a picture
    mixed = Lengths(Made("mixed", [10] * 3, kinds, [[(0, 1)]] * 3), IMAGE)
    assert swap(mixed, "image", WIDE).is_swapped_E.tolist() == [True, True, False], "of the same kind alone"


def test_media_of_other_modalities_and_tokens_stay():
    spec = dataclasses.replace(IMAGE, video=VideoSpec(fps=2, min_pixels=64, max_pixels=256))
    images = [[(2, 16, 16), (4, 16, 16, VIDEO)], [(2, 8, 8), (4, 24, 16, VIDEO), (5, 1, 3, TOKENS)]]
    source = Made("both", [12, 12], images, [[(0, 1)]] * 2)
    source.media_count_I, source.media_rate_num_I, source.media_rate_den_I = (
        np.array(column) for column in ([0, 8, 0, 6, 0], [0, 2, 0, 2, 0], [0, 1, 0, 1, 0])
    )
    lengths = Lengths(source, spec)
    for modality in ("image", "video"):
        one = swap(lengths, modality, WIDE)
        assert_is_swapped(lengths, one, modality)
        assert one.is_swapped_E.all()
    codes = modality_codes(source, np.arange(2))
    assert [modality_name(code) for code in codes] == ["image+video", "image+image_tokens+video"]
    assert modality_codes(source, np.array([1, 0, 1])).tolist() == codes[[1, 0, 1]].tolist()
    assert MODALITIES == ("image", "image_tokens", "video", "audio")
    heard = Made("heard", [12, 9], [[(2, 1, 1, AUDIO)], []], [[(0, 1)]] * 2)
    assert [modality_name(code) for code in modality_codes(heard, np.arange(2))] == ["audio", "text"]


def test_the_content_that_is_read_is_the_partner_s(lengths_of):
    pictures = [picture(16, 16, n) for n in range(4)]
    documents = [
        chat((pictures[0], "and", pictures[1]), "a"),
        plain("text"),
        plain(pictures[2]),
        plain(pictures[3], "b"),
    ]
    lengths = lengths_of(documents)
    one = swap(lengths, "image", WIDE)
    seen = [one.lengths.prepared.read(e) for e in range(4)]
    own = [lengths.prepared.read(e) for e in range(4)]
    for e in range(4):
        np.testing.assert_array_equal(seen[e].tokens, own[e].tokens)
        assert seen[e].origin == own[e].origin
        assert not {image.data for image in seen[e].images} & {image.data for image in own[e].images}
        assert len(seen[e].images) == len(own[e].images)
    plan = Pass([one.lengths], WIDE, 1, which=lambda source: one.is_swapped_E)
    assert {piece.example for k in range(len(plan)) for row in plan.batch(k) for piece in row} == {0, 2, 3}


def test_only_the_first_examples_are_swapped_where_no_more_are_asked_for():
    lengths = made(7, examples=40)
    one = swap(lengths, "image", WIDE, examples=10)
    last = int(lengths.prepared.images_E1[10])
    assert (len(one.lengths), len(one.has_E), len(one.lengths.prepared.from_I)) == (10, 10, last)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(one.lengths.targets_E, lengths.targets_E[:10])
    np.testing.assert_array_equal(one.is_swapped_E, np.diff(lengths.prepared.images_E1)[:10] > 0)


def test_a_source_of_text_alone_has_nothing_to_swap():
    one = swap(texts([4, 5]), "image", WIDE)
    assert not one.has_E.any()
    assert not one.is_swapped_E.any()
