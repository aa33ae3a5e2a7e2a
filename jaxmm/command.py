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
import re
import signal
import sys
import threading
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from ml_collections import ConfigDict

import jaxmm
from jaxmm import closed_pipe
from jaxmm.config import consistency
from jaxmm.config.file import load_file, load_workdir
from jaxmm.config.help import help_of_keys
from jaxmm.config.hints import advice, hint
from jaxmm.config.key import KINDS, Value
from jaxmm.config.keys import KEYS, flat, same_end
from jaxmm.errors import STRANDED, StrandedError, UserError, end_at_once, error_line, nearest, refusal
from jaxmm.workdir.folder import local
from jaxmm.workdir.spool import opened

Flags = Mapping[str, tuple[Value, str]]  # name -> default, which gives the type, and what it is for
UNAWAITED = "unawaited"  # how the names of threads begin that a command which failed does not wait for
WRITTEN, READ = ("workdir", "output", "cache"), ("image", "video", "audio", "prompts")  # flags that are paths


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a command on the process's arguments and exits: main's status, or 1 after one line for a UserError."""
    gc.freeze()  # what is imported stays: collections need not look at it
    gc.enable()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ended_on_interrupt until here
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with closed_pipe.quiet():
        status = _status(main)
        if status and any(thread.name.startswith(UNAWAITED) for thread in threading.enumerate()):
            sys.stdout.flush()
            os._exit(status)  # else Python would wait for what can't be stopped, and nobody needs any more
        sys.exit(status)


def _status(main: Callable[[list[str]], int | None]) -> int | None:
    """Of the command, whose error of the user's is a line."""
    try:
        if getattr(jaxmm, "__file__", None) is None:
            raise UserError(
                f"the folder {os.path.abspath('jaxmm')} hides the package: run it in another folder, or as `jaxmm ...` "
                f"instead of `python -m jaxmm....`"
            )
        return main(sys.argv[1:])
    except StrandedError as error:
        end_at_once(str(error), STRANDED)
    except UserError as error:
        print(error_line(error), file=sys.stderr, flush=True)
        return 1
    except OSError as error:
        if (refused := refusal(error)) is None:
            raise
        print(error_line(refused), file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:  # train handles its own
        print("interrupted", file=sys.stderr)
        return 130


def parse(
    argv: Sequence[str],
    flags: Flags,
    config: Literal["file", "workdir", "none"] = "file",
    about: str = "",
    urls: Collection[str] = (),
    repeated: Collection[str] = (),
) -> types.SimpleNamespace:
    """Parses ``--name=value`` (or ``--name value``; ``--name`` alone sets a bool).

    Args:
      argv: without the program's name.
      flags: the command's own.
      config: where the config comes from: the file in ``--config``; ``config.json`` in ``--workdir``, one of ``flags``;
        or nowhere. ``--config.KEY=VALUE`` changes one of its keys.
      about: what the command does, for ``--help``.
      urls: flags of ``WRITTEN`` that may be URLs; the command expands their '~'.
      repeated: flags of several values that may be given several times: all count.

    Returns:
      A namespace of the flags, ``config`` (a locked ConfigDict) and ``config_name`` (its file's name without ``.py``).

    Raises:
      UserError: for whatever is wrong with the arguments, the config or its values.
      SystemExit: with 0 after ``--help``.
    """
    values: dict[str, Any] = {name: default for name, (default, _) in flags.items()}
    origin, unknown, help_of, failure = "", "", None, ""
    changes: list[tuple[str, str | None]] = []
    given = split(argv, flags)
    for name, text in given:
        if name in flags:
            value = _read(f"--{name}", text, flags[name][0])
            values[name] = (*values[name], *value) if name in repeated else value
        elif name == "config" and config == "file":
            origin = os.path.expanduser(_read("--config", text, ""))
        elif name.startswith("config.") and config != "none":
            changes.append((name.removeprefix("config."), text))
        elif name in ("help", "helpfull", "h"):
            help_of = text or ""
        else:
            unknown = unknown or name
    values |= {
        name: _path(name, values[name], config) for name in (*WRITTEN, *READ) if name in values and name not in urls
    }
    loaded = ConfigDict()
    try:
        if config != "none":
            loaded = load_file(origin) if config == "file" else load_workdir(values["workdir"])
    except UserError as error:
        if not unknown and help_of is None:
            raise
        failure = str(error)
    if help_of is not None:
        is_named = origin if config == "file" else values.get("workdir")
        print(_help(flags, config, about, flat(loaded), help_of, failure if is_named else ""))
        sys.exit(0)
    if unknown:
        raise _unknown_flag(unknown, flags, config, loaded)
    for key, text in changes:
        _change(loaded, key, text)
    for name in dict.fromkeys(name for name, _ in given):
        if name not in repeated and len(twice := [text for other, text in given if other == name]) > 1:
            print(f"--{name} is given {len(twice)} times: the last one, {twice[-1]}, counts", file=sys.stderr)
    if config != "none":
        consistency.check(flat(loaded))
        values |= {"config": loaded, "config_name": Path(origin).stem}
    return types.SimpleNamespace(**values)


def check_folder(flag: str, folder: Path) -> None:
    """Raises UserError where ``folder`` is none and cannot be made, or may not be written to."""
    for place in (folder, *folder.parents):
        try:
            if not place.exists() and not place.is_symlink():
                continue
        except OSError as error:  # a name that no folder can have
            raise UserError(f"{flag} {str(folder)[:200]}: {error.strerror}") from error
        if not place.is_dir():
            raise UserError(f"{flag} {folder}: {place} is a file or a broken link, not a folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"{flag} {folder}: {place} may not be written to")
        return


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as nested plain values that JSON holds: tuples become lists."""
    return json.loads(json.dumps(config.to_dict(), allow_nan=False))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], free: Collection[str] = ()) -> list[str]:
    """The keys in which two configs, their JSON, or their values by dotted keys differ: ``"data.path: 'x' -> 'y'"``.

    Args:
      free: keys and groups that may differ: "steps", "eval".
    """
    a, b = flat(old), flat(new)

    def told(key: str, side: Mapping[str, Any]) -> str:
        return repr(side[key]) if key in side else "(absent)"

    return [
        f"{key}: {told(key, a)} -> {told(key, b)}"
        for key in dict.fromkeys((*a, *b))
        if told(key, a) != told(key, b) and not any(key == name or key.startswith(f"{name}.") for name in free)
    ]


def split(argv: Sequence[str], flags: Flags) -> list[tuple[str, str | None]]:
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


def _path(name: str, value: Any, config: str) -> Any:
    """The value of a flag that is a path or several, '~' spelled out; of those written to, a workdir may be a URL."""
    if isinstance(value, tuple):
        return tuple(_path(name, one, config) for one in value)
    if name == "workdir":
        return opened(f"--{name}", value, reads=config != "file")
    return local(f"--{name}", value) if name in WRITTEN else os.path.expanduser(value)


def _unknown_flag(name: str, flags: Flags, config: str, loaded: ConfigDict) -> UserError:
    if name == "config":
        own = " (it reads the run's own; --config.KEY=VALUE changes a key)" if config == "workdir" else ""
        return UserError(f"this command takes no --config{own}")
    if config != "none" and (suggestion := hint(name)) and f"--{name}" not in _as_flags(suggestion).split():
        return UserError(f"unknown flag --{name}: {_as_flags(suggestion)}")
    if config != "none" and (suggestion := same_end(name)):
        flagged = suggestion.replace("mean '", "mean '--config.")
        return UserError(f"unknown flag --{name}{flagged}")
    typed = {end: f"--config.{key}" for key in flat(loaded) for end in (key, f"config.{key}")}
    typed |= {one: f"--{one}" for one in (*flags, *["config"] * (config == "file"))}
    guess = nearest(name, typed, typed, least=0.6)  # without the dashes, in which all flags are alike
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
    if any(0xD800 <= ord(letter) < 0xE000 or letter == "\0" for letter in text):
        raise UserError(f"{name}={text!a}: it has bytes that are no UTF-8")
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
        raise UserError(f"{name}: '{text}' is not {KINDS[type(like)]} (default: {like})") from None


def _change(config: ConfigDict, key: str, text: str | None) -> None:
    *groups, last = key.split(".")
    group, inside = config, ""
    while groups and isinstance(group.get(groups[0]), ConfigDict):
        group, inside = group[groups[0]], f"{inside}{groups.pop(0)}."
    if groups or last not in group:
        beside = "" if groups else nearest(last, group).replace("'", f"'{inside}", 1)
        guess = advice(key, KEYS if groups else ()) or beside
        listed = f"; {f'config.{inside}'[:-1]} has {', '.join(group)}"
        raise UserError(f"unknown config key '{key}'{_as_flags(guess) or listed}")
    if isinstance(group[last], ConfigDict):
        keys_inside = ", ".join(f"--config.{key}.{name}" for name in group[last])
        raise UserError(f"config.{key} is a group of keys; set one of {keys_inside}")
    group[last] = _read(f"config.{key}", text, group[last])


def _as_flags(text: str) -> str:
    """A hint for the command line: keys as they are typed there."""
    return re.sub(r"(?<!-)\bconfig\.(?=\w)", "--config.", text)


def _help(
    flags: Flags, config: str, about: str, values: Mapping[str, Any], group: str, failure: str
) -> str:  # fmt: skip
    """What ``--help`` prints; ``group``: the one of which alone, or ''; ``failure``: why the config did not load."""
    told = [f"The config did not load, and these are the defaults: {failure}"] if failure else []
    if group and config != "none":
        return "\n".join([*told, help_of_keys(values, group)])
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {sys.argv[0]}"
    origin = {"file": " --config=NAME_OR_FILE.py", "workdir": "", "none": ""}[config]
    change = "" if config == "none" else " --config.KEY=VALUE"
    lines = [about.strip(), "", f"usage: {program}{origin}{change} --FLAG=VALUE", ""]
    lines += [f"  --{name}={default}  {text}" for name, (default, text) in flags.items()]
    if config != "none":
        whose = "the values of this config" if values else "their defaults"
        head = f"config keys, {whose}, what each may be, and what it is for (--help=GROUP: of one group alone):"
        lines += ["", *told, head, "", help_of_keys(values)]
    return "\n".join(lines).strip()
