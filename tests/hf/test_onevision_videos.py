"""LLaVA-OneVision's videos against ``transformers``: ids, patches, logits, gradients and greedy answers."""

from __future__ import annotations

import io
import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from conftest import picture
from made_folders import folder_of
from test_split import UNUSED, resized_by_pillow

from jaxmm.data.documents import Document, Text, Turn, Video

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("whole_transformers")]

QUESTION = "What is it?"
STILL = picture(30, 41, 70)
# Of one frame a second: 3 frames, one, and 5 beside a picture.
FILMS = tuple(
    Video(frames=tuple(picture(*size, seed + n) for n in range(count)), fps=rate)
    for count, rate, size, seed in ((7, 2.0, (24, 30), 0), (2, 3.0, (40, 16), 20), (20, 4.0, (14, 14), 40))
)
CHOSEN = ((FILMS[0],), (FILMS[1],), (STILL, FILMS[2]), ())  # media of each document


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder, and what both sides make of it."""
    import transformers

    from jaxmm.api import load_config
    from jaxmm.hf.pretrained import read_params
    from jaxmm.models.multimodal import Compute, make_model
    from jaxmm.models.tree import nested
    from jaxmm.recipe import fitted, read_recipe

    folder = folder_of("llava-onevision", tmp_path_factory.mktemp("films") / "theirs")
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not [name for name in info["missing_keys"] if not re.match(UNUSED, name)]
    processor = transformers.AutoProcessor.from_pretrained(folder)
    processor.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    config = load_config("base", init_from=str(folder), seq_len=512)
    recipe = fitted(read_recipe(config), {"video"})
    _, apply = make_model(recipe.model)
    params = nested(read_params(recipe.start, lambda *_: _on_one_device()).params)
    return SimpleNamespace(
        folder=folder, model=model.eval(), processor=processor, recipe=recipe, params=params,
        apply=lambda params, batch: apply(params, batch, Compute()),
    )  # fmt: skip


def _on_one_device():
    import jax

    from jaxmm import sharding

    return sharding.replicated(sharding.make_mesh({"data": 1}, jax.devices()[:1]))


@pytest.fixture
def same_resizing(monkeypatch):
    """Frames are resized by Pillow on both sides."""
    from transformers.video_processing_utils import BaseVideoProcessor

    monkeypatch.setattr(BaseVideoProcessor, "resize", resized_by_pillow)


def pixels(image) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(image.data)).convert("RGB"))


def inputs_of(processor, media):
    from transformers.video_utils import VideoMetadata

    kinds = ["video" if isinstance(one, Video) else "image" for one in media]
    said = [{"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": QUESTION}]}]
    text = processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    films = [one for one in media if isinstance(one, Video)]
    of_films = {
        "videos": [np.stack([pixels(frame) for frame in film.frames]) for film in films],
        "video_metadata": [
            VideoMetadata(total_num_frames=len(film.frames), fps=film.fps, duration=len(film.frames) / film.fps)
            for film in films
        ],
        "do_sample_frames": True, "fps": 1.0,
    }  # fmt: skip
    stills = [[PIL.Image.fromarray(pixels(one)) for one in media if not isinstance(one, Video)]]
    of_stills = {"images": stills} if stills[0] else {}
    return processor(text=[text], return_tensors="pt", **of_stills, **(of_films if films else {}))


def rows_of(world, is_packed: bool):
    """The documents in one row, or in one each, without what the model is to write; and how long each is."""
    from jaxmm.data.assemble import Assembler
    from jaxmm.data.packing.lengths import Lengths
    from jaxmm.data.packing.plan import Budgets, Piece
    from jaxmm.data.prepare.index import InMemory

    template, image = world.recipe.template, world.recipe.image
    documents = [
        Document((Turn("user", (*media, Text(QUESTION)), False), Turn("assistant", (Text("yes"),), True)), "made")
        for media in CHOSEN
    ]
    encoded = [template.encode(document) for document in documents]
    source = InMemory("made", encoded, [list(media) for media in CHOSEN], template.fingerprint)
    lengths = Lengths(source, image, encode=template.stamp)
    total = {name: -(-int(lengths.of(name).sum()) // 64) * 64 for name in ("tokens", "patches", "items")}
    pieces = [Piece(0, n, 0, int(count)) for n, count in enumerate(lengths.tokens_E)]
    assemble = Assembler([lengths], Budgets(**total, targets=total["tokens"]), image)
    loaded = assemble([pieces] if is_packed else [[piece] for piece in pieces])
    assert not loaded.skipped
    return loaded.batch, lengths.tokens_E.tolist()


@pytest.mark.usefixtures("same_resizing")
def test_ids_logits_and_gradients_of_packed_documents_are_those_of_transformers(world):
    import jax
    import jax.numpy as jnp

    batch, counts = rows_of(world, is_packed=True)
    given = [inputs_of(world.processor, media) for media in CHOSEN]
    starts = [0, *itertools.accumulate(counts)][:-1]
    rows = world.model.config.text_config.vocab_size
    is_prompt = np.zeros(batch.text.values.shape[1], bool)
    image_id, video_id = (getattr(world.model.config, f"{kind}_token_id") for kind in ("image", "video"))
    for start, inputs in zip(starts, given, strict=True):
        ids = inputs["input_ids"][0, :-1].numpy()  # a line's end opens an answer there, a space begins a turn
        here = slice(start, start + len(ids))
        is_prompt[here] = True
        is_soft = np.isin(ids, [image_id, video_id])
        np.testing.assert_array_equal(batch.slots_BT[0, here] >= 0, is_soft)
        np.testing.assert_array_equal(batch.text.values[0, here][~is_soft], ids[~is_soft])

    def loss(params):
        hidden_BTD, head_VD = world.apply(params, batch)
        logits_TV = hidden_BTD[0] @ head_VD[:rows].T
        return (jnp.where(is_prompt[:, None], logits_TV, 0) ** 2).sum(), logits_TV

    gradients, logits_TV = jax.jit(jax.grad(loss, has_aux=True))(world.params)
    world.model.zero_grad()
    for start, inputs in zip(starts, given, strict=True):
        theirs_TV = world.model(**inputs).logits[0, :-1]
        (theirs_TV**2).sum().backward()
        ours_TV = np.asarray(logits_TV[start : start + len(theirs_TV)])
        np.testing.assert_allclose(ours_TV, theirs_TV.detach().numpy(), atol=1e-4)
    inner = world.model.model
    for ours, theirs in (
        (gradients["connector"]["newline"], inner.image_newline.grad),
        (gradients["connector"]["up"]["kernel"], inner.multi_modal_projector.linear_1.weight.grad.T),
        (gradients["vision"]["patch_embedding"]["kernel"],
         inner.vision_tower.embeddings.patch_embedding.weight.grad.permute(2, 3, 1, 0).flatten(0, 2)),
    ):  # fmt: skip
        assert np.abs(np.asarray(ours) - theirs.numpy()).max() < 1e-3 * np.abs(theirs.numpy()).max()


@pytest.mark.usefixtures("same_resizing")
def test_patches_are_those_of_the_processor(world):
    batch, _ = rows_of(world, is_packed=False)
    mean, std = (np.array(getattr(world.processor.video_processor, f"image_{of}")) for of in ("mean", "std"))
    side, patch = world.recipe.image.side, world.recipe.image.patch_size
    count = side // patch
    for b, media in enumerate(CHOSEN[:2]):
        values = inputs_of(world.processor, media)["pixel_values_videos"][0].numpy().transpose(0, 2, 3, 1)
        levels = ((values * std + mean) * 255)[:, : count * patch, : count * patch]
        blocks = levels.reshape(-1, count, patch, count, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        ours = batch.patches.values[b][batch.patches.segments[b] > 0]
        assert np.abs(ours - blocks.reshape(ours.shape)).max() < 1e-3


def test_packed_documents_are_as_alone(world):
    packed, counts = rows_of(world, is_packed=True)
    alone, _ = rows_of(world, is_packed=False)
    together_TD = np.asarray(world.apply(world.params, packed)[0])[0]
    apart_BTD = np.asarray(world.apply(world.params, alone)[0])
    for b, (count, stop) in enumerate(zip(counts, itertools.accumulate(counts), strict=True)):
        np.testing.assert_allclose(together_TD[stop - count : stop], apart_BTD[b, :count], atol=1e-5)


@pytest.mark.usefixtures("same_resizing")
def test_greedy_answers_are_those_of_transformers(world):
    from jaxmm.inference.answers import Prompt, make_generator, write
    from jaxmm.models.multimodal import Compute

    prompts = [Prompt(media, QUESTION) for media in CHOSEN]
    generator = make_generator(world.recipe.model, Compute(), ())
    *_, replies = write(generator, world.params, prompts, world.recipe.template, world.recipe.image, 8)
    for media, reply in zip(CHOSEN, replies, strict=True):
        inputs = inputs_of(world.processor, media)
        said = world.model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None)
        wanted = said[0, inputs["input_ids"].shape[1] :].tolist()
        assert reply.text == world.recipe.template.decode(wanted)


def test_frames_are_those_that_the_processor_takes_of_a_video_of_any_length():
    from transformers.video_utils import VideoMetadata, default_sample_indices_fn

    from jaxmm.clip_spec import VideoSpec
    from jaxmm.data.media.sampling import frame_count, frame_numbers

    video = VideoSpec(frames=1, fps=1.0, min_frames=1, max_frames=1 << 20, sampling="even")
    rng = np.random.default_rng(0)
    counts = np.exp(rng.uniform(0, np.log(400000), 400)).astype(int)
    rates = rng.choice([1.0, 2.0, 6.0, 7.5, 24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 60.0], 400)
    together = frame_count(counts, rates, video)
    for count, rate, taken in zip(counts.tolist(), rates.tolist(), together.tolist(), strict=True):
        metadata = VideoMetadata(total_num_frames=count, fps=rate, duration=count / rate)
        theirs = default_sample_indices_fn(metadata, fps=1.0).tolist()
        assert frame_numbers(taken, count, rate, video).reshape(-1).tolist() == theirs


@pytest.mark.parametrize("flags", [(), ("video.fps=2",), ("video.min_frames=2", "video.max_frames=2")])
def test_an_export_has_a_processor_that_takes_the_same_frames(world, flags, tmp_path):
    import transformers

    from jaxmm.api import load_config
    from jaxmm.exporting.processors import write_processor, write_tokenizer
    from jaxmm.hf.pretrained import MODEL, save
    from jaxmm.recipe import fitted, read_recipe

    changes = dict(flag.split("=") for flag in flags)
    config = load_config("base", init_from=str(world.folder), seq_len=512, **{k: float(v) for k, v in changes.items()})
    recipe = fitted(read_recipe(config), {"video"})
    save(recipe.start, [], tmp_path / MODEL)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text((world.folder / "config.json").read_text())
    write_tokenizer(recipe, tmp_path / "out")
    write_processor(recipe, tmp_path, tmp_path / "out")
    exported = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    from transformers.video_utils import VideoMetadata

    from jaxmm.data.media import sampling

    metadata = VideoMetadata(total_num_frames=7, fps=2.0, duration=3.5)
    settings = json.loads(json.dumps({key: getattr(exported.video_processor, key) for key in ("num_frames", "fps")}))
    theirs = exported.video_processor.sample_frames(metadata, **settings).tolist()
    taken = sampling.frame_count(7, 2.0, recipe.image.video)
    assert sampling.frame_numbers(taken, 7, 2.0, recipe.image.video).reshape(-1).tolist() == theirs
