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
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import numpy as np

from jaxmm import command, sharding
from jaxmm.atomic import published
from jaxmm.batch import Batch, ImageSpec
from jaxmm.checkpoints.params import chosen_step, saved_params
from jaxmm.config.shares import parse_schedule
from jaxmm.data import demo, files
from jaxmm.data.assemble import empty_batch
from jaxmm.data.documents import Document, Features, Image, Part, Skip, Source, Text, Tokens, Turn, split_origin
from jaxmm.data.media import geometry
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.opening import opened_file
from jaxmm.data.media.patches import patches
from jaxmm.data.media.picture import image_size
from jaxmm.data.packing.plan import Budgets
from jaxmm.data.prepare.disk import space_wanted
from jaxmm.data.prepare.prepared import holds_prepared
from jaxmm.data.prepare.progress import Progress
from jaxmm.data.sources import read_sources
from jaxmm.errors import UserError, nearest
from jaxmm.machine import cores
from jaxmm.models.multimodal import make_model
from jaxmm.recipe import Recipe, read_reading, read_recipe

CHUNK_DOCUMENTS = 256  # whose images are encoded together
PATCHES = 4096  # encoded at once, or those of the largest image
FILES_A_FOLDER = 10_000
DTYPES = ("float32", "float16")
INFO, ENCODING = "dataset_info.json", "encoding.json"

FLAGS: command.Flags = {
    "workdir": ("", "folder of the run whose tower encodes"),
    "output": ("", "folder for the vectors and the records that name them"),
    "step": ("", "checkpoint to take the tower from: its step, or best; the newest if left out"),
    "dtype": ("float32", "of the vectors: float32, or float16 for half the space"),
}


class Encoder:
    """A frozen tower over many pictures, in one shape: compiled once."""

    def __init__(self, recipe: Recipe, params: Any, fast_decode: bool):
        spec = recipe.image
        largest = spec.max_pixels // (spec.patch_size * spec.merge) ** 2 * spec.merge**2
        self.spec, self.fast_decode, self.params = spec, fast_decode, params
        self.patches = max(largest, PATCHES // spec.merge**2 * spec.merge**2)
        _, apply = make_model(recipe.model)
        self._run: Callable[[Any, Batch], jax.Array] = jax.jit(
            lambda params, batch: apply(params, batch, recipe.compute, method="features").last_BND
        )
        self._pool = ThreadPoolExecutor(cores())

    def __call__(self, pictures: Iterable[Image]) -> Iterator[np.ndarray | BadMedia]:
        """Yields float32 (rows, columns, D) of each picture, or why it cannot be used."""
        waiting: list[tuple[np.ndarray, tuple[int, int]] | BadMedia] = []
        room = self.patches
        for found in self._pool.map(self._decoded, pictures):
            size = 0 if isinstance(found, BadMedia) else len(found[0])
            if size > room:
                yield from self._encoded(waiting)
                waiting, room = [], self.patches
            waiting.append(found)
            room -= size
        yield from self._encoded(waiting)

    def _decoded(self, picture: Image) -> tuple[np.ndarray, tuple[int, int]] | BadMedia:
        try:
            return patches(picture, self.spec, image_size(picture), fast=self.fast_decode)
        except BadMedia as error:
            return error

    def _encoded(
        self, waiting: Sequence[tuple[np.ndarray, tuple[int, int]] | BadMedia]
    ) -> Iterator[np.ndarray | BadMedia]:
        batch = empty_batch(1, Budgets(1, self.patches, self.patches // self.spec.merge**2, 1), self.spec)
        at, places = 0, []
        for tile, (values, grid) in enumerate(one for one in waiting if not isinstance(one, BadMedia)):
            here = slice(at, at + len(values))
            batch.patches.values[0, here] = values
            batch.patches.positions[0, here, 1:] = geometry.patch_positions(*grid, self.spec)
            batch.patches.segments[0, here] = tile + 1
            batch.grids_BM3[0, tile] = 1, *grid
            places.append(here)
            at = here.stop
        features_ND = np.asarray(self._run(self.params, batch)[0], np.float32) if places else None
        left = iter(places)
        for one in waiting:
            if isinstance(one, BadMedia) or features_ND is None:
                assert isinstance(one, BadMedia)
                yield one
                continue
            here, (rows, columns) = next(left), one[1]
            row, column = geometry.patch_positions(rows, columns, self.spec).T
            vectors = np.empty((rows, columns, features_ND.shape[1]), np.float32)
            vectors[row, column] = features_ND[here]
            yield vectors


class Counts(NamedTuple):
    """What became of a source's documents and images."""

    documents: int = 0
    skipped: int = 0
    encoded: int = 0
    kept: int = 0  # images that an earlier run had encoded

    def plus(self, **more: int) -> Counts:
        return self._replace(**{name: getattr(self, name) + count for name, count in more.items()})


class Writer:
    """Writes the vectors and records of one source into the output folder."""

    def __init__(self, name: str, output: Path, encoder: Encoder, dtype: str):
        self.name, self.output, self.encoder, self.dtype = name, output, encoder, dtype
        self.file_name = files.bare(name)

    def write(self, source: Source, progress: Progress) -> Counts:
        """Writes all of a source; the files of records appear when they are whole."""
        counts = Counts()
        records = self.output / f"{self.file_name}.jsonl"
        skipped = self.output / f"{self.file_name}.skipped.jsonl"
        with (
            published(records) as unfinished,
            published(skipped) as unfinished_skipped,
            open(unfinished, "w", encoding="utf-8") as record_file,
            open(unfinished_skipped, "w", encoding="utf-8") as skipped_file,
        ):
            documents = enumerate(source.documents())
            while chunk := list(itertools.islice(documents, CHUNK_DOCUMENTS)):
                more = self._write_chunk(chunk, record_file, skipped_file)
                counts = counts.plus(**more._asdict())
                progress.tick(more.documents + more.skipped, 0, more.skipped)
        return counts

    def _write_chunk(
        self, chunk: Sequence[tuple[int, Document | Skip]], record_file: IO[str], skipped_file: IO[str]
    ) -> Counts:
        places: dict[Path, Image | Features] = {}
        for number, document in chunk:
            for k, part in media_of(document):
                places[self._path(number, k)] = part
        bad, encoded = self._encode({path: one for path, one in places.items() if not path.exists()})
        counts = Counts(encoded=encoded, kept=len(places) - encoded - len(bad))
        for number, document in chunk:
            reason = document.reason if isinstance(document, Skip) else ""
            reason = reason or next((bad[p] for k, _ in media_of(document) if (p := self._path(number, k)) in bad), "")
            if reason or isinstance(document, Skip):
                file, record = split_origin(document.origin)
                line = {"file": file, "record": record, "reason": reason}
                skipped_file.write(json.dumps(line) + "\n")
                counts = counts.plus(skipped=1)
                continue
            record_file.write(json.dumps(self._record(number, document), ensure_ascii=False) + "\n")
            counts = counts.plus(documents=1)
        return counts

    def _encode(self, missing: Mapping[Path, Image | Features]) -> tuple[dict[Path, str], int]:
        """Writes files that are not there yet; returns why some cannot be, and how many were."""
        bad: dict[Path, str] = {}
        pictures = {path: one for path, one in missing.items() if isinstance(one, Image)}
        for path, found in zip(pictures, self.encoder(pictures.values()), strict=True):
            if isinstance(found, BadMedia):
                bad[path] = found.reason
                continue
            file = io.BytesIO()
            np.save(file, found.astype(self.dtype))
            self._save(path, file.getvalue())
        for path, one in missing.items():
            if isinstance(one, Features):  # somebody encoded it before; it goes along
                try:
                    with opened_file(one) as opened:
                        data = opened.read()
                except (BadMedia, OSError) as error:
                    bad[path] = error.reason if isinstance(error, BadMedia) else "missing"
                    continue
                self._save(path, data)
        return bad, len(missing) - len(bad)

    def _save(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with published(path) as temporary:
            temporary.write_bytes(data)

    def _path(self, number: int, k: int) -> Path:
        """Of medium ``k`` of a document."""
        return self.output / self.file_name / f"{number // FILES_A_FOLDER:04d}" / f"{number:08d}-{k}.npy"

    def _record(self, number: int, document: Document) -> dict[str, Any]:
        """A document as messages of typed parts."""
        count = itertools.count()

        def typed(part: Part) -> dict[str, Any]:
            if isinstance(part, Text):
                return {"type": "text", "text": part.text}
            if isinstance(part, Tokens):
                return {"type": "image_tokens", "ids": list(part.ids)}
            path = self._path(number, next(count)).relative_to(self.output)
            return {"type": "features", "path": path.as_posix()}

        record = {"messages": [_message(turn, [typed(part) for part in turn.parts]) for turn in document.turns]}
        return record | ({"tools": json.loads(document.tools)} if document.tools else {})


def _message(turn: Turn, content: list[dict[str, Any]]) -> dict[str, Any]:
    """A turn as it is read again, with what it weighs and what it thinks and calls."""
    message: dict[str, Any] = {"role": turn.role, "content": content}
    is_learnt = turn.role in ("document", "assistant")
    if turn.weight != 1 or (is_learnt and not turn.target):
        message["weight"] = turn.weight if turn.target else 0.0
    if turn.target and not is_learnt:
        message["train"] = True
    if turn.thinking:
        message["reasoning_content"] = turn.thinking
    if turn.calls:
        message["tool_calls"] = json.loads(turn.calls)
    return message


def media_of(document: Document | Skip) -> Iterator[tuple[int, Image | Features]]:
    """The media of a document that files are written for, numbered."""
    turns = () if isinstance(document, Skip) else document.turns
    found = [part for turn in turns for part in turn.parts if isinstance(part, Image | Features)]
    yield from enumerate(found)


def tower_digest(vision: Any, spec: Any, image: ImageSpec) -> str:
    """A hash of all that decides the vectors of a picture."""
    digest = hashlib.sha256(repr((spec, image)).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(vision):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def claim(output: Path, tower: dict[str, Any], sources: Sequence[Source]) -> None:
    """Notes in the output what made it.

    Raises:
      UserError: if it holds the vectors of another tower, or of a source in another state.
    """
    versions = {s.name: [s.entry, [[file, list(files.version(file))] for file in s.files]] for s in sources}
    noted: dict[str, Any] = {"tower": tower, "sources": {}}
    path = output / ENCODING
    if path.is_file():
        noted = json.loads(path.read_text())
    wanted = json.loads(json.dumps(versions))
    changed = [name for name in wanted if noted["sources"].get(name, wanted[name]) != wanted[name]]
    if noted["tower"] != tower or changed:
        what = f"'{changed[0]}' as it was" if changed else "what another tower or setting made"
        raise UserError(f"{output} holds {what}: delete it, or give another --output")
    noted["sources"] |= wanted
    output.mkdir(parents=True, exist_ok=True)
    with published(path) as temporary:
        temporary.write_text(json.dumps(noted, indent=1) + "\n")


def describe(output: Path, names: Sequence[str]) -> None:
    """Adds the sources to the output's dataset_info.json."""
    path = output / INFO
    info = json.loads(path.read_text()) if path.is_file() else {}
    for name in names:
        info[name] = {"file_name": f"{files.bare(name)}.jsonl", "formatting": "openai"}
    with published(path) as temporary:
        temporary.write_text(json.dumps(info, indent=1) + "\n")


def raw_sources(config: Any, recipe: Recipe) -> list[Source]:
    """The sources of a config, as they were before preparing.

    Raises:
      UserError: if the path is prepared data, whose text cannot be had back, or boxes are to be written.
    """
    names = dict.fromkeys(name for _, shares in parse_schedule(config.data.mixture) for name in shares)
    if not config.data.path:
        return [demo.training_source(seed=0)]
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
    print(
        f"train: --config.data.path={output} --config.data.mixture={','.join(names)} --config.init_from={args.workdir} "
        f"--config.optimizer.freeze=vision"
    )
    return 0


if __name__ == "__main__":
    command.run(main)
