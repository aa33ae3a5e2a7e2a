"""Discrete tokens as a medium: ids of a codebook, which the template writes into the text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxmm.data.documents import Tokens
from jaxmm.data.media.extents import Extent, Extents
from jaxmm.data.media.medium import Array, Filled, Item, Medium, Settings, Space

TOKENS = -1


class TokensMedium(Medium):
    """Runs of discrete tokens: they take text positions, and no budget of their own."""

    name, part, kind, is_text = "image_tokens", Tokens, TOKENS, True

    def extent(self, part: Tokens) -> Extent:
        return Extent(1, len(part.ids), TOKENS)

    def path(self, part: Tokens) -> str:
        return ""

    def size(self, part: Tokens) -> int:
        return 4 * len(part.ids)

    def content(self, part: Tokens, named: Callable[[str], str]) -> bytes:
        return repr(part.ids).encode()

    def packed(self, part: Tokens | None) -> dict[str, Any]:
        return {}

    def unpacked(self, packed: Mapping[str, Any]) -> None:
        return None

    def is_packed(self, packed: Mapping[str, Any]) -> bool:
        return not packed

    def text_tokens(self, extents: Extents) -> Array:
        return np.asarray(extents.width, np.int64)

    def fill(self, space: Space, item: Item, spec: Any, settings: Settings) -> Filled:
        raise AssertionError("a record holds no part of discrete tokens: they are in its text")

    def too_large(self, item: Item, tokens: int, budgets: Any, spec: Any) -> str:
        return (
            f"{item.extent.width} image tokens ({tokens} tokens), more than a row holds (config.seq_len "
            f"{budgets.tokens}, {budgets.targets} targets): raise config.seq_len, or config.target_budget if it is set"
        )
