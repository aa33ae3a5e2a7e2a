"""One process of a job, as far as its input side goes, up to some batches: what it takes of time and memory.

    cd tools; python -m simulation.process FOLDER BATCH_SIZE SEQ_LEN FIRST COUNT

It is a process of its own so that memory is its own. The answer is a line of JSON.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxmm.data.packing.plan import Lengths, Plan, Row, choose_budgets
from jaxmm.data.packing.rows import Listed
from jaxmm.image_spec import ImageSpec
from simulation.columns import Columned

IMAGE = ImageSpec(patch_size=16, merge=2, min_pixels=64 * 16**2, max_pixels=1024 * 16**2)


def memory() -> dict[str, int]:
    """Bytes of this process: its own; and of files that it maps, which the processes of a machine share and which the
    system may drop."""
    kinds = {"Anonymous": "own", "Rss": "resident"}
    sizes = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in kinds:
            sizes[kinds[name]] = int(rest.split()[0]) * 1024
    return {"own": sizes["own"], "mapped": sizes["resident"] - sizes["own"]}


def peak() -> int:
    """The most bytes of its own and mapped ones that the process has had since ``forget_peak``."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


class Stages:
    """Seconds and memory of each thing that is done: seconds of the processor, which other work does not lengthen."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.own: dict[str, int] = {}
        self.spike: dict[str, int] = {}

    def do(self, name: str, what: Callable[[], Any]) -> Any:
        """Does it, and notes seconds, own memory after it, and by how much it was above that meanwhile."""
        forget_peak()
        began = time.process_time()
        result = what()
        self.seconds.setdefault(name, []).append(time.process_time() - began)
        now = memory()
        self.own[name] = now["own"]
        self.spike[name] = max(self.spike.get(name, 0), peak() - now["own"] - now["mapped"])
        return result


def run(folders: list[Path], cache: Path, batch_size: int, seq_len: int, first: int, count: int) -> dict[str, Any]:
    """Opens the folders, plans from batch ``first`` on, and takes ``count`` more batches.

    It loads the first of each 4,096 rows; as all processes do, it plans the whole batch.
    """
    stages, before = Stages(), memory()["own"]
    opened = stages.do("check columns", lambda: [Columned(folder) for folder in folders])
    lengths = stages.do("lengths", lambda: [Lengths(one, IMAGE, cache) for one in opened])
    totals = stages.do("totals", lambda: [float(source.tokens_E.sum()) for source in lengths])
    budgets = stages.do("budgets", lambda: choose_budgets(lengths, totals, seq_len, 0, 0, IMAGE.merge))
    plan = stages.do("plan", lambda: Plan(lengths, totals, budgets, batch_size, 0, table=cache))
    stages.do("first batch", lambda: plan.batch_arrays(first, first + 1))
    pieces = 0
    local = range(max(1, batch_size // 4096))
    for k in range(first + 1, first + 1 + count):
        arrays = stages.do("batch", functools.partial(plan.batch_arrays, k, k + 1))
        rows = stages.do("own rows", functools.partial(Listed(arrays).those, local))
        stages.do("layout", functools.partial(_spans, lengths, rows))
        pieces += len(arrays.pieces.source)
    plan.save()
    at_end = memory()
    return {
        "seconds": stages.seconds, "spike": stages.spike, "own": at_end["own"] - before, "mapped": at_end["mapped"],
        "own_after": stages.own, "pieces": pieces / max(count, 1), "windows": len(plan._table.starts),
        "examples": sum(map(len, lengths)), "tokens": sum(totals), "images": sum(len(o.image_at_I) for o in opened),
        "column_bytes": sum(f.stat().st_size for one in folders for f in one.glob("*.npy")),
        "length_bytes": sum(f.stat().st_size for f in cache.glob("*.npy")),
    }  # fmt: skip


def _spans(lengths: list[Lengths], rows: Sequence[Row]) -> None:
    """The first thing that the layout of a piece asks of its source's lengths, for all pieces."""
    for piece in itertools.chain.from_iterable(rows):
        source = lengths[piece.source]
        source.spans(slice(*source.prepared.images_E1[piece.example : piece.example + 2].tolist()))


def main(argv: list[str]) -> None:
    folder, *numbers = argv
    folders = sorted(path for path in Path(folder).iterdir() if (path / "meta.json").is_file())
    print(json.dumps(run(folders, Path(folder) / "cache", *map(int, numbers))))


if __name__ == "__main__":
    main(sys.argv[1:])
