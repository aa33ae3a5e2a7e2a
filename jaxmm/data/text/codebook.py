"""Where discrete image tokens are in a vocabulary: after the text's tokens, or where an exported tokenizer has them."""

from __future__ import annotations

from typing import Any

from jaxmm.errors import UserError

IMAGE_CODE = "<|image_code_{}|>"  # a token of the codebook, in an exported tokenizer


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
