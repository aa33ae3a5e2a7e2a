"""A source whose media show what those of other examples do: what is still predicted then was not seen.

Text and number of media stay, and so do media of other modalities. Swapping is in the index, so that a swapped source
runs through the same plan, loader and step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxmm.data.media import table
from jaxmm.data.media.medium import SEPARATORS
from jaxmm.data.packing.inner_text import Encode
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.limits import Budgets
from jaxmm.data.prepare.index import CLIPS, COLUMNS, Columns
from jaxmm.data.prepare.records import Record

CONTENT = ("image_height_I", "image_width_I", "image_kind_I", *CLIPS)  # columns that say what a medium shows
NEAR = 32  # places up and down, in the order of length, in which a partner is looked for


class Swapped(Columns):
    """The first examples of an index, in which medium i shows what medium ``from_I[i]`` does, of the same kind; itself
    where that is i."""

    def __init__(self, index: Columns, from_I: np.ndarray, examples: int):
        self.meta, self.from_I, self._index = index.meta, from_I, index
        counts = {"E": examples, "E1": examples + 1, "I": len(from_I), "R": int(index.runs_E1[examples])}
        for name in COLUMNS:
            column = getattr(index, name)[: counts[name.rpartition("_")[2]]]
            setattr(self, name, np.asarray(column)[from_I] if name in CONTENT else column)

    def read(self, example: int) -> Record:
        record = self._index.read(example)
        first, images = int(self.images_E1[example]), list(record.images)
        for place, shown in enumerate(self.from_I[first : first + len(images)].tolist()):
            if shown != first + place:
                owner = int(np.searchsorted(self.images_E1, shown, side="right")) - 1
                images[place] = self._index.read(owner).images[shown - int(self.images_E1[owner])]
        return record._replace(images=images)


class Swap(NamedTuple):
    """The first examples of a source, with the media of one modality swapped among them.

    Attributes:
      lengths: of the swapped examples.
      has_E: bool (examples,), which have the modality.
      is_swapped_E: bool (examples,), those of them in which every medium of it shows another example's, and that fit a
        row if they did before.
    """

    lengths: Lengths
    has_E: np.ndarray
    is_swapped_E: np.ndarray


def swap(lengths: Lengths, modality: str, budgets: Budgets, encode: Encode | None = None, examples: int = 0) -> Swap:
    """Swaps all media of a modality; partners are of the same kind, of other examples, and of about the same length.

    A document that would not fit a row any more takes from media that are no larger, or is not swapped. The same source
    is always swapped in the same way.

    Args:
      encode: as in ``Lengths``.
      examples: at most so many, the first ones; 0 is all.
    """
    index, count = lengths.prepared, min(len(lengths), examples or len(lengths))
    owner_I = np.repeat(np.arange(count), np.diff(index.images_E1[: count + 1]))
    those = np.zeros(len(owner_I), bool)
    for medium, which in table.by_medium(np.asarray(index.image_kind_I[: len(owner_I)])):
        if medium.modality == modality and not medium.is_text:
            those[slice(None) if which is None else which] = True
    media, own = _Media(lengths, owner_I, budgets), np.arange(len(owner_I))

    def swapped(from_I: np.ndarray) -> tuple[Lengths, np.ndarray]:
        """The swapped examples, and which of them fitted a row until then."""
        made = Lengths(Swapped(index, from_I, count), lengths.spec, encode=encode)
        was_long = lengths.is_long(lengths.all_needs[:count], budgets)
        return made, made.is_long(made.all_needs, budgets) & ~was_long

    from_I = media.partners(those)
    made, outgrown_E = swapped(from_I)
    if outgrown_E.any():
        again = those & outgrown_E[owner_I]
        from_I = np.where(again, media.partners(those, again, no_larger=True), from_I)
        made, outgrown_E = swapped(from_I)
    has_E = np.bincount(owner_I[those], minlength=count) > 0
    kept_E = np.bincount(owner_I[those & (from_I == own)], minlength=count) > 0
    return Swap(made, has_E, has_E & ~kept_E & ~outgrown_E)


class _Media:
    """What is known of a source's first media when partners are chosen; ``owner_I``: their examples."""

    def __init__(self, lengths: Lengths, owner_I: np.ndarray, budgets: Budgets):
        these = slice(0, len(owner_I))
        self.owner_I, self.span_I = owner_I, lengths.spans(these)
        self.kind_I = np.asarray(lengths.prepared.image_kind_I[these])
        self.has_intro_I = table.have_intro(lengths.extents(these), lengths.spec)
        columns = [np.asarray(getattr(lengths.prepared, name)[these], np.int64) for name in CONTENT]
        _, looks = np.unique(np.stack(columns, 1), axis=0, return_inverse=True)
        self.looks_I = looks.reshape(-1)  # media of one size may be one and the same, in several examples
        self.needs = lengths.media_needs(these) if len(owner_I) else {}
        self.fits_I = self.span_I + SEPARATORS <= budgets.tokens
        for name, needs in self.needs.items():
            self.fits_I = self.fits_I & (needs <= budgets.get(name))
        self.chance_I = np.random.default_rng(0).random(len(owner_I))

    def partners(self, those: np.ndarray, wanted: np.ndarray | None = None, no_larger: bool = False) -> np.ndarray:
        """int64 (I,): the medium that each takes the content of; itself where there is none.

        Args:
          those: bool (I,), the media that may be taken from.
          wanted: those that need one; by default all of them.
          no_larger: partners take no more of any budget.
        """
        chosen = np.arange(len(self.owner_I))
        for kind in np.unique(self.kind_I[those]):
            media = np.flatnonzero(those & (self.kind_I == kind))
            order = media[np.lexsort((self.chance_I[media], self.span_I[media]))]
            open_ = np.ones(len(order), bool) if wanted is None else wanted[order]
            self._choose(order, open_.copy(), chosen, no_larger)
        return chosen

    def _choose(self, order: np.ndarray, is_open: np.ndarray, chosen: np.ndarray, no_larger: bool) -> None:
        """Writes partners of the open media of one kind, which are in the order of their lengths, into ``chosen``."""
        ranks = np.arange(len(order))
        way = 1 - 2 * (ranks & 1)  # up and down in turns: neighbours take each other's, and nothing grows on the whole
        for may_look_alike in (False, True):
            for step in range(1, min(len(order), NEAR + 1)):
                for there in (ranks + step * way, ranks - step * way):
                    if not is_open.any():
                        return
                    at = np.flatnonzero(is_open & (there >= 0) & (there < len(order)))
                    mine, other = order[at], order[there[at]]
                    good = self._is_partner(mine, other, no_larger)
                    good &= may_look_alike | (self.looks_I[mine] != self.looks_I[other])
                    chosen[mine[good]] = other[good]
                    is_open[at[good]] = False
        # An example with very many media of one length: what is left takes from whoever is another one.
        pool = order[self.fits_I[order]]
        for far in (pool[:1], pool[self.owner_I[pool] != self.owner_I[pool[:1]]][:1]) if len(pool) else ():
            mine = order[is_open]
            if len(far) and len(mine):
                good = self._is_partner(mine, np.repeat(far, len(mine)), no_larger)
                chosen[mine[good]] = far[0]
                is_open[np.flatnonzero(is_open)[good]] = False

    def _is_partner(self, mine: np.ndarray, other: np.ndarray, no_larger: bool) -> np.ndarray:
        good = (self.owner_I[mine] != self.owner_I[other]) & self.fits_I[other]
        good &= self.has_intro_I[mine] == self.has_intro_I[other]  # the text before them stays
        if no_larger:
            good &= self.span_I[other] <= self.span_I[mine]
            for needs in self.needs.values():
                good &= needs[other] <= needs[mine]
        return good
