"""Split pictures through the whole model: from a conversation to the ids, logits and answers of ``transformers``."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from made_folders import SPLIT, folder_of

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("whole_transformers")]

# (height, width): of several tiles, of others, of a whole picture alone.
SIZES = {
    "siglip2 + llama": ((70, 90), (40, 140), (30, 24)), "idefics3": ((70, 90), (60, 30), (9, 40)),
    "llava-next": ((70, 90), (5, 40), (11, 8)), "llava-onevision": ((70, 90), (30, 90), (11, 8)),
    "gemma3": ((31, 90), (70, 20), (30, 40)),
}  # fmt: skip
CHOSEN = ("siglip2 + llama", "llava-next", "gemma3")  # tiles, squares that are read as one picture, slices
QUESTION = "What is it?"
UNUSED = r"model\.vision_tower\.(encoder\.layers\.1|post_layernorm)\."


def resized_by_pillow(self, image, size, resample=None, **_):
    """Torchvision's filter differs by a level here and there, Pillow's does not."""
    import torch

    squares = [PIL.Image.fromarray(one.permute(1, 2, 0).numpy()) for one in image.reshape(-1, *image.shape[-3:])]
    goal = (size.width or size.shortest_edge, size.height or size.shortest_edge)  # of squares, one side is both
    resized = [np.array(one.resize(goal, int(resample))) for one in squares]
    found = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
    return found.reshape(*image.shape[:-2], *found.shape[-2:])


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in CHOSEN else pytest.mark.full) for name in SIZES],
)
def world(request, tmp_path_factory):
    """A folder whose processor splits pictures, its recipe, and pictures in files."""
    import jax

    from jaxmm import sharding
    from jaxmm.data.documents import Image
    from jaxmm.data.media.geometry import one_tiling
    from jaxmm.data.text.template import Template
    from jaxmm.data.text.tokenizer import load_tokenizer
    from jaxmm.hf import folder as hf
    from jaxmm.hf.pretrained import image_settings, read_start
    from jaxmm.image_spec import ImageSpec
    from jaxmm.models.multimodal import Compute, make_model
    from jaxmm.models.tree import nested

    tmp = tmp_path_factory.mktemp("split")
    folder = folder_of(request.param, tmp / "theirs", is_split=request.param in SPLIT)
    start = read_start(str(folder), None, 2, 0)
    assert start.differences() == []
    template = Template(load_tokenizer(str(folder)), "sft", markup=start.family.markup)
    where = sharding.replicated(sharding.make_mesh({"data": 1}, jax.devices()[:1]))
    params = nested(hf.read_model(folder, start.layout, lambda path, shape: where).params)
    _, apply = make_model(start.layout.spec)
    image = ImageSpec(**image_settings(start))
    pictures = []
    for n, (height, width) in enumerate(SIZES[request.param]):
        pixels = np.random.default_rng(n).integers(0, 256, (height, width, 3), dtype=np.uint8)
        pictures.append(PIL.Image.fromarray(pixels))
        pictures[-1].save(tmp / f"{n}.png")
    return SimpleNamespace(
        folder=folder, start=start, template=template, params=params, spec=start.layout.spec,
        image=image, pictures=pictures,
        tiles=lambda n, spec: len(one_tiling(*SIZES[request.param][n], spec).grids),
        parts=[Image(path=str(tmp / f"{n}.png")) for n in range(len(pictures))],
        hidden=jax.jit(lambda params, batch: apply(params, batch, Compute())),
    )  # fmt: skip


CHOSEN = [(0, 2), (1,), (2,), ()]  # the pictures of each prompt, in one batch of ours


def prompts_of(world):
    from jaxmm.inference.answers import Prompt

    return [Prompt(tuple(world.parts[n] for n in own), QUESTION) for own in CHOSEN]


@pytest.fixture
def theirs(world, monkeypatch):
    """The model and processor of ``transformers``, which resizes as we do."""
    import transformers
    from transformers.image_processing_backends import TorchvisionBackend

    model, info = transformers.AutoModelForImageTextToText.from_pretrained(world.folder, output_loading_info=True)
    if world.image.newline:  # what LLaVA's classes run without using it, which a fresh model does not have
        info["missing_keys"] = {name for name in info["missing_keys"] if not re.match(UNUSED, name)}
    assert not any(info.values()), info
    monkeypatch.setattr(TorchvisionBackend, "resize", resized_by_pillow)
    processor = transformers.AutoProcessor.from_pretrained(world.folder)
    if world.image.resample == "lanczos" or world.image.newline:  # torchvision has no such filter; or one by one
        processor.image_processor = transformers.AutoImageProcessor.from_pretrained(world.folder, backend="pil")
    return model, processor


def inputs_of(world, processor, own):
    said = [{"type": "image"}] * len(own) + [{"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": said}], add_generation_prompt=True, tokenize=False
    )
    images = {"images": [[world.pictures[n] for n in own]]} if own else {}
    kept = world.start.processor
    asked = {key: kept[key] for key in world.start.family.pictures.call_keys if kept[key] is not None}
    return processor(text=[prompt], return_tensors="pt", **images, images_kwargs=asked)


def test_ids_logits_and_greedy_answers_are_those_of_transformers(world, theirs):
    import torch

    from jaxmm.data.media.mosaic import beside_others
    from jaxmm.inference.answers import make_generator, prompt_batch, write
    from jaxmm.models.multimodal import Compute

    model, processor = theirs
    batch = prompt_batch(prompts_of(world), world.template, world.image)
    tiles = (batch.grids_BM3[:, :, 0] > 0).sum(1)
    of_several = beside_others(world.image)
    wanted = [sum(world.tiles(n, world.image if len(own) == 1 else of_several) for n in own) for own in CHOSEN]
    assert tiles.tolist() == wanted
    assert wanted[1] > 2
    hidden_BTD, head_VD = world.hidden(world.params, batch)
    ours_BTV = np.asarray(hidden_BTD @ head_VD.T)
    wanted = []
    for b, own in enumerate(CHOSEN):
        inputs = inputs_of(world, processor, own)
        length = inputs["input_ids"].shape[1]
        tokens = np.where(batch.slots_BT[b] >= 0, model.config.image_token_id, batch.text.values[b])
        np.testing.assert_array_equal(tokens[:length], inputs["input_ids"][0].numpy())
        assert (batch.text.segments[b] > 0).sum() == length
        with torch.no_grad():
            theirs_TV = model(**inputs).logits[0].numpy()
            said = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None)
        np.testing.assert_allclose(ours_BTV[b, :length], theirs_TV, atol=1e-4)
        wanted.append(said[0, length:].tolist())
    generator = make_generator(world.spec, Compute(), ())
    *_, replies = write(generator, world.params, prompts_of(world), world.template, world.image, 8)
    assert [reply.text for reply in replies] == [world.template.decode(ids) for ids in wanted]


def test_an_export_has_a_processor_that_writes_the_same_ids(world, theirs, tmp_path, capsys):
    import transformers

    from jaxmm.exporting.processors import write_processor, write_tokenizer
    from jaxmm.hf.pretrained import MODEL, save
    from jaxmm.image_spec import ImageSpec

    start = world.start.settled((0, 0))
    save(start, [], tmp_path / MODEL)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text((world.folder / "config.json").read_text())
    recipe = SimpleNamespace(start=start, image=world.image, whole=ImageSpec(), template=world.template)
    write_tokenizer(recipe, tmp_path / "out")
    write_processor(recipe, tmp_path, tmp_path / "out")
    told, kind = capsys.readouterr().err, world.start.family.model_type
    assert told == ("" if kind != "gemma3" else (
        "warning: the model learnt from pictures with do_pan_and_scan, which transformers' processor of a gemma3 "
        "follows at its call alone: call it with images_kwargs={'do_pan_and_scan': True, "
        "'pan_and_scan_min_crop_size': 16, 'pan_and_scan_min_ratio_to_activate': 1.5}\n"
    ))  # fmt: skip
    exported = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert kept == json.loads((world.folder / "preprocessor_config.json").read_text())
    for own in CHOSEN:
        ids = [inputs_of(world, processor, own)["input_ids"].tolist() for processor in (theirs[1], exported)]
        assert ids[0] == ids[1]


def test_packed_rows_are_as_alone_and_text_between_tiles_is_no_target(world):
    from jaxmm.data.assemble import Assembler
    from jaxmm.data.documents import Document, Text, Turn
    from jaxmm.data.packing.lengths import Lengths
    from jaxmm.data.packing.plan import Budgets, Piece
    from jaxmm.data.prepare.index import InMemory

    documents = [
        Document((Turn("user", (*(world.parts[n] for n in own), Text(QUESTION)), False),
                  Turn("assistant", (Text("yes"),), True)), "made")
        for own in CHOSEN
    ]  # fmt: skip
    encoded = [world.template.encode(document) for document in documents]
    source = InMemory("made", encoded, [[world.parts[n] for n in own] for own in CHOSEN], world.template.fingerprint)
    lengths = Lengths(source, world.image, encode=world.template.stamp)
    total = {name: int(lengths.of(name).sum()) for name in ("tokens", "patches", "items")}
    budgets = Budgets(*(-(-total[name] // 64) * 64 for name in ("tokens", "patches", "items")), targets=64)
    assemble = Assembler([lengths], budgets, world.image)
    pieces = [Piece(0, e, 0, int(lengths.tokens_E[e])) for e in range(len(CHOSEN))]
    packed, alone = assemble([pieces]).batch, assemble([[piece] for piece in pieces]).batch
    together_TD = np.asarray(world.hidden(world.params, packed)[0])[0]
    apart_BTD = np.asarray(world.hidden(world.params, alone)[0])
    at = 0
    for b, piece in enumerate(pieces):
        np.testing.assert_allclose(together_TD[at : at + piece.last], apart_BTD[b, : piece.last], atol=1e-5)
        learnt = alone.weights_BT[b] > 0
        assert world.template.decode(alone.targets_BT[b][learnt]).strip() == "yes", "the answer alone is learnt"
        at += piece.last


def test_a_run_that_began_before_pictures_were_split_goes_on_without(world, tmp_path):
    from jaxmm.exporting.processors import write_processor
    from jaxmm.hf.pretrained import MODEL, PIXELS, image_settings, read_start, save
    from jaxmm.image_spec import ImageSpec

    start = world.start.settled((0, 0))
    save(start, [], tmp_path / "new")
    assert image_settings(read_start("", tmp_path / "new", 2, 0)).get("split") == world.image.split
    pixels = tmp_path / "new" / PIXELS
    settled, key = json.loads(pixels.read_text()) if pixels.exists() else {}, world.start.split_key
    if world.start.family.model_type in ("lfm2_vl", "gemma3"):  # runs of families that came later have no such past
        assert settled.pop("split")
        pixels.write_text(json.dumps(settled))
        old = read_start("", tmp_path / "new", 2, 0)
        assert "split" not in image_settings(old)
        assert old.differences() == [f"the folder's {key} is not followed: each image is one tile"]
        recipe = SimpleNamespace(start=old, image=ImageSpec(**image_settings(old)), whole=ImageSpec())
        (tmp_path / "run").mkdir()
        (tmp_path / "new").rename(tmp_path / "run" / MODEL)
        write_processor(recipe, tmp_path / "run", tmp_path)
        assert json.loads((tmp_path / "preprocessor_config.json").read_text())[key] is False
