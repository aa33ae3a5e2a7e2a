"""Discrete image tokens: where they are in a vocabulary (after the text's tokens, or where an exported tokenizer has
them), and how they stand in a document.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxmm.batch import ANSWER
from jaxmm.data.documents import Part, Tokens
from jaxmm.data.text.encoded import Writer
from jaxmm.errors import UserError

IMAGE_CODE = "<|image_code_{}|>"  # a token of the codebook, in an exported tokenizer


def check(image_tokens: int, is_learnt: bool) -> None:
    """Raises UserError for a codebook that cannot be, or that is not there to be predicted."""
    if image_tokens < 0:
        raise UserError(f"config.data.image_tokens is {image_tokens}: give the size of the codebook, or 0 for none")
    if is_learnt and not image_tokens:
        raise UserError(
            "config.data.predict_image_tokens=True needs config.data.image_tokens: the size of the codebook"
        )


def image_codes(count: int) -> list[str]:
    """The names of a codebook's ``count`` tokens in a tokenizer."""
    return [IMAGE_CODE.format(n) for n in range(count)]


def image_offset(tokenizer: Any, image_tokens: int) -> int:
    """The id of the codebook's first token: where an exported tokenizer has it, else after all of its tokens.

    Raises:
      UserError: if the tokenizer has a codebook of another size.
    """
    vocabulary = tokenizer.get_vocab()
    first = vocabulary.get(IMAGE_CODE.format(0))
    if first is None or not image_tokens:
        return len(tokenizer)
    ids = [vocabulary.get(name) for name in image_codes(image_tokens)]
    if ids != list(range(first, first + image_tokens)) or IMAGE_CODE.format(image_tokens) in vocabulary:
        raise UserError(
            f"config.data.image_tokens is {image_tokens}, but the tokenizer has a codebook of "
            f"{sum(name in vocabulary for name in image_codes(len(vocabulary)))} tokens"
        )
    return int(first)


class Codebook(NamedTuple):
    """The discrete image tokens of a template.

    Attributes:
      size: how many there are, 0 for none.
      offset: the id of the first of them.
      is_learnt: whether they are targets where text in their place is.
    """

    size: int
    offset: int
    is_learnt: bool

    def write_place(self, writer: Writer, part: Part, flags: int, origin: str) -> None:
        """Writes the place of a medium, without the markup around it; discrete tokens are never flagged ANSWER.

        Args:
          flags: of text in its place.
          origin: of the document, for errors.

        Raises:
          UserError: for a token that the codebook does not have.
        """
        writer.add_image()
        if isinstance(part, Tokens):
            writer.add(self._ids(part, origin), flags & ~ANSWER if self.is_learnt else 0)

    def _ids(self, tokens: Tokens, origin: str) -> np.ndarray:
        ids = np.array(tokens.ids, np.int64)
        where = f"{origin} has" if origin else "there are"
        if not self.size:
            raise UserError(f"{where} image tokens, but config.data.image_tokens is 0: give the size of the codebook")
        outside = ids[(ids < 0) | (ids >= self.size)]
        if len(outside):
            raise UserError(
                f"{where} the image token {outside[0]}, but config.data.image_tokens is {self.size}: "
                f"ids are 0 to {self.size - 1}"
            )
        return ids + self.offset
