"""The parameters a run starts from, on its mesh: another run's, or a Hugging Face model's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxmm import sharding
from jaxmm.checkpoints.base import Base, beneath, found_again, held, kept
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.checkpoints.chosen import chosen_step
from jaxmm.config.file import load_weights_of
from jaxmm.errors import UserError
from jaxmm.hf import folder as hf
from jaxmm.hf.adapter_record import Begun
from jaxmm.hf.init_from import parse, run_and_step
from jaxmm.hf.peft_read import is_peft, read_peft
from jaxmm.hf.pretrained import MODEL, Pretrained, read_params, save
from jaxmm.models.adapters import merged
from jaxmm.models.multimodal import (
    ModelSpec,
    abstract_params,
    begin_adapters,
    flat_axes,
    hold_params,
    make_model,
    model_maps,
    plain_params,
)  # fmt: skip
from jaxmm.models.tree import ParamPath, Params, flat, joined, nested
from jaxmm.recipe import Recipe, read_recipe
from jaxmm.runtime.jax_internals import CPU_ONCE, compile_lowered
from jaxmm.workdir import own_folders
from jaxmm.workdir.spool import name_of


def place_params(model: ModelSpec, tree: Any, mesh: Mesh) -> Any:
    """Shardings of a tree that holds parameters, or moments of theirs, under the parameters' own paths.

    A leaf whose path ends in a parameter's path lies as that parameter does; all others are on every device.
    """
    axes = {path: (shape, names) for path, (shape, names) in flat_axes(model).items()}

    def where(path: tuple, leaf: Any) -> NamedSharding:
        keys = tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
        for start in range(len(keys)):
            described = axes.get(keys[start:])
            if described and described[0] == tuple(leaf.shape):
                return NamedSharding(mesh, sharding.partition(described[1], described[0], mesh))
        return sharding.replicated(mesh)

    return jax.tree_util.tree_map_with_path(where, tree)


def _place(model: ModelSpec, mesh: Mesh) -> tuple[Params, Params]:
    """Shapes of the parameters, and their shardings."""
    abstract = abstract_params(model)
    return abstract, place_params(model, abstract, mesh)


def compile_unoptimized(lowered: Any, options: dict[str, Any] = CPU_ONCE) -> Any:
    """What is run once: compiled on CPUs without optimisation, a third of the time of compiling with it.

    Args:
      options: of XLA on CPUs.
    """
    on_cpu = jax.default_backend() == "cpu"
    return compile_lowered(lowered, options if on_cpu else None)


def started_params(recipe: Recipe, mesh: Mesh, workdir: Path, *, init_from: str, seed: int) -> Params:
    """Parameters on the mesh from what ``init_from`` names; what it does not have, adapters too, begins by the seed.

    The small files of a Hugging Face model go to the workdir.
    """
    model = recipe.model
    base = _base_params(recipe._replace(model=model.base), mesh, workdir, init_from=init_from, seed=seed)
    if model.adapter is None:
        return base
    _, where = _place(model, mesh)
    if recipe.begun:
        begun_by = _begun_params(recipe, recipe.begun, mesh, init_from)
        return nested(flat(base) | {path: _placed(x, flat(where)[path]) for path, x in begun_by.items()})
    begun = jax.jit(lambda base, key: begin_adapters(base, model, key), out_shardings=where, donate_argnums=0)
    key = jax.random.key(seed)
    return compile_unoptimized(begun.lower(base, key))(base, key)


def _begun_params(recipe: Recipe, begun: Begun, mesh: Mesh, init_from: str) -> dict[ParamPath, Any]:
    """What a run goes on from: the adapters of a PEFT folder or of another run, and what was trained whole with them.

    Raises:
      UserError: where the other run's adapters are of another model.
    """
    named, step = run_and_step(begun.source)
    folder = Path(named).expanduser()
    if is_peft(folder):
        assert recipe.start is not None, "else the recipe would have refused it"
        return read_peft(folder, recipe.start.layout, recipe.model.base, recipe.start.decoder).params
    their = read_recipe(load_weights_of(str(folder)), folder)
    own, base = own_params(folder, their, mesh, chosen_step(folder, step))
    if base is None or base.fingerprint != Base.find(init_from, base.format).fingerprint:
        beneath_it = f"that in {base.init_from}" if base else "one of random weights"
        raise UserError(
            f"config.adapter.init_from: the adapters in {folder} are of another model, {beneath_it}: begin with that "
            f"by config.init_from, or with the run's merged model by init_from={begun.source}"
        )
    return flat(own)


def _placed(value: Any, where: NamedSharding) -> jax.Array:
    """An array on the mesh, each device with its part."""
    if isinstance(value, np.ndarray):
        return jax.make_array_from_callback(value.shape, where, lambda index: value[index])
    return jax.device_put(value, where)


def _base_params(recipe: Recipe, mesh: Mesh, workdir: Path, *, init_from: str, seed: int) -> Params:
    """Parameters of the model without adapters."""
    if recipe.start and recipe.start.run:
        _keep(recipe.start, [], workdir / MODEL)
        return _run_params(recipe.start.run, recipe, mesh, run_and_step(init_from)[1])
    if recipe.start:
        return _started(recipe, recipe.start, mesh, seed, workdir)
    named, step = run_and_step(init_from)
    return _run_params(Path(named).expanduser(), recipe, mesh, step)


def _run_params(run: Path, recipe: Recipe, mesh: Mesh, step: str) -> Params:
    """The parameters of another run's checkpoint, its adapters merged into its maps; as the model holds them."""
    theirs = load_weights_of(str(run))
    _, where = _place(recipe.model, mesh)
    if not (theirs.adapter.rank or theirs.adapter.init_from):
        params = saved_params(run, recipe._replace(model=recipe.model.plain), mesh, chosen_step(run, step))
        if recipe.model.frozen is None:
            return params
        hold = jax.jit(lambda params: hold_params(params, recipe.model), out_shardings=where, donate_argnums=0)
        return compile_unoptimized(hold.lower(params))(params)
    their = read_recipe(theirs, run)
    model = dataclasses.replace(recipe.model, adapter=their.model.adapter, frozen=their.model.frozen)
    whole = recipe._replace(model=model, trainable=their.trainable, init_from=theirs.init_from)
    params = full_params(run, whole, mesh, chosen_step(run, step))

    def merge(params: Params) -> Params:
        return hold_params(nested(merged(flat(params), model_maps(model))), recipe.model)

    return compile_unoptimized(jax.jit(merge, out_shardings=where).lower(params))(params)


def _started(recipe: Recipe, start: Pretrained, mesh: Mesh, seed: int, workdir: Path) -> Params:
    """``pretrained_params``; the small files of their folders go to the workdir."""
    params, spare = pretrained_params(recipe, start, mesh, seed)
    _keep(start, spare, workdir / MODEL)
    return params


def pretrained_params(recipe: Recipe, start: Pretrained, mesh: Mesh, seed: int) -> tuple[Params, list[str]]:
    """Parameters of a Hugging Face model, of which what its folders do not have is fresh; and the tensors not used."""
    where = flat(_place(recipe.model, mesh)[1])
    whole = flat(_place(recipe.model.plain, mesh)[1])  # where a kernel lies until it is quantised
    layout = start.layout._replace(spec=dataclasses.replace(start.layout.spec, frozen=recipe.model.frozen))
    read = read_params(start._replace(layout=layout), lambda path, shape: where.get(path) or whole[path])
    missing = {path: place for path, place in where.items() if path not in read.params}
    if missing:
        init, _ = make_model(recipe.model)

        def fresh(key: jax.Array) -> Params:  # what is not taken is never computed
            return nested({path: value for path, value in flat(init(key)).items() if path in missing})

        key = jax.random.key(seed)
        made = compile_unoptimized(jax.jit(fresh, out_shardings=nested(missing)).lower(key))(key)
        read.params.update(flat(made))
    return nested({path: read.params[path] for path in where}), read.spare


def _keep(start: Pretrained, spare: list[str], folder: Path) -> None:
    """Keeps the small files of what a run starts from, in place of those of a start that never came to a save."""
    if jax.process_index() > 0:
        return
    own_folders.make(folder)
    save(start, spare, folder)


def load_params(workdir: Path, abstract: Params, step: int | None = None, reader: Checkpoints | None = None) -> Params:
    """The parameters of another run's newest checkpoint, onto the shardings of ``abstract``.

    Args:
      reader: of its checkpoints, which need not compare again what it has compared.
    """
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise UserError(
            f"{name_of(workdir)} holds neither checkpoints nor a Hugging Face model: give the workdir of a run that "
            f"has saved, or the folder of a model"
        )
    with reader or Checkpoints(folder) as checkpoints:
        return checkpoints.restore_part(abstract, "params", step)


def saved_params(
    workdir: Path, recipe: Recipe, mesh: Mesh, step: int | None = None, reader: Checkpoints | None = None
) -> Params:
    """The parameters of a run's checkpoint (the newest by default), on this mesh."""
    own, base = own_params(workdir, recipe, mesh, step, reader)
    return with_base(own, recipe, mesh, base) if base else own


def own_params(
    workdir: Path, recipe: Recipe, mesh: Mesh, step: int | None = None, reader: Checkpoints | None = None
) -> tuple[Params, Base | None]:
    """What a run's checkpoint holds, and the model beneath the run's adapters; None where that is all of it."""
    abstract, where = _place(recipe.model, mesh)
    shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, where)
    noted = kept(workdir) if recipe.model.adapter else None
    if noted is None:
        return load_params(workdir, shapes, step, reader), None
    base = found_again(noted, recipe.init_from, workdir)
    return load_params(workdir, held(shapes, recipe.trainable, base), step, reader), base


def full_params(
    workdir: Path, recipe: Recipe, mesh: Mesh, step: int | None = None, reader: Checkpoints | None = None
) -> Params:
    """As ``saved_params``, all as float32: the weights beneath adapters as they are stored, not as the run held them.

    Where they are in no other place, as those of a run from random weights, they are what the run held.
    """
    model, noted = recipe.model, kept(workdir)
    if model.frozen is None:
        return saved_params(workdir, recipe, mesh, step, reader)
    abstract, where = _place(model, mesh)
    shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, where)
    base = found_again(noted, recipe.init_from, workdir) if noted else None
    own = load_params(workdir, held(shapes, recipe.trainable, base) if base else shapes, step, reader)
    places = flat(_place(model.plain, mesh)[1])
    restored = flat(jax.eval_shape(lambda own: plain_params(own, model), own))
    restore = jax.jit(
        lambda own: plain_params(own, model), out_shardings=nested({path: places[path] for path in restored})
    )  # fmt: skip
    own = compile_unoptimized(restore.lower(own))(own)
    return with_base(own, recipe._replace(model=model.plain), mesh, base) if base else own


def with_base(own: Params, recipe: Recipe, mesh: Mesh, base: Base) -> Params:
    """What a checkpoint holds of a run with adapters, and the parameters of the model beneath them."""
    plain = recipe._replace(model=recipe.model.base)
    named, step = run_and_step(base.init_from)
    folders = parse(named)
    if "model" in folders and not hf.is_folder(folders["model"]):
        params = _run_params(folders["model"], plain, mesh, step)
    else:
        assert recipe.start is not None, "a run keeps the small files of such a start"
        # What the folders have not is in the checkpoint: here it is fresh, and goes.
        params, _ = pretrained_params(plain, recipe.start._replace(folders=folders, run=None), mesh, seed=0)
    return joined(own, beneath(params, recipe.trainable, base))
