"""Images of several tiles, or with text inside: from a conversation with them to the logits of ``transformers``."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
from made_folders import folder_of

pytestmark = pytest.mark.parity

SIZES = ((64, 64), (70, 31), (15, 60), (11, 9))  # (height, width): of five, three, five tiles and one (InternVL)
PROCESSORS = {"internvl": "InternVLProcessor", "mistral3": "PixtralProcessor", "pixtral": "PixtralProcessor",
              "glm-4.1v": "Glm4vProcessor",
              "paddleocr-vl": "PaddleOCRVLProcessor"}  # fmt: skip
TILES = {"internvl": [8, 5, 1, 0], "mistral3": [2, 1, 1, 0], "pixtral": [2, 1, 1, 0], "glm-4.1v": [2, 1, 1, 0],
         "paddleocr-vl": [2, 1, 1, 0]}  # fmt: skip


def saved(folder, name: str, height: int, width: int):
    pixels = np.random.default_rng(height).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.BICUBIC)
    picture.save(folder / name)
    return picture


@pytest.mark.usefixtures("whole_transformers")
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_conversation_with_images_gives_the_tokens_and_logits_of_transformers(name, tmp_path):
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
    from jaxmm.inference.answers import Prompt, prompt_batch
    from jaxmm.models.multimodal import Compute, make_model
    from jaxmm.models.tree import nested

    folder = folder_of(name, tmp_path / "theirs")
    start = read_start(str(folder), None, 2, 0)
    assert start.differences() == []
    template = Template(load_tokenizer(str(folder)), "sft", markup=start.family.markup)
    where = sharding.replicated(sharding.make_mesh({"data": 1}, jax.devices()[:1]))
    params = nested(hf.read_model(folder, start.layout, lambda path, shape: where).params)
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == PROCESSORS[name]
    # Torchvision's filter differs by a level here and there, Pillow's does not.
    processor.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    _, apply = make_model(start.layout.spec)

    pictures = [saved(tmp_path, f"{n}.png", *size) for n, size in enumerate(SIZES)]
    chosen = [(0, 1), (2,), (3,), ()]  # one prompt each, in one batch of ours
    prompts = [Prompt(tuple(Image(path=str(tmp_path / f"{n}.png")) for n in own), "What is it?") for own in chosen]
    batch = prompt_batch(prompts, template, ImageSpec(**image_settings(start)))
    assert (batch.grids_BM3[:, :, 0].sum(1) == TILES[name]).all()
    hidden_BTD, head_VD = jax.jit(lambda params, batch: apply(params, batch, Compute()))(params, batch)
    ours_BTV = np.asarray(hidden_BTD @ head_VD.T)
    for b, own in enumerate(chosen):
        said = [{"type": "image"}] * len(own) + [{"type": "text", "text": "What is it?"}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": said}], add_generation_prompt=True, tokenize=False
        )
        images = {"images": [pictures[n] for n in own]} if own else {}
        inputs = processor(text=prompt, return_tensors="pt", **images)
        length = inputs["input_ids"].shape[1]
        tokens = np.where(batch.slots_BT[b] >= 0, model.config.image_token_id, batch.text.values[b])
        assert (batch.text.segments[b] > 0).sum() == length
        np.testing.assert_array_equal(tokens[:length], inputs["input_ids"][0].numpy())
        with torch.no_grad():
            theirs_TV = model(**inputs).logits[0].numpy()
        np.testing.assert_allclose(ours_BTV[b, :length], theirs_TV, atol=1e-4)
