"""Evaluation on held-out preferences: how often the better answer is the likelier one, next to the reference.

Where each step can ask the reference, pairs are asked about again with other examples' media: who tells by the media is
then right by chance alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.batch import Batch, Pairs
from jaxmm.corpus import Corpus
from jaxmm.data.assemble import Assembler, Loaded
from jaxmm.data.loader import batches
from jaxmm.data.media.table import MODALITIES
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.pieces import LongDocuments, segments_of
from jaxmm.data.packing.plan import Pass
from jaxmm.data.packing.swapped import Swap
from jaxmm.models.adapters import is_factor
from jaxmm.models.tree import only
from jaxmm.recipe import Recipe
from jaxmm.training.evaluator import Evaluator, Figures, has_label
from jaxmm.training.objectives import asks_reference, needs_answers
from jaxmm.training.preference import WANTED, PreferenceSpec, Said, divergence, losses
from jaxmm.training.step import Predictions


class Answers(NamedTuple):
    """What a model says of both answers of examples: of each the log-probabilities, summed, and the tokens.

    Attributes:
      checksums: as ``Loaded.checksums``, 0 for none.
      skipped: examples that became padding, see ``Loaded.skipped``.
    """

    examples: list[int]
    logps: list[tuple[float, float]]
    tokens: list[tuple[int, int]]
    checksums: list[int]
    skipped: list[int]

    def said(self) -> Said:
        return Said(*(jnp.asarray(np.array(x, np.float32).reshape(1, -1, 2)) for x in (self.logps, self.tokens)))


def add_answers(predictions: Predictions, loaded: Loaded, lengths: Sequence[Lengths], found: list[Answers]) -> None:
    """Adds the pairs of a batch to those of their sources."""
    at, weights, nll = (np.asarray(x) for x in predictions[:3])
    for b, row in enumerate(loaded.rows):
        segments = loaded.batch.text.segments[b][at[b]]
        logps, tokens = (
            np.bincount(segments, of * (weights[b] > 0), int(loaded.batch.text.segments[b].max()) + 2)
            for of in (-nll[b].astype(np.float64), np.ones_like(nll[b]))
        )
        for piece, own in zip(row, segments_of(row, lengths), strict=True):
            if len(own) != 2:
                continue
            of_source = found[piece.source]
            if own[-1] >= len(tokens) or not tokens[list(own)].all():  # its place is padding
                of_source.skipped.append(piece.example)
                continue
            of_source.examples.append(piece.example)
            of_source.logps.append((float(logps[own[0]]), float(logps[own[1]])))
            of_source.tokens.append((int(tokens[own[0]]), int(tokens[own[1]])))
            of_source.checksums.append(loaded.checksums.get((piece.source, piece.example), 0))


class PreferenceEvaluator(Evaluator):
    """Asks the model, and where the loss compares with one the reference, about every pair of a corpus."""

    def __init__(self, corpus: Corpus, recipe: Recipe, mesh: Any, *, seq_len: int, batch_size: int, examples: int):
        super().__init__(corpus, recipe, mesh, seq_len=seq_len, batch_size=batch_size, examples=examples)
        assert recipe.preference is not None
        self.spec: PreferenceSpec = recipe.preference
        self._beneath = self._step_of(recipe.model.base) if asks_reference(recipe) else None
        self.notes = [*self._long_lines(), *self.notes]

    def _long_lines(self) -> Iterator[str]:
        """Lines on the preferences that no row holds, of which nothing is asked."""
        for source in self.corpus.lengths:
            needs = source.all_needs[: self.examples or len(source)]
            long = LongDocuments(len(needs), int(source.is_long(needs, self.budgets).sum()), 0)
            if line := long.line(source, "drop"):
                yield line

    def _swaps_of(self, source: Lengths, codes_E: np.ndarray) -> Iterator[tuple[str, Swap]]:
        """None where a reference was asked before: it has seen each example's own media alone."""
        return iter(()) if needs_answers(self.recipe) else super()._swaps_of(source, codes_E)

    def __call__(self, params: Any, backwards: bool = False) -> dict[str, Figures]:
        """The figures of each source."""
        steps = [lambda batch: self._step(params, batch)]
        if beneath := self._beneath:
            base = only(params, lambda path: not is_factor(path))
            steps.append(lambda batch: beneath(base, batch))
        answers, lengths = self._asked(steps, self.corpus.lengths), self.corpus.lengths
        figures = {source.name: self._figures(source, [own[i] for own in answers]) for i, source in enumerate(lengths)}
        for modality in MODALITIES:
            swaps = {i: of[modality] for i, of in enumerate(self._swaps) if modality in of}
            swaps = {i: one for i, one in swaps.items() if one.is_swapped_E.any()}
            if not swaps:
                continue
            those = [swaps[i].lengths if i in swaps else source for i, source in enumerate(lengths)]
            blind = self._asked(steps, those, {those[i].name: one.is_swapped_E for i, one in swaps.items()})
            for i in swaps:
                of_it = self._figures(those[i], [own[i] for own in blind])
                by_modality = figures[lengths[i].name].setdefault("preference_accuracy_blind", {})
                by_modality[modality] = of_it.get("preference_accuracy")
        return figures

    def answers(self, params: Any, which: Mapping[str, np.ndarray]) -> list[Answers]:
        """What the model says of the pairs of each source, with checksums; ``which`` as in ``Evaluator._run``."""
        steps = [lambda batch: self._step(params, batch)]
        return self._asked(steps, self.corpus.lengths, which, has_checksums=True)[0]

    def checksums(self, which: Mapping[str, np.ndarray]) -> list[dict[int, int]]:
        """Of each source the checksums of pairs' files as they are now, by example; no model is asked.

        Pairs that cannot be read are left out, as are those without files, and those that no row holds.
        """
        plan, assemble = self._planned(self.corpus.lengths, which, has_checksums=True)
        by_source: list[dict[int, int]] = [{} for _ in self.corpus.lengths]
        for loaded in batches(plan, assemble, 0, len(plan)) if len(plan) else ():
            for (source, example), checksum in loaded.checksums.items():
                by_source[source][example] = checksum
        return by_source

    def _planned(
        self, lengths: Sequence[Lengths], which: Mapping[str, np.ndarray] | None, has_checksums: bool
    ) -> tuple[Pass, Assembler]:
        """A pass over the pairs; ``lengths`` and ``which`` as in ``Evaluator._run``."""

        def chosen(source: Lengths) -> np.ndarray:
            return (which or {}).get(source.name, np.zeros(len(source), bool))

        only_those = None if which is None else chosen
        plan = Pass(lengths, self.budgets, self.batch_size, examples=self.examples, which=only_those)
        return plan, Assembler(lengths, self.budgets, self.recipe.image, has_checksums=has_checksums)

    def _asked(
        self, steps: Sequence[Callable[[Batch], Predictions]], lengths: Sequence[Lengths],
        which: Mapping[str, np.ndarray] | None = None, has_checksums: bool = False,
    ) -> list[list[Answers]]:  # fmt: skip
        """By step and source; ``lengths`` and ``which`` as in ``Evaluator._run``."""
        plan, assemble = self._planned(lengths, which, has_checksums)
        answers = [[Answers([], [], [], [], []) for _ in lengths] for _ in steps]
        for loaded, predictions in self._predicted(plan, assemble, steps) if len(plan) else ():
            for asked, own in zip(predictions, answers, strict=True):
                add_answers(asked, loaded, lengths, own)
        return answers

    def _figures(self, source: Lengths, found: list[Answers]) -> Figures:
        count, spec = len(found[0].examples), self.spec
        skipped: Figures = {"pairs_skipped": len(found[0].skipped)} if found[0].skipped else {}
        if not count:
            return {"loss": None, "pairs": 0} | skipped
        verdicts = np.asarray(source.prepared.verdict_E)[found[0].examples].astype(np.int32)[None]
        ones, none = np.ones((1, count), np.float32), np.zeros_like(verdicts)
        pairs = Pairs(ones.astype(np.int32), verdicts, ones, none, np.zeros((1, count, 2), np.float32))
        policy, reference = found[0].said(), found[1].said() if len(found) > 1 else None
        if spec.has_reference and reference is None:
            reference = self._known(source, found[0].examples, policy)
        kl = 0.0
        if spec.judges and reference is not None:
            total, number = divergence(policy, reference, pairs, spec)
            kl = max(0.0, float(total / number))
        own = jax.device_get(losses(policy, reference, pairs, spec, kl))
        figures: Figures = {"loss": float(own.loss_BC.mean()), "pairs": count} | skipped
        figures["preference_accuracy"] = float(own.right_BC.mean())
        if "unseen" in source.prepared.meta["labels"]:
            right = own.right_BC[0][has_label(source, "unseen")[found[0].examples]]
            figures["unseen_pair_accuracy"] = float(right.mean()) if len(right) else None
        rewards = own.chosen_BC[0], own.other_BC[0]
        if spec.judges:
            is_wanted = verdicts[0] == WANTED
            rewards = own.chosen_BC[0][is_wanted], own.chosen_BC[0][~is_wanted]
            figures["kl"] = kl
        elif reference is not None:
            before = np.asarray(reference.of(spec))[0]
            figures["reference_accuracy"] = float((before[:, 0] > before[:, 1]).mean())
        chosen, rejected = (float(x.mean()) if len(x) else None for x in rewards)
        figures |= {"chosen_reward": chosen, "rejected_reward": rejected}
        figures["margin"] = chosen - rejected if chosen is not None and rejected is not None else None
        return figures | {"chosen_nll": float(own.nll_BC.mean())}

    def _known(self, source: Lengths, examples: list[int], policy: Said) -> Said:
        """What the reference was asked before."""
        assert source.reference is not None, "a run without it stops at its start"
        return policy._replace(logps_BC2=jnp.asarray(source.reference.logps_E2[examples])[None])


def make_evaluator(corpus: Corpus, recipe: Recipe, mesh: Any, **options: int) -> Evaluator:
    """The evaluator of what a recipe learns; arguments as of ``Evaluator``."""
    kind = PreferenceEvaluator if recipe.preference else Evaluator
    return kind(corpus, recipe, mesh, **options)
