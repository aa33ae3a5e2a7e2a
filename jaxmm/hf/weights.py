"""Tensors to parameters and back: one at a time, from mapped files straight to the devices that hold them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from jaxmm.errors import UserError
from jaxmm.hf import names, transforms
from jaxmm.hf.names import Rule
from jaxmm.hf.tensor_files import DTYPES, INDEX, SINGLE, Checkpoint, write_file
from jaxmm.models.frozen import Holding

SHARD_BYTES = 5 << 30
MOVED_BYTES = 128 << 20  # of float32, on the host at a time
WAITING_BYTES = 256 << 20  # of float32, of tensors that are on their way into a stack
LISTED = 8  # names in an error


Spelling = Callable[[str], str]


class Held(NamedTuple):
    """How a parameter is held, where that is not as float32.

    Attributes:
      parts: of a quantised one, (shape, dtype, sharding) of its arrays by name, with dims of stacked layers.
    """

    holding: Holding
    parts: dict[str, tuple[tuple[int, ...], Any, Any]]


def read_params(
    checkpoint: Checkpoint,
    rules: Sequence[Rule],
    parameters: Mapping[names.Path, tuple[tuple[int, ...], Any]],
    *,
    spelling: Spelling = names.common_name,
    others: Sequence[str] = (),
    grows: Sequence[names.Path] = (),
    held: Mapping[names.Path, Held] = {},
    kept: Sequence[str] = (),
) -> tuple[dict[names.Path, jax.Array], list[str]]:
    """Reads parameters as float32, or as they are held, each tensor straight to its devices.

    What is quantised is so tensor by tensor, on the devices: no more than one is there as float32.

    Args:
      parameters: (shape, sharding) by path; for stacked ones, the shape of the stack.
      others: patterns, in the common spelling, of tensors that are left unread without an error.
      grows: paths of parameters that may have more rows than the checkpoint; new rows are the mean of the others.
      kept: patterns, in the common spelling, of further tensors that are kept.
      held: how parameters are held, of those that are not as float32.

    Returns:
      The parameters, and the names of tensors that our model does not use, which are kept for an export.

    Raises:
      UserError: if tensors are missing, unknown, duplicate, not finite, or of another shape or dtype; it lists them.
    """
    shapes = {path: shape for path, (shape, _) in parameters.items()}
    foreign_name = {spelling(name): name for name in checkpoint.entries}
    rules = list(names.as_held(rules, shapes, foreign_name))
    wanted = {tensor.name: tensor for tensor in names.tensors(rules, shapes)}
    twice = [name for name in checkpoint.entries if foreign_name[spelling(name)] != name]
    unknown = [name for common, name in foreign_name.items() if common not in wanted]
    layers = {layer.group() for layer in (re.match(names.SPARE_LAYERS, name) for name in wanted) if layer}
    further = tuple(layer[1] for layer in (re.match(names.NEXT_TOKENS, name) for name in foreign_name) if layer)
    spare = [
        name for name in unknown if _is_spare(spelling(name), layers, further) or _is_any(spelling(name), kept)
    ]  # fmt: skip
    unused = [name for name in unknown if name not in set(spare) and not _is_any(spelling(name), others)]
    missing = [name for name in wanted if name not in foreign_name]
    where = checkpoint.folder
    if twice:
        same = [f"{name} as {foreign_name[spelling(name)]}" for name in twice]
        raise UserError(f"{where} has {len(twice)} tensors a second time by another name: {_some(same)}")
    unheld = [name for common, name in foreign_name.items() if common in wanted and not checkpoint.is_held(name)]
    if unheld:
        kinds = sorted({checkpoint.entries[name].dtype for name in unheld})
        raise UserError(
            f"{where} has {len(unheld)} tensors of dtype {', '.join(kinds)}, which cannot be held as float32: "
            f"{_some(unheld)}: convert them to one of {', '.join(DTYPES)}"
        )
    if missing:
        raise UserError(f"{where} lacks {len(missing)} tensors that its config asks for: {_some(missing)}")
    if unused:
        raise UserError(f"{where} has {len(unused)} tensors that this model has no place for: {_some(unused)}")
    misshapen = []
    for common, tensor in wanted.items():
        parts = [_part_shape(shapes[path], tensor.at) for path in _paths(tensor.rule)]
        has = checkpoint.entries[foreign_name[common]].shape
        may_grow = _paths(tensor.rule)[0] in grows and has[1:] == parts[0][1:] and has[0] <= parts[0][0]
        fitting = transforms.foreign_shapes(tensor.rule.transform, parts)
        if not may_grow and has not in fitting:
            misshapen.append(f"{foreign_name[common]} {has} for {' or '.join(map(str, fitting))}")
    if misshapen:
        raise UserError(f"{where} has {len(misshapen)} tensors of another shape: {_some(misshapen)}")
    params: dict[names.Path, jax.Array] = {}
    waiting = 0
    for common, tensor in sorted(wanted.items(), key=lambda item: checkpoint.entries[foreign_name[item[0]]].file):
        array = checkpoint.mapped(foreign_name[common])
        paths = _paths(tensor.rule)
        parts = [_part_shape(shapes[path], tensor.at) for path in paths]
        if paths[0] in grows and array.shape[0] < parts[0][0]:
            array = _grown(array, parts[0][0])
        for path, value in zip(paths, transforms.into_parts(array, tensor.rule.transform, parts), strict=True):
            placed = _place(params, path, value, tensor.at, *parameters[path], held.get(path))
            waiting += 4 * value.size
            if waiting > WAITING_BYTES:  # else many would wait at once, each beside its place in the stack
                jax.block_until_ready(placed)
                waiting = 0
    _check_finite(checkpoint, params, {foreign_name[common]: tensor for common, tensor in wanted.items()})
    return params, spare


def _check_finite(
    checkpoint: Checkpoint, params: Mapping[names.Path, jax.Array], tensors: Mapping[str, names.Tensor]
) -> None:
    """Raises UserError, which names the checkpoint's tensors, if a parameter has a number that is not finite."""
    # One by one: beside a parameter, its check may take a quarter of its room.
    by_part = {".".join(path): bool(_is_finite(value)) for path, value in params.items()}
    if all(by_part.values()):
        return
    # A quantised parameter shows it in its constants.
    names_of = {path for tensor in tensors.values() for path in tensor.rule.paths}
    finite = {p: all(ok for part, ok in by_part.items() if part == p or part.startswith(f"{p}.")) for p in names_of}
    suspects = [name for name, tensor in tensors.items() if not all(finite[path] for path in tensor.rule.paths)]
    broken = [name for name in suspects if not np.isfinite(np.asarray(checkpoint.mapped(name), np.float32)).all()]
    raise UserError(
        f"{checkpoint.folder} has {len(broken)} tensors with numbers that are not finite: {_some(broken)}: "
        f"download it again, or convert it from what it was made of"
    )


@jax.jit
def _is_finite(value: jax.Array) -> jax.Array:
    return jax.numpy.isfinite(value).all()


def _is_spare(name: str, layers: set[str], further: tuple[str, ...]) -> bool:
    """``layers``: the prefixes of the names of the tower's layers that the model has; ``further``: those of layers that
    guess further tokens."""
    layer = re.match(names.SPARE_LAYERS, name)
    is_behind = layer is not None and layer.group() not in layers
    return _is_any(name, names.SPARE) or is_behind or name.startswith(further)


def _is_any(name: str, patterns: Iterable[str]) -> bool:
    return any(re.match(pattern, name) for pattern in patterns)


def _some(lines: Sequence[str]) -> str:
    more = len(lines) - LISTED
    return ", ".join(lines[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _paths(rule: Rule) -> list[names.Path]:
    return [tuple(path.split(".")) for path in rule.paths]


def _part_shape(shape: tuple[int, ...], at: tuple[int, ...]) -> tuple[int, ...]:
    return shape[len(at) :]


def _grown(array: np.ndarray, rows: int) -> np.ndarray:
    mean = array.mean(0, dtype=np.float32).astype(array.dtype)
    return np.concatenate([array, np.broadcast_to(mean, (rows - len(array), *array.shape[1:]))])


def _place(
    params: dict[names.Path, jax.Array], path: names.Path, value: np.ndarray, at: tuple[int, ...],
    shape: tuple[int, ...], where: Any, held: Held | None,
) -> jax.Array:  # fmt: skip
    """Puts a tensor on its devices: as a parameter, or as one layer or expert of a stack, written in place.

    Returns what is ready when that is done.
    """
    one = _of_one(where, at)
    if held is None or not held.holding.is_quantized:
        dtype = jax.numpy.dtype(held.holding.kind if held else np.float32)
        return _write(params, path, _put(value, one, dtype), at, shape, where)
    places = {name: _of_one(whole, at) for name, (_, _, whole) in held.parts.items()}
    arrays = _quantizer(held.holding, tuple(places.items()))(_put(value, one, np.dtype(np.float32)))
    for name, array in jax.block_until_ready(arrays).items():  # before the next tensor takes room
        of_part, _, whole = held.parts[name]
        written = _write(params, (*path, name), array, at, of_part, whole)
    return written


def _of_one(where: Any, at: tuple[int, ...]) -> Any:
    """The sharding of one layer or expert of a stack."""
    if not at:
        return where
    return jax.sharding.NamedSharding(where.mesh, jax.sharding.PartitionSpec(*where.spec[len(at) :]))


def _write(
    params: dict[names.Path, jax.Array], path: names.Path, value: jax.Array, at: tuple[int, ...],
    shape: tuple[int, ...], where: Any,
) -> jax.Array:  # fmt: skip
    if not at:
        params[path] = value
    else:
        stack = params[path] if path in params else _zeros(shape, value.dtype, where)()
        params[path] = _writer(where)(stack, value, at)
    return params[path]


@functools.cache  # tensors of one shape share a program
def _quantizer(holding: Holding, places: tuple[tuple[str, Any], ...]) -> Callable[[jax.Array], dict[str, jax.Array]]:
    def quantize(value: jax.Array) -> dict[str, jax.Array]:
        each = holding.quantize
        for _ in range(value.ndim - len(holding.shape)):  # of all experts of a layer
            each = jax.vmap(each)
        return each(value)

    return jax.jit(quantize, out_shardings=dict(places))


def _put(value: np.ndarray, where: Any, dtype: np.dtype) -> jax.Array:
    """Puts an array on its devices as ``dtype``, part by part: the host never holds a large tensor as float32."""
    indices = where.addressable_devices_indices_map(value.shape)
    parts = [_on_device(value[index], device, dtype) for device, index in indices.items()]
    return jax.make_array_from_single_device_arrays(value.shape, where, parts)


def _on_device(value: np.ndarray, device: Any, dtype: np.dtype) -> jax.Array:
    def moved(rows: slice) -> jax.Array:
        return jax.device_put(np.asarray(value[rows], dtype, order="C"), device)

    if value.size * dtype.itemsize <= MOVED_BYTES:
        return moved(slice(None) if value.ndim else ...)  # type: ignore[arg-type]
    count = max(1, MOVED_BYTES // (dtype.itemsize * int(np.prod(value.shape[1:]))))
    with jax.set_mesh(jax.sharding.Mesh(np.array([device]), ("one",))):  # programs of a mesh run on all its devices
        whole = _zeros(value.shape, dtype, jax.sharding.SingleDeviceSharding(device))()
        for start in range(0, len(value), count):
            whole = jax.block_until_ready(_write_rows(whole, moved(slice(start, start + count)), start))
    return whole


@functools.cache  # tensors of one shape share a program
def _zeros(shape: tuple[int, ...], dtype: np.dtype, where: Any) -> Callable[[], jax.Array]:
    return jax.jit(functools.partial(jax.numpy.zeros, shape, dtype), out_shardings=where)


@functools.partial(jax.jit, donate_argnums=0)
def _write_rows(whole: jax.Array, rows: jax.Array, start: int) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(whole, rows, start, 0)


@functools.cache
def _writer(where: Any) -> Callable[[jax.Array, jax.Array, tuple[int, ...]], jax.Array]:
    def write(stack: jax.Array, value: jax.Array, at: tuple[int, ...]) -> jax.Array:
        start = (*at, *[0] * value.ndim)
        return lax.dynamic_update_slice(stack, value.reshape(*[1] * len(at), *value.shape), start)

    return jax.jit(write, donate_argnums=0, out_shardings=where)


class Outgoing(NamedTuple):
    """A tensor to be written: its name, its size in bytes, and the function that makes it."""

    name: str
    bytes: int
    make: Callable[[], np.ndarray]


def outgoing(
    params: Mapping[names.Path, Any], rules: Sequence[Rule], inputs: Mapping[names.Path, int], dtype: Any
) -> Iterator[Outgoing]:
    """Yields the tensors of a checkpoint, in the common spelling, by the same tables that read it.

    Args:
      inputs: how many leading dims of each linear map are its input, without the dim of stacked layers.
      dtype: of the written tensors, but for those that are exact.
    """
    shapes = {path: tuple(value.shape) for path, value in params.items()}
    for tensor in names.tensors(rules, shapes):
        paths, kind = _paths(tensor.rule), np.dtype(np.float32 if tensor.rule.exact else dtype)

        def make(
            tensor: names.Tensor = tensor, paths: Sequence[names.Path] = paths, kind: np.dtype = kind
        ) -> np.ndarray:
            parts = [np.asarray(params[p][tensor.at] if tensor.at else params[p]) for p in paths]
            whole = transforms.out_of_parts(parts, tensor.rule.transform, inputs.get(paths[0], 0))
            return np.asarray(whole.astype(kind), order="C")

        elements = sum(int(np.prod(_part_shape(shapes[path], tensor.at))) for path in paths)
        yield Outgoing(tensor.name, elements * kind.itemsize, make)


def write(folder: Path, tensors: Iterable[Outgoing], shard_bytes: int = SHARD_BYTES) -> int:
    """Writes tensors in files of at most ``shard_bytes``, with an index; one file's tensors are in memory at a time.

    Returns:
      The number of bytes of all tensors.
    """
    shards: list[list[Outgoing]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.bytes for t in shards[-1]) + tensor.bytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_file(folder / file, {t.name: t.make() for t in shard})
        weight_map |= {t.name: file for t in shard}
    total = sum(t.bytes for shard in shards for t in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1))
    return total
