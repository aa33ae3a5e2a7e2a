"""Packs items into rows under several budgets, all rows at a time, and orders the rows of a batch.

Best fit, one item after another, is a loop of millions of small steps. Here every open row chooses at once. In each
round it takes the largest remaining item that it has room for. Where several rows want the same item, the row with most
room takes it, and the others take the next smaller ones. With rows and items sorted, that is one pass of
``minimum.accumulate``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from jaxmm.data.packing.limits import FIRST

GOLDEN = 0.6180339887498949  # its multiples modulo 1 are spread evenly, however many there are
BLOCK = 64  # neighbours in size, among which the second budget decides who gets which
MATTERS = 0.3  # fraction of the scarcest budget's load; a budget with less load is respected, but not balanced
SCARCE = 0.75  # the same for the third scarcest and those after it, where media have budgets of their own
AT_ONCE = 0.7  # fraction of the open rows that are filled next
FEW = 16  # fewer open rows than this are filled all at once
SMALL = 600  # up to so many items are also packed one by one, if their rows are not full
ENOUGH = 1.005  # times the least number of rows: not worth another try
TRIES = 8  # times in a row that another budget may refuse a row's choice


def assign(needs: np.ndarray, limits: Sequence[int]) -> np.ndarray:
    """Packs items into few rows.

    Best fit fills the scarcest budget, by the sum of the needs. Items that are large in the second scarcest are dealt
    out evenly before that, so that no row runs out of it while others have some left. So are those that are large in a
    third one, if a medium has a budget of its own: rows of text and images keep the plan that their runs began with.

    Args:
      needs: (n, budgets), what each item takes; each item fits an empty row. The budgets are those of ``limits``: the
        first ones, and then those of further media.
      limits: what a row holds of each budget.

    Returns:
      int64 (n,): the row of each item; rows count from 0, without gaps.
    """
    rows = _packed(_Rows(np.asarray(needs, np.int64), np.asarray(limits, np.int64)))
    tries = [rows]
    if len(needs) and rows.of_item.max() + 1 > ENOUGH * max(rows.loads()):
        if rows.dealt:  # coarse items that are dealt first may leave no room for the others: then pack all by size
            tries.append(_packed(rows.emptied(dealt=[])))
        if len(needs) <= SMALL:
            tries.append(_one_by_one(rows.emptied(dealt=[])))
    return min(tries, key=lambda attempt: int(attempt.of_item.max(initial=-1))).of_item


def _packed(rows: _Rows) -> _Rows:
    left = np.arange(len(rows.of_item))
    while len(left):
        opened = rows.open(max(1, int(np.ceil(max(rows.loads(left))))))
        for budget in rows.dealt:
            rows.deal(left, opened, budget)
            left = rows.unplaced(left)
        # The smallest items end up in the rows that are filled last, and fill their gaps: so not all rows at once.
        while len(opened) and len(left):
            count = len(opened) if len(opened) < FEW else int(AT_ONCE * len(opened))
            rows.fill(left, opened[:count], least=count // 400 if count < len(opened) else 1)
            left, opened = rows.unplaced(left), opened[count:]
    is_used = np.bincount(rows.of_item) > 0
    rows.of_item = (np.cumsum(is_used) - 1)[rows.of_item]
    return rows


def ordered(keys: np.ndarray) -> np.ndarray:
    """A stable argsort of int64 keys below 2**40. It sorts keys and indices as one number, which is faster."""
    bits = max(1, len(keys).bit_length())
    return np.sort((keys << bits) | np.arange(len(keys))) & ((1 << bits) - 1)


def _one_by_one(rows: _Rows) -> _Rows:
    """Best fit, the largest item first, each into the fullest row with room: fast enough for a few items."""
    needs, limits = np.stack(rows.needs, 1), np.array(rows.limits)
    parts = needs / limits
    room, slack, used = np.tile(limits, (len(needs), 1)), np.full(len(needs), float(len(limits))), 0
    for item in np.argsort(-parts.max(1), kind="stable").tolist():
        fits = (room[:used] >= needs[item]).all(1)
        row = int(np.where(fits, slack[:used], np.inf).argmin()) if fits.any() else used
        used = max(used, row + 1)
        room[row] -= needs[item]
        slack[row] -= parts[item].sum()
        rows.of_item[item] = row
    return rows


class _Rows:
    """Rows being filled. Budgets are sorted, the scarcest first; those that cannot bind are left out.

    Attributes:
      needs: for each budget an array over items.
      room: for each budget an array over rows.
      dealt: the other budgets that matter, whose large items are dealt out first.
    """

    def __init__(self, needs: np.ndarray, limits: np.ndarray):
        parts = needs / np.maximum(limits, 1)
        loads = parts.sum(0)
        binding: list[int] = []
        for j in np.argsort(-loads, kind="stable").tolist():
            if not any((parts[:, j] <= parts[:, i]).all() for i in binding):
                binding.append(j)
        self.needs = [np.ascontiguousarray(needs[:, j]) for j in binding]
        self.limits = [int(limits[j]) for j in binding]
        self._empty([])
        for place, j in enumerate(binding):
            matters = place == 1 and loads[j] > MATTERS * loads[binding[0]]
            is_scarce = place > 1 and len(limits) > len(FIRST) and loads[j] > SCARCE * loads[binding[0]]
            if matters or is_scarce:
                self.dealt.append(place)

    def _empty(self, dealt: list[int]) -> None:
        self.dealt = dealt
        self.room = [np.zeros(0, np.int64) for _ in self.limits]
        self.of_item = np.full(len(self.needs[0]), -1, np.int64)

    def emptied(self, dealt: list[int]) -> _Rows:
        """The same items and budgets, and no rows yet."""
        rows = copy.copy(self)
        rows._empty(dealt)
        return rows

    def loads(self, items: np.ndarray | slice = slice(None)) -> list[float]:
        """The least number of rows that hold some items, by budget."""
        return [int(need[items].sum()) / limit for need, limit in zip(self.needs, self.limits, strict=True)]

    def open(self, count: int) -> np.ndarray:
        """Returns the numbers of ``count`` new rows."""
        first = len(self.room[0])
        self.room = [np.append(room, np.full(count, n)) for room, n in zip(self.room, self.limits, strict=True)]
        return np.arange(first, first + count)

    def unplaced(self, items: np.ndarray) -> np.ndarray:
        return items[self.of_item[items] < 0]

    def place(self, items: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Puts each item into its row, all of them different, if there is room. Returns bool (n,): which were put."""
        taken = [(need[items], room[rows]) for need, room in zip(self.needs, self.room, strict=True)]
        fits = np.ones(len(items), bool)
        for need, room in taken:
            fits &= need <= room
        for room, (need, before) in zip(self.room, taken, strict=True):
            room[rows] = before - np.where(fits, need, 0)
        self.of_item[items[fits]] = rows[fits]
        return fits

    def deal(self, items: np.ndarray, rows: np.ndarray, budget: int) -> None:
        """Deals out items that are larger in a budget than in the first: one a row and round, largest to most room."""
        if not len(items):
            return
        first, second = (self.needs[j][items] / self.limits[j] for j in (0, budget))
        if budget == 1:
            fine = (second < second.mean() / 2) & (first > first.mean() / 50)  # better kept to fill small gaps
        else:  # most rows hold some of it already: what is small in the first budget is worth more in their gaps
            fine = first < first.mean() / 2
        items = items[(second > first) & ~fine]
        items = items[ordered(-self.needs[budget][items])]
        for start in range(0, len(items), len(rows)):
            some = items[start : start + len(rows)]
            self.place(some, rows[ordered(-self.room[budget][rows])[: len(some)]])

    def fill(self, items: np.ndarray, rows: np.ndarray, least: int) -> None:
        """Fills rows by rounds of best fit in the first budget, until a round places fewer than ``least`` items."""
        sizes = self.needs[0][items]
        order = ordered(sizes)
        items, sizes = items[order], sizes[order]
        spread = (rows * GOLDEN) % 1
        failed = np.zeros(len(rows), np.int64)
        while len(items) and len(rows):
            room = self.room[0][rows]
            wants = _wants(room, sizes, spread)
            order = ordered(-wants)
            rows, wants, failed, spread = rows[order], wants[order], failed[order], spread[order]

            choice = np.searchsorted(sizes, wants, side="right") - 1
            # A row whose choice another budget refused looks among smaller items, each row at another place.
            if failed.any():
                choice -= (choice * failed * (0.5 + spread) / (2 * TRIES)).astype(np.int64)
            steps = np.arange(len(rows))
            choice = np.minimum.accumulate(choice + steps) - steps  # each at least one below the row before
            count = int(np.searchsorted(-choice, 0, side="right"))
            choice = choice[:count]
            if 1 in self.dealt:
                self._match(choice, items, sizes, rows[:count], wants[:count])
            fits = self.place(items[choice], rows[:count])
            failed[:count] = np.where(fits, 0, failed[:count] + 1)
            kept = np.ones(len(items), bool)
            kept[choice[fits]] = False
            items, sizes = items[kept], sizes[kept]
            if count - int(np.count_nonzero(kept[choice])) < least or not len(items):
                return
            live = (self.room[0][rows] >= sizes[0]) & (failed <= TRIES)
            rows, failed, spread = rows[live], failed[live], spread[live]

    def _match(
        self, choice: np.ndarray, items: np.ndarray, sizes: np.ndarray, rows: np.ndarray, wants: np.ndarray
    ) -> None:
        """Within blocks of about equal sizes, gives the items with most need of the second budget most room of it."""
        whole = len(choice) // BLOCK * BLOCK
        if not whole:
            return
        chosen = choice[:whole].reshape(-1, BLOCK)
        item_order = np.argsort(self.needs[1][items[chosen]], axis=1, kind="stable")
        row_order = np.argsort(self.room[1][rows[:whole]].reshape(-1, BLOCK), axis=1, kind="stable")
        matched = np.empty_like(chosen)
        np.put_along_axis(matched, row_order, np.take_along_axis(chosen, item_order, 1), 1)
        fits = np.all(sizes[matched] <= wants[:whole].reshape(-1, BLOCK), axis=1, keepdims=True)
        choice[:whole] = np.where(fits, matched, chosen).ravel()


def _wants(room: np.ndarray, sizes: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """How much of its room each row would fill now, by one item of the sorted ``sizes``.

    A row with a little more room than the largest item would be left with a gap too small for any other item. It keeps
    room for one item more, if the two together are more than the largest alone. ``spread`` picks that item, evenly over
    all sizes: not all rows can have the same one.
    """
    largest = sizes[-1]
    near = np.flatnonzero((room > largest) & (room < 2 * largest))
    last = sizes[(len(sizes) * spread[near]).astype(np.int64)]
    rest = room[near] - last
    now = sizes[np.searchsorted(sizes, rest, side="right") - 1]
    keeps = (rest < largest) & (rest >= sizes[0]) & (now + last > largest)
    wants = room.copy()
    wants[near[keeps]] = rest[keeps]
    return wants


def pack(needs: np.ndarray, limits: Sequence[int]) -> list[list[int]]:
    """The items of each row that ``assign`` packs: lists of indices into ``needs``."""
    row_of = assign(needs, limits)
    ends = np.cumsum(np.bincount(row_of, minlength=0))
    return [part.tolist() for part in np.split(ordered(row_of), ends[:-1])] if len(ends) else []


def balanced_orders(work_KB: np.ndarray) -> np.ndarray:
    """Orders the B rows of each of K batches so that every split into 2, 4, 8... equal runs has about even work.

    The rows are dealt in pairs, heaviest first, to two halves: the heavier of a pair goes to the half with less work so
    far. Each half is dealt in the same way, as long as its size is even.

    Args:
      work_KB: (K, B), the work of each row.

    Returns:
      int64 (K, B), indices into each batch's rows.
    """
    order = np.argsort(-work_KB, axis=1, kind="stable")
    count, size = work_KB.shape
    while size % 2 == 0:
        parts = order.reshape(-1, size)  # each by falling work
        work = np.take_along_axis(work_KB, order, 1).reshape(parts.shape)
        gaps = work[:, ::2] - work[:, 1::2]
        ahead = np.zeros(len(parts))  # of the first half over the second
        is_second = np.empty(gaps.shape, bool)  # whether the heavier of a pair goes to the second half
        for i in range(gaps.shape[1]):
            is_second[:, i] = ahead > 0
            ahead += np.where(is_second[:, i], -gaps[:, i], gaps[:, i])
        pairs = parts.reshape(len(parts), -1, 2)
        first = np.where(is_second, pairs[:, :, 1], pairs[:, :, 0])
        second = np.where(is_second, pairs[:, :, 0], pairs[:, :, 1])
        order = np.stack([first, second], 1).reshape(count, -1)
        size //= 2
    return order


def balanced_order(work: np.ndarray) -> list[int]:
    """``balanced_orders`` of one batch."""
    return balanced_orders(np.asarray(work, float)[None])[0].tolist()
