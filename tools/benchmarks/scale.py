"""Rows of the benchmark: attention on packed documents, packing against padding, the way to the first step, and what a
device holds under ``fsdp``."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.row import Measured, Row, Settings, tell
from jaxmm.measure.timing import SIGMA, Figure, in_turns, lognormal

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/base.py"
LENGTH, DOCUMENTS = 8192, 16
HEADS, HEAD = 4, 64
BATCHES, TOGETHER, ROW = 5, 8, 1024  # of the comparison with padding
PATCHES = 16  # of a row, unused: the least there is


def ratio(a: list[float], b: list[float]) -> Figure:
    return Figure([x / y for x, y in zip(a, b, strict=True)], "")


def attention_rows(settings: Settings) -> Measured:
    """Forward and backward of a long row of many documents, of one, and of one by plain attention over T x T."""
    import jax
    import jax.numpy as jnp

    from jaxmm.models.attention import attention, causal

    T = max(128, settings.count(LENGTH) // 128 * 128)
    lengths = lognormal(DOCUMENTS, T, settings.seed)
    many_BT = np.repeat(np.arange(1, DOCUMENTS + 1), lengths)[None, :T].astype(np.int32)
    many_BT = np.pad(many_BT, ((0, 0), (0, T - many_BT.shape[1])))
    keys = jax.random.split(jax.random.key(settings.seed), 3)
    q, k, v = (jax.random.normal(key, (1, T, HEADS, HEAD)) for key in keys)

    def ours(q, k, v, segments_BT):
        return (attention(q, k, v, causal(segments_BT)) * v).sum()

    def dense(q, k, v):
        logits = jnp.einsum("bthd,bshd->bhts", q, k) * HEAD**-0.5
        seen = jnp.arange(T)[:, None] >= jnp.arange(T)
        p = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf))
        return (jnp.einsum("bhts,bshd->bthd", p, v) * v).sum()

    step, plain = (jax.jit(jax.grad(f, (0, 1, 2))) for f in (ours, dense))
    segments = {"documents": jnp.asarray(many_BT), "one": jnp.ones((1, T), jnp.int32)}
    things: dict[str, Callable[[], Any]] = {
        name: functools.partial(lambda s: jax.block_until_ready(step(q, k, v, s)), s) for name, s in segments.items()
    }
    things["dense"] = lambda: jax.block_until_ready(plain(q, k, v))
    times = in_turns(things, settings.repeats)
    area = float((lengths / T) @ (lengths / T))
    return Measured(
        {
            "documents / one": ratio(times["documents"], times["one"]),
            "one / dense": ratio(times["one"], times["dense"]),
            **{name: Figure([1000 * s for s in seconds], "ms") for name, seconds in times.items()},
        },
        [f"a row of {T} positions, {HEADS} heads of {HEAD}; the documents' squares are {area:.3f} of the row's"],
    )


def packed(settings: Settings) -> Measured:
    """Training steps of one decoder on the same documents, packed and padded; useful positions a second."""
    import jax

    from jaxmm.data.documents import Document, Text, Turn
    from jaxmm.data.packing.lengths import Lengths
    from jaxmm.data.packing.limits import Budgets
    from jaxmm.data.packing.plan import Pass
    from jaxmm.data.prepare.index import InMemory
    from jaxmm.data.text.template import Template
    from jaxmm.data.text.tokenizer import load_tokenizer

    bench = Stepper(settings.seed)
    rng = np.random.default_rng(settings.seed)
    median = settings.count(160)
    lengths = np.clip(rng.lognormal(np.log(median), SIGMA, BATCHES * TOGETHER), 8, ROW - 1).astype(int)
    template = Template(load_tokenizer(""), "pretrain")

    def document(size: int) -> Document:
        text = bytes(rng.integers(97, 123, size - 1, dtype=np.uint8)).decode()  # and a token that ends it
        return Document((Turn("document", (Text(text),), True),), "made")

    documents = [document(size) for size in lengths.tolist()]
    source = InMemory("made", [template.encode(d) for d in documents], [[] for _ in documents], template.fingerprint)
    made = Lengths(source, bench.image)
    rows = int(np.ceil(lengths.sum() / ROW / 4)) * 4
    in_rows = Pass([made], Budgets(ROW, PATCHES, 1, ROW), rows)
    padded = []
    for batch in lengths.reshape(BATCHES, TOGETHER):
        longest = -(-int(batch.max()) // 16) * 16
        padded.append(Budgets(longest, PATCHES, 1, longest))
    things: dict[str, Callable[[], Any]] = {
        "packed": bench.steps([made], [(in_rows.budgets, in_rows.batch(k)) for k in range(len(in_rows))]),
        "padded": bench.steps([made], [
            (budgets, [[piece_of(made, TOGETHER * n + i)] for i in range(TOGETHER)]) for n, budgets in enumerate(padded)
        ]),
    }  # fmt: skip
    times = in_turns(things, settings.repeats)
    fill = lengths.sum() / (len(in_rows) * rows * ROW)
    waste = lengths.sum() / sum(TOGETHER * budgets.tokens for budgets in padded)
    return Measured(
        {
            "packed / padded": ratio(times["padded"], times["packed"]),
            **{name: Figure([lengths.sum() / s for s in seconds], "tokens/s") for name, seconds in times.items()},
        },
        [
            f"{len(lengths)} documents, lognormal with median {median} and sigma {SIGMA}: packed into rows of {ROW} "
            f"({fill:.3f} full), or {TOGETHER} at a time padded to the longest ({waste:.3f} full); the same step",
            f"on {jax.device_count()} devices",
        ],
    )


def piece_of(lengths: Any, example: int) -> Any:
    from jaxmm.data.packing.plan import Piece

    return Piece(0, example, 0, int(lengths.tokens_E[example]))


class Stepper:
    """A small text decoder that is stepped on any rows: each shape is compiled once, before it is timed."""

    def __init__(self, seed: int):
        from jaxmm.runtime import startup

        startup.split_cpu({"data": -1}, 4)
        import jax
        import optax

        from jaxmm import sharding
        from jaxmm.image_spec import ImageSpec
        from jaxmm.models.connector import ConnectorSpec
        from jaxmm.models.decoder import DecoderSpec
        from jaxmm.models.multimodal import Compute, ModelSpec, make_model
        from jaxmm.models.towers.vit import VisionSpec
        from jaxmm.models.trainable import Trainable
        from jaxmm.training.optimizer import make_optimizer
        from jaxmm.training.step import init_state, make_train_step

        self.image = ImageSpec(patch_size=16, merge=1)
        decoder = DecoderSpec(
            vocab_size=4096, width=256, layers=4, heads=4, kv_heads=4, head_dim=64, mlp=688
        )  # fmt: skip
        spec = ModelSpec(VisionSpec(width=32, layers=1, heads=1, mlp=32), ConnectorSpec(merge=1, mlp=32), decoder)
        init, apply = make_model(spec)
        self.mesh = sharding.make_mesh({"data": -1})
        optimizer, trainable = make_optimizer(optax.constant_schedule(1e-4)), Trainable(("vision", "connector"))
        self.state = jax.jit(
            lambda key: init_state(init(key), optimizer, trainable),
            out_shardings=sharding.replicated(self.mesh),
        )(jax.random.key(seed))  # fmt: skip

        def step_of(targets: int) -> Any:
            step = make_train_step(
                lambda params, batch, targets_BR: apply(params, batch, Compute(unroll=4), targets_BR), optimizer,
                trainable=trainable, target_budget=targets, sources=1,
            )  # fmt: skip
            return jax.jit(step, donate_argnums=0)

        self._step_of = functools.cache(step_of)

    def steps(self, lengths: list[Any], planned: list[tuple[Any, Any]]) -> Callable[[], None]:
        """Steps on the batches of (budgets, rows), which are on the device then."""
        import jax

        from jaxmm import sharding
        from jaxmm.data.assemble import Assembler

        place = functools.partial(sharding.place_batch, mesh=self.mesh)
        made = [(budgets, place(Assembler(lengths, budgets, self.image)(rows).batch)) for budgets, rows in planned]

        def run() -> None:
            metrics = None
            with jax.set_mesh(self.mesh):
                for budgets, batch in made:
                    self.state, metrics = self._step_of(budgets.targets)(self.state, batch)
            jax.block_until_ready(metrics)

        return run


def first_step(settings: Settings) -> Measured:
    """Seconds from the command to the line of its first step; each time a new process, the demo prepared."""
    folder = Path(settings.folder)
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}

    def run(number: int, compiled: Path) -> float:
        tell(f"first step: run {number + 1} of {2 * settings.repeats + 1}")
        command = [
            sys.executable, "-m", "jaxmm.train", f"--config={CONFIG}", f"--workdir={folder / str(number)}",
            "--config.log.every=1", f"--config.data.cache={folder / 'cache'}",
        ]  # fmt: skip
        began = time.perf_counter()
        with subprocess.Popen(
            command, cwd=ROOT, env={**environment, "JAX_COMPILATION_CACHE_DIR": str(compiled)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if line.startswith("step 1/"):
                    seconds = time.perf_counter() - began
                    process.kill()
                    return seconds
        raise RuntimeError("".join(said))

    run(0, folder / "warm")  # prepares the demo
    cold = [run(2 * n + 1, folder / f"cold{n}") for n in range(settings.repeats)]
    warm = [run(2 * n + 2, folder / "warm") for n in range(settings.repeats)]
    return Measured({"warm": Figure(warm, "s"), "cold": Figure(cold, "s")})


def shards(settings: Settings) -> Measured:
    """Bytes of parameters and moments on a device, times the devices, over those on one."""
    import jax

    from jaxmm import command, sharding
    from jaxmm.estimate import shard_bytes
    from jaxmm.recipe import read_recipe
    from jaxmm.training.program import make_program

    jax.config.update("jax_num_cpu_devices", 8)
    config = command.parse([f"--config={CONFIG}"], {}).config
    program = make_program(config, read_recipe(config), steps=1, targets=256, sources=1)
    held = {}
    for devices in (1, 2, 4, 8):
        mesh = sharding.make_mesh({"data": 1, "fsdp": devices}, jax.devices()[:devices])
        state = program.abstract_state(mesh)
        held[devices] = {"parameters": shard_bytes(state.params), "moments": shard_bytes(state.opt_state)}
    return Measured({
        f"{what}, fsdp {n}": Figure([n * held[n][what] / held[1][what]], "of 1/N")
        for n in (2, 4, 8) for what in ("parameters", "moments")
    })  # fmt: skip


ROWS = [
    Row(
        "attention",
        "a row of 8,192 positions: 16 lognormal documents, one document, and one by plain attention",
        {"documents / one": "<= 0.1667", "one / dense": "<= 1.1"},
        attention_rows,
    ),
    Row("packed", "lognormal documents of text, packed or padded", {"packed / padded": ">= 2.5"}, packed),
    Row("first_step", "configs/base.py, from the command on", {"warm": "<= 6", "cold": "<= 10"}, first_step),
    Row(
        "shards",
        "configs/base.py under fsdp",
        {f"{what}, fsdp {n}": "<= 1.05" for n in (2, 4, 8) for what in ("parameters", "moments")},
        shards,
    ),
]
