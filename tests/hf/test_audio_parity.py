"""Qwen2-Audio and Qwen3-ASR against ``transformers``: ids of their processors, logits, gradients, tensors, answers."""

from __future__ import annotations

import io
import itertools
import json
import wave
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from clip_parity import assert_greedy_answers_agree, attention_difference
from made_folders import byte_level_tokenizer

from jaxmm.batch import IGNORED, Batch
from jaxmm.data.assemble import Assembler
from jaxmm.data.documents import Audio, Document, Text, Turn
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.limits import Budgets
from jaxmm.data.packing.plan import Piece
from jaxmm.data.prepare.index import InMemory

pytestmark = pytest.mark.parity

RATE = 16000
TOKENS = {
    "qwen2_audio": ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"),
    "qwen3_asr": ("<|audio_start|>", "<|audio_pad|>", "<|audio_end|>"),
}
SAMPLES = (800, 8000, 16037, 40000, 150000, 479990)  # up to nearly 30 s


class Sides(NamedTuple):
    """A family's folder, as each side reads it."""

    name: str
    folder: Path
    model: Any
    processor: Any
    recipe: Any


def config_of(name: str) -> Any:
    """A tiny config; 30-s pieces are real, as the tower's table of positions is part of the extractor's meaning."""
    import transformers
    from parities.tiny.parts import rope, text

    sizes = {"num_mel_bins": 16, "d_model": 24, "encoder_layers": 2, "encoder_attention_heads": 3}
    sizes |= {"encoder_ffn_dim": 44}
    if name == "qwen2_audio":
        decoder = text("qwen2", head_dim=8, **rope("default"))
        audio = sizes | {"model_type": "qwen2_audio_encoder"}
        return transformers.Qwen2AudioConfig(audio_config=audio, text_config=decoder)
    audio = sizes | {"model_type": "qwen3_asr_encoder", "output_dim": 48, "downsample_hidden_size": 8}
    return transformers.Qwen3ASRConfig(audio_config=audio, text_config=text("qwen3", **rope("default")),
                                       tie_word_embeddings=False)  # fmt: skip


def sides_of(name: str, folder: Path) -> Sides:
    from parities.models import let_torchvision_import

    let_torchvision_import()
    import torch
    import transformers

    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(list(TOKENS[name]), special_tokens=True)
    config = config_of(name)
    config.text_config.vocab_size = 512
    config.audio_token_id = tokenizer.convert_tokens_to_ids(TOKENS[name][1])
    kind = "Qwen2Audio" if name == "qwen2_audio" else "Qwen3ASR"
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")._from_config(config, attn_implementation="eager")
    model = model.eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            is_scale = parameter.ndim == 1 and bool((parameter == 1).all())
            parameter.copy_(0.15 * torch.randn_like(parameter) + float(is_scale))
    model.save_pretrained(folder)
    if name == "qwen2_audio":
        extractor: Any = transformers.WhisperFeatureExtractor(feature_size=16)
    else:
        extractor = transformers.Qwen3ASRFeatureExtractor(feature_size=16)
        start, pad, end = TOKENS[name]
        tokenizer.audio_token, tokenizer.audio_bos_token, tokenizer.audio_eos_token = pad, start, end
    tokenizer.chat_template = ""
    processor = getattr(transformers, f"{kind}Processor")(extractor, tokenizer, chat_template="")
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor.to_dict(), default=str))

    from jaxmm.api import load_config
    from jaxmm.recipe import fitted, read_recipe

    changes = {"init_from": str(folder), "seq_len": 4096, "compute.dtype": "float32"}
    return Sides(name, folder, model, processor, fitted(read_recipe(load_config("base", **changes)), {"audio"}))


def sound(count: int, seed: int) -> np.ndarray:
    """int16 samples of a tone and noise."""
    rng = np.random.default_rng(seed)
    tone = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 3000) * np.arange(count) / RATE)
    return ((tone + rng.normal(0, 0.05, count)) * 20000).astype("<i2")


def recording(samples: np.ndarray) -> Audio:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        writer.writeframes(samples.tobytes())
    return Audio(data=file.getvalue())


def theirs_of(sides: Sides, samples: np.ndarray) -> dict[str, Any]:
    """What the family's processor makes of "ab", a recording, and "cd"."""
    before, pad, after = TOKENS[sides.name]
    said = f"ab{before}{pad}{after}cd" if sides.name == "qwen3_asr" else f"abAudio 1: {before}{pad}{after}\ncd"
    floats = samples.astype(np.float32) / 32768
    return dict(sides.processor(text=[said], audio=[floats], sampling_rate=RATE, return_tensors="pt"))


def ours_of(sides: Sides, *heard: np.ndarray) -> tuple[Batch, list[int]]:
    """One row of the same documents, packed; and where each ends."""
    template, image = sides.recipe.template, sides.recipe.image
    parts = [recording(samples) for samples in heard]
    documents = [Document((Turn("document", (Text("ab"), part, Text("cd")), True),), "made") for part in parts]
    encoded = [template.encode(document) for document in documents]
    lengths = Lengths(InMemory("made", encoded, [[part] for part in parts], template.fingerprint), image)
    row = [Piece(0, n, 0, int(count)) for n, count in enumerate(lengths.tokens_E)]
    tokens = -(-int(lengths.tokens_E.sum()) // 16) * 16
    frames = -(-int(lengths.of("audio").sum()) // 1600) * 1600
    budgets = Budgets(tokens=tokens, patches=0, items=0, targets=tokens, audio=frames)
    loaded = Assembler([lengths], budgets, image)([row])
    assert not loaded.skipped
    return loaded.batch, np.cumsum(lengths.tokens_E).tolist()


@pytest.fixture(scope="module", params=sorted(TOKENS))
def sides(request, tmp_path_factory) -> Sides:
    return sides_of(request.param, tmp_path_factory.mktemp("model") / "folder")


def test_packed_recordings_give_the_ids_and_numbers_of_transformers(sides):
    import jax
    import jax.numpy as jnp

    from jaxmm import sharding
    from jaxmm.hf.pretrained import read_params
    from jaxmm.models.multimodal import make_model
    from jaxmm.models.tree import nested

    heard = [sound(count, n) for n, count in enumerate(SAMPLES)]
    batch, ends = ours_of(sides, *heard)
    token = sides.processor.tokenizer.convert_tokens_to_ids(TOKENS[sides.name][1])
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    is_said = np.zeros(batch.text.values.shape[1], bool)  # all but the end of each document, which is ours
    for start, end in itertools.pairwise([0, *ends]):
        is_said[start : end - 1] = True
    with jax.set_mesh(mesh):
        where = sharding.replicated(mesh)
        params = nested(read_params(sides.recipe.start, lambda *_: where).params)
        _, apply = make_model(sides.recipe.model)

        def logits_of(params):
            hidden, projection = apply(params, batch, sides.recipe.compute)
            logits = hidden[0] @ projection.T
            return (jnp.where(is_said[:, None], logits, 0) ** 2).sum(), logits

        gradients, logits = jax.jit(jax.grad(logits_of, has_aux=True))(params)
    sides.model.zero_grad()
    for samples, (start, end) in zip(heard, itertools.pairwise([0, *ends]), strict=True):
        theirs = theirs_of(sides, samples)
        slots = batch.slots_BT[0, start : end - 1]
        ids = np.where(slots != IGNORED, token, batch.text.values[0, start : end - 1])
        assert ids.tolist() == theirs["input_ids"][0].tolist(), len(samples)
        expected = sides.model(**theirs).logits[0]
        (expected**2).sum().backward()
        said = expected.detach().numpy()
        assert np.abs(np.asarray(logits)[start : end - 1] - said).max() < 1e-4 * max(1.0, np.abs(said).max())
    for part, theirs in (("first", "conv1" if sides.name == "qwen2_audio" else "conv2d1"),):
        kernel = getattr(sides.model.model.audio_tower, theirs).weight.grad.numpy()
        ours = np.asarray(gradients["audio"]["stem"][part]["kernel"])
        expected = kernel.transpose(tuple(range(kernel.ndim))[::-1]).reshape(ours.shape)
        assert np.abs(ours - expected).max() < 1e-3 * np.abs(expected).max()
    projector = sides.model.model.multi_modal_projector
    last = (projector.linear if sides.name == "qwen2_audio" else projector.linear_2).weight.grad.numpy().T
    assert np.abs(np.asarray(gradients["audio_connector"]["down"]["kernel"]) - last).max() < 1e-3 * np.abs(last).max()


def test_attention_onto_packed_recordings_is_that_of_transformers(sides):
    heard = [sound(count, n) for n, count in enumerate((8000, 40000))]
    batch, ends = ours_of(sides, *heard)
    places = [slice(start, end - 1) for start, end in itertools.pairwise([0, *ends])]  # without the end, which is ours
    alone = [(place, theirs_of(sides, samples)) for place, samples in zip(places, heard, strict=True)]
    assert attention_difference(sides.recipe, sides.model, batch, alone) < 1e-5


def test_tensors_come_back_to_the_bit(sides, tmp_path):
    import jax
    from safetensors.numpy import load_file

    from jaxmm import sharding
    from jaxmm.hf import folder as hf
    from jaxmm.hf import weights
    from jaxmm.hf.pretrained import read_params

    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    read = read_params(sides.recipe.start, lambda *_: sharding.replicated(mesh))
    assert read.spare == []
    weights.write(tmp_path, hf.outgoing(sides.recipe.start.layout, read.params, np.float32))
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(sides.folder / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_the_greedy_answer_is_that_of_transformers(sides):
    given = [(recording(samples), theirs_of(sides, samples)) for samples in (sound(20000, 1), sound(90000, 2))]
    assert_greedy_answers_agree(sides.recipe, sides.model, given)
