"""The part of ``jaxmm check`` that measures a whole training step of a model with random weights, on one device.

Rows hold documents of a picture and a text. The loader reads them, decodes their JPEGs and packs them while the step
runs; its turns are beside those on one batch that lies on the device.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxmm import formatting
from jaxmm.checks.row import FAILED, MEASURED, Row, one_line
from jaxmm.measure.case import PeerCase
from jaxmm.training import throughput
from jaxmm.training.throughput import FORMULA


class Size(NamedTuple):
    """A model and its rows.

    Attributes:
      remats: what is tried, one after the other, until it fits.
      steps: of a turn.
    """

    case: PeerCase
    head_dim: int
    remats: tuple[str, ...]
    steps: int = 8


_OF_ROWS: dict[str, Any] = {
    "patch": 16,
    "grid": 16,
    "documents": 16,
    "text": 256,
    "vocabulary": 151_936,
    "loader": True,
}
SIZES = {
    # About the sizes of SigLIP 2 B and Qwen 2.5 0.5B, of SigLIP 2 So400m and Qwen 3 1.7B; embeddings tied.
    "0.5B": Size(
        PeerCase(
            vision_layers=12, vision_width=768, vision_heads=12, vision_mlp=3072, layers=24, width=896, heads=14,
            kv_heads=2, mlp=4864, rows=2, **_OF_ROWS,
        ),
        64, ("none", "full"),
    ),
    "2B": Size(
        PeerCase(
            vision_layers=27, vision_width=1152, vision_heads=16, vision_mlp=4304, layers=28, width=2048, heads=16,
            kv_heads=8, mlp=6144, rows=1, **_OF_ROWS,
        ),
        128, ("none", "full"),
    ),
}  # fmt: skip
_SMALL: dict[str, Any] = {"grid": 4, "documents": 4, "text": 48, "vocabulary": 4096, "rows": 2, "loader": True}
SMALL_SIZES = {
    "0.5B": Size(
        PeerCase(
            vision_layers=2, vision_width=64, vision_heads=2, vision_mlp=128, layers=2, width=128, heads=4, kv_heads=2,
            mlp=256, **_SMALL,
        ),
        32, ("none",), 4,
    ),
    "2B": Size(
        PeerCase(
            vision_layers=2, vision_width=96, vision_heads=3, vision_mlp=192, layers=2, width=192, heads=4,
            kv_heads=2, mlp=384, **_SMALL,
        ),
        48, ("none",), 4,
    ),
}  # fmt: skip
WARM = 3  # steps of a turn that are not counted: what was made ahead is used up
TURNS = 2


def rows(name: str, attention: str = "") -> Iterator[Row]:
    """One row.

    Args:
      name: of a size.
      attention: backend; '' is the platform's best.
    """
    import jax

    on_cpu = jax.default_backend() == "cpu"
    size = (SMALL_SIZES if on_cpu else SIZES)[name]
    name, refused = name + ", small here" * on_cpu, ""
    for remat in size.remats:
        try:
            yield measured(name, size, remat, attention, on_cpu)
            return
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            refused = one_line(str(error))
        gc.collect()
    yield Row(name, FAILED, f"does not fit this device's memory, with remat {' or '.join(size.remats)}: {refused}")


def spec_of(size: Size) -> Any:
    from jaxmm.models.connector import ConnectorSpec
    from jaxmm.models.decoder import DecoderSpec
    from jaxmm.models.multimodal import ModelSpec
    from jaxmm.models.towers.vit import VisionSpec

    case = size.case
    return ModelSpec(
        VisionSpec(
            width=case.vision_width, layers=case.vision_layers, heads=case.vision_heads, mlp=case.vision_mlp,
            patch_size=case.patch, positions=case.grid,
        ),
        ConnectorSpec(merge=1, mlp=case.width),
        DecoderSpec(
            vocab_size=case.vocabulary, width=case.width, layers=case.layers, heads=case.heads,
            kv_heads=case.kv_heads, head_dim=size.head_dim, mlp=case.mlp, tie_embeddings=True, qk_norm=True,
        ),
    )  # fmt: skip


class Stepper:
    """A model that is stepped, as ``train`` steps it, on batches of the loader or on one of them again and again."""

    def __init__(self, size: Size, remat: str, attention: str, on_cpu: bool, folder: Path):
        import jax
        import optax

        from jaxmm import sharding
        from jaxmm.data.assemble import Assembler
        from jaxmm.measure import case_data as peer_data
        from jaxmm.models.attention import choose_backend
        from jaxmm.models.compute import Compute
        from jaxmm.models.multimodal import make_model
        from jaxmm.runtime.jax_internals import compile_lowered, step_options
        from jaxmm.training.optimizer import make_optimizer
        from jaxmm.training.step import init_state, make_train_step

        case = size.case
        self.backend = choose_backend(attention, jax.default_backend(), 0)
        self.documents = peer_data.read(case, folder, 0)
        self.assemble = Assembler([self.documents.lengths], self.documents.budgets, self.documents.image)
        self.mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
        self.place = lambda batch: sharding.place_batch(batch, self.mesh)
        self.spec = spec_of(size)
        init, apply = make_model(self.spec)
        compute = Compute(
            "float32" if on_cpu else "bfloat16", remat, unroll=case.layers if on_cpu else 1, attention=self.backend,
            tile=case.grid**2,
        )  # fmt: skip
        optimizer = make_optimizer(optax.constant_schedule(1e-5))
        step = make_train_step(
            lambda params, batch, target_positions_BR: apply(params, batch, compute, target_positions_BR), optimizer,
            target_budget=case.targets, sources=1,
        )  # fmt: skip
        self.loaded = self.assemble(self.documents.plan.batch(0))
        with jax.set_mesh(self.mesh):
            where = sharding.replicated(self.mesh)
            made = jax.jit(lambda key: init_state(init(key), optimizer), out_shardings=where)
            self.state = made(jax.random.key(0))
            self.cached = self.place(self.loaded.batch)
            lowered = jax.jit(step, donate_argnums=0).lower(self.state, self.cached)
            self.step = compile_lowered(lowered, step_options())

    def seconds(self, source: Iterator[Any], steps: int) -> float:
        """Seconds a step; like ``train``, it reads a step's metrics while the next one runs."""
        import jax

        pending, began = None, 0.0
        with jax.set_mesh(self.mesh):
            for number, batch in zip(range(WARM + steps), source, strict=False):
                if number == WARM:
                    jax.device_get(pending)
                    pending, began = None, time.perf_counter()
                self.state, metrics = self.step(self.state, batch)
                if pending is not None:
                    jax.device_get(pending)
                pending = metrics
            self.metrics = jax.device_get(pending)
        return (time.perf_counter() - began) / steps

    def loader(self, steps: int) -> Iterator[Any]:
        """Batches made ahead in threads, and twice as many as are taken, as in a long run."""
        from jaxmm.data.loader import batches
        from jaxmm.machine import cores
        from jaxmm.training.loop import prefetch

        made = batches(self.documents.plan, self.assemble, 0, 2 * (WARM + steps), threads=max(1, min(cores() - 1, 8)))
        return (batch for _, batch in prefetch(made, self.place))


def measured(name: str, size: Size, remat: str, attention: str, on_cpu: bool) -> Row:
    import jax

    from jaxmm.measure import case_data as peer_data
    from jaxmm.models.flops import batch_flops, parameter_counts

    with tempfile.TemporaryDirectory() as folder:
        peer_data.write(size.case, Path(folder), 0)
        began = time.perf_counter()
        bench = Stepper(size, remat, attention, on_cpu, Path(folder))
        start = time.perf_counter() - began
        seconds: dict[str, list[float]] = {"cached": [], "loader": []}
        for _ in range(TURNS):
            seconds["cached"].append(bench.seconds(itertools.repeat(bench.cached), size.steps))
            seconds["loader"].append(bench.seconds(bench.loader(size.steps), size.steps))
    loss = float(bench.metrics.loss_sum / bench.metrics.weight_sum)
    if not loss > 0 or loss == float("inf"):
        return Row(name, FAILED, f"the loss is {loss}")
    cached = statistics.median(seconds["cached"])
    tokens = int((bench.loaded.batch.text.segments > 0).sum())
    flops = batch_flops(bench.spec, bench.loaded.batch)
    figures: dict[str, Any] = {
        "parameters": sum(parameter_counts(bench.state.params).values()),
        "tokens a step": tokens, "step ms": 1000 * cached, "tokens/s": tokens / cached,
        "model TFLOP/s": flops / cached / 1e12, "MFU": throughput.mfu(flops / cached, jax.devices()[0].device_kind, 1),
        "peak GiB": throughput.peak_memory_bytes(jax.local_devices()[:1]) / 2**30,
        "loader / cached": statistics.median(a / b for a, b in zip(seconds["loader"], seconds["cached"], strict=True)),
        "until compiled s": start, "loss": loss, "attention": bench.backend, "remat": remat, "formula": FORMULA,
    }  # fmt: skip
    told = (
        f"{formatting.short(figures['parameters'])} parameters, {formatting.short(figures['tokens/s'])} tokens/s, "
        f"{figures['model TFLOP/s']:.3g} model TFLOP/s, "
        f"MFU {'not known' if figures['MFU'] is None else format(figures['MFU'], '.1%')}, "
        f"peak {figures['peak GiB']:.3g} GiB, loader / cached {figures['loader / cached']:.3f}; step "
        f"{figures['step ms']:.4g} ms of {tokens} tokens, attention '{bench.backend}', remat '{remat}'"
    )
    return Row(name, MEASURED, told, figures)
