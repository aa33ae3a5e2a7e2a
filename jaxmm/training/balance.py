"""What a run learns from: shares of tokens, targets and loss by source and by modality, against what was asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmm.data.assemble import Loaded
from jaxmm.data.media.table import MODALITIES
from jaxmm.data.packing.modalities import modality_codes, modality_name
from jaxmm.data.packing.pieces import segments_of
from jaxmm.data.packing.plan import Lengths, Stage

CODES = 1 << len(MODALITIES)
SURE, FAR = 4.0, 0.1  # a source drifts by more than so many standard deviations, and by such a part of what was asked
ASKED_DIGITS = 12  # behind the point, of shares that were asked: their mean over steps is off in the last bits
GROWN = 2.0  # times that a drift is what was told of it, before it is told again


def modalities_BT(loaded: Loaded, lengths: Sequence[Lengths]) -> np.ndarray:
    """int32 (B, T): what ``modality_codes`` has of the document at each position; 0 on padding too."""
    segments = loaded.batch.text.segments
    pieces = [
        (b, i, p.source, p.example) for b, row in enumerate(loaded.rows)
        for p, own in zip(row, segments_of(row, lengths), strict=True) for i in own
    ]  # fmt: skip
    row_P, segment_P, source_P, example_P = np.array(pieces, np.int64).reshape(-1, 4).T
    code_BS = np.zeros((len(segments), int(segment_P.max(initial=0)) + 1), np.int32)
    for source in np.unique(source_P):
        mine = source_P == source
        code_BS[row_P[mine], segment_P[mine]] = modality_codes(lengths[source].prepared, example_P[mine])
    return np.take_along_axis(code_BS, segments, axis=1)


class Balance:
    """Counts what the batches of a run hold, by source and modality. Feed it once a step, and ask for each log line."""

    def __init__(
        self,
        lengths: Sequence[Lengths],
        stages: Sequence[Stage],
        row_tokens: int,
        total: Callable[[list[float]], list[float]] = list,
    ):
        """
        Args:
          stages: the shares that were asked for, by step.
          row_tokens: positions of a row: the most that chance puts in one place or another.
          total: adds up, over all rows of the batches, numbers that were counted of this process's rows.
        """
        self.lengths, self.stages, self.row_tokens, self._total = list(lengths), list(stages), row_tokens, total
        sources = len(self.lengths)
        self._asked_S, self._steps = np.zeros(sources), 0  # of the window: sums of shares
        self._tokens_SM, self._targets_M = np.zeros((sources, CODES)), np.zeros(CODES)
        self._expected_S, self._came_S = np.zeros(sources), np.zeros(sources)  # tokens of all windows
        self._told_S = np.zeros(sources)  # drifts, as shares

    def add(self, batch: int, loaded: Loaded) -> None:
        """Counts this process's rows of a batch, by its number in the plan."""
        code_BT, text = modalities_BT(loaded, self.lengths), loaded.batch.text
        real = text.segments > 0
        both = loaded.batch.sources_BT[real] * CODES + code_BT[real]
        self._tokens_SM += np.bincount(both, minlength=self._tokens_SM.size).reshape(self._tokens_SM.shape)
        self._targets_M += np.bincount(code_BT.ravel(), loaded.batch.weights_BT.ravel(), CODES)
        self._asked_S += np.array(_stage(self.stages, batch).shares)
        self._steps += 1

    def figures(self, loss_S: Any, targets_S: Any) -> dict[str, dict[str, dict[str, Any]]]:
        """Shares of the steps since the last call; all processes of a job must ask. A column sums to 1.

        Args:
          loss_S, targets_S: sums by source over the same steps; targets by their weight.
        """
        summed = np.array(self._total([*self._tokens_SM.ravel().tolist(), *self._targets_M.tolist()]))
        tokens_SM, targets_M = summed[:-CODES].reshape(self._tokens_SM.shape), summed[-CODES:]
        asked_S, tokens_S, tokens_M = self._asked_S / max(self._steps, 1), tokens_SM.sum(1), tokens_SM.sum(0)
        self._expected_S += asked_S * tokens_S.sum()
        self._came_S += tokens_S
        self._asked_S, self._steps = np.zeros_like(asked_S), 0
        self._tokens_SM, self._targets_M = np.zeros_like(tokens_SM), np.zeros_like(targets_M)
        columns = {
            "asked": asked_S.round(ASKED_DIGITS).tolist(), "tokens": _shares(tokens_S), "targets": _shares(targets_S),
            "loss": _shares(loss_S),
        }  # fmt: skip
        names = [source.name for source in self.lengths]
        held = np.flatnonzero(tokens_M).tolist()
        return {
            "sources": {name: {key: of[i] for key, of in columns.items()} for i, name in enumerate(names)},
            "modalities": {
                modality_name(code): {"tokens": _shares(tokens_M)[code], "targets": _shares(targets_M)[code]}
                for code in held
            },
        }

    def drift(self, run_out: Collection[str] = ()) -> str:
        """A line for people where tokens by source, over all steps so far, are not what was asked; else ''.

        Shares are exact to a few rows over a window of the plan, so that what chance leaves is less than if each
        document were drawn by itself: that bound is used, with documents as long as rows. A drift is told once, and
        again when it has grown to ``GROWN`` times as much.

        Args:
          run_out: names of the sources that have run out.
        """
        came, expected, row = self._came_S, self._expected_S, self.row_tokens
        off = np.abs(came - expected)
        is_far = off > np.maximum(SURE * np.sqrt(np.maximum(expected, row) * row), FAR * expected)
        share = off / max(came.sum(), 1.0)
        if not (is_far & (share > GROWN * self._told_S)).any():
            return ""
        self._told_S = np.where(is_far, np.maximum(share, self._told_S), self._told_S)
        told = []
        for i in np.flatnonzero(is_far):
            name, why = self.lengths[i].name, " (it has run out)" if self.lengths[i].name in run_out else ""
            of = f"{came[i] / came.sum():.3f}" if came[i] else "nothing at all"
            told.append(f"{name} {of} where {expected[i] / came.sum():.3f} was asked{why}")
        return f"warning: data: shares of tokens so far: {'; '.join(told)}"


def _stage(stages: Sequence[Stage], batch: int) -> Stage:
    return next((stage for stage in reversed(stages) if stage.step <= batch), stages[0])


def _shares(sums: Any) -> list[float | None]:
    """Parts of the whole; None where there is nothing, or it is not finite."""
    sums = np.asarray(sums, np.float64)
    whole = sums.sum()
    return (sums / whole).tolist() if whole and np.isfinite(whole) else [None] * len(sums)


def with_gradients(
    balance: Mapping[str, Mapping[str, Mapping[str, Any]]], gradients: Mapping[str, Mapping[str, Mapping[str, float]]],
    losses: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, dict[str, Any]]]:  # fmt: skip
    """The shares of a log line, with those of a batch's gradients, and of its loss by modality, where it has several.

    Args:
      gradients: norms by kind of group ("sources", "modalities"), group and part, "all" among the parts.
      losses: sums by kind of group and group.
    """
    told = {kind: {name: dict(entry) for name, entry in groups.items()} for kind, groups in balance.items()}
    for kind, groups in gradients.items():
        norms = _shares([norms["all"] for norms in groups.values()])
        lost = _shares(list(losses[kind].values()))
        of = {name: (norm, loss) for name, norm, loss in zip(groups, norms, lost, strict=True)}
        # What the batch has none of has no part in it; that of one of many that were taken together is not known.
        lacking = (0.0, 0.0) if set(of) <= set(told[kind]) else (None, None)
        for name, entry in told[kind].items():
            entry["gradient"], loss = of.get(name, lacking)
            entry.setdefault("loss", loss)
    return told
