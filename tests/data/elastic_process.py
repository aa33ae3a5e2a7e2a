"""One process of several that load their parts of the same batches; tests start it, as a cluster would.

    python elastic_process.py ADDRESS PROCESSES PROCESS FOLDER MESH START STOP

Prints a line of JSON for each batch: the rows that this process loads, what of the plan they hold, and what all devices
together hold: a sum over the global arrays, which needs every process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np

from jaxmm import sharding
from jaxmm.data.assemble import Assembler
from jaxmm.data.loader import batches
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.plan import Budgets, Plan
from jaxmm.data.prepare.prepared import Prepared
from jaxmm.image_spec import ImageSpec

BATCH_SIZE, SEED = 4, 3


def planned(folder: Path, image: ImageSpec, budgets: Budgets) -> tuple[Plan, Assembler]:
    lengths = [Lengths(Prepared(folder), image)]
    return Plan(lengths, [1], budgets, BATCH_SIZE, SEED, window_rows=8), Assembler(lengths, budgets, image)


def main(address: str, processes: str, process: str, folder: str, settings: str, start: str, stop: str) -> None:
    jax.distributed.initialize(address, int(processes), int(process))
    mesh_sizes, image, budgets = json.loads(settings)
    mesh = sharding.make_mesh(mesh_sizes)
    rows = sharding.local_rows(mesh, BATCH_SIZE)
    plan, assemble = planned(Path(folder), ImageSpec(**image), Budgets(*budgets))
    everything = jax.jit(
        lambda batch: jax.numpy.stack([batch.text.values.sum(), batch.patches.values.astype(int).sum()]),
        out_shardings=sharding.replicated(mesh),
    )
    loaded_ahead = batches(plan, assemble, int(start), int(stop), local_rows=rows)
    for k, loaded in zip(range(int(start), int(stop)), loaded_ahead, strict=True):
        batch = sharding.place_batch(loaded.batch, mesh)
        line = {
            "batch": k,
            "rows": rows,
            "pieces": [[[p.example, p.first, p.last] for p in row] for row in loaded.rows],
            "shape": batch.text.values.shape,
            "sums": np.asarray(everything(batch)).tolist(),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
