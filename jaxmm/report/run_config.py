"""Configs of runs as what is particular in them: against the config they come from, and against each other."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxmm.config import packaged
from jaxmm.config.file import load_file
from jaxmm.config.keys import KEYS, flat
from jaxmm.report.run_data import RunData
from jaxmm.report.run_tables import table


def config(run: RunData) -> str:
    """What differs from jaxmm's config of the name that the run was started by, or from the defaults; then all of it.

    A config of the user's may have the name of one of jaxmm's, so the page tells what it compares and claims no more.
    """
    name, usual = _usual(str(run.machine.get("config") or ""))
    own = flat(run.config)
    rows = [
        [f"<code>{escape(key)}</code>", _cell(own, key), _cell(usual, key)]
        for key in dict.fromkeys((*usual, *own))
        if key in own and _plain(own[key]) != _plain(usual.get(key))
    ]
    beside = f"configs/{name}.py" if name else "default"
    against = f"<code>configs/{escape(name)}.py</code> of this jaxmm" if name else "the defaults of its keys"
    told = (
        f'<p class="note">Compared with {against}: the keys that differ.</p>'
        + table("Config", ["key", "this run", beside], rows, "config")
        if rows
        else f'<p class="note">Compared with {against}: no key differs.</p>'
    )
    whole = escape(json.dumps(run.config, indent=2))
    return f"{told}<details><summary>All of config.json</summary><pre>{whole}</pre></details>"


def differences(runs: Sequence[RunData]) -> str:
    """The keys in which runs differ, a column each."""
    configs = [flat(run.config) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in configs for key in one)
            if len({json.dumps(_plain(one.get(key))) for one in configs}) > 1]  # fmt: skip
    if not keys:
        return '<p class="note">Their configs are the same.</p>'
    rows = [[f"<code>{escape(key)}</code>", *(_cell(one, key) for one in configs)] for key in keys]
    return table("Differences between the configs", ["key", *(run.name for run in runs)], rows, "config")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _cell(values: Mapping[str, Any], key: str) -> str:
    return f"<code>{escape(json.dumps(_plain(values[key])))}</code>" if key in values else "–"


@functools.cache
def _usual(name: str) -> tuple[str, dict[str, Any]]:
    """The values of jaxmm's config of that name, or with '' the defaults where there is none."""
    if packaged.path_of(name):
        return name, flat(load_file(name))
    return "", {key: spec.default for key, spec in KEYS.items()}
