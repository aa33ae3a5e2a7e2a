"""Writes adapters as a PEFT folder, which PEFT loads onto the model beneath them, and other programs serve beside it.

PEFT finds a module by its name in the class of ``transformers``, and says nothing of names that it does not find: the
names are those of ``Layout.modules``. What one Linear there is several of ours (queries, keys and values in one, gates
and maps up of experts) gets one adapter: the first factors above each other, the second ones as blocks of a diagonal.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmm.errors import UserError
from jaxmm.hf import names, peft_experts, peft_tables, tensor_files, weights
from jaxmm.hf.families.family import Layout
from jaxmm.hf.map_names import WEIGHT, NamedMap, named_maps
from jaxmm.models.adapters import FIRST, LORA, Map
from jaxmm.models.lora import alpha_of, scale_of, with_first
from jaxmm.models.multimodal import ModelSpec, flat_axes, kernel_dims, model_maps
from jaxmm.models.tables import TABLES
from jaxmm.models.tree import ParamPath

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
INTO, OUT, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
MERGE = "merge them into a whole model by --merge"


class Factors(NamedTuple):
    """An adapter of one Linear as PEFT has it: (rank, inputs), (outputs, rank), and of DoRA (outputs,)."""

    into: np.ndarray
    out: np.ndarray
    magnitude: np.ndarray | None = None


class Peft(NamedTuple):
    """What a PEFT folder holds: ``adapter_config.json``, and the tensors by their names.

    Attributes:
      paths: of our maps and tables that are adapted.
    """

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    paths: tuple[ParamPath, ...] = ()

    def told(self) -> str:
        """Kind, rank and alpha as they are written; of maps with different ones the least and the largest."""
        kind = "dora" if self.config["use_dora"] else "rslora" if self.config["use_rslora"] else "lora"
        ranks = {self.config["r"], *self.config["rank_pattern"].values()}
        alphas = {self.config["lora_alpha"], *self.config["alpha_pattern"].values()}
        alpha = f"alpha {min(alphas):g}" + f" to {max(alphas):g}" * (len(alphas) > 1)
        if len(ranks) == 1:
            return f"{kind}, rank {max(ranks)}, {alpha}"
        return f"{kind}, ranks {min(ranks)} to {max(ranks)}, {alpha}"

    def largest_rank(self) -> int:
        """What vLLM must make room for, by its ``--max-lora-rank``."""
        return max(self.config["r"], *self.config["rank_pattern"].values(), 0)

    def left_out(self) -> list[str]:
        """What vLLM leaves out with no more than a line in its log, unless its class and its flags provide for it."""
        parts = dict.fromkeys(path[0] for path in self.paths if path[0] != "decoder")
        left = [f"adapters of {' and '.join(parts)}, without --enable-tower-connector-lora"] if parts else []
        if any(path in TABLES for path in self.paths):
            left.append("adapters of embed_tokens and lm_head, where its class has no embedding_modules")
        if self.config["target_parameters"]:
            left.append("adapters of experts, where its class has no is_3d_moe_weight")
        return left

    def not_served(self) -> list[str]:
        """What PEFT follows and vLLM does not: it has one scale for all, and no DoRA and no modules beside adapters."""
        rank, alpha = self.config["rank_pattern"], self.config["alpha_pattern"]
        kind = "rslora" if self.config["use_rslora"] else "lora"
        scales = {
            scale_of(kind, rank.get(name, self.config["r"]), alpha.get(name, self.config["lora_alpha"]))
            for name in (*rank, *alpha)
        } | {scale_of(kind, self.config["r"], self.config["lora_alpha"])}
        is_in = {
            "DoRA": self.config["use_dora"],
            "modules_to_save": bool(self.config["modules_to_save"]),
            "maps of different scale": max(scales) > min(scales) * (1 + 1e-9),
        }
        return [name for name, is_there in is_in.items() if is_there]

    def write(self, folder: Path, dtype: Any) -> int:
        """Writes both. Returns the number of bytes of all tensors."""
        whole = {name: np.ascontiguousarray(value.astype(dtype)) for name, value in self.tensors.items()}
        tensor_files.write_file(folder / TENSORS, whole)
        (folder / CONFIG).write_text(json.dumps(self.config, indent=2, sort_keys=True))
        return sum(value.nbytes for value in whole.values())


def peft_of(
    layout: Layout, model: ModelSpec, params: Mapping[ParamPath, Any], whole: Collection[ParamPath], *, base: Path,
    dropout: float = 0.0,
) -> Peft:  # fmt: skip
    """The adapters of a model.

    Args:
      layout: of the model beneath.
      model: with its adapters.
      params: the factors, and the parameters of ``whole``, by path.
      whole: paths of the parameters that are trained whole beside the adapters.
      base: folder of the model beneath.
      dropout: that the adapters were trained with.

    Raises:
      UserError: for what PEFT cannot hold.
    """
    spec = model.adapter
    if spec is None:
        raise ValueError("the model has no adapters")
    adapted = {one.path: one for one in model_maps(model)}
    adapted_maps = [one for one in named_maps(layout) if any(path in adapted for path in one.paths)]
    if lost := sorted(set(adapted) - {path for one in adapted_maps for path in one.paths}):
        raise UserError(
            f"the adapter of {'.'.join(lost[0])} has no place in a PEFT folder, as it is no Linear in the class of "
            f"transformers: {MERGE}"
        )
    if taken := [
        one for one in adapted_maps if not one.experts and one.name.split(".")[-1] in layout.taken_for_experts
    ]:
        raise UserError(
            f"the adapter of {'.'.join(taken[0].paths[0])} has no place in a PEFT folder, as PEFT takes each "
            f"{taken[0].name.split('.')[-1]} of this class for its experts': {MERGE}"
        )
    tensors: dict[str, np.ndarray] = {}
    sizes: dict[str, tuple[int, float]] = {}  # by module, with {i}: rank and alpha
    targets: list[str] = []
    of_experts: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {}  # by module: parameters, and their factors
    for one in adapted_maps:
        maps = [adapted.get(path) for path in one.paths]
        scale = next(m.scale for m in maps if m)
        for at, name in _layers(one, params, maps):
            factors = _whole_of(one, maps, params, at, scale, base)
            if not (factors.into.any() or factors.out.any()) and factors.magnitude is None:
                continue  # a layer of a stack that has no adapter
            into, out = factors.into, factors.out
            own_rank = len(into) // (one.experts or 1)
            sizes[one.name] = own_rank, alpha_of(spec.kind, own_rank, scale)
            if one.experts:
                of_experts.setdefault(name.rpartition(".")[0], []).append((name, into, out))
                continue
            targets.append(name)
            if one.common == peft_tables.HEAD:
                into, out = peft_tables.turned(into, out)
            is_embedding = one.common == peft_tables.EMBEDDING
            own = (peft_tables.INTO, peft_tables.OUT) if is_embedding else (INTO, OUT)
            tensors |= {f"{PREFIX}{name}.{kind}": factor for kind, factor in zip(own, (into, out), strict=True)}
            if factors.magnitude is not None:
                tensors[f"{PREFIX}{name}.{MAGNITUDE}"] = factors.magnitude
    for module, parameters in of_experts.items():
        for wrapper, (_, into, out) in zip(peft_experts.wrappers(module, len(parameters)), parameters, strict=True):
            tensors |= {f"{PREFIX}{wrapper}.{INTO}": into, f"{PREFIX}{wrapper}.{OUT}": out}
    modules, saved = _whole(layout, model, params, whole, {one.name for one in adapted_maps})
    (rank, alpha), _ = Counter(sizes.values()).most_common(1)[0]
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "inference_mode": True,
        "r": rank, "lora_alpha": _number(alpha), "lora_dropout": dropout, "use_rslora": spec.kind == "rslora",
        "use_dora": spec.kind == "dora", "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True,
        "target_modules": targets, "modules_to_save": modules or None,
        "target_parameters": [name for parameters in of_experts.values() for name, *_ in parameters] or None,
        "rank_pattern": {_pattern(name): r for name, (r, _) in sizes.items() if r != rank},
        "alpha_pattern": {_pattern(name): _number(a) for name, (_, a) in sizes.items() if a != alpha},
    }  # fmt: skip
    if _is_tied(model, whole) or (model.decoder.tie_embeddings and TABLES[0] in adapted):
        config["ensure_weight_tying"] = True
    whole_tensors = {f"{PREFIX}{name}": value for name, value in saved.items()}
    return Peft(config, tensors | whole_tensors, tuple(adapted))


def _number(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def _pattern(name: str) -> str:
    """A regular expression that means the modules of this name alone, those of all layers."""
    return "^" + re.escape(name).replace(re.escape("{i}"), r"\d+")


def _layers(
    one: NamedMap, params: Mapping[ParamPath, Any], maps: Sequence[Map | None]
) -> Iterator[tuple[tuple[int, ...], str]]:
    """The places of a map's layers, with the names of their modules; of a map that is no stack one, which is ()."""
    if "{i}" not in one.name:
        yield (), one.name
        return
    path = next(m.path for m in maps if m)
    for layer in range(params[(*path, LORA, "into")].shape[0]):
        yield (layer,), one.name.replace("{i}", str(one.number(layer)))


def _whole_of(
    one: NamedMap, maps: Sequence[Map | None], params: Mapping[ParamPath, Any], at: tuple[int, ...], scale: float,
    base: Path,
) -> Factors:  # fmt: skip
    """The adapter of one module or of one parameter of experts, of which DoRA has none; ``at``: its layer, if any."""
    if not one.experts:
        return _fused(one, maps, params, at, scale, base)
    each = [_fused(one, maps, params, (*at, expert), scale, base) for expert in range(one.experts)]
    return Factors(*peft_experts.joined([(factors.into, factors.out) for factors in each]))


def _fused(
    one: NamedMap, maps: Sequence[Map | None], params: Mapping[ParamPath, Any], at: tuple[int, ...], scale: float,
    base: Path,
) -> Factors:  # fmt: skip
    """The adapter of one Linear, whose parts may have one each, or none."""
    parts = [_of_map(m, params, at, scale) if m else None for m in maps]
    if len(parts) == 1 and parts[0] is not None:
        return parts[0]
    rank = sum(len(part.into) for part in parts if part is not None)
    outs = [np.zeros((outputs, rank), np.float32) for outputs in one.outputs]
    has_lengths = any(part is not None and part.magnitude is not None for part in parts)
    is_whole = all(part is not None for part in parts)
    lengths: list[Any] = [None] * len(parts) if is_whole or not has_lengths else one.split(_lengths(one, at, base))
    column = 0
    for number, part in enumerate(parts):
        if part is not None:
            outs[number][:, column : column + len(part.into)] = part.out
            lengths[number] = part.magnitude
            column += len(part.into)
    into = np.concatenate([part.into for part in parts if part is not None])
    return Factors(into, one.joined(outs), one.joined(lengths) if has_lengths else None)


def _of_map(one: Map, params: Mapping[ParamPath, Any], at: tuple[int, ...], scale: float) -> Factors:
    """The adapter of a map of ours, whose update is multiplied by ``scale``; ``at``: its layer and expert, if any."""
    names_of = ("into", "out", *FIRST, "magnitude")
    ours = {name: params[path] for name in names_of if (path := (*one.lora, name)) in params}
    ours = {name: np.asarray(x, np.float32)[at] for name, x in ours.items()}
    into, out = ours["into"], ours["out"]
    if FIRST[0] in ours:
        into, out = map(np.asarray, with_first(into, out, *(ours[name] for name in FIRST)))
    rank = into.shape[-1]
    out = out.reshape(rank, -1).T
    if one.scale != scale:
        out = out * np.float32(one.scale / scale)
    return Factors(into.reshape(-1, rank).T, out, ours["magnitude"].reshape(-1) if "magnitude" in ours else None)


def _lengths(one: NamedMap, at: tuple[int, ...], base: Path) -> np.ndarray:
    """Lengths of the outputs' columns of the model beneath: what DoRA has where it changes nothing."""
    checkpoint, by_common = _base(base)
    common = one.common.replace("{i}", str(one.number(at[0]))) if at else one.common
    name = by_common[common + WEIGHT]
    return np.linalg.norm(np.asarray(checkpoint.mapped(name), np.float32), axis=1)


@functools.lru_cache(1)
def _base(folder: Path) -> tuple[tensor_files.Checkpoint, dict[str, str]]:
    """The tensors of the model beneath, and their names by the common spelling."""
    checkpoint = tensor_files.Checkpoint(folder)
    return checkpoint, {names.common_name(name): name for name in checkpoint.entries}


def _whole(
    layout: Layout, model: ModelSpec, params: Mapping[ParamPath, Any], whole: Collection[ParamPath],
    adapted: Collection[str],
) -> tuple[list[str], dict[str, np.ndarray]]:  # fmt: skip
    """The modules that are trained whole, and their tensors, by the names in the class of ``transformers``.

    PEFT takes whole modules alone, and no adapter in them.
    """
    shapes = {path: shape for path, (shape, _) in flat_axes(model.base.plain).items()}
    learnt, by_module = set(whole), dict[str, list[tuple[names.Rule, bool]]]()
    for rule in layout.rules:
        paths = [tuple(path.split(".")) for path in rule.paths]
        if not all(path in shapes for path in paths):
            continue
        module = names.foreign_name(rule.name, layout.modules).rpartition(".")[0]
        is_learnt = [path in learnt for path in paths]
        if any(is_learnt) and not all(is_learnt):
            raise _not_whole(next(path for path in paths if path in learnt))
        if any(is_learnt) and ("{j}" in rule.name or rule.transform == "side by side"):
            raise UserError(
                f"{rule.paths[0]} is trained whole beside the adapters: the class of transformers holds experts in "
                f"other tensors than releases of this family do, which PEFT does not convert: {MERGE}"
            )
        by_module.setdefault(module, []).append((rule, all(is_learnt)))
    chosen = {module for module, rules in by_module.items() if any(is_learnt for _, is_learnt in rules)}
    for module in chosen:
        for other, rules in by_module.items():
            is_inside = other == module or other.startswith(f"{module}.")
            if is_inside and (other in adapted or not all(is_learnt for _, is_learnt in rules)):
                mine = next(rule for rule, is_learnt in by_module[module] if is_learnt)
                raise _not_whole(tuple(mine.paths[0].split(".")))
    own = [rule for module in by_module for rule, is_learnt in by_module[module] if is_learnt]
    if lost := sorted(learnt - {tuple(path.split(".")) for rule in own for path in rule.paths}):
        raise _not_whole(lost[0])
    inputs = {path: len(into) for path, (into, _) in kernel_dims(model.base).items()}
    outgoing = weights.outgoing({path: params[path] for path in learnt}, own, inputs, np.float32)
    tensors = {names.foreign_name(one.name, layout.modules): one.make() for one in outgoing}
    # A module that lies in another one is saved with it.
    outer = {m for m in chosen if not any(m.startswith(f"{other}.") for other in chosen)}
    modules = [m for m in by_module if m in outer]
    if _is_tied(model, learnt):
        head = names.foreign_name(names.HEAD, layout.modules)
        tensors[head] = tensors[names.foreign_name(names.EMBEDDING, layout.modules)].copy()
        modules.append(head.removesuffix(WEIGHT))
    return [name for module in modules for name in _numbered(module, tensors)], tensors


def _is_tied(model: ModelSpec, whole: Collection[ParamPath]) -> bool:
    """Whether a table that is trained whole is the embedding and the vocabulary projection."""
    return model.decoder.tie_embeddings and ("decoder", "embedding") in whole


def _numbered(module: str, tensors: Collection[str]) -> list[str]:
    """The modules of all layers, in order."""
    if "{i}" not in module:
        return [module]
    before, _, after = module.partition("{i}")
    pattern = re.compile(rf"{re.escape(before)}(\d+){re.escape(after)}\.")
    layers = {int(match.group(1)) for match in map(pattern.match, tensors) if match}
    return [module.replace("{i}", str(layer)) for layer in sorted(layers)]


def _not_whole(path: ParamPath) -> UserError:
    return UserError(
        f"{'.'.join(path)} is trained beside the adapters, but not the rest of its module, or with an adapter in it: "
        f"PEFT knows whole modules alone (modules_to_save): {MERGE}"
    )
