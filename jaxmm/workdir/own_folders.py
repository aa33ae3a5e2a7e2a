"""Folders that a run makes in its workdir. A mark in each tells them from a user's, which are never removed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from jaxmm.errors import UserError

MARK = ".of_this_run"  # an empty file in each of them


def refuse_foreign(folders: Sequence[Path], named: Sequence[tuple[str, Path]], workdir: Path) -> None:
    """Stops a run that begins where its own files would take the place of others, before anything is written.

    Args:
      folders: that it will make.
      named: the folders that the config names, each with its key.

    Raises:
      UserError: naming what is in the way.
    """
    for key, folder in named:
        place = folder.resolve()
        if place == workdir.resolve() or any(place.is_relative_to(made.resolve()) for made in folders):
            raise UserError(
                f"{key} names {folder}, where the run would keep files of its own: nothing was changed; move what is "
                f"named elsewhere, or give another --workdir"
            )
    for folder in folders:
        _refuse(folder)


def make(folder: Path) -> None:
    """Makes it empty, in place of what a start that never came to a save has left.

    Raises:
      UserError: if it holds what no start has written.
    """
    _refuse(folder)
    remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def remove(folder: Path) -> None:
    """Removes it, if a start has made it."""
    if not folder.is_symlink() and (folder / MARK).is_file():
        shutil.rmtree(folder, ignore_errors=True)


def _refuse(folder: Path) -> None:
    is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if folder.is_symlink() or not (is_empty or (folder / MARK).is_file()):
        raise UserError(
            f"{folder} is where the run keeps files of its own, and holds others: nothing was changed; move them, or "
            f"give another --workdir"
        )
