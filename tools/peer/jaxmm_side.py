"""Our side of the comparison: the training step of ``jaxmm.train``, on the same weights and the same batch."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxmm.measure.case import BETAS, CLIP, DECAY, EPS, RATE, PeerCase


def layout_of(case: PeerCase) -> Any:
    """What ``jaxmm.hf`` reads from the model's config, without ``transformers``: it would import PyTorch here too."""
    from jaxmm.hf.decoders import DECODERS
    from jaxmm.hf.families.family import OLD, PROJECTOR, Layout
    from jaxmm.hf.towers import TOWERS
    from jaxmm.models.connector import ConnectorSpec
    from jaxmm.models.decoder import DecoderSpec
    from jaxmm.models.multimodal import ModelSpec
    from jaxmm.models.towers.vit import VisionSpec

    vision = VisionSpec(
        width=case.vision_width, layers=case.vision_layers, heads=case.vision_heads, mlp=case.vision_mlp,
        patch_size=case.patch, positions=case.grid, final_norm=False,
    )  # fmt: skip
    decoder = DecoderSpec(
        vocab_size=case.vocabulary, width=case.width, layers=case.layers, heads=case.heads, kv_heads=case.kv_heads,
        head_dim=case.width // case.heads, mlp=case.mlp, norm_eps=1e-6,
    )  # fmt: skip
    connector = ConnectorSpec(merge=1, mlp=case.width, norm="", activation="gelu")
    rules = [*TOWERS["siglip_vision_model"].rules, *PROJECTOR, *DECODERS["llama"].rules]
    return Layout(ModelSpec(vision, connector, decoder), rules, OLD)


def loaded(case: PeerCase, folder: Path, seed: int, place: Callable[[Any], Any]) -> Iterator[Any]:
    """Batches of the documents in files, as ``jaxmm.train`` loads them; the first one is there twice, to compile by."""
    from jaxmm.data.assemble import Assembler
    from jaxmm.data.loader import batches
    from jaxmm.measure import case_data as peer_data
    from jaxmm.training.loop import prefetch

    documents = peer_data.read(case, folder, seed)
    assemble = Assembler([documents.lengths], documents.budgets, documents.image)
    made = batches(documents.plan, assemble, 0, 10**6, threads=1)
    for number, (_, batch) in enumerate(prefetch(made, place)):
        if number == 0:
            yield batch
        yield batch


class Ours:
    """A model that is stepped."""

    def __init__(self, case: PeerCase, folder: Path, seed: int):
        from jaxmm.runtime import startup

        startup.split_cpu({"data": -1, "fsdp": 1}, case.rows)
        import jax
        import optax

        from jaxmm import sharding
        from jaxmm.hf import folder as hf
        from jaxmm.models.adapters import AdapterSpec
        from jaxmm.models.multimodal import Compute, begin_adapters, make_model
        from jaxmm.models.trainable import Trainable
        from jaxmm.models.tree import nested
        from jaxmm.runtime.jax_internals import step_options
        from jaxmm.training.optimizer import make_optimizer
        from jaxmm.training.step import init_state, make_train_step

        layout = layout_of(case)
        self.mesh = sharding.make_mesh({"data": -1})
        where = sharding.replicated(self.mesh)
        params = nested(hf.read_model(folder, layout, lambda path, shape: where).params)
        model, trainable = layout.spec, Trainable(adapters=case.rank > 0)
        if case.rank:
            spec = AdapterSpec(("vision", "connector", "decoder"), case.rank, 2.0 * case.rank)
            model = dataclasses.replace(model, adapter=spec)
            begun = jax.jit(lambda base: begin_adapters(base, model, jax.random.key(seed)), donate_argnums=0)
            params = begun(params)
        optimizer = make_optimizer(
            optax.constant_schedule(RATE), b1=BETAS[0], b2=BETAS[1], eps=EPS, weight_decay=DECAY, clip=CLIP
        )
        _, apply = make_model(model)
        compute = Compute("float32", "none", unroll=max(case.layers, case.vision_layers), tile=case.grid**2)
        step = make_train_step(
            lambda params, batch, target_positions_BR: apply(params, batch, compute, target_positions_BR), optimizer,
            trainable=trainable, target_budget=case.targets, sources=1,
        )  # fmt: skip
        with jax.set_mesh(self.mesh):
            self.state = jax.jit(lambda p: init_state(p, optimizer, trainable), donate_argnums=0)(params)
            place = functools.partial(sharding.place_batch, mesh=self.mesh)
            if case.loader:
                self.batches = loaded(case, folder.parent, seed, place)
            else:
                self.batches = itertools.repeat(place(self.arrays(case, case.tokens(seed), case.pixels(seed))))
            lowered = jax.jit(step, donate_argnums=0).lower(self.state, next(self.batches))
            self.compiled = lowered.compile(step_options())  # as train does
            counted = self.compiled.cost_analysis()
            assert counted is not None, "XLA counts what it compiles for CPUs"
        self.costs = {"flops": counted["flops"], "bytes": counted["bytes accessed"]}  # of a step, as XLA counts them
        startup.give_back_memory()  # as train does

    def arrays(self, case: PeerCase, tokens: np.ndarray, pixels: np.ndarray):
        """The batch in NumPy."""
        from jaxmm.batch import Batch, Stream

        B, M, P = case.rows, case.documents, case.grid**2
        blocks = pixels.reshape(B * M, case.grid, case.patch, case.grid, case.patch, 3).transpose(0, 1, 3, 2, 4, 5)
        row, column = np.divmod(np.arange(P), case.grid)
        places = np.stack([np.zeros(P), row, column], -1).astype(np.int32)
        is_image = case.positions() < P
        slot = np.cumsum(is_image, 1) - 1
        # A position is a target of the one before it; the first of a text is not one, as on the other side.
        target = np.zeros((B, case.length), bool)
        target[:, :-1] = (case.positions() > P)[:, 1:]
        return Batch(
            text=Stream(
                np.where(is_image, 0, tokens).astype(np.int32), case.positions()[..., None], case.segments()
            ),
            patches=Stream(
                blocks.reshape(B, M * P, -1), np.tile(places, (B, M, 1)),
                np.broadcast_to(np.repeat(np.arange(1, M + 1, dtype=np.int32), P), (B, M * P)),
            ),
            grids_BM3=np.tile(np.array([1, case.grid, case.grid], np.int32), (B, M, 1)),
            slots_BT=np.where(is_image, slot, -1).astype(np.int32),
            blocks_BT=np.where(is_image, case.segments(), 0).astype(np.int32),
            targets_BT=np.roll(tokens, -1, 1).astype(np.int32),
            weights_BT=target.astype(np.float32),
            sources_BT=np.zeros((B, case.length), np.int32),
        )  # fmt: skip

    def step(self) -> float:
        """Runs one step; returns its loss."""
        import jax

        with jax.set_mesh(self.mesh):
            self.state, metrics = self.compiled(self.state, next(self.batches))
            metrics = jax.device_get(metrics)
        return float(metrics.loss_sum / metrics.weight_sum)
