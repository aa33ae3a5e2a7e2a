"""Picks the budgets of a row from the data, by packing a sample of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmm.data.media.table import MEDIA
from jaxmm.data.packing.lengths import BLOCK, Lengths
from jaxmm.data.packing.limits import FIRST, PAIRS, Budgets, further_budgets, multiples
from jaxmm.data.packing.pack import assign
from jaxmm.data.packing.pieces import BOUNDLESS, pieces_of
from jaxmm.data.packing.shuffle import Permutation
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec

SAMPLE_ROWS, SAMPLE_EXAMPLES = 400, 1 << 14
MULTIPLE = 64  # picked budgets are multiples of it
STEPS = 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0  # multiples of the average need that are tried
LOSS = 0.015  # the fraction of the rows' tokens that a smaller budget may cost
LOSS_OF_ALL = 0.006  # that all of them together may cost, where media have budgets of their own


def choose_budgets(
    lengths: Sequence[Lengths], shares: Sequence[float], seq_len: int, patch_budget: int, target_budget: int,
    merge: int, dealt: int = 1,
) -> Budgets:  # fmt: skip
    """Returns the budgets of a row; those given as 0 are picked from the index.

    A picked budget holds the largest example that fits ``seq_len``. The candidates are multiples of what ``seq_len``
    tokens of the mixture need on average. The smallest one is picked with which a sample of the mixture packs into few
    enough rows: LOSS more than without that budget or, where media have budgets of their own, LOSS_OF_ALL more than
    without any of them. Where needs are coarse (a few large images beside long texts without any) that is well above
    the average, because rows of text alone leave theirs unused.

    Args:
      dealt: a picked budget of patches is also a multiple of this, so that devices can share a row's patches.

    Raises:
      UserError: if ``patch_budget`` is no multiple of ``merge`` squared.
    """
    group = merge**2
    if patch_budget % group:
        raise UserError(f"config.patch_budget {patch_budget} is no multiple of config.image.merge squared, {group}")
    names = {name for source in lengths for name in source.columns}
    further = [name for name in (*further_budgets(MEDIA), PAIRS) if name in names]
    needed = _needed(lengths, shares, seq_len, (*FIRST, *further))

    is_sighted, has_features = lengths[0].spec.is_sighted, any("features" in source.widths for source in lengths)
    limits = Budgets(**(dict.fromkeys(needed.names, BOUNDLESS) | {"tokens": seq_len}))
    limits = limits._replace(targets=min(target_budget or seq_len, seq_len))
    limits = limits._replace(patches=patch_budget or BOUNDLESS) if is_sighted else limits._replace(patches=0, items=0)
    limits = limits if has_features else limits._replace(features=0)
    asked = {"patches": patch_budget, "targets": target_budget}
    in_order = ("patches", "items", "features", *further, "targets")
    picked = [name for name in in_order if limits.get(name) and not asked.get(name)]

    fewest = needed.rows(limits)
    for place, name in enumerate(picked, 1):
        if further:
            few = fewest * (1 + LOSS_OF_ALL * place / len(picked))
        else:
            few = needed.rows(limits) * (1 + LOSS)
        limits = _picked(name, limits, needed, few, _multiple(name, lengths[0].spec, dealt), group)
    return limits


class _Needed(NamedTuple):
    """What a mixture needs of a row, by budget.

    Attributes:
      names: of the budgets.
      largest: the largest need of an example; int64 (budgets,).
      typical: of ``seq_len`` tokens; float64 (budgets,).
      sample: of random pieces; int64 (n, budgets).
    """

    names: tuple[str, ...]
    largest: np.ndarray
    typical: np.ndarray
    sample: np.ndarray

    def rows(self, limits: Budgets) -> int:
        """Returns the number of rows that the sample packs into."""
        return int(assign(np.minimum(self.sample, np.array(limits)), limits).max(initial=0)) + 1


def _needed(lengths: Sequence[Lengths], shares: Sequence[float], seq_len: int, names: tuple[str, ...]) -> _Needed:
    largest = np.max([source.in_order(_largest(source, seq_len), names) for source in lengths], 0)
    parts = [share / sum(shares) for share in shares]
    density = sum(part * len(s) / max(1, s.total_tokens) for s, part in zip(lengths, parts, strict=True))
    tokens = min(SAMPLE_ROWS * seq_len, SAMPLE_EXAMPLES / density)
    boundless = Budgets(**(dict.fromkeys(names, BOUNDLESS) | {"tokens": seq_len, "targets": seq_len}))
    sample = np.concatenate([_sample(s, part * tokens, boundless) for s, part in zip(lengths, parts, strict=True)])
    typical = sample.sum(0) / max(sample[:, names.index("tokens")].sum(), 1) * seq_len
    return _Needed(names, largest, typical, sample)


def _picked(name: str, limits: Budgets, needed: _Needed, few: float, multiple: int, group: int) -> Budgets:
    """Returns the limits with the smallest step of a budget with which the sample packs into ``few`` rows or less.

    Args:
      multiple: what the budget is a multiple of.
      group: patches of a soft token.
    """
    column = needed.names.index(name)
    least, most = max(int(needed.largest[column]), 1), BOUNDLESS
    if name == "patches":  # a row's tokens cannot stand for more
        most = -(-limits.tokens * group // multiple) * multiple
    elif name == "items":
        most = limits.patches // group
    elif name == "targets":
        most = limits.tokens
    for step in STEPS:
        budget = -(-max(math.ceil(step * needed.typical[column]), least) // multiple) * multiple
        tried = limits._replace(**{name: min(budget, most)})
        if budget >= most or needed.rows(tried) <= few:
            break
    return tried


def _multiple(name: str, spec: ImageSpec, dealt: int) -> int:
    """Returns what a picked budget is a multiple of: whole soft tokens of its media, if it counts their units."""
    groups = multiples(name, spec)
    if name in ("patches", "features"):
        return math.lcm(MULTIPLE, spec.merge**2, dealt)
    if name == "targets":
        return MULTIPLE
    return math.lcm(MULTIPLE, *groups, dealt) if groups else 8


def _largest(source: Lengths, seq_len: int) -> np.ndarray:
    """int64 (columns,): the largest need of an example that fits a row's tokens, or of a part of a longer one."""
    tokens, targets = (source.columns.index(name) for name in ("tokens", "targets"))
    largest = np.zeros(len(source.columns), np.int64)
    for _, needs in source.blocks():
        fits = needs[:, tokens] <= seq_len
        largest = np.maximum(largest, needs[fits].max(0, initial=0))
        if not fits.all() and not source.preferences:
            largest[targets] = seq_len  # a part may be targets from end to end
    for start in range(0, len(source.units_I), BLOCK):
        for name, each in source.media_needs(slice(start, start + BLOCK)).items():
            column = source.columns.index(name)
            largest[column] = max(largest[column], each.max(initial=0))
    return largest


def _sample(source: Lengths, tokens: float, boundless: Budgets) -> np.ndarray:
    """int64 (n, budgets): the needs of random examples, cut to rows, with about ``tokens`` tokens in all."""
    count = round(tokens / max(1, source.total_tokens) * len(source))
    count = max(count, int(tokens > 0))
    examples = Permutation(len(source), 0)(np.arange(count) % len(source))
    try:
        return pieces_of(source, 0, examples, examples, boundless, "split")[1]
    except UserError:  # an image is larger than a row; the plan raises the error when it cuts that example
        return pieces_of(source, 0, examples, examples, boundless, "drop")[1]
