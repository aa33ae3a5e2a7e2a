"""Where a config comes from: a Python file with a ``get_config()``, or the ``config.json`` of a run."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import jaxmm
from jaxmm.config.keys import KEYS, completed, flat, same_end
from jaxmm.errors import UserError, end_at_once, nearest

FILE_SECONDS = 60.0  # that a config file may take


def from_json(values: Mapping[str, Any]) -> ConfigDict:
    """A locked config from its JSON: lists become tuples."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return ConfigDict(plain(values)).lock()


def from_flat(values: Mapping[str, Any]) -> ConfigDict:
    """A locked config from its values by dotted keys."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *groups, last = name.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return ConfigDict(tree).lock()


def settled(values: Mapping[str, Any], where: str, *, unknown: bool = False) -> ConfigDict:
    """A whole config: every key of the table, and what is lacking its default.

    Args:
      where: they come from.
      unknown: whether keys that the table does not have are told and left out, as those of another version's run.

    Raises:
      UserError: for a value of another type, and a key that there is not.
    """
    found = flat(values)
    strange = [name for name in found if name not in KEYS]
    if strange and not unknown:
        inside = [name for name in KEYS if name.startswith(f"{strange[0]}.")]
        hint = (
            f"; it is a group of keys, such as '{inside[0]}'"
            if inside
            else same_end(strange[0]) or nearest(strange[0], KEYS)
        )
        raise UserError(f"{where}: unknown config key '{strange[0]}'{hint}")
    if strange:
        listed = ", ".join(f"{name}={found[name]!r}" for name in strange)
        print(f"{where} has keys that this version does not know, and does not follow: {listed}", file=sys.stderr)
    for name, key in KEYS.items():
        try:
            key.settled(found.get(name, key.default))
        except ValueError as error:
            raise UserError(f"{where}: {name} is {error}") from error
    whole = completed(found)
    return from_flat({name: whole[name] for name in KEYS})


def load_file(name: str) -> ConfigDict:
    """The config of a Python file. It may import what lies beside it.

    Raises:
      UserError: if there is none, or it does not give one.
    """
    path = Path(name)
    if not name:
        raise UserError("--config is missing: give a config file, such as --config=configs/base.py")
    if not _is_there(path):
        raise UserError(f"config file '{name}' does not exist{_where(path)}")
    if not path.is_file():
        raise UserError(f"config file '{name}' is a folder, or no file that has an end")
    space: dict[str, Any] = {"__name__": "config", "__file__": str(path)}
    try:
        with _beside(path), _time_limit(name):
            exec(compile(path.read_text(), str(path), "exec"), space)
            if not callable(space.get("get_config")):
                raise UserError(f"config file '{name}' defines no function get_config()")
            config = space["get_config"]()
            values = flat(config.to_dict()) if isinstance(config, ConfigDict) else {}  # a circle has no end
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"config file '{name}'{_line(error, path)}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"config file '{name}': get_config() returned {type(config).__name__}, not a ConfigDict")
    for key, value in values.items():
        finite = not isinstance(value, float) or math.isfinite(value)  # JSON has no other
        if not (finite and isinstance(value, bool | int | float | str | tuple)):
            kind = f"a {type(value).__name__}" if finite and value is not None else str(value)
            raise UserError(
                f"config file '{name}': {key} is {kind}; each key needs a bool, int, float, str or tuple "
                "(0 or '' mean automatic)"
            )
    return settled(values, f"config file '{name}'")


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Imports look beside the file first, as for a script."""
    beside, known = str(path.resolve().parent), set(sys.modules)
    sys.path.insert(0, beside)
    try:
        yield
    finally:
        if beside in sys.path:  # the file may have changed it
            sys.path.remove(beside)
        for module in set(sys.modules) - known:  # another config's neighbours may have the same names
            if (getattr(sys.modules[module], "__file__", None) or "").startswith(beside + os.sep):
                del sys.modules[module]


@contextmanager
def _time_limit(name: str) -> Iterator[None]:
    """Ends the process where the file does not come to its end."""
    line = f"config file '{name}' has not come to its end within {FILE_SECONDS:g} s"
    watch = threading.Timer(FILE_SECONDS, end_at_once, [line])
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _where(path: Path) -> str:
    """What to do about a config file that is not there."""
    if path.parent.is_dir() and (guess := nearest(path.name, [file.name for file in path.parent.glob("*.py")])):
        return guess
    root = Path(jaxmm.__file__).resolve().parent.parent
    if not path.is_absolute() and _is_there(root / path):
        return f" in {Path.cwd()}; it is {root / path}"
    if path.parts[:1] == ("configs",):
        return (
            f" in {Path.cwd()}; the configs come with the repository, not with the package: run this in a clone of it"
        )
    return f" in {Path.cwd()}" * (not path.is_absolute())


def _line(error: BaseException, path: Path) -> str:
    """Where in the config file an exception came from."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}" if error.filename == str(path) else ""
    line, trace = 0, error.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == str(path) else line
        trace = trace.tb_next
    return f", line {line}" if line else ""


def load_workdir(name: str) -> ConfigDict:
    """The config of a run.

    Raises:
      UserError: if there is no run, or its ``config.json`` cannot be read.
    """
    path = Path(name)
    if not name:
        raise UserError("--workdir is missing: give the folder of a run, such as --workdir=runs/base")
    if not path.is_dir():
        if _is_there(path):
            raise UserError(f"workdir '{name}' is a file: give the folder of a run, such as --workdir=runs/base")
        near = [str(folder) for folder in path.parent.iterdir() if folder.is_dir()] if path.parent.is_dir() else []
        raise UserError(f"workdir '{name}' does not exist{nearest(str(path), near)}")
    file = path / "config.json"
    if not file.is_file():
        raise UserError(f"workdir '{name}' holds no run: there is no config.json in it")
    try:
        values = json.loads(file.read_text())
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is no valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} is no JSON object but a {type(values).__name__}: it is no run's config")
    return settled(values, str(file), unknown=True)
