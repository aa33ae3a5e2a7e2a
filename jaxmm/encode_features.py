"""Encodes the images of a corpus once, by a run's vision tower: training on the vectors needs no tower.

    python -m jaxmm.encode_features --workdir=runs/base --config.data.path=dataset_info.json --output=encoded
    python -m jaxmm.train --config=configs/base.py --config.data.path=encoded --config.data.mixture=NAME \\
        --config.init_from=runs/base --config.optimizer.freeze=vision --workdir=runs/next

The config is the run's. The output holds an .npy file an image, a file of records for each source, and a
dataset_info.json that names them. Kill it at any moment and run it again: finished files are kept. An image that cannot
be used leaves its document out, as in training; what was left out is in SOURCE.skipped.jsonl.
"""

from __future__ import annotations

import collections
import shlex
from pathlib import Path
from typing import Any

import jax

from jaxmm import command, sharding
from jaxmm.checkpoints.params import chosen_step, saved_params
from jaxmm.config.shares import parse_schedule
from jaxmm.data import files
from jaxmm.data.demos import DEMOS
from jaxmm.data.documents import Source
from jaxmm.data.prepare.disk import space_wanted
from jaxmm.data.prepare.prepared import holds_prepared
from jaxmm.data.prepare.progress import Progress
from jaxmm.data.sources import read_sources
from jaxmm.encoding.encoder import Encoder
from jaxmm.encoding.output import INFO, claim, describe, tower_digest
from jaxmm.encoding.writer import Writer
from jaxmm.errors import UserError, nearest
from jaxmm.recipe import Recipe, read_reading, read_recipe

DTYPES = ("float32", "float16")

FLAGS: command.Flags = {
    "workdir": ("", "folder of the run whose tower encodes"),
    "output": ("", "folder for the vectors and the records that name them"),
    "step": ("", "checkpoint to take the tower from: its step, or best; the newest if left out"),
    "dtype": ("float32", "of the vectors: float32, or float16 for half the space"),
}


def raw_sources(config: Any, recipe: Recipe) -> list[Source]:
    """The sources of a config, as they were before preparing.

    Raises:
      UserError: if the path is prepared data, whose text cannot be had back, or boxes are to be written.
    """
    names = dict.fromkeys(name for _, shares in parse_schedule(config.data.mixture) for name in shares)
    if not config.data.path:
        return [DEMOS[config.data.demo].training_source(seed=0)]
    path = files.absolute(config.data.path)
    if not files.is_file(files.join(path, INFO)) and holds_prepared(path):
        raise UserError(f"config.data.path {path} is prepared: give the raw data, whose records can be written again")
    if config.data.boxes:
        raise UserError(
            "config.data.boxes: boxes cannot be told of ready-made features, which have no pixels: set it to ''"
        )
    return read_sources(path, list(names), read_reading(config, recipe))


def main(argv: list[str]) -> int:
    """Encodes each source of the config's data, and says how to train on it."""
    args = command.parse(argv, FLAGS, config="workdir", about=__doc__ or "")
    if not args.output:
        raise UserError(f"--output is missing: {FLAGS['output'][1]}")
    if args.dtype not in DTYPES:
        raise UserError(f"--dtype '{args.dtype}' is not one of {', '.join(DTYPES)}{nearest(args.dtype, DTYPES)}")
    workdir, output = Path(args.workdir), Path(args.output)
    recipe = read_recipe(args.config, workdir)
    if recipe.model.vision is None:
        raise UserError(f"{args.workdir}: its model has no vision tower that could encode images")
    if recipe.image.max_tiles > 1:
        raise UserError(f"{args.workdir}: its images are cut into tiles, whose vectors make no grid")
    if recipe.model.vision.taps:
        raise UserError("this tower's inner layers go to the decoder too, which ready-made features cannot hold")
    sources = raw_sources(args.config, recipe)
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh), space_wanted(output):
        params = saved_params(workdir, recipe, mesh, chosen_step(workdir, args.step))
        fast = args.config.data.fast_decode
        digest = tower_digest(params["vision"], recipe.model.vision, recipe.image)
        tower = {"digest": digest, "dtype": args.dtype, "computed": recipe.compute.dtype, "fast_decode": fast}
        claim(output, tower, sources)
        encoder = Encoder(recipe, params, fast)
        progress = Progress(quiet_seconds=0.5, doing="encoding")
        totals: collections.Counter[str] = collections.Counter()
        for source in sources:
            progress.start(source.name, 0, 0)
            counts = Writer(source.name, output, encoder, args.dtype).write(source, progress)
            progress.close()
            totals.update(counts._asdict())
    names = [source.name for source in sources]
    describe(output, names)
    print(
        f"{output}: {totals['documents']:,} documents, {totals['encoded']:,} images encoded, {totals['kept']:,} kept"
        + (f", {totals['skipped']:,} documents left out" if totals["skipped"] else "")
    )
    path, start = shlex.quote(str(output)), shlex.quote(args.workdir)
    print(
        f"train: --config.data.path={path} --config.data.mixture={shlex.quote(','.join(names))} "
        f"--config.init_from={start} --config.optimizer.freeze=vision"
    )
    return 0


if __name__ == "__main__":
    command.run(main)
