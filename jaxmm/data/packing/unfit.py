"""What is told of a source of which no row holds any example: the budgets that are too small, and the keys to raise."""

from __future__ import annotations

import numpy as np

from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.limits import PAIRS, Budgets
from jaxmm.errors import UserError

# What sets a budget; ``seq_len`` is what all others are picked by.
KEYS = {"tokens": "config.seq_len", "patches": "config.patch_budget", "targets": "config.target_budget"}
NOUNS = {"items": "images", PAIRS: "pairs"}


def none_fits(
    source: Lengths, budgets: Budgets, examples: np.ndarray | None = None, *, aim: str = "train on",
    are_picked: bool = False,
) -> UserError:  # fmt: skip
    """The error of a source of whose examples no row holds one: what the smallest of them needs.

    The smallest is the one whose largest excess over a budget, as a ratio, is least.

    Args:
      examples: those that count; by default all.
      aim: what there is nothing for.
      are_picked: whether ``seq_len`` alone sets the budgets, so that the other keys do not count.
    """
    count = len(source) if examples is None else len(examples)
    if not count:
        return UserError(f"data source '{source.name}' has no examples: nothing to {aim}")
    needs = source.all_needs if examples is None else source.needs(examples)
    limits = np.array(budgets.of(source.columns))
    excess = np.where(needs > limits, needs / np.maximum(limits, 1), 0).max(1)
    smallest = needs[int(excess.argmin())]
    over = {name: (int(need), int(limit))
            for name, need, limit in zip(source.columns, smallest, limits, strict=True) if need > limit}  # fmt: skip
    needed = " and ".join(f"{need:,} {NOUNS.get(name, name.replace('_', ' '))}" for name, (need, _) in over.items())
    held = " and ".join(f"{limit:,}" for _, limit in over.values())
    own = {} if are_picked else KEYS
    keys = list(dict.fromkeys(own.get(name, KEYS["tokens"]) for name in over))
    ways = f"raise {keys[0]}" + "".join(f", and {key} where it is set" for key in keys[1:])
    if not source.preferences and over.keys() <= {"tokens", "targets"}:
        ways += ", or set config.data.long_documents=split"
    of = "" if count == len(source) else f" among the {count:,} that are used of it"
    return UserError(
        f"data source '{source.name}' has no example that fits a row{of}: nothing to {aim}; the smallest has {needed}, "
        f"a row {held}: {ways}"
    )


def check_held_out(source: Lengths, budgets: Budgets, examples: int) -> None:
    """Checks that a row holds some of the preferences that a source holds out; they are never cut.

    Args:
      budgets: picked by ``seq_len``.
      examples: only that many count, the first ones; 0 is all.

    Raises:
      UserError: if it holds none of them.
    """
    those = np.arange(min(len(source), examples or len(source)))
    if source.preferences and source.is_long(source.all_needs[: len(those)], budgets).all():
        raise none_fits(source, budgets, those, aim="evaluate", are_picked=True)
