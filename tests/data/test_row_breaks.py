"""Text between the rows of an image: counted, laid out, and never learnt."""

from __future__ import annotations

import io

import numpy as np
import pytest
from conftest import picture, plain

from jaxmm.batch import IGNORED
from jaxmm.data.assemble import Assembler
from jaxmm.data.documents import Features
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.plan import Budgets, Piece
from jaxmm.data.prepare.index import InMemory
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec

SPEC = ImageSpec(patch_size=4, merge=2, min_pixels=1, max_pixels=32 * 32, by_longest=True, row_break="\n")


def test_a_break_stands_after_each_row_of_soft_tokens_but_the_last_and_is_no_target():
    template = Template(load_tokenizer(""), "pretrain")
    images = [picture(20, 32, 1), picture(8, 24, 2), picture(64, 32, 3)]  # (3, 4), (1, 3) and (4, 2) soft tokens
    documents = [plain("ab", images[0], "c", images[1], "d"), plain(images[2], "e")]
    encoded = [template.encode(document) for document in documents]
    source = InMemory("made", encoded, [images[:2], images[2:]], template.fingerprint)
    lengths, without = Lengths(source, SPEC, encode=template.stamp), Lengths(source, ImageSpec(4, 2, 1, 1024))
    assert lengths.slots().tolist() == [12, 3, 8]
    assert lengths.inner_I.tolist() == [2, 0, 3]
    assert (lengths.tokens_E - lengths.prepared.tokens_E).tolist() == [12 + 2 + 3, 8 + 3]
    row = [Piece(0, e, 0, int(lengths.tokens_E[e])) for e in (0, 1)]
    loaded = Assembler([lengths], Budgets(tokens=64, patches=128, items=3, targets=64), SPEC)([row])
    assert not loaded.skipped
    batch = loaded.batch
    slots, tokens, weights = batch.slots_BT[0], batch.text.values[0], batch.weights_BT[0]
    (new_line,) = template.stamp("\n")
    inside = np.flatnonzero((tokens == new_line) & (slots == IGNORED))
    is_soft = slots != IGNORED
    assert [int(is_soft[:at].sum()) for at in inside] == [4, 8, 17, 19, 21]  # 15 of the first two images
    assert (slots[is_soft] == np.arange(23)).all()
    assert not weights[inside - 1].any(), "nothing predicts a break"
    assert without.inner_I.sum() == 0
    assert without.spec.key() == [4, 2, 1, 1024, 0, 1, 1, False, "bicubic", False, 0, 0, 1, False]


def test_vectors_in_place_of_images_are_one_line():
    template = Template(load_tokenizer(""), "pretrain")
    file = io.BytesIO()
    np.save(file, np.zeros((2, 2, 4), np.float32))
    vectors = Features(data=file.getvalue())
    source = InMemory("made", [template.encode(plain("ab", vectors))], [[vectors]], template.fingerprint)
    with pytest.raises(UserError, match="has feature vectors in place of images, but this model has"):
        Lengths(source, SPEC, encode=template.stamp)


def test_an_image_of_squares_has_no_rows():
    with pytest.raises(ValueError, match="text between its rows"):
        ImageSpec(patch_size=4, merge=2, max_pixels=256, side=16, row_break="\n")
