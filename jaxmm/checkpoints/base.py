"""The model beneath a run's adapters: where its weights lie, and whether they are still those that it began with.

Checkpoints of such a run hold what learns. What does not is read again from where the run began, which is noted in
``base.json`` in its workdir:

    {"format": 2, "asked": "models/Qwen2.5-VL", "init_from": "/home/me/models/Qwen2.5-VL",
     "fingerprint": {"model": "5f1c..."}}

A fingerprint is of the names, shapes and sizes of all tensors and of samples of the bytes of each: other weights differ
in it, also where few layers do, and seven billion of them are not read for it.
"""

from __future__ import annotations

import collections
import hashlib
from pathlib import Path
from typing import NamedTuple

from jaxmm.atomic import read_json, write_json
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.checkpoints.checksums import RECORD
from jaxmm.checkpoints.chosen import chosen_step
from jaxmm.errors import UserError
from jaxmm.hf import folder as hf
from jaxmm.hf import tensor_files
from jaxmm.hf.init_from import parse, run_and_step
from jaxmm.models.adapters import is_factor
from jaxmm.models.trainable import Trainable
from jaxmm.models.tree import ParamPath, Params, only
from jaxmm.workdir.spool import name_of

FILE, FORMAT = "base.json", 2
OF_FILES = 1  # the format before: its fingerprints have samples of each file alone
SAMPLES, BLOCK = 16, 1 << 16  # of a file: pieces, and bytes of each; of a tensor its first bytes


class Base(NamedTuple):
    """Where the weights of a model lie.

    Attributes:
      asked: ``config.init_from``, as it was given.
      init_from: the same with whole paths, and with the step of a run's checkpoint.
      fingerprint: by folder, in the words of ``init_from.parse``.
      format: of the fingerprint.
    """

    asked: str
    init_from: str
    fingerprint: dict[str, str]
    format: int = FORMAT

    @classmethod
    def find(cls, asked: str, format: int = FORMAT) -> Base:
        """Raises UserError where there is nothing to begin with."""
        named, step = run_and_step(asked)
        folders = {part: folder.resolve() for part, folder in parse(named).items()}
        run = folders.get("model")
        if run is not None and not hf.is_folder(run):
            number = _checkpoint(run, step)
            return cls(asked, f"{run}@{number}", {"model": _of_checkpoint(run, number)}, format)
        init_from = str(run) if run else ",".join(f"{part}:{folder}" for part, folder in folders.items())
        return cls(asked, init_from, {part: _of_folder(folder, format) for part, folder in folders.items()}, format)

    def has(self, path: ParamPath) -> bool:
        """Whether it has a parameter of a model: of towers and a decoder, connectors are new."""
        return not is_factor(path) and ("model" in self.fingerprint or path[0] in self.fingerprint)


def folders_fingerprint(init_from: str) -> dict[str, str]:
    """Of the models' folders that weights begin with, by part, from samples of each file; of a run's checkpoint none.

    Cheaper than that of ``find``, and enough for what several machines have under one name.
    """
    folders = parse(run_and_step(init_from)[0])
    return {part: _of_folder(folder, OF_FILES) for part, folder in folders.items() if hf.is_folder(folder)}


def keep(workdir: Path, base: Base | None) -> None:
    """Notes the model beneath a run; of one that has none nothing is there."""
    if base:
        write_json(workdir / FILE, base._asdict())
    else:
        (workdir / FILE).unlink(missing_ok=True)


def kept(workdir: Path) -> Base | None:
    """What a run notes; None for a run whose checkpoints hold everything."""
    if not (workdir / FILE).exists():
        return None
    noted = read_json(workdir / FILE)
    if noted.get("format") not in (OF_FILES, FORMAT):
        raise UserError(f"{workdir / FILE} is damaged, or of a newer version of jaxmm: it says where the weights lie")
    return Base(str(noted["asked"]), str(noted["init_from"]), dict(noted["fingerprint"]), int(noted["format"]))


def found_again(noted: Base, asked: str, workdir: Path) -> Base:
    """The weights that a run began with, from where they lie now.

    Args:
      asked: ``config.init_from`` of today; the one that the run began with means the place that was noted then.

    Raises:
      UserError: if they are not there, or are others.
    """
    run, where = name_of(workdir), noted.init_from if asked in ("", noted.asked) else asked
    try:
        base = Base.find(where, noted.format)
    except UserError as error:
        raise UserError(
            f"{run} holds adapters alone, and the model beneath them is not in {where} any more ({error}): put it "
            f"back, or say where it is by --config.init_from of a command with --workdir={run} (to begin with that "
            f"run, export it so by --merge)"
        ) from error
    if base.fingerprint != noted.fingerprint:
        raise UserError(
            f"{run} holds adapters of another model than that in {where}: its weights are not those that the run "
            f"began with; say where those are by --config.init_from"
        )
    return base._replace(asked=noted.asked if asked in ("", noted.asked) else asked)


def held(params: Params, trainable: Trainable, base: Base) -> Params:
    """The parameters that a checkpoint holds: what learns, all of the adapters, and what the base has not."""
    return only(params, lambda path: trainable.learns(path) or not base.has(path))


def beneath(params: Params, trainable: Trainable, base: Base) -> Params:
    """The parameters that are read from the base."""
    return only(params, lambda path: base.has(path) and not trainable.learns(path))


def _checkpoint(run: Path, step: str) -> int:
    """The step of the checkpoint that is meant."""
    chosen = chosen_step(run, step)
    if chosen is None:
        with Checkpoints(run / "checkpoints") as checkpoints:
            chosen = checkpoints.latest()
    if chosen is None:
        raise UserError(f"{run} holds neither checkpoints nor a Hugging Face model")
    return chosen


def _of_checkpoint(run: Path, step: int) -> str:
    record = run / "checkpoints" / str(step) / RECORD
    try:
        return hashlib.sha256(record.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"{record.parent} has no checksums ({error.strerror}), by which a run with adapters tells it from others"
        ) from error


def _of_folder(folder: Path, format: int) -> str:
    """Of its safetensors: each name, header and size, and samples of the bytes of the file and of each tensor."""
    digest, tensors = hashlib.sha256(), collections.defaultdict[str, list[int]](list)
    for entry in tensor_files.Checkpoint(folder).entries.values() if format != OF_FILES else ():
        tensors[entry.file].append(entry.offset)
    for name in tensor_files.tensor_file_names(folder):
        with (folder / name).open("rb") as file:
            header = 8 + int.from_bytes(file.read(8), "little")
            size = file.seek(0, 2)
            digest.update(f"{name} {size}".encode())
            file.seek(0)
            digest.update(file.read(min(header, size)))
            places = [header + (size - header) * n // SAMPLES for n in range(SAMPLES)]
            for place in (*places, max(header, size - BLOCK), *sorted(tensors[name])):
                file.seek(place)
                digest.update(file.read(BLOCK))
    return digest.hexdigest()
