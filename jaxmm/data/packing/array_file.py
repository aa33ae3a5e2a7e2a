"""Arrays on disk with a checksum behind them: a file that was cut, or changed, is seen before it is used."""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxmm.atomic import published
from jaxmm.data.prepare.prepared import file_checksum
from jaxmm.errors import UserError

CHECKSUM = 4  # bytes


class _Growing:
    """A file of an array that is written block by block; ``shape``: of the whole."""

    def __init__(self, file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]):
        self._file, self._checksum = file, 0
        header = io.BytesIO()
        described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, described)
        self._write(header.getvalue())

    def add(self, block: np.ndarray) -> None:
        self._write(block.tobytes())

    def end(self) -> None:
        self._file.write(self._checksum.to_bytes(CHECKSUM, "little"))

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._checksum = zlib.crc32(content, self._checksum)


def is_whole(file: Path) -> bool:
    """Whether a file exists and is complete, as ``save_arrays`` wrote it."""
    try:
        size = file.stat().st_size - CHECKSUM
        with open(file, "rb") as opened:
            opened.seek(size)
            return file_checksum(file, size) == int.from_bytes(opened.read(), "little")
    except (OSError, ValueError):
        return False


def save_arrays(
    files: Sequence[Path], kinds: Sequence[tuple[np.dtype, tuple[int, ...]]], blocks: Iterable[Sequence[np.ndarray]]
) -> None:
    """Writes files that are complete or not there; two processes that write them write the same.

    Args:
      kinds: dtype and shape of each.
      blocks: the next part of each, along its first dim, again and again: never more than that is in memory.

    Raises:
      UserError: if one cannot be written.
    """
    try:
        with contextlib.ExitStack() as stack:
            places = [stack.enter_context(published(file)) for file in files]
            opened = [stack.enter_context(open(place, "wb")) for place in places]
            growing = [_Growing(file, *kind) for file, kind in zip(opened, kinds, strict=True)]
            for parts in blocks:
                for one, part in zip(growing, parts, strict=True):
                    one.add(part)
            for one in growing:
                one.end()
    except OSError as error:
        raise UserError(f"{files[0]} could not be written: {error}") from error


def save_array(file: Path, array: np.ndarray) -> None:
    """Writes one array as ``save_arrays`` does."""
    save_arrays([file], [(array.dtype, array.shape)], [[array]])
