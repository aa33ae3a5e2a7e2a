"""A model that sees and hears, joined from the folders of a vision tower, an audio tower and a decoder."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
from hf.test_hearing import SIZES, where, whole_folder
from hf.test_joined import CHAT, unused
from made_folders import byte_level_tokenizer, folder_of
from parities.tiny import parts as tiny

from jaxmm.api import load_config
from jaxmm.batch import IGNORED, Batch
from jaxmm.data.assemble import Assembler
from jaxmm.data.documents import Audio, Document, Image, Part, Text, Turn
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.limits import Budgets
from jaxmm.data.packing.plan import Piece
from jaxmm.data.prepare.index import InMemory
from jaxmm.errors import UserError
from jaxmm.exporting.parts import export_joined
from jaxmm.hf import folder as hf
from jaxmm.hf.families.registry import family_that_hears, family_that_joins
from jaxmm.hf.init_from import parse
from jaxmm.hf.pretrained import MODEL, read_params, read_start, save
from jaxmm.hf.towers import TOWERS
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.multimodal import ModelSpec, flat_axes, make_model
from jaxmm.models.tree import flat, nested
from jaxmm.recipe import Recipe, fitted, read_recipe

pytestmark = pytest.mark.usefixtures("whole_transformers")
# As the releases of towers and decoders name their tensors.
ALONE = {"vision": "vision_model.", "audio": "", "text": "model.", "lm_head": "lm_head.", "connector": ""}
PAIRS = [
    ("siglip2_vision_model", "qwen2_audio_encoder"),
    pytest.param(("siglip_vision_model", "qwen3_asr_encoder"), marks=[pytest.mark.slow, pytest.mark.full]),
]


def write_folders(root: Path, vision: str, audio: str) -> str:
    """Three folders of random weights, with the files of their processors; as ``config.init_from`` takes them."""
    import transformers

    sizes = {"num_patches": 25} if vision == "siglip2_vision_model" else {"image_size": 20}
    configs: dict[str, Any] = {
        "vision": tiny.vit(vision, **sizes),
        "audio": SIZES | {"model_type": audio} | ({"downsample_hidden_size": 8} if "qwen3" in audio else {}),
        "decoder": tiny.text("qwen3", vocab_size=272, **tiny.rope("default")),
    }
    read = {part: transformers.AutoConfig.for_model(**config) for part, config in configs.items()}
    root.mkdir(exist_ok=True)
    seeing = family_that_joins(TOWERS[vision].pictures)
    hearing = family_that_hears(audio)
    assert hearing is not None
    sees = seeing.join(read["vision"], read["decoder"], False, root, ConnectorSpec(merge=2, mlp=40)).layout
    layout = sees.also_hearing(hearing.join(read["audio"], read["decoder"], False).layout)._replace(prefixes=ALONE)
    params = flat(jax.jit(make_model(layout.spec)[0])(jax.random.key(1)))
    for part, config in read.items():
        (root / part).mkdir()
        own = {path: value + 0.02 for path, value in params.items() if path[0] == part}
        tensors = {one.name: one.make() for one in hf.outgoing(layout, own, np.float32)}
        if vision == "siglip_vision_model" and part == "vision":
            tensors |= unused(tensors)
        safetensors.numpy.save_file(tensors, root / part / "model.safetensors")
        (root / part / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    pictures = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 20, "width": 20}}
    if vision == "siglip2_vision_model":
        pictures = {"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 64}
    pictures["image_mean"] = [0.4, 0.5, 0.6]
    extractor = {"feature_extractor_type": hearing.audio_extractor, "feature_size": 16, "n_fft": 320}
    for part, settings in (("vision", pictures), ("audio", extractor)):
        (root / part / "preprocessor_config.json").write_text(json.dumps(settings))
    (root / "decoder" / "generation_config.json").write_text(json.dumps({"eos_token_id": 256, "top_k": 7}))
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(root / "decoder")
    return named(root, "vision", "audio", "decoder")


def named(root: Path, *parts: str) -> str:
    return ",".join(f"{part}:{root / part}" for part in parts)


class Model(NamedTuple):
    recipe: Recipe
    params: dict[Any, Any]

    def apply(self, batch: Batch, **method: str) -> Any:
        apply, compute = make_model(self.recipe.model)[1], self.recipe.compute
        return jax.jit(lambda params, batch: apply(params, batch, compute, **method))(nested(self.params), batch)


def read(init_from: str, media: tuple[str, ...] = ("image", "audio"), new: dict[Any, Any] | None = None) -> Model:
    """A run's model as it begins; its connectors are those of ``new``, or drawn."""
    config = load_config("base", **{"init_from": init_from, "image.merge": 2, "connector.mlp": 40, "seq_len": 512})
    recipe = fitted(read_recipe(config), media)
    new = new or flat(jax.jit(make_model(recipe.model)[0])(jax.random.key(2)))
    return Model(
        recipe, {path: new[path] for path in flat_axes(recipe.model)} | read_params(recipe.start, where).params
    )


@pytest.fixture(scope="module", params=PAIRS, ids="+".join)
def root(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("three") / "folders"
    write_folders(folder, *request.param)
    return folder


@pytest.fixture(scope="module")
def model(root) -> Model:
    return read(named(root, "vision", "audio", "decoder"))


def picture(seed: int) -> Image:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (24, 16 + 8 * seed, 3), np.uint8)
    PIL.Image.fromarray(noise).save(file, "PNG")
    return Image(data=file.getvalue())


def recording(seed: int) -> Audio:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16000)
        noise = np.random.default_rng(seed).normal(0, 3000, 5000 + 2000 * seed)
        writer.writeframes(noise.astype("<i2").tobytes())
    return Audio(data=file.getvalue())


def asked(*parts: Part, answer: str = "yes") -> Document:
    return Document((Turn("user", parts, False), Turn("assistant", (Text(answer),), True)), "made")


def packed(recipe: Recipe, *documents: Document) -> Batch:
    """One row of the documents."""
    encoded = recipe.template.encode_all(documents)
    media = [[p for turn in doc.turns for p in turn.parts if not isinstance(p, Text)] for doc in documents]
    lengths = Lengths(InMemory("made", encoded, media, recipe.template.fingerprint), recipe.image)
    row = [Piece(0, n, 0, int(count)) for n, count in enumerate(lengths.tokens_E)]
    has_audio = recipe.image.audio is not None
    budgets = Budgets(tokens=256, patches=192 if recipe.image.is_sighted else 0, items=4 * recipe.image.is_sighted,
                      targets=256, **({"audio": 6000} if has_audio else {}))  # fmt: skip
    loaded = Assembler([lengths], budgets, recipe.image)([row])
    assert not loaded.skipped
    return loaded.batch


def soft_tokens(model: Model, document: Document) -> np.ndarray:
    """Those of a document's media, in the order of its text."""
    batch = packed(model.recipe, document)
    slots = batch.slots_BT[batch.slots_BT != IGNORED]
    return np.asarray(model.apply(batch, method="soft_tokens").table_BSD)[0][slots]


def test_it_sees_as_one_family_and_hears_as_another(model):
    recipe = model.recipe
    assert recipe.model.parts == ("vision", "connector", "audio", "audio_connector", "decoder")
    assert recipe.image.text_axes == 1
    assert recipe.image.audio.window == 320, "of the audio tower's own extractor"
    assert recipe.model.vision.mean == (0.4, 0.5, 0.6)
    assert {path[0] for path in read_params(recipe.start, where).params} == {"vision", "audio", "decoder"}
    tokens = recipe.template.tokenizer.get_vocab()
    assert all(token in tokens for token in recipe.start.hears.special_tokens())
    with pytest.raises(UserError, match=f"videos, which a {recipe.start.name} does not take here"):
        fitted(recipe, {"video"})


def test_the_placeholders_of_one_document_become_what_each_family_writes(model):
    template = model.recipe.template
    parts = (recording(0), Text("a"), picture(0), Text("b"), recording(1))
    batch = packed(model.recipe, asked(*parts))
    slots, ids = batch.slots_BT[0], batch.text.values[0]
    said = [int(i) for i, slot in zip(ids, slots, strict=True) if slot == IGNORED]
    around = template.tokenizer.decode(said)
    image, audio = model.recipe.start.family.markup, model.recipe.start.hears.markup
    first, second = ("".join(audio.around(number)) for number in (1, 2))
    assert f"<user>{first}a{image.before}{image.after}b{second}</s><assistant>yes</s>" in around
    patches = batch.patches.segments.shape[1] // model.recipe.image.merge**2
    kinds = ["image" if slot < patches else "audio" for slot in slots if slot != IGNORED]
    order = [kind for n, kind in enumerate(kinds) if n == 0 or kind != kinds[n - 1]]
    assert order == ["audio", "image", "audio"]


def test_what_is_seen_and_heard_is_that_of_the_two_joins_alone(root, model):
    sees = read(named(root, "vision", "decoder"), ("image",), model.params)
    hears = read(named(root, "decoder", "audio"), ("audio",), model.params)
    for alone, parts in ((sees, (picture(0), Text("a"), picture(1))), (hears, (recording(0), Text("a"), recording(1)))):
        expected, found = (soft_tokens(one, asked(*parts)) for one in (alone, model))
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(found, expected, atol=5e-6)  # two programs may round otherwise


def test_on_text_alone_it_is_the_decoder_of_its_folder(root, model):
    batch = packed(model.recipe, asked(Text("What is it?")))
    layout = model.recipe.start.layout
    spec = ModelSpec(None, None, model.recipe.model.decoder)
    alone = nested(hf.read_decoder(root / "decoder", layout.rules, spec, where).params)
    apply, compute = make_model(spec)[1], model.recipe.compute
    expected, projection = jax.jit(lambda batch: apply(alone, batch, compute))(batch._replace(media={}))
    found, ours = model.apply(batch)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(ours, projection)


def test_packed_is_as_alone_and_the_gradient_reaches_every_part(model):
    documents = [
        asked(Text("x"), recording(0), picture(0), answer="one"), asked(picture(1), Text("y"), recording(1)),
        asked(Text("text alone")),
    ]  # fmt: skip

    @jax.jit
    def logits(params, batch):
        hidden, projection = make_model(model.recipe.model)[1](params, batch, model.recipe.compute)
        return hidden[0] @ projection.T

    params, row = nested(model.params), packed(model.recipe, *documents)
    together, start = np.asarray(logits(params, row)), 0
    for document in documents:
        batch = packed(model.recipe, document)
        count = int((batch.text.segments[0] > 0).sum())
        alone = np.asarray(logits(params, batch))[:count]
        np.testing.assert_allclose(together[start : start + count], alone, atol=2e-5)
        start += count
    gradients = flat(jax.jit(jax.grad(lambda p: (logits(p, row) ** 2).sum()))(params))
    for part in model.recipe.model.parts:
        assert max(float(np.abs(g).max()) for path, g in gradients.items() if path[0] == part) > 1e-4, part


def test_a_run_keeps_what_it_needs_of_both_families(model, tmp_path):
    start = model.recipe.start
    save(start, [], tmp_path / "run" / MODEL)
    again = read_start("/nowhere", tmp_path / "run" / MODEL, 2, 40)
    following = read_start(str(tmp_path / "run"), None, 2, 40)
    save(following, [], tmp_path / "next" / MODEL)
    third = read_start("/nowhere", tmp_path / "next" / MODEL, 2, 40)
    for other in (again, following, third):
        assert (other.layout.spec, other.layout.audio) == (start.layout.spec, start.layout.audio)
        assert (other.family, other.hears, other.pixels) == (start.family, start.hears, start.pixels)
        assert other.layout.rules == start.layout.rules
    assert (tmp_path / "next" / MODEL / "preprocessor_config.json").read_text() != (
        tmp_path / "next" / MODEL / "audio" / "preprocessor_config.json"
    ).read_text()


def test_an_export_of_its_parts_is_read_again(model, tmp_path, capsys):
    recipe, params = model
    save(recipe.start, read_params(recipe.start, where).spare, tmp_path / "run" / MODEL)
    of_run = load_config("base").to_dict()
    out = tmp_path / "out"
    assert export_joined(recipe, params, tmp_path / "run", out, "float32", of_run, 3) == 0
    assert "transformers has no class for a model that sees and hears as this one: these" in capsys.readouterr().out
    again = read(named(out, "decoder", "audio", "vision"), new=params)
    assert (again.recipe.model, again.recipe.whole) == (recipe.model, recipe.whole)
    for path, value in params.items():
        np.testing.assert_array_equal(again.params[path], value, err_msg=str(path))
    new = {name: safetensors.numpy.load_file(out / f"{name}.safetensors") for name in ("connector", "audio_connector")}
    assert {(*path.split("."),) for part in new.values() for path in part} == {
        path for path in params if path[0] in new
    }
    said = [{"type": "audio"}, {"type": "text", "text": "a"}, {"type": "image"}, {"type": "audio"}]
    tokenizer = again.recipe.template.tokenizer
    written = tokenizer.apply_chat_template([{"role": "user", "content": said}], tokenize=False)
    hears, image = recipe.start.hears, "<image>" + recipe.template.markup.after * (recipe.template.markup.before == "")
    heard = [hears.markup.around(n)[0] + hears.audio_token + hears.markup.after for n in (1, 2)]
    assert written == f"<user>{heard[0]}a{image}{heard[1]}</s>"
    assert json.loads((out / "decoder" / "generation_config.json").read_text())["top_k"] == 7
    document = asked(recording(0), picture(0), Text("What?"))
    np.testing.assert_array_equal(
        again.recipe.template.encode(document).tokens, recipe.template.encode(document).tokens
    )


@pytest.mark.parametrize("parts", [("vision",), ("vision", "audio"), ("vision", "audio", "decoder", "connector"),
                                   ("decoder",), ("vision", "vision", "decoder")])  # fmt: skip
def test_other_combinations_are_one_line_with_the_three_forms(parts, tmp_path):
    with pytest.raises(UserError) as raised:
        parse(named(tmp_path, *parts))
    assert str(raised.value).endswith(
        "a model is made of vision:DIR,decoder:DIR, of audio:DIR,decoder:DIR, or of vision:DIR,audio:DIR,decoder:DIR"
    )


def test_whisper_is_heard_beside_a_tower_of_one_size(tmp_path):
    import transformers

    root = tmp_path / "folders"
    write_folders(root, "siglip_vision_model", "qwen2_audio_encoder")
    whisper = transformers.WhisperConfig(vocab_size=100, decoder_layers=1, decoder_attention_heads=2, **SIZES)
    (root / "audio" / "config.json").write_text(json.dumps(whisper.to_dict(), default=str))
    start = read_start(named(root, "decoder", "vision", "audio"), None, 2, 40)
    told = " ".join(start.differences())
    assert "positions are pooled in pairs" in told
    assert "as in LLaVA" in told
    assert start.hearing.config["audio_config"]["model_type"] == "qwen2_audio_encoder"


def test_a_decoder_may_be_that_of_a_whole_model(root, tmp_path):
    """Its other parts are left; of positions with three axes one is used, as both layouts have it."""
    towers = named(root, "vision", "audio")
    many = folder_of("qwen2.5-vl", tmp_path / "sees", has_weights=False)
    config = load_config("base", **{"init_from": f"{towers},decoder:{many}", "image.merge": 2})
    recipe = read_recipe(config)
    assert (recipe.image.text_axes, recipe.model.decoder.rope_sections) == (1, ())
    start = read_start(f"{towers},decoder:{whole_folder('qwen2_audio', tmp_path / 'hears')}", None, 2, 40)
    assert {path[0] for path in read_params(start, where).params} == {"vision", "audio", "decoder"}


@pytest.mark.parity
def test_transformers_loads_each_part_of_an_export(model, tmp_path):
    import torch
    import transformers

    recipe, params = model
    save(recipe.start, read_params(recipe.start, where).spare, tmp_path / "run" / MODEL)
    of_run = load_config("base").to_dict()
    export_joined(recipe, params, tmp_path / "run", tmp_path / "out", "float32", of_run, 3)
    for part, kind in (("vision", "AutoModel"), ("audio", "AutoModel"), ("decoder", "AutoModelForCausalLM")):
        one, info = getattr(transformers, kind).from_pretrained(tmp_path / "out" / part, output_loading_info=True)
        assert not any(info.values()), (part, info)
    ids = recipe.template.encode(asked(Text("What is it?"))).tokens
    with torch.no_grad():
        theirs = one(torch.tensor(ids[None].astype(np.int64))).logits[0].numpy()
    hidden, projection = model.apply(packed(recipe, asked(Text("What is it?"))))
    ours = np.asarray(hidden @ projection.T)[0][: len(ids)]
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
