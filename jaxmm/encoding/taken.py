"""How much of its media a run takes of a document: what is encoded is what training on the media would have had.

A video whose document is longer than a row has fewer frames, by the rule of training and the row of the run.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxmm.data.assemble import item_of
from jaxmm.data.documents import Document, Skip
from jaxmm.data.media.headers import Looked, looked_at
from jaxmm.data.media.medium import Item
from jaxmm.data.media.table import medium_of, taken_as
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.shorten import CutShort
from jaxmm.data.prepare.index import InMemory
from jaxmm.data.text.encoded import Encoded
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec
from jaxmm.recipe import Recipe, fitted


@dataclasses.dataclass
class Cut:
    """Media of one kind: how many, how many of them are not taken whole, and the sum of the parts of these."""

    among: int = 0
    media: int = 0
    parts: float = 0.0


class Taker:
    """Reads the headers of the media of documents, and plans as a run does.

    Attributes:
      cut: what was not taken whole so far, by medium.
    """

    def __init__(self, name: str, recipe: Recipe, spec: ImageSpec, skip_errors: bool = False):
        """
        Args:
          name: of the source.
          spec: how media are taken.
          skip_errors: as in ``Source``.
        """
        self.name, self.recipe, self.spec, self.skip_errors = name, recipe, spec, skip_errors
        self.cut: dict[str, Cut] = collections.defaultdict(Cut)

    def __call__(self, documents: Sequence[Document]) -> list[list[Item] | str]:
        """Returns the media of each document, in order, or why it cannot be used.

        Raises:
          UserError: for media that the model does not take, or a document that makes no sense.
        """
        looked = [self._checked(one) for one in looked_at(documents)]
        good = [one for one in looked if not isinstance(one, str)]
        items = iter(self._items(good) if good else ())
        return [one if isinstance(one, str) else next(items) for one in looked]

    def cut_lines(self) -> Iterator[str]:
        """Tells people what was not taken whole."""
        for name, cut in self.cut.items():
            if cut.media:
                yield CutShort(name, cut.media, cut.parts / cut.media).line(cut.among, self.spec)

    def _checked(self, one: Looked | Skip) -> tuple[Encoded, list[Any], list[Any]] | str:
        if isinstance(one, Skip):
            return one.reason
        document, media, extents = one
        names = taken_as(medium_of(part).name for part in media)
        fitted(self.recipe, names)
        if "video" not in names:  # nothing depends on the text
            none = np.zeros(0, np.int32)
            return Encoded(none, none, none, np.zeros(len(media), np.int32), none), media, extents
        try:
            return self.recipe.template.encode(document), media, extents
        except UserError as error:
            if self.skip_errors:
                return "no sense"
            trouble = str(error).removeprefix(document.origin).lstrip(": ")
            raise UserError(f"{document.origin}: {trouble}") from error

    def _items(self, good: Sequence[tuple[Encoded, list[Any], list[Any]]]) -> list[list[Item]]:
        encoded, media, extents = zip(*good, strict=True)
        template = self.recipe.template
        source = InMemory(self.name, encoded, media, template.fingerprint, extents)
        lengths = Lengths(source, self.spec, encode=template.stamp)
        for name, count in lengths.media_counts().items():
            self.cut[name].among += count
        for cut in lengths.cut_short():
            self.cut[cut.medium].media += cut.media
            self.cut[cut.medium].parts += cut.media * cut.part
        firsts = source.images_E1.tolist()
        return [
            [item_of(lengths, first + k, part, self.spec) for k, part in enumerate(parts)]
            for first, parts in zip(firsts, media, strict=False)
        ]
