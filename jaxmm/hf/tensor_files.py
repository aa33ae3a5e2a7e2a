"""Safetensors files: lists the tensors in a folder, memory-maps them one at a time, and writes new files.

Pickled weights are never opened: they may run code.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jaxmm.errors import UserError
from jaxmm.json_text import parse_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}  # dtypes that float32 holds exactly
COMPARED_ROWS = 4096


class Entry(NamedTuple):
    """Where a tensor is, its shape and its dtype."""

    file: str
    shape: tuple[int, ...]
    dtype: str
    offset: int  # in the file, in bytes


class Checkpoint:
    """The tensors of a folder, by name.

    A file is mapped only while one of its tensors is read: pages read through a mapping count as the process's memory.
    """

    def __init__(self, folder: Path, files: Sequence[str] = ()):
        """
        Args:
          files: of the folder; none are those of a model.

        Raises:
          UserError: if there are no safetensors, or they are broken, or two files have the same tensor.
        """
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        for file in files or tensor_file_names(folder):
            for name, entry in self._entries(file):
                if name in self.entries:
                    raise UserError(f"tensor {name} is in {self.entries[name].file} and in {file} of {folder}")
                self.entries[name] = entry

    def _entries(self, file: str) -> list[tuple[str, Entry]]:
        try:
            with opened(self.folder / file):  # this checks the header against the file
                pass
            with open(self.folder / file, "rb") as raw:
                length = int.from_bytes(raw.read(8), "little")
                header = parse_json(raw.read(length))
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
        """Whether float32 holds a tensor exactly."""
        return self.entries[name].dtype in DTYPES

    def are_equal(self, one: str, other: str) -> bool:
        """Whether two tensors are equal bit for bit; only a piece of each is in memory at a time."""
        a, b = self.entries[one], self.entries[other]
        if a[1:3] != b[1:3] or not self.is_held(one):
            return False
        return all(
            self.mapped(one)[i : i + COMPARED_ROWS].tobytes() == self.mapped(other)[i : i + COMPARED_ROWS].tobytes()
            for i in range(0, a.shape[0], COMPARED_ROWS)
        )

    def mapped(self, name: str) -> np.ndarray:
        """A memory map of a tensor that ``is_held``, in its own dtype; pages that are read stay while the map lives."""
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
    os.umask(mask := os.umask(0))  # the library makes files that only their owner can read, whatever the umask says
    file.chmod(0o666 & ~mask)


def tensor_file_names(folder: Path) -> list[str]:
    """Returns the names of the folder's safetensors files. Raises UserError if there are none, or only pickles."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    index = folder / INDEX
    if index.exists():
        try:
            files = sorted(set(parse_json(index.read_text())["weight_map"].values()))
            outside = [file for file in files if Path(file).is_absolute() or ".." in Path(file).parts]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} is not a whole index of weights: download it again") from error
        if outside:
            raise UserError(f"{index} names {outside[0]}, which is not a file of this folder")
        pickled = [file for file in files if any(fnmatch.fnmatch(file, pattern) for pattern in PICKLED)]
        if pickled:
            raise pickled_error(folder, pickled[0])
        return files
    if (folder / SINGLE).exists():
        return [SINGLE]
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        raise pickled_error(folder, pickled[0])
    has = f"{folder} has no weights: there is neither {SINGLE} nor {INDEX}"
    if shards := sorted(path.name for path in folder.glob("*.safetensors")):
        raise UserError(f"{has}, though there is {shards[0]}: download the index too")
    if others := sorted(path.name for path in folder.glob("*.gguf")):
        raise UserError(f"{has}, and {others[0]} is not read: take the release with safetensors")
    raise UserError(has)


def pickled_error(folder: Path, file: str, instead: str = SINGLE) -> UserError:
    """The error of a pickle, for which there may be safetensors of the name ``instead`` elsewhere."""
    return UserError(
        f"{folder} has its weights as {file}, a pickle, which may run code and is not opened: "
        f"take the release with {instead}, or convert it"
    )
