"""Encodes a corpus's pictures and clips once, by a run's towers: training then needs no decoding, and no audio tower.

    python -m jaxmm.encode_features --workdir=runs/base --config.data.path=dataset_info.json --output=encoded
    python -m jaxmm.train --config=configs/base.py --config.data.path=encoded --config.data.mixture=NAME \\
        --config.init_from=runs/base --config.optimizer.freeze=vision --workdir=runs/next

The last line printed says data.path, data.mixture, init_from and freeze of that training: vision, audio or vision,audio
is frozen, by what was encoded.

The config is the run's. It settles how videos are sampled and how much of a recording is heard: training on the
vectors cannot change that. Videos of a document that is longer than a row of the run have fewer frames, as in training.
The output holds an .npy file for each medium, a file of records for each source, and a dataset_info.json that names
them. Kill it at any moment and run it again: finished files are kept. With other towers, data or settings (and with
videos, another tokenizer or template) it asks for another output. A medium that cannot be used leaves its document out,
as in training; what was left out is in SOURCE.skipped.jsonl.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxmm import command, sharding
from jaxmm.checkpoints.chosen import chosen_step
from jaxmm.checkpoints.params import saved_params
from jaxmm.config.shares import parse_schedule
from jaxmm.data import demos, files
from jaxmm.data.documents import Source
from jaxmm.data.media.medium import Item
from jaxmm.data.media.table import MEDIA
from jaxmm.data.media.video import VideoMedium
from jaxmm.data.prepare.disk import space_wanted
from jaxmm.data.prepare.prepared import holds_prepared
from jaxmm.data.prepare.progress import Progress
from jaxmm.data.sources import read_sources
from jaxmm.encoding.encoder import Encoder
from jaxmm.encoding.output import INFO, claim, describe, towers
from jaxmm.encoding.taken import Taker
from jaxmm.encoding.writer import Counts, Writer
from jaxmm.errors import UserError, nearest
from jaxmm.recipe import Recipe, read_reading, read_recipe
from jaxmm.workdir.spool import name_of

DTYPES = ("float32", "float16")

FLAGS: command.Flags = {
    "workdir": ("", "folder of the run whose towers encode"),
    "output": ("", "folder for the vectors and the records that name them"),
    "step": ("", "checkpoint to take the towers from: its step, or best; the newest if left out"),
    "dtype": ("float32", "of the vectors: float32, or float16 for half the space"),
}


def raw_sources(config: Any, recipe: Recipe) -> list[Source]:
    """The sources of a config, as they were before preparing.

    Raises:
      UserError: if the path is prepared data, whose text cannot be had back, boxes are to be written, or records are
        preferences.
    """
    if config.objective:
        raise UserError(
            f"config.objective={config.objective}: preferences are not written with ready-made features yet: train on "
            f"their pictures and clips themselves"
        )
    names = dict.fromkeys(name for _, shares in parse_schedule(config.data.mixture) for name in shares)
    if not config.data.path:
        return [demos.training_source(config.data.demo)]
    path = files.absolute(config.data.path)
    if not files.is_file(files.join(path, INFO)) and holds_prepared(path):
        raise UserError(f"config.data.path {path} is prepared: give the raw data, whose records can be written again")
    if config.data.boxes:
        raise UserError(
            "config.data.boxes: boxes cannot be told of ready-made features, which have no pixels: set it to ''"
        )
    return read_sources(path, list(names), read_reading(config, recipe))


def check_towers(workdir: str, recipe: Recipe) -> None:
    """Raises UserError for a model whose vectors would not be all that its decoder gets, or make no grid."""
    run = name_of(Path(workdir))
    if recipe.model.vision is None and recipe.model.audio is None:
        raise UserError(f"{run}: its model has no tower that could encode anything")
    if recipe.image.has_tiles:
        raise UserError(f"{run}: its images are cut into tiles, whose vectors make no grid")
    if recipe.image.row_break:
        raise UserError(f"{run}: {recipe.image.row_break} stands between rows of its images, which vectors lack")
    if recipe.model.vision is not None and recipe.model.vision.taps:
        raise UserError("this tower's inner layers go to the decoder too, which ready-made features cannot hold")


def frames_a_second(item: Item, encoder: Encoder) -> float:
    """How many frames of a video's vectors a second of it has."""
    medium = MEDIA["video"]
    assert isinstance(medium, VideoMedium)
    return medium.patches_per_second(item.units, item.extent, encoder.spec)


def encode(source: Source, output: Path, recipe: Recipe, encoder: Encoder, dtype: str) -> Counts:
    """Writes a source, and says what was cut."""
    progress = Progress(quiet_seconds=0.5, doing="encoding")
    progress.start(source.name, 0, 0)
    take = Taker(source.name, recipe, encoder.spec, source.skip_errors)
    rate = functools.partial(frames_a_second, encoder=encoder)
    counts = Writer(source.name, output, take, encoder, rate, dtype).write(source, progress)
    progress.close()
    for line in take.cut_lines():
        print(f"{source.name}: {line}")
    return counts


def main(argv: list[str]) -> int:
    """Encodes each source of the config's data, and says how to train on it."""
    args = command.parse(argv, FLAGS, config="workdir", about=__doc__ or "")
    if not args.output:
        raise UserError(f"--output is missing: {FLAGS['output'][1]}")
    if args.dtype not in DTYPES:
        raise UserError(f"--dtype '{args.dtype}' is not one of {', '.join(DTYPES)}{nearest(args.dtype, DTYPES)}")
    workdir, output = Path(args.workdir), Path(args.output)
    recipe = read_recipe(args.config, workdir)
    check_towers(args.workdir, recipe)
    sources = raw_sources(args.config, recipe)
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    totals = Counts()
    with jax.set_mesh(mesh), space_wanted(output):
        params = saved_params(workdir, recipe, mesh, chosen_step(workdir, args.step))
        encoder = Encoder(recipe, params, args.config.data.fast_decode)
        settled = {"dtype": args.dtype, "fast_decode": args.config.data.fast_decode}
        claim(output, towers(recipe, params, encoder.spec) | settled, sources)
        for source in sources:
            totals.add(encode(source, output, recipe, encoder, args.dtype))
    names = [source.name for source in sources]
    describe(output, names)
    print(
        f"{output}: {totals.documents:,} documents, {told(totals.encoded)} encoded, {totals.kept.total():,} kept"
        + (f", {totals.skipped:,} documents left out" if totals.skipped else "")
    )
    path, start = shlex.quote(str(output)), shlex.quote(args.workdir)
    mixture = shlex.quote(",".join(names))
    print(
        f"train: python -m jaxmm.train --config=CONFIG.py --workdir=NEW --config.data.path={path} "
        f"--config.data.mixture={mixture} --config.init_from={start} "
        f"--config.optimizer.freeze={','.join(frozen(totals, recipe))}"
    )
    return 0


def told(counts: Mapping[str, int]) -> str:
    """``3 images, 1 videos``."""
    return ", ".join(f"{count:,} {plural}" for plural, count in counts.items() if count) or "nothing"


def frozen(counts: Counts, recipe: Recipe) -> list[str]:
    """The towers that what was encoded needs no more; where nothing was, all."""
    encoded, heard = counts.encoded + counts.kept, MEDIA["audio"].plural
    is_idle = {"vision": bool(encoded.keys() - {heard}), "audio": heard in encoded}
    return [part for part in recipe.model.parts if is_idle.get(part, False) or (part in is_idle and not encoded)]


if __name__ == "__main__":
    command.run(main)
