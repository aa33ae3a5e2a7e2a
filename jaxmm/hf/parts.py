"""A model's parts as files of their own, by our names: for models that ``transformers`` has no class for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmm.batch import ImageSpec
from jaxmm.hf.names import Path as ParamPath
from jaxmm.hf.tensor_files import write_file
from jaxmm.models.multimodal import ModelSpec

SPECS = "parts.json"


def write_parts(folder: Path, params: Mapping[ParamPath, Any], model: ModelSpec, image: ImageSpec, dtype: Any) -> int:
    """Writes a safetensors file for each part, its tensors named by their paths, and the specs in ``parts.json``.

    Returns:
      The number of bytes of all tensors.
    """
    total = 0
    for part in model.parts:
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
