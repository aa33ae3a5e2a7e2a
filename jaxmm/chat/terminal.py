"""The same talk on a terminal: a line is a question, and after the answer comes a line of where it looked."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxmm.chat.speaker import End, Looked, Piece, Speaker, shares
from jaxmm.data.documents import Media, Text, Turn
from jaxmm.errors import UserError, printable
from jaxmm.inference.answers import Prompt
from jaxmm.inference.prompts import KINDS, media_file
from jaxmm.report.words import CLASSES

HELP = """\
A line is a question. Before it:
  /image PATH, /video PATH, /audio PATH   a medium for the next question
  /clear                                  begin a new conversation
  /quit                                   end; so does Ctrl-D, or Ctrl-C twice
Ctrl-C stops an answer."""


class _Stop:
    """Whether Ctrl-C came while an answer is written; the second one is an interrupt as ever."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> bool:
        return self._asked

    def _interrupted(self, number: int, frame: Any) -> None:
        del number, frame
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        before = signal.signal(signal.SIGINT, self._interrupted)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


class _Talk:
    """A conversation with each speaker: the user's turns are the same, the answers each one's own."""

    def __init__(self, speakers: Sequence[Speaker], options: dict[str, Any]):
        self._speakers, self._options = speakers, options
        self._media: list[Media] = []
        self._said: list[list[Turn]] = [[] for _ in speakers]

    def command(self, line: str) -> bool:
        """Follows a line that begins with '/'; False ends the talk.

        Raises:
          UserError: if it is no command, or there is no such file.
        """
        name, _, rest = line[1:].partition(" ")
        if name in ("quit", "exit", "q"):
            return False
        if name == "clear":
            self._media, self._said = [], [[] for _ in self._speakers]
            print("a new conversation")
        elif name == "help":
            print(HELP)
        elif name in KINDS:
            if not (path := rest.strip().strip("'\"")):
                raise UserError(f"/{name} needs a path: /{name} PATH")
            self._media.append(media_file(name, Path(path).expanduser(), f"/{name}"))
        else:
            raise UserError(f"no command /{name:.40}; /help lists them")
        return True

    def ask(self, text: str) -> None:
        """Prints the answers to a question. Media are asked about once; where one cannot be read, all are dropped."""
        media, self._media = self._media, []
        turn = Turn("user", (*media, Text(text)) if text else tuple(media), False)
        for speaker, said in zip(self._speakers, self._said, strict=True):
            if len(self._speakers) > 1:
                print(f"[{speaker.name}]")
            stop = _Stop()
            with stop.watched():
                question = speaker.question(Prompt.of((*said, turn)), self._options)
                written = 0
                for event in speaker.answer(question, stop):
                    match event:
                        case Piece(piece):
                            print(printable(piece), end="", flush=True)
                        case End():
                            written = event.tokens
                            told = {"length": " [cut at --max_tokens]", "stopped": " [stopped]"}.get(event.finish, "")
                            print(told, flush=True)
                            said += [turn, Turn("assistant", (Text(event.text),) if event.text else (), False)]
                            if event.finish == "stopped":
                                break
                        case Looked(look):
                            print(_looked(look, written), flush=True)


def _looked(look: dict[str, Any], written: int) -> str:
    """The line of an answer of ``written`` tokens, of which the look may have the first."""
    parts = sorted(shares(look).items(), key=lambda pair: -pair[1])
    if not all(math.isfinite(part) for _, part in parts):
        return "looked nowhere: the model's numbers are not finite"
    seen = len(look["tokens"])
    which = f" by its first {seen} of {written} tokens" if written > seen else ""
    return f"looked at{which}: {' · '.join(f'{CLASSES[name]} {part:.0%}' for name, part in parts) or 'nothing'}"


def talk(speakers: Sequence[Speaker], options: dict[str, Any]) -> int:
    """Talks until /quit or the end of the input; returns the exit status."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrows and history in input()
    for speaker in speakers:
        at = "" if speaker.step is None else f", step {speaker.step}"
        takes = f"takes {', '.join(speaker.takes())}" if speaker.takes() else "takes text alone"
        print(f"{speaker.name}: {speaker.folder}{at}; {takes}")
    print("/help says what can be typed", flush=True)
    conversation, was_interrupted = _Talk(speakers, options), False
    while True:
        try:
            line = input("> ").strip()
            was_interrupted = False
            if line.startswith("/"):
                if not conversation.command(line):
                    return 0
            elif line:
                was_interrupted = True  # the first Ctrl-C stops the answer
                conversation.ask(line)
                was_interrupted = False
        except UserError as error:
            print(printable(f"error: {' '.join(str(error).split())}"), file=sys.stderr, flush=True)
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            if was_interrupted:
                return 0
            was_interrupted = True
            print("Ctrl-C again, or /quit, ends", flush=True)
