"""Reads a PEFT folder: which of our linear maps have an adapter, its factors, and what was trained whole beside them.

The names of its tensors decide, in any spelling that releases and classes of ``transformers`` have had, and not
``target_modules``. What is not understood stops: an adapter that is left out would be seen in nothing but answers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmm.errors import UserError
from jaxmm.hf import names, peft_experts, peft_layers, peft_tables, tensor_files, transforms
from jaxmm.hf.families.family import Layout
from jaxmm.hf.map_names import WEIGHT, NamedMap, named_maps
from jaxmm.hf.peft_layers import Factors
from jaxmm.hf.peft_tables import is_table
from jaxmm.hf.peft_write import CONFIG, PREFIX, TENSORS
from jaxmm.hf.processors import json_object
from jaxmm.models.adapters import AdapterSpec
from jaxmm.models.lora import alpha_of
from jaxmm.models.multimodal import ModelSpec, flat_axes, kernel_dims
from jaxmm.models.tables import TABLES
from jaxmm.models.tree import ParamPath

# (module)(factor): "default" is the adapter's name, which some programs leave in.
FACTOR = re.compile(
    r"(.+)\.(?:(lora_[AB])(?:\.default)?\.weight|(lora_embedding_[AB]|lora_magnitude_vector)(?:\.default)?(?:\.weight)?)$"
)
PLACES = {
    "lora_A": "into", "lora_B": "out", peft_tables.INTO: "into", peft_tables.OUT: "out",
    "lora_magnitude_vector": "magnitude",
}  # fmt: skip
Dims = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # shape of a kernel, its dims of inputs and of outputs
WHOLE = re.compile(r"\.modules_to_save(?:\.default)?(?=\.)")
# What a config may ask for that changes what the factors mean, or that has tensors of another kind.
REFUSED = (
    "lora_bias", "use_qalora", "alora_invocation_tokens", "trainable_token_indices",
    "layer_replication", "use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
    "megatron_config", "fan_in_fan_out",
)  # fmt: skip
CHANGED = ("pissa", "olora", "corda", "loftq", "lora_ga")  # starts for which PEFT changes the model beneath, too
LISTED = 6  # names in an error


class PeftAdapter(NamedTuple):
    """What a PEFT folder holds.

    Attributes:
      spec: which maps are adapted, each by its own path.
      params: the factors, and the parameters that were trained whole, by path, float32.
      whole: paths of the latter.
      dropout: that it was trained with.
      base: what it names as the model beneath.
      told: lines for people on what is not as it was.
    """

    spec: AdapterSpec
    params: dict[ParamPath, np.ndarray]
    whole: tuple[ParamPath, ...]
    dropout: float
    base: str
    told: tuple[str, ...]


def is_peft(folder: Path) -> bool:
    """Whether a folder has adapters as PEFT saves them."""
    return (folder / CONFIG).is_file()


def read_peft(folder: Path, layout: Layout, model: ModelSpec, beneath: Path | None = None) -> PeftAdapter:
    """Reads the adapters of a folder, for a model of this layout.

    Args:
      model: the model beneath.
      beneath: the folder with its decoder, with which a table that PEFT saved beside its adapter is compared.

    Raises:
      UserError: for another kind of adapters, for tensors that have no place in the model, and for other shapes.
    """
    config = json_object(folder / CONFIG)
    kind, use_rslora = _kind(config, folder)
    checkpoint = tensor_files.Checkpoint(folder, [_tensor_file(folder)])
    by_module, whole = _sorted(checkpoint, folder)
    for module in [module for module in whole if module.endswith(peft_tables.BENEATH)]:
        _check_beneath(module, whole.pop(module), checkpoint, beneath)
    shapes = {path: shape for path, (shape, _) in flat_axes(model.base.plain).items()}
    dims = {path[:-1]: (shapes[path], *sides) for path, sides in kernel_dims(model.base).items()}
    dims |= {path: (shapes[path], (0,), (1,)) for path in TABLES if path in shapes}
    maps = [one for one in named_maps(layout) if all(path in dims for path in one.paths)]
    by_module = peft_experts.by_parameter(by_module, maps, config.get("target_parameters") or (), folder)
    stacks, unused = _stacks(by_module, maps, dims, kind, folder)
    if model.decoder.tie_embeddings:
        tables = [of_layers[0] for one, of_layers in stacks if is_table(one)]
        stacks = peft_tables.of_both(stacks, _are_alike(tables, config), folder)
    params: dict[ParamPath, np.ndarray] = {}
    sizes: dict[ParamPath, tuple[int, float]] = {}
    told = [f"{len(unused)} adapters of layers that run without being used here are left out"] if unused else []
    for one, of_layers in stacks:
        each = one.experts or 1
        layers = dims[one.paths[0]][0][0] * each if "{i}" in one.name else 1
        if is_table(one) and kind == "dora":
            raise UserError(f"{folder} has a DoRA adapter of {one.name}, a table over the vocabulary: not supported")
        stack = peft_layers.stacked(of_layers, layers, config, use_rslora)
        if len(of_layers) < layers:
            if kind == "dora":
                raise UserError(f"{folder} has DoRA adapters in some layers of {one.name} alone: not supported")
            have = f"{len(of_layers) // each} of {layers // each} layers"
            told.append(f"{one.name} has an adapter in {have}: the others stay without")
        parts = peft_layers.of_parts(stack, one)
        if len(one.paths) > 1 and len({id(part.into) for part in parts.values()}) < len(parts):
            told.append(f"the adapter of {one.name} becomes {len(parts)}, which begin alike and learn each by itself")
        for path, part in parts.items():
            rank = part.into.shape[1]
            sizes[path] = rank, alpha_of(kind, rank, stack.scale)
            params |= peft_layers.of_map(part, path, *dims[path])
    trained = _whole(checkpoint, whole, layout, shapes, model.decoder.tie_embeddings, folder)
    if not sizes:
        raise UserError(f"{folder} has no adapters: {TENSORS} has none of the tensors lora_A and lora_B")
    if broken := [path for path, x in (params | trained).items() if not np.isfinite(x).all()]:
        raise UserError(f"{folder}: the adapter of {'.'.join(broken[0])} has numbers that are not finite")
    (rank, alpha), _ = Counter(sizes.values()).most_common(1)[0]
    ranks = tuple((".".join(path), *size) for path, size in sizes.items() if size != (rank, alpha))
    spec = AdapterSpec(tuple(".".join(path) for path in sizes), rank, alpha, kind, ranks=ranks)
    return PeftAdapter(
        spec, params | trained, tuple(trained), float(config.get("lora_dropout") or 0.0),
        str(config.get("base_model_name_or_path") or ""), tuple(dict.fromkeys(told)),
    )  # fmt: skip


def _kind(config: Mapping[str, Any], folder: Path) -> tuple[str, bool]:
    """The kind of adapters, one of ours, and whether they are scaled by the root of their rank."""
    peft_type = str(config.get("peft_type", "")).upper()
    if peft_type != "LORA":
        raise UserError(f"{folder} has adapters of peft_type {peft_type or 'unknown'}: only LORA is read")
    if refused := [key for key in REFUSED if config.get(key)]:
        raise UserError(f"{folder / CONFIG}: {refused[0]}={config[refused[0]]} is not supported")
    if config.get("bias", "none") != "none":
        raise UserError(f"{folder / CONFIG}: bias={config['bias']} is not supported: only none is")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGED):
        raise UserError(
            f"{folder / CONFIG}: init_lora_weights={start} means a model beneath that PEFT has changed: save them for "
            f"the model as it was, by save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    use_rslora = bool(config.get("use_rslora"))
    return ("dora" if config.get("use_dora") else "rslora" if use_rslora else "lora"), use_rslora


def _tensor_file(folder: Path) -> str:
    if (folder / TENSORS).is_file():
        return TENSORS
    if pickled := sorted(path.name for path in folder.glob("adapter_model.*") if path.suffix != ".safetensors"):
        raise tensor_files.pickled_error(folder, pickled[0], TENSORS)
    raise UserError(f"{folder} has no {TENSORS}")


def _sorted(checkpoint: tensor_files.Checkpoint, folder: Path) -> tuple[dict[str, Factors], dict[str, str]]:
    """The factors by module, and the names of other tensors by what they are, both in the common spelling."""
    by_module: dict[str, Factors] = {}
    whole: dict[str, str] = {}
    for name in checkpoint.entries:
        own = name.removeprefix(PREFIX)
        if own.endswith(".lora_B.bias"):
            raise UserError(f"{folder}: {name}: adapters with a bias are not supported")
        if not checkpoint.is_held(name):
            raise UserError(f"{folder}: {name} is of dtype {checkpoint.entries[name].dtype}: float32 cannot hold it")
        if not (match := FACTOR.match(own)):
            whole[names.common_name(WHOLE.sub("", own))] = name
            continue
        module = names.common_name(f"{match[1]}{WEIGHT}").removesuffix(WEIGHT)
        factors = by_module.setdefault(module, Factors(match[1]))
        place = PLACES[match[2] or match[3]]
        if getattr(factors, place) is not None:
            raise UserError(f"{folder} has the adapter of {match[1]} twice: as {factors.name}, too")
        setattr(factors, place, np.asarray(checkpoint.mapped(name), np.float32))
    return by_module, whole


def _numbered(name: str) -> Iterator[tuple[str, int]]:
    """The ways to read a name as that of a layer: with ``{i}``, and its number."""
    yield name, 0
    for match in re.finditer(r"(?<=\.)\d+(?=\.|$)", name):
        yield f"{name[: match.start()]}{{i}}{name[match.end() :]}", int(match.group())


def _stacks(
    by_module: Mapping[str, Factors], maps: Sequence[NamedMap], dims: Mapping[ParamPath, Dims], kind: str, folder: Path
) -> tuple[list[tuple[NamedMap, dict[int, Factors]]], list[str]]:  # fmt: skip
    """The factors by layer, of each Linear that has some, all of the shapes of this model; and modules it runs without.

    Of experts they are by layer and expert, the experts of a layer adjacent.

    Raises:
      UserError: for modules that mean no map of the model.
    """
    by_common = {one.common: one for one in maps}
    by_layer: dict[str, dict[int, Factors]] = {}
    unused, unknown, misshapen = list[str](), list[str](), list[str]()
    for module, factors in by_module.items():
        where = next(((by_common[name], n) for name, n in _numbered(module) if name in by_common), None)
        if where is None:
            is_unused = any(re.match(pattern, module) for pattern in names.SPARE)
            (unused if is_unused else unknown).append(factors.name)
            continue
        one, layer = where[0], where[0].place(where[1])
        shape, into, _ = dims[one.paths[0]]
        if layer is None:
            misshapen.append(f"{factors.name}, where layer {where[1]} has no such map")
            continue
        if "{i}" in one.common and layer >= shape[0]:
            is_unused = re.match(names.SPARE_LAYERS, f"{module}.") is not None
            (unused if is_unused else misshapen).append(f"{factors.name} in a model of {shape[0]} layers")
            continue
        if factors.into is None or factors.out is None:
            raise UserError(f"{folder}: the adapter of {factors.name} is not whole: it lacks lora_A or lora_B")
        _check_lengths(factors, is_needed=kind == "dora" and not is_table(one), kind=kind, folder=folder)
        if one.common == peft_tables.HEAD:
            factors.into, factors.out = peft_tables.turned(factors.into, factors.out)
        inputs, outputs = factors.into.shape[-1], len(factors.out)
        wanted = math.prod(shape[dim] for dim in into), sum(one.outputs)
        ranks, each = factors.into.shape[0], one.experts or 1
        if (inputs, outputs) != wanted or ranks != factors.out.shape[-1] or ranks % each:
            misshapen.append(f"{factors.name} of {inputs} to {outputs}")
            continue
        parts = peft_experts.split(factors, each) if one.experts else [factors]
        by_layer.setdefault(one.common, {}).update({layer * each + n: part for n, part in enumerate(parts)})
    if unknown:
        raise UserError(f"{folder} has {len(unknown)} adapters that mean no linear map of this model: {_some(unknown)}")
    if misshapen:
        raise UserError(
            f"{folder} has adapters of another base: {len(misshapen)} do not fit: {_some(misshapen)}; config.init_from "
            f"must be the model that they were learnt over, which {CONFIG} names"
        )
    return [(by_common[name], of_layers) for name, of_layers in by_layer.items()], unused


def _check_lengths(factors: Factors, *, is_needed: bool, kind: str, folder: Path) -> None:
    """Raises UserError for lengths of DoRA that are not there or not to be there, or not one an output."""
    lengths = factors.magnitude
    if is_needed and lengths is None:
        raise UserError(f"{folder}: the adapter of {factors.name} is not whole: it lacks lora_magnitude_vector (DoRA)")
    if lengths is None:
        return
    if kind != "dora":
        raise UserError(
            f"{folder}: {factors.name} has a lora_magnitude_vector, but {CONFIG} says that it is no DoRA: set use_dora "
            f"there, or save the adapters again"
        )
    if factors.out is not None and lengths.size != len(factors.out):
        raise UserError(
            f"{folder}: lora_magnitude_vector of {factors.name} has {lengths.size} numbers for {len(factors.out)} "
            f"outputs"
        )


def _are_alike(tables: Sequence[Factors], config: Mapping[str, Any]) -> bool:
    """Whether adapters are the same, but for the names of their modules."""
    return all(
        np.array_equal(tables[0].into, one.into)  # type: ignore[arg-type]
        and np.array_equal(tables[0].out, one.out)  # type: ignore[arg-type]
        and peft_layers.alpha_of_module(config, tables[0].name) == peft_layers.alpha_of_module(config, one.name)
        for one in tables[1:]
    )


def _check_beneath(module: str, name: str, checkpoint: tensor_files.Checkpoint, beneath: Path | None) -> None:
    if beneath is None:
        raise UserError(f"{checkpoint.folder}: {name} is a table of the model beneath, which is not at hand to compare")
    base = tensor_files.Checkpoint(beneath)
    peft_tables.check_beneath(name, checkpoint, base, f"{module.removesuffix(peft_tables.BENEATH)}{WEIGHT}")


def _some(lines: Sequence[str]) -> str:
    return ", ".join(lines[:LISTED]) + (f" and {len(lines) - LISTED} more" if len(lines) > LISTED else "")


def _whole(
    checkpoint: tensor_files.Checkpoint, whole: Mapping[str, str], layout: Layout,
    shapes: Mapping[ParamPath, tuple[int, ...]], is_tied: bool, folder: Path,
) -> dict[ParamPath, np.ndarray]:  # fmt: skip
    """The parameters that were trained whole, by path."""
    own = dict(whole)
    if is_tied and names.HEAD in own:
        if names.EMBEDDING not in own or not checkpoint.are_equal(own[names.HEAD], own[names.EMBEDDING]):
            raise UserError(f"{folder}: {own[names.HEAD]} is not the embedding, as it is in this model")
        del own[names.HEAD]
    wanted = {tensor.name: tensor for tensor in names.tensors(layout.rules, shapes)}
    if unknown := [name for common, name in own.items() if common not in wanted]:
        raise UserError(f"{folder} has {len(unknown)} tensors that this model has no place for: {_some(unknown)}")
    tables: dict[ParamPath, np.ndarray] = {}
    have = Counter(wanted[common].rule for common in own)
    for common, name in own.items():
        _, rule, at = wanted[common]
        paths = [tuple(path.split(".")) for path in rule.paths]
        parts = [shapes[path][len(at) :] for path in paths]
        array = np.asarray(checkpoint.mapped(name), np.float32)
        if array.shape not in transforms.foreign_shapes(rule.transform, parts):
            raise UserError(f"{folder} has adapters of another base: {name} of shape {array.shape} does not fit")
        if have[rule] < math.prod(shapes[paths[0]][: len(at)]):
            raise UserError(f"{folder}: {name} is trained whole in some layers alone: not supported")
        for path, value in zip(paths, transforms.into_parts(array, rule.transform, parts), strict=True):
            if at:
                tables.setdefault(path, np.zeros(shapes[path], np.float32))[at] = value
            else:
                tables[path] = value
    return tables
