"""Several turns are tokenized as training does; an answer is generate's, streams, stops, and shows where it looked."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import sys
import threading

import jax
import numpy as np
import pytest
from conftest import picture
from talking import PICTURE, URI, make_run, user

from jaxmm import api, generate
from jaxmm.chat import __main__ as chat
from jaxmm.chat import speaker, terminal
from jaxmm.chat.line import MOST_WAITING, Failed, FullError, Line, Waiting
from jaxmm.chat.messages import MOST_LETTERS, MOST_MEDIA, read_messages
from jaxmm.chat.speaker import DEFAULTS, End, Looked, Piece, Speaker, shares
from jaxmm.data.documents import Document, Image, Text, Turn
from jaxmm.errors import UserError
from jaxmm.inference import answers
from jaxmm.inference.answers import Prompt

COLOUR, AGAIN = user("Colour?", URI), user("And now?")
IMAGE = COLOUR["content"][0]
TALK = [COLOUR, {"role": "assistant", "content": "red"}, AGAIN]


def answered(asked, messages, is_stopped=lambda: False, **options) -> list:
    return list(asked.answer(asked.question(read_messages(messages), options), is_stopped))


def text_of(events) -> str:
    (end,) = [event for event in events if isinstance(event, End)]
    assert "".join(event.text for event in events if isinstance(event, Piece)) == end.text
    return end.text


@pytest.mark.parametrize("objective", ["sft", "pretrain"])
def test_a_prompt_of_several_turns_is_the_beginning_of_the_whole_conversation(template, objective):
    from jaxmm.data.text.template import Template
    from jaxmm.data.text.tokenizer import load_tokenizer

    template = template if objective == "sft" else Template(load_tokenizer(""), objective)
    turns = (
        Turn("system", (Text("Be short."),), False),
        Turn("user", (picture(8, 8), Text("first")), False),
        Turn("assistant", (Text("yes"),), True),
        Turn("user", (Text("between "), picture(8, 8, 1), Text(" second")), False),
    )
    whole = template.encode(Document((*turns, Turn("assistant", (Text("no"),), True)), "made"))
    prompt = Prompt.of(turns)
    assert prompt.media == (turns[1].parts[0], turns[3].parts[1])
    assert prompt.text == "between  second"
    begun = template.encode_prompt(prompt.turns())
    size = len(begun.tokens)
    np.testing.assert_array_equal(begun.tokens, whole.tokens[:size])
    np.testing.assert_array_equal(begun.image_at, whole.image_at)
    assert template.decode(whole.tokens[size:]).strip() == "no"


def test_one_turn_is_the_same_prompt_either_way(template):
    image = picture(8, 8)
    single, several = Prompt((image,), "what?"), Prompt.of([Turn("user", (image, Text("what?")), False)])
    assert single.turns() == several.turns()
    assert (single.media, single.text, single.kinds()) == (several.media, several.text, several.kinds())


def test_messages_become_turns_with_media_where_they_stand():
    prompt = read_messages([
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE, {"type": "text", "text": ""}]},
        {"role": "assistant", "content": ""},
        AGAIN,
    ])  # fmt: skip
    assert prompt.conversation == (
        Turn("system", (Text("Be short."),), False),
        Turn("user", (Text("a"), Image(data=PICTURE)), False),
        Turn("assistant", (), False),
        Turn("user", (Text("And now?"),), False),
    )
    assert prompt.names == ("messages[1].content[1]",)


def named(data: bytes, name: str) -> dict:
    """A message of two pictures, one of them fine, with the names of their files as the page gives them."""
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    parts = [
        {"type": "image_url", "image_url": {"url": url, "name": of}} for url, of in ((URI, "fine.png"), (uri, name))
    ]
    return {"role": "user", "content": parts}


HEARD = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}}


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (None, "messages must be a list"),
        ([], "messages must be a list"),
        (["hi"], "messages[0] must be an object"),
        ([{"role": "robot", "content": "x"}], "messages[0]: the role is 'robot', not one of system, developer, user"),
        ([{"role": ["user"], "content": "x"}], "the role is ['user']"),
        ([{"role": "user", "content": 3}], "messages[0]: the content must be a text or a list of parts"),
        ([{"role": "user", "content": [{"type": "file"}]}], "messages[0].content[0]: the type is 'file', not one"),
        ([{"role": "user", "content": [{"type": ["text"]}]}], "the type is ['text']"),
        ([{"role": "user", "content": [{"type": "text"}]}], "the text is no text"),
        ([user("x", "file:///etc/passwd")], "only data URIs are read (data:image/...;base64,...), not 'file:///etc/passwd'"),
        ([user("x", "/etc/passwd")], "only data URIs are read"),
        ([user("x", "http://10.0.0.1/secret.png")], "only data URIs are read"),
        ([user("x", "data:image/png,notbase64")], "only data URIs are read"),
        ([user("x", "data:image/png;base64,@@@@")], "this is no base64"),
        ([user("x", "data:image/png;base64,abc")], "this is no base64"),
        ([user("x", "data:image/png;base64,")], "the file is empty"),
        ([user("x", None)], "there is no url"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "input_audio has no data"),
        ([{"role": "assistant", "content": COLOUR["content"]}, AGAIN], "are the user's, not the assistant's"),
        ([COLOUR, {"role": "assistant", "content": "red"}], "the last message must be the user's"),
        ([user("")], "nothing to answer"),
        ([user("x", *[URI] * (MOST_MEDIA + 1))], "at most 32"),
        ([user("x" * (MOST_LETTERS + 1))], "at most 200,000"),
        ([user("\ud800")], "half of a surrogate pair"),
        ([named(b"", "empty.png")], "empty.png: the file is empty"),
        ([{"role": "assistant", "content": "", "tool_calls": [{}]}, AGAIN], "tool_calls are not answered here"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_one_line(messages, told):
    with pytest.raises(UserError) as error:
        read_messages(messages)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_streamed_answer_is_what_generate_prints(chat_speaker, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(PICTURE)
    for options in ({}, {"temperature": 1.5, "seed": 3, "top_p": 0.9}):
        flags = [f"--{name}={value}" for name, value in options.items()]
        generate.main([f"--workdir={chat_speaker.folder}", f"--image={tmp_path}/a.png", "--prompt=Colour?", *flags])
        told = capsys.readouterr().out.removesuffix("\n")
        events = answered(chat_speaker, [COLOUR], **options)
        assert text_of(events) == told
        assert sum(isinstance(event, Piece) for event in events) > 12, "it comes in pieces"


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


def refuse(*_, **__):
    raise AssertionError("this is not to be computed")


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
        (named(b"hello", "a b.png"), {}, "a b.png cannot be used: unreadable; an image's bytes are no picture"),
        (named(PICTURE[:-200], "cut.png"), {}, "cut.png: an image's file ends early"),
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


def test_who_comes_later_waits_in_line_and_a_fault_stops_no_other():
    line, may_go = Line(), threading.Event()

    def slow(is_stopped):
        may_go.wait()
        yield "slow"

    def broken(is_stopped):
        raise UserError("of two\nlines")
        yield

    first, second = line.join(slow), line.join(broken)
    waiting = second.events()
    assert next(waiting) == Waiting(1)
    assert line.find(second.name) is second
    others = [line.join(slow) for _ in range(MOST_WAITING - 1)]
    with pytest.raises(FullError, match="wait already"):
        line.join(slow)
    may_go.set()
    assert list(first.events()) == ["slow"]
    assert [event for event in waiting if not isinstance(event, Waiting)] == [Failed("of two lines")]
    assert [list(other.events())[-1] for other in others] == ["slow"] * len(others)
    assert line.find(second.name) is None


def test_who_leaves_makes_room_in_the_line_and_nothing_is_begun_for_them():
    line, may_go, begun = Line(), threading.Event(), []

    def slow(job):
        may_go.wait()
        yield "slow"

    def counted(job):
        begun.append(job)
        yield "well"

    first = line.join(slow)
    others = [line.join(counted) for _ in range(MOST_WAITING)]
    with pytest.raises(FullError):
        line.check_room()
    others[0].leave()
    last = line.join(counted)
    may_go.set()
    assert first.first(str, lambda: False) == "slow"
    assert last.first(str, lambda: False) == "well"
    assert begun == [*others[1:], last]


def test_a_line_outlives_a_bug_and_tells_its_terminal(capsys):
    line = Line()
    job = line.join(lambda is_stopped: 1 / 0)  # type: ignore[arg-type]
    assert isinstance(list(job.events())[-1], Failed)
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert list(line.join(lambda is_stopped: iter(["well"])).events())[-1] == "well"


def talk(monkeypatch, capsys, speakers, *typed: str, **options) -> tuple[str, str]:
    """What a terminal shows for these lines."""
    lines = iter(typed)

    def read(prompt: str) -> str:
        return next(lines, None) or (_ for _ in ()).throw(EOFError)

    monkeypatch.setattr("builtins.input", read)
    capsys.readouterr()
    assert terminal.talk(speakers, DEFAULTS | options) == 0
    return tuple(capsys.readouterr())  # type: ignore[return-value]


def test_a_terminal_answers_with_where_it_looked_and_goes_on_after_errors(chat_speaker, monkeypatch, capsys, tmp_path):
    (tmp_path / "a b.png").write_bytes(PICTURE)
    told = text_of(answered(chat_speaker, [COLOUR], max_tokens=6))
    typed = (
        f"/image {tmp_path}/none.png",
        "/imag x",
        f"/image {tmp_path}/a b.png",
        "Colour?",
        "/clear",
        "And now?",
        "/quit",
    )
    out, err = talk(monkeypatch, capsys, [chat_speaker], *typed, max_tokens=6)
    assert f"\n{told} [cut at --max_tokens]\nlooked at: " in out
    assert f"\n{text_of(answered(chat_speaker, [AGAIN], max_tokens=6))} [cut" in out, "cleared"
    assert err.splitlines() == [
        f"error: /image {tmp_path}/none.png: there is no such file",
        "error: no command /imag; /help lists them",
    ]
    assert "takes image" in out


def test_a_terminal_asks_two_models_in_turn(chat_speaker, monkeypatch, capsys):
    out, _ = talk(monkeypatch, capsys, [chat_speaker, chat_speaker], "hm?", max_tokens=3)
    assert out.count("[tiny]\n") == 2


def test_ctrl_c_stops_an_answer_and_twice_ends(chat_speaker, monkeypatch, capsys):
    answer = chat_speaker.answer

    def interrupted(asked, is_stopped):
        os.kill(os.getpid(), signal.SIGINT)
        yield from answer(asked, is_stopped)

    monkeypatch.setattr(chat_speaker, "answer", interrupted)
    before = signal.getsignal(signal.SIGINT)
    out, _ = talk(monkeypatch, capsys, [chat_speaker], "hm?", "hm?")
    assert out.count(" [stopped]\n") == 2
    monkeypatch.setattr(chat_speaker, "answer", lambda *_: (os.kill(os.getpid(), signal.SIGINT) for _ in range(3)))
    talk(monkeypatch, capsys, [chat_speaker], "hm?", "never asked")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "give --workdir: the folder of a run, or 2 of them; not 0"),
        (["--workdir=a", "--workdir=b", "--workdir=c"], "not 3"),
        (["--workdir=/nowhere/at/all"], "does not exist"),
        (["--workdir={}", "--port=99999"], "--port is 99999: it must be 0 to 65535"),
        (["--workdir={}", "--host=no.such.host.invalid"], "--host 'no.such.host.invalid'"),
        (["--workdir={}", "--temperature=-1"], "--temperature is -1.0"),
        (["--workdir={}", "--step=7"], "7"),
    ],
)
def test_wrong_flags_are_one_line(chat_speaker, monkeypatch, flags, told):
    monkeypatch.setattr(chat.startup, "keep_compiled", lambda folder: None)
    with pytest.raises(UserError) as error:
        chat.main([flag.format(chat_speaker.folder) for flag in flags])
    assert told in str(error.value)


def test_two_runs_of_one_name_are_numbered(tmp_path):
    assert chat._names([tmp_path / "a/base", tmp_path / "b/base"]) == ["base-1", "base-2"]
    assert chat._names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]


def test_a_missing_extra_is_one_line_and_the_terminal_needs_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(UserError, match=r"pip install 'jaxmm\[chat\]'"):
        chat.main(["--workdir=x"])
