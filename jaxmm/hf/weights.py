"""Tensors of safetensors files, in and out: one at a time, from mapped files straight to where they belong.

Pickled weights are never opened: they may run code.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from jax import lax

from jaxmm.errors import UserError
from jaxmm.hf import names, transforms
from jaxmm.hf.names import Rule

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}  # what float32 holds to the bit
SHARD_BYTES = 5 << 30
COMPARED_ROWS = 4096
MOVED_BYTES = 128 << 20  # of float32 on the host at a time
LISTED = 8  # names in an error


class Entry(NamedTuple):
    """Where a tensor is, and what."""

    file: str
    shape: tuple[int, ...]
    dtype: str
    offset: int  # in the file


class Checkpoint:
    """The tensors of a folder, by name.

    A file is mapped only while one of its tensors is read: pages of a mapping that was read count as the process's.
    """

    def __init__(self, folder: Path):
        """
        Raises:
          UserError: if there are no safetensors, or they are broken, or two files have the same tensor.
        """
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        for file in _listed(folder):
            for name, entry in self._entries(file):
                if name in self.entries:
                    raise UserError(f"tensor {name} is in {self.entries[name].file} and in {file} of {folder}")
                self.entries[name] = entry

    def _entries(self, file: str) -> list[tuple[str, Entry]]:
        try:
            with opened(self.folder / file):  # which checks the header against the file
                pass
            with open(self.folder / file, "rb") as raw:
                length = int.from_bytes(raw.read(8), "little")
                header = json.loads(raw.read(length))
            return [
                (name, Entry(file, tuple(about["shape"]), about["dtype"], 8 + length + about["data_offsets"][0]))
                for name, about in header.items()
                if name != "__metadata__"
            ]
        except FileNotFoundError as error:
            raise UserError(f"{self.folder / INDEX} names {file}, which is not there: download it again") from error
        except Exception as error:
            raise UserError(f"{self.folder / file} is not whole ({error}): download it again") from error

    def is_held(self, name: str) -> bool:
        """Whether float32 holds a tensor to the bit."""
        return self.entries[name].dtype in DTYPES

    def are_equal(self, one: str, other: str) -> bool:
        """Whether two tensors are the same to the bit; a piece of each is in memory at a time."""
        a, b = self.entries[one], self.entries[other]
        if a[1:3] != b[1:3] or not self.is_held(one):
            return False
        return all(
            self.mapped(one)[i : i + COMPARED_ROWS].tobytes() == self.mapped(other)[i : i + COMPARED_ROWS].tobytes()
            for i in range(0, a.shape[0], COMPARED_ROWS)
        )

    def mapped(self, name: str) -> np.ndarray:
        """A tensor that is held, in its own dtype; what is read of it is its file's pages, as long as it lives."""
        file, shape, dtype, offset = self.entries[name]
        if 0 in shape:
            return np.empty(shape, DTYPES[dtype])
        return np.memmap(self.folder / file, DTYPES[dtype], "r", offset, shape)

    def raw(self, name: str) -> np.ndarray:
        """A copy of any tensor in its own dtype."""
        with opened(self.folder / self.entries[name].file) as tensors:
            return tensors.get_tensor(name)


def is_there(folder: Path) -> bool:
    """Whether the folder has safetensors at all."""
    return (folder / INDEX).exists() or (folder / SINGLE).exists()


def opened(file: Path) -> Any:
    """A safetensors file as a context manager with ``keys()`` and ``get_tensor(name)``."""
    return safetensors.safe_open(file, "np")


def write_file(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one safetensors file."""
    safetensors.numpy.save_file(dict(tensors), file, metadata={"format": "pt"})
    os.umask(mask := os.umask(0))  # the library's files are their owner's alone, whatever the umask says
    file.chmod(0o666 & ~mask)


def _listed(folder: Path) -> list[str]:
    """The folder's safetensors files."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    index = folder / INDEX
    if index.exists():
        try:
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            outside = [file for file in files if Path(file).is_absolute() or ".." in Path(file).parts]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} is not a whole index of weights: download it again") from error
        if outside:
            raise UserError(f"{index} names {outside[0]}, which is not a file of this folder")
        pickled = [file for file in files if any(fnmatch.fnmatch(file, pattern) for pattern in PICKLED)]
        if pickled:
            raise _pickled(folder, pickled[0])
        return files
    if (folder / SINGLE).exists():
        return [SINGLE]
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        raise _pickled(folder, pickled[0])
    raise UserError(f"{folder} has no weights: there is neither {SINGLE} nor {INDEX}")


def _pickled(folder: Path, file: str) -> UserError:
    return UserError(
        f"{folder} has its weights as {file}, a pickle, which may run code and is not opened: "
        f"take the release with {SINGLE}, or convert it"
    )


Spelling = Callable[[str], str]


def read_params(
    checkpoint: Checkpoint,
    rules: Sequence[Rule],
    parameters: Mapping[names.Path, tuple[tuple[int, ...], Any]],
    *,
    spelling: Spelling = names.common_name,
    others: Sequence[str] = (),
    grows: Sequence[names.Path] = (),
) -> tuple[dict[names.Path, jax.Array], list[str]]:
    """Reads parameters, float32, each tensor straight to its devices.

    Args:
      parameters: (shape, sharding) by path; of stacked ones, the shape of the stack.
      others: patterns of tensors, in the common spelling, that are no part of what is read, and not missed.
      grows: of ours that may have more rows than the checkpoint; new rows are the mean of the others.
    Returns:
      The parameters, and the names of tensors that are kept for an export though our model does not use them.

    Raises:
      UserError: with the list, if tensors are missing, unknown, there twice, or of another shape or dtype.
    """
    shapes = {path: shape for path, (shape, _) in parameters.items()}
    wanted = {tensor.name: tensor for tensor in names.tensors(rules, shapes)}
    found = {spelling(name): name for name in checkpoint.entries}
    twice = [name for name in checkpoint.entries if found[spelling(name)] != name]
    unknown = [name for common, name in found.items() if common not in wanted]
    layers = {layer.group() for layer in (re.match(names.SPARE_LAYERS, name) for name in wanted) if layer}
    spare = [name for name in unknown if _is_spare(spelling(name), layers)]
    unused = [name for name in unknown if name not in set(spare) and not _is_any(spelling(name), others)]
    missing = [name for name in wanted if name not in found]
    where = checkpoint.folder
    if twice:
        same = [f"{name} as {found[spelling(name)]}" for name in twice]
        raise UserError(f"{where} has {len(twice)} tensors a second time by another name: {_some(same)}")
    unheld = [name for common, name in found.items() if common in wanted and not checkpoint.is_held(name)]
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
        parts = [_part_shape(shapes[path], tensor.layer) for path in _paths(tensor.rule)]
        has = checkpoint.entries[found[common]].shape
        may_grow = _paths(tensor.rule)[0] in grows and has[1:] == parts[0][1:] and has[0] <= parts[0][0]
        fitting = transforms.foreign_shapes(tensor.rule.transform, parts)
        if not may_grow and has not in fitting:
            misshapen.append(f"{found[common]} {has} for {' or '.join(map(str, fitting))}")
    if misshapen:
        raise UserError(f"{where} has {len(misshapen)} tensors of another shape: {_some(misshapen)}")
    params: dict[names.Path, jax.Array] = {}
    for common, tensor in sorted(wanted.items(), key=lambda item: checkpoint.entries[found[item[0]]].file):
        array = checkpoint.mapped(found[common])
        paths = _paths(tensor.rule)
        parts = [_part_shape(shapes[path], tensor.layer) for path in paths]
        if paths[0] in grows and array.shape[0] < parts[0][0]:
            array = _grown(array, parts[0][0])
        for path, value in zip(paths, transforms.into_parts(array, tensor.rule.transform, parts), strict=True):
            _place(params, path, value, tensor.layer, *parameters[path])
    _check_finite(checkpoint, params, {found[common]: tensor for common, tensor in wanted.items()})
    return params, spare


def _check_finite(
    checkpoint: Checkpoint, params: Mapping[names.Path, jax.Array], tensors: Mapping[str, names.Tensor]
) -> None:
    """Raises UserError, with the tensors of the checkpoint, where a parameter has a number that is not finite."""
    finite = jax.device_get(_are_finite({".".join(path): value for path, value in params.items()}))
    if all(finite.values()):
        return
    suspects = [name for name, tensor in tensors.items() if not all(finite[path] for path in tensor.rule.paths)]
    broken = [name for name in suspects if not np.isfinite(np.asarray(checkpoint.mapped(name), np.float32)).all()]
    raise UserError(
        f"{checkpoint.folder} has {len(broken)} tensors with numbers that are not finite: {_some(broken)}: "
        f"download it again, or convert it from what it was made of"
    )


@jax.jit
def _are_finite(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: jax.numpy.isfinite(value).all() for path, value in params.items()}


def _is_spare(name: str, layers: set[str]) -> bool:
    """``layers``: what the names of those that the model has begin with."""
    layer = re.match(names.SPARE_LAYERS, name)
    return _is_any(name, names.SPARE) or (layer is not None and layer.group() not in layers)


def _is_any(name: str, patterns: Iterable[str]) -> bool:
    return any(re.match(pattern, name) for pattern in patterns)


def _some(lines: Sequence[str]) -> str:
    more = len(lines) - LISTED
    return ", ".join(lines[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _paths(rule: Rule) -> list[names.Path]:
    return [tuple(path.split(".")) for path in rule.paths]


def _part_shape(shape: tuple[int, ...], layer: int | None) -> tuple[int, ...]:
    return shape if layer is None else shape[1:]


def _grown(array: np.ndarray, rows: int) -> np.ndarray:
    mean = array.mean(0, dtype=np.float32).astype(array.dtype)
    return np.concatenate([array, np.broadcast_to(mean, (rows - len(array), *array.shape[1:]))])


def _place(
    params: dict[names.Path, jax.Array], path: names.Path, value: np.ndarray, layer: int | None,
    shape: tuple[int, ...], where: Any,
) -> None:  # fmt: skip
    """Puts a tensor on its devices: as a parameter, or as one layer of a stack, written in place."""
    if layer is None:
        params[path] = _put(value, where)
        return
    if path not in params:
        params[path] = jax.jit(functools.partial(jax.numpy.zeros, shape, np.float32), out_shardings=where)()
    one_layer = jax.sharding.NamedSharding(where.mesh, jax.sharding.PartitionSpec(*where.spec[1:]))
    params[path] = _writer(where)(params[path], _put(value, one_layer), layer)


def _put(value: np.ndarray, where: Any) -> jax.Array:
    """Float32, each device's part by itself: the host never holds a large tensor as float32."""
    indices = where.addressable_devices_indices_map(value.shape)
    parts = [_on_device(value[index], device) for device, index in indices.items()]
    return jax.make_array_from_single_device_arrays(value.shape, where, parts)


def _on_device(value: np.ndarray, device: Any) -> jax.Array:
    def moved(rows: slice) -> jax.Array:
        return jax.device_put(np.asarray(value[rows], np.float32, order="C"), device)

    if value.size * 4 <= MOVED_BYTES:
        return moved(slice(None) if value.ndim else ...)  # type: ignore[arg-type]
    count = max(1, MOVED_BYTES // (4 * int(np.prod(value.shape[1:]))))
    zeros = functools.partial(jax.numpy.zeros, value.shape, np.float32)
    whole = jax.jit(zeros, out_shardings=jax.sharding.SingleDeviceSharding(device))()
    for start in range(0, len(value), count):
        whole = jax.block_until_ready(_write_rows(whole, moved(slice(start, start + count)), start))
    return whole


@functools.partial(jax.jit, donate_argnums=0)
def _write_rows(whole: jax.Array, rows: jax.Array, start: int) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(whole, rows, start, 0)


@functools.cache
def _writer(where: Any) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    def write(stack: jax.Array, value: jax.Array, layer: int) -> jax.Array:
        return lax.dynamic_update_index_in_dim(stack, value, layer, 0)

    return jax.jit(write, donate_argnums=0, out_shardings=where)


class Outgoing(NamedTuple):
    """A tensor to be written: its name, its size in bytes, and what makes it."""

    name: str
    bytes: int
    make: Callable[[], np.ndarray]


def outgoing(
    params: Mapping[names.Path, Any], rules: Sequence[Rule], inputs: Mapping[names.Path, int], dtype: Any
) -> Iterator[Outgoing]:
    """The tensors of a checkpoint, in the common spelling, by the same tables that read it.

    Args:
      inputs: how many leading dims each linear map takes in, without that of stacked layers.
      dtype: of what is written.
    """
    shapes = {path: tuple(value.shape) for path, value in params.items()}
    for tensor in names.tensors(rules, shapes):
        paths = _paths(tensor.rule)

        def make(tensor: names.Tensor = tensor, paths: Sequence[names.Path] = paths) -> np.ndarray:
            parts = [np.asarray(params[p] if tensor.layer is None else params[p][tensor.layer]) for p in paths]
            whole = transforms.out_of_parts(parts, tensor.rule.transform, inputs.get(paths[0], 0))
            return np.ascontiguousarray(whole.astype(dtype))

        elements = sum(int(np.prod(_part_shape(shapes[path], tensor.layer))) for path in paths)
        yield Outgoing(tensor.name, elements * np.dtype(dtype).itemsize, make)


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
