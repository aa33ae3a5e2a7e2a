"""Evaluation on held-out data: loss, and exact match of the assistant's answers.

An answer is right if every token of it, its end marker included, is the model's most likely one after the true tokens
before it. For a greedy decoder that is the same as generating it, so that no decoding loop is needed.

What is held out with media is predicted again with other examples' media, a pass for each modality: ``media_gain``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxmm import sharding, zigzag
from jaxmm.batch import Batch
from jaxmm.corpus import Corpus
from jaxmm.data import memory
from jaxmm.data.assemble import Assembler, Loaded, row_bytes
from jaxmm.data.loader import batches
from jaxmm.data.media.table import MEDIA, MODALITIES
from jaxmm.data.packing.lengths import widths_of
from jaxmm.data.packing.modalities import modality_codes, modality_name
from jaxmm.data.packing.plan import Budgets, Lengths, Pass, choose_budgets
from jaxmm.data.packing.swapped import Swap, swap
from jaxmm.models.multimodal import Compute, ModelSpec, make_model
from jaxmm.recipe import Recipe
from jaxmm.runtime.barrier import Barrier
from jaxmm.training.media_gain import MediaGain, Scored, media_gain
from jaxmm.training.step import Predictions, make_eval_step

Figures = dict[str, Any]  # of one source: "loss", "answer_accuracy", ...
ORDER = "order"  # the label of questions whose answers are others if their films and recordings are played backwards


class _Tally:
    """Sums over the answers and tokens of one source, and what was scored in documents with media.

    Args:
      codes_E: of ``modality_codes``.
    """

    def __init__(self, lengths: Lengths, codes_E: np.ndarray):
        self.labels_E, self.codes_E = lengths.prepared.labels_E, codes_E
        self.names = list(lengths.prepared.meta["labels"])
        self.nll = self.weight = 0.0
        self.answers: list[tuple[int, bool]] = []  # (label mask, right)
        self.by_modality: dict[int, Any] = {}  # code -> (nll, weight)
        self.scored: list[Scored] = []

    def accuracy(self, label: str = "") -> float | None:
        bit = 1 << self.names.index(label) if label else 0
        right = [ok for mask, ok in self.answers if not label or mask & bit]
        return sum(right) / len(right) if right else None


def tally(predictions: Predictions, loaded: Loaded, tallies: list[_Tally]) -> None:
    """Adds a batch's predictions to the sums of their sources."""
    at, weights, nll, correct = map(np.asarray, predictions)
    for b, row in enumerate(loaded.rows):
        real = weights[b] > 0
        position, right = at[b][real], correct[b][real]
        ends = np.cumsum([piece.last - piece.first for piece in row])
        piece_of = np.searchsorted(ends, position, side="right")
        answer_of = loaded.answers_BT[b][position]
        for i, piece in enumerate(row):
            here = piece_of == i
            weight, lost = weights[b][real][here], nll[b][real][here]
            sums = tallies[piece.source]
            code = int(sums.codes_E[piece.example])
            total = float((lost * weight).sum()), float(weight.sum())
            sums.nll += total[0]
            sums.weight += total[1]
            sums.by_modality[code] = np.add(sums.by_modality.get(code, (0.0, 0.0)), total)
            mask = int(sums.labels_E[piece.example])
            answers = np.unique(answer_of[here & (answer_of > 0)])
            are_right = [bool(right[answer_of == answer].all()) for answer in answers]
            sums.answers += [(mask, is_right) for is_right in are_right]
            if code:
                order = np.argsort(position[here])  # on a mesh with context they come by devices
                mine = position[here][order]
                sums.scored.append(Scored(
                    piece, mine - int(ends[i]) + piece.last, loaded.batch.targets_BT[b][mine], weight[order],
                    lost[order], are_right,
                ))  # fmt: skip


class Evaluator:
    """Runs the model over every source of a corpus, and over those with media again; compiled once.

    Attributes:
      notes: lines for people: whose media cannot be swapped, and why.
    """

    def __init__(self, corpus: Corpus, recipe: Recipe, mesh, *, seq_len: int, batch_size: int, examples: int):
        self.corpus, self.recipe, self.mesh = corpus, recipe, mesh
        self.examples = examples
        even = [1.0] * len(corpus.lengths)
        multiple = zigzag.multiple(mesh.shape["context"])
        self.budgets: Budgets = choose_budgets(corpus.lengths, even, seq_len, 0, 0, recipe.image.merge, multiple)
        self.batch_size = batch_size
        row = row_bytes(self.budgets, recipe.image, widths_of(corpus.lengths))
        memory.check_rows(batch_size, row, "the arrays")  # every process makes all
        self.skipped: set[str] = set()
        self._codes = [modality_codes(source.prepared, np.arange(len(source))) for source in corpus.lengths]
        self._swaps = [
            dict(self._swaps_of(source, codes)) for source, codes in zip(corpus.lengths, self._codes, strict=True)
        ]
        self.notes = [
            line for source, codes, swaps in zip(corpus.lengths, self._codes, self._swaps, strict=True)
            for line in _notes(source.name, codes, swaps)
        ]  # fmt: skip
        self._step = self._step_of(recipe.model)
        self._barrier = Barrier("evaluation")

    def _step_of(self, model: ModelSpec) -> Callable[[Any, Batch], Predictions]:
        compute: Compute = self.recipe.compute
        step = make_eval_step(
            lambda p, b, target_positions_BR: make_model(model)[1](p, b, compute, target_positions_BR),
            target_budget=self.budgets.targets,
            logit_softcap=model.decoder.logit_softcap,
        )
        return jax.jit(step, out_shardings=sharding.replicated(self.mesh))

    def _swaps_of(self, source: Lengths, codes_E: np.ndarray) -> Iterator[tuple[str, Swap]]:
        """The source with the media of each of its modalities swapped; discrete tokens stand in the text."""
        held = int(np.bitwise_or.reduce(codes_E, initial=0))
        for bit, modality in enumerate(MODALITIES):
            if held >> bit & 1 and not MEDIA[modality].is_text:
                yield modality, swap(source, modality, self.budgets, self.recipe.template.stamp, self.examples)

    def _run(
        self, params, lengths: Sequence[Lengths], which: Mapping[str, np.ndarray] | None = None, backwards: bool = False
    ) -> list[_Tally]:
        """Tallies of all sources, over all their examples or over some.

        Args:
          lengths: the corpus's own, or swapped ones in their places: all of them, so that batches keep their shape.
          which: of sources by name, bool (E,): which examples; sources that it lacks have none. None is all.
          backwards: clips are played from their end.
        """

        def chosen(source: Lengths) -> np.ndarray:
            return (which or {}).get(source.name, np.zeros(len(source), bool))

        only = None if which is None else chosen
        plan = Pass(lengths, self.budgets, self.batch_size, examples=self.examples, which=only)
        assemble = Assembler(lengths, self.budgets, self.recipe.image, backwards=backwards)
        tallies = [_Tally(source, codes) for source, codes in zip(lengths, self._codes, strict=True)]
        for loaded, (predictions,) in self._predicted(plan, assemble, [lambda batch: self._step(params, batch)]):
            tally(predictions, loaded, tallies)
        return tallies

    def _predicted(
        self, plan: Pass, assemble: Assembler, steps: Sequence[Callable[[Batch], Predictions]]
    ) -> Iterator[tuple[Loaded, list[Predictions]]]:
        """The batches of a pass, and what each of the steps predicts; every process has every row."""
        local = sharding.local_rows(self.mesh, self.batch_size)
        for number, loaded in enumerate(batches(plan, assemble, 0, len(plan)), 1):
            self.skipped |= {skip.origin for skip in loaded.skipped}
            mine = jax.tree.map(lambda x: x[local], loaded.batch)
            self._barrier.largest(0, where := f"batch {number} of an evaluation")
            predictions = [step(sharding.place_batch(mine, self.mesh)) for step in steps]
            self._barrier.wait_for(predictions, f"the end of {where}")
            yield loaded, predictions

    def _gains(self, params, seen: Sequence[_Tally]) -> list[dict[str, MediaGain]]:
        """Of each source, what its media are worth, by modality: one pass for each of these over all sources."""
        gains: list[dict[str, MediaGain]] = [{} for _ in self.corpus.lengths]
        for modality in MODALITIES:
            swaps = {i: of[modality] for i, of in enumerate(self._swaps) if modality in of}
            swaps = {i: one for i, one in swaps.items() if one.is_swapped_E.any()}
            if not swaps:
                continue
            lengths = [swaps[i].lengths if i in swaps else source for i, source in enumerate(self.corpus.lengths)]
            blind = self._run(params, lengths, {lengths[i].name: one.is_swapped_E for i, one in swaps.items()})
            for i, one in swaps.items():
                source = self.corpus.lengths[i]
                gains[i][modality] = media_gain(source, one, seen[i].scored, blind[i].scored, modality)
        return gains

    def __call__(self, params, backwards: bool = False) -> dict[str, Figures]:
        """Returns the figures of each source.

        Args:
          backwards: questions about an order are also asked with films and recordings that are played backwards.
        """
        tallies = self._run(params, self.corpus.lengths)
        gains = self._gains(params, tallies)
        figures: dict[str, Figures] = {}
        for i, (source, sums) in enumerate(zip(self.corpus.lengths, tallies, strict=True)):
            if sums.weight == 0:
                figures[source.name] = {"loss": None, "answer_accuracy": None, "answers": 0}
                continue
            of_source: Figures = {"loss": sums.nll / sums.weight, "answer_accuracy": sums.accuracy()}
            of_source["answers"] = len(sums.answers)
            if len(sums.by_modality) > 1:
                of_source["modalities"] = {
                    modality_name(code): {"loss": nll / weight if weight else None, "targets": weight}
                    for code, (nll, weight) in sorted(sums.by_modality.items())
                }
            if gains[i]:
                of_source["media_gain"] = {m: one.gain for m, one in gains[i].items() if one.gain is not None}
                of_source["blind"] = {modality: one.figures() for modality, one in gains[i].items()}
            if sums.names:
                of_source["answer_accuracy_by_kind"] = {n: sums.accuracy(n) for n in sums.names if n != "unseen"}
                of_source["unseen_pair_accuracy"] = sums.accuracy("unseen") if "unseen" in sums.names else None
                if len(gains[i]) == 1:
                    (of_source["answer_accuracy_blind"],) = (one.answer_accuracy for one in gains[i].values())
                if backwards and ORDER in sums.names and source.prepared.meta.get("media"):
                    played = self._run(
                        params, self.corpus.lengths, {source.name: has_label(source, ORDER)}, backwards=True
                    )
                    of_source["answer_accuracy_reversed"] = played[i].accuracy()
            figures[source.name] = of_source
        return figures


def _notes(source: str, codes_E: np.ndarray, swaps: Mapping[str, Swap]) -> Iterator[str]:
    """Lines on media of a source whose worth is not measured."""
    held = modality_name(int(np.bitwise_or.reduce(codes_E, initial=0))).split("+")
    for modality in held:
        if modality in MEDIA and MEDIA[modality].is_text:
            yield f"{source}: what image tokens are worth is not measured, as they stand in the text"
    for modality, one in swaps.items():
        documents, left = int(one.has_E.sum()), int((one.has_E & ~one.is_swapped_E).sum())
        if left:
            yield (
                f"{source}: what {MEDIA[modality].plural} are worth is measured without {left} of {documents} "
                f"documents: no other example has such ones that would fit in their place"
            )


def has_label(lengths: Lengths, label: str) -> np.ndarray:
    """bool (examples,): which examples have a label that the source knows."""
    bit = 1 << lengths.prepared.meta["labels"].index(label)
    return np.asarray(lengths.prepared.labels_E) & np.uint64(bit) > 0


def mean_loss(figures: dict[str, Figures]) -> float | None:
    """The mean over sources of their loss: what the best checkpoint is chosen by."""
    losses = [f["loss"] for f in figures.values() if f["loss"] is not None]
    return float(np.mean(losses)) if losses else None


def closing_rows(figures: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """The figures as rows of a table; of those with other examples' media, loss and answers."""
    rows: list[tuple[str, Any]] = []
    for source, of_source in figures.items():
        for name, value in of_source.items():
            for key, item in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(item, dict):
                    told = ("loss", "answer_accuracy") if name == "blind" else item
                    rows += [(f"{source} {name} {key} {what}", item[what]) for what in told if item[what] is not None]
                else:
                    rows.append((f"{source} {name} {key}".rstrip(), item))
    return rows
