"""What an output folder says of itself: the tower and the sources that made it, and how to train on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmm.atomic import published
from jaxmm.batch import ImageSpec
from jaxmm.data import files
from jaxmm.data.documents import Source
from jaxmm.errors import UserError
from jaxmm.json_text import parse_json

INFO, ENCODING = "dataset_info.json", "encoding.json"


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
        noted = parse_json(path.read_text())
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
    info = parse_json(path.read_text()) if path.is_file() else {}
    for name in names:
        info[name] = {"file_name": f"{files.bare(name)}.jsonl", "formatting": "openai"}
    with published(path) as temporary:
        temporary.write_text(json.dumps(info, indent=1) + "\n")
