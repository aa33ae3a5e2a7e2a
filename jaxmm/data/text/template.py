"""Text to token ids and back: the special tokens that structure a sequence, and the two templates.

After this file there are no magic strings. User text is always tokenized as text, so that a literal ``<|image_start|>``
or ``</s>`` in a caption stays letters; only the template puts special tokens into a sequence.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxmm.data.documents import Document, Turn
from jaxmm.data.text import codebook, prefix_format
from jaxmm.data.text.chat import ChatFormat, Chunk, Markup, Markups, Medium, Special, Step
from jaxmm.data.text.chat_options import ChatOptions
from jaxmm.data.text.codebook import Codebook, image_offset
from jaxmm.data.text.encoded import Encoded, Writer
from jaxmm.data.text.own_format import END, OURS, SPECIAL_TOKENS, has_chat_template
from jaxmm.data.text.own_turns import OwnTurns
from jaxmm.data.text.special_tokens import SpecialTokens
from jaxmm.data.text.tokenizer import Ids
from jaxmm.errors import UserError, nearest

# Parts of the fingerprint: raise one with any change to what our own template, or a folder's, writes.
FORMAT, CHAT_FORMAT = 3, 4
OBJECTIVES = ("pretrain", "sft")


def _compared(one: Encoded, other: Encoded, document: Document) -> Encoded:
    try:
        return one.beside(other, document.verdict)
    except ValueError as error:
        raise UserError(f"{document.origin}: {error}") from error


class Template:
    """Turns documents into tokens with flags, by one of two objectives, and tokens back into text.

    ``sft``: a conversation is ``<|user|>question<|end|><|assistant|>answer<|end|>``. The tokens of each answer and its
    ``<|end|>`` are targets. A plain document is its text and the tokenizer's end token, all targets. If the tokenizer
    has a chat template, ``sft`` writes conversations with it, and learns answers with what ends them.
    ``pretrain``: no turn markers. Turns are joined by a newline, the end token follows, and all text is a target.
    In both, an answer (with what ends it: ``<|end|>``, the newline, or the end token) is flagged ANSWER. An image is
    ``<|image_start|>``, its soft tokens, ``<|image_end|>``; these separators are never targets. A sequence begins with
    the tokenizer's begin token, if it has one; that is no target either, as nothing precedes it.

    With ``has_prefix``, a conversation is one question and one answer, as ``prefix_format.py`` has it: images, the
    begin token, the question and a line's end, then the answer and the end token. The first of them are no targets.

    Discrete image tokens stand between the same separators. Their ids count from ``codebook.offset``, after the
    tokenizer's. With ``predict_image_tokens`` they are targets wherever text in their place would be, but they are
    never flagged ANSWER, on which exact match is measured.
    """

    def __init__(
        self,
        tokenizer: Any,
        objective: str,
        image_tokens: int = 0,
        predict_image_tokens: bool = False,
        markup: Markup = OURS,
        ends: Iterable[int] = (),
        chat: ChatOptions = ChatOptions(),  # noqa: B008
        audio: Markup | None = None,
        video: Markup | None = None,
        has_prefix: bool = False,
    ):
        """Adds the special tokens to ``tokenizer``, which belongs to the template from then on.

        Args:
          tokenizer: of ``transformers``, or ByT5's.
          objective: one of OBJECTIVES.
          image_tokens: the size of the codebook of discrete image tokens, 0 for none.
          predict_image_tokens: whether they may be targets.
          markup: around an image; if it is not our own, its tokens must be in the vocabulary.
          ends: tokens that end an answer beside those that are learnt.
          chat: options for conversations.
          audio, video: around a recording and a video, where that is another markup.
          has_prefix: of a model that sees all of a prompt from every position of it.

        Raises:
          UserError: if ``objective`` is not one of OBJECTIVES, there is no codebook to predict from, a token of the
            markup is not there, or what is asked for makes no sense with prompts that are seen as a whole.
        """
        codebook.check(image_tokens, predict_image_tokens)
        if objective not in OBJECTIVES:
            known = f"{', '.join(OBJECTIVES)}{nearest(objective, OBJECTIVES)}"
            raise UserError(f"config.data.objective '{objective}' is not one of {known}")
        chat.check()
        if has_prefix:
            prefix_format.check(tokenizer, chat.learn, image_tokens)
        self.tokenizer, self.objective, self.options, self.has_prefix = tokenizer, objective, chat, has_prefix
        self.markup, self.markups = markup, Markups(markup, audio or markup, video or markup)
        for what, around in zip(("images", "recordings", "videos"), self.markups, strict=True):
            names = re.findall(r"<[^<>\s]+>|\[[A-Z_]+\]", around.before + around.after)
            missing = [name for name in names if name not in tokenizer.get_vocab()]
            if missing and around != OURS:
                raise UserError(
                    f"the tokenizer lacks {missing[0]}, which this family writes around {what}: use the model folder's "
                    f"one"
                )
        has_own = has_chat_template(tokenizer) and objective == "sft" and not has_prefix
        self.written = str(tokenizer.chat_template) if has_own else ""
        in_own_format = not has_own and not has_prefix
        added = [t for t in SPECIAL_TOKENS if (in_own_format or t in OURS) and (markup == OURS or t not in OURS)]
        tokenizer.add_tokens(added, special_tokens=True)
        ids = dict(zip(added, tokenizer.convert_tokens_to_ids(added), strict=True))
        self.special = SpecialTokens(chat.special_tokens, chat.special_tokens_in, tokenizer)
        self.chat = (
            ChatFormat(tokenizer, markup, chat.thinking, self.special, audio=audio, video=video) if has_own else None
        )
        self.lead: str = self.chat.lead if self.chat else ""
        self.notes: tuple[str, ...] = tuple(self.chat.template.notes) if self.chat else ()
        if has_prefix:
            self.notes += prefix_format.notes(tokenizer)
        self.end_id: int = self.chat.stop_ids[0] if self.chat else ids.get(END, tokenizer.eos_token_id)
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int = self.end_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        self.pad_id: int = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.codebook = Codebook(image_tokens, image_offset(tokenizer, image_tokens), predict_image_tokens)
        self.vocab_size: int = max(len(tokenizer), self.codebook.offset + image_tokens)
        self.own = OwnTurns(
            tokenizer, ids, self.end_id, self.eos_id, objective == "sft", has_prefix, chat.thinking, self.special,
            self.markups, self.codebook,
        )  # fmt: skip
        # In pretrain an answer ends at the end of its line.
        newline = {int(self.own.newline[0])} if objective == "pretrain" and len(self.own.newline) == 1 else set()
        learnt = set(self.chat.stop_ids) if self.chat else {self.end_id}
        self.stop_ids: tuple[int, ...] = tuple(sorted(learnt | {self.eos_id, *ends} | newline))
        self.fingerprint = self._fingerprint(CHAT_FORMAT if self.chat else FORMAT)
        # The name that version 0.1 gave this template; that version learnt answers without the text that the folder's
        # template puts before them.
        self.older: tuple[str, ...] = (self._fingerprint(FORMAT),) if self.chat and chat == ChatOptions() else ()

    @functools.cached_property
    def special_ids(self) -> np.ndarray:
        """Int64, ascending: the ids that are no text: separators of media, marks of turns, begin, end and padding."""
        own = self.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
        known = {self.bos_id, self.eos_id, self.pad_id, *self.tokenizer.all_special_ids, *own}
        return np.array(sorted(known - {None}), np.int64)

    def as_of(self, fingerprint: str) -> Template:
        """The template of version 0.1, under one of the names in ``older``: a run that began with it keeps it."""
        old = copy.copy(self)
        old.tokenizer = copy.deepcopy(self.tokenizer)
        old.tokenizer.chat_template = self.written
        old.chat = ChatFormat(old.tokenizer, self.markup, as_0_1=True)
        old.lead, old.notes = "", tuple(old.chat.template.notes)
        old.own = self.own.of(old.tokenizer)
        old.fingerprint = fingerprint
        return old

    def encode(self, document: Document) -> Encoded:
        """Returns the document's tokens, with the flags that training needs."""
        return self.encode_all([document])[0]

    def encode_all(self, documents: Sequence[Document]) -> list[Encoded]:
        """Returns ``encode`` of each; a fast tokenizer takes many texts at once on all cores.

        Raises:
          UserError: for an image token that the codebook does not have, and for answers that cannot be compared.
        """
        others = [document._replace(turns=document.other) for document in documents if document.other]
        encoded = self._encode_all([*documents, *others])
        beside = iter(encoded[len(documents) :])
        return [
            self._named_once(_compared(one, next(beside), document), document) if document.other else one
            for document, one in zip(documents, encoded, strict=False)
        ]

    def _named_once(self, both: Encoded, document: Document) -> Encoded:
        """With the names of special tokens in each text of the record, once: not in the prompt again, nor in another
        record's answer."""
        turns, other = list(document.turns), list(document.other)
        if document.verdict == "better":
            same = itertools.takewhile(lambda both: both[0] == both[1], zip(turns, other, strict=False))
            turns += other[len(list(same)) :]
        letters, symbols = self.special.said(turns)
        return both._replace(letters=letters, symbols=symbols)

    def _encode_all(self, documents: Sequence[Document]) -> list[Encoded]:
        """The same of documents without the answers that theirs are compared with."""
        is_sft = self.objective == "sft"  # else all is learnt
        turns = [self.options.learnt(d.turns) if is_sft and not d.verdict else d.turns for d in documents]
        steps = [self._steps(own, tools=document.tools) for own, document in zip(turns, documents, strict=True)]
        turns = [
            own if step else self.own.arranged(own, document.tools, document.origin)
            for own, step, document in zip(turns, steps, documents, strict=True)
        ]
        texts = self.own.texts(turn for own, step in zip(turns, steps, strict=True) if step is None for turn in own)
        chunks = self._chunks(steps)
        encoded = []
        for document, said, own in zip(documents, turns, steps, strict=True):
            writer = Writer([turn.weight for turn in said])
            if own is None:
                self.own.write(writer, said, texts, origin=document.origin)
            else:
                self._write_steps(writer, own, chunks, origin=document.origin)
            letters, symbols = self.special.said(document.turns)
            encoded.append(writer.encoded()._replace(letters=letters, symbols=symbols))
        return encoded

    def encode_prompt(self, turns: Sequence[Turn]) -> Encoded:
        """Returns the tokens after which the model writes: the turns, then the opening of the assistant's turn.

        If the last turn is a document or the assistant's, its text stays open, and the model continues it.
        """
        writer, steps = Writer(), self._steps(turns, is_open=True)
        if steps is None:
            turns = self.own.arranged(turns, "")
            self.own.write(writer, turns, self.own.texts(turns), is_open=True)
        else:
            self._write_steps(writer, steps, self._chunks([steps]))
        return writer.encoded()

    def stamp(self, text: str) -> list[int]:
        """Returns the ids of text inside a medium, as a time stamp; names of special tokens in it count as such."""
        return self.own.stamp(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; special tokens, image tokens and ids of the padded vocabulary are dropped."""
        kept = [i for i in map(int, ids) if 0 <= i < self.codebook.offset]
        return self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _steps(self, turns: Sequence[Turn], is_open: bool = False, tools: str = "") -> list[Step] | None:
        """What the tokenizer's chat template writes of a conversation; None for a page, or if our own format does."""
        if self.chat is None or not turns or any(turn.role == "document" for turn in turns):
            return None
        return self.chat.steps(turns, is_open, tools)

    def _chunks(self, steps: Iterable[list[Step] | None]) -> Iterator[tuple[Ids, np.ndarray]]:
        """Yields (ids, flags) of each chunk of text, in order."""
        chunks = [step for own in steps for step in own or () if isinstance(step, Chunk)]
        return iter(self.chat.encode(chunks) if self.chat and chunks else ())

    def _write_steps(
        self, writer: Writer, steps: Sequence[Step], chunks: Iterator[tuple[Ids, np.ndarray]], origin: str = ""
    ) -> None:
        """Writes the steps of a chat template; ``chunks`` gives the ids of its texts."""
        for step in steps:
            if isinstance(step, Special):
                writer.add([step.token], step.flags)
            elif isinstance(step, Medium):
                self.codebook.write_place(writer, step.part, step.flags, origin)
            else:
                ids, flags = next(chunks)
                starts = [0, *(np.flatnonzero(np.diff(flags)) + 1).tolist(), len(ids)]
                for first, last in itertools.pairwise(starts):
                    writer.add(ids[first:last], int(flags[first]) if last > first else 0)

    def _fingerprint(self, format: int) -> str:
        """Returns a hash of everything that decides the ids; it is the same on every machine."""
        tokenizer, chat = self.tokenizer, self.chat
        state: dict[str, Any] = {
            "format": format,
            "objective": self.objective,
            "image_tokens": [self.codebook.size, self.codebook.is_learnt],
            "markup": self.markup.key,
            **{
                f"{kind}_markup": around.key
                for kind, around in (("audio", self.markups.audio), ("video", self.markups.video))
                if around != self.markup
            },
            **({"prefix": True} if self.has_prefix else {}),
            "chat": self.written if format == FORMAT or not chat else str(tokenizer.chat_template),
            "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
            "vocabulary": sorted(tokenizer.get_vocab().items()),
        }
        if self.options != ChatOptions():
            state["options"] = list(self.options)
        if tokenizer.is_fast:
            backend = json.loads(tokenizer.backend_tokenizer.to_str())
            # The last call left these behind; they have no effect on ours.
            state["backend"] = {k: v for k, v in backend.items() if k not in ("truncation", "padding")}
        else:
            state["class"] = type(tokenizer).__name__
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
