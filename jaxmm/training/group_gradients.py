"""How strongly each source and each modality pulls at each part of the model: gradient norms of a batch, by group.

The gradient of a group is that of its targets' loss, divided by the weight of the whole batch's targets, so that the
gradients of groups add up to the batch's; losses of routers are of no group, and left out. It is a program of its own,
run now and then; the training step stays as it is. A group costs about as much time as a step, and no more memory: it
goes through the same microbatches. So there are at most MOST groups of sources.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxmm import sharding
from jaxmm.batch import Batch
from jaxmm.data.assemble import Loaded
from jaxmm.data.packing.modalities import modality_codes, modality_name
from jaxmm.data.packing.plan import Lengths
from jaxmm.models.trainable import EVERYTHING, Trainable
from jaxmm.models.tree import joined
from jaxmm.runtime.barrier import Barrier
from jaxmm.runtime.jax_internals import compile_lowered, step_options
from jaxmm.training.balance import CODES, modalities_BT
from jaxmm.training.loss import batch_loss
from jaxmm.training.step import Apply, added_up

MOST = 6  # groups of sources: of more sources, the smallest are one group

# (params, batch, group_BT, number) -> what is of the group, its summed negative log-likelihood, and its weight
OfGroup = Callable[[Any, Batch, jax.Array, Any], tuple[Any, jax.Array, jax.Array]]


def make_group_gradients(
    apply: Apply, *, trainable: Trainable = EVERYTHING, accumulation: int = 1, target_budget: int, z_loss: float = 0.0,
    logit_softcap: float = 0.0,
) -> OfGroup:  # fmt: skip
    """Builds ``gradients(params, batch, group_BT, number) -> (gradients of what learns, loss sum, weight)``.

    ``group_BT`` (int, of the batch's shape) says which group the target of a position belongs to. The other arguments
    are those of ``make_train_step``.
    """

    def group_loss(learnt, fixed, batch: Batch, total_weight):
        hidden_at = functools.partial(apply, joined(learnt, fixed), batch)
        loss_sum, targets, terms = batch_loss(hidden_at, batch, target_budget, z_loss, logit_softcap)
        return loss_sum / total_weight, ((targets.weights_BR * terms.nll_BR).sum(), targets.weights_BR.sum())

    def gradients(params, batch: Batch, group_BT, number):
        learnt, fixed = trainable.split(params)
        total_weight = jnp.maximum(batch.weights_BT.sum(), 1e-6)
        mine = batch._replace(weights_BT=jnp.where(group_BT == number, batch.weights_BT, 0.0))
        grad = jax.grad(group_loss, has_aux=True)
        grads, sums = added_up(lambda part: grad(learnt, fixed, part, total_weight), mine, accumulation)
        return grads, *sums

    return gradients


def make_group_norms(apply: Apply, **options: Any) -> OfGroup:
    """Builds ``norms(params, batch, group_BT, number) -> ({part: norm}, loss sum, weight)``, "all" among the parts.

    Arguments are those of ``make_group_gradients``.
    """
    gradients = make_group_gradients(apply, **options)

    def norms(params, batch: Batch, group_BT, number):
        grads, loss_sum, weight_sum = gradients(params, batch, group_BT, number)
        of_parts = {part: optax.tree.norm(tree) for part, tree in grads.items()}
        return of_parts | {"all": optax.tree.norm(grads)}, loss_sum, weight_sum

    return norms


class Pulls(NamedTuple):
    """Of one batch, by kind of group ("sources", "modalities") where it has several, and by group.

    Attributes:
      norms: by part of the model, too.
      losses: sums over the group's targets, in nats; means: of these, by the targets' weights.
    """

    norms: dict[str, dict[str, dict[str, float]]]
    losses: dict[str, dict[str, float]]
    means: dict[str, dict[str, float]]


class GroupNorms:
    """Gradient norms of batches by source and modality; compiled when it is first asked for those of several groups.

    Args:
      norms: of ``make_group_norms``.
      lengths: of the sources.
    """

    def __init__(self, norms: OfGroup, lengths: Sequence[Lengths], mesh: Mesh):
        self._norms, self._lengths, self._mesh = norms, list(lengths), mesh
        self._compiled: dict[str, Any] = {}  # by the batch's shapes; the newest alone
        self._barrier = Barrier("gradients")

    def __call__(self, params: Any, batch: Batch, loaded: Loaded) -> Pulls:
        """Norms of one batch; all processes of a job must ask.

        Args:
          batch: on the mesh.
          loaded: the same batch on the host.
        """
        groups = {kind: held for kind, held in self._groups(loaded).items() if len(held) > 1}
        pulls, known = Pulls({}, {}, {}), dict[Any, tuple[dict[str, float], float, float]]()
        if not groups:
            return pulls
        cells_BT = loaded.batch.sources_BT * CODES + modalities_BT(loaded, self._lengths)
        for kind, held in groups.items():
            pulls.norms[kind], pulls.losses[kind], pulls.means[kind] = {}, {}, {}
            for name, cells in held.items():
                if cells not in known:  # a source may be all there is of a modality
                    known[cells] = self._run(params, batch, np.isin(cells_BT, list(cells)), name)
                pulls.norms[kind][name], pulls.losses[kind][name], weight = known[cells]
                if weight:
                    pulls.means[kind][name] = pulls.losses[kind][name] / weight
        return pulls

    def _groups(self, loaded: Loaded) -> Mapping[str, dict[str, frozenset[int]]]:
        """The groups of a global batch, the same in all processes: by kind and name, which cells they are made of, a
        source and a modality each."""
        pieces = np.array([(p.source, p.example) for row in loaded.all_rows for p in row], np.int64).reshape(-1, 2)
        cells = {cell for source in np.unique(pieces[:, 0]).tolist() for cell in self._cells(source, pieces)}
        sources = self._largest(pieces)
        modalities = {
            modality_name(cell % CODES): cell % CODES for cell in sorted(cells, key=lambda cell: cell % CODES)
        }
        return {
            "sources": {n: frozenset(cell for cell in cells if cell // CODES in of) for n, of in sources.items()},
            "modalities": {n: frozenset(cell for cell in cells if cell % CODES == i) for n, i in modalities.items()},
        }

    def _largest(self, pieces: np.ndarray) -> dict[str, set[int]]:
        """The sources of a batch by name; where they are more than MOST, the smallest are one group of their own."""
        held, counts = np.unique(pieces[:, 0], return_counts=True)
        by_size = held[np.argsort(-counts, kind="stable")].tolist()
        alone = by_size if len(by_size) <= MOST else by_size[: MOST - 1]
        groups = {self._lengths[source].name: {source} for source in sorted(alone)}
        if others := set(by_size) - set(alone):
            groups[f"{len(others)} other sources"] = others
        return groups

    def _cells(self, source: int, pieces: np.ndarray) -> Iterator[int]:
        examples = np.unique(pieces[pieces[:, 0] == source, 1])
        for code in np.unique(modality_codes(self._lengths[source].prepared, examples)).tolist():
            yield source * CODES + code

    def _run(self, params: Any, batch: Batch, mine_BT: np.ndarray, name: str) -> tuple[dict[str, float], float, float]:
        """Norms by part, the loss's sum, and the weight, of the targets of some positions."""
        inputs = params, batch, sharding.place_batch(mine_BT.astype(np.int32), self._mesh), np.int32(1)
        layout = str(jax.tree.map(lambda x: (x.shape, x.dtype), batch))
        if layout not in self._compiled:
            lowered = jax.jit(self._norms, out_shardings=sharding.replicated(self._mesh)).lower(*inputs)
            self._compiled = {layout: compile_lowered(lowered, step_options())}
        self._barrier.largest(0, where := f"the gradients of {name}")
        results = self._compiled[layout](*inputs)
        self._barrier.wait_for(results, f"the end of {where}")
        norms, loss_sum, weight_sum = jax.device_get(results)
        return {part: float(norm) for part, norm in norms.items()}, float(loss_sum), float(weight_sum)
