"""Adapters against PEFT, on every family's class: ours written and loaded there, theirs saved and read here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parities.models import case

pytestmark = pytest.mark.parity

# A case of each family, and the kinds that it is tried with.
FAMILIES = {
    "siglip2 + llama": "dora", "llava, clip": "lora", "llava, siglip": "rslora", "qwen2.5-vl": "dora",
    "qwen3-vl": "rslora", "gemma3": "lora", "internvl": "rslora",
}  # fmt: skip
LOGITS = 1e-4  # that may differ, of logits around 1


@pytest.fixture(scope="module", params=list(FAMILIES))
def world(request, tmp_path_factory) -> Any:
    import parity

    return parity.world(case(request.param), tmp_path_factory.mktemp("models") / "base")


def targets_of(world: Any) -> tuple[str, ...]:
    """All linear maps, but for those that are none in the class of ``transformers``."""
    connector = () if world.case.family == "gemma3" else ("connector",)
    return ("vision", "decoder", *connector)


def adapted(world: Any, **options: Any) -> tuple[Any, dict]:
    """The model with adapters, and its parameters by path, factors at random."""
    import jax

    from jaxmm.models.adapters import AdapterSpec, is_learnt_factor
    from jaxmm.models.multimodal import begin_adapters
    from jaxmm.models.tree import flat

    spec = AdapterSpec(**({"targets": targets_of(world), "rank": 3, "alpha": 5.0} | options))
    model = dataclasses.replace(world.layout.spec, adapter=spec)
    params = flat(begin_adapters(world.params, model, jax.random.key(0)))
    rng = np.random.default_rng(0)
    for path, x in params.items():
        if is_learnt_factor(path):
            params[path] = x + 0.1 * rng.standard_normal(x.shape, np.float32)
    return model, params


def said_here(world: Any, model: Any, params: dict) -> list[np.ndarray]:
    """Logits of each document."""
    import jax
    from parities.batch import packed

    from jaxmm.models.multimodal import Compute, make_model
    from jaxmm.models.tree import nested

    batch = packed(world.documents, world.layout.spec)
    hidden_BTD, head_VD = jax.jit(lambda p: make_model(model)[1](p, batch, Compute()))(nested(params))
    lengths = np.bincount(batch.text.segments[0])[1:]
    logits_TV = np.asarray(hidden_BTD[0] @ head_VD.T)
    return np.split(logits_TV[: lengths.sum()], np.cumsum(lengths)[:-1])


def said_there(world: Any, model: Any) -> list[np.ndarray]:
    import torch
    from parities.batch import alone

    with torch.no_grad():
        return [model(**alone(d, world.case, world.layout.spec)).logits[0].numpy() for d in world.documents]


def apart(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def loaded(folder: Path, base: Path) -> Any:
    """The model of a folder with the adapters of another, as PEFT loads them; it says which tensors it did not use."""
    import warnings

    import peft
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(base, attn_implementation="eager").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=kind)
        return peft.PeftModel.from_pretrained(model, folder).eval()


def test_adapters_written_here_say_the_same_in_peft(world, tmp_path):
    from jaxmm.hf.peft_write import peft_of

    kind = FAMILIES[world.case.name]
    model, params = adapted(world, kind=kind, start="pissa" if kind == "lora" else "")
    peft_of(world.layout, model, params, (), base=world.folder).write(tmp_path, np.float32)
    there = said_there(world, loaded(tmp_path, world.folder))
    ours = said_here(world, model, params)
    assert apart(ours, said_there(world, world.model)) > 100 * LOGITS, "they change what the model says"
    print(world.case.name, kind, apart(ours, there), apart(ours, said_there(world, world.model)), np.abs(ours[0]).max())
    assert apart(ours, there) < LOGITS
