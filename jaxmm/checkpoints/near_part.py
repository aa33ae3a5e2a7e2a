"""One process's part of a near checkpoint, a folder on its node: its pieces of all arrays, as they lie in memory.

    part.json       what it is of, its record, and where each piece lies
    pieces.0 ...    bytes of pieces, one behind another
    checksums.json  of the files above, as shared checkpoints have it

It is read by the layout that wrote it alone, so it has neither an array store nor an index. A part holds all that its
process needs, replicas included: it goes on from its own part without asking anybody.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.checkpoints import checksums
from jaxmm.checkpoints.checksums import RECORD, Entry
from jaxmm.checkpoints.pieces import Piece
from jaxmm.json_text import parse_json
from jaxmm.machine import cores

HEAD, FORMAT = "part.json", 1
_FILE_BYTES = 1 << 28  # about, of a file of pieces
_THREADS = min(4, cores())


class Key(NamedTuple):
    """Which checkpoint a part is of. One that is saved again by a later start is another one."""

    step: int
    start: int


class Head(NamedTuple):
    """What a part says of itself.

    Attributes:
      run: number of the run's life, in which steps are done once.
      step, start: the checkpoint, and the number of the start that saved it.
      place: in the mesh, of the process that saved it.
      processes: how many there were.
      mesh: sizes of the mesh's axes.
      dealt: the place of the process of each of its devices.
      groups: the places of the processes that hold a piece, for all pieces.
      record: of the run, as ``Record.to_json`` has it.
    """

    run: int
    step: int
    start: int
    place: int
    processes: int
    mesh: dict[str, int]
    dealt: list[int]
    groups: list[list[int]]
    record: dict[str, Any]

    @property
    def key(self) -> Key:
        return Key(self.step, self.start)

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.step}.{self.start}.{self.place}"


class Part(NamedTuple):
    """A part that lies in a folder. ``arrays``: dtype, shape, and by piece the file and the place in it."""

    folder: Path
    head: Head
    arrays: dict[str, tuple[str, tuple[int, ...], dict[Piece, tuple[int, int]]]]

    @classmethod
    def read(cls, folder: Path) -> Part | None:
        """None where what it says of itself cannot be read: it was cut short, or its bytes have changed."""
        try:
            text = parse_json((folder / HEAD).read_bytes())
            if text["format"] != FORMAT:
                return None
            arrays = {
                name: (dtype, tuple(shape), {tuple(map(tuple, piece)): tuple(place) for piece, *place in pieces})
                for name, (dtype, shape, pieces) in text["arrays"].items()
            }
            return cls(folder, Head(**text["head"]), arrays)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays by name, whole."""
        return {name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for name, (dtype, shape, _) in self.arrays.items()}

    def piece(self, name: str, piece: Piece) -> np.ndarray:
        """Raises OSError where its file cannot be read."""
        dtype, _, places = self.arrays[name]
        file, offset = places[piece]
        shape = [end - begin for begin, end in piece]
        count = int(np.prod(shape)) * jnp.dtype(dtype).itemsize
        data = np.fromfile(self.folder / _name(file), np.uint8, count, offset=offset)
        if len(data) < count:
            raise OSError(f"{self.folder / _name(file)} is cut short")
        return data.view(jnp.dtype(dtype)).reshape(shape)


def write(folder: Path, head: Head, arrays: Mapping[str, tuple[Any, Mapping[Piece, np.ndarray]]]) -> None:
    """Writes a part into ``folder``, which it makes; it counts once it is there.

    Not synced: bytes that a machine's crash takes from it are missed by their checksums.

    Args:
      arrays: by name, each with its shape and dtype and with this process's pieces.

    Raises:
      OSError: nothing is left of it then.
    """
    bins: list[list[np.ndarray]] = [[]]
    size, listed = 0, {}
    for name, (leaf, pieces) in arrays.items():
        places = []
        for piece, values in pieces.items():
            if size >= _FILE_BYTES:
                bins.append([])
                size = 0
            places.append([piece, len(bins) - 1, size])
            bins[-1].append(values)
            size += values.nbytes
        listed[name] = [str(leaf.dtype), list(leaf.shape), places]
    half = folder.with_name(f".{folder.name}.half")
    try:
        half.mkdir(parents=True)
        text = json.dumps({"format": FORMAT, "head": head._asdict(), "arrays": listed}).encode()
        with ThreadPoolExecutor(_THREADS) as threads:
            written = threads.map(lambda file: _write(half / _name(file), bins[file]), range(len(bins)))
            entries = {_name(file): entry for file, entry in enumerate(written)}
        entries[HEAD] = _write(half / HEAD, [np.frombuffer(text, np.uint8)])
        (half / RECORD).write_text(checksums.record_text(entries))
        half.rename(folder)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise


def _write(path: Path, arrays: Iterable[np.ndarray]) -> Entry:
    size, crc32 = 0, 0
    with path.open("xb") as file:
        for array in arrays:
            view = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            file.write(view)
            size, crc32 = size + len(view), zlib.crc32(view, crc32)
    return Entry(size, crc32)


def _name(file: int) -> str:
    return f"pieces.{file}"
