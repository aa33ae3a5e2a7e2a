"""The same work on a Ray cluster: each item is a row of a Ray Data dataset, and the task is mapped over the rows.

All machines must see the task's folders under the same paths: use a shared disk.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxmm.data.prepare.local_engine import Task, WorkerDied
from jaxmm.errors import UserError, extra


def run(task: Task, items: Sequence[Any], workers: int, tick: Callable[..., None], done: Callable[[Any], None]) -> None:
    """As ``local_engine.run``, on the connected cluster, or the one at RAY_ADDRESS, or else a new one on this machine.

    Args:
      workers: the most items at once; 0 is as many as the cluster has CPUs.

    Raises:
      WorkerDied: if Ray gives up on an item.
    """
    if not items:
        return
    with _connected() as ray:
        rows = [{"number": i, "item": pickle.dumps(item)} for i, item in enumerate(items)]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        answers = dataset.map(_Work(task), num_cpus=1, concurrency=workers or None)
        try:
            for answer in answers.iter_rows():
                error = pickle.loads(answer["error"])
                if error is not None:
                    raise error
                tick(*answer["counts"])
                done(items[answer["number"]])
        except ray.exceptions.RayError as error:
            raise WorkerDied(f"Ray gave up: {' '.join(str(error).split())[:300]}: run it again to go on") from error


class _Work:
    """What Ray calls with each row. An error is returned as a value, so that Ray does not wrap it."""

    def __init__(self, task: Task):
        self._task = pickle.dumps(task)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        sums = [0, 0, 0]

        def tick(*counts: int) -> None:
            sums[:] = [a + b for a, b in zip(sums, counts, strict=True)]

        error: Exception | None = None
        try:
            pickle.loads(self._task)(pickle.loads(row["item"]), tick)
        except Exception as raised:
            error = raised
        return {"number": row["number"], "counts": sums, "error": pickle.dumps(error)}


@contextlib.contextmanager
def _connected() -> Iterator[Any]:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"the engine 'ray' needs Ray: {extra('ray')}") from error
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    shown, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        yield ray
    finally:
        context.enable_progress_bars = shown
        if is_ours:
            ray.shutdown()
