"""Makes Batches of planned rows: reads records, and lets each medium fill its arrays beside the text.

A batch is a pure function of its rows, so that any thread or process may make it. This file does not import JAX, nor
anything that does.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmm.batch import IGNORED, Batch, Mixed, Pairs, Stream
from jaxmm.data.layout import bidirectional_blocks, lay_out, text_positions
from jaxmm.data.media import opening
from jaxmm.data.media.medium import NEWLINE, BadMedia, Filled, Item, Placed, Settings, Space
from jaxmm.data.media.table import MEDIA, medium_of, stream_places
from jaxmm.data.packing.lengths import widths_of
from jaxmm.data.packing.limits import PAIRS
from jaxmm.data.packing.pieces import segments_of
from jaxmm.data.packing.plan import Budgets, Lengths, Piece, Row
from jaxmm.image_spec import ImageSpec

# Why a pair becomes padding whose media can be read now: they could not when the reference was asked, or were others.
UNKNOWN = "it could not be read when the reference was asked: run `jaxmm reference` again"
REPLACED = "its media are not those that the reference was asked about: run `jaxmm reference` again"


class Skipped(NamedTuple):
    """A piece that became padding because one of its media could not be decoded, or by UNKNOWN or REPLACED.

    Attributes:
      medium: the name of that medium; number: its place among the media of the document.
    """

    origin: str
    reason: str
    medium: str = "image"
    number: int = 0


class Loaded(NamedTuple):
    """A Batch of the rows that this process loads, and what only the host needs to know of it."""

    batch: Batch
    rows: list[Row]  # the pieces in each row
    all_rows: Sequence[Row]  # of the global batch, whichever process loads them
    answers_BT: np.ndarray  # int32: which answer of the row the target at t belongs to, from 1; 0 for none
    skipped: list[Skipped]
    media: Counter[str]  # how many media of each name fill soft tokens in these rows; an image in tiles is one
    # Of preferences with media in files of their own, where it is compared or asked for: a checksum of these files, by
    # source and example.
    checksums: dict[tuple[int, int], int]


class Taken(NamedTuple):
    """What soft tokens are, in the row's soft-token table.

    Attributes:
      rows: int64 (soft tokens,), the row of each.
      others, weights: int64 (soft tokens, 3) and float32 (soft tokens, 4), as in ``batch.Mixed``.
    """

    rows: np.ndarray
    others: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, filled: Filled, first: int) -> Taken:
        """Those of one medium; ``first``: its first row."""
        rows = np.where(filled.rows == NEWLINE, 0, first + filled.rows)
        others, weights = filled.mixture or (np.zeros((len(rows), 3), np.int64), np.tile(ONE_ROW, (len(rows), 1)))
        return cls(rows, first + others, weights)


ONE_ROW = np.array([1, 0, 0, 0], np.float32)
NOTHING = Taken(np.full(1, IGNORED), np.zeros((1, 3), np.int64), ONE_ROW[None])  # what a position of text takes


def row_bytes(budgets: Budgets, spec: ImageSpec, widths: Mapping[str, int] = {}) -> int:
    """Returns how many bytes of memory a row of a Batch takes."""
    batch = empty_batch(0, budgets, spec, widths)
    return sum(math.prod(array.shape[1:]) * array.itemsize for array in _arrays(batch))


def _arrays(tree: Any) -> Iterator[np.ndarray]:
    """Yields the arrays in a Batch, or a part of one."""
    if isinstance(tree, np.ndarray):
        yield tree
    elif tree is not None:
        for each in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _arrays(each)


def empty_batch(rows: int, budgets: Budgets, spec: ImageSpec, widths: Mapping[str, int] = {}) -> Batch:
    """Returns a Batch of padding only. It has ready-made features only if there is a budget for them.

    Args:
      widths: as in ``Lengths``.
    """
    B, T = rows, budgets.tokens

    def zeros(*shape: int, dtype=np.int32) -> np.ndarray:
        return np.zeros(shape, dtype)

    of_media: dict[str, Any] = {}
    for medium in MEDIA.values():
        of_media |= medium.empty(rows, budgets, spec, widths)
    mixed = Mixed(zeros(B, T, 3), zeros(B, T, 4, dtype=np.float32)) if spec.mixes else None
    fields = {name: of_media.pop(name) for name in Batch._fields if name in of_media}
    return Batch(
        text=Stream(zeros(B, T), zeros(B, T, spec.text_axes), zeros(B, T)),
        slots_BT=np.full((B, T), IGNORED, np.int32),
        blocks_BT=zeros(B, T),
        targets_BT=zeros(B, T),
        weights_BT=zeros(B, T, dtype=np.float32),
        sources_BT=zeros(B, T),
        media=of_media,
        pairs=empty_pairs(rows, budgets.get(PAIRS)),
        mixed=mixed,
        **fields,
    )


def empty_pairs(rows: int, pairs: int) -> Pairs | None:
    """Arrays of so many preferences a row; None for 0."""
    if not pairs:
        return None
    kinds = Pairs(np.int32, np.int32, np.float32, np.int32, np.float32)
    shapes = [(rows, pairs, 2) if name.endswith("2") else (rows, pairs) for name in Pairs._fields]
    return Pairs(*(np.zeros(shape, kind) for shape, kind in zip(shapes, kinds, strict=True)))


class Assembler:
    """Fills Batches with planned rows. It pickles to worker processes, and each opens the files when it needs them."""

    def __init__(
        self,
        lengths: Sequence[Lengths],
        budgets: Budgets,
        spec: ImageSpec,
        *,
        jitter: float = 0.0,
        seed: int = 0,
        loss_weights: Sequence[float] = (),
        fast_decode: bool = False,
        backwards: bool = False,
        has_checksums: bool = False,
    ):
        """
        Args:
          loss_weights: what a target of each source weighs in the loss; 1 by default.
          jitter, seed, fast_decode, backwards: as in ``medium.Settings``.
          has_checksums: whether ``Loaded.checksums`` is asked for.
        """
        self.lengths, self.budgets, self.spec = list(lengths), budgets, spec
        self.settings, self.has_checksums = Settings(jitter, seed, fast_decode, backwards), has_checksums
        self.loss_weights = list(loss_weights) or [1.0] * len(self.lengths)
        self.widths = widths_of(self.lengths)
        self._places = stream_places(budgets.get, spec)

    def __call__(self, rows: list[Row]) -> Loaded:
        """Assembles rows, each a list of pieces, into a Batch of len(rows)."""
        batch = empty_batch(len(rows), self.budgets, self.spec, self.widths)
        answers_BT = np.zeros_like(batch.targets_BT)
        loaded = Loaded(batch, rows, rows, answers_BT, [], Counter(), {})
        for b in range(len(rows)):
            self._fill_row(loaded, b)
        return loaded

    def _fill_row(self, loaded: Loaded, b: int) -> None:
        """Fills row b of a batch, and adds what the host needs to know of it."""
        batch, row, answers_BT, skipped = loaded.batch, loaded.rows[b], loaded.answers_BT, loaded.skipped
        at, answer, pair, space = 0, 0, 0, Space(batch, b)
        for piece, segments in zip(row, segments_of(row, self.lengths), strict=True):
            lengths = self.lengths[piece.source]
            record = lengths.prepared.read(piece.example)
            layout = lay_out(lengths, piece, record.tokens)
            here = slice(at, at + piece.last - piece.first)
            at = here.stop
            first_image = int(lengths.prepared.images_E1[piece.example])
            parts = {i: record.images[i - first_image] for i in layout.images}
            if layout.second and not self._is_known(piece):
                skipped.append(Skipped(record.origin, UNKNOWN))
                continue
            filled, has_checksum = space.copy(), bool(layout.second) and self._has_checksum(piece.source)
            try:
                with opening.checksums(has_checksum) as files:
                    table, placed, written = self._fill_media(filled, piece, parts)
                checksum = zlib.crc32(np.array([*files.values()], "<u4").tobytes()) if files else 0
                if has_checksum and not self._is_asked(piece, checksum):
                    raise BadMedia(REPLACED)
            except BadMedia as error:
                for medium in MEDIA.values():  # clear what was written before the bad one
                    medium.clear(space)
                skipped.append(Skipped(record.origin, str(error), error.medium, max(error.number - first_image, 0)))
                continue  # its place stays padding: the plan does not move
            space = filled
            loaded.media.update(written)
            if files:
                loaded.checksums[piece.source, piece.example] = checksum
            batch.text.values[b, here] = layout.tokens
            for half, segment in zip(layout.halves, segments, strict=True):
                batch.text.positions[b, here][half] = text_positions(layout.slots[half], placed, self.spec)
                if self.spec.prefix:
                    batch.blocks_BT[b, here][half] = layout.prompt[half]
                if self.spec.bidirectional:
                    batch.blocks_BT[b, here][half] = bidirectional_blocks(layout.slots[half], placed)
                batch.text.segments[b, here][half] = segment
            if layout.second:
                self._fill_pair(batch, b, pair, piece, segments.start)
                pair += 1
            batch.slots_BT[b, here] = table.rows[layout.slots]
            if batch.mixed is not None:
                batch.mixed.others_BT3[b, here] = table.others[layout.slots]
                batch.mixed.weights_BT4[b, here] = table.weights[layout.slots]
            batch.targets_BT[b, here] = layout.targets
            weight = 1.0 if layout.second else self.loss_weights[piece.source]  # that of a pair is in ``Pairs``
            batch.weights_BT[b, here] = layout.weights * weight
            batch.sources_BT[b, here] = piece.source
            answers_BT[b, here] = np.where(layout.answers > 0, layout.answers + answer, 0)
            answer += int(layout.answers.max(initial=0))

    def _is_known(self, piece: Piece) -> bool:
        """Whether what the reference says of a pair is there, or is asked in each step."""
        known = self.lengths[piece.source].reference
        return known is None or bool(np.isfinite(known.logps_E2[piece.example]).all())

    def _has_checksum(self, source: int) -> bool:
        """Whether the files of the media of a source's pairs are told or compared."""
        return self.has_checksums or self.lengths[source].reference is not None

    def _is_asked(self, piece: Piece, checksum: int) -> bool:
        """Whether a pair's media are those that the reference was asked about."""
        known = self.lengths[piece.source].reference
        return known is None or int(known.checksums_E[piece.example]) == checksum

    def _fill_pair(self, batch: Batch, b: int, pair: int, piece: Piece, segment: int) -> None:
        """Fills place ``pair`` of row b; ``segment``: of its first half."""
        assert batch.pairs is not None, "the plan counts pairs"
        source = self.lengths[piece.source]
        reference = 0.0 if source.reference is None else source.reference.logps_E2[piece.example]
        verdict, weight = source.prepared.verdict_E[piece.example], self.loss_weights[piece.source]
        of_pair = segment, verdict, weight, piece.source, reference
        for array, value in zip(batch.pairs, of_pair, strict=True):
            array[b, pair] = value

    def _fill_media(
        self, space: Space, piece: Piece, parts: Mapping[int, Any]
    ) -> tuple[Taken, list[Placed], list[str]]:
        """Writes a piece's media one after the other; ``parts`` has them by their number in the source.

        Returns:
          What the piece's soft tokens are; the grids of soft tokens that are numbered together; and the name of each
          medium that was written.

        Raises:
          BadMedia: if one cannot be used; some of the media may then be written.
        """
        taken, placed, written = list[Taken](), list[Placed](), list[str]()
        for i, part in parts.items():
            if part is None:
                continue  # its content is in the text
            medium, item = medium_of(part), item_of(self.lengths[piece.source], i, part, self.spec, piece)
            place = self._places[medium.stream]
            first = place.start + int(medium.table_rows(space.taken.get(medium.stream, 0), self.spec))
            try:
                filled = medium.fill(space, item, self.spec, self.settings)
            except BadMedia as error:
                error.medium, error.number = medium.name, i
                raise
            space.take(medium.stream, item.needs)
            taken.append(Taken.of(filled, first))
            placed += Placed.of(filled)
            written.append(medium.name)
        return Taken(*map(np.concatenate, zip(*taken, NOTHING, strict=True))), placed, written


def item_of(lengths: Lengths, i: int, part: Any, spec: ImageSpec, piece: Piece | None = None) -> Item:
    """Returns medium number ``i`` of a source, as the plan takes it.

    Args:
      piece: in which it stands.
    """
    extents, units = lengths.extents(i), int(lengths.units_I[i])
    needs = medium_of(part).needs(units, extents, spec)
    source, epoch = (piece.source, piece.epoch) if piece else (0, 0)
    return Item(part, extents.one(), units, int(lengths.slots(slice(i, i + 1))[0]), needs, source, i, epoch)
