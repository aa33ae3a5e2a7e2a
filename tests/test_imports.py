"""Who may import whom: the arrows of docs/architecture.md, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxmm

ROOT = Path(jaxmm.__file__).parent
FILES = sorted(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in ROOT.rglob("*.py"))
COMMANDS = {"train", "evaluate", "generate", "export"}
KNOW_CONFIG = COMMANDS | {"command", "config", "config_file", "identity", "recipe", "program"}
SERVE_COMMANDS = {"samples", "identity"}  # built of a command's parts, for another command


def imports(name: str) -> set[str]:
    """Full names of all that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            is_package = (node.module or "").split(".")[0] == "jaxmm"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = is_package and full.removeprefix("jaxmm.") in FILES
                found.add(full if is_module else str(node.module))
    return found


def ours(name: str) -> set[str]:
    return {i.removeprefix("jaxmm.") for i in imports(name) if i.startswith("jaxmm.")}


def allowed(name: str) -> set[str]:
    """What of ours a file may import, by its first name; everything for the commands and what serves them."""
    package = name.split(".")[0]
    if name in ("batch", "errors", "moments", "slurm"):
        return set()
    if name in ("sharding", "shares"):
        return {"errors"}
    if name == "config":
        return {"batch", "errors", "shares"}
    if name in ("config_file", "consistency"):
        return {"config", "errors", "shares"}
    if name == "optimizer":
        return {"moments"}
    if package == "data":
        return {"batch", "errors", "data"}
    if package == "report":
        return {"batch", "errors", "data", "report"}
    if package == "models":
        return {"batch", "errors", "sharding", "models"}
    if name == "loss":
        return {"batch", "sharding"}
    if name == "train_step":
        return {"batch", "loss", "optimizer"}
    return {i.split(".")[0] for i in FILES}


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    assert {i.split(".")[0] for i in ours(name)} <= allowed(name)


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith(("data.", "report."))])
def test_the_data_side_names_no_jax(name):
    assert not {i for i in imports(name) if i.split(".")[0] in ("jax", "jaxlib", "flax", "optax")}


@pytest.mark.parametrize("name", [n for n in FILES if n.split(".")[0] not in KNOW_CONFIG])
def test_config_ends_at_the_door(name):
    assert not {i for i in imports(name) if i.split(".")[0] in ("ml_collections", "absl")}
    assert name in SERVE_COMMANDS or not ours(name) & (COMMANDS | {"command"})


def test_nothing_imports_itself_in_a_circle():
    below: dict[str, set[str]] = {name: ours(name) & set(FILES) for name in FILES}
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
