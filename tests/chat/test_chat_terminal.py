"""The talk on a terminal."""

from __future__ import annotations

import os
import signal

from talking import AGAIN, COLOUR, PICTURE, answered, longer, text_of

from jaxmm.chat import terminal
from jaxmm.chat.speaker import DEFAULTS


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


def test_a_terminal_says_where_an_answer_is_longer_than_its_maps(chat_speaker, monkeypatch, capsys):
    monkeypatch.setattr(chat_speaker, "answer", longer(chat_speaker, 70))
    out, _ = talk(monkeypatch, capsys, [chat_speaker], "And now?", max_tokens=6)
    assert "\nlooked at by its first 6 of 70 tokens: " in out


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
