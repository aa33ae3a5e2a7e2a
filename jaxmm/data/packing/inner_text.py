"""Text inside media that depends on how they are sampled, as a video's time stamps: counted, then laid out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxmm.data.media import table
from jaxmm.data.media.extents import Extent, Extents
from jaxmm.image_spec import ImageSpec

Encode = Callable[[str], Sequence[int]]  # a text to token ids, special tokens included


class InnerText:
    """The token ids of all texts that stand inside a source's media.

    It pickles with the ids, but without what made them: a worker process only lays out what was counted.

    Attributes:
      is_open: whether new texts may come.
    """

    def __init__(self, encode: Encode | None = None):
        self.is_open, self._encode = True, encode
        self._ids: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"is_open": False, "_encode": None, "_ids": self._ids}

    def counted(self, units: np.ndarray, extents: Extents, spec: ImageSpec) -> np.ndarray:
        """Returns int64 (media,): the tokens inside each medium; equal media are counted once."""
        counts = np.zeros(len(units), np.int64)
        for medium, which in table.by_medium(extents.kind):
            if not medium.has_inner(spec):
                continue
            own = extents.those(which)
            own_units = units if which is None else units[which]
            keys = np.stack([np.asarray(column, np.int64) for column in medium.inner_keys(own_units, own, spec)], 1)
            _, first, where = np.unique(keys, axis=0, return_index=True, return_inverse=True)
            columns = (own.height, own.width, own.length, own.rate_num, own.rate_den)
            each = []
            for i in first.tolist():
                extent = Extent.read(medium.kind, [column[i] for column in columns])
                each.append(sum(len(ids) for _, ids in self._inside(medium, int(own_units[i]), extent, spec)))
            counts[slice(None) if which is None else which] = np.array(each, np.int64)[where.reshape(-1)]
        return counts

    def inside(self, units: int, extent: Extent, spec: ImageSpec) -> list[tuple[int, np.ndarray]]:
        """Returns what stands inside one medium: (the soft token that it stands before, int32 ids), in order."""
        return self._inside(table.medium_of_kind(extent.kind), units, extent, spec)

    def _inside(self, medium: Any, units: int, extent: Extent, spec: ImageSpec) -> list[tuple[int, np.ndarray]]:
        return [(at, self._of(text)) for at, text in medium.inner(units, extent, spec)]

    def _of(self, text: str) -> np.ndarray:
        if text not in self._ids:
            if self._encode is None:
                raise ValueError(f"nothing was given that encodes {text!r}, which stands inside a medium")
            self._ids[text] = np.array(self._encode(text), np.int32)
        return self._ids[text]
