"""Gemma 3's pan-and-scan from a record to the ids, logits and gradients of ``transformers``; and who prepares again."""

from __future__ import annotations

import json
import re

import numpy as np
import PIL.Image
import pytest
from made_folders import SPLIT, folder_of
from small_run import ROOT

from jaxmm import command
from jaxmm.data.packing.plan import Budgets, Piece
from jaxmm.errors import UserError
from jaxmm.inference.answers import prompt_rows
from jaxmm.training.samples import questions

pytestmark = pytest.mark.usefixtures("whole_transformers")

SIZES = (31, 90), (30, 40), (70, 20)  # (height, width): of 3 slices, of none, of 4
# Its tokenizer joins "?He" and "\nHe", and what stands around pictures with what stands around that.
SAID = ("Who is this?", 0, "And", 1, "and ", 2, "Well?")
ANSWER = "yes"


@pytest.fixture
def data(tmp_path):
    for n, size in enumerate(SIZES):
        pixels = np.random.default_rng(n).integers(0, 256, (*size, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{n}.png")
    asked = "".join("<image>" if isinstance(one, int) else one for one in SAID)
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": ANSWER}]
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"messages": messages, "images": [f"{n}.png" for n in range(len(SIZES))]}) + "\n")
    return path


def read(tmp_path, path, folder):
    """The recipe of a run on the data from a model's folder, and its source's lengths."""
    from jaxmm.recipe import read_data, train_corpus

    flags = {"init_from": folder, "data.path": path, "data.cache": tmp_path / "cache", "seq_len": 512}
    argv = [f"--config={ROOT / 'configs/base.py'}", *(f"--config.{key}={value}" for key, value in flags.items())]
    config = command.parse(argv, {}, about="").config
    recipe = read_data(config)
    (lengths,) = train_corpus(config, recipe).lengths
    return recipe, lengths


def loaded(lengths, image):
    from jaxmm.data.assemble import Assembler

    budgets = Budgets(tokens=512, patches=512, items=16, targets=64)
    found = Assembler([lengths], budgets, image)([[Piece(0, 0, 0, int(lengths.tokens_E[0]))]])
    assert not found.skipped
    return found


def text_of(recipe, lengths) -> str:
    return recipe.template.decode(lengths.prepared.read(0).tokens)


def test_data_is_prepared_for_slices_and_for_no_others(tmp_path, data):
    folder = folder_of("gemma3", tmp_path / "model", has_weights=False, is_split=True)
    recipe, lengths = read(tmp_path, data, folder)
    first = lengths.prepared.folder
    intro, inner = "Here is the original image ", " and here are some crops to help you see better "
    assert text_of(recipe, lengths).count(intro) == 2
    assert lengths.items_E.tolist() == [4 + 1 + 5]
    batch = loaded(lengths, recipe.image).batch
    slots = batch.slots_BT[0]
    whole = recipe.template.decode(np.where(slots < 0, batch.text.values[0], recipe.template.pad_id))
    assert whole.count(inner) == 2
    runs = np.flatnonzero(np.diff(np.concatenate([[0], batch.blocks_BT[0], [0]]))).reshape(-1, 2)
    assert (np.diff(runs)[:, 0] == 4).all(), "each tile sees itself alone"
    assert len(runs) == 10
    learnt = batch.weights_BT[0] > 0
    assert recipe.template.decode(batch.targets_BT[0][learnt]).strip() == ANSWER
    ((prompt, truth),) = questions(lengths.prepared, recipe.template, 1, recipe.image)
    assert (intro in prompt.text, truth) == (False, ANSWER), "what is asked again has it once"
    asked = prompt_rows([prompt], recipe.template, recipe.image).loaded.batch
    assert recipe.template.decode(asked.text.values[0]).count(intro) == 2
    assert read(tmp_path, first, folder)[1].prepared.folder == first, "prepared data is taken as it is"
    settings = folder / "preprocessor_config.json"
    kept = json.loads(settings.read_text())
    for changed, count, told in (
        ({"do_pan_and_scan": False}, 0, "this run has pictures that are not cut into slices"),
        ({"pan_and_scan_min_crop_size": 24}, 1, "slices of 24 pixels or more, where they are 1.5 times as long"),
    ):
        settings.write_text(json.dumps(kept | changed))
        recipe, lengths = read(tmp_path, data, folder)
        assert lengths.prepared.folder != first
        assert text_of(recipe, lengths).count(intro) == count
        with pytest.raises(UserError, match=rf"with the text before pictures that are cut into up to 4 .*{told}"):
            read(tmp_path, first, folder)
    settings.write_text(json.dumps(kept | {"pan_and_scan_max_num_crops": 1}))
    with pytest.raises(UserError, match=r"pan_and_scan_max_num_crops': 1.* is not supported: .* into 2 to 1 slices"):
        read(tmp_path, data, folder)


@pytest.mark.parity
def test_a_record_has_the_ids_logits_and_gradients_of_transformers(tmp_path, data, monkeypatch):
    import jax
    import torch
    import transformers
    from test_split import resized_by_pillow
    from transformers.image_processing_backends import TorchvisionBackend

    from jaxmm import sharding
    from jaxmm.hf import folder as hf
    from jaxmm.hf import names
    from jaxmm.models.multimodal import Compute, make_model
    from jaxmm.models.tree import flat, nested
    from jaxmm.training.loss import batch_loss, from_hidden

    monkeypatch.setattr(TorchvisionBackend, "resize", resized_by_pillow)
    folder = folder_of("gemma3", tmp_path / "model", is_split=True)
    recipe, lengths = read(tmp_path, data, folder)
    batch = loaded(lengths, recipe.image).batch
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    asked = [{"type": "text", "text": one} if isinstance(one, str) else {"type": "image"} for one in SAID]
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": ANSWER}]
    pictures = [PIL.Image.open(data.parent / f"{n}.png") for n in range(len(SIZES))]
    flags = {key: value for key, value in SPLIT["gemma3"].items() if value is not None}
    prompt = processor.apply_chat_template(messages, tokenize=False)
    inputs = processor(text=[prompt], images=[pictures], return_tensors="pt", images_kwargs=flags)
    length = inputs["input_ids"].shape[1]
    ours = np.where(batch.slots_BT[0] >= 0, model.config.image_token_id, batch.text.values[0])
    np.testing.assert_array_equal(ours[:length], inputs["input_ids"][0].numpy())
    assert (batch.text.segments[0] > 0).sum() == length
    joined = [
        one for one in processor.tokenizer.convert_ids_to_tokens(ours[:length].tolist()) if re.search("[?\n]He", one)
    ]
    assert joined == ["?He"], "what stands before a picture is one token with what is said before it"

    targets, weights = (torch.tensor(array[0, :length]) for array in (batch.targets_BT, batch.weights_BT))
    logits = model(**inputs).logits[0]
    losses = torch.nn.functional.cross_entropy(logits, targets.long(), reduction="none")
    (losses * weights).sum().backward()
    _, apply = make_model(recipe.start.layout.spec)
    where = sharding.replicated(sharding.make_mesh({"data": 1}, jax.devices()[:1]))
    params = nested(hf.read_model(folder, recipe.start.layout, lambda path, shape: where).params)

    def loss(params):
        hidden_BTD, head_VD = apply(params, batch, Compute())
        whole = batch_loss(from_hidden(hidden_BTD, head_VD), batch, batch.targets_BT.shape[1], 0.0, 0.0)[0]
        return whole, hidden_BTD[0] @ head_VD.T

    gradients, ours_TV = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(params))
    np.testing.assert_allclose(ours_TV[:length], logits.detach().numpy(), atol=1e-4)
    own = {names.common_name(name): p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    floor = 1e-3 * max(float(np.abs(value).max()) for value in own.values())
    written = hf.outgoing(recipe.start.layout, flat(gradients), np.float32)
    found = {names.common_name(tensor.name): tensor.make() for tensor in written}
    assert "connector.mm_input_projection_weight" in found
    for name, value in found.items():
        wanted = own.get(name, np.zeros_like(value))
        assert np.abs(value - wanted).max() <= 1e-3 * max(float(np.abs(wanted).max()), floor), name
