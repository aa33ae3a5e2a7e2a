"""PEFT folders there and back without torch: factors of every map to the bit, other spellings, and what stops."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.numpy
from parities.models import case

from jaxmm.errors import UserError
from jaxmm.hf import adapter_record
from jaxmm.hf.families.registry import layout_of
from jaxmm.hf.map_names import called, named_maps
from jaxmm.hf.peft_read import PeftAdapter, read_peft
from jaxmm.hf.peft_write import CONFIG, TENSORS, peft_of
from jaxmm.models.adapters import AdapterSpec, is_factor
from jaxmm.models.multimodal import flat_axes, model_maps

pytestmark = pytest.mark.usefixtures("whole_transformers")
QWEN, GEMMA = "qwen2.5-vl", "gemma3"
EVERY_MAP = ("vision", "connector", "decoder")
LANGUAGE = "base_model.model.model.language_model"


class Made(NamedTuple):
    """A folder that was written, and what it was written of."""

    folder: Path
    layout: Any
    model: Any
    params: dict

    def read(self) -> PeftAdapter:
        return read_peft(self.folder, self.layout, self.model.base)

    def config(self, **changes: Any) -> None:
        """Changes ``adapter_config.json``."""
        path = self.folder / CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def tensors(self, changed: Any = None) -> dict[str, np.ndarray]:
        """The tensors; ``changed(tensors)`` are written in their place."""
        found = safetensors.numpy.load_file(self.folder / TENSORS)
        if changed:
            whole = {name: np.ascontiguousarray(x) for name, x in changed(found).items()}
            safetensors.numpy.save_file(whole, self.folder / TENSORS)
        return found


def made(folder: Path, name: str = QWEN, whole: tuple[str, ...] = (), **options: Any) -> Made:
    """A model's parameters at random, written."""
    layout = layout_of(case(name).config(np.random.default_rng(0)))
    spec = AdapterSpec(**({"targets": EVERY_MAP, "rank": 2, "alpha": 6.0} | options))
    model = dataclasses.replace(layout.spec, adapter=spec)
    rng = np.random.default_rng(1)
    params = {path: rng.standard_normal(shape, np.float32) for path, (shape, _) in flat_axes(model).items()}
    own = [path for path in params if any(".".join(path).startswith(one) for one in whole) and not is_factor(path)]
    folder.mkdir()
    peft_of(layout, model, params, own, base=folder).write(folder, np.float32)
    return Made(folder, layout, model, params)


@pytest.fixture
def plain(tmp_path) -> Made:
    return made(tmp_path / "adapters")


@pytest.mark.parametrize(("name", "kind"), [
    (QWEN, "lora"), (QWEN, "rslora"), (QWEN, "dora"), ("qwen3-vl", "dora"), ("internvl", "rslora"),
    ("llava, clip", "lora"), ("siglip2 + llama", "dora"), ("qwen3.5", "lora"), ("qwen3.5", "dora"),
    ("qwen3-vl, experts", "rslora"), ("lfm2, experts", "lora"),
])  # fmt: skip
def test_adapters_of_every_map_come_back_to_the_bit(name, kind, tmp_path):
    ranks = (("decoder.blocks.mlp", 3, 5.0), ("decoder.blocks.experts.down", 3, 5.0))
    there = made(tmp_path / "adapters", name, kind=kind, ranks=ranks)
    back = there.read()
    assert back.told == ()
    ours = {one.path: one for one in model_maps(there.model)}
    theirs = {one.path: one for one in model_maps(dataclasses.replace(there.model, adapter=back.spec))}
    assert {path: one.rank for path, one in ours.items()} == {path: one.rank for path, one in theirs.items()}
    for path, one in ours.items():
        assert theirs[path].scale == pytest.approx(one.scale, rel=1e-12), path
    factors = {path: x for path, x in there.params.items() if is_factor(path)}
    assert factors.keys() == back.params.keys()
    for path, x in factors.items():
        np.testing.assert_array_equal(back.params[path], x, err_msg=".".join(path))


TABLES = ("decoder.embedding", "decoder.head")
EMBEDDING, HEAD = f"{LANGUAGE}.embed_tokens", "base_model.model.lm_head"


def has_base(table: np.ndarray) -> Any:
    """The tensors with that of the model beneath, as PEFT saves it with an adapter of the embedding."""
    return lambda tensors: tensors | {f"{EMBEDDING}.base_layer.weight": table}


@pytest.mark.parametrize(("name", "is_tied"), [(QWEN, False), ("qwen3-vl", True)])
def test_adapters_of_tables_come_back_to_the_bit(name, is_tied, tmp_path):
    there = made(tmp_path / "adapters", name, targets=("decoder.blocks.mlp", *TABLES), kind="rslora")
    assert there.layout.spec.decoder.tie_embeddings == is_tied
    tensors, config = there.tensors(), json.loads((there.folder / CONFIG).read_text())
    into, out = (there.params["decoder", "lora", "embedding", factor] for factor in ("into", "out"))
    np.testing.assert_array_equal(tensors[f"{EMBEDDING}.lora_embedding_A"], into.T)
    np.testing.assert_array_equal(tensors[f"{EMBEDDING}.lora_embedding_B"], out.T)
    if not is_tied:
        into, out = (there.params["decoder", "lora", "head", factor] for factor in ("into", "out"))
    np.testing.assert_array_equal(tensors[f"{HEAD}.lora_A.weight"], out)
    np.testing.assert_array_equal(tensors[f"{HEAD}.lora_B.weight"], into)
    assert config.get("ensure_weight_tying", False) == is_tied
    back = there.read()
    for path, x in there.params.items():
        if is_factor(path):
            np.testing.assert_array_equal(back.params[path], x, err_msg=".".join(path))
    assert [path for path in TABLES if path in back.spec.targets] == list(TABLES[: 1 if is_tied else 2])


def test_an_adapter_of_one_use_of_a_tied_table_stops_and_two_that_differ(tmp_path):
    there = made(tmp_path / "adapters", "qwen3-vl", targets=TABLES[:1])
    whole = there.tensors(without("lm_head"))
    with pytest.raises(UserError, match=r"an adapter of model.language_model.embed_tokens alone, which is one table"):
        there.read()
    there.tensors(lambda _: whole | {f"{HEAD}.lora_A.weight": 2 * whole[f"{HEAD}.lora_A.weight"]})
    with pytest.raises(UserError, match=r"lm_head and of .*embed_tokens differ, and both are of one table"):
        there.read()
    there.tensors(lambda _: whole)
    there.config(alpha_pattern={"lm_head": 1})
    with pytest.raises(UserError, match=r"embed_tokens differ"):
        there.read()


def test_a_table_that_peft_saved_beside_its_adapter_is_compared_with_that_beneath(tmp_path):
    there = made(tmp_path / "adapters", targets=TABLES[:1])
    table = np.random.default_rng(2).standard_normal(there.params["decoder", "embedding"].shape, np.float32)
    base = tmp_path / "base"
    base.mkdir()
    safetensors.numpy.save_file({"model.embed_tokens.weight": table}, base / "model.safetensors")
    there.tensors(has_base(table))
    with pytest.raises(UserError, match=r"is a table of the model beneath, which is not at hand"):
        there.read()
    back = read_peft(there.folder, there.layout, there.model.base, base)
    assert set(back.params) == {path for path in there.params if is_factor(path)}
    for other in (table[:-1], table + 1):
        there.tensors(has_base(other))
        with pytest.raises(UserError, match=r"is not that of the model beneath in .*: its vocabulary was resized"):
            read_peft(there.folder, there.layout, there.model.base, base)


def test_dora_of_a_table_stops(tmp_path):
    there = made(tmp_path / "adapters", targets=TABLES[:1])
    there.config(use_dora=True)
    with pytest.raises(UserError, match=r"a DoRA adapter of model.language_model.embed_tokens, a table over the voc"):
        there.read()


@pytest.mark.parametrize(("use_dora", "changed", "why"), [
    (True, lambda n, x: None if ".layers.1.mlp.up_proj" in n else x, "up_proj is not whole: it lacks lora_magnitude"),
    (True, lambda n, x: None, "is not whole: it lacks lora_magnitude_vector"),
    (True, lambda n, x: x[:-1], "lora_magnitude_vector of model.language_model.layers.0.* has .* numbers for .* out"),
    (False, lambda n, x: x, "has a lora_magnitude_vector, but adapter_config.json says that it is no DoRA"),
])  # fmt: skip
def test_lengths_of_dora_are_there_and_one_an_output_or_stop(use_dora, changed, why, tmp_path):
    there = made(tmp_path / "adapters", targets=("decoder.blocks.mlp",), kind="dora")
    there.config(use_dora=use_dora)
    there.tensors(lambda tensors: {
        name: new for name, x in tensors.items()
        if (new := changed(name, x) if "magnitude" in name else x) is not None
    })  # fmt: skip
    with pytest.raises(UserError, match=why):
        there.read()


def test_queries_and_values_of_a_fused_map_have_one_adapter_with_blocks_and_keys_stay_without(tmp_path):
    there = made(tmp_path / "adapters", targets=("vision.blocks.attention.query", "vision.blocks.attention.value"))
    name = "base_model.model.model.visual.blocks.1.attn.qkv"
    tensors, config = there.tensors(), json.loads((there.folder / CONFIG).read_text())
    into, out = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
    assert config["r"] == 4
    assert config["lora_alpha"] == 12  # the scale is what it was
    kernel = there.params["vision", "blocks", "attention", "query", "kernel"][1]
    updates = [
        there.params["vision", "blocks", "attention", part, "lora", "into"][1]
        @ there.params["vision", "blocks", "attention", part, "lora", "out"][1].reshape(2, -1)
        for part in ("query", "value")
    ]
    wanted = np.concatenate([updates[0], np.zeros((kernel.shape[0], kernel[0].size)), updates[1]], axis=1)
    np.testing.assert_allclose(out @ into, wanted.T, atol=1e-5)
    assert {path[3] for path in there.read().params} == {"query", "value"}


def test_other_scales_are_told_for_programs_that_know_one_alone(tmp_path):
    def written(**options: Any) -> Any:
        there = made(tmp_path / str(len(list(tmp_path.iterdir()))), **options)
        return peft_of(there.layout, there.model, there.params, (), base=there.folder)

    assert written(kind="rslora").not_served() == []  # fused maps have a rank of their own, and the scale of all
    assert written(ranks=(("*.up", 4, 12.0),)).not_served() == []
    assert written(ranks=(("*.up", 4, 6.0),)).not_served() == ["maps of different scale"]
    assert written(targets=("decoder.blocks",)).left_out() == []
    tower, tables = written(targets=("decoder.blocks", "vision.blocks", "connector", *TABLES)).left_out()
    assert tower == "adapters of connector and vision, without --enable-tower-connector-lora"
    assert tables == "adapters of embed_tokens and lm_head, where its class has no embedding_modules"


def test_pissa_is_written_for_the_model_as_it_is_with_twice_the_rank(tmp_path):
    there = made(tmp_path / "adapters", targets=("decoder.blocks.mlp.up",), start="pissa")
    back = there.read()
    assert (back.spec.rank, back.spec.alpha) == (4, 12.0)
    written = peft_of(there.layout, there.model, there.params, (), base=there.folder)
    assert (written.told(), written.largest_rank()) == ("lora, rank 4, alpha 12", 4)
    at = ("decoder", "blocks", "mlp", "up", "lora")
    mine, first = (
        np.einsum("lir,lro->lio", there.params[(*at, f"{which}into")], there.params[(*at, f"{which}out")])
        for which in ("", "first_")
    )
    theirs = np.einsum("lir,lro->lio", back.params[(*at, "into")], back.params[(*at, "out")])
    np.testing.assert_allclose(theirs, mine - first, atol=1e-5)


def test_what_is_trained_whole_is_in_the_folder_by_modules_and_comes_back(tmp_path):
    there = made(tmp_path / "adapters", targets=("vision", "decoder.blocks"), whole=("connector", "decoder.norm"))
    config = json.loads((there.folder / CONFIG).read_text())
    merger = [f"model.visual.merger.{name}" for name in ("ln_q", "mlp.0", "mlp.2")]
    assert config["modules_to_save"] == [*merger, "model.language_model.norm"]
    back = there.read()
    whole = {path for path in there.params if path[0] == "connector" or path[:2] == ("decoder", "norm")}
    assert set(back.whole) == whole
    for path in whole:
        np.testing.assert_array_equal(back.params[path], there.params[path])


def test_a_tied_embedding_that_is_trained_is_written_as_both_of_its_modules(tmp_path):
    there = made(tmp_path / "adapters", "qwen3-vl", targets=("decoder.blocks",), whole=("decoder.embedding",))
    config = json.loads((there.folder / CONFIG).read_text())
    assert config["modules_to_save"] == ["model.language_model.embed_tokens", "lm_head"]
    assert there.read().whole == (("decoder", "embedding"),)
    there.tensors(lambda t: {name: x + 1 if "lm_head" in name else x for name, x in t.items()})
    with pytest.raises(UserError, match=r"lm_head.weight is not the embedding, as it is in this model"):
        there.read()


@pytest.mark.parametrize(("name", "options", "why"), [
    (QWEN, {"targets": ("decoder.blocks",), "whole": ("connector.up.bias",)}, "connector.up.bias is trained beside"),
    (QWEN, {"targets": ("connector",), "whole": ("connector",)}, "or with an adapter in it"),
    (QWEN, {"targets": ("decoder",), "whole": ("vision.blocks.attention.key.kernel",)}, "key.kernel is trained beside"),
    ("qwen3-vl, experts", {"targets": ("vision",), "whole": ("decoder.blocks.experts",)}, "experts.*kernel is trained"),
    ("glm-4.5v", {"targets": ("decoder.blocks.experts",)}, "shared.*has no place .* takes each gate_proj of"),
    (GEMMA, {"targets": ("connector.down",)}, "the adapter of connector.down has no place in a PEFT folder"),
])  # fmt: skip
def test_what_peft_cannot_hold_is_to_be_merged(name, options, why, tmp_path):
    with pytest.raises(UserError, match=f"{why}.*--merge"):
        made(tmp_path / "adapters", name, **options)


EXPERTS = "model.language_model.layers.{}.mlp.experts"


def test_parameters_of_experts_are_wrapped_in_the_order_of_their_class(tmp_path):
    """The one that is adapted alone has the outer name, which is the other's where both are."""
    both = made(tmp_path / "both", "qwen3-vl, experts", targets=("decoder.blocks.experts",))
    spec, names = both.layout.spec.decoder, (EXPERTS.format(1), EXPERTS.format(1) + ".base_layer")
    down, up = (both.tensors()[f"base_model.model.{name}.lora_A.weight"] for name in names)
    assert down.shape == (spec.experts.count * 2, spec.experts.mlp)
    assert up.shape == (spec.experts.count * 4, spec.width)
    config = json.loads((both.folder / CONFIG).read_text())
    assert config["target_modules"] == []
    assert [name for name in config["target_parameters"] if name.startswith(EXPERTS.format(1))] == [
        EXPERTS.format(1) + ".gate_up_proj", EXPERTS.format(1) + ".down_proj",
    ]  # fmt: skip
    both.config(target_parameters=["experts.down_proj", "mlp.experts.gate_up_proj"])  # as people write them
    assert all(np.array_equal(both.read().params[path], x) for path, x in both.params.items() if is_factor(path))
    both.config(target_parameters=["experts.down_proj"])
    with pytest.raises(
        UserError, match=r"has 2 adapters of experts, and target_parameters mean .*mlp.experts.down_proj:"
    ):
        both.read()
    alone = made(tmp_path / "alone", "qwen3-vl, experts", targets=("decoder.blocks.experts.gate",))
    assert {name.split(".experts.")[1] for name in alone.tensors()} == {"lora_A.weight", "lora_B.weight"}
    back = alone.read()
    assert back.spec.targets == ("decoder.blocks.experts.gate",)
    assert all(np.array_equal(alone.params[path], x) for path, x in back.params.items())


def test_an_adapter_of_gates_and_maps_up_becomes_one_of_each(tmp_path):
    there = made(tmp_path / "adapters", "qwen3-vl, experts", targets=("decoder.blocks.experts",))
    rng = np.random.default_rng(2)
    dense = {name: rng.standard_normal(x.shape, np.float32) for name, x in there.tensors().items()}
    there.tensors(lambda _: dense)
    back = there.read()
    assert back.told == (
        f"the adapter of {EXPERTS.format('{i}')}.gate_up_proj becomes 2, which begin alike and learn each by itself",
    )  # fmt: skip
    count, name = there.layout.spec.decoder.experts.count, f"base_model.model.{EXPERTS.format(2)}.base_layer"
    into = dense[f"{name}.lora_A.weight"].reshape(count, 4, -1)  # as PEFT's ParamWrapper reads them
    out = dense[f"{name}.lora_B.weight"].reshape(-1, 4, count)
    wanted = np.einsum("ore,eri->eio", out, into)
    ours = []
    for part in ("gate", "up"):
        at = ("decoder", "blocks", "experts", part, "lora")
        ours.append(back.params[(*at, "into")][2] @ back.params[(*at, "out")][2])
    np.testing.assert_allclose(np.concatenate(ours, -1), wanted, atol=1e-4)


def test_the_one_adapter_of_a_fused_map_becomes_one_of_each_of_ours(tmp_path):
    there = made(tmp_path / "adapters", targets=("vision.blocks.attention",), kind="dora")
    rng = np.random.default_rng(2)
    dense = {n: rng.standard_normal(x.shape, np.float32) for n, x in there.tensors().items()}
    there.tensors(lambda _: dense)
    back = there.read()
    assert back.told == (
        "the adapter of model.visual.blocks.{i}.attn.qkv becomes 3, which begin alike and learn each by itself",
    )  # fmt: skip
    name = "base_model.model.model.visual.blocks.2.attn.qkv"
    wanted = dense[f"{name}.lora_B.weight"] @ dense[f"{name}.lora_A.weight"]
    ours = []
    for part in ("query", "key", "value"):
        at = ("vision", "blocks", "attention", part, "lora")
        ours.append(back.params[(*at, "into")][2] @ back.params[(*at, "out")][2].reshape(6, -1))
    np.testing.assert_allclose(np.concatenate(ours, 1).T, wanted, atol=1e-4)


def test_other_spellings_and_forms_mean_the_same(plain):
    wanted = plain.read()
    spelt = {"model.language_model.": "model.", "model.visual.": "visual."}  # as older classes had it
    for old in ({"language": spelt}, {"default": True}):

        def renamed(tensors: dict, old: dict = old) -> dict:
            found = {}
            for name, x in tensors.items():
                for new, written in old.get("language", {}).items():
                    name = name.replace(f"base_model.model.{new}", f"base_model.model.{written}")
                if "default" in old:
                    name = name.replace(".weight", ".default.weight")
                found[name] = x
            return found

        plain.tensors(renamed)
        plain.config(target_modules="all-linear", task_type=None, rank_pattern={}, base_model_name_or_path=None)
        back = plain.read()
        assert (back.spec.kind, back.params.keys()) == (wanted.spec.kind, wanted.params.keys())
        for path, x in wanted.params.items():
            np.testing.assert_array_equal(back.params[path], x)


def test_layers_without_an_adapter_stay_without_and_ranks_may_differ_between_layers(plain):
    def some(tensors: dict) -> dict:
        found = {name: x for name, x in tensors.items() if ".layers.0.mlp.up_proj" not in name}
        of_one = f"{LANGUAGE}.layers.1.mlp.up_proj"
        into, out = (f"{of_one}.lora_{which}.weight" for which in "AB")
        return found | {into: found[into][:1], out: found[out][:, :1]}

    before = plain.tensors(some)
    plain.config(alpha_pattern={r"layers\.1\.mlp\.up_proj": 12})
    back = plain.read()
    (told,) = back.told
    assert (
        told == "model.language_model.layers.{i}.mlp.up_proj has an adapter in 2 of 3 layers: the others stay without"
    )
    at = ("decoder", "blocks", "mlp", "up", "lora")
    update = np.einsum("lir,lro->lio", back.params[(*at, "into")], back.params[(*at, "out")]) * 3
    assert not update[0].any()
    name = f"{LANGUAGE}.layers.1.mlp.up_proj"
    wanted = before[f"{name}.lora_B.weight"][:, :1] @ before[f"{name}.lora_A.weight"][:1] * 12
    np.testing.assert_allclose(update[1].T, wanted, atol=1e-4)
    model = dataclasses.replace(plain.model, adapter=back.spec)
    written = peft_of(plain.layout, model, back.params, (), base=plain.folder)
    assert not any("layers.0.mlp.up_proj" in one for one in written.config["target_modules"])


def without(part: str) -> Any:
    return lambda tensors: {name: x for name, x in tensors.items() if part not in name}


def besides(name: str, shape: tuple[int, ...] = (2, 48)) -> Any:
    return lambda tensors: tensors | {f"base_model.model.{name}": np.ones(shape, np.float32)}


@pytest.mark.parametrize(("config", "tensors", "why"), [
    ({"peft_type": "IA3"}, None, "has adapters of peft_type IA3: only LORA is read"),
    ({"lora_bias": True}, None, "lora_bias=True is not supported"),
    ({"bias": "all"}, None, "bias=all is not supported: only none is"),
    ({"trainable_token_indices": [1, 2]}, None, "trainable_token_indices=.* is not supported"),
    ({"init_lora_weights": "pissa_niter_4"}, None, "means a model beneath that PEFT has changed"),
    ({}, without(".layers.1.mlp.up_proj.lora_B"), "up_proj is not whole: it lacks lora_A or lora_B"),
    ({}, without(""), "has no adapters: adapter_model.safetensors has none"),
    ({}, besides("model.language_model.layers.7.mlp.up_proj.lora_A.weight"), "base: 1 do not fit: .* of 3 layers"),
    ({}, lambda t: {n: x[:, :-1] if ".lora_A." in n else x for n, x in t.items()}, "another base: .* do not fit"),
    ({}, besides("model.language_model.layers.0.mixer.in_proj.lora_A.weight"), "1 adapters that mean no linear map"),
    ({}, besides("model.language_model.embed_tokens.lora_embedding_A"), "embed_tokens is not whole: it lacks"),
    ({}, besides("model.language_model.layers.0.mlp.up_proj.lora_B.bias"), "adapters with a bias are not supported"),
    ({}, besides("model.score.weight"), "has 1 tensors that this model has no place for"),
    ({}, besides("model.language_model.layers.0.input_layernorm.weight", (48,)), "trained whole in some layers alone"),
    ({}, lambda t: {n: x * np.nan for n, x in t.items()}, "has numbers that are not finite"),
])  # fmt: skip
def test_what_is_not_understood_stops_in_one_line(config, tensors, why, plain):
    plain.config(**config)
    plain.tensors(tensors)
    with pytest.raises(UserError, match=why) as error:
        plain.read()
    assert "\n" not in str(error.value)


def test_a_workdir_keeps_what_the_adapters_are_and_forgets_them_of_a_start_that_never_came_to_a_save(tmp_path):
    spec = AdapterSpec(("decoder.blocks",), 4, 2.5, "dora", start="pissa", ranks=(("*.up", 2, 3.0),))
    begun = adapter_record.Begun("theirs", spec, ("connector",), ("told once",))
    adapter_record.keep(tmp_path, begun)
    assert adapter_record.kept(tmp_path) == begun._replace(told=())
    (tmp_path / adapter_record.FILE).write_text("{}")
    with pytest.raises(UserError, match="is damaged, or of a newer version"):
        adapter_record.kept(tmp_path)
    adapter_record.keep(tmp_path, None)
    assert adapter_record.kept(tmp_path) is None


def test_pickled_adapters_are_not_opened(plain):
    (plain.folder / TENSORS).rename(plain.folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model.bin, a pickle, which may run code and is not opened"):
        plain.read()


def test_targets_may_be_modules_or_tensors_of_a_release():
    maps = named_maps(layout_of(case(QWEN).config(np.random.default_rng(0))))
    up = [("decoder", "blocks", "mlp", "up")]
    assert called(maps, "model.language_model.layers.{i}.mlp.up_proj") == up
    assert called(maps, "model.layers.{i}.mlp.up_proj") == up
    assert called(maps, "merger.mlp.0") == [("connector", "up")]
    assert called(maps, "mlp.0.up") == []


def test_targets_may_be_parameters_of_experts():
    maps = named_maps(layout_of(case("qwen3.5, experts").config(np.random.default_rng(0))))
    experts = ("decoder", "blocks", "experts")
    assert called(maps, "mlp.experts.gate_up_proj") == [(*experts, "gate"), (*experts, "up")]
    assert called(maps, "down_proj") == [(*experts, "shared", "down"), (*experts, "down")]
