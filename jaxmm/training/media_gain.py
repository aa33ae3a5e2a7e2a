"""What media are worth: by how much the loss rises where documents show another example's media in place of their own.

Both passes are compared target by target, over the same targets of the same documents. Only targets behind the first
such medium of their document count: a causal model cannot see media that come later, and text before them would only
thin the figure out. A document that was split counts where both passes cut it at the same places of its text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmm.data.media.table import MEDIA
from jaxmm.data.packing.plan import Lengths, Piece
from jaxmm.data.packing.swapped import Swap

LEAST_DOCUMENTS = 20  # fewer say nothing of whether media change anything
IDLE, SLIGHT, HIDDEN = 0.01, 0.001, 0.05  # parts of the loss, see ``is_idle``


class Scored(NamedTuple):
    """The targets of a piece of a document, as an evaluation scored them, in order: arrays (n,) but for the piece.

    Attributes:
      places: the position in the document, soft tokens counted, that predicts each.
      right: of each answer of the piece, whether all of it is.
    """

    piece: Piece
    places: np.ndarray
    tokens: np.ndarray
    weights: np.ndarray
    nll: np.ndarray
    right: list[bool]


class MediaGain(NamedTuple):
    """What the media of one modality are worth to a source.

    Attributes:
      gain: ``loss`` less the loss with the documents' own media, in nats a target; None where nothing was compared.
      loss: with other examples' media.
      standard_error: of the gain, by documents.
      answer_accuracy, answers: with other examples' media.
      documents: that were compared.
      left_out: documents with such media that were not: swapped, they would not fit a row or are cut elsewhere, their
        media have no partner, or one of them could not be read.
    """

    gain: float | None
    loss: float | None
    standard_error: float | None
    answer_accuracy: float | None
    answers: int
    documents: int
    left_out: int

    def figures(self) -> dict[str, Any]:
        """What stands under "blind" in an evaluation."""
        return {name: value for name, value in self._asdict().items() if name != "gain"}


def media_gain(
    lengths: Lengths, swap: Swap, seen: Sequence[Scored], blind: Sequence[Scored], modality: str
) -> MediaGain:  # fmt: skip
    """Compares a source with its swapped self.

    Args:
      seen, blind: what the evaluation scored with the documents' own media, and with other ones.
    """
    own, other = _by_example(seen), _by_example(blind)
    sums, right, left_out = [], list[bool](), 0
    for example in own:
        if not swap.has_E[example]:
            continue
        first_I = _first_places(lengths, own[example], modality)
        is_behind = np.concatenate([
            scored.places >= first for scored, first in zip(own[example], first_I, strict=True)
        ])  # fmt: skip
        if not is_behind.any():
            continue  # nothing was to be seen
        if not _are_alike(lengths, own[example], swap.lengths, other.get(example, [])):
            left_out += 1
            continue
        weights, before, after = (
            np.concatenate([getattr(one, name) for one in pieces])[is_behind].astype(np.float64)
            for pieces, name in ((own[example], "weights"), (own[example], "nll"), (other[example], "nll"))
        )
        sums.append([(weights * before).sum(), (weights * after).sum(), weights.sum()])
        right += [ok for one in other[example] for ok in one.right]
    accuracy = sum(right) / len(right) if right else None
    if not sums or not np.sum(sums, 0)[2]:
        return MediaGain(None, None, None, accuracy, len(right), 0, left_out)
    before_D, after_D, weight_D = np.array(sums).T
    weight, documents = weight_D.sum(), len(sums)
    gain = (after_D - before_D).sum() / weight
    spread = np.square(after_D - before_D - gain * weight_D).sum() * documents / max(documents - 1, 1)
    error = float(np.sqrt(spread) / weight) if documents > 1 else None
    return MediaGain(float(gain), float(after_D.sum() / weight), error, accuracy, len(right), documents, left_out)


def _by_example(scored: Sequence[Scored]) -> dict[int, list[Scored]]:
    by_example: dict[int, list[Scored]] = {}
    for one in sorted(scored, key=lambda one: one.piece[1:3]):
        by_example.setdefault(one.piece.example, []).append(one)
    return by_example


def _starts(lengths: Lengths, example: int) -> tuple[slice, np.ndarray, np.ndarray]:
    """The media of an example; the position where each begins; and, (media + 1,), the positions of those before it."""
    media = slice(*lengths.prepared.images_E1[example : example + 2].tolist())
    before = np.concatenate([[0], np.cumsum(lengths.spans(media))])
    return media, np.asarray(lengths.prepared.image_at_I[media], np.int64) + before[:-1], before


def _first_places(lengths: Lengths, pieces: Sequence[Scored], modality: str) -> Iterator[int]:
    """Where the first medium of the modality begins in each piece of one document; its end where there is none."""
    media, starts, _ = _starts(lengths, pieces[0].piece.example)
    kinds = np.asarray(lengths.prepared.image_kind_I[media])
    is_own = np.any([medium.has(kinds) for medium in MEDIA.values() if medium.modality == modality], 0)
    for one in pieces:
        inside = starts[is_own & (starts >= one.piece.first) & (starts < one.piece.last)]
        yield int(inside.min(initial=one.piece.last))


def _are_alike(lengths: Lengths, own: Sequence[Scored], swapped: Lengths, other: Sequence[Scored]) -> bool:
    """Whether both have the same targets, behind the same text."""
    return (
        len(own) == len(other)
        and all(
            np.array_equal(a.tokens, b.tokens) and np.array_equal(a.weights, b.weights)
            for a, b in zip(own, other, strict=True)
        )
        and [_text_of(lengths, one.piece) for one in own] == [_text_of(swapped, one.piece) for one in other]
    )


def _text_of(lengths: Lengths, piece: Piece) -> tuple[int, int]:
    """Which of its document's text tokens a piece holds, [first, last)."""
    _, starts, before = _starts(lengths, piece.example)
    first, last = (edge - int(before[np.searchsorted(starts, edge)]) for edge in (piece.first, piece.last))
    return first, last


def worth(figures: Mapping[str, Any]) -> Iterator[str]:
    """``images worth 0.52 nats``, for each modality of a source's figures."""
    for modality, gain in figures.get("media_gain", {}).items():
        yield f"{MEDIA[modality].plural} worth {gain:.2f} nats"


def is_idle(figures: Mapping[str, Any], modality: str) -> bool:
    """Whether a source's media of a modality change nothing, judged by one evaluation.

    They do not where at least LEAST_DOCUMENTS were compared, and the gain is

    - below IDLE of the loss;
    - within two standard errors of 0, or below SLIGHT of the loss: so a small gain that is there is none of chance;
    - known well enough: two standard errors more would be below HIDDEN of the loss.
    """
    gain, blind = figures.get("media_gain", {}).get(modality), figures.get("blind", {}).get(modality)
    if gain is None or blind is None or blind["standard_error"] is None or blind["documents"] < LEAST_DOCUMENTS:
        return False
    loss, error = blind["loss"], 2 * blind["standard_error"]
    return gain < IDLE * loss and gain < max(error, SLIGHT * loss) and gain + error < HIDDEN * loss


def idle_lines(
    evaluations: Sequence[Mapping[str, Mapping[str, Any]]], steps: int, frozen: Sequence[str] = ()
) -> Iterator[str]:  # fmt: skip
    """One line for each source and modality whose media change nothing.

    Args:
      evaluations: figures by source, oldest first; the last two decide, or the only one.
      frozen: parts of the model that are not trained.
    """
    for source, figures in evaluations[-1].items() if evaluations else ():
        for modality, gain in figures.get("media_gain", {}).items():
            if all(is_idle(one.get(source, {}), modality) for one in evaluations[-2:]):
                blind, plural = figures["blind"][modality], MEDIA[modality].plural
                are_frozen = f" ({', '.join(frozen)} frozen here)" if frozen else ""
                yield (
                    f"the {plural} of {source} change nothing: after {steps} steps it is predicted as well with other "
                    f"examples' ones ({gain:+.4f} nats a target, give or take {2 * blind['standard_error']:.4f}; loss "
                    f"{blind['loss']:.4f}, {blind['documents']} documents); either the model has not learnt to use "
                    f"them: look at config.optimizer.freeze{are_frozen}, the rates of tower and connector, and more "
                    f"steps; or the text alone says what the answers are"
                )
