"""Adapters as PEFT keeps them: a folder of ``adapter_config.json`` and ``adapter_model.safetensors``, in and out.

PEFT names a factor after the module of the family's class that it adapts:
``base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight``. Its A is (rank, inputs), ours
(*inputs, rank); its B is (outputs, rank), ours (rank, *outputs). Where a family has queries, keys and values in one
module, ours have an adapter each: written, they are one of three times the rank, whose B is zero off the diagonal;
read, the three begin with the same A.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmm.hf import tensor_files
from jaxmm.hf.families.family import Layout
from jaxmm.hf.map_names import named_maps
from jaxmm.models.adapters import FIRST, LORA, AdapterSpec, Map
from jaxmm.models.tree import ParamPath

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

Params = Mapping[ParamPath, Any]


class Matrices(NamedTuple):
    """The adapter of one module: A (rank, inputs), B (outputs, rank), and of DoRA the lengths (outputs,)."""

    a: np.ndarray
    b: np.ndarray
    magnitude: np.ndarray | None = None


class Module(NamedTuple):
    """An adapted module of a family's class. ``pattern`` has ``{i}`` for the number of its layer."""

    name: str
    pattern: str
    matrices: Matrices


def modules(layout: Layout, spec: AdapterSpec, maps: Sequence[Map], params: Params) -> Iterator[Module]:
    """The adapted modules. All have the scale that the adapters have at large, whatever that of a map: B makes up.

    Args:
      maps: that have an adapter.
      params: their factors and kernels, and the kernels of maps that are in one module with them.
    """
    by_path, general = {one.path: one for one in maps}, spec.scale()
    for named in named_maps(layout):
        if not any(path in by_path for path in named.paths):
            continue
        layers = np.shape(params[(*named.paths[0], "kernel")])[0] if "{i}" in named.name else 1
        for i in range(layers):
            layer = i if "{i}" in named.name else None
            parts = [_of_map(path, by_path, params, layer, general) for path in named.paths]
            yield Module(named.name.replace("{i}", str(i)), named.name, _in_one(parts, spec.kind == "dora"))


def _of_map(
    path: ParamPath, maps: Mapping[ParamPath, Map], params: Params, layer: int | None, general: float
) -> Matrices:
    """The adapter of one map of ours, of rank 0 where it has none."""

    def of(*name: str) -> np.ndarray:
        value = params[(*path, *name)]
        return np.asarray(value if layer is None else value[layer], np.float32)

    kernel, one = of("kernel"), maps.get(path)
    if one is None:
        other = next(maps[p] for p in maps if p[:-1] == path[:-1])  # of the same module: it takes in the same
        flat = kernel.reshape(math.prod(kernel.shape[: len(other.inputs)]), -1)
        none = np.zeros((0, len(flat)), np.float32), np.zeros((flat.shape[1], 0), np.float32)
        return Matrices(*none, np.linalg.norm(flat, axis=0))
    count = math.prod(kernel.shape[: len(one.inputs)])
    into, out = of(LORA, "into").reshape(count, -1), of(LORA, "out").reshape(one.rank, -1)
    if (*path, LORA, FIRST[0]) in params:
        first_into, first_out = (of(LORA, name) for name in FIRST)
        into = np.concatenate([into, first_into.reshape(count, -1)], 1)
        out = np.concatenate([out, -first_out.reshape(one.rank, -1)], 0)
    has_lengths = (*path, LORA, "magnitude") in params
    lengths = of(LORA, "magnitude").reshape(-1) if has_lengths else None
    return Matrices(into.T, out.T * (one.scale / general), lengths)


def _in_one(parts: Sequence[Matrices], has_lengths: bool) -> Matrices:
    """The adapters of maps that are one module, as one: B is zero off the diagonal of its blocks."""
    ranks, outputs = [len(part.a) for part in parts], [len(part.b) for part in parts]
    b = np.zeros((sum(outputs), sum(ranks)), np.float32)
    for n, part in enumerate(parts):
        row, column = sum(outputs[:n]), sum(ranks[:n])
        b[row : row + outputs[n], column : column + ranks[n]] = part.b
    lengths = np.concatenate([part.magnitude for part in parts if part.magnitude is not None]) if has_lengths else None
    return Matrices(np.concatenate([part.a for part in parts]), b, lengths)


def write(
    folder: Path, layout: Layout, spec: AdapterSpec, maps: Sequence[Map], params: Params, *, base: str, dtype: Any,
    whole: Mapping[str, np.ndarray] = {}, dropout: float = 0.0,
) -> int:  # fmt: skip
    """Writes the folder, which PEFT loads over the model that ``base`` names.

    Args:
      whole: tensors of modules that were trained whole, by their names in the family's class.

    Returns:
      The bytes of all tensors.
    """
    found = list(modules(layout, spec, maps, params))
    tensors: dict[str, np.ndarray] = {}
    for module in found:
        a, b, magnitude = module.matrices
        tensors[f"{PREFIX}{module.name}.lora_A.weight"] = a
        tensors[f"{PREFIX}{module.name}.lora_B.weight"] = b
        if magnitude is not None:
            tensors[f"{PREFIX}{module.name}.lora_magnitude_vector"] = magnitude
    tensors |= {f"{PREFIX}{name}": value for name, value in whole.items()}
    tensors = {name: np.ascontiguousarray(value.astype(dtype)) for name, value in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    tensor_files.write_file(folder / WEIGHTS, tensors)
    (folder / CONFIG).write_text(json.dumps(config_of(layout, spec, found, base, sorted(whole), dropout), indent=2))
    return sum(value.nbytes for value in tensors.values())


def config_of(
    layout: Layout, spec: AdapterSpec, found: Sequence[Module], base: str, whole: Sequence[str], dropout: float
) -> dict[str, Any]:
    """The content of ``adapter_config.json``."""
    ranks = {_regex(module.pattern): len(module.matrices.a) for module in found}
    others = {pattern: rank for pattern, rank in ranks.items() if rank != spec.rank}
    by_root = spec.kind == "rslora" and not others
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": spec.rank,
        "lora_alpha": _plain(spec.alpha if by_root else spec.scale() * spec.rank),
        "lora_dropout": dropout,
        "use_rslora": by_root,
        "use_dora": spec.kind == "dora",
        "target_modules": targets(layout, found),
        "rank_pattern": others,
        "alpha_pattern": {pattern: _plain(spec.scale() * rank) for pattern, rank in others.items()},
        "modules_to_save": sorted({name.rpartition(".")[0] for name in whole}) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }


def targets(layout: Layout, found: Sequence[Module]) -> list[str]:
    """What PEFT takes to find just these modules: last names where no other module has them, else whole ones.

    Towers may have layers that our model does not use: their modules are named whole.
    """
    adapted, known = {module.pattern for module in found}, named_maps(layout)
    listed: list[str] = []
    for module in found:
        last = module.pattern.rpartition(".")[2]
        alike = {one.name for one in known if one.name.rpartition(".")[2] == last}
        is_own = alike <= adapted and all(one.paths[0][0] == "decoder" for one in known if one.name in alike)
        listed.append(last if is_own else module.name)
    return list(dict.fromkeys(listed))


def _regex(pattern: str) -> str:
    return re.escape(pattern).replace(r"\{i\}", r"\d+")


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number
