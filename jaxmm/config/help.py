"""The keys of a config as ``--help`` lists them: by group, each with its value, what it may be, and what it is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxmm.config.hints import advice
from jaxmm.config.keys import KEYS
from jaxmm.errors import UserError, nearest

COLUMNS = 38, 32  # widths: of a key with its value, and of what it may be
GROUPS = {
    "run": "how long, in which rows, and from what",
    "data": "what is learnt from, and how it is read",
    "image": "what a picture becomes",
    "video": "how many frames a video becomes, and of which size",
    "audio": "what a recording becomes, and sizes of its tower; those of a folder in init_from count before them",
    "vision": "sizes of the tower; those of a folder in init_from count before them",
    "connector": "between tower and decoder; that of audio too",
    "decoder": "its sizes; those of a folder in init_from count before them",
    "optimizer": "how parameters are updated",
    "adapter": "low-rank updates that are learnt in the place of whole matrices",
    "preference": "how one answer is preferred to another, where an objective asks for it",
    "compute": "how a step is computed; the result is the same to rounding, which matmul=fp8 makes coarser",
    "mesh": "how devices are laid out",
    "eval": "held-out data",
    "checkpoint": "what is saved",
    "monitor": "what is looked at beside the loss",
    "log": "what is told",
}


def group_of(name: str) -> str:
    """The group of a key; those without one are the run's."""
    return name.partition(".")[0] if "." in name else "run"


def help_of_keys(values: Mapping[str, Any], only: str = "") -> str:
    """The list, a heading before each group.

    Args:
      values: by dotted keys; the default where one is lacking.
      only: a group, or one key.

    Raises:
      UserError: if ``only`` is neither.
    """
    only = only.removeprefix("config.").rstrip(".")
    keys = [name for name in KEYS if only in ("", group_of(name), name)]
    if not keys:
        guess = nearest(only, GROUPS) or advice(only)
        raise UserError(f"--help={only}: no such group of keys{guess}; the groups are {', '.join(GROUPS)}")
    lines: list[str] = []
    for group in dict.fromkeys(map(group_of, keys)):
        lines += ["", f"{group}: {GROUPS[group]}"]
        lines += [_line(name, values.get(name, KEYS[name].default)) for name in keys if group_of(name) == group]
    return "\n".join(lines[1:])


def _line(name: str, value: Any) -> str:
    first, second = COLUMNS
    return f"  {f'--config.{name}={value}':<{first}}  {KEYS[name].range():<{second}}  {KEYS[name].text}"
