"""Videos of Qwen-VL and GLM against ``transformers``: ids, positions and patches, logits and gradients."""

from __future__ import annotations

import io
import itertools
import json
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pytest
from clip_parity import assert_greedy_answers_agree, attention_difference
from conftest import picture
from made_folders import byte_level_tokenizer

from jaxmm.batch import IGNORED, Batch
from jaxmm.data.assemble import Assembler
from jaxmm.data.documents import Document, Image, Text, Turn, Video
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.limits import Budgets
from jaxmm.data.packing.plan import Piece
from jaxmm.data.prepare.index import InMemory
from jaxmm.image_spec import ImageSpec

pytestmark = pytest.mark.parity

SIZES = {
    "qwen2-vl": {"shortest_edge": 64, "longest_edge": 768},
    "qwen2.5-vl": {"shortest_edge": 64, "longest_edge": 768},
    "qwen3-vl": {"shortest_edge": 64, "longest_edge": 9000},
    "glm-4.1v": {"shortest_edge": 128, "longest_edge": 9000},
    "glm-4.6v-flash": {"shortest_edge": 128, "longest_edge": 9000},
}
TWINS = ("qwen2-vl", "glm-4.6v-flash")
# The classes of ``transformers``: of videos, of pictures, and the processor of both.
CLASSES = {
    "qwen2-vl": ("Qwen2VLVideoProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLProcessor"),
    "qwen2.5-vl": ("Qwen2VLVideoProcessor", "Qwen2VLImageProcessorFast", "Qwen2_5_VLProcessor"),
    "qwen3-vl": ("Qwen3VLVideoProcessor", "Qwen2VLImageProcessorFast", "Qwen3VLProcessor"),
    "glm-4.1v": ("Glm4vVideoProcessor", "Glm4vImageProcessor", "Glm4vProcessor"),
    "glm-4.6v-flash": ("Glm46VVideoProcessor", "Glm46VImageProcessor", "Glm46VProcessor"),
}
QWEN_MARKS = {
    "video": "<|video_pad|>", "image": "<|image_pad|>", "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}  # fmt: skip
GLM_MARKS = {
    "video": "<|video|>", "image": "<|image|>", "image_start": "<|begin_of_image|>", "image_end": "<|end_of_image|>",
    "video_start": "<|begin_of_video|>", "video_end": "<|end_of_video|>",
}  # fmt: skip
VIDEOS = ((19, 24.0, (16, 24)), (20, 4.0, (16, 16)), (5, 3.0, (24, 8)), (64, Fraction(30000, 1001), (40, 28)))


class Sides(NamedTuple):
    """A family's folder, as each side reads it."""

    model: Any
    processor: Any
    recipe: Any
    text: str  # "ab", a video, "cd"
    token: str  # of its soft tokens


def sides_of(name: str, folder: Path) -> Sides:
    """A tiny model of random weights with a tokenizer of bytes and its family's processors."""
    from parities.models import case, let_torchvision_import, make

    let_torchvision_import()
    import transformers

    tokenizer, marks = byte_level_tokenizer(), GLM_MARKS if "glm" in name else QWEN_MARKS
    tokenizer.add_tokens(list(marks.values()), special_tokens=True)
    config = case(name).config(np.random.default_rng(0))
    config.text_config.vocab_size = 512
    for key, token in marks.items():
        setattr(config, f"{key}_token_id", tokenizer.convert_tokens_to_ids(token))
    model = make(case(name)._replace(config=lambda _: config), folder)
    of_videos, of_pictures, of_both = (getattr(transformers, kind) for kind in CLASSES[name])
    side = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    video = of_videos(
        size=SIZES[name], do_sample_frames=True, fps=2, image_mean=[0.5] * 3, image_std=[0.5] * 3, **side
    )  # fmt: skip
    image = of_pictures(
        size={"shortest_edge": 128, "longest_edge": 1024}, image_mean=[0.5] * 3, image_std=[0.5] * 3, **side
    )
    processor = of_both(image, tokenizer, video, chat_template="")
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(image.to_dict(), default=str))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video.to_dict(), default=str))

    from jaxmm.api import load_config
    from jaxmm.recipe import fitted, read_recipe

    changes = {"init_from": str(folder), "seq_len": 4096, "data.objective": "sft", "compute.dtype": "float32"}
    recipe = fitted(read_recipe(load_config("base", **changes)), {"video"})
    start, end = ("video_start", "video_end") if "glm" in name else ("vision_start", "vision_end")
    text = f"ab{marks[start]}{marks['video']}{marks[end]}cd"
    return Sides(model, processor, recipe, text, marks["image" if "glm" in name else "video"])


def frames_of(count: int, size: tuple[int, int], seed: int) -> tuple[Image, ...]:
    return tuple(picture(*size, seed=seed + n) for n in range(count))


def pixels(image: Image) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(image.data)).convert("RGB"))


def theirs_of(sides: Sides, video: Video) -> dict[str, Any]:
    """What the family's processor makes of "ab", a video, and "cd"."""
    from transformers.video_utils import VideoMetadata

    count, rate = len(video.frames), float(video.fps)
    metadata = VideoMetadata(total_num_frames=count, fps=rate, duration=count / rate)
    stacked = np.stack([pixels(frame) for frame in video.frames])
    return dict(sides.processor(text=[sides.text], videos=[stacked], video_metadata=[metadata], return_tensors="pt"))


def ours_of(sides: Sides, *videos: Video) -> tuple[Batch, list[int]]:
    """One row of the same documents, packed; and where each ends."""
    template, image = sides.recipe.template, sides.recipe.image
    documents = [Document((Turn("document", (Text("ab"), video, Text("cd")), True),), "made") for video in videos]
    encoded = [template.encode(document) for document in documents]
    source = InMemory("made", encoded, [[video] for video in videos], template.fingerprint)
    lengths = Lengths(source, image, encode=template.stamp)
    row = [Piece(0, n, 0, int(count)) for n, count in enumerate(lengths.tokens_E)]
    tokens = -(-int(lengths.tokens_E.sum()) // 16) * 16
    patches = -(-int(lengths.patches_E.sum()) // 64) * 64
    budgets = Budgets(tokens=tokens, patches=patches, items=int(lengths.items_E.sum()), targets=tokens)
    loaded = Assembler([lengths], budgets, image)([row])
    assert not loaded.skipped
    return loaded.batch, np.cumsum(lengths.tokens_E).tolist()


@pytest.fixture(
    scope="module",  # Qwen2-VL's videos are as Qwen2.5-VL's, GLM-4.6V-Flash's as GLM-4.1V's but for the frames, below
    params=[pytest.param(name, marks=pytest.mark.full if name in TWINS else []) for name in sorted(SIZES)],
)
def sides(request, tmp_path_factory) -> Sides:
    return sides_of(request.param, tmp_path_factory.mktemp("model") / "folder")


@pytest.mark.parametrize(("count", "fps", "size"), VIDEOS)
def test_ids_positions_and_patches_are_the_processors(sides, count, fps, size):
    video = Video(frames=frames_of(count, size, 7), fps=float(fps))
    theirs, (batch, (end,)) = theirs_of(sides, video), ours_of(sides, video)
    token = sides.processor.tokenizer.convert_tokens_to_ids(sides.token)
    slots = batch.slots_BT[0, : end - 1]
    ids = np.where(slots != IGNORED, token, batch.text.values[0, : end - 1])
    assert ids.tolist() == theirs["input_ids"][0].tolist()
    arguments = {"second_per_grid_ts": theirs["second_per_grid_ts"]} if "second_per_grid_ts" in theirs else {}
    positions, _ = sides.model.model.get_rope_index(
        theirs["input_ids"], mm_token_type_ids=theirs["mm_token_type_ids"], video_grid_thw=theirs["video_grid_thw"],
        **arguments,
    )  # fmt: skip
    np.testing.assert_array_equal(batch.text.positions[0, : end - 1], positions[:, 0].numpy().T)
    spec: ImageSpec = sides.recipe.image
    assert spec.video is not None
    frames, side = spec.video.frames, spec.patch_size
    values = theirs["pixel_values_videos"].numpy().reshape(-1, 3, frames, side, side)
    expected = (values.transpose(0, 2, 3, 4, 1) * 0.5 + 0.5) * 255
    used = batch.patches.segments[0] > 0
    ours = batch.patches.values[0, used].reshape(-1, frames, side, side, 3)
    grid, columns = theirs["video_grid_thw"][0].tolist(), theirs["video_grid_thw"][0, 2]
    place = {tuple(p): n for n, p in enumerate(batch.patches.positions[0, used].tolist())}
    from parities.batch import travelling_order

    order, _ = travelling_order(grid[1], grid[2], 2, 0)
    theirs_at = [(t, int(n // columns), int(n % columns)) for t in range(grid[0]) for n in order]
    ours = ours[[place[one] for one in theirs_at]]
    assert np.abs(ours.astype(np.float32) - expected).max() < 1.01


def test_packed_videos_give_the_numbers_of_transformers(sides):
    import jax
    import jax.numpy as jnp

    from jaxmm import sharding
    from jaxmm.hf.pretrained import read_params
    from jaxmm.models.multimodal import make_model
    from jaxmm.models.tree import nested

    videos = [Video(frames=frames_of(n, size, n), fps=rate) for n, rate, size in
              ((16, 4.0, (16, 24)), (9, 2.0, (24, 16)), (4, 2.0, (16, 16)))]  # fmt: skip
    batch, ends = ours_of(sides, *videos)
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        where = sharding.replicated(mesh)
        params = nested(read_params(sides.recipe.start, lambda *_: where).params)
        _, apply = make_model(sides.recipe.model)
        rows = sides.model.config.text_config.vocab_size
        is_said = np.zeros(batch.text.values.shape[1], bool)  # all but the end of each document, which is ours
        for start, end in itertools.pairwise([0, *ends]):
            is_said[start : end - 1] = True

        def logits_of(params):
            hidden, projection = apply(params, batch, sides.recipe.compute)
            logits = hidden[0] @ projection.T
            return (jnp.where(is_said[:, None], logits[:, :rows], 0) ** 2).sum(), logits

        gradients, logits = jax.jit(jax.grad(logits_of, has_aux=True))(params)
    sides.model.zero_grad()
    for video, (start, end) in zip(videos, itertools.pairwise([0, *ends]), strict=True):
        expected = sides.model(**theirs_of(sides, video)).logits[0]
        (expected**2).sum().backward()
        said = expected.detach().numpy()
        assert np.abs(np.asarray(logits)[start : end - 1, :rows] - said).max() < 1e-4 * max(1.0, np.abs(said).max())
    kernel = sides.model.model.visual.patch_embed.proj.weight.grad.numpy()  # (D, 3, frames, side, side)
    theirs = kernel.transpose(2, 3, 4, 1, 0).reshape(2, -1, kernel.shape[0])
    ours = np.asarray(gradients["vision"]["patch_embedding"]["kernel"])
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()


def test_attention_onto_packed_videos_is_that_of_transformers(sides):
    videos = [Video(frames=frames_of(n, (16, 24), n), fps=4.0) for n in (9, 4)]
    batch, ends = ours_of(sides, *videos)
    places = [slice(start, end - 1) for start, end in itertools.pairwise([0, *ends])]  # without the end, which is ours
    alone = [(place, theirs_of(sides, video)) for place, video in zip(places, videos, strict=True)]
    assert attention_difference(sides.recipe, sides.model, batch, alone) < 1e-5


def test_the_greedy_answer_is_that_of_transformers(sides):
    given = [
        (video, theirs_of(sides, video))
        for video in (Video(frames=frames_of(n, (16, 24), n), fps=4.0) for n in (9, 16))
    ]
    assert_greedy_answers_agree(sides.recipe, sides.model, given)


@pytest.mark.parametrize("name", ["glm-4.1v", "glm-4.6v-flash"])
def test_frames_are_those_that_the_processor_takes_of_a_video_of_any_length(name):
    from parities.models import case, let_torchvision_import

    let_torchvision_import()
    import transformers
    from transformers.video_utils import VideoMetadata

    from jaxmm.clip_spec import VideoSpec
    from jaxmm.data.media.sampling import frame_count, frame_numbers
    from jaxmm.hf.families.registry import FAMILIES

    processor = getattr(transformers, CLASSES[name][0])()
    video = VideoSpec(**FAMILIES[case(name).family].videos.settings(Path(), {}, 2))
    rng = np.random.default_rng(0)
    counts = np.exp(rng.uniform(np.log(7), np.log(90000), 300)).astype(int)
    rates = rng.choice([1.0, 2.0, 6.0, 7.5, 24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 60.0], 300)
    together = frame_count(counts, rates, video)
    for count, rate, taken in zip(counts.tolist(), rates.tolist(), together.tolist(), strict=True):
        metadata = VideoMetadata(total_num_frames=count, fps=rate, duration=count / rate)
        theirs = processor.sample_frames(metadata, fps=2).tolist()
        if theirs:  # GLM-4.6V's takes none of a clip that is shorter than a sixth of a second
            assert taken == len(theirs)
            assert frame_numbers(taken, count, rate, video).reshape(-1).tolist() == theirs
