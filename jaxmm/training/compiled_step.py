"""Compiles the training step in a thread, while parameters and the first batch are loaded."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import Mesh

from jaxmm import sharding
from jaxmm.batch import Batch
from jaxmm.command import UNAWAITED
from jaxmm.models.routing import Load
from jaxmm.runtime import startup
from jaxmm.runtime.jax_internals import step_options
from jaxmm.runtime.program_cache import lower
from jaxmm.training.program import Program
from jaxmm.training.step import Metrics, TrainState


def _layout(batch: Any) -> dict[str, str]:
    """What a program is compiled for, by the name of the array."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(batch)
    return {jax.tree_util.keystr(path, simple=True): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


class CompiledStep:
    """``step(state, batch) -> (state, metrics)``, compiled once, and again only for a batch of another shape."""

    def __init__(self, program: Program, mesh: Mesh, batch: Batch, say: Callable[[str], None]):
        """Begins to compile.

        Args:
          batch: shapes and shardings of a global batch.
          say: is told of a second compilation, and what changed.
        """
        self._program, self._mesh, self._say = program, mesh, say
        self._layout = _layout(batch)
        # Processes of a job leave it together.
        threads = ThreadPoolExecutor(1, UNAWAITED if jax.process_count() == 1 else "compile")
        self._compiled: Future = threads.submit(self._compile, batch)
        threads.shutdown(wait=False)

    def _compile(self, batch: Batch) -> Any:
        program, mesh = self._program, self._mesh
        with jax.set_mesh(mesh):  # a thread has a context of its own
            lowered = lower(
                program.step, (program.abstract_state(mesh), batch), key=program.key,
                out_shardings=(program.shardings(mesh), sharding.replicated(mesh)), donate_argnums=(0,),
                types=(Metrics, Load),
            )  # fmt: skip
            compiled = lowered.compile(step_options())
        del lowered
        startup.give_back_memory()
        return compiled

    def is_of(self, program: Program, batch: Batch) -> bool:
        """Whether it is the step of this program, compiled for such a batch."""
        return self._program.key == program.key and self._layout == _layout(batch)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return self.of(batch)(state, batch)

    def of(self, batch: Batch) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        """The compiled step for a batch; waits until it is there."""
        layout = _layout(batch)
        if layout != self._layout:
            old, self._layout = self._layout, layout
            changed = [f"{name} {old.get(name, 'absent')} -> {layout.get(name, 'absent')}" for name in {**old, **layout}
                       if old.get(name) != layout.get(name)]  # fmt: skip
            self._say(f"the step is compiled again, for a batch of another shape: {'; '.join(changed)}")
            self._compiled = Future()
            self._compiled.set_result(self._compile(batch))
        return self._compiled.result()
