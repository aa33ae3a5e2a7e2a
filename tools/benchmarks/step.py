"""The row of the benchmark that measures the training step of any config on any mesh, as ``jaxmm.train`` runs it.

Rates and the loader's share come from steps in a row on the run's own data. Where a step's time goes comes from
programs that end earlier and earlier (without the optimizer, without the loss, without the decoder), run in turns on
one batch; a part's time is the difference of two. So does one look of the monitor at the attention of that batch.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.row import Measured, Row, Settings
from benchmarks.saves import Stepper, saves
from jaxmm.measure.timing import Figure, in_turns
from jaxmm.training import throughput
from jaxmm.training.throughput import FORMULA

WARM = 3  # steps that are not counted


def measure(settings: Settings) -> Measured:
    """Steps through the run's batches, then times the step's parts."""
    import jax

    from jaxmm import sharding
    from jaxmm.data.loader import batches
    from jaxmm.models.attention import in_words
    from jaxmm.runtime.barrier import Barrier
    from jaxmm.training.compiled_step import CompiledStep
    from jaxmm.training.loop import prefetch
    from jaxmm.training.progress import counts_of
    from jaxmm.training.run import Run

    began = time.perf_counter()
    config = settings.config
    run = Run(config, Path(settings.folder) / "run")
    figures: dict[str, Figure] = {}
    with jax.set_mesh(run.mesh), run.checkpoints:
        step = CompiledStep(run.program, run.mesh, run.abstract_batch(), print)
        state = run.initial_state()
        total = WARM + settings.repeats
        source = batches(
            run.plan, run.assemble, 0, total, local_rows=sharding.local_rows(run.mesh, config.batch_size),
            threads=config.data.threads, workers=config.data.workers,
        )  # fmt: skip
        ahead = prefetch(source, lambda batch: sharding.place_batch(batch, run.mesh))
        seconds, counts = [], []
        for number in range(total):
            if number == WARM and settings.profile:
                jax.profiler.start_trace(settings.profile)
            start = time.perf_counter()
            loaded, batch = next(ahead)
            wait = time.perf_counter() - start
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            if number == 0:
                figures["first step"] = Figure([time.perf_counter() - began], "s")
            if number >= WARM:
                seconds.append(time.perf_counter() - start)
                counts.append(dataclasses.replace(counts_of(loaded, run), wait_seconds=wait))
        if settings.profile:
            jax.profiler.stop_trace()

        def of_all(own: list[float]) -> list[float]:
            return Barrier("benchmark").total(own, run.local_rows[0], "the figures of all rows")

        figures |= rates(seconds, counts, jax.devices()[0].device_kind, run.mesh.size, of_all)
        figures["peak memory"] = Figure([throughput.peak_memory_bytes(jax.local_devices()) / 2**20], "MiB")
        stepper = Stepper(step, state, batch)
        of_saves, how_saved = saves(
            run, stepper, statistics.median(seconds), min(settings.repeats, 3), Path(settings.folder)
        )
        shares, without = parts(run, step, stepper.state, loaded, batch, settings.repeats)
        figures |= shares | of_saves
    recipe = run.recipe
    notes = [
        f"mesh {dict(run.mesh.shape)}, compute in {recipe.compute.dtype}, "
        f"attention by {in_words(recipe.compute.attention)}, remat '{recipe.compute.remat}'; {config.batch_size} rows "
        f"of {run.budgets.tokens} tokens and {run.budgets.patches} patches",
        FORMULA,
        *without,
        *how_saved,
    ]
    if settings.profile:
        notes.append(f"trace in {settings.profile}: xprof {settings.profile}, or TensorBoard's profile plugin")
    return Measured(figures, notes)


def rates(
    seconds: list[float], counts: list[throughput.Counts], device_kind: str, devices: int, total: throughput.Total
) -> dict[str, Figure]:  # fmt: skip
    """Step time, rates, fills and MFU, one sample a step.

    Args:
      counts: of this process's rows, which ``total`` adds up over all rows.
    """
    throughput.of_all_rows(counts, total)

    def per_second(name: str) -> list[float]:
        return [getattr(count, name) / each for count, each in zip(counts, seconds, strict=True)]

    found = {
        "step": Figure([1000 * each for each in seconds], "ms"),
        "tokens": Figure(per_second("tokens"), "/s"),
        "images": Figure(per_second("images"), "/s"),
        "token fill": Figure([count.tokens / count.token_capacity for count in counts], ""),
        "patch fill": Figure([count.patches / max(count.patch_capacity, 1) for count in counts], ""),
        "data wait": Figure(per_second("wait_seconds"), "of the step"),
        "model FLOPs": Figure([rate / 1e12 for rate in per_second("flops")], "TFLOP/s"),
    }
    known = [throughput.mfu(rate, device_kind, devices) for rate in per_second("flops")]
    samples = [mfu for mfu in known if mfu is not None]
    return found | ({"MFU": Figure(samples, "of the bf16 peak")} if samples else {})


def parts(
    run: Any, step: Any, state: Any, loaded: Any, batch: Any, repeats: int
) -> tuple[dict[str, Figure], list[str]]:  # fmt: skip
    """Shares of the step's time, as differences of programs that end earlier; paired sample by sample.

    Returns:
      The shares, and where there are none, a note that says why.
    """
    import jax

    accumulation = run.config.accumulation
    if accumulation > 1:
        return {}, [
            f"no shares of the step's time: the programs that end earlier take all rows at once, not in {accumulation} "
            f"microbatches; --config.accumulation=1 has them"
        ]
    if run.config.objective:
        return {}, [
            f"no shares of the step's time: the programs that end earlier learn targets, not preferences, as "
            f"config.objective={run.config.objective} does"
        ]
    try:
        found = in_turns(programs(run, step, state, loaded, batch), repeats)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {}, [
            "no shares of the step's time: the programs that end earlier, which run beside the step's state, ran out "
            "of memory"
        ]
    shares = {
        "share of tower and connector": found["tower"],
        "share of decoder": [b - a for a, b in zip(found["tower"], found["hidden"], strict=True)],
        "share of loss": [b - a for a, b in zip(found["hidden"], found["loss"], strict=True)],
        "share of optimizer": [b - a for a, b in zip(found["loss"], found["step"], strict=True)],
        "a look at attention": found["look"],
    }
    return {
        name: Figure([each / whole for each, whole in zip(samples, found["step"], strict=True)], "of the step")
        for name, samples in shares.items()
    }, []


def programs(run: Any, step: Any, state: Any, loaded: Any, batch: Any) -> dict[str, Callable[[], Any]]:
    """The step, gradients of programs that end after the tower, the decoder and the loss, and the monitor's look at the
    batch; each waits for itself."""
    import jax

    from jaxmm.models.multimodal import make_model
    from jaxmm.models.tree import joined
    from jaxmm.monitor.attention import AttentionMonitor
    from jaxmm.runtime.jax_internals import step_options
    from jaxmm.training.loss import batch_loss, select_targets

    recipe, targets = run.recipe, run.budgets.targets
    _, apply = make_model(recipe.model)
    # Copies, as a step uses up the state it is given.
    trainable, fixed = jax.tree.map(lambda x: x.copy(), recipe.trainable.split(state.params))

    def total(x: Any) -> jax.Array:
        return sum(leaf.astype("float32").sum() for leaf in jax.tree.leaves(x))

    def tower(params: Any, batch: Any) -> jax.Array:
        return total(apply(params, batch, recipe.compute, method="soft_tokens"))

    def hidden(params: Any, batch: Any) -> jax.Array:
        target_positions_BR = select_targets(batch, targets).target_positions_BR
        return apply(params, batch, recipe.compute, target_positions_BR)[0].astype("float32").sum()

    def loss(params: Any, batch: Any) -> jax.Array:
        hidden_at = functools.partial(apply, params, batch, recipe.compute)
        softcap = recipe.model.decoder.logit_softcap
        return batch_loss(hidden_at, batch, targets, run.config.optimizer.z_loss, softcap)[0]

    def gradients(f: Callable) -> Callable[[], Any]:
        made = jax.jit(jax.grad(lambda trainable, fixed, batch: f(joined(trainable, fixed), batch)))
        done = made.lower(trainable, fixed, batch).compile(step_options())
        return lambda: jax.block_until_ready(done(trainable, fixed, batch))

    held = [state]

    def whole() -> None:
        held[0], metrics = step(held[0], batch)
        jax.block_until_ready(metrics)

    monitor = AttentionMonitor(
        recipe.model, recipe.compute, run.mesh, run.corpus.lengths, recipe.template, run.config.monitor.queries,
        run.config.accumulation,
    )  # fmt: skip
    params = joined(trainable, fixed)
    ending = (("tower", tower), ("hidden", hidden), ("loss", loss))
    return {**{name: gradients(f) for name, f in ending}, "step": whole,
            "look": lambda: monitor(params, loaded, batch)}  # fmt: skip


ROWS = [Row("step", "the config's own data and mesh", {}, measure)]
