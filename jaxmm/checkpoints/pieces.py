"""Pieces of arrays: what each process of a job holds of an array that is laid out over all of their devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

Piece = tuple[tuple[int, int], ...]  # of an array: where it begins and ends in each dim


def holders(leaf: Any) -> dict[Piece, set[int]]:
    """The pieces of an array, each with the numbers of the processes that hold it. Replicas are one piece.

    Args:
      leaf: with a shape and a sharding.
    """
    by_piece: dict[Piece, set[int]] = {}
    for device, index in leaf.sharding.devices_indices_map(tuple(leaf.shape)).items():
        by_piece.setdefault(_piece(index, leaf.shape), set()).add(device.process_index)
    return by_piece


def places(processes: Iterable[int]) -> dict[int, int]:
    """Processes, numbered as the first of their devices come in a mesh.

    Args:
      processes: of each device of the mesh.
    """
    return {process: place for place, process in enumerate(dict.fromkeys(processes))}


def groups(leaves: Iterable[Any], places: Mapping[int, int]) -> list[list[int]]:
    """The places of the processes that hold a piece, each group once: a state is whole where one of each is there."""
    together: set[frozenset[int]] = set()
    for shape, sharding in {(tuple(leaf.shape), leaf.sharding) for leaf in leaves}:
        together |= {
            frozenset(held) for held in holders(jax.ShapeDtypeStruct(shape, np.int8, sharding=sharding)).values()
        }
    return sorted(sorted(places[process] for process in group) for group in together)


def shards(array: jax.Array) -> dict[Piece, jax.Array]:
    """The pieces of an array that this process holds, each on one of its devices: of replicas one."""
    return {_piece(shard.index, array.shape): shard.data for shard in array.addressable_shards}


def here(array: jax.Array) -> dict[Piece, np.ndarray]:
    """The pieces of an array that this process holds, copied to the host: the array may be donated after it."""
    return {piece: _copied(data) for piece, data in shards(array).items()}


def joined(leaf: Any, values: dict[Piece, np.ndarray]) -> jax.Array:
    """An array of the shape and sharding of ``leaf``, from this process's pieces of it."""
    places = leaf.sharding.addressable_devices_indices_map(tuple(leaf.shape))
    shards = [jax.device_put(values[_piece(index, leaf.shape)], device) for device, index in places.items()]
    return jax.make_array_from_single_device_arrays(tuple(leaf.shape), leaf.sharding, shards)


def _piece(index: tuple[slice, ...], shape: tuple[int, ...]) -> Piece:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _copied(data: jax.Array) -> np.ndarray:
    host = np.asarray(data)
    return host.copy() if next(iter(data.devices())).platform == "cpu" else host  # there it is the device's own memory
