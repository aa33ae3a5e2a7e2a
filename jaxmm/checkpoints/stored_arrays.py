"""Arrays of a checkpoint in a store, of which each process of a job reads its own shards, past every disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from jaxmm.workdir.objects import Objects

_THREADS = 8  # each reads one array's shards
_META = "/.zarray"  # ends the key of what an array says of itself


class StoredArrays:
    """The arrays of one array store, as Orbax lays them out: Zarr in OCDBT.

    Args:
      objects: among which it lies.
      inside: its folder, with a slash at its end.
    """

    def __init__(self, objects: Objects, inside: str) -> None:
        self._objects, self._inside = objects, inside
        self._opened: dict[str, Any] = {}

    def look(self, wanted: Iterable[str]) -> dict[str, jax.ShapeDtypeStruct | None]:
        """The names of all arrays; of the wanted ones with shape and dtype.

        Raises:
          StoreError: if the store refuses or is away.
        """
        import tensorstore

        spec = self._objects.array_store(self._inside)
        keys = self._objects.tried(
            f"listing {self._inside}",
            lambda context: tensorstore.KvStore.open(spec, context=context).result().list(),
        )
        names = [key.decode().removesuffix(_META) for key in keys if key.decode().endswith(_META)]

        def opened(name: str) -> tuple[str, Any]:
            of = {
                "driver": "zarr", "kvstore": {**spec, "path": f"{name}/"},
                "fill_missing_data_reads": False,  # else what is missing reads as zeros
            }  # fmt: skip
            return name, self._objects.tried(
                f"opening {name}", lambda context: tensorstore.open(of, open=True, context=context)
            )

        with ThreadPoolExecutor(_THREADS) as threads:
            self._opened = dict(threads.map(opened, set(names) & set(wanted)))
        return dict.fromkeys(names) | {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype.numpy_dtype) for name, array in self._opened.items()
        }

    def read(self, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Arrays that ``look`` has found, onto the shardings of ``wanted`` (without one, the first device)."""

        def one(name: str) -> tuple[str, jax.Array]:
            leaf = wanted[name]
            sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

            shape, values = tuple(leaf.shape), dict[str, Any]()
            shards = []
            for device, index in sharding.addressable_devices_indices_map(shape).items():
                if str(index) not in values:  # replicas are read once
                    values[str(index)] = self._read(name, index)
                shards.append(jax.device_put(values[str(index)], device))
            # Not jax.make_array_from_callback: it compares replicas over all processes, and threads come in any order.
            return name, jax.make_array_from_single_device_arrays(shape, sharding, shards)

        with ThreadPoolExecutor(_THREADS) as threads:
            return dict(threads.map(one, wanted))

    def _read(self, name: str, index: tuple[slice, ...] | None) -> Any:
        array = self._opened[name]
        part = array[index] if index else array
        return self._objects.tried(f"reading {name}", lambda context: part.read())
