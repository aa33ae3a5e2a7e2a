"""Documents of models that see a prompt as a whole: media, the begin token, a question and a line's end; then what is
written, as it is read, from left to right (PaliGemma).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jaxmm.data.documents import Text, Turn
from jaxmm.data.text.own_format import Symbol, Thought
from jaxmm.errors import UserError

PROMPT = "prompt"  # the role of the first turn of an arranged document
WORDS = (Text, Thought, Symbol)
NOTE = (
    "of each example, the model sees the prompt as a whole: images stand first, wherever the question has them; then "
    "come the question and one answer. Conversations of several turns, or with a system prompt, are refused"
)


def check(tokenizer: Any, learn: str, image_tokens: int) -> None:
    """Raises UserError for options that make no sense with such prompts, or a tokenizer that cannot write them."""
    if learn == "prompt":
        raise UserError(
            "config.data.learn=prompt: this model sees all of a prompt from each of its positions, so that nothing is "
            "left to predict in it: take all or last"
        )
    if image_tokens:
        raise UserError("config.data.image_tokens: this model takes no discrete image tokens: leave it out")
    for what in ("bos_token", "eos_token"):
        if getattr(tokenizer, what) is None:
            raise UserError(
                f"the tokenizer has no {what}, which this family writes around a question and its answer: use the "
                f"model folder's one"
            )


def notes(tokenizer: Any) -> tuple[str, ...]:
    """Lines for people."""
    unused = ("the folder's chat template is not used",) if getattr(tokenizer, "chat_template", None) else ()
    return (NOTE, *unused)


def arranged(turns: Sequence[Turn], begin: Any, has_question: bool, origin: str = "") -> tuple[Turn, ...]:
    """A document as a prompt, a turn of the role PROMPT, and the turns behind it.

    Args:
      begin: the part that stands for the begin token.
      has_question: what the user says of a conversation is in the prompt; if not, the prompt is media alone.
      origin: of the document, for errors.

    Raises:
      UserError: for a conversation of other turns than one question and one answer, and for media elsewhere.
    """
    if not turns:
        return ()
    where, roles = origin or "the conversation", [turn.role for turn in turns]
    is_conversation = has_question and "document" not in roles
    if is_conversation and roles not in (["user"], ["user", "assistant"], ["assistant"]):
        said = ", ".join(roles[:6]) + (f" and {len(roles) - 6} more" if len(roles) > 6 else "")
        raise UserError(
            f"{where} has turns of {said}: this model takes one question and one answer, without a system prompt: make "
            f"each pair a record of its own"
        )
    first, behind = (turns[0], turns[1:]) if roles[0] != "assistant" else (Turn("user", (), False), turns)
    media = [part for part in first.parts if not isinstance(part, WORDS)]
    if any(not isinstance(part, WORDS) for turn in behind for part in turn.parts):
        raise UserError(f"{where} has images behind its first turn: this model takes them before the question alone")
    images_end = max((n for n, part in enumerate(first.parts) if not isinstance(part, WORDS)), default=0)
    if first.role == "document" and any(_is_said(part) for part in first.parts[:images_end]):
        raise UserError(f"{where} has an image behind its text: this model takes images before the text alone")
    words = _joined(part for part in first.parts if isinstance(part, WORDS))
    if not is_conversation:
        if media and words and isinstance(words[0], Text):
            words[0] = Text(words[0].text.removeprefix("\n"))  # that of the prompt
        behind, words = [first._replace(parts=tuple(words)), *behind], []
    if words and isinstance(words[0], Text):
        words[0] = Text(words[0].text.lstrip())
    last = words.pop().text.rstrip() if words and isinstance(words[-1], Text) else ""
    prompt = (*media, begin, *words, Text(f"{last}\n"))
    return (Turn(PROMPT, prompt, False), *behind)


def _is_said(part: Any) -> bool:
    return isinstance(part, WORDS) and not (isinstance(part, Text) and not part.text.strip())


def _joined(parts: Iterable[Any]) -> list[Any]:
    """With texts that follow each other as one, so that they are tokenized as a whole."""
    joined: list[Any] = []
    for part in parts:
        if isinstance(part, Text) and joined and isinstance(joined[-1], Text):
            joined[-1] = Text(joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined
