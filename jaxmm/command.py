"""What all commands share: flags and the config from the command line, and one line for each of the user's mistakes.

A small parser of our own: ml_collections' `config_flags` ends in a traceback at an unknown key or a mistyped value. The
config stays an `ml_collections.ConfigDict`, its file stays Python with a `get_config()`, and `--config.KEY=VALUE` means
what it means there.
"""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import sys
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from ml_collections import ConfigDict

import jaxmm
from jaxmm.errors import StrandedError, UserError, end_at_once, error_line, nearest, refusal
from jaxmm.workdir import local

Value = bool | int | float | str | tuple[Any, ...]
Flags = Mapping[str, tuple[Value, str]]  # name -> default, which gives the type, and what it is for

_KINDS = {bool: "true or false", int: "an integer", float: "a finite number", str: "a string"}


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a command on the process's arguments and exits: main's status, or 1 after one line for a UserError."""
    gc.freeze()  # what is imported stays: collections need not look at it
    gc.enable()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ended_on_interrupt until here
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status = main(sys.argv[1:])
    except StrandedError as error:
        end_at_once(str(error))
    except UserError as error:
        print(error_line(error), file=sys.stderr, flush=True)
        status = 1
    except OSError as error:
        if (refused := refusal(error)) is None:
            raise
        print(error_line(refused), file=sys.stderr, flush=True)
        status = 1
    except KeyboardInterrupt:  # train handles its own
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)


def parse(
    argv: Sequence[str], flags: Flags, config: Literal["file", "workdir", "none"] = "file", about: str = ""
) -> types.SimpleNamespace:
    """Parses ``--name=value`` (or ``--name value``; ``--name`` alone sets a bool).

    Args:
      argv: without the program's name.
      flags: the command's own.
      config: where the config comes from: the file in ``--config``; ``config.json`` in ``--workdir``, one of ``flags``;
        or nowhere. ``--config.KEY=VALUE`` changes one of its keys.
      about: what the command does, for ``--help``.

    Returns:
      A namespace of the flags, ``config`` (a locked ConfigDict) and ``config_name`` (its file's name without ``.py``).

    Raises:
      UserError: for whatever is wrong with the arguments, the config or its values.
      SystemExit: with 0 after ``--help``.
    """
    values: dict[str, Any] = {name: default for name, (default, _) in flags.items()}
    origin, unknown, wants_help = "", "", False
    changes: list[tuple[str, str | None]] = []
    for name, text in _split(argv, flags):
        if name in flags:
            values[name] = _read(f"--{name}", text, flags[name][0])
        elif name == "config" and config == "file":
            origin = _read("--config", text, "")
        elif name.startswith("config.") and config != "none":
            changes.append((name.removeprefix("config."), text))
        elif name in ("help", "helpfull", "h"):
            wants_help = True
        else:
            unknown = unknown or name
    if "workdir" in values:
        values["workdir"] = local("--workdir", values["workdir"])
    loaded = ConfigDict()
    try:
        if config != "none":
            loaded = _load_file(origin) if config == "file" else _load_workdir(values["workdir"])
    except UserError:
        if not (unknown or wants_help):
            raise
    if wants_help:
        print(_help(flags, config, about, _leaves(loaded)))
        sys.exit(0)
    if unknown:
        raise _unknown_flag(unknown, flags, config, loaded)
    for key, text in changes:
        _change(loaded, key, text)
    if config != "none":
        values |= {"config": loaded, "config_name": Path(origin).stem}
    return types.SimpleNamespace(**values)


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as nested plain values that JSON holds: tuples become lists."""
    return json.loads(json.dumps(config.to_dict(), allow_nan=False))


def from_json(values: Mapping[str, Any]) -> ConfigDict:
    """A locked config from what ``to_json`` gave: lists become tuples."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return ConfigDict(plain(values)).lock()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], free: Collection[str] = ()) -> list[str]:
    """The keys in which two configs (or their JSON) differ, as ``"data.path: 'x' -> 'y'"``.

    Args:
      free: keys and groups that may differ: "steps", "eval".
    """
    a, b = _leaves(old), _leaves(new)

    def told(key: str, side: Mapping[str, Any]) -> str:
        return repr(side[key]) if key in side else "(absent)"

    return [
        f"{key}: {told(key, a)} -> {told(key, b)}"
        for key in dict.fromkeys((*a, *b))
        if told(key, a) != told(key, b) and not any(key == name or key.startswith(f"{name}.") for name in free)
    ]


def _split(argv: Sequence[str], flags: Flags) -> list[tuple[str, str | None]]:
    pairs: list[tuple[str, str | None]] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or not word.strip("-"):
            raise UserError(f"unexpected argument '{word}': arguments look like --name=value")
        name, equals, value = word.lstrip("-").partition("=")
        if equals:
            pairs.append((name, value))
        elif rest and not rest[0].startswith("--") and not (name in flags and isinstance(flags[name][0], bool)):
            pairs.append((name, rest.pop(0)))
        else:
            pairs.append((name, None))
    return pairs


def _unknown_flag(name: str, flags: Flags, config: str, loaded: ConfigDict) -> UserError:
    if name == "config":
        own = " (it reads the run's own; --config.KEY=VALUE changes a key)" if config == "workdir" else ""
        return UserError(f"this command takes no --config{own}")
    known = [*flags, *["config"] * (config == "file"), *(f"config.{key}" for key in _leaves(loaded))]
    guess = nearest(f"--{name}", [f"--{one}" for one in known])
    return UserError(f"unknown flag --{name}{guess or '; --help lists the flags'}")


def _read(name: str, text: str | None, like: Value) -> Any:
    """``text`` as the type of ``like``."""
    if text is None:
        if isinstance(like, bool):
            return True
        raise UserError(f"{name} needs a value: {name}=VALUE")
    if isinstance(like, tuple):
        words = [word.strip() for word in text.strip("()[] ").split(",")]
        return tuple(_read(name, word, like[0] if like else "") for word in words if word)
    try:
        if isinstance(like, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(like, str):
            return text
        number = float(text)
        if not math.isfinite(number) or (isinstance(like, int) and not number.is_integer()):
            raise ValueError
        if isinstance(like, float):
            return number
        return int(number) if "e" in text.lower() or "." in text else int(text)  # a float rounds long integers
    except (ValueError, KeyError):
        raise UserError(f"{name}: '{text}' is not {_KINDS[type(like)]} (default: {like})") from None


def _change(config: ConfigDict, key: str, text: str | None) -> None:
    *groups, last = key.split(".")
    group, inside = config, ""
    while groups and isinstance(group.get(groups[0]), ConfigDict):
        group, inside = group[groups[0]], f"{inside}{groups.pop(0)}."
    if groups or last not in group:
        keys = _leaves(config)
        guess = nearest(key, keys) if groups else nearest(last, group).replace("'", f"'{inside}", 1)
        guess = guess or next((f"; did you mean '{one}'?" for one in keys if one.endswith(f".{last}")), "")
        listed = f"; {f'config.{inside}'[:-1]} has {', '.join(group)}"
        raise UserError(f"unknown config key '{key}'{guess or listed}")
    if isinstance(group[last], ConfigDict):
        keys_inside = ", ".join(f"--config.{key}.{name}" for name in group[last])
        raise UserError(f"config.{key} is a group of keys; set one of {keys_inside}")
    group[last] = _read(f"config.{key}", text, group[last])


def _leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values by their dotted keys; lists, which JSON has for tuples, as tuples."""
    found: dict[str, Any] = {}
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict | Mapping):
            found |= _leaves(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = tuple(value) if isinstance(value, list) else value
    return found


def _load_file(name: str) -> ConfigDict:
    path = Path(name)
    if not name:
        raise UserError("--config is missing: give a config file, such as --config=configs/base.py")
    if not path.is_file():
        raise UserError(f"config file '{name}' does not exist{_where(path)}")
    # As for a script, so that one config can import another that lies beside it.
    beside, known = str(path.resolve().parent), set(sys.modules)
    sys.path.insert(0, beside)
    space: dict[str, Any] = {"__name__": "config", "__file__": str(path)}
    try:
        exec(compile(path.read_text(), str(path), "exec"), space)
        if not callable(space.get("get_config")):
            raise UserError(f"config file '{name}' defines no function get_config()")
        config = space["get_config"]()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"config file '{name}'{_line(error, path)}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(beside)
        for module in set(sys.modules) - known:  # another config's neighbours may have the same names
            if (getattr(sys.modules[module], "__file__", None) or "").startswith(beside + os.sep):
                del sys.modules[module]
    if not isinstance(config, ConfigDict):
        raise UserError(f"config file '{name}': get_config() returned {type(config).__name__}, not a ConfigDict")
    for key, value in _leaves(config).items():
        finite = not isinstance(value, float) or math.isfinite(value)  # JSON has no other
        if not (finite and isinstance(value, bool | int | float | str | tuple)):
            kind = f"a {type(value).__name__}" if finite and value is not None else str(value)
            raise UserError(
                f"config file '{name}': {key} is {kind}; each key needs a bool, int, float, str or tuple "
                "(0 or '' mean automatic)"
            )
    return from_json(config.to_dict())


def _where(path: Path) -> str:
    """What to do about a config file that is not there."""
    if path.parent.is_dir() and (guess := nearest(path.name, [file.name for file in path.parent.glob("*.py")])):
        return guess
    root = Path(jaxmm.__file__).resolve().parent.parent
    if not path.is_absolute() and (root / path).is_file():
        return f" in {Path.cwd()}; it is {root / path}"
    if path.parts[:1] == ("configs",):
        return (
            f" in {Path.cwd()}; the configs come with the repository, not with the package: run this in a clone of it"
        )
    return f" in {Path.cwd()}" * (not path.is_absolute())


def _line(error: Exception, path: Path) -> str:
    """Where in the config file an exception came from."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}" if error.filename == str(path) else ""
    line, trace = 0, error.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == str(path) else line
        trace = trace.tb_next
    return f", line {line}" if line else ""


def _load_workdir(name: str) -> ConfigDict:
    path = Path(name)
    if not name:
        raise UserError("--workdir is missing: give the folder of a run, such as --workdir=runs/base")
    if not path.is_dir():
        near = [str(folder) for folder in path.parent.iterdir() if folder.is_dir()] if path.parent.is_dir() else []
        raise UserError(f"workdir '{name}' does not exist{nearest(str(path), near)}")
    file = path / "config.json"
    if not file.is_file():
        raise UserError(f"workdir '{name}' holds no run: there is no config.json in it")
    try:
        return from_json(json.loads(file.read_text()))
    except ValueError as error:
        raise UserError(f"{file} is no valid JSON: {error}") from error


def _help(flags: Flags, config: str, about: str, keys: Mapping[str, Any]) -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {spec.name}" if spec else f"python {sys.argv[0]}"
    origin = {"file": " --config=FILE.py", "workdir": "", "none": ""}[config]
    change = "" if config == "none" else " --config.KEY=VALUE"
    lines = [about.strip(), "", f"usage: {program}{origin}{change} --FLAG=VALUE", ""]
    lines += [f"  --{name}={default}  {text}" for name, (default, text) in flags.items()]
    if keys:
        lines += ["", "config keys and their values:", *(f"  --config.{key}={value}" for key, value in keys.items())]
    elif config == "file":
        lines += ["", "With --config=FILE.py, --help also lists the config's keys."]
    return "\n".join(lines).strip()
