"""Who may import whom: the table in docs/architecture.md, held against the source."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jaxmm

ROOT = Path(jaxmm.__file__).parent
PAGE = ROOT.parent / "docs/architecture.md"
SOURCES = {
    path.relative_to(ROOT).with_suffix("").as_posix(): path.read_text(encoding="utf-8")
    for path in ROOT.rglob("*.py")
    if path.name != "__init__.py"
}
KNOW_CONFIG = (
    "config/", "command", "corpus", "api", "data_recipe", "model_recipe", "recipe", "checkpoints/", "training/",
    "commands",
)  # fmt: skip
NO_JAX = ("data/", "report/", "config/", "atomic", "errors", "formatting")


class Row(NamedTuple):
    """Of the table: whose it is, what they may import, and those that may import each other, in this order."""

    name: str
    allowed: tuple[str, ...]
    modules: tuple[str, ...]


def table() -> list[Row]:
    """The rows; that of the commands is named so, and allows everything."""
    lines = PAGE.read_text(encoding="utf-8").split("|---|---|---|\n", 1)[1].split("\n\n", 1)[0].splitlines()
    rows = []
    for line in lines:
        who, allowed, modules = ([*re.findall(r"`([^`]+)`", cell)] for cell in line.strip("|").split("|"))
        name = ", ".join(who) or "commands"
        room = name if name.endswith("/") else ""
        rows.append(Row(name, tuple(allowed), tuple(room + module for module in modules) or tuple(who)))
    return rows


@functools.cache
def all_imports(source: str, name: str) -> set[str]:
    """Full names of all that a file imports, anywhere in it; ours as a path."""
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = full.removeprefix("jaxmm.").replace(".", "/") in SOURCES
                imported.add(full if is_module else str(node.module))
    return imported


def ours(source: str, name: str) -> set[str]:
    """Paths of the files of ours that a file imports."""
    paths = {i.removeprefix("jaxmm.").replace(".", "/") for i in all_imports(source, name) if i.startswith("jaxmm.")}
    return paths & set(SOURCES)


def is_in(path: str, allowed: str) -> bool:
    """Whether a file is what a name of the table stands for: itself, or one that lies right in the room."""
    return path == allowed or (allowed.endswith("/") and path.rpartition("/")[0] == allowed[:-1])


def faults(sources: Mapping[str, str]) -> list[str]:
    """What in these sources the table does not have."""
    told, rows = [], table()
    for name, source in sorted(sources.items()):
        homes = [row for row in rows if name in row.modules]
        if len(homes) != 1:
            told.append(f"{name} stands in {len(homes)} rows of the table")
            continue
        (row,) = homes
        before = row.modules[: row.modules.index(name)]
        for other in sorted(ours(source, name)):
            if other in before or row.name == "commands" or any(is_in(other, one) for one in row.allowed):
                continue
            told.append(f"{name} imports {other}")
    return told


def test_imports_are_those_of_the_table():
    assert faults(SOURCES) == []


def test_every_name_in_the_table_is_a_file_or_a_room_and_is_needed():
    for row in table():
        assert set(row.modules) <= set(SOURCES), row.name
        needed = set().union(*(ours(SOURCES[module], module) for module in row.modules))
        for allowed in row.allowed if row.name != "commands" else ():
            assert any(is_in(path, allowed) for path in needed), f"{row.name} needs no {allowed}"


def test_a_wrong_import_is_found_wherever_it_stands():
    for name, wrong in {
        "hf/names": "training.logger",
        "training/logger": "checkpoints.checkpoint",
        "training/loss": "models.decoder",
        "data/media/image": "data.packing.plan",
        "data/packing/pack": "data.packing.plan",
        "models/attention": "hf.names",
        "recipe": "train",
        "inference/answers": "generate",
        "errors": "batch",
        "runtime/barrier": "recipe",
    }.items():
        package, _, module = wrong.rpartition(".")
        line = f"from jaxmm.{package} import {module}" if package else f"from jaxmm import {module}"
        path = wrong.replace(".", "/")
        inside = f"{SOURCES[name]}\n\ndef late():\n    {line}\n"  # a function's own imports count too
        assert f"{name} imports {path}" in faults({**SOURCES, name: inside})
    assert faults({"data/new": ""}) == ["data/new stands in 0 rows of the table"]


def test_private_names_of_libraries_stand_in_one_room():
    for name, source in SOURCES.items():
        private = {i for i in all_imports(source, name) if {"_src", "jaxlib"} & set(i.split("."))}
        if name == "models/kernels/tokamax":  # those of one release, to which its extra is bound
            private = {i for i in private if not i.startswith("tokamax._src.ops.attention.")}
        assert name == "runtime/jax_internals" or not private, name


def test_nothing_imports_a_command():
    (commands,) = [row.modules for row in table() if row.name == "commands"]
    for name, source in SOURCES.items():
        assert not ours(source, name) & set(commands), name


def test_the_data_side_names_no_jax():
    for name, source in SOURCES.items():
        if any(name.startswith(room) for room in NO_JAX):
            libraries = {i.split(".")[0] for i in all_imports(source, name)}
            assert not libraries & {"jax", "jaxlib", "flax", "optax"}, name


def test_config_ends_where_parts_are_made():
    known = [row.modules for row in table() if row.name.startswith(KNOW_CONFIG)]
    for name in set(SOURCES).difference(*known):
        libraries = {i.split(".")[0] for i in all_imports(SOURCES[name], name)}
        assert not libraries & {"ml_collections", "absl"}, name


def test_nothing_imports_itself_in_a_circle():
    below = {name: ours(source, name) for name, source in SOURCES.items()}
    while below:
        leaves = {name for name, needs in below.items() if not needs & set(below)}
        assert leaves, f"a circle among {sorted(below)}"
        below = {name: needs for name, needs in below.items() if name not in leaves}


def test_loading_data_initialises_no_backend():
    program = (
        "import jaxmm.data.loader, jaxmm.data.demo\n"
        "from jax._src import xla_bridge\n"  # grain imports jax; no public name tells whether a backend is up
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
