"""The budgets of a row that are picked from the data, by packing a sample of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxmm.data.packing.lengths import Budgets, Lengths, tiles
from jaxmm.data.packing.pack import assign
from jaxmm.data.packing.pieces import BOUNDLESS, pieces_of
from jaxmm.data.packing.shuffle import Permutation
from jaxmm.errors import UserError

SAMPLE_ROWS, SAMPLE_EXAMPLES = 400, 1 << 14
MULTIPLE = 64  # of picked budgets
STEPS = 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0  # of the average need: what is tried
LOSS = 0.015  # of the rows' tokens that a smaller budget may cost


def choose_budgets(
    lengths: Sequence[Lengths], shares: Sequence[float], seq_len: int, patch_budget: int, target_budget: int,
    merge: int, dealt: int = 1,
) -> Budgets:  # fmt: skip
    """The budgets of a row; those given as 0 are picked from the index.

    A picked budget holds the largest example that fits ``seq_len``. It is the smallest, of some multiples of what
    ``seq_len`` tokens of the mixture need on average, with which a sample of the mixture packs into about as few rows
    as without it. Where the needs are coarse (few large images, beside long texts without any) that is well above the
    average: rows of text alone leave theirs to the others.

    Args:
      dealt: patches that a picked budget is a multiple of too, so that devices can share a row's.

    Raises:
      UserError: if ``patch_budget`` is no multiple of ``merge`` squared.
    """
    group = merge**2
    if patch_budget % group:
        raise UserError(f"config.patch_budget {patch_budget} is no multiple of config.image.merge squared, {group}")
    largest = np.max([_largest(source, seq_len) for source in lengths], 0)
    parts = [share / sum(shares) for share in shares]
    density = sum(part * len(s) / max(1, int(s.totals[0])) for s, part in zip(lengths, parts, strict=True))
    tokens = min(SAMPLE_ROWS * seq_len, SAMPLE_EXAMPLES / density)
    sample = np.concatenate([_sample(s, part * tokens, seq_len) for s, part in zip(lengths, parts, strict=True)])
    typical = sample.sum(0) / max(sample[:, 0].sum(), 1) * seq_len
    multiple = math.lcm(MULTIPLE, group, dealt)

    def rows(limits: Budgets) -> int:
        return int(assign(np.minimum(sample, np.array(limits)), limits).max(initial=0)) + 1

    def pick(name: str, limits: Budgets, multiple: int, most: int) -> int:
        """The smallest of the steps in a budget with which few enough rows hold the sample."""
        column = Budgets._fields.index(name)
        least = max(int(largest[column]), 1)
        few = rows(limits) * (1 + LOSS)
        for step in STEPS:
            budget = -(-max(math.ceil(step * typical[column]), least) // multiple) * multiple
            if budget >= most or rows(limits._replace(**{name: budget})) <= few:
                break
        return min(budget, most)

    features = BOUNDLESS if any(source.feature_width for source in lengths) else 0
    limits = Budgets(seq_len, patch_budget or BOUNDLESS, BOUNDLESS, min(target_budget or seq_len, seq_len), features)
    if not patch_budget:
        most = -(-seq_len * group // multiple) * multiple  # more than a row's tokens can stand for
        limits = limits._replace(patches=pick("patches", limits, multiple, most))
    limits = limits._replace(items=pick("items", limits, 8, limits.patches // group))
    if features:
        limits = limits._replace(features=pick("features", limits, multiple, BOUNDLESS))
    if not target_budget:
        limits = limits._replace(targets=pick("targets", limits, MULTIPLE, seq_len))
    return limits


def _largest(source: Lengths, seq_len: int) -> np.ndarray:
    """int64 (budgets,): the largest need of an example that fits a row's tokens, and of a part of one that does not."""
    largest = np.zeros(len(Budgets._fields), np.int64)
    for _, needs in source.blocks():
        fits = needs[:, 0] <= seq_len
        largest = np.maximum(largest, needs[fits].max(0, initial=0))
        if not fits.all():
            largest[3] = seq_len  # a part may be targets from end to end
    if source.spec.max_tiles > 1:
        cut_into = tiles(source.units_I, source.prepared.image_kind_I, source.spec)
        largest[2] = max(largest[2], cut_into.max(initial=0))
    if not source.feature_width and len(source.units_I):
        largest[1] = max(largest[1], source.units_I.max())
    elif source.feature_width:
        patches = source.patches_of(slice(None))
        largest[1] = max(largest[1], patches.max())
        largest[4] = max(largest[4], (source.units_I - patches).max())
    return largest


def _sample(source: Lengths, tokens: float, seq_len: int) -> np.ndarray:
    """(n, budgets) needs of random examples, cut to rows, with about so many tokens."""
    count = round(tokens / max(1, int(source.totals[0])) * len(source))
    count = max(count, int(tokens > 0))
    examples = Permutation(len(source), 0)(np.arange(count) % len(source))
    boundless = Budgets(seq_len, BOUNDLESS, BOUNDLESS, seq_len, BOUNDLESS)
    try:
        return pieces_of(source, 0, examples, examples, boundless, "split")[1]
    except UserError:  # an image larger than a row; whoever cuts it for a row says so
        return pieces_of(source, 0, examples, examples, boundless, "drop")[1]
