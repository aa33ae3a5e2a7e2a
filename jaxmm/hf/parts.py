"""A model's parts, each by itself: for models that ``transformers`` has no class for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmm.hf import folder as hf
from jaxmm.hf import weights
from jaxmm.hf.families.family import Layout
from jaxmm.hf.names import Path as ParamPath
from jaxmm.hf.names import common_name, foreign_name
from jaxmm.hf.tensor_files import write_file
from jaxmm.image_spec import ImageSpec
from jaxmm.models.multimodal import ModelSpec

SPECS = "parts.json"
# What stands before the names of a tower's tensors, or a decoder's, in a folder of its own.
ALONE = {"vision": "vision_model.", "audio": "", "text": "model.", "lm_head": "lm_head."}


def write_parts(
    folder: Path, params: Mapping[ParamPath, Any], model: ModelSpec, image: ImageSpec, dtype: Any,
    parts: Sequence[str] = (),
) -> int:  # fmt: skip
    """Writes a safetensors file for each part, its tensors named by their paths, and the specs in ``parts.json``.

    Args:
      parts: those that are written, all by default; the specs are of all.

    Returns:
      The number of bytes of all tensors.
    """
    total = 0
    for part in parts or model.parts:
        tensors = {
            ".".join(path): np.ascontiguousarray(np.asarray(value).astype(dtype))
            for path, value in params.items()
            if path[0] == part
        }
        write_file(folder / f"{part}.safetensors", tensors)
        total += sum(value.nbytes for value in tensors.values())
    specs = {"model": dataclasses.asdict(model), "media": dataclasses.asdict(image)}
    (folder / SPECS).write_text(json.dumps(specs, indent=2))
    return total


def write_folders(
    folder: Path, params: Mapping[ParamPath, Any], layout: Layout, configs: Mapping[str, dict[str, Any]], dtype: Any,
    spare: Path,
) -> int:  # fmt: skip
    """Writes a folder for each of some parts, which ``transformers`` loads and ``config.init_from`` takes.

    Args:
      configs: the ``config.json`` of each.
      spare: as of ``folder.outgoing``, of the vision tower.

    Returns:
      The number of bytes of all tensors.
    """
    total = 0
    for part, config in configs.items():
        (folder / part).mkdir()
        own = {path: value for path, value in params.items() if path[0] == part}
        tensors = hf.outgoing(layout, own, dtype, spare if part == "vision" else None)
        alone = (one._replace(name=foreign_name(common_name(one.name), ALONE)) for one in tensors)
        total += weights.write(folder / part, alone)
        (folder / part / hf.CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, default=str))
    return total
