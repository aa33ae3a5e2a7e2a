"""A question with an image, and its answer, as PaliGemma's own processor in ``transformers`` writes them."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
from made_folders import folder_of

pytestmark = pytest.mark.parity


@pytest.mark.usefixtures("whole_transformers")
def test_a_question_and_its_answer_give_the_tokens_and_logits_of_transformers(tmp_path):
    import jax
    import torch
    import transformers

    from jaxmm import sharding
    from jaxmm.data.documents import Image
    from jaxmm.data.text.template import Template
    from jaxmm.data.text.tokenizer import load_tokenizer
    from jaxmm.hf import folder as hf
    from jaxmm.hf.pretrained import image_settings, read_start
    from jaxmm.image_spec import ImageSpec
    from jaxmm.inference.answers import Prompt, prompt_rows
    from jaxmm.models.multimodal import Compute, make_model
    from jaxmm.models.tree import nested

    folder = folder_of("paligemma2", tmp_path / "theirs")
    start = read_start(str(folder), None, 2, 0)
    template = Template(load_tokenizer(str(folder)), "sft", markup=start.family.markup, has_prefix=True)
    where = sharding.replicated(sharding.make_mesh({"data": 1}, jax.devices()[:1]))
    params = nested(hf.read_model(folder, start.layout, lambda path, shape: where).params)
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "PaliGemmaProcessor"
    processor.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")

    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(pixels)
    picture.save(tmp_path / "0.png")
    prompt, answer = Prompt((Image(path=str(tmp_path / "0.png")),), "detect cat"), "<loc0000><loc1023> cat"
    ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"] + [processor.tokenizer.eos_token_id]
    batch = prompt_rows([prompt], template, ImageSpec(**image_settings(start)), written=[ids]).loaded.batch
    inputs = processor(images=picture, text="<image>detect cat", suffix=answer, return_tensors="pt")
    labels, length = inputs.pop("labels")[0].numpy(), inputs["input_ids"].shape[1]
    assert (batch.text.segments[0] > 0).sum() == length
    tokens = np.where(batch.slots_BT[0] >= 0, model.config.image_token_id, batch.text.values[0])[:length]
    np.testing.assert_array_equal(tokens, inputs["input_ids"][0].numpy())
    np.testing.assert_array_equal(batch.blocks_BT[0, :length], inputs["token_type_ids"][0].numpy() == 0)
    np.testing.assert_array_equal(batch.weights_BT[0, : length - 1] > 0, labels[1:] >= 0)

    _, apply = make_model(start.layout.spec)

    def logits(params, batch):
        hidden_BTD, _ = apply(params, batch, Compute())
        return apply(params, hidden_BTD[0], method="logits")

    ours_TV = np.asarray(jax.jit(logits)(params, batch))[:length]
    with torch.no_grad():
        theirs_TV = model(**inputs).logits[0].numpy()
    np.testing.assert_allclose(ours_TV, theirs_TV, atol=1e-4)
