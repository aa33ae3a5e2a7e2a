"""Rows of the benchmark: a step of adapters over frozen weights, beside PEFT and PyTorch, and beside our own full step;
and a step of DPO, beside TRL, and beside two rows that are learnt word by word.

Each side is a process of its own, as in ``peer``, and they step in turns.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from peer.pairs import PairsCase

from benchmarks.peer import AGREE, STEPS, WARM, WIDE, Side, made
from benchmarks.row import Measured, Row, Settings, tell
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec
from jaxmm.measure.case import RATE, PeerCase
from jaxmm.measure.timing import Figure

RANK = 16
PAIR_STEPS = 6  # of a side in a turn: their batches are of different lengths
LORA = dataclasses.replace(WIDE, rank=RANK)


def in_turns(sides: Sequence[tuple[str, Side]], repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of a step of each side, a number a turn, and its peak memory in bytes."""
    seconds: dict[str, list[float]] = {name: [] for name, _ in sides}
    peaks = dict.fromkeys(seconds, 0.0)
    for turn in range(1, repeats + 1):
        tell(f"{' beside '.join(seconds)}: turn {turn} of {repeats}")
        for name, side in sides:
            found = side.steps(STEPS)
            seconds[name].append(float(np.median(found["seconds"])))
            peaks[name] = max(peaks[name], found["peak"])
    return seconds, peaks


def beside_peft(case: PeerCase, settings: Settings) -> Measured:
    """The step of adapters, theirs and ours."""
    if importlib.util.find_spec("peft") is None:
        raise UserError("--part=tuning runs PEFT and PyTorch too: pip install -e '.[parity]'")
    folder = Path(settings.folder)
    made(case, folder, settings.seed)
    base = sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors"))
    with Side("jaxmm", folder, settings.seed) as ours, Side("torch-float32", folder, settings.seed) as theirs:
        first = [side.steps(WARM)["losses"] for side in (ours, theirs)]
        apart = abs(first[0][0] - first[1][0])  # behind it, the factors that begin at random differ
        if not apart <= AGREE:
            raise UserError(f"the first losses of jaxmm and PEFT differ by {apart:.2g}: it is not the same work")
        seconds, peaks = in_turns([("jaxmm", ours), ("peft", theirs)], settings.repeats)
    ratios = [a / b for a, b in zip(seconds["jaxmm"], seconds["peft"], strict=True)]
    beyond = {name: peak - base for name, peak in peaks.items()}
    figures = {
        "time / peft": Figure(ratios, ""),
        "memory beyond the base / peft": Figure([beyond["jaxmm"] / beyond["peft"]], ""),
        **{f"step, {name}": Figure([1000 * s for s in each], "ms") for name, each in seconds.items()},
        **{f"memory beyond the base, {name}": Figure([each / 2**20], "MiB") for name, each in beyond.items()},
    }
    return Measured(figures, [f"rank {case.rank} on all linear maps; {base / 2**20:.0f} MiB of frozen weights"])


def beside_full(case: PeerCase, settings: Settings) -> Measured:
    """The step of adapters beside that of all weights, both ours."""
    if importlib.util.find_spec("torch") is None:
        raise UserError("--part=tuning makes its model with PyTorch: pip install -e '.[parity]'")
    folder, whole = Path(settings.folder) / "adapters", Path(settings.folder) / "whole"
    made(case, folder, settings.seed)
    whole.mkdir(parents=True, exist_ok=True)
    dataclasses.replace(case, rank=0).save(whole / "case.json")
    if not (whole / "model").exists():
        os.symlink(folder / "model", whole / "model")
    with Side("jaxmm", folder, settings.seed) as lora, Side("jaxmm", whole, settings.seed) as full:
        counted = [side.steps(WARM) for side in (lora, full)]
        seconds, _ = in_turns([("adapters", lora), ("all weights", full)], settings.repeats)
    ratios = [a / b for a, b in zip(seconds["adapters"], seconds["all weights"], strict=True)]
    times = {f"step, {name}": Figure([1000 * s for s in each], "ms") for name, each in seconds.items()}
    compiled = {
        f"{name} of the compiled step / all weights": Figure([counted[0][key] / counted[1][key]], "")
        for name, key in (("FLOPs", "flops"), ("bytes", "bytes"))
    }
    figures = {"time / all weights": Figure(ratios, ""), **compiled, **times}
    told = [
        f"{name}: {one['flops'] / WARM / 1e9:.1f} GFLOP, {one['bytes'] / WARM / 1e9:.1f} GB"
        for name, one in zip(seconds, counted, strict=True)
    ]
    return Measured(figures, [f"rank {case.rank} on all linear maps", *told])


def beside_trl(case: PairsCase, settings: Settings) -> Measured:
    """The step of DPO, theirs and ours, by pairs: a batch of ours holds as many as fit."""
    if importlib.util.find_spec("trl") is None:
        raise UserError("--part=tuning runs TRL and PyTorch too: pip install -e '.[parity]'")
    folder, module = Path(settings.folder), "peer.pairs"
    made(case, folder, settings.seed, module)
    samples: dict[str, list[float]] = {"jaxmm": [], "trl": []}
    rates: dict[str, list[float]] = {"jaxmm": [], "trl": []}
    with Side("jaxmm", folder, settings.seed, module) as ours, Side("trl", folder, settings.seed, module) as theirs:
        for side in (ours, theirs):
            (first, *_) = side.steps(WARM)["losses"]
            if not abs(first - math.log(2)) <= AGREE:
                raise UserError(f"the first loss of {side.name} is {first:.6f}, and that of DPO is log 2")
        for turn in range(1, settings.repeats + 1):
            tell(f"jaxmm beside trl: turn {turn} of {settings.repeats}")
            for side in (ours, theirs):
                found = side.steps(PAIR_STEPS)
                samples[side.name].append(sum(found["seconds"]) / found["pairs"])
                rates[side.name].append(found["tokens"] / sum(found["seconds"]))
    ratios = [a / b for a, b in zip(samples["jaxmm"], samples["trl"], strict=True)]
    figures = {"time a pair / trl": Figure(ratios, "")}
    figures |= {f"a pair, {name}": Figure([1000 * s for s in each], "ms") for name, each in samples.items()}
    figures |= {f"tokens, {name}": Figure(each, "/s") for name, each in rates.items()}
    return Measured(figures, [str(case)])


def of_one_tower(settings: Settings) -> Measured:
    """FLOPs of compiled steps, nearly all of the tower: a pair with a picture, beside two rows with its answers."""
    import jax
    import optax

    from jaxmm.data.assemble import Assembler
    from jaxmm.data.documents import Document, Image, Text, Turn
    from jaxmm.data.packing.plan import Budgets, Lengths, Piece
    from jaxmm.data.prepare.index import InMemory
    from jaxmm.data.text.template import Template
    from jaxmm.data.text.tokenizer import load_tokenizer
    from jaxmm.measure.pictures import natural
    from jaxmm.models.adapters import AdapterSpec
    from jaxmm.models.connector import ConnectorSpec
    from jaxmm.models.decoder import DecoderSpec
    from jaxmm.models.multimodal import Compute, ModelSpec, abstract_params, make_model
    from jaxmm.models.towers.vit import VisionSpec
    from jaxmm.models.trainable import Trainable
    from jaxmm.training.optimizer import make_optimizer
    from jaxmm.training.preference import PreferenceSpec
    from jaxmm.training.preference_objective import make_both, make_objective
    from jaxmm.training.step import init_state, make_train_step

    image, template = ImageSpec(patch_size=16, merge=2, max_pixels=256 * 256), Template(load_tokenizer(""), "sft")
    budgets = Budgets(tokens=256, patches=256, items=1, targets=64, pairs=1)
    file = io.BytesIO()
    natural(256, 256, np.random.default_rng(settings.seed)).save(file, "PNG")
    picture = Image(data=file.getvalue())
    asked = Turn("user", (picture, Text("What is it?")), False)
    said = [Turn("assistant", (Text(answer),), True) for answer in ("a thing", "some other thing")]
    pair = Document((asked, said[0]), "pair", verdict="better", other=(asked, said[1]))
    tower = VisionSpec(width=384, layers=6, heads=6, mlp=1536, patch_size=16, positions=16)
    decoder = DecoderSpec(vocab_size=512, width=32, layers=1, heads=2, kv_heads=2, head_dim=16, mlp=32)
    plain = ModelSpec(tower, ConnectorSpec(merge=2, mlp=32), decoder)
    compute, optimizer = Compute("float32", "none", unroll=6), make_optimizer(optax.constant_schedule(RATE))

    def flops(documents: list[Document], targets: tuple[str, ...], asks: bool) -> float:
        lengths = Lengths(
            InMemory("made", template.encode_all(documents), [[picture]] * len(documents), ""), image
        )  # fmt: skip
        rows = [[Piece(0, n, 0, int(tokens))] for n, tokens in enumerate(lengths.tokens_E)]
        batch = Assembler([lengths], budgets, image)(rows).batch
        model = dataclasses.replace(plain, adapter=AdapterSpec(targets, RANK, 2.0 * RANK))
        learnt = Trainable(adapters=True)
        objective = None
        if lengths.preferences:
            shares = "vision" not in targets
            both = make_both(model, compute, shares_media=shares, asks_reference=asks)
            objective = make_objective(both, PreferenceSpec("dpo"), target_budget=64, sources=1)
        step = make_train_step(
            lambda p, b, places: make_model(model)[1](p, b, compute, places), optimizer, trainable=learnt,
            target_budget=64, sources=1, objective=objective,
        )  # fmt: skip
        state = jax.eval_shape(lambda p: init_state(p, optimizer, learnt), abstract_params(model))
        counted = jax.jit(step).lower(state, batch).compile().cost_analysis()
        assert counted is not None, "XLA counts what it compiles for CPUs"
        return float(counted["flops"])

    single = [Document((asked, one), "one") for one in said]
    everywhere = ("vision", "decoder")
    found = {
        "FLOPs, tower frozen": flops([pair], ("decoder",), True) / flops(single, ("decoder",), False),
        "FLOPs, tower adapted": flops([pair], everywhere, True) / flops(single, everywhere, False),
        "FLOPs, tower adapted, reference asked before": flops([pair], everywhere, False)
        / flops(single, everywhere, False),
    }
    return Measured({name: Figure([ratio], "") for name, ratio in found.items()}, [f"rank {RANK}; {tower}"])


ROWS = [
    Row(
        "lora_peft",
        f"adapters of rank {RANK} on tower 12x384 and decoder 8x512; the rows of `wide`",
        {"time / peft": "<= 0.6", "memory beyond the base / peft": "<= 1.15"},
        functools.partial(beside_peft, LORA),
    ),
    Row(
        "lora_full",
        "the same step beside that of all weights",
        {"time / all weights": "<= 0.75"},
        functools.partial(beside_full, LORA),
    ),
    Row(
        "dpo_trl",
        f"DPO of adapters of rank {RANK} on decoder 8x512; pairs of texts of a log-normal length, packed, and padded",
        {"time a pair / trl": "<= 0.6"},
        functools.partial(beside_trl, PairsCase()),
    ),
    Row(
        "dpo_tower",
        "DPO on a pair with one picture, beside two rows of the picture with an answer; tower 6x384",
        {"FLOPs, tower frozen": "<= 0.7", "FLOPs, tower adapted, reference asked before": "<= 0.7"},
        of_one_tower,
    ),
]
