"""Where an answer ends, and what of it may be shown before it is whole."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from jaxmm.inference.stop_strings import Reply

STOP = 0


def decode(tokens) -> str:
    """Bytes, as decoders of byte-level tokenizers give them."""
    return bytes(tokens).decode("utf-8", errors="replace")


def reply_of(text: str | bytes, stops=(), each: int = 1) -> Reply:
    tokens = list(text.encode() if isinstance(text, str) else text)
    reply = Reply(decode, [STOP], stops)
    for i in range(0, len(tokens), each):
        reply.add(tokens[i : i + each])
    return reply


def test_a_stop_token_ends_the_answer_and_is_not_in_it():
    reply = reply_of(b"yes\0no", each=4)
    assert (reply.text, reply.done, reply.tokens) == ("yes", True, list(b"yes"))


@pytest.mark.parametrize("each", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("stops", "text"),
    [
        (["stop"], "one two "),
        (["nothing"], "one two stop three"),
        (["three", "stop"], "one two "),
        (["op", "stop three"], "one two st"),  # the one that is complete first
        (["stop", "op"], "one two "),  # both at once: the longer
        (["o"], ""),
    ],
)
def test_a_stop_string_across_tokens_ends_the_answer_at_its_beginning(stops, text, each):
    reply = reply_of("one two stop three", stops, each)
    assert reply.text == text
    assert reply.done == (text != "one two stop three")


@hypothesis.given(
    text=st.text("ab€🙂", max_size=12),
    stops=st.lists(st.text("ab€", min_size=1, max_size=3), max_size=3),
    each=st.integers(1, 5),
    cut=st.integers(0, 3),
)
def test_what_was_sure_on_the_way_begins_the_answer_and_the_size_of_steps_changes_nothing(text, stops, each, cut):
    tokens = text.encode()
    tokens = tokens[: max(len(tokens) - cut, 0)]  # in the middle of a character, maybe
    whole = reply_of(tokens, stops, 100)
    reply, shown = Reply(decode, [STOP], stops), ""
    for i in range(0, len(tokens), each):
        reply.add(tokens[i : i + each])
        assert reply.sure().startswith(shown)
        shown = reply.sure()
        assert "\ufffd" not in shown or reply.done
    assert (reply.text, reply.done) == (whole.text, whole.done)
    assert whole.text.startswith(shown)


def test_half_a_character_and_the_beginning_of_a_stop_string_wait():
    assert reply_of("a€".encode()[:2]).sure() == "a"
    assert reply_of("a€").sure() == "a€"
    assert reply_of("an en", ["end"]).sure() == "an "
    assert reply_of("an ent", ["end"]).sure() == "an ent"
