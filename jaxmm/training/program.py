"""From a config to its training step, with shapes and shardings of state and batch; allocates nothing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxmm import sharding
from jaxmm.batch import Batch
from jaxmm.checkpoints.params import compile_unoptimized, place_params
from jaxmm.config.shares import parse_rates
from jaxmm.data.assemble import empty_batch
from jaxmm.data.packing.limits import Budgets
from jaxmm.errors import UserError
from jaxmm.models.adapters import noise
from jaxmm.models.multimodal import ModelSpec, abstract_params, flat_axes, kernel_dims, make_model, model_maps
from jaxmm.models.routing import CHOICE_BIAS, ExpertSpec
from jaxmm.models.trainable import check_patterns
from jaxmm.models.tree import Params
from jaxmm.recipe import Recipe
from jaxmm.runtime.jax_internals import CPU_DRAWN
from jaxmm.runtime.program_cache import lower
from jaxmm.training.group_gradients import OfGroup, make_group_norms
from jaxmm.training.objectives import objective_of
from jaxmm.training.optimizer import OPTIMIZERS, make_optimizer, make_schedule
from jaxmm.training.step import Metrics, Noise, TrainState, init_state, make_train_step


class Program(NamedTuple):
    """What is compiled for a run.

    Attributes:
      step: ``step(state, batch) -> (state, metrics)``.
      first_state: the state of parameters before any step.
      schedule: the learning rate of each step.
      key: all that these depend on.
      group_norms: gradient norms of a part of a batch's targets, see ``group_gradients``.
    """

    recipe: Recipe
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    first_state: Callable[[Any], TrainState]
    schedule: optax.Schedule
    key: str
    group_norms: OfGroup

    def shardings(self, mesh: Mesh) -> TrainState:
        """Where the state lies: optimizer moments where their parameters do, all else on every device."""
        return place_params(self.recipe.model, self._shapes(), mesh)

    def jitted(self, mesh: Mesh) -> Any:
        """The step under jit, which uses up the state; every process can read the metrics."""
        return jax.jit(
            self.step, donate_argnums=0, out_shardings=(self.shardings(mesh), sharding.replicated(mesh))
        )  # fmt: skip

    def abstract_state(self, mesh: Mesh) -> TrainState:
        """Shapes and shardings of the state."""
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            self._shapes(),
            self.shardings(mesh),
        )

    def _shapes(self) -> TrainState:
        return jax.eval_shape(self.first_state, abstract_params(self.recipe.model))


def make_rates(config: ConfigDict, steps: int) -> optax.Schedule:
    """The learning rate of each step of a run of so many."""
    options = config.optimizer
    return make_schedule(
        rate=options.rate, steps=steps, warmup=options.warmup, name=options.schedule,
        end_factor=options.end_factor, decay_fraction=options.decay_fraction,
    )  # fmt: skip


def read_rates(config: ConfigDict, recipe: Recipe) -> dict[str, float]:
    """Multiples of the learning rate by patterns of paths; of those that mean a parameter the last counts.

    Raises:
      UserError: for a pattern that means none.
    """
    options = config.optimizer
    asked = parse_rates(options.rates, "config.optimizer.rates", recipe.model.parts)
    check_patterns(tuple(asked), "config.optimizer.rates", recipe.model)
    by_part = {part: options.get(f"{part}_rate", 1.0) for part in recipe.model.parts}
    return {pattern: rate for pattern, rate in by_part.items() if pattern not in asked} | asked


def dropping(model: ModelSpec, dropout: float) -> ModelSpec:
    """The model of the training step, whose adapters drop a part of what goes into them."""
    if model.adapter is None:
        return model
    return dataclasses.replace(model, adapter=dataclasses.replace(model.adapter, dropout=dropout))


def make_noise(model: ModelSpec, seed: int) -> Noise | None:
    """The random keys of a step's dropout: of the seed, the step and the batch's own tokens; None without dropout."""
    if not (model.adapter and model.adapter.dropout):
        return None
    maps, shapes = model_maps(model), {path: shape for path, (shape, _) in flat_axes(model.plain).items()}

    def keys(step: jax.Array, batch: Batch) -> Params:
        key = jax.random.fold_in(jax.random.key(seed), step)
        return noise(maps, shapes, jax.random.fold_in(key, batch.text.values.sum()))

    return keys


def weighed(config: ConfigDict, recipe: Recipe) -> ExpertSpec | None:
    """The experts with the weights of their losses and the rate of their bias that a run has; None for one without,
    and for preferences.

    Raises:
      UserError: if the config gives such a number, and there is nothing that it is of.
    """
    asked = {"balance_loss": config.optimizer.balance_loss, "z_loss": config.optimizer.router_z_loss}
    asked = {name: weight for name, weight in asked.items() if weight >= 0}
    asked["bias_rate"] = config.optimizer.router_bias_rate
    experts = recipe.model.decoder.experts
    if any(asked.values()) and (experts is None or recipe.preference):
        whose = "the model has none" if experts is None else f"config.objective={config.objective} has no such loss"
        keys = "balance_loss, router_z_loss and router_bias_rate"
        raise UserError(f"config.optimizer.{keys} are of experts, and {whose}: leave them out")
    if experts and asked["bias_rate"]:
        if experts.gate != "sigmoid":
            raise UserError(
                f"config.optimizer.router_bias_rate: routers of this model ({experts.gate}) choose without a bias: "
                f"leave it out, and see config.optimizer.balance_loss"
            )
        if not recipe.trainable.learns(CHOICE_BIAS):
            raise UserError(
                "config.optimizer.router_bias_rate: the bias of the choice is frozen here: leave the rate out, or let "
                f"{'.'.join(CHOICE_BIAS)} learn"
            )
    return None if experts is None or recipe.preference else dataclasses.replace(experts, **asked)


def make_program(config: ConfigDict, recipe: Recipe, *, steps: int, targets: int, sources: int) -> Program:
    """Builds the step of a run.

    Args:
      steps: of the schedule.
      targets: the target budget of a row.
      sources: of data.

    Raises:
      UserError: for a mistake in config.optimizer.
    """
    options = config.optimizer
    if options.name not in OPTIMIZERS:
        raise UserError(f"config.optimizer.name '{options.name}' is not one of {', '.join(OPTIMIZERS)}")
    try:
        schedule = make_rates(config, steps)
        optimizer = make_optimizer(
            schedule, b1=options.b1, b2=options.b2, weight_decay=options.weight_decay, clip=options.clip,
            kernel_dims=kernel_dims(recipe.model) if options.name == "muon" else None,
            rates=read_rates(config, recipe),
            moments=options.moments,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"config.optimizer: {error}") from error

    model = dropping(recipe.model, config.adapter.dropout)

    experts = weighed(config, recipe)
    method = "routed" if experts else "__call__"

    def apply(params, batch, target_positions_BR):  # the model is only made where the step is traced
        return make_model(model)[1](params, batch, recipe.compute, target_positions_BR, method=method)

    def apply_looped(params, batch, target_positions_BR):  # run now and then: what counts is that it compiles fast
        compute = dataclasses.replace(recipe.compute, unroll=1)
        return make_model(recipe.model)[1](params, batch, compute, target_positions_BR)

    settings = {
        "trainable": recipe.trainable,
        "accumulation": config.accumulation,
        "target_budget": targets,
        "sources": sources,
        "z_loss": options.z_loss,
        "logit_softcap": recipe.model.decoder.logit_softcap,
        "image_offset": recipe.template.codebook.offset if recipe.template.codebook.is_learnt else 0,
    }
    objective = objective_of(recipe, model, targets, sources) if recipe.preference else None
    noise_of = make_noise(model, config.seed)
    step = make_train_step(apply, optimizer, **settings, noise=noise_of, objective=objective, experts=experts)
    first_state = functools.partial(init_state, optimizer=optimizer, trainable=recipe.trainable)
    seed = config.seed if model != recipe.model else 0  # of dropout
    key = repr(
        (model, seed, recipe.compute, options.to_json(sort_keys=True), steps, settings, recipe.preference, experts)
    )
    schedule = jax.jit(schedule)  # for the log, which would make a program of each of its operations
    of_groups = {name: settings[name] for name in settings if name not in ("sources", "image_offset")}
    return Program(recipe, step, first_state, schedule, key, make_group_norms(apply_looped, **of_groups))


def fresh_state(program: Program, mesh: Mesh, seed: int) -> TrainState:
    """The state of random parameters, on the mesh; sharded ones are the same numbers, as JAX's keys are counters."""

    def make(data: jax.Array) -> tuple[TrainState]:
        init, _ = make_model(program.recipe.model)
        return (program.first_state(init(jax.random.wrap_key_data(data))),)

    data = jax.device_put(jax.random.key_data(jax.random.key(seed)), sharding.replicated(mesh))
    made = lower(make, (data,), key=f"fresh state: {program.key}", out_shardings=(program.shardings(mesh),))
    return compile_unoptimized(made, CPU_DRAWN)(data)[0]


def abstract_batch(
    recipe: Recipe, budgets: Budgets, rows: int, mesh: Mesh, widths: Mapping[str, int] = {}
) -> Batch:  # fmt: skip
    """Shapes and shardings of a global batch."""
    where = sharding.row_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=where),
        empty_batch(1, budgets, recipe.image, widths),
    )
