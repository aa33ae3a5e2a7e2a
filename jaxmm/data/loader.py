"""Makes batches ahead of the step: in Grain's threads, or in our worker processes, for which these threads wait.

Batch k is a pure function of the plan and k, so that any thread or process may make it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jaxmm.data.assemble import Assembler, Loaded
from jaxmm.data.packing.plan import Batches, Row
from jaxmm.data.packing.rows import Listed
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
        rows = Listed(self.plan.batch_arrays(k, k + 1))  # planned here once, not by each worker
        return self.assemble(rows.those(self.local_rows))._replace(all_rows=rows)


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
    """Yields global batches [start, stop) of a plan. From this call on, threads or worker processes make them ahead.

    A batch from a worker lies in shared memory. That memory is reused once the batch, and everything made from it
    without a copy, is gone.

    Args:
      local_rows: the rows of each global batch that this process needs; all by default.
      threads: how many threads assemble where there are no workers.
      workers: number of processes that assemble; with 0, threads do.
      buffer: batches made ahead; at least one per thread or worker.

    Raises:
      UserError: for more workers than this machine can use; while iterating, if a worker process dies.
    """
    import grain  # imported here: a run's program is read at the same time

    check_workers(workers, "config.data.workers")
    rows = range(plan.batch_size) if local_rows is None else local_rows
    threads = workers or max(threads, 1)
    # A worker's thread only waits for it; the processes end with the dataset.
    source = _Batches(plan, Workers(assemble, workers) if workers else assemble, rows, stop)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(buffer, threads))
    iterator = iter(grain.MapDataset.source(source)[start:].to_iter_dataset(options))
    iterator.start_prefetch()
    return iterator
