"""Adapters of the tables over the vocabulary as PEFT has them.

That of the embedding has names of its own, that of the projection those of a Linear, from the width to the vocabulary.
Ours is in both cases a map from the vocabulary: so the projection's factors change places. A table that is both is two
modules there, whose adapters are to be the same (``ensure_weight_tying``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np

from jaxmm.errors import UserError
from jaxmm.hf import names, tensor_files
from jaxmm.hf.map_names import WEIGHT, NamedMap

INTO, OUT = "lora_embedding_A", "lora_embedding_B"  # of the embedding
BENEATH = ".base_layer.weight"  # PEFT saves the table itself beside its adapter
EMBEDDING, HEAD = (name.removesuffix(WEIGHT) for name in (names.EMBEDDING, names.HEAD))  # modules, in common spelling
ROWS = 4096  # that are compared at a time
T = TypeVar("T")


def is_table(one: NamedMap) -> bool:
    return one.common in (EMBEDDING, HEAD)


def turned(into: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors (rank, inputs) and (outputs, rank) of a Linear as those of its transpose; the inverse of itself."""
    return out.T, into.T


def of_both(stacks: list[tuple[NamedMap, T]], are_equal: bool, folder: Path) -> list[tuple[NamedMap, T]]:
    """The adapters of a model whose embedding is its projection, with one for both; ``are_equal``: whether they are.

    Raises:
      UserError: where they are two.
    """
    tables = [one for one, _ in stacks if is_table(one)]
    if len(tables) == 1:
        raise UserError(
            f"{folder} has an adapter of {tables[0].name} alone, which is one table with "
            f"{'the projection' if tables[0].common == EMBEDDING else 'the embedding'} in this model: adapt both, with "
            f"ensure_weight_tying"
        )
    if tables and not are_equal:
        raise UserError(
            f"{folder}: the adapters of {tables[0].name} and of {tables[1].name} differ, and both are of one table in "
            f"this model: train them with ensure_weight_tying"
        )
    return [(one, of_layers) for one, of_layers in stacks if one.common != HEAD]


def check_beneath(name: str, saved: tensor_files.Checkpoint, base: tensor_files.Checkpoint, module: str) -> None:
    """Compares a table that PEFT saved beside its adapter with that of the model beneath.

    Raises:
      UserError: where they differ, as of an embedding that was resized or trained.
    """
    spelt = {names.common_name(own): own for own in base.entries}
    common = module if module in spelt else names.EMBEDDING  # of one table for both a release has that alone
    if common not in spelt:
        raise UserError(f"{saved.folder}: {name}: the model beneath has no such table in {base.folder}")
    ours, theirs = saved.mapped(name), base.mapped(spelt[common])
    is_same = ours.shape == theirs.shape and all(
        np.array_equal(ours[at : at + ROWS].astype(np.float32), theirs[at : at + ROWS].astype(np.float32))
        for at in range(0, len(ours), ROWS)
    )
    if not is_same:
        raise UserError(
            f"{saved.folder}: {name} of shape {ours.shape} is not that of the model beneath in {base.folder}, of shape "
            f"{theirs.shape}: its vocabulary was resized or trained: merge the adapters there, and begin with that"
        )
