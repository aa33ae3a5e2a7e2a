"""What an output folder says of itself: the towers and the sources that made it, and how to train on it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmm.atomic import published
from jaxmm.clip_spec import AudioSpec
from jaxmm.data import encoding_file, files
from jaxmm.data.documents import Source
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec
from jaxmm.json_text import parse_json
from jaxmm.recipe import Recipe

INFO = "dataset_info.json"


def tower_digest(tower: Any, spec: Any, taken: ImageSpec | AudioSpec | None) -> str:
    """A hash of all that decides the vectors of a picture, or of a recording."""
    digest = hashlib.sha256(repr((spec, taken)).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(tower):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def towers(recipe: Recipe, params: Any, spec: ImageSpec) -> dict[str, Any]:
    """What decides the vectors of all media that a run's towers encode; ``spec``: how these are taken.

    The template is among it where videos are taken: the text beside a video decides how many frames it keeps. What else
    decides the text, as how records are read, is in each source's ``entry``.
    """
    model = recipe.model
    settled: dict[str, Any] = {"computed": recipe.compute.dtype}
    if model.vision is not None:
        settled["digest"] = tower_digest(params["vision"], model.vision, recipe.image)
    if model.audio is not None:
        settled["audio_digest"] = tower_digest(params["audio"], model.audio, spec.audio)
    if spec.video is not None:
        settled["template"] = recipe.template.fingerprint
        settled["video"] = spec.video.key()
    return settled | ({"audio": dataclasses.asdict(spec.audio)} if spec.audio is not None else {})


def claim(output: Path, tower: dict[str, Any], sources: Sequence[Source]) -> None:
    """Notes in the output what made it.

    Raises:
      UserError: if it holds the vectors of another tower, or of a source in another state, or another program's notes.
    """
    versions = {s.name: [s.entry, [[file, list(files.version(file))] for file in s.files]] for s in sources}
    path = output / encoding_file.NAME
    noted = encoding_file.read(str(output)) if path.is_file() else {"tower": tower, "sources": {}}
    if noted is None:
        raise UserError(f"{path} is not what this command writes: delete it, or give another --output")
    wanted = json.loads(json.dumps(versions))
    changed = [name for name in wanted if noted["sources"].get(name, wanted[name]) != wanted[name]]
    tower = json.loads(json.dumps(tower))
    was = noted["tower"]
    if changed or any(was.get(key, value) != value for key, value in tower.items()):
        what = f"'{changed[0]}' as it was" if changed else "what another tower or setting made"
        raise UserError(f"{output} holds {what}: delete it, or give another --output")
    noted["tower"] = was | tower  # what older versions wrote says nothing of clips, or of their text
    noted["sources"] |= wanted
    output.mkdir(parents=True, exist_ok=True)
    with published(path) as temporary:
        temporary.write_text(json.dumps(noted, indent=1) + "\n")


def describe(output: Path, names: Sequence[str]) -> None:
    """Adds the sources to the output's dataset_info.json."""
    path = output / INFO
    info = parse_json(path.read_text()) if path.is_file() else {}
    for name in names:
        info[name] = {"file_name": f"{files.bare(name)}.jsonl", "formatting": "openai"}
    with published(path) as temporary:
        temporary.write_text(json.dumps(info, indent=1) + "\n")
