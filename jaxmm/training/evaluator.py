"""Evaluation on held-out data: loss, and exact match of the assistant's answers.

An answer is right if every token of it, its end marker included, is the model's most likely one after the true tokens
before it. For a greedy decoder that is the same as generating it, so that no decoding loop is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxmm import sharding
from jaxmm.corpus import Corpus
from jaxmm.data import memory
from jaxmm.data.assemble import Assembler, Loaded, row_bytes
from jaxmm.data.loader import batches
from jaxmm.data.media.extents import Extents
from jaxmm.data.media.table import text_tokens
from jaxmm.data.packing.lengths import widths_of
from jaxmm.data.packing.plan import Budgets, Lengths, Pass, choose_budgets
from jaxmm.data.prepare.index import CLIPS, Columns
from jaxmm.models.multimodal import Compute, make_model
from jaxmm.recipe import Recipe
from jaxmm.runtime.barrier import Barrier
from jaxmm.training.step import Predictions, make_eval_step

Figures = dict[str, Any]  # of one source: "loss", "answer_accuracy", ...
ORDER = "order"  # the label of questions whose answers are others if their films and recordings are played backwards


class SwappedImages(Columns):
    """A source in which each example shows the image of another one: what is answered then was not seen."""

    def __init__(self, prepared: Columns):
        if not (np.diff(prepared.images_E1) == 1).all() or text_tokens(Extents(prepared)).any():
            raise ValueError("images can only be swapped where each example has one")
        self.__dict__.update(prepared.__dict__)
        self._original = prepared
        cycle = np.random.default_rng(0).permutation(len(prepared))
        self._from = np.empty_like(cycle)  # example e shows the image of self._from[e], never its own
        self._from[cycle] = np.roll(cycle, -1)
        for name in ("image_height_I", "image_width_I", "image_kind_I", *CLIPS):
            setattr(self, name, np.asarray(getattr(prepared, name))[self._from])

    def read(self, example: int):
        images = self._original.read(int(self._from[example])).images
        return self._original.read(example)._replace(images=images)


class _Tally:
    """Sums over the answers and tokens of one source."""

    def __init__(self, lengths: Lengths):
        self.labels_E = lengths.prepared.labels_E
        self.names = list(lengths.prepared.meta["labels"])
        self.nll = self.weight = 0.0
        self.answers: list[tuple[int, bool]] = []  # (label mask, right)

    def accuracy(self, label: str = "") -> float | None:
        bit = 1 << self.names.index(label) if label else 0
        right = [ok for mask, ok in self.answers if not label or mask & bit]
        return sum(right) / len(right) if right else None


def tally(predictions: Predictions, loaded: Loaded, tallies: list[_Tally]) -> None:
    """Adds a batch's predictions (NumPy) to the sums of their sources."""
    at, weights, nll, correct = predictions
    for b, row in enumerate(loaded.rows):
        real = weights[b] > 0
        position, right = at[b][real], correct[b][real]
        ends = np.cumsum([piece.last - piece.first for piece in row])
        piece_of = np.searchsorted(ends, position, side="right")
        answer_of = loaded.answers_BT[b][position]
        for i, piece in enumerate(row):
            here = piece_of == i
            sums = tallies[piece.source]
            sums.nll += float((nll[b][real] * weights[b][real])[here].sum())
            sums.weight += float(weights[b][real][here].sum())
            mask = int(sums.labels_E[piece.example])
            for answer in np.unique(answer_of[here & (answer_of > 0)]):
                sums.answers.append((mask, bool(right[answer_of == answer].all())))


class Evaluator:
    """Runs the model once over every source of a corpus; compiled once, whatever the number of calls."""

    def __init__(self, corpus: Corpus, recipe: Recipe, mesh, *, seq_len: int, batch_size: int, examples: int):
        self.corpus, self.recipe, self.mesh = corpus, recipe, mesh
        self.examples = examples
        even = [1.0] * len(corpus.lengths)
        multiple = sharding.zigzag_multiple(mesh.shape["context"])
        self.budgets: Budgets = choose_budgets(corpus.lengths, even, seq_len, 0, 0, recipe.image.merge, multiple)
        self.batch_size = batch_size
        row = row_bytes(self.budgets, recipe.image, widths_of(corpus.lengths))
        memory.check_rows(batch_size, row, "the arrays")  # every process makes all
        self.skipped: set[str] = set()
        compute: Compute = recipe.compute
        step = make_eval_step(
            lambda p, b, target_positions_BR: make_model(recipe.model)[1](p, b, compute, target_positions_BR),
            target_budget=self.budgets.targets,
            logit_softcap=recipe.model.decoder.logit_softcap,
        )
        self._step = jax.jit(step, out_shardings=sharding.replicated(mesh))
        self._barrier = Barrier("evaluation")

    def _run(self, params, lengths: list[Lengths], label: str = "", backwards: bool = False) -> list[_Tally]:
        """Tallies of some sources: of all their examples, or of those with a label, with their clips backwards."""
        which = functools.partial(_has_label, label=label) if label else None
        plan = Pass(lengths, self.budgets, self.batch_size, examples=self.examples, which=which)
        assemble = Assembler(lengths, self.budgets, self.recipe.image, backwards=backwards)
        tallies = [_Tally(source) for source in lengths]
        local = sharding.local_rows(self.mesh, self.batch_size)
        for number, loaded in enumerate(batches(plan, assemble, 0, len(plan)), 1):  # every process tallies every row
            self.skipped |= {skip.origin for skip in loaded.skipped}
            mine = jax.tree.map(lambda x: x[local], loaded.batch)
            self._barrier.largest(0, where := f"batch {number} of an evaluation")
            predictions = self._step(params, sharding.place_batch(mine, self.mesh))
            self._barrier.wait_for(predictions, f"the end of {where}")
            tally(jax.tree.map(np.asarray, predictions), loaded, tallies)
        return tallies

    def __call__(self, params, blind: bool = False) -> dict[str, Figures]:
        """Returns the figures of each source.

        Args:
          blind: sources whose answers have labels also answer with swapped images, and questions about an order with
            films and recordings that are played backwards.
        """
        tallies = self._run(params, self.corpus.lengths)
        figures: dict[str, Figures] = {}
        for source, sums in zip(self.corpus.lengths, tallies, strict=True):
            if sums.weight == 0:
                figures[source.name] = {"loss": None, "answer_accuracy": None, "answers": 0}
                continue
            of_source: Figures = {"loss": sums.nll / sums.weight, "answer_accuracy": sums.accuracy()}
            of_source["answers"] = len(sums.answers)
            if sums.names:
                of_source["answer_accuracy_by_kind"] = {n: sums.accuracy(n) for n in sums.names if n != "unseen"}
                of_source["unseen_pair_accuracy"] = sums.accuracy("unseen") if "unseen" in sums.names else None
                if blind:
                    swapped = Lengths(
                        SwappedImages(source.prepared), self.recipe.image, encode=self.recipe.template.stamp
                    )
                    of_source["answer_accuracy_blind"] = self._run(params, [swapped])[0].accuracy()
                if blind and ORDER in sums.names and source.prepared.meta.get("media"):
                    backwards = self._run(params, [source], ORDER, backwards=True)
                    of_source["answer_accuracy_reversed"] = backwards[0].accuracy()
            figures[source.name] = of_source
        return figures


def _has_label(lengths: Lengths, label: str) -> np.ndarray:
    """bool (examples,)."""
    bit = 1 << lengths.prepared.meta["labels"].index(label)
    return np.asarray(lengths.prepared.labels_E) & np.uint64(bit) > 0


def mean_loss(figures: dict[str, Figures]) -> float | None:
    """The mean over sources of their loss: what the best checkpoint is chosen by."""
    losses = [f["loss"] for f in figures.values() if f["loss"] is not None]
    return float(np.mean(losses)) if losses else None


def closing_rows(figures: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """The figures as rows of a table."""
    rows: list[tuple[str, Any]] = []
    for source, of_source in figures.items():
        for name, value in of_source.items():
            if isinstance(value, dict):
                rows += [(f"{source} {name} {key}", item) for key, item in value.items()]
            else:
                rows.append((f"{source} {name}", value))
    return rows
