"""One side of the comparison with TRL: a step of DPO on pairs of texts, in a process of its own.

    cd tools; python -m peer.pairs --side=trl --folder=FOLDER

It steps when it is asked to, see ``serving``, and counts pairs and tokens. Both sides have adapters of one rank on all
linear maps of the same decoder, and the decoder beneath them as the reference.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and "--side=jaxmm" in sys.argv:
    from jaxmm.runtime import startup

    startup.use_huge_pages()  # as train does; may start this process again

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxmm import command
from jaxmm.measure.case import BETAS, CLIP, DECAY, EPS, RATE
from peer.serving import Stepped, run_side

SIDES = ("jaxmm", "trl")
BETA = 0.1


@dataclasses.dataclass(frozen=True)
class PairsCase:
    """Sizes of a decoder, of the adapters, and of the texts, in tokens: medians of what is about log-normal.

    Attributes:
      pairs: in a batch of TRL's.
      row, rows: positions of a row, and rows of a batch, of ours: about as many tokens as TRL's batch has.
    """

    layers: int = 8
    width: int = 512
    heads: int = 8
    mlp: int = 1376
    vocabulary: int = 32000
    rank: int = 16
    prompt: int = 100
    answer: int = 150
    longest: int = 400
    pairs: int = 8
    row: int = 2048
    rows: int = 2

    @classmethod
    def load(cls, path: Path) -> PairsCase:
        return cls(**json.loads(path.read_text()))

    def drawn(self, seed: int, count: int = 256) -> list[list[list[int]]]:
        """Pairs: a prompt, a chosen and a rejected answer each, as ids."""
        rng = np.random.default_rng(seed)
        sizes = rng.lognormal(np.log([self.prompt, self.answer, self.answer]), 0.6, (count, 3))
        return [
            [rng.integers(3, self.vocabulary, n).tolist() for n in row]
            for row in np.clip(sizes, 8, self.longest).astype(int).tolist()
        ]

    def llama(self) -> Any:
        """The model's config in ``transformers``."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary, hidden_size=self.width, intermediate_size=self.mlp,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.heads,
            head_dim=self.width // self.heads, max_position_embeddings=4096, tie_word_embeddings=False,
            rms_norm_eps=1e-6,
        )  # fmt: skip


def make(case: PairsCase, folder: Path, seed: int) -> None:
    """Saves the model that both sides start from."""
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(case.llama())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.02)
    model.save_pretrained(folder / "model")


class Trl:
    """TRL's loss under PEFT's adapters: pairs are padded to the longest of a batch."""

    def __init__(self, case: PairsCase, folder: Path, seed: int):
        import datasets
        import peft
        import torch
        import transformers
        import trl
        from trl.trainer.dpo_trainer import DataCollatorForPreference

        model = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
        options = trl.DPOConfig(
            output_dir=str(folder.parent / "trl"), beta=BETA, report_to=[], use_cpu=True, bf16=False, max_length=None,
            gradient_checkpointing=False, per_device_train_batch_size=case.pairs,
        )  # fmt: skip
        unused = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * case.pairs)
        lora = peft.LoraConfig(r=case.rank, lora_alpha=2 * case.rank, target_modules="all-linear")
        self.trainer = trl.DPOTrainer(
            model, args=options, train_dataset=unused, processing_class=transformers.ByT5Tokenizer(), peft_config=lora
        )
        self.model = self.trainer.model.train()
        learnt = [p for p in self.model.parameters() if p.requires_grad]
        self.learnt, self.torch = learnt, torch
        self.optimizer = torch.optim.AdamW(learnt, lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=True)
        self.collate = DataCollatorForPreference(pad_token_id=0)
        pairs, n = case.drawn(seed), case.pairs
        self.batches = itertools.cycle([pairs[i : i + n] for i in range(0, len(pairs) - n + 1, n)])

    def step(self) -> Stepped:
        batch = next(self.batches)
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        inputs = self.collate([dict(zip(names, pair, strict=True)) for pair in batch])
        loss = self.trainer.compute_loss(self.model, inputs)
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.learnt, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Stepped(float(loss.detach()), {"pairs": len(batch), "tokens": int(inputs["attention_mask"].sum())})


class Ours:
    """Our step: pairs are packed."""

    def __init__(self, case: PairsCase, folder: Path, seed: int):
        from jaxmm.runtime import startup

        startup.split_cpu({"data": -1, "fsdp": 1}, case.rows)
        import jax
        import optax

        from jaxmm import sharding
        from jaxmm.batch import ANSWER, TARGET
        from jaxmm.data.assemble import Assembler
        from jaxmm.data.packing.plan import Lengths, Plan, choose_budgets
        from jaxmm.data.prepare.index import InMemory
        from jaxmm.data.text.encoded import Encoded
        from jaxmm.hf import folder as hf
        from jaxmm.hf.decoders import DECODERS
        from jaxmm.hf.families.family import OLD, Layout
        from jaxmm.image_spec import ImageSpec
        from jaxmm.models.adapters import AdapterSpec
        from jaxmm.models.decoder import DecoderSpec
        from jaxmm.models.multimodal import Compute, ModelSpec, begin_adapters, make_model
        from jaxmm.models.trainable import Trainable
        from jaxmm.models.tree import nested
        from jaxmm.runtime.jax_internals import step_options
        from jaxmm.training.optimizer import make_optimizer
        from jaxmm.training.preference import PreferenceSpec
        from jaxmm.training.preference_objective import make_both, make_objective
        from jaxmm.training.step import init_state, make_train_step

        def encoded(prompt: list[int], answer: list[int]) -> Encoded:
            return Encoded(
                np.array([*prompt, *answer], np.int32), np.array([0, len(prompt)], np.int32),
                np.array([0, TARGET | ANSWER], np.uint8), np.zeros(0, np.int32), np.ones(2, np.float32),
            )  # fmt: skip

        texts = case.drawn(seed)
        both = [encoded(prompt, chosen).beside(encoded(prompt, other), "better") for prompt, chosen, other in texts]
        blind = ImageSpec(is_sighted=False)
        lengths = Lengths(InMemory("pairs", both, [[] for _ in both], ""), blind)
        budgets = choose_budgets([lengths], [1.0], case.row, 0, 0, 1)
        self.plan, self.assemble = (
            Plan([lengths], [1.0], budgets, case.rows, seed),
            Assembler([lengths], budgets, blind),
        )
        decoder = DecoderSpec(
            vocab_size=case.vocabulary, width=case.width, layers=case.layers, heads=case.heads, kv_heads=case.heads,
            head_dim=case.width // case.heads, mlp=case.mlp, norm_eps=1e-6,
        )  # fmt: skip
        layout = Layout(ModelSpec(None, None, decoder), DECODERS["llama"].rules, OLD)
        self.mesh = sharding.make_mesh({"data": -1})
        where = sharding.replicated(self.mesh)
        base = nested(hf.read_model(folder, layout, lambda path, shape: where).params)
        model = dataclasses.replace(layout.spec, adapter=AdapterSpec(("decoder.blocks",), case.rank, 2.0 * case.rank))
        optimizer = make_optimizer(
            optax.constant_schedule(RATE), b1=BETAS[0], b2=BETAS[1], eps=EPS, weight_decay=DECAY, clip=CLIP
        )
        compute, learnt = Compute("float32", "none", unroll=case.layers), Trainable(adapters=True)
        objective = make_objective(
            make_both(model, compute, shares_media=True, asks_reference=True), PreferenceSpec("dpo", BETA),
            target_budget=budgets.targets, sources=1,
        )  # fmt: skip
        step = make_train_step(
            make_model(model)[1], optimizer, trainable=learnt, target_budget=budgets.targets, sources=1,
            objective=objective,
        )  # fmt: skip
        with jax.set_mesh(self.mesh):
            begun = jax.jit(lambda base: begin_adapters(base, model, jax.random.key(seed)), donate_argnums=0)(base)
            self.state = jax.jit(lambda p: init_state(p, optimizer, learnt), donate_argnums=0)(begun)
            first = sharding.place_batch(self.assemble(self.plan.rows(0, case.rows)).batch, self.mesh)
            self.compiled = jax.jit(step, donate_argnums=0).lower(self.state, first).compile(step_options())
        self.case, self.number = case, 0
        startup.give_back_memory()

    def step(self) -> Stepped:
        import jax

        from jaxmm import sharding

        first = self.number * self.case.rows
        loaded = self.assemble(self.plan.rows(first, first + self.case.rows))
        with jax.set_mesh(self.mesh):
            self.state, metrics = self.compiled(self.state, sharding.place_batch(loaded.batch, self.mesh))
            metrics = jax.device_get(metrics)
        self.number += 1
        tokens = int((loaded.batch.text.segments > 0).sum())
        counts = {"pairs": sum(map(len, loaded.rows)), "tokens": tokens}
        return Stepped(float(metrics.loss_sum / metrics.weight_sum), counts)


def begin(name: str, case: PairsCase, folder: Path, seed: int) -> Callable[[], Stepped]:
    """The step of a side."""
    model = folder / "model"
    return Ours(case, model, seed).step if name == "jaxmm" else Trl(case, model, seed).step


def main(argv: list[str]) -> int:
    """Answers until standard input ends."""
    return run_side(argv, __doc__ or "", SIDES, PairsCase.load, make, begin)


if __name__ == "__main__":
    command.run(main)
