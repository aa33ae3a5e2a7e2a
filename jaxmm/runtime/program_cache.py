"""Disk cache of lowered StableHLO, so that the next process skips tracing.

JAX's compile cache is asked with a lowered program, and tracing and lowering the training step takes a CPU longer than
reading it from there. What is kept is ``jax.export``'s form, in a folder of the compile cache, under a hash of all that
a trace depends on: this package's sources, the versions of what it calls, JAX's settings, the mesh, the arguments, and
a key that says which program it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax import export

from jaxmm.atomic import published
from jaxmm.runtime.jax_internals import TUNED, compile_lowered, setting, settings

FOLDER = "lowered"
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
KEPT = 200  # files, of a few hundred kilobytes; the oldest go


class Lowered(NamedTuple):
    """A lowered program over lists of leaves, one list an argument and a result.

    Attributes:
      results: the trees of the results.
    """

    lowered: jax.stages.Lowered
    results: list[Any]

    def compile(self, options: dict[str, Any] | None = None) -> Callable[..., Any]:
        """Returns the function of the program's own trees: a tuple of results."""
        compiled, results = (
            compile_lowered(self.lowered, options),
            self.results,
        )  # not self: the lowered program is large

        def run(*args: Any) -> tuple[Any, ...]:
            leaves_of_results = compiled(*map(jax.tree.leaves, args))
            return tuple(
                jax.tree.unflatten(tree, leaves) for tree, leaves in zip(results, leaves_of_results, strict=True)
            )

        return run


def lower(
    function: Callable[..., tuple[Any, ...]],
    args: tuple[Any, ...],
    *,
    key: str,
    out_shardings: tuple[Any, ...],
    donate_argnums: tuple[int, ...] = (),
    types: tuple[type, ...] = (),
) -> Lowered:
    """``jax.jit(function).lower(*args)`` under the mesh that is set, or what an earlier process kept of it.

    Args:
      function: returns a tuple.
      args: trees of arrays, or of their shapes and shardings.
      key: what the function depends on beside its arguments and this package's sources.
      out_shardings: for each result one sharding, or a tree of them, of the result's structure.
      types: NamedTuples in results that have one sharding; they may hold dicts and tuples besides.
    """
    trees = [jax.tree.structure(arg) for arg in args]
    leaves = [jax.tree.leaves(arg) for arg in args]
    results: list[Any] = []

    def flat(*lists: list[Any]) -> tuple[list[Any], ...]:
        outputs = function(*map(jax.tree.unflatten, trees, lists))
        results[:] = map(jax.tree.structure, outputs)
        return tuple(map(jax.tree.leaves, outputs))

    where = tuple(s if isinstance(s, jax.sharding.Sharding) else jax.tree.leaves(s) for s in out_shardings)
    jitted = jax.jit(flat, donate_argnums=donate_argnums, out_shardings=where)
    folder = _folder()
    if folder is None:
        return Lowered(jitted.lower(*leaves), results)
    path = folder / _name(key, args, where, donate_argnums)
    kept = _read(path)
    if kept is None:
        program = bytes(export.export(jitted)(*leaves).serialize())
        structures = [None if _is_tree(s) else _described(r) for s, r in zip(out_shardings, results, strict=True)]
        kept = _Kept(structures, program)
        try:
            _write(path, kept)
        except OSError as error:  # as JAX does, where it cannot keep an executable
            warnings.warn(f"the lowered program was not kept in {folder}: {error}", stacklevel=1)
    # Read back even if it is just made: the compile cache finds the program by its text.
    call = export.deserialize(bytearray(kept.program)).call
    trees = [
        jax.tree.structure(s if _is_tree(s) else _rebuilt(r, types))
        for s, r in zip(out_shardings, kept.structures, strict=True)
    ]
    return Lowered(jax.jit(call, donate_argnums=donate_argnums).lower(*leaves), trees)


def _is_tree(shardings: Any) -> bool:
    return not isinstance(shardings, jax.sharding.Sharding)


def _folder() -> Path | None:
    """Where programs are kept, or None: without a compile cache on this machine, where the sources are no longer what
    this process runs, in a job of several processes, on other devices.

    There compiling takes minutes, and nobody has tried to export their kernels.
    """
    cache = setting("jax_compilation_cache_dir")
    if not cache or "://" in cache or not setting("jax_enable_compilation_cache") or _code() != CODE:
        return None
    return Path(cache) / FOLDER if jax.default_backend() == "cpu" and jax.process_count() == 1 else None


def _name(key: str, args: tuple[Any, ...], where: tuple[Any, ...], donate: tuple[int, ...]) -> str:
    mesh = jax.sharding.get_mesh()
    shapes = [
        (jax.tree_util.keystr(path), x.shape, str(x.dtype), str(x.sharding))
        for path, x in jax.tree_util.tree_leaves_with_path(args)
    ]
    known = (key, CODE, TUNED, settings(), str(mesh), str(mesh.devices.tolist()), shapes, str(where), donate)
    return hashlib.sha256(repr(known).encode()).hexdigest()


def _code() -> str:
    """Hash of this package's sources and of the versions of what it is written for."""
    digest = hashlib.sha256(platform.python_version().encode())
    for library in LIBRARIES:
        digest.update(f"{library} {importlib.metadata.version(library)}".encode())
    root = Path(__file__).parents[1]
    for source in sorted(root.rglob("*.py")):
        digest.update(str(source.relative_to(root)).encode() + source.read_bytes())
    return digest.hexdigest()


CODE = _code()  # now: sources may be edited while a run prepares its data


class _Kept(NamedTuple):
    """What a file holds.

    Attributes:
      structures: of each result as ``_described`` gives it, or None where its shardings have it.
      program: as ``jax.export`` writes it.
    """

    structures: list[Any]
    program: bytes


def _described(tree: Any) -> Any:
    """A structure of dicts, tuples and NamedTuples as JSON has it; a leaf is 0."""
    node = jax.tree.unflatten(tree, [0] * tree.num_leaves)

    def described(node: Any) -> Any:
        if isinstance(node, dict):
            return {"dict": {name: described(child) for name, child in node.items()}}
        if isinstance(node, tuple):
            return {"tuple": [type(node).__name__, *map(described, node)]}
        if node != 0:
            raise TypeError(f"a result holds a {type(node).__name__}: give its shardings as a tree")
        return 0

    return described(node)


def _rebuilt(structure: Any, types: tuple[type, ...]) -> Any:
    """The inverse of ``_described``, with leaves in it."""
    if structure == 0:
        return 0
    if "dict" in structure:
        return {name: _rebuilt(child, types) for name, child in structure["dict"].items()}
    name, *children = structure["tuple"]
    made = (_rebuilt(child, types) for child in children)
    return tuple(made) if name == "tuple" else {one.__name__: one for one in types}[name](*made)


def _read(path: Path) -> _Kept | None:
    """What is kept; None where there is nothing, what is there is not whole, or another user could have written it:
    to run a program is to run what its writer likes."""
    try:
        with path.open("rb") as file:
            if not _is_ours(os.fstat(file.fileno())):
                return None
            digest, body = (data := file.read())[:32], data[32:]
        os.utime(path)  # what is used does not get old
    except OSError:  # nothing, or not for us to read
        return None
    if hashlib.sha256(body).digest() != digest:
        return None
    structures, _, program = body.partition(b"\n")
    return _Kept(json.loads(structures), program)


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _write(path: Path, kept: _Kept) -> None:
    body = json.dumps(kept.structures).encode() + b"\n" + kept.program
    with published(path) as whole:
        whole.write_bytes(hashlib.sha256(body).digest() + body)
        whole.chmod(0o600)
    ages = {}
    for other in path.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process may remove it too
            ages[other] = other.stat().st_mtime
    for old in sorted(ages, key=ages.__getitem__)[:-KEPT]:
        old.unlink(missing_ok=True)
