"""Picks the budgets of a row from the data, by packing a sample of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxmm.data.packing.lengths import BLOCK, Lengths
from jaxmm.data.packing.limits import FIRST, Budgets, further_budgets, multiples
from jaxmm.data.packing.pack import assign
from jaxmm.data.packing.pieces import BOUNDLESS, pieces_of
from jaxmm.data.packing.shuffle import Permutation
from jaxmm.errors import UserError

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
    tokens of the mixture need on average. The smallest one is picked with which a sample of the mixture packs into
    about as few rows as without that budget; where media have budgets of their own, as without any. Where needs are
    coarse (a few large images beside long texts without any) that is well above the average, because rows of text alone
    leave theirs unused.

    Args:
      dealt: a picked budget of patches is also a multiple of this, so that devices can share a row's patches.

    Raises:
      UserError: if ``patch_budget`` is no multiple of ``merge`` squared.
    """
    group = merge**2
    if patch_budget % group:
        raise UserError(f"config.patch_budget {patch_budget} is no multiple of config.image.merge squared, {group}")
    further = further_budgets({name for source in lengths for name in source.prepared.meta.get("media", ())})
    names = (*FIRST, *further)
    largest = np.max([source.in_order(_largest(source, seq_len), names) for source in lengths], 0)
    parts = [share / sum(shares) for share in shares]
    density = sum(part * len(s) / max(1, s.total_tokens) for s, part in zip(lengths, parts, strict=True))
    tokens = min(SAMPLE_ROWS * seq_len, SAMPLE_EXAMPLES / density)
    boundless = Budgets(**(dict.fromkeys(names, BOUNDLESS) | {"tokens": seq_len, "targets": seq_len}))
    sample = np.concatenate([_sample(s, part * tokens, boundless) for s, part in zip(lengths, parts, strict=True)])
    typical = sample.sum(0) / max(sample[:, names.index("tokens")].sum(), 1) * seq_len

    def rows(limits: Budgets) -> int:
        return int(assign(np.minimum(sample, np.array(limits)), limits).max(initial=0)) + 1

    def pick(name: str, limits: Budgets, few: float) -> Budgets:
        """With the smallest step of a budget with which the sample still packs into few enough rows."""
        column = names.index(name)
        least, most = max(int(largest[column]), 1), BOUNDLESS
        multiple = _multiple(name, lengths[0], dealt)
        if name == "patches":
            most = -(-seq_len * group // multiple) * multiple  # a row's tokens cannot stand for more patches
        elif name == "items":
            most = limits.patches // group
        elif name == "targets":
            most = seq_len
        for step in STEPS:
            budget = -(-max(math.ceil(step * typical[column]), least) // multiple) * multiple
            tried = limits._replace(**{name: min(budget, most)})
            if budget >= most or rows(tried) <= few:
                break
        return tried

    is_sighted, has_features = lengths[0].spec.is_sighted, any(source.feature_width for source in lengths)
    limits = boundless._replace(targets=min(target_budget or seq_len, seq_len))
    limits = limits._replace(patches=patch_budget or BOUNDLESS) if is_sighted else limits._replace(patches=0, items=0)
    limits = limits if has_features else limits._replace(features=0)
    asked = {"patches": patch_budget, "targets": target_budget}
    picked = [
        name for name in (*FIRST[1:3], "features", *further, "targets") if limits.get(name) and not asked.get(name)
    ]
    fewest = rows(limits)
    for place, name in enumerate(picked, 1):
        loss = LOSS_OF_ALL * place / len(picked) if further else LOSS
        limits = pick(name, limits, (fewest if further else rows(limits)) * (1 + loss))
    return limits


def _multiple(name: str, source: Lengths, dealt: int) -> int:
    """What a picked budget is a multiple of: whole soft tokens of its media, if it counts their units."""
    groups = multiples(name, source.spec)
    if name in ("patches", "features"):
        return math.lcm(MULTIPLE, source.spec.merge**2, dealt)
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
        if not fits.all():
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
