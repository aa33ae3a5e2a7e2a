"""Adapters against PEFT, on every family's class: ours written and loaded there, theirs saved and read here."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parities.models import case

pytestmark = pytest.mark.parity

# A case of each family, and the kinds that it is tried with.
FAMILIES = {
    "siglip2 + llama": "dora", "llava, clip": "lora", "llava, siglip": "rslora", "qwen2.5-vl": "dora",
    "qwen3-vl": "rslora", "gemma3": "lora", "gemma4": "lora", "internvl": "rslora", "lfm2": "dora",
    "qwen3.5": "dora", "qwen3-vl, experts": "rslora", "glm-4.5v": "lora",
}  # fmt: skip
# One of each kind of adapters, of tables of experts, and of modules that wrap a Linear.
CHOSEN = ("siglip2 + llama", "gemma4", "qwen3-vl, experts", "qwen3.5")
# By how much logits of up to 4 may differ: of Qwen3.5 ours are 3.4e-5 from float64 on one CPU, those there 1.5e-5, and
# more on another. And by how much adapters must move them.
LOGITS, MOVED = 1e-4, 0.5


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> Callable[[str], Any]:
    """The models of a case by its name, made once."""
    import parity

    return functools.cache(lambda name: parity.world(case(name), tmp_path_factory.mktemp("models") / "base"))


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in CHOSEN else pytest.mark.full) for name in FAMILIES],
)
def world(request, worlds) -> Any:
    return worlds(request.param)


def targets_of(world: Any) -> tuple[str, ...]:
    """All linear maps, but for those that are none in the class of ``transformers``, or experts' for PEFT alone."""
    if world.layout.taken_for_experts:
        return (
            "vision.blocks.attention",
            "decoder.blocks.attention",
            *(f"*.experts.{n}" for n in ("gate", "up", "down")),
        )
    connector = () if world.case.family == "gemma3" else ("connector",)
    return ("vision", "decoder", *connector)


def drawn(model: Any, base: dict) -> dict:
    """The parameters of a model with adapters by path, the factors at random."""
    from jaxmm.models.adapters import is_factor
    from jaxmm.models.multimodal import flat_axes

    rng = np.random.default_rng(0)
    factors = {path: shape for path, (shape, _) in flat_axes(model).items() if is_factor(path)}
    return base | {
        path: np.float32(path[-1] == "magnitude") + 0.1 * rng.standard_normal(shape, np.float32)
        for path, shape in factors.items()
    }


def adapted(world: Any, **options: Any) -> tuple[Any, dict]:
    """The model with adapters, and its parameters by path, factors at random."""
    from jaxmm.models.adapters import AdapterSpec
    from jaxmm.models.tree import flat

    spec = AdapterSpec(**({"targets": targets_of(world), "rank": 3, "alpha": 5.0} | options))
    model = dataclasses.replace(world.layout.spec, adapter=spec)
    return model, drawn(model, flat(world.params))


def said_here(world: Any, model: Any, params: dict) -> list[np.ndarray]:
    """Logits of each document, with the adapters beside the kernels."""
    import jax

    from jaxmm.models.multimodal import Compute, make_model

    apply = jax.jit(lambda params, batch: make_model(model)[1](params, batch, Compute()))
    return _logits(world, apply, params)


def said_merged(world: Any, model: Any, params: dict) -> list[np.ndarray]:
    """The same with the adapters merged, which ``test_adapters`` shows to be so: one program for both directions."""
    return _logits(world, _plain(world.layout.spec), merged_by(model, params))


def merged_by(model: Any, params: dict) -> dict:
    import jax

    from jaxmm.models.adapters import merged
    from jaxmm.models.multimodal import model_maps

    return jax.jit(lambda params: merged(params, model_maps(model)))(params)


@functools.cache
def _plain(spec: Any) -> Any:
    import jax

    from jaxmm.models.multimodal import Compute, make_model

    return jax.jit(lambda params, batch: make_model(spec)[1](params, batch, Compute()))


def _logits(world: Any, apply: Any, params: dict) -> list[np.ndarray]:
    from parities.batch import packed

    from jaxmm.models.tree import nested

    batch = packed(world.documents, world.layout.spec)
    hidden_BTD, head_VD = apply(nested(params), batch)
    lengths = np.bincount(batch.text.segments[0])[1:]
    logits_TV, cap = np.asarray(hidden_BTD[0] @ head_VD.T), world.layout.spec.decoder.logit_softcap
    logits_TV = cap * np.tanh(logits_TV / cap) if cap else logits_TV
    return np.split(logits_TV[: lengths.sum()], np.cumsum(lengths)[:-1])


def said_there(world: Any, model: Any) -> list[np.ndarray]:
    import torch
    from parities.batch import alone

    with torch.no_grad():
        return [model(**alone(d, world.case, world.layout.spec)).logits[0].numpy() for d in world.documents]


def apart(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def transformers_model(base: Path) -> Any:
    import transformers

    plainly = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return transformers.AutoModelForImageTextToText.from_pretrained(base, **plainly).eval()


@contextlib.contextmanager
def told_as_errors() -> Iterator[None]:
    """PEFT only warns of tensors that it did not find, or did not use.

    It also warns of patterns that mean parameters, though it follows them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="The following .*_pattern keys did not match any targeted module")
        for kind in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=kind)
        yield


def loaded(folder: Path, model: Any, **options: Any) -> Any:
    """The model with the adapters of a folder, as PEFT loads them: on every module and parameter that it names."""
    import json

    import peft

    with told_as_errors():
        found = peft.PeftModel.from_pretrained(model, folder, **options).eval()
    modules, parameters = set(), set()
    for name, module in found.named_modules():
        own = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if isinstance(module, peft.tuners.lora.layer.ParamWrapper):
            parameters.add(f"{own}.{module.parameter_name}")
        elif isinstance(module, peft.tuners.lora.LoraLayer):
            modules.add(own)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert modules == set(config["target_modules"])
    assert parameters == set(config["target_parameters"] or ())
    return found


def saved_by_peft(model: Any, folder: Path, targets: Any, seed: int = 0, **options: Any) -> Any:
    """The model with new adapters, whose second factors are random; they are saved."""
    import peft
    import torch

    config = peft.LoraConfig(target_modules=targets, task_type="CAUSAL_LM", **options)
    with told_as_errors():
        found = peft.get_peft_model(model, config).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    found.save_pretrained(folder)
    return found


def suffixes(layout: Any) -> list[str]:
    """The ends of linear maps' names, as people write targets: with what is before, where others end alike."""
    from jaxmm.hf.map_names import named_maps
    from jaxmm.hf.peft_tables import is_table

    parts = [one.name.split(".") for one in named_maps(layout) if not is_table(one) and not one.experts]
    unclear = ("proj", "linear", *"0123456789")
    return sorted({".".join(names[-2:]) if names[-1] in unclear else names[-1] for names in parts})


def of_experts(layout: Any) -> list[str]:
    """The ends of names of the parameters of experts."""
    from jaxmm.hf.map_names import named_maps

    return sorted({".".join(one.name.split(".")[-2:]) for one in named_maps(layout) if one.experts})


def read_here(folder: Path, layout: Any, params: Any) -> tuple[Any, dict, tuple[str, ...]]:
    """The model with the adapters of a folder, its parameters by path, and what is told."""
    from jaxmm.hf.peft_read import read_peft
    from jaxmm.models.tree import flat

    read = read_peft(folder, layout, layout.spec)
    return dataclasses.replace(layout.spec, adapter=read.spec), flat(params) | read.params, read.told


def test_adapters_written_here_say_the_same_in_peft(world, tmp_path):
    from jaxmm.hf.peft_write import peft_of

    kind = FAMILIES[world.case.name]
    model, params = adapted(world, kind=kind, start="pissa" if kind == "lora" else "")
    peft_of(world.layout, model, params, (), base=world.folder).write(tmp_path, np.float32)
    there = said_there(world, loaded(tmp_path, transformers_model(world.folder)))
    ours = said_merged(world, model, params)
    assert apart(ours, said_there(world, world.model)) > MOVED, "they change what the model says"
    assert apart(ours, there) < LOGITS


def test_adapters_that_peft_saved_say_the_same_here(world, tmp_path):
    kind = FAMILIES[world.case.name]
    save = functools.partial(
        saved_by_peft, transformers_model(world.folder), tmp_path, suffixes(world.layout), r=4, lora_alpha=6,
        use_dora=kind == "dora", use_rslora=kind == "rslora",
        rank_pattern={r"language_model.layers.\d+.(mlp|feed_forward).*": 3},
        alpha_pattern={"k_proj": 5}, target_parameters=of_experts(world.layout) or None,
    )  # fmt: skip
    if world.case.family == "gemma4":  # short names mean the tower's wrappers of a Linear, too
        with pytest.raises(ValueError, match="not supported"):
            save()
        return
    there = save()
    model, params, told = read_here(tmp_path, world.layout, world.params)
    ours = said_merged(world, model, params)
    assert apart(ours, said_there(world, world.model)) > MOVED
    assert apart(ours, said_there(world, there)) < LOGITS
    assert any("layers that run without being used" in line for line in told) == (world.case.family == "llava")
    assert any("becomes 3, which begin alike" in line for line in told) == (
        world.case.name.startswith(("qwen", "lfm2", "glm"))
    )
    is_of_two = (
        bool(of_experts(world.layout)) or world.case.family == "qwen3_5"
    )  # its queries have their gate beside them
    assert any("becomes 2, which begin alike" in line for line in told) == is_of_two


@pytest.mark.usefixtures("whole_transformers")
def test_parameters_of_experts_bear_the_names_and_sizes_of_every_class():
    """Of releases with all experts in one tensor and with one tensor each, in all layers and in some."""
    import torch
    import transformers
    from parities.models import CASES

    from jaxmm.hf.families.registry import layout_of
    from jaxmm.hf.map_names import named_maps
    from jaxmm.models.multimodal import flat_axes

    found = 0
    for one in CASES:
        config = one.config(np.random.default_rng(0))
        layout = layout_of(config)
        maps = [one for one in named_maps(layout) if one.experts]
        shapes = flat_axes(layout.spec)
        with torch.device("meta"):
            model = transformers.AutoModelForImageTextToText.from_config(config) if maps else torch.nn.Module()
        theirs = {n: tuple(p.shape) for n, p in model.named_parameters() if ".experts." in n and ".shared" not in n}
        ours = {}
        for one_map in maps:
            layers, experts, inputs, _ = shapes[(*one_map.paths[0], "kernel")][0]
            for place in range(layers):
                name = one_map.name.replace("{i}", str(one_map.number(place)))
                ours[name] = (experts, sum(one_map.outputs), inputs)
        assert ours == theirs, one.name
        found += bool(maps)
    assert found >= 8


@pytest.fixture(scope="module")
def qwen(worlds) -> Any:
    """A family with fused maps and a tied embedding."""
    return worlds("qwen3-vl")


def test_parts_of_a_fused_map_and_modules_trained_whole_say_the_same_in_peft_and_back(qwen, tmp_path):
    from jaxmm.hf.peft_write import peft_of

    targets = ("vision.blocks.attention.query", "vision.blocks.attention.value", "decoder.blocks.mlp")
    model, params = adapted(qwen, targets=targets, kind="dora", ranks=(("*.value", 2, 1.0), ("*.mlp.up", 4, 1.0)))
    rng = np.random.default_rng(1)
    whole = [path for path in params if path[0] == "connector" or path == ("decoder", "embedding")]
    params |= {path: params[path] + 0.1 * rng.standard_normal(params[path].shape, np.float32) for path in whole}
    (tmp_path / "ours").mkdir()
    peft_of(qwen.layout, model, params, whole, base=qwen.folder).write(tmp_path / "ours", np.float32)
    ours = said_here(qwen, model, params)
    there = loaded(tmp_path / "ours", transformers_model(qwen.folder))
    assert apart(ours, said_there(qwen, qwen.model)) > MOVED
    assert apart(ours, said_there(qwen, there)) < LOGITS
    there.save_pretrained(tmp_path / "theirs")
    model, params, _ = read_here(tmp_path / "theirs", qwen.layout, qwen.params)
    assert apart(ours, said_here(qwen, model, params)) < LOGITS


@pytest.mark.parametrize("name", ["qwen3-vl", "qwen2.5-vl", "gemma3"])
def test_adapters_of_the_embedding_and_the_projection_say_the_same_in_peft_and_back(name, tmp_path):
    """Of tied tables, of two, and of embeddings that are scaled."""
    import parity

    from jaxmm.hf.peft_read import read_peft
    from jaxmm.hf.peft_write import peft_of
    from jaxmm.models.tree import flat

    world = parity.world(case(name), tmp_path / "base")
    is_tied = world.layout.spec.decoder.tie_embeddings
    tables = ("decoder.embedding", "decoder.head")
    model, params = adapted(world, targets=("decoder.blocks.mlp.up", *tables), kind="rslora")
    (tmp_path / "ours").mkdir()
    peft_of(world.layout, model, params, (), base=world.folder).write(tmp_path / "ours", np.float32)
    ours, bare = said_merged(world, model, params), said_there(world, world.model)
    assert apart(ours, bare) > MOVED
    assert apart(ours, said_there(world, loaded(tmp_path / "ours", transformers_model(world.folder)))) < LOGITS
    there = saved_by_peft(
        transformers_model(world.folder), tmp_path / "theirs", ["embed_tokens", "lm_head", "q_proj"], r=4, lora_alpha=6,
        ensure_weight_tying=is_tied,
    )  # fmt: skip
    read = read_peft(tmp_path / "theirs", world.layout, world.layout.spec, world.folder)
    assert {"decoder.embedding"} <= set(read.spec.targets)
    model = dataclasses.replace(world.layout.spec, adapter=read.spec)
    ours = said_merged(world, model, flat(world.params) | read.params)
    assert apart(ours, bare) > MOVED
    assert apart(ours, said_there(world, there)) < LOGITS


@pytest.mark.parametrize("kind", ["lora", "dora"])  # rslora is lora of another scale
def test_gradients_of_factors_are_those_of_peft(kind, qwen, tmp_path):
    """Of every map, of fused ones too: of their second factors in the blocks that ours have."""
    import jax
    import torch
    from parities.batch import alone, packed

    from jaxmm.hf.peft_write import PREFIX, peft_of
    from jaxmm.models.multimodal import Compute, make_model
    from jaxmm.models.tree import flat, nested
    from jaxmm.training.loss import batch_loss, from_hidden

    model, params = adapted(qwen, kind=kind)
    written = peft_of(qwen.layout, model, params, (), base=qwen.folder)
    written.write(tmp_path, np.float32)
    batch = packed(qwen.documents, qwen.layout.spec)

    def loss(params):
        hidden_BTD, head_VD = make_model(model)[1](params, batch, Compute())
        return batch_loss(from_hidden(hidden_BTD, head_VD), batch, batch.targets_BT.shape[1], 0.0)[0]

    gradients = flat(jax.device_get(jax.jit(jax.grad(loss))(nested(params))))
    ours = peft_of(qwen.layout, model, gradients, (), base=qwen.folder).tensors
    there, at = loaded(tmp_path, transformers_model(qwen.folder), is_trainable=True), 0
    for document in qwen.documents:
        logits = there(**alone(document, qwen.case, qwen.layout.spec)).logits[0]
        targets = torch.tensor(batch.targets_BT[0, at : at + len(logits)], dtype=torch.long)
        weights = torch.tensor(batch.weights_BT[0, at : at + len(logits)])
        at += len(logits)
        (torch.nn.functional.cross_entropy(logits, targets, reduction="none") * weights).sum().backward()
    theirs = {}
    for name, parameter in there.named_parameters():
        if parameter.grad is not None:
            own = name.removeprefix(PREFIX).replace(".default", "")
            theirs[PREFIX + own.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")] = (
                parameter.grad.numpy()
            )
    assert theirs.keys() == ours.keys()
    floor = 1e-3 * max(float(np.abs(value).max()) for value in theirs.values())
    for name, value in ours.items():
        wanted = np.where(written.tensors[name] != 0, theirs[name], 0)
        assert np.abs(value - wanted).max() < 1e-3 * max(float(np.abs(wanted).max()), floor), name


@pytest.mark.parametrize("name", ["qwen2_audio", "qwen3_asr"])
def test_adapters_of_families_that_hear_say_the_same_in_peft_and_back(name, tmp_path):
    import jax
    import torch
    from test_audio_parity import ours_of, sides_of, sound, theirs_of

    from jaxmm import sharding
    from jaxmm.hf.peft_write import peft_of
    from jaxmm.hf.pretrained import read_params
    from jaxmm.models.adapters import AdapterSpec
    from jaxmm.models.multimodal import make_model
    from jaxmm.models.tree import nested

    sides = sides_of(name, tmp_path / "base")
    layout, heard = sides.recipe.start.layout, sound(20000, 1)
    batch, _ = ours_of(sides, heard)
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        base = read_params(sides.recipe.start, lambda *_: sharding.replicated(mesh)).params
        run = jax.jit(lambda params: make_model(layout.spec)[1](params, batch, sides.recipe.compute))

    def here(model: Any, params: dict) -> np.ndarray:
        with jax.set_mesh(mesh):
            hidden_BTD, head_VD = run(nested(merged_by(model, params)))
        return np.asarray(hidden_BTD[0] @ head_VD.T)

    def there(model: Any) -> np.ndarray:
        with torch.no_grad():
            return model(**theirs_of(sides, heard)).logits[0].numpy()

    def fresh() -> Any:
        kind = type(sides.model)
        return kind.from_pretrained(sides.folder, attn_implementation="eager").eval()

    spec = AdapterSpec(("audio", "audio_connector", "decoder"), rank=3, alpha=6.0, kind="dora")
    model = dataclasses.replace(layout.spec, adapter=spec)
    params = drawn(model, base)
    (tmp_path / "ours").mkdir()
    peft_of(layout, model, params, (), base=sides.folder).write(tmp_path / "ours", np.float32)
    said = there(loaded(tmp_path / "ours", fresh()))
    assert np.abs(said - there(sides.model)).max() > MOVED
    assert np.abs(here(model, params)[: len(said)] - said).max() < LOGITS
    peft_model = saved_by_peft(fresh(), tmp_path / "theirs", suffixes(layout), r=4, lora_alpha=6, use_rslora=True)
    model, params, told = read_here(tmp_path / "theirs", layout, nested(base))
    said = there(peft_model)
    assert told == ()
    assert np.abs(here(model, params)[: len(said)] - said).max() < LOGITS
