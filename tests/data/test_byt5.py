"""ByT5's tokenizer against the one of ``transformers``."""

from __future__ import annotations

import pickle

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from jaxmm.data.documents import Document, Image, Turn
from jaxmm.data.text import template as text
from jaxmm.data.text.byt5 import ByT5Tokenizer
from jaxmm.data.text.chat import Markup
from jaxmm.data.text.tokenizer import _Bytes, text_encoder

ADDED = ["<|image_start|>", "<|end|>"]
OURS, THEIRS = ByT5Tokenizer(), transformers.ByT5Tokenizer()
for tokenizer in (OURS, THEIRS):
    tokenizer.add_tokens(ADDED, special_tokens=True)


def test_names_and_ids_are_those_of_transformers():
    assert len(OURS) == len(THEIRS) == 384 + len(ADDED)
    assert OURS.get_vocab() == THEIRS.get_vocab()
    assert OURS.get_added_vocab() == THEIRS.get_added_vocab()
    for name in ("bos_token", "eos_token", "bos_token_id", "eos_token_id", "pad_token_id", "is_fast"):
        assert getattr(OURS, name) == getattr(THEIRS, name), name
    names = [*ADDED, "a", "no token of it", "<extra_id_7>"]
    assert OURS.convert_tokens_to_ids(names) == THEIRS.convert_tokens_to_ids(names)
    assert [OURS.convert_ids_to_tokens(i) for i in range(len(OURS))] == THEIRS.convert_ids_to_tokens(range(len(OURS)))
    assert set(THEIRS.all_special_ids) <= set(OURS.all_special_ids), "theirs does not count what was added later"


def test_one_read_from_a_folder_is_as_fast():
    for tokenizer in (OURS, THEIRS):
        assert isinstance(text_encoder(tokenizer), _Bytes)
    assert [list(ids) for ids in text_encoder(THEIRS)(["é </s>", ADDED[0]])] == [
        list(ids) for ids in text_encoder(OURS)(["é </s>", ADDED[0]])
    ]


@given(st.text(min_size=1), st.booleans())  # of no text with split_special_tokens, theirs forgets the end
def test_text_is_the_same_ids(written, ends):
    ids = OURS.encode(written, add_special_tokens=ends)
    assert ids.tolist() == THEIRS.encode(written, add_special_tokens=ends, split_special_tokens=True)
    assert OURS.decode(ids, skip_special_tokens=True) == written


@given(st.lists(st.integers(0, len(OURS) - 1)), st.booleans())
def test_ids_are_the_same_text(ids, skip):
    options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": False}
    assert OURS.decode(ids, **options) == THEIRS.decode(ids, **options)


def test_tokens_are_added_once_and_only_special_ones():
    tokenizer = ByT5Tokenizer()
    assert tokenizer.add_tokens([*ADDED, *ADDED, "<pad>"], special_tokens=True) == 2
    with pytest.raises(ValueError, match="only special tokens"):
        tokenizer.add_tokens(["word"])
    assert pickle.loads(pickle.dumps(tokenizer)).get_vocab() == tokenizer.get_vocab()
    assert tokenizer.as_transformers().get_vocab() == tokenizer.get_vocab()


def test_what_stands_around_images_may_be_text_or_nothing():
    for around in ("", "<", "[img]"):
        template = text.Template(ByT5Tokenizer(), "pretrain", markup=Markup(around, ""))
        assert template.encode(Document((Turn("document", (Image(data=b""),), True),), "test")).tokens.tolist() == [
            *(ord(letter) + OURS.offset for letter in around), OURS.eos_token_id
        ]  # fmt: skip


@pytest.mark.parametrize("objective", text.OBJECTIVES)
def test_what_was_prepared_by_the_tokenizer_of_transformers_stays_good(objective):
    found = [text.Template(t(), objective).fingerprint for t in (ByT5Tokenizer, transformers.ByT5Tokenizer)]
    assert found[0] == found[1]
