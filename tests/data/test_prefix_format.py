"""Prompts that are seen as a whole: what stands where, what is learnt, which positions are a block, what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from conftest import IMAGE, picture
from made_folders import byte_level_tokenizer

from jaxmm.batch import ANSWER, TARGET
from jaxmm.data.assemble import Assembler
from jaxmm.data.documents import Document, Text, Tokens, Turn
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.pieces import Piece
from jaxmm.data.packing.plan import Budgets
from jaxmm.data.prepare.index import InMemory
from jaxmm.data.text.chat import Markup
from jaxmm.data.text.chat_options import ChatOptions
from jaxmm.data.text.template import Template
from jaxmm.errors import UserError

PICTURE = picture(16, 16)
SPEC = dataclasses.replace(IMAGE, prefix=True)


def made(objective: str = "sft", **options: Any) -> Template:
    given = {"markup": Markup("", ""), "has_prefix": True, **options}
    return Template(byte_level_tokenizer("paligemma"), objective, **given)


def turns(*said: tuple[str, Any]) -> tuple[Turn, ...]:
    """("user", "text") or ("user", (part, "text", ...))."""
    found = []
    for role, parts in said:
        parts = parts if isinstance(parts, tuple) else (parts,)
        own = tuple(Text(part) if isinstance(part, str) else part for part in parts)
        found.append(Turn(role, own, role in ("document", "assistant")))
    return tuple(found)


def document(*said: tuple[str, Any]) -> Document:
    return Document(turns(*said), "test.json, record 3")


def shown(template: Template, encoded: Any) -> list[tuple[str, int]]:
    """Runs as text, special tokens shown, with their flags."""
    ends = [*encoded.run_starts[1:], len(encoded.tokens)]
    return [
        (template.tokenizer.decode(encoded.tokens[start:end].tolist()), int(flags))
        for start, end, flags in zip(encoded.run_starts, ends, encoded.run_flags, strict=True)
    ]


LEARNT = TARGET | ANSWER


ASKED = ((PICTURE, "Where is it?"), (PICTURE, "\nWhere is it?"), ("Where is it?\n", PICTURE),
         ("Where ", PICTURE, "is it?"))  # fmt: skip


@pytest.mark.parametrize("asked", ASKED)
def test_a_conversation_is_images_begin_question_and_a_line_s_end_and_only_its_answer_is_learnt(asked):
    template = made()
    encoded = template.encode(document(("user", asked), ("assistant", "<loc0000> there")))
    assert shown(template, encoded) == [("<bos>Where is it?\n", 0), ("<loc0000> there</s>", LEARNT)]
    assert encoded.image_at.tolist() == [0]
    assert template.tokenizer.convert_tokens_to_ids("<loc0000>") in encoded.tokens, "a word of its answers"
    assert template.stop_ids == (template.eos_id,)
    opened = template.encode_prompt(turns(("user", asked)))
    assert shown(template, opened) == [("<bos>Where is it?\n", 0)]
    begun = template.encode_prompt(turns(("user", asked), ("assistant", "the")))
    assert shown(template, begun) == [("<bos>Where is it?\n", 0), ("the", LEARNT)]
    assert "images stand first" in template.notes[0]


@pytest.mark.parametrize(
    ("objective", "said", "wanted"),
    [
        ("sft", [("document", (PICTURE, "\nA cat."))], [("<bos>\n", 0), ("A cat.</s>", TARGET)]),
        ("sft", [("document", "Just text.")], [("<bos>\n", 0), ("Just text.</s>", TARGET)]),
        ("sft", [("user", PICTURE), ("assistant", "A cat.")], [("<bos>\n", 0), ("A cat.</s>", LEARNT)]),
        ("sft", [("assistant", "A cat.")], [("<bos>\n", 0), ("A cat.</s>", LEARNT)]),
        ("pretrain", [("user", (PICTURE, "Who?")), ("assistant", "A cat.")],
         [("<bos>\n", 0), ("Who?\n", TARGET), ("A cat.</s>", LEARNT)]),
    ],
)  # fmt: skip
def test_what_has_no_question_has_a_prompt_of_images_alone(objective, said, wanted):
    template = made(objective)
    assert shown(template, template.encode(document(*said))) == wanted


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
         "record 3 has turns of user, assistant, user, assistant: this model takes one question and one answer"),
        ([("system", "be brief"), ("user", "a"), ("assistant", "b")], "turns of system, user, assistant: "),
        ([("user", "a"), ("assistant", (PICTURE, "b"))], "record 3 has images behind its first turn"),
        ([("document", ("a", PICTURE, "b"))], "record 3 has an image behind its text"),
    ],
)  # fmt: skip
def test_what_such_a_model_cannot_read_is_refused_with_its_record(said, told):
    with pytest.raises(UserError, match=told):
        made().encode(document(*said))


def test_options_that_a_whole_prompt_has_no_sense_for_are_refused():
    with pytest.raises(UserError, match=r"data\.learn=prompt: this model sees all of a prompt"):
        made(chat=ChatOptions(learn="prompt"))
    with pytest.raises(UserError, match="takes no discrete image tokens"):
        made(image_tokens=8)
    with pytest.raises(UserError, match="no bos_token"):
        Template(byte_level_tokenizer(), "sft", markup=Markup("", ""), has_prefix=True)
    with pytest.raises(UserError, match=r"image_tokens is 0"):
        made().encode(document(("user", (Tokens((1, 2)), "a")), ("assistant", "b")))


def test_a_prompt_is_one_block_from_its_first_position_to_its_line_s_end():
    """Of each document in a row, of both halves of a preference, and of a part of a long one as far as it is there."""
    template, asked = made(), [(PICTURE, "Where?"), "Who?"]
    answers = [turns(("user", asked[0]), ("assistant", said)) for said in ("Yes.", "No, no.")]
    pair = document()._replace(turns=answers[0], other=answers[1], verdict="better")
    documents = [document(("user", said), ("assistant", "Here.")) for said in asked]
    lengths = [
        Lengths(InMemory("made", list(map(template.encode, own)), media, template.fingerprint), SPEC)
        for own, media in ((documents, [[PICTURE], []]), ([pair], [[PICTURE]]))
    ]
    soft = int(lengths[0].slots()[0])
    row = [Piece(s, e, 0, int(one.tokens_E[e])) for s, one in enumerate(lengths) for e in range(len(one.tokens_E))]
    row.append(Piece(0, 0, soft, int(lengths[0].tokens_E[0])))  # without its picture
    batch = Assembler(lengths, Budgets(tokens=256, patches=288, items=8, targets=128, pairs=1), SPEC)([row]).batch
    blocks, segments = batch.blocks_BT[0], batch.text.segments[0]
    prompts = [len(template.encode_prompt(turns(("user", said))).tokens) for said in asked]
    wanted = [soft + prompts[0], prompts[1], soft + prompts[0], soft + prompts[0], prompts[0]]
    for segment, count in enumerate(wanted, start=1):
        own = blocks[segments == segment]
        np.testing.assert_array_equal(own, np.arange(len(own)) < count)
    assert not blocks[segments == 0].any()
    assert not batch.weights_BT[0][(blocks > 0) & (np.roll(blocks, -1) > 0)].any(), "no target that is seen"
