"""Which piece of which example stands in which row: integers only, long before a pixel is decoded.

The rows of global batch k are a pure function of (prepared index, shares, budgets, seed, k). Each source is an endless
stream of its examples, permuted anew each epoch; a window takes as many from each as its share of tokens asks for,
packs them by best fit under several budgets, and shuffles the rows. Windows follow each other without a gap, so that a
table of rows per window finds any batch.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmm.batch import TARGET, ImageSpec
from jaxmm.data import media
from jaxmm.data.prepared import Columns
from jaxmm.errors import UserError

LONG_DOCUMENTS = ("split", "truncate", "drop")


class Budgets(NamedTuple):
    """What a row holds at most: text positions (soft tokens included), patches, media items, targets."""

    tokens: int
    patches: int
    items: int
    targets: int


class Piece(NamedTuple):
    """Positions [first, last) of an example, soft tokens counted: a whole example, or a part of a long one.

    ``epoch`` counts the passes over its source, from 0.
    """

    source: int
    example: int
    first: int
    last: int
    epoch: int = 0


Row = list[Piece]


class Lengths:
    """The sizes of one source's examples under an ImageSpec: (E,) arrays, and (I,) arrays of their images."""

    def __init__(self, prepared: Columns, spec: ImageSpec):
        self.prepared = prepared
        self.name = str(prepared.meta["name"])
        self.rows_I, self.columns_I = media.grid_size(prepared.image_height_I, prepared.image_width_I, spec)
        self.patches_I = self.rows_I * self.columns_I
        self.slots_I = self.patches_I // spec.merge**2
        images = np.asarray(prepared.images_E1)
        self.items_E = np.diff(images)
        self.patches_E = _sums(self.patches_I, images)
        self.tokens_E = np.asarray(prepared.tokens_E, np.int64) + _sums(self.slots_I, images)
        self.targets_E = _target_counts(prepared)

    def __len__(self) -> int:
        return len(self.tokens_E)

    def needs(self, examples: np.ndarray) -> np.ndarray:
        """(len(examples), 4): what each takes of each budget, in the order of Budgets."""
        columns = (self.tokens_E, self.patches_E, self.items_E, self.targets_E)
        return np.stack([c[examples] for c in columns], 1)


def _sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sums of ``values`` between consecutive offsets; empty ranges give 0."""
    total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return total[offsets[1:]] - total[offsets[:-1]]


def _target_counts(prepared: Columns) -> np.ndarray:
    """Targets of each example: the lengths of its runs flagged TARGET, summed."""
    runs = np.asarray(prepared.runs_E1)
    starts = np.asarray(prepared.run_start_R, np.int64)
    ends = np.empty_like(starts)
    ends[:-1] = starts[1:]
    last = runs[1:][np.diff(runs) > 0] - 1
    ends[last] = np.asarray(prepared.tokens_E)[np.diff(runs) > 0]
    is_target = (np.asarray(prepared.run_flags_R) & TARGET) > 0
    return _sums(np.where(is_target, ends - starts, 0), runs)


def expanded_flags(prepared: Columns, example: int, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The layout of one example with its soft tokens in place.

    Returns:
      token_at: (tokens,) position of each text token; flags: (tokens,) of batch.TARGET and batch.ANSWER;
      slot_at: (images,) position of each image's first soft token.
    """
    count = int(prepared.tokens_E[example])
    image_at = np.asarray(prepared.image_at_I[slice(*prepared.images_E1[example : example + 2])], np.int64)
    run_slice = slice(*prepared.runs_E1[example : example + 2])
    starts = np.asarray(prepared.run_start_R[run_slice], np.int64)
    flags = np.repeat(np.asarray(prepared.run_flags_R[run_slice]), np.diff(np.append(starts, count)))
    before = np.concatenate([[0], np.cumsum(slots)])
    token_at = np.arange(count) + before[np.searchsorted(image_at, np.arange(count), side="right")]
    return token_at, flags, image_at + before[:-1]


def cut(
    lengths: Lengths, source: int, example: int, budgets: Budgets, epoch: int = 0
) -> list[tuple[Piece, np.ndarray]]:
    """Cuts a long example into the fewest pieces, front to back, that each fit a row; no image is cut.

    An image goes with its separators. Returns pieces with their needs, in the order of Budgets.

    Raises:
      UserError: if a single image exceeds a budget.
    """
    prepared = lengths.prepared
    images = slice(*(int(i) for i in prepared.images_E1[example : example + 2]))
    slots, patches = lengths.slots_I[images], lengths.patches_I[images]
    token_at, flags, slot_at = expanded_flags(prepared, example, slots)
    length = int(lengths.tokens_E[example])
    is_target = np.zeros(length + 1, np.int64)
    is_target[token_at[(flags & TARGET) > 0] + 1] = 1
    targets_before = np.cumsum(is_target)  # targets before each position
    atoms = [(int(at) - 1, int(at + n) + 1, int(p)) for at, n, p in zip(slot_at, slots, patches, strict=True)]

    pieces, first, image = [], 0, 0
    while first < length:
        limit = int(np.searchsorted(targets_before, targets_before[first] + budgets.targets, side="right")) - 1
        last, items, held = min(first + budgets.tokens, length, limit), 0, 0
        while image + items < len(atoms):
            start, end, patch_count = atoms[image + items]
            if start >= last:
                break
            if end > last or items == budgets.items or held + patch_count > budgets.patches:
                last = start
                break
            items, held = items + 1, held + patch_count
        if last <= first:
            raise UserError(
                f"{lengths.name}: {prepared.read(example).origin} has an image of {patches[image]} patches "
                f"({slots[image] + 2} tokens), more than a row holds (config.patch_budget {budgets.patches}, "
                f"config.seq_len {budgets.tokens}): raise these or lower config.image.max_pixels"
            )
        needs = np.array([last - first, held, items, targets_before[last] - targets_before[first]])
        pieces.append((Piece(source, example, first, last, epoch), needs))
        first, image = last, image + items
    return pieces


def pack(needs: np.ndarray, budgets: Budgets) -> list[list[int]]:
    """Packs items of (n, 4) needs into rows by best fit, largest first: the fullest row with room takes the next.

    Returns the items of each row. The caller sees to it that every item fits an empty row.
    """
    limits = np.array(budgets, np.int64)
    weight = (needs.sum(0) / limits) ** 4 + 1e-12
    weight = weight / weight.sum()  # the scarcest budget counts most, in "largest" and in "fullest"
    order = np.argsort(-(needs / limits @ weight), kind="stable")
    room = np.empty((len(needs), len(limits)), np.int64)
    slack = np.empty(len(needs))
    rows: list[list[int]] = []
    for item in order:
        need, used = needs[item], len(rows)
        fits = (room[:used] >= need).all(1)
        row = int(np.where(fits, slack[:used], np.inf).argmin()) if used else 0
        if not used or not fits[row]:
            row = used
            rows.append([])
            room[row] = limits
        rows[row].append(int(item))
        room[row] -= need
        slack[row] = (room[row] / limits) @ weight
    return rows


def balanced_order(work: np.ndarray) -> list[int]:
    """Orders rows so that the work of every power-of-two split into equal runs is about even."""

    def deal(rows: list[int]) -> list[int]:
        if len(rows) < 2 or len(rows) % 2:
            return rows
        halves: tuple[list[int], list[int]] = ([], [])
        totals = [0.0, 0.0]
        for heavy, light in zip(rows[::2], rows[1::2], strict=True):
            lighter = int(totals[1] < totals[0])
            halves[lighter].append(heavy)
            halves[1 - lighter].append(light)
            totals[lighter] += work[heavy]
            totals[1 - lighter] += work[light]
        return deal(halves[0]) + deal(halves[1])

    return deal([int(r) for r in np.argsort(-work, kind="stable")])


def _work(rows: Sequence[Row]) -> np.ndarray:
    """Causal attention work of rows, in pairs of positions."""
    return np.array([sum((p.last - p.first) ** 2 for p in row) for row in rows], float)


def choose_budgets(
    lengths: Sequence[Lengths], shares: Sequence[float], seq_len: int, patch_budget: int, target_budget: int, merge: int
) -> Budgets:
    """The budgets of a row; those given as 0 are picked from the index.

    A picked budget holds what ``seq_len`` average tokens of the mixture need with some room, and the largest example
    that fits ``seq_len``, rounded up to a multiple of 64. Patches get a fifth more, as they are what a tower pays for;
    targets six tenths, as documents that are all targets would else leave rows half empty.
    """
    totals = np.zeros(4)
    largest = np.zeros(4, np.int64)
    group = merge**2
    for source, share in zip(lengths, np.array(shares, float) / np.sum(shares), strict=True):
        needs = source.needs(np.arange(len(source)))
        totals += share * needs.sum(0) / max(needs[:, 0].sum(), 1)
        whole = needs[needs[:, 0] <= seq_len]
        if len(whole):
            largest = np.maximum(largest, whole.max(0))
        if len(source.patches_I):
            largest[1] = max(largest[1], source.patches_I.max())
        if len(whole) < len(needs):  # a piece of a long example may be targets from end to end
            largest[3] = seq_len
    typical = totals * seq_len * (1.0, 1.2, 2.0, 1.6)

    def pick(column: int) -> int:
        return int(-(-max(typical[column], largest[column], 1) // 64) * 64)

    patches = patch_budget or -(-pick(1) // group) * group
    if patches % group:
        raise UserError(f"config.patch_budget {patches} is no multiple of config.image.merge squared, {group}")
    items = max(8, int(largest[2]), int(np.ceil(typical[2])))
    return Budgets(seq_len, patches, min(items, patches // group), min(target_budget or pick(3), seq_len))


class _Stream:
    """One source as an endless stream: epoch after epoch, each a permutation of its examples.

    ``tokens_E`` is what each example adds to the source's share.
    """

    def __init__(self, tokens_E: np.ndarray, seed: Sequence[int]):
        self.tokens_E, self.seed = tokens_E, tuple(seed)
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def epoch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(examples in order, their tokens cumulated) of an epoch; the two last asked for are kept."""
        if number not in self._epochs:
            order = np.random.default_rng((*self.seed, number)).permutation(len(self.tokens_E))
            while len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            self._epochs[number] = order, np.cumsum(self.tokens_E[order])
        return self._epochs[number]

    def take(self, start: int, tokens: int) -> tuple[np.ndarray, int]:
        """Examples from stream position ``start`` on, until they hold at least ``tokens``; and the tokens they hold."""
        taken, count = [], 0
        while count < tokens:
            number, offset = divmod(start, len(self.tokens_E))
            order, total = self.epoch(number)
            before = total[offset - 1] if offset else 0
            stop = int(np.searchsorted(total, before + tokens - count, side="left")) + 1
            stop = min(stop, len(order))
            taken.append(order[offset:stop])
            count += int(total[stop - 1] - before)
            start += stop - offset
        return (np.concatenate(taken) if taken else np.zeros(0, np.int64)), count


class Plan:
    """Rows of any batch of an endless run over a mixture of sources."""

    def __init__(
        self,
        lengths: Sequence[Lengths],
        shares: Sequence[float],
        budgets: Budgets,
        batch_size: int,
        seed: int,
        long_documents: str = "split",
        window_rows: int = 512,
    ):
        """
        Args:
          shares: of tokens (text plus soft tokens) by source; positive, any sum.
          window_rows: about how many rows are planned at a time; more packs tighter, fewer starts sooner.
        Raises:
          UserError: if an example's smallest piece exceeds a budget, or nothing is left to train on.
        """
        if long_documents not in LONG_DOCUMENTS:
            raise UserError(f"config.data.long_documents '{long_documents}' is not one of {', '.join(LONG_DOCUMENTS)}")
        self.lengths, self.budgets = list(lengths), budgets
        self.shares = np.array(shares, float) / np.sum(shares)
        self.batch_size, self.seed, self.long_documents = batch_size, seed, long_documents
        self.window_tokens = window_rows * budgets.tokens
        self._check_sources()
        self._streams = [_Stream(self._used_tokens(i), (seed, i)) for i in range(len(self.lengths))]
        # Before each window: rows so far, and each stream's position and tokens so far.
        self._row_starts = [0]
        self._stream_starts = [(np.zeros(len(self.lengths), np.int64), np.zeros(len(self.lengths), np.int64))]
        self._windows: dict[int, list[Row]] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:  # to worker processes, each with a lock of its own
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _check_sources(self) -> None:
        limits = np.array(self.budgets)
        for i, source in enumerate(self.lengths):
            needs = source.needs(np.arange(len(source)))
            long = np.flatnonzero((needs > limits).any(1))
            if len(source) == 0 or (self.long_documents == "drop" and len(long) == len(source)):
                raise UserError(f"data source '{source.name}' has no example that fits a row: nothing to train on")
            # Only a long example with an image can fail to be cut; those with an image too large for a row do.
            large = np.flatnonzero(
                (source.patches_I > self.budgets.patches) | (source.slots_I + 2 > self.budgets.tokens)
            )
            if len(large) and self.long_documents != "drop":
                example = int(np.searchsorted(source.prepared.images_E1, large[0], side="right")) - 1
                cut(source, i, example, self.budgets)

    def _used_tokens(self, source: int) -> np.ndarray:
        """(E,) tokens of each example that get into rows: what a source's share is counted in."""
        lengths = self.lengths[source]
        tokens_E = lengths.tokens_E.copy()
        if self.long_documents != "split":
            long = np.flatnonzero((lengths.needs(np.arange(len(lengths))) > np.array(self.budgets)).any(1))
            tokens_E[long] = 0
            if self.long_documents == "truncate":
                tokens_E[long] = [cut(lengths, source, e, self.budgets)[0][0].last for e in long.tolist()]
        return tokens_E

    def pieces(self, source: int, examples: np.ndarray, epochs: np.ndarray) -> tuple[list[Piece], np.ndarray]:
        """The pieces of examples, each of an epoch, and their needs (n, 4), long ones split, truncated or dropped."""
        lengths = self.lengths[source]
        needs = lengths.needs(examples)
        long = (needs > np.array(self.budgets)).any(1)
        whole = (examples[~long].tolist(), needs[~long, 0].tolist(), epochs[~long].tolist())
        pieces = [Piece(source, example, 0, last, epoch) for example, last, epoch in zip(*whole, strict=True)]
        all_needs = [needs[~long]]
        if self.long_documents != "drop":
            for example, epoch in zip(examples[long].tolist(), epochs[long].tolist(), strict=True):
                parts = cut(lengths, source, example, self.budgets, epoch)
                for piece, need in parts[: 1 if self.long_documents == "truncate" else None]:
                    pieces.append(piece)
                    all_needs.append(need[None])
        return pieces, np.concatenate(all_needs)

    def _plan_window(self, window: int) -> list[Row]:
        """Plans one window, whose predecessors are planned, and notes where the next one starts."""
        starts, tokens = self._stream_starts[window]
        starts, tokens = starts.copy(), tokens.copy()
        pieces: list[Piece] = []
        needs = []
        for i, stream in enumerate(self._streams):
            wanted = int(self.shares[i] * self.window_tokens * (window + 1)) - int(tokens[i])
            examples, count = stream.take(int(starts[i]), wanted)
            epochs = np.arange(starts[i], starts[i] + len(examples)) // len(self.lengths[i])
            starts[i] += len(examples)
            tokens[i] += count
            found, found_needs = self.pieces(i, examples, epochs)
            pieces += found
            needs.append(found_needs)
        rows = [[pieces[i] for i in row] for row in pack(np.concatenate(needs), self.budgets)]
        order = np.random.default_rng((self.seed, 1 << 20, window)).permutation(len(rows))
        if len(self._row_starts) == window + 1:
            self._row_starts.append(self._row_starts[window] + len(rows))
            self._stream_starts.append((starts, tokens))
        return [rows[i] for i in order]

    def _window(self, window: int) -> list[Row]:
        if window not in self._windows:
            while len(self._windows) > 1:
                del self._windows[min(self._windows)]
            self._windows[window] = self._plan_window(window)
        return self._windows[window]

    def rows(self, start: int, stop: int) -> list[Row]:
        """Rows [start, stop) of the run."""
        with self._lock:
            while self._row_starts[-1] < stop:
                self._window(len(self._row_starts) - 1)
            found: list[Row] = []
            window = int(np.searchsorted(self._row_starts, start, side="right")) - 1
            while start + len(found) < stop:
                offset = start + len(found) - self._row_starts[window]
                found += self._window(window)[offset : offset + stop - start - len(found)]
                window += 1
            return found

    def batch(self, k: int) -> list[Row]:
        """The rows of global batch ``k``, in the one order that balances their work over devices."""
        rows = self.rows(k * self.batch_size, (k + 1) * self.batch_size)
        return [rows[i] for i in balanced_order(_work(rows))]


class Pass(Plan):
    """Every example of the sources once, in order, the last batch filled up with empty rows: for evaluation."""

    def __init__(
        self,
        lengths: Sequence[Lengths],
        budgets: Budgets,
        batch_size: int,
        long_documents: str = "split",
        examples: int = 0,
    ):
        """``examples``: at most that many of each source, the first ones; 0 is all."""
        super().__init__(lengths, [1.0] * len(lengths), budgets, batch_size, 0, long_documents)
        pieces: list[Piece] = []
        needs = []
        for i, source in enumerate(self.lengths):
            count = min(len(source), examples or len(source))
            found, found_needs = self.pieces(i, np.arange(count), np.zeros(count, np.int64))
            pieces += found
            needs.append(found_needs)
        packed = [[pieces[i] for i in row] for row in pack(np.concatenate(needs), budgets)]
        self._rows = packed + [[] for _ in range(-len(packed) % batch_size)]

    def __len__(self) -> int:
        """Batches in the pass."""
        return len(self._rows) // self.batch_size

    def rows(self, start: int, stop: int) -> list[Row]:
        return self._rows[start:stop]
