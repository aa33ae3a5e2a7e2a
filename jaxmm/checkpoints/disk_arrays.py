"""The arrays of a checkpoint that lies whole on a disk, read by Orbax onto any mesh."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmm.checkpoints.checksums import STATE
from jaxmm.checkpoints.manager import restore_args
from jaxmm.checkpoints.named import differences, is_within
from jaxmm.errors import UserError


def read(path: Path, wanted: Mapping[str, Any], key: str, told: str) -> Mapping[str, Any]:
    """The arrays of a checkpoint by name.

    Args:
      path: of the checkpoint.
      wanted: by name, with shapes, dtypes and shardings.
      key: of the part of the state that they are the whole of; '' for all.
      told: the checkpoint's name, for errors.

    Raises:
      UserError: if names, shapes or dtypes differ, or it cannot be read.
    """
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as reader:
        saved = reader.metadata(path / STATE).item_metadata.tree
        # Orbax itself would cast, crop or pad an array that differs.
        check_fit({name: leaf for name, leaf in saved.items() if is_within(name, key)}, wanted, told)
        try:
            return reader.restore(
                path / STATE,
                args=ocp.args.PyTreeRestore(
                    item=wanted,
                    restore_args={name: restore_args(leaf) for name, leaf in wanted.items()},
                    partial_restore=True,
                ),
            )
        except Exception as error:
            cause = error.__cause__ or error  # Orbax wraps TensorStore's in a bare Exception
            if not isinstance(cause, OSError | ValueError):
                raise
            raise UserError(
                f"checkpoint {told} cannot be read ({first_line(cause)}); remove it to go on from an older one"
            ) from error


def check_fit(saved: Mapping[str, Any], wanted: Mapping[str, Any], told: str) -> None:
    """Raises UserError if names, shapes or dtypes of what is saved differ from those of what is wanted."""
    if differing := differences(saved, wanted):
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise UserError(
            f"checkpoint {told} does not fit this run: {differing[0]}{more}; "
            "use the config it was saved with, or another workdir"
        )


def first_line(error: BaseException) -> str:
    """What an error of Orbax or TensorStore says, in a line of at most 240 characters."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 240 else f"{line[:100]} ... {line[-130:]}"  # the system's reason comes last
