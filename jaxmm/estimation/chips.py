"""What accelerators can do at most, as their makers publish it: memory, links, and how long a collective takes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxmm.estimation.collectives import BETWEEN_SLICES
from jaxmm.training import throughput

REDUCED = ("all-reduce",)  # a sum is gathered after it is scattered: twice the bytes


class Chip(NamedTuple):
    """Rates of a chip in bytes a second; its FLOP/s are ``throughput.peak_flops``.

    Attributes:
      memory: of its large memory.
      link: of a link to a neighbour, in one direction. Of GPUs, of all of a GPU's to its node.
      network: out of the slice, or the node, in one direction; 0 where it is not published.
      around: a side of a slice of that many chips, or a multiple of it, is a ring; others are lines.
    """

    memory: float
    link: float
    network: float
    around: int


# cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e. Memory: "HBM bandwidth per chip". Links: "Bidirectional inter-chip
# interconnect (ICI) bandwidth (per chip)" over its ports (4 of v5e and v6e, 6 of v4 and v5p) and two directions; of v4,
# 50 GB/s by Jouppi et al., 2023 (arXiv:2304.01433). Network: "Data center network bandwidth", of v5e and v6e a pod's
# over its 256 chips, of v5p a chip's. Rings: the sides of 16 of a pod of v5e or v6e, cubes of 4x4x4 of v4 and v5p.
TPUS = {
    "TPU v4": Chip(1200e9, 50e9, 0.0, 4),
    "TPU v5 lite": Chip(819e9, 50e9, 3.125e9, 16),
    "TPU v5": Chip(2765e9, 100e9, 6.25e9, 4),
    "TPU v6 lite": Chip(1638e9, 100e9, 12.5e9, 16),
}
# NVIDIA's data sheets: memory; half of NVLink's figure, which is of both directions; a DGX's network card for each GPU.
GPUS = {
    "NVIDIA A100": Chip(2039e9, 300e9, 25e9, 1),
    "NVIDIA H100": Chip(3350e9, 450e9, 50e9, 1),
    "NVIDIA H200": Chip(4800e9, 450e9, 50e9, 1),
    "NVIDIA B200": Chip(8000e9, 900e9, 50e9, 1),
}
NODE = 8  # GPUs that NVLink joins


class Machine(NamedTuple):
    """The devices of a mesh, with the peaks of one.

    Attributes:
      flops: dense bf16 FLOP/s.
      memory: bytes a second.
      sides: of a slice, in chips; () where devices have no place in one.
    """

    kind: str
    flops: float
    memory: float
    chip: Chip
    mesh: Mesh
    sides: tuple[int, ...]

    def seconds(self, kind: str, size: float, axes: Sequence[str]) -> float:
        """The least time of a collective, with all links that its axes span busy in both directions; infinite where the
        rate is not published.

        Args:
          size: bytes that it gives a device.
        """
        if kind.endswith(BETWEEN_SLICES):
            return size / self.chip.network if self.chip.network else math.inf
        count = math.prod(self.mesh.shape[axis] for axis in axes if axis in self.mesh.shape)
        return moved(kind, size, count) / self.rate(axes)

    def rate(self, axes: Sequence[str]) -> float:
        """Bytes a second into a device from the others along these axes.

        A ring has two links into each chip; at the end of a line there is one, and a pair of chips has one. What GPUs
        of a node all gather comes into it once: each one's network brings a part, and the node's links the rest.
        """
        if not self.sides:
            nodes = Counter(device.id // NODE for device in self._line(axes))
            shared = max(nodes.values()) * self.chip.network
            return self.chip.link if len(nodes) == 1 else min(self.chip.link, shared)
        links = 0
        for side, reached in zip(self.sides, self._reached(axes), strict=True):
            is_ring = reached == side > 2 and side % self.chip.around == 0
            links += (reached > 1) * (2 if is_ring else 1)
        return max(links, 1) * self.chip.link

    def _line(self, axes: Sequence[str]) -> list[Any]:
        """The devices that the axes reach from the first one."""
        index = tuple(slice(None) if axis in axes else 0 for axis in self.mesh.axis_names)
        return list(np.asarray(self.mesh.devices[index], dtype=object).flat)

    def _reached(self, axes: Sequence[str]) -> list[int]:
        """How many places along each side of the slice the axes reach from the first device."""
        first = self.mesh.devices[(0,) * self.mesh.devices.ndim]
        line = [device for device in self._line(axes) if _slice_of(device) == _slice_of(first)]
        return [len({device.coords[dim] for device in line}) for dim in range(len(self.sides))]


def moved(kind: str, size: float, count: int) -> float:
    """Bytes that each of ``count`` devices must receive for a collective that gives ``size`` bytes."""
    if kind == "reduce-scatter":
        return size * (count - 1)
    if kind == "collective-permute":
        return size
    return size * (count - 1) / count * (2 if kind in REDUCED else 1)


def machine_of(kind: str, mesh: Mesh) -> Machine | None:
    """The machine that a mesh's devices are, or are taken to be; None where its peaks are not known.

    Args:
      kind: as ``jax.Device.device_kind``.
    """
    chip, flops = TPUS.get(kind) or GPUS.get(kind), throughput.peak_flops(kind)
    if chip is None or flops is None:
        return None
    devices: list[Any] = list(mesh.devices.flat)
    if kind in GPUS:
        return Machine(kind, flops, chip.memory, chip, mesh, ())
    places = Counter((_slice_of(device), tuple(device.coords)) for device in devices)
    cores = max(places.values())  # that share a chip
    sides = tuple(1 + max(device.coords[dim] for device in devices) for dim in range(len(devices[0].coords)))
    return Machine(kind, flops / cores, chip.memory / cores, chip, mesh, sides)


def _slice_of(device: Any) -> int:
    return getattr(device, "slice_index", 0) or 0
