"""What a reference model says of preferences, asked once and kept beside the prepared data.

A run whose weights are not those of the reference (all but runs of adapters alone) has it from here. A file is found by
a hash of all that its numbers depend on: the data, how media are taken, the template, the dtype, and the weights, by
their fingerprint. So numbers of another model or of other data are never found. Of media in files of their own the data
has the paths alone: their checksum is kept beside the numbers of each pair, and compared whenever the pair is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxmm.atomic import plain, read_json, write_json
from jaxmm.checkpoints.base import Base, kept
from jaxmm.corpus import read_jitter
from jaxmm.data.packing.array_file import is_whole, save_array
from jaxmm.data.packing.lengths import Lengths, Reference
from jaxmm.data.packing.limits import Budgets
from jaxmm.errors import UserError
from jaxmm.hf.init_from import run_and_step
from jaxmm.recipe import Recipe

FILE, FORMAT = "reference.json", 1  # in the workdir of a run that has one
FOLDER, KEPT = "references", 2  # in the cache, and the format of what is kept there
OTHERWISE = {  # what a reference may have been asked with, where its numbers are not found
    "weights": "other weights (config.init_from)",
    "data": "other data of this name",
    "media": "other settings of media",
    "template": "another template",
    "dtype": "another config.compute.dtype",
    "matmul": "another config.compute.matmul",
    "held": "another config.adapter.base_dtype",
}
DTYPE = np.dtype([("logps", "<f4", 2), ("checksum", "<u4")])  # of an example, as ``Reference`` has them


def fingerprint_of(base: Base, recipe: Recipe, seed: int) -> str:
    """What the weights that a run begins with are known by; of a run with adapters, with those beneath them.

    Args:
      seed: by which what the base does not have begins.

    Raises:
      UserError: where there are none.
    """
    if not base.fingerprint:
        raise UserError("config.objective compares with the model that a run begins from: set config.init_from")
    folder, step = run_and_step(base.init_from)
    beneath = kept(Path(folder)) if step else None
    known: list[Any] = [base.fingerprint, beneath.fingerprint if beneath else {}]
    if "model" not in base.fingerprint:  # connectors are new
        known += [seed, repr(dataclasses.replace(recipe.model.base.plain, matmul=""))]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def note(workdir: Path, fingerprint: str) -> None:
    """Keeps which reference a run began with; of '' nothing is there."""
    if fingerprint:
        write_json(workdir / FILE, {"format": FORMAT, "fingerprint": fingerprint})
    else:
        (workdir / FILE).unlink(missing_ok=True)


def noted(workdir: Path) -> str:
    """Which reference a run began with; '' for one that has none."""
    return str(read_json(workdir / FILE)["fingerprint"]) if (workdir / FILE).exists() else ""


def file_of(source: Lengths, fingerprint: str, recipe: Recipe) -> Path:
    """Where a reference's numbers of a source are kept: DTYPE (examples,)."""
    known = _asked_with(source, fingerprint, recipe)
    if not known["matmul"]:  # what is kept without has the name that it always had
        del known["matmul"]
    key = [KEPT, *known.values()]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    return recipe.cache / FOLDER / f"{name}.npy"


def _asked_with(source: Lengths, fingerprint: str, recipe: Recipe) -> dict[str, Any]:
    """All that a reference's numbers of a source depend on, by the names of ``OTHERWISE``."""
    meta = source.prepared.meta
    return {
        "weights": fingerprint,
        "data": meta["fingerprint"],
        "media": source.spec.key(meta.get("media", ())),
        "template": meta["template"],
        "dtype": recipe.compute.dtype,
        "held": str(recipe.model.frozen),  # as the weights are asked, in few bits or not
        "matmul": recipe.model.matmul,
    }


def said(source: Lengths, fingerprint: str, recipe: Recipe) -> Reference:
    """What is kept of a source's pairs; NaN where the reference was not asked."""
    file = file_of(source, fingerprint, recipe)
    if not is_whole(file):
        return Reference(np.full((len(source), 2), np.nan, np.float32), np.zeros(len(source), np.uint32))
    arrays = np.load(file)
    return Reference(arrays["logps"].copy(), arrays["checksum"].copy())


def save(source: Lengths, fingerprint: str, recipe: Recipe, known: Reference) -> Path:
    file = file_of(source, fingerprint, recipe)
    file.parent.mkdir(parents=True, exist_ok=True)
    saved = np.zeros(len(source), DTYPE)
    saved["logps"], saved["checksum"] = known
    save_array(file, saved)
    write_json(file.with_suffix(".json"), {"source": source.name} | _asked_with(source, fingerprint, recipe))
    return file


def _kept_otherwise(source: Lengths, fingerprint: str, recipe: Recipe) -> str:
    """What is kept of a source of this name, in words: with what else the reference was asked; '' if nothing is.

    Of several, the one with the fewest differences is named.
    """
    own = plain(_asked_with(source, fingerprint, recipe))
    kept_of_it = [read_json(file) for file in sorted((recipe.cache / FOLDER).glob("*.json"))]
    differences = [
        [OTHERWISE[what] for what, value in own.items() if kept_one.get(what, "") != value]
        for kept_one in kept_of_it if kept_one.get("source") == source.name
    ]  # fmt: skip
    fewest = min(filter(None, differences), key=len, default=[])
    return f" (what is kept was asked with {' and '.join(fewest)})" if fewest else ""


def check_pictures(config: ConfigDict, sources: Sequence[Lengths]) -> None:
    """Raises UserError where a run would see other pixels than the reference, which sees pictures as they are."""
    jitter = read_jitter(config)
    for source in sources:
        media = source.media_counts()
        keys = {"config.data.jitter": f"{jitter:g}"} if jitter and {"image", "video"} & media.keys() else {}
        keys |= {"config.data.fast_decode": "True"} if config.data.fast_decode and "image" in media else {}
        if keys:
            raise UserError(
                f"{' and '.join(f'{key}={value}' for key, value in keys.items())}: the run would see the pictures of "
                f"{source.name} otherwise than the reference, which is asked once about them as they are: leave "
                f"{' and '.join(keys)} out, or train adapters alone (config.adapter.rank), whose steps ask it"
            )


def attach(sources: Sequence[Lengths], fingerprint: str, recipe: Recipe, budgets: Budgets, trains: bool = True) -> None:
    """Gives the sources what the reference says of their pairs.

    Args:
      trains: whether a run is to learn from them, and not only to be evaluated on them.

    Raises:
      UserError: if it was not asked about all pairs that fit a row.
    """
    for source in sources:
        file = file_of(source, fingerprint, recipe)
        lacking, why = len(source), ""
        if is_whole(file):
            arrays = np.load(file, mmap_mode="r")
            source.reference = Reference(arrays["logps"], arrays["checksum"])
            fits = ~source.is_long(source.all_needs, budgets)
            lacking = int((np.isnan(arrays["logps"]).any(1) & fits).sum())
            why = " (they were longer than a row then)"
        if lacking:
            why = why or _kept_otherwise(source, fingerprint, recipe)
            raise UserError(
                f"{source.name}: the reference was not asked about {lacking} of {len(source)} {noun_of(source)}{why}: "
                f"{'; or '.join(_ways_out(recipe, trains))}"
            )


def noun_of(source: Lengths) -> str:
    """What a source's preferences are called where their number is told."""
    return "judged answers" if source.preferences == "judged" else "pairs"


def _ways_out(recipe: Recipe, trains: bool) -> list[str]:
    """What to do where the reference was not asked."""
    assert recipe.preference is not None
    if not trains:
        return ["ask it by `jaxmm reference` with the config of the run and the keys given here"]
    ways = ["ask it by `jaxmm reference` with the same config"]
    if not recipe.trainable.adapters:
        ways.append("train adapters alone (config.adapter.rank), beneath which it is")
    elif recipe.preference.asked and not recipe.trainable.whole:
        ways.append("leave config.preference.reference=asked out: each step then asks the model beneath the adapters")
    if not recipe.preference.judges:
        ways.append("take config.objective=simpo or orpo, which have none")
    return ways
