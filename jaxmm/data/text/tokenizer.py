"""A folder's tokenizer, and its fastest way from many texts to their ids."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmm.data.text.byt5 import ByT5Tokenizer
from jaxmm.errors import UserError
from jaxmm.json_text import parse_json

Ids = Sequence[int] | np.ndarray
PROCESSORS_TEMPLATE = (
    "chat_template.json"  # a processor's, of some years ago, which transformers' tokenizers do not read
)


def load_tokenizer(folder: str) -> Any:
    """Returns the tokenizer of a ``transformers`` folder, or ByT5's (bytes, no files) for ''.

    Raises:
      UserError: if the folder is not there or holds no tokenizer.
    """
    if not folder:
        return ByT5Tokenizer()
    from transformers import AutoTokenizer

    if not os.path.isdir(os.path.expanduser(folder)):
        raise UserError(f"config.data.tokenizer: no folder {folder}; give a folder with a tokenizer, or '' for bytes")
    where = Path(folder).expanduser()
    if pipe := next(
        (path for path in where.iterdir() if path.exists() and not (path.is_file() or path.is_dir())), None
    ):
        raise UserError(f"config.data.tokenizer: {pipe} is a pipe, a socket or a device, not a file: remove it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True, trust_remote_code=False)
        if not tokenizer.chat_template and (where / PROCESSORS_TEMPLATE).exists():
            tokenizer.chat_template = parse_json((where / PROCESSORS_TEMPLATE).read_text())["chat_template"]
    except Exception as error:  # transformers' many loaders raise many kinds of errors
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"config.data.tokenizer: transformers loads no tokenizer from {folder}: {reason}") from error
    return tokenizer


def needs_context(tokenizer: Any) -> bool:
    """Whether text after a special token is tokenized differently from the same text alone (a prefix of spaces)."""
    token = next(iter(tokenizer.get_added_vocab()), None)
    if token is None:
        return False
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = False
    ids = [backend.encode(text, add_special_tokens=False).ids for text in (f"{token}a", "a")]
    backend.encode_special_tokens = True
    return bool(ids[0][1:] != ids[1])


class AddedTokens:
    """The tokens that a tokenizer finds in a text before it does anything else, as ``transformers`` finds them.

    Attributes:
      ids: by token.
      pattern: finds them, the longest first, with the blanks that some of them absorb; None if there are none.
      special: finds those that count as text where people wrote them, and the characters that only we use.
    """

    def __init__(self, tokenizer: Any, reserved: str = ""):
        """``reserved``: more characters that ``special`` finds."""
        added = sorted(tokenizer.added_tokens_decoder.items(), key=lambda item: len(str(item[1])), reverse=True)
        self.ids = {str(token): number for number, token in added}
        words = [
            r"\s*" * getattr(token, "lstrip", False) + re.escape(str(token)) + r"\s*" * getattr(token, "rstrip", False)
            for _, token in added
        ]  # fmt: skip
        self.pattern = re.compile("|".join(words)) if words else None
        special = [re.escape(str(token)) for _, token in added if getattr(token, "special", True)]
        special += [re.escape(character) for character in reserved]
        self.special = re.compile("|".join(special)) if special else None

    def id_of(self, found: re.Match[str]) -> int:
        """The id of the token that ``pattern`` found."""
        return self.ids[found[0]] if found[0] in self.ids else self.ids[found[0].strip()]

    def is_in(self, text: str) -> bool:
        """Whether a text contains one of the tokens."""
        return bool(self.pattern and self.pattern.search(text))

    def words(self, text: str) -> Iterator[re.Match[str]]:
        """Finds the tokens that are more than blanks and line ends."""
        return (match for match in self.pattern.finditer(text) if match[0].strip()) if self.pattern else iter(())


def text_encoder(tokenizer: Any) -> _Bytes | _Batches | _OneByOne:
    """Returns a function from texts to ids, in which special tokens stay text; it can be pickled."""
    if isinstance(tokenizer, ByT5Tokenizer):
        return _Bytes(tokenizer)
    from transformers import ByT5Tokenizer as TheirByT5
    from transformers import PreTrainedTokenizerFast

    if type(tokenizer) is TheirByT5:  # from a folder: the same ids
        return _Bytes(ByT5Tokenizer())
    fast, methods = PreTrainedTokenizerFast, ("encode", "__call__", "_encode_plus")
    is_plain = isinstance(tokenizer, fast) and all(getattr(type(tokenizer), m) is getattr(fast, m) for m in methods)
    return _Batches(tokenizer) if is_plain else _OneByOne(tokenizer)  # a subclass may tokenize in a way of its own


class _Bytes:
    """ByT5's ids."""

    def __init__(self, tokenizer: ByT5Tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> list[Ids]:
        return [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]

    after_special = __call__


class _Batches:
    """The ids of a tokenizer of the tokenizers library: many texts per call, which it spreads over its threads."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> list[Ids]:
        backend = self.tokenizer.backend_tokenizer
        # Another user of the tokenizer may have set these.
        backend.encode_special_tokens = True
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        # Without offsets, which nobody reads.
        return [one.ids for one in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def after_special(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of texts that follow a special token each, as in our conversations when a whole prompt is encoded."""
        ids = self(texts)
        if not needs_context(self.tokenizer):
            return ids
        added, backend = AddedTokens(self.tokenizer), self.tokenizer.backend_tokenizer
        plain = [n for n, text in enumerate(texts) if added.ids and not added.is_in(text)]  # elsewhere tokens stay text
        before = next(iter(self.tokenizer.get_added_vocab()))
        backend.encode_special_tokens = False
        encoded = backend.encode_batch_fast([before + texts[n] for n in plain], add_special_tokens=False)
        backend.encode_special_tokens = True
        for n, one in zip(plain, encoded, strict=True):
            ids[n] = one.ids[1:]
        return ids


class _OneByOne:
    """The ids of any other tokenizer, by its own method."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> list[Ids]:
        # verbose=False: no warning where a document is longer than the tokenizer's maximum length.
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        return [self.tokenizer.encode(text, **options) for text in texts]

    after_special = __call__
