"""ByT5's tokenizer: UTF-8 bytes, no files. Importing ``transformers`` for its own takes a fifth of a run's start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

SPECIAL = ("<pad>", "</s>", "<unk>")
BYTES = 256
EXTRA = 125  # the sentinel ids with which ByT5 was trained to fill gaps


class ByT5Tokenizer:
    """The tokenizer interface that jaxmm needs, with the ids, names and texts of ``transformers.ByT5Tokenizer``."""

    offset = len(SPECIAL)  # the id of byte 0
    is_fast = False
    chat_template = None
    bos_token = bos_token_id = None
    eos_token, eos_token_id, pad_token_id = "</s>", 1, 0

    def __init__(self) -> None:
        extra = [f"<extra_id_{n}>" for n in range(EXTRA)]
        self._names = [*SPECIAL, *map(chr, range(BYTES)), *extra]
        self._ids = {name: id_ for id_, name in enumerate(self._names)}

    def __len__(self) -> int:
        return len(self._names)

    @property
    def all_special_ids(self) -> list[int]:
        return [*range(self.offset), *range(self.offset + BYTES, len(self))]

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def get_added_vocab(self) -> dict[str, int]:
        return {self._names[id_]: id_ for id_ in self.all_special_ids}

    def add_tokens(self, names: Sequence[str], special_tokens: bool = False) -> int:
        """Appends the names that are new; returns how many. Every token that is not a byte is special here."""
        new = [name for name in dict.fromkeys(names) if name not in self._ids]
        if new and not special_tokens:
            raise ValueError(f"bytes spell every text: only special tokens can be added, not {new[0]}")
        self._ids |= {name: len(self._names) + n for n, name in enumerate(new)}
        self._names += new
        return len(new)

    def convert_tokens_to_ids(self, names: Sequence[str] | str) -> Any:
        if isinstance(names, str):
            return self._ids.get(names)  # transformers returns None too
        return [self.convert_tokens_to_ids(name) for name in names]

    def convert_ids_to_tokens(self, id_: int) -> str:
        return self._names[id_]

    def encode(self, text: str, add_special_tokens: bool = True) -> np.ndarray:
        """Returns int32 ids, the end token last. Unlike transformers', a special token's name in a text stays text."""
        ids = np.frombuffer(text.encode(), np.uint8) + np.int32(self.offset)
        return np.append(ids, np.int32(self.eos_token_id)) if add_special_tokens else ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False, **unused: bool) -> str:
        """Returns the text of ids; bytes that are not UTF-8 are left out."""
        kept = b"".join(self._spelled(id_) for id_ in ids if not (skip_special_tokens and self._is_special(id_)))
        return kept.decode(errors="ignore")

    def _is_special(self, id_: int) -> bool:
        return not self.offset <= id_ < self.offset + BYTES

    def _spelled(self, id_: int) -> bytes:
        return self._names[id_].encode() if self._is_special(id_) else bytes([id_ - self.offset])

    def as_transformers(self) -> Any:
        """Returns the tokenizer of ``transformers`` with the same tokens, for saving."""
        from transformers import ByT5Tokenizer as Theirs

        theirs = Theirs()
        theirs.add_tokens(self._names[len(theirs) :], special_tokens=True)
        return theirs
