"""An answer streams, stops, and ends with where it looked; a newer checkpoint takes its place."""

from __future__ import annotations

import base64
import shutil

import jax
import numpy as np
import pytest
from conftest import picture
from talking import AGAIN, COLOUR, HEARD, PICTURE, TALK, URI, answered, make_run, text_of, uploaded, user

from jaxmm import api
from jaxmm.chat import speaker
from jaxmm.chat.messages import read_messages
from jaxmm.chat.speaker import End, Looked, Piece, Speaker, shares
from jaxmm.errors import UserError
from jaxmm.inference import answers


def refuse(*_, **__):
    raise AssertionError("this is not to be computed")


def test_an_earlier_turn_and_its_picture_change_the_answer(chat_speaker):
    first, later, alone = (text_of(answered(chat_speaker, one)) for one in ([COLOUR], TALK, [AGAIN]))
    assert len({first, later, alone}) == 3
    other = [user("Colour?", f"data:image/png;base64,{base64.b64encode(picture(32, 48, 9).data).decode()}"), *TALK[1:]]
    assert text_of(answered(chat_speaker, other)) != later


def test_an_answer_ends_with_where_it_looked(chat_speaker):
    *_, end, looked = answered(chat_speaker, TALK, max_tokens=8)
    assert isinstance(looked, Looked)
    assert (end.finish, end.tokens, len(looked.look["tokens"])) == ("length", 8, 8)
    assert "".join(looked.look["tokens"]) == end.text
    assert [medium["kind"] for medium in looked.look["media"]] == ["image"]
    assert sum(shares(looked.look).values()) == pytest.approx(1, abs=1e-4)


def test_an_answer_that_is_stopped_keeps_what_was_written(chat_speaker):
    seen: list = []
    *_, end, looked = answered(chat_speaker, [AGAIN], lambda: len(seen) > 3 or bool(seen.append(0)))
    assert (end.finish, end.tokens) == ("stopped", 4)
    assert len(looked.look["tokens"]) == 4


def test_nothing_is_computed_for_a_client_that_has_gone(chat_speaker, monkeypatch):
    question = chat_speaker.question(read_messages([AGAIN]), {"max_tokens": 8})
    monkeypatch.setattr(speaker, "looks", refuse)
    seen: list = []
    events = list(chat_speaker.answer(question, lambda: False, lambda: len(seen) > 3 or bool(seen.append(0))))
    assert {type(event) for event in events} == {Piece}, "no end, and no look"
    for event in chat_speaker.answer(question, lambda: False, lambda: bool(seen and seen[-1] == "end")):
        seen.append("end" if isinstance(event, End) else "piece")
    assert seen[-1] == "end", "the look is left out of who goes behind the end"
    monkeypatch.setattr(speaker, "write_rows", refuse)
    assert list(chat_speaker.answer(question, lambda: False, lambda: True)) == []


def test_an_answer_that_is_stopped_before_its_first_token_looks_nowhere(chat_speaker, monkeypatch):
    monkeypatch.setattr(speaker, "looks", refuse)
    (end,) = answered(chat_speaker, [AGAIN], lambda: True)
    assert (end.text, end.finish, end.tokens) == ("", "stopped", 0)


def test_a_conversation_that_is_too_long_is_refused_before_its_media_are_decoded(chat_speaker, monkeypatch):
    monkeypatch.setattr(speaker, "MOST_POSITIONS", 10)
    monkeypatch.setattr(answers, "Assembler", refuse)
    with pytest.raises(UserError, match=r"the prompt is \d+ tokens long: at most 10"):
        chat_speaker.question(read_messages([COLOUR]), {})


def test_a_newer_checkpoint_loads_where_the_old_one_has_made_room_and_both_answer(tmp_path, monkeypatch):
    folder, load, seen = make_run(tmp_path / "run"), api.load, []
    ours = Speaker("run", folder)
    before = ours.question(read_messages(TALK), {"max_tokens": 8})
    told = list(ours.answer(before, lambda: False))

    def loaded(path, step=""):
        seen.append({type(leaf) for leaf in jax.tree.leaves(before.model.trained.params)})
        return load(path, step)

    monkeypatch.setattr(api, "load", loaded)
    shutil.rmtree(folder)
    with pytest.raises(UserError):
        ours.reload()
    assert list(ours.answer(before, lambda: False)) == told, "a failure changes nothing"
    make_run(folder, seed=3, step=4, layers=3)
    ours.reload()
    assert seen == [{np.ndarray}] * 2, "it is off the device meanwhile"
    assert ours.step == 4
    newer = ours.question(read_messages(TALK), {"max_tokens": 8})
    for _ in range(2):  # each with its own programs, in any order
        assert list(ours.answer(before, lambda: False)) == told
        look = list(ours.answer(newer, lambda: False))[-1].look
        assert {layer for layer, _ in look["chosen"]} == {0, 1, 2}


@pytest.mark.parametrize(
    ("message", "options", "told"),
    [
        (user("x", "data:image/png;base64,aGVsbG8="), {}, "cannot be used: unreadable"),
        (user("x", URI, "data:image/png;base64,aGVsbG8="), {}, "messages[0].content[1] cannot be used: unreadable"),
        (uploaded(b"hello", "a b.png"), {}, "a b.png cannot be used: unreadable; an image's bytes are no picture"),
        (uploaded(PICTURE[:-200], "cut.png"), {}, "cut.png: an image's file ends early"),
        ({"role": "user", "content": [HEARD]}, {}, "there are recordings"),
        (AGAIN, {"max_tokens": 10**6}, "max_tokens is 1000000: it must be at most"),
        (AGAIN, {"temperature": -1.0}, "temperature is -1.0: it must be 0 or above"),
        (user("x" * 40_000), {}, "the prompt is 40,0"),
    ],
)  # fmt: skip
def test_what_the_model_cannot_answer_is_one_line(chat_speaker, message, options, told):
    with pytest.raises(UserError) as error:
        answered(chat_speaker, [message], **options)
    assert told in str(error.value)
