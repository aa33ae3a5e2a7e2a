"""Batches made ahead of the step: Grain's threads make them, or wait for worker processes of ours that do.

Batch k is a pure function of the plan and k, so that any of them may make it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jaxmm.data.assemble import Assembler, Loaded
from jaxmm.data.packing.plan import Batches, Row
from jaxmm.data.processes import check_workers
from jaxmm.data.workers import Workers

if TYPE_CHECKING:
    import grain


class _Batches:
    """The source Grain reads: element k is the part of global batch k that this process feeds."""

    def __init__(self, plan: Batches, assemble: Callable[[list[Row]], Loaded], local_rows: Sequence[int], stop: int):
        self.plan, self.assemble, self.local_rows, self.stop = plan, assemble, list(local_rows), stop

    def __len__(self) -> int:
        return self.stop

    def __getitem__(self, k: int) -> Loaded:
        rows = self.plan.batch(k)  # planned here once, not by each worker
        return self.assemble([rows[i] for i in self.local_rows])._replace(all_rows=rows)


def batches(
    plan: Batches,
    assemble: Assembler,
    start: int,
    stop: int,
    *,
    local_rows: Sequence[int] | None = None,
    threads: int = 2,
    workers: int = 0,
    buffer: int = 4,
) -> grain.DatasetIterator[Loaded]:
    """Yields global batches start..stop of a plan, made ahead from this call on in threads, or in worker processes.

    A batch from a worker lies in memory that is used again when the batch, and all that was made of it without a copy,
    is gone.

    Args:
      local_rows: the rows of each global batch this process needs; all by default.
      workers: processes that assemble; 0 for none, and threads do it.
      buffer: batches made ahead; at least one a thread or worker.

    Raises:
      UserError: for more workers than this machine can use; while iterating, if a worker process dies.
    """
    import grain  # here, as a run's program is read at the same time

    check_workers(workers, "config.data.workers")
    rows = range(plan.batch_size) if local_rows is None else local_rows
    threads = workers or max(threads, 1)
    # A worker's thread only waits for it; the processes end with the dataset.
    source = _Batches(plan, Workers(assemble, workers) if workers else assemble, rows, stop)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(buffer, threads))
    iterator = iter(grain.MapDataset.source(source)[start:].to_iter_dataset(options))
    iterator.start_prefetch()
    return iterator
