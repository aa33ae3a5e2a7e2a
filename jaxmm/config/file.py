"""Where a config comes from: a Python file with a ``get_config()``, or the ``config.json`` of a run."""

from __future__ import annotations

import math
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxmm.config import packaged
from jaxmm.config.hints import advice
from jaxmm.config.key import KINDS
from jaxmm.config.keys import KEYS, completed, flat
from jaxmm.config.source_lines import line_of
from jaxmm.errors import UserError, end_at_once, nearest
from jaxmm.json_text import parse_json

FILE_SECONDS = 60.0  # that a config file may take
# What a ConfigDict says of a value of another type, and of a key that a locked one does not have.
_ANOTHER_TYPE = re.compile(
    r"Could not override field '(\w+)'.*?\. (.*) is of original type <class '(\w+)'>.* type <class '(\w+)'>", re.S
)
_NO_SUCH_KEY = re.compile(r'Key "(\w+)" does not exist and cannot be added')


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


def settled(
    values: Mapping[str, Any], where: str, *, unknown: bool = False, source: str = ""
) -> ConfigDict:  # fmt: skip
    """A whole config: every key of the table, and what is lacking its default.

    Args:
      where: they come from.
      unknown: whether keys that the table does not have are told and left out, as those of another version's run.
      source: the Python that set them, for the line in which a wrong one stands.

    Raises:
      UserError: for a value of another type, and a key that there is not.
    """
    given = flat(values)

    def place(name: str) -> str:
        line = line_of(source, name) if source else 0
        return f"{where}, line {line}" if line else where

    strange = [name for name in given if name not in KEYS]
    if strange and not unknown:
        inside = [name for name in KEYS if name.startswith(f"{strange[0]}.")]
        hint = f"; it is a group of keys, such as '{inside[0]}'" if inside else advice(strange[0])
        raise UserError(f"{place(strange[0])}: unknown config key '{strange[0]}'{hint}")
    if strange:
        listed = ", ".join(f"{name}={given[name]!r}" for name in strange)
        print(f"{where} has keys that this version does not know, and does not follow: {listed}", file=sys.stderr)
    for name, key in KEYS.items():
        try:
            key.settled(given.get(name, key.default))
        except ValueError as error:
            raise UserError(f"{place(name)}: {name} is {error}") from error
    whole = completed(given)
    return from_flat({name: whole[name] for name in KEYS})


def find_file(name: str) -> Path:
    """The file that ``--config`` names: a path, or the name of a config that comes with jaxmm.

    Raises:
      UserError: if there is none.
    """
    if not name:
        raise UserError("--config is missing: give a config file, or one that comes with jaxmm, such as --config=base")
    path = Path(name)
    is_name = path.name == name and not path.suffix
    if is_name and (shipped := packaged.path_of(name)):
        return shipped
    if not _is_there(path):
        if is_name:
            guess = nearest(name, packaged.names())
            raise UserError(
                f"no config '{name}' comes with jaxmm{guess}; there are {', '.join(packaged.names())}; of a file of "
                f"yours give the path, such as {name[:40]}.py"
            )
        raise UserError(f"config file '{name}' does not exist{_where(path)}")
    if not path.is_file():
        raise UserError(f"config file '{name}' is a folder, or no file that has an end")
    return path


def load_file(name: str) -> ConfigDict:
    """The config of a Python file. It may import what lies beside it, and the configs that come with jaxmm.

    Args:
      name: its path, or the name of one that comes with jaxmm: "base".

    Raises:
      UserError: if there is none, or it does not give one.
    """
    path = find_file(name)
    space: dict[str, Any] = {"__name__": "config", "__file__": str(path)}
    source = ""
    try:
        with _beside(path), packaged.importable(), _time_limit(name):
            source = path.read_text()
            exec(compile(source, str(path), "exec"), space)
            if not callable(space.get("get_config")):
                raise UserError(f"config file '{name}' defines no function get_config()")
            config = space["get_config"]()
            values = flat(config.to_dict()) if isinstance(config, ConfigDict) else {}  # a circle has no end
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"config file '{name}'{_line(error, path)}: {_told(error)}") from error
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
    return settled(values, f"config file '{name}'", source=source)


def _told(error: BaseException) -> str:
    """What went wrong in a config file, in our words where it is a key."""
    if isinstance(error, TypeError) and (match := _ANOTHER_TYPE.search(str(error))):
        name, value, kind, wanted = match.groups()
        value = repr(value) if kind == "str" else value
        kinds = {one.__name__: words for one, words in KINDS.items()}
        return f"{name} is {value}, not {kinds.get(wanted, wanted)}"
    if isinstance(error, AttributeError) and (match := _NO_SUCH_KEY.search(str(error))):
        return f"unknown config key '{match[1]}'{advice(match[1])}"
    return f"{type(error).__name__}: {error}"


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
    inside = f" in {Path.cwd()}" * (not path.is_absolute())
    if path.stem in packaged.names():
        return f"{inside}; the one that comes with jaxmm is --config={path.stem}"
    if path.parts[:1] == ("configs",):
        return f"{inside}; those that come with jaxmm need no path: {', '.join(packaged.names())}"
    return inside


def _line(error: BaseException, path: Path) -> str:
    """Where in the config file an exception came from."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}" if error.filename == str(path) else ""
    line, trace = 0, error.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == str(path) else line
        trace = trace.tb_next
    return f", line {line}" if line else ""


def run_config(name: str) -> dict[str, Any]:
    """What a run's ``config.json`` holds, as it is; its keys may be those of another version.

    Args:
      name: the run's workdir.

    Raises:
      UserError: if there is no run, or the file cannot be read.
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
        values = parse_json(file.read_text())
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file} is no valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} is no JSON object but a {type(values).__name__}: it is no run's config")
    return values


def load_workdir(name: str) -> ConfigDict:
    """The config of a run.

    Raises:
      UserError: if there is no run, or its ``config.json`` cannot be read.
    """
    return settled(run_config(name), str(Path(name) / "config.json"), unknown=True)


def load_weights_of(name: str) -> ConfigDict:
    """The config of a run whose weights alone are asked for, maybe on another machine: attention is what is best here.

    Raises:
      UserError: as ``load_workdir``.
    """
    config = load_workdir(name)
    config.compute.attention = ""
    return config
