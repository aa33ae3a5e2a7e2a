"""A tower and a decoder that no folder had together: laid out so that ``transformers`` runs what is exported."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
from made_folders import byte_level_tokenizer, folder_of
from parities import models as parity_models

from jaxmm import command, sharding
from jaxmm.data.documents import Document, Image, Text, Turn
from jaxmm.data.media import patches as cutting
from jaxmm.errors import UserError
from jaxmm.exporting.configs import write_config, write_generation
from jaxmm.exporting.processors import write_processor, write_tokenizer
from jaxmm.hf import folder as hf
from jaxmm.hf import weights
from jaxmm.hf.pretrained import MODEL, SPARE, image_settings, read_params, read_start, save
from jaxmm.image_spec import ImageSpec
from jaxmm.models.multimodal import flat_axes
from jaxmm.recipe import Recipe, read_recipe

pytestmark = pytest.mark.usefixtures("whole_transformers")
ROOT = Path(__file__).parents[2]
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% endif %}"
)


def parts(name: str, root: Path, **vision: Any) -> str:
    """The tower and the decoder of a case's model in folders of their own, as ``config.init_from`` takes them.

    Args:
      vision: keys of the tower's config that are other than the case's.
    """
    whole = folder_of(name, root / "whole")
    config = json.loads((whole / "config.json").read_text())
    tensors = safetensors.numpy.load_file(whole / "model.safetensors")
    for part, prefix, own in (("vision", "vision_tower.", "vision_model."), ("decoder", "language_model.", "")):
        folder = root / part
        folder.mkdir()
        found = {own + n.removeprefix(prefix).removeprefix("vision_model."): x
                 for n, x in tensors.items() if n.startswith(prefix)}  # fmt: skip
        if part == "vision":
            found |= unused(found)
        safetensors.numpy.save_file(found, folder / "model.safetensors")
        own_config = config[{"vision": "vision_config", "decoder": "text_config"}[part]]
        (folder / "config.json").write_text(json.dumps(own_config | (vision if part == "vision" else {})))
    (whole / "preprocessor_config.json").rename(root / "vision" / "preprocessor_config.json")
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(root / "decoder")
    return f"vision:{root / 'vision'},decoder:{root / 'decoder'}"


def unused(tower: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a tower has and LLaVA does not use: its last layer, its last norm, and a pooling head."""
    last = {n.replace(".layers.1.", ".layers.2."): x + 1 for n, x in tower.items() if ".layers.1." in n}
    norm = {f"vision_model.post_layernorm.{n}": np.full(24, 3, np.float32) for n in ("weight", "bias")}
    return {**last, **norm, "vision_model.head.probe": np.ones((1, 1, 24), np.float32)}


def here(path: Any, shape: Any) -> Any:
    """The place of each parameter."""
    return sharding.replicated(sharding.make_mesh({"data": 1}, jax.devices()[:1]))


def begun(start: str, workdir: Path) -> tuple[Recipe, dict[Any, Any]]:
    """A run's recipe, its small files in the workdir, and its parameters."""
    flags = [f"--config={ROOT / 'configs/base.py'}", f"--config.init_from={start}"]
    recipe = read_recipe(command.parse(flags, {}).config)
    assert recipe.start is not None
    read = read_params(recipe.start, here)
    save(recipe.start, read.spare, workdir / MODEL)
    rng, params = np.random.default_rng(0), dict(read.params)
    for path, (shape, _) in flat_axes(recipe.model).items():  # the connector is fresh
        params.setdefault(path, 0.3 * rng.standard_normal(shape, np.float32))
    return recipe, params


def exported(recipe: Recipe, params: dict[Any, Any], workdir: Path, out: Path) -> dict[str, Any]:
    out.mkdir()
    layout, config = write_config(recipe, out, "float32")
    weights.write(out, hf.outgoing(layout, params, np.float32, workdir / MODEL / SPARE))
    write_tokenizer(recipe, out)
    write_processor(recipe, workdir, out)
    write_generation(recipe, config, workdir, out)
    return config


@pytest.mark.parametrize("name", ["llava, clip", "llava, siglip"])
def test_a_tower_of_one_size_goes_into_llavas_layout_whole(name, tmp_path):
    start = parts(name, tmp_path)
    recipe, params = begun(start, tmp_path / "run")
    assert "as in LLaVA" in " ".join(recipe.start.differences())
    config = exported(recipe, params, tmp_path / "run", tmp_path / "out")
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    # Read again, as a whole model: nothing is missing, and what is unused is there under the whole's names.
    again = read_start(str(tmp_path / "out"), None, 2, 0)
    assert again.layout.spec == recipe.model
    assert again.differences() == []
    found = read_params(again, here)
    assert found.params.keys() == params.keys()
    layer = {n.split(".layers.2.")[1] for n in found.spare if ".layers.2." in n}
    assert len(layer) == 16
    assert {n.split("post_layernorm.")[1] for n in found.spare if "post_layernorm" in n} == {"weight", "bias"}
    assert not [n for n in found.spare if "head" in n]
    side = 16 if name == "llava, clip" else 20
    assert (recipe.image.side, recipe.image.merge) == (side, 1)
    processor = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert processor["processor_class"] == "LlavaProcessor"
    assert processor["num_additional_image_tokens"] == (name == "llava, clip")


def test_what_a_joined_export_writes_of_a_conversation_is_what_was_learnt(tmp_path):
    from transformers import AutoTokenizer

    start = parts("llava, siglip", tmp_path)
    recipe, params = begun(start, tmp_path / "run")
    turns = (Turn("user", (Image(data=b""), Text("What?")), False), Turn("assistant", (Text("That."),), True))
    learnt = recipe.template.encode(Document(turns, "made"))
    config = exported(recipe, params, tmp_path / "run", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    said = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "That."},
    ]
    ids = tokenizer.apply_chat_template(said, tokenize=True, return_dict=True)["input_ids"]
    assert config["image_token_index"] == tokenizer.convert_tokens_to_ids("<image>") in ids
    assert [i for i in ids if i != config["image_token_index"]] == learnt.tokens.tolist()


def test_a_tower_that_goes_with_no_other_decoder_is_refused_at_the_start(tmp_path):
    whole = folder_of("qwen2.5-vl", tmp_path / "whole", has_weights=False)
    with pytest.raises(UserError, match=r"runs in its own family alone: .* siglip2_vision_model, siglip_vision_model"):
        read_start(f"vision:{whole},decoder:{whole}", None, 2, 64)


@pytest.mark.parametrize(("side", "patch"), [(384, 14), (18, 4)])
def test_of_a_side_that_patches_do_not_divide_the_last_pixels_are_not_seen(side, patch):
    """As a convolution without padding leaves them out."""
    spec = ImageSpec(patch_size=patch, merge=1, min_pixels=1, max_pixels=side**2, side=side)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    found, grid = cutting.patches(Image(data=file.getvalue()), spec, (side, side))
    count = side // patch
    assert grid == (count, count)
    seen = pixels[: count * patch, : count * patch].reshape(count, patch, count, patch, 3).swapaxes(1, 2)
    np.testing.assert_array_equal(found, seen.reshape(count**2, -1))
    assert spec.tile_patches == count**2


def test_a_siglip_of_384_and_14_has_27_patches_on_a_side(tmp_path):
    config = parity_models.case("llava, siglip").config(np.random.default_rng(0))
    config.vision_config.image_size, config.vision_config.patch_size = 384, 14
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    said = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 384, "width": 384}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    start = read_start(str(tmp_path), None, 2, 0)
    assert start.layout.spec.vision.positions == 27
    assert ImageSpec(**image_settings(start)).tile_patches == 27**2


@pytest.mark.parity
@pytest.mark.parametrize(("name", "side"), [("llava, clip", 16), ("llava, siglip", 20), ("llava, siglip", 18)])
def test_transformers_runs_what_is_exported_with_the_same_logits(name, side, tmp_path):
    import torch
    import transformers

    from jaxmm.inference.answers import Prompt, prompt_batch
    from jaxmm.models.multimodal import Compute, make_model
    from jaxmm.models.tree import nested

    start = parts(name, tmp_path, image_size=side)
    if side == 18:  # of which patches of 4 see 16: the positions are of as many
        file, settings = tmp_path / "vision/model.safetensors", tmp_path / "vision/preprocessor_config.json"
        tensors = safetensors.numpy.load_file(file)
        at = "vision_model.embeddings.position_embedding.weight"
        safetensors.numpy.save_file(tensors | {at: tensors[at][:16]}, file)
        said = json.loads(settings.read_text())
        settings.write_text(json.dumps(said | {"size": {"height": 18, "width": 18}}))
    recipe, params = begun(start, tmp_path / "run")
    exported(recipe, params, tmp_path / "run", tmp_path / "out")
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor).__name__ == "LlavaProcessor"
    processor.image_processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 45, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "picture.png")
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    text = processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    inputs = processor(images=[PIL.Image.fromarray(pixels)], text=text, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**inputs).logits[0].numpy()
    prompt = Prompt((Image(path=str(tmp_path / "picture.png")),), "What?")
    batch = prompt_batch([prompt], recipe.template, recipe.image)
    _, apply = make_model(recipe.model)
    hidden_BTD, head_VD = jax.jit(lambda params, batch: apply(params, batch, Compute()))(nested(params), batch)
    ours = np.asarray(hidden_BTD @ head_VD.T)[0][: len(theirs)]
    np.testing.assert_allclose(ours[:, : theirs.shape[1]], theirs, atol=2e-5)
