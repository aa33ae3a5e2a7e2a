"""How much each example takes of a row's budgets, from the index and an ImageSpec; each medium counts its own part.

Examples are counted block by block. For a large source this is done once: the counts are kept on disk and
memory-mapped. In each file a checksum follows the array.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmm.batch import TARGET
from jaxmm.data.media import table
from jaxmm.data.media.extents import Extents
from jaxmm.data.packing.array_file import is_whole, save_arrays
from jaxmm.data.packing.inner_text import Encode, InnerText
from jaxmm.data.packing.limits import FIRST, PAIRS, Budgets, budgets_of
from jaxmm.data.packing.shorten import CutShort, cut_short, joined_cuts, shortened
from jaxmm.data.prepare.index import Columns
from jaxmm.data.prepare.lock import locked
from jaxmm.image_spec import ImageSpec

BLOCK = 1 << 18  # examples counted at a time
SAVED_FROM = 1 << 18  # sources of at least so many examples keep their lengths on disk
FORMAT = 3  # raise it with any change to what is saved
ROUNDS = 4  # of shortening clips: a shorter clip may have longer text inside it


class Reference(NamedTuple):
    """What a reference model says of a source's preferences.

    Attributes:
      logps_E2: float32 (E, 2), of both answers the log-probabilities of all their tokens, summed. NaN where it was not
        asked, as the pair was longer than a row; infinite where its media could not be read.
      checksums_E: uint32 (E,), of the files of its media, which the prepared data names by their paths alone; 0 of
        pairs without such media.
    """

    logps_E2: np.ndarray
    checksums_E: np.ndarray


class Lengths:
    """The sizes of one source's examples under an ImageSpec.

    Attributes:
      columns: the names of the budgets that are counted, as ``limits.budgets_of`` names them.
      preferences: which preferences the source has, one of ``reading.PREFERENCES``.
      all_needs: int32 (E, columns), what each example takes of each budget. ``of`` returns one column; ``tokens_E``
        (soft tokens included), ``patches_E``, ``items_E`` and ``targets_E`` are some of them.
      units_I: int32 (I,), what each medium takes of its stream: patch positions of an image (class tokens included),
        vectors of ready-made features, 0 for discrete tokens.
      inner: the text inside media; ``inner_I``, int64 (I,), counts its tokens.
      widths: D of the feature vectors, by the stream in which they travel; a stream without any is not there.
      reference: of preferences, what the reference says of them, where it was asked before.
    """

    reference: Reference | None = None

    def __init__(self, prepared: Columns, spec: ImageSpec, cache: Path | None = None, encode: Encode | None = None):
        """
        Args:
          cache: a folder that keeps the lengths of a large source, so that another process need not count them.
          encode: what makes token ids of text inside media, where the spec has such text.
        """
        self.prepared, self.spec = prepared, spec
        self.name = str(prepared.meta["name"])
        self.widths = {stream: max(own) for stream, own in table.described_widths(prepared.meta).items()}
        self.preferences = str(prepared.meta.get("preferences", ""))
        self.columns = budgets_of(prepared.meta)
        self.inner = InnerText(encode)
        self._files: tuple[Path, Path] | None = None
        if cache is not None and len(prepared) >= SAVED_FROM and "fingerprint" in prepared.meta:
            media = prepared.meta.get("media", ())
            key = [FORMAT, prepared.meta["fingerprint"], *spec.key(media), *self.columns[len(FIRST) :]]
            stem = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
            self._files = cache / f"{stem}.needs.npy", cache / f"{stem}.units.npy"
            cache.mkdir(parents=True, exist_ok=True)
            if not all(map(is_whole, self._files)):
                with locked(cache / f".{stem}.lock"):  # one process counts, the others wait
                    if not all(map(is_whole, self._files)):
                        self._save(self._files)
        self._open()

    def _save(self, files: Sequence[Path]) -> None:
        shapes = (len(self.prepared), len(self.columns)), (len(self.prepared.image_at_I),)
        save_arrays(files, [(np.dtype(np.int32), shape) for shape in shapes], self._counted())

    def _open(self) -> None:
        if self._files is None:
            needs, units = zip(*self._counted(), strict=True)
            self.all_needs, self.units_I = np.concatenate(needs), np.concatenate(units)
        else:
            self.all_needs, self.units_I = (np.load(file, mmap_mode="r") for file in self._files)
        if self.inner.is_open:
            self.inner_I = self._inner()

    def _inner(self) -> np.ndarray:
        """int64 (I,): the tokens of text inside each medium. Where there is none, no page of it is ever touched."""
        inner_I, self._has_inner = np.zeros(len(self.units_I), np.int64), False
        for block in self._media_blocks():
            counted = self.inner.counted(self.units_I[block], self.extents(block), self.spec)
            if counted.any():
                inner_I[block], self._has_inner = counted, True
        return inner_I

    def __getstate__(self) -> dict:  # a worker process maps the files anew
        mapped = ("all_needs", "units_I") if self._files else ()
        plain = () if self._has_inner else ("inner_I",)  # nothing that a worker could not count
        return {k: v for k, v in self.__dict__.items() if k not in (*mapped, *plain)}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self._files:
            self._open()
        if "inner_I" not in state:
            self.inner_I = np.zeros(len(self.units_I), np.int64)

    def __len__(self) -> int:
        return len(self.all_needs)

    def of(self, budget: str) -> np.ndarray:
        """int32 (E,): what each example takes of a budget."""
        return self.all_needs[:, self.columns.index(budget)]

    @property
    def tokens_E(self) -> np.ndarray:
        return self.of("tokens")

    @property
    def patches_E(self) -> np.ndarray:
        return self.of("patches")

    @property
    def items_E(self) -> np.ndarray:
        return self.of("items")

    @property
    def targets_E(self) -> np.ndarray:
        return self.of("targets")

    def slots(self, media: np.ndarray | slice = slice(None)) -> np.ndarray:
        """int64 (n,): the soft tokens of some media. They are counted anew: of billions no process could keep them."""
        return table.measured(self.extents(media), self.spec, np.asarray(self.units_I[media], np.int64)).soft_tokens

    def spans(self, media: np.ndarray | slice = slice(None)) -> np.ndarray:
        """int64 (n,): the text positions of some media between their separators: soft tokens and text inside them."""
        return self.slots(media) + self.inner_I[media]

    def extents(self, media: np.ndarray | slice | int) -> Extents:
        """What the index stores of some of its media."""
        return Extents(self.prepared, media)

    def media_needs(self, media: np.ndarray | slice) -> dict[str, np.ndarray]:
        """int64 (n,) by budget: what some of the media take of each budget that any of them uses."""
        return table.measured(self.extents(media), self.spec, np.asarray(self.units_I[media], np.int64)).needs

    @functools.cached_property
    def totals(self) -> np.ndarray:
        """int64 (columns,): the needs of all examples, summed."""
        none = np.zeros(len(self.columns), np.int64)
        return sum((needs.sum(0, dtype=np.int64) for _, needs in self.blocks()), none)

    @property
    def total_tokens(self) -> int:
        """Tokens of all examples, soft tokens included."""
        return int(self.totals[self.columns.index("tokens")])

    def needs(self, examples: np.ndarray) -> np.ndarray:
        """int64 (len(examples), columns): what each takes of each budget."""
        return self.all_needs[examples].astype(np.int64)

    def in_order(self, needs: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Reorders needs (..., columns) to (..., names); a name that is no column gets 0."""
        if names == self.columns:
            return needs
        reordered = np.zeros((*needs.shape[:-1], len(names)), needs.dtype)
        for place, name in enumerate(names):
            if name in self.columns:
                reordered[..., place] = needs[..., self.columns.index(name)]
        return reordered

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields all needs block by block: the number of the first example, and int32 (n, columns)."""
        for start in range(0, len(self), BLOCK):
            yield start, self.all_needs[start : start + BLOCK]

    def is_long(self, needs: np.ndarray, budgets: Budgets) -> np.ndarray:
        """bool (n,): which of the (n, columns) needs exceed a row."""
        exceeds = np.zeros(len(needs), bool)
        for column, limit in enumerate(budgets.of(self.columns)):
            exceeds |= needs[:, column] > limit
        return exceeds

    def _counted(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields ``all_needs`` and ``units_I`` of the source block by block; at least one, which may be empty.

        Raises:
          UserError: if a medium has no meaning under the spec.
        """
        prepared = self.prepared
        count = len(prepared.tokens_E)
        for start in range(0, max(count, 1), BLOCK):
            stop = min(start + BLOCK, count)
            tokens = np.asarray(prepared.tokens_E[start:stop], np.int64)
            images = np.asarray(prepared.images_E1[start : stop + 1], np.int64)
            block = slice(int(images[0]), int(images[-1]))
            images = images - block.start  # not in place: it may be the index itself
            halves = 1 + (np.asarray(prepared.second_E[start:stop]) > 0)  # in each the media have their soft tokens
            media, spans = self._fitted(tokens, images, halves, Extents(prepared, block))
            runs = np.asarray(prepared.runs_E1[start : stop + 1], np.int64)
            runs_here = slice(int(runs[0]), int(runs[-1]))
            runs = runs - runs_here.start
            counted = {
                "tokens": tokens + halves * _sums(spans, images),
                "targets": _sums(_run_targets(prepared, runs_here, runs, tokens), runs),
            }
            counted |= {name: _sums(each, images) for name, each in media.needs.items()}
            counted |= {PAIRS: halves - 1} if self.preferences else {}
            needs = np.zeros((stop - start, len(self.columns)), np.int32)
            for name, column in counted.items():
                needs[:, self.columns.index(name)] = column
            yield needs, np.asarray(media.units, np.int32)

    def _fitted(
        self, tokens: np.ndarray, images: np.ndarray, halves: np.ndarray, extents: Extents
    ) -> tuple[table.Measured, np.ndarray]:
        """What the media of some examples take, and their spans, after clips that no row holds were shortened.

        ``halves``: how often the soft tokens of an example's media stand in its text.
        """
        media, times = table.measured(extents, self.spec), np.repeat(halves, np.diff(images))
        inner = self.inner.counted(media.units, extents, self.spec)
        for _ in range(ROUNDS):
            spans = (media.soft_tokens + inner) * times
            units = shortened(media.units, patches_of(media), spans, tokens, images, extents, self.spec)
            is_shorter = units != media.units
            if not is_shorter.any():
                break
            media = table.measured(extents, self.spec, units)
            inner[is_shorter] = self.inner.counted(units[is_shorter], extents.those(is_shorter), self.spec)
        return media, media.soft_tokens + inner

    def cut_short(self) -> list[CutShort]:
        """Of each kind of media that are not taken whole, how many and how much of them is left."""
        by_medium: dict[str, list[CutShort]] = {}
        for block in self._media_blocks():
            for cut in cut_short(self.units_I[block], self.extents(block), self.spec):
                by_medium.setdefault(cut.medium, []).append(cut)
        return [joined_cuts(by_medium[name]) for name in table.MEDIA if name in by_medium]

    def _media_blocks(self) -> Iterator[slice]:
        for start in range(0, len(self.units_I), BLOCK):
            yield slice(start, start + BLOCK)

    def cut_lines(self) -> Iterator[str]:
        """The same for people."""
        for cut in self.cut_short():
            yield cut.line(self.media_counts()[cut.medium], self.spec)

    def media_counts(self) -> dict[str, int]:
        """How many media of each kind the source has, by the names of those that it has."""
        counts = dict.fromkeys(table.MEDIA, 0)
        for block in self._media_blocks():
            kinds = self.extents(block).kind
            for medium, _ in table.by_medium(kinds):
                counts[medium.name] += int(medium.has(kinds).sum())
        return {name: count for name, count in counts.items() if count}


def widths_of(several: Sequence[Lengths]) -> dict[str, int]:
    """The largest ``widths`` of several sources."""
    named = [one for source in several for one in source.widths.items()]
    return {stream: max(width for name, width in named if name == stream) for stream, _ in named}


def patches_of(media: table.Measured) -> np.ndarray:
    """int64 (media,): the patches that media take of a row."""
    return media.needs.get("patches", np.zeros_like(media.units))


def _run_targets(prepared: Columns, runs: slice, offsets: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """int64: the targets in each run of a slice; ``offsets`` are those of consecutive examples into the slice."""
    starts = np.asarray(prepared.run_start_R[runs], np.int64)
    ends = np.empty_like(starts)
    ends[:-1] = starts[1:]
    has_runs = np.diff(offsets) > 0
    ends[offsets[1:][has_runs] - 1] = tokens[has_runs]
    return np.where(np.asarray(prepared.run_flags_R[runs]) & TARGET, ends - starts, 0)


def _sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sums of ``values`` between consecutive offsets; empty ranges give 0."""
    total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return total[offsets[1:]] - total[offsets[:-1]]


class Expanded(NamedTuple):
    """The layout of one example with its soft tokens in place.

    Attributes:
      token_at: (tokens,) position of each text token.
      flags: (tokens,) batch.TARGET and batch.ANSWER of each.
      weights: (tokens,) what each weighs in the loss if it is a target.
      slot_at: (images,) position of each image's first soft token, or of the first of discrete image tokens. Of a
        preference, which has them in both halves, (2 * images,).
      second: position where the second half of a preference begins; 0 of all else.
    """

    token_at: np.ndarray
    flags: np.ndarray
    weights: np.ndarray
    slot_at: np.ndarray
    second: int = 0


def expanded(prepared: Columns, example: int, slots: np.ndarray) -> Expanded:
    """Lays out an example; ``slots`` is how many soft tokens each of its images has."""
    count = int(prepared.tokens_E[example])
    image_at = np.asarray(prepared.image_at_I[slice(*prepared.images_E1[example : example + 2])], np.int64)
    if second := int(prepared.second_E[example]):
        image_at, slots = np.concatenate([image_at, image_at + second]), np.tile(slots, 2)
    run_slice = slice(*prepared.runs_E1[example : example + 2])
    starts = np.asarray(prepared.run_start_R[run_slice], np.int64)
    lengths = np.diff(np.append(starts, count))
    flags, weights = (
        np.repeat(np.asarray(c[run_slice]), lengths) for c in (prepared.run_flags_R, prepared.run_weight_R)
    )
    before = np.concatenate([[0], np.cumsum(slots)])
    token_at = np.arange(count) + before[np.searchsorted(image_at, np.arange(count), side="right")]
    at_second = second + int(before[len(slots) // 2]) if second else 0  # a medium may be the first that it holds
    return Expanded(token_at, flags, weights, image_at + before[:-1], at_second)
